#include "daemon/coordinator/operator_call.h"

#include "daemon/api/http1.h"
#include "daemon/api/json.h"
#include "daemon/api/openai.h"
#include "daemon/coordinator/coordinator.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

enum { MAX_TIMEOUT_S = 86400, MAX_BODY_BYTES = 4096 };

/* "application/json", perhaps with parameters behind it. */
static bool is_json(struct td_str type)
{
    const struct td_str json = TD_STR("application/json");

    return type.len >= json.len && strncasecmp(type.ptr, json.ptr, json.len) == 0 &&
           (type.len == json.len || type.ptr[json.len] == ';' || type.ptr[json.len] == ' ');
}

enum td_status td_operator_call_timeout(struct td_http_request *req, uint64_t *timeout_ns,
                                        struct td_err *err)
{
    struct td_str body = td_http_body(req);
    json_t *root = NULL;
    const json_t *value;
    const char *key;
    double timeout_s = (double)*timeout_ns * 1e-9;
    enum td_status s;

    if (!is_json(td_http_header(req, "content-type")))
        return td_err_set(err, TD_INVALID, "the Content-Type must be application/json");
    if (body.len > MAX_BODY_BYTES)
        return td_err_set(err, TD_INVALID, "the body has %zu bytes, expected at most %d", body.len,
                          MAX_BODY_BYTES);
    s = body.len ? td_json_parse(body, 2, &root, err) : TD_OK;
    if (!s && body.len && !json_is_object(root))
        s = td_err_set(err, TD_INVALID, "the body is no object, expected {\"timeout\": seconds}");
    for (void *at = s || !root ? NULL : json_object_iter(root); at && !s;
         at = json_object_iter_next(root, at)) {
        key = json_object_iter_key(at);
        value = json_object_iter_value(at);
        if (strcmp(key, "timeout") != 0)
            s = td_err_set(err, TD_INVALID, "the body has '%.40s', expected only 'timeout'", key);
        else if (!json_is_number(value))
            s = td_err_set(err, TD_INVALID, "'timeout' is no number of seconds");
        else
            timeout_s = json_number_value(value);
    }
    if (!s && !(timeout_s >= 0 && timeout_s <= MAX_TIMEOUT_S))
        s = td_err_set(err, TD_INVALID, "'timeout' is %g: expected 0 to %d seconds", timeout_s,
                       MAX_TIMEOUT_S);
    json_decref(root);
    if (!s)
        *timeout_ns = (uint64_t)(timeout_s * 1e9);
    return s;
}

void td_operator_call_answer(struct td_http_request *req, struct td_coord *coord,
                             const char *member, td_operator_call_write_fn *write,
                             const struct td_err *err)
{
    struct td_coord_status status;
    struct td_openai_error error;
    struct td_err no_memory;
    struct td_bytes out = {0};
    enum td_status s = td_bytes_appendf(&out, "{\"%s\":", member);

    td_coord_status(coord, &status);
    s = s ? s : write(&status, &out);
    s = s ? s : td_bytes_append_str(&out, TD_STR("}"));
    if (s && !err->status) {
        td_err_set(&no_memory, s, "no memory for an answer");
        err = &no_memory;
    }
    if (err->status) {
        td_openai_error_from(err, &error);
        td_http_respond_error(req, &error);
    } else {
        td_http_respond(req, 200, "application/json", td_bytes_str(&out));
    }
    td_bytes_deinit(&out);
}
