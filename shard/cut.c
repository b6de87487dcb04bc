#include "shard/cut.h"

#include "kernels/draw.h"
#include "shard/rowmath.h"

#include <math.h>
#include <string.h>

enum { N_BUCKETS = 2048 };

/* The bounds of all keys stand for infinities. */
static float from_order_key(uint32_t key)
{
    if (key == UINT32_MAX || key == 0)
        return key ? INFINITY : -INFINITY;
    return td_draw_from_key(key);
}

static bool is_before(struct td_cut_place a, struct td_cut_place b)
{
    return a.key > b.key || (a.key == b.key && a.id < b.id);
}

/* log of the weight; 0 for the largest, also when that is infinite. */
static double log_weight(const struct td_cut *c, float z)
{
    return z == c->max ? 0 : ((double)z - (double)c->max) * c->inv_t;
}

static double weight_of(const struct td_cut *c, float z)
{
    return td_draw_weight(z, c->max, c->inv_t);
}

static struct td_cut_place place_by_logit(float z, uint32_t id)
{
    return (struct td_cut_place){td_draw_key(z), id};
}

/* Surprise less entropy is the mean of the log weights less the id's own. */
static struct td_cut_place place_by_typicality(const struct td_cut *c, float z, uint32_t id)
{
    float distance = (float)fabs(log_weight(c, z) - c->centre);

    return (struct td_cut_place){UINT32_MAX - td_draw_key(distance), id};
}

static bool is_left(const struct td_cut *c, float z, uint32_t id)
{
    struct td_cut_place at = place_by_logit(z, id);

    if (is_before(at, c->first) || is_before(c->last, at) || (double)z < c->least_z)
        return false;
    return !c->has_typical || !is_before(c->typical, place_by_typicality(c, z, id));
}

void td_cut_init(struct td_cut *c, const struct td_logitrow *row, float max, double *leaf_sum)
{
    c->row = row; /* field by field: `few` is large, and filled only when it is used */
    c->leaf_sum = leaf_sum;
    c->max = max;
    c->inv_t = 1;
    c->least_z = -INFINITY;
    c->least_weight = 0;
    c->first = (struct td_cut_place){UINT32_MAX, 0};
    c->last = (struct td_cut_place){0, UINT32_MAX};
    c->has_typical = false;
}

void td_cut_set_temperature(struct td_cut *c, double temperature)
{
    c->inv_t = temperature > 0 ? 1.0 / temperature : INFINITY;
}

static bool is_whole(const struct td_cut *c)
{
    return c->first.key == UINT32_MAX && c->last.key == 0 && c->least_z == -(double)INFINITY &&
           !c->has_typical;
}

/* is_left without typicality, by floats: a loop without branches but for ties. */
static void keep_between(const struct td_cut *c, const struct td_logitrow_leaf *l, double *w)
{
    const float high = from_order_key(c->first.key), low = from_order_key(c->last.key);
    const double least = c->least_z;
    uint32_t ties = 0;

    for (uint32_t i = 0; i < l->n; i++) {
        float z = l->z[i];

        ties += (z == high) | (z == low);
        w[i] = ((z <= high) & (z >= low) & ((double)z >= least)) ? w[i] : 0;
    }
    for (uint32_t i = 0; ties && i < l->n; i++)
        if ((l->z[i] == high || l->z[i] == low) && !is_left(c, l->z[i], td_logitrow_id(l, i)))
            w[i] = 0;
}

/* Loads a leaf, and the weights of it that are left into `w` (0 for ids cut away); returns their sum. */
static double leaf_weights(const struct td_cut *c, uint32_t leaf, struct td_logitrow_leaf *l,
                           double w[TD_VSUM_LEAF])
{
    td_logitrow_load(c->row, leaf, l);
    td_rowmath_weights(l->z, l->n, c->max, c->inv_t, w);
    if (c->has_typical)
        for (uint32_t i = 0; i < l->n; i++)
            w[i] = is_left(c, l->z[i], td_logitrow_id(l, i)) ? w[i] : 0;
    else if (!is_whole(c))
        keep_between(c, l, w);
    if (c->least_weight > 0)
        for (uint32_t i = 0; i < l->n; i++)
            w[i] = w[i] >= c->least_weight ? w[i] : 0;
    return td_logitrow_sum(l, w);
}

/* ---- Sums ---- */

