#include "proto/grpc_internal.h"

#include <stdlib.h>
#include <string.h>

struct td_grpc_stream *td_grpc_stream_new(struct td_grpc *conn, int32_t id)
{
    struct td_grpc_stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->conn = conn;
    s->id = id;
    td_grpc_meta_init(&s->meta, conn->limits.max_header_list_bytes);
    td_grpc_frame_init(&s->in, conn->limits.max_message_bytes);
    s->body.cap_limit = conn->limits.max_http_body_bytes;
    s->next = conn->streams;
    if (s->next)
        s->next->prev = s;
    conn->streams = s;
    conn->n_streams++;
    return s;
}

void td_grpc_stream_free(struct td_grpc_stream *s)
{
    struct td_grpc *conn = s->conn;
    if (s->prev)
        s->prev->next = s->next;
    else
        conn->streams = s->next;
    if (s->next)
        s->next->prev = s->prev;
    conn->n_streams--;
    if (s->want_drain)
        conn->n_want_drain--;
    td_bytes_deinit(&s->trailer_text);
    td_bytes_deinit(&s->out);
    td_bytes_deinit(&s->body);
    td_grpc_frame_deinit(&s->in);
    td_grpc_meta_deinit(&s->meta);
    free(s);
}

void td_grpc_stream_set_user(struct td_grpc_stream *s, void *user)
{
    s->user = user;
}

void *td_grpc_stream_user(const struct td_grpc_stream *s)
{
    return s->user;
}

struct td_grpc *td_grpc_stream_conn(const struct td_grpc_stream *s)
{
    return s->conn;
}

bool td_grpc_stream_metadata(const struct td_grpc_stream *s, const char *name, size_t nth,
                             struct td_str *value)
{
    return td_grpc_meta_get(&s->meta, td_str_from(name), nth, value);
}

uint64_t td_grpc_stream_deadline_ns(const struct td_grpc_stream *s)
{
    return s->deadline_ns;
}

size_t td_grpc_stream_queued_bytes(const struct td_grpc_stream *s)
{
    return s->out.len - s->out_at;
}

void td_grpc_stream_set_text(struct td_grpc_stream *s, enum td_grpc_code code, struct td_str text)
{
    size_t n = text.len < sizeof s->text ? text.len : sizeof s->text;
    /* A cut never leaves half a UTF-8 character. */
    if (n < text.len)
        while (n > 0 && ((unsigned char)text.ptr[n] & 0xc0) == 0x80)
            n--;
    if (n)
        memcpy(s->text, text.ptr, n);
    s->text_len = n;
    s->code = code;
}

/* Gives received bytes back to the peer's window while nothing that was delivered is
 * unacknowledged. So a message may be larger than the window, and a slow application stops the
 * peer after one window. */
static void settle_window(struct td_grpc_stream *s)
{
    if (s->owed_bytes == 0 || (s->unacked_bytes > 0 && !s->dropping))
        return;
    nghttp2_session_consume_stream(s->conn->session, s->id, s->owed_bytes);
    s->owed_bytes = 0;
}

void td_grpc_stream_ack(struct td_grpc_stream *s, size_t n_bytes)
{
    s->unacked_bytes -= n_bytes < s->unacked_bytes ? n_bytes : s->unacked_bytes;
    settle_window(s);
    td_grpc_note_output(s->conn);
}

void td_grpc_stream_drop_input(struct td_grpc_stream *s)
{
    s->dropping = true;
    settle_window(s);
}

void td_grpc_stream_refuse(struct td_grpc_stream *s, enum td_grpc_code code, struct td_str text)
{
    if (s->conn->is_server) {
        td_grpc_stream_finish(s, code, text);
        return;
    }
    if (!s->has_code) {
        td_grpc_stream_set_text(s, code, text);
        s->has_code = true;
    }
    td_grpc_stream_cancel(s);
}

static enum td_grpc_code frame_code(enum td_status st)
{
    if (st == TD_TOO_LARGE || st == TD_NO_MEMORY)
        return TD_GRPC_RESOURCE_EXHAUSTED;
    return st == TD_UNSUPPORTED ? TD_GRPC_UNIMPLEMENTED : TD_GRPC_INTERNAL;
}

