#ifndef TD_KERNELS_CPU_ATTEND_BODY_H
#define TD_KERNELS_CPU_ATTEND_BODY_H

/* Attention over the vector of vec_body.h, which includes this file: scores with 16 keys across the lanes, values with 16
 * dimensions, four queries at a time in registers. Every sum is ref_attend.c's, so tiles may be cut anywhere. */
enum { Q_TILE = 4, Q_STRIDE = TD_KERN_MAX_HEAD_DIM + 16, BURST = 8 };

/* A chunk's keys as 4 runs of 16: run v is keys from[v] .. from[v] + 15 of the block at block[v]. */
struct keys {
    const uint8_t *block[4];
    size_t from[4];
    size_t tokens; /* per block */
};

/* Bytes to be asked for ahead of their use: whole blocks, a cache line at a time. */
struct ahead {
    const uint8_t *at, *end;
    const uint8_t *block[4]; /* the next ones */
    uint32_t n_blocks, next;
    size_t bytes; /* per block */
    size_t lines; /* per BURST steps of the loop that does the asking */
};

INLINE void fetch(struct ahead *f)
{
    for (size_t i = 0; i < f->lines && f->at < f->end; i++) {
        __builtin_prefetch(f->at);
        f->at += 64;
        if (f->at >= f->end && f->next < f->n_blocks) {
            f->at = f->block[f->next++];
            f->end = f->at + f->bytes;
        }
    }
}

INLINE bool is_quantised(enum td_dtype dtype)
{
    return dtype == TD_Q8_0 || dtype == TD_Q4_0;
}

/* Dimension d of 16 keys. */
INLINE vf load_keys(enum td_dtype dtype, const uint8_t *block, size_t tokens, size_t from, size_t d)
{
    const size_t block_bytes = dtype == TD_Q8_0 ? 34 : 18;
    const uint8_t *b = block + d / 32 * tokens * block_bytes;
    vf scale;

    if (!is_quantised(dtype))
        return load_as(dtype, block + (d * tokens + from) * float_bytes(dtype), 16);
    scale = vf_load_f16(b + from * 2);
    b += tokens * 2;
    if (dtype == TD_Q8_0)
        return vf_mul(vf_from_vi(vi_byte(vi_load(b + (d % 32 / 4 * tokens + from) * 4), d % 4)),
                      scale);
    return vf_mul(vf_from_vi(vi_nibble(vi_load(b + (d % 16 / 4 * tokens + from) * 4),
                                       d % 4 * 8 + d % 32 / 16 * 4)),
                  scale);
}

/* Dimensions d .. d + 15 of a value; all of them exist. */
INLINE vf load_values(enum td_dtype dtype, const uint8_t *row, size_t d)
{
    const uint8_t *b = row + d / 32 * (dtype == TD_Q8_0 ? 34 : 18);

    if (!is_quantised(dtype))
        return load_as(dtype, row + d * float_bytes(dtype), 16);
    if (dtype == TD_Q8_0)
        return vf_mul(vf_load_int8(b + 2 + d % 32), vf_set1_f16(b));
    return vf_mul(vf_from_vi(vi_nibble(vi_load_bytes(b + 2), d % 32 / 4)), vf_set1_f16(b));
}

