#define PCRE2_CODE_UNIT_WIDTH 8
#include "daemon/text/regex.h"

#include <pcre2.h>
#include <stdlib.h>

enum {
    MAX_PATTERN_BYTES = 16384,
    MATCH_LIMIT = 10000000,
    HEAP_LIMIT_KIB = 65536,
    JIT_STACK_BYTES = 8 << 20
};

struct td_regex {
    pcre2_code *code; /* owned */
    bool jit;
};

/* Appends what the escape `c` means in Oniguruma's syntax. */
static enum td_status rewrite_escape(char c, bool in_class, struct td_bytes *out)
{
    switch (c) {
    case 's':
        return td_bytes_append_str(out, TD_STR("\\p{White_Space}"));
    case 'S':
        return td_bytes_append_str(out, TD_STR("\\P{White_Space}"));
    case 'w':
        return td_bytes_append_str(out, in_class ? TD_STR("\\p{L}\\p{M}\\p{Nd}\\p{Pc}")
                                                 : TD_STR("[\\p{L}\\p{M}\\p{Nd}\\p{Pc}]"));
    case 'W':
        return in_class ? TD_UNSUPPORTED
                        : td_bytes_append_str(out, TD_STR("[^\\p{L}\\p{M}\\p{Nd}\\p{Pc}]"));
    case 'h': /* a hexadecimal digit there, a blank here */
    case 'H':
    case 'K':
    case 'R':
    case 'X':
    case 'C':
    case 'Q':
    case 'E':
        return TD_UNSUPPORTED;
    default:
        return td_bytes_appendf(out, "\\%c", c);
    }
}

static enum td_status rewrite(struct td_str pattern, struct td_bytes *out)
{
    bool in_class = false;
    enum td_status s = TD_OK;

    for (size_t i = 0; i < pattern.len && !s; i++) {
        char c = pattern.ptr[i];
        char next = i + 1 < pattern.len ? pattern.ptr[i + 1] : '\0';

        if (c == '\\' && i + 1 < pattern.len) {
            s = rewrite_escape(next, in_class, out);
            i++;
            continue;
        }
        if (c == '$' && !in_class) {
            s = td_bytes_append_str(out, TD_STR("\\z"));
            continue;
        }
        /* Oniguruma has nested sets and intersections; "[[:name:]]" is common to both. */
        if (in_class && ((c == '[' && next != ':') || (c == '&' && next == '&')))
            return TD_UNSUPPORTED;
        if (in_class && c == '[') {
            while (i < pattern.len && pattern.ptr[i] != ']' && !s)
                s = td_bytes_append(out, &pattern.ptr[i++], 1);
            if (i == pattern.len)
                break;
            c = ']';
        } else if (c == '[') {
            in_class = true;
        } else if (c == ']') {
            in_class = false;
        }
        if (!s)
            s = td_bytes_append(out, &c, 1);
    }
    return s;
}

enum td_status td_regex_open(struct td_str pattern, bool literal, struct td_regex **re,
                             struct td_err *err)
{
    struct td_bytes text = {0};
    struct td_regex *r = NULL;
    PCRE2_SIZE at = 0;
    int code = 0, shown = pattern.len > 120 ? 120 : (int)pattern.len;
    enum td_status s;

