#include "comm/comm_impl.h"

#include <string.h>

/* Above this a sum over three ranks or more goes in slices: each rank joins one slice for all. */
enum { ONE_SHOT_MAX_BYTES = 256 * 1024, SLICE_FLOATS = 16 };

/* Each collective takes as many slots as it has exchanges, on all ranks alike; they repeat after 32766, and messages
 * of one pair and slot stay in order. */
static uint32_t next_slot(struct td_comm *comm)
{
    return 1 + comm->sequence++ % ((1u << TD_COMM_SLOT_BITS) - 2);
}

/* Binomial tree over ranks counted from the root: rank r (r > 0) hears from r without its lowest set bit. */
enum td_status td_collective_bcast(struct td_comm *comm, uint32_t root, void *data, size_t bytes,
                                   struct td_err *err)
{
    uint32_t slot = next_slot(comm);
    uint32_t n = comm->size;
    uint32_t me = (comm->rank + n - root) % n;
    uint32_t bit = 1;
    enum td_status status;

    if (bytes == 0)
        return TD_OK;
    while (bit < n && !(me & bit))
        bit *= 2;
    if (me) {
        td_comm_queue_recv(comm, (me - bit + root) % n, data, bytes);
        status = td_comm_exchange(comm, slot, err);
        if (status != TD_OK)
            return status;
    }
    for (bit /= 2; bit; bit /= 2) {
        if (me + bit < n)
            td_comm_queue_send(comm, (me + bit + root) % n, data, bytes);
    }
    return td_comm_exchange(comm, slot, err);
}

enum td_status td_collective_all_gather(struct td_comm *comm, const void *send, const size_t *bytes,
                                        void *recv, struct td_err *err)
{
    uint32_t slot = next_slot(comm);
    char *at = recv;

    for (uint32_t r = 0; r < comm->size; r++) {
        if (r == comm->rank) {
            if (bytes[r] && at != send)
                memmove(at, send, bytes[r]);
        } else if (bytes[r]) {
            td_comm_queue_recv(comm, r, at, bytes[r]);
        }
        at += bytes[r];
    }
    for (uint32_t i = 1; i < comm->size && bytes[comm->rank]; i++)
        td_comm_queue_send(comm, (comm->rank + i) % comm->size, send, bytes[comm->rank]);
    return td_comm_exchange(comm, slot, err);
}

enum td_status td_collective_gather(struct td_comm *comm, uint32_t root, const void *send,
                                    const size_t *bytes, void *recv, struct td_err *err)
{
    uint32_t slot = next_slot(comm);
    char *at = recv;

    if (comm->rank != root) {
        if (bytes[comm->rank])
            td_comm_queue_send(comm, root, send, bytes[comm->rank]);
        return td_comm_exchange(comm, slot, err);
    }
    for (uint32_t r = 0; r < comm->size; r++) {
        if (bytes[r] == 0)
            continue;
        if (r != root)
            td_comm_queue_recv(comm, r, at, bytes[r]);
        else if (at != send)
            memmove(at, send, bytes[r]);
        at += bytes[r];
    }
    return td_comm_exchange(comm, slot, err);
}

/* Dissemination: after round k every rank has heard, through others, of 2^(k+1) ranks. */
enum td_status td_collective_barrier(struct td_comm *comm, struct td_err *err)
{
    uint32_t slot = next_slot(comm);
    uint32_t n = comm->size;

    for (uint32_t step = 1; step < n; step *= 2) {
        enum td_status status;

        td_comm_queue_recv(comm, (comm->rank + n - step) % n, NULL, 0);
        td_comm_queue_send(comm, (comm->rank + step) % n, NULL, 0);
        status = td_comm_exchange(comm, slot, err);
        if (status != TD_OK)
            return status;
    }
    return TD_OK;
}

/* All parts of a group in leaf order. */
struct part_list {
    uint32_t n;
    uint32_t first[TD_COMM_MAX_RANKS + 1]; /* rank r holds parts first[r] .. first[r + 1] - 1 */
    struct td_leaf_run runs[TD_TREE_MAX_LEAVES];
    const float *part[TD_TREE_MAX_LEAVES];
};

static void list_parts(struct part_list *list, const struct td_tree_layout *layout,
                       uint32_t n_ranks)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];

    list->n = 0;
    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t n = 0;

        list->first[r] = list->n;
        if (layout->runs[r].begin < layout->runs[r].end)
            n = td_tree_parts(layout->n_leaves, layout->runs[r], cut);
        for (uint32_t i = 0; i < n; i++)
            list->runs[list->n++] = cut[i];
    }
    list->first[n_ranks] = list->n;
}

static bool goes_in_slices(uint32_t n_ranks, size_t n_floats)
{
    return n_ranks > 2 && n_floats > ONE_SHOT_MAX_BYTES / sizeof(float);
}

/* Rank r joins floats slice_begin(r) .. slice_begin(r + 1) - 1. */
static size_t slice_begin(size_t n_floats, uint32_t n_ranks, uint32_t r)
{
    size_t unit = n_floats / SLICE_FLOATS;

    if (r == n_ranks)
        return n_floats;
    return (unit / n_ranks * r + unit % n_ranks * r / n_ranks) * SLICE_FLOATS;
}