/* s [n_q x 64] of runs v0 .. v0 + n_runs - 1, from q [n_q x Q_STRIDE]. */
INLINE void score_tile(enum td_dtype dtype, int n_q, int n_runs, const struct keys *k, uint32_t v0,
                       const float *q, uint32_t dim, float *s, struct ahead *f)
{
    const uint32_t step = is_quantised(dtype) ? 4 : 1;
    const size_t tokens = k->tokens;
    const uint8_t *block[4];
    size_t from[4];
    vf acc[Q_TILE][4];

    for (int v = 0; v < n_runs; v++) {
        block[v] = k->block[v0 + (uint32_t)v];
        from[v] = k->from[v0 + (uint32_t)v];
    }
    for (int i = 0; i < n_q; i++)
        for (int v = 0; v < n_runs; v++)
            acc[i][v] = vf_set1(0.0f);
    for (uint32_t burst = 0; burst < dim; burst += BURST) {
        const uint32_t end = burst + BURST < dim ? burst + BURST : dim;

        fetch(f);
        for (uint32_t d0 = burst; d0 < end; d0 += step)
            for (uint32_t d = d0; d < d0 + step; d++) {
                vf key[4];

                for (int v = 0; v < n_runs; v++)
                    key[v] = load_keys(dtype, block[v], tokens, from[v], d);
                for (int i = 0; i < n_q; i++) {
                    vf x = vf_set1(q[i * Q_STRIDE + (int)d]);

                    for (int v = 0; v < n_runs; v++)
                        acc[i][v] = vf_fma(x, key[v], acc[i][v]);
                }
            }
    }
    for (int i = 0; i < n_q; i++)
        for (int v = 0; v < n_runs; v++)
            vf_store(s + i * TD_KERN_CHUNK_KEYS + ((int)v0 + v) * 16, acc[i][v]);
}

INLINE void scores_as(enum td_dtype dtype, const struct keys *k, uint32_t n_runs, uint32_t n_q,
                      const float *q, uint32_t dim, float *s, struct ahead *f)
{
    for (uint32_t i = 0; i < n_q; i += Q_TILE, q += Q_TILE * Q_STRIDE, s += Q_TILE * 64) {
        uint32_t v = 0;

        for (; v + TD_ATTEND_VECTORS <= n_runs; v += TD_ATTEND_VECTORS)
            switch (n_q - i) {
            case 1:
                score_tile(dtype, 1, TD_ATTEND_VECTORS, k, v, q, dim, s, f);
                break;
            case 2:
                score_tile(dtype, 2, TD_ATTEND_VECTORS, k, v, q, dim, s, f);
                break;
            case 3:
                score_tile(dtype, 3, TD_ATTEND_VECTORS, k, v, q, dim, s, f);
                break;
            default:
                score_tile(dtype, 4, TD_ATTEND_VECTORS, k, v, q, dim, s, f);
                break;
            }
        for (; v < n_runs; v++)
            if (n_q - i >= 4)
                score_tile(dtype, 4, 1, k, v, q, dim, s, f);
            else
                for (uint32_t h = 0; h < n_q - i; h++)
                    score_tile(dtype, 1, 1, k, v, q + h * Q_STRIDE, dim, s + (size_t)h * 64, f);
    }
}

static void scores(enum td_dtype dtype, const struct keys *k, uint32_t n_runs, uint32_t n_q,
                   const float *q, uint32_t dim, float *s, struct ahead *f)
{
    switch (dtype) {
    case TD_F32:
        scores_as(TD_F32, k, n_runs, n_q, q, dim, s, f);
        return;
    case TD_F16:
        scores_as(TD_F16, k, n_runs, n_q, q, dim, s, f);
        return;
    case TD_BF16:
        scores_as(TD_BF16, k, n_runs, n_q, q, dim, s, f);
        return;
    case TD_F8_E4M3:
        scores_as(TD_F8_E4M3, k, n_runs, n_q, q, dim, s, f);
        return;
    case TD_Q8_0:
        scores_as(TD_Q8_0, k, n_runs, n_q, q, dim, s, f);
        return;
    default:
        scores_as(TD_Q4_0, k, n_runs, n_q, q, dim, s, f);
        return;
    }
}

