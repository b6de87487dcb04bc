#include "daemon/cli/commrun.h"

#include "daemon/engine/node.h"
#include "kernels/base/clock.h"

#include <math.h>
#include <stdlib.h>

enum {
    LEAST_ROUNDS = 3,
    MAX_ROUNDS = 1000,
    MAX_CALLS = 1 << 20,
    SURE_ROUNDS = 50,           /* what lasts this many is long by itself */
    CALL_SLACK_NS = 1000 * 1000 /* how much longer than it seemed a call may take in the mean */
};

static const double most_row_ns = 1e9; /* of one contender in all rounds, beyond LEAST_ROUNDS */

/* Where it stands. */
struct run {
    const struct td_commrun_params *params;
    struct td_commop_bench *bench;
    struct td_err *err;
};

/* Our operations and the bare exchange have deadlines of their own, MPI's calls have none. */
static void watch(struct run *r, const struct td_commop *c, uint64_t limit_ns)
{
    if (c->kind == TD_COMMOP_MPI)
        td_watchdog_arm(r->params->watchdog, c->name, limit_ns);
}

/* A round of one contender. *lead_ns: what rank 0 took, *slowest_ns: what the slowest rank took; all ranks have both. */
static enum td_status time_calls(struct run *r, const struct td_commop *c, uint64_t n_calls,
                                 uint64_t *lead_ns, uint64_t *slowest_ns)
{
    struct td_commop_bench *b = r->bench;
    uint64_t took_ns, all_ns[TD_TREE_MAX_RANKS];
    size_t counts[TD_TREE_MAX_RANKS];
    enum td_status s = td_comm_barrier(b->world, r->err);

    watch(r, c, b->limit_ns + n_calls * CALL_SLACK_NS);
    took_ns = td_clock_now_ns();
    for (uint64_t i = 0; !s && i < n_calls; i++)
        s = td_commop_call(b, c, i, r->err);
    took_ns = td_clock_now_ns() - took_ns;
    td_watchdog_disarm(r->params->watchdog);
    for (uint32_t k = 0; k < b->size; k++)
        counts[k] = sizeof took_ns;
    s = s ? s : td_comm_all_gather(b->world, &took_ns, counts, all_ns, r->err);
    if (s)
        return s;
    *lead_ns = all_ns[0];
    *slowest_ns = all_ns[0];
    for (uint32_t k = 1; k < b->size; k++)
        *slowest_ns = all_ns[k] > *slowest_ns ? all_ns[k] : *slowest_ns;
    return TD_OK;
}

/* How many calls fill a round, and what one takes about, by rank 0's clock: calls are added until they last a quarter of a round
 * twice, since once may be another program's doing. */
static enum td_status size_round(struct run *r, struct td_commrun_time *t, double *call_ns)
{
    uint64_t n = 1, round_ns = r->params->round_ns;
    double fastest = INFINITY;
    enum td_status s = TD_OK;

    for (int n_long = 0; !s && n_long < 2;) {
        uint64_t lead_ns = 0, slowest_ns;

        s = time_calls(r, &t->contender, n, &lead_ns, &slowest_ns);
        fastest = fmin(fastest, (double)(lead_ns ? lead_ns : 1) / (double)n);
        if (lead_ns < round_ns / 4 && n < MAX_CALLS)
            n *= 4;
        else
            n_long += lead_ns > SURE_ROUNDS * round_ns ? 2 : 1;
    }
    *call_ns = fastest;
    t->n_calls = (uint64_t)fmin(fmax((double)round_ns / fastest, 1.0), MAX_CALLS);
    return s;
}

