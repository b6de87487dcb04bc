/* The plan as a pure function: what holds for every model, rank count and share, and what it refuses. */
#include "shard/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_RANDOM = 3000 };

static uint64_t dice_state;

static uint32_t dice(uint32_t n)
{
    dice_state = dice_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(dice_state >> 33) % n;
}

/* Any type whose blocks rows of n_cols can hold. */
static enum td_dtype any_type(uint32_t n_cols)
{
    enum td_dtype type;

    do
        type = (enum td_dtype)dice(TD_N_DTYPES);
    while (td_dtype_row_bytes(type, n_cols) == 0);
    return type;
}

/* One problem: a model, its ranks, and the plan of them. */
struct fixture {
    struct td_spec spec;
    struct td_plan_model model;
    struct td_plan_params params;
    uint64_t share[TD_PLAN_MAX_RANKS];
    uint64_t memory[TD_PLAN_MAX_RANKS];
    struct td_plan plan;
};

static struct fixture fixture, again; /* too large for the stack */

static void set_params(struct fixture *f, uint32_t tp, uint32_t pp)
{
    f->params = (struct td_plan_params){.n_ranks = tp * pp,
                                        .tp = tp,
                                        .pp = pp,
                                        .kv_dtype = TD_F16,
                                        .block_tokens = 16,
                                        .max_num_seqs = 4,
                                        .max_batched_tokens = 64};
}

/* The shape of Llama 3.2 1B in BF16. */
static void set_llama(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    f->spec = (struct td_spec){.name = "LlamaForCausalLM",
                               .n_layers = 16,
                               .d_model = 2048,
                               .n_heads = 32,
                               .n_kv_heads = 8,
                               .head_dim = 64,
                               .d_ff = 8192,
                               .n_vocab = 128256,
                               .max_positions = 131072,
                               .tied_head = true};
    f->model = (struct td_plan_model){.spec = &f->spec, .embed = TD_BF16, .head = TD_BF16};
    for (uint32_t l = 0; l < f->spec.n_layers; l++)
        f->model.layer[l] = (struct td_plan_layer_types){TD_BF16, TD_BF16, TD_BF16, TD_BF16,
                                                         TD_BF16, TD_BF16, TD_BF16};
    set_params(f, 1, 1);
}

static void set_random(struct fixture *f)
{
    static const uint32_t head_dims[] = {8, 16, 32, 64, 96, 128};
    struct td_spec *s = &f->spec;

    memset(f, 0, sizeof *f);
    s->n_layers = 1 + dice(9);
    s->head_dim = head_dims[dice(6)];
    s->n_kv_heads = 1 + dice(8);
    s->n_heads = s->n_kv_heads * (1 + dice(6));
    s->d_model = dice(3) == 0 ? 256 * (1 + dice(5)) : dice(2) ? 32 * (1 + dice(40)) : 1 + dice(900);
    s->d_ff = dice(3) == 0 ? 256 * (1 + dice(12)) : dice(2) ? 32 * (1 + dice(100)) : 1 + dice(3000);
    s->n_vocab = 1 + dice(5000);
    s->max_positions = 16 * (1 + dice(64));
    s->tied_head = dice(2);
    s->qk_norm = dice(2);
    f->model.spec = s;
    f->model.embed = any_type(s->d_model);
    f->model.head = s->tied_head ? f->model.embed : any_type(s->d_model);
    for (uint32_t l = 0; l < s->n_layers; l++)
        f->model.layer[l] =
            (struct td_plan_layer_types){any_type(s->d_model), any_type(s->d_model),
                                         any_type(s->d_model), any_type(s->n_heads * s->head_dim),
                                         any_type(s->d_model), any_type(s->d_model),
                                         any_type(s->d_ff)};
    set_params(f, 1 + dice(9), 1 + dice(s->n_layers));
    do
        f->params.kv_dtype = any_type(s->head_dim);
    while (!td_devicekind_caches(TD_ON_CPU, f->params.kv_dtype));
    f->params.block_tokens = 1u << dice(7);
    for (uint32_t i = 0; i < f->params.n_ranks; i++)
        f->share[i] = 1 + (dice(3) ? dice(9) : dice(1000000));
    f->params.share = dice(3) ? f->share : NULL;
}

