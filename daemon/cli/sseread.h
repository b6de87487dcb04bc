/* Reads server-sent events (WHATWG HTML, section 9.2.6) from bytes that come in any pieces, and says when the first byte of
 * each event came. Plain state, any one thread; knows no socket and no API. */
#ifndef TD_DAEMON_CLI_SSEREAD_H
#define TD_DAEMON_CLI_SSEREAD_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* One event: its data, borrowed during the call, and when the first byte of its first line came. False ends the reading. */
typedef bool td_sseread_fn(void *user, struct td_str data, uint64_t first_ns);

struct td_sseread {
    struct td_bytes line; /* the begun line */
    struct td_bytes data; /* of the begun event; each line of it ends with a newline */
    uint64_t first_ns;    /* valid while in_event */
    bool in_event;        /* a byte has come since the last event or comment before one */
    bool has_line;        /* so has a whole line that is no comment */
    bool after_cr;        /* the last byte ended a line as '\r': a '\n' belongs to it */
    bool past_start;      /* the first line, which may begin with a byte order mark, is behind */
};

/* `max_bytes` caps a line and an event's data, each. td_sseread_deinit frees. */
void td_sseread_init(struct td_sseread *r, size_t max_bytes);
/* For the next stream; memory is kept. */
void td_sseread_reset(struct td_sseread *r);
/* Takes what came at now_ns. TD_CANCELLED when `fn` returned false, TD_TOO_LARGE, TD_NO_MEMORY; then the reader must be
 * reset. An event that the stream's end cuts off is none, as the standard says. */
enum td_status td_sseread_feed(struct td_sseread *r, struct td_str bytes, uint64_t now_ns,
                               td_sseread_fn *fn, void *user);
void td_sseread_deinit(struct td_sseread *r);

#endif
