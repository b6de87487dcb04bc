/* Drafts for speculative decoding: how many a sequence gets follows how many were right; and prompt lookup: what followed the last
 * time that the sequence ended as it does now (Saxena 2023, "Prompt Lookup Decoding"). Pure. A draft is only a guess: the verifying
 * step draws every token as it would without, so no draft changes an answer. */
#ifndef TD_DAEMON_ENGINE_DRAFT_H
#define TD_DAEMON_ENGINE_DRAFT_H

#include <stdint.h>

/* Tokens that a step guesses ahead where a draft model is given and no number. */
enum { TD_DRAFT_DEFAULT_TOKENS = 4 };

/* How far a sequence is trusted; all zero at first. */
struct td_draft {
    uint32_t len;    /* tokens to draft next */
    uint32_t misses; /* whole drafts that were wrong, one after the other */
    uint32_t pause;  /* steps until the next try */
};

/* How many tokens may be guessed now, `max` at most. Called once for each step. */
uint32_t td_draft_wish(struct td_draft *d, uint32_t max);
/* Writes at most `n_wish` tokens that may follow ids [n] into `out`; returns how many. */
uint32_t td_draft_lookup(const uint32_t *ids, uint32_t n, uint32_t n_wish, uint32_t *out);
/* n_right of n_drafted > 0 tokens were as drawn. */
void td_draft_judge(struct td_draft *d, uint32_t n_drafted, uint32_t n_right);

#endif
