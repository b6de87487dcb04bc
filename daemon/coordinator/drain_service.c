#include "daemon/coordinator/drain_service.h"

#include "daemon/api/http1.h"
#include "daemon/coordinator/coordinator.h"
#include "daemon/coordinator/operator_call.h"
#include "daemon/log.h"

enum td_status td_drain_service_write(const struct td_coord_status *status, struct td_bytes *out)
{
    const struct td_coord_drain_status *d = &status->drain;
    enum td_status s;

    if (!d->is_on)
        return td_bytes_append_str(out, TD_STR("null"));
    s = td_bytes_appendf(out,
                         "{\"stops\":%s,\"over\":%s,\"n_open\":%u,\"n_finished\":%llu,"
                         "\"n_cancelled\":%llu,\"left_ns\":",
                         d->is_last ? "true" : "false", d->is_over ? "true" : "false",
                         status->n_open, (unsigned long long)d->n_finished,
                         (unsigned long long)d->n_cancelled);
    if (s)
        return s;
    return d->has_limit ? td_bytes_appendf(out, "%llu}", (unsigned long long)d->left_ns)
                        : td_bytes_append_str(out, TD_STR("null}"));
}

static void handle_drain(struct td_http_request *req, void *user)
{
    struct td_coord *coord = user;
    struct td_err err = {.status = TD_OK};
    uint64_t timeout_ns = 0;

    if (!td_operator_call_timeout(req, &timeout_ns, &err)) {
        td_log_info("draining remote=%s timeout_s=%.4g", td_http_remote(req),
                    (double)timeout_ns * 1e-9);
        td_coord_drain(coord, timeout_ns, NULL, NULL);
    }
    td_operator_call_answer(req, coord, "drain", td_drain_service_write, &err);
}

static void handle_cancel(struct td_http_request *req, void *user)
{
    struct td_coord *coord = user;
    struct td_err err = {.status = TD_OK};

    if (!td_coord_drain_cancel(coord, &err))
        td_log_info("drain taken back remote=%s", td_http_remote(req));
    td_operator_call_answer(req, coord, "drain", td_drain_service_write, &err);
}

enum td_status td_drain_service_open(struct td_coord *coord, struct td_route_table *routes,
                                     const struct td_auth *auth, struct td_err *err)
{
    struct td_route drain = {.method = "POST",
                             .path = "/drain",
                             .auth = auth,
                             .role = TD_AUTH_OPERATOR,
                             .handler = handle_drain,
                             .user = coord};
    struct td_route cancel = {.method = "DELETE",
                              .path = "/drain",
                              .auth = auth,
                              .role = TD_AUTH_OPERATOR,
                              .handler = handle_cancel,
                              .user = coord};
    enum td_status s = td_route_add(routes, &drain, err);

    return s ? s : td_route_add(routes, &cancel, err);
}
