/* A CUDA device made of plain C++, so that kernels can be checked where there is no GPU: the words of the language and the few calls of
 * the runtime that the plug-in uses. A kernel's blocks run one after the other, a block's threads as fibers that change places
 * wherever threads wait for each other, in an order that changes from wait to wait. Memory is the host's, and what overruns it is
 * found by the host's tools. Says nothing about speed. */
#ifndef TD_TESTS_GPUSIM_CUDA_RUNTIME_H
#define TD_TESTS_GPUSIM_CUDA_RUNTIME_H

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
#define CUDART_VERSION 13000

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

/* ---- the runtime ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum { cudaStreamNonBlocking = 1 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
typedef struct gpusim_stream *cudaStream_t;
typedef struct gpusim_graph *cudaGraph_t, *cudaGraphExec_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t sharedMemPerBlockOptin;
};

struct cudaFuncAttributes {
    int numRegs;
};

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device);
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaGetLastError(void);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* Keeps the call for the graph that is captured; false: none is. */
bool gpusim_capture(const std::function<cudaError_t()> &call);
/* Runs `thread(arg)` once for every thread of every block. */
cudaError_t gpusim_run(dim3 grid, dim3 block, size_t shared_bytes, void (*thread)(void *arg),
                       void *arg);

template <class K, class... A>
static cudaError_t gpusim_launch(K *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                                 const A &...args)
{
    auto launch = [=] {
        auto call = [&] { kernel(args...); };

        return gpusim_run(
            grid, block, shared_bytes, [](void *arg) { (*(decltype(call) *)arg)(); }, &call);
    };

    return gpusim_capture(launch) ? cudaSuccess : launch();
}

#endif
