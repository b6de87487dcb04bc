#include "daemon/text/chatlex.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SOURCE_BYTES = 1 << 20 };

static enum td_status new_stmt(struct td_chatlex *p, struct td_chattmpl_stmt stmt, uint16_t **tail)
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
static enum td_status parse_text(struct td_chatlex *p, uint16_t **tail)
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
        return td_chatlex_no_memory(p);
    return new_stmt(p, (struct td_chattmpl_stmt){.kind = TD_CHATTMPL_TEXT, .text = text}, tail);
}

/* Enters a tag: reads its delimiter and the first token. */
static enum td_status open_tag(struct td_chatlex *p, const char *close)
{
    p->close = close;
    p->at += 2;
    if (td_chatlex_peek(p, 0) == '-' || td_chatlex_peek(p, 0) == '+')
        p->at++;
    return td_chatlex_next(p);
}

static enum td_status close_tag(struct td_chatlex *p)
{
    char sign = td_chatlex_peek(p, 0);

    if (p->kind != TD_CHATLEX_END)
        return td_chatlex_unsupported(p, "", p->text);
    p->strip_next = sign == '-';
    p->trim_next = sign != '-' && sign != '+' && p->close[0] == '%';
    p->at += sign == '-' || sign == '+' ? 3 : 2;
    return TD_OK;
}

static enum td_status skip_comment(struct td_chatlex *p)
{
    const char *end = memmem(p->src.ptr + p->at + 2, p->src.len - p->at - 2, "#}", 2);

    if (!end)
        return td_chatlex_broken(p, "a comment without end");
    p->strip_next = end[-1] == '-' && end > p->src.ptr + p->at + 2;
    p->trim_next = !p->strip_next && end[-1] != '+';
    p->at = (size_t)(end - p->src.ptr) + 2;
    return TD_OK;
}

/* A name that is assigned to: a new one, or one of the template's. */
static enum td_status parse_target(struct td_chatlex *p, uint16_t *var)
{
    struct td_str name = p->text;
    int known = td_chatexpr_find_var(p->t, name);
    char *copy;

    if (p->kind != TD_CHATLEX_NAME || td_str_eq(name, TD_STR("loop")))
        return td_chatlex_unsupported(p, "the target ", name);
    if (known < 0) {
        if (p->t->n_vars == TD_CHATTMPL_MAX_VARS)
            return td_chatlex_unsupported(p, "too many variables at ", name);
        copy = td_arena_strndup(&p->t->arena, name.ptr, name.len);
        if (!copy)
            return td_chatlex_no_memory(p);
        known = p->t->n_vars++;
        p->t->vars[known] = (struct td_str){copy, name.len};
    }
    *var = (uint16_t)known;
    return td_chatlex_next(p);
}

static enum td_status parse_body(struct td_chatlex *p, uint16_t *first, const char *const *ends,
                                 size_t *which);

/* "if" or "elif" has been read. */
static enum td_status parse_if(struct td_chatlex *p, uint16_t **tail)
{
    static const char *const ends[] = {"endif", "else", "elif"};
    static const char *const endif[] = {"endif", NULL, NULL};
    struct td_chattmpl_stmt stmt = {.kind = TD_CHATTMPL_IF};
    uint16_t self, *inner;
    size_t which;
    enum td_status s = td_chatexpr_parse(p, &stmt.expr);

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
static enum td_status parse_for(struct td_chatlex *p, uint16_t **tail)
{
    static const char *const ends[] = {"endfor", NULL, NULL};
    struct td_chattmpl_stmt stmt = {.kind = TD_CHATTMPL_FOR};
    uint16_t self;
    size_t which;
    enum td_status s;

    if (p->in_loop)
        return td_chatlex_unsupported(p, "a loop in a loop over ", p->text);
    s = parse_target(p, &stmt.var);
    if (!s && stmt.var < TD_CHATTMPL_N_GIVEN)
        return td_chatlex_unsupported(p, "the target ", p->t->vars[stmt.var]);
    if (!s)
        s = td_chatlex_expect(p, TD_CHATLEX_NAME, "in");
    if (!s)
        s = td_chatexpr_parse_plain(p, &stmt.expr);
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
static enum td_status parse_set(struct td_chatlex *p, uint16_t **tail)
{
    struct td_chattmpl_stmt stmt = {.kind = TD_CHATTMPL_SET};
    enum td_status s = parse_target(p, &stmt.var);

    if (!s)
        s = td_chatlex_expect(p, TD_CHATLEX_OP, "=");
    if (!s)
        s = td_chatexpr_parse(p, &stmt.expr);
    if (!s)
        s = close_tag(p);
    return s ? s : new_stmt(p, stmt, tail);
}

/* Statements up to one of `ends` (three places, NULL: none), whose tag is left open behind its name. NULL ends: up to
 * the end of the source. */
static enum td_status parse_body(struct td_chatlex *p, uint16_t *first, const char *const *ends,
                                 size_t *which)
{
    uint16_t *tail = first;
    enum td_status s = TD_OK;

    if (++p->depth > TD_CHATLEX_MAX_DEPTH)
        return td_chatlex_unsupported(p, "too deep nesting at ", p->text);
    while (!s) {
        struct td_chattmpl_stmt out = {.kind = TD_CHATTMPL_OUT};
        bool found;

        s = parse_text(p, &tail);
        if (s)
            break;
        if (p->at >= p->src.len) {
            p->depth--;
            return ends ? td_chatlex_broken(p, "a block without end") : TD_OK;
        }
        if (td_chatlex_peek(p, 1) == '#') {
            s = skip_comment(p);
            continue;
        }
        s = open_tag(p, td_chatlex_peek(p, 1) == '{' ? "}}" : "%}");
        if (s)
            break;
        if (p->close[0] == '}') {
            s = td_chatexpr_parse(p, &out.expr);
            if (!s)
                s = close_tag(p);
            if (!s)
                s = new_stmt(p, out, &tail);
            continue;
        }
        for (size_t i = 0; ends && i < 3; i++) {
            if (ends[i] && td_chatlex_is(p, TD_CHATLEX_NAME, ends[i])) {
                *which = i;
                p->depth--;
                return td_chatlex_next(p);
            }
        }
        if (!(s = td_chatlex_accept(p, TD_CHATLEX_NAME, "if", &found)) && found)
            s = parse_if(p, &tail);
        else if (!s && !(s = td_chatlex_accept(p, TD_CHATLEX_NAME, "for", &found)) && found)
            s = parse_for(p, &tail);
        else if (!s && !(s = td_chatlex_accept(p, TD_CHATLEX_NAME, "set", &found)) && found)
            s = parse_set(p, &tail);
        else if (!s)
            s = td_chatlex_unsupported(p, "the statement ", p->text);
    }
    p->depth--;
    return s;
}

/* Jinja reads every kind of newline as one, and drops the last. */
static enum td_status normalise_newlines(struct td_chatlex *p, struct td_str source)
{
    char *text = td_arena_alloc(&p->t->arena, source.len + 1);
    size_t len = 0;

    if (!text)
        return td_chatlex_no_memory(p);
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
    struct td_chatlex p = {.t = t, .err = err, .line_start = true};
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
    s = t->exprs && t->stmts ? normalise_newlines(&p, source) : td_chatlex_no_memory(&p);
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
