#include "shard/safetensors.h"

#include "shard/jsonfile.h"
#include "shard/mapfile.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_HEADER_BYTES = 100 * 1000 * 1000, /* the format's own limit */
    MAX_NAME_BYTES = 256,
    MAX_FILES = 4096,
    MAX_RANK = 32
};

struct file {
    char *name; /* owned */
    struct td_mapfile map;
    size_t header_bytes;
};

struct td_safetensors {
    struct td_mapfile index;
    size_t n_files;
    struct file *file; /* [n_files] owned */
    size_t n_tensors;
    struct td_safetensors_tensor *tensor;         /* [n_tensors] owned, and each name */
    const struct td_safetensors_tensor **by_name; /* [n_tensors] owned, sorted */
};

static const struct st_type {
    const char *name;
    int bits;
    int dtype; /* -1: only listed */
} TYPE[] = {
    {"F32", 32, TD_F32},    {"F16", 16, TD_F16},
    {"BF16", 16, TD_BF16},  {"F64", 64, -1},
    {"I64", 64, -1},        {"I32", 32, -1},
    {"I16", 16, -1},        {"I8", 8, -1},
    {"U64", 64, -1},        {"U32", 32, -1},
    {"U16", 16, -1},        {"U8", 8, -1},
    {"BOOL", 8, -1},        {"F8_E4M3", 8, TD_F8_E4M3},
    {"F8_E5M2", 8, -1},     {"F8_E8M0", 8, -1},
    {"F4", 4, -1},          {"F6_E2M3", 6, -1},
    {"F6_E3M2", 6, -1},     {"C64", 64, -1},
    {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1},
};

const char *td_safetensors_type_name(enum td_dtype type)
{
    for (size_t i = 0; i < sizeof TYPE / sizeof TYPE[0]; i++)
        if (TYPE[i].dtype == (int)type)
            return TYPE[i].name;
    return NULL;
}

/* ---- one tensor ---- */

static const struct st_type *type_of(const json_t *name)
{
    for (size_t i = 0; json_is_string(name) && i < sizeof TYPE / sizeof TYPE[0]; i++)
        if (strcmp(json_string_value(name), TYPE[i].name) == 0)
            return &TYPE[i];
    return NULL;
}

static enum td_status set_shape(struct td_safetensors_tensor *t, const json_t *shape,
                                const struct st_type *type, struct td_err *err)
{
    uint64_t n_elems = 1, bits;
    size_t rank = json_array_size(shape);

    if (!json_is_array(shape) || rank > MAX_RANK)
        return td_err_set(err, TD_CORRUPT, "tensor '%s': shape is no array of at most %d sizes",
                          t->name.ptr, MAX_RANK);
    t->n_dims = rank < TD_TENSOR_MAX_DIMS ? (int)rank : TD_TENSOR_MAX_DIMS;
    for (int d = 0; d < TD_TENSOR_MAX_DIMS; d++)
        t->dim[d] = 1;
    for (size_t i = 0; i < rank; i++) {
        const json_t *size = json_array_get(shape, i);
        size_t folded = rank > TD_TENSOR_MAX_DIMS ? rank - TD_TENSOR_MAX_DIMS : 0;
        size_t d = i > folded ? i - folded : 0;

        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return td_err_set(err, TD_CORRUPT,
                              "tensor '%s': size %zu of its shape is no integer of 0 or more",
                              t->name.ptr, i);
        if (__builtin_mul_overflow(n_elems, (uint64_t)json_integer_value(size), &n_elems))
            return td_err_set(err, TD_CORRUPT, "tensor '%s': the product of its shape is over 2^64",
                              t->name.ptr);
        t->dim[d] = i <= folded ? (size_t)n_elems : (size_t)json_integer_value(size);
    }
    if (__builtin_mul_overflow(n_elems, (uint64_t)type->bits, &bits) || bits % 8)
        return td_err_set(err, TD_CORRUPT,
                          "tensor '%s': %" PRIu64 " elements of %s are no whole number of bytes",
                          t->name.ptr, n_elems, type->name);
    t->bytes = (size_t)(bits / 8);
    return TD_OK;
}

