/* What is known of one streamed request to an OpenAI-compatible server: when its parts came, how many tokens, how it ended; and
 * what the events of its answer say about that. Plain state, one writer; knows no socket. */
#ifndef TD_DAEMON_CLI_LOADRECORD_H
#define TD_DAEMON_CLI_LOADRECORD_H

#include "kernels/base/bytes.h"

#include <stdbool.h>
#include <stdint.h>

/* How a request ended. All but the first and the last are failures. */
enum td_loadrecord_end {
    TD_LOADRECORD_OK,
    TD_LOADRECORD_REFUSED, /* 429 or 503: the server is full or not ready */
    TD_LOADRECORD_HTTP,    /* any other status but 200 */
    TD_LOADRECORD_CONNECT, /* no connection */
    TD_LOADRECORD_BROKEN, /* the answer broke off, or was no stream of events as OpenAI's API has them */
    TD_LOADRECORD_ERROR, /* an error as an event of the stream */
    TD_LOADRECORD_EMPTY, /* a whole answer without a token */
    TD_LOADRECORD_TIMEOUT,
    TD_LOADRECORD_CANCELLED, /* by us: the benchmark was stopped */
    TD_LOADRECORD_N_ENDS
};
const char *td_loadrecord_end_name(enum td_loadrecord_end end); /* "refused" */

/* Times in ns of td_clock_now_ns; 0: did not happen. An event with text is one of a token, whose text may be empty. */
struct td_loadrecord {
    uint64_t index;        /* of the load */
    uint64_t due_ns;       /* when it should have been sent */
    uint64_t sent_ns;      /* when it was handed to a socket; a new connection is made after that */
    uint64_t first_ns;     /* first event with text */
    uint64_t last_text_ns; /* last event with text */
    uint64_t last_ns;      /* the same, or the event that says why the text ended */
    uint64_t end_ns;       /* the last byte, or the failure */
    enum td_loadrecord_end end;
    int http_status;   /* 0: none came */
    uint32_t n_events; /* with text */
    float *gap_ms;     /* [n_gaps], owned: times between events with text */
    uint32_t n_gaps, cap_gaps;
    bool has_usage;                       /* the next three are the server's own count */
    uint32_t n_input, n_output, n_cached; /* tokens; n_cached: of the input, found in its cache */
    uint32_t n_words, n_asked;            /* what was sent: words of the prompt, tokens asked for */
    char *reason;                         /* owned; of a failure, for people; may be NULL */
};

/* Takes one event's data, whose first byte came at first_ns. False: the request has failed (r->end and r->reason say how); true:
 * it goes on. *finished is set by the event that ends the text and by "[DONE]". */
bool td_loadrecord_take_event(struct td_loadrecord *r, struct td_str data, uint64_t first_ns,
                              bool *finished);
/* Notes a failure; the first reason stays. */
void td_loadrecord_fail(struct td_loadrecord *r, enum td_loadrecord_end end, const char *reason);
void td_loadrecord_deinit(struct td_loadrecord *r);

#endif
