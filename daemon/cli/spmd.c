#include "daemon/cli/spmd.h"

#include "comm/comm_mpi.h"
#include "daemon/cli/command.h"
#include "daemon/engine/preflight.h"
#include "kernels/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t LEAVE_LIMIT_NS = 5000000000u;
/* Of one exchange inside a step. Far beyond what a step takes anywhere: it ends ranks whose peer died under a launcher that leaves
 * them alone. */
static const uint64_t OP_LIMIT_NS = 600000000000u;
static const double GIB = 1 << 30;

static void show_load(size_t done, size_t total, void *user)
{
    td_term_progress(user, "loading", done, total, "B");
}

/* The last word of the option is no algorithm. */
static struct td_sumchoice_params sums_of(const struct td_options *opts)
{
    if (opts->sum_algorithm == TD_N_SUM_ALGORITHMS)
        return (struct td_sumchoice_params){.measure = true};
    return (struct td_sumchoice_params){.algorithm = (enum td_sum_algorithm)opts->sum_algorithm};
}

void td_spmd_node_params(const struct td_options *opts, struct td_node_params *out)
{
    *out = (struct td_node_params){.n_threads = (uint32_t)opts->threads,
                                   .isa = td_options_word(opts, &opts->cpu_isa),
                                   .device = opts->device,
                                   .cuda_plugin = opts->cuda_plugin,
                                   .cuda_graphs = opts->cuda_graphs,
                                   .exact = opts->exact,
                                   .gpu_share = opts->gpu_memory_utilization,
                                   .gpu_exchange = (enum td_node_gpu_exchange)opts->gpu_exchange,
                                   .gpu_sums = (enum td_gpusums)opts->gpu_sums,
                                   .nccl_plugin = opts->nccl_plugin,
                                   .sums = sums_of(opts),
                                   .exchange = (enum td_exchange_dtype)opts->exchange_dtype,
                                   .overlap = (enum td_overlap_mode)opts->overlap,
                                   .memory_bytes = opts->memory_bytes};
}

/* `auto` keeps F32 models exact and gives the others F16, which holds more digits of a key than BF16 does. */
enum td_dtype td_spmd_kv_dtype(const struct td_options *opts, const struct td_spec *spec)
{
    switch (opts->kv_cache_dtype.value[0]) {
    case TD_KV_DTYPE_F32:
        return TD_F32;
    case TD_KV_DTYPE_BF16:
        return TD_BF16;
    case TD_KV_DTYPE_FP16:
        return TD_F16;
    case TD_KV_DTYPE_FP8:
        return TD_F8_E4M3;
    case TD_KV_DTYPE_Q8_0:
        return TD_Q8_0;
    case TD_KV_DTYPE_Q4_0:
        return TD_Q4_0;
    default:
        return spec->dtype == TD_F32 ? TD_F32 : TD_F16;
    }
}

enum td_status td_spmd_plan_params(const struct td_options *opts, const struct td_spec *spec,
                                   uint32_t n_ranks, const uint64_t *memory_of_rank,
                                   uint64_t *share, struct td_plan_params *out, struct td_err *err)
{
    enum td_devicekind device;

    (void)td_devicekind_of(opts->device, &device); /* which the options' check has seen */
    if (opts->shares.n && opts->shares.n != n_ranks)
        return td_err_set(err, TD_INVALID, "--shares has %u numbers, the group has %u ranks",
                          opts->shares.n, n_ranks);
    for (uint32_t i = 0; i < opts->shares.n; i++)
        share[i] = opts->shares.share[i];
    *out = (struct td_plan_params){.n_ranks = n_ranks,
                                   .tp = (uint32_t)opts->tensor_parallel_size,
                                   .pp = (uint32_t)opts->pipeline_parallel_size,
                                   .share = opts->shares.n ? share : NULL,
                                   .memory_bytes = memory_of_rank,
                                   .device = device,
                                   .kv_dtype = td_spmd_kv_dtype(opts, spec),
                                   .block_tokens = (uint32_t)opts->block_size,
                                   .max_model_len = (uint32_t)opts->max_model_len,
                                   .max_num_seqs = (uint32_t)opts->max_num_seqs,
                                   .max_batched_tokens = (uint32_t)opts->max_num_batched_tokens,
                                   .kv_bytes = opts->kv_cache_memory_bytes};
    out->offload_bytes[TD_OFFLOAD_MEMORY] = (uint64_t)(opts->kv_offload_gib * GIB);
    if (opts->kv_offload_path)
        out->offload_bytes[TD_OFFLOAD_FILE] =
            (uint64_t)(opts->kv_offload_path_gib > 0 ? opts->kv_offload_path_gib * GIB
                                                     : 4 * opts->kv_offload_gib * GIB);
    return TD_OK;
}

/* What the group's plan is made from, with its arrays. */
struct wish {
    struct td_plan_params params;
    uint64_t *memory, *share; /* owned, [size] */
};

static enum td_status open_wish(const struct td_spmd *s, const struct td_options *opts,
                                struct wish *w, struct td_err *err)
{
    w->memory = calloc(s->size, sizeof *w->memory);
    w->share = calloc(s->size, sizeof *w->share);
    if (!w->memory || !w->share)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks", s->size);
    for (uint32_t r = 0; r < s->size; r++)
        w->memory[r] = s->facts[r].memory_bytes;
    return td_spmd_plan_params(opts, s->node.model->spec, s->size, w->memory, w->share, &w->params,
                               err);
}

