/* Inside of the journal: one struct, shared by journal.c (the loop's side) and journal_thread.c (the writing). */
#ifndef TD_DAEMON_JOURNAL_JOURNAL_IMPL_H
#define TD_DAEMON_JOURNAL_JOURNAL_IMPL_H

#include "daemon/journal/journal.h"
#include "daemon/journal/journaldb.h"

enum { TD_JOURNAL_N_METRICS = 7 };

/* One accept or find on its way to the thread and back. */
struct td_journal_op {
    struct td_journal_op *next;
    struct td_bytes text; /* id, idempotency key and record, one behind the other */
    struct td_str id, idempotency, record;
    uint64_t owner;
    uint8_t body_hash[TD_RECORD_BODY_HASH_BYTES];
    uint32_t n_parts;

    td_journal_accept_fn *on_accept; /* one of the two */
    td_journal_find_fn *on_find;
    void *user;

    struct td_journal_answer answer;
    struct td_bytes earlier; /* the id in `answer` */
    enum td_status status;   /* of a find */
    struct td_stored stored;
    struct td_err err;

    /* The loop thread's. */
    struct td_journal_op *older, *newer; /* among those that are waited for */
    uint64_t begin_ns;
    bool is_given_up; /* it was answered without the thread */
};

struct td_journal_ops {
    struct td_journal_op *first, **end;
    size_t bytes;
};

struct td_journal {
    struct td_journal_params p;
    char *path;

    /* The loop thread's. */
    uv_async_t async;
    uv_thread_t thread;
    uv_timer_t timer; /* runs while somebody waits */
    bool has_async, has_thread, has_timer;
    struct td_journal_op *oldest, *newest; /* that are waited for */
    bool is_stuck; /* the disk does not answer: nobody waits for it until it has answered once */
    struct td_metric *metric[TD_JOURNAL_N_METRICS];
    struct td_journal_state told; /* what the counters were last told */

    uv_mutex_t lock; /* guards from here to `state` */
    uv_cond_t changed;
    struct td_journal_ops todo, done;
    struct td_eventlog events;
    uint64_t first_event_ns; /* uv_hrtime of the oldest in `events` */
    bool stopping;
    bool is_left; /* its thread could not be waited for */
    struct td_journal_state state;

    /* The journal's thread's (before it runs, the loop's). */
    int lock_fd;                   /* -1: not held yet */
    struct td_journaldb *db;       /* NULL: down */
    struct td_eventlog work, late; /* at hand; ends that came while it was down */
    uint64_t next_number;
    uint64_t retry_at_ns, expire_at_ns;
    bool is_full;
    struct td_bytes batch; /* encoded */
};

void td_journal_append_op(struct td_journal_ops *ops, struct td_journal_op *op);

/* journal_thread.c */
/* Opens or opens again, moving a damaged file aside. TD_IO: nothing can be written now. */
enum td_status td_journal_open_db(struct td_journal *j, struct td_err *err);
/* A damaged file makes way for a new one. `damage` says what was seen. TD_IO and what td_journaldb_open says. */
enum td_status td_journal_begin_anew(struct td_journal *j, const struct td_err *damage,
                                     struct td_err *err);
/* Unix time in milliseconds. */
int64_t td_journal_now_ms(void);
void td_journal_main(void *journal);

#endif
