/* Reads a GGUF file (version 2 or 3, little-endian) over a read-only mapping: its metadata and its list of tensors.
 * Every count, length, offset and product is checked against the file at open; after that all access is in bounds.
 * Knows no model: what the keys mean is decided by the callers. Read-only after open, any thread.
 * Format: the GGUF specification of ggml (docs/gguf.md there). */
#ifndef TD_SHARD_GGUF_H
#define TD_SHARD_GGUF_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "kernels/base/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_gguf;
struct td_mapfile;

/* Value types, numbered as in the file. */
enum td_gguf_type {
    TD_GGUF_U8 = 0,
    TD_GGUF_I8,
    TD_GGUF_U16,
    TD_GGUF_I16,
    TD_GGUF_U32,
    TD_GGUF_I32,
    TD_GGUF_F32,
    TD_GGUF_BOOL,
    TD_GGUF_STRING,
    TD_GGUF_ARRAY,
    TD_GGUF_U64,
    TD_GGUF_I64,
    TD_GGUF_F64,
    TD_GGUF_N_TYPES
};

/* One metadata pair. All pointers borrow from the file until close. */
struct td_gguf_kv {
    struct td_str key;      /* well-formed UTF-8, no NUL */
    enum td_gguf_type type; /* TD_GGUF_ARRAY: an array of `elem` */
    enum td_gguf_type elem; /* type of the elements; of the value itself when it is no array */
    size_t n;               /* elements; 1 when it is no array */
    const unsigned char
        *raw; /* first element, unaligned; strings have their 8-byte length in front */
    const uint64_t
        *str_at; /* [n] byte offset of each string's length from `raw`; NULL unless strings */
};

/* One tensor. */
struct td_gguf_tensor {
    struct td_str name;    /* borrows until close */
    uint32_t ggml_type;    /* as numbered in the file */
    const char *type_name; /* "Q4_K": static */
    bool loadable;         /* `dtype` is valid */
    enum td_dtype dtype;
    int n_dims; /* at least 1 */
    size_t dim
        [TD_TENSOR_MAX_DIMS]; /* outermost first: the reverse of the file's order; unused are 1 */
    size_t bytes;
    const void
        *data; /* borrows until close; lies wholly in the file; NULL when !td_gguf_has_data() */
};

/* Maps and checks the file. On success *g is owned by the caller. TD_IO, TD_CORRUPT, TD_UNSUPPORTED (version,
 * big-endian), TD_NO_MEMORY; the message names the key or tensor. */
enum td_status td_gguf_open(const char *path, struct td_gguf **g, struct td_err *err);
/* The same over memory that the caller keeps until close (tests, fuzzers). */
enum td_status td_gguf_open_memory(const void *data, size_t size, struct td_gguf **g,
                                   struct td_err *err);
void td_gguf_close(struct td_gguf *g); /* NULL is legal */

/* False for a file that ends with its headers although it lists tensors with bytes: good enough to plan and to
 * inspect. A file that holds only a part of the bytes is not opened. */
bool td_gguf_has_data(const struct td_gguf *g);
uint32_t td_gguf_version(const struct td_gguf *g);
size_t
td_gguf_header_bytes(const struct td_gguf *g); /* from the first byte to the first tensor's data */
const struct td_mapfile *td_gguf_mapfile(const struct td_gguf *g);

/* Metadata. `find` gives NULL when the key is absent. The typed getters answer TD_NOT_FOUND for an absent key and
 * TD_CORRUPT for a value of another type or out of the asked range; both name the key. Integer getters take every
 * integer type whose value fits. */
size_t td_gguf_n_kv(const struct td_gguf *g);
const struct td_gguf_kv *td_gguf_kv_at(const struct td_gguf *g, size_t i); /* in file order */
const struct td_gguf_kv *td_gguf_find(const struct td_gguf *g, const char *key);
enum td_status td_gguf_get_u32(const struct td_gguf *g, const char *key, uint32_t *out,
                               struct td_err *err);
enum td_status td_gguf_get_u64(const struct td_gguf *g, const char *key, uint64_t *out,
                               struct td_err *err);
enum td_status td_gguf_get_i64(const struct td_gguf *g, const char *key, int64_t *out,
                               struct td_err *err);
enum td_status td_gguf_get_f32(const struct td_gguf *g, const char *key, float *out,
                               struct td_err *err); /* or F64 */
enum td_status td_gguf_get_bool(const struct td_gguf *g, const char *key, bool *out,
                                struct td_err *err);
enum td_status td_gguf_get_str(const struct td_gguf *g, const char *key, struct td_str *out,
                               struct td_err *err);
/* An array whose elements are `elem`; read it with the td_gguf_elem_ functions below, i < kv->n. */
enum td_status td_gguf_get_array(const struct td_gguf *g, const char *key, enum td_gguf_type elem,
                                 const struct td_gguf_kv **out, struct td_err *err);

/* Element i of a value, O(1). The caller has checked kv->elem: a string; F32 or F64; any integer type or bool
 * (a U64 above INT64_MAX is given as INT64_MAX). */
struct td_str td_gguf_elem_str(const struct td_gguf_kv *kv, size_t i);
float td_gguf_elem_f32(const struct td_gguf_kv *kv, size_t i);
int64_t td_gguf_elem_i64(const struct td_gguf_kv *kv, size_t i);

/* Tensors. `find_tensor` gives NULL when there is none of that name. */
size_t td_gguf_n_tensors(const struct td_gguf *g);
const struct td_gguf_tensor *td_gguf_tensor_at(const struct td_gguf *g,
                                               size_t i); /* in file order */
const struct td_gguf_tensor *td_gguf_find_tensor(const struct td_gguf *g, const char *name);

const char *td_gguf_type_name(enum td_gguf_type type); /* "u32", "string" */
size_t td_gguf_type_bytes(enum td_gguf_type type);     /* of one value; 0 for strings and arrays */
/* The number that files give `type`; false when they have none (F8_E4M3). */
bool td_gguf_number_of(enum td_dtype type, uint32_t *number);

#endif
