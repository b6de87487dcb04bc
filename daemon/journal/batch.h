/* What became of one part of a request since the batch before: consecutive tokens, perhaps none, perhaps its end. Plain data
 * into bytes and back; pure. */
#ifndef TD_DAEMON_JOURNAL_BATCH_H
#define TD_DAEMON_JOURNAL_BATCH_H

#include "daemon/engine/request.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct ProtobufCMessage;

enum {
    TD_BATCH_MAX_TOKENS = 1 << 20,
    TD_BATCH_MAX_BYTES = 64 << 20,
    TD_BATCH_MAX_ERROR_BYTES = 300
};

/* How a part ended. */
struct td_batch_end {
    enum td_finish finish;       /* never TD_FINISH_NONE */
    uint32_t n_tokens;           /* of the output */
    enum td_status error_status; /* TD_FINISH_ERROR, else TD_OK */
    struct td_str error_text;    /* cut after TD_BATCH_MAX_ERROR_BYTES */
    struct td_str details;       /* the service's, opaque */
};

struct td_batch {
    uint32_t part;
    bool is_prompt;              /* entries of the prompt, not output */
    uint32_t first;              /* index of the first */
    uint32_t n;                  /* tokens */
    const uint32_t *ids;         /* [n] */
    const struct td_str *detail; /* [n], opaque; NULL: all empty */
    bool has_end;
    struct td_batch_end end; /* after these tokens */

    struct ProtobufCMessage *message; /* of a decoded batch: owns what the slices show */
    struct td_str *details;           /* owned, of a decoded batch */
};

/* Replaces the content of `out`. TD_INVALID, TD_TOO_LARGE, TD_NO_MEMORY. */
enum td_status td_batch_encode(const struct td_batch *b, struct td_bytes *out, struct td_err *err);
/* Any bytes. On success `out` owns all it shows (td_batch_deinit). TD_CORRUPT, TD_NO_MEMORY. */
enum td_status td_batch_decode(struct td_str bytes, struct td_batch *out, struct td_err *err);
void td_batch_deinit(struct td_batch *b); /* of a decoded batch, or a zeroed one */

#endif
