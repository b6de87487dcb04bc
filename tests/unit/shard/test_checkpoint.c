/* One view over both formats: real models, small models that the test writes, and what must be refused. */
#include "shard/checkpoint.h"
#include "shard/gguf.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define MODELS TD_SHARED "/data/models"

static void skip_without_models(void)
{
    if (access(MODELS, R_OK) != 0) {
        print_message("SKIPPED: %s is absent\n", MODELS);
        skip();
    }
}

static struct td_checkpoint *open_good(const char *path)
{
    struct td_checkpoint *ck = NULL;
    struct td_err err = {0};
    char text[1024];

    if (td_checkpoint_open(path, &ck, &err) != TD_OK)
        fail_msg("%s", td_err_format(&err, text, sizeof text));
    return ck;
}

static void expect_refused(const char *path, enum td_status status, const char *part)
{
    struct td_checkpoint *ck = NULL;
    struct td_err err = {0};
    char text[1024];
    enum td_status st = td_checkpoint_open(path, &ck, &err);

    td_err_format(&err, text, sizeof text);
    if (st != status)
        fail_msg("%s gives %s (%s); expected %s", path, td_status_name(st), text,
                 td_status_name(status));
    if (!strstr(text, part))
        fail_msg("'%s' does not say '%s'", text, part);
    assert_null(ck);
}

static volatile unsigned char sink; /* keeps reads alive */

/* Reads the first and last byte of every weight; returns the bytes of all. */
static size_t touch_weights(const struct td_checkpoint *ck)
{
    const struct td_spec *s = td_checkpoint_spec(ck);
    size_t bytes = 0;

    for (uint32_t layer = 0; layer < s->n_layers; layer++)
        for (int role = 0; role < TD_N_ROLES; role++) {
            bool is_global = role <= TD_ROLE_FINAL_NORM;
            struct td_err err = {0};
            struct td_tensor t;
            enum td_status st = td_checkpoint_weight(ck, (enum td_role)role, layer, &t, &err);

            if (is_global && layer > 0) {
                assert_int_equal(st, TD_INVALID);
                continue;
            }
            if ((role == TD_ROLE_HEAD && s->tied_head) ||
                ((role == TD_ROLE_Q_NORM || role == TD_ROLE_K_NORM) && !s->qk_norm)) {
                assert_int_equal(st, TD_NOT_FOUND);
                continue;
            }
            assert_int_equal(st, TD_OK);
            assert_int_equal(t.bytes,
                             td_dtype_row_bytes(t.dtype, t.n_dims == 1 ? t.dim[0] : t.dim[1]) *
                                 (t.n_dims == 1 ? 1 : t.dim[0]));
            sink ^= ((const unsigned char *)t.data)[0];
            sink ^= ((const unsigned char *)t.data)[t.bytes - 1];
            bytes += t.bytes;
        }
    return bytes;
}

/* ---- real models ---- */

