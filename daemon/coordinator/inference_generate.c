/* Inference.Generate from ids on: a job, and its events as messages at the client's pace. */
#include "daemon/coordinator/inference_call.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>

void td_inference_generate_count(struct td_inference_call *call, enum td_status status)
{
    if (call->method != TD_RPC_GENERATE || call->counted) {
        return;
    }
    call->counted = true;
    td_service_metrics_end(&call->service->metrics, call->times.start_ns,
                           td_service_metrics_outcome(status));
}

/* ---- From the message to a request ---- */

static enum td_status fill_sampling(const Tensord__V1__Sampling *m, struct td_sampling *s,
                                    struct td_err *err)
{
    bool has_seed = m != NULL && m->has_seed_case != TENSORD__V1__SAMPLING__HAS_SEED__NOT_SET;
    s->n_logprobs = -1;
    if (!has_seed && uv_random(NULL, NULL, &s->seed, sizeof(s->seed), 0, NULL) != 0) {
        s->seed = uv_hrtime();
    }
    if (m == NULL) {
        return TD_OK;
    }
#define TAKE(field, FIELD)                                                                         \
    if (m->has_##field##_case != TENSORD__V1__SAMPLING__HAS_##FIELD##__NOT_SET) {                  \
        s->field = m->field;                                                                       \
    }
    TAKE(temperature, TEMPERATURE)
    TAKE(top_k, TOP_K)
    TAKE(top_p, TOP_P)
    TAKE(min_p, MIN_P)
    TAKE(repetition_penalty, REPETITION_PENALTY)
    TAKE(presence_penalty, PRESENCE_PENALTY)
    TAKE(frequency_penalty, FREQUENCY_PENALTY)
    TAKE(seed, SEED)
    TAKE(typical_p, TYPICAL_P)
    TAKE(top_n_sigma, TOP_N_SIGMA)
    TAKE(xtc_probability, XTC_PROBABILITY)
    TAKE(xtc_threshold, XTC_THRESHOLD)
    TAKE(dynatemp_range, DYNATEMP_RANGE)
    TAKE(dynatemp_exponent, DYNATEMP_EXPONENT)
    TAKE(repeat_last_n, REPEAT_LAST_N)
    TAKE(dry_multiplier, DRY_MULTIPLIER)
    TAKE(dry_base, DRY_BASE)
    TAKE(dry_allowed_length, DRY_ALLOWED_LENGTH)
    TAKE(dry_penalty_last_n, DRY_PENALTY_LAST_N)
    TAKE(mirostat, MIROSTAT)
    TAKE(mirostat_tau, MIROSTAT_TAU)
    TAKE(mirostat_eta, MIROSTAT_ETA)
#undef TAKE
    if (m->has_n_logprobs_case != TENSORD__V1__SAMPLING__HAS_N_LOGPROBS__NOT_SET) {
        if (m->n_logprobs > TD_SAMPLER_MAX_LOGPROBS) {
            return td_err_set(err, TD_INVALID, "n_logprobs is %u, expected 0 to %d", m->n_logprobs,
                              TD_SAMPLER_MAX_LOGPROBS);
        }
        s->n_logprobs = (int32_t)m->n_logprobs;
    }
    if (m->n_logit_bias > TD_SAMPLER_MAX_BIAS) {
        return td_err_set(err, TD_INVALID, "logit_bias has %zu entries, expected at most %d",
                          m->n_logit_bias, TD_SAMPLER_MAX_BIAS);
    }
    for (size_t i = 0; i < m->n_logit_bias; i++) {
        s->bias[i] = (struct td_logit_bias){m->logit_bias[i]->id, m->logit_bias[i]->bias};
    }
    s->n_bias = (uint32_t)m->n_logit_bias;
    return TD_OK;
}

