#include "comm/nccl.h"

#include "comm/comm_impl.h"
#include "comm/nccl_impl.h"
#include "kernels/base/clock.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Replaying a graph with operations between hosts was seen to deadlock with 2.28.9, and no more with this one. */
enum { CAPTURES_ACROSS_HOSTS = 23007 };

enum { TIMES = 6 /* that td_nccl_time tries: the first two of what is recorded are slower */ };

#define DEFAULT_LIMIT_NS (60ull * 1000 * 1000 * 1000)

/* ---- waiting ---- */

/* Between two looks at something: at once, then yielding the core, then asleep. */
struct pace {
    struct td_nccl *n;
    uint64_t began_ns;
    uint64_t limit_ns;
};

enum { SPIN_NS = 20 * 1000, YIELD_NS = 2 * 1000 * 1000, NAP_NS = 50 * 1000 };

static struct pace pace_begin(struct td_nccl *n, uint64_t limit_ns)
{
    return (struct pace){n, td_clock_now_ns(), limit_ns};
}

/* False when the time is up. A group that was given up takes this end with it. */
static bool pace_goes_on(const struct pace *p)
{
    uint64_t waited_ns = td_clock_now_ns() - p->began_ns;

    if (atomic_load(&p->n->comm->world->failed) != TD_OK)
        td_nccl_abort(p->n);

    if (waited_ns >= p->limit_ns)
        return false;
    if (waited_ns >= YIELD_NS)
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    else if (waited_ns >= SPIN_NS)
        sched_yield();
    return true;
}

/* ---- how an end ends ---- */

static enum td_status report_aborted(const struct td_nccl *n, const char *op, struct td_err *err)
{
    return td_err_set(err, TD_PEER_LOST, "rank %u of %u: %s: the communicator was aborted", n->rank,
                      n->n_ranks, op);
}

static enum td_status report_timeout(const struct td_nccl *n, const char *op, uint64_t limit_ns,
                                     struct td_err *err)
{
    return td_err_set(err, TD_PEER_TIMED_OUT, "rank %u of %u: %s: not done within %.3f s", n->rank,
                      n->n_ranks, op, (double)limit_ns * 1e-9);
}

enum td_status td_nccl_check_usable(struct td_nccl *n, const char *op, struct td_err *err)
{
    enum td_status status = (enum td_status)atomic_load(&n->failed);

    if (atomic_load(&n->is_aborted))
        return report_aborted(n, op, err);
    if (status != TD_OK)
        return td_err_set(err, status, "rank %u of %u: %s: the communicator was given up (%s)",
                          n->rank, n->n_ranks, op, td_status_name(status));
    return TD_OK;
}

enum td_status td_nccl_give_up(struct td_nccl *n, const char *op, enum td_status status,
                               struct td_err *err)
{
    if (atomic_load(&n->is_aborted))
        return report_aborted(n, op, err);
    atomic_store(&n->failed, (int)status);
    return status;
}

/* Before each call on the communicator; then pthread_mutex_unlock. TD_PEER_LOST without the lock when there is none. */
static enum td_status enter(struct td_nccl *n, const char *op, struct td_err *err)
{
    pthread_mutex_lock(&n->lock);
    if (!n->is_given_back)
        return TD_OK;
    pthread_mutex_unlock(&n->lock);
    return report_aborted(n, op, err);
}

enum td_status td_nccl_with_context(struct td_nccl *n, const char *op, enum td_status status,
                                    struct td_err *err)
{
    if (status != TD_OK)
        td_err_context(err, "rank %u of %u: %s", n->rank, n->n_ranks, op);
    return status;
}

static enum td_status look(struct td_nccl *n, const char *op, bool *is_busy, struct td_err *err)
{
    enum td_status status = enter(n, op, err);

    if (status != TD_OK)
        return status;
    status = n->plug->poll(n->end, is_busy, err);
    pthread_mutex_unlock(&n->lock);
    return td_nccl_with_context(n, op, status, err);
}

/* Waits until what was begun is done by the host: a communicator that does not block hands it to a thread of its own. */
static enum td_status settle(struct td_nccl *n, const char *op, uint64_t limit_ns,
                             struct td_err *err)
{
    struct pace pace = pace_begin(n, limit_ns);

