/* Inside of the simulated group: what its two ways to exchange, at once (comm_sim.c) and in virtual time
 * (comm_sim_timed.c), share. Included by these two only. Everything here is called with the group's lock held. */
#ifndef TD_COMM_COMM_SIM_IMPL_H
#define TD_COMM_COMM_SIM_IMPL_H

#include "comm/comm_impl.h"
#include "comm/comm_sim.h"
#include "comm/comm_simtime.h"

#include <pthread.h>

/* A message on its way, in the queue of its receiver. A large one lies in its sender's `sends` and points to the
 * sender's buffer; a small one is allocated with its bytes behind it, and the queue owns it. */
struct td_comm_sim_message {
    struct td_comm_sim_message *next;
    uint32_t from;
    uint32_t tag;
    const void *data;
    size_t bytes;
    bool owned;
    bool taken;
    /* With a model. */
    uint64_t arrives_ns;
    uint64_t port_ns;
    uint64_t asked_ns; /* once taken: when its receiver began to ask for it */
};

struct td_comm_sim_end {
    pthread_cond_t wake;
    struct td_comm_sim_message *first;
    struct td_comm_sim_message **last;
    bool gone; /* killed, closed, or lost to one that was; with a model, after any failure */
    uint32_t host;
    /* With a model. */
    bool blocked; /* waits, has looked, and nothing has happened to it since */
    bool doomed;  /* told that what it does not know yet never happens */
    bool silent;  /* does nothing more, and nobody is told */
    uint64_t now_ns;
    uint64_t gone_ns;
    uint64_t lost_ns; /* when it will be lost; UINT64_MAX: not */
    uint64_t fail_ns; /* while blocked: when it fails if nothing happens */
};

/* All ranks of one simulated group. Everything in it is guarded by `lock`. */
struct td_comm_sim_group {
    pthread_mutex_t lock;
    uint32_t n_ranks;
    uint32_t n_open;
    bool timed;   /* with a model */
    bool started; /* some rank has exchanged something */
    struct td_comm_simtime_model model;
    struct td_comm_sim_end ends[];
};

struct td_comm_sim_world {
    struct td_comm_world base;
    struct td_comm_sim_group *sim;
    uint32_t cap_sends;
    /* [cap_sends] each, of the exchange under way, by index of its xfer. */
    struct td_comm_sim_message
        *sends; /* of a receive with a model: `bytes` of a message of another length */
    bool *done; /* without a model */
    struct td_comm_simtime_msg *msgs; /* with a model */
};

void td_comm_sim_wake(struct td_comm_sim_end *end);
/* The rank takes no more part, from its present time on; all look whether they waited for it. */
void td_comm_sim_leave(struct td_comm_sim_group *sim, struct td_comm_sim_end *end);

/* Makes the message of xfer i; an eager one has its bytes with it. TD_NO_MEMORY. */
enum td_status td_comm_sim_new_message(struct td_comm_sim_world *w, struct td_comm *comm,
                                       uint32_t i, uint32_t tag, struct td_comm_sim_message **made,
                                       struct td_err *err);
/* Puts it behind the others of its receiver, which it wakes. */
void td_comm_sim_push(struct td_comm_sim_end *to, struct td_comm_sim_message *m);
/* The link to the oldest message from `from` with `tag`, or NULL. */
struct td_comm_sim_message **td_comm_sim_find_message(struct td_comm_sim_end *own, uint32_t from,
                                                      uint32_t tag);
/* Receives that message into `dst`, which has room for it. */
void td_comm_sim_take_message(struct td_comm_sim_world *w, struct td_comm_sim_message **link,
                              void *dst);
/* Takes back what nobody has received, because the buffers go back to the caller. */
void td_comm_sim_withdraw(struct td_comm_sim_world *w, struct td_comm *comm);

/* The transport's exchange, with a model. */
enum td_status td_comm_sim_timed_exchange(struct td_comm_sim_world *w, struct td_comm *comm,
                                          uint32_t tag, struct td_err *err);
/* When no rank can go on, tells the one that fails first to do so. */
void td_comm_sim_timed_settle(struct td_comm_sim_group *sim);

#endif
