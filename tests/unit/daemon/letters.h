/* A vocabulary for tests in which every token is written as one letter, but for the end token, which is special and writes nothing. */
#ifndef TD_TESTS_UNIT_DAEMON_LETTERS_H
#define TD_TESTS_UNIT_DAEMON_LETTERS_H

#include "tests/unit/check.h"

#include "daemon/text/tokenizer.h"

/* Of a token below 62. */
static inline char letter(uint32_t id)
{
    return "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[id];
}

/* Ids below n_vocab, which is at most 62; close it. */
static inline struct td_tokenizer *open_letters(uint32_t n_vocab, uint32_t eos)
{
    struct td_bytes json = {0};
    struct td_tokenizer *tok = NULL;
    struct td_err err = {0};

    td_bytes_appendf(&json, "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (uint32_t i = 0; i < n_vocab; i++)
        if (i != eos)
            td_bytes_appendf(&json, "\"%c\":%u%s", letter(i), i, i + 1 < n_vocab ? "," : "}},");
    td_bytes_appendf(&json, "\"added_tokens\":[{\"id\":%u,\"content\":\"</s>\",\"special\":true}]}",
                     eos);
    if (td_tokenizer_open_json(td_bytes_str(&json), (struct td_str){NULL, 0}, &tok, &err))
        fail_msg("%s", err.cause);
    td_bytes_deinit(&json);
    return tok;
}

#endif
