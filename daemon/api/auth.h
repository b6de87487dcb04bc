/* API keys: the set of keys that a listener or a route accepts. Holds digests only, compares in constant time.
 * Written before the loop starts, read by the loop thread. Knows neither HTTP nor gRPC beyond the header's value. */
#ifndef TD_DAEMON_API_AUTH_H
#define TD_DAEMON_API_AUTH_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdint.h>

enum { TD_AUTH_MAX_KEYS = 64, TD_AUTH_DIGEST_BYTES = 32, TD_AUTH_MAX_KEY_BYTES = 1024 };

struct td_auth {
    size_t n_keys;                                                /* 0: open to everyone */
    unsigned char digest[TD_AUTH_MAX_KEYS][TD_AUTH_DIGEST_BYTES]; /* SHA-256 of each key */
};

/* Adds a key. TD_INVALID for an empty one, one over TD_AUTH_MAX_KEY_BYTES or one with spaces or control bytes (no
 * header could carry it); TD_TOO_LARGE beyond TD_AUTH_MAX_KEYS. The message never shows the key. */
enum td_status td_auth_add(struct td_auth *auth, struct td_str key, struct td_err *err);
/* True when `key` is one of the set, or the set is empty. The time depends on the length of `key` only. */
bool td_auth_check_key(const struct td_auth *auth, struct td_str key);
/* The same for header values: `authorization` ("Bearer KEY", scheme in any case) or, where that is empty, `x_api_key`
 * (the key itself). Empty slices stand for absent headers. gRPC metadata "authorization" is checked the same way. */
bool td_auth_check(const struct td_auth *auth, struct td_str authorization,
                   struct td_str x_api_key);
/* Which of the keys it is, counted from 1 in the order they were added; 0: none of them, or the set is empty. */
uint32_t td_auth_which(const struct td_auth *auth, struct td_str authorization,
                       struct td_str x_api_key);

#endif
