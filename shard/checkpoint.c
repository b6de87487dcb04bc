#include "shard/checkpoint.h"

#include "shard/gguf.h"
#include "shard/ggufspec.h"
#include "shard/hfconfig.h"
#include "shard/int4.h"
#include "shard/mapfile.h"
#include "shard/safetensors.h"
#include "shard/scales.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

enum {
    NAME_BYTES = 128,
    N_SAMPLES = 64,
    SAMPLE_BYTES = 4096,
    CHUNK_BYTES = 16 << 20 /* hashed and given back at a time */
};

/* Texts of a directory, in the order of the hash. */
enum text {
    TEXT_CONFIG,
    TEXT_GENERATION,
    TEXT_TOKENIZER,
    TEXT_TOKENIZER_CONFIG,
    TEXT_TEMPLATE,
    N_TEXTS
};

static const char *const TEXT_FILE[N_TEXTS] = {"config.json", "generation_config.json",
                                               "tokenizer.json", "tokenizer_config.json",
                                               "chat_template.jinja"};

struct td_checkpoint {
    char *path;                /* owned */
    struct td_gguf *gguf;      /* owned; NULL for a directory */
    struct td_safetensors *st; /* owned; NULL for a GGUF file */
    struct td_mapfile text[N_TEXTS];
    char *config_template;       /* owned; of tokenizer_config.json, NULL when absent */
    struct td_str gguf_template; /* borrows from gguf */
    float *freq_factors;         /* [head_dim / 2] owned, NULL when absent */
    struct td_spec spec;
    struct td_tensor *weight; /* [n_layers][TD_N_ROLES] owned; n_dims 0: absent */
    struct td_tensor *scale;  /* the same, of FP8 weights; data NULL: absent */
    enum td_int4_form int4_form;
    struct td_int4 *int4; /* the same, of 4-bit integers; owned, form TD_INT4_NONE: absent */
};

/* A tensor of either format. */
struct found {
    size_t index; /* in file order */
    const char *type_name;
    bool loadable;
    struct td_tensor view;
};

static const struct role_info {
    const char *title;
    const char *gguf;
    const char *hf; /* per layer: %u stands for the layer */
    bool is_layer;
} ROLE[TD_N_ROLES] = {
    [TD_ROLE_EMBED] = {"embed", "token_embd.weight", "model.embed_tokens.weight", false},
    [TD_ROLE_HEAD] = {"head", "output.weight", "lm_head.weight", false},
    [TD_ROLE_FINAL_NORM] = {"final_norm", "output_norm.weight", "model.norm.weight", false},
    [TD_ROLE_ATTN_NORM] = {"attn_norm", "attn_norm.weight", "input_layernorm.weight", true},
    [TD_ROLE_Q] = {"attn_q", "attn_q.weight", "self_attn.q_proj.weight", true},
    [TD_ROLE_K] = {"attn_k", "attn_k.weight", "self_attn.k_proj.weight", true},
    [TD_ROLE_V] = {"attn_v", "attn_v.weight", "self_attn.v_proj.weight", true},
    [TD_ROLE_O] = {"attn_o", "attn_output.weight", "self_attn.o_proj.weight", true},
    [TD_ROLE_Q_NORM] = {"attn_q_norm", "attn_q_norm.weight", "self_attn.q_norm.weight", true},
    [TD_ROLE_K_NORM] = {"attn_k_norm", "attn_k_norm.weight", "self_attn.k_norm.weight", true},
    [TD_ROLE_FFN_NORM] = {"ffn_norm", "ffn_norm.weight", "post_attention_layernorm.weight", true},
    [TD_ROLE_GATE] = {"ffn_gate", "ffn_gate.weight", "mlp.gate_proj.weight", true},
    [TD_ROLE_UP] = {"ffn_up", "ffn_up.weight", "mlp.up_proj.weight", true},
    [TD_ROLE_DOWN] = {"ffn_down", "ffn_down.weight", "mlp.down_proj.weight", true},
};

/* ---- tensors of either format ---- */

static size_t n_tensors(const struct td_checkpoint *ck)
{
    return ck->gguf ? td_gguf_n_tensors(ck->gguf) : td_safetensors_n_tensors(ck->st);
}

