#include "shard/predict.h"

#include "comm/comm.h"
#include "kernels/top.h"
#include "shard/predict_impl.h"
#include "shard/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What the CPU kernels reach, as shares of `tensord bench machine`'s probes.
 *
 * memory: one row at a time, without the arithmetic that is not hidden (HIDDEN). ops: many rows, without attention. Fitted to
 * tests/bench/reports/cpu-xeon-avx512-2026-11-22.md (1B parameters, two threads: decode at 544, prompts of 512, batches of 16,
 * with its single-kernel figures) and to `tensord bench` of the same shape with prompts of 128 on that machine. Types that
 * neither has measured stand as the one of their family that it has, with its name in the last column. */
static const struct td_predict_share table[TD_N_DTYPES] = {
    [TD_F32] = {0.96, 0.65, 0.65, TD_RATE_F32},   /* BF16 */
    [TD_F16] = {0.96, 0.65, 0.65, TD_RATE_F32},   /* BF16 */
    [TD_BF16] = {0.96, 0.65, 0.65, TD_RATE_BF16}, /* measured: multiplied as F32 on that machine */
    [TD_F8_E4M3] = {0.83, 0.65, 0.65, TD_RATE_F32}, /* Q4_K, BF16 */
    [TD_Q8_0] = {0.89, 0.42, 0.66, TD_RATE_INT8},   /* measured */
    [TD_Q4_0] = {0.92, 0.46, 0.64, TD_RATE_INT8},   /* measured */
    [TD_Q4_1] = {0.92, 0.46, 0.64, TD_RATE_INT8},   /* Q4_0 */
    [TD_Q5_0] = {0.92, 0.46, 0.64, TD_RATE_INT8},   /* Q4_0 */
    [TD_Q5_1] = {0.92, 0.46, 0.64, TD_RATE_INT8},   /* Q4_0 */
    [TD_IQ4_NL] = {0.92, 0.46, 0.64, TD_RATE_INT8}, /* Q4_0 */
    [TD_MXFP4] = {0.92, 0.46, 0.64, TD_RATE_INT8},  /* Q4_0 */
    [TD_INT4] = {0.92, 0.46, 0.64, TD_RATE_INT8},   /* Q4_0 */
    [TD_Q4_K] = {0.83, 0.44, 0.64, TD_RATE_INT8},   /* measured */
    [TD_Q5_K] = {0.83, 0.44, 0.64, TD_RATE_INT8},   /* Q4_K */
    [TD_IQ4_XS] = {0.83, 0.44, 0.64, TD_RATE_INT8}, /* Q4_K */
    [TD_Q6_K] = {0.76, 0.47, 0.47, TD_RATE_INT8},   /* measured; without tiles */
    [TD_Q3_K] = {0.76, 0.47, 0.47, TD_RATE_INT8},   /* Q6_K */
    [TD_Q2_K] = {0.76, 0.47, 0.47, TD_RATE_INT8},   /* Q6_K */
};
/* Keys and values at a depth of 512 to 16384, and prompts of 512 to 4096 (same report, "Attention alone"). */
static const struct td_predict_share attention_share = {0.80, 0.45, 0.45, TD_RATE_F32};
/* Part of the shorter one of reading and multiplying that happens during the longer one (same report: batches of 16, and "reads
 * and arithmetic hardly overlap"). */
static const double HIDDEN = 0.4;

/* A step is broadcast in a message of this many bytes, and another for what does not fit. */
enum { STEP_HEAD_BYTES = 4096 };

/* What passes through the layers at once: `rows` adjacent tokens of each of `n_seqs` sequences, from `position` on (in the
 * mean, so no whole number). `n_heads` of the rows want a logit. */
struct work {
    double n_seqs, rows, position, n_heads;
};

struct context {
    const struct td_plan_model *model;
    const struct td_plan *plan;
    const struct td_machine *machine;
    bool overlapped; /* all stages work at once */
    /* [ranks] part of a host's memory rate that this rank's stage has; 1 where one stage works at a time. */
    double host_part[TD_PLAN_MAX_RANKS];
};

