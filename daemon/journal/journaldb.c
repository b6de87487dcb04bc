#include "daemon/journal/journaldb_impl.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { MAX_WAL_PAGES = 1000 };

/* ---- statements ---- */

static int64_t checksum(const void *data, size_t n, uint64_t number)
{
    return (int64_t)XXH3_64bits_withSeed(data, n, number);
}

static void bind_int(sqlite3_stmt *s, int at, int64_t value)
{
    sqlite3_bind_int64(s, at, value);
}

/* Borrows until the statement was run. A failed bind leaves NULL, which the table refuses. */
static void bind_blob(sqlite3_stmt *s, int at, const void *data, size_t n)
{
    sqlite3_bind_blob64(s, at, n ? data : "", n, SQLITE_STATIC);
}

static void bind_text(sqlite3_stmt *s, int at, struct td_str text)
{
    sqlite3_bind_text64(s, at, text.len ? text.ptr : "", text.len, SQLITE_STATIC, SQLITE_UTF8);
}

static void reset(sqlite3_stmt *s)
{
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
}

/* A statement without results. */
static enum td_status run(struct td_journaldb *db, enum td_journaldb_sql which, const char *what,
                          struct td_err *err)
{
    int rc = sqlite3_step(db->sql[which]);
    enum td_status st = rc == SQLITE_DONE ? TD_OK : td_journaldb_fail(db, rc, what, err);

    reset(db->sql[which]);
    return st;
}

static struct td_str column(sqlite3_stmt *s, int at)
{
    const void *data = sqlite3_column_blob(s, at);

    return (struct td_str){data ? data : "", data ? (size_t)sqlite3_column_bytes(s, at) : 0};
}

/* ---- transactions ---- */

enum td_status td_journaldb_begin(struct td_journaldb *db, struct td_err *err)
{
    return td_journaldb_exec(db, "BEGIN IMMEDIATE", err);
}

enum td_status td_journaldb_commit(struct td_journaldb *db, struct td_err *err)
{
    return td_journaldb_exec(db, "COMMIT", err);
}

void td_journaldb_rollback(struct td_journaldb *db)
{
    if (!sqlite3_get_autocommit(db->sqlite))
        td_journaldb_exec(db, "ROLLBACK", NULL);
}

enum td_status td_journaldb_checkpoint(struct td_journaldb *db, bool all, struct td_err *err)
{
    int rc;

    if (!all && db->n_wal_pages < MAX_WAL_PAGES)
        return TD_OK;
    /* Never a log that is copied but not emptied: what a damaged one left behind could not be told from what it was. */
    rc = sqlite3_wal_checkpoint_v2(db->sqlite, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    if (rc)
        return td_journaldb_fail(db, rc, "checkpoint", err);
    db->n_wal_pages = 0;
    return TD_OK;
}

enum td_status td_journaldb_probe(struct td_journaldb *db, struct td_err *err)
{
    /* A row that a crash leaves behind belongs to no request, and goes with the next probe. */
    static const char *const WRITE =
        "INSERT INTO batch(request, body, checksum) VALUES(0, zeroblob(65536), 0)";
    static const char *const REMOVE = "DELETE FROM batch WHERE request = 0";
    enum td_status st = td_journaldb_exec(db, WRITE, err);

    return st ? st : td_journaldb_exec(db, REMOVE, err);
}

/* ---- requests in ---- */

/* Whether the idempotency key was used; what is over does not count, and makes way. */
static enum td_status look_up(struct td_journaldb *db, const struct td_journaldb_accept *a,
                              enum td_journaldb_verdict *verdict, struct td_bytes *earlier,
                              struct td_err *err)
{
    sqlite3_stmt *s = db->sql[TD_JOURNALDB_SQL_BY_IDEMPOTENCY];
    enum td_status st = TD_OK;
    bool is_over = false;
    uint64_t number = 0;
    int rc;

    *verdict = TD_JOURNALDB_KEPT;
    bind_int(s, 1, (int64_t)a->owner);
    bind_blob(s, 2, a->idempotency.ptr, a->idempotency.len);
    rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        struct td_str hash = column(s, 5);

