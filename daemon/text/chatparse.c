#include "daemon/text/chattmpl.h"
#include "daemon/text/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SOURCE_BYTES = 1 << 20, MAX_DEPTH = 64 };

enum token {
    T_END, /* of the tag, or a delimiter that closes it */
    T_NAME,
    T_STRING,
    T_INT,
    T_OP /* one or two characters in `text` */
};

struct parser {
    struct td_chattmpl *t;
    struct td_err *err;
    struct td_str src; /* newlines normalised */
    size_t at;
    int depth;
    bool in_loop;
    uint16_t loop_var;
    bool line_start;    /* the tag before ended a line */
    bool strip_next;    /* ... and takes the white space behind it */
    bool trim_next;     /* ... and takes one newline */
    const char *close;  /* of the tag being read: "}}" or "%}" */
    enum token kind;    /* of the current token */
    struct td_str text; /* its text; of a string, the unescaped one */
    int64_t num;
};

static enum td_status parse_expr(struct parser *p, uint16_t *out);

static enum td_status unsupported(struct parser *p, const char *what, struct td_str text)
{
    return td_err_set(p->err, TD_UNSUPPORTED, "it uses %s'%.*s'", what,
                      text.len > 60 ? 60 : (int)text.len, text.ptr);
}

static enum td_status broken(struct parser *p, const char *what)
{
    size_t line = 1;

    for (size_t i = 0; i < p->at && i < p->src.len; i++)
        line += p->src.ptr[i] == '\n';
    return td_err_set(p->err, TD_INVALID, "line %zu: %s", line, what);
}

static enum td_status no_memory(struct parser *p)
{
    return td_err_set(p->err, TD_NO_MEMORY, "no memory for a template");
}

/* ---- tokens inside a tag ---- */

static bool is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static char peek(const struct parser *p, size_t ahead)
{
    return p->at + ahead < p->src.len ? p->src.ptr[p->at + ahead] : '\0';
}

/* Reads `n` hexadecimal digits at `from`; -1 when they are not there. */
static int64_t hex(struct td_str s, size_t from, size_t n)
{
    int64_t v = 0;

    if (n > s.len - from)
        return -1;
    for (size_t i = from; i < from + n; i++) {
        char c = s.ptr[i];

        if (!is_digit(c) && !((c | 32) >= 'a' && (c | 32) <= 'f'))
            return -1;
        v = v * 16 + (is_digit(c) ? c - '0' : (c | 32) - 'a' + 10);
    }
    return v;
}

/* One escape at s[*at] (behind the backslash) into out; false when it is none that is built. */
static bool unescape(struct td_str s, size_t *at, char *out, size_t *len)
{
    static const char from[] = "nrt\\'\"", to[] = "\n\r\t\\'\"";
    char c = s.ptr[*at];
    const char *known = memchr(from, c, sizeof from - 1);
    int64_t cp;

    if (known) {
        out[(*len)++] = to[known - from];
        (*at)++;
        return true;
    }
    if (c != 'x' && c != 'u')
        return false;
    cp = hex(s, *at + 1, c == 'x' ? 2 : 4);
    if (cp < 0 || (cp >= 0xD800 && cp <= 0xDFFF))
        return false;
    *len += td_utf8_encode((uint32_t)cp, out + *len);
    *at += c == 'x' ? 3 : 5;
    return true;
}

static enum td_status read_string(struct parser *p)
{
    char quote = p->src.ptr[p->at];
    size_t start = p->at + 1, end = start, len = 0;
    char *out;

    while (end < p->src.len && p->src.ptr[end] != quote)
        end += p->src.ptr[end] == '\\' ? 2 : 1;
    if (end >= p->src.len)
        return broken(p, "a string without end");
    /* No escape is shorter than what it writes. */
    out = td_arena_alloc(&p->t->arena, end - start + 1);
    if (!out)
        return no_memory(p);
    for (size_t i = start; i < end;) {
        if (p->src.ptr[i] != '\\') {
            out[len++] = p->src.ptr[i++];
            continue;
        }
        i++;
        if (!unescape((struct td_str){p->src.ptr, end}, &i, out, &len))
            return unsupported(p, "the escape ", (struct td_str){p->src.ptr + i - 1, 2});
    }
    p->kind = T_STRING;
    p->text = (struct td_str){out, len};
    p->at = end + 1;
    return TD_OK;
}

