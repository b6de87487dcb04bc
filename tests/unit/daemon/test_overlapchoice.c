/* Whether steps go in two parts: what the user says, which steps are tried, and that the faster way is taken. Times come from a
 * formula here; nobody waits for them. */
#include "daemon/engine/overlapchoice.h"

#include "tests/unit/check.h"

enum { ROUND = TD_OVERLAPCHOICE_WARM_UPS + TD_OVERLAPCHOICE_TRIALS };

/* Steps of n_rows, `whole` or `cut` ns per row, growing by `growth` ns per row and step; the step `bad` takes ten times as long.
 * Returns how many were cut. */
struct load {
    uint32_t n_rows;
    uint64_t whole, cut, growth;
    uint32_t bad; /* UINT32_MAX: none */
};

static uint32_t run_steps(struct td_overlapchoice *o, const struct load *load, uint32_t n,
                          uint32_t *n_choices)
{
    uint32_t n_cut = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = td_overlapchoice_first_rows(o, load->n_rows);
        uint64_t ns = ((first ? load->cut : load->whole) + i * load->growth) * load->n_rows;

        n_cut += first > 0;
        if (td_overlapchoice_learn(o, load->n_rows, first, i == load->bad ? 10 * ns : ns))
            ++*n_choices;
    }
    return n_cut;
}

static bool chosen(const struct load *load)
{
    struct td_overlapchoice o;
    uint32_t n_choices = 0;

    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, true);
    assert_true(td_overlapchoice_tries(&o, load->n_rows));
    assert_int_equal(run_steps(&o, load, ROUND, &n_choices), ROUND / 2);
    assert_int_equal(n_choices, 1);
    assert_false(td_overlapchoice_tries(&o, load->n_rows));
    return td_overlapchoice_first_rows(&o, load->n_rows) > 0;
}

static void test_overlapchoice_takes_what_was_faster(void **state)
{
    (void)state;
    assert_true(chosen(&(struct load){512, 1000, 700, 0, UINT32_MAX}));
    assert_false(chosen(&(struct load){512, 1000, 1300, 0, UINT32_MAX}));
    assert_false(chosen(&(struct load){512, 1000, 1000, 0, UINT32_MAX}));
    assert_false(chosen(&(struct load){512, 1000, 990, 0, UINT32_MAX})); /* hardly faster */
    assert_true(chosen(&(struct load){64, 1, 0, 0, UINT32_MAX}));
}

/* A step that something else disturbed, whichever of the trials it is. */
static void test_overlapchoice_forgives_one_slow_step(void **state)
{
    (void)state;
    for (uint32_t bad = 0; bad < ROUND; bad++) {
        assert_true(chosen(&(struct load){256, 1000, 900, 0, bad}));
        assert_false(chosen(&(struct load){256, 900, 1000, 0, bad}));
    }
}

/* A long prompt, whose rows cost more from step to step: as much again after 20 steps. */
static void test_overlapchoice_is_not_misled_by_rows_that_cost_more_and_more(void **state)
{
    (void)state;
    assert_true(chosen(&(struct load){512, 1000, 900, 50, UINT32_MAX}));
    assert_false(chosen(&(struct load){512, 900, 1000, 50, UINT32_MAX}));
}

static void test_overlapchoice_tries_again_after_many_steps(void **state)
{
    struct load load = {128, 1000, 700, 0, UINT32_MAX};
    struct td_overlapchoice o;
    uint32_t n_choices = 0;

    (void)state;
    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, true);
    run_steps(&o, &load, ROUND, &n_choices);
    load.cut = 2000; /* the load changed */
    assert_int_equal(run_steps(&o, &load, TD_OVERLAPCHOICE_HOLD, &n_choices),
                     TD_OVERLAPCHOICE_HOLD);
    assert_true(td_overlapchoice_tries(&o, load.n_rows));
    assert_int_equal(run_steps(&o, &load, TD_OVERLAPCHOICE_TRIALS, &n_choices),
                     TD_OVERLAPCHOICE_TRIALS / 2);
    assert_int_equal(n_choices, 2);
    assert_int_equal(run_steps(&o, &load, TD_OVERLAPCHOICE_HOLD, &n_choices), 0);
    assert_int_equal(n_choices, 2);
}

static void test_overlapchoice_learns_each_size_by_itself(void **state)
{
    struct td_overlapchoice o;
    uint32_t n_choices = 0;

    (void)state;
    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, true);
    run_steps(&o, &(struct load){512, 1000, 700, 0, UINT32_MAX}, ROUND, &n_choices);
    assert_true(td_overlapchoice_tries(&o, 511));
    assert_false(td_overlapchoice_tries(&o, 1023));
    run_steps(&o, &(struct load){256, 700, 1000, 0, UINT32_MAX}, ROUND, &n_choices);
    assert_int_equal(n_choices, 2);
    assert_int_equal(td_overlapchoice_first_rows(&o, 512), 256);
    assert_int_equal(td_overlapchoice_first_rows(&o, 700), 352); /* whole tiles of 16 */
    assert_int_equal(td_overlapchoice_first_rows(&o, 511), 0);
    assert_int_equal(td_overlapchoice_first_rows(&o, 0), 0);
}

/* Nothing is tried where it cannot help, and what the user says holds. */
static void test_overlapchoice_does_as_it_is_told(void **state)
{
    const struct load load = {512, 1000, 100, 0, UINT32_MAX};
    struct td_overlapchoice o;
    uint32_t n = 0;

    (void)state;
    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, true);
    assert_int_equal(
        run_steps(&o, &(struct load){TD_OVERLAPCHOICE_LEAST_ROWS - 1, 9, 1, 0, UINT32_MAX}, 50, &n),
        0);
    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, false); /* all share memory */
    assert_int_equal(run_steps(&o, &load, 50, &n), 0);
    td_overlapchoice_init(&o, TD_OVERLAP_OFF, true, true);
    assert_int_equal(run_steps(&o, &load, 50, &n), 0);
    td_overlapchoice_init(&o, TD_OVERLAP_ON, false, true); /* nobody to exchange with */
    assert_int_equal(run_steps(&o, &load, 50, &n), 0);
    td_overlapchoice_init(&o, TD_OVERLAP_ON, true, false);
    assert_int_equal(run_steps(&o, &load, 50, &n), 50);
    assert_int_equal(n, 0);
    assert_false(td_overlapchoice_tries(&o, 512));
    assert_int_equal(td_overlapchoice_first_rows(&o, 0), 0);
    assert_int_equal(td_overlapchoice_first_rows(&o, 1), 0);
    for (uint32_t rows = 2; rows < 3000; rows++) {
        uint32_t first = td_overlapchoice_first_rows(&o, rows);

        assert_in_range(first, 1, rows - 1);
        assert_in_range(2 * first, rows > 17 ? rows - 17 : 1, rows + 17);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlapchoice_takes_what_was_faster),
        cmocka_unit_test(test_overlapchoice_forgives_one_slow_step),
        cmocka_unit_test(test_overlapchoice_is_not_misled_by_rows_that_cost_more_and_more),
        cmocka_unit_test(test_overlapchoice_tries_again_after_many_steps),
        cmocka_unit_test(test_overlapchoice_learns_each_size_by_itself),
        cmocka_unit_test(test_overlapchoice_does_as_it_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
