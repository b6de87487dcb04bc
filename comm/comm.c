#include "comm/comm_impl.h"
#include "comm/commargs.h"
#include "comm/share.h"
#include "comm/shm.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum td_status td_comm_world_init(struct td_comm_world *world,
                                  const struct td_comm_transport *transport, uint32_t rank,
                                  uint32_t size, struct td_err *err)
{
    world->transport = transport;
    world->rank = rank;
    world->size = size;
    world->hosts = calloc(size, sizeof *world->hosts);
    world->local = calloc(size, sizeof *world->local);
    world->shares = false;
    world->shm = NULL;
    world->next_context = 1; /* 0 is the world's own group */
    world->n_contexts = 1u << 16;
    world->n_groups = 0;
    world->spin_ns = 0;
    atomic_init(&world->failed, TD_OK);
    atomic_init(&world->op_now, NULL);
    atomic_init(&world->n_begun, 0);
    if (!world->hosts || !world->local) {
        td_comm_world_deinit(world);
        return td_err_set(err, TD_NO_MEMORY, "no memory for a world of %u ranks", size);
    }
    for (uint32_t r = 0; r < size; r++)
        world->local[r] = -1;
    return TD_OK;
}

void td_comm_world_deinit(struct td_comm_world *world)
{
    free(world->hosts);
    free(world->local);
}

enum td_status td_comm_world_fail(struct td_comm_world *world, enum td_status status)
{
    int none = TD_OK;

    if (atomic_compare_exchange_strong(&world->failed, &none, (int)status))
        return status;
    return (enum td_status)none;
}

/* The picture of the group's hosts, and the place in shared memory. */
static enum td_status lay_out(struct td_comm *c, int32_t place, struct td_err *err)
{
    uint32_t hosts[TD_COMM_MAX_RANKS];

    c->words = calloc(td_topology_room(c->size) + (size_t)c->size, sizeof *c->words);
    c->share.seen = calloc(c->size, sizeof *c->share.seen);
    c->share.at = calloc(c->size, sizeof *c->share.at);
    if (!c->words || !c->share.seen || !c->share.at)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a group of %u ranks", c->size);
    for (uint32_t r = 0; r < c->size; r++)
        hosts[r] = c->world->hosts[c->members[r]];
    td_topology_make(&c->topology, hosts, c->size, c->rank, c->words);
    c->share.local = c->words + td_topology_room(c->size);
    c->share.place = -1;
    c->is_shared = c->world->shares && place >= 0;
    if (!c->is_shared || c->topology.n_here < 2)
        return TD_OK;
    for (uint32_t lane = 0; lane < c->topology.n_here; lane++) {
        uint32_t r = td_topology_rank(&c->topology, c->topology.my_host, lane);

        c->share.local[lane] = (uint32_t)c->world->local[c->members[r]];
        c->share.at[lane] = td_shm_place_of(c->world->shm, (uint32_t)place, c->share.local[lane]);
    }
    c->share.place = place;
    c->share.count = ((uint64_t)c->context << 48) + TD_SHM_BUFFERS; /* see td_share_room */
    td_shm_take_place(c->world->shm, (uint32_t)place, c->share.count, c->share.local,
                      c->topology.n_here);
    return TD_OK;
}

enum td_status td_comm_group_open(struct td_comm_world *world, const uint32_t *members,
                                  uint32_t size, uint32_t rank, uint32_t context, int32_t place,
                                  struct td_comm **comm, struct td_err *err)
{
    struct td_comm *c;

