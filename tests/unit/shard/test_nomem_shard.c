/* The way from a file to a token on one rank with every allocation failing in turn: checkpoints in both formats, the plan, the device,
 * the weights, one step, the sampler. Each time an error that says so and nothing kept, or the same result as undisturbed. */
#include "tests/unit/alloc_fault.h"

#include "comm/comm.h"
#include "kernels/quant/dequant.h"
#include "shard/checkpoint.h"
#include "shard/ggufwrite.h"
#include "shard/sampler.h"
#include "shard/shard.h"

#include <unistd.h>

#define TINY TD_SOURCE "/tests/models/tensord-tiny"

enum { D = 64, HEADS = 2, HD = 32, FF = 64, VOCAB = 40, N_LAYERS = 2, LEN = 32 };

static char dir[64], gguf_path[96];

/* ---- a small model ---- */

static void add(struct td_ggufwrite *w, const char *name, enum td_dtype type, size_t rows,
                size_t cols)
{
    size_t dim[] = {rows ? rows : cols, cols};

    td_ggufwrite_tensor(w, name, type, rows ? 2 : 1, dim);
}

static void put(struct td_ggufwrite *w, size_t tensor, enum td_dtype type, size_t rows, size_t cols)
{
    size_t bytes = (rows ? rows : 1) * td_dtype_row_bytes(type, cols);
    char *data = calloc(1, bytes);
    struct td_err err;

    assert_non_null(data);
    for (size_t i = 0; i < bytes; i += 4) {
        float x = type == TD_F32 ? 0.25f * (float)(i / 4 % 7) - 0.5f : 0.0f;

        memcpy(data + i, &x, bytes - i < 4 ? bytes - i : 4);
    }
    if (td_ggufwrite_put(w, tensor, 0, data, bytes, &err))
        fail_msg("%s", err.cause);
    free(data);
}

static const struct {
    const char *name;
    size_t rows, cols;
} LAYER[] = {{"attn_norm", 0, D},
             {"attn_q", HEADS *HD, D},
             {"attn_k", HD, D},
             {"attn_v", HD, D},
             {"attn_output", D, HEADS *HD},
             {"ffn_norm", 0, D},
             {"ffn_gate", FF, D},
             {"ffn_up", FF, D},
             {"ffn_down", D, FF}};
enum { N_LAYER = sizeof LAYER / sizeof LAYER[0] };

static void write_model(const char *path)
{
    struct td_ggufwrite *w;
    struct td_err err;
    char name[64];
    size_t n = 0;

    assert_int_equal(td_ggufwrite_open(&w, &err), TD_OK);
    td_ggufwrite_str(w, "general.architecture", TD_STR("llama"));
    td_ggufwrite_u32(w, "llama.block_count", N_LAYERS);
    td_ggufwrite_u32(w, "llama.embedding_length", D);
    td_ggufwrite_u32(w, "llama.feed_forward_length", FF);
    td_ggufwrite_u32(w, "llama.attention.head_count", HEADS);
    td_ggufwrite_u32(w, "llama.attention.head_count_kv", 1);
    td_ggufwrite_u32(w, "llama.attention.key_length", HD);
    td_ggufwrite_u32(w, "llama.context_length", LEN);
    td_ggufwrite_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    add(w, "token_embd.weight", TD_F32, VOCAB, D);
    add(w, "output_norm.weight", TD_F32, 0, D);
    for (int layer = 0; layer < N_LAYERS; layer++)
        for (size_t i = 0; i < N_LAYER; i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", layer, LAYER[i].name);
            add(w, name, TD_F32, LAYER[i].rows, LAYER[i].cols);
        }
    if (td_ggufwrite_start(w, path, &err))
        fail_msg("%s", err.cause);
    put(w, n++, TD_F32, VOCAB, D);
    put(w, n++, TD_F32, 0, D);
    for (int layer = 0; layer < N_LAYERS; layer++)
        for (size_t i = 0; i < N_LAYER; i++)
            put(w, n++, TD_F32, LAYER[i].rows, LAYER[i].cols);
    assert_int_equal(td_ggufwrite_finish(w, &err), TD_OK);
    td_ggufwrite_close(w);
}

static int make_model(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/td-nomem-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(gguf_path, sizeof gguf_path, "%s/m.gguf", dir);
    write_model(gguf_path);
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    unlink(gguf_path);
    return rmdir(dir); /* fails when a path has left something there */
}

