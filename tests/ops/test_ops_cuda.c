/* The CUDA device against the CPU's specification and float64, within the error that each operation states, and against itself: a
 * row's bits are the same alone and in every batch, and in every split over ranks. Runs on the plug-in that TD_OPS_CUDA_PLUGIN names
 * (tests/gpu.sh: the one for the GPU at hand), else on the simulated device (tests/gpusim). */
#include "tests/ops/ops.h"

#include "comm/tree.h"
#include "kernels/base/half.h"
#include "kernels/quant/dequant.h"
#include "kernels/quant/fp8.h"
#include "shard/sampler.h"

#include <dlfcn.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const enum td_dtype TYPES[] = {TD_F32,  TD_F16,  TD_BF16, TD_Q8_0, TD_Q4_0,   TD_MXFP4,
                                      TD_INT4, TD_Q4_K, TD_Q5_K, TD_Q6_K, TD_F8_E4M3};
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0] };

static struct td_kern *cuda, *cpu;
static bool inexact; /* two tokens and more are the library's */

static int open_devices(void **state)
{
    const struct td_kern_cpu_params host = {.n_threads = 1, .isa = "ref"};
    const char *plugin = getenv("TD_OPS_CUDA_PLUGIN");
    const struct td_kern_cuda_params device = {
        .plugin = plugin ? plugin : CUDA_PLUGIN, .graphs = true, .inexact_from = inexact ? 2 : 0};
    struct td_err err;
    char text[512];

    (void)state;
#ifdef CUBLASLT
    if (!plugin) /* the device's own way to look for it finds it then */
        assert_non_null(dlopen(CUBLASLT, RTLD_NOW));
#endif
    if (td_kern_cuda_open(&device, &cuda, &err)) {
        print_message("%s\n", td_err_format(&err, text, sizeof text));
        return -1;
    }
    print_message("on %s\n", td_kern_name(cuda));
    return td_kern_cpu_open(&host, &cpu, &err) ? -1 : 0;
}

static int close_devices(void **state)
{
    (void)state;
    td_kern_close(cuda);
    td_kern_close(cpu);
    cuda = cpu = NULL;
    return 0;
}

/* In the place of the exact one, and back. */
static int swap_devices(void **state)
{
    close_devices(state);
    inexact = !inexact;
#ifndef CUBLASLT /* a machine with a GPU may have none */
    if (inexact)
        return open_devices(state), 0;
#endif
    return open_devices(state);
}

/* ---- memory ---- */

static void *up(const void *host, size_t bytes)
{
    void *p = td_kern_alloc(cuda, bytes);

    assert_non_null(p);
    td_kern_copy(cuda, p, host, bytes);
    return p;
}

static void down(void *host, void *device, size_t bytes)
{
    struct td_err err;

    td_kern_copy(cuda, host, device, bytes);
    if (td_kern_sync(cuda, &err))
        fail_msg("%s", err.cause);
}

static void drop(void *device)
{
    td_kern_free(cuda, device, 0);
}

static void test_cuda_copies_rows_apart(void **state)
{
    enum { N = 5, FROM = 9, TO = 7, WIDTH = 6 };
    float from[N * FROM], *got = td_kern_alloc_shared(cuda, N * TO * sizeof *got), *device;
    struct td_err err;

    (void)state;
    for (uint32_t i = 0; i < N * FROM; i++)
        from[i] = (float)i;
    for (uint32_t i = 0; i < N * TO; i++)
        got[i] = -1.0f;
    device = up(from, sizeof from);
    td_kern_copy_rows(cuda, got + 1, TO * sizeof *got, device + 2, FROM * sizeof *got, N,
                      WIDTH * sizeof *got);
    td_kern_copy_rows(cuda, got, 0, device, 0, 0, 4); /* nothing */
    assert_int_equal(td_kern_sync(cuda, &err), TD_OK);
    for (uint32_t i = 0; i < N * TO; i++)
        assert_true(got[i] == (i % TO ? from[i / TO * FROM + 1 + i % TO] : -1.0f));
    td_kern_free_shared(cuda, got, N * TO * sizeof *got);
    drop(device);
}

/* ---- products ---- */

static uint32_t columns(enum td_dtype dtype, uint32_t i)
{
    static const uint32_t any[] = {1, 31, 97, 172, 300}, small[] = {32, 64, 96, 160, 352},
                          large[] = {256, 512, 768, 1024, 256};
    size_t block = td_dtype_info(dtype)->block_elems;

    return (block == 1 ? any : block == 32 ? small : large)[i % 5];
}

/* out [parts x n x rows], from host memory to host memory. */
static float *multiply(const struct td_matrix *m, const float *x, uint32_t n, uint32_t cols,
                       uint32_t rows, uint32_t n_parts)
{
    size_t bytes = (size_t)n_parts * n * rows * sizeof(float);
    float *out = malloc(bytes), *dx = up(x, (size_t)n * cols * sizeof *x), *dout;
    struct td_err err;

    memset(out, 0xff, bytes);
    dout = up(out, bytes);
    assert_int_equal(td_kern_matmul(cuda, m, dx, n, dout, &err), TD_OK);
    down(out, dout, bytes);
    drop(dx);
    drop(dout);
    return out;
}

/* What rounding an activation is off by at most, of its own magnitude and of its row's largest. */
static void act_error(const struct td_ops_weights *w, double *own, double *of_max)
{
    const enum td_dtype dtype = w->dtype;

    *own = dtype == TD_F32 ? 0 : dtype == TD_BF16 ? 0x1p-8 : 0x1p-11;
    *of_max = dtype == TD_F32 || dtype == TD_BF16 ? 0 : 0x1p-39;
    if (inexact && dtype != TD_F32 && dtype != TD_F16 && dtype != TD_BF16)
        *own += 0x1p-11;                                    /* weights are rounded too */
    if (inexact && dtype == TD_F8_E4M3 && w->cols <= 128) { /* one scale a row: eight bits */
        *own = 0x1p-4;
        *of_max = 0x1p-17;
    }
}

/* `out` of one part of a cut against float64 of the stored weights. */
static void check_part(const struct td_ops_weights *w, uint32_t from, uint32_t to, const float *x,
                       uint32_t n, const float *out)
{
    double own, of_max;

    act_error(w, &own, &of_max);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t r = 0; r < w->rows; r++) {
            double want = 0, size = 0, max = 0, weights = 0, bound;
            float got = out[(size_t)t * w->rows + r];

            for (uint32_t k = 0; k < w->cols; k++)
                max = fmax(max, fabs((double)x[(size_t)t * w->cols + k]));
            for (uint32_t k = from; k < to; k++) {
                double a = w->values[(size_t)r * w->cols + k], b = x[(size_t)t * w->cols + k];

                want += a * b;
                size += fabs(a * b);
                weights += fabs(a);
            }
            /* With a minimum, two large sums are subtracted: 31 times the scale each at most. */
            bound = size * (own + 0x1p-22 * (to - from + 8)) + weights * max * of_max;
            if (w->dtype == TD_Q4_K || w->dtype == TD_Q5_K)
                bound += 0x1p-10 * sqrt(to - from) * max;
            if (!(fabs((double)got - want) <= bound))
                fail_msg("%s of %u x %u, columns %u .. %u, row %u, token %u of %u: %g, expected %g "
                         "+- %g",
                         td_dtype_info(w->dtype)->name, w->rows, w->cols, from, to, r, t, n,
                         (double)got, want, bound);
        }
}

static void test_cuda_linear_is_float64_within_its_roundings(void **state)
{
    static const uint32_t rows[] = {1, 16, 17, 33, 100}, tokens[] = {1, 3, 8, 9, 17};

    (void)state;
    td_ops_seed(4001);
    for (uint32_t i = 0; i < N_TYPES; i++)
        for (uint32_t k = 0; k < 10; k++) {
            uint32_t cols = columns(TYPES[i], k), n = tokens[(k + k / 5) % 5];
            struct td_ops_cut cut = td_ops_cut_random(TYPES[i], cols, 1 + k, 1 + k % 3);
            struct td_ops_weights w;
            struct td_matrix *m;
            float *x = td_ops_activations((size_t)n * cols), *out, *ref;

            td_ops_weights_init(&w, TYPES[i], rows[(k * 3) % 5], cols);
            m = td_ops_pack(cuda, &w, &cut);
            out = multiply(m, x, n, cols, w.rows, cut.n_parts);
            td_kern_matrix_close(cuda, m);
            for (uint32_t p = 0; p < cut.n_parts; p++)
                check_part(&w, cut.part_begin[p] ? cut.leaf_end[cut.part_begin[p] - 1] : 0,
                           cut.leaf_end[cut.part_begin[p + 1] - 1], x, n,
                           out + (size_t)p * n * w.rows);
            if (TYPES[i] == TD_F32) { /* the same order of the same roundings */
                struct td_err err;

                ref = malloc((size_t)cut.n_parts * n * w.rows * sizeof *ref);
                m = td_ops_pack(cpu, &w, &cut);
                assert_int_equal(td_kern_matmul(cpu, m, x, n, ref, &err), TD_OK);
                td_ops_assert_same(out, ref, (size_t)cut.n_parts * n * w.rows, "f32\n");
                td_kern_matrix_close(cpu, m);
                free(ref);
            }
            td_ops_weights_deinit(&w);
            free(out);
            free(x);
        }
}

