/* A small blocking HTTP/1.1 client for the commands that talk to a running server: one request, one connection, over TCP
 * or TLS, with the answer whole or as server-sent events. Main thread; knows no command and no API beyond the form of an
 * OpenAI error. */
#ifndef TD_DAEMON_CLI_CLIENT_H
#define TD_DAEMON_CLI_CLIENT_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

enum { TD_CLIENT_MAX_BODY_BYTES = 16 << 20 };

/* One event's data, borrowed during the call. False ends the request with TD_CANCELLED. */
typedef bool td_client_event_fn(struct td_str data, void *user);

/* Everything is borrowed during the call. */
struct td_client_request {
    const char *url;      /* of the server: http://host[:port][/prefix] or https://... */
    const char *api_key;  /* NULL: none is sent */
    const char *ca_file;  /* https: PEM file of what is trusted; NULL: the system's */
    const char *method;   /* "GET", "POST" */
    const char *path;     /* "/status", goes behind the prefix */
    struct td_str body;   /* JSON; empty: no body */
    uint64_t patience_ns; /* longest silence of the server; 0: 60 s */
    const volatile sig_atomic_t *stop; /* becomes nonzero: TD_CANCELLED; NULL: never */
    td_client_event_fn *on_event;      /* NULL: an event stream is collected as any body */
    void *user;
};

/* Does one request. *http_status and *body (appended; the caller frees) are the answer, whatever its status; the body of
 * an event stream went to on_event. TD_INVALID for a url that is none, TD_UNAVAILABLE when no server answers, TD_DENIED
 * when its certificate is not trusted, TD_TIMED_OUT, TD_PEER_LOST and TD_PEER_PROTOCOL when the answer breaks off or is
 * not HTTP, TD_TOO_LARGE over TD_CLIENT_MAX_BODY_BYTES, TD_CANCELLED. SIGPIPE is ignored meanwhile. */
enum td_status td_client_call(const struct td_client_request *request, int *http_status,
                              struct td_bytes *body, struct td_err *err);

/* An answer that is not 2xx as an error: TD_DENIED, TD_NOT_FOUND, TD_BUSY ... with the server's own words, which it takes
 * from OpenAI's error object. Returns TD_OK for 2xx. */
enum td_status td_client_check(int http_status, struct td_str body, struct td_err *err);

/* ---- For tests ---- */

struct td_client_url {
    char host[256]; /* name or address without brackets */
    char port[8];
    char prefix[256]; /* "" or "/prefix" */
    bool tls;
};
/* TD_INVALID says what is wrong with `url`. */
enum td_status td_client_parse_url(const char *url, struct td_client_url *out, struct td_err *err);

#endif
