/* The 8-bit floats against their definition in double precision. */
#include "kernels/quant/dequant.h"
#include "kernels/quant/fp8.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* OFP8: sign, 4 bits of exponent with bias 7, 3 of mantissa; 0x7f is NaN. */
static double value_of(unsigned v)
{
    double m = v & 7, sign = v & 0x80 ? -1 : 1;
    int e = v >> 3 & 15;

    return sign * (e ? ldexp(8 + m, e - 10) : ldexp(m, -9));
}

static void test_e4m3_reads_every_value(void **state)
{
    (void)state;
    for (unsigned v = 0; v < 256; v++) {
        float got = td_e4m3_to_f32((uint8_t)v), row;
        uint8_t byte = (uint8_t)v;

        td_dequant_row(TD_F8_E4M3, &byte, &row, 1);
        if ((v & 0x7f) == 0x7f) {
            assert_true(isnan(got) && isnan(row));
            continue;
        }
        assert_true(got == value_of(v) && row == got);
        assert_int_equal(signbit(got) != 0, v >> 7);
        assert_int_equal(td_f32_to_e4m3(got), v);
    }
    assert_true(td_e4m3_to_f32(0x7e) == TD_FP8_E4M3_MAX);
}

static void test_e4m3_writes_the_nearest_ties_to_even(void **state)
{
    (void)state;
    for (unsigned v = 0; v < 0x7e; v++) {
        float middle = (float)((value_of(v) + value_of(v + 1)) / 2);
        uint8_t even = (uint8_t)(v & 1 ? v + 1 : v);

        assert_int_equal(td_f32_to_e4m3(nextafterf(middle, 0)), v);
        assert_int_equal(td_f32_to_e4m3(middle), even);
        assert_int_equal(td_f32_to_e4m3(nextafterf(middle, 1000)), v + 1);
        assert_int_equal(td_f32_to_e4m3(-middle), even | 0x80);
    }
}

static void test_e4m3_saturates_and_keeps_nan(void **state)
{
    (void)state;
    assert_int_equal(td_f32_to_e4m3(448.01f), 0x7e);
    assert_int_equal(td_f32_to_e4m3(464), 0x7e); /* where 480 would be as near */
    assert_int_equal(td_f32_to_e4m3(479), 0x7e);
    assert_int_equal(td_f32_to_e4m3(-480), 0xfe);
    assert_int_equal(td_f32_to_e4m3(FLT_MAX), 0x7e);
    assert_int_equal(td_f32_to_e4m3(-INFINITY), 0xfe);
    assert_int_equal(td_f32_to_e4m3(NAN) & 0x7f, 0x7f);
    assert_int_equal(td_f32_to_e4m3(FLT_TRUE_MIN), 0);
    assert_int_equal(td_f32_to_e4m3(-0.0f), 0x80);
}

static void test_e8m0_is_a_power_of_two(void **state)
{
    (void)state;
    for (int e = 0; e < 255; e++)
        assert_true(td_e8m0_to_f32((uint8_t)e) == ldexp(1, e - 127));
    assert_true(isnan(td_e8m0_to_f32(255)));
}

static void test_fp8_encodes_a_block_within_a_matrix(void **state)
{
    enum { ROWS = 3, COLS = 5, STRIDE = 7, OUT = 6 };
    float x[ROWS * STRIDE], scale;
    uint8_t q[ROWS * OUT];

    (void)state;
    for (int i = 0; i < ROWS * STRIDE; i++)
        x[i] = i % STRIDE < COLS ? (float)(i * i % 23 - 11) * 0.37f : 1e6f; /* beside the block */
    memset(q, 0xa5, sizeof q);
    scale = td_fp8_scale(x, STRIDE, ROWS, COLS);
    assert_true(scale == 11 * 0.37f / 448);
    td_fp8_encode(x, STRIDE, ROWS, COLS, scale, q, OUT);
    for (int r = 0; r < ROWS; r++) {
        for (int c = 0; c < COLS; c++) {
            float from = x[r * STRIDE + c], to = td_e4m3_to_f32(q[r * OUT + c]) * scale;

            /* Half a step of three bits, or of the subnormals. */
            assert_true(fabsf(to - from) <= fabsf(from) / 16 + scale * 0x1p-10f);
        }
        assert_int_equal(q[r * OUT + COLS], 0xa5);
    }
}

static void test_fp8_scale_of_nothing_divides(void **state)
{
    const float zero[4] = {0}, tiny[4] = {1e-42f, 0, -1e-42f, 0};
    uint8_t q[4];

    (void)state;
    assert_true(td_fp8_scale(zero, 4, 1, 4) >= FLT_MIN);
    td_fp8_encode(zero, 4, 1, 4, td_fp8_scale(zero, 4, 1, 4), q, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(q[i], 0);
    td_fp8_encode(tiny, 4, 1, 4, td_fp8_scale(tiny, 4, 1, 4), q, 4);
    assert_int_equal(q[0] & 0x78, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_e4m3_reads_every_value),
        cmocka_unit_test(test_e4m3_writes_the_nearest_ties_to_even),
        cmocka_unit_test(test_e4m3_saturates_and_keeps_nan),
        cmocka_unit_test(test_e8m0_is_a_power_of_two),
        cmocka_unit_test(test_fp8_encodes_a_block_within_a_matrix),
        cmocka_unit_test(test_fp8_scale_of_nothing_divides),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
