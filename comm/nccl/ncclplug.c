/* NCCL and the CUDA runtime behind the plug-in's table. NCCL is opened at run time, so that one package serves hosts with
 * and without it; the CUDA runtime is linked into the plug-in and opens the driver itself. */
#include "comm/nccl/ncclplug.h"

#include "comm/nccl/joinparts.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <stdlib.h>
#include <string.h>

/* Every function of the library that is called; its type is the header's, so the compiler checks each call. */
#define FUNCTIONS(X)                                                                               \
    X(ncclGetVersion)                                                                              \
    X(ncclGetUniqueId)                                                                             \
    X(ncclCommInitRankConfig)                                                                      \
    X(ncclCommFinalize)                                                                            \
    X(ncclCommDestroy)                                                                             \
    X(ncclCommAbort)                                                                               \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclGetErrorString)                                                                          \
    X(ncclGetLastError)                                                                            \
    X(ncclAllGather)                                                                               \
    X(ncclAllReduce)                                                                               \
    X(ncclBroadcast)                                                                               \
    X(ncclSend)                                                                                    \
    X(ncclRecv)                                                                                    \
    X(ncclGroupStart)                                                                              \
    X(ncclGroupEnd)

struct td_ncclplug_lib {
    void *handle;
#define X(name) __typeof__(&name) name;
    FUNCTIONS(X)
#undef X
};

struct td_ncclplug_end {
    const struct td_ncclplug_lib *lib; /* borrowed until close */
    ncclComm_t comm;                   /* NULL after destroy and break_off */
    cudaEvent_t mark;
    int device;
    const char *failed_op; /* of the group under way; NULL: none */
    ncclResult_t failed;
};

_Static_assert(sizeof(ncclUniqueId) == TD_NCCLPLUG_ID_BYTES, "the id fits its room");
_Static_assert(sizeof(struct td_treestack) <= 4096, "a kernel's parameters are at most 4 KiB");

static enum td_status cuda_failed(cudaError_t code, const char *call, struct td_err *err)
{
    return td_err_set(err, code == cudaErrorMemoryAllocation ? TD_NO_MEMORY : TD_DEVICE,
                      "%s: CUDA error %d, %s", call, (int)code, cudaGetErrorString(code));
}

/* What must be given up for a result of NCCL. */
static enum td_status status_of(ncclResult_t code)
{
    switch (code) {
    case ncclRemoteError:
        return TD_PEER_LOST;
    case ncclSystemError:
        return TD_IO;
    case ncclInvalidArgument:
    case ncclInvalidUsage:
        return TD_INTERNAL;
    default:
        return TD_DEVICE;
    }
}

/* The library's last words say more than the code's name; they may be empty or stale, so both stand there. */
static enum td_status nccl_failed(const struct td_ncclplug_lib *lib, ncclComm_t comm,
                                  ncclResult_t code, const char *call, struct td_err *err)
{
    const char *last = lib->ncclGetLastError(comm);

    return td_err_set(err, status_of(code), "%s: NCCL error %d, %s%s%s", call, (int)code,
                      lib->ncclGetErrorString(code), last && *last ? "; last: " : "",
                      last && *last ? last : "");
}

/* ncclInProgress is no error: poll tells the end of it. */
static enum td_status check(const struct td_ncclplug_end *end, ncclResult_t code, const char *call,
                            struct td_err *err)
{
    if (code == ncclSuccess || code == ncclInProgress)
        return TD_OK;
    return nccl_failed(end->lib, end->comm, code, call, err);
}

/* ---- the library ---- */

static void unload(struct td_ncclplug_lib *lib)
{
    if (!lib)
        return;
    dlclose(lib->handle);
    free(lib);
}

static enum td_status load(const char *library, struct td_ncclplug_lib **out, int *version,
                           struct td_err *err)
{
    const char *path = library ? library : "libnccl.so.2";
    const char *missing = NULL;
    struct td_ncclplug_lib *lib = calloc(1, sizeof *lib);
    ncclResult_t code;
    enum td_status status;

    if (!lib)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the NCCL library");
    /* Its threads outlive its last communicator, so the library stays when it is closed. */
    lib->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!lib->handle) {
        status = td_err_set(err, TD_NOT_FOUND, "the NCCL library does not open: %s", dlerror());
        free(lib);
        return status;
    }
