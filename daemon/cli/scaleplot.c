/* The picture of a sweep (declared in scaleprint.h): over ranks, or of a lab over latency and over rate. */
#include "daemon/cli/scaleprint.h"
#include "daemon/cli/svgplot.h"
#include "kernels/base/arena.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PLOTS = 2, MAX_X = TD_OPTION_MAX_INTS, TITLE_BYTES = 96 };

static const double LEAST_LATENCY_US = 0.01; /* a logarithmic axis knows no 0 */

/* Which points a value stands for; fields that are 0 or NULL are any. */
struct match {
    uint32_t prompt_tokens, depth; /* always looked at */
    uint32_t ranks;
    unsigned kinds;                       /* one rank is of every kind */
    const struct td_scale_layout *layout; /* exactly this one */
    const struct td_linkspec_value *delay, *rate;
};

struct plotter {
    const struct td_scaleprint *p;
    struct td_arena arena; /* of all that the plots borrow */
    bool failed;           /* no memory */
    struct td_svgplot plots[MAX_PLOTS];
    size_t n_plots;
    char title[TITLE_BYTES + 128];
};

static bool matches(const struct td_scale_point *p, const struct match *m)
{
    return p->read && p->prompt_tokens == m->prompt_tokens && p->depth == m->depth &&
           (!m->ranks || p->layout.ranks == m->ranks) &&
           (!m->kinds || p->layout.ranks == 1 || td_scale_kind_of(&p->layout) & m->kinds) &&
           (!m->layout || memcmp(m->layout, &p->layout, sizeof p->layout) == 0) &&
           (!m->delay || p->delay == m->delay) && (!m->rate || p->rate == m->rate);
}

/* The fastest of them, and what was predicted of that one; NAN: none. */
static double value_of(const struct td_scaleprint *p, const struct match *m, bool prefill,
                       bool predicted)
{
    double best = NAN, out = NAN;

    for (uint32_t i = 0; i < p->n; i++) {
        const struct td_scale_point *point = &p->points[i];
        const struct td_scale_phase *phase = prefill ? &point->prefill : &point->decode;
        double v;

        if (!matches(point, m))
            continue;
        v = prefill ? point->read->prefill.best : point->read->decode.best;
        if (best >= v)
            continue;
        best = v;
        out = !predicted ? v : isfinite(phase->error) ? phase->predicted.tokens_per_s : NAN;
    }
    return out;
}

/* ---- memory ---- */

static void *take(struct plotter *g, size_t n, size_t size)
{
    void *p = g->failed ? NULL : td_arena_alloc(&g->arena, n * size);

    g->failed = !p;
    if (p)
        memset(p, 0, n * size);
    return p;
}

static const char *text(struct plotter *g, const char *words)
{
    const char *p = g->failed ? NULL : td_arena_strndup(&g->arena, words, strlen(words));

    g->failed = !p;
    return p ? p : "";
}

/* ---- panels ---- */

/* A measured and a predicted line for each, of one colour. */
_Static_assert(2 * (int)TD_LINKSPEC_MAX <= (int)TD_SVGPLOT_MAX_SERIES &&
                   (int)TD_LINKSPEC_MAX <= (int)TD_SVGPLOT_N_COLOURS,
               "a panel has room for all rates, or all delays");

/* One line of a panel; x stands in `at` as it goes. */
struct line {
    const char *name;
    struct match match;
};

/* Sets in the match what the value at x number i stands for. */
typedef void set_x_fn(const struct td_scaleprint *p, const double *x, const size_t *order, size_t i,
                      struct match *match);

/* What the lines of a plot have in common. */
struct frame {
    double *x;
    size_t *order; /* of the sorted values, as they were */
    size_t n;
    set_x_fn *set_x;
};

static void add_series(struct plotter *g, const struct frame *f, struct td_svgplot_panel *panel,
                       const struct line *line, size_t colour, bool prefill, bool predicted)
{
    double *y = take(g, f->n, sizeof *y);
    if (!y || panel->n_series == TD_SVGPLOT_MAX_SERIES)
        return;
    for (size_t i = 0; i < f->n; i++) {
        struct match m = line->match;

        f->set_x(g->p, f->x, f->order, i, &m);
        y[i] = value_of(g->p, &m, prefill, predicted);
    }
    panel->series[panel->n_series++] = (struct td_svgplot_series){
        .name = predicted ? NULL : line->name, .y = y, .dashed = predicted, .colour = colour};
}

