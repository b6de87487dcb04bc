#include "shard/shard.h"

#include "shard/rope.h"
#include "shard/shard_impl.h"

#include <stdlib.h>
#include <string.h>

/* Whether all ranks of this stage have as much of every layer. */
static bool slices_are_even(const struct td_shard *s)
{
    const struct td_plan *plan = s->p.plan;
    const uint32_t first = s->rank - s->me->tp_index;

    for (uint32_t l = s->me->layer_begin; l < s->me->layer_end; l++) {
        const struct td_plan_slice a = td_plan_slice(plan, s->p.model, first, l);

        for (uint32_t r = first + 1; r < first + plan->tp; r++) {
            const struct td_plan_slice b = td_plan_slice(plan, s->p.model, r, l);

            if (a.head_end - a.head_begin != b.head_end - b.head_begin ||
                a.kv_end - a.kv_begin != b.kv_end - b.kv_begin ||
                a.ff_end - a.ff_begin != b.ff_end - b.ff_begin)
                return false;
        }
    }
    return true;
}

static enum td_status open_exchange(struct td_shard *s, struct td_err *err)
{
    const struct td_exchange_params params = {.kern = s->p.kern,
                                              .world = s->p.world,
                                              .stage = s->me->stage,
                                              .tp_index = s->me->tp_index,
                                              .tp = s->p.plan->tp,
                                              .pp = s->p.plan->pp,
                                              .nccl = s->p.nccl,
                                              .needs_nccl = s->p.needs_nccl,
                                              .in_step =
                                                  !s->p.device_is_shared && slices_are_even(s),
                                              .sum_cpus = s->p.sum_cpus};

    return td_exchange_open(&params, &s->exchange, err);
}

/* The frequencies, and room for what the device reads of a step. */
static enum td_status open_device_rows(struct td_shard *s, struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    const struct td_spec *spec = s->p.model->spec;
    const size_t n = plan->max_batched_tokens, freq_bytes = spec->head_dim / 2 * sizeof *s->freq;
    const size_t n_table =
        td_step_table_cap(plan->max_num_seqs, plan->max_model_len, plan->block_tokens);
    double *freq = malloc(freq_bytes);

    s->rows.device.bytes = (3 * n + n_table) * sizeof(uint32_t);
    s->rows.device.position = td_kern_alloc(s->p.kern, s->rows.device.bytes);
    s->freq = td_kern_alloc(s->p.kern, freq_bytes);
    if (!freq || !s->rows.device.position || !s->freq) {
        free(freq);
        return td_err_set(err, TD_NO_MEMORY, "no memory for the rows of a step");
    }
    s->rows.device.first_block = s->rows.device.position + n;
    s->rows.device.id = s->rows.device.first_block + n;
    s->rows.device.table = s->rows.device.id + n;
    td_rope_frequencies(spec, freq, &s->rope_scale);
    td_kern_copy(s->p.kern, s->freq, freq, freq_bytes);
    free(freq);
    return TD_OK;
}

/* The sums of layer i of this stage. */
static enum td_status open_sums(struct td_shard *s, uint32_t i, struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    const uint32_t layer = s->me->layer_begin + i;
    const uint32_t n_leaves[TD_SHARD_SUMS] = {
        [TD_SHARD_ATTENTION] = td_plan_attn_leaves(s->p.model, layer).n_leaves,
        [TD_SHARD_FEED_FORWARD] = td_plan_ffn_leaves(s->p.model, layer).n_leaves};
    struct td_leaf_run *runs = s->sum_runs + (size_t)i * TD_SHARD_SUMS * plan->tp;
    enum td_status st = TD_OK;

    for (uint32_t r = 0; r < plan->tp; r++) {
        struct td_plan_slice slice =
            td_plan_slice(plan, s->p.model, s->me->stage * plan->tp + r, layer);

        runs[TD_SHARD_ATTENTION * plan->tp + r] = slice.attn_run;
        runs[TD_SHARD_FEED_FORWARD * plan->tp + r] = slice.ffn_run;
    }
    for (uint32_t k = 0; !st && k < TD_SHARD_SUMS; k++)
        st = td_exchange_sum_make(s->exchange,
                                  &(struct td_tree_layout){n_leaves[k], runs + k * plan->tp},
                                  &s->sums[i * TD_SHARD_SUMS + k], err);
    return st;
}

