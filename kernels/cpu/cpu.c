#include "kernels/cpu/cpu.h"

#include "kernels/cpu/cores.h"
#include "kernels/cpu/mathf.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/slab.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>

static void close_cpu(struct td_kern *kern)
{
    struct td_cpu *cpu = td_cpu_of(kern);

    td_pool_close(cpu->pool);
    td_cpu_attention_close(cpu->attention);
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
    return type <= TD_Q4_0 || type == TD_F8_E4M3;
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
    size_t lane_bytes = td_cpu_lane_bytes(shape->dtype, shape->n_cols),
           bytes = lane_bytes * shape->n_rows;

    if (!m)
        goto fail;
    m->head = (struct td_matrix){.dtype = shape->dtype,
                                 .n_rows = shape->n_rows,
                                 .n_cols = shape->n_cols,
                                 .n_leaves = shape->n_leaves,
                                 .n_parts = shape->n_parts,
                                 .bytes = bytes};
    m->group_bytes = lane_bytes * TD_CPU_GROUP;
    memcpy(m->head.part_begin, shape->part_begin, sizeof m->head.part_begin);
    m->head.leaf_end = malloc(shape->n_leaves * sizeof *m->head.leaf_end);
    if (!m->head.leaf_end)
        goto fail_matrix;
    memcpy(m->head.leaf_end, shape->leaf_end, shape->n_leaves * sizeof *m->head.leaf_end);
    m->data = td_slab_take(&td_cpu_of(kern)->slab, bytes, &m->slab);
    if (!m->data)
        goto fail_leaves;
    td_pool_place(td_cpu_of(kern)->pool, m->data, bytes);
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

    td_slab_give(&td_cpu_of(kern)->slab, m->slab);
    free(m->head.leaf_end);
    free(m);
}

struct pack_job {
    struct td_cpu_matrix *m;
    uint32_t group0;
    const uint8_t *src;
    size_t stride;
    const float *scales; /* NULL but for F8_E4M3 */
    size_t scales_per_row;
};

static void pack_task(void *user, uint32_t task)
{
    const struct pack_job *job = user;
    uint32_t group = job->group0 + task;
    uint8_t *dst = job->m->data + (td_cpu_group_data(job->m, group) - job->m->data);

    td_pack_group(job->m->head.dtype, job->m->head.n_cols, td_cpu_lanes(&job->m->head, group),
                  job->src + (size_t)task * TD_CPU_GROUP * job->stride, job->stride,
                  job->scales ? job->scales + task * TD_CPU_GROUP * job->scales_per_row : NULL,
                  dst);
}

static void matrix_pack(struct td_kern *kern, struct td_matrix *m, uint32_t row0, uint32_t n_rows,
                        const void *src, size_t stride_bytes, const float *scales)
{
    struct pack_job job = {
        (struct td_cpu_matrix *)m,      row0 / TD_CPU_GROUP, src, stride_bytes, scales,
        ((size_t)m->n_cols + 127) / 128};

    td_pool_run(td_cpu_of(kern)->pool, (n_rows + TD_CPU_GROUP - 1) / TD_CPU_GROUP, pack_task, &job);
}

static void run(struct td_kern *kern, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    td_pool_run(td_cpu_of(kern)->pool, n, task, arg);
}

static void copy(struct td_kern *kern, void *to, const void *from, size_t bytes)
{
    (void)kern;
    memcpy(to, from, bytes);
}

static void copy_rows(struct td_kern *kern, void *to, size_t to_step, const void *from,
                      size_t from_step, uint32_t n, size_t bytes)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++)
        memcpy((char *)to + i * to_step, (const char *)from + i * from_step, bytes);
}

static const struct td_kern_ops OPS = {
    .close = close_cpu,
    .supports_matrix = supports_matrix,
    .supports_kv = supports_kv,
    .alloc = alloc,
    .release = release,
    .alloc_shared = alloc,
    .release_shared = release,
    .copy = copy,
    .copy_rows = copy_rows,
    .run = run,
    .sync = sync_cpu,
    .matrix_open = matrix_open,
    .matrix_close = matrix_close,
    .matrix_pack = matrix_pack,
    .linear = td_cpu_linear,
    .rows = td_cpu_rows,
    .gather = td_cpu_gather,
    .rmsnorm = td_cpu_rmsnorm,
    .silu_mul = td_cpu_silu_mul,
    .add = td_cpu_add,
    .top = td_cpu_top,
    .rope_angles = td_cpu_rope_angles,
    .rope_kv = td_cpu_rope_kv,
    .attention = td_cpu_attention,
    .kv_save = td_cpu_kv_save,
    .kv_restore = td_cpu_kv_restore,
};

