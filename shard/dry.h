/* DRY, "don't repeat yourself" (p-e-w, text-generation-webui pull request 5677; the fields are llama-server's): an id
 * that would lengthen a repetition of what was said before is punished, exponentially in the repetition's length. One
 * per sequence, owned by its sampler; rebuilt by feeding the same ids again. Nothing is allocated after open. */
#ifndef TD_SHARD_DRY_H
#define TD_SHARD_DRY_H

#include "shard/sampling.h"

#include <stdint.h>

struct td_dry;

/* For params with td_sampling_has_dry; the set of breakers is copied. NULL: no memory. */
struct td_dry *td_dry_open(const struct td_sampling *params, uint32_t n_vocab);
void td_dry_close(struct td_dry *d); /* NULL is legal */
/* The next id of the prompt or the output. */
void td_dry_accept(struct td_dry *d, uint32_t id);

/* Between begin and end the ids are known that would lengthen a repetition. Looks over the window once: linear in it.
 *
 * In the last dry_penalty_last_n ids, n(x) is the length of the longest sequence that stands right before an occurrence
 * of x and also ends the text, without a breaker in it. If n(x) >= dry_allowed_length and x is no breaker itself, its
 * logit loses dry_multiplier * dry_base^(n(x) - dry_allowed_length). */
void td_dry_begin(struct td_dry *d);
/* z [n]: logits of ids first_id, first_id + 1, ... */
void td_dry_apply(const struct td_dry *d, uint32_t first_id, uint32_t n, float *z);
void td_dry_end(struct td_dry *d);

#endif