static void test_cuda_linear_gives_a_row_the_same_bits_in_every_batch(void **state)
{
    enum { N = 19, ROWS = 33 };
    static const uint32_t sizes[] = {1, 2, 7, 8, 9, 16, 19};

    (void)state;
    td_ops_seed(4002);
    for (uint32_t i = 0; i < N_TYPES; i++) {
        uint32_t cols = columns(TYPES[i], i + 2);
        struct td_ops_cut cut = td_ops_cut_random(TYPES[i], cols, 3, 1);
        struct td_ops_weights w;
        struct td_matrix *m;
        float *x = td_ops_activations((size_t)N * cols), *all;

        td_ops_weights_init(&w, TYPES[i], ROWS, cols);
        m = td_ops_pack(cuda, &w, &cut);
        all = multiply(m, x, N, cols, ROWS, 1);
        for (uint32_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
            uint32_t first = td_ops_below(N - sizes[k] + 1);
            float *out = multiply(m, x + (size_t)first * cols, sizes[k], cols, ROWS, 1);

            td_ops_assert_same(out, all + (size_t)first * ROWS, (size_t)sizes[k] * ROWS,
                               "%s: rows %u .. in a batch of %u\n", td_dtype_info(TYPES[i])->name,
                               first, sizes[k]);
            free(out);
        }
        td_kern_matrix_close(cuda, m);
        td_ops_weights_deinit(&w);
        free(all);
        free(x);
    }
}

/* Kernels for many tokens and for some give the bits of those for a few. Of a real device the many are enough to fill it. */
static void test_cuda_linear_gives_many_tokens_the_bits_of_a_few(void **state)
{
    static const uint32_t sizes[] = {1, 9, 20, 40, 64, 65};
    const bool is_simulated = strstr(td_kern_name(cuda), "simulated");
    const uint32_t n = is_simulated ? 133 : 1100, rows = is_simulated ? 135 : 2200;

    (void)state;
    td_ops_seed(4008);
    for (uint32_t i = 0; i < N_TYPES; i++) {
        uint32_t unit = (uint32_t)td_dtype_info(TYPES[i])->sum_cols;
        uint32_t cols = unit == 256   ? 4 * unit
                        : unit == 128 ? 6 * unit
                        : unit == 32  ? 20 * unit
                                      : 500;
        struct td_ops_cut cut = td_ops_cut_random(TYPES[i], cols, 16, 1 + i % 3);
        struct td_ops_weights w;
        struct td_matrix *m;
        float *x = td_ops_activations((size_t)n * cols), *all;

        td_ops_weights_init(&w, TYPES[i], rows, cols);
        m = td_ops_pack(cuda, &w, &cut);
        all = multiply(m, x, n, cols, rows, cut.n_parts);
        for (uint32_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
            uint32_t first = td_ops_below(n - sizes[k] + 1);
            float *out = multiply(m, x + (size_t)first * cols, sizes[k], cols, rows, cut.n_parts);

            for (uint32_t p = 0; p < cut.n_parts; p++)
                td_ops_assert_same(out + (size_t)p * sizes[k] * rows,
                                   all + ((size_t)p * n + first) * rows, (size_t)sizes[k] * rows,
                                   "%s: part %u of rows %u .. %u in a batch of %u\n",
                                   td_dtype_info(TYPES[i])->name, p, first, first + sizes[k], n);
            free(out);
        }
        td_kern_matrix_close(cuda, m);
        td_ops_weights_deinit(&w);
        free(all);
        free(x);
    }
}

/* Leaves of equal columns on 2, 3 and 5 ranks: what all of them join is what one has. */
static void test_cuda_linear_gives_the_same_bits_in_every_split(void **state)
{
    enum { ROWS = 20, N = 3 };
    static const uint32_t ranks[] = {1, 2, 3, 5};

    (void)state;
    td_ops_seed(4003);
    for (uint32_t i = 0; i < N_TYPES; i++) {
        uint32_t unit = (uint32_t)td_dtype_info(TYPES[i])->sum_cols;
        uint32_t leaf_cols = unit < 32 ? 12 * unit : unit, n_leaves = 5 + td_ops_below(5);
        uint32_t cols = leaf_cols * n_leaves;
        struct td_ops_weights w;
        float *x = td_ops_activations((size_t)N * cols), *whole = NULL;

        td_ops_weights_init(&w, TYPES[i], ROWS, cols);
        for (uint32_t k = 0; k < 4; k++) {
            struct td_leaf_run runs[TD_TREE_MAX_LEAVES];
            float *part[TD_TREE_MAX_LEAVES], *out = malloc(N * ROWS * sizeof *out);
            uint32_t n_parts = 0;

            for (uint32_t rank = 0; rank < ranks[k]; rank++) {
                struct td_leaf_run run = {rank * n_leaves / ranks[k],
                                          (rank + 1) * n_leaves / ranks[k]};
                uint32_t col0 = run.begin * leaf_cols, leaf_end[TD_KERN_MAX_LEAVES];
                struct td_matrix_shape shape = {.leaf_end = leaf_end};
                float *own = malloc((size_t)N * cols * sizeof *own), *got;
                struct td_matrix *m;

                for (uint32_t l = run.begin; l < run.end; l++)
                    leaf_end[shape.n_leaves++] = (l + 1) * leaf_cols - col0;
                shape.n_parts = td_tree_parts(n_leaves, run, runs + n_parts);
                for (uint32_t p = 0; p < shape.n_parts; p++)
                    shape.part_begin[p + 1] = runs[n_parts + p].end - run.begin;
                shape.n_cols = (run.end - run.begin) * leaf_cols;
                m = td_ops_pack_slice(cuda, &w, 0, ROWS, col0, shape.n_cols, &shape);
                for (uint32_t t = 0; t < N; t++)
                    memcpy(own + (size_t)t * shape.n_cols, x + (size_t)t * cols + col0,
                           shape.n_cols * sizeof *own);
                got = multiply(m, own, N, shape.n_cols, ROWS, shape.n_parts);
                for (uint32_t p = 0; p < shape.n_parts; p++) {
                    part[n_parts] = malloc(N * ROWS * sizeof **part);
                    memcpy(part[n_parts++], got + (size_t)p * N * ROWS, N * ROWS * sizeof *got);
                }
                td_kern_matrix_close(cuda, m);
                free(own);
                free(got);
            }
            td_tree_join(n_leaves, n_parts, runs, (const float *const *)part, out, N * ROWS);
            if (whole)
                td_ops_assert_same(out, whole, N * ROWS, "%s on %u ranks\n",
                                   td_dtype_info(TYPES[i])->name, ranks[k]);
            else
                whole = memcpy(malloc(N * ROWS * sizeof *out), out, N * ROWS * sizeof *out);
            while (n_parts)
                free(part[--n_parts]);
            free(out);
        }
        td_ops_weights_deinit(&w);
        free(whole);
        free(x);
    }
}

/* ---- linear steps ---- */

/* A matrix of one leaf; on the CPU the same weights as F32, so that only this device rounds activations. */
static struct td_matrix *made(bool on_cuda, const struct td_ops_weights *w)
{
    struct td_ops_cut cut = {
        .n_leaves = 1, .leaf_end = {w->cols}, .n_parts = 1, .part_begin = {0, 1}};
    const size_t bytes = (size_t)w->rows * w->cols * sizeof(float);
    struct td_ops_weights plain = {
        .rows = w->rows, .cols = w->cols, .stride = w->cols * sizeof(float)};
    struct td_matrix *m;

    if (on_cuda)
        return td_ops_pack(cuda, w, &cut);
    plain.file = malloc(1 + bytes);
    memcpy(plain.file + 1, w->values, bytes);
    m = td_ops_pack(cpu, &plain, &cut);
    free(plain.file);
    return m;
}

/* Largest difference over the largest magnitude. */
static double off_by(const float *got, const float *want, size_t n)
{
    double size = 0, off = 0;

    for (size_t i = 0; i < n; i++) {
        size = fmax(size, fabs((double)want[i]));
        off = fmax(off, fabs((double)got[i] - (double)want[i]));
        if (isnan(got[i]) != isnan(want[i]))
            return INFINITY;
    }
    return size > 0 ? off / size : off;
}

