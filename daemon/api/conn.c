#include "daemon/api/conn.h"

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
    READ_BYTES = 64 * 1024,
    PLAIN_BYTES = 16 * 1024, /* one TLS record */
    EXTRA_CONNECTIONS = 32,  /* over the cap, only to tell them so */
    LINGER_BYTES = 1 << 20,  /* dropped input after which a lingering connection is closed */
    TLS_HANDSHAKE_RECORD = 0x16
};

static const char h2_preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"; /* RFC 9113 3.4 */

enum state {
    SNIFF = 0, /* the first bytes are awaited */
    OPEN,      /* a protocol is on top */
    LINGER,    /* the queue is written, then input is dropped until the peer closes */
    CLOSED     /* uv_close was called */
};

struct td_conn {
    uv_tcp_t tcp;
    uv_write_t write_req;
    uv_shutdown_t shutdown_req;
    struct td_conn_pool *pool;
    struct td_conn_service service; /* a copy: a listener may close before its connections */
    struct td_conn *prev;
    struct td_conn *next;
    struct td_conn *next_dirty; /* list of connections with something to flush */
    bool is_dirty;
    enum state state;
    bool reading;
    bool writing;       /* write_req is under way with `inflight` */
    bool peer_closed;   /* EOF was read */
    bool shutdown_sent; /* LINGER: the queue is written */
    bool was_full;      /* the queue passed its cap since ops->drained */
    struct td_tls_session *tls;
    bool first_byte_seen;
    bool needs_tls; /* plaintext came to a port that refuses it */
    char sniffed[sizeof(h2_preface)];
    size_t n_sniffed;
    struct td_bytes out;      /* for the socket, not yet handed to it */
    struct td_bytes inflight; /* borrowed by write_req while `writing` */
    const struct td_conn_ops *ops;
    void *upper;
    uint64_t deadline_ms;  /* SNIFF, LINGER */
    uint64_t progress_ms;  /* while `writing`: when the peer was last seen to take a byte */
    size_t progress_bytes; /* of `inflight` that were unsent then */
    size_t lingered_bytes;
    char remote[INET6_ADDRSTRLEN + 10];
};

struct td_conn_pool {
    uv_loop_t *loop;
    struct td_conn_config config;
    uv_timer_t timer;
    uv_idle_t idle;
    unsigned n_handles; /* of the pool itself, until closed */
    struct td_conn *first;
    struct td_conn *dirty;
    size_t n_conns;
    size_t buffered_bytes;
    uint64_t tick_ms;
    uint64_t refused_log_ms; /* when the last refusal was logged */
    bool draining;
    bool closing;
    td_conn_done_fn done;
    void *done_user;
    char read_buf[READ_BYTES]; /* one read is dealt with before the next begins */
    char plain_buf[PLAIN_BYTES];
};

void td_conn_config_default(struct td_conn_config *config)
{
    *config = (struct td_conn_config){
        .max_connections = 1024,
        .header_timeout_ms = 10000,
        .body_idle_ms = 30000,
        .body_total_ms = 300000,
        .idle_timeout_ms = 75000,
        .write_stall_ms = 30000,
        .linger_ms = 2000,
        .ping_ms = 15000,
        .write_queue_bytes = 256 * 1024,
        .sndbuf_bytes = 128 * 1024,
        .max_header_bytes = 32 * 1024,
        .max_body_bytes = (size_t)32 << 20,
        .max_buffered_bytes = (size_t)256 << 20,
        .cors_origin = NULL,
    };
}

/* ---- Closing ---- */

static void maybe_free_pool(struct td_conn_pool *pool)
{
    if (!pool->closing || pool->n_conns > 0 || pool->n_handles > 0) {
        return;
    }
    td_conn_done_fn done = pool->done;
    void *user = pool->done_user;
    free(pool);
    if (done != NULL) {
        done(user);
    }
}

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
    free(c);
    pool->n_conns--;
    if (pool->n_conns == 0 && !pool->closing) {
        uv_timer_stop(&pool->timer); /* an idle server does not wake up */
    }
    maybe_free_pool(pool);
}

void td_conn_abort(struct td_conn *c)
{
    if (c->state != CLOSED) {
        c->state = CLOSED;
        uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
    }
}

/* ---- Writing ---- */

static void on_flush_idle(uv_idle_t *handle);

