/* The vector bodies, written once over a vector of 16 floats and included by one file per instruction set, which defines
 * the vector before (vf, vi and the v*_ functions, TD_TILE_FLOAT, TD_TILE_INT, TD_ISA). The order of every sum is ref.c's:
 * lanes are output rows (matmul) or the 16 lanes of a fold (dot products, norms), so the bits are ref.c's too. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE vf v_exp(vf x)
{
    vf n, r, p;
    vi i, half;

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
    i = vi_from_vf(n);
    half = vi_half(i);
    p = vf_mul(p, vf_pow2(half));
    return vf_mul(p, vf_pow2(vi_sub(i, half)));
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

/* 16 values of a float type as F32; `n` of them exist. */
INLINE vf load_as(enum td_dtype dtype, const uint8_t *p, uint32_t n)
{
    uint8_t tmp[64] = {0};

    if (n < 16) {
        memcpy(tmp, p, (size_t)n * (dtype == TD_F32 ? 4 : 2));
        p = tmp;
    }
    if (dtype == TD_F32)
        return vf_load((const float *)(const void *)p);
    if (dtype == TD_F16)
        return vf_load_f16(p);
    return vf_load_bf16(p);
}

INLINE vi load_words(const uint8_t *p, uint32_t n)
{
    uint8_t tmp[64] = {0};

    if (n < 16) {
        memcpy(tmp, p, (size_t)n * 4);
        p = tmp;
    }
    return vi_load(p);
}

/* ---- matmul ---- */

/* Leaf sums of one tile: `n_tokens` tokens x 32 rows. Constant n_tokens and dtype; lanes is the constant 32 for full groups. */
INLINE void leaf_float(enum td_dtype dtype, int n_tokens, uint32_t lanes, const uint8_t *w,
                       const float *x, size_t ldx, uint32_t n_k, vf acc[][2])
{
    const size_t size = dtype == TD_F32 ? 4 : 2;
    const uint32_t lo = lanes < 16 ? lanes : 16, hi = lanes - lo;

    for (int t = 0; t < n_tokens; t++)
        acc[t][0] = acc[t][1] = vf_set1(0.0f);
    for (uint32_t k = 0; k < n_k; k++, w += lanes * size) {
        vf w0 = load_as(dtype, w, lo), w1 = load_as(dtype, w + 16 * size, hi);

#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vf a = vf_set1(x[(size_t)t * ldx + k]);

            acc[t][0] = vf_fma(w0, a, acc[t][0]);
            acc[t][1] = vf_fma(w1, a, acc[t][1]);
        }
    }
}

INLINE void leaf_int(enum td_dtype dtype, int n_tokens, uint32_t lanes, const uint8_t *w,
                     const struct td_cpu_act *act, uint32_t t0, uint32_t k0, uint32_t n_k,
                     vf acc[][2])
{
    const uint32_t n_blocks = act->n_cols / 32, b0 = k0 / 32;
    const uint32_t lo = lanes < 16 ? lanes : 16, hi = lanes - lo;
    const int offset = dtype == TD_Q8_0 ? -128 : -8;
    const int8_t *q = act->q + (size_t)t0 * act->n_cols + k0;
    const float *scale = act->scale + (size_t)t0 * n_blocks + b0;
    const int32_t *sum = act->sum + (size_t)t0 * n_blocks + b0;

    for (int t = 0; t < n_tokens; t++)
        acc[t][0] = acc[t][1] = vf_set1(0.0f);
    for (uint32_t b = 0; b < n_k / 32; b++, q += 32) {
        vf s0 = load_as(TD_F16, w, lo), s1 = load_as(TD_F16, w + 32, hi);
        vi dot[8][2];

        w += (size_t)lanes * 2;
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++)
            dot[t][0] = dot[t][1] = vi_set1(offset * sum[(size_t)t * n_blocks + b]);
        if (dtype == TD_Q8_0) {
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++, w += (size_t)lanes * 4) {
                vi w0 = load_words(w, lo), w1 = load_words(w + 64, hi);

#pragma GCC unroll 8
                for (int t = 0; t < n_tokens; t++) {
                    vi a = vi_set1_word(q + (size_t)t * act->n_cols + j * 4);

                    dot[t][0] = vi_dot(dot[t][0], w0, a);
                    dot[t][1] = vi_dot(dot[t][1], w1, a);
                }
            }
        } else {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++, w += (size_t)lanes * 4) {
                vi w0 = load_words(w, lo), w1 = load_words(w + 64, hi);
                vi l0 = vi_low_nibbles(w0), l1 = vi_low_nibbles(w1);
                vi h0 = vi_high_nibbles(w0), h1 = vi_high_nibbles(w1);

#pragma GCC unroll 8
                for (int t = 0; t < n_tokens; t++) {
                    vi a = vi_set1_word(q + (size_t)t * act->n_cols + j * 4);
                    vi c = vi_set1_word(q + (size_t)t * act->n_cols + j * 4 + 16);

                    dot[t][0] = vi_dot(vi_dot(dot[t][0], l0, a), h0, c);
                    dot[t][1] = vi_dot(vi_dot(dot[t][1], l1, a), h1, c);
                }
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vf a = vf_set1(scale[(size_t)t * n_blocks + b]);

            acc[t][0] = vf_fma(vf_from_vi(dot[t][0]), vf_mul(s0, a), acc[t][0]);
            acc[t][1] = vf_fma(vf_from_vi(dot[t][1]), vf_mul(s1, a), acc[t][1]);
        }
    }
}

