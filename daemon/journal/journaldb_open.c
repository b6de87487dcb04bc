#include "daemon/journal/journaldb_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ROW_BYTES = TD_RECORD_MAX_BYTES + (1 << 20), HEADER_BYTES = 100, APPLICATION_AT = 68 };

/* The schema, statement by statement, as SQLite keeps it: a file whose schema reads otherwise is not used. Rows carry the
 * XXH3-64 of their bytes, with the request's number as its seed. */
#define REQUEST_TABLE                                                                              \
    "CREATE TABLE request(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, "     \
    "owner INTEGER NOT NULL, idempotency BLOB, body_hash BLOB NOT NULL, n_open INTEGER NOT NULL, " \
    "expires INTEGER, record BLOB NOT NULL, checksum INTEGER NOT NULL)"
#define IDEMPOTENCY_INDEX                                                                          \
    "CREATE UNIQUE INDEX request_by_idempotency ON request(owner, idempotency) WHERE idempotency " \
    "IS NOT NULL"
#define EXPIRY_INDEX                                                                               \
    "CREATE INDEX request_by_expiry ON request(expires, number) WHERE expires IS NOT NULL"
#define BATCH_TABLE                                                                                \
    "CREATE TABLE batch(row INTEGER PRIMARY KEY, request INTEGER NOT NULL, body BLOB NOT NULL, "   \
    "checksum INTEGER NOT NULL)"
#define BATCH_INDEX "CREATE INDEX batch_by_request ON batch(request)"
static const char *const SCHEMA[] = {REQUEST_TABLE, IDEMPOTENCY_INDEX, EXPIRY_INDEX, BATCH_TABLE,
                                     BATCH_INDEX};
enum { N_SCHEMA = sizeof SCHEMA / sizeof SCHEMA[0] };

#define EXPIRED                                                                                    \
    "(SELECT number FROM request WHERE expires <= ?1 ORDER BY expires, number LIMIT 256)"

static const char *const SQL[TD_JOURNALDB_N_SQL] = {
    [TD_JOURNALDB_SQL_BY_IDEMPOTENCY] =
        "SELECT number, record, checksum, expires, id, body_hash FROM request WHERE owner = ?1 AND "
        "idempotency = ?2",
    [TD_JOURNALDB_SQL_BY_ID] =
        "SELECT number, record, checksum, expires FROM request WHERE id = ?2 "
        "AND owner = ?1",
    [TD_JOURNALDB_SQL_ACCEPT] = "INSERT INTO request(number, id, owner, idempotency, body_hash, "
                                "n_open, record, checksum) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    [TD_JOURNALDB_SQL_APPEND] =
        "INSERT INTO batch(request, body, checksum) SELECT ?1, ?2, ?3 WHERE "
        "EXISTS(SELECT 1 FROM request WHERE number = ?1)",
    [TD_JOURNALDB_SQL_END_PART] =
        "UPDATE request SET expires = CASE WHEN n_open <= 1 THEN ?2 END, n_open = max(n_open - 1, "
        "0) WHERE number = ?1 AND expires IS NULL",
    [TD_JOURNALDB_SQL_SET_OPEN] = "UPDATE request SET n_open = ?2 WHERE number = ?1",
    [TD_JOURNALDB_SQL_DROP] = "DELETE FROM request WHERE number = ?1",
    [TD_JOURNALDB_SQL_DROP_BATCHES] = "DELETE FROM batch WHERE request = ?1",
    [TD_JOURNALDB_SQL_EXPIRE] = "DELETE FROM request WHERE number IN " EXPIRED,
    [TD_JOURNALDB_SQL_EXPIRE_BATCHES] = "DELETE FROM batch WHERE request IN " EXPIRED,
    [TD_JOURNALDB_SQL_NEXT] =
        "SELECT max(coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'request'), 0), "
        "coalesce((SELECT max(number) FROM request), 0))",
    [TD_JOURNALDB_SQL_PAGES] =
        "SELECT (SELECT page_count FROM pragma_page_count), (SELECT freelist_count FROM "
        "pragma_freelist_count), (SELECT page_size FROM pragma_page_size)",
    [TD_JOURNALDB_SQL_OPEN] = "SELECT number, record, checksum, expires, n_open FROM request WHERE "
                              "expires IS NULL ORDER BY number",
    [TD_JOURNALDB_SQL_ENDED] =
        "SELECT number, record, checksum, expires FROM request WHERE expires "
        "> ?1 ORDER BY number",
    [TD_JOURNALDB_SQL_BATCHES] = "SELECT body, checksum FROM batch WHERE request = ?1 ORDER BY row",
};

