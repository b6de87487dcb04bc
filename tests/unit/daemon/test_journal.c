#include "daemon/journal/journal.h"

#include "daemon/api/metrics.h"
#include "daemon/log.h"
#include "tests/unit/daemon/journal_check.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { WAIT_MS = 60000 };

/* A journal on a loop that this thread turns. */
struct bench {
    uv_loop_t loop;
    struct td_journal *j;
    uint32_t n_answers, n_kept;
    struct td_journal_answer last; /* without its id */
    char last_id[TD_RECORD_MAX_ID_BYTES + 1];
    uint32_t n_found;
    enum td_status found;
    struct td_stored stored;
};

static enum td_status open_journal(struct bench *b, struct td_journal_params p, struct td_err *err)
{
    memset(b, 0, sizeof *b);
    uv_loop_init(&b->loop);
    p.loop = &b->loop;
    p.retry_ms = 20;
    return td_journal_open(&p, &b->j, err);
}

static void open_bench(struct bench *b, const char *path, uint64_t retention_ms)
{
    struct td_journal_params p = {.path = path, .retention_ms = retention_ms};
    struct td_err err;
    char text[600];

    if (open_journal(b, p, &err) || td_journal_start(b->j, &err))
        fail_msg("%s", td_err_format(&err, text, sizeof text));
}

static void close_bench(struct bench *b)
{
    td_journal_stop(b->j);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    td_journal_close(b->j);
    td_stored_deinit(&b->stored);
    assert_int_equal(uv_loop_close(&b->loop), 0);
}

static void on_answer(const struct td_journal_answer *answer, void *user)
{
    struct bench *b = user;

    b->n_answers++;
    b->n_kept += answer->verdict == TD_JOURNAL_KEPT;
    b->last = *answer;
    snprintf(b->last_id, sizeof b->last_id, "%.*s", (int)answer->id.len,
             answer->id.ptr ? answer->id.ptr : "");
    b->last.id = TD_STR("");
}

static void on_found(enum td_status status, struct td_stored *stored, const struct td_err *err,
                     void *user)
{
    struct bench *b = user;

    (void)err;
    b->n_found++;
    b->found = status;
    td_stored_deinit(&b->stored);
    b->stored = *stored;
    *stored = (struct td_stored){0};
}

static void turn_until(struct bench *b, const uint32_t *count, uint32_t n)
{
    uint64_t until = uv_hrtime() + (uint64_t)WAIT_MS * 1000000u;

    while (*count < n && uv_hrtime() < until) {
        uv_run(&b->loop, UV_RUN_NOWAIT);
        if (*count < n)
            usleep(200);
    }
    assert_int_equal(*count, n);
}

/* Returns its number; 0 when it was not kept. */
static uint64_t accept_one(struct bench *b, uint32_t life, uint32_t i)
{
    struct journal_request q;
    struct td_err err;
    uint32_t n = b->n_answers;

    journal_make(&q, life, i);
    assert_int_equal(td_journal_accept(b->j, &q.record, on_answer, b, &err), TD_OK);
    assert_int_equal(b->n_answers, n); /* never from inside the call */
    journal_free(&q);
    turn_until(b, &b->n_answers, n + 1);
    return b->last.number;
}

static void find(struct bench *b, uint64_t owner, const char *id, const char *idempotency)
{
    struct td_err err;
    uint32_t n = b->n_found;

    assert_int_equal(
        td_journal_find(b->j, owner, td_str_from(id), td_str_from(idempotency), on_found, b, &err),
        TD_OK);
    turn_until(b, &b->n_found, n + 1);
}

static void say_token(struct td_journal *j, uint64_t number, uint32_t i, uint32_t p, uint32_t t)
{
    char detail[16];
    const struct td_eventlog_token token = {
        .index = t,
        .id = journal_token_id(i, p, t),
        .detail = {detail, i % 2 ? (size_t)snprintf(detail, sizeof detail, "<%u>", t) : 0}};

    td_journal_token(j, number, p, &token);
}

