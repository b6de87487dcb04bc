/* The CPU backend against float64, and every instruction set against ref.c bit for bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kern.h"
#include "kernels/quant/half.h"

static const char *const ISAS[] = {"ref", "avx2", "avx512"};
static uint64_t seed;

static uint32_t rnd(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static float rnd_float(void)
{
    return (float)((double)rnd() / 1073741824.0 - 1.0);
}

static struct td_kern *open_isa(const char *isa, uint32_t threads)
{
    struct td_kern_cpu_params params = {.n_threads = threads, .isa = isa};
    struct td_kern *kern = NULL;
    struct td_err err;

    if (td_kern_cpu_open(&params, &kern, &err)) {
        print_message("skipped: CPU feature %s (%s)\n", isa ? isa : "any", err.cause);
        return NULL;
    }
    return kern;
}

/* A random weight matrix in file format; `values` gets what each weight means. */
static uint8_t *random_weights(enum td_dtype dtype, uint32_t rows, uint32_t cols, float *values)
{
    size_t row_bytes = td_dtype_row_bytes(dtype, cols);
    uint8_t *file = malloc(row_bytes * rows);

    for (uint32_t r = 0; r < rows; r++) {
        uint8_t *p = file + r * row_bytes;
        float *v = values + (size_t)r * cols;

        for (uint32_t k = 0; k < cols; k++) {
            if (dtype == TD_F32) {
                v[k] = rnd_float();
                memcpy(p + k * 4, &v[k], 4);
            } else if (dtype == TD_F16 || dtype == TD_BF16) {
                uint16_t h =
                    dtype == TD_F16 ? td_f32_to_f16(rnd_float()) : td_f32_to_bf16(rnd_float());

                v[k] = dtype == TD_F16 ? td_f16_to_f32(h) : td_bf16_to_f32(h);
                memcpy(p + k * 2, &h, 2);
            } else {
                size_t block_bytes = td_dtype_info(dtype)->block_bytes;
                uint8_t *b = p + k / 32 * block_bytes;
                uint16_t h = td_f32_to_f16(0.01f * (float)(1 + k / 32 % 7));

                memcpy(b, &h, 2);
                if (dtype == TD_Q8_0) {
                    b[2 + k % 32] = (uint8_t)rnd();
                    v[k] = (float)(int8_t)b[2 + k % 32] * td_f16_to_f32(h);
                } else {
                    if (k % 32 < 16)
                        b[2 + k % 16] = (uint8_t)rnd();
                    v[k] = (float)((k % 32 < 16 ? b[2 + k % 16] & 15 : b[2 + k % 16] >> 4) - 8) *
                           td_f16_to_f32(h);
                }
            }
        }
    }
    return file;
}

struct product {
    enum td_dtype dtype;
    uint32_t rows, cols, n, n_leaves, leaf_end[16];
    uint32_t n_parts, part_begin[TD_KERN_MAX_PARTS + 1];
};

static float *multiply(struct td_kern *kern, const struct product *p, const uint8_t *file,
                       const float *x)
{
    struct td_matrix_shape shape = {.dtype = p->dtype,
                                    .n_rows = p->rows,
                                    .n_cols = p->cols,
                                    .n_leaves = p->n_leaves,
                                    .leaf_end = p->leaf_end,
                                    .n_parts = p->n_parts};
    struct td_matrix *m;
    struct td_err err;
    float *out = malloc((size_t)p->n_parts * p->n * p->rows * sizeof *out);

    memcpy(shape.part_begin, p->part_begin, sizeof shape.part_begin);
    assert_int_equal(td_kern_matrix_open(kern, &shape, &m, &err), TD_OK);
    assert_int_equal(td_kern_matrix_pack(kern, m, 0, p->rows, file,
                                         td_dtype_row_bytes(p->dtype, p->cols), NULL, &err),
                     TD_OK);
    assert_int_equal(td_kern_matmul(kern, m, x, p->n, out, &err), TD_OK);
    td_kern_matrix_close(kern, m);
    assert_int_equal(td_kern_weight_bytes(kern), 0);
    return out;
}

