/* `tensord worker`: one rank of a group, started by mpirun (by hand, by Slurm or by serve), that dials in to a coordinator. */
#include "daemon/cli/command.h"
#include "daemon/cli/rank.h"

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
    if (s) {
        char text[600];

        /* The compute thread may hang in MPI: nothing of it is waited for or unwound. */
        fprintf(stderr, "tensord worker: rank %u: %s\n", world ? td_comm_rank(world) : 0,
                td_err_format(&err, text, sizeof text));
        fflush(NULL);
        _exit(TD_EXIT_FAILURE);
    }
    td_comm_close(world);
    return TD_EXIT_OK;
}
