#include "comm/comm_mpi.h"

#include "comm/comm_impl.h"
#include "comm/segment.h"
#include "comm/shm.h"
#include "comm/wait.h"

#include <assert.h>
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Waits spin this long before they yield, where every rank of the host has a core. */
enum { SPIN_NS = 50 * 1000, PIECE_BYTES = 1 << 30 };

struct mpi_world {
    struct td_comm_world base;
    MPI_Comm comm; /* a copy of MPI_COMM_WORLD that returns errors; groups differ by tag only */
    uint32_t n_segments; /* ranks of this host that share memory; 0: none */
    void **segments;     /* [n_segments] of each, mapped */
    size_t piece_bytes;
    size_t cap_requests;
    MPI_Request *requests; /* [cap_requests] */
    MPI_Status *statuses;  /* [cap_requests] */
    struct mpi_world *next_lost;
};

/* MPI can be initialised once in the life of a process; this says where that life stands. */
static struct {
    pthread_mutex_t lock;
    uint32_t n_worlds;
    bool ours;               /* we initialised, so the last world finalises */
    bool abandoned;          /* a world failed: MPI is not finalised and not opened again */
    bool messages_only;      /* ranks of one host use no shared memory of ours */
    uint32_t ranks_per_host; /* for tests; 0: as they are */
    struct mpi_world
        *lost; /* failed worlds, kept because their requests may still complete into them */
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
} process = {.lock = PTHREAD_MUTEX_INITIALIZER};

static enum td_status mpi_error(struct td_comm *comm, int code, struct td_err *err)
{
    char text[MPI_MAX_ERROR_STRING];
    int class = MPI_ERR_OTHER;
    int length;

    MPI_Error_class(code, &class);
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS)
        text[0] = '\0';
    return td_err_set(err, class == MPI_ERR_TRUNCATE ? TD_PEER_PROTOCOL : TD_PEER_LOST,
                      "rank %u of %u: %s: MPI error %d: %s", comm->rank, comm->size, comm->op, code,
                      text);
}

static enum td_status reserve(struct mpi_world *w, size_t n, struct td_err *err)
{
    MPI_Request *requests;
    MPI_Status *statuses;

    if (n <= w->cap_requests)
        return TD_OK;
    requests = realloc(w->requests, n * sizeof *requests);
    if (requests)
        w->requests = requests;
    statuses = realloc(w->statuses, n * sizeof *statuses);
    if (statuses)
        w->statuses = statuses;
    if (!requests || !statuses)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu MPI requests", n);
    w->cap_requests = n;
    return TD_OK;
}

static size_t n_pieces(const struct mpi_world *w, size_t bytes)
{
    return bytes ? (bytes - 1) / w->piece_bytes + 1 : 1;
}

static size_t piece_size(const struct mpi_world *w, size_t bytes, size_t piece)
{
    size_t at = piece * w->piece_bytes;

    return bytes - at < w->piece_bytes ? bytes - at : w->piece_bytes;
}

static int start(struct mpi_world *w, const struct td_comm_xfer *x, int tag, size_t *n)
{
    int rc = MPI_SUCCESS;

    for (size_t p = 0; p < n_pieces(w, x->bytes) && rc == MPI_SUCCESS; p++) {
        int count = (int)piece_size(w, x->bytes, p);
        size_t at = p * w->piece_bytes;

        if (x->is_send)
            rc = MPI_Isend(x->bytes ? (const char *)x->src + at : NULL, count, MPI_BYTE,
                           (int)x->peer, tag, w->comm, &w->requests[*n]);
        else
            rc = MPI_Irecv(x->bytes ? (char *)x->dst + at : NULL, count, MPI_BYTE, (int)x->peer,
                           tag, w->comm, &w->requests[*n]);
        *n += rc == MPI_SUCCESS;
    }
    return rc;
}

