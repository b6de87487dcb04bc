/* The pool: every task once, for any number of threads and tasks, spinning or asleep between runs, whoever is slow; stages in
 * order; clean under the thread sanitizer (TD_SANITIZE=thread). */
#include "tests/unit/check.h"

#include "kernels/cpu/cores.h"
#include "kernels/cpu/pool.h"

#include <dirent.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TASKS = 3000, MAX_THREADS = 7 };

struct counts {
    uint32_t n_tasks;
    uint32_t runs_of
        [MAX_TASKS]; /* plain: a task that ran twice at once is a race that the sanitizer sees */
    uint64_t input[MAX_TASKS];  /* written before the run */
    uint64_t output[MAX_TASKS]; /* read after it */
};

static void count(void *user, uint32_t task)
{
    struct counts *c = user;

    if (task < MAX_TASKS) {
        c->runs_of[task]++;
        c->output[task] = c->input[task] * 3;
    }
}

static void run_and_check(struct td_pool *pool, struct counts *c, uint32_t n_tasks, uint64_t salt)
{
    memset(c->runs_of, 0, sizeof c->runs_of);
    for (uint32_t i = 0; i < n_tasks; i++)
        c->input[i] = salt + i;
    td_pool_run(pool, n_tasks, count, c);
    for (uint32_t i = 0; i < n_tasks; i++) {
        assert_int_equal(c->runs_of[i], 1);
        assert_int_equal(c->output[i], (salt + i) * 3);
    }
    for (uint32_t i = n_tasks; i < MAX_TASKS; i++)
        assert_int_equal(c->runs_of[i], 0);
}

static void nap(long us)
{
    struct timespec t = {0, us * 1000};

    nanosleep(&t, NULL);
}

static struct td_pool *open_pool(uint32_t n_threads, uint64_t spin_ns,
                                 const struct td_cores_seat *seats)
{
    struct td_pool_params p = {.n_threads = n_threads, .spin_ns = spin_ns, .seats = seats};
    struct td_pool *pool;
    struct td_err err;

    assert_int_equal(td_pool_open(&p, &pool, &err), TD_OK);
    assert_int_equal(td_pool_threads(pool), n_threads);
    return pool;
}

static void test_pool_runs_every_task_once_with_1_to_7_threads(void **state)
{
    static const uint32_t n_tasks[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 17, 256, MAX_TASKS};
    static struct counts c;

    (void)state;
    for (uint32_t threads = 1; threads <= MAX_THREADS; threads++)
        for (int spins = 0; spins < 2; spins++) {
            struct td_pool *pool = open_pool(threads, spins ? 200000 : 0, NULL);

            for (uint32_t round = 0; round < 15; round++)
                for (size_t i = 0; i < sizeof n_tasks / sizeof n_tasks[0]; i++)
                    run_and_check(pool, &c, n_tasks[i], round * 1000);
            td_pool_close(pool);
        }
}

static void test_pool_wakes_threads_that_sleep_or_are_about_to(void **state)
{
    static struct counts c;

    (void)state;
    for (uint32_t threads = 2; threads <= 4; threads++) {
        struct td_pool *pool = open_pool(threads, 50000, NULL); /* 50 us, then sleep */

        for (uint32_t round = 0; round < 300; round++) {
            run_and_check(pool, &c, 1 + round % 9, round);
            if (round % 3)
                nap(round % 3 == 1 ? 50 : 300); /* at the edge, and well past it */
        }
        td_pool_close(pool);
    }
}

static void test_pool_runs_straight_after_each_other_do_not_mix(void **state)
{
    static struct counts a, b;

    (void)state;
    for (uint32_t threads = 2; threads <= 4; threads++) {
        struct td_pool *pool = open_pool(threads, 0, NULL);

        for (uint32_t round = 0; round < 1500; round++) {
            struct counts *c = round % 2 ? &a : &b;
            uint32_t n = 2 + round % 3;

            memset(c->runs_of, 0, 8 * sizeof c->runs_of[0]);
            td_pool_run(pool, n, count, c);
            for (uint32_t i = 0; i < 8; i++)
                assert_int_equal(c->runs_of[i], i < n);
        }
        td_pool_close(pool);
    }
}

/* Threads of this process, but for those that the sanitizers have. */
static uint32_t count_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    uint32_t n = 0;

    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

static uint32_t first_cpu(void)
{
    cpu_set_t set;
    uint32_t cpu = 0;

    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    while (!CPU_ISSET(cpu, &set))
        cpu++;
    return cpu;
}

