#include "daemon/coordinator/service_metrics.h"

#include "daemon/coordinator/coordinator.h"

static const char *const outcomes[TD_SERVICE_N_OUTCOMES] = {
    "ok", "invalid", "busy", "unavailable", "failed", "cancelled", "timed_out"};

static enum td_status add(struct td_metrics *registry, enum td_metrics_kind kind, const char *name,
                          const char *help, const char *endpoint, const char *outcome,
                          struct td_metric **series, struct td_err *err)
{
    const struct td_metrics_label labels[] = {{"endpoint", endpoint}, {"outcome", outcome}};
    struct td_metrics_desc desc = {.kind = kind,
                                   .name = name,
                                   .help = help,
                                   .labels = labels,
                                   .n_labels = outcome != NULL ? 2 : 1};
    if (kind == TD_METRICS_HISTOGRAM) {
        desc.buckets = td_metrics_seconds_buckets;
        desc.n_buckets = td_metrics_n_seconds_buckets;
    }
    return td_metrics_register(registry, &desc, series, err);
}

enum td_status td_service_metrics_init(struct td_service_metrics *m, struct td_metrics *registry,
                                       const char *endpoint, struct td_err *err)
{
    const struct {
        enum td_metrics_kind kind;
        const char *name;
        const char *help;
        struct td_metric **series;
    } rows[] = {
        {TD_METRICS_HISTOGRAM, "tensord_time_to_first_token_seconds",
         "From a request's arrival to its first token", &m->first_token_s},
        {TD_METRICS_HISTOGRAM, "tensord_inter_token_seconds",
         "Between two tokens of one generation", &m->inter_token_s},
        {TD_METRICS_HISTOGRAM, "tensord_request_seconds",
         "From a request's arrival to the end of its answer", &m->request_s},
        {TD_METRICS_COUNTER, "tensord_request_prompt_tokens_total",
         "Prompt tokens of ended generations", &m->prompt_tokens},
        {TD_METRICS_COUNTER, "tensord_request_generated_tokens_total",
         "Output tokens of ended generations", &m->output_tokens},
    };
    enum td_status status = TD_OK;
    for (int i = 0; i < TD_SERVICE_N_OUTCOMES && status == TD_OK; i++) {
        status = add(registry, TD_METRICS_COUNTER, "tensord_requests_total",
                     "Requests that ended, by how", endpoint, outcomes[i], &m->requests[i], err);
    }
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]) && status == TD_OK; i++) {
        status = add(registry, rows[i].kind, rows[i].name, rows[i].help, endpoint, NULL,
                     rows[i].series, err);
    }
    return status;
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return (double)(to_ns - from_ns) * 1e-9;
}

void td_service_metrics_event(struct td_service_metrics *m, struct td_service_times *times,
                              const struct td_job_event *event)
{
    if (event->has_token) {
        uint64_t now = uv_hrtime();
        if (times->last_ns == 0) {
            td_metrics_observe(m->first_token_s, seconds(times->start_ns, now));
        } else {
            td_metrics_observe(m->inter_token_s, seconds(times->last_ns, now));
        }
        times->last_ns = now;
    }
    if (event->finish != TD_FINISH_NONE) {
        td_metrics_add(m->prompt_tokens, event->n_prompt);
        td_metrics_add(m->output_tokens, event->n_output);
    }
}

void td_service_metrics_end(struct td_service_metrics *m, uint64_t start_ns,
                            enum td_service_outcome outcome)
{
    td_metrics_add(m->requests[outcome], 1);
    if (outcome == TD_SERVICE_OK) {
        td_metrics_observe(m->request_s, seconds(start_ns, uv_hrtime()));
    }
}

enum td_service_outcome td_service_metrics_outcome(enum td_status status)
{
    switch (status) {
    case TD_OK:
        return TD_SERVICE_OK;
    case TD_BUSY:
        return TD_SERVICE_BUSY;
    case TD_CANCELLED:
        return TD_SERVICE_CANCELLED;
    case TD_TIMED_OUT:
        return TD_SERVICE_TIMED_OUT;
    case TD_UNAVAILABLE:
    case TD_PEER_LOST:
    case TD_PEER_TIMED_OUT:
    case TD_PEER_PROTOCOL:
    case TD_PEER_MISMATCH:
        return TD_SERVICE_UNAVAILABLE;
    case TD_INVALID:
    case TD_NOT_FOUND:
    case TD_UNSUPPORTED:
    case TD_TOO_LARGE:
    case TD_CORRUPT:
    case TD_DENIED:
        return TD_SERVICE_INVALID;
    default:
        return TD_SERVICE_FAILED;
    }
}
