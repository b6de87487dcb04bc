#include "comm/comm_sim.h"

#include "comm/comm_impl.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A message on its way, in the queue of its receiver. A large one lies in its sender's `sends` and points to the
 * sender's buffer; a small one is allocated with its bytes behind it, and the queue owns it. */
struct message {
    struct message *next;
    uint32_t from;
    uint32_t tag;
    const void *data;
    size_t bytes;
    bool owned;
    bool taken;
};

struct end {
    pthread_cond_t wake;
    struct message *first;
    struct message **last;
    bool gone; /* killed, closed, or lost to one that was */
};

/* All ranks of one simulated group. Everything in it is guarded by `lock`. */
struct sim {
    pthread_mutex_t lock;
    uint32_t n_ranks;
    uint32_t n_open;
    struct end ends[];
};

struct sim_world {
    struct td_comm_world base;
    struct sim *sim;
    uint32_t cap_sends;
    struct message *sends; /* [cap_sends] of the exchange under way, by index of its xfer */
    bool *done;            /* [cap_sends] by index of the xfer */
};

static void wake_all(struct sim *sim)
{
    for (uint32_t r = 0; r < sim->n_ranks; r++)
        pthread_cond_broadcast(&sim->ends[r].wake);
}

static void push(struct end *to, struct message *m)
{
    m->next = NULL;
    *to->last = m;
    to->last = &m->next;
    pthread_cond_broadcast(&to->wake);
}

static void unlink_message(struct end *at, struct message **link)
{
    struct message *m = *link;

    *link = m->next;
    if (at->last == &m->next)
        at->last = link;
}

/* Sends xfer i. An eager one is done at once. */
static enum td_status post_send(struct sim_world *w, struct td_comm *comm, uint32_t i, uint32_t tag,
                                struct td_err *err)
{
    const struct td_comm_xfer *x = &comm->xfers[i];
    struct end *to = &w->sim->ends[x->peer];
    struct message *m = &w->sends[i];

    if (to->gone)
        return td_comm_report_lost(comm, x->peer, err);
    if (x->bytes <= TD_COMM_SIM_EAGER_BYTES) {
        m = malloc(sizeof *m + x->bytes);
        if (!m)
            return td_err_set(err, TD_NO_MEMORY, "%s: no memory for a message", comm->op);
    }
    *m = (struct message){.from = w->base.rank,
                          .tag = tag,
                          .data = x->src,
                          .bytes = x->bytes,
                          .owned = m != &w->sends[i]};
    if (m->owned && x->bytes)
        m->data = memcpy(m + 1, x->src, x->bytes);
    w->done[i] = m->owned;
    push(to, m);
    return TD_OK;
}

/* Takes the oldest message for receive i, if it has come. */
static enum td_status try_recv(struct sim_world *w, struct td_comm *comm, uint32_t i, uint32_t tag,
                               struct td_err *err)
{
    const struct td_comm_xfer *x = &comm->xfers[i];
    struct end *own = &w->sim->ends[w->base.rank];

    for (struct message **link = &own->first; *link; link = &(*link)->next) {
        struct message *m = *link;

        if (m->from != x->peer || m->tag != tag)
            continue;
        if (m->bytes != x->bytes)
            return td_comm_report_length(comm, x->peer, m->bytes, x->bytes, err);
        if (x->bytes)
            memcpy(x->dst, m->data, x->bytes);
        unlink_message(own, link);
        w->done[i] = true;
        if (m->owned) {
            free(m);
        } else {
            m->taken = true;
            pthread_cond_broadcast(&w->sim->ends[x->peer].wake);
        }
        return TD_OK;
    }
    return TD_OK;
}

