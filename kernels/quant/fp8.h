/* The 8-bit floats of the Open Compute Project: E4M3 (OFP8, 2023: bias 7, no infinity, largest 448) and E8M0, the shared
 * exponent of the MX formats (MX 1.0, 2023: 2^(e - 127), 255 is NaN). Stateless, any thread. */
#ifndef TD_KERNELS_QUANT_FP8_H
#define TD_KERNELS_QUANT_FP8_H

#include "kernels/base/half.h"

#include <stddef.h>
#include <stdint.h>

#define TD_FP8_E4M3_MAX 448.0f

static inline float td_e4m3_to_f32(uint8_t v)
{
    uint32_t sign = (uint32_t)(v & 0x80u) << 24;

    if ((v & 0x7fu) == 0x7fu)
        return td_half_bits_f32(sign | 0x7fc00000u);
    /* No F32 below its normal range on the way: the products of BF16 and F8 are taken with those flushed. */
    if ((v & 0x78u) == 0)
        return td_half_bits_f32(sign | td_half_f32_bits((float)(v & 7u) * 0x1p-9f));
    return td_half_bits_f32(sign | (((uint32_t)(v & 0x7fu) << 20) + (120u << 23)));
}

/* To nearest, ties to even. What lies beyond 448, infinity too, becomes 448 of its sign; NaN stays NaN. */
static inline uint8_t td_f32_to_e4m3(float f)
{
    uint32_t u = td_half_f32_bits(f);
    uint32_t sign = (u >> 24) & 0x80u;
    uint32_t a = u & 0x7fffffffu;

    if (a > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (a >= 0x43e00000u)
        return (uint8_t)(sign | 0x7eu);
    if (a < 0x3c800000u) { /* below 2^-6: a multiple of 2^-9, rounded by the adder */
        float r = td_half_bits_f32(a) + 0x1p14f;

        return (uint8_t)(sign | (td_half_f32_bits(r) - 0x46800000u));
    }
    return (uint8_t)(sign | ((a + 0x7ffffu + ((a >> 20) & 1u) - 0x3c000000u) >> 20));
}

/* 2^(e - 127). */
static inline float td_e8m0_to_f32(uint8_t e)
{
    if (e == 255)
        return td_half_bits_f32(0x7fc00000u);
    return td_half_bits_f32(e ? (uint32_t)e << 23 : 0x400000u);
}

/* A scale for a block of a matrix [n_rows x n_cols], whose rows lie `stride` values apart: the largest magnitude / 448, and
 * the smallest normal F32 where that is less. Finite input. */
float td_fp8_scale(const float *src, size_t stride, size_t n_rows, size_t n_cols);

/* dst = src / scale, rounded as td_f32_to_e4m3 does, for a block as above; the rows of `dst` lie `dst_stride` bytes apart. */
void td_fp8_encode(const float *src, size_t stride, size_t n_rows, size_t n_cols, float scale,
                   uint8_t *dst, size_t dst_stride);

#endif
