/* The choice of algorithms by trial. */
#include "comm/tune.h"
#include "tests/unit/comm/comm_threads.h"

static struct td_tune_result results[MAX_RANKS];

static void tune(struct comm_check *k, void *budget_ns)
{
    struct td_err err;
    uint32_t me = td_comm_rank(k->comm);

    if (!check_ok(k, td_tune_sums(k->comm, *(uint64_t *)budget_ns, &results[me], &err), &err))
        return;
    td_comm_set_sum_choices(k->comm, &results[me].choices);
    check_sums(k, 4, true);
}

static void run_tuned(uint32_t n, const uint32_t *hosts, uint64_t budget_ns)
{
    struct td_comm *comms[MAX_RANKS];
    struct td_err err;

    assert_int_equal(td_comm_shm_open(n, hosts, comms, &err), TD_OK);
    run_ends(n, comms, 3, true, tune, &budget_ns, NULL);
    for (uint32_t r = 1; r < n; r++)
        assert_memory_equal(&results[r], &results[0], sizeof results[0]);
}

static void test_tune_has_nothing_to_choose_between_two_ranks(void **state)
{
    (void)state;
    run_tuned(2, NULL, 10 * MS);
    assert_int_equal(results[0].n, 0);
    for (int c = 0; c < TD_SUM_CLASSES; c++)
        assert_int_equal(results[0].choices.by_class[c], TD_SUM_AUTO);
}

static void test_tune_finds_the_same_on_all_ranks(void **state)
{
    const uint32_t hosts[] = {0, 0, 1, 1, 2, 2};

    (void)state;
    run_tuned(3, NULL, 50 * MS);
    assert_true(results[0].n > 0 && results[0].trial[0].seconds[TD_SUM_TWO_SHOT] > 0.0);
    assert_true(results[0].trial[0].seconds[TD_SUM_LEADERS] == 0.0);
    run_tuned(6, hosts, 50 * MS);
    for (int a = TD_SUM_ONE_SHOT; a < TD_N_SUM_ALGORITHMS; a++)
        assert_true(results[0].trial[0].seconds[a] > 0.0);
    for (uint32_t i = 0; i < results[0].n; i++)
        for (int a = TD_SUM_ONE_SHOT; a < TD_N_SUM_ALGORITHMS; a++)
            assert_true(results[0].trial[i].seconds[a] >=
                        results[0].trial[i].seconds[results[0].trial[i].best]);
}

/* Without time it still tries the smallest sums. */
static void test_tune_keeps_to_its_budget(void **state)
{
    (void)state;
    run_tuned(4, NULL, 0);
    assert_int_equal(results[0].n, 1);
    assert_true(results[0].choices.by_class[TD_SUM_CLASSES - 1] == results[0].trial[0].best);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tune_has_nothing_to_choose_between_two_ranks),
        cmocka_unit_test(test_tune_finds_the_same_on_all_ranks),
        cmocka_unit_test(test_tune_keeps_to_its_budget),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
