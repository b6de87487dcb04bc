#include "shard/plan.h"

#include "comm/comm.h"
#include "kernels/draw.h"
#include "kernels/top.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static uint32_t block_of(enum td_dtype type)
{
    return (uint32_t)td_dtype_info(type)->sum_cols;
}

enum td_status td_plan_model_read(const struct td_checkpoint *ck, struct td_plan_model *model,
                                  struct td_err *err)
{
    static const enum td_role roles[] = {TD_ROLE_Q,    TD_ROLE_K,  TD_ROLE_V,   TD_ROLE_O,
                                         TD_ROLE_GATE, TD_ROLE_UP, TD_ROLE_DOWN};
    const char *path = td_checkpoint_path(ck);
    struct td_tensor t;
    enum td_status s;

    memset(model, 0, sizeof *model);
    model->spec = td_checkpoint_spec(ck);
    snprintf(model->name, sizeof model->name, "%.127s", path);
    s = td_checkpoint_weight(ck, TD_ROLE_EMBED, 0, &t, err);
    if (s)
        return s;
    model->embed = t.dtype;
    model->head = t.dtype;
    if (!model->spec->tied_head) {
        s = td_checkpoint_weight(ck, TD_ROLE_HEAD, 0, &t, err);
        if (s)
            return s;
        model->head = t.dtype;
    }
    for (uint32_t l = 0; l < model->spec->n_layers; l++) {
        struct td_plan_layer_types *types = &model->layer[l];
        enum td_dtype *const into[] = {&types->q,    &types->k,  &types->v,   &types->o,
                                       &types->gate, &types->up, &types->down};

        for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
            s = td_checkpoint_weight(ck, roles[i], l, &t, err);
            if (s)
                return s;
            *into[i] = t.dtype;
        }
    }
    return TD_OK;
}

struct td_plan_leaves td_plan_cut(uint32_t n_cols, uint32_t unit)
{
    struct td_plan_leaves leaves = {.n_cols = n_cols};
    /* Leaves of whole vector groups where the matrix is wide enough for them, else of small even runs. */
    uint32_t step = n_cols >= 512 ? 32 : n_cols >= 64 ? 4 : 1;

    step = step > unit ? step : unit; /* powers of two */
    leaves.leaf_cols = ceil_div(ceil_div(n_cols, TD_PLAN_MAX_LEAVES), step) * step;
    leaves.n_leaves = ceil_div(n_cols, leaves.leaf_cols);
    return leaves;
}

struct td_plan_leaves td_plan_attn_leaves(const struct td_plan_model *model, uint32_t layer)
{
    const struct td_spec *spec = model->spec;
    uint32_t block = block_of(model->layer[layer].o), heads = 1;
    struct td_plan_leaves leaves = {.n_cols = spec->n_heads * spec->head_dim};

    while (heads * spec->head_dim % block) /* a leaf holds whole heads and whole blocks */
        heads++;
    heads *= ceil_div(ceil_div(spec->n_heads, heads), TD_PLAN_MAX_LEAVES);
    leaves.leaf_cols = heads * spec->head_dim;
    leaves.n_leaves = ceil_div(leaves.n_cols, leaves.leaf_cols);
    return leaves;
}

struct td_plan_leaves td_plan_ffn_leaves(const struct td_plan_model *model, uint32_t layer)
{
    return td_plan_cut(model->spec->d_ff, block_of(model->layer[layer].down));
}

uint32_t td_plan_deal(uint32_t n, const uint64_t *share, uint32_t n_shares, uint32_t i)
{
    uint64_t before = 0, total = 0, largest = 0;
    uint32_t shift = 0;

    for (uint32_t k = 0; k < n_shares; k++)
        largest = share[k] > largest ? share[k] : largest;
    while (largest >> shift >= (uint64_t)1 << 22) /* keeps every product below 2^64 */
        shift++;
    for (uint32_t k = 0; k < n_shares; k++) {
        uint64_t part = share[k] >> shift;

        part = part ? part : 1;
        before += k < i ? part : 0;
        total += part;
    }
    return (uint32_t)((before * n * 2 + total) / (total * 2)); /* nearest, halves up */
}

/* The shares of one stage's ranks, in tp order. */
static void stage_shares(const struct td_plan *plan, uint32_t stage,
                         uint64_t share[TD_PLAN_MAX_RANKS])
{
    for (uint32_t i = 0; i < plan->tp; i++)
        share[i] = plan->rank[stage * plan->tp + i].share;
}