static struct td_str tensor_name(const struct td_checkpoint *ck, size_t i)
{
    return ck->gguf ? td_gguf_tensor_at(ck->gguf, i)->name
                    : td_safetensors_tensor_at(ck->st, i)->name;
}

static struct found tensor_at(const struct td_checkpoint *ck, size_t i)
{
    struct found f = {.index = i};

    if (ck->gguf) {
        const struct td_gguf_tensor *t = td_gguf_tensor_at(ck->gguf, i);

        f.type_name = t->type_name;
        f.loadable = t->loadable;
        f.view = (struct td_tensor){
            .data = t->data, .dtype = t->dtype, .n_dims = t->n_dims, .bytes = t->bytes};
        memcpy(f.view.dim, t->dim, sizeof t->dim);
    } else {
        const struct td_safetensors_tensor *t = td_safetensors_tensor_at(ck->st, i);

        f.type_name = t->type_name;
        f.loadable = t->loadable;
        f.view = (struct td_tensor){
            .data = t->data, .dtype = t->dtype, .n_dims = t->n_dims, .bytes = t->bytes};
        memcpy(f.view.dim, t->dim, sizeof t->dim);
    }
    return f;
}

static bool find_tensor(const struct td_checkpoint *ck, const char *name, struct found *out)
{
    if (ck->gguf) {
        const struct td_gguf_tensor *t = td_gguf_find_tensor(ck->gguf, name);

        if (t)
            *out = tensor_at(ck, (size_t)(t - td_gguf_tensor_at(ck->gguf, 0)));
        return t != NULL;
    }
    const struct td_safetensors_tensor *t = td_safetensors_find(ck->st, name);

    if (t)
        *out = tensor_at(ck, (size_t)(t - td_safetensors_tensor_at(ck->st, 0)));
    return t != NULL;
}

const char *td_role_name(enum td_role role)
{
    return ROLE[role].title;
}

const char *td_role_gguf_name(enum td_role role, uint32_t layer, char *out, size_t out_bytes)
{
    if (ROLE[role].is_layer)
        snprintf(out, out_bytes, "blk.%" PRIu32 ".%s", layer, ROLE[role].gguf);
    else
        snprintf(out, out_bytes, "%s", ROLE[role].gguf);
    return out;
}

const char *td_checkpoint_weight_name(const struct td_checkpoint *ck, enum td_role role,
                                      uint32_t layer, char *out, size_t out_bytes)
{
    if (ck->gguf)
        return td_role_gguf_name(role, layer, out, out_bytes);
    if (ROLE[role].is_layer)
        snprintf(out, out_bytes, "model.layers.%" PRIu32 ".%s", layer, ROLE[role].hf);
    else
        snprintf(out, out_bytes, "%s", ROLE[role].hf);
    return out;
}

/* ---- weights by role ---- */

static bool has_role(const struct td_spec *s, enum td_role role)
{
    if (role == TD_ROLE_HEAD)
        return !s->tied_head;
    if (role == TD_ROLE_Q_NORM || role == TD_ROLE_K_NORM)
        return s->qk_norm;
    return true;
}

bool td_role_is_norm(enum td_role role)
{
    return role == TD_ROLE_FINAL_NORM || role == TD_ROLE_ATTN_NORM || role == TD_ROLE_FFN_NORM ||
           role == TD_ROLE_Q_NORM || role == TD_ROLE_K_NORM;
}

/* The shape that the spec asks for; returns the number of dimensions. */
static int expected_shape(const struct td_spec *s, enum td_role role, size_t dim[2])
{
    size_t q = (size_t)s->n_heads * s->head_dim, kv = (size_t)s->n_kv_heads * s->head_dim;
    const size_t rows[TD_N_ROLES] = {
        [TD_ROLE_EMBED] = s->n_vocab,
        [TD_ROLE_HEAD] = s->n_vocab,
        [TD_ROLE_FINAL_NORM] = s->d_model,
        [TD_ROLE_ATTN_NORM] = s->d_model,
        [TD_ROLE_Q] = q,
        [TD_ROLE_K] = kv,
        [TD_ROLE_V] = kv,
        [TD_ROLE_O] = s->d_model,
        [TD_ROLE_Q_NORM] = s->head_dim,
        [TD_ROLE_K_NORM] = s->head_dim,
        [TD_ROLE_FFN_NORM] = s->d_model,
        [TD_ROLE_GATE] = s->d_ff,
        [TD_ROLE_UP] = s->d_ff,
        [TD_ROLE_DOWN] = s->d_model,
    };

    dim[0] = rows[role];
    dim[1] = role == TD_ROLE_O ? q : role == TD_ROLE_DOWN ? s->d_ff : s->d_model;
    if (td_role_is_norm(role))
        dim[1] = 1;
    return td_role_is_norm(role) ? 1 : 2;
}

