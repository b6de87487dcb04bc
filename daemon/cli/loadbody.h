/* The JSON of a streamed request to an OpenAI-compatible server: what all requests have in common is written once. Plain state,
 * read-only after init; knows no load and no connection. */
#ifndef TD_DAEMON_CLI_LOADBODY_H
#define TD_DAEMON_CLI_LOADBODY_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct td_loadbody_params {
    const char *model;
    bool chat; /* /v1/chat/completions, with the prompt as a user's message; else /v1/completions */
    double temperature;
    bool ignore_eos;
    const char *extra; /* a JSON object whose members are added, and win; NULL: none */
};

struct td_loadbody {
    struct td_bytes common; /* "{...," without prompt and length */
    bool chat;
};

/* TD_INVALID: `extra` is no JSON object, or names what has options of its own. td_loadbody_deinit frees. */
enum td_status td_loadbody_init(struct td_loadbody *b, const struct td_loadbody_params *params,
                                struct td_err *err);
/* Appends one request's body. */
enum td_status td_loadbody_write(const struct td_loadbody *b, struct td_str prompt,
                                 uint32_t n_output, struct td_bytes *out);
void td_loadbody_deinit(struct td_loadbody *b);

#endif