static struct td_leaf_run deal_leaves(const struct td_plan *plan, uint32_t rank, uint32_t n_leaves)
{
    const struct td_plan_rank *r = &plan->rank[rank];
    uint64_t share[TD_PLAN_MAX_RANKS];

    stage_shares(plan, r->stage, share);
    return (struct td_leaf_run){td_plan_deal(n_leaves, share, plan->tp, r->tp_index),
                                td_plan_deal(n_leaves, share, plan->tp, r->tp_index + 1)};
}

static uint32_t leaf_start(struct td_plan_leaves leaves, uint32_t leaf)
{
    uint32_t col = leaf * leaves.leaf_cols;

    return col < leaves.n_cols ? col : leaves.n_cols;
}

struct td_plan_slice td_plan_slice(const struct td_plan *plan, const struct td_plan_model *model,
                                   uint32_t rank, uint32_t layer)
{
    const struct td_spec *spec = model->spec;
    struct td_plan_leaves attn = td_plan_attn_leaves(model, layer),
                          ffn = td_plan_ffn_leaves(model, layer);
    struct td_plan_slice slice = {.attn_run = deal_leaves(plan, rank, attn.n_leaves),
                                  .ffn_run = deal_leaves(plan, rank, ffn.n_leaves)};
    uint32_t group = spec->n_heads / spec->n_kv_heads;

    slice.head_begin = leaf_start(attn, slice.attn_run.begin) / spec->head_dim;
    slice.head_end = leaf_start(attn, slice.attn_run.end) / spec->head_dim;
    slice.kv_begin = slice.head_begin / group;
    slice.kv_end =
        slice.head_end > slice.head_begin ? ceil_div(slice.head_end, group) : slice.kv_begin;
    slice.ff_begin = leaf_start(ffn, slice.ffn_run.begin);
    slice.ff_end = leaf_start(ffn, slice.ffn_run.end);
    return slice;
}

/* Of a matrix whose columns, the residual stream's, nobody splits. */
static size_t rows_bytes(const struct td_plan_model *model, const struct td_plan *plan,
                         enum td_dtype type, size_t rows)
{
    uint32_t d = model->spec->d_model;
    struct td_plan_leaves leaves = td_plan_cut(d, (uint32_t)td_dtype_info(type)->sum_cols);

    return td_devicekind_matrix_bytes(plan->device, type, rows, d, leaves.leaf_cols);
}

static size_t norm_bytes(const struct td_spec *s)
{
    return (2 * (size_t)s->d_model + (s->qk_norm ? 2 * (size_t)s->head_dim : 0)) * sizeof(float);
}

/* Of the matrices of a layer. */
static size_t slice_bytes(const struct td_plan_model *model, const struct td_plan *plan,
                          uint32_t layer, const struct td_plan_slice *slice)
{
    const struct td_spec *s = model->spec;
    const struct td_plan_layer_types *t = &model->layer[layer];
    size_t q = (size_t)(slice->head_end - slice->head_begin) * s->head_dim;
    size_t kv = (size_t)(slice->kv_end - slice->kv_begin) * s->head_dim;
    size_t ff = slice->ff_end - slice->ff_begin;

    return rows_bytes(model, plan, t->q, q) + rows_bytes(model, plan, t->k, kv) +
           rows_bytes(model, plan, t->v, kv) + rows_bytes(model, plan, t->gate, ff) +
           rows_bytes(model, plan, t->up, ff) +
           td_devicekind_matrix_bytes(plan->device, t->o, s->d_model, q,
                                      td_plan_attn_leaves(model, layer).leaf_cols) +
           td_devicekind_matrix_bytes(plan->device, t->down, s->d_model, ff,
                                      td_plan_ffn_leaves(model, layer).leaf_cols);
}

/* Matrices and norms of a whole layer. */
static size_t layer_bytes(const struct td_plan_model *model, const struct td_plan *plan,
                          uint32_t layer)
{
    const struct td_spec *s = model->spec;
    struct td_plan_slice all = {.head_end = s->n_heads, .kv_end = s->n_kv_heads, .ff_end = s->d_ff};

    return slice_bytes(model, plan, layer, &all) + norm_bytes(s);
}