double td_cut_sum(const struct td_cut *c)
{
    const struct td_logitrow *r = c->row;
    struct td_vsum sum;
    uint32_t next = td_logitrow_first(r);

    td_vsum_init(&sum);
    for (uint32_t leaf = 0; leaf < r->n_leaves; leaf++) {
        double w[TD_VSUM_LEAF];
        struct td_logitrow_leaf l;

        c->leaf_sum[leaf] = 0;
        if (leaf == next) {
            c->leaf_sum[leaf] = leaf_weights(c, leaf, &l, w);
            next = td_logitrow_next(r, leaf);
        }
        td_vsum_push(&sum, c->leaf_sum[leaf]);
    }
    return td_vsum_total(&sum);
}

struct moments {
    uint32_t n;  /* ids above -inf */
    double sum;  /* of their weights */
    double mean; /* of their log weights, by weight */
};

static struct moments measure(const struct td_cut *c)
{
    const struct td_logitrow *r = c->row;
    struct td_vsum sum, log_sum;
    struct moments m = {0};
    uint32_t next = td_logitrow_first(r);

    td_vsum_init(&sum);
    td_vsum_init(&log_sum);
    for (uint32_t leaf = 0; leaf < r->n_leaves; leaf++) {
        double s = 0, ls = 0;
        struct td_logitrow_leaf l;

        if (leaf == next) {
            td_logitrow_load(r, leaf, &l);
            next = td_logitrow_next(r, leaf);
            for (uint32_t i = 0; i < l.n; i++) {
                double w;

                if (l.z[i] == -INFINITY || !is_left(c, l.z[i], td_logitrow_id(&l, i)))
                    continue;
                w = weight_of(c, l.z[i]);
                m.n++;
                s += w;
                ls += w > 0 ? w * log_weight(c, l.z[i]) : 0;
            }
        }
        td_vsum_push(&sum, s);
        td_vsum_push(&log_sum, ls);
    }
    m.sum = td_vsum_total(&sum);
    m.mean = td_vsum_total(&log_sum) / m.sum;
    return m;
}

double td_cut_entropy_share(const struct td_cut *c)
{
    struct moments m = measure(c);
    double share;

    if (m.n < 2)
        return 1;
    share = (td_detmath_log(m.sum) - m.mean) / td_detmath_log((double)m.n);
    return share < 0 ? 0 : share > 1 ? 1 : share;
}

/* ---- The radix descent ---- */

/* One digit of a key. */
struct digit {
    uint32_t shift;
    uint32_t n_values; /* a power of two */
};

/* What a descent looks for: the fewest ids of one order that hold `need` of the weight, or of the count. */
struct search {
    bool by_typicality, by_weight;
    double need;
};

static struct td_cut_place place_of(const struct td_cut *c, const struct search *what, float z,
                                    uint32_t id)
{
    return what->by_typicality ? place_by_typicality(c, z, id) : place_by_logit(z, id);
}

/* Adds a leaf's ids whose key begins with `prefix` to the buckets of their next digit. */
static void count_leaf(const struct td_cut *c, const struct search *what, uint32_t leaf,
                       uint32_t prefix, uint32_t mask, struct digit d, double bucket[N_BUCKETS])
{
    const bool whole = is_whole(c);
    /* Of the order by logit, the floats whose keys begin so. */
    const float low = what->by_typicality || !mask ? -INFINITY : from_order_key(prefix);
    const float high = what->by_typicality || !mask ? INFINITY : from_order_key(prefix | ~mask);
    struct td_logitrow_leaf l;
    double w[TD_VSUM_LEAF];

    td_logitrow_load(c->row, leaf, &l);
    if (what->by_weight) /* all of them at once cost less than those that count one by one */
        td_rowmath_weights(l.z, l.n, c->max, c->inv_t, w);
    for (uint32_t i = 0; i < l.n; i++) {
        struct td_cut_place at;

        if (l.z[i] < low || l.z[i] > high)
            continue;
        at = place_of(c, what, l.z[i], whole ? 0 : td_logitrow_id(&l, i));
        if ((at.key & mask) == prefix && (whole || is_left(c, l.z[i], at.id)))
            bucket[at.key >> d.shift & (d.n_values - 1)] += what->by_weight ? w[i] : 1;
    }
}

