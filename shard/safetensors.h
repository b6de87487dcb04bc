/* Reads safetensors weights over read-only mappings: one file, or the files that a model directory's index names.
 * Every length, shape and offset is checked at open; after that all access is in bounds. Read-only after open, any
 * thread. Knows no model. Format: the safetensors README (8-byte header length, JSON header, one buffer without
 * holes). */
#ifndef TD_SHARD_SAFETENSORS_H
#define TD_SHARD_SAFETENSORS_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "kernels/base/tensor.h"

#include <stdbool.h>
#include <stddef.h>

struct td_safetensors;
struct td_mapfile;

struct td_safetensors_tensor {
    struct td_str name;    /* NUL-terminated; borrows until close */
    const char *type_name; /* as the file writes it, "BF16": static */
    bool loadable;         /* `dtype` is valid */
    enum td_dtype dtype;
    int n_dims;                     /* 0 for a scalar; more than 4 are folded into dim[0] */
    size_t dim[TD_TENSOR_MAX_DIMS]; /* outermost first, unused are 1 */
    size_t bytes;
    const void *data; /* borrows until close; lies wholly in its file; may be unaligned */
    size_t file;      /* index of its file */
};

/* One file. TD_NOT_FOUND, TD_IO, TD_CORRUPT, TD_TOO_LARGE (header over 100 MB), TD_NO_MEMORY; the message names the
 * tensor. On success *st is owned by the caller. */
enum td_status td_safetensors_open(const char *path, struct td_safetensors **st,
                                   struct td_err *err);
/* The same over memory that the caller keeps until close (tests, fuzzers). */
enum td_status td_safetensors_open_memory(const void *data, size_t size, struct td_safetensors **st,
                                          struct td_err *err);
/* A directory: model.safetensors, else the files of model.safetensors.index.json. Every tensor must lie in the file
 * that the index says, no file may hold one that the index does not know, and file names may not leave `dir`. */
enum td_status td_safetensors_open_dir(const char *dir, struct td_safetensors **st,
                                       struct td_err *err);
void td_safetensors_close(struct td_safetensors *st); /* NULL is legal */

size_t td_safetensors_n_tensors(const struct td_safetensors *st);
/* In the order of the files' names, then of the bytes in the file. */
const struct td_safetensors_tensor *td_safetensors_tensor_at(const struct td_safetensors *st,
                                                             size_t i);
const struct td_safetensors_tensor *td_safetensors_find(const struct td_safetensors *st,
                                                        const char *name);

size_t td_safetensors_n_files(const struct td_safetensors *st);
const char *td_safetensors_file_name(const struct td_safetensors *st,
                                     size_t file); /* within the directory */
const struct td_mapfile *td_safetensors_mapfile(const struct td_safetensors *st, size_t file);
size_t td_safetensors_header_bytes(const struct td_safetensors *st,
                                   size_t file); /* length word included */
/* "BF16": how files write `type`; NULL when they have none. */
const char *td_safetensors_type_name(enum td_dtype type);
struct td_str
td_safetensors_index(const struct td_safetensors *st); /* index text, empty when there is none */

#endif