#define X(name)                                                                                    \
    do {                                                                                           \
        void *symbol = dlsym(lib->handle, #name);                                                  \
        memcpy(&lib->name, &symbol, sizeof symbol);                                                \
        if (!symbol && !missing)                                                                   \
            missing = #name;                                                                       \
    } while (0);
    FUNCTIONS(X)
#undef X
    if (missing) {
        status =
            td_err_set(err, TD_CORRUPT, "'%s' has no %s: expected an NCCL library", path, missing);
        unload(lib);
        return status;
    }
    code = lib->ncclGetVersion(version);
    if (code != ncclSuccess) {
        status = nccl_failed(lib, NULL, code, "ncclGetVersion", err);
        unload(lib);
        return status;
    }
    *out = lib;
    return TD_OK;
}

static enum td_status use_device(int device, struct td_err *err)
{
    int n = 0;
    cudaError_t code = cudaGetDeviceCount(&n);

    if (code == cudaErrorInsufficientDriver || code == cudaErrorNoDevice)
        return td_err_set(
            err, TD_DEVICE,
            "cudaGetDeviceCount: CUDA error %d, %s: expected an NVIDIA GPU and a driver "
            "that knows CUDA %d.%d",
            (int)code, cudaGetErrorString(code), CUDART_VERSION / 1000, CUDART_VERSION / 10 % 100);
    if (code != cudaSuccess)
        return cuda_failed(code, "cudaGetDeviceCount", err);
    if (device < 0 || device >= n)
        return td_err_set(err, TD_INVALID, "CUDA device %d, expected one below %d", device, n);
    code = cudaSetDevice(device);
    return code == cudaSuccess ? TD_OK : cuda_failed(code, "cudaSetDevice", err);
}

static enum td_status unique_id(struct td_ncclplug_lib *lib, uint8_t id[TD_NCCLPLUG_ID_BYTES],
                                struct td_err *err)
{
    ncclUniqueId made;
    ncclResult_t code = lib->ncclGetUniqueId(&made);

    if (code != ncclSuccess)
        return nccl_failed(lib, NULL, code, "ncclGetUniqueId", err);
    memcpy(id, &made, sizeof made);
    return TD_OK;
}

/* ---- one end ---- */

static void close_end(struct td_ncclplug_end *end)
{
    if (!end)
        return;
    cudaEventDestroy(end->mark);
    free(end);
}

static enum td_status open_end(struct td_ncclplug_lib *lib, uint32_t n_ranks, uint32_t rank,
                               const uint8_t id[TD_NCCLPLUG_ID_BYTES], struct td_ncclplug_end **out,
                               struct td_err *err)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    struct td_ncclplug_end *end = calloc(1, sizeof *end);
    ncclUniqueId known;
    cudaError_t cuda;
    enum td_status status;

    if (!end)
        return td_err_set(err, TD_NO_MEMORY, "no memory for an NCCL communicator");
    end->lib = lib;
    cuda = cudaGetDevice(&end->device);
    if (cuda == cudaSuccess)
        cuda = cudaEventCreateWithFlags(&end->mark, cudaEventDisableTiming);
    if (cuda != cudaSuccess) {
        free(end);
        return cuda_failed(cuda, "cudaEventCreate", err);
    }
    memcpy(&known, id, sizeof known);
    config.blocking = 0;
    status =
        check(end, lib->ncclCommInitRankConfig(&end->comm, (int)n_ranks, known, (int)rank, &config),
              "ncclCommInitRankConfig", err);
    if (status == TD_OK && !end->comm)
        status = td_err_set(err, TD_DEVICE, "ncclCommInitRankConfig gave no communicator");
    if (status != TD_OK) {
        if (end->comm)
            lib->ncclCommAbort(end->comm);
        close_end(end);
        return status;
    }
    *out = end;
    return TD_OK;
}

static enum td_status poll_end(struct td_ncclplug_end *end, bool *is_busy, struct td_err *err)
{
    ncclResult_t state = ncclSuccess;
    ncclResult_t code = end->lib->ncclCommGetAsyncError(end->comm, &state);

    if (code != ncclSuccess)
        return nccl_failed(end->lib, end->comm, code, "ncclCommGetAsyncError", err);
    *is_busy = state == ncclInProgress;
    return check(end, state, "NCCL communicator", err);
}

static enum td_status finalize(struct td_ncclplug_end *end, struct td_err *err)
{
    return check(end, end->lib->ncclCommFinalize(end->comm), "ncclCommFinalize", err);
}

