/* Queries and keys normalised and rotated, keys and values stored; blocks to and from the host. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kvcells.cuh"

#include <float.h>

namespace
{

enum { THREADS = 128 };

struct rope {
    struct td_cuda_kv kv;
    struct td_kv_rows rows;
    struct td_rope_kv in;
};

/* Stores dim values from shared memory as row t of half a cell; as td_quant_row and kernels/cpu round them. */
template <enum td_dtype T>
__device__ void store(const struct td_cuda_kv &kv, uint8_t *half, uint32_t t, const float *x)
{
    const size_t at = (size_t)t * kv.head_dim;

    for (uint32_t d = threadIdx.x; d < kv.head_dim; d += THREADS) {
        if (T == TD_F32) {
            ((float *)half)[at + d] = x[d];
        } else if (T == TD_F16) {
            ((uint16_t *)half)[at + d] = td_num_to_f16(x[d]);
        } else if (T == TD_BF16) {
            ((uint16_t *)half)[at + d] = td_num_to_bf16(x[d]);
        } else if (T == TD_F8_E4M3) {
            const bool is_number = (td_num_f32_bits(x[d]) & 0x7f800000u) != 0x7f800000u;

            half[at + d] = is_number ? td_num_to_e4m3(x[d]) : 0x7f;
        } else { /* one warp has one block of 32 */
            uint16_t *scales = (uint16_t *)(half + (size_t)kv.block_tokens * kv.head_dim);
            uint32_t max = td_num_f32_bits(fabsf(x[d]));
            float scale, inverse, q;

            for (uint32_t mask = 16; mask; mask >>= 1) {
                const uint32_t other = td_num_xor(max, mask);

                max = other > max ? other : max;
            }
            if (max >= 0x7f800000u) { /* infinity or NaN among them: all are NaN */
                half[at + d] = 0;
                if (d % 32 == 0)
                    scales[(at + d) / 32] = 0x7e00u;
                continue;
            }
            scale = td_num_bits(max) / 127.0f;
            scale = scale > 65504.0f ? 65504.0f : scale;
            inverse = scale >= FLT_MIN ? 1.0f / scale : 0.0f;
            q = roundf(x[d] * inverse);
            q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
            half[at + d] = (uint8_t)(int8_t)q;
            if (d % 32 == 0)
                scales[(at + d) / 32] = td_num_to_f16(scale);
        }
    }
}

/* One block a row and head: queries first, then keys, then values. */
template <enum td_dtype T>
__global__ void __launch_bounds__(THREADS) rope_kv(const __grid_constant__ struct rope r)
{
    td_num_await_earlier();
    __shared__ float from[TD_KERN_MAX_HEAD_DIM], to[TD_KERN_MAX_HEAD_DIM], scratch[32];
    const uint32_t i = blockIdx.x, dim = r.kv.head_dim, n_q = r.in.n_heads, n_kv = r.kv.n_kv_heads;
    const bool is_q = blockIdx.y < n_q, is_v = blockIdx.y >= n_q + n_kv;
    const uint32_t head = is_q ? blockIdx.y : (blockIdx.y - n_q) % n_kv;
    const float *norm = is_v ? NULL : is_q ? r.in.q_norm : r.in.k_norm;
    const float *angles = r.in.angles + (size_t)i * 2 * dim;
    float *x = is_q ? r.in.q + ((size_t)i * n_q + head) * dim
                    : (is_v ? (float *)r.in.v : r.in.k) + ((size_t)i * n_kv + head) * dim;
    float squares = 0.0f, factor = 1.0f;

    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        squares = fmaf(x[d], x[d], squares);
    if (norm)
        factor = 1.0f / sqrtf(td_num_block_sum(squares, scratch) / (float)dim + r.in.eps);
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        from[d] = norm ? x[d] * factor * norm[d] : x[d];
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        const uint32_t partner = r.in.interleaved ? d ^ 1u
                                 : d < dim / 2    ? d + dim / 2
                                                  : d - dim / 2;

        to[d] = is_v ? from[d] : from[d] * angles[d] + from[partner] * angles[dim + d];
        if (!is_v)
            x[d] = to[d];
    }
    __syncthreads();
    if (!is_q) {
        const uint32_t position = r.rows.positions[i];
        const uint32_t block = r.rows.table[r.rows.first_block[i] + position / r.kv.block_tokens];

        store<T>(r.kv, td_cuda_kv_cell(r.kv, block, head, is_v), position % r.kv.block_tokens, to);
    }
}

} // namespace

void td_cuda_rope_kv(struct td_kern *kern, const struct td_kv_view *kv,
                     const struct td_kv_rows *rows, uint32_t n, const struct td_rope_kv *in)
{
    const struct rope r = {td_cuda_kv_of(kv), *rows, *in};
    const dim3 grid(n, in->n_heads + 2 * kv->n_kv_heads);

    switch (kv->dtype) {
#define CASE(T)                                                                                    \
    case T:                                                                                        \
        td_cuda_launch(td_cuda_of(kern), rope_kv<T>, grid, dim3(THREADS), 0, r);                   \
        break;
        TD_CUDA_EACH_KV(CASE)
#undef CASE
    default:
        break;
    }
}

/* A block's cells lie side by side. */
void td_cuda_kv_save(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block, void *bytes)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const size_t n = td_cuda_kv_of(kv).half_bytes * 2 * kv->n_kv_heads;

    td_cuda_note(cuda, cudaMemcpyAsync(bytes, (uint8_t *)kv->data + block * n, n, cudaMemcpyDefault,
                                       cuda->stream));
}

void td_cuda_kv_restore(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                        const void *bytes)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const size_t n = td_cuda_kv_of(kv).half_bytes * 2 * kv->n_kv_heads;

    td_cuda_note(cuda, cudaMemcpyAsync((uint8_t *)kv->data + block * n, bytes, n, cudaMemcpyDefault,
                                       cuda->stream));
}