/* "64 x 172", for messages. */
static const char *format_shape(int n_dims, const size_t *dim, char out[NAME_BYTES])
{
    size_t n = 0;

    snprintf(out, NAME_BYTES, "one number");
    for (int d = 0; d < n_dims && n < NAME_BYTES; d++)
        n += (size_t)snprintf(out + n, NAME_BYTES - n, "%s%zu", d ? " x " : "", dim[d]);
    return out;
}

/* Names what was found and every type that there is. */
static enum td_status refuse_type(const char *name, bool is_norm, const char *type_name,
                                  struct td_err *err)
{
    char known[256];
    size_t n = 0;

    for (int t = 0; t < TD_N_DTYPES; t++)
        if (t != TD_INT4 && (!is_norm || td_dtype_row_bytes((enum td_dtype)t, 1) > 1))
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", n ? " " : "",
                                  td_dtype_info((enum td_dtype)t)->name);
    return td_err_set(err, TD_UNSUPPORTED, "%s '%s' has type %s, which is not built; expected %s",
                      is_norm ? "norm" : "tensor", name, type_name, known);
}

/* An FP8 weight's scales lie beside it as "<name>_scale_inv" or "<name>_scale". */
static enum td_status take_scale(struct td_checkpoint *ck, enum td_role role, uint32_t layer,
                                 const char *name, bool *used, struct td_err *err)
{
    static const char *const suffix[] = {"_scale_inv", "_scale"};
    size_t at = (size_t)layer * TD_N_ROLES + role;
    char scale[NAME_BYTES + 16];
    enum td_status st;
    struct found f;

    for (size_t i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
        snprintf(scale, sizeof scale, "%s%s", name, suffix[i]);
        if (!find_tensor(ck, scale, &f))
            continue;
        if (!f.loadable)
            return td_err_set(err, TD_UNSUPPORTED,
                              "scale '%s' has type %s; expected F32, BF16 or F16", scale,
                              f.type_name);
        if ((st = td_scales_check(&ck->weight[at], &f.view, scale, err)))
            return st;
        ck->scale[at] = f.view;
        used[f.index] = true;
        return TD_OK;
    }
    return td_err_set(err, TD_CORRUPT,
                      "tensor '%s' has type F8_E4M3 but no scale beside it; expected '%s%s' or "
                      "'%s%s'",
                      name, name, suffix[0], name, suffix[1]);
}

/* One of the tensors that a matrix of 4-bit integers is made of, "<base>.<part>". */
static bool take_part(struct td_checkpoint *ck, const char *base, const char *part, bool *used,
                      struct td_tensor *view, const char **type)
{
    char name[NAME_BYTES + 16];
    struct found f;

    snprintf(name, sizeof name, "%s.%s", base, part);
    if (!find_tensor(ck, name, &f))
        return false;
    *view = f.view;
    *type = f.type_name;
    used[f.index] = true;
    return true;
}

