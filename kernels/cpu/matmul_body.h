#ifndef TD_KERNELS_CPU_MATMUL_BODY_H
#define TD_KERNELS_CPU_MATMUL_BODY_H

/* Products with packed matrices, over the vector of vec_body.h. The includer defines TD_TILE_FLOAT and TD_TILE_INT, the tokens
 * of a tile, and TD_BF16_PAIRS: 1 where v_dot_bf16 exists.
 *
 * One token reads the packed form and unpacks it in registers. More tokens share the unpacking: a chunk of the group's
 * columns is expanded to its plain form (plain_body.h), which stays in the first- or second-level cache while tile after tile of
 * tokens goes over it. */
#include "kernels/cpu/plain_body.h"

enum {
    CHUNK_FLOAT =
        256, /* columns of a chunk, unless one leaf has more: then it comes in pieces of this size */
    CHUNK_INT = 512,
    PLAIN_BYTES = CHUNK_FLOAT / 128 * (128 * 128 + 128) > CHUNK_INT / 32 * (1024 + 512) + CHUNK_INT
                      ? CHUNK_FLOAT / 128 * (128 * 128 + 128)
                      : CHUNK_INT / 32 * (1024 + 512) + CHUNK_INT,
    WIDE_BYTES = CHUNK_FLOAT * 4 * TD_CPU_GROUP, /* packed chunk: F32 has the longest */
    AHEAD = 1024, /* bytes that one token's stream prefetches ahead */
    LOOK_STREAMS = 4,
    DOT_TOKENS = 16 /* of a tile whose dot products a matrix unit makes */
};

_Static_assert(CHUNK_INT / 32 * 34 <= CHUNK_FLOAT * 4,
               "a packed chunk of Q8_0 is longer than one of F32");

/* ---- leaves: acc += what n_k columns give to `n_tokens` tokens x 32 rows ---- */

/* What is asked for while something else is worked on: so many cache lines a step, from LOOK_STREAMS places by turns. */
struct lookahead {
    const uint8_t *p;
    size_t apart;         /* bytes between two places */
    uint32_t lines, owed; /* of a step; not asked for yet */
};

/* `bytes` bytes in n_steps steps. */
INLINE struct lookahead look_from(const uint8_t *p, size_t bytes, uint32_t n_steps)
{
    return (struct lookahead){.p = p,
                              .apart = bytes / LOOK_STREAMS,
                              .lines = (uint32_t)((bytes / 64 + n_steps - 1) / n_steps)};
}

INLINE void look_ahead(struct lookahead *ahead)
{
    uint32_t owed = ahead->owed + ahead->lines;

    for (; owed >= LOOK_STREAMS; owed -= LOOK_STREAMS, ahead->p += 64)
        for (uint32_t i = 0; i < LOOK_STREAMS; i++)
            __builtin_prefetch(ahead->p + i * ahead->apart, 0, 2);
    ahead->owed = owed;
}

/* Columns of plain floats [n_k][32] and of activations [n_k][n_tokens]. */
INLINE void leaf_float(int n_tokens, const float *w, const float *x, uint32_t n_k,
                       struct lookahead *ahead, vf acc[][2])
{
    for (uint32_t k = 0; k < n_k; k++, w += 32, x += n_tokens) {
        vf w0 = vf_load(w), w1 = vf_load(w + 16);

        if (k % 32 == 0)
            look_ahead(ahead);
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vf a = vf_set1(x[t]);

            acc[t][0] = vf_fma(w0, a, acc[t][0]);
            acc[t][1] = vf_fma(w1, a, acc[t][1]);
        }
    }
}

#if TD_BF16_PAIRS
/* Pairs of columns [n_pairs][32] words and activations [n_pairs][n_tokens] words. */
INLINE void leaf_pairs(int n_tokens, const uint8_t *w, const float *x, uint32_t n_pairs,
                       struct lookahead *ahead, vf acc[][2])
{
    for (uint32_t k = 0; k < n_pairs; k++, w += 128, x += n_tokens) {
        vi w0 = vi_load(w), w1 = vi_load(w + 64);

        if (k % 16 == 0)
            look_ahead(ahead);
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vi a = vi_set1_word((const uint8_t *)(x + t));

            acc[t][0] = v_dot_bf16(acc[t][0], w0, a);
            acc[t][1] = v_dot_bf16(acc[t][1], w1, a);
        }
    }
}
#endif

/* BF16 in its plain form. */
INLINE void leaf_bf16(int n_tokens, const float *w, const float *x, uint32_t n_k,
                      struct lookahead *ahead, vf acc[][2])
{
#if TD_BF16_PAIRS
    leaf_pairs(n_tokens, (const uint8_t *)w, x, (n_k + 1) / 2, ahead, acc);
#else
    leaf_float(n_tokens, w, x, (n_k + 1) / 2 * 2, ahead, acc);
#endif
}

