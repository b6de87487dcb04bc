/* grpc.health.v1.Health on a coordinator: Check, and Watch that follows its readiness. "" and tensord.v1.Inference serve
 * when the group is ready; tensord.v1.Cluster always serves. Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_HEALTH_SERVICE_H
#define TD_DAEMON_COORDINATOR_HEALTH_SERVICE_H

#include "daemon/api/grpc_serve.h"

struct td_coord;
struct td_health_service;

/* Adds the methods to `table` and subscribes to the coordinator's readiness, which it must outlive (or the coordinator
 * changes it no more). `auth` NULL: open, as probes have no key. */
enum td_status td_health_service_open(struct td_coord *coord, struct td_grpc_serve_table *table,
                                      const struct td_auth *auth,
                                      struct td_health_service **service, struct td_err *err);
/* The server stops: ends every Watch call, which would hold its connection open. */
void td_health_service_stop(struct td_health_service *service);
/* After the last connection was closed. NULL is legal. */
void td_health_service_close(struct td_health_service *service);

#endif
