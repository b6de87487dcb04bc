/* Rows of activations into the forms that products read, with what a step does to them on the way: a sum, a norm. */
#include "kernels/cuda/acts.cuh"

namespace
{

enum { PREPARE_THREADS = 512 }; /* a warp for each leaf of most matrices */

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
    prepare(const struct source src, const struct td_cuda_acts act)
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
        a->sums = (float *)(base + at);
        at += td_cuda_align(tiles * sizeof(float));
    }
    return at;
}

void launch_prepare(struct td_cuda *cuda, enum td_cuda_act form, const struct source *src,
                    const struct td_cuda_acts *act, uint32_t n)
{
    if (form == TD_CUDA_PLAIN)
        td_cuda_launch(cuda, prepare<TD_CUDA_PLAIN>, dim3(n), dim3(PREPARE_THREADS), 0, *src, *act);
    else if (form == TD_CUDA_BF16)
        td_cuda_launch(cuda, prepare<TD_CUDA_BF16>, dim3(n), dim3(PREPARE_THREADS), 0, *src, *act);
    else
        td_cuda_launch(cuda, prepare<TD_CUDA_F16>, dim3(n), dim3(PREPARE_THREADS), 0, *src, *act);
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
                               {NULL, NULL, NULL, NULL, m->view.tile, m->view.leaf_end,
                                m->view.n_tiles, m->view.n_leaves}};
    return i;
}

enum td_status td_cuda_acts_prepare(struct td_cuda *cuda, const struct td_kern_input *in,
                                    uint32_t n, uint32_t n_cols, struct td_cuda_actset *set,
                                    struct td_err *err)
{
    struct source src = {in->x, in->rows, in->add, in->norm, in->eps, n_cols, NULL, false};
    enum td_status s =
        td_cuda_reserve(cuda, &cuda->scratch, lay_out(set, n, NULL, &src.factor), err);

    if (s)
        return s;
    (void)lay_out(set, n, cuda->scratch.data, &src.factor);
    for (uint32_t i = 0; i < set->n; i++) {
        launch_prepare(cuda, set->item[i].form, &src, &set->item[i].acts, n);
        src.add = NULL; /* the first has done it */
        src.has_factor = src.norm != NULL;
    }
    return TD_OK;
}
