/* Requests of before: what the journal has of one is told again, up to where it was, and goes on behind that. So it goes on after the
 * coordinator was started again, and so a client that comes back, here or there, has its answer from where it left off. */
#include "daemon/coordinator/openai_call.h"
#include "daemon/coordinator/openai_service.h"

#include "daemon/journal/journal.h"
#include "daemon/log.h"

#include <string.h>

/* ---- From what is stored to a call ---- */

static enum td_status keep_prompt(struct td_openai_call *call, struct td_openai_part *part,
                                  const struct td_request *prompt)
{
    const struct td_openai_request *q = &call->request;
    if (part->choice > 0 || (!q->echo && q->prompt_logprobs < 0)) {
        return TD_OK;
    }
    return td_ids_append_n(&part->prompt, prompt->prompt, prompt->n_prompt);
}

static enum td_status keep_prompts(struct td_openai_call *call, const struct td_record *record,
                                   struct td_err *err)
{
    for (size_t i = 0; i < call->n_parts; i++) {
        if (keep_prompt(call, &call->parts[i], &record->prompts[i / record->n_choices]) != TD_OK) {
            return td_err_set(err, TD_NO_MEMORY, "no memory for a prompt");
        }
    }
    return TD_OK;
}

/* The call becomes the request that it was then, without any answer. */
static enum td_status rebuild(struct td_openai_call *call, const struct td_record *record,
                              struct td_err *err)
{
    struct td_openai_service *service = call->endpoint->service;
    struct td_served *served = NULL;
    td_openai_call_reset(call);
    call->endpoint = record->api == TD_RECORD_CHAT ? &service->chat : &service->completion;
    call->created = record->accepted_ms / 1000;
    snprintf(call->id, sizeof(call->id), "%.*s", (int)record->id.len, record->id.ptr);
    enum td_status status = td_kept_model(service->coord, record, &served, err);
    if (status != TD_OK) {
        return status;
    }
    call->served = served;
    td_served_retain(served);
    if (td_openai_call_parse(call, record->service) != TD_OK) {
        return td_err_set(err, TD_CORRUPT, "the body of a request that was kept: %s",
                          call->error.message);
    }
    status = td_openai_call_make_parts(call, err);
    if (status == TD_OK &&
        (call->n_prompts != record->n_prompts || call->request.best_of != record->n_choices)) {
        status = td_err_set(err, TD_CORRUPT,
                            "a request that was kept has %u prompts and %u choices, its body %zu "
                            "and %u",
                            record->n_prompts, record->n_choices, call->n_prompts,
                            call->request.best_of);
    }
    return status == TD_OK ? keep_prompts(call, record, err) : status;
}

/* Tells again what the journal has, for a call that was rebuilt. False: it has ended with an error. */
static bool restore(struct td_openai_call *call, const struct td_stored *stored)
{
    const struct td_kept_restore how = {.coord = call->endpoint->coord,
                                        .served = call->served,
                                        .key = call->key,
                                        .on_event = td_openai_call_on_event};
    struct td_err err = {0};
    call->number = stored->is_ended ? 0 : stored->number;
    call->has_ids = true;
    call->is_repeatable = true;
    call->retelling = true;
    if (td_kept_restore(&how, stored, call->candidates, &err) == TD_OK) {
        err = call->retold_err;
    }
    call->retelling = false;
    if (err.status != TD_OK) {
        td_openai_call_fail(call, &err);
        return false;
    }
    td_kept_add(&call->endpoint->service->kept, &call->kept, call->number, call);
    return true;
}

/* ---- A client comes back ---- */

static void on_found(enum td_status status, struct td_stored *stored, const struct td_err *error,
                     void *user);

static void search(struct td_openai_call *call, struct td_str id)
{
    struct td_openai_service *service = call->endpoint->service;
    struct td_err err = {0};
    enum td_status status =
        td_journal_find(td_coord_journal(service->coord), td_auth_owner(service->auth, call->key),
                        id, TD_STR(""), on_found, call, &err);
    call->pending = status == TD_OK;
    if (status != TD_OK) {
        td_openai_call_fail(call, &err);
    }
}

static void adopt(struct td_openai_call *call, struct td_stored *stored)
{
    struct td_openai_service *service = call->endpoint->service;
    struct td_openai_call *other = td_kept_find(service->kept, stored->number);
    struct td_err err = {0};
    bool is_repeated = call->parsed, streaming = !is_repeated || call->request.stream;
    if (other == NULL && !stored->is_ended && !call->searched) {
        call->searched = true; /* it ended since it was read */
        search(call, stored->record.id);
        return;
    }
    enum td_status status = rebuild(call, &stored->record, &err);
    if (status == TD_OK && streaming) {
        status = td_openai_position_read(call, td_bytes_str(&call->after), &err);
    }
    if (status != TD_OK) { /* nothing has changed for whoever has it now */
        td_openai_call_fail(call, &err);
        return;
    }
    if (other != NULL) {
        td_openai_call_supersede(other);
    }
    if (is_repeated) {
        td_http_set_header(call->http, "Idempotent-Replayed", "true");
    }
    if (restore(call, stored)) {
        call->streaming = streaming;
        td_openai_call_answer(call);
    }
}