static void take_messages(struct td_grpc_stream *s, struct td_str data)
{
    struct td_grpc *conn = s->conn;
    /* An empty message needs no byte after its head, hence the look at `complete`. */
    bool complete = true;
    while ((data.len > 0 || complete) && !s->dropping) {
        struct td_str message;
        struct td_err err;
        if (data.len == 0 && !td_grpc_frame_is_partial(&s->in))
            break;
        enum td_status st = td_grpc_frame_read(&s->in, &data, &message, &complete, &err);
        if (st) {
            td_grpc_stream_refuse(s, frame_code(st), td_str_from(err.cause));
            break;
        }
        if (!complete)
            continue;
        if (s->unary && s->n_messages == 1) {
            td_grpc_stream_refuse(s, TD_GRPC_UNIMPLEMENTED,
                                  TD_STR("the call has more than one message, expected one"));
            break;
        }
        s->n_messages++;
        s->unacked_bytes += message.len;
        if (conn->cb.on_message)
            conn->cb.on_message(conn->user, s, message);
        else
            s->unacked_bytes = 0;
    }
}

void td_grpc_stream_take(struct td_grpc_stream *s, struct td_str data)
{
    s->owed_bytes += data.len;
    if (!s->dropping && s->kind == TD_GRPC_KIND_CALL) {
        take_messages(s, data);
    } else if (!s->dropping && td_bytes_append_str(&s->body, data)) {
        td_grpc_stream_drop_input(s);
        td_grpc_stream_http_reply(s, 413, TD_STR("text/plain"),
                                  TD_STR("the request body is too large\n"));
    }
    settle_window(s);
}

void td_grpc_stream_resume(struct td_grpc_stream *s)
{
    if (s->deferred) {
        s->deferred = false;
        nghttp2_session_resume_data(s->conn->session, s->id);
    }
    td_grpc_note_output(s->conn);
}

void td_grpc_stream_limit_message(struct td_grpc_stream *s, size_t max_bytes)
{
    td_grpc_frame_limit(&s->in, max_bytes);
}

enum td_status td_grpc_stream_send(struct td_grpc_stream *s, struct td_str message,
                                   struct td_err *err)
{
    struct td_grpc *conn = s->conn;
    size_t queued = td_grpc_stream_queued_bytes(s);
    if (s->ended || s->kind != TD_GRPC_KIND_CALL)
        return td_err_set(err, TD_CANCELLED, "the stream is finished, no message can be sent");
    if (queued > 0 && queued + message.len > conn->limits.max_queued_bytes)
        return td_err_set(err, TD_BUSY,
                          "%zu bytes wait in the stream, a message of %zu is over the limit of %zu",
                          queued, message.len, conn->limits.max_queued_bytes);
    if (s->out_at > 65536 && s->out_at > s->out.len / 2) {
        td_bytes_consume(&s->out, s->out_at);
        s->out_at = 0;
    }
    enum td_status st = td_grpc_frame_append(&s->out, message);
    if (st)
        return td_err_set(err, st, "queue a message of %zu bytes: %s", message.len,
                          td_status_name(st));
    if (td_grpc_stream_queued_bytes(s) > conn->limits.drain_mark_bytes)
        s->above_mark = true;
    if (conn->is_server)
        td_grpc_stream_start(s);
    td_grpc_stream_resume(s);
    return TD_OK;
}

ssize_t td_grpc_stream_read(nghttp2_session *session, int32_t id, uint8_t *buf, size_t cap,
                            uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)id;
    (void)user;
    struct td_grpc_stream *s = source->ptr;
    size_t n = td_grpc_stream_queued_bytes(s);
    n = n < cap ? n : cap;
    if (n)
        memcpy(buf, s->out.data + s->out_at, n);
    s->out_at += n;
    if (n)
        s->moved_ns = s->conn->now_ns;
    size_t left = td_grpc_stream_queued_bytes(s);
    if (left == 0) {
        if (s->out.cap > 65536)
            td_bytes_deinit(&s->out);
        td_bytes_clear(&s->out);
        s->out_at = 0;
    }
    if (s->above_mark && left <= s->conn->limits.drain_mark_bytes) {
        s->above_mark = false;
        s->conn->n_want_drain += !s->want_drain;
        s->want_drain = true;
    }
    if (left == 0 && s->ended) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (s->conn->is_server && s->kind == TD_GRPC_KIND_CALL) {
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            td_grpc_server_submit_trailer(s);
        }
    } else if (n == 0) {
        s->deferred = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    return (ssize_t)n;
}

void td_grpc_stream_cancel(struct td_grpc_stream *s)
{
    if (s->reset)
        return;
    s->reset = true;
    s->ended = true;
    td_grpc_stream_drop_input(s);
    nghttp2_submit_rst_stream(s->conn->session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_CANCEL);
    td_grpc_note_output(s->conn);
}
