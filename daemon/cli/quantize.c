/* `tensord quantize`: a model's weights in another type, as a GGUF file, or in FP8 as a Hugging Face directory. */
#include "daemon/cli/quantize.h"

#include "daemon/cli/command.h"
#include "daemon/text/tokenizer.h"
#include "daemon/text/tokexport.h"
#include "shard/ggufspec.h"
#include "shard/ggufwrite.h"
#include "shard/mix.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PIECE_BYTES = 1 << 20 }; /* of F32, about */

/* What the GGUF output is made with. */
struct gguf_job {
    struct td_quantize *q;
    struct td_ggufwrite *w;
    bool interleave; /* rows of q and k change places */
    bool requantised;
};

/* ---- what both outputs need ---- */

enum td_status td_quantize_visit(const struct td_quantize *q, td_quantize_visit_fn *visit,
                                 void *user, struct td_err *err)
{
    uint32_t n_layers = td_checkpoint_spec(q->ck)->n_layers;

    for (uint32_t layer = 0; layer < n_layers; layer++)
        for (int role = 0; role < TD_N_ROLES; role++) {
            struct td_tensor t;
            enum td_status s;

            /* Absent: a tied head, norms that the architecture has not, a second layer's embedding. */
            if (td_checkpoint_weight(q->ck, (enum td_role)role, layer, &t, NULL))
                continue;
            if ((s = visit(user, (enum td_role)role, layer, &t, err)))
                return s;
        }
    return TD_OK;
}

struct td_quantize_item *td_quantize_add(struct td_quantize *q, enum td_role role, uint32_t layer)
{
    struct td_quantize_item *item = &q->items[q->n_items++];
    struct td_tensor t;

    memset(item, 0, sizeof *item);
    item->convert = (struct td_convert){.ck = q->ck, .role = role, .layer = layer};
    if (td_checkpoint_weight(q->ck, role, layer, &t, NULL) == TD_OK) {
        item->n_rows = t.n_dims > 1 ? t.dim[0] : 1;
        item->n_cols = t.n_dims > 1 ? t.dim[1] : t.dim[0];
    }
    item->piece_rows = PIECE_BYTES / (item->n_cols * sizeof(float)) + 1;
    return item;
}

/* ---- GGUF ---- */

static bool is_head(const struct td_quantize *q, enum td_role role)
{
    return role == (td_checkpoint_spec(q->ck)->tied_head ? TD_ROLE_EMBED : TD_ROLE_HEAD);
}

/* td_quantize_visit_fn: one tensor of the file. */
static enum td_status add_tensor(void *user, enum td_role role, uint32_t layer,
                                 const struct td_tensor *t, struct td_err *err)
{
    struct gguf_job *job = user;
    struct td_quantize *q = job->q;
    struct td_quantize_item *item = td_quantize_add(q, role, layer);
    uint32_t head_dim = td_checkpoint_spec(q->ck)->head_dim;
    bool head = is_head(q, role);
    enum td_dtype mixed;

    (void)err;
    td_role_gguf_name(role, layer, item->name, sizeof item->name);
    mixed = head ? td_mix_type(q->type, true, q->opts->pure, 256) : q->type;
    item->convert.type =
        td_role_is_norm(role) ? TD_F32 : td_mix_type(q->type, head, q->opts->pure, item->n_cols);
    if (job->interleave && (role == TD_ROLE_Q || role == TD_ROLE_K)) {
        item->convert.interleave = head_dim;
        item->piece_rows = (item->piece_rows / head_dim + 1) * head_dim;
    }
    if (!td_role_is_norm(role) && item->convert.type != mixed) {
        q->n_fallbacks++;
        td_term_line(&q->term, "%s: rows of %zu are no whole number of %s blocks, so %s",
                     item->name, item->n_cols, td_dtype_info(mixed)->name,
                     td_dtype_info(item->convert.type)->name);
    }
    job->requantised |= td_dtype_row_bytes(t->dtype, 1) < 2 && t->dtype != item->convert.type;
    item->tensor = td_ggufwrite_tensor(job->w, item->name, item->convert.type, t->n_dims, t->dim);
    return TD_OK;
}

/* Of a GGUF file everything stays but what says how its tensors are stored. */
static void copy_metadata(const struct td_gguf *g, struct td_ggufwrite *w)
{
    static const char *const ours[] = {"general.alignment", "general.file_type",
                                       "general.quantization_version"};

    for (size_t i = 0; i < td_gguf_n_kv(g); i++) {
        const struct td_gguf_kv *kv = td_gguf_kv_at(g, i);
        bool keep = true;

        for (size_t k = 0; k < sizeof ours / sizeof ours[0]; k++)
            keep = keep && !td_str_eq(kv->key, td_str_from(ours[k]));
        if (keep)
            td_ggufwrite_copy(w, kv);
    }
}

/* Metadata of a directory: the spec, the tokenizer, the chat template. */
static enum td_status write_metadata(struct gguf_job *job, const struct td_tokenizer *tok,
                                     struct td_err *err)
{
    struct td_quantize *q = job->q;
    struct td_str name = td_str_from(q->opts->model), template = td_checkpoint_chat_template(q->ck);
    struct td_bytes notes = {0};
    enum td_status s;