static void test_pool_opens_and_closes_without_a_run(void **state)
{
    uint32_t before = count_threads();

    (void)state;
    for (int i = 0; i < 1000; i++)
        td_pool_close(open_pool(1 + (uint32_t)i % 4, i % 2 ? 1000000 : 0, NULL));
    assert_int_equal(count_threads(), before);
    td_pool_close(NULL);
}

/* ---- how tasks are dealt ---- */

/* As many tasks as threads, each of which waits until all have begun: so every thread has one, its own. */
struct roll_call {
    uint32_t n_threads;
    atomic_uint n_begun;
    pthread_t thread_of[MAX_THREADS];
};

static void answer(void *user, uint32_t task)
{
    struct roll_call *r = user;

    r->thread_of[task] = pthread_self();
    atomic_fetch_add(&r->n_begun, 1);
    while (atomic_load(&r->n_begun) < r->n_threads)
        sched_yield();
}

static void test_pool_deals_a_task_to_the_same_thread_every_time(void **state)
{
    (void)state;
    for (uint32_t threads = 2; threads <= MAX_THREADS; threads++) {
        struct td_pool *pool = open_pool(threads, 0, NULL);
        struct roll_call first = {.n_threads = threads};

        td_pool_run(pool, threads, answer, &first);
        assert_true(pthread_equal(first.thread_of[0], pthread_self()));
        for (int round = 0; round < 20; round++) {
            struct roll_call again = {.n_threads = threads};

            td_pool_run(pool, threads, answer, &again);
            for (uint32_t t = 0; t < threads; t++)
                assert_true(pthread_equal(first.thread_of[t], again.thread_of[t]));
        }
        td_pool_close(pool);
    }
}

/* Task 0 ends when all others have: whoever has it, others take the rest of its thread's run. */
struct slow_first {
    uint32_t n_tasks;
    atomic_uint n_ended;
    uint32_t n_ended_before; /* task 0 */
};

static void hold_first(void *user, uint32_t task)
{
    struct slow_first *s = user;

    for (int ms = 0; task == 0 && ms < 20000 && atomic_load(&s->n_ended) < s->n_tasks - 1; ms++)
        nap(1000);
    if (task == 0)
        s->n_ended_before = atomic_load(&s->n_ended);
    atomic_fetch_add(&s->n_ended, 1);
}

static void test_pool_takes_the_rest_of_a_slow_threads_run(void **state)
{
    uint32_t cpu = first_cpu();
    /* Two by two on a node; the slow one alone on its node; the slow one's neighbour and two from afar. */
    const struct td_cores_seat seats[3][4] = {{{cpu, 0}, {cpu, 0}, {cpu, 1}, {cpu, 1}},
                                              {{cpu, 0}, {cpu, 1}, {cpu, 1}, {cpu, 1}},
                                              {{cpu, 2}, {cpu, 1}, {cpu, 0}, {cpu, 2}}};
    cpu_set_t before;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (uint32_t threads = 2; threads <= 4; threads++)
        for (int at = 0; at < 4; at++) {
            struct td_pool *pool = open_pool(threads, 0, at < 3 ? seats[at] : NULL);

            for (uint32_t n = 2; n < 400; n = n * 3 + 1) {
                struct slow_first s = {.n_tasks = n};

                td_pool_run(pool, n, hold_first, &s);
                assert_int_equal(s.n_ended, n);
                assert_int_equal(s.n_ended_before, n - 1);
            }
            td_pool_close(pool);
            assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
        }
}

/* ---- chains ---- */

struct relay {
    uint32_t n_tasks[4];
    uint64_t value[4][MAX_TASKS];
    uint64_t sum_seen[4][MAX_TASKS]; /* what a task found of the stage before it */
    struct relay_stage {
        struct relay *relay;
        uint32_t index;
    } stages[4];
};

static void pass_on(void *user, uint32_t task)
{
    const struct relay_stage *stage = user;
    struct relay *r = stage->relay;
    uint64_t sum = 0;

    if (stage->index > 0)
        for (uint32_t i = 0; i < r->n_tasks[stage->index - 1]; i++)
            sum += r->value[stage->index - 1][i];
    r->sum_seen[stage->index][task] = sum;
    r->value[stage->index][task]++;
}

