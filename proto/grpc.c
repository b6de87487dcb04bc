#include "proto/grpc_internal.h"

#include <stdlib.h>
#include <string.h>

void td_grpc_limits_default(struct td_grpc_limits *limits)
{
    *limits = (struct td_grpc_limits){
        .max_message_bytes = 16u << 20,
        .max_queued_bytes = 8u << 20,
        .drain_mark_bytes = 64u << 10,
        .max_header_list_bytes = 16u << 10,
        .max_http_body_bytes = 1u << 20,
        .max_streams = 256,
        .window_bytes = 256u << 10,
        .max_resets = 500,
        .max_control_frames = 2000,
        .reset_window_ns = 10000000000u,
        .header_limit_ns = 10000000000u,
        .request_limit_ns = 300000000000u,
        .stall_limit_ns = 30000000000u,
        .keepalive_limit_ns = 20000000000u,
        .drain_limit_ns = 1000000000u,
    };
}

void td_grpc_note_output(struct td_grpc *conn)
{
    if (conn->depth > 0 || conn->output_told || !conn->cb.on_output)
        return;
    conn->output_told = true;
    conn->cb.on_output(conn->user);
}

/* GOAWAY, and the end of the connection once that is written. */
static void calm_down(struct td_grpc *conn)
{
    if (conn->calmed)
        return;
    conn->calmed = true;
    nghttp2_session_terminate_session(conn->session, NGHTTP2_ENHANCE_YOUR_CALM);
    td_grpc_note_output(conn);
}

static void begin_window(struct td_grpc *conn)
{
    if (conn->now_ns - conn->resets_since_ns <= conn->limits.reset_window_ns)
        return;
    conn->resets_since_ns = conn->now_ns;
    conn->n_resets = 0;
    conn->n_control = 0;
}

/* Counts what only a broken or hostile client does often (CVE-2023-44487, CVE-2019-9518 and the
 * like). */
static void count_abuse(struct td_grpc *conn)
{
    begin_window(conn);
    if (++conn->n_resets == conn->limits.max_resets + 1)
        calm_down(conn);
}

/* Counts frames that a client may well send while it is served, a window update or a PING for each of ours, but not by
 * themselves (CVE-2019-9512, CVE-2019-9515). */
static void count_control(struct td_grpc *conn)
{
    begin_window(conn);
    if (++conn->n_control == conn->limits.max_control_frames + 1)
        calm_down(conn);
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user)
{
    struct td_grpc *conn = user;
    (void)session;
    if (!conn->is_server)
        return 0;
    bool is_ack = (hd->type == NGHTTP2_PING || hd->type == NGHTTP2_SETTINGS) &&
                  (hd->flags & NGHTTP2_FLAG_ACK);
    if (hd->type != NGHTTP2_DATA && hd->type != NGHTTP2_HEADERS && hd->type != NGHTTP2_RST_STREAM &&
        !is_ack)
        count_control(conn);
    return 0;
}

static void last_goaway(struct td_grpc *conn)
{
    if (conn->drained)
        return;
    conn->drained = true;
    nghttp2_submit_goaway(conn->session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(conn->session), NGHTTP2_NO_ERROR,
                          NULL, 0);
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct td_grpc *conn = user;
    if (!conn->is_server || frame->hd.type != NGHTTP2_HEADERS ||
        frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    struct td_grpc_stream *s = td_grpc_stream_new(conn, frame->hd.stream_id);
    if (!s)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    s->begun_ns = conn->now_ns;
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, s);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t n_name, const uint8_t *value, size_t n_value, uint8_t flags, void *user)
{
    (void)flags;
    (void)user;
    struct td_grpc_stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!s || frame->hd.type != NGHTTP2_HEADERS || s->meta_status)
        return 0;
    s->meta_status = td_grpc_meta_add(&s->meta, (struct td_str){(const char *)name, n_name},
                                      (struct td_str){(const char *)value, n_value}, &s->meta_err);
    return 0;
}

static int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                         size_t n, void *user)
{
    (void)flags;
    (void)user;
    /* Only a stream's own window pushes back; one slow call must not stop the others. */
    nghttp2_session_consume_connection(session, n);
    struct td_grpc_stream *s = nghttp2_session_get_stream_user_data(session, id);
    if (s)
        td_grpc_stream_take(s, (struct td_str){(const char *)data, n});
    else
        nghttp2_session_consume_stream(session, id, n);
    return 0;
}