/* ---- paths ---- */

/* `arg`: the model's path. */
static enum td_status open_checkpoint(void *arg, struct td_err *err)
{
    static char hash[2][33]; /* of the two models, when nothing failed */
    struct td_checkpoint *ck = NULL;
    struct td_plan_model *model;
    char now[33];
    enum td_status s = td_checkpoint_open(arg, &ck, err);
    bool is_gguf = strstr(arg, ".gguf") != NULL;

    if (s)
        return s;
    s = td_checkpoint_hash(ck, false, now, err);
    if (!s && !hash[is_gguf][0])
        memcpy(hash[is_gguf], now, sizeof now);
    if (!s)
        assert_string_equal(now, hash[is_gguf]);
    model = calloc(1, sizeof *model);
    if (!s && !model)
        s = alloc_no_memory(err);
    s = s ? s : td_plan_model_read(ck, model, err);
    if (!s)
        assert_true(model->spec->n_layers == (is_gguf ? N_LAYERS : 4));
    free(model);
    td_checkpoint_close(ck);
    return s;
}

static void test_checkpoint_opens_or_says_that_memory_is_short(void **state)
{
    (void)state;
    (void)alloc_sweep("a directory", open_checkpoint, (char *)TINY);
    (void)alloc_sweep("a GGUF file", open_checkpoint, gguf_path);
}

static enum td_status write_again(void *arg, struct td_err *err)
{
    struct td_ggufwrite *w = NULL;
    char path[128];
    enum td_status s = td_ggufwrite_open(&w, err);

    (void)arg;
    if (s)
        return s;
    snprintf(path, sizeof path, "%s/again.gguf", dir);
    td_ggufwrite_str(w, "general.architecture", TD_STR("llama"));
    td_ggufwrite_strs(w, "tokenizer.ggml.tokens", (struct td_str[]){TD_STR("a"), TD_STR("b")}, 2);
    add(w, "token_embd.weight", TD_F32, 3, D);
    s = td_ggufwrite_start(w, path, err);
    s = s ? s : td_ggufwrite_put(w, 0, 0, (float[3 * D]){1.0f}, 3 * D * sizeof(float), err);
    s = s ? s : td_ggufwrite_finish(w, err);
    td_ggufwrite_close(w);
    assert_true((access(path, F_OK) == 0) == (s == TD_OK));
    unlink(path);
    return s;
}

static void test_ggufwrite_writes_all_or_nothing(void **state)
{
    (void)state;
    (void)alloc_sweep("writing a file", write_again, NULL);
}

/* What the path below needs and does not sweep. */
struct loading {
    struct td_checkpoint *ck;
    struct td_plan_model model;
    struct td_plan plan;
    float logits[VOCAB];
    bool has_logits;
};

static enum td_status run_step(struct loading *l, struct td_shard *shard, struct td_err *err)
{
    static const uint32_t block[] = {1, 0};
    struct td_step step;
    struct td_step_result result;
    enum td_status s = td_step_open(&step, 8, 2, 8, err);

    if (s)
        return s;
    td_step_reset(&step, TD_STEP_RUN, 0);
    assert_true(td_step_add_seq(&step, block, 2, UINT32_MAX));
    for (uint32_t i = 0; i < 3; i++)
        assert_true(td_step_add_row(&step, 5 + i, i, i == 2 ? TD_WANT_LOGITS : TD_WANT_NONE));
    s = td_shard_step(shard, &step, &result, err);
    if (!s && !l->has_logits)
        memcpy(l->logits, result.logits, sizeof l->logits);
    if (!s)
        assert_memory_equal(l->logits, result.logits, sizeof l->logits);
    l->has_logits |= !s;
    td_step_close(&step);
    return s;
}

/* The device, the group, this rank's weights and cache, a step; twice, so that a shard opens beside what a failure left. */
static enum td_status load_and_step(void *arg, struct td_err *err)
{
    struct loading *l = arg;
    struct td_kern_cpu_params cpu = {.n_threads = 2, .isa = "auto"};
    struct td_shard_params p = {.ck = l->ck, .model = &l->model, .plan = &l->plan};
    struct td_shard *shard = NULL;
    enum td_status s = td_kern_cpu_open(&cpu, &p.kern, err);

