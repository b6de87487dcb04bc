/* Reduces a GGUF file's metadata to a td_spec and back, for the architectures "llama" and "qwen3"; everything that would
 * change the arithmetic and is not built is refused by name. Stateless, any thread. */
#ifndef TD_SHARD_GGUFSPEC_H
#define TD_SHARD_GGUFSPEC_H

#include "kernels/base/err.h"
#include "shard/spec.h"

struct td_gguf;
struct td_ggufwrite;

/* Fills everything of *spec but `dtype` and rope.freq_factors. The head counts as tied when there is no
 * output.weight. End-of-text ids are eos, eot and eom of the tokenizer's metadata; add_bos is what the metadata says,
 * else what files of that tokenizer mean by saying nothing. Not validated as a whole. TD_CORRUPT or TD_UNSUPPORTED
 * with the key, its value and what was expected. */
enum td_status td_ggufspec_read(const struct td_gguf *g, struct td_spec *spec, struct td_err *err);

/* The reverse, from any checkpoint's spec: the keys general.architecture and <architecture>.*; not the ids, which are the
 * tokenizer's. What F32 does not hold exactly is rounded to it, as the format wants. */
void td_ggufspec_write(const struct td_spec *spec, struct td_ggufwrite *w);
/* Where the spec's rotation is scaled as llama3: true, and the divisors factors [head_dim / 2] of rope_freqs.weight.
 * `scratch` holds head_dim numbers. */
bool td_ggufspec_freq_factors(const struct td_spec *spec, double *scratch, float *factors);

#endif
