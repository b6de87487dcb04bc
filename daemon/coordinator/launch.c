#include "daemon/coordinator/launch.h"

#include "daemon/coordinator/keeper.h"
#include "daemon/coordinator/launch_argv.h"
#include "daemon/coordinator/launch_end.h"
#include "daemon/log.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LINE_BYTES = 2048,
    LAST_LINES = 6,
    LAST_LINE_BYTES = 160,
    READ_BYTES = 4096,
    EOF_GRACE_MS = 500
};

/* One of the child's output pipes: bytes into log lines. */
struct output {
    struct td_launch *l;
    uv_pipe_t pipe;
    bool at_eof;
    bool skipping; /* the rest of a line that was too long */
    size_t n_line;
    char line[LINE_BYTES];
    char buf[READ_BYTES];
};

/* The last lines that may say why a launch ended. */
struct last_lines {
    unsigned n; /* ever */
    char text[LAST_LINES][LAST_LINE_BYTES];
};

struct td_launch {
    td_launch_end_fn *on_end; /* NULL once closed */
    td_launch_end_fn *on_fall;
    td_launch_output_fn *on_output; /* NULL: the log */
    void *user;
    uv_loop_t *loop;
    uv_process_t process;
    uv_pipe_t in;
    uv_write_t write;
    uv_timer_t grace; /* for the end of output after the child's */
    struct output out[2];
    uint32_t generation;
    struct td_launch_argv argv;
    char *key; /* the line for stdin */
    char dir[256];
    int lock;                 /* on it; -1: none */
    struct td_keeper *keeper; /* NULL: none */
    int n_handles;
    int pid;
    bool exited, stopped, closing, ended;
    struct td_launch_end end;
    struct last_lines by_ranks, by_mpirun;
    char joined[LAST_LINES * (LAST_LINE_BYTES + 2)];
    uv_work_t cleanup;
};

/* ---- The end: handles closed, then processes and files on libuv's pool, then on_end ---- */

static void free_launch(struct td_launch *l)
{
    td_launch_argv_deinit(&l->argv);
    if (l->lock >= 0) {
        close(l->lock);
    }
    if (l->key != NULL) {
        explicit_bzero(l->key, strlen(l->key));
        free(l->key);
    }
    free(l);
}

static void clean_up(uv_work_t *work)
{
    struct td_launch *l = work->data;
    td_launch_end_processes(l->dir);
    td_launch_end_remove(l->dir);
}

static void keep_line(struct last_lines *last, const char *text)
{
    snprintf(last->text[last->n++ % LAST_LINES], LAST_LINE_BYTES, "%.*s", LAST_LINE_BYTES - 1,
             text);
}

/* What a rank said explains more than mpirun's account of its exit. */
static void join_lines(struct td_launch *l)
{
    const struct last_lines *last = l->by_ranks.n > 0 ? &l->by_ranks : &l->by_mpirun;
    size_t n = 0;
    l->joined[0] = '\0';
    for (unsigned i = last->n > LAST_LINES ? last->n - LAST_LINES : 0; i < last->n; i++) {
        n += (size_t)snprintf(l->joined + n, sizeof(l->joined) - n, "%s%s", n > 0 ? "; " : "",
                              last->text[i % LAST_LINES]);
    }
}

static void on_cleaned(uv_work_t *work, int status)
{
    struct td_launch *l = work->data;
    (void)status;
    td_keeper_close(l->keeper);
    l->keeper = NULL;
    join_lines(l);
    l->end.lines = l->joined;
    l->end.stopped = l->stopped;
    if (l->on_end != NULL) {
        l->on_end(&l->end, l->user);
    }
    l->ended = true;
    if (l->on_end == NULL) {
        free_launch(l); /* closed before, or just now */
    }
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct td_launch *l = handle->data;
    if (--l->n_handles > 0) {
        return;
    }
    l->cleanup.data = l;
    if (uv_queue_work(l->loop, &l->cleanup, clean_up, on_cleaned) != 0) {
        clean_up(&l->cleanup);
        on_cleaned(&l->cleanup, 0);
    }
}

static void close_handle(uv_handle_t *handle)
{
    if (!uv_is_closing(handle)) {
        uv_close(handle, on_handle_closed);
    }
}

static void close_handles(struct td_launch *l)
{
    if (l->closing) {
        return;
    }
    l->closing = true;
    close_handle((uv_handle_t *)&l->process);
    close_handle((uv_handle_t *)&l->in);
    close_handle((uv_handle_t *)&l->grace);
    close_handle((uv_handle_t *)&l->out[0].pipe);
    close_handle((uv_handle_t *)&l->out[1].pipe);
}

static void close_when_done(struct td_launch *l)
{
    if (l->exited && l->out[0].at_eof && l->out[1].at_eof) {
        close_handles(l);
    }
}

static void on_grace(uv_timer_t *timer)
{
    struct td_launch *l = timer->data;
    close_handles(l); /* somebody else holds the pipe, an ssh perhaps */
}