    if (s)
        return s;
    s = td_comm_self_open(&p.world, err);
    s = s ? s : td_shard_open(&p, &shard, err);
    s = s ? s : run_step(l, shard, err);
    td_shard_close(shard);
    td_comm_close(p.world);
    assert_int_equal(td_kern_weight_bytes(p.kern), 0); /* everything was given back */
    td_kern_close(p.kern);
    return s;
}

static void test_shard_opens_and_steps_or_says_that_memory_is_short(void **state)
{
    static struct loading l;
    struct td_plan_params p = {.n_ranks = 1,
                               .kv_dtype = TD_F16,
                               .block_tokens = 16,
                               .max_model_len = LEN,
                               .max_num_seqs = 2,
                               .max_batched_tokens = 8};
    struct td_err err;

    (void)state;
    assert_int_equal(td_checkpoint_open(gguf_path, &l.ck, &err), TD_OK);
    assert_int_equal(td_plan_model_read(l.ck, &l.model, &err), TD_OK);
    assert_int_equal(td_plan_make(&l.model, &p, &l.plan, &err), TD_OK);
    (void)alloc_sweep("a shard and a step", load_and_step, &l);
    assert_true(l.has_logits);
    td_checkpoint_close(l.ck);
}

static enum td_status print_plan(void *arg, struct td_err *err)
{
    static char expected[1 << 14];
    struct loading *l = arg;
    struct td_plan_params p = {.n_ranks = 3,
                               .kv_dtype = TD_F16,
                               .block_tokens = 16,
                               .max_model_len = LEN,
                               .max_num_seqs = 2,
                               .max_batched_tokens = 8};
    struct td_bytes out = {0};
    enum td_status s = td_plan_make(&l->model, &p, &l->plan, err);

    if (!s) {
        s = td_plan_print(&l->plan, &l->model, &out);
        s = s ? s : td_plan_print_json(&l->plan, &l->model, &out);
        if (s)
            td_err_set(err, s, "no memory to print"); /* it has no error record of its own */
    }
    if (!s && !expected[0]) {
        assert_true(out.len < sizeof expected);
        memcpy(expected, out.data, out.len + 1);
    }
    if (!s)
        assert_string_equal(out.data, expected); /* whole, or not at all */
    td_bytes_deinit(&out);
    return s;
}

static void test_plan_is_printed_whole_or_not_at_all(void **state)
{
    static struct loading l;
    struct td_err err;

    (void)state;
    assert_int_equal(td_checkpoint_open(gguf_path, &l.ck, &err), TD_OK);
    assert_int_equal(td_plan_model_read(l.ck, &l.model, &err), TD_OK);
    (void)alloc_sweep("a plan", print_plan, &l);
    td_checkpoint_close(l.ck);
}

/* With everything on that keeps something. */
static enum td_status draw(void *arg, struct td_err *err)
{
    static const uint32_t prompt[] = {1, 2, 3, 1, 2, 3};
    static uint32_t expected = UINT32_MAX;
    static struct td_sampling p;
    struct td_sampler *sampler = NULL;
    struct td_sampled out = {0};
    float logits[VOCAB];
    enum td_status s;

    (void)arg;
    td_sampling_default(&p);
    p.temperature = 1.0f;
    p.top_k = 5;
    p.repetition_penalty = 1.5f;
    p.dry_multiplier = 1.0f;
    p.seed = 7;
    p.n_bias = 1;
    p.bias[0] = (struct td_logit_bias){3, 2.0f};
    s = td_sampler_open(&p, VOCAB, &sampler, err);
    if (s)
        return s;
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = (float)(i * 7 % 11);
    td_sampler_accept_prompt(sampler, prompt, 6);
    td_sampler_draw(sampler, logits, 6, NULL, 0, &out);
    if (expected == UINT32_MAX)
        expected = out.id;
    assert_int_equal(out.id, expected);
    td_sampler_close(sampler);
    return TD_OK;
}

static void test_sampler_opens_or_says_that_memory_is_short(void **state)
{
    (void)state;
    (void)alloc_sweep("a sampler", draw, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkpoint_opens_or_says_that_memory_is_short),
        cmocka_unit_test(test_ggufwrite_writes_all_or_nothing),
        cmocka_unit_test(test_shard_opens_and_steps_or_says_that_memory_is_short),
        cmocka_unit_test(test_plan_is_printed_whole_or_not_at_all),
        cmocka_unit_test(test_sampler_opens_or_says_that_memory_is_short),
    };

    return cmocka_run_group_tests(tests, make_model, remove_model);
}