/* One look at everything that is not done; *left is how many are still waited for. */
static enum td_status advance(struct sim_world *w, struct td_comm *comm, uint32_t tag,
                              uint32_t *left, uint32_t *awaited, struct td_err *err)
{
    uint32_t gone = UINT32_MAX;

    *left = 0;
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        const struct td_comm_xfer *x = &comm->xfers[i];

        if (!w->done[i] && x->is_send) {
            w->done[i] = w->sends[i].taken;
        } else if (!w->done[i]) {
            enum td_status status = try_recv(w, comm, i, tag, err);

            if (status != TD_OK)
                return status;
        }
        if (w->done[i])
            continue;
        if ((*left)++ == 0)
            *awaited = x->peer;
        if (w->sim->ends[x->peer].gone && gone == UINT32_MAX)
            gone = x->peer;
    }
    return gone == UINT32_MAX ? TD_OK : td_comm_report_lost(comm, gone, err);
}

static enum td_status wait_all(struct sim_world *w, struct td_comm *comm, uint32_t tag,
                               struct td_err *err)
{
    struct timespec until = {.tv_sec = (time_t)(comm->deadline_ns / 1000000000u),
                             .tv_nsec = (long)(comm->deadline_ns % 1000000000u)};
    struct end *own = &w->sim->ends[w->base.rank];
    bool late = false;

    for (;;) {
        uint32_t left;
        uint32_t awaited = 0;
        enum td_status status;

        if (atomic_load(&w->base.failed) != TD_OK)
            return td_comm_report_failed(comm, err);
        status = advance(w, comm, tag, &left, &awaited, err);
        if (status != TD_OK || left == 0)
            return status;
        if (late)
            return td_comm_report_timeout(comm, awaited, err);
        if (comm->deadline_ns == UINT64_MAX)
            pthread_cond_wait(&own->wake, &w->sim->lock);
        else
            late = pthread_cond_timedwait(&own->wake, &w->sim->lock, &until) != 0;
    }
}

/* Takes back what nobody has received, because the buffers go back to the caller. */
static void withdraw(struct sim_world *w, struct td_comm *comm)
{
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        struct end *to = &w->sim->ends[comm->xfers[i].peer];

        for (struct message **link = &to->first; *link; link = &(*link)->next) {
            if (*link == &w->sends[i]) {
                unlink_message(to, link);
                break;
            }
        }
    }
}

static enum td_status exchange(struct td_comm *comm, uint32_t tag, struct td_err *err)
{
    struct sim_world *w = (struct sim_world *)comm->world;
    enum td_status status = TD_OK;

    assert(comm->n_xfers <= w->cap_sends);
    pthread_mutex_lock(&w->sim->lock);
    memset(w->done, 0, comm->n_xfers * sizeof *w->done);
    for (uint32_t i = 0; i < comm->n_xfers && status == TD_OK; i++) {
        if (comm->xfers[i].is_send)
            status = post_send(w, comm, i, tag, err);
    }
    if (status == TD_OK)
        status = wait_all(w, comm, tag, err);
    if (status != TD_OK)
        withdraw(w, comm);
    if (status == TD_PEER_LOST && atomic_load(&w->base.failed) == TD_OK) {
        w->sim->ends[w->base.rank].gone = true;
        wake_all(w->sim);
    }
    pthread_mutex_unlock(&w->sim->lock);
    return status;
}

static void wake(struct td_comm_world *world)
{
    struct sim_world *w = (struct sim_world *)world;

    pthread_mutex_lock(&w->sim->lock);
    pthread_cond_broadcast(&w->sim->ends[world->rank].wake);
    pthread_mutex_unlock(&w->sim->lock);
}

static void free_sim(struct sim *sim)
{
    for (uint32_t r = 0; r < sim->n_ranks; r++) {
        struct message *m = sim->ends[r].first;

        while (m) {
            struct message *next = m->next;

            assert(m->owned); /* a large one was withdrawn or taken before its sender went */
            free(m);
            m = next;
        }
        pthread_cond_destroy(&sim->ends[r].wake);
    }
    pthread_mutex_destroy(&sim->lock);
    free(sim);
}

