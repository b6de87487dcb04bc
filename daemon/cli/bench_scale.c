/* `tensord bench scale`: how speed grows with ranks, layouts and links. Runs `tensord bench` as an MPI job for every point of the
 * sweep, one after another, and holds what it measured against what was to be expected. This file reads what is wanted and goes
 * through the sweep. */
#include "comm/comm_mpi.h"
#include "daemon/cli/bench.h"
#include "daemon/cli/command.h"
#include "daemon/cli/resultfile.h"
#include "daemon/cli/scalelab.h"
#include "daemon/cli/scaleprint.h"
#include "daemon/engine/hostshare.h"
#include "daemon/log.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ARGS = 64, ARG_BYTES = 32, DEFAULT_MOST_RANKS = 8, LAB_DEFAULT_RANKS = 2 };

extern char **environ;

/* One sweep: settings, then what was measured. */
struct scale {
    const struct td_options *opts;
    struct td_err *err;
    struct td_checkpoint *ck;
    struct td_plan_model model;
    struct td_linkspec lab;
    uint32_t n_cores;
    char cpu[128];
    struct td_option_ints ranks, prompts, depths;
    struct td_scale_layout layouts[TD_SCALE_MAX_POINTS];
    uint32_t n_layouts;
    struct td_scale_point points[TD_SCALE_MAX_POINTS];
    uint32_t n_points, n_run; /* n_run: that were tried */
    struct td_scalerun *run;
    struct td_term term;
    struct td_plan plan;        /* of the point at hand */
    struct td_machine machine;  /* the same */
    struct td_benchread *spare; /* for the next try */
};

/* ---- settings ---- */

static enum td_status count_cores(struct scale *c)
{
    struct td_comm *self = NULL;
    struct td_cores_share share;
    enum td_status s = td_comm_self_open(&self, c->err);

    s = s ? s : td_hostshare_cores(self, 0, &share, c->err);
    td_comm_close(self);
    c->n_cores = s ? 1 : share.n_cores;
    return s;
}

static enum td_status check_hosts(struct scale *c)
{
    const struct td_options *o = c->opts;

    if (!o->hostfile)
        return TD_OK;
    if (o->netlab)
        return td_err_set(
            c->err, TD_INVALID,
            "--netlab makes hosts of its own: expected no --hostfile '%.120s' with it",
            o->hostfile);
    if (access(o->hostfile, R_OK) != 0)
        return td_err_set(c->err, TD_INVALID, "--hostfile: '%.160s' cannot be read: %s",
                          o->hostfile, strerror(errno));
    if (o->sweep_ranks.n == 0)
        return td_err_set(c->err, TD_INVALID,
                          "--hostfile '%.160s': expected --ranks with it, the counts to go through",
                          o->hostfile);
    return TD_OK;
}

static unsigned kinds_of(const struct td_options *o)
{
    static const unsigned bits[] = {TD_SCALE_TP, TD_SCALE_PP, TD_SCALE_BOTH, TD_SCALE_ALL};
    unsigned kinds = 0;

    for (uint32_t i = 0; i < o->layouts.n; i++)
        kinds |= bits[o->layouts.value[i]];
    return kinds ? kinds : o->netlab ? TD_SCALE_TP : TD_SCALE_ALL;
}

static void read_ranks(struct scale *c)
{
    uint32_t most;

    c->ranks = c->opts->sweep_ranks;
    if (c->ranks.n)
        return;
    most = c->opts->netlab                   ? LAB_DEFAULT_RANKS
           : c->n_cores < DEFAULT_MOST_RANKS ? c->n_cores
                                             : DEFAULT_MOST_RANKS;
    for (uint32_t n = 1; n <= most; n *= 2)
        c->ranks.value[c->ranks.n++] = n;
}

/* Lengths that the model has positions for. A prompt that nobody asked for gives way to a short model. */
static enum td_status read_lengths(struct scale *c)
{
    const struct td_options *o = c->opts;
    int64_t most = (int64_t)c->model.spec->max_positions - o->gen_tokens;

