#ifndef TD_KERNELS_CPU_VEC_BODY_H
#define TD_KERNELS_CPU_VEC_BODY_H

/* The vector bodies, written once over a vector of 16 floats and included by one file per instruction set, which defines
 * the vector before (vf, vi and the v*_ functions, TD_TILE_FLOAT, TD_TILE_INT, TD_ISA). The order of every sum is ref.c's:
 * lanes are output rows (matmul) or the 16 lanes of a fold (dot products, norms), so the bits are ref.c's too. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifndef TD_PLAIN_SIGNED /* 1: weights and activations for units that take signed weights */
#define TD_PLAIN_SIGNED 0
#endif

INLINE vf v_exp(vf x)
{
    vf n, r, p;

    x = vf_max(vf_set1(TD_EXP_LO), x);
    x = vf_min(vf_set1(TD_EXP_HI), x);
    n = vf_round(vf_mul(x, vf_set1(TD_LOG2E)));
    r = vf_fma(n, vf_set1(-TD_LN2_HI), x);
    r = vf_fma(n, vf_set1(-TD_LN2_LO), r);
    p = vf_fma(vf_set1(TD_EXP_C7), r, vf_set1(TD_EXP_C6));
    p = vf_fma(p, r, vf_set1(TD_EXP_C5));
    p = vf_fma(p, r, vf_set1(TD_EXP_C4));
    p = vf_fma(p, r, vf_set1(TD_EXP_C3));
    p = vf_fma(p, r, vf_set1(TD_EXP_C2));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_scale(p, n);
}

/* The BF16 pairs of a word as F32: the low one is the even column. */
INLINE vf vf_even(vi w)
{
    return vf_cast(vi_shl(w, 16));
}

INLINE vf vf_odd(vi w)
{
    return vf_cast(vi_and(w, vi_set1((int32_t)0xffff0000)));
}

/* The reverse, for values that are BF16 already. */
INLINE vi vi_pair(vf even, vf odd)
{
    return vi_or(vi_shr(vi_cast(even), 16), vi_and(vi_cast(odd), vi_set1((int32_t)0xffff0000)));
}

/* To the nearest BF16, ties to even; NaN stays one. */
INLINE vf vf_round_bf16(vf x)
{
    vi u = vi_cast(x), even = vi_and(vi_shr(u, 16), vi_set1(1));
    vi near = vi_add(u, vi_add(even, vi_set1(0x7fff))), high = vi_set1((int32_t)0xffff0000);
    vf number = vf_cast(vi_and(near, high));
    vf other = vf_cast(vi_and(vi_or(u, vi_set1(0x400000)), high));

    return vf_select_less(vi_set1(0x7f800000), vi_and(u, vi_set1(0x7fffffff)), other, number);
}

/* E8M0 scales as td_cpu_e8m0 has them. */
INLINE vf vf_e8m0(vi e)
{
    return vf_cast(vi_shl(vi_sub(vi_max(e, vi_set1(1)), vi_set1(1)), 23));
}

/* E4M3 bytes. Exact, also where subnormals are flushed. */
INLINE vf vf_from_f8(vi byte)
{
    vi magnitude = vi_and(byte, vi_set1(127));
    vi sign = vi_shl(vi_and(byte, vi_set1(128)), 24);
    vf normal = vf_cast(vi_add(vi_shl(magnitude, 20), vi_set1(120 << 23)));
    vf small = vf_mul(vf_from_vi(magnitude), vf_set1(0x1p-9f));
    vf v = vf_select_less(magnitude, vi_set1(8), small, normal);

    v = vf_select_less(magnitude, vi_set1(127), v, vf_cast(vi_set1(0x7fc00000)));
    return vf_cast(vi_or(vi_cast(v), sign));
}

/* Up to 16 floats, the rest zero. */
INLINE vf load_part(const float *p, size_t n)
{
    float tmp[16] = {0};

    if (n >= 16)
        return vf_load(p);
    memcpy(tmp, p, n * sizeof *p);
    return vf_load(tmp);
}

INLINE void store_part(float *p, vf v, size_t n)
{
    float tmp[16];

    if (n >= 16) {
        vf_store(p, v);
        return;
    }
    vf_store(tmp, v);
    memcpy(p, tmp, n * sizeof *p);
}

INLINE size_t float_bytes(enum td_dtype dtype)
{
    return dtype == TD_F32 ? 4 : dtype == TD_F8_E4M3 ? 1 : 2;
}

/* 16 values of a float type as F32; `n` of them exist. */
INLINE vf load_as(enum td_dtype dtype, const uint8_t *p, uint32_t n)
{
    uint8_t tmp[64] = {0};

    if (n < 16) {
        memcpy(tmp, p, n * float_bytes(dtype));
        p = tmp;
    }
    if (dtype == TD_F32)
        return vf_load((const float *)(const void *)p);
    if (dtype == TD_F16)
        return vf_load_f16(p);
    if (dtype == TD_F8_E4M3)
        return vf_from_f8(vi_load_u8(p));
    return vf_load_bf16(p);
}

/* ---- rows ---- */

/* Sum of squares over 16 lanes, as ref.c folds it. */
INLINE float sum_of_squares(const float *x, uint32_t dim)
{
    vf sum = vf_set1(0.0f);

    for (uint32_t i = 0; i < dim; i += 16) {
        vf v = load_part(x + i, dim - i);

        sum = vf_fma(v, v, sum);
    }
    return vf_fold(sum);
}

