/* The one reduction order: a fixed binary tree over the leaves of a sum, whoever owns them.
 * Pure arithmetic on plain arrays; knows no transport. See README, "Exactness".
 *
 * Leaves 0 .. n_leaves-1 sit in a perfect binary tree over the next power of two; absent leaves are skipped, never
 * added as zero. A rank owns a run of leaves and computes the largest aligned subtrees inside its run ("parts"). The
 * sum of a node is left + right. */
#ifndef TD_COMM_TREE_H
#define TD_COMM_TREE_H

#include <stddef.h>
#include <stdint.h>

enum {
    TD_TREE_MAX_LEAVES = 64,
    TD_TREE_MAX_PARTS = 12,
    TD_TREE_MAX_RANKS = 256,
    TD_TREE_MAX_DEPTH = 7 /* levels of a tree over TD_TREE_MAX_LEAVES */
};

/* Half-open run of leaves. */
struct td_leaf_run {
    uint32_t begin;
    uint32_t end;
};

/* Cuts `run` into its largest aligned subtrees, left to right. A subtree whose missing leaves lie past n_leaves counts
 * as whole. Returns how many were written to `parts` (0 for an empty run; never more than TD_TREE_MAX_PARTS). */
uint32_t td_tree_parts(uint32_t n_leaves, struct td_leaf_run run,
                       struct td_leaf_run parts[TD_TREE_MAX_PARTS]);

/* The order of a join's additions as a stack program: push part i, then add the two topmost entries n_adds[i] times. The
 * stack is never deeper than TD_TREE_MAX_DEPTH, and one entry is left at the end. */
struct td_tree_program {
    uint32_t n_parts;
    uint8_t n_adds[TD_TREE_MAX_LEAVES];
};
/* The program of td_tree_join for parts that cover exactly the leaves `runs` [n_parts], as there. */
void td_tree_program_make(uint32_t n_leaves, uint32_t n_parts, const struct td_leaf_run *runs,
                          struct td_tree_program *program);

/* Joins the parts of all ranks into the root. `part[i]` is the i-th part in leaf order over all ranks (each
 * [n_floats], borrowed), covering exactly the leaves `runs[i]`; together they cover 0 .. n_leaves. Writes `out`
 * [n_floats], which may be exactly one of the parts' buffers (any one) but must not overlap one otherwise. The bits of
 * a NaN's payload are not promised, everything else is. */
void td_tree_join(uint32_t n_leaves, uint32_t n_parts, const struct td_leaf_run *runs,
                  const float *const *part, float *out, size_t n_floats);

#endif