static enum td_status set_range(struct td_safetensors_tensor *t, const json_t *offsets,
                                const struct file *f, struct td_err *err)
{
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    uint64_t a, b, buffer = f->map.size - f->header_bytes;

    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(begin) ||
        !json_is_integer(end) || json_integer_value(begin) < 0 || json_integer_value(end) < 0)
        return td_err_set(err, TD_CORRUPT,
                          "tensor '%s': data_offsets are not two integers of 0 or more",
                          t->name.ptr);
    a = (uint64_t)json_integer_value(begin);
    b = (uint64_t)json_integer_value(end);
    if (b < a || b - a != t->bytes)
        return td_err_set(err, TD_CORRUPT,
                          "tensor '%s': data_offsets %" PRIu64 " to %" PRIu64
                          " do not hold the %zu bytes of its shape",
                          t->name.ptr, a, b, t->bytes);
    if (b > buffer)
        return td_err_set(err, TD_CORRUPT,
                          "tensor '%s' ends at byte %" PRIu64 ", the file has %" PRIu64
                          " bytes of data",
                          t->name.ptr, b, buffer);
    t->data = f->map.data + f->header_bytes + a;
    return TD_OK;
}

/* The name is owned by the reader from its first assignment, so that close frees it whatever follows. */
static enum td_status read_tensor(struct td_safetensors_tensor *t, const char *name,
                                  const json_t *info, const struct file *f, struct td_err *err)
{
    const struct st_type *type;
    const json_t *dtype;
    enum td_status st;
    struct td_str key = td_str_from(name);

    if (key.len > MAX_NAME_BYTES || !td_jsonfile_is_printable(key))
        return td_err_set(err, TD_CORRUPT,
                          "a tensor's name (%zu bytes) is not up to %d bytes of printable text",
                          key.len, MAX_NAME_BYTES);
    t->name.ptr = strdup(name);
    if (!t->name.ptr)
        return td_err_set(err, TD_NO_MEMORY, "no memory for tensor '%s'", name);
    t->name.len = key.len;
    if (!json_is_object(info))
        return td_err_set(err, TD_CORRUPT, "tensor '%s' is described by %s; expected an object",
                          name, td_jsonfile_type_name(info));
    dtype = json_object_get(info, "dtype");
    type = type_of(dtype);
    if (!type) {
        bool shown = json_is_string(dtype) && json_string_length(dtype) <= 32 &&
                     td_jsonfile_is_printable(td_str_from(json_string_value(dtype)));

        return td_err_set(err, TD_UNSUPPORTED, "tensor '%s' has the unknown dtype '%s'", name,
                          shown ? json_string_value(dtype) : "?");
    }
    t->type_name = type->name;
    t->loadable = type->dtype >= 0;
    if (t->loadable)
        t->dtype = (enum td_dtype)type->dtype;
    if ((st = set_shape(t, json_object_get(info, "shape"), type, err)))
        return st;
    return set_range(t, json_object_get(info, "data_offsets"), f, err);
}

/* ---- one file ---- */