static void run_step(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                     struct td_kern_output *outs, struct td_err *err)
{
    if (td_kern_linear(kern, in, n, outs, 2, err) || td_kern_sync(kern, err))
        fail_msg("%s", err->cause);
}

/* A residual, a norm, a gate (of the same and of another type), two outputs, rows by number: as on the CPU. */
static void test_cuda_linear_steps_are_those_of_the_cpu(void **state)
{
    enum { FEW = 5, N = 11, ROWS = 38, COLS = 512, STORED = 14 };
    static const enum td_dtype pairs[][3] = {{TD_F32, TD_F32, TD_F32},
                                             {TD_BF16, TD_BF16, TD_F16},
                                             {TD_Q4_K, TD_Q4_K, TD_Q6_K},
                                             {TD_Q8_0, TD_BF16, TD_Q8_0}};
    (void)state;
    td_ops_seed(4004);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t with = 0; with < 16; with++) {
            struct td_ops_weights w[3];
            struct td_matrix *m[2][3];
            float *x = td_ops_activations(STORED * COLS), *add = td_ops_activations(N * COLS);
            float *norm = td_ops_activations(COLS), *out[2][2],
                  *x_after = malloc(STORED * COLS * 4);
            const uint32_t n = with & 8 ? N : FEW; /* a gate is fused, or is not */
            uint32_t ids[N] = {8, 0, 3, 1, 5, 13, 12, 2, 9, 4, 7};
            float *dx = up(x, STORED * COLS * 4), *dadd = up(add, N * COLS * 4),
                  *dnorm = up(norm, COLS * 4);
            uint32_t *dids = up(ids, sizeof ids);
            float *dout[2] = {td_kern_alloc(cuda, N * ROWS * 4), td_kern_alloc(cuda, N * ROWS * 4)};
            struct td_err err;

            for (int k = 0; k < 3; k++) {
                td_ops_weights_init(&w[k], pairs[i][k], ROWS, COLS);
                for (int d = 0; d < 2; d++)
                    m[d][k] = made(d, &w[k]);
            }
            for (int d = 0; d < 2; d++) {
                struct td_kern_input in = {.x = d ? dx : x,
                                           .rows = with & 1 ? (d ? dids : ids) : NULL,
                                           .add = with & 2 ? (d ? dadd : add) : NULL,
                                           .norm = with & 4 ? (d ? dnorm : norm) : NULL,
                                           .eps = 1e-5f};
                struct td_kern_output outs[2] = {{.m = m[d][0], .gate = m[d][1]}, {.m = m[d][2]}};

                for (int k = 0; k < 2; k++) {
                    out[d][k] = malloc(N * ROWS * 4);
                    outs[k].out = d ? dout[k] : out[d][k];
                }
                run_step(d ? cuda : cpu, &in, n, outs, &err);
                for (int k = 0; d && k < 2; k++)
                    down(out[1][k], dout[k], n * ROWS * 4);
            }
            down(x_after, dx, STORED * COLS * 4);
            td_ops_assert_same(x_after, x, STORED * COLS, "what a residual leaves\n");
            for (int k = 0; k < 2; k++) {
                double off = off_by(out[1][k], out[0][k], n * ROWS);

                if (!(off < (i == 0 ? 1e-5 : 1e-2)))
                    fail_msg("%s, output %d, case %u: off by %g of the largest",
                             td_dtype_info(pairs[i][0])->name, k, with, off);
                free(out[0][k]);
                free(out[1][k]);
                drop(dout[k]);
            }
            for (int k = 0; k < 3; k++) {
                td_kern_matrix_close(cpu, m[0][k]);
                td_kern_matrix_close(cuda, m[1][k]);
                td_ops_weights_deinit(&w[k]);
            }
            drop(dx), drop(dadd), drop(dnorm), drop(dids);
            free(x), free(add), free(norm), free(x_after);
        }
}

static void need_library(void)
{
    if (cuda)
        return;
    print_message("skip: gpu: there is no library for inexact products (above it says why)\n");
    skip();
}

static void test_cuda_inexact_products_are_float64_within_their_roundings(void **state)
{
    need_library();
    assert_non_null(strstr(td_kern_numerics(cuda), "-inexact"));
    test_cuda_linear_is_float64_within_its_roundings(state);
}

static void test_cuda_inexact_steps_are_those_of_the_cpu(void **state)
{
    need_library();
    test_cuda_linear_steps_are_those_of_the_cpu(state);
}

/* x as E4M3 with a power of two per `run` columns that puts the largest at 2^7. */
static double *in_eight_bits(const float *x, size_t n, uint32_t cols, uint32_t run)
{
    double *out = malloc(n * cols * sizeof *out);

    for (size_t t = 0; t < n; t++)
        for (uint32_t from = 0; from < cols; from += run) {
            const uint32_t to = from + run < cols ? from + run : cols;
            float max = 0.0f, scale = 1.0f;
            int exponent;

            for (uint32_t k = from; k < to; k++)
                max = fmaxf(max, fabsf(x[t * cols + k]));
            if (max > 0.0f) {
                (void)frexpf(max, &exponent);
                scale = ldexpf(1.0f, exponent - 8);
            }
            for (uint32_t k = from; k < to; k++)
                out[t * cols + k] =
                    (double)(td_e4m3_to_f32(td_f32_to_e4m3(x[t * cols + k] / scale)) * scale);
        }
    return out;
}

/* With a scale per row and with one per block of 128 x 128: float64 of what E4M3 leaves of the activations. A GPU may refuse a shape and
 * take 16 bits, which are closer to the numbers themselves. */
static void test_cuda_inexact_products_of_f8_take_eight_bits(void **state)
{
    static const uint32_t rows[] = {16, 144, 272, 256, 40}, tokens[] = {2, 8, 9, 136};
    static const uint32_t cols[] = {128, 256, 640, 2304};
    uint32_t n_equal = 0, n_expected = 0;
    bool is_simulated;

    (void)state;
    need_library();
    is_simulated = strstr(td_kern_name(cuda), "simulated");
    td_ops_seed(4031);
    for (uint32_t i = 0; i < 40; i++) {
        const bool by_block = i % 2;
        const uint32_t n = tokens[i / 2 % 4], n_cols = cols[(i / 8 + i) % 4];
        const bool expected = /* one block a row is one scale a row */
            rows[i % 5] % 16 == 0 && (!by_block || n_cols == 128 || n % 8 == 0);
        struct td_ops_cut cut = td_ops_cut_random(TD_F8_E4M3, n_cols, 1 + i % 4, 1 + i % 3);
        struct td_ops_weights w;
        struct td_matrix *m;
        float *x = td_ops_activations((size_t)n * n_cols), *out;
        double *eight = in_eight_bits(x, n, n_cols, by_block ? 128 : n_cols);
        struct td_ops_error of_x = {0, 0}, of_eight = {0, 0};

        td_ops_weights_init(&w, TD_F8_E4M3, rows[i % 5], n_cols);
        td_ops_weights_rescale(&w, by_block ? 128 : 1, by_block ? 128 : n_cols);
        m = td_ops_pack(cuda, &w, &cut);
        out = multiply(m, x, n, n_cols, w.rows, cut.n_parts);
        for (uint32_t p = 0; p < cut.n_parts; p++)
            for (size_t at = 0; at < (size_t)n * w.rows; at++) {
                const size_t t = at / w.rows, r = at % w.rows;
                uint32_t k = cut.part_begin[p] ? cut.leaf_end[cut.part_begin[p] - 1] : 0;
                double exact = 0, rounded = 0;

                for (; k < cut.leaf_end[cut.part_begin[p + 1] - 1]; k++) {
                    exact += (double)w.values[r * n_cols + k] * (double)x[t * n_cols + k];
                    rounded += (double)w.values[r * n_cols + k] * eight[t * n_cols + k];
                }
                td_ops_count(&of_x, (double)out[p * n * w.rows + at], exact);
                td_ops_count(&of_eight, (double)out[p * n * w.rows + at], rounded);
            }
        if (td_ops_nmse(of_eight) < (is_simulated ? 1e-12 : 1e-6))
            n_equal++; /* the sums of a GPU's tensor cores keep 14 bits */
        else if (expected && is_simulated)
            fail_msg("%u x %u, %u tokens, by %s: off by %g from eight bits, by %g from x", w.rows,
                     n_cols, n, by_block ? "block" : "row", td_ops_nmse(of_eight),
                     td_ops_nmse(of_x));
        if (!(td_ops_nmse(of_x) < 3e-3))
            fail_msg("%u x %u, %u tokens, by %s: off by %g", w.rows, n_cols, n,
                     by_block ? "block" : "row", td_ops_nmse(of_x));
        n_expected += expected;
        td_kern_matrix_close(cuda, m);
        td_ops_weights_deinit(&w);
        free(out), free(x), free(eight);
    }
    print_message("%u of 40 products of F8_E4M3 took eight bits\n", n_equal);
    assert_true(n_expected < 32);
    assert_true(!is_simulated || n_equal == n_expected);
}

