/* How far the hosts' wall clocks are from rank 0's: of many exchanges over comm the one with the shortest round trip counts, since
 * it was held up least (RFC 5905 section 10). Main thread. */
#ifndef TD_DAEMON_CLI_CLOCKSKEW_H
#define TD_DAEMON_CLI_CLOCKSKEW_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct td_comm;

/* One exchange: when the question left and the answer came, by the asker's clock, and the other's clock in between. */
struct td_clockskew_sample {
    int64_t sent_ns, answered_ns, came_ns;
};

/* How far the other's clock is ahead, by the sample with the shortest round trip; n > 0. */
int64_t td_clockskew_best(const struct td_clockskew_sample *samples, uint32_t n);

/* Rank 0 asks every rank r with is_asked[r]; the same on all ranks. Fills offset_ns [size] on all ranks: positive means ahead of
 * rank 0, 0 for those who were not asked. Collective. */
enum td_status td_clockskew_measure(struct td_comm *world, const bool *is_asked, int64_t *offset_ns,
                                    struct td_err *err);

#endif
