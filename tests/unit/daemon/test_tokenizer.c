#include "daemon/text/tokenizer.h"

#include "daemon/text/detok.h"

#include <jansson.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

#include "text_check.h"

#define MODELS TD_SHARED "/data/models/"

/* Every tokenizer of ../shared with the vectors that another implementation made for it. */
static const struct {
    const char *tokenizer, *vectors;
} sets[] = {
    {TOKENIZERS "gpt-2/ggml-vocab-gpt-2.gguf", TOKENIZERS "gpt-2"},
    {TOKENIZERS "llama-spm/ggml-vocab-llama-spm.gguf", TOKENIZERS "llama-spm"},
    {TOKENIZERS "llama-spm", TOKENIZERS "llama-spm"},
    {TOKENIZERS "llama-3", TOKENIZERS "llama-3"},
    {TOKENIZERS "qwen2.5", TOKENIZERS "qwen2.5"},
    {TOKENIZERS "mistral-v3", TOKENIZERS "mistral-v3"},
    {MODELS "stories260K/hf", TOKENIZERS "stories260K"},
    {MODELS "stories260K/gguf/stories260K-F32.gguf", TOKENIZERS "stories260K"},
    {MODELS "stories3M/hf-bf16-sharded", TOKENIZERS "stories3M"},
    {MODELS "stories3M/gguf/stories3M-Q8_0.gguf", TOKENIZERS "stories3M"},
};

enum { N_SETS = sizeof sets / sizeof *sets };

static size_t check_vectors(const struct td_tokenizer *tok, const char *folder)
{
    char path[512];
    json_error_t why;
    json_t *list, *item, *ids, *id;
    uint32_t want[8192];
    size_t i, k, n = 0;

    snprintf(path, sizeof path, "%s/vectors.json", folder);
    list = json_load_file(path, JSON_ALLOW_NUL, &why);
    assert_non_null(list);
    json_array_foreach(list, i, item)
    {
        struct td_str text = {json_string_value(json_object_get(item, "text")),
                              json_string_length(json_object_get(item, "text"))};
        struct td_bytes out = {0};

        ids = json_object_get(item, "ids");
        assert_true(json_array_size(ids) <= 8192);
        json_array_foreach(ids, k, id)
        {
            want[k] = (uint32_t)json_integer_value(id);
        }
        text_check_ids(tok, text, TD_ENCODE_SPECIAL, want, json_array_size(ids));
        /* And back again: these texts come back byte for byte. */
        assert_int_equal(td_detok_text(tok, want, json_array_size(ids), 0, &out), TD_OK);
        if (!td_str_eq(td_bytes_str(&out), text))
            fail_msg("'%.*s' came back as '%s'", (int)text.len, text.ptr, out.data);
        td_bytes_deinit(&out);
        n++;
    }
    json_decref(list);
    return n;
}

static void test_tokenizer_matches_every_vector(void **state)
{
    (void)state;
    SKIP_WITHOUT_SHARED();
    for (size_t i = 0; i < N_SETS; i++) {
        struct td_tokenizer *tok = text_open(sets[i].tokenizer);

        assert_int_equal(check_vectors(tok, sets[i].vectors), 57);
        td_tokenizer_close(tok);
    }
}

