/* One step through this rank's layers: from token ids to logits. The order of every sum is fixed by the model. */
#include "comm/sumthread.h"
#include "shard/shard_impl.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

/* Rows of a step whose layers are recorded: of more, beginning them costs little beside them. */
enum { RECORDED_ROWS = 64 };

_Static_assert((int)TD_STEP_MAX_PARTS <= (int)TD_SUMTHREAD_DEPTH,
               "a sum of each part is under way");

/* Neighbouring rows of a step that go through the layers together: all, or those of one part. */
struct rows {
    uint32_t n;
    float *x, *sum;   /* [n x d_model] */
    float *angles;    /* [n x 2 x head_dim] */
    float *parts;     /* [own parts x n x d_model] */
    float *all_parts; /* [parts of all ranks x n x d_model]; NULL for tp 1 */
    struct td_kv_rows kv;
    const float *pending; /* [n x d_model] to be added to x before it is read; NULL: nothing */
    uint64_t sum_number;  /* of the sum that `pending` is read from; 0: it is there */
};

/* One step on its way through the shard. */
struct pass {
    struct td_shard *s;
    const struct td_step *step;
    uint32_t n;                /* rows */
    uint32_t n_logits, n_tops; /* that want their logits, and the largest of them */
    uint32_t n_wanted;         /* that want anything */
    struct rows rows[TD_STEP_MAX_PARTS];
    uint32_t n_parts; /* of the step */
    struct td_err *err;
};

static uint32_t owner_of(const struct td_shard *s, uint32_t token)
{
    uint32_t i = 0;

    while (token >= s->p.plan->rank[i].vocab_end)
        i++;
    return i;
}

static enum td_status prepare_rows(struct pass *p)
{
    struct td_shard *s = p->s;
    const struct td_step *step = p->step;
    const struct td_plan *plan = s->p.plan;
    uint32_t most_keys = 0, n_seqs = 0;

    if (step->n_rows == 0 || step->n_rows > plan->max_batched_tokens)
        return td_err_set(p->err, TD_INVALID, "a step of %u rows: expected 1 to %u", step->n_rows,
                          plan->max_batched_tokens);
    if (td_step_n_parts(step->n_rows, step->part_rows) == UINT32_MAX)
        return td_err_set(p->err, TD_INVALID,
                          "a step of %u rows cut after every %u: expected 2 to %d parts",
                          step->n_rows, step->part_rows, TD_STEP_MAX_PARTS);
    p->n_logits = td_step_n_want(step, TD_WANT_LOGITS);
    p->n_tops = td_step_n_want(step, TD_WANT_TOP);
    p->n_wanted = td_step_n_wanted(step);
    if (p->n_wanted > plan->max_num_seqs)
        return td_err_set(p->err, TD_INVALID, "%u rows want logits: expected at most %u",
                          p->n_wanted, plan->max_num_seqs);
    if (p->n_tops && (step->n_top == 0 || step->n_top > TD_TOP_MAX))
        return td_err_set(p->err, TD_INVALID, "rows want the %u largest logits: expected 1 to %d",
                          step->n_top, TD_TOP_MAX);
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct td_step_row *row = &step->rows[i];
        const struct td_step_seq *seq = &step->seqs[row->seq];

        if (row->token >= s->p.model->spec->n_vocab)
            return td_err_set(p->err, TD_INVALID, "row %u has token %u of a vocabulary of %u", i,
                              row->token, s->p.model->spec->n_vocab);
        if (row->position / plan->block_tokens >= seq->n_blocks)
            return td_err_set(p->err, TD_INVALID, "row %u is at position %u, past its %u blocks", i,
                              row->position, seq->n_blocks);
        s->rows.position[i] = row->position;
        s->rows.first_block[i] = seq->first_block;
        most_keys = row->position + 1 > most_keys ? row->position + 1 : most_keys;
        n_seqs += i == 0 || row->seq != step->rows[i - 1].seq;
    }
    for (uint32_t i = 0; i < step->n_table; i++)
        if (step->table[i] >= plan->n_blocks)
            return td_err_set(p->err, TD_INVALID, "a step names KV block %u of %u", step->table[i],
                              plan->n_blocks);
    p->n = step->n_rows;
    s->rows.n_seqs = n_seqs;
    s->rows.most_keys = TD_KERN_CHUNK_KEYS; /* a bound that few steps have of their own */
    while (s->rows.most_keys < most_keys)
        s->rows.most_keys *= 2;
    td_kern_copy(s->p.kern, s->rows.device.position, s->rows.position, p->n * sizeof(uint32_t));
    td_kern_copy(s->p.kern, s->rows.device.first_block, s->rows.first_block,
                 p->n * sizeof(uint32_t));
    td_kern_copy(s->p.kern, s->rows.device.table, step->table, step->n_table * sizeof(uint32_t));
    return TD_OK;
}

