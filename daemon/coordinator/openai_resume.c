/* Requests of before: what the journal has of one is told again, up to where it was, and goes on behind that. So it goes on after the
 * coordinator was started again, and so a client that comes back, here or there, has its answer from where it left off. */
#include "daemon/coordinator/openai_call.h"
#include "daemon/coordinator/openai_service.h"

#include "daemon/journal/journal.h"
#include "daemon/journal/resume.h"
#include "daemon/log.h"

#include <string.h>
#include <time.h>

/* ---- Those that are open here ---- */

void td_openai_resume_link(struct td_openai_call *call)
{
    struct td_openai_service *service = call->endpoint->service;
    if (call->number == 0 || call->at_kept != NULL) {
        return;
    }
    call->next_kept = service->kept;
    if (service->kept != NULL) {
        service->kept->at_kept = &call->next_kept;
    }
    call->at_kept = &service->kept;
    service->kept = call;
}

void td_openai_resume_unlink(struct td_openai_call *call)
{
    if (call->at_kept == NULL) {
        return;
    }
    *call->at_kept = call->next_kept;
    if (call->next_kept != NULL) {
        call->next_kept->at_kept = call->at_kept;
    }
    call->at_kept = NULL;
}

static struct td_openai_call *open_one(const struct td_openai_service *service, uint64_t number)
{
    struct td_openai_call *call = service->kept;
    while (call != NULL && call->number != number) {
        call = call->next_kept;
    }
    return call;
}

/* ---- From what is stored to a call ---- */

static uint64_t deadline_ns(const struct td_record *record)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t left_ms = record->deadline_ms - (int64_t)now.tv_sec * 1000 - now.tv_nsec / 1000000;
    if (record->deadline_ms == 0) {
        return 0;
    }
    return left_ms > 0 ? uv_hrtime() + (uint64_t)left_ms * 1000000 : 1;
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
    enum td_status status = td_coord_find_model(service->coord, TD_STR(""), &served, err);
    if (status != TD_OK) {
        return status;
    }
    if (!td_str_eq(record->model_hash, td_str_from(served->hash))) {
        return td_err_set(err, TD_UNAVAILABLE,
                          "the request is of another model than '%s', which is served now",
                          served->names[0]);
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
    return status;
}

static enum td_status keep_prompt(struct td_openai_call *call, struct td_openai_part *part,
                                  const struct td_request *prompt)
{
    const struct td_openai_request *q = &call->request;
    if (part->choice > 0 || (!q->echo && q->prompt_logprobs < 0)) {
        return TD_OK;
    }
    return td_ids_append_n(&part->prompt, prompt->prompt, prompt->n_prompt);
}

/* One part is told again, and goes on unless it had ended. */
static enum td_status restore_part(struct td_openai_call *call, const struct td_stored *stored,
                                   uint32_t i, struct td_err *err)
{
    const struct td_record *record = &stored->record;
    struct td_request r;
    if (keep_prompt(call, &call->parts[i], &record->prompts[i / record->n_choices]) != TD_OK) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a prompt");
    }
    enum td_status status = td_resume_request(stored, i, &r, err);
    if (status != TD_OK) {
        return status;
    }
    r.cache_salt = td_request_salt_for(call->key, r.cache_salt);
    const struct td_coord_submit what = {.served = call->served,
                                         .request = &r,
                                         .key = call->key,
                                         .deadline_ns =
                                             stored->parts[i].has_end ? 0 : deadline_ns(record),
                                         .number = call->number,
                                         .part = i,
                                         .on_event = td_openai_call_on_event,
                                         .user = &call->parts[i]};
    status = td_coord_restore(call->endpoint->coord, &what, &stored->parts[i],
                              &call->candidates[i].job, err);
    if (status != TD_OK) {
        td_request_deinit(&r);
    }
    return status;
}

/* Parts that cannot go on have an end all the same. */
static void end_rest(struct td_openai_call *call, const struct td_stored *stored,
                     const struct td_err *err)
{
    const uint32_t n = td_record_n_parts(&stored->record);
    char text[TD_BATCH_MAX_ERROR_BYTES];
    struct td_batch_end end = {.finish = TD_FINISH_ERROR,
                               .error_status = err->status,
                               .error_text = td_str_from(td_err_format(err, text, sizeof(text)))};
    for (uint32_t i = 0; i < n && !stored->is_ended; i++) {
        bool is_open = i < call->n_parts && call->candidates[i].job != NULL;
        end.n_tokens = stored->parts[i].output.n;
        if (!is_open && !stored->parts[i].has_end) {
            td_journal_end(td_coord_journal(call->endpoint->coord), stored->number, i, &end);
        }
    }
    td_openai_call_fail(call, err);
}

/* Tells again what the journal has, for a call that was rebuilt. False: it has ended with an error. */
static bool restore(struct td_openai_call *call, const struct td_stored *stored)
{
    struct td_err err = {0};
    enum td_status status = TD_OK;
    call->number = stored->is_ended ? 0 : stored->number;
    call->has_ids = true;
    call->is_repeatable = true;
    call->retelling = true;
    for (uint32_t i = 0; i < call->n_parts && status == TD_OK; i++) {
        status = restore_part(call, stored, i, &err);
    }
    call->retelling = false;
    if (status != TD_OK) {
        end_rest(call, stored, &err);
    } else if (call->retold_err.status != TD_OK) {
        td_openai_call_fail(call, &call->retold_err);
    } else {
        td_openai_resume_link(call);
        return true;
    }
    return false;
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
    struct td_openai_call *other = open_one(service, stored->number);
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
        end_rest(call, stored, &err);
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
