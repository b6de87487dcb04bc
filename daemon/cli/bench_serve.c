/* `tensord bench serve`: offers a load to a running server, ours or any other with OpenAI's API, and tells how it fared. This file
 * reads what is wanted and goes through the sweep. */
#include "daemon/api/json.h"
#include "daemon/cli/client.h"
#include "daemon/cli/command.h"
#include "daemon/cli/loadprint.h"
#include "daemon/cli/loadtrace.h"
#include "daemon/cli/resultfile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { DEFAULT_REQUESTS = 100, MAX_POINTS = 64, SPARE_FILES = 64, MAX_CONCURRENCY = 65536 };

/* One benchmark: settings, then what was measured. */
struct bench {
    const struct td_options *opts;
    struct td_err *err;
    struct td_client_url url;
    struct td_loadstat_slo slo;
    struct td_load load;
    struct td_loadtrace *trace;
    struct td_loadbody body;
    char *model;      /* owned */
    const char *path; /* of the requests, behind the url's prefix */
    uint64_t n_requests;
    struct td_loadprint_point points[MAX_POINTS];
    size_t n_points, n_run; /* n_run: that have been measured */
    uv_loop_t loop;
    bool has_loop;
    struct td_loadclient *client;
    struct td_term term;
};

/* ---- settings ---- */

static bool parse_number(const char *text, double most, double *out)
{
    char *end;

    if (!*text || text[strspn(text, "0123456789.")])
        return false;
    *out = strtod(text, &end);
    return !*end && *out > 0.0 && *out <= most;
}

/* The points of the sweep from one of --concurrency and --request-rate, or the trace's own times. */
static enum td_status read_points(struct bench *b)
{
    const struct td_options *o = b->opts;
    bool is_rate = o->request_rate.n > 0;
    const struct td_option_list *list = is_rate ? &o->request_rate : &o->concurrency;

    if (is_rate && o->concurrency.n > 0)
        return td_err_set(b->err, TD_INVALID,
                          "--request-rate is an open loop and --concurrency a closed one: expected "
                          "one of them");
    if (list->n > MAX_POINTS)
        return td_err_set(b->err, TD_INVALID, "--%s: got %u loads, expected at most %d",
                          is_rate ? "request-rate" : "concurrency", list->n, MAX_POINTS);
    for (uint32_t i = 0; i < list->n; i++) {
        const char *text = list->items[i];
        double *value = &b->points[i].value;

        b->points[i].kind = is_rate ? TD_LOADRUN_RATE : TD_LOADRUN_CLOSED;
        if (is_rate && strcmp(text, "inf") == 0)
            *value = INFINITY;
        else if (is_rate && !parse_number(text, 1e6, value))
            return td_err_set(
                b->err, TD_INVALID,
                "--request-rate: got '%.40s', expected requests per second above 0 to "
                "1000000, or inf",
                text);
        else if (!is_rate &&
                 (!parse_number(text, MAX_CONCURRENCY, value) || *value != floor(*value)))
            return td_err_set(b->err, TD_INVALID,
                              "--concurrency: got '%.40s', expected a whole number from 1 to %d",
                              text, MAX_CONCURRENCY);
        if (isinf(*value) && o->duration > 0.0 && o->num_requests == 0)
            return td_err_set(b->err, TD_INVALID,
                              "--request-rate inf sends all at once: expected --num-requests");
    }
    b->n_points = list->n;
    if (list->n == 0) {
        b->points[0].kind = o->trace ? TD_LOADRUN_TRACE : TD_LOADRUN_CLOSED;
        b->points[0].value = 1.0;
        b->n_points = 1;
    }
    return TD_OK;
}

static enum td_status read_trace(struct bench *b)
{
    const struct td_options *o = b->opts;
    enum td_status s;

