/* The operations on rows of activations, against float64 and the same bits on every instruction set. Attention's rotation of
 * q and k is in tests/unit/kernels/test_attention.c. */
#include "tests/ops/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Around a vector's lanes, and beyond what one thread does alone. */
static const uint32_t SIZES[] = {1, 2, 15, 16, 17, 31, 33, 64, 172, 1000, 5000};
enum { N_SIZES = sizeof SIZES / sizeof SIZES[0] };

static const float SPECIAL[] = {NAN,     INFINITY, -INFINITY, 0.0f,    -0.0f, 1e-45f,
                                -1e-38f, 3e38f,    -3e38f,    -103.0f, 88.0f, -88.0f,
                                89.5f,   -104.5f,  -87.3f,    1e-20f};
enum { N_SPECIAL = sizeof SPECIAL / sizeof SPECIAL[0] };

static float *copy(const float *x, size_t n)
{
    float *out = malloc(n * sizeof *out);

    memcpy(out, x, n * sizeof *out);
    return out;
}

static bool near(float got, double want, double bound)
{
    return fabs((double)got - want) <= bound;
}

static void check_rmsnorm(const struct td_ops_devices *devices, uint32_t n, uint32_t dim)
{
    const float eps = 1e-5f;
    float *x = td_ops_activations((size_t)n * dim), *w = td_ops_activations(dim), *ref = NULL;
    struct td_err err;

    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++)
        for (int k = 0; k < 2 && devices->kern[isa][k]; k++) {
            struct td_kern *kern = devices->kern[isa][k];
            float *out = copy(x, (size_t)n * dim); /* in place */

            assert_int_equal(td_kern_rmsnorm(kern, out, w, n, dim, eps, out, &err), TD_OK);
            if (!ref) {
                ref = malloc((size_t)n * dim * sizeof *ref);
                assert_int_equal(td_kern_rmsnorm(kern, x, w, n, dim, eps, ref, &err), TD_OK);
            }
            td_ops_assert_same(out, ref, (size_t)n * dim, "rmsnorm of %u x %u on %s\n", n, dim,
                               td_kern_name(kern));
            free(out);
        }
    for (uint32_t r = 0; r < n; r++) {
        double squares = 0.0;

        for (uint32_t i = 0; i < dim; i++)
            squares += (double)x[r * dim + i] * (double)x[r * dim + i];
        for (uint32_t i = 0; i < dim; i++) {
            double want = (double)x[r * dim + i] / sqrt(squares / dim + (double)eps) * (double)w[i];

            /* Half of the sum's relative error, dim / 16 roundings a lane and four to join them; six more roundings. */
            assert_true(near(ref[r * dim + i], want, 0x1p-24 * (dim / 32 + 8) * fabs(want)));
        }
    }
    free(x);
    free(w);
    free(ref);
}

static void test_ops_rows_rmsnorm_is_float64_on_every_isa(void **state)
{
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3201);
    td_ops_open_all(&devices);
    for (uint32_t i = 0; i < N_SIZES; i++)
        for (uint32_t n = 1; n < 6; n += 2)
            check_rmsnorm(&devices, n, SIZES[i]);
    td_ops_close_all(&devices);
}

static void check_spans(const struct td_ops_devices *devices, size_t n)
{
    float *x = td_ops_activations(n), *y = td_ops_activations(n), *silu = NULL, *sum = NULL;
    struct td_err err;

    for (size_t i = 0; i < n; i++) /* some far out, where exp ends */
        x[i] *= i % 5 ? 1.0f : 30.0f;
    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++)
        for (int k = 0; k < 2 && devices->kern[isa][k]; k++) {
            struct td_kern *kern = devices->kern[isa][k];
            float *a = copy(x, n), *b = copy(x, n);

            assert_int_equal(td_kern_silu_mul(kern, a, y, n, a, &err), TD_OK); /* in place */
            assert_int_equal(td_kern_add(kern, b, y, n, &err), TD_OK);
            if (!silu) {
                silu = a;
                sum = b;
                continue;
            }
            td_ops_assert_same(a, silu, n, "silu of %zu on %s\n", n, td_kern_name(kern));
            td_ops_assert_same(b, sum, n, "sum of %zu on %s\n", n, td_kern_name(kern));
            free(a);
            free(b);
        }
    for (size_t i = 0; i < n; i++) {
        double g = (double)x[i], want = g / (1.0 + exp(-g)) * (double)y[i];

        /* exp 1 ulp, then four roundings; below -88.7, where exp is infinite, g / exp is less than 2^-121. */
        assert_true(near(silu[i], want, 6 * 0x1p-24 * fabs(want) + 0x1p-121 * fabs((double)y[i])));
        assert_true(sum[i] == x[i] + y[i]);
    }
    free(x);
    free(y);
    free(silu);
    free(sum);
}

