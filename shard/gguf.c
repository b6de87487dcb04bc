#include "shard/gguf.h"

#include "shard/mapfile.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Caps far above any real file; a count beyond them is refused before memory is asked for. */
enum {
    MAX_PAIRS = 1 << 20,
    MAX_TENSORS = 1 << 20,
    MAX_STRINGS = 1 << 24, /* in one array */
    MAX_KEY_BYTES = 65535, /* the specification's limits */
    MAX_NAME_BYTES = 64,
    MIN_PAIR_BYTES = 8 + 1 + 4 + 1,       /* key length, key, type, value */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8, /* name length, name, n_dims, type, offset */
    DEFAULT_ALIGNMENT = 32,
    SHOWN_BYTES = 96 /* of a long key in a message */
};

struct td_gguf {
    struct td_mapfile map;
    uint32_t version;
    bool has_data;
    size_t header_bytes;
    size_t n_kv;
    size_t n_tensors;
    struct td_gguf_kv *kv;                 /* [n_kv] owned, and each str_at */
    struct td_gguf_tensor *tensor;         /* [n_tensors] owned */
    const struct td_gguf_kv **kv_by_key;   /* [n_kv] owned, sorted */
    const struct td_gguf_tensor **by_name; /* [n_tensors] owned, sorted */
};

/* Where the parser stands. */
struct cursor {
    const unsigned char *data;
    size_t size;
    size_t at; /* <= size */
};

static const struct {
    const char *name;
    size_t bytes; /* of one element; 0 for strings and arrays */
} VALUE_TYPE[TD_GGUF_N_TYPES] = {
    [TD_GGUF_U8] = {"u8", 1},       [TD_GGUF_I8] = {"i8", 1},     [TD_GGUF_U16] = {"u16", 2},
    [TD_GGUF_I16] = {"i16", 2},     [TD_GGUF_U32] = {"u32", 4},   [TD_GGUF_I32] = {"i32", 4},
    [TD_GGUF_F32] = {"f32", 4},     [TD_GGUF_BOOL] = {"bool", 1}, [TD_GGUF_STRING] = {"string", 0},
    [TD_GGUF_ARRAY] = {"array", 0}, [TD_GGUF_U64] = {"u64", 8},   [TD_GGUF_I64] = {"i64", 8},
    [TD_GGUF_F64] = {"f64", 8},
};

/* Tensor types by their number in the file; a gap has no name. `dtype` is -1 where we only list the type. */
static const struct ggml_type {
    const char *name;
    uint16_t block_elems;
    uint16_t block_bytes;
    int dtype;
} GGML_TYPE[] = {
    [0] = {"F32", 1, 4, TD_F32},
    [1] = {"F16", 1, 2, TD_F16},
    [2] = {"Q4_0", 32, 18, TD_Q4_0},
    [3] = {"Q4_1", 32, 20, TD_Q4_1},
    [6] = {"Q5_0", 32, 22, TD_Q5_0},
    [7] = {"Q5_1", 32, 24, TD_Q5_1},
    [8] = {"Q8_0", 32, 34, TD_Q8_0},
    [9] = {"Q8_1", 32, 36, -1},
    [10] = {"Q2_K", 256, 84, TD_Q2_K},
    [11] = {"Q3_K", 256, 110, TD_Q3_K},
    [12] = {"Q4_K", 256, 144, TD_Q4_K},
    [13] = {"Q5_K", 256, 176, TD_Q5_K},
    [14] = {"Q6_K", 256, 210, TD_Q6_K},
    [15] = {"Q8_K", 256, 292, -1},
    [16] = {"IQ2_XXS", 256, 66, -1},
    [17] = {"IQ2_XS", 256, 74, -1},
    [18] = {"IQ3_XXS", 256, 98, -1},
    [19] = {"IQ1_S", 256, 50, -1},
    [20] = {"IQ4_NL", 32, 18, TD_IQ4_NL},
    [21] = {"IQ3_S", 256, 110, -1},
    [22] = {"IQ2_S", 256, 82, -1},
    [23] = {"IQ4_XS", 256, 136, TD_IQ4_XS},
    [24] = {"I8", 1, 1, -1},
    [25] = {"I16", 1, 2, -1},
    [26] = {"I32", 1, 4, -1},
    [27] = {"I64", 1, 8, -1},
    [28] = {"F64", 1, 8, -1},
    [29] = {"IQ1_M", 256, 56, -1},
    [30] = {"BF16", 1, 2, TD_BF16},
    [34] = {"TQ1_0", 256, 54, -1},
    [35] = {"TQ2_0", 256, 66, -1},
    [39] = {"MXFP4", 32, 17, TD_MXFP4},
    [40] = {"NVFP4", 64, 36, -1},
    [41] = {"Q1_0", 128, 18, -1},
};