static void on_found(enum td_status status, struct td_stored *stored, const struct td_err *error,
                     void *user)
{
    struct td_openai_call *call = user;
    call->pending = false;
    if (call->http == NULL) {
        /* it went again */
    } else if (status == TD_OK && stored->record.api != TD_RECORD_GRPC) {
        adopt(call, stored);
    } else if (status == TD_OK || status == TD_NOT_FOUND) {
        td_openai_error_set(&call->error, 404, "invalid_request_error", "request_not_found", NULL,
                            "There is no request by that id: it was of another key, was not kept, "
                            "or ended longer ago than this server keeps them "
                            "(--journal-retention).");
        td_openai_call_refuse(call);
    } else {
        td_openai_call_fail(call, error);
    }
    td_openai_call_free_when_over(call);
}

void td_openai_resume_find(struct td_openai_call *call, struct td_str id)
{
    search(call, id);
}

/* "{id}/stream"; false for another tail. */
static bool read_tail(struct td_str tail, struct td_str *id)
{
    const struct td_str end = TD_STR("/stream");
    if (tail.len <= end.len || memcmp(tail.ptr + tail.len - end.len, end.ptr, end.len) != 0) {
        return false;
    }
    *id = (struct td_str){tail.ptr, tail.len - end.len};
    return true;
}

void td_openai_resume_handle(struct td_http_request *http, void *user)
{
    struct td_openai_service *service = user;
    struct td_openai_error e;
    struct td_str id;
    struct td_str after = td_http_header(http, "Last-Event-ID");
    if (!read_tail(td_http_tail(http), &id)) {
        td_openai_error_set(&e, 404, "invalid_request_error", "not_found", NULL,
                            "This path serves nothing: expected /v1/requests/{id}/stream.");
        td_http_respond_error(http, &e);
        return;
    }
    if (td_coord_journal(service->coord) == NULL) {
        td_openai_error_set(&e, 404, "invalid_request_error", "no_journal", NULL,
                            "This server keeps no journal (--journal): no request outlives its "
                            "connection.");
        td_http_respond_error(http, &e);
        return;
    }
    struct td_openai_call *call = td_openai_call_new(&service->completion, http);
    if (call == NULL) {
        return;
    }
    td_http_query(http, "starting_after", &after);
    if (td_bytes_append_str(&call->after, after) != TD_OK) {
        td_openai_call_fail(call, &(struct td_err){.status = TD_NO_MEMORY});
    } else {
        search(call, id);
    }
    td_openai_call_free_when_over(call);
}

/* ---- A coordinator comes back ---- */

/* It goes on without a client. */
static void go_on(struct td_openai_call *call, const struct td_stored *stored)
{
    struct td_openai_service *service = call->endpoint->service;
    struct td_err err = {0};
    char text[512];
    call->key = td_auth_of_owner(service->auth, stored->record.owner);
    if (stored->record.owner != 0 && call->key == 0) {
        td_log_warn("request of a key that was removed is dropped id=%s", call->id);
        td_journal_drop(td_coord_journal(service->coord), stored->number);
        return;
    }
    enum td_status status = rebuild(call, &stored->record, &err);
    if (status != TD_OK) {
        td_log_warn("request cannot go on id=%s error=\"%s\"", call->id,
                    td_err_format(&err, text, sizeof(text)));
        td_kept_end(service->coord, stored, &err);
        td_openai_call_fail(call, &err);
    } else if (restore(call, stored)) {
        td_log_info("request goes on id=%s", call->id);
    }
}

static void restore_open(struct td_stored *stored, void *user)
{
    struct td_openai_service *service = user;
    struct td_served *served = NULL;
    if (stored->record.api == TD_RECORD_GRPC ||
        td_coord_find_model(service->coord, TD_STR(""), &served, NULL) != TD_OK) {
        return; /* it stays open */
    }
    struct td_openai_call *call = td_openai_call_new(&service->completion, NULL);
    if (call == NULL) {
        td_log_error("no memory for a request that was open id=%.*s", (int)stored->record.id.len,
                     stored->record.id.ptr);
        return;
    }
    snprintf(call->id, sizeof(call->id), "%.*s", (int)stored->record.id.len, stored->record.id.ptr);
    go_on(call, stored);
    td_openai_call_free_when_over(call);
}

enum td_status td_openai_service_restore(struct td_openai_service *service, struct td_err *err)
{
    return td_journal_restore(td_coord_journal(service->coord), false, restore_open, service, err);
}
