/* Added tokens: texts that are found in the input as a whole, before normalising or cutting. One trie over many
 * texts; at each place the longest one that may stand there wins. Read-only after building, any thread. */
#ifndef TD_DAEMON_TEXT_ADDTOK_H
#define TD_DAEMON_TEXT_ADDTOK_H

#include "kernels/base/bytes.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_ADDTOK_MAX_BYTES = 4096 };

/* As in tokenizer.json's "added_tokens". */
struct td_addtok {
    struct td_bytes content; /* owned; 1 to TD_ADDTOK_MAX_BYTES bytes */
    uint32_t id;
    bool special;     /* matched only where the caller trusts the text */
    bool normalized;  /* matched in normalised text, else in the text as given */
    bool lstrip;      /* takes the white space before it along */
    bool rstrip;      /* and behind it */
    bool single_word; /* only where no word character touches it */
};

struct td_addtok_node;

struct td_addtok_trie {
    struct td_addtok_node *nodes; /* owned; [0] is the root */
    uint32_t n_nodes, cap;
    bool first[256]; /* bytes that begin a text */
};

void td_addtok_trie_deinit(struct td_addtok_trie *t);
/* Adds `text` (not empty) for token number `index`. Of equal texts the first added stays. TD_NO_MEMORY. */
enum td_status td_addtok_trie_add(struct td_addtok_trie *t, struct td_str text, uint32_t index);

struct td_addtok_match {
    uint32_t index;
    size_t start, end; /* of the text itself, without stripped white space */
};

/* Whether token `index` may stand at [start, end). */
typedef bool td_addtok_accept_fn(const void *user, uint32_t index, size_t start, size_t end);

/* The leftmost match at or after `from`, the longest one there that `accept` allows; false when there is none. */
bool td_addtok_next(const struct td_addtok_trie *t, struct td_str text, size_t from,
                    td_addtok_accept_fn *accept, const void *user, struct td_addtok_match *match);

/* True when no word character (letter, mark, digit, connector) touches [start, end) of `text`. */
bool td_addtok_is_single_word(struct td_str text, size_t start, size_t end);

#endif