/* acc [n_q x stride], dimensions d .. d + 16 * n_vectors - 1, over keys j0 .. j1 - 1 with weights e [n_q x 64]. */
INLINE void value_tile(enum td_dtype dtype, int n_q, int n_vectors, const uint8_t *const *rows,
                       uint32_t j0, uint32_t j1, const float *e, uint32_t d, uint32_t stride,
                       float *acc, struct ahead *f)
{
    vf a[Q_TILE][4];

    for (int i = 0; i < n_q; i++)
        for (int v = 0; v < n_vectors; v++)
            a[i][v] = j0 ? vf_load(acc + (size_t)i * stride + d + 16 * v) : vf_set1(0.0f);
    for (uint32_t burst = j0; burst < j1; burst += BURST) {
        const uint32_t end = burst + BURST < j1 ? burst + BURST : j1;

        fetch(f);
        for (uint32_t j = burst; j < end; j++) {
            vf value[4];

            for (int v = 0; v < n_vectors; v++)
                value[v] = load_values(dtype, rows[j], d + 16 * (uint32_t)v);
            for (int i = 0; i < n_q; i++) {
                vf x = vf_set1(e[i * TD_KERN_CHUNK_KEYS + (int)j]);

                for (int v = 0; v < n_vectors; v++)
                    a[i][v] = vf_fma(x, value[v], a[i][v]);
            }
        }
    }
    for (int i = 0; i < n_q; i++)
        for (int v = 0; v < n_vectors; v++)
            vf_store(acc + (size_t)i * stride + d + 16 * v, a[i][v]);
}

/* All dimensions of up to four queries. */
INLINE void value_queries(enum td_dtype dtype, uint32_t n_q, const uint8_t *const *rows,
                          uint32_t j0, uint32_t j1, const float *e, uint32_t dim, uint32_t stride,
                          float *acc, struct ahead *f)
{
    uint32_t d = 0;

    for (; d + 16 * TD_ATTEND_VECTORS <= dim; d += 16 * TD_ATTEND_VECTORS)
        switch (n_q) {
        case 1:
            value_tile(dtype, 1, TD_ATTEND_VECTORS, rows, j0, j1, e, d, stride, acc, f);
            break;
        case 2:
            value_tile(dtype, 2, TD_ATTEND_VECTORS, rows, j0, j1, e, d, stride, acc, f);
            break;
        case 3:
            value_tile(dtype, 3, TD_ATTEND_VECTORS, rows, j0, j1, e, d, stride, acc, f);
            break;
        default:
            value_tile(dtype, 4, TD_ATTEND_VECTORS, rows, j0, j1, e, d, stride, acc, f);
            break;
        }
    for (; d < dim; d += 16)
        if (n_q == 4)
            value_tile(dtype, 4, 1, rows, j0, j1, e, d, stride, acc, f);
        else
            for (uint32_t i = 0; i < n_q; i++)
                value_tile(dtype, 1, 1, rows, j0, j1, e + (size_t)i * TD_KERN_CHUNK_KEYS, d, stride,
                           acc + (size_t)i * stride, f);
}

/* Query i takes keys 0 .. n_keys[i] - 1 of the chunk: those that all have together, then the rest one by one. */
INLINE void values_as(enum td_dtype dtype, const uint8_t *const *rows, const uint32_t *n_keys,
                      uint32_t n_q, const float *e, uint32_t dim, uint32_t stride, float *acc,
                      struct ahead *f)
{
    for (uint32_t i = 0; i < n_q; i += Q_TILE, e += Q_TILE * TD_KERN_CHUNK_KEYS) {
        uint32_t n = n_q - i < Q_TILE ? n_q - i : Q_TILE, common = n_keys[i];

        for (uint32_t h = 1; h < n; h++)
            common = n_keys[i + h] < common ? n_keys[i + h] : common;
        value_queries(dtype, n, rows, 0, common, e, dim, stride, acc + (size_t)i * stride, f);
        for (uint32_t h = 0; h < n; h++)
            if (n_keys[i + h] > common)
                value_queries(dtype, 1, rows, common, n_keys[i + h],
                              e + (size_t)h * TD_KERN_CHUNK_KEYS, dim, stride,
                              acc + (size_t)(i + h) * stride, f);
    }
}