static void on_child_exit(uv_process_t *process, int64_t exit_status, int term_signal)
{
    struct td_launch *l = process->data;
    l->exited = true;
    l->end.exit_status = exit_status;
    l->end.term_signal = term_signal;
    l->end.by_itself = !l->stopped;
    td_log_debug("mpirun ended generation=%u exit=%d signal=%d", l->generation, (int)exit_status,
                 term_signal);
    if (l->end.by_itself && term_signal != 0 && l->on_fall != NULL) {
        l->on_fall(&l->end, l->user);
    }
    if (!l->closing) {
        uv_timer_start(&l->grace, on_grace, EOF_GRACE_MS, 0);
        close_when_done(l);
    }
}

/* ---- Output ---- */

static bool is_decoration(const char *s)
{
    return s[strspn(s, "- \t*=")] == '\0';
}

/* Lines of ranks come as "[1,RANK]<stderr>:text" (--tag-output); a rank's own log lines begin with a time and a level,
 * which are not written twice. */
static void log_line(struct td_launch *l, char *text)
{
    unsigned job;
    unsigned rank;
    int at = 0;
    enum td_log_level level = TD_LOG_INFO;
    bool is_rank = sscanf(text, "[%u,%u]<std%*3[a-z]>:%n", &job, &rank, &at) == 2 && at > 0;
    if (is_rank) {
        text += at;
    }
    if (is_decoration(text)) {
        return;
    }
    char word[16];
    int skip = 0;
    if (sscanf(text, "%*1[0-9<]%*39[0-9T:.>Z-] %15[a-z] %n", word, &skip) == 1 && skip > 0 &&
        td_log_level_from_name(word, &level)) {
        text += skip;
    } else {
        level = TD_LOG_INFO;
        skip = 0;
    }
    if (skip == 0 || level <= TD_LOG_WARN) {
        keep_line(is_rank ? &l->by_ranks : &l->by_mpirun, text);
    }
    for (char *p = text; *p != '\0'; p++) {
        if (*p == '"') {
            *p = '\''; /* the value stands in double quotes */
        }
    }
    if (is_rank) {
        td_log_write(level, "rank output generation=%u rank=%u text=\"%s\"", l->generation, rank,
                     text);
    } else {
        td_log_write(level, "mpirun output generation=%u text=\"%s\"", l->generation, text);
    }
}

static void end_line(struct output *o)
{
    while (o->n_line > 0 && (o->line[o->n_line - 1] == '\r' || o->line[o->n_line - 1] == ' ')) {
        o->n_line--;
    }
    o->line[o->n_line] = '\0';
    if (o->n_line > 0) {
        log_line(o->l, o->line);
    }
    o->n_line = 0;
}

static void take_output(struct output *o, const char *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (data[i] == '\n') {
            if (!o->skipping) {
                end_line(o);
            }
            o->skipping = false;
        } else if (!o->skipping) {
            o->line[o->n_line++] = data[i] == '\0' ? ' ' : data[i];
            if (o->n_line == sizeof(o->line) - 1) {
                end_line(o);
                o->skipping = true;
            }
        }
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct td_launch *l = handle->data;
    struct output *o = handle == (uv_handle_t *)&l->out[0].pipe ? &l->out[0] : &l->out[1];
    (void)suggested;
    *buf = uv_buf_init(o->buf, sizeof(o->buf));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct td_launch *l = stream->data;
    struct output *o = stream == (uv_stream_t *)&l->out[0].pipe ? &l->out[0] : &l->out[1];
    if (n > 0 && l->on_output != NULL) {
        l->on_output(buf->base, (size_t)n, o == &l->out[1], l->user);
    } else if (n > 0) {
        take_output(o, buf->base, (size_t)n);
    } else if (n < 0) {
        end_line(o);
        o->at_eof = true;
        uv_read_stop(stream);
        close_when_done(l);
    }
}

/* ---- The start ---- */

static void on_key_written(uv_write_t *write, int status)
{
    struct td_launch *l = write->data;
    (void)status; /* a child that is gone already tells so by its end */
    if (l->key != NULL) {
        explicit_bzero(l->key, strlen(l->key));
    }
    close_handle((uv_handle_t *)&l->in);
}

static enum td_status spawn(struct td_launch *l, struct td_err *err)
{
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE, .data.stream = (uv_stream_t *)&l->in},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&l->out[0].pipe},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&l->out[1].pipe},
    };
    const uv_process_options_t options = {
        .exit_cb = on_child_exit,
        .file = l->argv.args[0],
        .args = l->argv.args,
        .env = l->argv.env,
        /* A session of its own: a Ctrl-C at the terminal is for the coordinator, which ends the group in order. */
        .flags = UV_PROCESS_DETACHED,
        .stdio_count = 3,
        .stdio = stdio,
    };
    int rc = uv_spawn(l->loop, &l->process, &options);
    if (rc == UV_ENOENT) {
        return td_err_set(err, TD_NOT_FOUND, TD_LAUNCH_NO_MPIRUN, l->argv.args[0]);
    }
    if (rc != 0) {
        return td_err_set(err, TD_IO, "cannot start '%s': %s", l->argv.args[0], uv_strerror(rc));
    }
    l->pid = l->process.pid;
    for (int i = 0; i < 2; i++) {
        if (uv_read_start((uv_stream_t *)&l->out[i].pipe, on_alloc, on_read) != 0) {
            l->out[i].at_eof = true;
        }
    }
    uv_buf_t line = uv_buf_init(l->key, l->key != NULL ? (unsigned)strlen(l->key) : 0);
    l->write.data = l;
    if (line.len == 0 ||
        uv_write(&l->write, (uv_stream_t *)&l->in, &line, 1, on_key_written) != 0) {
        close_handle((uv_handle_t *)&l->in);
    }
    return TD_OK;
}

