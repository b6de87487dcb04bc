#include "kernels/quant/dequant.h"

#include "kernels/quant/half.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 32, Q8_0_BYTES = 34, Q4_0_BYTES = 18 };

static uint16_t load16(const unsigned char *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof v);
    return v;
}

static void store16(unsigned char *p, uint16_t v)
{
    memcpy(p, &v, sizeof v);
}

/* The products are exact in F32: 11 by 8 significant bits. */
static void dequant_q8_0(const unsigned char *block, float *dst)
{
    float scale = td_f16_to_f32(load16(block));

    for (int i = 0; i < BLOCK; i++)
        dst[i] = (float)(int8_t)block[2 + i] * scale;
}

/* The low nibbles are the first half of the block. */
static void dequant_q4_0(const unsigned char *block, float *dst)
{
    float scale = td_f16_to_f32(load16(block));

    for (int i = 0; i < BLOCK / 2; i++) {
        dst[i] = (float)((block[2 + i] & 15) - 8) * scale;
        dst[i + BLOCK / 2] = (float)((block[2 + i] >> 4) - 8) * scale;
    }
}

void td_dequant_row(enum td_dtype type, const void *src, float *dst, size_t n_elems)
{
    const unsigned char *p = src;

    switch (type) {
    case TD_F32:
        memcpy(dst, src, n_elems * sizeof *dst);
        return;
    case TD_F16:
        for (size_t i = 0; i < n_elems; i++)
            dst[i] = td_f16_to_f32(load16(p + 2 * i));
        return;
    case TD_BF16:
        for (size_t i = 0; i < n_elems; i++)
            dst[i] = td_bf16_to_f32(load16(p + 2 * i));
        return;
    case TD_Q8_0:
        for (size_t i = 0; i < n_elems; i += BLOCK, p += Q8_0_BYTES)
            dequant_q8_0(p, dst + i);
        return;
    case TD_Q4_0:
        for (size_t i = 0; i < n_elems; i += BLOCK, p += Q4_0_BYTES)
            dequant_q4_0(p, dst + i);
        return;
    default:
        return;
    }
}

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

/* The quotient is taken with the F32 scale, before it is rounded to F16. */
static void quant_q8_0(const float *src, unsigned char *block)
{
    float scale = fabsf(extreme(src)) / 127.0f;
    float inverse = inverse_of(scale);

    store16(block, td_f32_to_f16(scale));
    for (int i = 0; i < BLOCK; i++)
        block[2 + i] = (unsigned char)(int8_t)roundf(src[i] * inverse);
}

static unsigned nibble(float x)
{
    int q = (int)(x + 8.5f);

    return (unsigned)(q > 15 ? 15 : q);
}

static void quant_q4_0(const float *src, unsigned char *block)
{
    float scale = extreme(src) / -8.0f;
    float inverse = inverse_of(scale);

    store16(block, td_f32_to_f16(scale));
    for (int i = 0; i < BLOCK / 2; i++)
        block[2 + i] =
            (unsigned char)(nibble(src[i] * inverse) | nibble(src[i + BLOCK / 2] * inverse) << 4);
}

void td_quant_row(enum td_dtype type, const float *src, void *dst, size_t n_elems)
{
    unsigned char *p = dst;

    switch (type) {
    case TD_F32:
        memcpy(dst, src, n_elems * sizeof *src);
        return;
    case TD_F16:
        for (size_t i = 0; i < n_elems; i++)
            store16(p + 2 * i, td_f32_to_f16(src[i]));
        return;
    case TD_BF16:
        for (size_t i = 0; i < n_elems; i++)
            store16(p + 2 * i, td_f32_to_bf16(src[i]));
        return;
    case TD_Q8_0:
        for (size_t i = 0; i < n_elems; i += BLOCK, p += Q8_0_BYTES)
            quant_q8_0(src + i, p);
        return;
    case TD_Q4_0:
        for (size_t i = 0; i < n_elems; i += BLOCK, p += Q4_0_BYTES)
            quant_q4_0(src + i, p);
        return;
    default:
        return;
    }
}
