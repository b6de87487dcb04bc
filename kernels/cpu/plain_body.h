#ifndef TD_KERNELS_CPU_PLAIN_BODY_H
#define TD_KERNELS_CPU_PLAIN_BODY_H

/* Weights out of their packed form (cpu.h), over the vector of vec_body.h: field by field, or a run of columns expanded to the
 * plain form of their family. The includer says before whether BF16 stays in pairs (TD_BF16_PAIRS) and whether integers lose
 * their offset (TD_PLAIN_SIGNED).
 *
 * The plain forms, for 32 lanes (vectors of 16 lanes, lower half first):
 *   floats     per column F32. BF16: the columns of a pair swapped; or, with TD_BF16_PAIRS, per pair of columns words of two
 *              BF16. F8 has 32 F32 scales before every 128 columns.
 *   integers   per 32 columns 8 steps of words of four stored integers (with TD_PLAIN_SIGNED less the offset); then per half
 *              F32 scales [32], then per half F32 minimums [32]; INT256 has pairs of int16 minimums [32] instead, in the first
 *              place of two sub-blocks, and F32 d [32] (and dmin [32]) after every 256 columns. */
#include "kernels/cpu/vec_body.h"

/* ---- fields of packed blocks of 32 lanes: the half `h` of them ---- */

INLINE vi word_at(const uint8_t *block, uint32_t at, int h)
{
    return vi_load(block + (size_t)at * TD_CPU_GROUP + h * 64);
}

INLINE vf half_at(const uint8_t *block, uint32_t at, int h)
{
    return vf_load_f16(block + (size_t)at * TD_CPU_GROUP + h * 32);
}

/* Bytes of a block, as a constant where the type is one. */
INLINE size_t block_bytes(enum td_dtype dtype)
{
    switch (dtype) {
    case TD_Q8_0:
        return 34;
    case TD_Q4_0:
    case TD_IQ4_NL:
        return 18;
    case TD_Q4_1:
        return 20;
    case TD_Q5_0:
        return 22;
    case TD_Q5_1:
        return 24;
    case TD_MXFP4:
        return 17;
    case TD_INT4:
        return 19;
    case TD_Q2_K:
        return 84;
    case TD_Q3_K:
        return 110;
    case TD_Q4_K:
        return 144;
    case TD_Q5_K:
        return 176;
    case TD_Q6_K:
        return 210;
    case TD_IQ4_XS:
        return 136;
    default:
        return 0;
    }
}

/* Bits `mask` (a byte) of every byte of a word, from bit `shift` on. */
INLINE vi bits_of(vi word, int shift, int mask)
{
    return vi_and(vi_shr(word, shift), vi_set1(mask * 0x01010101));
}

/* Bits `mask` of every byte of a word, from bit `bit` on, moved to bit `to`. */
INLINE vi bits_to(vi word, int bit, int to, int mask)
{
    vi moved = bit > to ? vi_shr(word, bit - to) : vi_shl(word, to - bit);

    return vi_and(moved, vi_set1((mask << to) * 0x01010101));
}

/* A byte of every lane at byte `at`, in all four bytes of its word. */
INLINE vi bytes_at(const uint8_t *block, uint32_t at, int h)
{
    vi v = vi_load_u8(block + (size_t)at * TD_CPU_GROUP + h * 16);

    v = vi_or(v, vi_shl(v, 8));
    return vi_or(v, vi_shl(v, 16));
}

