/* NCCL for the simulated device, between processes of one host: messages through a file in /dev/shm, done in their streams' turn. Two
 * ranks on one GPU are refused, unless NCCL_HOSTID makes them two hosts, as NCCL does. */
#include <cuda_runtime.h>

#include "simnccl.h"

#include "kernels/base/half.h"

#include <atomic>
#include <fcntl.h>
#include <memory>
#include <new>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace
{

enum { MAX_RANKS = 64, RING_BYTES = 64 << 10 };

/* Bytes from one rank to one other. */
struct channel {
    std::atomic<uint64_t> written, read;
    uint8_t ring[RING_BYTES];
};

/* What the ranks of a communicator share; the file's length is that of all channels. */
struct meeting {
    std::atomic<uint32_t> n_joined;
    uint64_t gpu[MAX_RANKS];  /* and its host */
    struct channel channel[]; /* [n_ranks x n_ranks] by sender, then receiver */
};

struct message {
    bool is_send;
    int peer;
    uint8_t *data;
    uint64_t bytes, done;
    bool has_header; /* its length stands before it, so that calls which do not fit are found */
};

struct operation {
    ncclComm_t comm;
    cudaStream_t stream;
    std::vector<message> messages;
};

thread_local int group_depth;
thread_local std::vector<operation> group;

} // namespace

struct ncclComm {
    std::shared_ptr<struct meeting> at;
    std::shared_ptr<std::atomic<bool>> is_aborted;
    std::string path;
    uint32_t rank, n_ranks;
    bool has_met;
};

namespace
{

uint64_t gpu_of_this(void)
{
    const char *name = getenv("NCCL_HOSTID");
    int device = 0;
    uint64_t hash = 1469598103934665603u;

    for (name = name ? name : ""; *name; name++)
        hash = (hash ^ (uint8_t)*name) * 1099511628211u;
    cudaGetDevice(&device);
    return ((hash ^ (uint64_t)device) * 1099511628211u) | 1;
}

std::string path_of(const ncclUniqueId &id)
{
    return std::string("/dev/shm/tensord-simnccl-") + id.internal;
}

/* As much of n bytes as goes now. */
uint64_t pass(struct channel &c, bool is_send, uint8_t *data, uint64_t n)
{
    const uint64_t written = c.written.load(), read = c.read.load();
    const uint64_t room = is_send ? RING_BYTES - (written - read) : written - read;

    n = n < room ? n : room;
    for (uint64_t i = 0; i < n; i++) {
        uint8_t &cell = c.ring[((is_send ? written : read) + i) % RING_BYTES];

        if (is_send)
            cell = data[i];
        else
            data[i] = cell;
    }
    (is_send ? c.written : c.read) += n;
    return n;
}

bool advance(struct channel &c, message &m)
{
    uint64_t bytes = m.bytes;

    if (!m.has_header) {
        if (m.is_send ? RING_BYTES - (c.written - c.read) < 8 : c.written - c.read < 8)
            return false;
        pass(c, m.is_send, (uint8_t *)&bytes, 8);
        m.has_header = true;
        if (bytes != m.bytes) {
            fprintf(stderr, "simnccl: %llu bytes from rank %d, expected %llu\n",
                    (unsigned long long)bytes, m.peer, (unsigned long long)m.bytes);
            abort();
        }
    }
    m.done += pass(c, m.is_send, m.data + m.done, m.bytes - m.done);
    return m.done == m.bytes;
}

/* All at the same time, until all are done or the communicator is given up. Messages of one pair and direction keep their order. */
cudaError_t exchange(struct meeting &at, const std::atomic<bool> &is_aborted, uint32_t rank,
                     uint32_t n_ranks, std::vector<message> all)
{
    while (!all.empty() && !is_aborted) {
        std::vector<message> left;
        bool is_held[2][MAX_RANKS] = {};

        for (message &m : all) {
            const uint32_t from = m.is_send ? rank : m.peer, to = m.is_send ? m.peer : rank;

            if (!is_held[m.is_send][m.peer] && advance(at.channel[from * n_ranks + to], m))
                continue;
            is_held[m.is_send][m.peer] = true;
            left.push_back(m);
        }
        if (left.size() == all.size())
            sched_yield();
        all = std::move(left);
    }
    return cudaSuccess;
}

ncclResult_t begin(const operation &o)
{
    const auto at = o.comm->at;
    const auto is_aborted = o.comm->is_aborted;
    const uint32_t rank = o.comm->rank, n_ranks = o.comm->n_ranks;
    const std::vector<message> messages = o.messages;

    gpusim_enqueue(o.stream, [=] { return exchange(*at, *is_aborted, rank, n_ranks, messages); });
    return ncclSuccess;
}

/* Operations of one group on one stream go together. */
ncclResult_t add(ncclComm_t comm, cudaStream_t stream, const std::vector<message> &messages)
{
    for (operation &o : group)
        if (o.comm == comm && o.stream == stream) {
            o.messages.insert(o.messages.end(), messages.begin(), messages.end());
            return ncclSuccess;
        }
    group.push_back({comm, stream, messages});
    return group_depth ? ncclSuccess : ncclGroupEnd();
}

message to_rank(int peer, const void *data, size_t bytes)
{
    return {true, peer, (uint8_t *)const_cast<void *>(data), bytes, 0, false};
}

message from_rank(int peer, void *data, size_t bytes)
{
    return {false, peer, (uint8_t *)data, bytes, 0, false};
}

float number(const uint8_t *at, ncclDataType_t type)
{
    uint32_t word = 0;

    memcpy(&word, at, type == ncclFloat32 ? 4 : 2);
    return type == ncclFloat32   ? td_half_bits_f32(word)
           : type == ncclFloat16 ? td_f16_to_f32((uint16_t)word)
                                 : td_bf16_to_f32((uint16_t)word);
}

void put_number(uint8_t *at, ncclDataType_t type, float f)
{
    const uint32_t word = type == ncclFloat32   ? td_half_f32_bits(f)
                          : type == ncclFloat16 ? td_f32_to_f16(f)
                                                : td_f32_to_bf16(f);

    memcpy(at, &word, type == ncclFloat32 ? 4 : 2);
}

} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    uint8_t random[16];
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

    memset(id, 0, sizeof *id);
    if (fd < 0 || read(fd, random, sizeof random) != (ssize_t)sizeof random)
        return ncclSystemError;
    close(fd);
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(id->internal + 2 * i, 3, "%02x", random[i]);
    fd = open(path_of(*id).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return ncclSystemError;
    close(fd);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    const size_t bytes =
        sizeof(struct meeting) + (size_t)n_ranks * n_ranks * sizeof(struct channel);
    const int fd = open(path_of(id).c_str(), O_RDWR | O_CLOEXEC);
    void *at;

    (void)config;
    if (fd < 0 || n_ranks > MAX_RANKS || ftruncate(fd, (off_t)bytes) != 0)
        return ncclSystemError;
    at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED)
        return ncclSystemError;
    *comm = new ncclComm{{(struct meeting *)at, [=](struct meeting *m) { munmap(m, bytes); }},
                         std::make_shared<std::atomic<bool>>(false),
                         path_of(id),
                         (uint32_t)rank,
                         (uint32_t)n_ranks,
                         false};
    (*comm)->at->gpu[rank] = gpu_of_this();
    (*comm)->at->n_joined++;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    const struct meeting &at = *comm->at;

    *state = at.n_joined == comm->n_ranks ? ncclSuccess : ncclInProgress;
    if (comm->has_met || *state != ncclSuccess)
        return ncclSuccess;
    comm->has_met = true;
    unlink(comm->path.c_str());
    for (uint32_t i = 0; i < comm->n_ranks; i++)
        for (uint32_t k = 0; k < i; k++)
            if (at.gpu[i] == at.gpu[k])
                *state = ncclInvalidUsage; /* two ranks on one GPU */
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    (void)comm;
    return ncclSuccess;
}

