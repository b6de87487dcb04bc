#include "daemon/cli/measure.h"

#include "daemon/cli/bench_probe.h"
#include "kernels/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Between two ranks of one host, by Open MPI's shared memory: measured as below (2048 and 1048576 floats) on two cores of the
 * machine of tests/bench/reports/cpu-xeon-avx512-2026-11-22.md. */
static const struct td_machine_link SHARED_MEMORY = {2e-6, 7e9};
/* Of a step outside of the arithmetic: decode of the model that ships against its bytes, same machine. */
static const double HOST_S = 20e-6;

enum {
    MOST_FLOATS = 4 << 20 /* of a sum */,
    WARM_UP = 3,
    BATCH = 8,
    LEAST_BATCHES = 2,
    MOST_BATCHES = 24
};
static const uint64_t MOST_PROBE_BYTES = (uint64_t)256 << 20;
static const double SERIES_S = 0.04; /* that a series of sums may take, as far as its first tells */

/* What a rank tells of itself. */
struct rank_report {
    uint64_t memory_bytes;
    struct td_bench_limits all; /* of its host */
    double alone;               /* bytes per second, its threads only; of the host's first rank */
    uint32_t host_root;         /* rank 0 of its host, as a rank of the world */
    uint32_t n_threads, host_threads;
    uint32_t has_tiles;
};

/* Memory that a probe may take: touching more would take longer than reading it. */
static uint64_t probe_bytes(const struct td_node *node)
{
    uint64_t most = node->facts.memory_bytes / 8;

    return most < MOST_PROBE_BYTES ? most : MOST_PROBE_BYTES;
}

static enum td_status probe(const struct td_node *node, struct td_comm *comm, uint32_t n_threads,
                            unsigned what, struct td_bench_limits *out, struct td_err *err)
{
    struct td_bench_probe_params params = {.world = comm,
                                           .n_threads = n_threads,
                                           .most_memory = probe_bytes(node),
                                           .idle_ns = 2 * node->spin_ns,
                                           .cores = &node->cores};
    struct td_bench_probe *p;
    enum td_status s = td_bench_probe_open(&params, &p, err);

    if (s)
        return s;
    s = td_bench_probe_take(p, what, out, err);
    td_bench_probe_close(p);
    return s;
}

static unsigned everything(void)
{
    return TD_BENCH_MEMORY | td_bench_peak_bit(TD_PEAK_INT8) | td_bench_peak_bit(TD_PEAK_BF16) |
           td_bench_peak_bit(TD_PEAK_F32);
}

/* Memory by so many threads of this process alone. */
static enum td_status probe_alone(const struct td_node *node, uint32_t n_threads, double *out,
                                  struct td_err *err)
{
    struct td_bench_limits limits = {0};
    struct td_comm *self;
    enum td_status s = td_comm_self_open(&self, err);

    if (s)
        return s;
    s = probe(node, self, n_threads, TD_BENCH_MEMORY, &limits, err);
    td_comm_close(self);
    *out = limits.memory;
    return s;
}

static bool has_tiles(const struct td_node *node)
{
    return strstr(node->facts.device, "amx") != NULL;
}

static void set_ops(struct td_machine_rank *r, const struct td_bench_limits *all, double part)
{
    r->ops_per_s[TD_RATE_INT8] = all->peak[TD_PEAK_INT8] * part;
    r->ops_per_s[TD_RATE_BF16] = all->peak[TD_PEAK_BF16] * part;
    r->ops_per_s[TD_RATE_F32] = all->peak[TD_PEAK_F32] * part;
}

/* ---- one process: ranks that would divide this host ---- */

static enum td_status measure_host(const struct td_measure_params *p, struct td_machine *m,
                                   struct td_measure_report *report, struct td_err *err)
{
    const struct td_node_facts *f = &p->node->facts;
    uint32_t cores = f->n_threads, threads = cores / p->n_ranks ? cores / p->n_ranks : 1;
    struct td_bench_limits all = {0};
    double one = 0.0, alone;
    enum td_status s = probe(p->node, p->node->world, cores, everything(), &all, err);