bool td_gguf_number_of(enum td_dtype type, uint32_t *number)
{
    for (size_t i = 0; i < sizeof GGML_TYPE / sizeof GGML_TYPE[0]; i++)
        if (GGML_TYPE[i].name && GGML_TYPE[i].dtype == (int)type) {
            *number = (uint32_t)i;
            return true;
        }
    return false;
}

static const struct ggml_type *ggml_type_of(uint32_t number)
{
    if (number >= sizeof GGML_TYPE / sizeof GGML_TYPE[0] || !GGML_TYPE[number].name)
        return NULL;
    return &GGML_TYPE[number];
}

static int shown(size_t len)
{
    return (int)(len < SHOWN_BYTES ? len : SHOWN_BYTES);
}

/* ---- reading ---- */

static enum td_status need(const struct cursor *c, uint64_t bytes, const char *what,
                           struct td_err *err)
{
    if (bytes <= c->size - c->at)
        return TD_OK;
    return td_err_set(err, TD_CORRUPT,
                      "GGUF header is cut off: %s at byte %zu needs %" PRIu64
                      " bytes, file has %zu",
                      what, c->at, bytes, c->size);
}

static enum td_status read_u32(struct cursor *c, uint32_t *out, const char *what,
                               struct td_err *err)
{
    enum td_status st = need(c, sizeof *out, what, err);

    if (st)
        return st;
    memcpy(out, c->data + c->at, sizeof *out);
    c->at += sizeof *out;
    return TD_OK;
}

static enum td_status read_u64(struct cursor *c, uint64_t *out, const char *what,
                               struct td_err *err)
{
    enum td_status st = need(c, sizeof *out, what, err);

    if (st)
        return st;
    memcpy(out, c->data + c->at, sizeof *out);
    c->at += sizeof *out;
    return TD_OK;
}

static enum td_status read_str(struct cursor *c, struct td_str *out, const char *what,
                               struct td_err *err)
{
    enum td_status st;
    uint64_t len;

    if ((st = read_u64(c, &len, what, err)) || (st = need(c, len, what, err)))
        return st;
    *out = (struct td_str){(const char *)c->data + c->at, (size_t)len};
    c->at += (size_t)len;
    return TD_OK;
}

/* Keys and names go into messages and tables: no control characters. */
static bool is_printable(struct td_str s, bool ascii_only)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char b = (unsigned char)s.ptr[i];

        if (b < 0x20 || b == 0x7f || (ascii_only && b > 0x7e))
            return false;
    }
    return ascii_only || td_str_is_utf8(s);
}

static enum td_status read_head(struct cursor *c, struct td_gguf *g, struct td_err *err)
{
    uint64_t n_tensors, n_kv;
    enum td_status st;

