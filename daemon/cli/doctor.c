/* `tensord doctor`: whether hosts, ranks and links are fit for a group, told before one is started. Alone it looks at this process
 * and its host; as an MPI job at all ranks; with -n or --hostfile it starts that job itself. */
#include "daemon/cli/doctor.h"

#include "comm/comm_mpi.h"
#include "daemon/cli/clockskew.h"
#include "daemon/cli/command.h"
#include "daemon/cli/selflaunch.h"
#include "daemon/cli/spmd.h"
#include "daemon/engine/gpulibs.h"
#include "daemon/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ARGS = 16 };

static const uint64_t SECOND_NS = 1000000000u;
/* Of the phases, and of a wait in them; a model's hash takes as long as the disk does. */
static const uint64_t LINKS_NS = 10000000000u, TURN_NS = 100000000u, PATHS_NS = 15000000000u,
                      WAIT_NS = 60000000000u;
static const uint64_t LAUNCH_S = 180, MODEL_S = 600, VERIFY_S = 7200;

/* ---- As a rank ---- */

struct visit {
    struct td_spmd s;
    struct td_doctor d;
    void *buffer;      /* of the probe of links */
    int64_t *offsets;  /* [n] of the hosts' clocks */
    uint32_t *first;   /* [n] */
    bool *is_first;    /* [n] */
    bool model_failed; /* on all ranks alike */
    struct td_err model_err;
};

static enum td_status open_visit(struct visit *v, const struct td_options *opts, struct td_err *err)
{
    struct td_node_params node;
    uint32_t n;
    enum td_status st = td_comm_mpi_launched() ? td_comm_mpi_open(&v->s.world, err)
                                               : td_comm_self_open(&v->s.world, err);

    if (st)
        return st;
    v->s.rank = td_comm_rank(v->s.world);
    v->d.n_ranks = v->s.size = n = td_comm_size(v->s.world);
    v->d.transport = td_comm_transport(v->s.world);
    td_comm_set_deadline(v->s.world, WAIT_NS);
    if (opts->ranks && opts->ranks != (int64_t)n)
        return td_err_set(err, TD_INVALID, "--ranks %lld, but the job has %u ranks",
                          (long long)opts->ranks, n);
    v->d.facts = calloc(n, sizeof *v->d.facts);
    v->d.links = calloc((size_t)n * n, sizeof *v->d.links);
    v->buffer = malloc(TD_LINKPROBE_BULK_BYTES);
    v->offsets = calloc(n, sizeof *v->offsets);
    v->first = calloc(n, sizeof *v->first);
    v->is_first = calloc(n, sizeof *v->is_first);
    if (!v->d.facts || !v->d.links || !v->buffer || !v->offsets || !v->first || !v->is_first)
        st = td_err_set(err, TD_NO_MEMORY, "no memory to examine %u ranks", n);
    st = td_node_agree(v->s.world, st, err);
    td_spmd_node_params(opts, &node);
    return st ? st : td_node_open(&v->s.node, v->s.world, &node, err);
}

/* After a failure the transport may still write into the buffer: it is left to the end of the process. */
static void close_visit(struct visit *v, bool failed)
{
    td_verdict_deinit(&v->d.report);
    td_hostpaths_deinit(&v->d.paths);
    free(v->d.facts);
    free(v->d.links);
    free(v->offsets);
    free(v->first);
    free(v->is_first);
    if (!failed)
        free(v->buffer);
}

/* A model that a rank cannot read is a finding; a rank that is lost is not. */
static enum td_status open_model(struct visit *v, const struct td_options *opts, struct td_err *err)
{
    enum td_status st;

    if (!opts->model)
        return TD_OK;
    td_comm_set_deadline(v->s.world, 0); /* hashing takes what it takes, here and elsewhere */
    st = td_node_open_model(&v->s.node, opts->model, opts->verify, &v->model_err);
    td_comm_set_deadline(v->s.world, WAIT_NS);
    v->model_failed = st != TD_OK;
    if (st >= TD_PEER_LOST && st < TD_NO_MEMORY) {
        *err = v->model_err;
        return st;
    }
    return TD_OK;
}

static enum td_status examine(struct visit *v, const struct td_options *opts, struct td_err *err)
{
    const struct td_linkprobe_params links = {.budget_ns = LINKS_NS,
                                              .turn_ns = TURN_NS,
                                              .buffer = v->buffer,
                                              .bulk_bytes = TD_LINKPROBE_BULK_BYTES};
    struct td_preflight_facts mine;
    enum td_status st = open_model(v, opts, err);

    td_preflight_read(&v->s.node, &mine);
    td_gpulibs_nccl(mine.nccl, sizeof mine.nccl);
    td_gpulibs_driver(mine.driver, sizeof mine.driver);
    if (v->model_failed)
        mine.node.model_hash[0] = '\0';
    st = st ? st : td_preflight_gather(v->s.world, &mine, v->d.facts, err);
    for (uint32_t r = 0; !st && r < v->s.size; r++) {
        v->first[r] = v->d.facts[r].first;
        v->is_first[r] = v->first[r] == r;
    }
    st = st ? st : td_linkprobe_run(v->s.world, &links, v->d.links, err);
    st = st ? st : td_clockskew_measure(v->s.world, v->is_first, v->offsets, err);
    return st ? st : td_hostpaths_examine(v->s.world, v->first, PATHS_NS, &v->d.paths, err);
}

