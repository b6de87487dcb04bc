/* Into how many parts steps are cut: what the user says, which steps are tried, and that the fastest way is taken. Times come from a
 * formula here; nobody waits for them. */
#include "daemon/engine/overlapchoice.h"

#include "shard/step.h"
#include "tests/unit/check.h"

enum { TRIES = 1 + TD_OVERLAPCHOICE_TRIALS };
#define NONE UINT32_MAX

/* Steps of n_rows, ns[parts - 1] ns per row in so many parts, growing by `growth` ns per row and step; the step `bad` takes ten
 * times as long. */
struct load {
    uint32_t n_rows;
    uint64_t ns[TD_STEP_MAX_PARTS];
    uint64_t growth;
    uint32_t bad; /* NONE: none */
};

static uint32_t parts_of(const struct td_overlapchoice *o, uint32_t n_rows)
{
    return td_step_n_parts(n_rows, td_overlapchoice_part_rows(o, n_rows));
}

/* Counts in n[parts - 1] how often a step had so many parts. Returns how many choices were made. */
static uint32_t run_steps(struct td_overlapchoice *o, const struct load *load, uint32_t n_steps,
                          uint32_t n[TD_STEP_MAX_PARTS])
{
    uint32_t n_choices = 0;

    for (uint32_t i = 0; i < n_steps; i++) {
        uint32_t parts = parts_of(o, load->n_rows);
        uint64_t ns;

        assert_in_range(parts, 1, TD_STEP_MAX_PARTS);
        ns = (load->ns[parts - 1] + i * load->growth) * load->n_rows;
        n[parts - 1]++;
        n_choices += td_overlapchoice_learn(o, load->n_rows, i == load->bad ? 10 * ns : ns) != NULL;
    }
    return n_choices;
}

/* In how many parts a step goes after all ways were tried as often. */
static uint32_t chosen(const struct load *load, uint32_t n_ways)
{
    uint32_t n[TD_STEP_MAX_PARTS] = {0};
    struct td_overlapchoice o;

    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, true);
    assert_true(td_overlapchoice_tries(&o, load->n_rows));
    assert_int_equal(run_steps(&o, load, n_ways * TRIES, n), 1);
    assert_int_equal(n[0], TRIES);
    assert_int_equal(n[1], TRIES);
    assert_int_equal(n[3], n_ways == 3 ? TRIES : 0);
    assert_false(td_overlapchoice_tries(&o, load->n_rows));
    return parts_of(&o, load->n_rows);
}

static void test_overlapchoice_takes_what_was_fastest(void **state)
{
    (void)state;
    assert_int_equal(chosen(&(struct load){512, {1000, 700, 0, 600}, 0, NONE}, 3), 4);
    assert_int_equal(chosen(&(struct load){512, {1000, 700, 0, 800}, 0, NONE}, 3), 2);
    assert_int_equal(chosen(&(struct load){512, {1000, 1100, 0, 800}, 0, NONE}, 3), 4);
    assert_int_equal(chosen(&(struct load){512, {1000, 1300, 0, 1200}, 0, NONE}, 3), 1);
    assert_int_equal(chosen(&(struct load){512, {1000, 1000, 0, 1000}, 0, NONE}, 3), 1);
    assert_int_equal(chosen(&(struct load){512, {1000, 990, 0, 985}, 0, NONE}, 3), 1); /* hardly */
    assert_int_equal(chosen(&(struct load){64, {1000, 700, 0, 0}, 0, NONE}, 2), 2);
    assert_int_equal(chosen(&(struct load){127, {700, 1000, 0, 0}, 0, NONE}, 2), 1);
}

/* A step that something else disturbed, whichever of the trials it is. */
static void test_overlapchoice_forgives_one_slow_step(void **state)
{
    (void)state;
    for (uint32_t bad = 0; bad < 3 * TRIES; bad++) {
        assert_int_equal(chosen(&(struct load){256, {1000, 900, 0, 800}, 0, bad}, 3), 4);
        assert_int_equal(chosen(&(struct load){256, {1000, 800, 0, 900}, 0, bad}, 3), 2);
        assert_int_equal(chosen(&(struct load){256, {800, 900, 0, 1000}, 0, bad}, 3), 1);
    }
}

/* A long prompt, whose rows cost more from step to step: as much again after 20 steps. */
static void test_overlapchoice_is_not_misled_by_rows_that_cost_more_and_more(void **state)
{
    (void)state;
    assert_int_equal(chosen(&(struct load){512, {1000, 900, 0, 800}, 50, NONE}, 3), 4);
    assert_int_equal(chosen(&(struct load){512, {1000, 800, 0, 900}, 50, NONE}, 3), 2);
    assert_int_equal(chosen(&(struct load){512, {800, 900, 0, 1000}, 50, NONE}, 3), 1);
    assert_int_equal(chosen(&(struct load){64, {900, 1000, 0, 0}, 50, NONE}, 2), 1);
}