/* The peer of the first message that is not done, asked for when the time is up. */
static uint32_t first_awaited(const struct mpi_world *w, const struct td_comm *comm)
{
    size_t at = 0;

    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        const struct td_comm_xfer *x = &comm->xfers[i];

        for (size_t p = 0; x->local < 0 && p < n_pieces(w, x->bytes); p++, at++) {
            int done = 0;

            if (w->requests[at] != MPI_REQUEST_NULL &&
                MPI_Request_get_status(w->requests[at], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS &&
                !done)
                return x->peer;
        }
    }
    return comm->xfers[0].peer;
}

/* One look at the requests; *done when none is left. */
static enum td_status test_all(struct mpi_world *w, struct td_comm *comm, size_t n, int *done,
                               struct td_err *err)
{
    int rc = MPI_Testall((int)n, w->requests, done, w->statuses);

    if (rc == MPI_ERR_IN_STATUS) {
        for (size_t i = 0; i < n; i++) {
            int code = w->statuses[i].MPI_ERROR;

            if (code != MPI_SUCCESS && code != MPI_ERR_PENDING)
                rc = code;
        }
    }
    return rc == MPI_SUCCESS ? TD_OK : mpi_error(comm, rc, err);
}

/* Waits for `n` requests and for what goes through shared memory. */
static enum td_status wait_all(struct mpi_world *w, struct td_comm *comm, uint32_t tag, size_t n,
                               struct td_err *err)
{
    struct td_wait wait;
    int done = n == 0;
    enum td_status status = TD_OK;

    td_wait_begin(&wait, comm, n == 0);
    while (status == TD_OK) {
        uint32_t n_left = 0, awaited = 0;

        if (w->base.shm)
            status = td_shm_progress(w->base.shm, comm, tag, &n_left, &awaited, err);
        if (status == TD_OK && !done)
            status = test_all(w, comm, n, &done, err);
        if (status != TD_OK || (done && n_left == 0))
            break;
        if (n_left == 0) /* costs a look at every request, so only when the wait is long */
            awaited = wait.began_ns ? first_awaited(w, comm) : comm->xfers[0].peer;
        status = td_wait_pause(&wait, awaited, err);
    }
    td_wait_end(&wait);
    return status;
}

/* A longer message than expected is MPI's own error; a shorter one is found here. */
static enum td_status check_lengths(const struct mpi_world *w, struct td_comm *comm,
                                    struct td_err *err)
{
    size_t at = 0;

    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        const struct td_comm_xfer *x = &comm->xfers[i];

        for (size_t p = 0; x->local < 0 && p < n_pieces(w, x->bytes); p++, at++) {
            int count = 0;

            if (x->is_send)
                continue;
            MPI_Get_count(&w->statuses[at], MPI_BYTE, &count);
            if ((size_t)count != piece_size(w, x->bytes, p))
                return td_comm_report_length(comm, x->peer, (size_t)count,
                                             piece_size(w, x->bytes, p), err);
        }
    }
    return TD_OK;
}

/* After a failure the requests are left as they are: MPI is not called again, and the process is on its way out. */
static enum td_status exchange(struct td_comm *comm, uint32_t tag, struct td_err *err)
{
    struct mpi_world *w = (struct mpi_world *)comm->world;
    size_t total = 0;
    size_t n = 0;
    enum td_status status;

    for (uint32_t i = 0; i < comm->n_xfers; i++)
        total += comm->xfers[i].local < 0 ? n_pieces(w, comm->xfers[i].bytes) : 0;
    status = reserve(w, total, err);
    if (status != TD_OK)
        return status;
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        int rc = comm->xfers[i].local < 0 ? start(w, &comm->xfers[i], (int)tag, &n) : MPI_SUCCESS;

        if (rc != MPI_SUCCESS)
            return mpi_error(comm, rc, err);
    }
    status = wait_all(w, comm, tag, n, err);
    if (status == TD_OK)
        status = check_lengths(w, comm, err);
    return status;
}

static void wake(struct td_comm_world *world)
{
    if (world->shm)
        td_shm_ring_bell(world->shm, (uint32_t)world->local[world->rank]);
}

