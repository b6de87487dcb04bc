#include "text_check.h"

#include "daemon/text/breakers.h"

#define TINY TD_SOURCE "/tests/models/tensord-tiny"

static bool is_marked(const uint8_t *set, uint32_t id)
{
    return set[id / 8] >> id % 8 & 1;
}

/* Against one search in every token's own text. */
static void check_texts(const struct td_tokenizer *tok, const struct td_breakers *b,
                        const struct td_str *texts, size_t n, uint32_t at_least)
{
    uint32_t n_vocab = td_tokenizer_n_vocab(tok), n_marked = 0;
    size_t n_bytes = td_breakers_set_bytes(b);
    uint8_t *set = malloc(n_bytes);
    struct td_err err = {0};

    assert_non_null(set);
    assert_int_equal(n_bytes, (n_vocab + 7) / 8);
    memset(set, 0xff, n_bytes);
    assert_int_equal(td_breakers_mark(b, texts, n, set, &err), TD_OK);
    for (uint32_t id = 0; id < 8 * n_bytes; id++) {
        struct td_str piece = id < n_vocab ? td_tokenizer_piece(tok, id) : TD_STR("");
        bool holds = false;

        for (size_t i = 0; i < n; i++)
            holds |= piece.len && memmem(piece.ptr, piece.len, texts[i].ptr, texts[i].len);
        if (is_marked(set, id) != holds)
            fail_msg("id %u '%.*s' is%s marked", id, (int)piece.len, piece.ptr,
                     holds ? " not" : "");
        n_marked += holds;
    }
    assert_true(n_marked >= at_least && n_marked < n_vocab);
    free(set);
}

static void check_tokenizer(const char *path, uint32_t n_newlines)
{
    const struct td_str odd[] = {{"he", 2}, {" ", 1}, {"\0", 1}, {"zzzzqqqq", 8}, {"ing", 3}};
    struct td_tokenizer *tok = text_open(path);
    struct td_breakers *b = NULL;

    assert_int_equal(td_breakers_open(tok, &b, NULL), TD_OK);
    check_texts(tok, b, td_breakers_default, TD_BREAKERS_N_DEFAULT, n_newlines);
    check_texts(tok, b, td_breakers_default, 1, 1); /* a part of the default ones is not these */
    check_texts(tok, b, odd, sizeof odd / sizeof *odd, 10);
    check_texts(tok, b, NULL, 0, 0);
    td_breakers_close(b);
    td_tokenizer_close(tok);
}

static void test_breakers_are_all_tokens_that_hold_a_text(void **state)
{
    (void)state;
    check_tokenizer(TINY, 4);
}

static void test_breakers_of_real_vocabularies(void **state)
{
    (void)state;
    SKIP_WITHOUT_SHARED();
    check_tokenizer(TOKENIZERS "qwen2.5", 1000); /* code has many tokens with them */
    check_tokenizer(TOKENIZERS "gpt-2/ggml-vocab-gpt-2.gguf", 100);
}

static void test_breakers_refuse_too_many_and_too_long(void **state)
{
    struct td_str texts[TD_BREAKERS_MAX + 1];
    char text[TD_BREAKERS_MAX_TEXT_BYTES + 1];
    struct td_tokenizer *tok = text_open(TINY);
    struct td_breakers *b = NULL;
    struct td_err err = {0};
    uint8_t *set;

    (void)state;
    memset(text, 'a', sizeof text);
    assert_int_equal(td_breakers_open(tok, &b, NULL), TD_OK);
    set = malloc(td_breakers_set_bytes(b));
    for (int i = 0; i <= TD_BREAKERS_MAX; i++)
        texts[i] = TD_STR("x");
    assert_int_equal(td_breakers_mark(b, texts, TD_BREAKERS_MAX, set, &err), TD_OK);
    assert_int_equal(td_breakers_mark(b, texts, TD_BREAKERS_MAX + 1, set, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "17 texts, expected at most 16"));
    texts[1] = (struct td_str){text, sizeof text};
    assert_int_equal(td_breakers_mark(b, texts, 2, set, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "[1] has 65 bytes, expected 1 to 64"));
    texts[1] = TD_STR("");
    assert_int_equal(td_breakers_mark(b, texts, 2, set, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "[1] has 0 bytes"));
    free(set);
    td_breakers_close(b);
    td_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_breakers_are_all_tokens_that_hold_a_text),
        cmocka_unit_test(test_breakers_of_real_vocabularies),
        cmocka_unit_test(test_breakers_refuse_too_many_and_too_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