static void test_checkpoint_opens_every_real_model_it_can_load(void **state)
{
    static const struct {
        const char *path;
        enum td_dtype dtype;
        uint32_t d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff, n_vocab, max_positions,
            n_eos;
        bool tied, interleaved;
    } model[] = {
        {"stories260K/hf", TD_F32, 64, 5, 8, 4, 8, 172, 512, 512, 2, true, false},
        {"stories260K/gguf/stories260K-F32.gguf", TD_F32, 64, 5, 8, 4, 8, 172, 512, 128, 1, false,
         true},
        {"stories260K/gguf/stories260K-F16.gguf", TD_F16, 64, 5, 8, 4, 8, 172, 512, 128, 1, false,
         true},
        {"stories260K/gguf/stories260K-BF16.gguf", TD_BF16, 64, 5, 8, 4, 8, 172, 512, 128, 1, false,
         true},
        {"stories3M/hf-bf16-sharded", TD_BF16, 192, 6, 6, 2, 32, 512, 4096, 512, 2, true, false},
        {"stories3M/gguf/stories3M-Q8_0.gguf", TD_Q8_0, 192, 6, 6, 2, 32, 512, 4096, 512, 1, true,
         true},
        {"stories3M/gguf/stories3M-Q4_0.gguf", TD_Q4_0, 192, 6, 6, 2, 32, 512, 4096, 512, 1, true,
         true},
        {"stories3M/gguf/stories3M-Q4_K_M.gguf", TD_Q5_0, 192, 6, 6, 2, 32, 512, 4096, 512, 1, true,
         true},
        {"stories3M/gguf/stories3M-Q6_K.gguf", TD_Q8_0, 192, 6, 6, 2, 32, 512, 4096, 512, 1, true,
         true},
        {"stories260K/gguf/stories260K-IQ4_XS.gguf", TD_IQ4_NL, 64, 5, 8, 4, 8, 172, 512, 128, 1,
         false, true},
        {"stories260K/gguf/stories260K-Q2_K.gguf", TD_Q4_0, 64, 5, 8, 4, 8, 172, 512, 128, 1, false,
         true},
        {"stories260K/gguf/stories260K-Q3_K_M.gguf", TD_F16, 64, 5, 8, 4, 8, 172, 512, 128, 1,
         false, true},
        {"stories260K/gguf/stories260K-Q4_K_M.gguf", TD_Q5_0, 64, 5, 8, 4, 8, 172, 512, 128, 1,
         false, true},
        {"stories260K/gguf/stories260K-Q5_K_M.gguf", TD_Q5_1, 64, 5, 8, 4, 8, 172, 512, 128, 1,
         false, true},
        {"stories260K/gguf/stories260K-Q6_K.gguf", TD_Q8_0, 64, 5, 8, 4, 8, 172, 512, 128, 1, false,
         true},
    };

    (void)state;
    skip_without_models();
    for (size_t i = 0; i < sizeof model / sizeof model[0]; i++) {
        char path[512];
        struct td_checkpoint *ck;
        const struct td_spec *s;

        snprintf(path, sizeof path, MODELS "/%s", model[i].path);
        ck = open_good(path);
        s = td_checkpoint_spec(ck);
        assert_string_equal(td_checkpoint_path(ck), path);
        assert_int_equal(s->arch, TD_ARCH_LLAMA);
        assert_int_equal(s->dtype, model[i].dtype);
        assert_int_equal(s->d_model, model[i].d_model);
        assert_int_equal(s->n_layers, model[i].n_layers);
        assert_int_equal(s->n_heads, model[i].n_heads);
        assert_int_equal(s->n_kv_heads, model[i].n_kv_heads);
        assert_int_equal(s->head_dim, model[i].head_dim);
        assert_int_equal(s->d_ff, model[i].d_ff);
        assert_int_equal(s->n_vocab, model[i].n_vocab);
        assert_int_equal(s->max_positions, model[i].max_positions);
        assert_int_equal(s->n_eos, model[i].n_eos);
        assert_int_equal(s->tied_head, model[i].tied);
        assert_int_equal(s->rope.interleaved, model[i].interleaved);
        assert_true(s->rope.theta == 10000 && s->rope.scaling == TD_ROPE_NONE);
        assert_true(s->rms_eps == 1e-5f);
        assert_int_equal(s->bos_id, 1);
        assert_true(s->add_bos);
        assert_int_equal(td_checkpoint_gguf(ck) != NULL, strstr(path, ".gguf") != NULL);
        assert_int_equal(td_checkpoint_tokenizer_json(ck).len > 0, !td_checkpoint_gguf(ck));
        assert_true(touch_weights(ck) > 200000);
        td_checkpoint_close(ck);
    }
}

static void test_checkpoint_refuses_files_and_architectures_by_name(void **state)
{
    (void)state;
    skip_without_models();
    expect_refused(TD_SHARED "/data/tokenizers/gpt-2/ggml-vocab-gpt-2.gguf", TD_UNSUPPORTED,
                   "architecture 'gpt2'");
    expect_refused(TD_SHARED "/data/tokenizers/llama-spm/ggml-vocab-llama-spm.gguf", TD_CORRUPT,
                   "tensor 'token_embd.weight' is missing");
    expect_refused(MODELS "/stories260K/llama2c/stories260K.bin", TD_UNSUPPORTED, "no GGUF file");
    expect_refused(MODELS, TD_NOT_FOUND, "config.json");
    expect_refused(MODELS "/none", TD_NOT_FOUND, "none");
}

/* GGUF has the rows of q and k permuted: row 2i + half of a head there is row half * head_dim / 2 + i here. */
static void expect_equal_rows(const struct td_tensor *hf, const struct td_tensor *gguf,
                              size_t head_dim)
{
    size_t row_bytes = hf->n_dims == 2 ? hf->bytes / hf->dim[0] : hf->bytes;

    assert_int_equal(hf->bytes, gguf->bytes);
    for (size_t row = 0; row < hf->bytes / row_bytes; row++) {
        size_t other = row;

        if (head_dim) {
            size_t within = row % head_dim, half = within / (head_dim / 2);

            other = row - within + 2 * (within % (head_dim / 2)) + half;
        }
        assert_memory_equal((const char *)hf->data + row * row_bytes,
                            (const char *)gguf->data + other * row_bytes, row_bytes);
    }
}

static void test_checkpoint_formats_of_one_model_hold_the_same_weights(void **state)
{
    struct td_checkpoint *hf, *gguf;
    struct td_tensor a, b;

    (void)state;
    skip_without_models();
    hf = open_good(MODELS "/stories260K/hf");
    gguf = open_good(MODELS "/stories260K/gguf/stories260K-F32.gguf");
    for (uint32_t layer = 0; layer < 5; layer++)
        for (int role = 0; role < TD_N_ROLES; role++) {
            if ((role <= TD_ROLE_FINAL_NORM && layer > 0) || role == TD_ROLE_HEAD ||
                role == TD_ROLE_Q_NORM || role == TD_ROLE_K_NORM)
                continue;
            assert_int_equal(td_checkpoint_weight(hf, (enum td_role)role, layer, &a, NULL), TD_OK);
            assert_int_equal(td_checkpoint_weight(gguf, (enum td_role)role, layer, &b, NULL),
                             TD_OK);
            expect_equal_rows(&a, &b, role == TD_ROLE_Q || role == TD_ROLE_K ? 8 : 0);
        }
    assert_int_equal(td_checkpoint_weight(hf, TD_ROLE_EMBED, 0, &a, NULL), TD_OK);
    assert_int_equal(td_checkpoint_weight(gguf, TD_ROLE_HEAD, 0, &b, NULL), TD_OK);
    expect_equal_rows(&a, &b, 0); /* tied there, written out here */
    td_checkpoint_close(hf);
    td_checkpoint_close(gguf);
}