/* The matrix "<base>.weight" that 4-bit integers stand for. TD_NOT_FOUND: there are none. */
static enum td_status take_int4(struct td_checkpoint *ck, enum td_role role, uint32_t layer,
                                const char *name, bool *used, struct td_err *err)
{
    size_t at = (size_t)layer * TD_N_ROLES + role, dim[2];
    struct td_int4_tensors t = {0};
    struct td_int4 *m = &ck->int4[at];
    char base[NAME_BYTES];
    enum td_status st;
    enum td_dtype type;

    snprintf(base, sizeof base, "%.*s", (int)(strlen(name) - strlen(".weight")), name);
    if (td_role_is_norm(role) || !take_part(ck, base, "qweight", used, &t.words, &t.word_type))
        return TD_NOT_FOUND;
    if (ck->int4_form == TD_INT4_NONE)
        return td_err_set(err, TD_UNSUPPORTED,
                          "there is a tensor '%s.qweight', but config.json has no "
                          "'quantization_config' of the method gptq or awq that says what it is",
                          base);
    if (!take_part(ck, base, "qzeros", used, &t.zeros, &t.zero_type) ||
        !take_part(ck, base, "scales", used, &t.scales, &t.scale_type))
        return td_err_set(err, TD_CORRUPT,
                          "tensor '%s.qweight' has not both '%s.qzeros' and '%s.scales' beside it",
                          base, base, base);
    if (ck->int4_form != TD_INT4_AWQ)
        (void)take_part(ck, base, "g_idx", used, &t.runs, &t.run_type);
    (void)expected_shape(&ck->spec, role, dim);
    st = td_int4_open(m, ck->int4_form, &t, (uint32_t)dim[0], (uint32_t)dim[1], base, err);
    if (st) {
        m->form = TD_INT4_NONE;
        return st;
    }
    type = td_int4_type(m);
    ck->weight[at] = (struct td_tensor){.dtype = type,
                                        .n_dims = 2,
                                        .dim = {dim[0], dim[1], 1, 1},
                                        .bytes = dim[0] * td_dtype_row_bytes(type, dim[1])};
    return TD_OK;
}

static enum td_status take_weight(struct td_checkpoint *ck, enum td_role role, uint32_t layer,
                                  bool *used, struct td_err *err)
{
    char name[NAME_BYTES], has[NAME_BYTES], wants[NAME_BYTES];
    size_t dim[2];
    int n_dims = expected_shape(&ck->spec, role, dim);
    enum td_status st;
    struct found f;

    td_checkpoint_weight_name(ck, role, layer, name, sizeof name);
    if (!find_tensor(ck, name, &f)) {
        st = take_int4(ck, role, layer, name, used, err);
        if (st != TD_NOT_FOUND)
            return st;
        return td_err_set(err, TD_CORRUPT, "tensor '%s' is missing; expected one of %s", name,
                          format_shape(n_dims, dim, wants));
    }
    if (f.view.n_dims != n_dims || f.view.dim[0] != dim[0] || f.view.dim[1] != dim[1])
        return td_err_set(err, TD_CORRUPT, "tensor '%s' is %s; expected %s", name,
                          format_shape(f.view.n_dims, f.view.dim, has),
                          format_shape(n_dims, dim, wants));
    if (!f.loadable || (n_dims == 1 && td_dtype_row_bytes(f.view.dtype, 1) < 2))
        return refuse_type(name, n_dims == 1, f.type_name, err);
    ck->weight[(size_t)layer * TD_N_ROLES + role] = f.view;
    used[f.index] = true;
    return f.view.dtype == TD_F8_E4M3 ? take_scale(ck, role, layer, name, used, err) : TD_OK;
}

static bool ends_with(struct td_str s, const char *suffix)
{
    size_t n = strlen(suffix);

    return s.len >= n && memcmp(s.ptr + s.len - n, suffix, n) == 0;
}

/* Scales of activations and of a cache in FP8: weights and their products do not need them. */
static bool is_activation_scale(struct td_str name)
{
    return ends_with(name, ".input_scale") || ends_with(name, ".input_scale_ub") ||
           ends_with(name, ".output_scale") || ends_with(name, ".k_scale") ||
           ends_with(name, ".v_scale");
}

/* Writers of 4-bit integers keep a bias beside every matrix, of zeros where the model has none. */
static bool is_zero_bias(const struct td_checkpoint *ck, size_t i)
{
    const struct td_tensor t = tensor_at(ck, i).view;
    const char *data = t.data;

    return ck->int4_form && ends_with(tensor_name(ck, i), ".bias") &&
           (t.bytes == 0 || (data[0] == 0 && memcmp(data, data + 1, t.bytes - 1) == 0));
}

/* A weight that nobody would read means that the model is not the one we would compute. Exempt are tables that can be
 * computed from the spec, a stored head that the config ties to the embedding, scales of activations, and biases of zero. */
