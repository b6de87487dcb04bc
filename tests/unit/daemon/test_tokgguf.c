/* Tokenizers out of GGUF metadata that is written here, right and wrong. */
#include "daemon/text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "text_check.h"

/* A GGUF file of metadata only, as it grows. */
struct file {
    struct td_bytes kv;
    uint64_t n;
};

static void put(struct file *f, const void *data, size_t n)
{
    assert_int_equal(td_bytes_append(&f->kv, data, n), TD_OK);
}

static void put_u32(struct file *f, uint32_t v)
{
    put(f, &v, sizeof v);
}

static void put_string(struct file *f, const char *s)
{
    uint64_t n = strlen(s);

    put(f, &n, sizeof n);
    put(f, s, n);
}

static void put_key(struct file *f, const char *key, uint32_t type)
{
    char full[128];

    snprintf(full, sizeof full, "tokenizer.ggml.%s", key);
    put_string(f, full);
    put_u32(f, type);
    f->n++;
}

static void add_string(struct file *f, const char *key, const char *value)
{
    put_key(f, key, TD_GGUF_STRING);
    put_string(f, value);
}

static void add_u32(struct file *f, const char *key, uint32_t value)
{
    put_key(f, key, TD_GGUF_U32);
    put_u32(f, value);
}

static void add_array(struct file *f, const char *key, uint32_t elem, uint64_t n)
{
    put_key(f, key, TD_GGUF_ARRAY);
    put_u32(f, elem);
    put(f, &n, sizeof n);
}

