/* The pool: every task once, for any number of threads and tasks, spinning or asleep between runs; clean under the thread
 * sanitizer (TD_SANITIZE=thread). */
#include "tests/unit/check.h"

#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { MAX_TASKS = 3000 };

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

static struct td_pool *open_pool(uint32_t n_threads, uint64_t spin_ns, bool pin)
{
    struct td_pool_params p = {.n_threads = n_threads, .spin_ns = spin_ns, .pin = pin};
    struct td_pool *pool;
    struct td_err err;

    assert_int_equal(td_pool_open(&p, &pool, &err), TD_OK);
    assert_int_equal(td_pool_threads(pool), n_threads);
    return pool;
}

static void test_pool_runs_every_task_once_with_1_to_4_threads(void **state)
{
    static const uint32_t n_tasks[] = {0, 1, 2, 3, 4, 5, 17, 256, MAX_TASKS};
    static struct counts c;

    (void)state;
    for (uint32_t threads = 1; threads <= 4; threads++)
        for (int spins = 0; spins < 2; spins++) {
            struct td_pool *pool = open_pool(threads, spins ? 200000 : 0, false);

            for (uint32_t round = 0; round < 40; round++)
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
        struct td_pool *pool = open_pool(threads, 50000, false); /* 50 us, then sleep */

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
        struct td_pool *pool = open_pool(threads, 0, false);

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

static void test_pool_opens_and_closes_without_a_run(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++)
        td_pool_close(open_pool(1 + (uint32_t)i % 4, i % 2 ? 1000000 : 0, false));
    td_pool_close(NULL);
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
    struct td_pool *pool = open_pool(4, 1000000, false);
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

static void *pinned(void *arg)
{
    struct td_pool *pool = open_pool(td_pool_cores(), 0, true);
    static struct counts c;
    cpu_set_t set;

    (void)arg;
    run_and_check(pool, &c, 100, 5);
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(CPU_COUNT(&set), 1); /* the caller is a thread of the pool */
    td_pool_close(pool);
    return NULL;
}

static void test_pool_pins_its_threads_and_the_caller(void **state)
{
    uint32_t cores = td_pool_cores();
    pthread_t thread;

    (void)state;
    assert_true(cores >= 1);
    assert_int_equal(pthread_create(&thread, NULL, pinned, NULL), 0);
    pthread_join(thread, NULL);
    assert_int_equal(td_pool_cores(), cores); /* this thread's mask is its own */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_runs_every_task_once_with_1_to_4_threads),
        cmocka_unit_test(test_pool_wakes_threads_that_sleep_or_are_about_to),
        cmocka_unit_test(test_pool_runs_straight_after_each_other_do_not_mix),
        cmocka_unit_test(test_pool_opens_and_closes_without_a_run),
        cmocka_unit_test(test_pool_that_is_idle_uses_no_core),
        cmocka_unit_test(test_pool_pins_its_threads_and_the_caller),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