/* Everybody sends its parts to everybody and joins them all: one message per pair, one delay. */
static enum td_status sum_one_shot(struct td_comm *comm, const struct part_list *list,
                                   uint32_t n_leaves, const float *parts, size_t n_floats,
                                   float *scratch, float *out, struct td_err *err)
{
    uint32_t n_own = list->first[comm->rank + 1] - list->first[comm->rank];
    uint32_t slot = next_slot(comm);
    enum td_status status;

    for (uint32_t r = 0; r < comm->size; r++) {
        size_t n = (list->first[r + 1] - list->first[r]) * n_floats;

        if (r != comm->rank && n)
            td_comm_queue_recv(comm, r, scratch + list->first[r] * n_floats, n * sizeof(float));
    }
    for (uint32_t i = 1; i < comm->size && n_own && n_floats; i++)
        td_comm_queue_send(comm, (comm->rank + i) % comm->size, parts,
                           n_own * n_floats * sizeof(float));
    status = td_comm_exchange(comm, slot, err);
    if (status == TD_OK)
        td_tree_join(n_leaves, list->n, list->runs, list->part, out, n_floats);
    return status;
}

/* Everybody joins one slice of the floats from all parts, then the slices are exchanged: the same additions, so the
 * same bits, but fewer bytes. Costs a second delay. */
static enum td_status sum_in_slices(struct td_comm *comm, struct part_list *list, uint32_t n_leaves,
                                    const float *parts, size_t n_floats, float *scratch, float *out,
                                    struct td_err *err)
{
    uint32_t n = comm->size;
    uint32_t me = comm->rank;
    uint32_t n_own = list->first[me + 1] - list->first[me];
    size_t begin = slice_begin(n_floats, n, me);
    size_t count = slice_begin(n_floats, n, me + 1) - begin;
    uint32_t slot = next_slot(comm);
    uint32_t second_slot = next_slot(comm);
    enum td_status status;

    for (uint32_t r = 0; r < n; r++) {
        for (uint32_t p = list->first[r]; r != me && p < list->first[r + 1]; p++)
            td_comm_queue_recv(comm, r, scratch + p * n_floats + begin, count * sizeof(float));
    }
    for (uint32_t i = 1; i < n; i++) {
        uint32_t to = (me + i) % n;
        size_t at = slice_begin(n_floats, n, to);

        for (uint32_t p = 0; p < n_own; p++)
            td_comm_queue_send(comm, to, parts + p * n_floats + at,
                               (slice_begin(n_floats, n, to + 1) - at) * sizeof(float));
    }
    status = td_comm_exchange(comm, slot, err);
    if (status != TD_OK)
        return status;
    for (uint32_t p = 0; p < list->n; p++)
        list->part[p] += begin;
    td_tree_join(n_leaves, list->n, list->runs, list->part, out + begin, count);

    for (uint32_t r = 0; r < n; r++) {
        size_t at = slice_begin(n_floats, n, r);

        if (r != me)
            td_comm_queue_recv(comm, r, out + at,
                               (slice_begin(n_floats, n, r + 1) - at) * sizeof(float));
    }
    for (uint32_t i = 1; i < n; i++)
        td_comm_queue_send(comm, (me + i) % n, out + begin, count * sizeof(float));
    return td_comm_exchange(comm, second_slot, err);
}

enum td_status td_collective_tree_sum(struct td_comm *comm, const struct td_tree_layout *layout,
                                      const float *parts, size_t n_floats, float *scratch,
                                      float *out, struct td_err *err)
{
    struct part_list list;

    list_parts(&list, layout, comm->size);
    for (uint32_t p = 0; p < list.n; p++) {
        bool own = p >= list.first[comm->rank] && p < list.first[comm->rank + 1];

        list.part[p] =
            own ? parts + (p - list.first[comm->rank]) * n_floats : scratch + p * n_floats;
    }
    if (goes_in_slices(comm->size, n_floats))
        return sum_in_slices(comm, &list, layout->n_leaves, parts, n_floats, scratch, out, err);
    return sum_one_shot(comm, &list, layout->n_leaves, parts, n_floats, scratch, out, err);
}

size_t td_comm_tree_sum_bytes(const struct td_tree_layout *layout, uint32_t n_ranks, uint32_t rank,
                              size_t n_floats)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];
    struct td_leaf_run run = layout->runs[rank];
    size_t n_own = run.begin < run.end ? td_tree_parts(layout->n_leaves, run, cut) : 0;
    size_t own_slice;

    if (!goes_in_slices(n_ranks, n_floats))
        return n_own * n_floats * sizeof(float) * (n_ranks - 1);
    own_slice = slice_begin(n_floats, n_ranks, rank + 1) - slice_begin(n_floats, n_ranks, rank);
    return (n_own * (n_floats - own_slice) + own_slice * (n_ranks - 1)) * sizeof(float);
}
