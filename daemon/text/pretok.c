#include "daemon/text/pretok.h"

#include <stdlib.h>
#include <string.h>

struct td_pretok_stage *td_pretok_add(struct td_pretok *p, enum td_pretok_kind kind)
{
    struct td_pretok_stage *stage;

    if (p->n_stages == TD_PRETOK_MAX_STAGES)
        return NULL;
    stage = &p->stages[p->n_stages++];
    *stage = (struct td_pretok_stage){.kind = kind};
    return stage;
}

enum td_status td_pretok_add_split(struct td_pretok *p, struct td_str pattern,
                                   enum td_pretok_behavior behavior, bool invert,
                                   struct td_err *err)
{
    struct td_pretok_stage *stage = td_pretok_add(p, TD_PRETOK_SPLIT);

    if (!stage)
        return td_err_set(err, TD_UNSUPPORTED, "the pre-tokenizer has more than %d stages",
                          TD_PRETOK_MAX_STAGES);
    stage->behavior = behavior;
    stage->invert = invert;
    return td_regex_open(pattern, false, &stage->pattern, err);
}

void td_pretok_deinit(struct td_pretok *p)
{
    for (size_t i = p->n_stages; i-- > 0;) {
        td_bytes_deinit(&p->stages[i].mark);
        td_regex_close(p->stages[i].pattern);
    }
    p->n_stages = 0;
}

void td_pretok_work_deinit(struct td_pretok_work *work)
{
    for (int i = 0; i < 2; i++) {
        free(work->spans[i].data);
        td_bytes_deinit(&work->text[i]);
    }
    *work = (struct td_pretok_work){0};
}

static enum td_status add_span(struct td_pretok_spans *spans, size_t at, size_t len)
{
    if (spans->len == spans->cap) {
        size_t cap = spans->cap ? spans->cap * 2 : 64;
        struct td_pretok_span *data = realloc(spans->data, cap * sizeof *data);

        if (!data)
            return TD_NO_MEMORY;
        spans->data = data;
        spans->cap = cap;
    }
    spans->data[spans->len++] = (struct td_pretok_span){at, len};
    return TD_OK;
}

/* One piece as it is cut up: matches and gaps arrive in order and leave as spans. */
struct cutter {
    struct td_pretok_spans *to;
    enum td_pretok_behavior behavior;
    bool invert;
    bool open;     /* [at, end) waits for what follows */
    bool is_match; /* kind of the open span */
    size_t at, end;
};

static enum td_status cutter_flush(struct cutter *c)
{
    if (!c->open)
        return TD_OK;
    c->open = false;
    return add_span(c->to, c->at, c->end - c->at);
}

static enum td_status cutter_add(struct cutter *c, size_t at, size_t end, bool is_match)
{
    bool join = false;

    if (at == end)
        return TD_OK;
    is_match ^= c->invert;
    switch (c->behavior) {
    case TD_PRETOK_ISOLATED:
        break;
    case TD_PRETOK_REMOVED:
        if (is_match)
            return cutter_flush(c);
        break;
    case TD_PRETOK_WITH_PREVIOUS:
        join = c->open && is_match && !c->is_match;
        break;
    case TD_PRETOK_WITH_NEXT:
        join = c->open && !is_match && c->is_match;
        break;
    case TD_PRETOK_CONTIGUOUS:
        join = c->open && is_match == c->is_match;
        break;
    }
    if (!join) {
        if (cutter_flush(c))
            return TD_NO_MEMORY;
        c->at = at;
    }
    c->open = true;
    c->end = end;
    c->is_match = is_match;
    return TD_OK;
}

static enum td_status split(const struct td_pretok_stage *stage, struct td_str text,
                            struct td_pretok_span span, struct td_regex_work *re,
                            struct td_pretok_spans *to, struct td_err *err)
{
    struct td_str piece = {text.ptr + span.at, span.len};
    struct cutter c = {.to = to, .behavior = stage->behavior, .invert = stage->invert};
    size_t at = 0, from = 0;

