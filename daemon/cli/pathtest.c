#include "daemon/cli/pathtest.h"

#include "kernels/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    N_PINGS = 100,
    FIRST_BULK = 1 << 18,
    MOST_BULK = 1 << 26,
    GROWTH = 4,
    CHUNK = 1 << 16,
    PING_NS = 200000000,
    BULK_NS = 300000000
};

/* What the one who measures asks for; both hosts have the same byte order, as all ranks of a group. */
enum verb { VERB_END, VERB_PING, VERB_BULK };
struct order {
    uint64_t verb, bytes;
};

/* A connection with the time at which it is given up. */
struct line {
    int fd;
    uint64_t deadline_ns;
    uint8_t chunk[CHUNK];
};

/* ---- Sockets with a deadline ---- */

static bool wait_for(int fd, short events, uint64_t deadline_ns)
{
    struct pollfd p = {.fd = fd, .events = events};

    for (;;) {
        uint64_t now = td_clock_now_ns();
        int rc;

        if (now >= deadline_ns)
            return false;
        rc = poll(&p, 1, (int)((deadline_ns - now) / 1000000u) + 1);
        if (rc > 0)
            return true;
        if (rc < 0 && errno != EINTR)
            return false;
    }
}

static bool give(struct line *l, const void *data, size_t bytes)
{
    const uint8_t *at = data;

    while (bytes > 0) {
        ssize_t n = send(l->fd, at, bytes, MSG_NOSIGNAL);

        if (n > 0) {
            at += n;
            bytes -= (size_t)n;
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            return false;
        } else if (!wait_for(l->fd, POLLOUT, l->deadline_ns)) {
            return false;
        }
    }
    return true;
}

static bool take(struct line *l, void *data, size_t bytes)
{
    uint8_t *at = data;

    while (bytes > 0) {
        ssize_t n = recv(l->fd, at, bytes, 0);

        if (n > 0) {
            at += n;
            bytes -= (size_t)n;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            return false;
        } else if (!wait_for(l->fd, POLLIN, l->deadline_ns)) {
            return false;
        }
    }
    return true;
}

static socklen_t to_sockaddr(const struct td_netpath_ip *ip, uint16_t port,
                             struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (ip->family == 4) {
        struct sockaddr_in *in = (struct sockaddr_in *)(void *)out;

        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        memcpy(&in->sin_addr, ip->bytes, 4);
        return sizeof *in;
    } else {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)(void *)out;

        in->sin6_family = AF_INET6;
        in->sin6_port = htons(port);
        memcpy(&in->sin6_addr, ip->bytes, 16);
        return sizeof *in;
    }
}

/* A socket that does not block, bound to the address and to no interface, as MPI's: routes decide for both alike. */
static int open_socket(const struct td_netpath_address *at)
{
    struct sockaddr_storage addr;
    socklen_t len = to_sockaddr(&at->ip, 0, &addr);
    int fd = socket(at->ip.family == 4 ? AF_INET : AF_INET6,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;

    if (fd < 0)
        return -1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&addr, len) == 0)
        return fd;
    close(fd);
    return -1;
}

enum td_status td_pathtest_listen(const struct td_netpath_address *at, int *fd, uint16_t *port,
                                  struct td_err *err)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof addr;
    char text[TD_NETPATH_TEXT];
    int s = open_socket(at);

    if (s < 0 || listen(s, 4) != 0 || getsockname(s, (struct sockaddr *)&addr, &len) != 0) {
        td_err_set(err, TD_IO, "cannot listen at %s: %s", td_netpath_text(&at->ip, text),
                   strerror(errno));
        if (s >= 0)
            close(s);
        return TD_IO;
    }
    *port = ntohs(addr.ss_family == AF_INET
                      ? ((const struct sockaddr_in *)(const void *)&addr)->sin_port
                      : ((const struct sockaddr_in6 *)(const void *)&addr)->sin6_port);
    *fd = s;
    return TD_OK;
}

/* ---- The one who answers ---- */

static bool take_bulk(struct line *l, uint64_t bytes)
{
    while (bytes > 0) {
        size_t n = bytes < CHUNK ? (size_t)bytes : CHUNK;

        if (!take(l, l->chunk, n))
            return false;
        bytes -= n;
    }
    return true;
}

