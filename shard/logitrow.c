#include "shard/logitrow.h"

#include "shard/dry.h"
#include "shard/penalty.h"
#include "shard/rowmath.h"

#include <math.h>

static uint32_t leaf_from(const struct td_logitrow *r, uint32_t leaf)
{
    if (r->logits)
        return leaf;
    for (uint32_t i = 0; i < r->n_top; i++)
        if (r->top[i].id / TD_VSUM_LEAF >= leaf)
            return r->top[i].id / TD_VSUM_LEAF;
    return r->n_leaves;
}

uint32_t td_logitrow_first(const struct td_logitrow *r)
{
    return leaf_from(r, 0);
}

uint32_t td_logitrow_next(const struct td_logitrow *r, uint32_t leaf)
{
    return leaf_from(r, leaf + 1);
}

static void apply_bias(const struct td_sampling *p, uint32_t base, uint32_t n, float *z)
{
    uint32_t low = 0, high = p->n_bias;

    while (low < high) {
        uint32_t mid = (low + high) / 2;

        if (p->bias[mid].id < base)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < p->n_bias && p->bias[low].id - base < n; low++)
        z[p->bias[low].id - base] += p->bias[low].bias;
}

static void load_top(const struct td_logitrow *r, uint32_t leaf, struct td_logitrow_leaf *l)
{
    uint32_t first = 0;

    while (r->top[first].id / TD_VSUM_LEAF != leaf)
        first++;
    l->top = r->top + first;
    for (l->n = 0; first + l->n < r->n_top && l->top[l->n].id / TD_VSUM_LEAF == leaf; l->n++) {
        l->z[l->n] = l->top[l->n].value;
        for (uint32_t i = 0; i < r->n_banned; i++)
            if (r->banned[i] == l->top[l->n].id)
                l->z[l->n] = -INFINITY;
    }
}

void td_logitrow_load(const struct td_logitrow *r, uint32_t leaf, struct td_logitrow_leaf *l)
{
    uint32_t base = leaf * TD_VSUM_LEAF;
    uint32_t n = r->n_vocab - base < TD_VSUM_LEAF ? r->n_vocab - base : TD_VSUM_LEAF;

    if (!r->logits) {
        load_top(r, leaf, l);
        return;
    }
    l->n = n;
    l->first_id = base;
    l->top = NULL;
    td_rowmath_clean(r->logits + base, n, l->z);
    apply_bias(r->params, base, n, l->z);
    if (r->penalty)
        td_penalty_apply(r->penalty, base, n, l->z);
    if (r->dry)
        td_dry_apply(r->dry, base, n, l->z);
    for (uint32_t i = 0; i < r->n_banned; i++)
        if (r->banned[i] - base < n)
            l->z[r->banned[i] - base] = -INFINITY;
}

double td_logitrow_sum(const struct td_logitrow_leaf *l, const double *w)
{
    double lane[TD_ROWMATH_LANES] = {0};

    if (!l->top)
        return td_rowmath_sum(w, l->n);
    for (uint32_t i = 0; i < l->n; i++)
        lane[l->top[i].id % TD_ROWMATH_LANES] += w[i];
    return td_rowmath_join(lane);
}

bool td_logitrow_max(const struct td_logitrow *r, float *max, uint32_t *id)
{
    float best = -INFINITY;
    uint32_t at = 0;

    if (r->logits && r->params->n_bias == 0 && !r->penalty && !r->dry && r->n_banned == 0) {
        best = td_rowmath_max(r->logits, r->n_vocab);
        at = best > -INFINITY ? td_rowmath_find(r->logits, r->n_vocab, best) : 0;
    } else {
        for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
             leaf = td_logitrow_next(r, leaf)) {
            struct td_logitrow_leaf l;
            float largest;

            td_logitrow_load(r, leaf, &l);
            largest = td_rowmath_max(l.z, l.n);
            if (largest > best) {
                best = largest;
                at = td_logitrow_id(&l, td_rowmath_find(l.z, l.n, largest));
            }
        }
    }
    *max = best;
    *id = at;
    return best > -INFINITY;
}

uint32_t td_logitrow_lowest_allowed(const struct td_logitrow *r)
{
    for (uint32_t id = 0; id < r->n_vocab; id++) {
        bool banned = false;

        for (uint32_t i = 0; i < r->n_banned; i++)
            banned |= r->banned[i] == id;
        if (!banned)
            return id;
    }
    return 0;
}
