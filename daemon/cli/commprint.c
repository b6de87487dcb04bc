#include "daemon/cli/commprint.h"

#include "comm/comm_mpi.h"
#include "daemon/cli/svgplot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double rate(const struct td_commrun_row *row, const struct td_commrun_time *t)
{
    return (double)row->bytes / t->best_ns; /* bytes per ns: GB/s */
}

/* ---- text ---- */

static void print_head(const struct td_commprint *p)
{
    printf("ranks       %u on %u host%s, %s\n", p->n_ranks, p->n_hosts, p->n_hosts == 1 ? "" : "s",
           p->shares_cores ? "which share cores: times are the scheduler's as much as the links', "
                             "and rounds are few and short"
                           : "a core for each");
    printf("transport   %s\n", p->transport);
    printf("mpi         %s\n", td_comm_mpi_version());
    if (p->run->n_rows == 0)
        return;
    printf(
        "times       us of one call, back to back, of the slowest rank: best and median of up to "
        "%u rounds, by turns\n"
        "GB/s        bytes / best; of sendrecv in each direction, of all_gather those of one "
        "rank\n"
        "/ MPI       best / best of MPI's own call: below 1 is faster%s%s\n",
        p->n_rounds, p->no_bare ? "; no bare exchange: " : ". / bare: of the bare exchange",
        p->no_bare ? p->no_bare : "");
}

static void print_ratio(const struct td_commrun_time *t, const struct td_commrun_time *other)
{
    if (!other || t->contender.kind != TD_COMMOP_OURS)
        printf(" %8s", "");
    else
        printf(" %8.2f", t->best_ns / other->best_ns);
}

static void print_row(const struct td_commrun_row *row, bool has_bare)
{
    const struct td_commrun_time *mpi = td_commrun_find(row, TD_COMMOP_MPI);
    const struct td_commrun_time *bare = td_commrun_find(row, TD_COMMOP_BARE);
    char size[TD_COMMSET_SIZE_BYTES];

    for (size_t c = 0; c < row->n; c++) {
        const struct td_commrun_time *t = &row->time[c];

        printf("%8s  %-26s%s %11.2f %11.2f",
               c > 0 || row->bytes == 0 ? "" : td_commset_format_size(row->bytes, size),
               t->contender.name, t->is_auto ? "*" : " ", t->best_ns * 1e-3, t->median_ns * 1e-3);
        if (row->bytes)
            printf(" %9.3f", rate(row, t));
        else
            printf(" %9s", "");
        print_ratio(t, mpi);
        if (has_bare)
            print_ratio(t, bare);
        printf("\n");
    }
}

static void print_fits(const struct td_commprint *p)
{
    struct td_commrun_fit fits[TD_COMMRUN_MAX_FITS];
    size_t n = td_commrun_fits(p->run, fits);

    if (n == 0)
        return;
    printf("\ntime = alpha + bytes / beta: the line with the least squares of relative errors, so "
           "that small sizes count as much\n%-8s  %-26s %12s %11s %16s\n",
           "", "", "alpha, us", "beta, GB/s", "off by at most");
    for (size_t i = 0; i < n; i++) {
        const struct td_commop *c = &fits[i].contender->contender;
        double beta = td_linkfit_bandwidth(&fits[i].line) * 1e-9;

        printf("%-8s  %-26s %12.3f ",
               i > 0 && fits[i - 1].contender->contender.op == c->op ? ""
                                                                     : td_commset_op_name(c->op),
               c->name, fits[i].line.alpha_ns * 1e-3);
        if (isfinite(beta))
            printf("%11.3f", beta);
        else
            printf("%11s", "no limit");
        printf(" %14.0f %%\n", 100.0 * fits[i].line.worst);
    }
}