    if (size > TD_COMM_MAX_RANKS)
        return td_err_set(err, TD_TOO_LARGE, "a group of %u ranks; at most %d are supported", size,
                          TD_COMM_MAX_RANKS);
    c = calloc(1, sizeof *c + size * sizeof c->members[0]);
    if (!c)
        goto fail;
    /* The most that one exchange queues: a receive per part of others, a send per own part and peer. */
    c->cap_xfers = TD_TREE_MAX_LEAVES + TD_TREE_MAX_PARTS * size + size;
    c->xfers = calloc(c->cap_xfers, sizeof *c->xfers);
    if (!c->xfers)
        goto fail_group;
    c->world = world;
    c->rank = rank;
    c->size = size;
    c->context = context;
    c->spin_ns = world->spin_ns;
    c->ticks_base = td_ticks_begin();
    for (uint32_t r = 0; r < size; r++)
        c->members[r] = members ? members[r] : r;
    if (lay_out(c, place, err) != TD_OK)
        goto fail_xfers;
    world->n_groups++;
    *comm = c;
    return TD_OK;

fail_xfers:
    free(c->share.at);
    free(c->share.seen);
    free(c->words);
    free(c->xfers);
fail_group:
    free(c);
fail:
    return td_err_set(err, TD_NO_MEMORY, "no memory for a group of %u ranks", size);
}

void td_comm_close(struct td_comm *comm)
{
    struct td_comm_world *world;

    if (!comm)
        return;
    world = comm->world;
    if (comm->share.place >= 0)
        td_shm_free_place(world->shm, (uint32_t)comm->share.place);
    free(comm->narrow);
    free(comm->share.at);
    free(comm->share.seen);
    free(comm->words);
    free(comm->xfers);
    free(comm);
    if (--world->n_groups == 0)
        world->transport->close(world);
}

uint32_t td_comm_rank(const struct td_comm *comm)
{
    return comm->rank;
}

uint32_t td_comm_size(const struct td_comm *comm)
{
    return comm->size;
}

const char *td_comm_transport(const struct td_comm *comm)
{
    const struct td_topology *t = &comm->topology;

    if (!comm->world->shares || t->most < 2)
        return comm->world->transport->name;
    return t->n_hosts == 1 ? "shm" : "shm+mpi";
}

void td_comm_set_sum_algorithm(struct td_comm *comm, enum td_sum_algorithm algorithm)
{
    comm->sum_override = algorithm;
}

void td_comm_set_exchange(struct td_comm *comm, enum td_exchange_dtype dtype)
{
    comm->exchange = dtype;
}

void td_comm_set_sum_choices(struct td_comm *comm, const struct td_sum_choices *choices)
{
    comm->sums = *choices;
}

void td_comm_stats(const struct td_comm *comm, struct td_comm_stats *out)
{
    *out = comm->stats;
    out->wait_ns = comm->world->transport->now_ns ? comm->inside
                                                  : td_ticks_ns(&comm->ticks_base, comm->inside);
}

void td_comm_look_at(const struct td_comm *comm, struct td_comm_at *out)
{
    const struct td_comm_world *world = comm->world;

    out->op = atomic_load_explicit(&world->op_now, memory_order_relaxed);
    out->n_begun = atomic_load_explicit(&world->n_begun, memory_order_relaxed);
}

void td_comm_stats_reset(struct td_comm *comm)
{
    memset(&comm->stats, 0, sizeof comm->stats);
    comm->inside = 0;
}

void td_comm_set_deadline(struct td_comm *comm, uint64_t op_limit_ns)
{
    comm->op_limit_ns = op_limit_ns;
}

void td_comm_set_spin(struct td_comm *comm, uint64_t spin_ns)
{
    comm->spin_ns = spin_ns;
}

/* The lane of the member of this host that hears a broadcast first, or makes it. */
static uint32_t speaker_of(const struct td_comm *comm, uint32_t root)
{
    const struct td_topology *t = &comm->topology;

    return t->host[root] == t->my_host ? t->lane[root] : 0;
}

/* Whether that member has begun an operation that this one has not. */
static bool is_called(const struct td_comm *comm, uint32_t root)
{
    const struct td_shm_place *at = comm->share.at[speaker_of(comm, root)];

    return atomic_load(&comm->world->failed) != TD_OK ||
           atomic_load(&at->count) > comm->share.count;
}

