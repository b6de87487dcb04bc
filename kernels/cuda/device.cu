/* The plug-in's table: devices, their memory and their errors. */
#include "kernels/cuda/libproducts.cuh"

#include <stdio.h>
#include <stdlib.h>

namespace
{

enum {
    OLDEST_MAJOR = 8, /* sm_80: BF16 on the tensor cores */
    AHEAD_BYTES = 4096,
    POST_BYTES = 4 << 20
};

enum td_status no_device(cudaError_t e, struct td_err *err)
{
    int driver = 0;

    cudaDriverGetVersion(&driver);
    if (e == cudaErrorInsufficientDriver && driver)
        return td_err_set(err, TD_UNAVAILABLE,
                          "the NVIDIA driver is too old: it is for CUDA %d.%d, expected %d.%d or "
                          "later; '--device cpu' works without",
                          driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                          CUDART_VERSION % 1000 / 10);
    if (e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice)
        return td_err_set(err, TD_UNAVAILABLE, "there is no %s here; '--device cpu' works without",
                          driver ? "CUDA device" : "NVIDIA driver");
    return td_err_set(err, TD_DEVICE, "CUDA does not begin: %s", cudaGetErrorString(e));
}

enum td_status count(uint32_t *n, struct td_err *err)
{
    int devices = 0;
    cudaError_t e = cudaGetDeviceCount(&devices);

    if (e == cudaSuccess && devices == 0)
        e = cudaErrorNoDevice;
    if (e != cudaSuccess)
        return no_device(e, err);
    *n = (uint32_t)devices;
    return TD_OK;
}

/* ---- the table ---- */

void free_outgrown(struct td_cuda *cuda)
{
    for (void *&old : cuda->outgrown) {
        if (old)
            td_cuda_note(cuda, cudaFree(old));
        old = NULL;
    }
}

void close_cuda(struct td_kern *kern)
{
    struct td_cuda *cuda = td_cuda_of(kern);

    cudaStreamSynchronize(cuda->stream);
    td_cuda_graphs_drop(cuda);
    free_outgrown(cuda);
    cudaFree(cuda->scratch.data);
    cudaFree(cuda->gates.data);
    cudaFree(cuda->partials.data);
    td_cuda_bays_close(cuda);
    cudaFree(cuda->unpacked.data);
    td_cuda_lib_close(cuda);
    if (cuda->posted)
        cudaFreeHost(cuda->posted);
    cudaStreamDestroy(cuda->stream);
    free(cuda);
}

bool supports_matrix(const struct td_kern *kern, enum td_dtype type)
{
    (void)kern;
    return td_cuda_format_of(type).tile_bytes != 0;
}

bool supports_kv(const struct td_kern *kern, enum td_dtype type)
{
    (void)kern;
    switch (type) {
#define CASE(T) case T:
        TD_CUDA_EACH_KV(CASE)
#undef CASE
        return true;
    default:
        return false;
    }
}

void *alloc(struct td_kern *kern, size_t bytes)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    void *p = NULL;

    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    td_cuda_note(cuda, cudaMemsetAsync(p, 0, bytes ? bytes : 1, cuda->stream));
    return p;
}

void release(struct td_kern *kern, void *ptr, size_t bytes)
{
    (void)bytes;
    td_cuda_graphs_drop(td_cuda_of(kern));
    td_cuda_note(td_cuda_of(kern), cudaFree(ptr));
}