static int compare(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* `round` [n] is sorted. */
static void summarise(struct td_commrun_time *t, double *round, uint32_t n)
{
    qsort(round, n, sizeof *round, compare);
    t->best_ns = round[0];
    t->median_ns = n % 2 ? round[n / 2] : (round[n / 2 - 1] + round[n / 2]) / 2.0;
}

/* The contenders by turns; who is first changes from round to round. */
static enum td_status run_rounds(struct run *r, struct td_commrun_row *row)
{
    double *rounds = calloc(row->n * row->n_rounds, sizeof *rounds); /* [n][n_rounds] */
    enum td_status s = TD_OK;

    if (!rounds)
        s = td_err_set(r->err, TD_NO_MEMORY, "no memory for %u rounds", row->n_rounds);
    s = td_node_agree(r->bench->world, s, r->err);
    for (uint32_t i = 0; !s && i < row->n_rounds; i++)
        for (size_t k = 0; !s && k < row->n; k++) {
            size_t c = (k + i) % row->n;
            struct td_commrun_time *t = &row->time[c];
            uint64_t lead_ns, slowest_ns;

            s = time_calls(r, &t->contender, t->n_calls, &lead_ns, &slowest_ns);
            if (!s) /* a clock that does not tick would make a time that nothing can be divided by */
                rounds[c * row->n_rounds + i] =
                    (double)(slowest_ns ? slowest_ns : 1) / (double)t->n_calls;
        }
    for (size_t c = 0; !s && c < row->n; c++)
        summarise(&row->time[c], rounds + c * row->n_rounds, row->n_rounds);
    free(rounds);
    return s;
}

static enum td_status run_row(struct run *r, struct td_commrun_row *row)
{
    struct td_commop list[TD_COMMOP_MAX];
    double slowest_ns = 0.0;
    enum td_status s = TD_OK;

    row->n = td_commop_list(r->bench, row->op, list);
    td_commop_begin(r->bench, row->op, row->bytes);
    for (size_t c = 0; !s && c < row->n; c++) {
        row->time[c].contender = list[c];
        row->time[c].is_auto = td_commop_is_auto(&list[c], row->bytes);
        watch(r, &list[c], r->bench->limit_ns);
        s = td_commop_verify(r->bench, &list[c], r->err);
        td_watchdog_disarm(r->params->watchdog);
        if (s < TD_PEER_LOST) /* else the others cannot be asked */
            s = td_node_agree(r->bench->world, s, r->err);
    }
    for (size_t c = 0; !s && c < row->n; c++) {
        double call_ns;

        s = size_round(r, &row->time[c], &call_ns);
        slowest_ns = call_ns > slowest_ns ? call_ns : slowest_ns;
    }
    row->n_rounds = r->params->n_rounds < MAX_ROUNDS ? r->params->n_rounds : MAX_ROUNDS;
    if (slowest_ns * row->n_rounds > most_row_ns && row->n_rounds > LEAST_ROUNDS) {
        double fit = most_row_ns / slowest_ns;

        row->n_rounds = fit < LEAST_ROUNDS ? LEAST_ROUNDS : (uint32_t)fit;
    }
    return s ? s : run_rounds(r, row);
}

enum td_status td_commrun_go(const struct td_commrun_params *params, struct td_commop_bench *bench,
                             struct td_commrun *run, struct td_err *err)
{
    const struct td_commset *set = params->set;
    struct run r = {.params = params, .bench = bench, .err = err};
    enum td_status s = TD_OK;

    *run = (struct td_commrun){.rows = calloc(TD_COMMRUN_MAX_ROWS, sizeof *run->rows)};
    if (!run->rows)
        s = td_err_set(err, TD_NO_MEMORY, "no memory for %d rows", TD_COMMRUN_MAX_ROWS);
    s = td_node_agree(bench->world, s, err);
    for (int op = 0; !s && op < TD_COMMSET_N_OPS; op++) {
        bool has_size = op != TD_COMMSET_BARRIER;

        for (size_t i = 0; set->ops >> op & 1 && i < (has_size ? set->n_sizes : 1); i++)
            run->rows[run->n_rows++] = (struct td_commrun_row){
                .op = (enum td_commset_op)op, .bytes = has_size ? set->bytes[i] : 0};
    }
    for (size_t i = 0; !s && i < run->n_rows; i++) {
        s = run_row(&r, &run->rows[i]);
        if (params->term && !s)
            td_term_progress(params->term, "measuring", i + 1, run->n_rows, "rows");
    }
    if (params->term)
        td_term_end(params->term);
    return s;
}

void td_commrun_deinit(struct td_commrun *run)
{
    free(run->rows);
    *run = (struct td_commrun){0};
}

const struct td_commrun_time *td_commrun_find(const struct td_commrun_row *row,
                                              enum td_commop_kind kind)
{
    for (size_t c = 0; c < row->n; c++)
        if (row->time[c].contender.kind == kind)
            return &row->time[c];
    return NULL;
}

/* The rows of an operation stand together, and its contenders in one order in all of them. */
static size_t fit_operation(const struct td_commrun_row *rows, size_t n_rows,
                            struct td_commrun_fit *fits)
{
    size_t n = 0;

    for (size_t c = 0; n_rows > 0 && c < rows[0].n; c++) {
        struct td_linkfit_point points[TD_COMMSET_MAX_SIZES];
        struct td_commrun_fit *fit = &fits[n];

        for (size_t i = 0; i < n_rows; i++)
            points[i] = (struct td_linkfit_point){(double)rows[i].bytes, rows[i].time[c].best_ns};
        if (td_linkfit_make(points, n_rows, &fit->line, NULL) != TD_OK)
            continue; /* one size makes no line */
        fit->contender = &rows[0].time[c];
        fit->n_points = n_rows;
        n++;
    }
    return n;
}

size_t td_commrun_fits(const struct td_commrun *run,
                       struct td_commrun_fit fits[TD_COMMRUN_MAX_FITS])
{
    static const enum td_commset_op ops[] = {TD_COMMSET_SENDRECV, TD_COMMSET_TREE_SUM};
    size_t n = 0;

    for (size_t k = 0; k < sizeof ops / sizeof ops[0]; k++) {
        size_t first = 0, n_rows = 0;

        while (first < run->n_rows && run->rows[first].op != ops[k])
            first++;
        while (first + n_rows < run->n_rows && run->rows[first + n_rows].op == ops[k])
            n_rows++;
        n += fit_operation(run->rows + first, n_rows, fits + n);
    }
    return n;
}
