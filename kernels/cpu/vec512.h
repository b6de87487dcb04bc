#ifndef TD_KERNELS_CPU_VEC512_H
#define TD_KERNELS_CPU_VEC512_H

/* The vector of 16 floats in AVX-512 (F, BW, DQ, VL, VNNI): one register. Included by the files of that family, which say
 * before whether they have BF16 dot products (TD_BF16_PAIRS). */
#include "kernels/base/half.h"

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define TD_TILE_FLOAT 8
#define TD_TILE_INT 6

typedef __m512 vf;
typedef __m512i vi;

#define OP static inline __attribute__((always_inline))

OP vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}

OP vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

OP void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}

OP vf vf_load_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

OP vf vf_load_bf16(const uint8_t *p)
{
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

OP vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

OP vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

OP vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

OP vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

OP vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

OP vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

OP vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}

OP vf vf_neg(vf a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}

OP vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* A bit for each lane of a that is larger than b's; NaN never is. */
OP uint32_t vf_above(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

/* Per lane the larger of two values, none of them negative, in the order of the bits: NaN is above infinity. */
OP vf vf_max_bits(vf a, vf b)
{
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

/* The largest of all lanes in that order. */
OP float vf_fold_max_bits(vf a)
{
    return td_half_bits_f32((uint32_t)_mm512_reduce_max_epi32(_mm512_castps_si512(a)));
}

/* Halves joined until one lane is left: (l, l + 8), (l, l + 4), (l, l + 2), (0, 1). */
OP float vf_fold(vf a)
{
    __m256 e = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));

    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

OP vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}

OP vi vi_load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}

OP void vi_store(uint8_t *p, vi v)
{
    _mm512_storeu_si512(p, v);
}

/* 16 unsigned bytes or 16-bit values. */
OP vi vi_load_u8(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

OP vi vi_load_u16(const uint8_t *p)
{
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

OP vi vi_set1_word(const uint8_t *p)
{
    int32_t word;

    __builtin_memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}

OP vi vi_sub(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}

OP vi vi_half(vi a)
{
    return _mm512_srai_epi32(a, 1);
}

OP vi vi_from_vf(vf a)
{
    return _mm512_cvtps_epi32(a);
}

/* As vi_from_vf, with 0 for what is not a number. */
OP vi vi_from_finite(vf a)
{
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a);
}

OP vf vf_from_vi(vi a)
{
    return _mm512_cvtepi32_ps(a);
}

OP vf vf_pow2(vi a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(127)), 23));
}

/* acc + sum of four unsigned bytes of w times four signed bytes of a, per lane, exact. */
OP vi vi_dot(vi acc, vi w, vi a)
{
    return _mm512_dpbusd_epi32(acc, w, a);
}

/* The same for w below 128, where some instruction sets are faster. */
OP vi vi_dot_narrow(vi acc, vi w, vi a)
{
    return vi_dot(acc, w, a);
}

/* acc + sum of two int16 of w times two of a, per lane. */
OP vi vi_dot_int16(vi acc, vi w, vi a)
{
    return _mm512_dpwssd_epi32(acc, w, a);
}

OP vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}

OP vi vi_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}

OP vi vi_shr(vi a, int n)
{
    return _mm512_srli_epi32(a, (unsigned)n);
}

OP vi vi_shl(vi a, int n)
{
    return _mm512_slli_epi32(a, (unsigned)n);
}

OP vi vi_sar(vi a, int n)
{
    return _mm512_srai_epi32(a, (unsigned)n);
}

OP vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}

OP vi vi_max(vi a, vi b)
{
    return _mm512_max_epi32(a, b);
}

/* Bytes of `table` at the indices in the bytes of i. */
OP vi vi_lookup(const uint8_t table[16], vi i)
{
    __m128i t = _mm_loadu_si128((const __m128i *)(const void *)table);

    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), i);
}

OP vf vf_cast(vi a)
{
    return _mm512_castsi512_ps(a);
}

OP vi vi_cast(vf a)
{
    return _mm512_castps_si512(a);
}

/* x where a < b, else y. */
OP vf vf_select_less(vi a, vi b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(a, b), y, x);
}

OP int32_t vi_sum(vi a)
{
    return _mm512_reduce_add_epi32(a);
}

/* Stores 32 values as int8. */
OP void vi_store_int8(vi a, vi b, int8_t *out)
{
    _mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(void *)(out + 16), _mm512_cvtepi32_epi8(b));
}

/* a * 2^n, rounded once; n is a whole number, or NaN where a is. */
OP vf vf_scale(vf a, vf n)
{
    return _mm512_scalef_ps(a, n);
}

/* ---- attention ---- */

#define TD_ATTEND_VECTORS 4

/* The first n lanes of a, the others of b. */
OP vf vf_first(vf a, vf b, int32_t n)
{
    return _mm512_mask_blend_ps((__mmask16)(n >= 16 ? 0xffff : (1 << n) - 1), b, a);
}

/* The largest lane; none is NaN. */
OP float vf_fold_max(vf a)
{
    return _mm512_reduce_max_ps(a);
}

/* Byte i of every 32-bit lane, with its sign. */
OP vi vi_byte(vi w, size_t i)
{
    return _mm512_srai_epi32(_mm512_sllv_epi32(w, _mm512_set1_epi32((int)(24 - 8 * i))), 24);
}

/* The four bits from `shift` on of every 32-bit lane, less 8. */
OP vi vi_nibble(vi w, size_t shift)
{
    w = _mm512_srlv_epi32(w, _mm512_set1_epi32((int)shift));
    return _mm512_sub_epi32(_mm512_and_si512(w, _mm512_set1_epi32(15)), _mm512_set1_epi32(8));
}

/* 16 bytes, one per lane. */
OP vi vi_load_bytes(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

OP vf vf_load_int8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

/* One F16 in every lane. */
OP vf vf_set1_f16(const uint8_t *p)
{
    int16_t h;

    __builtin_memcpy(&h, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16(h));
}

OP void vf_store_f16(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

OP void vf_store_bf16(uint16_t *p, vf a)
{
    __m512i u = _mm512_castps_si512(a), high = _mm512_srli_epi32(u, 16);
    __m512i round =
        _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(high, _mm512_set1_epi32(1)));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, round), 16);

    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), high,
                             _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(r));
}

/* Lanes 2i and 2i + 1 exchanged. */
OP vf vf_swap_pairs(vf a)
{
    return _mm512_permute_ps(a, 0xb1);
}

OP vi vi_sub_bytes(vi a, vi b)
{
    return _mm512_sub_epi8(a, b);
}

#if TD_BF16_PAIRS
/* fma(even, even, fma(odd, odd, acc)) of the pairs in each lane, subnormals flushed. */
OP vf v_dot_bf16(vf acc, vi w, vi a)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)a);
}
#endif

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

#endif
