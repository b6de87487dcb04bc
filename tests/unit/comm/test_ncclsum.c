/* The host's part of a sum on devices. The whole way of the data is followed in host memory: what goes from rank to rank is
 * copied as nccl_ops.c has it sent, and joined by the kernel's own text. */
#include "comm/ncclsum.h"

#include "tests/unit/comm/comm_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { MAX_RANKS = 9, MAX_FLOATS = 37 };

struct group {
    uint32_t n_ranks, n_leaves;
    size_t n_floats;
    struct td_leaf_run runs[MAX_RANKS];
    struct td_ncclsum sum[MAX_RANKS];
    float parts[MAX_RANKS][TD_TREE_MAX_PARTS * MAX_FLOATS];
    float scratch[MAX_RANKS][TD_TREE_MAX_LEAVES * MAX_FLOATS];
    float out[MAX_RANKS][MAX_FLOATS];
};

static void make_group(struct group *g, uint64_t seed, uint32_t n_leaves, uint32_t n_ranks,
                       size_t n_floats)
{
    struct td_tree_layout layout = {n_leaves, g->runs};

    g->n_ranks = n_ranks;
    g->n_leaves = n_leaves;
    g->n_floats = n_floats;
    check_runs(seed, n_leaves, n_ranks, g->runs);
    for (uint32_t r = 0; r < n_ranks; r++) {
        struct td_leaf_run cut[TD_TREE_MAX_PARTS];
        uint32_t n = td_tree_parts(n_leaves, g->runs[r], cut);
        struct td_err err;

        for (uint32_t i = 0; i < n; i++) {
            uint32_t size = 1;

            while (cut[i].begin + size < cut[i].end)
                size *= 2;
            for (size_t f = 0; f < n_floats; f++)
                g->parts[r][i * n_floats + f] = check_node(seed, n_leaves, cut[i].begin, size, f);
        }
        assert_int_equal(td_ncclsum_make(&layout, n_ranks, r, &g->sum[r], &err), TD_OK);
        assert_int_equal(g->sum[r].first[r + 1] - g->sum[r].first[r], n);
        memset(g->scratch[r], 0xee, sizeof g->scratch[r]);
    }
}

static void join_on(struct group *g, uint32_t r, size_t begin, size_t end)
{
    struct td_treestack join;

    td_ncclsum_join(&g->sum[r], g->parts[r], g->scratch[r], g->n_floats, begin, &join);
    for (size_t f = begin; f < end; f++)
        td_treestack_run(&join, f - begin, 1, &g->out[r][f]);
}

/* Floats begin .. end - 1 of rank `from`'s parts to `to`. */
static void carry(struct group *g, uint32_t from, uint32_t to, size_t begin, size_t end)
{
    uint32_t first = g->sum[to].first[from], n = g->sum[to].first[from + 1] - first;

    for (uint32_t i = 0; i < n && from != to; i++)
        memcpy(g->scratch[to] + (first + i) * g->n_floats + begin,
               g->parts[from] + i * g->n_floats + begin, (end - begin) * sizeof(float));
}

static void assert_sums(const struct group *g, uint64_t seed)
{
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        for (size_t f = 0; f < g->n_floats; f++) {
            float expected = check_node(seed, g->n_leaves, 0, check_span(g->n_leaves), f);

            assert_memory_equal(&g->out[r][f], &expected, sizeof expected);
        }
    }
}

static void test_ncclsum_joins_the_parts_of_any_layout_in_the_trees_order(void **state)
{
    const uint64_t seed = 77;
    static struct group g;

    (void)state;
    printf("seed %llu\n", (unsigned long long)seed);
    for (uint32_t n_leaves = 1; n_leaves <= TD_TREE_MAX_LEAVES; n_leaves += n_leaves < 20 ? 1 : 7) {
        for (uint32_t n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) {
            make_group(&g, seed + n_leaves, n_leaves, n_ranks, 5);
            for (uint32_t to = 0; to < n_ranks; to++) {
                for (uint32_t from = 0; from < n_ranks; from++)
                    carry(&g, from, to, 0, g.n_floats);
                join_on(&g, to, 0, g.n_floats);
            }
            assert_sums(&g, seed + n_leaves);
        }
    }
}

static void test_ncclsum_joins_slices_to_the_same_bits(void **state)
{
    const uint64_t seed = 78;
    static struct group g;

    (void)state;
    for (uint32_t n_ranks = 3; n_ranks <= MAX_RANKS; n_ranks++) {
        for (size_t n_floats = 1; n_floats <= MAX_FLOATS; n_floats += 4) {
            make_group(&g, seed + n_floats, 13, n_ranks, n_floats);
            for (uint32_t r = 0; r < n_ranks; r++) {
                size_t begin = td_ncclsum_slice(&g.sum[r], n_floats, r);
                size_t end = td_ncclsum_slice(&g.sum[r], n_floats, r + 1);

                for (uint32_t from = 0; from < n_ranks; from++)
                    carry(&g, from, r, begin, end);
                join_on(&g, r, begin, end);
                for (uint32_t to = 0; to < n_ranks; to++)
                    memcpy(g.out[to] + begin, g.out[r] + begin, (end - begin) * sizeof(float));
            }
            assert_sums(&g, seed + n_floats);
        }
    }
}

