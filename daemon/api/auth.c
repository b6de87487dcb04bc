#include "daemon/api/auth.h"

#include "daemon/api/metrics.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* ---- What a key and a name may be ---- */

static enum td_status check_text(struct td_str key, struct td_err *err)
{
    if (key.len == 0 || key.len > TD_AUTH_MAX_KEY_BYTES) {
        return td_err_set(err, TD_INVALID, "a key has %zu bytes, expected 1 to %d", key.len,
                          TD_AUTH_MAX_KEY_BYTES);
    }
    for (size_t i = 0; i < key.len; i++) {
        unsigned char c = (unsigned char)key.ptr[i];
        if (c <= 0x20 || c >= 0x7f) {
            return td_err_set(
                err, TD_INVALID,
                "byte %zu of a key is 0x%02x, expected printable ASCII without spaces", i, c);
        }
    }
    return TD_OK;
}

static bool is_name(struct td_str name)
{
    for (size_t i = 0; i < name.len; i++) {
        char c = name.ptr[i];
        bool fits = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
                    c == '.' || c == '_' || c == '-';
        if (!fits) {
            return false;
        }
    }
    return name.len > 0 && name.len <= TD_AUTH_MAX_NAME_BYTES;
}

/* "key-3" is what the third key is called when it has no name. */
static bool is_reserved(struct td_str name)
{
    if (!td_str_starts(name, TD_STR("key-"))) {
        return false;
    }
    for (size_t i = 4; i < name.len; i++) {
        if (name.ptr[i] < '0' || name.ptr[i] > '9') {
            return false;
        }
    }
    return true;
}

bool td_auth_split_line(struct td_str line, struct td_str *name, struct td_str *key)
{
    const char *colon = line.len > 0 ? memchr(line.ptr, ':', line.len) : NULL;
    *name = TD_STR("");
    *key = line;
    if (colon != NULL) {
        *name = (struct td_str){line.ptr, (size_t)(colon - line.ptr)};
        *key = (struct td_str){colon + 1, line.len - name->len - 1};
    }
    return colon == NULL || is_name(*name);
}

/* ---- The set ---- */

static enum td_status add(struct td_auth *auth, struct td_str name, struct td_str key,
                          enum td_auth_role role, struct td_err *err)
{
    unsigned char digest[TD_AUTH_DIGEST_BYTES];
    enum td_status status = check_text(key, err);
    if (status != TD_OK) {
        return status;
    }
    SHA256((const unsigned char *)key.ptr, key.len, digest);
    for (size_t i = 0; i < auth->n_keys; i++) {
        const struct td_auth_key *k = &auth->key[i];
        bool is_same = memcmp(k->digest, digest, sizeof(digest)) == 0;
        if (is_same && !k->is_named && name.len == 0 && k->role == role) {
            return TD_OK;
        }
        if (is_same) {
            return td_err_set(err, TD_INVALID, "key '%s' is there a second time%s", k->name,
                              k->role != role ? ", as an operator's and as a client's"
                                              : " under another name");
        }
        if (k->is_named && td_str_eq(td_str_from(k->name), name)) {
            return td_err_set(err, TD_INVALID, "the name '%s' has two keys, expected one", k->name);
        }
    }
    if (auth->n_keys == TD_AUTH_MAX_KEYS) {
        return td_err_set(err, TD_TOO_LARGE, "more than %d keys", TD_AUTH_MAX_KEYS);
    }
    struct td_auth_key *k = &auth->key[auth->n_keys++];
    *k = (struct td_auth_key){.is_named = name.len > 0, .is_live = true, .role = role};
    if (name.len > 0) {
        snprintf(k->name, sizeof(k->name), "%.*s", (int)name.len, name.ptr);
    } else {
        snprintf(k->name, sizeof(k->name), "key-%zu", auth->n_keys);
    }
    memcpy(k->digest, digest, sizeof(digest));
    auth->n_clients += role == TD_AUTH_CLIENT;
    auth->n_operators += role == TD_AUTH_OPERATOR;
    return TD_OK;
}

enum td_status td_auth_add(struct td_auth *auth, struct td_str key, struct td_err *err)
{
    return add(auth, TD_STR(""), key, TD_AUTH_CLIENT, err);
}

