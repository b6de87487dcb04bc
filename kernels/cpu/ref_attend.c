/* The specification of attention: see ref.c. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"

#include <string.h>

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
        s[j - begin] = td_cpu_fold16(lane) * a->scale;
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
    p->sum = td_cpu_fold16(lane_sum);
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

void td_cpu_attend_ref(const struct td_cpu_attend *a)
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
