#include "daemon/coordinator/openai_call.h"

#include "daemon/api/sse.h"
#include "daemon/journal/journal.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { POOL_BODY_BYTES = 64 * 1024 }; /* a longer body is parsed on the pool */

/* ---- The end ---- */

void td_openai_call_reset(struct td_openai_call *call)
{
    for (size_t i = 0; i < call->n_parts; i++) {
        td_ids_deinit(&call->parts[i].ids);
        td_bytes_deinit(&call->parts[i].text);
        td_ids_deinit(&call->parts[i].prompt);
        free(call->parts[i].tokens.item);
        free(call->parts[i].prompt_tokens.item);
    }
    for (size_t i = 0; call->requests != NULL && i < call->n_prompts; i++) {
        td_request_deinit(&call->requests[i]);
    }
    free(call->requests);
    free(call->parts);
    free(call->candidates);
    free(call->messages);
    if (call->parsed) {
        td_openai_request_deinit(&call->request);
    }
    td_bytes_deinit(&call->body);
    td_served_release(call->served);
    call->requests = NULL;
    call->parts = NULL;
    call->candidates = NULL;
    call->messages = NULL;
    call->served = NULL;
    call->parsed = false;
    call->n_parts = call->n_prompts = call->n_encoded = 0;
}

static bool has_jobs(const struct td_openai_call *call)
{
    for (size_t i = 0; i < call->n_parts; i++) {
        if (call->candidates[i].job != NULL) {
            return true;
        }
    }
    return false;
}