/* Decode and prefill, a panel each. */
static void add_panels(struct plotter *g, struct td_svgplot *plot, struct td_svgplot_panel *panels,
                       const struct frame *f, const struct line *lines, size_t n_lines,
                       const char *of)
{
    for (int prefill = 0; prefill < 2; prefill++) {
        struct td_svgplot_panel *panel = &panels[plot->n_panels++];
        char title[TITLE_BYTES];

        if (prefill)
            snprintf(title, sizeof title, "prefill of %u%s, tokens/s", lines->match.prompt_tokens,
                     of);
        else
            snprintf(title, sizeof title, "decode behind %u%s, tokens/s",
                     lines->match.depth ? lines->match.depth : lines->match.prompt_tokens, of);
        panel->title = text(g, title);
        for (size_t i = 0; i < n_lines; i++) {
            add_series(g, f, panel, &lines[i], i + 1, prefill, false);
            add_series(g, f, panel, &lines[i], i + 1, prefill, true);
        }
    }
}

/* The points that are the first with their prompt and depth, and with `per_layout` with their layout. */
static uint32_t list_settings(const struct td_scaleprint *p, bool per_layout,
                              const struct td_scale_point **out)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < p->n; i++) {
        const struct td_scale_point *a = &p->points[i];
        uint32_t k = 0;

        if (!a->read || (per_layout && !a->delay))
            continue;
        while (k < n &&
               !(out[k]->prompt_tokens == a->prompt_tokens && out[k]->depth == a->depth &&
                 (!per_layout || memcmp(&out[k]->layout, &a->layout, sizeof a->layout) == 0)))
            k++;
        if (k == n)
            out[n++] = a;
    }
    return n;
}

/* `lines` says what they are: "a line per rate". */
static struct td_svgplot *begin_plot(struct plotter *g, const struct frame *f, const char *x_title,
                                     const char *lines)
{
    struct td_svgplot *plot = &g->plots[g->n_plots++];
    char words[256];

    snprintf(words, sizeof words, "%.100s, %u cores; best of %lld runs; %s, dashed: predicted",
             g->p->cpu, g->p->n_cores, (long long)g->p->opts->repetitions, lines);

    *plot = (struct td_svgplot){.title = g->title,
                                .subtitle = text(g, words),
                                .x_title = x_title,
                                .x_infinite = "no limit",
                                .x = f->x,
                                .n = f->n};
    return plot;
}

/* ---- over ranks ---- */

static void set_ranks(const struct td_scaleprint *p, const double *x, const size_t *order, size_t i,
                      struct match *match)
{
    (void)p;
    (void)order;
    match->ranks = (uint32_t)x[i];
}

static void list_ranks(const struct td_scaleprint *p, struct frame *f)
{
    for (uint32_t i = 0; i < p->n; i++) {
        double v = p->points[i].layout.ranks;
        size_t at = 0;

        if (!p->points[i].read)
            continue;
        while (at < f->n && f->x[at] < v)
            at++;
        if (at < f->n && f->x[at] == v)
            continue;
        memmove(f->x + at + 1, f->x + at, (f->n - at) * sizeof *f->x);
        f->x[at] = v;
        f->n++;
    }
}

static void plot_ranks(struct plotter *g, const struct td_scale_point **settings)
{
    static const struct {
        const char *name;
        unsigned kind;
    } kinds[] = {{"tensor parallel", TD_SCALE_TP},
                 {"pipeline parallel", TD_SCALE_PP},
                 {"both", TD_SCALE_BOTH}};
    uint32_t n = list_settings(g->p, false, settings);
    struct td_svgplot_panel *panels = take(g, 2 * (size_t)n, sizeof *panels);
    struct frame f = {.x = take(g, MAX_X + 1, sizeof(double)), .set_x = set_ranks};
    struct td_svgplot *plot;

    if (g->failed)
        return;
    list_ranks(g->p, &f);
    plot = begin_plot(g, &f, "ranks", "a line per kind of layout");
    for (uint32_t s = 0; s < n; s++) {
        struct line lines[3];
        size_t n_lines = 0;

        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
            bool is_there = false;

            for (uint32_t i = 0; i < g->p->n; i++)
                is_there = is_there || (g->p->points[i].read &&
                                        td_scale_kind_of(&g->p->points[i].layout) & kinds[k].kind);
            if (is_there)
                lines[n_lines++] = (struct line){kinds[k].name,
                                                 {.prompt_tokens = settings[s]->prompt_tokens,
                                                  .depth = settings[s]->depth,
                                                  .kinds = kinds[k].kind}};
        }
        add_panels(g, plot, panels, &f, lines, n_lines, "");
    }
    plot->panels = panels;
}

/* ---- over links ---- */

static void set_delay(const struct td_scaleprint *p, const double *x, const size_t *order, size_t i,
                      struct match *match)
{
    (void)x;
    match->delay = &p->lab->delay[order[i]];
}

static void set_rate(const struct td_scaleprint *p, const double *x, const size_t *order, size_t i,
                     struct match *match)
{
    (void)x;
    match->rate = &p->lab->rate[order[i]];
}

/* Mean of what the ranks measured over links with this delay, in microseconds; else the delay itself. NAN: no point with it has
 * figures. */
