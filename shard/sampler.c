#include "shard/sampler.h"

#include "shard/detmath.h"
#include "shard/vsum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SEEN_PROMPT = 1, SEEN_OUTPUT = 2, N_BUCKETS = 2048 };
#define MIN_LOGPROB (-9999.0)

/* Nothing here is as long as the vocabulary but the counts, and those only when a penalty needs them: every stage
 * walks the logits leaf by leaf and keeps a threshold instead of a list of candidates. */
struct td_sampler {
    struct td_sampling params; /* bias sorted by id */
    uint32_t n_vocab;
    uint32_t n_leaves;
    uint32_t
        *seen; /* owned [n_vocab]: 2 * output count + (in the prompt); NULL without penalties */
    double *leaf_sum; /* owned [n_leaves]; kept weight of each leaf in the draw at hand */
};

/* The inputs of one draw: a whole row, or its largest logits; then all others are -inf, which no stage can tell apart. */
struct row {
    const struct td_sampler *s;
    const float *logits;      /* [n_vocab]; NULL: `top` */
    const struct td_top *top; /* [n_top] by ascending id */
    uint32_t n_top;
    const uint32_t *banned;
    uint32_t n_banned;
};

/* The ids of one leaf with their logits after stages 1 to 4; of a row's largest logits, those among them. */
struct leaf {
    uint32_t n, first_id;
    const struct td_top *top; /* [n]; NULL: ids first_id, first_id + 1, ... */
    float z[TD_VSUM_LEAF];
};

/* Which ids are left: those with a larger key, and those with this key up to this id. */
struct cut {
    uint32_t key;
    uint32_t last_id;
};

static const struct cut keep_all = {0, UINT32_MAX};

void td_sampling_default(struct td_sampling *s)
{
    memset(s, 0, sizeof(*s));
    s->temperature = 1;
    s->top_p = 1;
    s->repetition_penalty = 1;
    s->n_logprobs = -1;
}

static enum td_status check_range(const char *name, float v, float low, bool low_open, float high,
                                  struct td_err *err)
{
    if (v >= low && v <= high && !(low_open && v == low))
        return TD_OK;
    return td_err_set(err, TD_INVALID, "%s is %g, expected a number in %c%g, %g]", name, (double)v,
                      low_open ? '(' : '[', (double)low, (double)high);
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
    if ((st = check_range("top_p", s->top_p, 0, true, 1, err)) ||
        (st = check_range("min_p", s->min_p, 0, false, 1, err)) ||
        (st = check_range("presence_penalty", s->presence_penalty, -2, false, 2, err)) ||
        (st = check_range("frequency_penalty", s->frequency_penalty, -2, false, 2, err)))
        return st;
    if (!(s->repetition_penalty > 0) || isinf(s->repetition_penalty))
        return td_err_set(err, TD_INVALID, "repetition_penalty is %g, expected a finite number > 0",
                          (double)s->repetition_penalty);
    if (s->n_logprobs < -1 || s->n_logprobs > TD_SAMPLER_MAX_LOGPROBS)
        return td_err_set(err, TD_INVALID, "logprobs is %d, expected 0 to %d", s->n_logprobs,
                          TD_SAMPLER_MAX_LOGPROBS);
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

static bool has_penalties(const struct td_sampling *p)
{
    return p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

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
    sort_bias(&s->params);
    s->n_vocab = n_vocab;
    s->n_leaves = (n_vocab - 1) / TD_VSUM_LEAF + 1;
    s->leaf_sum = calloc(s->n_leaves, sizeof(*s->leaf_sum));
    if (!s->leaf_sum)
        goto no_memory;
    if (has_penalties(params)) {
        s->seen = calloc(n_vocab, sizeof(*s->seen));
        if (!s->seen)
            goto no_memory;
    }
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
    free(s->seen);
    free(s->leaf_sum);
    free(s);
}

void td_sampler_accept_prompt(struct td_sampler *s, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; s->seen && i < n; i++)
        if (ids[i] < s->n_vocab)
            s->seen[ids[i]] |= SEEN_PROMPT;
}

void td_sampler_accept(struct td_sampler *s, uint32_t id)
{
    if (s->seen && id < s->n_vocab)
        s->seen[id] += SEEN_OUTPUT;
}

