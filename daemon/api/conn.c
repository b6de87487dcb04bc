#include "daemon/api/conn_impl.h"

#include "daemon/api/grpc_serve.h"
#include "daemon/api/http1.h"
#include "daemon/api/tls.h"
#include "daemon/log.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    LINGER_BYTES = 1 << 20, /* dropped input after which a lingering connection is closed */
    TLS_HANDSHAKE_RECORD = 0x16
};

static const char h2_preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"; /* RFC 9113 3.4 */

/* ---- Closing ---- */

static void on_conn_closed(uv_handle_t *handle)
{
    struct td_conn *c = handle->data;
    struct td_conn_pool *pool = c->pool;
    if (c->upper != NULL) {
        c->ops->closed(c->upper);
    }
    struct td_conn **link = &pool->dirty;
    while (*link != NULL && *link != c) {
        link = &(*link)->next_dirty;
    }
    if (*link == c) {
        *link = c->next_dirty;
    }
    if (c->prev != NULL) {
        c->prev->next = c->next;
    } else {
        pool->first = c->next;
    }
    if (c->next != NULL) {
        c->next->prev = c->prev;
    }
    td_tls_session_close(c->tls);
    td_bytes_deinit(&c->out);
    td_bytes_deinit(&c->inflight);
    td_conn_pool_forget(pool, c);
    free(c);
    td_conn_pool_maybe_free(pool);
}

void td_conn_abort(struct td_conn *c)
{
    if (c->state != TD_CONN_CLOSED) {
        c->state = TD_CONN_CLOSED;
        uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
    }
}

/* ---- Writing ---- */

static void mark_dirty(struct td_conn *c)
{
    if (c->state == TD_CONN_CLOSED || c->is_dirty) {
        return;
    }
    struct td_conn_pool *pool = c->pool;
    if (pool->dirty == NULL && !pool->closing) {
        uv_idle_start(&pool->idle, td_conn_on_flush_idle);
    }
    c->is_dirty = true;
    c->next_dirty = pool->dirty;
    pool->dirty = c;
}

void td_conn_want_flush(struct td_conn *c)
{
    mark_dirty(c);
}

void td_conn_want_drained(struct td_conn *c)
{
    c->was_full = true;
    mark_dirty(c);
}

size_t td_conn_queued_bytes(const struct td_conn *c)
{
    return c->out.len +
           (c->writing ? uv_stream_get_write_queue_size((const uv_stream_t *)&c->tcp) : 0);
}

static enum td_status pull_ciphertext(struct td_conn *c)
{
    for (;;) {
        enum td_status status = td_bytes_reserve(&c->out, TD_CONN_PLAIN_BYTES + 512);
        if (status != TD_OK) {
            return status;
        }
        size_t n = td_tls_session_pull(c->tls, c->out.data + c->out.len, TD_CONN_PLAIN_BYTES + 512);
        if (n == 0) {
            return TD_OK;
        }
        c->out.len += n;
    }
}

enum td_status td_conn_write(struct td_conn *c, const void *data, size_t n_bytes)
{
    if (c->state == TD_CONN_CLOSED || c->state == TD_CONN_LINGER) {
        return TD_CANCELLED;
    }
    enum td_status status;
    if (c->tls != NULL) {
        status = td_tls_session_write(c->tls, data, n_bytes, NULL);
        if (status == TD_OK) {
            status = pull_ciphertext(c);
        }
    } else {
        status = td_bytes_append(&c->out, data, n_bytes);
    }
    if (status != TD_OK) {
        td_conn_abort(c);
        return TD_CANCELLED;
    }
    if (td_conn_queued_bytes(c) >= c->pool->config.write_queue_bytes) {
        c->was_full = true;
    }
    mark_dirty(c);
    return TD_OK;
}

static void flush(struct td_conn *c);

static void on_shutdown(uv_shutdown_t *req, int status)
{
    struct td_conn *c = req->data;
    if (status != 0 || c->peer_closed) {
        td_conn_abort(c);
    }
}

