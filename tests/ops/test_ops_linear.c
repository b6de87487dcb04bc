/* Products of every stored type on every instruction set: against float64, the same bits on all of them, the same bits of a
 * row whoever is in the call with it, and the same bits in every split over ranks. */
#include "tests/ops/ops.h"

#include "comm/tree.h"
#include "kernels/base/half.h"
#include "kernels/quant/dequant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CASES = 28, MAX_COLS = 5 };

/* Columns that a type may have and whose tails are awkward. */
static uint32_t columns(enum td_dtype dtype, uint32_t i)
{
    static const uint32_t floats[MAX_COLS] = {1, 3, 31, 97, 172},
                          pairs[MAX_COLS] = {1, 127, 130, 256, 300},
                          small[MAX_COLS] = {32, 64, 96, 160, 352},
                          large[MAX_COLS] = {256, 512, 768, 256, 512};
    size_t block = td_dtype_info(dtype)->block_elems;

    if (block == 1)
        return dtype == TD_F8_E4M3 ? pairs[i % MAX_COLS] : floats[i % MAX_COLS];
    return block == 32 ? small[i % MAX_COLS] : large[i % MAX_COLS];
}

/* out [parts x n x rows], filled with what no sum is before. */
static float *multiply(struct td_kern *kern, const struct td_matrix *m, const float *x, uint32_t n,
                       uint32_t rows, uint32_t n_parts)
{
    size_t bytes = (size_t)n_parts * n * rows * sizeof(float);
    float *out = malloc(bytes);
    struct td_err err;

    memset(out, 0xff, bytes);
    assert_int_equal(td_kern_matmul(kern, m, x, n, out, &err), TD_OK);
    return out;
}

static float *pack_and_multiply(struct td_kern *kern, const struct td_ops_weights *w,
                                const struct td_ops_cut *cut, const float *x, uint32_t n)
{
    struct td_matrix *m = td_ops_pack(kern, w, cut);
    float *out = multiply(kern, m, x, n, w->rows, cut->n_parts);

    td_kern_matrix_close(kern, m);
    return out;
}

/* `out` against float64 with the activations `a`. Sums of n terms in F32 are off by n roundings of the terms' magnitude at
 * most. */
static struct td_ops_error check_sums(const struct td_ops_weights *w, const struct td_ops_cut *cut,
                                      const double *a, uint32_t n, const float *out)
{
    struct td_ops_error e = {0};

    for (uint32_t part = 0; part < cut->n_parts; part++) {
        uint32_t first = cut->part_begin[part], k0 = first ? cut->leaf_end[first - 1] : 0,
                 k1 = cut->leaf_end[cut->part_begin[part + 1] - 1];

        for (uint32_t t = 0; t < n; t++)
            for (uint32_t r = 0; r < w->rows; r++) {
                double sum = 0.0, magnitude = 0.0, got = (double)*out++;

                for (uint32_t k = k0; k < k1; k++) {
                    double term =
                        (double)w->values[(size_t)r * w->cols + k] * a[(size_t)t * w->cols + k];

                    sum += term;
                    magnitude += fabs(term);
                }
                if (!(fabs(got - sum) <= 0x1p-24 * (k1 - k0 + 4) * magnitude))
                    fail_msg("part %u, token %u, row %u is %.9g, expected %.9g", part, t, r, got,
                             sum);
                td_ops_count(&e, got, sum);
            }
    }
    return e;
}

struct one_case {
    enum td_dtype dtype;
    uint32_t rows, cols, n, n_leaves, n_parts;
    uint32_t threads_of_ref; /* 0: one, 1: three; the next set has the other, and so on */
};

