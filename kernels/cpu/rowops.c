/* Operations on rows of activations, spread over the pool where they are worth it. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/pool.h"

void td_cpu_gather(struct td_kern *kern, const float *x, const uint32_t *rows, uint32_t n,
                   uint32_t dim, float *out)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++)
        memcpy(out + (size_t)i * dim, x + (size_t)rows[i] * dim, dim * sizeof *out);
}

struct norm_job {
    const struct td_cpu_isa *isa;
    const float *x, *weight;
    uint32_t dim;
    float eps;
    float *out;
};

static void norm_task(void *user, uint32_t task)
{
    const struct norm_job *job = user;

    job->isa->rmsnorm(job->x + (size_t)task * job->dim, job->weight, job->dim, job->eps,
                      job->out + (size_t)task * job->dim);
}

void td_cpu_rmsnorm(struct td_kern *kern, const float *x, const float *weight, uint32_t n,
                    uint32_t dim, float eps, float *out)
{
    struct norm_job job = {&td_cpu_of(kern)->isa, x, weight, dim, eps, out};

    if ((size_t)n * dim < 16384)
        for (uint32_t i = 0; i < n; i++)
            norm_task(&job, i);
    else
        td_pool_run(td_cpu_of(kern)->pool, n, norm_task, &job);
}

struct span_job {
    const struct td_cpu_isa *isa;
    const float *a, *b;
    float *out;
    size_t n, step;
};

static void silu_task(void *user, uint32_t task)
{
    const struct span_job *job = user;
    size_t i = task * job->step, n = job->n - i < job->step ? job->n - i : job->step;

    job->isa->silu_mul(job->a + i, job->b + i, n, job->out + i);
}

void td_cpu_silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n, float *out)
{
    struct span_job job = {&td_cpu_of(kern)->isa, gate, up, out, n, n < 16384 ? n : 4096};

    if (n)
        td_pool_run(td_cpu_of(kern)->pool, (uint32_t)((n + job.step - 1) / job.step), silu_task,
                    &job);
}

void td_cpu_add(struct td_kern *kern, float *x, const float *y, size_t n)
{
    td_cpu_of(kern)->isa.add(x, y, n);
}
