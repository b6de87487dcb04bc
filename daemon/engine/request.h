/* One generation as it is asked for, and what comes back, token by token. Plain data shared by the APIs, the
 * coordinator and the engine; knows no wire format. */
#ifndef TD_DAEMON_ENGINE_REQUEST_H
#define TD_DAEMON_ENGINE_REQUEST_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "shard/sampler.h"

#include <stdbool.h>
#include <stdint.h>

struct td_breakers;

enum {
    TD_REQUEST_MAX_STOPS = 16,
    TD_REQUEST_MAX_STOP_BYTES = 256,
    TD_REQUEST_MAX_STOP_IDS = 16,
    TD_REQUEST_MAX_SALT_BYTES = 256,
    TD_REQUEST_MAX_CHOICES = 128,  /* answers to one prompt, and candidates for them */
    TD_REQUEST_MAX_PRIORITY = 1000 /* and -1000 is the least that a client may ask for */
};

enum td_finish {
    TD_FINISH_NONE = 0, /* goes on */
    TD_FINISH_STOP,     /* end token, stop id or stop string */
    TD_FINISH_LENGTH,   /* max_tokens or the context is full */
    TD_FINISH_CANCELLED,
    TD_FINISH_ERROR
};

/* Everything that generation depends on. Strings and ids are owned by the request (td_request_deinit). */
struct td_request {
    uint64_t id;      /* unique within one coordinator */
    uint32_t *prompt; /* owned, [n_prompt] */
    uint32_t n_prompt;
    uint32_t max_tokens; /* output tokens at most; > 0 */
    uint32_t min_tokens;
    bool ignore_eos;
    struct td_sampling sampling;
    uint8_t *dry_breakers; /* owned: what sampling.dry_breakers points to; NULL when it has none */
    uint32_t n_stops;
    char *stops[TD_REQUEST_MAX_STOPS]; /* owned */
    size_t stop_bytes[TD_REQUEST_MAX_STOPS];
    bool include_stop; /* the stop string stays in the text */
    uint32_t n_stop_ids;
    uint32_t stop_ids[TD_REQUEST_MAX_STOP_IDS];
    uint64_t cache_salt; /* requests of different salts share nothing in the prefix cache */
    int32_t priority;    /* a lower one goes first */
    /* -1: none; else those of every prompt token but the first, with so many alternatives (at most TD_SAMPLER_MAX_LOGPROBS). Such
     * a request passes by the prefix cache. */
    int32_t prompt_logprobs;
    bool no_prefix_cache; /* nothing is taken from it and nothing kept in it */
    /* A replay: the output that was already told, which is not told again. The sequence goes on behind it exactly as it would have. */
    uint32_t *emitted; /* owned, [n_emitted] */
    uint32_t n_emitted, cap_emitted;
    struct td_sampler_state
        state; /* as it was after the last of them; where td_sampling_has_state */
};

void td_request_init(struct td_request *r);
void td_request_deinit(struct td_request *r);
enum td_status td_request_copy(const struct td_request *from, struct td_request *to); /* deep */
/* One more token was told. TD_NO_MEMORY leaves the request as it was. */
enum td_status td_request_emit(struct td_request *r, uint32_t id, struct td_sampler_state state,
                               struct td_err *err);
/* Copies a set of tokens for sampling.dry_breakers; n_bytes may be 0. TD_NO_MEMORY. */
enum td_status td_request_set_breakers(struct td_request *r, const uint8_t *set, size_t n_bytes,
                                       struct td_err *err);
/* The same from the texts that a client named, or the default ones when `texts` is NULL; nothing when the request asks for
 * no DRY. TD_INVALID (td_breakers_mark), TD_NO_MEMORY. */
enum td_status td_request_break_at(struct td_request *r, const struct td_breakers *breakers,
                                   const struct td_str *texts, size_t n, struct td_err *err);
/* cache_salt of API key number `key` (0: none; below 256) and the text that its client named (empty: none). The key stands
 * in the upper bits alone, so no text makes one key's requests share anything with another's; below it stands the text by
 * XXH3-64. */
uint64_t td_request_salt(uint32_t key, struct td_str text);
/* The same salt for another number of the key: numbers do not outlive the process, keys do. */
uint64_t td_request_salt_for(uint32_t key, uint64_t salt);
/* Ranges and the context: prompt not empty, ids < n_vocab, n_prompt + 1 <= max_model_len; lowers max_tokens to what
 * fits. A replay (n_emitted > 0) must fit whole, since its end may not move. TD_INVALID or TD_TOO_LARGE naming the parameter. */
enum td_status td_request_validate(struct td_request *r, uint32_t n_vocab, uint32_t max_model_len,
                                   struct td_err *err);

/* One token of one request, or its end. Emitted by the engine in order, exactly one with finish != NONE. */
struct td_token_event {
    uint64_t request_id;
    uint32_t index;         /* of the output token, 0 first */
    uint64_t queue_ns;      /* with the first token: from submit to the first step */
    uint32_t cached_tokens; /* with the first token: prompt tokens whose KV was there */
    bool
        is_prompt; /* a log probability of the prompt: `index` is the position, `token` the prompt's */
    bool has_token; /* false: only the end is told (error, cancel) */
    struct td_sampled token;
    struct td_sampler_state state; /* with a token: after it, where td_sampling_has_state */
    enum td_finish finish;
    const struct td_err *error; /* TD_FINISH_ERROR only; borrowed during the callback */
};

#endif