/* What a step needs to know of every layer's split, computed once. */
static enum td_status open_layout(struct td_shard *s, struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    const struct td_spec *spec = s->p.model->spec;
    uint32_t n = s->weights.n_layers, group = spec->n_heads / spec->n_kv_heads;
    size_t rows = plan->max_batched_tokens;
    enum td_status st;

    s->kv_of_head = calloc(n, sizeof *s->kv_of_head);
    s->sums = calloc((size_t)n * TD_SHARD_SUMS, sizeof *s->sums);
    s->sum_runs = calloc((size_t)n * TD_SHARD_SUMS * plan->tp, sizeof *s->sum_runs);
    s->counts = calloc(plan->tp, sizeof *s->counts);
    s->rows.position = calloc(rows, sizeof(uint32_t));
    s->rows.first_block = calloc(rows, sizeof(uint32_t));
    s->rows.owner = calloc(rows, sizeof(uint32_t));
    s->rows.id = calloc(rows, sizeof(uint32_t));
    if (!s->kv_of_head || !s->sums || !s->sum_runs || !s->counts || !s->rows.position ||
        !s->rows.first_block || !s->rows.owner || !s->rows.id)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the layout of %u layers", n);
    if (plan->pp > 1 && !(s->ring = calloc(plan->pp, sizeof *s->ring)))
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u steps", plan->pp);
    for (uint32_t i = 0; s->ring && i < plan->pp; i++) {
        st = td_step_open(
            &s->ring[i], plan->max_batched_tokens, plan->max_num_seqs,
            td_step_table_cap(plan->max_num_seqs, plan->max_model_len, plan->block_tokens), err);

        if (st)
            return st;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct td_plan_slice *slice = &s->weights.layer[i].slice;
        uint32_t heads = slice->head_end - slice->head_begin;

        s->kv_of_head[i] = calloc(heads ? heads : 1, sizeof **s->kv_of_head);
        if (!s->kv_of_head[i])
            return td_err_set(err, TD_NO_MEMORY, "no memory for the heads of layer %u", i);
        for (uint32_t h = 0; h < heads; h++)
            s->kv_of_head[i][h] = (slice->head_begin + h) / group - slice->kv_begin;
        st = open_sums(s, i, err);
        if (st)
            return st;
    }
    return TD_OK;
}

static enum td_status open_buffers(struct td_shard *s, struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    const struct td_spec *spec = s->p.model->spec;
    struct td_shard_buffers *b = &s->buf;
    size_t n = plan->max_batched_tokens, d = spec->d_model, seqs = plan->max_num_seqs;
    size_t vocab = s->me->vocab_end - s->me->vocab_begin;
    struct td_plan_widths w = td_plan_widths(plan, s->p.model, s->rank);
    size_t floats[2] = {0, 0}, tops = seqs * TD_TOP_MAX * sizeof(struct td_top) / sizeof(float);
    bool first = s->me->stage == 0, root = s->rank == 0, alone = plan->tp == 1;
    /* What ranks, and what stages, exchange. */
    bool is_direct = td_exchange_is_direct(s->exchange), is_host = td_kern_is_host(s->p.kern);
    bool ranks_seen = !alone && !is_direct, stages_seen = plan->pp > 1 && !is_direct;
    bool has_slice = first && ranks_seen && !is_host;
    bool has_whole = root && !alone && is_direct;
    bool draws = root && (alone || is_direct) && !is_host;
    float *top, *all_top, *drawn, *measure;

    {
        struct {
            float **at;
            size_t floats;
            bool is_seen; /* by the host */
        } const all_buffers[] = {
            {&b->x, n * d, stages_seen},
            {&b->h, n * d, stages_seen || ranks_seen},
            {&b->sum, n * d, stages_seen || ranks_seen},
            {&b->q, n * w.q, false},
            {&b->attn, n * w.q, false},
            {&b->k, n * w.kv, false},
            {&b->v, n * w.kv, false},
            {&b->ff, n * w.ff, false},
            {&b->angles, n * 2 * spec->head_dim, false},
            {&b->parts, w.own_parts * n * d, ranks_seen},
            {&b->all_parts, alone ? 0 : w.all_parts * n * d, ranks_seen},
            {&b->head_in, first ? seqs * d : 0, stages_seen},
            {&b->head_out, first ? seqs * vocab : 0, false},
            {&b->slice, has_slice ? seqs * vocab : 0, true},
            {&b->gathered, root && !alone ? seqs * spec->n_vocab : 0, !is_direct},
            {&b->whole, has_whole ? seqs * spec->n_vocab : 0, false},
            {&b->logits, root ? seqs * spec->n_vocab : 0, true},
            {&top, first ? tops : 0, true},
            {&all_top, root && !alone ? plan->tp * tops : 0, true},
            {&drawn, draws ? seqs : 0, true},
            {&measure, draws ? seqs * sizeof(struct td_measure) / sizeof(float) : 0, true},
        };

        for (size_t i = 0; i < sizeof all_buffers / sizeof all_buffers[0]; i++)
            floats[all_buffers[i].is_seen] += (all_buffers[i].floats + 15) & ~(size_t)15;
        for (int i = 0; i < 2; i++)
            b->bytes[i] = floats[i] * sizeof(float);
        b->memory[0] = td_kern_alloc(s->p.kern, b->bytes[0]);
        b->memory[1] = td_kern_alloc_shared(s->p.kern, b->bytes[1]);
        if (!b->memory[0] || !b->memory[1])
            return td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of step buffers",
                              b->bytes[0] + b->bytes[1]);
        floats[0] = floats[1] = 0;
        for (size_t i = 0; i < sizeof all_buffers / sizeof all_buffers[0]; i++) {
            const bool is_seen = all_buffers[i].is_seen;

            *all_buffers[i].at =
                all_buffers[i].floats ? b->memory[is_seen] + floats[is_seen] : NULL;
            floats[is_seen] += (all_buffers[i].floats + 15) & ~(size_t)15;
        }
    }
    b->own_parts = w.own_parts;
    b->n_parts = w.all_parts;
    b->top = (struct td_top *)(void *)top;
    b->all_top = (struct td_top *)(void *)all_top;
    b->drawn = (uint32_t *)(void *)drawn;
    b->measure = (struct td_measure *)(void *)measure;
    return TD_OK;
}