static void test_tokenizer_matches_llama_cpp_texts(void **state)
{
    const struct td_str mark = TD_STR("\n__ggml_vocab_test__\n");
    size_t n_files = 0;

    (void)state;
    SKIP_WITHOUT_SHARED();
    for (size_t i = 0; i < N_SETS; i++) {
        struct td_tokenizer *tok;
        struct td_bytes in, out;
        char path[512], *at, *line, *end;
        size_t n = 0;

        snprintf(path, sizeof path, "%s/ggml-vocab.inp", sets[i].vectors);
        in = text_read(path);
        snprintf(path, sizeof path, "%s/ggml-vocab.out", sets[i].vectors);
        out = text_read(path);
        if (!in.len) /* not every folder has them */
            continue;
        n_files++;
        tok = text_open(sets[i].tokenizer);
        at = in.data;
        line = out.data;
        for (char *next; (next = memmem(at, (size_t)(in.data + in.len - at), mark.ptr, mark.len));
             at = next + mark.len) {
            struct td_str text = {at, (size_t)(next - at)};
            char *newline = strchr(line, '\n');
            uint32_t want[4096];
            size_t n_ids = 0;

            assert_non_null(newline);
            for (;;) {
                while (*line == ' ')
                    line++;
                if (line >= newline)
                    break;
                want[n_ids++] = (uint32_t)strtoul(line, &end, 10);
                assert_ptr_not_equal(line, end);
                line = end;
            }
            text_check_ids(tok, text, TD_ENCODE_SPECIAL, want, n_ids);
            line = newline + 1;
            n++;
        }
        assert_int_equal(n, 46);
        td_tokenizer_close(tok);
        td_bytes_deinit(&out);
        td_bytes_deinit(&in);
    }
    assert_int_equal(n_files, 5);
}

/* Written by Hugging Face tokenizers; ships with the repository. */
static void test_tokenizer_matches_the_shipped_models_vectors(void **state)
{
    struct td_tokenizer *tok = text_open(TD_SOURCE "/tests/models/tensord-tiny");
    json_error_t why;
    json_t *list = json_load_file(TD_SOURCE "/tests/golden/tensord-tiny-tokens.json",
                                  JSON_ALLOW_NUL, &why),
           *item, *id;
    size_t i, k;

    (void)state;
    assert_true(json_array_size(list) > 80);
    json_array_foreach(list, i, item)
    {
        struct td_str text = {json_string_value(json_object_get(item, "text")),
                              json_string_length(json_object_get(item, "text"))};
        uint32_t want[1024];

        assert_in_range(json_array_size(json_object_get(item, "ids")), 0, 1024);
        json_array_foreach(json_object_get(item, "ids"), k, id)
        {
            want[k] = (uint32_t)json_integer_value(id);
        }
        text_check_ids(tok, text, TD_ENCODE_SPECIAL, want,
                       json_array_size(json_object_get(item, "ids")));
    }
    json_decref(list);
    td_tokenizer_close(tok);
}

static const char bpe_head[] =
    "{\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,"
    "\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,\"c\":3,\"ab\":4,\"abc\":5,\" "
    "\":6,\"bc\":7,\"\xC3\xA9\":8},"
    "\"merges\":[\"a b\",[\"b\",\"c\"],\"ab c\"]},\"added_tokens\":[";

static struct td_tokenizer *open_with(const char *added, const char *rest)
{
    char json[4096];

    snprintf(json, sizeof json, "%s%s]%s}", bpe_head, added, rest);
    return text_open_literal(json, "");
}

static void check_text(const struct td_tokenizer *tok, const char *text, unsigned flags, size_t n,
                       const uint32_t *want)
{
    text_check_ids(tok, td_str_from(text), flags, want, n);
}

#define CHECK(tok, text, flags, ...)                                                               \
    check_text(tok, text, flags, sizeof((uint32_t[]){__VA_ARGS__}) / 4, (uint32_t[]){__VA_ARGS__})

static void test_tokenizer_joins_pairs_by_rank(void **state)
{
    struct td_tokenizer *tok = open_with("", "");

    (void)state;
    CHECK(tok, "abc", 0, 5);
    CHECK(tok, "bcabcab", 0, 7, 5, 4);
    CHECK(tok, "axxyb", 0, 1, 0, 2);
    check_text(tok, "", 0, 0, NULL);
    assert_int_equal(td_tokenizer_n_vocab(tok), 9);
    assert_int_equal(td_tokenizer_find(tok, TD_STR("bc")), 7);
    assert_int_equal(td_tokenizer_find(tok, TD_STR("zz")), -1);
    assert_int_equal(td_tokenizer_bos(tok), -1);
    td_tokenizer_close(tok);
    td_tokenizer_close(NULL);
}