/* The first n of rows.id, where the device reads them. */
static const uint32_t *device_ids(struct pass *p, uint32_t n)
{
    struct td_shard_rows *rows = &p->s->rows;

    td_kern_copy(p->s->p.kern, rows->device.id, rows->id, n * sizeof *rows->id);
    return rows->device.id;
}

/* x = embedding rows. Every rank of the stage looks up the rows it owns and gives them to the others. */
static enum td_status embed(struct pass *p)
{
    struct td_shard *s = p->s;
    struct td_shard_buffers *b = &s->buf;
    const uint32_t d = s->p.model->spec->d_model;
    uint32_t tp = s->p.plan->tp, me = s->me->tp_index, n_own = 0;
    uint32_t at[TD_PLAN_MAX_RANKS], before = 0;
    enum td_status st;

    memset(s->counts, 0, tp * sizeof *s->counts);
    for (uint32_t i = 0; i < p->n; i++) {
        uint32_t token = p->step->rows[i].token, owner = owner_of(s, token);

        s->rows.owner[i] = owner;
        s->counts[owner] += d * sizeof(float);
        if (owner == me)
            s->rows.id[n_own++] = token - s->me->vocab_begin;
    }
    if (tp == 1)
        return td_kern_rows(s->p.kern, s->weights.embed, device_ids(p, n_own), p->n, b->x, p->err);
    if (n_own) {
        st = td_kern_rows(s->p.kern, s->weights.embed, device_ids(p, n_own), n_own, b->h, p->err);
        if (st)
            return st;
    }
    st = td_exchange_all_gather(s->exchange, b->h, s->counts, b->sum, p->err);
    if (st)
        return st;
    for (uint32_t r = 0; r < tp; r++) {
        at[r] = before;
        before += (uint32_t)(s->counts[r] / (d * sizeof(float)));
    }
    for (uint32_t i = 0; i < p->n; i++)
        s->rows.id[i] = at[s->rows.owner[i]]++;
    return td_kern_gather(s->p.kern, b->sum, device_ids(p, p->n), p->n, d, b->x, p->err);
}

/* Until what waits to be added to x is there. */
static enum td_status await_sum(struct pass *p, struct rows *r)
{
    uint64_t number = r->sum_number;

    r->sum_number = 0;
    return td_exchange_await(p->s->exchange, number, p->err);
}

/* Adds to x what waits for it. */
static enum td_status settle(struct pass *p, struct rows *r)
{
    const float *add = r->pending;

    r->pending = NULL;
    return add ? td_kern_add(p->s->p.kern, r->x, add, (size_t)r->n * p->s->p.model->spec->d_model,
                             p->err)
               : TD_OK;
}

/* A linear step over the residual stream: x += what waits for it, then matrices over norm(x). */
static enum td_status from_residual(struct pass *p, struct rows *r, const float *norm,
                                    const struct td_kern_output *outs, uint32_t n_outs)
{
    struct td_kern_input in = {
        .x = r->x, .add = r->pending, .norm = norm, .eps = p->s->p.model->spec->rms_eps};

    r->pending = NULL;
    return td_kern_linear(p->s->p.kern, &in, r->n, outs, n_outs, p->err);
}

/* The sum of a row-parallel matrix [d_model x cols] over all ranks of the stage, which then waits to be added to x. `m` is
 * NULL where this rank owns no leaf. */