/* Moves to the next token. The closing delimiter is T_END and stays unread. */
static enum td_status next(struct parser *p)
{
    size_t start;
    char c;

    while (p->at < p->src.len && strchr(" \t\n\v\f", p->src.ptr[p->at]) && p->src.ptr[p->at])
        p->at++;
    start = p->at;
    c = peek(p, 0);
    p->kind = T_OP;
    if (p->at >= p->src.len)
        return broken(p, "a tag without end");
    if ((c == p->close[0] && peek(p, 1) == p->close[1]) ||
        ((c == '-' || c == '+') && peek(p, 1) == p->close[0] && peek(p, 2) == p->close[1])) {
        p->kind = T_END;
        p->text = (struct td_str){p->close, 2};
        return TD_OK;
    }
    if (c == '\'' || c == '"')
        return read_string(p);
    if (is_name_start(c)) {
        while (is_name_start(peek(p, 0)) || is_digit(peek(p, 0)))
            p->at++;
        p->kind = T_NAME;
    } else if (is_digit(c)) {
        for (p->num = 0; is_digit(peek(p, 0)); p->at++) {
            if (p->num > 100000000)
                return broken(p, "a number over 10^9");
            p->num = p->num * 10 + (peek(p, 0) - '0');
        }
        p->kind = T_INT;
    } else {
        bool two = peek(p, 1) == '=' && strchr("=!<>", c);

        p->at += two ? 2 : 1;
    }
    p->text = (struct td_str){p->src.ptr + start, p->at - start};
    return TD_OK;
}

static bool is(const struct parser *p, enum token kind, const char *text)
{
    return p->kind == kind && td_str_eq(p->text, td_str_from(text));
}

/* Takes the token if it is the one; *found says so. */
static enum td_status accept(struct parser *p, enum token kind, const char *text, bool *found)
{
    *found = is(p, kind, text);
    return *found ? next(p) : TD_OK;
}

static enum td_status expect(struct parser *p, enum token kind, const char *text)
{
    if (is(p, kind, text))
        return next(p);
    return unsupported(p, "", p->text);
}

/* ---- expressions, by rising strength as in Jinja ---- */

static enum td_status new_expr(struct parser *p, struct td_chattmpl_expr e, uint16_t *out)
{
    if (p->t->n_exprs == TD_CHATTMPL_MAX_EXPRS)
        return td_err_set(p->err, TD_TOO_LARGE, "it has more than %d expressions",
                          TD_CHATTMPL_MAX_EXPRS);
    p->t->exprs[p->t->n_exprs] = e;
    *out = p->t->n_exprs++;
    return TD_OK;
}

static enum td_status new_unary(struct parser *p, enum td_chattmpl_expr_kind kind, uint16_t a,
                                uint16_t *out)
{
    return new_expr(p, (struct td_chattmpl_expr){.kind = kind, .a = a}, out);
}

static int find_var(const struct td_chattmpl *t, struct td_str name)
{
    for (int i = 0; i < t->n_vars; i++)
        if (td_str_eq(t->vars[i], name))
            return i;
    return -1;
}

/* "loop" has been read. */
static enum td_status parse_loop(struct parser *p, uint16_t *out)
{
    static const struct {
        const char *name;
        enum td_chattmpl_expr_kind kind;
        int64_t num;
    } fields[] = {{"first", TD_CHATTMPL_FIRST, 0},
                  {"last", TD_CHATTMPL_LAST, 0},
                  {"index0", TD_CHATTMPL_INDEX, 0},
                  {"index", TD_CHATTMPL_INDEX, 1}};
    enum td_status s = expect(p, T_OP, ".");

