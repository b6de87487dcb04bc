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

/* Rows for prompts beside so many rows of answers. */
static uint32_t limit_of(struct td_pace *p, uint32_t n_decode)
{
    td_pace_begin(p, n_decode);
    return td_pace_rows(p, 0);
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
            uint32_t limit = limit_of(&p, n_decode);
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
    assert_int_equal(limit_of(&p, 0), UINT32_MAX);
    assert_int_equal(limit_of(&p, 1), 16); /* nothing is known */
    td_pace_learn(&p, 1, 0, 1000);
    td_pace_learn(&p, 0, 100, 0); /* nothing learnt from a step of unknown length */
    assert_int_equal(limit_of(&p, 1), 16);
    td_pace_learn(&p, 0, 100, 2000); /* 20 ns a row */
    assert_int_equal(limit_of(&p, 1), 30);
    assert_int_equal(limit_of(&p, 1000000), 30); /* of the nearest size that was seen */
    td_pace_learn(&p, 8, 0, 4000);
    assert_int_equal(limit_of(&p, 8), 120);
    assert_int_equal(limit_of(&p, 2), 30);
    td_pace_init(&p, 0);
    td_pace_learn(&p, 1, 0, 1000);
    assert_int_equal(limit_of(&p, 1), UINT32_MAX);
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

static void test_pace_deals_out_what_a_step_may_add(void **state)
{
    struct td_pace p;

    (void)state;
    td_pace_init(&p, 50);
    td_pace_begin(&p, 0); /* without answers: a second */
    assert_int_equal(td_pace_moves(&p, 0), UINT32_MAX);
    assert_int_equal(td_pace_moves(&p, 1000000), 1000);
    td_pace_begin(&p, 3); /* nothing is known */
    assert_int_equal(td_pace_moves(&p, 0), 16);
    assert_int_equal(td_pace_moves(&p, 10), 0);
    assert_int_equal(td_pace_rows(&p, 0), 16);
    assert_int_equal(td_pace_rows(&p, 15), 1);
    td_pace_learn(&p, 3, 0, 1000);
    td_pace_learn(&p, 0, 100, 2000); /* 20 ns a row */
    td_pace_begin(&p, 3);            /* 500 ns */
    assert_int_equal(td_pace_moves(&p, 9), 55);
    td_pace_spend(&p, 300);
    assert_int_equal(td_pace_moves(&p, 9), 22);
    assert_int_equal(td_pace_rows(&p, 0), 10);
    td_pace_spend_rows(&p, 7);
    assert_int_equal(td_pace_rows(&p, 7), 3);
    td_pace_spend(&p, 1000);
    assert_int_equal(td_pace_moves(&p, 9), 0);
    assert_int_equal(td_pace_rows(&p, 0), 4); /* prompts go on in any case */
    assert_int_equal(td_pace_rows(&p, 7), 0);
}

static void test_pace_forgets_one_slow_move(void **state)
{
    struct td_pace p;
    uint32_t n = 0;

    (void)state;
    td_pace_init(&p, 50);
    td_pace_learn_reads(&p, TD_OFFLOAD_FILE, 10, 3000);
    td_pace_learn_writes(&p, TD_OFFLOAD_MEMORY, 10, 1000);
    td_pace_learn_reads(&p, TD_OFFLOAD_FILE, 1, 5000000000u);
    assert_true(p.read_ns[TD_OFFLOAD_FILE] < 600);
    for (; p.read_ns[TD_OFFLOAD_FILE] > 330; n++)
        td_pace_learn_reads(&p, TD_OFFLOAD_FILE, 1, 300);
    assert_true(n < 10);
    assert_int_equal(p.read_ns[TD_OFFLOAD_MEMORY], 0);
    assert_int_equal(p.write_ns[TD_OFFLOAD_MEMORY], 101);
    td_pace_learn_reads(&p, TD_OFFLOAD_MEMORY, 0, 77); /* nothing was read */
    assert_int_equal(p.read_ns[TD_OFFLOAD_MEMORY], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pace_keeps_steps_within_the_stretch_once_it_knows_the_device),
        cmocka_unit_test(test_pace_limits_nothing_without_answers_or_when_told_so),
        cmocka_unit_test(test_pace_reads_back_what_would_take_longer_to_compute),
        cmocka_unit_test(test_pace_deals_out_what_a_step_may_add),
        cmocka_unit_test(test_pace_forgets_one_slow_move),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