static void check_case(const struct td_ops_devices *devices, const struct one_case *c)
{
    const char *name = td_dtype_info(c->dtype)->name;
    struct td_ops_cut cut = td_ops_cut_random(c->dtype, c->cols, c->n_leaves, c->n_parts);
    struct td_ops_weights w;
    float *x = td_ops_activations((size_t)c->n * c->cols);
    double *a = td_ops_rounded(c->dtype, x, c->n, c->cols);
    float *ref, *out;
    double nmse;

    td_ops_weights_init(&w, c->dtype, c->rows, c->cols);
    ref = pack_and_multiply(devices->kern[0][c->threads_of_ref], &w, &cut, x, c->n);
    nmse = td_ops_nmse(check_sums(&w, &cut, a, c->n, ref));
    if (nmse > 1e-7)
        fail_msg("%s %u x %u, %u tokens: NMSE %g", name, c->rows, c->cols, c->n, nmse);
    for (uint32_t isa = 1; isa < TD_OPS_ISAS; isa++) {
        struct td_kern *kern = devices->kern[isa][(c->threads_of_ref + isa) % 2];

        if (!kern)
            continue;
        out = pack_and_multiply(kern, &w, &cut, x, c->n);
        td_ops_assert_same(out, ref, (size_t)cut.n_parts * c->n * c->rows,
                           "%s on %s: %u x %u, %u tokens, %u leaves in %u parts\n", name,
                           td_ops_isa[isa], c->rows, c->cols, c->n, cut.n_leaves, cut.n_parts);
        free(out);
    }
    td_ops_weights_deinit(&w);
    free(x);
    free(a);
    free(ref);
}

static void test_ops_linear_is_float64_with_the_same_roundings_on_every_isa(void **state)
{
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3001);
    td_ops_open_all(&devices);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++)
        for (uint32_t i = 0; i < CASES; i++) { /* every value with every type, twice or more */
            struct one_case c = {.dtype = (enum td_dtype)dtype,
                                 .rows = td_ops_rows[(i * 3 + i / 7) % TD_OPS_ROWS],
                                 .cols = columns((enum td_dtype)dtype, i * 2 + i / 5),
                                 .n = td_ops_tokens[i % TD_OPS_TOKENS],
                                 .n_leaves = 1 + (i * 5 + (uint32_t)dtype) % TD_OPS_MAX_LEAVES,
                                 .n_parts = 1 + i / 2 % TD_OPS_MAX_PARTS,
                                 .threads_of_ref = i / 4 % 2};

            check_case(&devices, &c);
        }
    td_ops_close_all(&devices);
}

/* Leaves that come in pieces, because a chunk of a group's columns does not hold them, and chunks of several leaves. */
static void test_ops_linear_of_long_rows_is_float64_on_every_isa(void **state)
{
    static const uint32_t tokens[] = {1, 2, 17}, leaves[] = {1, 2, 9};
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3002);
    td_ops_open_all(&devices);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++)
        for (uint32_t i = 0; i < 9; i++) {
            size_t block = td_dtype_info((enum td_dtype)dtype)->block_elems;
            struct one_case c = {.dtype = (enum td_dtype)dtype,
                                 .rows = i % 2 ? 33 : 3,
                                 .cols = block > 1 ? 2304 + 256 * (i % 2) : 770 + i % 2,
                                 .n = tokens[i % 3],
                                 .n_leaves = leaves[i / 3],
                                 .n_parts = 1 + i % 3 / 2};

            check_case(&devices, &c);
        }
    td_ops_close_all(&devices);
}

/* What rounding costs: of the activations alone for the float types, of weights and activations for the others. */
static void test_ops_linear_is_off_by_the_types_own_error(void **state)
{
    enum { ROWS = 100, N = 64 };
    struct td_kern *kern;

    (void)state;
    td_ops_seed(3003);
    kern = td_ops_open(0, 3);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++) {
        size_t block = td_dtype_info((enum td_dtype)dtype)->block_elems;
        uint32_t cols = block > 1 ? 512 : 300;
        struct td_ops_cut cut = td_ops_cut_random((enum td_dtype)dtype, cols, 4, 1);
        struct td_ops_error weights = {0}, activations = {0}, stored = {0}, original = {0};
        struct td_ops_weights w;
        float *x = td_ops_activations((size_t)N * cols), *out;
        double *a = td_ops_rounded((enum td_dtype)dtype, x, N, cols), own;

        td_ops_weights_init(&w, (enum td_dtype)dtype, ROWS, cols);
        out = pack_and_multiply(kern, &w, &cut, x, N);
        for (size_t i = 0; i < (size_t)ROWS * cols; i++)
            td_ops_count(&weights, (double)w.values[i], (double)w.original[i]);
        for (size_t i = 0; i < (size_t)N * cols; i++)
            td_ops_count(&activations, a[i], (double)x[i]);
        for (uint32_t t = 0; t < N; t++)
            for (uint32_t r = 0; r < ROWS; r++) {
                double of_stored = 0.0, of_original = 0.0;

                for (uint32_t k = 0; k < cols; k++) {
                    double at = (double)x[(size_t)t * cols + k];

                    of_stored += (double)w.values[(size_t)r * cols + k] * at;
                    of_original += (double)w.original[(size_t)r * cols + k] * at;
                }
                td_ops_count(&stored, (double)out[t * ROWS + r], of_stored);
                td_ops_count(&original, (double)out[t * ROWS + r], of_original);
            }
        /* Errors of weights and of activations are independent, so their squares add; a tenth for chance, and what F32
         * sums are off by. */
        own = 1.1 * (td_ops_nmse(weights) + td_ops_nmse(activations)) + 1e-12;
        print_message(
            "%-8s NMSE %.2e of stored weights, %.2e of the original; the type's own %.2e\n",
            td_dtype_info((enum td_dtype)dtype)->name, td_ops_nmse(stored), td_ops_nmse(original),
            own);
        assert_true(td_ops_nmse(original) <= own);
        assert_true(td_ops_nmse(stored) <= 1.1 * td_ops_nmse(activations) + 1e-12);
        if (dtype == TD_BF16)
            assert_true(td_ops_nmse(stored) <= 5e-6);
        td_ops_weights_deinit(&w);
        free(x);
        free(a);
        free(out);
    }
    td_kern_close(kern);
}

