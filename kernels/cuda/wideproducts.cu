/* Linear steps of many tokens: 128 rows of a matrix by 128 tokens are one block's, 32 by 64 one warp's. A weight is unpacked once for 64
 * tokens, and what the tokens have of a tile is fetched into shared memory some tiles ahead. A warp sums all leaves, one after
 * the other, and joins them as the tree has them: a sum waits for its right-hand neighbour in the registers (of one leaf) or in
 * shared memory (of 2, 4, 8 ..). Every sum has the order of products.cu, and so its bits. */
#include "kernels/cuda/products.cuh"

namespace
{

enum {
    THREADS = 256,
    GROUPS = 2,     /* of 16 rows, of a warp */
    OCTETS = 8,     /* of tokens, of a warp */
    WARPS_DOWN = 4, /* warps of a block over rows, then over tokens */
    TOKENS = 2 * OCTETS * 8,
    BLOCK_GROUPS = WARPS_DOWN * GROUPS,
    STAGES = 4,
    STAGE_WORDS = TOKENS * TD_TILE_COLS, /* 16 bits each */
    SUMS = GROUPS * OCTETS * 4,          /* of a thread */
    BAND =
        8 /* blocks side by side over the tokens before the next rows: they share what the cache holds */
};

/* Of the sums that a thread has. */
#define EACH(i, j, k)                                                                              \
    _Pragma("unroll") for (uint32_t i = 0; i < GROUPS; i++)                                        \
        _Pragma("unroll") for (uint32_t j = 0; j < OCTETS; j++)                                    \
            _Pragma("unroll") for (uint32_t k = 0; k < 4; k++)

struct place {
    uint32_t group, t0; /* the block's first */
};

__device__ struct place place_of(uint32_t id, uint32_t n_down, uint32_t n_across)
{
    const uint32_t band = id / (BAND * n_down), in = id % (BAND * n_down);
    const uint32_t left = n_across - band * BAND, width = left < BAND ? left : (uint32_t)BAND;

    return {in / width * BLOCK_GROUPS, (band * BAND + in % width) * TOKENS};
}

/* Begins to fetch what the block's tokens have of tile `at`; nothing where there is no such tile, zeros for no such token. */
__device__ void fetch(const struct td_cuda_product &p, uint32_t t0, uint32_t at, uint16_t *stages)
{
    uint16_t *to = stages + at % STAGES * STAGE_WORDS;

    for (uint32_t i = threadIdx.x; at < p.m.n_tiles && i < TOKENS * 4; i += THREADS) {
        const uint32_t token = t0 + i / 4 < p.n ? t0 + i / 4 : p.n - 1;

        td_num_copy16(to + i * 8,
                      (const uint16_t *)p.acts.x +
                          ((size_t)token * p.acts.n_tiles + at) * TD_TILE_COLS + i % 4 * 8,
                      t0 + i / 4 < p.n);
    }
    td_num_copies_close();
}

/* Leaf `leaf` of a part's `n` is summed up in c: joins it with what waits for it, as the tree has it. True: that was all. */
__device__ bool join(uint32_t leaf, uint32_t n, float c[GROUPS][OCTETS][4],
                     float first[GROUPS][OCTETS][4], float *waiting)
{
    const bool is_last = leaf + 1 == n;
    uint32_t level = 1;

    if (leaf & 1) {
        EACH(i, j, k)
        c[i][j][k] = first[i][j][k] + c[i][j][k];
    } else if (!is_last) {
        EACH(i, j, k)
        first[i][j][k] = c[i][j][k];
        return false;
    }
    for (; leaf >> level; level++) {
        float *left = waiting + (size_t)(level - 1) * SUMS * THREADS + threadIdx.x;

        if (leaf >> level & 1) {
            EACH(i, j, k)
            c[i][j][k] = left[((i * OCTETS + j) * 4 + k) * THREADS] + c[i][j][k];
        } else if (!is_last) {
            break;
        }
    }
    if (is_last)
        return true;
    EACH(i, j, k)
    waiting[((size_t)(level - 1) * SUMS + (i * OCTETS + j) * 4 + k) * THREADS + threadIdx.x] =
        c[i][j][k];
    return false;
}

__device__ void store(const struct td_cuda_product &p, uint32_t part, uint32_t group, uint32_t t0,
                      const float c[GROUPS][OCTETS][4])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

    EACH(i, j, k)
    {
        const uint32_t row = (group + i) * TD_TILE_ROWS + g + k / 2 * 8;
        const uint32_t token = t0 + 8 * j + 2 * t + k % 2;
        const size_t at = ((size_t)part * p.n + token) * p.m.n_rows + row;

        if (row < p.m.n_rows && token < p.n)
            p.out[at] = p.gates ? td_num_silu(p.gates[at], c[i][j][k]) : c[i][j][k];
    }
}

