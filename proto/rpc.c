#include "proto/rpc.h"

#include "proto/cluster.pb-c.h"
#include "proto/health.pb-c.h"
#include "proto/inference.pb-c.h"
#include "proto/reflection.pb-c.h"
#include "proto/reflection_alpha.pb-c.h"
#include "proto/worker.pb-c.h"

#include <stdlib.h>

static const char *const service_names[TD_N_RPC_SERVICES] = {
    [TD_RPC_SERVICE_INFERENCE] = "tensord.v1.Inference",
    [TD_RPC_SERVICE_CLUSTER] = "tensord.v1.Cluster",
    [TD_RPC_SERVICE_WORKER] = "tensord.worker.v1.Worker",
    [TD_RPC_SERVICE_HEALTH] = "grpc.health.v1.Health",
    [TD_RPC_SERVICE_REFLECTION] = "grpc.reflection.v1.ServerReflection",
    [TD_RPC_SERVICE_REFLECTION_ALPHA] = "grpc.reflection.v1alpha.ServerReflection",
};

static const struct td_rpc_method methods[TD_N_RPCS] = {
    [TD_RPC_GENERATE] = {TD_RPC_GENERATE, TD_RPC_SERVICE_INFERENCE,
                         "/tensord.v1.Inference/Generate",
                         &tensord__v1__generate_request__descriptor,
                         &tensord__v1__generate_event__descriptor, false, true},
    [TD_RPC_RESUME] = {TD_RPC_RESUME, TD_RPC_SERVICE_INFERENCE, "/tensord.v1.Inference/Resume",
                       &tensord__v1__resume_request__descriptor,
                       &tensord__v1__generate_event__descriptor, false, true},
    [TD_RPC_TOKENIZE] = {TD_RPC_TOKENIZE, TD_RPC_SERVICE_INFERENCE,
                         "/tensord.v1.Inference/Tokenize",
                         &tensord__v1__tokenize_request__descriptor,
                         &tensord__v1__tokenize_response__descriptor, false, false},
    [TD_RPC_MODEL_INFO] = {TD_RPC_MODEL_INFO, TD_RPC_SERVICE_INFERENCE,
                           "/tensord.v1.Inference/ModelInfo",
                           &tensord__v1__model_info_request__descriptor,
                           &tensord__v1__model_info_response__descriptor, false, false},
    [TD_RPC_STATUS] = {TD_RPC_STATUS, TD_RPC_SERVICE_CLUSTER, "/tensord.v1.Cluster/Status",
                       &tensord__v1__status_request__descriptor,
                       &tensord__v1__status_response__descriptor, false, false},
    [TD_RPC_PLAN] = {TD_RPC_PLAN, TD_RPC_SERVICE_CLUSTER, "/tensord.v1.Cluster/Plan",
                     &tensord__v1__plan_request__descriptor,
                     &tensord__v1__plan_response__descriptor, false, false},
    [TD_RPC_LOAD_MODEL] = {TD_RPC_LOAD_MODEL, TD_RPC_SERVICE_CLUSTER,
                           "/tensord.v1.Cluster/LoadModel",
                           &tensord__v1__load_model_request__descriptor,
                           &tensord__v1__load_model_response__descriptor, false, false},
    [TD_RPC_UNLOAD_MODEL] = {TD_RPC_UNLOAD_MODEL, TD_RPC_SERVICE_CLUSTER,
                             "/tensord.v1.Cluster/UnloadModel",
                             &tensord__v1__unload_model_request__descriptor,
                             &tensord__v1__unload_model_response__descriptor, false, false},
    [TD_RPC_DRAIN] = {TD_RPC_DRAIN, TD_RPC_SERVICE_CLUSTER, "/tensord.v1.Cluster/Drain",
                      &tensord__v1__drain_request__descriptor,
                      &tensord__v1__drain_response__descriptor, false, false},
    [TD_RPC_CANCEL_DRAIN] = {TD_RPC_CANCEL_DRAIN, TD_RPC_SERVICE_CLUSTER,
                             "/tensord.v1.Cluster/CancelDrain",
                             &tensord__v1__cancel_drain_request__descriptor,
                             &tensord__v1__cancel_drain_response__descriptor, false, false},
    [TD_RPC_REPLACE] = {TD_RPC_REPLACE, TD_RPC_SERVICE_CLUSTER, "/tensord.v1.Cluster/Replace",
                        &tensord__v1__replace_request__descriptor,
                        &tensord__v1__replace_response__descriptor, false, false},
    [TD_RPC_ATTACH] = {TD_RPC_ATTACH, TD_RPC_SERVICE_WORKER, "/tensord.worker.v1.Worker/Attach",
                       &tensord__worker__v1__worker_message__descriptor,
                       &tensord__worker__v1__coordinator_message__descriptor, true, true},
    [TD_RPC_HEALTH_CHECK] = {TD_RPC_HEALTH_CHECK, TD_RPC_SERVICE_HEALTH,
                             "/grpc.health.v1.Health/Check",
                             &grpc__health__v1__health_check_request__descriptor,
                             &grpc__health__v1__health_check_response__descriptor, false, false},
    [TD_RPC_HEALTH_WATCH] = {TD_RPC_HEALTH_WATCH, TD_RPC_SERVICE_HEALTH,
                             "/grpc.health.v1.Health/Watch",
                             &grpc__health__v1__health_check_request__descriptor,
                             &grpc__health__v1__health_check_response__descriptor, false, true},
    [TD_RPC_REFLECTION] = {TD_RPC_REFLECTION, TD_RPC_SERVICE_REFLECTION,
                           "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                           &grpc__reflection__v1__server_reflection_request__descriptor,
                           &grpc__reflection__v1__server_reflection_response__descriptor, true,
                           true},
    [TD_RPC_REFLECTION_ALPHA] = {TD_RPC_REFLECTION_ALPHA, TD_RPC_SERVICE_REFLECTION_ALPHA,
                                 "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                 &grpc__reflection__v1alpha__server_reflection_request__descriptor,
                                 &grpc__reflection__v1alpha__server_reflection_response__descriptor,
                                 true, true},
};

