/* One request of /v1/chat/completions or /v1/completions from its body to the end of its answer. Private to
 * openai_*.c of the coordinator. Loop thread; a long body is parsed on libuv's pool. */
#ifndef TD_DAEMON_COORDINATOR_OPENAI_CALL_H
#define TD_DAEMON_COORDINATOR_OPENAI_CALL_H

#include "daemon/api/http1.h"
#include "daemon/api/openai.h"
#include "daemon/coordinator/candidates.h"
#include "daemon/coordinator/service_metrics.h"

struct td_openai_call;

/* What the requests of one endpoint share; outlives them. */
struct td_openai_endpoint {
    struct td_coord *coord;
    enum td_openai_kind kind;
    struct td_service_metrics metrics;
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
    enum td_finish finish;
    uint32_t n_prompt, n_cached, n_output; /* at the end */

    /* What all candidates show of their prompt lies with the first, which alone computes it. */
    struct td_ids ids;                     /* the prompt, until it is submitted */
    struct td_ids prompt;                  /* kept where the answer shows it */
    struct td_openai_tokens prompt_tokens; /* with their log probabilities, the first without */
    bool has_begun;                        /* the answer: the prompt is whole */
};

struct td_openai_call {
    struct td_openai_endpoint *endpoint;
    struct td_http_request *http; /* NULL: answered, or the client is gone */
    bool pending;                 /* text work is under way: its end frees the call if need be */
    bool streaming, failed;
    uint32_t key; /* which API key it brought, from 1; 0: the server is open */
    uint64_t start_ns;
    char id[TD_OPENAI_ID_BYTES];
    int64_t created;
    uv_work_t work;
    struct td_bytes body;        /* while it is parsed on the pool */
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
};

/* Takes the request over. */
void td_openai_call_start(struct td_openai_endpoint *endpoint, struct td_http_request *http);

/* ---- openai_limits.c: what the server allows ---- */

/* Whether all parts may begin; their ids are there. On a refusal Retry-After is set. */
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
