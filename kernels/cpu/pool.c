#include "kernels/cpu/pool.h"

#include "kernels/base/clock.h"
#include "kernels/base/relax.h"
#include "kernels/cpu/cores.h"

#include <limits.h>
#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LINE = 64, HUGE_PAGE = 2 << 20, NODES = 1024, SPINS_BEFORE_YIELD = 100000 };

struct worker {
    /* The line that others look at: thieves, and at the end of a stage all of them.
     * Tasks that were taken from this thread's run, in stages of even and of odd number. In a stage of one kind the thread
     * clears its counter of the other kind: nobody is in the stage before any more, and nobody in the next one yet. */
    _Alignas(LINE) atomic_uint next[2];
    atomic_uint done; /* stages that this thread has left */
    _Alignas(LINE) struct td_pool *pool;
    uint32_t index;
    uint32_t node;
    int cpu; /* < 0: not bound */
    pthread_t thread;
};

struct td_pool {
    uint32_t n_threads;
    uint64_t spin_ns;
    /* The owner's line. */
    _Alignas(LINE) uint32_t n_done; /* stages so far; the number of the next */
    bool running;                   /* always set while a task runs */
    /* The line that a worker reads when it wakes: the owner writes the rest of it before the epoch. */
    _Alignas(LINE) atomic_uint epoch; /* one more per run; workers sleep on it */
    atomic_uint sleepers;
    atomic_bool stop;
    uint32_t n_stages;
    uint32_t number; /* of the first stage */
    struct td_pool_stage first;
    const struct td_pool_stage *rest;
    struct worker workers[]; /* [n_threads] */
};

static void bind_self(const struct worker *w)
{
    cpu_set_t one;

    if (w->cpu < 0)
        return;
    CPU_ZERO(&one);
    CPU_SET((size_t)w->cpu, &one);
    (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one);
}

/* ---- one stage ---- */

static uint32_t run_begin(const struct td_pool *pool, uint32_t n_tasks, uint32_t t)
{
    return (uint32_t)(((uint64_t)n_tasks * t + pool->n_threads - 1) / pool->n_threads);
}

/* The thread whose run has most tasks left, of this node if there is one; `me` when nobody has any. */
static uint32_t find_victim(struct td_pool *pool, uint32_t me, uint32_t n_tasks, uint32_t number)
{
    uint32_t victim = me, most = 0, end = 0;
    bool near = false;

    for (uint32_t t = 0; t < pool->n_threads; t++) {
        const struct worker *w = &pool->workers[t];
        uint32_t taken = atomic_load_explicit(&w->next[number & 1], memory_order_relaxed);
        uint32_t begin = end, n;
        bool same = w->node == pool->workers[me].node;

        end = run_begin(pool, n_tasks, t + 1);
        n = end - begin;
        if (t == me || taken >= n || (near && !same) || (near == same && n - taken <= most))
            continue;
        victim = t;
        most = n - taken;
        near = same;
    }
    return victim;
}

/* A thread's part of a stage: its own run in order, then one task at a time of others' runs. Whoever adds to a run's
 * counter has the task that it counted. */
static void work(struct td_pool *pool, uint32_t me, const struct td_pool_stage *stage,
                 uint32_t number)
{
    struct worker *w = &pool->workers[me];
    uint32_t t = me;

    atomic_store_explicit(&w->next[(number + 1) & 1], 0, memory_order_relaxed);
    do {
        uint32_t begin = run_begin(pool, stage->n_tasks, t);
        uint32_t n = run_begin(pool, stage->n_tasks, t + 1) - begin, k;

        do {
            k = atomic_fetch_add_explicit(&pool->workers[t].next[number & 1], 1,
                                          memory_order_relaxed);
            if (k < n)
                stage->fn(stage->user, begin + k);
        } while (k < n && t == me);
        t = find_victim(pool, me, stage->n_tasks, number);
    } while (t != me);
    atomic_store_explicit(&w->done, number + 1, memory_order_release);
}

/* Until every thread has left stage `number`. */
static void wait_all(struct td_pool *pool, uint32_t number)
{
    uint32_t spins = 0;

    for (uint32_t t = 0; t < pool->n_threads; t++)
        while ((int32_t)(atomic_load_explicit(&pool->workers[t].done, memory_order_acquire) -
                         number) <= 0) {
            if (pool->spin_ns && ++spins < SPINS_BEFORE_YIELD)
                td_relax_core();
            else
                sched_yield();
        }
}

static void work_stages(struct td_pool *pool, uint32_t me)
{
    const struct td_pool_stage *rest = pool->rest;
    uint32_t n_stages = pool->n_stages, number = pool->number;

    work(pool, me, &pool->first, number);
    for (uint32_t i = 1; i < n_stages; i++) {
        wait_all(pool, number + i - 1);
        work(pool, me, &rest[i - 1], number + i);
    }
}

