/* AVX2, FMA, F16C: two registers hold 16 floats. */
#include <cpuid.h>
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define TD_BF16_PAIRS 0
#define TD_TILE_FLOAT 3
#define TD_TILE_INT 2

typedef struct {
    __m256 a, b;
} vf;
typedef struct {
    __m256i a, b;
} vi;

#define OP static inline __attribute__((always_inline))

OP vf vf_set1(float x)
{
    return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

OP vf vf_load(const float *p)
{
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

OP void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}

OP __m128i load128(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

OP vf vf_load_f16(const uint8_t *p)
{
    return (vf){_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 16))};
}

OP __m256 from_bf16(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

OP vf vf_load_bf16(const uint8_t *p)
{
    return (vf){from_bf16(load128(p)), from_bf16(load128(p + 16))};
}

OP vf vf_add(vf x, vf y)
{
    return (vf){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}

OP vf vf_mul(vf x, vf y)
{
    return (vf){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}

OP vf vf_div(vf x, vf y)
{
    return (vf){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}

OP vf vf_fma(vf x, vf y, vf z)
{
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

OP vf vf_max(vf x, vf y)
{
    return (vf){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}

OP vf vf_min(vf x, vf y)
{
    return (vf){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}

OP vf vf_abs(vf x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);

    return (vf){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

OP vf vf_neg(vf x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);

    return (vf){_mm256_xor_ps(sign, x.a), _mm256_xor_ps(sign, x.b)};
}

OP vf vf_round(vf x)
{
    return (vf){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

OP __m256 max_bits(__m256 x, __m256 y)
{
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y)));
}

/* A bit for each lane of x that is larger than y's; NaN never is. */
OP uint32_t vf_above(vf x, vf y)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)) << 8;
}

/* Per lane the larger of two values, none of them negative, in the order of the bits: NaN is above infinity. */
OP vf vf_max_bits(vf x, vf y)
{
    return (vf){max_bits(x.a, y.a), max_bits(x.b, y.b)};
}

/* The largest of all lanes in that order. */
OP float vf_fold_max_bits(vf x)
{
    __m256i e = _mm256_castps_si256(max_bits(x.a, x.b));
    __m128i q = _mm_max_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));

    q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(q));
}

/* Halves joined until one lane is left: (l, l + 8), (l, l + 4), (l, l + 2), (0, 1). */
OP float vf_fold(vf x)
{
    __m256 e = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));

    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

OP vi vi_set1(int32_t x)
{
    return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

OP vi vi_load(const uint8_t *p)
{
    const __m256i *q = (const __m256i *)(const void *)p;

    return (vi){_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}

OP void vi_store(uint8_t *p, vi v)
{
    __m256i *q = (__m256i *)(void *)p;

    _mm256_storeu_si256(q, v.a);
    _mm256_storeu_si256(q + 1, v.b);
}

/* 16 unsigned bytes or 16-bit values. */
OP vi vi_load_u8(const uint8_t *p)
{
    __m128i bytes = load128(p);

    return (vi){_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}

OP vi vi_load_u16(const uint8_t *p)
{
    return (vi){_mm256_cvtepu16_epi32(load128(p)), _mm256_cvtepu16_epi32(load128(p + 16))};
}

OP vi vi_set1_word(const uint8_t *p)
{
    int32_t word;

    __builtin_memcpy(&word, p, 4);
    return vi_set1(word);
}

OP vi vi_sub(vi x, vi y)
{
    return (vi){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}

OP vi vi_half(vi x)
{
    return (vi){_mm256_srai_epi32(x.a, 1), _mm256_srai_epi32(x.b, 1)};
}

OP vi vi_from_vf(vf x)
{
    return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}

OP __m256i finite8(__m256 x)
{
    __m256 is_number = _mm256_cmp_ps(x, x, _CMP_ORD_Q);

    return _mm256_and_si256(_mm256_castps_si256(is_number), _mm256_cvtps_epi32(x));
}

/* As vi_from_vf, with 0 for what is not a number. */
OP vi vi_from_finite(vf x)
{
    return (vi){finite8(x.a), finite8(x.b)};
}

OP vf vf_from_vi(vi x)
{
    return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

OP __m256 pow2(__m256i x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(127)), 23));
}

OP vf vf_pow2(vi x)
{
    return (vf){pow2(x.a), pow2(x.b)};
}

/* vpmaddubsw would saturate, so even and odd bytes are multiplied as 16-bit values. */
OP __m256i dot4(__m256i acc, __m256i w, __m256i a)
{
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));

    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}

/* acc + sum of two int16 of w times two of x, per lane. */
OP vi vi_dot_int16(vi acc, vi w, vi x)
{
    return (vi){_mm256_add_epi32(acc.a, _mm256_madd_epi16(w.a, x.a)),
                _mm256_add_epi32(acc.b, _mm256_madd_epi16(w.b, x.b))};
}

OP vi vi_sub_bytes(vi x, vi y)
{
    return (vi){_mm256_sub_epi8(x.a, y.a), _mm256_sub_epi8(x.b, y.b)};
}

/* acc + sum of four unsigned bytes of w times four signed bytes of a, per lane, exact. */
OP vi vi_dot(vi acc, vi w, vi x)
{
    return (vi){dot4(acc.a, w.a, x.a), dot4(acc.b, w.b, x.b)};
}

