/* Threads of the CPU backend. The caller takes part, so a pool of one has no thread of its own.
 * One owner calls run; workers spin for a while after a run and then sleep on a futex. */
#ifndef TD_KERNELS_CPU_POOL_H
#define TD_KERNELS_CPU_POOL_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct td_pool;

struct td_pool_params {
    uint32_t n_threads; /* with the caller; >= 1 */
    uint32_t first_core;
    bool
        pin; /* thread i, the caller included, is bound to core first_core + i of the affinity mask */
    uint64_t spin_ns;
};
enum td_status td_pool_open(const struct td_pool_params *params, struct td_pool **pool,
                            struct td_err *err);
void td_pool_close(struct td_pool *pool);
uint32_t td_pool_threads(const struct td_pool *pool);

typedef void td_pool_fn(void *user, uint32_t task);
/* Calls fn(user, 0 .. n_tasks - 1), each once, from any of the threads; returns when all are done. */
void td_pool_run(struct td_pool *pool, uint32_t n_tasks, td_pool_fn *fn, void *user);
/* How many cores the affinity mask of this process holds. */
uint32_t td_pool_cores(void);

#endif
