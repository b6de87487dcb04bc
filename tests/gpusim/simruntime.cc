/* The runtime of cuda_runtime_api.h: one device, whose streams are threads; what is enqueued is done later, in order. */
#include <cuda_runtime.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <fcntl.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

typedef std::function<cudaError_t()> job;
typedef std::vector<job> jobs;

struct gpusim_graph {
    jobs calls;
};

struct gpusim_event {
    std::shared_ptr<std::atomic<bool>> reached;
};

struct gpusim_stream {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<job> queue;
    bool is_busy, ends;
    cudaError_t failed;    /* of what was enqueued, since somebody waited */
    gpusim_graph *capture; /* NULL: none */
    std::thread thread;
};

namespace
{

enum { N_SMS = 4, DEFAULT_DEVICES = 1, SHAREABLE_BYTES = 1 << 20, PAGE_BYTES = 4096 };

/* Never freed: streams may outlive the end of main. */
struct device {
    std::mutex mutex;
    std::map<uintptr_t, size_t> memory; /* of the device, and what it reads of the host's */
    std::set<uintptr_t> hosts;          /* which of it is the host's */
    std::set<gpusim_stream *> streams;
    std::map<uintptr_t, int> shared; /* of memory with a name: its file */
} &device = *new struct device;

thread_local int current_device;
thread_local uint32_t n_captures; /* of this thread, which may not do everything meanwhile */

void work(gpusim_stream *s)
{
    std::unique_lock<std::mutex> lock(s->mutex);

    for (;;) {
        cudaError_t e;

        s->changed.wait(lock, [=] { return s->ends || !s->queue.empty(); });
        if (s->queue.empty())
            return;
        const job next = s->queue.front();

        s->queue.pop_front();
        s->is_busy = true;
        lock.unlock();
        e = next();
        lock.lock();
        s->is_busy = false;
        if (s->failed == cudaSuccess)
            s->failed = e;
        s->changed.notify_all();
    }
}

cudaError_t drain(gpusim_stream *s)
{
    std::unique_lock<std::mutex> lock(s->mutex);
    cudaError_t e;

    s->changed.wait(lock, [=] { return !s->is_busy && s->queue.empty(); });
    e = s->failed;
    s->failed = cudaSuccess;
    return e;
}

/* Whether copies write it in their turn; else it is written when the call returns. All is read in its turn: CUDA promises nothing else. */
bool is_known(const void *p)
{
    const std::lock_guard<std::mutex> lock(device.mutex);
    auto next = device.memory.upper_bound((uintptr_t)p);

    return next != device.memory.begin() && (uintptr_t)p < (--next)->first + next->second;
}

size_t pages_of(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* What the name of shared memory holds. */
struct shared_name {
    pid_t pid;
    int file;
    size_t bytes;
};

void copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
               size_t height)
{
    for (size_t y = 0; y < height; y++)
        memcpy((uint8_t *)to + y * to_pitch, (const uint8_t *)from + y * from_pitch, width);
}

} // namespace

void gpusim_enqueue(cudaStream_t stream, const job &call)
{
    if (stream->capture) {
        stream->capture->calls.push_back(call);
        return;
    }
    const std::lock_guard<std::mutex> lock(stream->mutex);

    stream->queue.push_back(call);
    stream->changed.notify_all();
}

extern "C" {

/* ---- the device ---- */

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaSuccess                 ? "no error"
           : e == cudaErrorMemoryAllocation ? "out of memory"
           : e == cudaErrorInvalidValue     ? "invalid argument"
           : e == cudaErrorStreamCaptureUnsupported
               ? "operation not permitted when stream is capturing"
               : "unspecified launch failure";
}

const char *cudaGetErrorName(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation           ? "cudaErrorMemoryAllocation"
           : e == cudaErrorInvalidValue             ? "cudaErrorInvalidValue"
           : e == cudaErrorStreamCaptureUnsupported ? "cudaErrorStreamCaptureUnsupported"
                                                    : "cudaErrorLaunchFailure";
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    return cudaDriverGetVersion(version);
}

