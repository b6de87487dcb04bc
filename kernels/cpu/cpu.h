/* What the CPU backend's files share: the packed matrix, the activations, and the table of one instruction set.
 * Functions of the table are pure and single-threaded; linear.c and its neighbours spread them over the pool.
 *
 * Packed layout: rows in groups of 32 across the vector lanes (the last group has as many lanes as rows are left: no padding),
 * columns in order inside a group. A group is a run of blocks, a block a run of fields, a field one value per lane; with L
 * lanes, in bytes from the block's start:
 *   F32, F16   per column: the value.
 *   BF16       per pair of columns: both values (an odd last column is paired with 0).
 *   F8_E4M3    per 128 columns: F32 scale; then per column the byte.
 *   Q8_0       F16 scale; at 2L 8 words: word j holds columns 4j .. 4j+3.
 *   Q4_0, IQ4_NL  F16 scale; at 2L 4 words of nibbles: the low ones of word j are columns 4j .. 4j+3, the high ones 16 more.
 *   Q4_1       F16 scale; at 2L F16 minimum; at 4L 4 words of nibbles as in Q4_0.
 *   Q5_0       F16 scale; at 2L a word of fifth bits: bit j of byte i is that of column 4j+i; at 6L nibbles as in Q4_0.
 *   Q5_1       F16 scale; at 2L F16 minimum; at 4L fifth bits, at 8L nibbles as in Q5_0.
 *   MXFP4      E8M0 scale; at L nibbles as in Q4_0.
 *   INT4       F16 scale; at 2L zero (lower half of a byte); at 3L nibbles as in Q4_0.
 * and per 256 columns, whose eighths are numbered b = 0 .. 7:
 *   Q4_K       F16 d; at 2L F16 dmin; at 4L 3 words of sixes (below): scales 0 .. 7, minimums 8 .. 15; at 16L 32 words of
 *              nibbles: word 8c+j holds columns 4j .. 4j+3 of eighth 2c (low) and of eighth 2c+1 (high).
 *   Q5_K       as Q4_K, with at 16L 8 words of fifth bits (word j, bit b of a byte: column 4j+i of eighth b), nibbles at 48L.
 *   Q6_K       F16 d; at 2L 4 words of int8 scales of 16 columns; at 18L 32 words of nibbles: word 16(b/4)+8(b%2)+j, low for
 *              b%4 < 2; at 146L 16 words of upper pairs of bits: word 8(b/4)+j, bits 2(b%4).
 *   Q3_K       F16 d; at 2L 3 words of sixes: scales of 16 columns + 32; at 14L 8 words of third bits (word j, bit b); at 46L
 *              16 words of lower pairs of bits: word 8(b/4)+j, bits 2(b%4).
 *   Q2_K       F16 d; at 2L F16 dmin; at 4L 4 words of bytes: scale (low) and minimum (high) of 16 columns; at 20L 16 words of
 *              pairs of bits as in Q3_K.
 *   IQ4_XS     F16 d; at 2L 16 upper bits of scales (2 an eighth); at 4L a word of lower nibbles of scales; at 8L 32 words of
 *              nibbles: eighth b as one block of IQ4_NL.
 * Sixes: value i < 15 is bits 6(i%5) of word i/5; value 15 has two bits at the top of each word, lowest first.
 * Matrices take the bytes they have in files, but for odd BF16 columns and F8's scales.
 *
 * Order of a sum (the specification is ref.c): leaf by leaf; inside a leaf acc = fma(w, x, acc)
 *   F32, F16   over ascending columns;
 *   BF16       over ascending pairs, the odd column of a pair first, with x rounded to BF16; subnormals count as zero;
 *   F8_E4M3    so within 128 columns from 0, then acc = fma(that, scale, acc);
 *   blocks of 32   dot = exact integer sum of weight * q, acc = fma(dot, scale_w * scale_x, acc), and with minimums
 *              acc = fma(minimum, sum_x, acc);
 *   blocks of 256  s = fma(dot, scale_b, s) over ascending sub-blocks, acc = fma(s, d * scale_x, acc), and with minimums
 *              acc = fma(-(dmin * scale_x), exact sum of minimum_b * sum_b, acc).
 * Leaves join as a binary counter, left + right. */