    while (from < piece.len) {
        size_t start, end;
        bool found;
        enum td_status s =
            td_regex_next(stage->pattern, re, piece, from, &found, &start, &end, err);

        if (s)
            return s;
        if (!found)
            break;
        if (start == end) { /* an empty match cuts nothing: go on behind the next character */
            from = end;
            do
                from++;
            while (from < piece.len && ((unsigned char)piece.ptr[from] & 0xC0) == 0x80);
            continue;
        }
        if (cutter_add(&c, span.at + at, span.at + start, false) ||
            cutter_add(&c, span.at + start, span.at + end, true))
            goto no_memory;
        at = from = end;
    }
    if (cutter_add(&c, span.at + at, span.at + piece.len, false) || cutter_flush(&c))
        goto no_memory;
    return TD_OK;
no_memory:
    return td_err_set(err, TD_NO_MEMORY, "no memory to cut %zu bytes", text.len);
}

/* Rewrites one piece for SPACE_FRONT or METASPACE. */
static enum td_status rewrite(const struct td_pretok_stage *stage, struct td_str piece, bool first,
                              struct td_bytes *to)
{
    struct td_str mark = td_bytes_str(&stage->mark);
    enum td_status s = TD_OK;

    if (stage->kind == TD_PRETOK_SPACE_FRONT) {
        if (piece.len && piece.ptr[0] != ' ')
            s = td_bytes_append(to, " ", 1);
        return s ? s : td_bytes_append_str(to, piece);
    }
    if ((stage->front == TD_PRETOK_ALWAYS || (stage->front == TD_PRETOK_FIRST && first)) &&
        !(piece.len && piece.ptr[0] == ' ') && !td_str_starts(piece, mark))
        s = td_bytes_append_str(to, mark);
    for (size_t i = 0; i < piece.len && !s;) {
        const char *space = memchr(piece.ptr + i, ' ', piece.len - i);
        size_t end = space ? (size_t)(space - piece.ptr) : piece.len;

        s = td_bytes_append(to, piece.ptr + i, end - i);
        if (!s && space)
            s = td_bytes_append_str(to, mark);
        i = end + (space != NULL);
    }
    return s;
}

enum td_status td_pretok_run(const struct td_pretok *p, struct td_str text, bool at_start,
                             struct td_pretok_work *work, struct td_regex_work *re,
                             struct td_str *out_text, const struct td_pretok_spans **out_spans,
                             struct td_err *err)
{
    struct td_pretok_spans *now = &work->spans[0], *next = &work->spans[1], *swap;
    size_t text_turn = 0;
    enum td_status s;

    now->len = 0;
    if (add_span(now, 0, text.len))
        return td_err_set(err, TD_NO_MEMORY, "no memory to cut %zu bytes", text.len);
    for (size_t i = 0; i < p->n_stages; i++) {
        const struct td_pretok_stage *stage = &p->stages[i];
        struct td_bytes *to = &work->text[text_turn];

        next->len = 0;
        if (stage->kind != TD_PRETOK_SPLIT)
            td_bytes_clear(to);
        for (size_t k = 0; k < now->len; k++) {
            struct td_pretok_span span = now->data[k];

            if (stage->kind != TD_PRETOK_SPLIT) {
                struct td_str piece = {text.ptr + span.at, span.len};

                span.at = to->len;
                s = rewrite(stage, piece, at_start && k == 0, to);
                if (s)
                    return td_err_set(err, s, "no memory to cut %zu bytes", text.len);
                span.len = to->len - span.at;
            }
            if (stage->pattern)
                s = split(stage, stage->kind == TD_PRETOK_SPLIT ? text : td_bytes_str(to), span, re,
                          next, err);
            else if ((s = add_span(next, span.at, span.len)))
                td_err_set(err, s, "no memory to cut %zu bytes", text.len);
            if (s)
                return s;
        }
        if (stage->kind != TD_PRETOK_SPLIT) {
            text = td_bytes_str(to);
            text_turn ^= 1;
        }
        swap = now;
        now = next;
        next = swap;
    }
    *out_text = text;
    *out_spans = now;
    return TD_OK;
}