static enum td_status destroy(struct td_ncclplug_end *end, struct td_err *err)
{
    ncclComm_t comm = end->comm;
    ncclResult_t code;

    end->comm = NULL;
    code = end->lib->ncclCommDestroy(comm);
    return check(end, code, "ncclCommDestroy", err);
}

static enum td_status break_off(struct td_ncclplug_end *end, struct td_err *err)
{
    ncclComm_t comm = end->comm;
    ncclResult_t code;

    end->comm = NULL;
    code = end->lib->ncclCommAbort(comm);
    return check(end, code, "ncclCommAbort", err);
}

/* ---- operations ---- */

static enum td_status all_gather(struct td_ncclplug_end *end, const void *send, void *recv,
                                 size_t bytes, void *stream, struct td_err *err)
{
    return check(
        end, end->lib->ncclAllGather(send, recv, bytes, ncclInt8, end->comm, (cudaStream_t)stream),
        "ncclAllGather", err);
}

static enum td_status bcast(struct td_ncclplug_end *end, uint32_t root, void *data, size_t bytes,
                            void *stream, struct td_err *err)
{
    return check(end,
                 end->lib->ncclBroadcast(data, data, bytes, ncclInt8, (int)root, end->comm,
                                         (cudaStream_t)stream),
                 "ncclBroadcast", err);
}

static enum td_status all_reduce(struct td_ncclplug_end *end, const void *in, void *out, size_t n,
                                 enum td_dtype type, void *stream, struct td_err *err)
{
    ncclDataType_t element;

    switch (type) {
    case TD_F32:
        element = ncclFloat32;
        break;
    case TD_F16:
        element = ncclFloat16;
        break;
    case TD_BF16:
        element = ncclBfloat16;
        break;
    default:
        return td_err_set(err, TD_UNSUPPORTED, "all-reduce of type %d, expected F32, F16 or BF16",
                          (int)type);
    }
    return check(
        end, end->lib->ncclAllReduce(in, out, n, element, ncclSum, end->comm, (cudaStream_t)stream),
        "ncclAllReduce", err);
}

static enum td_status group_begin(struct td_ncclplug_end *end, struct td_err *err)
{
    end->failed_op = NULL;
    return check(end, end->lib->ncclGroupStart(), "ncclGroupStart", err);
}

static void note(struct td_ncclplug_end *end, ncclResult_t code, const char *call)
{
    if (code != ncclSuccess && code != ncclInProgress && !end->failed_op) {
        end->failed_op = call;
        end->failed = code;
    }
}

static void send_to(struct td_ncclplug_end *end, uint32_t to, const void *data, size_t bytes,
                    void *stream)
{
    note(end, end->lib->ncclSend(data, bytes, ncclInt8, (int)to, end->comm, (cudaStream_t)stream),
         "ncclSend");
}

static void recv_from(struct td_ncclplug_end *end, uint32_t from, void *data, size_t bytes,
                      void *stream)
{
    note(end, end->lib->ncclRecv(data, bytes, ncclInt8, (int)from, end->comm, (cudaStream_t)stream),
         "ncclRecv");
}

static enum td_status group_end(struct td_ncclplug_end *end, struct td_err *err)
{
    note(end, end->lib->ncclGroupEnd(), "ncclGroupEnd");
    return end->failed_op ? check(end, end->failed, end->failed_op, err) : TD_OK;
}

static enum td_status join_parts(const struct td_treestack *join, float *out, size_t n_floats,
                                 void *stream, struct td_err *err)
{
    cudaError_t code = (cudaError_t)td_joinparts_enqueue(join, out, n_floats, stream);

    return code == cudaSuccess ? TD_OK : cuda_failed(code, "the kernel that joins parts", err);
}

/* ---- memory that ranks of a host read of each other ---- */

_Static_assert(sizeof(cudaIpcMemHandle_t) == TD_NCCLPLUG_NAME_BYTES, "the name fits its room");

static void unshare(struct td_ncclplug_memory *m)
{
    if (m->device)
        cudaFree(m->device);
    if (m->is_ended)
        cudaFreeHost(m->is_ended);
    *m = (struct td_ncclplug_memory){0};
}