static void test_tokenizer_finds_added_tokens_by_their_flags(void **state)
{
    struct td_tokenizer *tok = open_with(
        "{\"id\":20,\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
        "{\"id\":21,\"content\":\"<l>\",\"special\":true,\"normalized\":false,\"lstrip\":true},"
        "{\"id\":22,\"content\":\"<r>\",\"special\":false,\"normalized\":false,\"rstrip\":true},"
        "{\"id\":23,\"content\":\"cab\",\"special\":false,\"normalized\":false,\"single_word\":"
        "true},"
        "{\"id\":24,\"content\":\"<s>b\",\"special\":false,\"normalized\":false}",
        "");

    (void)state;
    CHECK(tok, "a<s>c", TD_ENCODE_SPECIAL, 1, 20, 3);
    CHECK(tok, "a<s>bc", TD_ENCODE_SPECIAL, 1, 24, 3);
    CHECK(tok, "a  <l> c", TD_ENCODE_SPECIAL, 1, 21, 6, 3);
    CHECK(tok, "a <r> \t\n c", TD_ENCODE_SPECIAL, 1, 6, 22, 3);
    CHECK(tok, "<r>  <l>", TD_ENCODE_SPECIAL, 22, 21);
    CHECK(tok, "cab", TD_ENCODE_SPECIAL, 23);
    CHECK(tok, "cab cab", TD_ENCODE_SPECIAL, 23, 6, 23);
    CHECK(tok, "acab", TD_ENCODE_SPECIAL, 1, 3, 4);
    CHECK(tok, "cab\xC3\xA9", TD_ENCODE_SPECIAL, 3, 4, 8);
    /* Special ones are plain text without the flag; the others are found all the same. */
    CHECK(tok, "a<s>c", 0, 1, 0, 3);
    CHECK(tok, "a<s>bc", 0, 1, 24, 3);
    CHECK(tok, "a<r>c", 0, 1, 22, 3);
    assert_true(td_tokenizer_is_special(tok, 20));
    assert_false(td_tokenizer_is_special(tok, 22));
    assert_false(td_tokenizer_is_special(tok, 99999));
    assert_int_equal(td_tokenizer_find(tok, TD_STR("<l>")), 21);
    assert_int_equal(td_tokenizer_piece(tok, 15).len, 0); /* a hole */
    assert_int_equal(td_tokenizer_piece(tok, 4000000000U).len, 0);
    td_tokenizer_close(tok);
}

static void test_tokenizer_finds_normalized_tokens_behind_the_normalizer(void **state)
{
    struct td_tokenizer *tok =
        open_with("{\"id\":20,\"content\":\"xa\",\"special\":false,\"normalized\":true},"
                  "{\"id\":21,\"content\":\"xb\",\"special\":true,\"normalized\":true},"
                  "{\"id\":22,\"content\":\"xc\",\"special\":false,\"normalized\":false}",
                  ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[xy]\"},"
                  "\"content\":\"c\"}");

    (void)state;
    CHECK(tok, "aya", TD_ENCODE_SPECIAL, 1, 20); /* "ya" becomes "ca", as "xa" does */
    CHECK(tok, "yb", TD_ENCODE_SPECIAL, 21);
    CHECK(tok, "yb", 0, 3, 2);
    CHECK(tok, "yc", TD_ENCODE_SPECIAL, 3, 3);
    CHECK(tok, "xc", TD_ENCODE_SPECIAL, 22);
    td_tokenizer_close(tok);
}

static void test_tokenizer_keeps_special_tokens_out_of_untrusted_segments(void **state)
{
    struct td_tokenizer *tok =
        open_with("{\"id\":20,\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
                  "{\"id\":21,\"content\":\"<n>\",\"special\":true,\"normalized\":true}",
                  "");
    const struct td_text_segment segments[] = {{TD_STR("<s>a"), true},     {TD_STR("b<s>"), false},
                                               {TD_STR("<"), true},        {TD_STR("s>"), false},
                                               {TD_STR("<n>c<n>"), false}, {TD_STR("<n>"), true}};
    /* "ab" is joined over the border; the only marks are those written by trusted hands. */
    const uint32_t want[] = {20, 4, 0, 3, 0, 21};
    struct td_ids ids = {0};
    struct td_err err;

    (void)state;
    assert_int_equal(td_tokenizer_encode_segments(tok, segments, 6, 0, &ids, &err), TD_OK);
    assert_int_equal(ids.len, 6);
    assert_memory_equal(ids.data, want, sizeof want);
    td_ids_deinit(&ids);
    td_tokenizer_close(tok);
}

