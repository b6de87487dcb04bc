#include "comm/sumparts.h"

#include <string.h>

uint32_t td_sumparts_merge(uint32_t n_leaves, const struct td_leaf_run *runs, uint32_t n,
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

void td_sumparts_add(struct td_sumparts *p, uint32_t i, const struct td_leaf_run *runs, uint32_t n)
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

void td_sumparts_list(struct td_sumparts *p, const struct td_tree_layout *layout, uint32_t n_ranks)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];

    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t n = 0;

        if (layout->runs[r].begin < layout->runs[r].end)
            n = td_tree_parts(layout->n_leaves, layout->runs[r], cut);
        td_sumparts_add(p, r, cut, n);
    }
}

void td_sumparts_join_to(uint32_t n, const struct td_leaf_run *run, const float *const *at,
                         uint32_t n_out, const struct td_leaf_run *runs, float *const *out,
                         size_t count)
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

void td_sumparts_join(uint32_t n_leaves, const struct td_sumparts *p, float *out, size_t count)
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

size_t td_sumparts_slice(size_t n_floats, uint32_t n_ranks, uint32_t r)
{
    size_t unit = n_floats / TD_SUMPARTS_SLICE;

    if (r == n_ranks)
        return n_floats;
    return (unit / n_ranks * r + unit % n_ranks * r / n_ranks) * TD_SUMPARTS_SLICE;
}