/* Nothing up to `floor` will be left. If what is above is little, the row is its list from here on, which says the same. */
static void keep_few(struct td_cut *c, float floor)
{
    const struct td_logitrow *r = c->row;
    uint32_t n = 0;

    if (!r->logits ||
        !(floor >= -INFINITY)) /* a list already; or a key below those of all numbers */
        return;
    for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
         leaf = td_logitrow_next(r, leaf)) {
        struct td_logitrow_leaf l;

        td_logitrow_load(r, leaf, &l);
        for (uint32_t i = 0; (i += td_rowmath_above(l.z + i, l.n - i, floor)) < l.n; i++) {
            if (n == TD_CUT_FEW)
                return;
            c->few[n++] = (struct td_top){l.z[i], td_logitrow_id(&l, i)};
        }
    }
    c->few_row = *r;
    c->few_row.logits = NULL;
    c->few_row.penalty = NULL; /* they are in the list's values */
    c->few_row.dry = NULL;
    c->few_row.top = c->few;
    c->few_row.n_top = n;
    c->row = &c->few_row;
}

/* The last place of the fewest ids that were looked for, among those that are left. 11 + 11 + 10 bits of the key. */
static struct td_cut_place find_last(struct td_cut *c, const struct search *what)
{
    static const struct digit digits[3] = {{21, 2048}, {10, 2048}, {0, 1024}};
    const struct td_logitrow *r;
    uint32_t prefix = 0, mask = 0;
    double above = 0; /* weight of the keys larger than everything under `prefix` */
    struct td_cut_place out;

    for (int level = 0; level < 3; level++) {
        double bucket[N_BUCKETS] = {0};
        struct digit d = digits[level];
        uint32_t b = d.n_values, lowest = 0;

        r = c->row;
        for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
             leaf = td_logitrow_next(r, leaf))
            count_leaf(c, what, leaf, prefix, mask, d, bucket);
        while (b-- > 0) {
            if (bucket[b] == 0)
                continue;
            lowest = b;
            if (above + bucket[b] >= what->need)
                break;
            above += bucket[b];
        }
        if (b == UINT32_MAX) { /* rounding kept the sum below `need`: everything stays */
            above -= bucket[lowest];
            b = lowest;
        }
        prefix |= b << d.shift;
        mask |= (d.n_values - 1) << d.shift;
        if (level == 0 && !what->by_typicality && prefix)
            keep_few(c, from_order_key(prefix - 1));
    }
    r = c->row;
    /* All keys under the prefix are equal now; lower ids first. */
    out = (struct td_cut_place){prefix, 0};
    for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
         leaf = td_logitrow_next(r, leaf)) {
        struct td_logitrow_leaf l;

        td_logitrow_load(r, leaf, &l);
        for (uint32_t i = 0; i < l.n; i++) {
            struct td_cut_place at = place_of(c, what, l.z[i], td_logitrow_id(&l, i));

            if (at.key != prefix || !is_left(c, l.z[i], at.id))
                continue;
            out.id = at.id;
            above += what->by_weight ? weight_of(c, l.z[i]) : 1;
            if (above >= what->need)
                return out;
        }
    }
    return out;
}

/* ---- The cuts ---- */

void td_cut_top_n_sigma(struct td_cut *c, float n)
{
    const struct td_logitrow *r = c->row;
    double n_ids = 0, mean = 0;

    if (c->max == INFINITY) /* it takes all the weight anyway, and has no deviation */
        return;
    for (int pass = 0; pass < 2; pass++) {
        struct td_vsum sum;

        td_vsum_init(&sum);
        for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
             leaf = td_logitrow_next(r, leaf)) {
            struct td_logitrow_leaf l;
            double s = 0;

            td_logitrow_load(r, leaf, &l);
            for (uint32_t i = 0; i < l.n; i++) {
                double z = (double)l.z[i];

                if (l.z[i] == -INFINITY)
                    continue;
                s += pass ? (z - mean) * (z - mean) : z;
                n_ids += pass ? 0 : 1;
            }
            td_vsum_push(&sum, s);
        }
        if (pass)
            /* The square root is rounded correctly on every machine (IEEE 754, section 5.4.1). */
            c->least_z = (double)c->max - (double)n * sqrt(td_vsum_total(&sum) / n_ids);
        else
            mean = td_vsum_total(&sum) / n_ids;
    }
}

void td_cut_top_k(struct td_cut *c, uint32_t k)
{
    const struct search what = {.need = (double)k};

    if (k < c->row->n_vocab)
        c->last = find_last(c, &what);
}

