#include "daemon/engine/stepsplit.h"

#include "tests/unit/check.h"

static const uint64_t S = 1000000000u;

static void test_stepsplit_of_one_rank_is_all_compute(void **state)
{
    uint64_t run = 7 * S, inside = 0;
    struct td_stepsplit s = td_stepsplit_of(1, &run, &inside);

    (void)state;
    assert_true(s.compute == 7.0 && s.exchange == 0.0 && s.wait == 0.0);
}

/* Rank 1 computes longest: it is always last and finds the others there. */
static void test_stepsplit_calls_waiting_what_exceeds_the_least(void **state)
{
    uint64_t run[] = {10 * S, 10 * S, 10 * S, 10 * S}, inside[] = {4 * S, 2 * S, 8 * S, 6 * S};
    struct td_stepsplit s = td_stepsplit_of(4, run, inside);

    (void)state;
    assert_true(s.compute == 5.0 && s.exchange == 2.0 && s.wait == 3.0);
}

static void test_stepsplit_takes_no_ranks_and_counts_that_do_not_fit(void **state)
{
    uint64_t run[] = {2 * S, 4 * S}, inside[] = {3 * S, 4 * S};
    struct td_stepsplit s = td_stepsplit_of(0, NULL, NULL);

    (void)state;
    assert_true(s.compute == 0.0 && s.exchange == 0.0 && s.wait == 0.0);
    s = td_stepsplit_of(2, run, inside);
    assert_true(s.compute == 0.0 && s.exchange == 2.0 && s.wait == 1.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stepsplit_of_one_rank_is_all_compute),
        cmocka_unit_test(test_stepsplit_calls_waiting_what_exceeds_the_least),
        cmocka_unit_test(test_stepsplit_takes_no_ranks_and_counts_that_do_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