static int compare_place(const void *a, const void *b)
{
    const struct td_safetensors_tensor *x = a, *y = b;

    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The tensors of one file, sorted by place, must cover its data from the first byte to the last. */
static enum td_status check_cover(const struct td_safetensors_tensor *t, size_t n,
                                  const struct file *f, struct td_err *err)
{
    const unsigned char *at = f->map.data + f->header_bytes;
    size_t left;

    for (size_t i = 0; i < n; i++) {
        if (t[i].data != at)
            return td_err_set(
                err, TD_CORRUPT,
                "tensor '%s' begins at byte %zu of the data; expected %zu (no holes, no overlap)",
                t[i].name.ptr,
                (size_t)((const unsigned char *)t[i].data - f->map.data) - f->header_bytes,
                (size_t)(at - f->map.data) - f->header_bytes);
        at += t[i].bytes;
    }
    left = f->map.size - (size_t)(at - f->map.data);
    if (left)
        return td_err_set(err, TD_CORRUPT, "%zu bytes after the last tensor; expected none", left);
    return TD_OK;
}

static enum td_status check_metadata(json_t *metadata, struct td_err *err)
{
    if (!json_is_object(metadata))
        return td_err_set(err, TD_CORRUPT, "__metadata__ is %s; expected an object",
                          td_jsonfile_type_name(metadata));
    for (void *it = json_object_iter(metadata); it; it = json_object_iter_next(metadata, it)) {
        const json_t *value = json_object_iter_value(it);

        if (!json_is_string(value))
            return td_err_set(err, TD_CORRUPT, "a value of __metadata__ is %s; expected a string",
                              td_jsonfile_type_name(value));
    }
    return TD_OK;
}

static enum td_status parse_header(struct file *f, json_t **root, struct td_err *err)
{
    struct td_str text;
    uint64_t len;

    if (f->map.size < sizeof len)
        return td_err_set(err, TD_CORRUPT, "file has %zu bytes; a safetensors file has at least 8",
                          f->map.size);
    memcpy(&len, f->map.data, sizeof len);
    if (len > MAX_HEADER_BYTES)
        return td_err_set(err, TD_TOO_LARGE,
                          "header announces %" PRIu64 " bytes; expected at most %d", len,
                          MAX_HEADER_BYTES);
    if (len > f->map.size - sizeof len)
        return td_err_set(err, TD_CORRUPT, "header announces %" PRIu64 " bytes, file has %zu", len,
                          f->map.size);
    f->header_bytes = (size_t)len + sizeof len;
    text = (struct td_str){(const char *)f->map.data + sizeof len, (size_t)len};
    if (!td_str_starts(text, TD_STR("{")))
        return td_err_set(err, TD_CORRUPT, "header does not begin with '{'");
    return td_jsonfile_parse(text, "the header", MAX_HEADER_BYTES, TD_JSONFILE_STRICT, root, err);
}

static enum td_status read_file(struct td_safetensors *st, size_t index, struct td_err *err)
{
    struct file *f = &st->file[index];
    struct td_safetensors_tensor *grown;
    json_t *root = NULL;
    size_t first = st->n_tensors, capacity;
    enum td_status status;

    if ((status = parse_header(f, &root, err)))
        return status;
    capacity = first + json_object_size(root);
    grown = realloc(st->tensor, (capacity + 1) * sizeof *grown);
    if (!grown) {
        status = td_err_set(err, TD_NO_MEMORY, "no memory for %zu tensors", capacity);
        goto free_root;
    }
    st->tensor = grown;
    for (void *it = json_object_iter(root); it; it = json_object_iter_next(root, it)) {
        const char *name = json_object_iter_key(it);
        json_t *value = json_object_iter_value(it);

        if (strcmp(name, "__metadata__") == 0) {
            status = check_metadata(value, err);
        } else {
            struct td_safetensors_tensor *t = &st->tensor[st->n_tensors++];

            *t = (struct td_safetensors_tensor){.file = index};
            status = read_tensor(t, name, value, f, err);
        }
        if (status)
            goto free_root;
    }
    if (st->n_tensors > first)
        qsort(st->tensor + first, st->n_tensors - first, sizeof *grown, compare_place);
    status = check_cover(st->tensor + first, st->n_tensors - first, f, err);
free_root:
    json_decref(root);
    return status;
}

/* ---- all files ---- */

static int compare_name(const void *a, const void *b)
{
    return strcmp((*(const struct td_safetensors_tensor *const *)a)->name.ptr,
                  (*(const struct td_safetensors_tensor *const *)b)->name.ptr);
}

static enum td_status sort_names(struct td_safetensors *st, struct td_err *err)
{
    st->by_name = calloc(st->n_tensors + 1, sizeof(void *));
    if (!st->by_name)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu tensors", st->n_tensors);
    for (size_t i = 0; i < st->n_tensors; i++)
        st->by_name[i] = &st->tensor[i];
    if (st->n_tensors)
        qsort(st->by_name, st->n_tensors, sizeof(void *), compare_name);
    for (size_t i = 1; i < st->n_tensors; i++)
        if (compare_name(&st->by_name[i - 1], &st->by_name[i]) == 0)
            return td_err_set(err, TD_CORRUPT, "tensor '%s' is in both '%s' and '%s'",
                              st->by_name[i]->name.ptr, st->file[st->by_name[i - 1]->file].name,
                              st->file[st->by_name[i]->file].name);
    return TD_OK;
}

static enum td_status new_reader(size_t n_files, struct td_safetensors **out, struct td_err *err)
{
    struct td_safetensors *st = calloc(1, sizeof *st);

    if (st && (st->file = calloc(n_files + 1, sizeof *st->file))) {
        *out = st;
        return TD_OK;
    }
    free(st);
    return td_err_set(err, TD_NO_MEMORY, "no memory for a safetensors reader");
}

/* Opens the one file whose mapping is in place. */
static enum td_status finish_single(struct td_safetensors *st, const char *name,
                                    struct td_safetensors **out, struct td_err *err)
{
    enum td_status status;

    st->file[0].name = strdup(name);
    status = st->file[0].name ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for a file name");
    if (status || (status = read_file(st, 0, err)) || (status = sort_names(st, err))) {
        td_safetensors_close(st);
        return status;
    }
    *out = st;
    return TD_OK;
}

enum td_status td_safetensors_open(const char *path, struct td_safetensors **out,
                                   struct td_err *err)
{
    const char *slash = strrchr(path, '/');
    struct td_safetensors *st = NULL;
    enum td_status status = new_reader(1, &st, err);

    if (status)
        return status;
    st->n_files = 1;
    if ((status = td_mapfile_init(&st->file[0].map, path, err))) {
        td_safetensors_close(st);
        return status;
    }
    status = finish_single(st, slash ? slash + 1 : path, out, err);
    if (status)
        td_err_context(err, "'%s'", path);
    return status;
}

enum td_status td_safetensors_open_memory(const void *data, size_t size,
                                          struct td_safetensors **out, struct td_err *err)
{
    struct td_safetensors *st = NULL;
    enum td_status status = new_reader(1, &st, err);

    if (status)
        return status;
    st->n_files = 1;
    td_mapfile_init_memory(&st->file[0].map, data, size);
    return finish_single(st, "memory", out, err);
}

/* ---- a directory ---- */

static bool is_plain_name(const char *name)
{
    size_t len = strlen(name), suffix = strlen(".safetensors");

    return name[0] != '.' && !strchr(name, '/') && len > suffix && len <= 255 &&
           strcmp(name + len - suffix, ".safetensors") == 0 &&
           td_jsonfile_is_printable(td_str_from(name));
}

static int compare_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Opens a reader with the distinct file names of the weight map, sorted; they are not mapped yet. */
static enum td_status list_files(json_t *weight_map, struct td_safetensors **out,
                                 struct td_err *err)
{
    size_t n = json_object_size(weight_map), n_files = 0, i = 0;
    const char **names = calloc(n + 1, sizeof *names);
    struct td_safetensors *st = NULL;
    enum td_status status = TD_OK;

    if (!names)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu index entries", n);
    for (void *it = json_object_iter(weight_map); it; it = json_object_iter_next(weight_map, it)) {
        const json_t *value = json_object_iter_value(it);

        if (!json_is_string(value) || !is_plain_name(json_string_value(value))) {
            status = td_err_set(
                err, TD_CORRUPT,
                "weight_map entry %zu does not name a plain '*.safetensors' file of the directory",
                i);
            goto free_names;
        }
        names[i++] = json_string_value(value);
    }
    if (n)
        qsort(names, n, sizeof *names, compare_string);
    for (i = 0; i < n; i++)
        if (i == 0 || strcmp(names[i - 1], names[i]) != 0)
            names[n_files++] = names[i];
    if (n_files == 0 || n_files > MAX_FILES) {
        status = td_err_set(err, TD_CORRUPT, "weight_map names %zu files; expected 1 to %d",
                            n_files, MAX_FILES);
        goto free_names;
    }
    if ((status = new_reader(n_files, &st, err)))
        goto free_names;
    for (i = 0; i < n_files; i++) {
        st->n_files = i + 1;
        st->file[i].name = strdup(names[i]);
        if (!st->file[i].name) {
            status = td_err_set(err, TD_NO_MEMORY, "no memory for a file name");
            td_safetensors_close(st);
            goto free_names;
        }
    }
    *out = st;
free_names:
    free(names);
    return status;
}

static enum td_status map_file(struct td_safetensors *st, const char *dir, size_t index,
                               struct td_err *err)
{
    struct file *f = &st->file[index];
    enum td_status status;
    char *path;

    if (asprintf(&path, "%s/%s", dir, f->name) < 0)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    status = td_mapfile_init(&f->map, path, err);
    free(path);
    if (status)
        return status;
    status = read_file(st, index, err);
    if (status)
        td_err_context(err, "'%s'", f->name);
    return status;
}

/* Index and files must agree both ways. */
static enum td_status check_index(const struct td_safetensors *st, json_t *weight_map,
                                  struct td_err *err)
{
    for (size_t i = 0; i < st->n_tensors; i++) {
        const struct td_safetensors_tensor *t = &st->tensor[i];
        const char *expected = json_string_value(json_object_get(weight_map, t->name.ptr));

        if (!expected)
            return td_err_set(err, TD_CORRUPT, "tensor '%s' is in '%s' but not in the index",
                              t->name.ptr, st->file[t->file].name);
        if (strcmp(expected, st->file[t->file].name) != 0)
            return td_err_set(err, TD_CORRUPT, "tensor '%s' is in '%s'; the index says '%s'",
                              t->name.ptr, st->file[t->file].name, expected);
    }
    for (void *it = json_object_iter(weight_map); it; it = json_object_iter_next(weight_map, it)) {
        const char *name = json_object_iter_key(it);

        if (!td_safetensors_find(st, name))
            return td_err_set(err, TD_CORRUPT,
                              "tensor '%s' is not in '%s', where the index puts it",
                              td_jsonfile_is_printable(td_str_from(name)) ? name : "?",
                              json_string_value(json_object_iter_value(it)));
    }
    return TD_OK;
}

/* Takes the mapped index, also when it fails. */
static enum td_status open_indexed(const char *dir, struct td_mapfile index,
                                   struct td_safetensors **out, struct td_err *err)
{
    const char *what = "model.safetensors.index.json";
    struct td_safetensors *st = NULL;
    json_t *root = NULL, *weight_map;
    enum td_status status;

    status = td_jsonfile_parse(td_mapfile_str(&index), what, MAX_HEADER_BYTES, TD_JSONFILE_STRICT,
                               &root, err);
    if (status)
        goto close_index;
    weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map)) {
        status = td_err_set(err, TD_CORRUPT, "%s has no object 'weight_map'", what);
        goto free_root;
    }
    if ((status = list_files(weight_map, &st, err)))
        goto free_root;
    for (size_t i = 0; i < st->n_files; i++)
        if ((status = map_file(st, dir, i, err)))
            goto close_reader;
    if ((status = sort_names(st, err)) || (status = check_index(st, weight_map, err)))
        goto close_reader;
    st->index = index;
    *out = st;
    json_decref(root);
    return TD_OK;