    if (td_options_is_set(o, &o->input_len) || td_options_is_set(o, &o->output_len) ||
        td_options_is_set(o, &o->shared_prefix_share))
        return td_err_set(b->err, TD_INVALID,
                          "--trace brings the lengths: expected no --input-len, --output-len and "
                          "--shared-prefix-share");
    s = td_loadtrace_open(o->trace, &b->trace, b->err);
    if (s)
        return s;
    b->load.trace = b->trace;
    if (o->num_requests > (int64_t)b->trace->n_rows)
        return td_err_set(b->err, TD_INVALID,
                          "--num-requests: got %lld, expected at most the %zu of %s",
                          (long long)o->num_requests, b->trace->n_rows, o->trace);
    b->n_requests = o->num_requests ? (uint64_t)o->num_requests : b->trace->n_rows;
    return TD_OK;
}

static enum td_status read_load(struct bench *b)
{
    const struct td_options *o = b->opts;
    enum td_status s;

    b->load = (struct td_load){.seed = (uint64_t)o->seed,
                               .prefix_share = o->shared_prefix_share,
                               .prefix_groups = (uint32_t)o->prefix_groups};
    if (o->trace)
        return read_trace(b);
    if (o->num_requests)
        b->n_requests = (uint64_t)o->num_requests;
    else
        b->n_requests = o->duration > 0.0 ? 0 : DEFAULT_REQUESTS;
    s = td_load_dist_parse("input-len", o->input_len, &b->load.input, b->err);
    return s ? s : td_load_dist_parse("output-len", o->output_len, &b->load.output, b->err);
}

static enum td_status read_settings(struct bench *b)
{
    const struct td_options *o = b->opts;
    struct td_loadbody_params probe = {.model = "", .extra = o->extra_body};
    enum td_status s = td_client_parse_url(o->url, &b->url, b->err);

    if (s)
        return s;
    if (b->url.tls)
        return td_err_set(b->err, TD_INVALID,
                          "--url: got '%.120s', but bench serve speaks no https: expected http://",
                          o->url);
    if (o->save_requests && !o->json && !o->json_file)
        return td_err_set(b->err, TD_INVALID, "--save-requests needs --json-file or --json");
    s = read_points(b);
    s = s ? s : read_load(b);
    s = s ? s : td_loadstat_slo_parse(&o->slo, &b->slo, b->err);
    s = s ? s : td_loadbody_init(&b->body, &probe, b->err); /* for --extra-body */
    td_loadbody_deinit(&b->body);
    s = s ? s : td_resultfile_check("json-file", o->json_file, b->err);
    return s ? s : td_resultfile_check("svg", o->svg, b->err);
}

/* ---- the server ---- */

static const char *api_key(const struct bench *b)
{
    return b->opts->api_key.n > 0 ? b->opts->api_key.items[0] : NULL;
}

/* The first model that the server has, when none was named. */
static enum td_status ask_model(struct bench *b, const char *path)
{
    struct td_client_request request = {
        .url = b->opts->url, .api_key = api_key(b), .method = "GET", .path = path};
    struct td_bytes body = {0};
    json_t *root = NULL;
    const char *id;
    int status = 0;
    enum td_status s = td_client_call(&request, &status, &body, b->err);

    s = s ? s : td_client_check(status, td_bytes_str(&body), b->err);
    if (!s && td_json_parse(td_bytes_str(&body), 0, &root, NULL) != TD_OK)
        root = NULL;
    id = json_string_value(json_object_get(json_array_get(json_object_get(root, "data"), 0), "id"));
    if (!s && !id)
        s = td_err_set(b->err, TD_PEER_PROTOCOL, "%s of %s names no model: expected --model", path,
                       b->opts->url);
    if (!s) {
        b->model = strdup(id);
        s = b->model ? TD_OK : td_err_set(b->err, TD_NO_MEMORY, "no memory for the model's name");
    }
    json_decref(root);
    td_bytes_deinit(&body);
    return s;
}

/* A connection is a file. What the system allows is raised to what is needed. */
static enum td_status allow_files(struct bench *b)
{
    struct rlimit limit;
    double most = 0.0;

