#include "kernels/cpu/cpu.h"

#include "kernels/cpu/mathf.h"
#include "kernels/cpu/pool.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>

/* Tokens per pass over a group of rows: their activations stay in the second-level cache. */
enum { TOKEN_BLOCK = 96, TASKS_PER_THREAD = 8 };

struct cpu {
    struct td_kern head;
    const struct td_cpu_isa *isa;
    struct td_pool *pool;
    uint8_t *scratch; /* quantised activations, grown on demand and kept */
    size_t scratch_bytes;
};

static struct cpu *cpu_of(struct td_kern *kern)
{
    return (struct cpu *)kern;
}

static void close_cpu(struct td_kern *kern)
{
    struct cpu *cpu = cpu_of(kern);

    td_pool_close(cpu->pool);
    free(cpu->scratch);
    free(cpu);
}

static bool supports_matrix(const struct td_kern *kern, enum td_dtype type)
{
    (void)kern;
    return type < TD_N_DTYPES;
}

static bool supports_kv(const struct td_kern *kern, enum td_dtype type)
{
    (void)kern;
    return type == TD_F32 || type == TD_F16 || type == TD_BF16;
}

/* Anonymous mappings: cleared, aligned, given back to the system when released; huge pages where there are any. */
static void *alloc(struct td_kern *kern, size_t bytes)
{
    void *p =
        mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    (void)kern;
    if (p == MAP_FAILED)
        return NULL;
    if (bytes >= (size_t)4 << 20)
        (void)madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void release(struct td_kern *kern, void *ptr, size_t bytes)
{
    (void)kern;
    munmap(ptr, bytes ? bytes : 1);
}

static enum td_status sync_cpu(struct td_kern *kern, struct td_err *err)
{
    (void)kern;
    (void)err;
    return TD_OK;
}

static enum td_status matrix_open(struct td_kern *kern, const struct td_matrix_shape *shape,
                                  struct td_matrix **out, struct td_err *err)
{
    struct td_cpu_matrix *m = calloc(1, sizeof *m);
    size_t bytes = td_dtype_row_bytes(shape->dtype, shape->n_cols) * shape->n_rows;

    if (!m)
        goto fail;
    m->head = (struct td_matrix){.dtype = shape->dtype,
                                 .n_rows = shape->n_rows,
                                 .n_cols = shape->n_cols,
                                 .n_leaves = shape->n_leaves,
                                 .n_parts = shape->n_parts,
                                 .bytes = bytes};
    memcpy(m->head.part_begin, shape->part_begin, sizeof m->head.part_begin);
    m->head.leaf_end = malloc(shape->n_leaves * sizeof *m->head.leaf_end);
    if (!m->head.leaf_end)
        goto fail_matrix;
    memcpy(m->head.leaf_end, shape->leaf_end, shape->n_leaves * sizeof *m->head.leaf_end);
    m->data = alloc(kern, bytes);
    if (!m->data)
        goto fail_leaves;
    *out = &m->head;
    return TD_OK;

fail_leaves:
    free(m->head.leaf_end);
fail_matrix:
    free(m);
fail:
    return td_err_set(err, TD_NO_MEMORY, "no memory for a matrix of %u x %u in %s (%zu bytes)",
                      shape->n_rows, shape->n_cols, td_dtype_info(shape->dtype)->name, bytes);
}

static void matrix_close(struct td_kern *kern, struct td_matrix *matrix)
{
    struct td_cpu_matrix *m = (struct td_cpu_matrix *)matrix;

    release(kern, m->data, m->head.bytes);
    free(m->head.leaf_end);
    free(m);
}

struct pack_job {
    struct td_cpu_matrix *m;
    uint32_t group0;
    const uint8_t *src;
    size_t stride;
};

static void pack_task(void *user, uint32_t task)
{
    const struct pack_job *job = user;
    uint32_t group = job->group0 + task;
    uint8_t *dst = job->m->data + (td_cpu_group_data(job->m, group) - job->m->data);

    td_pack_group(job->m->head.dtype, job->m->head.n_cols, td_cpu_lanes(&job->m->head, group),
                  job->src + (size_t)task * TD_CPU_GROUP * job->stride, job->stride, dst);
}

static void matrix_pack(struct td_kern *kern, struct td_matrix *m, uint32_t row0, uint32_t n_rows,
                        const void *src, size_t stride_bytes)
{
    struct pack_job job = {(struct td_cpu_matrix *)m, row0 / TD_CPU_GROUP, src, stride_bytes};

    td_pool_run(cpu_of(kern)->pool, (n_rows + TD_CPU_GROUP - 1) / TD_CPU_GROUP, pack_task, &job);
}

/* ---- matmul ---- */

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

static enum td_status reserve_scratch(struct cpu *cpu, size_t bytes, struct td_err *err)
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

static enum td_status matmul(struct td_kern *kern, const struct td_matrix *matrix, const float *x,
                             uint32_t n, float *out, struct td_err *err)
{
    struct cpu *cpu = cpu_of(kern);
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

static void rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids, uint32_t n,
                 float *out)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++)
        td_pack_row((const struct td_cpu_matrix *)m, ids[i], out + (size_t)i * m->n_cols);
}

