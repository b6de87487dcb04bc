#include "shard/ggufwrite.h"

#include "shard/outfile.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 32, MAX_NAME_BYTES = 64, MAX_KEY_BYTES = 65535 };

struct td_ggufwrite {
    enum td_status failed; /* the first failure while the head was built */
    struct td_err err;
    struct td_bytes pairs, list; /* the head's two parts, without their counts */
    uint64_t n_pairs, n_tensors;
    uint64_t *offset; /* [n_tensors] owned, from the start of the data */
    uint64_t *bytes;  /* [n_tensors] owned */
    uint64_t data_bytes;
    uint64_t data_start; /* byte of the file, once started */
    struct td_outfile file;
};

static uint64_t aligned(uint64_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

enum td_status td_ggufwrite_open(struct td_ggufwrite **out, struct td_err *err)
{
    struct td_ggufwrite *w = calloc(1, sizeof *w);

    if (!w)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a GGUF writer");
    w->file.fd = -1;
    *out = w;
    return TD_OK;
}

void td_ggufwrite_close(struct td_ggufwrite *w)
{
    if (!w)
        return;
    td_outfile_deinit(&w->file);
    td_bytes_deinit(&w->pairs);
    td_bytes_deinit(&w->list);
    free(w->offset);
    free(w->bytes);
    free(w);
}

/* ---- the head ---- */

static void put(struct td_ggufwrite *w, struct td_bytes *to, const void *data, size_t bytes)
{
    if (!w->failed && bytes && td_bytes_append(to, data, bytes))
        w->failed = td_err_set(&w->err, TD_NO_MEMORY, "no memory for the head of a GGUF file");
}

static void put_u32(struct td_ggufwrite *w, struct td_bytes *to, uint32_t value)
{
    put(w, to, &value, sizeof value);
}

static void put_u64(struct td_ggufwrite *w, struct td_bytes *to, uint64_t value)
{
    put(w, to, &value, sizeof value);
}

static void put_str(struct td_ggufwrite *w, struct td_bytes *to, struct td_str s)
{
    put_u64(w, to, s.len);
    put(w, to, s.ptr, s.len);
}

/* Key, type and, of an array, its length. */
static void begin_pair(struct td_ggufwrite *w, struct td_str key, bool is_array,
                       enum td_gguf_type elem, size_t n)
{
    if (!w->failed && (key.len == 0 || key.len > MAX_KEY_BYTES || (!is_array && n != 1)))
        w->failed = td_err_set(&w->err, TD_INVALID,
                               "a GGUF key of %zu bytes with %zu values; expected 1 to %d bytes",
                               key.len, n, MAX_KEY_BYTES);
    put_str(w, &w->pairs, key);
    put_u32(w, &w->pairs, is_array ? TD_GGUF_ARRAY : elem);
    if (is_array) {
        put_u32(w, &w->pairs, elem);
        put_u64(w, &w->pairs, n);
    }
    w->n_pairs++;
}

void td_ggufwrite_values(struct td_ggufwrite *w, const char *key, bool is_array,
                         enum td_gguf_type elem, const void *value, size_t n)
{
    begin_pair(w, td_str_from(key), is_array, elem, n);
    put(w, &w->pairs, value, n * td_gguf_type_bytes(elem));
}

void td_ggufwrite_u32(struct td_ggufwrite *w, const char *key, uint32_t value)
{
    td_ggufwrite_values(w, key, false, TD_GGUF_U32, &value, 1);
}

void td_ggufwrite_f32(struct td_ggufwrite *w, const char *key, float value)
{
    td_ggufwrite_values(w, key, false, TD_GGUF_F32, &value, 1);
}

void td_ggufwrite_bool(struct td_ggufwrite *w, const char *key, bool value)
{
    unsigned char byte = value;

    td_ggufwrite_values(w, key, false, TD_GGUF_BOOL, &byte, 1);
}

void td_ggufwrite_str(struct td_ggufwrite *w, const char *key, struct td_str value)
{
    begin_pair(w, td_str_from(key), false, TD_GGUF_STRING, 1);
    put_str(w, &w->pairs, value);
}

void td_ggufwrite_strs(struct td_ggufwrite *w, const char *key, const struct td_str *value,
                       size_t n)
{
    begin_pair(w, td_str_from(key), true, TD_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        put_str(w, &w->pairs, value[i]);
}

void td_ggufwrite_copy(struct td_ggufwrite *w, const struct td_gguf_kv *kv)
{
    begin_pair(w, kv->key, kv->type == TD_GGUF_ARRAY, kv->elem, kv->n);
    if (kv->elem != TD_GGUF_STRING)
        put(w, &w->pairs, kv->raw, kv->n * td_gguf_type_bytes(kv->elem));
    else
        for (size_t i = 0; i < kv->n; i++)
            put_str(w, &w->pairs, td_gguf_elem_str(kv, i));
}

size_t td_ggufwrite_tensor(struct td_ggufwrite *w, const char *name, enum td_dtype type, int n_dims,
                           const size_t *dim)
{
    size_t index = (size_t)w->n_tensors++, len = strlen(name);
    uint64_t bytes = td_dtype_row_bytes(type, dim[n_dims - 1]), *offsets, *sizes;
    uint32_t number = 0;

    if (w->failed)
        return index;
    if (len == 0 || len > MAX_NAME_BYTES || !td_gguf_number_of(type, &number) || bytes == 0) {
        w->failed = td_err_set(
            &w->err, TD_INVALID,
            "tensor '%.80s' with rows of %zu as %s cannot be in a GGUF file; expected a name of 1 "
            "to %d bytes and whole blocks of a type that GGUF has",
            name, dim[n_dims - 1], td_dtype_info(type)->name, MAX_NAME_BYTES);
        return index;
    }
    offsets = realloc(w->offset, (index + 1) * sizeof *offsets);
    w->offset = offsets ? offsets : w->offset;
    sizes = realloc(w->bytes, (index + 1) * sizeof *sizes);
    w->bytes = sizes ? sizes : w->bytes;
    if (!offsets || !sizes) {
        w->failed = td_err_set(&w->err, TD_NO_MEMORY, "no memory for %zu tensors", index + 1);
        return index;
    }
    put_str(w, &w->list, td_str_from(name));
    put_u32(w, &w->list, (uint32_t)n_dims);
    for (int d = n_dims - 1; d >= 0; d--)
        put_u64(w, &w->list, dim[d]);
    for (int d = 0; d < n_dims - 1; d++)
        bytes *= dim[d];
    put_u32(w, &w->list, number);
    put_u64(w, &w->list, w->data_bytes);
    w->offset[index] = w->data_bytes;
    w->bytes[index] = bytes;
    w->data_bytes = aligned(w->data_bytes + bytes);
    return index;
}

/* ---- the file ---- */

enum td_status td_ggufwrite_head(const struct td_ggufwrite *w, struct td_bytes *out,
                                 struct td_err *err)
{
    const uint32_t version = 3;

    if (w->failed) {
        if (err)
            *err = w->err;
        return w->failed;
    }
    if (td_bytes_append(out, "GGUF", 4) || td_bytes_append(out, &version, sizeof version) ||
        td_bytes_append(out, &w->n_tensors, sizeof w->n_tensors) ||
        td_bytes_append(out, &w->n_pairs, sizeof w->n_pairs) ||
        td_bytes_append_str(out, td_bytes_str(&w->pairs)) ||
        td_bytes_append_str(out, td_bytes_str(&w->list)))
        return td_err_set(err, TD_NO_MEMORY, "no memory for the head of a GGUF file");
    return TD_OK;
}

enum td_status td_ggufwrite_start(struct td_ggufwrite *w, const char *path, struct td_err *err)
{
    struct td_bytes head = {0};
    enum td_status st = td_ggufwrite_head(w, &head, err);

    w->data_start = aligned(head.len);
    st = st ? st : td_outfile_init(&w->file, path, w->data_start + w->data_bytes, err);
    st = st ? st : td_outfile_write(&w->file, 0, head.data, head.len, err);
    td_bytes_deinit(&head);
    return st;
}

uint64_t td_ggufwrite_file_bytes(const struct td_ggufwrite *w)
{
    return w->data_start + w->data_bytes;
}

enum td_status td_ggufwrite_put(const struct td_ggufwrite *w, size_t tensor, uint64_t at,
                                const void *data, size_t bytes, struct td_err *err)
{
    if (at > w->bytes[tensor] || bytes > w->bytes[tensor] - at)
        return td_err_set(err, TD_INVALID,
                          "%zu bytes from %" PRIu64 " of tensor %zu, which has %" PRIu64, bytes, at,
                          tensor, w->bytes[tensor]);
    return td_outfile_write(&w->file, w->data_start + w->offset[tensor] + at, data, bytes, err);
}

enum td_status td_ggufwrite_finish(struct td_ggufwrite *w, struct td_err *err)
{
    return td_outfile_commit(&w->file, err);
}
