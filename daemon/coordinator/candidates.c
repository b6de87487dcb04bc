#include "daemon/coordinator/candidates.h"

enum td_status td_candidates_count(const struct td_served *served, const struct td_request *request,
                                   uint32_t n, struct td_coord_ask *ask, struct td_err *err)
{
    struct td_request r = *request; /* borrows */
    enum td_status status = TD_OK;
    r.max_tokens = r.max_tokens > 0 ? r.max_tokens : UINT32_MAX;
    if (served->max_model_len > 0) { /* else it never was ready: td_coord_admit says so */
        status = td_request_validate(&r, UINT32_MAX, served->max_model_len, err);
    }
    ask->n_jobs += n;
    ask->n_tokens += n * ((uint64_t)r.n_prompt + r.max_tokens);
    return status;
}

static enum td_status admit(struct td_coord *coord, const struct td_coord_submit *what, uint32_t n,
                            struct td_err *err)
{
    struct td_coord_ask ask = {.key = what->key};
    uint32_t retry_after_s;
    enum td_status status = td_candidates_count(what->served, what->request, n, &ask, err);
    return status == TD_OK ? td_coord_admit(coord, &ask, &retry_after_s, err) : status;
}

/* Number `i`, of a copy unless it is the last one. */
static enum td_status submit_one(struct td_coord *coord, const struct td_coord_submit *what,
                                 struct td_candidate *list, uint32_t i, uint32_t n,
                                 struct td_err *err)
{
    struct td_coord_submit one = *what;
    struct td_request copy;
    td_request_init(&copy);
    if (i + 1 < n) {
        if (td_request_copy(what->request, &copy) != TD_OK) {
            return td_err_set(err, TD_NO_MEMORY, "no memory for a prompt of %u ids",
                              what->request->n_prompt);
        }
        one.request = &copy;
    }
    one.request->sampling.choice = i;
    if (i > 0) {
        one.request->prompt_logprobs = -1;
    }
    one.admitted = what->admitted || n > 1;
    one.part = what->part + i;
    one.user = list[i].user;
    enum td_status status = td_coord_submit(coord, &one, &list[i].job, err);
    td_request_deinit(&copy);
    return status;
}

void td_candidates_prepare(struct td_request *request, uint32_t n, uint32_t n_wanted)
{
    if (n > n_wanted && request->sampling.n_logprobs < 0) {
        request->sampling.n_logprobs = 0;
    }
}

enum td_status td_candidates_submit(struct td_coord *coord, const struct td_coord_submit *what,
                                    struct td_candidate *list, uint32_t n, struct td_err *err)
{
    enum td_status status = TD_OK;
    if (n > 1 && !what->admitted) {
        status = admit(coord, what, n, err);
    }
    for (uint32_t i = 0; i < n && status == TD_OK; i++) {
        status = submit_one(coord, what, list, i, n, err);
    }
    return status;
}

void td_candidates_event(struct td_candidate *candidate, const struct td_job_event *event)
{
    if (event->has_token) {
        candidate->logprob += (double)event->token->logprob;
    }
    if (event->finish != TD_FINISH_NONE) {
        candidate->job = NULL;
        candidate->n_output = event->n_output;
    }
}

void td_candidates_cancel(struct td_candidate *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct td_job *job = list[i].job;
        list[i].job = NULL;
        if (job != NULL) {
            td_job_cancel(job);
        }
    }
}

void td_candidates_give_up(struct td_candidate *list, size_t n, const struct td_err *err)
{
    for (size_t i = 0; i < n; i++) {
        struct td_job *job = list[i].job;
        list[i].job = NULL;
        if (job != NULL) {
            td_job_give_up(job, err);
        }
    }
}

static double worth(const struct td_candidate *c)
{
    return c->logprob / (c->n_output > 0 ? c->n_output : 1);
}

uint32_t td_candidates_place(const struct td_candidate *list, uint32_t n, uint32_t i)
{
    const double mine = worth(&list[i]);
    uint32_t place = 0;
    for (uint32_t k = 0; k < n; k++) {
        place += worth(&list[k]) > mine || (worth(&list[k]) == mine && k < i);
    }
    return place;
}