static size_t vocab_bytes(const struct td_plan_model *model, const struct td_plan *plan,
                          size_t rows)
{
    return rows_bytes(model, plan, model->embed, rows) +
           (model->spec->tied_head ? 0 : rows_bytes(model, plan, model->head, rows));
}

/* Cuts the layers into pp runs so that the largest (bytes / share) of a stage is smallest. */
static enum td_status cut_stages(const struct td_plan_model *model, struct td_plan *plan,
                                 uint32_t *first, struct td_err *err)
{
    uint32_t n = model->spec->n_layers, pp = plan->pp;
    double *best = malloc((size_t)(pp + 1) * (n + 1) * sizeof *best);
    uint32_t *from = malloc((size_t)(pp + 1) * (n + 1) * sizeof *from);
    double *sum = malloc((size_t)(n + 1) * sizeof *sum); /* bytes of the layers before */

    if (!best || !from || !sum) {
        free(best);
        free(from);
        free(sum);
        return td_err_set(err, TD_NO_MEMORY, "no memory to plan %u stages", pp);
    }
    sum[0] = 0.0;
    for (uint32_t l = 0; l < n; l++)
        sum[l + 1] = sum[l] + (double)layer_bytes(model, plan, l);
    for (uint32_t s = 0; s <= pp; s++)
        for (uint32_t l = 0; l <= n; l++)
            best[s * (n + 1) + l] = s == 0 && l == 0 ? 0.0 : 1e300;
    for (uint32_t s = 1; s <= pp; s++) {
        double share = 0.0,
               extra = s == 1 ? (double)vocab_bytes(model, plan, model->spec->n_vocab) : 0.0;

        for (uint32_t i = 0; i < plan->tp; i++)
            share += (double)plan->rank[(s - 1) * plan->tp + i].share;
        for (uint32_t l = s; l <= n - (pp - s); l++)
            for (uint32_t k = s - 1; k < l; k++) {
                double cost = (sum[l] - sum[k] + extra) / share,
                       worst = best[(s - 1) * (n + 1) + k];

                worst = cost > worst ? cost : worst;
                if (worst < best[s * (n + 1) + l]) {
                    best[s * (n + 1) + l] = worst;
                    from[s * (n + 1) + l] = k;
                }
            }
    }
    first[pp] = n;
    for (uint32_t s = pp; s > 0; s--)
        first[s - 1] = from[s * (n + 1) + first[s]];
    free(best);
    free(from);
    free(sum);
    return TD_OK;
}

struct td_plan_widths td_plan_widths(const struct td_plan *plan, const struct td_plan_model *model,
                                     uint32_t rank)
{
    const struct td_plan_rank *r = &plan->rank[rank];
    size_t hd = model->spec->head_dim;
    struct td_plan_widths w = {.own_parts = 1, .all_parts = 1};

    for (uint32_t l = r->layer_begin; l < r->layer_end; l++) {
        uint32_t attn = td_plan_attn_leaves(model, l).n_leaves,
                 ffn = td_plan_ffn_leaves(model, l).n_leaves;
        size_t all_attn = 0, all_ffn = 0;

        for (uint32_t i = 0; i < plan->tp; i++) {
            struct td_plan_slice slice = td_plan_slice(plan, model, r->stage * plan->tp + i, l);
            struct td_leaf_run cut[TD_TREE_MAX_PARTS];
            size_t a = td_tree_parts(attn, slice.attn_run, cut),
                   f = td_tree_parts(ffn, slice.ffn_run, cut);

            all_attn += a;
            all_ffn += f;
            if (i != r->tp_index)
                continue;
            w.own_parts = max_size(w.own_parts, max_size(a, f));
            w.q = max_size(w.q, (slice.head_end - slice.head_begin) * hd);
            w.kv = max_size(w.kv, (slice.kv_end - slice.kv_begin) * hd);
            w.ff = max_size(w.ff, slice.ff_end - slice.ff_begin);
        }
        w.all_parts = max_size(w.all_parts, max_size(all_attn, all_ffn));
    }
    return w;
}