/* ---- small models that the test writes ---- */

enum { D = 32, N_LAYERS = 2, HEADS = 4, KV = 2, HD = 16, FF = 48, VOCAB = 40 };

struct item {
    char name[64];
    size_t rows, columns; /* columns 0: one-dimensional */
    uint32_t ggml_type;   /* 0 F32, 1 F16, 30 BF16, and what a GGUF file may have */
    size_t row_bytes;     /* of those; 0: of the three */
    const char *hf_type;  /* NULL: by ggml_type */
};

static struct model {
    struct item item[64];
    size_t n;
    char config[2048];
    bool qwen3;
    uint32_t ff; /* of a GGUF file; 0: FF */
} model;

static char dir[64];

static void add(const char *name, size_t rows, size_t columns)
{
    struct item *item = &model.item[model.n++];

    snprintf(item->name, sizeof item->name, "%s", name);
    item->rows = rows;
    item->columns = columns;
    item->ggml_type = 0;
    item->row_bytes = 0;
    item->hf_type = NULL;
}

static struct item *find_item(const char *name)
{
    for (size_t i = 0; i < model.n; i++)
        if (strcmp(model.item[i].name, name) == 0)
            return &model.item[i];
    fail_msg("no item '%s'", name);
    return NULL;
}

static void drop(const char *name)
{
    struct item *item = find_item(name);

    *item = model.item[--model.n];
}

static void build_model(bool qwen3, bool as_gguf)
{
    static const struct {
        const char *hf, *gguf;
        size_t rows, columns;
    } part[] = {
        {"input_layernorm", "attn_norm", D, 0},
        {"self_attn.q_proj", "attn_q", HEADS * HD, D},
        {"self_attn.k_proj", "attn_k", KV * HD, D},
        {"self_attn.v_proj", "attn_v", KV * HD, D},
        {"self_attn.o_proj", "attn_output", D, HEADS * HD},
        {"post_attention_layernorm", "ffn_norm", D, 0},
        {"mlp.gate_proj", "ffn_gate", FF, D},
        {"mlp.up_proj", "ffn_up", FF, D},
        {"mlp.down_proj", "ffn_down", D, FF},
        {"self_attn.q_norm", "attn_q_norm", HD, 0},
        {"self_attn.k_norm", "attn_k_norm", HD, 0},
    };

    memset(&model, 0, sizeof model);
    model.qwen3 = qwen3;
    add(as_gguf ? "token_embd.weight" : "model.embed_tokens.weight", VOCAB, D);
    add(as_gguf ? "output_norm.weight" : "model.norm.weight", D, 0);
    add(as_gguf ? "output.weight" : "lm_head.weight", VOCAB, D);
    for (int layer = 0; layer < N_LAYERS; layer++)
        for (size_t p = 0; p < sizeof part / sizeof part[0] - (qwen3 ? 0 : 2); p++) {
            char name[64];

            if (as_gguf)
                snprintf(name, sizeof name, "blk.%d.%s.weight", layer, part[p].gguf);
            else
                snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, part[p].hf);
            add(name, part[p].rows, part[p].columns);
        }
    snprintf(
        model.config, sizeof model.config,
        "{\"architectures\":[\"%s\"],\"hidden_size\":%d,\"num_hidden_layers\":%d,\"num_attention_"
        "heads\":%d,"
        "\"num_key_value_heads\":%d,\"head_dim\":%d,\"intermediate_size\":%d,\"vocab_size\":%d,"
        "\"eos_token_id\":2,\"rope_theta\":1e6}",
        qwen3 ? "Qwen3ForCausalLM" : "LlamaForCausalLM", D, N_LAYERS, HEADS, KV, HD, FF, VOCAB);
}

static size_t item_bytes(const struct item *item)
{
    if (item->row_bytes)
        return item->rows * item->row_bytes;
    return item->rows * (item->columns ? item->columns : 1) * (item->ggml_type ? 2 : 4);
}

static void write_path(char path[256], const char *name)
{
    snprintf(path, 256, "%s/%s", dir, name);
}