/* As the same sum between ranks of a host sends them, in one shot and, in slices that both cut alike, in two. */
static void test_ncclsum_sends_the_bytes_of_a_tree_sum(void **state)
{
    static struct group g;

    (void)state;
    for (uint32_t n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) {
        const size_t sizes[] = {1, 4096, 65536, n_ranks * 16 * 5000};

        make_group(&g, 31 + n_ranks, 16, n_ranks, MAX_FLOATS);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            for (uint32_t r = 0; r < n_ranks; r++) {
                struct td_tree_layout layout = {16, g.runs};

                assert_int_equal(td_ncclsum_sent_bytes(&g.sum[r], sizes[i]),
                                 td_comm_tree_sum_bytes(&layout, n_ranks, r, sizes[i]));
            }
    }
}

static void test_ncclsum_slices_cover_all_floats_in_whole_vectors(void **state)
{
    struct td_ncclsum sum = {.n_ranks = 7};
    const size_t sizes[] = {0, 1, 3, 4, 27, 28, 29, 4096, 4099, 1u << 22};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(td_ncclsum_slice(&sum, sizes[i], 0), 0);
        assert_int_equal(td_ncclsum_slice(&sum, sizes[i], 7), sizes[i]);
        for (uint32_t r = 0; r < 7; r++) {
            size_t begin = td_ncclsum_slice(&sum, sizes[i], r);

            assert_int_equal(begin % 4, 0);
            assert_true(td_ncclsum_slice(&sum, sizes[i], r + 1) >= begin);
            assert_true(td_ncclsum_slice(&sum, sizes[i], r + 1) - begin <= sizes[i] / 7 + 8);
        }
    }
}

static void test_ncclsum_knows_when_all_ranks_have_as_many_parts(void **state)
{
    const struct td_leaf_run halves[2] = {{0, 4}, {4, 8}};         /* one part each */
    const struct td_leaf_run odd[2] = {{0, 3}, {3, 8}};            /* 0-2 2-3 and 3-4 4-8 */
    const struct td_leaf_run uneven[2] = {{0, 1}, {1, 8}};         /* 0-1 and 1-2 2-4 4-8 */
    const struct td_leaf_run absent[3] = {{0, 4}, {4, 8}, {8, 8}}; /* the last owns none */
    struct td_ncclsum sum;

    (void)state;
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){8, halves}, 2, 0, &sum, NULL), TD_OK);
    assert_true(sum.is_even);
    assert_int_equal(td_ncclsum_parts(&sum), 2);
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){8, odd}, 2, 1, &sum, NULL), TD_OK);
    assert_true(sum.is_even);
    assert_int_equal(td_ncclsum_parts(&sum), 4);
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){8, uneven}, 2, 1, &sum, NULL), TD_OK);
    assert_false(sum.is_even);
    assert_int_equal(td_ncclsum_parts(&sum), 4);
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){8, absent}, 3, 2, &sum, NULL), TD_OK);
    assert_false(sum.is_even);
    assert_int_equal(td_ncclsum_parts(&sum), 2);
}

static void test_ncclsum_refuses_what_is_no_layout(void **state)
{
    const struct td_leaf_run gap[2] = {{0, 3}, {4, 8}}, early[2] = {{0, 3}, {3, 7}};
    struct td_ncclsum sum;
    struct td_err err;

    (void)state;
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){8, gap}, 2, 0, &sum, &err),
                     TD_INVALID);
    assert_non_null(strstr(err.cause, "rank 1 owns leaves 4 to 8, expected a run from 3"));
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){8, early}, 2, 0, &sum, &err),
                     TD_INVALID);
    assert_non_null(strstr(err.cause, "end at leaf 7, expected 8"));
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){65, gap}, 2, 0, &sum, &err),
                     TD_INVALID);
    assert_non_null(strstr(err.cause, "65 leaves, expected 1 to 64"));
    assert_int_equal(td_ncclsum_make(&(struct td_tree_layout){8, gap}, 2, 2, &sum, &err),
                     TD_INVALID);
    assert_non_null(strstr(err.cause, "rank 2 of 2"));
    assert_int_equal(td_ncclsum_make(NULL, 2, 0, &sum, &err), TD_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ncclsum_joins_the_parts_of_any_layout_in_the_trees_order),
        cmocka_unit_test(test_ncclsum_joins_slices_to_the_same_bits),
        cmocka_unit_test(test_ncclsum_sends_the_bytes_of_a_tree_sum),
        cmocka_unit_test(test_ncclsum_slices_cover_all_floats_in_whole_vectors),
        cmocka_unit_test(test_ncclsum_knows_when_all_ranks_have_as_many_parts),
        cmocka_unit_test(test_ncclsum_refuses_what_is_no_layout),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
