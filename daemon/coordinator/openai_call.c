#include "daemon/coordinator/openai_call.h"

#include "daemon/api/sse.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { POOL_BODY_BYTES = 64 * 1024 }; /* a longer body is parsed on the pool */

static void random_words(uint64_t *words, size_t n)
{
    if (uv_random(NULL, NULL, words, n * sizeof(*words), 0, NULL) != 0) {
        words[0] ^= uv_hrtime(); /* a system without a source: still different each time */
    }
}

/* ---- The end ---- */

static void free_when_over(struct td_openai_call *call)
{
    if (call->http != NULL || call->pending) {
        return;
    }
    for (size_t i = 0; i < call->n_parts; i++) {
        td_ids_deinit(&call->parts[i].ids);
        td_bytes_deinit(&call->parts[i].text);
        td_ids_deinit(&call->parts[i].prompt);
        free(call->parts[i].tokens.item);
        free(call->parts[i].prompt_tokens.item);
    }
    free(call->parts);
    free(call->candidates);
    free(call->messages);
    if (call->parsed) {
        td_openai_request_deinit(&call->request);
    }
    td_bytes_deinit(&call->body);
    td_served_release(call->served);
    free(call);
}

static enum td_service_outcome outcome_of(const struct td_openai_error *e)
{
    return e->http_status == 429   ? TD_SERVICE_BUSY
           : e->http_status == 503 ? TD_SERVICE_UNAVAILABLE
           : e->http_status == 504 ? TD_SERVICE_TIMED_OUT
           : e->http_status >= 500 ? TD_SERVICE_FAILED
                                   : TD_SERVICE_INVALID;
}

static void count_end(struct td_openai_call *call, enum td_service_outcome outcome)
{
    td_service_metrics_end(&call->endpoint->metrics, call->start_ns, outcome);
}

static void on_client_gone(struct td_http_request *http, void *user)
{
    struct td_openai_call *call = user;
    (void)http;
    call->http = NULL;
    td_candidates_cancel(call->candidates, call->n_parts);
    if (!call->failed) { /* else its end was counted already */
        count_end(call, TD_SERVICE_CANCELLED);
    }
    free_when_over(call);
}

/* Ends the request with call->error: as a whole answer, or as the stream's last event. */
static void fail(struct td_openai_call *call)
{
    td_candidates_cancel(call->candidates, call->n_parts);
    if (call->http == NULL) {
        return; /* counted when the client went */
    }
    count_end(call, outcome_of(&call->error));
    if (call->streaming) {
        call->failed = true;
        if (!td_openai_reply_pump(call)) {
            return;
        }
    } else {
        td_http_respond_error(call->http, &call->error);
    }
    call->http = NULL;
}

static void fail_with(struct td_openai_call *call, const struct td_err *err)
{
    td_openai_error_from(err, &call->error);
    if (err->status == TD_TOO_LARGE) {
        call->error.code = "context_length_exceeded";
        snprintf(call->error.param, sizeof(call->error.param), "%s",
                 call->endpoint->kind == TD_OPENAI_CHAT ? "messages" : "prompt");
    }
    /* Refusals while the group is not ready come by the thousand, and say nothing that its own lines do not. */
    bool is_refusal = err->status == TD_UNAVAILABLE && !call->streaming;
    if (call->error.http_status >= 500 && call->http != NULL && !is_refusal &&
        err->status != TD_TIMED_OUT) {
        char text[512];
        td_log_warn("request failed id=%s error=\"%s\"", call->id,
                    td_err_format(err, text, sizeof(text)));
    }
    fail(call);
}

/* ---- From ids to jobs ---- */

/* Who does not take what is there gets nothing new until it does: others use its place in the steps. */
static void hold_back(struct td_openai_call *call)
{
    for (size_t i = 0; i < call->n_parts; i++) {
        struct td_openai_part *part = &call->parts[i];
        struct td_job *job = part->candidate->job;
        if (job == NULL) {
            continue;
        }
        if (part->text.len >= TD_COORD_SLOW_BYTES || part->tokens.n >= TD_COORD_SLOW_TOKENS) {
            td_job_pause(job, true);
        } else if (part->text.len == 0) {
            td_job_pause(job, false);
        }
    }
}