void td_comm_abort(struct td_comm *comm)
{
    td_comm_world_fail(comm->world, TD_PEER_LOST);
    if (comm->world->shm)
        td_shm_leave(comm->world->shm);
    if (comm->world->transport->wake)
        comm->world->transport->wake(comm->world);
}

void td_comm_ring(struct td_comm *comm)
{
    if (comm->world->transport->wake)
        comm->world->transport->wake(comm->world);
}

bool td_comm_can_rest(const struct td_comm *comm, uint32_t root)
{
    return td_share_has(comm) && speaker_of(comm, root) != comm->topology.my_lane;
}

bool td_comm_rest(struct td_comm *comm, uint32_t root, uint64_t limit_ns, const atomic_bool *unless)
{
    struct td_shm *shm = comm->world->shm;
    uint32_t bell = td_shm_arm(shm);
    bool called = is_called(comm, root);

    if (!called && !atomic_load(unless)) {
        td_shm_sleep(shm, bell, limit_ns);
        called = is_called(comm, root);
    }
    td_shm_disarm(shm);
    return called;
}

enum td_status td_comm_report_failed(struct td_comm *comm, struct td_err *err)
{
    enum td_status status = (enum td_status)atomic_load(&comm->world->failed);

    return td_err_set(err, status, "rank %u of %u: %s: the group was given up (%s)", comm->rank,
                      comm->size, comm->op, td_status_name(status));
}

static uint32_t group_rank(const struct td_comm *comm, uint32_t world_rank)
{
    for (uint32_t r = 0; r < comm->size; r++) {
        if (comm->members[r] == world_rank)
            return r;
    }
    return UINT32_MAX;
}

enum td_status td_comm_report_timeout(struct td_comm *comm, uint32_t awaited, struct td_err *err)
{
    return td_err_set(err, TD_PEER_TIMED_OUT,
                      "rank %u of %u: %s: rank %u did not answer within %.3f s", comm->rank,
                      comm->size, comm->op, group_rank(comm, awaited),
                      (double)comm->op_limit_ns * 1e-9);
}

enum td_status td_comm_report_lost(struct td_comm *comm, uint32_t awaited, struct td_err *err)
{
    return td_err_set(err, TD_PEER_LOST, "rank %u of %u: %s: rank %u is gone", comm->rank,
                      comm->size, comm->op, group_rank(comm, awaited));
}

enum td_status td_comm_report_length(struct td_comm *comm, uint32_t peer, size_t bytes,
                                     size_t expected, struct td_err *err)
{
    return td_err_set(err, TD_PEER_PROTOCOL,
                      "rank %u of %u: %s: rank %u sent %zu bytes, expected %zu", comm->rank,
                      comm->size, comm->op, group_rank(comm, peer), bytes, expected);
}

static int32_t local_of(const struct td_comm *comm, uint32_t rank)
{
    return comm->world->local[comm->members[rank]];
}

void td_comm_queue_recv(struct td_comm *comm, uint32_t from, void *dst, size_t bytes)
{
    assert(comm->n_xfers < comm->cap_xfers && from != comm->rank);
    comm->xfers[comm->n_xfers++] = (struct td_comm_xfer){
        .peer = comm->members[from], .dst = dst, .bytes = bytes, .local = local_of(comm, from)};
}

void td_comm_queue_send(struct td_comm *comm, uint32_t to, const void *src, size_t bytes)
{
    assert(comm->n_xfers < comm->cap_xfers && to != comm->rank);
    comm->xfers[comm->n_xfers++] = (struct td_comm_xfer){.peer = comm->members[to],
                                                         .is_send = true,
                                                         .src = src,
                                                         .bytes = bytes,
                                                         .local = local_of(comm, to)};
}

enum td_status td_comm_exchange(struct td_comm *comm, uint32_t slot, struct td_err *err)
{
    enum td_status status;

