#include "daemon/api/tls.h"

#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct td_tls {
    SSL_CTX *ctx;
    bool is_client;
    char *cert, *key, *ca; /* paths; ca NULL: the peer shows no certificate */
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

/* Why a handshake or a record failed, in words that say what was expected. Clears OpenSSL's queue. */
static enum td_status session_error(const struct td_tls_session *session, struct td_err *err)
{
    int reason = ERR_GET_REASON(ERR_peek_error());
    long verified = SSL_get_verify_result(session->ssl);
    if (reason == SSL_R_UNSUPPORTED_PROTOCOL) {
        ERR_clear_error();
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "TLS: the peer offers older versions only, expected TLS 1.3");
    }
    if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED) {
        ERR_clear_error();
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "TLS: the peer's certificate is not of the cluster's authority: %s",
                          X509_verify_cert_error_string(verified));
    }
    if (reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) {
        ERR_clear_error();
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "TLS: the peer showed no certificate, expected one of the cluster's "
                          "authority");
    }
    return td_err_set(err, TD_PEER_PROTOCOL, "TLS: %s", openssl_reason());
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

/* An encrypted key must not make a server ask on a terminal. */
static int no_passphrase(char *buf, int size, int is_write, void *user)
{
    (void)buf;
    (void)size;
    (void)is_write;
    (void)user;
    return 0;
}

static enum td_status check_readable(const char *path, const char *what, struct td_err *err)
{
    return path == NULL || access(path, R_OK) == 0
               ? TD_OK
               : td_err_set(err, TD_IO, "TLS %s '%s' cannot be read", what, path);
}

static enum td_status load_files(const struct td_tls *t, SSL_CTX *ctx, struct td_err *err)
{
    if (SSL_CTX_use_certificate_chain_file(ctx, t->cert) != 1) {
        return td_err_set(err, TD_INVALID, "TLS certificate '%s' is not a PEM chain: %s", t->cert,
                          openssl_reason());
    }
    if (SSL_CTX_use_PrivateKey_file(ctx, t->key, SSL_FILETYPE_PEM) != 1) {
        return td_err_set(err, TD_INVALID, "TLS key '%s' is no PEM key of certificate '%s': %s",
                          t->key, t->cert, openssl_reason());
    }
    if (SSL_CTX_check_private_key(ctx) != 1) {
        return td_err_set(err, TD_INVALID, "TLS key '%s' does not fit certificate '%s': %s", t->key,
                          t->cert, openssl_reason());
    }
    if (t->ca != NULL && SSL_CTX_load_verify_file(ctx, t->ca) != 1) {
        return td_err_set(err, TD_INVALID, "TLS authority '%s' is no PEM certificate: %s", t->ca,
                          openssl_reason());
    }
    return TD_OK;
}

static void set_policy(const struct td_tls *t, SSL_CTX *ctx)
{
    static const unsigned char h2[] = "\x02h2";
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
    if (t->ca != NULL) {
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
        SSL_CTX_set_num_tickets(ctx, 0); /* every connection shows its certificate */
    }
    if (t->is_client) {
        SSL_CTX_set_alpn_protos(ctx, h2, sizeof(h2) - 1);
    } else {
        SSL_CTX_set_alpn_select_cb(ctx, select_alpn, NULL);
    }
}

enum td_status td_tls_reload(struct td_tls *t, struct td_err *err)
{
    enum td_status status = check_readable(t->cert, "certificate", err);
    status = status == TD_OK ? check_readable(t->key, "key", err) : status;
    status = status == TD_OK ? check_readable(t->ca, "authority", err) : status;
    if (status != TD_OK) {
        return status;
    }
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(t->is_client ? TLS_client_method() : TLS_server_method());
    if (ctx == NULL) {
        return td_err_set(err, TD_INTERNAL, "TLS: %s", openssl_reason());
    }
    set_policy(t, ctx);
    status = load_files(t, ctx, err);
    if (status != TD_OK) {
        SSL_CTX_free(ctx);
        return status;
    }
    SSL_CTX_free(t->ctx); /* sessions hold it as long as they need it */
    t->ctx = ctx;
    return TD_OK;
}

static enum td_status open_context(const struct td_tls_files *files, bool is_client,
                                   struct td_tls **tls, struct td_err *err)
{
    struct td_tls *t = calloc(1, sizeof(*t));
    if (t == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the TLS context");
    }
    t->is_client = is_client;
    t->cert = strdup(files->cert);
    t->key = strdup(files->key);
    t->ca = files->ca != NULL ? strdup(files->ca) : NULL;
    enum td_status status =
        t->cert == NULL || t->key == NULL || (files->ca != NULL && t->ca == NULL)
            ? td_err_set(err, TD_NO_MEMORY, "no memory for the TLS context")
            : td_tls_reload(t, err);
    if (status != TD_OK) {
        td_tls_close(t);
        return status;
    }
    *tls = t;
    return TD_OK;
}

enum td_status td_tls_open(const char *cert_path, const char *key_path, struct td_tls **tls,
                           struct td_err *err)
{
    return open_context(&(struct td_tls_files){.cert = cert_path, .key = key_path}, false, tls,
                        err);
}

enum td_status td_tls_open_mutual(const struct td_tls_files *files, bool is_client,
                                  struct td_tls **tls, struct td_err *err)
{
    return open_context(files, is_client, tls, err);
}

bool td_tls_is_mutual(const struct td_tls *tls)
{
    return tls->ca != NULL;
}

void td_tls_close(struct td_tls *tls)
{
    if (tls != NULL) {
        SSL_CTX_free(tls->ctx);
        free(tls->cert);
        free(tls->key);
        free(tls->ca);
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
    if (tls->is_client) {
        SSL_set_connect_state(s->ssl);
    } else {
        SSL_set_accept_state(s->ssl);
    }
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
            return session_error(session, err);
        }
        n = 0;
    }
    *n_bytes = n;
    *closed = at_end;
    return TD_OK;
}

bool td_tls_session_is_open(const struct td_tls_session *session)
{
    return SSL_is_init_finished(session->ssl) != 0;
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