static void add_strings(struct file *f, const char *key, size_t n, const char *const *values)
{
    add_array(f, key, TD_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        put_string(f, values[i]);
}

static void add_words(struct file *f, const char *key, uint32_t elem, size_t n, const void *values)
{
    add_array(f, key, elem, n);
    put(f, values, n * 4);
}

/* Writes the file, opens the tokenizer in it, removes the file. Frees `f`. */
static enum td_status open_file(struct file *f, struct td_tokenizer **tok, struct td_err *err)
{
    char path[] = "/tmp/test_tokgguf_XXXXXX";
    uint64_t n_tensors = 0;
    struct td_gguf *g = NULL;
    enum td_status s;
    int fd = mkstemp(path);
    FILE *out = fdopen(fd, "wb");

    assert_non_null(out);
    fwrite("GGUF\3\0\0", 1, 8, out);
    fwrite(&n_tensors, sizeof n_tensors, 1, out);
    fwrite(&f->n, sizeof f->n, 1, out);
    fwrite(f->kv.data, 1, f->kv.len, out);
    fclose(out);
    *err = (struct td_err){0};
    s = td_gguf_open(path, &g, err);
    unlink(path);
    if (s)
        fail_msg("%s", err->cause);
    s = td_tokenizer_open_gguf(g, tok, err);
    td_gguf_close(g);
    td_bytes_deinit(&f->kv);
    *f = (struct file){0};
    return s;
}

static void check_refused(struct file *f, enum td_status status, const char *word)
{
    struct td_tokenizer *tok = NULL;
    struct td_err err;
    enum td_status s = open_file(f, &tok, &err);

    assert_null(tok);
    if (s != status || !strstr(err.cause, word))
        fail_msg("status %d, '%s'; expected %d and '%s'", s, err.cause, status, word);
}

#define N(array) (sizeof(array) / sizeof *(array))

static const char *const spm_tokens[] = {"<unk>",
                                         "<s>",
                                         "</s>",
                                         "<0x41>",
                                         "\xE2\x96\x81",
                                         "a",
                                         "b",
                                         "ab",
                                         "\xE2\x96\x81\x61\x62", /* with "ab" */
                                         "[X]",
                                         "ba"};
static const int32_t spm_types[] = {2, 3, 3, 6, 1, 1, 1, 1, 1, 4, 1};
static const float spm_scores[] = {0, 0, 0, 0, -5, -6, -7, -1, -2, 0, -0.5F};

static void spm_file(struct file *f, const char *tokens_key, size_t n_types, size_t n_scores)
{
    add_string(f, "model", "llama");
    add_strings(f, tokens_key, N(spm_tokens), spm_tokens);
    add_words(f, "token_type", TD_GGUF_I32, n_types, spm_types);
    add_words(f, "scores", TD_GGUF_F32, n_scores, spm_scores);
}

static void test_tokgguf_joins_by_score(void **state)
{
    struct file f = {0};
    struct td_tokenizer *tok = NULL;
    struct td_err err;

    (void)state;
    spm_file(&f, "tokens", 11, 11);
    assert_int_equal(open_file(&f, &tok, &err), TD_OK);
    text_check_ids(tok, TD_STR("ab"), TD_ENCODE_BOS, (uint32_t[]){1, 8}, 2);
    /* "ba" has the best score, though "ab" comes first. */
    text_check_ids(tok, TD_STR("aba"), 0, (uint32_t[]){4, 5, 10}, 3);
    /* A byte's token, the unknown token, a user's token, which is found without the flag. */
    text_check_ids(tok, TD_STR("A[X]z"), 0, (uint32_t[]){4, 3, 9, 4, 0}, 5);
    text_check_ids(tok, TD_STR("<s>"), TD_ENCODE_SPECIAL, (uint32_t[]){1}, 1);
    assert_false(td_str_eq(td_tokenizer_piece(tok, 8), td_str_from(spm_tokens[8])));
    assert_true(td_str_eq(td_tokenizer_piece(tok, 8), TD_STR(" ab")));
    assert_true(td_str_eq(td_tokenizer_piece(tok, 3), TD_STR("A")));
    assert_true(td_tokenizer_is_special(tok, 2));
    assert_false(td_tokenizer_is_special(tok, 9));
    assert_int_equal(td_tokenizer_bos(tok), 1);
    assert_int_equal(td_tokenizer_eos(tok), 2);
    td_tokenizer_close(tok);
}

static const char *const bpe_tokens[] = {"a", "b", "\xC4\xA0", "ab",    "1",
                                         "2", "3", "4",        "<|e|>", "12"};
static const char *const bpe_merges[] = {"a b", "1 2"};

static void bpe_file(struct file *f, const char *pre)
{
    static const int32_t types[] = {1, 1, 1, 1, 1, 1, 1, 1, 3, 1};

    add_string(f, "model", "gpt2");
    if (pre)
        add_string(f, "pre", pre);
    add_strings(f, "tokens", N(bpe_tokens), bpe_tokens);
    add_words(f, "token_type", TD_GGUF_I32, N(types), types);
    add_u32(f, "bos_token_id", 8);
}

static void test_tokgguf_cuts_digits_as_the_pre_tokenizer_says(void **state)
{
    /* "12" is joined where the two digits are in one piece: in a run of any length, of three, of one. */
    static const struct {
        const char *pre;
        bool in_twelve, at_the_end_of_four;
    } cases[] = {{NULL, true, true},
                 {"gpt-2", true, true},
                 {"llama-bpe", true, false},
                 {"qwen2", false, false},
                 {"smollm", false, false}};

    (void)state;
    for (size_t i = 0; i < N(cases); i++) {
        struct file f = {0};
        struct td_tokenizer *tok = NULL;
        struct td_err err;

        bpe_file(&f, cases[i].pre);
        add_strings(&f, "merges", N(bpe_merges), bpe_merges);
        if (open_file(&f, &tok, &err))
            fail_msg("%s", err.cause);
        if (cases[i].in_twelve)
            text_check_ids(tok, TD_STR("12"), 0, (uint32_t[]){9}, 1);
        else
            text_check_ids(tok, TD_STR("12"), 0, (uint32_t[]){4, 5}, 2);
        if (cases[i].at_the_end_of_four)
            text_check_ids(tok, TD_STR("ab 3412"), 0, (uint32_t[]){3, 2, 6, 7, 9}, 5);
        else
            text_check_ids(tok, TD_STR("ab 3412"), 0, (uint32_t[]){3, 2, 6, 7, 4, 5}, 6);
        /* Llama 3's pre-tokenizer stands for models that want BOS. */
        if (cases[i].pre && strcmp(cases[i].pre, "llama-bpe") == 0)
            text_check_ids(tok, TD_STR("a"), TD_ENCODE_BOS, (uint32_t[]){8, 0}, 2);
        else
            text_check_ids(tok, TD_STR("a"), TD_ENCODE_BOS, (uint32_t[]){0}, 1);
        text_check_ids(tok, TD_STR("a<|e|>"), TD_ENCODE_SPECIAL, (uint32_t[]){0, 8}, 2);
        assert_int_equal(td_tokenizer_bos(tok), 8);
        assert_int_equal(td_tokenizer_eos(tok), -1);
        td_tokenizer_close(tok);
    }
}

/* As files with made-up or cut vocabularies have them: the rule never applies, the others do. */
static void test_tokgguf_passes_over_rules_whose_tokens_are_missing(void **state)
{
    static const char *const far[] = {"a a", "a b", "a x"};
    struct file f = {0};
    struct td_tokenizer *tok = NULL;
    struct td_err err;

    (void)state;
    bpe_file(&f, "gpt-2");
    add_strings(&f, "merges", 3, far);
    if (open_file(&f, &tok, &err))
        fail_msg("%s", err.cause);
    text_check_ids(tok, TD_STR("aaab"), 0, (uint32_t[]){0, 0, 3}, 3);
    td_tokenizer_close(tok);
}

static void test_tokgguf_refuses_by_name(void **state)
{
    struct file f = {0};

    (void)state;
    add_string(&f, "model", "bert");
    check_refused(&f, TD_UNSUPPORTED, "bert");
    add_string(&f, "model", "t5");
    check_refused(&f, TD_UNSUPPORTED, "t5");
    bpe_file(&f, "no-such-pre");
    check_refused(&f, TD_UNSUPPORTED, "no-such-pre");
}

static void test_tokgguf_refuses_broken_metadata(void **state)
{
    static const char *const odd[] = {"ab"};
    static const char *const bad_utf8[] = {"\xFF"};
    static const int32_t bad_type = 9;
    struct file f = {0};

    (void)state;
    add_u32(&f, "other", 1);
    check_refused(&f, TD_NOT_FOUND, "tokenizer.ggml.model");
    add_u32(&f, "model", 1);
    check_refused(&f, TD_CORRUPT, "tokenizer.ggml.model");
    spm_file(&f, "nothing", 11, 11);
    check_refused(&f, TD_NOT_FOUND, "tokenizer.ggml.tokens");
    spm_file(&f, "tokens", 10, 11);
    check_refused(&f, TD_CORRUPT, "token_type has 10");
    spm_file(&f, "tokens", 11, 3);
    check_refused(&f, TD_CORRUPT, "scores has 3");
    spm_file(&f, "tokens", 11, 11);
    add_u32(&f, "bos_token_id", 11);
    check_refused(&f, TD_CORRUPT, "bos_token_id is 11");
    bpe_file(&f, "gpt-2");
    check_refused(&f, TD_NOT_FOUND, "tokenizer.ggml.merges");
    bpe_file(&f, "gpt-2");
    add_strings(&f, "merges", 1, odd);
    check_refused(&f, TD_CORRUPT, "rule 0");
    add_string(&f, "model", "gpt2");
    add_strings(&f, "tokens", 1, bad_utf8);
    check_refused(&f, TD_CORRUPT, "UTF-8");
    add_string(&f, "model", "gpt2");
    add_strings(&f, "tokens", 1, odd);
    add_words(&f, "token_type", TD_GGUF_I32, 1, &bad_type);
    check_refused(&f, TD_CORRUPT, "token_type: 9");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokgguf_joins_by_score),
        cmocka_unit_test(test_tokgguf_cuts_digits_as_the_pre_tokenizer_says),
        cmocka_unit_test(test_tokgguf_passes_over_rules_whose_tokens_are_missing),
        cmocka_unit_test(test_tokgguf_refuses_by_name),
        cmocka_unit_test(test_tokgguf_refuses_broken_metadata),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
