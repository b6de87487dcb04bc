#include "daemon/text/chattmpl.h"
#include "daemon/text/utf8.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Enough for any real conversation; a hostile template that doubles its strings meets it. */
enum { MAX_PARTS = 1 << 16, ARENA_BYTES = 256 << 20, MAX_OUTPUT_BYTES = 256 << 20 };

enum kind { V_UNDEFINED, V_BOOL, V_INT, V_STR, V_LIST, V_MESSAGE };

/* Strings are kept in pieces, so that each byte remembers whose it is. */
struct value {
    enum kind kind;
    int64_t num;                         /* BOOL, INT; LIST: first message; MESSAGE: its index */
    const struct td_text_segment *parts; /* STR: [n_parts], in the arena */
    size_t n_parts;
};

struct walker {
    const struct td_chattmpl *t;
    const struct td_chatrender_input *in;
    td_chatrender_emit_fn *emit;
    void *user;
    struct td_err *err;
    struct td_arena arena;
    struct value vars[TD_CHATTMPL_MAX_VARS];
    size_t loop_at, loop_n; /* position in the loop, its length */
    size_t emitted_bytes;
};

static enum td_status eval(struct walker *w, uint16_t index, struct value *out);

static enum td_status too_large(struct walker *w)
{
    return td_err_set(w->err, TD_TOO_LARGE, "the conversation is too large for the chat template");
}

/* After the arena gave nothing. */
static enum td_status no_memory(struct walker *w)
{
    return w->arena.is_full
               ? too_large(w)
               : td_err_set(w->err, TD_NO_MEMORY, "no memory to render the conversation");
}

static enum td_status bad(struct walker *w, const char *what)
{
    return td_err_set(w->err, TD_INVALID, "the chat template cannot render these messages: %s",
                      what);
}

static struct value truth(bool b)
{
    return (struct value){.kind = V_BOOL, .num = b};
}

static enum td_status make_str(struct walker *w, struct td_str text, bool trusted,
                               struct value *out)
{
    struct td_text_segment *part = td_arena_alloc(&w->arena, sizeof *part);

    if (!part)
        return no_memory(w);
    *part = (struct td_text_segment){text, trusted};
    *out = (struct value){.kind = V_STR, .parts = part, .n_parts = 1};
    return TD_OK;
}

static bool is_true(const struct value *v)
{
    if (v->kind == V_STR) {
        for (size_t i = 0; i < v->n_parts; i++)
            if (v->parts[i].text.len)
                return true;
        return false;
    }
    return v->kind == V_MESSAGE || v->kind == V_LIST ||
           ((v->kind == V_BOOL || v->kind == V_INT) && v->num != 0);
}

/* As Jinja writes a value into text. */
static enum td_status to_str(struct walker *w, const struct value *v, struct value *out)
{
    char digits[24], *copy;
    int n;

    if (v->kind == V_STR) {
        *out = *v;
        return TD_OK;
    }
    if (v->kind == V_UNDEFINED)
        return make_str(w, (struct td_str){"", 0}, true, out);
    if (v->kind == V_BOOL)
        return make_str(w, v->num ? TD_STR("True") : TD_STR("False"), true, out);
    if (v->kind != V_INT)
        return bad(w, "it writes a whole message or a list");
    n = snprintf(digits, sizeof digits, "%" PRId64, v->num);
    copy = td_arena_strndup(&w->arena, digits, (size_t)n);
    return copy ? make_str(w, (struct td_str){copy, (size_t)n}, true, out) : no_memory(w);
}

static enum td_status concat(struct walker *w, const struct value *a, const struct value *b,
                             struct value *out)
{
    size_t n = a->n_parts + b->n_parts;
    struct td_text_segment *parts;

    if (n > MAX_PARTS)
        return too_large(w);
    parts = td_arena_alloc(&w->arena, n * sizeof *parts);
    if (!parts)
        return no_memory(w);
    memcpy(parts, a->parts, a->n_parts * sizeof *parts);
    memcpy(parts + a->n_parts, b->parts, b->n_parts * sizeof *parts);
    *out = (struct value){.kind = V_STR, .parts = parts, .n_parts = n};
    return TD_OK;
}

