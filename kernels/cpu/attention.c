/* The KV cache and attention over it, cut into pieces for the pool: a piece is a few rows of one sequence, the heads that
 * share a KV head, and a run of chunks of keys. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/mathf.h"
#include "kernels/cpu/pool.h"
#include "kernels/quant/dequant.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Pieces per thread, so that a slow thread does not hold the others; the fewest chunks and rows worth a piece of their own; rows
 * that are rotated and stored together. */
enum { PIECES_PER_THREAD = 8, MIN_RUN = 2, MIN_ROWS = 8, ROPE_ROWS = 16 };

/* ---- storing ---- */

static inline __attribute__((always_inline)) void copy_elements(size_t size, const uint8_t *from,
                                                                size_t from_tokens, size_t from_t,
                                                                uint8_t *to, size_t to_tokens,
                                                                size_t to_t, size_t rows, size_t n)
{
    for (size_t r = 0; r < rows; r++) {
        const uint8_t *src = from + (r * from_tokens + from_t) * size;
        uint8_t *dst = to + (r * to_tokens + to_t) * size;

        if (n == 1)
            memcpy(dst, src, size);
        else
            memcpy(dst, src, size * n);
    }
}

void td_cpu_copy_keys(enum td_dtype dtype, uint32_t head_dim, const uint8_t *from,
                      uint32_t from_tokens, uint32_t from_t, uint8_t *to, uint32_t to_tokens,
                      uint32_t to_t, uint32_t n)
{
    const size_t block_bytes = td_dtype_info(dtype)->block_bytes;

    if (dtype == TD_F32)
        copy_elements(4, from, from_tokens, from_t, to, to_tokens, to_t, head_dim, n);
    else if (dtype == TD_F16 || dtype == TD_BF16)
        copy_elements(2, from, from_tokens, from_t, to, to_tokens, to_t, head_dim, n);
    else if (dtype == TD_F8_E4M3)
        copy_elements(1, from, from_tokens, from_t, to, to_tokens, to_t, head_dim, n);
    else
        for (uint32_t d = 0; d < head_dim; d += 32) {
            copy_elements(2, from, from_tokens, from_t, to, to_tokens, to_t, 1, n);
            copy_elements(4, from + from_tokens * 2, from_tokens, from_t, to + to_tokens * 2,
                          to_tokens, to_t, (block_bytes - 2) / 4, n);
            from += from_tokens * block_bytes;
            to += to_tokens * block_bytes;
        }
}

/* One head of one token as stored. Infinity and NaN are NaN where the type has no infinity, of a quantised block all 32. */
static void round_row(const struct td_cpu_isa *isa, enum td_dtype dtype, const float *x, uint32_t n,
                      uint8_t *out)
{
    const size_t block_bytes = td_dtype_info(dtype)->block_bytes;
    const uint16_t nan = 0x7e00;

    if (dtype == TD_F32 || dtype == TD_F8_E4M3) {
        td_quant_row(dtype, x, out, n);
        for (uint32_t i = 0; dtype == TD_F8_E4M3 && i < n; i++)
            out[i] = isfinite(x[i]) ? out[i] : 0x7f;
        return;
    }
    if (dtype == TD_F16 || dtype == TD_BF16) {
        uint16_t half[TD_KERN_MAX_HEAD_DIM];

        isa->attend->halves(dtype, x, n, half);
        memcpy(out, half, n * sizeof *half);
        return;
    }
    for (uint32_t d = 0; d < n; d += 32, out += block_bytes) {
        bool finite = true;

        for (uint32_t i = d; i < d + 32; i++)
            finite = finite && isfinite(x[i]);
        if (finite) {
            td_quant_row(dtype, x + d, out, 32);
        } else {
            memset(out, 0, block_bytes);
            memcpy(out, &nan, sizeof nan);
        }
    }
}

struct rope_job {
    const struct td_cpu_isa *isa;
    const struct td_kv_view *kv;
    const struct td_kv_rows *rows;
    const struct td_rope_kv *in;
    uint32_t n, rows_per_task;
};

static void rope_heads(const struct rope_job *job, float *x, uint32_t n_heads, const float *norm,
                       const float *angles)
{
    const uint32_t dim = job->kv->head_dim;

    for (uint32_t h = 0; h < n_heads; h++, x += dim) {
        if (norm)
            job->isa->rmsnorm(x, norm, dim, job->in->eps, x);
        job->isa->attend->rope(x, angles, dim, job->in->interleaved);
    }
}

