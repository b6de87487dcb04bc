#include "comm/comm_mpi.h"

#include "comm/comm_impl.h"
#include "kernels/base/clock.h"

#include <assert.h>
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Waits spin this long before they yield, where every rank of the host has a core. */
enum { SPIN_NS = 50 * 1000, PIECE_BYTES = 1 << 30 };

struct mpi_world {
    struct td_comm_world base;
    MPI_Comm comm; /* a copy of MPI_COMM_WORLD that returns errors; groups differ by tag only */
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
    bool ours;      /* we initialised, so the last world finalises */
    bool abandoned; /* a world failed: MPI is not finalised and not opened again */
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
        for (size_t p = 0; p < n_pieces(w, comm->xfers[i].bytes); p++, at++) {
            int done = 0;

            if (w->requests[at] != MPI_REQUEST_NULL &&
                MPI_Request_get_status(w->requests[at], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS &&
                !done)
                return comm->xfers[i].peer;
        }
    }
    return comm->xfers[0].peer;
}

static enum td_status wait_all(struct mpi_world *w, struct td_comm *comm, size_t n,
                               struct td_err *err)
{
    uint64_t spin_until_ns = td_clock_now_ns() + comm->spin_ns;
    bool spinning = comm->spin_ns > 0;
    int done = 0;

    for (;;) {
        uint64_t now_ns;
        int rc = MPI_Testall((int)n, w->requests, &done, w->statuses);

        if (rc == MPI_ERR_IN_STATUS) {
            for (size_t i = 0; i < n; i++) {
                int code = w->statuses[i].MPI_ERROR;

                if (code != MPI_SUCCESS && code != MPI_ERR_PENDING)
                    rc = code;
            }
        }
        if (rc != MPI_SUCCESS)
            return mpi_error(comm, rc, err);
        if (done)
            return TD_OK;
        if (atomic_load_explicit(&w->base.failed, memory_order_relaxed) != TD_OK)
            return td_comm_report_failed(comm, err);
        now_ns = td_clock_now_ns();
        if (now_ns >= comm->deadline_ns)
            return td_comm_report_timeout(comm, first_awaited(w, comm), err);
        spinning = spinning && now_ns < spin_until_ns;
        if (!spinning)
            sched_yield();
    }
}

/* A longer message than expected is MPI's own error; a shorter one is found here. */
static enum td_status check_lengths(const struct mpi_world *w, struct td_comm *comm,
                                    struct td_err *err)
{
    size_t at = 0;

    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        const struct td_comm_xfer *x = &comm->xfers[i];

        for (size_t p = 0; p < n_pieces(w, x->bytes); p++, at++) {
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
        total += n_pieces(w, comm->xfers[i].bytes);
    status = reserve(w, total, err);
    if (status != TD_OK)
        return status;
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        int rc = start(w, &comm->xfers[i], (int)tag, &n);

        if (rc != MPI_SUCCESS)
            return mpi_error(comm, rc, err);
    }
    status = wait_all(w, comm, n, err);
    if (status == TD_OK)
        status = check_lengths(w, comm, err);
    return status;
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
        free(w->requests);
        free(w->statuses);
        free(w);
    }
}

static const struct td_comm_transport mpi_transport = {
    .name = "mpi", .exchange = exchange, .close = close_world};

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
    if (provided < MPI_THREAD_SERIALIZED)
        return td_err_set(err, TD_UNSUPPORTED,
                          "MPI grants thread level %d, expected at least %d (serialized)", provided,
                          MPI_THREAD_SERIALIZED);
    return TD_OK;
}

/* Says which ranks share this host: the lowest world rank on it names it. Also whether they have a core each. */
static int find_host(struct mpi_world *w)
{
    MPI_Comm host;
    int rank = (int)w->base.rank;
    int lowest = rank;
    int n_local = 1;
    cpu_set_t cores;
    int rc = MPI_Comm_split_type(w->comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host);

    if (rc != MPI_SUCCESS)
        return rc;
    MPI_Comm_size(host, &n_local);
    rc = MPI_Bcast(&lowest, 1, MPI_INT, 0, host);
    MPI_Comm_free(&host);
    w->base.host = (uint32_t)lowest;
    /* A bound rank has its own cores; an unbound one shares all of them with its neighbours. */
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);

        if (n_local <= CPU_COUNT(&cores) || (CPU_COUNT(&cores) < online && n_local <= online))
            w->base.spin_ns = SPIN_NS;
    }
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
        goto fail_locked;
    rc = MPI_Comm_dup(MPI_COMM_WORLD, &w->comm);
    if (rc == MPI_SUCCESS)
        rc = MPI_Comm_set_errhandler(w->comm, MPI_ERRORS_RETURN);
    if (rc != MPI_SUCCESS) {
        status = td_err_set(err, TD_DEVICE, "MPI_Comm_dup failed with code %d", rc);
        goto fail_locked;
    }
    MPI_Comm_rank(w->comm, &rank);
    MPI_Comm_size(w->comm, &size);
    MPI_Comm_get_attr(w->comm, MPI_TAG_UB, &tag_limit, &found);
    td_comm_world_init(&w->base, &mpi_transport, (uint32_t)rank, (uint32_t)size);
    w->base.n_contexts = ((found ? (uint32_t)*tag_limit : 32767u) + 1u) >> TD_COMM_SLOT_BITS;
    w->piece_bytes = PIECE_BYTES;
    rc = find_host(w);
    if (rc != MPI_SUCCESS) {
        status = td_err_set(err, TD_DEVICE, "MPI_Comm_split_type failed with code %d", rc);
        goto fail_locked;
    }
    status = td_comm_group_open(&w->base, NULL, (uint32_t)size, (uint32_t)rank, 0, comm, err);
    if (status != TD_OK)
        goto fail_locked;
    process.n_worlds++;
    pthread_mutex_unlock(&process.lock);
    status = reserve(w, (*comm)->cap_xfers, err);
    if (status != TD_OK)
        td_comm_close(*comm);
    return status;

fail_locked:
    pthread_mutex_unlock(&process.lock);
    free(w);
    return status;
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
