/* The table of every gRPC method that tensord serves, and messages in and out of bytes.
 * protobuf-c's service descriptors do not say which methods stream, so the table does. Pure;
 * knows no connection. */
#ifndef TD_PROTO_RPC_H
#define TD_PROTO_RPC_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

enum td_rpc_id {
    TD_RPC_GENERATE,
    TD_RPC_RESUME,
    TD_RPC_TOKENIZE,
    TD_RPC_MODEL_INFO,
    TD_RPC_STATUS,
    TD_RPC_PLAN,
    TD_RPC_LOAD_MODEL,
    TD_RPC_UNLOAD_MODEL,
    TD_RPC_DRAIN,
    TD_RPC_CANCEL_DRAIN,
    TD_RPC_REPLACE,
    TD_RPC_ATTACH,
    TD_RPC_HEALTH_CHECK,
    TD_RPC_HEALTH_WATCH,
    TD_RPC_REFLECTION,
    TD_RPC_REFLECTION_ALPHA,
    TD_N_RPCS
};

enum td_rpc_service {
    TD_RPC_SERVICE_INFERENCE,
    TD_RPC_SERVICE_CLUSTER,
    TD_RPC_SERVICE_WORKER,
    TD_RPC_SERVICE_HEALTH,
    TD_RPC_SERVICE_REFLECTION,
    TD_RPC_SERVICE_REFLECTION_ALPHA,
    TD_N_RPC_SERVICES
};

struct td_rpc_method {
    enum td_rpc_id id;
    enum td_rpc_service service;
    const char *path; /* "/tensord.v1.Inference/Generate" */
    const ProtobufCMessageDescriptor *request;
    const ProtobufCMessageDescriptor *reply;
    bool client_streams;
    bool server_streams;
};

const struct td_rpc_method *td_rpc_method(enum td_rpc_id id);
/* NULL when there is none: answer UNIMPLEMENTED. */
const struct td_rpc_method *td_rpc_find(struct td_str path);
const char *td_rpc_service_name(enum td_rpc_service service); /* "tensord.v1.Inference" */

/* Parses `bytes` as `type`. On success *message is owned by the caller (td_rpc_free).
 * TD_TOO_LARGE over `max_bytes` (0: no limit here), TD_INVALID naming the type. */
enum td_status td_rpc_unpack(const ProtobufCMessageDescriptor *type, struct td_str bytes,
                             size_t max_bytes, ProtobufCMessage **message, struct td_err *err);
void td_rpc_free(ProtobufCMessage *message); /* NULL is legal */
/* Replaces the content of `out`. TD_TOO_LARGE over out's cap, TD_NO_MEMORY. */
enum td_status td_rpc_pack(const ProtobufCMessage *message, struct td_bytes *out,
                           struct td_err *err);

/* Bytes fields as slices. Both borrow. */
struct td_str td_rpc_str(ProtobufCBinaryData data);
ProtobufCBinaryData td_rpc_data(struct td_str s);

#endif