static void judge_paths(struct td_doctor *d)
{
    char a[96], b[96], where[200], choice[256];

    for (uint32_t i = 0; i < d->paths.n_pairs; i++) {
        const struct td_hostpaths_pair *p = &d->paths.pairs[i];
        const struct td_netpath_case c = {.where = where,
                                          .a = &d->paths.hosts[p->a],
                                          .b = &d->paths.hosts[p->b],
                                          .paths = p->paths,
                                          .n = p->n,
                                          .choice = td_netpath_choice(choice, sizeof choice)};

        snprintf(where, sizeof where, "%s - %s",
                 td_preflight_host_name(d->facts, d->n_ranks, p->a, a, sizeof a),
                 td_preflight_host_name(d->facts, d->n_ranks, p->b, b, sizeof b));
        td_netpath_judge(&c, &d->report);
    }
    if (d->paths.n_left_out)
        td_verdict_add(&d->report, TD_VERDICT_WARNING, "network", "between hosts",
                       "%u of %u pairs of hosts were not measured, for time", d->paths.n_left_out,
                       d->paths.n_pairs);
}

static void judge(struct visit *v, const struct td_options *opts)
{
    struct td_doctor *d = &v->d;
    char text[sizeof v->model_err.cause + sizeof v->model_err.context + 4];

    td_preflight_judge_equal(d->facts, d->n_ranks, &d->report);
    if (v->model_failed)
        td_verdict_add(&d->report, TD_VERDICT_ERROR, "model hash", "all ranks", "%s: %s",
                       opts->model, td_err_format(&v->model_err, text, sizeof text));
    td_preflight_judge_cores(d->facts, d->n_ranks, &d->report);
    td_preflight_judge_hosts(d->facts, d->n_ranks, &d->report);
    td_preflight_judge_clocks(d->facts, v->offsets, d->n_ranks, &d->report);
    td_preflight_judge_links(d->facts, d->links, d->n_ranks, &d->report);
    judge_paths(d);
}

/* All ranks end alike, so that a launcher kills nobody. */
static enum td_status report(struct visit *v, const struct td_options *opts,
                             enum td_verdict *verdict, struct td_err *err)
{
    uint8_t worst = TD_VERDICT_OK;
    enum td_status st = TD_OK;

    if (v->s.rank == 0) {
        judge(v, opts);
        worst = (uint8_t)td_verdict_worst(&v->d.report);
        if (opts->json)
            st = td_doctor_print_json(&v->d, err);
        else
            td_doctor_print(&v->d);
        fflush(stdout);
    }
    st = td_node_agree(v->s.world, st, err);
    st = st ? st : td_comm_bcast(v->s.world, 0, &worst, sizeof worst, err);
    *verdict = (enum td_verdict)worst;
    return st;
}

static int visit(const struct td_options *opts)
{
    struct td_err err;
    struct visit v = {0};
    enum td_verdict verdict = TD_VERDICT_OK;
    enum td_status st = open_visit(&v, opts, &err);
    int code;

    st = st ? st : examine(&v, opts, &err);
    st = st ? st : report(&v, opts, &verdict, &err);
    close_visit(&v, st != TD_OK);
    code = td_spmd_end(&v.s, opts, st, &err);
    if (st == TD_INVALID)
        return TD_EXIT_USAGE;
    return code != TD_EXIT_OK || verdict == TD_VERDICT_ERROR ? TD_EXIT_FAILURE : TD_EXIT_OK;
}

/* ---- Starting the job ---- */

static int launch(const struct td_options *opts)
{
    char threads[32];
    const char *args[MAX_ARGS] = {"--threads",   threads,
                                  "--cpu-isa",   td_options_word(opts, &opts->cpu_isa),
                                  "--transport", td_options_word(opts, &opts->transport)};
    struct td_selflaunch_params p = {.command = "doctor",
                                     .n_ranks = (uint32_t)opts->ranks,
                                     .hostfile = opts->hostfile,
                                     .args = args};
    uint64_t limit_s = LAUNCH_S + (opts->model ? MODEL_S : 0) + (opts->verify ? VERIFY_S : 0);
    size_t n = 6;
    struct td_err err;
    int code = TD_EXIT_FAILURE;
    enum td_status st;

    snprintf(threads, sizeof threads, "%lld", (long long)opts->threads);
    if (opts->model) {
        args[n++] = "--model";
        args[n++] = opts->model;
    }
    if (opts->verify)
        args[n++] = "--verify";
    if (opts->json)
        args[n++] = "--json";
    if (opts->verbose)
        args[n++] = "--verbose";
    p.limit_ns = limit_s * SECOND_NS;
    if (!opts->verbose && !td_options_is_set(opts, &opts->log_level))
        td_log_set_level(TD_LOG_WARN); /* of launching, only what goes wrong */
    st = td_selflaunch_run(&p, &code, &err);
    if (st) {
        td_command_report(opts, &err);
        return st == TD_INVALID ? TD_EXIT_USAGE : TD_EXIT_FAILURE;
    }
    return code == TD_EXIT_OK || code == TD_EXIT_USAGE ? code : TD_EXIT_FAILURE;
}

int td_cmd_doctor(const struct td_options *opts)
{
    if (!td_comm_mpi_launched() && (opts->ranks > 1 || opts->hostfile))
        return launch(opts);
    return visit(opts);
}
