#include "comm/comm_sim.h"

#include "comm/comm_sim_impl.h"
#include "kernels/base/clock.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void td_comm_sim_wake(struct td_comm_sim_end *end)
{
    end->blocked = false;
    pthread_cond_broadcast(&end->wake);
}

static void wake_all(struct td_comm_sim_group *sim)
{
    for (uint32_t r = 0; r < sim->n_ranks; r++)
        td_comm_sim_wake(&sim->ends[r]);
}

void td_comm_sim_leave(struct td_comm_sim_group *sim, struct td_comm_sim_end *end)
{
    if (!end->gone)
        end->gone_ns = end->now_ns;
    end->gone = true;
    wake_all(sim);
}

void td_comm_sim_push(struct td_comm_sim_end *to, struct td_comm_sim_message *m)
{
    m->next = NULL;
    *to->last = m;
    to->last = &m->next;
    td_comm_sim_wake(to);
}

static void unlink_message(struct td_comm_sim_end *at, struct td_comm_sim_message **link)
{
    struct td_comm_sim_message *m = *link;

    *link = m->next;
    if (at->last == &m->next)
        at->last = link;
}

enum td_status td_comm_sim_new_message(struct td_comm_sim_world *w, struct td_comm *comm,
                                       uint32_t i, uint32_t tag, struct td_comm_sim_message **made,
                                       struct td_err *err)
{
    const struct td_comm_xfer *x = &comm->xfers[i];
    struct td_comm_sim_message *m = &w->sends[i];

    if (x->bytes <= TD_COMM_SIM_EAGER_BYTES) {
        m = malloc(sizeof *m + x->bytes);
        if (!m)
            return td_err_set(err, TD_NO_MEMORY, "%s: no memory for a message", comm->op);
    }
    *m = (struct td_comm_sim_message){.from = w->base.rank,
                                      .tag = tag,
                                      .data = x->src,
                                      .bytes = x->bytes,
                                      .owned = m != &w->sends[i]};
    if (m->owned && x->bytes)
        m->data = memcpy(m + 1, x->src, x->bytes);
    *made = m;
    return TD_OK;
}

struct td_comm_sim_message **td_comm_sim_find_message(struct td_comm_sim_end *own, uint32_t from,
                                                      uint32_t tag)
{
    for (struct td_comm_sim_message **link = &own->first; *link; link = &(*link)->next) {
        if ((*link)->from == from && (*link)->tag == tag)
            return link;
    }
    return NULL;
}

void td_comm_sim_take_message(struct td_comm_sim_world *w, struct td_comm_sim_message **link,
                              void *dst)
{
    struct td_comm_sim_message *m = *link;

    if (m->bytes)
        memcpy(dst, m->data, m->bytes);
    unlink_message(&w->sim->ends[w->base.rank], link);
    if (m->owned) {
        free(m);
    } else {
        m->taken = true;
        td_comm_sim_wake(&w->sim->ends[m->from]);
    }
}

/* Sends xfer i. An eager one is done at once. */
static enum td_status post_send(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t i,
                                uint32_t tag, struct td_err *err)
{
    const struct td_comm_xfer *x = &comm->xfers[i];
    struct td_comm_sim_end *to = &w->sim->ends[x->peer];
    struct td_comm_sim_message *m;
    enum td_status status;

    if (to->gone)
        return td_comm_report_lost(comm, x->peer, err);
    status = td_comm_sim_new_message(w, comm, i, tag, &m, err);
    if (status != TD_OK)
        return status;
    w->done[i] = m->owned;
    td_comm_sim_push(to, m);
    return TD_OK;
}

/* Takes the oldest message for receive i, if it has come. */
static enum td_status try_recv(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t i,
                               uint32_t tag, struct td_err *err)
{
    const struct td_comm_xfer *x = &comm->xfers[i];
    struct td_comm_sim_message **link =
        td_comm_sim_find_message(&w->sim->ends[w->base.rank], x->peer, tag);

    if (!link)
        return TD_OK;
    if ((*link)->bytes != x->bytes)
        return td_comm_report_length(comm, x->peer, (*link)->bytes, x->bytes, err);
    td_comm_sim_take_message(w, link, x->dst);
    w->done[i] = true;
    return TD_OK;
}

