/* Where keys and values lie: per block and KV head a cell, of which the first half is keys and the second values, each [tokens x
 * head_dim] in the cache's type; of Q8_0 the whole numbers first, then the F16 scales [tokens x head_dim / 32]. */
#ifndef TD_KERNELS_CUDA_KVCELLS_CUH
#define TD_KERNELS_CUDA_KVCELLS_CUH

#include "kernels/cuda/clib.h"
#include "kernels/cuda/num.cuh"

/* A view for kernels. */
struct td_cuda_kv {
    uint8_t *data;
    size_t half_bytes; /* of a cell */
    uint32_t n_kv_heads, block_tokens, head_dim;
};

static inline struct td_cuda_kv td_cuda_kv_of(const struct td_kv_view *kv)
{
    return {(uint8_t *)kv->data, td_dtype_row_bytes(kv->dtype, kv->head_dim) * kv->block_tokens,
            kv->n_kv_heads, kv->block_tokens, kv->head_dim};
}

/* Keys (`half` 0) or values (1) of one head in one block. */
__device__ __forceinline__ uint8_t *td_cuda_kv_cell(const struct td_cuda_kv &kv, uint32_t block,
                                                    uint32_t head, uint32_t half)
{
    return kv.data + (((size_t)block * kv.n_kv_heads + head) * 2 + half) * kv.half_bytes;
}

/* Of Q8_0: what dimension d of token t is multiplied with. */
__device__ __forceinline__ float td_cuda_kv_scale(const struct td_cuda_kv &kv, const uint8_t *half,
                                                  uint32_t t, uint32_t d)
{
    const uint16_t *scales = (const uint16_t *)(half + (size_t)kv.block_tokens * kv.head_dim);

    return td_num_f16(scales[((size_t)t * kv.head_dim + d) / 32]);
}

/* Dimension d of token t of half a cell. */
template <enum td_dtype T>
__device__ __forceinline__ float td_cuda_kv_read(const struct td_cuda_kv &kv, const uint8_t *half,
                                                 uint32_t t, uint32_t d)
{
    const size_t at = (size_t)t * kv.head_dim + d;

    if (T == TD_F32)
        return ((const float *)half)[at];
    if (T == TD_F16)
        return td_num_f16(((const uint16_t *)half)[at]);
    if (T == TD_BF16)
        return td_num_bf16(((const uint16_t *)half)[at]);
    if (T == TD_F8_E4M3)
        return td_num_f16((uint16_t)td_num_e4m3x2(half[at]));
    return (float)(int8_t)half[at] * td_cuda_kv_scale(kv, half, t, d);
}

#endif
