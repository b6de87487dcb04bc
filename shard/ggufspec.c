#include "shard/ggufspec.h"

#include "kernels/detmath.h"
#include "shard/gguf.h"
#include "shard/ggufwrite.h"
#include "shard/rope.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { KEY_BYTES = 128 };

static const struct family {
    const char *name;
    enum td_arch arch;
    bool qk_norm;
    bool interleaved; /* the converter permutes the rows of q and k */
} FAMILY[] = {
    {"llama", TD_ARCH_LLAMA, false, true},
    {"qwen3", TD_ARCH_QWEN3, true, false},
};

/* One read of one file's metadata: keys are "<architecture>.<rest>". */
struct reader {
    const struct td_gguf *g;
    const char *arch;
    struct td_err *err;
};

static const char *key_of(const struct reader *r, const char *rest, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%s.%s", r->arch, rest);
    return key;
}

/* Absent keys keep the default. An array is taken when all its values are equal (some writers repeat per layer). */
static enum td_status get_u32(const struct reader *r, const char *rest, uint32_t *out)
{
    char key[KEY_BYTES];
    const struct td_gguf_kv *kv = td_gguf_find(r->g, key_of(r, rest, key));

    if (!kv)
        return TD_OK;
    if (kv->type != TD_GGUF_ARRAY)
        return td_gguf_get_u32(r->g, key, out, r->err);
    if (kv->n == 0 || kv->elem == TD_GGUF_STRING || kv->elem == TD_GGUF_F32 ||
        kv->elem == TD_GGUF_F64)
        return td_err_set(r->err, TD_CORRUPT,
                          "metadata '%s' is an array of %zu %s; expected an integer", key, kv->n,
                          td_gguf_type_name(kv->elem));
    for (size_t i = 1; i < kv->n; i++)
        if (td_gguf_elem_i64(kv, i) != td_gguf_elem_i64(kv, 0))
            return td_err_set(r->err, TD_UNSUPPORTED,
                              "metadata '%s' differs from layer to layer, which is not built", key);
    if (td_gguf_elem_i64(kv, 0) < 0 || td_gguf_elem_i64(kv, 0) > UINT32_MAX)
        return td_err_set(r->err, TD_CORRUPT, "metadata '%s' holds %" PRId64 "; expected 0 to %u",
                          key, td_gguf_elem_i64(kv, 0), UINT32_MAX);
    *out = (uint32_t)td_gguf_elem_i64(kv, 0);
    return TD_OK;
}

static enum td_status need_u32(const struct reader *r, const char *rest, uint32_t *out)
{
    char key[KEY_BYTES];

    if (!td_gguf_find(r->g, key_of(r, rest, key)))
        return td_err_set(r->err, TD_CORRUPT, "metadata '%s' is missing", key);
    return get_u32(r, rest, out);
}

static enum td_status get_number(const struct reader *r, const char *rest, double *out)
{
    char key[KEY_BYTES];
    enum td_status st;
    float value;

    if (!td_gguf_find(r->g, key_of(r, rest, key)))
        return TD_OK;
    st = td_gguf_get_f32(r->g, key, &value, r->err);
    if (!st)
        *out = (double)value;
    return st;
}

/* ---- what is not built ---- */

static enum td_status find_family(const struct td_gguf *g, const struct family **out,
                                  struct td_err *err)
{
    struct td_str name;
    enum td_status st = td_gguf_get_str(g, "general.architecture", &name, err);
    bool shown = true;

    if (st)
        return st == TD_NOT_FOUND
                   ? td_err_set(err, TD_CORRUPT, "metadata 'general.architecture' is missing")
                   : st;
    for (size_t i = 0; i < sizeof FAMILY / sizeof FAMILY[0]; i++)
        if (td_str_eq(name, td_str_from(FAMILY[i].name))) {
            *out = &FAMILY[i];
            return TD_OK;
        }
    for (size_t i = 0; i < name.len; i++)
        shown = shown && name.ptr[i] > ' ' && name.ptr[i] <= '~' && name.len <= 64;
    return td_err_set(err, TD_UNSUPPORTED,
                      "architecture '%.*s' is not built; expected llama or qwen3",
                      shown ? (int)name.len : 1, shown ? name.ptr : "?");
}