static void test_ops_rows_silu_and_sum_are_float64_on_every_isa(void **state)
{
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3202);
    td_ops_open_all(&devices);
    for (uint32_t i = 0; i < N_SIZES; i++) {
        check_spans(&devices, SIZES[i]);
        check_spans(&devices, SIZES[i] * 7);
    }
    td_ops_close_all(&devices);
}

/* Every special value with every other, at every place of a vector. */
static void test_ops_rows_agree_on_every_isa_at_the_edge(void **state)
{
    enum { N = N_SPECIAL * N_SPECIAL, DIM = 37 };
    float x[N], y[N], norm[DIM], rows[N_SPECIAL * DIM];
    float silu[2][N], sum[2][N], out[2][N_SPECIAL * DIM];
    struct td_ops_devices devices;
    struct td_err err;

    (void)state;
    td_ops_seed(3203);
    td_ops_open_all(&devices);
    for (uint32_t i = 0; i < N; i++) {
        x[i] = SPECIAL[i % N_SPECIAL];
        y[i] = SPECIAL[(i + i / N_SPECIAL) % N_SPECIAL];
    }
    for (uint32_t i = 0; i < N_SPECIAL * DIM; i++) { /* one special value a row */
        norm[i % DIM] = td_ops_normal();
        rows[i] = i % DIM == i / DIM * 2 ? SPECIAL[i / DIM] : td_ops_normal();
    }
    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++) {
        struct td_kern *kern = devices.kern[isa][0];
        int at = isa != 0;

        if (!kern)
            continue;
        assert_int_equal(td_kern_silu_mul(kern, x, y, N, silu[at], &err), TD_OK);
        memcpy(sum[at], x, sizeof x);
        assert_int_equal(td_kern_add(kern, sum[at], y, N, &err), TD_OK);
        assert_int_equal(td_kern_rmsnorm(kern, rows, norm, N_SPECIAL, DIM, 1e-6f, out[at], &err),
                         TD_OK);
        td_ops_assert_same(silu[at], silu[0], N, "silu on %s\n", td_kern_name(kern));
        td_ops_assert_same(sum[at], sum[0], N, "sum on %s\n", td_kern_name(kern));
        td_ops_assert_same(out[at], out[0], N_SPECIAL * DIM, "rmsnorm on %s\n", td_kern_name(kern));
    }
    for (uint32_t i = 0; i < N; i++)
        assert_true(isnan(silu[0][i]) || !(isnan(x[i]) || isnan(y[i])));
    for (uint32_t i = 0; i < DIM; i++)
        assert_true(isnan(out[0][i])); /* the row of the NaN, and no other */
    for (uint32_t i = 3 * DIM; i < N_SPECIAL * DIM; i++)
        assert_true(isfinite(out[0][i]));
    td_ops_close_all(&devices);
}

static void check_angles(const struct td_ops_devices *devices, uint32_t dim, bool interleaved,
                         uint32_t n)
{
    const double scale = interleaved ? 1.0 : 1.1763;
    double freq[TD_KERN_MAX_HEAD_DIM / 2];
    uint32_t *positions = malloc(n * sizeof *positions);
    float *ref = NULL;
    struct td_err err;

    for (uint32_t i = 0; i < dim / 2; i++)
        freq[i] = pow(10000.0, -2.0 * i / dim);
    for (uint32_t r = 0; r < n; r++)
        positions[r] = r % 3 ? td_ops_below(1u << (4 + r % 16)) : r;
    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++)
        for (int k = 0; k < 2 && devices->kern[isa][k]; k++) {
            struct td_kern *kern = devices->kern[isa][k];
            float *angles = malloc((size_t)n * 2 * dim * sizeof *angles);

            assert_int_equal(td_kern_rope_angles(kern, freq, dim, scale, interleaved, positions, n,
                                                 angles, &err),
                             TD_OK);
            if (!ref) {
                ref = angles;
                continue;
            }
            td_ops_assert_same(angles, ref, (size_t)n * 2 * dim, "angles on %s\n",
                               td_kern_name(kern));
            free(angles);
        }
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t i = 0; i < dim; i++) {
            bool first = interleaved ? i % 2 == 0 : i < dim / 2;
            double a = positions[r] * freq[interleaved ? i / 2 : i % (dim / 2)];

            /* One rounding of the value, one of the product with the scale. */
            assert_true(near(ref[r * 2 * dim + i], cos(a) * scale, 2 * 0x1p-24 * scale));
            assert_true(near(ref[r * 2 * dim + dim + i], (first ? -sin(a) : sin(a)) * scale,
                             2 * 0x1p-24 * scale));
        }
    free(positions);
    free(ref);
}