    while (name.len > 1 && name.ptr[name.len - 1] == '/')
        name.len--;
    for (size_t i = name.len; i-- > 0;)
        if (name.ptr[i] == '/') {
            name = (struct td_str){name.ptr + i + 1, name.len - i - 1};
            break;
        }
    td_ggufspec_write(td_checkpoint_spec(q->ck), job->w);
    td_ggufwrite_str(job->w, "general.type", TD_STR("model"));
    if (td_str_is_utf8(name))
        td_ggufwrite_str(job->w, "general.name", name);
    s = td_tokexport_gguf(tok, td_checkpoint_tokenizer_json(q->ck), td_checkpoint_spec(q->ck),
                          job->w, &notes, err);
    if (!s && template.len)
        td_ggufwrite_str(job->w, "tokenizer.chat_template", template);
    for (char *line = notes.data, *end; !s && line && (end = strchr(line, '\n')); line = end + 1)
        td_term_line(&q->term, "note: %.*s", (int)(end - line), line);
    td_bytes_deinit(&notes);
    return s;
}

/* Reads the finished head back: the file must say what the directory says. */
static enum td_status prove_head(struct gguf_job *job, const struct td_tokenizer *tok,
                                 struct td_err *err)
{
    struct td_str template = td_checkpoint_chat_template(job->q->ck);
    struct td_tokenizer *again = NULL;
    struct td_err why;
    struct td_gguf *g = NULL;
    struct td_bytes head = {0};
    struct td_spec *spec = malloc(sizeof *spec);
    enum td_status s = spec ? td_ggufwrite_head(job->w, &head, err)
                            : td_err_set(err, TD_NO_MEMORY, "no memory for a spec");

    s = s ? s : td_gguf_open_memory(head.data, head.len, &g, err);
    s = s ? s : td_ggufspec_read(g, spec, err);
    s = s ? s : td_tokenizer_open_gguf(g, &again, err);
    s = s ? s : td_tokexport_compare(tok, again, template, TD_ENCODE_BOS, err);
    /* What is matched as a special token may differ in its edges: tokenizer.json can say more of them. */
    if (!s && td_tokexport_compare(tok, again, template, TD_ENCODE_BOS | TD_ENCODE_SPECIAL, &why))
        td_term_line(&job->q->term, "note: with special tokens in a text, %s", why.cause);
    if (s)
        td_err_context(err, "'%s' cannot be said in a GGUF file", job->q->opts->model);
    td_tokenizer_close(again);
    td_gguf_close(g);
    td_bytes_deinit(&head);
    free(spec);
    return s;
}

static enum td_status describe(struct gguf_job *job, struct td_err *err)
{
    const struct td_gguf *g = td_checkpoint_gguf(job->q->ck);
    struct td_tokenizer *tok = NULL;
    enum td_status s = TD_OK;

    if (g) {
        copy_metadata(g, job->w);
    } else {
        s = td_tokenizer_open(job->q->ck, &tok, err);
        s = s ? s : write_metadata(job, tok, err);
    }
    td_ggufwrite_u32(job->w, "general.quantization_version", 2);
    td_ggufwrite_u32(job->w, "general.file_type", td_mix_file_type(job->q->type));
    if (!s && !g)
        s = prove_head(job, tok, err);
    td_tokenizer_close(tok);
    return s;
}

/* td_quantize_fn */
static enum td_status convert_piece(void *user, struct td_quantize_item *item, size_t row0,
                                    size_t n_rows, const struct td_quantize_buffers *b,
                                    struct td_err *err)
{
    struct gguf_job *job = user;
    size_t row_bytes = td_dtype_row_bytes(item->convert.type, item->n_cols);
    enum td_status s = td_convert_rows(&item->convert, row0, n_rows, b->values, b->out, err);

    return s ? s
             : td_ggufwrite_put(job->w, item->tensor, row0 * row_bytes, b->out, n_rows * row_bytes,
                                err);
}

static enum td_status write_gguf(struct td_quantize *q, struct td_err *err)
{
    const struct td_spec *spec = td_checkpoint_spec(q->ck);
    struct gguf_job job = {.q = q};
    size_t half = spec->head_dim / 2, factors_at = 0;
    float *factors = calloc(half, sizeof *factors);
    double *scratch = calloc(spec->head_dim, sizeof *scratch);
    bool has_factors;
    enum td_status s = factors && scratch
                           ? td_ggufwrite_open(&job.w, err)
                           : td_err_set(err, TD_NO_MEMORY, "no memory for %zu frequencies", half);

