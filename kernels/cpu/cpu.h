/* What the CPU backend's files share: the packed matrix, the activations, and the table of one instruction set.
 * Functions of the table are pure and single-threaded; cpu.c spreads them over the pool.
 *
 * Packed layout: rows in groups of 32 across the vector lanes (the last group has as many lanes as rows are left: no padding),
 * columns in order inside a group. With r lanes:
 *   F32, F16, BF16: per column r values.
 *   Q8_0: per block of 32 columns r F16 scales, then 8 steps x [r][4] bytes: weight + 128 of columns 4j .. 4j+3.
 *   Q4_0: per block r F16 scales, then 4 steps x [r][4] bytes: low nibbles are step j, high nibbles step j + 4, values 0..15.
 *
 * Order of a sum (the specification is ref.c): leaf by leaf, acc = fma(w, x, acc) over ascending columns; for the integer types
 * per block an exact int32 dot, then acc = fma(dot, scale_w * scale_x, acc). Leaves join as a binary counter, left + right. */
#ifndef TD_KERNELS_CPU_CPU_H
#define TD_KERNELS_CPU_CPU_H

#include "kernels/kern_ops.h"
#include "kernels/quant/half.h"

#include <string.h>

enum {
    TD_CPU_GROUP = 32,
    TD_CPU_MAX_LEVELS = 8, /* subtrees at hand in a sum of TD_KERN_MAX_LEAVES leaves */
    TD_CPU_QUERIES = 128,  /* queries that are walked over the keys together */
};

struct td_cpu {
    struct td_kern head;
    const struct td_cpu_isa *isa;
    struct td_pool *pool;
    struct td_cpu_attention *attention; /* scratch of attention, grown on demand and kept */
    uint8_t *scratch;                   /* quantised activations, grown on demand and kept */
    size_t scratch_bytes;
};

static inline struct td_cpu *td_cpu_of(struct td_kern *kern)
{
    return (struct td_cpu *)kern;
}

struct td_cpu_matrix {
    struct td_matrix head;
    uint8_t *data;
};

static inline uint32_t td_cpu_lanes(const struct td_matrix *m, uint32_t group)
{
    uint32_t left = m->n_rows - group * TD_CPU_GROUP;

    return left < TD_CPU_GROUP ? left : TD_CPU_GROUP;
}

static inline uint32_t td_cpu_groups(const struct td_matrix *m)
{
    return (m->n_rows + TD_CPU_GROUP - 1) / TD_CPU_GROUP;
}

/* First byte of a group. Groups before the last are full, so each has row_bytes * 32. */
static inline const uint8_t *td_cpu_group_data(const struct td_cpu_matrix *m, uint32_t group)
{
    return m->data +
           (size_t)group * TD_CPU_GROUP * td_dtype_row_bytes(m->head.dtype, m->head.n_cols);
}

/* Activations of one matmul. The quantised form is filled for the integer types only: per block of 32, max|x| is
 * the largest in the order of the bits (so NaN is above infinity), scale = td_cpu_act_scale(max|x|), q = nearest(x *
 * td_cpu_act_inverse(max|x|)) and 0 for NaN, sum = sum of q. */
struct td_cpu_act {
    const float *x; /* [n x n_cols] */
    uint32_t n_cols;
    int8_t *q;    /* [n x n_cols] */
    float *scale; /* [n x n_cols / 32] */
    int32_t *sum; /* [n x n_cols / 32] */
};

/* 127 / max; 0, so that every q is 0, for a block without a value worth the name: there 127 / max could be infinite. */
static inline float td_cpu_act_inverse(float max)
{
    return max > 0x1p-100f ? 127.0f / max : 0.0f;
}

/* max / 127, rounded to the 11 significant bits of the F16 scale that a Q8_0 block has in files (so that results follow
 * those of programs that quantise activations to Q8_0), but with F32's range. Infinity and NaN, which an overflow upstream
 * leaves, stay: the sums are NaN then. */
static inline float td_cpu_act_scale(float max)
{
    uint32_t u = td_half_f32_bits(max / 127.0f);

    if (u >= 0x7f800000u)
        return max;
    return td_half_bits_f32((u + 0xfffu + ((u >> 13) & 1u)) & ~0x1fffu);
}

