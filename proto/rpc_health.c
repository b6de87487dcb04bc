#include "proto/rpc_health.h"

#include "proto/health.pb-c.h"
#include "proto/rpc.h"

static enum td_status find(struct td_str request, const struct td_rpc_health_entry *entries,
                           size_t n_entries, bool must_exist, enum td_rpc_serving *serving,
                           struct td_err *err)
{
    ProtobufCMessage *m;
    enum td_status st =
        td_rpc_unpack(&grpc__health__v1__health_check_request__descriptor, request, 4096, &m, err);
    if (st)
        return st;
    const Grpc__Health__V1__HealthCheckRequest *asked = (const void *)m;
    struct td_str name = td_str_from(asked->service);
    enum td_rpc_serving found = TD_RPC_SERVICE_UNKNOWN;
    for (size_t i = 0; i < n_entries; i++)
        if (td_str_eq(entries[i].service, name))
            found = entries[i].serving ? TD_RPC_SERVING : TD_RPC_NOT_SERVING;
    if (found == TD_RPC_SERVICE_UNKNOWN && must_exist)
        st = td_err_set(err, TD_NOT_FOUND, "no service '%.128s' is known here", asked->service);
    else
        *serving = found;
    td_rpc_free(m);
    return st;
}

enum td_status td_rpc_health_lookup(struct td_str request,
                                    const struct td_rpc_health_entry *entries, size_t n_entries,
                                    enum td_rpc_serving *serving, struct td_err *err)
{
    return find(request, entries, n_entries, false, serving, err);
}

enum td_status td_rpc_health_encode(enum td_rpc_serving serving, struct td_bytes *reply,
                                    struct td_err *err)
{
    Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    m.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)serving;
    return td_rpc_pack(&m.base, reply, err);
}

enum td_status td_rpc_health_check(struct td_str request, const struct td_rpc_health_entry *entries,
                                   size_t n_entries, struct td_bytes *reply, struct td_err *err)
{
    enum td_rpc_serving serving;
    enum td_status st = find(request, entries, n_entries, true, &serving, err);
    return st ? st : td_rpc_health_encode(serving, reply, err);
}
