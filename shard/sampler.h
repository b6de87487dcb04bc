/* From one row of logits to one token id. Pure: no clock, no global state, no allocation per call.
 * A draw depends only on (seed, choice, position, draw index), so neither batching nor replay shifts it (README,
 * "Exactness"). Every sum over the vocabulary uses fixed leaves of token ids and one tree. */
#ifndef TD_SHARD_SAMPLER_H
#define TD_SHARD_SAMPLER_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TD_SAMPLER_MAX_LOGPROBS = 20, TD_SAMPLER_MAX_BIAS = 300 };

struct td_logit_bias {
    uint32_t id;
    float bias;
};

/* As a client asks for it. td_sampling_default() gives the OpenAI defaults. */
struct td_sampling {
    float temperature;        /* >= 0; 0 is greedy (argmax, lowest id wins a tie) */
    int32_t top_k;            /* 0 or -1: off */
    float top_p;              /* (0, 1]; 1: off */
    float min_p;              /* [0, 1]; 0: off */
    float repetition_penalty; /* > 0; 1: off; over prompt and output */
    float presence_penalty;   /* [-2, 2]; over the output */
    float frequency_penalty;  /* [-2, 2]; over the output */
    uint64_t seed;
    uint32_t choice;     /* index among n choices of one request */
    int32_t n_logprobs;  /* -1: none asked; 0: the chosen token's only; up to TD_SAMPLER_MAX_LOGPROBS alternatives */
    uint32_t n_bias;
    struct td_logit_bias bias[TD_SAMPLER_MAX_BIAS];
};

void td_sampling_default(struct td_sampling *s);
/* TD_INVALID naming the OpenAI parameter, its value and its range. `n_vocab` 0 skips the check of bias ids. */
enum td_status td_sampling_validate(const struct td_sampling *s, uint32_t n_vocab, struct td_err *err);

struct td_token_logprob {
    uint32_t id;
    float logprob; /* natural log of the model's probability at temperature 1, before penalties and cuts */
};

struct td_sampled {
    uint32_t id;
    float logprob; /* as above; valid when n_logprobs >= 0 */
    uint32_t n_top;
    struct td_token_logprob top[TD_SAMPLER_MAX_LOGPROBS]; /* most likely first; ties by lower id */
};

/* One sequence's memory: counts of the ids seen. Rebuilt by replaying ids through td_sampler_accept. */
struct td_sampler;
enum td_status td_sampler_open(const struct td_sampling *params, uint32_t n_vocab, struct td_sampler **s,
                               struct td_err *err);
void td_sampler_close(struct td_sampler *s);
void td_sampler_accept_prompt(struct td_sampler *s, const uint32_t *ids, size_t n);
void td_sampler_accept(struct td_sampler *s, uint32_t id); /* one output token */
/* Draws the token at absolute position `position` (the position that the new token will have) from `logits`
 * [n_vocab]. `banned`: ids that may not be drawn (n_banned may be 0), e.g. EOS before min_tokens. Does not accept. */
void td_sampler_draw(struct td_sampler *s, const float *logits, uint32_t position, const uint32_t *banned,
                     uint32_t n_banned, struct td_sampled *out);

/* The counter-based generator (Philox4x32-10, Salmon et al. 2011): uniform in [0, 1) with 24 bits. */
float td_sampler_uniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t draw);

#endif
