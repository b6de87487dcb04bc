#include "daemon/cli/command.h"
#include "daemon/cli/term.h"
#include "daemon/text/tokenizer.h"
#include "shard/checkpoint.h"
#include "shard/gguf.h"
#include "shard/jsonalloc.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TYPES = 64 };

struct type_sum {
    const char *name;
    uint64_t bytes;
    uint64_t params;
    size_t n;
};

/* Everything that is printed, whichever way. */
struct view {
    const struct td_checkpoint *ck;
    const struct td_spec *spec;
    struct td_checkpoint_entry *entries; /* owned, [n] */
    size_t n, cap;
    bool failed; /* memory ran out while visiting */
    struct type_sum types[MAX_TYPES];
    size_t n_types;
    uint64_t bytes, params;
    char hash[33];
    bool every_byte;
    struct td_tokenizer *tok;              /* owned; NULL when there is none that can be used */
    char tok_kind[64];                     /* as the file names it; empty: none */
    char tok_error[sizeof(struct td_err)]; /* why tok is NULL */
};

static uint64_t params_of(const struct td_checkpoint_entry *e)
{
    uint64_t n = 1;

    for (int i = 0; i < e->n_dims; i++)
        n *= e->dim[i];
    return n;
}

/* td_checkpoint_visit_fn */
static void collect(const struct td_checkpoint_entry *entry, void *user)
{
    struct view *v = user;
    size_t t = 0;

    if (v->n == v->cap) {
        size_t cap = v->cap ? 2 * v->cap : 256;
        struct td_checkpoint_entry *wider = realloc(v->entries, cap * sizeof *wider);

        if (!wider) {
            v->failed = true;
            return;
        }
        v->entries = wider;
        v->cap = cap;
    }
    v->entries[v->n++] = *entry;
    v->bytes += entry->bytes;
    v->params += params_of(entry);
    while (t < v->n_types && strcmp(v->types[t].name, entry->type_name) != 0)
        t++;
    if (t == MAX_TYPES)
        return;
    if (t == v->n_types)
        v->types[v->n_types++] = (struct type_sum){.name = entry->type_name};
    v->types[t].bytes += entry->bytes;
    v->types[t].params += params_of(entry);
    v->types[t].n++;
}

static size_t short_len(struct td_str s)
{
    return s.len < 30 ? s.len : 30;
}

/* "BPE" from tokenizer.json's model, "gpt2, llama-bpe" from GGUF's keys. */
static void name_tokenizer(struct view *v)
{
    const struct td_gguf *gguf = td_checkpoint_gguf(v->ck);
    struct td_str text = td_checkpoint_tokenizer_json(v->ck), model, pre;

    if (gguf && td_gguf_get_str(gguf, "tokenizer.ggml.model", &model, NULL) == TD_OK) {
        if (td_gguf_get_str(gguf, "tokenizer.ggml.pre", &pre, NULL) != TD_OK)
            pre = TD_STR("");
        snprintf(v->tok_kind, sizeof v->tok_kind, "%.*s%s%.*s", (int)short_len(model), model.ptr,
                 pre.len ? ", " : "", (int)short_len(pre), pre.ptr);
    } else if (text.len > 0) {
        json_t *root = td_jsonalloc_parse(text, 0, NULL);
        const char *type =
            json_string_value(json_object_get(json_object_get(root, "model"), "type"));

        snprintf(v->tok_kind, sizeof v->tok_kind, "%s", type ? type : "unnamed");
        json_decref(root);
    }
}

static enum td_status fill(struct view *v, struct td_err *err)
{
    struct td_err tok_err;
    enum td_status status;

    v->spec = td_checkpoint_spec(v->ck);
    td_checkpoint_visit(v->ck, collect, v);
    if (v->failed)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the list of tensors");
    name_tokenizer(v);
    status = td_tokenizer_open(v->ck, &v->tok, &tok_err);
    if (status != TD_OK)
        td_err_format(&tok_err, v->tok_error, sizeof v->tok_error);
    return td_checkpoint_hash(v->ck, v->every_byte, v->hash, err);
}

