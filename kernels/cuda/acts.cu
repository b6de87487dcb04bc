/* Rows of activations into the forms that products read, with what a step does to them on the way: a sum, a norm. */
#include "kernels/cuda/acts.cuh"

namespace
{

enum {
    PREPARE_THREADS = 512,
    PREPARE_WARPS = PREPARE_THREADS / 32 /* one for each leaf of most matrices */
};

struct source {
    float *x;             /* [.. x n_cols] */
    const uint32_t *rows; /* NULL: row i is i */
    const float *add;     /* NULL: none, or it is done */
    const float *norm;    /* NULL: none */
    float eps;
    uint32_t n_cols;
    float *factor; /* [n] of the norm */
    bool has_factor;
    uint32_t tile_end[PREPARE_WARPS], column_end[PREPARE_WARPS]; /* of leaves, where they are few */
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

/* The scale of a leaf of which the lanes have seen magnitudes up to `max`, stored; returns its inverse. */
__device__ float store_scale(const struct td_cuda_acts &act, uint32_t t, uint32_t leaf,
                             uint32_t max)
{
    float inverse;

    for (uint32_t mask = 16; mask; mask >>= 1) {
        const uint32_t other = td_num_xor(max, mask);

        max = other > max ? other : max;
    }
    const float scale = scale_of(td_num_bits(max), &inverse);

    if (threadIdx.x % 32 == 0)
        act.scale[(size_t)t * act.n_leaves + leaf] = scale;
    return inverse;
}

/* The lane's value of tile `at`. */
template <enum td_cuda_act A>
__device__ void store(const struct td_cuda_acts &act, uint32_t t, uint32_t at, float v,
                      float inverse)
{
    const uint32_t lane = threadIdx.x % 32;
    const size_t tile = (size_t)t * act.n_tiles + at, to = tile * TD_TILE_COLS + lane;

    if (A == TD_CUDA_PLAIN) {
        ((float *)act.x)[to] = v;
    } else if (A == TD_CUDA_BF16) {
        ((uint16_t *)act.x)[to] = td_num_to_bf16(v);
    } else {
        const uint16_t h = td_num_to_f16(v * inverse);
        float sum = td_num_f16(h);

        ((uint16_t *)act.x)[to] = h;
        if (!act.sums)
            return;
        for (uint32_t mask = 16; mask; mask >>= 1)
            sum = sum + td_num_xor(sum, mask);
        if (lane == 0)
            act.sums[tile] = sum * 0x1p-24f;
    }
}

/* One leaf of one token, by a warp; a lane has one column of every tile. */
template <enum td_cuda_act A>
__device__ void prepare_leaf(const struct source &src, const struct td_cuda_acts &act,
                             const float *x, float factor, uint32_t t, uint32_t leaf)
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
        inverse = store_scale(act, t, leaf, max);
    }
    for (uint32_t i = begin; i < act.leaf_end[leaf]; i++)
        store<A>(act, t, i,
                 lane < act.tile[i].n ? value_of(src, x, factor, act.tile[i].first + lane) : 0.0f,
                 inverse);
}

/* What a row is multiplied with, from the thread's squares; all threads. */
__device__ float factor_of(const struct source &src, uint32_t t, float squares, float *scratch)
{
    float factor = 1.0f;

    if (src.has_factor) {
        factor = src.factor[t];
    } else if (src.norm) {
        factor = 1.0f / sqrtf(td_num_block_sum(squares, scratch) / (float)src.n_cols + src.eps);
        if (threadIdx.x == 0)
            src.factor[t] = factor;
    }
    return factor;
}