/* Floats as integers in the same order; both zeros give one key. */
static uint32_t order_key(float v)
{
    uint32_t u;

    v += 0.0f;
    memcpy(&u, &v, sizeof(u));
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static float from_order_key(uint32_t key)
{
    uint32_t u = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float v;

    memcpy(&v, &u, sizeof(v));
    return v;
}

static bool is_kept(struct cut c, uint32_t key, uint32_t id)
{
    return key > c.key || (key == c.key && id <= c.last_id);
}

static void apply_bias(const struct td_sampling *p, uint32_t base, uint32_t n, float *z)
{
    uint32_t low = 0, high = p->n_bias;

    while (low < high) {
        uint32_t mid = (low + high) / 2;

        if (p->bias[mid].id < base)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < p->n_bias && p->bias[low].id - base < n; low++)
        z[p->bias[low].id - base] += p->bias[low].bias;
}

static void apply_penalties(const struct td_sampler *s, uint32_t base, uint32_t n, float *z)
{
    const struct td_sampling *p = &s->params;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t seen = s->seen[base + i];
        uint32_t count = seen / SEEN_OUTPUT;

        if (seen == 0)
            continue;
        if (p->repetition_penalty != 1)
            z[i] = z[i] > 0 ? z[i] / p->repetition_penalty : z[i] * p->repetition_penalty;
        if (count > 0)
            z[i] -= (float)count * p->frequency_penalty + p->presence_penalty;
    }
}

/* The first leaf from `leaf` on that may hold a logit above -inf; n_leaves when there is none. */
static uint32_t leaf_from(const struct row *r, uint32_t leaf)
{
    if (r->logits)
        return leaf;
    for (uint32_t i = 0; i < r->n_top; i++)
        if (r->top[i].id / TD_VSUM_LEAF >= leaf)
            return r->top[i].id / TD_VSUM_LEAF;
    return r->s->n_leaves;
}

static uint32_t first_leaf(const struct row *r)
{
    return leaf_from(r, 0);
}

static uint32_t next_leaf(const struct row *r, uint32_t leaf)
{
    return leaf_from(r, leaf + 1);
}

static uint32_t id_at(const struct leaf *l, uint32_t i)
{
    return l->top ? l->top[i].id : l->first_id + i;
}

/* There is neither bias nor penalty then. */
static void load_top_leaf(const struct row *r, uint32_t leaf, struct leaf *l)
{
    uint32_t first = 0;

    while (r->top[first].id / TD_VSUM_LEAF != leaf)
        first++;
    l->top = r->top + first;
    for (l->n = 0; first + l->n < r->n_top && l->top[l->n].id / TD_VSUM_LEAF == leaf; l->n++) {
        l->z[l->n] = l->top[l->n].value;
        for (uint32_t i = 0; i < r->n_banned; i++)
            if (r->banned[i] == l->top[l->n].id)
                l->z[l->n] = -INFINITY;
    }
}

/* Stages 1 to 4 for one leaf of first_leaf and next_leaf. */
static void load_leaf(const struct row *r, uint32_t leaf, struct leaf *l)
{
    const struct td_sampler *s = r->s;
    uint32_t base = leaf * TD_VSUM_LEAF;
    uint32_t n = s->n_vocab - base < TD_VSUM_LEAF ? s->n_vocab - base : TD_VSUM_LEAF;

    if (!r->logits) {
        load_top_leaf(r, leaf, l);
        return;
    }
    l->n = n;
    l->first_id = base;
    l->top = NULL;
    for (uint32_t i = 0; i < n; i++) {
        float v = r->logits[base + i];

        l->z[i] = v == v ? v : -INFINITY;
    }
    apply_bias(&s->params, base, n, l->z);
    if (s->seen)
        apply_penalties(s, base, n, l->z);
    for (uint32_t i = 0; i < r->n_banned; i++)
        if (r->banned[i] - base < n)
            l->z[r->banned[i] - base] = -INFINITY;
}