static void test_tokenizer_never_spells_a_special_token(void **state)
{
    /* The rules could join "<", "s" and ">" into the control token 5. */
    struct td_tokenizer *tok = text_open_literal(
        "{\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":{\"<\":1,\"s\":2,\">\":3,"
        "\"<s\":4,\"<s>\":5},\"merges\":[\"< s\",\"<s >\"]},\"added_tokens\":[{\"id\":5,"
        "\"content\":\"<s>\",\"special\":true,\"normalized\":false}]}",
        "{\"bos_token\":\"<s>\",\"model_max_length\":1000000000000000019884624838656}");

    (void)state;
    CHECK(tok, "<s>", 0, 4, 3);
    CHECK(tok, "<s>", TD_ENCODE_SPECIAL, 5);
    assert_int_equal(td_tokenizer_bos(tok), 5);
    td_tokenizer_close(tok);
}

static void test_tokenizer_puts_bos_first_when_the_model_wants_it(void **state)
{
    struct td_tokenizer *tok;

    (void)state;
    SKIP_WITHOUT_SHARED();
    tok = text_open(TOKENIZERS "llama-3");
    CHECK(tok, "hello", TD_ENCODE_BOS, 128000, 15339);
    CHECK(tok, "hello", 0, 15339);
    assert_int_equal(td_tokenizer_bos(tok), 128000);
    assert_int_equal(td_tokenizer_find(tok, TD_STR("<|eot_id|>")), 128009);
    td_tokenizer_close(tok);
    tok = text_open(TOKENIZERS "qwen2.5");
    CHECK(tok, "hello", TD_ENCODE_BOS, 14990);
    assert_int_equal(td_tokenizer_bos(tok), -1);
    assert_int_equal(td_tokenizer_eos(tok), 151645);
    CHECK(tok, "<|im_end|>", TD_ENCODE_SPECIAL, 151645);
    /* "é" as a letter and a mark is composed first. */
    text_check_ids(tok, TD_STR("e\xCC\x81"), 0, (uint32_t[]){963}, 1);
    td_tokenizer_close(tok);
    tok = text_open(TOKENIZERS "llama-spm/ggml-vocab-llama-spm.gguf");
    CHECK(tok, "Hello", TD_ENCODE_BOS, 1, 15043);
    assert_int_equal(td_tokenizer_eos(tok), 2);
    CHECK(tok, "<s>Hello", TD_ENCODE_SPECIAL, 1, 15043);
    td_tokenizer_close(tok);
    tok = text_open(TOKENIZERS "llama-spm");
    CHECK(tok, "Hello", TD_ENCODE_BOS, 1, 15043);
    assert_int_equal(td_tokenizer_bos(tok), 1);
    assert_int_equal(td_tokenizer_eos(tok), 2);
    td_tokenizer_close(tok);
}

static void test_tokenizer_reads_ids_with_holes(void **state)
{
    struct td_tokenizer *tok;

    (void)state;
    SKIP_WITHOUT_SHARED();
    tok = text_open(TOKENIZERS "added-tokens-mini");
    assert_int_equal(td_tokenizer_n_vocab(tok), 32011);
    CHECK(tok, "<|user|>\n<|end|>", TD_ENCODE_SPECIAL, 32010, 0, 13, 32007);
    td_tokenizer_close(tok);
}

static void check_refused(const char *json, enum td_status status, const char *word)
{
    struct td_tokenizer *tok = NULL;
    struct td_err err = {0};
    enum td_status s = td_tokenizer_open_json(td_str_from(json), TD_STR(""), &tok, &err);

    assert_null(tok);
    if (s != status || !strstr(err.cause, word))
        fail_msg("%s: status %d, '%s'; expected %d and '%s'", json, s, err.cause, status, word);
}

static void test_tokenizer_refuses_by_name_what_it_cannot_do(void **state)
{
    char json[512];

    (void)state;
    check_refused("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", TD_UNSUPPORTED, "WordPiece");
    check_refused("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", TD_UNSUPPORTED, "Unigram");
#define WITH(part)                                                                                 \
    (snprintf(json, sizeof json,                                                                   \
              "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}," part "}"),        \
     json)
    check_refused(WITH("\"normalizer\":{\"type\":\"Precompiled\"}"), TD_UNSUPPORTED, "Precompiled");
    check_refused(WITH("\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}"), TD_UNSUPPORTED,
                  "UnicodeScripts");
    check_refused(WITH("\"post_processor\":{\"type\":\"BertProcessing\"}"), TD_UNSUPPORTED,
                  "BertProcessing");
    check_refused(WITH("\"decoder\":{\"type\":\"CTC\"}"), TD_UNSUPPORTED, "CTC");
    check_refused(WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
                       "\"pattern\":{\"Regex\":\"[a&&b]\"}}"),
                  TD_UNSUPPORTED, "[a&&b]");
    check_refused(WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
                       "\"pattern\":{\"Regex\":\"(a\"}}"),
                  TD_INVALID, "(a");
}

