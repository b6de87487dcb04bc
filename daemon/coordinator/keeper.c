#include "daemon/coordinator/keeper.h"

#include "daemon/coordinator/launch_end.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct td_keeper {
    uv_process_t process;
    uv_pipe_t in;
    int n_handles;
    bool closing;
};

static void on_closed(uv_handle_t *handle)
{
    struct td_keeper *k = handle->data;

    if (--k->n_handles == 0 && k->closing)
        free(k);
}

static void close_pipe(struct td_keeper *k)
{
    if (!uv_is_closing((uv_handle_t *)&k->in))
        uv_close((uv_handle_t *)&k->in, on_closed);
}

static void on_ended(uv_process_t *process, int64_t status, int signal)
{
    struct td_keeper *k = process->data;

    (void)status;
    (void)signal;
    close_pipe(k);
    uv_close((uv_handle_t *)process, on_closed);
}

enum td_status td_keeper_start(uv_loop_t *loop, const char *program, const char *dir,
                               struct td_keeper **keeper, struct td_err *err)
{
    struct td_keeper *k = calloc(1, sizeof *k);
    char *args[] = {(char *)"tensord", (char *)TD_KEEPER_WORD, (char *)dir, NULL};
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE, .data.stream = (uv_stream_t *)&k->in},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO}};
    const uv_process_options_t options = {
        .exit_cb = on_ended,
        .file = program,
        .args = args,
        .flags = UV_PROCESS_DETACHED, /* a Ctrl-C is for the coordinator */
        .stdio_count = 3,
        .stdio = stdio,
    };
    int rc;

    if (!k)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a launch's keeper");
    uv_pipe_init(loop, &k->in, 0);
    k->in.data = k->process.data = k;
    k->n_handles = 2; /* with the process, whose handle uv_spawn initialises even when it fails */
    rc = uv_spawn(loop, &k->process, &options);
    if (rc == 0) {
        *keeper = k;
        return TD_OK;
    }
    k->closing = true;
    close_pipe(k);
    uv_close((uv_handle_t *)&k->process, on_closed);
    return td_err_set(err, TD_IO, "cannot start '%.200s " TD_KEEPER_WORD "': %s", program,
                      uv_strerror(rc));
}

void td_keeper_close(struct td_keeper *k)
{
    if (!k)
        return;
    k->closing = true;
    if (k->n_handles == 0)
        free(k);
    else
        close_pipe(k);
}

bool td_keeper_run(const char *dir)
{
    struct stat st;
    char byte;
    ssize_t n;

    if (!td_launch_end_is_ours(dir))
        return false;
    signal(
        SIGTERM,
        SIG_IGN); /* for the whole group of processes, perhaps: the coordinator says when it is over */
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    do
        n = read(STDIN_FILENO, &byte, 1);
    while (n > 0 || (n < 0 && errno == EINTR));
    if (lstat(dir, &st) != 0)
        return true;
    td_launch_end_processes(dir);
    td_launch_end_remove(dir);
    return true;
}
