/* Who is accepted: the limits of a key, the bound of the queue, and what is told to those who are turned away. */
#include "daemon/coordinator/coord_impl.h"

const char *td_coord_refusal_name(enum td_refusal refusal)
{
    static const char *const names[TD_N_REFUSALS] = {"not_ready", "draining", "queue",
                                                     "concurrency", "tokens"};

    return names[refusal];
}

const struct td_coord_limits *td_coord_limits(const struct td_coord *c)
{
    return &c->p.limits;
}

void td_coord_standing(const struct td_coord *c, uint32_t key, struct td_coord_standing *out)
{
    uint64_t now = uv_hrtime();

    out->n_open = td_quota_n_open(&c->quota, key);
    /* A key's own requests end among all others. */
    out->requests_reset_s = out->n_open ? td_endrate_wait_s(&c->endrate, c->n_open, now) : 0;
    out->tokens_left = td_quota_tokens(&c->quota, key, now, &out->tokens_reset_ns);
}

static const char *whose(uint32_t key)
{
    return key ? "this API key" : "all clients together";
}

static enum td_status refuse(struct td_coord *c, enum td_refusal why, uint32_t wait_s,
                             uint32_t *retry_after_s)
{
    c->n_refused[why]++;
    *retry_after_s = wait_s;
    return why == TD_REFUSAL_NOT_READY || why == TD_REFUSAL_DRAINING ? TD_UNAVAILABLE : TD_BUSY;
}

static enum td_status check_key(struct td_coord *c, const struct td_coord_ask *ask,
                                uint32_t *retry_after_s, struct td_err *err)
{
    const struct td_coord_limits *l = &c->p.limits;
    uint64_t now = uv_hrtime(), wait_ns = 0, full_ns;
    uint32_t n_open = td_quota_n_open(&c->quota, ask->key), wait_s;

    switch (td_quota_check(&c->quota, ask->key, ask->n_jobs, ask->n_tokens, now, &wait_ns)) {
    case TD_QUOTA_FITS:
        break;
    case TD_QUOTA_NEVER:
        return td_err_set(
            err, TD_INVALID,
            "%u prompts or choices at once, expected at most %u: as many requests of %s "
            "may be open (--max-concurrency-per-key)",
            ask->n_jobs, l->max_open_per_key, whose(ask->key));
    case TD_QUOTA_CONCURRENCY:
        /* One of the key's own must end; it has this share of all that end. */
        wait_s = td_endrate_wait_s(&c->endrate, (double)c->n_open / n_open, now);
        td_err_set(err, TD_BUSY,
                   "%u requests of %s are open and %u more would be: the limit is %u at a time "
                   "(--max-concurrency-per-key), try again in %u s",
                   n_open, whose(ask->key), ask->n_jobs, l->max_open_per_key, wait_s);
        return refuse(c, TD_REFUSAL_CONCURRENCY, wait_s, retry_after_s);
    case TD_QUOTA_TOKENS:
        wait_s = (uint32_t)((wait_ns + 999999999u) / 1000000000u);
        td_err_set(
            err, TD_BUSY,
            "the request counts as %llu tokens, prompt and max_tokens, and %llu are left of %s: "
            "the limit is %u tokens per minute (--max-tokens-per-minute-per-key), try again in "
            "%u s",
            (unsigned long long)ask->n_tokens,
            (unsigned long long)td_quota_tokens(&c->quota, ask->key, now, &full_ns),
            whose(ask->key), l->tokens_per_minute_per_key, wait_s);
        return refuse(c, TD_REFUSAL_TOKENS, wait_s, retry_after_s);
    }
    return TD_OK;
}

enum td_status td_coord_admit(struct td_coord *c, const struct td_coord_ask *ask,
                              uint32_t *retry_after_s, struct td_err *err)
{
    bool drains = c->drain.is_on && c->current->state == TD_GROUP_READY;
    uint32_t max_open, n_waiting, wait_s;
    enum td_status s;

    if (!td_coord_accepts(c)) {
        td_err_set(err, TD_UNAVAILABLE, "the model is not ready: %s",
                   c->stopping ? "the server is stopping"
                   : drains    ? "the server is draining"
                               : td_group_state_name(c->current->state));
        return refuse(c, drains ? TD_REFUSAL_DRAINING : TD_REFUSAL_NOT_READY, 1, retry_after_s);
    }
    max_open = c->p.limits.max_queue + c->current->plan->max_num_seqs;
    if (ask->n_jobs > max_open)
        return td_err_set(err, TD_INVALID,
                          "%u prompts or choices at once, expected at most %u: %u run at a time "
                          "(--max-num-seqs) and %u may wait (--max-queue)",
                          ask->n_jobs, max_open, c->current->plan->max_num_seqs,
                          c->p.limits.max_queue);
    s = check_key(c, ask, retry_after_s, err);
    if (s || c->n_open <= max_open - ask->n_jobs)
        return s;
    /* Until all who wait now have gone: who comes back earlier finds the queue as full. */
    n_waiting =
        c->n_open > c->current->plan->max_num_seqs ? c->n_open - c->current->plan->max_num_seqs : 1;
    wait_s = td_endrate_wait_s(&c->endrate, n_waiting, uv_hrtime());
    td_err_set(err, TD_BUSY, "%u requests are open: expected at most %u, try again in %u s",
               c->n_open, max_open, wait_s);
    return refuse(c, TD_REFUSAL_QUEUE, wait_s, retry_after_s);
}
