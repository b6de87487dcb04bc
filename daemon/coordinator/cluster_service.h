/* tensord.v1.Cluster on a coordinator: Status, Plan, LoadModel, UnloadModel, Drain, CancelDrain, Replace. Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_CLUSTER_SERVICE_H
#define TD_DAEMON_COORDINATOR_CLUSTER_SERVICE_H

#include "daemon/api/grpc_serve.h"

struct td_coord;
struct td_cluster_service;

/* Adds the methods to `table`. `coord` and `auth` are borrowed until close. Status is for every key of `auth` (NULL: open),
 * the others, which open files and end models, for operators: td_auth_admit. */
enum td_status td_cluster_service_open(struct td_coord *coord, struct td_grpc_serve_table *table,
                                       const struct td_auth *auth,
                                       struct td_cluster_service **service, struct td_err *err);
/* After the last connection was closed. NULL is legal. */
void td_cluster_service_close(struct td_cluster_service *service);

#endif
