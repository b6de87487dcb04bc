/* A server on a thread of its own for tests of the connection layer, and a blocking client of raw bytes.
 * Included by one test file per executable, so everything is static. */
#ifndef TD_TESTS_API_SERVER_H
#define TD_TESTS_API_SERVER_H

#include "daemon/api/http1.h"
#include "daemon/api/listener.h"
#include "daemon/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct api_server {
    uv_loop_t loop;
    struct td_conn_pool *pool;
    struct td_listener *listener;
    struct td_conn_config config;
    uv_async_t stop;
    uv_async_t call; /* runs `on_call` on the loop thread */
    void (*on_call)(struct api_server *s);
    pthread_t thread;
    uint16_t port;
    atomic_size_t n_conns; /* as of the last api_server_conns */
    atomic_int called;
};

static void api_on_stop(uv_async_t *async)
{
    struct api_server *s = async->data;
    td_listener_close(s->listener);
    td_conn_pool_close(s->pool, NULL, NULL);
    uv_close((uv_handle_t *)&s->stop, NULL);
    uv_close((uv_handle_t *)&s->call, NULL);
}

static void api_on_call(uv_async_t *async)
{
    struct api_server *s = async->data;
    s->on_call(s);
    atomic_fetch_add(&s->called, 1);
}

static void *api_run(void *arg)
{
    struct api_server *s = arg;
    uv_run(&s->loop, UV_RUN_DEFAULT);
    return NULL;
}

/* Serves `service` on a free port of 127.0.0.1. */
static inline struct api_server *api_server_start(const struct td_conn_config *config,
                                                  const struct td_conn_service *service)
{
    struct api_server *s = calloc(1, sizeof(*s));
    struct td_err err = {0};
    s->config = *config;
    assert_int_equal(uv_loop_init(&s->loop), 0);
    assert_int_equal(td_conn_pool_open(&s->loop, config, &s->pool, &err), TD_OK);
    const struct td_listener_config listen = {.host = "127.0.0.1", .service = *service};
    assert_int_equal(td_listener_open(s->pool, &s->loop, &listen, &s->listener, &err), TD_OK);
    s->port = td_listener_port(s->listener);
    assert_true(s->port > 0);
    uv_async_init(&s->loop, &s->stop, api_on_stop);
    uv_async_init(&s->loop, &s->call, api_on_call);
    s->stop.data = s;
    s->call.data = s;
    assert_int_equal(pthread_create(&s->thread, NULL, api_run, s), 0);
    return s;
}

static inline void api_server_stop(struct api_server *s)
{
    uv_async_send(&s->stop);
    pthread_join(s->thread, NULL);
    assert_int_equal(uv_loop_close(&s->loop), 0); /* every handle was closed */
    free(s);
}

static inline uint64_t api_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Runs `fn` on the loop thread and waits for its end. */
static inline void api_server_call(struct api_server *s, void (*fn)(struct api_server *s))
{
    int before = atomic_load(&s->called);
    s->on_call = fn;
    uv_async_send(&s->call);
    while (atomic_load(&s->called) == before) {
        usleep(1000);
    }
}

static inline void api_count(struct api_server *s)
{
    atomic_store(&s->n_conns, td_conn_pool_count(s->pool));
}

static inline size_t api_server_conns(struct api_server *s)
{
    api_server_call(s, api_count);
    return atomic_load(&s->n_conns);
}

/* Waits until `value` is `wanted`, at most five seconds. */
static inline bool api_wait_for(atomic_int *value, int wanted)
{
    for (uint64_t end = api_now_ms() + 5000; api_now_ms() < end; usleep(1000)) {
        if (atomic_load(value) == wanted) {
            return true;
        }
    }
    return false;
}

static inline bool api_wait_conns(struct api_server *s, size_t wanted)
{
    for (uint64_t end = api_now_ms() + 5000; api_now_ms() < end; usleep(2000)) {
        if (api_server_conns(s) == wanted) {
            return true;
        }
    }
    return false;
}

static inline int api_dial(const struct api_server *s)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(s->port)};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

/* Sends what the server still takes; a server that closed is no error here. */
static inline void api_send(int fd, const void *data, size_t n)
{
    const char *p = data;
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent <= 0) {
            return;
        }
        p += sent;
        n -= (size_t)sent;
    }
}

static inline void api_send_text(int fd, const char *text)
{
    api_send(fd, text, strlen(text));
}

/* Appends what arrives until `needle` is in it, the peer closes or `ms` pass. True when the needle was seen; a NULL
 * needle waits for the close. `out` is NUL-terminated. */
static inline bool api_recv(int fd, char *out, size_t cap, const char *needle, int ms)
{
    size_t n = strlen(out);
    uint64_t end = api_now_ms() + (uint64_t)ms;
    for (;;) {
        if (needle != NULL && strstr(out, needle) != NULL) {
            return true;
        }
        uint64_t now = api_now_ms();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (now >= end || n + 1 >= cap || poll(&p, 1, (int)(end - now)) <= 0) {
            return false;
        }
        ssize_t got = recv(fd, out + n, cap - n - 1, 0);
        if (got <= 0) {
            return needle == NULL;
        }
        n += (size_t)got;
        out[n] = '\0';
    }
}

/* Sends `request` on a new connection, and returns all that came until the server closed (static buffer). */
static inline const char *api_exchange(struct api_server *s, const char *request, size_t n)
{
    static char out[1 << 20];
    int fd = api_dial(s);
    out[0] = '\0';
    api_send(fd, request, n);
    assert_true(api_recv(fd, out, sizeof(out), NULL, 5000));
    close(fd);
    return out;
}

static inline int api_status_of(const char *response)
{
    int status = 0;
    sscanf(response, "HTTP/1.%*d %d", &status);
    return status;
}

#endif
