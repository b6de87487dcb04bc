/* A coordinator made of lists, in the place of the real one: a test looks at what was submitted and says what comes
 * back, token by token. It defines the functions of coordinator.h that the services call, so that the linker takes none
 * of the real one's objects. Included by one test file per executable. */
#ifndef TD_TESTS_FAKE_COORD_H
#define TD_TESTS_FAKE_COORD_H

#include "../check.h"

#include "daemon/api/metrics.h"
#include "daemon/coordinator/coordinator.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { FAKE_MAX = 64 };

struct td_job {
    struct td_request request;
    td_job_event_fn *on_event;
    void *user;
    uint32_t n_output;
    float logprob; /* of each of its tokens */
    uint32_t key;
    uint64_t deadline_ns;
    uint32_t n_pauses; /* ever */
    bool paused;
    bool ended;
};

struct fake_encode {
    struct td_coord_encode what;
    td_coord_encode_fn *done;
    void *user;
};

struct td_coord {
    uv_loop_t *loop;
    struct td_metrics *metrics;
    struct td_served served;
    bool ready;
    size_t max_jobs;
    uint32_t retry_after_s;    /* > 0: td_coord_admit refuses */
    struct td_coord_ask asked; /* last */
    struct td_coord_limits limits;
    struct td_coord_standing standing;
    size_t n_jobs, n_cancelled; /* ever */
    struct td_job *jobs[FAKE_MAX];
    size_t n_encodes; /* under way */
    struct fake_encode encodes[FAKE_MAX];
};

static inline struct td_coord *fake_coord_open(uv_loop_t *loop)
{
    static char name[] = "m";
    struct td_coord *c = calloc(1, sizeof(*c));
    struct td_bytes json = {0};
    char buf[4096];
    FILE *f = fopen(TD_SOURCE "/tests/models/tensord-tiny/tokenizer.json", "r");
    assert_non_null(f);
    for (size_t n; (n = fread(buf, 1, sizeof(buf), f)) > 0;) {
        assert_int_equal(td_bytes_append(&json, buf, n), TD_OK);
    }
    fclose(f);
    assert_int_equal(td_tokenizer_open_json(td_bytes_str(&json), TD_STR(""), &c->served.tok, NULL),
                     TD_OK);
    td_bytes_deinit(&json);
    assert_int_equal(td_breakers_open(c->served.tok, &c->served.breakers, NULL), TD_OK);
    assert_int_equal(td_metrics_open(&c->metrics, NULL), TD_OK);
    c->loop = loop;
    c->served.names[0] = name;
    c->served.n_names = 1;
    c->served.refs = 1;
    c->served.max_model_len = 100;
    td_sampling_default(&c->served.defaults);
    td_err_set(&c->served.chat_err, TD_NOT_FOUND, "there is no template");
    c->max_jobs = FAKE_MAX;
    return c;
}

static inline void fake_coord_close(struct td_coord *c)
{
    for (size_t i = 0; i < c->n_jobs; i++) {
        assert_true(c->jobs[i]->ended); /* every job was ended or cancelled */
        td_request_deinit(&c->jobs[i]->request);
        free(c->jobs[i]);
    }
    assert_int_equal(c->n_encodes, 0);
    assert_int_equal(c->served.refs, 1); /* every call gave the model back */
    td_breakers_close(c->served.breakers);
    td_tokenizer_close(c->served.tok);
    td_metrics_close(c->metrics);
    free(c);
}

/* The oldest text under way becomes `n` ids. */
static inline void fake_coord_encoded(struct td_coord *c, size_t n)
{
    assert_true(c->n_encodes > 0);
    struct fake_encode e = c->encodes[0];
    struct td_ids ids = {0};
    memmove(c->encodes, c->encodes + 1, --c->n_encodes * sizeof(e));
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(td_ids_append(&ids, i), TD_OK);
    }
    e.done(TD_OK, &ids, NULL, e.user);
    td_ids_deinit(&ids);
    td_served_release(e.what.served);
}

/* One token with that text, or the end. */
static inline void fake_coord_emit(struct td_job *j, const char *text, enum td_finish finish,
                                   const struct td_err *error)
{
    struct td_sampled token = {.id = 300, .logprob = j->logprob};
    const struct td_job_event event = {
        .index = j->n_output,
        .has_token = error == NULL,
        .token = &token,
        .text = td_str_from(text),
        .finish = finish,
        .error = error,
        .n_prompt = j->request.n_prompt,
        .n_output = error == NULL ? j->n_output + 1 : j->n_output,
    };
    assert_false(j->ended);
    j->n_output = event.n_output;
    j->ended = finish != TD_FINISH_NONE;
    j->on_event(j, &event, j->user);
}