static enum td_status check_unused(const struct td_checkpoint *ck, const bool *used,
                                   struct td_err *err)
{
    for (size_t i = 0; i < n_tensors(ck); i++) {
        struct td_str name = tensor_name(ck, i);
        const char *why = "has no place in this architecture as it is built";

        if (used[i] || ends_with(name, "rotary_emb.inv_freq") || is_activation_scale(name) ||
            is_zero_bias(ck, i) || ends_with(name, "attn_rot_embd.weight") ||
            (ck->spec.tied_head && td_str_eq(name, TD_STR("lm_head.weight"))))
            continue;
        if (ends_with(name, ".bias"))
            why = "is a bias; biases are not built";
        else if (memmem(name.ptr, name.len, "_exps", 5) ||
                 memmem(name.ptr, name.len, ".experts.", 9))
            why = "belongs to an expert; mixture of experts is not built";
        return td_err_set(err, TD_UNSUPPORTED, "tensor '%.*s' %s",
                          (int)(name.len > 200 ? 200 : name.len), name.ptr, why);
    }
    return TD_OK;
}

/* GGUF stores the llama3 scaling as one divisor per frequency. */
static enum td_status take_freq_factors(struct td_checkpoint *ck, bool *used, struct td_err *err)
{
    size_t n = ck->spec.head_dim / 2;
    struct found f;

    if (!ck->gguf || !find_tensor(ck, "rope_freqs.weight", &f))
        return TD_OK;
    if (f.view.n_dims != 1 || f.view.dim[0] != n || !f.loadable || f.view.dtype != TD_F32)
        return td_err_set(err, TD_CORRUPT,
                          "tensor 'rope_freqs.weight' is %d-dimensional, %zu long, of type %s; "
                          "expected %zu of F32",
                          f.view.n_dims, f.view.dim[0], f.type_name, n);
    ck->freq_factors = malloc(f.view.bytes + 1);
    if (!ck->freq_factors)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu frequency factors", n);
    memcpy(ck->freq_factors, f.view.data, f.view.bytes);
    ck->spec.rope.freq_factors = ck->freq_factors;
    used[f.index] = true;
    return TD_OK;
}

/* The type that most bytes of weights have. */
static enum td_dtype common_dtype(const struct td_checkpoint *ck)
{
    size_t bytes[TD_N_DTYPES] = {0};
    int most = 0;

    for (size_t i = 0; i < (size_t)ck->spec.n_layers * TD_N_ROLES; i++)
        if (ck->weight[i].n_dims)
            bytes[ck->weight[i].dtype] += ck->weight[i].bytes;
    for (int t = 1; t < TD_N_DTYPES; t++)
        if (bytes[t] > bytes[most])
            most = t;
    return (enum td_dtype)most;
}

static enum td_status take_weights(struct td_checkpoint *ck, struct td_err *err)
{
    enum td_status st = TD_OK;
    bool *used;

    ck->weight = calloc((size_t)ck->spec.n_layers * TD_N_ROLES, sizeof *ck->weight);
    ck->scale = calloc((size_t)ck->spec.n_layers * TD_N_ROLES, sizeof *ck->scale);
    used = calloc(n_tensors(ck) + 1, sizeof *used);
    ck->int4 = calloc((size_t)ck->spec.n_layers * TD_N_ROLES, sizeof *ck->int4);
    if (!ck->weight || !ck->scale || !ck->int4 || !used) {
        st = td_err_set(err, TD_NO_MEMORY, "no memory for the views of %" PRIu32 " layers",
                        ck->spec.n_layers);
        goto free_used;
    }
    for (uint32_t layer = 0; layer < ck->spec.n_layers; layer++)
        for (int role = 0; role < TD_N_ROLES; role++) {
            if ((layer > 0 && !ROLE[role].is_layer) || !has_role(&ck->spec, (enum td_role)role))
                continue;
            if ((st = take_weight(ck, (enum td_role)role, layer, used, err)))
                goto free_used;
        }
    if ((st = take_freq_factors(ck, used, err)) || (st = check_unused(ck, used, err)))
        goto free_used;
    ck->spec.dtype = common_dtype(ck);
    st = td_spec_validate(&ck->spec, err); /* now with the frequency factors */
free_used:
    free(used);
    return st;
}

/* ---- opening ---- */

static enum td_status open_gguf(struct td_checkpoint *ck, struct td_err *err)
{
    enum td_status st;