static void on_headers_frame(struct td_grpc *conn, struct td_grpc_stream *s,
                             const nghttp2_frame *frame)
{
    bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    if (!conn->is_server)
        td_grpc_client_headers(s, end);
    else if (s->kind == TD_GRPC_KIND_NEW)
        td_grpc_server_begin(s);
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct td_grpc *conn = user;
    struct td_grpc_stream *s =
        frame->hd.stream_id ? nghttp2_session_get_stream_user_data(session, frame->hd.stream_id)
                            : NULL;
    bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
    case NGHTTP2_DATA:
        if (frame->hd.type == NGHTTP2_DATA && frame->hd.length == 0 && !end)
            count_abuse(conn);
        if (!s)
            break;
        if (frame->hd.type == NGHTTP2_HEADERS)
            on_headers_frame(conn, s, frame);
        if (end && !s->remote_ended) {
            s->remote_ended = true;
            if (conn->is_server)
                td_grpc_server_end(s);
            else if (!s->ended)
                td_grpc_stream_cancel(s);
        }
        break;
    case NGHTTP2_RST_STREAM:
        if (conn->is_server)
            count_abuse(conn);
        break;
    case NGHTTP2_PING:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) && conn->draining &&
            frame->ping.opaque_data[0] == 'd')
            last_goaway(conn);
        break;
    default:
        break;
    }
    return 0;
}

static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct td_grpc *conn = user;
    if (!conn->is_server)
        return 0;
    if (frame->hd.type == NGHTTP2_RST_STREAM && frame->rst_stream.error_code != NGHTTP2_NO_ERROR &&
        frame->rst_stream.error_code != NGHTTP2_CANCEL)
        count_abuse(conn); /* The peer made us reset (CVE-2025-8671). */
    if (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA)
        conn->n_control = conn->n_control > 4 ? conn->n_control - 4 : 0;
    if ((frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) ||
        !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0;
    struct td_grpc_stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!s)
        return 0;
    s->sent_end = true;
    /* A complete answer before the end of the request: ask the client to stop sending (RFC 9113
     * 8.1). */
    if (nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                  NGHTTP2_NO_ERROR);
    return 0;
}

static int on_stream_closed(nghttp2_session *session, int32_t id, uint32_t error_code, void *user)
{
    struct td_grpc *conn = user;
    struct td_grpc_stream *s = nghttp2_session_get_stream_user_data(session, id);
    if (!s)
        return 0;
    if (conn->is_server)
        td_grpc_server_closed(s);
    else
        td_grpc_client_closed(s, false, error_code);
    nghttp2_session_set_stream_user_data(session, id, NULL);
    td_grpc_stream_free(s);
    return 0;
}

static enum td_status open_session(struct td_grpc *conn, struct td_err *err)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    int rc = nghttp2_session_callbacks_new(&callbacks);
    if (rc == 0)
        rc = nghttp2_option_new(&option);
    if (rc == 0) {
        nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_closed);
        nghttp2_option_set_no_auto_window_update(option, 1);
        nghttp2_option_set_no_closed_streams(option, 1);
        /* gRPC lets metadata begin or end with a space, RFC 9113 8.2.1 does not. */
        nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(option, 1);
        rc = conn->is_server ? nghttp2_session_server_new2(&conn->session, callbacks, conn, option)
                             : nghttp2_session_client_new2(&conn->session, callbacks, conn, option);
    }
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    if (rc)
        return td_err_set(err, TD_NO_MEMORY, "open an HTTP/2 session: %s", nghttp2_strerror(rc));
    uint32_t list_bytes = conn->limits.max_header_list_bytes > UINT32_MAX
                              ? UINT32_MAX
                              : (uint32_t)conn->limits.max_header_list_bytes;
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, conn->limits.window_bytes},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, list_bytes},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, conn->is_server ? conn->limits.max_streams : 0},
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
    rc = nghttp2_submit_settings(conn->session, NGHTTP2_FLAG_NONE, settings,
                                 conn->is_server ? 3 : 4);
    int32_t conn_window =
        conn->limits.window_bytes > (1 << 28) ? 1 << 30 : (int32_t)conn->limits.window_bytes * 4;
    if (rc == 0)
        rc = nghttp2_session_set_local_window_size(conn->session, NGHTTP2_FLAG_NONE, 0,
                                                   conn_window < 65535 ? 65535 : conn_window);
    if (rc)
        return td_err_set(err, rc == NGHTTP2_ERR_NOMEM ? TD_NO_MEMORY : TD_INVALID,
                          "HTTP/2 settings with a window of %u bytes: %s",
                          (unsigned)conn->limits.window_bytes, nghttp2_strerror(rc));
    return TD_OK;
}

