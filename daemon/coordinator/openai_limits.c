/* A call and what the server allows: whether it may begin, what its answer says about its key's limits, when its time is
 * up. */
#include "daemon/coordinator/openai_call.h"

#include <inttypes.h>
#include <stdio.h>

enum td_status td_openai_limits_admit(struct td_openai_call *call, struct td_err *err)
{
    const struct td_openai_request *q = &call->request;
    struct td_coord_ask ask = {.key = call->key};
    uint32_t retry_after_s = 0;
    enum td_status status = TD_OK;
    for (size_t i = 0; i < call->n_prompts && status == TD_OK; i++) {
        status = td_candidates_count(call->served, &call->requests[i], q->best_of, &ask, err);
        if (status != TD_OK && call->n_prompts > 1) {
            td_err_context(err, "prompt %zu of %zu", i + 1, call->n_prompts);
        }
    }
    if (status == TD_OK) {
        status = td_coord_admit(call->endpoint->coord, &ask, &retry_after_s, err);
    }
    if (retry_after_s > 0) {
        char text[16];
        snprintf(text, sizeof(text), "%" PRIu32, retry_after_s);
        td_http_set_header(call->http, "Retry-After", text);
    }
    return status;
}

/* The three headers of one kind of limit, times as "1.5s". */
static void tell(struct td_http_request *http, const char *kind, uint64_t limit, uint64_t left,
                 double reset_s)
{
    char name[64];
    char value[32];
    snprintf(name, sizeof(name), "x-ratelimit-limit-%s", kind);
    snprintf(value, sizeof(value), "%" PRIu64, limit);
    td_http_set_header(http, name, value);
    snprintf(name, sizeof(name), "x-ratelimit-remaining-%s", kind);
    snprintf(value, sizeof(value), "%" PRIu64, left);
    td_http_set_header(http, name, value);
    snprintf(name, sizeof(name), "x-ratelimit-reset-%s", kind);
    snprintf(value, sizeof(value), "%.3fs", reset_s);
    td_http_set_header(http, name, value);
}

void td_openai_limits_tell(struct td_openai_call *call)
{
    const struct td_coord_limits *limits = td_coord_limits(call->endpoint->coord);
    struct td_coord_standing standing;
    if (limits->max_open_per_key == 0 && limits->tokens_per_minute_per_key == 0) {
        return;
    }
    td_coord_standing(call->endpoint->coord, call->key, &standing);
    if (limits->max_open_per_key > 0) {
        tell(call->http, "requests", limits->max_open_per_key,
             limits->max_open_per_key - standing.n_open, standing.requests_reset_s);
    }
    if (limits->tokens_per_minute_per_key > 0) {
        tell(call->http, "tokens", limits->tokens_per_minute_per_key, standing.tokens_left,
             (double)standing.tokens_reset_ns * 1e-9);
    }
}

uint64_t td_openai_limits_deadline_ns(const struct td_openai_call *call)
{
    float timeout_s = call->request.timeout_s;
    return timeout_s > 0 ? call->start_ns + (uint64_t)((double)timeout_s * 1e9) : 0;
}
