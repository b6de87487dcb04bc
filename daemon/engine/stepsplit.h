/* Where the time of steps went, from what every rank of a group has counted. Pure.
 * A rank's time inside steps is its own computing and its time in exchanges. Of the latter, what even the rank with the least
 * of it spent is the exchange itself: the others came first and waited. So a rank that is always last waits only as
 * long as the link takes; where ranks are last by turns, some waiting counts as exchange. */
#ifndef TD_DAEMON_ENGINE_STEPSPLIT_H
#define TD_DAEMON_ENGINE_STEPSPLIT_H

#include <stdint.h>

/* Seconds, the mean of the ranks; together their time inside steps. */
struct td_stepsplit {
    double compute;
    double exchange;
    double wait; /* for ranks that come later */
};

/* Of n ranks: run_ns[r] inside steps, inside_ns[r] of it in exchanges. All zero for n = 0. */
struct td_stepsplit td_stepsplit_of(uint32_t n, const uint64_t *run_ns, const uint64_t *inside_ns);

#endif
