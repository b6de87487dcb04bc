#include "daemon/cli/bench.h"
#include "shard/machinejson.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Rates are per second; of the first token, seconds. Shares are parts of the better one of the two probes beside each run. */
struct figures {
    double best, median;
    double memory_best, memory_median; /* share of the memory's rate */
    double peak_best, peak_median;     /* share of the arithmetic's rate; 0: there is none */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Sorts. */
static double median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, compare);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2.0;
}

static double bytes_of(const struct td_bench_work *w)
{
    return (double)w->n_steps * (w->weight_bytes + w->kv_bytes);
}

static double rate_of(enum td_bench_case which, const struct td_bench_work *w, double seconds)
{
    if (which == TD_BENCH_FIRST)
        return seconds;
    return (which == TD_BENCH_LOAD ? w->weight_bytes : (double)w->n_tokens) / seconds;
}

static double memory_share(const struct td_bench_work *w, const struct td_bench_run *run)
{
    return bytes_of(w) / run->seconds / run->limits.memory;
}

static double peak_share(const struct td_bench *b, const struct td_bench_work *w,
                         const struct td_bench_run *run)
{
    return b->has_peak ? w->matrix_ops / run->seconds / run->limits.peak[b->peak] : 0.0;
}

static const struct td_bench_run *best_run(const struct td_bench_result *r)
{
    const struct td_bench_run *best = &r->runs[0];

    for (uint32_t i = 1; i < r->n_runs; i++)
        best = r->runs[i].seconds < best->seconds ? &r->runs[i] : best;
    return best;
}

static enum td_status figures_of(const struct td_bench *b, enum td_bench_case which,
                                 struct figures *out)
{
    const struct td_bench_result *r = &b->result[which];
    const struct td_bench_run *best = best_run(r);
    double *v = calloc(r->n_runs, sizeof *v);

    if (!v)
        return td_err_set(b->err, TD_NO_MEMORY, "no memory for %u runs", r->n_runs);
    out->best = rate_of(which, &r->work, best->seconds);
    out->memory_best = memory_share(&r->work, best);
    out->peak_best = peak_share(b, &r->work, best);
    for (uint32_t i = 0; i < r->n_runs; i++)
        v[i] = rate_of(which, &r->work, r->runs[i].seconds);
    out->median = median(v, r->n_runs);
    for (uint32_t i = 0; i < r->n_runs; i++)
        v[i] = memory_share(&r->work, &r->runs[i]);
    out->memory_median = median(v, r->n_runs);
    for (uint32_t i = 0; i < r->n_runs; i++)
        v[i] = peak_share(b, &r->work, &r->runs[i]);
    out->peak_median = median(v, r->n_runs);
    free(v);
    return TD_OK;
}

/* What the host took of a run: all that is no step's. */
static double host_of(const struct td_bench_run *run)
{
    double rest = run->seconds - run->split.compute - run->split.exchange - run->split.wait;

    return rest > 0.0 ? rest : 0.0;
}

/* That the GPUs drew for one token of the best run; 0: unknown. */
static double joules_per_token(const struct td_bench_result *r)
{
    return best_run(r)->joules / (double)r->work.n_tokens;
}

static uint32_t count_unsteady(const struct td_bench_result *r)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < r->n_runs; i++)
        n += !r->runs[i].steady;
    return n;
}

/* ---- text ---- */

static void describe(const struct td_bench *b, enum td_bench_case which, char *out,
                     size_t out_bytes)
{
    const struct td_bench_work *w = &b->result[which].work;
    char bytes[32];

    switch (which) {
    case TD_BENCH_PREFILL:
        snprintf(out, out_bytes, "%u tokens", b->n_prompt);
        break;
    case TD_BENCH_BATCH:
        snprintf(out, out_bytes, "%u x %u tokens at %.0f", b->n_batch, b->n_gen, w->depth);
        break;
    case TD_BENCH_LOAD:
        snprintf(out, out_bytes, "%s, read before",
                 td_term_bytes((uint64_t)w->weight_bytes, bytes, sizeof bytes));
        break;
    case TD_BENCH_FIRST:
        snprintf(out, out_bytes, "load and 1 token");
        break;
    default:
        snprintf(out, out_bytes, "%u tokens at %.0f", b->n_gen, w->depth);
        break;
    }
}

