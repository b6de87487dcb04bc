/* TLS 1.3 over memory: ciphertext in and out as bytes, no socket. OpenSSL does the work. The server's side; between
 * coordinator and workers, where both show a certificate, the client's side too.
 * A context is shared by the connections of a listener; loop thread only. */
#ifndef TD_DAEMON_API_TLS_H
#define TD_DAEMON_API_TLS_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

struct td_tls;         /* certificate, key and policy */
struct td_tls_session; /* one connection */

struct td_tls_files {
    const char *cert; /* PEM chain, leaf first */
    const char *key;  /* its PEM key, not encrypted */
    const char *
        ca; /* PEM authorities that the peer's certificate must come from; NULL: the peer shows none */
};

/* Loads a PEM certificate chain and its key, and checks that they fit. TLS 1.3 only. Of the
 * protocols that a client offers (ALPN), http/1.1 is taken before h2: gRPC clients offer h2 alone, and the OpenAI API
 * is served over HTTP/1.1. TD_INVALID or TD_IO names the file. */
enum td_status td_tls_open(const char *cert_path, const char *key_path, struct td_tls **tls,
                           struct td_err *err);
/* The same for mutual TLS; `files->ca` must be there. The peer's certificate must come from it and may be used for its
 * side; its name is not looked at, since the authority signs nobody but members of the cluster. */
enum td_status td_tls_open_mutual(const struct td_tls_files *files, bool is_client,
                                  struct td_tls **tls, struct td_err *err);
/* Reads the files again, for sessions that begin from now on; those that are open go on. After an error everything is as
 * it was. */
enum td_status td_tls_reload(struct td_tls *tls, struct td_err *err);
bool td_tls_is_mutual(const struct td_tls *tls);
void td_tls_close(struct td_tls *tls);

/* Borrows `tls` until close. */
enum td_status td_tls_session_open(struct td_tls *tls, struct td_tls_session **session,
                                   struct td_err *err);
void td_tls_session_close(struct td_tls_session *session);
/* Takes all `n_bytes` of ciphertext. */
enum td_status td_tls_session_feed(struct td_tls_session *session, const void *data, size_t n_bytes,
                                   struct td_err *err);
/* Goes on with the handshake, then decrypts up to `cap` bytes. *n_bytes 0: feed more. After the peer's close_notify,
 * *closed is set. TD_PEER_PROTOCOL when the peer breaks TLS; an alert may be left to pull. */
enum td_status td_tls_session_read(struct td_tls_session *session, void *out, size_t cap,
                                   size_t *n_bytes, bool *closed, struct td_err *err);
/* True after the handshake, from this side's view: writing is possible. */
bool td_tls_session_is_open(const struct td_tls_session *session);
/* Encrypts all of it; only after the handshake (td_tls_session_is_open). */
enum td_status td_tls_session_write(struct td_tls_session *session, const void *data,
                                    size_t n_bytes, struct td_err *err);
/* Queues close_notify. */
void td_tls_session_shutdown(struct td_tls_session *session);
/* Ciphertext for the peer: at most `cap` bytes, 0 when there is none. */
size_t td_tls_session_pull(struct td_tls_session *session, void *out, size_t cap);

#endif