static void values(enum td_dtype dtype, const uint8_t *const *rows, const uint32_t *n_keys,
                   uint32_t n_q, const float *e, uint32_t dim, uint32_t stride, float *acc,
                   struct ahead *f)
{
    switch (dtype) {
    case TD_F32:
        values_as(TD_F32, rows, n_keys, n_q, e, dim, stride, acc, f);
        return;
    case TD_F16:
        values_as(TD_F16, rows, n_keys, n_q, e, dim, stride, acc, f);
        return;
    case TD_BF16:
        values_as(TD_BF16, rows, n_keys, n_q, e, dim, stride, acc, f);
        return;
    case TD_F8_E4M3:
        values_as(TD_F8_E4M3, rows, n_keys, n_q, e, dim, stride, acc, f);
        return;
    case TD_Q8_0:
        values_as(TD_Q8_0, rows, n_keys, n_q, e, dim, stride, acc, f);
        return;
    default:
        values_as(TD_Q4_0, rows, n_keys, n_q, e, dim, stride, acc, f);
        return;
    }
}

/* Keys as F32 [dim x 64]. */
INLINE void unpack_keys_as(enum td_dtype dtype, const struct keys *k, uint32_t n_runs, uint32_t dim,
                           float *out)
{
    const uint32_t step = is_quantised(dtype) ? 4 : 1;

    for (uint32_t v = 0; v < n_runs; v++)
        for (uint32_t d0 = 0; d0 < dim; d0 += step)
            for (uint32_t d = d0; d < d0 + step; d++)
                vf_store(out + (size_t)d * TD_KERN_CHUNK_KEYS + v * 16,
                         load_keys(dtype, k->block[v], k->tokens, k->from[v], d));
}

static void unpack_keys(enum td_dtype dtype, const struct keys *k, uint32_t n_runs, uint32_t dim,
                        float *out)
{
    if (dtype == TD_F32)
        unpack_keys_as(TD_F32, k, n_runs, dim, out);
    else if (dtype == TD_F16)
        unpack_keys_as(TD_F16, k, n_runs, dim, out);
    else if (dtype == TD_BF16)
        unpack_keys_as(TD_BF16, k, n_runs, dim, out);
    else if (dtype == TD_F8_E4M3)
        unpack_keys_as(TD_F8_E4M3, k, n_runs, dim, out);
    else if (dtype == TD_Q8_0)
        unpack_keys_as(TD_Q8_0, k, n_runs, dim, out);
    else
        unpack_keys_as(TD_Q4_0, k, n_runs, dim, out);
}

/* Values as F32 [n x dim rounded up to 16], zeros behind the last dimension. */
INLINE void unpack_values_as(enum td_dtype dtype, const uint8_t *const *rows, uint32_t n,
                             uint32_t dim, float *out)
{
    for (uint32_t j = 0; j < n; j++)
        for (uint32_t d = 0; d < dim; d += 16, out += 16)
            vf_store(out, dim - d < 16 ? load_as(dtype, rows[j] + d * float_bytes(dtype), dim - d)
                                       : load_values(dtype, rows[j], d));
}

static void unpack_values(enum td_dtype dtype, const uint8_t *const *rows, uint32_t n, uint32_t dim,
                          float *out)
{
    if (dtype == TD_F32)
        unpack_values_as(TD_F32, rows, n, dim, out);
    else if (dtype == TD_F16)
        unpack_values_as(TD_F16, rows, n, dim, out);
    else if (dtype == TD_BF16)
        unpack_values_as(TD_BF16, rows, n, dim, out);
    else if (dtype == TD_F8_E4M3)
        unpack_values_as(TD_F8_E4M3, rows, n, dim, out);
    else if (dtype == TD_Q8_0)
        unpack_values_as(TD_Q8_0, rows, n, dim, out);
    else
        unpack_values_as(TD_Q4_0, rows, n, dim, out);
}

/* Lanes j .. j + 15 that lie in begin .. end - 1, `other` in the rest; all of them end behind j. */
INLINE vf between(vf x, vf other, uint32_t j, uint32_t begin, uint32_t end)
{
    x = vf_first(x, other, (int32_t)(end - j));
    return begin > j ? vf_first(other, x, (int32_t)(begin - j)) : x;
}

