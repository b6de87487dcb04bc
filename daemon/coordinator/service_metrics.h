/* What the request services count: one set of series per endpoint, the same families for HTTP and gRPC. Loop thread. */
#ifndef TD_DAEMON_COORDINATOR_SERVICE_METRICS_H
#define TD_DAEMON_COORDINATOR_SERVICE_METRICS_H

#include "daemon/api/metrics.h"

struct td_job_event;

enum td_service_outcome {
    TD_SERVICE_OK = 0,
    TD_SERVICE_INVALID,     /* the request was wrong */
    TD_SERVICE_BUSY,        /* refused by a full queue or a limit of its key */
    TD_SERVICE_UNAVAILABLE, /* not ready, draining, or a rank was lost */
    TD_SERVICE_FAILED,
    TD_SERVICE_CANCELLED, /* the client went away */
    TD_SERVICE_TIMED_OUT, /* its deadline passed */
    TD_SERVICE_N_OUTCOMES
};

/* Of one endpoint; the series belong to the registry. */
struct td_service_metrics {
    struct td_metric *requests[TD_SERVICE_N_OUTCOMES];
    struct td_metric *first_token_s, *inter_token_s, *request_s;
    struct td_metric *prompt_tokens, *output_tokens;
};

/* Times of one generation, for td_service_metrics_event. */
struct td_service_times {
    uint64_t start_ns; /* when the request came, uv_hrtime */
    uint64_t last_ns;  /* of the last token; 0: none yet */
};

enum td_status td_service_metrics_init(struct td_service_metrics *m, struct td_metrics *registry,
                                       const char *endpoint, struct td_err *err);
/* A job's event: token times, and at its end the tokens. */
void td_service_metrics_event(struct td_service_metrics *m, struct td_service_times *times,
                              const struct td_job_event *event);
/* A request's end. */
void td_service_metrics_end(struct td_service_metrics *m, uint64_t start_ns,
                            enum td_service_outcome outcome);
enum td_service_outcome td_service_metrics_outcome(enum td_status status);

#endif
