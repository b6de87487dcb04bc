#include "shard/stwrite.h"

#include "kernels/base/bytes.h"
#include "shard/outfile.h"
#include "shard/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tensor {
    char *name; /* owned */
    enum td_dtype type;
    int n_dims;
    size_t dim[TD_TENSOR_MAX_DIMS];
    uint64_t bytes;
    uint64_t offset; /* from the start of its file's data */
    size_t file;
};

struct file {
    struct td_outfile out;
    uint64_t data_bytes;
    uint64_t data_start; /* once started */
};

struct td_stwrite {
    uint64_t file_bytes;
    struct tensor *tensor; /* [n_tensors] owned */
    size_t n_tensors;
    struct file *file; /* [n_files] owned */
    size_t n_files;
    struct td_outfile index; /* of several files */
};

enum td_status td_stwrite_open(uint64_t file_bytes, struct td_stwrite **out, struct td_err *err)
{
    struct td_stwrite *w = calloc(1, sizeof *w);

    if (!w)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a safetensors writer");
    w->file_bytes = file_bytes;
    w->index.fd = -1;
    *out = w;
    return TD_OK;
}

void td_stwrite_close(struct td_stwrite *w)
{
    if (!w)
        return;
    td_outfile_deinit(&w->index);
    for (size_t i = 0; i < w->n_files; i++)
        td_outfile_deinit(&w->file[i].out);
    for (size_t i = 0; i < w->n_tensors; i++)
        free(w->tensor[i].name);
    free(w->file);
    free(w->tensor);
    free(w);
}

static enum td_status no_memory(struct td_err *err)
{
    return td_err_set(err, TD_NO_MEMORY, "no memory for the list of tensors");
}

/* The file that takes `bytes` more: the last one, or a new one. */
static enum td_status find_file(struct td_stwrite *w, uint64_t bytes, struct td_err *err)
{
    struct file *last = w->n_files ? &w->file[w->n_files - 1] : NULL, *grown;

    if (last && (last->data_bytes + bytes <= w->file_bytes || last->data_bytes == 0))
        return TD_OK;
    grown = realloc(w->file, (w->n_files + 1) * sizeof *grown);
    if (!grown)
        return no_memory(err);
    w->file = grown;
    w->file[w->n_files++] = (struct file){.out = {.fd = -1}};
    return TD_OK;
}

enum td_status td_stwrite_tensor(struct td_stwrite *w, const char *name, enum td_dtype type,
                                 int n_dims, const size_t *dim, size_t *index, struct td_err *err)
{
    struct tensor *grown, t = {.type = type, .n_dims = n_dims};
    enum td_status st;

    if (!td_safetensors_type_name(type))
        return td_err_set(err, TD_UNSUPPORTED, "tensor '%s': safetensors files have no type %s",
                          name, td_dtype_info(type)->name);
    t.bytes = td_dtype_row_bytes(type, 1);
    for (int d = 0; d < n_dims; d++) {
        t.dim[d] = dim[d];
        t.bytes *= dim[d];
    }
    if ((st = find_file(w, t.bytes, err)))
        return st;
    grown = realloc(w->tensor, (w->n_tensors + 1) * sizeof *grown);
    if (!grown)
        return no_memory(err);
    w->tensor = grown;
    t.name = strdup(name);
    if (!t.name)
        return no_memory(err);
    t.file = w->n_files - 1;
    t.offset = w->file[t.file].data_bytes;
    w->file[t.file].data_bytes += t.bytes;
    *index = w->n_tensors;
    w->tensor[w->n_tensors++] = t;
    return TD_OK;
}

/* ---- the files ---- */

