/* The quantisers: as close to their input as the peer's, and sane on input that nobody expects. */
#include "kernels/quant/dequant.h"
#include "quant_vectors.h"

#include <float.h>
#include <math.h>

enum { MAX_BLOCK = 256 };

/* What a block type promises for any block of its own: |error| <= step * largest magnitude + grain. The step is half the widest
 * gap between neighbours, or what is cut off at the end of a range without its opposite; then the rounding of the scales
 * and what a search for the least squared error may give away at the ends. The grain is what a scale of 2^-24, the smallest F16,
 * leaves: half a step where quotients are taken with the stored scale, else the largest integer times half of 2^-24. */
struct promise {
    enum td_dtype type;
    float step;
    float grain;
};

static const struct promise PROMISES[] = {
    {TD_Q8_0, 0.51f / 127 + 0x1p-11f, 127 * 0x1p-25f},
    {TD_Q4_0, 1.01f / 8, 8 * 0x1p-25f},
    {TD_Q4_1, 1.01f / 15 + 0x1p-10f, 16 * 0x1p-25f},
    {TD_Q5_0, 1.01f / 16, 16 * 0x1p-25f},
    {TD_Q5_1, 1.01f / 31 + 0x1p-10f, 32 * 0x1p-25f},
    {TD_INT4, 2.01f / 15 + 0x1p-10f, 16 * 0x1p-25f},
    {TD_Q2_K, 0.5f, 0x1p-24f},
    {TD_Q3_K, 0.3f, 0x1p-24f},
    {TD_Q4_K, 0.11f, 0x1p-24f},
    {TD_Q5_K, 0.06f, 0x1p-24f},
    {TD_Q6_K, 0.03f, 0x1p-24f},
    {TD_IQ4_NL, 0.14f, 12 * 0x1p-24f},
    {TD_IQ4_XS, 0.14f, 12 * 0x1p-24f},
    {TD_MXFP4, 0.25f, 0x1p-129f},
};

static uint32_t seed;

/* In [-1, 1). */
static float draw(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) * 0x1p-23f - 1;
}

/* Near enough to normal: the sum of twelve. */
static float draw_weight(void)
{
    float sum = 0;

    for (int i = 0; i < 12; i++)
        sum += draw();
    return sum / 2;
}

static void round_trip(enum td_dtype type, const float *x, float *y, size_t n)
{
    uint8_t q[4 * N];

    assert_true(n <= N);
    td_quant_row(type, x, q, n);
    td_dequant_row(type, q, y, n);
}

static double rmse(const float *x, const float *y, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sqrt(sum / (double)n);
}

static void test_quant_is_as_close_as_the_peer(void **state)
{
    float x[N], y[N], peer[N];
    uint8_t stored[4 * N];

    (void)state;
    vectors_skip_when_absent();
    vectors_read_x(x);
    for (size_t t = 0; t < sizeof PROMISES / sizeof PROMISES[0]; t++) {
        enum td_dtype type = PROMISES[t].type;
        double ours, theirs;

        if (type == TD_INT4) /* which the peer has not */
            continue;
        vectors_read(type, stored, peer);
        round_trip(type, x, y, N);
        ours = rmse(x, y, N);
        theirs = rmse(x, peer, N);
        print_message("%-7s RMSE %.5f, the peer's %.5f: ratio %.4f\n", td_dtype_info(type)->name,
                      ours, theirs, ours / theirs);
        if (ours > 1.02 * theirs)
            fail_msg("%s: RMSE %g, the peer's bytes have %g", td_dtype_info(type)->name, ours,
                     theirs);
    }
}

/* Weights of a type with more bits are closer, and each type is as close as its bits allow: the error of a uniform quantiser
 * over the spread of its run, sigma * spread / (levels * sqrt(12)), with a quarter on top. */