enum td_status td_grpc_open(bool is_server, const struct td_grpc_callbacks *callbacks,
                            const struct td_grpc_limits *limits, void *user, struct td_grpc **conn,
                            struct td_err *err)
{
    struct td_grpc *c = calloc(1, sizeof *c);
    if (!c)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a gRPC connection");
    c->cb = *callbacks;
    c->user = user;
    c->is_server = is_server;
    if (limits)
        c->limits = *limits;
    else
        td_grpc_limits_default(&c->limits);
    enum td_status st = open_session(c, err);
    if (st) {
        nghttp2_session_del(c->session);
        free(c);
        return st;
    }
    *conn = c;
    return TD_OK;
}

void td_grpc_close(struct td_grpc *conn)
{
    if (!conn)
        return;
    conn->depth++;
    while (conn->streams) {
        struct td_grpc_stream *s = conn->streams;
        if (conn->is_server)
            td_grpc_server_closed(s);
        else
            td_grpc_client_closed(s, true, 0);
        td_grpc_stream_free(s);
    }
    nghttp2_session_del(conn->session);
    free(conn);
}

static void call_on_drain(struct td_grpc *conn)
{
    for (struct td_grpc_stream *s = conn->streams; s && conn->n_want_drain; s = s->next) {
        if (!s->want_drain)
            continue;
        s->want_drain = false;
        conn->n_want_drain--;
        if (conn->cb.on_drain && s->accepted && !s->ended)
            conn->cb.on_drain(conn->user, s);
    }
}

enum td_status td_grpc_feed(struct td_grpc *conn, uint64_t now_ns, const void *data, size_t n_bytes,
                            struct td_err *err)
{
    conn->now_ns = now_ns;
    if (n_bytes) {
        conn->heard_ns = now_ns;
        conn->ping_sent_ns = 0;
    }
    if (conn->broken)
        return td_err_set(err, TD_PEER_PROTOCOL, "the HTTP/2 connection is already broken");
    if (conn->calmed)
        return TD_OK;
    conn->depth++;
    ssize_t n = nghttp2_session_mem_recv(conn->session, data, n_bytes);
    conn->depth--;
    if (n < 0) {
        /* nghttp2's own limits: on frames of one header block (CVE-2024-27316), unread answers to PING and SETTINGS, and
         * settings in a frame. They say no GOAWAY by themselves. */
        if (n == NGHTTP2_ERR_TOO_MANY_CONTINUATIONS || n == NGHTTP2_ERR_FLOODED ||
            n == NGHTTP2_ERR_TOO_MANY_SETTINGS) {
            calm_down(conn);
            return TD_OK;
        }
        conn->broken = true;
        enum td_status st = n == NGHTTP2_ERR_NOMEM ? TD_NO_MEMORY : TD_PEER_PROTOCOL;
        return td_err_set(err, st, "HTTP/2: %s", nghttp2_strerror((int)n));
    }
    return TD_OK;
}

size_t td_grpc_pull(struct td_grpc *conn, void *out, size_t cap)
{
    size_t total = 0;
    conn->output_told = false;
    conn->depth++;
    while (total < cap) {
        if (conn->n_pending == 0) {
            if (conn->broken)
                break;
            ssize_t n = nghttp2_session_mem_send(conn->session, &conn->pending);
            if (n < 0)
                conn->broken = true;
            else
                conn->n_pending = (size_t)n;
            if (conn->n_want_drain)
                call_on_drain(conn);
            if (n <= 0)
                break;
        }
        size_t n = conn->n_pending < cap - total ? conn->n_pending : cap - total;
        memcpy((char *)out + total, conn->pending, n);
        conn->pending += n;
        conn->n_pending -= n;
        total += n;
    }
    conn->depth--;
    return total;
}

bool td_grpc_wants_write(const struct td_grpc *conn)
{
    return conn->n_pending > 0 || (!conn->broken && nghttp2_session_want_write(conn->session));
}

bool td_grpc_wants_close(const struct td_grpc *conn)
{
    if (conn->silent)
        return true;
    if (conn->n_pending > 0)
        return false;
    return conn->broken || (!nghttp2_session_want_read(conn->session) &&
                            !nghttp2_session_want_write(conn->session));
}

