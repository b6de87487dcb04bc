/* The normaliser in front of a tokenizer: a list of rewriting stages over well-formed UTF-8. Filled by a loader, then
 * read-only for any thread. */
#ifndef TD_DAEMON_TEXT_TEXTNORM_H
#define TD_DAEMON_TEXT_TEXTNORM_H

#include "daemon/text/regex.h"
#include "kernels/base/bytes.h"

enum td_textnorm_kind {
    TD_TEXTNORM_NFC,
    TD_TEXTNORM_NFD,
    TD_TEXTNORM_NFKC,
    TD_TEXTNORM_NFKD,
    TD_TEXTNORM_PREPEND, /* `text` goes in front, unless there is nothing to go in front of */
    TD_TEXTNORM_REPLACE, /* every match of `pattern` becomes `text` */
    TD_TEXTNORM_STRIP    /* white space at the ends goes */
};

struct td_textnorm_stage {
    enum td_textnorm_kind kind;
    struct td_bytes text;     /* owned */
    struct td_bytes from;     /* owned: REPLACE of a literal; empty when `pattern` is set */
    struct td_regex *pattern; /* owned; REPLACE of a regular expression */
    bool left, right;         /* STRIP */
};

enum { TD_TEXTNORM_MAX_STAGES = 16 };

struct td_textnorm {
    struct td_textnorm_stage stages[TD_TEXTNORM_MAX_STAGES];
    size_t n_stages;
};

/* The next stage to be filled in, NULL when there are too many. */
struct td_textnorm_stage *td_textnorm_add(struct td_textnorm *n, enum td_textnorm_kind kind);
void td_textnorm_deinit(struct td_textnorm *n);

/* Runs all stages. *out is `text` itself or a slice of one of the two buffers, valid until either changes. */
enum td_status td_textnorm_run(const struct td_textnorm *n, struct td_str text,
                               struct td_bytes buffers[2], struct td_regex_work *work,
                               struct td_str *out, struct td_err *err);

#endif