static struct product random_product(enum td_dtype dtype)
{
    static const uint32_t row_choice[] = {1, 3, 16, 17, 31, 32, 33, 64, 100};
    static const uint32_t n_choice[] = {1, 2, 3, 5, 6, 7, 15, 16, 17, 33, 100};
    uint32_t unit = (uint32_t)td_dtype_info(dtype)->sum_cols;
    struct product p = {.dtype = dtype, .rows = row_choice[rnd() % 9], .n = n_choice[rnd() % 11]};

    p.n_leaves = 1 + rnd() % 16;
    for (uint32_t i = 0; i < p.n_leaves; i++) {
        p.cols += unit * (1 + rnd() % (unit == 1 ? 13 : 3));
        p.leaf_end[i] = p.cols;
    }
    p.n_parts = 1;
    p.part_begin[1] = p.n_leaves;
    return p;
}

static void test_kern_matmul_is_close_to_float64_and_equal_on_every_isa(void **state)
{
    struct td_kern *kern[3];

    (void)state;
    seed = 12345;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < 3; i++)
        kern[i] = open_isa(ISAS[i], i == 2 ? 3 : 1);
    for (int round = 0; round < 100; round++) {
        enum td_dtype dtype = (enum td_dtype)(round % (TD_Q4_0 + 1));
        struct product p = random_product(dtype);
        float *values = malloc((size_t)p.rows * p.cols * sizeof *values);
        float *x = malloc((size_t)p.n * p.cols * sizeof *x);
        uint8_t *file = random_weights(dtype, p.rows, p.cols, values);
        float *ref, error_bound;

        for (size_t i = 0; i < (size_t)p.n * p.cols; i++)
            x[i] = rnd_float();
        ref = multiply(kern[0], &p, file, x);
        /* Activations in int8 blocks are off by at most half a step of max/127 each. */
        error_bound = td_dtype_info(dtype)->block_elems > 1 ? 0.5f / 127.0f : 1e-6f;
        for (uint32_t t = 0; t < p.n; t++)
            for (uint32_t r = 0; r < p.rows; r++) {
                double sum = 0.0, magnitude = 1e-3;

                for (uint32_t k = 0; k < p.cols; k++) {
                    double w = values[(size_t)r * p.cols + k];

                    float a = x[(size_t)t * p.cols + k];

                    sum += w * (dtype == TD_BF16 ? td_bf16_to_f32(td_f32_to_bf16(a)) : a);
                    magnitude += fabs(w);
                }
                assert_true(fabs(sum - ref[(size_t)t * p.rows + r]) <= error_bound * magnitude);
            }
        for (int i = 1; i < 3; i++)
            if (kern[i]) {
                float *out = multiply(kern[i], &p, file, x);

                assert_memory_equal(out, ref, (size_t)p.n * p.rows * sizeof *out);
                free(out);
            }
        free(values);
        free(x);
        free(file);
        free(ref);
    }
    for (int i = 0; i < 3; i++)
        td_kern_close(kern[i]);
}

static void test_kern_matmul_parts_join_to_the_whole(void **state)
{
    struct td_kern *kern = open_isa(NULL, 2);

    (void)state;
    seed = 99;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int dtype = 0; dtype <= TD_Q4_0; dtype++) {
        struct product p = random_product((enum td_dtype)dtype);
        float *values = NULL;
        float *x, *whole, *split;
        uint8_t *file;
        uint32_t unit = (uint32_t)td_dtype_info((enum td_dtype)dtype)->sum_cols;

        p.n_leaves = 8;
        for (uint32_t i = 0; i < 8; i++)
            p.leaf_end[i] = (i + 1) * unit;
        p.cols = 8 * unit;
        p.part_begin[1] = 8;
        values = realloc(values, (size_t)p.rows * p.cols * sizeof *values);
        file = random_weights((enum td_dtype)dtype, p.rows, p.cols, values);
        x = malloc((size_t)p.n * p.cols * sizeof *x);
        for (size_t i = 0; i < (size_t)p.n * p.cols; i++)
            x[i] = rnd_float();
        whole = multiply(kern, &p, file, x);
        p.n_parts = 3; /* 0..3, 4..5, 6..7 */
        p.part_begin[1] = 4;
        p.part_begin[2] = 6;
        p.part_begin[3] = 8;
        split = multiply(kern, &p, file, x);
        for (size_t i = 0, size = (size_t)p.n * p.rows; i < size; i++) {
            float sum = split[i] + (split[size + i] + split[2 * size + i]);

            assert_memory_equal(&sum, &whole[i], sizeof sum);
        }
        free(values);
        free(file);
        free(x);
        free(whole);
        free(split);
    }
    td_kern_close(kern);
}

