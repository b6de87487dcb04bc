#include "daemon/coordinator/endrate.h"

#include "tests/unit/check.h"

#define MS UINT64_C(1000000)
#define S (1000 * MS)

/* `n` requests one after the other, each open for `each_ns`, with `idle_ns` between. Returns the time after them. */
static uint64_t run(struct td_endrate *e, uint64_t now, int n, uint64_t each_ns, uint64_t idle_ns)
{
    for (int i = 0; i < n; i++) {
        td_endrate_begin(e, now);
        now += each_ns;
        td_endrate_end(e, now);
        now += idle_ns;
    }
    return now;
}

static void assert_near(double got, double expected)
{
    if (got < 0.95 * expected || got > 1.05 * expected)
        fail_msg("%g, expected about %g", got, expected);
}

static void test_endrate_of_nothing_is_unknown_and_a_second_is_told(void **state)
{
    struct td_endrate e = {0};

    (void)state;
    assert_true(td_endrate_per_second(&e, 5 * S) == 0.0);
    assert_int_equal(td_endrate_wait_s(&e, 100, 5 * S), 1);
    td_endrate_begin(&e, 5 * S);
    assert_int_equal(td_endrate_wait_s(&e, 100, 50 * S), 1);
}

static void test_endrate_is_right_from_the_first_seconds_on(void **state)
{
    struct td_endrate e = {0};
    uint64_t now = run(&e, 7 * S, 10, 200 * MS, 0);

    (void)state;
    assert_near(td_endrate_per_second(&e, now), 5.0);
    now = run(&e, now, 1000, 200 * MS, 0);
    assert_near(td_endrate_per_second(&e, now), 5.0);
    assert_int_equal(td_endrate_wait_s(&e, 24, now), 5);
    assert_int_equal(td_endrate_wait_s(&e, 1, now), 1);
    assert_int_equal(td_endrate_wait_s(&e, 1e9, now), TD_ENDRATE_MAX_WAIT_S);
}

static void test_endrate_does_not_count_idle_time(void **state)
{
    struct td_endrate e = {0};
    uint64_t now = run(&e, 7 * S, 100, 100 * MS, 3600 * S);

    (void)state;
    assert_near(td_endrate_per_second(&e, now + 86400 * S), 10.0);
}

static void test_endrate_counts_what_ends_side_by_side(void **state)
{
    struct td_endrate e = {0};
    uint64_t now = S;

    (void)state;
    for (int i = 0; i < 200; i++) {
        for (int k = 0; k < 8; k++)
            td_endrate_begin(&e, now);
        now += 400 * MS;
        for (int k = 0; k < 8; k++)
            td_endrate_end(&e, now);
    }
    assert_near(td_endrate_per_second(&e, now), 20.0);
}

static void test_endrate_forgets_and_falls_while_nothing_ends(void **state)
{
    struct td_endrate e = {0};
    uint64_t now = run(&e, S, 1000, 100 * MS, 0);
    double before = td_endrate_per_second(&e, now);

    (void)state;
    td_endrate_begin(&e, now);
    assert_true(td_endrate_per_second(&e, now + 20 * S) < 0.5 * before);
    assert_int_equal(td_endrate_wait_s(&e, 10, now + 600 * S), TD_ENDRATE_MAX_WAIT_S);
    td_endrate_end(&e, now + 20 * S);
    now = run(&e, now + 20 * S, 200, S, 0);
    assert_near(td_endrate_per_second(&e, now), 1.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_endrate_of_nothing_is_unknown_and_a_second_is_told),
        cmocka_unit_test(test_endrate_is_right_from_the_first_seconds_on),
        cmocka_unit_test(test_endrate_does_not_count_idle_time),
        cmocka_unit_test(test_endrate_counts_what_ends_side_by_side),
        cmocka_unit_test(test_endrate_forgets_and_falls_while_nothing_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
