/* Generate calls of before: what the journal has of one is told again and goes on behind that, for a client that comes back
 * (Inference.Resume, an idempotency key that was used) and after the coordinator was started again. */
#include "daemon/coordinator/inference_call.h"

#include "daemon/journal/journal.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>

/* ---- From what is stored to a call ---- */

/* The call becomes the request that it was then, without any answer. */
static enum td_status rebuild(struct td_inference_call *call, const struct td_record *record,
                              struct td_err *err)
{
    struct td_served *served = NULL;
    enum td_status status = td_kept_model(call->service->coord, record, &served, err);
    if (status != TD_OK) {
        return status;
    }
    td_rpc_free(call->request);
    td_served_release(call->served);
    td_inference_generate_forget(call);
    call->request = NULL;
    call->served = served;
    td_served_retain(served);
    status = td_rpc_unpack(&tensord__v1__generate_request__descriptor, record->service, 0,
                           &call->request, err);
    if (status == TD_OK && record->n_prompts != 1) {
        status = td_err_set(err, TD_CORRUPT, "a Generate that was kept has %u prompts, expected 1",
                            record->n_prompts);
    }
    if (status == TD_OK && td_ids_append_n(&call->ids, record->prompts[0].prompt,
                                           record->prompts[0].n_prompt) != TD_OK) {
        status = td_err_set(err, TD_NO_MEMORY, "no memory for a prompt");
    }
    status = status == TD_OK ? td_inference_generate_make(call, err) : status;
    if (status == TD_OK && call->best_of != record->n_choices) {
        status =
            td_err_set(err, TD_CORRUPT, "a Generate that was kept has %u choices, its message %u",
                       record->n_choices, call->best_of);
    }
    if (status == TD_OK) {
        call->usage.seed = record->prompts[0].sampling.seed; /* maybe drawn then */
        snprintf(call->id, sizeof(call->id), "%.*s", (int)record->id.len, record->id.ptr);
    }
    return status;
}

static bool knows_any(const struct td_inference_call *call)
{
    for (size_t i = 0; i < call->known.len; i++) {
        if (call->known.data[i] > 0) {
            return true;
        }
    }
    return false;
}

static void restore(struct td_inference_call *call, const struct td_stored *stored)
{
    const Tensord__V1__GenerateRequest *m = (const void *)call->request;
    const struct td_kept_restore how = {.coord = call->service->coord,
                                        .served = call->served,
                                        .key = call->key,
                                        .raw_text = m->keep_special_tokens,
                                        .on_event = td_inference_generate_on_event};
    struct td_err err = {0};
    if (knows_any(call)) { /* and so has all that comes before a token */
        td_ids_deinit(&call->echo);
        free(call->prompt);
        call->prompt = NULL;
    }
    call->number = stored->is_ended ? 0 : stored->number;
    call->is_repeatable = true;
    call->retelling = true;
    if (td_kept_restore(&how, stored, call->candidates, &err) != TD_OK && !call->ended) {
        td_candidates_give_up(call->candidates, call->best_of, &err);
        call->end_err = err;
        call->ended = true;
    }
    call->retelling = false;
    if (!call->ended) {
        td_kept_add(&call->service->kept, &call->kept, call->number, call);
    }
}

/* ---- A client comes back ---- */

static void supersede(struct td_inference_call *call)
{
    struct td_err err;
    td_inference_generate_stop(call);
    td_kept_remove(&call->kept);
    call->number = 0;
    td_err_set(&err, TD_CANCELLED, "another connection took this request over");
    td_inference_call_fail(call, &err);
    td_inference_call_free_when_over(call);
}

static void on_found(enum td_status status, struct td_stored *stored, const struct td_err *error,
                     void *user);

static void search(struct td_inference_call *call, struct td_str id)
{
    struct td_coord *coord = call->service->coord;
    struct td_err err = {0};
    enum td_status status =
        td_journal_find(td_coord_journal(coord), td_auth_owner(call->service->auth, call->key), id,
                        TD_STR(""), on_found, call, &err);
    call->pending = status == TD_OK;
    if (status != TD_OK) {
        td_inference_call_fail(call, &err);
    }
}

