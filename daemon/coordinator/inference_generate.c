/* Inference.Generate from ids on: its candidates as jobs, at the client's pace. */
#include "daemon/coordinator/inference_call.h"

#include "daemon/journal/journal.h"
#include "daemon/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

void td_inference_generate_count(struct td_inference_call *call, enum td_status status)
{
    if (call->method == TD_RPC_TOKENIZE || call->counted) {
        return;
    }
    call->counted = true;
    td_service_metrics_end(&call->service->metrics, call->start_ns,
                           td_service_metrics_outcome(status));
}

void td_inference_generate_stop(struct td_inference_call *call)
{
    td_candidates_cancel(call->candidates, call->candidates != NULL ? call->best_of : 0);
}

bool td_inference_generate_is_running(const struct td_inference_call *call)
{
    for (uint32_t i = 0; call->candidates != NULL && i < call->best_of; i++) {
        if (call->candidates[i].job != NULL) {
            return true;
        }
    }
    return false;
}

void td_inference_generate_forget(struct td_inference_call *call)
{
    if (call->has_made) {
        td_request_deinit(&call->made);
    }
    for (uint32_t i = 0; call->parts != NULL && i < call->best_of; i++) {
        td_bytes_deinit(&call->parts[i].held);
    }
    free(call->parts);
    free(call->candidates);
    free(call->prompt);
    td_ids_deinit(&call->ids);
    td_ids_deinit(&call->echo);
    call->has_made = false;
    call->parts = NULL;
    call->candidates = NULL;
    call->prompt = NULL;
}

void td_inference_generate_free(struct td_inference_call *call)
{
    td_inference_generate_forget(call);
    td_ids_deinit(&call->known);
    td_bytes_deinit(&call->packed);
    td_bytes_deinit(&call->addition);
    td_bytes_deinit(&call->backlog);
}

/* Who does not take what is there gets nothing new until it does, and who is ahead of the prompt's log probabilities waits
 * for them. Candidates that are to be compared are held back without end. */
static void hold_back(struct td_inference_call *call)
{
    for (uint32_t i = 0; i < call->best_of; i++) {
        const struct td_bytes *held = &call->parts[i].held;
        struct td_job *job = call->candidates[i].job;
        bool is_ahead = call->best_of == call->n && held->len >= TD_COORD_SLOW_BYTES;
        if (job == NULL) {
            continue;
        }
        if (is_ahead || call->backlog.len >= TD_COORD_SLOW_BYTES) {
            td_job_pause(job, true);
        } else if (call->backlog.len == 0) {
            td_job_pause(job, false);
        }
    }
}

void td_inference_generate_drain(void *user, struct td_grpc_stream *s)
{
    struct td_inference_call *call = td_grpc_stream_user(s);
    (void)user;
    td_inference_reply_pump(call);
    if (call->n_open > 0) {
        hold_back(call);
    }
}

void td_inference_generate_detach(struct td_inference_call *call)
{
    td_bytes_deinit(&call->backlog);
    for (uint32_t i = 0; i < call->best_of; i++) {
        td_bytes_deinit(&call->parts[i].held);
        if (call->candidates[i].job != NULL) {
            td_job_pause(call->candidates[i].job, false);
        }
    }
}

/* One failure ends all candidates; what was generated is sent before it. */
static void end_with(struct td_inference_call *call, const struct td_err *err)
{
    td_candidates_give_up(call->candidates, call->best_of, err);
    call->end_err = *err;
    call->ended = true;
}

void td_inference_generate_tell(struct td_inference_call *call)
{
    if (call->s == NULL) {
        if (call->ended) {
            td_inference_generate_count(call, call->end_err.status);
        }
    } else if (call->ended) {
        td_inference_reply_pump(call);
    } else {
        hold_back(call);
    }
}

/* Nobody is there: the journal has it. */
static void pass_over(struct td_inference_call *call, const struct td_job_event *event)
{
    if (event->finish != TD_FINISH_NONE) {
        call->n_open--;
        call->ended = call->n_open == 0;
    }
}

