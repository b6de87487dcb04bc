#include "daemon/journal/eventlog.h"

#include <stdlib.h>
#include <string.h>

enum kind { PROMPT, TOKEN, END, DROP };

/* Stands in front of its detail and its error's text; a multiple of eight bytes. */
struct head {
    uint64_t number;
    enum kind kind;
    uint32_t part;
    uint32_t index; /* END: tokens in all */
    uint32_t id;
    uint32_t n_detail, n_text; /* bytes */
    int32_t finish, status;
};

/* Where an event lies, and what puts it in order. */
struct place {
    uint64_t number;
    uint32_t part;
    size_t at;
};

static size_t padded(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

static enum td_status add(struct td_eventlog *log, const struct head *head, struct td_str detail,
                          struct td_str text)
{
    static const char ZEROS[8];
    size_t n = (size_t)head->n_detail + head->n_text;
    enum td_status st;

    if (detail.len > UINT32_MAX || text.len > UINT32_MAX)
        return TD_TOO_LARGE;
    st = td_bytes_reserve(&log->bytes, sizeof *head + padded(n));
    if (st)
        return st;
    td_bytes_append(&log->bytes, head, sizeof *head);
    td_bytes_append_str(&log->bytes, detail);
    td_bytes_append_str(&log->bytes, text);
    td_bytes_append(&log->bytes, ZEROS, padded(n) - n);
    log->n++;
    return TD_OK;
}

enum td_status td_eventlog_token(struct td_eventlog *log, uint64_t number, uint32_t part,
                                 const struct td_eventlog_token *token)
{
    const struct head head = {.number = number,
                              .kind = token->is_prompt ? PROMPT : TOKEN,
                              .part = part,
                              .index = token->index,
                              .id = token->id,
                              .n_detail = (uint32_t)token->detail.len};

    return add(log, &head, token->detail, TD_STR(""));
}

enum td_status td_eventlog_end(struct td_eventlog *log, uint64_t number, uint32_t part,
                               const struct td_batch_end *end)
{
    const struct head head = {.number = number,
                              .kind = END,
                              .part = part,
                              .index = end->n_tokens,
                              .n_detail = (uint32_t)end->details.len,
                              .n_text = (uint32_t)end->error_text.len,
                              .finish = (int32_t)end->finish,
                              .status = (int32_t)end->error_status};

    return add(log, &head, end->details, end->error_text);
}

enum td_status td_eventlog_drop(struct td_eventlog *log, uint64_t number)
{
    const struct head head = {.number = number, .kind = DROP, .part = UINT32_MAX};

    return add(log, &head, TD_STR(""), TD_STR(""));
}

static const struct head *head_at(const struct td_eventlog *log, size_t at)
{
    return (const struct head *)(const void *)(log->bytes.data + at);
}

static size_t size_of(const struct head *h)
{
    return sizeof *h + padded((size_t)h->n_detail + h->n_text);
}

static struct td_str detail_of(const struct head *h)
{
    return (struct td_str){(const char *)(h + 1), h->n_detail};
}

static int by_part(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

static bool follows(const struct head *a, const struct head *b)
{
    return a->number == b->number && a->part == b->part && a->kind == b->kind &&
           (a->kind == PROMPT || a->kind == TOKEN) && b->index == a->index + 1;
}

static struct td_batch_end end_of(const struct head *h)
{
    return (struct td_batch_end){.finish = (enum td_finish)h->finish,
                                 .n_tokens = h->index,
                                 .error_status = (enum td_status)h->status,
                                 .error_text = {detail_of(h).ptr + h->n_detail, h->n_text},
                                 .details = detail_of(h)};
}

/* Everything that goes with places[i]; returns how many. `ids` and `detail` have room for all events. */
static size_t gather(const struct td_eventlog *log, const struct place *places, size_t n,
                     uint32_t *ids, struct td_str *detail, struct td_batch *batch)
{
    const struct head *h = head_at(log, places[0].at);
    bool any_detail = false;
    size_t k = 0;

    *batch = (struct td_batch){.part = h->part, .ids = ids};
    if (h->kind == PROMPT || h->kind == TOKEN) {
        const struct head *last = NULL;

        batch->is_prompt = h->kind == PROMPT;
        batch->first = h->index;
        for (; k < n && k < TD_BATCH_MAX_TOKENS; k++) {
            h = head_at(log, places[k].at);
            if (last && !follows(last, h))
                break;
            ids[k] = h->id;
            detail[k] = detail_of(h);
            any_detail |= h->n_detail > 0;
            last = h;
        }
        batch->n = (uint32_t)k;
        batch->detail = any_detail ? detail : NULL;
        if (k == n || batch->is_prompt || places[k].number != last->number ||
            places[k].part != last->part)
            return k;
        h = head_at(log, places[k].at);
    }
    if (h->kind == END) {
        batch->has_end = true;
        batch->end = end_of(h);
        k++;
    }
    return k;
}

enum td_status td_eventlog_each(const struct td_eventlog *log, td_eventlog_visit_fn *visit,
                                void *user, struct td_err *err)
{
    size_t n = log->n, at = 0;
    struct place *places = malloc((n + 1) * sizeof *places);
    uint32_t *ids = malloc((n + 1) * sizeof *ids);
    struct td_str *detail = malloc((n + 1) * sizeof *detail);
    enum td_status st = TD_OK;

    if (!places || !ids || !detail)
        st = td_err_set(err, TD_NO_MEMORY, "no memory for %zu events", n);
    for (size_t i = 0; !st && i < n; at += size_of(head_at(log, at)), i++)
        places[i] = (struct place){head_at(log, at)->number, head_at(log, at)->part, at};
    if (!st)
        qsort(places, n, sizeof *places, by_part);
    for (size_t i = 0; !st && i < n;) {
        if (head_at(log, places[i].at)->kind == DROP) {
            st = visit(places[i++].number, NULL, user, err);
        } else {
            struct td_batch batch;
            uint64_t number = places[i].number;

            i += gather(log, places + i, n - i, ids, detail, &batch);
            st = visit(number, &batch, user, err);
        }
    }
    free(detail);
    free(ids);
    free(places);
    return st;
}

void td_eventlog_keep_ends(const struct td_eventlog *from, struct td_eventlog *to, size_t max_bytes)
{
    size_t at = 0;

    for (uint32_t i = 0; i < from->n; i++) {
        const struct head *h = head_at(from, at);

        if ((h->kind == END || h->kind == DROP) && to->bytes.len + size_of(h) <= max_bytes &&
            !td_bytes_append(&to->bytes, h, size_of(h)))
            to->n++;
        at += size_of(h);
    }
}

void td_eventlog_clear(struct td_eventlog *log)
{
    td_bytes_clear(&log->bytes);
    log->n = 0;
}

void td_eventlog_deinit(struct td_eventlog *log)
{
    td_bytes_deinit(&log->bytes);
    log->n = 0;
}
