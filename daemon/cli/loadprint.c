#include "daemon/cli/loadprint.h"

#include "daemon/cli/loadtrace.h"
#include "daemon/cli/svgplot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double LATE_MS = 5.0, BUSY = 0.8; /* beyond these the generator itself is in doubt */

const char *td_loadprint_name(const struct td_loadprint_point *point,
                              char out[TD_LOADPRINT_NAME_BYTES])
{
    const char *form = "%.6g requests/s";

    if (point->kind == TD_LOADRUN_TRACE)
        form = "as traced";
    else if (point->kind == TD_LOADRUN_CLOSED)
        form = "%.0f at a time";
    else if (isinf(point->value))
        form = "all at once";
    snprintf(out, TD_LOADPRINT_NAME_BYTES, form, point->value);
    return out;
}

/* ---- text ---- */

static void print_lengths(const struct td_loadprint *b)
{
    const struct td_options *o = b->opts;

    if (b->load->trace)
        printf("lengths     %zu requests of the trace %s\n", b->load->trace->n_rows, o->trace);
    else
        printf("lengths     input %s words, output %s tokens%s\n", o->input_len, o->output_len,
               o->ignore_eos ? ", end token ignored" : "");
    if (b->load->prefix_share > 0.0)
        printf("prefix      %.0f %% of each prompt shared, %u group%s\n",
               100.0 * b->load->prefix_share, b->load->prefix_groups,
               b->load->prefix_groups == 1 ? "" : "s");
}

void td_loadprint_head(const struct td_loadprint *b)
{
    printf("server      %s, %s, model %s\n", b->opts->url, b->path, b->model);
    print_lengths(b);
    printf("seed        %llu\n", (unsigned long long)b->load->seed);
}

static void print_failures(const struct td_loadstat *st)
{
    for (int e = 1; e < TD_LOADRECORD_N_ENDS; e++)
        if (st->n_ends[e] > 0 && e != TD_LOADRECORD_CANCELLED)
            printf("    %-18s %zu%s%s%s\n", td_loadrecord_end_name((enum td_loadrecord_end)e),
                   st->n_ends[e], st->reasons[e] ? " (the first: " : "",
                   st->reasons[e] ? st->reasons[e] : "", st->reasons[e] ? ")" : "");
}

static double each(uint64_t total, size_t n)
{
    return n ? (double)total / (double)n : 0.0;
}

static void print_goodput(const struct td_loadprint *b, const struct td_loadstat *st)
{
    const struct td_loadstat_slo *slo = b->slo;
    const struct {
        const char *name;
        double bound;
    } bounds[] = {{"TTFT", slo->ttft}, {"ITL", slo->itl}, {"TPOT", slo->tpot}, {"E2E", slo->e2e}};
    const char *comma = "";

    if (slo->ttft <= 0.0 && slo->itl <= 0.0 && slo->tpot <= 0.0 && slo->e2e <= 0.0)
        return;
    printf("  goodput              %.3f requests/s, %.1f %% of those sent, with ", st->goodput,
           st->n_sent ? 100.0 * (double)st->n_good / (double)st->n_sent : 0.0);
    for (size_t i = 0; i < sizeof bounds / sizeof bounds[0]; i++)
        if (bounds[i].bound > 0.0) {
            printf("%s%s <= %g ms", comma, bounds[i].name, bounds[i].bound);
            comma = ", ";
        }
    putchar('\n');
}

static void print_latency(const char *name, const struct td_latency_summary *l)
{
    if (l->n == 0)
        printf("  %-28s %9s %9s %9s %9s %9s\n", name, "-", "-", "-", "-", "-");
    else
        printf("  %-28s %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, l->mean, l->p50, l->p90, l->p99,
               l->max);
}

