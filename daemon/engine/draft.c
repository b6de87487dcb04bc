#include "daemon/engine/draft.h"

/* An ending of fewer tokens says too little; one of more says no more. Steps without a try after wrong drafts. */
enum { LEAST_MATCH = 2, MOST_MATCH = 8, FIRST_LEN = 2, MOST_PAUSE = 32 };

/* Tokens that the text ending before `end` has in common, backwards, with the whole of ids [n]. */
static uint32_t common(const uint32_t *ids, uint32_t n, uint32_t end)
{
    uint32_t len = 0;

    while (len < end && len < MOST_MATCH && ids[end - 1 - len] == ids[n - 1 - len])
        len++;
    return len;
}

uint32_t td_draft_wish(struct td_draft *d, uint32_t max)
{
    if (d->pause > 0) {
        d->pause--;
        return 0;
    }
    d->len = d->len ? d->len : FIRST_LEN;
    return d->len < max ? d->len : max;
}

uint32_t td_draft_lookup(const uint32_t *ids, uint32_t n, uint32_t n_wish, uint32_t *out)
{
    uint32_t best = LEAST_MATCH - 1, at = 0, len;

    /* The longest match, the latest among equals. */
    for (uint32_t end = n - 1; end >= LEAST_MATCH && best < MOST_MATCH; end--) {
        uint32_t match;

        if (ids[end - 1] != ids[n - 1])
            continue;
        match = common(ids, n, end);
        if (match > best) {
            best = match;
            at = end;
        }
    }
    if (at == 0)
        return 0;
    len = n_wish < n - at ? n_wish : n - at;
    for (uint32_t i = 0; i < len; i++)
        out[i] = ids[at + i];
    return len;
}

void td_draft_judge(struct td_draft *d, uint32_t n_drafted, uint32_t n_right)
{
    if (n_right == n_drafted) {
        d->len = 2 * d->len;
        d->misses = 0;
    } else if (n_right > 0) {
        d->len = n_right + 1;
        d->misses = 0;
    } else {
        d->len = 1;
        d->misses++;
        d->pause = d->misses > 5 ? MOST_PAUSE : (1u << d->misses) - 1;
    }
}