/* ---- errors ---- */

static enum td_status status_of(const struct td_journaldb *db, int rc)
{
    switch (rc & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return TD_CORRUPT;
    case SQLITE_ERROR:
    case SQLITE_READONLY: /* by its header: the file itself was opened for writing */
        return db->is_settled ? TD_IO : TD_CORRUPT;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return TD_BUSY;
    case SQLITE_NOMEM:
        return TD_NO_MEMORY;
    case SQLITE_TOOBIG:
        return TD_TOO_LARGE;
    default:
        return TD_IO;
    }
}

enum td_status td_journaldb_fail(struct td_journaldb *db, int rc, const char *what,
                                 struct td_err *err)
{
    int error = sqlite3_system_errno(db->sqlite);
    enum td_status st = status_of(db, rc);
    bool told = st == TD_IO && error;

    return td_err_set(err, st, "journal '%s': %s: %s%s%s", db->path, what, sqlite3_errstr(rc),
                      told ? ": " : "", told ? strerror(error) : "");
}

enum td_status td_journaldb_exec(struct td_journaldb *db, const char *sql, struct td_err *err)
{
    int rc = sqlite3_exec(db->sqlite, sql, NULL, NULL, NULL);

    return rc ? td_journaldb_fail(db, rc, sql, err) : TD_OK;
}

/* ---- the file ---- */

/* Looks before SQLite does: what is certainly no journal is never written to. `is_ours`: there is a sign that it is one. */
static enum td_status look(const struct td_journaldb_params *p, bool *is_ours, struct td_err *err)
{
    static const char MAGIC[16] = "SQLite format 3";
    unsigned char head[HEADER_BYTES];
    int fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
    struct stat st;
    uint32_t application;
    ssize_t n;

    if (fd < 0)
        return td_err_set(err, TD_IO, "journal '%s': %s", p->path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return td_err_set(err, TD_INVALID, "journal '%s' is no regular file", p->path);
    }
    n = pread(fd, head, sizeof head, 0);
    if (n >= 0 && (st.st_mode & 077) && fchmod(fd, 0600))
        n = -1;
    if (n < 0)
        td_err_set(err, TD_IO, "journal '%s': %s", p->path, strerror(errno));
    close(fd);
    if (n <= 0)
        return n < 0 ? TD_IO : TD_OK;
    application = n < HEADER_BYTES ? 0
                                   : (uint32_t)head[APPLICATION_AT] << 24 |
                                         (uint32_t)head[APPLICATION_AT + 1] << 16 |
                                         (uint32_t)head[APPLICATION_AT + 2] << 8 |
                                         (uint32_t)head[APPLICATION_AT + 3];
    *is_ours = p->was_ours || application == TD_JOURNALDB_APPLICATION;
    if (*is_ours && (n < HEADER_BYTES || memcmp(head, MAGIC, sizeof MAGIC) != 0))
        return td_err_set(err, TD_CORRUPT,
                          "journal '%s' is damaged: its first bytes are not those of a SQLite "
                          "database",
                          p->path);
    if (*is_ours || (n == HEADER_BYTES && memcmp(head, MAGIC, sizeof MAGIC) == 0 && !application))
        return TD_OK; /* the mark may stand in the log still */
    return td_err_set(err, TD_INVALID,
                      "'%s' is no journal but another file, with the application id 0x%x, expected "
                      "0x%x: it is left as it is",
                      p->path, application, TD_JOURNALDB_APPLICATION);
}

enum td_status td_journaldb_set_aside(const char *path, char *aside, size_t n_aside,
                                      struct td_err *err)
{
    static const char *const SUFFIXES[] = {"-wal", "-journal", "-shm", ""};
    char stamp[32], from[4200], to[4200];
    time_t now = time(NULL);
    struct tm utc;

