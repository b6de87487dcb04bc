#include "daemon/engine/request.h"

#include "daemon/text/breakers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

void td_request_init(struct td_request *r)
{
    memset(r, 0, sizeof(*r));
    r->max_tokens = 16; /* as OpenAI's completions endpoint */
    td_sampling_default(&r->sampling);
    r->prompt_logprobs = -1;
}

void td_request_deinit(struct td_request *r)
{
    free(r->prompt);
    free(r->emitted);
    free(r->dry_breakers);
    for (uint32_t i = 0; i < r->n_stops && i < TD_REQUEST_MAX_STOPS; i++)
        free(r->stops[i]);
    r->prompt = r->emitted = NULL;
    r->n_prompt = r->n_emitted = r->cap_emitted = 0;
    r->n_stops = 0;
    r->dry_breakers = NULL;
    r->sampling.dry_breakers = NULL;
    r->sampling.n_dry_breaker_bytes = 0;
}

enum td_status td_request_emit(struct td_request *r, uint32_t id, struct td_sampler_state state,
                               struct td_err *err)
{
    if (r->n_emitted == r->cap_emitted) {
        uint32_t cap = r->cap_emitted ? 2 * r->cap_emitted : 32;
        uint32_t *more = realloc(r->emitted, cap * sizeof *more);

        if (!more)
            return td_err_set(err, TD_NO_MEMORY, "no memory for %u tokens of output", cap);
        r->emitted = more;
        r->cap_emitted = cap;
    }
    r->emitted[r->n_emitted++] = id;
    r->state = state;
    return TD_OK;
}

enum td_status td_request_set_breakers(struct td_request *r, const uint8_t *set, size_t n_bytes,
                                       struct td_err *err)
{
    uint8_t *copy = NULL;

    if (n_bytes > TD_SAMPLING_MAX_BREAKER_BYTES)
        return td_err_set(err, TD_TOO_LARGE, "a set of breakers has %zu bytes, expected at most %d",
                          n_bytes, TD_SAMPLING_MAX_BREAKER_BYTES);
    if (n_bytes > 0) {
        copy = malloc(n_bytes);
        if (!copy)
            return td_err_set(err, TD_NO_MEMORY, "no memory for a set of breakers");
        memcpy(copy, set, n_bytes);
    }
    free(r->dry_breakers);
    r->dry_breakers = copy;
    r->sampling.dry_breakers = copy;
    r->sampling.n_dry_breaker_bytes = (uint32_t)n_bytes;
    return TD_OK;
}

enum td_status td_request_break_at(struct td_request *r, const struct td_breakers *breakers,
                                   const struct td_str *texts, size_t n, struct td_err *err)
{
    size_t n_bytes = td_breakers_set_bytes(breakers);
    enum td_status st;
    uint8_t *set;

    if (!td_sampling_has_dry(&r->sampling))
        return TD_OK;
    set = malloc(n_bytes + 1); /* never of no bytes, which may give NULL */
    if (!set)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a set of breakers");
    st = td_breakers_mark(breakers, texts ? texts : td_breakers_default,
                          texts ? n : TD_BREAKERS_N_DEFAULT, set, err);
    st = st ? st : td_request_set_breakers(r, set, n_bytes, err);
    free(set);
    return st;
}

static enum td_status copy_ids(const uint32_t *from, uint32_t n, uint32_t **to)
{
    if (n == 0)
        return TD_OK;
    *to = malloc((size_t)n * sizeof **to);
    if (!*to)
        return TD_NO_MEMORY;
    memcpy(*to, from, (size_t)n * sizeof **to);
    return TD_OK;
}

enum td_status td_request_copy(const struct td_request *from, struct td_request *to)
{
    struct td_request r = *from;

    if (from->n_stops > TD_REQUEST_MAX_STOPS)
        return TD_INVALID;
    r.prompt = r.emitted = NULL;
    r.n_stops = 0;
    r.dry_breakers = NULL;
    if (td_request_set_breakers(&r, from->sampling.dry_breakers, from->sampling.n_dry_breaker_bytes,
                                NULL))
        return TD_NO_MEMORY;
    r.cap_emitted = from->n_emitted;
    if (copy_ids(from->prompt, from->n_prompt, &r.prompt) ||
        copy_ids(from->emitted, from->n_emitted, &r.emitted)) {
        td_request_deinit(&r);
        return TD_NO_MEMORY;
    }
    for (; r.n_stops < from->n_stops; r.n_stops++) {
        size_t bytes = from->stop_bytes[r.n_stops];
        char *copy = malloc(bytes + 1); /* a NUL for those who print it */

        if (!copy) {
            td_request_deinit(&r);
            return TD_NO_MEMORY;
        }
        memcpy(copy, from->stops[r.n_stops], bytes);
        copy[bytes] = '\0';
        r.stops[r.n_stops] = copy;
    }
    *to = r;
    return TD_OK;
}