/* s [n] becomes cap tanh(s / cap). This and the next stand apart: they would take registers from the loop that seldom calls them. */
static __attribute__((noinline)) void cap_scores(float *s, uint32_t n, float softcap)
{
    const vf cap = vf_set1(softcap), by_cap = vf_set1(2.0f / softcap);

    for (uint32_t j = 0; j < n; j += 16) {
        vf y = v_exp(vf_min(vf_set1(TD_CAP_HI), vf_mul(vf_load(s + j), by_cap)));

        y = vf_div(vf_add(y, vf_set1(-1.0f)), vf_add(y, vf_set1(1.0f)));
        vf_store(s + j, vf_mul(y, cap));
    }
}

/* s [64] becomes e = exp(s - max) of keys begin .. n - 1 and 0 for the others of their run; sums [16] its sum by lanes. */
static __attribute__((noinline)) float weigh_part(float *s, uint32_t begin, uint32_t n, float *sums)
{
    const vf none = vf_set1(-INFINITY);
    vf max = none, sum = vf_set1(0.0f), minus;
    float m;

    for (uint32_t j = 0; j < n; j += 16)
        max = vf_max(between(vf_load(s + j), none, j, begin, n), max);
    m = vf_fold_max(max);
    minus = vf_set1(-m);
    for (uint32_t j = 0; j < n; j += 16) {
        vf e = v_exp(vf_add(vf_load(s + j), minus));

        e = between(e, vf_set1(0.0f), j, begin, n);
        sum = vf_add(sum, e);
        vf_store(s + j, e);
    }
    vf_store(sums, sum);
    return m;
}

/* The same of a whole chunk, without masks and with nothing waited for in between. */
INLINE float weigh_all(float *s, float *sums)
{
    vf x[4], max = vf_set1(-INFINITY), sum = vf_set1(0.0f), minus;
    float m;

    for (int v = 0; v < 4; v++) {
        x[v] = vf_load(s + 16 * v);
        max = vf_max(x[v], max);
    }
    m = vf_fold_max(max);
    minus = vf_set1(-m);
    for (int v = 0; v < 4; v++) {
        x[v] = v_exp(vf_add(x[v], minus));
        sum = vf_add(sum, x[v]);
        vf_store(s + 16 * v, x[v]);
    }
    vf_store(sums, sum);
    return m;
}

static void join(uint32_t head_dim, uint32_t n_q, const struct td_cpu_partial *left,
                 const struct td_cpu_partial *right)
{
    const uint32_t stride = td_cpu_partial_stride(head_dim);
    float cl[16], cr[16];

    for (uint32_t i = 0; i < n_q; i++) {
        float *l = left->acc + (size_t)i * stride;
        const float *r = right->acc + (size_t)i * stride;

        if (i % 16 == 0) {
            vf ml = vf_load(left->max + i), mr = vf_load(right->max + i), max = vf_max(mr, ml);

            vf_store(cl, v_exp(vf_add(ml, vf_neg(max))));
            vf_store(cr, v_exp(vf_add(mr, vf_neg(max))));
            vf_store(left->max + i, max);
        }
        for (uint32_t d = 0; d < stride; d += 16)
            vf_store(l + d, vf_fma(vf_load(l + d), vf_set1(cl[i % 16]),
                                   vf_mul(vf_load(r + d), vf_set1(cr[i % 16]))));
    }
}

static void join_top(const struct td_cpu_attend *a, uint32_t depth)
{
    struct td_cpu_partial left = td_cpu_attend_level(a, depth - 2);
    struct td_cpu_partial right = td_cpu_attend_level(a, depth - 1);

    join(a->kv->head_dim, a->n_q, &left, &right);
}

/* How a call goes over its chunks: with few queries what is stored goes from the cache's lines into registers; else, and where a
 * vector would cross a block or a row's end, it is unpacked once for all queries. */