/* Blocks of activations that overflowed upstream, or that are too small to be scaled. */
static void test_kern_matmul_agrees_on_every_isa_for_activations_at_the_edge(void **state)
{
    static const float special[] = {NAN,    INFINITY, -INFINITY, 1e-45f,
                                    1e-38f, 3e-37f,   1e-20f,    3e38f};
    enum { N = 24, COLS = 96, ROWS = 33 };
    struct product p = {.rows = ROWS, .cols = COLS, .n = N, .n_leaves = 3, .n_parts = 1};
    float x[N * COLS], values[ROWS * COLS];

    (void)state;
    seed = 77;
    for (uint32_t i = 0; i < 3; i++)
        p.leaf_end[i] = (i + 1) * 32;
    p.part_begin[1] = 3;
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t k = 0; k < COLS; k++) {
            float s = special[t % 8];

            /* Whole blocks of it, one among ordinary values, one among zeros. */
            x[t * COLS + k] = t < 8              ? s * (isfinite(s) ? rnd_float() : 1.0f)
                              : k % 32 == t % 32 ? s
                              : t < 16           ? rnd_float()
                                                 : 0.0f;
        }
    for (int dtype = 0; dtype <= TD_Q4_0; dtype++) {
        uint8_t *file = random_weights((enum td_dtype)dtype, ROWS, COLS, values);
        float *ref = NULL;

        p.dtype = (enum td_dtype)dtype;
        for (int i = 0; i < 3; i++) {
            struct td_kern *kern = open_isa(ISAS[i], 1);
            float *out = kern ? multiply(kern, &p, file, x) : NULL;

            for (uint32_t at = 0; out && at < N * ROWS; at++) {
                if (i > 0) /* the bits of a NaN are not promised */
                    assert_true((isnan(out[at]) && isnan(ref[at])) ||
                                memcmp(&out[at], &ref[at], sizeof *out) == 0);
                else if (isnan(special[at / ROWS % 8]))
                    assert_true(isnan(out[at])); /* it is not lost on the way */
            }
            if (i == 0)
                ref = out;
            else
                free(out);
            td_kern_close(kern);
        }
        free(ref);
        free(file);
    }
}

static void test_kern_rows_give_the_stored_weights(void **state)
{
    struct td_kern *kern = open_isa(NULL, 1);

    (void)state;
    seed = 5;
    for (int dtype = 0; dtype <= TD_Q4_0; dtype++) {
        uint32_t end = 64, ids[3] = {44, 0, 31};
        struct td_matrix_shape shape = {.dtype = (enum td_dtype)dtype,
                                        .n_rows = 45,
                                        .n_cols = 64,
                                        .n_leaves = 1,
                                        .leaf_end = &end,
                                        .n_parts = 1,
                                        .part_begin = {0, 1}};
        float values[45 * 64], out[3 * 64];
        uint8_t *file = random_weights((enum td_dtype)dtype, 45, 64, values);
        struct td_matrix *m;
        struct td_err err;

        assert_int_equal(td_kern_matrix_open(kern, &shape, &m, &err), TD_OK);
        assert_int_equal(td_kern_matrix_bytes(m),
                         td_dtype_row_bytes((enum td_dtype)dtype, 64) * 45);
        assert_int_equal(td_kern_matrix_pack(kern, m, 0, 45, file,
                                             td_dtype_row_bytes((enum td_dtype)dtype, 64), NULL,
                                             &err),
                         TD_OK);
        assert_int_equal(td_kern_rows(kern, m, ids, 3, out, &err), TD_OK);
        for (int i = 0; i < 3; i++)
            assert_memory_equal(out + i * 64, values + ids[i] * 64, 64 * sizeof *out);
        ids[1] = 45;
        assert_int_equal(td_kern_rows(kern, m, ids, 3, out, &err), TD_INVALID);
        td_kern_matrix_close(kern, m);
        free(file);
    }
    td_kern_close(kern);
}

