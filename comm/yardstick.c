#include "comm/yardstick.h"

#include "kernels/base/clock.h"

#include <assert.h>
#include <mpi.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_BYTES = 4096, LOOKS_PER_CLOCK = 4096 };

/* One rank's segment of the shared window: this page, then two buffers. */
struct flag {
    _Atomic uint64_t count; /* exchanges for which its floats lie ready */
};

/* Of two ranks on one host. */
struct bare {
    MPI_Comm host;  /* MPI_COMM_NULL: not asked for */
    MPI_Win window; /* MPI_WIN_NULL: none */
    struct flag *flag[2];
    float *buffer[2][2]; /* [rank][turn] */
    uint64_t count;      /* exchanges of this rank */
    char absent[96];     /* why there is none; empty: there is one */
};

struct td_yardstick {
    MPI_Comm comm; /* a copy of MPI_COMM_WORLD that returns errors */
    uint32_t rank, size;
    struct bare bare;
};

static enum td_status check(const struct td_yardstick *y, const char *call, int code,
                            struct td_err *err)
{
    char text[MPI_MAX_ERROR_STRING];
    int length;

    if (code == MPI_SUCCESS)
        return TD_OK;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS)
        text[0] = '\0';
    return td_err_set(err, TD_PEER_LOST, "rank %u of %u: %s: MPI error %d: %s", y->rank, y->size,
                      call, code, text);
}

/* ---- the bare exchange ---- */

static int map_segments(struct bare *b, uint32_t rank, size_t buffer_bytes)
{
    size_t bytes = PAGE_BYTES + 2 * buffer_bytes;
    MPI_Info info;
    void *own = NULL;
    int rc = MPI_Info_create(&info);

    if (rc != MPI_SUCCESS)
        return rc;
    MPI_Info_set(info, "alloc_shared_noncontig", "true"); /* each begins on a page of its own */
    rc = MPI_Win_allocate_shared((MPI_Aint)bytes, 1, info, b->host, &own, &b->window);
    MPI_Info_free(&info);
    for (int r = 0; rc == MPI_SUCCESS && r < 2; r++) {
        char *segment;
        MPI_Aint size;
        int unit;

        rc = MPI_Win_shared_query(b->window, r, &size, &unit, &segment);
        if (rc != MPI_SUCCESS)
            break;
        b->flag[r] = (struct flag *)segment;
        b->buffer[r][0] = (float *)(segment + PAGE_BYTES);
        b->buffer[r][1] = (float *)(segment + PAGE_BYTES + buffer_bytes);
    }
    if (rc == MPI_SUCCESS) /* every page is there before the first exchange */
        memset((void *)b->flag[rank], 0, bytes);
    return rc;
}

/* Ranks agree on whether there is one: each says what it found. */
static enum td_status open_bare(struct td_yardstick *y, size_t most_bytes, struct td_err *err)
{
    struct bare *b = &y->bare;
    size_t buffer_bytes = (most_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    int n_here = 0, n_mapped = 0, mapped;
    int rc;

    if (y->size != 2) {
        snprintf(b->absent, sizeof b->absent, "%u ranks, it is one of 2", y->size);
        return TD_OK;
    }
    rc = MPI_Comm_split_type(y->comm, MPI_COMM_TYPE_SHARED, (int)y->rank, MPI_INFO_NULL, &b->host);
    if (rc == MPI_SUCCESS)
        rc = MPI_Comm_size(b->host, &n_here);
    if (rc != MPI_SUCCESS)
        return check(y, "finding the ranks of this host", rc, err);
    if (n_here != 2) {
        snprintf(b->absent, sizeof b->absent, "the two ranks are on two hosts");
        return TD_OK;
    }
    MPI_Comm_set_errhandler(b->host, MPI_ERRORS_RETURN);
    mapped = map_segments(b, y->rank, buffer_bytes) == MPI_SUCCESS;
    rc = MPI_Allreduce(&mapped, &n_mapped, 1, MPI_INT, MPI_SUM, y->comm);
    if (rc == MPI_SUCCESS && n_mapped != 2)
        snprintf(b->absent, sizeof b->absent, "no shared memory of %zu bytes per rank",
                 PAGE_BYTES + 2 * buffer_bytes);
    return check(y, "sharing memory", rc, err);
}

/* Looks at the other's flag; now and then at the clock, and then lets others have the core. */
static enum td_status await(const struct td_yardstick *y, uint64_t limit_ns, struct td_err *err)
{
    const struct bare *b = &y->bare;
    const _Atomic uint64_t *count = &b->flag[1 - y->rank]->count;
    uint64_t end_ns = 0;

