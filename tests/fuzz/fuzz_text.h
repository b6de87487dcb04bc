/* What the tokenizer targets do with a tokenizer that was opened. */
#ifndef TD_TESTS_FUZZ_FUZZ_TEXT_H
#define TD_TESTS_FUZZ_FUZZ_TEXT_H

#include "daemon/text/detok.h"
#include "daemon/text/tokimpl.h"
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

/* Text that nobody vouches for never becomes a control token; unknown characters and bytes may. */
static inline bool fuzz_text_is_forged(const struct td_tokenizer *tok, uint32_t id)
{
    bool forged = td_tokenizer_is_special(tok, id) && (int64_t)id != tok->bpe.unknown_id;

    for (int b = 0; b < 256 && forged; b++)
        forged = tok->bpe.byte_ids[b] != (int64_t)id;
    return forged;
}

static inline void fuzz_text_check_ids(const struct td_tokenizer *tok, const struct td_ids *ids,
                                       bool trusted)
{
    for (size_t k = 0; k < ids->len; k++) {
        FUZZ_CHECK(ids->data[k] < td_tokenizer_n_vocab(tok));
        FUZZ_CHECK(trusted || !fuzz_text_is_forged(tok, ids->data[k]));
    }
    fuzz_text_decode(tok, ids);
}

/* The text in two parts: of one trust they give the ids of the whole; the untrusted part of a mixed one forges nothing. */
static inline void fuzz_text_parts(const struct td_tokenizer *tok, struct td_str text,
                                   const struct td_ids *plain, const struct td_ids *special)
{
    size_t cut = text.len / 2;

    for (unsigned trust = 0; trust < 4; trust++) {
        struct td_text_segment parts[2] = {
            {{text.ptr, cut}, trust & 1},
            {{text.ptr + cut, text.len - cut}, (trust & 2) != 0},
        };
        const struct td_ids *same = trust == 0 ? plain : trust == 3 ? special : NULL;
        struct td_ids ids = {0};
        struct td_err err = {0};
        enum td_status status = td_tokenizer_encode_segments(tok, parts, 2, 0, &ids, &err);

        fuzz_check_err(status, &err);
        fuzz_text_check_ids(tok, &ids, trust != 0);
        if (same && !status && td_str_is_utf8(text))
            FUZZ_CHECK(
                ids.len == same->len &&
                (ids.len == 0 || memcmp(ids.data, same->data, ids.len * sizeof *ids.data) == 0));
        td_ids_deinit(&ids);
    }
}

static inline void fuzz_text_use(const struct td_tokenizer *tok, struct td_str text)
{
    static const unsigned flags[] = {0, TD_ENCODE_SPECIAL, TD_ENCODE_SPECIAL | TD_ENCODE_BOS};
    uint32_t n_vocab = td_tokenizer_n_vocab(tok);
    struct td_ids ids[3] = {0};

    if (text.len > 256)
        text.len = 256;
    for (uint32_t id = 0; id < n_vocab && id < 4096; id++) {
        fuzz_touch(td_tokenizer_piece(tok, id));
        (void)td_tokenizer_is_special(tok, id);
    }
    fuzz_touch(td_tokenizer_piece(tok, UINT32_MAX));
    FUZZ_CHECK(td_tokenizer_bos(tok) < (int64_t)n_vocab);
    FUZZ_CHECK(td_tokenizer_eos(tok) < (int64_t)n_vocab);
    for (size_t i = 0; i < 3; i++) {
        struct td_err err = {0};
        enum td_status status = td_tokenizer_encode(tok, text, flags[i], &ids[i], &err);

        fuzz_check_err(status, &err);
        FUZZ_CHECK(status == TD_OK || ids[i].len == 0);
        FUZZ_CHECK(td_str_is_utf8(text) || status != TD_OK);
        fuzz_text_check_ids(tok, &ids[i], flags[i] != 0);
    }
    fuzz_text_parts(tok, text, &ids[0], &ids[1]);
    for (size_t i = 0; i < 3; i++)
        td_ids_deinit(&ids[i]);
}

#endif