INLINE void leaf_f8(int n_tokens, const float *w, const float *x, uint32_t n_k,
                    struct lookahead *ahead, vf acc[][2])
{
    for (uint32_t k = 0; k < n_k; k += 128) {
        const uint32_t n = n_k - k < 128 ? n_k - k : 128,
                       values = (n + 1) / 2 * (2 - TD_BF16_PAIRS);
        vf s0 = vf_load(w), s1 = vf_load(w + 16), sum[8][2];

#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++)
            sum[t][0] = sum[t][1] = vf_set1(0.0f);
        leaf_bf16(n_tokens, w + 32, x, n, ahead, sum);
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            acc[t][0] = vf_fma(sum[t][0], s0, acc[t][0]);
            acc[t][1] = vf_fma(sum[t][1], s1, acc[t][1]);
        }
        w += 32 + (size_t)values * 32;
        x += (size_t)values * (uint32_t)n_tokens;
    }
}

INLINE vi dot_of(struct td_cpu_traits traits, vi acc, vi w, vi a)
{
    return traits.narrow ? vi_dot_narrow(acc, w, a) : vi_dot(acc, w, a);
}

/* Where the sides of an integer product are: weights in the packed block of a type or in the plain form, for which a matrix
 * unit may have made the dot products already; activations in a tile of which these tokens may be a part. */
struct ints {
    bool plain;
    enum td_dtype dtype; /* of the packed form */
    bool made;           /* the dot products are at hand */
    int in_tile; /* tokens of the tile; activations `a` below are moved on by 4 bytes a token */
    const int32_t (*dots)[2][DOT_TOKENS][16]; /* [blocks of 32 columns][half of the lanes][token] */
};

INLINE vi int_word(struct ints from, const uint8_t *p, int b, int j, int h)
{
    if (from.plain)
        return vi_load(p + j * 128 + h * 64);
    return weight_word(from.dtype, p, b, j, h);
}

INLINE vf int_scale(struct ints from, const uint8_t *p, int b, int half, int h)
{
    if (from.plain)
        return vf_load((const float *)(const void *)(p + 1024 + half * 128 + h * 64));
    return weight_scale(from.dtype, p, b, half, h);
}

INLINE vf int_min(struct ints from, const uint8_t *p, int h)
{
    if (from.plain)
        return vf_load((const float *)(const void *)(p + 1024 + 128 + h * 64));
    return weight_min(p, h);
}

INLINE vi int_mins(struct ints from, struct td_cpu_traits traits, const uint8_t *p, int i, int h)
{
    if (from.plain)
        return vi_load(p + 1024 + traits.halves * 128 + h * 64);
    return weight_mins(from.dtype, p, i, h);
}

/* dot = start + the integer dot products of a half (or of all) of 32 columns; nothing where they are made already. */
INLINE void dots(struct td_cpu_traits traits, struct ints from, int n_tokens, const uint8_t *p,
                 const uint8_t *a, int b, int half, vi dot[][2])
{
    const int steps = 8 / traits.halves;

    if (from.made)
        return;

#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; t++)
        dot[t][0] = dot[t][1] =
            traits.offset ? vi_set1_word(a + (36 + 4 * half) * from.in_tile + 4 * t) : vi_set1(0);
#pragma GCC unroll 8
    for (int j = half * steps; j < (half + 1) * steps; j++) {
        vi w0 = int_word(from, p, b, j, 0), w1 = int_word(from, p, b, j, 1);

#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vi x = vi_set1_word(a + (j * from.in_tile + t) * 4);

            dot[t][0] = dot_of(traits, dot[t][0], w0, x);
            dot[t][1] = dot_of(traits, dot[t][1], w1, x);
        }
    }
}

/* The dot products of token t with 16 rows, as floats. */
INLINE vf dot_float(struct ints from, vi dot[][2], int b, int h, int t)
{
    return vf_from_vi(from.made ? vi_load((const uint8_t *)from.dots[b][h][t]) : dot[t][h]);
}

INLINE vf act_float(struct ints from, const uint8_t *a, int at, int t)
{
    return vf_set1(*(const float *)(const void *)(a + at * from.in_tile + 4 * t));
}