/* The largest logit after stages 1 to 4; false when all are -inf. */
static bool find_max(const struct row *r, float *max, uint32_t *id)
{
    const struct td_sampler *s = r->s;
    float best = -INFINITY;
    uint32_t at = 0;

    if (r->logits && s->params.n_bias == 0 && !s->seen && r->n_banned == 0) {
        for (uint32_t i = 0; i < s->n_vocab; i++)
            if (r->logits[i] > best) {
                best = r->logits[i];
                at = i;
            }
    } else {
        for (uint32_t leaf = first_leaf(r); leaf < s->n_leaves; leaf = next_leaf(r, leaf)) {
            struct leaf l;

            load_leaf(r, leaf, &l);
            for (uint32_t i = 0; i < l.n; i++)
                if (l.z[i] > best) {
                    best = l.z[i];
                    at = id_at(&l, i);
                }
        }
    }
    *max = best;
    *id = at;
    return best > -INFINITY;
}

static double weight_of(float z, float max, double inv_t)
{
    return z == max ? 1.0 : td_detmath_exp(((double)z - (double)max) * inv_t);
}

/* Loads a leaf, and the kept weights of it into `w` (0 for ids cut away); returns their sum in ascending id. */
static double leaf_weights(const struct row *r, uint32_t leaf, struct cut c, float max,
                           double inv_t, double min_w, struct leaf *l, double w[TD_VSUM_LEAF])
{
    bool all = c.key == 0;
    double sum = 0;

    load_leaf(r, leaf, l);
    if (all) {
        for (uint32_t i = 0; i < l->n; i++)
            w[i] = l->z[i] == max ? 1.0 : td_detmath_exp(((double)l->z[i] - (double)max) * inv_t);
    } else {
        for (uint32_t i = 0; i < l->n; i++)
            w[i] = is_kept(c, order_key(l->z[i]), id_at(l, i)) ? weight_of(l->z[i], max, inv_t) : 0;
    }
    for (uint32_t i = 0; i < l->n; i++) {
        w[i] = w[i] >= min_w ? w[i] : 0;
        sum += w[i];
    }
    return sum;
}

/* One digit of a key in the radix descent. */
struct digit {
    uint32_t shift;
    uint32_t n_values;
};

/* Adds one leaf to the histogram of one digit over the keys inside `c` that begin with `prefix`. */
static void count_leaf(const struct row *r, uint32_t leaf, struct cut c, bool by_weight, float max,
                       double inv_t, uint32_t prefix, uint32_t mask, struct digit d,
                       double bucket[N_BUCKETS])
{
    struct leaf l;

    load_leaf(r, leaf, &l);
    for (uint32_t i = 0; i < l.n; i++) {
        uint32_t key = order_key(l.z[i]);

        if ((key & mask) == prefix && is_kept(c, key, id_at(&l, i)))
            bucket[(key >> d.shift) % d.n_values] +=
                by_weight ? weight_of(l.z[i], max, inv_t) : 1.0;
    }
}

/* The smallest cut inside `c`, largest logits first, that holds `need` of the weight (or of the count, when not
 * `by_weight`). A radix descent over the ordered keys, 11 + 11 + 10 bits: no sort and no list. */
static struct cut shrink(const struct row *r, struct cut c, bool by_weight, float max, double inv_t,
                         double need)
{
    static const struct digit digits[3] = {{21, 2048}, {10, 2048}, {0, 1024}};
    uint32_t prefix = 0, mask = 0;
    double above = 0; /* weight of the keys larger than everything under `prefix` */
    struct cut out;
    float tie;

    for (int level = 0; level < 3; level++) {
        double bucket[N_BUCKETS] = {0};
        struct digit d = digits[level];
        uint32_t b = d.n_values, lowest = 0;

        for (uint32_t leaf = first_leaf(r); leaf < r->s->n_leaves; leaf = next_leaf(r, leaf))
            count_leaf(r, leaf, c, by_weight, max, inv_t, prefix, mask, d, bucket);
        while (b-- > 0) {
            if (bucket[b] == 0)
                continue;
            lowest = b;
            if (above + bucket[b] >= need)
                break;
            above += bucket[b];
        }
        if (b == UINT32_MAX) { /* rounding kept the sum below `need`: everything stays */
            above -= bucket[lowest];
            b = lowest;
        }
        prefix |= b << d.shift;
        mask |= (d.n_values - 1) << d.shift;
    }
    /* All keys under the prefix are equal now; lower ids first. */
    out = (struct cut){prefix, 0};
    tie = from_order_key(prefix);
    for (uint32_t leaf = first_leaf(r); leaf < r->s->n_leaves; leaf = next_leaf(r, leaf)) {
        struct leaf l;

        load_leaf(r, leaf, &l);
        for (uint32_t i = 0; i < l.n; i++) {
            uint32_t id = id_at(&l, i);

            if (order_key(l.z[i]) != prefix || !is_kept(c, prefix, id))
                continue;
            out.last_id = id;
            above += by_weight ? weight_of(tie, max, inv_t) : 1.0;
            if (above >= need)
                return out;
        }
    }
    return out;
}

