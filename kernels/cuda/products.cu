/* Linear steps: activations are prepared once for each form and cut, then 16 rows of a matrix by 8 tokens are one block's. A leaf
 * is summed by one warp, tile after tile, on the tensor cores with F32 sums; leaves join in the fixed tree. So a result depends
 * on its own token's row alone, and on nothing of how leaves are dealt to ranks. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matrix.cuh"

namespace
{

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    PREPARE_THREADS = 512, /* a warp for each leaf of most matrices */
    TOKENS = 8,
    LEAF_FLOATS = TD_TILE_ROWS * TOKENS
};

/* ---- activations ---- */

struct source {
    float *x;             /* [.. x n_cols] */
    const uint32_t *rows; /* NULL: row i is i */
    const float *add;     /* NULL: none, or it is done */
    const float *norm;    /* NULL: none */
    float eps;
    uint32_t n_cols;
    float *factor; /* [n] of the norm */
    bool has_factor;
};

/* Activations of all tokens in one form and cut; the columns lie as the tiles have them. F16 has a power of two per leaf, which is
 * never split, so that no rank's share of a row decides about another's. */
struct act {
    uint8_t *x;   /* [n x n_tiles x 32] */
    float *scale; /* F16: [n x n_leaves] what a leaf's sum is multiplied with; else NULL */
    float *sums;  /* F16: [n x n_tiles] of each tile's columns */
    const struct td_cuda_tile *tile; /* [n_tiles] */
    const uint32_t *leaf_end;        /* [n_leaves] in tiles */
    uint32_t n_tiles, n_leaves;
};

__device__ float value_of(const struct source &src, const float *x, float factor, uint32_t c)
{
    return src.norm ? x[c] * factor * src.norm[c] : x[c];
}

/* The power of two that brings `max` to 2^14 and more, and its inverse in *inverse; 1 for what is tiny, infinite or no number. */
__device__ float scale_of(float max, float *inverse)
{
    const uint32_t e = td_num_f32_bits(max) >> 23;

    *inverse = e > 14 && e < 255 ? td_num_bits((254 + 14 - e) << 23) : 1.0f;
    return e > 14 && e < 255 ? td_num_bits((e - 14) << 23) : 1.0f;
}

/* One leaf of one token, by a warp; a lane has one column of every tile. */
template <enum td_cuda_act A>
__device__ void prepare_leaf(const struct source &src, const struct act &act, const float *x,
                             float factor, uint32_t t, uint32_t leaf)
{
    const uint32_t lane = threadIdx.x % 32, begin = leaf ? act.leaf_end[leaf - 1] : 0;
    float inverse = 1.0f;

    if (A == TD_CUDA_F16) {
        uint32_t max = 0;

        for (uint32_t i = begin; i < act.leaf_end[leaf]; i++)
            if (lane < act.tile[i].n) {
                const float v = value_of(src, x, factor, act.tile[i].first + lane);
                const uint32_t bits = td_num_f32_bits(fabsf(v));

                max = bits > max ? bits : max;
            }
        for (uint32_t mask = 16; mask; mask >>= 1) {
            const uint32_t other = td_num_xor(max, mask);

            max = other > max ? other : max;
        }
        const float scale = scale_of(td_num_bits(max), &inverse);

        if (lane == 0)
            act.scale[(size_t)t * act.n_leaves + leaf] = scale;
    }
    for (uint32_t i = begin; i < act.leaf_end[leaf]; i++) {
        const size_t to = ((size_t)t * act.n_tiles + i) * TD_TILE_COLS + lane;
        const float v =
            lane < act.tile[i].n ? value_of(src, x, factor, act.tile[i].first + lane) : 0.0f;

        if (A == TD_CUDA_PLAIN) {
            ((float *)act.x)[to] = v;
        } else if (A == TD_CUDA_BF16) {
            ((uint16_t *)act.x)[to] = td_num_to_bf16(v);
        } else {
            const uint16_t h = td_num_to_f16(v * inverse);
            float sum = td_num_f16(h);

            ((uint16_t *)act.x)[to] = h;
            for (uint32_t mask = 16; mask; mask >>= 1)
                sum = sum + td_num_xor(sum, mask);
            if (lane == 0)
                act.sums[(size_t)t * act.n_tiles + i] = sum;
        }
    }
}

