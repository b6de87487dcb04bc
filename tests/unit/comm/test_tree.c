#include "comm/tree.h"

#include "tests/unit/comm/comm_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void assert_parts(uint32_t n_leaves, uint32_t begin, uint32_t end, const char *expected)
{
    struct td_leaf_run parts[TD_TREE_MAX_PARTS];
    uint32_t n = td_tree_parts(n_leaves, (struct td_leaf_run){begin, end}, parts);
    char text[200] = "";

    for (uint32_t i = 0; i < n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%u-%u", i ? " " : "",
                 parts[i].begin, parts[i].end);
    assert_string_equal(text, expected);
}

static void test_tree_parts_are_the_largest_aligned_subtrees(void **state)
{
    (void)state;
    assert_parts(8, 0, 8, "0-8");
    assert_parts(8, 0, 3, "0-2 2-3");
    assert_parts(8, 3, 8, "3-4 4-8");
    assert_parts(8, 1, 7, "1-2 2-4 4-6 6-7");
    assert_parts(64, 1, 63, "1-2 2-4 4-8 8-16 16-32 32-48 48-56 56-60 60-62 62-63");
    assert_parts(1, 0, 1, "0-1");
}

static void test_tree_parts_count_a_subtree_cut_by_the_end_as_whole(void **state)
{
    (void)state;
    assert_parts(5, 0, 5, "0-5");
    assert_parts(5, 4, 5, "4-5");
    assert_parts(6, 3, 6, "3-4 4-6");
    assert_parts(7, 4, 7, "4-7");
    assert_parts(7, 4, 6, "4-6");
}

static void test_tree_parts_of_an_empty_run_are_none(void **state)
{
    (void)state;
    assert_parts(8, 3, 3, "");
    assert_parts(8, 8, 8, "");
}

static void test_tree_parts_cover_every_run_of_every_tree(void **state)
{
    struct td_leaf_run parts[TD_TREE_MAX_PARTS];

    (void)state;
    for (uint32_t n_leaves = 1; n_leaves <= TD_TREE_MAX_LEAVES; n_leaves++) {
        for (uint32_t begin = 0; begin <= n_leaves; begin++) {
            for (uint32_t end = begin; end <= n_leaves; end++) {
                uint32_t n = td_tree_parts(n_leaves, (struct td_leaf_run){begin, end}, parts);
                uint32_t at = begin;

                assert_true(n <= TD_TREE_MAX_PARTS);
                for (uint32_t i = 0; i < n; i++) {
                    assert_int_equal(parts[i].begin, at);
                    assert_true(parts[i].end > at);
                    at = parts[i].end;
                }
                assert_int_equal(at, end);
            }
        }
    }
}

static void test_tree_join_adds_in_the_trees_order_for_every_cut(void **state)
{
    enum { N = 1100 };
    const uint64_t seed = 42;
    static float values[TD_TREE_MAX_LEAVES][N];
    float out[N];
    size_t n_unlike_plain = 0;

    (void)state;
    for (uint32_t n_leaves = 1; n_leaves <= TD_TREE_MAX_LEAVES;
         n_leaves += n_leaves < 20 ? 1 : 11) {
        for (uint32_t n_ranks = 1; n_ranks <= 9; n_ranks += 2) {
            struct td_leaf_run runs[9];
            struct td_leaf_run all[TD_TREE_MAX_LEAVES];
            const float *part[TD_TREE_MAX_LEAVES];
            struct td_leaf_run cut[TD_TREE_MAX_PARTS];
            uint32_t n = 0;

            check_runs(seed + n_leaves, n_leaves, n_ranks, runs);
            for (uint32_t r = 0; r < n_ranks; r++) {
                uint32_t n_cut = td_tree_parts(n_leaves, runs[r], cut);

                for (uint32_t i = 0; i < n_cut; i++, n++) {
                    uint32_t size = 1;

                    while (cut[i].begin + size < cut[i].end)
                        size *= 2;
                    for (size_t f = 0; f < N; f++)
                        values[n][f] = check_node(seed, n_leaves, cut[i].begin, size, f);
                    all[n] = cut[i];
                    part[n] = values[n];
                }
            }
            td_tree_join(n_leaves, n, all, part, out, N);
            for (size_t f = 0; f < N; f++) {
                float expected = check_node(seed, n_leaves, 0, check_span(n_leaves), f);
                float plain = 0.0f;

                assert_memory_equal(&out[f], &expected, sizeof expected);
                for (uint32_t l = 0; l < n_leaves; l++)
                    plain += check_leaf(seed, l, f);
                n_unlike_plain += memcmp(&plain, &expected, sizeof plain) != 0;
            }
        }
    }
    assert_true(n_unlike_plain > 1000); /* else these numbers would not show a wrong order */
}

static void test_tree_join_does_not_add_a_zero_for_an_absent_leaf(void **state)
{
    const float minus_zero[1] = {-0.0f};
    const struct td_leaf_run whole = {0, 3};
    const struct td_leaf_run cut[2] = {{0, 2}, {2, 3}};
    const float *const one[1] = {minus_zero};
    const float *const two[2] = {minus_zero, minus_zero};
    float out[1] = {1.0f};

    (void)state;
    td_tree_join(3, 1, &whole, one, out, 1);
    assert_memory_equal(out, minus_zero, sizeof out);
    td_tree_join(3, 2, cut, two, out, 1);
    assert_memory_equal(out, minus_zero, sizeof out); /* -0 + -0; with + 0 it would be +0 */
}

static void test_tree_join_may_write_over_any_one_part(void **state)
{
    enum { N = 1500 };
    static float values[4][N];
    const struct td_leaf_run runs[4] = {{0, 1}, {1, 2}, {2, 4}, {4, 7}};

    (void)state;
    for (uint32_t target = 0; target < 4; target++) {
        const float *const part[4] = {values[0], values[1], values[2], values[3]};

        for (size_t f = 0; f < N; f++) {
            values[0][f] = check_node(9, 7, 0, 1, f);
            values[1][f] = check_node(9, 7, 1, 1, f);
            values[2][f] = check_node(9, 7, 2, 2, f);
            values[3][f] = check_node(9, 7, 4, 4, f);
        }
        td_tree_join(7, 4, runs, part, values[target], N);
        for (size_t f = 0; f < N; f++) {
            float expected = check_node(9, 7, 0, 8, f);

            assert_memory_equal(&values[target][f], &expected, sizeof expected);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree_parts_are_the_largest_aligned_subtrees),
        cmocka_unit_test(test_tree_parts_count_a_subtree_cut_by_the_end_as_whole),
        cmocka_unit_test(test_tree_parts_of_an_empty_run_are_none),
        cmocka_unit_test(test_tree_parts_cover_every_run_of_every_tree),
        cmocka_unit_test(test_tree_join_adds_in_the_trees_order_for_every_cut),
        cmocka_unit_test(test_tree_join_does_not_add_a_zero_for_an_absent_leaf),
        cmocka_unit_test(test_tree_join_may_write_over_any_one_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