        number = (uint64_t)sqlite3_column_int64(s, 0);
        is_over =
            sqlite3_column_type(s, 3) != SQLITE_NULL && sqlite3_column_int64(s, 3) <= a->now_ms;
        *verdict =
            hash.len == TD_RECORD_BODY_HASH_BYTES && memcmp(hash.ptr, a->body_hash, hash.len) == 0
                ? TD_JOURNALDB_REPEATED
                : TD_JOURNALDB_CONFLICT;
        td_bytes_clear(earlier);
        if (td_bytes_append_str(earlier, column(s, 4)))
            st = td_err_set(err, TD_NO_MEMORY, "no memory for a request's id");
    } else if (rc != SQLITE_DONE) {
        st = td_journaldb_fail(db, rc, "look for an idempotency key", err);
    }
    reset(s);
    if (!st && is_over) {
        *verdict = TD_JOURNALDB_KEPT;
        st = td_journaldb_drop(db, number, err);
    }
    return st;
}

enum td_status td_journaldb_accept(struct td_journaldb *db, const struct td_journaldb_accept *a,
                                   enum td_journaldb_verdict *verdict, struct td_bytes *earlier,
                                   struct td_err *err)
{
    sqlite3_stmt *s = db->sql[TD_JOURNALDB_SQL_ACCEPT];
    enum td_status st = TD_OK;
    int rc;

    *verdict = TD_JOURNALDB_KEPT;
    if (a->idempotency.len)
        st = look_up(db, a, verdict, earlier, err);
    if (st || *verdict != TD_JOURNALDB_KEPT)
        return st;
    bind_int(s, 1, (int64_t)a->number);
    bind_text(s, 2, a->id);
    bind_int(s, 3, (int64_t)a->owner);
    if (a->idempotency.len)
        bind_blob(s, 4, a->idempotency.ptr, a->idempotency.len);
    bind_blob(s, 5, a->body_hash, TD_RECORD_BODY_HASH_BYTES);
    bind_int(s, 6, a->n_parts);
    bind_blob(s, 7, a->record.ptr, a->record.len);
    bind_int(s, 8, checksum(a->record.ptr, a->record.len, a->number));
    rc = sqlite3_step(s);
    if ((rc & 0xff) == SQLITE_CONSTRAINT)
        st = td_err_set(err, TD_INVALID, "a request with the id '%.*s' is in the journal already",
                        (int)a->id.len, a->id.ptr);
    else if (rc != SQLITE_DONE)
        st = td_journaldb_fail(db, rc, "accept a request", err);
    reset(s);
    return st;
}

enum td_status td_journaldb_append(struct td_journaldb *db, uint64_t number, struct td_str batch,
                                   struct td_err *err)
{
    sqlite3_stmt *s = db->sql[TD_JOURNALDB_SQL_APPEND];

    bind_int(s, 1, (int64_t)number);
    bind_blob(s, 2, batch.ptr, batch.len);
    bind_int(s, 3, checksum(batch.ptr, batch.len, number));
    return run(db, TD_JOURNALDB_SQL_APPEND, "append tokens", err);
}

enum td_status td_journaldb_end_part(struct td_journaldb *db, uint64_t number, int64_t expires_ms,
                                     struct td_err *err)
{
    sqlite3_stmt *s = db->sql[TD_JOURNALDB_SQL_END_PART];

    bind_int(s, 1, (int64_t)number);
    bind_int(s, 2, expires_ms);
    return run(db, TD_JOURNALDB_SQL_END_PART, "end a request", err);
}

enum td_status td_journaldb_drop(struct td_journaldb *db, uint64_t number, struct td_err *err)
{
    enum td_status st;

