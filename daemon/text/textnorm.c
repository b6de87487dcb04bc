#include "daemon/text/textnorm.h"

#include "daemon/text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

struct td_textnorm_stage *td_textnorm_add(struct td_textnorm *n, enum td_textnorm_kind kind)
{
    struct td_textnorm_stage *stage;

    if (n->n_stages == TD_TEXTNORM_MAX_STAGES)
        return NULL;
    stage = &n->stages[n->n_stages++];
    *stage = (struct td_textnorm_stage){.kind = kind};
    return stage;
}

void td_textnorm_deinit(struct td_textnorm *n)
{
    for (size_t i = n->n_stages; i-- > 0;) {
        td_regex_close(n->stages[i].pattern);
        td_bytes_deinit(&n->stages[i].from);
        td_bytes_deinit(&n->stages[i].text);
    }
    n->n_stages = 0;
}

/* Orders each run of combining marks by class, stably (Unicode 15, section 3.11), in time linear in the run: utf8proc's own
 * ordering is quadratic. */
static void order_marks(int32_t *cp, int32_t *scratch, size_t n)
{
    size_t at = 0;

    while (at < n) {
        size_t count[257] = {0}, end = at;
        bool sorted = true;

        while (end < n && utf8proc_get_property(cp[end])->combining_class != 0) {
            if (end > at && utf8proc_get_property(cp[end])->combining_class <
                                utf8proc_get_property(cp[end - 1])->combining_class)
                sorted = false;
            end++;
        }
        if (!sorted) {
            for (size_t i = at; i < end; i++)
                count[(utf8proc_get_property(cp[i])->combining_class & 255) + 1]++;
            for (size_t c = 1; c < 257; c++)
                count[c] += count[c - 1];
            for (size_t i = at; i < end; i++)
                scratch[count[utf8proc_get_property(cp[i])->combining_class & 255]++] = cp[i];
            memcpy(cp + at, scratch, (end - at) * sizeof *cp);
        }
        at = end > at ? end : at + 1;
    }
}

static enum td_status unicode_form(enum td_textnorm_kind kind, struct td_str text,
                                   struct td_bytes *out)
{
    bool compose = kind == TD_TEXTNORM_NFC || kind == TD_TEXTNORM_NFKC;
    bool compat = kind == TD_TEXTNORM_NFKC || kind == TD_TEXTNORM_NFKD;
    utf8proc_option_t options = UTF8PROC_STABLE |
                                (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                (compat ? UTF8PROC_COMPAT : 0);
    size_t n = 0, cap = text.len + 64;
    int32_t *cp = malloc(cap * sizeof *cp), *scratch = NULL;
    enum td_status s = TD_NO_MEMORY;
    utf8proc_ssize_t len;

    for (size_t at = 0; cp && at < text.len;) {
        struct td_str rest = {text.ptr + at, text.len - at};
        uint32_t c = 0;
        size_t n_bytes;
        int bound = 0;

        /* No character decomposes into more than 18 (U+FDFA). */
        if (cap - n < 32) {
            int32_t *more = realloc(cp, cap * 2 * sizeof *cp);

            if (!more)
                goto done;
            cp = more;
            cap *= 2;
        }
        td_utf8_decode(rest, &c, &n_bytes);
        len = utf8proc_decompose_char((int32_t)c, cp + n, (utf8proc_ssize_t)(cap - n), options,
                                      &bound);
        if (len < 0 || (size_t)len > cap - n)
            goto done;
        n += (size_t)len;
        at += n_bytes;
    }
    scratch = malloc((n + 1) * sizeof *scratch);
    if (!cp || !scratch)
        goto done;
    order_marks(cp, scratch, n);
    if (compose)
        n = (size_t)utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n, options);
    td_bytes_clear(out);
    if (td_bytes_reserve(out, n * 4))
        goto done;
    for (size_t i = 0; i < n; i++)
        out->len += td_utf8_encode((uint32_t)cp[i], out->data + out->len);
    s = TD_OK;
done:
    free(scratch);
    free(cp);
    return s;
}

