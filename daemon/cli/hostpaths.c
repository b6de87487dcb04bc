#include "daemon/cli/hostpaths.h"

#include "comm/comm.h"
#include "daemon/cli/pathtest.h"
#include "kernels/base/clock.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* A rank's connections that end on another host of the group. */
struct uses {
    uint32_t n;
    struct td_netpath_connection c[TD_NETPATH_MAX_CONNECTIONS];
};

struct survey {
    struct td_comm *world;
    const uint32_t *first; /* [n] */
    uint32_t n, rank;
    size_t *bytes;                         /* [n] */
    struct uses *uses;                     /* [n] */
    struct td_netpath_connection *between; /* [2 * MAX_CONNECTIONS] of two hosts, for the moment */
    struct td_hostpaths *out;
};

static enum td_status gather(struct survey *v, const void *mine, size_t bytes, void *all,
                             struct td_err *err)
{
    for (uint32_t r = 0; r < v->n; r++)
        v->bytes[r] = bytes;
    return td_comm_all_gather(v->world, mine, v->bytes, all, err);
}

static bool has_ip(const struct td_netpath_host *host, const struct td_netpath_ip *ip)
{
    for (uint32_t i = 0; i < host->n; i++)
        if (host->addresses[i].ip.family == ip->family &&
            memcmp(host->addresses[i].ip.bytes, ip->bytes, sizeof ip->bytes) == 0)
            return true;
    return false;
}

static bool leaves_host(const struct survey *v, const struct td_netpath_connection *c)
{
    for (uint32_t r = 0; r < v->n; r++)
        if (v->first[r] == r && r != v->first[v->rank] && has_ip(&v->out->hosts[r], &c->remote))
            return true;
    return false;
}

/* What MPI has opened: nothing else of this process talks to another host yet. */
static enum td_status gather_uses(struct survey *v, struct td_err *err)
{
    struct uses *mine = &v->uses[v->rank], *copy;
    uint32_t n = td_netpath_connections(mine->c, TD_NETPATH_MAX_CONNECTIONS);
    enum td_status s;

    for (uint32_t i = 0; i < n; i++)
        if (leaves_host(v, &mine->c[i]))
            mine->c[mine->n++] = mine->c[i];
    copy = malloc(sizeof *copy); /* the place of its own in `uses` is written too */
    if (!copy)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the connections of a rank");
    *copy = *mine;
    s = gather(v, copy, sizeof *copy, v->uses, err);
    free(copy);
    return s;
}

/* The connections between two hosts, seen from `a`, whichever side told of them. */
static uint32_t collect(const struct survey *v, uint32_t a, uint32_t b)
{
    uint32_t n = 0, cap = 2 * TD_NETPATH_MAX_CONNECTIONS;

    for (uint32_t r = 0; r < v->n; r++) {
        uint32_t other = v->first[r] == a ? b : a;

        if (v->first[r] != a && v->first[r] != b)
            continue;
        for (uint32_t i = 0; i < v->uses[r].n && n < cap; i++) {
            const struct td_netpath_connection *c = &v->uses[r].c[i];

            if (!has_ip(&v->out->hosts[other], &c->remote))
                continue;
            v->between[n++] =
                other == b ? *c
                           : (struct td_netpath_connection){.local = c->remote, .remote = c->local};
        }
    }
    return n;
}

static enum td_status make_pairs(struct survey *v, struct td_err *err)
{
    struct td_hostpaths *out = v->out;
    uint32_t n_hosts = 0, n_pairs;

    for (uint32_t r = 0; r < v->n; r++)
        n_hosts += v->first[r] == r;
    n_pairs = n_hosts * (n_hosts - 1) / 2;
    out->pairs = calloc(n_pairs ? n_pairs : 1, sizeof *out->pairs);
    if (!out->pairs)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the networks of %u hosts", n_hosts);
    for (uint32_t a = 0; a < v->n; a++) {
        for (uint32_t b = a + 1; v->first[a] == a && b < v->n; b++) {
            struct td_hostpaths_pair *pair = &out->pairs[out->n_pairs];

            if (v->first[b] != b)
                continue;
            *pair = (struct td_hostpaths_pair){.a = a, .b = b};
            pair->n = td_netpath_find(&out->hosts[a], &out->hosts[b], v->between, collect(v, a, b),
                                      pair->paths);
            out->n_pairs++;
        }
    }
    return TD_OK;
}