INLINE void leaf_int32(struct td_cpu_traits traits, struct ints from, int n_tokens,
                       const uint8_t *p, const uint8_t *a, uint32_t n_k, struct lookahead *ahead,
                       vf acc[][2])
{
    const size_t bytes = from.plain ? plain_block(traits) : block_bytes(from.dtype) * TD_CPU_GROUP;

    for (uint32_t k = 0; k < n_k; k += 32) {
        vf s0 = int_scale(from, p, 0, 0, 0), s1 = int_scale(from, p, 0, 0, 1);
        vi dot[8][2];

        if (from.plain || from.made)
            look_ahead(ahead);
        else
            for (size_t i = 0; i < bytes; i += 64)
                __builtin_prefetch(p + AHEAD + i, 0, 3);
        dots(traits, from, n_tokens, p, a, 0, 0, dot);
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vf x = act_float(from, a, 32, t);

            acc[t][0] = vf_fma(dot_float(from, dot, 0, 0, t), vf_mul(s0, x), acc[t][0]);
            acc[t][1] = vf_fma(dot_float(from, dot, 0, 1, t), vf_mul(s1, x), acc[t][1]);
        }
        if (traits.mins) {
            vf m0 = int_min(from, p, 0), m1 = int_min(from, p, 1);

#pragma GCC unroll 8
            for (int t = 0; t < n_tokens; t++) {
                vf x = act_float(from, a, 40, t);

                acc[t][0] = vf_fma(m0, x, acc[t][0]);
                acc[t][1] = vf_fma(m1, x, acc[t][1]);
            }
        }
        p += bytes;
        a += td_cpu_act_block_bytes(traits) * (uint32_t)from.in_tile;
        if (from.made)
            from.dots++;
    }
}

/* sum += what eighth b gives, without its minimums. */
INLINE void eighth(struct td_cpu_traits traits, struct ints from, int n_tokens, const uint8_t *p,
                   const uint8_t *a, int b, vf sum[][2])
{
#pragma GCC unroll 2
    for (int half = 0; half < traits.halves; half++) {
        vi dot[8][2];
        vf s0, s1;

        dots(traits, from, n_tokens, p, a, b, half, dot);
        s0 = int_scale(from, p, b, half, 0);
        s1 = int_scale(from, p, b, half, 1);
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            sum[t][0] = vf_fma(dot_float(from, dot, b, 0, t), s0, sum[t][0]);
            sum[t][1] = vf_fma(dot_float(from, dot, b, 1, t), s1, sum[t][1]);
        }
    }
}

/* sum = the minimums of a block of 256 times the sums of their activations. Its eighths lie `step` and `act_step` apart. */
INLINE void block_mins(struct td_cpu_traits traits, struct ints from, int n_tokens,
                       const uint8_t *p, size_t step, const uint8_t *a, size_t act_step,
                       vf sum[][2])
{
    vi dot[8][2];

#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; t++)
        dot[t][0] = dot[t][1] = vi_set1(0);
#pragma GCC unroll 8
    for (int i = 0; i < 4 * traits.halves; i++) {
        const size_t b = (size_t)(2 * i / traits.halves);
        const uint8_t *x = a + b * act_step + (36 + 4 * traits.halves) * from.in_tile;
        vi m0 = int_mins(from, traits, p + b * step, i, 0);
        vi m1 = int_mins(from, traits, p + b * step, i, 1);

#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            dot[t][0] = vi_dot_int16(dot[t][0], m0, vi_set1_word(x + 4 * t));
            dot[t][1] = vi_dot_int16(dot[t][1], m1, vi_set1_word(x + 4 * t));
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; t++)
        for (int h = 0; h < 2; h++)
            sum[t][h] = vf_from_vi(dot[t][h]);
}

INLINE void clear(int n_tokens, vf sum[][2])
{
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; t++)
        sum[t][0] = sum[t][1] = vf_set1(0.0f);
}

INLINE vf block_float(struct ints from, const uint8_t *p, const uint8_t *tail, int i, int h)
{
    if (from.plain)
        return vf_load((const float *)(const void *)(tail + i * 128 + h * 64));
    return half_at(p, (uint32_t)i * 2, h);
}

INLINE void store_sums(int n_tokens, vf acc[][2], float to[][TD_CPU_GROUP])
{
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; t++)
        for (int h = 0; h < 2; h++)
            vf_store(to[t] + 16 * h, acc[t][h]);
}

/* Moves sums out of the registers, which the compiler would rather take from the inner loop. */
INLINE void hold(int n_tokens, vf acc[][2], float held[8][TD_CPU_GROUP])
{
    store_sums(n_tokens, acc, held);
    __asm__ volatile("" : "+m"(*(float(*)[8][TD_CPU_GROUP])held));
}

