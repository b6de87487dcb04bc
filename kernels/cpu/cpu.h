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
    TD_CPU_MAX_LEVELS = 8,  /* subtrees at hand in a sum of TD_KERN_MAX_LEAVES leaves */
    TD_CPU_MAX_CHUNKS = 25, /* the same over the chunks of 2^30 keys */
};

struct td_cpu {
    struct td_kern head;
    const struct td_cpu_isa *isa;
    struct td_pool *pool;
    uint8_t *scratch; /* quantised activations, grown on demand and kept */
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

/* One query head of one row. */
struct td_cpu_attend {
    const struct td_kv_view *kv;
    const uint32_t *blocks; /* block table of the sequence */
    uint32_t position;      /* attends to 0 .. position */
    uint32_t kv_head;
    float scale;
    const float *q; /* [head_dim] */
    float *out;     /* [head_dim] */
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
    void (*attend)(const struct td_cpu_attend *a);
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

void td_cpu_attend_ref(const struct td_cpu_attend *a);

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
                        const uint32_t *positions, uint32_t n, float *cos_sin);
void td_cpu_rope(struct td_kern *kern, float *x, uint32_t n, uint32_t n_heads, uint32_t dim,
                 const float *cos_sin, bool interleaved);
void td_cpu_kv_write(struct td_kern *kern, const struct td_kv_view *kv,
                     const struct td_kv_rows *rows_in, uint32_t n, const float *k, const float *v);
void td_cpu_attention(struct td_kern *kern, const struct td_kv_view *kv,
                      const struct td_kv_rows *rows_in, uint32_t n, const float *q,
                      uint32_t n_heads, const uint32_t *kv_of_head, float scale, float *out);

#endif