/* All parts of one tile, with the leaves joined as a binary counter. */
INLINE void tile(enum td_dtype dtype, int n_tokens, uint32_t lanes, const struct td_cpu_matrix *m,
                 uint32_t group, const struct td_cpu_act *act, uint32_t t0, uint32_t n_total,
                 float *out)
{
    const struct td_matrix *h = &m->head;
    const size_t block = dtype == TD_Q8_0 || dtype == TD_Q4_0 ? 32 : 1;
    const size_t block_bytes = dtype == TD_F32    ? 4
                               : dtype == TD_Q8_0 ? 34
                               : dtype == TD_Q4_0 ? 18
                                                  : 2;
    const uint8_t *w = td_cpu_group_data(m, group);
    vf acc[8][2], stack[TD_CPU_MAX_LEVELS][8][2];
    uint32_t k0 = 0;

    for (uint32_t p = 0; p < h->n_parts; p++) {
        uint32_t depth = 0;

        for (uint32_t leaf = h->part_begin[p]; leaf < h->part_begin[p + 1]; leaf++) {
            uint32_t n_k = h->leaf_end[leaf] - k0;

            if (block == 1)
                leaf_float(dtype, n_tokens, lanes, w, act->x + (size_t)t0 * act->n_cols + k0,
                           act->n_cols, n_k, acc);
            else
                leaf_int(dtype, n_tokens, lanes, w, act, t0, k0, n_k, acc);
            for (uint32_t i = leaf - h->part_begin[p]; i & 1; i >>= 1) {
                depth--;
                for (int t = 0; t < n_tokens; t++) {
                    acc[t][0] = vf_add(stack[depth][t][0], acc[t][0]);
                    acc[t][1] = vf_add(stack[depth][t][1], acc[t][1]);
                }
            }
            for (int t = 0; t < n_tokens; t++) {
                stack[depth][t][0] = acc[t][0];
                stack[depth][t][1] = acc[t][1];
            }
            depth++;
            w += n_k / block * block_bytes * lanes;
            k0 = h->leaf_end[leaf];
        }
        for (; depth > 1; depth--)
            for (int t = 0; t < n_tokens; t++)
                for (int j = 0; j < 2; j++)
                    stack[depth - 2][t][j] = vf_add(stack[depth - 2][t][j], stack[depth - 1][t][j]);
        for (int t = 0; t < n_tokens; t++) {
            float *row = out + ((size_t)p * n_total + t0 + (uint32_t)t) * h->n_rows +
                         (size_t)group * TD_CPU_GROUP;

            store_part(row, stack[0][t][0], lanes < 16 ? lanes : 16);
            if (lanes > 16)
                store_part(row + 16, stack[0][t][1], lanes - 16);
        }
    }
}

/* Rows t0 .. t0 + n - 1 in tiles of at most `max_tile` tokens, split evenly (16 = 6 + 5 + 5). */
INLINE void tiles(enum td_dtype dtype, uint32_t max_tile, uint32_t lanes,
                  const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,
                  uint32_t t0, uint32_t n, uint32_t n_total, float *out)
{
    uint32_t n_tiles = (n + max_tile - 1) / max_tile;

    for (uint32_t i = 0; i < n_tiles; i++) {
        uint32_t n_tokens = n / n_tiles + (i < n % n_tiles);

        switch (n_tokens) {
#define TILE(T)                                                                                    \
    case T:                                                                                        \
        tile(dtype, T, lanes, m, group, act, t0, n_total, out);                                    \
        break
            TILE(1);
            TILE(2);
            TILE(3);
#if TD_TILE_FLOAT > 3
            TILE(4);
            TILE(5);
            TILE(6);
#endif
#if TD_TILE_FLOAT > 6
            TILE(7);
            TILE(8);
#endif
#undef TILE
        default:
            break;
        }
        t0 += n_tokens;
    }
}

