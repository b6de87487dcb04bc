/* The subtrees that the participants of a tree_sum hold, and their joins; and one call of tree_sum, which its ways share. Moves
 * nothing. A participant is a rank, or a host with all of its ranks. Included by the files of tree_sum only. */
#ifndef TD_COMM_SUMPARTS_H
#define TD_COMM_SUMPARTS_H

#include "comm/comm_impl.h"

enum {
    TD_SUMPARTS_SLICE = 16, /* floats: slices begin at multiples */
    TD_SUM_MAX_EXCHANGES = 12
};

/* Subtrees in the order of participants; those of one participant are ascending. */
struct td_sumparts {
    uint32_t n;
    bool ascending;                        /* all of them are */
    uint32_t first[TD_COMM_MAX_RANKS + 1]; /* participant i has first[i] .. first[i + 1] - 1 */
    struct td_leaf_run run[TD_TREE_MAX_LEAVES];
    const float *at[TD_TREE_MAX_LEAVES]; /* [floats of what is joined] */
};

/* One call; everything is borrowed. */
struct td_sumcall {
    struct td_comm *comm;
    uint32_t n_leaves;
    const float *parts; /* [own parts x n_floats] */
    size_t n_floats;
    float *scratch;
    float *out;
    struct td_err *err;
    struct td_sumparts group; /* of all ranks */
};

/* How many subtrees participant i has. */
static inline uint32_t td_sumparts_own(const struct td_sumparts *p, uint32_t i)
{
    return p->first[i + 1] - p->first[i];
}

/* Fewest subtrees that hold the leaves of the runs [n], which ascend; returns how many are in `out` [TD_TREE_MAX_LEAVES]. */
uint32_t td_sumparts_merge(uint32_t n_leaves, const struct td_leaf_run *runs, uint32_t n,
                           struct td_leaf_run *out);
/* Adds participant i, after all before it, with the subtrees runs [n]. The first one begins a new list. */
void td_sumparts_add(struct td_sumparts *p, uint32_t i, const struct td_leaf_run *runs, uint32_t n);
/* Every rank is a participant. */
void td_sumparts_list(struct td_sumparts *p, const struct td_tree_layout *layout, uint32_t n_ranks);

/* Joins the subtrees [n], ascending, to those of `runs` [n_out], each of which holds some of them whole. out[i] [count] may be
 * the buffer of its first one. */
void td_sumparts_join_to(uint32_t n, const struct td_leaf_run *run, const float *const *at,
                         uint32_t n_out, const struct td_leaf_run *runs, float *const *out,
                         size_t count);
/* Joins everything to the root, `out` [count]. */
void td_sumparts_join(uint32_t n_leaves, const struct td_sumparts *p, float *out, size_t count);

/* In slices rank r of n_ranks joins floats slice(r) .. slice(r + 1) - 1; r <= n_ranks. */
size_t td_sumparts_slice(size_t n_floats, uint32_t n_ranks, uint32_t r);

#endif