void td_inference_generate_on_event(struct td_job *job, const struct td_job_event *event,
                                    void *user)
{
    struct td_inference_part *part = user;
    struct td_inference_call *call = part->call;
    struct td_err err = {0};
    (void)job;
    td_candidates_event(&call->candidates[part - call->parts], event);
    if (!call->retelling) {
        td_service_metrics_event(&call->service->metrics, &part->times, event);
    }
    if (event->finish == TD_FINISH_ERROR) {
        end_with(call, event->error);
        if (event->error->status != TD_TIMED_OUT && !call->retelling) {
            td_log_warn("request failed method=Generate status=%s",
                        td_status_name(event->error->status));
        }
    } else if (event->finish == TD_FINISH_CANCELLED) {
        td_err_set(&err, TD_UNAVAILABLE, "the server ended the request");
        end_with(call, &err);
    } else if (call->s == NULL) {
        pass_over(call, event);
    } else if (td_inference_reply_take(part, event) != TD_OK) {
        td_grpc_stream_cancel(call->s); /* on_close follows, and cancels the jobs */
        return;
    }
    if (!call->retelling) {
        td_inference_generate_tell(call);
        td_inference_call_free_when_over(call);
    }
}

static enum td_status make_parts(struct td_inference_call *call, const struct td_request *r,
                                 struct td_err *err)
{
    call->candidates = calloc(call->best_of, sizeof(*call->candidates));
    call->parts = calloc(call->best_of, sizeof(*call->parts));
    call->prompt = r->prompt_logprobs >= 0 ? calloc(1, sizeof(*call->prompt)) : NULL;
    if (call->candidates == NULL || call->parts == NULL ||
        (r->prompt_logprobs >= 0 && call->prompt == NULL)) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u answers", call->best_of);
    }
    for (uint32_t i = 0; i < call->best_of; i++) {
        call->candidates[i].user = &call->parts[i];
        call->parts[i].call = call;
        call->parts[i].times.start_ns = call->start_ns;
    }
    if (call->prompt != NULL && r->n_prompt > 0) { /* the first token, of which no event tells */
        call->prompt->token[call->prompt->n++].id = r->prompt[0];
    }
    call->n_open = call->best_of;
    call->usage = (Tensord__V1__Usage)TENSORD__V1__USAGE__INIT;
    call->usage.seed = r->sampling.seed;
    call->wants_logprobs = r->sampling.n_logprobs >= 0;
    return TD_OK;
}

enum td_status td_inference_generate_make(struct td_inference_call *call, struct td_err *err)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    struct td_request *r = &call->made;
    td_request_init(r);
    call->has_made = true;
    enum td_status status = td_inference_request_fill(call, r, err);
    r->prompt = call->ids.data;
    r->n_prompt = (uint32_t)call->ids.len;
    call->ids = (struct td_ids){0};
    /* Who has another key, or names another salt, does not learn what was asked. */
    r->cache_salt = td_request_salt(call->key, td_rpc_str(m->cache_salt));
    if (status == TD_OK) {
        td_candidates_prepare(r, call->best_of, call->n);
        status = make_parts(call, r, err);
    }
    return status;
}

/* Nothing of it is to be found later. */
static void refuse(struct td_inference_call *call, const struct td_err *err)
{
    td_inference_generate_stop(call);
    td_journal_drop(td_coord_journal(call->service->coord), call->number);
    call->number = 0;
    td_inference_call_fail(call, err);
}

static void submit(struct td_inference_call *call)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    struct td_err err = {0};
    const struct td_coord_submit what = {.served = call->served,
                                         .request = &call->made,
                                         .raw_text = m->keep_special_tokens,
                                         .key = call->key,
                                         .deadline_ns = call->s != NULL
                                                            ? td_grpc_stream_deadline_ns(call->s)
                                                            : 0, /* both clocks are monotonic */
                                         .number = call->number,
                                         .on_event = td_inference_generate_on_event};
    if (td_candidates_submit(call->service->coord, &what, call->candidates, call->best_of, &err) !=
        TD_OK) {
        refuse(call, &err);
        return;
    }
    td_kept_add(&call->service->kept, &call->kept, call->number, call);
    if (call->s != NULL) {
        td_grpc_stream_start(call->s); /* the client sees that the call was accepted */
    }
}