static enum td_status share(size_t bytes, struct td_ncclplug_memory *m, struct td_err *err)
{
    const char *call = "cudaMalloc";
    void *word = NULL;
    cudaIpcMemHandle_t name;
    cudaError_t code;

    *m = (struct td_ncclplug_memory){0};
    code = cudaMalloc(&m->device, bytes);
    if (code == cudaSuccess)
        code = cudaMemset(m->device, 0, bytes);
    if (code == cudaSuccess) {
        call = "cudaMallocHost";
        code = cudaMallocHost(&word, sizeof *m->is_ended);
        m->is_ended = word;
    }
    if (code == cudaSuccess) {
        *m->is_ended = 0;
        call = "cudaIpcGetMemHandle";
        code = cudaIpcGetMemHandle(&name, m->device);
    }
    if (code == cudaSuccess) { /* the memory is clear before its name is known */
        call = "cudaDeviceSynchronize";
        code = cudaDeviceSynchronize();
    }
    if (code != cudaSuccess) {
        (void)cudaGetLastError();
        unshare(m);
        return cuda_failed(code, call, err);
    }
    memcpy(m->name, &name, sizeof m->name);
    return TD_OK;
}

static enum td_status attach(const uint8_t name[TD_NCCLPLUG_NAME_BYTES], void **device,
                             struct td_err *err)
{
    cudaIpcMemHandle_t handle;
    cudaError_t code;

    memcpy(&handle, name, sizeof handle);
    *device = NULL;
    code = cudaIpcOpenMemHandle(device, handle, cudaIpcMemLazyEnablePeerAccess);
    if (code == cudaSuccess)
        return TD_OK;
    (void)cudaGetLastError();
    *device = NULL;
    return cuda_failed(code, "cudaIpcOpenMemHandle", err);
}

static void detach(void *device)
{
    cudaDeviceSynchronize();
    cudaIpcCloseMemHandle(device);
}

static enum td_status peer_sum(const struct td_peersum *sum, void *stream, struct td_err *err)
{
    cudaError_t code = (cudaError_t)td_peersum_enqueue(sum, stream);

    return code == cudaSuccess ? TD_OK
                               : cuda_failed(code, "the kernel that sums parts of peers", err);
}

/* ---- streams ---- */

static enum td_status is_capturing(void *stream, bool *yes, struct td_err *err)
{
    enum cudaStreamCaptureStatus state;
    cudaError_t code = cudaStreamIsCapturing((cudaStream_t)stream, &state);

    if (code != cudaSuccess)
        return cuda_failed(code, "cudaStreamIsCapturing", err);
    *yes = state != cudaStreamCaptureStatusNone;
    return TD_OK;
}

static enum td_status mark(struct td_ncclplug_end *end, void *stream, struct td_err *err)
{
    cudaError_t code = cudaEventRecord(end->mark, (cudaStream_t)stream);

    return code == cudaSuccess ? TD_OK : cuda_failed(code, "cudaEventRecord", err);
}

static enum td_status is_reached(struct td_ncclplug_end *end, bool *yes, struct td_err *err)
{
    cudaError_t code = cudaEventQuery(end->mark);

    if (code != cudaSuccess && code != cudaErrorNotReady)
        return cuda_failed(code, "cudaEventQuery", err);
    if (code == cudaErrorNotReady)
        (void)cudaGetLastError(); /* else the next one who asks for the last error finds this one */
    *yes = code == cudaSuccess;
    return TD_OK;
}

extern const struct td_ncclplug td_ncclplug;
__attribute__((visibility("default"))) const struct td_ncclplug td_ncclplug = {
    .abi = TD_NCCLPLUG_ABI,
    .header_version = NCCL_VERSION_CODE,
    .cuda_version = CUDART_VERSION,
    .load = load,
    .unload = unload,
    .use_device = use_device,
    .unique_id = unique_id,
    .open = open_end,
    .poll = poll_end,
    .finalize = finalize,
    .destroy = destroy,
    .break_off = break_off,
    .close = close_end,
    .all_gather = all_gather,
    .bcast = bcast,
    .all_reduce = all_reduce,
    .group_begin = group_begin,
    .send = send_to,
    .recv = recv_from,
    .group_end = group_end,
    .join = join_parts,
    .share = share,
    .unshare = unshare,
    .attach = attach,
    .detach = detach,
    .peer_sum = peer_sum,
    .is_capturing = is_capturing,
    .mark = mark,
    .is_reached = is_reached,
};