uint64_t td_request_salt(uint32_t key, struct td_str text)
{
    uint64_t hash = text.len > 0 ? XXH3_64bits_withSeed(text.ptr, text.len, key) : 0;

    return td_request_salt_for(key, hash >> 8);
}

uint64_t td_request_salt_for(uint32_t key, uint64_t salt)
{
    return (uint64_t)key << 56 | (salt & UINT64_MAX >> 8);
}

static enum td_status validate_stops(const struct td_request *r, uint32_t n_vocab,
                                     struct td_err *err)
{
    if (r->n_stops > TD_REQUEST_MAX_STOPS)
        return td_err_set(err, TD_INVALID, "stop has %u strings, expected at most %d", r->n_stops,
                          TD_REQUEST_MAX_STOPS);
    for (uint32_t i = 0; i < r->n_stops; i++)
        if (r->stop_bytes[i] == 0 || r->stop_bytes[i] > TD_REQUEST_MAX_STOP_BYTES)
            return td_err_set(err, TD_INVALID, "stop string %u has %zu bytes, expected 1 to %d", i,
                              r->stop_bytes[i], TD_REQUEST_MAX_STOP_BYTES);
    if (r->n_stop_ids > TD_REQUEST_MAX_STOP_IDS)
        return td_err_set(err, TD_INVALID, "stop_token_ids has %u ids, expected at most %d",
                          r->n_stop_ids, TD_REQUEST_MAX_STOP_IDS);
    for (uint32_t i = 0; i < r->n_stop_ids; i++)
        if (r->stop_ids[i] >= n_vocab)
            return td_err_set(err, TD_INVALID,
                              "stop_token_ids names token %u, the vocabulary has %u",
                              r->stop_ids[i], n_vocab);
    return TD_OK;
}

static enum td_status validate_emitted(const struct td_request *r, uint32_t n_vocab,
                                       uint32_t max_model_len, struct td_err *err)
{
    if (r->n_emitted == 0)
        return TD_OK;
    if (r->n_emitted >= r->max_tokens)
        return td_err_set(err, TD_INVALID, "%u tokens were told already, max_tokens is %u",
                          r->n_emitted, r->max_tokens);
    if (r->max_tokens > max_model_len - r->n_prompt)
        return td_err_set(err, TD_TOO_LARGE,
                          "prompt has %u tokens and may have %u of output; the context has become "
                          "%u tokens since the request was accepted",
                          r->n_prompt, r->max_tokens, max_model_len);
    if (td_sampling_has_state(&r->sampling) && !isfinite(r->state.mu))
        return td_err_set(err, TD_INVALID, "mirostat's mu is %g, expected a finite number",
                          r->state.mu);
    for (uint32_t i = 0; i < r->n_emitted; i++)
        if (r->emitted[i] >= n_vocab)
            return td_err_set(err, TD_INVALID, "output token %u is id %u, the vocabulary has %u", i,
                              r->emitted[i], n_vocab);
    return TD_OK;
}

enum td_status td_request_validate(struct td_request *r, uint32_t n_vocab, uint32_t max_model_len,
                                   struct td_err *err)
{
    enum td_status st;

    if (r->n_prompt == 0)
        return td_err_set(err, TD_INVALID, "prompt has 0 tokens, expected at least 1");
    if (r->n_prompt >= max_model_len)
        return td_err_set(err, TD_TOO_LARGE,
                          "prompt has %u tokens; the context is %u tokens and must hold the prompt "
                          "and at least one token of output",
                          r->n_prompt, max_model_len);
    for (uint32_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] >= n_vocab)
            return td_err_set(err, TD_INVALID, "prompt token %u is id %u, the vocabulary has %u", i,
                              r->prompt[i], n_vocab);
    if (r->max_tokens == 0)
        return td_err_set(err, TD_INVALID, "max_tokens is 0, expected at least 1");
    if (r->min_tokens > r->max_tokens)
        return td_err_set(err, TD_INVALID, "min_tokens is %u, expected at most max_tokens (%u)",
                          r->min_tokens, r->max_tokens);
    if ((st = validate_stops(r, n_vocab, err)) ||
        (st = validate_emitted(r, n_vocab, max_model_len, err)) ||
        (st = td_sampling_validate(&r->sampling, n_vocab, err)))
        return st;
    if (r->max_tokens > max_model_len - r->n_prompt)
        r->max_tokens = max_model_len - r->n_prompt;
    if (r->min_tokens > r->max_tokens)
        r->min_tokens = r->max_tokens;
    return TD_OK;
}