/* One block a token. */
template <enum td_cuda_act A>
__global__ void __launch_bounds__(PREPARE_THREADS)
    prepare(const struct source src, const struct act act)
{
    __shared__ float scratch[32];
    const uint32_t t = blockIdx.x;
    float *x = src.x + (size_t)(src.rows ? src.rows[t] : t) * src.n_cols;
    float squares = 0.0f, factor = 1.0f;

    for (uint32_t c = threadIdx.x; c < src.n_cols; c += PREPARE_THREADS) {
        if (src.add)
            x[c] = x[c] + src.add[(size_t)t * src.n_cols + c];
        squares = fmaf(x[c], x[c], squares);
    }
    if (src.has_factor) {
        factor = src.factor[t];
    } else if (src.norm) {
        factor = 1.0f / sqrtf(td_num_block_sum(squares, scratch) / (float)src.n_cols + src.eps);
        if (threadIdx.x == 0)
            src.factor[t] = factor;
    }
    __syncthreads();
    for (uint32_t leaf = threadIdx.x / 32; leaf < act.n_leaves; leaf += PREPARE_THREADS / 32)
        prepare_leaf<A>(src, act, x, factor, t, leaf);
}

/* ---- products ---- */

/* c [rows g, g + 8 x tokens 2t, 2t + 1] += one tile. `at` is the tile's place in the group. */
template <enum td_dtype T>
__device__ __forceinline__ void add_tile(const struct td_cuda_weights &m, const struct act &act,
                                         uint32_t group, uint32_t at, uint32_t t0, uint32_t n,
                                         float c[4])
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const size_t number = (size_t)group * m.n_tiles + at;
    const uint8_t *tile = m.tiles + number * F.tile_bytes;

    if (T == TD_F32) { /* ascending columns */
        const float *w = (const float *)tile;

        for (uint32_t k = 0; k < TD_TILE_COLS; k++) {
            const float low = w[k * TD_TILE_ROWS + g], high = w[k * TD_TILE_ROWS + g + 8];

            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t token = t0 + 2 * t + i < n ? t0 + 2 * t + i : n - 1;
                const float x =
                    ((const float *)act.x)[((size_t)token * act.n_tiles + at) * TD_TILE_COLS + k];

                if (k < m.tile[at].n) {
                    c[i] = fmaf(low, x, c[i]);
                    c[2 + i] = fmaf(high, x, c[2 + i]);
                }
            }
        }
    } else {
        const uint16_t *x =
            (const uint16_t *)act.x + ((size_t)(t0 + g) * act.n_tiles + at) * TD_TILE_COLS;
        uint32_t low[4], high[4], b[4] = {0, 0, 0, 0};

        td_tile_pairs<T>(tile, lane, 0, low);
        td_tile_pairs<T>(tile, lane, 1, high);
        if (t0 + g < n) {
            if (F.halves) {
                const uint2 first = *(const uint2 *)(x + 4 * t);
                const uint2 second = *(const uint2 *)(x + 16 + 4 * t);

                b[0] = first.x;
                b[1] = first.y;
                b[2] = second.x;
                b[3] = second.y;
            } else {
                const uint4 all = *(const uint4 *)(x + 8 * t);

                b[0] = all.x;
                b[1] = all.y;
                b[2] = all.z;
                b[3] = all.w;
            }
        }
        if (F.scale_bytes == 0 && F.super_bytes == 0) {
            for (uint32_t j = 0; j < 2; j++) {
                const uint32_t a[4] = {low[2 * j], high[2 * j], low[2 * j + 1], high[2 * j + 1]};

                if (T == TD_BF16)
                    td_num_mma_bf16(c, a, b + 2 * j);
                else
                    td_num_mma_f16(c, a, b + 2 * j);
            }
        } else {
            const uint8_t *scales = m.scales + number * F.scale_bytes;
            const uint8_t *supers =
                F.super_tiles
                    ? m.supers + ((size_t)group * m.n_supers + at / F.super_tiles) * F.super_bytes
                    : NULL;
            struct td_tile_scale s[2];
            float dot[4] = {0.0f, 0.0f, 0.0f, 0.0f};

            for (uint32_t j = 0; j < 2; j++) {
                const uint32_t a[4] = {low[2 * j], high[2 * j], low[2 * j + 1], high[2 * j + 1]};

                td_num_mma_f16(dot, a, b + 2 * j);
                if (j == 0 && !F.halves)
                    continue;
                s[0] = td_tile_scale_of<T>(scales, supers, g, 0, j);
                s[1] = td_tile_scale_of<T>(scales, supers, g, 1, j);
                for (uint32_t i = 0; i < 4; i++) {
                    c[i] = fmaf(dot[i], s[i / 2].scale, c[i]);
                    dot[i] = 0.0f;
                }
            }
            if (F.mins)
                for (uint32_t i = 0; i < 4; i++) {
                    const uint32_t token = t0 + 2 * t + i % 2 < n ? t0 + 2 * t + i % 2 : n - 1;

                    c[i] = fmaf(-s[i / 2].min, act.sums[(size_t)token * act.n_tiles + at], c[i]);
                }
        }
    }
}

