/* Weights on the device. A matrix is cut into groups of 16 rows and, leaf by leaf, into tiles of 32 columns; the last tile of a
 * leaf and the last group are filled up with weights of zero. Three streams hold a matrix, each group after group:
 *   tiles   per tile 32 lanes' words, as the tensor cores want them: lane 4g + t has rows g and g + 8, of each the 8 columns
 *           td_tile_column(t, 0 .. 7). With two bytes a weight [2 rows][32 lanes][8 values]; with one [32 lanes][2 rows][8 bytes];
 *           with four bits [32 lanes][2 rows] words whose nibbles p and p + 4 are values 2p and 2p + 1, and behind them the fifth
 *           bits (bits p and p + 4 of a byte; [32 lanes][2 rows]) or the upper pairs of bits (bits 2p and 8 + 2p of 16;
 *           [32 lanes][2 rows]). MXFP4's word has value 2p in its lower half and 2p + 1 in the upper one: three bits of magnitude from
 *           9, 6, 3, 0 on, the sign at 15, 12, 14, 13. F32 is [32 columns][16 rows].
 *   scales  per tile and g a word for rows g (low half) and g + 8: a scale of 32 columns as F16 or, of MXFP4, as BF16 (INT4: behind all
 *           of them, per g, the two zeros as bytes); of Q4_K and Q5_K bytes {scale, minimum} each, of Q6_K {scale of the first 16 columns, of the others}.
 *   supers  per run of 128 or 256 columns and g: of F8 two F32, of Q6_K F16 {d(g), d(g + 8)}, of Q4_K and Q5_K
 *           {d(g), dmin(g), d(g + 8), dmin(g + 8)}.
 * Kept up to date with kernels/cuda/README.md. */
#ifndef TD_KERNELS_CUDA_MATRIX_CUH
#define TD_KERNELS_CUDA_MATRIX_CUH

#include "kernels/cuda/clib.h"
#include "kernels/cuda/formats.h"
#include "kernels/cuda/num.cuh"

/* How a type wants its activations: F32; BF16; F16 with a power of two per leaf that puts its largest magnitude at 2^14; E4M3 with one
 * per row, or per run of TD_CUDA_RUN_TILES tiles, that puts it at 2^7. */
enum td_cuda_act { TD_CUDA_PLAIN, TD_CUDA_BF16, TD_CUDA_F16, TD_CUDA_E4M3, TD_CUDA_E4M3_RUNS };
enum { TD_CUDA_RUN_TILES = 4 }; /* 128 columns, as many as F8_E4M3 has under one scale */

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

/* What one lane has of a tile, as it lies there: rows g and g + 8. */
template <enum td_dtype T> struct td_tile_words {
    static constexpr uint32_t BYTES = td_cuda_format_of(T).tile_bytes;
    static constexpr uint32_t N = BYTES == 1024 ? 4 : BYTES == 512 ? 2 : 1; /* words of a row */
    uint32_t w[2 * N];
    uint32_t
        more; /* of both rows: Q5_K a byte each, Q6_K 16 bits each; INT4 their zeros, a byte each */
    uint32_t scales;
};

/* `scales` is the tile's, NULL where it has none. */
template <enum td_dtype T>
__device__ __forceinline__ void td_tile_load(const uint8_t *tile, const uint8_t *scales,
                                             uint32_t lane, struct td_tile_words<T> *to)
{
    if constexpr (td_tile_words<T>::N == 4) {
        const uint4 low = *(const uint4 *)(tile + lane * 16);
        const uint4 high = *(const uint4 *)(tile + 512 + lane * 16);

        to->w[0] = low.x;
        to->w[1] = low.y;
        to->w[2] = low.z;
        to->w[3] = low.w;
        to->w[4] = high.x;
        to->w[5] = high.y;
        to->w[6] = high.z;
        to->w[7] = high.w;
    } else if constexpr (td_tile_words<T>::N == 2) {
        const uint4 both = *(const uint4 *)(tile + lane * 16);

        to->w[0] = both.x;
        to->w[1] = both.y;
        to->w[2] = both.z;
        to->w[3] = both.w;
    } else {
        const uint2 both = *(const uint2 *)(tile + lane * 8);

        to->w[0] = both.x;
        to->w[1] = both.y;
        if (T == TD_Q5_K)
            to->more = *(const uint16_t *)(tile + 256 + lane * 2);
        if (T == TD_Q6_K)
            to->more = *(const uint32_t *)(tile + 256 + lane * 4);
    }
    if (T == TD_INT4)
        to->more = *(const uint16_t *)(scales + 32 + lane / 4 * 2);
    if (td_cuda_format_of(T).scale_bytes)
        to->scales = *(const uint32_t *)(scales + lane / 4 * 4);
}

/* Numbers of a tile are so many times too small: bits that are a small F16 as they lie need no arithmetic to become one. What sums of
 * them are multiplied with, once for a leaf. */
template <enum td_dtype T> __host__ __device__ constexpr float td_tile_unit(void)
{
    return T == TD_Q4_K || T == TD_Q5_K ? 16777216.0f : T == TD_MXFP4 ? 16384.0f : 1.0f;
}

/* One lane's 8 numbers of one row as four pairs of F16 (of BF16: of BF16), before any scale, in the tile's unit. `half` is 0 for row g, 1
 * for row g + 8. */