    if (s)
        goto done;
    job.interleave = !td_checkpoint_gguf(q->ck) && spec->arch == TD_ARCH_LLAMA;
    if ((s = describe(&job, err)))
        goto done;
    has_factors = td_ggufspec_freq_factors(spec, scratch, factors) || spec->rope.freq_factors;
    if (spec->rope.freq_factors)
        memcpy(factors, spec->rope.freq_factors, half * sizeof *factors);
    q->n_tables = has_factors;
    if (has_factors)
        factors_at = td_ggufwrite_tensor(job.w, "rope_freqs.weight", TD_F32, 1, &half);
    s = td_quantize_visit(q, add_tensor, &job, err);
    if (!s && job.requantised)
        td_term_line(&q->term, "note: weights that are quantised already are dequantised first");
    s = s ? s : td_ggufwrite_start(job.w, q->opts->output, err);
    if (!s && has_factors)
        s = td_ggufwrite_put(job.w, factors_at, 0, factors, half * sizeof *factors, err);
    s = s ? s : td_quantize_run(q, "quantising", 1, convert_piece, &job, err);
    s = s ? s : td_ggufwrite_finish(job.w, err);
    q->file_bytes = s ? 0 : td_ggufwrite_file_bytes(job.w);
done:
    td_ggufwrite_close(job.w);
    free(scratch);
    free(factors);
    return s;
}

/* ---- the command ---- */

static enum td_status check_output(const struct td_quantize *q, struct td_err *err)
{
    const struct td_options *o = q->opts;
    size_t n = strlen(o->output);
    struct stat info;

    if (q->type == TD_F8_E4M3 && td_checkpoint_gguf(q->ck))
        return td_err_set(err, TD_INVALID,
                          "GGUF files have no type f8_e4m3, so '%s' cannot become one; expected a "
                          "Hugging Face directory",
                          o->model);
    if (q->type == TD_F8_E4M3 && n > 5 && strcmp(o->output + n - 5, ".gguf") == 0)
        return td_err_set(
            err, TD_INVALID,
            "weights of f8_e4m3 are written as a Hugging Face directory; expected a name "
            "that does not end in .gguf, got '%s'",
            o->output);
    if (lstat(o->output, &info) != 0)
        return errno == ENOENT
                   ? TD_OK
                   : td_err_set(err, TD_IO, "cannot look at '%s': %s", o->output, strerror(errno));
    if (S_ISDIR(info.st_mode))
        return td_err_set(err, TD_INVALID, "'%s' is a directory that is there already: remove it",
                          o->output);
    if (!o->force || q->type == TD_F8_E4M3)
        return td_err_set(err, TD_INVALID, "'%s' is there already%s", o->output,
                          q->type == TD_F8_E4M3 ? "" : "; --force writes over it");
    return TD_OK;
}

/* Tensors of the result by type, as "q4_0 42, f32 13" or as an object. */
static void print_result(const struct td_quantize *q)
{
    size_t n[TD_N_DTYPES] = {0};
    char bytes[32];
    const char *comma = "";

    for (size_t i = 0; i < q->n_items; i++)
        n[q->items[i].convert.type]++;
    n[TD_F32] += q->n_tables;
    if (q->opts->json) {
        json_t *types = json_object(), *root;

        for (int t = 0; t < TD_N_DTYPES; t++)
            if (n[t])
                json_object_set_new(types, td_dtype_info((enum td_dtype)t)->name,
                                    json_integer((json_int_t)n[t]));
        root = json_pack("{s:s, s:s, s:I, s:o, s:I}", "output", q->opts->output, "type",
                         td_dtype_info(q->type)->name, "bytes", (json_int_t)q->file_bytes,
                         "tensors_by_type", types, "fallbacks", (json_int_t)q->n_fallbacks);
        json_dumpf(root, stdout, JSON_INDENT(2));
        json_decref(root);
        putchar('\n');
        return;
    }
    printf("%s: %s, %zu tensors (", q->opts->output,
           td_term_bytes(q->file_bytes, bytes, sizeof bytes), q->n_items + q->n_tables);
    for (int t = 0; t < TD_N_DTYPES; t++)
        if (n[t]) {
            printf("%s%s %zu", comma, td_dtype_info((enum td_dtype)t)->name, n[t]);
            comma = ", ";
        }
    puts(")");
}

int td_cmd_quantize(const struct td_options *opts)
{
    struct td_quantize q = {.opts = opts};
    struct td_err err;
    enum td_status s;

    td_term_init(&q.term, stderr);
    s = td_dtype_from_name(td_options_types[opts->type], &q.type)
            ? td_checkpoint_open(opts->model, &q.ck, &err)
            : td_err_set(&err, TD_INTERNAL, "type %d has no name", opts->type);
    s = s ? s : check_output(&q, &err);
    if (!s && !(q.items = calloc((size_t)td_checkpoint_spec(q.ck)->n_layers * TD_N_ROLES,
                                 sizeof *q.items)))
        s = td_err_set(&err, TD_NO_MEMORY, "no memory for the list of tensors");
    if (!s)
        s = q.type == TD_F8_E4M3 ? td_quantize_fp8(&q, &err) : write_gguf(&q, &err);
    td_term_end(&q.term);
    if (!s)
        print_result(&q);
    free(q.items);
    td_checkpoint_close(q.ck);
    return s ? td_command_report(opts, &err) : TD_EXIT_OK;
}