/* The stored integers of columns 4j .. 4j + 3 of eighth b (0 for blocks of 32). */
INLINE vi weight_word(enum td_dtype dtype, const uint8_t *p, int b, int j, int h)
{
    static const uint8_t iq4[16] = {TD_CPU_IQ4_VALUES}, mxfp4[16] = {TD_CPU_MXFP4_VALUES};
    const uint32_t step = (uint32_t)j * 4, quarter = step % 16; /* byte of a word in its field */
    const int upper = j / 4 * 4;                                /* shift of this step's nibbles */

    switch (dtype) {
    case TD_Q8_0:
        return vi_sub_bytes(word_at(p, 2 + step, h), vi_set1((int32_t)0x80808080));
    case TD_Q4_0:
        return bits_of(word_at(p, 2 + quarter, h), upper, 15);
    case TD_Q4_1:
        return bits_of(word_at(p, 4 + quarter, h), upper, 15);
    case TD_Q5_0:
        return vi_or(bits_of(word_at(p, 6 + quarter, h), upper, 15),
                     bits_to(word_at(p, 2, h), j, 4, 1));
    case TD_Q5_1:
        return vi_or(bits_of(word_at(p, 8 + quarter, h), upper, 15),
                     bits_to(word_at(p, 4, h), j, 4, 1));
    case TD_IQ4_NL:
        return vi_lookup(iq4, bits_of(word_at(p, 2 + quarter, h), upper, 15));
    case TD_MXFP4:
        return vi_lookup(mxfp4, bits_of(word_at(p, 1 + quarter, h), upper, 15));
    case TD_INT4: /* byte by byte, whatever its sign on the way */
        return vi_sub_bytes(bits_of(word_at(p, 3 + quarter, h), upper, 15),
                            vi_sub_bytes(bits_of(bytes_at(p, 2, h), 0, 15), vi_set1(0x0f0f0f0f)));
    case TD_Q4_K:
        return bits_of(word_at(p, 16 + (uint32_t)(b / 2) * 32 + step, h), b % 2 * 4, 15);
    case TD_Q5_K:
        return vi_or(bits_of(word_at(p, 48 + (uint32_t)(b / 2) * 32 + step, h), b % 2 * 4, 15),
                     bits_to(word_at(p, 16 + step, h), b, 4, 1));
    case TD_Q6_K:
        return vi_or(bits_of(word_at(p, 18 + (uint32_t)(b / 4 * 64 + b % 2 * 32) + step, h),
                             b % 4 / 2 * 4, 15),
                     bits_to(word_at(p, 146 + (uint32_t)(b / 4) * 32 + step, h), b % 4 * 2, 4, 3));
    case TD_Q3_K:
        return vi_or(bits_of(word_at(p, 46 + (uint32_t)(b / 4) * 32 + step, h), b % 4 * 2, 3),
                     bits_to(word_at(p, 14 + step, h), b, 2, 1));
    case TD_Q2_K:
        return bits_of(word_at(p, 20 + (uint32_t)(b / 4) * 32 + step, h), b % 4 * 2, 3);
    case TD_IQ4_XS:
        return vi_lookup(iq4, bits_of(word_at(p, 8 + (uint32_t)b * 16 + quarter, h), upper, 15));
    default:
        return vi_set1(0);
    }
}

/* Value i of the sixes at byte `at`. */
INLINE vi six_at(const uint8_t *p, uint32_t at, int i, int h)
{
    vi w = word_at(p, at + (uint32_t)i / 5 * 4, h);

    if (i < 15)
        return vi_and(vi_shr(w, 6 * (i % 5)), vi_set1(63));
    return vi_or(vi_shr(word_at(p, at, h), 30),
                 vi_or(vi_shl(vi_shr(word_at(p, at + 4, h), 30), 2),
                       vi_shl(vi_shr(word_at(p, at + 8, h), 30), 4)));
}

/* Scale of half `half` of eighth b, as a float; of the block for blocks of 32. */
INLINE vf weight_scale(enum td_dtype dtype, const uint8_t *p, int b, int half, int h)
{
    const int i = 2 * b + half;

    switch (dtype) {
    case TD_MXFP4:
        return vf_e8m0(vi_load_u8(p + h * 16));
    case TD_Q4_K:
    case TD_Q5_K:
        return vf_from_vi(six_at(p, 4, b, h));
    case TD_Q6_K:
        return vf_from_vi(
            vi_sar(vi_shl(word_at(p, 2 + (uint32_t)(i / 4) * 4, h), 24 - i % 4 * 8), 24));
    case TD_Q3_K:
        return vf_from_vi(vi_sub(six_at(p, 2, i, h), vi_set1(32)));
    case TD_Q2_K:
        return vf_from_vi(
            vi_and(vi_shr(word_at(p, 4 + (uint32_t)(i / 4) * 4, h), i % 4 * 8), vi_set1(15)));
    case TD_IQ4_XS: {
        vi low = vi_and(vi_shr(word_at(p, 4, h), 4 * b), vi_set1(15));
        vi high = vi_and(vi_shr(vi_load_u16(p + 2 * TD_CPU_GROUP + h * 32), 2 * b), vi_set1(3));

        return vf_from_vi(vi_sub(vi_or(low, vi_shl(high, 4)), vi_set1(32)));
    }
    default:
        return half_at(p, 0, h);
    }
}

