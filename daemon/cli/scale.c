#include "daemon/cli/scale.h"

#include <math.h>
#include <string.h>

static const double MOST_DRIFT = 0.05;

/* ---- which points ---- */

struct list {
    struct td_scale_layout *out;
    uint32_t n, most;
};

static void add(struct list *l, uint32_t ranks, uint32_t tp)
{
    if (l->n < l->most)
        l->out[l->n] = (struct td_scale_layout){ranks, tp, ranks / tp};
    l->n++;
}

static void add_count(struct list *l, uint32_t ranks, unsigned kinds, uint32_t n_layers)
{
    if (ranks == 1 || kinds & TD_SCALE_TP)
        add(l, ranks, ranks);
    if (ranks > 1 && kinds & TD_SCALE_PP && ranks <= n_layers)
        add(l, ranks, 1);
    for (uint32_t tp = 2; kinds & TD_SCALE_BOTH && tp < ranks; tp++)
        if (ranks % tp == 0 && ranks / tp <= n_layers)
            add(l, ranks, tp);
}

enum td_status td_scale_layouts(const int64_t *ranks, uint32_t n_ranks, unsigned kinds,
                                uint32_t n_layers, struct td_scale_layout *out, uint32_t most,
                                uint32_t *n, struct td_err *err)
{
    struct list l = {out, 0, most};

    for (uint32_t i = 0; i < n_ranks; i++) {
        for (uint32_t k = 0; k < i; k++)
            if (ranks[k] == ranks[i])
                return td_err_set(err, TD_INVALID, "--ranks: got %lld twice, expected it once",
                                  (long long)ranks[i]);
        add_count(&l, (uint32_t)ranks[i], kinds, n_layers);
    }
    if (l.n == 0)
        return td_err_set(err, TD_INVALID,
                          "--layouts: none of these counts of ranks has such a layout: expected at "
                          "most the model's %u layers as stages, and a count with two factors for "
                          "tpxpp",
                          n_layers);
    if (l.n > most)
        return td_err_set(err, TD_INVALID, "--ranks: they have %u layouts, expected at most %u",
                          l.n, most);
    *n = l.n;
    return TD_OK;
}

enum td_scale_kind td_scale_kind_of(const struct td_scale_layout *l)
{
    return l->pp == 1 ? TD_SCALE_TP : l->tp == 1 ? TD_SCALE_PP : TD_SCALE_BOTH;
}

/* ---- machines ---- */

static double memory_of(const struct td_machine *m)
{
    double sum = 0.0;

    for (uint32_t h = 0; h < m->n_hosts; h++)
        sum += m->host_bytes_per_s[h];
    return sum;
}

double td_scale_drift(const struct td_machine *before, const struct td_machine *after)
{
    double a = memory_of(before), b = memory_of(after), larger = fmax(a, b);

    return larger > 0.0 ? fabs(a - b) / larger : NAN;
}

bool td_scale_has_drifted(double drift)
{
    return drift > MOST_DRIFT; /* not when it is unknown */
}

static double time_of(const struct td_machine_link *link, double bytes)
{
    return link->latency_s + bytes / link->bytes_per_s;
}

/* The line through the better time of each size: one disturbed time turns a whole line, and with it the latency. */
static struct td_machine_link better_link(const struct td_machine_link *a,
                                          const struct td_machine_link *b,
                                          const struct td_scale_sizes *sizes)
{
    double small = fmin(time_of(a, sizes->small), time_of(b, sizes->small));
    double large = fmin(time_of(a, sizes->large), time_of(b, sizes->large));
    double fastest = fmax(a->bytes_per_s, b->bytes_per_s);
    double slope = fmax((large - small) / (sizes->large - sizes->small), 1.0 / fastest);

    return (struct td_machine_link){fmax(small - sizes->small * slope, 0.0), 1.0 / slope};
}

void td_scale_join(const struct td_machine *before, const struct td_machine *after,
                   const struct td_scale_sizes *sizes, struct td_machine *out)
{
    *out = *before;
    for (uint32_t i = 0; i < out->n_ranks && i < after->n_ranks; i++) {
        struct td_machine_rank *r = &out->rank[i];
        const struct td_machine_rank *other = &after->rank[i];

        r->memory_bytes_per_s = fmax(r->memory_bytes_per_s, other->memory_bytes_per_s);
        for (int k = 0; k < TD_N_RATES; k++)
            r->ops_per_s[k] = fmax(r->ops_per_s[k], other->ops_per_s[k]);
        r->host_s = fmin(r->host_s, other->host_s);
    }
    for (uint32_t h = 0; h < out->n_hosts && h < after->n_hosts; h++)
        out->host_bytes_per_s[h] = fmax(out->host_bytes_per_s[h], after->host_bytes_per_s[h]);
    out->intra = better_link(&before->intra, &after->intra, sizes);
    out->inter = better_link(&before->inter, &after->inter, sizes);
}

struct td_predict_load td_scale_load(const struct td_benchread *read, uint32_t prefill_chunk)
{
    /* `depth` counts the row itself, a prediction those before it. */
    return (struct td_predict_load){.batch = 1,
                                    .depth = (uint32_t)lround(fmax(read->decode.depth - 1.0, 0.0)),
                                    .prompt_tokens = (uint32_t)read->prefill.n_tokens,
                                    .prefill_chunk = prefill_chunk};
}

/* ---- ratios ---- */

static void compare(struct td_scale_phase *phase, const struct td_benchread_case *mine,
                    const struct td_benchread_case *base, double threads)
{
    phase->speed_up = base ? mine->best / base->best : NAN;
    phase->efficiency = phase->speed_up / threads;
}

void td_scale_compare(struct td_scale_point *points, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct td_scale_point *p = &points[i];
        const struct td_benchread *base = NULL;
        double threads = NAN;

        if (!p->read)
            continue;
        for (uint32_t k = 0; k < n && !base; k++)
            if (points[k].read && points[k].layout.ranks == 1 &&
                points[k].prompt_tokens == p->prompt_tokens && points[k].depth == p->depth)
                base = points[k].read;
        if (base)
            threads = (double)p->read->n_threads / base->n_threads;
        compare(&p->decode, &p->read->decode, base ? &base->decode : NULL, threads);
        compare(&p->prefill, &p->read->prefill, base ? &base->prefill : NULL, threads);
    }
}

static void take(struct td_scale_phase *phase, const struct td_predict_phase *predicted,
                 const struct td_benchread_case *measured)
{
    phase->error = NAN;
    if (!predicted)
        return;
    phase->predicted = *predicted;
    phase->error = predicted->tokens_per_s / measured->best - 1.0;
}

void td_scale_predict(struct td_scale_point *p, const struct td_prediction *prediction)
{
    take(&p->decode, prediction ? &prediction->decode : NULL, &p->read->decode);
    take(&p->prefill, prediction ? &prediction->prefill : NULL, &p->read->prefill);
}
