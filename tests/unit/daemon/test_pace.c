#include "daemon/engine/pace.h"

#include "tests/unit/check.h"

static uint64_t rng_state;

static uint32_t rng(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

/* A device: so long for the weights, so long for a row; up to 5 % longer by chance. */
static uint64_t step_of(uint64_t weights_ns, uint64_t row_ns, uint32_t rows)
{
    uint64_t ns = weights_ns + row_ns * rows;

    return ns + ns / 1000 * rng(50);
}

static void test_pace_keeps_steps_within_the_stretch_once_it_knows_the_device(void **state)
{
    static const struct {
        uint64_t weights_ns, row_ns;
    } devices[] = {{25000000, 2000000}, {25000000, 100000}, {200000, 1000}, {90000000, 9000000}};

    (void)state;
    rng_state = 5;
    for (uint32_t d = 0; d < sizeof devices / sizeof *devices; d++) {
        const uint64_t weights = devices[d].weights_ns, row = devices[d].row_ns;
        struct td_pace p;

        td_pace_init(&p, 60);
        for (uint32_t i = 0; i < 300; i++) {
            uint32_t n_decode = i % 40 ? 3 : 1 + rng(30);
            uint64_t alone = weights + row * n_decode;
            uint32_t limit = td_pace_limit(&p, n_decode);
            uint32_t n_prompt = rng(4) ? limit : 0;

            assert_true(limit >= 4);
            if (i > 20 && n_decode == 3 && limit > 4) { /* within it, and most of it used */
                assert_true(row * limit < alone * 80 / 100);
                assert_true(row * limit > alone * 30 / 100);
            }
            td_pace_learn(&p, n_decode, n_prompt, step_of(weights, row, n_decode + n_prompt));
        }
    }
}

static void test_pace_limits_nothing_without_answers_or_when_told_so(void **state)
{
    struct td_pace p;

    (void)state;
    td_pace_init(&p, 60);
    assert_int_equal(td_pace_limit(&p, 0), UINT32_MAX);
    assert_int_equal(td_pace_limit(&p, 1), 16); /* nothing is known */
    td_pace_learn(&p, 1, 0, 1000);
    td_pace_learn(&p, 0, 100, 0); /* nothing learnt from a step of unknown length */
    assert_int_equal(td_pace_limit(&p, 1), 16);
    td_pace_learn(&p, 0, 100, 2000); /* 20 ns a row */
    assert_int_equal(td_pace_limit(&p, 1), 30);
    assert_int_equal(td_pace_limit(&p, 1000000), 30); /* of the nearest size that was seen */
    td_pace_learn(&p, 8, 0, 4000);
    assert_int_equal(td_pace_limit(&p, 8), 120);
    assert_int_equal(td_pace_limit(&p, 2), 30);
    td_pace_init(&p, 0);
    td_pace_learn(&p, 1, 0, 1000);
    assert_int_equal(td_pace_limit(&p, 1), UINT32_MAX);
}

static void test_pace_reads_back_what_would_take_longer_to_compute(void **state)
{
    struct td_pace p;
    uint32_t n = 0;

    (void)state;
    td_pace_init(&p, 60);
    assert_true(td_pace_reads(&p, TD_OFFLOAD_FILE, 16)); /* nothing is known: it is tried */
    td_pace_learn_reads(&p, TD_OFFLOAD_MEMORY, 10, 100);
    td_pace_learn_reads(&p, TD_OFFLOAD_FILE, 10, 4000);
    assert_true(td_pace_reads(&p, TD_OFFLOAD_FILE, 16));
    td_pace_learn(&p, 0, 100, 2000); /* 20 ns a row, 320 a block */
    assert_true(td_pace_reads(&p, TD_OFFLOAD_MEMORY, 16));
    assert_false(td_pace_reads(&p, TD_OFFLOAD_FILE, 16));
    while (!td_pace_reads(&p, TD_OFFLOAD_FILE, 16)) /* until it is tried again */
        assert_true(++n < 100);
    assert_true(n > 5);
}

static void test_pace_limits_reads_beside_answers(void **state)
{
    struct td_pace p;

    (void)state;
    td_pace_init(&p, 50);
    assert_int_equal(td_pace_read_limit(&p, 0), UINT32_MAX);
    assert_int_equal(td_pace_read_limit(&p, 3), 1);
    td_pace_learn(&p, 3, 0, 1000);
    td_pace_learn_reads(&p, TD_OFFLOAD_MEMORY, 1, 9);
    assert_int_equal(td_pace_read_limit(&p, 3), 50);
    td_pace_learn_reads(&p, TD_OFFLOAD_FILE, 1, 5000); /* the slower one counts */
    assert_int_equal(td_pace_read_limit(&p, 3), 1);
    assert_int_equal(td_pace_read_limit(&p, 0), UINT32_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pace_keeps_steps_within_the_stretch_once_it_knows_the_device),
        cmocka_unit_test(test_pace_limits_nothing_without_answers_or_when_told_so),
        cmocka_unit_test(test_pace_reads_back_what_would_take_longer_to_compute),
        cmocka_unit_test(test_pace_limits_reads_beside_answers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
