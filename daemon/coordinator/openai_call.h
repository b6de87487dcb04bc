/* One request of /v1/chat/completions or /v1/completions from its body to the end of its answer. Private to
 * openai_*.c of the coordinator. Loop thread; a long body is parsed on libuv's pool. */
#ifndef TD_DAEMON_COORDINATOR_OPENAI_CALL_H
#define TD_DAEMON_COORDINATOR_OPENAI_CALL_H

#include "daemon/api/http1.h"
#include "daemon/api/openai.h"
#include "daemon/coordinator/candidates.h"
#include "daemon/coordinator/kept.h"
#include "daemon/coordinator/service_metrics.h"

struct td_auth;
struct td_openai_call;
struct td_openai_service;

/* What the requests of one endpoint share; outlives them. */
struct td_openai_endpoint {
    struct td_openai_service *service;
    struct td_coord *coord;
    enum td_openai_kind kind;
    struct td_service_metrics metrics;
};

struct td_openai_service {
    struct td_coord *coord;
    const struct td_auth *auth; /* NULL: open */
    struct td_openai_endpoint chat, completion;
    struct td_kept *kept; /* those whose end the journal waits for */
};

struct td_openai_token {
    struct td_sampled sampled;
    bool is_first; /* of a prompt: it has no log probability */
    uint32_t text_offset;
};

struct td_openai_tokens {
    struct td_openai_token *item; /* owned */
    size_t n, cap;
    uint32_t n_chars; /* code points of all that ever were in it */
};

/* One candidate of one prompt, and what of it is not written yet. */
struct td_openai_part {
    struct td_openai_call *call;
    struct td_candidate *candidate; /* borrows: of the call */
    uint32_t index;                 /* of the choice in a stream */
    uint32_t choice;                /* among the candidates of its prompt */
    struct td_service_times times;
    struct td_bytes text;
    struct td_openai_tokens tokens; /* only with logprobs */
    bool echoed;                    /* the prompt stands in front of text and tokens */
    bool role_sent, finish_sent;
    uint32_t n_taken; /* output tokens whose text came */
    uint32_t n_sent;  /* of them, written to the client */
    uint32_t n_known; /* of them, a client that came back has had them: they are not written */
    enum td_finish finish;
    uint32_t n_prompt, n_cached, n_output; /* at the end */

    /* What all candidates show of their prompt lies with the first, which alone computes it. */
    struct td_ids ids;                     /* the prompt, until its request is made */
    struct td_ids prompt;                  /* kept where the answer shows it */
    struct td_openai_tokens prompt_tokens; /* with their log probabilities, the first without */
    bool has_begun;                        /* the answer: the prompt is whole */
};

struct td_openai_call {
    struct td_openai_endpoint *endpoint;
    struct td_http_request *http; /* NULL: answered, or the client is gone */
    bool pending; /* text work or the journal is under way: its end frees the call if need be */
    bool streaming, failed, counted;
    bool usage_sent;
    uint32_t key; /* which API key it brought, from 1; 0: the server is open */
    uint64_t start_ns;
    char id[TD_OPENAI_ID_BYTES];
    int64_t created;
    uv_work_t work;
    struct td_bytes body;        /* while it is parsed on the pool, and until it is kept */
    struct td_sampling defaults; /* the model's */
    bool has_defaults, parsed;
    struct td_openai_request request; /* parsed */
    struct td_openai_error error;     /* parse failed, or failed */
    struct td_served *served;         /* retained */
    struct td_chat_message *messages; /* owned */
    struct td_openai_part
        *parts; /* owned, [n_parts]: the candidates of the first prompt, of the second, ... */
    struct td_candidate *candidates; /* owned, [n_parts], in the same order */
    size_t n_parts, n_prompts, n_encoded;
    struct td_request *requests; /* owned, [n_prompts]: made, and not submitted yet */

