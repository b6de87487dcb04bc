/* Attention over the cache: what a call is cut into, and the kernels for F32, whose numbers stay as they are. There a block takes one
 * row, a span of query heads, and a run of chunks of keys. */
#include "kernels/cuda/attend.cuh"

namespace
{

enum {
    THREADS = 128,
    WARPS = THREADS / 32,
    HEADS = TD_ATTEND_HEADS,
    KEYS = TD_ATTEND_KEYS,
    LEAST_RUN = 2,  /* chunks of a run, a power of two */
    LEAST_ROWS = 8, /* of a sequence in the mean, for which a block takes many */
    AT_ONCE = 32,   /* results that are joined at a time, a power of two */
    BLOCKS_PER_SM = 4
};

/* What a chunk, or several that are joined, give: per head {max, sum, acc [dim]}. */
__device__ float *level_of(float *levels, uint32_t level, uint32_t dim)
{
    return levels + (size_t)level * HEADS * (dim + 2);
}

/* left = left and right, of n heads; all threads. */
__device__ void join(float *left, const float *right, uint32_t n, uint32_t dim)
{
    for (uint32_t i = threadIdx.x; i < n * dim; i += THREADS) {
        float *l = left + (size_t)(i / dim) * (dim + 2);
        const float *r = right + (size_t)(i / dim) * (dim + 2);
        const float max = r[0] > l[0] ? r[0] : l[0];

        l[2 + i % dim] =
            fmaf(l[2 + i % dim], td_num_exp(l[0] - max), r[2 + i % dim] * td_num_exp(r[0] - max));
    }
    __syncthreads();
    if (threadIdx.x < n) {
        float *l = left + (size_t)threadIdx.x * (dim + 2);
        const float *r = right + (size_t)threadIdx.x * (dim + 2);
        const float max = r[0] > l[0] ? r[0] : l[0];

        l[1] = fmaf(l[1], td_num_exp(l[0] - max), r[1] * td_num_exp(r[0] - max));
        l[0] = max;
    }
    __syncthreads();
}

/* Of n results those `step` apart, every other one with the next behind it; all threads. */
__device__ void join_pairs(float *results, uint32_t n, uint32_t step, uint32_t dim)
{
    const uint32_t pairs = (n + step - 1) / step / 2;

    for (uint32_t i = threadIdx.x; i < pairs * dim; i += THREADS) {
        float *l = results + (size_t)(i / dim * 2 * step) * (dim + 2);
        const float *r = l + (size_t)step * (dim + 2);
        const float max = r[0] > l[0] ? r[0] : l[0];

        l[2 + i % dim] =
            fmaf(l[2 + i % dim], td_num_exp(l[0] - max), r[2 + i % dim] * td_num_exp(r[0] - max));
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < pairs; i += THREADS) {
        float *l = results + (size_t)(i * 2 * step) * (dim + 2);
        const float *r = l + (size_t)step * (dim + 2);
        const float max = r[0] > l[0] ? r[0] : l[0];

        l[1] = fmaf(l[1], td_num_exp(l[0] - max), r[1] * td_num_exp(r[0] - max));
        l[0] = max;
    }
    __syncthreads();
}

/* Keys or values of `n` tokens from `first` on into `to` [KEYS x (dim + 1)]. */
__device__ void load_chunk(const struct td_attend_job &job, const uint32_t *blocks,
                           uint32_t kv_head, uint32_t half, uint32_t first, uint32_t n, float *to)
{
    const uint32_t dim = job.kv.head_dim;

    for (uint32_t i = threadIdx.x / 32; i < n; i += WARPS) { /* a token each */
        const uint32_t at = first + i, block = blocks[at / job.kv.block_tokens];
        const uint8_t *cell = td_cuda_kv_cell(job.kv, block, kv_head, half);

        for (uint32_t d = threadIdx.x % 32; d < dim; d += 32)
            to[(size_t)i * (dim + 1) + d] =
                td_cuda_kv_read<TD_F32>(job.kv, cell, at % job.kv.block_tokens, d);
    }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS) attend(const __grid_constant__ struct td_attend_job job)
{
    td_num_await_earlier();
    const uint32_t dim = job.kv.head_dim, row = blockIdx.x, run = blockIdx.z;
    const struct td_attend_span span = job.span[blockIdx.y];
    const uint32_t position = job.rows.positions[row], base = td_attend_base(job, position);
    const uint32_t first_key = td_attend_first(job, position) - base, n_keys = position + 1 - base;
    const uint32_t n_chunks = (n_keys + KEYS - 1) / KEYS;
    const uint32_t begin = run * job.run;
    const uint32_t end = begin + job.run < n_chunks ? begin + job.run : n_chunks;
    const uint32_t *blocks =
        job.rows.table + job.rows.first_block[row] + base / job.kv.block_tokens;
    float *q = (float *)td_num_shared();      /* [HEADS x dim] */
    float *weights = q + HEADS * dim;         /* [HEADS x KEYS] */
    float *chunk = weights + HEADS * KEYS;    /* [KEYS x (dim + 1)] */
    float *levels = chunk + KEYS * (dim + 1); /* [levels][HEADS x (dim + 2)] */
    const uint32_t lane = threadIdx.x % 32;
    uint32_t depth = 0;

    if (begin >= end)
        return;
    for (uint32_t i = threadIdx.x; i < span.n * dim; i += THREADS)
        q[i] = job.q[((size_t)row * job.n_heads + span.head) * dim + i] * job.scale;
    for (uint32_t c = begin; c < end; c++) {
        const uint32_t first = c * KEYS,
                       n = n_keys - first < KEYS ? n_keys - first : (uint32_t)KEYS,
                       hidden = c == 0 ? first_key : 0; /* of the chunk's keys */
        float *to = level_of(levels, depth++, dim);

        __syncthreads(); /* all are done with the chunk before */
        load_chunk(job, blocks, span.kv_head, 0, first, n, chunk);
        for (uint32_t i = threadIdx.x; i < span.n * KEYS; i += THREADS) {
            const float *k = chunk + (size_t)(i % KEYS) * (dim + 1), *qh = q + i / KEYS * dim;
            float dot = 0.0f;

            for (uint32_t d = 0; i % KEYS < n && d < dim; d++)
                dot = fmaf(qh[d], k[d], dot);
            weights[i] =
                job.softcap > 0.0f ? td_num_softcap(dot, job.softcap, 2.0f / job.softcap) : dot;
        }
        __syncthreads();
        load_chunk(job, blocks, span.kv_head, 1, first, n, chunk);
        for (uint32_t h = threadIdx.x / 32; h < span.n; h += WARPS) {
            float *w = weights + h * KEYS, max = -INFINITY, sum;
            const bool sees_low = lane >= hidden && lane < n;
            const bool sees_high = lane + 32 >= hidden && lane + 32 < n;
            const float low = sees_low ? w[lane] : -INFINITY;
            const float high = sees_high ? w[lane + 32] : -INFINITY;

            max = low > max ? low : max;
            max = high > max ? high : max;
            for (uint32_t mask = 16; mask; mask >>= 1) {
                const float other = td_num_xor(max, mask);

                max = other > max ? other : max;
            }
            w[lane] = sees_low ? td_num_exp(low - max) : 0.0f;
            w[lane + 32] = sees_high ? td_num_exp(high - max) : 0.0f;
            sum = w[lane] + w[lane + 32];
            for (uint32_t mask = 16; mask; mask >>= 1)
                sum = sum + td_num_xor(sum, mask);
            if (lane == 0) {
                to[h * (dim + 2)] = max;
                to[h * (dim + 2) + 1] = sum;
            }
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < span.n * dim; i += THREADS) {
            const float *w = weights + i / dim * KEYS, *v = chunk + i % dim;
            float acc = 0.0f;

            for (uint32_t j = hidden; j < n; j++)
                acc = fmaf(w[j], v[(size_t)j * (dim + 1)], acc);
            to[i / dim * (dim + 2) + 2 + i % dim] = acc;
        }
        __syncthreads();
        for (uint32_t i = c - begin; i & 1; i >>= 1, depth--)
            join(level_of(levels, depth - 2, dim), level_of(levels, depth - 1, dim), span.n, dim);
    }
    for (; depth > 1; depth--)
        join(level_of(levels, depth - 2, dim), level_of(levels, depth - 1, dim), span.n, dim);
    if (n_chunks <= job.run) {
        for (uint32_t i = threadIdx.x; i < span.n * dim; i += THREADS) {
            const float *from = levels + i / dim * (dim + 2);

            job.out[((size_t)row * job.n_heads + span.head) * dim + i] =
                from[2 + i % dim] * td_attend_factor(job, span.head + i / dim, from[0], from[1]);
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < span.n * (dim + 2); i += THREADS) {
        const size_t head = (size_t)row * job.n_heads + span.head + i / (dim + 2);

        job.partials[(head * job.n_runs + run) * (dim + 2) + i % (dim + 2)] = levels[i];
    }
}

/* The runs of one row and head, up to AT_ONCE neighbours at a time: their results meet in shared memory, and what they give takes
 * the place of the first. */
__global__ void __launch_bounds__(THREADS)
    join_runs(const __grid_constant__ struct td_attend_job job)
{
    td_num_await_earlier();
    const uint32_t dim = job.kv.head_dim, row = blockIdx.x, head = blockIdx.y, each = dim + 2;
    const uint32_t position = job.rows.positions[row];
    const uint32_t n_chunks = (position - td_attend_base(job, position)) / KEYS + 1;
    const uint32_t n_runs = (n_chunks + job.run - 1) / job.run;
    const size_t at = (size_t)row * job.n_heads + head;
    float *run = job.partials + at * job.n_runs * each;
    float *here = (float *)td_num_shared(); /* [AT_ONCE x each] */

    if (n_runs == 1)
        return;
    for (uint32_t apart = 1; apart < n_runs; apart *= AT_ONCE)
        for (uint32_t first = 0; first < n_runs; first += apart * AT_ONCE) {
            const uint32_t left = (n_runs - first + apart - 1) / apart;
            const uint32_t n = left < AT_ONCE ? left : (uint32_t)AT_ONCE;

            for (uint32_t i = threadIdx.x; i < n * each; i += THREADS)
                here[i] = run[(size_t)(first + i / each * apart) * each + i % each];
            __syncthreads();
            for (uint32_t step = 1; step < n; step *= 2)
                join_pairs(here, n, step, dim);
            for (uint32_t i = threadIdx.x; i < each; i += THREADS)
                run[(size_t)first * each + i] = here[i];
            __syncthreads();
        }
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        job.out[at * dim + d] = here[2 + d] * td_attend_factor(job, head, here[0], here[1]);
}

/* ---- the host's part ---- */

uint32_t cut_spans(struct td_attend_span *span, const uint32_t *kv_of_head, uint32_t n_heads)
{
    uint32_t n = 0;

    for (uint32_t h = 0; h < n_heads; h++) {
        if (n && span[n - 1].kv_head == kv_of_head[h] && span[n - 1].n < HEADS) {
            span[n - 1].n++;
        } else {
            if (n == TD_ATTEND_SPANS)
                return UINT32_MAX;
            span[n++] = {(uint16_t)h, 1, (uint16_t)kv_of_head[h]};
        }
    }
    return n;
}

uint32_t levels_of(uint32_t run)
{
    uint32_t levels = 1;

    while (run > 1) {
        levels++;
        run /= 2;
    }
    return levels + 1;
}

size_t shared_bytes(uint32_t dim, uint32_t levels)
{
    return sizeof(float) * ((size_t)HEADS * dim + HEADS * KEYS + (size_t)KEYS * (dim + 1) +
                            (size_t)levels * HEADS * (dim + 2));
}

} // namespace

void td_cuda_join_runs(struct td_cuda *cuda, const struct td_attend_job *job)
{
    td_cuda_launch(cuda, join_runs, dim3(job->n, job->n_heads), dim3(THREADS),
                   AT_ONCE * (job->kv.head_dim + 2) * sizeof(float), *job);
}

enum td_status td_cuda_attention(struct td_kern *kern, const struct td_kv_view *kv,
                                 const struct td_kv_rows *rows, uint32_t n,
                                 const struct td_attention *how, struct td_err *err)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const uint32_t n_heads = how->n_heads, dim = kv->head_dim;
    struct td_attend_job job = {td_cuda_kv_of(kv),
                                *rows,
                                how->q,
                                how->out,
                                NULL,
                                how->sinks,
                                how->scale,
                                how->softcap,
                                how->window < rows->most_keys ? how->window : 0,
                                n,
                                n_heads,
                                1,
                                1,
                                0,
                                1,
                                {}};
    const uint32_t n_spans = cut_spans(job.span, how->kv_of_head, n_heads);
    const uint32_t most_chunks = td_attend_chunks(&job);
    enum td_status s;