    c->prompts = o->sweep_prompt_tokens;
    c->depths = (struct td_option_ints){.n = 1};
    if (td_options_is_set(o, &o->depth))
        c->depths = o->sweep_depth;
    if (!td_options_is_set(o, &o->prompt_tokens) && most > 0 && c->prompts.value[0] > most)
        c->prompts.value[0] = most;
    for (uint32_t i = 0; i < c->prompts.n + c->depths.n; i++) {
        bool is_prompt = i < c->prompts.n;
        int64_t n = is_prompt ? c->prompts.value[i] : c->depths.value[i - c->prompts.n];

        if (n > most)
            return td_err_set(c->err, TD_INVALID,
                              "--%s %lld and --gen-tokens %lld need %lld positions: expected at "
                              "most the model's %u",
                              is_prompt ? "prompt-tokens" : "depth", (long long)n,
                              (long long)o->gen_tokens, (long long)(n + o->gen_tokens),
                              c->model.spec->max_positions);
    }
    return TD_OK;
}

static enum td_status read_lab(struct scale *c)
{
    const struct td_options *o = c->opts;
    enum td_status s;

    if (!o->netlab)
        return TD_OK;
    s = td_linkspec_parse(o->netlab, &c->lab, c->err);
    if (s) {
        td_err_context(c->err, "--netlab");
        return s;
    }
    for (uint32_t i = 0; i < c->ranks.n; i++)
        if (c->ranks.value[i] > TD_SCALELAB_MAX_HOSTS)
            return td_err_set(c->err, TD_INVALID,
                              "--ranks %lld: a lab has a host for each, expected at most %d",
                              (long long)c->ranks.value[i], TD_SCALELAB_MAX_HOSTS);
    return TD_OK;
}

static enum td_status add_point(struct scale *c, const struct td_scale_point *point)
{
    if (c->n_points == TD_SCALE_MAX_POINTS)
        return td_err_set(c->err, TD_INVALID,
                          "the sweep has more than %d points: expected fewer ranks, layouts, "
                          "lengths or links",
                          TD_SCALE_MAX_POINTS);
    c->points[c->n_points++] = *point;
    return TD_OK;
}

/* Over each link every layout of more than one rank; one rank needs none, and is what they are held against. */
static enum td_status list_points(struct scale *c)
{
    uint32_t n_links = c->lab.n_delays * c->lab.n_rates;
    enum td_status s = TD_OK;

    for (uint32_t link = 0; !s && link <= n_links; link++)
        for (uint32_t l = 0; !s && l < c->n_layouts; l++) {
            struct td_scale_point point = {
                .layout = c->layouts[l], .drift = NAN, .link = {NAN, NAN}};

            if (n_links && (link == 0) != (point.layout.ranks == 1))
                continue;
            if (n_links && link > 0) {
                point.delay = &c->lab.delay[(link - 1) % c->lab.n_delays];
                point.rate = &c->lab.rate[(link - 1) / c->lab.n_delays];
            }
            for (uint32_t i = 0; !s && i < c->prompts.n * c->depths.n; i++) {
                point.prompt_tokens = (uint32_t)c->prompts.value[i / c->depths.n];
                point.depth = (uint32_t)c->depths.value[i % c->depths.n];
                s = add_point(c, &point);
            }
        }
    return s;
}

static enum td_status read_settings(struct scale *c)
{
    const struct td_options *o = c->opts;
    enum td_status s;

    if (td_comm_mpi_launched())
        return td_err_set(c->err, TD_INVALID,
                          "bench scale starts mpirun itself: expected it outside of an MPI job");
    s = check_hosts(c);
    s = s ? s : td_resultfile_check("json-file", o->json_file, c->err);
    s = s ? s : td_resultfile_check("svg", o->svg, c->err);
    s = s ? s : count_cores(c);
    if (!s)
        read_ranks(c);
    s = s ? s : read_lab(c);
    s = s ? s : td_checkpoint_open(o->model, &c->ck, c->err);
    s = s ? s : td_plan_model_read(c->ck, &c->model, c->err);
    s = s ? s : read_lengths(c);
    s = s ? s
          : td_scale_layouts(c->ranks.value, c->ranks.n, kinds_of(o), c->model.spec->n_layers,
                             c->layouts, TD_SCALE_MAX_POINTS, &c->n_layouts, c->err);
    return s ? s : list_points(c);
}

/* ---- one point ---- */

/* Arguments of a child, in storage of their own. */
struct child_args {
    char text[MAX_ARGS][ARG_BYTES];
    const char *args[MAX_ARGS + 1];
    size_t n;
};

static void add_text(struct child_args *a, const char *flag, const char *value)
{
    a->args[a->n++] = flag;
    if (value)
        a->args[a->n++] = value;
}

static void add_number(struct child_args *a, const char *flag, int64_t value)
{
    snprintf(a->text[a->n], ARG_BYTES, "%lld", (long long)value);
    add_text(a, flag, a->text[a->n]);
}