static void test_quant_of_normal_weights_is_close(void **state)
{
    static const struct {
        enum td_dtype type;
        double levels, spread;
    } cases[] = {{TD_Q2_K, 3, 3.53},  {TD_Q3_K, 7, 3.53},  {TD_Q4_K, 15, 4.14},
                 {TD_Q5_K, 31, 4.14}, {TD_Q6_K, 63, 3.95}, {TD_Q8_0, 254, 4.9},
                 {TD_Q4_1, 15, 4.14}, {TD_Q5_1, 31, 4.14}};
    float x[MAX_BLOCK], y[MAX_BLOCK];

    (void)state;
    seed = 4711;
    print_message("seed %u\n", seed);
    for (size_t t = 0; t < sizeof cases / sizeof cases[0]; t++) {
        double bound = 1.25 * cases[t].spread / cases[t].levels / sqrt(12.0), sum = 0, largest = 0;

        for (int round = 0; round < 200; round++) {
            for (int i = 0; i < MAX_BLOCK; i++)
                x[i] = draw_weight();
            round_trip(cases[t].type, x, y, MAX_BLOCK);
            sum += rmse(x, y, MAX_BLOCK) * rmse(x, y, MAX_BLOCK);
        }
        largest = sqrt(sum / 200);
        if (largest > bound)
            fail_msg("%s: RMSE %g of the weights' sigma, expected at most %g",
                     td_dtype_info(cases[t].type)->name, largest, bound);
    }
}

static void fill(int pattern, size_t block, float *x)
{
    for (size_t i = 0; i < block; i++)
        switch (pattern) {
        case 0: /* one value far above the others */
            x[i] = i == 7 ? 1000 : draw();
            break;
        case 1: /* the same, below */
            x[i] = i == 31 ? -1000 : draw();
            break;
        case 2: /* all equal */
            x[i] = 3.7f;
            break;
        case 3:
            x[i] = -3.7f;
            break;
        case 4: /* negative only, far from zero */
            x[i] = -5 - 0.1f * draw();
            break;
        case 5: /* positive only, far from zero */
            x[i] = 5 + 0.1f * draw();
            break;
        case 6: /* two values */
            x[i] = draw() < 0 ? -0.02f : 0.02f;
            break;
        case 7: /* sparse */
            x[i] = i % 17 == 3 ? draw() : 0;
            break;
        case 8: /* near the smallest F16 */
            x[i] = draw() * 0x1p-20f;
            break;
        case 9: /* normal F32s far below every F16 */
            x[i] = draw() * 0x1p-100f;
            break;
        case 10: /* subnormal F32s */
            x[i] = draw() * 0x1p-127f;
            break;
        case 11: /* large, but with scales that F16 holds */
            x[i] = draw() * 65504;
            break;
        case 12: /* one run of zeros among others */
            x[i] = i < 16 ? 0 : draw_weight();
            break;
        default:
            x[i] = draw_weight() * 0.02f;
        }
}

static void test_quant_keeps_its_promise_on_hostile_blocks(void **state)
{
    float x[MAX_BLOCK], y[MAX_BLOCK];

    (void)state;
    seed = 99;
    print_message("seed %u\n", seed);
    for (size_t t = 0; t < sizeof PROMISES / sizeof PROMISES[0]; t++) {
        const struct promise *p = &PROMISES[t];
        size_t block = td_dtype_info(p->type)->block_elems;

        for (int round = 0; round < 14 * 50; round++) {
            float largest = 0;

            fill(round % 14, block, x);
            for (size_t i = 0; i < block; i++)
                largest = fmaxf(largest, fabsf(x[i]));
            round_trip(p->type, x, y, block);
            for (size_t i = 0; i < block; i++)
                if (!(fabsf(y[i] - x[i]) <= p->step * largest + p->grain))
                    fail_msg("%s pattern %d column %zu: %g became %g, largest is %g",
                             td_dtype_info(p->type)->name, round % 14, i, (double)x[i],
                             (double)y[i], (double)largest);
        }
    }
}

static void test_quant_of_zeros_is_zeros(void **state)
{
    float x[MAX_BLOCK] = {0}, y[MAX_BLOCK];

    (void)state;
    for (int type = 0; type < TD_N_DTYPES; type++) {
        round_trip((enum td_dtype)type, x, y, MAX_BLOCK);
        for (int i = 0; i < MAX_BLOCK; i++)
            assert_true(y[i] == 0);
    }
}