static enum td_status row_parallel(struct pass *p, struct rows *r, const struct td_matrix *m,
                                   const float *in, const struct td_exchange_sum *sum)
{
    struct td_shard *s = p->s;
    size_t n_floats = (size_t)r->n * s->p.model->spec->d_model;
    enum td_status st = m ? td_kern_matmul(s->p.kern, m, in, r->n, r->parts, p->err)
                          : settle(p, r); /* nobody took it along */

    r->pending = r->parts;
    if (st || s->p.plan->tp == 1)
        return st;
    r->pending = r->sum;
    return td_exchange_tree_sum(s->exchange, sum, r->parts, n_floats, r->all_parts, r->sum,
                                p->n_parts > 1, &r->sum_number, p->err);
}

static enum td_status attention(struct pass *p, struct rows *r, uint32_t i)
{
    struct td_shard *s = p->s;
    struct td_shard_buffers *b = &s->buf;
    struct td_kern *k = s->p.kern;
    const struct td_spec *spec = s->p.model->spec;
    const struct td_layer_weights *w = &s->weights.layer[i];
    uint32_t heads = w->slice.head_end - w->slice.head_begin;
    const struct td_kern_output qkv[] = {
        {.m = w->q, .out = b->q}, {.m = w->k, .out = b->k}, {.m = w->v, .out = b->v}};
    struct td_rope_kv in = {.q = b->q,
                            .k = b->k,
                            .v = b->v,
                            .angles = r->angles,
                            .q_norm = w->q_norm,
                            .k_norm = w->k_norm,
                            .n_heads = heads,
                            .eps = spec->rms_eps,
                            .interleaved = spec->rope.interleaved};
    const struct td_attention how = {.q = b->q,
                                     .out = b->attn,
                                     .n_heads = heads,
                                     .kv_of_head = s->kv_of_head[i],
                                     .scale = 1.0f / sqrtf((float)spec->head_dim),
                                     .window = td_spec_window(spec, s->weights.layer_begin + i)};
    enum td_status st = await_sum(p, r);

    if (!st && heads) {
        st = from_residual(p, r, w->attn_norm, qkv, 3);
        st = st ? st : td_kern_rope_kv(k, &s->kv.layer[i], &r->kv, r->n, &in, p->err);
        st = st ? st : td_kern_attention(k, &s->kv.layer[i], &r->kv, r->n, &how, p->err);
    }
    return st ? st
              : row_parallel(p, r, w->o, b->attn, &s->sums[i * TD_SHARD_SUMS + TD_SHARD_ATTENTION]);
}

static enum td_status feed_forward(struct pass *p, struct rows *r, uint32_t i)
{
    struct td_shard *s = p->s;
    struct td_shard_buffers *b = &s->buf;
    const struct td_layer_weights *w = &s->weights.layer[i];
    const struct td_kern_output gated = {.m = w->up, .gate = w->gate, .out = b->ff};
    enum td_status st = await_sum(p, r);

    if (!st && w->slice.ff_end > w->slice.ff_begin)
        st = from_residual(p, r, w->ffn_norm, &gated, 1);
    return st ? st
              : row_parallel(p, r, w->down, b->ff,
                             &s->sums[i * TD_SHARD_SUMS + TD_SHARD_FEED_FORWARD]);
}

/* Copies the rows that want something: those of whole logits first, then those of the largest, of a draw, of an id. */
static enum td_status wanted_rows(struct pass *p, const float *x, float *out)
{
    struct td_shard *s = p->s;
    uint32_t n = 0;

    for (uint32_t want = TD_WANT_LOGITS; want < TD_WANTS; want++)
        for (uint32_t i = 0; i < p->n; i++)
            if (p->step->rows[i].want == want)
                s->rows.id[n++] = i;
    return td_kern_gather(s->p.kern, x, device_ids(p, n), n, s->p.model->spec->d_model, out,
                          p->err);
}

