/* How a client wants its tokens drawn: every parameter of the sampler, its default and its range. Plain data, copied by
 * value; knows no logits and keeps no state (sampler.h has both, and the order of the stages). */
#ifndef TD_SHARD_SAMPLING_H
#define TD_SHARD_SAMPLING_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    TD_SAMPLER_MAX_LOGPROBS = 20,
    TD_SAMPLER_MAX_BIAS = 300,
    TD_SAMPLING_MAX_WINDOW = 1 << 20,       /* ids that a penalty looks back over */
    TD_SAMPLING_MAX_BREAKER_BYTES = 1 << 19 /* of the set of breakers: ids below 2^22 */
};

struct td_logit_bias {
    uint32_t id;
    float bias;
};

/* As a client asks for it; names and defaults are those of OpenAI, vLLM and llama-server. */
struct td_sampling {
    float temperature;    /* >= 0; 0 is greedy (argmax, lowest id wins a tie) */
    float dynatemp_range; /* [0, 100]; 0: off; the temperature moves by so much around its value */
    float dynatemp_exponent;    /* [0, 100] */
    int32_t top_k;              /* 0 or -1: off */
    float top_p;                /* (0, 1]; 1: off */
    float min_p;                /* [0, 1]; 0: off */
    float typical_p;            /* (0, 1]; 1: off */
    float top_n_sigma;          /* [-1, 100]; 0 or less: off */
    float xtc_probability;      /* [0, 1]; 0: off */
    float xtc_threshold;        /* [0, 1]; above 0.5 it never cuts */
    float repetition_penalty;   /* > 0; 1: off; over prompt and output */
    float presence_penalty;     /* [-2, 2]; over the output */
    float frequency_penalty;    /* [-2, 2]; over the output */
    int32_t repeat_last_n;      /* ids that the three look back over; -1: all, 0: none */
    float dry_multiplier;       /* [0, 100]; 0: off */
    float dry_base;             /* [1, 100] */
    int32_t dry_allowed_length; /* ids that may repeat unpunished; at least 1 */
    int32_t
        dry_penalty_last_n; /* ids that DRY looks back over; -1: TD_SAMPLING_MAX_WINDOW, 0: none */
    const uint8_t *dry_breakers; /* borrowed: bit id % 8 of byte id / 8 is set when `id` breaks a
                                    repeated sequence; ids behind the end break none */
    uint32_t n_dry_breaker_bytes;
    int32_t mirostat;   /* 0: off; 1, 2: version of the algorithm, in the place of all cuts */
    float mirostat_tau; /* (0, 100]; surprise to hold, in bits per token */
    float mirostat_eta; /* (0, 10]; how fast it is held */
    uint64_t seed;
    uint32_t choice;    /* index among n choices of one request */
    int32_t n_logprobs; /* -1: none asked; 0: the chosen token's only; up to
                           TD_SAMPLER_MAX_LOGPROBS alternatives */
    uint32_t n_bias;
    struct td_logit_bias
        bias[TD_SAMPLER_MAX_BIAS]; /* in [-100, 100]; biases of the same id add up */
};

/* OpenAI's defaults; everything that OpenAI does not have is off, with llama-server's values behind it. */
void td_sampling_default(struct td_sampling *s);
/* TD_INVALID naming the parameter, its value and its range. `n_vocab` 0 skips the checks of ids. */
enum td_status td_sampling_validate(const struct td_sampling *s, uint32_t n_vocab,
                                    struct td_err *err);

/* The largest logit is always taken. */
bool td_sampling_is_greedy(const struct td_sampling *s);
bool td_sampling_has_penalties(const struct td_sampling *s); /* repetition, presence, frequency */
bool td_sampling_has_dry(const struct td_sampling *s);
/* Draws depend on more than the request and its ids: see td_sampler_state. */
bool td_sampling_has_state(const struct td_sampling *s);
/* How many of a row's largest logits give the same draw as the whole row, with up to n_banned banned ids: those that
 * top-k or greed keep, and one for each that is banned. 0: the whole row is needed (no such cut, or more than
 * TD_TOP_MAX; bias, penalties, DRY, top-n-sigma, mirostat). Log probabilities are not asked about, here as below. */
uint32_t td_sampling_n_top(const struct td_sampling *s, uint32_t n_banned);
/* Whether the draw is a td_draw of the whole row (kernels/draw.h), with up to n_banned banned ids, so that a device may make it: no
 * other stage takes part. Not where n_top above is some. */
bool td_sampling_draws_row(const struct td_sampling *s, uint32_t n_banned);

#endif
