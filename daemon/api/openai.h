/* OpenAI bodies as text: requests of /v1/chat/completions and /v1/completions into plain structs, results into JSON.
 * Pure functions on the caller's memory; any thread (large bodies are parsed on libuv's pool). Knows no socket, no
 * tokenizer and no model: ids, lengths against the context and templates are the coordinator's. */
#ifndef TD_DAEMON_API_OPENAI_H
#define TD_DAEMON_API_OPENAI_H

#include "daemon/engine/request.h"
#include "daemon/text/breakers.h"
#include "kernels/base/arena.h"

enum {
    TD_OPENAI_MAX_MESSAGES = 4096,
    TD_OPENAI_MAX_PROMPTS = 256,
    TD_OPENAI_MAX_PROMPT_IDS = 1 << 20, /* of one prompt */
    TD_OPENAI_DEFAULT_MAX_TOKENS = 16,  /* of /v1/completions, as the official server */
    TD_OPENAI_MAX_TIMEOUT_S = 86400,
    TD_OPENAI_MAX_TOP_LOGPROBS = TD_SAMPLER_MAX_LOGPROBS
};

/* An error as the API shows it. Plain data. */
struct td_openai_error {
    int http_status;  /* 400, 401, 404, ... */
    const char *type; /* static: "invalid_request_error", "server_error", ... */
    const char *code; /* static, NULL for null */
    char param[96];   /* "messages[2].role"; empty for null */
    char message[640];
};

/* Fills an error printf style; `param` may be NULL. Returns TD_INVALID. Message bytes that are not UTF-8 are replaced
 * when it is written. */
