#include "daemon/text/chatlex.h"

#include "daemon/text/utf8.h"

#include <string.h>

enum td_status td_chatlex_unsupported(struct td_chatlex *p, const char *what, struct td_str text)
{
    return td_err_set(p->err, TD_UNSUPPORTED, "it uses %s'%.*s'", what,
                      text.len > 60 ? 60 : (int)text.len, text.ptr);
}

enum td_status td_chatlex_broken(struct td_chatlex *p, const char *what)
{
    size_t line = 1;

    for (size_t i = 0; i < p->at && i < p->src.len; i++)
        line += p->src.ptr[i] == '\n';
    return td_err_set(p->err, TD_INVALID, "line %zu: %s", line, what);
}

enum td_status td_chatlex_no_memory(struct td_chatlex *p)
{
    return td_err_set(p->err, TD_NO_MEMORY, "no memory for a template");
}

static bool is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

char td_chatlex_peek(const struct td_chatlex *p, size_t ahead)
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

static enum td_status read_string(struct td_chatlex *p)
{
    char quote = p->src.ptr[p->at];
    size_t start = p->at + 1, end = start, len = 0;
    char *out;

    while (end < p->src.len && p->src.ptr[end] != quote)
        end += p->src.ptr[end] == '\\' ? 2 : 1;
    if (end >= p->src.len)
        return td_chatlex_broken(p, "a string without end");
    /* No escape is shorter than what it writes. */
    out = td_arena_alloc(&p->t->arena, end - start + 1);
    if (!out)
        return td_chatlex_no_memory(p);
    for (size_t i = start; i < end;) {
        if (p->src.ptr[i] != '\\') {
            out[len++] = p->src.ptr[i++];
            continue;
        }
        i++;
        if (!unescape((struct td_str){p->src.ptr, end}, &i, out, &len))
            return td_chatlex_unsupported(p, "the escape ", (struct td_str){p->src.ptr + i - 1, 2});
    }
    p->kind = TD_CHATLEX_STRING;
    p->text = (struct td_str){out, len};
    p->at = end + 1;
    return TD_OK;
}

/* Moves to the next token. The closing delimiter is TD_CHATLEX_END and stays unread. */
enum td_status td_chatlex_next(struct td_chatlex *p)
{
    size_t start;
    char c;

    while (p->at < p->src.len && strchr(" \t\n\v\f", p->src.ptr[p->at]) && p->src.ptr[p->at])
        p->at++;
    start = p->at;
    c = td_chatlex_peek(p, 0);
    p->kind = TD_CHATLEX_OP;
    if (p->at >= p->src.len)
        return td_chatlex_broken(p, "a tag without end");
    if ((c == p->close[0] && td_chatlex_peek(p, 1) == p->close[1]) ||
        ((c == '-' || c == '+') && td_chatlex_peek(p, 1) == p->close[0] &&
         td_chatlex_peek(p, 2) == p->close[1])) {
        p->kind = TD_CHATLEX_END;
        p->text = (struct td_str){p->close, 2};
        return TD_OK;
    }
    if (c == '\'' || c == '"')
        return read_string(p);
    if (is_name_start(c)) {
        while (is_name_start(td_chatlex_peek(p, 0)) || is_digit(td_chatlex_peek(p, 0)))
            p->at++;
        p->kind = TD_CHATLEX_NAME;
    } else if (is_digit(c)) {
        for (p->num = 0; is_digit(td_chatlex_peek(p, 0)); p->at++) {
            if (p->num > 100000000)
                return td_chatlex_broken(p, "a number over 10^9");
            p->num = p->num * 10 + (td_chatlex_peek(p, 0) - '0');
        }
        p->kind = TD_CHATLEX_INT;
    } else {
        bool two = td_chatlex_peek(p, 1) == '=' && strchr("=!<>", c);

        p->at += two ? 2 : 1;
    }
    p->text = (struct td_str){p->src.ptr + start, p->at - start};
    return TD_OK;
}

bool td_chatlex_is(const struct td_chatlex *p, enum td_chatlex_token kind, const char *text)
{
    return p->kind == kind && td_str_eq(p->text, td_str_from(text));
}

/* Takes the token if it is the one; *found says so. */
enum td_status td_chatlex_accept(struct td_chatlex *p, enum td_chatlex_token kind, const char *text,
                                 bool *found)
{
    *found = td_chatlex_is(p, kind, text);
    return *found ? td_chatlex_next(p) : TD_OK;
}

enum td_status td_chatlex_expect(struct td_chatlex *p, enum td_chatlex_token kind, const char *text)
{
    if (td_chatlex_is(p, kind, text))
        return td_chatlex_next(p);
    return td_chatlex_unsupported(p, "", p->text);
}
