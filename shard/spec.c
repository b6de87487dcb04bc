#include "shard/spec.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

/* Caps far above any real model, low enough that every product of two fits 63 bits with room for bytes. */
enum {
    MAX_MODEL = 1 << 20,
    MAX_HEADS = 1 << 16,
    MAX_HEAD_DIM = 1 << 13,
    MAX_FF = 1 << 24,
    MAX_VOCAB = 1 << 24,
    MAX_POSITIONS = 1 << 30
};

static enum td_status check_range(const char *field, uint64_t value, uint64_t low, uint64_t high,
                                  struct td_err *err)
{
    if (value >= low && value <= high)
        return TD_OK;
    return td_err_set(err, TD_CORRUPT, "%s is %" PRIu64 "; expected %" PRIu64 " to %" PRIu64, field,
                      value, low, high);
}

static enum td_status check_sizes(const struct td_spec *s, struct td_err *err)
{
    enum td_status st;

    if ((st = check_range("number of layers", s->n_layers, 1, TD_SPEC_MAX_LAYERS, err)) ||
        (st = check_range("model dimension", s->d_model, 1, MAX_MODEL, err)) ||
        (st = check_range("number of heads", s->n_heads, 1, MAX_HEADS, err)) ||
        (st = check_range("number of KV heads", s->n_kv_heads, 1, s->n_heads, err)) ||
        (st = check_range("head dimension", s->head_dim, 2, MAX_HEAD_DIM, err)) ||
        (st = check_range("feed-forward dimension", s->d_ff, 1, MAX_FF, err)) ||
        (st = check_range("vocabulary size", s->n_vocab, 1, MAX_VOCAB, err)) ||
        (st = check_range("context length", s->max_positions, 1, MAX_POSITIONS, err)) ||
        (st = check_range("heads x head dimension", (uint64_t)s->n_heads * s->head_dim, 2, MAX_FF,
                          err)))
        return st;
    if (s->n_heads % s->n_kv_heads)
        return td_err_set(err, TD_CORRUPT,
                          "%" PRIu32 " heads are no multiple of %" PRIu32 " KV heads", s->n_heads,
                          s->n_kv_heads);
    if (s->head_dim % 2)
        return td_err_set(err, TD_CORRUPT, "head dimension is %" PRIu32 "; expected an even number",
                          s->head_dim);
    return TD_OK;
}

/* NaN fails every comparison, so the accepted interval is what is asked for. */
static enum td_status check_number(const char *field, double value, double above, double most,
                                   struct td_err *err)
{
    if (value > above && value <= most)
        return TD_OK;
    return td_err_set(err, TD_CORRUPT, "%s is %g; expected more than %g and at most %g", field,
                      value, above, most);
}

static enum td_status check_scaling(const struct td_rope_spec *r, struct td_err *err)
{
    enum td_status st = TD_OK;

    if (r->scaling != TD_ROPE_NONE && (st = check_number("RoPE factor", r->factor, 0, 1e6, err)))
        return st;
    switch (r->scaling) {
    case TD_ROPE_NONE:
    case TD_ROPE_LINEAR:
        return TD_OK;
    case TD_ROPE_LLAMA3:
        if ((st = check_number("RoPE low_freq_factor", r->low_freq_factor, 0, 1e6, err)) ||
            (st = check_number("RoPE high_freq_factor", r->high_freq_factor, r->low_freq_factor,
                               1e6, err)))
            return st;
        return check_number("RoPE original context length", r->original_max_positions, 0,
                            MAX_POSITIONS, err);
    case TD_ROPE_YARN:
        if ((st = check_number("RoPE beta_slow", r->beta_slow, 0, 1e6, err)) ||
            (st = check_number("RoPE beta_fast", r->beta_fast, r->beta_slow, 1e6, err)) ||
            (st = check_number("RoPE attention factor", r->attention_factor, -1e-300, 1e6, err)))
            return st;
        return check_number("RoPE original context length", r->original_max_positions, 0,
                            MAX_POSITIONS, err);
    }
    return td_err_set(err, TD_UNSUPPORTED, "RoPE scaling %d is unknown", (int)r->scaling);
}

static enum td_status check_rope(const struct td_spec *s, struct td_err *err)
{
    enum td_status st;

    if ((st = check_number("RoPE base", s->rope.theta, 0, 1e15, err)) ||
        (st = check_scaling(&s->rope, err)))
        return st;
    for (uint32_t i = 0; s->rope.freq_factors && i < s->head_dim / 2; i++)
        if (!(s->rope.freq_factors[i] > 0) || !isfinite(s->rope.freq_factors[i]))
            return td_err_set(err, TD_CORRUPT,
                              "RoPE frequency factor %" PRIu32
                              " is %g; expected a finite number above 0",
                              i, (double)s->rope.freq_factors[i]);
    return TD_OK;
}

static enum td_status check_ids(const struct td_spec *s, struct td_err *err)
{
    if (s->bos_id < -1 || s->bos_id >= (int64_t)s->n_vocab)
        return td_err_set(err, TD_CORRUPT,
                          "begin-of-text id is %" PRId64 "; the vocabulary has %" PRIu32, s->bos_id,
                          s->n_vocab);
    if (s->n_eos > TD_SPEC_MAX_EOS)
        return td_err_set(err, TD_UNSUPPORTED, "%" PRIu32 " end-of-text ids; expected at most %d",
                          s->n_eos, TD_SPEC_MAX_EOS);
    for (uint32_t i = 0; i < s->n_eos; i++)
        if (s->eos_ids[i] >= s->n_vocab)
            return td_err_set(err, TD_CORRUPT,
                              "end-of-text id is %" PRIu32 "; the vocabulary has %" PRIu32,
                              s->eos_ids[i], s->n_vocab);
    return TD_OK;
}

enum td_status td_spec_validate(const struct td_spec *s, struct td_err *err)
{
    static const char *const kind_name[] = {"attention", "sliding-window", "latent", "recurrent"};
    enum td_status st;

    if (!memchr(s->name, 0, sizeof s->name))
        return td_err_set(err, TD_INVALID, "architecture name has no end");
    if ((unsigned)s->arch > TD_ARCH_QWEN3)
        return td_err_set(err, TD_UNSUPPORTED, "architecture %d ('%s') is unknown", (int)s->arch,
                          s->name);
    if ((unsigned)s->dtype >= TD_N_DTYPES)
        return td_err_set(err, TD_UNSUPPORTED, "element type %d is unknown", (int)s->dtype);
    if ((st = check_sizes(s, err)) ||
        (st = check_number("RMSNorm epsilon", (double)s->rms_eps, 0, 1, err)) ||
        (st = check_rope(s, err)) || (st = check_ids(s, err)))
        return st;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if ((unsigned)s->layer_kind[i] > TD_LAYER_RECURRENT)
            return td_err_set(err, TD_UNSUPPORTED, "layer %" PRIu32 " is of unknown kind %d", i,
                              (int)s->layer_kind[i]);
        if (s->layer_kind[i] != TD_LAYER_ATTENTION)
            return td_err_set(err, TD_UNSUPPORTED,
                              "layer %" PRIu32 " is a %s layer; only attention is built", i,
                              kind_name[s->layer_kind[i]]);
        if (s->slides[i] && s->window == 0)
            return td_err_set(err, TD_CORRUPT,
                              "layer %" PRIu32 " slides over a window of 0; expected 1 or more", i);
    }
    return TD_OK;
}
