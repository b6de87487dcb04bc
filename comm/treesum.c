/* tree_sum: which way a sum takes, and what it sends that way. */
#include "comm/share.h"
#include "comm/sumlanes.h"
#include "comm/summessage.h"
#include "comm/sumshare.h"

#include <string.h>

/* Above this a flat sum over three ranks or more goes in slices: each rank joins one slice for all. */
enum { ONE_SHOT_MAX_BYTES = 256 * 1024 };

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

static bool goes_in_slices(uint32_t n_ranks, size_t n_floats)
{
    return n_ranks > 2 && n_floats > ONE_SHOT_MAX_BYTES / sizeof(float);
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
    struct td_sumcall
        s; /* its list of parts is filled below; it is too large to be cleared for each sum */
    uint32_t slot[TD_SUM_MAX_EXCHANGES], me = comm->rank;
    const struct td_summessage_party party = {&s.group, comm->topology.every, comm->size, me};

    s.comm = comm;
    s.n_leaves = layout->n_leaves;
    s.parts = parts;
    s.n_floats = n_floats;
    s.scratch = scratch;
    s.out = out;
    s.err = err;
    td_sumparts_list(&s.group, layout, comm->size);
    if (here && algorithm != TD_SUM_DOUBLING)
        return algorithm == TD_SUM_TWO_SHOT ? td_sumshare_two_shot(&s) : td_sumshare_one_shot(&s);
    for (uint32_t i = 0; i < TD_SUM_MAX_EXCHANGES; i++)
        slot[i] = td_comm_next_slot(comm);
    switch (algorithm) {
    case TD_SUM_TWO_SHOT:
        return td_summessage_two_shot(&s, slot);
    case TD_SUM_DOUBLING:
        if (td_sumparts_own(&s.group, me) && n_floats)
            memcpy(scratch + s.group.first[me] * n_floats, parts,
                   td_sumparts_own(&s.group, me) * n_floats * sizeof(float));
        if (n_floats)
            return td_summessage_doubling(&s, &party, scratch, n_floats, out, slot);
        return TD_OK;
    case TD_SUM_LEADERS:
    case TD_SUM_LEADERS_DOUBLING:
        return td_sumlanes_go(&s, 1, algorithm == TD_SUM_LEADERS_DOUBLING, slot);
    case TD_SUM_LANES:
    case TD_SUM_LANES_DOUBLING:
        return td_sumlanes_go(&s, comm->topology.least, algorithm == TD_SUM_LANES_DOUBLING, slot);
    default:
        return td_summessage_one_shot(&s, &party, parts, scratch, n_floats, out, slot[0]);
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
    own_slice =
        td_sumparts_slice(n_floats, n_ranks, rank + 1) - td_sumparts_slice(n_floats, n_ranks, rank);
    return (own * (n_floats - own_slice) + own_slice * (n_ranks - 1)) * sizeof(float);
}

uint32_t td_comm_tree_sum_rounds(uint32_t n_ranks, size_t n_floats)
{
    return n_ranks < 2 ? 0 : goes_in_slices(n_ranks, n_floats) ? 2 : 1;
}