    /* ---- what is in the journal ---- */
    uint64_t number;    /* 0: it is not, or has ended there */
    bool has_ids;       /* the events of its stream have ids by which a client may come back */
    bool is_repeatable; /* its client named an idempotency key: it outlives the connection */
    bool retelling;     /* what comes was told before */
    bool searched;      /* it was looked for twice */
    struct td_err retold_err; /* with which it ended then; TD_OK: it did not */
    struct td_bytes idempotency;
    struct td_bytes after; /* the id of the last event that the client has; empty: it has nothing */
    struct td_kept kept;
};

/* Takes the request over. */
void td_openai_call_start(struct td_openai_endpoint *endpoint, struct td_http_request *http);
/* One without anything in it. NULL without memory; `http` (NULL: there is none) was answered then. */
struct td_openai_call *td_openai_call_new(struct td_openai_endpoint *endpoint,
                                          struct td_http_request *http);
/* The parts of a request that was parsed, for the model in call->served. */
enum td_status td_openai_call_make_parts(struct td_openai_call *call, struct td_err *err);
enum td_status td_openai_call_parse(struct td_openai_call *call, struct td_str body);
/* Everything that came of its body is let go. */
void td_openai_call_reset(struct td_openai_call *call);
/* Ends it with an error: as a whole answer, or as the stream's last event. What is open of it ends with that too. */
void td_openai_call_fail(struct td_openai_call *call, const struct td_err *err);
/* Answers with call->error; nothing was begun. */
void td_openai_call_refuse(struct td_openai_call *call);
/* Parts were begun: the answer begins, where it is a stream, and is written as far as it is there. */
void td_openai_call_answer(struct td_openai_call *call);
/* The client is another from now on, or none: nothing that runs for it is left, and the journal is told nothing. */
void td_openai_call_supersede(struct td_openai_call *call);
void td_openai_call_free_when_over(struct td_openai_call *call);
/* For td_coord_submit and td_coord_restore; `user` is the part. */
void td_openai_call_on_event(struct td_job *job, const struct td_job_event *event, void *user);

/* ---- openai_submit.c: from ids to jobs, through the journal ---- */

void td_openai_random(uint64_t *words, size_t n);
/* The ids of all prompts are there. */
void td_openai_submit(struct td_openai_call *call);

/* ---- openai_resume.c: requests of before ---- */

/* The request by that id, if it is of this call's key, becomes this one. */
void td_openai_resume_find(struct td_openai_call *call, struct td_str id);
/* GET /v1/requests/{id}/stream; `service` is the td_openai_service. */
void td_openai_resume_handle(struct td_http_request *http, void *service);

/* ---- openai_position.c: how far a client has come ---- */

/* The id of an event: for each part how many tokens' text was written, and whether its end was. Replaces `out`. TD_NO_MEMORY. */
enum td_status td_openai_position_write(const struct td_openai_call *call, struct td_bytes *out);
/* What such an id says becomes the state of the parts, before anything is written. TD_INVALID: it is of no such request. */
enum td_status td_openai_position_read(struct td_openai_call *call, struct td_str id,
                                       struct td_err *err);

/* ---- openai_limits.c: what the server allows ---- */

/* Whether all parts may begin; their requests are made. On a refusal Retry-After is set. */
enum td_status td_openai_limits_admit(struct td_openai_call *call, struct td_err *err);
/* The x-ratelimit-* headers of a server that limits its keys; before the answer begins. */
void td_openai_limits_tell(struct td_openai_call *call);
/* uv_hrtime at which the request's own time is up; 0: it has no limit. */
uint64_t td_openai_limits_deadline_ns(const struct td_openai_call *call);

/* ---- openai_reply.c: from parts to bodies ---- */

/* Keeps a job's event in its part. TD_NO_MEMORY. */
enum td_status td_openai_reply_take(struct td_openai_part *part, const struct td_job_event *event);
/* The whole answer. The HTTP request is over on TD_OK. */
enum td_status td_openai_reply_respond(struct td_openai_call *call);
/* Writes what the client takes. True when the stream was written to its end: the HTTP request is over. */
bool td_openai_reply_pump(struct td_openai_call *call);

#endif