/* Rows of every rank's slice, of which `slice` is this one's, meet as whole rows in `out` [n x n_vocab] on rank 0. */
static enum td_status gather_rows(struct pass *p, const float *slice, uint32_t n, float *out)
{
    struct td_shard *s = p->s;
    const struct td_plan *plan = s->p.plan;
    const size_t n_vocab = s->p.model->spec->n_vocab;
    const float *from = s->buf.gathered;
    enum td_status st;

    if (n == 0)
        return TD_OK;
    for (uint32_t r = 0; r < plan->tp; r++)
        s->counts[r] =
            (size_t)n * (plan->rank[r].vocab_end - plan->rank[r].vocab_begin) * sizeof(float);
    if (s->buf.slice) {
        td_kern_copy(s->p.kern, s->buf.slice, slice, s->counts[s->me->tp_index]);
        slice = s->buf.slice;
    }
    st = td_exchange_gather(s->exchange, slice, s->counts, s->buf.gathered, p->err);
    for (uint32_t r = 0; !st && s->rank == 0 && r < plan->tp; r++) {
        const size_t bytes = s->counts[r] / n;

        td_kern_copy_rows(s->p.kern, out + plan->rank[r].vocab_begin, n_vocab * sizeof(float), from,
                          bytes, n, bytes);
        from += s->counts[r] / sizeof(float);
    }
    return st;
}

/* The largest logits of n_tops rows of this rank's slice [n_tops x width]; those of all slices meet on rank 0. */
static enum td_status gather_top(struct pass *p, const float *slice, uint32_t width)
{
    struct td_shard *s = p->s;
    struct td_top *mine = s->buf.top, *other = s->buf.all_top;
    uint32_t tp = s->p.plan->tp, n_top = p->step->n_top;
    size_t n = (size_t)p->n_tops * n_top;
    enum td_status st = td_kern_top(s->p.kern, slice, p->n_tops, width, n_top, mine, p->err);

    st = st ? st : td_exchange_sync(s->exchange, p->err);
    if (st || tp == 1)
        return st;
    for (size_t i = 0; i < n; i++)
        mine[i].id += mine[i].id == UINT32_MAX ? 0 : s->me->vocab_begin;
    for (uint32_t r = 0; r < tp; r++)
        s->counts[r] = n * sizeof *mine;
    st = td_comm_gather(td_exchange_stage(s->exchange), 0, mine, s->counts, s->buf.all_top, p->err);
    if (st || s->rank != 0)
        return st;
    other += n; /* rank 0's own are in `mine` already */
    for (uint32_t r = 1; r < tp; r++)
        for (uint32_t i = 0; i < p->n_tops; i++, other += n_top)
            td_top_merge(mine + (size_t)i * n_top, other, n_top);
    return TD_OK;
}

/* The ids that draws give, and where somebody asks for log probabilities, what they need of the rows with the largest logits [n_tops x
 * width], of those with draws, which follow, and of those that ask about ids, behind them. Other ranks give their slices. */
static enum td_status draw(struct pass *p, const float *tops, uint32_t width)
{
    const struct td_step *step = p->step;
    struct td_kern *k = p->s->p.kern;
    const struct td_shard_buffers *b = &p->s->buf;
    const uint32_t n_measured = step->logprobs ? p->n_tops : 0, n = step->n_draws + step->n_asked;
    const float *draws = tops + (size_t)p->n_tops * width;
    enum td_status st = TD_OK;

    if (p->s->p.plan->tp > 1) {
        const float *slices = n_measured ? tops : draws;

        if (!td_exchange_is_direct(p->s->exchange))
            return td_err_set(p->err, TD_INVALID, "rows want draws of logits that %u ranks have",
                              p->s->p.plan->tp);
        st = gather_rows(p, slices, n_measured + n, b->whole);
        if (st || p->s->rank != 0)
            return st;
        width = p->s->p.model->spec->n_vocab;
        tops = b->whole;
        draws = tops + (size_t)n_measured * width;
    }
    if (step->n_draws)
        st = td_kern_draw(k, draws, step->n_draws, width, step->draws, b->drawn, p->err);
    if (st || step->logprobs == 0)
        return st;
    memcpy(b->drawn + step->n_draws, step->asked, step->n_asked * sizeof *b->drawn);
    st = td_kern_measure(k, tops, p->n_tops, width, NULL, b->measure, p->err);
    st = st ? st : td_kern_measure(k, draws, n, width, b->drawn, b->measure + p->n_tops, p->err);
    if (st || step->logprobs == 1 || n == 0)
        return st;
    return td_kern_top(k, draws, n, width, step->logprobs - 1,
                       b->top + (size_t)p->n_tops * step->n_top, p->err);
}