/* A residual, a norm and a gate on the way to eight bits, of short rows and of longer ones than a block holds at once. */
static void test_cuda_inexact_steps_of_f8_are_those_of_the_cpu(void **state)
{
    enum { N = 8, ROWS = 48 };
    static const uint32_t cols[] = {256, 2048, 17408};

    (void)state;
    need_library();
    td_ops_seed(4032);
    for (uint32_t i = 0; i < 12; i++) {
        const uint32_t n_cols = cols[i / 4];
        const bool by_block = i % 2, with = i % 4 / 2;
        struct td_ops_weights w[2];
        struct td_matrix *m[2][2];
        float *x = td_ops_activations((size_t)N * n_cols);
        float *add = td_ops_activations((size_t)N * n_cols), *norm = td_ops_activations(n_cols);
        float *dx = up(x, (size_t)N * n_cols * 4), *dadd = up(add, (size_t)N * n_cols * 4),
              *dnorm = up(norm, n_cols * 4ul);
        float out[2][N * ROWS], *dout = td_kern_alloc(cuda, sizeof out[1]);
        struct td_ops_error error = {0, 0};
        struct td_err err;

        for (int k = 0; k < 2; k++) {
            td_ops_weights_init(&w[k], TD_F8_E4M3, ROWS, n_cols);
            td_ops_weights_rescale(&w[k], by_block ? 128 : 1, by_block ? 128 : n_cols);
            for (int d = 0; d < 2; d++)
                m[d][k] = made(d, &w[k]);
        }
        for (int d = 0; d < 2; d++) {
            struct td_kern_input in = {.x = d ? dx : x,
                                       .add = with ? (d ? dadd : add) : NULL,
                                       .norm = with ? (d ? dnorm : norm) : NULL,
                                       .eps = 1e-5f};
            struct td_kern_output o = {
                .m = m[d][0], .gate = with ? NULL : m[d][1], .out = d ? dout : out[0]};

            if (td_kern_linear(d ? cuda : cpu, &in, N, &o, 1, &err))
                fail_msg("%s", err.cause);
        }
        down(out[1], dout, sizeof out[1]);
        for (int k = 0; k < N * ROWS; k++)
            td_ops_count(&error, (double)out[1][k], (double)out[0][k]);
        if (!(td_ops_nmse(error) < 6e-3))
            fail_msg("%u columns, by %s, %s: off by %g", n_cols, by_block ? "block" : "row",
                     with ? "sum and norm" : "gate", td_ops_nmse(error));
        for (int k = 0; k < 2; k++) {
            td_kern_matrix_close(cpu, m[0][k]);
            td_kern_matrix_close(cuda, m[1][k]);
            td_ops_weights_deinit(&w[k]);
        }
        drop(dx), drop(dadd), drop(dnorm), drop(dout);
        free(x), free(add), free(norm);
    }
}

static void test_cuda_rows_are_the_stored_weights(void **state)
{
    (void)state;
    td_ops_seed(4005);
    for (uint32_t i = 0; i < 4 * N_TYPES; i++) {
        enum td_dtype dtype = TYPES[i / 4];
        uint32_t rows = td_ops_rows[i % TD_OPS_ROWS], cols = columns(dtype, i), ids[5];
        struct td_ops_cut cut = td_ops_cut_random(dtype, cols, 3, 1);
        float *out = malloc((size_t)5 * cols * sizeof *out), *dout;
        struct td_ops_weights w;
        struct td_matrix *m;
        struct td_err err;
        uint32_t *dids;

        if (i % 2)
            td_ops_weights_init_bytes(&w, dtype, rows, cols);
        else
            td_ops_weights_init(&w, dtype, rows, cols);
        for (uint32_t k = 0; k < 5; k++)
            ids[k] = k ? td_ops_below(rows) : rows - 1;
        m = td_ops_pack(cuda, &w, &cut);
        dids = up(ids, sizeof ids);
        dout = td_kern_alloc(cuda, (size_t)5 * cols * sizeof *out);
        assert_int_equal(td_kern_rows(cuda, m, dids, 5, dout, &err), TD_OK);
        down(out, dout, (size_t)5 * cols * sizeof *out);
        for (uint32_t k = 0; k < 5; k++)
            td_ops_assert_same(out + (size_t)k * cols, w.values + (size_t)ids[k] * cols, cols,
                               "%s: row %u of %u x %u\n", td_dtype_info(dtype)->name, ids[k], rows,
                               cols);
        td_kern_matrix_close(cuda, m);
        td_ops_weights_deinit(&w);
        drop(dids);
        drop(dout);
        free(out);
    }
}

/* ---- rows of activations ---- */

static void test_cuda_row_operations_are_those_of_the_cpu(void **state)
{
    enum { N = 3 };
    static const uint32_t dims[] = {1, 2, 31, 64, 172, 1000, 5001};

    (void)state;
    td_ops_seed(4006);
    for (uint32_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        size_t n = (size_t)N * dims[i], bytes = n * sizeof(float);
        float *x = td_ops_activations(n), *y = td_ops_activations(n), *want = malloc(bytes),
              *got = malloc(bytes), *dx, *dy = up(y, bytes), *dout = td_kern_alloc(cuda, bytes);
        uint32_t rows[N] = {2, 2, 0}, *drows = up(rows, sizeof rows);
        struct td_err err;

        for (size_t k = 0; k < n; k++)
            x[k] *= k % 5 ? 1.0f : 30.0f;
        dx = up(x, bytes);
        assert_int_equal(td_kern_silu_mul(cpu, x, y, n, want, &err), TD_OK);
        assert_int_equal(td_kern_silu_mul(cuda, dx, dy, n, dout, &err), TD_OK);
        down(got, dout, bytes);
        td_ops_assert_same(got, want, n, "silu of %zu\n", n);
        assert_int_equal(td_kern_gather(cpu, x, rows, N, dims[i], want, &err), TD_OK);
        assert_int_equal(td_kern_gather(cuda, dx, drows, N, dims[i], dout, &err), TD_OK);
        down(got, dout, bytes);
        td_ops_assert_same(got, want, n, "gather of %zu\n", n);
        assert_int_equal(td_kern_rmsnorm(cpu, x, y, N, dims[i], 1e-5f, want, &err), TD_OK);
        assert_int_equal(td_kern_rmsnorm(cuda, dx, dy, N, dims[i], 1e-5f, dout, &err), TD_OK);
        down(got, dout, bytes);
        for (size_t k = 0; k < n; k++)
            assert_true(fabsf(got[k] - want[k]) <= 0x1p-20f * fabsf(want[k]));
        assert_int_equal(td_kern_add(cpu, x, y, n, &err), TD_OK);
        assert_int_equal(td_kern_add(cuda, dx, dy, n, &err), TD_OK);
        down(got, dx, bytes);
        td_ops_assert_same(got, x, n, "sum of %zu\n", n);
        drop(dx), drop(dy), drop(dout), drop(drows);
        free(x), free(y), free(want), free(got);
    }
}

static void test_cuda_top_is_that_of_the_cpu(void **state)
{
    static const uint32_t widths[] = {1, 17, 1023, 1025, 5000, 300000};
    static const uint32_t tops[] = {1, 3, TD_TOP_MAX};
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
    enum { N = 4 };

    (void)state;
    td_ops_seed(4007);
    for (uint32_t w = 0; w < 6; w++)
        for (uint32_t k = w == 5 ? 2 : 0; k < 3; k++) {
            const uint32_t n_rows = w == 5 ? 1 : N; /* the widest costs most */
            const size_t n = (size_t)n_rows * widths[w];
            float *x = malloc(n * sizeof *x), *dx;
            struct td_top want[N * TD_TOP_MAX], got[N * TD_TOP_MAX], *dout;
            struct td_err err;

            for (size_t i = 0; i < n; i++) {
                x[i] = i / widths[w] ? rintf(2.0f * td_ops_normal()) : td_ops_normal();
                if (i / widths[w] == 2 && td_ops_below(4) == 0)
                    x[i] = special[td_ops_below(5)];
                if (i / widths[w] == 3)
                    x[i] = i % 2 ? NAN : -INFINITY;
            }
            dx = up(x, n * sizeof *x);
            dout = td_kern_alloc(cuda, sizeof got);
            assert_int_equal(td_kern_top(cpu, x, n_rows, widths[w], tops[k], want, &err), TD_OK);
            assert_int_equal(td_kern_top(cuda, dx, n_rows, widths[w], tops[k], dout, &err), TD_OK);
            down(got, dout, n_rows * tops[k] * sizeof *got);
            for (uint32_t i = 0; i < n_rows * tops[k]; i++)
                if (got[i].id != want[i].id || !(got[i].value == want[i].value))
                    fail_msg("width %u, place %u: id %u (%g), expected %u (%g)", widths[w], i,
                             got[i].id, (double)got[i].value, want[i].id, (double)want[i].value);
            drop(dx);
            drop(dout);
            free(x);
        }
}