struct walk {
    const struct td_cpu_attend *a;
    size_t row_bytes, half; /* bytes of one token's K or V; of a cell's */
    uint32_t dim, stride;   /* rounded up to 16; of an accumulator */
    uint32_t most_keys;
    float *q, *s, *keys, *values;
    uint8_t *raw;
};

/* Which queries of a call share a KV head, and whether they go directly. */
struct group {
    uint32_t first, n, kv_head;
    bool direct;
};

/* K of a KV head in the blocks of keys begin .. begin + n - 1; returns how many blocks they are. */
INLINE uint32_t find_cells(const struct walk *w, uint32_t kv_head, uint32_t begin, uint32_t n,
                           const uint8_t **cell)
{
    const struct td_kv_view *kv = w->a->kv;
    const uint32_t *table = w->a->blocks + begin / kv->block_tokens;
    uint32_t count = 0;

    for (uint32_t j = 0; j < n; j += kv->block_tokens, count++)
        cell[count] = (const uint8_t *)kv->data +
                      ((size_t)table[count] * kv->n_kv_heads + kv_head) * 2 * w->half;
    return count;
}

INLINE void find_keys(const struct walk *w, const uint8_t *const *cell, uint32_t n_cells,
                      struct keys *k)
{
    const struct td_kv_view *kv = w->a->kv;
    const uint32_t tokens = kv->block_tokens;
    uint32_t v = 0;

    k->tokens = tokens < 16 ? 16 : tokens;
    if (tokens >= 16) {
        for (uint32_t i = 0; i < n_cells; i++)
            for (uint32_t from = 0; from < tokens; from += 16, v++) {
                k->block[v] = cell[i];
                k->from[v] = from;
            }
        return;
    }
    for (uint32_t i = 0; i < n_cells; i++) {
        uint32_t j = i * tokens;
        uint8_t *raw = w->raw + j / 16 * 16 * w->row_bytes;

        td_cpu_copy_keys(kv->dtype, kv->head_dim, cell[i], tokens, 0, raw, 16, j % 16, tokens);
        k->block[j / 16] = raw;
        k->from[j / 16] = 0;
    }
}

INLINE void find_values(const struct walk *w, const uint8_t *const *cell, uint32_t n_cells,
                        const uint8_t **rows)
{
    for (uint32_t i = 0; i < n_cells; i++)
        for (uint32_t t = 0; t < w->a->kv->block_tokens; t++)
            *rows++ = cell[i] + w->half + t * w->row_bytes;
}

/* Half a cell each of at most four blocks, `offset` bytes from the cells' begin. */
INLINE void ask(const struct walk *w, const uint8_t *const *cell, uint32_t n_cells, size_t offset,
                uint32_t n_steps, struct ahead *f)
{
    for (uint32_t i = 0; i < n_cells; i++)
        f->block[i] = cell[i] + offset;
    f->n_blocks = n_cells;
    f->bytes = w->half;
    f->lines = (n_cells * w->half * BURST / 64 + n_steps - 1) / n_steps;
    f->at = f->block[0];
    f->end = f->at + f->bytes;
    f->next = 1;
}

