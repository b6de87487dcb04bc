/* Writes the safetensors files of a Hugging Face directory: first the list of tensors, then their bytes in any order, from
 * any thread; one file, or several with an index where one would be too large. Each file appears when it is whole.
 * Format: the safetensors README, and the index that transformers writes. */
#ifndef TD_SHARD_STWRITE_H
#define TD_SHARD_STWRITE_H

#include "kernels/base/err.h"
#include "kernels/base/tensor.h"

#include <stdint.h>

struct td_stwrite;

/* On success *w is owned by the caller. A file has at most file_bytes of tensors, or one tensor. TD_NO_MEMORY. */
enum td_status td_stwrite_open(uint64_t file_bytes, struct td_stwrite **w, struct td_err *err);
void td_stwrite_close(struct td_stwrite *w); /* removes what was not finished; NULL is legal */

/* Adds a tensor with dims outermost first; its *index is 0 and up. Names are printable ASCII without quotes.
 * TD_UNSUPPORTED for a type that the format does not have, TD_NO_MEMORY. */
enum td_status td_stwrite_tensor(struct td_stwrite *w, const char *name, enum td_dtype type,
                                 int n_dims, const size_t *dim, size_t *index, struct td_err *err);
/* Creates the files in `dir`, of their final sizes, with their heads, and the index if there is to be one. */
enum td_status td_stwrite_start(struct td_stwrite *w, const char *dir, struct td_err *err);
/* Writes `bytes` of a tensor from its byte `at` on. Any thread; may block. */
enum td_status td_stwrite_put(const struct td_stwrite *w, size_t tensor, uint64_t at,
                              const void *data, size_t bytes, struct td_err *err);
/* All bytes are there: puts the files in their places. */
enum td_status td_stwrite_finish(struct td_stwrite *w, struct td_err *err);

#endif
