/* API keys: the set of keys that a listener or a route accepts, of clients and of operators. Holds digests and names only,
 * compares in constant time. Loop thread only. Knows neither HTTP nor gRPC beyond the header's value.
 *
 * A key has a number for as long as the process lives, so that limits and caches that are kept by number survive a reload:
 * a named key keeps it under its name, whatever the key is then, one without a name as long as the key is the same. The
 * number of a key that was removed is given to nobody else. */
#ifndef TD_DAEMON_API_AUTH_H
#define TD_DAEMON_API_AUTH_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdint.h>

struct td_metric;

enum {
    TD_AUTH_MAX_KEYS = 256, /* in the life of the process, the removed ones too */
    TD_AUTH_DIGEST_BYTES = 32,
    TD_AUTH_MAX_KEY_BYTES = 1024,
    TD_AUTH_MAX_NAME_BYTES = 64
};

enum td_auth_role {
    TD_AUTH_CLIENT = 0,
    TD_AUTH_OPERATOR
}; /* an operator may all that a client may */

struct td_auth_key {
    char name[TD_AUTH_MAX_NAME_BYTES + 1]; /* "key-<number>" for one without */
    bool is_named, is_live;
    enum td_auth_role role;
    unsigned char digest[TD_AUTH_DIGEST_BYTES]; /* SHA-256 of the key */
};

struct td_auth {
    size_t n_keys; /* numbers that were given, of removed keys too */
    size_t n_clients,
        n_operators; /* live ones; no client: open to everyone but for operators' calls */
    struct td_auth_key key[TD_AUTH_MAX_KEYS]; /* number 1 first */
    struct td_metric **
        requests; /* [TD_AUTH_MAX_KEYS] counts what each key was let in for; NULL: uncounted. Borrowed */
};

/* Adds a client's key without a name. TD_INVALID for an empty one, one over TD_AUTH_MAX_KEY_BYTES or one with spaces or
 * control bytes (no header could carry it), and for one that is there under another name or role; TD_TOO_LARGE beyond
 * TD_AUTH_MAX_KEYS. The same key again is no error. The message never shows the key. */
enum td_status td_auth_add(struct td_auth *auth, struct td_str key, struct td_err *err);
/* Adds what a line of a key file says: "name:key" or "key". A name has letters, digits, '.', '_' and '-', and is not of the
 * form key-<number>; TD_INVALID for another one, and for a name that is there already. */
enum td_status td_auth_add_line(struct td_auth *auth, struct td_str line, enum td_auth_role role,
                                struct td_err *err);
/* The key of such a line, borrowed from it; false when what stands before the first colon is no name. */
bool td_auth_split_line(struct td_str line, struct td_str *name, struct td_str *key);
/* Takes over the keys of `fresh`: those that are not in it are removed, those that are keep their numbers.
 * TD_TOO_LARGE, and nothing has changed, when TD_AUTH_MAX_KEYS numbers were given. */
enum td_status td_auth_replace(struct td_auth *auth, const struct td_auth *fresh,
                               struct td_err *err);
/* True when `key` is one of the set, or the set has no client's key. The time depends on the length of `key` only. */
bool td_auth_check_key(const struct td_auth *auth, struct td_str key);
/* The same for header values: `authorization` ("Bearer KEY", scheme in any case) or, where that is empty, `x_api_key`
 * (the key itself). Empty slices stand for absent headers. gRPC metadata "authorization" is checked the same way. */
bool td_auth_check(const struct td_auth *auth, struct td_str authorization,
                   struct td_str x_api_key);
/* The number of the key; 0: none of them, or the set is empty. */
uint32_t td_auth_which(const struct td_auth *auth, struct td_str authorization,
                       struct td_str x_api_key);
/* A number that stands for that key where it is kept beside what it asked for: the same in every process that has the key, and no
 * help in finding it. 0: there is no such number, or the key was removed. */
uint64_t td_auth_owner(const struct td_auth *auth, uint32_t number);
/* The number whose key has that owner; 0: none has. */
uint32_t td_auth_of_owner(const struct td_auth *auth, uint64_t owner);
/* The name of a number that td_auth_which gave; "" for 0. */
const char *td_auth_name(const struct td_auth *auth, uint32_t number);

enum td_auth_verdict {
    TD_AUTH_ADMITTED = 0,
    TD_AUTH_NO_KEY,       /* no key was given, or a wrong one */
    TD_AUTH_NOT_OPERATOR, /* a client's key at an operator's call */
    TD_AUTH_NO_OPERATORS /* nobody may: there is no operator's key, and the caller is not on an open server's own host */
};
/* Why somebody was not admitted, as a sentence without a full stop. */
const char *td_auth_reason(enum td_auth_verdict verdict);
/* Whether a request may call something of `role`, and counts it. `auth` NULL: there are no keys. Without any key an
 * operator's call is for callers on this host (`is_loopback`). *number as td_auth_which. */
enum td_auth_verdict td_auth_admit(const struct td_auth *auth, enum td_auth_role role,
                                   bool is_loopback, struct td_str authorization,
                                   struct td_str x_api_key, uint32_t *number);

#endif