    if (s)
        return s;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (!is(p, T_NAME, fields[i].name))
            continue;
        s = new_expr(p, (struct td_chattmpl_expr){.kind = fields[i].kind, .num = fields[i].num},
                     out);
        return s ? s : next(p);
    }
    return unsupported(p, "loop.", p->text);
}

static enum td_status parse_raise(struct parser *p, uint16_t *out)
{
    uint16_t a;
    enum td_status s = expect(p, T_OP, "(");

    if (!s)
        s = parse_expr(p, &a);
    if (!s)
        s = expect(p, T_OP, ")");
    return s ? s : new_unary(p, TD_CHATTMPL_RAISE, a, out);
}

static enum td_status parse_name(struct parser *p, uint16_t *out)
{
    struct td_str name = p->text;
    bool truth = is(p, T_NAME, "true") || is(p, T_NAME, "True");
    bool lie = is(p, T_NAME, "false") || is(p, T_NAME, "False");
    bool loop = p->in_loop && is(p, T_NAME, "loop"), raise = is(p, T_NAME, "raise_exception");
    int var = find_var(p->t, name);
    enum td_status s = next(p);

    if (s)
        return s;
    if (truth || lie)
        return new_expr(p, (struct td_chattmpl_expr){.kind = TD_CHATTMPL_BOOL, .num = truth}, out);
    if (loop)
        return parse_loop(p, out);
    if (raise)
        return parse_raise(p, out);
    if (var < 0)
        return unsupported(p, "", name);
    return new_expr(p, (struct td_chattmpl_expr){.kind = TD_CHATTMPL_VAR, .num = var}, out);
}

static enum td_status parse_primary(struct parser *p, uint16_t *out)
{
    struct td_chattmpl_expr e = {.kind = TD_CHATTMPL_STR, .text = p->text, .num = p->num};
    enum td_status s;

    if (p->kind == T_NAME)
        return parse_name(p, out);
    if (p->kind == T_STRING || p->kind == T_INT) {
        if (p->kind == T_INT)
            e.kind = TD_CHATTMPL_INT;
        s = next(p);
        /* Two strings side by side are one in Jinja. */
        if (!s && e.kind == TD_CHATTMPL_STR && p->kind == T_STRING)
            return unsupported(p, "adjacent strings before ", p->text);
        return s ? s : new_expr(p, e, out);
    }
    s = expect(p, T_OP, "(");
    if (!s)
        s = parse_expr(p, out);
    return s ? s : expect(p, T_OP, ")");
}

/* A message's field by name. */
static enum td_status parse_field(struct parser *p, uint16_t a, uint16_t *out)
{
    bool role = td_str_eq(p->text, TD_STR("role"));
    enum td_status s;

    if (!role && !td_str_eq(p->text, TD_STR("content")))
        return unsupported(p, "the field ", p->text);
    s = new_unary(p, role ? TD_CHATTMPL_ROLE : TD_CHATTMPL_CONTENT, a, out);
    return s ? s : next(p);
}

/* "[" has been read. */
static enum td_status parse_subscript(struct parser *p, uint16_t a, uint16_t *out)
{
    struct td_chattmpl_expr e = {.kind = TD_CHATTMPL_ITEM, .a = a};
    bool minus, colon;
    enum td_status s;

    if (p->kind == T_STRING) {
        s = parse_field(p, a, out);
        return s ? s : expect(p, T_OP, "]");
    }
    s = accept(p, T_OP, "-", &minus);
    if (s)
        return s;
    if (p->kind != T_INT)
        return unsupported(p, "the subscript ", p->text);
    e.num = minus ? -p->num : p->num;
    s = next(p);
    if (!s)
        s = accept(p, T_OP, ":", &colon);
    if (s)
        return s;
    if (colon)
        e.kind = TD_CHATTMPL_TAIL;
    if (colon && minus)
        return unsupported(p, "a slice from the end before ", p->text);
    s = new_expr(p, e, out);
    return s ? s : expect(p, T_OP, "]");
}

