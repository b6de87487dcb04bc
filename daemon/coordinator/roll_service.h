/* POST /roll on a coordinator, for `tensord roll`: a new group takes the place of the one that serves. Answers at once with
 * {"roll": ...} as GET /status has it, where one sees how far it is. Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_ROLL_SERVICE_H
#define TD_DAEMON_COORDINATOR_ROLL_SERVICE_H

#include "daemon/api/route.h"
#include "kernels/base/bytes.h"

struct td_coord;
struct td_coord_status;

/* Adds the route. A body is {} or {"timeout": seconds}, of type application/json: a page in a browser cannot send that to
 * another site unasked. `coord` and `auth` (NULL: open) are borrowed as long as the table lives. TD_INVALID when the route is there
 * already. */
enum td_status td_roll_service_open(struct td_coord *coord, struct td_route_table *routes,
                                    const struct td_auth *auth, struct td_err *err);

/* Appends the value of "roll": null where none was since the start, else an object with the names of RollStatus in
 * proto/cluster.proto. TD_NO_MEMORY. */
enum td_status td_roll_service_write(const struct td_coord_status *status, struct td_bytes *out);

#endif
