/* Reduces the JSON texts of a Hugging Face model directory to a td_spec. Knows LlamaForCausalLM and
 * Qwen3ForCausalLM; everything that would change the arithmetic and is not built is refused by name.
 * Stateless, any thread. */
#ifndef TD_SHARD_HFCONFIG_H
#define TD_SHARD_HFCONFIG_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "shard/int4.h"
#include "shard/spec.h"

/* Fills everything of *spec but `dtype` of the weights' bytes, which it sets to what the config claims (or F32).
 * `generation` and `tokenizer` (tokenizer_config.json) may be empty. The end-of-text ids are those of the generation
 * config and of config.json together; add_bos is only what tokenizer_config.json says. *int4 is the form of matrices of 4-bit
 * integers, where there may be some. Not validated as a whole.
 * TD_CORRUPT or TD_UNSUPPORTED with the field, its value and what was expected. */
enum td_status td_hfconfig_read(struct td_str config, struct td_str generation,
                                struct td_str tokenizer, struct td_spec *spec,
                                enum td_int4_form *int4, struct td_err *err);

/* The chat template in tokenizer_config.json: a string, or the entry named "default" of a list. *out is owned by the
 * caller (free), NULL when there is none. TD_CORRUPT when the text is no JSON object. */
enum td_status td_hfconfig_chat_template(struct td_str tokenizer, char **out, struct td_err *err);

#endif