static void test_ops_rows_rope_angles_are_float64_on_every_isa(void **state)
{
    static const uint32_t dims[] = {2, 6, 8, 64, 96, 128, 256};
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3204);
    td_ops_open_all(&devices);
    for (uint32_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        for (uint32_t n = 1; n < 64; n = n * 3 + 1) {
            check_angles(&devices, dims[i], false, n);
            check_angles(&devices, dims[i], true, n);
        }
    td_ops_close_all(&devices);
}

/* The largest of a row, found one after the other. */
static void check_list(const float *row, uint32_t width, const struct td_top *list, uint32_t n_top,
                       const char *name)
{
    bool *taken = calloc(width + 1, sizeof *taken);

    for (uint32_t k = 0; k < n_top; k++) {
        uint32_t best = UINT32_MAX;

        for (uint32_t i = 0; i < width; i++)
            if (!taken[i] && row[i] > -INFINITY && (best == UINT32_MAX || row[i] > row[best]))
                best = i;
        if (list[k].id != best || (best != UINT32_MAX && list[k].value != row[best]))
            fail_msg("place %u of %u on %s, width %u: id %u (%a), expected %u", k, n_top, name,
                     width, list[k].id, (double)list[k].value, best);
        if (best == UINT32_MAX)
            assert_true(list[k].value == -INFINITY);
        else
            taken[best] = true;
    }
    free(taken);
}

/* Rows with many equal values, and with NaN, infinities and both zeros among them. */
static void test_ops_rows_top_is_what_a_search_finds_on_every_isa(void **state)
{
    static const uint32_t widths[] = {0, 1, 15, 16, 17, 63, 64, 65, 200, 8191, 8192, 40001};
    static const uint32_t tops[] = {1, 2, 7, TD_TOP_MAX};
    enum { N = 5 };
    struct td_ops_devices devices;
    struct td_err err;

    (void)state;
    td_ops_seed(3205);
    td_ops_open_all(&devices);
    for (uint32_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
        uint32_t width = widths[w];
        float *x = malloc(((size_t)N * width + 1) * sizeof *x);
        struct td_top out[N * TD_TOP_MAX], ref[N * TD_TOP_MAX];

        for (uint32_t i = 0; i < N * width; i++) {
            uint32_t row = i / width;

            x[i] = row == 0 ? td_ops_normal() : rintf(2.0f * td_ops_normal());
            if (row == 2 && td_ops_below(8) == 0)
                x[i] = SPECIAL[td_ops_below(N_SPECIAL)];
            if (row == 3) /* ascending: every one enters the list */
                x[i] = (float)i;
            if (row == 4)
                x[i] = i % 2 ? NAN : -INFINITY;
        }
        for (uint32_t k = 0; k < sizeof tops / sizeof tops[0]; k++)
            for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++)
                for (int t = 0; t < 2 && devices.kern[isa][t]; t++) {
                    struct td_kern *kern = devices.kern[isa][t];

                    assert_int_equal(td_kern_top(kern, x, N, width, tops[k], out, &err), TD_OK);
                    for (uint32_t r = 0; r < N; r++)
                        if (isa == 0 && t == 0)
                            check_list(x + (size_t)r * width, width, out + (size_t)r * tops[k],
                                       tops[k], td_kern_name(kern));
                    if (isa == 0 && t == 0)
                        memcpy(ref, out, sizeof ref);
                    assert_memory_equal(out, ref, N * tops[k] * sizeof ref[0]);
                    /* A row alone, and cut into runs by the threads, is the same. */
                    for (uint32_t r = 0; r < N; r++) {
                        assert_int_equal(
                            td_kern_top(kern, x + (size_t)r * width, 1, width, tops[k], out, &err),
                            TD_OK);
                        assert_memory_equal(out, ref + (size_t)r * tops[k],
                                            tops[k] * sizeof ref[0]);
                    }
                }
        free(x);
    }
    assert_int_equal(td_kern_top(devices.kern[0][0], NULL, 1, 1, 0, NULL, &err), TD_INVALID);
    assert_int_equal(td_kern_top(devices.kern[0][0], NULL, 1, 1, TD_TOP_MAX + 1, NULL, &err),
                     TD_INVALID);
    assert_non_null(strstr(err.cause, "65 largest"));
    td_ops_close_all(&devices);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_rows_rmsnorm_is_float64_on_every_isa),
        cmocka_unit_test(test_ops_rows_silu_and_sum_are_float64_on_every_isa),
        cmocka_unit_test(test_ops_rows_agree_on_every_isa_at_the_edge),
        cmocka_unit_test(test_ops_rows_rope_angles_are_float64_on_every_isa),
        cmocka_unit_test(test_ops_rows_top_is_what_a_search_finds_on_every_isa),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
