#include "daemon/engine/vigil.h"

#include "tests/unit/check.h"

#include <stdlib.h>

static const uint64_t MS = 1000000u;

/* Looks every `step_ms` until `until_ms`, both of the same clock. */
static void look_until(struct td_vigil *v, uint64_t *now_ms, uint64_t until_ms, uint64_t step_ms)
{
    while (*now_ms < until_ms) {
        *now_ms += step_ms;
        td_vigil_look(v, *now_ms * MS);
    }
}

static void test_vigil_suspects_after_three_beats_and_gives_up_at_the_limit(void **state)
{
    struct td_vigil_peer peer = {0};
    uint64_t now = 5000;
    struct td_vigil v;

    (void)state;
    td_vigil_init(&v, 1000 * MS, now * MS);
    td_vigil_heard(&v, &peer);
    look_until(&v, &now, 5250, 50);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_WELL);
    look_until(&v, &now, 5300, 50);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_SUSPECT);
    assert_int_equal(td_vigil_silence_ns(&v, &peer), 300 * MS);
    look_until(&v, &now, 5950, 50);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_SUSPECT);
    look_until(&v, &now, 6000, 50);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_DEAD);
}

static void test_vigil_is_content_again_once_something_is_heard(void **state)
{
    struct td_vigil_peer peer = {0};
    uint64_t now = 0;
    struct td_vigil v;

    (void)state;
    td_vigil_init(&v, 1000 * MS, 0);
    td_vigil_heard(&v, &peer);
    look_until(&v, &now, 700, 50);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_SUSPECT);
    td_vigil_heard(&v, &peer);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_WELL);
    look_until(&v, &now, 1600, 50); /* 900 ms after it */
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_SUSPECT);
}

static void test_vigil_of_a_watcher_that_was_away_blames_nobody(void **state)
{
    struct td_vigil_peer peer = {0};
    uint64_t now = 0;
    struct td_vigil v;

    (void)state;
    td_vigil_init(&v, 1000 * MS, 0);
    td_vigil_heard(&v, &peer);
    look_until(&v, &now, 100, 50);
    td_vigil_look(&v, 3600000 * MS); /* an hour in a debugger */
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_WELL);
    assert_int_equal(td_vigil_silence_ns(&v, &peer), 200 * MS); /* 100 ms and a beat */
}

static void test_vigil_of_a_starved_watcher_still_comes_to_an_end(void **state)
{
    struct td_vigil_peer peer = {0};
    uint64_t now = 0;
    struct td_vigil v;

    (void)state;
    td_vigil_init(&v, 1000 * MS, 0);
    td_vigil_heard(&v, &peer);
    look_until(&v, &now, 9 * 800, 800); /* a look counts 100 ms */
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_SUSPECT);
    look_until(&v, &now, 10 * 800, 800);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_DEAD);
}

static void test_vigil_knows_nothing_of_one_who_is_not_watched(void **state)
{
    struct td_vigil_peer peer = {0};
    struct td_vigil v = {0};
    uint64_t now = 0;

    (void)state;
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_WELL); /* nor does one without limits */
    td_vigil_init(&v, 400 * MS, 0);
    look_until(&v, &now, 5000, 50);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_WELL);
    assert_int_equal(td_vigil_silence_ns(&v, &peer), 0);
    td_vigil_heard(&v, &peer);
    look_until(&v, &now, 5200, 50); /* half of a short limit */
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_SUSPECT);
    look_until(&v, &now, 5400, 50);
    assert_int_equal(td_vigil_judge(&v, &peer), TD_VIGIL_DEAD);
}

static void test_vigil_survives_a_clock_that_stands_or_goes_back(void **state)
{
    struct td_vigil_peer peer = {0};
    struct td_vigil v;

    (void)state;
    td_vigil_init(&v, 1000 * MS, 1000 * MS);
    td_vigil_heard(&v, &peer);
    td_vigil_look(&v, 1000 * MS);
    td_vigil_look(&v, 900 * MS);
    assert_int_equal(td_vigil_silence_ns(&v, &peer), 0);
    td_vigil_look(&v, 1100 * MS);
    assert_int_equal(td_vigil_silence_ns(&v, &peer), 100 * MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vigil_suspects_after_three_beats_and_gives_up_at_the_limit),
        cmocka_unit_test(test_vigil_is_content_again_once_something_is_heard),
        cmocka_unit_test(test_vigil_of_a_watcher_that_was_away_blames_nobody),
        cmocka_unit_test(test_vigil_of_a_starved_watcher_still_comes_to_an_end),
        cmocka_unit_test(test_vigil_knows_nothing_of_one_who_is_not_watched),
        cmocka_unit_test(test_vigil_survives_a_clock_that_stands_or_goes_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