/* No memory is shared with other ranks any more. */
static void unmap_segments(struct mpi_world *w)
{
    td_shm_close(w->base.shm);
    w->base.shm = NULL;
    for (uint32_t i = 0; i < w->n_segments; i++) {
        if (w->segments[i])
            munmap(w->segments[i], td_shm_segment_bytes(w->n_segments));
    }
    free(w->segments);
    w->segments = NULL;
    w->n_segments = 0;
    for (uint32_t r = 0; r < w->base.size; r++)
        w->base.local[r] = -1;
}

static void close_world(struct td_comm_world *world)
{
    struct mpi_world *w = (struct mpi_world *)world;
    bool failed = atomic_load(&world->failed) != TD_OK;

    pthread_mutex_lock(&process.lock);
    process.abandoned = process.abandoned || failed;
    process.n_worlds--;
    if (process.n_worlds == 0 && process.ours && !process.abandoned)
        MPI_Finalize();
    if (failed) {
        w->next_lost = process.lost;
        process.lost = w;
    }
    pthread_mutex_unlock(&process.lock);
    if (!failed) {
        unmap_segments(w);
        td_comm_world_deinit(world);
        free(w->requests);
        free(w->statuses);
        free(w);
    }
}

static const struct td_comm_transport mpi_transport = {
    .name = "mpi", .exchange = exchange, .wake = wake, .close = close_world};

/* Open MPI's choices that make its start fast (it probes no fabric that is not used here) and let ranks that share cores make
 * way for each other. What the user or the launcher has set stays; other MPIs do not read these. */
static void choose_components(void)
{
    static const char *const choices[][2] = {{"OMPI_MCA_pml", "ob1"},
                                             {"OMPI_MCA_btl", "self,vader,tcp"},
                                             {"OMPI_MCA_osc", "^ucx"},
                                             {"OMPI_MCA_mpi_yield_when_idle", "1"}};

    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++)
        setenv(choices[i][0], choices[i][1], 0);
}

/* The connection of a rank that has died is closed, and to write to it would end this process without a word: MPI leaves
 * SIGPIPE as it finds it. A handler of the program's own stays. */
static void ignore_broken_pipes(void)
{
    struct sigaction now;

    if (sigaction(SIGPIPE, NULL, &now) == 0 && !(now.sa_flags & SA_SIGINFO) &&
        now.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);
}

static enum td_status initialise(struct td_err *err)
{
    int flag = 0;
    int provided = MPI_THREAD_SINGLE;
    int rc;

    if (process.abandoned)
        return td_err_set(err, TD_UNSUPPORTED,
                          "MPI was given up in this process after a failure; start a new one");
    MPI_Finalized(&flag);
    if (flag)
        return td_err_set(err, TD_UNSUPPORTED, "MPI was already finalised in this process");
    MPI_Initialized(&flag);
    if (flag) {
        MPI_Query_thread(&provided);
    } else {
        choose_components();
        rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided);
        if (rc != MPI_SUCCESS)
            return td_err_set(err, TD_DEVICE, "MPI_Init_thread failed with code %d", rc);
        process.ours = true;
    }
    ignore_broken_pipes();
    if (provided < MPI_THREAD_SERIALIZED)
        return td_err_set(err, TD_UNSUPPORTED,
                          "MPI grants thread level %d, expected at least %d (serialized)", provided,
                          MPI_THREAD_SERIALIZED);
    return TD_OK;
}

/* Finds the ranks that share this host, and whether they have a core each. */
static int find_host(struct mpi_world *w)
{
    int rank = (int)w->base.rank;
    int n_local = 1;
    uint32_t name = w->base.rank; /* of a host: its lowest world rank */
    MPI_Comm host;
    cpu_set_t cores;
    int rc;

    if (process.ranks_per_host)
        rc = MPI_Comm_split(w->comm, rank / (int)process.ranks_per_host, rank, &host);
    else
        rc = MPI_Comm_split_type(w->comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host);
    if (rc != MPI_SUCCESS)
        return rc;
    MPI_Comm_set_errhandler(host, MPI_ERRORS_RETURN);
    MPI_Comm_size(host, &n_local);
    rc = MPI_Bcast(&name, 1, MPI_UINT32_T, 0, host);
    if (rc == MPI_SUCCESS)
        rc = MPI_Allgather(&name, 1, MPI_UINT32_T, w->base.hosts, 1, MPI_UINT32_T, w->comm);
    MPI_Comm_free(&host);
    /* A bound rank has its own cores; an unbound one shares all of them with its neighbours. */
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);

        if (n_local <= CPU_COUNT(&cores) || (CPU_COUNT(&cores) < online && n_local <= online))
            w->base.spin_ns = SPIN_NS;
    }
    return rc;
}

