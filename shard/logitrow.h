/* One row of logits as the cuts see it: read leaf by leaf in ascending id, with bias, penalties and bans taken in on the
 * way, so that no copy of the row exists. Private to the sampler; borrows everything during one draw. Pure. */
#ifndef TD_SHARD_LOGITROW_H
#define TD_SHARD_LOGITROW_H

#include "kernels/top.h"
#include "shard/sampling.h"
#include "shard/vsum.h"

#include <stdbool.h>
#include <stdint.h>

struct td_dry;
struct td_penalty;

/* A whole row, or its largest logits; then all others are -inf, which no cut can tell apart. */
struct td_logitrow {
    uint32_t n_vocab, n_leaves;
    const float *logits;      /* [n_vocab]; NULL: `top` */
    const struct td_top *top; /* [n_top] by ascending id */
    uint32_t n_top;
    const struct td_sampling *params; /* bias sorted by id */
    const struct td_penalty *penalty; /* NULL: none; always so with `top`, as is the next */
    const struct td_dry *dry;         /* NULL: none */
    const uint32_t *banned;           /* [n_banned] */
    uint32_t n_banned;
};

/* The ids of one leaf with their logits after stages 1 to 5 (sampler.h); of a row's largest logits, those among them.
 * No logit is NaN. */
struct td_logitrow_leaf {
    uint32_t n, first_id;
    const struct td_top *top; /* [n]; NULL: ids first_id, first_id + 1, ... */
    float z[TD_VSUM_LEAF];
};

static inline uint32_t td_logitrow_id(const struct td_logitrow_leaf *l, uint32_t i)
{
    return l->top ? l->top[i].id : l->first_id + i;
}

/* The leaves that may hold a logit above -inf, in ascending order; n_leaves at the end. */
uint32_t td_logitrow_first(const struct td_logitrow *r);
uint32_t td_logitrow_next(const struct td_logitrow *r, uint32_t leaf);
/* One of these leaves. */
void td_logitrow_load(const struct td_logitrow *r, uint32_t leaf, struct td_logitrow_leaf *l);
/* The sum of a leaf's weights w [l->n] by lanes (rowmath.h): of a row's largest logits the same as of the whole row with 0 for the
 * others. */
double td_logitrow_sum(const struct td_logitrow_leaf *l, const double *w);
/* The largest logit, of equal ones that with the lowest id; false when all are -inf, then *max is that too. */
bool td_logitrow_max(const struct td_logitrow *r, float *max, uint32_t *id);
/* The lowest id that is not banned; 0 if all are. */
uint32_t td_logitrow_lowest_allowed(const struct td_logitrow *r);

#endif
