/* The small part of Jinja that plain ChatML templates are written in, as a tree. chatparse.c builds it, chatrender.c
 * walks it; what is not in this list is refused by name. White space is cut as transformers does (trim_blocks,
 * lstrip_blocks). Read-only after parsing, any thread.
 *   statements   text, {{ e }}, if/elif/else, one level of for over messages, set
 *   expressions  strings, integers, true/false, names, message.role, message['content'], messages[i], messages[i:],
 *                loop.first/last/index/index0, + ~ == != and or not, a if c else b, |trim, is (not) defined/string/none,
 *                raise_exception(s) */
#ifndef TD_DAEMON_TEXT_CHATTMPL_H
#define TD_DAEMON_TEXT_CHATTMPL_H

#include "daemon/text/chat.h"
#include "kernels/base/arena.h"

enum td_chattmpl_expr_kind {
    TD_CHATTMPL_STR,
    TD_CHATTMPL_INT,
    TD_CHATTMPL_BOOL,
    TD_CHATTMPL_VAR,     /* variable number `num` */
    TD_CHATTMPL_ROLE,    /* a's role */
    TD_CHATTMPL_CONTENT, /* a's content */
    TD_CHATTMPL_ITEM,    /* a[num] */
    TD_CHATTMPL_TAIL,    /* a[num:] */
    TD_CHATTMPL_FIRST,   /* of the loop */
    TD_CHATTMPL_LAST,
    TD_CHATTMPL_INDEX, /* of the loop, plus `num` */
    TD_CHATTMPL_ADD,
    TD_CHATTMPL_CONCAT,
    TD_CHATTMPL_EQ,
    TD_CHATTMPL_NE,
    TD_CHATTMPL_AND,
    TD_CHATTMPL_OR,
    TD_CHATTMPL_NOT,
    TD_CHATTMPL_CHOOSE, /* b if a else c */
    TD_CHATTMPL_TRIM,
    TD_CHATTMPL_IS_DEFINED,
    TD_CHATTMPL_IS_STRING,
    TD_CHATTMPL_IS_NONE,
    TD_CHATTMPL_RAISE
};

struct td_chattmpl_expr {
    enum td_chattmpl_expr_kind kind;
    uint16_t a, b, c; /* operands: indices of expressions */
    int64_t num;
    struct td_str text; /* STR: in the arena */
};

enum td_chattmpl_stmt_kind {
    TD_CHATTMPL_TEXT,
    TD_CHATTMPL_OUT,
    TD_CHATTMPL_IF,
    TD_CHATTMPL_FOR,
    TD_CHATTMPL_SET
};

/* Indices of statements; 0 is none. A body is a chain by `next`. */
struct td_chattmpl_stmt {
    enum td_chattmpl_stmt_kind kind;
    uint16_t expr;        /* OUT, IF, FOR (the list), SET */
    uint16_t var;         /* FOR, SET */
    uint16_t body, other; /* IF: then and else; FOR: body */
    uint16_t next;
    struct td_str text; /* TEXT: in the arena */
};

/* Variables with a meaning of their own; the template's follow. */
enum {
    TD_CHATTMPL_MESSAGES,
    TD_CHATTMPL_ADD_PROMPT,
    TD_CHATTMPL_BOS,
    TD_CHATTMPL_EOS,
    TD_CHATTMPL_N_GIVEN
};
enum { TD_CHATTMPL_MAX_VARS = 32, TD_CHATTMPL_MAX_EXPRS = 4096, TD_CHATTMPL_MAX_STMTS = 1024 };

struct td_chattmpl {
    struct td_arena arena;
    struct td_chattmpl_expr *exprs; /* owned, [n_exprs]; [0] is none */
    uint16_t n_exprs;
    struct td_chattmpl_stmt *stmts; /* owned, [n_stmts]; [0] is none */
    uint16_t n_stmts;
    uint16_t first; /* statement; 0: the template is empty */
    struct td_str vars[TD_CHATTMPL_MAX_VARS];
    uint16_t n_vars;
};

/* Parses `source`. TD_UNSUPPORTED for what is outside the list above, TD_INVALID for what is no template at all. */
enum td_status td_chatparse_parse(struct td_chattmpl *t, struct td_str source, struct td_err *err);
void td_chatparse_deinit(struct td_chattmpl *t);

/* What a template is rendered from. */
struct td_chatrender_input {
    const struct td_chat_message *messages; /* [n] */
    size_t n;
    bool add_generation_prompt;
    struct td_str bos, eos;
};

/* Calls `emit` for each stretch of output, in order; it borrows from the template or the input until they go.
 * `trusted`: the template's own text, BOS or EOS, not a message's. TD_INVALID when the template cannot render these
 * messages, TD_TOO_LARGE. */
typedef enum td_status td_chatrender_emit_fn(void *user, struct td_str text, bool trusted);
enum td_status td_chatrender_render(const struct td_chattmpl *t,
                                    const struct td_chatrender_input *in,
                                    td_chatrender_emit_fn *emit, void *user, struct td_err *err);

/* Bytes of white space, as Python's str.strip knows it, at the front and at the end. */
size_t td_chatrender_front_space(struct td_str s);
size_t td_chatrender_back_space(struct td_str s);

#endif