    gmtime_r(&now, &utc);
    strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &utc);
    for (int i = 0; i < 100; i++) {
        if (i)
            snprintf(aside, n_aside, "%s.corrupt-%s-%d", path, stamp, i + 1);
        else
            snprintf(aside, n_aside, "%s.corrupt-%s", path, stamp);
        if (access(aside, F_OK))
            break;
    }
    /* The database goes last: after a crash in between it is damaged still, and is moved again. */
    for (size_t i = 0; i < sizeof SUFFIXES / sizeof SUFFIXES[0]; i++) {
        snprintf(from, sizeof from, "%s%s", path, SUFFIXES[i]);
        snprintf(to, sizeof to, "%s%s", aside, SUFFIXES[i]);
        if (rename(from, to) && errno != ENOENT)
            return td_err_set(err, TD_IO, "journal '%s' could not be moved to '%s': %s", from, to,
                              strerror(errno));
    }
    return TD_OK;
}

/* ---- the database ---- */

static enum td_status ask_int(struct td_journaldb *db, const char *sql, int64_t *value,
                              struct td_err *err)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db->sqlite, sql, -1, &stmt, NULL);

    if (!rc)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW)
        *value = sqlite3_column_int64(stmt, 0);
    sqlite3_finalize(stmt);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? TD_OK : td_journaldb_fail(db, rc, sql, err);
}

static enum td_status make_schema(struct td_journaldb *db, struct td_err *err)
{
    char marks[128];
    enum td_status st = td_journaldb_exec(db, "BEGIN IMMEDIATE", err);

    snprintf(marks, sizeof marks, "PRAGMA application_id = %d; PRAGMA user_version = %d",
             TD_JOURNALDB_APPLICATION, TD_JOURNALDB_SCHEMA);
    for (size_t i = 0; !st && i < N_SCHEMA; i++)
        st = td_journaldb_exec(db, SCHEMA[i], err);
    st = st ? st : td_journaldb_exec(db, marks, err);
    return st ? st : td_journaldb_exec(db, "COMMIT", err);
}

static enum td_status damaged(struct td_journaldb *db, const char *what, struct td_err *err)
{
    return td_err_set(err, TD_CORRUPT, "journal '%s' is damaged: %s", db->path, what);
}

static bool is_of_schema(const char *sql)
{
    for (size_t i = 0; sql && i < N_SCHEMA; i++)
        if (strcmp(sql, SCHEMA[i]) == 0)
            return true;
    return false;
}

static enum td_status check_schema(struct td_journaldb *db, struct td_err *err)
{
    static const char *const ALL =
        "SELECT sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'";
    sqlite3_stmt *stmt = NULL;
    size_t n = 0, n_right = 0;
    int rc = sqlite3_prepare_v2(db->sqlite, ALL, -1, &stmt, NULL);

    while (!rc && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        rc = SQLITE_OK;
        n++;
        n_right += is_of_schema((const char *)sqlite3_column_text(stmt, 0));
    }
    sqlite3_finalize(stmt);
    if (rc != SQLITE_DONE)
        return td_journaldb_fail(db, rc, "its schema", err);
    return n == N_SCHEMA && n_right == N_SCHEMA
               ? TD_OK
               : damaged(db, "its tables are not a journal's", err);
}

/* Whose the file is, and whether this program can read it. */
static enum td_status check_marks(struct td_journaldb *db, bool *is_new, struct td_err *err)
{
    int64_t application = 0, schema = 0, n_tables = 0;
    enum td_status st = ask_int(db, "PRAGMA application_id", &application, err);

    st = st ? st : ask_int(db, "PRAGMA user_version", &schema, err);
    st = st ? st : ask_int(db, "SELECT count(*) FROM sqlite_schema", &n_tables, err);
    if (st)
        return st;
    *is_new = application == 0 && schema == 0 && n_tables == 0;
    if (*is_new)
        return TD_OK;
    if (application != TD_JOURNALDB_APPLICATION && db->is_ours)
        return damaged(db, "its mark is another", err);
    if (application != TD_JOURNALDB_APPLICATION)
        return td_err_set(err, TD_INVALID,
                          "'%s' is no journal: a database with the application id 0x%llx, expected "
                          "0x%x; it is left as it is",
                          db->path, (unsigned long long)application, TD_JOURNALDB_APPLICATION);
    db->is_ours = true;
    if (schema > TD_JOURNALDB_SCHEMA)
        return td_err_set(err, TD_UNSUPPORTED,
                          "journal '%s' has schema %lld, of a later version: this one reads %d",
                          db->path, (long long)schema, TD_JOURNALDB_SCHEMA);
    return schema == TD_JOURNALDB_SCHEMA ? TD_OK : damaged(db, "it has no schema's number", err);
}