void td_openai_call_free_when_over(struct td_openai_call *call)
{
    if (call->http != NULL || call->pending || call->retelling || has_jobs(call)) {
        return;
    }
    td_kept_remove(&call->kept);
    td_openai_call_reset(call);
    td_bytes_deinit(&call->idempotency);
    td_bytes_deinit(&call->after);
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

/* Once, whoever sees its end first. */
static void count_end(struct td_openai_call *call, enum td_service_outcome outcome)
{
    if (!call->counted) {
        td_service_metrics_end(&call->endpoint->metrics, call->start_ns, outcome);
    }
    call->counted = true;
}

/* Nobody takes what comes: it is not kept here, and nothing waits for a reader. */
static void detach(struct td_openai_call *call)
{
    for (size_t i = 0; i < call->n_parts; i++) {
        struct td_openai_part *part = &call->parts[i];
        td_bytes_deinit(&part->text);
        part->tokens.n = 0;
        if (part->candidate->job != NULL) {
            td_job_pause(part->candidate->job, false);
        }
    }
}

static void on_client_gone(struct td_http_request *http, void *user)
{
    struct td_openai_call *call = user;
    (void)http;
    call->http = NULL;
    if (!has_jobs(call)) { /* it has ended, and may be asked for */
        count_end(call, TD_SERVICE_CANCELLED);
    } else if (call->is_repeatable && call->number != 0) {
        detach(call);
    } else {
        td_candidates_cancel(call->candidates, call->n_parts);
        td_journal_drop(td_coord_journal(call->endpoint->coord), call->number);
        count_end(call, TD_SERVICE_CANCELLED);
    }
    td_openai_call_free_when_over(call);
}

void td_openai_call_supersede(struct td_openai_call *call)
{
    struct td_err err = {0};
    td_candidates_cancel(call->candidates, call->n_parts);
    td_kept_remove(&call->kept);
    call->number = 0;
    td_err_set(&err, TD_CANCELLED, "another connection took this request over");
    td_openai_call_fail(call, &err);
    td_openai_call_free_when_over(call);
}

/* An answer names its request. */
static void tell_id(struct td_openai_call *call)
{
    td_http_set_header(call->http, "X-Request-Id", call->id);
}

/* Ends the request with call->error: as a whole answer, or as the stream's last event. */
static void fail(struct td_openai_call *call)
{
    count_end(call, outcome_of(&call->error));
    if (call->http == NULL) {
        return;
    }
    if (call->streaming) {
        call->failed = true;
        if (!td_openai_reply_pump(call)) {
            return;
        }
    } else {
        tell_id(call);
        td_http_respond_error(call->http, &call->error);
    }
    call->http = NULL;
}

void td_openai_call_fail(struct td_openai_call *call, const struct td_err *err)
{
    td_candidates_give_up(call->candidates, call->n_parts, err);
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

void td_openai_call_refuse(struct td_openai_call *call)
{
    fail(call);
}

/* ---- From jobs to the client ---- */

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

static bool is_whole(const struct td_openai_call *call)
{
    for (size_t i = 0; i < call->n_parts; i++) {
        if (call->parts[i].finish == TD_FINISH_NONE) {
            return false;
        }
    }
    return true;
}

/* Writes what is there. */
static void tell(struct td_openai_call *call)
{
    struct td_err err = {0};
    if (call->streaming) {
        if (td_openai_reply_pump(call)) {
            count_end(call, TD_SERVICE_OK);
            call->http = NULL;
        } else {
            hold_back(call);
        }
    } else if (is_whole(call)) {
        tell_id(call);
        if (td_openai_reply_respond(call) == TD_OK) {
            count_end(call, TD_SERVICE_OK);
            call->http = NULL;
        } else {
            td_err_set(&err, TD_NO_MEMORY, "no memory for an answer");
            td_openai_call_fail(call, &err);
        }
    }
}

/* Nobody is there: the journal has it. */
static void pass_over(struct td_openai_part *part, const struct td_job_event *event)
{
    if (event->finish != TD_FINISH_NONE) {
        part->finish = event->finish;
    }
    if (is_whole(part->call)) {
        count_end(part->call, TD_SERVICE_OK);
    }
}

static void take(struct td_openai_part *part, const struct td_job_event *event)
{
    struct td_openai_call *call = part->call;
    struct td_err err = {0};
    enum td_status status = td_openai_reply_take(part, event);
    if (status != TD_OK) {
        td_err_set(&err, status, "no memory for an answer");
    } else if (event->finish == TD_FINISH_ERROR) {
        err = *event->error;
    } else if (event->finish == TD_FINISH_CANCELLED) {
        td_err_set(&err, TD_UNAVAILABLE, "the server ended the request");
    }
    if (call->retelling) {
        call->retold_err = call->retold_err.status != TD_OK ? call->retold_err : err;
    } else if (status != TD_OK && part->candidate->job != NULL) {
        /* The job is in the middle of this call and must not be cancelled here: closing the connection does it. */
        td_http_stream_abort(call->http);
    } else if (err.status != TD_OK) {
        td_openai_call_fail(call, &err);
    } else {
        tell(call);
    }
}

void td_openai_call_on_event(struct td_job *job, const struct td_job_event *event, void *user)
{
    struct td_openai_part *part = user;
    struct td_openai_call *call = part->call;
    (void)job;
    td_candidates_event(part->candidate, event);
    if (!call->retelling) {
        td_service_metrics_event(&call->endpoint->metrics, &part->times, event);
    }
    if (call->http == NULL && event->finish != TD_FINISH_ERROR) {
        pass_over(part, event);
    } else {
        take(part, event);
    }
    td_openai_call_free_when_over(call);
}

static void on_drain(struct td_http_request *http, void *user)
{
    struct td_openai_call *call = user;
    (void)http;
    if (td_openai_reply_pump(call)) {
        count_end(call, TD_SERVICE_OK); /* unless it failed, which was counted then */
        call->http = NULL;
        td_openai_call_free_when_over(call);
    } else {
        hold_back(call);
    }
}

void td_openai_call_answer(struct td_openai_call *call)
{
    td_openai_limits_tell(call);
    if (call->streaming) {
        tell_id(call);
        td_sse_begin(call->http, on_drain, call);
    }
    tell(call); /* of a new stream the role chunks */
}

/* The first candidate of a prompt. */
static struct td_openai_part *first_of(struct td_openai_call *call, size_t prompt)
{
    return &call->parts[prompt * call->request.best_of];
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
            td_openai_call_fail(call, err);
        }
    }
    td_openai_call_free_when_over(call);
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
            td_openai_call_fail(call, &err);
            return;
        }
        if (call->pending) {
            return;
        }
    }
    td_openai_submit(call);
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

