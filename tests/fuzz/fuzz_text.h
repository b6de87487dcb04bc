/* What the tokenizer targets do with a tokenizer that was opened. */
#ifndef TD_TESTS_FUZZ_FUZZ_TEXT_H
#define TD_TESTS_FUZZ_FUZZ_TEXT_H

#include "daemon/text/detok.h"
#include "tests/fuzz/fuzz.h"

/* The text of ids pushed one by one is whole UTF-8 at every moment, and that of all of them at once. */
static inline void fuzz_text_decode(const struct td_tokenizer *tok, const struct td_ids *ids)
{
    struct td_bytes whole = {0}, streamed = {0};
    struct td_detok d;

    td_detok_init(&d, tok, 0);
    for (size_t i = 0; i < ids->len; i++) {
        FUZZ_CHECK(td_detok_push(&d, ids->data[i], &streamed) == TD_OK);
        FUZZ_CHECK(td_str_is_utf8(td_bytes_str(&streamed)));
    }
    FUZZ_CHECK(td_detok_flush(&d, &streamed) == TD_OK);
    FUZZ_CHECK(td_str_is_utf8(td_bytes_str(&streamed)));
    FUZZ_CHECK(td_detok_text(tok, ids->data, ids->len, 0, &whole) == TD_OK);
    FUZZ_CHECK(td_str_eq(td_bytes_str(&whole), td_bytes_str(&streamed)));
    td_bytes_deinit(&streamed);
    td_bytes_deinit(&whole);
}

static inline void fuzz_text_use(const struct td_tokenizer *tok, struct td_str text)
{
    static const unsigned flags[] = {0, TD_ENCODE_BOS | TD_ENCODE_SPECIAL};
    uint32_t n_vocab = td_tokenizer_n_vocab(tok);

    if (text.len > 256)
        text.len = 256;
    for (uint32_t id = 0; id < n_vocab && id < 4096; id++) {
        fuzz_touch(td_tokenizer_piece(tok, id));
        (void)td_tokenizer_is_special(tok, id);
    }
    fuzz_touch(td_tokenizer_piece(tok, UINT32_MAX));
    FUZZ_CHECK(td_tokenizer_bos(tok) < (int64_t)n_vocab);
    FUZZ_CHECK(td_tokenizer_eos(tok) < (int64_t)n_vocab);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        struct td_ids ids = {0};
        struct td_err err = {0};
        enum td_status status = td_tokenizer_encode(tok, text, flags[i], &ids, &err);

        fuzz_check_err(status, &err);
        FUZZ_CHECK(status == TD_OK || ids.len == 0);
        FUZZ_CHECK(td_str_is_utf8(text) || status != TD_OK);
        for (size_t k = 0; k < ids.len; k++)
            FUZZ_CHECK(ids.data[k] < n_vocab);
        fuzz_text_decode(tok, &ids);
        td_ids_deinit(&ids);
    }
}

#endif
