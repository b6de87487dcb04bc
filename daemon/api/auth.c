#include "daemon/api/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <strings.h>

enum td_status td_auth_add(struct td_auth *auth, struct td_str key, struct td_err *err)
{
    if (auth->n_keys == TD_AUTH_MAX_KEYS) {
        return td_err_set(err, TD_TOO_LARGE, "more than %d keys", TD_AUTH_MAX_KEYS);
    }
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
    SHA256((const unsigned char *)key.ptr, key.len, auth->digest[auth->n_keys]);
    auth->n_keys++;
    return TD_OK;
}

static uint32_t which_key(const struct td_auth *auth, struct td_str key)
{
    unsigned char digest[TD_AUTH_DIGEST_BYTES];
    SHA256((const unsigned char *)(key.len > 0 ? key.ptr : ""), key.len, digest);
    uint32_t found = 0;
    for (size_t i = 0; i < auth->n_keys; i++) {
        /* Every key is compared, so the time tells neither which one fits nor how far one agrees. */
        uint32_t differs = CRYPTO_memcmp(auth->digest[i], digest, sizeof(digest)) != 0;
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
    return auth->n_keys == 0 || which_key(auth, key) != 0;
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
