/* How the processes of a host divide its cores: synthetic machines, any number of processes, bound or not; and this machine. */
#include "tests/unit/check.h"

#include "kernels/cpu/cores.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROCESSES = 40 };

static struct td_cores *open_machine(const char *synthetic)
{
    struct td_cores *cores;
    struct td_err err;

    assert_int_equal(td_cores_open(synthetic, &cores, &err), TD_OK);
    return cores;
}

static cpu_set_t range(unsigned first, unsigned end)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    for (unsigned cpu = first; cpu < end; cpu++)
        CPU_SET(cpu, &set);
    return set;
}

/* The shares of n processes as one text, "0-1 | 2-3"; a process without seats is "(threads)", and "(threads!)" when it spins. */
static const char *divide(const char *synthetic, uint32_t n, const cpu_set_t *masks,
                          const uint32_t *threads, uint32_t n_quota)
{
    static char text[4096];
    static struct td_cores_share share;
    struct td_cores *cores = open_machine(synthetic);
    size_t len = 0;

    text[0] = 0;
    for (uint32_t me = 0; me < n; me++) {
        struct td_cores_ask ask = {
            .masks = masks, .threads = threads, .n = n, .me = me, .n_quota = n_quota};

        memset(&share, 0xff, sizeof share);
        td_cores_divide(cores, &ask, &share);
        len += (size_t)snprintf(text + len, sizeof text - len, me ? " | " : "");
        if (!share.seated)
            len += (size_t)snprintf(text + len, sizeof text - len, "(%u%s)", share.n_threads,
                                    share.owned ? "!" : "");
        for (uint32_t i = 0; share.seated && i < share.n_threads; i++)
            len += (size_t)snprintf(text + len, sizeof text - len, "%s%u", i ? " " : "",
                                    share.seats[i].cpu);
        assert_true(!share.seated || share.owned);
    }
    td_cores_close(cores);
    return text;
}

/* All with the same mask and the same wish. */
static const char *divide_all(const char *synthetic, uint32_t n_cpus, uint32_t n, uint32_t wish)
{
    cpu_set_t masks[MAX_PROCESSES];
    uint32_t threads[MAX_PROCESSES];

    for (uint32_t i = 0; i < n; i++) {
        masks[i] = range(0, n_cpus);
        threads[i] = wish;
    }
    return divide(synthetic, n, masks, threads, 0);
}

static const char TWO_BY_FOUR[] = "pack:2 [numa] core:4 pu:2"; /* 16 hardware threads */

static void test_cores_divides_physical_cores_of_one_mask(void **state)
{
    (void)state;
    assert_string_equal(divide_all("core:2 pu:1", 2, 1, 0), "0 1");
    assert_string_equal(divide_all("core:2 pu:1", 2, 2, 0), "0 | 1");
    assert_string_equal(divide_all("core:2 pu:1", 2, 3, 0), "(1) | (1) | (1)");
    assert_string_equal(divide_all("numa:2 core:4 pu:2", 16, 2, 0), "0 2 4 6 | 8 10 12 14");
    assert_string_equal(divide_all(TWO_BY_FOUR, 16, 1, 0), "0 2 4 6 8 10 12 14");
    assert_string_equal(divide_all(TWO_BY_FOUR, 16, 4, 0), "0 2 | 4 6 | 8 10 | 12 14");
    assert_string_equal(divide_all(TWO_BY_FOUR, 16, 8, 0), "0 | 2 | 4 | 6 | 8 | 10 | 12 | 14");
}

static void test_cores_keeps_a_process_inside_a_node_where_it_fits(void **state)
{
    (void)state;
    /* 2 cores each of 4 + 4: the fourth pair stays free. */
    assert_string_equal(divide_all(TWO_BY_FOUR, 16, 3, 0), "0 2 | 4 6 | 8 10");
    /* 2 each of 3 + 3: one has to span. */
    assert_string_equal(divide_all("numa:2 core:3 pu:1", 6, 3, 0), "0 1 | 3 4 | 2 5");
    /* 5 each of 3 + 3 + 3 + 3: none fits. */
    assert_string_equal(divide_all("numa:4 core:3 pu:1", 12, 2, 5), "0 1 2 3 4 | 5 6 7 8 9");
    /* Few threads each: both nodes' memory is used. */
    assert_string_equal(divide_all(TWO_BY_FOUR, 16, 2, 2), "0 2 | 8 10");
    assert_string_equal(divide_all(TWO_BY_FOUR, 16, 3, 1), "0 | 2 | 8");
}