static void make(struct fixture *f)
{
    struct td_err err;

    if (td_plan_make(&f->model, &f->params, &f->plan, &err))
        fail_msg("%s", err.cause);
}

static size_t row_bytes(enum td_dtype type, size_t n)
{
    size_t scales = type == TD_F8_E4M3 ? (n + 127) / 128 * 4 : 0;

    return n / td_dtype_info(type)->block_elems * td_dtype_info(type)->block_bytes + scales;
}

/* Of the whole model, every tensor once; norms are held in F32. */
static size_t model_bytes(const struct td_plan_model *m)
{
    const struct td_spec *s = m->spec;
    size_t q = (size_t)s->n_heads * s->head_dim, kv = (size_t)s->n_kv_heads * s->head_dim;
    size_t d = s->d_model;
    size_t bytes = s->n_vocab * row_bytes(m->embed, d) + d * 4;

    if (!s->tied_head)
        bytes += s->n_vocab * row_bytes(m->head, d);
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const struct td_plan_layer_types *t = &m->layer[l];

        bytes += q * row_bytes(t->q, d) + kv * row_bytes(t->k, d) + kv * row_bytes(t->v, d) +
                 d * row_bytes(t->o, q);
        bytes += s->d_ff * row_bytes(t->gate, d) + s->d_ff * row_bytes(t->up, d) +
                 d * row_bytes(t->down, s->d_ff);
        bytes += 2 * d * 4 + (s->qk_norm ? 2 * (size_t)s->head_dim * 4 : 0);
    }
    return bytes;
}

