/* The largest values of rows: a vector scan for what is above the smallest one kept. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/pool.h"

enum { MAX_LISTS = 64, LEAST_WIDTH = 4096 };

struct top_job {
    const struct td_cpu_isa *isa;
    const float *x;
    uint32_t width, n_top;
    uint32_t n_runs;      /* that a row is cut into */
    struct td_top *lists; /* [rows x n_runs x n_top] */
};

static void scan_task(void *user, uint32_t task)
{
    const struct top_job *job = user;
    const float *x = job->x + (size_t)(task / job->n_runs) * job->width;
    uint64_t run = task % job->n_runs, n = job->n_top;
    uint32_t at = (uint32_t)(run * job->width / job->n_runs);
    uint32_t end = (uint32_t)((run + 1) * job->width / job->n_runs);
    struct td_top *list = job->lists + task * n;

    td_top_clear(list, job->n_top);
    for (; (at += job->isa->above(x + at, end - at, list[n - 1].value)) < end; at++)
        td_top_insert(list, job->n_top, (struct td_top){x[at], at});
}

void td_cpu_top(struct td_kern *kern, const float *x, uint32_t n, uint32_t width, uint32_t n_top,
                struct td_top *out)
{
    struct td_cpu *cpu = td_cpu_of(kern);
    struct td_top lists[MAX_LISTS * TD_TOP_MAX];
    uint32_t threads = td_pool_threads(cpu->pool), n_runs = 1;

    if (n < threads && width >= 2 * LEAST_WIDTH) {
        n_runs = (threads < MAX_LISTS ? threads : MAX_LISTS) / n;
        n_runs = n_runs < width / LEAST_WIDTH ? n_runs : width / LEAST_WIDTH;
        n_runs = n_runs ? n_runs : 1;
    }
    td_pool_run(cpu->pool, n * n_runs, scan_task,
                &(struct top_job){&cpu->isa, x, width, n_top, n_runs, n_runs > 1 ? lists : out});
    if (n_runs == 1)
        return;
    for (uint32_t i = 0; i < n; i++) {
        td_top_clear(out + (size_t)i * n_top, n_top);
        for (uint32_t r = 0; r < n_runs; r++)
            td_top_merge(out + (size_t)i * n_top, lists + (size_t)(i * n_runs + r) * n_top, n_top);
    }
}