/* The queue is empty. */
static void after_flush(struct td_conn *c)
{
    if (c->state != TD_CONN_LINGER || c->shutdown_sent) {
        return;
    }
    if (c->peer_closed) {
        td_conn_abort(c);
        return;
    }
    /* Closing with unread input would reset the connection and take the answer from the peer (RFC 9112 9.6). */
    c->shutdown_sent = true;
    c->deadline_ms = uv_now(c->pool->loop) + c->pool->config.linger_ms;
    c->shutdown_req.data = c;
    if (uv_shutdown(&c->shutdown_req, (uv_stream_t *)&c->tcp, on_shutdown) != 0) {
        td_conn_abort(c);
    }
}

static void notify_drained(struct td_conn *c)
{
    if (c->was_full && c->state == TD_CONN_OPEN &&
        td_conn_queued_bytes(c) <= c->pool->config.write_queue_bytes / 2) {
        c->was_full = false;
        c->ops->drained(c->upper);
    }
}

static void on_written(uv_write_t *req, int status)
{
    struct td_conn *c = req->data;
    c->writing = false;
    td_bytes_clear(&c->inflight);
    if (c->state == TD_CONN_CLOSED) {
        return;
    }
    if (status != 0) {
        td_conn_abort(c);
        return;
    }
    flush(c);
}

/* Hands the queue to the socket: what it takes at once, then the rest as one write. */
static void flush(struct td_conn *c)
{
    if (c->state == TD_CONN_OPEN && c->ops->flush != NULL) {
        c->ops->flush(c->upper);
    }
    if (c->state == TD_CONN_CLOSED) {
        return;
    }
    if (!c->writing && c->out.len > 0) {
        uv_buf_t buf = uv_buf_init(c->out.data, (unsigned)c->out.len);
        int n = uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
        if (n < 0 && n != UV_EAGAIN) {
            td_conn_abort(c);
            return;
        }
        if (n > 0) {
            td_bytes_consume(&c->out, (size_t)n);
        }
        if (c->out.len > 0) {
            struct td_bytes swap = c->inflight;
            c->inflight = c->out;
            c->out = swap;
            buf = uv_buf_init(c->inflight.data, (unsigned)c->inflight.len);
            c->write_req.data = c;
            if (uv_write(&c->write_req, (uv_stream_t *)&c->tcp, &buf, 1, on_written) != 0) {
                td_conn_abort(c);
                return;
            }
            c->writing = true;
            c->progress_ms = uv_now(c->pool->loop);
            c->progress_bytes = c->inflight.len;
        }
    }
    notify_drained(c);
    if (c->state != TD_CONN_CLOSED && !c->writing && c->out.len == 0) {
        if (c->out.cap > TD_CONN_KEPT_BYTES) {
            td_bytes_deinit(&c->out); /* a large response does not stay with an idle connection */
        }
        if (c->inflight.cap > TD_CONN_KEPT_BYTES) {
            td_bytes_deinit(&c->inflight);
        }
        after_flush(c);
    }
}

void td_conn_on_flush_idle(uv_idle_t *handle)
{
    struct td_conn_pool *pool = handle->data;
    struct td_conn *c = pool->dirty;
    pool->dirty = NULL; /* what becomes dirty from here on waits for the next turn */
    uv_idle_stop(&pool->idle);
    while (c != NULL) {
        struct td_conn *next = c->next_dirty;
        c->is_dirty = false;
        c->next_dirty = NULL;
        if (c->state != TD_CONN_CLOSED) {
            flush(c);
        }
        c = next;
    }
}

void td_conn_finish(struct td_conn *c)
{
    if (c->state == TD_CONN_CLOSED || c->state == TD_CONN_LINGER) {
        return;
    }
    if (c->tls != NULL) {
        td_tls_session_shutdown(c->tls);
        if (pull_ciphertext(c) != TD_OK) {
            td_conn_abort(c);
            return;
        }
    }
    c->state = TD_CONN_LINGER;
    c->deadline_ms = UINT64_MAX; /* until the queue is written, the stall limit watches */
    td_conn_resume(c);
    mark_dirty(c);
}

