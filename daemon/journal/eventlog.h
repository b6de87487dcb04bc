/* What happened to requests since the last commit, in order: tokens, ends, requests that are dropped. Filled by one thread
 * and handed to another as a whole; gives the events of one part as batches. Pure. */
#ifndef TD_DAEMON_JOURNAL_EVENTLOG_H
#define TD_DAEMON_JOURNAL_EVENTLOG_H

#include "daemon/journal/batch.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Zero-initialise. */
struct td_eventlog {
    struct td_bytes bytes; /* owned */
    uint32_t n;            /* events */
};

/* One token of one part. */
struct td_eventlog_token {
    bool is_prompt;       /* an entry of the prompt, `index` is its position; else of the output */
    uint32_t index;       /* counts up without gaps: from 0, of the prompt from 1 */
    uint32_t id;          /* vocabulary index */
    struct td_str detail; /* opaque; may be empty */
};

/* All copy what they are given. TD_NO_MEMORY: nothing was added. */
enum td_status td_eventlog_token(struct td_eventlog *log, uint64_t number, uint32_t part,
                                 const struct td_eventlog_token *token);
enum td_status td_eventlog_end(struct td_eventlog *log, uint64_t number, uint32_t part,
                               const struct td_batch_end *end);
enum td_status td_eventlog_drop(struct td_eventlog *log, uint64_t number);

/* Request after request and part after part; a batch holds the tokens that follow each other, an end its last ones. `batch`
 * NULL: the request is dropped, which comes after everything else of it. The first status that is not TD_OK ends it. */
typedef enum td_status td_eventlog_visit_fn(uint64_t number, const struct td_batch *batch,
                                            void *user, struct td_err *err);
enum td_status td_eventlog_each(const struct td_eventlog *log, td_eventlog_visit_fn *visit,
                                void *user, struct td_err *err);
/* Copies ends and drops, without tokens, behind what `to` has, as long as that stays below `max_bytes`. */
void td_eventlog_keep_ends(const struct td_eventlog *from, struct td_eventlog *to,
                           size_t max_bytes);
void td_eventlog_clear(struct td_eventlog *log);
void td_eventlog_deinit(struct td_eventlog *log);

#endif
