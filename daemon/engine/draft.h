/* Drafts for speculative decoding by prompt lookup: what followed the last time that the sequence ended as it does now.
 * (Saxena 2023, "Prompt Lookup Decoding".) Pure; how many tokens a sequence gets drafted follows how many were right. A draft is only
 * a guess: the verifying step draws every token as it would without, so no draft changes an answer. */
#ifndef TD_DAEMON_ENGINE_DRAFT_H
#define TD_DAEMON_ENGINE_DRAFT_H

#include <stdint.h>

/* How far a sequence is trusted; all zero at first. */
struct td_draft {
    uint32_t len;    /* tokens to draft next */
    uint32_t misses; /* whole drafts that were wrong, one after the other */
    uint32_t pause;  /* steps until the next try */
};

/* Writes at most `max` tokens that may follow ids [n] into `out`; returns how many. Called once for each step. */
uint32_t td_draft_propose(struct td_draft *d, const uint32_t *ids, uint32_t n, uint32_t max,
                          uint32_t *out);
/* n_right of n_drafted > 0 tokens were as drawn. */
void td_draft_judge(struct td_draft *d, uint32_t n_drafted, uint32_t n_right);

#endif
