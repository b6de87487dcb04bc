/* Linear steps: activations are prepared once for each kind of matrix, then groups of rows are spread over the pool. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/pool.h"

#include <stdlib.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { TASKS_PER_THREAD = 8, TOKENS_PER_TASK = 4, MAX_ACTS = 2 * TD_KERN_MAX_OUTPUTS };

struct linear_job {
    const struct td_cpu *cpu;
    struct td_cpu_source src;
    uint32_t n;
    struct td_cpu_act act[MAX_ACTS];
    uint32_t n_acts;
    const struct td_kern_output *outs;
    uint32_t n_outs;
    uint8_t act_of[TD_KERN_MAX_OUTPUTS];     /* index of m's activations */
    uint8_t gate_act[TD_KERN_MAX_OUTPUTS];   /* and of the gate's */
    uint32_t group_end[TD_KERN_MAX_OUTPUTS]; /* groups of outputs 0 .. i */
    uint32_t groups_per_task;
    uint32_t tasks_per_block; /* tasks of one block of tokens */
};

/* Subnormals count as zero and results below the normal range become zero, as vdpbf16ps has it whatever the mode. Returns what
 * flush_end puts back. */
static uint32_t flush_begin(void)
{
#if defined(__x86_64__)
    uint32_t mode = _mm_getcsr();

    _mm_setcsr(mode | 0x8040u);
    return mode;
#elif defined(__aarch64__)
    uint64_t mode;

    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" ::"r"(mode | (uint64_t)1 << 24));
    return (uint32_t)mode;
#else
#error "how does this processor flush subnormals?"
#endif
}

static void flush_end(uint32_t mode)
{
#if defined(__x86_64__)
    _mm_setcsr(mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)mode));
#endif
}

/* ---- activations ---- */

static uint32_t block_of_tokens(uint32_t n, uint32_t t0)
{
    return n - t0 < TD_CPU_TOKENS ? n - t0 : TD_CPU_TOKENS;
}

/* The functions that make and read one form of activations. */
struct form {
    void (*prepare)(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                    uint32_t slot, uint32_t n, uint8_t *out);
    void (*product)(const struct td_cpu_product *p);
};

static struct form form(const struct td_cpu *cpu, const struct td_cpu_act *act)
{
    if (act->unit)
        return (struct form){act->unit->prepare, act->unit->product};
    if (act->traits.kind == TD_ACT_BF16)
        return (struct form){cpu->isa.bf16.prepare, cpu->isa.bf16.product};
    return (struct form){cpu->isa.prepare, cpu->isa.product};
}

static void prepare_token(const struct linear_job *job, const struct td_cpu_act *act, uint32_t t)
{
    uint32_t t0 = t / TD_CPU_TOKENS * TD_CPU_TOKENS, n = block_of_tokens(job->n, t0);
    uint32_t n_tiles = td_cpu_tiles(n, act->max_tile);
    struct td_cpu_tile tile;

    for (uint32_t i = (t - t0) / act->max_tile;; i++) { /* no tile is longer than max_tile */
        tile = td_cpu_tile(n, n_tiles, i);
        if (t - t0 < tile.t0 + tile.n)
            break;
    }
    form(job->cpu, act)
        .prepare(&job->src, act, t, t - t0 - tile.t0, tile.n,
                 act->data + (size_t)(t0 + tile.t0) * act->row_bytes);
}

static void prepare_task(void *user, uint32_t task)
{
    const struct linear_job *job = user;
    uint32_t t1 = (task + 1) * TOKENS_PER_TASK;

    for (uint32_t t = task * TOKENS_PER_TASK; t < t1 && t < job->n; t++) {
        job->cpu->isa.gather(&job->src, t);
        for (uint32_t i = 0; i < job->n_acts; i++)
            prepare_token(job, &job->act[i], t);
    }
}

static bool same_form(struct td_cpu_traits a, struct td_cpu_traits b)
{
    if (a.kind != b.kind)
        return false;
    return a.kind < TD_ACT_INT32 ||
           (a.offset == b.offset && a.halves == b.halves && a.mins == b.mins);
}