/* One look at everything that is not done; *left is how many are still waited for. */
static enum td_status advance(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t tag,
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

static enum td_status wait_all(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t tag,
                               struct td_err *err)
{
    struct timespec until = {.tv_sec = (time_t)(comm->deadline_ns / 1000000000u),
                             .tv_nsec = (long)(comm->deadline_ns % 1000000000u)};
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];
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

void td_comm_sim_withdraw(struct td_comm_sim_world *w, struct td_comm *comm)
{
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        struct td_comm_sim_end *to = &w->sim->ends[comm->xfers[i].peer];

        for (struct td_comm_sim_message **link = &to->first; *link; link = &(*link)->next) {
            if (*link == &w->sends[i]) {
                unlink_message(to, link);
                break;
            }
        }
    }
}

static enum td_status exchange_now(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t tag,
                                   struct td_err *err)
{
    enum td_status status = TD_OK;

    memset(w->done, 0, comm->n_xfers * sizeof *w->done);
    for (uint32_t i = 0; i < comm->n_xfers && status == TD_OK; i++) {
        if (comm->xfers[i].is_send)
            status = post_send(w, comm, i, tag, err);
    }
    if (status == TD_OK)
        status = wait_all(w, comm, tag, err);
    if (status != TD_OK)
        td_comm_sim_withdraw(w, comm);
    if (status == TD_PEER_LOST && atomic_load(&w->base.failed) == TD_OK)
        td_comm_sim_leave(w->sim, &w->sim->ends[w->base.rank]);
    return status;
}

static enum td_status exchange(struct td_comm *comm, uint32_t tag, struct td_err *err)
{
    struct td_comm_sim_world *w = (struct td_comm_sim_world *)comm->world;
    enum td_status status;

    assert(comm->n_xfers <= w->cap_sends);
    pthread_mutex_lock(&w->sim->lock);
    w->sim->started = true;
    status = w->sim->timed ? td_comm_sim_timed_exchange(w, comm, tag, err)
                           : exchange_now(w, comm, tag, err);
    pthread_mutex_unlock(&w->sim->lock);
    return status;
}

/* With a model an end that was given up is gone, as after any failure; its thread may never call again. */
static void wake(struct td_comm_world *world)
{
    struct td_comm_sim_world *w = (struct td_comm_sim_world *)world;
    struct td_comm_sim_end *end = &w->sim->ends[world->rank];

    pthread_mutex_lock(&w->sim->lock);
    if (w->sim->timed)
        td_comm_sim_leave(w->sim, end);
    else
        td_comm_sim_wake(end);
    pthread_mutex_unlock(&w->sim->lock);
}

static uint64_t now_ns(struct td_comm_world *world)
{
    struct td_comm_sim_world *w = (struct td_comm_sim_world *)world;
    uint64_t now;

    if (!w->sim->timed)
        return td_clock_now_ns();
    pthread_mutex_lock(&w->sim->lock);
    now = w->sim->ends[world->rank].now_ns;
    pthread_mutex_unlock(&w->sim->lock);
    return now;
}