void td_grpc_drain(struct td_grpc *conn)
{
    if (conn->draining || conn->broken)
        return;
    conn->draining = true;
    conn->drain_sent_ns = conn->now_ns;
    if (conn->is_server) {
        /* Calls that are on their way are still taken; the PING's answer tells that they have
         * come. */
        nghttp2_submit_shutdown_notice(conn->session);
        nghttp2_submit_ping(conn->session, NGHTTP2_FLAG_NONE, (const uint8_t *)"drain...");
    } else {
        last_goaway(conn);
    }
    td_grpc_note_output(conn);
}

static bool is_over(uint64_t now_ns, uint64_t since_ns, uint64_t limit_ns)
{
    return limit_ns > 0 && now_ns > since_ns && now_ns - since_ns >= limit_ns;
}

/* A client that takes its time: with the headers, with the rest of a request that is waited for, or with the answer. */
static void tick_request(struct td_grpc_stream *s)
{
    struct td_grpc *conn = s->conn;
    const struct td_grpc_limits *l = &conn->limits;
    bool is_waited_for =
        (s->kind == TD_GRPC_KIND_HTTP || s->unary) && !s->remote_ended && !s->ended;
    if (s->begun_ns == 0)
        s->begun_ns = conn->now_ns; /* it came before the first tick told the time */
    if (s->kind == TD_GRPC_KIND_NEW) {
        if (is_over(conn->now_ns, s->begun_ns, l->header_limit_ns))
            calm_down(conn); /* no other stream can send until its headers are whole */
    } else if (is_waited_for && is_over(conn->now_ns, s->begun_ns, l->request_limit_ns)) {
        td_grpc_server_late(s);
    } else if (td_grpc_stream_queued_bytes(s) == 0 || s->moved_ns == 0) {
        s->moved_ns = conn->now_ns;
    } else if (is_over(conn->now_ns, s->moved_ns, l->stall_limit_ns)) {
        td_grpc_stream_cancel(s);
    }
}

void td_grpc_tick(struct td_grpc *conn, uint64_t now_ns)
{
    conn->now_ns = now_ns;
    if (conn->heard_ns == 0)
        conn->heard_ns = now_ns;
    if (conn->broken)
        return;
    conn->depth++;
    for (struct td_grpc_stream *s = conn->streams; s; s = s->next) {
        if (conn->is_server)
            tick_request(s);
        if (!s->deadline_ns || now_ns < s->deadline_ns)
            continue;
        s->deadline_ns = 0;
        if (conn->is_server)
            td_grpc_server_expire(s);
        else
            td_grpc_client_expire(s);
    }
    if (conn->draining && !conn->drained &&
        now_ns - conn->drain_sent_ns >= conn->limits.drain_limit_ns)
        last_goaway(conn);
    if (conn->limits.keepalive_ns) {
        if (conn->ping_sent_ns) {
            conn->silent = now_ns - conn->ping_sent_ns >= conn->limits.keepalive_limit_ns;
        } else if (now_ns - conn->heard_ns >= conn->limits.keepalive_ns) {
            nghttp2_submit_ping(conn->session, NGHTTP2_FLAG_NONE, (const uint8_t *)"keep....");
            conn->ping_sent_ns = now_ns;
        }
    }
    conn->depth--;
}

static uint64_t earlier(uint64_t a, uint64_t base_ns, uint64_t after_ns)
{
    uint64_t b = after_ns > UINT64_MAX - base_ns ? UINT64_MAX : base_ns + after_ns;
    return a < b ? a : b;
}

uint64_t td_grpc_next_tick_ns(const struct td_grpc *conn)
{
    uint64_t next = UINT64_MAX;
    for (const struct td_grpc_stream *s = conn->streams; s; s = s->next)
        if (s->deadline_ns && s->deadline_ns < next)
            next = s->deadline_ns;
    if (conn->draining && !conn->drained)
        next = earlier(next, conn->drain_sent_ns, conn->limits.drain_limit_ns);
    if (conn->limits.keepalive_ns && conn->ping_sent_ns)
        next = earlier(next, conn->ping_sent_ns, conn->limits.keepalive_limit_ns);
    else if (conn->limits.keepalive_ns)
        next = earlier(next, conn->heard_ns, conn->limits.keepalive_ns);
    return next;
}

void *td_grpc_user(const struct td_grpc *conn)
{
    return conn->user;
}

size_t td_grpc_n_streams(const struct td_grpc *conn)
{
    return conn->n_streams;
}