void td_loadprint_point(const struct td_loadprint *b, const struct td_loadprint_point *point)
{
    const struct td_loadstat *st = &point->stat;
    char name[TD_LOADPRINT_NAME_BYTES];
    const char *by = st->n_without_usage == 0 ? "" : ", not by the server's count";

    printf("\n%s%s\n", td_loadprint_name(point, name), st->interrupted ? " (interrupted)" : "");
    printf("  requests             %zu done, %zu failed", st->n_done, st->n_failed);
    if (st->n_ends[TD_LOADRECORD_CANCELLED])
        printf(", %zu broken off by us", st->n_ends[TD_LOADRECORD_CANCELLED]);
    printf(", in %.2f s\n", st->duration_s);
    print_failures(st);
    printf("  request throughput   %.3f requests/s\n", st->request_throughput);
    printf("  input tokens         %.1f tokens/s, %llu: %.1f per request%s", st->input_throughput,
           (unsigned long long)st->n_input, each(st->n_input, st->n_done), by);
    if (st->n_cached)
        printf(", %.1f %% from the server's cache",
               100.0 * (double)st->n_cached / (double)st->n_input);
    printf("\n  output tokens        %.1f tokens/s, %llu: %.1f per request, in %.1f events%s\n",
           st->output_throughput, (unsigned long long)st->n_output, each(st->n_output, st->n_done),
           each(st->n_events, st->n_done), by);
    print_goodput(b, st);
    printf("  under way            %.1f in the mean, %u at most\n", st->mean_under_way,
           st->most_under_way);
    printf("  generator            late by %.2f ms (p99), busy %.0f %% of the time\n", st->lag.p99,
           100.0 * st->busy);
    printf("  %-28s %9s %9s %9s %9s %9s\n", "latency in ms", "mean", "p50", "p90", "p99", "max");
    print_latency("TTFT time to first token", &st->ttft);
    print_latency("ITL  inter-token latency", &st->itl);
    print_latency("TPOT time per output token", &st->tpot);
    print_latency("E2E  end-to-end latency", &st->e2e);
    fflush(stdout);
}

