#include "daemon/text/chatlex.h"

static enum td_status new_expr(struct td_chatlex *p, struct td_chattmpl_expr e, uint16_t *out)
{
    if (p->t->n_exprs == TD_CHATTMPL_MAX_EXPRS)
        return td_err_set(p->err, TD_TOO_LARGE, "it has more than %d expressions",
                          TD_CHATTMPL_MAX_EXPRS);
    p->t->exprs[p->t->n_exprs] = e;
    *out = p->t->n_exprs++;
    return TD_OK;
}

static enum td_status new_unary(struct td_chatlex *p, enum td_chattmpl_expr_kind kind, uint16_t a,
                                uint16_t *out)
{
    return new_expr(p, (struct td_chattmpl_expr){.kind = kind, .a = a}, out);
}

int td_chatexpr_find_var(const struct td_chattmpl *t, struct td_str name)
{
    for (int i = 0; i < t->n_vars; i++)
        if (td_str_eq(t->vars[i], name))
            return i;
    return -1;
}

/* "loop" has been read. */
static enum td_status parse_loop(struct td_chatlex *p, uint16_t *out)
{
    static const struct {
        const char *name;
        enum td_chattmpl_expr_kind kind;
        int64_t num;
    } fields[] = {{"first", TD_CHATTMPL_FIRST, 0},
                  {"last", TD_CHATTMPL_LAST, 0},
                  {"index0", TD_CHATTMPL_INDEX, 0},
                  {"index", TD_CHATTMPL_INDEX, 1}};
    enum td_status s = td_chatlex_expect(p, TD_CHATLEX_OP, ".");

    if (s)
        return s;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (!td_chatlex_is(p, TD_CHATLEX_NAME, fields[i].name))
            continue;
        s = new_expr(p, (struct td_chattmpl_expr){.kind = fields[i].kind, .num = fields[i].num},
                     out);
        return s ? s : td_chatlex_next(p);
    }
    return td_chatlex_unsupported(p, "loop.", p->text);
}

static enum td_status parse_raise(struct td_chatlex *p, uint16_t *out)
{
    uint16_t a;
    enum td_status s = td_chatlex_expect(p, TD_CHATLEX_OP, "(");

    if (!s)
        s = td_chatexpr_parse(p, &a);
    if (!s)
        s = td_chatlex_expect(p, TD_CHATLEX_OP, ")");
    return s ? s : new_unary(p, TD_CHATTMPL_RAISE, a, out);
}

static enum td_status parse_name(struct td_chatlex *p, uint16_t *out)
{
    struct td_str name = p->text;
    bool truth =
        td_chatlex_is(p, TD_CHATLEX_NAME, "true") || td_chatlex_is(p, TD_CHATLEX_NAME, "True");
    bool lie =
        td_chatlex_is(p, TD_CHATLEX_NAME, "false") || td_chatlex_is(p, TD_CHATLEX_NAME, "False");
    bool loop = p->in_loop && td_chatlex_is(p, TD_CHATLEX_NAME, "loop"),
         raise = td_chatlex_is(p, TD_CHATLEX_NAME, "raise_exception");
    int var = td_chatexpr_find_var(p->t, name);
    enum td_status s = td_chatlex_next(p);

    if (s)
        return s;
    if (truth || lie)
        return new_expr(p, (struct td_chattmpl_expr){.kind = TD_CHATTMPL_BOOL, .num = truth}, out);
    if (loop)
        return parse_loop(p, out);
    if (raise)
        return parse_raise(p, out);
    if (var < 0)
        return td_chatlex_unsupported(p, "", name);
    return new_expr(p, (struct td_chattmpl_expr){.kind = TD_CHATTMPL_VAR, .num = var}, out);
}

static enum td_status parse_primary(struct td_chatlex *p, uint16_t *out)
{
    struct td_chattmpl_expr e = {.kind = TD_CHATTMPL_STR, .text = p->text, .num = p->num};
    enum td_status s;

