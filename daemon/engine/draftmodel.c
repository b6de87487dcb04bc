#include "daemon/engine/draftmodel.h"

#include "comm/comm.h"
#include "daemon/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

struct td_draftmodel {
    struct td_checkpoint *ck;
    struct td_plan_model model;
    struct td_plan plan;
    struct td_comm *self;
    struct td_shard *shard; /* NULL until loaded */
};

enum td_status td_draftmodel_open(const char *path, struct td_draftmodel **out, struct td_err *err)
{
    struct td_draftmodel *d = calloc(1, sizeof *d);
    enum td_status s;

    if (!d)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a draft model");
    s = td_checkpoint_open(path, &d->ck, err);
    s = s ? s : td_plan_model_read(d->ck, &d->model, err);
    if (s) {
        td_draftmodel_close(d);
        td_err_context(err, "draft model");
        return s;
    }
    *out = d;
    return TD_OK;
}

void td_draftmodel_close(struct td_draftmodel *d)
{
    if (!d)
        return;
    td_shard_close(d->shard);
    td_comm_close(d->self);
    td_checkpoint_close(d->ck);
    free(d);
}

enum td_status td_draftmodel_check(const struct td_draftmodel *d, const struct td_tokenizer *served,
                                   struct td_err *err)
{
    struct td_tokenizer *own = NULL;
    enum td_status s = td_tokenizer_open(d->ck, &own, err);
    uint32_t n, n_served = td_tokenizer_n_vocab(served);

    if (s) {
        td_err_context(err, "draft model");
        return s;
    }
    n = td_tokenizer_n_vocab(own);
    n = n < n_served ? n : n_served;
    for (uint32_t id = 0; !s && id < n; id++) {
        struct td_str a = td_tokenizer_piece(served, id), b = td_tokenizer_piece(own, id);

        if (a.len != b.len || memcmp(a.ptr, b.ptr, a.len) != 0)
            s = td_err_set(err, TD_INVALID,
                           "token %u is '%.*s' in the served model and '%.*s' in the draft model: "
                           "expected a draft model with the same vocabulary",
                           id, (int)(a.len < 40 ? a.len : 40), a.ptr,
                           (int)(b.len < 40 ? b.len : 40), b.ptr);
    }
    td_tokenizer_close(own);
    return s;
}

/* Whole on one rank, with a context that the served model's is the limit of. */
static struct td_plan_params wish(const struct td_draftmodel *d, enum td_dtype kv_dtype,
                                  uint32_t max_len)
{
    const struct td_spec *spec = d->model.spec;

    return (struct td_plan_params){
        .n_ranks = 1,
        .tp = 1,
        .pp = 1,
        .kv_dtype = td_dtype_row_bytes(kv_dtype, spec->head_dim) ? kv_dtype : TD_F16,
        .max_model_len = max_len < spec->max_positions ? max_len : spec->max_positions};
}

enum td_status td_draftmodel_reserve(const struct td_draftmodel *d, struct td_plan_params *served,
                                     struct td_err *err)
{
    struct td_plan_params p = wish(d, served->kv_dtype, served->block_tokens);
    struct td_plan *plan = calloc(1, sizeof *plan);
    enum td_status s;

    if (!plan)
        return td_err_set(err, TD_NO_MEMORY, "no memory to plan a draft model");
    p.device = served->device;
    p.block_tokens = served->block_tokens;
    p.max_num_seqs = served->max_num_seqs;
    p.max_batched_tokens = served->max_batched_tokens;
    p.n_blocks = 1;
    s = td_plan_make(&d->model, &p, plan, err);
    if (!s) {
        served->lead_bytes = plan->rank[0].weight_bytes + plan->rank[0].buffer_bytes;
        served->lead_block_bytes = plan->rank[0].kv_bytes;
    } else {
        td_err_context(err, "draft model");
    }
    free(plan);
    return s;
}

enum td_status td_draftmodel_load(struct td_draftmodel *d, struct td_kern *kern,
                                  const struct td_plan *served, struct td_err *err)
{
    struct td_plan_params p = wish(d, served->kv_dtype, served->max_model_len);
    struct td_shard_params shard = {
        .ck = d->ck, .model = &d->model, .plan = &d->plan, .kern = kern};
    enum td_status s;

    p.device = served->device;
    p.block_tokens = served->block_tokens;
    p.max_num_seqs = served->max_num_seqs;
    p.max_batched_tokens = served->max_batched_tokens;
    p.n_blocks = served->n_blocks;
    s = td_comm_self_open(&d->self, err);
    s = s ? s : td_plan_make(&d->model, &p, &d->plan, err);
    shard.world = d->self;
    s = s ? s : td_shard_open(&shard, &d->shard, err);
    if (s)
        td_err_context(err, "draft model");
    return s;
}

enum td_status td_draftmodel_step(struct td_draftmodel *d, const struct td_step *step,
                                  struct td_step_result *result, struct td_err *err)
{
    return td_shard_step(d->shard, step, result, err);
}

uint32_t td_draftmodel_n_vocab(const struct td_draftmodel *d)
{
    return d->model.spec->n_vocab;
}

uint32_t td_draftmodel_positions(const struct td_draftmodel *d)
{
    return d->plan.max_model_len;
}

void td_draftmodel_stats(const struct td_draftmodel *d, struct td_shard_stats *out)
{
    td_shard_stats(d->shard, out);
}