static enum td_status parse_test(struct parser *p, uint16_t a, uint16_t *out)
{
    bool negate;
    enum td_chattmpl_expr_kind kind = TD_CHATTMPL_IS_DEFINED;
    enum td_status s = accept(p, T_NAME, "not", &negate);

    if (s)
        return s;
    if (is(p, T_NAME, "string"))
        kind = TD_CHATTMPL_IS_STRING;
    else if (is(p, T_NAME, "none"))
        kind = TD_CHATTMPL_IS_NONE;
    else if (!is(p, T_NAME, "defined"))
        return unsupported(p, "the test ", p->text);
    s = new_unary(p, kind, a, out);
    if (!s && negate)
        s = new_unary(p, TD_CHATTMPL_NOT, *out, out);
    return s ? s : next(p);
}

/* A primary with what follows it: fields, subscripts, filters, tests. */
static enum td_status parse_postfix(struct parser *p, uint16_t *out)
{
    enum td_status s = parse_primary(p, out);

    while (!s) {
        if (is(p, T_OP, ".")) {
            s = next(p);
            if (!s)
                s = p->kind == T_NAME ? parse_field(p, *out, out) : unsupported(p, ".", p->text);
        } else if (is(p, T_OP, "[")) {
            s = next(p);
            if (!s)
                s = parse_subscript(p, *out, out);
        } else if (is(p, T_OP, "|")) {
            s = next(p);
            if (!s && !is(p, T_NAME, "trim"))
                return unsupported(p, "the filter ", p->text);
            if (!s)
                s = next(p);
            if (!s && is(p, T_OP, "("))
                return unsupported(p, "trim with ", p->text);
            if (!s)
                s = new_unary(p, TD_CHATTMPL_TRIM, *out, out);
        } else if (is(p, T_NAME, "is")) {
            s = next(p);
            if (!s)
                s = parse_test(p, *out, out);
        } else {
            return TD_OK;
        }
    }
    return s;
}

struct level {
    enum token kind;
    const char *text;
    enum td_chattmpl_expr_kind expr;
};

/* The binary operators, weakest first; "not" stands between "and" and the comparisons. */
static const struct level levels[] = {
    {T_NAME, "or", TD_CHATTMPL_OR}, {T_NAME, "and", TD_CHATTMPL_AND}, {T_OP, "==", TD_CHATTMPL_EQ},
    {T_OP, "+", TD_CHATTMPL_ADD},   {T_OP, "~", TD_CHATTMPL_CONCAT},
};

enum { LEVEL_COMPARE = 2, N_LEVELS = sizeof levels / sizeof *levels };

static enum td_status parse_level(struct parser *p, size_t level, uint16_t *out)
{
    bool negate;
    enum td_status s;

    if (level == N_LEVELS)
        return parse_postfix(p, out);
    if (level == LEVEL_COMPARE) {
        s = accept(p, T_NAME, "not", &negate);
        if (s)
            return s;
        if (negate) {
            if (++p->depth > MAX_DEPTH)
                return unsupported(p, "too deep nesting at ", p->text);
            s = parse_level(p, level, out);
            p->depth--;
            return s ? s : new_unary(p, TD_CHATTMPL_NOT, *out, out);
        }
    }
    s = parse_level(p, level + 1, out);
    while (!s) {
        struct td_chattmpl_expr e = {.kind = levels[level].expr, .a = *out};

        if (level == LEVEL_COMPARE && is(p, T_OP, "!="))
            e.kind = TD_CHATTMPL_NE;
        else if (!is(p, levels[level].kind, levels[level].text))
            return TD_OK;
        s = next(p);
        if (!s)
            s = parse_level(p, level + 1, &e.b);
        if (!s)
            s = new_expr(p, e, out);
        if (!s && level == LEVEL_COMPARE && (is(p, T_OP, "==") || is(p, T_OP, "!=")))
            return unsupported(p, "a chain of comparisons with ", p->text);
    }
    return s;
}

static enum td_status parse_expr(struct parser *p, uint16_t *out)
{
    struct td_chattmpl_expr e = {.kind = TD_CHATTMPL_CHOOSE};
    bool found;
    enum td_status s;