    if (comm->n_xfers == 0)
        return TD_OK;
    status = comm->world->transport->exchange(comm, comm->context << TD_COMM_SLOT_BITS | slot, err);
    if (status == TD_OK) {
        for (uint32_t i = 0; i < comm->n_xfers; i++) {
            if (comm->xfers[i].is_send)
                comm->stats.sent_bytes += comm->xfers[i].bytes;
        }
    }
    comm->n_xfers = 0;
    return status;
}

/* In nanoseconds where the transport has a time of its own, else in ticks. */
static uint64_t now(const struct td_comm *comm)
{
    const struct td_comm_transport *transport = comm->world->transport;

    return transport->now_ns ? transport->now_ns(comm->world) : td_ticks_now();
}

uint64_t td_comm_deadline(struct td_comm *comm, uint64_t now_ns)
{
    if (comm->deadline_ns == 0)
        comm->deadline_ns = comm->op_limit_ns && comm->op_limit_ns < UINT64_MAX - now_ns
                                ? now_ns + comm->op_limit_ns
                                : UINT64_MAX;
    return comm->deadline_ns;
}

/* Every operation stands between begin and finish. begin refuses in a world that was given up. */
static enum td_status begin(struct td_comm *comm, const char *op, struct td_err *err)
{
    comm->op = op;
    if (atomic_load(&comm->world->failed) != TD_OK)
        return td_comm_report_failed(comm, err);
    atomic_store_explicit(&comm->world->op_now, op, memory_order_relaxed);
    atomic_store_explicit(&comm->world->n_begun,
                          atomic_load_explicit(&comm->world->n_begun, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    comm->start = now(comm);
    comm->deadline_ns = 0;
    if (comm->world->transport->now_ns)
        (void)td_comm_deadline(comm, comm->start);
    comm->n_xfers = 0;
    return TD_OK;
}

static enum td_status finish(struct td_comm *comm, enum td_status status)
{
    comm->stats.n_ops++;
    comm->inside += now(comm) - comm->start;
    atomic_store_explicit(&comm->world->op_now, NULL, memory_order_relaxed);
    if (status != TD_OK) {
        td_comm_world_fail(comm->world, status);
        if (comm->world->shm)
            td_shm_leave(comm->world->shm);
    }
    return status;
}

enum td_status td_comm_send(struct td_comm *comm, uint32_t to, const void *data, size_t bytes,
                            struct td_err *err)
{
    enum td_status status = td_commargs_peer("send", to, comm->rank, comm->size, err);

    if (status == TD_OK)
        status = td_commargs_data("send", "data", data, bytes, err);
    if (status == TD_OK)
        status = begin(comm, "send", err);
    if (status != TD_OK)
        return status;
    if (bytes)
        td_comm_queue_send(comm, to, data, bytes);
    return finish(comm, td_comm_exchange(comm, 0, err));
}

enum td_status td_comm_recv(struct td_comm *comm, uint32_t from, void *data, size_t bytes,
                            struct td_err *err)
{
    enum td_status status = td_commargs_peer("recv", from, comm->rank, comm->size, err);

    if (status == TD_OK)
        status = td_commargs_data("recv", "data", data, bytes, err);
    if (status == TD_OK)
        status = begin(comm, "recv", err);
    if (status != TD_OK)
        return status;
    if (bytes)
        td_comm_queue_recv(comm, from, data, bytes);
    return finish(comm, td_comm_exchange(comm, 0, err));
}

enum td_status td_comm_sendrecv(struct td_comm *comm, uint32_t to, const void *data, size_t bytes,
                                uint32_t from, void *recv, size_t recv_bytes, struct td_err *err)
{
    enum td_status status =
        bytes ? td_commargs_peer("sendrecv", to, comm->rank, comm->size, err) : TD_OK;

    if (status == TD_OK && recv_bytes)
        status = td_commargs_peer("sendrecv", from, comm->rank, comm->size, err);
    if (status == TD_OK)
        status = td_commargs_data("sendrecv", "data", data, bytes, err);
    if (status == TD_OK)
        status = td_commargs_data("sendrecv", "recv", recv, recv_bytes, err);
    if (status == TD_OK)
        status = begin(comm, "sendrecv", err);
    if (status != TD_OK)
        return status;
    if (recv_bytes)
        td_comm_queue_recv(comm, from, recv, recv_bytes);
    if (bytes)
        td_comm_queue_send(comm, to, data, bytes);
    return finish(comm, td_comm_exchange(comm, 0, err));
}

enum td_status td_comm_bcast(struct td_comm *comm, uint32_t root, void *data, size_t bytes,
                             struct td_err *err)
{
    enum td_status status = td_commargs_root("bcast", root, comm->size, err);

    if (status == TD_OK)
        status = td_commargs_data("bcast", "data", data, bytes, err);
    if (status == TD_OK)
        status = begin(comm, "bcast", err);
    if (status != TD_OK)
        return status;
    return finish(comm, td_collective_bcast(comm, root, data, bytes, err));
}

static enum td_status check_gather(const struct td_comm *comm, const char *op, const void *send,
                                   const size_t *bytes, bool receives, const void *recv,
                                   struct td_err *err)
{
    enum td_status status;
    size_t total = 0;

    if (!bytes)
        return td_err_set(err, TD_INVALID, "%s: `bytes` is NULL, expected %u lengths", op,
                          comm->size);
    for (uint32_t r = 0; r < comm->size; r++) {
        if (bytes[r] > SIZE_MAX - total)
            return td_err_set(err, TD_INVALID, "%s: lengths add up to more than %zu bytes", op,
                              SIZE_MAX);
        total += bytes[r];
    }
    status = td_commargs_data(op, "send", send, bytes[comm->rank], err);
    if (status == TD_OK && receives)
        status = td_commargs_data(op, "recv", recv, total, err);
    return status;
}

enum td_status td_comm_all_gather(struct td_comm *comm, const void *send, const size_t *bytes,
                                  void *recv, struct td_err *err)
{
    enum td_status status = check_gather(comm, "all_gather", send, bytes, true, recv, err);

    if (status == TD_OK)
        status = begin(comm, "all_gather", err);
    if (status != TD_OK)
        return status;
    return finish(comm, td_collective_all_gather(comm, send, bytes, recv, err));
}

enum td_status td_comm_gather(struct td_comm *comm, uint32_t root, const void *send,
                              const size_t *bytes, void *recv, struct td_err *err)
{
    enum td_status status = td_commargs_root("gather", root, comm->size, err);

    if (status == TD_OK)
        status = check_gather(comm, "gather", send, bytes, root == comm->rank, recv, err);
    if (status == TD_OK)
        status = begin(comm, "gather", err);
    if (status != TD_OK)
        return status;
    return finish(comm, td_collective_gather(comm, root, send, bytes, recv, err));
}

enum td_status td_comm_barrier(struct td_comm *comm, struct td_err *err)
{
    enum td_status status = begin(comm, "barrier", err);

    if (status != TD_OK)
        return status;
    return finish(comm, td_collective_barrier(comm, err));
}

enum td_status td_comm_tree_sum(struct td_comm *comm, const struct td_tree_layout *layout,
                                const float *parts, size_t n_floats, float *scratch, float *out,
                                struct td_err *err)
{
    enum td_status status = td_commargs_layout(layout, comm->size, err);

    if (status == TD_OK)
        status = td_commargs_sum(layout->runs[comm->rank].begin != layout->runs[comm->rank].end,
                                 parts, n_floats, scratch, out, comm->size, err);
    if (status == TD_OK)
        status = begin(comm, "tree_sum", err);
    if (status != TD_OK)
        return status;
    return finish(comm, td_collective_tree_sum(comm, layout, parts, n_floats, scratch, out, err));
}
