#include "daemon/journal/record.h"

#include "daemon/engine/wire.h"
#include "proto/journal.pb-c.h"
#include "proto/rpc.h"

#include <stdlib.h>
#include <string.h>

typedef Tensord__Journal__V1__Record record_message;

uint32_t td_record_n_parts(const struct td_record *r)
{
    return r->n_prompts * r->n_choices;
}

static bool is_printable(struct td_str s)
{
    for (size_t i = 0; i < s.len; i++)
        if (s.ptr[i] <= ' ' || s.ptr[i] > '~')
            return false;
    return true;
}

static enum td_status check_id(struct td_str id, struct td_err *err)
{
    if (id.len == 0 || id.len > TD_RECORD_MAX_ID_BYTES)
        return td_err_set(err, TD_INVALID, "a request's id has %zu bytes, expected 1 to %d", id.len,
                          TD_RECORD_MAX_ID_BYTES);
    if (!is_printable(id))
        return td_err_set(err, TD_INVALID,
                          "a request's id has bytes that are no printable ASCII, or spaces");
    return TD_OK;
}

enum td_status td_record_check(const struct td_record *r, struct td_err *err)
{
    enum td_status st = check_id(r->id, err);

    if (st)
        return st;
    if (r->idempotency.len > TD_RECORD_MAX_IDEMPOTENCY_BYTES)
        return td_err_set(err, TD_TOO_LARGE,
                          "an idempotency key has %zu bytes, expected at most %d",
                          r->idempotency.len, TD_RECORD_MAX_IDEMPOTENCY_BYTES);
    if (r->model_hash.len != TD_RECORD_MODEL_HASH_BYTES)
        return td_err_set(err, TD_INVALID, "a model's hash has %zu digits, expected %d",
                          r->model_hash.len, TD_RECORD_MODEL_HASH_BYTES);
    if ((int)r->api < TD_RECORD_CHAT || (int)r->api > TD_RECORD_GRPC)
        return td_err_set(err, TD_INVALID, "a request's API is %d, expected %d to %d", (int)r->api,
                          TD_RECORD_CHAT, TD_RECORD_GRPC);
    if (r->n_prompts == 0 || r->n_prompts > TD_RECORD_MAX_PROMPTS || r->n_choices == 0 ||
        r->n_choices > TD_REQUEST_MAX_CHOICES || td_record_n_parts(r) > TD_RECORD_MAX_PARTS)
        return td_err_set(err, TD_INVALID,
                          "a request has %u prompts and %u answers to each, expected 1 to %d, 1 to "
                          "%d and at most %d answers",
                          r->n_prompts, r->n_choices, TD_RECORD_MAX_PROMPTS, TD_REQUEST_MAX_CHOICES,
                          TD_RECORD_MAX_PARTS);
    if (r->accepted_ms < 0 || r->deadline_ms < 0)
        return td_err_set(err, TD_INVALID,
                          "a request was accepted at %lld ms and has until %lld ms: before 1970",
                          (long long)r->accepted_ms, (long long)r->deadline_ms);
    return TD_OK;
}

static enum td_status pack(const struct td_record *r, struct td_arena *arena, struct td_bytes *out,
                           struct td_err *err)
{
    record_message m;
    Tensord__Worker__V1__Submit **prompts = td_arena_alloc(arena, r->n_prompts * sizeof *prompts);

    if (!prompts)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a request's record");
    for (uint32_t i = 0; i < r->n_prompts; i++) {
        prompts[i] = td_wire_submit_make(&r->prompts[i], 0, arena);
        if (!prompts[i])
            return td_err_set(err, TD_NO_MEMORY, "no memory for a request's record");
    }
    tensord__journal__v1__record__init(&m);
    m.id = td_rpc_data(r->id);
    m.owner = r->owner;
    m.idempotency_key = td_rpc_data(r->idempotency);
    m.body_hash =
        (ProtobufCBinaryData){TD_RECORD_BODY_HASH_BYTES, (uint8_t *)(uintptr_t)r->body_hash};
    m.model_hash = td_rpc_data(r->model_hash);
    m.api = (Tensord__Journal__V1__Api)r->api;
    m.n_prompts = r->n_prompts;
    m.prompts = prompts;
    m.n_choices = r->n_choices;
    m.service = td_rpc_data(r->service);
    m.accepted_ms = r->accepted_ms;
    m.deadline_ms = r->deadline_ms;
    if (protobuf_c_message_get_packed_size(&m.base) > TD_RECORD_MAX_BYTES)
        return td_err_set(err, TD_TOO_LARGE,
                          "a request's record has %zu bytes, expected at most %d",
                          protobuf_c_message_get_packed_size(&m.base), TD_RECORD_MAX_BYTES);
    return td_rpc_pack(&m.base, out, err);
}