/* "78 / 75 %", with a star where it is what the case is held against. */
static void show_share(double best, double middle, bool fits)
{
    char text[32];

    snprintf(text, sizeof text, "%s%.0f / %.0f %%", fits ? "* " : "", 100.0 * best, 100.0 * middle);
    printf("  %14s", text);
}

static void print_case(const struct td_bench *b, enum td_bench_case which)
{
    static const char *const units[TD_BENCH_N_CASES] = {"tok/s", "tok/s", "tok/s",
                                                        "tok/s", "GB/s",  "s"};
    const struct td_bench_result *r = &b->result[which];
    double scale = which == TD_BENCH_LOAD ? 1e-9 : 1.0;
    bool computes = td_bench_case_computes(which);
    struct figures f;
    char what[64];
    int digits;

    if (!r->asked || figures_of(b, which, &f))
        return;
    digits = which == TD_BENCH_FIRST ? 3 : f.best * scale < 100.0 ? 2 : 1;
    describe(b, which, what, sizeof what);
    printf("%-8s  %-24s  %9.*f  %9.*f ", td_bench_case_name(which), what, digits, f.best * scale,
           digits, f.median * scale);
    printf(which == TD_BENCH_FIRST ? "%s" : "%-5s", units[which]);
    if (which != TD_BENCH_FIRST)
        show_share(f.memory_best, f.memory_median, !computes || !b->has_peak);
    if (which < TD_BENCH_LOAD && b->has_peak)
        show_share(f.peak_best, f.peak_median, computes);
    if (r->n_repeated)
        printf("  %u repeated", r->n_repeated);
    if (count_unsteady(r))
        printf("  %u unsteady", count_unsteady(r));
    putchar('\n');
}

/* Where the time of the best run went, by token; for one rank there is nothing to tell apart. */
static void print_splits(const struct td_bench *b)
{
    if (b->spmd->size > 1)
        printf("\n%-8s  %9s  %9s  %9s  %9s  %s\n", "per token", "compute", "exchange", "wait",
               "host", "exchanges, bytes sent by all ranks");
    for (int c = 0; c < TD_BENCH_LOAD && b->spmd->size > 1; c++) {
        const struct td_bench_result *r = &b->result[c];
        const struct td_bench_work *w = &r->work;
        const struct td_bench_run *run;
        char sent[32];

        if (!r->asked)
            continue;
        run = best_run(r);
        td_term_bytes((uint64_t)(w->sent_bytes / (double)w->n_tokens), sent, sizeof sent);
        printf("%-8s  %6.3f ms  %6.3f ms  %6.3f ms  %6.3f ms  %.1f, %s\n",
               td_bench_case_name((enum td_bench_case)c),
               run->split.compute * 1e3 / (double)w->n_tokens,
               run->split.exchange * 1e3 / (double)w->n_tokens,
               run->split.wait * 1e3 / (double)w->n_tokens,
               host_of(run) * 1e3 / (double)w->n_tokens,
               w->n_exchanges / (double)b->spmd->size / (double)w->n_tokens, sent);
    }
}

static void print_energy(const struct td_bench *b)
{
    const char *before = "\nenergy    ";

    for (int c = 0; c < TD_BENCH_LOAD; c++) {
        const struct td_bench_result *r = &b->result[c];

        if (!r->asked || joules_per_token(r) <= 0.0)
            continue;
        printf("%s%.4g J per token in %s", before, joules_per_token(r),
               td_bench_case_name((enum td_bench_case)c));
        before = ", ";
    }
    if (*before == ',')
        printf("; of all GPUs, best run\n");
}