/* acc = held + sum * (scales `d` of the block times those of the activations, negative for minimums). */
INLINE void add_block(struct ints from, int n_tokens, vf d0, vf d1, bool negative, const uint8_t *a,
                      vf sum[][2], float held[][TD_CPU_GROUP], vf acc[][2])
{
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; t++) {
        vf x = act_float(from, a, 32, t);

        x = negative ? vf_neg(x) : x;
        acc[t][0] = vf_fma(sum[t][0], vf_mul(d0, x), vf_load(held[t]));
        acc[t][1] = vf_fma(sum[t][1], vf_mul(d1, x), vf_load(held[t] + 16));
    }
}

INLINE void leaf_int256(struct td_cpu_traits traits, struct ints from, int n_tokens,
                        const uint8_t *p, const uint8_t *a, uint32_t n_k, struct lookahead *ahead,
                        vf acc[][2])
{
    const size_t step = plain_block(traits), bytes = 8 * step + plain_tail(traits);
    const size_t act_step = td_cpu_act_block_bytes(traits) * (uint32_t)from.in_tile;

    for (uint32_t k = 0; k < n_k;
         k += 256, p += bytes, a += 8 * act_step, from.dots += from.made ? 8 : 0) {
        const uint8_t *tail = p + 8 * step;
        float held[8][TD_CPU_GROUP];
        vf sum[8][2];

        hold(n_tokens, acc, held);
        clear(n_tokens, sum);
#pragma GCC unroll 1
        for (int b = 0; b < 8; b++) {
            look_ahead(ahead);
            eighth(traits, from, n_tokens, p + (size_t)b * step, a + (size_t)b * act_step, b, sum);
        }
        add_block(from, n_tokens, block_float(from, p, tail, 0, 0),
                  block_float(from, p, tail, 0, 1), false, a, sum, held, acc);
        if (!traits.mins)
            continue;
        hold(n_tokens, acc, held);
        block_mins(traits, from, n_tokens, p, step, a, act_step, sum);
        add_block(from, n_tokens, block_float(from, p, tail, 1, 0),
                  block_float(from, p, tail, 1, 1), true, a, sum, held, acc);
    }
}

/* ---- one token: straight from the packed form of a full group ---- */

/* A block of 256 columns of some groups, an eighth of each by turns. Eighths differ in their shifts and are written out. */
INLINE void block_one(enum td_dtype dtype, uint32_t n_groups, const uint8_t *const *w,
                      const uint8_t *a, vf acc[][1][2])
{
    const struct td_cpu_traits traits = td_cpu_traits(dtype);
    const struct ints from = {.dtype = dtype, .in_tile = 1};
    const size_t eighth_bytes = block_bytes(dtype) * TD_CPU_GROUP / 8;
    const size_t act_step = td_cpu_act_block_bytes(traits);
    float held[1][TD_CPU_GROUP];
    vf sum[TD_CPU_STREAMS][1][2];

    for (uint32_t g = 0; g < n_groups; g++)
        clear(1, sum[g]);
#pragma GCC unroll 8
    for (int b = 0; b < 8; b++)
#pragma GCC unroll 1
        for (uint32_t g = 0; g < n_groups; g++) {
            for (size_t i = 0; i < eighth_bytes; i += 64)
                __builtin_prefetch(w[g] + (size_t)b * eighth_bytes + AHEAD + i, 0, 3);
            eighth(traits, from, 1, w[g], a + (size_t)b * act_step, b, sum[g]);
        }
    for (uint32_t g = 0; g < n_groups; g++) {
        store_sums(1, acc[g], held);
        add_block(from, 1, block_float(from, w[g], NULL, 0, 0), block_float(from, w[g], NULL, 0, 1),
                  false, a, sum[g], held, acc[g]);
        if (!traits.mins)
            continue;
        block_mins(traits, from, 1, w[g], 0, a, act_step, sum[g]);
        store_sums(1, acc[g], held);
        add_block(from, 1, block_float(from, w[g], NULL, 1, 0), block_float(from, w[g], NULL, 1, 1),
                  true, a, sum[g], held, acc[g]);
    }
}

INLINE void pair_step(vi w0, vi w1, const float *x, vf acc[2])
{
#if TD_BF16_PAIRS
    vi a = vi_set1_word((const uint8_t *)x);

    acc[0] = v_dot_bf16(acc[0], w0, a);
    acc[1] = v_dot_bf16(acc[1], w1, a);
#else
    vf odd = vf_set1(x[0]), even = vf_set1(x[1]);

    acc[0] = vf_fma(vf_even(w0), even, vf_fma(vf_odd(w0), odd, acc[0]));
    acc[1] = vf_fma(vf_even(w1), even, vf_fma(vf_odd(w1), odd, acc[1]));
#endif
}

