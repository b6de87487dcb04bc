#include "daemon/api/http1_conn.h"

#include <string.h>
#include <strings.h>

void td_http_reply_drop(struct td_http_conn *h)
{
    struct td_http_request *req = h->req;
    h->req = NULL;
    td_conn_release_body(h->c, req->reserved_bytes);
    td_http_request_free(req);
}

/* The answer is written: makes the connection ready for the next request, or ends it. */
static void end_request(struct td_http_conn *h)
{
    bool keep = h->req->keep_alive && !td_conn_draining(h->c);
    td_http_reply_drop(h);
    h->is_refused = false;
    h->state = TD_HTTP_HEAD;
    h->since_ms = td_conn_now_ms(h->c);
    memset(&h->scan, 0, sizeof(h->scan));
    if (!keep) {
        td_conn_finish(h->c);
    } else if (h->in.len > 0) {
        td_conn_want_flush(
            h->c); /* the next request is parsed from the loop, not from inside the handler's call */
    } else {
        td_conn_resume(h->c);
    }
}

/* Writes the head. `length` SIZE_MAX: the length is not known. */
static void write_head(struct td_http_request *req, int http_status, const char *content_type,
                       size_t length)
{
    struct td_http_conn *h = req->owner;
    struct td_bytes text = {0};
    if (td_conn_draining(h->c) || h->is_broken) {
        req->keep_alive = false;
    }
    req->is_chunked = length == SIZE_MAX && req->http_minor == 1;
    if (length == SIZE_MAX && !req->is_chunked) {
        req->keep_alive = false; /* HTTP/1.0: the body ends with the connection */
    }
    if (td_http_request_format_head(req, http_status, content_type, length,
                                    td_conn_config(h->c)->cors_origin, &text) != TD_OK ||
        td_conn_write(h->c, text.data, text.len) != TD_OK) {
        td_conn_abort(h->c);
    }
    td_bytes_deinit(&text);
    req->last_write_ms = td_conn_now_ms(h->c);
}

void td_http_respond(struct td_http_request *req, int http_status, const char *content_type,
                     struct td_str body)
{
    struct td_http_conn *h = req->owner;
    if (!td_conn_closing(h->c)) {
        write_head(req, http_status, content_type, body.len);
        if (!req->is_head && body.len > 0) {
            td_conn_write(h->c, body.ptr, body.len);
        }
    }
    end_request(h);
}

static bool has_header(const struct td_http_request *req, const char *name)
{
    const size_t n = strlen(name);
    const char *line = req->extra.data; /* NULL where there is none */
    const char *end = req->extra.len > 0 ? line + req->extra.len : line;
    while (line < end) {
        if ((size_t)(end - line) > n && strncasecmp(line, name, n) == 0 && line[n] == ':') {
            return true;
        }
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        line = newline != NULL ? newline + 1 : end;
    }
    return false;
}

void td_http_respond_error(struct td_http_request *req, const struct td_openai_error *error)
{
    struct td_bytes text = {0};
    if ((error->http_status == 429 || error->http_status == 503) &&
        !has_header(req, "Retry-After")) {
        td_http_set_header(req, "Retry-After", "1");
    }
    if (td_openai_error_write(error, &text) != TD_OK) {
        td_bytes_clear(&text); /* without memory the status line alone still tells */
    }
    td_http_respond(req, error->http_status, "application/json", td_bytes_str(&text));
    td_bytes_deinit(&text);
}

void td_http_stream_begin(struct td_http_request *req, int http_status, const char *content_type,
                          td_http_notify_fn on_drain, void *user)
{
    req->is_streaming = true;
    req->on_drain = on_drain;
    req->on_drain_user = user;
    if (!td_conn_closing(req->owner->c)) {
        write_head(req, http_status, content_type, SIZE_MAX);
    }
}

enum td_status td_http_reply_piece(struct td_http_request *req, struct td_str data)
{
    struct td_conn *c = req->owner->c;
    if (td_conn_closing(c)) {
        return TD_CANCELLED;
    }
    if (data.len == 0 || req->is_head) {
        return TD_OK; /* an empty chunk would end the body */
    }
    req->last_write_ms = td_conn_now_ms(c);
    if (!req->is_chunked) {
        return td_conn_write(c, data.ptr, data.len);
    }
    struct td_bytes text = {0};
    enum td_status status = td_bytes_appendf(&text, "%zx\r\n", data.len);
    if (status == TD_OK) {
        status = td_bytes_append_str(&text, data);
    }
    if (status == TD_OK) {
        status = td_bytes_append(&text, "\r\n", 2);
    }
    if (status == TD_OK) {
        status = td_conn_write(c, text.data, text.len);
    } else {
        td_conn_abort(c);
        status = TD_CANCELLED;
    }
    td_bytes_deinit(&text);
    return status;
}

enum td_status td_http_stream_write(struct td_http_request *req, struct td_str data)
{
    struct td_conn *c = req->owner->c;
    size_t queued = td_conn_queued_bytes(c);
    size_t cap = td_conn_config(c)->write_queue_bytes;
    /* One piece larger than the cap still passes through an empty queue. */
    if (queued > 0 && (queued >= cap || data.len > cap - queued) && !td_conn_closing(c)) {
        req->wants_drain = true;
        td_conn_want_drained(c);
        return TD_BUSY;
    }
    return td_http_reply_piece(req, data);
}

void td_http_stream_end(struct td_http_request *req)
{
    td_http_stream_end_with(req, TD_STR(""));
}

void td_http_stream_end_with(struct td_http_request *req, struct td_str last)
{
    struct td_http_conn *h = req->owner;
    td_http_reply_piece(req, last);
    if (req->is_chunked && !req->is_head && !td_conn_closing(h->c)) {
        td_conn_write(h->c, "0\r\n\r\n", 5);
    }
    end_request(h);
}

void td_http_stream_abort(struct td_http_request *req)
{
    td_conn_abort(req->owner->c);
}

void td_http_stream_set_ping(struct td_http_request *req, struct td_str ping)
{
    req->ping = ping;
}

const char *td_http_remote(const struct td_http_request *req)
{
    return td_conn_remote(req->owner->c);
}

void td_http_take_body(struct td_http_request *req, struct td_bytes *body)
{
    *body = req->body;
    req->body = (struct td_bytes){0};
    td_conn_release_body(req->owner->c, req->reserved_bytes);
    req->reserved_bytes = 0;
}