/* The sampler's own draws, to the id: of logits as models have them, of few different ones, of specials, of one only, of none. */
static void test_cuda_draws_are_those_of_the_sampler(void **state)
{
    static const uint32_t widths[] = {1, 17, 1025, 4096, 4097, 20011, 131072, TD_DRAW_MAX_WIDTH};
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
    static const float top_ps[] = {1.0f, 0.9f, 0.999f, 0.3f, 1e-6f, 0.999999f};
    enum { N = 6, ROUNDS = 12 };
    uint32_t n_several = 0; /* rows of which some draws differ */

    (void)state;
    td_ops_seed(4041);
    for (uint32_t w = 0; w < 8; w++) {
        const uint32_t n_rounds = w == 7 ? 2 : w == 6 ? 4 : w == 5 ? 2 * ROUNDS : ROUNDS;
        const size_t n = (size_t)N * widths[w];
        float *x = malloc(n * sizeof *x), *dx;
        struct td_draw draws[N];
        uint32_t *ids = td_kern_alloc_shared(cuda, N * sizeof *ids), first[N] = {0};
        bool differs[N] = {false};

        for (size_t i = 0; i < n; i++) {
            const size_t row = i / widths[w];

            x[i] = 3.0f * td_ops_normal();
            x[i] = row == 1 ? rintf(0.5f * x[i]) : row == 5 ? 100.0f * x[i] : x[i];
            if (row == 2 && td_ops_below(4) == 0)
                x[i] = special[td_ops_below(5)];
            if (row == 3)
                x[i] = i % 2 ? NAN : -INFINITY;
            if (row == 4)
                x[i] = -7.5f; /* all alike */
        }
        dx = up(x, n * sizeof *x);
        for (uint32_t round = n_rounds == 2; round < n_rounds; round++) {
            struct td_sampling p[N];
            struct td_err err;

            for (uint32_t i = 0; i < N; i++) {
                td_sampling_default(&p[i]);
                p[i].seed = 77 * round + i;
                p[i].temperature = round % 3 == 0         ? 1.0f
                                   : td_ops_below(6) == 0 ? (td_ops_below(2) ? 1e30f : 1e-38f)
                                                          : 0.1f + 0.5f * (float)td_ops_below(5);
                p[i].top_p = round % 2 == 0    ? 1.0f
                             : td_ops_below(2) ? top_ps[td_ops_below(6)]
                                               : 0.999f * (float)(1 + td_ops_below(1000)) / 1000;
                p[i].min_p = round % 4 > 1 ? 0.25f * (float)td_ops_below(5) : 0.0f;
                assert_true(td_sampling_draws_row(&p[i], 0));
                /* Now and then far along the ids, behind those of the last key that are left. */
                while (round % 4 == 1 && td_sampler_row_draw(&p[i], 100 + round).u < 0.8f)
                    p[i].seed++;
                draws[i] = td_sampler_row_draw(&p[i], 100 + round);
                ids[i] = 12345678;
            }
            assert_int_equal(td_kern_draw(cuda, dx, N, widths[w], draws, ids, &err), TD_OK);
            assert_int_equal(td_kern_sync(cuda, &err), TD_OK);
            for (uint32_t i = 0; i < N; i++) {
                struct td_sampler *s;
                struct td_sampled want;

                assert_int_equal(td_sampler_open(&p[i], widths[w], &s, &err), TD_OK);
                td_sampler_draw(s, x + (size_t)i * widths[w], 100 + round, NULL, 0, &want);
                td_sampler_close(s);
                if (ids[i] != (want.no_choice ? UINT32_MAX : want.id))
                    fail_msg("width %u, row %u, round %u: id %u, expected %u (T %g, top_p %g, "
                             "min_p %g)",
                             widths[w], i, round, ids[i], want.no_choice ? UINT32_MAX : want.id,
                             (double)p[i].temperature, (double)p[i].top_p, (double)p[i].min_p);
                first[i] = round == 0 ? ids[i] : first[i];
                differs[i] = differs[i] || (n_rounds > 2 && ids[i] != first[i]);
            }
        }
        for (uint32_t i = 0; i < N; i++)
            n_several += differs[i];
        drop(dx);
        td_kern_free_shared(cuda, ids, N * sizeof *ids);
        free(x);
    }
    assert_true(n_several >= 20);
}

/* Of ids as they come and of none, with the row's largest: what the sampler says of the whole row, bit for bit. */
static void test_cuda_measures_rows_as_the_sampler_does(void **state)
{
    static const uint32_t widths[] = {1, 17, 1025, 20011, 131072};
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
    enum { N = 5, TOP = TD_SAMPLER_MAX_LOGPROBS };

    (void)state;
    td_ops_seed(4042);
    for (uint32_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
        const size_t n = (size_t)N * widths[w];
        float *x = malloc(n * sizeof *x), *dx;
        uint32_t *ids = td_kern_alloc_shared(cuda, N * sizeof *ids);
        struct td_measure *measure = td_kern_alloc_shared(cuda, 2 * N * sizeof *measure);
        struct td_top *top = td_kern_alloc_shared(cuda, (size_t)N * TOP * sizeof *top);
        struct td_err err;

        for (size_t i = 0; i < n; i++) {
            const size_t row = i / widths[w];

            x[i] = 3.0f * td_ops_normal();
            x[i] = row == 1 ? rintf(0.5f * x[i]) : x[i];
            if (row == 2 && td_ops_below(4) == 0)
                x[i] = special[td_ops_below(5)];
            if (row == 3)
                x[i] = i % 2 ? NAN : -INFINITY;
        }
        for (uint32_t i = 0; i < N; i++)
            ids[i] = td_ops_below(widths[w]);
        dx = up(x, n * sizeof *x);
        assert_int_equal(td_kern_measure(cuda, dx, N, widths[w], ids, measure, &err), TD_OK);
        assert_int_equal(td_kern_measure(cuda, dx, N, widths[w], NULL, measure + N, &err), TD_OK);
        assert_int_equal(td_kern_top(cuda, dx, N, widths[w], TOP, top, &err), TD_OK);
        assert_int_equal(td_kern_sync(cuda, &err), TD_OK);
        for (uint32_t i = 0; i < 2 * N; i++) {
            const struct td_top *list = top + (size_t)(i % N) * TOP;
            struct td_sampled want = {.id = i < N ? ids[i] : list[i % 3].id}, got = want;

            if (want.id >= widths[w]) /* too few are numbers */
                continue;
            td_sampler_logprobs(x + (size_t)(i % N) * widths[w], widths[w], TOP, &want);
            td_sampler_measured(&measure[i], list, TOP, TOP, &got);
            if (memcmp(&got.logprob, &want.logprob, sizeof want.logprob) != 0 ||
                got.rank != want.rank || got.n_top != want.n_top ||
                memcmp(got.top, want.top, want.n_top * sizeof *want.top) != 0)
                fail_msg("width %u, row %u, id %u: %g, rank %u, %u more; expected %g, rank %u, %u",
                         widths[w], i, want.id, (double)got.logprob, got.rank, got.n_top,
                         (double)want.logprob, want.rank, want.n_top);
        }
        drop(dx);
        td_kern_free_shared(cuda, ids, N * sizeof *ids);
        td_kern_free_shared(cuda, measure, 2 * N * sizeof *measure);
        td_kern_free_shared(cuda, top, (size_t)N * TOP * sizeof *top);
        free(x);
    }
    assert_int_equal(td_kern_measure(cpu, NULL, 0, 1, NULL, NULL, &(struct td_err){0}),
                     TD_UNSUPPORTED);
}

static void test_cuda_refuses_draws_that_are_none(void **state)
{
    const struct td_draw good = {.inv_t = 1, .top_p = 1, .u = 0.5f};
    struct td_draw draw;
    uint32_t *id = td_kern_alloc_shared(cuda, sizeof *id);
    float x = 1, *dx = up(&x, sizeof x);
    struct td_err err;

    (void)state;
    for (int i = 0; i < 8; i++) {
        draw = good;
        draw.inv_t = i == 0 ? 0 : i == 1 ? INFINITY : 1;
        draw.top_p = i == 2 ? 0 : i == 3 ? 1.5f : i == 4 ? NAN : 1;
        draw.min_p = i == 5 ? -1 : 0;
        draw.u = i == 6 ? 1 : i == 7 ? NAN : 0;
        assert_int_equal(td_kern_draw(cuda, dx, 1, 1, &draw, id, &err), TD_INVALID);
    }
    assert_false(td_kern_draws(cpu, 1));
    assert_false(td_kern_draws(cuda, TD_DRAW_MAX_WIDTH + 1));
    assert_int_equal(td_kern_draw(cpu, &x, 1, 1, &draw, id, &err), TD_UNSUPPORTED);
    drop(dx);
    td_kern_free_shared(cuda, id, sizeof *id);
}

