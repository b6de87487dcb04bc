#include "daemon/engine/steplimit.h"

#include <stdbool.h>
#include <string.h>

void td_steplimit_init(struct td_steplimit *l, uint64_t weight_bytes, uint32_t n_flights)
{
    memset(l, 0, sizeof *l);
    l->weight_bytes = weight_bytes;
    l->n_flights = n_flights < 1                          ? 1
                   : n_flights > TD_STEPLIMIT_MAX_FLIGHTS ? TD_STEPLIMIT_MAX_FLIGHTS
                                                          : n_flights;
}

/* Powers of two that n reaches; 0 for 0. */
static uint32_t log2_of(uint32_t n)
{
    uint32_t log = 0;

    for (; n; n /= 2)
        log++;
    return log;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static struct td_steplimit_class *class_of(struct td_steplimit *l,
                                           const struct td_steplimit_shape *s)
{
    uint32_t rows = least(log2_of(s->n_rows), TD_STEPLIMIT_ROWS - 1);
    uint32_t table = least((log2_of(s->n_table) + 1) / 2, TD_STEPLIMIT_TABLE - 1);
    uint32_t has_prompt = s->n_rows > s->n_seqs, has_moves = s->n_moves > 0;

    return &l->classes[((has_prompt * 2 + has_moves) * TD_STEPLIMIT_ROWS + rows) *
                           TD_STEPLIMIT_TABLE +
                       table];
}

static uint64_t median_ns(const struct td_steplimit_class *c)
{
    uint32_t sorted[TD_STEPLIMIT_KEPT], n = c->n;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;

        for (; at > 0 && sorted[at - 1] > c->us[i]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = c->us[i];
    }
    return (uint64_t)sorted[n / 2] * 1000u;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t guess_ns(const struct td_steplimit *l, const struct td_steplimit_shape *s)
{
    double seconds = (double)l->weight_bytes * (double)s->n_rows / TD_STEPLIMIT_BYTE_ROWS_PER_S;
    double limit_ns = seconds * TD_STEPLIMIT_FACTOR * 1e9;

    return limit_ns < 9e18 ? (uint64_t)limit_ns : (uint64_t)9e18;
}

uint64_t td_steplimit_begin(struct td_steplimit *l, const struct td_steplimit_shape *shape)
{
    const struct td_steplimit_class *c = class_of(l, shape);
    uint64_t limit_ns = c->n < TD_STEPLIMIT_ENOUGH
                            ? most(guess_ns(l, shape), TD_STEPLIMIT_LEAST_GUESS_NS)
                            : most(median_ns(c) * TD_STEPLIMIT_FACTOR, TD_STEPLIMIT_LEAST_NS);

    l->flight_ns[l->n_begun++ % l->n_flights] = limit_ns;
    for (uint32_t i = 0; i < l->n_flights; i++)
        limit_ns = most(limit_ns, l->flight_ns[i]);
    return limit_ns;
}

void td_steplimit_learn(struct td_steplimit *l, const struct td_steplimit_shape *shape, uint64_t ns)
{
    struct td_steplimit_class *c = class_of(l, shape);
    uint64_t us = ns / 1000u;

    c->us[c->next] = us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
    c->next = (uint16_t)((c->next + 1) % TD_STEPLIMIT_KEPT);
    c->n = c->n < TD_STEPLIMIT_KEPT ? (uint16_t)(c->n + 1) : c->n;
}