enum td_status td_auth_add_line(struct td_auth *auth, struct td_str line, enum td_auth_role role,
                                struct td_err *err)
{
    struct td_str name;
    struct td_str key;
    if (!td_auth_split_line(line, &name, &key)) {
        return td_err_set(err, TD_INVALID,
                          "what stands before the colon is no name: expected 1 to %d letters, "
                          "digits, '.', '_' or '-' (a key that holds a colon needs a name)",
                          TD_AUTH_MAX_NAME_BYTES);
    }
    if (is_reserved(name)) {
        return td_err_set(err, TD_INVALID,
                          "the name '%.*s' is kept for keys without a name, expected another one",
                          (int)name.len, name.ptr);
    }
    return add(auth, name, key, role, err);
}

/* The same key, or the next one of the same holder. */
static bool is_same_holder(const struct td_auth_key *a, const struct td_auth_key *b)
{
    if (a->role != b->role || a->is_named != b->is_named) {
        return false;
    }
    return a->is_named ? strcmp(a->name, b->name) == 0
                       : memcmp(a->digest, b->digest, sizeof(a->digest)) == 0;
}

static size_t find_holder(const struct td_auth *auth, const struct td_auth_key *wanted)
{
    for (size_t i = 0; i < auth->n_keys; i++) {
        if (is_same_holder(&auth->key[i], wanted)) {
            return i;
        }
    }
    return TD_AUTH_MAX_KEYS;
}

enum td_status td_auth_replace(struct td_auth *auth, const struct td_auth *fresh,
                               struct td_err *err)
{
    size_t n_new = 0;
    for (size_t i = 0; i < fresh->n_keys; i++) {
        n_new += find_holder(auth, &fresh->key[i]) == TD_AUTH_MAX_KEYS;
    }
    if (n_new > TD_AUTH_MAX_KEYS - auth->n_keys) {
        return td_err_set(err, TD_TOO_LARGE,
                          "%zu new keys after %zu since the start, expected %d in all: a restart "
                          "forgets those that were removed",
                          n_new, auth->n_keys, TD_AUTH_MAX_KEYS);
    }
    for (size_t i = 0; i < auth->n_keys; i++) {
        auth->key[i].is_live = false;
    }
    for (size_t i = 0; i < fresh->n_keys; i++) {
        size_t at = find_holder(auth, &fresh->key[i]);
        at = at < TD_AUTH_MAX_KEYS ? at : auth->n_keys++;
        auth->key[at] = fresh->key[i];
        if (!fresh->key[i].is_named) {
            snprintf(auth->key[at].name, sizeof(auth->key[at].name), "key-%zu", at + 1);
        }
    }
    auth->n_clients = fresh->n_clients;
    auth->n_operators = fresh->n_operators;
    return TD_OK;
}

/* ---- Who it is ---- */

static uint32_t which_key(const struct td_auth *auth, struct td_str key)
{
    unsigned char digest[TD_AUTH_DIGEST_BYTES];
    SHA256((const unsigned char *)(key.len > 0 ? key.ptr : ""), key.len, digest);
    uint32_t found = 0;
    for (size_t i = 0; i < auth->n_keys; i++) {
        /* Every key is compared, so the time tells neither which one fits nor how far one agrees. No two live ones are
         * the same, so that at most one number is taken. */
        uint32_t differs = CRYPTO_memcmp(auth->key[i].digest, digest, sizeof(digest)) != 0;
        differs |= !auth->key[i].is_live;
        found |= (uint32_t)(i + 1) & (differs - 1);
    }
    return key.len > 0 ? found : 0;
}

static struct td_str key_of(struct td_str authorization, struct td_str x_api_key)
{
    static const char scheme[] = "Bearer ";
    struct td_str key = {NULL, 0};
    if (authorization.len == 0) {
        key = x_api_key;
    } else if (authorization.len > sizeof(scheme) - 1 &&
               strncasecmp(authorization.ptr, scheme, sizeof(scheme) - 1) == 0) {
        key.ptr = authorization.ptr + sizeof(scheme) - 1;
        key.len = authorization.len - (sizeof(scheme) - 1);
        while (key.len > 0 && key.ptr[0] == ' ') {
            key.ptr++;
            key.len--;
        }
    }
    return key;
}

