#include "daemon/engine/pace.h"

#include <string.h>

/* Rows that are always allowed, and those of a first step beside answers, of which nothing is known yet. */
enum { LEAST_ROWS = 4, FIRST_ROWS = 16 };

/* Moves of blocks beside answers while nobody knows how long they take, and how long a step without answers may move. */
enum { FIRST_MOVES = 16, ALONE_NS = 1000000000 };

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

static void learn_move(uint64_t *known, uint32_t n, uint64_t ns)
{
    uint64_t each = n ? ns / n + 1 : 0;

    if (n == 0)
        return;
    each = *known && each > 4 * *known ? 4 * *known : each;
    *known = approach(*known, each);
}

void td_pace_learn_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t n, uint64_t ns)
{
    learn_move(&p->read_ns[tier], n, ns);
}

void td_pace_learn_writes(struct td_pace *p, enum td_offload_tier tier, uint32_t n, uint64_t ns)
{
    learn_move(&p->write_ns[tier], n, ns);
}

void td_pace_begin(struct td_pace *p, uint32_t n_decode)
{
    uint64_t base = decode_ns(p, n_decode);

    p->has_limit = p->max_stretch_percent > 0 && n_decode > 0;
    p->knows_base = base > 0;
    p->left_ns = p->has_limit ? base / 100 * p->max_stretch_percent : ALONE_NS;
}

void td_pace_spend(struct td_pace *p, uint64_t ns)
{
    p->left_ns -= p->left_ns < ns ? p->left_ns : ns;
}

uint32_t td_pace_rows(const struct td_pace *p, uint32_t n_prompt)
{
    bool is_known = p->knows_base && p->row_ns > 0;
    uint32_t least = is_known ? LEAST_ROWS : FIRST_ROWS;
    uint64_t n = is_known ? p->left_ns / p->row_ns : 0;

    if (!p->has_limit)
        return UINT32_MAX;
    least -= least < n_prompt ? least : n_prompt;
    n = n < least ? least : n;
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

void td_pace_spend_rows(struct td_pace *p, uint32_t n)
{
    if (p->has_limit)
        td_pace_spend(p, n * p->row_ns);
}

uint32_t td_pace_moves(const struct td_pace *p, uint64_t each_ns)
{
    uint64_t n = each_ns ? p->left_ns / each_ns : p->has_limit ? FIRST_MOVES : UINT32_MAX;

    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

void td_pace_learn_drafts(struct td_pace *p, uint32_t n_rows, uint64_t ns)
{
    if (n_rows >= FIRST_ROWS && ns)
        p->draft_row_ns = approach(p->draft_row_ns, ns / n_rows + 1);
}

uint32_t td_pace_draft_limit(const struct td_pace *p, uint32_t n_decode)
{
    uint64_t base = decode_ns(p, n_decode), n = FIRST_ROWS;

    if (p->max_stretch_percent == 0 || n_decode == 0)
        return UINT32_MAX;
    if (base > 0 && p->draft_row_ns > 0)
        n = base / 100 * p->max_stretch_percent / p->draft_row_ns;
    return n < FIRST_ROWS ? FIRST_ROWS : n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

bool td_pace_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t block_tokens)
{
    uint64_t *read_ns = &p->read_ns[tier];

    if (*read_ns == 0 || p->row_ns == 0 || *read_ns <= p->row_ns * block_tokens)
        return true;
    *read_ns -= *read_ns / 64;
    return false;
}