    bind_int(db->sql[TD_JOURNALDB_SQL_DROP_BATCHES], 1, (int64_t)number);
    bind_int(db->sql[TD_JOURNALDB_SQL_DROP], 1, (int64_t)number);
    st = run(db, TD_JOURNALDB_SQL_DROP_BATCHES, "drop a request", err);
    return st ? st : run(db, TD_JOURNALDB_SQL_DROP, "drop a request", err);
}

enum td_status td_journaldb_expire(struct td_journaldb *db, int64_t now_ms, uint32_t *n,
                                   struct td_err *err)
{
    enum td_status st;

    *n = 0;
    st = td_journaldb_begin(db, err);
    if (st)
        return st;
    bind_int(db->sql[TD_JOURNALDB_SQL_EXPIRE_BATCHES], 1, now_ms);
    bind_int(db->sql[TD_JOURNALDB_SQL_EXPIRE], 1, now_ms);
    st = run(db, TD_JOURNALDB_SQL_EXPIRE_BATCHES, "remove what is over", err);
    st = st ? st : run(db, TD_JOURNALDB_SQL_EXPIRE, "remove what is over", err);
    if (!st)
        *n = (uint32_t)sqlite3_changes(db->sqlite);
    st = st ? st : td_journaldb_commit(db, err);
    if (st) {
        td_journaldb_rollback(db);
        return st;
    }
    return *n ? td_journaldb_exec(db, "PRAGMA incremental_vacuum(4096)", err) : TD_OK;
}

/* ---- facts ---- */

static enum td_status ask(struct td_journaldb *db, enum td_journaldb_sql which, int64_t *values,
                          int n, struct td_err *err)
{
    sqlite3_stmt *s = db->sql[which];
    int rc = sqlite3_step(s);
    enum td_status st = rc == SQLITE_ROW ? TD_OK : td_journaldb_fail(db, rc, "read", err);

    for (int i = 0; !st && i < n; i++)
        values[i] = sqlite3_column_int64(s, i);
    reset(s);
    return st;
}

enum td_status td_journaldb_next(struct td_journaldb *db, uint64_t *number, struct td_err *err)
{
    int64_t last = 0;
    enum td_status st = ask(db, TD_JOURNALDB_SQL_NEXT, &last, 1, err);

    if (st)
        return st;
    if (last < 0 || last > INT64_MAX / 2)
        return td_err_set(err, TD_CORRUPT,
                          "journal '%s' is damaged: its last request is number %lld", db->path,
                          (long long)last);
    *number = (uint64_t)last + 1;
    return TD_OK;
}

enum td_status td_journaldb_bytes(struct td_journaldb *db, uint64_t *bytes, struct td_err *err)
{
    int64_t pages[3] = {0};
    enum td_status st = ask(db, TD_JOURNALDB_SQL_PAGES, pages, 3, err);

    if (!st)
        *bytes = (uint64_t)(pages[0] - pages[1]) * (uint64_t)pages[2];
    return st;
}

/* ---- requests out ---- */

static enum td_status read_batches(struct td_journaldb *db, struct td_stored *stored,
                                   struct td_err *err)
{
    sqlite3_stmt *s = db->sql[TD_JOURNALDB_SQL_BATCHES];
    enum td_status st = TD_OK;
    int rc;

    bind_int(s, 1, (int64_t)stored->number);
    while ((rc = sqlite3_step(s)) == SQLITE_ROW && st != TD_NO_MEMORY) {
        struct td_str body = column(s, 0);
        struct td_batch batch;

        /* What is damaged is a gap: what follows it is computed again. */
        if (sqlite3_column_int64(s, 1) != checksum(body.ptr, body.len, stored->number))
            continue;
        st = td_batch_decode(body, &batch, err);
        if (st)
            continue;
        st = td_stored_add(stored, &batch, err);
        td_batch_deinit(&batch);
    }
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        st = td_journaldb_fail(db, rc, "read tokens", err);
    else if (st != TD_NO_MEMORY)
        st = TD_OK;
    reset(s);
    return st;
}

