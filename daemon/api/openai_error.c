#include "daemon/api/json.h"
#include "daemon/api/openai.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum td_status td_openai_error_set(struct td_openai_error *e, int http_status, const char *type,
                                   const char *code, const char *param, const char *fmt, ...)
{
    e->http_status = http_status;
    e->type = type;
    e->code = code;
    snprintf(e->param, sizeof(e->param), "%s", param != NULL ? param : "");
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, args);
    va_end(args);
    return TD_INVALID;
}

static const struct {
    enum td_status status;
    int http_status;
    const char *type;
    const char *code;
} by_status[] = {
    {TD_INVALID, 400, "invalid_request_error", "invalid_value"},
    {TD_NOT_FOUND, 404, "invalid_request_error", "not_found"},
    {TD_UNSUPPORTED, 400, "invalid_request_error", "unsupported"},
    {TD_TOO_LARGE, 400, "invalid_request_error", "too_large"},
    {TD_BUSY, 429, "rate_limit_error", "server_busy"},
    {TD_CANCELLED, 499, "invalid_request_error", "cancelled"},
    {TD_CORRUPT, 400, "invalid_request_error", "corrupt"},
    {TD_DENIED, 401, "invalid_request_error", "invalid_api_key"},
    {TD_UNAVAILABLE, 503, "service_unavailable_error", "unavailable"},
    {TD_TIMED_OUT, 504, "timeout_error", "timeout"},
    {TD_POISON, 500, "server_error", "request_crashes_engine"},
    {TD_PEER_LOST, 503, "service_unavailable_error", "worker_lost"},
    {TD_PEER_TIMED_OUT, 503, "service_unavailable_error", "worker_lost"},
    {TD_PEER_PROTOCOL, 503, "service_unavailable_error", "worker_lost"},
    {TD_PEER_MISMATCH, 503, "service_unavailable_error", "worker_mismatch"},
    {TD_NO_MEMORY, 503, "server_error", "no_memory"},
};

void td_openai_error_from(const struct td_err *err, struct td_openai_error *e)
{
    for (size_t i = 0; i < sizeof(by_status) / sizeof(by_status[0]); i++) {
        if (by_status[i].status == err->status) {
            char text[sizeof(e->message)];
            td_openai_error_set(e, by_status[i].http_status, by_status[i].type, by_status[i].code,
                                NULL, "%s", td_err_format(err, text, sizeof(text)));
            return;
        }
    }
    td_openai_error_set(e, 500, "server_error", "internal_error", NULL,
                        "The server had an error while processing the request (%s).",
                        td_status_name(err->status));
}

enum td_status td_openai_error_write(const struct td_openai_error *e, struct td_bytes *out)
{
    enum td_status status = td_bytes_append_str(out, TD_STR("{\"error\":{\"message\":"));
    if (status == TD_OK) {
        status = td_json_append_string(out, td_str_from(e->message));
    }
    if (status == TD_OK) {
        status = td_bytes_appendf(out, ",\"type\":\"%s\",\"param\":", e->type);
    }
    if (status == TD_OK) {
        status = e->param[0] != '\0' ? td_json_append_string(out, td_str_from(e->param))
                                     : td_bytes_append_str(out, TD_STR("null"));
    }
    if (status == TD_OK) {
        status = e->code != NULL ? td_bytes_appendf(out, ",\"code\":\"%s\"}}", e->code)
                                 : td_bytes_append_str(out, TD_STR(",\"code\":null}}"));
    }
    return status;
}
