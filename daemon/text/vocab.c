#include "daemon/text/vocab.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

void td_vocab_deinit(struct td_vocab *v)
{
    free(v->slots);
    td_bytes_deinit(&v->text);
    free(v->entries);
    *v = (struct td_vocab){0};
}

static enum td_status grow(struct td_vocab *v, uint32_t n)
{
    struct td_vocab_entry *entries;
    uint32_t cap = v->cap ? v->cap : 1024;

    if (n > v->cap) {
        while (cap < n)
            cap *= 2;
        entries = realloc(v->entries, cap * sizeof *entries);
        if (!entries)
            return TD_NO_MEMORY;
        v->entries = entries;
        v->cap = cap;
    }
    if (n > v->n) {
        memset(v->entries + v->n, 0, (n - v->n) * sizeof *v->entries);
        v->n = n;
    }
    return TD_OK;
}

enum td_status td_vocab_set(struct td_vocab *v, uint32_t id, struct td_str key, struct td_str piece,
                            unsigned flags, struct td_err *err)
{
    struct td_vocab_entry e = {.key_len = (uint32_t)key.len, .piece_len = (uint32_t)piece.len};
    bool same = td_str_eq(key, piece);

    if (id >= TD_VOCAB_MAX_IDS)
        return td_err_set(err, TD_CORRUPT, "token id %u is out of range, expected less than %d", id,
                          TD_VOCAB_MAX_IDS);
    if (key.len > UINT32_MAX / 4 || piece.len > UINT32_MAX / 4 || v->text.len > UINT32_MAX / 4)
        return td_err_set(err, TD_TOO_LARGE, "the vocabulary's text is over 1 GiB at token id %u",
                          id);
    if (grow(v, id + 1) || td_bytes_reserve(&v->text, key.len + piece.len))
        return td_err_set(err, TD_NO_MEMORY, "no memory for a vocabulary of %u tokens", id + 1);
    e.key_at = (uint32_t)v->text.len;
    td_bytes_append_str(&v->text, key);
    e.piece_at = same ? e.key_at : (uint32_t)v->text.len;
    if (!same)
        td_bytes_append_str(&v->text, piece);
    e.flags = flags | TD_VOCAB_PRESENT;
    v->entries[id] = e;
    return TD_OK;
}

enum td_status td_vocab_amend(struct td_vocab *v, uint32_t id, struct td_str piece, unsigned flags,
                              struct td_err *err)
{
    struct td_vocab_entry *e = &v->entries[id];

    if (piece.len > UINT32_MAX / 4 || v->text.len > UINT32_MAX / 4)
        return td_err_set(err, TD_TOO_LARGE, "the vocabulary's text is over 1 GiB at token id %u",
                          id);
    e->flags |= flags;
    if (td_str_eq(td_vocab_piece(v, id), piece))
        return TD_OK;
    if (td_bytes_reserve(&v->text, piece.len))
        return td_err_set(err, TD_NO_MEMORY, "no memory for the text of token %u", id);
    e->piece_at = (uint32_t)v->text.len;
    e->piece_len = (uint32_t)piece.len;
    td_bytes_append_str(&v->text, piece);
    return TD_OK;
}

/* The slot that holds `key`, or the empty one where it would go. */
static size_t slot_of(const struct td_vocab *v, struct td_str key)
{
    size_t i = (size_t)XXH3_64bits(key.ptr, key.len) & (v->n_slots - 1);

    while (v->slots[i] && !td_str_eq(td_vocab_key(v, v->slots[i] - 1), key))
        i = (i + 1) & (v->n_slots - 1);
    return i;
}

static bool is_plain(const struct td_vocab *v, uint32_t id)
{
    return !(v->entries[id].flags & (TD_VOCAB_SPECIAL | TD_VOCAB_BYTE));
}

enum td_status td_vocab_index(struct td_vocab *v, struct td_err *err)
{
    size_t n_slots = 16;

    while (n_slots < (size_t)v->n * 2)
        n_slots *= 2;
    v->slots = calloc(n_slots, sizeof *v->slots);
    if (!v->slots)
        return td_err_set(err, TD_NO_MEMORY, "no memory to index %u tokens", v->n);
    v->n_slots = n_slots;
    for (uint32_t id = 0; id < v->n; id++) {
        const struct td_vocab_entry *e = &v->entries[id];
        size_t i;

        if (!(e->flags & TD_VOCAB_PRESENT) || e->key_len == 0 || e->flags & TD_VOCAB_UNREACHABLE)
            continue;
        i = slot_of(v, td_vocab_key(v, id));
        if (v->slots[i] && (is_plain(v, v->slots[i] - 1) || !is_plain(v, id)))
            continue;
        v->slots[i] = id + 1;
        if (e->key_len > v->max_key_bytes)
            v->max_key_bytes = e->key_len;
    }
    return TD_OK;
}

int64_t td_vocab_find_any(const struct td_vocab *v, struct td_str key)
{
    if (key.len == 0 || key.len > v->max_key_bytes)
        return -1;
    return (int64_t)v->slots[slot_of(v, key)] - 1;
}

int64_t td_vocab_find(const struct td_vocab *v, struct td_str key)
{
    int64_t id = td_vocab_find_any(v, key);

    return id >= 0 && is_plain(v, (uint32_t)id) ? id : -1;
}

struct td_str td_vocab_key(const struct td_vocab *v, uint32_t id)
{
    if (id >= v->n || !v->entries[id].key_len)
        return (struct td_str){"", 0};
    return (struct td_str){v->text.data + v->entries[id].key_at, v->entries[id].key_len};
}

struct td_str td_vocab_piece(const struct td_vocab *v, uint32_t id)
{
    if (id >= v->n || !v->entries[id].piece_len)
        return (struct td_str){"", 0};
    return (struct td_str){v->text.data + v->entries[id].piece_at, v->entries[id].piece_len};
}

unsigned td_vocab_flags(const struct td_vocab *v, uint32_t id)
{
    return id < v->n ? v->entries[id].flags : 0;
}
