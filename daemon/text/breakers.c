#include "daemon/text/breakers.h"

#include "daemon/text/tokenizer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct td_breakers {
    uint32_t n_vocab;
    struct td_bytes text; /* of all tokens, in ascending id */
    uint32_t *end;        /* owned [n_vocab]: where each token's text ends in it */
    uint8_t *default_set; /* owned [set_bytes] */
};

const struct td_str td_breakers_default[TD_BREAKERS_N_DEFAULT] = {
    {"\n", 1}, {":", 1}, {"\"", 1}, {"*", 1}};

size_t td_breakers_set_bytes(const struct td_breakers *b)
{
    return ((size_t)b->n_vocab + 7) / 8;
}

/* A place where the text of two tokens meets is no find. */
static void mark_text(const struct td_breakers *b, struct td_str text, uint8_t *set)
{
    size_t at = 0;
    uint32_t id = 0;

    while (at < b->text.len) {
        const char *found = memmem(b->text.data + at, b->text.len - at, text.ptr, text.len);

        if (!found)
            return;
        at = (size_t)(found - b->text.data);
        while (b->end[id] <= at)
            id++;
        if (at + text.len <= b->end[id]) {
            set[id / 8] |= (uint8_t)(1u << id % 8);
            at = b->end[id];
        } else {
            at++;
        }
    }
}

static void mark_all(const struct td_breakers *b, const struct td_str *texts, size_t n,
                     uint8_t *set)
{
    memset(set, 0, td_breakers_set_bytes(b));
    for (size_t i = 0; i < n; i++)
        mark_text(b, texts[i], set);
}

enum td_status td_breakers_open(const struct td_tokenizer *tok, struct td_breakers **out,
                                struct td_err *err)
{
    struct td_breakers *b = calloc(1, sizeof *b);
    enum td_status s = TD_NO_MEMORY;

    if (!b)
        goto fail;
    b->n_vocab = td_tokenizer_n_vocab(tok);
    b->text.cap_limit = UINT32_MAX;
    b->end = malloc((size_t)b->n_vocab * sizeof *b->end + 1);
    b->default_set = malloc(td_breakers_set_bytes(b) + 1);
    if (!b->end || !b->default_set)
        goto fail;
    for (uint32_t id = 0; id < b->n_vocab; id++) {
        if ((s = td_bytes_append_str(&b->text, td_tokenizer_piece(tok, id))))
            goto fail;
        b->end[id] = (uint32_t)b->text.len;
    }
    mark_all(b, td_breakers_default, TD_BREAKERS_N_DEFAULT, b->default_set);
    *out = b;
    return TD_OK;

fail:
    td_breakers_close(b);
    return td_err_set(err, s, "no memory for the text of all tokens");
}

void td_breakers_close(struct td_breakers *b)
{
    if (!b)
        return;
    free(b->default_set);
    free(b->end);
    td_bytes_deinit(&b->text);
    free(b);
}

static bool is_default(const struct td_str *texts, size_t n)
{
    bool same = n == TD_BREAKERS_N_DEFAULT;

    for (size_t i = 0; same && i < n; i++)
        same = td_str_eq(texts[i], td_breakers_default[i]);
    return same;
}

enum td_status td_breakers_mark(const struct td_breakers *b, const struct td_str *texts, size_t n,
                                uint8_t *set, struct td_err *err)
{
    if (n > TD_BREAKERS_MAX)
        return td_err_set(err, TD_INVALID,
                          "dry_sequence_breakers has %zu texts, expected at most %d", n,
                          TD_BREAKERS_MAX);
    for (size_t i = 0; i < n; i++)
        if (texts[i].len == 0 || texts[i].len > TD_BREAKERS_MAX_TEXT_BYTES)
            return td_err_set(err, TD_INVALID,
                              "dry_sequence_breakers[%zu] has %zu bytes, expected 1 to %d", i,
                              texts[i].len, TD_BREAKERS_MAX_TEXT_BYTES);
    if (is_default(texts, n))
        memcpy(set, b->default_set, td_breakers_set_bytes(b));
    else
        mark_all(b, texts, n, set);
    return TD_OK;
}
