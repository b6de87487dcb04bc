/* tree_sum: several ways to bring the parts of a sum together, all with the same additions and so with the same bits. */
#include "comm/comm_impl.h"
#include "comm/narrow.h"
#include "comm/share.h"

#include <stdlib.h>
#include <string.h>

/* Above this a flat sum over three ranks or more goes in slices: each rank joins one slice for all. */
enum {
    ONE_SHOT_MAX_BYTES = 256 * 1024,
    SLICE_FLOATS = 16,
    LEAST_PIECE_FLOATS = 512, /* of a sum that goes in two pieces */
    MAX_EXCHANGES = 12
};

/* Subtrees in the order of participants; those of one participant are ascending. */
struct parts {
    uint32_t n;
    bool ascending;                        /* all of them are */
    uint32_t first[TD_COMM_MAX_RANKS + 1]; /* participant i has first[i] .. first[i + 1] - 1 */
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    const float *at[TD_TREE_MAX_LEAVES]; /* [floats of what is joined] */
};

/* One call. */
struct sum {
    struct td_comm *comm;
    uint32_t n_leaves;
    const float *parts; /* [n_own x n_floats] */
    size_t n_floats;
    float *scratch;
    float *out;
    struct td_err *err;
    struct parts group; /* of all ranks */
};

static uint32_t n_own(const struct parts *p, uint32_t i)
{
    return p->first[i + 1] - p->first[i];
}

/* Fewest subtrees that hold the leaves of the runs [n], which ascend. */
static uint32_t merge_runs(uint32_t n_leaves, const struct td_leaf_run *runs, uint32_t n,
                           struct td_leaf_run *out)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];
    uint32_t n_out = 0;

    for (uint32_t i = 0; i < n;) {
        struct td_leaf_run whole = runs[i++];
        uint32_t n_cut;

        while (i < n && runs[i].begin == whole.end)
            whole.end = runs[i++].end;
        n_cut = td_tree_parts(n_leaves, whole, cut);
        memcpy(out + n_out, cut, n_cut * sizeof *cut);
        n_out += n_cut;
    }
    return n_out;
}

static void add_participant(struct parts *p, uint32_t i, const struct td_leaf_run *runs, uint32_t n)
{
    if (i == 0) {
        p->n = p->first[0] = 0;
        p->ascending = true;
    }
    for (uint32_t k = 0; k < n; k++) {
        if (p->n && runs[k].begin < p->run[p->n - 1].end)
            p->ascending = false;
        p->run[p->n++] = runs[k];
    }
    p->first[i + 1] = p->n;
}

static void list_parts(struct parts *p, const struct td_tree_layout *layout, uint32_t n_ranks)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];

    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t n = 0;

        if (layout->runs[r].begin < layout->runs[r].end)
            n = td_tree_parts(layout->n_leaves, layout->runs[r], cut);
        add_participant(p, r, cut, n);
    }
}

/* Joins the subtrees [n], ascending, to those of `runs` [n_out], each of which holds some of them whole. out[i] may be the
 * buffer of its first one. */
static void join_to(uint32_t n, const struct td_leaf_run *run, const float *const *at,
                    uint32_t n_out, const struct td_leaf_run *runs, float *const *out, size_t count)
{
    uint32_t next = 0;

    for (uint32_t i = 0; i < n_out; i++) {
        struct td_leaf_run below[TD_TREE_MAX_LEAVES];
        uint32_t first = next;

        for (; next < n && run[next].end <= runs[i].end; next++)
            below[next - first] = (struct td_leaf_run){run[next].begin - runs[i].begin,
                                                       run[next].end - runs[i].begin};
        td_tree_join(runs[i].end - runs[i].begin, next - first, below, at + first, out[i], count);
    }
}