static double sum_weights(struct td_sampler *s, const struct row *r, struct cut c, float max,
                          double inv_t, double min_w)
{
    struct td_vsum sum;
    uint32_t next = first_leaf(r);

    td_vsum_init(&sum);
    for (uint32_t leaf = 0; leaf < s->n_leaves; leaf++) {
        double w[TD_VSUM_LEAF];
        struct leaf l;

        s->leaf_sum[leaf] = 0;
        if (leaf == next) {
            s->leaf_sum[leaf] = leaf_weights(r, leaf, c, max, inv_t, min_w, &l, w);
            next = next_leaf(r, leaf);
        }
        td_vsum_push(&sum, s->leaf_sum[leaf]);
    }
    return td_vsum_total(&sum);
}

/* Stages 6 and 7. */
static struct cut find_cut(struct td_sampler *s, const struct row *r, float max, double inv_t)
{
    const struct td_sampling *p = &s->params;
    struct cut c = keep_all;

    if (p->top_k > 0 && (uint32_t)p->top_k < s->n_vocab)
        c = shrink(r, c, false, max, inv_t, (double)p->top_k);
    if (p->top_p < 1)
        c = shrink(r, c, true, max, inv_t, (double)p->top_p * sum_weights(s, r, c, max, inv_t, 0));
    return c;
}

/* Stages 6 to 9. The uniform number lies on the running sum of leaves, then of ids inside one leaf. */
static uint32_t draw_id(struct td_sampler *s, const struct row *r, float max, uint32_t position)
{
    const struct td_sampling *p = &s->params;
    double inv_t = 1.0 / (double)p->temperature;
    struct cut c = find_cut(s, r, max, inv_t);
    double total = sum_weights(s, r, c, max, inv_t, (double)p->min_p);
    double target = (double)td_sampler_uniform(p->seed, p->choice, position, 0) * total;
    double w[TD_VSUM_LEAF], run = 0;
    uint32_t leaf = 0, last_leaf = 0, id = 0;
    struct leaf l;

    for (; leaf < s->n_leaves; leaf++) {
        if (s->leaf_sum[leaf] == 0)
            continue;
        last_leaf = leaf;
        if (run + s->leaf_sum[leaf] > target)
            break;
        run += s->leaf_sum[leaf];
    }
    if (leaf ==
        s->n_leaves) { /* the running sum was rounded below the tree's: the last id with weight */
        leaf = last_leaf;
        run = -INFINITY;
    }
    leaf_weights(r, leaf, c, max, inv_t, (double)p->min_p, &l, w);
    for (uint32_t i = 0; i < l.n; i++) {
        if (w[i] == 0)
            continue;
        id = id_at(&l, i);
        run += w[i];
        if (run > target)
            break;
    }
    return id;
}

static bool is_greedy(const struct td_sampling *p)
{
    return p->temperature == 0 || p->top_k == 1;
}

static uint32_t lowest_allowed(const struct row *r)
{
    for (uint32_t id = 0; id < r->s->n_vocab; id++) {
        bool banned = false;

        for (uint32_t i = 0; i < r->n_banned; i++)
            banned |= r->banned[i] == id;
        if (!banned)
            return id;
    }
    return 0;
}

