#include "comm/nccl/joinparts.h"

#include <cuda_runtime.h>

namespace
{

enum { THREADS = 256, MAX_BLOCKS = 4096 };

/* A thread reads its floats of all parts before it writes them, so `out` may be a part. The floats past the last whole
 * run of LANES are joined one by one by the first threads. */
template <int LANES>
__global__ void __launch_bounds__(THREADS)
    join_parts(const __grid_constant__ struct td_treestack join, float *out, size_t n_floats)
{
    const size_t thread = blockIdx.x * (size_t)THREADS + threadIdx.x;
    const size_t n_threads = gridDim.x * (size_t)THREADS;
    const size_t n_runs = n_floats / LANES;
    const size_t tail = n_runs * LANES + thread;
    float sum[LANES];

    for (size_t run = thread; run < n_runs; run += n_threads) {
        td_treestack_run(&join, run * LANES, LANES, sum);
        if (LANES == 4) {
            *(float4 *)(out + run * LANES) =
                make_float4(sum[0], sum[1 % LANES], sum[2 % LANES], sum[3 % LANES]);
        } else {
            out[run] = sum[0];
        }
    }
    if (LANES > 1 && tail < n_floats) {
        td_treestack_run(&join, tail, 1, sum);
        out[tail] = sum[0];
    }
}

/* Returns the launch's own error, where the last error could be an older one of somebody else. */
cudaError_t launch(void (*kernel)(struct td_treestack, float *, size_t), unsigned n_blocks,
                   struct td_treestack join, float *out, size_t n_floats, cudaStream_t stream)
{
#ifdef TD_GPUSIM
    return gpusim_launch(stream, kernel, dim3(n_blocks), dim3(THREADS), 0, false, join, out,
                         n_floats);
#else
    void *args[] = {&join, &out, &n_floats};

    return cudaLaunchKernel((const void *)kernel, dim3(n_blocks), dim3(THREADS), args, 0, stream);
#endif
}

bool is_aligned(const void *data)
{
    return (size_t)data % sizeof(float4) == 0;
}

} // namespace

int td_joinparts_enqueue(const struct td_treestack *join, float *out, size_t n_floats, void *stream)
{
    bool in_fours = is_aligned(out);
    size_t n_blocks;

    if (n_floats == 0)
        return cudaSuccess;
    for (uint32_t i = 0; i < join->program.n_parts; i++)
        in_fours = in_fours && is_aligned(join->part[i]);
    n_blocks = (n_floats / (in_fours ? TD_TREESTACK_LANES : 1) + THREADS - 1) / THREADS;
    if (n_blocks == 0)
        n_blocks = 1;
    if (n_blocks > MAX_BLOCKS)
        n_blocks = MAX_BLOCKS;
    return launch(in_fours ? join_parts<TD_TREESTACK_LANES> : join_parts<1>, (unsigned)n_blocks,
                  *join, out, n_floats, (cudaStream_t)stream);
}