const char *td_predict_part_name(enum td_predict_part part)
{
    static const char *const names[TD_N_PARTS] = {"memory", "arithmetic", "exchange latency",
                                                  "exchange bandwidth", "host time"};

    return part < TD_N_PARTS ? names[part] : "none";
}

struct td_predict_share td_predict_share_of(enum td_dtype type)
{
    return table[type];
}

struct td_predict_share td_predict_share_of_attention(void)
{
    return attention_share;
}

static double max_of(double a, double b)
{
    return a > b ? a : b;
}

static double total(const struct td_predict_cost *c)
{
    double s = 0.0;

    for (int i = 0; i < TD_N_PARTS; i++)
        s += c->part_s[i];
    return s;
}

static void add_times(struct td_predict_cost *to, const struct td_predict_cost *c, double times)
{
    for (int i = 0; i < TD_N_PARTS; i++)
        to->part_s[i] += times * c->part_s[i];
    to->n_exchanges += times * c->n_exchanges;
}

/* Operations per second of these kernels on this rank. Where it has no instruction of the kind, or a slower one than F32's, the
 * weights are widened. */
static double rate_of(const struct td_machine_rank *r, const struct td_predict_share *share)
{
    double ops = r->has_tiles ? share->ops_tiles : share->ops;
    double int8 = r->ops_per_s[TD_RATE_INT8], bf16 = r->ops_per_s[TD_RATE_BF16],
           f32 = r->ops_per_s[TD_RATE_F32];

    if (share->rate == TD_RATE_INT8 && int8 > 0.0)
        return ops * int8;
    if (share->rate == TD_RATE_F32 && f32 > 0.0)
        return ops * f32;
    return ops * (max_of(bf16, f32) > 0.0 ? max_of(bf16, f32) : int8);
}

/* ---- what one rank computes ---- */

/* One matrix, or attention: seconds of reading it with all of the rank's own memory rate, and of multiplying. */
struct item {
    double read_s, multiply_s;
};

enum { MAX_ITEMS = 5 };

/* Between two exchanges. */
struct segment {
    struct item item[MAX_ITEMS];
    uint32_t n;
};

static void add_item(struct segment *s, const struct td_machine_rank *r,
                     const struct td_predict_share *share, double bytes, double ops)
{
    s->item[s->n++] =
        (struct item){bytes / (share->memory * r->memory_bytes_per_s), ops / rate_of(r, share)};
}

static void add_matrix(struct segment *s, const struct td_machine_rank *r, enum td_dtype type,
                       size_t rows, size_t cols, double n)
{
    add_item(s, r, &table[type], (double)(rows * td_dtype_held_bytes(type, cols)),
             2.0 * (double)rows * (double)cols * n);
}

/* Keys that neighbouring rows see, one after the other: each those up to its own, the last `window` of them (0: all). */
static double keys_seen(double rows, double position, double window)
{
    double grows = rows; /* rows that see one more than the row before */

    if (window > 0.0 && position + rows > window)
        grows = window > position ? window - position : 0.0;
    return grows * position + grows * (grows + 1.0) / 2.0 + (rows - grows) * window;
}

/* Scores and sums over the keys and values of every sequence. */
static void add_attention(struct segment *s, const struct context *c,
                          const struct td_machine_rank *r, const struct td_plan_slice *slice,
                          uint32_t window, const struct work *w)
{
    const struct td_spec *spec = c->model->spec;
    double heads = slice->head_end - slice->head_begin, kv = slice->kv_end - slice->kv_begin;
    double row_bytes = (double)td_dtype_row_bytes(c->plan->kv_dtype, spec->head_dim);
    double read = w->position + w->rows;

    if (window > 0 && read > window + w->rows - 1.0)
        read = window + w->rows - 1.0;
    add_item(s, r, &attention_share, 2.0 * kv * row_bytes * w->n_seqs * read,
             4.0 * heads * spec->head_dim * keys_seen(w->rows, w->position, window) * w->n_seqs);
}

enum segment_kind { ATTENTION, FEED_FORWARD, HEAD };