/* Ranks of a lab all believe that they have the host's cores. 0: the ranks of a host divide them. */
static int64_t threads_of(const struct scale *c, const struct td_scale_point *point)
{
    if (c->opts->threads || !point->delay)
        return c->opts->threads;
    return c->n_cores > point->layout.ranks ? c->n_cores / point->layout.ranks : 1;
}

static void fill_args(const struct scale *c, const struct td_scale_point *point,
                      struct child_args *a)
{
    const struct td_options *o = c->opts;

    *a = (struct child_args){.n = 0};
    add_text(a, "--model", o->model);
    add_text(a, "--cases", point->depth ? "depth,prefill" : "decode,prefill");
    add_number(a, "--prompt-tokens", point->prompt_tokens);
    if (point->depth)
        add_number(a, "--depth", point->depth);
    add_number(a, "--gen-tokens", o->gen_tokens);
    add_number(a, "--repetitions", o->repetitions);
    add_number(a, "--tensor-parallel-size", point->layout.tp);
    add_number(a, "--pipeline-parallel-size", point->layout.pp);
    add_number(a, "--threads", threads_of(c, point));
    add_number(a, "--block-size", o->block_size);
    add_number(a, "--max-num-batched-tokens", o->max_num_batched_tokens);
    add_text(a, "--kv-cache-dtype", td_options_kv_dtypes[o->kv_cache_dtype.value[0]]);
    add_text(a, "--device", o->device);
    snprintf(a->text[a->n], ARG_BYTES, "%.9g", o->gpu_memory_utilization);
    add_text(a, "--gpu-memory-utilization", a->text[a->n]);
    add_text(a, "--cuda-graphs", td_options_word(o, &o->cuda_graphs));
    add_text(a, "--exact", td_options_word(o, &o->exact));
    if (o->cuda_plugin)
        add_text(a, "--cuda-plugin", o->cuda_plugin);
    add_text(a, "--gpu-exchange", td_options_word(o, &o->gpu_exchange));
    add_text(a, "--gpu-sums", td_options_word(o, &o->gpu_sums));
    if (o->nccl_plugin)
        add_text(a, "--nccl-plugin", o->nccl_plugin);
    add_text(a, "--cpu-isa", td_options_word(o, &o->cpu_isa));
    add_text(a, "--transport", td_options_word(o, &o->transport));
    add_text(a, "--sum-algorithm", td_options_word(o, &o->sum_algorithm));
    add_text(a, "--exchange-dtype", td_options_word(o, &o->exchange_dtype));
    add_text(a, "--overlap", td_options_word(o, &o->overlap));
    if (!o->verbose)
        add_text(a, "--log-level", "error");
    add_text(a, "--json", NULL);
}

/* From what the ranks measured beside the run; NAN errors where they could not. */
static enum td_status predict(struct scale *c, struct td_scale_point *point)
{
    struct td_predict_load load = td_scale_load(point->read, 0);
    double row = (double)c->model.spec->d_model * sizeof(float),
           n_rows = fmin(load.prompt_tokens, (double)c->opts->max_num_batched_tokens);
    struct td_scale_sizes sizes = {row, row * fmax(n_rows, 2.0)};
    uint64_t share[TD_PLAN_MAX_RANKS];
    struct td_plan_params params;
    struct td_prediction prediction;
    enum td_status s;

    td_scale_predict(point, NULL);
    if (!point->read->has_machine)
        return TD_OK;
    td_scale_join(&point->read->before, &point->read->after, &sizes, &c->machine);
    if (point->layout.ranks > 1)
        point->link = c->machine.n_hosts > 1 ? c->machine.inter : c->machine.intra;
    s = td_spmd_plan_params(c->opts, c->model.spec, point->layout.ranks, NULL, share, &params,
                            c->err);
    params.tp = point->layout.tp;
    params.pp = point->layout.pp;
    s = s ? s : td_plan_make(&c->model, &params, &c->plan, c->err);
    s = s ? s : td_predict(&c->model, &c->plan, &c->machine, &load, &prediction, c->err);
    if (!s)
        td_scale_predict(point, &prediction);
    return s;
}

/* Runs the point once. *read is filled on success only. */
static enum td_status try_point(struct scale *c, const struct td_scale_point *point,
                                struct td_scalelab *lab, struct td_benchread *read)
{
    struct child_args args;
    struct td_scalerun_job job = {.n_ranks = point->layout.ranks,
                                  .hostfile = c->opts->hostfile,
                                  .command = "bench",
                                  .args = args.args,
                                  .limit_ns = (uint64_t)(c->opts->run_timeout * 1e9),
                                  .shows_errors = c->opts->verbose};
    struct td_bytes out = {0};
    enum td_status s;