template <enum td_dtype T>
__global__ void __launch_bounds__(THREADS, 1)
    multiply_many(const __grid_constant__ struct td_cuda_product p, const uint32_t n_down,
                  const uint32_t n_across)
{
    td_num_await_earlier();
    uint16_t *stages = (uint16_t *)td_num_shared();
    float *waiting = (float *)(stages + STAGES * STAGE_WORDS);
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    const struct place block = place_of(blockIdx.x, n_down, n_across);
    const uint32_t group = block.group + warp % WARPS_DOWN * GROUPS;
    const uint32_t token0 = warp / WARPS_DOWN * OCTETS * 8, t0 = block.t0 + token0;
    const uint32_t last = td_cuda_groups(p.m.n_rows) - 1;
    float c[GROUPS][OCTETS][4] = {}, first[GROUPS][OCTETS][4];
    struct td_cuda_fragment<T> w[GROUPS];
    struct td_tile_words<T> next[GROUPS]; /* of the tile behind this one */
    uint32_t leaf = 0, part = 0;

    for (uint32_t at = 0; at < STAGES - 1; at++)
        fetch(p, block.t0, at, stages);
    for (uint32_t i = 0; i < GROUPS; i++)
        td_cuda_load_words<T>(p.m, group + i < last ? group + i : last, 0, 0, &next[i]);
    for (uint32_t at = 0; at < p.m.n_tiles; at++) {
        const uint16_t *x = stages + at % STAGES * STAGE_WORDS;

        for (uint32_t i = 0; i < GROUPS; i++) {
            struct td_tile_super<T> super;

            td_cuda_load_super<T>(p.m, group + i < last ? group + i : last, at, &super);
            td_cuda_unpack<T>(next[i], super, &w[i]);
        }
        td_num_copies_wait<STAGES - 2>();
        __syncthreads(); /* all of this tile is there, and nobody reads the one before any more */
        fetch(p, block.t0, at + STAGES - 1, stages);
        for (uint32_t i = 0; i < GROUPS && at + 1 < p.m.n_tiles; i++)
            td_cuda_load_words<T>(p.m, group + i < last ? group + i : last, at + 1, 0, &next[i]);
#pragma unroll
        for (uint32_t j = 0; j < OCTETS; j++) {
            uint32_t b[4];
            float sums[2] = {0.0f, 0.0f};

            td_cuda_load_token<T>(x + (token0 + 8 * j + g) * TD_TILE_COLS, b);
            if (td_cuda_format_of(T).mins)
                for (uint32_t i = 0; i < 2; i++) {
                    const uint32_t token = t0 + 8 * j + 2 * t + i;

                    sums[i] = token < p.n ? p.acts.sums[(size_t)token * p.acts.n_tiles + at] : 0.0f;
                }
            for (uint32_t i = 0; i < GROUPS; i++)
                td_cuda_add_tile<T>(w[i], b, sums, c[i][j]);
        }
        if (at + 1 < p.m.leaf_end[leaf])
            continue;
        EACH(i, j, k)
        {
            const uint32_t token = t0 + 8 * j + 2 * t + k % 2;

            c[i][j][k] =
                td_cuda_leaf_sum<T>(p.acts, token < p.n ? token : p.n - 1, leaf, c[i][j][k]);
        }
        if (join(leaf - p.m.part_begin[part], p.m.part_begin[part + 1] - p.m.part_begin[part], c,
                 first, waiting)) {
            store(p, part, group, t0, c);
            part++;
        }
        EACH(i, j, k)
        c[i][j][k] = 0.0f;
        leaf++;
    }
}

/* Sums of 2, 4, 8 .. leaves that wait at a time: one waits at 2^k where a leaf before the last ends 2^k of them. */
uint32_t waiting_levels(const struct td_cuda_weights &m)
{
    uint32_t levels = 0;

    for (uint32_t i = 0; i < m.n_parts; i++)
        while (2u << levels < m.part_begin[i + 1] - m.part_begin[i])
            levels++;
    return levels;
}

template <enum td_dtype T>
void launch(struct td_cuda *cuda, const struct td_cuda_product *p, uint32_t n_down,
            uint32_t n_across, size_t shared)
{
    if constexpr (T != TD_F32)
        td_cuda_launch(cuda, multiply_many<T>, dim3(n_down * n_across), dim3(THREADS), shared, *p,
                       n_down, n_across);
}

} // namespace

bool td_cuda_multiply_many(struct td_cuda *cuda, enum td_dtype type,
                           const struct td_cuda_product *p)
{
    const uint32_t n_across = (p->n + TOKENS - 1) / TOKENS;
    const uint32_t n_down = (td_cuda_groups(p->m.n_rows) + BLOCK_GROUPS - 1) / BLOCK_GROUPS;
    const size_t shared = STAGES * STAGE_WORDS * sizeof(uint16_t) +
                          (size_t)waiting_levels(p->m) * SUMS * THREADS * sizeof(float);

    if (p->n <= TOKENS / 2 || shared > cuda->most_shared ||
        (uint64_t)n_down * n_across * 4 < (uint64_t)cuda->n_sms * 3) /* or many would idle */
        return false;
    switch (type) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        launch<T>(cuda, p, n_down, n_across, shared);                                              \
        break;
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        break;
    }
    return true;
}
