#include "comm/summessage.h"

#include "comm/narrow.h"

#include <stdlib.h>
#include <string.h>

/* With packed floats. What is sent is also what this rank itself adds, so that all come to the same sum. */
static enum td_status one_shot_narrow(struct td_sumcall *s, const struct td_summessage_party *party,
                                      const float *own, float *room, size_t count, float *out,
                                      uint32_t slot)
{
    struct td_comm *comm = s->comm;
    struct td_sumparts *p = party->parts;
    uint32_t n = party->n, me = party->me;
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
        if (i != me && td_sumparts_own(p, i) > 0 && count > 0)
            td_comm_queue_recv(comm, party->who[i], comm->narrow + p->first[i] * each,
                               td_sumparts_own(p, i) * each);
    }
    for (uint32_t k = p->first[me]; k < p->first[me + 1]; k++)
        td_narrow_pack(comm->exchange, own + (k - p->first[me]) * count, count,
                       comm->narrow + k * each);
    for (uint32_t i = 1; i < n && td_sumparts_own(p, me) > 0 && count > 0; i++)
        td_comm_queue_send(comm, party->who[(me + i) % n], comm->narrow + p->first[me] * each,
                           td_sumparts_own(p, me) * each);
    status = td_comm_exchange(comm, slot, s->err);
    if (status != TD_OK)
        return status;
    for (uint32_t k = 0; k < p->n; k++) {
        td_narrow_unpack(comm->exchange, comm->narrow + k * each, count, room + k * count);
        p->at[k] = room + k * count;
    }
    td_sumparts_join(s->n_leaves, p, out, count);
    return TD_OK;
}

enum td_status td_summessage_one_shot(struct td_sumcall *s, const struct td_summessage_party *party,
                                      const float *own, float *room, size_t count, float *out,
                                      uint32_t slot)
{
    struct td_sumparts *p = party->parts;
    uint32_t n = party->n, me = party->me;
    size_t own_bytes = td_sumparts_own(p, me) * count * sizeof(float);
    enum td_status status;

    if (s->comm->exchange != TD_EXCHANGE_F32)
        return one_shot_narrow(s, party, own, room, count, out, slot);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = p->first[i]; k < p->first[i + 1]; k++)
            p->at[k] = i == me ? own + (k - p->first[i]) * count : room + k * count;
        if (i != me && td_sumparts_own(p, i) > 0 && count > 0)
            td_comm_queue_recv(s->comm, party->who[i], room + p->first[i] * count,
                               td_sumparts_own(p, i) * count * sizeof(float));
    }
    for (uint32_t i = 1; i < n && own_bytes; i++)
        td_comm_queue_send(s->comm, party->who[(me + i) % n], own, own_bytes);
    status = td_comm_exchange(s->comm, slot, s->err);
    if (status == TD_OK)
        td_sumparts_join(s->n_leaves, p, out, count);
    return status;
}

enum td_status td_summessage_two_shot(struct td_sumcall *s, const uint32_t *slot)
{
    struct td_comm *comm = s->comm;
    struct td_sumparts *p = &s->group;
    uint32_t n = comm->size, me = comm->rank;
    size_t begin = td_sumparts_slice(s->n_floats, n, me);
    size_t count = td_sumparts_slice(s->n_floats, n, me + 1) - begin;
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
        size_t at = td_sumparts_slice(s->n_floats, n, to);

        for (uint32_t k = 0; k < td_sumparts_own(p, me); k++)
            td_comm_queue_send(comm, to, s->parts + k * s->n_floats + at,
                               (td_sumparts_slice(s->n_floats, n, to + 1) - at) * sizeof(float));
    }
    status = td_comm_exchange(comm, slot[0], s->err);
    if (status != TD_OK)
        return status;
    td_sumparts_join(s->n_leaves, p, s->out + begin, count);

    for (uint32_t r = 0; r < n; r++) {
        size_t at = td_sumparts_slice(s->n_floats, n, r);

        if (r != me)
            td_comm_queue_recv(comm, r, s->out + at,
                               (td_sumparts_slice(s->n_floats, n, r + 1) - at) * sizeof(float));
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

static void pack_of(const struct td_sumcall *s, const struct td_sumparts *p, uint32_t a, uint32_t b,
                    float *room, size_t count, struct pack *pack)
{
    pack->n =
        td_sumparts_merge(s->n_leaves, p->run + p->first[a], p->first[b] - p->first[a], pack->run);
    pack->data = room + p->first[a] * count;
}

/* Joins the packs of a .. m - 1 and m .. b - 1 in place. */
static void join_packs(const struct td_sumcall *s, const struct td_sumparts *p, uint32_t a,
                       uint32_t m, uint32_t b, float *room, size_t count)
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
    td_sumparts_join_to(n, run, at, whole.n, whole.run, out, count);
}

/* First participant of place j among `n_places`, the largest power of two; the first ones stand for two. */
static uint32_t place_begin(uint32_t n, uint32_t n_places, uint32_t j)
{
    uint32_t rest = n - n_places;

    return j < rest ? 2 * j : j + rest;
}

enum td_status td_summessage_doubling(struct td_sumcall *s, const struct td_summessage_party *party,
                                      float *room, size_t count, float *out, const uint32_t *slot)
{
    const struct td_sumparts *p = party->parts;
    const uint32_t *who = party->who;
    uint32_t n = party->n, me = party->me;
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
        status = td_comm_exchange(s->comm, slot[TD_SUM_MAX_EXCHANGES - 1], s->err);
    }
    return status;
}