static double latency_us(const struct td_scaleprint *p, const struct td_linkspec_value *delay)
{
    double sum = 0.0;
    uint32_t n = 0, n_there = 0;

    for (uint32_t i = 0; i < p->n; i++) {
        const struct td_scale_point *point = &p->points[i];

        if (!point->read || point->delay != delay)
            continue;
        n_there++;
        if (isfinite(point->link.latency_s)) {
            sum += point->link.latency_s * 1e6;
            n++;
        }
    }
    if (n_there == 0)
        return NAN;
    return fmax(n ? sum / n : delay->value * 1e6, LEAST_LATENCY_US);
}

/* Puts a value in its place among those that are there. */
static void insert(struct frame *f, double x, size_t which)
{
    size_t at = f->n++;

    for (; at > 0 && f->x[at - 1] > x; at--) {
        f->x[at] = f->x[at - 1];
        f->order[at] = f->order[at - 1];
    }
    f->x[at] = x;
    f->order[at] = which;
}

/* Over the delays with a line per rate, or over the rates with a line per delay. */
static void plot_links(struct plotter *g, const struct td_scale_point **settings, bool over_rates)
{
    const struct td_linkspec *lab = g->p->lab;
    uint32_t n = list_settings(g->p, true, settings), n_lines;
    struct td_svgplot_panel *panels = take(g, 2 * (size_t)n, sizeof *panels);
    struct frame f = {.x = take(g, TD_LINKSPEC_MAX, sizeof(double)),
                      .order = take(g, TD_LINKSPEC_MAX, sizeof(size_t)),
                      .set_x = over_rates ? set_rate : set_delay};
    const struct td_linkspec_value *other = over_rates ? lab->delay : lab->rate;
    struct td_svgplot *plot;
    char what[96];

    n_lines = over_rates ? lab->n_delays : lab->n_rates;
    if (g->failed || n == 0)
        return;
    for (size_t i = 0; i < (over_rates ? lab->n_rates : lab->n_delays); i++) {
        double v = over_rates ? lab->rate[i].value / 1e6 : latency_us(g->p, &lab->delay[i]);

        if (over_rates && v == 0.0)
            v = INFINITY;
        if (!isnan(v))
            insert(&f, v, i);
    }
    if (f.n == 0)
        return;
    snprintf(what, sizeof what, "tp %u x pp %u, ", settings[0]->layout.tp, settings[0]->layout.pp);
    snprintf(what + (n > 1 ? 0 : strlen(what)), 32, "a line per %s",
             over_rates ? "delay one way" : "rate");
    plot = begin_plot(g, &f,
                      over_rates ? "rate of a host's link, Mbit/s"
                                 : "latency of a sum between hosts, measured by the ranks, us",
                      what);
    for (uint32_t s = 0; s < n; s++) {
        struct line lines[TD_LINKSPEC_MAX];
        char of[48];

        for (uint32_t i = 0; i < n_lines; i++) {
            const char *name = !over_rates && other[i].value == 0.0 ? "no limit" : other[i].text;

            lines[i] = (struct line){name,
                                     {.prompt_tokens = settings[s]->prompt_tokens,
                                      .depth = settings[s]->depth,
                                      .layout = &settings[s]->layout,
                                      .delay = over_rates ? &other[i] : NULL,
                                      .rate = over_rates ? NULL : &other[i]}};
        }
        snprintf(of, sizeof of, ", tp %u x pp %u", settings[s]->layout.tp, settings[s]->layout.pp);
        add_panels(g, plot, panels, &f, lines, n_lines, n > 1 ? of : "");
    }
    plot->panels = panels;
}

enum td_status td_scaleprint_svg(const struct td_scaleprint *p, struct td_bytes *out,
                                 struct td_err *err)
{
    struct plotter g = {.p = p};
    const struct td_scale_point **settings;
    bool has_figures = false;
    enum td_status s = TD_OK;

    for (uint32_t i = 0; i < p->n; i++)
        has_figures = has_figures || (p->points[i].read && (!p->lab || p->points[i].delay));
    if (!has_figures)
        return td_err_set(err, TD_INVALID, "there is nothing to draw: no point has figures");
    td_arena_init(&g.arena, 0, 0);
    snprintf(g.title, sizeof g.title, "%.100s: speed %s", p->model->name,
             p->lab ? "over links" : "and ranks");
    settings = take(&g, p->n, sizeof(*settings));
    if (settings && !p->lab)
        plot_ranks(&g, settings);
    if (settings && p->lab && (p->lab->n_delays > 1 || p->lab->n_rates == 1))
        plot_links(&g, settings, false);
    if (settings && p->lab && p->lab->n_rates > 1)
        plot_links(&g, settings, true);
    s = g.failed ? TD_NO_MEMORY : td_svgplot_stack(g.plots, g.n_plots, out);
    if (s)
        s = td_err_set(err, s, "no memory for the picture");
    td_arena_deinit(&g.arena);
    return s;
}