static void on_event(struct td_job *job, const struct td_job_event *event, void *user)
{
    struct td_openai_part *part = user;
    struct td_openai_call *call = part->call;
    struct td_err err = {0};
    (void)job;
    td_candidates_event(part->candidate, event);
    td_service_metrics_event(&call->endpoint->metrics, &part->times, event);
    enum td_status status = td_openai_reply_take(part, event);
    if (status != TD_OK) {
        /* The job is in the middle of this call and must not be cancelled here: closing the connection does it. */
        if (part->candidate->job != NULL) {
            td_http_stream_abort(call->http);
            return;
        }
        td_err_set(&err, status, "no memory for an answer");
        fail_with(call, &err);
    } else if (event->finish == TD_FINISH_ERROR) {
        fail_with(call, event->error);
    } else if (event->finish == TD_FINISH_CANCELLED) {
        td_err_set(&err, TD_UNAVAILABLE, "the server ended the request");
        fail_with(call, &err);
    } else if (call->streaming) {
        if (td_openai_reply_pump(call)) {
            count_end(call, TD_SERVICE_OK);
            call->http = NULL;
        } else {
            hold_back(call);
        }
    } else {
        for (size_t i = 0; i < call->n_parts; i++) {
            if (call->parts[i].finish == TD_FINISH_NONE) {
                return;
            }
        }
        if (td_openai_reply_respond(call) == TD_OK) {
            count_end(call, TD_SERVICE_OK);
            call->http = NULL;
        } else {
            td_err_set(&err, TD_NO_MEMORY, "no memory for an answer");
            fail_with(call, &err);
        }
    }
    free_when_over(call);
}

static void on_drain(struct td_http_request *http, void *user)
{
    struct td_openai_call *call = user;
    (void)http;
    if (td_openai_reply_pump(call)) {
        if (!call->failed) {
            count_end(call, TD_SERVICE_OK);
        }
        call->http = NULL;
        free_when_over(call);
    } else {
        hold_back(call);
    }
}

/* The first candidate of a prompt. */
static struct td_openai_part *first_of(struct td_openai_call *call, size_t prompt)
{
    return &call->parts[prompt * call->request.best_of];
}

/* All candidates of a prompt. */
static enum td_status submit(struct td_openai_call *call, size_t prompt, struct td_err *err)
{
    const struct td_openai_request *q = &call->request;
    struct td_openai_part *first = first_of(call, prompt);
    struct td_request r;
    if ((q->echo || q->prompt_logprobs >= 0) &&
        td_ids_append_n(&first->prompt, first->ids.data, first->ids.len) != TD_OK) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a prompt of %zu ids", first->ids.len);
    }
    td_request_init(&r);
    r.prompt = first->ids.data;
    r.n_prompt = (uint32_t)first->ids.len;
    first->ids = (struct td_ids){0};
    /* Who has another key, or names another salt, does not learn what was asked. */
    r.cache_salt = td_request_salt(call->key, q->cache_salt);
    enum td_status status = td_openai_request_fill(q, 0, &r, err);
    if (status == TD_OK) {
        status = td_request_break_at(&r, call->served->breakers,
                                     q->has_dry_breakers ? q->dry_breakers : NULL,
                                     q->n_dry_breakers, err);
    }
    if (!q->has_seed) {
        random_words(&r.sampling.seed, 1);
    }
    if (status == TD_OK) {
        const struct td_coord_submit what = {.served = call->served,
                                             .request = &r,
                                             .key = call->key,
                                             .admitted = true,
                                             .deadline_ns = td_openai_limits_deadline_ns(call),
                                             .on_event = on_event};
        status = td_candidates_submit(call->endpoint->coord, &what, first->candidate, q->best_of,
                                      q->n, err);
    }
    if (status != TD_OK) {
        td_request_deinit(&r);
        if (call->n_prompts > 1) {
            td_err_context(err, "prompt %zu of %zu", prompt + 1, call->n_prompts);
        }
    }
    return status;
}