/* As many as GPUSIM_DEVICES says. A process uses one of them. */
cudaError_t cudaGetDeviceCount(int *n)
{
    const char *text = getenv("GPUSIM_DEVICES");

    *n = text ? atoi(text) : DEFAULT_DEVICES;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    int n = 0;

    cudaGetDeviceCount(&n);
    if (device < 0 || device >= n)
        return cudaErrorInvalidValue;
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    (void)device;
    *prop = {};
    snprintf(prop->name, sizeof prop->name, "simulated");
    prop->major = 9;
    prop->multiProcessorCount = N_SMS;
    prop->sharedMemPerBlockOptin = GPUSIM_SHARED_BYTES;
    prop->reservedSharedMemPerBlock = 1024;
    prop->sharedMemPerMultiprocessor = GPUSIM_SHARED_BYTES + 1024;
    return cudaMemGetInfo(&prop->totalGlobalMem, &prop->totalGlobalMem);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p)
{
    const bool known = is_known(p);
    const std::lock_guard<std::mutex> lock(device.mutex);

    attributes->type = !known ? cudaMemoryTypeUnregistered
                       : device.hosts.count((--device.memory.upper_bound((uintptr_t)p))->first)
                           ? cudaMemoryTypeHost
                           : cudaMemoryTypeDevice;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel)
{
    *attributes = {};
    attributes->ptxVersion = 90;
    return kernel ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaDeviceGetPCIBusId(char *bus_id, int bytes, int device)
{
    snprintf(bus_id, (size_t)bytes, "0000:%02X:00.0", (unsigned)device + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    std::set<gpusim_stream *> all;
    cudaError_t e = cudaSuccess;

    if (n_captures)
        return cudaErrorStreamCaptureUnsupported;
    {
        const std::lock_guard<std::mutex> lock(device.mutex);

        all = device.streams;
    }
    for (gpusim_stream *s : all) {
        const cudaError_t now = drain(s);

        e = e == cudaSuccess ? now : e;
    }
    return e;
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    gpusim_stream *s = new gpusim_stream();
    const std::lock_guard<std::mutex> lock(device.mutex);

    (void)flags;
    s->thread = std::thread(work, s);
    device.streams.insert(s);
    *stream = s;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    {
        const std::lock_guard<std::mutex> lock(device.mutex);

        device.streams.erase(stream);
    }
    {
        const std::lock_guard<std::mutex> lock(stream->mutex);

        stream->ends = true;
        stream->changed.notify_all();
    }
    stream->thread.join();
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return stream->capture ? cudaErrorStreamCaptureUnsupported : drain(stream);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    *event = new gpusim_event();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    auto reached = std::make_shared<std::atomic<bool>>(false);

    event->reached = reached;
    gpusim_enqueue(stream, [=] {
        *reached = true;
        return cudaSuccess;
    });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return !event->reached || *event->reached ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    while (cudaEventQuery(event) == cudaErrorNotReady)
        std::this_thread::yield();
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    (void)mode;
    if (stream->capture)
        return cudaErrorInvalidValue;
    stream->capture = new gpusim_graph;
    n_captures++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = stream->capture;
    if (!*graph)
        return cudaErrorInvalidValue;
    stream->capture = NULL;
    n_captures--;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    *exec = new gpusim_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    auto calls = std::make_shared<jobs>(exec->calls);

    gpusim_enqueue(stream, [=] {
        for (const job &call : *calls) {
            const cudaError_t e = call();

            if (e != cudaSuccess)
                return e;
        }
        return cudaSuccess;
    });
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    *free_bytes = *total_bytes = (size_t)2 << 30;
    return cudaSuccess;
}

/* Filled with what nobody should rely on. */
cudaError_t cudaMalloc(void **p, size_t bytes)
{
    if (n_captures)
        return cudaErrorStreamCaptureUnsupported;
    const size_t to = bytes < SHAREABLE_BYTES ? 256 : PAGE_BYTES;

    *p = aligned_alloc(to, (bytes + to - 1) / to * to);
    if (!*p)
        return cudaErrorMemoryAllocation;
    memset(*p, 0x5a, bytes);
    const std::lock_guard<std::mutex> lock(device.mutex);

    device.memory[(uintptr_t)*p] = bytes;
    return cudaSuccess;
}

/* After what is under way, which may still use it. */
cudaError_t cudaFree(void *p)
{
    const cudaError_t e = p ? cudaDeviceSynchronize() : cudaSuccess;
    const std::lock_guard<std::mutex> lock(device.mutex);

    const auto shared = device.shared.find((uintptr_t)p);

    if (shared != device.shared.end()) { /* the allocator gets back what it gave */
        mmap(p, pages_of(device.memory[(uintptr_t)p]), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        close(shared->second);
        device.shared.erase(shared);
    }
    device.memory.erase((uintptr_t)p);
    device.hosts.erase((uintptr_t)p);
    free(p);
    return e;
}

/* Its pages become those of a file that has no other name. */
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *p)
{
    const std::lock_guard<std::mutex> lock(device.mutex);
    const auto memory = device.memory.find((uintptr_t)p);
    struct shared_name name = {};

    if (memory == device.memory.end() || memory->second < SHAREABLE_BYTES ||
        device.shared.count((uintptr_t)p))
        return cudaErrorInvalidValue;
    name = {getpid(), memfd_create("gpusim", MFD_CLOEXEC), pages_of(memory->second)};
    if (name.file < 0 || ftruncate(name.file, (off_t)name.bytes) != 0 ||
        pwrite(name.file, p, memory->second, 0) != (ssize_t)memory->second ||
        mmap(p, name.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, name.file, 0) != p)
        return cudaErrorMemoryAllocation;
    device.shared[(uintptr_t)p] = name.file;
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &name, sizeof name);
    return cudaSuccess;
}

/* Not where GPUSIM_NO_PEERS says that devices do not reach each other. */
cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t handle, unsigned flags)
{
    struct shared_name name;
    char path[64];
    int file;

    memcpy(&name, &handle, sizeof name);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)name.pid, name.file);
    file = flags == cudaIpcMemLazyEnablePeerAccess && !getenv("GPUSIM_NO_PEERS")
               ? open(path, O_RDWR | O_CLOEXEC)
               : -1;
    if (file < 0)
        return cudaErrorInvalidValue;
    *p = mmap(NULL, name.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (*p == MAP_FAILED)
        return cudaErrorMemoryAllocation;
    const std::lock_guard<std::mutex> lock(device.mutex);

    device.memory[(uintptr_t)*p] = name.bytes;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *p)
{
    const std::lock_guard<std::mutex> lock(device.mutex);
    const auto memory = device.memory.find((uintptr_t)p);

    if (memory == device.memory.end())
        return cudaErrorInvalidValue;
    munmap(p, memory->second);
    device.memory.erase(memory);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    const cudaError_t e = cudaMalloc(p, bytes);
    const std::lock_guard<std::mutex> lock(device.mutex);

    if (e == cudaSuccess)
        device.hosts.insert((uintptr_t)*p);
    return e;
}