/* All leaves of 16 rows by 8 tokens into `leaves` [n_leaves x 8 tokens x 16 rows]. */
template <enum td_dtype T>
__device__ void sum_leaves(const struct td_cuda_weights &m, const struct act &act, uint32_t group,
                           uint32_t t0, uint32_t n, float *leaves)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

    for (uint32_t leaf = threadIdx.x / 32; leaf < m.n_leaves; leaf += WARPS) {
        const uint32_t end = m.leaf_end[leaf];
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        float *to = leaves + (size_t)leaf * LEAF_FLOATS;

#pragma unroll 4
        for (uint32_t at = leaf ? m.leaf_end[leaf - 1] : 0; at < end; at++)
            add_tile<T>(m, act, group, at, t0, n, c);
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t token = t0 + 2 * t + i % 2 < n ? t0 + 2 * t + i % 2 : n - 1;
            const float scale = act.scale ? act.scale[(size_t)token * act.n_leaves + leaf] : 1.0f;

            to[(2 * t + i % 2) * TD_TILE_ROWS + g + i / 2 * 8] = c[i] * scale;
        }
    }
}

/* The tree over the leaves [begin, end), in place: the sum is in the first one. */
__device__ void join_leaves(float *leaves, uint32_t begin, uint32_t end)
{
    for (uint32_t step = 1; step < end - begin; step *= 2)
        for (uint32_t i = begin; i + step < end; i += 2 * step)
            leaves[(size_t)i * LEAF_FLOATS] =
                leaves[(size_t)i * LEAF_FLOATS] + leaves[(size_t)(i + step) * LEAF_FLOATS];
}

struct product {
    struct td_cuda_weights m, gate; /* gate.tiles NULL: none */
    struct act act, gate_act;
    float *out; /* [n_parts x n x n_rows] */
    uint32_t n;
};

/* The gate is of the same type. */
template <enum td_dtype T>
__global__ void __launch_bounds__(THREADS) multiply(const __grid_constant__ struct product p)
{
    float *leaves = (float *)td_num_shared();
    float *gates = leaves + (size_t)p.m.n_leaves * LEAF_FLOATS;
    const uint32_t group = blockIdx.y, t0 = blockIdx.x * TOKENS;
    const uint32_t row = group * TD_TILE_ROWS + threadIdx.x % TD_TILE_ROWS;
    const uint32_t token = t0 + threadIdx.x / TD_TILE_ROWS;

    sum_leaves<T>(p.m, p.act, group, t0, p.n, leaves);
    if (p.gate.tiles)
        sum_leaves<T>(p.gate, p.gate_act, group, t0, p.n, gates);
    __syncthreads();
    if (threadIdx.x >= LEAF_FLOATS || row >= p.m.n_rows || token >= p.n)
        return;
    for (uint32_t part = 0; part < p.m.n_parts; part++) {
        const uint32_t begin = p.m.part_begin[part];
        float sum;

        join_leaves(leaves + threadIdx.x, begin, p.m.part_begin[part + 1]);
        sum = leaves[(size_t)begin * LEAF_FLOATS + threadIdx.x];
        if (p.gate.tiles) {
            join_leaves(gates + threadIdx.x, 0, p.gate.n_leaves);
            sum = td_num_silu(gates[threadIdx.x], sum);
        }
        p.out[((size_t)part * p.n + token) * p.m.n_rows + row] = sum;
    }
}