static void close_world(struct td_comm_world *world)
{
    struct sim_world *w = (struct sim_world *)world;
    bool last;

    pthread_mutex_lock(&w->sim->lock);
    w->sim->ends[world->rank].gone = true;
    wake_all(w->sim);
    last = --w->sim->n_open == 0;
    pthread_mutex_unlock(&w->sim->lock);
    if (last)
        free_sim(w->sim);
    free(w->sends);
    free(w->done);
    td_comm_world_deinit(world);
    free(w);
}

static const struct td_comm_transport sim_transport = {
    .name = "sim", .exchange = exchange, .wake = wake, .close = close_world};

void td_comm_sim_kill(struct td_comm *comm)
{
    struct sim_world *w = (struct sim_world *)comm->world;

    assert(comm->world->transport == &sim_transport);
    pthread_mutex_lock(&w->sim->lock);
    td_comm_world_fail(&w->base, TD_PEER_LOST);
    w->sim->ends[w->base.rank].gone = true;
    wake_all(w->sim);
    pthread_mutex_unlock(&w->sim->lock);
}

void td_comm_sim_set_host(struct td_comm *comm, uint32_t host)
{
    struct sim_world *w = (struct sim_world *)comm->world;

    assert(comm->world->transport == &sim_transport);
    w->base.hosts[w->base.rank] = host;
}

static struct sim *new_sim(uint32_t n_ranks)
{
    struct sim *sim = calloc(1, sizeof *sim + n_ranks * sizeof sim->ends[0]);
    pthread_condattr_t attr;

    if (!sim)
        return NULL;
    sim->n_ranks = n_ranks;
    pthread_mutex_init(&sim->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    for (uint32_t r = 0; r < n_ranks; r++) {
        pthread_cond_init(&sim->ends[r].wake, &attr);
        sim->ends[r].last = &sim->ends[r].first;
    }
    pthread_condattr_destroy(&attr);
    return sim;
}

static enum td_status open_end(struct sim *sim, uint32_t rank, struct td_comm **comm,
                               struct td_err *err)
{
    struct sim_world *w = calloc(1, sizeof *w);
    enum td_status status;

    if (!w)
        return td_err_set(err, TD_NO_MEMORY, "no memory for simulated rank %u", rank);
    status = td_comm_world_init(&w->base, &sim_transport, rank, sim->n_ranks, err);
    if (status != TD_OK)
        goto fail;
    w->sim = sim;
    status = td_comm_group_open(&w->base, NULL, sim->n_ranks, rank, 0, -1, comm, err);
    if (status != TD_OK)
        goto fail_world;
    sim->n_open++;
    w->cap_sends = (*comm)->cap_xfers;
    w->sends = calloc(w->cap_sends, sizeof *w->sends);
    w->done = calloc(w->cap_sends, sizeof *w->done);
    if (!w->sends || !w->done) {
        td_comm_close(*comm);
        return td_err_set(err, TD_NO_MEMORY, "no memory for simulated rank %u", rank);
    }
    return TD_OK;

fail_world:
    td_comm_world_deinit(&w->base);
fail:
    free(w);
    return status;
}

enum td_status td_comm_sim_open(uint32_t n_ranks, struct td_comm **comms, struct td_err *err)
{
    struct sim *sim;
    uint32_t n = 0;

    if (n_ranks < 1 || n_ranks > TD_COMM_MAX_RANKS)
        return td_err_set(err, TD_INVALID, "a simulated group of %u ranks, expected 1 to %d",
                          n_ranks, TD_COMM_MAX_RANKS);
    sim = new_sim(n_ranks);
    if (!sim)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u simulated ranks", n_ranks);
    sim->n_open = 1; /* this function's hold, so that a failure in the middle frees it once */
    for (; n < n_ranks; n++) {
        enum td_status status = open_end(sim, n, &comms[n], err);

        if (status != TD_OK) {
            while (n > 0)
                td_comm_close(comms[--n]);
            free_sim(sim);
            return status;
        }
    }
    sim->n_open--;
    return TD_OK;
}