/* The log probability of the prompt's token at `position`, which stands for it: -position. */
static inline void fake_coord_emit_prompt(struct td_job *j, uint32_t position)
{
    struct td_sampled token = {.id = j->request.prompt[position],
                               .logprob = -(float)position,
                               .rank = position + 1,
                               .n_top = (uint32_t)j->request.prompt_logprobs};
    const struct td_job_event event = {
        .index = position, .is_prompt = true, .token = &token, .text = TD_STR("")};
    assert_false(j->ended);
    for (uint32_t i = 0; i < token.n_top; i++) {
        token.top[i].id = i;
        token.top[i].logprob = -(float)i;
    }
    j->on_event(j, &event, j->user);
}

/* ---- coordinator.h ---- */

enum td_status td_coord_find_model(struct td_coord *c, struct td_str name,
                                   struct td_served **served, struct td_err *err)
{
    if (name.len > 0 && !td_str_eq(name, TD_STR("m"))) {
        return td_err_set(err, TD_NOT_FOUND, "there is only 'm'");
    }
    *served = &c->served;
    return TD_OK;
}

void td_served_retain(struct td_served *s)
{
    s->refs++;
}

void td_served_release(struct td_served *s)
{
    if (s != NULL) {
        assert_true(s->refs > 1);
        s->refs--;
    }
}

enum td_status td_coord_encode(struct td_coord *c, const struct td_coord_encode *what,
                               td_coord_encode_fn *done, void *user, struct td_err *err)
{
    (void)err;
    assert_true(c->n_encodes < FAKE_MAX);
    td_served_retain(what->served);
    c->encodes[c->n_encodes++] = (struct fake_encode){*what, done, user};
    return TD_OK;
}

enum td_status td_coord_admit(struct td_coord *c, const struct td_coord_ask *ask,
                              uint32_t *retry_after_s, struct td_err *err)
{
    c->asked = *ask;
    if (c->retry_after_s > 0) {
        *retry_after_s = c->retry_after_s;
        return td_err_set(err, TD_BUSY, "key %u asks too much", ask->key);
    }
    return TD_OK;
}

const struct td_coord_limits *td_coord_limits(const struct td_coord *c)
{
    return &c->limits;
}

void td_coord_standing(const struct td_coord *c, uint32_t key, struct td_coord_standing *out)
{
    (void)key;
    *out = c->standing;
}

enum td_status td_coord_submit(struct td_coord *c, const struct td_coord_submit *what,
                               struct td_job **job, struct td_err *err)
{
    struct td_request *request = what->request;
    if (c->n_jobs >= c->max_jobs) {
        return td_err_set(err, TD_BUSY, "%zu requests are open", c->n_jobs);
    }
    if (request->n_prompt >= 100) {
        return td_err_set(err, TD_TOO_LARGE, "prompt has %u tokens", request->n_prompt);
    }
    struct td_job *j = calloc(1, sizeof(*j));
    j->request = *request;
    j->logprob = -0.5f;
    td_request_init(request);
    j->key = what->key;
    j->deadline_ns = what->deadline_ns;
    j->on_event = what->on_event;
    j->user = what->user;
    c->jobs[c->n_jobs++] = j;
    *job = j;
    return TD_OK;
}

static struct td_coord *fake_coord_current; /* td_job_cancel knows only its job */

enum td_status td_coord_restore(struct td_coord *c, const struct td_coord_submit *what,
                                const struct td_stored_part *part, struct td_job **job,
                                struct td_err *err)
{
    (void)c, (void)what, (void)part, (void)job;
    return td_err_set(err, TD_UNSUPPORTED, "this coordinator keeps nothing");
}

struct td_journal *td_coord_journal(struct td_coord *c)
{
    (void)c;
    return NULL;
}

void td_job_give_up(struct td_job *j, const struct td_err *err)
{
    (void)err;
    td_job_cancel(j);
}

void td_job_cancel(struct td_job *job)
{
    assert_false(job->ended);
    job->ended = true;
    fake_coord_current->n_cancelled++;
}

void td_job_pause(struct td_job *job, bool paused)
{
    assert_false(job->ended);
    job->n_pauses += paused && !job->paused;
    job->paused = paused;
}

uint64_t td_job_seed(const struct td_job *job)
{
    return job->request.sampling.seed;
}

const char *td_group_state_name(enum td_group_state state)
{
    return state == TD_GROUP_READY ? "ready" : "loading";
}

void td_coord_status(struct td_coord *c, struct td_coord_status *out)
{
    *out = (struct td_coord_status){.state = c->ready ? TD_GROUP_READY : TD_GROUP_LOADING};
}

bool td_coord_ready(const struct td_coord *c)
{
    return c->ready;
}

bool td_coord_is_well(const struct td_coord *c)
{
    return c->ready;
}

uv_loop_t *td_coord_loop(struct td_coord *c)
{
    return c->loop;
}

struct td_metrics *td_coord_metrics(struct td_coord *c)
{
    return c->metrics;
}

#endif