static enum td_status refuse_options(const struct reader *r)
{
    char key[KEY_BYTES];
    uint32_t n = 0;
    enum td_status st;
    bool causal = true;

    if (td_gguf_find(r->g, "split.count")) {
        if ((st = td_gguf_get_u32(r->g, "split.count", &n, r->err)))
            return st;
        if (n > 1)
            return td_err_set(
                r->err, TD_UNSUPPORTED,
                "the model is split over %" PRIu32 " GGUF files; expected one whole file", n);
    }
    n = 0;
    if ((st = get_u32(r, "expert_count", &n)))
        return st;
    if (n > 0)
        return td_err_set(r->err, TD_UNSUPPORTED,
                          "the model has %" PRIu32 " experts; mixture of experts is not built", n);
    if (td_gguf_find(r->g, key_of(r, "attention.causal", key)) &&
        (st = td_gguf_get_bool(r->g, key, &causal, r->err)))
        return st;
    return causal ? TD_OK
                  : td_err_set(r->err, TD_UNSUPPORTED,
                               "'%s' is false; only causal models are built", key);
}

/* ---- sizes ---- */

static enum td_status read_vocab(const struct reader *r, struct td_spec *spec)
{
    const struct td_gguf_tensor *embed = td_gguf_find_tensor(r->g, "token_embd.weight");
    const struct td_gguf_kv *tokens = td_gguf_find(r->g, "tokenizer.ggml.tokens");
    size_t n_tokens = tokens && tokens->type == TD_GGUF_ARRAY ? tokens->n : 0;
    size_t n = embed ? embed->dim[0] : n_tokens;
    enum td_status st;

    spec->n_vocab = n <= UINT32_MAX ? (uint32_t)n : UINT32_MAX;
    if ((st = get_u32(r, "vocab_size", &spec->n_vocab)))
        return st;
    if (n_tokens > spec->n_vocab)
        return td_err_set(r->err, TD_CORRUPT,
                          "the tokenizer has %zu tokens, the model only %" PRIu32, n_tokens,
                          spec->n_vocab);
    return TD_OK;
}

static enum td_status read_sizes(const struct reader *r, struct td_spec *spec)
{
    uint32_t value_length, rotated;
    double eps = NAN;
    enum td_status st;

    if ((st = need_u32(r, "block_count", &spec->n_layers)) ||
        (st = need_u32(r, "embedding_length", &spec->d_model)) ||
        (st = need_u32(r, "feed_forward_length", &spec->d_ff)) ||
        (st = need_u32(r, "attention.head_count", &spec->n_heads)) ||
        (st = need_u32(r, "context_length", &spec->max_positions)))
        return st;
    if (spec->n_heads == 0)
        return td_err_set(r->err, TD_CORRUPT, "metadata '%s.attention.head_count' is 0", r->arch);
    spec->n_kv_heads = spec->n_heads;
    spec->head_dim = spec->d_model / spec->n_heads;
    if ((st = get_u32(r, "attention.head_count_kv", &spec->n_kv_heads)) ||
        (st = get_u32(r, "attention.key_length", &spec->head_dim)))
        return st;
    value_length = rotated = spec->head_dim;
    if ((st = get_u32(r, "attention.value_length", &value_length)) ||
        (st = get_u32(r, "rope.dimension_count", &rotated)) ||
        (st = get_number(r, "attention.layer_norm_rms_epsilon", &eps)))
        return st;
    if (value_length != spec->head_dim || rotated != spec->head_dim)
        return td_err_set(r->err, TD_UNSUPPORTED,
                          "heads have %" PRIu32 " key, %" PRIu32 " value and %" PRIu32
                          " rotated dimensions; expected the same number",
                          spec->head_dim, value_length, rotated);
    spec->rms_eps = (float)eps;
    return read_vocab(r, spec);
}