    if (c->size < 4 || memcmp(c->data, "GGUF", 4) != 0)
        return td_err_set(err, TD_CORRUPT, "not a GGUF file: it does not begin with \"GGUF\"");
    c->at = 4;
    if ((st = read_u32(c, &g->version, "the version", err)))
        return st;
    if (g->version != 0 && (g->version & 0xffff) == 0)
        return td_err_set(err, TD_UNSUPPORTED, "big-endian GGUF file; expected little-endian");
    if (g->version != 2 && g->version != 3)
        return td_err_set(err, TD_UNSUPPORTED, "GGUF version %" PRIu32 "; expected 2 or 3",
                          g->version);
    if ((st = read_u64(c, &n_tensors, "the tensor count", err)) ||
        (st = read_u64(c, &n_kv, "the metadata count", err)))
        return st;
    if (n_kv > MAX_PAIRS || n_kv > (c->size - c->at) / MIN_PAIR_BYTES)
        return td_err_set(err, TD_CORRUPT,
                          "GGUF header announces %" PRIu64
                          " metadata pairs, more than fit in a file "
                          "of %zu bytes (at most %d)",
                          n_kv, c->size, MAX_PAIRS);
    if (n_tensors > MAX_TENSORS || n_tensors > (c->size - c->at) / MIN_TENSOR_BYTES)
        return td_err_set(err, TD_CORRUPT,
                          "GGUF header announces %" PRIu64 " tensors, more than fit in a file of "
                          "%zu bytes (at most %d)",
                          n_tensors, c->size, MAX_TENSORS);
    g->kv = calloc((size_t)n_kv + 1, sizeof *g->kv);
    g->tensor = calloc((size_t)n_tensors + 1, sizeof *g->tensor);
    g->kv_by_key = calloc((size_t)n_kv + 1, sizeof(void *));
    g->by_name = calloc((size_t)n_tensors + 1, sizeof(void *));
    if (!g->kv || !g->tensor || !g->kv_by_key || !g->by_name)
        return td_err_set(err, TD_NO_MEMORY,
                          "no memory for %" PRIu64 " metadata pairs and %" PRIu64 " tensors", n_kv,
                          n_tensors);
    g->n_kv = (size_t)n_kv;
    g->n_tensors = (size_t)n_tensors;
    return TD_OK;
}

/* ---- metadata ---- */

static enum td_status read_strings(struct cursor *c, struct td_gguf_kv *kv, uint64_t n,
                                   struct td_err *err)
{
    enum td_status st;
    struct td_str s;
    uint64_t *at;

    if (n > MAX_STRINGS || n > (c->size - c->at) / 8)
        return td_err_set(err, TD_CORRUPT,
                          "metadata '%.*s' announces %" PRIu64
                          " strings, more than fit in the file (at most %d)",
                          shown(kv->key.len), kv->key.ptr, n, MAX_STRINGS);
    at = malloc(((size_t)n + 1) * sizeof *at);
    if (!at)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the %" PRIu64 " strings of '%.*s'", n,
                          shown(kv->key.len), kv->key.ptr);
    kv->str_at = at;
    for (size_t i = 0; i < n; i++) {
        at[i] = (uint64_t)(c->data + c->at - kv->raw);
        if ((st = read_str(c, &s, "a string of an array", err)))
            return st;
    }
    kv->n = (size_t)n;
    return TD_OK;
}

static enum td_status read_scalars(struct cursor *c, struct td_gguf_kv *kv, uint64_t n,
                                   struct td_err *err)
{
    size_t bytes = VALUE_TYPE[kv->elem].bytes;

    if (n > (c->size - c->at) / bytes)
        return td_err_set(
            err, TD_CORRUPT,
            "metadata '%.*s' announces %" PRIu64 " values of %s, the file ends %zu bytes on",
            shown(kv->key.len), kv->key.ptr, n, VALUE_TYPE[kv->elem].name, c->size - c->at);
    kv->n = (size_t)n;
    c->at += (size_t)n * bytes;
    return TD_OK;
}

static enum td_status read_pair(struct cursor *c, struct td_gguf_kv *kv, size_t index,
                                struct td_err *err)
{
    enum td_status st;
    uint32_t type;
    uint64_t n = 1;