static void write_text(const char *name, const char *text)
{
    char path[256];
    FILE *f;

    write_path(path, name);
    f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void write_payload(FILE *f, size_t n, unsigned char seed)
{
    for (size_t i = 0; i < n; i++)
        fputc((i * 7 + seed) & 0x3f, f);
}

static void write_directory(void)
{
    char header[8192], path[256];
    size_t n = 1, at = 0;
    uint64_t len;
    FILE *f;

    header[0] = '{';
    for (size_t i = 0; i < model.n; i++) {
        const struct item *item = &model.item[i];
        char columns[32] = "";

        if (item->columns)
            snprintf(columns, sizeof columns, ",%zu", item->columns);
        n += (size_t)snprintf(
            header + n, sizeof header - n,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%zu%s],\"data_offsets\":[%zu,%zu]}",
            i ? "," : "", item->name,
            item->hf_type           ? item->hf_type
            : item->ggml_type == 30 ? "BF16"
            : item->ggml_type       ? "F16"
                                    : "F32",
            item->rows, columns, at, at + item_bytes(item));
        at += item_bytes(item);
    }
    header[n++] = '}';
    write_path(path, "model.safetensors");
    f = fopen(path, "wb");
    assert_non_null(f);
    len = n;
    fwrite(&len, 1, 8, f);
    fwrite(header, 1, n, f);
    for (size_t i = 0; i < model.n; i++)
        write_payload(f, item_bytes(&model.item[i]), (unsigned char)i);
    fclose(f);
    write_text("config.json", model.config);
}

static void put32(FILE *f, uint32_t v)
{
    fwrite(&v, 1, 4, f);
}

static void put64(FILE *f, uint64_t v)
{
    fwrite(&v, 1, 8, f);
}

static void put_str(FILE *f, const char *s)
{
    put64(f, strlen(s));
    fwrite(s, 1, strlen(s), f);
}

/* Metadata that a test adds to the usual pairs: u32 values, or strings where text is set. */
struct extra {
    const char *key;
    uint32_t value;
    const char *text;
};

static void put_u32_pair(FILE *f, const char *prefix, const char *key, uint32_t value)
{
    char whole[96];

    snprintf(whole, sizeof whole, "%s%s", prefix, key);
    put_str(f, whole);
    put32(f, TD_GGUF_U32);
    put32(f, value);
}

static void write_gguf(const struct extra *extra, size_t n_extra)
{
    const char *arch = model.qwen3 ? "qwen3." : "llama.";
    static const float eps = 1e-6f;
    uint64_t offset = 0;
    char path[256];
    FILE *f;

    write_path(path, "m.gguf");
    f = fopen(path, "wb");
    assert_non_null(f);
    fwrite("GGUF", 1, 4, f);
    put32(f, 3);
    put64(f, model.n);
    put64(f, 10 + n_extra);
    put_str(f, "general.architecture"), put32(f, TD_GGUF_STRING),
        put_str(f, model.qwen3 ? "qwen3" : "llama");
    put_u32_pair(f, arch, "block_count", N_LAYERS);
    put_u32_pair(f, arch, "embedding_length", D);
    put_u32_pair(f, arch, "feed_forward_length", model.ff ? model.ff : FF);
    put_u32_pair(f, arch, "attention.head_count", HEADS);
    put_u32_pair(f, arch, "attention.head_count_kv", KV);
    put_u32_pair(f, arch, "attention.key_length", HD);
    put_u32_pair(f, arch, "attention.value_length", HD);
    put_u32_pair(f, arch, "context_length", 256);
    snprintf(path, sizeof path, "%sattention.layer_norm_rms_epsilon", arch);
    put_str(f, path), put32(f, TD_GGUF_F32), fwrite(&eps, 1, 4, f);
    for (size_t i = 0; i < n_extra; i++) {
        if (extra[i].text)
            put_str(f, extra[i].key), put32(f, TD_GGUF_STRING), put_str(f, extra[i].text);
        else
            put_u32_pair(f, "", extra[i].key, extra[i].value);
    }
    for (size_t i = 0; i < model.n; i++) {
        const struct item *item = &model.item[i];

        put_str(f, item->name);
        put32(f, item->columns ? 2 : 1);
        if (item->columns)
            put64(f, item->columns);
        put64(f, item->rows);
        put32(f, item->ggml_type);
        put64(f, offset);
        offset += (item_bytes(item) + 31) / 32 * 32;
    }
    while (ftell(f) % 32)
        fputc(0, f);
    for (size_t i = 0; i < model.n; i++) {
        if (strcmp(model.item[i].name, "rope_freqs.weight") == 0)
            for (size_t k = 0; k < model.item[i].rows; k++) {
                float factor = (float)(k + 1);

                fwrite(&factor, 1, 4, f);
            }
        else
            write_payload(f, item_bytes(&model.item[i]), (unsigned char)i);
        while (ftell(f) % 32)
            fputc(0, f);
    }
    fclose(f);
}

