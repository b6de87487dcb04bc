#include "shard/sampling.h"

#include "kernels/top.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

void td_sampling_default(struct td_sampling *s)
{
    memset(s, 0, sizeof(*s));
    s->temperature = 1;
    s->dynatemp_exponent = 1;
    s->top_p = 1;
    s->typical_p = 1;
    s->top_n_sigma = -1;
    s->xtc_threshold = 0.1f;
    s->repetition_penalty = 1;
    s->repeat_last_n = -1;
    s->dry_base = 1.75f;
    s->dry_allowed_length = 2;
    s->dry_penalty_last_n = -1;
    s->mirostat_tau = 5;
    s->mirostat_eta = 0.1f;
    s->n_logprobs = -1;
}

bool td_sampling_is_greedy(const struct td_sampling *s)
{
    return s->temperature == 0 || (s->top_k == 1 && s->mirostat == 0);
}

bool td_sampling_has_penalties(const struct td_sampling *s)
{
    return s->repeat_last_n != 0 &&
           (s->repetition_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0);
}

bool td_sampling_has_dry(const struct td_sampling *s)
{
    return s->dry_multiplier > 0 && s->dry_penalty_last_n != 0;
}

bool td_sampling_has_state(const struct td_sampling *s)
{
    return s->mirostat != 0 && !td_sampling_is_greedy(s);
}

uint32_t td_sampling_n_top(const struct td_sampling *s, uint32_t n_banned)
{
    bool greedy = td_sampling_is_greedy(s);
    uint64_t kept = greedy ? 1 : s->top_k > 0 ? (uint64_t)s->top_k : TD_TOP_MAX + 1;

    if (td_sampling_has_penalties(s) || td_sampling_has_dry(s) || s->n_bias)
        return 0;
    if (!greedy && (s->mirostat != 0 || s->top_n_sigma > 0))
        return 0;
    return kept + n_banned > TD_TOP_MAX ? 0 : (uint32_t)kept + n_banned;
}

bool td_sampling_draws_row(const struct td_sampling *s, uint32_t n_banned)
{
    return !td_sampling_is_greedy(s) && !td_sampling_has_penalties(s) && !td_sampling_has_dry(s) &&
           s->n_bias == 0 && n_banned == 0 && s->mirostat == 0 && s->top_n_sigma <= 0 &&
           s->top_k <= 0 && s->dynatemp_range == 0 && s->typical_p == 1 && s->xtc_probability == 0;
}

static enum td_status check_ranges(const struct td_sampling *s, struct td_err *err)
{
    const struct {
        const char *name;
        float value, low, high;
        bool above_low;
    } ranges[] = {
        {"top_p", s->top_p, 0, 1, true},
        {"min_p", s->min_p, 0, 1, false},
        {"typical_p", s->typical_p, 0, 1, true},
        {"top_n_sigma", s->top_n_sigma, -1, 100, false},
        {"xtc_probability", s->xtc_probability, 0, 1, false},
        {"xtc_threshold", s->xtc_threshold, 0, 1, false},
        {"dynatemp_range", s->dynatemp_range, 0, 100, false},
        {"dynatemp_exponent", s->dynatemp_exponent, 0, 100, false},
        {"presence_penalty", s->presence_penalty, -2, 2, false},
        {"frequency_penalty", s->frequency_penalty, -2, 2, false},
        {"dry_multiplier", s->dry_multiplier, 0, 100, false},
        {"dry_base", s->dry_base, 1, 100, false},
        {"mirostat_tau", s->mirostat_tau, 0, 100, true},
        {"mirostat_eta", s->mirostat_eta, 0, 10, true},
    };

    for (size_t i = 0; i < sizeof(ranges) / sizeof(*ranges); i++) {
        float v = ranges[i].value;

        if (!(v >= ranges[i].low && v <= ranges[i].high) ||
            (ranges[i].above_low && v == ranges[i].low))
            return td_err_set(err, TD_INVALID, "%s is %g, expected a number in %c%g, %g]",
                              ranges[i].name, (double)v, ranges[i].above_low ? '(' : '[',
                              (double)ranges[i].low, (double)ranges[i].high);
    }
    return TD_OK;
}