    if (!s && cores > 1 && p->n_ranks > 1)
        s = probe_alone(p->node, 1, &one, err);
    if (s)
        return s;
    /* A rank of more ranks than cores has a part of a core, so that fewer ranks have whole ones (td_predict_shrink). */
    alone = one > 0.0 ? one * cores / p->n_ranks : all.memory;
    m->n_ranks = p->n_ranks;
    m->n_hosts = 1;
    m->host_bytes_per_s[0] = all.memory;
    for (uint32_t i = 0; i < m->n_ranks; i++) {
        struct td_machine_rank *r = &m->rank[i];

        *r = (struct td_machine_rank){.memory_bytes = f->memory_bytes / p->n_ranks,
                                      .memory_bytes_per_s = alone < all.memory ? alone : all.memory,
                                      .has_tiles = has_tiles(p->node),
                                      .host_s = HOST_S};
        set_ops(r, &all, 1.0 / p->n_ranks);
    }
    m->intra = m->inter = SHARED_MEMORY;
    snprintf(report->machine, sizeof report->machine,
             "measured here: %s, %u core%s; %u rank%s on this host, %u thread%s each%s", f->device,
             cores, cores == 1 ? "" : "s", p->n_ranks, p->n_ranks == 1 ? "" : "s", threads,
             threads == 1 ? "" : "s",
             p->n_ranks > cores ? " (more than cores: they would wait for each other)" : "");
    snprintf(report->links, sizeof report->links,
             "not measured, which 'mpirun -n %u tensord plan --predict' does; usual for shared "
             "memory",
             p->n_ranks > 1 ? p->n_ranks : 2);
    return TD_OK;
}

/* ---- a job: its ranks as they stand ---- */

/* Sums that are timed together, and how often. */
struct series {
    uint32_t n_sums, n_batches;
};

/* As many as the time allows when one takes so long. */
static struct series plan_series(double seconds)
{
    double most = seconds > 0.0 ? SERIES_S / (seconds * BATCH) : MOST_BATCHES;

    if (most < LEAST_BATCHES)
        return (struct series){1, LEAST_BATCHES};
    return (struct series){BATCH, most < MOST_BATCHES ? (uint32_t)most : MOST_BATCHES};
}

/* Mean seconds of n_sums sums of n floats over two ranks. `buffer` has room for 3 n floats. */
static enum td_status time_sums(struct td_comm *pair, uint32_t n_sums, size_t n, float *buffer,
                                double *seconds, struct td_err *err)
{
    static const struct td_leaf_run runs[] = {{0, 1}, {1, 2}};
    struct td_tree_layout layout = {2, runs};
    float *mine = buffer + (td_comm_rank(pair) ? n : 0);
    uint64_t start = td_clock_now_ns();
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < n_sums; i++)
        s = td_comm_tree_sum(pair, &layout, mine, n, buffer, buffer + 2 * n, err);
    *seconds = (double)(td_clock_now_ns() - start) * 1e-9 / n_sums;
    return s;
}

/* The best of a series. A sum ends for each rank when the other's part has come, so a rank that began late finds it there: what one
 * wins the other loses, and only the mean of both is the link's. */
static enum td_status time_series(struct td_comm *pair, size_t n, float *buffer, double *best,
                                  struct td_err *err)
{
    struct series series;
    double seconds[MOST_BATCHES] = {0.0}, both[2 * MOST_BATCHES];
    const size_t bytes[2] = {sizeof seconds, sizeof seconds};
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < WARM_UP; i++)
        s = time_sums(pair, 1, n, buffer, &seconds[0], err);
    series = plan_series(seconds[0]);
    s = s ? s : td_comm_bcast(pair, 0, &series, sizeof series, err);
    for (uint32_t i = 0; !s && i < series.n_batches; i++)
        s = time_sums(pair, series.n_sums, n, buffer, &seconds[i], err);
    s = s ? s : td_comm_all_gather(pair, seconds, bytes, both, err);
    for (uint32_t i = 0; !s && i < series.n_batches; i++) {
        double mean = (both[i] + both[MOST_BATCHES + i]) / 2.0;

        *best = i == 0 || mean < *best ? mean : *best;
    }
    return s;
}