    for (;;) {
        bool is_busy = false;
        enum td_status status = look(n, op, &is_busy, err);

        if (status == TD_OK && atomic_load(&n->is_aborted))
            status = report_aborted(n, op, err);
        if (status != TD_OK || !is_busy)
            return status;
        if (!pace_goes_on(&pace))
            return report_timeout(n, op, limit_ns, err);
    }
}

void td_nccl_abort(struct td_nccl *n)
{
    bool is_first;

    atomic_store(&n->is_aborted, true);
    td_ncclpeers_end(n->peers);
    pthread_mutex_lock(&n->lock);
    is_first = !n->is_given_back;
    n->is_given_back = true;
    pthread_mutex_unlock(&n->lock);
    if (!is_first)
        return;
    if (n->drop_graphs)
        n->drop_graphs(n->user);
    (void)n->plug->break_off(n->end, NULL); /* nothing is left to be done about its error */
}

enum td_status td_nccl_poll(struct td_nccl *n, struct td_err *err)
{
    bool is_busy;
    enum td_status status = td_nccl_check_usable(n, "poll", err);

    if (status != TD_OK)
        return status;
    status = look(n, "poll", &is_busy, err);
    return status == TD_OK ? TD_OK : td_nccl_give_up(n, "poll", status, err);
}

static enum td_status await_mark(struct td_nccl *n, uint64_t limit_ns, struct td_err *err)
{
    struct pace pace = pace_begin(n, limit_ns);

    for (;;) {
        bool is_reached = false, is_busy;
        enum td_status status = n->plug->is_reached(n->end, &is_reached, err);

        if (status == TD_OK && atomic_load(&n->is_aborted))
            status = report_aborted(n, "wait", err);
        if (status == TD_OK && !is_reached)
            status = look(n, "wait", &is_busy, err);
        if (status != TD_OK || is_reached)
            return status;
        if (!pace_goes_on(&pace))
            return report_timeout(n, "wait", limit_ns, err);
    }
}

enum td_status td_nccl_wait(struct td_nccl *n, void *stream, uint64_t limit_ns, struct td_err *err)
{
    enum td_status status = td_nccl_check_usable(n, "wait", err);

    if (status != TD_OK)
        return status;
    status = td_nccl_with_context(n, "wait", n->plug->mark(n->end, stream, err), err);
    if (status == TD_OK)
        status = await_mark(n, limit_ns ? limit_ns : n->op_limit_ns, err);
    return status == TD_OK ? TD_OK : td_nccl_give_up(n, "wait", status, err);
}

enum td_status td_nccl_time(struct td_nccl *n, void *stream,
                            enum td_status (*enqueue)(void *user, struct td_err *err), void *user,
                            uint64_t *ns, struct td_err *err)
{
    enum td_status status = td_nccl_wait(n, stream, 0, err);

    *ns = UINT64_MAX;
    for (uint32_t i = 0; i < TIMES && status == TD_OK; i++) {
        const uint64_t began_ns = td_clock_now_ns();
        uint64_t took_ns;

        status = enqueue(user, err);
        if (status == TD_OK)
            status = td_nccl_wait(n, stream, 0, err);
        took_ns = td_clock_now_ns() - began_ns;
        *ns = took_ns < *ns ? took_ns : *ns;
    }
    return status;
}

bool td_nccl_captures(const struct td_nccl *n)
{
    return n->captures;
}

/* ---- opening ---- */

/* What the ranks tell each other. */
struct hello {
    int32_t version;
    uint64_t node; /* equal for ranks that NCCL takes for one host */
};

/* FNV-1a (Fowler, Noll, Vo), 64 bits. */
static uint64_t hash_text(const char *text)
{
    uint64_t hash = 0xcbf29ce484222325u;

    for (; *text; text++)
        hash = (hash ^ (uint8_t)*text) * 0x100000001b3u;
    return hash;
}

static uint64_t node_of(const struct td_comm *comm)
{
    const char *host_id = getenv("NCCL_HOSTID");

    return host_id ? hash_text(host_id) : comm->topology.host[comm->rank];
}

