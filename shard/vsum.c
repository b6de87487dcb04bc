#include "shard/vsum.h"

#include "kernels/detmath.h"
#include "shard/rowmath.h"

#include <math.h>

void td_vsum_init(struct td_vsum *v)
{
    v->n_leaves = 0;
    v->n_parts = 0;
}

void td_vsum_push(struct td_vsum *v, double leaf)
{
    uint32_t carry = v->n_leaves;

    /* As in binary addition: every trailing one bit is a complete left sibling. */
    for (; carry & 1; carry >>= 1)
        leaf = v->part[--v->n_parts] + leaf;
    v->part[v->n_parts++] = leaf;
    v->n_leaves++;
}

double td_vsum_total(const struct td_vsum *v)
{
    double sum = v->n_parts ? v->part[v->n_parts - 1] : 0;

    for (uint32_t i = v->n_parts; i-- > 1;)
        sum = v->part[i - 1] + sum;
    return sum;
}

double td_vsum_logsumexp(const float *logits, size_t n)
{
    struct td_vsum sum;
    float max = -INFINITY;

    for (size_t base = 0; base < n; base += TD_VSUM_LEAF) {
        float of_leaf = td_rowmath_max(
            logits + base, (uint32_t)(n - base < TD_VSUM_LEAF ? n - base : TD_VSUM_LEAF));

        max = of_leaf > max ? of_leaf : max;
    }
    if (max == -INFINITY)
        return -INFINITY;
    td_vsum_init(&sum);
    for (size_t base = 0; base < n; base += TD_VSUM_LEAF) {
        size_t len = n - base < TD_VSUM_LEAF ? n - base : TD_VSUM_LEAF;
        double w[TD_VSUM_LEAF];
        float z[TD_VSUM_LEAF];

        td_rowmath_clean(logits + base, (uint32_t)len, z);
        td_rowmath_weights(z, (uint32_t)len, max, 1, w);
        td_vsum_push(&sum, td_rowmath_sum(w, (uint32_t)len));
    }
    return (double)max + td_detmath_log(td_vsum_total(&sum));
}
