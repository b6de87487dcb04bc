#include "shard/hfconfig.h"

#include "kernels/detmath.h"
#include "shard/jsonfile.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_CONFIG_BYTES = 4 << 20, MAX_TOKENIZER_CONFIG_BYTES = 64 << 20 };

static const struct family {
    const char *architecture;
    const char *model_type;
    enum td_arch arch;
    bool qk_norm;
    /* What transformers assumes where config.json is silent. */
    uint32_t n_kv_heads; /* 0: as many as heads */
    uint32_t head_dim;   /* 0: d_model / n_heads */
    uint32_t max_positions;
    uint32_t window;           /* 0: the family has no sliding windows */
    bool uses_window;          /* 'use_sliding_window' */
    uint32_t max_window_layer; /* layers from there on have one */
} FAMILY[] = {
    {"LlamaForCausalLM", "llama", TD_ARCH_LLAMA, false, 0, 0, 2048, 0, true, 0},
    {"MistralForCausalLM", "mistral", TD_ARCH_LLAMA, false, 8, 0, 131072, 4096, true, 0},
    {"Qwen3ForCausalLM", "qwen3", TD_ARCH_QWEN3, true, 32, 128, 32768, 4096, false, 28},
};

/* ---- fields; null counts as absent, as in Python ---- */