void td_cut_typical(struct td_cut *c, float p)
{
    struct moments m = measure(c);
    const struct search what = {
        .by_typicality = true, .by_weight = true, .need = (double)p * m.sum};
    struct td_cut_place last;

    c->centre = m.mean;
    last = find_last(c, &what);
    c->has_typical = true;
    c->typical = last;
}

void td_cut_top_p(struct td_cut *c, float p)
{
    const struct search what = {.by_weight = true, .need = (double)p * td_cut_sum(c)};

    c->last = find_last(c, &what);
}

/* The largest, or the smallest, of the ids that are left with at least that weight, and its weight. False: none. */
static bool find_extreme(const struct td_cut *c, bool largest, double least,
                         struct td_cut_place *out, double *weight)
{
    const struct td_logitrow *r = c->row;
    bool found = false;

    for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
         leaf = td_logitrow_next(r, leaf)) {
        double w[TD_VSUM_LEAF];
        struct td_logitrow_leaf l;

        leaf_weights(c, leaf, &l, w);
        for (uint32_t i = 0; i < l.n; i++) {
            struct td_cut_place at = place_by_logit(l.z[i], td_logitrow_id(&l, i));

            if (w[i] == 0 || w[i] < least || (found && is_before(at, *out) != largest))
                continue;
            found = true;
            *out = at;
            *weight = w[i];
        }
    }
    return found;
}

void td_cut_min_p(struct td_cut *c, float p)
{
    struct td_cut_place at;
    double largest = 1;

    if (c->has_typical) /* which may have cut away the largest */
        find_extreme(c, true, 0, &at, &largest);
    c->least_weight = (double)p * largest;
}

void td_cut_xtc(struct td_cut *c, float threshold)
{
    struct td_cut_place smallest;
    double weight;

    if (find_extreme(c, false, (double)threshold * td_cut_sum(c), &smallest, &weight))
        c->first = smallest;
}

/* ---- What is left ---- */

uint32_t td_cut_pick(const struct td_cut *c, double target, double *weight)
{
    const struct td_logitrow *r = c->row;
    double w[TD_VSUM_LEAF], run = 0;
    uint32_t leaf = 0, last_leaf = 0, id = 0;
    struct td_logitrow_leaf l;

    for (; leaf < r->n_leaves; leaf++) {
        if (c->leaf_sum[leaf] == 0)
            continue;
        last_leaf = leaf;
        if (run + c->leaf_sum[leaf] > target)
            break;
        run += c->leaf_sum[leaf];
    }
    if (leaf == r->n_leaves) { /* the running sum was rounded below the tree's: the last id */
        leaf = last_leaf;
        run = -INFINITY;
    }
    leaf_weights(c, leaf, &l, w);
    for (uint32_t i = 0; i < l.n; i++) {
        if (w[i] == 0)
            continue;
        id = td_logitrow_id(&l, i);
        *weight = w[i];
        run += w[i];
        if (run > target)
            break;
    }
    return id;
}

void td_cut_weights(const struct td_cut *c, double *weights)
{
    const struct td_logitrow *r = c->row;

    for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
         leaf = td_logitrow_next(r, leaf)) {
        double w[TD_VSUM_LEAF];
        struct td_logitrow_leaf l;

        leaf_weights(c, leaf, &l, w);
        for (uint32_t i = 0; i < l.n; i++)
            if (w[i] > 0)
                weights[td_logitrow_id(&l, i)] = w[i];
    }
}

uint32_t td_cut_largest(const struct td_cut *c, struct td_top *list, uint32_t n)
{
    const struct td_logitrow *r = c->row;
    uint32_t n_found = 0;

    td_top_clear(list, n);
    for (uint32_t leaf = td_logitrow_first(r); leaf < r->n_leaves;
         leaf = td_logitrow_next(r, leaf)) {
        struct td_logitrow_leaf l;

        td_logitrow_load(r, leaf, &l);
        for (uint32_t i = 0; i < l.n; i++) {
            uint32_t id = td_logitrow_id(&l, i);

            if (l.z[i] > -INFINITY && l.z[i] >= list[n - 1].value && is_left(c, l.z[i], id) &&
                td_top_insert(list, n, (struct td_top){l.z[i], id}))
                n_found += n_found < n;
        }
    }
    return n_found;
}