    if ((st = read_str(c, &kv->key, "a metadata key", err)))
        return st;
    if (kv->key.len == 0 || kv->key.len > MAX_KEY_BYTES || !is_printable(kv->key, true)) {
        size_t len = kv->key.len;

        kv->key.len = 0;
        return td_err_set(
            err, TD_CORRUPT,
            "key of metadata pair %zu (%zu bytes) is not 1 to %d printable ASCII characters", index,
            len, MAX_KEY_BYTES);
    }
    if ((st = read_u32(c, &type, "a metadata type", err)))
        return st;
    if (type >= TD_GGUF_N_TYPES)
        return td_err_set(err, TD_CORRUPT,
                          "metadata '%.*s' has type %" PRIu32 "; types are 0 to %d",
                          shown(kv->key.len), kv->key.ptr, type, TD_GGUF_N_TYPES - 1);
    kv->type = kv->elem = (enum td_gguf_type)type;
    if (type == TD_GGUF_ARRAY) {
        if ((st = read_u32(c, &type, "an array's element type", err)) ||
            (st = read_u64(c, &n, "an array's length", err)))
            return st;
        if (type == TD_GGUF_ARRAY)
            return td_err_set(err, TD_UNSUPPORTED, "metadata '%.*s' is an array of arrays",
                              shown(kv->key.len), kv->key.ptr);
        if (type >= TD_GGUF_N_TYPES)
            return td_err_set(err, TD_CORRUPT,
                              "metadata '%.*s' is an array of type %" PRIu32 "; types are 0 to %d",
                              shown(kv->key.len), kv->key.ptr, type, TD_GGUF_N_TYPES - 1);
        kv->elem = (enum td_gguf_type)type;
    }
    kv->raw = c->data + c->at;
    return kv->elem == TD_GGUF_STRING ? read_strings(c, kv, n, err) : read_scalars(c, kv, n, err);
}

