#include "daemon/journal/journaldb.h"

#include "tests/unit/daemon/journal_check.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <time.h>

enum { N_REQUESTS = 12, TOKENS_PER_BATCH = 4, N_BATCHES = 5, FAR_MS = 1 << 30 };

static int64_t now_ms(void)
{
    return (int64_t)time(NULL) * 1000;
}

static struct td_journaldb *must_open(const char *path, bool was_ours)
{
    struct td_journaldb *db = NULL;
    struct td_err err;
    char text[600];

    if (td_journaldb_open(&(struct td_journaldb_params){path, was_ours}, &db, &err))
        fail_msg("%s", td_err_format(&err, text, sizeof text));
    return db;
}

static void accept_one(struct td_journaldb *db, uint32_t i, enum td_journaldb_verdict want,
                       const char *earlier_id)
{
    struct journal_request q;
    struct td_bytes bytes = {0}, earlier = {0};
    enum td_journaldb_verdict verdict;
    struct td_err err;

    journal_make(&q, 1, i);
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_OK);
    const struct td_journaldb_accept a = {.number = i + 1,
                                          .id = q.record.id,
                                          .idempotency = q.record.idempotency,
                                          .owner = q.record.owner,
                                          .body_hash = q.record.body_hash,
                                          .n_parts = td_record_n_parts(&q.record),
                                          .record = td_bytes_str(&bytes),
                                          .now_ms = now_ms()};
    assert_int_equal(td_journaldb_accept(db, &a, &verdict, &earlier, &err), TD_OK);
    assert_int_equal(verdict, want);
    if (earlier_id)
        assert_string_equal(earlier.data, earlier_id);
    td_bytes_deinit(&earlier);
    td_bytes_deinit(&bytes);
    journal_free(&q);
}

static void append_tokens(struct td_journaldb *db, uint32_t i, uint32_t p, uint32_t first, bool end)
{
    uint32_t ids[TOKENS_PER_BATCH];
    struct td_batch b = {.part = p, .first = first, .n = TOKENS_PER_BATCH, .ids = ids};
    struct td_bytes bytes = {0};
    struct td_err err;

    for (uint32_t t = 0; t < TOKENS_PER_BATCH; t++)
        ids[t] = journal_token_id(i, p, first + t);
    b.has_end = end;
    b.end = (struct td_batch_end){.finish = TD_FINISH_LENGTH, .n_tokens = first + TOKENS_PER_BATCH};
    assert_int_equal(td_batch_encode(&b, &bytes, &err), TD_OK);
    assert_int_equal(td_journaldb_append(db, i + 1, td_bytes_str(&bytes), &err), TD_OK);
    if (end)
        assert_int_equal(td_journaldb_end_part(db, i + 1, now_ms() + FAR_MS, &err), TD_OK);
    td_bytes_deinit(&bytes);
}

/* A commit per request and one per round of tokens; each third request ends. */
static void write_all(struct td_journaldb *db)
{
    struct td_err err;

    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        assert_int_equal(td_journaldb_begin(db, &err), TD_OK);
        accept_one(db, i, TD_JOURNALDB_KEPT, NULL);
        assert_int_equal(td_journaldb_commit(db, &err), TD_OK);
        for (uint32_t k = 0; k < N_BATCHES; k++) {
            uint32_t n_parts = (1 + i % 3) * (1 + i % 2);

            assert_int_equal(td_journaldb_begin(db, &err), TD_OK);
            for (uint32_t p = 0; p < n_parts; p++)
                append_tokens(db, i, p, k * TOKENS_PER_BATCH, i % 3 == 0 && k + 1 == N_BATCHES);
            assert_int_equal(td_journaldb_commit(db, &err), TD_OK);
        }
    }
}

/* What a reading gave, and whether it could be what was written up to some moment. */
struct seen {
    bool is[N_REQUESTS], is_whole[N_REQUESTS];
    uint32_t n;
};