/* ---- attention ---- */

/* Sequences in blocks dealt at random, the same on both devices; every position up to the last is stored. */
struct story {
    enum td_dtype type;
    uint32_t dim, n_heads, n_kv, block_tokens, n_blocks, n_keys, attend_from;
    uint32_t window;
    float softcap;
    bool interleaved, has_norm, has_sinks;
    uint32_t *table;
    uint32_t kv_of_head[32];
    float *q, *k, *v, *norm; /* of all positions */
    float sinks[32];
};

static void *twice(bool on_cuda, const void *host, size_t bytes)
{
    return on_cuda ? up(host, bytes) : memcpy(malloc(bytes), host, bytes);
}

static void drop_twice(bool on_cuda, void *p)
{
    if (on_cuda)
        drop(p);
    else
        free(p);
}

/* Stores positions in pieces of `step` rows, and attends with the rows of each piece, but none before attend_from; out [n_keys x n_heads x
 * dim]. */
static void tell(bool on_cuda, const struct story *s, uint32_t step, float *out, float *q_out)
{
    struct td_kern *kern = on_cuda ? cuda : cpu;
    const size_t nq = (size_t)s->n_heads * s->dim, nk = (size_t)s->n_kv * s->dim;
    struct td_kv_view view = {.dtype = s->type,
                              .n_blocks = s->n_blocks,
                              .n_kv_heads = s->n_kv,
                              .block_tokens = s->block_tokens,
                              .head_dim = s->dim};
    uint32_t *positions = malloc(s->n_keys * 4), *zeros = calloc(s->n_keys, 4);
    uint32_t *table = twice(on_cuda, s->table, (size_t)s->n_blocks * 4), *dpos, *dzero;
    double freq[TD_KERN_MAX_HEAD_DIM / 2], *dfreq;
    float *angles = td_kern_alloc(kern, (size_t)s->n_keys * 2 * s->dim * 4),
          *dout = td_kern_alloc(kern, s->n_keys * nq * 4);
    float *q = twice(on_cuda, s->q, s->n_keys * nq * 4),
          *k = twice(on_cuda, s->k, s->n_keys * nk * 4),
          *v = twice(on_cuda, s->v, s->n_keys * nk * 4),
          *norm = twice(on_cuda, s->norm, s->dim * 4),
          *sinks = twice(on_cuda, s->sinks, sizeof s->sinks);
    struct td_err err;

    view.data = td_kern_alloc(kern, td_kern_kv_bytes(&view));
    for (uint32_t i = 0; i < s->n_keys; i++)
        positions[i] = i;
    for (uint32_t i = 0; i < s->dim / 2; i++)
        freq[i] = pow(10000.0, -2.0 * i / s->dim);
    dpos = twice(on_cuda, positions, s->n_keys * 4);
    dzero = twice(on_cuda, zeros, s->n_keys * 4);
    dfreq = twice(on_cuda, freq, sizeof freq);
    assert_int_equal(td_kern_rope_angles(kern, dfreq, s->dim, 1.0, s->interleaved, dpos, s->n_keys,
                                         angles, &err),
                     TD_OK);
    for (uint32_t i = 0, n; i < s->n_keys; i += n) {
        n = s->n_keys - i < step ? s->n_keys - i : step;
        const struct td_kv_rows rows = {dpos + i, dzero + i, table, i + n, 1};
        const struct td_rope_kv in = {.q = q + i * nq,
                                      .k = k + i * nk,
                                      .v = v + i * nk,
                                      .angles = angles + (size_t)i * 2 * s->dim,
                                      .q_norm = s->has_norm ? norm : NULL,
                                      .k_norm = s->has_norm ? norm : NULL,
                                      .n_heads = s->n_heads,
                                      .eps = 1e-6f,
                                      .interleaved = s->interleaved};

        assert_int_equal(td_kern_rope_kv(kern, &view, &rows, n, &in, &err), TD_OK);
        const uint32_t at = i < s->attend_from ? s->attend_from : i;
        const struct td_kv_rows those = {dpos + at, dzero + at, table, i + n, 1};
        const struct td_attention how = {.q = q + at * nq,
                                         .out = dout + at * nq,
                                         .n_heads = s->n_heads,
                                         .kv_of_head = s->kv_of_head,
                                         .scale = 0.2f,
                                         .window = s->window,
                                         .softcap = s->softcap,
                                         .sinks = s->has_sinks ? sinks : NULL};

        if (at < i + n)
            assert_int_equal(td_kern_attention(kern, &view, &those, i + n - at, &how, &err), TD_OK);
    }
    td_kern_copy(kern, out, dout, s->n_keys * nq * 4);
    td_kern_copy(kern, q_out, q, s->n_keys * nq * 4);
    assert_int_equal(td_kern_sync(kern, &err), TD_OK);
    td_kern_free(kern, view.data, td_kern_kv_bytes(&view));
    td_kern_free(kern, angles, (size_t)s->n_keys * 2 * s->dim * 4);
    td_kern_free(kern, dout, s->n_keys * nq * 4);
    for (uint32_t i = 0; i < 9; i++)
        drop_twice(on_cuda, ((void *[]){q, k, v, norm, sinks, dpos, dzero, table, dfreq})[i]);
    free(positions);
    free(zeros);
}

static void begin_story(struct story *s)
{
    const size_t nq = (size_t)s->n_heads * s->dim, nk = (size_t)s->n_kv * s->dim;

    s->n_blocks = (s->n_keys + s->block_tokens - 1) / s->block_tokens;
    s->table = malloc(s->n_blocks * sizeof *s->table);
    for (uint32_t i = 0; i < s->n_blocks; i++) {
        uint32_t at = td_ops_below(i + 1);

        s->table[i] = s->table[at];
        s->table[at] = i;
    }
    for (uint32_t h = 0; h < s->n_heads; h++)
        s->kv_of_head[h] = h * s->n_kv / s->n_heads;
    s->q = td_ops_activations(s->n_keys * nq);
    s->k = td_ops_activations(s->n_keys * nk);
    s->v = td_ops_activations(s->n_keys * nk);
    s->norm = td_ops_activations(s->dim);
    for (uint32_t h = 0; h < s->n_heads; h++)
        s->sinks[h] = (float)h - 2.0f;
}

