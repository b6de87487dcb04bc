#include "proto/grpc_internal.h"
#include "proto/grpc_text.h"

#include <stdio.h>
#include <string.h>

enum { MAX_NV = 4 + TD_GRPC_MAX_TRAILERS };

enum td_status td_grpc_server_open(const struct td_grpc_callbacks *callbacks,
                                   const struct td_grpc_limits *limits, void *user,
                                   struct td_grpc **conn, struct td_err *err)
{
    return td_grpc_open(true, callbacks, limits, user, conn, err);
}

static nghttp2_nv pair(struct td_str name, struct td_str value)
{
    return (nghttp2_nv){(uint8_t *)name.ptr, (uint8_t *)value.ptr, name.len, value.len,
                        NGHTTP2_NV_FLAG_NONE};
}

static struct td_str meta_or_empty(const struct td_grpc_stream *s, const char *name)
{
    struct td_str value = {"", 0};
    td_grpc_meta_get(&s->meta, td_str_from(name), 0, &value);
    return value;
}

void td_grpc_stream_set_unary(struct td_grpc_stream *s)
{
    s->unary = true;
}

/* Resets a stream that nghttp2 would not take an answer for (out of memory). */
static void check_submit(struct td_grpc_stream *s, int rc)
{
    if (rc)
        td_grpc_stream_cancel(s);
}

void td_grpc_stream_start(struct td_grpc_stream *s)
{
    if (s->headers_sent || !s->conn->is_server || s->reset)
        return;
    s->headers_sent = true;
    nghttp2_nv nv[] = {pair(TD_STR(":status"), TD_STR("200")),
                       pair(TD_STR("content-type"), TD_STR("application/grpc")),
                       pair(TD_STR("grpc-accept-encoding"), TD_STR("identity"))};
    nghttp2_data_provider provider = {.source.ptr = s, .read_callback = td_grpc_stream_read};
    check_submit(s, nghttp2_submit_response(s->conn->session, s->id, nv, 3, &provider));
    td_grpc_note_output(s->conn);
}

enum td_status td_grpc_stream_add_trailer(struct td_grpc_stream *s, struct td_grpc_meta meta,
                                          struct td_err *err)
{
    if (s->ended)
        return td_err_set(err, TD_CANCELLED, "the stream is finished, no trailer can be added");
    if (s->n_trailers == TD_GRPC_MAX_TRAILERS)
        return td_err_set(err, TD_BUSY, "a call has %d trailers at most", TD_GRPC_MAX_TRAILERS);
    bool bin = td_grpc_meta_is_bin(meta.name);
    if (!td_grpc_meta_is_name(meta.name) || td_str_starts(meta.name, TD_STR("grpc-")))
        return td_err_set(err, TD_INVALID, "'%.*s' is no name for a trailer", (int)meta.name.len,
                          meta.name.ptr);
    if (!bin && !td_grpc_meta_is_value(meta.value))
        return td_err_set(err, TD_INVALID, "the trailer '%.*s' has a byte outside 0x20..0x7e",
                          (int)meta.name.len, meta.name.ptr);
    size_t before = s->trailer_text.len;
    enum td_status st = td_bytes_append_str(&s->trailer_text, meta.name);
    if (!st)
        st = bin ? td_grpc_text_base64_encode(meta.value, &s->trailer_text)
                 : td_bytes_append_str(&s->trailer_text, meta.value);
    if (st) {
        s->trailer_text.len = before;
        return td_err_set(err, st, "no memory for a trailer of %zu bytes", meta.value.len);
    }
    s->trailer_bytes[s->n_trailers][0] = meta.name.len;
    s->trailer_bytes[s->n_trailers][1] = s->trailer_text.len - before - meta.name.len;
    s->n_trailers++;
    return TD_OK;
}

/* Status, message and the application's trailers, as trailers or (trailers-only) as the whole
 * response. */