static int compare_str(struct td_str a, struct td_str b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int order = n ? memcmp(a.ptr, b.ptr, n) : 0;

    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare_kv(const void *a, const void *b)
{
    return compare_str((*(const struct td_gguf_kv *const *)a)->key,
                       (*(const struct td_gguf_kv *const *)b)->key);
}

static int compare_tensor(const void *a, const void *b)
{
    return compare_str((*(const struct td_gguf_tensor *const *)a)->name,
                       (*(const struct td_gguf_tensor *const *)b)->name);
}

static enum td_status read_metadata(struct cursor *c, struct td_gguf *g, struct td_err *err)
{
    enum td_status st;

    for (size_t i = 0; i < g->n_kv; i++) {
        if ((st = read_pair(c, &g->kv[i], i, err)))
            return st;
        g->kv_by_key[i] = &g->kv[i];
    }
    if (g->n_kv)
        qsort(g->kv_by_key, g->n_kv, sizeof(void *), compare_kv);
    for (size_t i = 1; i < g->n_kv; i++)
        if (compare_kv(&g->kv_by_key[i - 1], &g->kv_by_key[i]) == 0)
            return td_err_set(err, TD_CORRUPT, "metadata '%.*s' is there twice",
                              shown(g->kv_by_key[i]->key.len), g->kv_by_key[i]->key.ptr);
    return TD_OK;
}

/* ---- tensors ---- */

/* Fills the shape, outermost first, and the byte count; no product may leave 63 bits. */
static enum td_status set_shape(struct td_gguf_tensor *t, const uint64_t *file_dim,
                                struct td_err *err)
{
    const struct ggml_type *type = ggml_type_of(t->ggml_type);
    uint64_t n_blocks = file_dim[0] / type->block_elems, bytes, n_elems = 1;

    for (int d = 0; d < t->n_dims; d++) {
        if (file_dim[d] > INT64_MAX || __builtin_mul_overflow(n_elems, file_dim[d], &n_elems) ||
            n_elems > INT64_MAX)
            return td_err_set(err, TD_CORRUPT,
                              "tensor '%.*s': the product of its dimensions is over 2^63",
                              (int)t->name.len, t->name.ptr);
        t->dim[t->n_dims - 1 - d] = (size_t)file_dim[d];
    }
    for (int d = t->n_dims; d < TD_TENSOR_MAX_DIMS; d++)
        t->dim[d] = 1;
    if (file_dim[0] % type->block_elems)
        return td_err_set(
            err, TD_CORRUPT,
            "tensor '%.*s': rows of %" PRIu64 " are no whole number of %s blocks of %d",
            (int)t->name.len, t->name.ptr, file_dim[0], type->name, type->block_elems);
    for (int d = 1; d < t->n_dims; d++)
        n_blocks *= file_dim[d]; /* divides n_elems, which fits, or one of them is 0 */
    if (n_elems == 0)
        n_blocks = 0;
    if (__builtin_mul_overflow(n_blocks, (uint64_t)type->block_bytes, &bytes) || bytes > INT64_MAX)
        return td_err_set(err, TD_CORRUPT, "tensor '%.*s': its size in bytes is over 2^63",
                          (int)t->name.len, t->name.ptr);
    t->bytes = (size_t)bytes;
    return TD_OK;
}

/* Reads one entry of the tensor list; *offset counts from the start of the data. */
static enum td_status read_tensor(struct cursor *c, struct td_gguf_tensor *t, size_t index,
                                  uint64_t *offset, struct td_err *err)
{
    uint64_t dim[TD_TENSOR_MAX_DIMS] = {1, 1, 1, 1};
    const struct ggml_type *type;
    enum td_status st;
    uint32_t n_dims;

    if ((st = read_str(c, &t->name, "a tensor name", err)))
        return st;
    if (t->name.len == 0 || t->name.len > MAX_NAME_BYTES || !is_printable(t->name, false))
        return td_err_set(err, TD_CORRUPT,
                          "name of tensor %zu (%zu bytes) is not 1 to %d bytes of printable UTF-8",
                          index, t->name.len, MAX_NAME_BYTES);
    if ((st = read_u32(c, &n_dims, "a tensor's dimension count", err)))
        return st;
    if (n_dims > TD_TENSOR_MAX_DIMS)
        return td_err_set(err, TD_CORRUPT,
                          "tensor '%.*s' has %" PRIu32 " dimensions; expected at most %d",
                          (int)t->name.len, t->name.ptr, n_dims, TD_TENSOR_MAX_DIMS);
    for (uint32_t d = 0; d < n_dims; d++)
        if ((st = read_u64(c, &dim[d], "a tensor's dimensions", err)))
            return st;
    t->n_dims = n_dims ? (int)n_dims : 1;
    if ((st = read_u32(c, &t->ggml_type, "a tensor's type", err)) ||
        (st = read_u64(c, offset, "a tensor's offset", err)))
        return st;
    type = ggml_type_of(t->ggml_type);
    if (!type)
        return td_err_set(err, TD_UNSUPPORTED, "tensor '%.*s' has the unknown ggml type %" PRIu32,
                          (int)t->name.len, t->name.ptr, t->ggml_type);
    t->type_name = type->name;
    t->loadable = type->dtype >= 0;
    if (t->loadable)
        t->dtype = (enum td_dtype)type->dtype;
    return set_shape(t, dim, err);
}

static enum td_status alignment_of(const struct td_gguf *g, uint64_t *alignment, struct td_err *err)
{
    const struct td_gguf_kv *kv = td_gguf_find(g, "general.alignment");

    *alignment = DEFAULT_ALIGNMENT;
    if (!kv)
        return TD_OK;
    if (kv->type != TD_GGUF_U32)
        return td_err_set(err, TD_CORRUPT, "metadata 'general.alignment' is %s; expected u32",
                          td_gguf_type_name(kv->type));
    *alignment = (uint64_t)td_gguf_elem_i64(kv, 0);
    if (*alignment == 0 || (*alignment & (*alignment - 1)))
        return td_err_set(err, TD_CORRUPT,
                          "metadata 'general.alignment' is %" PRIu64 "; expected a power of two",
                          *alignment);
    return TD_OK;
}

/* Tensors lie one behind the other in the order of the list, each padded to the alignment; so an offset is known
 * before it is read, and no two can overlap. `data` is NULL until the start of the data is known. */
static enum td_status read_tensors(struct cursor *c, struct td_gguf *g, struct td_err *err)
{
    uint64_t alignment = 0, expected = 0, offset = 0, start, end = 0;
    size_t *offset_of = NULL;
    enum td_status st;

    if ((st = alignment_of(g, &alignment, err)))
        return st;
    offset_of = calloc(g->n_tensors + 1, sizeof *offset_of);
    if (!offset_of)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu tensors", g->n_tensors);
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct td_gguf_tensor *t = &g->tensor[i];

        if ((st = read_tensor(c, t, i, &offset, err)))
            goto free_offsets;
        if (offset != expected) {
            st = td_err_set(err, TD_CORRUPT,
                            "tensor '%.*s' is at offset %" PRIu64 "; expected %" PRIu64
                            " (tensors follow each other, aligned to %" PRIu64 ")",
                            (int)t->name.len, t->name.ptr, offset, expected, alignment);
            goto free_offsets;
        }
        offset_of[i] = (size_t)offset;
        end = expected + t->bytes; /* both below 2^63 */
        if (end > (uint64_t)INT64_MAX - alignment) {
            st = td_err_set(err, TD_CORRUPT, "tensors up to '%.*s' have more than 2^63 bytes",
                            (int)t->name.len, t->name.ptr);
            goto free_offsets;
        }
        expected = (end + alignment - 1) & ~(alignment - 1);
        g->by_name[i] = t;
    }
    start = (c->at + alignment - 1) & ~(alignment - 1);
    g->has_data = end == 0 || c->size > start;
    g->header_bytes = start < c->size ? (size_t)start : c->size;
    for (size_t i = 0; i < g->n_tensors && g->has_data; i++) {
        struct td_gguf_tensor *t = &g->tensor[i];

        if (t->bytes && (start > c->size || offset_of[i] > c->size - start ||
                         t->bytes > c->size - start - offset_of[i])) {
            st =
                td_err_set(err, TD_CORRUPT, "tensor '%.*s' ends at byte %" PRIu64 ", file has %zu",
                           (int)t->name.len, t->name.ptr, start + offset_of[i] + t->bytes, c->size);
            goto free_offsets;
        }
        t->data = t->bytes ? c->data + start + offset_of[i] : c->data;
    }
    st = TD_OK;
free_offsets:
    free(offset_of);
    return st;
}