/* Joins everything to the root. */
static void join_all(uint32_t n_leaves, const struct parts *p, float *out, size_t count)
{
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    const float *at[TD_TREE_MAX_LEAVES];

    if (p->ascending) {
        td_tree_join(n_leaves, p->n, p->run, p->at, out, count);
        return;
    }
    for (uint32_t i = 0; i < p->n; i++) {
        uint32_t k = i;

        for (; k > 0 && run[k - 1].begin > p->run[i].begin; k--) {
            run[k] = run[k - 1];
            at[k] = at[k - 1];
        }
        run[k] = p->run[i];
        at[k] = p->at[i];
    }
    td_tree_join(n_leaves, p->n, run, at, out, count);
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

/* ---- by messages ---- */

/* one_shot with packed floats. What is sent is also what this rank itself adds, so that all come to the same sum. `room` has
 * place for all parts, this one's too. */
static enum td_status one_shot_narrow(struct sum *s, struct parts *p, const uint32_t *who,
                                      uint32_t n, uint32_t me, const float *own, float *room,
                                      size_t count, float *out, uint32_t slot)
{
    struct td_comm *comm = s->comm;
    size_t each = td_narrow_bytes(comm->exchange, count), need = p->n * each;
    enum td_status status;

    if (need > comm->narrow_bytes) {
        char *grown = realloc(comm->narrow, need);

        if (!grown)
            return td_err_set(s->err, TD_NO_MEMORY, "no memory for %zu bytes of packed sums", need);
        comm->narrow = grown;
        comm->narrow_bytes = need;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (i != me && n_own(p, i) > 0 && count > 0)
            td_comm_queue_recv(comm, who[i], comm->narrow + p->first[i] * each, n_own(p, i) * each);
    }
    for (uint32_t k = p->first[me]; k < p->first[me + 1]; k++)
        td_narrow_pack(comm->exchange, own + (k - p->first[me]) * count, count,
                       comm->narrow + k * each);
    for (uint32_t i = 1; i < n && n_own(p, me) > 0 && count > 0; i++)
        td_comm_queue_send(comm, who[(me + i) % n], comm->narrow + p->first[me] * each,
                           n_own(p, me) * each);
    status = td_comm_exchange(comm, slot, s->err);
    if (status != TD_OK)
        return status;
    for (uint32_t k = 0; k < p->n; k++) {
        td_narrow_unpack(comm->exchange, comm->narrow + k * each, count, room + k * count);
        p->at[k] = room + k * count;
    }
    join_all(s->n_leaves, p, out, count);
    return TD_OK;
}

/* Everybody's subtrees go to everybody, which joins them all: one message per pair, one delay. `who` are the
 * participants' ranks, `me` is this one's index; `own` [n_own x count]; `room` takes the others'. */
static enum td_status one_shot(struct sum *s, struct parts *p, const uint32_t *who, uint32_t n,
                               uint32_t me, const float *own, float *room, size_t count, float *out,
                               uint32_t slot)
{
    size_t own_bytes = n_own(p, me) * count * sizeof(float);
    enum td_status status;

    if (s->comm->exchange != TD_EXCHANGE_F32)
        return one_shot_narrow(s, p, who, n, me, own, room, count, out, slot);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = p->first[i]; k < p->first[i + 1]; k++)
            p->at[k] = i == me ? own + (k - p->first[i]) * count : room + k * count;
        if (i != me && n_own(p, i) > 0 && count > 0)
            td_comm_queue_recv(s->comm, who[i], room + p->first[i] * count,
                               n_own(p, i) * count * sizeof(float));
    }
    for (uint32_t i = 1; i < n && own_bytes; i++)
        td_comm_queue_send(s->comm, who[(me + i) % n], own, own_bytes);
    status = td_comm_exchange(s->comm, slot, s->err);
    if (status == TD_OK)
        join_all(s->n_leaves, p, out, count);
    return status;
}

/* Everybody joins one slice of the floats from all parts, then the slices are exchanged: the same additions, so the
 * same bits, but fewer bytes. Costs a second delay. */
static enum td_status in_slices(struct sum *s, const uint32_t *slot)
{
    struct td_comm *comm = s->comm;
    struct parts *p = &s->group;
    uint32_t n = comm->size, me = comm->rank;
    size_t begin = slice_begin(s->n_floats, n, me);
    size_t count = slice_begin(s->n_floats, n, me + 1) - begin;
    enum td_status status;

    for (uint32_t r = 0; r < n; r++) {
        for (uint32_t k = p->first[r]; k < p->first[r + 1]; k++) {
            float *other = s->scratch + k * s->n_floats + begin;

            p->at[k] = r == me ? s->parts + (k - p->first[r]) * s->n_floats + begin : other;
            if (r != me)
                td_comm_queue_recv(comm, r, other, count * sizeof(float));
        }
    }
    for (uint32_t i = 1; i < n; i++) {
        uint32_t to = (me + i) % n;
        size_t at = slice_begin(s->n_floats, n, to);

        for (uint32_t k = 0; k < n_own(p, me); k++)
            td_comm_queue_send(comm, to, s->parts + k * s->n_floats + at,
                               (slice_begin(s->n_floats, n, to + 1) - at) * sizeof(float));
    }
    status = td_comm_exchange(comm, slot[0], s->err);
    if (status != TD_OK)
        return status;
    join_all(s->n_leaves, p, s->out + begin, count);