static void check_tokens(const struct td_stored_tokens *t, uint32_t i, uint32_t p)
{
    char detail[16];

    for (uint32_t k = 0; k < t->n; k++) {
        assert_int_equal(t->ids[k], journal_token_id(i, p, k));
        snprintf(detail, sizeof detail, "<%u>", k);
        journal_assert_str(td_stored_detail(t, k), td_str_from(i % 2 ? detail : ""));
    }
}

static void test_journal_gives_back_tokens_and_ends(void **state)
{
    const struct td_batch_end end = {.finish = TD_FINISH_ERROR,
                                     .n_tokens = 300,
                                     .error_status = TD_TIMED_OUT,
                                     .error_text = TD_STR("the request's time was up"),
                                     .details = TD_STR("cached 7")};
    const struct td_eventlog_token prompt = {
        .is_prompt = true, .index = 1, .id = 5, .detail = TD_STR("-1.5")};
    char dir[64], path[128];
    struct bench b;
    uint64_t number;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/a/b/j.db", dir);
    open_bench(&b, path, 3600000);
    number = accept_one(&b, 1, 1); /* four parts */
    assert_int_equal(b.last.verdict, TD_JOURNAL_KEPT);
    assert_int_equal(number, 1);
    td_journal_token(b.j, number, 2, &prompt);
    for (uint32_t t = 0; t < 300; t++)
        for (uint32_t p = 0; p < 4; p++)
            say_token(b.j, number, 1, p, t);
    td_journal_end(b.j, number, 3, &end);
    find(&b, 0xfedcba9876543211u, "cmpl-1-1", "");
    assert_int_equal(b.found, TD_OK);
    assert_false(b.stored.is_ended);
    for (uint32_t p = 0; p < 4; p++) {
        assert_int_equal(b.stored.parts[p].output.n, 300);
        check_tokens(&b.stored.parts[p].output, 1, p);
        assert_int_equal(b.stored.parts[p].has_end, p == 3);
    }
    assert_int_equal(b.stored.parts[2].prompt.n, 1);
    assert_int_equal(b.stored.parts[2].prompt.ids[0], 5);
    journal_assert_str(td_stored_detail(&b.stored.parts[2].prompt, 0), TD_STR("-1.5"));
    assert_int_equal(b.stored.parts[3].end.finish, TD_FINISH_ERROR);
    assert_int_equal(b.stored.parts[3].end.error_status, TD_TIMED_OUT);
    journal_assert_str(b.stored.parts[3].end.error_text, end.error_text);
    journal_assert_str(b.stored.parts[3].end.details, end.details);
    for (uint32_t p = 0; p < 3; p++)
        td_journal_end(b.j, number, p, &end);
    find(&b, 0xfedcba9876543211u, "", "try \xc3\xa4 1-1");
    assert_int_equal(b.found, TD_OK);
    assert_true(b.stored.is_ended);
    td_journal_drop(b.j, number);
    find(&b, 0xfedcba9876543211u, "cmpl-1-1", "");
    assert_int_equal(b.found, TD_NOT_FOUND);
    close_bench(&b);
    journal_rmdir(dir);
}

static void test_journal_answers_a_repeated_idempotency_key_with_the_first_id(void **state)
{
    char dir[64], path[128];
    struct journal_request q, other;
    struct td_journal_state s;
    struct td_err err;
    struct bench b;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    open_bench(&b, path, 3600000);
    journal_make(&q, 1, 1);
    journal_make(&other, 1, 1);
    other.record.id = TD_STR("cmpl-other");
    /* Both at once: they share a commit, and the second one still sees the first. */
    assert_int_equal(td_journal_accept(b.j, &q.record, on_answer, &b, &err), TD_OK);
    assert_int_equal(td_journal_accept(b.j, &other.record, on_answer, &b, &err), TD_OK);
    turn_until(&b, &b.n_answers, 2);
    assert_int_equal(b.n_kept, 1);
    assert_int_equal(b.last.verdict, TD_JOURNAL_REPEATED);
    assert_int_equal(b.last.number, 0);
    assert_string_equal(b.last_id, "cmpl-1-1");
    other.record.body_hash[3] ^= 1;
    assert_int_equal(td_journal_accept(b.j, &other.record, on_answer, &b, &err), TD_OK);
    turn_until(&b, &b.n_answers, 3);
    assert_int_equal(b.last.verdict, TD_JOURNAL_CONFLICT);
    assert_string_equal(b.last_id, "cmpl-1-1");
    td_journal_state(b.j, &s);
    assert_true(s.is_up && s.n_kept == 1 && s.n_repeated == 2 && s.n_not_kept == 0);
    journal_free(&other);
    journal_free(&q);
    close_bench(&b);
    journal_rmdir(dir);
}