static void test_cores_uses_other_hardware_threads_only_when_asked(void **state)
{
    (void)state;
    assert_string_equal(divide_all("core:4 pu:2", 8, 1, 6), "0 1 2 3 4 6");
    assert_string_equal(divide_all("core:4 pu:2", 8, 2, 4), "0 1 2 3 | 4 5 6 7");
    assert_string_equal(divide_all("core:4 pu:2", 8, 2, 5), "(5) | (5)");
    assert_string_equal(divide_all("core:4 pu:2", 8, 1, 2000), "(2000)");
}

static void test_cores_leaves_bound_processes_their_own(void **state)
{
    const cpu_set_t apart[] = {range(0, 2), range(4, 8), range(2, 3)};
    const cpu_set_t packages[] = {range(0, 8), range(8, 16), range(0, 8), range(8, 16)};
    const cpu_set_t mixed[] = {range(0, 8), range(4, 8), range(12, 14)};
    const cpu_set_t nowhere[] = {range(0, 0), range(0, 2)};
    const cpu_set_t half = range(3, 8);
    const uint32_t none[4] = {0}, some[] = {1, 0, 3, 2};

    (void)state;
    assert_string_equal(divide("core:8 pu:1", 3, apart, none, 0), "0 1 | 4 5 6 7 | 2");
    assert_string_equal(divide("core:8 pu:1", 3, apart, some, 0), "0 | 4 5 6 7 | (3)");
    /* As a launcher binds to packages: two and two share one. */
    assert_string_equal(divide(TWO_BY_FOUR, 4, packages, none, 0), "0 2 | 8 10 | 4 6 | 12 14");
    assert_string_equal(divide(TWO_BY_FOUR, 4, packages, some, 0), "0 | 8 10 | 4 5 6 | 12 14");
    /* Masks that overlap in part: no one has a core of its own, yet the sum is not above what there is. */
    assert_string_equal(divide("core:16 pu:1", 3, mixed, none, 0), "(4) | (2) | 12 13");
    assert_string_equal(divide("core:2 pu:1", 2, nowhere, none, 0), "(1) | 0 1");
    /* A mask with one hardware thread of a core. */
    assert_string_equal(divide(TWO_BY_FOUR, 1, &half, none, 0), "3 4 6");
}

static void test_cores_takes_no_more_than_the_quota(void **state)
{
    const cpu_set_t all[] = {range(0, 16), range(0, 16), range(0, 16)};
    const uint32_t none[3] = {0}, some[3] = {4, 4, 4};

    (void)state;
    assert_string_equal(divide("core:16 pu:1", 1, all, none, 4), "(4!)");
    assert_string_equal(divide("core:16 pu:1", 3, all, none, 7), "(2!) | (2!) | (2!)");
    assert_string_equal(divide("core:16 pu:1", 3, all, some, 7), "(4) | (4) | (4)");
    assert_string_equal(divide("core:16 pu:1", 3, all, none, 2), "(1) | (1) | (1)");
    assert_string_equal(divide("core:16 pu:1", 1, all, none, 16),
                        "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15");
}

/* What must hold of every machine and number of processes. */
static void check_invariants(const char *synthetic, uint32_t n_cpus, uint32_t n)
{
    static struct td_cores_share share[MAX_PROCESSES];
    struct td_cores *cores = open_machine(synthetic);
    cpu_set_t masks[MAX_PROCESSES], taken = range(0, 0), all = range(0, n_cpus);
    uint32_t threads[MAX_PROCESSES] = {0}, n_cores = td_cores_count(cores, &all), sum = 0;

    for (uint32_t i = 0; i < n; i++)
        masks[i] = all;
    for (uint32_t i = 0; i < n; i++) {
        struct td_cores_ask ask = {.masks = masks, .threads = threads, .n = n, .me = i};

        td_cores_divide(cores, &ask, &share[i]);
        sum += share[i].n_threads;
        assert_int_equal(share[i].n_threads, n > n_cores ? 1 : n_cores / n);
        assert_int_equal(share[i].n_cores, n_cores);
        assert_int_equal(share[i].owned, n <= n_cores);
        assert_int_equal(share[i].seated, n <= n_cores);
        for (uint32_t k = 0; share[i].seated && k < share[i].n_threads; k++) {
            const struct td_cores_seat *seat = &share[i].seats[k];

            assert_true(CPU_ISSET(seat->cpu, &all));
            assert_false(CPU_ISSET(seat->cpu, &taken)); /* nobody else's, and no core twice */
            CPU_SET(seat->cpu, &taken);
            assert_true(k == 0 || seat->node >= seat[-1].node);
        }
    }
    assert_true(sum <= n_cores || sum == n);
    td_cores_close(cores);
}

