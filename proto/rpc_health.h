/* The standard health service as functions over bytes. Who serves is handed in; nothing is
 * remembered here. A watcher is a stream of the application: it sends td_rpc_health_encode's
 * message at first and at each change. */
#ifndef TD_PROTO_RPC_HEALTH_H
#define TD_PROTO_RPC_HEALTH_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>

/* Values of grpc.health.v1.HealthCheckResponse.ServingStatus. */
enum td_rpc_serving {
    TD_RPC_SERVING_UNKNOWN = 0,
    TD_RPC_SERVING = 1,
    TD_RPC_NOT_SERVING = 2,
    TD_RPC_SERVICE_UNKNOWN = 3
};

/* One service's state; the name "" stands for the whole server. */
struct td_rpc_health_entry {
    struct td_str service;
    bool serving;
};

/* The state of the service that a HealthCheckRequest asks for. TD_INVALID when `request` is
 * none. A service without an entry is TD_RPC_SERVICE_UNKNOWN. */
enum td_status td_rpc_health_lookup(struct td_str request,
                                    const struct td_rpc_health_entry *entries, size_t n_entries,
                                    enum td_rpc_serving *serving, struct td_err *err);
/* A HealthCheckResponse; replaces `reply`. */
enum td_status td_rpc_health_encode(enum td_rpc_serving serving, struct td_bytes *reply,
                                    struct td_err *err);
/* Check, whole: TD_NOT_FOUND for an unknown service, as the standard wants. */
enum td_status td_rpc_health_check(struct td_str request, const struct td_rpc_health_entry *entries,
                                   size_t n_entries, struct td_bytes *reply, struct td_err *err);

#endif
