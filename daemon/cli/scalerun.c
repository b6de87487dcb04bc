#include "daemon/cli/scalerun.h"

#include "daemon/coordinator/launch.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { N_SIGNALS = 3, READ_BYTES = 4096, SAID_BYTES = 32768, TOOL_PIPES = 2, EOF_GRACE_MS = 500 };

static const size_t MOST_OUTPUT_BYTES = (size_t)64 << 20;

/* One of a tool's output pipes. */
struct tool_pipe {
    uv_pipe_t pipe;
    struct td_scalerun *run;
    bool is_stderr;
    char buf[READ_BYTES];
};

struct td_scalerun {
    uv_loop_t loop;
    uv_signal_t signals[N_SIGNALS];
    uv_timer_t limit;
    int signal; /* the first that came; 0: none */

    /* Of the child that runs: */
    struct td_launch *launch; /* a job's */
    uv_process_t tool;
    struct tool_pipe pipes[TOOL_PIPES];
    struct td_bytes *out; /* borrows */
    struct td_bytes said; /* the end of its standard error */
    bool shows_errors, is_late, overflowed, has_tool;
    int64_t exit_status;
    int term_signal;
};

/* ---- signals and limits ---- */

static void on_signal(uv_signal_t *handle, int number)
{
    struct td_scalerun *r = handle->data;

    r->signal = r->signal ? r->signal : number;
    if (r->launch)
        td_launch_stop(r->launch);
}

static void on_limit(uv_timer_t *timer)
{
    struct td_scalerun *r = timer->data;

    r->is_late = true;
    if (r->launch)
        td_launch_stop(r->launch);
    if (r->has_tool)
        uv_process_kill(&r->tool, SIGKILL);
}

int td_scalerun_signal(struct td_scalerun *r)
{
    uv_run(&r->loop, UV_RUN_NOWAIT);
    return r->signal;
}

enum td_status td_scalerun_open(struct td_scalerun **out, struct td_err *err)
{
    static const int numbers[N_SIGNALS] = {SIGINT, SIGTERM, SIGHUP};
    struct td_scalerun *r = calloc(1, sizeof *r);
    int rc;

    if (!r)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a child");
    rc = uv_loop_init(&r->loop);
    if (rc) {
        free(r);
        return td_err_set(err, TD_IO, "cannot make an event loop: %s", uv_strerror(rc));
    }
    for (int i = 0; i < N_SIGNALS; i++) {
        uv_signal_init(&r->loop, &r->signals[i]);
        r->signals[i].data = r;
        uv_signal_start(&r->signals[i], on_signal, numbers[i]);
        uv_unref((uv_handle_t *)&r->signals[i]);
    }
    uv_timer_init(&r->loop, &r->limit);
    r->limit.data = r;
    *out = r;
    return TD_OK;
}

