/* Scales of FP8 matrices: every granularity spread over rows and blocks of columns, and what does not fit. */
#include "shard/scales.h"
#include "tests/unit/check.h"

#include <math.h>
#include <string.h>

enum { ROWS = 300, COLS = 270, ROW_BLOCKS = 3, COL_BLOCKS = 3 };

static struct td_tensor view(const void *data, enum td_dtype dtype, int n_dims, size_t rows,
                             size_t cols)
{
    return (struct td_tensor){
        .data = data, .dtype = dtype, .n_dims = n_dims, .dim = {rows, cols, 1, 1}};
}

static const float *numbers(void)
{
    static float scale[ROWS + 1]; /* one more, so that a view can be unaligned */

    for (int i = 0; i <= ROWS; i++)
        scale[i] = (float)(i + 1);
    return scale;
}

static void test_scales_are_spread_as_their_shape_says(void **state)
{
    const float *scale = numbers();
    struct td_tensor w = view(NULL, TD_F8_E4M3, 2, ROWS, COLS);
    const struct {
        struct td_tensor scale;
        size_t per_row, per_block_row, per_block_col; /* what an index step adds to the value */
    } form[] = {{view(scale, TD_F32, 0, 1, 1), 0, 0, 0},
                {view(scale, TD_F32, 1, 1, 1), 0, 0, 0},
                {view(scale, TD_F32, 1, ROWS, 1), 1, 0, 0},
                {view(scale, TD_F32, 2, ROWS, 1), 1, 0, 0},
                {view(scale, TD_F32, 2, ROW_BLOCKS, COL_BLOCKS), 0, COL_BLOCKS, 1}};
    static const uint32_t range[][4] = {{0, ROWS, 0, COLS},
                                        {127, 2, 128, 128},
                                        {255, 45, 256, 14},
                                        {5, 1, 128, 142},
                                        {0, 0, 0, 128}};

    (void)state;
    for (size_t f = 0; f < sizeof form / sizeof form[0]; f++)
        for (size_t i = 0; i < sizeof range / sizeof range[0]; i++) {
            uint32_t row0 = range[i][0], n_rows = range[i][1], col0 = range[i][2],
                     n = (range[i][3] + 127) / 128;
            float out[ROWS * COL_BLOCKS + 1];

            out[n_rows * n] = -7.0f; /* nothing is written behind the end */
            assert_int_equal(td_scales_check(&w, &form[f].scale, "s", NULL), TD_OK);
            assert_int_equal(
                td_scales_spread(&w, &form[f].scale, row0, n_rows, col0, range[i][3], out, NULL),
                TD_OK);
            for (uint32_t r = 0; r < n_rows; r++)
                for (uint32_t c = 0; c < n; c++)
                    assert_true(out[r * n + c] ==
                                (float)(1 + form[f].per_row * (row0 + r) +
                                        form[f].per_block_row * ((row0 + r) / 128) +
                                        form[f].per_block_col * (col0 / 128 + c)));
            assert_true(out[n_rows * n] == -7.0f);
        }
}

static void test_scales_of_sixteen_bits_and_unaligned_are_read(void **state)
{
    static const unsigned char bf16[] = {0xff, 0x80, 0x3f, 0x00, 0x40}; /* 1, 2 from byte 1 on */
    static const unsigned char f16[] = {0xff, 0x00, 0x3c, 0x00, 0x40};
    struct td_tensor w = view(NULL, TD_F8_E4M3, 2, 2, 16);
    float out[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct td_tensor s = view((i ? f16 : bf16) + 1, i ? TD_F16 : TD_BF16, 2, 2, 1);

        assert_int_equal(td_scales_check(&w, &s, "s", NULL), TD_OK);
        assert_int_equal(td_scales_spread(&w, &s, 0, 2, 0, 16, out, NULL), TD_OK);
        assert_true(out[0] == 1.0f && out[1] == 2.0f);
    }
}

static void test_scales_refuses_scales_that_do_not_fit(void **state)
{
    const float *scale = numbers();
    struct td_tensor w = view(NULL, TD_F8_E4M3, 2, ROWS, COLS);
    const struct td_tensor bad[] = {
        view(scale, TD_F32, 1, ROWS - 1, 1), view(scale, TD_F32, 1, ROW_BLOCKS, 1),
        view(scale, TD_F32, 2, 1, ROWS),     view(scale, TD_F32, 2, ROW_BLOCKS, COL_BLOCKS - 1),
        view(scale, TD_F32, 2, 0, 1),        view(scale, TD_F32, 3, 1, 1)};
    struct td_tensor q8 = view(scale, TD_Q8_0, 1, 1, 1), one = view(scale, TD_F32, 1, 1, 1);
    float nan = NAN, out[1];
    struct td_err err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(td_scales_check(&w, &bad[i], "a.weight_scale", &err), TD_CORRUPT);
        assert_non_null(strstr(err.cause, "'a.weight_scale'"));
        assert_non_null(strstr(err.cause, "300 x 270"));
    }
    assert_int_equal(td_scales_check(&w, &q8, "a.weight_scale", &err), TD_UNSUPPORTED);
    one.data = &nan;
    assert_int_equal(td_scales_spread(&w, &one, 0, 1, 0, 128, out, &err), TD_CORRUPT);
    assert_non_null(strstr(err.cause, "expected a finite number"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scales_are_spread_as_their_shape_says),
        cmocka_unit_test(test_scales_of_sixteen_bits_and_unaligned_are_read),
        cmocka_unit_test(test_scales_refuses_scales_that_do_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
