#include "daemon/cli/bench_probe.h"

#include "daemon/engine/node.h"
#include "kernels/base/clock.h"
#include "kernels/cpu/probe.h"

#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { N_FIRST_READS = 2 /* of each way */, N_READS = 4 /* of the best way */, N_MULTIPLIES = 3 };

static const size_t LEAST_BYTES = (size_t)256 << 20,
                    MOST_BYTES = (size_t)512 << 20; /* of one host */

/* When one rank of a host worked: the hosts' monotonic clock is one for all its processes. */
struct pass_time {
    uint64_t start_ns, end_ns, work;
};

struct td_bench_probe {
    struct td_comm *world, *host; /* borrows; owns */
    struct td_probe *probe;
    uint64_t idle_ns;
    uint32_t best_way; /* of reading, on this host; equal on its ranks */
    bool knows_way;
    struct pass_time *times; /* [ranks of the world] */
    size_t *sizes;           /* [ranks of the world] */
    double *all;             /* [ranks of the world] */
};

/* Twice the last cache, so that little of it is left from the pass before. At most MOST_BYTES: a virtual machine reports a
 * cache of which it has only a share. */
static size_t buffer_bytes(uint32_t n_local, uint64_t most)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = cache > 0 ? 2 * (size_t)cache : 0;

    bytes = bytes < LEAST_BYTES ? LEAST_BYTES : bytes > MOST_BYTES ? MOST_BYTES : bytes;
    bytes /= n_local;
    return most && bytes > most ? (size_t)most : bytes;
}

static enum td_status open_threads(struct td_bench_probe *b, const struct td_bench_probe_params *p,
                                   struct td_err *err)
{
    struct td_probe_params params = {.n_threads = p->n_threads,
                                     .seats = p->cores->seated ? p->cores->seats : NULL};

    params.bytes = buffer_bytes(td_comm_size(b->host), p->most_memory);
    return td_probe_open(&params, &b->probe, err);
}

enum td_status td_bench_probe_open(const struct td_bench_probe_params *p,
                                   struct td_bench_probe **out, struct td_err *err)
{
    uint32_t n = td_comm_size(p->world);
    struct td_bench_probe *b = calloc(1, sizeof *b);
    enum td_status s;

    if (b) {
        b->world = p->world;
        b->idle_ns = p->idle_ns;
        b->times = calloc(n, sizeof *b->times);
        b->sizes = calloc(n, sizeof *b->sizes);
        b->all = calloc(n, sizeof *b->all);
    }
    s = b && b->times && b->sizes && b->all
            ? TD_OK
            : td_err_set(err, TD_NO_MEMORY, "no memory to measure %u ranks", n);
    s = td_node_agree(p->world, s, err);
    s = s ? s : td_comm_split_host(p->world, &b->host, err);
    if (!s)
        s = td_node_agree(p->world, open_threads(b, p, err), err);
    if (s)
        td_bench_probe_close(b);
    else
        *out = b;
    return s;
}

void td_bench_probe_close(struct td_bench_probe *b)
{
    if (!b)
        return;
    td_probe_close(b->probe);
    td_comm_close(b->host);
    free(b->times);
    free(b->sizes);
    free(b->all);
    free(b);
}

/* One sample of this host: memory in one of the ways (`kind` is TD_N_PEAKS), or a kind. *rate grows to it. */
static enum td_status sample_host(struct td_bench_probe *b, enum td_peak kind, uint32_t way,
                                  double *rate, struct td_err *err)
{
    uint32_t n = td_comm_size(b->host);
    struct pass_time mine = {0};
    uint64_t start = UINT64_MAX, end = 0, work = 0;
    double seconds;
    bool whole = true;
    enum td_status s = td_comm_barrier(b->host, err);

    if (s)
        return s;
    mine.start_ns = td_clock_now_ns();
    mine.work =
        kind == TD_N_PEAKS ? td_probe_read(b->probe, way) : td_probe_multiply(b->probe, kind);
    mine.end_ns = td_clock_now_ns();
    for (uint32_t r = 0; r < n; r++)
        b->sizes[r] = sizeof mine;
    s = td_comm_all_gather(b->host, &mine, b->sizes, b->times, err);
    if (s)
        return s;
    for (uint32_t r = 0; r < n; r++) {
        start = b->times[r].start_ns < start ? b->times[r].start_ns : start;
        end = b->times[r].end_ns > end ? b->times[r].end_ns : end;
        work += b->times[r].work;
        whole = whole && b->times[r].work;
    }
    seconds = (double)(end - start) * 1e-9;
    if (whole && (double)work > *rate * seconds)
        *rate = (double)work / seconds;
    return TD_OK;
}

/* Sums over the hosts, of which each counts once; 0 when one of them has none. */
static enum td_status sum_hosts(struct td_bench_probe *b, double *rate, struct td_err *err)
{
    uint32_t n = td_comm_size(b->world);
    double mine = td_comm_rank(b->host) > 0 ? -1.0 : *rate; /* -1: the host is counted elsewhere */
    enum td_status s;

    for (uint32_t r = 0; r < n; r++)
        b->sizes[r] = sizeof mine;
    s = td_comm_all_gather(b->world, &mine, b->sizes, b->all, err);
    if (s)
        return s;
    *rate = 0.0;
    for (uint32_t r = 0; r < n; r++) {
        if (b->all[r] == 0.0) {
            *rate = 0.0;
            break;
        }
        *rate += b->all[r] > 0.0 ? b->all[r] : 0.0;
    }
    return TD_OK;
}

/* The first time in every way, to find the best; then in that one. */
static enum td_status read_host(struct td_bench_probe *b, double *best, struct td_err *err)
{
    uint32_t n_ways = td_probe_ways(), n = b->knows_way ? N_READS : N_FIRST_READS * n_ways;
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < n; i++) {
        uint32_t way = b->knows_way ? b->best_way : i % n_ways;
        double rate = *best;

        s = sample_host(b, TD_N_PEAKS, way, &rate, err);
        if (rate > *best && !b->knows_way)
            b->best_way = way;
        *best = rate;
    }
    b->knows_way = true;
    return s;
}

enum td_status td_bench_probe_take(struct td_bench_probe *b, unsigned what,
                                   struct td_bench_limits *limits, struct td_err *err)
{
    const struct timespec idle = {(time_t)(b->idle_ns / 1000000000u),
                                  (long)(b->idle_ns % 1000000000u)};
    double rate = 0.0;
    enum td_status s = TD_OK;

    nanosleep(&idle, NULL); /* the device's threads are asleep then */
    if (what & TD_BENCH_MEMORY) {
        s = read_host(b, &rate, err);
        s = s ? s : sum_hosts(b, &rate, err);
        limits->memory = s ? limits->memory : rate;
    }
    for (int kind = 0; !s && kind < TD_N_PEAKS; kind++) {
        if (!(what & td_bench_peak_bit((enum td_peak)kind)))
            continue;
        rate = 0.0;
        for (uint32_t i = 0; !s && i < N_MULTIPLIES; i++)
            s = sample_host(b, (enum td_peak)kind, 0, &rate, err);
        s = s ? s : sum_hosts(b, &rate, err);
        limits->peak[kind] = s ? limits->peak[kind] : rate;
    }
    return s;
}