const struct td_rpc_method *td_rpc_method(enum td_rpc_id id)
{
    return &methods[id];
}

const struct td_rpc_method *td_rpc_find(struct td_str path)
{
    for (int i = 0; i < TD_N_RPCS; i++)
        if (td_str_eq(path, td_str_from(methods[i].path)))
            return &methods[i];
    return NULL;
}

const char *td_rpc_service_name(enum td_rpc_service service)
{
    return service_names[service];
}

/* protobuf-c gives nothing for a broken message and for want of memory; which it was, its allocator knows. */
static void *take(void *user, size_t bytes)
{
    bool *is_short = user;
    void *p = malloc(bytes);

    *is_short |= !p;
    return p;
}

static void give(void *user, void *p)
{
    (void)user;
    free(p);
}

enum td_status td_rpc_unpack(const ProtobufCMessageDescriptor *type, struct td_str bytes,
                             size_t max_bytes, ProtobufCMessage **message, struct td_err *err)
{
    if (max_bytes && bytes.len > max_bytes)
        return td_err_set(err, TD_TOO_LARGE, "a %s of %zu bytes is over the limit of %zu",
                          type->name, bytes.len, max_bytes);
    bool is_short = false;
    ProtobufCAllocator allocator = {take, give, &is_short};
    ProtobufCMessage *m =
        protobuf_c_message_unpack(type, &allocator, bytes.len, (const uint8_t *)bytes.ptr);
    if (!m && is_short)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a %s of %zu bytes", type->name,
                          bytes.len);
    if (!m)
        return td_err_set(err, TD_INVALID, "%zu bytes are no valid %s", bytes.len, type->name);
    *message = m;
    return TD_OK;
}

void td_rpc_free(ProtobufCMessage *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}

enum td_status td_rpc_pack(const ProtobufCMessage *message, struct td_bytes *out,
                           struct td_err *err)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    td_bytes_clear(out);
    enum td_status st = td_bytes_reserve(out, n);
    if (st)
        return td_err_set(err, st, "a %s of %zu bytes: %s", message->descriptor->name, n,
                          td_status_name(st));
    out->len = protobuf_c_message_pack(message, (uint8_t *)out->data);
    out->data[out->len] = '\0';
    return TD_OK;
}

struct td_str td_rpc_str(ProtobufCBinaryData data)
{
    return (struct td_str){data.data ? (const char *)data.data : "", data.len};
}

ProtobufCBinaryData td_rpc_data(struct td_str s)
{
    return (ProtobufCBinaryData){s.len, (uint8_t *)(uintptr_t)s.ptr};
}