/* The row at hand of a statement that begins with number, record, checksum, expires. */
static enum td_status read_row(struct td_journaldb *db, sqlite3_stmt *s, struct td_stored *out,
                               struct td_err *err)
{
    uint64_t number = (uint64_t)sqlite3_column_int64(s, 0);
    struct td_str record = column(s, 1);
    struct td_stored stored;
    enum td_status st;

    if (sqlite3_column_int64(s, 2) != checksum(record.ptr, record.len, number))
        return td_err_set(err, TD_CORRUPT, "request %llu of journal '%s' is damaged",
                          (unsigned long long)number, db->path);
    st = td_stored_init(&stored, number, record, err);
    if (st)
        return st;
    stored.is_ended = sqlite3_column_type(s, 3) != SQLITE_NULL;
    stored.expires_ms = sqlite3_column_int64(s, 3);
    st = read_batches(db, &stored, err);
    if (st)
        td_stored_deinit(&stored);
    else
        *out = stored;
    return st;
}

enum td_status td_journaldb_find(struct td_journaldb *db, uint64_t owner, struct td_str id,
                                 struct td_str idempotency, int64_t now_ms, struct td_stored *out,
                                 struct td_err *err)
{
    sqlite3_stmt *s = db->sql[id.len ? TD_JOURNALDB_SQL_BY_ID : TD_JOURNALDB_SQL_BY_IDEMPOTENCY];
    enum td_status st;
    int rc;

    bind_int(s, 1, (int64_t)owner);
    if (id.len)
        bind_text(s, 2, id);
    else
        bind_blob(s, 2, idempotency.ptr, idempotency.len);
    rc = sqlite3_step(s);
    if (rc == SQLITE_ROW &&
        (sqlite3_column_type(s, 3) == SQLITE_NULL || sqlite3_column_int64(s, 3) > now_ms))
        st = read_row(db, s, out, err);
    else if (rc == SQLITE_ROW || rc == SQLITE_DONE)
        st = td_err_set(err, TD_NOT_FOUND, "no request of that id or idempotency key is kept");
    else
        st = td_journaldb_fail(db, rc, "look for a request", err);
    reset(s);
    return st;
}

/* After a restart the parts that must run again are counted anew: an end without all of its tokens does not count. A full
 * disk must not keep anybody from reading. */
static enum td_status count_open(struct td_journaldb *db, const struct td_stored *stored,
                                 int64_t n_noted, struct td_err *err)
{
    enum td_status st;
    uint32_t n = 0;

    for (uint32_t i = 0; i < td_record_n_parts(&stored->record); i++)
        n += !stored->parts[i].has_end;
    if (n == n_noted)
        return TD_OK;
    bind_int(db->sql[TD_JOURNALDB_SQL_SET_OPEN], 1, (int64_t)stored->number);
    bind_int(db->sql[TD_JOURNALDB_SQL_SET_OPEN], 2, n);
    st = run(db, TD_JOURNALDB_SQL_SET_OPEN, "count parts", err);
    return st == TD_IO ? TD_OK : st;
}

enum td_status td_journaldb_each(struct td_journaldb *db, bool ended, int64_t now_ms,
                                 td_journaldb_visit_fn *visit, void *user, uint32_t *n_damaged,
                                 struct td_err *err)
{
    sqlite3_stmt *s = db->sql[ended ? TD_JOURNALDB_SQL_ENDED : TD_JOURNALDB_SQL_OPEN];
    enum td_status st = TD_OK;
    int rc = SQLITE_DONE;

    *n_damaged = 0;
    if (ended)
        bind_int(s, 1, now_ms);
    while (!st && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        struct td_stored stored = {0};

        st = read_row(db, s, &stored, err);
        if (st == TD_CORRUPT) {
            ++*n_damaged;
            st = TD_OK;
            continue;
        }
        if (!st && !ended)
            st = count_open(db, &stored, sqlite3_column_int64(s, 4), err);
        if (!st)
            visit(&stored, user);
        td_stored_deinit(&stored);
    }
    if (!st && rc != SQLITE_DONE)
        st = td_journaldb_fail(db, rc, "read requests", err);
    reset(s);
    return st;
}
