/* GET /status on a coordinator: what runs where, as one JSON object with the names of StatusResponse in
 * proto/cluster.proto; for `tensord status`. States are words ("ready", "loading"). Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_STATUS_SERVICE_H
#define TD_DAEMON_COORDINATOR_STATUS_SERVICE_H

#include "daemon/api/route.h"
#include "kernels/base/bytes.h"

struct td_coord;

/* Adds the route. `coord` and `auth` (NULL: open) are borrowed as long as the table lives. TD_INVALID when the route is
 * there already. */
enum td_status td_status_service_open(struct td_coord *coord, struct td_route_table *routes,
                                      const struct td_auth *auth, struct td_err *err);

/* Appends the object. TD_NO_MEMORY. */
enum td_status td_status_service_write(struct td_coord *coord, struct td_bytes *out);

#endif