static void free_sim(struct td_comm_sim_group *sim)
{
    for (uint32_t r = 0; r < sim->n_ranks; r++) {
        struct td_comm_sim_message *m = sim->ends[r].first;

        while (m) {
            struct td_comm_sim_message *next = m->next;

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
    struct td_comm_sim_world *w = (struct td_comm_sim_world *)world;
    bool last;

    pthread_mutex_lock(&w->sim->lock);
    td_comm_sim_leave(w->sim, &w->sim->ends[world->rank]);
    last = --w->sim->n_open == 0;
    pthread_mutex_unlock(&w->sim->lock);
    if (last)
        free_sim(w->sim);
    free(w->sends);
    free(w->done);
    free(w->msgs);
    td_comm_world_deinit(world);
    free(w);
}

static const struct td_comm_transport sim_transport = {
    .name = "sim", .exchange = exchange, .wake = wake, .now_ns = now_ns, .close = close_world};

static struct td_comm_sim_world *world_of(const struct td_comm *comm)
{
    assert(comm->world->transport == &sim_transport);
    return (struct td_comm_sim_world *)comm->world;
}

static void lose(struct td_comm_sim_world *w)
{
    td_comm_world_fail(&w->base, TD_PEER_LOST);
    td_comm_sim_leave(w->sim, &w->sim->ends[w->base.rank]);
}

void td_comm_sim_kill(struct td_comm *comm)
{
    struct td_comm_sim_world *w = world_of(comm);

    pthread_mutex_lock(&w->sim->lock);
    lose(w);
    pthread_mutex_unlock(&w->sim->lock);
}

void td_comm_sim_set_host(struct td_comm *comm, uint32_t host)
{
    struct td_comm_sim_world *w = world_of(comm);

    pthread_mutex_lock(&w->sim->lock);
    assert(!w->sim->timed || !w->sim->started);
    w->base.hosts[w->base.rank] = host;
    w->sim->ends[w->base.rank].host = host;
    pthread_mutex_unlock(&w->sim->lock);
}

enum td_status td_comm_sim_set_model(struct td_comm *comm,
                                     const struct td_comm_simtime_model *model, struct td_err *err)
{
    struct td_comm_sim_group *sim = world_of(comm)->sim;
    enum td_status status = TD_OK;

    pthread_mutex_lock(&sim->lock);
    if (sim->started) {
        status = td_err_set(err, TD_INVALID,
                            "a model for a simulated group that is in use, expected an unused one");
    } else {
        sim->timed = true;
        sim->model = *model;
    }
    pthread_mutex_unlock(&sim->lock);
    return status;
}

uint64_t td_comm_sim_now(struct td_comm *comm)
{
    return now_ns(&world_of(comm)->base);
}

void td_comm_sim_advance(struct td_comm *comm, uint64_t ns)
{
    struct td_comm_sim_world *w = world_of(comm);
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];

    assert(w->sim->timed);
    pthread_mutex_lock(&w->sim->lock);
    if (!own->gone && !own->silent) {
        uint64_t to_ns = td_comm_simtime_add(own->now_ns, ns);

        own->now_ns = to_ns < own->lost_ns ? to_ns : own->lost_ns;
        if (own->now_ns == UINT64_MAX) {
            own->silent = true;
            td_comm_world_fail(&w->base, TD_PEER_TIMED_OUT);
            td_comm_sim_timed_settle(w->sim);
        } else if (own->now_ns == own->lost_ns) {
            lose(w);
        }
    }
    pthread_mutex_unlock(&w->sim->lock);
}

void td_comm_sim_kill_at(struct td_comm *comm, uint64_t at_ns)
{
    struct td_comm_sim_world *w = world_of(comm);
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];

    assert(w->sim->timed);
    pthread_mutex_lock(&w->sim->lock);
    own->lost_ns = at_ns;
    if (own->now_ns >= at_ns)
        lose(w);
    pthread_mutex_unlock(&w->sim->lock);
}

static struct td_comm_sim_group *new_sim(uint32_t n_ranks)
{
    struct td_comm_sim_group *sim = calloc(1, sizeof *sim + n_ranks * sizeof sim->ends[0]);
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
        sim->ends[r].lost_ns = UINT64_MAX;
    }
    pthread_condattr_destroy(&attr);
    return sim;
}

static enum td_status open_end(struct td_comm_sim_group *sim, uint32_t rank, struct td_comm **comm,
                               struct td_err *err)
{
    struct td_comm_sim_world *w = calloc(1, sizeof *w);
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
    w->msgs = calloc(w->cap_sends, sizeof *w->msgs);
    if (!w->sends || !w->done || !w->msgs) {
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
    struct td_comm_sim_group *sim;
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
