/* A compiled tokenizer pattern, written for Oniguruma (Hugging Face tokenizers) and run by PCRE2. Read-only after
 * compile, any thread; a match needs the caller's own scratch. */
#ifndef TD_DAEMON_TEXT_REGEX_H
#define TD_DAEMON_TEXT_REGEX_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>

struct td_regex;

/* Per-call scratch. Zero-initialise. */
struct td_regex_work {
    void *match_data;    /* owned */
    void *match_context; /* owned */
    void *jit_stack;     /* owned */
};

/* Compiles `pattern`; `literal`: it is plain text. \s, \S, \w and $ are rewritten to what they mean in Oniguruma. TD_UNSUPPORTED for
 * a construct that would mean something else here, TD_INVALID for a broken pattern; both quote it. */
enum td_status td_regex_open(struct td_str pattern, bool literal, struct td_regex **re,
                             struct td_err *err);
void td_regex_close(struct td_regex *re); /* NULL is legal */

/* The leftmost match in well-formed `text` at or after `from`. *found says whether there is one; then [*start, *end)
 * is it. TD_NO_MEMORY; TD_TOO_LARGE when the pattern takes too many steps. */
enum td_status td_regex_next(const struct td_regex *re, struct td_regex_work *work,
                             struct td_str text, size_t from, bool *found, size_t *start,
                             size_t *end, struct td_err *err);
void td_regex_work_deinit(struct td_regex_work *work);

#endif
