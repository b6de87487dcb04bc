/* What the files of stored types share: the two functions of a type, and the fields that blocks are made of.
 * Private to kernels/quant; stateless, any thread. Blocks are little-endian and may be unaligned. */
#ifndef TD_KERNELS_QUANT_CODEC_H
#define TD_KERNELS_QUANT_CODEC_H

#include "kernels/base/half.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Values above are beyond what any block with an F16 scale can hold (65504 * 128 * 32 < 2^28); below it no sum of the
 * quantisers overflows. */
#define TD_CODEC_LIMIT 0x1p28f

struct td_codec {
    /* One block into its columns; exact. */
    void (*decode)(const uint8_t *block, float *dst);
    /* The reverse. Input is finite and within +-limit: td_quant_row sees to it. */
    void (*encode)(const float *src, uint8_t *block);
    float limit;
};

extern const struct td_codec td_blocks32_q8_0, td_blocks32_q4_0, td_blocks32_q4_1, td_blocks32_q5_0,
    td_blocks32_q5_1, td_blocks32_int4;
extern const struct td_codec td_kquant_q2_k, td_kquant_q3_k, td_kquant_q4_k, td_kquant_q5_k,
    td_kquant_q6_k;
extern const struct td_codec td_iq4_nl, td_iq4_xs;
extern const struct td_codec td_mxfp4;

static inline void td_codec_store16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static inline float td_codec_get_f16(const uint8_t *p)
{
    return td_f16_to_f32(td_half_load16(p));
}

/* Stores a scale as F16, never as infinity, and gives back what was stored. Below 2^-14, where F16 has few bits, it is
 * rounded away from zero: integers can make up for a scale that is too large, not for one that is too small. */
static inline float td_codec_put_scale(uint8_t *p, float scale)
{
    uint16_t h = td_f32_to_f16(scale);
    float stored = td_f16_to_f32(h);

    if (fabsf(stored) > 65504)
        h--;
    else if (fabsf(stored) < 0x1p-14f && fabsf(stored) < fabsf(scale))
        h++;
    td_codec_store16(p, h);
    return td_f16_to_f32(h);
}

/* The integer nearest to x / unit, ties to even, between lo and hi; 0 for a unit of 0. */
static inline int td_codec_units(float x, float unit, int lo, int hi)
{
    float q = unit != 0 ? x / unit : 0.0f;

    return q <= (float)lo ? lo : q >= (float)hi ? hi : (int)rintf(q);
}

#endif