static void check_one(struct td_stored *s, void *user)
{
    struct seen *seen = user;
    uint32_t i = (uint32_t)s->number - 1;
    struct journal_request q;

    assert_true(s->number >= 1 && s->number <= N_REQUESTS);
    assert_false(seen->is[i]);
    journal_make(&q, 1, i);
    journal_assert_record(&s->record, &q.record);
    seen->is[i] = seen->is_whole[i] = true;
    seen->n++;
    for (uint32_t p = 0; p < td_record_n_parts(&s->record); p++) {
        const struct td_stored_part *part = &s->parts[p];

        /* Parts of one commit: all have it or none has. */
        assert_int_equal(part->output.n, s->parts[0].output.n);
        assert_int_equal(part->output.n % TOKENS_PER_BATCH, 0);
        for (uint32_t t = 0; t < part->output.n; t++)
            assert_int_equal(part->output.ids[t], journal_token_id(i, p, t));
        seen->is_whole[i] &= part->output.n == N_BATCHES * TOKENS_PER_BATCH;
        assert_int_equal(part->has_end, i % 3 == 0 && seen->is_whole[i]);
    }
    assert_int_equal(s->is_ended, i % 3 == 0 && seen->is_whole[i]);
    journal_free(&q);
}

static struct seen read_all(struct td_journaldb *db)
{
    struct seen seen = {0};
    uint32_t n_damaged;
    struct td_err err;

    assert_int_equal(td_journaldb_each(db, false, now_ms(), check_one, &seen, &n_damaged, &err),
                     TD_OK);
    assert_int_equal(n_damaged, 0);
    assert_int_equal(td_journaldb_each(db, true, now_ms(), check_one, &seen, &n_damaged, &err),
                     TD_OK);
    assert_int_equal(n_damaged, 0);
    /* In the order of acceptance, and only the last one in the middle of something. */
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        assert_int_equal(seen.is[i], i < seen.n);
        if (i + 1 < seen.n)
            assert_true(seen.is_whole[i]);
    }
    return seen;
}

static void test_journaldb_reads_back_what_was_written_oldest_first(void **state)
{
    char dir[64], path[128];
    struct td_journaldb *db;
    struct td_stored stored;
    struct journal_request q;
    struct td_err err;
    struct stat st;
    uint64_t next;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    umask(0); /* the file's mode does not depend on it */
    db = must_open(path, false);
    write_all(db);
    assert_int_equal(read_all(db).n, N_REQUESTS);
    td_journaldb_close(db);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    strcat(path, "-wal");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    path[strlen(path) - 4] = '\0';

    db = must_open(path, false);
    assert_int_equal(read_all(db).n, N_REQUESTS);
    assert_int_equal(td_journaldb_next(db, &next, &err), TD_OK);
    assert_int_equal(next, N_REQUESTS + 1);
    journal_make(&q, 1, 5);
    assert_int_equal(
        td_journaldb_find(db, q.record.owner, q.record.id, TD_STR(""), now_ms(), &stored, &err),
        TD_OK);
    journal_assert_record(&stored.record, &q.record);
    td_stored_deinit(&stored);
    assert_int_equal(td_journaldb_find(db, q.record.owner, TD_STR(""), q.record.idempotency,
                                       now_ms(), &stored, &err),
                     TD_OK);
    journal_assert_str(stored.record.id, q.record.id);
    td_stored_deinit(&stored);
    /* Nobody reads what another key asked. */
    assert_int_equal(
        td_journaldb_find(db, q.record.owner + 1, q.record.id, TD_STR(""), now_ms(), &stored, &err),
        TD_NOT_FOUND);
    journal_free(&q);
    /* A number is never used twice, not even when its request is gone. */
    for (uint64_t i = 1; i <= N_REQUESTS; i++)
        assert_int_equal(td_journaldb_drop(db, i, &err), TD_OK);
    assert_int_equal(read_all(db).n, 0);
    td_journaldb_close(db);
    db = must_open(path, false);
    assert_int_equal(td_journaldb_next(db, &next, &err), TD_OK);
    assert_int_equal(next, N_REQUESTS + 1);
    td_journaldb_close(db);
    journal_rmdir(dir);
}