/* Leaves split no head and no block of weights, and there are few. */
static void check_leaves(const struct fixture *f, uint32_t layer)
{
    const struct td_spec *s = &f->spec;
    struct td_plan_leaves attn = td_plan_attn_leaves(&f->model, layer);
    struct td_plan_leaves ffn = td_plan_ffn_leaves(&f->model, layer);

    assert_int_equal(attn.n_cols, s->n_heads * s->head_dim);
    assert_int_equal(ffn.n_cols, s->d_ff);
    assert_int_equal(attn.leaf_cols % s->head_dim, 0);
    assert_int_equal(attn.leaf_cols % td_dtype_info(f->model.layer[layer].o)->sum_cols, 0);
    assert_int_equal(ffn.leaf_cols % td_dtype_info(f->model.layer[layer].down)->sum_cols, 0);
    assert_in_range(attn.n_leaves, 1, TD_PLAN_MAX_LEAVES);
    assert_in_range(ffn.n_leaves, 1, TD_PLAN_MAX_LEAVES);
    assert_true((attn.n_leaves - 1) * attn.leaf_cols < attn.n_cols);
    assert_true(attn.n_leaves * attn.leaf_cols >= attn.n_cols);
    assert_true((ffn.n_leaves - 1) * ffn.leaf_cols < ffn.n_cols);
    assert_true(ffn.n_leaves * ffn.leaf_cols >= ffn.n_cols);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The slices of one layer over the ranks of its stage: runs that follow each other from the first leaf to the last. */
static void check_layer(const struct fixture *f, uint32_t stage, uint32_t layer)
{
    const struct td_spec *s = &f->spec;
    struct td_plan_leaves attn = td_plan_attn_leaves(&f->model, layer);
    struct td_plan_leaves ffn = td_plan_ffn_leaves(&f->model, layer);
    uint32_t group = s->n_heads / s->n_kv_heads, leaf = 0, ffn_leaf = 0, head = 0, ff = 0;

    for (uint32_t i = 0; i < f->plan.tp; i++) {
        struct td_plan_slice a = td_plan_slice(&f->plan, &f->model, stage * f->plan.tp + i, layer);

        assert_int_equal(a.attn_run.begin, leaf);
        assert_int_equal(a.ffn_run.begin, ffn_leaf);
        assert_int_equal(a.head_begin, head);
        assert_int_equal(a.ff_begin, ff);
        assert_int_equal(a.head_end * s->head_dim,
                         min_u32(a.attn_run.end * attn.leaf_cols, attn.n_cols));
        assert_int_equal(a.ff_end, min_u32(a.ffn_run.end * ffn.leaf_cols, ffn.n_cols));
        assert_true(a.head_end >= head && a.ff_end >= ff);
        if (a.head_end > a.head_begin) { /* exactly the KV heads that its heads read */
            assert_int_equal(a.kv_begin, a.head_begin / group);
            assert_int_equal(a.kv_end, (a.head_end - 1) / group + 1);
        } else {
            assert_int_equal(a.kv_begin, a.kv_end);
        }
        leaf = a.attn_run.end;
        ffn_leaf = a.ffn_run.end;
        head = a.head_end;
        ff = a.ff_end;
    }
    assert_int_equal(leaf, attn.n_leaves);
    assert_int_equal(ffn_leaf, ffn.n_leaves);
    assert_int_equal(head, s->n_heads);
    assert_int_equal(ff, s->d_ff);
}

static void check_stages(const struct fixture *f)
{
    const struct td_plan *p = &f->plan;
    uint32_t layer = 0, vocab = 0;

    assert_int_equal(p->n_ranks, p->tp * p->pp);
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        const struct td_plan_rank *r = &p->rank[i];

        assert_int_equal(r->stage, i / p->tp);
        assert_int_equal(r->tp_index, i % p->tp);
        assert_true(r->layer_end > r->layer_begin);
        if (r->tp_index == 0)
            assert_int_equal(r->layer_begin, layer);
        else
            assert_int_equal(r->layer_begin, p->rank[i - 1].layer_begin);
        layer = r->layer_end;
        if (r->stage == 0) {
            assert_int_equal(r->vocab_begin, vocab);
            assert_true(r->vocab_end >= vocab);
            vocab = r->vocab_end;
        } else {
            assert_int_equal(r->vocab_begin, r->vocab_end);
        }
    }
    assert_int_equal(layer, f->spec.n_layers);
    assert_int_equal(vocab, f->spec.n_vocab);
}

static void check_bytes(const struct fixture *f)
{
    const struct td_plan *p = &f->plan;
    size_t weights = 0, replicated = 0;
    const struct td_dtype_info *kv_type = td_dtype_info(p->kv_dtype);
    size_t kv_row = f->spec.head_dim / kv_type->block_elems * kv_type->block_bytes;

    for (uint32_t i = 0; i < p->n_ranks; i++) {
        const struct td_plan_rank *r = &p->rank[i];
        size_t kv = 0;

        weights += r->weight_bytes;
        replicated += r->replicated_bytes;
        for (uint32_t l = r->layer_begin; l < r->layer_end; l++) {
            struct td_plan_slice a = td_plan_slice(p, &f->model, i, l);

            kv += 2 * (size_t)(a.kv_end - a.kv_begin) * kv_row;
        }
        assert_int_equal(r->kv_bytes_per_token, kv);
        assert_int_equal(r->kv_bytes, kv * p->block_tokens * p->n_blocks);
        assert_true(r->weight_bytes >= r->replicated_bytes);
    }
    assert_int_equal(p->model_bytes, model_bytes(&f->model));
    assert_int_equal(weights - replicated, p->model_bytes);
    assert_true((size_t)p->n_blocks * p->block_tokens >= p->max_model_len);
    if (p->n_ranks == 1) {
        assert_int_equal(replicated, 0);
        assert_int_equal(td_plan_exchanged_bytes(p), 0);
    } else {
        assert_true(td_plan_exchanged_bytes(p) > 0);
    }
}