static void mark_dirty(struct td_conn *c)
{
    if (c->state == CLOSED || c->is_dirty) {
        return;
    }
    struct td_conn_pool *pool = c->pool;
    if (pool->dirty == NULL && !pool->closing) {
        uv_idle_start(&pool->idle, on_flush_idle);
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
        enum td_status status = td_bytes_reserve(&c->out, PLAIN_BYTES + 512);
        if (status != TD_OK) {
            return status;
        }
        size_t n = td_tls_session_pull(c->tls, c->out.data + c->out.len, PLAIN_BYTES + 512);
        if (n == 0) {
            return TD_OK;
        }
        c->out.len += n;
    }
}

enum td_status td_conn_write(struct td_conn *c, const void *data, size_t n_bytes)
{
    if (c->state == CLOSED || c->state == LINGER) {
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
    if (c->state != LINGER || c->shutdown_sent) {
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
    if (c->was_full && c->state == OPEN &&
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
    if (c->state == CLOSED) {
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
    if (c->state == OPEN && c->ops->flush != NULL) {
        c->ops->flush(c->upper);
    }
    if (c->state == CLOSED) {
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
    if (c->state != CLOSED && !c->writing && c->out.len == 0) {
        if (c->out.cap > READ_BYTES) {
            td_bytes_deinit(&c->out); /* a large response does not stay with an idle connection */
        }
        after_flush(c);
    }
}

static void on_flush_idle(uv_idle_t *handle)
{
    struct td_conn_pool *pool = handle->data;
    struct td_conn *c = pool->dirty;
    pool->dirty = NULL; /* what becomes dirty from here on waits for the next turn */
    uv_idle_stop(&pool->idle);
    while (c != NULL) {
        struct td_conn *next = c->next_dirty;
        c->is_dirty = false;
        c->next_dirty = NULL;
        if (c->state != CLOSED) {
            flush(c);
        }
        c = next;
    }
}

void td_conn_finish(struct td_conn *c)
{
    if (c->state == CLOSED || c->state == LINGER) {
        return;
    }
    if (c->tls != NULL) {
        td_tls_session_shutdown(c->tls);
        if (pull_ciphertext(c) != TD_OK) {
            td_conn_abort(c);
            return;
        }
    }
    c->state = LINGER;
    c->deadline_ms = UINT64_MAX; /* until the queue is written, the stall limit watches */
    td_conn_resume(c);
    mark_dirty(c);
}

/* ---- Reading ---- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)suggested;
    struct td_conn *c = handle->data;
    *buf = uv_buf_init(c->pool->read_buf, READ_BYTES);
}

/* Writes a whole response without a protocol on top, then closes. */
static void refuse(struct td_conn *c, const char *status_line, const char *message)
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
            refuse(c, "400 Bad Request",
                   "{\"error\":{\"message\":\"This port speaks TLS: use https.\",\"type\":"
                   "\"invalid_request_error\",\"param\":null,\"code\":\"tls_required\"}}");
        }
        return;
    }
    if (is_h2 ? s->rpc == NULL : s->routes == NULL) {
        if (is_h2) {
            td_conn_abort(c);
        } else {
            refuse(c, "404 Not Found",
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
    c->state = OPEN;
}

/* Plain bytes: of the socket, or out of TLS. */
static void deliver(struct td_conn *c, const char *data, size_t n)
{
    if (c->state == SNIFF) {
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
        if (c->state == OPEN) {
            c->ops->data(c->upper, c->sniffed, c->n_sniffed);
        }
    }
    if (c->state == OPEN && n > 0) {
        c->ops->data(c->upper, data, n);
    } else if (c->state == LINGER) {
        c->lingered_bytes += n;
        if (c->lingered_bytes > LINGER_BYTES) {
            td_conn_abort(c);
        }
    }
}

static void handle_eof(struct td_conn *c)
{
    c->peer_closed = true;
    if (c->state == OPEN) {
        c->ops->eof(c->upper);
    } else if (c->state == SNIFF || (c->state == LINGER && c->shutdown_sent)) {
        td_conn_abort(c);
    }
}

static void deliver_tls(struct td_conn *c, const char *data, size_t n)
{
    struct td_err err = {0};
    enum td_status status = td_tls_session_feed(c->tls, data, n, &err);
    bool closed = false;
    while (status == TD_OK && c->state != CLOSED) {
        size_t n_plain = 0;
        status =
            td_tls_session_read(c->tls, c->pool->plain_buf, PLAIN_BYTES, &n_plain, &closed, &err);
        if (status != TD_OK || n_plain == 0) {
            break;
        }
        deliver(c, c->pool->plain_buf, n_plain);
    }
    if (c->state == CLOSED) {
        return;
    }
    if (pull_ciphertext(c) != TD_OK) { /* of the handshake, or an alert */
        td_conn_abort(c);
        return;
    }
    mark_dirty(c);
    if (status != TD_OK) {
        td_log_debug("connection failed remote=%s error=\"%s\"", c->remote, err.cause);
        if (c->state == OPEN) {
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
    if (n_read == 0 || c->state == CLOSED) {
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
        if (c->state != CLOSED) {
            flush(c);
        }
        return;
    }
    size_t n = (size_t)n_read;
    if (c->state != LINGER && !c->first_byte_seen && !choose_tls(c, buf->base[0])) {
        return;
    }
    if (c->tls != NULL && c->state != LINGER) {
        deliver_tls(c, buf->base, n);
    } else {
        deliver(c, buf->base, n);
    }
    if (c->state != CLOSED) {
        flush(c);
    }
}

void td_conn_pause(struct td_conn *c)
{
    if (c->reading && c->state == OPEN) {
        uv_read_stop((uv_stream_t *)&c->tcp);
        c->reading = false;
    }
}

void td_conn_resume(struct td_conn *c)
{
    if (!c->reading && !c->peer_closed && c->state != CLOSED) {
        if (uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read) != 0) {
            td_conn_abort(c);
            return;
        }
        c->reading = true;
    }
}

/* ---- Deadlines ---- */

static void tick_conn(struct td_conn *c, uint64_t now)
{
    const struct td_conn_config *config = &c->pool->config;
    if (c->writing) {
        size_t unsent = uv_stream_get_write_queue_size((const uv_stream_t *)&c->tcp);
        if (unsent < c->progress_bytes) {
            c->progress_bytes = unsent;
            c->progress_ms = now;
        } else if (now >= c->progress_ms + config->write_stall_ms) {
            td_log_debug("connection closed remote=%s error=\"the peer reads nothing\"", c->remote);
            td_conn_abort(c);
            return;
        }
    }
    if ((c->state == SNIFF || c->state == LINGER) && now >= c->deadline_ms) {
        td_conn_abort(c);
    } else if (c->state == OPEN) {
        c->ops->tick(c->upper, now);
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct td_conn_pool *pool = timer->data;
    uint64_t now = uv_now(pool->loop);
    for (struct td_conn *c = pool->first, *next; c != NULL; c = next) {
        next = c->next; /* connections are unlinked in their close callback, never from here */
        if (c->state != CLOSED) {
            tick_conn(c, now);
        }
    }
}

/* ---- The pool ---- */

enum td_status td_conn_pool_open(uv_loop_t *loop, const struct td_conn_config *config,
                                 struct td_conn_pool **pool, struct td_err *err)
{
    struct td_conn_pool *p = calloc(1, sizeof(*p));
    if (p == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the connection pool");
    }
    p->loop = loop;
    p->config = *config;
    uint32_t shortest = 4000;
    const uint32_t timeouts[] = {config->header_timeout_ms,
                                 config->body_idle_ms,
                                 config->body_total_ms,
                                 config->idle_timeout_ms,
                                 config->write_stall_ms,
                                 config->linger_ms,
                                 config->ping_ms};
    for (size_t i = 0; i < sizeof(timeouts) / sizeof(timeouts[0]); i++) {
        shortest = timeouts[i] < shortest ? timeouts[i] : shortest;
    }
    p->tick_ms = shortest / 4 > 10 ? shortest / 4 : 10;
    uv_timer_init(loop, &p->timer); /* neither of the two can fail */
    uv_idle_init(loop, &p->idle);
    p->timer.data = p;
    p->idle.data = p;
    p->n_handles = 2;
    *pool = p;
    return TD_OK;
}

size_t td_conn_pool_count(const struct td_conn_pool *pool)
{
    return pool->n_conns;
}

void td_conn_pool_drain(struct td_conn_pool *pool)
{
    pool->draining = true;
    for (struct td_conn *c = pool->first; c != NULL; c = c->next) {
        if (c->state == OPEN) {
            c->ops->drain(c->upper);
        } else if (c->state == SNIFF) {
            td_conn_abort(c);
        }
    }
}

static void on_pool_handle_closed(uv_handle_t *handle)
{
    struct td_conn_pool *pool = handle->data;
    pool->n_handles--;
    maybe_free_pool(pool);
}

void td_conn_pool_close(struct td_conn_pool *pool, td_conn_done_fn done, void *user)
{
    if (pool == NULL || pool->closing) {
        return;
    }
    pool->closing = true;
    pool->done = done;
    pool->done_user = user;
    for (struct td_conn *c = pool->first; c != NULL; c = c->next) {
        td_conn_abort(c);
    }
    uv_close((uv_handle_t *)&pool->timer, on_pool_handle_closed);
    uv_close((uv_handle_t *)&pool->idle, on_pool_handle_closed);
}

static void name_remote(struct td_conn *c)
{
    struct sockaddr_storage addr;
    int len = sizeof(addr);
    char host[INET6_ADDRSTRLEN] = "?";
    unsigned port = 0;
    if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&addr, &len) == 0) {
        if (addr.ss_family == AF_INET6) {
            const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&addr;
            uv_ip6_name(in6, host, sizeof(host));
            port = ntohs(in6->sin6_port);
            snprintf(c->remote, sizeof(c->remote), "[%s]:%u", host, port);
            return;
        }
        const struct sockaddr_in *in = (const struct sockaddr_in *)&addr;
        uv_ip4_name(in, host, sizeof(host));
        port = ntohs(in->sin_port);
    }
    snprintf(c->remote, sizeof(c->remote), "%s:%u", host, port);
}

/* All of these only sharpen limits that hold without them, so a refusal by the system is no error. */
static void set_socket_options(struct td_conn *c)
{
    uv_os_fd_t fd;
    uv_tcp_nodelay(&c->tcp, 1);
    if (uv_fileno((const uv_handle_t *)&c->tcp, &fd) == 0) {
        unsigned timeout_ms = c->pool->config.write_stall_ms;
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms));
        int size = c->pool->config.sndbuf_bytes;
        if (size > 0) {
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        }
    }
    uv_tcp_keepalive(&c->tcp, 1, 60); /* finds a peer that vanished without a word */
}

static void refuse_over_cap(struct td_conn *c, bool can_tell)
{
    struct td_conn_pool *pool = c->pool;
    uint64_t now = uv_now(pool->loop);
    if (pool->refused_log_ms == 0 || now >= pool->refused_log_ms + 10000) {
        pool->refused_log_ms = now;
        td_log_warn("connections at their cap, new ones are refused max_connections=%u",
                    pool->config.max_connections);
    }
    if (can_tell) {
        refuse(c, "503 Service Unavailable",
               "{\"error\":{\"message\":\"Too many connections: try again later.\",\"type\":"
               "\"service_unavailable_error\",\"param\":null,\"code\":\"too_many_connections\"}}");
    } else {
        td_conn_abort(c);
    }
}

enum td_status td_conn_accept(struct td_conn_pool *pool, const struct td_conn_service *service,
                              uv_stream_t *server, struct td_err *err)
{
    struct td_conn *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a connection");
    }
    uv_tcp_init(pool->loop, &c->tcp);
    c->tcp.data = c;
    c->pool = pool;
    c->service = *service;
    c->next = pool->first;
    if (pool->first != NULL) {
        pool->first->prev = c;
    }
    pool->first = c;
    pool->n_conns++;
    if (pool->n_conns == 1) {
        uv_timer_start(&pool->timer, on_tick, pool->tick_ms, pool->tick_ms);
    }
    int rc = uv_accept(server, (uv_stream_t *)&c->tcp);
    if (rc != 0) {
        td_conn_abort(c);
        return td_err_set(err, TD_IO, "accept: %s", uv_strerror(rc));
    }
    if (pool->draining || pool->closing) {
        td_conn_abort(c);
        return TD_OK;
    }
    name_remote(c);
    set_socket_options(c);
    c->deadline_ms = uv_now(pool->loop) + pool->config.header_timeout_ms;
    if (pool->n_conns > pool->config.max_connections) {
        bool can_tell = pool->n_conns <= pool->config.max_connections + EXTRA_CONNECTIONS;
        refuse_over_cap(c, can_tell && (service->tls == NULL || service->allow_plaintext));
        return TD_OK;
    }
    td_conn_resume(c);
    return TD_OK;
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
    return c->pool->draining;
}

bool td_conn_is_tls(const struct td_conn *c)
{
    return c->tls != NULL;
}

const char *td_conn_remote(const struct td_conn *c)
{
    return c->remote;
}

bool td_conn_closing(const struct td_conn *c)
{
    return c->state == CLOSED || c->state == LINGER;
}

bool td_conn_reserve_body(struct td_conn *c, size_t n_bytes)
{
    struct td_conn_pool *pool = c->pool;
    if (n_bytes > pool->config.max_buffered_bytes - pool->buffered_bytes) {
        return false;
    }
    pool->buffered_bytes += n_bytes;
    return true;
}

void td_conn_release_body(struct td_conn *c, size_t n_bytes)
{
    c->pool->buffered_bytes -= n_bytes;
}