enum td_status td_record_encode(const struct td_record *r, struct td_bytes *out, struct td_err *err)
{
    enum td_status st = td_record_check(r, err);
    struct td_arena arena;

    if (st)
        return st;
    td_arena_init(&arena, 0, 0);
    st = pack(r, &arena, out, err);
    td_arena_deinit(&arena);
    return st;
}

static enum td_status take_prompts(const record_message *m, struct td_record *r, struct td_err *err)
{
    r->prompts = calloc(m->n_prompts, sizeof *r->prompts);
    if (!r->prompts)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu prompts", m->n_prompts);
    for (r->n_prompts = 0; r->n_prompts < m->n_prompts; r->n_prompts++) {
        enum td_status st =
            td_wire_submit_read(m->prompts[r->n_prompts], &r->prompts[r->n_prompts], err);

        if (st == TD_NO_MEMORY)
            return st;
        if (st) {
            err->status = TD_CORRUPT;
            return td_err_context(err, "prompt %u of a record", r->n_prompts);
        }
    }
    return TD_OK;
}

static enum td_status take(const record_message *m, struct td_record *r, struct td_err *err)
{
    enum td_status st;

    if (m->body_hash.len != TD_RECORD_BODY_HASH_BYTES || m->n_prompts > TD_RECORD_MAX_PROMPTS)
        return td_err_set(err, TD_CORRUPT,
                          "a record has a hash of %zu bytes and %zu prompts, expected %d and at "
                          "most %d",
                          m->body_hash.len, m->n_prompts, TD_RECORD_BODY_HASH_BYTES,
                          TD_RECORD_MAX_PROMPTS);
    r->id = td_rpc_str(m->id);
    r->owner = m->owner;
    r->idempotency = td_rpc_str(m->idempotency_key);
    memcpy(r->body_hash, m->body_hash.data, TD_RECORD_BODY_HASH_BYTES);
    r->model_hash = td_rpc_str(m->model_hash);
    r->api = (enum td_record_api)m->api;
    r->n_prompts = (uint32_t)m->n_prompts;
    r->n_choices = m->n_choices;
    r->service = td_rpc_str(m->service);
    r->accepted_ms = m->accepted_ms;
    r->deadline_ms = m->deadline_ms;
    st = td_record_check(r, err);
    if (st) {
        r->n_prompts = 0;
        err->status = TD_CORRUPT;
        return st;
    }
    return take_prompts(m, r, err);
}

enum td_status td_record_decode(struct td_str bytes, struct td_record *out, struct td_err *err)
{
    struct td_record r = {0};
    struct td_err local;
    enum td_status st;

    err = err ? err : &local;
    st = td_rpc_unpack(&tensord__journal__v1__record__descriptor, bytes, TD_RECORD_MAX_BYTES,
                       &r.message, err);
    if (!st)
        st = take((const record_message *)r.message, &r, err);
    if (st) {
        td_record_deinit(&r);
        err->status = st == TD_NO_MEMORY ? st : TD_CORRUPT;
        return err->status;
    }
    *out = r;
    return TD_OK;
}

void td_record_deinit(struct td_record *r)
{
    for (uint32_t i = 0; r->prompts && i < r->n_prompts; i++)
        td_request_deinit(&r->prompts[i]);
    free(r->prompts);
    td_rpc_free(r->message);
    *r = (struct td_record){0};
}