INLINE void leaf_one(enum td_dtype dtype, const uint8_t *p, const uint8_t *a, uint32_t n_k,
                     vf acc[][2])
{
    const struct td_cpu_traits traits = td_cpu_traits(dtype);
    const struct ints from = {.dtype = dtype, .in_tile = 1};
    const float *x = (const float *)(const void *)a;
    vf sum[1][2];

    switch (traits.kind) {
    case TD_ACT_INT32:
        leaf_int32(traits, from, 1, p, a, n_k, NULL, acc);
        return;
    case TD_ACT_BF16:
        for (uint32_t k = 0; dtype == TD_BF16 && k < n_k; k += 2, x += 2 - TD_BF16_PAIRS) {
            __builtin_prefetch(p + AHEAD, 0, 3);
            __builtin_prefetch(p + AHEAD + 64, 0, 3);
            pair_step(word_at(p, 0, 0), word_at(p, 0, 1), x, acc[0]);
            p += TD_CPU_GROUP * 4;
        }
        for (uint32_t b = 0; dtype == TD_F8_E4M3 && b < n_k; b += 128) {
            uint32_t n = n_k - b < 128 ? n_k - b : 128;
            vf s0 = vf_cast(word_at(p, 0, 0)), s1 = vf_cast(word_at(p, 0, 1));
            const vf none = vf_set1(0.0f);

            sum[0][0] = sum[0][1] = none;
            p += TD_CPU_GROUP * 4;
            for (uint32_t k = 0; k < n; k += 2, x += 2 - TD_BF16_PAIRS) {
                bool paired = k + 1 < n;

                __builtin_prefetch(p + AHEAD + (size_t)k * TD_CPU_GROUP, 0, 3);
                pair_step(vi_pair(f8_at(p, k, 0), paired ? f8_at(p, k + 1, 0) : none),
                          vi_pair(f8_at(p, k, 1), paired ? f8_at(p, k + 1, 1) : none), x, sum[0]);
            }
            p += (size_t)TD_CPU_GROUP * n;
            acc[0][0] = vf_fma(sum[0][0], s0, acc[0][0]);
            acc[0][1] = vf_fma(sum[0][1], s1, acc[0][1]);
        }
        return;
    default:
        for (uint32_t k = 0; k < n_k; k++) {
            const uint32_t size = dtype == TD_F32 ? 4 : 2;
            vf v = vf_set1(x[k]);
            vf w0 = dtype == TD_F32 ? vf_cast(word_at(p, 0, 0)) : half_at(p, 0, 0);
            vf w1 = dtype == TD_F32 ? vf_cast(word_at(p, 0, 1)) : half_at(p, 0, 1);

            __builtin_prefetch(p + AHEAD, 0, 3);
            acc[0][0] = vf_fma(w0, v, acc[0][0]);
            acc[0][1] = vf_fma(w1, v, acc[0][1]);
            p += (size_t)TD_CPU_GROUP * size;
        }
        return;
    }
}

/* Bytes of one token's activations in n_k columns that begin at a block. */
INLINE size_t act_bytes(struct td_cpu_traits traits, uint32_t n_k)
{
    return td_cpu_act_row_bytes(traits, n_k, TD_BF16_PAIRS);
}

/* Columns that are taken from one group before the next group's turn (blocks of 256 take turns inside). */
INLINE uint32_t stripe(enum td_dtype dtype)
{
    const struct td_cpu_traits traits = td_cpu_traits(dtype);

    return traits.kind == TD_ACT_INT256 ? 256 : dtype == TD_F8_E4M3 ? 128 : 32;
}