/* ---- Through the journal ---- */

static void on_kept(const struct td_journal_answer *answer, void *user)
{
    struct td_inference_call *call = user;
    struct td_err err = {0};
    call->pending = false;
    call->number = answer->verdict == TD_JOURNAL_KEPT ? answer->number : 0;
    if (call->number == 0) {
        call->id[0] = '\0';
    }
    if (call->s == NULL && (call->number == 0 || !call->is_repeatable)) {
        td_journal_drop(td_coord_journal(call->service->coord), call->number);
    } else if (answer->verdict == TD_JOURNAL_REPEATED) {
        td_inference_resume_find(call, answer->id);
    } else if (answer->verdict == TD_JOURNAL_CONFLICT) {
        td_err_set(&err, TD_INVALID, "idempotency_key was used before for another request");
        td_inference_call_fail(call, &err);
    } else {
        submit(call);
    }
    td_inference_call_free_when_over(call);
}

static enum td_status admit(struct td_inference_call *call, struct td_err *err)
{
    struct td_coord_ask ask = {.key = call->key};
    uint32_t retry_after_s;
    enum td_status status =
        td_candidates_count(call->served, &call->made, call->best_of, &ask, err);
    return status == TD_OK ? td_coord_admit(call->service->coord, &ask, &retry_after_s, err)
                           : status;
}

static void make_id(struct td_inference_call *call)
{
    uint64_t words[2] = {0, 0};
    if (uv_random(NULL, NULL, words, sizeof(words), 0, NULL) != 0) {
        words[0] = uv_hrtime();
    }
    snprintf(call->id, sizeof(call->id), "gen-%016" PRIx64 "%016" PRIx64, words[0], words[1]);
}

/* Its message, packed again, is what it was asked for; equal ones have equal bytes. */
static enum td_status keep(struct td_inference_call *call, struct td_err *err)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    struct td_bytes message = {0};
    XXH128_canonical_t hash;
    enum td_status status = td_rpc_pack(call->request, &message, err);
    status =
        status == TD_OK ? td_kept_settle(&call->made, 1, call->served->max_model_len, err) : status;
    if (status == TD_OK) {
        struct td_record record = {.id = td_str_from(call->id),
                                   .owner = td_auth_owner(call->service->auth, call->key),
                                   .idempotency = td_rpc_str(m->idempotency_key),
                                   .model_hash = td_str_from(call->served->hash),
                                   .api = TD_RECORD_GRPC,
                                   .prompts = &call->made,
                                   .n_prompts = 1,
                                   .n_choices = call->best_of,
                                   .service = td_bytes_str(&message),
                                   .accepted_ms = (int64_t)time(NULL) * 1000,
                                   .deadline_ms =
                                       td_kept_deadline_ms(td_grpc_stream_deadline_ns(call->s))};
        XXH128_canonicalFromHash(&hash, XXH3_128bits(message.data, message.len));
        memcpy(record.body_hash, hash.digest, sizeof(record.body_hash));
        status =
            td_journal_accept(td_coord_journal(call->service->coord), &record, on_kept, call, err);
    }
    td_bytes_deinit(&message);
    return status;
}

void td_inference_generate_begin(struct td_inference_call *call)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    struct td_err err = {0};
    char text[512];
    enum td_status status = td_inference_generate_make(call, &err);
    if (status == TD_OK && td_coord_journal(call->service->coord) != NULL) {
        call->is_repeatable = m->idempotency_key.len > 0;
        /* Who names a key may have been admitted long ago: the journal is asked first, td_candidates_submit then. */
        status = call->is_repeatable ? TD_OK : admit(call, &err);
        if (status == TD_OK) {
            make_id(call);
            call->pending = keep(call, &err) == TD_OK;
            if (call->pending) {
                return;
            }
            call->id[0] = '\0';
            if (err.status != TD_UNAVAILABLE) { /* which the journal's own lines tell */
                td_log_warn("request not kept method=Generate error=\"%s\"",
                            td_err_format(&err, text, sizeof(text)));
            }
        }
    }
    if (status == TD_OK) {
        submit(call);
    } else {
        td_inference_call_fail(call, &err);
    }
}
