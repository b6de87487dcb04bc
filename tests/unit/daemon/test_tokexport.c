/* tokenizer.json said as GGUF metadata and read back: the same ids as the published vectors, and refusals by name. */
#include "daemon/text/tokexport.h"
#include "shard/ggufwrite.h"
#include "shard/spec.h"
#include "text_check.h"

#include <jansson.h>

/* Writes the metadata and opens it again; NULL when it was refused. */
static struct td_tokenizer *export(struct td_str json, struct td_str config, uint32_t n_more,
                                   struct td_tokenizer **tok, struct td_gguf **g,
                                   struct td_bytes *head, struct td_err *err)
{
    struct td_tokenizer *again = NULL;
    struct td_ggufwrite *w = NULL;
    struct td_bytes notes = {0};
    struct td_spec spec = {.bos_id = -1};

    *tok = NULL;
    if (td_tokenizer_open_json(json, config, tok, err))
        fail_msg("%s", err->cause);
    spec.n_vocab = td_tokenizer_n_vocab(*tok) + n_more;
    if (td_tokenizer_eos(*tok) >= 0)
        spec.eos_ids[spec.n_eos++] = (uint32_t)td_tokenizer_eos(*tok);
    assert_int_equal(td_ggufwrite_open(&w, NULL), TD_OK);
    if (td_tokexport_gguf(*tok, json, &spec, w, &notes, err) == TD_OK) {
        if (td_ggufwrite_head(w, head, err) || td_gguf_open_memory(head->data, head->len, g, err) ||
            td_tokenizer_open_gguf(*g, &again, err))
            fail_msg("%s", err->cause);
    }
    td_ggufwrite_close(w);
    td_bytes_deinit(&notes);
    return again;
}

static void check_vectors(const struct td_tokenizer *tok, const char *name)
{
    struct td_ids ids = {0};
    json_t *vectors, *v;
    char path[256];
    size_t i;

    snprintf(path, sizeof path, TOKENIZERS "%s/vectors.json", name);
    vectors = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_true(json_array_size(vectors) > 10);
    json_array_foreach(vectors, i, v)
    {
        const json_t *text = json_object_get(v, "text"), *want = json_object_get(v, "ids");
        struct td_str s = {json_string_value(text), json_string_length(text)};

        td_ids_clear(&ids);
        assert_int_equal(td_tokenizer_encode(tok, s, TD_ENCODE_SPECIAL, &ids, NULL), TD_OK);
        if (ids.len != json_array_size(want))
            fail_msg("%s, vector %zu: %zu ids, expected %zu", name, i, ids.len,
                     json_array_size(want));
        for (size_t k = 0; k < ids.len; k++)
            assert_int_equal(ids.data[k], json_integer_value(json_array_get(want, k)));
    }
    json_decref(vectors);
    td_ids_deinit(&ids);
}

static void test_tokexport_gives_the_published_ids_of_real_tokenizers(void **state)
{
    static const struct {
        const char *vectors, *folder, *model, *pre;
    } real[] = {
        {"qwen2.5", TOKENIZERS "qwen2.5", "gpt2", "qwen2"},
        {"llama-3", TOKENIZERS "llama-3", "gpt2", "llama-bpe"},
        {"mistral-v3", TOKENIZERS "mistral-v3", "llama", NULL},
        {"llama-spm", TOKENIZERS "llama-spm", "llama", NULL},
        {"stories260K", TD_SHARED "/data/models/stories260K/hf", "llama", NULL},
        {"stories3M", TD_SHARED "/data/models/stories3M/hf-bf16-sharded", "llama", NULL},
    };

    (void)state;
    SKIP_WITHOUT_SHARED();
    for (size_t i = 0; i < sizeof real / sizeof real[0]; i++) {
        struct td_bytes json, config, head = {0};
        struct td_tokenizer *tok, *again;
        struct td_gguf *g = NULL;
        struct td_err err;
        struct td_str s;
        char path[256];

        snprintf(path, sizeof path, "%s/tokenizer.json", real[i].folder);
        json = text_read(path);
        snprintf(path, sizeof path, "%s/tokenizer_config.json", real[i].folder);
        config = text_read(path);
        again = export(td_bytes_str(&json), td_bytes_str(&config), 64, &tok, &g, &head, &err);
        if (!again)
            fail_msg("%s: %s", real[i].vectors, err.cause);
        assert_int_equal(td_gguf_get_str(g, "tokenizer.ggml.model", &s, NULL), TD_OK);
        assert_true(td_str_eq(s, td_str_from(real[i].model)));
        if (real[i].pre) {
            assert_int_equal(td_gguf_get_str(g, "tokenizer.ggml.pre", &s, NULL), TD_OK);
            assert_true(td_str_eq(s, td_str_from(real[i].pre)));
        }
        assert_int_equal(td_tokenizer_n_vocab(again), td_tokenizer_n_vocab(tok) + 64);
        assert_int_equal(td_tokenizer_bos(again), td_tokenizer_bos(tok));
        if (td_tokenizer_eos(tok) >= 0)
            assert_int_equal(td_tokenizer_eos(again), td_tokenizer_eos(tok));
        check_vectors(again, real[i].vectors);
        if (td_tokexport_compare(tok, again, TD_STR("{{ x }}</s><|im_end|>"), TD_ENCODE_BOS, &err))
            fail_msg("%s: %s", real[i].vectors, err.cause);
        /* This file has control tokens that are matched in normalised text, which GGUF cannot say. */
        if (strcmp(real[i].vectors, "llama-spm") != 0 &&
            td_tokexport_compare(tok, again, TD_STR("{{ x }}</s><|im_end|>"),
                                 TD_ENCODE_BOS | TD_ENCODE_SPECIAL, &err))
            fail_msg("%s: %s", real[i].vectors, err.cause);
        for (uint32_t id = 0; id < td_tokenizer_n_vocab(tok); id++) {
            assert_int_equal(td_tokenizer_is_special(again, id), td_tokenizer_is_special(tok, id));
            if (!td_str_eq(td_tokenizer_piece(again, id), td_tokenizer_piece(tok, id)))
                fail_msg("%s: token %u writes other bytes", real[i].vectors, id);
        }
        td_tokenizer_close(tok);
        td_tokenizer_close(again);
        td_gguf_close(g);
        td_bytes_deinit(&head);
        td_bytes_deinit(&json);
        td_bytes_deinit(&config);
    }
}