#define MATMUL(name, dtype, max_tile)                                                              \
    static void name(const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,  \
                     uint32_t t0, uint32_t n, uint32_t n_total, float *out)                        \
    {                                                                                              \
        uint32_t lanes = td_cpu_lanes(&m->head, group);                                            \
                                                                                                   \
        if (lanes == TD_CPU_GROUP)                                                                 \
            tiles(dtype, max_tile, TD_CPU_GROUP, m, group, act, t0, n, n_total, out);              \
        else                                                                                       \
            for (uint32_t t = 0; t < n; t++)                                                       \
                tile(dtype, 1, lanes, m, group, act, t0 + t, n_total, out);                        \
    }
MATMUL(matmul_f32, TD_F32, TD_TILE_FLOAT)
MATMUL(matmul_f16, TD_F16, TD_TILE_FLOAT)
MATMUL(matmul_bf16, TD_BF16, TD_TILE_FLOAT)
MATMUL(matmul_q8_0, TD_Q8_0, TD_TILE_INT)
MATMUL(matmul_q4_0, TD_Q4_0, TD_TILE_INT)

static void matmul(const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,
                   uint32_t t0, uint32_t n, uint32_t n_total, float *out)
{
    static void (*const by_type[TD_N_DTYPES])(const struct td_cpu_matrix *, uint32_t,
                                              const struct td_cpu_act *, uint32_t, uint32_t,
                                              uint32_t, float *) = {
        [TD_F32] = matmul_f32,   [TD_F16] = matmul_f16,   [TD_BF16] = matmul_bf16,
        [TD_Q8_0] = matmul_q8_0, [TD_Q4_0] = matmul_q4_0,
    };

    by_type[m->head.dtype](m, group, act, t0, n, n_total, out);
}

/* ---- rows ---- */

static void quantise(const struct td_cpu_act *act, uint32_t row)
{
    uint32_t n_blocks = act->n_cols / 32;

    for (uint32_t b = 0; b < n_blocks; b++) {
        const float *x = act->x + (size_t)row * act->n_cols + (size_t)b * 32;
        vf x0 = vf_load(x), x1 = vf_load(x + 16);
        float max = vf_max_bits(vf_abs(x0), vf_abs(x1));
        vf inverse = vf_set1(td_cpu_act_inverse(max));

        act->sum[(size_t)row * n_blocks + b] =
            vi_store_int8(vi_from_finite(vf_round(vf_mul(x0, inverse))),
                          vi_from_finite(vf_round(vf_mul(x1, inverse))),
                          act->q + (size_t)row * act->n_cols + (size_t)b * 32);
        act->scale[(size_t)row * n_blocks + b] = td_cpu_act_scale(max);
    }
}

static void rmsnorm(const float *x, const float *weight, uint32_t dim, float eps, float *out)
{
    vf sum = vf_set1(0.0f), scale;

    for (uint32_t i = 0; i < dim; i += 16) {
        vf v = load_part(x + i, dim - i);

        sum = vf_fma(v, v, sum);
    }
    scale = vf_set1(1.0f / sqrtf(vf_fold(sum) / (float)dim + eps));
    for (uint32_t i = 0; i < dim; i += 16) {
        vf v = vf_mul(load_part(x + i, dim - i), scale);

        store_part(out + i, vf_mul(v, load_part(weight + i, dim - i)), dim - i);
    }
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i += 16) {
        vf g = load_part(gate + i, n - i);
        vf d = vf_add(vf_set1(1.0f), v_exp(vf_neg(g)));

        store_part(out + i, vf_mul(vf_div(g, d), load_part(up + i, n - i)), n - i);
    }
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        store_part(x + i, vf_add(load_part(x + i, n - i), load_part(y + i, n - i)), n - i);
}

/* ---- attention ---- */

struct partial {
    float max;
    float sum;
    float acc[TD_KERN_MAX_HEAD_DIM];
};