static const char *gguf_path(void)
{
    static char path[256];

    write_path(path, "m.gguf");
    return path;
}

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/td-checkpoint-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static void test_checkpoint_reads_qwen3_in_both_formats(void **state)
{
    static const struct extra extra[] = {{"tokenizer.ggml.eos_token_id", 2, NULL},
                                         {"tokenizer.ggml.eot_token_id", 5, NULL},
                                         {"tokenizer.ggml.bos_token_id", UINT32_MAX, NULL},
                                         {"tokenizer.chat_template", 0, "{{ hello }}"}};
    struct td_checkpoint *ck;
    const struct td_spec *s;
    struct td_tensor t;
    char name[64];

    (void)state;
    build_model(true, false);
    write_directory();
    ck = open_good(dir);
    s = td_checkpoint_spec(ck);
    assert_int_equal(s->arch, TD_ARCH_QWEN3);
    assert_true(s->qk_norm);
    assert_false(s->rope.interleaved);
    assert_false(s->tied_head);
    assert_int_equal(td_checkpoint_weight(ck, TD_ROLE_Q_NORM, 1, &t, NULL), TD_OK);
    assert_int_equal(t.dim[0], HD);
    assert_string_equal(td_checkpoint_weight_name(ck, TD_ROLE_UP, 1, name, sizeof name),
                        "model.layers.1.mlp.up_proj.weight");
    touch_weights(ck);
    td_checkpoint_close(ck);

    build_model(true, true);
    write_gguf(extra, 4);
    ck = open_good(gguf_path());
    s = td_checkpoint_spec(ck);
    assert_int_equal(s->arch, TD_ARCH_QWEN3);
    assert_true(s->qk_norm);
    assert_false(s->rope.interleaved);
    assert_int_equal(s->n_vocab, VOCAB);
    assert_int_equal(s->bos_id, -1);
    assert_int_equal(s->n_eos, 2);
    assert_int_equal(s->eos_ids[1], 5);
    assert_true(td_str_eq(td_checkpoint_chat_template(ck), TD_STR("{{ hello }}")));
    assert_string_equal(td_checkpoint_weight_name(ck, TD_ROLE_UP, 1, name, sizeof name),
                        "blk.1.ffn_up.weight");
    touch_weights(ck);
    td_checkpoint_close(ck);
}

static void test_checkpoint_takes_frequency_factors_and_yarn_from_gguf(void **state)
{
    static const struct extra yarn[] = {{"llama.rope.scaling.type", 0, "yarn"},
                                        {"llama.rope.scaling.original_context_length", 64, NULL}};
    static const struct extra other[] = {{"llama.rope.scaling.type", 0, "longrope"}};
    struct td_checkpoint *ck;
    const struct td_spec *s;

    (void)state;
    build_model(false, true);
    drop("output.weight");
    add("rope_freqs.weight", HD / 2, 0);
    write_gguf(yarn, 2);
    ck = open_good(gguf_path());
    s = td_checkpoint_spec(ck);
    assert_true(s->tied_head);
    assert_true(s->rope.interleaved);
    assert_non_null(s->rope.freq_factors);
    assert_true(s->rope.freq_factors[HD / 2 - 1] == HD / 2);
    assert_int_equal(s->rope.scaling, TD_ROPE_YARN);
    assert_true(s->rope.original_max_positions == 64);
    td_checkpoint_close(ck);
    find_item("rope_freqs.weight")->rows = 3;
    write_gguf(NULL, 0);
    expect_refused(gguf_path(), TD_CORRUPT, "rope_freqs.weight");
    drop("rope_freqs.weight");
    write_gguf(other, 1);
    expect_refused(gguf_path(), TD_UNSUPPORTED, "llama.rope.scaling.type");
}

static void test_checkpoint_names_what_is_wrong_with_a_weight(void **state)
{
    static const struct extra experts[] = {{"llama.expert_count", 8, NULL}};
    static const struct extra rotated[] = {{"llama.rope.dimension_count", HD / 2, NULL}};
    static const struct extra split[] = {{"split.count", 3, NULL}};
    static const struct extra vocab[] = {{"llama.vocab_size", VOCAB + 1, NULL}};

    (void)state;
    build_model(false, false);
    find_item("model.layers.1.mlp.up_proj.weight")->rows = FF - 1;
    write_directory();
    expect_refused(dir, TD_CORRUPT,
                   "tensor 'model.layers.1.mlp.up_proj.weight' is 47 x 32; expected 48 x 32");
    build_model(false, false);
    drop("model.layers.0.self_attn.k_proj.weight");
    write_directory();
    expect_refused(
        dir, TD_CORRUPT,
        "tensor 'model.layers.0.self_attn.k_proj.weight' is missing; expected one of 32 x 32");
    build_model(false, false);
    add("model.layers.0.self_attn.q_proj.bias", HEADS * HD, 0);
    write_directory();
    expect_refused(dir, TD_UNSUPPORTED, "tensor 'model.layers.0.self_attn.q_proj.bias' is a bias");
    build_model(false, false);
    add("model.layers.0.self_attn.q_norm.weight", HD, 0);
    write_directory();
    expect_refused(dir, TD_UNSUPPORTED, "'model.layers.0.self_attn.q_norm.weight' has no place");
    build_model(false, false);
    add("model.layers.0.self_attn.rotary_emb.inv_freq", HD / 2, 0); /* old files have it */
    write_directory();
    td_checkpoint_close(open_good(dir));

    build_model(false, true);
    write_gguf(experts, 1);
    expect_refused(gguf_path(), TD_UNSUPPORTED, "8 experts");
    write_gguf(rotated, 1);
    expect_refused(gguf_path(), TD_UNSUPPORTED, "8 rotated");
    write_gguf(split, 1);
    expect_refused(gguf_path(), TD_UNSUPPORTED, "split over 3");
    write_gguf(vocab, 1);
    expect_refused(gguf_path(), TD_CORRUPT,
                   "tensor 'token_embd.weight' is 40 x 32; expected 41 x 32");
    add("blk.0.ffn_gate_exps.weight", FF, D);
    write_gguf(NULL, 0);
    expect_refused(gguf_path(), TD_UNSUPPORTED, "mixture of experts");
}

