/* Open jobs carried over from a group that was lost to the next: who goes when, and who is suspected of having killed it. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/log.h"

enum {
    SUSPECT_DEATHS = 2, /* in a running step at so many deaths in a row: from now on alone */
    POISON_DEATHS = 3,  /* so many alone: it is the request */
    STARVED_TRIES =
        3, /* without memory for it so often, each 50 ms after the other: another group */
    STARVED_GROUPS = 2, /* so many groups later it is the request */
    CLEARED_TOKENS = 4, /* past where it was at the death: not this time */
    /* Who overtakes whom in the queue of rank 0 is not known here. */
    QUEUE_DISORDER = 16
};

static bool is_suspect(const struct td_job *j)
{
    return j->n_deaths >= SUSPECT_DEATHS;
}

enum td_status td_replay_send(struct td_job *j, struct td_err *err)
{
    struct td_coord *c = j->c;
    struct group *g = c->current;
    enum td_status s;

    if (g->state != TD_GROUP_READY)
        return TD_OK;
    s = td_request_validate(&j->request, j->served->spec->n_vocab, g->plan->max_model_len, err);
    s = s ? s : td_group_send_submit(g, &j->request, err);
    if (s == TD_PEER_LOST || s == TD_CANCELLED ||
        s == TD_BUSY) { /* rank 0 is gone or takes nothing */
        c->replay_settled = false;
        return TD_OK;
    }
    if (s)
        return s;
    j->group = g;
    j->is_held = false;
    j->sent_output = j->request.n_emitted;
    if (j->paused)
        td_group_send_pause(g, j->request.id);
    return TD_OK;
}

/* One that the new group cannot hold ends. */
static void send_again(struct td_job *j)
{
    struct td_err err;

    if (td_replay_send(j, &err))
        td_job_fail(j, &err);
}

static void hold(struct td_job *j, bool held)
{
    if (held == j->is_held)
        return;
    j->is_held = held;
    if (j->paused)
        return;
    if (held)
        td_group_send_pause(j->group, j->request.id);
    else
        td_group_send_resume(j->group, j->request.id);
}

/* The oldest suspect whose reader takes something: a paused one holds no place in the steps, and one on a group that leaves harms no
 * other. */
static struct td_job *next_suspect(const struct td_coord *c)
{
    for (struct td_job *j = c->first; j; j = j->next)
        if (is_suspect(j) && !j->paused && (!j->group || j->group == c->current))
            return j;
    return NULL;
}

void td_replay_turn(struct td_coord *c)
{
    if (c->current->state != TD_GROUP_READY || c->replay_settled)
        return;
    if (!c->alone)
        c->alone = next_suspect(c);
    if (c->alone) {
        for (struct td_job *j = c->first; j; j = j->next)
            if (j->group == c->current && j != c->alone)
                hold(j, true);
        if (!c->alone->group)
            send_again(c->alone); /* it may be gone afterwards */
        else
            hold(c->alone, false);
        return;
    }
    c->replay_settled = true;
    for (struct td_job *j = c->first, *next; j; j = next) {
        next = j->next;
        if (j->group)
            hold(j, false);
        else
            send_again(j);
    }
}

void td_replay_forget(struct td_job *j)
{
    if (j->c->alone == j)
        j->c->alone = NULL;
}

bool td_replay_starved(struct td_job *j, const struct td_err *err)
{
    struct group *g = j->group;
    struct td_coord *c = j->c;

    if (++j->n_starved > STARVED_TRIES + STARVED_GROUPS)
        return false;
    td_log_warn("no memory in the group for a request, which is tried again id=%llu generation=%u "
                "times=%u error=\"%s\"",
                (unsigned long long)j->request.id, g->generation, j->n_starved, err->cause);
    td_replay_forget(j);
    j->group = NULL;
    j->is_held = false;
    c->replay_settled = false;
    if (j->n_starved > STARVED_TRIES && g == c->current)
        td_group_lose(g, err);
    return true;
}

void td_replay_token(struct td_job *j)
{
    if (!j->n_deaths || j->request.n_emitted < j->death_output + CLEARED_TOKENS)
        return;
    j->n_deaths = j->n_alone_deaths = 0;
    td_replay_forget(j);
}

void td_replay_paused(struct td_job *j)
{
    td_replay_forget(j);
    j->c->replay_settled = j->c->replay_settled && !is_suspect(j);
}

static void died(struct td_job *j)
{
    j->n_deaths++;
    j->death_output = j->request.n_emitted;
}

/* Its group goes on without it. */
static void release(struct td_job *j)
{
    td_group_send_cancel(j->group, j->request.id);
    td_replay_forget(j);
    j->group = NULL;
    j->is_held = false;
    j->c->replay_settled = false;
}

uint32_t td_replay_move(struct group *old, bool all)
{
    struct td_coord *c = old->c;
    uint32_t n = 0;

    for (struct td_job *j = c->first; j; j = j->next)
        if (j->group == old && (all || j->is_held || j->request.n_emitted == j->sent_output)) {
            release(j);
            n++;
        }
    if (c->alone && c->alone->group == old) /* it ends there: the current group is everybody's */
        c->alone = NULL;
    return n;
}

uint32_t td_replay_count(const struct group *g)
{
    uint32_t n = 0;

    for (const struct td_job *j = g->c->first; j; j = j->next)
        n += j->group == g;
    return n;
}

/* Which jobs may have been in the step at which the group died: all that it gave a token, and of the others as many as there were
 * places left, in the order of the queue. Those that certainly were not have no death in a row. */
static void count_deaths(struct group *g)
{
    struct td_coord *c = g->c;
    uint32_t places = g->plan->max_num_seqs + QUEUE_DISORDER;

    for (struct td_job *j = c->first; j; j = j->next)
        if (j->group == g && j->request.n_emitted > j->sent_output)
            places -= places > 0;
    for (struct td_job *j = c->first; j; j = j->next) {
        bool has_run = j->group == g && j->request.n_emitted > j->sent_output;

        if (j->group && j->group != g)
            continue;
        if (has_run || (j->group && !j->paused && !j->is_held && places > 0)) {
            places -= !has_run;
            died(j);
        } else if (!is_suspect(j)) {
            j->n_deaths = 0;
        }
    }
}

bool td_replay_lost(struct group *g)
{
    struct td_coord *c = g->c;
    struct td_job *j = c->alone;
    bool was_alone = j && j->group == g;
    struct td_err err;

    if (was_alone) {
        died(j);
        if (++j->n_alone_deaths >= POISON_DEATHS) {
            td_err_set(&err, TD_POISON,
                       "the group of workers was lost %u times while it ran this request, %u of "
                       "them with nothing else: it is not tried again",
                       j->n_deaths, j->n_alone_deaths);
            td_log_error("request given up id=%llu deaths=%u", (unsigned long long)j->request.id,
                         j->n_deaths);
            td_job_fail(j, &err);
        }
    } else if (g->plan) {
        count_deaths(g);
    }
    if (was_alone || g == c->current)
        c->alone = NULL;
    c->replay_settled = false;
    for (j = c->first; j; j = j->next)
        if (j->group == g) {
            j->group = NULL;
            j->is_held = false;
        }
    return was_alone;
}
