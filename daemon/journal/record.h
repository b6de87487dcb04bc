/* One request as the journal keeps it: what it was when it was accepted, with everything that generation depends on. Plain
 * data into bytes and back; pure. Never holds an API key, always holds the prompts. */
#ifndef TD_DAEMON_JOURNAL_RECORD_H
#define TD_DAEMON_JOURNAL_RECORD_H

#include "daemon/engine/request.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdint.h>

struct ProtobufCMessage;

enum {
    TD_RECORD_MAX_ID_BYTES = 128,
    TD_RECORD_MAX_IDEMPOTENCY_BYTES = 256,
    TD_RECORD_BODY_HASH_BYTES = 16,
    TD_RECORD_MODEL_HASH_BYTES = 32,
    TD_RECORD_MAX_PROMPTS = 2048,
    TD_RECORD_MAX_PARTS = 4096, /* prompts times choices */
    TD_RECORD_MAX_BYTES = 64 << 20
};

enum td_record_api {
    TD_RECORD_CHAT = 1,    /* /v1/chat/completions */
    TD_RECORD_COMPLETIONS, /* /v1/completions */
    TD_RECORD_GRPC         /* tensord.v1.Inference/Generate */
};

/* Part p * n_choices + c is answer c to prompt p: the request prompts[p] with sampling.choice c. */
struct td_record {
    struct td_str id;          /* public and unique, "cmpl-..."; printable ASCII without spaces */
    uint64_t owner;            /* stands for the API key that brought it; 0: the server is open */
    struct td_str idempotency; /* the client's key for trying again; empty: none */
    uint8_t body_hash[TD_RECORD_BODY_HASH_BYTES]; /* of the client's request body */
    struct td_str model_hash;                     /* 32 hex digits */
    enum td_record_api api;
    struct td_request *prompts; /* [n_prompts] */
    uint32_t n_prompts, n_choices;
    struct td_str service; /* what the service needs to write the answer again; opaque */
    int64_t accepted_ms;   /* Unix time */
    int64_t deadline_ms;   /* Unix time; 0: none */

    struct ProtobufCMessage *message; /* of a decoded record: owns what the slices show */
};

uint32_t td_record_n_parts(const struct td_record *r);
/* TD_INVALID or TD_TOO_LARGE naming the field that is out of its limits. */
enum td_status td_record_check(const struct td_record *r, struct td_err *err);
/* Replaces the content of `out`. td_record_check's errors, TD_TOO_LARGE over TD_RECORD_MAX_BYTES, TD_NO_MEMORY. */
enum td_status td_record_encode(const struct td_record *r, struct td_bytes *out,
                                struct td_err *err);
/* Any bytes. On success `out` owns all it shows (td_record_deinit). TD_CORRUPT, TD_NO_MEMORY. */
enum td_status td_record_decode(struct td_str bytes, struct td_record *out, struct td_err *err);
void td_record_deinit(struct td_record *r); /* of a decoded record, or a zeroed one */

#endif