static void test_plan_deals_every_leaf_once_and_its_bytes_add_up(void **state)
{
    const char *text = getenv("TD_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 10) : 1;

    (void)state;
    for (uint32_t i = 0; i < N_RANDOM; i++) {
        dice_state = (seed + i) * 0x2545f4914f6cdd1du;
        if (i % 500 == 0)
            print_message("from seed %llu on; TD_TEST_SEED=%llu repeats it\n",
                          (unsigned long long)(seed + i), (unsigned long long)(seed + i));
        set_random(&fixture);
        make(&fixture);
        check_stages(&fixture);
        check_bytes(&fixture);
        for (uint32_t r = 0; r < fixture.plan.n_ranks; r += fixture.plan.tp)
            for (uint32_t l = fixture.plan.rank[r].layer_begin; l < fixture.plan.rank[r].layer_end;
                 l++) {
                check_leaves(&fixture, l);
                check_layer(&fixture, fixture.plan.rank[r].stage, l);
            }
    }
}

static void test_plan_is_the_same_for_the_same_input(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 100; i++) {
        dice_state = 1000 + i;
        set_random(&fixture);
        make(&fixture);
        dice_state = 1000 + i;
        set_random(&again);
        memset(&again.plan, 0xa5, sizeof again.plan);
        make(&again);
        assert_memory_equal(&fixture.plan, &again.plan, sizeof fixture.plan);
    }
}

static void test_plan_leaves_do_not_depend_on_the_ranks(void **state)
{
    struct td_plan_leaves attn, ffn;

    (void)state;
    set_llama(&fixture);
    attn = td_plan_attn_leaves(&fixture.model, 3);
    ffn = td_plan_ffn_leaves(&fixture.model, 3);
    assert_int_equal(attn.n_leaves, 16);
    assert_int_equal(attn.leaf_cols, 2 * 64);
    assert_int_equal(ffn.n_leaves, 16);
    assert_int_equal(ffn.leaf_cols, 512);
    /* 172 columns of F16 are no whole blocks: leaves of 12, the last of 4. */
    assert_int_equal(td_plan_cut(172, 1).leaf_cols, 12);
    assert_int_equal(td_plan_cut(172, 1).n_leaves, 15);
    assert_int_equal(td_plan_cut(192, 32).leaf_cols, 32);
    assert_int_equal(td_plan_cut(192, 32).n_leaves, 6);
}

static void test_plan_parts_follow_the_shares(void **state)
{
    size_t whole;

    (void)state;
    set_llama(&fixture);
    make(&fixture);
    whole = fixture.plan.model_bytes;
    set_params(&fixture, 3, 1);
    memcpy(fixture.share, (uint64_t[]){3, 1, 1}, 3 * sizeof(uint64_t));
    fixture.params.share = fixture.share;
    make(&fixture);
    assert_in_range(fixture.plan.rank[0].weight_bytes, whole * 55 / 100, whole * 65 / 100);
    assert_in_range(fixture.plan.rank[1].weight_bytes, whole * 15 / 100, whole * 25 / 100);
    assert_in_range(fixture.plan.rank[2].weight_bytes, whole * 15 / 100, whole * 25 / 100);
}

static void test_plan_parts_follow_uneven_memory_but_not_small_differences(void **state)
{
    const uint64_t gib = (uint64_t)1 << 30;

    (void)state;
    set_llama(&fixture);
    set_params(&fixture, 2, 1);
    fixture.params.memory_bytes = fixture.memory;
    fixture.memory[0] = 12 * gib;
    fixture.memory[1] = 4 * gib;
    make(&fixture);
    assert_true(fixture.plan.rank[0].weight_bytes > 2 * fixture.plan.rank[1].weight_bytes);
    fixture.memory[1] = 12 * gib - gib / 2;
    make(&fixture);
    assert_int_equal(fixture.plan.rank[0].share, 1);
    assert_int_equal(fixture.plan.rank[1].share, 1);
}

