/* The largest values of rows: of every segment of a row, then of what those have given. */
#include "kernels/cuda/device.cuh"

namespace
{

enum { THREADS = 1024, EACH = 4, SEGMENT = THREADS * EACH };

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

/* The n_top largest of one segment of one row, [.. x width] values or, of a list, what earlier calls have found; one block. A thread keeps
 * its values, and the block finds one after the other, each the first behind the one before. */
template <bool IS_LIST>
__global__ void __launch_bounds__(THREADS)
    find_top(const void *rows, uint32_t width, uint32_t n_top, struct td_top *out)
{
    td_num_await_earlier();
    __shared__ float values[32];
    __shared__ uint32_t ids[32];
    const size_t row = blockIdx.y * (size_t)width;
    struct td_top mine[EACH];
    float last = INFINITY;
    uint32_t last_id = 0;
    bool is_first = true;

    for (uint32_t k = 0; k < EACH; k++) {
        const uint32_t i = blockIdx.x * SEGMENT + k * THREADS + threadIdx.x;

        mine[k] = {-INFINITY, UINT32_MAX};
        if (i < width && IS_LIST)
            mine[k] = ((const struct td_top *)rows)[row + i];
        else if (i < width)
            mine[k] = {((const float *)rows)[row + i], i};
    }
    for (uint32_t k = 0; k < n_top; k++) {
        float value = -INFINITY;
        uint32_t id = UINT32_MAX;

        for (const struct td_top &one : mine) /* NaN and -infinity are never before */
            if (one.value > -INFINITY && (is_first || before(last, last_id, one.value, one.id)))
                take(&value, &id, one.value, one.id);
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
            out[(blockIdx.y * (size_t)gridDim.x + blockIdx.x) * n_top + k] = {value, id};
        last = value;
        last_id = id;
        is_first = false;
    }
}

uint32_t segments(uint32_t width)
{
    return (width + SEGMENT - 1) / SEGMENT;
}

} // namespace

void td_cuda_top(struct td_kern *kern, const float *x, uint32_t n, uint32_t width, uint32_t n_top,
                 struct td_top *out)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const size_t most = (size_t)n * segments(width) * n_top;
    struct td_top *lists[2];
    const void *from = x;

    if (segments(width) > 1 &&
        td_cuda_reserve(cuda, &cuda->scratch, 2 * most * sizeof *out, NULL) != TD_OK) {
        td_cuda_note(cuda, cudaErrorMemoryAllocation);
        return;
    }
    lists[0] = (struct td_top *)cuda->scratch.data;
    lists[1] = lists[0] + most;
    for (uint32_t k = 0; k == 0 || width > n_top; k++) { /* until one segment's are left */
        const uint32_t n_segments = segments(width);
        struct td_top *to = n_segments > 1 ? lists[k % 2] : out;

        td_cuda_launch(cuda, k ? find_top<true> : find_top<false>, dim3(n_segments, n),
                       dim3(THREADS), 0, from, width, n_top, to);
        from = to;
        width = n_segments * n_top;
    }
}
