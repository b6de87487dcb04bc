/* The one order of sums over the vocabulary: leaves of 4096 token ids, each summed by lanes (rowmath.h), joined by the
 * perfect binary tree over leaf index (absent leaves are skipped, never added as zero), in double.
 * Leaves are pushed in order and joined as they come, so nothing is stored but a tree path. Pure. */
#ifndef TD_SHARD_VSUM_H
#define TD_SHARD_VSUM_H

#include <stddef.h>
#include <stdint.h>

enum { TD_VSUM_LEAF = 4096, TD_VSUM_MAX_DEPTH = 33 };

struct td_vsum {
    uint32_t n_leaves; /* pushed so far; its set bits are the subtrees held in `part` */
    uint32_t n_parts;
    double part[TD_VSUM_MAX_DEPTH];
};

void td_vsum_init(struct td_vsum *v);
void td_vsum_push(struct td_vsum *v, double leaf);
double td_vsum_total(const struct td_vsum *v); /* 0 without leaves */

/* log(sum(exp(logits[0 .. n-1]))) in the order above, NaN counted as -infinity; -infinity when no logit is a number. Of terms rounded as
 * weights are (kernels/draw.h): off by n * 2^-35 at most. */
double td_vsum_logsumexp(const float *logits, size_t n);

#endif
