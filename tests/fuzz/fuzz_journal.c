/* What the journal reads back, as the first byte chooses: a record, batches behind a record, a database file with some bytes
 * changed, or any file. */
#include "tests/fuzz/fuzz.h"

#include "daemon/journal/journaldb.h"

#include <fcntl.h>
#include <unistd.h>

/* Everything that a decoded record shows is there, and it encodes to bytes that mean the same. */
static void check_record(const struct td_record *r)
{
    struct td_bytes first = {0}, second = {0};
    struct td_record again;
    struct td_err err = {0};

    fuzz_touch(r->id);
    fuzz_touch(r->idempotency);
    fuzz_touch(r->model_hash);
    fuzz_touch(r->service);
    FUZZ_CHECK(r->n_prompts >= 1 && td_record_n_parts(r) <= TD_RECORD_MAX_PARTS);
    for (uint32_t i = 0; i < r->n_prompts; i++)
        fuzz_touch((struct td_str){(const char *)r->prompts[i].prompt,
                                   r->prompts[i].n_prompt * sizeof(uint32_t)});
    FUZZ_CHECK(td_record_encode(r, &first, &err) == TD_OK);
    FUZZ_CHECK(td_record_decode(td_bytes_str(&first), &again, &err) == TD_OK);
    FUZZ_CHECK(td_record_encode(&again, &second, &err) == TD_OK);
    FUZZ_CHECK(td_str_eq(td_bytes_str(&first), td_bytes_str(&second)));
    td_record_deinit(&again);
    td_bytes_deinit(&second);
    td_bytes_deinit(&first);
}

static void read_record(struct td_str bytes)
{
    struct td_record r;
    struct td_err err = {0};
    enum td_status st = td_record_decode(bytes, &r, &err);

    fuzz_check_err(st, &err);
    if (st)
        return;
    check_record(&r);
    td_record_deinit(&r);
}

static void check_part(const struct td_stored_part *part)
{
    const struct td_stored_tokens *runs[] = {&part->prompt, &part->output};

    for (int k = 0; k < 2; k++)
        for (uint32_t i = 0; i < runs[k]->n; i++)
            fuzz_touch(td_stored_detail(runs[k], i));
    if (part->has_end) {
        FUZZ_CHECK(part->end.n_tokens == part->output.n);
        FUZZ_CHECK(part->end.finish != TD_FINISH_NONE);
        fuzz_touch(part->end.error_text);
        fuzz_touch(part->end.details);
    }
}

static void check_stored(struct td_stored *s, void *user)
{
    uint32_t *n = user;

    check_record(&s->record);
    for (uint32_t i = 0; i < td_record_n_parts(&s->record); i++)
        check_part(&s->parts[i]);
    ++*n;
}

/* A record of four parts. */
static void pack_record(struct td_bytes *packed)
{
    uint32_t ids[] = {1, 2, 3};
    struct td_request prompts[2];
    struct td_record r = {.id = TD_STR("cmpl-1"),
                          .idempotency = TD_STR("again"),
                          .model_hash = TD_STR("0123456789abcdef0123456789abcdef"),
                          .api = TD_RECORD_CHAT,
                          .prompts = prompts,
                          .n_prompts = 2,
                          .n_choices = 2};

    for (int i = 0; i < 2; i++) {
        td_request_init(&prompts[i]);
        prompts[i].prompt = ids;
        prompts[i].n_prompt = 3;
    }
    FUZZ_CHECK(td_record_encode(&r, packed, NULL) == TD_OK);
}

/* Batches, each behind its length. */
static void read_batches(struct td_str bytes)
{
    struct td_bytes packed = {0};
    struct td_stored stored;
    struct td_err err = {0};
    uint32_t n = 0;

    pack_record(&packed);
    FUZZ_CHECK(td_stored_init(&stored, 1, td_bytes_str(&packed), &err) == TD_OK);
    while (bytes.len > 0) {
        size_t len = (unsigned char)bytes.ptr[0];
        struct td_batch batch;
        enum td_status st;

        len = len < bytes.len ? len : bytes.len - 1;
        st = td_batch_decode((struct td_str){bytes.ptr + 1, len}, &batch, &err);
        fuzz_check_err(st, &err);
        if (!st) {
            FUZZ_CHECK(td_batch_encode(&batch, &packed, &err) == TD_OK);
            st = td_stored_add(&stored, &batch, &err);
            fuzz_check_err(st, &err);
            td_batch_deinit(&batch);
        }
        bytes = (struct td_str){bytes.ptr + 1 + len, bytes.len - 1 - len};
    }
    check_stored(&stored, &n);
    td_stored_deinit(&stored);
    td_bytes_deinit(&packed);
}