/* ---- embedding rows ---- */

template <enum td_dtype T>
__global__ void dequantise(const __grid_constant__ struct td_cuda_weights m, const uint32_t *ids,
                           uint32_t n, float *out)
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const size_t item = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    const uint32_t t = (uint32_t)(item % 4), at = (uint32_t)(item / 4 % m.n_tiles);
    const size_t i = item / 4 / m.n_tiles;

    if (i >= n)
        return;
    const uint32_t id = ids[i], group = id / TD_TILE_ROWS, g = id % 8, half = id % 16 / 8;
    const size_t number = (size_t)group * m.n_tiles + at;
    const uint8_t *tile = m.tiles + number * F.tile_bytes;
    const struct td_cuda_tile columns = m.tile[at];
    uint32_t pair[4];

    if (T != TD_F32)
        td_tile_pairs<T>(tile, 4 * g + t, half, pair);
    for (uint32_t k = 0; k < 8; k++) {
        const uint32_t column = td_tile_column(F.halves, t, k);
        float v;

        if (column >= columns.n)
            continue;
        if (T == TD_F32) {
            v = ((const float *)tile)[column * TD_TILE_ROWS + id % 16];
        } else {
            const uint16_t bits = (uint16_t)(k % 2 ? pair[k / 2] >> 16 : pair[k / 2] & 0xffffu);

            v = T == TD_BF16 ? td_num_bf16(bits) : td_num_f16(bits);
            if (T == TD_MXFP4 && v == 0.0f) /* zero has no sign there */
                v = 0.0f;
        }
        if (F.scale_bytes || F.super_bytes) {
            const struct td_tile_scale s = td_tile_scale_of<T>(
                m.scales + number * F.scale_bytes,
                F.super_tiles
                    ? m.supers + ((size_t)group * m.n_supers + at / F.super_tiles) * F.super_bytes
                    : NULL,
                g, half, k / 4);

            v = F.mins ? s.scale * v - s.min : s.scale * v;
        }
        out[i * m.n_cols + columns.first + column] = v;
    }
}

/* ---- the host's part ---- */

/* The activations of a call. */
struct acts {
    struct {
        enum td_cuda_act form;
        const struct td_cuda_matrix *m; /* whose cut it is */
        struct act act;
    } item[2 * TD_KERN_MAX_OUTPUTS];
    uint32_t n;
};

uint32_t act_for(struct acts *acts, const struct td_matrix *matrix)
{
    const struct td_cuda_matrix *m = (const struct td_cuda_matrix *)matrix;
    const enum td_cuda_act form = td_cuda_format_of(matrix->dtype).act;
    uint32_t i = 0;

    while (i < acts->n && (acts->item[i].form != form || !td_cuda_same_cut(acts->item[i].m, m)))
        i++;
    if (i == acts->n)
        acts->item[acts->n++] = {
            form,
            m,
            {NULL, NULL, NULL, m->view.tile, m->view.leaf_end, m->view.n_tiles, m->view.n_leaves}};
    return i;
}

/* Where everything lies from `base` on; returns its bytes. */
size_t lay_out(struct acts *acts, uint32_t n, uint8_t *base, float **factor)
{
    size_t at = td_cuda_align(n * sizeof(float));

    *factor = (float *)base;
    for (uint32_t i = 0; i < acts->n; i++) {
        struct act *a = &acts->item[i].act;
        const enum td_cuda_act form = acts->item[i].form;
        const size_t tiles = (size_t)n * a->n_tiles;

        a->x = base + at;
        at += td_cuda_align(tiles * TD_TILE_COLS * (form == TD_CUDA_PLAIN ? 4 : 2));
        if (form != TD_CUDA_F16)
            continue;
        a->scale = (float *)(base + at);
        at += td_cuda_align((size_t)n * a->n_leaves * sizeof(float));
        a->sums = (float *)(base + at);
        at += td_cuda_align(tiles * sizeof(float));
    }
    return at;
}