void *alloc_shared(struct td_kern *kern, size_t bytes)
{
    void *p = NULL;

    (void)kern;
    if (cudaMallocHost(&p, bytes ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}

void release_shared(struct td_kern *kern, void *ptr, size_t bytes)
{
    (void)bytes;
    td_cuda_graphs_drop(td_cuda_of(kern));
    td_cuda_note(td_cuda_of(kern), cudaFreeHost(ptr));
}

/* Where the bytes of the host's memory stay as they are until td_kern_sync, and the device reads them in its turn: CUDA promises
 * neither of memory that it did not give. NULL: no room. */
const void *post(struct td_cuda *cuda, const void *from, size_t bytes)
{
    uint8_t *at = cuda->posted + cuda->posted_bytes;

    if (td_cuda_align(bytes) > POST_BYTES - cuda->posted_bytes)
        return NULL;
    memcpy(at, from, bytes);
    cuda->posted_bytes += td_cuda_align(bytes);
    return at;
}

void copy(struct td_kern *kern, void *to, const void *from, size_t bytes)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    struct cudaPointerAttributes known = {};
    const void *posted = NULL;
    const cudaError_t e = cudaPointerGetAttributes(&known, from);
    const bool is_hosts = e == cudaSuccess && (known.type == cudaMemoryTypeUnregistered ||
                                               known.type == cudaMemoryTypeHost);

    td_cuda_note(cuda, e);
    if (is_hosts)
        posted = post(cuda, from, bytes);
    td_cuda_note(
        cuda, cudaMemcpyAsync(to, posted ? posted : from, bytes, cudaMemcpyDefault, cuda->stream));
    if (is_hosts && !posted) {
        td_cuda_note(cuda, cudaStreamSynchronize(cuda->stream));
        cuda->posted_bytes = 0;
    }
}

void copy_rows(struct td_kern *kern, void *to, size_t to_step, const void *from, size_t from_step,
               uint32_t n, size_t bytes)
{
    struct td_cuda *cuda = td_cuda_of(kern);

    td_cuda_note(cuda, cudaMemcpy2DAsync(to, to_step, from, from_step, bytes, n, cudaMemcpyDefault,
                                         cuda->stream));
}

size_t free_bytes(struct td_kern *kern)
{
    size_t free = 0, total = 0;

    td_cuda_note(td_cuda_of(kern), cudaMemGetInfo(&free, &total));
    return free;
}

void run(struct td_kern *kern, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    const struct td_kern_cuda_params *p = &td_cuda_of(kern)->p;

    if (p->run)
        p->run(p->user, n, task, arg);
    else
        for (uint32_t i = 0; i < n; i++)
            task(arg, i);
}

enum td_status sync_cuda(struct td_kern *kern, struct td_err *err)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const char *in;
    cudaError_t e;

    td_cuda_note(cuda, cudaStreamSynchronize(cuda->stream));
    cuda->posted_bytes = 0;
    td_cuda_bays_close(cuda); /* whoever waits has packed all there is */
    free_outgrown(cuda);
    e = cuda->failed;
    in = cuda->failed_in ? cuda->failed_in : "";
    cuda->failed = cudaSuccess;
    cuda->failed_in = NULL;
    if (e == cudaErrorMemoryAllocation)
        return td_err_set(err, TD_NO_MEMORY, "%s: %s", kern->name, cudaGetErrorString(e));
    return e == cudaSuccess ? TD_OK
                            : td_err_set(err, TD_DEVICE, "%s: %s%s (%s)", kern->name, in,
                                         cudaGetErrorString(e), cudaGetErrorName(e));
}

void forget(struct td_kern *kern)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    cudaGraph_t graph = NULL;

    if (cuda->recording && cudaStreamEndCapture(cuda->stream, &graph) == cudaSuccess && graph)
        td_cuda_note(cuda, cudaGraphDestroy(graph));
    cuda->recording = NULL;
    td_cuda_graphs_drop(cuda);
}

const struct td_kern_ops OPS = {.close = close_cuda,
                                .supports_matrix = supports_matrix,
                                .supports_kv = supports_kv,
                                .alloc = alloc,
                                .release = release,
                                .alloc_shared = alloc_shared,
                                .release_shared = release_shared,
                                .copy = copy,
                                .copy_rows = copy_rows,
                                .free_bytes = free_bytes,
                                .run = run,
                                .sync = sync_cuda,
                                .replay = td_cuda_replay,
                                .record = td_cuda_record,
                                .record_end = td_cuda_record_end,
                                .forget = forget,
                                .matrix_open = td_cuda_matrix_open,
                                .matrix_close = td_cuda_matrix_close,
                                .matrix_pack = td_cuda_matrix_pack,
                                .linear = td_cuda_linear,
                                .rows = td_cuda_rows,
                                .gather = td_cuda_gather,
                                .rmsnorm = td_cuda_rmsnorm,
                                .silu_mul = td_cuda_silu_mul,
                                .add = td_cuda_add,
                                .top = td_cuda_top,
                                .draw = td_cuda_draw,
                                .measure = td_cuda_measure,
                                .rope_angles = td_cuda_rope_angles,
                                .rope_kv = td_cuda_rope_kv,
                                .attention = td_cuda_attention,
                                .kv_save = td_cuda_kv_save,
                                .kv_restore = td_cuda_kv_restore};

/* ---- opening ---- */

/* Is built for whatever device the plug-in is. */
__global__ void nothing(void)
{
}

enum td_status begin(struct td_cuda *cuda, struct td_err *err)
{
    cudaFuncAttributes attributes;
    cudaDeviceProp prop;
    cudaError_t e = cudaSetDevice((int)cuda->p.device);
    const char *ahead = getenv("TD_CUDA_AHEAD"); /* to measure with another */

