/* The types with one F16 scale for 32 columns: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, INT4.
 * In all of them the first half of the columns lies in the low nibbles and the second half in the high ones. */
#include "kernels/quant/codec.h"

#include <float.h>

enum { BLOCK = 32, HALF = 16 };

/* The element of largest magnitude, with its sign; the first of equals. */
static float extreme(const float *src)
{
    float largest = 0;

    for (int i = 0; i < BLOCK; i++)
        if (fabsf(src[i]) > fabsf(largest))
            largest = src[i];
    return largest;
}

/* A scale too small for its inverse is far below the smallest F16: the block is stored as zeros. */
static float inverse_of(float scale)
{
    return fabsf(scale) >= FLT_MIN ? 1.0f / scale : 0.0f;
}

/* Stored as F16, or the largest F16 where that is too small. Gives back what quotients are taken with: the scale before it
 * was rounded. */
static float put_scale(uint8_t *p, float scale)
{
    scale = fabsf(scale) > 65504 ? copysignf(65504, scale) : scale;
    td_codec_store16(p, td_f32_to_f16(scale));
    return scale;
}

/* x rounded down, x > -1, and at most `top`. */
static uint32_t cut(float x, uint32_t top)
{
    return x >= (float)top ? top : (uint32_t)x;
}

static void get_nibbles(const uint8_t *p, uint32_t q[BLOCK])
{
    for (int i = 0; i < HALF; i++) {
        q[i] = p[i] & 15;
        q[i + HALF] = p[i] >> 4;
    }
}

static void put_nibbles(uint8_t *p, const uint32_t q[BLOCK])
{
    for (int i = 0; i < HALF; i++)
        p[i] = (uint8_t)((q[i] & 15) | (q[i + HALF] & 15) << 4);
}

/* The fifth bits, one per column from the lowest, and then the nibbles. */
static void get_fives(const uint8_t *p, uint32_t q[BLOCK])
{
    get_nibbles(p + 4, q);
    for (int i = 0; i < BLOCK; i++)
        q[i] |= (uint32_t)(p[i / 8] >> i % 8 & 1) << 4;
}

static void put_fives(uint8_t *p, const uint32_t q[BLOCK])
{
    memset(p, 0, 4);
    for (int i = 0; i < BLOCK; i++)
        p[i / 8] |= (uint8_t)(q[i] >> 4 << i % 8);
    put_nibbles(p + 4, q);
}

/* The products of all six are exact in F32: 11 by at most 8 significant bits. */
static void decode_q8_0(const uint8_t *block, float *dst)
{
    float scale = td_codec_get_f16(block);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = (float)(int8_t)block[2 + i] * scale;
}

static void encode_q8_0(const float *src, uint8_t *block)
{
    float inverse = inverse_of(put_scale(block, fabsf(extreme(src)) / 127.0f));

    for (int i = 0; i < BLOCK; i++) {
        float q = roundf(src[i] * inverse);

        block[2 + i] = (uint8_t)(int8_t)(fabsf(q) > 127 ? copysignf(127, q) : q);
    }
}

/* Weight = (q - zero) * scale, the value of largest magnitude being stored as q = 0. */
static void scaled(const uint32_t q[BLOCK], float zero, float scale, float *dst)
{
    for (int i = 0; i < BLOCK; i++)
        dst[i] = ((float)q[i] - zero) * scale;
}

static void cut_scaled(const float *src, uint32_t zero, uint8_t *scale, uint32_t q[BLOCK])
{
    float inverse = inverse_of(put_scale(scale, extreme(src) / -(float)zero));

    for (int i = 0; i < BLOCK; i++) {
        float x = src[i] * inverse + ((float)zero + 0.5f);

        q[i] = x > 0 ? cut(x, 2 * zero - 1) : 0;
    }
}

static void decode_q4_0(const uint8_t *block, float *dst)
{
    uint32_t q[BLOCK];

    get_nibbles(block + 2, q);
    scaled(q, 8, td_codec_get_f16(block), dst);
}