    fill_args(c, point, &args);
    if (point->delay) {
        job.hostfile = td_scalelab_hostfile(lab);
        job.prefix = td_scalelab_prefix(lab);
        job.tmp_base = "/tmp"; /* which all hosts of the lab have in common with this one */
    }
    s = td_scalerun_start(c->run, &job, &out, c->err);
    s = s ? s
          : td_benchread_parse(td_bytes_str(&out), point->depth ? "depth" : "decode", read, c->err);
    if (!s && (read->n_ranks != point->layout.ranks || read->tp != point->layout.tp ||
               read->pp != point->layout.pp)) {
        s = td_err_set(c->err, TD_PEER_PROTOCOL, "the job ran %u ranks as tp %u x pp %u",
                       read->n_ranks, read->tp, read->pp);
        td_benchread_deinit(read);
    }
    td_bytes_deinit(&out);
    return s;
}

/* Keeps the try if it is the steadiest so far. */
static void keep(struct scale *c, struct td_scale_point *point)
{
    struct td_benchread *read = c->spare;
    double drift = read->has_machine ? td_scale_drift(&read->before, &read->after) : NAN;

    if (!point->read || drift < point->drift) {
        c->spare = point->read;
        point->read = read;
        point->drift = drift;
    }
    if (c->spare)
        td_benchread_deinit(c->spare);
}

static void tell(struct scale *c, const struct td_scale_point *point)
{
    char name[TD_SCALEPRINT_NAME_BYTES];

    td_scaleprint_name(point, name);
    if (point->read)
        td_term_line(&c->term, "%u of %u: %s: decode %.2f, prefill %.2f tokens/s", c->n_run,
                     c->n_points, name, point->read->decode.best, point->read->prefill.best);
    else
        td_term_line(&c->term, "%u of %u: %s: failed: %s", c->n_run, c->n_points, name,
                     point->failure);
}

/* Runs the point until its machine held still, or often enough. What fails in the job is the point's failure, and the sweep goes
 * on; what ends the sweep is returned. */
static enum td_status run_point(struct scale *c, struct td_scale_point *point,
                                struct td_scalelab *lab)
{
    char text[sizeof c->err->cause + sizeof c->err->context + 4];
    enum td_status s = TD_OK;

    c->n_run++;
    do {
        c->spare = c->spare ? c->spare : calloc(1, sizeof *c->spare);
        if (!c->spare)
            return td_err_set(c->err, TD_NO_MEMORY, "no memory for a point");
        s = try_point(c, point, lab, c->spare);
        point->n_tries++;
        if (!s)
            keep(c, point);
    } while (!s && td_scale_has_drifted(point->drift) && point->n_tries <= c->opts->retries);
    if (!s || point->read)
        s = s == TD_CANCELLED ? s : predict(c, point);
    if (s)
        snprintf(point->failure, sizeof point->failure, "%.*s", (int)sizeof point->failure - 1,
                 td_err_format(c->err, text, sizeof text));
    if (s != TD_CANCELLED && s != TD_NOT_FOUND && s < TD_NO_MEMORY)
        s = TD_OK;
    tell(c, point);
    return s;
}

/* ---- the sweep ---- */

static enum td_status run_points(struct scale *c, struct td_scalelab *lab)
{
    const struct td_scale_point *before = NULL;
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < c->n_points; i++) {
        struct td_scale_point *point = &c->points[i];

        if (point->delay &&
            (!before || before->delay != point->delay || before->rate != point->rate))
            s = td_scalelab_shape(lab, point->delay, point->rate, c->err);
        before = point;
        if (c->term.is_tty) /* else the line of each point will do */
            td_term_progress(&c->term, "measuring", i, c->n_points, "points");
        s = s ? s : run_point(c, point, lab);
    }
    return s;
}

static enum td_status run_sweep(struct scale *c)
{
    uint32_t most = 0;
    struct td_scalelab *lab = NULL;
    struct td_err err;
    enum td_status s = TD_OK, down;

    for (uint32_t i = 0; i < c->n_points; i++)
        if (c->points[i].delay && c->points[i].layout.ranks > most)
            most = c->points[i].layout.ranks;
    if (most >= TD_SCALELAB_MIN_HOSTS)
        s = td_scalelab_open(c->run, most, &lab, c->err);
    s = s ? s : run_points(c, lab);
    down = td_scalelab_close(lab, &err);
    if (down && !s)
        *c->err = err;
    return s ? s : down;
}