/* Final norm and head on stage 0, over rows in the order of wanted_rows. */
static enum td_status head(struct pass *p)
{
    struct td_shard *s = p->s;
    struct td_shard_buffers *b = &s->buf;
    const struct td_plan *plan = s->p.plan;
    uint32_t width = s->me->vocab_end - s->me->vocab_begin;
    /* Where the host sees everything, and there is no other slice, the head writes where the logits are looked for. */
    const bool direct = plan->tp == 1 && td_kern_is_host(s->p.kern);
    float *slice = direct ? b->logits : b->head_out;
    const struct td_kern_input in = {
        .x = b->head_in, .norm = s->weights.final_norm, .eps = s->p.model->spec->rms_eps};
    const struct td_kern_output out = {.m = s->weights.head, .out = slice};
    enum td_status st = TD_OK;

    if (s->weights.head)
        st = td_kern_linear(s->p.kern, &in, p->n_wanted, &out, 1, p->err);
    if (!st && p->n_logits && plan->tp > 1)
        st = gather_rows(p, slice, p->n_logits, b->logits);
    else if (!st && !direct)
        td_kern_copy(s->p.kern, b->logits, slice, (size_t)p->n_logits * width * sizeof(float));
    if (!st && p->n_tops)
        st = gather_top(p, slice + (size_t)p->n_logits * width, width);
    if (!st && (p->step->n_draws || p->step->logprobs))
        st = draw(p, slice + (size_t)p->n_logits * width, width);
    return st;
}

/* The head over head_in, and on rank 0 what is told of it. */
static enum td_status finish(struct pass *p, struct td_step_result *result)
{
    struct td_shard *s = p->s;
    enum td_status st = head(p);

    st = st ? st : td_exchange_sync(s->exchange, p->err); /* the host reads them next */
    if (!st && s->rank == 0) {
        result->logits = p->n_logits ? s->buf.logits : NULL;
        result->top = p->n_tops ? s->buf.top : NULL;
        result->n_top = p->step->n_top;
        result->drawn = s->buf.drawn;
        if (p->step->logprobs) {
            result->top_measure = s->buf.measure;
            result->draw_measure = s->buf.measure + p->n_tops;
            result->draw_top = s->buf.top + (size_t)p->n_tops * p->step->n_top;
            result->n_draw_top = p->step->logprobs - 1;
            result->asked_measure = result->draw_measure + p->step->n_draws;
            result->asked_top = result->draw_top + (size_t)p->step->n_draws * result->n_draw_top;
        }
    }
    return st;
}

/* Rows `first` .. first + n - 1 of the step, with their share of the buffers. */
static struct rows rows_from(const struct pass *p, uint32_t first, uint32_t n)
{
    const struct td_shard *s = p->s;
    const struct td_shard_buffers *b = &s->buf;
    size_t d = s->p.model->spec->d_model, at = first * d;

    return (struct rows){.n = n,
                         .x = b->x + at,
                         .sum = b->sum + at,
                         .angles = b->angles + (size_t)first * 2 * s->p.model->spec->head_dim,
                         .parts = b->parts + b->own_parts * at,
                         .all_parts = b->all_parts ? b->all_parts + b->n_parts * at : NULL,
                         .kv = {s->rows.device.position + first, s->rows.device.first_block + first,
                                s->rows.device.table, s->rows.most_keys, s->rows.n_seqs}};
}

