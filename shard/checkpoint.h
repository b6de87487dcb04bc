/* One view of a model on disk, whatever its format: a Hugging Face directory or a GGUF file.
 * Owns the mappings; hands out borrowed tensor views. Opening reads headers only; pages of weights are touched
 * by whoever reads a tensor. Read-only after open: any thread may call the const functions. */
#ifndef TD_SHARD_CHECKPOINT_H
#define TD_SHARD_CHECKPOINT_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "kernels/base/tensor.h"
#include "shard/spec.h"

#include <stdbool.h>

struct td_checkpoint;
struct td_gguf;
struct td_int4;

/* A weight by its role, not by any file's name for it. Layer roles take a layer index. Shapes are [out x in]. */
enum td_role {
    TD_ROLE_EMBED,      /* [n_vocab x d_model] */
    TD_ROLE_HEAD,       /* [n_vocab x d_model]; absent when tied */
    TD_ROLE_FINAL_NORM, /* [d_model] */
    TD_ROLE_ATTN_NORM,  /* [d_model] */
    TD_ROLE_Q,          /* [n_heads * head_dim x d_model] */
    TD_ROLE_K,          /* [n_kv_heads * head_dim x d_model] */
    TD_ROLE_V,          /* [n_kv_heads * head_dim x d_model] */
    TD_ROLE_O,          /* [d_model x n_heads * head_dim] */
    TD_ROLE_Q_NORM,     /* [head_dim] */
    TD_ROLE_K_NORM,     /* [head_dim] */
    TD_ROLE_FFN_NORM,   /* [d_model] */
    TD_ROLE_GATE,       /* [d_ff x d_model] */
    TD_ROLE_UP,         /* [d_ff x d_model] */
    TD_ROLE_DOWN,       /* [d_model x d_ff] */
    TD_N_ROLES
};

/* Opens `path`: a directory with config.json and *.safetensors, or a file that begins with "GGUF". Maps the files,
 * checks every length and offset, fills and validates the spec, and checks that each weight the architecture needs
 * is there with the expected shape and a supported type, and that there is no weight it would leave unused. On
 * success *ck is owned by the caller (close it). TD_NOT_FOUND, TD_IO, TD_CORRUPT, TD_UNSUPPORTED, TD_TOO_LARGE,
 * TD_NO_MEMORY; the message names the file, the field or tensor, what was found and what was expected. */
enum td_status td_checkpoint_open(const char *path, struct td_checkpoint **ck, struct td_err *err);
void td_checkpoint_close(struct td_checkpoint *ck); /* NULL is legal */

const char *td_checkpoint_path(const struct td_checkpoint *ck); /* as opened */
const struct td_spec *td_checkpoint_spec(const struct td_checkpoint *ck);

/* The weight of `role` (layer 0 for the three that are not per layer). The view may be unaligned; it has no data where rows are made
 * from td_checkpoint_int4. TD_NOT_FOUND when the model has none (a tied head, q/k norms of Llama), TD_INVALID for a layer or role that
 * there is not. */
enum td_status td_checkpoint_weight(const struct td_checkpoint *ck, enum td_role role,
                                    uint32_t layer, struct td_tensor *out, struct td_err *err);
/* For a weight of F8_E4M3: its scales as the kernels take them, out [n_rows x ceil(n_cols / 128)] for rows from row0 and
 * columns from col0, a multiple of 128. TD_INVALID for a weight of another type or a range that it does not have,
 * TD_CORRUPT for a scale that is not finite. */
enum td_status td_checkpoint_scales(const struct td_checkpoint *ck, enum td_role role,
                                    uint32_t layer, uint32_t row0, uint32_t n_rows, uint32_t col0,
                                    uint32_t n_cols, float *out, struct td_err *err);
/* What the rows of a weight without data are made from (int4.h), borrowed until close; NULL for every other weight. */
const struct td_int4 *td_checkpoint_int4(const struct td_checkpoint *ck, enum td_role role,
                                         uint32_t layer);
/* A short name of the role, "ffn_up": static. */
const char *td_role_name(enum td_role role);
/* The file's own name of that weight, for messages ("model.layers.3.mlp.up_proj.weight"); returns `out`. */
const char *td_checkpoint_weight_name(const struct td_checkpoint *ck, enum td_role role,
                                      uint32_t layer, char *out, size_t out_bytes);

/* The name that GGUF files have for it, whatever this one is; returns `out`. */
const char *td_role_gguf_name(enum td_role role, uint32_t layer, char *out, size_t out_bytes);
/* True for the roles of one dimension. */
bool td_role_is_norm(enum td_role role);

/* Tells the kernel that the pages of `bytes` at `data` (inside a mapping) are not needed any more: whole pages inside
 * the range leave our resident memory and stay in the page cache; reading them again is legal. */
void td_checkpoint_release(const struct td_checkpoint *ck, const void *data, size_t bytes);

/* Texts that lie beside the weights; empty slices when absent. Borrowed until close.
 * For GGUF the tokenizer comes from td_checkpoint_gguf's metadata instead. */
struct td_str td_checkpoint_config(const struct td_checkpoint *ck); /* config.json */
struct td_str td_checkpoint_tokenizer_json(const struct td_checkpoint *ck);
struct td_str
td_checkpoint_tokenizer_config(const struct td_checkpoint *ck); /* tokenizer_config.json */
struct td_str td_checkpoint_generation_config(const struct td_checkpoint *ck);
struct td_str td_checkpoint_chat_template(
    const struct td_checkpoint *ck); /* chat_template.jinja, else the string in
                                                                              tokenizer_config.json or GGUF metadata */
const struct td_gguf *td_checkpoint_gguf(const struct td_checkpoint *ck); /* NULL for a directory */

/* The hash that all ranks must share: XXH3-128 over headers, index, config, tokenizer, file sizes and 64 sampled 4 KiB
 * blocks per file; with `every_byte` over all bytes. Writes 32 lower-case hex digits and a NUL. Reads files: may block. */
enum td_status td_checkpoint_hash(const struct td_checkpoint *ck, bool every_byte, char out[33],
                                  struct td_err *err);

/* Visits every tensor of the files (for `inspect`), in file order; `type_name` also for types that cannot be loaded. */
struct td_checkpoint_entry {
    struct td_str name;
    const char *type_name;
    int n_dims;
    size_t dim[TD_TENSOR_MAX_DIMS];
    size_t bytes;
};
typedef void td_checkpoint_visit_fn(const struct td_checkpoint_entry *entry, void *user);
void td_checkpoint_visit(const struct td_checkpoint *ck, td_checkpoint_visit_fn *fn, void *user);

#endif