static bool is_ascii(struct td_str s)
{
    for (size_t i = 0; i < s.len; i++)
        if ((unsigned char)s.ptr[i] >= 0x80)
            return false;
    return true;
}

static enum td_status replace_literal(const struct td_textnorm_stage *stage, struct td_str text,
                                      struct td_bytes *out)
{
    const char *at = text.ptr, *end = text.ptr + text.len;
    enum td_status s = TD_OK;

    while (!s) {
        const char *hit = memmem(at, (size_t)(end - at), stage->from.data, stage->from.len);

        s = td_bytes_append(out, at, (size_t)((hit ? hit : end) - at));
        if (!hit)
            break;
        if (!s)
            s = td_bytes_append(out, stage->text.data, stage->text.len);
        at = hit + stage->from.len;
    }
    return s;
}

static enum td_status replace_pattern(const struct td_textnorm_stage *stage, struct td_str text,
                                      struct td_regex_work *work, struct td_bytes *out,
                                      struct td_err *err)
{
    size_t at = 0, from = 0;

    while (from <= text.len) {
        size_t start, end;
        bool found;
        enum td_status s =
            td_regex_next(stage->pattern, work, text, from, &found, &start, &end, err);

        if (s)
            return s;
        if (!found)
            break;
        if (td_bytes_append(out, text.ptr + at, start - at) ||
            td_bytes_append(out, stage->text.data, stage->text.len))
            return td_err_set(err, TD_NO_MEMORY, "no memory to normalise %zu bytes", text.len);
        at = end;
        from = end;
        if (start == end) { /* an empty match: go on behind the next character */
            do
                from++;
            while (from < text.len && ((unsigned char)text.ptr[from] & 0xC0) == 0x80);
        }
    }
    if (td_bytes_append(out, text.ptr + at, text.len - at))
        return td_err_set(err, TD_NO_MEMORY, "no memory to normalise %zu bytes", text.len);
    return TD_OK;
}

static struct td_str strip(const struct td_textnorm_stage *stage, struct td_str text)
{
    if (stage->left) {
        size_t n = td_utf8_space_prefix(text);

        text = (struct td_str){text.ptr + n, text.len - n};
    }
    if (stage->right)
        text.len -= td_utf8_space_suffix(text);
    return text;
}

enum td_status td_textnorm_run(const struct td_textnorm *n, struct td_str text,
                               struct td_bytes buffers[2], struct td_regex_work *work,
                               struct td_str *out, struct td_err *err)
{
    size_t turn = 0;

    for (size_t i = 0; i < n->n_stages; i++) {
        const struct td_textnorm_stage *stage = &n->stages[i];
        struct td_bytes *to = &buffers[turn];
        enum td_status s = TD_OK;

        if (stage->kind == TD_TEXTNORM_STRIP) {
            text = strip(stage, text);
            continue;
        }
        if (text.len == 0 || (stage->kind <= TD_TEXTNORM_NFKD && is_ascii(text)))
            continue;
        td_bytes_clear(to);
        if (stage->kind == TD_TEXTNORM_PREPEND) {
            s = td_bytes_append(to, stage->text.data, stage->text.len);
            if (!s)
                s = td_bytes_append_str(to, text);
        } else if (stage->kind == TD_TEXTNORM_REPLACE && stage->pattern) {
            s = replace_pattern(stage, text, work, to, err);
            if (s)
                return s;
        } else if (stage->kind == TD_TEXTNORM_REPLACE) {
            s = replace_literal(stage, text, to);
        } else {
            s = unicode_form(stage->kind, text, to);
        }
        if (s)
            return td_err_set(err, s, "normalising %zu bytes: %s", text.len,
                              s == TD_TOO_LARGE ? "the result is over the limit" : "no memory");
        text = td_bytes_str(to);
        turn ^= 1;
    }
    *out = text;
    return TD_OK;
}
