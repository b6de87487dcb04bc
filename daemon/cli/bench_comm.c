/* `tensord bench comm`: what the links and collectives of an MPI job reach, beside MPI's own calls and a bare exchange. This file
 * reads what is wanted, opens the group with and without shared memory, and writes the results. */
#include "comm/comm_mpi.h"
#include "daemon/cli/command.h"
#include "daemon/cli/commprint.h"
#include "daemon/cli/resultfile.h"
#include "daemon/cli/spmd.h"
#include "daemon/engine/sumchoice.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    ROUNDS = 10,
    ROUND_NS = 10 * 1000 * 1000,
    SHARED_ROUNDS = 4, /* where ranks share cores */
    SHARED_ROUND_NS = 5 * 1000 * 1000
};

static const uint64_t open_limit_ns = 60000000000u; /* MPI's start is given by itself */

struct bench {
    const struct td_options *opts;
    struct td_err *err;
    struct td_spmd spmd; /* its world and terminal; no node */
    struct td_commset set;
    struct td_comm *messages; /* the world without shared memory; NULL: it has none */
    struct td_watchdog *watchdog;
    struct td_commop_bench ops;
    struct td_commrun run;
    struct td_commprint print;
    char no_bare[96]; /* why there is no bare exchange */
};

/* What a rank says of its place, for all to know how many hosts there are and whether cores are shared. */
struct place {
    uint32_t host_rank; /* among the ranks of its host */
    uint32_t shares_core;
};

/* A bound rank has its cores to itself; unbound ones of a host share all that they may use. */
static bool shares_core(uint32_t n_here)
{
    cpu_set_t cores;
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    if (sched_getaffinity(0, sizeof cores, &cores) != 0)
        return n_here > 1;
    return (long)n_here > CPU_COUNT(&cores) &&
           !(CPU_COUNT(&cores) < online && (long)n_here <= online);
}

static enum td_status look_around(struct bench *b)
{
    struct td_comm *world = b->spmd.world, *host = NULL;
    struct place mine, all[TD_TREE_MAX_RANKS];
    size_t counts[TD_TREE_MAX_RANKS];
    enum td_status s = td_comm_split_host(world, &host, b->err);

    if (s)
        return s;
    mine = (struct place){td_comm_rank(host), shares_core(td_comm_size(host))};
    td_comm_close(host);
    for (uint32_t r = 0; r < b->print.n_ranks; r++)
        counts[r] = sizeof mine;
    s = td_comm_all_gather(world, &mine, counts, all, b->err);
    for (uint32_t r = 0; !s && r < b->print.n_ranks; r++) {
        b->print.n_hosts += all[r].host_rank == 0;
        b->print.shares_cores = b->print.shares_cores || all[r].shares_core;
    }
    return s;
}

/* Files are rank 0's, but all must know that they can be written. */
static enum td_status read_settings(struct bench *b)
{
    const struct td_options *o = b->opts;
    enum td_status s = TD_OK;

    s = td_commset_read(&o->sizes, &o->operations, b->print.n_ranks, &b->set, b->err);
    if (!s && o->svg && b->set.ops == 1u << TD_COMMSET_BARRIER)
        s = td_err_set(b->err, TD_INVALID,
                       "--svg: barrier has no sizes to draw over, expected other --operations");
    if (s)
        return s; /* alike on all ranks */
    if (b->spmd.rank == 0)
        s = td_resultfile_check("json-file", o->json_file, b->err);
    if (!s && b->spmd.rank == 0 && b->print.n_ranks > 1) /* one rank draws nothing */
        s = td_resultfile_check("svg", o->svg, b->err);
    return td_node_agree(b->spmd.world, s, b->err);
}

/* What sums take by themselves is what a model's would: as was fastest when it was tried, now or at an earlier start, or the
 * rule where ranks share cores. Collective over `comm`. */
static enum td_status choose_sums(struct bench *b, struct td_comm *comm)
{
    const struct td_sumchoice_params params = {.may_measure = !b->print.shares_cores};
    struct td_sum_choices choices;
    char host[HOST_NAME_MAX + 1] = "";
    enum td_status s;

    gethostname(host, sizeof host - 1);
    s = td_sumchoice_make(comm, host, &params, &choices, b->err);
    if (s)
        return s;
    td_comm_set_sum_choices(comm, &choices);
    for (uint32_t c = 0; c < TD_SUM_CLASSES; c++)
        b->print.was_tried = b->print.was_tried || choices.by_class[c] != TD_SUM_AUTO;
    return TD_OK;
}

static enum td_status open_contenders(struct bench *b)
{
    char name[64];
    size_t most = b->set.n_sizes ? b->set.bytes[b->set.n_sizes - 1] : sizeof(float);
    enum td_status s = TD_OK;