static void test_cores_never_gives_one_core_twice_for_1_to_33_processes(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 33; n++) {
        check_invariants("core:1 pu:1", 1, n);
        check_invariants("core:2 pu:1", 2, n);
        check_invariants("core:7 pu:2", 14, n);
        check_invariants(TWO_BY_FOUR, 16, n);
        check_invariants("pack:2 numa:2 core:5 pu:1", 20, n);
        check_invariants("numa:8 core:4 pu:4", 128, n);
        check_invariants("pack:2 numa:4 core:16 pu:2", 256, n);
    }
}

static void test_cores_describes_a_share_in_one_line(void **state)
{
    struct td_cores_share share = {.n_threads = 1, .owned = true, .seated = true};
    char text[96], small[24];

    (void)state;
    td_cores_describe(&share, text, sizeof text);
    assert_string_equal(text, "threads 1 on core 0 (1 NUMA node)");
    share.n_threads = 2;
    share.seats[1] = (struct td_cores_seat){1, 0};
    td_cores_describe(&share, text, sizeof text);
    assert_string_equal(text, "threads 2 on cores 0-1 (1 NUMA node)");
    share.n_threads = 5;
    share.seats[2] = (struct td_cores_seat){4, 0};
    share.seats[3] = (struct td_cores_seat){8, 1};
    share.seats[4] = (struct td_cores_seat){9, 1};
    td_cores_describe(&share, text, sizeof text);
    assert_string_equal(text, "threads 5 on cores 0-1,4,8-9 (2 NUMA nodes)");
    for (size_t bytes = 1; bytes <= sizeof small; bytes++) {
        memset(small, 'x', sizeof small);
        td_cores_describe(&share, small, bytes);
        assert_int_equal(strlen(small), bytes - 1);
    }
    share.seated = false;
    td_cores_describe(&share, text, sizeof text);
    assert_string_equal(text, "threads 5 on any core");
    share.owned = false;
    td_cores_describe(&share, text, sizeof text);
    assert_string_equal(text, "threads 5 on shared cores");
}

static void test_cores_knows_this_machine(void **state)
{
    struct td_cores *cores = open_machine(NULL);
    cpu_set_t mask, none = range(0, 0);
    uint32_t n = td_cores_count_mine(cores);

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof mask, &mask), 0);
    assert_in_range(n, 1, CPU_COUNT(&mask));
    assert_int_equal(td_cores_count(cores, &mask), n);
    assert_int_equal(td_cores_count(cores, &none), 0);
    td_cores_close(cores);
    td_cores_close(NULL);
}

static void test_cores_refuses_a_machine_that_it_cannot_read(void **state)
{
    struct td_cores *cores;
    struct td_err err;

    (void)state;
    assert_int_equal(td_cores_open("core:", &cores, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "'core:'"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cores_divides_physical_cores_of_one_mask),
        cmocka_unit_test(test_cores_keeps_a_process_inside_a_node_where_it_fits),
        cmocka_unit_test(test_cores_uses_other_hardware_threads_only_when_asked),
        cmocka_unit_test(test_cores_leaves_bound_processes_their_own),
        cmocka_unit_test(test_cores_takes_no_more_than_the_quota),
        cmocka_unit_test(test_cores_never_gives_one_core_twice_for_1_to_33_processes),
        cmocka_unit_test(test_cores_describes_a_share_in_one_line),
        cmocka_unit_test(test_cores_knows_this_machine),
        cmocka_unit_test(test_cores_refuses_a_machine_that_it_cannot_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
