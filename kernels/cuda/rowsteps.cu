/* Operations on rows of activations. */
#include "kernels/cuda/device.cuh"

namespace
{

enum { THREADS = 256, MOST_BLOCKS = 4096 };

dim3 blocks_for(size_t n)
{
    const size_t blocks = (n + THREADS - 1) / THREADS;

    return dim3((uint32_t)(blocks < MOST_BLOCKS ? blocks : (size_t)MOST_BLOCKS));
}

#define EACH(i, n)                                                                                 \
    size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x;                                         \
    i < (n);                                                                                       \
    i += gridDim.x * (size_t)THREADS

__global__ void gather(const float *x, const uint32_t *rows, size_t n, uint32_t dim, float *out)
{
    td_num_await_earlier();
    for (EACH(i, n * dim))
        out[i] = x[(size_t)rows[i / dim] * dim + i % dim];
}

__global__ void silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    td_num_await_earlier();
    for (EACH(i, n))
        out[i] = td_num_silu(gate[i], up[i]);
}

/* n pairs of BF16 into F32. */
__global__ void silu_mul_bf16(const uint32_t *gate, const uint32_t *up, size_t n, uint2 *out)
{
    td_num_await_earlier();
    for (EACH(i, n)) {
        const uint32_t g = gate[i], u = up[i];
        const float low = td_num_silu(td_num_bf16((uint16_t)g), td_num_bf16((uint16_t)u));
        const float high =
            td_num_silu(td_num_bf16((uint16_t)(g >> 16)), td_num_bf16((uint16_t)(u >> 16)));

        out[i] = {td_num_f32_bits(low), td_num_f32_bits(high)};
    }
}

__global__ void add(float *x, const float *y, size_t n)
{
    td_num_await_earlier();
    for (EACH(i, n))
        x[i] = x[i] + y[i];
}

/* One block a row. */
__global__ void rmsnorm(const float *x, const float *weight, uint32_t dim, float eps, float *out)
{
    td_num_await_earlier();
    __shared__ float scratch[32];
    const size_t at = blockIdx.x * (size_t)dim;
    float squares = 0.0f, factor;

    for (uint32_t i = threadIdx.x; i < dim; i += THREADS)
        squares = fmaf(x[at + i], x[at + i], squares);
    factor = 1.0f / sqrtf(td_num_block_sum(squares, scratch) / (float)dim + eps);
    for (uint32_t i = threadIdx.x; i < dim; i += THREADS)
        out[at + i] = x[at + i] * factor * weight[i];
}

__global__ void angles_of(const double *freq, uint32_t dim, double scale, bool interleaved,
                          const uint32_t *positions, uint32_t n, float *angles)
{
    td_num_await_earlier();
    const uint32_t half = dim / 2;

    for (EACH(i, (size_t)n * half)) {
        const uint32_t j = (uint32_t)(i % half), a = interleaved ? 2 * j : j;
        const uint32_t b = interleaved ? a + 1 : a + half;
        float *cosine = angles + i / half * 2 * dim, *sine = cosine + dim;
        double s, c;

        sincos((double)positions[i / half] * freq[j], &s, &c);
        cosine[a] = cosine[b] = (float)(c * scale);
        sine[b] = (float)(s * scale);
        sine[a] = -sine[b];
    }
}

} // namespace

void td_cuda_gather(struct td_kern *kern, const float *x, const uint32_t *rows, uint32_t n,
                    uint32_t dim, float *out)
{
    td_cuda_launch(td_cuda_of(kern), gather, blocks_for((size_t)n * dim), dim3(THREADS), 0, x, rows,
                   (size_t)n, dim, out);
}

void td_cuda_rmsnorm(struct td_kern *kern, const float *x, const float *weight, uint32_t n,
                     uint32_t dim, float eps, float *out)
{
    if (n)
        td_cuda_launch(td_cuda_of(kern), rmsnorm, dim3(n), dim3(THREADS), 0, x, weight, dim, eps,
                       out);
}

void td_cuda_silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n,
                      float *out)
{
    if (n)
        td_cuda_launch(td_cuda_of(kern), silu_mul, blocks_for(n), dim3(THREADS), 0, gate, up, n,
                       out);
}

void td_cuda_silu_mul_bf16(struct td_cuda *cuda, const uint32_t *gate, const uint32_t *up, size_t n,
                           float *out)
{
    if (n)
        td_cuda_launch(cuda, silu_mul_bf16, blocks_for(n / 2), dim3(THREADS), 0, gate, up, n / 2,
                       (uint2 *)out);
}

void td_cuda_add(struct td_kern *kern, float *x, const float *y, size_t n)
{
    if (n)
        td_cuda_launch(td_cuda_of(kern), add, blocks_for(n), dim3(THREADS), 0, x, y, n);
}

void td_cuda_rope_angles(struct td_kern *kern, const double *freq, uint32_t dim, double scale,
                         bool interleaved, const uint32_t *positions, uint32_t n, float *angles)
{
    if (n)
        td_cuda_launch(td_cuda_of(kern), angles_of, blocks_for((size_t)n * (dim / 2)),
                       dim3(THREADS), 0, freq, dim, scale, interleaved, positions, n, angles);
}