void td_commprint_text(const struct td_commprint *p)
{
    bool has_auto = false;

    print_head(p);
    if (p->run->n_rows == 0)
        printf(
            "One rank has nothing to exchange: 'mpirun -n 2 tensord bench comm' measures two.\n");
    for (size_t i = 0; i < p->run->n_rows; i++) {
        const struct td_commrun_row *row = &p->run->rows[i];
        bool has_bare = row->op == TD_COMMSET_TREE_SUM && !p->no_bare;

        if (i == 0 || p->run->rows[i - 1].op != row->op)
            printf("\n%-36s  %11s %11s %9s %8s%s\n", td_commset_op_name(row->op), "best us",
                   "median us", row->bytes ? "GB/s" : "", "/ MPI", has_bare ? "   / bare" : "");
        print_row(row, has_bare);
        has_auto = has_auto || row->op == TD_COMMSET_TREE_SUM;
    }
    if (has_auto)
        printf("\n* what tree_sum takes by itself at this size, %s\n",
               p->was_tried ? "as was fastest when tried" : "by the rule: nothing was tried");
    print_fits(p);
}

/* ---- JSON ---- */

/* The best time as a multiple of another's; null without the other. */
static json_t *ratio_json(const struct td_commrun_time *t, const struct td_commrun_time *other)
{
    return other ? json_real(t->best_ns / other->best_ns) : json_null();
}

static const char *kind_name(enum td_commop_kind kind)
{
    static const char *const names[] = {"tensord", "mpi", "bare"};

    return names[kind];
}

static json_t *time_json(const struct td_commrun_row *row, const struct td_commrun_time *t)
{
    const struct td_commop *c = &t->contender;
    bool is_sum = c->kind == TD_COMMOP_OURS && c->op == TD_COMMSET_TREE_SUM;

    return json_pack("{s:s,s:s,s:s?,s:s?,s:b,s:I,s:f,s:f,s:o,s:o,s:o}", "name", c->name, "kind",
                     kind_name(c->kind), "transport", c->transport, "algorithm",
                     is_sum ? td_comm_sum_name(c->algorithm) : NULL, "auto", t->is_auto, "calls",
                     (json_int_t)t->n_calls, "best_us", t->best_ns * 1e-3, "median_us",
                     t->median_ns * 1e-3, "gb_per_second",
                     row->bytes ? json_real(rate(row, t)) : json_null(), "ratio_mpi",
                     ratio_json(t, td_commrun_find(row, TD_COMMOP_MPI)), "ratio_bare",
                     ratio_json(t, td_commrun_find(row, TD_COMMOP_BARE)));
}

static json_t *row_json(const struct td_commrun_row *row)
{
    json_t *times = json_array();

    for (size_t c = 0; c < row->n; c++)
        json_array_append_new(times, time_json(row, &row->time[c]));
    return json_pack("{s:s,s:I,s:I,s:o}", "operation", td_commset_op_name(row->op), "bytes",
                     (json_int_t)row->bytes, "rounds", (json_int_t)row->n_rounds, "contenders",
                     times);
}

static json_t *fits_json(const struct td_commrun *run)
{
    struct td_commrun_fit fits[TD_COMMRUN_MAX_FITS];
    size_t n = td_commrun_fits(run, fits);
    json_t *out = json_array();

    for (size_t i = 0; i < n; i++) {
        const struct td_commop *c = &fits[i].contender->contender;
        const struct td_linkfit *line = &fits[i].line;
        double beta = td_linkfit_bandwidth(line);

        json_array_append_new(
            out,
            json_pack("{s:s,s:s,s:s,s:f,s:f,s:o,s:f,s:I}", "operation", td_commset_op_name(c->op),
                      "name", c->name, "kind", kind_name(c->kind), "alpha_us",
                      line->alpha_ns * 1e-3, "us_per_byte", line->ns_per_byte * 1e-3,
                      "beta_bytes_per_second", isfinite(beta) ? json_real(beta) : json_null(),
                      "worst_relative_error", line->worst, "points", (json_int_t)fits[i].n_points));
    }
    return out;
}