/* What the one who listens tells the one who connects. */
struct invitation {
    uint64_t nonce;
    uint32_t port; /* 0: it cannot listen there */
    uint32_t unused;
};

static enum td_status invite(struct survey *v, const struct td_hostpaths_pair *pair,
                             const struct td_netpath *path, struct td_err *err)
{
    struct invitation card = {0};
    uint16_t port = 0;
    int fd = -1;
    enum td_status s;

    if (getrandom(&card.nonce, sizeof card.nonce, 0) == sizeof card.nonce &&
        !td_pathtest_listen(&v->out->hosts[pair->b].addresses[path->b], &fd, &port, NULL))
        card.port = port;
    s = td_comm_send(v->world, pair->a, &card, sizeof card, err);
    if (!s && card.port)
        td_pathtest_answer(fd, card.nonce);
    if (fd >= 0)
        close(fd);
    return s;
}

static enum td_status visit(struct survey *v, const struct td_hostpaths_pair *pair,
                            struct td_netpath *path, struct td_err *err)
{
    struct invitation card;
    enum td_status s = td_comm_recv(v->world, pair->b, &card, sizeof card, err);

    if (!s && card.port)
        td_pathtest_measure(&v->out->hosts[pair->a].addresses[path->a],
                            &v->out->hosts[pair->b].addresses[path->b], (uint16_t)card.port,
                            card.nonce, path);
    else
        path->is_measured = true;
    return s;
}

static enum td_status measure_pair(struct survey *v, struct td_hostpaths_pair *pair,
                                   struct td_err *err)
{
    enum td_status s = TD_OK;

    for (uint32_t p = 0; !s && p < pair->n; p++) {
        if (v->rank == pair->a)
            s = visit(v, pair, &pair->paths[p], err);
        else if (v->rank == pair->b)
            s = invite(v, pair, &pair->paths[p], err);
    }
    return s ? s : td_comm_bcast(v->world, pair->a, pair->paths, sizeof pair->paths, err);
}

static enum td_status measure(struct survey *v, uint64_t budget_ns, struct td_err *err)
{
    uint64_t end = td_clock_now_ns() + budget_ns;
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < v->out->n_pairs; i++) {
        uint8_t goes_on = td_clock_now_ns() < end;

        s = td_comm_bcast(v->world, 0, &goes_on, 1, err); /* rank 0's clock decides */
        if (!s && goes_on)
            s = measure_pair(v, &v->out->pairs[i], err);
        v->out->n_left_out += !goes_on;
    }
    return s;
}

enum td_status td_hostpaths_examine(struct td_comm *world, const uint32_t *first,
                                    uint64_t budget_ns, struct td_hostpaths *out,
                                    struct td_err *err)
{
    struct survey v = {.world = world,
                       .first = first,
                       .n = td_comm_size(world),
                       .rank = td_comm_rank(world),
                       .out = out};
    struct td_netpath_host mine;
    enum td_status s = TD_OK;

    memset(out, 0, sizeof *out);
    v.bytes = calloc(v.n, sizeof *v.bytes);
    v.uses = calloc(v.n, sizeof *v.uses);
    v.between = calloc(2 * TD_NETPATH_MAX_CONNECTIONS, sizeof *v.between);
    out->hosts = calloc(v.n, sizeof *out->hosts);
    if (!v.bytes || !v.uses || !v.between || !out->hosts)
        s = td_err_set(err, TD_NO_MEMORY, "no memory for the networks of %u ranks", v.n);
    if (td_netpath_read_host(&mine, NULL))
        memset(&mine, 0, sizeof mine); /* a host that tells nothing has no network */
    s = s ? s : gather(&v, &mine, sizeof mine, out->hosts, err);
    s = s ? s : gather_uses(&v, err);
    s = s ? s : make_pairs(&v, err);
    s = s ? s : measure(&v, budget_ns, err);
    free(v.bytes);
    free(v.uses);
    free(v.between);
    if (s)
        td_hostpaths_deinit(out);
    return s;
}

void td_hostpaths_deinit(struct td_hostpaths *h)
{
    free(h->hosts);
    free(h->pairs);
    memset(h, 0, sizeof *h);
}