static void init_handles(struct td_launch *l)
{
    uv_pipe_init(l->loop, &l->in, 0);
    uv_pipe_init(l->loop, &l->out[0].pipe, 0);
    uv_pipe_init(l->loop, &l->out[1].pipe, 0);
    uv_timer_init(l->loop, &l->grace);
    l->in.data = l->out[0].pipe.data = l->out[1].pipe.data = l->grace.data = l->process.data = l;
    l->out[0].l = l->out[1].l = l;
    l->n_handles = 5; /* with the process, whose handle uv_spawn initialises even when it fails */
}

static enum td_status copy_key(struct td_launch *l, struct td_str key, struct td_err *err)
{
    if (key.len == 0) {
        return TD_OK;
    }
    if (memchr(key.ptr, '\n', key.len) != NULL || memchr(key.ptr, '\0', key.len) != NULL) {
        return td_err_set(err, TD_INVALID, "the cluster key has more than one line");
    }
    l->key = malloc(key.len + 2);
    if (l->key == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a launch");
    }
    memcpy(l->key, key.ptr, key.len);
    memcpy(l->key + key.len, "\n", 2);
    return TD_OK;
}

/* Without one a launch still runs: what a killed coordinator leaves is then removed by the next one. */
static void start_keeper(struct td_launch *l, const char *program)
{
    struct td_err err;
    if (program != NULL && td_keeper_start(l->loop, program, l->dir, &l->keeper, &err) != TD_OK) {
        td_log_warn("a launch has no keeper error=\"%s\"", err.cause);
    }
}

enum td_status td_launch_start(const struct td_launch_params *params, td_launch_end_fn *on_end,
                               void *user, struct td_launch **launch, struct td_err *err)
{
    struct td_launch *l = calloc(1, sizeof(*l));
    if (l == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a launch");
    }
    l->lock = -1;
    l->loop = params->loop;
    l->generation = params->generation;
    l->on_output = params->on_output;
    enum td_status status = copy_key(l, params->cluster_key, err);
    if (status == TD_OK) {
        status = td_launch_argv_make_dir(params, l->dir, sizeof(l->dir), &l->lock, err);
    }
    if (status != TD_OK) {
        free_launch(l);
        return status;
    }
    status = td_launch_argv_init(&l->argv, params, l->dir, err);
    if (status != TD_OK) {
        td_launch_end_remove(l->dir);
        free_launch(l);
        return status;
    }
    init_handles(l);
    status = spawn(l, err);
    if (status != TD_OK) {
        close_handles(l); /* on_end is not set: l is freed when they are closed */
        return status;
    }
    l->on_end = on_end;
    l->on_fall = params->on_fall;
    l->end.lines = "";
    l->user = user;
    start_keeper(l, params->keeper);
    td_log_write(params->command != NULL ? TD_LOG_DEBUG : TD_LOG_INFO,
                 "group launched generation=%u ranks=%u mpirun_pid=%d dir=%s", params->generation,
                 params->n_ranks, l->pid, l->dir);
    *launch = l;
    return TD_OK;
}

void td_launch_stop(struct td_launch *l)
{
    l->stopped = true;
    if (!l->exited) {
        /* With odls_base_sigkill_timeout 0 the daemons kill every rank when mpirun is gone; 60 ms on one host. */
        uv_process_kill(&l->process, SIGKILL);
    }
}

void td_launch_close(struct td_launch *l)
{
    if (l == NULL) {
        return;
    }
    l->on_end = l->on_fall = NULL;
    l->on_output = NULL;
    if (l->ended) {
        free_launch(l);
    } else if (!l->exited) {
        td_launch_stop(l);
    }
}

int td_launch_pid(const struct td_launch *l)
{
    return l->pid;
}

enum td_status td_launch_describe(const struct td_launch_end *end, enum td_status status,
                                  struct td_err *err)
{
    const char *colon = end->lines[0] != '\0' ? ": " : "";
    if (end->term_signal != 0) {
        return td_err_set(err, status, "mpirun was killed by signal %d (%s)%s%s", end->term_signal,
                          strsignal(end->term_signal), colon, end->lines);
    }
    return td_err_set(err, status, "mpirun ended with exit status %d%s%s", (int)end->exit_status,
                      colon, end->lines);
}
