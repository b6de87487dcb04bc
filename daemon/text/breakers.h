/* Which tokens break a repeated sequence for DRY (shard/dry.h): every token whose text has one of the given texts in it.
 * Read-only after open: any number of threads. Knows no request. */
#ifndef TD_DAEMON_TEXT_BREAKERS_H
#define TD_DAEMON_TEXT_BREAKERS_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stddef.h>
#include <stdint.h>

struct td_breakers;
struct td_tokenizer;

enum { TD_BREAKERS_MAX = 16, TD_BREAKERS_MAX_TEXT_BYTES = 64, TD_BREAKERS_N_DEFAULT = 4 };

/* llama-server's: newline, colon, quotation mark, asterisk. */
extern const struct td_str td_breakers_default[TD_BREAKERS_N_DEFAULT];

/* Joins the text of all tokens and marks the default breakers once. On success *b is owned (close it) and borrows
 * nothing. TD_NO_MEMORY, TD_TOO_LARGE. */
enum td_status td_breakers_open(const struct td_tokenizer *tok, struct td_breakers **b,
                                struct td_err *err);
void td_breakers_close(struct td_breakers *b); /* NULL is legal */

/* Bytes of a set of tokens: bit id % 8 of byte id / 8. */
size_t td_breakers_set_bytes(const struct td_breakers *b);
/* Writes the set of the tokens that hold any of texts [n] into `set`. TD_INVALID: more than TD_BREAKERS_MAX texts, or one
 * without bytes or with more than TD_BREAKERS_MAX_TEXT_BYTES. One search over a megabyte or two for each text; none for
 * the default ones. */
enum td_status td_breakers_mark(const struct td_breakers *b, const struct td_str *texts, size_t n,
                                uint8_t *set, struct td_err *err);

#endif
