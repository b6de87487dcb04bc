#include "shard/layouts.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

enum { ALL_COUNTS = 8 /* up to so many ranks every count is tried */ };

static const double WORTH = 1.03; /* how much faster a layout with more ranks must be */

static bool is_tried(uint32_t n, uint32_t most)
{
    return most <= ALL_COUNTS || most % n == 0 || (n & (n - 1)) == 0;
}

/* Whether n ranks may be cut into stages of tp ranks each. */
static bool is_wanted(const struct td_layouts_params *p, uint32_t n, uint32_t tp)
{
    return n % tp == 0 && n / tp <= p->model->spec->n_layers &&
           (p->plan->tp == 0 || p->plan->tp == tp) && (p->plan->pp == 0 || p->plan->pp == n / tp);
}

static uint32_t count_layouts(const struct td_layouts_params *p)
{
    uint32_t count = 0;

    for (uint32_t n = 1; n <= p->plan->n_ranks; n++)
        for (uint32_t tp = n; is_tried(n, p->plan->n_ranks) && tp > 0; tp--)
            count += is_wanted(p, n, tp);
    return count;
}

/* Whether the sequences that were asked for have room. */
static void check_room(const struct td_plan *plan, const struct td_predict_load *load,
                       struct td_layout *row)
{
    uint64_t tokens = (uint64_t)plan->n_blocks * plan->block_tokens;
    uint32_t longest =
        load->depth + 1 > load->prompt_tokens ? load->depth + 1 : load->prompt_tokens;

    if (longest > plan->max_model_len || longest > tokens) {
        row->fits = false;
        snprintf(row->obstacle, sizeof row->obstacle,
                 "a sequence of %u tokens does not fit: there is room for %u", longest,
                 plan->max_model_len);
    }
    row->batch_fits = row->fits && load->batch <= plan->max_num_seqs &&
                      ((uint64_t)load->depth + 1) * load->batch <= tokens;
}

/* Too large for the stack. */
struct scratch {
    struct td_plan plan;
    struct td_machine machine; /* with as many ranks as the layout */
};

/* Plans and predicts one layout. */
static enum td_status try_layout(const struct td_layouts_params *p, struct td_layout *row,
                                 struct scratch *x, struct td_err *err)
{
    uint64_t memory[TD_PLAN_MAX_RANKS];
    struct td_plan_params params = *p->plan;
    struct td_err why;
    enum td_status s;

    td_predict_shrink(p->machine, row->n_ranks, &x->machine);
    for (uint32_t i = 0; i < row->n_ranks; i++) {
        uint64_t has = x->machine.rank[i].memory_bytes, most = p->most_memory_bytes;

        memory[i] = most && (!has || most < has) ? most : has;
    }
    params.share = row->n_ranks == params.n_ranks ? params.share : NULL;
    params.n_ranks = row->n_ranks;
    params.tp = row->tp;
    params.pp = row->pp;
    params.memory_bytes = memory;
    s = td_plan_make(p->model, &params, &x->plan, &why);
    if (s == TD_TOO_LARGE) {
        snprintf(row->obstacle, sizeof row->obstacle, "%.255s", why.cause);
        return TD_OK;
    }
    if (s) {
        if (err)
            *err = why;
        return s;
    }
    row->fits = true;
    for (uint32_t i = 0; i < row->n_ranks; i++)
        row->weight_bytes = x->plan.rank[i].weight_bytes > row->weight_bytes
                                ? x->plan.rank[i].weight_bytes
                                : row->weight_bytes;
    check_room(&x->plan, p->load, row);
    return td_predict(p->model, &x->plan, &x->machine, p->load, &row->speed, err);
}

static const struct td_predict_phase *phase_of(const struct td_layout *row, size_t offset)
{
    return (const struct td_predict_phase *)(const void *)((const char *)&row->speed + offset);
}

/* Fastest in the phase at `offset` of the prediction. Rows are ordered by ranks. */
static uint32_t best_of(const struct td_layouts *l, size_t offset, bool batch)
{
    uint32_t best = l->n;

    for (uint32_t i = 0; i < l->n; i++) {
        double least = 0.0;

        if (!(batch ? l->row[i].batch_fits : l->row[i].fits))
            continue;
        if (best < l->n)
            least = phase_of(&l->row[best], offset)->tokens_per_s *
                    (l->row[i].n_ranks > l->row[best].n_ranks ? WORTH : 1.0);
        if (phase_of(&l->row[i], offset)->tokens_per_s > least)
            best = i;
    }
    return best;
}

enum td_status td_layouts_open(const struct td_layouts_params *p, struct td_layouts *l,
                               struct td_err *err)
{
    uint32_t most = p->plan->n_ranks;
    struct scratch *x = malloc(sizeof *x);
    enum td_status s = td_predict_check(p->machine, err);

    *l = (struct td_layouts){.model = p->model, .machine = p->machine, .load = *p->load};
    if (!s && (most == 0 || most > p->machine->n_ranks))
        s = td_err_set(err, TD_INVALID, "%u ranks: expected 1 to the machine's %u", most,
                       p->machine->n_ranks);
    if (!s && count_layouts(p) == 0)
        s = td_err_set(err, TD_INVALID,
                       "no layout of 1 to %u ranks has tensor parallel %u and pipeline parallel %u "
                       "(0: any) for %u layers",
                       most, p->plan->tp, p->plan->pp, p->model->spec->n_layers);
    if (!s) {
        l->row = calloc(count_layouts(p), sizeof *l->row);
        s = l->row && x ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for the layouts");
    }
    for (uint32_t n = 1; !s && n <= most; n++)
        for (uint32_t tp = n; !s && is_tried(n, most) && tp > 0; tp--)
            if (is_wanted(p, n, tp)) {
                l->row[l->n] = (struct td_layout){.n_ranks = n, .tp = tp, .pp = n / tp};
                s = try_layout(p, &l->row[l->n++], x, err);
            }
    free(x);
    if (s) {
        td_layouts_close(l);
        return s;
    }
    l->best = best_of(l, offsetof(struct td_prediction, decode), false);
    l->best_batch = best_of(l, offsetof(struct td_prediction, batch), true);
    l->best_prefill = best_of(l, offsetof(struct td_prediction, prefill), false);
    return TD_OK;
}