static enum td_status open_offload(struct td_shard *s, struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    struct td_offload_params params = {.slot_bytes = s->me->kv_bytes_per_token * plan->block_tokens,
                                       .dir = s->p.offload_dir};

    if (plan->n_slots[TD_OFFLOAD_MEMORY] + plan->n_slots[TD_OFFLOAD_FILE] == 0)
        return TD_OK;
    memcpy(params.n_slots, plan->n_slots, sizeof params.n_slots);
    return td_offload_open(&params, &s->offload, err);
}

enum td_status td_shard_open(const struct td_shard_params *params, struct td_shard **out,
                             struct td_err *err)
{
    struct td_shard *s = calloc(1, sizeof *s);
    enum td_status st;

    if (!s)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a shard");
    s->p = *params;
    s->rank = td_comm_rank(params->world);
    s->me = &params->plan->rank[s->rank];
    /* Groups first: opening them is collective, and a rank that cannot load must not leave the others waiting in it. */
    st = open_exchange(s, err);
    st = st ? st
            : td_weights_load(&s->weights, params->kern, params->ck, params->plan, params->model,
                              s->rank, params->progress, params->user, err);
    st = st ? st : td_kv_open(&s->kv, params->kern, params->plan, params->model, s->rank, err);
    st = st ? st : open_offload(s, err);
    st = st ? st : open_layout(s, err);
    st = st ? st : open_device_rows(s, err);
    st = st ? st : open_buffers(s, err);
    st =
        st ? st
           : td_exchange_choose_sums(s->exchange, s->p.gpu_sums, s->sums,
                                     params->model->spec->d_model, params->plan->max_batched_tokens,
                                     s->buf.parts, s->buf.all_parts, s->buf.sum, err);
    if (st) {
        td_shard_close(s);
        return st;
    }
    *out = s;
    return TD_OK;
}

void td_shard_close(struct td_shard *s)
{
    if (!s)
        return;
    td_exchange_close(s->exchange);
    td_kern_free(s->p.kern, s->buf.memory[0], s->buf.bytes[0]);
    td_kern_free_shared(s->p.kern, s->buf.memory[1], s->buf.bytes[1]);
    td_kern_free(s->p.kern, s->rows.device.position, s->rows.device.bytes);
    td_kern_free(s->p.kern, s->freq, s->p.model->spec->head_dim / 2 * sizeof *s->freq);
    for (uint32_t i = 0; s->kv_of_head && i < s->weights.n_layers; i++)
        free(s->kv_of_head[i]);
    free(s->kv_of_head);
    free(s->sums);
    free(s->sum_runs);
    free(s->counts);
    for (uint32_t i = 0; s->ring && i < s->p.plan->pp; i++)
        td_step_close(&s->ring[i]);
    free(s->ring);
    free(s->rows.position);
    free(s->rows.first_block);
    free(s->rows.owner);
    free(s->rows.id);
    td_offload_close(s->offload);
    td_kv_close(&s->kv);
    td_weights_unload(&s->weights);
    free(s);
}