static void test_pool_chain_starts_a_stage_when_the_one_before_is_done(void **state)
{
    static const uint32_t sizes[] = {0, 1, 2, 5, 40};
    static struct relay r;
    uint32_t n_sizes = sizeof sizes / sizeof sizes[0],
             n_chains = n_sizes * n_sizes * n_sizes * n_sizes;
    struct td_pool *pools[] = {open_pool(1, 0, NULL), open_pool(2, 100000, NULL),
                               open_pool(4, 0, NULL)};

    (void)state;
    for (uint32_t chain = 0; chain < n_chains; chain++) {
        struct td_pool_stage stages[4];

        memset(r.value, 0, sizeof r.value);
        for (uint32_t i = 0, x = chain; i < 4; i++, x /= n_sizes) {
            r.n_tasks[i] = sizes[x % n_sizes];
            r.stages[i] = (struct relay_stage){&r, i};
            stages[i] = (struct td_pool_stage){pass_on, &r.stages[i], r.n_tasks[i]};
        }
        td_pool_chain(pools[chain % 3], stages, chain % 7 ? 4 : 3);
        for (uint32_t i = 0; i < (chain % 7 ? 4u : 3u); i++)
            for (uint32_t k = 0; k < r.n_tasks[i]; k++) {
                assert_int_equal(r.value[i][k], 1);
                assert_int_equal(r.sum_seen[i][k], i ? r.n_tasks[i - 1] : 0);
            }
    }
    td_pool_chain(pools[1], NULL, 0);
    for (int i = 0; i < 3; i++)
        td_pool_close(pools[i]);
}

struct nest {
    struct td_pool *pool;
    struct counts inner[8];
};

static void run_inside(void *user, uint32_t task)
{
    struct nest *n = user;

    td_pool_run(n->pool, 50, count, &n->inner[task]);
}

static void test_pool_runs_what_a_task_asks_for_on_its_own_thread(void **state)
{
    static struct nest n;

    (void)state;
    for (uint32_t threads = 1; threads <= 4; threads++) {
        n.pool = open_pool(threads, 0, NULL);
        for (int round = 0; round < 50; round++) {
            memset(n.inner, 0, sizeof n.inner);
            td_pool_run(n.pool, 8, run_inside, &n);
            for (uint32_t i = 0; i < 8 * 50; i++)
                assert_int_equal(n.inner[i / 50].runs_of[i % 50], 1);
        }
        td_pool_close(n.pool);
    }
}

/* ---- threads that stop ---- */

static void stop_for_a_while(int signal)
{
    (void)signal;
    nap(3000);
}

struct tormentor {
    struct roll_call roll; /* the pool's threads */
    atomic_bool end;
    uint32_t n_stops;
};

static void *torment(void *arg)
{
    struct tormentor *t = arg;

    for (uint32_t i = 0; !atomic_load(&t->end); i++) {
        pthread_kill(t->roll.thread_of[i % t->roll.n_threads], SIGUSR1);
        t->n_stops++;
        nap(1000);
    }
    return NULL;
}

static void test_pool_waits_for_threads_that_are_stopped_anywhere(void **state)
{
    static struct counts c;
    struct sigaction action = {.sa_handler = stop_for_a_while, .sa_flags = SA_RESTART}, old;
    struct td_pool *pool = open_pool(3, 20000, NULL);
    struct tormentor t = {.roll = {.n_threads = 3}};
    struct timespec start, now;
    pthread_t thread;

    (void)state;
    td_pool_run(pool, 3, answer, &t.roll);
    sigaction(SIGUSR1, &action, &old);
    assert_int_equal(pthread_create(&thread, NULL, torment, &t), 0);
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        for (uint32_t round = 0; round < 20; round++)
            run_and_check(pool, &c, 1 + round * 7 % 60, round);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec < 1);
    atomic_store(&t.end, true);
    pthread_join(thread, NULL);
    sigaction(SIGUSR1, &old, NULL);
    assert_true(t.n_stops > 0);
    td_pool_close(pool);
}

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static void test_pool_that_is_idle_uses_no_core(void **state)
{
    static struct counts c;
    struct td_pool *pool = open_pool(4, 1000000, NULL);
    double before;

    (void)state;
    run_and_check(pool, &c, 100, 1);
    nap(100000); /* the spinning is over */
    before = cpu_seconds();
    nap(400000);
    assert_true(cpu_seconds() - before < 0.1);
    run_and_check(pool, &c, 100, 2);
    td_pool_close(pool);
}