/* Activations of one step, as td_shard_open allocates them but for rounding. */
static size_t buffer_floats(const struct td_plan *plan, const struct td_plan_model *model,
                            uint32_t rank)
{
    const struct td_spec *s = model->spec;
    const struct td_plan_rank *r = &plan->rank[rank];
    struct td_plan_widths w = td_plan_widths(plan, model, rank);
    size_t n = plan->max_batched_tokens, d = s->d_model;
    size_t tops = TD_TOP_MAX * sizeof(struct td_top) / sizeof(float); /* of one row */
    size_t drawn = plan->device == TD_ON_CPU ? 0 : 1 + sizeof(struct td_measure) / sizeof(float);
    /* Slices of all ranks, and on a device the rows made of them. */
    size_t whole = (plan->device == TD_ON_CPU ? 1 : 2) * (size_t)s->n_vocab;
    size_t floats = n * (3 * d + 2 * w.q + 2 * w.kv + w.ff + 2 * s->head_dim + w.own_parts * d +
                         (plan->tp > 1 ? w.all_parts * d : 0));

    if (r->stage == 0) /* where the host does not see the device's logits, it has its own */
        floats +=
            (size_t)plan->max_num_seqs * (d + tops +
                                          (plan->device != TD_ON_CPU && plan->tp > 1 ? 2 : 1) *
                                              (size_t)(r->vocab_end - r->vocab_begin));
    if (rank == 0)
        floats += (size_t)plan->max_num_seqs *
                  ((plan->tp > 1 ? plan->tp * tops + whole : 0) + s->n_vocab + drawn);
    return floats;
}

/* Payload that `rank` sends in a decode step of one row, the embedding row apart. */
static size_t exchanged(const struct td_plan *plan, const struct td_plan_model *model,
                        uint32_t rank)
{
    const struct td_plan_rank *r = &plan->rank[rank];
    const struct td_spec *s = model->spec;
    size_t bytes = 0;

    for (uint32_t l = r->layer_begin; l < r->layer_end && plan->tp > 1; l++) {
        struct td_leaf_run attn[TD_PLAN_MAX_RANKS], ffn[TD_PLAN_MAX_RANKS];
        struct td_tree_layout a = {td_plan_attn_leaves(model, l).n_leaves, attn};
        struct td_tree_layout f = {td_plan_ffn_leaves(model, l).n_leaves, ffn};

        for (uint32_t i = 0; i < plan->tp; i++) {
            struct td_plan_slice slice = td_plan_slice(plan, model, r->stage * plan->tp + i, l);

            attn[i] = slice.attn_run;
            ffn[i] = slice.ffn_run;
        }
        bytes += td_comm_tree_sum_bytes(&a, plan->tp, r->tp_index, s->d_model);
        bytes += td_comm_tree_sum_bytes(&f, plan->tp, r->tp_index, s->d_model);
    }
    if (plan->pp > 1) /* the row to the next stage; from the last back to the first */
        bytes += (size_t)s->d_model * sizeof(float);
    if (r->stage == 0 && r->tp_index > 0) /* logits to rank 0; of a row with TD_WANT_TOP less */
        bytes += (size_t)(r->vocab_end - r->vocab_begin) * sizeof(float);
    return bytes;
}

size_t td_plan_exchanged_bytes(const struct td_plan *plan)
{
    size_t bytes = plan->embed_bytes_per_token;

    for (uint32_t i = 0; i < plan->n_ranks; i++)
        bytes += plan->rank[i].exchanged_bytes_per_token;
    return bytes;
}

/* What the device holds of the model's types and of the cache's. */
static enum td_status check_types(const struct td_plan_model *model, const struct td_plan_params *p,
                                  struct td_err *err)
{
    const char *device = td_devicekind_name(p->device);

    for (uint32_t l = 0; l < model->spec->n_layers; l++) {
        const struct td_plan_layer_types *t = &model->layer[l];
        const enum td_dtype types[] = {model->embed, model->head, t->q,  t->k,   t->v,
                                       t->o,         t->gate,     t->up, t->down};

        for (uint32_t i = 0; i < sizeof types / sizeof types[0]; i++)
            if (!td_devicekind_holds(p->device, types[i]))
                return td_err_set(err, TD_UNSUPPORTED,
                                  "'%s' has weights of type %s, which --device %s does not hold: "
                                  "'tensord quantize' makes another type of them, '--device cpu' "
                                  "takes them as they are",
                                  model->name, td_dtype_info(types[i])->name, device);
    }
    if (!td_devicekind_caches(p->device, p->kv_dtype))
        return td_err_set(err, TD_UNSUPPORTED,
                          "KV cache of type %s: --device %s does not hold it, expected f32, bf16, "
                          "fp16, fp8%s q8_0%s",
                          td_dtype_info(p->kv_dtype)->name, device,
                          p->device == TD_ON_CPU ? "," : " or",
                          p->device == TD_ON_CPU ? " or q4_0" : "");
    return TD_OK;
}