static void submit_status(struct td_grpc_stream *s, bool whole_response)
{
    nghttp2_nv nv[MAX_NV];
    size_t n = 0;
    char number[12];
    struct td_bytes message = {0};
    if (whole_response) {
        nv[n++] = pair(TD_STR(":status"), TD_STR("200"));
        nv[n++] = pair(TD_STR("content-type"), TD_STR("application/grpc"));
    }
    snprintf(number, sizeof number, "%d", (int)s->code);
    nv[n++] = pair(TD_STR("grpc-status"), td_str_from(number));
    if (s->text_len &&
        !td_grpc_text_percent_encode((struct td_str){s->text, s->text_len}, &message))
        nv[n++] = pair(TD_STR("grpc-message"), td_bytes_str(&message));
    const char *at = s->trailer_text.data;
    for (size_t i = 0; i < s->n_trailers; i++) {
        struct td_str name = {at, s->trailer_bytes[i][0]};
        struct td_str value = {at + name.len, s->trailer_bytes[i][1]};
        nv[n++] = pair(name, value);
        at = value.ptr + value.len;
    }
    nghttp2_session *session = s->conn->session;
    check_submit(s, whole_response ? nghttp2_submit_response(session, s->id, nv, n, NULL)
                                   : nghttp2_submit_trailer(session, s->id, nv, n));
    td_bytes_deinit(&message);
}

void td_grpc_server_submit_trailer(struct td_grpc_stream *s)
{
    submit_status(s, false);
}

void td_grpc_stream_finish(struct td_grpc_stream *s, enum td_grpc_code code, struct td_str text)
{
    if (s->ended || !s->conn->is_server)
        return;
    if (s->kind == TD_GRPC_KIND_HTTP) {
        td_grpc_stream_http_reply(s, code == TD_GRPC_OK ? 200 : 500, TD_STR("text/plain"), text);
        return;
    }
    s->ended = true;
    td_grpc_stream_set_text(s, code, text);
    td_grpc_stream_drop_input(s);
    if (!s->headers_sent) {
        s->headers_sent = true;
        submit_status(s, true);
    }
    td_grpc_stream_resume(s);
}

void td_grpc_stream_fail(struct td_grpc_stream *s, const struct td_err *err)
{
    char text[640];
    td_grpc_stream_finish(s, td_grpc_code_from_status(err->status),
                          td_str_from(td_err_format(err, text, sizeof text)));
}

void td_grpc_server_expire(struct td_grpc_stream *s)
{
    if (s->kind != TD_GRPC_KIND_CALL || s->reset)
        return;
    /* A status would have to wait behind what is queued, which nobody reads any more. */
    if (td_grpc_stream_queued_bytes(s) > 0)
        td_grpc_stream_cancel(s);
    else
        td_grpc_stream_finish(s, TD_GRPC_DEADLINE_EXCEEDED, TD_STR("the call's deadline passed"));
}

void td_grpc_server_late(struct td_grpc_stream *s)
{
    if (s->kind == TD_GRPC_KIND_HTTP)
        td_grpc_stream_http_reply(s, 408, TD_STR("text/plain"),
                                  TD_STR("the request did not arrive in time\n"));
    else
        td_grpc_stream_finish(s, TD_GRPC_DEADLINE_EXCEEDED,
                              TD_STR("the request message did not arrive in time"));
}

void td_grpc_stream_http_reply(struct td_grpc_stream *s, int http_status,
                               struct td_str content_type, struct td_str body)
{
    if (s->ended || s->kind != TD_GRPC_KIND_HTTP)
        return;
    s->ended = true;
    s->headers_sent = true;
    td_grpc_stream_drop_input(s);
    char status[12], length[24];
    snprintf(status, sizeof status, "%d", http_status);
    snprintf(length, sizeof length, "%zu", body.len);
    nghttp2_nv nv[] = {pair(TD_STR(":status"), td_str_from(status)),
                       pair(TD_STR("content-length"), td_str_from(length)),
                       pair(TD_STR("content-type"), content_type)};
    bool no_body = td_str_eq(meta_or_empty(s, ":method"), TD_STR("HEAD")) || body.len == 0;
    nghttp2_data_provider provider = {.source.ptr = s, .read_callback = td_grpc_stream_read};
    int rc = no_body ? 0 : (int)td_bytes_append_str(&s->out, body);
    if (rc == 0)
        rc = nghttp2_submit_response(s->conn->session, s->id, nv, content_type.len ? 3 : 2,
                                     no_body ? NULL : &provider);
    check_submit(s, rc);
    td_grpc_note_output(s->conn);
}