static json_t *get(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

/* A string for a message, or "?" when it is none that may be shown. */
static const char *shown(const json_t *value)
{
    const char *s = json_string_value(value);

    return s && strlen(s) <= 64 && td_jsonfile_is_printable(td_str_from(s)) ? s : "?";
}

static enum td_status get_number(const json_t *object, const char *key, double *out,
                                 struct td_err *err)
{
    const json_t *value = get(object, key);

    if (!value)
        return TD_OK; /* keeps the default */
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        return td_err_set(err, TD_CORRUPT, "'%s' is %s; expected a number", key,
                          td_jsonfile_type_name(value));
    *out = json_number_value(value);
    return TD_OK;
}

static enum td_status get_u32(const json_t *object, const char *key, uint32_t *out,
                              struct td_err *err)
{
    double number = *out;
    enum td_status st = get_number(object, key, &number, err);

    if (st)
        return st;
    if (!(number >= 0 && number <= UINT32_MAX) || number != floor(number))
        return td_err_set(err, TD_CORRUPT, "'%s' is %.17g; expected an integer of 0 to %u", key,
                          number, UINT32_MAX);
    *out = (uint32_t)number;
    return TD_OK;
}

static enum td_status need_u32(const json_t *object, const char *key, uint32_t *out,
                               struct td_err *err)
{
    if (!get(object, key))
        return td_err_set(err, TD_CORRUPT, "'%s' is missing", key);
    return get_u32(object, key, out, err);
}

static enum td_status need_number(const json_t *object, const char *key, double *out,
                                  struct td_err *err)
{
    if (!get(object, key))
        return td_err_set(err, TD_CORRUPT, "'%s' is missing", key);
    return get_number(object, key, out, err);
}

static enum td_status get_bool(const json_t *object, const char *key, bool *out, struct td_err *err)
{
    const json_t *value = get(object, key);

    if (!value)
        return TD_OK;
    if (!json_is_boolean(value))
        return td_err_set(err, TD_CORRUPT, "'%s' is %s; expected true or false", key,
                          td_jsonfile_type_name(value));
    *out = json_is_true(value);
    return TD_OK;
}

/* ---- what is not built ---- */

static enum td_status find_family(const json_t *config, const struct family **out,
                                  struct td_err *err)
{
    const json_t *list = get(config, "architectures"), *type = get(config, "model_type");
    const json_t *first = json_array_get(list, 0);

    if (list && (!json_is_array(list) || json_array_size(list) != 1 || !json_is_string(first)))
        return td_err_set(err, TD_CORRUPT, "'architectures' is no list of one name");
    if (!first && !type)
        return td_err_set(err, TD_CORRUPT, "neither 'architectures' nor 'model_type' is there");
    if (!first && !json_is_string(type))
        return td_err_set(err, TD_CORRUPT, "'model_type' is %s; expected a string",
                          td_jsonfile_type_name(type));
    for (size_t i = 0; i < sizeof FAMILY / sizeof FAMILY[0]; i++)
        if (strcmp(first ? json_string_value(first) : json_string_value(type),
                   first ? FAMILY[i].architecture : FAMILY[i].model_type) == 0) {
            *out = &FAMILY[i];
            return TD_OK;
        }
    return td_err_set(
        err, TD_UNSUPPORTED,
        "architecture '%s' is not built; expected LlamaForCausalLM, MistralForCausalLM or "
        "Qwen3ForCausalLM",
        shown(first ? first : type));
}

/* Methods whose weights are FP8 with scales beside them, or 4-bit integers with scales and zeros (int4.h). Which tensors those are is
 * said by the tensors themselves, so lists of modules need no reading; only what would change the arithmetic does. */
static const struct method {
    const char *name;
    const char *key; /* of the field that tells its forms apart; NULL: it has one form */
    const char *forms[2];
    enum td_int4_form int4[2]; /* of each; TD_INT4_NONE: FP8 */
    bool may_be_silent;        /* the first form where the field is absent */
} METHOD[] = {
    {"fp8", NULL, {NULL}, {TD_INT4_NONE}, true},
    {"fbgemm_fp8", NULL, {NULL}, {TD_INT4_NONE}, true},
    {"compressed-tensors", "format", {"float-quantized", "naive-quantized"}, {TD_INT4_NONE}, false},
    {"modelopt", "quant_algo", {"FP8"}, {TD_INT4_NONE}, false},
    {"gptq", "checkpoint_format", {"gptq", "gptq_v2"}, {TD_INT4_GPTQ, TD_INT4_GPTQ_V2}, true},
    {"awq", "version", {"gemm"}, {TD_INT4_AWQ}, true},
};

/* What is 4 and true in every matrix that int4.h describes. */
static enum td_status check_int4(const char *field, const json_t *q, struct td_err *err)
{
    uint32_t bits = 0;
    bool zero_point = true;
    enum td_status st;

    if ((st = get_u32(q, get(q, "w_bit") ? "w_bit" : "bits", &bits, err)) ||
        (st = get_bool(q, "zero_point", &zero_point, err)))
        return st;
    if (bits != 4)
        return td_err_set(err, TD_UNSUPPORTED,
                          "'%s' has 'bits' %" PRIu32 ", which is not built; expected 4", field,
                          bits);
    if (!zero_point)
        return td_err_set(err, TD_UNSUPPORTED,
                          "'%s' has 'zero_point' false, which is not built; expected true", field);
    return TD_OK;
}

static enum td_status read_form(const char *field, const struct method *m, const json_t *q,
                                enum td_int4_form *int4, struct td_err *err)
{
    const json_t *value = m->key ? get(q, m->key) : NULL;
    const char *form = json_string_value(value);

    if (!value && m->may_be_silent) {
        *int4 = m->int4[0];
        return TD_OK;
    }
    for (size_t i = 0; form && i < 2 && m->forms[i]; i++)
        if (strcasecmp(form, m->forms[i]) == 0) { /* AutoAWQ: "GEMM" too */
            *int4 = m->int4[i];
            return TD_OK;
        }
    return td_err_set(err, TD_UNSUPPORTED, "'%s' has '%s' '%s', which is not built; expected '%s'",
                      field, m->key, shown(value), m->forms[0]);
}

static enum td_status read_method(const char *field, const json_t *q, enum td_int4_form *int4,
                                  struct td_err *err)
{
    const json_t *method = get(q, "quant_method"), *block = get(q, "weight_block_size");
    /* The older name of the field belongs to one method, and says so nowhere. */
    const char *name = method                                     ? json_string_value(method)
                       : strcmp(field, "compression_config") == 0 ? "compressed-tensors"
                                                                  : NULL;
    enum td_status st;

    for (size_t i = 0; name && i < sizeof METHOD / sizeof METHOD[0]; i++) {
        if (strcmp(name, METHOD[i].name) != 0)
            continue;
        if ((st = read_form(field, &METHOD[i], q, int4, err)))
            return st;
        if (*int4)
            return check_int4(field, q, err);
        if (block &&
            (json_array_size(block) != 2 || json_number_value(json_array_get(block, 0)) != 128 ||
             json_number_value(json_array_get(block, 1)) != 128))
            return td_err_set(
                err, TD_UNSUPPORTED,
                "'%s' has a 'weight_block_size' that is not built; expected [128, 128]", field);
        return TD_OK;
    }
    return td_err_set(
        err, TD_UNSUPPORTED,
        "'%s' asks for the method '%s', which is not built; expected fp8, fbgemm_fp8, "
        "compressed-tensors, modelopt, gptq or awq",
        field, shown(method));
}

static enum td_status read_quantization(const json_t *config, enum td_int4_form *int4,
                                        struct td_err *err)
{
    static const char *const field[] = {"quantization_config", "compression_config"};
    enum td_status st = TD_OK;

    *int4 = TD_INT4_NONE;
    for (size_t i = 0; i < sizeof field / sizeof field[0] && !st; i++) {
        const json_t *q = get(config, field[i]);

        if (q && !json_is_object(q))
            st = td_err_set(err, TD_CORRUPT, "'%s' is %s; expected an object", field[i],
                            td_jsonfile_type_name(q));
        else if (q)
            st = read_method(field[i], q, int4, err);
    }
    return st;
}

static enum td_status refuse_options(const json_t *config, struct td_err *err)
{
    static const char *const must_be_false[] = {"attention_bias", "mlp_bias", "use_qkv_bias"};
    static const char *const experts[] = {"num_local_experts", "num_experts", "n_routed_experts"};
    const json_t *value;
    enum td_status st;
    double share = 1;

    for (size_t i = 0; i < sizeof must_be_false / sizeof must_be_false[0]; i++) {
        bool is_set = false;

        if ((st = get_bool(config, must_be_false[i], &is_set, err)))
            return st;
        if (is_set)
            return td_err_set(err, TD_UNSUPPORTED, "'%s' is true; biases are not built",
                              must_be_false[i]);
    }
    for (size_t i = 0; i < sizeof experts / sizeof experts[0]; i++) {
        uint32_t n = 0;

        if ((st = get_u32(config, experts[i], &n, err)))
            return st;
        if (n > 1)
            return td_err_set(err, TD_UNSUPPORTED,
                              "'%s' is %" PRIu32 "; mixture of experts is not built", experts[i],
                              n);
    }
    value = get(config, "hidden_act");
    if (value && (!json_is_string(value) || strcmp(json_string_value(value), "silu") != 0))
        return td_err_set(err, TD_UNSUPPORTED, "'hidden_act' is '%s'; expected 'silu'",
                          shown(value));
    if ((st = get_number(config, "partial_rotary_factor", &share, err)))
        return st;
    if (share != 1)
        return td_err_set(err, TD_UNSUPPORTED, "'partial_rotary_factor' is %g; expected 1", share);
    return TD_OK;
}

/* ---- sliding windows ---- */

/* Tokens of a window, 0 where none is in use: null means that, an absent field the family's own. */
static enum td_status read_window(const json_t *config, const struct family *f, uint32_t *window,
                                  struct td_err *err)
{
    const json_t *value = json_object_get(config, "sliding_window");
    bool in_use = f->uses_window;
    enum td_status st;

    *window = value ? 0 : f->window;
    if ((st = get_u32(config, "sliding_window", window, err)) ||
        (st = get_bool(config, "use_sliding_window", &in_use, err)))
        return st;
    if (in_use && value && !json_is_null(value) && *window == 0)
        return td_err_set(err, TD_CORRUPT,
                          "'sliding_window' is 0; expected a number of tokens, or null for none");
    if (!in_use)
        *window = 0;
    return TD_OK;
}

/* Whether layer i has one, by its entry in 'layer_types'. */
static enum td_status read_layer_type(const json_t *types, uint32_t i, bool *slides,
                                      struct td_err *err)
{
    const json_t *type = json_array_get(types, i);
    const char *name = json_is_string(type) ? json_string_value(type) : "";

    *slides = strcmp(name, "sliding_attention") == 0;
    if (!*slides && strcmp(name, "full_attention") != 0)
        return td_err_set(err, TD_UNSUPPORTED,
                          "layer %" PRIu32 " is of type '%s', which is not built; expected "
                          "'full_attention' or 'sliding_attention'",
                          i, shown(type));
    return TD_OK;
}

static enum td_status read_windows(const json_t *config, const struct family *f,
                                   struct td_spec *spec, struct td_err *err)
{
    const json_t *types = get(config, "layer_types");
    uint32_t window = 0, first = f->max_window_layer;
    enum td_status st;

    if (types && (!json_is_array(types) || json_array_size(types) != spec->n_layers))
        return td_err_set(err, TD_CORRUPT,
                          "'layer_types' is %s of %zu; expected an array of %" PRIu32,
                          td_jsonfile_type_name(types), json_array_size(types), spec->n_layers);
    if ((st = read_window(config, f, &window, err)) ||
        (st = get_u32(config, "max_window_layers", &first, err)))
        return st;
    for (uint32_t i = 0; i < spec->n_layers && i < TD_SPEC_MAX_LAYERS; i++) {
        bool slides = window > 0 && i >= first;

        if (types && (st = read_layer_type(types, i, &slides, err)))
            return st;
        if (slides && (window == 0 || f->window == 0))
            return td_err_set(
                err, TD_UNSUPPORTED,
                "layer %" PRIu32 " slides, with a 'sliding_window' of %" PRIu32 ": %s", i, window,
                f->window ? "expected a number of tokens that is in use"
                          : "the architecture has no windows");
        spec->slides[i] = slides;
        if (slides)
            spec->window = window;
    }
    return TD_OK;
}

/* ---- positions ---- */

/* 0.1 m ln(factor) + 1, as the YaRN paper (arXiv 2309.00071) recommends. */
static double yarn_scale(double factor, double m)
{
    return factor > 1 ? 0.1 * m * td_detmath_log(factor) + 1 : 1;
}

static enum td_status read_yarn(const json_t *scaling, struct td_spec *spec, struct td_err *err)
{
    struct td_rope_spec *r = &spec->rope;
    double mscale = 0, mscale_all = 0, longest;
    enum td_status st;
    bool truncate = true;

    r->original_max_positions = spec->max_positions;
    if ((st = get_number(scaling, "original_max_position_embeddings", &r->original_max_positions,
                         err)) ||
        (st = get_number(scaling, "beta_fast", &r->beta_fast, err)) ||
        (st = get_number(scaling, "beta_slow", &r->beta_slow, err)) ||
        (st = get_number(scaling, "attention_factor", &r->attention_factor, err)) ||
        (st = get_number(scaling, "mscale", &mscale, err)) ||
        (st = get_number(scaling, "mscale_all_dim", &mscale_all, err)) ||
        (st = get_bool(scaling, "truncate", &truncate, err)))
        return st;
    if (!truncate)
        return td_err_set(err, TD_UNSUPPORTED, "RoPE scaling with 'truncate' false is not built");
    if (!get(scaling, "attention_factor") && mscale != 0 && mscale_all != 0)
        r->attention_factor = yarn_scale(r->factor, mscale) / yarn_scale(r->factor, mscale_all);
    /* The config's own length is often that before scaling. */
    longest = r->factor * r->original_max_positions;
    if (longest > spec->max_positions && longest <= UINT32_MAX)
        spec->max_positions = (uint32_t)longest;
    return TD_OK;
}

static enum td_status read_scaling(const json_t *scaling, struct td_spec *spec, struct td_err *err)
{
    struct td_rope_spec *r = &spec->rope;
    const json_t *type = get(scaling, "rope_type");
    const char *name;
    enum td_status st;

    if (!type)
        type = get(scaling, "type");
    if (type && !json_is_string(type))
        return td_err_set(err, TD_CORRUPT, "the RoPE scaling's type is %s; expected a string",
                          td_jsonfile_type_name(type));
    name = type ? json_string_value(type) : "default";
    if (strcmp(name, "default") == 0)
        return TD_OK;
    if (strcmp(name, "linear") == 0)
        r->scaling = TD_ROPE_LINEAR;
    else if (strcmp(name, "llama3") == 0)
        r->scaling = TD_ROPE_LLAMA3;
    else if (strcmp(name, "yarn") == 0)
        r->scaling = TD_ROPE_YARN;
    else
        return td_err_set(
            err, TD_UNSUPPORTED,
            "RoPE scaling '%s' is not built; expected default, linear, llama3 or yarn",
            shown(type));
    if ((st = need_number(scaling, "factor", &r->factor, err)))
        return st;
    if (r->scaling == TD_ROPE_YARN)
        return read_yarn(scaling, spec, err);
    if (r->scaling == TD_ROPE_LINEAR)
        return TD_OK;
    if ((st = need_number(scaling, "low_freq_factor", &r->low_freq_factor, err)) ||
        (st = need_number(scaling, "high_freq_factor", &r->high_freq_factor, err)))
        return st;
    return need_number(scaling, "original_max_position_embeddings", &r->original_max_positions,
                       err);
}

/* Three spellings: rope_theta beside rope_scaling, or everything in the newer rope_parameters. */
static enum td_status read_rope(const json_t *config, struct td_spec *spec, struct td_err *err)
{
    static const char *const key[] = {"rope_scaling", "rope_parameters"};
    enum td_status st;
    double share = 1;

    spec->rope = (struct td_rope_spec){.theta = 10000, .beta_fast = 32, .beta_slow = 1};
    if ((st = get_number(config, "rope_theta", &spec->rope.theta, err)))
        return st;
    for (size_t i = 0; i < sizeof key / sizeof key[0]; i++) {
        const json_t *scaling = get(config, key[i]);

        if (!scaling)
            continue;
        if (!json_is_object(scaling))
            return td_err_set(err, TD_CORRUPT, "'%s' is %s; expected an object", key[i],
                              td_jsonfile_type_name(scaling));
        if (get(scaling, "full_attention") || get(scaling, "sliding_attention"))
            return td_err_set(err, TD_UNSUPPORTED, "'%s' differs by layer type, which is not built",
                              key[i]);
        if ((st = get_number(scaling, "rope_theta", &spec->rope.theta, err)) ||
            (st = get_number(scaling, "partial_rotary_factor", &share, err)) ||
            (st = read_scaling(scaling, spec, err)))
            return st;
        if (share != 1)
            return td_err_set(err, TD_UNSUPPORTED, "'partial_rotary_factor' is %g; expected 1",
                              share);
    }
    return TD_OK;
}

/* ---- ids ---- */

static enum td_status add_eos(struct td_spec *spec, const json_t *value, struct td_err *err)
{
    double id = json_number_value(value);

    if (!json_is_number(value) || id != floor(id) || id >= spec->n_vocab)
        return td_err_set(
            err, TD_CORRUPT,
            "'eos_token_id' holds %.17g; expected ids below the vocabulary's %" PRIu32, id,
            spec->n_vocab);
    if (id < 0) /* some files write -1 for none */
        return TD_OK;
    for (uint32_t i = 0; i < spec->n_eos; i++)
        if (spec->eos_ids[i] == (uint32_t)id)
            return TD_OK;
    if (spec->n_eos == TD_SPEC_MAX_EOS)
        return td_err_set(err, TD_UNSUPPORTED, "more than %d different 'eos_token_id'",
                          TD_SPEC_MAX_EOS);
    spec->eos_ids[spec->n_eos++] = (uint32_t)id;
    return TD_OK;
}

static enum td_status read_ids(const json_t *config, struct td_spec *spec, struct td_err *err)
{
    const json_t *eos = get(config, "eos_token_id"), *bos = get(config, "bos_token_id");
    enum td_status st = TD_OK;
    double id;

    if (json_is_array(bos))
        bos = json_array_get(bos, 0);
    if (bos && spec->bos_id < 0) {
        id = json_number_value(bos);
        if (!json_is_number(bos) || id != floor(id) || id >= spec->n_vocab)
            return td_err_set(
                err, TD_CORRUPT,
                "'bos_token_id' is %.17g; expected an id below the vocabulary's %" PRIu32, id,
                spec->n_vocab);
        spec->bos_id = id < 0 ? -1 : (int64_t)id;
    }
    if (eos && !json_is_array(eos))
        return add_eos(spec, eos, err);
    for (size_t i = 0; i < json_array_size(eos) && !st; i++)
        st = add_eos(spec, json_array_get(eos, i), err);
    return st;
}

/* ---- whole ---- */

static enum td_status read_sizes(const json_t *config, const struct family *f, struct td_spec *spec,
                                 struct td_err *err)
{
    double eps = 1e-6;
    enum td_status st;

    if ((st = need_u32(config, "hidden_size", &spec->d_model, err)) ||
        (st = need_u32(config, "num_hidden_layers", &spec->n_layers, err)) ||
        (st = need_u32(config, "num_attention_heads", &spec->n_heads, err)) ||
        (st = need_u32(config, "intermediate_size", &spec->d_ff, err)) ||
        (st = need_u32(config, "vocab_size", &spec->n_vocab, err)))
        return st;
    spec->n_kv_heads = f->n_kv_heads ? f->n_kv_heads : spec->n_heads;
    spec->head_dim = f->head_dim;
    spec->max_positions = f->max_positions;
    if ((st = get_u32(config, "num_key_value_heads", &spec->n_kv_heads, err)) ||
        (st = get_u32(config, "head_dim", &spec->head_dim, err)) ||
        (st = get_u32(config, "max_position_embeddings", &spec->max_positions, err)) ||
        (st = get_number(config, "rms_norm_eps", &eps, err)) ||
        (st = get_bool(config, "tie_word_embeddings", &spec->tied_head, err)))
        return st;
    spec->rms_eps = (float)eps;
    if (spec->head_dim == 0 && !get(config, "head_dim") && spec->n_heads) {
        if (spec->d_model % spec->n_heads)
            return td_err_set(err, TD_CORRUPT,
                              "'hidden_size' %" PRIu32
                              " is no multiple of 'num_attention_heads' %" PRIu32
                              " and there is no 'head_dim'",
                              spec->d_model, spec->n_heads);
        spec->head_dim = spec->d_model / spec->n_heads;
    }
    return TD_OK;
}

static enum td_status read_config(const json_t *config, struct td_spec *spec,
                                  enum td_int4_form *int4, struct td_err *err)
{
    const json_t *dtype = get(config, "dtype");
    const struct family *f = NULL;
    enum td_status st;

    if ((st = find_family(config, &f, err)))
        return st;
    spec->arch = f->arch;
    spec->qk_norm = f->qk_norm;
    strncpy(spec->name, f->architecture, sizeof spec->name - 1);
    if ((st = refuse_options(config, err)) || (st = read_quantization(config, int4, err)) ||
        (st = read_sizes(config, f, spec, err)) || (st = read_windows(config, f, spec, err)) ||
        (st = read_rope(config, spec, err)))
        return st;
    if (!dtype)
        dtype = get(config, "torch_dtype");
    if (json_is_string(dtype))
        (void)td_dtype_from_name(json_string_value(dtype), &spec->dtype);
    return read_ids(config, spec, err);
}

enum td_status td_hfconfig_read(struct td_str config, struct td_str generation,
                                struct td_str tokenizer, struct td_spec *out,
                                enum td_int4_form *int4, struct td_err *err)
{
    struct td_spec spec = {.bos_id = -1};
    json_t *root;
    enum td_status st;

    if ((st = td_jsonfile_parse(config, "config.json", MAX_CONFIG_BYTES, TD_JSONFILE_CONFIG, &root,
                                err)))
        return st;
    st = read_config(root, &spec, int4, err);
    json_decref(root);
    if (st) {
        td_err_context(err, "config.json");
        return st;
    }
    if (generation.len) {
        if ((st = td_jsonfile_parse(generation, "generation_config.json", MAX_CONFIG_BYTES,
                                    TD_JSONFILE_CONFIG, &root, err)))
            return st;
        st = read_ids(root, &spec, err);
        json_decref(root);
        if (st) {
            td_err_context(err, "generation_config.json");
            return st;
        }
    }
    if (tokenizer.len) {
        if ((st = td_jsonfile_parse(tokenizer, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES,
                                    TD_JSONFILE_CONFIG, &root, err)))
            return st;
        st = get_bool(root, "add_bos_token", &spec.add_bos, err);
        json_decref(root);
        if (st) {
            td_err_context(err, "tokenizer_config.json");
            return st;
        }
    }
    *out = spec;
    return TD_OK;
}

enum td_status td_hfconfig_chat_template(struct td_str tokenizer, char **out, struct td_err *err)
{
    const json_t *value, *chosen = NULL;
    enum td_status st;
    json_t *root;

    *out = NULL;
    if (tokenizer.len == 0)
        return TD_OK;
    if ((st = td_jsonfile_parse(tokenizer, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES,
                                TD_JSONFILE_CONFIG, &root, err)))
        return st;
    value = get(root, "chat_template");
    if (json_is_string(value))
        chosen = value;
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i), *name = json_object_get(entry, "name");

        if (json_is_string(name) && strcmp(json_string_value(name), "default") == 0)
            chosen = json_object_get(entry, "template");
    }
    if (json_is_string(chosen) && !(*out = strdup(json_string_value(chosen))))
        st = td_err_set(err, TD_NO_MEMORY, "no memory for the chat template");
    json_decref(root);
    return st;
}