/* ---- types ---- */

/* Gives a GGUF file's ffn_down of layer 1 rows of 256 columns in another type. */
static void set_down(uint32_t ggml_type, size_t row_bytes)
{
    static const char *const wide[] = {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight",
                                       "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"};
    struct item *down;

    build_model(false, true);
    model.ff = 256;
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        find_item(wide[i])->rows = 256;
    find_item("blk.0.ffn_down.weight")->columns = 256;
    down = find_item("blk.1.ffn_down.weight");
    down->columns = 256;
    down->ggml_type = ggml_type;
    down->row_bytes = row_bytes;
    write_gguf(NULL, 0);
}

static void test_checkpoint_loads_every_type_of_gguf_and_refuses_others_by_name(void **state)
{
    struct td_tensor t;
    size_t n_types = 0;

    (void)state;
    for (int type = 0; type < TD_N_DTYPES; type++) {
        size_t row_bytes = td_dtype_row_bytes((enum td_dtype)type, 256);
        struct td_checkpoint *ck;
        uint32_t number;

        if (!td_gguf_number_of((enum td_dtype)type, &number)) {
            assert_true(type == TD_F8_E4M3 || type == TD_INT4);
            continue;
        }
        set_down(number, row_bytes);
        ck = open_good(gguf_path());
        assert_int_equal(td_checkpoint_weight(ck, TD_ROLE_DOWN, 1, &t, NULL), TD_OK);
        assert_int_equal(t.dtype, type);
        assert_int_equal(t.bytes, D * row_bytes);
        touch_weights(ck);
        td_checkpoint_close(ck);
        n_types++;
    }
    assert_int_equal(n_types, TD_N_DTYPES - 2);

    set_down(16, 66);
    expect_refused(gguf_path(), TD_UNSUPPORTED,
                   "tensor 'blk.1.ffn_down.weight' has type IQ2_XXS, which is not built; expected "
                   "f32 f16 bf16 q8_0");
    build_model(false, true); /* rows of 32 */
    find_item("blk.1.ffn_up.weight")->ggml_type = 14;
    write_gguf(NULL, 0);
    expect_refused(gguf_path(), TD_CORRUPT,
                   "tensor 'blk.1.ffn_up.weight': rows of 32 are no whole number of Q6_K blocks");
    build_model(false, true);
    find_item("output_norm.weight")->ggml_type = 8;
    write_gguf(NULL, 0);
    expect_refused(gguf_path(), TD_UNSUPPORTED,
                   "norm 'output_norm.weight' has type Q8_0, which is not built; expected f32 f16 "
                   "bf16");
}

/* A Hugging Face model whose up_proj of layer 1 is FP8 with a scale of that name, shape and type. */
static void write_fp8(const char *config, const char *scale, size_t rows, size_t columns,
                      const char *scale_type, size_t elem_bytes)
{
    struct item *item;

    build_model(false, false);
    item = find_item("model.layers.1.mlp.up_proj.weight");
    item->hf_type = "F8_E4M3";
    item->row_bytes = D;
    if (scale) {
        add(scale, rows, columns);
        item = find_item(scale);
        item->hf_type = scale_type;
        item->row_bytes = (columns ? columns : 1) * elem_bytes;
    }
    snprintf(model.config + strlen(model.config) - 1, sizeof model.config - strlen(model.config),
             ",%s}", config);
    write_directory();
}

#define UP1 "model.layers.1.mlp.up_proj."
#define FP8 "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}"

static void test_checkpoint_takes_fp8_scales_of_every_shape(void **state)
{
    static const struct {
        const char *name;
        size_t rows, columns;
        const char *type;
        size_t elem_bytes;
        bool by_row;
    } good[] = {{UP1 "weight_scale_inv", 1, 1, "F32", 4, false},
                {UP1 "weight_scale_inv", 1, 1, "BF16", 2, false},
                {UP1 "weight_scale", 1, 0, "F32", 4, false},
                {UP1 "weight_scale", FF, 0, "F32", 4, true},
                {UP1 "weight_scale", FF, 1, "BF16", 2, true}};

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        struct td_checkpoint *ck;
        float scales[FF], other[2];
        struct td_tensor t;
        struct td_err err;

        write_fp8(FP8, good[i].name, good[i].rows, good[i].columns, good[i].type,
                  good[i].elem_bytes);
        ck = open_good(dir);
        assert_int_equal(td_checkpoint_weight(ck, TD_ROLE_UP, 1, &t, NULL), TD_OK);
        assert_int_equal(t.dtype, TD_F8_E4M3);
        assert_int_equal(td_checkpoint_scales(ck, TD_ROLE_UP, 1, 0, FF, 0, D, scales, &err), TD_OK);
        for (size_t r = 1; r < FF; r++)
            if (!good[i].by_row)
                assert_true(scales[r] == scales[0]);
        assert_int_equal(good[i].by_row, scales[0] != scales[1]);
        assert_int_equal(td_checkpoint_scales(ck, TD_ROLE_UP, 1, 7, 2, 0, D, other, &err), TD_OK);
        assert_memory_equal(other, scales + 7, sizeof other);
        assert_int_equal(td_checkpoint_scales(ck, TD_ROLE_UP, 1, FF - 1, 2, 0, D, other, &err),
                         TD_INVALID);
        assert_int_equal(td_checkpoint_scales(ck, TD_ROLE_UP, 0, 0, 1, 0, D, other, &err),
                         TD_INVALID);
        td_checkpoint_close(ck);
    }
    /* What measures activations or a cache is no weight. */
    write_fp8(FP8, UP1 "weight_scale", 1, 0, "F32", 4);
    add(UP1 "input_scale", 1, 0);
    add("model.layers.1.self_attn.k_scale", 1, 0);
    write_directory();
    td_checkpoint_close(open_good(dir));
}

