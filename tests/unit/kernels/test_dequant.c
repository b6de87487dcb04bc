/* Rows between stored types and F32, against the bytes and floats that the peer's own code wrote. */
#include "kernels/base/half.h"
#include "kernels/quant/dequant.h"

#include "quant_vectors.h"

#include <math.h>

/* Every type that the peer has too. */
static const enum td_dtype STORED[] = {TD_F16,  TD_BF16, TD_Q8_0,   TD_Q4_0,   TD_Q4_1,
                                       TD_Q5_0, TD_Q5_1, TD_Q2_K,   TD_Q3_K,   TD_Q4_K,
                                       TD_Q5_K, TD_Q6_K, TD_IQ4_NL, TD_IQ4_XS, TD_MXFP4};
/* Those that follow the peer's rule to the last bit when they are written. */
static const enum td_dtype SAME_BYTES[] = {TD_F16,  TD_BF16, TD_Q8_0, TD_Q4_0,
                                           TD_Q4_1, TD_Q5_0, TD_Q5_1, TD_MXFP4};

static void test_dequant_gives_the_peer_floats_bit_for_bit(void **state)
{
    uint8_t stored[1 + N * 4];
    float expected[N], got[N];

    (void)state;
    vectors_skip_when_absent();
    for (size_t t = 0; t < sizeof STORED / sizeof STORED[0]; t++) {
        vectors_read(STORED[t], stored + 1, expected); /* + 1: sources may be unaligned */
        td_dequant_row(STORED[t], stored + 1, got, N);
        for (int i = 0; i < N; i++)
            if (memcmp(&got[i], &expected[i], sizeof got[i]) != 0)
                fail_msg("%s element %d is %a, the peer has %a", td_dtype_info(STORED[t])->name, i,
                         (double)got[i], (double)expected[i]);
    }
}

static void test_quant_gives_the_peer_bytes(void **state)
{
    uint8_t stored[N * 4], got[N * 4];
    float x[N], expected[N];

    (void)state;
    vectors_skip_when_absent();
    vectors_read_x(x);
    for (size_t t = 0; t < sizeof SAME_BYTES / sizeof SAME_BYTES[0]; t++) {
        size_t bytes = td_dtype_row_bytes(SAME_BYTES[t], N);

        vectors_read(SAME_BYTES[t], stored, expected);
        td_quant_row(SAME_BYTES[t], x, got, N);
        for (size_t i = 0; i < bytes; i++)
            if (got[i] != stored[i])
                fail_msg("%s byte %zu is %d, the peer has %d", td_dtype_info(SAME_BYTES[t])->name,
                         i, got[i], stored[i]);
    }
}

static void test_dequant_f32_is_a_copy(void **state)
{
    float x[32], y[32];

    (void)state;
    for (int i = 0; i < 32; i++)
        x[i] = (float)i * 0.1f - 1;
    td_quant_row(TD_F32, x, y, 32);
    assert_memory_equal(x, y, sizeof x);
    memset(y, 0, sizeof y);
    td_dequant_row(TD_F32, x, y, 32);
    assert_memory_equal(x, y, sizeof x);
}

static void test_quant_rounds_halves_to_even(void **state)
{
    /* Halfway between two neighbours: the even one is nearest by rule. */
    const float x[4] = {0x1.002p0f, 0x1.006p0f, 0x1.01p0f, 0x1.03p0f};
    uint16_t f16[4], bf16[4];

    (void)state;
    td_quant_row(TD_F16, x, f16, 4);
    assert_int_equal(f16[0], 0x3c00);
    assert_int_equal(f16[1], 0x3c02);
    td_quant_row(TD_BF16, x, bf16, 4);
    assert_int_equal(bf16[2], 0x3f80);
    assert_int_equal(bf16[3], 0x3f82);
}

static void test_quant_keeps_zero_and_tiny_blocks_zero(void **state)
{
    static const float magnitudes[] = {0, 1e-45f, 1e-39f, 1e-30f};
    unsigned char q[34];
    float x[32], y[32];

    (void)state;
    for (size_t m = 0; m < sizeof magnitudes / sizeof magnitudes[0]; m++)
        for (int type = TD_Q8_0; type <= TD_Q4_0; type++) {
            for (int i = 0; i < 32; i++)
                x[i] = i % 2 ? magnitudes[m] : -magnitudes[m];
            td_quant_row((enum td_dtype)type, x, q, 32);
            td_dequant_row((enum td_dtype)type, q, y, 32);
            for (int i = 0; i < 32; i++)
                assert_true(y[i] == 0);
        }
}

static void test_quant_error_is_within_half_a_step(void **state)
{
    uint32_t seed = 12345;
    unsigned char q[34];
    float x[32], y[32];

    (void)state;
    print_message("seed %u\n", seed);
    for (int round = 0; round < 1000; round++) {
        float largest = 0;

        for (int i = 0; i < 32; i++) {
            seed = seed * 1664525u + 1013904223u;
            x[i] = ((float)(seed >> 8) * 0x1p-23f - 1) * (float)(1 + round);
            largest = fmaxf(largest, fabsf(x[i]));
        }
        /* Half a step of the scale, and the scale's own rounding to 11 bits. */
        td_quant_row(TD_Q8_0, x, q, 32);
        td_dequant_row(TD_Q8_0, q, y, 32);
        for (int i = 0; i < 32; i++)
            assert_true(fabsf(y[i] - x[i]) <= largest * (0.51f / 127 + 0x1p-11f));
        /* One whole step where the opposite sign reaches + 8, which is stored as + 7. */
        td_quant_row(TD_Q4_0, x, q, 32);
        td_dequant_row(TD_Q4_0, q, y, 32);
        for (int i = 0; i < 32; i++)
            assert_true(fabsf(y[i] - x[i]) <= largest * (1.01f / 8 + 0x1p-11f));
    }
}

static void test_half_conversions_survive_the_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t bits = (uint16_t)h;
        float f16 = td_f16_to_f32(bits), bf16 = td_bf16_to_f32(bits);

        if (!isnan(f16))
            assert_int_equal(td_f32_to_f16(f16), bits);
        else
            assert_true(isnan(td_f16_to_f32(td_f32_to_f16(f16))));
        if (!isnan(bf16))
            assert_int_equal(td_f32_to_bf16(bf16), bits);
        else
            assert_true(isnan(td_bf16_to_f32(td_f32_to_bf16(bf16))));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dequant_gives_the_peer_floats_bit_for_bit),
        cmocka_unit_test(test_quant_gives_the_peer_bytes),
        cmocka_unit_test(test_dequant_f32_is_a_copy),
        cmocka_unit_test(test_quant_rounds_halves_to_even),
        cmocka_unit_test(test_quant_keeps_zero_and_tiny_blocks_zero),
        cmocka_unit_test(test_quant_error_is_within_half_a_step),
        cmocka_unit_test(test_half_conversions_survive_the_round_trip),
    };

    return cmocka_run_group_tests(tests, vectors_load, vectors_unload);
}
