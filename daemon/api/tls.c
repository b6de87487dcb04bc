#include "daemon/api/tls.h"

#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct td_tls {
    SSL_CTX *ctx;
};

struct td_tls_session {
    SSL *ssl;
    BIO *in;  /* ciphertext from the peer; owned by ssl */
    BIO *out; /* ciphertext for the peer; owned by ssl */
};

/* The first reason in OpenSSL's queue, which is cleared. */
static const char *openssl_reason(void)
{
    unsigned long code = ERR_peek_error();
    const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    return reason != NULL ? reason : "unknown reason";
}

/* RFC 7301. Ours: http/1.1 first, so that browsers and curl, which offer both, get streaming over HTTP/1.1. */
static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                       const unsigned char *in, unsigned int in_len, void *arg)
{
    (void)ssl;
    (void)arg;
    static const unsigned char ours[] = "\x08http/1.1\x02h2";
    if (SSL_select_next_proto((unsigned char **)(uintptr_t)out, out_len, ours, sizeof(ours) - 1, in,
                              in_len) != OPENSSL_NPN_NEGOTIATED) {
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    }
    return SSL_TLSEXT_ERR_OK;
}

enum td_status td_tls_open(const char *cert_path, const char *key_path, struct td_tls **tls,
                           struct td_err *err)
{
    enum td_status status;
    const char *paths[] = {cert_path, key_path};
    for (size_t i = 0; i < 2; i++) {
        if (access(paths[i], R_OK) != 0) {
            return td_err_set(err, TD_IO, "TLS %s '%s' cannot be read",
                              i == 0 ? "certificate" : "key", paths[i]);
        }
    }
    struct td_tls *t = calloc(1, sizeof(*t));
    if (t == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the TLS context");
    }
    ERR_clear_error();
    t->ctx = SSL_CTX_new(TLS_server_method());
    if (t->ctx == NULL) {
        status = td_err_set(err, TD_INTERNAL, "TLS: %s", openssl_reason());
        goto fail;
    }
    SSL_CTX_set_min_proto_version(t->ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(t->ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                    SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(t->ctx, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(t->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_alpn_select_cb(t->ctx, select_alpn, NULL);
    if (SSL_CTX_use_certificate_chain_file(t->ctx, cert_path) != 1) {
        status = td_err_set(err, TD_INVALID, "TLS certificate '%s' is not a PEM chain: %s",
                            cert_path, openssl_reason());
        goto fail;
    }
    if (SSL_CTX_use_PrivateKey_file(t->ctx, key_path, SSL_FILETYPE_PEM) != 1) {
        status = td_err_set(err, TD_INVALID, "TLS key '%s' is no PEM key of certificate '%s': %s",
                            key_path, cert_path, openssl_reason());
        goto fail;
    }
    if (SSL_CTX_check_private_key(t->ctx) != 1) {
        status = td_err_set(err, TD_INVALID, "TLS key '%s' does not fit certificate '%s': %s",
                            key_path, cert_path, openssl_reason());
        goto fail;
    }
    *tls = t;
    return TD_OK;
fail:
    td_tls_close(t);
    return status;
}

void td_tls_close(struct td_tls *tls)
{
    if (tls != NULL) {
        SSL_CTX_free(tls->ctx);
        free(tls);
    }
}

enum td_status td_tls_session_open(struct td_tls *tls, struct td_tls_session **session,
                                   struct td_err *err)
{
    struct td_tls_session *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a TLS session");
    }
    s->ssl = SSL_new(tls->ctx);
    s->in = BIO_new(BIO_s_mem());
    s->out = BIO_new(BIO_s_mem());
    if (s->ssl == NULL || s->in == NULL || s->out == NULL) {
        BIO_free(s->in);
        BIO_free(s->out);
        SSL_free(s->ssl);
        free(s);
        ERR_clear_error();
        return td_err_set(err, TD_NO_MEMORY, "no memory for a TLS session");
    }
    BIO_set_mem_eof_return(s->in, -1); /* an empty buffer means "later", not "closed" */
    BIO_set_mem_eof_return(s->out, -1);
    SSL_set_bio(s->ssl, s->in, s->out);
    SSL_set_accept_state(s->ssl);
    *session = s;
    return TD_OK;
}

void td_tls_session_close(struct td_tls_session *session)
{
    if (session != NULL) {
        SSL_free(session->ssl);
        free(session);
    }
}

enum td_status td_tls_session_feed(struct td_tls_session *session, const void *data, size_t n_bytes,
                                   struct td_err *err)
{
    if (n_bytes > INT_MAX || BIO_write(session->in, data, (int)n_bytes) != (int)n_bytes) {
        ERR_clear_error();
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of TLS input", n_bytes);
    }
    return TD_OK;
}

enum td_status td_tls_session_read(struct td_tls_session *session, void *out, size_t cap,
                                   size_t *n_bytes, bool *closed, struct td_err *err)
{
    ERR_clear_error();
    size_t n = 0;
    bool at_end = false;
    int rc = SSL_read_ex(session->ssl, out, cap, &n);
    if (rc != 1) {
        int why = SSL_get_error(session->ssl, rc);
        if (why == SSL_ERROR_ZERO_RETURN) {
            at_end = true;
        } else if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
            return td_err_set(err, TD_PEER_PROTOCOL, "TLS: %s", openssl_reason());
        }
        n = 0;
    }
    *n_bytes = n;
    *closed = at_end;
    return TD_OK;
}

enum td_status td_tls_session_write(struct td_tls_session *session, const void *data,
                                    size_t n_bytes, struct td_err *err)
{
    size_t written = 0;
    ERR_clear_error();
    /* The output is memory, so a write never stops half way for want of room. */
    if (n_bytes > 0 && SSL_write_ex(session->ssl, data, n_bytes, &written) != 1) {
        return td_err_set(err, TD_PEER_PROTOCOL, "TLS: %s", openssl_reason());
    }
    return TD_OK;
}

void td_tls_session_shutdown(struct td_tls_session *session)
{
    if (SSL_is_init_finished(session->ssl)) {
        SSL_shutdown(session->ssl);
    }
    ERR_clear_error();
}

size_t td_tls_session_pull(struct td_tls_session *session, void *out, size_t cap)
{
    int n = BIO_read(session->out, out, cap > INT_MAX ? INT_MAX : (int)cap);
    return n > 0 ? (size_t)n : 0;
}