static void test_plan_cuts_stages_by_bytes(void **state)
{
    size_t whole;

    (void)state;
    set_llama(&fixture);
    set_params(&fixture, 1, 2);
    make(&fixture);
    whole = fixture.plan.model_bytes;
    /* The first stage also holds the vocabulary, so it has fewer layers. */
    assert_true(fixture.plan.rank[0].layer_end < 8);
    assert_in_range(fixture.plan.rank[0].weight_bytes, whole * 45 / 100, whole * 55 / 100);
}

static void test_plan_repeats_kv_heads_where_ranks_outnumber_them(void **state)
{
    struct td_plan_slice a, b;
    size_t norms;

    (void)state;
    set_llama(&fixture);
    set_params(&fixture, 16, 1); /* two query heads each; four share a KV head */
    make(&fixture);
    a = td_plan_slice(&fixture.plan, &fixture.model, 0, 0);
    b = td_plan_slice(&fixture.plan, &fixture.model, 1, 0);
    assert_int_equal(a.kv_begin, 0);
    assert_int_equal(a.kv_end, 1);
    assert_int_equal(b.kv_begin, 0);
    assert_int_equal(b.kv_end, 1);
    norms = (16 * 2 + 1) * 2048 * 4;
    assert_int_equal(fixture.plan.rank[0].replicated_bytes, 0);
    assert_int_equal(fixture.plan.rank[1].replicated_bytes,
                     norms + 16 * (size_t)(2 * 64) * 2048 * 2);
    assert_int_equal(fixture.plan.rank[2].replicated_bytes, norms);
}

static void test_plan_leaves_ranks_without_leaves_where_there_are_too_few(void **state)
{
    uint32_t idle = 0;

    (void)state;
    set_llama(&fixture);
    fixture.spec.n_heads = 2;
    fixture.spec.n_kv_heads = 1;
    set_params(&fixture, 5, 1);
    make(&fixture);
    for (uint32_t i = 0; i < 5; i++) {
        struct td_plan_slice s = td_plan_slice(&fixture.plan, &fixture.model, i, 0);

        if (s.head_begin == s.head_end) {
            idle++;
            assert_int_equal(fixture.plan.rank[i].kv_bytes, 0);
        }
        assert_true(s.ff_end > s.ff_begin);
    }
    assert_int_equal(idle, 3);
}

static void test_plan_shortens_a_context_only_where_nobody_asked_for_it(void **state)
{
    struct td_err err;
    const struct td_plan_rank *r = &fixture.plan.rank[0];

    (void)state;
    set_llama(&fixture);
    make(&fixture);
    fixture.params.memory_bytes = fixture.memory;
    fixture.memory[0] = r->weight_bytes + r->buffer_bytes + 1000 * r->kv_bytes_per_token;
    make(&fixture);
    assert_in_range(fixture.plan.max_model_len, 880, 900); /* nine tenths of it, whole blocks */
    assert_true(r->weight_bytes + r->buffer_bytes + r->kv_bytes <= fixture.memory[0]);
    fixture.params.max_model_len = 4096;
    assert_int_equal(td_plan_make(&fixture.model, &fixture.params, &again.plan, &err),
                     TD_TOO_LARGE);
    assert_non_null(strstr(err.cause, "4096"));
    assert_non_null(strstr(err.cause, "896"));
}