/* Another reader of SQLite files, by its own statements. */
static void test_journaldb_makes_a_database_that_sqlite_finds_whole(void **state)
{
    char dir[64], path[128];
    struct td_journaldb *db;
    sqlite3_stmt *stmt;
    sqlite3 *sqlite;
    struct td_err err;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    db = must_open(path, false);
    write_all(db);
    assert_int_equal(td_journaldb_checkpoint(db, true, &err), TD_OK);
    td_journaldb_close(db);
    assert_int_equal(sqlite3_open(path, &sqlite), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(sqlite,
                                        "SELECT count(*), sum(expires IS NULL), (SELECT count(*) "
                                        "FROM batch) FROM request",
                                        -1, &stmt, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
    assert_int_equal(sqlite3_column_int(stmt, 0), N_REQUESTS);
    assert_int_equal(sqlite3_column_int(stmt, 1), N_REQUESTS - N_REQUESTS / 3);
    /* Prompts times choices over requests 0 to 11: 1 4 3 2 2 6 and again. */
    assert_int_equal(sqlite3_column_int(stmt, 2), 36 * N_BATCHES);
    sqlite3_finalize(stmt);
    sqlite3_close(sqlite);
    journal_rmdir(dir);
}

static void test_journaldb_knows_an_idempotency_key_of_the_same_owner(void **state)
{
    char dir[64], path[128];
    struct td_bytes bytes = {0}, earlier = {0};
    enum td_journaldb_verdict verdict;
    struct journal_request q;
    struct td_journaldb *db;
    struct td_err err;
    uint32_t n;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    db = must_open(path, false);
    accept_one(db, 3, TD_JOURNALDB_KEPT, NULL);
    journal_make(&q, 1, 3);
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_OK);
    struct td_journaldb_accept a = {.number = 100,
                                    .id = TD_STR("cmpl-new"),
                                    .idempotency = q.record.idempotency,
                                    .owner = q.record.owner,
                                    .body_hash = q.record.body_hash,
                                    .n_parts = 2,
                                    .record = td_bytes_str(&bytes),
                                    .now_ms = now_ms()};
    assert_int_equal(td_journaldb_accept(db, &a, &verdict, &earlier, &err), TD_OK);
    assert_int_equal(verdict, TD_JOURNALDB_REPEATED);
    assert_string_equal(earlier.data, "cmpl-1-3");
    q.record.body_hash[15]++;
    assert_int_equal(td_journaldb_accept(db, &a, &verdict, &earlier, &err), TD_OK);
    assert_int_equal(verdict, TD_JOURNALDB_CONFLICT);
    assert_string_equal(earlier.data, "cmpl-1-3");
    a.owner++; /* the same word of somebody else */
    assert_int_equal(td_journaldb_accept(db, &a, &verdict, &earlier, &err), TD_OK);
    assert_int_equal(verdict, TD_JOURNALDB_KEPT);
    a.number++;
    a.idempotency = TD_STR("");
    assert_int_equal(td_journaldb_accept(db, &a, &verdict, &earlier, &err), TD_INVALID);
    assert_string_equal(err.cause, "a request with the id 'cmpl-new' is in the journal already");

    /* When the first is over, its key is free. */
    a = (struct td_journaldb_accept){.number = 200,
                                     .id = TD_STR("cmpl-later"),
                                     .idempotency = q.record.idempotency,
                                     .owner = q.record.owner,
                                     .body_hash = q.record.body_hash,
                                     .n_parts = 2,
                                     .record = td_bytes_str(&bytes),
                                     .now_ms = 6000};
    for (uint32_t p = 0; p < 2; p++)
        assert_int_equal(td_journaldb_end_part(db, 4, 5000, &err), TD_OK);
    assert_int_equal(td_journaldb_accept(db, &a, &verdict, &earlier, &err), TD_OK);
    assert_int_equal(verdict, TD_JOURNALDB_KEPT);
    assert_int_equal(td_journaldb_expire(db, 4999, &n, &err), TD_OK);
    assert_int_equal(n, 0);
    td_journaldb_close(db);
    td_bytes_deinit(&earlier);
    td_bytes_deinit(&bytes);
    journal_free(&q);
    journal_rmdir(dir);
}

static void test_journaldb_gives_back_the_room_of_what_is_over(void **state)
{
    char dir[64], path[128];
    struct td_journaldb *db;
    uint64_t before, after;
    uint32_t n = 0;
    struct td_err err;
    struct stat st;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    db = must_open(path, false);
    assert_int_equal(td_journaldb_begin(db, &err), TD_OK);
    for (uint32_t i = 0; i < 300; i++) {
        accept_one(db, i, TD_JOURNALDB_KEPT, NULL);
        for (uint32_t p = 0; p < (1 + i % 3) * (1 + i % 2); p++) {
            for (uint32_t k = 0; k < 50; k++)
                append_tokens(db, i, p, k * TOKENS_PER_BATCH, false);
            assert_int_equal(td_journaldb_end_part(db, i + 1, 1000 + i, &err), TD_OK);
        }
    }
    assert_int_equal(td_journaldb_commit(db, &err), TD_OK);
    assert_int_equal(td_journaldb_bytes(db, &before, &err), TD_OK);
    assert_int_equal(td_journaldb_expire(db, 999, &n, &err), TD_OK);
    assert_int_equal(n, 0);
    assert_int_equal(td_journaldb_expire(db, 1009, &n, &err), TD_OK);
    assert_int_equal(n, 10);
    assert_int_equal(td_journaldb_expire(db, INT64_MAX, &n, &err), TD_OK);
    assert_int_equal(n, 256);
    assert_int_equal(td_journaldb_expire(db, INT64_MAX, &n, &err), TD_OK);
    assert_int_equal(n, 34);
    assert_int_equal(td_journaldb_bytes(db, &after, &err), TD_OK);
    assert_true(before > 300000 && after < 100000);
    assert_int_equal(td_journaldb_checkpoint(db, true, &err), TD_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size < 100000);
    td_journaldb_close(db);
    journal_rmdir(dir);
}

/* ---- damage ---- */

static struct td_bytes read_file(const char *path)
{
    struct td_bytes b = {0};
    char chunk[65536];
    int fd = open(path, O_RDONLY);
    ssize_t n;

    assert_true(fd >= 0);
    while ((n = read(fd, chunk, sizeof chunk)) > 0)
        assert_int_equal(td_bytes_append(&b, chunk, (size_t)n), TD_OK);
    close(fd);
    return b;
}

static void write_file(const char *path, const char *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), n);
    close(fd);
}