/* One number of tokens, and which layers have it: a truth value for each, else all. */
static enum td_status read_windows(const struct reader *r, struct td_spec *spec)
{
    uint32_t window = 0;
    char key[KEY_BYTES];
    enum td_status st = get_u32(r, "attention.sliding_window", &window);
    const struct td_gguf_kv *slides =
        td_gguf_find(r->g, key_of(r, "attention.sliding_window_pattern", key));

    if (st || window == 0)
        return st;
    if (slides && (slides->type != TD_GGUF_ARRAY || slides->elem != TD_GGUF_BOOL ||
                   slides->n != spec->n_layers))
        return td_err_set(r->err, TD_UNSUPPORTED,
                          "metadata '%s' is not built; expected an array of %" PRIu32
                          " truth values",
                          key, spec->n_layers);
    for (uint32_t i = 0; i < spec->n_layers && i < TD_SPEC_MAX_LAYERS; i++)
        if (!slides || td_gguf_elem_i64(slides, i)) {
            spec->slides[i] = true;
            spec->window = window;
        }
    return TD_OK;
}

/* ---- positions ---- */

static enum td_status read_scaling_type(const struct reader *r, struct td_rope_spec *rope)
{
    char key[KEY_BYTES];
    struct td_str type = TD_STR("linear"); /* what a factor without a type means */
    enum td_status st;

    if (td_gguf_find(r->g, key_of(r, "rope.scaling.type", key)) &&
        (st = td_gguf_get_str(r->g, key, &type, r->err)))
        return st;
    if (td_str_eq(type, TD_STR("none")))
        rope->scaling = TD_ROPE_NONE;
    else if (td_str_eq(type, TD_STR("linear")))
        rope->scaling = rope->factor == 1 ? TD_ROPE_NONE : TD_ROPE_LINEAR;
    else if (td_str_eq(type, TD_STR("yarn")))
        rope->scaling = TD_ROPE_YARN;
    else
        return td_err_set(r->err, TD_UNSUPPORTED,
                          "metadata '%s' is not built; expected none, linear or yarn", key);
    return TD_OK;
}

static enum td_status read_rope(const struct reader *r, struct td_spec *spec)
{
    struct td_rope_spec *rope = &spec->rope;
    double attention = 1, extrapolation = 1, log_multiplier = 0;
    uint32_t original = spec->max_positions;
    enum td_status st;

    *rope = (struct td_rope_spec){.theta = 10000,
                                  .factor = 1,
                                  .beta_fast = 32,
                                  .beta_slow = 1,
                                  .interleaved = rope->interleaved};
    if ((st = get_number(r, "rope.freq_base", &rope->theta)) ||
        (st = get_number(r, "rope.scale_linear", &rope->factor)) ||
        (st = get_number(r, "rope.scaling.factor", &rope->factor)) ||
        (st = get_u32(r, "rope.scaling.original_context_length", &original)) ||
        (st = get_number(r, "rope.scaling.attn_factor", &attention)) ||
        (st = get_number(r, "rope.scaling.yarn_attn_factor", &attention)) ||
        (st = get_number(r, "rope.scaling.yarn_ext_factor", &extrapolation)) ||
        (st = get_number(r, "rope.scaling.yarn_log_multiplier", &log_multiplier)) ||
        (st = get_number(r, "rope.scaling.yarn_beta_fast", &rope->beta_fast)) ||
        (st = get_number(r, "rope.scaling.yarn_beta_slow", &rope->beta_slow)))
        return st;
    if (rope->factor == 0) /* some writers mean "none" */
        rope->factor = 1;
    if ((st = read_scaling_type(r, rope)))
        return st;
    rope->original_max_positions = original;
    if (rope->scaling == TD_ROPE_YARN) {
        if (extrapolation != 1 || log_multiplier != 0)
            return td_err_set(r->err, TD_UNSUPPORTED,
                              "YaRN with extrapolation factor %g and log multiplier %g is not "
                              "built; expected 1 and 0",
                              extrapolation, log_multiplier);
        if (attention != 1)
            rope->attention_factor =
                attention * (rope->factor > 1 ? 0.1 * td_detmath_log(rope->factor) + 1 : 1);
    } else if (attention != 1) {
        return td_err_set(r->err, TD_UNSUPPORTED,
                          "RoPE attention factor %g without YaRN is not built", attention);
    }
    return TD_OK;
}