    for (uint32_t r = 0; r < n; r++) {
        size_t at = slice_begin(s->n_floats, n, r);

        if (r != me)
            td_comm_queue_recv(comm, r, s->out + at,
                               (slice_begin(s->n_floats, n, r + 1) - at) * sizeof(float));
    }
    for (uint32_t i = 1; i < n; i++)
        td_comm_queue_send(comm, (me + i) % n, s->out + begin, count * sizeof(float));
    return td_comm_exchange(comm, slot[1], s->err);
}

/* What the participants a .. b - 1 hold together after their subtrees were joined: a pack of `n` subtrees, at the place of
 * a's own in the room. */
struct pack {
    uint32_t n;
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    float *data; /* [n x count] */
};

static void pack_of(const struct sum *s, const struct parts *p, uint32_t a, uint32_t b, float *room,
                    size_t count, struct pack *pack)
{
    pack->n = merge_runs(s->n_leaves, p->run + p->first[a], p->first[b] - p->first[a], pack->run);
    pack->data = room + p->first[a] * count;
}

/* Joins the packs of a .. m - 1 and m .. b - 1 in place. */
static void join_packs(const struct sum *s, const struct parts *p, uint32_t a, uint32_t m,
                       uint32_t b, float *room, size_t count)
{
    struct pack half[2], whole;
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    const float *at[TD_TREE_MAX_LEAVES];
    float *out[TD_TREE_MAX_LEAVES];
    uint32_t n = 0;

    pack_of(s, p, a, m, room, count, &half[0]);
    pack_of(s, p, m, b, room, count, &half[1]);
    pack_of(s, p, a, b, room, count, &whole);
    for (uint32_t h = 0; h < 2; h++) {
        for (uint32_t i = 0; i < half[h].n; i++, n++) {
            run[n] = half[h].run[i];
            at[n] = half[h].data + i * count;
        }
    }
    for (uint32_t i = 0; i < whole.n; i++)
        out[i] = whole.data + i * count;
    join_to(n, run, at, whole.n, whole.run, out, count);
}

/* First participant of place j among `n_places`, the largest power of two; the first ones stand for two. */
static uint32_t place_begin(uint32_t n, uint32_t n_places, uint32_t j)
{
    uint32_t rest = n - n_places;

    return j < rest ? 2 * j : j + rest;
}

/* Recursive doubling: in round k blocks of 2^k neighbours exchange what they have joined so far: as many delays as n has
 * binary digits, and one message per rank and round. For parts that ascend. `room` holds this one's own already. */