static void test_cuda_attention_is_that_of_the_cpu_and_the_same_in_every_batch(void **state)
{
    static const enum td_dtype types[] = {TD_F32, TD_F16, TD_BF16, TD_Q8_0, TD_F8_E4M3};
    /* Of the largest result: weights rounded to 11 bits or to 16, values of Q8_0 to 11, queries beside BF16 to 16, of scores up to 20;
     * and a key whose rounding falls the other way moves by one place of its type. */
    static const double most[] = {1e-5, 3e-4, 2e-4, 1e-3, 5e-3};
    static const struct story shapes[] = {
        {.dim = 8, .n_heads = 8, .n_kv = 4, .block_tokens = 16, .n_keys = 70, .interleaved = true},
        {.dim = 32, .n_heads = 6, .n_kv = 2, .block_tokens = 32, .n_keys = 260},
        {.dim = 64, .n_heads = 20, .n_kv = 1, .block_tokens = 64, .n_keys = 66, .has_norm = true},
        {.dim = 96, .n_heads = 3, .n_kv = 3, .block_tokens = 16, .n_keys = 80},
        {.dim = 256, .n_heads = 2, .n_kv = 1, .block_tokens = 8, .n_keys = 65, .interleaved = true},
        {.dim = 20, .n_heads = 4, .n_kv = 2, .block_tokens = 16, .n_keys = 100},
        {.dim = 32,
         .n_heads = 2,
         .n_kv = 1,
         .block_tokens = 64,
         .n_keys = 4500,
         .attend_from = 4498},
        {.dim = 64, .n_heads = 8, .n_kv = 2, .block_tokens = 16, .n_keys = 300, .window = 100},
        {.dim = 32, .n_heads = 4, .n_kv = 1, .block_tokens = 8, .n_keys = 150, .window = 3},
        {.dim = 128,
         .n_heads = 2,
         .n_kv = 1,
         .block_tokens = 64,
         .n_keys = 140,
         .softcap = 3.0f,
         .window = 64,
         .has_sinks = true},
        {.dim = 64,
         .n_heads = 8,
         .n_kv = 1,
         .block_tokens = 16,
         .n_keys = 4500,
         .window = 4100,
         .has_sinks = true,
         .attend_from = 4480},
        {.dim = 32,
         .n_heads = 4,
         .n_kv = 4,
         .block_tokens = 16,
         .n_keys = 90,
         .softcap = 20.0f,
         .has_sinks = true}};

    (void)state;
    td_ops_seed(4008);
    for (uint32_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (uint32_t t = 0; t < sizeof types / sizeof types[0]; t++) {
            struct story s = shapes[i];
            size_t n;
            float *want, *all, *some, *q_want, *q;

            s.type = types[t];
            if ((s.type == TD_Q8_0 && s.dim % 32) || (s.attend_from && t > 1))
                continue;
            begin_story(&s);
            n = (size_t)s.n_keys * s.n_heads * s.dim;
            want = malloc(n * 4), all = malloc(n * 4), some = malloc(n * 4);
            q_want = malloc(n * 4), q = malloc(n * 4);
            tell(false, &s, s.n_keys, want, q_want);
            tell(true, &s, s.n_keys, all, q);
            if (!(off_by(q, q_want, n) < 1e-6))
                fail_msg("queries of dimension %u: off by %g", s.dim, off_by(q, q_want, n));
            if (!(off_by(all, want, n) < most[t]))
                fail_msg("%s, dimension %u: off by %g", td_dtype_info(s.type)->name, s.dim,
                         off_by(all, want, n));
            tell(true, &s, 1 + i * 12, some, q);
            td_ops_assert_same(some, all, n, "%s, dimension %u, %u rows at a time\n",
                               td_dtype_info(s.type)->name, s.dim, 1 + i * 12);
            free(want), free(all), free(some), free(q_want), free(q);
            free(s.table), free(s.q), free(s.k), free(s.v), free(s.norm);
        }
}

/* Prompts and single tokens of several sequences in one call: each row has the bits that it has alone. */
static void test_cuda_attention_of_many_sequences_is_that_of_each(void **state)
{
    enum { DIM = 64, HEADS = 6, KV = 2, BLOCK = 16, SEQS = 4, MOST = 400 };
    static const enum td_dtype types[] = {TD_F32, TD_F16, TD_BF16, TD_Q8_0, TD_F8_E4M3};
    static const uint32_t from[SEQS] = {0, 330, 25, 128}, to[SEQS] = {70, 331, 65, 130};

    (void)state;
    td_ops_seed(4010);
    for (uint32_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        const uint32_t kv_of_head[HEADS] = {0, 0, 0, 1, 1, 1};
        struct td_kv_view view = {.dtype = types[t],
                                  .n_blocks = SEQS * MOST / BLOCK,
                                  .n_kv_heads = KV,
                                  .block_tokens = BLOCK,
                                  .head_dim = DIM};
        uint32_t table[SEQS * MOST / BLOCK], at[SEQS * MOST], first[SEQS * MOST], n = 0, *dtable;
        uint32_t *dat, *dfirst;
        float *angles = td_kern_alloc(cuda, MOST * 2 * DIM * 4), *q, *dq, *dout, *all, *one;
        struct td_err err;

        view.data = td_kern_alloc(cuda, td_kern_kv_bytes(&view));
        for (uint32_t i = 0; i < view.n_blocks; i++)
            table[i] = i * 7 % view.n_blocks;
        dtable = up(table, sizeof table);
        for (uint32_t s = 0; s < SEQS;
             s++) { /* every key up to the last; angles of zero leave nothing but their place */
            float *k = td_ops_activations(MOST * KV * DIM),
                  *v = td_ops_activations(MOST * KV * DIM);
            float *dk = up(k, MOST * KV * DIM * 4), *dv = up(v, MOST * KV * DIM * 4);
            float *spare = td_kern_alloc(cuda, (size_t)MOST * HEADS * DIM * 4);
            float turn[MOST][2][DIM];

            for (uint32_t i = 0; i < to[s]; i++) {
                at[i] = i;
                first[i] = s * MOST / BLOCK;
                for (uint32_t d = 0; d < DIM; d++) {
                    turn[i][0][d] = 1.0f;
                    turn[i][1][d] = 0.0f;
                }
            }
            td_kern_copy(cuda, angles, turn, sizeof turn);
            dat = up(at, to[s] * 4), dfirst = up(first, to[s] * 4);
            assert_int_equal(
                td_kern_rope_kv(
                    cuda, &view, &(struct td_kv_rows){dat, dfirst, dtable, to[s], 1}, to[s],
                    &(struct td_rope_kv){
                        .q = spare, .k = dk, .v = dv, .angles = angles, .n_heads = HEADS},
                    &err),
                TD_OK);
            assert_int_equal(td_kern_sync(cuda, &err), TD_OK);
            drop(dk), drop(dv), drop(spare), drop(dat), drop(dfirst);
            free(k), free(v);
        }
        for (uint32_t s = 0; s < SEQS; s++)
            for (uint32_t i = from[s]; i < to[s]; i++) {
                at[n] = i;
                first[n++] = s * MOST / BLOCK;
            }
        q = td_ops_activations((size_t)n * HEADS * DIM);
        dq = up(q, (size_t)n * HEADS * DIM * 4), dat = up(at, n * 4), dfirst = up(first, n * 4);
        dout = td_kern_alloc(cuda, (size_t)n * HEADS * DIM * 4);
        all = malloc((size_t)n * HEADS * DIM * 4), one = malloc(HEADS * DIM * 4);
        struct td_attention how = {
            .q = dq, .out = dout, .n_heads = HEADS, .kv_of_head = kv_of_head, .scale = 0.3f};
        assert_int_equal(td_kern_attention(cuda, &view,
                                           &(struct td_kv_rows){dat, dfirst, dtable, 331, SEQS}, n,
                                           &how, &err),
                         TD_OK);
        down(all, dout, (size_t)n * HEADS * DIM * 4);
        for (uint32_t i = 0; i < n; i += 1 + i % 3) {
            how.q = dq + (size_t)i * HEADS * DIM;
            assert_int_equal(
                td_kern_attention(cuda, &view,
                                  &(struct td_kv_rows){dat + i, dfirst + i, dtable, at[i] + 1, 1},
                                  1, &how, &err),
                TD_OK);
            down(one, dout, HEADS * DIM * 4);
            if (!inexact)
                td_ops_assert_same(one, all + (size_t)i * HEADS * DIM, HEADS * DIM,
                                   "%s, position %u of the sequence at block %u\n",
                                   td_dtype_info(types[t])->name, at[i], first[i]);
            else if (!(off_by(all + (size_t)i * HEADS * DIM, one, HEADS * DIM) < 2e-2))
                fail_msg("%s, position %u of the sequence at block %u: off by %g",
                         td_dtype_info(types[t])->name, at[i], first[i],
                         off_by(all + (size_t)i * HEADS * DIM, one, HEADS * DIM));
        }
        td_kern_free(cuda, view.data, 0);
        drop(dtable), drop(dq), drop(dat), drop(dfirst), drop(dout), drop(angles);
        free(q), free(all), free(one);
    }
}

static void test_cuda_inexact_attention_of_many_sequences_is_that_of_each(void **state)
{
    need_library();
    test_cuda_attention_of_many_sequences_is_that_of_each(state);
}

/* With an online softmax, queries and weights rounded to 8 bits (BF16) or to 11: the square of what that is off by, over that of the
 * results. */
static void test_cuda_inexact_attention_of_prompts_is_that_of_the_cpu(void **state)
{
    static const enum td_dtype types[] = {TD_F16, TD_BF16, TD_Q8_0, TD_F8_E4M3};
    static const double most[] = {5e-6, 1e-4, 1e-5, 1e-5};
    static const struct story shapes[] = {
        {.dim = 8, .n_heads = 8, .n_kv = 4, .block_tokens = 4, .n_keys = 70, .interleaved = true},
        {.dim = 32, .n_heads = 6, .n_kv = 2, .block_tokens = 32, .n_keys = 260},
        {.dim = 64, .n_heads = 20, .n_kv = 1, .block_tokens = 64, .n_keys = 66, .has_norm = true},
        {.dim = 96, .n_heads = 3, .n_kv = 3, .block_tokens = 16, .n_keys = 150},
        {.dim = 128, .n_heads = 8, .n_kv = 2, .block_tokens = 16, .n_keys = 200},
        {.dim = 256, .n_heads = 2, .n_kv = 1, .block_tokens = 8, .n_keys = 130},
        {.dim = 64, .n_heads = 8, .n_kv = 2, .block_tokens = 16, .n_keys = 300, .window = 100},
        {.dim = 128,
         .n_heads = 4,
         .n_kv = 1,
         .block_tokens = 16,
         .n_keys = 200,
         .softcap = 3.0f,
         .window = 65,
         .has_sinks = true}};

    (void)state;
    need_library();
    td_ops_seed(4033);
    for (uint32_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (uint32_t t = 0; t < sizeof types / sizeof types[0]; t++) {
            struct story s = shapes[i];
            float *want, *got, *q;
            size_t n;

            s.type = types[t];
            if (s.type == TD_Q8_0 && s.dim % 32)
                continue;
            begin_story(&s);
            n = (size_t)s.n_keys * s.n_heads * s.dim;
            want = malloc(n * 4), got = malloc(n * 4), q = malloc(n * 4);
            tell(false, &s, s.n_keys, want, q);
            for (uint32_t step = 50; step <= s.n_keys + 50; step += s.n_keys) {
                struct td_ops_error error = {0, 0};

                tell(true, &s, step, got, q);
                for (size_t k = 0; k < n; k++)
                    td_ops_count(&error, (double)got[k], (double)want[k]);
                if (!(td_ops_nmse(error) < most[t]))
                    fail_msg("%s, dimension %u, %u rows at a time: off by %g",
                             td_dtype_info(s.type)->name, s.dim, step, td_ops_nmse(error));
            }
            free(want), free(got), free(q);
            free(s.table), free(s.q), free(s.k), free(s.v), free(s.norm);
        }
}

static void test_cuda_blocks_go_out_and_come_back(void **state)
{
    struct td_kv_view view = {
        .dtype = TD_Q8_0, .n_blocks = 3, .n_kv_heads = 2, .block_tokens = 16, .head_dim = 64};
    const size_t bytes = td_kern_kv_bytes(&view), block = td_kern_kv_block_bytes(&view);
    uint8_t *host = malloc(bytes), *seen = malloc(bytes), *out = malloc(block);
    struct td_err err;

    (void)state;
    td_ops_seed(4009);
    for (size_t i = 0; i < bytes; i++)
        host[i] = (uint8_t)td_ops_below(256);
    view.data = up(host, bytes);
    assert_int_equal(td_kern_kv_save(cuda, &view, 1, out, &err), TD_OK);
    assert_int_equal(td_kern_sync(cuda, &err), TD_OK);
    assert_memory_equal(out, host + block, block);
    assert_int_equal(td_kern_kv_restore(cuda, &view, 2, out, &err), TD_OK);
    assert_int_equal(td_kern_kv_restore(cuda, &view, 3, out, &err), TD_INVALID);
    down(seen, view.data, bytes);
    assert_memory_equal(seen, host, 2 * block);
    assert_memory_equal(seen + 2 * block, host + block, block);
    drop(view.data);
    free(host);
    free(seen);
    free(out);
}

/* ---- opening ---- */

/* What is recorded does the same work as what is asked for, on what the memory holds then; and nothing of it is left when memory goes. */
static void test_cuda_recorded_operations_are_those_that_were_asked_for(void **state)
{
    enum { ROWS = 40, COLS = 96, N = 3, ROUNDS = 6 };
    struct td_ops_weights w;
    struct td_ops_cut cut;
    struct td_matrix *m;
    float *x[ROUNDS], *want[ROUNDS], *dx, *dout, *got = malloc(N * ROWS * sizeof *got);
    uint32_t n_replayed = 0;
    struct td_err err;

    (void)state;
    td_ops_seed(4011);
    td_ops_weights_init(&w, TD_BF16, ROWS, COLS);
    cut = td_ops_cut_random(TD_BF16, COLS, 3, 1);
    m = td_ops_pack(cuda, &w, &cut);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        x[i] = td_ops_activations(N * COLS);
        want[i] = multiply(m, x[i], N, COLS, ROWS, 1);
    }
    dx = td_kern_alloc(cuda, N * COLS * 4), dout = td_kern_alloc(cuda, N * ROWS * 4);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        td_kern_copy(cuda, dx, x[i], N * COLS * 4);
        if (td_kern_replay(cuda, 7)) {
            n_replayed++;
        } else {
            td_kern_record(cuda, 7);
            assert_int_equal(td_kern_matmul(cuda, m, dx, N, dout, &err), TD_OK);
            td_kern_record_end(cuda, true);
        }
        down(got, dout, N * ROWS * 4);
        td_ops_assert_same(got, want[i], N * ROWS, "round %u\n", i);
        assert_false(td_kern_replay(cuda, 8));
        if (i == 3) /* the first comes as it is, the second is recorded */
            assert_int_equal(n_replayed, 2);
        if (i == 3)
            drop(td_kern_alloc(cuda, 64));
    }
    assert_int_equal(n_replayed, 2);
    td_kern_matrix_close(cuda, m);
    assert_false(td_kern_replay(cuda, 7));
    for (uint32_t key = 100; key < 300; key++) /* the ones that were used longest ago go */
        for (uint32_t i = 0; i < 2; i++) {
            td_kern_record(cuda, key);
            assert_int_equal(td_kern_add(cuda, dx, dx, 1, &err), TD_OK);
            td_kern_record_end(cuda, true);
        }
    for (uint32_t i = 0; i < 3; i++) { /* what was refused is not kept */
        td_kern_record(cuda, 300);
        td_kern_record_end(cuda, false);
        assert_false(td_kern_replay(cuda, 300));
    }
    assert_false(td_kern_replay(cuda, 101));
    assert_true(td_kern_replay(cuda, 299));
    assert_int_equal(td_kern_sync(cuda, &err), TD_OK);
    drop(dx), drop(dout);
    for (uint32_t i = 0; i < ROUNDS; i++)
        free(x[i]), free(want[i]);
    td_ops_weights_deinit(&w);
    free(got);
}