    if (pattern.len == 0 || pattern.len > MAX_PATTERN_BYTES)
        return td_err_set(err, TD_UNSUPPORTED, "a pattern of %zu bytes, expected 1 to %d",
                          pattern.len, MAX_PATTERN_BYTES);
    s = literal ? td_bytes_append_str(&text, pattern) : rewrite(pattern, &text);
    if (s == TD_NO_MEMORY)
        td_err_set(err, s, "no memory for a pattern");
    else if (s)
        td_err_set(err, s, "pattern '%.*s' uses a construct that is not built here", shown,
                   pattern.ptr);
    if (s)
        goto fail;
    r = calloc(1, sizeof *r);
    if (!r) {
        s = td_err_set(err, TD_NO_MEMORY, "no memory for a pattern");
        goto fail;
    }
    r->code = pcre2_compile((PCRE2_SPTR)text.data, text.len,
                            literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP, &code, &at,
                            NULL);
    if (!r->code && code == PCRE2_ERROR_HEAP_FAILED) {
        s = td_err_set(err, TD_NO_MEMORY, "no memory for a pattern");
        goto fail;
    }
    if (!r->code) {
        PCRE2_UCHAR why[128] = {0};

        pcre2_get_error_message(code, why, sizeof why);
        s = td_err_set(err, TD_INVALID, "pattern '%.*s' does not compile: %s", shown, pattern.ptr,
                       (char *)why);
        goto fail;
    }
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    td_bytes_deinit(&text);
    *re = r;
    return TD_OK;
fail:
    free(r);
    td_bytes_deinit(&text);
    return s;
}

void td_regex_close(struct td_regex *re)
{
    if (!re)
        return;
    pcre2_code_free(re->code);
    free(re);
}

static enum td_status prepare(struct td_regex_work *work)
{
    if (work->match_data)
        return TD_OK;
    /* One pair of offsets: no pattern's groups are asked for. */
    work->match_data = pcre2_match_data_create(1, NULL);
    work->match_context = pcre2_match_context_create(NULL);
    work->jit_stack = pcre2_jit_stack_create(32 * 1024, JIT_STACK_BYTES, NULL);
    if (!work->match_data || !work->match_context) {
        td_regex_work_deinit(work);
        return TD_NO_MEMORY;
    }
    pcre2_set_match_limit(work->match_context, MATCH_LIMIT);
    pcre2_set_heap_limit(work->match_context, HEAP_LIMIT_KIB);
    if (work->jit_stack)
        pcre2_jit_stack_assign(work->match_context, NULL, work->jit_stack);
    return TD_OK;
}

enum td_status td_regex_next(const struct td_regex *re, struct td_regex_work *work,
                             struct td_str text, size_t from, bool *found, size_t *start,
                             size_t *end, struct td_err *err)
{
    const PCRE2_SIZE *span;
    int rc;

    if (prepare(work))
        return td_err_set(err, TD_NO_MEMORY, "no memory to match a pattern");
    if (re->jit)
        rc = pcre2_jit_match(re->code, (PCRE2_SPTR)text.ptr, text.len, from, 0, work->match_data,
                             work->match_context);
    else
        rc = pcre2_match(re->code, (PCRE2_SPTR)text.ptr, text.len, from, PCRE2_NO_UTF_CHECK,
                         work->match_data, work->match_context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(re->code, (PCRE2_SPTR)text.ptr, text.len, from,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, work->match_data, work->match_context);
    if (rc == PCRE2_ERROR_NOMATCH) {
        *found = false;
        return TD_OK;
    }
    if (rc == PCRE2_ERROR_NOMEMORY)
        return td_err_set(err, TD_NO_MEMORY, "no memory to match a pattern");
    if (rc < 0)
        return td_err_set(err, TD_TOO_LARGE,
                          "the tokenizer's pattern takes too many steps at byte %zu of %zu "
                          "(PCRE2 error %d)",
                          from, text.len, rc);
    span = pcre2_get_ovector_pointer(work->match_data);
    /* A lookbehind with \K could put the start behind the end; \K is refused, but a match must never run backwards. */
    if (span[0] < from || span[1] < span[0])
        return td_err_set(err, TD_UNSUPPORTED, "the tokenizer's pattern matches backwards");
    *found = true;
    *start = span[0];
    *end = span[1];
    return TD_OK;
}

void td_regex_work_deinit(struct td_regex_work *work)
{
    pcre2_jit_stack_free(work->jit_stack);
    pcre2_match_context_free(work->match_context);
    pcre2_match_data_free(work->match_data);
    *work = (struct td_regex_work){0};
}
