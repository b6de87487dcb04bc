/* tensord.v1.Inference on a coordinator: Generate, Resume, Tokenize, ModelInfo. From gRPC messages to jobs, and from a job's
 * events to messages at the client's pace. Loop thread only. Knows no rank and no socket. */
#ifndef TD_DAEMON_COORDINATOR_INFERENCE_SERVICE_H
#define TD_DAEMON_COORDINATOR_INFERENCE_SERVICE_H

#include "daemon/api/grpc_serve.h"

struct td_coord;
struct td_inference_service;

/* Adds the methods to `table` and registers the metrics (td_coord_metrics). `coord` and `auth` (NULL: open) are
 * borrowed until close. */
enum td_status td_inference_service_open(struct td_coord *coord, struct td_grpc_serve_table *table,
                                         const struct td_auth *auth,
                                         struct td_inference_service **service, struct td_err *err);
/* The calls that were open when the process before this one ended go on, without a client until it comes back. Before
 * td_journal_start. td_journal_restore's errors. */
enum td_status td_inference_service_restore(struct td_inference_service *service,
                                            struct td_err *err);
/* After the last connection was closed. NULL is legal. */
void td_inference_service_close(struct td_inference_service *service);

#endif