static void test_tokenizer_refuses_broken_files(void **state)
{
    char json[512];

    (void)state;
    check_refused("", TD_CORRUPT, "tokenizer.json");
    check_refused("[1", TD_CORRUPT, "line 1");
    check_refused("[]", TD_CORRUPT, "model");
    check_refused("{\"model\":{\"type\":\"BPE\"}}", TD_CORRUPT, "vocab");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", TD_CORRUPT,
                  "'a'");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4194304},\"merges\":[]}}",
                  TD_CORRUPT, "'a'");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}}",
                  TD_CORRUPT, "'a'");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}",
                  TD_CORRUPT, "'b'");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":{\"a\":1}}}",
                  TD_CORRUPT, "merges");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}",
                  TD_CORRUPT, "merge rule 0");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}",
                  TD_CORRUPT, "lacks their joint");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",1]]}}",
                  TD_CORRUPT, "merge rule 0");
    check_refused(WITH("\"added_tokens\":[{\"id\":1}]"), TD_CORRUPT, "added_tokens");
    /* Else plain text "b" would become the control token "<x>". */
    check_refused(WITH("\"added_tokens\":[{\"id\":1,\"content\":\"<x>\",\"special\":true},"
                       "{\"id\":1,\"content\":\"b\"}]"),
                  TD_CORRUPT, "two added tokens have the id 1: '<x>' and 'b'");
    check_refused(WITH("\"added_tokens\":[{\"id\":1,\"content\":\"b\",\"special\":true},"
                       "{\"id\":1,\"content\":\"b\"}]"),
                  TD_CORRUPT, "two added tokens have the id 1");
    check_refused(WITH("\"added_tokens\":[{\"id\":1,\"content\":\"b\",\"special\":3}]"), TD_CORRUPT,
                  "flag");
    check_refused(WITH("\"pre_tokenizer\":[]"), TD_CORRUPT, "pre_tokenizer");
    check_refused(WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
                       "\"SpecialToken\":{\"id\":\"<s>\"}}],\"special_tokens\":{}}"),
                  TD_CORRUPT, "TemplateProcessing");
}

static void test_tokenizer_refuses_text_that_is_not_utf8(void **state)
{
    struct td_tokenizer *tok = open_with("", "");
    struct td_ids ids = {0};
    struct td_err err;

    (void)state;
    assert_int_equal(td_ids_append(&ids, 7), TD_OK);
    assert_int_equal(td_tokenizer_encode(tok, TD_STR("a\xFF"), 0, &ids, &err), TD_INVALID);
    assert_int_equal(ids.len, 1);
    td_ids_deinit(&ids);
    td_tokenizer_close(tok);
}

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

#ifdef __SANITIZE_ADDRESS__
enum { LONG_BYTES = 1 << 17 };
#else
enum { LONG_BYTES = 1 << 20 };
#endif