static void rope_row(const struct rope_job *job, uint32_t i)
{
    const struct td_kv_view *kv = job->kv;
    const struct td_rope_kv *in = job->in;
    const uint32_t dim = kv->head_dim, position = job->rows->positions[i];
    const size_t row_bytes = td_dtype_row_bytes(kv->dtype, dim);
    const uint32_t t = position % kv->block_tokens,
                   block =
                       job->rows->table[job->rows->first_block[i] + position / kv->block_tokens];
    const float *angles = in->angles + (size_t)i * 2 * dim;
    float *k = in->k + (size_t)i * kv->n_kv_heads * dim;
    const float *v = in->v + (size_t)i * kv->n_kv_heads * dim;
    uint8_t row[TD_KERN_MAX_HEAD_DIM * sizeof(float)];

    rope_heads(job, in->q + (size_t)i * in->n_heads * dim, in->n_heads, in->q_norm, angles);
    rope_heads(job, k, kv->n_kv_heads, in->k_norm, angles);
    for (uint32_t h = 0; h < kv->n_kv_heads; h++, k += dim, v += dim) {
        uint8_t *cell = td_cpu_kv_cell(kv, block, h);

        round_row(job->isa, kv->dtype, k, dim, row);
        td_cpu_copy_keys(kv->dtype, dim, row, 1, 0, cell, kv->block_tokens, t, 1);
        round_row(job->isa, kv->dtype, v, dim, cell + td_cpu_kv_half(kv) + t * row_bytes);
    }
}

static void rope_task(void *user, uint32_t task)
{
    const struct rope_job *job = user;
    uint32_t begin = task * job->rows_per_task, end = begin + job->rows_per_task;

    for (uint32_t i = begin; i < end && i < job->n; i++)
        rope_row(job, i);
}

void td_cpu_rope_kv(struct td_kern *kern, const struct td_kv_view *kv,
                    const struct td_kv_rows *rows_in, uint32_t n, const struct td_rope_kv *in)
{
    struct rope_job job = {&td_cpu_of(kern)->isa, kv, rows_in, in, n, ROPE_ROWS};

    /* Rows of one block share cache lines: many rows are cut where blocks usually end. */
    if (n < ROPE_ROWS * kern->n_threads)
        job.rows_per_task = (n + kern->n_threads - 1) / kern->n_threads;
    td_pool_run(td_cpu_of(kern)->pool, (n + job.rows_per_task - 1) / job.rows_per_task, rope_task,
                &job);
}

struct angle_job {
    const double *freq;
    const uint32_t *positions;
    uint32_t dim;
    double scale;
    bool interleaved;
    float *angles;
};

static void angle_task(void *user, uint32_t i)
{
    const struct angle_job *job = user;
    const uint32_t half = job->dim / 2;
    float *cosine = job->angles + (size_t)i * 2 * job->dim, *sine = cosine + job->dim;

    for (uint32_t j = 0; j < half; j++) {
        uint32_t a = job->interleaved ? 2 * j : j, b = job->interleaved ? a + 1 : a + half;
        double s, c;

        td_mathf_sincos((double)job->positions[i] * job->freq[j], &s, &c);
        cosine[a] = cosine[b] = (float)(c * job->scale);
        sine[b] = (float)(s * job->scale);
        sine[a] = -sine[b];
    }
}

void td_cpu_rope_angles(struct td_kern *kern, const double *freq, uint32_t dim, double scale,
                        bool interleaved, const uint32_t *positions, uint32_t n, float *angles)
{
    struct angle_job job = {freq, positions, dim, scale, interleaved, angles};

    if (n < 16)
        for (uint32_t i = 0; i < n; i++)
            angle_task(&job, i);
    else
        td_pool_run(td_cpu_of(kern)->pool, n, angle_task, &job);
}

/* ---- attention ---- */

/* Neighbouring query heads of one KV head. */
struct heads {
    uint32_t first, n, kv_head;
};

/* Neighbouring rows of one sequence whose keys begin in the same chunk, and end in the same. */
struct tile {
    uint32_t row, n_rows;
    uint32_t first_chunk, n_chunks;
    uint32_t first_piece; /* pieces are numbered by span of heads, then tile, then run */
    uint32_t first_slot;  /* of those whose chunks are split; one slot per piece */
    uint32_t first_join;  /* one join per span of a split tile */
};

/* Scratch, kept between calls. */
struct td_cpu_attention {
    uint8_t *memory;
    size_t bytes;
};