/* Opens as the journal does: what is damaged is moved aside, and then it opens. Returns how many requests were read. */
static uint32_t open_and_read(const char *path, bool *was_damaged)
{
    struct td_journaldb *db;
    struct td_err err;
    char aside[300];
    uint32_t n;
    enum td_status st = td_journaldb_open(&(struct td_journaldb_params){path, true}, &db, &err);

    *was_damaged = st == TD_CORRUPT;
    if (*was_damaged) {
        assert_int_equal(td_journaldb_set_aside(path, aside, sizeof aside, &err), TD_OK);
        assert_int_equal(access(aside, F_OK), 0);
        db = must_open(path, true);
        unlink(aside);
        strcat(aside, "-wal");
        unlink(aside);
    } else if (st) {
        fail_msg("%s", err.cause);
    }
    n = read_all(db).n;
    td_journaldb_close(db);
    return n;
}

/* A power loss leaves some beginning of the log. */
static void test_journaldb_reads_a_prefix_from_a_log_that_was_cut_anywhere(void **state)
{
    char dir[64], path[128], wal[140];
    struct td_bytes db_bytes, wal_bytes;
    struct td_journaldb *db;
    uint32_t n_last = 0, n_different = 0;
    bool was_damaged;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    snprintf(wal, sizeof wal, "%s-wal", path);
    db = must_open(path, false);
    write_all(db);
    td_journaldb_close(db);
    db_bytes = read_file(path);
    wal_bytes = read_file(wal);
    assert_true(wal_bytes.len > 100000); /* nothing was moved into the database yet */
    for (size_t n = 0; n <= wal_bytes.len; n += n < 200 ? 7 : 1237) {
        uint32_t got;

        write_file(path, db_bytes.data, db_bytes.len);
        write_file(wal, wal_bytes.data, n);
        got = open_and_read(path, &was_damaged);
        assert_false(was_damaged);
        assert_true(got >= n_last);
        n_different += got != n_last;
        n_last = got;
    }
    assert_true(n_different > N_REQUESTS / 2);
    write_file(path, db_bytes.data, db_bytes.len);
    write_file(wal, wal_bytes.data, wal_bytes.len);
    assert_int_equal(open_and_read(path, &was_damaged), N_REQUESTS);
    td_bytes_deinit(&wal_bytes);
    td_bytes_deinit(&db_bytes);
    journal_rmdir(dir);
}

static void flip_everywhere(const char *path, const char *victim, const struct td_bytes *db_bytes,
                            const struct td_bytes *wal_bytes, bool in_wal, size_t step)
{
    const struct td_bytes *bytes = in_wal ? wal_bytes : db_bytes;
    size_t n_damaged = 0, n_flips = 0;
    char wal[200];

    snprintf(wal, sizeof wal, "%s-wal", path);
    for (size_t at = 0; at < bytes->len; at += at < 120 ? 1 : step) {
        bool was_damaged;
        char byte = (char)(bytes->data[at] ^ (1 << at % 8));
        int fd;

        write_file(path, db_bytes->data, db_bytes->len);
        write_file(wal, wal_bytes->data, wal_bytes->len);
        fd = open(victim, O_WRONLY);
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
        close(fd);
        open_and_read(path, &was_damaged);
        n_damaged += was_damaged;
        n_flips++;
    }
    print_message("%s: %zu bytes turned, %zu times moved aside\n", in_wal ? "log" : "database",
                  n_flips, n_damaged);
    assert_true(n_flips > 100);
}

