/* Inference.Generate from ids on: its candidates as jobs, at the client's pace. */
#include "daemon/coordinator/inference_call.h"
#include "daemon/log.h"

#include <stdlib.h>

void td_inference_generate_count(struct td_inference_call *call, enum td_status status)
{
    if (call->method != TD_RPC_GENERATE || call->counted) {
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

void td_inference_generate_free(struct td_inference_call *call)
{
    for (uint32_t i = 0; call->parts != NULL && i < call->best_of; i++) {
        td_bytes_deinit(&call->parts[i].held);
    }
    free(call->parts);
    free(call->candidates);
    free(call->prompt);
    td_ids_deinit(&call->echo);
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

/* One failure ends all candidates; what was generated is sent before it. */
static void end_with(struct td_inference_call *call, const struct td_err *err)
{
    td_inference_generate_stop(call);
    call->end_err = *err;
    call->ended = true;
}

static void on_event(struct td_job *job, const struct td_job_event *event, void *user)
{
    struct td_inference_part *part = user;
    struct td_inference_call *call = part->call;
    struct td_err err = {0};
    (void)job;
    td_candidates_event(&call->candidates[part - call->parts], event);
    td_service_metrics_event(&call->service->metrics, &part->times, event);
    if (event->finish == TD_FINISH_ERROR) {
        end_with(call, event->error);
        if (event->error->status != TD_TIMED_OUT) {
            td_log_warn("request failed method=Generate status=%s",
                        td_status_name(event->error->status));
        }
    } else if (event->finish == TD_FINISH_CANCELLED) {
        td_err_set(&err, TD_UNAVAILABLE, "the server ended the request");
        end_with(call, &err);
    } else if (td_inference_reply_take(part, event) != TD_OK) {
        td_grpc_stream_cancel(call->s); /* on_close follows, and cancels the jobs */
        return;
    }
    if (call->ended) {
        td_inference_reply_pump(call);
    } else {
        hold_back(call);
    }
}

/* Which of the service's keys the call brought, counted from 1; 0: the service is open. */
static uint32_t key_of(const struct td_inference_call *call)
{
    struct td_str authorization = {NULL, 0};
    struct td_str x_api_key = {NULL, 0};
    if (call->service->auth == NULL) {
        return 0;
    }
    td_grpc_stream_metadata(call->s, "authorization", 0, &authorization);
    td_grpc_stream_metadata(call->s, "x-api-key", 0, &x_api_key);
    return td_auth_which(call->service->auth, authorization, x_api_key);
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

void td_inference_generate_begin(struct td_inference_call *call)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    struct td_request r;
    struct td_err err = {0};
    td_request_init(&r);
    enum td_status status = td_inference_request_fill(call, &r, &err);
    r.prompt = call->ids.data;
    r.n_prompt = (uint32_t)call->ids.len;
    call->ids = (struct td_ids){0};
    if (status == TD_OK) {
        status = make_parts(call, &r, &err);
    }
    if (status == TD_OK) {
        const struct td_coord_submit what = {
            .served = call->served,
            .request = &r,
            .raw_text = m->keep_special_tokens,
            .key = key_of(call),
            .deadline_ns = td_grpc_stream_deadline_ns(call->s), /* both clocks are monotonic */
            .on_event = on_event};
        /* Who has another key, or names another salt, does not learn what was asked. */
        r.cache_salt = td_request_salt(what.key, td_rpc_str(m->cache_salt));
        td_candidates_prepare(&r, call->best_of, call->n);
        status = td_candidates_submit(call->service->coord, &what, call->candidates, call->best_of,
                                      &err);
    }
    if (status != TD_OK) {
        td_request_deinit(&r);
        td_inference_generate_stop(call);
        td_inference_call_fail(call, &err);
        return;
    }
    td_grpc_stream_start(call->s); /* the client sees that the call was accepted */
}
