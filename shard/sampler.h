/* From one row of logits to one token id. Pure: no clock, no global state, no allocation per call.
 * A draw depends only on (seed, choice, position, draw index), so neither batching nor replay shifts it (README,
 * "Exactness"). Every sum over the vocabulary uses fixed leaves of token ids and one tree. */
#ifndef TD_SHARD_SAMPLER_H
#define TD_SHARD_SAMPLER_H

#include "kernels/base/err.h"
#include "kernels/draw.h"
#include "kernels/top.h"
#include "shard/sampling.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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
    uint32_t rank;  /* of id by its logit, 1 is the largest; valid with logprob */
    uint32_t n_top;
    struct td_token_logprob top[TD_SAMPLER_MAX_LOGPROBS]; /* most likely first; ties by lower id */
};

/* One sequence's memory: counts of the ids seen and the last of them, kept only when a penalty asks for them, and what
 * mirostat holds. One thread at a time. */
struct td_sampler;
/* Validates `params` and takes a copy, of the set of breakers too. All memory of later draws is allocated here
 * (TD_NO_MEMORY). Close it. */
enum td_status td_sampler_open(const struct td_sampling *params, uint32_t n_vocab,
                               struct td_sampler **s, struct td_err *err);
void td_sampler_close(struct td_sampler *s); /* NULL is legal */
/* The whole prompt comes before the first output token. Ids outside the vocabulary are never punished. */
void td_sampler_accept_prompt(struct td_sampler *s, const uint32_t *ids, size_t n);
/* One output token. If it is the one drawn last, what that draw taught mirostat is taken over. */
void td_sampler_accept(struct td_sampler *s, uint32_t id);

/* What a draw depends on beyond the request and the ids so far. A sequence that is continued elsewhere is rebuilt by
 * accepting prompt and output again, in order, and then setting the state that was read after the last of these was
 * accepted; its draws are the same from there on. Whoever journals a request keeps this with each token, if
 * td_sampling_has_state; without that it never changes and need not be kept. Plain data. */
struct td_sampler_state {
    double mu; /* mirostat's largest surprise, in bits */
};
struct td_sampler_state td_sampler_state(const struct td_sampler *s);
/* TD_INVALID when it is no finite number. */
enum td_status td_sampler_set_state(struct td_sampler *s, struct td_sampler_state state,
                                    struct td_err *err);

/* Draws the token at absolute position `position` (the position that the new token will have) from `logits`
 * [n_vocab]. `banned`: ids that may not be drawn (n_banned may be 0), e.g. EOS before min_tokens. Does not accept, and
 * changes no later draw until its token is accepted.
 *
 * Stages, in this order, each on what the one before left:
 *    1. bias: l += bias
 *    2. repetition penalty over prompt and output: l = l > 0 ? l / r : l * r
 *    3. presence and frequency penalties over the output: l -= frequency * count + presence
 *    4. DRY over prompt and output: l -= multiplier * base^(length - allowed length) (dry.h)
 *    5. banned ids: l = -inf. Then temperature = 0, or top_k = 1, takes the largest l and ends here
 *    6. top-n-sigma: ids with l >= max l - n sigma, of the deviation of all l above -inf
 *    7. top-k: the k largest l
 *    8. temperature: weight w = exp((l - max l) / T), rounded to a multiple of 2^-34, so that sums of up to 2^19 are exact. With dynatemp_range, T is not the temperature t but
 *       low + (high - low) * (H / ln n)^dynatemp_exponent, where low = max(0, t - range), high = t + range, and H is the
 *       entropy at T = 1 of the n ids left by 7; t if n = 1
 *    9. typical-p: the ids whose surprise is nearest to the entropy, as few as have a share of the weight left by 7 that
 *       reaches typical_p
 *   10. top-p: the fewest ids, largest l first, whose share of the weight left by 9 reaches top_p
 *   11. min-p: ids with w >= min_p times the largest w left
 *   12. XTC: if a uniform number (draw index 1) is below xtc_probability: of the ids with a share of at least
 *       xtc_threshold of the weight left by 11, all but the smallest are dropped
 *   13. draw: one uniform number (draw index 0) on the running sum of weights in ascending id
 * This is llama.cpp's default chain, but for the temperature: it comes before the cuts by share of weight, as in vLLM.
 * Repetition, presence and frequency look back over the last repeat_last_n ids of prompt and output.
 *
 * With mirostat, stages 6 to 12 are only the temperature and one cut, on all ids. Version 2: ids whose surprise,
 * log2(all w / w), is at most mu; version 1: the k largest, with k from mu by Zipf's law (mirostat.h). mu begins as
 * 2 * mirostat_tau; a token accepted after its draw moves it by mirostat_eta * (mirostat_tau - its surprise).
 *
 * Among equal l the lower id counts as larger. A NaN counts as -inf; +inf takes all the weight. When no id is left
 * with l > -inf, the lowest id that is not banned is taken (0 if all are) and `no_choice` is set: the model or the
 * request is broken, and the caller should end the sequence with an error. */
void td_sampler_draw(struct td_sampler *s, const float *logits, uint32_t position,
                     const uint32_t *banned, uint32_t n_banned, struct td_sampled *out);
/* The same draw from the row's n_top largest logits, as td_kern_top gives them; n_top is at least td_sampling_n_top's. */
void td_sampler_draw_top(struct td_sampler *s, const struct td_top *top, uint32_t n_top,
                         uint32_t position, const uint32_t *banned, uint32_t n_banned,
                         struct td_sampled *out);
/* The same draw as a device makes it from the whole row, where td_sampling_draws_row; its id is then what td_sampler_draw would give. */
struct td_draw td_sampler_row_draw(const struct td_sampling *params, uint32_t position);
/* Fills logprob, rank and the n_top most likely ones (none whose logit is -infinity or NaN) of out->id by the model's own distribution over `logits` [n_vocab]. */
void td_sampler_logprobs(const float *logits, uint32_t n_vocab, uint32_t n_top,
                         struct td_sampled *out);
/* The same from what a device knows of the row: its measure, and its n_list largest logits, of which there are n_top at least. They hold
 * out->id where the measure is of none. */
void td_sampler_measured(const struct td_measure *m, const struct td_top *top, uint32_t n_list,
                         uint32_t n_top, struct td_sampled *out);
/* The distribution that the draw at this position uses: the probability of each id after stage 12 into `probs`
 * [n_vocab]. Also for greedy (1 for one id). For tests and for verifying drafts; costs a pass more than a draw. */
void td_sampler_probs(struct td_sampler *s, const float *logits, uint32_t position,
                      const uint32_t *banned, uint32_t n_banned, double *probs);

/* The counter-based generator (Philox4x32-10, Salmon et al. 2011): four words of output for a counter and a key. */
void td_sampler_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* Uniform in [0, 1) with 24 bits: the top bits of the first word for counter (position, choice, draw, 0) and key
 * (low, high half of the seed). */
float td_sampler_uniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t draw);

#endif