/* ---- attention ----
 * A block of the KV cache has a cell for each KV head, K first and V behind it, so that a decode step reads blocks from end to end.
 * V is block_tokens rows as td_quant_row writes them. K has keys side by side: for the float types per dimension block_tokens
 * values; for Q8_0 and Q4_0 per 32 dimensions block_tokens F16 scales, then 8 or 4 steps x [block_tokens][4] bytes, byte i of
 * step j being byte 4j + i of the token's file block. */

/* Shares of the softmax of some queries over some keys: the largest score, and per query the values weighted by
 * e = exp(score - max), [head_dim rounded up to 16], followed by 16 lanes of the sum of e (key j in lane j % 16). */
struct td_cpu_partial {
    float *max; /* [TD_CPU_QUERIES] */
    float *acc; /* [n_q x stride] */
};

static inline uint32_t td_cpu_partial_stride(uint32_t head_dim)
{
    return ((head_dim + 15) & ~15u) + 16;
}

/* Queries of one sequence whose keys end in the same chunk: of one row or of several. Those of one KV head are neighbours. */
struct td_cpu_attend {
    const struct td_kv_view *kv;
    const uint32_t *blocks; /* block table of the sequence */
    uint32_t n_q;           /* <= TD_CPU_QUERIES */
    uint32_t chunk_begin,
        chunk_end; /* a whole subtree of the tree over chunks, or its last, unfinished one */
    float scale;
    const float *q[TD_CPU_QUERIES]; /* [head_dim] each */
    uint32_t kv_head[TD_CPU_QUERIES];
    uint32_t n_keys
        [TD_CPU_QUERIES]; /* query i attends to keys 0 .. n_keys[i] - 1; at least one lies in each chunk */
    float *memory;        /* td_cpu_attend_floats, aligned to 64 bytes */
};

enum { TD_CPU_LEVELS = 26 }; /* subtrees at hand over the chunks of 2^30 keys, and one to join */

/* Scratch of one call: scaled queries, scores, a chunk of K and V as stored and as F32, and the subtrees at hand. */
static inline size_t td_cpu_attend_floats(uint32_t head_dim)
{
    size_t dim = (head_dim + 15) & ~15u;

    return TD_CPU_QUERIES * (TD_KERN_MAX_HEAD_DIM + 16 + TD_KERN_CHUNK_KEYS) +
           3 * dim * TD_KERN_CHUNK_KEYS +
           (size_t)TD_CPU_LEVELS * TD_CPU_QUERIES * (1 + td_cpu_partial_stride(head_dim));
}

static inline struct td_cpu_partial td_cpu_attend_level(const struct td_cpu_attend *a,
                                                        uint32_t level)
{
    size_t dim = (a->kv->head_dim + 15) & ~15u;
    size_t each = TD_CPU_QUERIES * (1 + (size_t)td_cpu_partial_stride(a->kv->head_dim));
    float *p = a->memory + TD_CPU_QUERIES * (TD_KERN_MAX_HEAD_DIM + 16 + TD_KERN_CHUNK_KEYS) +
               3 * dim * TD_KERN_CHUNK_KEYS + level * each;

    return (struct td_cpu_partial){p, p + TD_CPU_QUERIES};
}

/* Bytes of K, and of V, in the cell of one KV head. */
static inline size_t td_cpu_kv_half(const struct td_kv_view *kv)
{
    return kv->block_tokens * td_dtype_row_bytes(kv->dtype, kv->head_dim);
}

static inline uint8_t *td_cpu_kv_cell(const struct td_kv_view *kv, uint32_t block, uint32_t kv_head)
{
    return (uint8_t *)kv->data +
           ((size_t)block * kv->n_kv_heads + kv_head) * 2 * td_cpu_kv_half(kv);
}

/* Copies n keys between K blocks of the same type: keys from_t .. of a block of from_tokens to keys to_t .. of one of to_tokens.
 * A row as td_quant_row writes it is a K block of one token. */