static void name_file(const struct td_stwrite *w, size_t i, char out[64])
{
    if (w->n_files == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05zu-of-%05zu.safetensors", i + 1, w->n_files);
}

/* The header of file i, padded so that the data begin at a multiple of 8. */
static enum td_status build_header(const struct td_stwrite *w, size_t i, struct td_bytes *out)
{
    enum td_status st = td_bytes_appendf(out, "{\"__metadata__\":{\"format\":\"pt\"}");

    for (size_t k = 0; k < w->n_tensors && !st; k++) {
        const struct tensor *t = &w->tensor[k];

        if (t->file != i)
            continue;
        st = td_bytes_appendf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                              td_safetensors_type_name(t->type));
        for (int d = 0; d < t->n_dims && !st; d++)
            st = td_bytes_appendf(out, "%s%zu", d ? "," : "", t->dim[d]);
        st = st ? st
                : td_bytes_appendf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->offset,
                                   t->offset + t->bytes);
    }
    st = st ? st : td_bytes_appendf(out, "}");
    while (!st && out->len % 8)
        st = td_bytes_appendf(out, " ");
    return st;
}

static enum td_status start_file(struct td_stwrite *w, const char *dir, size_t i,
                                 struct td_err *err)
{
    struct td_bytes header = {0};
    struct file *f = &w->file[i];
    char name[64], *path = NULL;
    enum td_status st = build_header(w, i, &header) ? no_memory(err) : TD_OK;
    uint64_t len = header.len;

    name_file(w, i, name);
    if (!st && asprintf(&path, "%s/%s", dir, name) < 0) {
        path = NULL;
        st = no_memory(err);
    }
    f->data_start = sizeof len + len;
    st = st ? st : td_outfile_init(&f->out, path, f->data_start + f->data_bytes, err);
    st = st ? st : td_outfile_write(&f->out, 0, &len, sizeof len, err);
    st = st ? st : td_outfile_write(&f->out, sizeof len, header.data, header.len, err);
    free(path);
    td_bytes_deinit(&header);
    return st;
}

static enum td_status start_index(struct td_stwrite *w, const char *dir, struct td_err *err)
{
    struct td_bytes text = {0};
    uint64_t total = 0;
    char name[64], *path = NULL;
    enum td_status st;

    for (size_t i = 0; i < w->n_files; i++)
        total += w->file[i].data_bytes;
    st = td_bytes_appendf(
        &text, "{\n  \"metadata\": {\"total_size\": %" PRIu64 "},\n  \"weight_map\": {", total);
    for (size_t k = 0; k < w->n_tensors && !st; k++) {
        name_file(w, w->tensor[k].file, name);
        st = td_bytes_appendf(&text, "%s\n    \"%s\": \"%s\"", k ? "," : "", w->tensor[k].name,
                              name);
    }
    st = st ? st : td_bytes_appendf(&text, "\n  }\n}\n");
    if (st || asprintf(&path, "%s/model.safetensors.index.json", dir) < 0) {
        path = NULL;
        st = no_memory(err);
    }
    st = st ? st : td_outfile_init(&w->index, path, text.len, err);
    st = st ? st : td_outfile_write(&w->index, 0, text.data, text.len, err);
    free(path);
    td_bytes_deinit(&text);
    return st;
}

enum td_status td_stwrite_start(struct td_stwrite *w, const char *dir, struct td_err *err)
{
    enum td_status st = TD_OK;

    for (size_t i = 0; i < w->n_files && !st; i++)
        st = start_file(w, dir, i, err);
    return st || w->n_files == 1 ? st : start_index(w, dir, err);
}

enum td_status td_stwrite_put(const struct td_stwrite *w, size_t tensor, uint64_t at,
                              const void *data, size_t bytes, struct td_err *err)
{
    const struct tensor *t = &w->tensor[tensor];
    const struct file *f = &w->file[t->file];

    if (at > t->bytes || bytes > t->bytes - at)
        return td_err_set(err, TD_INVALID,
                          "%zu bytes from %" PRIu64 " of tensor '%s', which has %" PRIu64, bytes,
                          at, t->name, t->bytes);
    return td_outfile_write(&f->out, f->data_start + t->offset + at, data, bytes, err);
}

enum td_status td_stwrite_finish(struct td_stwrite *w, struct td_err *err)
{
    enum td_status st = TD_OK;

    for (size_t i = 0; i < w->n_files && !st; i++)
        st = td_outfile_commit(&w->file[i].out, err);
    return st || w->n_files == 1 ? st : td_outfile_commit(&w->index, err);
}
