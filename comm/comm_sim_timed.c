#include "comm/comm_sim_impl.h"
#include "kernels/base/clock.h"

#include <string.h>
#include <time.h>

/* Virtual time. With a model each rank has a clock (`now_ns`), moved by its own thread: by its exchanges, to where
 * td_comm_simtime_decide says, and by td_comm_sim_advance. Threads wait for each other in real time, but no virtual time
 * depends on which of them is first:
 * 1. A rank's program is one thread; what it does next depends on the results and the times of its exchanges so far.
 * 2. A message's stamps depend on its sender's past alone, and which message answers a receive is fixed by the sender,
 *    the tag and the order of sending. So whether a receive's message comes, and when, or that its sender goes before,
 *    and when, is the same in every run; so is, for a large send, when the receiver asks for it, or that it goes before.
 * 3. An exchange is decided when all its messages are known in this sense: by 2 a function of the ranks' pasts.
 * 4. An exchange with a message that stays unknown is decided only when no rank can go on: each waits, is gone or is
 *    silent. By 1 to 3 each has then got as far as it gets in any run. From there on every exchange fails, and a rank that
 *    failed sends nothing more: it can only be what others fail by, not earlier than its own time. So the exchange that
 *    fails first is known, it is told so, and the rest follows in the same way; at one time the lower rank goes first.
 * What another thread does to a rank (td_comm_abort, td_comm_sim_kill) is outside of this. */

/* How long a wait in virtual time may see nothing happen: a thread has ended without closing its end. */
static const uint64_t default_stall_ns = 60000000000u;

static const struct td_comm_simtime_link *link_to(const struct td_comm_sim_world *w, uint32_t peer)
{
    const struct td_comm_sim_group *sim = w->sim;

    return sim->ends[peer].host == sim->ends[w->base.rank].host ? &sim->model.host
                                                                : &sim->model.net;
}

/* Sends xfer i through the port, which is free from *port_free_ns on. What has not left before this rank is lost, is
 * cut off. */
static enum td_status post_timed(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t i,
                                 uint32_t tag, uint64_t *port_free_ns, struct td_err *err)
{
    const struct td_comm_xfer *x = &comm->xfers[i];
    const struct td_comm_simtime_link *link = link_to(w, x->peer);
    uint64_t port_ns = td_comm_simtime_port_ns(link, x->bytes);
    struct td_comm_sim_message *m;
    enum td_status status;

    *port_free_ns = td_comm_simtime_add(*port_free_ns, port_ns);
    w->msgs[i] = (struct td_comm_simtime_msg){
        .is_send = true, .known = true, .at_ns = *port_free_ns, .port_ns = port_ns};
    if (*port_free_ns >= w->sim->ends[w->base.rank].lost_ns)
        return TD_OK;
    status = td_comm_sim_new_message(w, comm, i, tag, &m, err);
    if (status != TD_OK)
        return status;
    m->port_ns = port_ns;
    m->arrives_ns = td_comm_simtime_add(*port_free_ns, link->latency_ns);
    w->msgs[i].known = m->owned;
    td_comm_sim_push(&w->sim->ends[x->peer], m);
    return TD_OK;
}

static void look_for_message(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t i,
                             uint32_t tag)
{
    const struct td_comm_xfer *x = &comm->xfers[i];
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];
    struct td_comm_sim_message **link = td_comm_sim_find_message(own, x->peer, tag);

    if (!link)
        return;
    w->msgs[i].known = true;
    w->msgs[i].at_ns = (*link)->arrives_ns;
    w->msgs[i].port_ns = (*link)->port_ns;
    if ((*link)->bytes != x->bytes) {
        w->msgs[i].status = TD_PEER_PROTOCOL;
        w->sends[i].bytes = (*link)->bytes;
        return;
    }
    (*link)->asked_ns = own->now_ns;
    td_comm_sim_take_message(w, link, x->dst);
}

/* One look at what is not known yet; returns whether all is. */
static bool look(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t tag)
{
    bool all = true;

    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        const struct td_comm_sim_end *peer = &w->sim->ends[comm->xfers[i].peer];
        struct td_comm_simtime_msg *m = &w->msgs[i];

        if (m->known)
            continue;
        if (!m->is_send) {
            look_for_message(w, comm, i, tag);
        } else if (w->sends[i].taken) {
            m->known = true;
            if (w->sends[i].asked_ns > m->at_ns)
                m->at_ns = w->sends[i].asked_ns;
        }
        if (!m->known && peer->gone) {
            m->known = true;
            m->status = TD_PEER_LOST;
            m->at_ns =
                td_comm_simtime_add(peer->gone_ns, link_to(w, comm->xfers[i].peer)->latency_ns);
        }
        all = all && m->known;
    }
    return all;
}