static void test_quant_mxfp4_rounds_ties_to_the_even_code(void **state)
{
    /* The largest magnitude, 7, asks for a scale of 1 and is cut to 6. */
    static const float from[9] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5, 7, -0.2f};
    static const float to[9] = {0, 1, 1, 2, 2, 4, 4, 6, 0};
    float x[32] = {0}, y[32];

    (void)state;
    for (int i = 0; i < 9; i++) {
        x[i] = from[i];
        x[16 + i] = -from[i];
    }
    round_trip(TD_MXFP4, x, y, 32);
    for (int i = 0; i < 9; i++) {
        assert_true(y[i] == to[i] && y[16 + i] == -to[i]);
        assert_true(to[i] != 0 || !signbit(y[i]));
    }
}

/* Where all scales are at their end the few of the other sign may become 0. */
static void test_quant_saturates_and_never_stores_infinity(void **state)
{
    static const float huge[] = {1e9f, 1e30f, FLT_MAX, INFINITY};
    float x[MAX_BLOCK], y[MAX_BLOCK];

    (void)state;
    for (size_t t = 0; t < sizeof PROMISES / sizeof PROMISES[0]; t++)
        for (size_t h = 0; h < sizeof huge / sizeof huge[0]; h++)
            for (int sign = -1; sign <= 1; sign += 2) {
                for (int i = 0; i < MAX_BLOCK; i++)
                    x[i] = i % 5 == 2 ? -(float)sign * 0.5f * huge[h] : (float)sign * huge[h];
                round_trip(PROMISES[t].type, x, y, MAX_BLOCK);
                for (int i = 0; i < MAX_BLOCK; i++)
                    if (!isfinite(y[i]) || y[i] * x[i] < 0 ||
                        (i % 5 != 2 && !(fabsf(y[i]) > 20000)))
                        fail_msg("%s: %g became %g", td_dtype_info(PROMISES[t].type)->name,
                                 (double)x[i], (double)y[i]);
            }
}

static void test_quant_stores_nan_as_a_small_value(void **state)
{
    float x[MAX_BLOCK], y[MAX_BLOCK];

    (void)state;
    for (size_t t = 0; t < sizeof PROMISES / sizeof PROMISES[0]; t++) {
        for (int i = 0; i < MAX_BLOCK; i++)
            x[i] = i % 9 == 4 ? NAN : i % 2 ? 1.0f : -1.0f;
        round_trip(PROMISES[t].type, x, y, MAX_BLOCK);
        for (int i = 0; i < MAX_BLOCK; i++)
            if (!(fabsf(y[i] - (i % 9 == 4 ? 0 : x[i])) <= PROMISES[t].step))
                fail_msg("%s column %d: %g became %g", td_dtype_info(PROMISES[t].type)->name, i,
                         (double)x[i], (double)y[i]);
    }
}

/* Whatever 32 bits a float may be: nothing overflows on the way (the sanitizers look), and what is read back is finite. */
static void test_quant_takes_any_bits(void **state)
{
    float x[MAX_BLOCK], y[MAX_BLOCK];

    (void)state;
    seed = 2024;
    print_message("seed %u\n", seed);
    for (size_t t = 0; t < sizeof PROMISES / sizeof PROMISES[0]; t++)
        for (int round = 0; round < 400; round++) {
            for (int i = 0; i < MAX_BLOCK; i++) {
                uint32_t bits = seed = seed * 1664525u + 1013904223u;

                bits ^= bits >> 15;
                memcpy(&x[i], &bits, sizeof bits);
                /* In every other round one exponent for all, so that no column drowns the others. */
                if (round % 2)
                    x[i] = ldexpf(draw(), round - 200);
            }
            round_trip(PROMISES[t].type, x, y, MAX_BLOCK);
            for (int i = 0; i < MAX_BLOCK; i++)
                if (!isfinite(y[i]))
                    fail_msg("%s round %d column %d: %a became %g",
                             td_dtype_info(PROMISES[t].type)->name, round, i, (double)x[i],
                             (double)y[i]);
        }
}