    for (uint32_t looks = 1; atomic_load_explicit(count, memory_order_acquire) < b->count;
         looks++) {
        uint64_t now_ns;

        if (looks % LOOKS_PER_CLOCK)
            continue;
        now_ns = td_clock_now_ns();
        if (end_ns == 0)
            end_ns = now_ns + limit_ns;
        if (now_ns >= end_ns)
            return td_err_set(err, TD_PEER_TIMED_OUT,
                              "rank %u of 2: bare exchange: rank %u did not answer within %.3f s",
                              y->rank, 1 - y->rank, (double)limit_ns * 1e-9);
        sched_yield();
    }
    return TD_OK;
}

const char *td_yardstick_no_bare(const struct td_yardstick *y)
{
    return y->bare.absent[0] ? y->bare.absent : NULL;
}

/* A rank that has set its flag for exchange n has read what the other gave in n - 1, so in n + 1 the buffer of n - 1 is
 * free. */
enum td_status td_yardstick_bare_sum(struct td_yardstick *y, const float *in, size_t n_floats,
                                     float *out, uint64_t limit_ns, struct td_err *err)
{
    struct bare *b = &y->bare;
    size_t turn = ++b->count % 2;
    const float *first, *second;
    enum td_status status;

    assert(!b->absent[0]);
    memcpy(b->buffer[y->rank][turn], in, n_floats * sizeof *in);
    atomic_store_explicit(&b->flag[y->rank]->count, b->count, memory_order_release);
    status = await(y, limit_ns, err);
    if (status != TD_OK)
        return status;
    first = y->rank == 0 ? in : b->buffer[0][turn];
    second = y->rank == 1 ? in : b->buffer[1][turn];
    for (size_t i = 0; i < n_floats; i++)
        out[i] = first[i] + second[i];
    return TD_OK;
}

/* ---- MPI ---- */

enum td_status td_yardstick_open(const struct td_comm *world, size_t most_bytes,
                                 struct td_yardstick **yardstick, struct td_err *err)
{
    struct td_yardstick *y;
    int up = 0, size = 0, rc;
    enum td_status status;

    MPI_Initialized(&up);
    if (!up)
        return td_err_set(err, TD_UNSUPPORTED, "MPI is not up, so nothing is measured beside it");
    assert(most_bytes <= INT32_MAX);
    y = calloc(1, sizeof *y);
    if (!y)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the yardsticks");
    y->rank = td_comm_rank(world);
    y->size = td_comm_size(world);
    y->bare.host = MPI_COMM_NULL;
    y->bare.window = MPI_WIN_NULL;
    y->comm = MPI_COMM_NULL;
    rc = MPI_Comm_dup(MPI_COMM_WORLD, &y->comm);
    if (rc == MPI_SUCCESS)
        rc = MPI_Comm_set_errhandler(y->comm, MPI_ERRORS_RETURN);
    if (rc == MPI_SUCCESS)
        rc = MPI_Comm_size(y->comm, &size);
    status = check(y, "a copy of the world", rc, err);
    if (status == TD_OK && (uint32_t)size != y->size)
        status = td_err_set(err, TD_INVALID, "a group of %u ranks in a job of %d, expected all",
                            y->size, size);
    if (status == TD_OK)
        status = open_bare(y, most_bytes, err);
    if (status != TD_OK) {
        free(y); /* what MPI gave is left: it is not called after a failure */
        return status;
    }
    *yardstick = y;
    return TD_OK;
}

void td_yardstick_close(struct td_yardstick *y, bool failed)
{
    if (!y)
        return;
    if (!failed && y->bare.window != MPI_WIN_NULL)
        MPI_Win_free(&y->bare.window);
    if (!failed && y->bare.host != MPI_COMM_NULL)
        MPI_Comm_free(&y->bare.host);
    if (!failed)
        MPI_Comm_free(&y->comm);
    free(y);
}

enum td_status td_yardstick_sum(struct td_yardstick *y, const float *in, size_t n_floats,
                                float *out, struct td_err *err)
{
    return check(y, "MPI_Allreduce",
                 MPI_Allreduce(in, out, (int)n_floats, MPI_FLOAT, MPI_SUM, y->comm), err);
}

enum td_status td_yardstick_bcast(struct td_yardstick *y, uint32_t root, void *data, size_t bytes,
                                  struct td_err *err)
{
    return check(y, "MPI_Bcast", MPI_Bcast(data, (int)bytes, MPI_BYTE, (int)root, y->comm), err);
}

enum td_status td_yardstick_all_gather(struct td_yardstick *y, const void *send, size_t bytes,
                                       void *recv, struct td_err *err)
{
    return check(y, "MPI_Allgather",
                 MPI_Allgather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, y->comm),
                 err);
}

enum td_status td_yardstick_sendrecv(struct td_yardstick *y, uint32_t to, const void *send,
                                     uint32_t from, void *recv, size_t bytes, struct td_err *err)
{
    return check(y, "MPI_Sendrecv",
                 MPI_Sendrecv(send, (int)bytes, MPI_BYTE, (int)to, 0, recv, (int)bytes, MPI_BYTE,
                              (int)from, 0, y->comm, MPI_STATUS_IGNORE),
                 err);
}

enum td_status td_yardstick_barrier(struct td_yardstick *y, struct td_err *err)
{
    return check(y, "MPI_Barrier", MPI_Barrier(y->comm), err);
}