static enum td_status check_params(const struct td_plan_model *model,
                                   const struct td_plan_params *p, struct td_plan *plan,
                                   struct td_err *err)
{
    uint32_t pp = p->pp ? p->pp : 1, tp = p->tp;
    enum td_status s;

    if (p->n_ranks == 0 || p->n_ranks > TD_PLAN_MAX_RANKS)
        return td_err_set(err, TD_INVALID, "%u ranks: expected 1 to %d", p->n_ranks,
                          TD_PLAN_MAX_RANKS);
    if (tp == 0 && p->n_ranks % pp)
        return td_err_set(err, TD_INVALID, "%u ranks are no multiple of %u pipeline stages",
                          p->n_ranks, pp);
    tp = tp ? tp : p->n_ranks / pp;
    if (p->pp == 0 && p->n_ranks % tp == 0)
        pp = p->n_ranks / tp;
    if ((uint64_t)tp * pp != p->n_ranks)
        return td_err_set(
            err, TD_INVALID,
            "tensor parallel %u x pipeline parallel %u = %llu ranks, but the group has %u", tp, pp,
            (unsigned long long)tp * pp, p->n_ranks);
    if (pp > model->spec->n_layers)
        return td_err_set(err, TD_INVALID,
                          "%u pipeline stages for %u layers: expected at most one stage per layer",
                          pp, model->spec->n_layers);
    if (p->block_tokens == 0 || 64 % p->block_tokens)
        return td_err_set(err, TD_INVALID,
                          "KV blocks of %u tokens: expected a power of two up to 64",
                          p->block_tokens);
    if (p->max_num_seqs == 0 || p->max_batched_tokens == 0)
        return td_err_set(err, TD_INVALID,
                          "max-num-seqs %u and max-num-batched-tokens %u: expected at least 1 each",
                          p->max_num_seqs, p->max_batched_tokens);
    if (p->max_model_len > model->spec->max_positions)
        return td_err_set(err, TD_INVALID, "max-model-len %u: the model has %u positions",
                          p->max_model_len, model->spec->max_positions);
    if (td_dtype_row_bytes(p->kv_dtype, model->spec->head_dim) == 0)
        return td_err_set(err, TD_UNSUPPORTED,
                          "KV cache of type %s: '%s' has heads of %u dimensions, expected a "
                          "multiple of %zu",
                          td_dtype_info(p->kv_dtype)->name, model->name, model->spec->head_dim,
                          td_dtype_info(p->kv_dtype)->block_elems);
    for (uint32_t i = 0; p->share && i < p->n_ranks; i++)
        if (p->share[i] == 0)
            return td_err_set(err, TD_INVALID, "rank %u has a share of 0: expected more", i);
    s = check_types(model, p, err);
    if (s)
        return s;
    plan->device = p->device;
    plan->n_ranks = p->n_ranks;
    plan->tp = tp;
    plan->pp = pp;
    plan->block_tokens = p->block_tokens;
    plan->max_num_seqs = p->max_num_seqs;
    plan->max_batched_tokens =
        p->max_batched_tokens > p->max_num_seqs ? p->max_batched_tokens : p->max_num_seqs;
    plan->kv_dtype = p->kv_dtype;
    plan->max_model_len = p->max_model_len ? p->max_model_len : model->spec->max_positions;
    return TD_OK;
}

/* Ranks whose memory differs by less than a tenth count as equal: the split follows shares, else memory. */
static void set_shares(const struct td_plan_params *p, struct td_plan *plan)
{
    uint64_t low = UINT64_MAX, high = 0;

    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        uint64_t memory = p->memory_bytes ? p->memory_bytes[i] : 0;

        low = memory < low ? memory : low;
        high = memory > high ? memory : high;
        plan->rank[i].memory_bytes = memory;
    }
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        bool uneven = low > 0 && low < high - high / 10;

        plan->rank[i].share = p->share ? p->share[i] : uneven ? plan->rank[i].memory_bytes : 1;
    }
}