/* Of the model's own distribution: no bias, no penalty, temperature 1. */
static void fill_logprobs(const struct td_sampler *s, const float *logits, struct td_sampled *out)
{
    double lse = td_vsum_logsumexp(logits, s->n_vocab);
    uint32_t cap = (uint32_t)s->params.n_logprobs;
    uint32_t n = 0;
    float top[TD_SAMPLER_MAX_LOGPROBS];

    for (uint32_t id = 0; cap > 0 && id < s->n_vocab; id++) {
        float v = logits[id] == logits[id] ? logits[id] : -INFINITY;
        uint32_t j;

        if (n == cap && !(v > top[n - 1]))
            continue;
        if (n < cap)
            n++;
        for (j = n - 1; j > 0 && v > top[j - 1]; j--) {
            top[j] = top[j - 1];
            out->top[j] = out->top[j - 1];
        }
        top[j] = v;
        out->top[j].id = id;
    }
    out->n_top = n;
    for (uint32_t j = 0; j <= n; j++) {
        float v = j < n ? top[j] : logits[out->id];
        double lp = (double)v - lse;

        /* NaN comes from a NaN logit or from infinities; an infinite logit beside an infinite sum is certain. */
        if (lp != lp)
            lp = v == INFINITY ? 0 : MIN_LOGPROB;
        lp = lp < MIN_LOGPROB ? MIN_LOGPROB : lp;
        if (j < n)
            out->top[j].logprob = (float)lp;
        else
            out->logprob = (float)lp;
    }
}

static void draw(struct td_sampler *s, const struct row *r, uint32_t position,
                 struct td_sampled *out)
{
    float max;

    out->n_top = 0;
    out->logprob = 0;
    out->no_choice = !find_max(r, &max, &out->id);
    if (out->no_choice)
        out->id = lowest_allowed(r);
    else if (!is_greedy(&s->params))
        out->id = draw_id(s, r, max, position);
}

void td_sampler_draw(struct td_sampler *s, const float *logits, uint32_t position,
                     const uint32_t *banned, uint32_t n_banned, struct td_sampled *out)
{
    struct row r = {.s = s, .logits = logits, .banned = banned, .n_banned = n_banned};

    draw(s, &r, position, out);
    if (s->params.n_logprobs >= 0)
        fill_logprobs(s, logits, out);
}

uint32_t td_sampling_n_top(const struct td_sampling *s, uint32_t n_banned)
{
    uint64_t kept = is_greedy(s) ? 1 : s->top_k > 0 ? (uint64_t)s->top_k : TD_TOP_MAX + 1;

    if (has_penalties(s) || s->n_bias || s->n_logprobs >= 0 || kept + n_banned > TD_TOP_MAX)
        return 0;
    return (uint32_t)kept + n_banned;
}

void td_sampler_draw_top(struct td_sampler *s, const struct td_top *top, uint32_t n_top,
                         uint32_t position, const uint32_t *banned, uint32_t n_banned,
                         struct td_sampled *out)
{
    struct td_top by_id[TD_TOP_MAX];
    struct row r = {.s = s, .top = by_id, .banned = banned, .n_banned = n_banned};

    for (uint32_t i = 0; i < n_top && top[i].id < s->n_vocab; i++) {
        uint32_t j = r.n_top++;

        for (; j > 0 && by_id[j - 1].id > top[i].id; j--)
            by_id[j] = by_id[j - 1];
        by_id[j] = top[i];
    }
    draw(s, &r, position, out);
}

void td_sampler_probs(struct td_sampler *s, const float *logits, const uint32_t *banned,
                      uint32_t n_banned, double *probs)
{
    struct row r = {.s = s, .logits = logits, .banned = banned, .n_banned = n_banned};
    double inv_t, total;
    struct cut c;
    uint32_t id;
    float max;

    memset(probs, 0, s->n_vocab * sizeof(*probs));
    if (!find_max(&r, &max, &id) || is_greedy(&s->params)) {
        probs[max == -INFINITY ? lowest_allowed(&r) : id] = 1;
        return;
    }
    inv_t = 1.0 / (double)s->params.temperature;
    c = find_cut(s, &r, max, inv_t);
    total = sum_weights(s, &r, c, max, inv_t, (double)s->params.min_p);
    for (uint32_t leaf = 0; leaf < s->n_leaves; leaf++) {
        double w[TD_VSUM_LEAF];
        struct leaf l;

        leaf_weights(&r, leaf, c, max, inv_t, (double)s->params.min_p, &l, w);
        for (uint32_t i = 0; i < l.n; i++)
            probs[id_at(&l, i)] = w[i] / total;
    }
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