/* Maps the segments of this host's ranks; all [size of the world]. */
static bool map_segments(struct mpi_world *w, const struct td_segment *all)
{
    for (uint32_t r = 0; r < w->base.size; r++) {
        int32_t i = w->base.local[r];

        if (i < 0)
            continue;
        w->segments[i] = td_segment_map(&all[r], td_shm_segment_bytes(w->n_segments));
        if (!w->segments[i])
            return false;
    }
    return td_shm_open(w->n_segments, (uint32_t)w->base.local[w->base.rank], w->segments,
                       &w->base.shm, NULL) == TD_OK;
}

/* Counts this host's ranks and makes this one's segment. */
static bool open_segment(struct mpi_world *w, struct td_segment *own)
{
    struct td_comm_world *world = &w->base;
    uint32_t n = 0;

    for (uint32_t r = 0; r < world->size; r++)
        n += world->hosts[r] == world->hosts[world->rank];
    if (n < 2)
        return true;
    w->segments = calloc(n, sizeof *w->segments);
    if (!w->segments)
        return false;
    for (uint32_t r = 0; r < world->size; r++) {
        if (world->hosts[r] == world->hosts[world->rank])
            world->local[r] = (int32_t)w->n_segments++;
    }
    return td_segment_open(own, td_shm_segment_bytes(n));
}

/* Shares memory with the other ranks of this host, unless some rank of the job cannot: then all send messages. */
static int share_memory(struct mpi_world *w)
{
    struct td_segment own = {.fd = -1}, all[TD_COMM_MAX_RANKS];
    bool well[TD_COMM_MAX_RANKS], ok = open_segment(w, &own);
    int rc = MPI_Allgather(&own, sizeof own, MPI_BYTE, all, sizeof own, MPI_BYTE, w->comm);

    if (rc == MPI_SUCCESS && ok && w->n_segments) {
        ok = map_segments(w, all);
        if (ok)
            td_shm_say_pid(w->base.shm);
    }
    if (rc == MPI_SUCCESS)
        rc = MPI_Allgather(&ok, sizeof ok, MPI_BYTE, well, sizeof ok, MPI_BYTE, w->comm);
    td_segment_close(&own);
    for (uint32_t r = 0; r < w->base.size && rc == MPI_SUCCESS; r++)
        ok = ok && well[r];
    if (!ok)
        unmap_segments(w);
    else if (w->base.shm)
        td_shm_watch(w->base.shm);
    w->base.shares = ok;
    return rc;
}

enum td_status td_comm_mpi_open(struct td_comm **comm, struct td_err *err)
{
    struct mpi_world *w = calloc(1, sizeof *w);
    int rank = 0;
    int size = 1;
    int found = 0;
    int *tag_limit = NULL;
    int rc;
    enum td_status status;