    for (size_t i = 0; i < b->n_points; i++)
        if (b->points[i].kind == TD_LOADRUN_CLOSED)
            most = fmax(most, b->points[i].value);
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return TD_OK;
    if (limit.rlim_max != RLIM_INFINITY && most + SPARE_FILES > (double)limit.rlim_max)
        return td_err_set(b->err, TD_INVALID,
                          "--concurrency %.0f needs more open files than the system allows: "
                          "expected at most %llu (ulimit -Hn)",
                          most, (unsigned long long)limit.rlim_max - SPARE_FILES);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return TD_OK;
}

static enum td_status open_server(struct bench *b)
{
    const struct td_options *o = b->opts;
    size_t len = strlen(b->url.prefix);
    bool has_v1 = len >= 3 && strcmp(b->url.prefix + len - 3, "/v1") == 0;
    struct td_loadbody_params body = {.chat = o->endpoint == TD_ENDPOINT_CHAT,
                                      .temperature = o->temperature,
                                      .ignore_eos = o->ignore_eos,
                                      .extra = o->extra_body};
    struct td_loadclient_params client = {.loop = &b->loop, .url = &b->url, .api_key = api_key(b)};
    enum td_status s;

    b->path = body.chat ? "/v1/chat/completions" : "/v1/completions";
    if (has_v1)
        b->path += 3;
    client.path = b->path;
    if (uv_loop_init(&b->loop))
        return td_err_set(b->err, TD_IO, "no event loop");
    b->has_loop = true;
    uv_loop_configure(&b->loop, UV_METRICS_IDLE_TIME);
    s = allow_files(b);
    s = s ? s : td_loadclient_open(&client, &b->client, b->err);
    if (!s && o->model) {
        b->model = strdup(o->model);
        s = b->model ? TD_OK : td_err_set(b->err, TD_NO_MEMORY, "no memory for the model's name");
    } else if (!s) {
        s = ask_model(b, has_v1 ? "/models" : "/v1/models");
    }
    body.model = b->model;
    return s ? s : td_loadbody_init(&b->body, &body, b->err);
}

/* ---- the runs ---- */

static struct td_loadprint view_of(const struct bench *b)
{
    return (struct td_loadprint){.opts = b->opts,
                                 .model = b->model,
                                 .path = b->path,
                                 .load = &b->load,
                                 .slo = &b->slo,
                                 .points = b->points,
                                 .n_points = b->n_run};
}

static struct td_loadrun_params params_of(struct bench *b, const struct td_loadprint_point *point)
{
    return (struct td_loadrun_params){
        .loop = &b->loop,
        .client = b->client,
        .load = &b->load,
        .body = &b->body,
        .kind = point->kind,
        .rate = point->value,
        .concurrency = point->kind == TD_LOADRUN_CLOSED ? (uint32_t)point->value : 1,
        .n_requests = b->n_requests,
        .duration_s = b->opts->duration,
        .timeout_s = b->opts->request_timeout > 0 ? b->opts->request_timeout : 600,
        .term = &b->term};
}

/* Requests that no figure counts, as many at a time as the first closed loop has. */
static enum td_status warm_up(struct bench *b, bool *interrupted)
{
    struct td_loadrun_params params = params_of(b, &b->points[0]);
    struct td_loadrun run;
    enum td_status s;

    if (b->opts->warmup_requests == 0)
        return TD_OK;
    params.kind = TD_LOADRUN_CLOSED;
    params.n_requests = (uint64_t)b->opts->warmup_requests;
    params.duration_s = 0.0;
    params.run = TD_LOAD_WARMUP;
    params.label = "warm-up";
    s = td_loadrun_go(&params, &run, b->err);
    if (s)
        return s;
    *interrupted = run.interrupted;
    for (size_t i = 0; i < run.n_records; i++)
        if (run.records[i]->end != TD_LOADRECORD_OK &&
            run.records[i]->end != TD_LOADRECORD_CANCELLED) {
            fprintf(stderr, "tensord bench serve: warning: a warm-up request failed: %s: %s\n",
                    td_loadrecord_end_name(run.records[i]->end),
                    run.records[i]->reason ? run.records[i]->reason : "");
            break;
        }
    td_loadrun_deinit(&run);
    return TD_OK;
}