/* Index of the activations that m reads; a form that is new gets its place. */
static uint8_t act_for(struct linear_job *job, const struct td_matrix *m)
{
    const struct td_cpu_isa *isa = &job->cpu->isa;
    const struct td_cpu_int_unit *unit = job->cpu->ints;
    struct td_cpu_traits traits = td_cpu_traits(m->dtype);
    uint8_t i = 0;

    while (i < job->n_acts && !same_form(job->act[i].traits, traits))
        i++;
    if (i < job->n_acts)
        return i;
    if (unit && (traits.kind < TD_ACT_INT32 || traits.halves > 1 || job->n < unit->least_tokens))
        unit = NULL;
    job->act[job->n_acts++] =
        (struct td_cpu_act){.traits = traits,
                            .unit = unit,
                            .n_cols = m->n_cols,
                            .max_tile = unit ? unit->tokens : isa->max_tile[traits.kind],
                            .row_bytes = td_cpu_act_row_bytes(traits, m->n_cols, isa->bf16.pairs)};
    return i;
}

static enum td_status reserve_scratch(struct td_cpu *cpu, size_t bytes, struct td_err *err)
{
    uint8_t *p;

    if (bytes <= cpu->scratch_bytes)
        return TD_OK;
    p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!p)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of prepared activations",
                          bytes);
    free(cpu->scratch);
    cpu->scratch = p;
    cpu->scratch_bytes = bytes;
    return TD_OK;
}

/* Places for the activations and the rows' factors, one after the other, each on a cache line. */
static enum td_status place_acts(struct td_cpu *cpu, struct linear_job *job, struct td_err *err)
{
    size_t bytes = ((size_t)job->n * sizeof(float) + 63) & ~(size_t)63, at[MAX_ACTS];
    enum td_status s;

    for (uint32_t i = 0; i < job->n_acts; i++) {
        at[i] = bytes;
        /* Matrix units read whole tiles of 16 rows. */
        bytes += ((job->n + 15) * job->act[i].row_bytes + 63) & ~(size_t)63;
    }
    s = reserve_scratch(cpu, bytes, err);
    job->src.factor = (float *)(void *)cpu->scratch;
    for (uint32_t i = 0; i < job->n_acts; i++)
        job->act[i].data = cpu->scratch + at[i];
    return s;
}

/* ---- products ---- */

static void product(const struct linear_job *job, const struct td_cpu_product *p)
{
    const bool flush = p->act->traits.kind == TD_ACT_BF16;
    const uint32_t mode = flush ? flush_begin() : 0;

    form(job->cpu, p->act).product(p);
    if (flush)
        flush_end(mode);
}

static void gated(const struct linear_job *job, const struct td_kern_output *o,
                  struct td_cpu_product *up, uint8_t gate_act)
{
    float gate_out[TD_CPU_TOKENS * TD_CPU_GROUP], up_out[TD_CPU_TOKENS * TD_CPU_GROUP];
    struct td_cpu_product gate = *up;
    uint32_t last = up->group + up->n_groups - 1;
    size_t width = (size_t)(up->n_groups - 1) * TD_CPU_GROUP + td_cpu_lanes(o->m, last);
    float *out = up->out;
    size_t row_stride = up->row_stride;

    gate.m = (const struct td_cpu_matrix *)o->gate;
    gate.act = &job->act[gate_act];
    gate.out = gate_out;
    up->out = up_out;
    gate.row_stride = up->row_stride = (size_t)up->n_groups * TD_CPU_GROUP;
    product(job, &gate);
    product(job, up);
    for (uint32_t t = 0; t < up->n; t++) {
        const float *later = out + (t + 8 < up->n ? t + 8 : t) * row_stride;

        __builtin_prefetch(later, 1, 3);
        __builtin_prefetch(later + width - 1, 1, 3);
        job->cpu->isa.silu_mul(gate_out + t * gate.row_stride, up_out + t * up->row_stride, width,
                               out + t * row_stride);
    }
}

