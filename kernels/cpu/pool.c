#include "kernels/cpu/pool.h"

#include "kernels/base/clock.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct td_pool {
    uint32_t n_threads;
    uint64_t spin_ns;
    cpu_set_t cores;
    bool pin;
    uint32_t first_core;
    td_pool_fn *fn;
    void *user;
    uint32_t n_tasks;
    _Alignas(64) atomic_uint epoch; /* one more per run; workers sleep on it */
    _Alignas(64) atomic_uint next;  /* next task */
    _Alignas(64) atomic_uint busy;  /* workers that have not finished this epoch */
    atomic_uint sleepers;
    atomic_bool stop;
    pthread_t threads[];
};

struct worker_start {
    struct td_pool *pool;
    uint32_t index;
};

uint32_t td_pool_cores(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    return (uint32_t)CPU_COUNT(&set);
}

static void bind_self(const struct td_pool *pool, uint32_t index)
{
    uint32_t n = (uint32_t)CPU_COUNT(&pool->cores);
    uint32_t want = (pool->first_core + index) % n;
    cpu_set_t one;

    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &pool->cores) && want-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one);
            return;
        }
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

static void work(struct td_pool *pool)
{
    for (;;) {
        uint32_t task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);

        if (task >= pool->n_tasks)
            return;
        pool->fn(pool->user, task);
    }
}

/* Waits until the epoch differs from `seen`: spins, then sleeps. */
static uint32_t wait_epoch(struct td_pool *pool, uint32_t seen)
{
    uint64_t until = pool->spin_ns ? td_clock_now_ns() + pool->spin_ns : 0;
    uint32_t epoch, spins = 0;

    for (;;) {
        epoch = atomic_load_explicit(&pool->epoch, memory_order_acquire);
        if (epoch != seen)
            return epoch;
        if (until) {
            relax();
            if (++spins % 256 == 0 && td_clock_now_ns() > until)
                until = 0;
            continue;
        }
        atomic_fetch_add(&pool->sleepers, 1);
        (void)syscall(SYS_futex, &pool->epoch, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        atomic_fetch_sub(&pool->sleepers, 1);
    }
}

static void *worker_main(void *arg)
{
    struct worker_start start = *(struct worker_start *)arg;
    struct td_pool *pool = start.pool;
    uint32_t seen = 0;

    free(arg);
    if (pool->pin)
        bind_self(pool, start.index);
    for (;;) {
        seen = wait_epoch(pool, seen);
        if (atomic_load(&pool->stop))
            return NULL;
        work(pool);
        atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_release);
    }
}

static void advance(struct td_pool *pool)
{
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers))
        (void)syscall(SYS_futex, &pool->epoch, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void join(struct td_pool *pool, uint32_t n_started)
{
    atomic_store(&pool->stop, true);
    advance(pool);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(pool->threads[i], NULL);
}

enum td_status td_pool_open(const struct td_pool_params *params, struct td_pool **out,
                            struct td_err *err)
{
    uint32_t n_workers = params->n_threads - 1;
    size_t bytes = (sizeof(struct td_pool) + n_workers * sizeof(pthread_t) + 63) & ~(size_t)63;
    struct td_pool *pool = aligned_alloc(64, bytes);

    if (!pool)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a pool of %u threads",
                          params->n_threads);
    memset(pool, 0, bytes);
    pool->n_threads = params->n_threads;
    pool->spin_ns = params->spin_ns;
    pool->first_core = params->first_core;
    pool->pin = params->pin && sched_getaffinity(0, sizeof pool->cores, &pool->cores) == 0;
    for (uint32_t i = 0; i < n_workers; i++) {
        struct worker_start *start = malloc(sizeof *start);

        if (start)
            *start = (struct worker_start){pool, i + 1};
        if (!start || pthread_create(&pool->threads[i], NULL, worker_main, start)) {
            free(start);
            join(pool, i);
            free(pool);
            return td_err_set(err, TD_NO_MEMORY, "cannot start thread %u of %u", i + 2,
                              params->n_threads);
        }
    }
    if (pool->pin)
        bind_self(pool, 0);
    *out = pool;
    return TD_OK;
}

void td_pool_close(struct td_pool *pool)
{
    if (!pool)
        return;
    join(pool, pool->n_threads - 1);
    free(pool);
}

uint32_t td_pool_threads(const struct td_pool *pool)
{
    return pool->n_threads;
}

void td_pool_run(struct td_pool *pool, uint32_t n_tasks, td_pool_fn *fn, void *user)
{
    uint32_t spins = 0;

    if (pool->n_threads == 1 || n_tasks == 1) {
        for (uint32_t i = 0; i < n_tasks; i++)
            fn(user, i);
        return;
    }
    pool->fn = fn;
    pool->user = user;
    pool->n_tasks = n_tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->busy, pool->n_threads - 1, memory_order_relaxed);
    advance(pool);
    work(pool);
    while (atomic_load_explicit(&pool->busy, memory_order_acquire)) {
        if (pool->spin_ns && ++spins < 100000)
            relax();
        else
            sched_yield();
    }
}
