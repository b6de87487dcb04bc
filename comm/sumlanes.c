#include "comm/sumlanes.h"

#include "comm/summessage.h"
#include "comm/sumshare.h"

/* The subtrees that each host holds together; a host is a participant. */
static void list_hosts(const struct td_sumcall *s, struct td_sumparts *hosts)
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
        td_sumparts_add(hosts, h, merged, td_sumparts_merge(s->n_leaves, run, n, merged));
    }
}

/* This rank's slice of the floats at .. at + count - 1: joins what its host holds, exchanges that with the ranks of the same
 * lane on other hosts, and writes the sum of all to `out`. */
static enum td_status join_lane(struct td_sumcall *s, struct td_sumparts *hosts, size_t at,
                                size_t begin, size_t slice, size_t count, bool doubles, float *out,
                                const uint32_t *slot)
{
    const struct td_topology *t = &s->comm->topology;
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    const float *where[TD_TREE_MAX_LEAVES], *from[TD_TREE_MAX_LEAVES];
    float *own[TD_TREE_MAX_LEAVES];
    uint32_t who[TD_COMM_MAX_RANKS];
    uint32_t h = t->my_host, n = 0;
    const struct td_summessage_party party = {hosts, who, t->n_hosts, h};
    enum td_status status = td_sumshare_find(s, 0, at, begin, count, where);

    if (status != TD_OK)
        return status;
    for (uint32_t i = t->first[h]; i < t->first[h + 1]; i++) {
        uint32_t r = t->ranks[i];

        for (uint32_t k = s->group.first[r]; k < s->group.first[r + 1]; k++, n++) {
            run[n] = s->group.run[k];
            from[n] = where[k];
        }
    }
    for (uint32_t k = 0; k < td_sumparts_own(hosts, h); k++)
        own[k] = s->scratch + (hosts->first[h] + k) * slice;
    td_sumparts_join_to(n, run, from, td_sumparts_own(hosts, h), hosts->run + hosts->first[h], own,
                        slice);
    for (uint32_t i = 0; i < t->n_hosts; i++)
        who[i] = td_topology_rank(t, i, t->my_lane);
    if (doubles && hosts->ascending)
        return td_summessage_doubling(s, &party, s->scratch, slice, out, slot);
    return td_summessage_one_shot(s, &party, s->scratch + hosts->first[h] * slice, s->scratch,
                                  slice, out, slot[0]);
}

enum td_status td_sumlanes_go(struct td_sumcall *s, uint32_t n_lanes, bool doubles,
                              const uint32_t *slot)
{
    const struct td_topology *t = &s->comm->topology;
    size_t chunk = td_sumshare_chunk(s);
    bool has_lane = t->my_lane < n_lanes;
    struct td_sumparts hosts;
    enum td_status status = TD_OK;

    list_hosts(s, &hosts);
    for (size_t at = 0; status == TD_OK && at < s->n_floats; at += chunk) {
        size_t count = td_sumshare_piece(s, at, chunk);
        size_t begin = has_lane ? td_sumparts_slice(count, n_lanes, t->my_lane) : 0;
        size_t slice = has_lane ? td_sumparts_slice(count, n_lanes, t->my_lane + 1) - begin : 0;
        uint32_t own = td_sumparts_own(&s->group, s->comm->rank);
        void *room = s->out + at + begin; /* alone on its host */

        if (td_share_has(s->comm)) {
            status = td_sumshare_give(s, at, count, own * (count - slice));
            if (status == TD_OK)
                status = has_lane ? td_share_room(s->comm, &room, s->err) : TD_OK;
        }
        if (status == TD_OK && slice)
            status = join_lane(s, &hosts, at, begin, slice, count, doubles, room, slot);
        if (status == TD_OK && td_share_has(s->comm)) {
            td_share_publish(s->comm, slice * (t->n_here - 1) * sizeof(float));
            status = td_sumshare_collect(s, n_lanes, s->out + at, count);
        }
    }
    return status;
}