/* A step in parts needs ranks to exchange with, through the host: the device does one thing after the other. */
static void cut_rows(struct pass *p)
{
    struct td_shard *s = p->s;
    uint32_t each =
        s->p.plan->tp > 1 && !td_exchange_is_direct(s->exchange) ? p->step->part_rows : 0;

    p->n_parts = td_step_n_parts(p->n, each);
    each = each ? each : p->n;
    for (uint32_t k = 0; k < p->n_parts; k++)
        p->rows[k] = rows_from(p, k * each, k + 1 < p->n_parts ? each : p->n - k * each);
}

/* What no step of few rows differs in from another under the same key, but in what its buffers hold. 0: it is not recorded, since
 * the host takes part in what ranks exchange inside of layers. */
static uint64_t layers_key(const struct pass *p)
{
    const struct td_shard *s = p->s;
    const struct {
        const float *x, *sum;
        uint32_t n, most_keys;
    } key = {s->buf.x, s->buf.sum, p->n, s->rows.most_keys};

    return td_exchange_records(s->exchange) && p->n <= RECORDED_ROWS
               ? XXH3_64bits(&key, sizeof key) | 1
               : 0;
}

/* Parts go one after the other in every layer: rows of the same sequence attend to keys and values of that layer that came with an
 * earlier part, and the sums of all ranks come in one order. */
static enum td_status all_layers(struct pass *p)
{
    struct td_shard *s = p->s;
    enum td_status st = td_kern_rope_angles(s->p.kern, s->freq, s->p.model->spec->head_dim,
                                            s->rope_scale, s->p.model->spec->rope.interleaved,
                                            s->rows.device.position, p->n, s->buf.angles, p->err);

    cut_rows(p);
    for (uint32_t i = 0; !st && i < s->weights.n_layers; i++) {
        for (uint32_t k = 0; !st && k < p->n_parts; k++)
            st = attention(p, &p->rows[k], i);
        for (uint32_t k = 0; !st && k < p->n_parts; k++)
            st = feed_forward(p, &p->rows[k], i);
    }
    for (uint32_t k = 0; !st && k < p->n_parts; k++) {
        st = await_sum(p, &p->rows[k]);
        st = st ? st : settle(p, &p->rows[k]);
    }
    if (st) /* what is under way still uses the group and the buffers */
        td_exchange_await_all(s->exchange);
    return st;
}

/* Those of all layers. */
static void count_sums(struct pass *p)
{
    const struct td_shard *s = p->s;

    for (uint32_t i = 0; i < s->weights.n_layers * TD_SHARD_SUMS; i++)
        td_exchange_count(s->exchange, &s->sums[i], (size_t)p->n * s->p.model->spec->d_model);
}

static enum td_status layers(struct pass *p)
{
    struct td_kern *kern = p->s->p.kern;
    const uint64_t key = layers_key(p);
    enum td_status st;

    if (!key)
        return all_layers(p);
    if (td_kern_replay(kern, key)) {
        count_sums(p);
        return TD_OK;
    }
    td_kern_record(kern, key);
    st = all_layers(p);
    td_kern_record_end(kern, st == TD_OK);
    return st;
}

/* ---- one stage ---- */

static enum td_status run_whole(struct td_shard *s, const struct td_step *step,
                                struct td_step_result *result, struct td_err *err)
{
    struct pass p = {.s = s, .step = step, .err = err};
    enum td_status st = prepare_rows(&p);

    st = st ? st : embed(&p);
    st = st ? st : layers(&p);
    if (st || p.n_wanted == 0)
        return st ? st
                  : td_exchange_sync(s->exchange,
                                     err); /* a step has ended when its time is taken */
    st = wanted_rows(&p, s->buf.x, s->buf.head_in);
    return st ? st : finish(&p, result);
}

/* ---- a pipeline of stages ---- */

/* The step that began so many turns ago. */
static const struct td_step *begun(const struct td_shard *s, uint32_t turns_ago)
{
    return &s->ring[(s->n_turns - 1 - turns_ago + s->p.plan->pp) % s->p.plan->pp];
}

static size_t row_bytes(const struct td_shard *s, uint32_t n)
{
    return (size_t)n * s->p.model->spec->d_model * sizeof(float);
}

