#include "shard/sampler.h"

#include "kernels/detmath.h"
#include "shard/cut.h"
#include "shard/dry.h"
#include "shard/logitrow.h"
#include "shard/mirostat.h"
#include "shard/penalty.h"
#include "shard/rowmath.h"
#include "shard/vsum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN_LOGPROB (-9999.0)
enum { DRAW_TOKEN = 0, DRAW_XTC = 1 }; /* indices of the uniform numbers of one position */

/* Nothing here is as long as the vocabulary but what penalties need, and that only when they are asked for. */
struct td_sampler {
    struct td_sampling params; /* bias sorted by id */
    uint32_t n_vocab;
    uint32_t n_leaves;
    struct td_penalty *penalty; /* owned; NULL without penalties */
    struct td_dry *dry;         /* owned; NULL without DRY */
    double *leaf_sum;           /* owned [n_leaves]; weight left of each leaf in the draw at hand */
    double mu;
    bool has_drawn; /* a token of mirostat was drawn, and none was accepted since */
    uint32_t drawn_id;
    double drawn_mu; /* mu once it is accepted */
};

/* Stable and in place; 300 entries at most, once per request. */
static void sort_bias(struct td_sampling *p)
{
    for (uint32_t i = 1; i < p->n_bias; i++) {
        struct td_logit_bias b = p->bias[i];
        uint32_t j = i;

        for (; j > 0 && p->bias[j - 1].id > b.id; j--)
            p->bias[j] = p->bias[j - 1];
        p->bias[j] = b;
    }
}

enum td_status td_sampler_open(const struct td_sampling *params, uint32_t n_vocab,
                               struct td_sampler **out, struct td_err *err)
{
    struct td_sampler *s;
    enum td_status st;

    if (n_vocab == 0)
        return td_err_set(err, TD_INVALID, "a sampler's vocabulary has 0 tokens, expected > 0");
    if ((st = td_sampling_validate(params, n_vocab, err)))
        return st;
    s = calloc(1, sizeof(*s));
    if (!s)
        goto no_memory;
    s->params = *params;
    s->params.dry_breakers = NULL; /* borrowed no longer than this call */
    sort_bias(&s->params);
    s->mu = td_mirostat_start(params->mirostat_tau);
    s->n_vocab = n_vocab;
    s->n_leaves = (n_vocab - 1) / TD_VSUM_LEAF + 1;
    s->leaf_sum = calloc(s->n_leaves, sizeof(*s->leaf_sum));
    if (!s->leaf_sum)
        goto no_memory;
    if (td_sampling_has_penalties(params) && !(s->penalty = td_penalty_open(params, n_vocab)))
        goto no_memory;
    if (td_sampling_has_dry(params) && !(s->dry = td_dry_open(params, n_vocab)))
        goto no_memory;
    *out = s;
    return TD_OK;

no_memory:
    td_sampler_close(s);
    return td_err_set(err, TD_NO_MEMORY, "no memory for a sampler over %u tokens", n_vocab);
}

void td_sampler_close(struct td_sampler *s)
{
    if (!s)
        return;
    td_dry_close(s->dry);
    td_penalty_close(s->penalty);
    free(s->leaf_sum);
    free(s);
}

static void see(struct td_sampler *s, uint32_t id, bool is_output)
{
    if (s->penalty)
        td_penalty_accept(s->penalty, id, is_output);
    if (s->dry)
        td_dry_accept(s->dry, id);
}

void td_sampler_accept_prompt(struct td_sampler *s, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        see(s, ids[i], false);
}

void td_sampler_accept(struct td_sampler *s, uint32_t id)
{
    see(s, id, true);
    if (s->has_drawn && s->drawn_id == id)
        s->mu = s->drawn_mu;
    s->has_drawn = false;
}

struct td_sampler_state td_sampler_state(const struct td_sampler *s)
{
    return (struct td_sampler_state){.mu = s->mu};
}

enum td_status td_sampler_set_state(struct td_sampler *s, struct td_sampler_state state,
                                    struct td_err *err)
{
    if (!isfinite(state.mu))
        return td_err_set(err, TD_INVALID, "mirostat's mu is %g, expected a finite number",
                          state.mu);
    s->mu = state.mu;
    s->has_drawn = false;
    return TD_OK;
}

/* ---- One draw ---- */

/* base^exponent for 0 <= base <= 1 and exponent >= 0. */
static double power(double base, double exponent)
{
    if (exponent == 0)
        return 1;
    return td_detmath_exp(exponent * td_detmath_log(base));
}

/* T of stage 8. */
static double temperature_of(const struct td_sampling *p, const struct td_cut *c)
{
    double t = (double)p->temperature, range = (double)p->dynatemp_range;
    double low = t > range ? t - range : 0, high = t + range;

    if (range == 0)
        return t;
    return low + (high - low) * power(td_cut_entropy_share(c), (double)p->dynatemp_exponent);
}

