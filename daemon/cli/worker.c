/* `tensord worker`: one rank of a group, started by mpirun (by hand, by Slurm or by serve), that dials in to a coordinator. */
#include "daemon/cli/command.h"
#include "daemon/cli/rank.h"
#include "daemon/coordinator/launch.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

/* Rank 0 only: the others get it over MPI. */
static enum td_status read_dial(const struct td_options *opts, struct td_rank_dial *dial,
                                struct td_err *err)
{
    snprintf(dial->host, sizeof dial->host, "%s", opts->coordinator.host);
    dial->port = opts->coordinator.port;
    return opts->cluster_key_file ? td_rank_read_key(opts->cluster_key_file, dial, err) : TD_OK;
}

/* The compute thread may hang in MPI, and may hold stderr's lock: nothing of it is waited for or unwound, and a pipe that
 * nobody reads takes no last words. */
static void leave(const struct td_comm *world, const struct td_err *err)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    char why[600], text[700];
    int n = snprintf(text, sizeof text, "tensord worker: rank %u: %s\n",
                     world ? td_comm_rank(world) : 0, td_err_format(err, why, sizeof why));

    if (poll(&out, 1, 0) == 1 && (out.revents & POLLOUT) &&
        write(STDERR_FILENO, text, (size_t)n) < 0)
        n = 0; /* the exit status tells it as well */
    _exit(TD_EXIT_FAILURE);
}

/* A group that nobody numbered draws a number, so that the ranks of two jobs that dial in at once are told apart. */
static enum td_status share_generation(struct td_comm *world, uint32_t *generation,
                                       struct td_err *err)
{
    if (*generation == 0 && td_comm_rank(world) == 0 &&
        getrandom(generation, sizeof *generation, 0) != sizeof *generation)
        *generation = (uint32_t)getpid();
    return td_comm_bcast(world, 0, generation, sizeof *generation, err);
}

int td_cmd_worker(const struct td_options *opts)
{
    struct td_rank_dial dial = {.port = 0};
    uint32_t generation = (uint32_t)opts->generation;
    struct td_comm *world = NULL;
    struct td_err err;
    uv_loop_t loop;
    enum td_status s = td_rank_open_world(&world, &err);

    signal(SIGPIPE, SIG_IGN);
    td_launch_join();
    if (!s) {
        s = td_comm_rank(world) == 0 ? read_dial(opts, &dial, &err) : TD_OK;
        s = td_rank_share_dial(world, s, &dial, &err);
        s = s ? s : share_generation(world, &generation, &err);
    }
    if (!s) {
        uv_loop_init(&loop);
        s = td_rank_run(&loop, world, &dial, generation, opts, &err);
        if (!s)
            uv_loop_close(&loop);
    }
    if (s)
        leave(world, &err);
    td_comm_close(world);
    return TD_EXIT_OK;
}
