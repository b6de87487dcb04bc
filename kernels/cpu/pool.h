/* Threads of the CPU backend. The caller takes part as thread 0, so a pool of one has no thread of its own.
 * One owner calls run and chain; workers spin for a while after a run and then sleep on a futex.
 *
 * Tasks are dealt as one run of neighbours per thread: thread t of T starts with tasks ceil(n * t / T) .. and takes them
 * in order, so what a task touches first lies near the thread that will have it again in every call with as many tasks.
 * A thread that is through takes tasks from the run with most left, of its own NUMA node while there is one. */
#ifndef TD_KERNELS_CPU_POOL_H
#define TD_KERNELS_CPU_POOL_H

#include "kernels/base/err.h"

#include <stddef.h>
#include <stdint.h>

struct td_cores_seat;
struct td_pool;

struct td_pool_params {
    uint32_t n_threads; /* with the caller; >= 1 */
    /* [n_threads], node by node, borrowed for the call: thread i, the caller included, is bound to its seat. NULL: nobody is
     * bound. */
    const struct td_cores_seat *seats;
    uint64_t spin_ns; /* how long an idle thread spins; 0 where there are more threads than cores */
};
enum td_status td_pool_open(const struct td_pool_params *params, struct td_pool **pool,
                            struct td_err *err);
void td_pool_close(struct td_pool *pool); /* NULL is legal */
uint32_t td_pool_threads(const struct td_pool *pool);

typedef void td_pool_fn(void *user, uint32_t task);

/* Calls fn(user, 0 .. n_tasks - 1), each once, from any of the threads. */
struct td_pool_stage {
    td_pool_fn *fn;
    void *user;
    uint32_t n_tasks;
};
/* Runs the stages one after the other with one wake-up: no task of a stage starts before all of the stage before it have
 * ended. Returns when all are done. Between two stages there is one barrier; none after a first stage or before a last one
 * of a single task, which the caller does alone. A task that calls it has all done by its own thread. */
void td_pool_chain(struct td_pool *pool, const struct td_pool_stage *stages, uint32_t n_stages);
/* A chain of one stage. */
void td_pool_run(struct td_pool *pool, uint32_t n_tasks, td_pool_fn *fn, void *user);
/* Asks for `data`, whose parts belong to tasks in order, to lie in the memory of the nodes that those tasks are dealt to, from
 * the first touch on, whoever that is. Cuts at 2 MiB; without effect on one node, or where the system does not allow it. */
void td_pool_place(const struct td_pool *pool, void *data, size_t bytes);

#endif