    snprintf(name, sizeof name, "tensord bench comm: rank %u", b->spmd.rank);
    s = td_watchdog_open(name, &b->watchdog, b->err);
    s = td_node_agree(b->spmd.world, s, b->err);
    if (s)
        return s;
    td_watchdog_arm(b->watchdog, "opening the contenders", open_limit_ns);
    if (strcmp(b->print.transport, "mpi") != 0) {
        td_comm_mpi_configure(true, 0);
        s = td_comm_mpi_open(&b->messages, b->err);
        td_comm_mpi_configure(false, 0);
    }
    s = s ? s : td_yardstick_open(b->spmd.world, most, &b->ops.yardstick, b->err);
    if (!s && b->set.ops & 1u << TD_COMMSET_TREE_SUM) {
        td_watchdog_arm(b->watchdog, "trying the sums' algorithms", open_limit_ns);
        s = choose_sums(b, b->spmd.world);
        if (!s && b->messages)
            s = choose_sums(b, b->messages);
    }
    td_watchdog_disarm(b->watchdog);
    if (s)
        return s;
    b->ops.world = b->spmd.world;
    b->ops.messages = b->messages;
    s = td_commop_open(&b->ops, most, b->err);
    return td_node_agree(b->spmd.world, s, b->err);
}

static enum td_status measure(struct bench *b)
{
    bool shared = b->print.shares_cores;
    struct td_commrun_params params = {.set = &b->set,
                                       .n_rounds = td_options_is_set(b->opts, &b->opts->repetitions)
                                                       ? (uint32_t)b->opts->repetitions
                                                   : shared ? SHARED_ROUNDS
                                                            : ROUNDS,
                                       .round_ns = shared ? SHARED_ROUND_NS : ROUND_NS,
                                       .watchdog = b->watchdog,
                                       .term = b->spmd.rank == 0 ? &b->spmd.term : NULL};

    b->print.n_rounds = params.n_rounds;
    if (td_yardstick_no_bare(b->ops.yardstick)) {
        snprintf(b->no_bare, sizeof b->no_bare, "%s", td_yardstick_no_bare(b->ops.yardstick));
        b->print.no_bare = b->no_bare;
    }
    return td_commrun_go(&params, &b->ops, &b->run, b->err);
}

/* ---- results ---- */

static enum td_status write_json(struct bench *b)
{
    const struct td_options *o = b->opts;
    json_t *root = td_commprint_json(&b->print);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(10)) : NULL;
    enum td_status s = text ? TD_OK : td_err_set(b->err, TD_NO_MEMORY, "no memory for the JSON");

    if (!s && o->json_file)
        s = td_resultfile_write("json-file", o->json_file, td_str_from(text), b->err);
    free(text);
    if (!s && o->json) {
        s = json_dumpf(root, stdout, JSON_COMPACT | JSON_REAL_PRECISION(10))
                ? td_err_set(b->err, TD_NO_MEMORY, "no memory for the JSON")
                : TD_OK;
        putchar('\n');
    }
    json_decref(root);
    return s;
}

static enum td_status write_results(struct bench *b)
{
    const struct td_options *o = b->opts;
    struct td_bytes picture = {0};
    enum td_status s = TD_OK;

    if (!o->json)
        td_commprint_text(&b->print);
    if (o->json || o->json_file)
        s = write_json(b);
    if (!s && o->svg && b->run.n_rows > 0) {
        s = td_commprint_svg(&b->print, &picture);
        s = s ? td_err_set(b->err, s, "no memory for the picture")
              : td_resultfile_write("svg", o->svg, td_bytes_str(&picture), b->err);
    }
    td_bytes_deinit(&picture);
    return s;
}

/* After a failure MPI is not called any more, so what it gave stays open until the process ends. */
static void close_contenders(struct bench *b, bool failed)
{
    td_commop_close(&b->ops);
    if (!failed)
        td_watchdog_arm(b->watchdog, "closing the contenders", open_limit_ns);
    td_yardstick_close(b->ops.yardstick, failed);
    if (failed && b->messages)
        td_comm_abort(b->messages);
    td_comm_close(b->messages);
    td_watchdog_close(b->watchdog);
}

int td_cmd_bench_comm(const struct td_options *opts)
{
    struct td_err err;
    struct bench b = {.opts = opts, .err = &err};
    enum td_status s = td_comm_mpi_launched() ? td_comm_mpi_open(&b.spmd.world, &err)
                                              : td_comm_self_open(&b.spmd.world, &err);

    td_term_init(&b.spmd.term, stderr);
    b.print.set = &b.set;
    b.print.run = &b.run;
    if (!s) {
        b.spmd.rank = td_comm_rank(b.spmd.world);
        b.print.n_ranks = td_comm_size(b.spmd.world);
        b.print.transport = td_comm_transport(b.spmd.world);
        s = look_around(&b);
    }
    s = s ? s : read_settings(&b);
    if (!s && b.print.n_ranks > 1) {
        s = open_contenders(&b);
        s = s ? s : measure(&b);
        close_contenders(&b, s >= TD_PEER_LOST);
    } else if (!s) {
        b.print.no_bare = "1 rank, it is one of 2";
    }
    if (!s && b.spmd.rank == 0)
        s = write_results(&b);
    td_commrun_deinit(&b.run);
    return td_spmd_end(&b.spmd, opts, s, &err);
}
