/* Inside of the journal's file: one struct, shared by journaldb.c (requests in and out) and journaldb_open.c (files,
 * schema, recovery). */
#ifndef TD_DAEMON_JOURNAL_JOURNALDB_IMPL_H
#define TD_DAEMON_JOURNAL_JOURNALDB_IMPL_H

#include "daemon/journal/journaldb.h"

#include <sqlite3.h>

enum td_journaldb_sql {
    TD_JOURNALDB_SQL_BY_IDEMPOTENCY,
    TD_JOURNALDB_SQL_BY_ID,
    TD_JOURNALDB_SQL_ACCEPT,
    TD_JOURNALDB_SQL_APPEND,
    TD_JOURNALDB_SQL_END_PART,
    TD_JOURNALDB_SQL_SET_OPEN,
    TD_JOURNALDB_SQL_DROP,
    TD_JOURNALDB_SQL_DROP_BATCHES,
    TD_JOURNALDB_SQL_EXPIRE,
    TD_JOURNALDB_SQL_EXPIRE_BATCHES,
    TD_JOURNALDB_SQL_NEXT,
    TD_JOURNALDB_SQL_PAGES,
    TD_JOURNALDB_SQL_OPEN,
    TD_JOURNALDB_SQL_ENDED,
    TD_JOURNALDB_SQL_BATCHES,
    TD_JOURNALDB_N_SQL
};

struct td_journaldb {
    char *path;
    sqlite3 *sqlite;
    sqlite3_stmt *sql[TD_JOURNALDB_N_SQL];
    bool is_ours;    /* there was a sign that the file is a journal */
    bool is_settled; /* it was looked through, and is one */
    int n_wal_pages; /* in the log, after the last commit */
};

/* Fills `err` from what SQLite said last: "journal 'PATH': WHAT: ...". Its texts hold no values. */
enum td_status td_journaldb_fail(struct td_journaldb *db, int rc, const char *what,
                                 struct td_err *err);
/* Runs statements without results. */
enum td_status td_journaldb_exec(struct td_journaldb *db, const char *sql, struct td_err *err);

#endif
