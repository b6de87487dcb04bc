#include "daemon/cli/command.h"
#include "daemon/cli/plan_predict.h"
#include "daemon/cli/spmd.h"

#include <stdio.h>
#include <stdlib.h>

/* Who would hold what. */
static int show(const struct td_options *opts)
{
    uint32_t n_ranks = (uint32_t)opts->ranks;
    uint64_t *memory = NULL, share[TD_PLAN_MAX_RANKS];
    struct td_plan_model *model = calloc(1, sizeof *model);
    struct td_plan *plan = calloc(1, sizeof *plan);
    struct td_checkpoint *ck = NULL;
    struct td_plan_params params;
    struct td_bytes out = {0};
    struct td_err err;
    enum td_status s;

    if (!n_ranks) {
        uint32_t tp = (uint32_t)opts->tensor_parallel_size,
                 pp = (uint32_t)opts->pipeline_parallel_size;

        n_ranks = (tp ? tp : opts->shares.n && !pp ? opts->shares.n : 1) * (pp ? pp : 1);
    }
    s = model && plan ? td_checkpoint_open(opts->model, &ck, &err)
                      : td_err_set(&err, TD_NO_MEMORY, "no memory to plan");
    s = s ? s : td_plan_model_read(ck, model, &err);
    if (!s && opts->memory_bytes && n_ranks <= TD_PLAN_MAX_RANKS) {
        memory = calloc(n_ranks, sizeof *memory);
        for (uint32_t i = 0; memory && i < n_ranks; i++)
            memory[i] = opts->memory_bytes;
    }
    s = s ? s : td_spmd_plan_params(opts, model->spec, n_ranks, memory, share, &params, &err);
    if (!s && opts->speculative_model)
        s = td_spmd_reserve_draft(opts, &params, &err);
    s = s ? s : td_plan_make(model, &params, plan, &err);
    if (!s && (opts->json ? td_plan_print_json : td_plan_print)(plan, model, &out))
        s = td_err_set(&err, TD_NO_MEMORY, "no memory to print the plan");
    if (!s)
        fwrite(out.data, 1, out.len, stdout);
    td_bytes_deinit(&out);
    free(memory);
    td_checkpoint_close(ck);
    free(plan);
    free(model);
    return s ? td_command_report(opts, &err) : TD_EXIT_OK;
}

/* Prints who would hold what, or how fast it would be, without loading: reads headers only. */
int td_cmd_plan(const struct td_options *opts)
{
    struct td_err err;
    enum td_devicekind device;

    (void)td_devicekind_of(opts->device, &device); /* which the options' check has seen */
    if (opts->predict && device == TD_ON_CPU)
        return td_plan_predict(opts);
    if (!opts->predict && !opts->cluster)
        return show(opts);
    if (opts->predict)
        td_err_set(&err, TD_UNSUPPORTED,
                   "--predict with --device %s: expected cpu, whose speed alone is predicted",
                   opts->device);
    else
        td_err_set(&err, TD_INVALID, "--cluster '%.200s': expected --predict with it",
                   opts->cluster);
    return td_command_report(opts, &err);
}