void td_comm_sim_timed_settle(struct td_comm_sim_group *sim)
{
    struct td_comm_sim_end *first = NULL;

    for (uint32_t r = 0; r < sim->n_ranks; r++) {
        struct td_comm_sim_end *end = &sim->ends[r];

        if (end->gone || end->silent)
            continue;
        if (!end->blocked)
            return;
        if (!first || end->fail_ns < first->fail_ns)
            first = end;
    }
    if (first) {
        first->doomed = true;
        td_comm_sim_wake(first);
    }
}

/* Sleeps until something happens to this rank; false when nothing did for too long. */
static bool sleep_timed(struct td_comm_sim_world *w, uint64_t fail_ns)
{
    uint64_t stall_ns = w->sim->model.stall_ns ? w->sim->model.stall_ns : default_stall_ns;
    uint64_t until_ns = td_comm_simtime_add(td_clock_now_ns(), stall_ns);
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];
    bool late = false;

    own->fail_ns = fail_ns;
    own->blocked = true;
    td_comm_sim_timed_settle(w->sim);
    while (own->blocked && !late)
        late = pthread_cond_timedwait(&own->wake, &w->sim->lock, &until) != 0;
    late = own->blocked;
    own->blocked = false;
    return !late;
}

/* Ends the exchange as decided. */
static enum td_status conclude(struct td_comm_sim_world *w, struct td_comm *comm,
                               struct td_comm_simtime_verdict verdict, struct td_err *err)
{
    const struct td_comm_xfer *x = &comm->xfers[verdict.msg];
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];

    own->now_ns = verdict.at_ns;
    switch (verdict.end) {
    case TD_COMM_SIMTIME_DONE:
        return TD_OK;
    case TD_COMM_SIMTIME_LOST:
        td_comm_world_fail(&w->base, TD_PEER_LOST);
        return td_err_set(err, TD_PEER_LOST, "rank %u of %u: %s: this rank was lost at %.9f s",
                          comm->rank, comm->size, comm->op, (double)own->now_ns * 1e-9);
    case TD_COMM_SIMTIME_LATE:
        if (comm->deadline_ns == UINT64_MAX)
            return td_err_set(
                err, TD_PEER_TIMED_OUT,
                "rank %u of %u: %s: world rank %u never answers, and no deadline ends this",
                comm->rank, comm->size, comm->op, x->peer);
        return td_comm_report_timeout(comm, x->peer, err);
    case TD_COMM_SIMTIME_FAILED:
        if (w->msgs[verdict.msg].status == TD_PEER_PROTOCOL)
            return td_comm_report_length(comm, x->peer, w->sends[verdict.msg].bytes, x->bytes, err);
        return td_comm_report_lost(comm, x->peer, err);
    }
    return TD_INTERNAL; /* not reached */
}

static enum td_status wait_timed(struct td_comm_sim_world *w, struct td_comm *comm, uint32_t tag,
                                 struct td_err *err)
{
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];
    struct td_comm_simtime_exchange x = {.start_ns = own->now_ns,
                                         .deadline_ns = comm->deadline_ns,
                                         .lost_ns = own->lost_ns,
                                         .n_msgs = comm->n_xfers,
                                         .msgs = w->msgs};

    for (;;) {
        bool all = look(w, comm, tag);
        struct td_comm_simtime_verdict verdict = td_comm_simtime_decide(&x);

        if (atomic_load(&w->base.failed) != TD_OK)
            return td_comm_report_failed(comm, err);
        if (all || own->doomed)
            return conclude(w, comm, verdict, err);
        if (!sleep_timed(w, verdict.at_ns))
            return td_err_set(err, TD_INTERNAL,
                              "rank %u of %u: %s: nothing happened for too long in real time while "
                              "world rank %u was awaited; has a thread ended without closing?",
                              comm->rank, comm->size, comm->op, comm->xfers[verdict.msg].peer);
    }
}

enum td_status td_comm_sim_timed_exchange(struct td_comm_sim_world *w, struct td_comm *comm,
                                          uint32_t tag, struct td_err *err)
{
    struct td_comm_sim_end *own = &w->sim->ends[w->base.rank];
    uint64_t port_free_ns = own->now_ns; /* an exchange ends when all its messages have left */
    enum td_status status = TD_OK;

    memset(w->msgs, 0, comm->n_xfers * sizeof *w->msgs);
    for (uint32_t i = 0; i < comm->n_xfers && status == TD_OK; i++) {
        if (comm->xfers[i].is_send)
            status = post_timed(w, comm, i, tag, &port_free_ns, err);
    }
    if (status == TD_OK)
        status = wait_timed(w, comm, tag, err);
    if (status != TD_OK) {
        td_comm_sim_withdraw(w, comm);
        td_comm_sim_leave(w->sim, own);
    }
    return status;
}
