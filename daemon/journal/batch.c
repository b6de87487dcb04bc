#include "daemon/journal/batch.h"

#include "daemon/journal/record.h"
#include "proto/journal.pb-c.h"
#include "proto/rpc.h"

#include <stdlib.h>

typedef Tensord__Journal__V1__Batch batch_message;
typedef Tensord__Journal__V1__End end_message;

static enum td_status check(const struct td_batch *b, struct td_err *err)
{
    if (b->part >= TD_RECORD_MAX_PARTS)
        return td_err_set(err, TD_INVALID, "a batch is of part %u, expected below %d", b->part,
                          TD_RECORD_MAX_PARTS);
    if (b->n > TD_BATCH_MAX_TOKENS || b->first > UINT32_MAX - b->n)
        return td_err_set(err, TD_TOO_LARGE,
                          "a batch has %u tokens from %u on, expected at most %d", b->n, b->first,
                          TD_BATCH_MAX_TOKENS);
    if (b->has_end &&
        ((int)b->end.finish <= TD_FINISH_NONE || (int)b->end.finish > TD_FINISH_ERROR))
        return td_err_set(err, TD_INVALID, "a batch has the end %d, expected %d to %d",
                          (int)b->end.finish, TD_FINISH_NONE + 1, TD_FINISH_ERROR);
    if (b->has_end && (b->end.finish == TD_FINISH_ERROR) != (b->end.error_status != TD_OK))
        return td_err_set(err, TD_INVALID, "a batch has the end %d with the error %d",
                          (int)b->end.finish, (int)b->end.error_status);
    return TD_OK;
}

static void put_end(const struct td_batch_end *end, end_message *m)
{
    struct td_str text = end->error_text;

    if (text.len > TD_BATCH_MAX_ERROR_BYTES)
        text.len = TD_BATCH_MAX_ERROR_BYTES;
    tensord__journal__v1__end__init(m);
    m->finish = (Tensord__Worker__V1__Finish)end->finish;
    m->n_tokens = end->n_tokens;
    m->error_status = (uint32_t)end->error_status;
    m->error_text = td_rpc_data(text);
    m->details = td_rpc_data(end->details);
}

enum td_status td_batch_encode(const struct td_batch *b, struct td_bytes *out, struct td_err *err)
{
    ProtobufCBinaryData *details = NULL;
    enum td_status st = check(b, err);
    batch_message m;
    end_message end;

    if (st)
        return st;
    tensord__journal__v1__batch__init(&m);
    m.part = b->part;
    m.is_prompt = b->is_prompt;
    m.first = b->first;
    m.n_ids = b->n;
    m.ids = (uint32_t *)(uintptr_t)b->ids;
    if (b->detail && b->n) {
        details = malloc(b->n * sizeof *details);
        if (!details)
            return td_err_set(err, TD_NO_MEMORY, "no memory for a batch of %u tokens", b->n);
        for (uint32_t i = 0; i < b->n; i++)
            details[i] = td_rpc_data(b->detail[i]);
        m.n_details = b->n;
        m.details = details;
    }
    if (b->has_end) {
        put_end(&b->end, &end);
        m.end = &end;
    }
    if (protobuf_c_message_get_packed_size(&m.base) > TD_BATCH_MAX_BYTES)
        st = td_err_set(err, TD_TOO_LARGE, "a batch has %zu bytes, expected at most %d",
                        protobuf_c_message_get_packed_size(&m.base), TD_BATCH_MAX_BYTES);
    st = st ? st : td_rpc_pack(&m.base, out, err);
    free(details);
    return st;
}

static enum td_status take(const batch_message *m, struct td_batch *b, struct td_err *err)
{
    enum td_status st;

    if (m->n_ids > TD_BATCH_MAX_TOKENS || (m->n_details && m->n_details != m->n_ids))
        return td_err_set(err, TD_CORRUPT,
                          "a batch has %zu tokens and details of %zu, expected at most %d and "
                          "details of all or none",
                          m->n_ids, m->n_details, TD_BATCH_MAX_TOKENS);
    b->part = m->part;
    b->is_prompt = m->is_prompt;
    b->first = m->first;
    b->n = (uint32_t)m->n_ids;
    b->ids = m->ids;
    if (m->end) {
        b->has_end = true;
        b->end = (struct td_batch_end){.finish = (enum td_finish)m->end->finish,
                                       .n_tokens = m->end->n_tokens,
                                       .error_status = (enum td_status)m->end->error_status,
                                       .error_text = td_rpc_str(m->end->error_text),
                                       .details = td_rpc_str(m->end->details)};
        if (b->end.error_text.len > TD_BATCH_MAX_ERROR_BYTES)
            b->end.error_text.len = TD_BATCH_MAX_ERROR_BYTES;
    }
    st = check(b, err);
    if (st || !m->n_details)
        return st;
    b->details = malloc(m->n_details * sizeof *b->details);
    if (!b->details)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a batch of %u tokens", b->n);
    for (uint32_t i = 0; i < b->n; i++)
        b->details[i] = td_rpc_str(m->details[i]);
    b->detail = b->details;
    return TD_OK;
}

enum td_status td_batch_decode(struct td_str bytes, struct td_batch *out, struct td_err *err)
{
    struct td_batch b = {0};
    struct td_err local;
    enum td_status st;

    err = err ? err : &local;
    st = td_rpc_unpack(&tensord__journal__v1__batch__descriptor, bytes, TD_BATCH_MAX_BYTES,
                       &b.message, err);
    if (!st)
        st = take((const batch_message *)b.message, &b, err);
    if (st) {
        td_batch_deinit(&b);
        err->status = st == TD_NO_MEMORY ? st : TD_CORRUPT;
        return err->status;
    }
    *out = b;
    return TD_OK;
}

void td_batch_deinit(struct td_batch *b)
{
    free(b->details);
    td_rpc_free(b->message);
    *b = (struct td_batch){0};
}