static void test_kern_row_operations_are_close_to_float64_and_equal_on_every_isa(void **state)
{
    enum { N = 3, DIM = 172 };
    float x[N * DIM], w[DIM], y[N * DIM], norm[3][N * DIM], silu[3][N * DIM], sum[3][N * DIM];
    struct td_err err;

    (void)state;
    seed = 7;
    for (int i = 0; i < N * DIM; i++) {
        x[i] = rnd_float() * (i % 7 == 0 ? 100.0f : 3.0f);
        y[i] = rnd_float();
        w[i % DIM] = rnd_float();
    }
    for (int i = 0; i < 3; i++) {
        struct td_kern *kern = open_isa(ISAS[i], 1);

        if (!kern)
            continue;
        assert_int_equal(td_kern_rmsnorm(kern, x, w, N, DIM, 1e-5f, norm[i], &err), TD_OK);
        assert_int_equal(td_kern_silu_mul(kern, x, y, N * DIM, silu[i], &err), TD_OK);
        memcpy(sum[i], x, sizeof x);
        assert_int_equal(td_kern_add(kern, sum[i], y, N * DIM, &err), TD_OK);
        assert_memory_equal(norm[i], norm[0], sizeof norm[0]);
        assert_memory_equal(silu[i], silu[0], sizeof silu[0]);
        assert_memory_equal(sum[i], sum[0], sizeof sum[0]);
        td_kern_close(kern);
    }
    for (int r = 0; r < N; r++) {
        double squares = 0.0;

        for (int i = 0; i < DIM; i++)
            squares += (double)x[r * DIM + i] * x[r * DIM + i];
        for (int i = 0; i < DIM; i++) {
            int at = r * DIM + i;
            double want = x[at] / sqrt(squares / DIM + 1e-5f) * w[i];
            double gate = x[at] / (1.0 + exp(-(double)x[at])) * y[at];

            assert_true(fabs(norm[0][at] - want) <= 1e-6 * (1.0 + fabs(want)));
            assert_true(fabs(silu[0][at] - gate) <= 1e-6 * (1.0 + fabs(gate)));
            assert_true(sum[0][at] == x[at] + y[at]);
        }
    }
}

static void test_kern_takes_the_instruction_set_that_is_asked_for(void **state)
{
    struct td_kern_cpu_params params = {.n_threads = 1};
    struct td_kern *kern;
    struct td_err err;

    (void)state;
    setenv("TENSORD_CPU_ISA", "ref", 1);
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_OK);
    assert_string_equal(td_kern_name(kern), "cpu ref");
    td_kern_close(kern);
    setenv("TENSORD_CPU_ISA", "auto", 1);
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_OK);
    td_kern_close(kern);
    setenv("TENSORD_CPU_ISA", "avx3", 1);
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "avx3"));
    params.isa = "auto"; /* what the caller says counts more */
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_OK);
    td_kern_close(kern);
    unsetenv("TENSORD_CPU_ISA");
}

static void test_kern_refuses_bad_shapes_by_name(void **state)
{
    struct td_kern *kern = open_isa(NULL, 1);
    uint32_t end = 40;
    struct td_matrix_shape shape = {.dtype = TD_Q8_0,
                                    .n_rows = 4,
                                    .n_cols = 40,
                                    .n_leaves = 1,
                                    .leaf_end = &end,
                                    .n_parts = 1,
                                    .part_begin = {0, 1}};
    struct td_matrix *m;
    struct td_err err;
    struct td_kern_cpu_params bad = {.n_threads = 1, .isa = "sse9"};
    struct td_kern *none;

    (void)state;
    assert_int_equal(td_kern_matrix_open(kern, &shape, &m, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "multiple of 32"));
    assert_int_equal(td_kern_cpu_open(&bad, &none, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "sse9"));
    td_kern_close(kern);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kern_matmul_is_close_to_float64_and_equal_on_every_isa),
        cmocka_unit_test(test_kern_matmul_parts_join_to_the_whole),
        cmocka_unit_test(test_kern_matmul_agrees_on_every_isa_for_activations_at_the_edge),
        cmocka_unit_test(test_kern_rows_give_the_stored_weights),
        cmocka_unit_test(test_kern_row_operations_are_close_to_float64_and_equal_on_every_isa),
        cmocka_unit_test(test_kern_takes_the_instruction_set_that_is_asked_for),
        cmocka_unit_test(test_kern_refuses_bad_shapes_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
