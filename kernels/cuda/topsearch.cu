/* The largest values of rows: one block a row finds them one after the other, each the first behind the one before. */
#include "kernels/cuda/device.cuh"

namespace
{

enum { THREADS = 1024 };

/* Among equal values the lower id is larger; both zeros are equal (kernels/top.h). */
__device__ bool before(float a, uint32_t a_id, float b, uint32_t b_id)
{
    return a > b || (a == b && a_id < b_id);
}

__device__ void take(float *value, uint32_t *id, float other, uint32_t other_id)
{
    if (before(other, other_id, *value, *id)) {
        *value = other;
        *id = other_id;
    }
}

__global__ void __launch_bounds__(THREADS)
    find_top(const float *rows, uint32_t width, uint32_t n_top, struct td_top *out)
{
    td_num_await_earlier();
    __shared__ float values[32];
    __shared__ uint32_t ids[32];
    const float *x = rows + (size_t)blockIdx.x * width;
    float last = INFINITY;
    uint32_t last_id = 0;
    bool is_first = true;

    for (uint32_t k = 0; k < n_top; k++) {
        float value = -INFINITY;
        uint32_t id = UINT32_MAX;

        for (uint32_t i = threadIdx.x; i < width;
             i += THREADS) /* NaN and -infinity are never before */
            if (x[i] > -INFINITY && (is_first || before(last, last_id, x[i], i)))
                take(&value, &id, x[i], i);
        for (uint32_t mask = 16; mask; mask >>= 1) {
            const float other = td_num_xor(value, mask);

            take(&value, &id, other, td_num_xor(id, mask));
        }
        __syncthreads(); /* all have read the one before */
        if (threadIdx.x % 32 == 0) {
            values[threadIdx.x / 32] = value;
            ids[threadIdx.x / 32] = id;
        }
        __syncthreads();
        value = values[0];
        id = ids[0];
        for (uint32_t w = 1; w < THREADS / 32; w++)
            take(&value, &id, values[w], ids[w]);
        if (threadIdx.x == 0)
            out[(size_t)blockIdx.x * n_top + k] = {value, id};
        last = value;
        last_id = id;
        is_first = false;
    }
}

} // namespace

void td_cuda_top(struct td_kern *kern, const float *x, uint32_t n, uint32_t width, uint32_t n_top,
                 struct td_top *out)
{
    td_cuda_launch(td_cuda_of(kern), find_top, dim3(n), dim3(THREADS), 0, x, width, n_top, out);
}