static void test_cuda_says_what_is_missing(void **state)
{
    struct td_kern_cuda_params p = {.plugin = "/nowhere/libtensord_cuda.so"};
    struct td_kern *kern;
    struct td_err err;

    (void)state;
    assert_int_equal(td_kern_cuda_open(&p, &kern, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "/nowhere/libtensord_cuda.so does not open"));
    p = (struct td_kern_cuda_params){.plugin = getenv("TD_OPS_CUDA_PLUGIN"), .device = 999};
    p.plugin = p.plugin ? p.plugin : CUDA_PLUGIN;
    assert_int_equal(td_kern_cuda_open(&p, &kern, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "CUDA device 999 of "));
    assert_false(td_kern_supports_matrix(cuda, TD_IQ4_NL));
    assert_false(td_kern_supports_kv(cuda, TD_Q4_0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_copies_rows_apart),
        cmocka_unit_test(test_cuda_linear_is_float64_within_its_roundings),
        cmocka_unit_test(test_cuda_linear_gives_a_row_the_same_bits_in_every_batch),
        cmocka_unit_test(test_cuda_linear_gives_many_tokens_the_bits_of_a_few),
        cmocka_unit_test(test_cuda_linear_gives_the_same_bits_in_every_split),
        cmocka_unit_test(test_cuda_linear_steps_are_those_of_the_cpu),
        cmocka_unit_test(test_cuda_rows_are_the_stored_weights),
        cmocka_unit_test(test_cuda_row_operations_are_those_of_the_cpu),
        cmocka_unit_test(test_cuda_top_is_that_of_the_cpu),
        cmocka_unit_test(test_cuda_draws_are_those_of_the_sampler),
        cmocka_unit_test(test_cuda_measures_rows_as_the_sampler_does),
        cmocka_unit_test(test_cuda_refuses_draws_that_are_none),
        cmocka_unit_test(test_cuda_attention_is_that_of_the_cpu_and_the_same_in_every_batch),
        cmocka_unit_test(test_cuda_attention_of_many_sequences_is_that_of_each),
        cmocka_unit_test(test_cuda_blocks_go_out_and_come_back),
        cmocka_unit_test(test_cuda_recorded_operations_are_those_that_were_asked_for),
        cmocka_unit_test(test_cuda_says_what_is_missing),
        cmocka_unit_test_setup_teardown(
            test_cuda_inexact_products_are_float64_within_their_roundings, swap_devices,
            swap_devices),
        cmocka_unit_test_setup_teardown(test_cuda_inexact_products_of_f8_take_eight_bits,
                                        swap_devices, swap_devices),
        cmocka_unit_test_setup_teardown(test_cuda_inexact_attention_of_prompts_is_that_of_the_cpu,
                                        swap_devices, swap_devices),
        cmocka_unit_test_setup_teardown(
            test_cuda_inexact_attention_of_many_sequences_is_that_of_each, swap_devices,
            swap_devices),
        cmocka_unit_test_setup_teardown(test_cuda_inexact_steps_of_f8_are_those_of_the_cpu,
                                        swap_devices, swap_devices),
        cmocka_unit_test_setup_teardown(test_cuda_inexact_steps_are_those_of_the_cpu, swap_devices,
                                        swap_devices),
    };

    return cmocka_run_group_tests_name("cuda", tests, open_devices, close_devices);
}