static enum td_status check_names(struct td_gguf *g, struct td_err *err)
{
    if (g->n_tensors)
        qsort(g->by_name, g->n_tensors, sizeof(void *), compare_tensor);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (compare_tensor(&g->by_name[i - 1], &g->by_name[i]) == 0)
            return td_err_set(err, TD_CORRUPT, "tensor '%.*s' is there twice",
                              (int)g->by_name[i]->name.len, g->by_name[i]->name.ptr);
    return TD_OK;
}

/* ---- open and close ---- */

/* Takes the mapping, also when it fails. */
static enum td_status open_map(struct td_mapfile map, struct td_gguf **out, struct td_err *err)
{
    struct cursor c = {map.data, map.size, 0};
    struct td_gguf *g = calloc(1, sizeof *g);
    enum td_status st;

    if (!g) {
        td_mapfile_deinit(&map);
        return td_err_set(err, TD_NO_MEMORY, "no memory for a GGUF reader");
    }
    g->map = map;
    if ((st = read_head(&c, g, err)) || (st = read_metadata(&c, g, err)) ||
        (st = read_tensors(&c, g, err)) || (st = check_names(g, err))) {
        td_gguf_close(g);
        return st;
    }
    *out = g;
    return TD_OK;
}

enum td_status td_gguf_open(const char *path, struct td_gguf **g, struct td_err *err)
{
    struct td_mapfile map;
    enum td_status st = td_mapfile_init(&map, path, err);

    if (st)
        return st;
    st = open_map(map, g, err);
    if (st)
        td_err_context(err, "'%s'", path);
    return st;
}

enum td_status td_gguf_open_memory(const void *data, size_t size, struct td_gguf **g,
                                   struct td_err *err)
{
    struct td_mapfile map;

    td_mapfile_init_memory(&map, data, size);
    return open_map(map, g, err);
}

void td_gguf_close(struct td_gguf *g)
{
    if (!g)
        return;
    if (g->kv)
        for (size_t i = 0; i < g->n_kv; i++)
            free((void *)(uintptr_t)g->kv[i].str_at);
    free(g->by_name);
    free(g->kv_by_key);
    free(g->tensor);
    free(g->kv);
    td_mapfile_deinit(&g->map);
    free(g);
}

bool td_gguf_has_data(const struct td_gguf *g)
{
    return g->has_data;
}

uint32_t td_gguf_version(const struct td_gguf *g)
{
    return g->version;
}

size_t td_gguf_header_bytes(const struct td_gguf *g)
{
    return g->header_bytes;
}

const struct td_mapfile *td_gguf_mapfile(const struct td_gguf *g)
{
    return &g->map;
}

/* ---- lookups ---- */

size_t td_gguf_n_kv(const struct td_gguf *g)
{
    return g->n_kv;
}