static struct segment segment_of(const struct context *c, uint32_t rank, uint32_t layer,
                                 enum segment_kind kind, const struct work *w)
{
    const struct td_spec *spec = c->model->spec;
    const struct td_machine_rank *r = &c->machine->rank[rank];
    const struct td_plan_rank *p = &c->plan->rank[rank];
    const struct td_plan_layer_types *t = &c->model->layer[layer];
    double n = w->n_seqs * w->rows;
    struct segment s = {.n = 0};

    if (kind == HEAD) {
        add_matrix(&s, r, c->model->head, p->vocab_end - p->vocab_begin, spec->d_model, w->n_heads);
        return s;
    }
    struct td_plan_slice slice = td_plan_slice(c->plan, c->model, rank, layer);
    size_t q = (size_t)(slice.head_end - slice.head_begin) * spec->head_dim;
    size_t kv = (size_t)(slice.kv_end - slice.kv_begin) * spec->head_dim;
    size_t ff = slice.ff_end - slice.ff_begin;

    if (kind == ATTENTION) {
        add_matrix(&s, r, t->q, q, spec->d_model, n);
        add_matrix(&s, r, t->k, kv, spec->d_model, n);
        add_matrix(&s, r, t->v, kv, spec->d_model, n);
        add_attention(&s, c, r, &slice, td_spec_window(spec, layer), w);
        add_matrix(&s, r, t->o, spec->d_model, q, n);
    } else {
        add_matrix(&s, r, t->gate, ff, spec->d_model, n);
        add_matrix(&s, r, t->up, ff, spec->d_model, n);
        add_matrix(&s, r, t->down, spec->d_model, ff, n);
    }
    return s;
}

/* Reading is `slowdown` times as slow as when the rank is alone. */
static struct td_predict_cost cost_of(const struct segment *s, double slowdown)
{
    struct td_predict_cost c = {{0.0}, 0.0};

    for (uint32_t i = 0; i < s->n; i++) {
        double read = s->item[i].read_s * slowdown, multiply = s->item[i].multiply_s;

        c.part_s[TD_PART_MEMORY] += read < multiply ? (1.0 - HIDDEN) * read : read;
        c.part_s[TD_PART_ARITHMETIC] += read < multiply ? multiply : (1.0 - HIDDEN) * multiply;
    }
    return c;
}

/* The same segment on all ranks of a stage at once: what the slowest takes. Ranks of one host share its memory's rate. */
static struct td_predict_cost slowest(const struct context *c, uint32_t stage, uint32_t layer,
                                      enum segment_kind kind, const struct work *w)
{
    const struct td_machine *m = c->machine;
    uint32_t first = stage * c->plan->tp, tp = c->plan->tp;
    double read_s[TD_PLAN_MAX_RANKS], host_s[TD_PLAN_MAX_RANKS] = {0.0};
    struct td_predict_cost worst = {{0.0}, 0.0};

    for (uint32_t i = first; i < first + tp; i++) {
        struct segment s = segment_of(c, i, layer, kind, w);
        uint32_t host = m->rank[i].host;

        read_s[i] = 0.0;
        for (uint32_t k = 0; k < s.n; k++)
            read_s[i] += s.item[k].read_s;
        if (m->host_bytes_per_s[host] > 0.0)
            host_s[host] += read_s[i] * m->rank[i].memory_bytes_per_s /
                            (m->host_bytes_per_s[host] * c->host_part[i]);
    }
    for (uint32_t i = first; i < first + tp; i++) {
        struct segment s = segment_of(c, i, layer, kind, w);
        double shared = host_s[m->rank[i].host];
        struct td_predict_cost one = cost_of(&s, shared > read_s[i] ? shared / read_s[i] : 1.0);

        if (total(&one) > total(&worst))
            worst = one;
    }
    return worst;
}

/* ---- exchanges ---- */