static enum td_status fill_stops(const Tensord__V1__GenerateRequest *m, struct td_request *r,
                                 struct td_err *err)
{
    if (m->n_stop > TD_REQUEST_MAX_STOPS || m->n_stop_token_ids > TD_REQUEST_MAX_STOP_IDS) {
        return td_err_set(
            err, TD_INVALID,
            "%zu stop strings and %zu stop ids were given, expected at most %d and %d", m->n_stop,
            m->n_stop_token_ids, TD_REQUEST_MAX_STOPS, TD_REQUEST_MAX_STOP_IDS);
    }
    for (size_t i = 0; i < m->n_stop; i++) {
        struct td_str stop = td_rpc_str(m->stop[i]);
        if (stop.len == 0 || stop.len > TD_REQUEST_MAX_STOP_BYTES || !td_str_is_utf8(stop)) {
            return td_err_set(err, TD_INVALID, "stop[%zu] has %zu bytes, expected 1 to %d of UTF-8",
                              i, stop.len, TD_REQUEST_MAX_STOP_BYTES);
        }
        char *copy = malloc(stop.len + 1);
        if (copy == NULL) {
            return td_err_set(err, TD_NO_MEMORY, "no memory for a stop string");
        }
        memcpy(copy, stop.ptr, stop.len);
        copy[stop.len] = '\0';
        r->stops[r->n_stops] = copy;
        r->stop_bytes[r->n_stops] = stop.len;
        r->n_stops++;
    }
    if (m->n_stop_token_ids > 0) {
        memcpy(r->stop_ids, m->stop_token_ids, m->n_stop_token_ids * sizeof(r->stop_ids[0]));
    }
    r->n_stop_ids = (uint32_t)m->n_stop_token_ids;
    return TD_OK;
}

static enum td_status fill_breakers(const struct td_inference_call *call,
                                    const Tensord__V1__Sampling *m, struct td_request *r,
                                    struct td_err *err)
{
    const struct td_breakers *breakers = call->served->breakers;
    struct td_str texts[TD_BREAKERS_MAX];
    if (m == NULL || m->dry_sequence_breakers == NULL) {
        return td_request_break_at(r, breakers, NULL, 0, err);
    }
    const Tensord__V1__DryBreakers *b = m->dry_sequence_breakers;
    if (b->n_texts > TD_BREAKERS_MAX) {
        return td_err_set(err, TD_INVALID,
                          "dry_sequence_breakers has %zu texts, expected at most %d", b->n_texts,
                          TD_BREAKERS_MAX);
    }
    for (size_t i = 0; i < b->n_texts; i++) {
        texts[i] = td_rpc_str(b->texts[i]);
    }
    return td_request_break_at(r, breakers, texts, b->n_texts, err);
}

static enum td_status fill_request(struct td_inference_call *call, struct td_request *r,
                                   struct td_err *err)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    bool has_max = m->has_max_tokens_case != TENSORD__V1__GENERATE_REQUEST__HAS_MAX_TOKENS__NOT_SET;
    if (has_max && m->max_tokens == 0) {
        return td_err_set(err, TD_INVALID, "max_tokens is 0, expected at least 1");
    }
    if (strlen(m->request_id) > 128) {
        return td_err_set(err, TD_INVALID, "request_id has %zu bytes, expected at most 128",
                          strlen(m->request_id));
    }
    if (m->priority < -TD_REQUEST_MAX_PRIORITY || m->priority > TD_REQUEST_MAX_PRIORITY) {
        return td_err_set(err, TD_INVALID, "priority is %d, expected -%d to %d", m->priority,
                          TD_REQUEST_MAX_PRIORITY, TD_REQUEST_MAX_PRIORITY);
    }
    if (m->cache_salt.len > TD_REQUEST_MAX_SALT_BYTES) {
        return td_err_set(err, TD_INVALID, "cache_salt has %zu bytes, expected at most %d",
                          m->cache_salt.len, TD_REQUEST_MAX_SALT_BYTES);
    }
    r->priority = m->priority;
    r->max_tokens = has_max ? m->max_tokens : 0;
    r->min_tokens = m->min_tokens;
    r->ignore_eos = m->ignore_eos;
    r->include_stop = m->include_stop;
    r->sampling = call->served->defaults;
    enum td_status status = fill_sampling(m->sampling, &r->sampling, err);
    if (status == TD_OK) {
        status = fill_breakers(call, m->sampling, r, err);
    }
    if (status == TD_OK) {
        status = fill_stops(m, r, err);
    }
    if (status == TD_OK && m->echo_prompt_ids &&
        td_ids_append_n(&call->echo, call->ids.data, call->ids.len) != TD_OK) {
        status = td_err_set(err, TD_NO_MEMORY, "no memory for %zu ids", call->ids.len);
    }
    return status;
}

