/* Weights on the device. A matrix is cut into groups of 16 rows and, leaf by leaf, into tiles of 32 columns; the last tile of a
 * leaf and the last group are filled up with weights of zero. Three streams hold a matrix, each group after group:
 *   tiles   per tile 32 lanes' words, as the tensor cores want them: lane 4g + t has rows g and g + 8, of each the 8 columns
 *           td_tile_column(t, 0 .. 7). With two bytes a weight [2 rows][32 lanes][8 values]; with one [32 lanes][2 rows][8 bytes];
 *           with four bits [32 lanes][2 rows] words whose nibbles p and p + 4 are values 2p and 2p + 1, and behind them the fifth
 *           bits (bits p and p + 4 of a byte; [32 lanes][2 rows]) or the upper pairs of bits (bits 2p and 8 + 2p of 16;
 *           [32 lanes][2 rows]). F32 is [32 columns][16 rows].
 *   scales  per tile and g a word for rows g (low half) and g + 8: a scale of 32 columns as F16 or, of MXFP4, as BF16; of Q4_K and
 *           Q5_K bytes {scale, minimum} each, of Q6_K {scale of the first 16 columns, of the others}.
 *   supers  per run of 128 or 256 columns and g: of F8 two F32, of Q6_K F16 {d(g), d(g + 8)}, of Q4_K and Q5_K
 *           {d(g), dmin(g), d(g + 8), dmin(g + 8)}.
 * Kept up to date with kernels/cuda/README.md. */
#ifndef TD_KERNELS_CUDA_MATRIX_CUH
#define TD_KERNELS_CUDA_MATRIX_CUH

#include "kernels/cuda/clib.h"
#include "kernels/cuda/formats.h"
#include "kernels/cuda/num.cuh"

/* How a type wants its activations: F32; BF16; F16 with a power of two per leaf that puts its largest magnitude at 2^14. */
enum td_cuda_act { TD_CUDA_PLAIN, TD_CUDA_BF16, TD_CUDA_F16, TD_CUDA_ACTS };

struct td_cuda_format {
    enum td_cuda_act act;
    uint32_t tile_bytes;
    uint32_t scale_bytes; /* of a tile */
    uint32_t super_tiles; /* 0: none */
    uint32_t super_bytes;
    bool halves; /* the two products of a tile take 16 columns each */
    bool mins;
};

/* tile_bytes 0: not a type of this device. */
__host__ __device__ constexpr struct td_cuda_format td_cuda_format_of(enum td_dtype dtype)
{
    switch (dtype) {
#define X(type, act, tile, scale, super_tiles, super, halves, mins)                                \
    case type:                                                                                     \
        return {act, tile, scale, super_tiles, super, halves, mins};
        TD_CUDA_FORMATS(X)
#undef X
    default:
        return {TD_CUDA_PLAIN, 0, 0, 0, 0, false, false};
    }
}

/* Columns [first, first + n) of the slice that a tile holds; past them are zeros. */
struct td_cuda_tile {
    uint32_t first, n;
};

/* A matrix as kernels see it; all pointers are the device's. */
struct td_cuda_weights {
    uint8_t *tiles, *scales, *supers; /* NULL where the type has none */
    const struct td_cuda_tile *tile;  /* [n_tiles] */
    const uint32_t *leaf_end;         /* [n_leaves] in tiles */
    uint32_t n_rows, n_cols, n_tiles, n_supers, n_leaves, n_parts;
    uint32_t part_begin[TD_KERN_MAX_PARTS + 1];
};

__host__ __device__ static inline uint32_t td_cuda_groups(uint32_t n_rows)
{
    return (n_rows + TD_TILE_ROWS - 1) / TD_TILE_ROWS;
}

/* The column inside its tile of value i (0 .. 7) of lanes 4g + t. */
__host__ __device__ static inline uint32_t td_tile_column(bool halves, uint32_t t, uint32_t i)
{
    return halves ? 16 * (i / 4) + 4 * t + i % 4 : 8 * t + i;
}

/* ---- words into numbers ---- */

/* One lane's 8 values of one row as four pairs of F16 (of BF16: of BF16), before any scale. `half` is 0 for row g, 1 for
 * row g + 8. */
