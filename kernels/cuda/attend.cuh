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

/* Attention over a cache of 16-bit floats or Q8_0 on the tensor cores; n_spans as in the job. */
enum td_status td_cuda_flash(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                             uint32_t n_spans, struct td_err *err);
/* The runs of every row and head, from the partials into the result. */
void td_cuda_join_runs(struct td_cuda *cuda, const struct td_attend_job *job);

#endif