/* Up to TD_CPU_STREAMS groups by turns: memory is read fastest in more places than one. */
INLINE void one_token(enum td_dtype dtype, const struct td_cpu_product *p)
{
    const struct td_matrix *m = &p->m->head;
    const struct td_cpu_traits traits = td_cpu_traits(dtype);
    const uint8_t *a = p->act->data + (size_t)p->t0 * p->act->row_bytes, *w[TD_CPU_STREAMS];
    vf stack[TD_CPU_STREAMS][TD_CPU_MAX_LEVELS][2];
    uint32_t k0 = 0;

    for (uint32_t g = 0; g < p->n_groups; g++)
        w[g] = td_cpu_group_data(p->m, p->group + g);
    for (uint32_t part = 0; part < m->n_parts; part++) {
        uint32_t depth = 0;

        for (uint32_t leaf = m->part_begin[part]; leaf < m->part_begin[part + 1]; leaf++) {
            vf acc[TD_CPU_STREAMS][1][2];
            uint32_t joined = 0;

            for (uint32_t g = 0; g < p->n_groups; g++)
                acc[g][0][0] = acc[g][0][1] = vf_set1(0.0f);
            while (k0 < m->leaf_end[leaf]) {
                const uint32_t left = m->leaf_end[leaf] - k0;
                const uint32_t n_k = left < stripe(dtype) ? left : stripe(dtype);

                if (traits.kind == TD_ACT_INT256)
                    block_one(dtype, p->n_groups, w, a, acc);
                else
#pragma GCC unroll 1
                    for (uint32_t g = 0; g < p->n_groups; g++)
                        leaf_one(dtype, w[g], a, n_k, acc[g]);
                for (uint32_t g = 0; g < p->n_groups; g++)
                    w[g] += lane_bytes(dtype, n_k) * TD_CPU_GROUP;
                a += act_bytes(traits, n_k);
                k0 += n_k;
            }
            for (uint32_t i = leaf - m->part_begin[part]; i & 1; i >>= 1)
                joined++;
            for (uint32_t g = 0; g < p->n_groups; g++)
                for (int h = 0; h < 2; h++) {
                    vf sum = acc[g][0][h];

                    for (uint32_t i = 1; i <= joined; i++)
                        sum = vf_add(stack[g][depth - i][h], sum);
                    stack[g][depth - joined][h] = sum;
                }
            depth = depth - joined + 1;
        }
        for (uint32_t g = 0; g < p->n_groups; g++)
            for (int h = 0; h < 2; h++) {
                vf sum = stack[g][depth - 1][h];

                for (uint32_t i = depth - 1; i-- > 0;)
                    sum = vf_add(stack[g][i][h], sum);
                vf_store(p->out + part * p->part_stride + g * TD_CPU_GROUP + h * 16, sum);
            }
    }
}

/* ---- many tokens, or a group with lanes missing: chunk by chunk of the plain form ---- */

/* A run of leaves whose plain form is at hand, or a piece of one leaf. */
struct chunk {
    uint32_t leaf0, n_leaves;
    uint32_t k0, k1;  /* columns */
    bool first, last; /* piece of its leaf */
    const uint8_t *w; /* of a full group: the plain form, or the packed one */
    struct lookahead *ahead;
};

/* Sums of all tokens that wait for their right-hand neighbours. */
struct waiting {
    float sum[TD_CPU_MAX_LEVELS][TD_CPU_TOKENS][TD_CPU_GROUP];
    float acc[TD_CPU_TOKENS][TD_CPU_GROUP]; /* of a leaf in pieces */
};

INLINE void leaf_plain(struct td_cpu_traits traits, bool f8, struct ints from, int n_tokens,
                       const uint8_t *p, const uint8_t *a, uint32_t n_k, struct lookahead *ahead,
                       vf acc[][2])
{
    const float *w = (const float *)(const void *)p;

    if (traits.kind == TD_ACT_INT32)
        leaf_int32(traits, from, n_tokens, p, a, n_k, ahead, acc);
    else if (traits.kind == TD_ACT_INT256)
        leaf_int256(traits, from, n_tokens, p, a, n_k, ahead, acc);
    else if (f8)
        leaf_f8(n_tokens, w, (const float *)(const void *)a, n_k, ahead, acc);
    else if (traits.kind == TD_ACT_BF16)
        leaf_bf16(n_tokens, w, (const float *)(const void *)a, n_k, ahead, acc);
    else
        leaf_float(n_tokens, w, (const float *)(const void *)a, n_k, ahead, acc);
}

/* Activations of a tile from the chunk's first column on. */
INLINE const uint8_t *tile_acts(struct td_cpu_traits traits, const struct td_cpu_product *p,
                                const struct chunk *c, struct td_cpu_tile t)
{
    return p->act->data + (size_t)(p->t0 + t.t0) * p->act->row_bytes +
           act_bytes(traits, c->k0) * t.n;
}

/* Where the 32 sums of a token will be stored is far away: a row of the output lies in between. */
INLINE void ask_for_sums(const float *out)
{
    __builtin_prefetch(out, 1, 3);
    __builtin_prefetch(out + TD_CPU_GROUP - 1, 1, 3);
}

/* acc = left + acc. */
INLINE void add_left(int n_tokens, float left[][TD_CPU_GROUP], vf acc[][2])
{
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; t++)
        for (int h = 0; h < 2; h++)
            acc[t][h] = vf_add(vf_load(left[t] + 16 * h), acc[t][h]);
}

/* n_tokens tokens from t0 on go over a chunk with the activations `a`; what its leaves join to waits at `depth`, after
 * `chunk_index` chunks of the part. */
INLINE void tile(struct td_cpu_traits traits, bool f8, struct ints from, int n_tokens,
                 const struct td_cpu_product *p, const struct chunk *c, uint32_t t0,
                 const uint8_t *a, struct lookahead *ahead, uint32_t depth, uint32_t chunk_index,
                 struct waiting *wait)
{
    const struct td_matrix *m = &p->m->head;
    const uint8_t *w = c->w;
    float stack[TD_CPU_MAX_LEVELS][8][TD_CPU_GROUP], (*to)[TD_CPU_GROUP] = wait->acc;
    uint32_t n_stack = 0, k0 = c->k0;
    vf acc[8][2];