/* The sum of a matrix whose columns the ranks of a stage share. */
static void add_tree_sum(struct td_predict_cost *c, const struct context *x, uint32_t stage,
                         uint32_t layer, enum segment_kind kind, size_t n_floats)
{
    uint32_t tp = x->plan->tp;
    struct td_leaf_run runs[TD_PLAN_MAX_RANKS];
    struct td_tree_layout layout = {kind == ATTENTION
                                        ? td_plan_attn_leaves(x->model, layer).n_leaves
                                        : td_plan_ffn_leaves(x->model, layer).n_leaves,
                                    runs};
    double bytes[TD_PLAN_MAX_RANKS];

    if (tp < 2)
        return;
    for (uint32_t i = 0; i < tp; i++) {
        struct td_plan_slice slice = td_plan_slice(x->plan, x->model, stage * tp + i, layer);

        runs[i] = kind == ATTENTION ? slice.attn_run : slice.ffn_run;
    }
    for (uint32_t i = 0; i < tp; i++)
        bytes[i] = (double)td_comm_tree_sum_bytes(&layout, tp, i, n_floats) / (tp - 1);
    td_predict_link_all(c, x->machine, stage * tp, tp, bytes,
                        td_comm_tree_sum_rounds(tp, n_floats));
}

/* ---- a step ---- */

static bool same_types(const struct td_plan_model *model, uint32_t a, uint32_t b)
{
    return memcmp(&model->layer[a], &model->layer[b], sizeof model->layer[a]) == 0;
}

static struct td_predict_cost layer_cost(const struct context *c, uint32_t stage, uint32_t layer,
                                         const struct work *w)
{
    size_t n_floats = (size_t)(w->n_seqs * w->rows) * c->model->spec->d_model;
    struct td_predict_cost cost = {{0.0}, 0.0};

    for (int kind = ATTENTION; kind <= FEED_FORWARD; kind++) {
        struct td_predict_cost one = slowest(c, stage, layer, (enum segment_kind)kind, w);

        add_tree_sum(&one, c, stage, layer, (enum segment_kind)kind, n_floats);
        add_times(&cost, &one, 1.0);
    }
    return cost;
}

/* The layers of a stage; of those with equal types one is counted. */
static struct td_predict_cost stage_cost(const struct context *c, uint32_t stage,
                                         const struct work *w)
{
    const struct td_plan_rank *r = &c->plan->rank[stage * c->plan->tp];
    struct td_predict_cost cost = {{0.0}, 0.0};

    for (uint32_t l = r->layer_begin; l < r->layer_end; l++) {
        uint32_t n_equal = 0, known = r->layer_begin;
        struct td_predict_cost one;

        while (known < l && !same_types(c->model, known, l))
            known++;
        if (known < l)
            continue; /* counted with that one */
        for (uint32_t k = l; k < r->layer_end; k++)
            n_equal += same_types(c->model, l, k);
        one = layer_cost(c, stage, l, w);
        add_times(&cost, &one, n_equal);
    }
    return cost;
}

/* Embedding rows come from all ranks of the first stage, each its part of them. */
static void add_embedding(struct td_predict_cost *c, const struct context *x, double n)
{
    const struct td_spec *spec = x->model->spec;
    double bytes[TD_PLAN_MAX_RANKS];

    for (uint32_t i = 0; i < x->plan->tp; i++) {
        const struct td_plan_rank *r = &x->plan->rank[i];

        bytes[i] = ceil(n * (r->vocab_end - r->vocab_begin) / spec->n_vocab) * spec->d_model *
                   sizeof(float);
    }
    td_predict_link_all(c, x->machine, 0, x->plan->tp, bytes, 1);
}

static struct td_predict_cost head_cost(const struct context *x, const struct work *w)
{
    struct td_predict_cost c = {{0.0}, 0.0};
    double bytes[TD_PLAN_MAX_RANKS];

    if (w->n_heads == 0.0)
        return c;
    c = slowest(x, 0, 0, HEAD, w);
    for (uint32_t i = 0; i < x->plan->tp; i++)
        bytes[i] = w->n_heads * sizeof(struct td_top);
    td_predict_link_gather(&c, x->machine, 0, x->plan->tp, bytes);
    return c;
}

