/* Rows out of GPTQ's and AWQ's tensors, read one field at a time as their layouts say, for any part of a matrix. */
#include "shard/int4.h"

#include "kernels/base/half.h"
#include "kernels/quant/dequant.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 40, COLS = 192, GROUP = 64, RUNS = COLS / GROUP };

static uint32_t words[ROWS * COLS / 8], zeros[RUNS * ROWS / 8], runs[COLS];
static uint16_t scales[RUNS * ROWS];
static uint32_t seed;

static uint32_t next(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed ^ seed >> 15;
}

static struct td_int4 make(enum td_int4_form form, bool shuffled)
{
    const bool is_awq = form == TD_INT4_AWQ;
    struct td_int4_tensors t = {
        .words = {.data = words,
                  .n_dims = 2,
                  .dim = {is_awq ? COLS : COLS / 8, is_awq ? ROWS / 8 : ROWS}},
        .zeros = {.data = zeros, .n_dims = 2, .dim = {RUNS, ROWS / 8}},
        .scales = {.data = scales, .n_dims = 2, .dim = {RUNS, ROWS}},
        .runs = {.data = runs, .n_dims = shuffled ? 1 : 0, .dim = {COLS}},
        .word_type = "I32",
        .zero_type = "I32",
        .scale_type = "F16",
        .run_type = "I32"};
    struct td_int4 m;
    struct td_err err;

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        words[i] = next() * 2654435761u;
    for (size_t i = 0; i < sizeof zeros / sizeof zeros[0]; i++)
        zeros[i] = next() * 2654435761u;
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++)
        scales[i] = (uint16_t)(0x2000 + next() % 0x1000);
    for (uint32_t i = 0; i < COLS; i++)
        runs[i] = next() % RUNS;
    if (td_int4_open(&m, form, &t, ROWS, COLS, "m", &err))
        fail_msg("%s", err.cause);
    assert_int_equal(td_int4_type(&m), shuffled ? TD_F16 : TD_INT4);
    return m;
}

static uint32_t field(uint32_t word, uint32_t i)
{
    return word >> (4 * i) & 15;
}

/* One weight, as AutoGPTQ's and AutoAWQ's layouts have it. */
static float weight(enum td_int4_form form, bool shuffled, uint32_t row, uint32_t col)
{
    static const uint32_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    const uint32_t run = shuffled ? runs[col] : col / GROUP;
    uint32_t q, zero, word = zeros[run * (ROWS / 8) + row / 8], place = 0;
    float w;

    if (form == TD_INT4_AWQ) {
        while (order[place] != row % 8)
            place++;
        q = field(words[col * (ROWS / 8) + row / 8], place);
        zero = field(word, place);
    } else {
        q = field(words[col / 8 * ROWS + row], col % 8);
        zero = field(form == TD_INT4_GPTQ ? word + 0x11111111u : word, row % 8);
    }
    w = ((float)q - (float)zero) * td_f16_to_f32(scales[run * ROWS + row]);
    return shuffled ? td_f16_to_f32(td_f32_to_f16(w)) : w;
}

static void check_part(const struct td_int4 *m, enum td_int4_form form, uint32_t row0,
                       uint32_t n_rows, uint32_t col0, uint32_t n_cols)
{
    const bool shuffled = td_int4_type(m) == TD_F16;
    const size_t row_bytes = td_dtype_row_bytes(td_int4_type(m), n_cols);
    uint8_t *out = malloc(n_rows * row_bytes); /* of that size: a sanitizer sees what lies beyond */
    float got[COLS];

    td_int4_rows(m, row0, n_rows, col0, n_cols, out);
    for (uint32_t r = 0; r < n_rows; r++) {
        td_dequant_row(td_int4_type(m), out + r * row_bytes, got, n_cols);
        for (uint32_t c = 0; c < n_cols; c++)
            if (got[c] != weight(form, shuffled, row0 + r, col0 + c))
                fail_msg("row %u, column %u is %g, expected %g", row0 + r, col0 + c, (double)got[c],
                         (double)weight(form, shuffled, row0 + r, col0 + c));
    }
    free(out);
}

static void test_int4_rows_of_any_part_are_what_the_layouts_say(void **state)
{
    static const enum td_int4_form forms[] = {TD_INT4_GPTQ, TD_INT4_GPTQ_V2, TD_INT4_AWQ};

    (void)state;
    seed = 77;
    print_message("seed %u\n", seed);
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++)
        for (int shuffled = 0; shuffled < 2; shuffled++) {
            const struct td_int4 m = make(forms[f], shuffled);
            const uint32_t unit = shuffled ? 1 : 32;

            check_part(&m, forms[f], 0, ROWS, 0, COLS);
            for (int i = 0; i < 200; i++) {
                uint32_t row0 = next() % ROWS, col0 = next() % (COLS / unit);
                uint32_t n_rows = 1 + next() % (ROWS - row0),
                         n_cols = 1 + next() % (COLS / unit - col0);

                check_part(&m, forms[f], row0, n_rows, col0 * unit, n_cols * unit);
            }
        }
}

static void test_int4_scales_are_finite_and_their_weights_f16(void **state)
{
    struct td_int4 m;
    struct td_err err;

    (void)state;
    m = make(TD_INT4_GPTQ, false);
    assert_int_equal(td_int4_check_scales(&m, 0, ROWS, &err), TD_OK);
    scales[ROWS + 7] = 0x7bff; /* 65504: one row's, in runs that are in order no matter */
    assert_int_equal(td_int4_check_scales(&m, 0, ROWS, &err), TD_OK);
    scales[ROWS + 7] = 0x7c00;
    assert_int_equal(td_int4_check_scales(&m, 0, ROWS, &err), TD_CORRUPT);
    assert_non_null(strstr(err.cause, "scale 1, 7"));
    assert_int_equal(td_int4_check_scales(&m, 8, ROWS - 8, &err), TD_OK);
    m = make(TD_INT4_GPTQ, true);
    scales[ROWS + 7] = 0x7bff;
    assert_int_equal(td_int4_check_scales(&m, 0, ROWS, &err), TD_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_int4_rows_of_any_part_are_what_the_layouts_say),
        cmocka_unit_test(test_int4_scales_are_finite_and_their_weights_f16),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
