#include "daemon/cli/selflaunch.h"

#include "daemon/coordinator/launch.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <uv.h>

enum { LINE_BYTES = 1024, BANNER_BYTES = 8192, LEAST_RULE = 40, N_SIGNALS = 2 };

struct job {
    uv_loop_t loop;
    uv_signal_t signals[N_SIGNALS];
    uv_timer_t limit;
    struct td_launch *launch;
    bool has_spoken; /* something came on standard output */
    bool in_banner;
    size_t n_line, n_banner;
    char line[LINE_BYTES]; /* of standard error, not ended yet */
    char banner[BANNER_BYTES + 1];
    int signal; /* that stopped it; 0: none */
    bool is_late;
    int exit_status;
    enum td_status status;
    struct td_err *err;
};

/* ---- Output ---- */

/* mpirun frames what it has to say with lines of dashes. */
static bool is_rule(const char *line, size_t n)
{
    size_t dashes = 0;

    while (dashes < n && line[dashes] == '-')
        dashes++;
    return dashes >= LEAST_RULE && line[n - 1] == '\n' && dashes == n - 1;
}

static void end_line(struct job *j)
{
    size_t room = BANNER_BYTES - j->n_banner;

    if (is_rule(j->line, j->n_line)) {
        j->in_banner = !j->in_banner;
    } else if (j->in_banner) {
        room = j->n_line < room ? j->n_line : room;
        memcpy(j->banner + j->n_banner, j->line, room);
        j->n_banner += room;
    } else {
        fwrite(j->line, 1, j->n_line, stderr);
    }
    j->n_line = 0;
}

static void on_output(const char *data, size_t n, bool is_stderr, void *user)
{
    struct job *j = user;

    if (!is_stderr) {
        j->has_spoken = true;
        fwrite(data, 1, n, stdout); /* td_command_main finds what could not be written */
        fflush(stdout);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        j->line[j->n_line++] = data[i];
        if (data[i] == '\n' || j->n_line == sizeof j->line)
            end_line(j);
    }
}

/* ---- The end ---- */

static void close_handles(struct job *j)
{
    for (int i = 0; i < N_SIGNALS; i++)
        uv_close((uv_handle_t *)&j->signals[i], NULL);
    uv_close((uv_handle_t *)&j->limit, NULL);
}

/* A status that a command has is the ranks' own; anything else is mpirun's. */
static void on_end(const struct td_launch_end *end, void *user)
{
    struct job *j = user;

    end_line(j);
    if (j->n_banner && !j->has_spoken)
        fwrite(j->banner, 1, j->n_banner, stderr);
    j->exit_status = (int)end->exit_status;
    if (j->signal)
        j->status = td_err_set(j->err, TD_CANCELLED, "stopped by signal %d (%s)", j->signal,
                               strsignal(j->signal));
    else if (j->is_late)
        j->status = td_err_set(j->err, TD_PEER_TIMED_OUT,
                               "the job did not end in time: can this host reach every host of the "
                               "hostfile, and they each other?");
    else if (end->term_signal || (end->exit_status != 0 && !j->has_spoken))
        j->status = td_launch_describe(end, TD_PEER_LOST, j->err);
    td_launch_close(j->launch);
    j->launch = NULL;
    close_handles(j);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct job *j = handle->data;

    j->signal = number;
    if (j->launch)
        td_launch_stop(j->launch);
}

static void on_limit(uv_timer_t *timer)
{
    struct job *j = timer->data;

    j->is_late = true;
    if (j->launch)
        td_launch_stop(j->launch);
}

enum td_status td_selflaunch_run(const struct td_selflaunch_params *p, int *exit_status,
                                 struct td_err *err)
{
    static const int numbers[N_SIGNALS] = {SIGINT, SIGTERM};
    struct job job = {.err = err};
    struct td_launch_params launch = {.loop = &job.loop,
                                      .n_ranks = p->n_ranks,
                                      .hostfile = p->hostfile,
                                      .command = p->command,
                                      .worker_args = p->args,
                                      .on_output = on_output};
    enum td_status s;
    int rc = uv_loop_init(&job.loop);

    if (rc)
        return td_err_set(err, TD_IO, "cannot make an event loop: %s", uv_strerror(rc));
    for (int i = 0; i < N_SIGNALS; i++) {
        uv_signal_init(&job.loop, &job.signals[i]);
        job.signals[i].data = &job;
        uv_signal_start(&job.signals[i], on_signal, numbers[i]);
    }
    uv_timer_init(&job.loop, &job.limit);
    job.limit.data = &job;
    uv_timer_start(&job.limit, on_limit, p->limit_ns / 1000000u, 0);
    s = td_launch_start(&launch, on_end, &job, &job.launch, err);
    if (s)
        close_handles(&job);
    uv_run(&job.loop, UV_RUN_DEFAULT);
    uv_loop_close(&job.loop);
    s = s ? s : job.status;
    if (!s)
        *exit_status = job.exit_status;
    return s;
}