struct attention_job {
    const struct td_cpu_attend_ops *ops;
    const struct td_kv_view *kv;
    const struct td_kv_rows *rows;
    const struct td_attention *how;
    uint32_t n_heads; /* entries of `heads` */
    uint32_t n_tiles, n_slots, n_joins;
    uint32_t n_pieces; /* of each span */
    uint32_t span;     /* entries of `heads` per piece */
    uint32_t n_spans;
    uint32_t run; /* chunks per piece, a power of two */
    struct heads *heads;
    struct tile *tiles;
    atomic_uint *unjoined; /* [n_joins] pieces that are not done */
    float *slots;          /* [n_slots] partials */
    float *memory;         /* [threads] of memory_floats */
    size_t slot_floats, memory_floats;
    atomic_uint next; /* pieces begun */
};

static uint32_t runs_of(const struct attention_job *job, const struct tile *tile)
{
    return (tile->n_chunks + job->run - 1) / job->run;
}

static struct td_cpu_partial slot(const struct attention_job *job, uint32_t i)
{
    float *p = job->slots + i * job->slot_floats;

    return (struct td_cpu_partial){p, p + TD_CPU_QUERIES};
}

/* What a piece's queries are, in their order: by KV head, row, head. */
struct query {
    uint32_t row, head, kv_head;
};

static uint32_t queries_of(const struct attention_job *job, const struct tile *tile, uint32_t span,
                           struct query *query)
{
    uint32_t n = 0, end = (span + 1) * job->span;

    for (uint32_t i = span * job->span; i < end && i < job->n_heads; i++)
        for (uint32_t r = 0; r < tile->n_rows; r++)
            for (uint32_t h = 0; h < job->heads[i].n; h++)
                query[n++] = (struct query){.row = tile->row + r,
                                            .head = job->heads[i].first + h,
                                            .kv_head = job->heads[i].kv_head};
    return n;
}

/* Where its numbers begin among those of all rows and heads. */
static size_t place_of(const struct attention_job *job, const struct query *query)
{
    return ((size_t)query->row * job->how->n_heads + query->head) * job->kv->head_dim;
}

static void finish(const struct attention_job *job, const struct query *query, uint32_t n,
                   const struct td_cpu_partial *p)
{
    const float *sinks = job->how->sinks;

    for (uint32_t i = 0; i < n; i++)
        job->ops->finish(job->kv->head_dim, p, i, sinks ? sinks + query[i].head : NULL,
                         job->how->out + place_of(job, &query[i]));
}

/* Joins the runs of a split tile as a binary counter, as the chunks inside a run. */
static struct td_cpu_partial join_runs(const struct attention_job *job, uint32_t first_slot,
                                       uint32_t n_runs, uint32_t n_q)
{
    const uint32_t dim = job->kv->head_dim;
    struct td_cpu_partial stack[TD_CPU_LEVELS];
    uint32_t depth = 0;

    for (uint32_t r = 0; r < n_runs; r++) {
        stack[depth++] = slot(job, first_slot + r);
        for (uint32_t i = r; i & 1; i >>= 1, depth--)
            job->ops->join(dim, n_q, &stack[depth - 2], &stack[depth - 1]);
    }
    for (; depth > 1; depth--)
        job->ops->join(dim, n_q, &stack[depth - 2], &stack[depth - 1]);
    return stack[0];
}

/* The first position that a row at `position` sees. */
static uint32_t first_key(uint32_t position, uint32_t window)
{
    return window && position >= window ? position - window + 1 : 0;
}

static const struct tile *tile_of(const struct attention_job *job, uint32_t piece)
{
    uint32_t low = 0, high = job->n_tiles;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (job->tiles[middle].first_piece <= piece)
            low = middle;
        else
            high = middle;
    }
    return &job->tiles[low];
}

