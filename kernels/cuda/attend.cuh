/* What the kernels of attention share: a call, cut into runs of chunks of keys and spans of query heads with one KV head. Chunks join
 * in the fixed tree by their index, inside a run and then over the runs, so that neither the runs nor who else is in the call is
 * seen in a result. Keys, chunks and runs are counted from the first chunk that a row sees. */
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
    const float *sinks; /* of td_attention, as the next three */
    float scale, softcap;
    uint32_t window; /* 0 where no row has so many keys, too */
    uint32_t n, n_heads;
    uint32_t run, n_runs; /* chunks of a run, a power of two; runs of the most keys */
    uint32_t levels;      /* results that may wait for their right-hand neighbours */
    uint32_t row_step;    /* rows of a block */
    struct td_attend_span span[TD_ATTEND_SPANS];
};

/* The first position that a row at `position` sees, and that of its chunk. */
__device__ __forceinline__ uint32_t td_attend_first(const struct td_attend_job &job,
                                                    uint32_t position)
{
    return job.window && position >= job.window ? position - job.window + 1 : 0;
}

__device__ __forceinline__ uint32_t td_attend_base(const struct td_attend_job &job,
                                                   uint32_t position)
{
    return td_attend_first(job, position) / TD_ATTEND_KEYS * TD_ATTEND_KEYS;
}

/* What a query's sum of values is multiplied with at last: 1 / the sum of all weights, that of the head's sink among them. */
__device__ __forceinline__ float td_attend_factor(const struct td_attend_job &job, uint32_t head,
                                                  float max, float sum)
{
    if (!job.sinks)
        return 1.0f / sum;
    const float sink = job.sinks[head], most = sink > max ? sink : max;
    const float weight = td_num_exp(max - most);

    return weight / fmaf(sum, weight, td_num_exp(sink - most));
}

/* Chunks that a row sees at most, of the host's part. */
static inline uint32_t td_attend_chunks(const struct td_attend_job *job)
{
    const uint32_t most = (job->rows.most_keys + TD_ATTEND_KEYS - 1) / TD_ATTEND_KEYS;
    const uint32_t seen = job->window / TD_ATTEND_KEYS + 2; /* the first and the last in part */

    return job->window && seen < most ? seen : most;
}

/* The runs of every row and head, from the partials into the result. */
void td_cuda_join_runs(struct td_cuda *cuda, const struct td_attend_job *job);

template <enum td_dtype T> __device__ __forceinline__ uint16_t td_attend_narrow(float v)
{
    return T == TD_BF16 ? td_num_to_bf16(v) : td_num_to_f16(v);
}

template <enum td_dtype T>
__device__ __forceinline__ void td_attend_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    if (T == TD_BF16)
        td_num_mma_bf16(c, a, b);
    else
        td_num_mma_f16(c, a, b);
}

/* Types whose numbers are bytes; they are F16 in shared memory. */
template <enum td_dtype T> constexpr bool td_attend_is_bytes = T == TD_Q8_0 || T == TD_F8_E4M3;

/* 8 such numbers; those of Q8_0 times `scale` (F16). */
template <enum td_dtype T>
__device__ __forceinline__ uint4 td_attend_widen(const uint2 &raw, uint16_t scale)
{
    const uint32_t by = scale | (uint32_t)scale << 16;
    uint32_t pair[4];

    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t v = i < 2 ? raw.x : raw.y;

        if (T == TD_F8_E4M3)
            pair[i] = td_num_e4m3x2(i % 2 ? v >> 16 : v & 0xffffu);
        else /* 1024 + 128 + number, as F16 has it, less 1024 + 128 */
            pair[i] = td_num_mul2(
                td_num_sub2(td_num_bytes(v ^ 0x80808080u, 0x64646464u, i % 2 ? 0x4342u : 0x4140u),
                            0x64806480u),
                by);
    }
    return {pair[0], pair[1], pair[2], pair[3]};
}

/* The power of two that brings a query's largest magnitude `max` (its bits) to 2^14, where it is F16, and its inverse. */
template <enum td_dtype T> __device__ __forceinline__ float td_attend_up(uint32_t max, float *down)
{
    const uint32_t e = max >> 23;
    const bool is_scaled = T != TD_BF16 && e > 14 && e < 255;

    *down = is_scaled ? td_num_bits((e - 14) << 23) : 1.0f;
    return is_scaled ? td_num_bits((254 + 14 - e) << 23) : 1.0f;
}

/* Attention over a cache of all types but F32, on the tensor cores; n_spans as in the job. */
enum td_status td_cuda_flash(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                             uint32_t n_spans, struct td_err *err);
/* The same of prompts, many of whose rows are of one sequence: nearly the same results, in fewer steps. False:
 * nothing was enqueued, because the device has no room for it, or heads are no multiple of 8. */
bool td_cuda_flash_prompts(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                           uint32_t n_spans);
#endif