    if (++p->depth > MAX_DEPTH)
        return unsupported(p, "too deep nesting at ", p->text);
    s = parse_level(p, 0, out);
    if (!s)
        s = accept(p, T_NAME, "if", &found);
    if (!s && found) {
        e.b = *out;
        s = parse_level(p, 0, &e.a);
        if (!s)
            s = expect(p, T_NAME, "else");
        if (!s)
            s = parse_expr(p, &e.c);
        if (!s)
            s = new_expr(p, e, out);
    }
    p->depth--;
    return s;
}

/* ---- statements ---- */

static enum td_status new_stmt(struct parser *p, struct td_chattmpl_stmt stmt, uint16_t **tail)
{
    if (p->t->n_stmts == TD_CHATTMPL_MAX_STMTS)
        return td_err_set(p->err, TD_TOO_LARGE, "it has more than %d statements",
                          TD_CHATTMPL_MAX_STMTS);
    p->t->stmts[p->t->n_stmts] = stmt;
    **tail = p->t->n_stmts++;
    *tail = &p->t->stmts[**tail].next;
    return TD_OK;
}

/* Reads text up to the next tag, cuts its white space, and stops at the tag. */
static enum td_status parse_text(struct parser *p, uint16_t **tail)
{
    size_t end = p->at;
    struct td_str text;
    char mark, sign;

    while (end < p->src.len && !(p->src.ptr[end] == '{' && end + 1 < p->src.len &&
                                 strchr("{%#", p->src.ptr[end + 1]) && p->src.ptr[end + 1]))
        end++;
    text = (struct td_str){p->src.ptr + p->at, end - p->at};
    mark = end + 1 < p->src.len ? p->src.ptr[end + 1] : '\0';
    sign = end + 2 < p->src.len ? p->src.ptr[end + 2] : '\0';
    if (p->strip_next) {
        size_t n = td_chatrender_front_space(text);

        text = (struct td_str){text.ptr + n, text.len - n};
    } else if (p->trim_next && text.len && text.ptr[0] == '\n') {
        text = (struct td_str){text.ptr + 1, text.len - 1};
        p->line_start = true;
    }
    if (mark && sign == '-') {
        text.len -= td_chatrender_back_space(text);
    } else if (mark && mark != '{' && sign != '+') {
        size_t line = text.len;

        while (line > 0 && text.ptr[line - 1] != '\n')
            line--;
        if ((line > 0 || p->line_start) &&
            td_chatrender_front_space((struct td_str){text.ptr + line, text.len - line}) ==
                text.len - line)
            text.len = line;
    }
    p->at = end;
    p->strip_next = p->trim_next = p->line_start = false;
    if (!text.len)
        return TD_OK;
    text.ptr = td_arena_strndup(&p->t->arena, text.ptr, text.len);
    if (!text.ptr)
        return no_memory(p);
    return new_stmt(p, (struct td_chattmpl_stmt){.kind = TD_CHATTMPL_TEXT, .text = text}, tail);
}

/* Enters a tag: reads its delimiter and the first token. */
static enum td_status open_tag(struct parser *p, const char *close)
{
    p->close = close;
    p->at += 2;
    if (peek(p, 0) == '-' || peek(p, 0) == '+')
        p->at++;
    return next(p);
}

static enum td_status close_tag(struct parser *p)
{
    char sign = peek(p, 0);

    if (p->kind != T_END)
        return unsupported(p, "", p->text);
    p->strip_next = sign == '-';
    p->trim_next = sign != '-' && sign != '+' && p->close[0] == '%';
    p->at += sign == '-' || sign == '+' ? 3 : 2;
    return TD_OK;
}

static enum td_status skip_comment(struct parser *p)
{
    const char *end = memmem(p->src.ptr + p->at + 2, p->src.len - p->at - 2, "#}", 2);

    if (!end)
        return broken(p, "a comment without end");
    p->strip_next = end[-1] == '-' && end > p->src.ptr + p->at + 2;
    p->trim_next = !p->strip_next && end[-1] != '+';
    p->at = (size_t)(end - p->src.ptr) + 2;
    return TD_OK;
}