static enum td_status doubling(struct sum *s, const struct parts *p, const uint32_t *who,
                               uint32_t n, uint32_t me, float *room, size_t count, float *out,
                               const uint32_t *slot)
{
    uint32_t n_places = 1, j = 0;
    bool stands_aside, stands_for_two;
    enum td_status status = TD_OK;
    struct pack pack;

    while (n_places * 2 <= n)
        n_places *= 2;
    while (j + 1 < n_places && place_begin(n, n_places, j + 1) <= me)
        j++;
    stands_aside = me != place_begin(n, n_places, j);
    stands_for_two = place_begin(n, n_places, j + 1) - place_begin(n, n_places, j) == 2;
    if (stands_for_two) {
        uint32_t a = place_begin(n, n_places, j);

        pack_of(s, p, a + 1, a + 2, room, count, &pack);
        if (stands_aside && pack.n)
            td_comm_queue_send(s->comm, who[a], pack.data, pack.n * count * sizeof(float));
        else if (pack.n)
            td_comm_queue_recv(s->comm, who[a + 1], pack.data, pack.n * count * sizeof(float));
        status = td_comm_exchange(s->comm, slot[0], s->err);
        if (status == TD_OK && !stands_aside)
            join_packs(s, p, a, a + 1, a + 2, room, count);
    }
    for (uint32_t bit = 1, round = 1; status == TD_OK && bit < n_places && !stands_aside;
         bit *= 2, round++) {
        uint32_t base = j & ~(2 * bit - 1), mine = j & ~(bit - 1), other = mine ^ bit;
        uint32_t to = who[place_begin(n, n_places, j ^ bit)];

        pack_of(s, p, place_begin(n, n_places, other), place_begin(n, n_places, other + bit), room,
                count, &pack);
        if (pack.n)
            td_comm_queue_recv(s->comm, to, pack.data, pack.n * count * sizeof(float));
        pack_of(s, p, place_begin(n, n_places, mine), place_begin(n, n_places, mine + bit), room,
                count, &pack);
        if (pack.n)
            td_comm_queue_send(s->comm, to, pack.data, pack.n * count * sizeof(float));
        status = td_comm_exchange(s->comm, slot[round], s->err);
        if (status == TD_OK)
            join_packs(s, p, place_begin(n, n_places, base), place_begin(n, n_places, base + bit),
                       place_begin(n, n_places, base + 2 * bit), room, count);
    }
    if (status == TD_OK && !stands_aside)
        memcpy(out, room, count * sizeof(float));
    if (status == TD_OK && stands_for_two) {
        uint32_t a = place_begin(n, n_places, j);

        if (stands_aside)
            td_comm_queue_recv(s->comm, who[a], out, count * sizeof(float));
        else
            td_comm_queue_send(s->comm, who[a + 1], out, count * sizeof(float));
        status = td_comm_exchange(s->comm, slot[MAX_EXCHANGES - 1], s->err);
    }
    return status;
}

/* ---- through shared memory ---- */

/* Floats that go at a time: those of the rank with most parts fill a buffer. */
static size_t shared_chunk(const struct sum *s)
{
    uint32_t most = 1;

    for (uint32_t r = 0; r < s->comm->size; r++)
        most = n_own(&s->group, r) > most ? n_own(&s->group, r) : most;
    return TD_SHARE_BYTES / sizeof(float) / most / SLICE_FLOATS * SLICE_FLOATS;
}

/* Gives floats at .. at + count - 1 of this rank's parts to the others of its host. */
static enum td_status share_parts(struct sum *s, size_t at, size_t count, size_t sent_floats)
{
    uint32_t n = n_own(&s->group, s->comm->rank);
    void *room;

    if (n) {
        enum td_status status = td_share_room(s->comm, &room, s->err);

        if (status != TD_OK)
            return status;
        for (uint32_t i = 0; i < n; i++)
            memcpy((float *)room + i * count, s->parts + i * s->n_floats + at,
                   count * sizeof(float));
    }
    td_share_publish(s->comm, sent_floats * sizeof(float));
    return TD_OK;
}

/* Points where[] of the parts of all ranks of this host to floats at + begin .., of the `count` from `at` on that were shared
 * in the last publish, or one `back`. `where` [parts of the group]. */
static enum td_status find_parts(struct sum *s, uint32_t back, size_t at, size_t begin,
                                 size_t count, const float **where)
{
    const struct td_topology *t = &s->comm->topology;
    const struct parts *p = &s->group;

    for (uint32_t lane = 0; lane < t->n_here; lane++) {
        uint32_t r = td_topology_rank(t, t->my_host, lane);
        const void *data = NULL;

        if (r != s->comm->rank && n_own(p, r)) {
            enum td_status status = td_share_await(s->comm, lane, back, &data, s->err);

            if (status != TD_OK)
                return status;
        }
        for (uint32_t k = p->first[r]; k < p->first[r + 1]; k++)
            where[k] =
                (r == s->comm->rank ? s->parts + (k - p->first[r]) * s->n_floats + at
                                    : (const float *)data + (size_t)(k - p->first[r]) * count) +
                begin;
    }
    return TD_OK;
}

/* Copies the slices that lanes 0 .. n_lanes - 1 have shared to `out` [count]. */
static enum td_status collect_slices(struct sum *s, uint32_t n_lanes, float *out, size_t count)
{
    for (uint32_t lane = 0; lane < n_lanes; lane++) {
        size_t begin = slice_begin(count, n_lanes, lane);
        size_t n = slice_begin(count, n_lanes, lane + 1) - begin;
        const void *data;
        enum td_status status;

        if (n == 0)
            continue;
        status = td_share_await(s->comm, lane, 0, &data, s->err);
        if (status != TD_OK)
            return status;
        memcpy(out + begin, data, n * sizeof(float));
    }
    return TD_OK;
}