/* One megabyte of one character must not take quadratic time; 5 s is far above what was measured (under 1 s). */
static void test_tokenizer_takes_long_runs_in_good_time(void **state)
{
    static const char *const fills[] = {"a", " ",  "\n",          "\xCC\xA7\xCC\x81",
                                        "<", "aA", "\xE4\xB8\xAD"};

    (void)state;
    SKIP_WITHOUT_SHARED();
    for (size_t i = 0; i < N_SETS; i++) {
        struct td_tokenizer *tok = text_open(sets[i].tokenizer);

        for (size_t k = 0; k < sizeof fills / sizeof *fills; k++) {
            struct td_bytes text = {0};
            struct td_ids ids = {0};
            struct td_err err;
            double start = seconds();

            while (text.len < LONG_BYTES)
                assert_int_equal(td_bytes_append_str(&text, td_str_from(fills[k])), TD_OK);
            if (td_tokenizer_encode(tok, td_bytes_str(&text), TD_ENCODE_SPECIAL, &ids, &err))
                fail_msg("%s: %s", sets[i].tokenizer, err.cause);
            if (seconds() - start > 5)
                fail_msg("%s: '%s': %.1f s", sets[i].tokenizer, fills[k], seconds() - start);
            td_ids_deinit(&ids);
            td_bytes_deinit(&text);
        }
        td_tokenizer_close(tok);
    }
}

struct job {
    const struct td_tokenizer *tok;
    struct td_str text;
    struct td_ids ids;
    enum td_status status;
};

static void *encode_often(void *arg)
{
    struct job *job = arg;

    for (int i = 0; i < 20 && !job->status; i++) {
        td_ids_clear(&job->ids);
        job->status = td_tokenizer_encode(job->tok, job->text, 0, &job->ids, NULL);
    }
    return NULL;
}

static void test_tokenizer_serves_threads_at_once(void **state)
{
    enum { N = 4 };
    struct td_tokenizer *tok;
    struct td_bytes text;
    struct job jobs[N] = {{0}};
    pthread_t threads[N];

    (void)state;
    SKIP_WITHOUT_SHARED();
    tok = text_open(TOKENIZERS "qwen2.5");
    text = text_read(TD_SHARED "/data/text/tinystories-dev.txt");
    assert_true(text.len > 1000);
    for (int i = 0; i < N; i++) {
        jobs[i] = (struct job){.tok = tok, .text = td_bytes_str(&text)};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &jobs[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(jobs[i].status, TD_OK);
        assert_int_equal(jobs[i].ids.len, jobs[0].ids.len);
        assert_memory_equal(jobs[i].ids.data, jobs[0].ids.data, jobs[0].ids.len * sizeof(uint32_t));
    }
    for (int i = 0; i < N; i++)
        td_ids_deinit(&jobs[i].ids);
    td_bytes_deinit(&text);
    td_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_matches_every_vector),
        cmocka_unit_test(test_tokenizer_matches_llama_cpp_texts),
        cmocka_unit_test(test_tokenizer_matches_the_shipped_models_vectors),
        cmocka_unit_test(test_tokenizer_joins_pairs_by_rank),
        cmocka_unit_test(test_tokenizer_finds_added_tokens_by_their_flags),
        cmocka_unit_test(test_tokenizer_finds_normalized_tokens_behind_the_normalizer),
        cmocka_unit_test(test_tokenizer_keeps_special_tokens_out_of_untrusted_segments),
        cmocka_unit_test(test_tokenizer_never_spells_a_special_token),
        cmocka_unit_test(test_tokenizer_puts_bos_first_when_the_model_wants_it),
        cmocka_unit_test(test_tokenizer_reads_ids_with_holes),
        cmocka_unit_test(test_tokenizer_refuses_by_name_what_it_cannot_do),
        cmocka_unit_test(test_tokenizer_refuses_broken_files),
        cmocka_unit_test(test_tokenizer_refuses_text_that_is_not_utf8),
        cmocka_unit_test(test_tokenizer_takes_long_runs_in_good_time),
        cmocka_unit_test(test_tokenizer_serves_threads_at_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
