/* Runs one function on every rank of a group whose ranks are threads of this process. Included once per program. */
#ifndef TD_TESTS_UNIT_COMM_COMM_THREADS_H
#define TD_TESTS_UNIT_COMM_COMM_THREADS_H

#include "tests/unit/comm/comm_check.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

enum { MAX_RANKS = 8, MS = 1000 * 1000 };

/* Ranks that are about to wait; the faults come after all of them. */
static atomic_uint n_ready;

typedef void (*rank_fn)(struct comm_check *k, void *shared);

struct rank_thread {
    pthread_t thread;
    struct comm_check check;
    rank_fn fn;
    void *shared;
};

static inline void pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * MS};

    nanosleep(&ts, NULL);
}

static inline void *run_rank(void *arg)
{
    struct rank_thread *t = arg;

    td_comm_set_deadline(t->check.comm, 20000ull * MS); /* a bug fails instead of hanging */
    t->fn(&t->check, t->shared);
    return NULL;
}

/* Runs `fn` on every end, each in its thread, and closes the ends when all have returned. `meanwhile` runs here at the
 * same time and may touch the ends. */
static inline void run_ends(uint32_t n, struct td_comm **comms, uint64_t seed, bool two_levels,
                            rank_fn fn, void *shared, void (*meanwhile)(struct td_comm **comms))
{
    struct rank_thread threads[MAX_RANKS];

    atomic_store(&n_ready, 0);
    for (uint32_t r = 0; r < n; r++) {
        threads[r] = (struct rank_thread){
            .check = {.comm = comms[r], .seed = seed, .two_levels = two_levels},
            .fn = fn,
            .shared = shared};
        assert_int_equal(pthread_create(&threads[r].thread, NULL, run_rank, &threads[r]), 0);
    }
    if (meanwhile)
        meanwhile(comms);
    for (uint32_t r = 0; r < n; r++)
        pthread_join(threads[r].thread, NULL);
    for (uint32_t r = 0; r < n; r++)
        td_comm_close(threads[r].check.comm);
    for (uint32_t r = 0; r < n; r++) { /* the first failure makes others, which time out */
        if (threads[r].check.fail[0])
            print_error("%s\n", threads[r].check.fail);
    }
    for (uint32_t r = 0; r < n; r++)
        assert_string_equal(threads[r].check.fail, "");
}

#endif