static void account_rank(const struct td_plan_model *model, struct td_plan *plan, uint32_t rank)
{
    struct td_plan_rank *r = &plan->rank[rank];
    const struct td_spec *s = model->spec;
    uint32_t group = s->n_heads / s->n_kv_heads;
    size_t kv_row_bytes = td_dtype_row_bytes(plan->kv_dtype, s->head_dim);
    struct td_plan_widths widths = td_plan_widths(plan, model, rank);

    for (uint32_t l = r->layer_begin; l < r->layer_end; l++) {
        struct td_plan_slice slice = td_plan_slice(plan, model, rank, l);
        size_t kv_heads = slice.kv_end - slice.kv_begin;

        r->weight_bytes += slice_bytes(model, plan, l, &slice) + norm_bytes(s);
        if (r->tp_index > 0)
            r->replicated_bytes += norm_bytes(s);
        if (kv_heads && slice.head_begin % group) /* the first KV head began on the rank before */
            r->replicated_bytes += rows_bytes(model, plan, model->layer[l].k, s->head_dim) +
                                   rows_bytes(model, plan, model->layer[l].v, s->head_dim);
        r->kv_bytes_per_token += 2 * kv_heads * kv_row_bytes;
    }
    if (r->stage == 0) {
        r->weight_bytes += vocab_bytes(model, plan, r->vocab_end - r->vocab_begin) +
                           (size_t)s->d_model * sizeof(float);
        if (r->tp_index > 0)
            r->replicated_bytes += (size_t)s->d_model * sizeof(float);
    }
    r->buffer_bytes =
        buffer_floats(plan, model, rank) * sizeof(float) +
        td_devicekind_scratch_bytes(plan->device, plan->max_batched_tokens,
                                    max_size(s->d_model, max_size(widths.q, widths.ff)));
    r->exchanged_bytes_per_token = exchanged(plan, model, rank);
}

/* Slots that every rank can hold, for blocks outside of the device. */
static enum td_status size_offload(const struct td_plan_params *p, struct td_plan *plan,
                                   struct td_err *err)
{
    static const char *const place[TD_OFFLOAD_TIERS] = {"host memory", "its file"};

    for (uint32_t t = 0; t < TD_OFFLOAD_TIERS; t++) {
        uint64_t n = p->offload_bytes[t] ? UINT32_MAX / 16 : 0;

        for (uint32_t i = 0; i < plan->n_ranks; i++) {
            size_t block_bytes = plan->rank[i].kv_bytes_per_token * plan->block_tokens;

            if (block_bytes && p->offload_bytes[t] && p->offload_bytes[t] < block_bytes)
                return td_err_set(err, TD_TOO_LARGE,
                                  "%llu bytes for offloaded KV in %s: a block of rank %u has %zu",
                                  (unsigned long long)p->offload_bytes[t], place[t], i,
                                  block_bytes);
            if (block_bytes && p->offload_bytes[t] / block_bytes < n)
                n = p->offload_bytes[t] / block_bytes;
        }
        plan->n_slots[t] = (uint32_t)n;
        for (uint32_t i = 0; i < plan->n_ranks; i++)
            plan->rank[i].offload_bytes[t] =
                plan->rank[i].kv_bytes_per_token * plan->block_tokens * n;
    }
    return TD_OK;
}

/* Blocks that every rank can hold; at most what max_num_seqs full sequences need. */
static enum td_status size_kv(const struct td_plan_params *p, struct td_plan *plan,
                              struct td_err *err)
{
    uint64_t per_seq = (plan->max_model_len + plan->block_tokens - 1) / plan->block_tokens;
    uint64_t n_blocks = per_seq * plan->max_num_seqs;
    uint32_t tightest = 0;

    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        struct td_plan_rank *r = &plan->rank[i];
        size_t block_bytes =
            r->kv_bytes_per_token * plan->block_tokens + (i == 0 ? p->lead_block_bytes : 0);
        uint64_t offload = p->device == TD_ON_CPU /* whose memory is the host's */
                               ? r->offload_bytes[TD_OFFLOAD_MEMORY]
                               : 0;
        uint64_t lead = i == 0 ? p->lead_bytes : 0;
        uint64_t need = r->weight_bytes + r->buffer_bytes + offload + lead, room = p->kv_bytes;

