#include "daemon/engine/pace.h"

#include <string.h>

/* Rows that are always allowed, and those of a first step beside answers, of which nothing is known yet. */
enum { LEAST_ROWS = 4, FIRST_ROWS = 16 };

void td_pace_init(struct td_pace *p, uint32_t max_stretch_percent)
{
    memset(p, 0, sizeof *p);
    p->max_stretch_percent = max_stretch_percent;
}

static uint32_t bucket_of(uint32_t n_decode)
{
    uint32_t bucket = 0;

    while (n_decode >> bucket > 1 && bucket + 1 < TD_PACE_BUCKETS)
        bucket++;
    return bucket;
}

/* A quarter of the way to what was measured: a neighbour's load is forgotten after some steps. */
static uint64_t approach(uint64_t known, uint64_t measured)
{
    return known ? known - known / 4 + measured / 4 : measured;
}

/* Of a step without prompts: of this size, else of the nearest smaller one that was seen, else of a larger one. */
static uint64_t decode_ns(const struct td_pace *p, uint32_t n_decode)
{
    uint32_t bucket = bucket_of(n_decode);

    for (uint32_t b = bucket + 1; b-- > 0;)
        if (p->decode_ns[b])
            return p->decode_ns[b];
    for (uint32_t b = bucket + 1; b < TD_PACE_BUCKETS; b++)
        if (p->decode_ns[b])
            return p->decode_ns[b];
    return 0;
}

void td_pace_learn(struct td_pace *p, uint32_t n_decode, uint32_t n_prompt, uint64_t step_ns)
{
    uint64_t base = n_decode ? decode_ns(p, n_decode) : 0;

    if (step_ns == 0 || n_decode + n_prompt == 0)
        return;
    if (n_prompt == 0)
        p->decode_ns[bucket_of(n_decode)] = approach(p->decode_ns[bucket_of(n_decode)], step_ns);
    else if (n_decode == 0 && n_prompt >= FIRST_ROWS)
        p->row_ns = approach(p->row_ns, step_ns / n_prompt);
    else if (base)
        p->row_ns = approach(p->row_ns, step_ns > base ? (step_ns - base) / n_prompt : 1);
    if (p->row_ns == 0 && n_prompt)
        p->row_ns = 1;
}

void td_pace_learn_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t n, uint64_t ns)
{
    if (n && ns)
        p->read_ns[tier] = approach(p->read_ns[tier], ns / n + 1);
}

/* How many things of `each_ns` fit into the stretch of a step; UINT32_MAX where there is no limit, `unknown` before anything is
 * known. */
static uint32_t fitting(const struct td_pace *p, uint32_t n_decode, uint64_t each_ns,
                        uint32_t unknown)
{
    uint64_t base, n;

    if (p->max_stretch_percent == 0 || n_decode == 0)
        return UINT32_MAX;
    base = decode_ns(p, n_decode);
    if (base == 0 || each_ns == 0)
        return unknown;
    n = base / 100 * p->max_stretch_percent / each_ns;
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

uint32_t td_pace_limit(const struct td_pace *p, uint32_t n_decode)
{
    uint32_t n = fitting(p, n_decode, p->row_ns, FIRST_ROWS);

    return n < LEAST_ROWS ? LEAST_ROWS : n;
}

uint32_t td_pace_read_limit(const struct td_pace *p, uint32_t n_decode)
{
    uint64_t slower = p->read_ns[0] > p->read_ns[1] ? p->read_ns[0] : p->read_ns[1];
    uint32_t n = fitting(p, n_decode, slower, 1);

    return n < 1 ? 1 : n;
}

void td_pace_learn_drafts(struct td_pace *p, uint32_t n_rows, uint64_t ns)
{
    if (n_rows >= FIRST_ROWS && ns)
        p->draft_row_ns = approach(p->draft_row_ns, ns / n_rows + 1);
}

uint32_t td_pace_draft_limit(const struct td_pace *p, uint32_t n_decode)
{
    uint32_t n = fitting(p, n_decode, p->draft_row_ns, FIRST_ROWS);

    return n < FIRST_ROWS ? FIRST_ROWS : n;
}

bool td_pace_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t block_tokens)
{
    uint64_t *read_ns = &p->read_ns[tier];

    if (*read_ns == 0 || p->row_ns == 0 || *read_ns <= p->row_ns * block_tokens)
        return true;
    *read_ns -= *read_ns / 64;
    return false;
}