/* One group over one chunk. `next`: whose K is read after this, at `next_begin`. */
static void walk_chunk(const struct walk *w, const struct group *g, uint32_t begin,
                       const struct group *next, uint32_t next_begin,
                       const struct td_cpu_partial *p)
{
    const struct td_cpu_attend *a = w->a;
    const struct td_kv_view *kv = a->kv;
    const uint32_t end = begin + TD_KERN_CHUNK_KEYS;
    const uint32_t n = w->most_keys < end ? w->most_keys - begin : TD_KERN_CHUNK_KEYS;
    const uint32_t n_runs = (n + 15) / 16;
    const float *q = w->q + (size_t)g->first * Q_STRIDE;
    float *acc = p->acc + (size_t)g->first * w->stride;
    const uint8_t *rows[TD_KERN_CHUNK_KEYS], *cell[TD_KERN_CHUNK_KEYS];
    uint32_t n_cells = find_cells(w, g->kv_head, begin, n, cell);
    uint32_t n_keys[TD_CPU_QUERIES], hidden[TD_CPU_QUERIES], n_hidden = 0, at_once;
    enum td_dtype dtype = kv->dtype;
    struct ahead f = {.lines = 0};
    struct keys k;

    find_keys(w, cell, n_cells, &k);
    find_values(w, cell, n_cells, rows);
    if (g->direct)
        ask(w, cell, n_cells, w->half, kv->head_dim + g->n * BURST, &f);
    else {
        unpack_keys(dtype, &k, n_runs, kv->head_dim, w->keys);
        unpack_values(dtype, rows, n, kv->head_dim, w->values);
        dtype = TD_F32;
        k.tokens = TD_KERN_CHUNK_KEYS;
        for (uint32_t v = 0; v < 4; v++) {
            k.block[v] = (const uint8_t *)w->keys;
            k.from[v] = v * 16;
        }
        for (uint32_t j = 0; j < n; j++)
            rows[j] = (const uint8_t *)(w->values + (size_t)j * w->dim);
    }
    scores(dtype, &k, n_runs, g->n, q, kv->head_dim, w->s, &f);
    for (uint32_t i = 0; i < g->n; i++) {
        const uint32_t first = a->first_key[g->first + i], all = a->n_keys[g->first + i];
        float *s = w->s + (size_t)i * TD_KERN_CHUNK_KEYS;
        float *sums = acc + (size_t)i * w->stride + w->dim;

        fetch(&f);
        n_keys[i] = all < end ? all - begin : TD_KERN_CHUNK_KEYS;
        hidden[i] = first > begin ? first - begin : 0;
        n_hidden += hidden[i];
        if (a->softcap > 0.0f)
            cap_scores(s, n_keys[i], a->softcap);
        p->max[g->first + i] = n_keys[i] - hidden[i] == TD_KERN_CHUNK_KEYS
                                   ? weigh_all(s, sums)
                                   : weigh_part(s, hidden[i], n_keys[i], sums);
    }
    f.lines = 0;
    if (g->direct && next_begin < w->most_keys) {
        uint32_t left = w->most_keys - next_begin;

        n_cells = find_cells(w, next->kv_head, next_begin,
                             left < TD_KERN_CHUNK_KEYS ? left : TD_KERN_CHUNK_KEYS, cell);
        ask(w, cell, n_cells, 0, n, &f);
    }
    at_once = n_hidden ? 1 : g->n; /* one by one in a window's first chunk */
    for (uint32_t i = 0; i < g->n; i += at_once) {
        n_keys[i] -= hidden[i];
        values(dtype, rows + hidden[i], n_keys + i, at_once,
               w->s + (size_t)i * TD_KERN_CHUNK_KEYS + hidden[i], w->dim, w->stride,
               acc + (size_t)i * w->stride, &f);
    }
}

static uint32_t find_groups(const struct td_cpu_attend *a, struct group *group)
{
    bool direct = a->kv->head_dim % 16 == 0 && a->kv->block_tokens >= 16;
    uint32_t n = 0;

    for (uint32_t i = 0; i < a->n_q; i++) {
        if (n == 0 || group[n - 1].kv_head != a->kv_head[i])
            group[n++] = (struct group){.first = i, .kv_head = a->kv_head[i]};
        group[n - 1].n++;
        group[n - 1].direct = direct && group[n - 1].n <= 2 * Q_TILE;
    }
    return n;
}