static void test_overlapchoice_tries_again_after_many_steps(void **state)
{
    struct load load = {128, {1000, 700, 0, 800}, 0, NONE};
    uint32_t n[TD_STEP_MAX_PARTS] = {0};
    struct td_overlapchoice o;

    (void)state;
    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, true);
    assert_int_equal(run_steps(&o, &load, 3 * TRIES, n), 1);
    load.ns[1] = load.ns[3] = 2000; /* the load changed */
    assert_int_equal(run_steps(&o, &load, TD_OVERLAPCHOICE_HOLD, n), 0);
    assert_int_equal(n[1], TRIES + TD_OVERLAPCHOICE_HOLD);
    assert_true(td_overlapchoice_tries(&o, load.n_rows));
    assert_int_equal(run_steps(&o, &load, 3 * TD_OVERLAPCHOICE_TRIALS, n), 1);
    assert_int_equal(parts_of(&o, load.n_rows), 1);
    assert_false(td_overlapchoice_tries(&o, load.n_rows));
}

static void test_overlapchoice_learns_each_size_by_itself(void **state)
{
    uint32_t n[TD_STEP_MAX_PARTS] = {0};
    struct td_overlapchoice o;

    (void)state;
    td_overlapchoice_init(&o, TD_OVERLAP_AUTO, true, true);
    assert_int_equal(run_steps(&o, &(struct load){512, {1000, 700, 0, 800}, 0, NONE}, 15, n), 1);
    assert_true(td_overlapchoice_tries(&o, 511));
    assert_false(td_overlapchoice_tries(&o, 1023));
    assert_int_equal(run_steps(&o, &(struct load){256, {700, 800, 0, 800}, 0, NONE}, 15, n), 1);
    assert_int_equal(td_overlapchoice_part_rows(&o, 512), 256);
    assert_int_equal(td_overlapchoice_part_rows(&o, 700), 352); /* whole tiles of 16 */
    assert_int_equal(td_overlapchoice_part_rows(&o, 511), 0);
    assert_int_equal(td_overlapchoice_part_rows(&o, 0), 0);
}

static uint32_t n_cut(enum td_overlap_mode mode, bool is_parallel, bool by_messages, uint32_t rows)
{
    uint32_t n[TD_STEP_MAX_PARTS] = {0};
    struct td_overlapchoice o;

    td_overlapchoice_init(&o, mode, is_parallel, by_messages);
    assert_int_equal(run_steps(&o, &(struct load){rows, {900, 9, 9, 9}, 0, NONE}, 50, n),
                     mode == TD_OVERLAP_AUTO && is_parallel && by_messages && rows >= 64);
    return 50 - n[0];
}

/* Nothing is tried where it cannot help, and what the user says holds. */
static void test_overlapchoice_does_as_it_is_told(void **state)
{
    struct td_overlapchoice o;

    (void)state;
    assert_true(n_cut(TD_OVERLAP_AUTO, true, true, 64) > 0);
    assert_int_equal(n_cut(TD_OVERLAP_AUTO, true, true, 63), 0);
    assert_int_equal(n_cut(TD_OVERLAP_AUTO, true, false, 512), 0); /* all share memory */
    assert_int_equal(n_cut(TD_OVERLAP_AUTO, false, true, 512), 0);
    assert_int_equal(n_cut(TD_OVERLAP_OFF, true, true, 512), 0);
    assert_int_equal(n_cut(TD_OVERLAP_ON, false, true, 512), 0); /* nobody to exchange with */
    assert_int_equal(n_cut(TD_OVERLAP_ON, true, false, 512), 50);
    td_overlapchoice_init(&o, TD_OVERLAP_ON, true, false);
    assert_false(td_overlapchoice_tries(&o, 512));
    assert_int_equal(parts_of(&o, 0), 1);
    assert_int_equal(parts_of(&o, 1), 1);
    for (uint32_t rows = 2; rows < 3000; rows++) {
        assert_in_range(parts_of(&o, rows), 2, rows < 128 ? 2 : TD_STEP_MAX_PARTS);
        if (rows >= 256) /* what the tiles take from the last part is no whole part */
            assert_int_equal(parts_of(&o, rows), 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlapchoice_takes_what_was_fastest),
        cmocka_unit_test(test_overlapchoice_forgives_one_slow_step),
        cmocka_unit_test(test_overlapchoice_is_not_misled_by_rows_that_cost_more_and_more),
        cmocka_unit_test(test_overlapchoice_tries_again_after_many_steps),
        cmocka_unit_test(test_overlapchoice_learns_each_size_by_itself),
        cmocka_unit_test(test_overlapchoice_does_as_it_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