    for (uint32_t i = 0; c->k0 == 0 && i < (uint32_t)n_tokens; i++)
        ask_for_sums(p->out + (t0 + i) * p->row_stride);
    for (uint32_t leaf = 0;; leaf++) {
        const bool end = leaf + 1 == c->n_leaves;
        uint32_t k1 = m->leaf_end[c->leaf0 + leaf] < c->k1 ? m->leaf_end[c->leaf0 + leaf] : c->k1;
        uint32_t n_k = k1 - k0;

#pragma GCC unroll 8
        for (int i = 0; i < n_tokens; i++) {
            acc[i][0] = c->first ? vf_set1(0.0f) : vf_load(wait->acc[t0 + (uint32_t)i]);
            acc[i][1] = c->first ? vf_set1(0.0f) : vf_load(wait->acc[t0 + (uint32_t)i] + 16);
        }
        leaf_plain(traits, f8, from, n_tokens, w, a, n_k, ahead, acc);
        w += from.plain ? plain_bytes(traits, f8, n_k) : lane_bytes(from.dtype, n_k) * TD_CPU_GROUP;
        a += act_bytes(traits, n_k) * (uint32_t)from.in_tile;
        if (from.made)
            from.dots += n_k / 32;
        k0 = k1;
        for (uint32_t i = leaf; n_stack && (i & 1 || end); i >>= 1)
            add_left(n_tokens, stack[--n_stack], acc);
        if (end) /* joined with all on its left */
            break;
        store_sums(n_tokens, acc, stack[n_stack++]);
    }
    if (c->last) {
        for (uint32_t i = chunk_index; i & 1; i >>= 1)
            add_left(n_tokens, &wait->sum[--depth][t0], acc);
        to = wait->sum[depth];
    }
    store_sums(n_tokens, acc, &to[t0]);
}

INLINE void tiles(struct td_cpu_traits traits, bool f8, const struct td_cpu_product *p,
                  const struct chunk *c, uint32_t depth, uint32_t chunk_index, struct waiting *wait)
{
    const uint32_t n_tiles = td_cpu_tiles(p->n, p->act->max_tile);

    for (uint32_t i = 0; i < n_tiles; i++) {
        struct td_cpu_tile t = td_cpu_tile(p->n, n_tiles, i);

        switch (t.n) {
#define TILE(T)                                                                                    \
    case T:                                                                                        \
        if (T <= (traits.kind >= TD_ACT_INT32 ? TD_TILE_INT : TD_TILE_FLOAT))                      \
            tile(traits, f8, (struct ints){.plain = true, .in_tile = T}, T, p, c, t.t0,            \
                 tile_acts(traits, p, c, t), c->ahead, depth, chunk_index, wait);                  \
        break
            TILE(1);
            TILE(2);
            TILE(3);
            TILE(4);
            TILE(5);
            TILE(6);
            TILE(7);
            TILE(8);
#undef TILE
        default:
            break;
        }
    }
}

typedef void tiles_fn(const struct td_cpu_product *p, const struct chunk *c, uint32_t depth,
                      uint32_t chunk_index, struct waiting *wait);
typedef void expand_fn(const uint8_t *p, uint32_t n_k, float *plain);

static uint32_t leaf_begin(const struct td_matrix *m, uint32_t leaf)
{
    return leaf ? m->leaf_end[leaf - 1] : 0;
}

/* Leaves of a part whose plain form fits a chunk wherever such a run begins: a power of two, so that they are a subtree. */
static uint32_t leaves_per_chunk(const struct td_matrix *m, uint32_t part, uint32_t chunk_cols)
{
    const uint32_t begin = m->part_begin[part], end = m->part_begin[part + 1];
    uint32_t n = 1;

    for (; n < end - begin; n *= 2)
        for (uint32_t leaf = begin; leaf < end; leaf += 2 * n) {
            uint32_t last = (leaf + 2 * n < end ? leaf + 2 * n : end) - 1;

            if (m->leaf_end[last] - leaf_begin(m, leaf) > chunk_cols)
                return n;
        }
    return n;
}

/* `expand` makes the plain form of a full group; NULL: `run` reads the packed one. The next group is asked for in n_passes passes
 * over this one. */
