/* Rotation frequencies of a model's positions (RoPE and its long-context scalings). Pure; the same bits everywhere. */
#ifndef TD_SHARD_ROPE_H
#define TD_SHARD_ROPE_H

#include "shard/spec.h"

/* freq [head_dim / 2]: radians per token; *scale multiplies cosine and sine (YaRN's attention factor, else 1).
 * Scalings as Hugging Face transformers defines them: linear; llama3 (Llama 3.1); yarn (Peng et al. 2023, section 3). */
void td_rope_frequencies(const struct td_spec *spec, double *freq, double *scale);

#endif