template <enum td_dtype T>
__device__ __forceinline__ void td_tile_pairs(const struct td_tile_words<T> &from, uint32_t half,
                                              uint32_t pair[4])
{
    const uint32_t *w = from.w + half * td_tile_words<T>::N;

    if constexpr (T == TD_F16 || T == TD_BF16) {
        for (uint32_t i = 0; i < 4; i++)
            pair[i] = w[i];
    } else if constexpr (T == TD_F8_E4M3) {
        for (uint32_t i = 0; i < 4; i++) /* exact */
            pair[i] = td_num_e4m3x2(i % 2 ? w[i / 2] >> 16 : w[i / 2] & 0xffffu);
    } else if constexpr (T == TD_Q8_0) {
        for (uint32_t i = 0; i < 4; i++) /* 1024 + byte, as F16 has it, less 1024 + 128 */
            pair[i] = td_num_sub2(td_num_bytes(w[i / 2], 0x64646464u, i % 2 ? 0x4342u : 0x4140u),
                                  0x64806480u);
    } else if constexpr (T == TD_MXFP4) { /* E2M1's bits as F16 are the value times 2^-14 */
        const uint32_t by3 = w[0] << 3;

        pair[0] = w[0] & 0x8e008e00u;
        pair[1] = by3 & 0x8e008e00u;
        pair[2] = td_num_pick(w[0] << 1, 0x80008000u, by3 << 3 & 0x0e000e00u);
        pair[3] = td_num_pick(w[0] << 2, 0x80008000u, w[0] << 9 & 0x0e000e00u);
    } else {
        /* A whole number's bits as F16 are the number times 2^-24; with 1024 above them, 1024 more. */
        const uint32_t mine = T == TD_Q5_K || T == TD_INT4 ? from.more >> (8 * half) & 0xffu
                              : T == TD_Q6_K               ? from.more >> (16 * half) & 0xffffu
                                                           : 0;
        const uint32_t more = T == TD_Q5_K ? mine << 4 | mine << 16 : mine << 4 | mine << 12;
        const uint32_t above = T == TD_Q4_0 || T == TD_INT4 || T == TD_Q6_K ? 0x64006400u : 0;
        const uint32_t less = T == TD_Q4_0   ? 0x64086408u
                              : T == TD_INT4 ? 0x64006400u + mine * 0x10001u
                                             : 0x64206420u;

        for (uint32_t p = 0; p < 4; p++) {
            pair[p] = td_num_pick(w[0] >> (4 * p), 0x000f000fu, above);
            if (T == TD_Q5_K)
                pair[p] = td_num_pick(more >> p, 0x00100010u, pair[p]);
            if (T == TD_Q6_K)
                pair[p] = td_num_pick(more >> (2 * p), 0x00300030u, pair[p]);
            if (above)
                pair[p] = td_num_sub2(pair[p], less);
        }
    }
}

/* What a run of tiles has for rows g and g + 8: scales, and minima where the type has them. */
template <enum td_dtype T> struct td_tile_super {
    float scale[2], min[2];
};

template <enum td_dtype T>
__device__ __forceinline__ void td_tile_load_super(const uint8_t *super, uint32_t lane,
                                                   struct td_tile_super<T> *to)
{
    const uint32_t g = lane / 4;

    if constexpr (T == TD_F8_E4M3) {
        const uint2 both = *(const uint2 *)(super + g * 8);

        to->scale[0] = td_num_bits(both.x);
        to->scale[1] = td_num_bits(both.y);
    } else if constexpr (T == TD_Q6_K) {
        const uint32_t both = *(const uint32_t *)(super + g * 4);

        to->scale[0] = td_num_f16((uint16_t)both);
        to->scale[1] = td_num_f16((uint16_t)(both >> 16));
    } else if constexpr (td_cuda_format_of(T).mins) {
        const uint2 both = *(const uint2 *)(super + g * 8);

        to->scale[0] = td_num_f16((uint16_t)both.x);
        to->min[0] = td_num_f16((uint16_t)(both.x >> 16));
        to->scale[1] = td_num_f16((uint16_t)both.y);
        to->min[1] = td_num_f16((uint16_t)(both.y >> 16));
    }
}

/* Of one row and one product of a tile: value = number * scale - min. */
struct td_tile_scale {
    float scale, min;
};

/* v times byte i of `bytes` (0 .. 255): exact where v has 16 bits, since (2^23 + byte) * v - 2^23 * v is rounded once. */
__device__ __forceinline__ float td_tile_times(float v, uint32_t bytes, uint32_t i)
{
    return fmaf(td_num_bits(td_num_bytes(bytes, 0x4b000000u, 0x7440u | i)), v, v * -8388608.0f);
}

/* Of row g or g + 8 (`half`), for product j (0, 1) of the tile. */
template <enum td_dtype T>
__device__ __forceinline__ struct td_tile_scale
td_tile_scale_of(const struct td_tile_words<T> &w, const struct td_tile_super<T> &super,
                 uint32_t half, uint32_t j)
{
    if (T == TD_Q8_0 || T == TD_Q4_0 || T == TD_INT4)
        return {td_num_f16((uint16_t)(w.scales >> (16 * half))), 0.0f};
    if (T == TD_MXFP4)
        return {td_num_bf16((uint16_t)(w.scales >> (16 * half))), 0.0f};
    if (T == TD_F8_E4M3)
        return {super.scale[half], 0.0f};
    if (T == TD_Q6_K) /* with its sign */
        return {super.scale[half] * (float)(int8_t)(w.scales >> (16 * half + 8 * j)), 0.0f};
    if (td_cuda_format_of(T).mins)
        return {td_tile_times(super.scale[half], w.scales, 2 * half),
                td_tile_times(super.min[half], w.scales, 2 * half + 1)};
    return {1.0f, 0.0f};
}

#endif
