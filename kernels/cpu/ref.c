/* The specification: the plainest C of every operation. The vector files must give the same bits. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"

#include <string.h>

static bool available(void)
{
    return true;
}

static uint16_t load16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, 2);
    return v;
}

static float load_weight(enum td_dtype dtype, const uint8_t *p)
{
    float f;

    if (dtype == TD_F16)
        return td_f16_to_f32(load16(p));
    if (dtype == TD_BF16)
        return td_bf16_to_f32(load16(p));
    memcpy(&f, p, 4);
    return f;
}

/* One leaf of a float matrix for one row and one token. */
static float leaf_float(const struct td_cpu_matrix *m, const uint8_t *group, uint32_t lanes,
                        uint32_t lane, const float *x, uint32_t k0, uint32_t k1)
{
    size_t size = td_dtype_info(m->head.dtype)->block_bytes;
    float acc = 0.0f;

    for (uint32_t k = k0; k < k1; k++)
        acc =
            fmaf(load_weight(m->head.dtype, group + ((size_t)k * lanes + lane) * size), x[k], acc);
    return acc;
}

static int weight_int(enum td_dtype dtype, const uint8_t *w, uint32_t lanes, uint32_t lane,
                      uint32_t k)
{
    uint8_t byte;

    if (dtype == TD_Q8_0)
        return (int)w[((size_t)(k / 4) * lanes + lane) * 4 + k % 4] - 128;
    byte = w[((size_t)(k % 16 / 4) * lanes + lane) * 4 + k % 4];
    return (int)(k < 16 ? byte & 15 : byte >> 4) - 8;
}

static float leaf_int(const struct td_cpu_matrix *m, const uint8_t *group, uint32_t lanes,
                      uint32_t lane, const struct td_cpu_act *act, uint32_t t, uint32_t k0,
                      uint32_t k1)
{
    size_t block_bytes = td_dtype_info(m->head.dtype)->block_bytes;
    uint32_t n_blocks = act->n_cols / 32;
    float acc = 0.0f;

    for (uint32_t b = k0 / 32; b < k1 / 32; b++) {
        const uint8_t *block = group + (size_t)b * lanes * block_bytes;
        const int8_t *q = act->q + (size_t)t * act->n_cols + (size_t)b * 32;
        float scale =
            td_f16_to_f32(load16(block + (size_t)lane * 2)) * act->scale[(size_t)t * n_blocks + b];
        int32_t dot = 0;

        for (uint32_t k = 0; k < 32; k++)
            dot += weight_int(m->head.dtype, block + (size_t)lanes * 2, lanes, lane, k) * q[k];
        acc = fmaf((float)dot, scale, acc);
    }
    return acc;
}

static float part_sum(const struct td_cpu_matrix *m, uint32_t group, uint32_t lane,
                      const struct td_cpu_act *act, uint32_t t, uint32_t part)
{
    const struct td_matrix *h = &m->head;
    uint32_t lanes = td_cpu_lanes(h, group);
    const uint8_t *data = td_cpu_group_data(m, group);
    float stack[TD_CPU_MAX_LEVELS];
    uint32_t depth = 0;

    for (uint32_t leaf = h->part_begin[part]; leaf < h->part_begin[part + 1]; leaf++) {
        uint32_t k0 = leaf ? h->leaf_end[leaf - 1] : 0;
        float sum = td_dtype_info(h->dtype)->block_elems == 1
                        ? leaf_float(m, data, lanes, lane, act->x + (size_t)t * act->n_cols, k0,
                                     h->leaf_end[leaf])
                        : leaf_int(m, data, lanes, lane, act, t, k0, h->leaf_end[leaf]);

        for (uint32_t i = leaf - h->part_begin[part]; i & 1; i >>= 1)
            sum = stack[--depth] + sum;
        stack[depth++] = sum;
    }
    while (depth > 1) {
        depth--;
        stack[depth - 1] = stack[depth - 1] + stack[depth];
    }
    return stack[0];
}

static void matmul(const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,
                   uint32_t t0, uint32_t n, uint32_t n_total, float *out)
{
    const struct td_matrix *h = &m->head;

    for (uint32_t p = 0; p < h->n_parts; p++)
        for (uint32_t t = t0; t < t0 + n; t++)
            for (uint32_t lane = 0; lane < td_cpu_lanes(h, group); lane++)
                out[((size_t)p * n_total + t) * h->n_rows + (size_t)group * TD_CPU_GROUP + lane] =
                    part_sum(m, group, lane, act, t, p);
}

static void quantise(const struct td_cpu_act *act, uint32_t row)
{
    uint32_t n_blocks = act->n_cols / 32;

    for (uint32_t b = 0; b < n_blocks; b++) {
        const float *x = act->x + (size_t)row * act->n_cols + (size_t)b * 32;
        int8_t *q = act->q + (size_t)row * act->n_cols + (size_t)b * 32;
        uint32_t max = 0;
        int32_t sum = 0;
        float inverse;

        for (int k = 0; k < 32; k++) {
            uint32_t bits = td_half_f32_bits(fabsf(x[k]));

            max = bits > max ? bits : max;
        }
        inverse = td_cpu_act_inverse(td_half_bits_f32(max));
        for (int k = 0; k < 32; k++) {
            float r = rintf(x[k] * inverse);

            q[k] = r == r ? (int8_t)r : 0;
            sum += q[k];
        }
        act->scale[(size_t)row * n_blocks + b] = td_cpu_act_scale(td_half_bits_f32(max));
        act->sum[(size_t)row * n_blocks + b] = sum;
    }
}