INLINE float *source_row(const struct td_cpu_source *src, uint32_t t)
{
    return src->x + (size_t)(src->rows ? src->rows[t] : t) * src->n_cols;
}

/* Columns k .. k + 15 of a row whose factor is `factor`; those past the end are 0. */
INLINE vf source_load(const struct td_cpu_source *src, const float *x, vf factor, uint32_t k)
{
    vf v = load_part(x + k, src->n_cols - k);

    return src->norm ? vf_mul(vf_mul(v, factor), load_part(src->norm + k, src->n_cols - k)) : v;
}

/* 32 columns, the b-th of those that share a scale, of token t of a tile of n; `max` is that of all of them. */
INLINE void prepare_block(struct td_cpu_traits traits, vf x0, vf x1, float max, uint32_t b,
                          uint32_t t, uint32_t n, uint8_t *out)
{
    const float scale = td_cpu_act_scale(traits.kind, max);
    const vf inverse = vf_set1(td_cpu_act_inverse(max));
    vi q0 = vi_from_finite(vf_round(vf_mul(x0, inverse)));
    vi q1 = vi_from_finite(vf_round(vf_mul(x1, inverse)));
    int32_t sum[2] = {0, 0};
#if TD_PLAIN_SIGNED
    vi_store_int8(q0, q1, (int8_t *)out + 32 * t);
#else
    int8_t q[32];

    vi_store_int8(q0, q1, q);
    for (uint32_t j = 0; j < 8; j++)
        memcpy(out + (j * n + t) * 4, q + j * 4, 4);
#endif
    memcpy(out + 32 * n + 4 * t, &scale, 4);
    if (TD_PLAIN_SIGNED && !traits.mins)
        return; /* nobody reads the start */
    if (traits.halves == 1) {
        sum[0] = vi_sum(vi_add(q0, q1));
    } else {
        sum[0] = vi_sum(q0);
        sum[1] = vi_sum(q1);
    }
    out += 36 * n + 4 * t;
    for (int h = 0; h < traits.halves; h++) {
        const uint32_t i = b * (uint32_t)traits.halves + (uint32_t)h; /* sub-block */
        const int32_t start = -traits.offset * sum[h];
        const float scaled = (float)sum[h] * scale;
        const int16_t whole = (int16_t)sum[h];
        uint8_t *pair = out + 4 * (uint32_t)traits.halves * n + i % 2 * 2;

        memcpy(out + (uint32_t)h * 4 * n, &start, 4);
        if (traits.mins && traits.kind == TD_ACT_INT32)
            memcpy(out + 4 * n, &scaled, 4);
        else if (traits.mins) /* the second of a pair may belong to the eighth before */
            memcpy(traits.halves == 1 && i % 2 ? pair - td_cpu_act_block_bytes(traits) * n : pair,
                   &whole, 2);
    }
}

/* Row t into place `slot` of a tile of n tokens. `kind` is that of the traits, as a constant. */
INLINE void prepare_ints(const struct td_cpu_source *src, enum td_cpu_act_kind kind,
                         struct td_cpu_traits traits, uint32_t t, uint32_t slot, uint32_t n,
                         uint8_t *out)
{
    const uint32_t block = kind == TD_ACT_INT256 ? 256 : 32;
    const float *x = source_row(src, t);
    const vf factor = vf_set1(src->norm ? src->factor[t] : 1.0f);

    for (uint32_t k = 0; k < src->n_cols; k += block) {
        vf v[16], max = vf_set1(0.0f);
        float largest;

        for (uint32_t i = 0; i < block / 16; i++) {
            v[i] = source_load(src, x, factor, k + 16 * i);
            max = vf_max_bits(max, vf_abs(v[i]));
        }
        largest = vf_fold_max_bits(max);
        for (uint32_t i = 0; i < block / 16; i += 2) {
            prepare_block(traits, v[i], v[i + 1], largest, i / 2, slot, n, out);
            out += td_cpu_act_block_bytes(traits) * n;
        }
    }
}

INLINE void prepare_floats(const struct td_cpu_source *src, bool bf16, uint32_t t, uint32_t slot,
                           uint32_t n, float *out)
{
    const float *x = source_row(src, t);
    const vf factor = vf_set1(src->norm ? src->factor[t] : 1.0f);

    for (uint32_t k = 0; k < src->n_cols; k += 16) {
        const uint32_t left = src->n_cols - k < 16 ? src->n_cols - k : 16;
        vf v = source_load(src, x, factor, k);
        float value[16];

        vf_store(value, bf16 ? vf_round_bf16(v) : v);
        if (!bf16)
            for (uint32_t i = 0; i < left; i++)
                out[(size_t)(k + i) * n + slot] = value[i];
#if TD_BF16_PAIRS
        for (uint32_t i = 0; bf16 && i < left; i += 2) {
            uint32_t word =
                td_half_f32_bits(value[i]) >> 16 | (td_half_f32_bits(value[i + 1]) & 0xffff0000u);

            memcpy(&out[(size_t)((k + i) / 2) * n + slot], &word, 4);
        }
#else
        for (uint32_t i = 0; bf16 && i < (left + 1) / 2 * 2; i++)
            out[(size_t)((k + i) ^ 1) * n + slot] = value[i];
#endif
    }
}

#endif
