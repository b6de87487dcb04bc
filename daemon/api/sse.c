#include "daemon/api/sse.h"

#include <string.h>

void td_sse_begin(struct td_http_request *req, td_http_notify_fn on_drain, void *user)
{
    td_http_set_header(req, "Cache-Control", "no-cache");
    td_http_set_header(req, "X-Accel-Buffering", "no");
    td_http_stream_begin(req, 200, "text/event-stream; charset=utf-8", on_drain, user);
    td_http_stream_set_ping(req, TD_STR(": ping\n\n"));
}

enum td_status td_sse_event(struct td_http_request *req, struct td_str data)
{
    return td_sse_event_with_id(req, TD_STR(""), data);
}

enum td_status td_sse_event_with_id(struct td_http_request *req, struct td_str id,
                                    struct td_str data)
{
    struct td_bytes text = {0};
    enum td_status status = td_bytes_reserve(&text, id.len + data.len + 16);
    size_t start = 0;
    if (status == TD_OK && id.len > 0) {
        status = td_bytes_appendf(&text, "id: %.*s\n", (int)id.len, id.ptr);
    }
    while (status == TD_OK) {
        size_t end = start;
        while (end < data.len && data.ptr[end] != '\n' && data.ptr[end] != '\r') {
            end++;
        }
        status = td_bytes_append(&text, "data: ", 6);
        if (status == TD_OK) {
            status = td_bytes_append(&text, data.ptr + start, end - start);
        }
        if (status == TD_OK) {
            status = td_bytes_append(&text, "\n", 1);
        }
        if (end >= data.len) {
            break;
        }
        start = end + 1;
        if (data.ptr[end] == '\r' && start < data.len && data.ptr[start] == '\n') {
            start++;
        }
    }
    if (status == TD_OK) {
        status = td_bytes_append(&text, "\n", 1);
    }
    if (status == TD_OK) {
        status = td_http_stream_write(req, td_bytes_str(&text));
    } else {
        td_http_stream_abort(req); /* without memory an event would be lost silently */
        status = TD_CANCELLED;
    }
    td_bytes_deinit(&text);
    return status;
}

void td_sse_done(struct td_http_request *req)
{
    td_http_stream_end_with(req, TD_STR("data: [DONE]\n\n"));
}
