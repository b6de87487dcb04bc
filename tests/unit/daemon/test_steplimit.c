#include "daemon/engine/steplimit.h"

#include "tests/unit/check.h"

#include <stdlib.h>

static const uint64_t MS = 1000000u, SECOND = 1000000000u;

static struct td_steplimit *make(uint64_t weight_bytes, uint32_t n_flights)
{
    struct td_steplimit *l = malloc(sizeof *l);

    assert_non_null(l);
    td_steplimit_init(l, weight_bytes, n_flights);
    return l;
}

static void test_steplimit_guesses_until_three_steps_were_seen(void **state)
{
    const struct td_steplimit_shape one = {.n_rows = 1, .n_seqs = 1, .n_table = 2};
    const struct td_steplimit_shape prompt = {.n_rows = 512, .n_seqs = 1, .n_table = 32};
    struct td_steplimit *l = make(10000000000u, 1); /* 10 GB */

    (void)state;
    /* 1 row x 10 GB / 20 GB/s = 0.5 s, 20 times that is 10 s: the least is 60 s. */
    assert_int_equal(td_steplimit_begin(l, &one), 60 * SECOND);
    /* 512 rows: 256 s, 20 times that. */
    assert_int_equal(td_steplimit_begin(l, &prompt), 5120 * SECOND);
    td_steplimit_learn(l, &one, 300 * MS);
    td_steplimit_learn(l, &one, 300 * MS);
    assert_int_equal(td_steplimit_begin(l, &one), 60 * SECOND);
    td_steplimit_learn(l, &one, 300 * MS);
    assert_int_equal(td_steplimit_begin(l, &one), 6 * SECOND);
    assert_int_equal(td_steplimit_begin(l, &prompt), 5120 * SECOND); /* another shape */
    free(l);
}

static void test_steplimit_is_twenty_medians_and_at_least_two_seconds(void **state)
{
    const struct td_steplimit_shape one = {.n_rows = 4, .n_seqs = 4, .n_table = 8};
    static const uint64_t ms[] = {5, 900, 400, 7, 300}; /* median 300 */
    struct td_steplimit *l = make(1000, 1);

    (void)state;
    for (size_t i = 0; i < 5; i++)
        td_steplimit_learn(l, &one, ms[i] * MS);
    assert_int_equal(td_steplimit_begin(l, &one), 6 * SECOND);
    for (int i = 0; i < 15; i++) /* it has become fast: the old ones are forgotten */
        td_steplimit_learn(l, &one, MS);
    assert_int_equal(td_steplimit_begin(l, &one), 2 * SECOND);
    for (int i = 0; i < 7; i++) /* 7 of 15 slow ones do not move the median */
        td_steplimit_learn(l, &one, SECOND);
    assert_int_equal(td_steplimit_begin(l, &one), 2 * SECOND);
    td_steplimit_learn(l, &one, SECOND);
    assert_int_equal(td_steplimit_begin(l, &one), 20 * SECOND);
    free(l);
}

static void test_steplimit_tells_shapes_apart(void **state)
{
    static const struct td_steplimit_shape shapes[] = {
        {.n_rows = 4, .n_seqs = 4, .n_table = 8},               /* decode */
        {.n_rows = 4, .n_seqs = 1, .n_table = 8},               /* prompt */
        {.n_rows = 16, .n_seqs = 16, .n_table = 16},            /* more sequences */
        {.n_rows = 4, .n_seqs = 4, .n_table = 8000},            /* longer ones */
        {.n_rows = 4, .n_seqs = 4, .n_table = 8, .n_moves = 1}, /* with blocks that move */
        {.n_rows = 0},                                          /* nothing */
    };
    enum { N = sizeof shapes / sizeof shapes[0] };
    struct td_steplimit *l = make(1000, 1);

    (void)state;
    for (uint64_t i = 0; i < N; i++)
        for (int k = 0; k < 3; k++)
            td_steplimit_learn(l, &shapes[i], (i + 1) * 200 * MS);
    for (uint64_t i = 0; i < N; i++)
        assert_int_equal(td_steplimit_begin(l, &shapes[i]), (i + 1) * 4 * SECOND);
    free(l);
}

static void test_steplimit_of_a_pipeline_is_the_longest_under_way(void **state)
{
    const struct td_steplimit_shape fast = {.n_rows = 1, .n_seqs = 1, .n_table = 1};
    const struct td_steplimit_shape slow = {.n_rows = 512, .n_seqs = 1, .n_table = 32};
    struct td_steplimit *l = make(1000, 3);

    (void)state;
    for (int k = 0; k < 3; k++) {
        td_steplimit_learn(l, &fast, MS);
        td_steplimit_learn(l, &slow, SECOND);
    }
    assert_int_equal(td_steplimit_begin(l, &fast), 2 * SECOND);
    assert_int_equal(td_steplimit_begin(l, &slow), 20 * SECOND);
    assert_int_equal(td_steplimit_begin(l, &fast), 20 * SECOND); /* waits for the one before */
    assert_int_equal(td_steplimit_begin(l, &fast), 20 * SECOND);
    assert_int_equal(td_steplimit_begin(l, &fast), 2 * SECOND); /* that has left the pipeline */
    free(l);
}

static void test_steplimit_takes_any_size(void **state)
{
    const struct td_steplimit_shape huge = {.n_rows = UINT32_MAX,
                                            .n_seqs = UINT32_MAX - 1,
                                            .n_table = UINT32_MAX,
                                            .n_moves = UINT32_MAX};
    struct td_steplimit *l = make(UINT64_MAX, 0);

    (void)state;
    assert_true(td_steplimit_begin(l, &huge) >= 60 * SECOND);
    for (int i = 0; i < 40; i++)
        td_steplimit_learn(l, &huge, UINT64_MAX); /* kept as 4295 s, the longest */
    assert_int_equal(td_steplimit_begin(l, &huge), 20 * (uint64_t)UINT32_MAX * 1000);
    free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steplimit_guesses_until_three_steps_were_seen),
        cmocka_unit_test(test_steplimit_is_twenty_medians_and_at_least_two_seconds),
        cmocka_unit_test(test_steplimit_tells_shapes_apart),
        cmocka_unit_test(test_steplimit_of_a_pipeline_is_the_longest_under_way),
        cmocka_unit_test(test_steplimit_takes_any_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