static bool same_text(const struct value *a, const struct value *b)
{
    size_t i = 0, j = 0, at_a = 0, at_b = 0;

    for (;;) {
        while (i < a->n_parts && at_a == a->parts[i].text.len) {
            i++;
            at_a = 0;
        }
        while (j < b->n_parts && at_b == b->parts[j].text.len) {
            j++;
            at_b = 0;
        }
        if (i == a->n_parts || j == b->n_parts)
            return i == a->n_parts && j == b->n_parts;
        if (a->parts[i].text.ptr[at_a++] != b->parts[j].text.ptr[at_b++])
            return false;
    }
}

static enum td_status equal(struct walker *w, const struct value *a, const struct value *b,
                            bool *out)
{
    bool a_num = a->kind == V_INT || a->kind == V_BOOL,
         b_num = b->kind == V_INT || b->kind == V_BOOL;

    if (a->kind == V_LIST || a->kind == V_MESSAGE || b->kind == V_LIST || b->kind == V_MESSAGE)
        return bad(w, "it compares a whole message or a list");
    if (a_num && b_num)
        *out = a->num == b->num;
    else if (a->kind == V_STR && b->kind == V_STR)
        *out = same_text(a, b);
    else
        *out = a->kind == V_UNDEFINED && b->kind == V_UNDEFINED;
    return TD_OK;
}

/* Characters that Python's str.strip takes off. */
static bool is_stripped(uint32_t cp)
{
    return td_utf8_is_space(cp) || (cp >= 0x1C && cp <= 0x1F);
}

size_t td_chatrender_front_space(struct td_str s)
{
    size_t at = 0, n;
    uint32_t cp;

    while (at < s.len &&
           td_utf8_decode((struct td_str){s.ptr + at, s.len - at}, &cp, &n) == TD_UTF8_CHAR &&
           is_stripped(cp))
        at += n;
    return at;
}

size_t td_chatrender_back_space(struct td_str s)
{
    size_t end = s.len, at, n;
    uint32_t cp;

    while (end > 0) {
        at = end - 1;
        while (at > 0 && ((unsigned char)s.ptr[at] & 0xC0) == 0x80)
            at--;
        if (td_utf8_decode((struct td_str){s.ptr + at, end - at}, &cp, &n) != TD_UTF8_CHAR ||
            !is_stripped(cp))
            break;
        end = at;
    }
    return s.len - end;
}

static enum td_status trim(struct walker *w, const struct value *v, struct value *out)
{
    struct td_text_segment *parts;
    size_t first = 0, last;
    enum td_status s = to_str(w, v, out);

    if (s)
        return s;
    last = out->n_parts;
    parts = td_arena_alloc(&w->arena, (last + 1) * sizeof *parts);
    if (!parts)
        return no_memory(w);
    memcpy(parts, out->parts, last * sizeof *parts);
    for (; first < last; first++) {
        size_t n = td_chatrender_front_space(parts[first].text);

        parts[first].text.ptr += n;
        parts[first].text.len -= n;
        if (parts[first].text.len)
            break;
    }
    for (; last > first; last--) {
        parts[last - 1].text.len -= td_chatrender_back_space(parts[last - 1].text);
        if (parts[last - 1].text.len)
            break;
    }
    *out = (struct value){.kind = V_STR, .parts = parts + first, .n_parts = last - first};
    return TD_OK;
}

/* messages[i] and messages[i:]. */
static enum td_status item(struct walker *w, const struct td_chattmpl_expr *e,
                           const struct value *a, struct value *out)
{
    int64_t n;

    if (a->kind != V_LIST)
        return bad(w, "it takes an item of what is no list");
    n = (int64_t)w->in->n - a->num;
    if (e->kind == TD_CHATTMPL_TAIL) {
        *out = (struct value){.kind = V_LIST, .num = a->num + (e->num < n ? e->num : n)};
        return TD_OK;
    }
    if (e->num >= n || e->num < -n) {
        *out = (struct value){.kind = V_UNDEFINED};
        return TD_OK;
    }
    *out = (struct value){.kind = V_MESSAGE, .num = a->num + (e->num < 0 ? n + e->num : e->num)};
    return TD_OK;
}