/* What stands before a step's arithmetic: the host's part, and the step's way to all ranks. */
static struct td_predict_cost begin_cost(const struct context *c, const struct work *w)
{
    const struct td_plan *plan = c->plan;
    double blocks = ceil((w->position + w->rows) / plan->block_tokens) * w->n_seqs;
    struct td_step step = {.n_rows = (uint32_t)(w->n_seqs * w->rows),
                           .n_seqs = (uint32_t)w->n_seqs,
                           .n_table = (uint32_t)fmin(blocks, 1e9)};
    double bytes = max_of((double)td_step_encoded_bytes(&step), STEP_HEAD_BYTES);
    struct td_predict_cost cost = {{0.0}, 0.0};

    for (uint32_t i = 0; i < plan->n_ranks; i++)
        cost.part_s[TD_PART_HOST] = max_of(cost.part_s[TD_PART_HOST], c->machine->rank[i].host_s);
    if (plan->pp > 1) /* the first stage begins before the others hear of it */
        td_predict_link_broadcast(&cost, c->machine, 0, plan->tp, bytes);
    td_predict_link_broadcast(&cost, c->machine, 0, plan->n_ranks, bytes);
    return cost;
}

/* One stage's rows go to another. */
static void hand_on(struct td_predict_cost *cost, const struct context *c, uint32_t from,
                    uint32_t to, double rows)
{
    uint32_t tp = c->plan->tp;

    td_predict_link_hand_on(cost, c->machine, from * tp, to * tp, tp,
                            rows * c->model->spec->d_model * sizeof(float));
}

/* One step on its way through all stages, one after another. */
static struct td_predict_cost sequential_step(const struct context *c, const struct work *w)
{
    uint32_t pp = c->plan->pp;
    struct td_predict_cost cost = begin_cost(c, w), head = head_cost(c, w);

    add_embedding(&cost, c, w->n_seqs * w->rows);
    for (uint32_t s = 0; s < pp; s++) {
        struct td_predict_cost stage = stage_cost(c, s, w);

        if (s > 0)
            hand_on(&cost, c, s - 1, s, w->n_seqs * w->rows);
        add_times(&cost, &stage, 1.0);
    }
    if (pp > 1)
        hand_on(&cost, c, pp - 1, 0, w->n_heads);
    add_times(&cost, &head, 1.0);
    return cost;
}

/* One turn of a full pipeline: every stage has a step of its own, the slowest tells how long, then all hand on at once. */
static struct td_predict_cost overlapped_turn(const struct context *c, const struct work *w)
{
    uint32_t pp = c->plan->pp;
    struct td_predict_cost cost = begin_cost(c, w), worst = {{0.0}, 0.0}, longest = {{0.0}, 0.0};

    for (uint32_t s = 0; s < pp; s++) {
        struct td_predict_cost stage = stage_cost(c, s, w), hop = {{0.0}, 0.0};

        hand_on(&hop, c, s, (s + 1) % pp, w->n_seqs * w->rows);
        if (s == 0) {
            struct td_predict_cost head = head_cost(c, w);

            add_embedding(&stage, c, w->n_seqs * w->rows);
            add_times(&stage, &head, 1.0);
        }
        worst = total(&stage) > total(&worst) ? stage : worst;
        longest = total(&hop) > total(&longest) ? hop : longest;
    }
    add_times(&cost, &worst, 1.0);
    add_times(&cost, &longest, 1.0);
    return cost;
}

/* ---- phases ---- */

static double bytes_read(const struct td_plan_rank *r, double kv_tokens)
{
    return (double)r->weight_bytes + (double)r->kv_bytes_per_token * kv_tokens;
}

/* Ranks of different stages on one host read at the same time only in a full pipeline; each stage then has a part of the memory's
 * rate like its part of the bytes, with so many tokens' keys and values. */
