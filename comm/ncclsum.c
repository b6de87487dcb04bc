#include "comm/ncclsum.h"

#include "comm/commargs.h"

#include <string.h>

enum { ONE_SHOT_MAX_FLOATS = 64 * 1024, SLICE_FLOATS = 4 };

enum td_status td_ncclsum_make(const struct td_tree_layout *layout, uint32_t n_ranks, uint32_t rank,
                               struct td_ncclsum *sum, struct td_err *err)
{
    struct td_leaf_run runs[TD_TREE_MAX_LEAVES], cut[TD_TREE_MAX_PARTS];
    struct td_ncclsum s = {.n_ranks = n_ranks, .rank = rank, .is_even = true};
    enum td_status status;
    uint32_t n = 0;

    if (n_ranks < 1 || n_ranks > TD_TREE_MAX_RANKS || rank >= n_ranks)
        return td_err_set(err, TD_INVALID, "tree_sum: rank %u of %u, expected at most %d ranks",
                          rank, n_ranks, TD_TREE_MAX_RANKS);
    status = td_commargs_layout(layout, n_ranks, err);
    if (status != TD_OK)
        return status;
    s.n_leaves = layout->n_leaves;
    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t n_cut = 0;

        if (layout->runs[r].begin < layout->runs[r].end)
            n_cut = td_tree_parts(layout->n_leaves, layout->runs[r], cut);
        memcpy(runs + n, cut, n_cut * sizeof *cut);
        n += n_cut;
        s.first[r + 1] = (uint8_t)n;
        s.is_even = s.is_even && n_cut == s.first[1];
    }
    td_tree_program_make(layout->n_leaves, n, runs, &s.program);
    *sum = s;
    return TD_OK;
}

bool td_ncclsum_goes_in_slices(const struct td_ncclsum *sum, size_t n_floats)
{
    return sum->n_ranks > 2 && n_floats > ONE_SHOT_MAX_FLOATS;
}

size_t td_ncclsum_slice(const struct td_ncclsum *sum, size_t n_floats, uint32_t r)
{
    size_t unit = n_floats / SLICE_FLOATS;

    if (r == sum->n_ranks)
        return n_floats;
    return (unit / sum->n_ranks * r + unit % sum->n_ranks * r / sum->n_ranks) * SLICE_FLOATS;
}

size_t td_ncclsum_sent_bytes(const struct td_ncclsum *sum, size_t n_floats)
{
    const size_t others = sum->n_ranks - 1;
    const size_t own = (size_t)(sum->first[sum->rank + 1] - sum->first[sum->rank]);
    const size_t slice =
        td_ncclsum_slice(sum, n_floats, sum->rank + 1) - td_ncclsum_slice(sum, n_floats, sum->rank);

    return sizeof(float) * (td_ncclsum_goes_in_slices(sum, n_floats)
                                ? own * (n_floats - slice) + others * slice
                                : others * own * n_floats);
}

void td_ncclsum_join(const struct td_ncclsum *sum, const float *parts, const float *scratch,
                     size_t n_floats, size_t begin, struct td_treestack *join)
{
    uint32_t first = sum->first[sum->rank], end = sum->first[sum->rank + 1];

    join->program = sum->program;
    for (uint32_t k = 0; k < sum->program.n_parts; k++)
        join->part[k] =
            (k >= first && k < end ? parts + (k - first) * n_floats : scratch + k * n_floats) +
            begin;
}
