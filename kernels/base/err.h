/* Status codes and the error record that every fallible function fills.
 * Whoever decides an error writes the cause once, with the offending value and the expected one; callers add
 * context or nothing. Plain data on the caller's stack; no thread, no allocation. */
#ifndef TD_KERNELS_BASE_ERR_H
#define TD_KERNELS_BASE_ERR_H

#include <stddef.h>

/* The hundreds digit says what must be given up: the request (1xx), a peer (2xx), the process (3xx). */
enum td_status {
    TD_OK = 0,

    TD_INVALID = 100,     /* an argument or a request is wrong */
    TD_NOT_FOUND = 101,   /* the named thing does not exist */
    TD_UNSUPPORTED = 102, /* well formed, but not built here */
    TD_TOO_LARGE = 103,   /* over a configured or physical limit */
    TD_BUSY = 104,        /* a queue is at its cap: try again */
    TD_CANCELLED = 105,   /* the asker went away */
    TD_CORRUPT = 106,     /* a file or message breaks its own format */
    TD_DENIED = 107,      /* no key or a wrong key */
    TD_UNAVAILABLE = 108, /* not ready, draining, or the group was lost */
    TD_TIMED_OUT = 109,   /* the request's own deadline passed */
    TD_POISON = 110,      /* the group was lost whenever it ran the request */

    TD_PEER_LOST = 200,      /* a rank or connection is gone */
    TD_PEER_TIMED_OUT = 201, /* a peer did not answer within the deadline */
    TD_PEER_PROTOCOL = 202,  /* a peer sent what it must not */
    TD_PEER_MISMATCH = 203,  /* version, model hash, key or step differs */

    TD_NO_MEMORY = 300,
    TD_IO = 301,     /* the operating system refused */
    TD_DEVICE = 302, /* the device or its library failed */
    TD_INTERNAL = 303
};

/* Cause and context are kept apart, so that a long context never cuts off the cause. */
struct td_err {
    enum td_status status;
    char cause[320];
    char context[192]; /* outermost first, "load rank 3 of 'm.gguf'"; empty when none */
};

/* Writes the root cause (printf style) and clears the context. Returns `status`. `err` may be NULL. */
enum td_status td_err_set(struct td_err *err, enum td_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts context in front of what is there. Returns the status already in `err` (or TD_INTERNAL for NULL). */
enum td_status td_err_context(struct td_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Writes "context: cause" into `out` (always NUL-terminated) and returns `out`. */
const char *td_err_format(const struct td_err *err, char *out, size_t out_bytes);

/* A short lower-case name, "corrupt"; "unknown" for a number that is none. */
const char *td_status_name(enum td_status status);

#endif