void td_loadprint_sweep(const struct td_loadprint *b)
{
    if (b->n_points < 2)
        return;
    printf("\n%-20s %8s %10s %9s %9s %9s %9s %9s %9s %7s\n", "load", "req/s", "output/s",
           "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "E2E p50", "E2E p99", "failed");
    for (size_t i = 0; i < b->n_points; i++) {
        const struct td_loadstat *st = &b->points[i].stat;
        char name[TD_LOADPRINT_NAME_BYTES];

        printf("%-20s %8.3f %10.1f %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f %7zu\n",
               td_loadprint_name(&b->points[i], name), st->request_throughput,
               st->output_throughput, st->ttft.p50, st->ttft.p99, st->itl.p50, st->itl.p99,
               st->e2e.p50, st->e2e.p99, st->n_failed);
    }
}

void td_loadprint_warn(const struct td_loadprint *b, const struct td_loadprint_point *point)
{
    const struct td_loadstat *st = &point->stat;
    char name[TD_LOADPRINT_NAME_BYTES];

    td_loadprint_name(point, name);
    if (st->lag.p99 > LATE_MS)
        fprintf(
            stderr,
            "tensord bench serve: warning: %s: requests were sent late, by %.1f ms at p99: this "
            "machine was too busy for that load\n",
            name, st->lag.p99);
    if (st->busy > BUSY)
        fprintf(
            stderr,
            "tensord bench serve: warning: %s: the generator was busy %.0f %% of the time: times "
            "may be its own\n",
            name, 100.0 * st->busy);
    if (st->n_without_usage)
        fprintf(
            stderr,
            "tensord bench serve: warning: %s: %zu answers had no usage: their tokens are counted "
            "as words sent and events with text\n",
            name, st->n_without_usage);
    if (st->n_short && b->opts->ignore_eos)
        fprintf(stderr,
                "tensord bench serve: warning: %s: %zu answers are shorter than asked, despite "
                "--ignore-eos\n",
                name, st->n_short);
}

/* ---- JSON ---- */

static json_t *latency_json(const struct td_latency_summary *l)
{
    return json_pack("{s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "count", (json_int_t)l->n, "mean",
                     l->mean, "std", l->sd, "min", l->min, "p50", l->p50, "p90", l->p90, "p95",
                     l->p95, "p99", l->p99, "max", l->max);
}

static json_t *ends_json(const struct td_loadstat *st)
{
    json_t *errors = json_object();

    for (int e = 1; e < TD_LOADRECORD_N_ENDS; e++)
        if (e != TD_LOADRECORD_CANCELLED)
            json_object_set_new(errors, td_loadrecord_end_name((enum td_loadrecord_end)e),
                                json_pack("{s:I,s:s?}", "count", (json_int_t)st->n_ends[e], "first",
                                          st->reasons[e]));
    return errors;
}

static json_t *request_json(const struct td_loadrun *run, const struct td_loadrecord *r)
{
    json_t *gaps = json_array(), *out;
    double start = (double)run->start_ns;

    for (uint32_t i = 0; i < r->n_gaps; i++)
        json_array_append_new(gaps, json_real((double)r->gap_ms[i]));
    out = json_pack(
        "{s:I,s:s,s:s?,s:i,s:f,s:f,s:f,s:I,s:I,s:I,s:I,s:I,s:b,s:o}", "index", (json_int_t)r->index,
        "end", td_loadrecord_end_name(r->end), "reason", r->reason, "http_status", r->http_status,
        "due_s", ((double)r->due_ns - start) * 1e-9, "sent_s", ((double)r->sent_ns - start) * 1e-9,
        "end_s", ((double)r->end_ns - start) * 1e-9, "prompt_words", (json_int_t)r->n_words,
        "asked_output_tokens", (json_int_t)r->n_asked, "input_tokens",
        (json_int_t)(r->has_usage ? r->n_input : r->n_words), "output_tokens",
        (json_int_t)td_loadstat_output(r), "events", (json_int_t)r->n_events, "has_usage",
        r->has_usage, "itl_ms", gaps);
    if (out && r->end == TD_LOADRECORD_OK) {
        json_object_set_new(out, "ttft_ms", json_real(td_loadstat_ttft(r)));
        json_object_set_new(out, "tpot_ms", json_real(td_loadstat_tpot(r)));
        json_object_set_new(out, "e2el_ms", json_real(td_loadstat_e2e(r)));
    }
    return out;
}

static void add_load(json_t *out, const struct td_loadprint_point *point)
{
    static const char *const kinds[] = {"concurrency", "request_rate", "trace"};

    json_object_set_new(out, "load", json_string(kinds[point->kind]));
    if (point->kind == TD_LOADRUN_CLOSED)
        json_object_set_new(out, "concurrency", json_integer((json_int_t)point->value));
    else if (point->kind == TD_LOADRUN_RATE)
        json_object_set_new(out, "request_rate",
                            isinf(point->value) ? json_string("inf") : json_real(point->value));
}

static json_t *point_json(const struct td_loadprint *b, const struct td_loadprint_point *point)
{
    const struct td_loadstat *st = &point->stat;
    json_t *out = json_pack("{s:b,s:I,s:I,s:I,s:I,s:o,s:f}", "interrupted", st->interrupted, "sent",
                            (json_int_t)st->n_sent, "completed", (json_int_t)st->n_done, "failed",
                            (json_int_t)st->n_failed, "cancelled",
                            (json_int_t)st->n_ends[TD_LOADRECORD_CANCELLED], "errors",
                            ends_json(st), "duration", st->duration_s);
    json_t *rates = json_pack(
        "{s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:I,s:f,s:f,s:f,s:f,s:I,s:f}", "total_input_tokens",
        (json_int_t)st->n_input, "total_output_tokens", (json_int_t)st->n_output,
        "total_cached_tokens", (json_int_t)st->n_cached, "total_prompt_words",
        (json_int_t)st->n_words, "total_events", (json_int_t)st->n_events, "without_usage",
        (json_int_t)st->n_without_usage, "request_throughput", st->request_throughput,
        "request_goodput", st->goodput, "good", (json_int_t)st->n_good, "input_throughput",
        st->input_throughput, "output_throughput", st->output_throughput, "total_token_throughput",
        st->input_throughput + st->output_throughput, "mean_under_way", st->mean_under_way,
        "most_under_way", (json_int_t)st->most_under_way, "generator_busy", st->busy);
    json_t *times = json_pack("{s:o,s:o,s:o,s:o,s:o}", "ttft_ms", latency_json(&st->ttft),
                              "tpot_ms", latency_json(&st->tpot), "itl_ms", latency_json(&st->itl),
                              "e2el_ms", latency_json(&st->e2e), "lag_ms", latency_json(&st->lag));

    if (out) {
        add_load(out, point);
        json_object_update(out, rates);
        json_object_update(out, times);
    }
    if (out && b->opts->save_requests) {
        json_t *requests = json_array();

        for (size_t i = 0; i < point->run.n_records; i++)
            json_array_append_new(requests, request_json(&point->run, point->run.records[i]));
        json_object_set_new(out, "requests", requests);
    }
    json_decref(rates);
    json_decref(times);
    return out;
}

static json_t *settings_json(const struct td_loadprint *b)
{
    const struct td_options *o = b->opts;
    json_t *slo = json_object();
    json_t *out;

    for (uint32_t i = 0; i < o->slo.n; i++) {
        const char *colon = strchr(o->slo.items[i], ':');

        json_object_setn_new(slo, o->slo.items[i], (size_t)(colon - o->slo.items[i]),
                             json_real(strtod(colon + 1, NULL)));
    }
    out = json_pack("{s:s,s:s,s:s,s:I,s:s?,s:s?,s:f,s:I,s:s?,s:I,s:f,s:I,s:f,s:f,s:b,s:s?,s:o}",
                    "url", o->url, "path", b->path, "model", b->model, "seed",
                    (json_int_t)b->load->seed, "input_len", b->load->trace ? NULL : o->input_len,
                    "output_len", b->load->trace ? NULL : o->output_len, "shared_prefix_share",
                    b->load->prefix_share, "prefix_groups", (json_int_t)b->load->prefix_groups,
                    "trace", o->trace, "num_requests", (json_int_t)o->num_requests, "duration",
                    o->duration, "warmup_requests", (json_int_t)o->warmup_requests,
                    "request_timeout", o->request_timeout, "temperature", o->temperature,
                    "ignore_eos", o->ignore_eos, "extra_body", o->extra_body, "slo_ms", slo);
    return out;
}

json_t *td_loadprint_json(const struct td_loadprint *b)
{
    json_t *points = json_array();

    for (size_t i = 0; i < b->n_points; i++)
        json_array_append_new(points, point_json(b, &b->points[i]));
    return json_pack("{s:s,s:s,s:o,s:o}", "tool", "tensord bench serve", "version", TD_VERSION,
                     "settings", settings_json(b), "points", points);
}

/* ---- picture ---- */

enum { X, TTFT50, TTFT99, ITL50, ITL99, OUTPUT, DONE, N_COLUMNS };

static int by_load(const void *a, const void *b)
{
    double x = (*(const struct td_loadprint_point *const *)a)->value;
    double y = (*(const struct td_loadprint_point *const *)b)->value;

    return (x > y) - (x < y);
}

/* A point at which nothing was done has no latency to draw. */
static void fill(const struct td_loadstat *st, double *columns, size_t n, size_t i)
{
    columns[TTFT50 * n + i] = st->ttft.n ? st->ttft.p50 : NAN;
    columns[TTFT99 * n + i] = st->ttft.n ? st->ttft.p99 : NAN;
    columns[ITL50 * n + i] = st->itl.n ? st->itl.p50 : NAN;
    columns[ITL99 * n + i] = st->itl.n ? st->itl.p99 : NAN;
    columns[OUTPUT * n + i] = st->output_throughput;
    columns[DONE * n + i] = st->request_throughput;
}

enum td_status td_loadprint_svg(const struct td_loadprint *b, struct td_bytes *out)
{
    size_t n = b->n_points;
    double *columns = calloc(n * N_COLUMNS, sizeof *columns);
    const struct td_loadprint_point **sorted = calloc(n, sizeof *sorted);
    char title[256], subtitle[512];
    enum td_status s = columns && sorted ? TD_OK : TD_NO_MEMORY;

    for (size_t i = 0; !s && i < n; i++)
        sorted[i] = &b->points[i];
    if (!s)
        qsort(sorted, n, sizeof *sorted, by_load);
    for (size_t i = 0; !s && i < n; i++) {
        columns[X * n + i] = sorted[i]->value;
        fill(&sorted[i]->stat, columns, n, i);
    }
    if (!s) {
        const struct td_svgplot_panel panels[] = {
            {.title = "time to first token (TTFT), ms",
             .series = {{.name = "p50", .y = columns + TTFT50 * n},
                        {.name = "p99", .y = columns + TTFT99 * n, .dashed = true}},
             .n_series = 2},
            {.title = "inter-token latency (ITL), ms",
             .series = {{.name = "p50", .y = columns + ITL50 * n},
                        {.name = "p99", .y = columns + ITL99 * n, .dashed = true}},
             .n_series = 2},
            {.title = "output throughput, tokens/s",
             .series = {{.name = "output", .y = columns + OUTPUT * n}},
             .n_series = 1},
            {.title = "request throughput, requests/s",
             .series = {{.name = "requests", .y = columns + DONE * n}},
             .n_series = 1}};
        const struct td_svgplot plot = {
            .title = title,
            .subtitle = subtitle,
            .x_title = b->points[0].kind == TD_LOADRUN_CLOSED ? "requests at a time"
                       : b->points[0].kind == TD_LOADRUN_RATE ? "offered load, requests/s"
                                                              : "speed of the trace",
            .x = columns,
            .n = n,
            .panels = panels,
            .n_panels = sizeof panels / sizeof panels[0]};

        snprintf(title, sizeof title, "%s: latency and throughput against load", b->model);
        snprintf(subtitle, sizeof subtitle, "%s%s, %s%s%s%s, seed %llu", b->opts->url, b->path,
                 b->load->trace ? "trace " : "input ",
                 b->load->trace ? b->opts->trace : b->opts->input_len,
                 b->load->trace ? "" : " words, output ", b->load->trace ? "" : b->opts->output_len,
                 (unsigned long long)b->load->seed);
        s = td_svgplot_write(&plot, out);
    }
    free(sorted);
    free(columns);
    return s;
}