static void run_piece(const struct attention_job *job, uint32_t piece, float *memory)
{
    const uint32_t span = piece / job->n_pieces, dim = job->kv->head_dim;
    const struct tile *tile = tile_of(job, piece % job->n_pieces);
    const uint32_t n_runs = runs_of(job, tile), run = piece % job->n_pieces - tile->first_piece;
    const uint32_t first_slot = tile->first_slot + span * n_runs;
    const uint32_t base = tile->first_chunk * TD_KERN_CHUNK_KEYS;
    struct td_cpu_attend a = {.kv = job->kv,
                              .blocks = job->rows->table + job->rows->first_block[tile->row] +
                                        base / job->kv->block_tokens,
                              .chunk_begin = run * job->run,
                              .chunk_end = run + 1 < n_runs ? (run + 1) * job->run : tile->n_chunks,
                              .scale = job->how->scale,
                              .softcap = job->how->softcap,
                              .memory = memory};
    struct td_cpu_partial own = td_cpu_attend_level(&a, 0), shared;
    struct query query[TD_CPU_QUERIES];

    a.n_q = queries_of(job, tile, span, query);
    for (uint32_t i = 0; i < a.n_q; i++) {
        const uint32_t position = job->rows->positions[query[i].row];

        a.q[i] = job->how->q + place_of(job, &query[i]);
        a.kv_head[i] = query[i].kv_head;
        a.first_key[i] = first_key(position, job->how->window) - base;
        a.n_keys[i] = position + 1 - base;
    }
    job->ops->run(&a);
    if (n_runs > 1) {
        shared = slot(job, first_slot + run);
        memcpy(shared.max, own.max, TD_CPU_QUERIES * sizeof(float));
        memcpy(shared.acc, own.acc, (size_t)a.n_q * td_cpu_partial_stride(dim) * sizeof(float));
        if (atomic_fetch_sub_explicit(&job->unjoined[tile->first_join + span], 1,
                                      memory_order_acq_rel) != 1)
            return;
        own = join_runs(job, first_slot, n_runs, a.n_q);
    }
    finish(job, query, a.n_q, &own);
}

/* One per thread at most, so that `task` names a piece of memory; the last pieces, which have most keys, go first, and
 * those that share keys follow each other. */
static void attention_task(void *user, uint32_t task)
{
    struct attention_job *job = user;

    for (;;) {
        uint32_t i = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed);

        if (i >= job->n_pieces * job->n_spans)
            return;
        run_piece(job, job->n_pieces * job->n_spans - 1 - i,
                  job->memory + task * job->memory_floats);
    }
}

static uint32_t cut_heads(struct heads *heads, const uint32_t *kv_of_head, uint32_t n)
{
    uint32_t count = 0;

    for (uint32_t h = 0; h < n; h++) {
        struct heads *last = heads + count - 1;

        if (count && last->kv_head == kv_of_head[h] && last->n < TD_CPU_QUERIES)
            last->n++;
        else
            heads[count++] = (struct heads){h, 1, kv_of_head[h]};
    }
    return count;
}

/* As many rows as may be share what is unpacked, but every thread gets a few tiles. */
static uint32_t rows_per_tile(const struct attention_job *job, uint32_t n, uint32_t n_threads,
                              uint32_t most_heads)
{
    uint64_t fair = (uint64_t)n * job->n_heads / (4 * n_threads),
             most = TD_CPU_QUERIES / most_heads;

    fair = fair < MIN_ROWS ? MIN_ROWS : fair;
    return (uint32_t)(fair < most ? fair : most);
}

static uint32_t cut_rows(struct tile *tiles, const struct td_kv_rows *rows, uint32_t n,
                         uint32_t window, uint32_t rows_per_tile)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct tile *last = tiles + count - 1;
        uint32_t position = rows->positions[i];
        uint32_t first = first_key(position, window) / TD_KERN_CHUNK_KEYS;
        uint32_t n_chunks = position / TD_KERN_CHUNK_KEYS + 1 - first;

        if (count && last->first_chunk == first && last->n_chunks == n_chunks &&
            last->n_rows < rows_per_tile && rows->first_block[last->row] == rows->first_block[i])
            last->n_rows++;
        else
            tiles[count++] =
                (struct tile){.row = i, .n_rows = 1, .first_chunk = first, .n_chunks = n_chunks};
    }
    return count;
}

/* Chooses how many KV heads and chunks a piece has, and numbers the pieces. A piece has as many KV heads as may be, since that is
 * how memory is read in long runs. Only tiles that have more chunks than a run are split, so the slots are few: a split tile's
 * spans and runs are at most twice its heads / span and its chunks / run. */
static void cut_chunks(struct attention_job *job, uint32_t n_threads, uint32_t max_span)
{
    uint64_t all = 0, fair;

    for (uint32_t t = 0; t < job->n_tiles; t++)
        all += (uint64_t)job->tiles[t].n_chunks * job->n_heads;
    max_span = max_span < job->n_heads ? max_span : job->n_heads;
    fair = n_threads == 1 ? UINT64_MAX : all / (PIECES_PER_THREAD * n_threads);
    job->span = fair / MIN_RUN > max_span ? max_span : (uint32_t)(fair / MIN_RUN);
    job->span = job->span ? job->span : 1;
    job->n_spans = (job->n_heads + job->span - 1) / job->span;
    job->run = MIN_RUN;
    while (job->run < 1u << 30 && (uint64_t)job->run * job->span <= fair)
        job->run *= 2;
    for (uint32_t t = 0; t < job->n_tiles; t++) {
        struct tile *tile = &job->tiles[t];
        uint32_t n_runs = runs_of(job, tile);

        tile->first_piece = job->n_pieces;
        tile->first_slot = job->n_slots;
        tile->first_join = job->n_joins;
        job->n_pieces += n_runs;
        if (n_runs > 1) {
            job->n_slots += job->n_spans * n_runs;
            for (uint32_t i = 0; i < job->n_spans; i++)
                atomic_init(&job->unjoined[job->n_joins++], n_runs);
        }
    }
}