INLINE void many_tokens(enum td_dtype dtype, uint32_t chunk_cols, uint32_t n_passes,
                        const struct td_cpu_product *p, expand_fn *expand, tiles_fn *run)
{
    const struct td_matrix *m = &p->m->head;
    const uint32_t lanes = td_cpu_lanes(m, p->group);
    const uint8_t *w = td_cpu_group_data(p->m, p->group);
    _Alignas(64) uint8_t plain[PLAIN_BYTES];
    _Alignas(64) uint8_t wide[WIDE_BYTES];
    _Alignas(64) struct waiting wait;
    struct lookahead ahead =
        look_from(w + p->m->group_bytes, p->m->group_bytes, n_passes * ((m->n_cols + 31) / 32));
    uint32_t k0 = 0;

    for (uint32_t part = 0; part < m->n_parts; part++) {
        const uint32_t begin = m->part_begin[part], end = m->part_begin[part + 1];
        const uint32_t step = leaves_per_chunk(m, part, chunk_cols);
        uint32_t depth = 0, index = 0;

        for (uint32_t leaf = begin; leaf < end; leaf += step, index++) {
            struct chunk c = {
                .leaf0 = leaf, .n_leaves = leaf + step < end ? step : end - leaf, .ahead = &ahead};
            uint32_t leaf_end = m->leaf_end[leaf + c.n_leaves - 1];

            for (; k0 < leaf_end; k0 = c.k1) {
                c.first = k0 == leaf_begin(m, leaf);
                c.k0 = k0;
                c.k1 = leaf_end - k0 < chunk_cols ? leaf_end : k0 + chunk_cols;
                c.last = c.k1 == leaf_end;
                if (lanes < TD_CPU_GROUP)
                    td_pack_widen(dtype, lanes, w, c.k1 - k0, wide);
                c.w = lanes < TD_CPU_GROUP ? wide : w;
                if (expand) {
                    expand(c.w, c.k1 - k0, (float *)(void *)plain);
                    c.w = plain;
                }
                run(p, &c, depth, index, &wait);
                w += lane_bytes(dtype, c.k1 - k0) * lanes;
            }
            for (uint32_t i = index; i & 1; i >>= 1)
                depth--;
            depth++;
        }
        for (uint32_t t = 0; t < p->n; t++) {
            float *out = p->out + part * p->part_stride + t * p->row_stride;
            vf s0 = vf_load(wait.sum[depth - 1][t]), s1 = vf_load(wait.sum[depth - 1][t] + 16);

            for (uint32_t level = depth - 1; level-- > 0;) {
                s0 = vf_add(vf_load(wait.sum[level][t]), s0);
                s1 = vf_add(vf_load(wait.sum[level][t] + 16), s1);
            }
            store_part(out, s0, lanes < 16 ? lanes : 16);
            if (lanes > 16)
                store_part(out + 16, s1, lanes - 16);
        }
    }
}

/* One function per plain form: `narrow` is that of the traits, which AVX-512 does not care about. */
#define TILES(name, kind, halves, mins, narrow, f8)                                                \
    static __attribute__((noinline)) void name(const struct td_cpu_product *p,                     \
                                               const struct chunk *c, uint32_t depth,              \
                                               uint32_t chunk_index, struct waiting *wait)         \
    {                                                                                              \
        tiles((struct td_cpu_traits){kind, 1, halves, mins, narrow}, f8, p, c, depth, chunk_index, \
              wait);                                                                               \
    }

/* A product of one type by way of `run`. */
#define PRODUCT(name, dtype, expand_kind, run)                                                     \
    static                                                                                         \
        __attribute__((noinline)) void expand_##name(const uint8_t *p, uint32_t n_k, float *plain) \
    {                                                                                              \
        expand_kind(dtype, p, n_k, plain);                                                         \
    }                                                                                              \
    static void product_##name(const struct td_cpu_product *p)                                     \
    {                                                                                              \
        struct td_cpu_product one = *p;                                                            \
                                                                                                   \
        /* The last group may have lanes missing. */                                               \
        if (p->n == 1)                                                                             \
            one.n_groups -= td_cpu_lanes(&p->m->head, p->group + p->n_groups - 1) < TD_CPU_GROUP;  \
        else                                                                                       \
            one.n_groups = 0;                                                                      \
        if (one.n_groups)                                                                          \
            one_token(dtype, &one);                                                                \
        one.group += one.n_groups;                                                                 \
        one.out += (size_t)one.n_groups * TD_CPU_GROUP;                                            \
        for (; one.group < p->group + p->n_groups; one.group++, one.out += TD_CPU_GROUP)           \
            many_tokens(dtype,                                                                     \
                        td_cpu_traits(dtype).kind >= TD_ACT_INT32 ? CHUNK_INT : CHUNK_FLOAT,       \
                        td_cpu_tiles(p->n, p->act->max_tile), &one,                                \
                        plain_is_packed(dtype) ? NULL : expand_##name, run);                       \
    }

#endif