static void submit_all(struct td_openai_call *call)
{
    struct td_err err = {0};
    if (td_openai_limits_admit(call, &err) != TD_OK) {
        td_openai_limits_tell(call);
        fail_with(call, &err);
        return;
    }
    for (size_t i = 0; i < call->n_prompts; i++) {
        if (submit(call, i, &err) != TD_OK) {
            fail_with(call, &err);
            return;
        }
    }
    td_openai_limits_tell(call);
    if (call->request.stream) {
        call->streaming = true;
        td_sse_begin(call->http, on_drain, call);
        td_openai_reply_pump(call); /* the role chunks; nothing can be at its end yet */
    }
}

/* ---- From text to ids ---- */

static void encode_rest(struct td_openai_call *call);

static void on_encoded(enum td_status status, struct td_ids *ids, const struct td_err *err,
                       void *user)
{
    struct td_openai_call *call = user;
    call->pending = false;
    if (call->http != NULL) {
        if (status == TD_OK) {
            first_of(call, call->n_encoded++)->ids = *ids;
            *ids = (struct td_ids){0};
            encode_rest(call);
        } else {
            fail_with(call, err);
        }
    }
    free_when_over(call);
}

static enum td_status encode_next(struct td_openai_call *call, struct td_err *err)
{
    const struct td_openai_request *request = &call->request;
    struct td_coord_encode what = {.served = call->served};
    if (request->kind == TD_OPENAI_CHAT) {
        what.messages = call->messages;
        what.n_messages = request->n_messages;
        what.add_generation_prompt = true;
    } else {
        const struct td_openai_prompt *prompt = &request->prompts[call->n_encoded];
        if (prompt->is_ids) {
            return td_ids_append_n(&first_of(call, call->n_encoded++)->ids, prompt->ids,
                                   prompt->n_ids) == TD_OK
                       ? TD_OK
                       : td_err_set(err, TD_NO_MEMORY, "no memory for a prompt of %u ids",
                                    prompt->n_ids);
        }
        what.text = prompt->text;
        what.with_bos = true;
    }
    enum td_status status = td_coord_encode(call->endpoint->coord, &what, on_encoded, call, err);
    call->pending = status == TD_OK;
    return status;
}

static void encode_rest(struct td_openai_call *call)
{
    struct td_err err = {0};
    while (call->n_encoded < call->n_prompts) {
        if (encode_next(call, &err) != TD_OK) {
            fail_with(call, &err);
            return;
        }
        if (call->pending) {
            return;
        }
    }
    submit_all(call);
}

/* The templates know the roles of the models; "developer" is OpenAI's newer word for "system". */
static enum td_status copy_messages(struct td_openai_call *call, struct td_err *err)
{
    const struct td_openai_request *request = &call->request;
    if (call->served->chat == NULL) {
        td_err_set(err, TD_UNSUPPORTED, "%s", call->served->chat_err.cause);
        td_err_context(err, "the model '%s' cannot chat", call->served->names[0]);
        return TD_UNSUPPORTED;
    }
    call->messages = calloc(request->n_messages, sizeof(*call->messages));
    if (call->messages == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu messages", request->n_messages);
    }
    for (size_t i = 0; i < request->n_messages; i++) {
        const struct td_openai_message *m = &request->messages[i];
        bool is_developer = td_str_eq(m->role, TD_STR("developer"));
        call->messages[i].role = is_developer ? TD_STR("system") : m->role;
        call->messages[i].content = m->content;
    }
    return TD_OK;
}

