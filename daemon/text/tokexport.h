/* Writes a tokenizer that was read from tokenizer.json as GGUF metadata, the keys tokenizer.ggml.* (ggml's GGUF
 * specification). What has no name there is refused by name. Stateless, any thread. */
#ifndef TD_DAEMON_TEXT_TOKEXPORT_H
#define TD_DAEMON_TEXT_TOKEXPORT_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

struct td_ggufwrite;
struct td_spec;
struct td_tokenizer;

/* `tok` was opened from `tokenizer_json`; `spec` says how many rows the embedding has, which ids end a text and which
 * begins one. Appends to *notes a line for everything that a GGUF file cannot say and that is left out. TD_UNSUPPORTED names
 * what a GGUF file has no name for, a pre-tokenizer above all; TD_CORRUPT, TD_NO_MEMORY. */
enum td_status td_tokexport_gguf(const struct td_tokenizer *tok, struct td_str tokenizer_json,
                                 const struct td_spec *spec, struct td_ggufwrite *w,
                                 struct td_bytes *notes, struct td_err *err);

/* Whether both give the same ids under `flags` (of td_tokenizer_encode) for texts of many kinds: languages, digits, white
 * space, code, and `extra`. TD_UNSUPPORTED shows the text where they differ. */
enum td_status td_tokexport_compare(const struct td_tokenizer *a, const struct td_tokenizer *b,
                                    struct td_str extra, unsigned flags, struct td_err *err);

#endif