static void close_wish(struct wish *w)
{
    free(w->memory);
    free(w->share);
}

enum td_status td_spmd_plan(const struct td_spmd *s, const struct td_options *opts,
                            struct td_plan *plan, struct td_err *err)
{
    struct wish w = {0};
    enum td_status st = open_wish(s, opts, &w, err);

    st = st ? st : td_plan_make(s->node.model, &w.params, plan, err);
    close_wish(&w);
    return st;
}

enum td_status td_spmd_reserve_draft(const struct td_options *opts, struct td_plan_params *plan,
                                     struct td_err *err)
{
    struct td_draftmodel *draft = NULL;
    enum td_status st = td_draftmodel_open(opts->speculative_model, &draft, err);

    st = st ? st : td_draftmodel_reserve(draft, plan, err);
    td_draftmodel_close(draft);
    return st;
}

/* Only rank 0 has the draft model; what it needs is in everybody's plan. */
static enum td_status reserve_draft(struct td_spmd *s, const struct td_options *opts,
                                    struct td_plan_params *plan, struct td_err *err)
{
    uint64_t bytes[2];
    enum td_status st = s->rank == 0 ? td_spmd_reserve_draft(opts, plan, err) : TD_OK;

    st = td_node_agree(s->world, st, err);
    bytes[0] = plan->lead_bytes;
    bytes[1] = plan->lead_block_bytes;
    if (!st && s->size > 1)
        st = td_comm_bcast(s->world, 0, bytes, sizeof bytes, err);
    plan->lead_bytes = bytes[0];
    plan->lead_block_bytes = bytes[1];
    return st;
}

enum td_status td_spmd_load(struct td_spmd *s, const struct td_options *opts, struct td_err *err)
{
    struct wish w = {0};
    uint64_t start;
    enum td_status st;

    td_node_unload(&s->node);
    st = td_node_open_model(&s->node, opts->model, opts->verify, err);
    if (st)
        return st;
    s->facts = s->facts ? s->facts : calloc(s->size, sizeof *s->facts);
    st = s->facts ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks", s->size);
    st = st ? st : td_node_gather(&s->node, s->facts, err);
    st = st ? st : open_wish(s, opts, &w, err);
    start = td_clock_now_ns();
    if (!st && opts->speculative_model)
        st = reserve_draft(s, opts, &w.params, err);
    st = st ? st : td_node_load(&s->node, &w.params, NULL, opts->speculative_model, err);
    if (!st)
        td_shard_set_deadline(s->node.shard, OP_LIMIT_NS);
    s->pack_ns = td_clock_now_ns() - start;
    close_wish(&w);
    return st;
}

enum td_status td_spmd_open(struct td_spmd *s, const struct td_options *opts, struct td_err *err)
{
    struct td_node_params node;
    uint64_t start = td_clock_now_ns();
    enum td_status st;

    memset(s, 0, sizeof *s);
    st = td_comm_mpi_launched() ? td_comm_mpi_open(&s->world, err)
                                : td_comm_self_open(&s->world, err);
    if (st)
        return st;
    s->rank = td_comm_rank(s->world);
    s->size = td_comm_size(s->world);
    td_term_init(&s->term, stderr);
    if (opts->ranks && opts->ranks != (int64_t)s->size) {
        st =
            td_err_set(err, TD_INVALID,
                       "--ranks %lld, but the job has %u: start it as 'mpirun -n %lld tensord ...'",
                       (long long)opts->ranks, s->size, (long long)opts->ranks);
        return st;
    }
    td_spmd_node_params(opts, &node);
    node.progress = s->rank == 0 ? show_load : NULL;
    node.user = &s->term;
    st = td_node_open(&s->node, s->world, &node, err);
    st = st ? st : td_preflight_start(&s->node, err);
    st = st ? st : td_spmd_load(s, opts, err);
    s->load_ns = td_clock_now_ns() - start;
    return st;
}

enum td_status td_spmd_stop(struct td_spmd *s, struct td_err *err)
{
    struct td_step_result none;

    td_step_reset(&s->node.step, TD_STEP_STOP, s->node.n_steps);
    return td_node_lead(&s->node, &s->node.step, &none, err);
}

void td_spmd_close(struct td_spmd *s, bool failed)
{
    td_node_close(&s->node);
    free(s->facts);
    if (failed && s->world)
        td_comm_abort(s->world);
    td_comm_close(s->world);
    memset(s, 0, sizeof *s);
}

int td_spmd_end(struct td_spmd *s, const struct td_options *opts, enum td_status status,
                const struct td_err *err)
{
    bool whole = status < TD_PEER_LOST || status == TD_PEER_MISMATCH; /* all know the same */
    int code = TD_EXIT_OK;

    if (!s->world && td_comm_mpi_launched() && !td_comm_mpi_open(&s->world, NULL))
        s->rank = td_comm_rank(s->world); /* it failed before anything was opened */
    if (status)
        code = s->rank == 0 || !whole ? td_command_report(opts, err) : TD_EXIT_FAILURE;
    if (status && whole && s->world) {
        td_comm_set_deadline(s->world, LEAVE_LIMIT_NS);
        (void)td_comm_barrier(s->world, NULL);
    }
    td_spmd_close(s, status != TD_OK);
    return code;
}

enum td_status td_spmd_follow(struct td_spmd *s, struct td_err *err)
{
    enum td_status st;

    do
        st = td_node_follow(&s->node, err);
    while (!st && s->node.step.kind != TD_STEP_STOP);
    return st;
}