static void adopt(struct td_inference_call *call, const struct td_stored *stored)
{
    struct td_inference_call *other = td_kept_find(call->service->kept, stored->number);
    struct td_err err = {0};
    if (other == NULL && !stored->is_ended && !call->searched) {
        call->searched = true; /* it ended since it was read */
        search(call, stored->record.id);
        return;
    }
    if (rebuild(call, &stored->record, &err) != TD_OK) { /* nothing has changed for the other */
        td_inference_call_fail(call, &err);
        return;
    }
    if (other != NULL) {
        supersede(other);
    }
    td_grpc_stream_start(call->s);
    restore(call, stored);
    td_inference_generate_tell(call);
}

static void on_found(enum td_status status, struct td_stored *stored, const struct td_err *error,
                     void *user)
{
    struct td_inference_call *call = user;
    struct td_err err = {0};
    call->pending = false;
    if (call->s == NULL) {
        /* it went again */
    } else if (status == TD_OK && stored->record.api == TD_RECORD_GRPC) {
        adopt(call, stored);
    } else if (status == TD_OK || status == TD_NOT_FOUND) {
        td_err_set(&err, TD_NOT_FOUND,
                   "there is no request by that id: it was of another key or another API, was not "
                   "kept, or ended longer ago than this server keeps them (--journal-retention)");
        td_inference_call_fail(call, &err);
    } else {
        td_inference_call_fail(call, error);
    }
    td_inference_call_free_when_over(call);
}

void td_inference_resume_find(struct td_inference_call *call, struct td_str id)
{
    search(call, id);
}

void td_inference_resume_begin(struct td_inference_call *call)
{
    const Tensord__V1__ResumeRequest *m = (const void *)call->request;
    struct td_err err = {0};
    if (td_coord_journal(call->service->coord) == NULL) {
        td_err_set(&err, TD_NOT_FOUND,
                   "this server keeps no journal (--journal): no request outlives its connection");
        td_inference_call_fail(call, &err);
    } else if (m->n_n_known > TD_REQUEST_MAX_CHOICES) {
        td_err_set(&err, TD_INVALID, "n_known has %zu entries, expected at most %d", m->n_n_known,
                   TD_REQUEST_MAX_CHOICES);
        td_inference_call_fail(call, &err);
    } else if (td_ids_append_n(&call->known, m->n_known, m->n_n_known) != TD_OK) {
        td_err_set(&err, TD_NO_MEMORY, "no memory for a call");
        td_inference_call_fail(call, &err);
    } else {
        search(call, td_str_from(m->id));
    }
}

/* ---- A coordinator comes back ---- */

/* It goes on without a client. */
static void go_on(struct td_inference_call *call, const struct td_stored *stored)
{
    struct td_coord *coord = call->service->coord;
    struct td_err err = {0};
    char text[512];
    call->key = td_auth_of_owner(call->service->auth, stored->record.owner);
    if (stored->record.owner != 0 && call->key == 0) {
        td_log_warn("request of a key that was removed is dropped id=%.*s",
                    (int)stored->record.id.len, stored->record.id.ptr);
        td_journal_drop(td_coord_journal(coord), stored->number);
    } else if (rebuild(call, &stored->record, &err) != TD_OK) {
        td_log_warn("request cannot go on id=%.*s error=\"%s\"", (int)stored->record.id.len,
                    stored->record.id.ptr, td_err_format(&err, text, sizeof(text)));
        td_kept_end(coord, stored, &err);
    } else {
        td_log_info("request goes on id=%s", call->id);
        restore(call, stored);
    }
}

static void restore_open(struct td_stored *stored, void *user)
{
    struct td_inference_service *service = user;
    struct td_served *served = NULL;
    if (stored->record.api != TD_RECORD_GRPC ||
        td_coord_find_model(service->coord, TD_STR(""), &served, NULL) != TD_OK) {
        return; /* another service's, or it stays open */
    }
    struct td_inference_call *call = td_inference_call_new(service, NULL, TD_RPC_GENERATE);
    if (call == NULL) {
        td_log_error("no memory for a request that was open id=%.*s", (int)stored->record.id.len,
                     stored->record.id.ptr);
        return;
    }
    go_on(call, stored);
    td_inference_call_free_when_over(call);
}

enum td_status td_inference_service_restore(struct td_inference_service *service,
                                            struct td_err *err)
{
    return td_journal_restore(td_coord_journal(service->coord), false, restore_open, service, err);
}
