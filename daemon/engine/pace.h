/* How many prompt rows a step may carry beside answers that run, or KV blocks it may read back, so that these do not stall; and
 * whether reading a block is faster than computing it. Learnt from the steps' times.
 * A pure estimate in whole nanoseconds; reads no clock. One writer: rank 0's compute thread. */
#ifndef TD_DAEMON_ENGINE_PACE_H
#define TD_DAEMON_ENGINE_PACE_H

#include "shard/offload.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_PACE_BUCKETS = 17 };

struct td_pace {
    uint32_t max_stretch_percent; /* of a step without prompts; 0: no limit */
    uint64_t decode_ns
        [TD_PACE_BUCKETS]; /* of such a step, by the power of two that its rows reach; 0: not seen */
    uint64_t row_ns;       /* what a prompt row adds; 0: not seen */
    uint64_t read_ns[TD_OFFLOAD_TIERS];  /* of one block from there; 0: not seen */
    uint64_t write_ns[TD_OFFLOAD_TIERS]; /* of one block to there; 0: not seen */
    uint64_t draft_row_ns;               /* of a draft model, of many; 0: not seen */
    /* Of the step that is being planned: */
    bool has_limit;
    bool knows_base;  /* how long its answers take */
    uint64_t left_ns; /* that prompts and moves of blocks may still add */
};

void td_pace_init(struct td_pace *p, uint32_t max_stretch_percent);
/* A step of n_decode rows of running answers and n_prompt rows of prompts took `step_ns` (0: not known). */
void td_pace_learn(struct td_pace *p, uint32_t n_decode, uint32_t n_prompt, uint64_t step_ns);
/* n blocks were read from a tier, or written to it, in `ns` altogether. One measurement far off counts as four times what is known. */
void td_pace_learn_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t n, uint64_t ns);
void td_pace_learn_writes(struct td_pace *p, enum td_offload_tier tier, uint32_t n, uint64_t ns);

/* A step with n_decode rows of running answers is planned: what may be beside them is dealt out below. */
void td_pace_begin(struct td_pace *p, uint32_t n_decode);
/* Rows that prompts may still have, of which they have n_prompt: enough to go on, UINT32_MAX where there is no limit. */
uint32_t td_pace_rows(const struct td_pace *p, uint32_t n_prompt);
void td_pace_spend_rows(struct td_pace *p, uint32_t n);
/* Moves of each_ns (0: not known) that still fit. Without answers a step may move for a second. */
uint32_t td_pace_moves(const struct td_pace *p, uint64_t each_ns);
void td_pace_spend(struct td_pace *p, uint64_t ns);

/* The draft model took `ns` for n_rows rows. */
void td_pace_learn_drafts(struct td_pace *p, uint32_t n_rows, uint64_t ns);
/* Rows of prompts that the draft model may compute before such a step. */
uint32_t td_pace_draft_limit(const struct td_pace *p, uint32_t n_decode);
/* Whether a block of so many tokens is read from there rather than computed, as far as is known. A verdict against reading
 * fades, so that it is tried again some time. */
bool td_pace_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t block_tokens);

#endif