static void share_hosts(struct context *c, double kv_tokens)
{
    const struct td_plan *plan = c->plan;
    double of_host[TD_PLAN_MAX_RANKS] = {0.0};

    for (uint32_t i = 0; i < plan->n_ranks; i++)
        of_host[c->machine->rank[i].host] += bytes_read(&plan->rank[i], kv_tokens);
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        uint32_t first = plan->rank[i].stage * plan->tp, host = c->machine->rank[i].host;
        double of_stage = 0.0;

        for (uint32_t k = first; k < first + plan->tp; k++)
            if (c->machine->rank[k].host == host)
                of_stage += bytes_read(&plan->rank[k], kv_tokens);
        c->host_part[i] = c->overlapped && of_stage > 0.0 ? of_stage / of_host[host] : 1.0;
    }
}

static struct td_predict_phase phase_of(const struct td_predict_cost *step, double tokens)
{
    struct td_predict_phase p = {.n_exchanges = step->n_exchanges, .step_s = total(step)};

    for (int i = 0; i < TD_N_PARTS; i++) {
        p.part_s[i] = step->part_s[i] / tokens;
        p.token_s += p.part_s[i];
        if (p.part_s[i] > p.part_s[p.bottleneck])
            p.bottleneck = (enum td_predict_part)i;
    }
    p.tokens_per_s = 1.0 / p.token_s;
    return p;
}

static struct td_predict_phase predict_batch(struct context *c, const struct td_predict_load *load)
{
    uint32_t pp = c->plan->pp, batch = load->batch;
    struct work w = {.n_seqs = (batch + pp - 1) / pp, .rows = 1, .position = load->depth};
    struct td_predict_cost turn, round = {{0.0}, 0.0};

    w.n_heads = w.n_seqs;
    if (pp == 1) {
        turn = sequential_step(c, &w);
        return phase_of(&turn, batch);
    }
    c->overlapped = true;
    share_hosts(c, w.n_seqs * (w.position + 1.0));
    turn = overlapped_turn(c, &w);
    c->overlapped = false;
    share_hosts(c, 0.0);
    add_times(&round, &turn, pp); /* after which every sequence has its token */
    return phase_of(&round, batch);
}

/* Whole chunks at their mean position, then the rest, whose last row wants a logit. */
static struct td_predict_phase predict_prefill(const struct context *c,
                                               const struct td_predict_load *load)
{
    uint32_t chunk = c->plan->max_batched_tokens, n = load->prompt_tokens, n_whole, rest;
    struct td_predict_cost cost = {{0.0}, 0.0}, last;
    struct work w = {.n_seqs = 1};

    if (load->prefill_chunk && load->prefill_chunk < chunk)
        chunk = load->prefill_chunk;
    n_whole = (n - 1) / chunk;
    rest = n - n_whole * chunk;
    if (n_whole) {
        struct td_predict_cost one;

        w.rows = chunk;
        w.position = (n_whole - 1) / 2.0 * chunk;
        one = sequential_step(c, &w);
        add_times(&cost, &one, n_whole);
    }
    w.rows = rest;
    w.position = (double)n_whole * chunk;
    w.n_heads = 1;
    last = sequential_step(c, &w);
    add_times(&cost, &last, 1.0);
    return phase_of(&cost, n);
}

enum td_status td_predict(const struct td_plan_model *model, const struct td_plan *plan,
                          const struct td_machine *machine, const struct td_predict_load *load,
                          struct td_prediction *out, struct td_err *err)
{
    struct context c = {.model = model, .plan = plan, .machine = machine};
    const struct work one = {.n_seqs = 1, .rows = 1, .position = load->depth, .n_heads = 1};
    struct td_predict_cost step;
    enum td_status s = td_predict_check(machine, err);

    if (s)
        return s;
    if (machine->n_ranks < plan->n_ranks)
        return td_err_set(err, TD_INVALID, "a plan of %u ranks: the machine has %u", plan->n_ranks,
                          machine->n_ranks);
    if (load->batch == 0 || load->prompt_tokens == 0)
        return td_err_set(err, TD_INVALID,
                          "a batch of %u and a prompt of %u tokens: expected at least 1 each",
                          load->batch, load->prompt_tokens);
    share_hosts(&c, 0.0);
    step = sequential_step(&c, &one);
    out->decode = phase_of(&step, 1.0);
    out->batch = predict_batch(&c, load);
    out->prefill = predict_prefill(&c, load);
    return TD_OK;
}