static size_t piece_at(const struct sum *s, size_t at, size_t chunk)
{
    return s->n_floats - at < chunk ? s->n_floats - at : chunk;
}

/* Joins the `count` floats from `at` on that were shared in the last publish, or one `back`. */
static enum td_status join_here(struct sum *s, uint32_t back, size_t at, size_t count)
{
    enum td_status status = find_parts(s, back, at, 0, count, s->group.at);

    if (status == TD_OK)
        join_all(s->n_leaves, &s->group, s->out + at, count);
    return status;
}

/* All ranks on one host: each reads the parts of all others where they wrote them, and joins all floats. In pieces, so
 * that writing one overlaps with reading the one before. */
static enum td_status one_shot_here(struct sum *s)
{
    size_t chunk = shared_chunk(s), last = 0;
    size_t given = (size_t)n_own(&s->group, s->comm->rank) * (s->comm->size - 1);
    enum td_status status = TD_OK;

    if (chunk >= s->n_floats && s->n_floats >= 2 * LEAST_PIECE_FLOATS)
        chunk = (s->n_floats / 2 + SLICE_FLOATS - 1) / SLICE_FLOATS * SLICE_FLOATS;
    for (size_t at = 0; status == TD_OK && at < s->n_floats; at += chunk) {
        status = share_parts(s, at, piece_at(s, at, chunk), given * piece_at(s, at, chunk));
        if (status == TD_OK && at > 0)
            status = join_here(s, 1, at - chunk, chunk);
        last = at;
    }
    if (status == TD_OK && s->n_floats > 0)
        status = join_here(s, 0, last, s->n_floats - last);
    return status;
}

/* The same, but each joins a slice only and shares it in turn. */
static enum td_status two_shot_here(struct sum *s)
{
    struct td_comm *comm = s->comm;
    struct parts *p = &s->group;
    size_t chunk = shared_chunk(s);
    enum td_status status = TD_OK;

    for (size_t at = 0; status == TD_OK && at < s->n_floats; at += chunk) {
        size_t count = piece_at(s, at, chunk);
        size_t begin = slice_begin(count, comm->size, comm->rank);
        size_t slice = slice_begin(count, comm->size, comm->rank + 1) - begin;
        void *room;

        status = share_parts(s, at, count, n_own(p, comm->rank) * (count - slice));
        if (status == TD_OK)
            status = find_parts(s, 0, at, begin, count, p->at);
        if (status == TD_OK)
            status = td_share_room(comm, &room, s->err);
        if (status != TD_OK)
            break;
        join_all(s->n_leaves, p, room, slice);
        td_share_publish(comm, slice * (comm->size - 1) * sizeof(float));
        status = collect_slices(s, comm->size, s->out + at, count);
    }
    return status;
}

/* The subtrees that each host holds together; a host is a participant. */
static void list_hosts(const struct sum *s, struct parts *hosts)
{
    const struct td_topology *t = &s->comm->topology;

    for (uint32_t h = 0; h < t->n_hosts; h++) {
        struct td_leaf_run run[TD_TREE_MAX_LEAVES], merged[TD_TREE_MAX_LEAVES];
        uint32_t n = 0;

        for (uint32_t i = t->first[h]; i < t->first[h + 1]; i++) {
            uint32_t r = t->ranks[i];

            for (uint32_t k = s->group.first[r]; k < s->group.first[r + 1]; k++)
                run[n++] = s->group.run[k];
        }
        add_participant(hosts, h, merged, merge_runs(s->n_leaves, run, n, merged));
    }
}

/* This rank's slice of the floats at .. at + count - 1: joins what its host holds, exchanges that with the ranks of the same
 * lane on other hosts, and writes the sum of all to `out`. */