    if (!w)
        return td_err_set(err, TD_NO_MEMORY, "no memory for an MPI group");
    pthread_mutex_lock(&process.lock);
    status = initialise(err);
    if (status != TD_OK)
        goto fail;
    rc = MPI_Comm_dup(MPI_COMM_WORLD, &w->comm);
    if (rc == MPI_SUCCESS)
        rc = MPI_Comm_set_errhandler(w->comm, MPI_ERRORS_RETURN);
    if (rc != MPI_SUCCESS) {
        status = td_err_set(err, TD_DEVICE, "MPI_Comm_dup failed with code %d", rc);
        goto fail;
    }
    MPI_Comm_rank(w->comm, &rank);
    MPI_Comm_size(w->comm, &size);
    MPI_Comm_get_attr(w->comm, MPI_TAG_UB, &tag_limit, &found);
    if (size > TD_COMM_MAX_RANKS) {
        status = td_err_set(err, TD_TOO_LARGE, "a job of %d ranks; at most %d are supported", size,
                            TD_COMM_MAX_RANKS);
        goto fail;
    }
    status = td_comm_world_init(&w->base, &mpi_transport, (uint32_t)rank, (uint32_t)size, err);
    if (status != TD_OK)
        goto fail;
    w->base.n_contexts = ((found ? (uint32_t)*tag_limit : 32767u) + 1u) >> TD_COMM_SLOT_BITS;
    w->piece_bytes = PIECE_BYTES;
    rc = find_host(w);
    if (rc == MPI_SUCCESS && !process.messages_only)
        rc = share_memory(w);
    if (rc != MPI_SUCCESS) {
        status =
            td_err_set(err, TD_DEVICE, "finding the ranks of this host failed with code %d", rc);
        goto fail_world;
    }
    status = td_comm_group_open(&w->base, NULL, (uint32_t)size, (uint32_t)rank, 0, 0, comm, err);
    if (status != TD_OK)
        goto fail_world;
    process.n_worlds++;
    pthread_mutex_unlock(&process.lock);
    status = reserve(w, (*comm)->cap_xfers, err);
    if (status != TD_OK)
        td_comm_close(*comm);
    return status;

fail_world:
    unmap_segments(w);
    td_comm_world_deinit(&w->base);
fail:
    pthread_mutex_unlock(&process.lock);
    free(w);
    return status;
}

void td_comm_mpi_configure(bool messages_only, uint32_t ranks_per_host)
{
    process.messages_only = messages_only;
    process.ranks_per_host = ranks_per_host;
}

void td_comm_mpi_set_piece(struct td_comm *comm, size_t piece_bytes)
{
    assert(comm->world->transport == &mpi_transport && piece_bytes > 0 &&
           piece_bytes <= PIECE_BYTES);
    ((struct mpi_world *)comm->world)->piece_bytes = piece_bytes;
}

const char *td_comm_mpi_version(void)
{
    pthread_mutex_lock(&process.lock);
    if (!process.version[0]) {
        int length = 0;

        if (MPI_Get_library_version(process.version, &length) != MPI_SUCCESS)
            memcpy(process.version, "unknown", sizeof "unknown");
        process.version[strcspn(process.version, "\n")] = '\0';
    }
    pthread_mutex_unlock(&process.lock);
    return process.version;
}

/* A decimal number in the environment. */
static bool number_in_env(const char *name, uint32_t *out)
{
    const char *text = getenv(name);
    unsigned long value;
    char *end;

    if (!text || *text < '0' || *text > '9')
        return false;
    value = strtoul(text, &end, 10);
    if (*end || value > UINT32_MAX)
        return false;
    *out = (uint32_t)value;
    return true;
}

/* A launcher's names; the first row whose rank is present counts. */
static const struct {
    const char *rank;
    const char *size;
    const char *local_rank;
    const char *local_size;
    const char *also; /* must be present too, or NULL */
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", NULL},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL},
    {"PMIX_RANK", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", NULL},
    /* A batch script has a SLURM_PROCID as well, but is no step. */
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_ID"},
};

bool td_comm_mpi_place(struct td_comm_mpi_place *place)
{
    for (size_t i = 0; i < sizeof launchers / sizeof launchers[0]; i++) {
        struct td_comm_mpi_place p = {0};

        if (!number_in_env(launchers[i].rank, &p.rank))
            continue;
        if (launchers[i].also && !getenv(launchers[i].also))
            continue;
        number_in_env(launchers[i].size, &p.size);
        number_in_env(launchers[i].local_rank, &p.local_rank);
        number_in_env(launchers[i].local_size, &p.local_size);
        *place = p;
        return true;
    }
    return false;
}

bool td_comm_mpi_launched(void)
{
    struct td_comm_mpi_place place;

    return td_comm_mpi_place(&place);
}