close_reader:
    td_safetensors_close(st);
free_root:
    json_decref(root);
close_index:
    td_mapfile_deinit(&index);
    return status;
}

enum td_status td_safetensors_open_dir(const char *dir, struct td_safetensors **out,
                                       struct td_err *err)
{
    struct td_mapfile index;
    enum td_status status;
    char *path;

    if (asprintf(&path, "%s/model.safetensors", dir) < 0)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    status = td_safetensors_open(path, out, err);
    free(path);
    if (status != TD_NOT_FOUND)
        return status;
    if (asprintf(&path, "%s/model.safetensors.index.json", dir) < 0)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    status = td_mapfile_init(&index, path, err);
    free(path);
    if (status == TD_NOT_FOUND)
        return td_err_set(err, TD_NOT_FOUND,
                          "'%s' has neither model.safetensors nor model.safetensors.index.json",
                          dir);
    return status ? status : open_indexed(dir, index, out, err);
}

void td_safetensors_close(struct td_safetensors *st)
{
    if (!st)
        return;
    free(st->by_name);
    for (size_t i = 0; i < st->n_tensors; i++)
        free((void *)(uintptr_t)st->tensor[i].name.ptr);
    free(st->tensor);
    for (size_t i = 0; i < st->n_files; i++) {
        td_mapfile_deinit(&st->file[i].map);
        free(st->file[i].name);
    }
    free(st->file);
    td_mapfile_deinit(&st->index);
    free(st);
}