const struct td_gguf_kv *td_gguf_kv_at(const struct td_gguf *g, size_t i)
{
    return &g->kv[i];
}

const struct td_gguf_kv *td_gguf_find(const struct td_gguf *g, const char *key)
{
    struct td_gguf_kv wanted = {.key = td_str_from(key)};
    const struct td_gguf_kv *p = &wanted, **found;

    if (g->n_kv == 0)
        return NULL;
    found = bsearch(&p, g->kv_by_key, g->n_kv, sizeof(void *), compare_kv);
    return found ? *found : NULL;
}

/* The pair, if it is there and no array. */
static enum td_status scalar(const struct td_gguf *g, const char *key, const char *expected,
                             const struct td_gguf_kv **kv, struct td_err *err)
{
    *kv = td_gguf_find(g, key);
    if (!*kv)
        return td_err_set(err, TD_NOT_FOUND, "metadata '%s' is missing", key);
    if ((*kv)->type == TD_GGUF_ARRAY)
        return td_err_set(err, TD_CORRUPT, "metadata '%s' is an array of %s; expected %s", key,
                          td_gguf_type_name((*kv)->elem), expected);
    return TD_OK;
}

static enum td_status wrong_type(const struct td_gguf_kv *kv, const char *expected,
                                 struct td_err *err)
{
    return td_err_set(err, TD_CORRUPT, "metadata '%.*s' is %s; expected %s", shown(kv->key.len),
                      kv->key.ptr, td_gguf_type_name(kv->type), expected);
}

static uint64_t load_u64(const unsigned char *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return v;
}

enum td_status td_gguf_get_u64(const struct td_gguf *g, const char *key, uint64_t *out,
                               struct td_err *err)
{
    const struct td_gguf_kv *kv;
    enum td_status st = scalar(g, key, "an unsigned integer", &kv, err);
    int64_t value;

    if (st)
        return st;
    if (kv->type == TD_GGUF_F32 || kv->type == TD_GGUF_F64 || kv->type == TD_GGUF_STRING ||
        kv->type == TD_GGUF_BOOL)
        return wrong_type(kv, "an unsigned integer", err);
    if (kv->type == TD_GGUF_U64) {
        *out = load_u64(kv->raw);
        return TD_OK;
    }
    value = td_gguf_elem_i64(kv, 0);
    if (value < 0)
        return td_err_set(err, TD_CORRUPT, "metadata '%s' is %" PRId64 "; expected 0 or more", key,
                          value);
    *out = (uint64_t)value;
    return TD_OK;
}

enum td_status td_gguf_get_u32(const struct td_gguf *g, const char *key, uint32_t *out,
                               struct td_err *err)
{
    enum td_status st;
    uint64_t value = 0;

    if ((st = td_gguf_get_u64(g, key, &value, err)))
        return st;
    if (value > UINT32_MAX)
        return td_err_set(err, TD_CORRUPT, "metadata '%s' is %" PRIu64 "; expected at most %u", key,
                          value, UINT32_MAX);
    *out = (uint32_t)value;
    return TD_OK;
}

enum td_status td_gguf_get_i64(const struct td_gguf *g, const char *key, int64_t *out,
                               struct td_err *err)
{
    const struct td_gguf_kv *kv;
    enum td_status st = scalar(g, key, "an integer", &kv, err);

    if (st)
        return st;
    if (kv->type == TD_GGUF_F32 || kv->type == TD_GGUF_F64 || kv->type == TD_GGUF_STRING ||
        kv->type == TD_GGUF_BOOL)
        return wrong_type(kv, "an integer", err);
    if (kv->type == TD_GGUF_U64 && load_u64(kv->raw) > INT64_MAX)
        return td_err_set(err, TD_CORRUPT, "metadata '%s' is %" PRIu64 "; expected less than 2^63",
                          key, load_u64(kv->raw));
    *out = td_gguf_elem_i64(kv, 0);
    return TD_OK;
}

enum td_status td_gguf_get_f32(const struct td_gguf *g, const char *key, float *out,
                               struct td_err *err)
{
    const struct td_gguf_kv *kv;
    enum td_status st = scalar(g, key, "f32", &kv, err);