/* A name that is assigned to: a new one, or one of the template's. */
static enum td_status parse_target(struct parser *p, uint16_t *var)
{
    struct td_str name = p->text;
    int known = find_var(p->t, name);
    char *copy;

    if (p->kind != T_NAME || td_str_eq(name, TD_STR("loop")))
        return unsupported(p, "the target ", name);
    if (known < 0) {
        if (p->t->n_vars == TD_CHATTMPL_MAX_VARS)
            return unsupported(p, "too many variables at ", name);
        copy = td_arena_strndup(&p->t->arena, name.ptr, name.len);
        if (!copy)
            return no_memory(p);
        known = p->t->n_vars++;
        p->t->vars[known] = (struct td_str){copy, name.len};
    }
    *var = (uint16_t)known;
    return next(p);
}

static enum td_status parse_body(struct parser *p, uint16_t *first, const char *const *ends,
                                 size_t *which);

/* "if" or "elif" has been read. */
static enum td_status parse_if(struct parser *p, uint16_t **tail)
{
    static const char *const ends[] = {"endif", "else", "elif"};
    static const char *const endif[] = {"endif", NULL, NULL};
    struct td_chattmpl_stmt stmt = {.kind = TD_CHATTMPL_IF};
    uint16_t self, *inner;
    size_t which;
    enum td_status s = parse_expr(p, &stmt.expr);

    if (!s)
        s = close_tag(p);
    if (!s)
        s = new_stmt(p, stmt, tail);
    if (s)
        return s;
    self = (uint16_t)(p->t->n_stmts - 1);
    s = parse_body(p, &p->t->stmts[self].body, ends, &which);
    if (s)
        return s;
    if (which == 2) {
        inner = &p->t->stmts[self].other;
        return parse_if(p, &inner);
    }
    s = close_tag(p);
    if (s || which == 0)
        return s;
    s = parse_body(p, &p->t->stmts[self].other, endif, &which);
    return s ? s : close_tag(p);
}

/* "for" has been read. */
static enum td_status parse_for(struct parser *p, uint16_t **tail)
{
    static const char *const ends[] = {"endfor", NULL, NULL};
    struct td_chattmpl_stmt stmt = {.kind = TD_CHATTMPL_FOR};
    uint16_t self;
    size_t which;
    enum td_status s;

    if (p->in_loop)
        return unsupported(p, "a loop in a loop over ", p->text);
    s = parse_target(p, &stmt.var);
    if (!s && stmt.var < TD_CHATTMPL_N_GIVEN)
        return unsupported(p, "the target ", p->t->vars[stmt.var]);
    if (!s)
        s = expect(p, T_NAME, "in");
    if (!s)
        s = parse_level(p, 0, &stmt.expr);
    if (!s)
        s = close_tag(p);
    if (!s)
        s = new_stmt(p, stmt, tail);
    if (s)
        return s;
    self = (uint16_t)(p->t->n_stmts - 1);
    p->in_loop = true;
    s = parse_body(p, &p->t->stmts[self].body, ends, &which);
    p->in_loop = false;
    return s ? s : close_tag(p);
}

/* "set" has been read. */
static enum td_status parse_set(struct parser *p, uint16_t **tail)
{
    struct td_chattmpl_stmt stmt = {.kind = TD_CHATTMPL_SET};
    enum td_status s = parse_target(p, &stmt.var);

    if (!s)
        s = expect(p, T_OP, "=");
    if (!s)
        s = parse_expr(p, &stmt.expr);
    if (!s)
        s = close_tag(p);
    return s ? s : new_stmt(p, stmt, tail);
}

/* Statements up to one of `ends` (three places, NULL: none), whose tag is left open behind its name. NULL ends: up to
 * the end of the source. */