/* The minimum of a block of 32. */
INLINE vf weight_min(const uint8_t *p, int h)
{
    return half_at(p, 2, h);
}

/* Minimums 2i and 2i + 1 of a block of 256, as int16. */
INLINE vi weight_mins(enum td_dtype dtype, const uint8_t *p, int i, int h)
{
    if (dtype == TD_Q2_K) {
        vi w = vi_shr(word_at(p, 4 + (uint32_t)(i / 2) * 4, h), 4 + i % 2 * 16);

        return vi_or(vi_and(w, vi_set1(15)), vi_and(vi_shl(w, 8), vi_set1(15 << 16)));
    }
    return vi_or(six_at(p, 4, 8 + 2 * i, h), vi_shl(six_at(p, 4, 9 + 2 * i, h), 16));
}

/* Column k of E4M3 bytes. */
INLINE vf f8_at(const uint8_t *p, uint32_t k, int h)
{
    return vf_from_f8(vi_load_u8(p + (size_t)k * TD_CPU_GROUP + h * 16));
}

/* ---- the plain forms ---- */

/* Strides of the plain form of integers. */
INLINE uint32_t plain_block(struct td_cpu_traits traits)
{
    return (uint32_t)(1024 + 128 * traits.halves * (1 + traits.mins));
}

INLINE uint32_t plain_tail(struct td_cpu_traits traits)
{
    return traits.kind == TD_ACT_INT256 ? (uint32_t)(128 * (1 + traits.mins)) : 0;
}

/* Stored integers as the plain form has them. */
INLINE vi plain_word(struct td_cpu_traits traits, vi word)
{
#if TD_PLAIN_SIGNED
    return vi_sub_bytes(word, vi_set1((int32_t)((uint32_t)traits.offset * 0x01010101u)));
#else
    (void)traits;
    return word;
#endif
}

INLINE void expand_int(enum td_dtype dtype, const uint8_t *p, uint32_t n_k, float *plain)
{
    const struct td_cpu_traits traits = td_cpu_traits(dtype);
    const uint32_t elems = traits.kind == TD_ACT_INT256 ? 256 : 32;
    const size_t bytes = block_bytes(dtype) * TD_CPU_GROUP;

    for (uint32_t k = 0; k < n_k; k += elems, p += bytes) {
        for (int b = 0; b < (int)elems / 32; b++) {
            for (int j = 0; j < 8; j++, plain += 32) {
                vi_store((uint8_t *)plain, plain_word(traits, weight_word(dtype, p, b, j, 0)));
                vi_store((uint8_t *)(plain + 16),
                         plain_word(traits, weight_word(dtype, p, b, j, 1)));
            }
            for (int half = 0; half < traits.halves; half++, plain += 32) {
                vf_store(plain, weight_scale(dtype, p, b, half, 0));
                vf_store(plain + 16, weight_scale(dtype, p, b, half, 1));
            }
            for (int h = 0; traits.mins && h < 2; h++)
                if (traits.kind == TD_ACT_INT32)
                    vf_store(plain + 16 * h, weight_min(p, h));
                else if (b * traits.halves % 2 == 0)
                    vi_store((uint8_t *)(plain + 16 * h),
                             weight_mins(dtype, p, b * traits.halves / 2, h));
            plain += traits.mins * traits.halves * 32;
        }
        for (int i = 0; traits.kind == TD_ACT_INT256 && i < 1 + traits.mins; i++, plain += 32) {
            vf_store(plain, half_at(p, (uint32_t)i * 2, 0));
            vf_store(plain + 16, half_at(p, (uint32_t)i * 2, 1));
        }
    }
}

