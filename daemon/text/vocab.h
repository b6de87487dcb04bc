/* The table of a model's tokens: what each id matches in normalised text, what it writes into decoded text, and the
 * way back from text to id. Filled by a loader, indexed once, then read-only for any thread. */
#ifndef TD_DAEMON_TEXT_VOCAB_H
#define TD_DAEMON_TEXT_VOCAB_H

#include "kernels/base/bytes.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    TD_VOCAB_PRESENT = 1,     /* the id exists (files may leave holes) */
    TD_VOCAB_SPECIAL = 2,     /* a control token: never made from plain text */
    TD_VOCAB_ADDED = 4,       /* matched as a whole before the model's own algorithm */
    TD_VOCAB_BYTE = 8,        /* stands for one byte where nothing else fits ("<0x0A>") */
    TD_VOCAB_UNREACHABLE = 16 /* text that the model's alphabet cannot spell */
};

/* Ids above are refused: no known model comes near, and a hostile file must not ask for gigabytes. */
enum { TD_VOCAB_MAX_IDS = 1 << 22 };

struct td_vocab_entry {
    uint32_t key_at, key_len;     /* in `text`: what it matches */
    uint32_t piece_at, piece_len; /* in `text`: what it writes */
    uint32_t flags;
};

struct td_vocab {
    struct td_vocab_entry *entries; /* owned, [n] */
    uint32_t n;                     /* highest id + 1 */
    uint32_t cap;
    struct td_bytes text; /* every key and piece */
    uint32_t *slots;      /* owned, [n_slots]: id + 1 by hash of the key; 0 is empty */
    size_t n_slots;       /* power of two */
    size_t max_key_bytes; /* of the indexed keys */
};

void td_vocab_deinit(struct td_vocab *v);
/* Writes or overwrites an id; `piece` may be the same slice as `key`. TD_CORRUPT for an id over the limit. */
enum td_status td_vocab_set(struct td_vocab *v, uint32_t id, struct td_str key, struct td_str piece,
                            unsigned flags, struct td_err *err);
/* Sets another piece for an id that is present, and adds flags. */
enum td_status td_vocab_amend(struct td_vocab *v, uint32_t id, struct td_str piece, unsigned flags,
                              struct td_err *err);
/* Builds the way from key to id over all entries that are not unreachable; of equal keys the plain one is found, then
 * the lowest id. Once, before the two below. */
enum td_status td_vocab_index(struct td_vocab *v, struct td_err *err);
/* The token that plain text `key` may become: neither special nor byte. -1: none. */
int64_t td_vocab_find(const struct td_vocab *v, struct td_str key);
/* The same of any kind. */
int64_t td_vocab_find_any(const struct td_vocab *v, struct td_str key);

/* For an id out of range or in a hole: the empty slice, 0. Slices borrow from the vocabulary. */
struct td_str td_vocab_key(const struct td_vocab *v, uint32_t id);
struct td_str td_vocab_piece(const struct td_vocab *v, uint32_t id);
unsigned td_vocab_flags(const struct td_vocab *v, uint32_t id);

#endif