static void product_task(void *user, uint32_t task)
{
    const struct linear_job *job = user;
    uint32_t t0 = task / job->tasks_per_block * TD_CPU_TOKENS;
    uint32_t g0 = task % job->tasks_per_block * job->groups_per_task, i = 0;

    uint32_t g1 = g0 + job->groups_per_task, step;

    if (g1 > job->group_end[job->n_outs - 1])
        g1 = job->group_end[job->n_outs - 1];
    for (uint32_t g = g0; g < g1; g += step) {
        const struct td_kern_output *o;
        struct td_cpu_product p;

        while (g >= job->group_end[i])
            i++;
        o = &job->outs[i];
        step = job->n > 1 ? 1 : TD_CPU_STREAMS; /* temporaries of `gated` hold either */
        step = g + step < job->group_end[i] ? step : job->group_end[i] - g;
        step = g + step < g1 ? step : g1 - g;
        p = (struct td_cpu_product){.m = (const struct td_cpu_matrix *)o->m,
                                    .act = &job->act[job->act_of[i]],
                                    .group = g - (i ? job->group_end[i - 1] : 0),
                                    .n_groups = step,
                                    .t0 = t0,
                                    .n = block_of_tokens(job->n, t0),
                                    .row_stride = o->m->n_rows,
                                    .part_stride = (size_t)job->n * o->m->n_rows};
        p.out = o->out + (size_t)t0 * o->m->n_rows + (size_t)p.group * TD_CPU_GROUP;
        if (o->gate)
            gated(job, o, &p, job->gate_act[i]);
        else
            product(job, &p);
    }
}

enum td_status td_cpu_linear(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                             const struct td_kern_output *outs, uint32_t n_outs, struct td_err *err)
{
    struct td_cpu *cpu = td_cpu_of(kern);
    struct linear_job job = {.cpu = cpu,
                             .src = {.x = in->x,
                                     .rows = in->rows,
                                     .add = in->add,
                                     .norm = in->norm,
                                     .eps = in->eps,
                                     .n_cols = outs[0].m->n_cols},
                             .n = n,
                             .outs = outs,
                             .n_outs = n_outs};
    uint32_t n_groups = 0, n_blocks = (n + TD_CPU_TOKENS - 1) / TD_CPU_TOKENS;
    uint32_t want = cpu->head.n_threads * TASKS_PER_THREAD;
    struct td_pool_stage stages[2];
    enum td_status s;

    for (uint32_t i = 0; i < n_outs; i++) {
        job.act_of[i] = act_for(&job, outs[i].m);
        job.gate_act[i] = outs[i].gate ? act_for(&job, outs[i].gate) : 0;
        n_groups += td_cpu_groups(outs[i].m);
        job.group_end[i] = n_groups;
    }
    s = place_acts(cpu, &job, err);
    if (s)
        return s;
    job.groups_per_task =
        cpu->head.n_threads == 1 ? n_groups : (n_groups * n_blocks + want - 1) / want;
    if (n == 1) /* whole sets of streams */
        job.groups_per_task =
            (job.groups_per_task + TD_CPU_STREAMS - 1) / TD_CPU_STREAMS * TD_CPU_STREAMS;
    if (job.groups_per_task > n_groups)
        job.groups_per_task = n_groups;
    job.tasks_per_block = (n_groups + job.groups_per_task - 1) / job.groups_per_task;
    stages[0] = (struct td_pool_stage){
        .fn = prepare_task, .user = &job, .n_tasks = (n + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK};
    stages[1] = (struct td_pool_stage){
        .fn = product_task, .user = &job, .n_tasks = job.tasks_per_block * n_blocks};
    td_pool_chain(cpu->pool, stages, 2);
    return TD_OK;
}

void td_cpu_rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids, uint32_t n,
                 float *out)
{
    (void)kern;
    for (uint32_t i = 0; i < n; i++)
        td_pack_row((const struct td_cpu_matrix *)m, ids[i], out + (size_t)i * m->n_cols);
}