static void test_checkpoint_refuses_fp8_that_it_cannot_scale(void **state)
{
    (void)state;
    write_fp8(FP8, NULL, 0, 0, NULL, 0);
    expect_refused(dir, TD_CORRUPT,
                   "tensor '" UP1 "weight' has type F8_E4M3 but no scale beside it; expected '" UP1
                   "weight_scale_inv' or '" UP1 "weight_scale'");
    write_fp8(FP8, UP1 "weight_scale", FF - 1, 0, "F32", 4);
    expect_refused(dir, TD_CORRUPT, "scale '" UP1 "weight_scale' is 1-dimensional, 47 x 1");
    write_fp8(FP8, UP1 "weight_scale_inv", 1, 2, "F32", 4);
    expect_refused(dir, TD_CORRUPT, "scale '" UP1 "weight_scale_inv' is 2-dimensional, 1 x 2");
    write_fp8(FP8, UP1 "weight_scale", 1, 0, "F8_E8M0", 1);
    expect_refused(dir, TD_UNSUPPORTED, "scale '" UP1 "weight_scale' has type F8_E8M0");
    write_fp8(FP8, UP1 "weight_scale", 1, 0, "F8_E4M3", 1);
    expect_refused(dir, TD_UNSUPPORTED, "scale '" UP1 "weight_scale' has type f8_e4m3");
    write_fp8(FP8, UP1 "weight_scale", 1, 0, "F32", 4);
    find_item(UP1 "weight")->hf_type = "F8_E5M2";
    write_directory();
    expect_refused(dir, TD_UNSUPPORTED, "tensor '" UP1 "weight' has type F8_E5M2");
    write_fp8("\"quantization_config\":{\"quant_method\":\"hqq\"}", UP1 "weight_scale", 1, 0, "F32",
              4);
    expect_refused(dir, TD_UNSUPPORTED, "asks for the method 'hqq'");
}

static void count_entry(const struct td_checkpoint_entry *entry, void *user)
{
    assert_non_null(entry->type_name);
    *(size_t *)user += entry->bytes;
}

static void test_checkpoint_visits_every_tensor(void **state)
{
    size_t bytes = 0, expected = 0;
    struct td_checkpoint *ck;

    (void)state;
    build_model(true, false);
    write_directory();
    ck = open_good(dir);
    for (size_t i = 0; i < model.n; i++)
        expected += item_bytes(&model.item[i]);
    td_checkpoint_visit(ck, count_entry, &bytes);
    assert_int_equal(bytes, expected);
    assert_int_equal(touch_weights(ck), expected);
    td_checkpoint_close(ck);
}

/* ---- hash ---- */

static void hash_of(const char *path, bool every_byte, char out[33])
{
    struct td_checkpoint *ck = open_good(path);
    struct td_err err = {0};

    assert_int_equal(td_checkpoint_hash(ck, every_byte, out, &err), TD_OK);
    assert_int_equal(strlen(out), 32);
    td_checkpoint_close(ck);
}

static void flip(const char *name, long at)
{
    char path[256];
    FILE *f;
    int byte;

    write_path(path, name);
    f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    byte = fgetc(f);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    fputc(byte ^ 1, f);
    fclose(f);
}

static void test_checkpoint_hash_follows_every_part(void **state)
{
    char before[33], after[33], every[33];

    (void)state;
    build_model(true, false);
    write_directory();
    write_text("tokenizer.json", "{}");
    hash_of(dir, false, before);
    hash_of(dir, false, after);
    assert_string_equal(before, after);
    hash_of(dir, true, every);
    assert_string_not_equal(before, every);
    flip("model.safetensors", -1);
    hash_of(dir, false, after);
    assert_string_not_equal(before, after);
    flip("model.safetensors", -1);
    write_text("tokenizer.json", "{ }");
    hash_of(dir, false, after);
    assert_string_not_equal(before, after);
    write_text("tokenizer.json", "{}");
    strcat(model.config, " ");
    write_text("config.json", model.config);
    hash_of(dir, false, after);
    assert_string_not_equal(before, after);
}