/* One block a token. */
template <enum td_cuda_act A>
__global__ void __launch_bounds__(PREPARE_THREADS)
    prepare(const __grid_constant__ struct source src, const struct td_cuda_acts act)
{
    td_num_await_earlier();
    __shared__ float scratch[32];
    const uint32_t t = blockIdx.x;
    float *x = src.x + (size_t)(src.rows ? src.rows[t] : t) * src.n_cols;
    float squares = 0.0f;

    for (uint32_t c = threadIdx.x; c < src.n_cols; c += PREPARE_THREADS) {
        if (src.add)
            x[c] = x[c] + src.add[(size_t)t * src.n_cols + c];
        squares = fmaf(x[c], x[c], squares);
    }
    const float factor = factor_of(src, t, squares, scratch);

    __syncthreads();
    for (uint32_t leaf = threadIdx.x / 32; leaf < act.n_leaves; leaf += PREPARE_WARPS)
        prepare_leaf<A>(src, act, x, factor, t, leaf);
}

/* One block a token, of up to PREPARE_WARPS leaves of up to R tiles: everything is read once, at once. */
template <enum td_cuda_act A, uint32_t R>
__global__ void __launch_bounds__(PREPARE_THREADS)
    prepare_few(const __grid_constant__ struct source src, const struct td_cuda_acts act)
{
    td_num_await_earlier();
    __shared__ float scratch[32];
    const uint32_t t = blockIdx.x, lane = threadIdx.x % 32, leaf = threadIdx.x / 32;
    const bool is_there = leaf < act.n_leaves;
    const uint32_t tile = is_there && leaf ? src.tile_end[leaf - 1] : 0;
    const uint32_t n_tiles = is_there ? src.tile_end[leaf] - tile : 0;
    const uint32_t first = is_there && leaf ? src.column_end[leaf - 1] : 0;
    const uint32_t n = is_there ? src.column_end[leaf] - first : 0;
    float *x = src.x + (size_t)(src.rows ? src.rows[t] : t) * src.n_cols + first;
    float v[R], norm[R], squares = 0.0f, inverse = 1.0f;

#pragma unroll
    for (uint32_t i = 0; i < R; i++)
        v[i] = 32 * i + lane < n ? x[32 * i + lane] : 0.0f;
    if (src.norm) {
#pragma unroll
        for (uint32_t i = 0; i < R; i++)
            norm[i] = 32 * i + lane < n ? src.norm[first + 32 * i + lane] : 0.0f;
    }
    if (src.add) {
        const float *add = src.add + (size_t)t * src.n_cols + first;

#pragma unroll
        for (uint32_t i = 0; i < R; i++)
            v[i] = 32 * i + lane < n ? v[i] + add[32 * i + lane] : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < R; i++)
            if (32 * i + lane < n)
                x[32 * i + lane] = v[i];
    }
    if (src.norm) {
#pragma unroll
        for (uint32_t i = 0; i < R; i++)
            squares = fmaf(v[i], v[i], squares);
        const float factor = factor_of(src, t, squares, scratch);

#pragma unroll
        for (uint32_t i = 0; i < R; i++)
            v[i] = v[i] * factor * norm[i];
    }
    if (!is_there)
        return;
    if (A == TD_CUDA_F16) {
        uint32_t max = 0;

#pragma unroll
        for (uint32_t i = 0; i < R; i++) {
            const uint32_t bits = td_num_f32_bits(fabsf(v[i]));

            max = bits > max ? bits : max;
        }
        inverse = store_scale(act, t, leaf, max);
    }
#pragma unroll
    for (uint32_t i = 0; i < R; i++)
        if (i < n_tiles)
            store<A>(act, t, tile + i, v[i], inverse);
}

/* ---- the host's part ---- */

