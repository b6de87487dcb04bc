#include "daemon/coordinator/stepwatch.h"

#include "tests/unit/check.h"

#include <string.h>

enum { N = 4 };

struct table {
    struct td_stepwatch rank[N];
    const struct td_stepwatch *all[N];
    bool blamed[N];
};

static void clear(struct table *t)
{
    memset(t, 0, sizeof *t);
    for (int r = 0; r < N; r++)
        t->all[r] = &t->rank[r];
}

static void put(struct table *t, int r, enum td_recorder_stage stage, uint64_t number,
                uint64_t n_ops, const char *op)
{
    t->rank[r].at = (struct td_whereabouts){.stage = stage, .number = number, .n_ops = n_ops};
    strcpy(t->rank[r].at.op, op);
}

/* The blamed ranks as bits. */
static unsigned blame(struct table *t, bool counts_agree)
{
    unsigned bits = 0;
    uint32_t n = td_stepwatch_blame(t->all, N, counts_agree, t->blamed), n_bits = 0;

    for (unsigned r = 0; r < N; r++) {
        bits |= (unsigned)t->blamed[r] << r;
        n_bits += t->blamed[r];
    }
    assert_int_equal(n, n_bits);
    return bits;
}

static void test_stepwatch_blames_who_computes_while_others_wait(void **state)
{
    struct table t;

    (void)state;
    clear(&t);
    for (int r = 0; r < N; r++)
        put(&t, r, TD_RECORDER_STEP, 50, 9, "tree_sum");
    put(&t, 2, TD_RECORDER_STEP, 50, 8, "");
    assert_int_equal(blame(&t, true), 1u << 2);
    assert_int_equal(blame(&t, false), 1u << 2);
    put(&t, 1, TD_RECORDER_STEP, 50, 8, ""); /* two of them, equally far */
    assert_int_equal(blame(&t, true), 1u << 1 | 1u << 2);
    put(&t, 1, TD_RECORDER_STEP, 50, 7, "");
    assert_int_equal(blame(&t, true), 1u << 1);
}

static void test_stepwatch_blames_who_is_behind_when_all_wait(void **state)
{
    struct table t;

    (void)state;
    clear(&t);
    for (int r = 0; r < N; r++)
        put(&t, r, TD_RECORDER_STEP, 50, 9, "tree_sum");
    put(&t, 3, TD_RECORDER_STEP, 50, 8, "tree_sum"); /* it hangs inside the exchange before */
    assert_int_equal(blame(&t, true), 1u << 3);
    assert_int_equal(blame(&t, false), 0xf); /* stages of a pipeline count differently */
    put(&t, 3, TD_RECORDER_STEP, 50, 9, "tree_sum");
    assert_int_equal(blame(&t, true), 0xf); /* a network between them, perhaps */
}

static void test_stepwatch_blames_who_was_not_reached_by_the_step(void **state)
{
    struct table t;

    (void)state;
    clear(&t);
    for (int r = 0; r < N; r++)
        put(&t, r, TD_RECORDER_STEP, 50, 2, "tree_sum");
    put(&t, 1, TD_RECORDER_REST, 50, 0, ""); /* it does not wake */
    assert_int_equal(blame(&t, true), 1u << 1);
    put(&t, 1, TD_RECORDER_BETWEEN, 50, 0, "bcast"); /* it hangs in the broadcast */
    assert_int_equal(blame(&t, true), 1u << 1);
    put(&t, 1, TD_RECORDER_STEP, 49, 30, ""); /* it hangs at the end of the step before */
    assert_int_equal(blame(&t, true), 1u << 1);
}

static void test_stepwatch_blames_rank_0_when_no_step_has_begun(void **state)
{
    struct table t;

    (void)state;
    clear(&t);
    for (int r = 1; r < N; r++)
        put(&t, r, TD_RECORDER_BETWEEN, 50, 0, "bcast");
    put(&t, 0, TD_RECORDER_BETWEEN, 50, 0, "");
    assert_int_equal(blame(&t, true), 1u);
    put(&t, 0, TD_RECORDER_REST, 50, 0, "");
    put(&t, 1, TD_RECORDER_REST, 50, 0, ""); /* rightly so */
    assert_int_equal(blame(&t, true), 1u);
}

