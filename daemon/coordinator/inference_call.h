/* One call of Inference.Generate or Inference.Tokenize, from its message to its end. Private to inference_*.c. Loop
 * thread; long messages are taken apart on libuv's pool. */
#ifndef TD_DAEMON_COORDINATOR_INFERENCE_CALL_H
#define TD_DAEMON_COORDINATOR_INFERENCE_CALL_H

#include "daemon/coordinator/coordinator.h"
#include "daemon/coordinator/inference_service.h"
#include "daemon/coordinator/service_metrics.h"

#include "proto/inference.pb-c.h"

struct td_inference_service {
    struct td_coord *coord;
    const struct td_auth *auth;        /* NULL: open */
    struct td_service_metrics metrics; /* of Generate */
};

struct td_inference_call {
    struct td_inference_service *service;
    struct td_grpc_stream *s; /* NULL: the call is over */
    enum td_rpc_id method;
    bool pending; /* text work is under way: its end frees the call if need be */
    uv_work_t work;
    struct td_bytes raw; /* the request while it is unpacked on the pool; the reply of Tokenize */
    struct td_err err;
    enum td_status status;            /* of the work */
    ProtobufCMessage *request;        /* owned */
    struct td_served *served;         /* retained */
    struct td_chat_message *messages; /* owned */
    struct td_ids ids;

    /* Generate */
    struct td_job *job; /* NULL: not begun, or ended */
    struct td_service_times times;
    bool counted; /* its end was */
    bool wants_logprobs;
    bool ended;             /* the job has; what is left is in the backlog */
    struct td_err end_err;  /* status TD_OK: it ended well */
    struct td_ids echo;     /* prompt ids for the first event */
    struct td_bytes packed; /* one event */
    struct td_bytes
        backlog; /* events that the client did not take yet: length (uint32_t) and bytes of each */
};

/* The handler's callbacks; `user` is the service. */
enum td_status td_inference_call_open_generate(void *user, struct td_grpc_stream *s,
                                               struct td_err *err);
enum td_status td_inference_call_open_tokenize(void *user, struct td_grpc_stream *s,
                                               struct td_err *err);
void td_inference_call_message(void *user, struct td_grpc_stream *s, struct td_str message);
void td_inference_call_closed(void *user, struct td_grpc_stream *s, enum td_grpc_code code);
/* Ends the call with an error. */
void td_inference_call_fail(struct td_inference_call *call, const struct td_err *err);

/* ---- inference_generate.c ---- */

/* The prompt's ids are there. Ends the call on an error. */
void td_inference_generate_begin(struct td_inference_call *call);
void td_inference_generate_drain(void *user, struct td_grpc_stream *s);
void td_inference_generate_count(struct td_inference_call *call, enum td_status status);

#endif