/* Where everything lies from `base` on; returns its bytes. */
size_t lay_out(struct td_cuda_actset *set, uint32_t n, uint8_t *base, float **factor)
{
    size_t at = td_cuda_align(n * sizeof(float));

    *factor = (float *)base;
    for (uint32_t i = 0; i < set->n; i++) {
        struct td_cuda_acts *a = &set->item[i].acts;
        const enum td_cuda_act form = set->item[i].form;
        const size_t tiles = (size_t)n * a->n_tiles;

        a->x = base + at;
        at += td_cuda_align(tiles * TD_TILE_COLS * (form == TD_CUDA_PLAIN ? 4 : 2));
        if (form != TD_CUDA_F16)
            continue;
        a->scale = (float *)(base + at);
        at += td_cuda_align((size_t)n * a->n_leaves * sizeof(float));
        if (!set->item[i].mins)
            continue;
        a->sums = (float *)(base + at);
        at += td_cuda_align(tiles * sizeof(float));
    }
    return at;
}

template <enum td_cuda_act A>
void launch_as(struct td_cuda *cuda, const struct source &src, const struct td_cuda_acts &act,
               uint32_t n, uint32_t longest)
{
    const dim3 threads(PREPARE_THREADS);

    if (act.n_leaves > PREPARE_WARPS || longest > 32)
        td_cuda_launch(cuda, prepare<A>, dim3(n), threads, 0, src, act);
    else if (longest > 8)
        td_cuda_launch(cuda, prepare_few<A, 32>, dim3(n), threads, 0, src, act);
    else
        td_cuda_launch(cuda, prepare_few<A, 8>, dim3(n), threads, 0, src, act);
}

void launch_prepare(struct td_cuda *cuda, enum td_cuda_act form, struct source src,
                    const struct td_cuda_matrix *m, const struct td_cuda_acts &act, uint32_t n)
{
    uint32_t longest = 0, begin = 0;

    for (uint32_t leaf = 0; leaf < act.n_leaves; leaf++) {
        const uint32_t end = m->leaf_tile[leaf];

        longest = end - begin > longest ? end - begin : longest;
        begin = end;
        if (leaf < PREPARE_WARPS) {
            src.tile_end[leaf] = end;
            src.column_end[leaf] = m->head.leaf_end[leaf];
        }
    }
    if (form == TD_CUDA_PLAIN)
        launch_as<TD_CUDA_PLAIN>(cuda, src, act, n, longest);
    else if (form == TD_CUDA_BF16)
        launch_as<TD_CUDA_BF16>(cuda, src, act, n, longest);
    else
        launch_as<TD_CUDA_F16>(cuda, src, act, n, longest);
}

} // namespace

uint32_t td_cuda_acts_for(struct td_cuda_actset *set, const struct td_matrix *matrix)
{
    const struct td_cuda_matrix *m = (const struct td_cuda_matrix *)matrix;
    const enum td_cuda_act form = td_cuda_format_of(matrix->dtype).act;
    uint32_t i = 0;

    while (i < set->n && (set->item[i].form != form || !td_cuda_same_cut(set->item[i].m, m)))
        i++;
    if (i == set->n)
        set->item[set->n++] = {form,
                               m,
                               false,
                               {NULL, NULL, NULL, NULL, m->view.tile, m->view.leaf_end,
                                m->view.n_tiles, m->view.n_leaves}};
    set->item[i].mins = set->item[i].mins || td_cuda_format_of(matrix->dtype).mins;
    return i;
}

enum td_status td_cuda_acts_prepare(struct td_cuda *cuda, const struct td_kern_input *in,
                                    uint32_t n, uint32_t n_cols, struct td_cuda_actset *set,
                                    struct td_err *err)
{
    struct source src = {in->x, in->rows, in->add, in->norm, in->eps, n_cols, NULL, false, {}, {}};
    enum td_status s =
        td_cuda_reserve(cuda, &cuda->scratch, lay_out(set, n, NULL, &src.factor), err);

    if (s)
        return s;
    (void)lay_out(set, n, cuda->scratch.data, &src.factor);
    for (uint32_t i = 0; i < set->n; i++) {
        launch_prepare(cuda, set->item[i].form, src, set->item[i].m, set->item[i].acts, n);
        src.add = NULL; /* the first has done it */
        src.has_factor = src.norm != NULL;
    }
    return TD_OK;
}
