/* Repetition, presence and frequency penalties: how often each id was seen in the window that they look back over. One
 * per sequence, owned by its sampler; rebuilt by feeding the same ids again. Nothing is allocated after open. */
#ifndef TD_SHARD_PENALTY_H
#define TD_SHARD_PENALTY_H

#include "shard/sampling.h"

#include <stdbool.h>
#include <stdint.h>

struct td_penalty;

/* For params with td_sampling_has_penalties. NULL: no memory. */
struct td_penalty *td_penalty_open(const struct td_sampling *params, uint32_t n_vocab);
void td_penalty_close(struct td_penalty *p); /* NULL is legal */
/* One id of the prompt, or, after all of those, of the output. Ids outside the vocabulary take up a place in the window
 * and are never punished. */
void td_penalty_accept(struct td_penalty *p, uint32_t id, bool is_output);
/* z [n]: logits of ids first_id, first_id + 1, ... */
void td_penalty_apply(const struct td_penalty *p, uint32_t first_id, uint32_t n, float *z);

#endif