static enum td_status check_counts(const struct td_sampling *s, struct td_err *err)
{
    const struct {
        const char *name;
        int32_t value, low, high;
    } counts[] = {
        {"repeat_last_n", s->repeat_last_n, -1, TD_SAMPLING_MAX_WINDOW},
        {"dry_allowed_length", s->dry_allowed_length, 1, TD_SAMPLING_MAX_WINDOW},
        {"dry_penalty_last_n", s->dry_penalty_last_n, -1, TD_SAMPLING_MAX_WINDOW},
        {"mirostat", s->mirostat, 0, 2},
        {"logprobs", s->n_logprobs, -1, TD_SAMPLER_MAX_LOGPROBS},
    };

    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
        if (counts[i].value < counts[i].low || counts[i].value > counts[i].high)
            return td_err_set(err, TD_INVALID, "%s is %d, expected an integer from %d to %d",
                              counts[i].name, counts[i].value, counts[i].low, counts[i].high);
    return TD_OK;
}

/* What cannot be meant together. top_k, top_p and min_p are no contradiction to mirostat: a model's own defaults often
 * set them, and it takes their place. */
static enum td_status check_together(const struct td_sampling *s, struct td_err *err)
{
    const struct {
        const char *name;
        float value;
        bool on;
    } cuts[] = {
        {"typical_p", s->typical_p, s->typical_p < 1},
        {"top_n_sigma", s->top_n_sigma, s->top_n_sigma > 0},
        {"xtc_probability", s->xtc_probability, s->xtc_probability > 0},
        {"dynatemp_range", s->dynatemp_range, s->dynatemp_range > 0},
    };

    for (size_t i = 0; s->mirostat && i < sizeof(cuts) / sizeof(*cuts); i++)
        if (cuts[i].on)
            return td_err_set(err, TD_INVALID,
                              "%s is %g together with mirostat %d, expected one of the two",
                              cuts[i].name, (double)cuts[i].value, s->mirostat);
    if (s->temperature == 0 && s->mirostat)
        return td_err_set(err, TD_INVALID,
                          "temperature is 0, which always takes the most likely token, together "
                          "with mirostat %d: expected a temperature above 0",
                          s->mirostat);
    if (s->temperature == 0 && s->dynatemp_range > 0)
        return td_err_set(err, TD_INVALID,
                          "temperature is 0, which always takes the most likely token, together "
                          "with dynatemp_range %g: expected a temperature above 0",
                          (double)s->dynatemp_range);
    return TD_OK;
}

static enum td_status check_ids(const struct td_sampling *s, uint32_t n_vocab, struct td_err *err)
{
    if (s->n_dry_breaker_bytes > TD_SAMPLING_MAX_BREAKER_BYTES ||
        (n_vocab && s->n_dry_breaker_bytes > (n_vocab - 1) / 8 + 1))
        return td_err_set(err, TD_INVALID,
                          "dry_sequence_breakers are a set of %u bytes, the vocabulary has %u ids",
                          s->n_dry_breaker_bytes, n_vocab);
    if (s->n_bias > TD_SAMPLER_MAX_BIAS)
        return td_err_set(err, TD_INVALID, "logit_bias has %u entries, expected at most %d",
                          s->n_bias, TD_SAMPLER_MAX_BIAS);
    for (uint32_t i = 0; i < s->n_bias; i++) {
        if (n_vocab && s->bias[i].id >= n_vocab)
            return td_err_set(err, TD_INVALID, "logit_bias names token %u, the vocabulary has %u",
                              s->bias[i].id, n_vocab);
        if (!(s->bias[i].bias >= -100 && s->bias[i].bias <= 100))
            return td_err_set(err, TD_INVALID,
                              "logit_bias of token %u is %g, expected a number in [-100, 100]",
                              s->bias[i].id, (double)s->bias[i].bias);
    }
    return TD_OK;
}

enum td_status td_sampling_validate(const struct td_sampling *s, uint32_t n_vocab,
                                    struct td_err *err)
{
    enum td_status st;

    if (!(s->temperature >= 0) || isinf(s->temperature))
        return td_err_set(err, TD_INVALID, "temperature is %g, expected a finite number >= 0",
                          (double)s->temperature);
    if (s->top_k < -1)
        return td_err_set(err, TD_INVALID,
                          "top_k is %d, expected -1 or 0 (off) or a positive count", s->top_k);
    if (!(s->repetition_penalty > 0) || isinf(s->repetition_penalty))
        return td_err_set(err, TD_INVALID, "repetition_penalty is %g, expected a finite number > 0",
                          (double)s->repetition_penalty);
    if ((st = check_ranges(s, err)) || (st = check_counts(s, err)) || (st = check_together(s, err)))
        return st;
    return check_ids(s, n_vocab, err);
}