static void begin_http(struct td_grpc_stream *s, bool is_grpc_type)
{
    s->kind = TD_GRPC_KIND_HTTP;
    if (s->meta_status == TD_TOO_LARGE)
        td_grpc_stream_http_reply(s, 431, TD_STR("text/plain"), td_str_from(s->meta_err.cause));
    else if (is_grpc_type)
        td_grpc_stream_http_reply(s, 405, TD_STR("text/plain"),
                                  TD_STR("a gRPC call must be a POST\n"));
    else if (!s->conn->cb.on_http)
        td_grpc_stream_http_reply(
            s, 415, TD_STR("text/plain"),
            TD_STR("only gRPC is served here: content-type must be application/grpc\n"));
}

static enum td_status begin_call(struct td_grpc_stream *s, struct td_err *err)
{
    struct td_grpc *conn = s->conn;
    struct td_str timeout;
    if (s->meta_status) {
        *err = s->meta_err;
        return s->meta_status;
    }
    if (td_grpc_meta_get(&s->meta, TD_STR("grpc-timeout"), 0, &timeout)) {
        uint64_t timeout_ns;
        enum td_status st = td_grpc_text_timeout_parse(timeout, &timeout_ns, err);
        if (st)
            return st;
        s->deadline_ns =
            timeout_ns > UINT64_MAX - conn->now_ns ? UINT64_MAX : conn->now_ns + timeout_ns;
        if (s->deadline_ns == 0)
            s->deadline_ns = 1;
    }
    if (!conn->cb.on_call)
        return td_err_set(err, TD_UNSUPPORTED, "no gRPC service is here");
    return conn->cb.on_call(conn->user, s, meta_or_empty(s, ":path"), err);
}

void td_grpc_server_begin(struct td_grpc_stream *s)
{
    bool is_grpc = td_grpc_text_is_content_type(meta_or_empty(s, "content-type"));
    bool is_post = td_str_eq(meta_or_empty(s, ":method"), TD_STR("POST"));
    /* Over the limit the content type may not be among what was kept; a POST is taken for a call
     * then. */
    if (s->meta_status == TD_TOO_LARGE && is_post && meta_or_empty(s, "content-type").len == 0)
        is_grpc = true;
    if (!is_grpc || !is_post) {
        begin_http(s, is_grpc);
        return;
    }
    struct td_err err = {0};
    s->kind = TD_GRPC_KIND_CALL;
    s->accepted = true;
    enum td_status st = begin_call(s, &err);
    if (st == TD_OK)
        return;
    s->accepted = false;
    enum td_grpc_code code =
        s->meta_status == TD_TOO_LARGE ? TD_GRPC_RESOURCE_EXHAUSTED : td_grpc_code_from_status(st);
    td_grpc_stream_finish(s, code, td_str_from(err.cause));
}

void td_grpc_server_end(struct td_grpc_stream *s)
{
    struct td_grpc *conn = s->conn;
    if (s->dropping)
        return;
    if (s->kind == TD_GRPC_KIND_HTTP) {
        s->accepted = true;
        conn->cb.on_http(conn->user, s, meta_or_empty(s, ":method"), meta_or_empty(s, ":path"),
                         td_bytes_str(&s->body));
        return;
    }
    if (td_grpc_frame_is_partial(&s->in))
        td_grpc_stream_finish(s, TD_GRPC_INTERNAL, TD_STR("the request ended inside a message"));
    else if (s->unary && s->n_messages == 0)
        td_grpc_stream_finish(s, TD_GRPC_UNIMPLEMENTED,
                              TD_STR("the call has no message, expected one"));
    else if (conn->cb.on_half_close)
        conn->cb.on_half_close(conn->user, s);
}

void td_grpc_server_closed(struct td_grpc_stream *s)
{
    struct td_grpc *conn = s->conn;
    bool owed = s->accepted;
    s->accepted = false;
    s->ended = true;
    s->reset = true;
    s->dropping = true;
    if (!owed || !conn->cb.on_close)
        return;
    if (s->sent_end)
        conn->cb.on_close(conn->user, s, s->code, (struct td_str){s->text, s->text_len});
    else
        conn->cb.on_close(conn->user, s, TD_GRPC_CANCELLED,
                          TD_STR("the client or the connection went away"));
}
