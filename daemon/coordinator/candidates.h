/* The candidates of one prompt: jobs of the same request that differ by the number of their choice, accepted together or not
 * at all, of which the best may be taken. What the services for HTTP and gRPC share. Loop thread; knows no API. */
#ifndef TD_DAEMON_COORDINATOR_CANDIDATES_H
#define TD_DAEMON_COORDINATOR_CANDIDATES_H

#include "daemon/coordinator/coordinator.h"

/* One of them. Zeroed and given its user before it is submitted. */
struct td_candidate {
    struct td_job *job; /* NULL: not begun, or ended */
    void *user;         /* what its events bring */
    double logprob;     /* sum over its tokens */
    uint32_t n_output;  /* at its end */
};

/* Adds to the ask what `n` candidates of `request` count as. Its prompt is looked at, and everything else that is filled in
 * already; max_tokens 0 stands for all that the context holds. TD_TOO_LARGE and TD_INVALID: no waiting would help. */
enum td_status td_candidates_count(const struct td_served *served, const struct td_request *request,
                                   uint32_t n, struct td_coord_ask *ask, struct td_err *err);
/* What `n` candidates need to be compared where fewer are wanted: the log probabilities of their own tokens. Before they are
 * submitted, or kept. */
void td_candidates_prepare(struct td_request *request, uint32_t n, uint32_t n_wanted);
/* Submits what->request once for each of list [n]; the events of each bring its own user instead of what->user, and its part is
 * its place behind what->part. Only the first computes the log probabilities of the prompt. Takes the request on success;
 * after a failure some may be open: td_candidates_cancel. Errors as td_coord_submit's. */
enum td_status td_candidates_submit(struct td_coord *coord, const struct td_coord_submit *what,
                                    struct td_candidate *list, uint32_t n, struct td_err *err);
/* To be told of every event, before all else: from the last one on its job is gone. */
void td_candidates_event(struct td_candidate *candidate, const struct td_job_event *event);
/* Cancels those that are open, of which the journal is told nothing. */
void td_candidates_cancel(struct td_candidate *list, size_t n);
/* Ends those that are open with an error, which is all that may be said of them later. */
void td_candidates_give_up(struct td_candidate *list, size_t n, const struct td_err *err);
/* The place of list[i] among the n that have ended, 0 for the best: by log probability per token, of equal ones the earlier. */
uint32_t td_candidates_place(const struct td_candidate *list, uint32_t n, uint32_t i);

#endif
