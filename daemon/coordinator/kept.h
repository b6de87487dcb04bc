/* Requests that are in the journal, on the services' side: which of them are open here, and what both services do with one that
 * comes back. Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_KEPT_H
#define TD_DAEMON_COORDINATOR_KEPT_H

#include "daemon/coordinator/candidates.h"
#include "daemon/journal/stored.h"

/* One that is open here; part of whoever runs it. Zero-initialise. */
struct td_kept {
    uint64_t number; /* in the journal */
    void *owner;
    struct td_kept *next, **at; /* at NULL: it is in no list */
};
/* Nothing happens with number 0, or when it is in a list already. */
void td_kept_add(struct td_kept **list, struct td_kept *kept, uint64_t number, void *owner);
void td_kept_remove(struct td_kept *kept);
/* Who runs it; NULL: nobody here. */
void *td_kept_find(const struct td_kept *list, uint64_t number);

/* A deadline of uv_hrtime as Unix time in milliseconds, and back; 0 stays 0, one that has passed becomes 1. */
int64_t td_kept_deadline_ms(uint64_t deadline_ns);
uint64_t td_kept_deadline_ns(int64_t deadline_ms);
/* Each request's max_tokens as it is for a context of that many tokens, so that its end cannot move. td_request_validate's errors. */
enum td_status td_kept_settle(struct td_request *requests, size_t n, uint32_t max_model_len,
                              struct td_err *err);

/* Whether it may go on with the model that is served: *served is that one, borrowed. TD_UNAVAILABLE. */
enum td_status td_kept_model(struct td_coord *coord, const struct td_record *record,
                             struct td_served **served, struct td_err *err);

/* How its jobs are begun again. */
struct td_kept_restore {
    struct td_coord *coord;
    struct td_served *served;
    uint32_t key;
    bool raw_text;
    td_job_event_fn *on_event; /* td_candidate.user comes with it */
};
/* Tells all parts again, and those that have not ended go on. Parts that could not be have an end with that error in the journal, and
 * those that could are left open in `list` [td_record_n_parts]. td_coord_restore's errors. */
enum td_status td_kept_restore(const struct td_kept_restore *how, const struct td_stored *stored,
                               struct td_candidate *list, struct td_err *err);
/* None of its parts can go on: they end with an error in the journal. */
void td_kept_end(struct td_coord *coord, const struct td_stored *stored, const struct td_err *err);

#endif
