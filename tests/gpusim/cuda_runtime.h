/* A CUDA device made of plain C++, so that kernels can be checked where there is no GPU: the words of the language and the few calls of
 * the runtime that the plug-in uses. A kernel's blocks run one after the other, a block's threads as fibers that change places
 * wherever threads wait for each other, in an order that changes from wait to wait. Streams are threads. Memory is the host's, and what
 * overruns it is found by the host's tools. Says nothing about speed. */
#ifndef TD_TESTS_GPUSIM_CUDA_RUNTIME_H
#define TD_TESTS_GPUSIM_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

enum { GPUSIM_SHARED_BYTES = 227 << 10 }; /* most that a block may have */

struct dim3 {
    uint32_t x, y, z;
    dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

/* ---- inside of a kernel ---- */

extern struct gpusim_place {
    dim3 block, grid, n_threads;
} gpusim_place;
extern struct gpusim_thread {
    uint32_t x;
} gpusim_thread;

#define threadIdx gpusim_thread
#define blockIdx gpusim_place.block
#define gridDim gpusim_place.grid
#define blockDim gpusim_place.n_threads

/* Waits until all threads of the block that have not ended are here. */
void __syncthreads(void);

/* Threads change places nowhere inside of it. */
static inline uint32_t atomicMax(uint32_t *at, uint32_t value)
{
    const uint32_t before = *at;

    *at = before > value ? before : value;
    return before;
}

template <class T> static inline T atomicAdd(T *at, T value)
{
    const T before = *at;

    *at = before + value;
    return before;
}

/* ---- around kernels ---- */

/* Does `call` on the stream, after what it was given before, or keeps it for the graph that is captured there. */
void gpusim_enqueue(cudaStream_t stream, const std::function<cudaError_t()> &call);
/* Runs `thread(arg)` once for every thread of every block. `early`: it may begin before what comes before it has ended, and has to await
 * that. */
cudaError_t gpusim_run(dim3 grid, dim3 block, size_t shared_bytes, bool early,
                       void (*thread)(void *arg), void *arg);

template <class K, class... A>
static cudaError_t gpusim_launch(cudaStream_t stream, K *kernel, dim3 grid, dim3 block,
                                 size_t shared_bytes, bool early, const A &...args)
{
    gpusim_enqueue(stream, [=] {
        auto call = [&] { kernel(args...); };

        return gpusim_run(
            grid, block, shared_bytes, early, [](void *arg) { (*(decltype(call) *)arg)(); }, &call);
    });
    return cudaSuccess;
}

#endif