/* ---- threads ---- */

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
            td_relax_core();
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
    struct worker *w = arg;
    uint32_t seen = 0;

    bind_self(w);
    for (;;) {
        seen = wait_epoch(w->pool, seen);
        if (atomic_load(&w->pool->stop))
            return NULL;
        work_stages(w->pool, w->index);
    }
}

static void advance(struct td_pool *pool)
{
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers))
        (void)syscall(SYS_futex, &pool->epoch, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Ends the workers before `end`. */
static void join(struct td_pool *pool, uint32_t end)
{
    atomic_store(&pool->stop, true);
    advance(pool);
    for (uint32_t i = 1; i < end; i++)
        pthread_join(pool->workers[i].thread, NULL);
}

enum td_status td_pool_open(const struct td_pool_params *params, struct td_pool **out,
                            struct td_err *err)
{
    uint32_t n = params->n_threads;
    size_t bytes = sizeof(struct td_pool) + n * sizeof(struct worker);
    struct td_pool *pool = aligned_alloc(LINE, bytes);

    if (!pool)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a pool of %u threads", n);
    memset(pool, 0, bytes);
    pool->n_threads = n;
    pool->spin_ns = params->spin_ns;
    for (uint32_t i = 0; i < n; i++) {
        struct worker *w = &pool->workers[i];

        w->pool = pool;
        w->index = i;
        w->cpu = params->seats ? (int)params->seats[i].cpu : -1;
        w->node = params->seats ? params->seats[i].node : 0;
    }
    for (uint32_t i = 1; i < n; i++)
        if (pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i])) {
            join(pool, i);
            free(pool);
            return td_err_set(err, TD_NO_MEMORY, "cannot start thread %u of %u", i + 1, n);
        }
    bind_self(&pool->workers[0]);
    *out = pool;
    return TD_OK;
}

void td_pool_close(struct td_pool *pool)
{
    if (!pool)
        return;
    join(pool, pool->n_threads);
    free(pool);
}

uint32_t td_pool_threads(const struct td_pool *pool)
{
    return pool->n_threads;
}

/* ---- runs ---- */

static void run_alone(const struct td_pool_stage *stage)
{
    for (uint32_t i = 0; i < stage->n_tasks; i++)
        stage->fn(stage->user, i);
}

void td_pool_chain(struct td_pool *pool, const struct td_pool_stage *stages, uint32_t n_stages)
{
    bool alone = pool->n_threads == 1 || pool->running;
    uint32_t first = 0, end = n_stages;

    while (first < end && (alone || stages[first].n_tasks <= 1))
        run_alone(&stages[first++]);
    if (first == end)
        return;
    while (stages[end - 1].n_tasks <= 1)
        end--;
    pool->running = true;
    pool->first = stages[first];
    pool->rest = stages + first + 1;
    pool->n_stages = end - first;
    pool->number = pool->n_done;
    pool->n_done += end - first;
    advance(pool);
    work_stages(pool, 0);
    wait_all(pool, pool->n_done - 1);
    pool->running = false;
    while (end < n_stages)
        run_alone(&stages[end++]);
}

void td_pool_run(struct td_pool *pool, uint32_t n_tasks, td_pool_fn *fn, void *user)
{
    struct td_pool_stage stage = {fn, user, n_tasks};

    td_pool_chain(pool, &stage, 1);
}

/* ---- memory ---- */

static void prefer_node(uintptr_t begin, uintptr_t end, uint32_t node)
{
    enum { BITS = 8 * sizeof(unsigned long) };
    unsigned long mask[NODES / BITS] = {0};

    if (node >= NODES || begin >= end)
        return;
    mask[node / BITS] = 1ul << node % BITS;
    /* The system counts one bit less than it is told. */
    (void)syscall(SYS_mbind, begin, end - begin, MPOL_PREFERRED, mask, NODES + 1, 0);
}

void td_pool_place(const struct td_pool *pool, void *data, size_t bytes)
{
    const struct worker *w = pool->workers;
    uint32_t n = pool->n_threads;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), base = (uintptr_t)data;
    uintptr_t begin = base / page * page, last = (base + bytes + page - 1) / page * page;

    if (w[0].node == w[n - 1].node) /* seats are in the order of their nodes */
        return;
    for (uint32_t t = 1; t <= n; t++) {
        uintptr_t cut = (base + bytes * t / n + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;

        if (t < n && w[t].node == w[t - 1].node)
            continue;
        cut = t == n || cut > last ? last : cut;
        prefer_node(begin, cut, w[t - 1].node);
        begin = cut;
    }
}