void td_bench_print_text(const struct td_bench *b)
{
    const struct td_spmd *s = b->spmd;
    const struct td_plan *plan = s->node.plan;
    const struct td_spec *spec = s->node.model->spec;
    const struct td_bench_work *w = &b->result[TD_BENCH_DECODE].work;
    const char *instruction = td_probe_peak_instruction(b->peak);
    char total[32], weights[32], kv[32];
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);

    td_term_bytes(plan->model_bytes, total, sizeof total);
    printf("model     %s (%s), %s of weights, most of them %s\n", s->node.model->name, spec->name,
           total, td_dtype_info(spec->dtype)->name);
    printf("layout    %u rank%s: tensor parallel %u x pipeline parallel %u, %s, %u thread%s each\n",
           plan->n_ranks, plan->n_ranks == 1 ? "" : "s", plan->tp, plan->pp, s->facts[0].device,
           s->facts[0].n_threads, s->facts[0].n_threads == 1 ? "" : "s");
    printf("probes    memory %.2f GB/s", b->best.memory * 1e-9);
    if (b->has_peak)
        printf(", %s %.1f Gop/s (%s)", td_probe_peak_name(b->peak), b->best.peak[b->peak] * 1e-9,
               instruction ? instruction : "none here");
    printf(": best of %u\n", b->n_probes);
    td_term_bytes((uint64_t)(w->weight_bytes + w->kv_bytes), total, sizeof total);
    td_term_bytes((uint64_t)w->weight_bytes, weights, sizeof weights);
    td_term_bytes((uint64_t)w->kv_bytes, kv, sizeof kv);
    printf("reads     %s per token: %s of weights, %s of keys and values at %.0f tokens\n", total,
           weights, kv, w->depth);
    printf("multiply  %.3f Gop per token in the matrices; attention at %.0f tokens adds %.3f\n",
           w->matrix_ops / (double)w->n_tokens * 1e-9, w->depth,
           w->attn_ops / (double)w->n_tokens * 1e-9);
    if (cache > 0 && w->weight_bytes < (double)cache)
        printf(
            "          the weights fit in the CPU's caches, so memory is hardly the limit here\n");
    printf("\n%-8s  %-24s  %9s  %9s %-5s  %14s", "case", "", "best", "median", "", "of memory");
    if (b->has_peak)
        printf("  %11s%s", "of ", td_probe_peak_name(b->peak));
    putchar('\n');
    for (int c = 0; c < TD_BENCH_N_CASES; c++)
        print_case(b, (enum td_bench_case)c);
    print_splits(b);
    print_energy(b);
    printf("\nShares are best / median of the better probe beside each of %u runs; * is what "
           "limits.\n",
           b->n_runs);
}

/* ---- JSON ---- */

static json_t *runs_json(const struct td_bench *b, enum td_bench_case which)
{
    const struct td_bench_result *r = &b->result[which];
    json_t *all = json_array();

    for (uint32_t i = 0; i < r->n_runs; i++) {
        const struct td_bench_run *run = &r->runs[i];

        json_t *j = json_pack("{s:f,s:f,s:f,s:f,s:b}", "seconds", run->seconds, "rate",
                              rate_of(which, &r->work, run->seconds), "memory_bytes_per_second",
                              run->limits.memory, "peak_ops_per_second", run->limits.peak[b->peak],
                              "steady", run->steady);

        if (which < TD_BENCH_LOAD)
            json_object_set_new(j, "split_seconds",
                                json_pack("{s:f,s:f,s:f,s:f}", "compute", run->split.compute,
                                          "exchange", run->split.exchange, "wait", run->split.wait,
                                          "host", host_of(run)));
        json_array_append_new(all, j);
    }
    return all;
}

static json_t *case_json(const struct td_bench *b, enum td_bench_case which)
{
    const struct td_bench_result *r = &b->result[which];
    const struct td_bench_work *w = &r->work;
    struct figures f;
    json_t *j;

    if (figures_of(b, which, &f))
        return NULL;
    j = json_pack("{s:s,s:f,s:f,s:I,s:o}", "unit",
                  which == TD_BENCH_FIRST  ? "seconds"
                  : which == TD_BENCH_LOAD ? "bytes_per_second"
                                           : "tokens_per_second",
                  "best", f.best, "median", f.median, "repeated", (json_int_t)r->n_repeated, "runs",
                  runs_json(b, which));
    if (which != TD_BENCH_FIRST)
        json_object_set_new(
            j, "memory_share",
            json_pack("{s:f,s:f}", "best", f.memory_best, "median", f.memory_median));
    if (which == TD_BENCH_LOAD)
        json_object_set_new(j, "bytes", json_real(w->weight_bytes));
    if (which >= TD_BENCH_LOAD)
        return j;
    json_object_set_new(j, "limit",
                        json_string(td_bench_case_computes(which) && b->has_peak
                                        ? td_probe_peak_name(b->peak)
                                        : "memory"));
    json_object_set_new(j, "peak_share",
                        b->has_peak
                            ? json_pack("{s:f,s:f}", "best", f.peak_best, "median", f.peak_median)
                            : json_null());
    json_object_set_new(j, "joules_per_token",
                        joules_per_token(r) > 0.0 ? json_real(joules_per_token(r)) : json_null());
    json_object_set_new(j, "sent_bytes_per_token", json_real(w->sent_bytes / (double)w->n_tokens));
    json_object_set_new(j, "exchanges_per_token",
                        json_real(w->n_exchanges / (double)b->spmd->size / (double)w->n_tokens));
    json_object_set_new(j, "tokens", json_integer((json_int_t)w->n_tokens));
    json_object_set_new(j, "steps", json_integer((json_int_t)w->n_steps));
    json_object_set_new(j, "depth", json_real(w->depth));
    json_object_set_new(j, "bytes_per_step",
                        json_pack("{s:f,s:f,s:f}", "weights", w->weight_bytes, "kv", w->kv_bytes,
                                  "total", w->weight_bytes + w->kv_bytes));
    json_object_set_new(j, "ops_per_token",
                        json_pack("{s:f,s:f}", "matrices", w->matrix_ops / (double)w->n_tokens,
                                  "attention", w->attn_ops / (double)w->n_tokens));
    return j;
}

