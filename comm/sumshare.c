#include "comm/sumshare.h"

#include <string.h>

enum { LEAST_PIECE_FLOATS = 512 }; /* of a sum that goes in two pieces */

size_t td_sumshare_chunk(const struct td_sumcall *s)
{
    uint32_t most = 1;

    for (uint32_t r = 0; r < s->comm->size; r++)
        most = td_sumparts_own(&s->group, r) > most ? td_sumparts_own(&s->group, r) : most;
    return TD_SHARE_BYTES / sizeof(float) / most / TD_SUMPARTS_SLICE * TD_SUMPARTS_SLICE;
}

enum td_status td_sumshare_give(struct td_sumcall *s, size_t at, size_t count, size_t sent_floats)
{
    uint32_t n = td_sumparts_own(&s->group, s->comm->rank);
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

enum td_status td_sumshare_find(struct td_sumcall *s, uint32_t back, size_t at, size_t begin,
                                size_t count, const float **where)
{
    const struct td_topology *t = &s->comm->topology;
    const struct td_sumparts *p = &s->group;

    for (uint32_t lane = 0; lane < t->n_here; lane++) {
        uint32_t r = td_topology_rank(t, t->my_host, lane);
        const void *data = NULL;

        if (r != s->comm->rank && td_sumparts_own(p, r)) {
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

enum td_status td_sumshare_collect(struct td_sumcall *s, uint32_t n_lanes, float *out, size_t count)
{
    for (uint32_t lane = 0; lane < n_lanes; lane++) {
        size_t begin = td_sumparts_slice(count, n_lanes, lane);
        size_t n = td_sumparts_slice(count, n_lanes, lane + 1) - begin;
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

size_t td_sumshare_piece(const struct td_sumcall *s, size_t at, size_t chunk)
{
    return s->n_floats - at < chunk ? s->n_floats - at : chunk;
}

/* Joins the `count` floats from `at` on that were shared in the last publish, or one `back`. */
static enum td_status join_here(struct td_sumcall *s, uint32_t back, size_t at, size_t count)
{
    enum td_status status = td_sumshare_find(s, back, at, 0, count, s->group.at);

    if (status == TD_OK)
        td_sumparts_join(s->n_leaves, &s->group, s->out + at, count);
    return status;
}

enum td_status td_sumshare_one_shot(struct td_sumcall *s)
{
    size_t chunk = td_sumshare_chunk(s), last = 0;
    size_t given = (size_t)td_sumparts_own(&s->group, s->comm->rank) * (s->comm->size - 1);
    enum td_status status = TD_OK;

    if (chunk >= s->n_floats && s->n_floats >= 2 * LEAST_PIECE_FLOATS)
        chunk = (s->n_floats / 2 + TD_SUMPARTS_SLICE - 1) / TD_SUMPARTS_SLICE * TD_SUMPARTS_SLICE;
    for (size_t at = 0; status == TD_OK && at < s->n_floats; at += chunk) {
        status = td_sumshare_give(s, at, td_sumshare_piece(s, at, chunk),
                                  given * td_sumshare_piece(s, at, chunk));
        if (status == TD_OK && at > 0)
            status = join_here(s, 1, at - chunk, chunk);
        last = at;
    }
    if (status == TD_OK && s->n_floats > 0)
        status = join_here(s, 0, last, s->n_floats - last);
    return status;
}

enum td_status td_sumshare_two_shot(struct td_sumcall *s)
{
    struct td_comm *comm = s->comm;
    struct td_sumparts *p = &s->group;
    size_t chunk = td_sumshare_chunk(s);
    enum td_status status = TD_OK;

    for (size_t at = 0; status == TD_OK && at < s->n_floats; at += chunk) {
        size_t count = td_sumshare_piece(s, at, chunk);
        size_t begin = td_sumparts_slice(count, comm->size, comm->rank);
        size_t slice = td_sumparts_slice(count, comm->size, comm->rank + 1) - begin;
        void *room;

        status = td_sumshare_give(s, at, count, td_sumparts_own(p, comm->rank) * (count - slice));
        if (status == TD_OK)
            status = td_sumshare_find(s, 0, at, begin, count, p->at);
        if (status == TD_OK)
            status = td_share_room(comm, &room, s->err);
        if (status != TD_OK)
            break;
        td_sumparts_join(s->n_leaves, p, room, slice);
        td_share_publish(comm, slice * (comm->size - 1) * sizeof(float));
        status = td_sumshare_collect(s, comm->size, s->out + at, count);
    }
    return status;
}