/* Small weights lose only what F16 scales lose: a block of 1e-4 is not a block of zeros. */
static void test_quant_keeps_weights_whose_scale_is_subnormal(void **state)
{
    static const enum td_dtype types[] = {TD_Q2_K, TD_Q3_K, TD_Q4_K, TD_Q5_K, TD_Q6_K, TD_IQ4_XS};
    float x[MAX_BLOCK], y[MAX_BLOCK];

    (void)state;
    seed = 5;
    print_message("seed %u\n", seed);
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        for (int i = 0; i < MAX_BLOCK; i++)
            x[i] = draw_weight() * 3e-5f;
        round_trip(types[t], x, y, MAX_BLOCK);
        if (!(rmse(x, y, MAX_BLOCK) < 0.35 * 3e-5))
            fail_msg("%s: RMSE %g of weights of 3e-5", td_dtype_info(types[t])->name,
                     rmse(x, y, MAX_BLOCK));
    }
}

/* Any thread may take any block: a row's bytes are its blocks' bytes, wherever they lie. */
static void test_quant_takes_every_block_by_itself(void **state)
{
    float x[2 * MAX_BLOCK];
    uint8_t row[8 * MAX_BLOCK], one[1 + 4 * MAX_BLOCK];

    (void)state;
    seed = 31;
    print_message("seed %u\n", seed);
    for (int i = 0; i < 2 * MAX_BLOCK; i++)
        x[i] = draw_weight();
    for (int type = 0; type < TD_N_DTYPES; type++) {
        const struct td_dtype_info *info = td_dtype_info((enum td_dtype)type);

        td_quant_row((enum td_dtype)type, x, row, 2 * MAX_BLOCK);
        for (size_t b = 0; b < 2 * MAX_BLOCK / info->block_elems; b++) {
            memset(one, 0xa5, sizeof one);
            td_quant_row((enum td_dtype)type, x + b * info->block_elems, one + 1,
                         info->block_elems);
            assert_memory_equal(one + 1, row + b * info->block_bytes, info->block_bytes);
            assert_int_equal(one[1 + info->block_bytes], 0xa5);
        }
    }
}

/* Quantising what was read back changes little: nothing creeps when a file is quantised twice. */
static void test_quant_of_stored_values_stays_close(void **state)
{
    float x[MAX_BLOCK], y[MAX_BLOCK], z[MAX_BLOCK];

    (void)state;
    seed = 77;
    print_message("seed %u\n", seed);
    for (size_t t = 0; t < sizeof PROMISES / sizeof PROMISES[0]; t++)
        for (int round = 0; round < 50; round++) {
            for (int i = 0; i < MAX_BLOCK; i++)
                x[i] = draw_weight();
            round_trip(PROMISES[t].type, x, y, MAX_BLOCK);
            round_trip(PROMISES[t].type, y, z, MAX_BLOCK);
            if (rmse(y, z, MAX_BLOCK) > rmse(x, y, MAX_BLOCK))
                fail_msg("%s round %d: the second loss is %g, the first was %g",
                         td_dtype_info(PROMISES[t].type)->name, round, rmse(y, z, MAX_BLOCK),
                         rmse(x, y, MAX_BLOCK));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quant_is_as_close_as_the_peer),
        cmocka_unit_test(test_quant_of_normal_weights_is_close),
        cmocka_unit_test(test_quant_keeps_its_promise_on_hostile_blocks),
        cmocka_unit_test(test_quant_of_zeros_is_zeros),
        cmocka_unit_test(test_quant_mxfp4_rounds_ties_to_the_even_code),
        cmocka_unit_test(test_quant_saturates_and_never_stores_infinity),
        cmocka_unit_test(test_quant_stores_nan_as_a_small_value),
        cmocka_unit_test(test_quant_takes_any_bits),
        cmocka_unit_test(test_quant_keeps_weights_whose_scale_is_subnormal),
        cmocka_unit_test(test_quant_takes_every_block_by_itself),
        cmocka_unit_test(test_quant_of_stored_values_stays_close),
    };

    return cmocka_run_group_tests(tests, vectors_load, vectors_unload);
}
