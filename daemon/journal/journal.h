/* The journal: every accepted request with what became of it, on disk, so that a coordinator that was killed goes on where
 * it was. All of it is for the loop thread; a thread of its own does the writing, and nothing here waits for it.
 * Knows no HTTP, no jobs and no group: services and the coordinator bring records and tokens. */
#ifndef TD_DAEMON_JOURNAL_JOURNAL_H
#define TD_DAEMON_JOURNAL_JOURNAL_H

#include "daemon/journal/eventlog.h"
#include "daemon/journal/record.h"
#include "daemon/journal/stored.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct td_journal;
struct td_metrics;

struct td_journal_params {
    uv_loop_t *loop;
    const char *path;         /* its folders are made where they are missing */
    uint64_t retention_ms;    /* that an ended request is kept */
    uint64_t max_bytes;       /* of the file; 0: 1 GiB. Ended requests make way, open ones do not */
    size_t max_pending_bytes; /* not written yet; 0: 64 MiB */
    uint32_t retry_ms;        /* between attempts while nothing can be written; 0: 3000 */
    uint32_t patience_ms;     /* that a disk has for an answer, else it goes on without; 0: 2000 */
};

/* Recovers the file; blocks while it reads all of it. A damaged one is moved aside, with a line in the log, and a new one
 * begun; where nothing can be written the journal is down, with a line in the log, and comes back by itself. TD_BUSY: another
 * process has it; TD_UNSUPPORTED: it is of a later version; TD_INVALID: the path or what lies there; TD_NO_MEMORY. */
enum td_status td_journal_open(const struct td_journal_params *params, struct td_journal **j,
                               struct td_err *err);
/* All open requests, or all ended ones that are kept, the oldest first; before td_journal_start, blocks. The visitor may
 * take `stored` (and zero it). A part that has an end needs nothing more. */
typedef void td_journal_visit_fn(struct td_stored *stored, void *user);
enum td_status td_journal_restore(struct td_journal *j, bool ended, td_journal_visit_fn *visit,
                                  void *user, struct td_err *err);
/* Begins the thread. TD_NO_MEMORY. */
enum td_status td_journal_start(struct td_journal *j, struct td_err *err);
/* Writes what is pending and ends the thread; may block, for patience_ms at most. Outstanding callbacks run inside. */
void td_journal_stop(struct td_journal *j);
/* After the loop has run once more. NULL is legal. */
void td_journal_close(struct td_journal *j);

enum td_journal_verdict {
    TD_JOURNAL_KEPT = 0, /* on disk: it survives whatever happens now */
    TD_JOURNAL_NOT_KEPT, /* the journal is down, full or stuck: go on without */
    TD_JOURNAL_REPEATED, /* its owner used the idempotency key before, for the same body */
    TD_JOURNAL_CONFLICT  /* and for another body */
};
struct td_journal_answer {
    enum td_journal_verdict verdict;
    uint64_t number;  /* TD_JOURNAL_KEPT: for the calls below; else 0 */
    struct td_str id; /* REPEATED, CONFLICT: of the request that used the key; borrowed */
};
typedef void td_journal_accept_fn(const struct td_journal_answer *answer, void *user);
/* Keeps a request. `done` is called once, from the loop, when it is durable or is known not to be. `record` is borrowed for
 * the call. td_record_encode's errors, and TD_UNAVAILABLE when too much waits to be written, the disk is stuck, or the journal
 * was stopped: then `done` is not called. */
enum td_status td_journal_accept(struct td_journal *j, const struct td_record *record,
                                 td_journal_accept_fn *done, void *user, struct td_err *err);

/* What became of it; number 0 (a request that is not kept) and a journal of NULL do nothing. Written within 50 ms or 256
 * events: what a crash takes of it is computed again, to the same bits. */
void td_journal_token(struct td_journal *j, uint64_t number, uint32_t part,
                      const struct td_eventlog_token *token);
/* After its last token. With the last part the request is ended, and is kept for retention_ms. */
void td_journal_end(struct td_journal *j, uint64_t number, uint32_t part,
                    const struct td_batch_end *end);
/* Nobody will ask for it again. */
void td_journal_drop(struct td_journal *j, uint64_t number);

/* Reads one request by its public id or by an idempotency key (the other is empty), of that owner alone, with everything that
 * was said of it before this call. `done` is called once, from the loop; it may take `stored` (and zero it). Its status:
 * TD_NOT_FOUND, TD_UNAVAILABLE while the journal is down or stuck, TD_NO_MEMORY. */
typedef void td_journal_find_fn(enum td_status status, struct td_stored *stored,
                                const struct td_err *err, void *user);
enum td_status td_journal_find(struct td_journal *j, uint64_t owner, struct td_str id,
                               struct td_str idempotency, td_journal_find_fn *done, void *user,
                               struct td_err *err);

struct td_journal_state {
    bool is_up;
    uint64_t n_kept, n_not_kept; /* requests */
    uint64_t n_repeated;         /* answered from an earlier one, conflicts too */
    uint64_t n_lost_tokens;      /* not written: down, or too much was pending */
    uint64_t n_commits, n_expired;
    uint64_t bytes; /* of the file, in use */
    size_t pending_bytes;
};
void td_journal_state(struct td_journal *j, struct td_journal_state *state);
/* Registers tensord_journal_* and keeps them from then on. Before td_journal_start. */
enum td_status td_journal_metrics(struct td_journal *j, struct td_metrics *metrics,
                                  struct td_err *err);

#endif
