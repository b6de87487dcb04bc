#include "daemon/coordinator/roll_service.h"

#include "daemon/api/http1.h"
#include "daemon/api/json.h"
#include "daemon/coordinator/coordinator.h"
#include "daemon/coordinator/operator_call.h"
#include "daemon/log.h"

enum td_status td_roll_service_write(const struct td_coord_status *status, struct td_bytes *out)
{
    const struct td_coord_roll_status *r = &status->roll;
    enum td_status s;

    if (r->phase == TD_ROLL_NONE)
        return td_bytes_append_str(out, TD_STR("null"));
    s = td_bytes_appendf(out,
                         "{\"phase\":\"%s\",\"number\":%u,\"old\":%u,\"young\":%u,"
                         "\"has_taken_over\":%s,\"n_left\":%u,\"left_ns\":%llu,\"n_moved\":%llu,"
                         "\"n_finished\":%llu,\"n_replayed\":%llu,\"load_ns\":%llu,\"error\":",
                         td_roll_phase_name(r->phase), r->number, r->old, r->young,
                         r->has_taken_over ? "true" : "false", r->n_left,
                         (unsigned long long)r->left_ns, (unsigned long long)r->n_moved,
                         (unsigned long long)r->n_finished, (unsigned long long)r->n_replayed,
                         (unsigned long long)r->load_ns);
    s = s ? s : td_json_append_string(out, td_str_from(r->error));
    return s ? s : td_bytes_append_str(out, TD_STR("}"));
}

static void handle_roll(struct td_http_request *req, void *user)
{
    struct td_coord *coord = user;
    struct td_err err = {.status = TD_OK};
    uint64_t timeout_ns = TD_COORD_ROLL_NS;

    if (!td_operator_call_timeout(req, &timeout_ns, &err))
        (void)td_coord_replace(coord, timeout_ns, false, NULL, NULL, &err);
    if (err.status)
        td_log_info("roll refused remote=%s error=\"%s\"", td_http_remote(req), err.cause);
    td_operator_call_answer(req, coord, "roll", td_roll_service_write, &err);
}

enum td_status td_roll_service_open(struct td_coord *coord, struct td_route_table *routes,
                                    const struct td_auth *auth, struct td_err *err)
{
    struct td_route roll = {.method = "POST",
                            .path = "/roll",
                            .auth = auth,
                            .role = TD_AUTH_OPERATOR,
                            .handler = handle_roll,
                            .user = coord};

    return td_route_add(routes, &roll, err);
}
