/* How a rank waits for another one: it spins while that pays, then yields its core, then sleeps until it is rung, and all
 * the while looks for the deadline, the abort and the death of whom it waits for.
 *
 *     td_wait_begin(&w, comm, true);
 *     while (!there)
 *         if ((status = td_wait_pause(&w, awaited, err)))
 *             break;
 *     td_wait_end(&w);
 *
 * Owner thread only. */
#ifndef TD_COMM_WAIT_H
#define TD_COMM_WAIT_H

#include "comm/comm_impl.h"

struct td_wait {
    struct td_comm *comm;
    bool may_sleep; /* everything that is waited for comes through shared memory */
    bool armed;
    uint32_t bell;
    uint32_t n_looks;
    uint64_t began_ns;
    uint64_t next_check_ns; /* of the other's life */
    uint32_t gone;          /* world rank that was found to be gone; UINT32_MAX: none */
};

static inline void td_wait_begin(struct td_wait *w, struct td_comm *comm, bool may_sleep)
{
    *w = (struct td_wait){.comm = comm, .may_sleep = may_sleep, .gone = UINT32_MAX};
}

/* Between two looks. `awaited`: world rank of one that is waited for. Returns how the wait ends early, else TD_OK. */
enum td_status td_wait_pause(struct td_wait *w, uint32_t awaited, struct td_err *err);
void td_wait_end(struct td_wait *w);

#endif
