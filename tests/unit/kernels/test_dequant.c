/* Rows between stored types and F32, against the bytes and floats that the peer's own code wrote. */
#include "kernels/quant/dequant.h"
#include "kernels/quant/half.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VECTORS TD_SHARED "/data/numerics/ggml-quant-vectors.json"

enum { N = 512 };

static char *text; /* the whole file, or NULL when it is absent */

static int load(void **state)
{
    FILE *f = fopen(VECTORS, "rb");
    long n;

    (void)state;
    if (!f)
        return 0;
    fseek(f, 0, SEEK_END);
    n = ftell(f);
    rewind(f);
    text = calloc(1, (size_t)n + 1);
    if (!text || fread(text, 1, (size_t)n, f) != (size_t)n)
        return -1;
    fclose(f);
    return 0;
}

static int unload(void **state)
{
    (void)state;
    free(text);
    return 0;
}

static void skip_without_vectors(void)
{
    if (!text) {
        print_message("SKIPPED: %s is absent\n", VECTORS);
        skip();
    }
}

/* The N numbers of the array that follows `key` at or after `from`. */
static void read_floats(const char *from, const char *key, float out[N])
{
    const char *p = strstr(from, key);
    char *end;

    assert_non_null(p);
    p = strchr(p, '[') + 1;
    for (int i = 0; i < N; i++) {
        out[i] = strtof(p, &end);
        assert_true(end > p);
        p = end + 1;
    }
    assert_int_equal(end[0], ']');
}

/* Stored bytes and their floats as the peer has them. */
static void read_vector(enum td_dtype type, unsigned char *stored, float out[N])
{
    size_t bytes = td_dtype_row_bytes(type, N);
    char key[64];
    const char *p;
    unsigned byte;

    snprintf(key, sizeof key, "\"name\":\"%s\"", td_dtype_info(type)->name);
    p = strstr(text, key);
    assert_non_null(p);
    read_floats(p, "\"dequantized\"", out);
    p = strstr(p, "\"q_hex\":\"");
    assert_non_null(p);
    p += strlen("\"q_hex\":\"");
    for (size_t i = 0; i < bytes; i++) {
        assert_int_equal(sscanf(p + 2 * i, "%2x", &byte), 1);
        stored[i] = (unsigned char)byte;
    }
    assert_int_equal(p[2 * bytes], '"');
}

static const enum td_dtype STORED[] = {TD_F16, TD_BF16, TD_Q8_0, TD_Q4_0};

static void test_dequant_gives_the_peer_floats_bit_for_bit(void **state)
{
    unsigned char stored[1 + N * 4];
    float expected[N], got[N];

    (void)state;
    skip_without_vectors();
    for (size_t t = 0; t < sizeof STORED / sizeof STORED[0]; t++) {
        read_vector(STORED[t], stored + 1, expected); /* + 1: sources may be unaligned */
        td_dequant_row(STORED[t], stored + 1, got, N);
        for (int i = 0; i < N; i++)
            if (memcmp(&got[i], &expected[i], sizeof got[i]) != 0)
                fail_msg("%s element %d is %a, the peer has %a", td_dtype_info(STORED[t])->name, i,
                         (double)got[i], (double)expected[i]);
    }
}

static void test_quant_gives_the_peer_bytes(void **state)
{
    unsigned char stored[N * 4], got[N * 4];
    float x[N], expected[N];

    (void)state;
    skip_without_vectors();
    read_floats(text, "\"x\":", x);
    for (size_t t = 0; t < sizeof STORED / sizeof STORED[0]; t++) {
        size_t bytes = td_dtype_row_bytes(STORED[t], N);

        read_vector(STORED[t], stored, expected);
        td_quant_row(STORED[t], x, got, N);
        for (size_t i = 0; i < bytes; i++)
            if (got[i] != stored[i])
                fail_msg("%s byte %zu is %d, the peer has %d", td_dtype_info(STORED[t])->name, i,
                         got[i], stored[i]);
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

    return cmocka_run_group_tests(tests, load, unload);
}
