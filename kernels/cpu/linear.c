/* Products with packed matrices, spread over the pool. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/pool.h"

#include <stdlib.h>

/* Tokens per pass over a group of rows: their activations stay in the second-level cache. */
enum { TOKEN_BLOCK = 96, TASKS_PER_THREAD = 8 };

struct matmul_job {
    const struct td_cpu_isa *isa;
    const struct td_cpu_matrix *m;
    struct td_cpu_act act;
    uint32_t n;
    uint32_t groups_per_task;
    uint32_t tasks_per_block; /* tasks of one block of tokens */
    float *out;
};

static void quantise_task(void *user, uint32_t task)
{
    const struct matmul_job *job = user;

    job->isa->quantise(&job->act, task);
}

static void matmul_task(void *user, uint32_t task)
{
    const struct matmul_job *job = user;
    uint32_t t0 = task / job->tasks_per_block * TOKEN_BLOCK;
    uint32_t n = job->n - t0 < TOKEN_BLOCK ? job->n - t0 : TOKEN_BLOCK;
    uint32_t g0 = task % job->tasks_per_block * job->groups_per_task;
    uint32_t n_groups = td_cpu_groups(&job->m->head);

    for (uint32_t g = g0; g < g0 + job->groups_per_task && g < n_groups; g++)
        job->isa->matmul(job->m, g, &job->act, t0, n, job->n, job->out);
}

static enum td_status reserve_scratch(struct td_cpu *cpu, size_t bytes, struct td_err *err)
{
    uint8_t *p;

    if (bytes <= cpu->scratch_bytes)
        return TD_OK;
    p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!p)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of quantised activations",
                          bytes);
    free(cpu->scratch);
    cpu->scratch = p;
    cpu->scratch_bytes = bytes;
    return TD_OK;
}

enum td_status td_cpu_matmul(struct td_kern *kern, const struct td_matrix *matrix, const float *x,
                             uint32_t n, float *out, struct td_err *err)
{
    struct td_cpu *cpu = td_cpu_of(kern);
    struct matmul_job job = {.isa = cpu->isa,
                             .m = (const struct td_cpu_matrix *)matrix,
                             .act = {.x = x, .n_cols = matrix->n_cols},
                             .n = n,
                             .out = out};
    uint32_t n_groups = td_cpu_groups(matrix), n_blocks = (n + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
    uint32_t want = cpu->head.n_threads * TASKS_PER_THREAD;

    if (td_dtype_info(matrix->dtype)->block_elems > 1) {
        size_t values = (size_t)n * matrix->n_cols, blocks = values / 32;
        enum td_status s = reserve_scratch(cpu, values + blocks * 8 + 128, err);

        if (s)
            return s;
        job.act.scale = (float *)(void *)cpu->scratch;
        job.act.sum = (int32_t *)(void *)(cpu->scratch + blocks * 4);
        job.act.q = (int8_t *)(cpu->scratch + blocks * 8);
        td_pool_run(cpu->pool, n, quantise_task, &job);
    }
    job.groups_per_task =
        cpu->head.n_threads == 1 ? n_groups : (n_groups * n_blocks + want - 1) / want;
    if (job.groups_per_task > n_groups)
        job.groups_per_task = n_groups;
    job.tasks_per_block = (n_groups + job.groups_per_task - 1) / job.groups_per_task;
    td_pool_run(cpu->pool, job.tasks_per_block * n_blocks, matmul_task, &job);
    return TD_OK;
}

void td_cpu_rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids, uint32_t n,
                 float *out)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++)
        td_pack_row((const struct td_cpu_matrix *)m, ids[i], out + (size_t)i * m->n_cols);
}
