/* The largest values of a row with their ids, largest first: what a sampler needs of the logits when it keeps few of them.
 * A list has a fixed length; places that nothing fills hold TD_TOP_NONE. -infinity and NaN fill none. */
#ifndef TD_KERNELS_TOP_H
#define TD_KERNELS_TOP_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

enum { TD_TOP_MAX = 64 }; /* the longest list */

struct td_top {
    float value;
    uint32_t id;
};

#define TD_TOP_NONE ((struct td_top){-INFINITY, UINT32_MAX})

static inline void td_top_clear(struct td_top *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        list[i] = TD_TOP_NONE;
}

/* Among equal values the lower id counts as larger, as in a sampler; both zeros are equal. */
static inline bool td_top_before(struct td_top a, struct td_top b)
{
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

/* Puts an item where it belongs in a list of n; false when it is smaller than all. */
static inline bool td_top_insert(struct td_top *list, uint32_t n, struct td_top item)
{
    uint32_t i = n;

    for (; i > 0 && td_top_before(item, list[i - 1]); i--)
        if (i < n)
            list[i] = list[i - 1];
    if (i == n)
        return false;
    list[i] = item;
    return true;
}

/* list = the n largest of both. */
static inline void td_top_merge(struct td_top *list, const struct td_top *other, uint32_t n)
{
    for (uint32_t i = 0; i < n && td_top_insert(list, n, other[i]); i++)
        ;
}

#endif