/* ---- Reading ---- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)suggested;
    struct td_conn *c = handle->data;
    *buf = uv_buf_init(c->pool->read_buf, TD_CONN_READ_BYTES);
}

void td_conn_refuse(struct td_conn *c, const char *status_line, const char *message)
{
    char text[512];
    int n = snprintf(text, sizeof(text),
                     "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                     "Retry-After: 1\r\nConnection: close\r\n\r\n%s",
                     status_line, strlen(message), message);
    td_conn_write(c, text, (size_t)n);
    td_conn_finish(c);
}

static void open_protocol(struct td_conn *c, bool is_h2)
{
    const struct td_conn_service *s = &c->service;
    enum td_status status = TD_OK;
    struct td_err err = {0};
    if (c->needs_tls) {
        if (is_h2) {
            td_conn_abort(c);
        } else {
            td_conn_refuse(c, "400 Bad Request",
                           "{\"error\":{\"message\":\"This port speaks TLS: use https.\",\"type\":"
                           "\"invalid_request_error\",\"param\":null,\"code\":\"tls_required\"}}");
        }
        return;
    }
    if (is_h2 ? s->rpc == NULL : s->routes == NULL) {
        if (is_h2) {
            td_conn_abort(c);
        } else {
            td_conn_refuse(c, "404 Not Found",
                           "{\"error\":{\"message\":\"This port serves gRPC only.\",\"type\":"
                           "\"invalid_request_error\",\"param\":null,\"code\":\"not_found\"}}");
        }
        return;
    }
    status = is_h2 ? td_grpc_serve_conn_open(c, s->rpc, &c->ops, &c->upper, &err)
                   : td_http_conn_open(c, s->routes, &c->ops, &c->upper, &err);
    if (status != TD_OK) {
        td_log_warn("connection refused remote=%s error=\"%s\"", c->remote, err.cause);
        td_conn_abort(c);
        return;
    }
    c->state = TD_CONN_OPEN;
}

/* Plain bytes: of the socket, or out of TLS. */
static void deliver(struct td_conn *c, const char *data, size_t n)
{
    if (c->state == TD_CONN_SNIFF) {
        size_t want = sizeof(h2_preface) - 1;
        size_t take = n < want - c->n_sniffed ? n : want - c->n_sniffed;
        memcpy(c->sniffed + c->n_sniffed, data, take);
        c->n_sniffed += take;
        data += take;
        n -= take;
        /* No HTTP/1.1 method begins with "PRI ", so the first byte that differs decides. */
        bool is_h2 = memcmp(c->sniffed, h2_preface, c->n_sniffed) == 0;
        if (is_h2 && c->n_sniffed < want) {
            return;
        }
        open_protocol(c, is_h2);
        if (c->state == TD_CONN_OPEN) {
            c->ops->data(c->upper, c->sniffed, c->n_sniffed);
        }
    }
    if (c->state == TD_CONN_OPEN && n > 0) {
        c->ops->data(c->upper, data, n);
    } else if (c->state == TD_CONN_LINGER) {
        c->lingered_bytes += n;
        if (c->lingered_bytes > LINGER_BYTES) {
            td_conn_abort(c);
        }
    }
}

static void handle_eof(struct td_conn *c)
{
    c->peer_closed = true;
    if (c->state == TD_CONN_OPEN) {
        c->ops->eof(c->upper);
    } else if (c->state == TD_CONN_SNIFF || (c->state == TD_CONN_LINGER && c->shutdown_sent)) {
        td_conn_abort(c);
    }
}

static void deliver_tls(struct td_conn *c, const char *data, size_t n)
{
    struct td_err err = {0};
    enum td_status status = td_tls_session_feed(c->tls, data, n, &err);
    bool closed = false;
    while (status == TD_OK && c->state != TD_CONN_CLOSED) {
        size_t n_plain = 0;
        status = td_tls_session_read(c->tls, c->pool->plain_buf, TD_CONN_PLAIN_BYTES, &n_plain,
                                     &closed, &err);
        if (status != TD_OK || n_plain == 0) {
            break;
        }
        deliver(c, c->pool->plain_buf, n_plain);
    }
    if (c->state == TD_CONN_CLOSED) {
        return;
    }
    if (pull_ciphertext(c) != TD_OK) { /* of the handshake, or an alert */
        td_conn_abort(c);
        return;
    }
    mark_dirty(c);
    if (status != TD_OK) {
        /* On the workers' listener a refused certificate is for the operator to see. */
        td_log_write(td_tls_is_mutual(c->service.tls) ? TD_LOG_WARN : TD_LOG_DEBUG,
                     "connection failed remote=%s error=\"%s\"", c->remote, err.cause);
        if (c->state == TD_CONN_OPEN) {
            td_conn_abort(c); /* a request may be running: its owner is told */
        } else {
            td_conn_finish(c);
        }
    } else if (closed) {
        handle_eof(c);
    }
}