static enum td_status eval_binary(struct walker *w, const struct td_chattmpl_expr *e,
                                  struct value *out)
{
    struct value a, b;
    bool same;
    enum td_status s = eval(w, e->a, &a);

    if (s)
        return s;
    if ((e->kind == TD_CHATTMPL_AND && !is_true(&a)) ||
        (e->kind == TD_CHATTMPL_OR && is_true(&a))) {
        *out = a;
        return TD_OK;
    }
    s = eval(w, e->b, &b);
    if (s)
        return s;
    switch (e->kind) {
    case TD_CHATTMPL_EQ:
    case TD_CHATTMPL_NE:
        s = equal(w, &a, &b, &same);
        if (!s)
            *out = truth(same == (e->kind == TD_CHATTMPL_EQ));
        return s;
    case TD_CHATTMPL_ADD:
        if (a.kind == V_INT && b.kind == V_INT) {
            *out = (struct value){.kind = V_INT, .num = a.num + b.num};
            return TD_OK;
        }
        if (a.kind != V_STR || b.kind != V_STR)
            return bad(w, "it adds what are not two strings");
        return concat(w, &a, &b, out);
    case TD_CHATTMPL_CONCAT:
        s = to_str(w, &a, &a);
        if (!s)
            s = to_str(w, &b, &b);
        return s ? s : concat(w, &a, &b, out);
    default: /* and, or */
        *out = b;
        return TD_OK;
    }
}

static enum td_status raise(struct walker *w, const struct value *v)
{
    struct td_str why = v->kind == V_STR && v->n_parts ? v->parts[0].text : TD_STR("it says no");

    return td_err_set(w->err, TD_INVALID, "the chat template refuses these messages: %.*s",
                      why.len > 200 ? 200 : (int)why.len, why.ptr);
}

static enum td_status eval_unary(struct walker *w, const struct td_chattmpl_expr *e,
                                 struct value *out)
{
    struct value a;
    const struct td_chat_message *m;
    enum td_status s = eval(w, e->a, &a);

    if (s)
        return s;
    switch (e->kind) {
    case TD_CHATTMPL_ROLE:
    case TD_CHATTMPL_CONTENT:
        if (a.kind != V_MESSAGE)
            return bad(w, "it reads a field of what is no message");
        m = &w->in->messages[a.num];
        return make_str(w, e->kind == TD_CHATTMPL_ROLE ? m->role : m->content, false, out);
    case TD_CHATTMPL_ITEM:
    case TD_CHATTMPL_TAIL:
        return item(w, e, &a, out);
    case TD_CHATTMPL_NOT:
        *out = truth(!is_true(&a));
        return TD_OK;
    case TD_CHATTMPL_TRIM:
        return trim(w, &a, out);
    case TD_CHATTMPL_IS_DEFINED:
        *out = truth(a.kind != V_UNDEFINED);
        return TD_OK;
    case TD_CHATTMPL_IS_STRING:
        *out = truth(a.kind == V_STR);
        return TD_OK;
    case TD_CHATTMPL_IS_NONE:
        *out = truth(false);
        return TD_OK;
    default:
        return raise(w, &a);
    }
}

static enum td_status eval(struct walker *w, uint16_t index, struct value *out)
{
    const struct td_chattmpl_expr *e = &w->t->exprs[index];
    struct value test;
    enum td_status s;

    switch (e->kind) {
    case TD_CHATTMPL_STR:
        return make_str(w, e->text, true, out);
    case TD_CHATTMPL_INT:
        *out = (struct value){.kind = V_INT, .num = e->num};
        return TD_OK;
    case TD_CHATTMPL_BOOL:
        *out = truth(e->num != 0);
        return TD_OK;
    case TD_CHATTMPL_VAR:
        *out = w->vars[e->num];
        return TD_OK;
    case TD_CHATTMPL_FIRST:
        *out = truth(w->loop_at == 0);
        return TD_OK;
    case TD_CHATTMPL_LAST:
        *out = truth(w->loop_at + 1 == w->loop_n);
        return TD_OK;
    case TD_CHATTMPL_INDEX:
        *out = (struct value){.kind = V_INT, .num = (int64_t)w->loop_at + e->num};
        return TD_OK;
    case TD_CHATTMPL_CHOOSE:
        s = eval(w, e->a, &test);
        return s ? s : eval(w, is_true(&test) ? e->b : e->c, out);
    case TD_CHATTMPL_ADD:
    case TD_CHATTMPL_CONCAT:
    case TD_CHATTMPL_EQ:
    case TD_CHATTMPL_NE:
    case TD_CHATTMPL_AND:
    case TD_CHATTMPL_OR:
        return eval_binary(w, e, out);
    default:
        return eval_unary(w, e, out);
    }
}