static void test_plan_gives_kv_no_more_than_there_is(void **state)
{
    const struct td_plan_rank *r = &fixture.plan.rank[0];
    uint64_t need;
    struct td_err err;

    (void)state;
    set_llama(&fixture);
    make(&fixture);
    need = r->weight_bytes + r->buffer_bytes;
    fixture.params.memory_bytes = fixture.memory;
    for (uint32_t spare = 0; spare < 12; spare++) { /* all but nothing is left: not "no bound" */
        fixture.memory[0] = need + spare;
        assert_int_equal(td_plan_make(&fixture.model, &fixture.params, &fixture.plan, &err),
                         TD_TOO_LARGE);
        assert_non_null(strstr(err.cause, "does not fit"));
    }
    /* Memory unknown and sizes beyond any machine: what is counted still fits in a size. */
    fixture.params.memory_bytes = NULL;
    fixture.spec.max_positions = 1 << 30;
    fixture.spec.n_heads = fixture.spec.n_kv_heads = 1 << 14;
    fixture.params.max_num_seqs = 1 << 16;
    make(&fixture);
    assert_true(fixture.plan.n_blocks > 0);
    assert_true(r->kv_bytes / fixture.plan.n_blocks ==
                r->kv_bytes_per_token * fixture.plan.block_tokens);
}

static void test_plan_leaves_room_on_rank_0_for_a_draft_model(void **state)
{
    const struct td_plan_rank *r = &fixture.plan.rank[0];
    uint64_t block, spare = (uint64_t)1 << 20;

    (void)state;
    set_llama(&fixture);
    make(&fixture);
    block = r->kv_bytes_per_token * fixture.plan.block_tokens;
    fixture.params.memory_bytes = fixture.memory;
    fixture.params.lead_bytes = 12345678;
    fixture.params.lead_block_bytes = block / 2;
    for (uint32_t i = 0; i < fixture.params.n_ranks; i++)
        fixture.memory[i] = fixture.plan.rank[i].weight_bytes + fixture.plan.rank[i].buffer_bytes +
                            12345678 + 200 * block + spare;
    make(&fixture);
    assert_true(fixture.plan.n_blocks * (block + block / 2) <= 200 * block + spare);
    assert_true(fixture.plan.n_blocks > 80);
    assert_int_equal(fixture.plan.lead_bytes, 12345678);
    assert_int_equal(fixture.plan.lead_kv_bytes, fixture.plan.n_blocks * (block / 2));
    fixture.params.n_blocks = 50;
    fixture.params.max_model_len = 50 * fixture.params.block_tokens;
    make(&fixture);
    assert_int_equal(fixture.plan.n_blocks, 50);
}

static void test_plan_gives_every_rank_the_slots_that_all_have_room_for(void **state)
{
    struct td_plan *plan = &fixture.plan;
    size_t largest = 0;

    (void)state;
    set_llama(&fixture);
    set_params(&fixture, 3, 1);
    make(&fixture);
    assert_int_equal(plan->n_slots[TD_OFFLOAD_MEMORY] + plan->n_slots[TD_OFFLOAD_FILE], 0);
    for (uint32_t i = 0; i < 3; i++) {
        size_t block = plan->rank[i].kv_bytes_per_token * plan->block_tokens;

        largest = block > largest ? block : largest;
    }
    fixture.params.offload_bytes[TD_OFFLOAD_MEMORY] = 5 * largest + largest / 2;
    fixture.params.offload_bytes[TD_OFFLOAD_FILE] = 70 * largest;
    make(&fixture);
    assert_int_equal(plan->n_slots[TD_OFFLOAD_MEMORY], 5);
    assert_int_equal(plan->n_slots[TD_OFFLOAD_FILE], 70);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(plan->rank[i].offload_bytes[TD_OFFLOAD_MEMORY],
                         5 * plan->rank[i].kv_bytes_per_token * plan->block_tokens);
}

static void expect_refusal(enum td_status status, const char *const *words)
{
    struct td_err err = {0};
    enum td_status have = td_plan_make(&fixture.model, &fixture.params, &fixture.plan, &err);

    if (have != status)
        fail_msg("status %d (%s), expected %d", have, err.cause, status);
    for (; *words; words++)
        if (!strstr(err.cause, *words))
            fail_msg("'%s' does not say '%s'", err.cause, *words);
}