/* ---- From events to messages ---- */

/* Sends what the client takes; ends the call when all is sent. */
static void pump(struct td_inference_call *call)
{
    while (call->backlog.len > 0) {
        uint32_t n;
        memcpy(&n, call->backlog.data, sizeof(n));
        const struct td_str message = {call->backlog.data + sizeof(n), n};
        if (td_grpc_stream_send(call->s, message, NULL) != TD_OK) {
            return; /* on_drain or on_close follows */
        }
        td_bytes_consume(&call->backlog, sizeof(n) + n);
    }
    if (!call->ended) {
        return;
    }
    if (call->end_err.status != TD_OK) {
        td_inference_call_fail(call, &call->end_err);
        return;
    }
    td_inference_generate_count(call, TD_OK);
    td_grpc_stream_finish(call->s, TD_GRPC_OK, TD_STR(""));
}

void td_inference_generate_drain(void *user, struct td_grpc_stream *s)
{
    (void)user;
    struct td_inference_call *call = td_grpc_stream_user(s);
    pump(call);
    if (call->job != NULL && call->backlog.len == 0) {
        td_job_pause(call->job, false);
    }
}

static enum td_status queue_packed(struct td_inference_call *call)
{
    const struct td_str message = td_bytes_str(&call->packed);
    uint32_t n = (uint32_t)message.len;
    if (call->backlog.len == 0) {
        enum td_status status = td_grpc_stream_send(call->s, message, NULL);
        if (status != TD_BUSY) {
            return status == TD_CANCELLED ? TD_OK : status; /* on_close follows */
        }
    }
    enum td_status status = td_bytes_reserve(&call->backlog, sizeof(n) + n);
    if (status == TD_OK) {
        status = td_bytes_append(&call->backlog, &n, sizeof(n));
    }
    return status == TD_OK ? td_bytes_append_str(&call->backlog, message) : status;
}

static void fill_token(struct td_inference_call *call, const struct td_sampled *t,
                       Tensord__V1__GenerateEvent *m, Tensord__V1__TopLogprob *tops,
                       Tensord__V1__TopLogprob **top_list)
{
    m->has_token_case = TENSORD__V1__GENERATE_EVENT__HAS_TOKEN_TOKEN_ID;
    m->token_id = t->id;
    if (!call->wants_logprobs) {
        return;
    }
    m->has_logprob_case = TENSORD__V1__GENERATE_EVENT__HAS_LOGPROB_LOGPROB;
    m->logprob = t->logprob;
    for (uint32_t i = 0; i < t->n_top; i++) {
        tops[i] = (Tensord__V1__TopLogprob)TENSORD__V1__TOP_LOGPROB__INIT;
        tops[i].id = t->top[i].id;
        tops[i].logprob = t->top[i].logprob;
        tops[i].text = td_rpc_data(td_tokenizer_piece(call->served->tok, t->top[i].id));
        top_list[i] = &tops[i];
    }
    m->n_top_logprobs = t->n_top;
    m->top_logprobs = top_list;
}

