/* FP8 weights for `tensord quantize`: a Hugging Face directory in the forms that vLLM and transformers read. The layers'
 * matrices become E4M3 with F32 scales; embedding, head and norms stay as they are. The directory appears when it is
 * whole. */
#include "daemon/cli/quantize.h"
#include "kernels/quant/fp8.h"
#include "shard/jsonalloc.h"
#include "shard/mapfile.h"
#include "shard/outfile.h"
#include "shard/scales.h"
#include "shard/stwrite.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t FILE_BYTES = (uint64_t)4 << 30; /* of one safetensors file */

struct fp8_job {
    struct td_quantize *q;
    struct td_stwrite *w;
    enum td_option_fp8_scales scales;
    char *dir; /* owned: where it is until it is whole */
};

static size_t blocks_of(size_t n)
{
    return (n + TD_SCALES_BLOCK - 1) / TD_SCALES_BLOCK;
}

static bool is_linear(enum td_role role)
{
    return !td_role_is_norm(role) && role != TD_ROLE_EMBED && role != TD_ROLE_HEAD;
}

/* td_quantize_visit_fn: one tensor of the result, and its scales. */
static enum td_status add_tensor(void *user, enum td_role role, uint32_t layer,
                                 const struct td_tensor *t, struct td_err *err)
{
    struct fp8_job *job = user;
    struct td_quantize_item *item = td_quantize_add(job->q, role, layer);
    size_t rows = item->n_rows, cols = item->n_cols;
    const size_t grid[][2] = {[TD_FP8_SCALES_BLOCK] = {blocks_of(rows), blocks_of(cols)},
                              [TD_FP8_SCALES_CHANNEL] = {rows, 1},
                              [TD_FP8_SCALES_TENSOR] = {1, 1}};
    char scale[sizeof item->name + 16];
    enum td_status s;

    td_checkpoint_weight_name(job->q->ck, role, layer, item->name, sizeof item->name);
    item->convert.type = is_linear(role) ? TD_F8_E4M3 : t->dtype == TD_F8_E4M3 ? TD_BF16 : t->dtype;
    s = td_stwrite_tensor(job->w, item->name, item->convert.type, t->n_dims, t->dim, &item->tensor,
                          err);
    if (s || item->convert.type != TD_F8_E4M3)
        return s;
    item->piece_rows = TD_SCALES_BLOCK;
    snprintf(scale, sizeof scale, "%s%s", item->name,
             job->scales == TD_FP8_SCALES_BLOCK ? "_scale_inv" : "_scale");
    return td_stwrite_tensor(job->w, scale, TD_F32, job->scales == TD_FP8_SCALES_TENSOR ? 1 : 2,
                             grid[job->scales], &item->scale_tensor, err);
}

static enum td_status read_rows(const struct td_quantize_item *item, size_t row0, size_t n_rows,
                                float *values, struct td_err *err)
{
    enum td_status s = TD_OK;

    for (size_t r = 0; r < n_rows && !s; r++)
        s = td_convert_row(&item->convert, row0 + r, values + r * item->n_cols, err);
    return s;
}

/* td_quantize_fn: the one scale of a tensor is the largest of its pieces. Scales are positive, so their bits order them. */
static enum td_status measure_piece(void *user, struct td_quantize_item *item, size_t row0,
                                    size_t n_rows, const struct td_quantize_buffers *b,
                                    struct td_err *err)
{
    uint32_t bits, most;
    enum td_status s;

    (void)user;
    if (item->convert.type != TD_F8_E4M3)
        return TD_OK;
    s = read_rows(item, row0, n_rows, b->values, err);
    if (s)
        return s;
    bits = td_half_f32_bits(td_fp8_scale(b->values, item->n_cols, n_rows, item->n_cols));
    most = atomic_load(&item->scale_bits);
    while (bits > most && !atomic_compare_exchange_weak(&item->scale_bits, &most, bits))
        ;
    return TD_OK;
}