static enum td_status parse_body(struct parser *p, uint16_t *first, const char *const *ends,
                                 size_t *which)
{
    uint16_t *tail = first;
    enum td_status s = TD_OK;

    if (++p->depth > MAX_DEPTH)
        return unsupported(p, "too deep nesting at ", p->text);
    while (!s) {
        struct td_chattmpl_stmt out = {.kind = TD_CHATTMPL_OUT};
        bool found;

        s = parse_text(p, &tail);
        if (s)
            break;
        if (p->at >= p->src.len) {
            p->depth--;
            return ends ? broken(p, "a block without end") : TD_OK;
        }
        if (peek(p, 1) == '#') {
            s = skip_comment(p);
            continue;
        }
        s = open_tag(p, peek(p, 1) == '{' ? "}}" : "%}");
        if (s)
            break;
        if (p->close[0] == '}') {
            s = parse_expr(p, &out.expr);
            if (!s)
                s = close_tag(p);
            if (!s)
                s = new_stmt(p, out, &tail);
            continue;
        }
        for (size_t i = 0; ends && i < 3; i++) {
            if (ends[i] && is(p, T_NAME, ends[i])) {
                *which = i;
                p->depth--;
                return next(p);
            }
        }
        if (!(s = accept(p, T_NAME, "if", &found)) && found)
            s = parse_if(p, &tail);
        else if (!s && !(s = accept(p, T_NAME, "for", &found)) && found)
            s = parse_for(p, &tail);
        else if (!s && !(s = accept(p, T_NAME, "set", &found)) && found)
            s = parse_set(p, &tail);
        else if (!s)
            s = unsupported(p, "the statement ", p->text);
    }
    p->depth--;
    return s;
}

/* Jinja reads every kind of newline as one, and drops the last. */
static enum td_status normalise_newlines(struct parser *p, struct td_str source)
{
    char *text = td_arena_alloc(&p->t->arena, source.len + 1);
    size_t len = 0;

    if (!text)
        return no_memory(p);
    for (size_t i = 0; i < source.len; i++) {
        char c = source.ptr[i];

        if (c == '\r' && i + 1 < source.len && source.ptr[i + 1] == '\n')
            continue;
        text[len++] = c == '\r' ? '\n' : c;
    }
    if (len && text[len - 1] == '\n')
        len--;
    p->src = (struct td_str){text, len};
    return TD_OK;
}

enum td_status td_chatparse_parse(struct td_chattmpl *t, struct td_str source, struct td_err *err)
{
    static const struct td_str given[] = {[TD_CHATTMPL_MESSAGES] = {"messages", 8},
                                          [TD_CHATTMPL_ADD_PROMPT] = {"add_generation_prompt", 21},
                                          [TD_CHATTMPL_BOS] = {"bos_token", 9},
                                          [TD_CHATTMPL_EOS] = {"eos_token", 9}};
    struct parser p = {.t = t, .err = err, .line_start = true};
    enum td_status s;

    *t = (struct td_chattmpl){.n_exprs = 1, .n_stmts = 1, .n_vars = TD_CHATTMPL_N_GIVEN};
    td_arena_init(&t->arena, 4096, 0);
    memcpy(t->vars, given, sizeof given);
    if (source.len > MAX_SOURCE_BYTES || !td_str_is_utf8(source)) {
        s = td_err_set(err, TD_INVALID, "%zu bytes that are no UTF-8 or over %d", source.len,
                       MAX_SOURCE_BYTES);
        goto fail;
    }
    t->exprs = calloc(TD_CHATTMPL_MAX_EXPRS, sizeof *t->exprs);
    t->stmts = calloc(TD_CHATTMPL_MAX_STMTS, sizeof *t->stmts);
    s = t->exprs && t->stmts ? normalise_newlines(&p, source) : no_memory(&p);
    if (!s)
        s = parse_body(&p, &t->first, NULL, NULL);
    if (!s)
        return TD_OK;
fail:
    td_chatparse_deinit(t);
    return s;
}

void td_chatparse_deinit(struct td_chattmpl *t)
{
    free(t->stmts);
    free(t->exprs);
    td_arena_deinit(&t->arena);
    *t = (struct td_chattmpl){0};
}
