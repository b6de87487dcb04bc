/* Finds stop strings in text that comes in pieces, and says which bytes may be shown already. What it decides depends
 * on the text alone, never on how it was cut: the stop string whose last byte comes first wins, of several the longest.
 * Used by rank 0 to end a sequence and by the coordinator to cut its text; one writer. */
#ifndef TD_DAEMON_TEXT_STOP_H
#define TD_DAEMON_TEXT_STOP_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>

struct td_stop;

/* Copies `n` stop strings (n may be 0). `include`: a stop string that was found stays in the text. On success *stop is
 * owned by the caller (close it). TD_INVALID for an empty string or one over 64 KiB; TD_NO_MEMORY. */
enum td_status td_stop_open(const struct td_str *strings, size_t n, bool include,
                            struct td_stop **stop, struct td_err *err);
void td_stop_close(struct td_stop *stop); /* NULL is legal */

/* Takes the next piece of text and appends to `out` what is sure to stay: all but a tail that may still become a stop
 * string. *matched: a stop string was found; everything before it (with `include`: and itself) has been written, and
 * later pieces write nothing. `out` may be NULL when only the decision is wanted. On an error (of the buffer) nothing
 * has changed. */
enum td_status td_stop_push(struct td_stop *stop, struct td_str text, struct td_bytes *out,
                            bool *matched);
/* The end without a stop string: appends the tail held back. */
enum td_status td_stop_flush(struct td_stop *stop, struct td_bytes *out);
bool td_stop_matched(const struct td_stop *stop);
size_t td_stop_held_bytes(const struct td_stop *stop); /* bytes of the tail held back */
/* Forgets the text, keeps the strings. */
void td_stop_reset(struct td_stop *stop);

#endif