#ifndef TD_KERNELS_CPU_CPU_H
#define TD_KERNELS_CPU_CPU_H

#include "kernels/base/half.h"
#include "kernels/kern_ops.h"

#include <string.h>

enum {
    TD_CPU_GROUP = 32,
    TD_CPU_TOKENS = 128,   /* tokens per pass over a group: their activations stay in L2 */
    TD_CPU_STREAMS = 2,    /* groups that one token is multiplied with side by side */
    TD_CPU_MAX_LEVELS = 8, /* subtrees at hand in a sum of TD_KERN_MAX_LEAVES leaves */
    TD_CPU_QUERIES = 128,  /* queries that are walked over the keys together */
};

struct td_cpu_source;
struct td_cpu_act;
struct td_cpu_product;
struct td_cpu_int_unit;

/* What struct td_cpu_isa has for TD_ACT_BF16. Products are called with subnormals flushed (linear.c). */
struct td_cpu_bf16 {
    bool pairs; /* activations as pairs, else as F32 */
    void (*prepare)(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                    uint32_t slot, uint32_t n, uint8_t *out);
    void (*product)(const struct td_cpu_product *p);
};

/* ---- matrices ---- */

struct td_cpu_matrix {
    struct td_matrix head;
    uint8_t *data;
    struct td_slab *slab; /* that data was cut from */
    size_t group_bytes;   /* of a full group */
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

/* Bytes of one lane of a group. */
static inline size_t td_cpu_lane_bytes(enum td_dtype dtype, uint32_t n_cols)
{
    if (dtype == TD_BF16)
        return (size_t)(n_cols + 1) / 2 * 4;
    return td_dtype_held_bytes(dtype, n_cols);
}

/* First byte of a group; groups before the last are full. */
static inline const uint8_t *td_cpu_group_data(const struct td_cpu_matrix *m, uint32_t group)
{
    return m->data + group * m->group_bytes;
}

/* ---- activations ---- */

/* How weights of a type want their activations. */
enum td_cpu_act_kind {
    TD_ACT_F32,
    TD_ACT_BF16,
    TD_ACT_INT32,  /* int8 with a scale per 32 columns, rounded as Q8_0's is */
    TD_ACT_INT256, /* int8 with an F32 scale per 256 columns */
    TD_ACT_KINDS
};

struct td_cpu_traits {
    enum td_cpu_act_kind kind;
    int offset; /* stored integer = weight + offset; Q8_0's gets it when it is read */
    int halves; /* sub-blocks per 32 columns */
    int mins;   /* 1: sub-blocks have a minimum */
    int narrow; /* 1: stored integers are below 128 */
};

/* A switch, so that it vanishes where the type is a constant. */
static inline __attribute__((always_inline)) struct td_cpu_traits td_cpu_traits(enum td_dtype dtype)
{
    switch (dtype) {
    case TD_BF16:
    case TD_F8_E4M3:
        return (struct td_cpu_traits){TD_ACT_BF16, 0, 1, 0, 0};
    case TD_Q8_0:
    case TD_IQ4_NL:
        return (struct td_cpu_traits){TD_ACT_INT32, 128, 1, 0, 0};
    case TD_Q4_0:
        return (struct td_cpu_traits){TD_ACT_INT32, 8, 1, 0, 1};
    case TD_Q5_0:
        return (struct td_cpu_traits){TD_ACT_INT32, 16, 1, 0, 1};
    case TD_MXFP4:
        return (struct td_cpu_traits){TD_ACT_INT32, 12, 1, 0, 1};
    case TD_INT4: /* stored: nibble + 15 - zero */
        return (struct td_cpu_traits){TD_ACT_INT32, 15, 1, 0, 1};
    case TD_Q4_1:
    case TD_Q5_1:
        return (struct td_cpu_traits){TD_ACT_INT32, 0, 1, 1, 1};
    case TD_Q2_K:
        return (struct td_cpu_traits){TD_ACT_INT256, 0, 2, 1, 1};
    case TD_Q3_K:
        return (struct td_cpu_traits){TD_ACT_INT256, 4, 2, 0, 1};
    case TD_Q4_K:
    case TD_Q5_K:
        return (struct td_cpu_traits){TD_ACT_INT256, 0, 1, 1, 1};
    case TD_Q6_K:
        return (struct td_cpu_traits){TD_ACT_INT256, 32, 2, 0, 1};
    case TD_IQ4_XS:
        return (struct td_cpu_traits){TD_ACT_INT256, 128, 1, 0, 0};
    case TD_F32:
    case TD_F16:
    case TD_N_DTYPES:
        break;
    }
    return (struct td_cpu_traits){TD_ACT_F32, 0, 1, 0, 0};
}

static inline uint32_t td_cpu_blocks(uint32_t n_cols)
{
    return n_cols / 32;
}

/* Rows that a linear step reads: row i is x + rows[i] * n_cols (i * n_cols where rows is NULL), after `add` was added to it
 * (in place; row i of add), times the row's factor and the norm's weights where there is a norm. */
struct td_cpu_source {
    float *x;
    const uint32_t *rows;
    const float *add;
    const float *norm;
    float eps;
    uint32_t n_cols;
    float *factor; /* [n] 1 / rms, filled by `gather` */
};

/* Activations in the form that one kind of weights wants. Tokens lie in tiles of n_tokens (td_cpu_tile); a tile has, in
 * column order, per
 *   column (F32) or pair of columns (BF16 as pairs)     [n_tokens] values of 4 bytes; BF16 as F32: columns, odd ones first;
 *   32 columns (integers): [8 steps][n_tokens][4] q; F32 scale [n_tokens]; int32 start [halves][n_tokens] =
 *                          -offset * sum of q; with minimums F32 [halves][n_tokens]: scale * sum of q (INT32), or
 *                          in the first place of two sub-blocks int16 [n_tokens][2]: their sums of q (INT256; ref.c has F32).
 */
struct td_cpu_act {
    struct td_cpu_traits traits;
    const struct td_cpu_int_unit *unit; /* NULL: the instruction set's own functions */
    uint32_t n_cols;
    uint32_t max_tile;
    size_t row_bytes;
    uint8_t *data;
};

static inline uint32_t td_cpu_act_block_bytes(struct td_cpu_traits traits)
{
    return (uint32_t)(32 + 4 + 4 * traits.halves * (1 + traits.mins));
}

static inline size_t td_cpu_act_row_bytes(struct td_cpu_traits traits, uint32_t n_cols,
                                          bool bf16_pairs)
{
    if (traits.kind == TD_ACT_F32)
        return (size_t)n_cols * 4;
    if (traits.kind == TD_ACT_BF16)
        return (size_t)(n_cols + 1) / 2 * (bf16_pairs ? 4 : 8);
    return (size_t)td_cpu_blocks(n_cols) * td_cpu_act_block_bytes(traits);
}

/* Tile i of n tokens, in tiles of at most max_tile and of even size (16 = 6 + 5 + 5). */
struct td_cpu_tile {
    uint32_t t0, n;
};

static inline uint32_t td_cpu_tiles(uint32_t n, uint32_t max_tile)
{
    return (n + max_tile - 1) / max_tile;
}

static inline struct td_cpu_tile td_cpu_tile(uint32_t n, uint32_t n_tiles, uint32_t i)
{
    uint32_t size = n / n_tiles, longer = n % n_tiles;

    return (struct td_cpu_tile){i * size + (i < longer ? i : longer), size + (i < longer)};
}

/* 127 / max; 0, so that every q is 0, for a block without a value worth the name: there 127 / max could be infinite. */
static inline float td_cpu_act_inverse(float max)
{
    return max > 0x1p-100f ? 127.0f / max : 0.0f;
}

/* Scale of a block: max / 127. INT32 rounds it to the 11 significant bits of the F16 scale that a Q8_0 block has in files
 * (so that results follow those of programs that quantise activations to Q8_0), but with F32's range. Infinity and NaN,
 * which an overflow upstream leaves, stay: the sums are NaN then. */
static inline float td_cpu_act_scale(enum td_cpu_act_kind kind, float max)
{
    uint32_t u = td_half_f32_bits(max / 127.0f);

    if (u >= 0x7f800000u)
        return max;
    return kind == TD_ACT_INT256 ? max / 127.0f
                                 : td_half_bits_f32((u + 0xfffu + ((u >> 13) & 1u)) & ~0x1fffu);
}

/* E8M0 as the scale of MXFP4's integers, which are twice its floats: 2^(e - 128), 0 where that is subnormal. */
static inline float td_cpu_e8m0(uint8_t e)
{
    return td_half_bits_f32(e < 2 ? 0 : (uint32_t)(e - 1) << 23);
}

/* The 16 values of IQ4_NL and IQ4_XS, and those of MXFP4 times two, each with the offset of its traits. */
#define TD_CPU_IQ4_VALUES 1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241
#define TD_CPU_MXFP4_VALUES 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0

/* Neighbouring groups of rows times tokens t0 .. t0 + n - 1 of the activations, t0 a multiple of TD_CPU_TOKENS and n at most that. */
struct td_cpu_product {
    const struct td_cpu_matrix *m;
    const struct td_cpu_act *act;
    uint32_t group, n_groups; /* at most TD_CPU_STREAMS */
    uint32_t t0, n;
    float *out;         /* of token t0's first lane in part 0 */
    size_t row_stride;  /* floats between two tokens */
    size_t part_stride; /* floats between two parts */
};

/* ---- attention ----
 * A block of the KV cache has a cell for each KV head, K first and V behind it, so that a decode step reads blocks from end to end.
 * V is block_tokens rows as td_quant_row writes them. K has keys side by side: for the float types, F8_E4M3 without a scale among them, per dimension block_tokens
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

/* Queries of one sequence whose keys begin in the same chunk, and end in the same: of one row or of several. Those of one KV head
 * are neighbours. Keys are counted from that first chunk on. */
struct td_cpu_attend {
    const struct td_kv_view *kv;
    const uint32_t *blocks; /* block table of the sequence, from the first chunk on */
    uint32_t n_q;           /* <= TD_CPU_QUERIES */
    uint32_t chunk_begin,
        chunk_end;        /* a whole subtree of the tree over chunks, or its last, unfinished one */
    float scale, softcap; /* of td_attention */
    const float *q[TD_CPU_QUERIES]; /* [head_dim] each */
    uint32_t kv_head[TD_CPU_QUERIES];
    /* Query i attends to keys first_key[i] .. n_keys[i] - 1; at least one lies in each chunk. */
    uint32_t first_key[TD_CPU_QUERIES], n_keys[TD_CPU_QUERIES];
    float *memory; /* td_cpu_attend_floats, aligned to 64 bytes */
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

/* What a query's sum of values is multiplied with at last: 1 / the sum of all weights, that of the sink (NULL: none) among them. */
float td_cpu_attend_factor(float max, float sum, const float *sink);

/* Attention of one instruction set. */
struct td_cpu_attend_ops {
    /* The share of chunks chunk_begin .. chunk_end - 1, left in td_cpu_attend_level(a, 0). */
    void (*run)(const struct td_cpu_attend *a);
    /* left = left joined with right, of n_q queries. */
    void (*join)(uint32_t head_dim, uint32_t n_q, const struct td_cpu_partial *left,
                 const struct td_cpu_partial *right);
    /* out [head_dim] of query i. `sink`: as in td_attention, of its head. */
    void (*finish)(uint32_t head_dim, const struct td_cpu_partial *p, uint32_t i, const float *sink,
                   float *out);
    /* Rotates x [dim] in place by one row of angles [2 x dim]. */
    void (*rope)(float *x, const float *angles, uint32_t dim, bool interleaved);
    /* out [n] = x rounded to F16 or BF16. */
    void (*halves)(enum td_dtype dtype, const float *x, uint32_t n, uint16_t *out);
};

/* Integer products of a processor's matrix unit: types without halves, from least_tokens on. In its tiles of activations q is
 * [n_tokens][32], and what lies behind a tile may be read as more tokens. */
struct td_cpu_int_unit {
    bool (*available)(void); /* asks the system for the unit */
    uint8_t tokens;          /* of a tile, at most */
    uint8_t least_tokens;
    void (*prepare)(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                    uint32_t slot, uint32_t n, uint8_t *out);
    void (*product)(const struct td_cpu_product *p);
};

struct td_cpu_isa {
    const char *name;
    bool (*available)(void);
    uint8_t max_tile[TD_ACT_KINDS];
    /* Adds to row t, finds its factor. */
    void (*gather)(const struct td_cpu_source *src, uint32_t t);
    /* Row t into place `slot` of the tile of n tokens at `out`. TD_ACT_BF16: see `bf16`. */
    void (*prepare)(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                    uint32_t slot, uint32_t n, uint8_t *out);
    void (*product)(const struct td_cpu_product *p);
    struct td_cpu_bf16 bf16;
    void (*rmsnorm)(const float *x, const float *weight, uint32_t dim, float eps, float *out);
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *out);
    void (*add)(float *x, const float *y, size_t n);
    /* The first of x [n] that is larger than `floor`; n where none is. NaN never is. */
    uint32_t (*above)(const float *x, uint32_t n, float floor);
    const struct td_cpu_attend_ops *attend;
};

struct td_cpu {
    struct td_kern head;
    struct td_cpu_isa
        isa; /* the instruction set's table, with the units that replace parts of it */
    const struct td_cpu_int_unit *ints; /* NULL: none */
    struct td_pool *pool;
    struct td_slab *slab;               /* that the next matrix is cut from */
    struct td_cpu_attention *attention; /* scratch of attention, grown on demand and kept */
    uint8_t *scratch;                   /* prepared activations, grown on demand and kept */
    size_t scratch_bytes;
};

static inline struct td_cpu *td_cpu_of(struct td_kern *kern)
{
    return (struct td_cpu *)kern;
}

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

/* BF16 dot products of a processor, to replace those of td_cpu_isa_avx512. */
extern const struct td_cpu_bf16_unit {
    bool (*available)(void);
    bool (*beats_fma)(void); /* measures, some tens of microseconds */
    struct td_cpu_bf16 bf16;
} td_cpu_avx512bf16;

extern const struct td_cpu_int_unit td_cpu_avx512amx;

/* Writes source rows (file format) of one group into the packed layout at `dst`. */
void td_pack_group(enum td_dtype dtype, uint32_t n_cols, uint32_t lanes, const uint8_t *src,
                   size_t stride_bytes, const float *scales, uint8_t *dst);
/* n_cols packed columns of a group of `lanes` lanes, which begin at a block, as those of a group of 32; the other lanes are 0. */
void td_pack_widen(enum td_dtype dtype, uint32_t lanes, const uint8_t *src, uint32_t n_cols,
                   uint8_t *dst);
/* Column-wise inverse for one row: out [n_cols] dequantised. */
void td_pack_row(const struct td_cpu_matrix *m, uint32_t row, float *out);

/* The operations of kern_ops.h that have files of their own. */
enum td_status td_cpu_linear(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                             const struct td_kern_output *outs, uint32_t n_outs,
                             struct td_err *err);
void td_cpu_rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids, uint32_t n,
                 float *out);
