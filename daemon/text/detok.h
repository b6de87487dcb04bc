/* From token ids to text, as they come: the bytes that may be shown so far, never half a character. Plain data on the
 * caller's side, one writer; the text of ids pushed one by one is the text of all of them at once. */
#ifndef TD_DAEMON_TEXT_DETOK_H
#define TD_DAEMON_TEXT_DETOK_H

#include "daemon/text/tokenizer.h"

enum {
    TD_DETOK_SKIP_SPECIAL = 1, /* special tokens write nothing */
    TD_DETOK_CONTINUE = 2 /* the text follows other text (a prompt): a space at its front stays */
};

struct td_detok {
    const struct td_tokenizer *tok; /* borrowed */
    unsigned flags;
    bool strip_front; /* one space at the front is still to be dropped */
    uint8_t n_held;   /* bytes of a character that has begun */
    char held[4];
};

void td_detok_init(struct td_detok *d, const struct td_tokenizer *tok, unsigned flags);
/* Appends to `out` what may be shown after `id`: whole characters; a byte that can belong to none is written as U+FFFD
 * (one per maximal subpart; Unicode 15, section 3.9). An id without text writes nothing. TD_NO_MEMORY or the buffer's
 * TD_TOO_LARGE: nothing was written and `d` is as before. */
enum td_status td_detok_push(struct td_detok *d, uint32_t id, struct td_bytes *out);
/* The end: a character that never became whole is written as U+FFFD. */
enum td_status td_detok_flush(struct td_detok *d, struct td_bytes *out);

/* All of `ids` at once. */
enum td_status td_detok_text(const struct td_tokenizer *tok, const uint32_t *ids, size_t n,
                             unsigned flags, struct td_bytes *out);

#endif