static const char *rope_name(enum td_rope_scaling scaling)
{
    static const char *const names[] = {"none", "linear", "llama3", "yarn"};

    return names[scaling];
}

/* ---- plain ---- */

static void print_entry(const struct td_checkpoint_entry *e)
{
    char shape[96] = "";
    size_t n = 0;

    for (int i = 0; i < e->n_dims && n < sizeof shape; i++)
        n += (size_t)snprintf(shape + n, sizeof shape - n, "%s%zu", i ? " x " : "", e->dim[i]);
    printf("  %-48.*s %-8s %-20s %14zu\n", (int)e->name.len, e->name.ptr, e->type_name, shape,
           e->bytes);
}

static uint32_t windowed_layers(const struct td_spec *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_layers; i++)
        n += td_spec_window(s, i) > 0;
    return n;
}

static void print_spec(const struct td_spec *s)
{
    printf("architecture   %s\n", s->name);
    printf("layers         %u\n", s->n_layers);
    printf("hidden size    %u\n", s->d_model);
    printf("heads          %u query, %u key/value, %u wide%s\n", s->n_heads, s->n_kv_heads,
           s->head_dim, s->qk_norm ? ", normalised queries and keys" : "");
    if (s->window)
        printf("window         the last %u positions, in %u layers\n", s->window,
               windowed_layers(s));
    printf("feed-forward   %u\n", s->d_ff);
    printf("vocabulary     %u\n", s->n_vocab);
    printf("positions      %u\n", s->max_positions);
    printf("rope           theta %g, scaling %s", s->rope.theta, rope_name(s->rope.scaling));
    if (s->rope.scaling != TD_ROPE_NONE)
        printf(" by %g", s->rope.factor);
    printf("\nnorm epsilon   %g\n", (double)s->rms_eps);
    printf("output head    %s\n", s->tied_head ? "tied to the embedding" : "of its own");
}

static void print_tokenizer(const struct view *v)
{
    if (v->tok)
        printf("tokenizer      %s, %u tokens, begin %lld, end %lld\n", v->tok_kind,
               td_tokenizer_n_vocab(v->tok), (long long)td_tokenizer_bos(v->tok),
               (long long)td_tokenizer_eos(v->tok));
    else
        printf("tokenizer      %s%snot usable: %s\n", v->tok_kind, *v->tok_kind ? ", " : "",
               v->tok_error);
    printf("chat template  %s\n", td_checkpoint_chat_template(v->ck).len ? "yes" : "no");
}

static void print_plain(const struct view *v)
{
    char text[32];

    printf("model          %s (%s)\n", td_checkpoint_path(v->ck),
           td_checkpoint_gguf(v->ck) ? "GGUF" : "safetensors");
    print_spec(v->spec);
    print_tokenizer(v);
    printf("hash           %s (%s)\n", v->hash, v->every_byte ? "every byte" : "sampled");
    printf("parameters     %llu in %zu tensors, %s\n", (unsigned long long)v->params, v->n,
           td_term_bytes(v->bytes, text, sizeof text));
    for (size_t i = 0; i < v->n_types; i++)
        printf("  %-12s %zu tensors, %llu parameters, %llu bytes\n", v->types[i].name,
               v->types[i].n, (unsigned long long)v->types[i].params,
               (unsigned long long)v->types[i].bytes);
    puts("tensors");
    for (size_t i = 0; i < v->n; i++)
        print_entry(&v->entries[i]);
}

/* ---- JSON ---- */