static enum td_status send_event(struct td_inference_call *call, struct td_job *job,
                                 const struct td_job_event *event)
{
    Tensord__V1__GenerateEvent m = TENSORD__V1__GENERATE_EVENT__INIT;
    Tensord__V1__TopLogprob tops[TD_SAMPLER_MAX_LOGPROBS];
    Tensord__V1__TopLogprob *top_list[TD_SAMPLER_MAX_LOGPROBS];
    Tensord__V1__Usage usage = TENSORD__V1__USAGE__INIT;
    m.index = event->index;
    m.text = td_rpc_data(event->text);
    m.n_prompt_ids = call->echo.len;
    m.prompt_ids = call->echo.data;
    if (event->has_token) {
        fill_token(call, event->token, &m, tops, top_list);
    }
    if (event->finish != TD_FINISH_NONE) {
        m.finish_reason = event->finish == TD_FINISH_LENGTH
                              ? TENSORD__V1__FINISH_REASON__FINISH_REASON_LENGTH
                              : TENSORD__V1__FINISH_REASON__FINISH_REASON_STOP;
        usage.prompt_tokens = event->n_prompt;
        usage.completion_tokens = event->n_output;
        usage.cached_tokens = event->n_cached;
        usage.seed = td_job_seed(job);
        usage.queue_ns = event->queue_ns;
        usage.first_token_ns = event->first_token_ns;
        usage.total_ns = event->total_ns;
        m.usage = &usage;
    }
    enum td_status status = td_rpc_pack(&m.base, &call->packed, NULL);
    td_ids_deinit(&call->echo);
    return status == TD_OK ? queue_packed(call) : status;
}

static void on_event(struct td_job *job, const struct td_job_event *event, void *user)
{
    struct td_inference_call *call = user;
    enum td_status status = TD_OK;
    td_service_metrics_event(&call->service->metrics, &call->times, event);
    if (event->finish != TD_FINISH_NONE) {
        call->job = NULL;
        call->ended = true;
    }
    if (event->finish == TD_FINISH_ERROR) {
        call->end_err = *event->error;
        if (event->error->status != TD_TIMED_OUT) {
            td_log_warn("request failed method=Generate status=%s",
                        td_status_name(event->error->status));
        }
    } else if (event->finish == TD_FINISH_CANCELLED) {
        td_err_set(&call->end_err, TD_UNAVAILABLE, "the server ended the request");
    } else {
        status = send_event(call, job, event);
    }
    if (status != TD_OK) {
        td_grpc_stream_cancel(call->s); /* on_close follows, and cancels the job */
    } else if (call->ended) {
        pump(call);
    } else if (call->backlog.len >= TD_COORD_SLOW_BYTES) {
        td_job_pause(call->job, true);
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

void td_inference_generate_begin(struct td_inference_call *call)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    struct td_request r;
    struct td_err err = {0};
    td_request_init(&r);
    enum td_status status = fill_request(call, &r, &err);
    if (status == TD_OK) {
        r.prompt = call->ids.data;
        r.n_prompt = (uint32_t)call->ids.len;
        call->ids = (struct td_ids){0};
        const struct td_coord_submit what = {
            .served = call->served,
            .request = &r,
            .raw_text = m->keep_special_tokens,
            .key = key_of(call),
            .deadline_ns = td_grpc_stream_deadline_ns(call->s), /* both clocks are monotonic */
            .on_event = on_event,
            .user = call};
        /* Who has another key, or names another salt, does not learn what was asked. */
        r.cache_salt = td_request_salt(what.key, td_rpc_str(m->cache_salt));
        call->wants_logprobs = r.sampling.n_logprobs >= 0;
        status = td_coord_submit(call->service->coord, &what, &call->job, &err);
    }
    if (status != TD_OK) {
        td_request_deinit(&r);
        td_inference_call_fail(call, &err);
        return;
    }
    td_grpc_stream_start(call->s); /* the client sees that the call was accepted */
}
