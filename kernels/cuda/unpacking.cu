/* Tiles back into rows, in 16 bits or as bytes with their scales. */
#include "kernels/cuda/libproducts.cuh"

namespace
{

enum { THREADS = 256, WARPS = THREADS / 32 };

/* A warp a tile. */
template <enum td_dtype T>
__global__ void __launch_bounds__(THREADS) unpack(const struct td_cuda_weights m, uint32_t group0,
                                                  uint32_t tile0, uint32_t n_tiles, uint16_t *out)
{
    td_num_await_earlier();
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t at = blockIdx.y * WARPS + threadIdx.x / 32;
    struct td_cuda_fragment<T> w;

    if (at >= n_tiles)
        return;
    td_cuda_load_tile<T>(m, group0 + blockIdx.x, tile0 + at, &w);
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t pair[4];
        uint16_t *to = out +
                       ((size_t)blockIdx.x * TD_TILE_ROWS + g + 8 * half) * n_tiles * TD_TILE_COLS +
                       at * TD_TILE_COLS;

        for (uint32_t i = 0; i < 4; i++)
            pair[i] = half ? w.high[i] : w.low[i];
        if (F.scale_bytes || F.super_bytes)
            for (uint32_t i = 0; i < 4; i++) {
                const struct td_tile_scale s = w.scale[F.halves ? i / 2 : 1][half];
                const float unit = td_tile_unit<T>();
                const float a = td_num_f16((uint16_t)pair[i]) * unit * s.scale - s.min;
                const float b = td_num_f16((uint16_t)(pair[i] >> 16)) * unit * s.scale - s.min;

                pair[i] = td_num_to_f16(a) | (uint32_t)td_num_to_f16(b) << 16;
            }
        if (F.halves) {
            *(uint2 *)(to + 4 * t) = {pair[0], pair[1]};
            *(uint2 *)(to + 16 + 4 * t) = {pair[2], pair[3]};
        } else {
            *(uint4 *)(to + 8 * t) = {pair[0], pair[1], pair[2], pair[3]};
        }
    }
}

/* The scale of rows g and g + 8 of a group in the run of tile `at`. */
__device__ struct td_tile_super<TD_F8_E4M3> scales_of(const struct td_cuda_weights &m,
                                                      uint32_t group, uint32_t at, uint32_t g) {
    constexpr struct td_cuda_format F = td_cuda_format_of(TD_F8_E4M3);
    struct td_tile_super<TD_F8_E4M3> scales;

    td_tile_load_super<TD_F8_E4M3>(m.supers + ((size_t)group * m.n_supers + at / F.super_tiles) *
                                                  F.super_bytes,
                                   4 * g, &scales);
    return scales;
}

/* A warp a tile; the warp of the first tile of a run has its scales, too. */
__global__ void
__launch_bounds__(THREADS)
    unpack_bytes(const struct td_cuda_weights m, uint32_t group0, uint32_t tile0, uint32_t n_tiles,
                 bool by_block, uint8_t *out, float *scales)
{
    td_num_await_earlier();
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t at = blockIdx.y * WARPS + threadIdx.x / 32, row = blockIdx.x * TD_TILE_ROWS + g;
    struct td_tile_words<TD_F8_E4M3> words;

    if (at >= n_tiles)
        return;
    td_cuda_load_words<TD_F8_E4M3>(m, group0 + blockIdx.x, tile0 + at, 0, &words);
    for (uint32_t half = 0; half < 2; half++)
        *(uint2 *)(out + ((size_t)(row + 8 * half) * n_tiles + at) * TD_TILE_COLS +
                   8 * t) = {words.w[2 * half], words.w[2 * half + 1]};
    if (t)
        return;
    const struct td_tile_super<TD_F8_E4M3> s = scales_of(m, group0 + blockIdx.x, tile0 + at, g);

    if (by_block && row % 128 == 0 && at % TD_CUDA_RUN_TILES == 0)
        scales[(size_t)(row / 128) * ((td_cuda_runs(n_tiles) + 3) / 4 * 4) +
               at / TD_CUDA_RUN_TILES] = s.scale[0];
    if (!by_block && at == 0) {
        scales[row] = s.scale[0];
        scales[row + 8] = s.scale[1];
    }
}

template <enum td_dtype T>
void launch(struct td_cuda *cuda, dim3 grid, const struct td_cuda_weights &m, uint32_t group0,
            uint32_t tile0, uint32_t n_tiles, uint16_t *out)
{
    if constexpr (T != TD_F32)
        td_cuda_launch(cuda, unpack<T>, grid, dim3(THREADS), 0, m, group0, tile0, n_tiles, out);
}

dim3 grid_of(uint32_t n_groups, uint32_t n_tiles)
{
    return dim3(n_groups, (n_tiles + WARPS - 1) / WARPS);
}

} // namespace

void td_cuda_unpack_rows(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_weights &m,
                         uint32_t group0, uint32_t n_groups, uint32_t tile0, uint32_t n_tiles,
                         uint16_t *out)
{
    switch (type) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        launch<T>(cuda, grid_of(n_groups, n_tiles), m, group0, tile0, n_tiles, out);               \
        break;
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        break;
    }
}

void td_cuda_unpack_bytes(struct td_cuda *cuda, const struct td_cuda_weights &m, uint32_t group0,
                          uint32_t n_groups, uint32_t tile0, uint32_t n_tiles, bool by_block,
                          uint8_t *out, float *scales)
{
    td_cuda_launch(cuda, unpack_bytes, grid_of(n_groups, n_tiles), dim3(THREADS), 0, m, group0,
                   tile0, n_tiles, by_block, out, scales);
}