    if (st)
        return st;
    if (kv->type != TD_GGUF_F32 && kv->type != TD_GGUF_F64)
        return wrong_type(kv, "f32", err);
    *out = td_gguf_elem_f32(kv, 0);
    return TD_OK;
}

enum td_status td_gguf_get_bool(const struct td_gguf *g, const char *key, bool *out,
                                struct td_err *err)
{
    const struct td_gguf_kv *kv;
    enum td_status st = scalar(g, key, "bool", &kv, err);

    if (st)
        return st;
    if (kv->type != TD_GGUF_BOOL)
        return wrong_type(kv, "bool", err);
    *out = kv->raw[0] != 0;
    return TD_OK;
}

enum td_status td_gguf_get_str(const struct td_gguf *g, const char *key, struct td_str *out,
                               struct td_err *err)
{
    const struct td_gguf_kv *kv;
    enum td_status st = scalar(g, key, "string", &kv, err);

    if (st)
        return st;
    if (kv->type != TD_GGUF_STRING)
        return wrong_type(kv, "string", err);
    *out = td_gguf_elem_str(kv, 0);
    return TD_OK;
}

enum td_status td_gguf_get_array(const struct td_gguf *g, const char *key, enum td_gguf_type elem,
                                 const struct td_gguf_kv **out, struct td_err *err)
{
    const struct td_gguf_kv *kv = td_gguf_find(g, key);

    if (!kv)
        return td_err_set(err, TD_NOT_FOUND, "metadata '%s' is missing", key);
    if (kv->type != TD_GGUF_ARRAY || kv->elem != elem)
        return td_err_set(err, TD_CORRUPT, "metadata '%s' is %s%s; expected an array of %s", key,
                          kv->type == TD_GGUF_ARRAY ? "an array of " : "",
                          td_gguf_type_name(kv->elem), td_gguf_type_name(elem));
    *out = kv;
    return TD_OK;
}

struct td_str td_gguf_elem_str(const struct td_gguf_kv *kv, size_t i)
{
    const unsigned char *p = kv->raw + kv->str_at[i];

    return (struct td_str){(const char *)p + 8, (size_t)load_u64(p)};
}

float td_gguf_elem_f32(const struct td_gguf_kv *kv, size_t i)
{
    float f;
    double d;

    if (kv->elem == TD_GGUF_F64) {
        memcpy(&d, kv->raw + i * sizeof d, sizeof d);
        return (float)d;
    }
    memcpy(&f, kv->raw + i * sizeof f, sizeof f);
    return f;
}

int64_t td_gguf_elem_i64(const struct td_gguf_kv *kv, size_t i)
{
    const unsigned char *p = kv->raw + i * VALUE_TYPE[kv->elem].bytes;
    uint64_t u = 0;

    memcpy(&u, p, VALUE_TYPE[kv->elem].bytes);
    switch (kv->elem) {
    case TD_GGUF_I8:
        return (int8_t)u;
    case TD_GGUF_I16:
        return (int16_t)u;
    case TD_GGUF_I32:
        return (int32_t)u;
    case TD_GGUF_I64:
        return (int64_t)u;
    case TD_GGUF_BOOL: /* writers put any non-zero byte */
        return u != 0;
    default:
        return u > INT64_MAX ? INT64_MAX : (int64_t)u;
    }
}

size_t td_gguf_n_tensors(const struct td_gguf *g)
{
    return g->n_tensors;
}

const struct td_gguf_tensor *td_gguf_tensor_at(const struct td_gguf *g, size_t i)
{
    return &g->tensor[i];
}

const struct td_gguf_tensor *td_gguf_find_tensor(const struct td_gguf *g, const char *name)
{
    struct td_gguf_tensor wanted = {.name = td_str_from(name)};
    const struct td_gguf_tensor *p = &wanted, **found;

    if (g->n_tensors == 0)
        return NULL;
    found = bsearch(&p, g->by_name, g->n_tensors, sizeof(void *), compare_tensor);
    return found ? *found : NULL;
}

const char *td_gguf_type_name(enum td_gguf_type type)
{
    return VALUE_TYPE[type].name;
}

size_t td_gguf_type_bytes(enum td_gguf_type type)
{
    return VALUE_TYPE[type].bytes;
}