static enum td_status run_sweep(struct bench *b, bool *interrupted)
{
    struct td_loadprint view;
    enum td_status s = warm_up(b, interrupted);

    for (size_t i = 0; !s && i < b->n_points && !*interrupted; i++) {
        struct td_loadprint_point *point = &b->points[i];
        struct td_loadrun_params params = params_of(b, point);
        char name[TD_LOADPRINT_NAME_BYTES];

        params.run = (uint32_t)i;
        params.label = td_loadprint_name(point, name);
        s = td_loadrun_go(&params, &point->run, b->err);
        s = s ? s : td_loadstat_take(&point->run, &b->slo, &point->stat, b->err);
        if (s)
            break;
        b->n_run++;
        *interrupted = point->run.interrupted;
        view = view_of(b);
        if (!b->opts->json)
            td_loadprint_point(&view, point);
        td_loadprint_warn(&view, point);
    }
    return s;
}

/* ---- results ---- */

static enum td_status write_json(struct bench *b, const struct td_loadprint *view)
{
    const struct td_options *o = b->opts;
    json_t *root = td_loadprint_json(view);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(10)) : NULL;
    enum td_status s = text ? TD_OK : td_err_set(b->err, TD_NO_MEMORY, "no memory for the JSON");

    if (!s && o->json_file)
        s = td_resultfile_write("json-file", o->json_file, td_str_from(text), b->err);
    free(text);
    if (!s && o->json) {
        s = json_dumpf(root, stdout, JSON_COMPACT | JSON_REAL_PRECISION(10))
                ? td_err_set(b->err, TD_NO_MEMORY, "no memory for the JSON")
                : TD_OK;
        putchar('\n');
    }
    json_decref(root);
    return s;
}

static enum td_status write_results(struct bench *b)
{
    const struct td_options *o = b->opts;
    struct td_loadprint view = view_of(b);
    struct td_bytes picture = {0};
    enum td_status s = TD_OK;

    if (!o->json)
        td_loadprint_sweep(&view);
    if (o->json || o->json_file)
        s = write_json(b, &view);
    if (!s && o->svg && view.n_points > 0) {
        s = td_loadprint_svg(&view, &picture);
        s = s ? td_err_set(b->err, s, "no memory for the picture")
              : td_resultfile_write("svg", o->svg, td_bytes_str(&picture), b->err);
    }
    td_bytes_deinit(&picture);
    return s;
}

static void close_bench(struct bench *b)
{
    td_loadclient_close(b->client);
    if (b->has_loop)
        uv_loop_close(&b->loop);
    for (size_t i = 0; i < MAX_POINTS; i++)
        td_loadrun_deinit(&b->points[i].run);
    td_loadbody_deinit(&b->body);
    td_loadtrace_close(b->trace);
    free(b->model);
}

static size_t count_done(const struct bench *b)
{
    size_t n = 0;

    for (size_t i = 0; i < b->n_run; i++)
        n += b->points[i].stat.n_done;
    return n;
}

int td_cmd_bench_serve(const struct td_options *opts)
{
    struct td_err err;
    struct bench b = {.opts = opts, .err = &err};
    struct td_loadprint view;
    bool interrupted = false;
    enum td_status s = read_settings(&b);
    int status = TD_EXIT_OK;

    if (s) {
        td_command_report(opts, &err);
        close_bench(&b);
        return s >= TD_NO_MEMORY ? TD_EXIT_FAILURE : TD_EXIT_USAGE;
    }
    td_term_init(&b.term, stderr);
    s = open_server(&b);
    if (!s && !opts->json) {
        view = view_of(&b);
        td_loadprint_head(&view);
    }
    s = s ? s : run_sweep(&b, &interrupted);
    s = s ? s : write_results(&b);
    if (s) {
        status = td_command_report(opts, &err);
    } else if (interrupted) {
        fputs("tensord bench serve: stopped by a signal\n", stderr);
        status = TD_EXIT_FAILURE;
    } else if (count_done(&b) == 0) {
        fputs("tensord bench serve: no request was answered in full\n", stderr);
        status = TD_EXIT_FAILURE;
    }
    close_bench(&b);
    return status;
}