/* Decides by the first byte of the connection whether TLS is spoken; false when it was refused. */
static bool choose_tls(struct td_conn *c, char first)
{
    const struct td_conn_service *s = &c->service;
    bool wants_tls = first == TLS_HANDSHAKE_RECORD;
    struct td_err err = {0};
    c->first_byte_seen = true;
    if (wants_tls && s->tls != NULL) {
        if (td_tls_session_open(s->tls, &c->tls, &err) != TD_OK) {
            td_log_warn("connection refused remote=%s error=\"%s\"", c->remote, err.cause);
            td_conn_abort(c);
            return false;
        }
        return true;
    }
    if (wants_tls) {
        static const char alert[] = {21, 3, 1, 0,
                                     2,  2, 40}; /* RFC 8446 6: fatal handshake_failure */
        td_conn_write(c, alert, sizeof(alert));
        td_conn_finish(c);
        return false;
    }
    if (s->tls != NULL && !s->allow_plaintext) {
        c->needs_tls = true; /* answered once the protocol is known, see open_protocol */
    }
    return true;
}

static void on_read(uv_stream_t *stream, ssize_t n_read, const uv_buf_t *buf)
{
    struct td_conn *c = stream->data;
    if (n_read == 0 || c->state == TD_CONN_CLOSED) {
        return;
    }
    if (n_read < 0) {
        if (n_read == UV_EOF) {
            uv_read_stop(stream);
            c->reading = false;
            handle_eof(c);
        } else {
            td_conn_abort(c);
        }
        if (c->state != TD_CONN_CLOSED) {
            flush(c);
        }
        return;
    }
    size_t n = (size_t)n_read;
    if (c->state != TD_CONN_LINGER && !c->first_byte_seen && !choose_tls(c, buf->base[0])) {
        return;
    }
    if (c->tls != NULL && c->state != TD_CONN_LINGER) {
        deliver_tls(c, buf->base, n);
    } else {
        deliver(c, buf->base, n);
    }
    if (c->state != TD_CONN_CLOSED) {
        flush(c);
    }
}

void td_conn_pause(struct td_conn *c)
{
    if (c->reading && c->state == TD_CONN_OPEN) {
        uv_read_stop((uv_stream_t *)&c->tcp);
        c->reading = false;
    }
}

void td_conn_resume(struct td_conn *c)
{
    if (!c->reading && !c->peer_closed && c->state != TD_CONN_CLOSED) {
        if (uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read) != 0) {
            td_conn_abort(c);
            return;
        }
        c->reading = true;
    }
}

/* ---- Accessors ---- */

const struct td_conn_config *td_conn_config(const struct td_conn *c)
{
    return &c->pool->config;
}

const struct td_conn_service *td_conn_service(const struct td_conn *c)
{
    return &c->service;
}

uv_loop_t *td_conn_loop(const struct td_conn *c)
{
    return c->pool->loop;
}

uint64_t td_conn_now_ms(const struct td_conn *c)
{
    return uv_now(c->pool->loop);
}

bool td_conn_draining(const struct td_conn *c)
{
    return c->pool->draining || c->pool->retiring;
}

bool td_conn_is_tls(const struct td_conn *c)
{
    return c->tls != NULL;
}

const char *td_conn_remote(const struct td_conn *c)
{
    return c->remote;
}

bool td_conn_is_local(const struct td_conn *c)
{
    return c->is_local;
}

bool td_conn_closing(const struct td_conn *c)
{
    return c->state == TD_CONN_CLOSED || c->state == TD_CONN_LINGER;
}
