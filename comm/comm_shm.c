/* Ranks that are threads of one process over the shared memory of a host: what the processes of a host do, without MPI. */
#include "comm/comm_impl.h"
#include "comm/shm.h"
#include "comm/wait.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Of all ends; the last one that closes frees it. */
struct host {
    atomic_uint n_open;
    size_t segment_bytes;
    uint32_t n;
    char *memory; /* [n x segment_bytes] */
};

struct shm_world {
    struct td_comm_world base;
    struct host *host;
};

static enum td_status exchange(struct td_comm *comm, uint32_t tag, struct td_err *err)
{
    struct td_wait w;
    enum td_status status = TD_OK;

    td_wait_begin(&w, comm, true);
    while (status == TD_OK) {
        uint32_t n_left, awaited = 0;

        status = td_shm_progress(comm->world->shm, comm, tag, &n_left, &awaited, err);
        if (status != TD_OK || n_left == 0)
            break;
        status = td_wait_pause(&w, awaited, err);
    }
    td_wait_end(&w);
    return status;
}

static void wake(struct td_comm_world *world)
{
    td_shm_ring_bell(world->shm, world->rank);
}

static void release(struct host *host)
{
    if (atomic_fetch_sub(&host->n_open, 1) > 1)
        return;
    munmap(host->memory, host->n * host->segment_bytes);
    free(host);
}

static void close_world(struct td_comm_world *world)
{
    struct shm_world *w = (struct shm_world *)world;

    td_shm_leave(world->shm);
    td_shm_close(world->shm);
    release(w->host);
    td_comm_world_deinit(world);
    free(w);
}

static const struct td_comm_transport shm_transport = {
    .name = "shm", .exchange = exchange, .wake = wake, .close = close_world};

static enum td_status open_end(struct host *host, uint32_t rank, const uint32_t *hosts,
                               struct td_comm **comm, struct td_err *err)
{
    struct shm_world *w = calloc(1, sizeof *w);
    void *segments[TD_COMM_MAX_RANKS];
    enum td_status status;

    if (!w)
        return td_err_set(err, TD_NO_MEMORY, "no memory for rank %u", rank);
    status = td_comm_world_init(&w->base, &shm_transport, rank, host->n, err);
    if (status != TD_OK)
        goto fail;
    for (uint32_t r = 0; r < host->n; r++) {
        segments[r] = host->memory + r * host->segment_bytes;
        w->base.local[r] = (int32_t)r;
        w->base.hosts[r] = hosts ? hosts[r] : 0;
    }
    status = td_shm_open(host->n, rank, segments, &w->base.shm, err);
    if (status != TD_OK)
        goto fail_world;
    w->base.shares = true;
    w->host = host;
    status = td_comm_group_open(&w->base, NULL, host->n, rank, 0, 0, comm, err);
    if (status != TD_OK)
        goto fail_shm;
    atomic_fetch_add(&host->n_open, 1);
    return TD_OK;

fail_shm:
    td_shm_close(w->base.shm);
fail_world:
    td_comm_world_deinit(&w->base);
fail:
    free(w);
    return status;
}

enum td_status td_comm_shm_open(uint32_t n_ranks, const uint32_t *hosts, struct td_comm **comms,
                                struct td_err *err)
{
    struct host *host;
    enum td_status status = TD_OK;
    uint32_t n = 0;

    if (n_ranks < 1 || n_ranks > TD_COMM_MAX_RANKS)
        return td_err_set(err, TD_INVALID, "a group of %u ranks, expected 1 to %d", n_ranks,
                          TD_COMM_MAX_RANKS);
    host = calloc(1, sizeof *host);
    if (!host)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks", n_ranks);
    host->n = n_ranks;
    host->segment_bytes = td_shm_segment_bytes(n_ranks);
    host->memory = mmap(NULL, n_ranks * host->segment_bytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (host->memory == MAP_FAILED) {
        status = td_err_set(err, TD_NO_MEMORY, "no %zu bytes of shared memory for %u ranks",
                            n_ranks * host->segment_bytes, n_ranks);
        free(host);
        return status;
    }
    atomic_store(&host->n_open, 1); /* this function's hold */
    for (; n < n_ranks && status == TD_OK; n++)
        status = open_end(host, n, hosts, &comms[n], err);
    if (status != TD_OK) {
        for (n--; n > 0;)
            td_comm_close(comms[--n]);
    }
    release(host);
    return status;
}