/* The line through the times of one row and of a prompt's rows. */
static struct td_machine_link line_through(double small_bytes, double small_s, double large_bytes,
                                           double large_s)
{
    double least = large_s / large_bytes * 0.1; /* noise may turn the line over */
    double slope = (large_s - small_s) / (large_bytes - small_bytes);
    struct td_machine_link link;

    slope = slope > least ? slope : least;
    link.bytes_per_s = 1.0 / slope;
    link.latency_s = small_s - small_bytes * slope;
    link.latency_s = link.latency_s > 0.0 ? link.latency_s : 0.0;
    return link;
}

/* Of a prompt's step, within bounds. */
static size_t large_floats(const struct td_measure_params *p)
{
    size_t floats = p->row_floats * (p->n_rows > 1 ? p->n_rows : 2);

    return floats < MOST_FLOATS              ? floats
           : p->row_floats < MOST_FLOATS / 2 ? MOST_FLOATS
                                             : 2 * p->row_floats;
}

/* Ranks a and b time their link; the others wait. *link is rank a's on all ranks. */
static enum td_status measure_link(const struct td_measure_params *p, uint32_t a, uint32_t b,
                                   struct td_machine_link *link, struct td_err *err)
{
    struct td_comm *world = p->node->world, *pair = NULL;
    uint32_t me = td_comm_rank(world);
    size_t small = p->row_floats, large = large_floats(p);
    float *buffer = NULL;
    double small_s = 0.0, large_s = 0.0;
    enum td_status s = TD_OK;

    if (me == a || me == b) {
        buffer = calloc(3 * large, sizeof *buffer);
        s = buffer ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for %zu floats", 3 * large);
    }
    s = td_node_agree(world, s, err);
    s = s ? s : td_comm_split(world, buffer ? 0 : -1, me == a ? 0 : 1, &pair, err);
    if (!s && pair) {
        s = time_series(pair, small, buffer, &small_s, err);
        s = s ? s : time_series(pair, large, buffer, &large_s, err);
        if (!s)
            *link = line_through((double)small * sizeof(float), small_s,
                                 (double)large * sizeof(float), large_s);
    }
    s = s ? s : td_comm_bcast(world, a, link, sizeof *link, err);
    td_comm_close(pair);
    if (s < TD_PEER_LOST) /* else the transport may still write there */
        free(buffer);
    return s;
}

static enum td_status measure_links(const struct td_measure_params *p, struct td_machine *m,
                                    struct td_measure_report *report, struct td_err *err)
{
    uint32_t same[2] = {0}, apart[2] = {0};
    enum td_status s = TD_OK;

    for (uint32_t i = 1; i < m->n_ranks; i++)
        for (uint32_t k = 0; k < i; k++) {
            uint32_t *pair = m->rank[i].host == m->rank[k].host ? same : apart;

            if (pair[0] == pair[1]) {
                pair[0] = k;
                pair[1] = i;
            }
        }
    m->intra = m->inter = SHARED_MEMORY;
    if (same[1])
        s = measure_link(p, same[0], same[1], &m->intra, err);
    if (!s && apart[1])
        s = measure_link(p, apart[0], apart[1], &m->inter, err);
    snprintf(report->links, sizeof report->links, "measured here with sums of %zu and %zu bytes",
             p->row_floats * sizeof(float), large_floats(p) * sizeof(float));
    return s;
}

static void fill_machine(const struct rank_report *all, uint32_t n, struct td_machine *m)
{
    m->n_ranks = n;
    for (uint32_t i = 0; i < n; i++) {
        const struct rank_report *r = &all[i];
        struct td_machine_rank *rank = &m->rank[i];
        double part = (double)r->n_threads / r->host_threads;
        /* The first of the host was probed alone; the others by their threads. */
        double alone = all[r->host_root].alone * r->n_threads / all[r->host_root].n_threads;

        /* Memory too is the first's: the others looked at another moment. */
        *rank = (struct td_machine_rank){.memory_bytes = all[r->host_root].memory_bytes,
                                         .memory_bytes_per_s =
                                             alone < r->all.memory ? alone : r->all.memory,
                                         .has_tiles = r->has_tiles,
                                         .host_s = HOST_S};
        set_ops(rank, &r->all, part);
        rank->host = m->n_hosts;
        for (uint32_t k = 0; k < i; k++)
            if (all[k].host_root == r->host_root)
                rank->host = m->rank[k].host;
        if (rank->host == m->n_hosts)
            m->host_bytes_per_s[m->n_hosts++] = r->all.memory;
    }
}

