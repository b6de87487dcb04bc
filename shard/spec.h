/* The model description that every architecture is reduced to: sizes, per-layer kinds, positions.
 * Plain data, filled once by a checkpoint reader, validated once, then read-only. Knows no file format. */
#ifndef TD_SHARD_SPEC_H
#define TD_SHARD_SPEC_H

#include "kernels/base/dtype.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_SPEC_MAX_LAYERS = 512, TD_SPEC_MAX_EOS = 8 };

enum td_arch { TD_ARCH_LLAMA, TD_ARCH_QWEN3 };

/* What memory a layer's sequence state is made of (README, "Memory of a sequence"). */
enum td_layer_kind {
    TD_LAYER_ATTENTION, /* paged KV blocks */
    TD_LAYER_WINDOW,    /* ring of the last `window` tokens */
    TD_LAYER_LATENT,    /* latent rows (MLA) */
    TD_LAYER_RECURRENT  /* fixed-size state */
};

enum td_rope_scaling { TD_ROPE_NONE, TD_ROPE_LINEAR, TD_ROPE_LLAMA3, TD_ROPE_YARN };

struct td_rope_spec {
    double theta; /* base of the frequencies */
    enum td_rope_scaling scaling;
    double factor;                 /* linear, llama3, yarn */
    double low_freq_factor;        /* llama3 */
    double high_freq_factor;       /* llama3 */
    double original_max_positions; /* llama3, yarn */
    double beta_fast;              /* yarn, default 32 */
    double beta_slow;              /* yarn, default 1 */
    double attention_factor;       /* yarn; 0: 0.1 ln(factor) + 1 */
    bool interleaved; /* pairs (2i, 2i+1), as GGUF's llama files; else (i, i + head_dim/2) */
    const float
        *freq_factors; /* [head_dim/2] divisors from GGUF's rope_freqs.weight; NULL when absent;
                                      borrows from the checkpoint */
};

struct td_spec {
    enum td_arch arch;
    char name[64]; /* architecture as the file names it, "LlamaForCausalLM" or "qwen3" */
    uint32_t n_layers;
    uint32_t d_model;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t d_ff;
    uint32_t n_vocab;
    uint32_t max_positions;
    float rms_eps;
    bool tied_head; /* the head is the embedding matrix */
    bool qk_norm;   /* RMSNorm over head_dim on q and k before RoPE (Qwen3) */
    struct td_rope_spec rope;
    enum td_layer_kind layer_kind[TD_SPEC_MAX_LAYERS];
    /* Attention layers whose tokens see `window` positions, their own the last, and not all (sliding window). Keys and values stay in
     * their blocks all the same. */
    bool slides[TD_SPEC_MAX_LAYERS];
    uint32_t window;     /* 0: none slides */
    enum td_dtype dtype; /* of most weight bytes; `auto` choices go by it */

    int64_t bos_id; /* -1: none */
    bool add_bos;
    uint32_t n_eos;
    uint32_t eos_ids[TD_SPEC_MAX_EOS]; /* ids that end a generation */
};

/* Checks every relation the code relies on (heads divide, sizes are not 0, products fit, finite numbers ...).
 * TD_CORRUPT or TD_UNSUPPORTED with the field, its value and what was expected. */
enum td_status td_spec_validate(const struct td_spec *spec, struct td_err *err);

/* Positions that a token of the layer sees; 0: all. */
static inline uint32_t td_spec_window(const struct td_spec *spec, uint32_t layer)
{
    return spec->slides[layer] ? spec->window : 0;
}

#endif