/* What opens is read without an error, takes a request, and opens again. */
static void use(const char *path, struct td_journaldb *db)
{
    enum td_journaldb_verdict verdict;
    struct td_bytes earlier = {0};
    struct td_err err = {0};
    uint32_t n = 0, n_damaged;
    uint64_t next, bytes;
    const struct td_journaldb_params params = {path, true};
    const uint8_t hash[TD_RECORD_BODY_HASH_BYTES] = {0};
    enum td_status st;

    fuzz_check_err(td_journaldb_each(db, false, 0, check_stored, &n, &n_damaged, &err), &err);
    fuzz_check_err(td_journaldb_each(db, true, 0, check_stored, &n, &n_damaged, &err), &err);
    fuzz_check_err(td_journaldb_bytes(db, &bytes, &err), &err);
    if (!td_journaldb_next(db, &next, &err)) {
        const struct td_journaldb_accept a = {.number = next,
                                              .id = TD_STR("new"),
                                              .body_hash = hash,
                                              .n_parts = 1,
                                              .record = TD_STR("x")};

        fuzz_check_err(td_journaldb_accept(db, &a, &verdict, &earlier, &err), &err);
        fuzz_check_err(td_journaldb_expire(db, INT64_MAX, &n, &err), &err);
    }
    td_bytes_deinit(&earlier);
    td_journaldb_close(db);
    st = td_journaldb_open(&params, &db, &err);
    FUZZ_CHECK(st == TD_OK || st == TD_CORRUPT);
    if (!st)
        td_journaldb_close(db);
}

static void read_file(struct td_str bytes)
{
    char dir[] = "/tmp/fuzz-journal-XXXXXX", path[64], wal[64];
    const struct td_journaldb_params params = {path, true};
    struct td_journaldb *db;
    struct td_err err = {0};
    enum td_status st;
    int fd;

    FUZZ_CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/j", dir);
    snprintf(wal, sizeof wal, "%s/j-wal", dir);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && write(fd, bytes.ptr, bytes.len) == (ssize_t)bytes.len);
    close(fd);
    st = td_journaldb_open(&params, &db, &err);
    fuzz_check_err(st, &err);
    FUZZ_CHECK(st == TD_OK || st == TD_CORRUPT || st == TD_UNSUPPORTED || st == TD_IO);
    if (!st) {
        memset(&err, 0, sizeof err);
        use(path, db);
    }
    unlink(wal);
    unlink(path);
    FUZZ_CHECK(rmdir(dir) == 0);
}

/* A journal with one request and a batch of it; the same every time. */
static void make_file(struct td_bytes *file)
{
    static const uint32_t ids[] = {7, 8};
    static const struct td_batch batch = {.part = 2, .n = 2, .ids = ids};
    static const uint8_t hash[TD_RECORD_BODY_HASH_BYTES];
    char dir[] = "/tmp/fuzz-journal-XXXXXX", path[64], chunk[4096];
    const struct td_journaldb_params params = {path, false};
    enum td_journaldb_verdict verdict;
    struct td_bytes record = {0}, earlier = {0}, packed = {0};
    struct td_journaldb *db;
    ssize_t n;
    int fd;

    FUZZ_CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/j", dir);
    pack_record(&record);
    FUZZ_CHECK(td_batch_encode(&batch, &packed, NULL) == TD_OK);
    FUZZ_CHECK(td_journaldb_open(&params, &db, NULL) == TD_OK);
    const struct td_journaldb_accept a = {.number = 1,
                                          .id = TD_STR("cmpl-1"),
                                          .idempotency = TD_STR("again"),
                                          .body_hash = hash,
                                          .n_parts = 4,
                                          .record = td_bytes_str(&record)};
    FUZZ_CHECK(td_journaldb_accept(db, &a, &verdict, &earlier, NULL) == TD_OK);
    FUZZ_CHECK(td_journaldb_append(db, 1, td_bytes_str(&packed), NULL) == TD_OK);
    FUZZ_CHECK(td_journaldb_checkpoint(db, true, NULL) == TD_OK);
    td_journaldb_close(db);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    while ((n = read(fd, chunk, sizeof chunk)) > 0)
        FUZZ_CHECK(td_bytes_append(file, chunk, (size_t)n) == TD_OK);
    close(fd);
    unlink(path);
    strcat(path, "-wal");
    unlink(path);
    FUZZ_CHECK(rmdir(dir) == 0);
    td_bytes_deinit(&earlier);
    td_bytes_deinit(&packed);
    td_bytes_deinit(&record);
}

/* Four bytes for a change: where, and what is turned there. */
static void read_changed_file(struct td_str changes)
{
    static struct td_bytes whole; /* kept: made once */
    struct td_bytes file = {0};

    if (!whole.len)
        make_file(&whole);
    FUZZ_CHECK(td_bytes_append_str(&file, td_bytes_str(&whole)) == TD_OK);
    for (size_t i = 0; i + 4 <= changes.len; i += 4) {
        const unsigned char *c = (const unsigned char *)changes.ptr + i;

        file.data[((size_t)c[0] << 16 | (size_t)c[1] << 8 | c[2]) % file.len] ^= (char)c[3];
    }
    read_file(td_bytes_str(&file));
    td_bytes_deinit(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t choice;
    struct td_str rest = fuzz_split(data, size, &choice);

    switch (choice % 4) {
    case 0:
        read_record(rest);
        break;
    case 1:
        read_batches(rest);
        break;
    case 2:
        read_changed_file(rest);
        break;
    default:
        read_file(rest);
    }
    return 0;
}
