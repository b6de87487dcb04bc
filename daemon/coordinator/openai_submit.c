/* From ids to jobs: the requests of a call are made, admitted, kept in the journal and begun. */
#include "daemon/coordinator/openai_call.h"

#include "daemon/journal/journal.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

void td_openai_random(uint64_t *words, size_t n)
{
    if (uv_random(NULL, NULL, words, n * sizeof(*words), 0, NULL) != 0) {
        words[0] ^= uv_hrtime(); /* a system without a source: still different each time */
    }
}

/* ---- Requests ---- */

/* The one of a prompt, of which its candidates are copies. */
static enum td_status make(struct td_openai_call *call, size_t prompt, struct td_err *err)
{
    const struct td_openai_request *q = &call->request;
    struct td_openai_part *first = &call->parts[prompt * q->best_of];
    struct td_request *r = &call->requests[prompt];
    if ((q->echo || q->prompt_logprobs >= 0) &&
        td_ids_append_n(&first->prompt, first->ids.data, first->ids.len) != TD_OK) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a prompt of %zu ids", first->ids.len);
    }
    r->prompt = first->ids.data;
    r->n_prompt = (uint32_t)first->ids.len;
    first->ids = (struct td_ids){0};
    /* Who has another key, or names another salt, does not learn what was asked. */
    r->cache_salt = td_request_salt(call->key, q->cache_salt);
    enum td_status status = td_openai_request_fill(q, 0, r, err);
    if (status == TD_OK) {
        status = td_request_break_at(r, call->served->breakers,
                                     q->has_dry_breakers ? q->dry_breakers : NULL,
                                     q->n_dry_breakers, err);
    }
    if (!q->has_seed) {
        td_openai_random(&r->sampling.seed, 1);
    }
    td_candidates_prepare(r, q->best_of, q->n);
    return status;
}

static enum td_status make_all(struct td_openai_call *call, struct td_err *err)
{
    enum td_status status = TD_OK;
    call->requests = calloc(call->n_prompts, sizeof(*call->requests));
    if (call->requests == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu requests", call->n_prompts);
    }
    for (size_t i = 0; i < call->n_prompts; i++) {
        td_request_init(&call->requests[i]);
    }
    for (size_t i = 0; i < call->n_prompts && status == TD_OK; i++) {
        status = make(call, i, err);
        if (status != TD_OK && call->n_prompts > 1) {
            td_err_context(err, "prompt %zu of %zu", i + 1, call->n_prompts);
        }
    }
    return status;
}

/* ---- Begin ---- */

/* All candidates of a prompt. */
static enum td_status submit(struct td_openai_call *call, size_t prompt, struct td_err *err)
{
    const uint32_t n = call->request.best_of;
    const struct td_coord_submit what = {.served = call->served,
                                         .request = &call->requests[prompt],
                                         .key = call->key,
                                         .admitted = true,
                                         .deadline_ns = td_openai_limits_deadline_ns(call),
                                         .number = call->number,
                                         .part = (uint32_t)prompt * n,
                                         .on_event = td_openai_call_on_event};
    enum td_status status =
        td_candidates_submit(call->endpoint->coord, &what, &call->candidates[prompt * n], n, err);
    if (status != TD_OK && call->n_prompts > 1) {
        td_err_context(err, "prompt %zu of %zu", prompt + 1, call->n_prompts);
    }
    return status;
}

/* Nothing of it is to be found later. */
static void refuse(struct td_openai_call *call, const struct td_err *err)
{
    td_candidates_cancel(call->candidates, call->n_parts);
    td_journal_drop(td_coord_journal(call->endpoint->coord), call->number);
    call->number = 0;
    td_openai_call_fail(call, err);
}

static enum td_status admit(struct td_openai_call *call, struct td_err *err)
{
    enum td_status status = td_openai_limits_admit(call, err);
    if (status != TD_OK && call->http != NULL) {
        td_openai_limits_tell(call);
    }
    return status;
}

