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

/* The power of two that brings `max` to 2^TOP and more, and its inverse in *inverse; 1 for what is tiny, infinite or no number. */
template <uint32_t TOP> __device__ float scale_of(uint32_t max, float *inverse)
{
    const uint32_t e = max >> 23;

    *inverse = e > TOP && e < 255 ? td_num_bits((254 + TOP - e) << 23) : 1.0f;
    return e > TOP && e < 255 ? td_num_bits((e - TOP) << 23) : 1.0f;
}

/* The scale of numbers with magnitudes up to `max`, which one lane stores at *to; returns its inverse. */
template <enum td_cuda_act A> __device__ float store_scale(uint32_t max, float *to, uint32_t lane)
{
    float inverse;
    float scale = scale_of < A == TD_CUDA_F16 ? 14 : 7 > (max, &inverse);

    if (A != TD_CUDA_F16 && max >= 0x7f800000u) /* F16 has infinities, E4M3's scale has to be one */
        scale = td_num_bits(max);
    if (lane == 0)
        *to = scale;
    return inverse;
}

__device__ uint32_t larger(uint32_t max, float v)
{
    const uint32_t bits = td_num_f32_bits(fabsf(v));

    return bits > max ? bits : max;
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
    } else if (A != TD_CUDA_F16) {
        act.x[to] = td_num_to_e4m3(v * inverse);
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

/* The lane's column of tile `at`; none is zero. */
__device__ float column_of(const struct source &src, const struct td_cuda_acts &act, const float *x,
                           float factor, uint32_t at)
{
    const uint32_t lane = threadIdx.x % 32;

    return lane < act.tile[at].n ? value_of(src, x, factor, act.tile[at].first + lane) : 0.0f;
}

/* Tiles [begin, end) of one token with a scale of their own, by a warp; a lane has one column of every tile. */
template <enum td_cuda_act A>
__device__ void prepare_tiles(const struct source &src, const struct td_cuda_acts &act,
                              const float *x, float factor, uint32_t t, uint32_t begin,
                              uint32_t end, float *scale)
{
    float inverse = 1.0f;

    if (A == TD_CUDA_F16 || A == TD_CUDA_E4M3_RUNS) {
        uint32_t max = 0;

        for (uint32_t i = begin; i < end; i++)
            max = larger(max, column_of(src, act, x, factor, i));
        inverse = store_scale<A>(td_num_warp_max(max), scale, threadIdx.x % 32);
    }
    for (uint32_t i = begin; i < end; i++)
        store<A>(act, t, i, column_of(src, act, x, factor, i), inverse);
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
    const uint32_t warp = threadIdx.x / 32;

    if (A == TD_CUDA_E4M3) {
        uint32_t max = 0;

        for (uint32_t i = warp; i < act.n_tiles; i += PREPARE_WARPS)
            max = larger(max, column_of(src, act, x, factor, i));
        const float inverse =
            store_scale<A>(td_num_block_max(max, (uint32_t *)scratch), act.scale + t, threadIdx.x);

        for (uint32_t i = warp; i < act.n_tiles; i += PREPARE_WARPS)
            store<A>(act, t, i, column_of(src, act, x, factor, i), inverse);
    } else if (A == TD_CUDA_E4M3_RUNS) {
        for (uint32_t run = warp; run < td_cuda_runs(act.n_tiles); run += PREPARE_WARPS) {
            const uint32_t begin = run * TD_CUDA_RUN_TILES, end = begin + TD_CUDA_RUN_TILES;

            prepare_tiles<A>(src, act, x, factor, t, begin, end < act.n_tiles ? end : act.n_tiles,
                             act.scale + (size_t)run * gridDim.x + t);
        }
    } else {
        for (uint32_t leaf = warp; leaf < act.n_leaves; leaf += PREPARE_WARPS)
            prepare_tiles<A>(src, act, x, factor, t, leaf ? act.leaf_end[leaf - 1] : 0,
                             act.leaf_end[leaf], act.scale + (size_t)t * act.n_leaves + leaf);
    }
}

/* One block a token, of up to PREPARE_WARPS leaves of up to R tiles: everything is read once, at once. */
template <enum td_cuda_act A, uint32_t R>
__global__ void __launch_bounds__(PREPARE_THREADS)
    prepare_few(const __grid_constant__ struct source src, const struct td_cuda_acts act)
{
    td_num_await_earlier();
    __shared__ float scratch[32];
    __shared__ uint32_t most[32];
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
    if (A == TD_CUDA_F16 || A == TD_CUDA_E4M3) {
        uint32_t max = 0;

#pragma unroll
        for (uint32_t i = 0; i < R; i++)
            max = larger(max, v[i]);
        if (A == TD_CUDA_E4M3)
            inverse = store_scale<A>(td_num_block_max(max, most), act.scale + t, threadIdx.x);
        else if (is_there)
            inverse = store_scale<A>(td_num_warp_max(max),
                                     act.scale + (size_t)t * act.n_leaves + leaf, lane);
    }
#pragma unroll
    for (uint32_t i = 0; i < R; i++) {
        if (A == TD_CUDA_E4M3_RUNS && i % TD_CUDA_RUN_TILES == 0 && i < n_tiles) {
            uint32_t max = 0;

#pragma unroll
            for (uint32_t j = i; j < i + TD_CUDA_RUN_TILES; j++)
                max = larger(max, v[j]);
            inverse = store_scale<A>(
                td_num_warp_max(max),
                act.scale + (size_t)((tile + i) / TD_CUDA_RUN_TILES) * gridDim.x + t, lane);
        }
        if (i < n_tiles)
            store<A>(act, t, tile + i, v[i], inverse);
    }
}

/* ---- the host's part ---- */

/* Where everything lies from `base` on; returns its bytes. */
size_t lay_out(struct td_cuda_actset *set, uint32_t n, uint8_t *base, float **factor)
{
    static const size_t BYTES[] = {4, 2, 2, 1, 1}; /* of a number, by form */
    size_t at = td_cuda_align(n * sizeof(float));

    *factor = (float *)base;
    for (uint32_t i = 0; i < set->n; i++) {
        struct td_cuda_acts *a = &set->item[i].acts;
        const enum td_cuda_act form = a->form;
        const size_t tiles = (size_t)n * a->n_tiles;

        const size_t n_scales = form == TD_CUDA_E4M3        ? n
                                : form == TD_CUDA_E4M3_RUNS ? (size_t)td_cuda_runs(a->n_tiles) * n
                                : form == TD_CUDA_F16       ? (size_t)n * a->n_leaves
                                                            : 0;

        a->x = base + at;
        at += td_cuda_align(tiles * TD_TILE_COLS * BYTES[form]);
        if (n_scales == 0)
            continue;
        a->scale = (float *)(base + at);
        at += td_cuda_align(n_scales * sizeof(float));
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

void launch_prepare(struct td_cuda *cuda, struct source src, const struct td_cuda_matrix *m,
                    const struct td_cuda_acts &act, uint32_t n)
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
    switch (act.form) {
#define CASE(A)                                                                                    \
    case A:                                                                                        \
        launch_as<A>(cuda, src, act, n, longest);                                                  \
        break;
        CASE(TD_CUDA_PLAIN)
        CASE(TD_CUDA_BF16)
        CASE(TD_CUDA_F16)
        CASE(TD_CUDA_E4M3)
        CASE(TD_CUDA_E4M3_RUNS)
#undef CASE
    }
}

} // namespace

uint32_t td_cuda_acts_for(struct td_cuda_actset *set, const struct td_matrix *matrix,
                          enum td_cuda_act form)
{
    const struct td_cuda_matrix *m = (const struct td_cuda_matrix *)matrix;
    uint32_t i = 0;

    while (i < set->n && (set->item[i].acts.form != form || !td_cuda_same_cut(set->item[i].m, m)))
        i++;
    if (i == set->n)
        set->item[set->n++] = {m,
                               false,
                               {NULL, NULL, NULL, NULL, m->view.tile, m->view.leaf_end,
                                m->view.n_tiles, m->view.n_leaves, form}};
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
        launch_prepare(cuda, src, set->item[i].m, set->item[i].acts, n);
        src.add = NULL; /* the first has done it */
        src.has_factor = src.norm != NULL;
    }
    return TD_OK;
}
