#include "daemon/coordinator/roll_service.h"

#include "daemon/api/http1.h"
#include "daemon/api/json.h"
#include "daemon/api/openai.h"
#include "daemon/coordinator/coordinator.h"
#include "daemon/coordinator/timeoutbody.h"
#include "daemon/log.h"

enum td_status td_roll_service_write(const struct td_coord_roll_status *r, struct td_bytes *out)
{
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

/* What became of the request: `err` with its status, TD_OK for begun. */
static void respond(struct td_http_request *req, struct td_coord *coord, struct td_err *err)
{
    struct td_coord_status status;
    struct td_openai_error error;
    struct td_bytes out = {0};
    enum td_status s = td_bytes_append_str(&out, TD_STR("{\"roll\":"));

    td_coord_status(coord, &status);
    s = s ? s : td_roll_service_write(&status.roll, &out);
    s = s ? s : td_bytes_append_str(&out, TD_STR("}"));
    if (s && !err->status)
        td_err_set(err, s, "no memory for an answer");
    if (err->status) {
        td_openai_error_from(err, &error);
        td_http_respond_error(req, &error);
    } else {
        td_http_respond(req, 200, "application/json", td_bytes_str(&out));
    }
    td_bytes_deinit(&out);
}

static void handle_roll(struct td_http_request *req, void *user)
{
    struct td_coord *coord = user;
    struct td_err err = {.status = TD_OK};
    uint64_t timeout_ns = TD_COORD_ROLL_NS;

    if (!td_timeoutbody_read(req, &timeout_ns, &err))
        (void)td_coord_replace(coord, timeout_ns, false, NULL, NULL, &err);
    if (err.status)
        td_log_info("roll refused remote=%s error=\"%s\"", td_http_remote(req), err.cause);
    respond(req, coord, &err);
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