/* Two columns of floats, `even` and `odd`, of a pair. */
INLINE float *put_pair(vf even0, vf even1, vf odd0, vf odd1, float *plain)
{
#if TD_BF16_PAIRS
    vi_store((uint8_t *)plain, vi_pair(even0, odd0));
    vi_store((uint8_t *)(plain + 16), vi_pair(even1, odd1));
    return plain + 32;
#else
    vf_store(plain, odd0);
    vf_store(plain + 16, odd1);
    vf_store(plain + 32, even0);
    vf_store(plain + 48, even1);
    return plain + 64;
#endif
}

INLINE void expand_float(enum td_dtype dtype, const uint8_t *p, uint32_t n_k, float *plain)
{
    switch (dtype) {
    case TD_F16:
        for (uint32_t k = 0; k < n_k; k++, plain += 32) {
            vf_store(plain, half_at(p, k * 2, 0));
            vf_store(plain + 16, half_at(p, k * 2, 1));
        }
        return;
    case TD_BF16:
        for (uint32_t k = 0; k < n_k; k += 2) {
            vi w0 = word_at(p, k * 2, 0), w1 = word_at(p, k * 2, 1);

            plain = put_pair(vf_even(w0), vf_even(w1), vf_odd(w0), vf_odd(w1), plain);
        }
        return;
    case TD_F8_E4M3:
        for (; n_k; p += TD_CPU_GROUP * 132) {
            uint32_t n = n_k < 128 ? n_k : 128;
            const uint8_t *bytes = p + TD_CPU_GROUP * 4;

            vf_store(plain, vf_cast(word_at(p, 0, 0)));
            vf_store(plain + 16, vf_cast(word_at(p, 0, 1)));
            plain += 32;
            for (uint32_t k = 0; k < n; k += 2) {
                bool paired = k + 1 < n;
                vf none = vf_set1(0.0f);

                plain = put_pair(f8_at(bytes, k, 0), f8_at(bytes, k, 1),
                                 paired ? f8_at(bytes, k + 1, 0) : none,
                                 paired ? f8_at(bytes, k + 1, 1) : none, plain);
            }
            n_k -= n;
        }
        return;
    default:
        return;
    }
}

/* Packed bytes of one lane in n_k columns, which begin at a block. */
INLINE size_t lane_bytes(enum td_dtype dtype, uint32_t n_k)
{
    if (dtype == TD_BF16)
        return (size_t)(n_k + 1) / 2 * 4;
    if (dtype == TD_F8_E4M3)
        return n_k + (size_t)(n_k + 127) / 128 * 4;
    if (dtype == TD_F32 || dtype == TD_F16)
        return (size_t)n_k * (dtype == TD_F32 ? 4 : 2);
    return n_k / (td_cpu_traits(dtype).kind == TD_ACT_INT256 ? 256 : 32) * block_bytes(dtype);
}

/* Bytes of the plain form of n_k columns. */
INLINE size_t plain_bytes(struct td_cpu_traits traits, bool f8, uint32_t n_k)
{
    if (traits.kind == TD_ACT_INT32)
        return n_k / 32 * plain_block(traits);
    if (traits.kind == TD_ACT_INT256)
        return n_k / 256 * (8 * plain_block(traits) + plain_tail(traits));
    if (traits.kind == TD_ACT_BF16)
        return (size_t)(n_k + 1) / 2 * (2 - TD_BF16_PAIRS) * 128 +
               (f8 ? (n_k + 127) / 128 * 128 : 0);
    return (size_t)n_k * 128;
}

/* Types whose packed form, of a full group, is the plain one. */
INLINE bool plain_is_packed(enum td_dtype dtype)
{
    return dtype == TD_F32 || (TD_BF16_PAIRS && dtype == TD_BF16);
}

#endif