/* Best first. */
static const struct td_cpu_isa *const ISAS[] = {&td_cpu_isa_avx512, &td_cpu_isa_avx2,
                                                &td_cpu_isa_ref};

static enum td_status no_such_isa(const char *name, struct td_err *err)
{
    return td_err_set(err, TD_UNSUPPORTED, "this processor has no %s", name);
}

static void take_bf16_unit(struct td_cpu *cpu)
{
    cpu->isa.bf16 = td_cpu_avx512bf16.bf16;
    strcat(cpu->head.name, "+bf16");
}

static void take_int_unit(struct td_cpu *cpu)
{
    cpu->ints = &td_cpu_avx512amx;
    strcat(cpu->head.name, "+amx");
}

/* Sets isa and the device's name; `name` NULL: the best there is. AVX-512 comes with units that replace parts of it:
 * avx512bf16 and avx512amx ask for it with that one, avx512 for it alone. */
static enum td_status choose_isa(struct td_cpu *cpu, const char *name, struct td_err *err)
{
    const bool bf16 = name && strcasecmp(name, "avx512bf16") == 0;
    const bool amx = name && strcasecmp(name, "avx512amx") == 0;
    const char *table = bf16 || amx ? "avx512" : name;
    size_t i = 0, n = sizeof ISAS / sizeof ISAS[0];

    while (i < n && (name ? strcasecmp(table, ISAS[i]->name) != 0 : !ISAS[i]->available()))
        i++;
    if (i == n)
        return td_err_set(err, TD_INVALID,
                          "instruction set '%s': expected auto, ref, avx2, avx512, avx512bf16 or "
                          "avx512amx",
                          name);
    if (!ISAS[i]->available() || (bf16 && !td_cpu_avx512bf16.available()) ||
        (amx && !td_cpu_avx512amx.available()))
        return no_such_isa(name, err);
    cpu->isa = *ISAS[i];
    snprintf(cpu->head.name, sizeof cpu->head.name, "cpu %s", ISAS[i]->name);
    if (bf16 || (!name && ISAS[i] == &td_cpu_isa_avx512 && td_cpu_avx512bf16.available() &&
                 td_cpu_avx512bf16.beats_fma()))
        take_bf16_unit(cpu);
    if (amx || (!name && ISAS[i] == &td_cpu_isa_avx512 && td_cpu_avx512amx.available()))
        take_int_unit(cpu);
    return TD_OK;
}

/* Physical cores that this process may use. */
static enum td_status count_cores(uint32_t *n, struct td_err *err)
{
    struct td_cores *cores;
    enum td_status s = td_cores_open(NULL, &cores, err);

    if (s)
        return s;
    *n = td_cores_count_mine(cores);
    td_cores_close(cores);
    return TD_OK;
}

enum td_status td_kern_cpu_open(const struct td_kern_cpu_params *params, struct td_kern **kern,
                                struct td_err *err)
{
    const char *name = params->isa ? params->isa : getenv("TENSORD_CPU_ISA");
    struct td_pool_params pool = {
        .n_threads = params->n_threads, .seats = params->seats, .spin_ns = params->spin_ns};
    struct td_cpu *cpu = calloc(1, sizeof *cpu);
    enum td_status s;

    if (!cpu)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the CPU backend");
    s = choose_isa(cpu, name && name[0] && strcasecmp(name, "auto") ? name : NULL, err);
    if (!s && pool.n_threads == 0)
        s = count_cores(&pool.n_threads, err);
    if (s)
        goto fail;
    /* Nearest, subnormals kept: a library may have set this thread otherwise, and the pool's inherit from it. */
    fesetenv(FE_DFL_ENV);
    s = td_pool_open(&pool, &cpu->pool, err);
    if (s)
        goto fail;
    cpu->head.ops = &OPS;
    cpu->head.numerics = "cpu-2"; /* one class: every instruction set gives the same bits */
    cpu->head.is_host = true;
    cpu->head.n_threads = pool.n_threads;
    *kern = &cpu->head;
    return TD_OK;

fail:
    free(cpu);
    return s;
}