/* ---- row operations ---- */

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

static void rmsnorm(struct td_kern *kern, const float *x, const float *weight, uint32_t n,
                    uint32_t dim, float eps, float *out)
{
    struct norm_job job = {cpu_of(kern)->isa, x, weight, dim, eps, out};

    if ((size_t)n * dim < 16384)
        for (uint32_t i = 0; i < n; i++)
            norm_task(&job, i);
    else
        td_pool_run(cpu_of(kern)->pool, n, norm_task, &job);
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

static void silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n, float *out)
{
    struct span_job job = {cpu_of(kern)->isa, gate, up, out, n, n < 16384 ? n : 4096};

    if (n)
        td_pool_run(cpu_of(kern)->pool, (uint32_t)((n + job.step - 1) / job.step), silu_task, &job);
}

static void add(struct td_kern *kern, float *x, const float *y, size_t n)
{
    cpu_of(kern)->isa->add(x, y, n);
}

static void rope_angles(struct td_kern *kern, const double *freq, uint32_t dim, double scale,
                        const uint32_t *positions, uint32_t n, float *cos_sin)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < dim / 2; j++) {
            double s, c;

            td_mathf_sincos((double)positions[i] * freq[j], &s, &c);
            *cos_sin++ = (float)(c * scale);
            *cos_sin++ = (float)(s * scale);
        }
}

static void rope(struct td_kern *kern, float *x, uint32_t n, uint32_t n_heads, uint32_t dim,
                 const float *cos_sin, bool interleaved)
{
    uint32_t half = dim / 2, step = interleaved ? 2 : 1, other = interleaved ? 1 : half;

    (void)kern;
    for (uint32_t i = 0; i < n; i++, cos_sin += dim)
        for (uint32_t h = 0; h < n_heads; h++, x += dim)
            for (uint32_t j = 0; j < half; j++) {
                float a = x[j * step], b = x[j * step + other];

                x[j * step] = a * cos_sin[2 * j] - b * cos_sin[2 * j + 1];
                x[j * step + other] = b * cos_sin[2 * j] + a * cos_sin[2 * j + 1];
            }
}

/* ---- attention ---- */

static void kv_store(enum td_dtype dtype, void *base, size_t at, const float *x, uint32_t n)
{
    uint16_t *half = (uint16_t *)base + at;

    if (dtype == TD_F32)
        memcpy((float *)base + at, x, n * sizeof *x);
    else if (dtype == TD_F16)
        for (uint32_t i = 0; i < n; i++)
            half[i] = td_f32_to_f16(x[i]);
    else
        for (uint32_t i = 0; i < n; i++)
            half[i] = td_f32_to_bf16(x[i]);
}

static void kv_write(struct td_kern *kern, const struct td_kv_view *kv,
                     const struct td_kv_rows *rows_in, uint32_t n, const float *k, const float *v)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t position = rows_in->positions[i];
        size_t block = rows_in->table[rows_in->first_block[i] + position / kv->block_tokens];

        for (uint32_t h = 0; h < kv->n_kv_heads; h++) {
            size_t at =
                ((block * kv->n_kv_heads + h) * kv->block_tokens + position % kv->block_tokens) *
                kv->head_dim;
            size_t from = ((size_t)i * kv->n_kv_heads + h) * kv->head_dim;

            kv_store(kv->dtype, kv->k, at, k + from, kv->head_dim);
            kv_store(kv->dtype, kv->v, at, v + from, kv->head_dim);
        }
    }
}

