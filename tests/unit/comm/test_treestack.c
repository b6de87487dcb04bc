/* What the kernel of the NCCL plug-in does, run here: the same text, compiled for the host. */
#include "comm/treestack.h"

#include "tests/unit/comm/comm_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { N = 24, MAX_CUTS = 9 };

/* The parts of one random cut of n_leaves over n ranks, with the values that the specification gives them. */
struct cut {
    uint32_t n;
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    float values[TD_TREE_MAX_LEAVES][N];
    const float *part[TD_TREE_MAX_LEAVES];
};

static void make_cut(struct cut *c, uint64_t seed, uint32_t n_leaves, uint32_t n_ranks)
{
    struct td_leaf_run runs[MAX_CUTS];

    c->n = 0;
    check_runs(seed, n_leaves, n_ranks, runs);
    for (uint32_t r = 0; r < n_ranks; r++) {
        struct td_leaf_run cut[TD_TREE_MAX_PARTS];
        uint32_t n_cut = td_tree_parts(n_leaves, runs[r], cut);

        for (uint32_t i = 0; i < n_cut; i++, c->n++) {
            uint32_t size = 1;

            while (cut[i].begin + size < cut[i].end)
                size *= 2;
            for (size_t f = 0; f < N; f++)
                c->values[c->n][f] = check_node(seed, n_leaves, cut[i].begin, size, f);
            c->run[c->n] = cut[i];
            c->part[c->n] = c->values[c->n];
        }
    }
}

static void test_treestack_gives_the_bits_of_tree_join_for_thousands_of_cuts(void **state)
{
    const uint64_t seed = 20260;
    static struct cut c;
    size_t n_cuts = 0, n_unlike_plain = 0, n_most_parts = 0;

    (void)state;
    printf("seed %llu\n", (unsigned long long)seed);
    for (uint32_t n_leaves = 1; n_leaves <= TD_TREE_MAX_LEAVES; n_leaves++) {
        for (uint32_t k = 0; k < 48; k++, n_cuts++) {
            struct td_treestack join;
            float joined[N], ones[N], fours[N];

            make_cut(&c, check_mix(seed + k) + n_leaves, n_leaves, 1 + k % MAX_CUTS);
            td_tree_join(n_leaves, c.n, c.run, c.part, joined, N);
            td_tree_program_make(n_leaves, c.n, c.run, &join.program);
            memcpy(join.part, c.part, sizeof join.part);
            for (size_t f = 0; f < N; f++)
                td_treestack_run(&join, f, 1, &ones[f]);
            for (size_t f = 0; f < N; f += 4)
                td_treestack_run(&join, f, 4, &fours[f]);
            assert_memory_equal(ones, joined, sizeof joined);
            assert_memory_equal(fours, joined, sizeof joined);
            for (size_t f = 0; f < N; f++) {
                float expected = check_node(check_mix(seed + k) + n_leaves, n_leaves, 0,
                                            check_span(n_leaves), f);
                float plain = 0.0f;

                assert_memory_equal(&ones[f], &expected, sizeof expected);
                for (uint32_t i = 0; i < c.n; i++)
                    plain += c.part[i][f];
                n_unlike_plain += memcmp(&plain, &expected, sizeof plain) != 0;
            }
            n_most_parts = c.n > n_most_parts ? c.n : n_most_parts;
        }
    }
    assert_true(n_cuts > 3000);
    assert_true(n_most_parts > TD_TREESTACK_AHEAD); /* more than are loaded at once */
    assert_true(n_unlike_plain > 1000);             /* else a wrong order would not show */
}

static void test_tree_program_never_needs_a_deeper_stack_than_there_is(void **state)
{
    uint32_t deepest = 0;

    (void)state;
    for (uint32_t n_leaves = 1; n_leaves <= TD_TREE_MAX_LEAVES; n_leaves++) {
        struct td_leaf_run run[TD_TREE_MAX_LEAVES];
        struct td_tree_program p;
        uint32_t depth = 0;

        for (uint32_t l = 0; l < n_leaves; l++) /* every leaf alone: as deep as it gets */
            run[l] = (struct td_leaf_run){l, l + 1};
        td_tree_program_make(n_leaves, n_leaves, run, &p);
        assert_int_equal(p.n_parts, n_leaves);
        for (uint32_t l = 0; l < n_leaves; l++) {
            depth++;
            deepest = depth > deepest ? depth : deepest;
            assert_true(p.n_adds[l] < depth);
            depth -= p.n_adds[l];
        }
        assert_int_equal(depth, 1);
    }
    /* The 64th leaf is pushed on one pending node of each level below the root: 32, 16, 8, 4, 2, 1. */
    assert_int_equal(deepest, TD_TREE_MAX_DEPTH);
}

static void test_treestack_does_not_add_a_zero_for_an_absent_leaf(void **state)
{
    const float minus_zero[1] = {-0.0f};
    const struct td_leaf_run cut[2] = {{0, 2}, {2, 3}};
    struct td_treestack join = {.part = {minus_zero, minus_zero}};
    float out = 1.0f;

    (void)state;
    td_tree_program_make(3, 2, cut, &join.program);
    td_treestack_run(&join, 0, 1, &out);
    assert_memory_equal(&out, minus_zero, sizeof out); /* -0 + -0; with + 0 it would be +0 */
    td_tree_program_make(3, 1, &(struct td_leaf_run){0, 3}, &join.program);
    td_treestack_run(&join, 0, 1, &out);
    assert_memory_equal(&out, minus_zero, sizeof out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_treestack_gives_the_bits_of_tree_join_for_thousands_of_cuts),
        cmocka_unit_test(test_tree_program_never_needs_a_deeper_stack_than_there_is),
        cmocka_unit_test(test_treestack_does_not_add_a_zero_for_an_absent_leaf),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