void td_cpu_copy_keys(enum td_dtype dtype, uint32_t head_dim, const uint8_t *from,
                      uint32_t from_tokens, uint32_t from_t, uint8_t *to, uint32_t to_tokens,
                      uint32_t to_t, uint32_t n);

/* Attention of one instruction set. */
struct td_cpu_attend_ops {
    /* The share of chunks chunk_begin .. chunk_end - 1, left in td_cpu_attend_level(a, 0). */
    void (*run)(const struct td_cpu_attend *a);
    /* left = left joined with right, of n_q queries. */
    void (*join)(uint32_t head_dim, uint32_t n_q, const struct td_cpu_partial *left,
                 const struct td_cpu_partial *right);
    /* out [head_dim] of query i. */
    void (*finish)(uint32_t head_dim, const struct td_cpu_partial *p, uint32_t i, float *out);
    /* Rotates x [dim] in place by one row of angles [2 x dim]. */
    void (*rope)(float *x, const float *angles, uint32_t dim, bool interleaved);
    /* out [n] = x rounded to F16 or BF16. */
    void (*halves)(enum td_dtype dtype, const float *x, uint32_t n, uint16_t *out);
};

struct td_cpu_isa {
    const char *name;
    bool (*available)(void);
    /* Rows t0 .. t0 + n - 1 of the activations against one group; `out` is [n_parts x n_total x n_rows]. */
    void (*matmul)(const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,
                   uint32_t t0, uint32_t n, uint32_t n_total, float *out);
    void (*quantise)(const struct td_cpu_act *act, uint32_t row);
    void (*rmsnorm)(const float *x, const float *weight, uint32_t dim, float eps, float *out);
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *out);
    void (*add)(float *x, const float *y, size_t n);
    const struct td_cpu_attend_ops *attend;
};

/* Sum of 16 lanes: halves joined until one is left. */
static inline float td_cpu_fold16(const float *lane)
{
    float s[16];

    memcpy(s, lane, sizeof s);
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++)
            s[l] = s[l] + s[l + half];
    return s[0];
}

extern const struct td_cpu_attend_ops td_cpu_attend_ref[1];

extern const struct td_cpu_isa td_cpu_isa_ref;
extern const struct td_cpu_isa td_cpu_isa_avx2;
extern const struct td_cpu_isa td_cpu_isa_avx512;

/* Writes source rows (file format) of one group into the packed layout at `dst`. */
void td_pack_group(enum td_dtype dtype, uint32_t n_cols, uint32_t lanes, const uint8_t *src,
                   size_t stride_bytes, uint8_t *dst);
/* Column-wise inverse for one row: out [n_cols] dequantised. */
void td_pack_row(const struct td_cpu_matrix *m, uint32_t row, float *out);

/* The operations of kern_ops.h that have files of their own. */
enum td_status td_cpu_matmul(struct td_kern *kern, const struct td_matrix *matrix, const float *x,
                             uint32_t n, float *out, struct td_err *err);
void td_cpu_rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids, uint32_t n,
                 float *out);
void td_cpu_rmsnorm(struct td_kern *kern, const float *x, const float *weight, uint32_t n,
                    uint32_t dim, float eps, float *out);
void td_cpu_silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n,
                     float *out);
void td_cpu_add(struct td_kern *kern, float *x, const float *y, size_t n);
void td_cpu_rope_angles(struct td_kern *kern, const double *freq, uint32_t dim, double scale,
                        bool interleaved, const uint32_t *positions, uint32_t n, float *angles);
void td_cpu_rope_kv(struct td_kern *kern, const struct td_kv_view *kv,
                    const struct td_kv_rows *rows_in, uint32_t n, const struct td_rope_kv *in);
enum td_status td_cpu_attention(struct td_kern *kern, const struct td_kv_view *kv,
                                const struct td_kv_rows *rows_in, uint32_t n, const float *q,
                                uint32_t n_heads, const uint32_t *kv_of_head, float scale,
                                float *out, struct td_err *err);
void td_cpu_attention_close(struct td_cpu_attention *attention); /* NULL is legal */

#endif
