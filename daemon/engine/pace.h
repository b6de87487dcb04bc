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
    uint64_t read_ns[TD_OFFLOAD_TIERS]; /* of one block from outside; 0: not seen */
    uint64_t draft_row_ns;              /* of a draft model, of many; 0: not seen */
};

void td_pace_init(struct td_pace *p, uint32_t max_stretch_percent);
/* A step of n_decode rows of running answers and n_prompt rows of prompts took `step_ns` (0: not known). */
void td_pace_learn(struct td_pace *p, uint32_t n_decode, uint32_t n_prompt, uint64_t step_ns);
/* n blocks were read from a tier in `ns` altogether. */
void td_pace_learn_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t n, uint64_t ns);
/* Prompt rows for a step with n_decode rows of running answers: enough to go on, UINT32_MAX where there is no limit. */
uint32_t td_pace_limit(const struct td_pace *p, uint32_t n_decode);
/* Blocks that such a step may read back: at least one. */
uint32_t td_pace_read_limit(const struct td_pace *p, uint32_t n_decode);
/* The draft model took `ns` for n_rows rows. */
void td_pace_learn_drafts(struct td_pace *p, uint32_t n_rows, uint64_t ns);
/* Rows of prompts that the draft model may compute before such a step. */
uint32_t td_pace_draft_limit(const struct td_pace *p, uint32_t n_decode);
/* Whether a block of so many tokens is read from there rather than computed, as far as is known. A verdict against reading
 * fades, so that it is tried again some time. */
bool td_pace_reads(struct td_pace *p, enum td_offload_tier tier, uint32_t block_tokens);

#endif
