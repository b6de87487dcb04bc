#include "daemon/cli/plan_predict.h"

#include "comm/comm_mpi.h"
#include "daemon/cli/clusterfile.h"
#include "daemon/cli/command.h"
#include "daemon/cli/measure.h"
#include "daemon/cli/spmd.h"
#include "shard/layouts.h"

#include <stdio.h>
#include <stdlib.h>

enum { DEFAULT_RANKS = 8 /* on this host, where it has as many cores */ };

struct predict {
    const struct td_options *opts;
    struct td_spmd spmd;
    struct td_checkpoint *ck;
    struct td_plan_model model;
    struct td_machine machine;
    struct td_measure_report report;
    struct td_predict_load load;
};

/* A length that nobody asked for gives way to a short model; one that was asked for is refused. */
static enum td_status fit(const struct predict *p, const char *flag, const int64_t *asked,
                          uint32_t most, uint32_t *out, struct td_err *err)
{
    if (*asked > most && td_options_is_set(p->opts, asked))
        return td_err_set(err, TD_INVALID,
                          "--%s %lld: expected at most %u, for which the model has positions", flag,
                          (long long)*asked, most);
    *out = *asked > most ? most : (uint32_t)*asked;
    return TD_OK;
}

static enum td_status read_load(struct predict *p, struct td_err *err)
{
    uint32_t positions = p->model.spec->max_positions;
    enum td_status s;

    if (p->opts->max_model_len && p->opts->max_model_len < positions)
        positions = (uint32_t)p->opts->max_model_len;
    p->load.batch = (uint32_t)p->opts->batch;
    p->load.prefill_chunk = (uint32_t)p->opts->prefill_chunk;
    s = fit(p, "depth", &p->opts->depth, positions - 1, &p->load.depth, err);
    return s ? s
             : fit(p, "prompt-tokens", &p->opts->prompt_tokens, positions, &p->load.prompt_tokens,
                   err);
}

/* Ranks that were asked for; 0: nobody did. */
static uint32_t asked_ranks(const struct td_options *opts)
{
    uint32_t tp = (uint32_t)opts->tensor_parallel_size, pp = (uint32_t)opts->pipeline_parallel_size;

    if (opts->ranks)
        return (uint32_t)opts->ranks;
    return tp && pp ? tp * pp : opts->shares.n;
}

/* Of this host: as many as it has cores, and at least those that a size was asked of. */
static uint32_t default_ranks(const struct predict *p)
{
    uint32_t n = p->spmd.node.facts.n_threads, tp = (uint32_t)p->opts->tensor_parallel_size,
             pp = (uint32_t)p->opts->pipeline_parallel_size;

    n = n < DEFAULT_RANKS ? n : DEFAULT_RANKS;
    n = n > tp ? n : tp;
    return n > pp ? n : pp;
}

static enum td_status measure(struct predict *p, uint32_t n_ranks, struct td_err *err)
{
    struct td_node_params node;
    struct td_measure_params params = {.node = &p->spmd.node,
                                       .row_floats = p->model.spec->d_model,
                                       .n_rows = (uint32_t)p->opts->max_num_batched_tokens};
    enum td_status s;

    td_spmd_node_params(p->opts, &node);
    node.memory_bytes = 0; /* capped per rank when it is known how many there are */
    s = td_node_open(&p->spmd.node, p->spmd.world, &node, err);
    if (s)
        return s;
    params.n_ranks = n_ranks ? n_ranks : default_ranks(p);
    return td_measure_machine(&params, &p->machine, &p->report, err);
}

static enum td_status find_machine(struct predict *p, uint32_t n_ranks, struct td_err *err)
{
    enum td_status s;

    if (!p->opts->cluster)
        return measure(p, n_ranks, err);
    s = td_clusterfile_read(p->opts->cluster, &p->machine, err);
    snprintf(p->report.machine, sizeof p->report.machine, "%.150s", p->opts->cluster);
    snprintf(p->report.links, sizeof p->report.links, "of the same file");
    return s;
}

static enum td_status print(const struct predict *p, const struct td_layouts *layouts,
                            struct td_err *err)
{
    struct td_layouts_source source = {p->report.machine, p->report.links};
    struct td_bytes out = {0};
    enum td_status s =
        (p->opts->json ? td_layouts_print_json : td_layouts_print)(layouts, &source, &out);

    if (s)
        s = td_err_set(err, TD_NO_MEMORY, "no memory to print the layouts");
    else
        fwrite(out.data, 1, out.len, stdout);
    td_bytes_deinit(&out);
    return s;
}

/* Everything behind the measurement, on rank 0. */
static enum td_status predict(struct predict *p, uint32_t n_ranks, struct td_err *err)
{
    uint64_t share[TD_PLAN_MAX_RANKS];
    struct td_plan_params plan;
    struct td_layouts_params params = {.model = &p->model,
                                       .machine = &p->machine,
                                       .plan = &plan,
                                       .load = &p->load,
                                       .most_memory_bytes = p->opts->memory_bytes};
    struct td_layouts layouts;
    enum td_status s;

    n_ranks = n_ranks ? n_ranks : p->machine.n_ranks;
    s = td_spmd_plan_params(p->opts, p->model.spec, n_ranks, NULL, share, &plan, err);
    if (!s && p->opts->speculative_model)
        s = td_spmd_reserve_draft(p->opts, &plan, err);
    s = s ? s : td_layouts_open(&params, &layouts, err);
    if (s)
        return s;
    s = print(p, &layouts, err);
    td_layouts_close(&layouts);
    return s;
}

int td_plan_predict(const struct td_options *opts)
{
    uint32_t n_ranks = asked_ranks(opts);
    struct predict *p = calloc(1, sizeof *p);
    struct td_spmd spmd;
    struct td_err err;
    enum td_status s;

    if (!p) {
        td_err_set(&err, TD_NO_MEMORY, "no memory to predict");
        return td_command_report(opts, &err);
    }
    p->opts = opts;
    s = td_comm_mpi_launched() ? td_comm_mpi_open(&p->spmd.world, &err)
                               : td_comm_self_open(&p->spmd.world, &err);
    p->spmd.rank = s ? 0 : td_comm_rank(p->spmd.world);
    s = s ? s : td_checkpoint_open(opts->model, &p->ck, &err);
    s = s ? s : td_plan_model_read(p->ck, &p->model, &err);
    s = s ? s : read_load(p, &err);
    s = p->spmd.world ? td_node_agree(p->spmd.world, s, &err) : s;
    s = s ? s : find_machine(p, n_ranks, &err);
    if (!s && n_ranks > p->machine.n_ranks)
        s = td_err_set(&err, TD_INVALID, "%u ranks: %s has %u", n_ranks,
                       opts->cluster ? opts->cluster : "the job", p->machine.n_ranks);
    if (!s)
        s = td_node_agree(p->spmd.world, p->spmd.rank ? TD_OK : predict(p, n_ranks, &err), &err);
    td_checkpoint_close(p->ck);
    spmd = p->spmd;
    free(p);
    return td_spmd_end(&spmd, opts, s, &err);
}