/* The same for w below 128: vpmaddubsw's pairs stay below 2^15. */
OP __m256i dot4_narrow(__m256i acc, __m256i w, __m256i a)
{
    return _mm256_add_epi32(acc,
                            _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}

OP vi vi_dot_narrow(vi acc, vi w, vi x)
{
    return (vi){dot4_narrow(acc.a, w.a, x.a), dot4_narrow(acc.b, w.b, x.b)};
}

OP vi vi_and(vi x, vi y)
{
    return (vi){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}

OP vi vi_or(vi x, vi y)
{
    return (vi){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}

OP vi vi_shr(vi x, int n)
{
    return (vi){_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}

OP vi vi_shl(vi x, int n)
{
    return (vi){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}

OP vi vi_sar(vi x, int n)
{
    return (vi){_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}

OP vi vi_add(vi x, vi y)
{
    return (vi){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}

OP vi vi_max(vi x, vi y)
{
    return (vi){_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}

/* Bytes of `table` at the indices in the bytes of i. */
OP vi vi_lookup(const uint8_t table[16], vi i)
{
    __m256i t = _mm256_broadcastsi128_si256(load128(table));

    return (vi){_mm256_shuffle_epi8(t, i.a), _mm256_shuffle_epi8(t, i.b)};
}

OP vf vf_cast(vi x)
{
    return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}

OP vi vi_cast(vf x)
{
    return (vi){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}

OP __m256 select_less(__m256i a, __m256i b, __m256 x, __m256 y)
{
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)));
}

/* x where a < b, else y. */
OP vf vf_select_less(vi a, vi b, vf x, vf y)
{
    return (vf){select_less(a.a, b.a, x.a, y.a), select_less(a.b, b.b, x.b, y.b)};
}

OP int32_t vi_sum(vi x)
{
    __m256i e = _mm256_add_epi32(x.a, x.b);
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));

    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}

/* Stores 32 values as int8. */
OP void vi_store_int8(vi x, vi y, int8_t *out)
{
    __m256i lo = _mm256_packs_epi32(x.a, x.b), hi = _mm256_packs_epi32(y.a, y.b);
    __m256i q = _mm256_packs_epi16(lo, hi); /* words of four: x.a, x.b, y.a, y.b by 128-bit half */

    q = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)out, q);
}

/* x * 2^n, rounded once; n is a whole number, or NaN where x is. In two factors, because 2^n may be outside the normal range. */
OP vf vf_scale(vf x, vf n)
{
    vi i = vi_from_vf(n), half = vi_half(i);

    return vf_mul(vf_mul(x, vf_pow2(half)), vf_pow2(vi_sub(i, half)));
}

/* ---- attention ---- */

#define TD_ATTEND_VECTORS 1

/* The first n lanes of x, the others of y. */
OP vf vf_first(vf x, vf y, int32_t n)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i a = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
    __m256i b = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane);

    return (vf){_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(a)),
                _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(b))};
}

/* The largest lane; none is NaN. */
OP float vf_fold_max(vf x)
{
    __m256 e = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));

    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

/* Byte i of every 32-bit lane, with its sign. */
OP vi vi_byte(vi w, size_t i)
{
    __m256i left = _mm256_set1_epi32((int)(24 - 8 * i));

    return (vi){_mm256_srai_epi32(_mm256_sllv_epi32(w.a, left), 24),
                _mm256_srai_epi32(_mm256_sllv_epi32(w.b, left), 24)};
}

OP __m256i nibble8(__m256i w, __m256i shift)
{
    w = _mm256_and_si256(_mm256_srlv_epi32(w, shift), _mm256_set1_epi32(15));
    return _mm256_sub_epi32(w, _mm256_set1_epi32(8));
}

/* The four bits from `shift` on of every 32-bit lane, less 8. */
OP vi vi_nibble(vi w, size_t shift)
{
    __m256i right = _mm256_set1_epi32((int)shift);

    return (vi){nibble8(w.a, right), nibble8(w.b, right)};
}

/* 16 bytes, one per lane. */
OP vi vi_load_bytes(const uint8_t *p)
{
    __m128i b = load128(p);

    return (vi){_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(b, b))};
}

OP vf vf_load_int8(const uint8_t *p)
{
    __m128i b = load128(p);

    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(b, b)))};
}

/* One F16 in every lane. */
OP vf vf_set1_f16(const uint8_t *p)
{
    int16_t h;
    __m256 x;

    __builtin_memcpy(&h, p, 2);
    x = _mm256_cvtph_ps(_mm_set1_epi16(h));
    return (vf){x, x};
}

OP void vf_store_f16(uint16_t *p, vf x)
{
    __m128i *q = (__m128i *)(void *)p;

    _mm_storeu_si128(q, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

OP __m256i to_bf16(__m256 x)
{
    __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    __m256i round =
        _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, _mm256_set1_epi32(1)));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, round), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));

    return _mm256_blendv_epi8(r, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
}

OP void vf_store_bf16(uint16_t *p, vf x)
{
    __m256i r = _mm256_packus_epi32(to_bf16(x.a), to_bf16(x.b));

    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(r, 0xd8));
}

/* Lanes 2i and 2i + 1 exchanged. */
OP vf vf_swap_pairs(vf x)
{
    return (vf){_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}

#include "kernels/cpu/isa_body.h"

/* CPUID leaf 1, ECX bit 29: not every compiler's __builtin_cpu_supports knows it by name. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;

    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool available(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

TD_CPU_ISA(avx2, "avx2", available);