/* ---- ids ---- */

/* An id that writers set to all ones means "none". */
static enum td_status get_id(const struct td_gguf *g, const char *key, int64_t *id,
                             struct td_err *err)
{
    enum td_status st;

    *id = -1;
    if (!td_gguf_find(g, key))
        return TD_OK;
    if ((st = td_gguf_get_i64(g, key, id, err)))
        return st;
    if (*id < 0 || *id == UINT32_MAX)
        *id = -1;
    return TD_OK;
}

/* Where add_bos_token is absent: SentencePiece files and Llama 3's mean true, other BPE files false. */
static bool default_add_bos(const struct td_gguf *g)
{
    struct td_str model, pre;

    if (td_gguf_get_str(g, "tokenizer.ggml.model", &model, NULL))
        return false;
    if (td_str_eq(model, TD_STR("llama")))
        return true;
    return !td_gguf_get_str(g, "tokenizer.ggml.pre", &pre, NULL) &&
           (td_str_eq(pre, TD_STR("llama-bpe")) || td_str_eq(pre, TD_STR("llama3")) ||
            td_str_eq(pre, TD_STR("llama-v3")));
}

static enum td_status read_ids(const struct reader *r, struct td_spec *spec)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    enum td_status st;
    int64_t id;

    if ((st = get_id(r->g, "tokenizer.ggml.bos_token_id", &spec->bos_id, r->err)))
        return st;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        bool is_new = true;

        if ((st = get_id(r->g, ends[i], &id, r->err)))
            return st;
        if (id >= (int64_t)spec->n_vocab)
            return td_err_set(r->err, TD_CORRUPT,
                              "metadata '%s' is %" PRId64 "; the vocabulary has %" PRIu32, ends[i],
                              id, spec->n_vocab);
        for (uint32_t e = 0; e < spec->n_eos; e++)
            is_new = is_new && spec->eos_ids[e] != (uint32_t)id;
        if (id >= 0 && is_new)
            spec->eos_ids[spec->n_eos++] = (uint32_t)id;
    }
    spec->add_bos = default_add_bos(r->g);
    if (td_gguf_find(r->g, "tokenizer.ggml.add_bos_token"))
        return td_gguf_get_bool(r->g, "tokenizer.ggml.add_bos_token", &spec->add_bos, r->err);
    return TD_OK;
}

enum td_status td_ggufspec_read(const struct td_gguf *g, struct td_spec *out, struct td_err *err)
{
    struct td_spec spec = {.bos_id = -1};
    struct reader r = {.g = g, .err = err};
    const struct family *f = NULL;
    enum td_status st;

    if ((st = find_family(g, &f, err)))
        return st;
    r.arch = f->name;
    spec.arch = f->arch;
    spec.qk_norm = f->qk_norm;
    spec.rope.interleaved = f->interleaved;
    strncpy(spec.name, f->name, sizeof spec.name - 1);
    if ((st = refuse_options(&r)) || (st = read_sizes(&r, &spec)) ||
        (st = read_windows(&r, &spec)) || (st = read_rope(&r, &spec)) || (st = read_ids(&r, &spec)))
        return st;
    spec.tied_head = !td_gguf_find_tensor(g, "output.weight");
    *out = spec;
    return TD_OK;
}

/* ---- writing ---- */

static const struct family *family_of(const struct td_spec *spec)
{
    for (size_t i = 0; i < sizeof FAMILY / sizeof FAMILY[0]; i++)
        if (FAMILY[i].arch == spec->arch)
            return &FAMILY[i];
    return NULL; /* a spec that has been validated has one of them */
}