static enum td_status make_parts(struct td_openai_call *call, struct td_err *err)
{
    const struct td_openai_request *request = &call->request;
    size_t n_prompts = request->kind == TD_OPENAI_CHAT ? 1 : request->n_prompts;
    size_t n = n_prompts * request->best_of;
    call->parts = calloc(n, sizeof(*call->parts));
    call->candidates = calloc(n, sizeof(*call->candidates));
    if (call->parts == NULL || call->candidates == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu answers", n);
    }
    call->n_prompts = n_prompts;
    call->n_parts = n;
    for (size_t i = 0; i < n; i++) {
        call->candidates[i].user = &call->parts[i];
        call->parts[i].call = call;
        call->parts[i].candidate = &call->candidates[i];
        call->parts[i].times.start_ns = call->start_ns;
        call->parts[i].index = (uint32_t)i;
        call->parts[i].choice = (uint32_t)(i % request->best_of);
    }
    return call->request.kind == TD_OPENAI_CHAT ? copy_messages(call, err) : TD_OK;
}

/* ---- From body to request ---- */

static void go_on(struct td_openai_call *call)
{
    struct td_served *served = NULL;
    struct td_err err = {0};
    if (!call->parsed) {
        fail(call);
        return;
    }
    enum td_status status =
        td_coord_find_model(call->endpoint->coord, call->request.model, &served, &err);
    if (status == TD_NOT_FOUND) {
        char text[512];
        td_openai_error_set(&call->error, 404, "invalid_request_error", "model_not_found", "model",
                            "%s", td_err_format(&err, text, sizeof(text)));
        fail(call);
        return;
    }
    if (status == TD_OK) {
        call->served = served;
        td_served_retain(served);
        status = make_parts(call, &err);
    }
    if (status != TD_OK) {
        fail_with(call, &err);
        return;
    }
    encode_rest(call);
}

static void parse(struct td_openai_call *call, struct td_str body)
{
    call->parsed = td_openai_request_parse(call->endpoint->kind, body,
                                           call->has_defaults ? &call->defaults : NULL,
                                           &call->request, &call->error) == TD_OK;
}

static void parse_on_pool(uv_work_t *work)
{
    struct td_openai_call *call = work->data;
    parse(call, td_bytes_str(&call->body));
}

static void on_parsed(uv_work_t *work, int status)
{
    struct td_openai_call *call = work->data;
    (void)status;
    call->pending = false;
    td_bytes_deinit(&call->body);
    if (call->http != NULL) {
        go_on(call);
    }
    free_when_over(call);
}

void td_openai_call_start(struct td_openai_endpoint *endpoint, struct td_http_request *http)
{
    struct td_openai_call *call = calloc(1, sizeof(*call));
    struct td_served *served = NULL;
    uint64_t words[2] = {0, 0};
    if (call == NULL) {
        struct td_openai_error e;
        td_openai_error_from(&(struct td_err){.status = TD_NO_MEMORY}, &e);
        td_service_metrics_end(&endpoint->metrics, uv_hrtime(), TD_SERVICE_FAILED);
        td_http_respond_error(http, &e);
        return;
    }
    call->endpoint = endpoint;
    call->http = http;
    call->key = td_http_key(http);
    call->start_ns = uv_hrtime();
    call->created = (int64_t)time(NULL);
    random_words(words, 2);
    td_openai_id(endpoint->kind, words[0], words[1], call->id);
    td_http_set_header(http, "X-Request-Id", call->id);
    td_http_on_close(http, on_client_gone, call);
    /* The sampling defaults are the served model's, whatever name the body holds: there is one model. */
    if (td_coord_find_model(endpoint->coord, TD_STR(""), &served, NULL) == TD_OK) {
        call->defaults = served->defaults;
        call->has_defaults = true;
    }
    if (td_http_body(http).len > POOL_BODY_BYTES) {
        td_http_take_body(http, &call->body);
        call->work.data = call;
        call->pending = uv_queue_work(td_coord_loop(endpoint->coord), &call->work, parse_on_pool,
                                      on_parsed) == 0;
        if (call->pending) {
            return;
        }
        parse(call, td_bytes_str(&call->body));
    } else {
        parse(call, td_http_body(http));
    }
    go_on(call);
    free_when_over(call);
}