static json_t *json_spec(const struct td_spec *s)
{
    return json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:f, s:b, s:b, s:I, s:i, s:{s:f, s:s, s:f}}",
        "architecture", s->name, "layers", (int)s->n_layers, "hidden_size", (int)s->d_model,
        "heads", (int)s->n_heads, "kv_heads", (int)s->n_kv_heads, "head_dim", (int)s->head_dim,
        "ffn_size", (int)s->d_ff, "vocab_size", (int)s->n_vocab, "max_positions",
        (json_int_t)s->max_positions, "rms_eps", (double)s->rms_eps, "tied_head", (int)s->tied_head,
        "qk_norm", (int)s->qk_norm, "window", (json_int_t)s->window, "windowed_layers",
        (int)windowed_layers(s), "rope", "theta", s->rope.theta, "scaling",
        rope_name(s->rope.scaling), "factor", s->rope.factor);
}

static json_t *json_tokenizer(const struct view *v)
{
    if (!v->tok)
        return json_pack("{s:s, s:b, s:s}", "kind", v->tok_kind, "usable", 0, "error",
                         v->tok_error);
    return json_pack("{s:s, s:b, s:I, s:I, s:I}", "kind", v->tok_kind, "usable", 1, "n_vocab",
                     (json_int_t)td_tokenizer_n_vocab(v->tok), "bos",
                     (json_int_t)td_tokenizer_bos(v->tok), "eos",
                     (json_int_t)td_tokenizer_eos(v->tok));
}

static json_t *json_types(const struct view *v)
{
    json_t *object = json_object();

    for (size_t i = 0; i < v->n_types; i++)
        json_object_set_new(object, v->types[i].name, json_integer((json_int_t)v->types[i].bytes));
    return object;
}

static json_t *json_tensors(const struct view *v)
{
    json_t *array = json_array();

    for (size_t i = 0; i < v->n; i++) {
        const struct td_checkpoint_entry *e = &v->entries[i];
        json_t *shape = json_array();

        for (int d = 0; d < e->n_dims; d++)
            json_array_append_new(shape, json_integer((json_int_t)e->dim[d]));
        json_array_append_new(array, json_pack("{s:s%, s:s, s:o, s:I}", "name", e->name.ptr,
                                               e->name.len, "type", e->type_name, "shape", shape,
                                               "bytes", (json_int_t)e->bytes));
    }
    return array;
}

static enum td_status print_json(const struct view *v, struct td_err *err)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:o, s:o, s:b, s:s, s:s, s:I, s:I, s:o, s:o}", "path",
        td_checkpoint_path(v->ck), "format", td_checkpoint_gguf(v->ck) ? "gguf" : "safetensors",
        "spec", json_spec(v->spec), "tokenizer", json_tokenizer(v), "chat_template",
        td_checkpoint_chat_template(v->ck).len > 0, "hash", v->hash, "hashed",
        v->every_byte ? "every byte" : "samples", "parameters", (json_int_t)v->params, "bytes",
        (json_int_t)v->bytes, "bytes_by_type", json_types(v), "tensors", json_tensors(v));
    bool ok = root && json_dumpf(root, stdout, JSON_INDENT(2)) == 0;

    json_decref(root);
    putchar('\n');
    return ok ? TD_OK
              : td_err_set(err, TD_INTERNAL,
                           "cannot write the JSON: no memory, or a name in '%s' "
                           "is not UTF-8",
                           td_checkpoint_path(v->ck));
}

int td_cmd_inspect(const struct td_options *opts)
{
    struct view v = {.every_byte = opts->verify};
    struct td_checkpoint *ck = NULL;
    struct td_err err;
    enum td_status status;

    status = td_checkpoint_open(opts->model, &ck, &err);
    if (status == TD_OK) {
        v.ck = ck;
        status = fill(&v, &err);
    }
    if (status == TD_OK && opts->json)
        status = print_json(&v, &err);
    else if (status == TD_OK)
        print_plain(&v);
    td_tokenizer_close(v.tok);
    free(v.entries);
    td_checkpoint_close(ck);
    return status == TD_OK ? TD_EXIT_OK : td_command_report(opts, &err);
}