bool td_auth_check_key(const struct td_auth *auth, struct td_str key)
{
    return auth->n_clients == 0 || which_key(auth, key) != 0;
}

bool td_auth_check(const struct td_auth *auth, struct td_str authorization, struct td_str x_api_key)
{
    return td_auth_check_key(auth, key_of(authorization, x_api_key));
}

uint32_t td_auth_which(const struct td_auth *auth, struct td_str authorization,
                       struct td_str x_api_key)
{
    return which_key(auth, key_of(authorization, x_api_key));
}

/* Of the name where there is one, as the number is; else of the key's digest. */
uint64_t td_auth_owner(const struct td_auth *auth, uint32_t number)
{
    unsigned char text[16 + TD_AUTH_MAX_NAME_BYTES + TD_AUTH_DIGEST_BYTES] = "tensord owner ";
    unsigned char digest[TD_AUTH_DIGEST_BYTES];
    size_t n = strlen((char *)text);
    uint64_t owner;
    if (auth == NULL || number == 0 || number > auth->n_keys || !auth->key[number - 1].is_live) {
        return 0;
    }
    const struct td_auth_key *key = &auth->key[number - 1];
    text[n++] = key->is_named ? 'n' : 'k';
    const void *what = key->is_named ? (const void *)key->name : key->digest;
    const size_t n_bytes = key->is_named ? strlen(key->name) : sizeof(key->digest);
    memcpy(text + n, what, n_bytes);
    SHA256(text, n + n_bytes, digest);
    memcpy(&owner, digest, sizeof(owner));
    return owner > 0 ? owner : 1;
}

uint32_t td_auth_of_owner(const struct td_auth *auth, uint64_t owner)
{
    for (uint32_t i = 1; auth != NULL && owner != 0 && i <= auth->n_keys; i++) {
        if (td_auth_owner(auth, i) == owner) {
            return i;
        }
    }
    return 0;
}

const char *td_auth_name(const struct td_auth *auth, uint32_t number)
{
    return auth != NULL && number > 0 && number <= auth->n_keys ? auth->key[number - 1].name : "";
}

enum td_auth_verdict td_auth_admit(const struct td_auth *auth, enum td_auth_role role,
                                   bool is_loopback, struct td_str authorization,
                                   struct td_str x_api_key, uint32_t *number)
{
    static const struct td_auth no_keys = {.n_keys = 0};
    const struct td_auth *a = auth != NULL ? auth : &no_keys;
    uint32_t n = which_key(a, key_of(authorization, x_api_key));
    bool is_open = a->n_clients == 0 && (role == TD_AUTH_CLIENT || a->n_operators == 0);
    *number = n;
    if (n == 0 && !is_open) {
        return TD_AUTH_NO_KEY;
    }
    if (role == TD_AUTH_OPERATOR && a->n_operators == 0 && (a->n_clients > 0 || !is_loopback)) {
        return TD_AUTH_NO_OPERATORS;
    }
    if (role == TD_AUTH_OPERATOR && n > 0 && a->key[n - 1].role != TD_AUTH_OPERATOR) {
        return TD_AUTH_NOT_OPERATOR;
    }
    if (n > 0 && a->requests != NULL && a->requests[n - 1] != NULL) {
        td_metrics_add(a->requests[n - 1], 1);
    }
    return TD_AUTH_ADMITTED;
}

const char *td_auth_reason(enum td_auth_verdict verdict)
{
    static const char *const reasons[] = {
        [TD_AUTH_ADMITTED] = "it was admitted",
        [TD_AUTH_NO_KEY] = "no key was given, or a wrong one",
        [TD_AUTH_NOT_OPERATOR] = "this call is the operator's: a key of --admin-key-file is "
                                 "expected, a client's was given",
        [TD_AUTH_NO_OPERATORS] = "this call is the operator's: it needs a key of --admin-key-file, "
                                 "or without any keys a caller on the server's own host"};
    return reasons[verdict];
}