/* Scores made of merge rules are those of the SentencePiece model, as far as they matter: the same order. */
static void test_tokexport_orders_scores_as_the_original_file_does(void **state)
{
    struct td_bytes json, head = {0};
    struct td_tokenizer *tok, *again;
    const struct td_gguf_kv *mine, *theirs;
    struct td_gguf *g = NULL, *original;
    struct td_err err;

    (void)state;
    SKIP_WITHOUT_SHARED();
    json = text_read(TD_SHARED "/data/models/stories3M/hf-bf16-sharded/tokenizer.json");
    assert_int_equal(
        td_gguf_open(TD_SHARED "/data/models/stories3M/gguf/stories3M-Q8_0.gguf", &original, &err),
        TD_OK);
    again = export(td_bytes_str(&json), TD_STR(""), 0, &tok, &g, &head, &err);
    assert_non_null(again);
    assert_int_equal(td_gguf_get_array(g, "tokenizer.ggml.scores", TD_GGUF_F32, &mine, &err),
                     TD_OK);
    assert_int_equal(
        td_gguf_get_array(original, "tokenizer.ggml.scores", TD_GGUF_F32, &theirs, &err), TD_OK);
    assert_int_equal(mine->n, theirs->n);
    for (size_t i = 260, last = 0; i < mine->n; i++) {
        if (td_gguf_elem_f32(mine, i) <= -4096.0f) /* one character: nothing makes it */
            continue;
        if (last)
            assert_int_equal(td_gguf_elem_f32(mine, i) < td_gguf_elem_f32(mine, last),
                             td_gguf_elem_f32(theirs, i) < td_gguf_elem_f32(theirs, last));
        last = i;
    }
    td_tokenizer_close(tok);
    td_tokenizer_close(again);
    td_gguf_close(g);
    td_gguf_close(original);
    td_bytes_deinit(&head);
    td_bytes_deinit(&json);
}

#define VOCAB                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"

static void test_tokexport_refuses_by_name_what_gguf_cannot_say(void **state)
{
    static const struct {
        const char *json, *part;
    } bad[] = {
        {"{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true}," VOCAB "}",
         "add_prefix_space"},
        {"{\"normalizer\":{\"type\":\"NFKC\"},\"pre_tokenizer\":" BYTES "," VOCAB "}",
         "normalizer"},
        {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
         "\"pattern\":{"
         "\"Regex\":\"\\\\d+x\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"add_prefix_"
         "space\":"
         "false,\"use_regex\":false}]}," VOCAB "}",
         "cuts by '\\d+x'"},
        {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
         "\"pattern\":{"
         "\"String\":\"x\"},\"behavior\":\"Removed\"}," BYTES "]}," VOCAB "}",
         "'Split'"},
        {"{\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":" BYTES "," VOCAB "}", "after NFC"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":"
         "\"always\",\"split\":false}," VOCAB "}",
         "U+2581"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_"
         "scheme\":"
         "\"first\",\"split\":false}," VOCAB "}",
         "U+2581"},
        {"{" VOCAB "}", "U+2581"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct td_tokenizer *tok;
        struct td_bytes head = {0};
        struct td_gguf *g = NULL;
        struct td_err err;

        assert_null(export(td_str_from(bad[i].json), TD_STR(""), 0, &tok, &g, &head, &err));
        assert_int_equal(err.status, TD_UNSUPPORTED);
        if (!strstr(err.cause, bad[i].part))
            fail_msg("'%s' does not say '%s'", err.cause, bad[i].part);
        td_tokenizer_close(tok);
    }
}

static void test_tokexport_compare_sees_a_difference(void **state)
{
    struct td_tokenizer *a = NULL, *b = NULL;
    struct td_err err;

    (void)state;
    assert_int_equal(td_tokenizer_open_json(td_str_from("{\"pre_tokenizer\":" BYTES "," VOCAB "}"),
                                            TD_STR(""), &a, &err),
                     TD_OK);
    assert_int_equal(
        td_tokenizer_open_json(td_str_from("{\"pre_tokenizer\":" BYTES
                                           ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,"
                                           "\"b\":1,\"ab\":2},\"merges\":[]}}"),
                               TD_STR(""), &b, &err),
        TD_OK);
    assert_int_equal(td_tokexport_compare(a, a, TD_STR("ab"), 0, &err), TD_OK);
    assert_int_equal(td_tokexport_compare(a, b, TD_STR("ab"), 0, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "gives 2 tokens, or others, where tokenizer.json gives 1"));
    td_tokenizer_close(a);
    td_tokenizer_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokexport_gives_the_published_ids_of_real_tokenizers),
        cmocka_unit_test(test_tokexport_orders_scores_as_the_original_file_does),
        cmocka_unit_test(test_tokexport_refuses_by_name_what_gguf_cannot_say),
        cmocka_unit_test(test_tokexport_compare_sees_a_difference),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
