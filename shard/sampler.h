/* From one row of logits to one token id. Pure: no clock, no global state, no allocation per call.
 * A draw depends only on (seed, choice, position, draw index), so neither batching nor replay shifts it (README,
 * "Exactness"). Every sum over the vocabulary uses fixed leaves of token ids and one tree. */
#ifndef TD_SHARD_SAMPLER_H
#define TD_SHARD_SAMPLER_H

#include "kernels/base/err.h"
#include "kernels/top.h"

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
    uint32_t choice; /* index among n choices of one request */
    int32_t
        n_logprobs; /* -1: none asked; 0: the chosen token's only; up to TD_SAMPLER_MAX_LOGPROBS alternatives */
    uint32_t n_bias;
    struct td_logit_bias
        bias[TD_SAMPLER_MAX_BIAS]; /* in [-100, 100]; biases of the same id add up */
};

void td_sampling_default(struct td_sampling *s);
/* TD_INVALID naming the OpenAI parameter, its value and its range. `n_vocab` 0 skips the check of bias ids. */
enum td_status td_sampling_validate(const struct td_sampling *s, uint32_t n_vocab,
                                    struct td_err *err);

struct td_token_logprob {
    uint32_t id;
    float
        logprob; /* natural log of the model's probability at temperature 1, before bias, penalties and cuts;
                      at least -9999, so that it can always be written as a JSON number */
};

struct td_sampled {
    uint32_t id;
    bool no_choice; /* no id had a usable logit; `id` means nothing (see td_sampler_draw) */
    float logprob;  /* as above; valid when n_logprobs >= 0 */
    uint32_t n_top;
    struct td_token_logprob top[TD_SAMPLER_MAX_LOGPROBS]; /* most likely first; ties by lower id */
};

/* One sequence's memory: counts of the ids seen, kept only when a penalty asks for them. Rebuilt by replaying ids
 * through td_sampler_accept. One thread at a time. */
struct td_sampler;
/* Validates `params` and takes a copy. All memory of later draws is allocated here (TD_NO_MEMORY). Close it. */
enum td_status td_sampler_open(const struct td_sampling *params, uint32_t n_vocab,
                               struct td_sampler **s, struct td_err *err);
void td_sampler_close(struct td_sampler *s); /* NULL is legal */
/* Ids outside the vocabulary are passed over. */
void td_sampler_accept_prompt(struct td_sampler *s, const uint32_t *ids, size_t n);
void td_sampler_accept(struct td_sampler *s, uint32_t id); /* one output token */

/* Draws the token at absolute position `position` (the position that the new token will have) from `logits`
 * [n_vocab]. `banned`: ids that may not be drawn (n_banned may be 0), e.g. EOS before min_tokens. Does not accept.
 *
 * Stages, in this order, each on what the one before left:
 *   1. bias: l += bias
 *   2. repetition penalty over prompt and output: l = l > 0 ? l / r : l * r
 *   3. presence and frequency penalties over the output: l -= frequency * count + presence
 *   4. banned ids: l = -inf
 *   5. temperature: weight w = exp((l - max l) / T); T = 0, or top_k = 1, takes the largest l and ends here
 *   6. top-k: the k largest l
 *   7. top-p: the fewest ids, largest l first, whose share of the weight left by 6 reaches top_p
 *   8. min-p: ids with w >= min_p (the largest weight is 1)
 *   9. draw: one uniform number (draw index 0) on the running sum of weights in ascending id
 * Among equal l the lower id counts as larger. A NaN counts as -inf; +inf takes all the weight. When no id is left
 * with l > -inf, the lowest id that is not banned is taken (0 if all are) and `no_choice` is set: the model or the
 * request is broken, and the caller should end the sequence with an error. */
void td_sampler_draw(struct td_sampler *s, const float *logits, uint32_t position,
                     const uint32_t *banned, uint32_t n_banned, struct td_sampled *out);
/* How many of a row's largest logits give the same draw as the whole row, with up to n_banned banned ids: those that top-k or
 * greed keep, and one for each that is banned. 0: the whole row is needed (no such cut, or more than TD_TOP_MAX; bias,
 * penalties, logprobs). */
uint32_t td_sampling_n_top(const struct td_sampling *s, uint32_t n_banned);
/* The same draw from the row's n_top largest logits, as td_kern_top gives them; n_top is at least td_sampling_n_top's. */
void td_sampler_draw_top(struct td_sampler *s, const struct td_top *top, uint32_t n_top,
                         uint32_t position, const uint32_t *banned, uint32_t n_banned,
                         struct td_sampled *out);
/* The distribution that the draw above uses: the probability of each id after stage 8 into `probs` [n_vocab]. Also for
 * greedy (1 for one id). For tests and for verifying drafts; costs a pass more than a draw. */
void td_sampler_probs(struct td_sampler *s, const float *logits, const uint32_t *banned,
                      uint32_t n_banned, double *probs);

/* The counter-based generator (Philox4x32-10, Salmon et al. 2011): four words of output for a counter and a key. */
void td_sampler_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* Uniform in [0, 1) with 24 bits: the top bits of the first word for counter (position, choice, draw, 0) and key
 * (low, high half of the seed). */
float td_sampler_uniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t draw);

#endif