/* Children get all as flags; a variable that means a sweep to us would be none of theirs. */
static void forget_variables(void)
{
    char name[64];

    for (size_t i = 0; environ[i];) {
        size_t len = strcspn(environ[i], "=");

        if (strncmp(environ[i], "TENSORD_", 8) != 0 || len >= sizeof name) {
            i++;
            continue;
        }
        memcpy(name, environ[i], len);
        name[len] = '\0';
        unsetenv(name); /* the next one comes to the same place */
    }
}

/* ---- results ---- */

static enum td_status write_json(struct scale *c, const struct td_scaleprint *view)
{
    const struct td_options *o = c->opts;
    json_t *root = td_scaleprint_json(view);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(10)) : NULL;
    enum td_status s = text ? TD_OK : td_err_set(c->err, TD_NO_MEMORY, "no memory for the JSON");

    if (!s && o->json_file)
        s = td_resultfile_write("json-file", o->json_file, td_str_from(text), c->err);
    free(text);
    if (!s && o->json) {
        s = json_dumpf(root, stdout, JSON_COMPACT | JSON_REAL_PRECISION(10))
                ? td_err_set(c->err, TD_NO_MEMORY, "no memory for the JSON")
                : TD_OK;
        putchar('\n');
    }
    json_decref(root);
    return s;
}

static enum td_status write_results(struct scale *c)
{
    const struct td_options *o = c->opts;
    struct td_scaleprint view = {.opts = o,
                                 .model = &c->model,
                                 .cpu = c->cpu,
                                 .n_cores = c->n_cores,
                                 .lab = o->netlab ? &c->lab : NULL,
                                 .points = c->points,
                                 .n = c->n_run};
    struct td_bytes picture = {0};
    enum td_status s = TD_OK;

    td_scale_compare(c->points, c->n_run);
    if (!o->json)
        td_scaleprint_text(&view);
    if (o->json || o->json_file)
        s = write_json(c, &view);
    if (!s && o->svg)
        s = td_scaleprint_svg(&view, &picture, c->err);
    if (!s && o->svg)
        s = td_resultfile_write("svg", o->svg, td_bytes_str(&picture), c->err);
    td_bytes_deinit(&picture);
    return s;
}

static void close_scale(struct scale *c)
{
    td_scalerun_close(c->run);
    for (uint32_t i = 0; i < c->n_points; i++)
        if (c->points[i].read) {
            td_benchread_deinit(c->points[i].read);
            free(c->points[i].read);
        }
    free(c->spare);
    td_checkpoint_close(c->ck);
    free(c);
}

static uint32_t count_failures(const struct scale *c)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < c->n_run; i++)
        n += !c->points[i].read;
    return n;
}

/* What the sweep came to is shown also when a signal, or an error, ended it. */
static int run_and_show(struct scale *c)
{
    const struct td_options *o = c->opts;
    struct td_err why;
    enum td_status s, shown;

    forget_variables();
    if (!o->verbose && !td_options_is_set(o, &o->log_level))
        td_log_set_level(TD_LOG_WARN); /* of launching, only what goes wrong */
    td_bench_cpu_name(c->cpu, sizeof c->cpu);
    td_term_init(&c->term, stderr);
    s = td_scalerun_open(&c->run, c->err);
    s = s ? s : run_sweep(c);
    td_term_end(&c->term);
    why = *c->err;
    shown = c->n_run ? write_results(c) : TD_OK;
    if (s)
        td_command_report(o, &why);
    if (shown)
        td_command_report(o, c->err);
    if (!s && !shown && count_failures(c)) {
        fprintf(stderr, "tensord bench scale: %u of %u points failed\n", count_failures(c),
                c->n_run);
        return TD_EXIT_FAILURE;
    }
    return s || shown ? TD_EXIT_FAILURE : TD_EXIT_OK;
}

int td_cmd_bench_scale(const struct td_options *opts)
{
    struct td_err err;
    struct scale *c = calloc(1, sizeof *c);
    enum td_status s;
    int code;

    if (!c) {
        td_err_set(&err, TD_NO_MEMORY, "no memory for a sweep");
        return td_command_report(opts, &err);
    }
    c->opts = opts;
    c->err = &err;
    s = read_settings(c);
    if (s) {
        td_command_report(opts, &err);
        code = s == TD_INVALID ? TD_EXIT_USAGE : TD_EXIT_FAILURE;
    } else {
        code = run_and_show(c);
    }
    close_scale(c);
    return code;
}