/* Every row of every batch against the row alone; batches begin at different rows, so that a row is met at many places. */
static void check_rows_alone(struct td_kern *kern, const struct td_ops_weights *w,
                             const struct td_ops_cut *cut, const float *x, uint32_t n_x)
{
    const char *name = td_dtype_info(w->dtype)->name;
    struct td_matrix *m = td_ops_pack(kern, w, cut);
    float *alone = malloc((size_t)n_x * w->rows * sizeof *alone);

    for (uint32_t t = 0; t < n_x; t++) {
        float *out = multiply(kern, m, x + (size_t)t * w->cols, 1, w->rows, 1);

        memcpy(alone + (size_t)t * w->rows, out, w->rows * sizeof *out);
        free(out);
    }
    for (uint32_t i = 0; i < TD_OPS_TOKENS; i++) {
        uint32_t n = td_ops_tokens[i] < n_x ? td_ops_tokens[i] : n_x,
                 first = td_ops_below(n_x - n + 1);
        float *out = multiply(kern, m, x + (size_t)first * w->cols, n, w->rows, 1);

        td_ops_assert_same(out, alone + (size_t)first * w->rows, (size_t)n * w->rows,
                           "%s on %s: rows %u .. %u in one call and alone\n", name,
                           td_kern_name(kern), first, first + n - 1);
        free(out);
    }
    free(alone);
    td_kern_matrix_close(kern, m);
}

static void test_ops_linear_gives_a_row_the_same_bits_in_every_batch_and_place(void **state)
{
    enum { ROWS = 33, N = 200 };
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3004);
    td_ops_open_all(&devices);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++)
        for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++) {
            uint32_t cols = columns((enum td_dtype)dtype, isa + 2);
            struct td_ops_cut cut = td_ops_cut_random((enum td_dtype)dtype, cols, 3, 1);
            struct td_kern *kern = devices.kern[isa][dtype % 2];
            struct td_ops_weights w;
            float *x;

            if (!kern)
                continue;
            td_ops_weights_init(&w, (enum td_dtype)dtype, ROWS, cols);
            x = td_ops_activations((size_t)N * cols);
            check_rows_alone(kern, &w, &cut, x, N);
            free(x);
            td_ops_weights_deinit(&w);
        }
    td_ops_close_all(&devices);
}

/* ---- splits ---- */

enum { MAX_RANKS = 8 };

/* The slice of a rank that owns the leaves of `run`, as shard/weights.c cuts it, times its columns of x: parts join `part` and
 * `runs` at *n_parts. */