/* This rank's status, for all: the same answer on all ranks. */
static enum td_status agree(struct td_comm *comm, enum td_status status, uint64_t limit_ns,
                            struct td_err *err)
{
    uint64_t before_ns = comm->op_limit_ns;
    enum td_status all = TD_OK, sent;

    td_comm_set_deadline(comm, limit_ns);
    sent = td_comm_agree(comm, status, &all, err);
    td_comm_set_deadline(comm, before_ns);
    return sent ? sent : all;
}

/* all [size of the group]. */
static enum td_status meet(struct td_comm *comm, const struct hello *mine, struct hello *all,
                           uint64_t limit_ns, struct td_err *err)
{
    size_t bytes[TD_TREE_MAX_RANKS];
    uint64_t before_ns = comm->op_limit_ns;
    enum td_status status;

    for (uint32_t r = 0; r < comm->size; r++)
        bytes[r] = sizeof *mine;
    td_comm_set_deadline(comm, limit_ns);
    status = td_comm_all_gather(comm, mine, bytes, all, err);
    td_comm_set_deadline(comm, before_ns);
    return status;
}

/* Rank 0's id goes to all. */
static enum td_status share_id(struct td_comm *comm, uint8_t id[TD_NCCLPLUG_ID_BYTES],
                               uint64_t limit_ns, struct td_err *err)
{
    uint64_t before_ns = comm->op_limit_ns;
    enum td_status status;

    td_comm_set_deadline(comm, limit_ns);
    status = td_comm_bcast(comm, 0, id, TD_NCCLPLUG_ID_BYTES, err);
    td_comm_set_deadline(comm, before_ns);
    return status;
}

/* What a rank can do alone. */
static enum td_status prepare(struct td_nccl *n, const struct td_nccl_config *config,
                              uint8_t id[TD_NCCLPLUG_ID_BYTES], struct td_err *err)
{
    enum td_status status = td_nccl_load(config->plugin, config->library, &n->lib, err);

    if (status != TD_OK)
        return status;
    n->plug = n->lib->plug;
    status = n->plug->use_device(config->device, err);
    if (status == TD_OK && n->rank == 0)
        status = n->plug->unique_id(n->lib->nccl, id, err);
    return status;
}

/* Whether all ranks have NCCL, in one version, and whether they are on one host. */
static enum td_status judge(struct td_nccl *n, const struct hello *all, bool captures_across_hosts,
                            struct td_err *err)
{
    int versions[TD_TREE_MAX_RANKS];
    bool is_one_host = true;

    for (uint32_t r = 0; r < n->n_ranks; r++) {
        versions[r] = all[r].version;
        is_one_host = is_one_host && all[r].node == all[0].node;
    }
    n->captures = is_one_host || captures_across_hosts || versions[0] >= CAPTURES_ACROSS_HOSTS;
    return td_nccl_judge_versions(versions, n->n_ranks, err);
}

static enum td_status join(struct td_nccl *n, const uint8_t id[TD_NCCLPLUG_ID_BYTES],
                           uint64_t limit_ns, struct td_err *err)
{
    enum td_status status = n->plug->open(n->lib->nccl, n->n_ranks, n->rank, id, &n->end, err);

    if (status == TD_OK)
        status = settle(n, "open", limit_ns, err);
    if (status != TD_OK && n->end)
        td_nccl_abort(n); /* at once: the others notice, instead of waiting until their deadline */
    return status;
}