static json_t *ranks_json(const struct td_spmd *s)
{
    json_t *all = json_array();

    for (uint32_t r = 0; r < s->size; r++) {
        const struct td_plan_rank *rank = &s->node.plan->rank[r];

        json_array_append_new(all,
                              json_pack("{s:I,s:s,s:s,s:I,s:I,s:I}", "rank", (json_int_t)r, "host",
                                        s->facts[r].host, "device", s->facts[r].device, "threads",
                                        (json_int_t)s->facts[r].n_threads, "weight_bytes",
                                        (json_int_t)rank->weight_bytes, "kv_bytes_per_token",
                                        (json_int_t)rank->kv_bytes_per_token));
    }
    return all;
}

static json_t *probes_json(const struct td_bench *b)
{
    const char *instruction = td_probe_peak_instruction(b->peak);
    json_t *j = json_pack("{s:I,s:f}", "taken", (json_int_t)b->n_probes, "memory_bytes_per_second",
                          b->best.memory);

    json_object_set_new(j, "peak", json_string(td_probe_peak_name(b->peak)));
    json_object_set_new(j, "peak_instruction",
                        instruction ? json_string(instruction) : json_null());
    json_object_set_new(j, "peak_ops_per_second", json_real(b->best.peak[b->peak]));
    return j;
}

/* The group before and after the cases; null where it could not be measured. */
static json_t *group_json(const struct td_bench *b)
{
    static const char *const names[] = {"before", "after"};
    json_t *j = json_object();

    for (int i = 0; b->groups && i < 2; i++) {
        const struct td_bench_group *g = &b->groups[i];

        json_object_set_new(
            j, names[i],
            g->measured ? td_machinejson_encode(&g->machine, g->report.machine, g->report.links)
                        : json_null());
    }
    return j;
}

enum td_status td_bench_print_json(const struct td_bench *b)
{
    const struct td_plan *plan = b->spmd->node.plan;
    const struct td_plan_model *model = b->spmd->node.model;
    json_t *cases = json_object(), *root;
    bool ok = cases != NULL;

    for (int c = 0; ok && c < TD_BENCH_N_CASES; c++)
        if (b->result[c].asked)
            ok = json_object_set_new(cases, td_bench_case_name((enum td_bench_case)c),
                                     case_json(b, (enum td_bench_case)c)) == 0;
    root = json_pack(
        "{s:s,s:s,s:s,s:I,s:I,s:o,s:o,s:I,s:f,s:{s:I,s:I},s:o,s:o}", "model", model->name,
        "architecture", model->spec->name, "dtype", td_dtype_info(model->spec->dtype)->name,
        "model_bytes", (json_int_t)plan->model_bytes, "repetitions", (json_int_t)b->n_runs,
        "probes", probes_json(b), "cases", cases, "exchanged_bytes_per_token",
        (json_int_t)td_plan_exchanged_bytes(plan), "load_seconds", (double)b->spmd->load_ns * 1e-9,
        "layout", "tensor_parallel", (json_int_t)plan->tp, "pipeline_parallel",
        (json_int_t)plan->pp, "ranks", ranks_json(b->spmd), "machine", group_json(b));
    ok = ok && root && json_dumpf(root, stdout, JSON_COMPACT) == 0;
    putchar('\n');
    json_decref(root);
    return ok ? TD_OK
              : td_err_set(b->err, TD_NO_MEMORY, "no memory for the JSON of %u runs", b->n_runs);
}