json_t *td_commprint_json(const struct td_commprint *p)
{
    json_t *sizes = json_array(), *rows = json_array();

    for (size_t i = 0; i < p->set->n_sizes; i++)
        json_array_append_new(sizes, json_integer((json_int_t)p->set->bytes[i]));
    for (size_t i = 0; i < p->run->n_rows; i++)
        json_array_append_new(rows, row_json(&p->run->rows[i]));
    return json_pack("{s:s,s:s,s:I,s:I,s:b,s:s,s:s,s:s?,s:s,s:I,s:o,s:o,s:o}", "tool",
                     "tensord bench comm", "version", TD_VERSION, "ranks", (json_int_t)p->n_ranks,
                     "hosts", (json_int_t)p->n_hosts, "shares_cores", p->shares_cores, "transport",
                     p->transport, "mpi", td_comm_mpi_version(), "no_bare_exchange", p->no_bare,
                     "auto_by", p->was_tried ? "trial" : "rule", "rounds", (json_int_t)p->n_rounds,
                     "sizes", sizes, "rows", rows, "fits", fits_json(p->run));
}

/* ---- picture ---- */

/* Lines of one algorithm have one colour, over both transports; MPI and the bare exchange have the last two. */
static struct td_svgplot_series series_of(const struct td_commop *c, const double *y)
{
    struct td_svgplot_series s = {.name = c->name, .y = y};

    if (c->kind == TD_COMMOP_MPI)
        s.colour = TD_SVGPLOT_GREY;
    else if (c->kind == TD_COMMOP_BARE)
        s.colour = TD_SVGPLOT_BLACK;
    else
        s.colour = c->op == TD_COMMSET_TREE_SUM ? (size_t)c->algorithm : 1;
    s.dashed = c->transport && strcmp(c->transport, "messages") == 0;
    return s;
}

/* The panel of the operation whose rows begin at `first`; one row per size. */
static void fill_panel(const struct td_commrun_row *first, size_t n_sizes, double *y, char *title,
                       size_t title_bytes, struct td_svgplot_panel *panel)
{
    snprintf(title, title_bytes, "%s, us", td_commset_op_name(first->op));
    *panel = (struct td_svgplot_panel){.title = title, .is_log = true, .n_series = first->n};
    for (size_t c = 0; c < first->n; c++) {
        for (size_t i = 0; i < n_sizes; i++)
            y[c * n_sizes + i] = first[i].time[c].best_ns * 1e-3;
        panel->series[c] = series_of(&first->time[c].contender, y + c * n_sizes);
    }
}

enum td_status td_commprint_svg(const struct td_commprint *p, struct td_bytes *out)
{
    enum { MOST = TD_COMMSET_N_OPS - 1 };
    struct td_svgplot_panel panels[MOST];
    char titles[MOST][48], title[96], subtitle[256];
    double x[TD_COMMSET_MAX_SIZES];
    size_t n_sizes = p->set->n_sizes, n_panels = 0;
    double *y = calloc(MOST * TD_COMMOP_MAX * n_sizes, sizeof *y);
    struct td_svgplot plot = {.title = title,
                              .subtitle = subtitle,
                              .x_title = "bytes",
                              .x = x,
                              .n = n_sizes,
                              .panels = panels,
                              .x_in_1024 = true};
    enum td_status s = TD_INVALID;

    if (!y)
        return TD_NO_MEMORY;
    for (size_t i = 0; i < n_sizes; i++)
        x[i] = (double)p->set->bytes[i];
    for (size_t i = 0; i < p->run->n_rows; i += n_sizes) {
        if (p->run->rows[i].op == TD_COMMSET_BARRIER)
            break; /* the last, without sizes */
        fill_panel(&p->run->rows[i], n_sizes, y + n_panels * TD_COMMOP_MAX * n_sizes,
                   titles[n_panels], sizeof titles[n_panels], &panels[n_panels]);
        n_panels++;
    }
    plot.n_panels = n_panels;
    snprintf(title, sizeof title, "%u ranks: time of an operation against its bytes", p->n_ranks);
    snprintf(subtitle, sizeof subtitle, "%s, %u host%s%s; best of up to %u rounds; %.*s",
             p->transport, p->n_hosts, p->n_hosts == 1 ? "" : "s",
             p->shares_cores ? ", cores shared" : "", p->n_rounds,
             (int)strcspn(td_comm_mpi_version(), ","), td_comm_mpi_version());
    if (n_panels > 0)
        s = td_svgplot_write(&plot, out);
    free(y);
    return s;
}