bool td_shard_draws(const struct td_shard *s)
{
    return s->buf.drawn && td_kern_draws(s->p.kern, s->p.model->spec->n_vocab);
}

void td_shard_stats(const struct td_shard *s, struct td_shard_stats *out)
{
    struct td_comm_stats exchanged;

    td_exchange_stats(s->exchange, &exchanged);
    *out = (struct td_shard_stats){.weight_bytes = td_weights_bytes(&s->weights),
                                   .kv_bytes = s->kv.bytes,
                                   .buffer_bytes = s->buf.bytes[0] + s->buf.bytes[1],
                                   .exchanged_bytes = exchanged.sent_bytes,
                                   .wait_ns = exchanged.wait_ns,
                                   .n_exchanges = exchanged.n_ops};
}

const char *td_shard_gpu_sums(const struct td_shard *s)
{
    return td_exchange_chosen_sums(s->exchange);
}

const char *td_shard_transport(const struct td_shard *s)
{
    return td_exchange_transport(s->exchange);
}

const char *td_shard_nccl_refused(const struct td_shard *s)
{
    return td_exchange_refused(s->exchange);
}

void td_shard_set_sums(struct td_shard *s, const struct td_sum_choices *choices,
                       enum td_exchange_dtype dtype)
{
    td_comm_set_exchange(td_exchange_stage(s->exchange), dtype);
    td_comm_set_sum_choices(td_exchange_stage(s->exchange), choices);
}

void td_shard_set_deadline(struct td_shard *s, uint64_t op_limit_ns)
{
    td_exchange_set_deadline(s->exchange, op_limit_ns);
}

static enum td_status move_out(struct td_shard *s, const struct td_step_move *move,
                               struct td_err *err)
{
    uint8_t *to = td_offload_begin(s->offload, move->to);
    enum td_status st = TD_OK;

    for (uint32_t i = 0; !st && i < s->kv.n_layers; i++) {
        st = td_kern_kv_save(s->p.kern, &s->kv.layer[i], move->from, to, err);
        to += td_kern_kv_block_bytes(&s->kv.layer[i]);
    }
    st = st ? st : td_exchange_sync(s->exchange, err);
    return st ? st : td_offload_put(s->offload, move->to, err);
}

static enum td_status move_in(struct td_shard *s, const struct td_step_move *move,
                              struct td_err *err)
{
    const void *bytes;
    const uint8_t *from;
    enum td_status st = td_offload_get(s->offload, move->from, &bytes, err);

    from = st ? NULL : bytes;
    for (uint32_t i = 0; !st && i < s->kv.n_layers; i++) {
        st = td_kern_kv_restore(s->p.kern, &s->kv.layer[i], move->to, from, err);
        from += td_kern_kv_block_bytes(&s->kv.layer[i]);
    }
    return st ? st : td_exchange_sync(s->exchange, err);
}

static enum td_status move_down(struct td_shard *s, const struct td_step_move *move,
                                struct td_err *err)
{
    void *to = td_offload_begin(s->offload, move->to);
    const void *from;
    enum td_status st = td_offload_get(s->offload, move->from, &from, err);

    if (st)
        return st;
    memcpy(to, from, s->me->kv_bytes_per_token * s->p.plan->block_tokens);
    return td_offload_put(s->offload, move->to, err);
}

enum td_status td_shard_move(struct td_shard *s, const struct td_step_move *move,
                             struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    uint32_t n_slots = plan->n_slots[TD_OFFLOAD_MEMORY] + plan->n_slots[TD_OFFLOAD_FILE];
    uint32_t n_from = move->kind == TD_MOVE_OUT ? plan->n_blocks : n_slots;
    uint32_t n_to = move->kind == TD_MOVE_IN ? plan->n_blocks : n_slots;

    if (move->from >= n_from || move->to >= n_to)
        return td_err_set(err, TD_INVALID, "move %u from place %u of %u to place %u of %u",
                          move->kind, move->from, n_from, move->to, n_to);
    if (move->kind == TD_MOVE_OUT)
        return move_out(s, move, err);
    return move->kind == TD_MOVE_IN ? move_in(s, move, err) : move_down(s, move, err);
}