    if ((st = td_gguf_open(ck->path, &ck->gguf, err)))
        return st;
    if (!td_gguf_has_data(ck->gguf)) {
        st = td_err_set(
            err, TD_CORRUPT,
            "the file ends after its headers, at byte %zu: the tensors' bytes are missing",
            td_gguf_header_bytes(ck->gguf));
        td_err_context(err, "'%s'", ck->path);
        return st;
    }
    if (td_gguf_find(ck->gguf, "tokenizer.chat_template"))
        st = td_gguf_get_str(ck->gguf, "tokenizer.chat_template", &ck->gguf_template, err);
    if (st || (st = td_ggufspec_read(ck->gguf, &ck->spec, err)) ||
        (st = td_spec_validate(&ck->spec, err)) || (st = take_weights(ck, err)))
        td_err_context(err, "'%s'", ck->path);
    return st;
}

static enum td_status map_text(struct td_checkpoint *ck, enum text text, struct td_err *err)
{
    enum td_status st;
    char *path;

    if (asprintf(&path, "%s/%s", ck->path, TEXT_FILE[text]) < 0)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    st = td_mapfile_init(&ck->text[text], path, err);
    free(path);
    return st == TD_NOT_FOUND && text != TEXT_CONFIG ? TD_OK : st;
}

static struct td_str text_of(const struct td_checkpoint *ck, enum text text)
{
    return td_mapfile_str(&ck->text[text]);
}

static enum td_status open_directory(struct td_checkpoint *ck, struct td_err *err)
{
    enum td_status st;

    for (int text = 0; text < N_TEXTS; text++)
        if ((st = map_text(ck, (enum text)text, err)))
            return st;
    if ((st = td_hfconfig_read(text_of(ck, TEXT_CONFIG), text_of(ck, TEXT_GENERATION),
                               text_of(ck, TEXT_TOKENIZER_CONFIG), &ck->spec, &ck->int4_form,
                               err)) ||
        (st = td_spec_validate(&ck->spec, err)) ||
        (st = td_hfconfig_chat_template(text_of(ck, TEXT_TOKENIZER_CONFIG), &ck->config_template,
                                        err)) ||
        (st = td_safetensors_open_dir(ck->path, &ck->st, err)) || (st = take_weights(ck, err)))
        td_err_context(err, "'%s'", ck->path);
    return st;
}

/* TD_OK when the file begins as GGUF files do. */
static enum td_status check_magic(const char *path, struct td_err *err)
{
    struct td_mapfile m;
    enum td_status st = td_mapfile_init(&m, path, err);

    if (st)
        return st;
    if (!td_str_starts(td_mapfile_str(&m), TD_STR("GGUF")))
        st = td_err_set(
            err, TD_UNSUPPORTED,
            "'%s' is no GGUF file; expected one, or a directory with config.json and *.safetensors",
            path);
    td_mapfile_deinit(&m);
    return st;
}

enum td_status td_checkpoint_open(const char *path, struct td_checkpoint **out, struct td_err *err)
{
    struct td_checkpoint *ck;
    enum td_status st;
    struct stat info;