static void test_checkpoint_hash_of_every_byte_sees_what_samples_miss(void **state)
{
    char sampled[33], every[33], after[33];
    long middle = 8 << 20;

    (void)state;
    build_model(false, true);
    model.item[0].rows = 200000; /* 25 MB of embedding: samples lie 400 KB apart */
    write_gguf(NULL, 0);
    expect_refused(gguf_path(), TD_CORRUPT, "output.weight");
    drop("output.weight");
    write_gguf(NULL, 0);
    hash_of(gguf_path(), false, sampled);
    hash_of(gguf_path(), true, every);
    flip("m.gguf", middle + 100 * 1024);
    hash_of(gguf_path(), true, after);
    assert_string_not_equal(every, after);
    hash_of(gguf_path(), false, after);
    assert_string_equal(sampled, after);
    flip("m.gguf", -1); /* the last block is sampled */
    hash_of(gguf_path(), false, after);
    assert_string_not_equal(sampled, after);
}

static size_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    size_t size = 0, resident = 0;

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%zu %zu", &size, &resident), 2);
    fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static void test_checkpoint_release_gives_the_pages_back(void **state)
{
    unsigned char sum = 0;
    struct td_checkpoint *ck;
    struct td_tensor t;
    size_t before, touched;

    (void)state;
    build_model(false, true);
    model.item[0].rows = 200000;
    drop("output.weight");
    write_gguf(NULL, 0);
    ck = open_good(gguf_path());
    assert_int_equal(td_checkpoint_weight(ck, TD_ROLE_EMBED, 0, &t, NULL), TD_OK);
    before = resident_bytes();
    assert_true(before > 0);
    for (size_t i = 0; i < t.bytes; i += 4096)
        sum ^= ((const volatile unsigned char *)t.data)[i];
    touched = resident_bytes();
    assert_true(touched > before + t.bytes / 2);
    td_checkpoint_release(ck, t.data, t.bytes);
    assert_true(resident_bytes() < before + t.bytes / 4);
    assert_int_equal(((const unsigned char *)t.data)[5], (5 * 7) & 0x3f); /* still there */
    td_checkpoint_release(ck, &sum, 1);                                   /* not ours: no effect */
    td_checkpoint_close(ck);
}

/* ---- damage ---- */

static void damage(const char *open_path, const char *name, size_t header_bytes, int n_rounds,
                   uint64_t *seed)
{
    char path[256];
    size_t n_opened = 0;
    struct stat info;
    unsigned char *bytes;
    FILE *f;

    write_path(path, name);
    assert_int_equal(stat(path, &info), 0);
    bytes = malloc((size_t)info.st_size);
    f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(bytes, 1, (size_t)info.st_size, f), info.st_size);
    fclose(f);
    for (int round = 0; round < n_rounds; round++) {
        struct td_checkpoint *ck = NULL;
        struct td_err err = {0};
        size_t at, len = (size_t)info.st_size;
        unsigned char saved;

        *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
        at = (*seed >> 20) % header_bytes;
        saved = bytes[at];
        if (round % 3 == 0)
            len = (*seed & 1) ? at : (*seed >> 20) % len;
        else
            bytes[at] =
                (unsigned char)((*seed & 1) ? *seed >> 8 : saved ^ (1u << (*seed >> 8 & 7)));
        f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, len, f), len);
        fclose(f);
        if (td_checkpoint_open(open_path, &ck, &err) == TD_OK) {
            char hex[33];

            n_opened++;
            touch_weights(ck);
            assert_int_equal(td_checkpoint_hash(ck, false, hex, &err), TD_OK);
        } else {
            assert_true(strlen(err.cause) > 10);
        }
        td_checkpoint_close(ck);
        bytes[at] = saved;
    }
    f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(bytes, 1, (size_t)info.st_size, f);
    fclose(f);
    free(bytes);
    print_message("%s: %zu of %d damaged copies open\n", name, n_opened, n_rounds);
}

static void test_checkpoint_survives_damaged_models(void **state)
{
    static const struct extra extra[] = {{"tokenizer.ggml.eos_token_id", 2, NULL},
                                         {"qwen3.rope.scaling.type", 0, "linear"},
                                         {"general.alignment", 32, NULL}};
    uint64_t seed = 0xd1342543de82ef95u;

    (void)state;
    print_message("seed %" PRIx64 "\n", seed);
    build_model(true, true);
    write_gguf(extra, 3);
    damage(gguf_path(), "m.gguf", 2048, 2000, &seed);
    build_model(true, false);
    write_directory();
    damage(dir, "model.safetensors", 2048, 1500, &seed);
    damage(dir, "config.json", strlen(model.config), 1500, &seed);
    td_checkpoint_close(open_good(dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkpoint_opens_every_real_model_it_can_load),
        cmocka_unit_test(test_checkpoint_refuses_files_and_architectures_by_name),
        cmocka_unit_test(test_checkpoint_formats_of_one_model_hold_the_same_weights),
        cmocka_unit_test_setup_teardown(test_checkpoint_reads_qwen3_in_both_formats, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_takes_frequency_factors_and_yarn_from_gguf,
                                        make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_names_what_is_wrong_with_a_weight, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(
            test_checkpoint_loads_every_type_of_gguf_and_refuses_others_by_name, make_dir,
            remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_takes_fp8_scales_of_every_shape, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_refuses_fp8_that_it_cannot_scale, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_visits_every_tensor, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_hash_follows_every_part, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_hash_of_every_byte_sees_what_samples_miss,
                                        make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_release_gives_the_pages_back, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_survives_damaged_models, make_dir,
                                        remove_dir),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
