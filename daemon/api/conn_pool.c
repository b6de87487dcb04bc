#include "daemon/api/conn_impl.h"

#include "daemon/log.h"

#include <arpa/inet.h>
#include <malloc.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

enum {
    EXTRA_CONNECTIONS = 32, /* over the cap, only to tell them so */
    TRIM_CONNECTIONS =
        256 /* when so many were there and three quarters have gone, memory goes back */
};

void td_conn_config_default(struct td_conn_config *config)
{
    *config = (struct td_conn_config){
        .max_connections = 1024,
        .max_per_address = 0,
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
    if ((c->state == TD_CONN_SNIFF || c->state == TD_CONN_LINGER) && now >= c->deadline_ms) {
        td_conn_abort(c);
    } else if (c->state == TD_CONN_OPEN) {
        c->ops->tick(c->upper, now);
    }
}

/* glibc keeps what was freed; a crowd that has gone leaves no memory with us. */
static void give_memory_back(struct td_conn_pool *pool)
{
    if (pool->n_since_trim >= TRIM_CONNECTIONS && pool->n_conns <= pool->n_since_trim / 4) {
        pool->n_since_trim = pool->n_conns;
        malloc_trim(0);
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct td_conn_pool *pool = timer->data;
    uint64_t now = uv_now(pool->loop);
    give_memory_back(pool);
    for (struct td_conn *c = pool->first, *next; c != NULL; c = next) {
        next = c->next; /* connections are unlinked in their close callback, never from here */
        if (c->state != TD_CONN_CLOSED) {
            tick_conn(c, now);
        }
    }
}

/* ---- The pool ---- */

void td_conn_pool_maybe_free(struct td_conn_pool *pool)
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
    td_addrcount_init(&p->from);
    *pool = p;
    return TD_OK;
}

size_t td_conn_pool_count(const struct td_conn_pool *pool)
{
    return pool->n_conns;
}

void td_conn_pool_retire(struct td_conn_pool *pool)
{
    pool->retiring = true;
}

void td_conn_pool_drain(struct td_conn_pool *pool)
{
    pool->draining = true;
    for (struct td_conn *c = pool->first; c != NULL; c = c->next) {
        if (c->state == TD_CONN_OPEN) {
            c->ops->drain(c->upper);
        } else if (c->state == TD_CONN_SNIFF) {
            td_conn_abort(c);
        }
    }
}

static void on_pool_handle_closed(uv_handle_t *handle)
{
    struct td_conn_pool *pool = handle->data;
    pool->n_handles--;
    td_conn_pool_maybe_free(pool);
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

void td_conn_pool_forget(struct td_conn_pool *pool, struct td_conn *c)
{
    td_addrcount_release(&pool->from, c->from);
    pool->n_capped -= !c->service.is_uncapped;
    pool->n_conns--;
    if (pool->n_conns == 0 && !pool->closing) {
        give_memory_back(pool);
        uv_timer_stop(&pool->timer); /* an idle server does not wake up */
    }
}

/* Notes who is at the other end. */
static void note_remote(struct td_conn *c)
{
    struct sockaddr_storage addr;
    int len = sizeof(addr);
    char host[INET6_ADDRSTRLEN] = "?";
    snprintf(c->remote, sizeof(c->remote), "?");
    if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&addr, &len) != 0) {
        return;
    }
    if (addr.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&addr;
        const unsigned char *bytes = in6->sin6_addr.s6_addr;
        uv_ip6_name(in6, host, sizeof(host));
        snprintf(c->remote, sizeof(c->remote), "[%s]:%u", host, (unsigned)ntohs(in6->sin6_port));
        c->is_local = IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
                      (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && bytes[12] == 127);
    } else {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&addr;
        uv_ip4_name(in, host, sizeof(host));
        snprintf(c->remote, sizeof(c->remote), "%s:%u", host, (unsigned)ntohs(in->sin_port));
        c->is_local = (ntohl(in->sin_addr.s_addr) >> 24) == 127;
    }
    if (!c->service.is_uncapped && c->pool->config.max_per_address > 0) {
        c->from = td_addrcount_add(&c->pool->from, (const struct sockaddr *)&addr);
    }
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

/* Refuses a connection over a cap, of one address or of all. */
static void refuse_over_cap(struct td_conn *c, bool is_address)
{
    struct td_conn_pool *pool = c->pool;
    const struct td_conn_config *config = &pool->config;
    uint64_t now = uv_now(pool->loop);
    bool can_tell = pool->n_capped <= (size_t)config->max_connections + EXTRA_CONNECTIONS &&
                    (c->service.tls == NULL || c->service.allow_plaintext);
    if (pool->refused_log_ms == 0 || now >= pool->refused_log_ms + 10000) {
        pool->refused_log_ms = now;
        if (is_address) {
            td_log_warn("connections of an address at their cap, new ones are refused remote=%s "
                        "max_connections_per_address=%u",
                        c->remote, config->max_per_address);
        } else {
            td_log_warn("connections at their cap, new ones are refused max_connections=%u",
                        config->max_connections);
        }
    }
    if (!can_tell) {
        td_conn_abort(c);
    } else if (is_address) {
        td_conn_refuse(
            c, "429 Too Many Requests",
            "{\"error\":{\"message\":\"Too many connections from this address: close some.\","
            "\"type\":\"rate_limit_error\",\"param\":null,\"code\":\"too_many_connections\"}}");
    } else {
        td_conn_refuse(
            c, "503 Service Unavailable",
            "{\"error\":{\"message\":\"Too many connections: try again later.\",\"type\":"
            "\"service_unavailable_error\",\"param\":null,\"code\":\"too_many_connections\"}}");
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
    if (pool->n_conns > pool->n_since_trim) {
        pool->n_since_trim = pool->n_conns;
    }
    pool->n_capped += !service->is_uncapped;
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
    note_remote(c);
    set_socket_options(c);
    c->deadline_ms = uv_now(pool->loop) + pool->config.header_timeout_ms;
    if (!service->is_uncapped && pool->n_capped > pool->config.max_connections) {
        refuse_over_cap(c, false);
        return TD_OK;
    }
    if (c->from != NULL && td_addrcount_held(c->from) > pool->config.max_per_address) {
        refuse_over_cap(c, true);
        return TD_OK;
    }
    td_conn_resume(c);
    return TD_OK;
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
