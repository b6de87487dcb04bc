/* Control messages in and out of plain structs: what the coordinator and rank 0 say to each other about requests, tokens and
 * loads. Pure; the only file that knows both the generated types and ours. */
#ifndef TD_DAEMON_ENGINE_WIRE_H
#define TD_DAEMON_ENGINE_WIRE_H

#include "daemon/engine/compute.h"
#include "daemon/engine/request.h"
#include "kernels/base/arena.h"

#include "proto/worker.pb-c.h"

/* Shorter names for the generated types. */
typedef Tensord__Worker__V1__WorkerMessage td_wire_worker_message;
typedef Tensord__Worker__V1__CoordinatorMessage td_wire_coordinator_message;

/* The messages' parts live in `arena`. A submit and an assignment borrow from their source; a token borrows nothing.
 * NULL: no memory. */
Tensord__Worker__V1__Submit *td_wire_submit_make(const struct td_request *r, uint64_t number,
                                                 struct td_arena *arena);
/* Checks every count; on success `r` owns copies. */
enum td_status td_wire_submit_read(const Tensord__Worker__V1__Submit *m, struct td_request *r,
                                   struct td_err *err);

Tensord__Worker__V1__TokenEvent *td_wire_token_make(const struct td_token_event *e,
                                                    struct td_arena *arena);
Tensord__Worker__V1__DeviceKind td_wire_device_make(enum td_devicekind kind);
enum td_devicekind td_wire_device_read(Tensord__Worker__V1__DeviceKind kind);

/* `error` receives the text of TD_FINISH_ERROR, to which e->error then points. */
enum td_status td_wire_token_read(const Tensord__Worker__V1__TokenEvent *m,
                                  struct td_token_event *e, struct td_err *error,
                                  struct td_err *err);

Tensord__Worker__V1__Assign *td_wire_assign_make(const struct td_compute_load *load, uint32_t rank,
                                                 struct td_arena *arena);
/* On success *load is owned by the caller (td_compute_load_free). */
enum td_status td_wire_assign_read(const Tensord__Worker__V1__Assign *m,
                                   struct td_compute_load **load, struct td_err *err);

#endif
