/* Which algorithm is the fastest for the sums of a group, found by trying. */
#ifndef TD_COMM_TUNE_H
#define TD_COMM_TUNE_H

#include "comm/comm.h"

/* One size that was tried. */
struct td_tune_trial {
    size_t bytes; /* of the sum, n_floats * 4 */
    double
        seconds[TD_N_SUM_ALGORITHMS]; /* best of the tries; 0: not supported, or no time was left */
    enum td_sum_algorithm best;
};

enum { TD_TUNE_MAX_TRIALS = 6 };

struct td_tune_result {
    uint32_t n; /* trials; 0: the group has one algorithm only */
    struct td_tune_trial trial[TD_TUNE_MAX_TRIALS];
    struct td_sum_choices choices; /* each size's by the trial nearest to it */
};

/* Whether there is something to choose between. */
bool td_tune_has_choice(const struct td_comm *comm);
/* Tries sums of 1 KB to 1 MB, for about `budget_ns` in all; small ones first. Collective; the result is the same on all ranks,
 * rank 0's clock counts. Leaves the group's own choice as it is. TD_NO_MEMORY. */
enum td_status td_tune_sums(struct td_comm *comm, uint64_t budget_ns, struct td_tune_result *result,
                            struct td_err *err);

#endif