static void test_journaldb_reads_a_prefix_from_a_log_with_any_byte_changed(void **state)
{
    char dir[64], path[128], wal[140];
    struct td_bytes db_bytes, wal_bytes;
    struct td_journaldb *db;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    snprintf(wal, sizeof wal, "%s-wal", path);
    db = must_open(path, false);
    write_all(db);
    td_journaldb_close(db);
    db_bytes = read_file(path);
    wal_bytes = read_file(wal);
    flip_everywhere(path, wal, &db_bytes, &wal_bytes, true, 1531);
    td_bytes_deinit(&wal_bytes);
    td_bytes_deinit(&db_bytes);
    journal_rmdir(dir);
}

/* A changed byte of the database itself may lose requests and tokens, and never gives others than were written. */
struct loss {
    uint32_t n;
};

static void check_loosely(struct td_stored *s, void *user)
{
    struct loss *loss = user;
    uint32_t i = (uint32_t)s->number - 1;
    struct journal_request q;

    assert_true(s->number >= 1 && s->number <= N_REQUESTS);
    journal_make(&q, 1, i);
    journal_assert_record(&s->record, &q.record);
    for (uint32_t p = 0; p < td_record_n_parts(&s->record); p++)
        for (uint32_t t = 0; t < s->parts[p].output.n; t++)
            assert_int_equal(s->parts[p].output.ids[t], journal_token_id(i, p, t));
    journal_free(&q);
    loss->n++;
}

static void test_journaldb_never_gives_what_was_not_written_from_a_damaged_database(void **state)
{
    char dir[64], path[128], aside[300];
    size_t n_flips = 0, n_aside = 0, n_left_out = 0;
    struct td_bytes bytes;
    struct td_journaldb *db;
    struct td_err err;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    db = must_open(path, false);
    write_all(db);
    assert_int_equal(td_journaldb_checkpoint(db, true, &err), TD_OK);
    td_journaldb_close(db);
    bytes = read_file(path);
    for (size_t at = 0; at < bytes.len; at += at < 120 ? 1 : 97) {
        struct loss loss = {0};
        uint32_t n_damaged = 0;
        enum td_status st;

        bytes.data[at] ^= (char)(1 << at % 8);
        write_file(path, bytes.data, bytes.len);
        bytes.data[at] ^= (char)(1 << at % 8);
        n_flips++;
        st = td_journaldb_open(&(struct td_journaldb_params){path, true}, &db, &err);
        if (st == TD_UNSUPPORTED) { /* the schema's number itself became a later one */
            assert_in_range(at, 60, 63);
            continue;
        }
        if (st) {
            assert_int_equal(st, TD_CORRUPT);
            assert_int_equal(td_journaldb_set_aside(path, aside, sizeof aside, &err), TD_OK);
            unlink(aside);
            n_aside++;
            continue;
        }
        assert_int_equal(
            td_journaldb_each(db, false, now_ms(), check_loosely, &loss, &n_damaged, &err), TD_OK);
        n_left_out += n_damaged;
        assert_int_equal(
            td_journaldb_each(db, true, now_ms(), check_loosely, &loss, &n_damaged, &err), TD_OK);
        n_left_out += n_damaged;
        td_journaldb_close(db);
    }
    print_message("%zu bytes turned: %zu times moved aside, %zu requests left out\n", n_flips,
                  n_aside, n_left_out);
    assert_true(n_aside > 10 && n_left_out > 0);
    td_bytes_deinit(&bytes);
    journal_rmdir(dir);
}

/* ---- other files ---- */

static void expect_refusal(const char *path, bool was_ours, enum td_status want, const char *words)
{
    struct td_journaldb *db;
    struct td_err err;

    assert_int_equal(td_journaldb_open(&(struct td_journaldb_params){path, was_ours}, &db, &err),
                     want);
    if (!strstr(err.cause, words))
        fail_msg("'%s' does not say '%s'", err.cause, words);
}