    if (p->kind == TD_CHATLEX_NAME)
        return parse_name(p, out);
    if (p->kind == TD_CHATLEX_STRING || p->kind == TD_CHATLEX_INT) {
        if (p->kind == TD_CHATLEX_INT)
            e.kind = TD_CHATTMPL_INT;
        s = td_chatlex_next(p);
        /* Two strings side by side are one in Jinja. */
        if (!s && e.kind == TD_CHATTMPL_STR && p->kind == TD_CHATLEX_STRING)
            return td_chatlex_unsupported(p, "adjacent strings before ", p->text);
        return s ? s : new_expr(p, e, out);
    }
    s = td_chatlex_expect(p, TD_CHATLEX_OP, "(");
    if (!s)
        s = td_chatexpr_parse(p, out);
    return s ? s : td_chatlex_expect(p, TD_CHATLEX_OP, ")");
}

/* A message's field by name. */
static enum td_status parse_field(struct td_chatlex *p, uint16_t a, uint16_t *out)
{
    bool role = td_str_eq(p->text, TD_STR("role"));
    enum td_status s;

    if (!role && !td_str_eq(p->text, TD_STR("content")))
        return td_chatlex_unsupported(p, "the field ", p->text);
    s = new_unary(p, role ? TD_CHATTMPL_ROLE : TD_CHATTMPL_CONTENT, a, out);
    return s ? s : td_chatlex_next(p);
}

/* "[" has been read. */
static enum td_status parse_subscript(struct td_chatlex *p, uint16_t a, uint16_t *out)
{
    struct td_chattmpl_expr e = {.kind = TD_CHATTMPL_ITEM, .a = a};
    bool minus, colon;
    enum td_status s;

    if (p->kind == TD_CHATLEX_STRING) {
        s = parse_field(p, a, out);
        return s ? s : td_chatlex_expect(p, TD_CHATLEX_OP, "]");
    }
    s = td_chatlex_accept(p, TD_CHATLEX_OP, "-", &minus);
    if (s)
        return s;
    if (p->kind != TD_CHATLEX_INT)
        return td_chatlex_unsupported(p, "the subscript ", p->text);
    e.num = minus ? -p->num : p->num;
    s = td_chatlex_next(p);
    if (!s)
        s = td_chatlex_accept(p, TD_CHATLEX_OP, ":", &colon);
    if (s)
        return s;
    if (colon)
        e.kind = TD_CHATTMPL_TAIL;
    if (colon && minus)
        return td_chatlex_unsupported(p, "a slice from the end before ", p->text);
    s = new_expr(p, e, out);
    return s ? s : td_chatlex_expect(p, TD_CHATLEX_OP, "]");
}

static enum td_status parse_test(struct td_chatlex *p, uint16_t a, uint16_t *out)
{
    bool negate;
    enum td_chattmpl_expr_kind kind = TD_CHATTMPL_IS_DEFINED;
    enum td_status s = td_chatlex_accept(p, TD_CHATLEX_NAME, "not", &negate);

    if (s)
        return s;
    if (td_chatlex_is(p, TD_CHATLEX_NAME, "string"))
        kind = TD_CHATTMPL_IS_STRING;
    else if (td_chatlex_is(p, TD_CHATLEX_NAME, "none"))
        kind = TD_CHATTMPL_IS_NONE;
    else if (!td_chatlex_is(p, TD_CHATLEX_NAME, "defined"))
        return td_chatlex_unsupported(p, "the test ", p->text);
    s = new_unary(p, kind, a, out);
    if (!s && negate)
        s = new_unary(p, TD_CHATTMPL_NOT, *out, out);
    return s ? s : td_chatlex_next(p);
}

/* A primary with what follows it: fields, subscripts, filters, tests. */
static enum td_status parse_postfix(struct td_chatlex *p, uint16_t *out)
{
    enum td_status s = parse_primary(p, out);