struct attention_job {
    const struct td_cpu_isa *isa;
    const struct td_kv_view *kv;
    const struct td_kv_rows *rows;
    const float *q;
    uint32_t n_heads;
    const uint32_t *kv_of_head;
    float scale;
    float *out;
};

static void attention_task(void *user, uint32_t task)
{
    const struct attention_job *job = user;
    uint32_t row = task / job->n_heads, head = task % job->n_heads;
    struct td_cpu_attend a = {.kv = job->kv,
                              .blocks = job->rows->table + job->rows->first_block[row],
                              .position = job->rows->positions[row],
                              .kv_head = job->kv_of_head[head],
                              .scale = job->scale,
                              .q = job->q + (size_t)task * job->kv->head_dim,
                              .out = job->out + (size_t)task * job->kv->head_dim};

    job->isa->attend(&a);
}

static void attention(struct td_kern *kern, const struct td_kv_view *kv,
                      const struct td_kv_rows *rows_in, uint32_t n, const float *q,
                      uint32_t n_heads, const uint32_t *kv_of_head, float scale, float *out)
{
    struct attention_job job = {cpu_of(kern)->isa, kv, rows_in, q, n_heads, kv_of_head, scale, out};

    td_pool_run(cpu_of(kern)->pool, n * n_heads, attention_task, &job);
}

static const struct td_kern_ops OPS = {
    .close = close_cpu,
    .supports_matrix = supports_matrix,
    .supports_kv = supports_kv,
    .alloc = alloc,
    .release = release,
    .sync = sync_cpu,
    .matrix_open = matrix_open,
    .matrix_close = matrix_close,
    .matrix_pack = matrix_pack,
    .matmul = matmul,
    .rows = rows,
    .rmsnorm = rmsnorm,
    .silu_mul = silu_mul,
    .add = add,
    .rope_angles = rope_angles,
    .rope = rope,
    .kv_write = kv_write,
    .attention = attention,
};

/* Best first. */
static const struct td_cpu_isa *const ISAS[] = {&td_cpu_isa_avx512, &td_cpu_isa_avx2,
                                                &td_cpu_isa_ref};

static enum td_status choose_isa(const char *name, const struct td_cpu_isa **isa,
                                 struct td_err *err)
{
    for (size_t i = 0; i < sizeof ISAS / sizeof ISAS[0]; i++) {
        if (name && strcasecmp(name, ISAS[i]->name))
            continue;
        if (ISAS[i]->available()) {
            *isa = ISAS[i];
            return TD_OK;
        }
        if (name)
            return td_err_set(err, TD_UNSUPPORTED, "this processor has no %s", name);
    }
    return td_err_set(err, TD_INVALID, "instruction set '%s': expected auto, ref, avx2 or avx512",
                      name);
}

enum td_status td_kern_cpu_open(const struct td_kern_cpu_params *params, struct td_kern **kern,
                                struct td_err *err)
{
    const char *name = params->isa ? params->isa : getenv("TENSORD_CPU_ISA");
    struct td_pool_params pool = {.n_threads =
                                      params->n_threads ? params->n_threads : td_pool_cores(),
                                  .first_core = params->first_core,
                                  .pin = params->pin,
                                  .spin_ns = params->spin_ns};
    struct cpu *cpu = calloc(1, sizeof *cpu);
    enum td_status s;

    if (!cpu)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the CPU backend");
    s = choose_isa(name && name[0] && strcasecmp(name, "auto") ? name : NULL, &cpu->isa, err);
    if (s)
        goto fail;
    /* Nearest, subnormals kept: a library may have set this thread otherwise, and the pool's inherit from it. */
    fesetenv(FE_DFL_ENV);
    s = td_pool_open(&pool, &cpu->pool, err);
    if (s)
        goto fail;
    cpu->head.ops = &OPS;
    snprintf(cpu->head.name, sizeof cpu->head.name, "cpu %s", cpu->isa->name);
    cpu->head.numerics = "cpu-1"; /* one class: every instruction set gives the same bits */
    cpu->head.n_threads = pool.n_threads;
    *kern = &cpu->head;
    return TD_OK;

fail:
    free(cpu);
    return s;
}