static enum td_status report_rank(const struct td_measure_params *p, struct td_comm *host,
                                  struct rank_report *mine, struct td_err *err)
{
    uint32_t n = td_comm_size(host);
    struct ids {
        uint32_t rank, n_threads;
    } me = {td_comm_rank(p->node->world), p->node->facts.n_threads}, ids[TD_PLAN_MAX_RANKS];
    size_t bytes[TD_PLAN_MAX_RANKS];
    enum td_status s;

    for (uint32_t i = 0; i < n; i++)
        bytes[i] = sizeof me;
    s = td_comm_all_gather(host, &me, bytes, ids, err);
    for (uint32_t i = 0; !s && i < n; i++)
        mine->host_threads += ids[i].n_threads;
    mine->host_root = ids[0].rank;
    mine->n_threads = me.n_threads;
    mine->has_tiles = has_tiles(p->node);
    mine->memory_bytes = p->node->facts.memory_bytes;
    s = s ? s : probe(p->node, host, me.n_threads, everything(), &mine->all, err);
    mine->alone = mine->all.memory;
    if (!s && n > 1 && td_comm_rank(host) == 0)
        s = probe_alone(p->node, me.n_threads, &mine->alone, err);
    return s ? s : td_comm_barrier(host, err); /* nobody measures beside it */
}

static enum td_status measure_job(const struct td_measure_params *p, struct td_machine *m,
                                  struct td_measure_report *report, struct td_err *err)
{
    struct td_comm *world = p->node->world, *host = NULL;
    uint32_t n = td_comm_size(world);
    struct rank_report mine = {0}, *all = calloc(n, sizeof *all);
    size_t bytes[TD_PLAN_MAX_RANKS];
    enum td_status s = all ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks", n);

    s = td_node_agree(world, s, err);
    s = s ? s : td_comm_split_host(world, &host, err);
    if (!s)
        s = td_node_agree(world, report_rank(p, host, &mine, err), err);
    for (uint32_t i = 0; i < n; i++)
        bytes[i] = sizeof mine;
    s = s ? s : td_comm_all_gather(world, &mine, bytes, all, err);
    if (!s) {
        fill_machine(all, n, m);
        s = measure_links(p, m, report, err);
        snprintf(report->machine, sizeof report->machine,
                 "measured here: %s; a job of %u ranks on %u host%s, %u thread%s on rank 0",
                 p->node->facts.device, n, m->n_hosts, m->n_hosts == 1 ? "" : "s", all[0].n_threads,
                 all[0].n_threads == 1 ? "" : "s");
    }
    td_comm_close(host);
    free(all);
    return s;
}

enum td_status td_measure_machine(const struct td_measure_params *p, struct td_machine *machine,
                                  struct td_measure_report *report, struct td_err *err)
{
    memset(machine, 0, sizeof *machine);
    memset(report, 0, sizeof *report);
    if (!td_probe_peak_instruction(TD_PEAK_F32))
        return td_err_set(err, TD_UNSUPPORTED,
                          "this CPU's arithmetic has no probe, so it is not measured: expected "
                          "--cluster with a file of its figures");
    if (td_comm_size(p->node->world) > TD_PLAN_MAX_RANKS)
        return td_err_set(err, TD_INVALID, "a job of %u ranks: expected at most %d",
                          td_comm_size(p->node->world), TD_PLAN_MAX_RANKS);
    return td_comm_size(p->node->world) > 1 ? measure_job(p, machine, report, err)
                                            : measure_host(p, machine, report, err);
}
