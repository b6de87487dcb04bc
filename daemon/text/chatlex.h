/* The tokens inside a template's tags, and the state of parsing one template. For chatlex.c, chatexpr.c (expressions)
 * and chatparse.c (statements) only. */
#ifndef TD_DAEMON_TEXT_CHATLEX_H
#define TD_DAEMON_TEXT_CHATLEX_H

#include "daemon/text/chattmpl.h"

enum { TD_CHATLEX_MAX_DEPTH = 64 };

enum td_chatlex_token {
    TD_CHATLEX_END, /* of the tag, or a delimiter that closes it */
    TD_CHATLEX_NAME,
    TD_CHATLEX_STRING,
    TD_CHATLEX_INT,
    TD_CHATLEX_OP /* one or two characters in `text` */
};

struct td_chatlex {
    struct td_chattmpl *t;
    struct td_err *err;
    struct td_str src; /* newlines normalised */
    size_t at;
    int depth;
    bool in_loop;
    bool line_start;            /* the tag before ended a line */
    bool strip_next;            /* ... and takes the white space behind it */
    bool trim_next;             /* ... and takes one newline */
    const char *close;          /* of the tag being read: "}}" or "%}" */
    enum td_chatlex_token kind; /* of the current token */
    struct td_str text;         /* its text; of a string, the unescaped one */
    int64_t num;
};

/* Errors: something that is not built (`what` in front of the quoted text), or no template at all. */
enum td_status td_chatlex_unsupported(struct td_chatlex *p, const char *what, struct td_str text);
enum td_status td_chatlex_broken(struct td_chatlex *p, const char *what);
enum td_status td_chatlex_no_memory(struct td_chatlex *p);

char td_chatlex_peek(const struct td_chatlex *p, size_t ahead); /* NUL behind the end */
/* Moves to the next token. The closing delimiter is TD_CHATLEX_END and stays unread. */
enum td_status td_chatlex_next(struct td_chatlex *p);
bool td_chatlex_is(const struct td_chatlex *p, enum td_chatlex_token kind, const char *text);
/* Takes the token if it is the one; *found says so. */
enum td_status td_chatlex_accept(struct td_chatlex *p, enum td_chatlex_token kind, const char *text,
                                 bool *found);
enum td_status td_chatlex_expect(struct td_chatlex *p, enum td_chatlex_token kind,
                                 const char *text);

/* Parses an expression at the current token; *out is its index. */
enum td_status td_chatexpr_parse(struct td_chatlex *p, uint16_t *out);
/* The same without "a if b else c": what may stand behind "in". */
enum td_status td_chatexpr_parse_plain(struct td_chatlex *p, uint16_t *out);
int td_chatexpr_find_var(const struct td_chattmpl *t, struct td_str name); /* -1: none */

#endif