static void begin(struct td_openai_call *call)
{
    struct td_err err = {0};
    for (size_t i = 0; i < call->n_prompts; i++) {
        if (submit(call, i, &err) != TD_OK) {
            refuse(call, &err);
            return;
        }
    }
    td_kept_add(&call->endpoint->service->kept, &call->kept, call->number, call);
    if (call->http != NULL) {
        call->streaming = call->request.stream;
        td_openai_call_answer(call);
    }
}

/* ---- Through the journal ---- */

static void on_kept(const struct td_journal_answer *answer, void *user)
{
    struct td_openai_call *call = user;
    struct td_err err = {0};
    call->pending = false;
    td_bytes_deinit(&call->body);
    if (answer->verdict == TD_JOURNAL_KEPT) {
        call->number = answer->number;
        call->has_ids = true;
    }
    if (call->http == NULL && (call->number == 0 || !call->is_repeatable)) {
        td_journal_drop(td_coord_journal(call->endpoint->coord), call->number);
    } else if (answer->verdict == TD_JOURNAL_REPEATED) {
        td_openai_resume_find(call, answer->id);
    } else if (answer->verdict == TD_JOURNAL_CONFLICT) {
        td_openai_error_set(&call->error, 409, "invalid_request_error", "idempotency_conflict",
                            "Idempotency-Key",
                            "The Idempotency-Key was used before for another request body.");
        td_openai_call_refuse(call);
    } else if (admit(call, &err) != TD_OK) { /* others came meanwhile */
        refuse(call, &err);
    } else {
        begin(call);
    }
    td_openai_call_free_when_over(call);
}

static void hash_body(const struct td_openai_call *call, uint8_t out[TD_RECORD_BODY_HASH_BYTES])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(call->body.data, call->body.len,
                                                               (XXH64_hash_t)call->endpoint->kind));
    memcpy(out, canonical.digest, TD_RECORD_BODY_HASH_BYTES);
}

/* What it will be asked for, with all that is left open here decided: where its context ends. */
static enum td_status keep(struct td_openai_call *call, struct td_err *err)
{
    struct td_record record = {
        .id = td_str_from(call->id),
        .owner = td_auth_owner(call->endpoint->service->auth, call->key),
        .idempotency = td_bytes_str(&call->idempotency),
        .model_hash = td_str_from(call->served->hash),
        .api = call->endpoint->kind == TD_OPENAI_CHAT ? TD_RECORD_CHAT : TD_RECORD_COMPLETIONS,
        .prompts = call->requests,
        .n_prompts = (uint32_t)call->n_prompts,
        .n_choices = call->request.best_of,
        .service = td_bytes_str(&call->body),
        .accepted_ms = call->created * 1000,
        .deadline_ms = td_kept_deadline_ms(td_openai_limits_deadline_ns(call))};
    enum td_status status =
        td_kept_settle(call->requests, call->n_prompts, call->served->max_model_len, err);
    if (status != TD_OK) {
        return status;
    }
    hash_body(call, record.body_hash);
    return td_journal_accept(td_coord_journal(call->endpoint->coord), &record, on_kept, call, err);
}

void td_openai_submit(struct td_openai_call *call)
{
    struct td_err err = {0};
    const bool is_kept = td_coord_journal(call->endpoint->coord) != NULL;
    /* Who names a key may have been admitted long ago: the journal is asked first, also by a full or draining server. */
    const bool may_be_known = is_kept && call->idempotency.len > 0;
    enum td_status status = make_all(call, &err);
    status = status == TD_OK && !may_be_known ? admit(call, &err) : status;
    if (status != TD_OK) {
        td_openai_call_fail(call, &err);
        return;
    }
    if (is_kept) {
        status = keep(call, &err);
        call->pending = status == TD_OK;
        if (call->pending) {
            return;
        }
        if (status != TD_UNAVAILABLE) { /* which the journal's own lines tell */
            char text[512];
            td_log_warn("request not kept id=%s error=\"%s\"", call->id,
                        td_err_format(&err, text, sizeof(text)));
        }
    }
    td_bytes_deinit(&call->body);
    if (may_be_known && admit(call, &err) != TD_OK) {
        td_openai_call_fail(call, &err);
    } else {
        begin(call);
    }
}
