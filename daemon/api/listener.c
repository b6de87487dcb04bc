#include "daemon/api/listener.h"

#include "daemon/log.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BACKLOG = 511, RETRY_MS = 100 };

struct td_listener {
    uv_tcp_t tcp;
    uv_timer_t retry; /* libuv hears of no other connection until the one at hand is accepted */
    int n_handles;    /* open */
    struct td_conn_pool *pool;
    struct td_conn_service service;
    uint16_t port;
    bool is_loopback;
    char address[INET6_ADDRSTRLEN + 10];
};

static void on_closed(uv_handle_t *handle)
{
    struct td_listener *l = handle->data;
    if (--l->n_handles == 0) {
        free(l);
    }
}

static void on_retry(uv_timer_t *timer);

static void on_connection(uv_stream_t *server, int status)
{
    struct td_listener *l = server->data;
    struct td_err err = {0};
    if (status == 0) {
        if (td_conn_accept(l->pool, &l->service, server, &err) == TD_NO_MEMORY) {
            uv_timer_start(&l->retry, on_retry, RETRY_MS, 0);
        }
    } else {
        td_err_set(&err, TD_IO, "%s", uv_strerror(status));
    }
    if (err.status != TD_OK) {
        td_log_warn("accept failed address=%s error=\"%s\"", l->address, err.cause);
    }
}

static void on_retry(uv_timer_t *timer)
{
    struct td_listener *l = timer->data;
    on_connection((uv_stream_t *)&l->tcp, 0);
}

static void describe(struct td_listener *l, const struct sockaddr_storage *addr)
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (addr->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
        uv_ip6_name(in6, host, sizeof(host));
        l->port = ntohs(in6->sin6_port);
        l->is_loopback = IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
        snprintf(l->address, sizeof(l->address), "[%s]:%u", host, (unsigned)l->port);
    } else {
        const struct sockaddr_in *in = (const struct sockaddr_in *)addr;
        uv_ip4_name(in, host, sizeof(host));
        l->port = ntohs(in->sin_port);
        l->is_loopback = (ntohl(in->sin_addr.s_addr) >> 24) == 127;
        snprintf(l->address, sizeof(l->address), "%s:%u", host, (unsigned)l->port);
    }
}

static enum td_status resolve(const char *host, uint16_t port, struct sockaddr_storage *addr,
                              struct td_err *err)
{
    char service[8];
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    snprintf(service, sizeof(service), "%u", (unsigned)port);
    int rc = getaddrinfo(host, service, &hints, &found);
    if (rc != 0) {
        return td_err_set(err, TD_INVALID, "host '%s' is no address of this machine: %s", host,
                          gai_strerror(rc));
    }
    memset(addr, 0, sizeof(*addr));
    memcpy(addr, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return TD_OK;
}

static enum td_status start(struct td_listener *l, const struct td_listener_config *config,
                            const struct sockaddr_storage *addr, struct td_err *err)
{
    int rc = uv_tcp_bind(&l->tcp, (const struct sockaddr *)addr, 0);
    if (rc == 0) {
        rc = uv_listen((uv_stream_t *)&l->tcp, BACKLOG, on_connection);
    }
    struct sockaddr_storage real;
    int len = sizeof(real);
    if (rc == 0) {
        rc = uv_tcp_getsockname(&l->tcp, (struct sockaddr *)&real, &len);
    }
    if (rc == UV_EADDRINUSE) {
        return td_err_set(
            err, TD_IO, "cannot listen on host '%s' port %u: the port is in use by another process",
            config->host, (unsigned)config->port);
    }
    if (rc != 0) {
        return td_err_set(err, TD_IO, "cannot listen on host '%s' port %u: %s", config->host,
                          (unsigned)config->port, uv_strerror(rc));
    }
    describe(l, &real);
    return TD_OK;
}

enum td_status td_listener_open(struct td_conn_pool *pool, uv_loop_t *loop,
                                const struct td_listener_config *config, struct td_listener **l,
                                struct td_err *err)
{
    struct sockaddr_storage addr;
    enum td_status status = resolve(config->host, config->port, &addr, err);
    if (status != TD_OK) {
        return status;
    }
    struct td_listener *listener = calloc(1, sizeof(*listener));
    if (listener == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a listener");
    }
    listener->pool = pool;
    listener->service = config->service;
    int rc = uv_tcp_init(loop, &listener->tcp);
    if (rc != 0) {
        free(listener);
        return td_err_set(err, TD_IO, "no socket: %s", uv_strerror(rc));
    }
    uv_timer_init(loop, &listener->retry);
    listener->tcp.data = listener;
    listener->retry.data = listener;
    listener->n_handles = 2;
    status = start(listener, config, &addr, err);
    if (status != TD_OK) {
        td_listener_close(listener);
        return status;
    }
    *l = listener;
    return TD_OK;
}

uint16_t td_listener_port(const struct td_listener *l)
{
    return l->port;
}

const char *td_listener_address(const struct td_listener *l)
{
    return l->address;
}

bool td_listener_is_loopback(const struct td_listener *l)
{
    return l->is_loopback;
}

void td_listener_close(struct td_listener *l)
{
    if (l != NULL && !uv_is_closing((uv_handle_t *)&l->tcp)) {
        uv_close((uv_handle_t *)&l->tcp, on_closed);
        uv_close((uv_handle_t *)&l->retry, on_closed);
    }
}