enum td_status td_shard_front(struct td_shard *s, const struct td_step *step, struct td_err *err)
{
    struct pass p = {.s = s, .step = step, .err = err};
    enum td_status st;

    if (s->me->stage != 0 || step->n_rows == 0)
        return TD_OK;
    st = prepare_rows(&p);
    st = st ? st : embed(&p);
    return st ? st : layers(&p);
}

/* The rows that this rank hands on and those that it takes over, at the same time as all others. */
static enum td_status hand_on(struct td_shard *s, struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    uint32_t stage = s->me->stage, last = plan->pp - 1;
    const struct td_step *done = begun(s, stage), *leaving = begun(s, last);
    uint32_t to = stage == last ? s->me->tp_index : s->rank + plan->tp;
    uint32_t from = stage == 0 ? s->rank + last * plan->tp : s->rank - plan->tp;
    size_t out_bytes = row_bytes(s, done->n_rows);
    size_t in_bytes =
        stage ? row_bytes(s, begun(s, stage - 1)->n_rows) : row_bytes(s, td_step_n_wanted(leaving));
    float *out = s->buf.x, *in = stage ? s->buf.h : s->buf.head_in;
    enum td_status st = TD_OK;

    if (stage == last) {
        struct pass p = {.s = s, .step = leaving, .n = leaving->n_rows, .err = err};

        out = s->buf.sum;
        out_bytes = row_bytes(s, td_step_n_wanted(leaving));
        st = wanted_rows(&p, s->buf.x, out);
    }
    st = st ? st : td_exchange_sendrecv(s->exchange, to, out, out_bytes, from, in, in_bytes, err);
    if (!st && stage) {
        s->buf.h = s->buf.x;
        s->buf.x = in;
    }
    return st;
}

enum td_status td_shard_shift(struct td_shard *s, const struct td_step *step,
                              struct td_step_result *result, struct td_err *err)
{
    const struct td_plan *plan = s->p.plan;
    struct td_step *newest = &s->ring[s->n_turns++ % plan->pp];
    struct pass p = {.s = s, .err = err};
    enum td_status st;

    *result = (struct td_step_result){0};
    td_step_reset(newest, TD_STEP_FLUSH, 0);
    if (step)
        td_step_copy(newest, step);
    st = hand_on(s, err);
    p.step = begun(s, plan->pp - 1);
    if (st || p.step->kind != TD_STEP_RUN)
        return st;
    result->is_complete = true;
    result->number = p.step->number;
    p.n = p.step->n_rows;
    p.n_logits = td_step_n_want(p.step, TD_WANT_LOGITS);
    p.n_tops = td_step_n_want(p.step, TD_WANT_TOP);
    p.n_wanted = td_step_n_wanted(p.step);
    return s->me->stage == 0 && p.n_wanted ? finish(&p, result) : TD_OK;
}

const struct td_step *td_shard_due(const struct td_shard *s)
{
    const struct td_step *step = s->me->stage ? begun(s, s->me->stage - 1) : NULL;

    return step && step->kind == TD_STEP_RUN ? step : NULL;
}

enum td_status td_shard_back(struct td_shard *s, struct td_err *err)
{
    struct pass p = {.s = s, .step = td_shard_due(s), .err = err};
    enum td_status st;

    if (!p.step || p.step->n_rows == 0)
        return TD_OK;
    st = prepare_rows(&p);
    return st ? st : layers(&p);
}

enum td_status td_shard_step(struct td_shard *s, const struct td_step *step,
                             struct td_step_result *result, struct td_err *err)
{
    enum td_status st = TD_OK;

    *result = (struct td_step_result){0};
    if (s->p.plan->pp == 1) {
        st = run_whole(s, step, result, err);
        result->is_complete = true;
        result->number = step->number;
        return st;
    }
    st = td_shard_front(s, step, err);
    for (uint32_t turn = 0; !st && turn < s->p.plan->pp; turn++) {
        st = td_shard_shift(s, turn == 0 ? step : NULL, result, err);
        st = st ? st : td_shard_back(s, err);
    }
    return st;
}
