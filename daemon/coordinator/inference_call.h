/* One call of Inference.Generate or Inference.Tokenize, from its message to its end. Private to inference_*.c. Loop
 * thread; long messages are taken apart on libuv's pool. */
#ifndef TD_DAEMON_COORDINATOR_INFERENCE_CALL_H
#define TD_DAEMON_COORDINATOR_INFERENCE_CALL_H

#include "daemon/coordinator/candidates.h"
#include "daemon/coordinator/inference_service.h"
#include "daemon/coordinator/kept.h"
#include "daemon/coordinator/service_metrics.h"

#include "proto/inference.pb-c.h"

struct td_inference_service {
    struct td_coord *coord;
    const struct td_auth *auth;        /* NULL: open */
    struct td_service_metrics metrics; /* of Generate */
    struct td_kept *kept;              /* those whose end the journal waits for */
};

/* One candidate's way to the client. */
struct td_inference_part {
    struct td_inference_call *call;
    struct td_service_times times;
    struct td_bytes held; /* events that must wait: length (uint32_t) and bytes of each */
};

/* Log probabilities of the prompt that are not told yet. */
enum { TD_INFERENCE_PROMPT_TOKENS = 16 }; /* in one event at most */
struct td_inference_prompt {
    uint32_t position; /* of the first */
    uint32_t n;
    struct td_sampled token[TD_INFERENCE_PROMPT_TOKENS];
};

/* "gen-<32 hex>" */
enum { TD_INFERENCE_ID_BYTES = 40 };

struct td_inference_call {
    struct td_inference_service *service;
    struct td_grpc_stream *s; /* NULL: the call is over, or its client is gone */
    enum td_rpc_id method;
    bool pending; /* text work or the journal is under way: its end frees the call if need be */
    uv_work_t work;
    struct td_bytes raw; /* the request while it is unpacked on the pool; the reply of Tokenize */
    struct td_err err;
    enum td_status status;            /* of the work */
    ProtobufCMessage *request;        /* owned */
    struct td_served *served;         /* retained */
    struct td_chat_message *messages; /* owned */
    struct td_ids ids;
    uint64_t start_ns; /* when the call came, uv_hrtime */
    uint32_t key;      /* which API key it brought, from 1; 0: the service is open */

    /* Generate, and Resume once its request was found */
    uint32_t n, best_of;
    struct td_candidate *candidates; /* owned, [best_of]; NULL: not begun */
    struct td_inference_part *parts; /* owned, [best_of], in the same order */
    uint32_t n_open;                 /* candidates that have not ended */
    bool counted;                    /* its end was */
    bool wants_logprobs;
    struct td_inference_prompt
        *prompt;              /* owned; NULL: its log probabilities are not wanted, or told */
    bool ended;               /* all that comes lies in the backlog */
    struct td_err end_err;    /* status TD_OK: it ended well */
    struct td_ids echo;       /* prompt ids for the first event */
    Tensord__V1__Usage usage; /* of the candidates that have ended */
    struct td_bytes packed, addition; /* one event, and what is known of it only when it is sent */
    struct td_bytes
        backlog; /* events that the client did not take yet, as in td_inference_part.held */

    /* ---- what is in the journal ---- */
    struct td_request made; /* owned; not submitted yet */
    bool has_made;
    char id
        [TD_INFERENCE_ID_BYTES]; /* told with the first event; "" when that was, or it is not kept */
    uint64_t number;             /* 0: it is not, or has ended there */
    bool is_repeatable;  /* its client named an idempotency key: it outlives the connection */
    bool retelling;      /* what comes was told before */
    bool searched;       /* it was looked for twice */
    struct td_ids known; /* output tokens that the client has of each choice */
    struct td_kept kept;
};

/* The handler's callbacks; `user` is the service. */
enum td_status td_inference_call_open_generate(void *user, struct td_grpc_stream *s,
                                               struct td_err *err);
enum td_status td_inference_call_open_tokenize(void *user, struct td_grpc_stream *s,
                                               struct td_err *err);
void td_inference_call_message(void *user, struct td_grpc_stream *s, struct td_str message);
void td_inference_call_closed(void *user, struct td_grpc_stream *s, enum td_grpc_code code);
enum td_status td_inference_call_open_resume(void *user, struct td_grpc_stream *s,
                                             struct td_err *err);
/* One without a client. NULL without memory. */
struct td_inference_call *td_inference_call_new(struct td_inference_service *service,
                                                struct td_grpc_stream *s, enum td_rpc_id method);
/* Ends the call with an error. */
void td_inference_call_fail(struct td_inference_call *call, const struct td_err *err);
void td_inference_call_free_when_over(struct td_inference_call *call);

/* ---- inference_request.c ---- */

/* Everything but prompt and salt, the call's own fields too. TD_INVALID by the name of the message's field. */
enum td_status td_inference_request_fill(struct td_inference_call *call, struct td_request *r,
                                         struct td_err *err);

/* ---- inference_generate.c ---- */

/* The prompt's ids are there. Ends the call on an error. */
void td_inference_generate_begin(struct td_inference_call *call);
/* The request that call->request tells, in call->made, and the parts for its answers. */
enum td_status td_inference_generate_make(struct td_inference_call *call, struct td_err *err);
/* For td_coord_submit and td_coord_restore; `user` is the part. */
void td_inference_generate_on_event(struct td_job *job, const struct td_job_event *event,
                                    void *user);
/* Writes what is there, and waits for more. */
void td_inference_generate_tell(struct td_inference_call *call);
/* Everything that was made of the request. */
void td_inference_generate_forget(struct td_inference_call *call);
bool td_inference_generate_is_running(const struct td_inference_call *call);
/* Its client is gone, and it goes on. */
void td_inference_generate_detach(struct td_inference_call *call);
void td_inference_generate_drain(void *user, struct td_grpc_stream *s);
/* The call is over: cancels what is open. */
void td_inference_generate_stop(struct td_inference_call *call);
void td_inference_generate_free(struct td_inference_call *call);
void td_inference_generate_count(struct td_inference_call *call, enum td_status status);

/* ---- inference_resume.c: requests of before ---- */

/* The request by that id, if it is of this call's key, becomes this one. */
void td_inference_resume_find(struct td_inference_call *call, struct td_str id);
/* The request of a Resume is there. */
void td_inference_resume_begin(struct td_inference_call *call);

/* ---- inference_reply.c: from events to messages ---- */

/* Sends or keeps a job's event that tells no failure. Anything but TD_OK: the stream is broken. */
enum td_status td_inference_reply_take(struct td_inference_part *part,
                                       const struct td_job_event *event);
/* Sends what the client takes; ends the call when all is sent. */
void td_inference_reply_pump(struct td_inference_call *call);

#endif