static void multiply_slice(struct td_kern *kern, const struct td_ops_weights *w, uint32_t leaf_cols,
                           uint32_t n_leaves, struct td_leaf_run run, const float *x, uint32_t n,
                           float **part, struct td_leaf_run *runs, uint32_t *n_parts)
{
    uint32_t col0 = run.begin * leaf_cols, col1 = col0, leaf_end[TD_KERN_MAX_LEAVES];
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];
    struct td_matrix_shape shape = {.leaf_end = leaf_end};
    struct td_matrix *m;
    float *of_rank, *out;

    for (uint32_t i = run.begin; i < run.end; i++) {
        col1 = (i + 1) * leaf_cols < w->cols ? (i + 1) * leaf_cols : w->cols;
        leaf_end[shape.n_leaves++] = col1 - col0;
    }
    if (shape.n_leaves == 0)
        return;
    shape.n_parts = td_tree_parts(n_leaves, run, cut);
    for (uint32_t i = 0; i < shape.n_parts; i++)
        shape.part_begin[i + 1] = cut[i].end - run.begin;
    m = td_ops_pack_slice(kern, w, 0, w->rows, col0, col1 - col0, &shape);
    of_rank = malloc((size_t)n * (col1 - col0) * sizeof *of_rank);
    for (uint32_t t = 0; t < n; t++)
        memcpy(of_rank + (size_t)t * (col1 - col0), x + (size_t)t * w->cols + col0,
               (col1 - col0) * sizeof *x);
    out = multiply(kern, m, of_rank, n, w->rows, shape.n_parts);
    for (uint32_t i = 0; i < shape.n_parts; i++, ++*n_parts) {
        part[*n_parts] = malloc((size_t)n * w->rows * sizeof **part);
        memcpy(part[*n_parts], out + (size_t)i * n * w->rows, (size_t)n * w->rows * sizeof *out);
        runs[*n_parts] = cut[i];
    }
    free(out);
    free(of_rank);
    td_kern_matrix_close(kern, m);
}

static void check_column_splits(struct td_kern *kern, const struct td_ops_weights *w,
                                uint32_t leaf_cols, const float *x, uint32_t n, const float *whole)
{
    uint32_t n_leaves = (w->cols + leaf_cols - 1) / leaf_cols;
    static const uint32_t ranks[] = {2, 3, MAX_RANKS};

    for (uint32_t i = 0; i < 3; i++) {
        struct td_leaf_run runs[TD_TREE_MAX_LEAVES];
        float *part[TD_TREE_MAX_LEAVES], *out = malloc((size_t)n * w->rows * sizeof *out);
        uint32_t n_parts = 0;

        for (uint32_t rank = 0; rank < ranks[i]; rank++) {
            struct td_leaf_run run = {rank * n_leaves / ranks[i], (rank + 1) * n_leaves / ranks[i]};

            multiply_slice(kern, w, leaf_cols, n_leaves, run, x, n, part, runs, &n_parts);
        }
        td_tree_join(n_leaves, n_parts, runs, (const float *const *)part, out, (size_t)n * w->rows);
        td_ops_assert_same(out, whole, (size_t)n * w->rows, "%s on %s: %u leaves on %u ranks\n",
                           td_dtype_info(w->dtype)->name, td_kern_name(kern), n_leaves, ranks[i]);
        while (n_parts)
            free(part[--n_parts]);
        free(out);
    }
}

static void check_row_splits(struct td_kern *kern, const struct td_ops_weights *w,
                             const struct td_ops_cut *cut, const float *x, uint32_t n,
                             const float *whole)
{
    static const uint32_t edge[] = {0, 1, 33, 45, 69, 100}; /* of neighbours' rows */
    struct td_matrix_shape shape = {
        .n_leaves = cut->n_leaves, .leaf_end = cut->leaf_end, .n_parts = 1};

    shape.part_begin[1] = cut->n_leaves;
    for (uint32_t i = 0; i + 1 < sizeof edge / sizeof edge[0]; i++) {
        uint32_t rows = edge[i + 1] - edge[i];
        struct td_matrix *m = td_ops_pack_slice(kern, w, edge[i], rows, 0, w->cols, &shape);
        float *out = multiply(kern, m, x, n, rows, 1);

        for (uint32_t t = 0; t < n; t++)
            td_ops_assert_same(out + (size_t)t * rows, whole + (size_t)t * w->rows + edge[i], rows,
                               "%s on %s: rows %u .. %u, token %u\n", td_dtype_info(w->dtype)->name,
                               td_kern_name(kern), edge[i], edge[i + 1] - 1, t);
        free(out);
        td_kern_matrix_close(kern, m);
    }
}