void td_scalerun_close(struct td_scalerun *r)
{
    if (!r)
        return;
    for (int i = 0; i < N_SIGNALS; i++)
        uv_close((uv_handle_t *)&r->signals[i], NULL);
    uv_close((uv_handle_t *)&r->limit, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    uv_loop_close(&r->loop);
    td_bytes_deinit(&r->said);
    free(r);
}

/* ---- what a child says ---- */

static void take(struct td_scalerun *r, const char *data, size_t n, bool is_stderr)
{
    if (!is_stderr) {
        if (r->out->len + n > MOST_OUTPUT_BYTES || td_bytes_append(r->out, data, n))
            r->overflowed = true;
        return;
    }
    if (r->shows_errors)
        fwrite(data, 1, n, stderr);
    if (r->said.len + n > SAID_BYTES)
        td_bytes_consume(&r->said, r->said.len / 2);
    (void)td_bytes_append(&r->said, data, n); /* without memory the reason is shorter */
}

static bool is_frame(struct td_str line)
{
    for (size_t i = 0; i < line.len; i++)
        if (!strchr("-*= \t\r", line.ptr[i]))
            return false;
    return true;
}

/* "loading   42 %", as term.h writes it for a job. */
static bool is_progress(struct td_str line)
{
    return td_str_starts(line, TD_STR("loading ")) || td_str_starts(line, TD_STR("measuring "));
}

static void append_line(struct td_str line, char *out, size_t out_bytes)
{
    size_t n = strlen(out);

    if (n && n + 1 < out_bytes)
        out[n++] = ' ';
    for (size_t i = 0; i < line.len && n + 1 < out_bytes; i++)
        if ((unsigned char)line.ptr[i] >= ' ' && line.ptr[i] != 0x7f)
            out[n++] = line.ptr[i];
    out[n] = '\0';
}

/* "tensord bench: --depth 9: expected ..", and not a warning. */
static bool names_error(struct td_str line)
{
    return td_str_starts(line, TD_STR("tensord ")) && memchr(line.ptr, ':', line.len) &&
           !memmem(line.ptr, line.len, "warning:", 8);
}

const char *td_scalerun_reason(struct td_str text, char *out, size_t out_bytes)
{
    out[0] = '\0';
    for (int pass = 0; pass < 2 && !out[0]; pass++)
        for (size_t at = 0; at < text.len;) {
            const char *end = memchr(text.ptr + at, '\n', text.len - at);
            size_t len = end ? (size_t)(end - text.ptr) - at : text.len - at;
            struct td_str line = {text.ptr + at, len};

            at += len + 1;
            if (pass == 0 && names_error(line)) {
                append_line(line, out, out_bytes);
                break;
            }
            if (pass == 1 && !is_frame(line) && !is_progress(line))
                append_line(line, out, out_bytes);
        }
    return out;
}

static void begin(struct td_scalerun *r, struct td_bytes *out, uint64_t limit_ns)
{
    r->out = out;
    td_bytes_clear(&r->said);
    r->is_late = r->overflowed = false;
    r->exit_status = 0;
    r->term_signal = 0;
    uv_timer_start(&r->limit, on_limit, limit_ns / 1000000u + 1, 0);
}

/* The child's end as a status; `failed` is that of a child that failed by itself. */
static enum td_status judge(struct td_scalerun *r, const char *what, uint64_t limit_ns,
                            enum td_status failed, struct td_err *err)
{
    char reason[240];

    td_scalerun_reason(td_bytes_str(&r->said), reason, sizeof reason);
    if (r->is_late)
        return td_err_set(err, TD_PEER_TIMED_OUT, "%s did not end within %g s and was ended", what,
                          (double)limit_ns * 1e-9);
    if (r->overflowed)
        return td_err_set(err, TD_TOO_LARGE, "%s printed more than %zu bytes", what,
                          MOST_OUTPUT_BYTES);
    if (r->term_signal)
        return td_err_set(err, failed, "%s was killed by signal %d (%s)%s%s", what, r->term_signal,
                          strsignal(r->term_signal), reason[0] ? ": " : "", reason);
    if (r->exit_status)
        return reason[0] ? td_err_set(err, failed, "%s", reason)
                         : td_err_set(err, failed, "%s ended with exit status %d", what,
                                      (int)r->exit_status);
    return TD_OK;
}

/* ---- jobs ---- */

static void on_job_output(const char *data, size_t n, bool is_stderr, void *user)
{
    take(user, data, n, is_stderr);
}

static void on_job_end(const struct td_launch_end *end, void *user)
{
    struct td_scalerun *r = user;

    r->exit_status = end->exit_status;
    r->term_signal = end->term_signal;
    td_launch_close(r->launch);
    r->launch = NULL;
    uv_timer_stop(&r->limit);
}

static enum td_status refuse_signal(const struct td_scalerun *r, struct td_err *err)
{
    return td_err_set(err, TD_CANCELLED, "stopped by signal %d (%s)", r->signal,
                      strsignal(r->signal));
}

enum td_status td_scalerun_start(struct td_scalerun *r, const struct td_scalerun_job *job,
                                 struct td_bytes *out, struct td_err *err)
{
    struct td_launch_params params = {.loop = &r->loop,
                                      .n_ranks = job->n_ranks,
                                      .hostfile = job->hostfile,
                                      .prefix = job->prefix,
                                      .tmp_base = job->tmp_base,
                                      .command = job->command,
                                      .worker_args = job->args,
                                      .on_output = on_job_output};
    enum td_status s;

    if (td_scalerun_signal(r))
        return refuse_signal(r, err);
    r->shows_errors = job->shows_errors;
    begin(r, out, job->limit_ns);
    s = td_launch_start(&params, on_job_end, r, &r->launch, err);
    if (s)
        uv_timer_stop(&r->limit);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    if (r->signal)
        return refuse_signal(r, err);
    return s ? s : judge(r, "the job", job->limit_ns, TD_PEER_LOST, err);
}

/* ---- tools ---- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct tool_pipe *p = handle->data;

    (void)suggested;
    *buf = uv_buf_init(p->buf, sizeof p->buf);
}

static void close_pipes(struct td_scalerun *r)
{
    for (int i = 0; i < TOOL_PIPES; i++)
        if (!uv_is_closing((uv_handle_t *)&r->pipes[i].pipe))
            uv_close((uv_handle_t *)&r->pipes[i].pipe, NULL);
}

static void stop_timer_when_done(struct td_scalerun *r)
{
    if (!r->has_tool && uv_is_closing((uv_handle_t *)&r->pipes[0].pipe) &&
        uv_is_closing((uv_handle_t *)&r->pipes[1].pipe))
        uv_timer_stop(&r->limit);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct tool_pipe *p = stream->data;

    if (n > 0)
        take(p->run, buf->base, (size_t)n, p->is_stderr);
    if (n >= 0)
        return;
    uv_close((uv_handle_t *)stream, NULL);
    stop_timer_when_done(p->run);
}

/* Something that the tool left behind holds its pipes. */
static void on_grace(uv_timer_t *timer)
{
    close_pipes(timer->data);
}

static void on_tool_end(uv_process_t *process, int64_t exit_status, int term_signal)
{
    struct td_scalerun *r = process->data;

    r->exit_status = exit_status;
    r->term_signal = term_signal;
    r->has_tool = false;
    uv_close((uv_handle_t *)process, NULL);
    uv_timer_start(&r->limit, on_grace, EOF_GRACE_MS, 0);
    stop_timer_when_done(r);
}

enum td_status td_scalerun_tool(struct td_scalerun *r, const char *const *argv, uint64_t limit_ns,
                                struct td_bytes *out, struct td_err *err)
{
    uv_stdio_container_t stdio[] = {
        {.flags = UV_IGNORE},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE,
         .data.stream = (uv_stream_t *)&r->pipes[0].pipe},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE,
         .data.stream = (uv_stream_t *)&r->pipes[1].pipe},
    };
    const uv_process_options_t options = {.exit_cb = on_tool_end,
                                          .file = argv[0],
                                          .args = (char **)(uintptr_t)argv,
                                          .flags = UV_PROCESS_DETACHED,
                                          .stdio_count = 3,
                                          .stdio = stdio};
    int rc;

    for (int i = 0; i < TOOL_PIPES; i++) {
        uv_pipe_init(&r->loop, &r->pipes[i].pipe, 0);
        r->pipes[i].pipe.data = &r->pipes[i];
        r->pipes[i].run = r;
        r->pipes[i].is_stderr = i == 1;
    }
    r->shows_errors = false;
    begin(r, out, limit_ns);
    r->tool.data = r;
    rc = uv_spawn(&r->loop, &r->tool, &options);
    r->has_tool = rc == 0;
    if (rc) {
        uv_timer_stop(&r->limit);
        uv_close((uv_handle_t *)&r->tool, NULL);
    }
    for (int i = 0; !rc && i < TOOL_PIPES; i++)
        if (uv_read_start((uv_stream_t *)&r->pipes[i].pipe, on_alloc, on_read))
            uv_close((uv_handle_t *)&r->pipes[i].pipe, NULL);
    if (rc)
        close_pipes(r);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    if (rc)
        return td_err_set(err, rc == UV_ENOENT ? TD_NOT_FOUND : TD_IO, "cannot start '%.200s': %s",
                          argv[0], uv_strerror(rc));
    return judge(r, argv[0], limit_ns, TD_UNAVAILABLE, err);
}