static enum td_status check_content(struct td_journaldb *db, struct td_err *err)
{
    static const char *const CHECK = "PRAGMA integrity_check(1)";
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db->sqlite, CHECK, -1, &stmt, NULL);
    bool ok = false;

    if (!rc)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(stmt, 0);

        ok = text && strcmp(text, "ok") == 0;
    }
    sqlite3_finalize(stmt);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        return td_journaldb_fail(db, rc, CHECK, err);
    return ok ? TD_OK : damaged(db, "its pages contradict each other", err);
}

static int on_wal(void *user, sqlite3 *sqlite, const char *name, int n_pages)
{
    struct td_journaldb *db = user;

    (void)sqlite;
    (void)name;
    db->n_wal_pages = n_pages;
    return SQLITE_OK;
}

/* EXCLUSIVE: the log's index lies in memory, not in a file, and no other program comes in between. secure_delete: a
 * request that is gone is gone from the file. */
static enum td_status settle(struct td_journaldb *db, struct td_err *err)
{
    static const char *const FIRST =
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA trusted_schema = OFF; "
        "PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -512";
    static const char *const PRAGMAS =
        "PRAGMA secure_delete = ON; PRAGMA auto_vacuum = INCREMENTAL; "
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0";
    bool is_new = false;
    enum td_status st;

    sqlite3_extended_result_codes(db->sqlite, 1);
    sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_limit(db->sqlite, SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES);
    sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    st = td_journaldb_exec(db, FIRST, err);
    st = st ? st : check_marks(db, &is_new, err); /* before anything is written */
    st = st ? st : td_journaldb_exec(db, PRAGMAS, err);
    st = st ? st : is_new ? make_schema(db, err) : check_content(db, err);
    st = st ? st : check_schema(db, err);
    sqlite3_wal_hook(db->sqlite, on_wal, db);
    for (int i = 0; !st && i < TD_JOURNALDB_N_SQL; i++) {
        int rc = sqlite3_prepare_v3(db->sqlite, SQL[i], -1, SQLITE_PREPARE_PERSISTENT, &db->sql[i],
                                    NULL);

        st = rc ? td_journaldb_fail(db, rc, "its tables", err) : TD_OK;
    }
    db->is_settled = !st;
    return st;
}

enum td_status td_journaldb_open(const struct td_journaldb_params *params,
                                 struct td_journaldb **out, struct td_err *err)
{
    struct td_journaldb *db;
    bool is_ours = false;
    enum td_status st = look(params, &is_ours, err);
    int rc;

    if (st)
        return st;
    db = calloc(1, sizeof *db);
    if (!db || !(db->path = malloc(strlen(params->path) + 3))) {
        free(db);
        return td_err_set(err, TD_NO_MEMORY, "no memory for a journal");
    }
    db->is_ours = is_ours;
    /* ":memory:" and the like are names of SQLite's only when no folder stands in front. */
    sprintf(db->path, "%s%s", strchr(params->path, '/') ? "" : "./", params->path);
    rc = sqlite3_open_v2(db->path, &db->sqlite, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    st = rc ? td_journaldb_fail(db, rc, "open", err) : settle(db, err);
    if (st) {
        bool is_foreign = st == TD_CORRUPT && !db->is_ours;

        td_journaldb_close(db);
        return is_foreign ? td_err_set(err, TD_INVALID,
                                       "'%s' is no journal but a database of something else, or a "
                                       "damaged one: it is left as it is",
                                       params->path)
                          : st;
    }
    *out = db;
    return TD_OK;
}

void td_journaldb_close(struct td_journaldb *db)
{
    if (!db)
        return;
    for (int i = 0; i < TD_JOURNALDB_N_SQL; i++)
        sqlite3_finalize(db->sql[i]);
    sqlite3_close_v2(db->sqlite);
    free(db->path);
    free(db);
}