void td_cpu_gather(struct td_kern *kern, const float *x, const uint32_t *rows, uint32_t n,
                   uint32_t dim, float *out);
void td_cpu_rmsnorm(struct td_kern *kern, const float *x, const float *weight, uint32_t n,
                    uint32_t dim, float eps, float *out);
void td_cpu_silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n,
                     float *out);
void td_cpu_add(struct td_kern *kern, float *x, const float *y, size_t n);
void td_cpu_top(struct td_kern *kern, const float *x, uint32_t n, uint32_t width, uint32_t n_top,
                struct td_top *out);
void td_cpu_rope_angles(struct td_kern *kern, const double *freq, uint32_t dim, double scale,
                        bool interleaved, const uint32_t *positions, uint32_t n, float *angles);
void td_cpu_rope_kv(struct td_kern *kern, const struct td_kv_view *kv,
                    const struct td_kv_rows *rows_in, uint32_t n, const struct td_rope_kv *in);
enum td_status td_cpu_attention(struct td_kern *kern, const struct td_kv_view *kv,
                                const struct td_kv_rows *rows, uint32_t n,
                                const struct td_attention *how, struct td_err *err);
void td_cpu_attention_close(struct td_cpu_attention *attention); /* NULL is legal */
void td_cpu_kv_save(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block, void *bytes);
void td_cpu_kv_restore(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                       const void *bytes);

#endif
