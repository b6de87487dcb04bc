#include "comm/comm_impl.h"
#include "comm/share.h"

#include <string.h>

uint32_t td_comm_next_slot(struct td_comm *comm)
{
    return 1 + comm->sequence++ % ((1u << TD_COMM_SLOT_BITS) - 2);
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Whether all ranks are on one host and share its memory. */
static bool is_here(const struct td_comm *comm)
{
    return comm->topology.n_hosts == 1 && td_share_has(comm);
}

/* Whether what is said to one rank of a host reaches the others there through its memory. */
static bool is_two_level(const struct td_comm *comm)
{
    return comm->topology.n_hosts > 1 && comm->topology.most > 1 && comm->is_shared;
}

/* ---- broadcast ---- */

/* The member of this host in `lane` has the data, the others read it. */
static enum td_status bcast_here(struct td_comm *comm, uint32_t lane, char *data, size_t bytes,
                                 struct td_err *err)
{
    for (size_t at = 0; at < bytes; at += TD_SHARE_BYTES) {
        size_t n = min_size(bytes - at, TD_SHARE_BYTES);
        const void *shared;
        void *room;
        enum td_status status;

        if (lane == comm->topology.my_lane) {
            status = td_share_room(comm, &room, err);
            if (status != TD_OK)
                return status;
            memcpy(room, data + at, n);
            td_share_publish(comm, n * (comm->topology.n_here - 1));
            continue;
        }
        td_share_publish(comm, 0);
        status = td_share_await(comm, lane, 0, &shared, err);
        if (status != TD_OK)
            return status;
        memcpy(data + at, shared, n);
    }
    return TD_OK;
}

/* Binomial tree over participants counted from the root: number r (r > 0) hears from r without its lowest set bit. `who`
 * are their ranks. */
static enum td_status bcast_tree(struct td_comm *comm, const uint32_t *who, uint32_t n, uint32_t me,
                                 uint32_t root, void *data, size_t bytes, uint32_t slot,
                                 struct td_err *err)
{
    uint32_t number = (me + n - root) % n;
    uint32_t bit = 1;
    enum td_status status;

    while (bit < n && !(number & bit))
        bit *= 2;
    if (number) {
        td_comm_queue_recv(comm, who[(number - bit + root) % n], data, bytes);
        status = td_comm_exchange(comm, slot, err);
        if (status != TD_OK)
            return status;
    }
    for (bit /= 2; bit; bit /= 2) {
        if (number + bit < n)
            td_comm_queue_send(comm, who[(number + bit + root) % n], data, bytes);
    }
    return td_comm_exchange(comm, slot, err);
}

enum td_status td_collective_bcast(struct td_comm *comm, uint32_t root, void *data, size_t bytes,
                                   struct td_err *err)
{
    const struct td_topology *t = &comm->topology;
    uint32_t slot = td_comm_next_slot(comm);
    uint32_t speaker[TD_COMM_MAX_RANKS];
    uint32_t lane = t->my_host == t->host[root] ? t->lane[root] : 0;
    enum td_status status = TD_OK;

    if (bytes == 0)
        return TD_OK;
    if (is_here(comm))
        return bcast_here(comm, lane, data, bytes, err);
    if (!is_two_level(comm))
        return bcast_tree(comm, t->every, comm->size, comm->rank, root, data, bytes, slot, err);
    for (uint32_t h = 0; h < t->n_hosts; h++)
        speaker[h] = h == t->host[root] ? root : td_topology_rank(t, h, 0);
    if (speaker[t->my_host] == comm->rank)
        status = bcast_tree(comm, speaker, t->n_hosts, t->my_host, t->host[root], data, bytes, slot,
                            err);
    if (status == TD_OK && t->n_here > 1)
        status = bcast_here(comm, lane, data, bytes, err);
    return status;
}

/* ---- gathering ---- */

/* Every rank's bytes go through shared memory to those who receive: all, or `root` alone. */
static enum td_status gather_here(struct td_comm *comm, uint32_t root, bool all, const char *send,
                                  const size_t *bytes, char *recv, struct td_err *err)
{
    bool receives = all || comm->rank == root;
    size_t most = 0;

    for (uint32_t r = 0; r < comm->size; r++)
        most = bytes[r] > most ? bytes[r] : most;
    for (size_t at = 0; at < most; at += TD_SHARE_BYTES) {
        size_t mine = at < bytes[comm->rank] ? min_size(bytes[comm->rank] - at, TD_SHARE_BYTES) : 0;
        size_t begin = 0;
        void *room;

        if (mine && (all || comm->rank != root)) {
            enum td_status status = td_share_room(comm, &room, err);

            if (status != TD_OK)
                return status;
            memcpy(room, send + at, mine);
        }
        td_share_publish(comm, all ? mine * (comm->size - 1) : comm->rank == root ? 0 : mine);
        for (uint32_t r = 0; r < comm->size && receives; begin += bytes[r++]) {
            const void *shared;
            enum td_status status;

            if (r == comm->rank || at >= bytes[r])
                continue;
            status = td_share_await(comm, comm->topology.lane[r], 0, &shared, err);
            if (status != TD_OK)
                return status;
            memcpy(recv + begin + at, shared, min_size(bytes[r] - at, TD_SHARE_BYTES));
        }
    }
    return TD_OK;
}

/* Puts this rank's own bytes to their place. */
static void keep_own(const struct td_comm *comm, const void *send, const size_t *bytes, char *recv)
{
    for (uint32_t r = 0; r < comm->rank; r++)
        recv += bytes[r];
    if (bytes[comm->rank] && recv != send)
        memmove(recv, send, bytes[comm->rank]);
}

enum td_status td_collective_all_gather(struct td_comm *comm, const void *send, const size_t *bytes,
                                        void *recv, struct td_err *err)
{
    uint32_t slot = td_comm_next_slot(comm);
    char *at = recv;

    keep_own(comm, send, bytes, recv);
    if (is_here(comm)) {
        for (uint32_t r = 0; r < comm->rank; r++)
            at += bytes[r];
        return gather_here(comm, 0, true, at, bytes, recv, err);
    }
    for (uint32_t r = 0; r < comm->size; r++) {
        if (r != comm->rank && bytes[r])
            td_comm_queue_recv(comm, r, at, bytes[r]);
        at += bytes[r];
    }
    for (uint32_t i = 1; i < comm->size && bytes[comm->rank]; i++)
        td_comm_queue_send(comm, (comm->rank + i) % comm->size, send, bytes[comm->rank]);
    return td_comm_exchange(comm, slot, err);
}

enum td_status td_collective_gather(struct td_comm *comm, uint32_t root, const void *send,
                                    const size_t *bytes, void *recv, struct td_err *err)
{
    uint32_t slot = td_comm_next_slot(comm);
    char *at = recv;

    if (comm->rank == root)
        keep_own(comm, send, bytes, recv);
    if (is_here(comm))
        return gather_here(comm, root, false, send, bytes, recv, err);
    if (comm->rank != root) {
        if (bytes[comm->rank])
            td_comm_queue_send(comm, root, send, bytes[comm->rank]);
        return td_comm_exchange(comm, slot, err);
    }
    for (uint32_t r = 0; r < comm->size; r++) {
        if (r != root && bytes[r])
            td_comm_queue_recv(comm, r, at, bytes[r]);
        at += bytes[r];
    }
    return td_comm_exchange(comm, slot, err);
}

/* ---- barrier ---- */

/* Returns when every rank of this host has come. */
static enum td_status meet_here(struct td_comm *comm, struct td_err *err)
{
    enum td_status status = TD_OK;
    const void *none;

    td_share_publish(comm, 0);
    for (uint32_t lane = 0; status == TD_OK && lane < comm->topology.n_here; lane++)
        status = lane == comm->topology.my_lane ? TD_OK : td_share_await(comm, lane, 0, &none, err);
    return status;
}

/* Dissemination: after round k every participant has heard, through others, of 2^(k+1). */
static enum td_status meet_others(struct td_comm *comm, const uint32_t *who, uint32_t n,
                                  uint32_t me, uint32_t slot, struct td_err *err)
{
    for (uint32_t step = 1; step < n; step *= 2) {
        enum td_status status;

        td_comm_queue_recv(comm, who[(me + n - step) % n], NULL, 0);
        td_comm_queue_send(comm, who[(me + step) % n], NULL, 0);
        status = td_comm_exchange(comm, slot, err);
        if (status != TD_OK)
            return status;
    }
    return TD_OK;
}

enum td_status td_collective_barrier(struct td_comm *comm, struct td_err *err)
{
    const struct td_topology *t = &comm->topology;
    uint32_t slot = td_comm_next_slot(comm);
    uint32_t leaders[TD_COMM_MAX_RANKS];
    enum td_status status = TD_OK;

    if (is_here(comm))
        return meet_here(comm, err);
    if (!is_two_level(comm))
        return meet_others(comm, t->every, comm->size, comm->rank, slot, err);
    for (uint32_t h = 0; h < t->n_hosts; h++)
        leaders[h] = td_topology_rank(t, h, 0);
    if (t->n_here > 1)
        status = meet_here(comm, err);
    if (status == TD_OK && t->my_lane == 0)
        status = meet_others(comm, leaders, t->n_hosts, t->my_host, slot, err);
    if (status == TD_OK && t->n_here > 1)
        status = meet_here(comm, err);
    return status;
}
