/* What the kernels of a linear step share: one product, and a tile of its matrix times 8 tokens on the tensor cores. Whichever kernel
 * takes them, a leaf's tiles come in one order, so all give the same bits. */
#ifndef TD_KERNELS_CUDA_PRODUCTS_CUH
#define TD_KERNELS_CUDA_PRODUCTS_CUH

#include "kernels/cuda/acts.cuh"

struct td_cuda_product {
    struct td_cuda_weights m, gate; /* gate.tiles NULL: none */
    struct td_cuda_acts acts, gate_acts;
    const float
        *gates; /* [n x n_rows] the gate's product, where it was made before; NULL: it was not */
    float *out; /* [n_parts x n x n_rows] */
    uint32_t n;
    const uint32_t *part_tile; /* the host's: of td_cuda_matrix */
};

/* A tile as one lane has it: rows g and g + 8, with their scales for each of its two products. */
template <enum td_dtype T> struct td_cuda_fragment {
    uint32_t low[4], high[4];
    struct td_tile_scale scale[2][2]; /* [product][row]; only the second where it is for both */
};

/* Tile u behind `at`: all u have one address, and an offset that is known when they are compiled. */
template <enum td_dtype T>
__device__ __forceinline__ void td_cuda_load_words(const struct td_cuda_weights &m, uint32_t group,
                                                   uint32_t at, uint32_t u,
                                                   struct td_tile_words<T> *to)
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const size_t number = (size_t)group * m.n_tiles + at;

    td_tile_load<T>(m.tiles + number * F.tile_bytes + u * F.tile_bytes,
                    m.scales + number * F.scale_bytes + u * F.scale_bytes, threadIdx.x % 32, to);
}

/* Of the run that tile `at` is in. */
template <enum td_dtype T>
__device__ __forceinline__ void td_cuda_load_super(const struct td_cuda_weights &m, uint32_t group,
                                                   uint32_t at, struct td_tile_super<T> *to)
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);

    if constexpr (F.super_tiles != 0)
        td_tile_load_super<T>(m.supers +
                                  ((size_t)group * m.n_supers + at / F.super_tiles) * F.super_bytes,
                              threadIdx.x % 32, to);
}

template <enum td_dtype T>
__device__ __forceinline__ void td_cuda_unpack(const struct td_tile_words<T> &words,
                                               const struct td_tile_super<T> &super,
                                               struct td_cuda_fragment<T> *to)
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);

    td_tile_pairs<T>(words, 0, to->low);
    td_tile_pairs<T>(words, 1, to->high);
    if (F.scale_bytes || F.super_bytes)
        for (uint32_t j = F.halves ? 0 : 1; j < 2; j++)
            for (uint32_t row = 0; row < 2; row++)
                to->scale[j][row] = td_tile_scale_of<T>(words, super, row, j);
}

template <enum td_dtype T>
__device__ __forceinline__ void td_cuda_load_tile(const struct td_cuda_weights &m, uint32_t group,
                                                  uint32_t at, struct td_cuda_fragment<T> *to)
{
    struct td_tile_words<T> words;
    struct td_tile_super<T> super;

    td_cuda_load_words<T>(m, group, at, 0, &words);
    td_cuda_load_super<T>(m, group, at, &super);
    td_cuda_unpack<T>(words, super, to);
}

/* A lane's words of one token's 32 numbers. */
template <enum td_dtype T>
__device__ __forceinline__ void td_cuda_load_token(const uint16_t *x, uint32_t b[4])
{
    const uint32_t t = threadIdx.x % 4;

    if (td_cuda_format_of(T).halves) {
        const uint2 first = *(const uint2 *)(x + 4 * t), second = *(const uint2 *)(x + 16 + 4 * t);

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

/* c [rows g, g + 8 x tokens 2t, 2t + 1] += the tile times 8 tokens; `sums` of the two tokens' numbers, where the type has minima. */
template <enum td_dtype T>
__device__ __forceinline__ void td_cuda_add_tile(const struct td_cuda_fragment<T> &w,
                                                 const uint32_t b[4], const float sums[2],
                                                 float c[4])
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    float dot[4] = {0.0f, 0.0f, 0.0f, 0.0f};

    for (uint32_t j = 0; j < 2; j++) {
        const uint32_t a[4] = {w.low[2 * j], w.high[2 * j], w.low[2 * j + 1], w.high[2 * j + 1]};

        if (F.scale_bytes == 0 && F.super_bytes == 0) {
            if (T == TD_BF16)
                td_num_mma_bf16(c, a, b + 2 * j);
            else
                td_num_mma_f16(c, a, b + 2 * j);
            continue;
        }
        td_num_mma_f16(dot, a, b + 2 * j);
        if (j == 0 && !F.halves)
            continue;
        for (uint32_t i = 0; i < 4; i++) {
            c[i] = fmaf(dot[i], w.scale[j][i / 2].scale, c[i]);
            dot[i] = 0.0f;
        }
    }
    if (F.mins)
        for (uint32_t i = 0; i < 4; i++)
            c[i] = fmaf(-w.scale[1][i / 2].min, sums[i % 2], c[i]);
}

/* A leaf's sum of a token, of which `sum` is the numbers' alone. */
template <enum td_dtype T>
__device__ __forceinline__ float td_cuda_leaf_sum(const struct td_cuda_acts &acts, uint32_t token,
                                                  uint32_t leaf, float sum)
{
    if (td_tile_unit<T>() != 1.0f) /* by itself: both together may be too large */
        sum = sum * td_tile_unit<T>();
    return acts.scale ? sum * acts.scale[(size_t)token * acts.n_leaves + leaf] : sum;
}

enum { TD_CUDA_FEW_TOKENS = 16 }; /* up to which a block takes 16 rows of a matrix */

/* Some tokens at once; as td_cuda_multiply_many, of up to 4 products with the same tokens. */
bool td_cuda_multiply_some(struct td_cuda *cuda, enum td_dtype type,
                           const struct td_cuda_product *products, uint32_t n);

/* Many tokens at once, of every type but F32. False: nothing was enqueued, because another way suits the shape or the device
 * better. p->gate is not there. */
bool td_cuda_multiply_many(struct td_cuda *cuda, enum td_dtype type,
                           const struct td_cuda_product *p);

#endif