static void test_ops_linear_gives_the_same_bits_in_every_split(void **state)
{
    enum { ROWS = 100, N = 5 };
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3005);
    td_ops_open_all(&devices);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++)
        for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++) {
            uint32_t unit = (uint32_t)td_dtype_info((enum td_dtype)dtype)->sum_cols;
            uint32_t leaf_cols = unit < 32 ? 6 * unit : unit, n_leaves = 5 + td_ops_below(7);
            /* Where a row may end inside a block of the sum, the last leaf is short. */
            uint32_t cols =
                leaf_cols * n_leaves -
                (td_dtype_info((enum td_dtype)dtype)->block_elems == 1 ? 3 * unit / 2 : 0);
            struct td_ops_cut cut = {
                .n_leaves = n_leaves, .n_parts = 1, .part_begin = {0, n_leaves}};
            struct td_kern *kern = devices.kern[isa][(isa + (uint32_t)dtype) % 2];
            struct td_ops_weights w;
            float *x, *whole;

            if (!kern)
                continue;
            cut.n_leaves = (cols + leaf_cols - 1) / leaf_cols;
            cut.part_begin[1] = cut.n_leaves;
            for (uint32_t i = 0; i < cut.n_leaves; i++)
                cut.leaf_end[i] = (i + 1) * leaf_cols < cols ? (i + 1) * leaf_cols : cols;
            td_ops_weights_init(&w, (enum td_dtype)dtype, ROWS, cols);
            x = td_ops_activations((size_t)N * cols);
            whole = pack_and_multiply(kern, &w, &cut, x, N);
            check_column_splits(kern, &w, leaf_cols, x, N, whole);
            check_row_splits(kern, &w, &cut, x, N, whole);
            free(whole);
            free(x);
            td_ops_weights_deinit(&w);
        }
    td_ops_close_all(&devices);
}

/* ---- the edges ---- */

/* Any bytes are weights: infinite and subnormal scales, NaN. */
static void test_ops_linear_agrees_on_every_isa_for_any_bytes_as_weights(void **state)
{
    static const uint32_t tokens[] = {1, 2, 7};
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3006);
    td_ops_open_all(&devices);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++)
        for (uint32_t i = 0; i < 6; i++) {
            uint32_t rows = i % 2 ? 33 : 64, cols = columns((enum td_dtype)dtype, i), finite = 0;
            uint32_t n = tokens[i % 3];
            struct td_ops_cut cut = td_ops_cut_random((enum td_dtype)dtype, cols, 2, 1);
            float *x = td_ops_activations((size_t)n * cols), *ref;
            struct td_ops_weights w;

            td_ops_weights_init_bytes(&w, (enum td_dtype)dtype, rows, cols);
            ref = pack_and_multiply(devices.kern[0][0], &w, &cut, x, n);
            for (uint32_t k = 0; k < n * rows; k++)
                finite += isfinite(ref[k]) != 0;
            assert_true(cols > 64 || finite > 0); /* not all is lost to NaN */
            for (uint32_t isa = 1; isa < TD_OPS_ISAS; isa++) {
                float *out;

                if (!devices.kern[isa][0])
                    continue;
                out = pack_and_multiply(devices.kern[isa][0], &w, &cut, x, n);
                td_ops_assert_same(out, ref, (size_t)n * rows, "%s on %s: %u columns\n",
                                   td_dtype_info((enum td_dtype)dtype)->name, td_ops_isa[isa],
                                   cols);
                free(out);
            }
            free(ref);
            free(x);
            td_ops_weights_deinit(&w);
        }
    td_ops_close_all(&devices);
}

static void test_ops_linear_rows_are_the_stored_weights(void **state)
{
    struct td_kern *kern;

    (void)state;
    td_ops_seed(3007);
    kern = td_ops_open(0, 1);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++)
        for (uint32_t i = 0; i < 2 * TD_OPS_ROWS; i++) {
            uint32_t rows = td_ops_rows[i / 2], cols = columns((enum td_dtype)dtype, i), ids[5];
            struct td_ops_cut cut = td_ops_cut_random((enum td_dtype)dtype, cols, 3, 1);
            float *out = malloc((size_t)5 * cols * sizeof *out);
            struct td_ops_weights w;
            struct td_matrix *m;
            struct td_err err;

            if (i % 2)
                td_ops_weights_init_bytes(&w, (enum td_dtype)dtype, rows, cols);
            else
                td_ops_weights_init(&w, (enum td_dtype)dtype, rows, cols);
            m = td_ops_pack(kern, &w, &cut);
            for (uint32_t k = 0; k < 5; k++)
                ids[k] = k ? td_ops_below(rows) : rows - 1;
            assert_int_equal(td_kern_rows(kern, m, ids, 5, out, &err), TD_OK);
            for (uint32_t k = 0; k < 5; k++)
                td_ops_assert_same(out + (size_t)k * cols, w.values + (size_t)ids[k] * cols, cols,
                                   "%s: row %u of %u x %u\n",
                                   td_dtype_info((enum td_dtype)dtype)->name, ids[k], rows, cols);
            ids[3] = rows;
            assert_int_equal(td_kern_rows(kern, m, ids, 5, out, &err), TD_INVALID);
            td_kern_matrix_close(kern, m);
            td_ops_weights_deinit(&w);
            free(out);
        }
    td_kern_close(kern);
}