#define EXPECT_REFUSAL(status, change, ...)                                                        \
    do {                                                                                           \
        set_llama(&fixture);                                                                       \
        set_params(&fixture, 4, 1);                                                                \
        change;                                                                                    \
        expect_refusal(status, (const char *const[]){__VA_ARGS__, NULL});                          \
    } while (0)

static void test_plan_refuses_by_name_what_cannot_be(void **state)
{
    struct td_plan_params *p = &fixture.params;

    (void)state;
    EXPECT_REFUSAL(TD_INVALID, p->n_ranks = 0, "0 ranks", "256");
    EXPECT_REFUSAL(TD_INVALID, p->n_ranks = 257, "257 ranks", "256");
    EXPECT_REFUSAL(TD_INVALID, p->tp = 3, "tensor parallel 3", "the group has 4");
    EXPECT_REFUSAL(TD_INVALID, (p->tp = 0, p->pp = 3), "4 ranks", "3 pipeline stages");
    EXPECT_REFUSAL(TD_INVALID, (p->n_ranks = 17, p->tp = 1, p->pp = 17), "17 pipeline stages",
                   "16 layers");
    EXPECT_REFUSAL(TD_INVALID, p->block_tokens = 0, "0 tokens", "power of two");
    EXPECT_REFUSAL(TD_INVALID, p->block_tokens = 48, "48 tokens", "power of two");
    EXPECT_REFUSAL(TD_INVALID, p->max_num_seqs = 0, "max-num-seqs 0");
    EXPECT_REFUSAL(TD_INVALID, p->max_batched_tokens = 0, "max-num-batched-tokens 0");
    EXPECT_REFUSAL(TD_INVALID, p->max_model_len = 131073, "131073", "131072 positions");
    EXPECT_REFUSAL(TD_UNSUPPORTED, (p->kv_dtype = TD_Q8_0, fixture.spec.head_dim = 80), "q8_0",
                   "80 dimensions", "multiple of 32");
    EXPECT_REFUSAL(TD_INVALID, (p->share = fixture.share, fixture.share[0] = 1), "rank 1",
                   "share of 0");
    EXPECT_REFUSAL(TD_TOO_LARGE,
                   (p->memory_bytes = fixture.memory,
                    fixture.memory[0] = fixture.memory[1] = 1000000,
                    fixture.memory[2] = fixture.memory[3] = 1000000),
                   "rank 0 needs", "1000000", "more ranks");
}

static void test_plan_deal_is_monotone_and_ends_at_n(void **state)
{
    (void)state;
    dice_state = 7;
    for (uint32_t round = 0; round < 2000; round++) {
        uint64_t share[9], total = 0, before = 0;
        uint32_t k = 1 + dice(9), n = dice(5000);

        for (uint32_t i = 0; i < k; i++) {
            share[i] = 1 + dice(1000);
            total += share[i];
        }
        assert_int_equal(td_plan_deal(n, share, k, 0), 0);
        assert_int_equal(td_plan_deal(n, share, k, k), n);
        for (uint32_t i = 0; i < k; i++) {
            uint32_t first = td_plan_deal(n, share, k, i);

            assert_true(td_plan_deal(n, share, k, i + 1) >= first);
            /* Never more than half a unit from the exact place. */
            assert_true(2 * (uint64_t)first * total <= 2 * before * n + total);
            assert_true(2 * (uint64_t)first * total + total >= 2 * before * n);
            before += share[i];
        }
        /* Shares of any size, as memory in bytes: no product overflows. */
        for (uint32_t i = 0; i < k; i++)
            share[i] = share[i] << 45;
        assert_int_equal(td_plan_deal(n, share, k, k), n);
    }
}

