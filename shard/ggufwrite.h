/* Writes a GGUF file (version 3, little-endian, aligned to 32): first all metadata and the list of tensors, then the
 * tensors' bytes in any order, from any thread. The file appears under its name when it is whole.
 * Format: the GGUF specification of ggml (docs/gguf.md there). */
#ifndef TD_SHARD_GGUFWRITE_H
#define TD_SHARD_GGUFWRITE_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "kernels/base/tensor.h"
#include "shard/gguf.h"

struct td_ggufwrite;

/* On success *w is owned by the caller. TD_NO_MEMORY. */
enum td_status td_ggufwrite_open(struct td_ggufwrite **w, struct td_err *err);
/* Removes what was not finished; NULL is legal. */
void td_ggufwrite_close(struct td_ggufwrite *w);

/* Metadata, in the order of the calls; a key must not come twice. A failure (memory, a bad key) is kept and reported by
 * td_ggufwrite_start. `value` of td_ggufwrite_values is `n` little-endian elements of `elem`, no strings. */
void td_ggufwrite_u32(struct td_ggufwrite *w, const char *key, uint32_t value);
void td_ggufwrite_f32(struct td_ggufwrite *w, const char *key, float value);
void td_ggufwrite_bool(struct td_ggufwrite *w, const char *key, bool value);
void td_ggufwrite_str(struct td_ggufwrite *w, const char *key, struct td_str value);
void td_ggufwrite_values(struct td_ggufwrite *w, const char *key, bool is_array,
                         enum td_gguf_type elem, const void *value, size_t n);
void td_ggufwrite_strs(struct td_ggufwrite *w, const char *key, const struct td_str *value,
                       size_t n);
void td_ggufwrite_copy(struct td_ggufwrite *w, const struct td_gguf_kv *kv); /* as it was read */

/* Adds a tensor with dims outermost first; returns its index, 0 and up. A type that GGUF does not have, a row that is no
 * whole number of blocks and a name over 64 bytes are kept as a failure. */
size_t td_ggufwrite_tensor(struct td_ggufwrite *w, const char *name, enum td_dtype type, int n_dims,
                           const size_t *dim);

/* Appends the head as it is so far to `out`: with no bytes of tensors it is a file to look at (td_gguf_open_memory). Reports
 * what failed before. */
enum td_status td_ggufwrite_head(const struct td_ggufwrite *w, struct td_bytes *out,
                                 struct td_err *err);
/* Creates the file, of its final size, and writes its head. Nothing can be added afterwards. */
enum td_status td_ggufwrite_start(struct td_ggufwrite *w, const char *path, struct td_err *err);
/* Bytes of the whole file, once started. */
uint64_t td_ggufwrite_file_bytes(const struct td_ggufwrite *w);
/* Writes `bytes` of a tensor from its byte `at` on. Any thread; may block. */
enum td_status td_ggufwrite_put(const struct td_ggufwrite *w, size_t tensor, uint64_t at,
                                const void *data, size_t bytes, struct td_err *err);
/* All bytes are there: puts the file in its place. */
enum td_status td_ggufwrite_finish(struct td_ggufwrite *w, struct td_err *err);

#endif