/* Encodes rows of which each run of `height` rows and `width` columns has a scale of its own, and writes those. */
static enum td_status encode_grid(struct fp8_job *job, const struct td_quantize_item *item,
                                  size_t row0, size_t n_rows, size_t height, size_t width,
                                  const struct td_quantize_buffers *b, struct td_err *err)
{
    size_t cols = item->n_cols, per_row = (cols + width - 1) / width;
    float scale;
    enum td_status s = TD_OK;

    for (size_t r = 0; r < n_rows; r += height)
        for (size_t c = 0; c < cols && !s; c += width) {
            const float *src = b->values + r * cols + c;
            size_t h = n_rows - r < height ? n_rows - r : height;
            size_t w = cols - c < width ? cols - c : width;
            size_t at = (row0 + r) / height * per_row + c / width;

            scale = td_fp8_scale(src, cols, h, w);
            td_fp8_encode(src, cols, h, w, scale, (uint8_t *)b->out + r * cols + c, cols);
            s = td_stwrite_put(job->w, item->scale_tensor, at * sizeof scale, &scale, sizeof scale,
                               err);
        }
    return s;
}

/* td_quantize_fn */
static enum td_status convert_piece(void *user, struct td_quantize_item *item, size_t row0,
                                    size_t n_rows, const struct td_quantize_buffers *b,
                                    struct td_err *err)
{
    struct fp8_job *job = user;
    size_t row_bytes = td_dtype_row_bytes(item->convert.type, item->n_cols);
    enum td_status s;

    if (item->convert.type != TD_F8_E4M3) {
        s = td_convert_rows(&item->convert, row0, n_rows, b->values, b->out, err);
    } else if (!(s = read_rows(item, row0, n_rows, b->values, err))) {
        if (job->scales == TD_FP8_SCALES_BLOCK)
            s = encode_grid(job, item, row0, n_rows, TD_SCALES_BLOCK, TD_SCALES_BLOCK, b, err);
        else if (job->scales == TD_FP8_SCALES_CHANNEL)
            s = encode_grid(job, item, row0, n_rows, 1, item->n_cols, b, err);
        else
            td_fp8_encode(b->values, item->n_cols, n_rows, item->n_cols,
                          td_half_bits_f32(atomic_load(&item->scale_bits)), b->out, item->n_cols);
    }
    return s ? s
             : td_stwrite_put(job->w, item->tensor, row0 * row_bytes, b->out, n_rows * row_bytes,
                              err);
}

static enum td_status write_tensors(struct fp8_job *job, struct td_err *err)
{
    struct td_quantize *q = job->q;
    enum td_status s = td_stwrite_open(FILE_BYTES, &job->w, err);

    s = s ? s : td_quantize_visit(q, add_tensor, job, err);
    s = s ? s : td_stwrite_start(job->w, job->dir, err);
    if (!s && job->scales == TD_FP8_SCALES_TENSOR) {
        s = td_quantize_run(q, "measuring", TD_SCALES_BLOCK, measure_piece, job, err);
        for (size_t i = 0; i < q->n_items && !s; i++) {
            uint32_t bits = atomic_load(&q->items[i].scale_bits);

            if (q->items[i].convert.type == TD_F8_E4M3)
                s = td_stwrite_put(job->w, q->items[i].scale_tensor, 0, &bits, sizeof bits, err);
        }
    }
    s = s ? s : td_quantize_run(q, "quantising", TD_SCALES_BLOCK, convert_piece, job, err);
    return s ? s : td_stwrite_finish(job->w, err);
}

/* ---- what lies beside the weights ---- */

/* What the other engines ask for: per block as transformers' own FP8, else as compressed-tensors. */
static json_t *quantization_config(enum td_option_fp8_scales scales)
{
    if (scales == TD_FP8_SCALES_BLOCK)
        return json_pack("{s:s, s:s, s:s, s:[i, i], s:[s]}", "quant_method", "fp8", "fmt", "e4m3",
                         "activation_scheme", "dynamic", "weight_block_size", TD_SCALES_BLOCK,
                         TD_SCALES_BLOCK, "modules_to_not_convert", "lm_head");
    return json_pack("{s:s, s:s, s:s, s:[s], s:{s:{s:[s], s:{s:i, s:s, s:s, s:b, s:b}, "
                     "s:{s:i, s:s, s:s, s:b, s:b}}}}",
                     "quant_method", "compressed-tensors", "format", "float-quantized",
                     "quantization_status", "compressed", "ignore", "lm_head", "config_groups",
                     "group_0", "targets", "Linear", "weights", "num_bits", 8, "type", "float",
                     "strategy", scales == TD_FP8_SCALES_CHANNEL ? "channel" : "tensor",
                     "symmetric", 1, "dynamic", 0, "input_activations", "num_bits", 8, "type",
                     "float", "strategy", "token", "symmetric", 1, "dynamic", 1);
}