    if (stat(path, &info) != 0)
        return td_err_set(err, errno == ENOENT || errno == ENOTDIR ? TD_NOT_FOUND : TD_IO,
                          "cannot open '%s': %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode) && (st = check_magic(path, err)))
        return st;
    ck = calloc(1, sizeof *ck);
    if (!ck || !(ck->path = strdup(path))) {
        free(ck);
        return td_err_set(err, TD_NO_MEMORY, "no memory to open '%s'", path);
    }
    st = S_ISDIR(info.st_mode) ? open_directory(ck, err) : open_gguf(ck, err);
    if (st) {
        td_checkpoint_close(ck);
        return st;
    }
    *out = ck;
    return TD_OK;
}

void td_checkpoint_close(struct td_checkpoint *ck)
{
    if (!ck)
        return;
    free(ck->weight);
    free(ck->scale);
    free(ck->int4);
    free(ck->freq_factors);
    free(ck->config_template);
    td_safetensors_close(ck->st);
    td_gguf_close(ck->gguf);
    for (int text = 0; text < N_TEXTS; text++)
        td_mapfile_deinit(&ck->text[text]);
    free(ck->path);
    free(ck);
}

/* ---- what it holds ---- */

const char *td_checkpoint_path(const struct td_checkpoint *ck)
{
    return ck->path;
}

const struct td_spec *td_checkpoint_spec(const struct td_checkpoint *ck)
{
    return &ck->spec;
}

enum td_status td_checkpoint_weight(const struct td_checkpoint *ck, enum td_role role,
                                    uint32_t layer, struct td_tensor *out, struct td_err *err)
{
    const struct td_tensor *t;

    if ((unsigned)role >= TD_N_ROLES)
        return td_err_set(err, TD_INVALID, "weight role %d; expected 0 to %d", (int)role,
                          TD_N_ROLES - 1);
    if (layer >= (ROLE[role].is_layer ? ck->spec.n_layers : 1))
        return td_err_set(err, TD_INVALID, "layer %" PRIu32 " of %s; the model has %" PRIu32, layer,
                          ROLE[role].title, ROLE[role].is_layer ? ck->spec.n_layers : 1);
    t = &ck->weight[(size_t)layer * TD_N_ROLES + role];
    if (t->n_dims == 0)
        return td_err_set(err, TD_NOT_FOUND, "the model has no weight '%s'", ROLE[role].title);
    *out = *t;
    return TD_OK;
}

enum td_status td_checkpoint_scales(const struct td_checkpoint *ck, enum td_role role,
                                    uint32_t layer, uint32_t row0, uint32_t n_rows, uint32_t col0,
                                    uint32_t n_cols, float *out, struct td_err *err)
{
    char name[NAME_BYTES];
    struct td_tensor t;
    enum td_status st = td_checkpoint_weight(ck, role, layer, &t, err);
    size_t at = (size_t)layer * TD_N_ROLES + role;

    if (st)
        return st;
    if (t.dtype != TD_F8_E4M3 || row0 > t.dim[0] || n_rows > t.dim[0] - row0 || col0 > t.dim[1] ||
        n_cols > t.dim[1] - col0 || col0 % TD_SCALES_BLOCK)
        return td_err_set(err, TD_INVALID,
                          "scales of %s, %zu x %zu of type %s, for %" PRIu32 " rows from %" PRIu32
                          " and %" PRIu32 " columns from %" PRIu32,
                          ROLE[role].title, t.dim[0], t.dim[1], td_dtype_info(t.dtype)->name,
                          n_rows, row0, n_cols, col0);
    st = td_scales_spread(&t, &ck->scale[at], row0, n_rows, col0, n_cols, out, err);
    if (st)
        td_err_context(err, "'%s'", td_checkpoint_weight_name(ck, role, layer, name, sizeof name));
    return st;
}

const struct td_int4 *td_checkpoint_int4(const struct td_checkpoint *ck, enum td_role role,
                                         uint32_t layer)
{
    struct td_tensor t = {0};

    if (td_checkpoint_weight(ck, role, layer, &t, NULL) || t.data)
        return NULL;
    return &ck->int4[(size_t)layer * TD_N_ROLES + role];
}

void td_checkpoint_release(const struct td_checkpoint *ck, const void *data, size_t bytes)
{
    const struct td_mapfile *m = ck->gguf ? td_gguf_mapfile(ck->gguf) : NULL;

    for (size_t i = 0; ck->st && i < td_safetensors_n_files(ck->st); i++)
        if (td_mapfile_holds(td_safetensors_mapfile(ck->st, i), data, bytes))
            m = td_safetensors_mapfile(ck->st, i);
    for (int text = 0; text < N_TEXTS; text++)
        if (td_mapfile_holds(&ck->text[text], data, bytes))
            m = &ck->text[text];
    if (m && td_mapfile_holds(m, data, bytes))
        td_mapfile_release(m, (size_t)((const unsigned char *)data - m->data), bytes);
}

struct td_str td_checkpoint_config(const struct td_checkpoint *ck)
{
    return text_of(ck, TEXT_CONFIG);
}

struct td_str td_checkpoint_tokenizer_json(const struct td_checkpoint *ck)
{
    return text_of(ck, TEXT_TOKENIZER);
}

struct td_str td_checkpoint_tokenizer_config(const struct td_checkpoint *ck)
{
    return text_of(ck, TEXT_TOKENIZER_CONFIG);
}

struct td_str td_checkpoint_generation_config(const struct td_checkpoint *ck)
{
    return text_of(ck, TEXT_GENERATION);
}

struct td_str td_checkpoint_chat_template(const struct td_checkpoint *ck)
{
    if (ck->text[TEXT_TEMPLATE].size)
        return text_of(ck, TEXT_TEMPLATE);
    return ck->config_template ? td_str_from(ck->config_template) : ck->gguf_template;
}

const struct td_gguf *td_checkpoint_gguf(const struct td_checkpoint *ck)
{
    return ck->gguf;
}

void td_checkpoint_visit(const struct td_checkpoint *ck, td_checkpoint_visit_fn *fn, void *user)
{
    for (size_t i = 0; i < n_tensors(ck); i++) {
        struct found f = tensor_at(ck, i);
        struct td_checkpoint_entry entry = {.name = tensor_name(ck, i),
                                            .type_name = f.type_name,
                                            .n_dims = f.view.n_dims,
                                            .bytes = f.view.bytes};

        memcpy(entry.dim, f.view.dim, sizeof entry.dim);
        fn(&entry, user);
    }
}

/* ---- hash ---- */

static void hash_u64(XXH3_state_t *state, uint64_t value)
{
    XXH3_128bits_update(state, &value, sizeof value);
}

/* A text goes in whole, behind its length, so that texts cannot run into each other. */
static void hash_text(XXH3_state_t *state, struct td_str text)
{
    hash_u64(state, text.len);
    XXH3_128bits_update(state, text.ptr, text.len);
}

/* Size, header, and then the samples, which lie evenly from the first byte to the last; or every byte. */
static void hash_file(XXH3_state_t *state, const struct td_mapfile *m, size_t header_bytes,
                      bool every_byte)
{
    hash_u64(state, m->size);
    hash_u64(state, header_bytes);
    XXH3_128bits_update(state, m->data, header_bytes);
    if (every_byte || m->size <= (size_t)N_SAMPLES * SAMPLE_BYTES) {
        for (size_t at = 0; at < m->size; at += CHUNK_BYTES) {
            size_t n = m->size - at < CHUNK_BYTES ? m->size - at : CHUNK_BYTES;

            td_mapfile_advise(m, at, n, TD_MAPFILE_WILLNEED);
            XXH3_128bits_update(state, m->data + at, n);
            td_mapfile_release(m, at, n);
        }
        return;
    }
    for (size_t i = 0; i < N_SAMPLES; i++) {
        size_t range = m->size - SAMPLE_BYTES;
        size_t at = range / (N_SAMPLES - 1) * i + range % (N_SAMPLES - 1) * i / (N_SAMPLES - 1);

        XXH3_128bits_update(state, m->data + at, SAMPLE_BYTES);
    }
    td_mapfile_release(m, 0, m->size); /* with what the kernel read around the samples */
}

enum td_status td_checkpoint_hash(const struct td_checkpoint *ck, bool every_byte, char out[33],
                                  struct td_err *err)
{
    XXH3_state_t *state = XXH3_createState();
    XXH128_canonical_t digest;

    if (!state)
        return td_err_set(err, TD_NO_MEMORY, "no memory to hash '%s'", ck->path);
    XXH3_128bits_reset(state);
    hash_text(state, every_byte ? TD_STR("tensord model, every byte, 1")
                                : TD_STR("tensord model, sampled, 1"));
    if (ck->gguf) {
        hash_file(state, td_gguf_mapfile(ck->gguf), td_gguf_header_bytes(ck->gguf), every_byte);
    } else {
        for (int text = 0; text < N_TEXTS; text++)
            hash_text(state, text_of(ck, (enum text)text));
        hash_text(state, td_safetensors_index(ck->st));
        for (size_t i = 0; i < td_safetensors_n_files(ck->st); i++) {
            hash_text(state, td_str_from(td_safetensors_file_name(ck->st, i)));
            hash_file(state, td_safetensors_mapfile(ck->st, i),
                      td_safetensors_header_bytes(ck->st, i), every_byte);
        }
    }
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    for (size_t i = 0; i < sizeof digest.digest; i++)
        snprintf(out + 2 * i, 3, "%02x", digest.digest[i]);
    return TD_OK;
}