static enum td_status join_lane(struct sum *s, struct parts *hosts, size_t at, size_t begin,
                                size_t slice, size_t count, bool doubles, float *out,
                                const uint32_t *slot)
{
    const struct td_topology *t = &s->comm->topology;
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    const float *where[TD_TREE_MAX_LEAVES], *from[TD_TREE_MAX_LEAVES];
    float *own[TD_TREE_MAX_LEAVES];
    uint32_t who[TD_COMM_MAX_RANKS];
    uint32_t h = t->my_host, n = 0;
    enum td_status status = find_parts(s, 0, at, begin, count, where);

    if (status != TD_OK)
        return status;
    for (uint32_t i = t->first[h]; i < t->first[h + 1]; i++) {
        uint32_t r = t->ranks[i];

        for (uint32_t k = s->group.first[r]; k < s->group.first[r + 1]; k++, n++) {
            run[n] = s->group.run[k];
            from[n] = where[k];
        }
    }
    for (uint32_t k = 0; k < n_own(hosts, h); k++)
        own[k] = s->scratch + (hosts->first[h] + k) * slice;
    join_to(n, run, from, n_own(hosts, h), hosts->run + hosts->first[h], own, slice);
    for (uint32_t i = 0; i < t->n_hosts; i++)
        who[i] = td_topology_rank(t, i, t->my_lane);
    if (doubles && hosts->ascending)
        return doubling(s, hosts, who, t->n_hosts, h, s->scratch, slice, out, slot);
    return one_shot(s, hosts, who, t->n_hosts, h, s->scratch + hosts->first[h] * slice, s->scratch,
                    slice, out, slot[0]);
}

/* Several hosts: `n_lanes` ranks of each join a slice of what their host holds and exchange it between the hosts; the
 * others of the host get the sum from them. One lane is a leader. */
static enum td_status in_lanes(struct sum *s, uint32_t n_lanes, bool doubles, const uint32_t *slot)
{
    const struct td_topology *t = &s->comm->topology;
    size_t chunk = shared_chunk(s);
    bool has_lane = t->my_lane < n_lanes;
    struct parts hosts;
    enum td_status status = TD_OK;

    list_hosts(s, &hosts);
    for (size_t at = 0; status == TD_OK && at < s->n_floats; at += chunk) {
        size_t count = piece_at(s, at, chunk);
        size_t begin = has_lane ? slice_begin(count, n_lanes, t->my_lane) : 0;
        size_t slice = has_lane ? slice_begin(count, n_lanes, t->my_lane + 1) - begin : 0;
        uint32_t own = n_own(&s->group, s->comm->rank);
        void *room = s->out + at + begin; /* alone on its host */

        if (td_share_has(s->comm)) {
            status = share_parts(s, at, count, own * (count - slice));
            if (status == TD_OK)
                status = has_lane ? td_share_room(s->comm, &room, s->err) : TD_OK;
        }
        if (status == TD_OK && slice)
            status = join_lane(s, &hosts, at, begin, slice, count, doubles, room, slot);
        if (status == TD_OK && td_share_has(s->comm)) {
            td_share_publish(s->comm, slice * (t->n_here - 1) * sizeof(float));
            status = collect_slices(s, n_lanes, s->out + at, count);
        }
    }
    return status;
}

/* ---- the choice ---- */

static const char *const names[] = {"auto",    "one-shot", "two-shot",         "doubling",
                                    "leaders", "lanes",    "leaders-doubling", "lanes-doubling"};
_Static_assert(sizeof names / sizeof names[0] == TD_N_SUM_ALGORITHMS, "a name for each");

const char *td_comm_sum_name(enum td_sum_algorithm algorithm)
{
    return names[algorithm];
}

bool td_comm_sum_supports(const struct td_comm *comm, enum td_sum_algorithm algorithm)
{
    const struct td_topology *t = &comm->topology;
    bool two_level = t->n_hosts > 1 && t->most > 1 && comm->is_shared;

    switch (algorithm) {
    case TD_SUM_AUTO:
    case TD_SUM_ONE_SHOT:
        return true;
    case TD_SUM_TWO_SHOT:
        return comm->size > 2;
    case TD_SUM_DOUBLING:
        return comm->size > 2;
    case TD_SUM_LEADERS:
        return two_level;
    case TD_SUM_LANES:
        return two_level && t->least > 1;
    case TD_SUM_LEADERS_DOUBLING:
        return two_level && t->n_hosts > 2;
    case TD_SUM_LANES_DOUBLING:
        return two_level && t->least > 1 && t->n_hosts > 2;
    case TD_N_SUM_ALGORITHMS:
        break;
    }
    return false;
}

/* Where nothing was measured. */
static enum td_sum_algorithm usual(const struct td_comm *comm, size_t n_floats)
{
    if (td_comm_sum_supports(comm, TD_SUM_LEADERS))
        return n_floats * sizeof(float) > ONE_SHOT_MAX_BYTES / 4 &&
                       td_comm_sum_supports(comm, TD_SUM_LANES)
                   ? TD_SUM_LANES
                   : TD_SUM_LEADERS;
    return goes_in_slices(comm->size, n_floats) ? TD_SUM_TWO_SHOT : TD_SUM_ONE_SHOT;
}