template <enum td_dtype T>
__device__ __forceinline__ void td_tile_pairs(const uint8_t *tile, uint32_t lane, uint32_t half,
                                              uint32_t pair[4])
{
    if (T == TD_F16 || T == TD_BF16) {
        const uint4 w = *(const uint4 *)(tile + half * 512 + lane * 16);

        pair[0] = w.x;
        pair[1] = w.y;
        pair[2] = w.z;
        pair[3] = w.w;
    } else if (T == TD_Q8_0 || T == TD_F8_E4M3) {
        const uint2 w = *(const uint2 *)(tile + lane * 16 + half * 8);
        const uint32_t words[2] = {w.x, w.y};

        for (uint32_t i = 0; i < 4; i++) {
            uint32_t word = words[i / 2];

            if (T == TD_F8_E4M3) /* exact */
                pair[i] = td_num_e4m3x2(i % 2 ? word >> 16 : word & 0xffffu);
            else /* 1024 + byte, as F16 has it, less 1024 + 128 */
                pair[i] = td_num_sub2(td_num_bytes(word, 0x64646464u, i % 2 ? 0x4342u : 0x4140u),
                                      0x64806480u);
        }
    } else {
        const uint32_t word = *(const uint32_t *)(tile + lane * 8 + half * 4);
        uint32_t more = 0;

        if (T == TD_Q5_K)
            more = tile[256 + lane * 2 + half];
        if (T == TD_Q6_K)
            more = *(const uint16_t *)(tile + 256 + lane * 4 + half * 2);
        for (uint32_t p = 0; p < 4; p++) {
            uint32_t v = word >> (4 * p) & 0x000f000fu;

            if (T == TD_Q5_K)
                v |= (more >> p & 1u) << 4 | (more >> (p + 4) & 1u) << 20;
            if (T == TD_Q6_K)
                v |= (more >> (2 * p) & 3u) << 4 | (more >> (8 + 2 * p) & 3u) << 20;
            if (T == TD_MXFP4) /* E2M1's bits as F16 are the value times 2^-14 */
                pair[p] =
                    td_num_mul2((v & 0x00070007u) << 9 | (v & 0x00080008u) << 12, 0x74007400u);
            else
                pair[p] = td_num_sub2(v | 0x64006400u, T == TD_Q4_0   ? 0x64086408u
                                                       : T == TD_Q6_K ? 0x64206420u
                                                                      : 0x64006400u);
        }
    }
}

/* Of one row and one product of a tile: value = number * scale - min. */
struct td_tile_scale {
    float scale, min;
};

/* Of row g or g + 8 (`half`), for product j (0, 1) of the tile. `scales` and `supers` are the tile's and its run's. */
template <enum td_dtype T>
__device__ __forceinline__ struct td_tile_scale td_tile_scale_of(const uint8_t *scales,
                                                                 const uint8_t *supers, uint32_t g,
                                                                 uint32_t half, uint32_t j)
{
    if (T == TD_Q8_0 || T == TD_Q4_0)
        return {td_num_f16(*(const uint16_t *)(scales + g * 4 + half * 2)), 0.0f};
    if (T == TD_MXFP4)
        return {td_num_bf16(*(const uint16_t *)(scales + g * 4 + half * 2)), 0.0f};
    if (T == TD_F8_E4M3)
        return {*(const float *)(supers + g * 8 + half * 4), 0.0f};
    if (T == TD_Q6_K) {
        const float d = td_num_f16(*(const uint16_t *)(supers + g * 4 + half * 2));

        return {d * (float)(int8_t)scales[g * 4 + half * 2 + j], 0.0f};
    }
    if (T == TD_Q4_K || T == TD_Q5_K) {
        const float d = td_num_f16(*(const uint16_t *)(supers + g * 8 + half * 4));
        const float dmin = td_num_f16(*(const uint16_t *)(supers + g * 8 + half * 4 + 2));

        return {d * (float)scales[g * 4 + half * 2], dmin * (float)scales[g * 4 + half * 2 + 1]};
    }
    return {1.0f, 0.0f};
}

#endif