/* Sum of 16 lanes: halves joined until one is left. */
static float fold16(const float *lane)
{
    float s[16];

    memcpy(s, lane, sizeof s);
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++)
            s[l] = s[l] + s[l + half];
    return s[0];
}

static void rmsnorm(const float *x, const float *weight, uint32_t dim, float eps, float *out)
{
    float lane[16] = {0};
    float scale;

    for (uint32_t i = 0; i < dim; i++)
        lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    scale = 1.0f / sqrtf(fold16(lane) / (float)dim + eps);
    for (uint32_t i = 0; i < dim; i++)
        out[i] = x[i] * scale * weight[i];
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + td_mathf_exp(-gate[i])) * up[i];
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] + y[i];
}

static float kv_load(enum td_dtype dtype, const void *base, size_t i)
{
    if (dtype == TD_F32)
        return ((const float *)base)[i];
    if (dtype == TD_F16)
        return td_f16_to_f32(((const uint16_t *)base)[i]);
    return td_bf16_to_f32(((const uint16_t *)base)[i]);
}

/* First element of one token's row in the cache. */
static size_t kv_row(const struct td_cpu_attend *a, uint32_t position)
{
    const struct td_kv_view *kv = a->kv;
    size_t block = a->blocks[position / kv->block_tokens];

    return ((block * kv->n_kv_heads + a->kv_head) * kv->block_tokens +
            position % kv->block_tokens) *
           kv->head_dim;
}

/* A chunk's or a subtree's share of the softmax: sum of exp(s - max), and values weighted by it. */
struct partial {
    float max;
    float sum;
    float acc[TD_KERN_MAX_HEAD_DIM];
};

static void attend_chunk(const struct td_cpu_attend *a, uint32_t begin, uint32_t end,
                         struct partial *p)
{
    const struct td_kv_view *kv = a->kv;
    float s[TD_KERN_CHUNK_KEYS];
    float lane_sum[16] = {0};

    p->max = -INFINITY;
    for (uint32_t j = begin; j < end; j++) {
        size_t row = kv_row(a, j);
        float lane[16] = {0};

        for (uint32_t d = 0; d < kv->head_dim; d++)
            lane[d % 16] = fmaf(a->q[d], kv_load(kv->dtype, kv->k, row + d), lane[d % 16]);
        s[j - begin] = fold16(lane) * a->scale;
        p->max = s[j - begin] > p->max ? s[j - begin] : p->max;
    }
    memset(p->acc, 0, sizeof p->acc);
    for (uint32_t j = begin; j < end; j++) {
        size_t row = kv_row(a, j);
        float e = td_mathf_exp(s[j - begin] - p->max);

        lane_sum[(j - begin) % 16] = lane_sum[(j - begin) % 16] + e;
        for (uint32_t d = 0; d < kv->head_dim; d++)
            p->acc[d] = fmaf(e, kv_load(kv->dtype, kv->v, row + d), p->acc[d]);
    }
    p->sum = fold16(lane_sum);
}

/* left = left joined with right. */
static void join(struct partial *left, const struct partial *right, uint32_t dim)
{
    float max = right->max > left->max ? right->max : left->max;
    float cl = td_mathf_exp(left->max - max), cr = td_mathf_exp(right->max - max);

    left->max = max;
    left->sum = fmaf(left->sum, cl, right->sum * cr);
    for (uint32_t d = 0; d < dim; d++)
        left->acc[d] = fmaf(left->acc[d], cl, right->acc[d] * cr);
}

static void attend(const struct td_cpu_attend *a)
{
    struct partial stack[TD_CPU_MAX_CHUNKS];
    uint32_t depth = 0, n_keys = a->position + 1, dim = a->kv->head_dim;
    float inverse;

    for (uint32_t c = 0; c * TD_KERN_CHUNK_KEYS < n_keys; c++) {
        uint32_t begin = c * TD_KERN_CHUNK_KEYS;
        uint32_t end = begin + TD_KERN_CHUNK_KEYS < n_keys ? begin + TD_KERN_CHUNK_KEYS : n_keys;

        attend_chunk(a, begin, end, &stack[depth++]);
        for (uint32_t i = c; i & 1; i >>= 1, depth--)
            join(&stack[depth - 2], &stack[depth - 1], dim);
    }
    for (; depth > 1; depth--)
        join(&stack[depth - 2], &stack[depth - 1], dim);
    inverse = 1.0f / stack[0].sum;
    for (uint32_t d = 0; d < dim; d++)
        a->out[d] = stack[0].acc[d] * inverse;
}

const struct td_cpu_isa td_cpu_isa_ref = {"ref",   available, matmul, quantise,
                                          rmsnorm, silu_mul,  add,    attend};