static void sql(const char *path, const char *text)
{
    sqlite3 *sqlite;

    assert_int_equal(sqlite3_open(path, &sqlite), SQLITE_OK);
    assert_int_equal(sqlite3_exec(sqlite, text, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(sqlite);
}

static void test_journaldb_leaves_other_files_alone(void **state)
{
    char dir[64], path[128];
    struct td_bytes before, after;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/notes.txt", dir);
    write_file(path, "dear diary", 10);
    expect_refusal(path, false, TD_INVALID, "is no journal but another file");
    after = read_file(path);
    assert_string_equal(after.data, "dear diary");
    td_bytes_deinit(&after);

    snprintf(path, sizeof path, "%s/other.db", dir);
    sql(path, "PRAGMA application_id = 77; CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    before = read_file(path);
    expect_refusal(path, false, TD_INVALID, "application id 0x4d, expected 0x74646a6e");
    sql(path, "PRAGMA application_id = 0");
    expect_refusal(path, false, TD_INVALID, "is no journal");
    sql(path, "PRAGMA application_id = 77");
    td_bytes_deinit(&before);

    expect_refusal(dir, false, TD_IO, "Is a directory");
    snprintf(path, sizeof path, "%s/fifo", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_refusal(path, false, TD_INVALID, "is no regular file");
    journal_rmdir(dir);
}

static void test_journaldb_refuses_a_later_schema_and_foreign_tables(void **state)
{
    char dir[64], path[128];

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    td_journaldb_close(must_open(path, false));
    sql(path, "PRAGMA user_version = 7");
    expect_refusal(path, true, TD_UNSUPPORTED,
                   "has schema 7, of a later version: this one reads 1");
    sql(path, "PRAGMA user_version = 1; CREATE TRIGGER t AFTER INSERT ON request BEGIN DELETE FROM "
              "batch; END");
    expect_refusal(path, true, TD_CORRUPT, "its tables are not a journal's");
    sql(path, "DROP TRIGGER t; DROP TABLE batch");
    expect_refusal(path, true, TD_CORRUPT, "its tables are not a journal's");
    journal_rmdir(dir);
}

static void test_journaldb_moves_a_damaged_file_aside_with_its_log(void **state)
{
    char dir[64], path[128], wal[140], aside[300];
    struct td_bytes moved;
    struct td_err err;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    snprintf(wal, sizeof wal, "%s-wal", path);
    write_file(path, "garbage", 7);
    write_file(wal, "log", 3);
    expect_refusal(path, true, TD_CORRUPT, "its first bytes are not those of a SQLite database");
    assert_int_equal(td_journaldb_set_aside(path, aside, sizeof aside, &err), TD_OK);
    assert_non_null(strstr(aside, "/j.db.corrupt-2"));
    moved = read_file(aside);
    assert_string_equal(moved.data, "garbage");
    td_bytes_deinit(&moved);
    strcat(aside, "-wal");
    moved = read_file(aside);
    assert_string_equal(moved.data, "log");
    td_bytes_deinit(&moved);
    assert_int_not_equal(access(wal, F_OK), 0);
    td_journaldb_close(must_open(path, true));
    /* Twice within a second: both are there. */
    write_file(path, "more", 4);
    assert_int_equal(td_journaldb_set_aside(path, aside, sizeof aside, &err), TD_OK);
    moved = read_file(aside);
    assert_string_equal(moved.data, "more");
    td_bytes_deinit(&moved);
    journal_rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_journaldb_reads_back_what_was_written_oldest_first),
        cmocka_unit_test(test_journaldb_makes_a_database_that_sqlite_finds_whole),
        cmocka_unit_test(test_journaldb_knows_an_idempotency_key_of_the_same_owner),
        cmocka_unit_test(test_journaldb_gives_back_the_room_of_what_is_over),
        cmocka_unit_test(test_journaldb_reads_a_prefix_from_a_log_that_was_cut_anywhere),
        cmocka_unit_test(test_journaldb_reads_a_prefix_from_a_log_with_any_byte_changed),
        cmocka_unit_test(test_journaldb_never_gives_what_was_not_written_from_a_damaged_database),
        cmocka_unit_test(test_journaldb_leaves_other_files_alone),
        cmocka_unit_test(test_journaldb_refuses_a_later_schema_and_foreign_tables),
        cmocka_unit_test(test_journaldb_moves_a_damaged_file_aside_with_its_log),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