    while (!s) {
        if (td_chatlex_is(p, TD_CHATLEX_OP, ".")) {
            s = td_chatlex_next(p);
            if (!s)
                s = p->kind == TD_CHATLEX_NAME ? parse_field(p, *out, out)
                                               : td_chatlex_unsupported(p, ".", p->text);
        } else if (td_chatlex_is(p, TD_CHATLEX_OP, "[")) {
            s = td_chatlex_next(p);
            if (!s)
                s = parse_subscript(p, *out, out);
        } else if (td_chatlex_is(p, TD_CHATLEX_OP, "|")) {
            s = td_chatlex_next(p);
            if (!s && !td_chatlex_is(p, TD_CHATLEX_NAME, "trim"))
                return td_chatlex_unsupported(p, "the filter ", p->text);
            if (!s)
                s = td_chatlex_next(p);
            if (!s && td_chatlex_is(p, TD_CHATLEX_OP, "("))
                return td_chatlex_unsupported(p, "trim with ", p->text);
            if (!s)
                s = new_unary(p, TD_CHATTMPL_TRIM, *out, out);
        } else if (td_chatlex_is(p, TD_CHATLEX_NAME, "is")) {
            s = td_chatlex_next(p);
            if (!s)
                s = parse_test(p, *out, out);
        } else {
            return TD_OK;
        }
    }
    return s;
}

struct level {
    enum td_chatlex_token kind;
    const char *text;
    enum td_chattmpl_expr_kind expr;
};

/* The binary operators, weakest first; "not" stands between "and" and the comparisons. */
static const struct level levels[] = {
    {TD_CHATLEX_NAME, "or", TD_CHATTMPL_OR},  {TD_CHATLEX_NAME, "and", TD_CHATTMPL_AND},
    {TD_CHATLEX_OP, "==", TD_CHATTMPL_EQ},    {TD_CHATLEX_OP, "+", TD_CHATTMPL_ADD},
    {TD_CHATLEX_OP, "~", TD_CHATTMPL_CONCAT},
};

enum { LEVEL_COMPARE = 2, N_LEVELS = sizeof levels / sizeof *levels };

static enum td_status parse_level(struct td_chatlex *p, size_t level, uint16_t *out)
{
    bool negate;
    enum td_status s;

    if (level == N_LEVELS)
        return parse_postfix(p, out);
    if (level == LEVEL_COMPARE) {
        s = td_chatlex_accept(p, TD_CHATLEX_NAME, "not", &negate);
        if (s)
            return s;
        if (negate) {
            if (++p->depth > TD_CHATLEX_MAX_DEPTH)
                return td_chatlex_unsupported(p, "too deep nesting at ", p->text);
            s = parse_level(p, level, out);
            p->depth--;
            return s ? s : new_unary(p, TD_CHATTMPL_NOT, *out, out);
        }
    }
    s = parse_level(p, level + 1, out);
    while (!s) {
        struct td_chattmpl_expr e = {.kind = levels[level].expr, .a = *out};

        if (level == LEVEL_COMPARE && td_chatlex_is(p, TD_CHATLEX_OP, "!="))
            e.kind = TD_CHATTMPL_NE;
        else if (!td_chatlex_is(p, levels[level].kind, levels[level].text))
            return TD_OK;
        s = td_chatlex_next(p);
        if (!s)
            s = parse_level(p, level + 1, &e.b);
        if (!s)
            s = new_expr(p, e, out);
        if (!s && level == LEVEL_COMPARE &&
            (td_chatlex_is(p, TD_CHATLEX_OP, "==") || td_chatlex_is(p, TD_CHATLEX_OP, "!=")))
            return td_chatlex_unsupported(p, "a chain of comparisons with ", p->text);
    }
    return s;
}

enum td_status td_chatexpr_parse(struct td_chatlex *p, uint16_t *out)
{
    struct td_chattmpl_expr e = {.kind = TD_CHATTMPL_CHOOSE};
    bool found;
    enum td_status s;

    if (++p->depth > TD_CHATLEX_MAX_DEPTH)
        return td_chatlex_unsupported(p, "too deep nesting at ", p->text);
    s = parse_level(p, 0, out);
    if (!s)
        s = td_chatlex_accept(p, TD_CHATLEX_NAME, "if", &found);
    if (!s && found) {
        e.b = *out;
        s = parse_level(p, 0, &e.a);
        if (!s)
            s = td_chatlex_expect(p, TD_CHATLEX_NAME, "else");
        if (!s)
            s = td_chatexpr_parse(p, &e.c);
        if (!s)
            s = new_expr(p, e, out);
    }
    p->depth--;
    return s;
}

enum td_status td_chatexpr_parse_plain(struct td_chatlex *p, uint16_t *out)
{
    return parse_level(p, 0, out);
}
