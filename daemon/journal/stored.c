#include "daemon/journal/stored.h"

#include <stdlib.h>
#include <string.h>

struct td_str td_stored_detail(const struct td_stored_tokens *t, uint32_t i)
{
    size_t begin = i ? t->detail_end[i - 1] : 0;

    return (struct td_str){t->text.data ? t->text.data + begin : "", t->detail_end[i] - begin};
}

static void tokens_deinit(struct td_stored_tokens *t)
{
    free(t->ids);
    free(t->detail_end);
    td_bytes_deinit(&t->text);
}

static enum td_status reserve(struct td_stored_tokens *t, uint32_t extra)
{
    uint64_t cap = 2 * (uint64_t)t->cap > (uint64_t)t->n + extra ? 2 * (uint64_t)t->cap
                                                                 : (uint64_t)t->n + extra;
    uint32_t *ids;
    size_t *ends;

    if ((uint64_t)t->n + extra <= t->cap)
        return TD_OK;
    if (cap > UINT32_MAX)
        return TD_NO_MEMORY;
    ids = realloc(t->ids, cap * sizeof *ids);
    if (!ids)
        return TD_NO_MEMORY;
    t->ids = ids;
    ends = realloc(t->detail_end, cap * sizeof *ends);
    if (!ends)
        return TD_NO_MEMORY;
    t->detail_end = ends;
    t->cap = (uint32_t)cap;
    return TD_OK;
}

/* Those of `batch` that follow what is there; `base` is the index of the very first. */
static enum td_status append(struct td_stored_tokens *t, uint32_t base,
                             const struct td_batch *batch)
{
    uint64_t next = (uint64_t)base + t->n, end = (uint64_t)batch->first + batch->n;

    if (batch->first > next || end <= next || batch->first < base)
        return TD_OK;
    if (reserve(t, (uint32_t)(end - next)))
        return TD_NO_MEMORY;
    for (uint32_t i = (uint32_t)(next - batch->first); i < batch->n; i++) {
        if (batch->detail && td_bytes_append_str(&t->text, batch->detail[i]))
            return TD_NO_MEMORY;
        t->ids[t->n] = batch->ids[i];
        t->detail_end[t->n++] = t->text.len;
    }
    return TD_OK;
}

enum td_status td_stored_init(struct td_stored *s, uint64_t number, struct td_str record,
                              struct td_err *err)
{
    struct td_stored n = {.number = number};
    enum td_status st = td_record_decode(record, &n.record, err);

    if (st)
        return st;
    n.parts = calloc(td_record_n_parts(&n.record), sizeof *n.parts);
    if (!n.parts) {
        td_record_deinit(&n.record);
        return td_err_set(err, TD_NO_MEMORY, "no memory for what became of a request");
    }
    *s = n;
    return TD_OK;
}

static enum td_status set_end(struct td_stored_part *part, const struct td_batch_end *end)
{
    struct td_bytes *text = &part->end_text;

    if (part->has_end || end->n_tokens != part->output.n)
        return TD_OK;
    td_bytes_clear(text);
    if (td_bytes_reserve(text, 1) || td_bytes_append_str(text, end->error_text) ||
        td_bytes_append_str(text, end->details))
        return TD_NO_MEMORY;
    part->has_end = true;
    part->end = *end;
    part->end.error_text = (struct td_str){text->data, end->error_text.len};
    part->end.details = (struct td_str){text->data + end->error_text.len, end->details.len};
    return TD_OK;
}

enum td_status td_stored_add(struct td_stored *s, const struct td_batch *batch, struct td_err *err)
{
    struct td_stored_part *part;
    enum td_status st;

    if (batch->part >= td_record_n_parts(&s->record))
        return td_err_set(err, TD_CORRUPT, "a batch is of part %u of a request that has %u",
                          batch->part, td_record_n_parts(&s->record));
    part = &s->parts[batch->part];
    if (part->has_end)
        return TD_OK;
    st = append(batch->is_prompt ? &part->prompt : &part->output, batch->is_prompt, batch);
    if (!st && batch->has_end)
        st = set_end(part, &batch->end);
    return st ? td_err_set(err, st, "no memory for %u tokens", batch->n) : TD_OK;
}

void td_stored_deinit(struct td_stored *s)
{
    for (uint32_t i = 0; s->parts && i < td_record_n_parts(&s->record); i++) {
        tokens_deinit(&s->parts[i].prompt);
        tokens_deinit(&s->parts[i].output);
        td_bytes_deinit(&s->parts[i].end_text);
    }
    free(s->parts);
    td_record_deinit(&s->record);
    *s = (struct td_stored){0};
}
