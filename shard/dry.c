#include "shard/dry.h"

#include "kernels/detmath.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* No penalty is larger, so that no infinity meets an infinite logit. */
#define MAX_PENALTY 1e30

struct td_dry {
    double multiplier, log_base;
    uint32_t allowed, window, n_vocab;
    uint32_t n_breaker_bytes;
    uint8_t *breakers; /* owned [n_breaker_bytes] */
    uint32_t *ids;     /* owned [2 * window]: the last n_ids ids, oldest first */
    uint32_t n_ids;
    uint32_t *
        match; /* owned [n_vocab]: n(x) of the ids to punish, else 0; all 0 outside begin and end */
    /* Of the text read backwards: how many ids are the same from its start and from its place i on. */
    uint32_t *common; /* owned [window]; valid between begin and end */
    uint32_t n_text;  /* ids of `common`; 0: nothing is punished */
    uint32_t limit;   /* ids behind the last breaker */
};

struct td_dry *td_dry_open(const struct td_sampling *params, uint32_t n_vocab)
{
    struct td_dry *d = calloc(1, sizeof(*d));

    if (!d)
        return NULL;
    d->multiplier = (double)params->dry_multiplier;
    d->log_base = td_detmath_log((double)params->dry_base);
    d->allowed = (uint32_t)params->dry_allowed_length;
    d->window = params->dry_penalty_last_n < 0 ? TD_SAMPLING_MAX_WINDOW
                                               : (uint32_t)params->dry_penalty_last_n;
    d->n_vocab = n_vocab;
    d->n_breaker_bytes = params->n_dry_breaker_bytes;
    d->breakers = malloc(d->n_breaker_bytes + 1); /* never of no bytes, which may give NULL */
    d->ids = malloc(2 * (size_t)d->window * sizeof(*d->ids));
    d->common = malloc(d->window * sizeof(*d->common));
    d->match = calloc(n_vocab, sizeof(*d->match));
    if (!d->breakers || !d->ids || !d->common || !d->match) {
        td_dry_close(d);
        return NULL;
    }
    if (d->n_breaker_bytes)
        memcpy(d->breakers, params->dry_breakers, d->n_breaker_bytes);
    return d;
}

void td_dry_close(struct td_dry *d)
{
    if (!d)
        return;
    free(d->match);
    free(d->common);
    free(d->ids);
    free(d->breakers);
    free(d);
}

void td_dry_accept(struct td_dry *d, uint32_t id)
{
    if (d->n_ids == 2 * d->window) { /* every id is moved at most once per window: O(1) each */
        memmove(d->ids, d->ids + d->window, d->window * sizeof(*d->ids));
        d->n_ids = d->window;
    }
    d->ids[d->n_ids++] = id;
}

static bool is_breaker(const struct td_dry *d, uint32_t id)
{
    return id / 8 < d->n_breaker_bytes && (d->breakers[id / 8] >> (id % 8) & 1);
}

/* The Z algorithm (Gusfield 1997, section 1.3) on the text read backwards: back[-i] is its place i. */
static void find_common(struct td_dry *d, const uint32_t *back)
{
    uint32_t begin = 0, end = 0; /* places begin .. end - 1 are known to repeat the start */

    for (uint32_t i = 1; i < d->n_text; i++) {
        uint32_t n = 0;

        if (i < end)
            n = d->common[i - begin] < end - i ? d->common[i - begin] : end - i;
        while (i + n < d->n_text && back[-(ptrdiff_t)n] == back[-(ptrdiff_t)(i + n)])
            n++;
        d->common[i] = n;
        if (i + n > end) {
            begin = i;
            end = i + n;
        }
    }
}

void td_dry_begin(struct td_dry *d)
{
    const uint32_t *back = d->ids + d->n_ids;

    d->n_text = d->n_ids < d->window ? d->n_ids : d->window;
    d->limit = 0;
    if (d->n_text == 0)
        return;
    back--;
    while (d->limit < d->n_text && !is_breaker(d, back[-(ptrdiff_t)d->limit]))
        d->limit++;
    if (d->limit < d->allowed) {
        d->n_text = 0;
        return;
    }
    find_common(d, back);
    for (uint32_t i = 1; i < d->n_text; i++) {
        uint32_t n = d->common[i] < d->limit ? d->common[i] : d->limit;
        uint32_t next = back[-(ptrdiff_t)(i - 1)];

        if (n >= d->allowed && next < d->n_vocab && n > d->match[next] && !is_breaker(d, next))
            d->match[next] = n;
    }
}

void td_dry_apply(const struct td_dry *d, uint32_t first_id, uint32_t n, float *z)
{
    const uint32_t *match = d->match + first_id;

    for (uint32_t i = 0; d->n_text && i < n; i++) {
        double penalty;

        if (match[i] == 0)
            continue;
        penalty = d->multiplier * td_detmath_exp((double)(match[i] - d->allowed) * d->log_base);
        z[i] -= (float)(penalty < MAX_PENALTY ? penalty : MAX_PENALTY);
    }
}

void td_dry_end(struct td_dry *d)
{
    const uint32_t *behind = d->ids + d->n_ids;

    for (uint32_t i = 1; i < d->n_text; i++) {
        uint32_t next = behind[-(ptrdiff_t)i];

        if (next < d->n_vocab)
            d->match[next] = 0;
    }
    d->n_text = 0;
}
