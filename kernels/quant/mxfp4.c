/* MXFP4 (OCP MX 1.0): 32 columns of E2M1 under one E8M0 scale. The low nibbles are the first half of the block. */
#include "kernels/quant/codec.h"
#include "kernels/quant/fp8.h"

#include <float.h>

enum { BLOCK = 32 };

/* Twice the magnitudes, so that they are integers; zero has no sign. */
static const int8_t TWICE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Exact wherever F32 holds the value: half a scale of 2^-127 is subnormal, and 6 * 2^126 and above are infinite. */
static void decode(const uint8_t *block, float *dst)
{
    float half = td_e8m0_to_f32(block[0]) * 0.5f;

    for (int i = 0; i < BLOCK / 2; i++) {
        dst[i] = (float)TWICE[block[1 + i] & 15] * half;
        dst[i + BLOCK / 2] = (float)TWICE[block[1 + i] >> 4] * half;
    }
}

/* To nearest, ties to the even code, saturating at 6. */
static unsigned e2m1(float x)
{
    float a = fabsf(x);
    unsigned code = (unsigned)((a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) +
                               (a > 2.5f) + (a >= 3.5f) + (a > 5.0f));

    return code && x < 0 ? code | 8 : code;
}

/* The scale is that power of two which puts the largest magnitude's exponent at E2M1's largest, 2 (MX 1.0, section 6.3). */
static void encode(const float *src, uint8_t *block)
{
    float largest = 0, inverse;
    int e;

    for (int i = 0; i < BLOCK; i++)
        largest = fabsf(src[i]) > largest ? fabsf(src[i]) : largest;
    e = (int)(td_half_f32_bits(largest) >> 23) - 2;
    e = e > 0 ? e : 0;
    block[0] = (uint8_t)e;
    inverse = td_e8m0_to_f32((uint8_t)(254 - e));
    for (int i = 0; i < BLOCK / 2; i++)
        block[1 + i] = (uint8_t)(e2m1(src[i] * inverse) | e2m1(src[i + BLOCK / 2] * inverse) << 4);
}

const struct td_codec td_mxfp4 = {decode, encode, FLT_MAX};