/* As NCCL, waits for every graph that holds an operation of the communicator, but not for ever. */
ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    for (int waited_ms = 0; comm->is_aborted.use_count() > 1; waited_ms++) {
        if (waited_ms == 10000) {
            fprintf(stderr, "simnccl: a graph outlives its communicator\n");
            abort();
        }
        usleep(1000);
    }
    unlink(comm->path.c_str());
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    *comm->is_aborted = true;
    return ncclCommDestroy(comm);
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclInvalidUsage ? "invalid usage" : "unhandled system error";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

ncclResult_t ncclGroupStart(void)
{
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (group_depth && --group_depth)
        return ncclSuccess;
    for (const operation &o : group)
        begin(o);
    group.clear();
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return type == ncclInt8 ? add(comm, stream, {to_rank(peer, data, count)}) : ncclInvalidUsage;
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return type == ncclInt8 ? add(comm, stream, {from_rank(peer, data, count)}) : ncclInvalidUsage;
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream)
{
    std::vector<message> all;

    if (type != ncclInt8)
        return ncclInvalidUsage;
    if ((uint32_t)root == comm->rank)
        for (uint32_t i = 0; i < comm->n_ranks; i++)
            all.push_back(to_rank((int)i, send, count));
    all.push_back(from_rank(root, recv, count));
    return add(comm, stream, all);
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    std::vector<message> all;

    if (type != ncclInt8)
        return ncclInvalidUsage;
    for (uint32_t i = 0; i < comm->n_ranks; i++) {
        all.push_back(to_rank((int)i, send, count));
        all.push_back(from_rank((int)i, (uint8_t *)recv + i * count, count));
    }
    return add(comm, stream, all);
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    const size_t unit = type == ncclFloat32 ? 4 : 2, bytes = count * unit;
    const uint32_t n_ranks = comm->n_ranks;
    auto all = std::make_shared<std::vector<uint8_t>>(bytes * n_ranks);
    std::vector<message> messages;

    if (op != ncclSum || group_depth)
        return ncclInvalidUsage;
    for (uint32_t i = 0; i < n_ranks; i++) {
        messages.push_back(to_rank((int)i, send, bytes));
        messages.push_back(from_rank((int)i, all->data() + i * bytes, bytes));
    }
    add(comm, stream, messages);
    gpusim_enqueue(stream, [=] {
        for (size_t k = 0; k < count; k++) {
            float sum = 0.0f;

            for (uint32_t i = 0; i < n_ranks; i++)
                sum += number(all->data() + i * bytes + k * unit, type);
            put_number((uint8_t *)recv + k * unit, type, sum);
        }
        return cudaSuccess;
    });
    return ncclSuccess;
}

} // extern "C"