template <enum td_dtype T> void launch_multiply(struct td_cuda *cuda, const struct product *p)
{
    const size_t shared = (size_t)(p->m.n_leaves + (p->gate.tiles ? p->gate.n_leaves : 0)) *
                          LEAF_FLOATS * sizeof(float);

    td_cuda_launch(cuda, multiply<T>,
                   dim3((p->n + TOKENS - 1) / TOKENS, td_cuda_groups(p->m.n_rows)), dim3(THREADS),
                   shared, *p);
}

void launch(struct td_cuda *cuda, enum td_dtype type, const struct product *p)
{
    switch (type) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        launch_multiply<T>(cuda, p);                                                               \
        break;
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        break;
    }
}

void launch_prepare(struct td_cuda *cuda, enum td_cuda_act form, const struct source *src,
                    const struct act *act, uint32_t n)
{
    if (form == TD_CUDA_PLAIN)
        td_cuda_launch(cuda, prepare<TD_CUDA_PLAIN>, dim3(n), dim3(PREPARE_THREADS), 0, *src, *act);
    else if (form == TD_CUDA_BF16)
        td_cuda_launch(cuda, prepare<TD_CUDA_BF16>, dim3(n), dim3(PREPARE_THREADS), 0, *src, *act);
    else
        td_cuda_launch(cuda, prepare<TD_CUDA_F16>, dim3(n), dim3(PREPARE_THREADS), 0, *src, *act);
}

} // namespace

enum td_status td_cuda_linear(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                              const struct td_kern_output *outs, uint32_t n_outs,
                              struct td_err *err)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    struct acts acts = {};
    struct source src = {in->x,   in->rows,          in->add, in->norm,
                         in->eps, outs[0].m->n_cols, NULL,    false};
    uint32_t act_of[TD_KERN_MAX_OUTPUTS], gate_act[TD_KERN_MAX_OUTPUTS] = {0};
    enum td_status s;

    for (uint32_t i = 0; i < n_outs; i++) {
        act_of[i] = act_for(&acts, outs[i].m);
        if (outs[i].gate)
            gate_act[i] = act_for(&acts, outs[i].gate);
    }
    s = td_cuda_reserve(cuda, &cuda->scratch, lay_out(&acts, n, NULL, &src.factor), err);
    if (s)
        return s;
    (void)lay_out(&acts, n, cuda->scratch.data, &src.factor);
    for (uint32_t i = 0; i < acts.n; i++) {
        launch_prepare(cuda, acts.item[i].form, &src, &acts.item[i].act, n);
        src.add = NULL; /* the first has done it */
        src.has_factor = src.norm != NULL;
    }
    for (uint32_t i = 0; i < n_outs; i++) {
        const struct td_kern_output *o = &outs[i];
        struct product p = {((const struct td_cuda_matrix *)o->m)->view,
                            {},
                            acts.item[act_of[i]].act,
                            {},
                            o->out,
                            n};
        float *of_gate;

        if (o->gate && o->gate->dtype == o->m->dtype) {
            p.gate = ((const struct td_cuda_matrix *)o->gate)->view;
            p.gate_act = acts.item[gate_act[i]].act;
        }
        launch(cuda, o->m->dtype, &p);
        if (!o->gate || p.gate.tiles)
            continue;
        /* A gate of another type is multiplied by itself. */
        s = td_cuda_reserve(cuda, &cuda->gates, (size_t)n * o->m->n_rows * sizeof(float), err);
        if (s)
            return s;
        of_gate = (float *)cuda->gates.data;
        p = {((const struct td_cuda_matrix *)o->gate)->view,
             {},
             acts.item[gate_act[i]].act,
             {},
             of_gate,
             n};
        launch(cuda, o->gate->dtype, &p);
        td_cuda_silu_mul(kern, of_gate, o->out, (size_t)n * o->m->n_rows, o->out);
    }
    return TD_OK;
}

void td_cuda_rows(struct td_kern *kern, const struct td_matrix *matrix, const uint32_t *ids,
                  uint32_t n, float *out)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const struct td_cuda_weights *m = &((const struct td_cuda_matrix *)matrix)->view;
    const size_t items = (size_t)n * m->n_tiles * 4;
    const dim3 blocks((uint32_t)((items + THREADS - 1) / THREADS));

    if (n == 0)
        return;
    switch (matrix->dtype) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        td_cuda_launch(cuda, dequantise<T>, blocks, dim3(THREADS), 0, *m, ids, n, out);            \
        break;
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        break;
    }
}