/* `together`: on all ranks, and everything that was enqueued is done. */
static void drop(struct td_nccl *n, bool together)
{
    if (n->end) {
        td_nccl_abort(n);
        td_ncclpeers_close(n->peers, together);
        n->plug->close(n->end);
    }
    td_nccl_unload(n->lib);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

enum td_status td_nccl_open(struct td_comm *comm, const struct td_nccl_config *config,
                            struct td_nccl **out, struct td_err *err)
{
    uint64_t limit_ns = config->open_limit_ns ? config->open_limit_ns : DEFAULT_LIMIT_NS;
    struct hello mine = {.node = node_of(comm)}, *all;
    uint8_t id[TD_NCCLPLUG_ID_BYTES] = {0};
    struct td_err own = {.status =
                             TD_OK}; /* an err that is there for agree, also when `err` is NULL */
    struct td_nccl *n = calloc(1, sizeof *n);
    enum td_status status;

    all = calloc(comm->size, sizeof *all);
    if (!n || !all) {
        free(all);
        free(n);
        return td_err_set(err, TD_NO_MEMORY, "no memory for an NCCL communicator of %u ranks",
                          comm->size);
    }
    n->comm = comm;
    n->rank = comm->rank;
    n->n_ranks = comm->size;
    n->drop_graphs = config->drop_graphs;
    n->user = config->user;
    td_nccl_set_limit(n, config->op_limit_ns);
    pthread_mutex_init(&n->lock, NULL);

    status = prepare(n, config, id, &own);
    mine.version = status == TD_OK ? n->lib->version : 0;
    status = agree(comm, status, limit_ns, &own);
    if (status == TD_OK)
        status = meet(comm, &mine, all, limit_ns, &own);
    if (status == TD_OK)
        status = judge(n, all, config->captures_across_hosts, &own);
    if (status == TD_OK)
        status = share_id(comm, id, limit_ns, &own);
    if (status == TD_OK) { /* a rank may come to its end up to limit_ns later than this one */
        status = join(n, id, limit_ns, &own);
        status = agree(comm, status, 2 * limit_ns, &own);
    }
    free(all);
    if (status != TD_OK) {
        drop(n, false);
        td_err_context(&own, "open NCCL");
        if (err)
            *err = own;
        return status;
    }
    *out = n;
    return TD_OK;
}

void td_nccl_set_limit(struct td_nccl *n, uint64_t op_limit_ns)
{
    n->op_limit_ns = op_limit_ns ? op_limit_ns : DEFAULT_LIMIT_NS;
}

void td_nccl_close(struct td_nccl *n)
{
    struct td_err err;

    if (!n)
        return;
    if (n->drop_graphs)
        n->drop_graphs(n->user);
    if (td_nccl_check_usable(n, "close", &err) == TD_OK &&
        n->plug->finalize(n->end, &err) == TD_OK &&
        settle(n, "close", n->op_limit_ns, &err) == TD_OK) {
        n->is_given_back = true;
        (void)n->plug->destroy(n->end, &err);
    }
    drop(n, n->is_given_back && !atomic_load(&n->is_aborted));
}

/* ---- sums between peers ---- */

enum td_status td_nccl_open_peers(struct td_nccl *n, struct td_err *err)
{
    enum td_status status = td_nccl_check_usable(n, "open_peers", err);

    if (status == TD_OK && !n->peers)
        status = td_ncclpeers_open(n->comm, n->plug, &n->peers, err);
    return status;
}

void td_nccl_set_peer_sums(struct td_nccl *n, size_t most_floats)
{
    td_ncclpeers_set_most(n->peers, most_floats);
}

size_t td_nccl_peer_limit(const struct td_nccl *n, const struct td_ncclsum *sum)
{
    return n->peers ? td_ncclpeers_limit(sum) : 0;
}

/* ---- around an operation ---- */

enum td_status td_nccl_begin(struct td_nccl *n, const char *op, void *stream, struct td_err *err)
{
    bool is_capturing = false;
    enum td_status status = td_nccl_check_usable(n, op, err);

    if (status == TD_OK && !n->captures)
        status = n->plug->is_capturing(stream, &is_capturing, err);
    if (status != TD_OK)
        return status;
    if (is_capturing) {
        char has[32], least[32];

        return td_err_set(err, TD_UNSUPPORTED,
                          "rank %u of %u: %s: NCCL %s may deadlock when a graph with operations "
                          "between hosts is replayed; expected %s or newer, or no capture",
                          n->rank, n->n_ranks, op, td_nccl_number(n->lib->version, has, sizeof has),
                          td_nccl_number(CAPTURES_ACROSS_HOSTS, least, sizeof least));
    }
    return enter(n, op, err);
}

enum td_status td_nccl_finish(struct td_nccl *n, const char *op, enum td_status status,
                              struct td_err *err)
{
    pthread_mutex_unlock(&n->lock);
    status = td_nccl_with_context(n, op, status, err);
    if (status == TD_OK)
        status = settle(n, op, n->op_limit_ns, err);
    return status == TD_OK ? TD_OK : td_nccl_give_up(n, op, status, err);
}
