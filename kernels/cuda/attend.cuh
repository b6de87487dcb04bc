/* What the kernels of attention share: a call, cut into runs of chunks of keys and spans of query heads with one KV head. Chunks join
 * in the fixed tree by their index, inside a run and then over the runs, so that neither the runs nor who else is in the call is
 * seen in a result. */
#ifndef TD_KERNELS_CUDA_ATTEND_CUH
#define TD_KERNELS_CUDA_ATTEND_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kvcells.cuh"

enum {
    TD_ATTEND_HEADS = 8,   /* query heads of a span */
    TD_ATTEND_SPANS = 128, /* of a call */
    TD_ATTEND_KEYS = TD_KERN_CHUNK_KEYS
};

struct td_attend_span {
    uint16_t head, n, kv_head;
};

struct td_attend_job {
    struct td_cuda_kv kv;
    struct td_kv_rows rows;
    const float *q; /* [n x n_heads x head_dim] */
    float *out;
    float *partials; /* [n x n_heads x n_runs x (2 + head_dim)] max, sum, acc; NULL for one run */
    float scale;
    uint32_t n, n_heads;
    uint32_t run, n_runs; /* chunks of a run, a power of two; runs of the most keys */
    uint32_t levels;      /* results that may wait for their right-hand neighbours */
    uint32_t row_step;    /* rows of a block */
    struct td_attend_span span[TD_ATTEND_SPANS];
};

/* The runs of every row and head, from the partials into the result. */
void td_cuda_join_runs(struct td_cuda *cuda, const struct td_attend_job *job);

template <enum td_dtype T> __device__ __forceinline__ uint16_t td_attend_narrow(float v)
{
    return T == TD_BF16 ? td_num_to_bf16(v) : td_num_to_f16(v);
}

template <enum td_dtype T> __device__ __forceinline__ float td_attend_widen(uint16_t v)
{
    return T == TD_BF16 ? td_num_bf16(v) : td_num_f16(v);
}

template <enum td_dtype T>
__device__ __forceinline__ void td_attend_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    if (T == TD_BF16)
        td_num_mma_bf16(c, a, b);
    else
        td_num_mma_f16(c, a, b);
}

/* The power of two that brings a query's largest magnitude `max` (its bits) to 2^14, where it is F16, and its inverse. */
template <enum td_dtype T> __device__ __forceinline__ float td_attend_up(uint32_t max, float *down)
{
    const uint32_t e = max >> 23;
    const bool is_scaled = T != TD_BF16 && e > 14 && e < 255;

    *down = is_scaled ? td_num_bits((e - 14) << 23) : 1.0f;
    return is_scaled ? td_num_bits((254 + 14 - e) << 23) : 1.0f;
}

/* 16-bit numbers that a weight is the sum of; a query's, whose error the exponential makes larger, is always of TD_ATTEND_Q_PARTS. */
enum { TD_ATTEND_Q_PARTS = 2 };
template <enum td_dtype T> constexpr uint32_t td_attend_parts = T == TD_BF16 ? 2 : 1;

/* v as the sum of N such numbers. */
template <enum td_dtype T, uint32_t N>
__device__ __forceinline__ void td_attend_split(float v, uint16_t part[N])
{
    for (uint32_t i = 0; i < N; i++) {
        part[i] = td_attend_narrow<T>(v);
        v = v - td_attend_widen<T>(part[i]);
    }
}

/* The host's part: a call as runs of chunks, as long as there are still `n_blocks` times runs enough to fill the device and a block has
 * room for one, and as many rows at a time as their partial results have room for. shared(run) is a block's bytes, launch(job) enqueues
 * the kernel for the rows of a job. */
template <class S, class L>
enum td_status td_attend_in_runs(struct td_cuda *cuda, struct td_attend_job *job, uint32_t n_blocks,
                                 size_t most_shared, S shared, L launch, struct td_err *err)
{
    enum { LEAST_RUN = 2, BLOCKS_PER_SM = 4 };
    const uint32_t n_chunks = (job->rows.most_keys + TD_ATTEND_KEYS - 1) / TD_ATTEND_KEYS;
    const uint32_t n = job->n;
    const size_t row_bytes = sizeof(float) * job->n_heads * (job->kv.head_dim + 2);
    const struct td_attend_job all = *job;
    uint32_t at_once = n;

    job->run = 1;
    while (job->run < n_chunks)
        job->run *= 2;
    while (job->run > LEAST_RUN && ((uint64_t)n_blocks * ((n_chunks + job->run - 1) / job->run) <
                                        (uint64_t)BLOCKS_PER_SM * cuda->n_sms ||
                                    shared(job->run) > most_shared))
        job->run /= 2;
    job->n_runs = (n_chunks + job->run - 1) / job->run;
    if (job->n_runs > 1) {
        const uint32_t most = (uint32_t)(TD_CUDA_PARTIAL_BYTES / (row_bytes * job->n_runs));
        enum td_status s;

        if (most < n)
            at_once = most / job->row_step * job->row_step;
        if (at_once == 0) /* a block takes fewer, then */
            at_once = job->row_step = most ? most : 1;
        s = td_cuda_reserve(cuda, &cuda->scratch, row_bytes * job->n_runs * at_once, err);
        if (s)
            return s;
        job->partials = (float *)cuda->scratch.data;
    }
    for (uint32_t row = 0; row < n; row += at_once) {
        job->n = n - row < at_once ? n - row : at_once;
        job->rows.positions = all.rows.positions + row;
        job->rows.first_block = all.rows.first_block + row;
        job->q = all.q + (size_t)row * job->n_heads * job->kv.head_dim;
        job->out = all.out + (size_t)row * job->n_heads * job->kv.head_dim;
        launch(*job);
        if (job->n_runs > 1)
            td_cuda_join_runs(cuda, job);
    }
    return TD_OK;
}

/* Attention over a cache of 16-bit floats or Q8_0 on the tensor cores; n_spans as in the job. */
enum td_status td_cuda_flash(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                             uint32_t n_spans, struct td_err *err);
/* The same of prompts, many of whose rows are of one sequence: nearly the same results, in fewer steps. False:
 * nothing was enqueued, because the device has no room for it, or heads are no multiple of 8. */
bool td_cuda_flash_prompts(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                           uint32_t n_spans);
/* The same bits, of rows that are mostly of as many sequences, over a cache of 16-bit floats. False: as above, nothing was enqueued. */
bool td_cuda_flash_tokens(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                          uint32_t n_spans, enum td_status *status, struct td_err *err);

#endif