enum td_status td_openai_call_make_parts(struct td_openai_call *call, struct td_err *err)
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
        status = td_openai_call_make_parts(call, &err);
    }
    if (status != TD_OK) {
        td_openai_call_fail(call, &err);
        return;
    }
    encode_rest(call);
}

enum td_status td_openai_call_parse(struct td_openai_call *call, struct td_str body)
{
    enum td_status status = td_openai_request_parse(call->endpoint->kind, body,
                                                    call->has_defaults ? &call->defaults : NULL,
                                                    &call->request, &call->error);
    call->parsed = status == TD_OK;
    return status;
}

static void parse_on_pool(uv_work_t *work)
{
    struct td_openai_call *call = work->data;
    td_openai_call_parse(call, td_bytes_str(&call->body));
}

static void on_parsed(uv_work_t *work, int status)
{
    struct td_openai_call *call = work->data;
    (void)status;
    call->pending = false;
    if (call->http != NULL) {
        go_on(call);
    }
    td_openai_call_free_when_over(call);
}

struct td_openai_call *td_openai_call_new(struct td_openai_endpoint *endpoint,
                                          struct td_http_request *http)
{
    struct td_openai_call *call = calloc(1, sizeof(*call));
    struct td_served *served = NULL;
    uint64_t words[2] = {0, 0};
    if (call == NULL && http != NULL) {
        struct td_openai_error e;
        td_openai_error_from(&(struct td_err){.status = TD_NO_MEMORY}, &e);
        td_service_metrics_end(&endpoint->metrics, uv_hrtime(), TD_SERVICE_FAILED);
        td_http_respond_error(http, &e);
    }
    if (call == NULL) {
        return NULL;
    }
    call->endpoint = endpoint;
    call->http = http;
    call->start_ns = uv_hrtime();
    call->created = (int64_t)time(NULL);
    td_openai_random(words, 2);
    td_openai_id(endpoint->kind, words[0], words[1], call->id);
    if (http != NULL) {
        call->key = td_http_key(http);
        td_http_on_close(http, on_client_gone, call);
    }
    /* The sampling defaults are the served model's, whatever name the body holds: there is one model. */
    if (td_coord_find_model(endpoint->coord, TD_STR(""), &served, NULL) == TD_OK) {
        call->defaults = served->defaults;
        call->has_defaults = true;
    }
    return call;
}

/* What a client says that may come back for its answer. */
static enum td_status read_headers(struct td_openai_call *call)
{
    struct td_str key = td_http_header(call->http, "Idempotency-Key");
    if (key.len > TD_RECORD_MAX_IDEMPOTENCY_BYTES) {
        return td_openai_error_set(&call->error, 400, "invalid_request_error", NULL,
                                   "Idempotency-Key",
                                   "The Idempotency-Key header has %zu bytes, expected at most %d.",
                                   key.len, TD_RECORD_MAX_IDEMPOTENCY_BYTES);
    }
    call->is_repeatable = key.len > 0;
    if (td_bytes_append_str(&call->idempotency, key) != TD_OK ||
        td_bytes_append_str(&call->after, td_http_header(call->http, "Last-Event-ID")) != TD_OK) {
        td_openai_error_from(&(struct td_err){.status = TD_NO_MEMORY}, &call->error);
        return TD_NO_MEMORY;
    }
    return TD_OK;
}

void td_openai_call_start(struct td_openai_endpoint *endpoint, struct td_http_request *http)
{
    struct td_openai_call *call = td_openai_call_new(endpoint, http);
    if (call == NULL) {
        return;
    }
    bool is_long = td_http_body(http).len > POOL_BODY_BYTES;
    if (is_long || td_coord_journal(endpoint->coord) != NULL) {
        td_http_take_body(http, &call->body);
    }
    if (read_headers(call) != TD_OK) {
        fail(call);
    } else {
        call->work.data = call;
        call->pending = is_long && uv_queue_work(td_coord_loop(endpoint->coord), &call->work,
                                                 parse_on_pool, on_parsed) == 0;
        if (call->pending) {
            return;
        }
        td_openai_call_parse(call,
                             call->body.len > 0 ? td_bytes_str(&call->body) : td_http_body(http));
        go_on(call);
    }
    td_openai_call_free_when_over(call);
}