        if (r->memory_bytes && need + p->kv_bytes > r->memory_bytes)
            return td_err_set(err, TD_TOO_LARGE,
                              "rank %u needs %zu bytes of weights, %zu of buffers and %llu of KV, "
                              "and has %llu of memory: use more ranks, or lower "
                              "max-num-batched-tokens, max-num-seqs or kv-offload-gib",
                              i, r->weight_bytes, r->buffer_bytes,
                              (unsigned long long)(p->kv_bytes + offload + lead),
                              (unsigned long long)r->memory_bytes);
        if (!room) /* without a bound, as much as can be counted */
            room = r->memory_bytes ? (r->memory_bytes - need) / 10 * 9 : SIZE_MAX / 4;
        if (block_bytes && room / block_bytes < n_blocks) {
            n_blocks = room / block_bytes;
            tightest = i;
        }
    }
    n_blocks = p->n_blocks ? p->n_blocks : n_blocks;
    if (n_blocks < per_seq) {
        uint64_t fits = n_blocks * plan->block_tokens;
        uint64_t lead = tightest == 0 ? p->lead_block_bytes / plan->block_tokens : 0;

        if (p->max_model_len || fits < plan->block_tokens)
            return td_err_set(err, TD_TOO_LARGE,
                              "a context of %u tokens does not fit: rank %u has room for %llu "
                              "tokens of KV (%llu bytes each%s)",
                              plan->max_model_len, tightest, (unsigned long long)fits,
                              (unsigned long long)(plan->rank[tightest].kv_bytes_per_token + lead),
                              lead ? ", with the draft model's" : "");
        plan->max_model_len = (uint32_t)fits;
    }
    plan->n_blocks = n_blocks > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)n_blocks;
    plan->lead_bytes = p->lead_bytes;
    plan->lead_kv_bytes = p->lead_block_bytes * plan->n_blocks;
    for (uint32_t i = 0; i < plan->n_ranks; i++)
        plan->rank[i].kv_bytes =
            plan->rank[i].kv_bytes_per_token * plan->block_tokens * plan->n_blocks;
    return TD_OK;
}

enum td_status td_plan_make(const struct td_plan_model *model, const struct td_plan_params *params,
                            struct td_plan *plan, struct td_err *err)
{
    uint32_t first[TD_PLAN_MAX_RANKS + 1];
    uint32_t vocab_units = ceil_div(model->spec->n_vocab, TD_PLAN_VOCAB_UNIT);
    uint64_t share[TD_PLAN_MAX_RANKS];
    enum td_status s;

    memset(plan, 0, sizeof *plan);
    s = check_params(model, params, plan, err);
    if (s)
        return s;
    set_shares(params, plan);
    s = cut_stages(model, plan, first, err);
    if (s)
        return s;
    stage_shares(plan, 0, share);
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        struct td_plan_rank *r = &plan->rank[i];

        r->stage = i / plan->tp;
        r->tp_index = i % plan->tp;
        r->layer_begin = first[r->stage];
        r->layer_end = first[r->stage + 1];
        if (r->stage == 0) {
            r->vocab_begin =
                td_plan_deal(vocab_units, share, plan->tp, r->tp_index) * TD_PLAN_VOCAB_UNIT;
            r->vocab_end =
                td_plan_deal(vocab_units, share, plan->tp, r->tp_index + 1) * TD_PLAN_VOCAB_UNIT;
            r->vocab_begin =
                r->vocab_begin > model->spec->n_vocab ? model->spec->n_vocab : r->vocab_begin;
            r->vocab_end =
                r->vocab_end > model->spec->n_vocab ? model->spec->n_vocab : r->vocab_end;
        }
    }
    plan->model_bytes = vocab_bytes(model, plan, model->spec->n_vocab) +
                        (size_t)model->spec->d_model * sizeof(float);
    for (uint32_t l = 0; l < model->spec->n_layers; l++)
        plan->model_bytes += layer_bytes(model, plan, l);
    plan->embed_bytes_per_token = (size_t)(plan->tp - 1) * model->spec->d_model * sizeof(float);
    for (uint32_t i = 0; i < plan->n_ranks; i++)
        account_rank(model, plan, i);
    s = size_offload(params, plan, err);
    return s ? s : size_kv(params, plan, err);
}