void td_layouts_close(struct td_layouts *l)
{
    free(l->row);
    *l = (struct td_layouts){0};
}

/* ---- advice ---- */

static const char *name_of(const struct td_layout *row, char out[80])
{
    snprintf(out, 80, "%u rank%s (tensor parallel %u x pipeline parallel %u)", row->n_ranks,
             row->n_ranks == 1 ? "" : "s", row->tp, row->pp);
    return out;
}

static int digits(double v)
{
    return v < 10.0 ? 2 : v < 1000.0 ? 1 : 0;
}

/* The part of a token's time that changes most in the direction of `sign` from a to b; its change in microseconds. */
static double largest_change(const struct td_predict_phase *a, const struct td_predict_phase *b,
                             double sign, enum td_predict_part *part)
{
    double most = 0.0;

    for (int i = 0; i < TD_N_PARTS; i++) {
        double change = sign * (b->part_s[i] - a->part_s[i]);

        if (change > most) {
            most = change;
            *part = (enum td_predict_part)i;
        }
    }
    return most * 1e6;
}

/* The fastest row with more ranks than `row` that fits; n where there is none. */
static uint32_t best_above(const struct td_layouts *l, uint32_t row)
{
    uint32_t best = l->n;

    for (uint32_t i = 0; i < l->n; i++)
        if (l->row[i].fits && l->row[i].n_ranks > l->row[row].n_ranks &&
            (best == l->n ||
             l->row[i].speed.decode.tokens_per_s > l->row[best].speed.decode.tokens_per_s))
            best = i;
    return best;
}

static enum td_status advise_more(const struct td_layouts *l, struct td_bytes *out)
{
    uint32_t more = best_above(l, l->best);
    const struct td_predict_phase *a = &l->row[l->best].speed.decode, *b;
    enum td_predict_part grows = TD_PART_HOST, falls = TD_PART_HOST;
    double by, less;
    char name[80];
    enum td_status s;

    if (more == l->n)
        return TD_OK;
    b = &l->row[more].speed.decode;
    by = largest_change(a, b, 1.0, &grows);
    less = largest_change(a, b, -1.0, &falls);
    s = td_bytes_appendf(out, "%s would be %s: %s at best, %.*f tokens/s", "more ranks",
                         b->tokens_per_s < a->tokens_per_s / WORTH ? "slower" : "no faster",
                         name_of(&l->row[more], name), digits(b->tokens_per_s), b->tokens_per_s);
    if (!s && by > 0.0)
        s = td_bytes_appendf(out, ", because %s takes %.0f us more of a token",
                             td_predict_part_name(grows), by);
    if (!s && by > 0.0 && less >= 0.5)
        s = td_bytes_appendf(out, " and %s %.0f us less", td_predict_part_name(falls), less);
    else if (!s && by > 0.0)
        s = td_bytes_appendf(out, " and nothing less");
    return s ? s : td_bytes_appendf(out, "\n");
}

static enum td_status advise_other(const struct td_layouts *l, uint32_t row, const char *what,
                                   size_t offset, struct td_bytes *out)
{
    const struct td_predict_phase *p;
    char name[80];

    if (row == l->n || row == l->best)
        return TD_OK;
    p = phase_of(&l->row[row], offset);
    return td_bytes_appendf(out, "for %s %s is faster: %.*f tokens/s\n", what,
                            name_of(&l->row[row], name), digits(p->tokens_per_s), p->tokens_per_s);
}

/* The first row that does not fit. */
static const struct td_layout *unfit(const struct td_layouts *l)
{
    for (uint32_t i = 0; i < l->n; i++)
        if (!l->row[i].fits)
            return &l->row[i];
    return NULL;
}

enum td_status td_layouts_advise(const struct td_layouts *l, struct td_bytes *out)
{
    const struct td_layout *best, *none = unfit(l);
    const struct td_predict_phase *p;
    char name[80], what[48];
    enum td_status s;

    if (l->best == l->n)
        return td_bytes_appendf(out, "no layout fits: %s\n", none ? none->obstacle : "");
    best = &l->row[l->best];
    p = &best->speed.decode;
    s = td_bytes_appendf(out, "take %s: %.*f tokens/s for one sequence, limited by %s (%.0f %%)",
                         name_of(best, name), digits(p->tokens_per_s), p->tokens_per_s,
                         td_predict_part_name(p->bottleneck),
                         100.0 * p->part_s[p->bottleneck] / p->token_s);
    if (!s && best->n_ranks > 1 && l->row[0].fits && l->row[0].n_ranks == 1)
        s = td_bytes_appendf(out, ", %.2f times one rank",
                             p->tokens_per_s / l->row[0].speed.decode.tokens_per_s);
    s = s ? s : td_bytes_appendf(out, "\n");
    s = s ? s : advise_more(l, out);
    snprintf(what, sizeof what, "%u sequences", l->load.batch);
    s = s ? s : advise_other(l, l->best_batch, what, offsetof(struct td_prediction, batch), out);
    return s ? s
             : advise_other(l, l->best_prefill, "prompts", offsetof(struct td_prediction, prefill),
                            out);
}