    if (n_spans == UINT32_MAX)
        return td_err_set(err, TD_UNSUPPORTED,
                          "%u query heads with %u KV heads: %s takes up to %d runs", n_heads,
                          kv->n_kv_heads, kern->name, TD_ATTEND_SPANS);
    if (kv->dtype != TD_F32) {
        const bool is_prompt = rows->n_seqs && n / rows->n_seqs >= LEAST_ROWS;

        if (is_prompt && cuda->p.inexact_from && n >= cuda->p.inexact_from &&
            td_cuda_flash_prompts(cuda, kv->dtype, &job, n_spans))
            return TD_OK;
        return td_cuda_flash(cuda, kv->dtype, &job, n_spans, err);
    }
    while (job.run < most_chunks)
        job.run *= 2;
    while (job.run > LEAST_RUN && ((uint64_t)n * n_spans * ((most_chunks + job.run - 1) / job.run) <
                                       (uint64_t)BLOCKS_PER_SM * cuda->n_sms ||
                                   shared_bytes(dim, levels_of(job.run)) > cuda->most_shared))
        job.run /= 2;
    job.n_runs = (most_chunks + job.run - 1) / job.run;
    job.levels = levels_of(job.run);
    if (job.n_runs > 1) {
        s = td_cuda_reserve(cuda, &cuda->scratch,
                            sizeof(float) * n * n_heads * job.n_runs * (dim + 2), err);
        if (s)
            return s;
        job.partials = (float *)cuda->scratch.data;
    }
    td_cuda_launch(cuda, attend, dim3(n, n_spans, job.n_runs), dim3(THREADS),
                   shared_bytes(dim, job.levels), job);
    if (job.n_runs > 1)
        td_cuda_join_runs(cuda, &job);
    return TD_OK;
}