/* Lays out the scratch of a call of n rows, as large as any such call needs. */
static enum td_status reserve(struct td_cpu *cpu, struct attention_job *job, uint32_t n,
                              struct td_err *err)
{
    const uint32_t dim = job->kv->head_dim;
    const size_t n_threads = cpu->head.n_threads, n_slots = 4 * (PIECES_PER_THREAD + 1) * n_threads;
    size_t at[6] = {0}, sizes[5];

    job->memory_floats = (td_cpu_attend_floats(dim) + 15) & ~(size_t)15;
    job->slot_floats = TD_CPU_QUERIES * (1 + (size_t)td_cpu_partial_stride(dim));
    sizes[0] = n_threads * job->memory_floats * sizeof(float);
    sizes[1] = n_slots * job->slot_floats * sizeof(float);
    sizes[2] = n_slots * sizeof *job->unjoined;
    sizes[3] = n * sizeof *job->tiles;
    sizes[4] = job->how->n_heads * sizeof *job->heads;
    for (int i = 0; i < 5; i++)
        at[i + 1] = (at[i] + sizes[i] + 63) & ~(size_t)63;
    if (!cpu->attention) {
        cpu->attention = calloc(1, sizeof *cpu->attention);
        if (!cpu->attention)
            return td_err_set(err, TD_NO_MEMORY, "no memory for attention");
    }
    if (cpu->attention->bytes < at[5]) {
        uint8_t *memory = aligned_alloc(64, at[5]);

        if (!memory)
            return td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of attention's scratch",
                              at[5]);
        free(cpu->attention->memory);
        cpu->attention->memory = memory;
        cpu->attention->bytes = at[5];
    }
    job->memory = (float *)(void *)cpu->attention->memory;
    job->slots = (float *)(void *)(cpu->attention->memory + at[1]);
    job->unjoined = (atomic_uint *)(void *)(cpu->attention->memory + at[2]);
    job->tiles = (struct tile *)(void *)(cpu->attention->memory + at[3]);
    job->heads = (struct heads *)(void *)(cpu->attention->memory + at[4]);
    return TD_OK;
}

enum td_status td_cpu_attention(struct td_kern *kern, const struct td_kv_view *kv,
                                const struct td_kv_rows *rows_in, uint32_t n,
                                const struct td_attention *how, struct td_err *err)
{
    struct td_cpu *cpu = td_cpu_of(kern);
    struct attention_job job = {.ops = cpu->isa.attend, .kv = kv, .rows = rows_in, .how = how};
    enum td_status s = reserve(cpu, &job, n, err);
    uint32_t most = 1, most_rows = 1, n_pieces;

    if (s)
        return s;
    job.n_heads = cut_heads(job.heads, how->kv_of_head, how->n_heads);
    for (uint32_t h = 0; h < job.n_heads; h++)
        most = job.heads[h].n > most ? job.heads[h].n : most;
    job.n_tiles =
        cut_rows(job.tiles, rows_in, n, how->window, rows_per_tile(&job, n, kern->n_threads, most));
    for (uint32_t t = 0; t < job.n_tiles; t++)
        most_rows = job.tiles[t].n_rows > most_rows ? job.tiles[t].n_rows : most_rows;
    cut_chunks(&job, kern->n_threads, TD_CPU_QUERIES / (most * most_rows));
    n_pieces = job.n_pieces * job.n_spans;
    td_pool_run(cpu->pool, n_pieces < kern->n_threads ? n_pieces : kern->n_threads, attention_task,
                &job);
    return TD_OK;
}

void td_cpu_attention_close(struct td_cpu_attention *attention)
{
    if (!attention)
        return;
    free(attention->memory);
    free(attention);
}

/* A block's cells lie side by side. */
void td_cpu_kv_save(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block, void *bytes)
{
    (void)kern;
    memcpy(bytes, td_cpu_kv_cell(kv, block, 0), td_kern_kv_block_bytes(kv));
}

void td_cpu_kv_restore(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                       const void *bytes)
{
    (void)kern;
    memcpy(td_cpu_kv_cell(kv, block, 0), bytes, td_kern_kv_block_bytes(kv));
}