static void obey(struct line *l)
{
    struct order order;
    const uint8_t byte = 1;

    while (take(l, &order, sizeof order)) {
        if (order.verb != VERB_PING && order.verb != VERB_BULK)
            return;
        if (order.bytes > MOST_BULK || !take_bulk(l, order.bytes) || !give(l, &byte, 1))
            return;
    }
}

/* True when the one who connected knew the number. */
static bool serve(struct line *l, uint64_t nonce)
{
    uint64_t said = ~nonce;
    int one = 1;

    (void)setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!take(l, &said, sizeof said) || said != nonce || !give(l, &nonce, sizeof nonce))
        return false;
    obey(l);
    return true;
}

void td_pathtest_answer(int fd, uint64_t nonce)
{
    struct line *l = calloc(1, sizeof *l);
    bool done = !l;

    if (l)
        l->deadline_ns = td_clock_now_ns() + TD_PATHTEST_LIMIT_NS;
    while (!done && wait_for(fd, POLLIN, l->deadline_ns)) {
        l->fd = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (l->fd < 0)
            continue;
        done = serve(l, nonce);
        close(l->fd);
    }
    free(l);
}

/* ---- The one who measures ---- */

static bool dial(struct line *l, const struct td_netpath_address *to, uint16_t port)
{
    struct sockaddr_storage addr;
    socklen_t len = to_sockaddr(&to->ip, port, &addr), error_len;
    int error = 0;

    if (connect(l->fd, (struct sockaddr *)&addr, len) == 0)
        return true;
    if (errno != EINPROGRESS || !wait_for(l->fd, POLLOUT, l->deadline_ns))
        return false;
    error_len = sizeof error;
    return getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &error, &error_len) == 0 && error == 0;
}

/* An order with that many bytes behind it, until the answer is there. */
static bool ask(struct line *l, enum verb verb, uint64_t bytes, uint64_t *took_ns)
{
    const struct order order = {.verb = verb, .bytes = bytes};
    uint64_t start = td_clock_now_ns();
    uint8_t byte;
    bool ok = give(l, &order, sizeof order);

    for (uint64_t left = bytes; ok && left > 0;) {
        size_t n = left < CHUNK ? (size_t)left : CHUNK;

        ok = give(l, l->chunk, n);
        left -= n;
    }
    ok = ok && take(l, &byte, 1);
    *took_ns = td_clock_now_ns() - start;
    return ok;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static bool measure_latency(struct line *l, struct td_netpath *path)
{
    uint64_t samples[N_PINGS], end = td_clock_now_ns() + PING_NS;
    unsigned n = 0;

    while (n < N_PINGS && (n == 0 || td_clock_now_ns() < end))
        if (!ask(l, VERB_PING, 0, &samples[n++]))
            return false;
    qsort(samples, n, sizeof samples[0], compare);
    path->latency_ns = samples[n / 2] / 2 + (samples[n / 2] < 2);
    return true;
}

static bool measure_bulk(struct line *l, struct td_netpath *path)
{
    uint64_t end = td_clock_now_ns() + BULK_NS, took = 0, now, left;
    uint64_t bytes = FIRST_BULK;

    for (;;) {
        if (!ask(l, VERB_BULK, bytes, &took))
            return false;
        took = took > path->latency_ns ? took - path->latency_ns : took + (took == 0);
        path->bytes_per_second = (double)bytes * 1e9 / (double)took;
        now = td_clock_now_ns();
        left = now < end ? end - now : 0;
        if (bytes >= MOST_BULK || left / GROWTH < took)
            return true;
        bytes *= GROWTH;
    }
}

void td_pathtest_measure(const struct td_netpath_address *from, const struct td_netpath_address *to,
                         uint16_t port, uint64_t nonce, struct td_netpath *path)
{
    struct line *l = calloc(1, sizeof *l);
    const struct order end = {.verb = VERB_END};
    uint64_t said = ~nonce;

    path->is_measured = true;
    path->answers = false;
    if (!l)
        return;
    /* A little less than the other side's, which began before. */
    l->deadline_ns = td_clock_now_ns() + TD_PATHTEST_LIMIT_NS / 4 * 3;
    l->fd = open_socket(from);
    if (l->fd >= 0) {
        path->answers = dial(l, to, port) && give(l, &nonce, sizeof nonce) &&
                        take(l, &said, sizeof said) && said == nonce && measure_latency(l, path) &&
                        measure_bulk(l, path);
        if (path->answers)
            (void)give(l, &end, sizeof end);
        close(l->fd);
    }
    free(l);
}