static uint32_t size_class(size_t bytes)
{
    uint32_t c = 0;

    while (c + 1 < TD_SUM_CLASSES && bytes >> (c + 1))
        c++;
    return c;
}

enum td_sum_algorithm td_comm_sum_algorithm(const struct td_comm *comm, size_t n_floats)
{
    enum td_sum_algorithm a = comm->sum_override;
    bool here = comm->topology.n_hosts == 1 && td_share_has(comm);

    if (comm->exchange != TD_EXCHANGE_F32 &&
        !here) /* what others do with packed floats is not built */
        return td_comm_sum_supports(comm, TD_SUM_LEADERS) ? usual(comm, n_floats) : TD_SUM_ONE_SHOT;
    if (a == TD_SUM_AUTO)
        a = comm->sums.by_class[size_class(n_floats * sizeof(float))];
    return a == TD_SUM_AUTO || !td_comm_sum_supports(comm, a) ? usual(comm, n_floats) : a;
}

enum td_status td_collective_tree_sum(struct td_comm *comm, const struct td_tree_layout *layout,
                                      const float *parts, size_t n_floats, float *scratch,
                                      float *out, struct td_err *err)
{
    enum td_sum_algorithm algorithm = td_comm_sum_algorithm(comm, n_floats);
    bool here = comm->topology.n_hosts == 1 && td_share_has(comm);
    struct sum
        s; /* its list of parts is filled below; it is too large to be cleared for each sum */
    uint32_t slot[MAX_EXCHANGES], me = comm->rank;

    s.comm = comm;
    s.n_leaves = layout->n_leaves;
    s.parts = parts;
    s.n_floats = n_floats;
    s.scratch = scratch;
    s.out = out;
    s.err = err;
    list_parts(&s.group, layout, comm->size);
    if (here && algorithm != TD_SUM_DOUBLING)
        return algorithm == TD_SUM_TWO_SHOT ? two_shot_here(&s) : one_shot_here(&s);
    for (uint32_t i = 0; i < MAX_EXCHANGES; i++)
        slot[i] = td_comm_next_slot(comm);
    switch (algorithm) {
    case TD_SUM_TWO_SHOT:
        return in_slices(&s, slot);
    case TD_SUM_DOUBLING:
        if (n_own(&s.group, me) && n_floats)
            memcpy(scratch + s.group.first[me] * n_floats, parts,
                   n_own(&s.group, me) * n_floats * sizeof(float));
        if (n_floats)
            return doubling(&s, &s.group, comm->topology.every, comm->size, me, scratch, n_floats,
                            out, slot);
        return TD_OK;
    case TD_SUM_LEADERS:
    case TD_SUM_LEADERS_DOUBLING:
        return in_lanes(&s, 1, algorithm == TD_SUM_LEADERS_DOUBLING, slot);
    case TD_SUM_LANES:
    case TD_SUM_LANES_DOUBLING:
        return in_lanes(&s, comm->topology.least, algorithm == TD_SUM_LANES_DOUBLING, slot);
    default:
        return one_shot(&s, &s.group, comm->topology.every, comm->size, me, parts, scratch,
                        n_floats, out, slot[0]);
    }
}

size_t td_comm_tree_sum_bytes(const struct td_tree_layout *layout, uint32_t n_ranks, uint32_t rank,
                              size_t n_floats)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];
    struct td_leaf_run run = layout->runs[rank];
    size_t own = run.begin < run.end ? td_tree_parts(layout->n_leaves, run, cut) : 0;
    size_t own_slice;

    if (!goes_in_slices(n_ranks, n_floats))
        return own * n_floats * sizeof(float) * (n_ranks - 1);
    own_slice = slice_begin(n_floats, n_ranks, rank + 1) - slice_begin(n_floats, n_ranks, rank);
    return (own * (n_floats - own_slice) + own_slice * (n_ranks - 1)) * sizeof(float);
}

uint32_t td_comm_tree_sum_rounds(uint32_t n_ranks, size_t n_floats)
{
    return n_ranks < 2 ? 0 : goes_in_slices(n_ranks, n_floats) ? 2 : 1;
}