static enum td_status write_parts(struct walker *w, const struct value *v)
{
    for (size_t i = 0; i < v->n_parts; i++) {
        enum td_status s;

        if (v->parts[i].text.len == 0)
            continue;
        if (v->parts[i].text.len > MAX_OUTPUT_BYTES - w->emitted_bytes)
            return too_large(w);
        w->emitted_bytes += v->parts[i].text.len;
        s = w->emit(w->user, v->parts[i].text, v->parts[i].trusted);
        if (s)
            return td_err_set(w->err, s, "no memory for the rendered conversation");
    }
    return TD_OK;
}

static enum td_status run(struct walker *w, uint16_t first);

static enum td_status run_for(struct walker *w, const struct td_chattmpl_stmt *stmt)
{
    struct value list, outer[TD_CHATTMPL_MAX_VARS];
    enum td_status s = eval(w, stmt->expr, &list);

    if (s)
        return s;
    if (list.kind != V_LIST)
        return bad(w, "it loops over what is no list of messages");
    memcpy(outer, w->vars, sizeof outer);
    w->loop_n = w->in->n - (size_t)list.num;
    for (w->loop_at = 0; w->loop_at < w->loop_n && !s; w->loop_at++) {
        /* What is set inside is forgotten with each turn. */
        memcpy(w->vars, outer, sizeof outer);
        w->vars[stmt->var] =
            (struct value){.kind = V_MESSAGE, .num = list.num + (int64_t)w->loop_at};
        s = run(w, stmt->body);
    }
    memcpy(w->vars, outer, sizeof outer);
    return s;
}

static enum td_status run(struct walker *w, uint16_t first)
{
    enum td_status s = TD_OK;

    for (uint16_t i = first; i && !s; i = w->t->stmts[i].next) {
        const struct td_chattmpl_stmt *stmt = &w->t->stmts[i];
        struct td_text_segment text = {stmt->text, true};
        struct value v;

        if (stmt->kind == TD_CHATTMPL_TEXT) {
            s = write_parts(w, &(struct value){.kind = V_STR, .parts = &text, .n_parts = 1});
            continue;
        }
        if (stmt->kind == TD_CHATTMPL_FOR) {
            s = run_for(w, stmt);
            continue;
        }
        s = eval(w, stmt->expr, &v);
        if (s)
            break;
        if (stmt->kind == TD_CHATTMPL_SET) {
            w->vars[stmt->var] = v;
        } else if (stmt->kind == TD_CHATTMPL_IF) {
            s = run(w, is_true(&v) ? stmt->body : stmt->other);
        } else {
            s = to_str(w, &v, &v);
            if (!s)
                s = write_parts(w, &v);
        }
    }
    return s;
}

enum td_status td_chatrender_render(const struct td_chattmpl *t,
                                    const struct td_chatrender_input *in,
                                    td_chatrender_emit_fn *emit, void *user, struct td_err *err)
{
    struct walker w = {.t = t, .in = in, .emit = emit, .user = user, .err = err};
    enum td_status s;

    if (in->n == 0)
        return td_err_set(err, TD_INVALID, "messages is empty, expected at least one");
    td_arena_init(&w.arena, 0, ARENA_BYTES);
    w.vars[TD_CHATTMPL_MESSAGES] = (struct value){.kind = V_LIST};
    w.vars[TD_CHATTMPL_ADD_PROMPT] = truth(in->add_generation_prompt);
    s = make_str(&w, in->bos, true, &w.vars[TD_CHATTMPL_BOS]);
    if (!s)
        s = make_str(&w, in->eos, true, &w.vars[TD_CHATTMPL_EOS]);
    if (!s)
        s = run(&w, t->first);
    td_arena_deinit(&w.arena);
    return s;
}
