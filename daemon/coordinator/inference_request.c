/* From the message of Inference.Generate to a request. */
#include "daemon/coordinator/inference_call.h"

#include <stdlib.h>
#include <string.h>

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

/* What a request for several answers asks for, by the names of its fields. */
static enum td_status fill_choices(struct td_inference_call *call,
                                   const Tensord__V1__GenerateRequest *m, struct td_request *r,
                                   struct td_err *err)
{
    bool has_best = m->has_best_of_case != TENSORD__V1__GENERATE_REQUEST__HAS_BEST_OF__NOT_SET;
    call->n = m->has_n_case != TENSORD__V1__GENERATE_REQUEST__HAS_N__NOT_SET ? m->n : 1;
    call->best_of = has_best ? m->best_of : call->n;
    if (call->n < 1 || call->n > TD_REQUEST_MAX_CHOICES) {
        return td_err_set(err, TD_INVALID, "n is %u, expected 1 to %d", call->n,
                          TD_REQUEST_MAX_CHOICES);
    }
    if (call->best_of < call->n || call->best_of > TD_REQUEST_MAX_CHOICES) {
        return td_err_set(err, TD_INVALID, "best_of is %u, expected n (%u) to %d", call->best_of,
                          call->n, TD_REQUEST_MAX_CHOICES);
    }
    if (m->has_prompt_logprobs_case !=
        TENSORD__V1__GENERATE_REQUEST__HAS_PROMPT_LOGPROBS__NOT_SET) {
        if (m->prompt_logprobs > TD_SAMPLER_MAX_LOGPROBS) {
            return td_err_set(err, TD_INVALID, "prompt_logprobs is %u, expected 0 to %d",
                              m->prompt_logprobs, TD_SAMPLER_MAX_LOGPROBS);
        }
        r->prompt_logprobs = (int32_t)m->prompt_logprobs;
    }
    return TD_OK;
}

enum td_status td_inference_request_fill(struct td_inference_call *call, struct td_request *r,
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
    if (m->idempotency_key.len > TD_RECORD_MAX_IDEMPOTENCY_BYTES) {
        return td_err_set(err, TD_INVALID, "idempotency_key has %zu bytes, expected at most %d",
                          m->idempotency_key.len, TD_RECORD_MAX_IDEMPOTENCY_BYTES);
    }
    r->priority = m->priority;
    r->max_tokens = has_max ? m->max_tokens : 0;
    r->min_tokens = m->min_tokens;
    r->ignore_eos = m->ignore_eos;
    r->include_stop = m->include_stop;
    r->sampling = call->served->defaults;
    enum td_status status = fill_sampling(m->sampling, &r->sampling, err);
    if (status == TD_OK) {
        status = fill_choices(call, m, r, err);
    }
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