cudaError_t cudaFreeHost(void *p)
{
    return p ? cudaFree(p) : cudaErrorInvalidValue;
}

cudaError_t cudaMemset(void *p, int value, size_t bytes)
{
    memset(p, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    if (stream->capture)
        return cudaErrorStreamCaptureUnsupported;
    gpusim_enqueue(stream, [=] { return cudaMemset(p, value, bytes); });
    return cudaSuccess;
}

/* As CUDA's default stream does it: at once, and without regard to streams that do not block. */
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    return cudaMemcpy2D(to, bytes, from, bytes, bytes, 1, kind);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, enum cudaMemcpyKind kind)
{
    (void)kind;
    if (n_captures)
        return cudaErrorStreamCaptureUnsupported;
    copy_rows(to, to_pitch, from, from_pitch, width, height);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    (void)kind;
    if (stream->capture)
        return cudaErrorStreamCaptureUnsupported;
    gpusim_enqueue(stream, [=] {
        copy_rows(to, to_pitch, from, from_pitch, width, height);
        return cudaSuccess;
    });
    if (is_known(to))
        return cudaSuccess;
    std::unique_lock<std::mutex> lock(stream->mutex);

    stream->changed.wait(lock, [=] { return !stream->is_busy && stream->queue.empty(); });
    return cudaSuccess;
}

} // extern "C"