/* Random blocks of both types with the same weights: (nibble - zero) * scale is one of Q5_0's, whose own integer is 16 more. */
static void same_blocks(uint32_t zero, uint8_t int4[19], uint8_t q5_0[22])
{
    const uint16_t scale = td_f32_to_f16(td_ops_normal());

    memset(q5_0, 0, 22);
    memcpy(int4, &scale, sizeof scale);
    memcpy(q5_0, &scale, sizeof scale);
    int4[2] = (uint8_t)zero;
    for (uint32_t k = 0; k < 16; k++) {
        const uint32_t low = td_ops_below(16), high = td_ops_below(16);
        const uint32_t five[2] = {low + 16 - zero, high + 16 - zero};

        int4[3 + k] = (uint8_t)(low | high << 4);
        q5_0[6 + k] = (uint8_t)((five[0] & 15) | (five[1] & 15) << 4);
        q5_0[2 + k / 8] |= (uint8_t)((five[0] >> 4) << k % 8);
        q5_0[4 + k / 8] |= (uint8_t)((five[1] >> 4) << k % 8);
    }
}

static void test_ops_linear_of_int4_has_the_bits_of_q5_0(void **state)
{
    enum { ROWS = 70, COLS = 352, N = 9 };
    struct td_ops_weights int4, q5_0;
    struct td_ops_devices devices;
    struct td_ops_cut cut;
    float *x;

    (void)state;
    td_ops_seed(3008);
    td_ops_open_all(&devices);
    cut = td_ops_cut_random(TD_INT4, COLS, 4, 2);
    x = td_ops_activations((size_t)N * COLS);
    td_ops_weights_init(&int4, TD_INT4, ROWS, COLS);
    td_ops_weights_init(&q5_0, TD_Q5_0, ROWS, COLS);
    for (uint32_t i = 0; i < ROWS * COLS / 32; i++) {
        uint8_t *mine = int4.file + 1 + i / (COLS / 32) * int4.stride + i % (COLS / 32) * 19;
        uint8_t *others = q5_0.file + 1 + i / (COLS / 32) * q5_0.stride + i % (COLS / 32) * 22;
        float a[32], b[32];

        same_blocks(i % 16, mine, others);
        td_dequant_row(TD_INT4, mine, a, 32);
        td_dequant_row(TD_Q5_0, others, b, 32);
        td_ops_assert_same(a, b, 32, "block %u\n", i);
    }
    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++)
        for (uint32_t n = 1; n <= N && devices.kern[isa][0]; n += N - 1) {
            float *mine = pack_and_multiply(devices.kern[isa][0], &int4, &cut, x, n);
            float *others = pack_and_multiply(devices.kern[isa][0], &q5_0, &cut, x, n);

            td_ops_assert_same(mine, others, (size_t)cut.n_parts * n * ROWS, "%s, %u tokens\n",
                               td_ops_isa[isa], n);
            free(mine);
            free(others);
        }
    td_ops_weights_deinit(&int4);
    td_ops_weights_deinit(&q5_0);
    free(x);
    td_ops_close_all(&devices);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_linear_is_float64_with_the_same_roundings_on_every_isa),
        cmocka_unit_test(test_ops_linear_of_long_rows_is_float64_on_every_isa),
        cmocka_unit_test(test_ops_linear_is_off_by_the_types_own_error),
        cmocka_unit_test(test_ops_linear_of_int4_has_the_bits_of_q5_0),
        cmocka_unit_test(test_ops_linear_gives_a_row_the_same_bits_in_every_batch_and_place),
        cmocka_unit_test(test_ops_linear_gives_the_same_bits_in_every_split),
        cmocka_unit_test(test_ops_linear_agrees_on_every_isa_for_any_bytes_as_weights),
        cmocka_unit_test(test_ops_linear_rows_are_the_stored_weights),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
