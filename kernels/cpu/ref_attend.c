/* The specification of attention: see ref.c. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"
#include "kernels/quant/dequant.h"
#include "kernels/quant/fp8.h"

#include <string.h>

/* The cell of query i at `position`. */
static const uint8_t *cell(const struct td_cpu_attend *a, uint32_t i, uint32_t position)
{
    return td_cpu_kv_cell(a->kv, a->blocks[position / a->kv->block_tokens], a->kv_head[i]);
}

/* Dimension d of the key that query i sees at `position`, as stored (the layout is in cpu.h). */
static float key(const struct td_cpu_attend *a, uint32_t query, uint32_t position, uint32_t d)
{
    const struct td_kv_view *kv = a->kv;
    const size_t n = kv->block_tokens, t = position % n;
    const uint8_t *p = cell(a, query, position);
    size_t block_bytes = td_dtype_info(kv->dtype)->block_bytes, i;
    uint16_t half;

    if (kv->dtype == TD_F32)
        return ((const float *)(const void *)p)[d * n + t];
    if (kv->dtype == TD_F16 || kv->dtype == TD_BF16) {
        memcpy(&half, p + (d * n + t) * 2, 2);
        return kv->dtype == TD_F16 ? td_f16_to_f32(half) : td_bf16_to_f32(half);
    }
    if (kv->dtype == TD_F8_E4M3)
        return td_e4m3_to_f32(p[d * n + t]);
    p += d / 32 * n * block_bytes;
    memcpy(&half, p + t * 2, 2);
    p += n * 2;
    i = kv->dtype == TD_Q8_0 ? d % 32 : d % 16;
    p += (i / 4 * n + t) * 4 + i % 4;
    if (kv->dtype == TD_Q8_0)
        return (float)(int8_t)*p * td_f16_to_f32(half);
    return (float)((d % 32 < 16 ? *p & 15 : *p >> 4) - 8) * td_f16_to_f32(half);
}

static void value(const struct td_cpu_attend *a, uint32_t query, uint32_t position, float *v)
{
    const struct td_kv_view *kv = a->kv;
    size_t row_bytes = td_dtype_row_bytes(kv->dtype, kv->head_dim);

    td_dequant_row(kv->dtype,
                   cell(a, query, position) + td_cpu_kv_half(kv) +
                       position % kv->block_tokens * row_bytes,
                   v, kv->head_dim);
}

/* The share of query i over keys begin .. end - 1 of one chunk. */
static void chunk(const struct td_cpu_attend *a, uint32_t i, uint32_t begin, uint32_t end,
                  float *max, float *acc)
{
    const uint32_t dim = a->kv->head_dim, stride = td_cpu_partial_stride(dim);
    float s[TD_KERN_CHUNK_KEYS], v[TD_KERN_MAX_HEAD_DIM];
    float *lane_sum = acc + stride - 16;

    *max = -INFINITY;
    begin = a->first_key[i] > begin ? a->first_key[i] : begin;
    for (uint32_t j = begin; j < end; j++) {
        float dot = 0.0f;

        for (uint32_t d = 0; d < dim; d++)
            dot = fmaf(a->q[i][d] * a->scale, key(a, i, j, d), dot);
        if (a->softcap > 0.0f)
            dot = td_mathf_softcap(dot, a->softcap, 2.0f / a->softcap);
        s[j - begin] = dot;
        *max = dot > *max ? dot : *max;
    }
    memset(acc, 0, stride * sizeof *acc);
    for (uint32_t j = begin; j < end; j++) {
        float e = td_mathf_exp(s[j - begin] - *max);

        lane_sum[j % 16] = lane_sum[j % 16] + e;
        value(a, i, j, v);
        for (uint32_t d = 0; d < dim; d++)
            acc[d] = fmaf(e, v[d], acc[d]);
    }
}

static void join(uint32_t head_dim, uint32_t n_q, const struct td_cpu_partial *left,
                 const struct td_cpu_partial *right)
{
    const uint32_t stride = td_cpu_partial_stride(head_dim);

    for (uint32_t i = 0; i < n_q; i++) {
        float *l = left->acc + (size_t)i * stride;
        const float *r = right->acc + (size_t)i * stride;
        float max = right->max[i] > left->max[i] ? right->max[i] : left->max[i];
        float cl = td_mathf_exp(left->max[i] - max), cr = td_mathf_exp(right->max[i] - max);

        left->max[i] = max;
        for (uint32_t d = 0; d < stride; d++)
            l[d] = fmaf(l[d], cl, r[d] * cr);
    }
}

static void join_top(const struct td_cpu_attend *a, uint32_t depth)
{
    struct td_cpu_partial left = td_cpu_attend_level(a, depth - 2);
    struct td_cpu_partial right = td_cpu_attend_level(a, depth - 1);

    join(a->kv->head_dim, a->n_q, &left, &right);
}

static void run(const struct td_cpu_attend *a)
{
    const uint32_t stride = td_cpu_partial_stride(a->kv->head_dim);
    uint32_t depth = 0;

    for (uint32_t c = a->chunk_begin; c < a->chunk_end; c++) {
        struct td_cpu_partial p = td_cpu_attend_level(a, depth++);
        uint32_t begin = c * TD_KERN_CHUNK_KEYS, end = begin + TD_KERN_CHUNK_KEYS;

        for (uint32_t i = 0; i < a->n_q; i++)
            chunk(a, i, begin, a->n_keys[i] < end ? a->n_keys[i] : end, &p.max[i],
                  p.acc + (size_t)i * stride);
        for (uint32_t i = c - a->chunk_begin; i & 1; i >>= 1)
            join_top(a, depth--);
    }
    for (; depth > 1; depth--)
        join_top(a, depth);
}

float td_cpu_attend_factor(float max, float sum, const float *sink)
{
    float most, weight;

    if (!sink)
        return 1.0f / sum;
    most = *sink > max ? *sink : max;
    weight = td_mathf_exp(max - most);
    return weight / fmaf(sum, weight, td_mathf_exp(*sink - most));
}

static void finish(uint32_t head_dim, const struct td_cpu_partial *p, uint32_t i, const float *sink,
                   float *out)
{
    const uint32_t stride = td_cpu_partial_stride(head_dim);
    const float *acc = p->acc + (size_t)i * stride;
    float factor = td_cpu_attend_factor(p->max[i], td_cpu_fold16(acc + stride - 16), sink);

    for (uint32_t d = 0; d < head_dim; d++)
        out[d] = acc[d] * factor;
}

static void rope(float *x, const float *angles, uint32_t dim, bool interleaved)
{
    float from[TD_KERN_MAX_HEAD_DIM];

    memcpy(from, x, dim * sizeof *x);
    for (uint32_t i = 0; i < dim; i++) {
        uint32_t partner = interleaved ? i ^ 1u : i < dim / 2 ? i + dim / 2 : i - dim / 2;

        x[i] = from[i] * angles[i] + from[partner] * angles[dim + i];
    }
}

static void halves(enum td_dtype dtype, const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = dtype == TD_F16 ? td_f32_to_f16(x[i]) : td_f32_to_bf16(x[i]);
}

const struct td_cpu_attend_ops td_cpu_attend_ref[1] = {{run, join, finish, rope, halves}};
