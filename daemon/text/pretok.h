/* The pre-tokenizer: cuts normalised text into the pieces that byte-pair encoding may not cross. A list of stages, as
 * Hugging Face tokenizers has them. Filled by a loader, then read-only for any thread. */
#ifndef TD_DAEMON_TEXT_PRETOK_H
#define TD_DAEMON_TEXT_PRETOK_H

#include "daemon/text/regex.h"
#include "kernels/base/bytes.h"

enum td_pretok_kind {
    TD_PRETOK_SPLIT,       /* cuts at the matches of `pattern` */
    TD_PRETOK_SPACE_FRONT, /* each piece gets a space in front unless it has one */
    TD_PRETOK_METASPACE    /* spaces become `mark`, one goes in front, and `pattern` may cut */
};

/* What becomes of a match in a split. */
enum td_pretok_behavior {
    TD_PRETOK_ISOLATED,
    TD_PRETOK_REMOVED,
    TD_PRETOK_WITH_PREVIOUS, /* joined to the gap before it */
    TD_PRETOK_WITH_NEXT,     /* joined to the gap behind it */
    TD_PRETOK_CONTIGUOUS     /* neighbouring matches are one piece */
};

enum td_pretok_front { TD_PRETOK_NEVER, TD_PRETOK_FIRST, TD_PRETOK_ALWAYS };

struct td_pretok_stage {
    enum td_pretok_kind kind;
    struct td_regex *pattern; /* owned; METASPACE: NULL when it does not cut */
    enum td_pretok_behavior behavior;
    bool invert;          /* SPLIT: the gaps are the matches */
    struct td_bytes mark; /* METASPACE: owned, usually U+2581 */
    enum td_pretok_front front;
};

enum { TD_PRETOK_MAX_STAGES = 16 };

struct td_pretok {
    struct td_pretok_stage stages[TD_PRETOK_MAX_STAGES];
    size_t n_stages;
};

/* The next stage to be filled in, NULL when there are too many. */
struct td_pretok_stage *td_pretok_add(struct td_pretok *p, enum td_pretok_kind kind);
/* A SPLIT by a regular expression. */
enum td_status td_pretok_add_split(struct td_pretok *p, struct td_str pattern,
                                   enum td_pretok_behavior behavior, bool invert,
                                   struct td_err *err);
void td_pretok_deinit(struct td_pretok *p);

struct td_pretok_span {
    size_t at, len;
};

struct td_pretok_spans {
    struct td_pretok_span *data; /* owned */
    size_t len, cap;
};

/* Scratch of one caller. Zero-initialise. */
struct td_pretok_work {
    struct td_bytes text[2];
    struct td_pretok_spans spans[2];
};

/* Cuts `text` (well-formed UTF-8). *out_text is what *out_spans index: `text` itself or a buffer of `work`; both are
 * valid until the next call. `at_start`: `text` begins the whole input. */
enum td_status td_pretok_run(const struct td_pretok *p, struct td_str text, bool at_start,
                             struct td_pretok_work *work, struct td_regex_work *re,
                             struct td_str *out_text, const struct td_pretok_spans **out_spans,
                             struct td_err *err);
void td_pretok_work_deinit(struct td_pretok_work *work);

#endif