static enum td_status write_text(const struct fp8_job *job, const char *name, struct td_str text,
                                 struct td_err *err)
{
    struct td_outfile f = {.fd = -1};
    char *path;
    enum td_status s;

    if (asprintf(&path, "%s/%s", job->dir, name) < 0)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    s = td_outfile_init(&f, path, text.len, err);
    s = s ? s : td_outfile_write(&f, 0, text.ptr, text.len, err);
    s = s ? s : td_outfile_commit(&f, err);
    td_outfile_deinit(&f);
    free(path);
    return s;
}

static enum td_status write_config(const struct fp8_job *job, struct td_err *err)
{
    struct td_str text = td_checkpoint_config(job->q->ck);
    uint64_t failures = td_jsonalloc_failures();
    json_t *config = td_jsonalloc_parse(text, 0, NULL);
    enum td_status s;
    char *out = NULL;

    json_object_del(config, "compression_config");
    if (json_object_set_new(config, "quantization_config", quantization_config(job->scales)) == 0)
        out = json_dumps(config, JSON_INDENT(2));
    if (!out || td_jsonalloc_failures() != failures) {
        free(out);
        json_decref(config);
        return td_err_set(err, TD_NO_MEMORY, "no memory for the quantization_config of '%s'",
                          job->q->opts->model);
    }
    s = write_text(job, "config.json", td_str_from(out), err);
    free(out);
    json_decref(config);
    return s;
}

static enum td_status copy_texts(const struct fp8_job *job, struct td_err *err)
{
    static const char *const names[] = {"generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "chat_template.jinja",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "LICENSE"};
    enum td_status s = TD_OK;

    for (size_t i = 0; i < sizeof names / sizeof names[0] && !s; i++) {
        struct td_mapfile map;
        char *path;

        if (asprintf(&path, "%s/%s", job->q->opts->model, names[i]) < 0)
            return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
        s = td_mapfile_init(&map, path, err);
        free(path);
        if (s == TD_NOT_FOUND) {
            s = TD_OK;
            continue;
        }
        if (!s) {
            s = write_text(job, names[i], td_mapfile_str(&map), err);
            td_mapfile_deinit(&map);
        }
    }
    return s;
}

/* ---- the directory ---- */

/* Calls `fn` for the path of every file; all are ours. */
static void each_file(const char *dir, void (*fn)(const char *path, void *user), void *user)
{
    DIR *d = opendir(dir);
    char *path;

    for (struct dirent *e; d && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            asprintf(&path, "%s/%s", dir, e->d_name) < 0)
            continue;
        fn(path, user);
        free(path);
    }
    if (d)
        closedir(d);
}

static void remove_file(const char *path, void *user)
{
    (void)user;
    unlink(path);
}

static void add_bytes(const char *path, void *user)
{
    struct stat info;

    if (stat(path, &info) == 0)
        *(uint64_t *)user += (uint64_t)info.st_size;
}

enum td_status td_quantize_fp8(struct td_quantize *q, struct td_err *err)
{
    struct fp8_job job = {.q = q, .scales = (enum td_option_fp8_scales)q->opts->fp8_scales};
    size_t len = strlen(q->opts->output);
    enum td_status s;

    while (len > 1 && q->opts->output[len - 1] == '/')
        len--;
    if (asprintf(&job.dir, "%.*s.partial-%ld", (int)len, q->opts->output, (long)getpid()) < 0)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    if (mkdir(job.dir, 0777) != 0) {
        s = td_err_set(err, TD_IO, "cannot create '%s': %s", job.dir, strerror(errno));
        free(job.dir);
        return s;
    }
    s = write_tensors(&job, err);
    s = s ? s : write_config(&job, err);
    s = s ? s : copy_texts(&job, err);
    if (!s && rename(job.dir, q->opts->output) != 0)
        s = td_err_set(err, TD_IO, "cannot create '%s': %s", q->opts->output, strerror(errno));
    td_stwrite_close(job.w);
    if (s) {
        each_file(job.dir, remove_file, NULL);
        rmdir(job.dir);
    } else {
        each_file(q->opts->output, add_bytes, &q->file_bytes);
    }
    free(job.dir);
    return s;
}