/* Stages 6 to 12. */
static void cut_by_share(const struct td_sampler *s, uint32_t position, struct td_cut *c)
{
    const struct td_sampling *p = &s->params;

    if (p->top_n_sigma > 0)
        td_cut_top_n_sigma(c, p->top_n_sigma);
    if (p->top_k > 0)
        td_cut_top_k(c, (uint32_t)p->top_k);
    td_cut_set_temperature(c, temperature_of(p, c));
    if (p->typical_p < 1)
        td_cut_typical(c, p->typical_p);
    if (p->top_p < 1)
        td_cut_top_p(c, p->top_p);
    td_cut_min_p(c, p->min_p);
    if (td_sampler_uniform(p->seed, p->choice, position, DRAW_XTC) < p->xtc_probability)
        td_cut_xtc(c, p->xtc_threshold);
}

/* Mirostat in the place of stages 6 to 12. Returns all the weight before its cut. */
static double cut_by_surprise(const struct td_sampler *s, struct td_cut *c)
{
    double whole;

    td_cut_set_temperature(c, (double)s->params.temperature);
    whole = td_cut_sum(c);
    if (s->params.mirostat == 1) {
        struct td_top largest[TD_MIROSTAT_N_LARGEST];
        uint32_t n = td_cut_largest(c, largest, TD_MIROSTAT_N_LARGEST);
        float z[TD_MIROSTAT_N_LARGEST];

        for (uint32_t i = 0; i < n; i++)
            z[i] = largest[i].value;
        if (c->max < INFINITY)
            td_cut_top_k(c, td_mirostat_k(z, n, c->inv_t, s->mu, s->n_vocab));
    } else {
        c->least_weight = whole * td_mirostat_least_share(s->mu);
        if (c->least_weight > 1) { /* even the largest surprises too much: it alone stays */
            c->least_weight = 0;
            td_cut_top_k(c, 1);
        }
    }
    return whole;
}

/* Stages 6 to 13. */
static uint32_t draw_id(struct td_sampler *s, struct td_cut *c, uint32_t position)
{
    const struct td_sampling *p = &s->params;
    double u = (double)td_sampler_uniform(p->seed, p->choice, position, DRAW_TOKEN);
    double whole = 0, weight = 1;
    uint32_t id;

    if (p->mirostat)
        whole = cut_by_surprise(s, c);
    else
        cut_by_share(s, position, c);
    id = td_cut_pick(c, u * td_cut_sum(c), &weight);
    if (p->mirostat) {
        s->has_drawn = true;
        s->drawn_id = id;
        s->drawn_mu = td_mirostat_next(s->mu, p->mirostat_tau, p->mirostat_eta, whole, weight);
    }
    return id;
}

static void draw(struct td_sampler *s, const struct td_logitrow *r, uint32_t position,
                 struct td_sampled *out)
{
    struct td_cut c;
    float max;

    s->has_drawn = false;
    out->n_top = 0;
    out->logprob = 0;
    out->no_choice = !td_logitrow_max(r, &max, &out->id);
    if (out->no_choice)
        out->id = td_logitrow_lowest_allowed(r);
    else if (!td_sampling_is_greedy(&s->params)) {
        td_cut_init(&c, r, max, s->leaf_sum);
        out->id = draw_id(s, &c, position);
    }
}

static struct td_logitrow row_of(const struct td_sampler *s, const float *logits,
                                 const uint32_t *banned, uint32_t n_banned)
{
    return (struct td_logitrow){.n_vocab = s->n_vocab,
                                .n_leaves = s->n_leaves,
                                .logits = logits,
                                .params = &s->params,
                                .penalty = s->penalty,
                                .dry = s->dry,
                                .banned = banned,
                                .n_banned = n_banned};
}

/* NaN comes from a NaN logit or from infinities; an infinite logit beside an infinite sum is certain. */
static float logprob_of(float logit, double logsumexp)
{
    double lp = (double)logit - logsumexp;

    if (lp != lp)
        lp = logit == INFINITY ? 0 : MIN_LOGPROB;
    return (float)(lp < MIN_LOGPROB ? MIN_LOGPROB : lp);
}

/* `value`: the logit of out->id; top [n_top]: the row's largest. */
static void fill_logprobs(float value, const struct td_top *top, uint32_t n_top, double logsumexp,
                          struct td_sampled *out)
{
    out->logprob = logprob_of(value, logsumexp);
    out->n_top = 0;
    for (uint32_t i = 0; i < n_top && top[i].id != UINT32_MAX; i++)
        out->top[out->n_top++] =
            (struct td_token_logprob){top[i].id, logprob_of(top[i].value, logsumexp)};
}

