/* The OpenAI API and the probes on a coordinator: /v1/chat/completions, /v1/completions, /v1/models, /healthz, /readyz,
 * /metrics. From HTTP requests to jobs, from a job's events to JSON or server-sent events at the client's pace.
 * Loop thread only; long bodies are parsed on libuv's pool. Knows no rank and no socket. */
#ifndef TD_DAEMON_COORDINATOR_OPENAI_SERVICE_H
#define TD_DAEMON_COORDINATOR_OPENAI_SERVICE_H

#include "daemon/api/route.h"

struct td_coord;
struct td_openai_service;

struct td_openai_service_params {
    struct td_coord *coord;        /* borrows until close */
    struct td_route_table *routes; /* the routes are added here */
    const struct td_auth *auth;    /* of /v1/...; NULL: open. Borrows as the route table does */
    const struct td_auth *metrics_auth; /* of /metrics; NULL: open */
};

/* Adds the routes and registers the metrics (td_coord_metrics). TD_INVALID when one is there already. */
enum td_status td_openai_service_open(const struct td_openai_service_params *params,
                                      struct td_openai_service **service, struct td_err *err);
/* The requests that were open when the process before this one ended go on, without a client until it comes back. Before
 * td_journal_start. td_journal_restore's errors. */
enum td_status td_openai_service_restore(struct td_openai_service *service, struct td_err *err);
/* After the last connection was closed (td_conn_pool_close's done). NULL is legal. */
void td_openai_service_close(struct td_openai_service *service);

#endif
