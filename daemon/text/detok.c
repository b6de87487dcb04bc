#include "daemon/text/detok.h"

#include "daemon/text/utf8.h"

#include <string.h>

static const struct td_str replacement = {"\xEF\xBF\xBD", 3};

void td_detok_init(struct td_detok *d, const struct td_tokenizer *tok, unsigned flags)
{
    *d = (struct td_detok){.tok = tok, .flags = flags};
    d->strip_front = td_tokenizer_strips_front(tok) && !(flags & TD_DETOK_CONTINUE);
}

/* Takes one byte behind those held and writes what became whole or hopeless. */
static void take_byte(struct td_detok *d, char byte, struct td_bytes *out)
{
    d->held[d->n_held++] = byte;
    while (d->n_held) {
        struct td_str held = {d->held, d->n_held};
        enum td_utf8_front front;
        uint32_t cp;
        size_t n;

        front = td_utf8_decode(held, &cp, &n);
        if (front == TD_UTF8_PARTIAL)
            return;
        td_bytes_append_str(out, front == TD_UTF8_CHAR ? (struct td_str){d->held, n} : replacement);
        d->n_held = (uint8_t)(d->n_held - n);
        memmove(d->held, d->held + n, d->n_held);
    }
}

enum td_status td_detok_push(struct td_detok *d, uint32_t id, struct td_bytes *out)
{
    struct td_str piece = td_tokenizer_piece(d->tok, id);
    enum td_status s;

    if (d->flags & TD_DETOK_SKIP_SPECIAL && td_tokenizer_is_special(d->tok, id))
        return TD_OK;
    /* Each byte, also each held one, writes at most one replacement of three bytes. */
    s = td_bytes_reserve(out, (piece.len + sizeof d->held) * replacement.len);
    if (s)
        return s;
    out->data[out->len] = '\0';
    if (piece.len == 0)
        return TD_OK;
    if (d->strip_front && piece.ptr[0] == ' ')
        piece = (struct td_str){piece.ptr + 1, piece.len - 1};
    d->strip_front = false;
    for (size_t i = 0; i < piece.len; i++)
        take_byte(d, piece.ptr[i], out);
    return TD_OK;
}

enum td_status td_detok_flush(struct td_detok *d, struct td_bytes *out)
{
    enum td_status s = TD_OK;

    if (d->n_held)
        s = td_bytes_append_str(out, replacement);
    if (!s)
        d->n_held = 0;
    return s;
}

enum td_status td_detok_text(const struct td_tokenizer *tok, const uint32_t *ids, size_t n,
                             unsigned flags, struct td_bytes *out)
{
    size_t before = out->len;
    struct td_detok d;
    enum td_status s = TD_OK;

    td_detok_init(&d, tok, flags);
    for (size_t i = 0; i < n && !s; i++)
        s = td_detok_push(&d, ids[i], out);
    if (!s)
        s = td_detok_flush(&d, out);
    if (s && out->len > before) {
        out->len = before;
        out->data[before] = '\0';
    }
    return s;
}