static void test_plan_counts_what_a_gpu_holds(void **state)
{
    /* Bytes of 16 rows by 32 columns: numbers, a scale per row, and per 256 columns what the file's blocks have of it. Q6_K's scales
     * of 16 columns are twice as many. */
    static const struct {
        enum td_dtype type;
        size_t bytes_of_256;
    } types[] = {{TD_BF16, 8 * 1024},
                 {TD_Q4_0, 8 * (256 + 32)},
                 {TD_MXFP4, 8 * (256 + 32)},
                 {TD_Q4_K, 8 * (256 + 32) + 64},
                 {TD_Q6_K, 8 * (384 + 32) + 32}};
    struct td_plan_layer_types *t = &fixture.model.layer[0];
    struct td_err err;
    size_t norms, whole;

    (void)state;
    for (uint32_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        enum td_dtype type = types[i].type;

        set_llama(&fixture);
        fixture.spec.n_layers = 1;
        fixture.spec.d_model = 4096; /* 16 leaves of 256 columns */
        fixture.spec.d_ff = 4096;
        fixture.model.embed = fixture.model.head = type;
        *t = (struct td_plan_layer_types){type, type, type, type, type, type, type};
        fixture.params.device = TD_ON_CUDA;
        make(&fixture);
        norms = 3 * 4096 * sizeof(float);
        /* q and o of 2048 rows or columns, k and v of 512 rows, three of the feed-forward net, the vocabulary: in units of 16 x 256. */
        whole = (2 * 128 * 16 + 2 * 32 * 16 + 3 * 256 * 16 + 8016 * 16) * types[i].bytes_of_256;
        assert_int_equal(fixture.plan.rank[0].weight_bytes, whole + norms);
    }
    t->up = TD_Q5_1;
    assert_int_equal(td_plan_make(&fixture.model, &fixture.params, &fixture.plan, &err),
                     TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "weights of type q5_1, which --device cuda does not hold"));
    t->up = TD_BF16;
    fixture.params.kv_dtype = TD_Q4_0;
    assert_int_equal(td_plan_make(&fixture.model, &fixture.params, &fixture.plan, &err),
                     TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "KV cache of type q4_0: --device cuda"));
}

static void test_plan_prints_what_it_says(void **state)
{
    struct td_bytes out = {0};

    (void)state;
    set_llama(&fixture);
    set_params(&fixture, 3, 2);
    make(&fixture);
    assert_int_equal(td_plan_print(&fixture.plan, &fixture.model, &out), TD_OK);
    assert_non_null(strstr(out.data, "6 ranks on CPUs: tensor parallel 3 x pipeline parallel 2"));
    td_bytes_clear(&out);
    assert_int_equal(td_plan_print_json(&fixture.plan, &fixture.model, &out), TD_OK);
    assert_non_null(strstr(out.data, "\"tensor_parallel\": 3"));
    assert_non_null(strstr(out.data, "\"rank\": 5"));
    td_bytes_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_deals_every_leaf_once_and_its_bytes_add_up),
        cmocka_unit_test(test_plan_is_the_same_for_the_same_input),
        cmocka_unit_test(test_plan_leaves_do_not_depend_on_the_ranks),
        cmocka_unit_test(test_plan_parts_follow_the_shares),
        cmocka_unit_test(test_plan_parts_follow_uneven_memory_but_not_small_differences),
        cmocka_unit_test(test_plan_cuts_stages_by_bytes),
        cmocka_unit_test(test_plan_repeats_kv_heads_where_ranks_outnumber_them),
        cmocka_unit_test(test_plan_leaves_ranks_without_leaves_where_there_are_too_few),
        cmocka_unit_test(test_plan_shortens_a_context_only_where_nobody_asked_for_it),
        cmocka_unit_test(test_plan_leaves_room_on_rank_0_for_a_draft_model),
        cmocka_unit_test(test_plan_gives_every_rank_the_slots_that_all_have_room_for),
        cmocka_unit_test(test_plan_gives_kv_no_more_than_there_is),
        cmocka_unit_test(test_plan_refuses_by_name_what_cannot_be),
        cmocka_unit_test(test_plan_deal_is_monotone_and_ends_at_n),
        cmocka_unit_test(test_plan_counts_what_a_gpu_holds),
        cmocka_unit_test(test_plan_prints_what_it_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