static void seen_on(void *user, uint32_t task)
{
    cpu_set_t set;

    answer(user, task);
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(CPU_COUNT(&set), 1);
    assert_true(CPU_ISSET(first_cpu(), &set));
}

static void *bound(void *arg)
{
    struct td_cores_seat seats[2] = {{first_cpu(), 0}, {first_cpu(), 0}};
    struct td_pool *pool = open_pool(2, 0, seats);
    struct roll_call r = {.n_threads = 2};

    (void)arg;
    td_pool_run(pool, 2, seen_on, &r); /* the caller is a thread of the pool */
    td_pool_close(pool);
    return NULL;
}

static void test_pool_binds_its_threads_and_the_caller(void **state)
{
    cpu_set_t before, after;
    pthread_t thread;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_int_equal(pthread_create(&thread, NULL, bound, NULL), 0);
    pthread_join(thread, NULL);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after)); /* this thread's mask is its own */
}

enum { MIB = 1 << 20 };

/* The memory policy of an address; -1 where the system does not tell. */
static int policy_at(const uint8_t *p)
{
    int mode = -1;

    return syscall(SYS_get_mempolicy, &mode, NULL, 0, p, MPOL_F_ADDR) ? -1 : mode;
}

static void test_pool_places_memory_by_the_nodes_of_its_threads(void **state)
{
    /* Node 0 is there; node 1000 is not, so that its parts keep the default. */
    struct td_cores_seat seats[4];
    uint8_t *map = mmap(NULL, 24 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *data = map + (4 * MIB - (uintptr_t)map % (2 * MIB));
    unsigned long node_0 = 1;
    struct td_pool *pool;
    cpu_set_t before;

    (void)state;
    assert_ptr_not_equal(map, MAP_FAILED);
    if (syscall(SYS_mbind, map, 4096, MPOL_PREFERRED, &node_0, 2, 0) ||
        policy_at(map) != MPOL_PREFERRED) {
        munmap(map, 24 * MIB);
        TD_SKIP("cpu: the system does not let memory be bound to a NUMA node");
    }
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (int last = 0; last < 2; last++) { /* the thread of node 0 is the first or the last */
        for (int t = 0; t < 4; t++)
            seats[t] = (struct td_cores_seat){first_cpu(), t == (last ? 3 : 0) ? 0 : 1000};
        pool = open_pool(4, 0, seats);
        /* 15 MiB from 1 MiB after a huge page: a quarter ends at 4.75, cut at 6; three at 12.25, cut at 14. */
        assert_int_equal(munmap(map, 24 * MIB), 0);
        assert_ptr_equal(mmap(map, 24 * MIB, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
                         map);
        td_pool_place(pool, data + MIB, 15 * MIB);
        for (int mib = 0; mib < 18; mib++) {
            bool mine = last ? mib >= 14 && mib < 16 : mib >= 1 && mib < 6;

            assert_int_equal(policy_at(data + mib * MIB), mine ? MPOL_PREFERRED : MPOL_DEFAULT);
        }
        td_pool_close(pool);
    }
    pool = open_pool(4, 0, NULL); /* one node: nothing is asked for */
    td_pool_place(pool, data + 17 * MIB, MIB);
    assert_int_equal(policy_at(data + 17 * MIB), MPOL_DEFAULT);
    td_pool_close(pool);
    munmap(map, 24 * MIB);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_runs_every_task_once_with_1_to_7_threads),
        cmocka_unit_test(test_pool_wakes_threads_that_sleep_or_are_about_to),
        cmocka_unit_test(test_pool_runs_straight_after_each_other_do_not_mix),
        cmocka_unit_test(test_pool_opens_and_closes_without_a_run),
        cmocka_unit_test(test_pool_deals_a_task_to_the_same_thread_every_time),
        cmocka_unit_test(test_pool_takes_the_rest_of_a_slow_threads_run),
        cmocka_unit_test(test_pool_chain_starts_a_stage_when_the_one_before_is_done),
        cmocka_unit_test(test_pool_runs_what_a_task_asks_for_on_its_own_thread),
        cmocka_unit_test(test_pool_waits_for_threads_that_are_stopped_anywhere),
        cmocka_unit_test(test_pool_that_is_idle_uses_no_core),
        cmocka_unit_test(test_pool_binds_its_threads_and_the_caller),
        cmocka_unit_test(test_pool_places_memory_by_the_nodes_of_its_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