static void test_stepwatch_goes_by_the_limit_that_rank_0_tells(void **state)
{
    struct td_stepwatch w = {.at = {.elapsed_ns = 2000, .limit_ns = 2000}};

    (void)state;
    assert_false(td_stepwatch_is_late(&w));
    w.at.elapsed_ns = 2001;
    assert_true(td_stepwatch_is_late(&w));
    w.at.limit_ns = 0;
    assert_false(td_stepwatch_is_late(&w));
}

static void note(struct td_stepwatch *w, uint64_t number, uint64_t hash)
{
    const struct td_whereabouts at = {.number = number};
    const struct td_recorder_mark mark = {number, hash};

    td_stepwatch_note(w, &at, &mark, 1);
}

static void test_stepwatch_finds_the_rank_that_ran_other_steps(void **state)
{
    struct table t;
    uint64_t number = 0;

    (void)state;
    clear(&t);
    for (int r = 0; r < N; r++) {
        note(&t.rank[r], 7, 100);
        note(&t.rank[r], 15, r == 2 ? 222 : 200);
        note(&t.rank[r], 23, r == 2 ? 333 : 300);
    }
    assert_false(td_stepwatch_differ(t.all, N, 1, &number, t.blamed));
    assert_true(td_stepwatch_differ(t.all, N, 2, &number, t.blamed));
    assert_int_equal(number, 15); /* the first one */
    assert_true(t.blamed[2] && !t.blamed[0] && !t.blamed[1] && !t.blamed[3]);
    assert_int_equal(*td_stepwatch_hash(t.all[2], 15), 222);
}

static void test_stepwatch_blames_rank_0_when_all_others_agree(void **state)
{
    struct table t;
    uint64_t number;

    (void)state;
    clear(&t);
    for (int r = 0; r < N; r++)
        note(&t.rank[r], 7, r == 0 ? 1 : 2);
    assert_true(td_stepwatch_differ(t.all, N, 3, &number, t.blamed));
    assert_true(t.blamed[0] && !t.blamed[1] && !t.blamed[2] && !t.blamed[3]);
    clear(&t);
    note(&t.rank[0], 7, 1); /* one against one: both */
    note(&t.rank[1], 7, 2);
    assert_true(td_stepwatch_differ(t.all, 2, 1, &number, t.blamed));
    assert_true(t.blamed[0] && t.blamed[1]);
}

static void test_stepwatch_compares_ranks_that_are_not_at_the_same_step(void **state)
{
    struct table t;
    uint64_t number;

    (void)state;
    clear(&t);
    for (uint64_t i = 0; i < 500; i++) { /* rank 1 tells of other steps than rank 0, but for one */
        note(&t.rank[0], i * 10, i * 10);
        note(&t.rank[1], i == 490 ? 4900 : i * 10 + 3, i == 490 ? 4901 : i * 10 + 3);
    }
    assert_true(td_stepwatch_differ(t.all, 2, 1, &number, t.blamed));
    assert_int_equal(number, 4900);
    assert_null(td_stepwatch_hash(t.all[0], 10)); /* long forgotten */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stepwatch_blames_who_computes_while_others_wait),
        cmocka_unit_test(test_stepwatch_blames_who_is_behind_when_all_wait),
        cmocka_unit_test(test_stepwatch_blames_who_was_not_reached_by_the_step),
        cmocka_unit_test(test_stepwatch_blames_rank_0_when_no_step_has_begun),
        cmocka_unit_test(test_stepwatch_goes_by_the_limit_that_rank_0_tells),
        cmocka_unit_test(test_stepwatch_finds_the_rank_that_ran_other_steps),
        cmocka_unit_test(test_stepwatch_blames_rank_0_when_all_others_agree),
        cmocka_unit_test(test_stepwatch_compares_ranks_that_are_not_at_the_same_step),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