    e = e == cudaSuccess ? cudaGetDeviceProperties(&prop, (int)cuda->p.device) : e;
    if (e != cudaSuccess)
        return no_device(e, err);
    if (prop.major < OLDEST_MAJOR)
        return td_err_set(err, TD_UNSUPPORTED,
                          "%s has compute capability %d.%d, expected %d.0 or later; '--device cpu' "
                          "works without",
                          prop.name, prop.major, prop.minor, OLDEST_MAJOR);
    if (cudaFuncGetAttributes(&attributes, (const void *)nothing) != cudaSuccess) {
        (void)cudaGetLastError();
        return td_err_set(err, TD_UNSUPPORTED,
                          "this build of tensord has no kernels for %s (compute capability %d.%d); "
                          "'--device cpu' works without",
                          prop.name, prop.major, prop.minor);
    }
    cuda->n_sms = (uint32_t)prop.multiProcessorCount;
    cuda->most_shared = prop.sharedMemPerBlockOptin;
    cuda->sm_shared = prop.sharedMemPerMultiprocessor;
    cuda->block_shared = prop.reservedSharedMemPerBlock;
    /* How a tensor core adds up is its own. */
    snprintf(cuda->numerics, sizeof cuda->numerics, "cuda-1-sm%d%d%s", prop.major, prop.minor,
             cuda->p.inexact_from ? "-inexact" : "");
    cuda->head.numerics = cuda->numerics;
    cuda->overlaps = prop.major >= 9 &&
                     attributes.ptxVersion >= 90 /* older code does not await */ &&
                     !getenv("TD_CUDA_NO_OVERLAP") /* to measure without */;
    cuda->ahead = ahead ? (uint32_t)strtoul(ahead, NULL, 10) : (uint32_t)AHEAD_BYTES;
    snprintf(cuda->head.name, sizeof cuda->head.name, "cuda %u %.20s", cuda->p.device, prop.name);
    if (cudaDeviceGetPCIBusId(cuda->head.bus_id, (int)sizeof cuda->head.bus_id,
                              (int)cuda->p.device) != cudaSuccess)
        (void)cudaGetLastError(); /* its health is not known then */
    e = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    cuda->head.stream = cuda->stream;
    return e == cudaSuccess ? TD_OK
                            : td_err_set(err, TD_DEVICE, "no stream on %s: %s", prop.name,
                                         cudaGetErrorString(e));
}

enum td_status open(const struct td_kern_cuda_params *params, struct td_kern **kern,
                    struct td_err *err)
{
    uint32_t n = 0;
    enum td_status s = count(&n, err);
    struct td_cuda *cuda;

    if (s)
        return s;
    if (params->device >= n)
        return td_err_set(err, TD_INVALID, "CUDA device %u of %u: expected 0 to %u", params->device,
                          n, n - 1);
    cuda = (struct td_cuda *)calloc(1, sizeof *cuda);
    if (!cuda)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a CUDA device");
    cuda->p = *params;
    cuda->head.ops = &OPS;
    cuda->head.n_threads = 1;
    s = begin(cuda, err);
    if (s) {
        free(cuda);
        return s;
    }
    if (cudaMallocHost((void **)&cuda->posted, POST_BYTES) != cudaSuccess)
        s = td_err_set(err, TD_NO_MEMORY, "%s: no %u bytes of the host's memory that it reads",
                       cuda->head.name, (unsigned)POST_BYTES);
    if (!s && params->inexact_from)
        s = td_cuda_lib_open(cuda, err);
    if (s)
        close_cuda(&cuda->head);
    else
        *kern = &cuda->head;
    return s;
}

} // namespace

enum td_status td_cuda_reserve(struct td_cuda *cuda, struct td_cuda_buffer *buffer, size_t bytes,
                               struct td_err *err)
{
    void *data = NULL;
    uint32_t i = 0;

    if (bytes <= buffer->bytes)
        return TD_OK;
    td_cuda_graphs_drop(cuda);
    /* To give memory back waits for all that is enqueued, which may wait for a peer that is gone. */
    while (i < TD_CUDA_OUTGROWN && cuda->outgrown[i])
        i++;
    if (i < TD_CUDA_OUTGROWN)
        cuda->outgrown[i] = buffer->data;
    else
        td_cuda_note(cuda, cudaFree(buffer->data));
    buffer->data = NULL;
    buffer->bytes = 0;
    if (cudaMalloc(&data, bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        free_outgrown(cuda); /* late, but it may be enough */
        if (cudaMalloc(&data, bytes) != cudaSuccess) {
            (void)cudaGetLastError();
            return td_err_set(err, TD_NO_MEMORY, "%s: no memory for %zu bytes of scratch",
                              cuda->head.name, bytes);
        }
    }
    buffer->data = (uint8_t *)data;
    buffer->bytes = bytes;
    return TD_OK;
}

extern "C" {
__attribute__((visibility("default"))) extern const struct td_cudaplug td_cudaplug;
const struct td_cudaplug td_cudaplug = {TD_CUDAPLUG_ABI, CUDART_VERSION, count, open};
}