size_t td_safetensors_n_tensors(const struct td_safetensors *st)
{
    return st->n_tensors;
}

const struct td_safetensors_tensor *td_safetensors_tensor_at(const struct td_safetensors *st,
                                                             size_t i)
{
    return &st->tensor[i];
}

const struct td_safetensors_tensor *td_safetensors_find(const struct td_safetensors *st,
                                                        const char *name)
{
    struct td_safetensors_tensor wanted = {.name = td_str_from(name)};
    const struct td_safetensors_tensor *p = &wanted, **found;

    if (st->n_tensors == 0)
        return NULL;
    found = bsearch(&p, st->by_name, st->n_tensors, sizeof(void *), compare_name);
    return found ? *found : NULL;
}

size_t td_safetensors_n_files(const struct td_safetensors *st)
{
    return st->n_files;
}

const char *td_safetensors_file_name(const struct td_safetensors *st, size_t file)
{
    return st->file[file].name;
}

const struct td_mapfile *td_safetensors_mapfile(const struct td_safetensors *st, size_t file)
{
    return &st->file[file].map;
}

size_t td_safetensors_header_bytes(const struct td_safetensors *st, size_t file)
{
    return st->file[file].header_bytes;
}

struct td_str td_safetensors_index(const struct td_safetensors *st)
{
    return td_mapfile_str(&st->index);
}
