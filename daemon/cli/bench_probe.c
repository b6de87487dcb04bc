#include "daemon/cli/bench_probe.h"

#include "daemon/engine/node.h"
#include "kernels/base/clock.h"
#include "kernels/cpu/probe.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

enum { N_PASSES = 3 };

static const size_t LEAST_BYTES = (size_t)256 << 20,
                    MOST_BYTES = (size_t)512 << 20; /* of one host */

/* When one rank of a host read: the hosts' monotonic clock is one for all its processes. */
struct pass_time {
    uint64_t start_ns, end_ns, bytes;
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

/* Best of all passes, of this host. `times` [ranks of the host]. */
static enum td_status measure_host(struct td_comm *host, struct td_probe *probe, size_t bytes,
                                   struct pass_time *times, size_t *sizes, double *best,
                                   struct td_err *err)
{
    uint32_t n = td_comm_size(host);
    enum td_status s = TD_OK;

    for (uint32_t r = 0; r < n; r++)
        sizes[r] = sizeof *times;
    *best = 0.0;
    for (uint32_t i = 0; !s && i < N_PASSES * td_probe_ways(); i++) {
        struct pass_time mine = {.bytes = bytes};
        uint64_t start = UINT64_MAX, end = 0, total = 0;
        double rate;

        s = td_comm_barrier(host, err);
        mine.start_ns = td_clock_now_ns();
        if (!s)
            td_probe_pass(probe, i % td_probe_ways());
        mine.end_ns = td_clock_now_ns();
        s = s ? s : td_comm_all_gather(host, &mine, sizes, times, err);
        for (uint32_t r = 0; !s && r < n; r++) {
            start = times[r].start_ns < start ? times[r].start_ns : start;
            end = times[r].end_ns > end ? times[r].end_ns : end;
            total += times[r].bytes;
        }
        rate = end > start ? (double)total / ((double)(end - start) * 1e-9) : 0.0;
        *best = rate > *best ? rate : *best;
    }
    return s;
}

enum td_status td_bench_probe_run(const struct td_bench_probe_params *p, double *bytes_per_second,
                                  struct td_err *err)
{
    uint32_t n = td_comm_size(p->world), n_local;
    struct td_comm *host = NULL;
    struct td_probe *probe = NULL;
    cpu_set_t mine;
    bool bound = sched_getaffinity(0, sizeof mine, &mine) == 0 &&
                 sched_setaffinity(0, sizeof p->cores, &p->cores) == 0;
    struct pass_time *times = calloc(n, sizeof *times);
    size_t *sizes = calloc(n, sizeof *sizes), bytes;
    double best = 0.0, *all = calloc(n, sizeof *all);
    enum td_status s = td_comm_split_host(p->world, &host, err);

    if (s)
        goto done;
    n_local = td_comm_size(host);
    bytes = buffer_bytes(n_local, p->most_memory);
    s = times && sizes && all ? td_probe_open(p->n_threads, bytes, &probe, err)
                              : td_err_set(err, TD_NO_MEMORY, "no memory to measure %u ranks", n);
    s = td_node_agree(p->world, s, err);
    s = s ? s : measure_host(host, probe, bytes, times, sizes, &best, err);
    if (td_comm_rank(host) > 0)
        best = 0.0; /* a host counts once */
    for (uint32_t r = 0; sizes && r < n; r++)
        sizes[r] = sizeof best;
    s = s ? s : td_comm_all_gather(p->world, &best, sizes, all, err);
    if (!s) {
        *bytes_per_second = 0.0;
        for (uint32_t r = 0; r < n; r++)
            *bytes_per_second += all[r];
    }

done:
    td_probe_close(probe);
    if (bound)
        (void)sched_setaffinity(0, sizeof mine, &mine);
    td_comm_close(host);
    free(times);
    free(sizes);
    free(all);
    return s;
}
