/* The KV cache and attention over it, spread over the pool. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/pool.h"

#include <string.h>

static void kv_store(enum td_dtype dtype, void *base, size_t at, const float *x, uint32_t n)
{
    uint16_t *half = (uint16_t *)base + at;

    if (dtype == TD_F32)
        memcpy((float *)base + at, x, n * sizeof *x);
    else if (dtype == TD_F16)
        for (uint32_t i = 0; i < n; i++)
            half[i] = td_f32_to_f16(x[i]);
    else
        for (uint32_t i = 0; i < n; i++)
            half[i] = td_f32_to_bf16(x[i]);
}

void td_cpu_kv_write(struct td_kern *kern, const struct td_kv_view *kv,
                     const struct td_kv_rows *rows_in, uint32_t n, const float *k, const float *v)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t position = rows_in->positions[i];
        size_t block = rows_in->table[rows_in->first_block[i] + position / kv->block_tokens];

        for (uint32_t h = 0; h < kv->n_kv_heads; h++) {
            size_t at =
                ((block * kv->n_kv_heads + h) * kv->block_tokens + position % kv->block_tokens) *
                kv->head_dim;
            size_t from = ((size_t)i * kv->n_kv_heads + h) * kv->head_dim;

            kv_store(kv->dtype, kv->k, at, k + from, kv->head_dim);
            kv_store(kv->dtype, kv->v, at, v + from, kv->head_dim);
        }
    }
}

struct attention_job {
    const struct td_cpu_isa *isa;
    const struct td_kv_view *kv;
    const struct td_kv_rows *rows;
    const float *q;
    uint32_t n_heads;
    const uint32_t *kv_of_head;
    float scale;
    float *out;
};

static void attention_task(void *user, uint32_t task)
{
    const struct attention_job *job = user;
    uint32_t row = task / job->n_heads, head = task % job->n_heads;
    struct td_cpu_attend a = {.kv = job->kv,
                              .blocks = job->rows->table + job->rows->first_block[row],
                              .position = job->rows->positions[row],
                              .kv_head = job->kv_of_head[head],
                              .scale = job->scale,
                              .q = job->q + (size_t)task * job->kv->head_dim,
                              .out = job->out + (size_t)task * job->kv->head_dim};

    job->isa->attend(&a);
}

void td_cpu_attention(struct td_kern *kern, const struct td_kv_view *kv,
                      const struct td_kv_rows *rows_in, uint32_t n, const float *q,
                      uint32_t n_heads, const uint32_t *kv_of_head, float scale, float *out)
{
    struct attention_job job = {td_cpu_of(kern)->isa, kv,    rows_in, q, n_heads,
                                kv_of_head,           scale, out};

    td_pool_run(td_cpu_of(kern)->pool, n * n_heads, attention_task, &job);
}
