#include "daemon/coordinator/kept.h"

#include "daemon/journal/journal.h"
#include "daemon/journal/resume.h"

#include <time.h>

/* ---- Those that are open here ---- */

void td_kept_add(struct td_kept **list, struct td_kept *kept, uint64_t number, void *owner)
{
    if (number == 0 || kept->at != NULL) {
        return;
    }
    *kept = (struct td_kept){.number = number, .owner = owner, .next = *list, .at = list};
    if (*list != NULL) {
        (*list)->at = &kept->next;
    }
    *list = kept;
}

void td_kept_remove(struct td_kept *kept)
{
    if (kept->at == NULL) {
        return;
    }
    *kept->at = kept->next;
    if (kept->next != NULL) {
        kept->next->at = kept->at;
    }
    kept->at = NULL;
}

void *td_kept_find(const struct td_kept *list, uint64_t number)
{
    while (list != NULL && list->number != number) {
        list = list->next;
    }
    return list != NULL ? list->owner : NULL;
}

/* ---- What a record holds ---- */

static int64_t unix_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t td_kept_deadline_ms(uint64_t deadline_ns)
{
    return deadline_ns > 0 ? unix_ms() + ((int64_t)deadline_ns - (int64_t)uv_hrtime()) / 1000000
                           : 0;
}

uint64_t td_kept_deadline_ns(int64_t deadline_ms)
{
    int64_t left_ms = deadline_ms - unix_ms();
    if (deadline_ms == 0) {
        return 0;
    }
    return left_ms > 0 ? uv_hrtime() + (uint64_t)left_ms * 1000000 : 1;
}

enum td_status td_kept_settle(struct td_request *requests, size_t n, uint32_t max_model_len,
                              struct td_err *err)
{
    enum td_status status = TD_OK;
    for (size_t i = 0; i < n && status == TD_OK; i++) {
        requests[i].max_tokens = requests[i].max_tokens > 0 ? requests[i].max_tokens : UINT32_MAX;
        status = td_request_validate(&requests[i], UINT32_MAX, max_model_len, err);
    }
    return status;
}

enum td_status td_kept_model(struct td_coord *coord, const struct td_record *record,
                             struct td_served **served, struct td_err *err)
{
    enum td_status status = td_coord_find_model(coord, TD_STR(""), served, err);
    if (status == TD_OK && !td_str_eq(record->model_hash, td_str_from((*served)->hash))) {
        status = td_err_set(err, TD_UNAVAILABLE,
                            "the request is of another model than '%s', which is served now",
                            (*served)->names[0]);
    }
    return status;
}

/* ---- Going on ---- */

static void end_part(struct td_coord *coord, const struct td_stored *stored, uint32_t part,
                     const struct td_err *err)
{
    char text[TD_BATCH_MAX_ERROR_BYTES];
    const struct td_batch_end end = {.finish = TD_FINISH_ERROR,
                                     .n_tokens = stored->parts[part].output.n,
                                     .error_status = err->status,
                                     .error_text =
                                         td_str_from(td_err_format(err, text, sizeof(text)))};
    if (!stored->is_ended && !stored->parts[part].has_end) {
        td_journal_end(td_coord_journal(coord), stored->number, part, &end);
    }
}

static enum td_status restore_part(const struct td_kept_restore *how,
                                   const struct td_stored *stored, uint32_t part,
                                   struct td_candidate *candidate, struct td_err *err)
{
    struct td_request r;
    enum td_status status = td_resume_request(stored, part, &r, err);
    if (status != TD_OK) {
        return status;
    }
    r.cache_salt = td_request_salt_for(how->key, r.cache_salt);
    const struct td_coord_submit what = {
        .served = how->served,
        .request = &r,
        .raw_text = how->raw_text,
        .key = how->key,
        .deadline_ns =
            stored->parts[part].has_end ? 0 : td_kept_deadline_ns(stored->record.deadline_ms),
        .number = stored->is_ended ? 0 : stored->number,
        .part = part,
        .on_event = how->on_event,
        .user = candidate->user};
    status = td_coord_restore(how->coord, &what, &stored->parts[part], &candidate->job, err);
    if (status != TD_OK) {
        td_request_deinit(&r);
    }
    return status;
}

enum td_status td_kept_restore(const struct td_kept_restore *how, const struct td_stored *stored,
                               struct td_candidate *list, struct td_err *err)
{
    const uint32_t n = td_record_n_parts(&stored->record);
    enum td_status status = TD_OK;
    for (uint32_t i = 0; i < n; i++) {
        if (status == TD_OK) {
            status = restore_part(how, stored, i, &list[i], err);
        }
        if (status != TD_OK) {
            end_part(how->coord, stored, i, err);
        }
    }
    return status;
}

void td_kept_end(struct td_coord *coord, const struct td_stored *stored, const struct td_err *err)
{
    for (uint32_t i = 0; i < td_record_n_parts(&stored->record); i++) {
        end_part(coord, stored, i, err);
    }
}