static void test_journal_refuses_a_second_opener_by_its_process(void **state)
{
    char dir[64], path[128], want[64];
    struct bench first, second;
    struct td_err err;
    pid_t child;
    int status;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    open_bench(&first, path, 1000);
    snprintf(want, sizeof want, "is in use by process %ld (", (long)getpid());
    child = fork();
    if (child == 0) {
        enum td_status st = open_journal(&second, (struct td_journal_params){.path = path}, &err);

        _exit(st == TD_BUSY && strstr(err.cause, want) ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(open_journal(&second, (struct td_journal_params){.path = path}, &err),
                     TD_BUSY);
    assert_int_equal(uv_loop_close(&second.loop), 0);
    close_bench(&first);
    open_bench(&first, path, 1000); /* it goes with its holder */
    close_bench(&first);
    journal_rmdir(dir);
}

static void test_journal_refuses_a_path_that_cannot_be_made(void **state)
{
    char dir[64], path[128];
    struct td_err err;
    struct bench b;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/file", dir);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    strcat(path, "/j.db");
    assert_int_equal(open_journal(&b, (struct td_journal_params){.path = path}, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "Not a directory"));
    assert_int_equal(uv_loop_close(&b.loop), 0);
    assert_int_equal(open_journal(&b, (struct td_journal_params){.path = ""}, &err), TD_INVALID);
    assert_int_equal(uv_loop_close(&b.loop), 0);
    /* A file of something else stays what it is, the second time too. */
    path[strlen(path) - 5] = '\0';
    for (int i = 0; i < 2; i++) {
        assert_int_equal(truncate(path, 3), 0);
        assert_int_equal(open_journal(&b, (struct td_journal_params){.path = path}, &err),
                         TD_INVALID);
        assert_non_null(strstr(err.cause, "is no journal"));
        assert_int_equal(uv_loop_close(&b.loop), 0);
    }
    assert_int_equal(access(path, F_OK), 0);
    journal_rmdir(dir);
}

/* The log of the process, read from a file. */
static int catch_log(const char *dir)
{
    char path[128];
    int fd;

    snprintf(path, sizeof path, "%s/log", dir);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    td_log_set_fd(fd);
    return fd;
}

static unsigned count_in_log(int fd, const char *words)
{
    char text[65536];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    unsigned count = 0;

    assert_true(n >= 0);
    text[n] = '\0';
    for (const char *at = text; (at = strstr(at, words)) != NULL; at++)
        count++;
    return count;
}

static void test_journal_moves_a_damaged_file_aside_and_begins_a_new_one(void **state)
{
    char dir[64], path[128];
    struct bench b;
    int log, fd;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    open_bench(&b, path, 1000);
    assert_true(accept_one(&b, 1, 1) > 0);
    close_bench(&b);
    fd = open(path, O_WRONLY);
    assert_int_equal(write(fd, "no longer a database", 20), 20);
    close(fd);
    log = catch_log(dir);
    open_bench(&b, path, 1000);
    td_log_set_fd(STDERR_FILENO);
    assert_int_equal(count_in_log(log, "journal damaged and moved aside"), 1);
    assert_int_equal(count_in_log(log, "j.db.corrupt-2"), 1);
    find(&b, 0xfedcba9876543211u, "cmpl-1-1", "");
    assert_int_equal(b.found, TD_NOT_FOUND);
    assert_true(accept_one(&b, 1, 1) > 0);
    close_bench(&b);
    close(log);
    journal_rmdir(dir);
}

static void test_journal_drops_ended_requests_when_their_time_is_over(void **state)
{
    const struct td_batch_end end = {.finish = TD_FINISH_STOP};
    uint64_t until = uv_hrtime() + (uint64_t)WAIT_MS * 1000000u;
    struct td_journal_state s = {0};
    char dir[64], path[128];
    struct bench b;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    open_bench(&b, path, 1);
    td_journal_end(b.j, accept_one(&b, 1, 0), 0, &end); /* one part */
    accept_one(&b, 1, 2);                               /* stays open */
    while (s.n_expired == 0 && uv_hrtime() < until) {
        usleep(1000);
        td_journal_state(b.j, &s);
    }
    assert_int_equal(s.n_expired, 1);
    find(&b, 0, "cmpl-1-0", "");
    assert_int_equal(b.found, TD_NOT_FOUND);
    find(&b, 0xfedcba9876543212u, "cmpl-1-2", "");
    assert_int_equal(b.found, TD_OK);
    close_bench(&b);
    journal_rmdir(dir);
}

static void test_journal_keeps_within_its_size_by_dropping_what_ended(void **state)
{
    const struct td_batch_end end = {.finish = TD_FINISH_STOP};
    struct td_journal_params p = {.retention_ms = 3600000, .max_bytes = 1 << 20};
    char dir[64], path[128];
    struct td_journal_state s;
    struct journal_request q;
    struct td_err err;
    struct bench b;
    char *blob = calloc(1, 100000);

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    p.path = path;
    assert_int_equal(open_journal(&b, p, &err), TD_OK);
    assert_int_equal(td_journal_start(b.j, &err), TD_OK);
    for (uint32_t i = 0; i < 60; i++) {
        journal_make(&q, 1, 6 * i); /* one part, no idempotency key */
        q.record.service = (struct td_str){blob, 100000};
        assert_int_equal(td_journal_accept(b.j, &q.record, on_answer, &b, &err), TD_OK);
        turn_until(&b, &b.n_answers, i + 1);
        journal_free(&q);
        if (i < 30) {
            assert_int_equal(b.last.verdict, TD_JOURNAL_KEPT);
            td_journal_end(b.j, b.last.number, 0, &end);
        }
    }
    /* The first 30 made way; of the others, which do not end, ten or eleven fit. */
    td_journal_state(b.j, &s);
    assert_in_range(s.n_kept, 39, 42);
    assert_int_equal(s.n_kept + s.n_not_kept, 60);
    assert_true(s.bytes < 1300000);
    close_bench(&b);
    free(blob);
    journal_rmdir(dir);
}

static void test_journal_accepts_without_keeping_when_too_much_is_pending(void **state)
{
    struct td_journal_params p = {.retention_ms = 1000, .max_pending_bytes = 200000};
    char dir[64], path[128];
    struct journal_request q;
    struct td_err err;
    struct bench b;
    char *blob = calloc(1, 300000);

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    p.path = path;
    assert_int_equal(open_journal(&b, p, &err), TD_OK);
    assert_int_equal(td_journal_start(b.j, &err), TD_OK);
    journal_make(&q, 1, 0);
    q.record.service = (struct td_str){blob, 300000};
    assert_int_equal(td_journal_accept(b.j, &q.record, on_answer, &b, &err), TD_UNAVAILABLE);
    journal_free(&q);
    assert_true(accept_one(&b, 1, 2) > 0);
    assert_int_equal(b.n_answers, 1); /* the one before was never answered */
    close_bench(&b);
    free(blob);
    journal_rmdir(dir);
}

/* ---- a disk that hangs ---- */

static sem_t is_hanging, may_go_on;
static struct td_journal *volatile left_alone;

static void hang(int number)
{
    (void)number;
    sem_post(&is_hanging);
    while (sem_wait(&may_go_on) != 0) {
    }
}

/* The journal's thread stands where it is, as one does whose write never returns, until release_thread. */
static void hang_thread(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    pid_t found = 0;

    while ((task = readdir(tasks)) != NULL) {
        char path[300], name[32] = "";
        FILE *f;

        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        f = fopen(path, "r");
        if (f && fgets(name, sizeof name, f) && strcmp(name, "journal\n") == 0)
            found = (pid_t)atoi(task->d_name);
        if (f)
            fclose(f);
    }
    closedir(tasks);
    assert_true(found > 0);
    sem_init(&is_hanging, 0, 0);
    sem_init(&may_go_on, 0, 0);
    signal(SIGUSR2, hang);
    assert_int_equal(syscall(SYS_tgkill, getpid(), found, SIGUSR2), 0);
    while (sem_wait(&is_hanging) != 0) {
    }
}

static void release_thread(void)
{
    sem_post(&may_go_on);
}

static void open_impatient(struct bench *b, const char *path)
{
    struct td_journal_params p = {.path = path, .retention_ms = 3600000, .patience_ms = 200};
    struct td_err err;

    assert_int_equal(open_journal(b, p, &err), TD_OK);
    assert_int_equal(td_journal_start(b->j, &err), TD_OK);
}

static void test_journal_waits_for_no_disk_that_hangs(void **state)
{
    char dir[64], path[128], id[64];
    struct journal_request q;
    struct td_err err;
    struct bench b;
    uint64_t begin;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    open_impatient(&b, path);
    assert_true(accept_one(&b, 1, 0) > 0);
    hang_thread();
    begin = uv_hrtime();
    assert_int_equal(accept_one(&b, 1, 2), 0);
    assert_int_equal(b.last.verdict, TD_JOURNAL_NOT_KEPT);
    assert_true(uv_hrtime() - begin >= 200000000u);
    journal_make(&q, 1, 4); /* from now on nobody waits */
    assert_int_equal(td_journal_accept(b.j, &q.record, on_answer, &b, &err), TD_UNAVAILABLE);
    assert_int_equal(
        td_journal_find(b.j, q.record.owner, TD_STR("x"), TD_STR(""), on_found, &b, &err),
        TD_UNAVAILABLE);
    journal_free(&q);
    release_thread();
    for (int i = 0;
         i < 1000 && td_journal_find(b.j, 1, TD_STR("x"), TD_STR(""), on_found, &b, &err) != TD_OK;
         i++) {
        uv_run(&b.loop, UV_RUN_NOWAIT);
        usleep(10000);
    }
    turn_until(&b, &b.n_found, 1);
    assert_true(accept_one(&b, 1, 6) > 0);
    journal_make(&q, 1, 2); /* it went on without: nobody is to begin it again */
    snprintf(id, sizeof id, "%.*s", (int)q.record.id.len, q.record.id.ptr);
    find(&b, q.record.owner, id, "");
    assert_int_equal(b.found, TD_NOT_FOUND);
    journal_free(&q);
    close_bench(&b);
    journal_rmdir(dir);
}

static void test_journal_stops_while_its_disk_hangs(void **state)
{
    char dir[64], path[128];
    struct journal_request q;
    struct td_err err;
    struct bench b;

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    open_impatient(&b, path);
    assert_true(accept_one(&b, 1, 2) > 0);
    hang_thread();
    journal_make(&q, 1, 0);
    assert_int_equal(td_journal_accept(b.j, &q.record, on_answer, &b, &err), TD_OK);
    td_journal_stop(b.j);
    assert_int_equal(b.n_answers, 2); /* who waited is answered */
    assert_int_equal(b.last.verdict, TD_JOURNAL_NOT_KEPT);
    journal_free(&q);
    uv_run(&b.loop, UV_RUN_DEFAULT);
    td_journal_close(b.j); /* leaves the thread what it uses */
    assert_int_equal(uv_loop_close(&b.loop), 0);
    left_alone = b.j; /* reachable, for who looks for leaks */
    release_thread();
    usleep(100000); /* it ends by itself */
    journal_rmdir(dir);
}

/* ---- kill -9 ---- */

struct told {
    uint32_t i;
    uint32_t has_ended; /* 0: it was accepted, 1: its end was committed too */
};

/* Accepts, says tokens and ends without a break, and tells what is known to be durable. Never returns. */
static void write_until_killed(const char *path, uint32_t life, int out)
{
    const struct td_batch_end end = {.finish = TD_FINISH_LENGTH, .n_tokens = 40};
    struct bench b;

    open_bench(&b, path, 3600000);
    for (uint32_t i = 0;; i++) {
        uint64_t number = accept_one(&b, life, i);
        struct told told = {.i = i};
        uint32_t n_parts = (1 + i % 3) * (1 + i % 2);

        if (!number || write(out, &told, sizeof told) != sizeof told)
            _exit(1);
        for (uint32_t t = 0; t < 40; t++)
            for (uint32_t p = 0; p < n_parts; p++)
                say_token(b.j, number, i, p, t);
        if (i % 4 == 0) {
            struct journal_request q;

            for (uint32_t p = 0; p < n_parts; p++)
                td_journal_end(b.j, number, p, &end);
            journal_make(&q, life, i);
            find(&b, q.record.owner, q.id, ""); /* it stands behind all this: that was committed */
            told.has_ended = 1;
            if (!b.stored.is_ended || write(out, &told, sizeof told) != sizeof told)
                _exit(1);
            journal_free(&q);
        }
    }
}

enum { LIVES = 32, MAX_I = 4096 };
struct survey {
    bool is[LIVES][MAX_I], has_ended[LIVES][MAX_I];
    uint64_t last_number;
};

static void look_at(struct td_stored *s, void *user)
{
    struct survey *survey = user;
    struct journal_request q;
    unsigned life, i;
    char id[64];

    snprintf(id, sizeof id, "%.*s", (int)s->record.id.len, s->record.id.ptr);
    assert_int_equal(sscanf(id, "cmpl-%u-%u", &life, &i), 2);
    assert_true(life < LIVES && i < MAX_I);
    assert_true(s->number > survey->last_number);
    survey->last_number = s->number;
    journal_make(&q, life, i);
    journal_assert_record(&s->record, &q.record);
    for (uint32_t p = 0; p < td_record_n_parts(&s->record); p++) {
        assert_true(s->parts[p].output.n <= 40);
        check_tokens(&s->parts[p].output, i, p);
        if (s->is_ended)
            assert_true(s->parts[p].has_end && s->parts[p].output.n == 40);
    }
    assert_false(survey->is[life][i]);
    survey->is[life][i] = true;
    survey->has_ended[life][i] = s->is_ended;
    journal_free(&q);
}

static void test_journal_has_everything_that_it_said_when_it_is_killed_at_any_moment(void **state)
{
    struct survey *survey = malloc(sizeof *survey);
    static struct told told[LIVES * MAX_I];
    static uint32_t life_of[LIVES * MAX_I];
    unsigned seed = (unsigned)uv_hrtime();
    size_t n_told = 0, n_ended = 0;
    char dir[64], path[128];

    (void)state;
    print_message("seed %u\n", seed);
    srand(seed);
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    for (uint32_t life = 0; life < LIVES; life++) {
        uint32_t n_wanted = 1 + (uint32_t)rand() % 12, n = 0;
        struct td_err err;
        struct bench b;
        int pipe_fds[2], status;
        pid_t child;

        assert_int_equal(pipe(pipe_fds), 0);
        child = fork();
        if (child == 0) {
            close(pipe_fds[0]);
            write_until_killed(path, life, pipe_fds[1]);
        }
        close(pipe_fds[1]);
        for (; n < n_wanted; n++, n_told++) {
            struct pollfd p = {.fd = pipe_fds[0], .events = POLLIN};

            assert_int_equal(poll(&p, 1, WAIT_MS), 1);
            assert_int_equal(read(pipe_fds[0], &told[n_told], sizeof told[0]), sizeof told[0]);
            life_of[n_told] = life;
        }
        usleep((useconds_t)(rand() % 20000));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        while (n_told < LIVES * MAX_I &&
               read(pipe_fds[0], &told[n_told], sizeof told[0]) == (ssize_t)sizeof told[0])
            life_of[n_told++] = life;
        close(pipe_fds[0]);

        memset(survey, 0, sizeof *survey);
        assert_int_equal(open_journal(&b, (struct td_journal_params){.path = path}, &err), TD_OK);
        assert_int_equal(td_journal_restore(b.j, false, look_at, survey, &err), TD_OK);
        survey->last_number = 0;
        assert_int_equal(td_journal_restore(b.j, true, look_at, survey, &err), TD_OK);
        td_journal_close(b.j);
        assert_int_equal(uv_loop_close(&b.loop), 0);
        for (size_t k = 0; k < n_told; k++) {
            assert_true(survey->is[life_of[k]][told[k].i]);
            if (told[k].has_ended)
                assert_true(survey->has_ended[life_of[k]][told[k].i]);
        }
    }
    for (size_t k = 0; k < n_told; k++)
        n_ended += told[k].has_ended;
    print_message("%d kills, %zu requests said to be kept, %zu ends\n", LIVES, n_told - n_ended,
                  n_ended);
    assert_true(n_told > LIVES);
    free(survey);
    journal_rmdir(dir);
}

/* ---- no room ---- */

/* Until nothing more can be kept; tells how many were. */
static uint32_t fill(struct bench *b, uint32_t life)
{
    char *blob = malloc(50000);
    uint32_t n = 0;

    memset(blob, 7, 50000);
    for (b->last.verdict = TD_JOURNAL_KEPT; b->last.verdict == TD_JOURNAL_KEPT && n < 1000; n++) {
        struct journal_request q;
        struct td_err err;
        uint32_t n_answers = b->n_answers;

        journal_make(&q, life, 6 * n);
        q.record.service = (struct td_str){blob, 50000};
        assert_int_equal(td_journal_accept(b->j, &q.record, on_answer, b, &err), TD_OK);
        turn_until(b, &b->n_answers, n_answers + 1);
        journal_free(&q);
    }
    free(blob);
    assert_int_equal(b->last.verdict, TD_JOURNAL_NOT_KEPT);
    return n - 1;
}

static void wait_until_up(struct bench *b, bool want)
{
    uint64_t until = uv_hrtime() + (uint64_t)WAIT_MS * 1000000u;
    struct td_journal_state s;

    do {
        uv_run(&b->loop, UV_RUN_NOWAIT);
        usleep(1000);
        td_journal_state(b->j, &s);
    } while (s.is_up != want && uv_hrtime() < until);
    uv_run(&b->loop, UV_RUN_NOWAIT);
    assert_int_equal(s.is_up, want);
}

/* The metric, as a scrape shows it. */
static int metric(struct td_metrics *m, const char *name)
{
    struct td_bytes text = {0};
    const char *at;
    int value;

    assert_int_equal(td_metrics_write(m, &text), TD_OK);
    at = strstr(text.data, name);
    while (at && (at[-1] != '\n' || at[strlen(name)] != ' '))
        at = strstr(at + 1, name);
    assert_non_null(at);
    value = atoi(at + strlen(name));
    td_bytes_deinit(&text);
    return value;
}

/* Down, accepting all the while, and up again when `make_room` was called; what was kept before is there still. */
static void check_degrades(const char *dir, const char *path, void (*make_room)(const char *dir))
{
    const struct td_batch_end end = {.finish = TD_FINISH_STOP, .n_tokens = 3};
    struct td_journal_state s;
    struct td_metrics *metrics;
    struct td_err err;
    struct bench b;
    uint64_t early;
    uint32_t n;
    char log_dir[64], id[64];
    int log;

    journal_mkdir(log_dir);
    log = catch_log(log_dir);
    assert_int_equal(td_metrics_open(&metrics, &err), TD_OK);
    assert_int_equal(
        open_journal(&b, (struct td_journal_params){.path = path, .retention_ms = 3600000}, &err),
        TD_OK);
    assert_int_equal(td_journal_metrics(b.j, metrics, &err), TD_OK);
    assert_int_equal(td_journal_start(b.j, &err), TD_OK);
    early = accept_one(&b, 1, 6000);
    for (uint32_t t = 0; t < 2; t++)
        say_token(b.j, early, 6000, 0, t);
    find(&b, 0, "cmpl-1-6000", "");
    assert_int_equal(b.stored.parts[0].output.n, 2);
    n = fill(&b, 1);
    assert_true(n >= 1);
    wait_until_up(&b, false);
    assert_int_equal(metric(metrics, "tensord_journal_up"), 0);
    assert_int_equal(count_in_log(log, "journal down, requests are accepted without it"), 1);
    assert_int_equal(accept_one(&b, 2, 1), 0);
    find(&b, 0, "cmpl-1-6000", "");
    assert_int_equal(b.found, TD_UNAVAILABLE);
    /* It ends while nothing can be written: that is not forgotten, its tokens are. */
    say_token(b.j, early, 6000, 0, 2);
    td_journal_end(b.j, early, 0, &end);
    td_journal_state(b.j, &s);
    assert_int_equal(s.n_kept, n + 1);
    usleep(100000); /* attempts to come back are in vain, and say nothing */
    assert_int_equal(count_in_log(log, "journal down"), 1);
    make_room(dir);
    wait_until_up(&b, true);
    assert_int_equal(metric(metrics, "tensord_journal_up"), 1);
    assert_int_equal(metric(metrics, "tensord_journal_kept_total"), (int)n + 1);
    assert_true(metric(metrics, "tensord_journal_not_kept_total") >= 2);
    assert_int_equal(count_in_log(log, "journal is back"), 1);
    find(&b, 0, "cmpl-1-6000", "");
    assert_int_equal(b.found, TD_OK);
    assert_true(b.stored.is_ended);
    assert_int_equal(b.stored.parts[0].output.n, 2);
    assert_false(b.stored.parts[0].has_end); /* its third token is not there */
    find(&b, 0xfedcba9876543211u, "cmpl-2-1", "");
    assert_int_equal(b.found, TD_NOT_FOUND);
    snprintf(id, sizeof id, "cmpl-1-%u", 6 * (n - 1));
    find(&b, (n - 1) * 6 % 4 ? 0xfedcba9876543210u + (n - 1) * 6 % 4 : 0, id, "");
    assert_int_equal(b.found, TD_OK);
    assert_true(accept_one(&b, 3, 1) > 0);
    td_log_set_fd(STDERR_FILENO);
    close_bench(&b);
    td_metrics_close(metrics);
    close(log);
    journal_rmdir(log_dir);
}

static void remove_ballast(const char *dir)
{
    char path[128];

    snprintf(path, sizeof path, "%s/ballast", dir);
    assert_int_equal(unlink(path), 0);
}

static void test_journal_goes_on_without_a_full_disk_and_comes_back(void **state)
{
    char dir[64], path[128], *zeros = calloc(1, 3 << 20);
    int fd;

    (void)state;
    journal_mkdir(dir);
    if (mount("tmpfs", dir, "tmpfs", 0, "size=4m")) {
        journal_rmdir(dir);
        free(zeros);
        TD_SKIP("root: a small file system could not be mounted");
    }
    snprintf(path, sizeof path, "%s/ballast", dir);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_int_equal(write(fd, zeros, 3 << 20), 3 << 20);
    close(fd);
    snprintf(path, sizeof path, "%s/j.db", dir);
    check_degrades(dir, path, remove_ballast);
    assert_int_equal(umount2(dir, MNT_DETACH), 0);
    journal_rmdir(dir);
    free(zeros);
}

static struct rlimit unlimited;

static void lift_limit(const char *dir)
{
    (void)dir;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
}

static void test_journal_goes_on_without_files_that_may_not_grow_and_comes_back(void **state)
{
    struct rlimit limit;
    char dir[64], path[128];

    (void)state;
    journal_mkdir(dir);
    snprintf(path, sizeof path, "%s/j.db", dir);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
    limit = unlimited;
    limit.rlim_cur = 1 << 20;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    check_degrades(dir, path, lift_limit);
    journal_rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_journal_gives_back_tokens_and_ends),
        cmocka_unit_test(test_journal_answers_a_repeated_idempotency_key_with_the_first_id),
        cmocka_unit_test(test_journal_refuses_a_second_opener_by_its_process),
        cmocka_unit_test(test_journal_refuses_a_path_that_cannot_be_made),
        cmocka_unit_test(test_journal_moves_a_damaged_file_aside_and_begins_a_new_one),
        cmocka_unit_test(test_journal_drops_ended_requests_when_their_time_is_over),
        cmocka_unit_test(test_journal_keeps_within_its_size_by_dropping_what_ended),
        cmocka_unit_test(test_journal_accepts_without_keeping_when_too_much_is_pending),
        cmocka_unit_test(test_journal_waits_for_no_disk_that_hangs),
        cmocka_unit_test(test_journal_stops_while_its_disk_hangs),
        cmocka_unit_test(test_journal_has_everything_that_it_said_when_it_is_killed_at_any_moment),
        cmocka_unit_test(test_journal_goes_on_without_a_full_disk_and_comes_back),
        cmocka_unit_test(test_journal_goes_on_without_files_that_may_not_grow_and_comes_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