/* Chunk by chunk and in it head by head, so that memory is read in long runs. */
static void attend_run(const struct td_cpu_attend *a)
{
    const uint32_t head_dim = a->kv->head_dim;
    struct walk w = {.a = a,
                     .row_bytes = td_dtype_row_bytes(a->kv->dtype, head_dim),
                     .half = td_cpu_kv_half(a->kv),
                     .dim = (head_dim + 15) & ~15u,
                     .stride = td_cpu_partial_stride(head_dim)};
    struct group group[TD_CPU_QUERIES];
    uint32_t depth = 0, n_groups = find_groups(a, group);

    w.q = a->memory;
    w.s = w.q + TD_CPU_QUERIES * Q_STRIDE;
    w.keys = w.s + TD_CPU_QUERIES * TD_KERN_CHUNK_KEYS;
    w.values = w.keys + (size_t)w.dim * TD_KERN_CHUNK_KEYS;
    w.raw = (uint8_t *)(w.values + (size_t)w.dim * TD_KERN_CHUNK_KEYS);
    for (uint32_t i = 0; i < a->n_q; i++) {
        w.most_keys = a->n_keys[i] > w.most_keys ? a->n_keys[i] : w.most_keys;
        for (uint32_t d = 0; d < head_dim; d += 16)
            vf_store(w.q + (size_t)i * Q_STRIDE + d,
                     vf_mul(load_part(a->q[i] + d, head_dim - d), vf_set1(a->scale)));
    }
    for (uint32_t c = a->chunk_begin; c < a->chunk_end; c++) {
        struct td_cpu_partial p = td_cpu_attend_level(a, depth++);
        const uint32_t begin = c * TD_KERN_CHUNK_KEYS;

        for (uint32_t g = 0; g < n_groups; g++)
            walk_chunk(&w, &group[g], begin, &group[(g + 1) % n_groups],
                       g + 1 < n_groups ? begin : begin + TD_KERN_CHUNK_KEYS, &p);
        for (uint32_t i = c - a->chunk_begin; i & 1; i >>= 1)
            join_top(a, depth--);
    }
    for (; depth > 1; depth--)
        join_top(a, depth);
}

static void finish(uint32_t head_dim, const struct td_cpu_partial *p, uint32_t i, const float *sink,
                   float *out)
{
    const uint32_t stride = td_cpu_partial_stride(head_dim);
    const float *acc = p->acc + (size_t)i * stride;
    vf factor = vf_set1(td_cpu_attend_factor(p->max[i], vf_fold(vf_load(acc + stride - 16)), sink));

    for (uint32_t d = 0; d < head_dim; d += 16)
        store_part(out + d, vf_mul(vf_load(acc + d), factor), head_dim - d);
}

static void rope(float *x, const float *angles, uint32_t dim, bool interleaved)
{
    const float *sines = angles + dim;
    const uint32_t half = dim / 2;

    if (interleaved) {
        for (uint32_t i = 0; i < dim; i += 16) {
            vf v = load_part(x + i, dim - i);

            v = vf_add(vf_mul(v, load_part(angles + i, dim - i)),
                       vf_mul(vf_swap_pairs(v), load_part(sines + i, dim - i)));
            store_part(x + i, v, dim - i);
        }
        return;
    }
    for (uint32_t i = 0; i < half; i += 16) {
        uint32_t n = half - i;
        vf a = load_part(x + i, n), b = load_part(x + half + i, n);

        store_part(x + i,
                   vf_add(vf_mul(a, load_part(angles + i, n)), vf_mul(b, load_part(sines + i, n))),
                   n);
        store_part(x + half + i,
                   vf_add(vf_mul(b, load_part(angles + half + i, n)),
                          vf_mul(a, load_part(sines + half + i, n))),
                   n);
    }
}

static void halves(enum td_dtype dtype, const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i += 16) {
        uint16_t tmp[16];
        vf v = load_part(x + i, n - i);

        if (dtype == TD_F16)
            vf_store_f16(tmp, v);
        else
            vf_store_bf16(tmp, v);
        memcpy(out + i, tmp, (n - i < 16 ? n - i : 16) * sizeof *out);
    }
}

static const struct td_cpu_attend_ops attend[1] = {{attend_run, join, finish, rope, halves}};

#endif