/* Byte address of one token's row in a cache. */
INLINE const uint8_t *kv_row(const struct td_cpu_attend *a, const void *base, size_t size,
                             uint32_t position)
{
    const struct td_kv_view *kv = a->kv;
    size_t block = a->blocks[position / kv->block_tokens];

    return (const uint8_t *)base + ((block * kv->n_kv_heads + a->kv_head) * kv->block_tokens +
                                    position % kv->block_tokens) *
                                       kv->head_dim * size;
}

INLINE void attend_chunk(enum td_dtype dtype, const struct td_cpu_attend *a, const float *q,
                         uint32_t begin, uint32_t end, struct partial *p)
{
    const size_t size = dtype == TD_F32 ? 4 : 2;
    const uint32_t dim = a->kv->head_dim;
    float s[TD_KERN_CHUNK_KEYS] = {0};
    vf sum = vf_set1(0.0f);

    p->max = -INFINITY;
    for (uint32_t j = begin; j < end; j++) {
        const uint8_t *k = kv_row(a, a->kv->k, size, j);
        vf dot = vf_set1(0.0f);

        for (uint32_t d = 0; d < dim; d += 16)
            dot = vf_fma(vf_load(q + d), load_as(dtype, k + d * size, dim - d), dot);
        s[j - begin] = vf_fold(dot) * a->scale;
        p->max = s[j - begin] > p->max ? s[j - begin] : p->max;
    }
    for (uint32_t j = 0; j < end - begin; j += 16) {
        float e[16] = {0};

        vf_store(e, v_exp(vf_add(vf_load(s + j), vf_set1(-p->max))));
        memset(s + j, 0, 16 * sizeof *s);
        memcpy(s + j, e, (end - begin - j < 16 ? end - begin - j : 16) * sizeof *s);
        sum = vf_add(sum, vf_load(s + j));
    }
    p->sum = vf_fold(sum);
    for (uint32_t d = 0; d < dim; d += 16)
        vf_store(p->acc + d, vf_set1(0.0f));
    for (uint32_t j = begin; j < end; j++) {
        const uint8_t *v = kv_row(a, a->kv->v, size, j);
        vf e = vf_set1(s[j - begin]);

        for (uint32_t d = 0; d < dim; d += 16)
            vf_store(p->acc + d,
                     vf_fma(e, load_as(dtype, v + d * size, dim - d), vf_load(p->acc + d)));
    }
}

static void join(struct partial *left, const struct partial *right, uint32_t dim)
{
    float max = right->max > left->max ? right->max : left->max;
    float cl = td_mathf_exp(left->max - max), cr = td_mathf_exp(right->max - max);

    left->max = max;
    left->sum = fmaf(left->sum, cl, right->sum * cr);
    for (uint32_t d = 0; d < dim; d += 16)
        vf_store(left->acc + d, vf_fma(vf_load(left->acc + d), vf_set1(cl),
                                       vf_mul(vf_load(right->acc + d), vf_set1(cr))));
}

INLINE void attend_as(enum td_dtype dtype, const struct td_cpu_attend *a)
{
    struct partial stack[TD_CPU_MAX_CHUNKS];
    float q[TD_KERN_MAX_HEAD_DIM];
    uint32_t depth = 0, n_keys = a->position + 1, dim = a->kv->head_dim, c = 0;
    vf inverse;

    for (uint32_t d = 0; d < dim; d += 16)
        vf_store(q + d, load_part(a->q + d, dim - d));
    do {
        uint32_t begin = c * TD_KERN_CHUNK_KEYS;
        uint32_t end = begin + TD_KERN_CHUNK_KEYS < n_keys ? begin + TD_KERN_CHUNK_KEYS : n_keys;

        attend_chunk(dtype, a, q, begin, end, &stack[depth++]);
        for (uint32_t i = c; i & 1; i >>= 1, depth--)
            join(&stack[depth - 2], &stack[depth - 1], dim);
    } while (++c * TD_KERN_CHUNK_KEYS < n_keys);
    for (; depth > 1; depth--)
        join(&stack[depth - 2], &stack[depth - 1], dim);
    inverse = vf_set1(1.0f / stack[0].sum);
    for (uint32_t d = 0; d < dim; d += 16)
        store_part(a->out + d, vf_mul(vf_load(stack[0].acc + d), inverse), dim - d);
}

static void attend(const struct td_cpu_attend *a)
{
    if (a->kv->dtype == TD_F32)
        attend_as(TD_F32, a);
    else if (a->kv->dtype == TD_F16)
        attend_as(TD_F16, a);
    else
        attend_as(TD_BF16, a);
}