static void encode_q4_0(const float *src, uint8_t *block)
{
    uint32_t q[BLOCK];

    cut_scaled(src, 8, block, q);
    put_nibbles(block + 2, q);
}

static void decode_q5_0(const uint8_t *block, float *dst)
{
    uint32_t q[BLOCK];

    get_fives(block + 2, q);
    scaled(q, 16, td_codec_get_f16(block), dst);
}

static void encode_q5_0(const float *src, uint8_t *block)
{
    uint32_t q[BLOCK];

    cut_scaled(src, 16, block, q);
    put_fives(block + 2, q);
}

/* Weight = q * scale + minimum, the product being exact. */
static void raised(const uint32_t q[BLOCK], const uint8_t *scale_min, float *dst)
{
    float scale = td_codec_get_f16(scale_min), min = td_codec_get_f16(scale_min + 2);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = (float)q[i] * scale + min;
}

static void cut_raised(const float *src, uint32_t top, uint8_t *scale_min, uint32_t q[BLOCK])
{
    float lo = src[0], hi = src[0], inverse;

    for (int i = 1; i < BLOCK; i++) {
        lo = src[i] < lo ? src[i] : lo;
        hi = src[i] > hi ? src[i] : hi;
    }
    inverse = inverse_of(put_scale(scale_min, (hi - lo) / (float)top));
    lo = put_scale(scale_min + 2, lo);
    for (int i = 0; i < BLOCK; i++) {
        float x = (src[i] - lo) * inverse + 0.5f;

        q[i] = x > 0 ? cut(x, top) : 0;
    }
}

static void decode_q4_1(const uint8_t *block, float *dst)
{
    uint32_t q[BLOCK];

    get_nibbles(block + 4, q);
    raised(q, block, dst);
}

static void encode_q4_1(const float *src, uint8_t *block)
{
    uint32_t q[BLOCK];

    cut_raised(src, 15, block, q);
    put_nibbles(block + 4, q);
}

static void decode_q5_1(const uint8_t *block, float *dst)
{
    uint32_t q[BLOCK];

    get_fives(block + 4, q);
    raised(q, block, dst);
}

static void encode_q5_1(const float *src, uint8_t *block)
{
    uint32_t q[BLOCK];

    cut_raised(src, 31, block, q);
    put_fives(block + 4, q);
}

static void decode_int4(const uint8_t *block, float *dst)
{
    uint32_t q[BLOCK];

    get_nibbles(block + 3, q);
    scaled(q, block[2] & 15, td_codec_get_f16(block), dst);
}

/* A value of 0 stays one: the range holds it. */
static void encode_int4(const float *src, uint8_t *block)
{
    float lo = 0, hi = 0, inverse;
    uint32_t q[BLOCK];

    for (int i = 0; i < BLOCK; i++) {
        lo = src[i] < lo ? src[i] : lo;
        hi = src[i] > hi ? src[i] : hi;
    }
    inverse = inverse_of(put_scale(block, (hi - lo) / 15.0f));
    block[2] = hi > lo ? (uint8_t)cut(-lo / (hi - lo) * 15.0f + 0.5f, 15) : 0;
    for (int i = 0; i < BLOCK; i++) {
        float x = src[i] * inverse + ((float)block[2] + 0.5f);

        q[i] = x > 0 ? cut(x, 15) : 0;
    }
    put_nibbles(block + 3, q);
}

const struct td_codec td_blocks32_q8_0 = {decode_q8_0, encode_q8_0, TD_CODEC_LIMIT};
const struct td_codec td_blocks32_q4_0 = {decode_q4_0, encode_q4_0, TD_CODEC_LIMIT};
const struct td_codec td_blocks32_q4_1 = {decode_q4_1, encode_q4_1, TD_CODEC_LIMIT};
const struct td_codec td_blocks32_q5_0 = {decode_q5_0, encode_q5_0, TD_CODEC_LIMIT};
const struct td_codec td_blocks32_q5_1 = {decode_q5_1, encode_q5_1, TD_CODEC_LIMIT};
const struct td_codec td_blocks32_int4 = {decode_int4, encode_int4, TD_CODEC_LIMIT};