enum td_status td_openai_error_set(struct td_openai_error *e, int http_status, const char *type,
                                   const char *code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* The error for a status of ours: the HTTP status, type and code that fit it, and the formatted text (only the
 * status' name for TD_INTERNAL and above: what broke inside is for the log, not for clients). */
void td_openai_error_from(const struct td_err *err, struct td_openai_error *e);
/* {"error":{"message","type","param","code"}} */
enum td_status td_openai_error_write(const struct td_openai_error *e, struct td_bytes *out);

/* ---- Requests ---- */

enum td_openai_kind { TD_OPENAI_CHAT = 0, TD_OPENAI_COMPLETION };

/* Slices point into the request's arena and end in a NUL that is not counted. */
struct td_openai_message {
    struct td_str role;    /* "system", "developer", "user", "assistant" */
    struct td_str content; /* text parts are joined by newlines */
    struct td_str name;    /* empty when absent */
};

struct td_openai_prompt {
    bool is_ids;
    struct td_str text;  /* is_ids false */
    const uint32_t *ids; /* is_ids true: [n_ids] */
    uint32_t n_ids;
};

struct td_openai_request {
    struct td_arena arena; /* owns everything below */
    enum td_openai_kind kind;
    struct td_str model;                /* as asked for; empty when absent */
    struct td_openai_message *messages; /* chat: [n_messages], at least 1 */
    size_t n_messages;
    struct td_openai_prompt *prompts; /* completion: [n_prompts], at least 1 */
    size_t n_prompts;
    struct td_str user; /* the client's name for its own user; empty when absent */

    bool echo; /* completions: the answer's text begins with the prompt */
    int32_t
        prompt_logprobs; /* alternatives for each prompt token, in the form of vLLM; -1: not asked for */
    uint32_t n;          /* choices to answer each prompt with, at least 1 */
    uint32_t best_of; /* candidates that they are chosen from; >= n */

    bool stream;
    bool include_usage; /* stream_options.include_usage */
    bool want_logprobs; /* the answer shows them */

    struct td_sampling sampling;
    bool has_seed;            /* false: the coordinator draws sampling.seed */
    struct td_str cache_salt; /* empty when absent; at most TD_REQUEST_MAX_SALT_BYTES */
    int32_t priority;         /* a lower one goes first */
    float timeout_s;          /* from the request's arrival; 0 when absent */
    bool has_max_tokens;      /* false: as much as the context holds */
    uint32_t max_tokens;      /* has_max_tokens */
    uint32_t min_tokens;
    bool ignore_eos;
    bool include_stop;
    uint32_t n_stops;
    struct td_str stops[TD_REQUEST_MAX_STOPS];
    uint32_t n_stop_ids;
    uint32_t stop_ids[TD_REQUEST_MAX_STOP_IDS];
    bool has_dry_breakers; /* false: the default ones */
    uint32_t n_dry_breakers;
    struct td_str dry_breakers[TD_BREAKERS_MAX]; /* td_request_break_at makes tokens of them */
};

/* Parses `body`. `defaults` are the model's own sampling defaults (generation_config.json), NULL for OpenAI's. Unknown
 * fields are tolerated; known ones are checked for type and range, and what this server cannot do is refused by name.
 * On failure `*e` is filled and the request needs no deinit. `req` is overwritten, then freed with
 * td_openai_request_deinit. TD_OK, TD_INVALID (see e) or TD_NO_MEMORY (see e). */
enum td_status td_openai_request_parse(enum td_openai_kind kind, struct td_str body,
                                       const struct td_sampling *defaults,
                                       struct td_openai_request *req, struct td_openai_error *e);
void td_openai_request_deinit(struct td_openai_request *req);
/* Copies what the engine needs into `r` (everything but id, prompt, salt and the breakers of DRY): sampling, stops, limits. `r` must be
 * initialised; `context_tokens` stands for an absent max_tokens. TD_NO_MEMORY. */
enum td_status td_openai_request_fill(const struct td_openai_request *req, uint32_t context_tokens,
                                      struct td_request *r, struct td_err *err);

/* ---- Results ---- */

/* What every body of one response shares. Slices are borrowed during the call. */
struct td_openai_reply {
    enum td_openai_kind kind;
    struct td_str id; /* td_openai_id */
    struct td_str model;
    int64_t created; /* Unix seconds */
};

enum { TD_OPENAI_ID_BYTES = 48 };
/* Writes "chatcmpl-<32 hex>" or "cmpl-<32 hex>" from two random words. Always NUL-terminated. */
void td_openai_id(enum td_openai_kind kind, uint64_t random_hi, uint64_t random_lo,
                  char out[TD_OPENAI_ID_BYTES]);

struct td_openai_top {
    uint32_t id;
    struct td_str token; /* the token's own bytes, maybe a part of a character */
    float logprob;
};

/* One output token as the logprobs objects show it. */
struct td_openai_logprob {
    struct td_str token;
    uint32_t id;
    bool
        is_first; /* of an echoed prompt: nothing foretold it, so null stands for its log probability */
    float logprob;
    uint32_t rank;        /* by its logit, 1 is the largest */
    uint32_t text_offset; /* completions: characters (code points) of text before this token */
    size_t n_top;
    const struct td_openai_top *top; /* [n_top], most likely first */
};

struct td_openai_usage {
    uint32_t prompt_tokens;
    uint32_t completion_tokens;
    uint32_t cached_tokens; /* of the prompt, from the prefix cache */
};

/* One choice of a whole response, or what one chunk adds to it. */
struct td_openai_choice {
    uint32_t index;
    struct td_str text;
    bool has_logprobs;                        /* false writes logprobs: null */
    const struct td_openai_logprob *logprobs; /* [n_logprobs] */
    bool has_prompt_logprobs;                 /* false leaves prompt_logprobs away */
    const struct td_openai_logprob
        *prompt_logprobs; /* [n_prompt_logprobs], the first one is_first */
    size_t n_prompt_logprobs;
    size_t n_logprobs;
    enum td_finish finish; /* a chunk that is not the last: TD_FINISH_NONE */
};

/* "stop" or "length"; NULL while it goes on. An end that is neither (cancel, error) is told as "stop". */
const char *td_openai_finish_name(enum td_finish finish);

/* chat.completion or text_completion, by reply->kind. */
enum td_status td_openai_response_write(const struct td_openai_reply *reply,
                                        const struct td_openai_choice *choices, size_t n_choices,
                                        const struct td_openai_usage *usage, struct td_bytes *out);
/* Chunks. A chat stream is one role chunk per choice, content chunks, of which the last has the finish reason (its
 * text may be empty), then, with include_usage, the usage chunk; a completion stream has no role chunk. The caller ends
 * it with [DONE] (td_sse_done). `include_usage` writes usage: null, as the API wants of the chunks before the last. */
enum td_status td_openai_chunk_role_write(const struct td_openai_reply *reply, uint32_t index,
                                          bool include_usage, struct td_bytes *out);
enum td_status td_openai_chunk_write(const struct td_openai_reply *reply,
                                     const struct td_openai_choice *choice, bool include_usage,
                                     struct td_bytes *out);
enum td_status td_openai_chunk_usage_write(const struct td_openai_reply *reply,
                                           const struct td_openai_usage *usage,
                                           struct td_bytes *out);

struct td_openai_model {
    struct td_str id;
    int64_t created;        /* Unix seconds */
    uint32_t max_model_len; /* tokens; 0 leaves the field out */
};
enum td_status td_openai_model_write(const struct td_openai_model *model, struct td_bytes *out);
enum td_status td_openai_models_write(const struct td_openai_model *models, size_t n_models,
                                      struct td_bytes *out);

#endif