void td_sampler_logprobs(const float *logits, uint32_t n_vocab, uint32_t n_top,
                         struct td_sampled *out)
{
    struct td_top top[TD_SAMPLER_MAX_LOGPROBS];

    td_top_clear(top, n_top);
    for (uint32_t id = 0; n_top > 0 && id < n_vocab; id++) {
        id += td_rowmath_above(logits + id, n_vocab - id, top[n_top - 1].value);
        if (id < n_vocab)
            td_top_insert(top, n_top, (struct td_top){logits[id], id});
    }
    out->rank = 1 + td_rowmath_rank(logits, n_vocab, out->id);
    fill_logprobs(logits[out->id], top, n_top, td_vsum_logsumexp(logits, n_vocab), out);
}

void td_sampler_measured(const struct td_measure *m, const struct td_top *top, uint32_t n_list,
                         uint32_t n_top, struct td_sampled *out)
{
    float value = m->value;

    out->rank = 1 + m->n_before;
    if (m->id != out->id)
        for (uint32_t i = 0; i < n_list; i++)
            if (top[i].id == out->id) {
                value = top[i].value;
                out->rank = 1 + i;
            }
    fill_logprobs(value, top, n_top < n_list ? n_top : n_list,
                  m->max == -INFINITY ? -INFINITY : (double)m->max + td_detmath_log(m->sum), out);
}

void td_sampler_draw(struct td_sampler *s, const float *logits, uint32_t position,
                     const uint32_t *banned, uint32_t n_banned, struct td_sampled *out)
{
    struct td_logitrow r = row_of(s, logits, banned, n_banned);

    if (s->dry)
        td_dry_begin(s->dry);
    draw(s, &r, position, out);
    if (s->dry)
        td_dry_end(s->dry);
    if (s->params.n_logprobs >= 0)
        td_sampler_logprobs(logits, s->n_vocab, (uint32_t)s->params.n_logprobs, out);
}

void td_sampler_draw_top(struct td_sampler *s, const struct td_top *top, uint32_t n_top,
                         uint32_t position, const uint32_t *banned, uint32_t n_banned,
                         struct td_sampled *out)
{
    struct td_logitrow r = row_of(s, NULL, banned, n_banned);
    struct td_top by_id[TD_TOP_MAX];

    r.top = by_id;
    for (uint32_t i = 0; i < n_top && top[i].id < s->n_vocab; i++) {
        uint32_t j = r.n_top++;

        for (; j > 0 && by_id[j - 1].id > top[i].id; j--)
            by_id[j] = by_id[j - 1];
        by_id[j] = top[i];
    }
    draw(s, &r, position, out);
}

struct td_draw td_sampler_row_draw(const struct td_sampling *params, uint32_t position)
{
    return (struct td_draw){
        .inv_t = 1.0 / (double)params->temperature,
        .top_p = params->top_p,
        .min_p = params->min_p,
        .u = td_sampler_uniform(params->seed, params->choice, position, DRAW_TOKEN)};
}

/* td_sampler_probs without DRY's begin and end. */
static void fill_probs(struct td_sampler *s, const struct td_logitrow *r, uint32_t position,
                       double *probs)
{
    struct td_cut c;
    double total;
    uint32_t id;
    float max;

    memset(probs, 0, s->n_vocab * sizeof(*probs));
    if (!td_logitrow_max(r, &max, &id)) {
        probs[td_logitrow_lowest_allowed(r)] = 1;
        return;
    }
    if (td_sampling_is_greedy(&s->params)) {
        probs[id] = 1;
        return;
    }
    td_cut_init(&c, r, max, s->leaf_sum);
    if (s->params.mirostat)
        cut_by_surprise(s, &c);
    else
        cut_by_share(s, position, &c);
    total = td_cut_sum(&c);
    td_cut_weights(&c, probs);
    for (id = 0; id < s->n_vocab; id++)
        probs[id] /= total;
}

void td_sampler_probs(struct td_sampler *s, const float *logits, uint32_t position,
                      const uint32_t *banned, uint32_t n_banned, double *probs)
{
    struct td_logitrow r = row_of(s, logits, banned, n_banned);

    if (s->dry)
        td_dry_begin(s->dry);
    fill_probs(s, &r, position, probs);
    if (s->dry)
        td_dry_end(s->dry);
}

void td_sampler_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    /* Multipliers and Weyl constants of the paper, section 4.3. */
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;

        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

float td_sampler_uniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t draw)
{
    const uint32_t counter[4] = {position, choice, draw, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t out[4];

    td_sampler_philox(counter, key, out);
    return (float)(out[0] >> 8) * 0x1p-24f;
}
