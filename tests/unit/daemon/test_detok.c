#include "daemon/text/detok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text_check.h"

/* Bytes E2 82 AC (a euro sign), F0 9F, FF, text with a marked space, a special token. */
static const char spm[] =
    "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,\"<0xE2>\":1,"
    "\"<0x82>\":2,\"<0xAC>\":3,\"<0xF0>\":4,\"<0x9F>\":5,\"<0xFF>\":6,\"\xE2\x96\x81hi\":7,\"x\":8,"
    "\"\xE2\x96\x81\":9},\"merges\":[]},\"added_tokens\":[{\"id\":10,\"content\":\"</s>\","
    "\"special\":true,\"normalized\":false}],\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}}";

#define FFFD "\xEF\xBF\xBD"

static void check_push(struct td_detok *d, uint32_t id, const char *want)
{
    struct td_bytes out = {0};

    assert_int_equal(td_detok_push(d, id, &out), TD_OK);
    assert_string_equal(out.data ? out.data : "", want);
    td_bytes_deinit(&out);
}

static void check_flush(struct td_detok *d, const char *want)
{
    struct td_bytes out = {0};

    assert_int_equal(td_detok_flush(d, &out), TD_OK);
    assert_string_equal(out.data ? out.data : "", want);
    td_bytes_deinit(&out);
}

static void test_detok_waits_for_whole_characters(void **state)
{
    struct td_tokenizer *tok = text_open_literal(spm, "");
    struct td_detok d;

    (void)state;
    td_detok_init(&d, tok, 0);
    check_push(&d, 1, "");
    check_push(&d, 2, "");
    check_push(&d, 3, "\xE2\x82\xAC");
    check_push(&d, 1, "");
    check_push(&d, 1, FFFD); /* the first is hopeless now, the second waits */
    check_push(&d, 8, FFFD "x");
    check_push(&d, 6, FFFD);
    check_push(&d, 4, "");
    check_push(&d, 5, "");
    check_flush(&d, FFFD);
    check_flush(&d, "");
    check_push(&d, 4000000000U, "");
    td_tokenizer_close(tok);
}

static void test_detok_drops_one_space_at_the_front(void **state)
{
    struct td_tokenizer *tok = text_open_literal(spm, "");
    struct td_detok d;

    (void)state;
    td_detok_init(&d, tok, 0);
    check_push(&d, 7, "hi");
    check_push(&d, 7, " hi");
    td_detok_init(&d, tok, 0);
    check_push(&d, 9, "");
    check_push(&d, 7, " hi");
    td_detok_init(&d, tok, TD_DETOK_CONTINUE);
    check_push(&d, 7, " hi");
    td_detok_init(&d, tok, 0);
    check_push(&d, 10, "</s>");
    check_push(&d, 7, " hi");
    td_detok_init(&d, tok, TD_DETOK_SKIP_SPECIAL);
    check_push(&d, 10, "");
    check_push(&d, 7, "hi");
    td_tokenizer_close(tok);
}

static void test_detok_cap_of_the_buffer_changes_nothing(void **state)
{
    struct td_tokenizer *tok = text_open_literal(spm, "");
    struct td_bytes out = {.cap_limit = 4};
    struct td_detok d;

    (void)state;
    td_detok_init(&d, tok, 0);
    assert_int_equal(td_detok_push(&d, 7, &out), TD_TOO_LARGE);
    assert_int_equal(out.len, 0);
    check_push(&d, 7, "hi");
    td_bytes_deinit(&out);
    td_tokenizer_close(tok);
}

/* Text of pieces equals text of the whole, every piece is UTF-8, for random ids of real vocabularies. */
static void test_detok_pieces_join_to_the_whole(void **state)
{
    static const char *const paths[] = {TOKENIZERS "qwen2.5", TOKENIZERS "mistral-v3",
                                        TOKENIZERS "gpt-2/ggml-vocab-gpt-2.gguf",
                                        TOKENIZERS "llama-spm/ggml-vocab-llama-spm.gguf"};
    unsigned seed = 77;

    (void)state;
    SKIP_WITHOUT_SHARED();
    printf("seed %u\n", seed);
    srand(seed);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct td_tokenizer *tok = text_open(paths[i]);
        uint32_t n_vocab = td_tokenizer_n_vocab(tok);

        for (int round = 0; round < 50; round++) {
            struct td_bytes whole = {0}, piecewise = {0};
            struct td_detok d;
            uint32_t ids[200];

            /* Mostly low ids: there the single bytes are. */
            for (size_t k = 0; k < 200; k++)
                ids[k] = (uint32_t)rand() % (rand() % 2 ? 300 : n_vocab);
            td_detok_init(&d, tok, 0);
            for (size_t k = 0; k < 200; k++) {
                struct td_bytes piece = {0};

                assert_int_equal(td_detok_push(&d, ids[k], &piece), TD_OK);
                assert_true(td_str_is_utf8(td_bytes_str(&piece)));
                assert_int_equal(td_bytes_append_str(&piecewise, td_bytes_str(&piece)), TD_OK);
                td_bytes_deinit(&piece);
            }
            assert_int_equal(td_detok_flush(&d, &piecewise), TD_OK);
            assert_int_equal(td_detok_text(tok, ids, 200, 0, &whole), TD_OK);
            assert_true(td_str_eq(td_bytes_str(&whole), td_bytes_str(&piecewise)));
            td_bytes_deinit(&piecewise);
            td_bytes_deinit(&whole);
        }
        td_tokenizer_close(tok);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detok_waits_for_whole_characters),
        cmocka_unit_test(test_detok_drops_one_space_at_the_front),
        cmocka_unit_test(test_detok_cap_of_the_buffer_changes_nothing),
        cmocka_unit_test(test_detok_pieces_join_to_the_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