static void write_scaling(const char *arch, const struct td_rope_spec *rope, struct td_ggufwrite *w)
{
    const bool yarn = rope->scaling == TD_ROPE_YARN;
    char key[KEY_BYTES];
    struct reader r = {.arch = arch}; /* for its keys */

    if (!yarn && rope->scaling != TD_ROPE_LINEAR)
        return;
    td_ggufwrite_str(w, key_of(&r, "rope.scaling.type", key),
                     yarn ? TD_STR("yarn") : TD_STR("linear"));
    td_ggufwrite_f32(w, key_of(&r, "rope.scaling.factor", key), (float)rope->factor);
    if (!yarn)
        return;
    td_ggufwrite_u32(w, key_of(&r, "rope.scaling.original_context_length", key),
                     (uint32_t)rope->original_max_positions);
    td_ggufwrite_f32(w, key_of(&r, "rope.scaling.yarn_beta_fast", key), (float)rope->beta_fast);
    td_ggufwrite_f32(w, key_of(&r, "rope.scaling.yarn_beta_slow", key), (float)rope->beta_slow);
    if (rope->attention_factor > 0) /* the file's is relative to what the factor asks for */
        td_ggufwrite_f32(w, key_of(&r, "rope.scaling.attn_factor", key),
                         (float)(rope->attention_factor /
                                 (rope->factor > 1 ? 0.1 * td_detmath_log(rope->factor) + 1 : 1)));
}

static void write_windows(const struct reader *r, const struct td_spec *spec,
                          struct td_ggufwrite *w)
{
    uint8_t slides[TD_SPEC_MAX_LAYERS];
    uint32_t n = 0;
    char key[KEY_BYTES];

    for (uint32_t i = 0; i < spec->n_layers; i++)
        n += slides[i] = spec->slides[i];
    if (n == 0)
        return;
    td_ggufwrite_u32(w, key_of(r, "attention.sliding_window", key), spec->window);
    if (n < spec->n_layers)
        td_ggufwrite_values(w, key_of(r, "attention.sliding_window_pattern", key), true,
                            TD_GGUF_BOOL, slides, spec->n_layers);
}

void td_ggufspec_write(const struct td_spec *spec, struct td_ggufwrite *w)
{
    const struct family *f = family_of(spec);
    const struct {
        const char *rest;
        uint32_t value;
    } size[] = {
        {"context_length", spec->max_positions},  {"embedding_length", spec->d_model},
        {"block_count", spec->n_layers},          {"feed_forward_length", spec->d_ff},
        {"attention.head_count", spec->n_heads},  {"attention.head_count_kv", spec->n_kv_heads},
        {"attention.key_length", spec->head_dim}, {"attention.value_length", spec->head_dim},
        {"rope.dimension_count", spec->head_dim}, {"vocab_size", spec->n_vocab}};
    struct reader r = {.arch = f->name};
    char key[KEY_BYTES];

    td_ggufwrite_str(w, "general.architecture", td_str_from(f->name));
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++)
        td_ggufwrite_u32(w, key_of(&r, size[i].rest, key), size[i].value);
    td_ggufwrite_f32(w, key_of(&r, "attention.layer_norm_rms_epsilon", key), spec->rms_eps);
    td_ggufwrite_f32(w, key_of(&r, "rope.freq_base", key), (float)spec->rope.theta);
    write_windows(&r, spec, w);
    write_scaling(f->name, &spec->rope, w);
}

bool td_ggufspec_freq_factors(const struct td_spec *spec, double *scratch, float *factors)
{
    double *scaled = scratch + spec->head_dim / 2, scale;
    struct td_spec plain = *spec;

    if (spec->rope.scaling != TD_ROPE_LLAMA3)
        return false;
    plain.rope.scaling = TD_ROPE_NONE;
    td_rope_frequencies(&plain, scratch, &scale);
    td_rope_frequencies(spec, scaled, &scale);
    for (uint32_t i = 0; i < spec->head_dim / 2; i++)
        factors[i] = (float)(scratch[i] / scaled[i]);
    return true;
}
