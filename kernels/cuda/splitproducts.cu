/* Linear steps of some tokens, up to 64 at a time: 128 rows of a matrix by 32 or 64 tokens are one block's, and of the leaves a few
 * neighbours, so that blocks are many where rows are few. Words of the matrix and what the tokens have of its tiles come into shared
 * memory some tiles ahead. Pieces of a sum are whole subtrees of its tree: a second kernel joins them. Every sum has the order of
 * products.cu, and so its bits. */
#include "kernels/cuda/products.cuh"

namespace
{

enum {
    THREADS = 256,
    GROUPS = 2,     /* of 16 rows, of a warp */
    WARPS_DOWN = 4, /* warps of a block over rows, then over tokens */
    BLOCK_GROUPS = WARPS_DOWN * GROUPS,
    STAGES = 4,
    AT_ONCE = 4, /* products of one launch */
    MOST_PIECES = 16
};

/* Leaves [begin, end) of a part. */
struct piece {
    uint16_t part, begin, end;
};

/* One product, cut. A part of one piece goes to its place; of several, each piece to its own place in `partials`
 * [n_pieces x n x n_rows]. */
struct split {
    struct td_cuda_product p;
    struct piece piece[MOST_PIECES];
    uint32_t n_pieces, n_down; /* blocks over the rows */
    float *partials;           /* NULL: every part is one piece */
};

struct splits {
    struct split of[AT_ONCE];
    uint32_t n;
};

/* Of the sums that a thread has. */
#define EACH(i, j, k)                                                                              \
    _Pragma("unroll") for (uint32_t i = 0; i < GROUPS; i++)                                        \
        _Pragma("unroll") for (uint32_t j = 0; j < OCTETS; j++)                                    \
            _Pragma("unroll") for (uint32_t k = 0; k < 4; k++)

/* A tile of all groups and what all tokens have of it. */
template <enum td_dtype T, uint32_t OCTETS> struct stage {
    static constexpr uint32_t TOKENS = 2 * OCTETS * 8;
    static constexpr uint32_t SCALES = td_cuda_format_of(T).scale_bytes;
    uint16_t x[TOKENS * TD_TILE_COLS];
    uint8_t tiles[BLOCK_GROUPS * td_cuda_format_of(T).tile_bytes];
    uint8_t scales[SCALES ? BLOCK_GROUPS * SCALES : 16];
};

/* Begins to fetch tile `at`, where it is before `end`; zeros for no such token. */
template <enum td_dtype T, uint32_t OCTETS>
__device__ void fetch(const struct td_cuda_product &p, uint32_t group, uint32_t t0, uint32_t at,
                      uint32_t end, struct stage<T, OCTETS> *to)
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    constexpr uint32_t OF_TILE = F.tile_bytes / 16, OF_SCALES = F.scale_bytes / 16;
    const uint32_t last = td_cuda_groups(p.m.n_rows) - 1;

    for (uint32_t i = threadIdx.x; at < end && i < BLOCK_GROUPS * OF_TILE; i += THREADS) {
        const uint32_t of = group + i / OF_TILE < last ? group + i / OF_TILE : last;

        td_num_copy16(to->tiles + i * 16,
                      p.m.tiles + ((size_t)of * p.m.n_tiles + at) * F.tile_bytes + i % OF_TILE * 16,
                      true);
    }
    if constexpr (OF_SCALES != 0)
        for (uint32_t i = threadIdx.x; at < end && i < BLOCK_GROUPS * OF_SCALES; i += THREADS) {
            const uint32_t of = group + i / OF_SCALES < last ? group + i / OF_SCALES : last;

            td_num_copy16(to->scales + i * 16,
                          p.m.scales + ((size_t)of * p.m.n_tiles + at) * F.scale_bytes +
                              i % OF_SCALES * 16,
                          true);
        }
    for (uint32_t i = threadIdx.x; at < end && i < stage<T, OCTETS>::TOKENS * 4; i += THREADS) {
        const uint32_t token = t0 + i / 4 < p.n ? t0 + i / 4 : p.n - 1;

        td_num_copy16(to->x + i * 8,
                      (const uint16_t *)p.acts.x +
                          ((size_t)token * p.acts.n_tiles + at) * TD_TILE_COLS + i % 4 * 8,
                      t0 + i / 4 < p.n);
    }
    td_num_copies_close();
}

/* Leaf `leaf` of a piece's `n` is summed up in c: joins it with what waits for it, as the tree has it; `waiting` [levels x sums x
 * THREADS] has sums of 1, 2, 4 .. leaves. The last leaf leaves the whole in c. */
template <uint32_t OCTETS>
__device__ void join(uint32_t leaf, uint32_t n, float c[GROUPS][OCTETS][4], float *waiting)
{
    constexpr uint32_t SUMS = GROUPS * OCTETS * 4;
    const bool is_last = leaf + 1 == n;
    uint32_t level = 0;

    for (; leaf >> level; level++) {
        const float *left = waiting + (size_t)level * SUMS * THREADS + threadIdx.x;

        if (leaf >> level & 1) {
            EACH(i, j, k)
            c[i][j][k] = left[((i * OCTETS + j) * 4 + k) * THREADS] + c[i][j][k];
        } else if (!is_last) {
            break;
        }
    }
    if (is_last)
        return;
    EACH(i, j, k)
    waiting[((size_t)level * SUMS + (i * OCTETS + j) * 4 + k) * THREADS + threadIdx.x] = c[i][j][k];
}

template <enum td_dtype T, uint32_t OCTETS>
__global__ void __launch_bounds__(THREADS, 2)
    multiply_some(const __grid_constant__ struct splits splits)
{
    uint32_t which = 0, down = blockIdx.y;

    while (down >= splits.of[which].n_down)
        down -= splits.of[which++].n_down;

    const struct split &split = splits.of[which];
    const struct td_cuda_product &p = split.p;
    struct stage<T, OCTETS> *stages = (struct stage<T, OCTETS> *)td_num_shared();
    float *waiting = (float *)(stages + STAGES);
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    const uint32_t token0 = warp / WARPS_DOWN * OCTETS * 8, block_t0 = blockIdx.x * 2 * OCTETS * 8;
    const uint32_t t0 = block_t0 + token0, first_group = warp % WARPS_DOWN * GROUPS;
    const uint32_t group = down * BLOCK_GROUPS, last = td_cuda_groups(p.m.n_rows) - 1;
    float c[GROUPS][OCTETS][4] = {};

    if (blockIdx.z >= split.n_pieces)
        return td_num_await_earlier();

    const struct piece piece = split.piece[blockIdx.z];
    uint32_t leaf = piece.begin;

    td_num_await_earlier();
    const uint32_t begin = leaf ? p.m.leaf_end[leaf - 1] : 0, end = p.m.leaf_end[piece.end - 1];
    uint32_t leaf_end = p.m.leaf_end[leaf];

    for (uint32_t i = 0; i < STAGES - 1; i++)
        fetch<T, OCTETS>(p, group, block_t0, begin + i, end, stages + i);
    for (uint32_t at = begin; at < end; at++) {
        const struct stage<T, OCTETS> *s = stages + (at - begin) % STAGES;
        constexpr struct td_cuda_format F = td_cuda_format_of(T);
        struct td_cuda_fragment<T> w[GROUPS];

        td_num_copies_wait<STAGES - 2>();
        __syncthreads(); /* all of this tile is there, and nobody reads the one before any more */
        fetch<T, OCTETS>(p, group, block_t0, at + STAGES - 1, end,
                         stages + (at - begin + STAGES - 1) % STAGES);
        for (uint32_t i = 0; i < GROUPS; i++) {
            const uint32_t of = group + first_group + i;
            struct td_tile_words<T> words;
            struct td_tile_super<T> super;

            td_tile_load<T>(s->tiles + (first_group + i) * F.tile_bytes,
                            s->scales + (first_group + i) * F.scale_bytes, threadIdx.x % 32,
                            &words);
            td_cuda_load_super<T>(p.m, of < last ? of : last, at, &super);
            td_cuda_unpack<T>(words, super, &w[i]);
        }
#pragma unroll
        for (uint32_t j = 0; j < OCTETS; j++) {
            uint32_t b[4];
            float sums[2] = {0.0f, 0.0f};

            td_cuda_load_token<T>(s->x + (token0 + 8 * j + g) * TD_TILE_COLS, b);
            if (F.mins)
                for (uint32_t i = 0; i < 2; i++) {
                    const uint32_t token = t0 + 8 * j + 2 * t + i;

                    sums[i] = token < p.n ? p.acts.sums[(size_t)token * p.acts.n_tiles + at] : 0.0f;
                }
            for (uint32_t i = 0; i < GROUPS; i++)
                td_cuda_add_tile<T>(w[i], b, sums, c[i][j]);
        }
        if (at + 1 < leaf_end)
            continue;
        EACH(i, j, k)
        {
            const uint32_t token = t0 + 8 * j + 2 * t + k % 2;

            c[i][j][k] =
                td_cuda_leaf_sum<T>(p.acts, token < p.n ? token : p.n - 1, leaf, c[i][j][k]);
        }
        join<OCTETS>(leaf - piece.begin, piece.end - piece.begin, c, waiting);
        if (at + 1 == end)
            break;
        EACH(i, j, k)
        c[i][j][k] = 0.0f;
        leaf_end = p.m.leaf_end[++leaf];
    }
    EACH(i, j, k)
    {
        const uint32_t row = (group + first_group + i) * TD_TILE_ROWS + g + k / 2 * 8;
        const uint32_t token = t0 + 8 * j + 2 * t + k % 2;
        const uint32_t to = split.partials ? blockIdx.z : piece.part;
        const size_t at = ((size_t)to * p.n + token) * p.m.n_rows + row;

        if (row >= p.m.n_rows || token >= p.n)
            continue;
        if (split.partials)
            split.partials[at] = c[i][j][k];
        else
            p.out[at] = p.gates ? td_num_silu(p.gates[at], c[i][j][k]) : c[i][j][k];
    }
}

/* The pieces of every part into the result; a thread has one number of it. */
__global__ void __launch_bounds__(THREADS) join_pieces(const __grid_constant__ struct split split)
{
    td_num_await_earlier();
    const struct td_cuda_product &p = split.p;
    const size_t n = (size_t)p.n * p.m.n_rows, at = blockIdx.x * (size_t)THREADS + threadIdx.x;
    float sum[MOST_PIECES];

    if (at >= n)
        return;
#pragma unroll
    for (uint32_t i = 0; i < MOST_PIECES; i++)
        sum[i] = i < split.n_pieces ? split.partials[i * n + at] : 0.0f;
#pragma unroll
    for (uint32_t step = 1; step < MOST_PIECES; step *= 2)
#pragma unroll
        for (uint32_t i = 0; i + step < MOST_PIECES; i++)
            if (i + step < split.n_pieces && split.piece[i].part == split.piece[i + step].part &&
                (split.piece[i].begin - p.m.part_begin[split.piece[i].part]) %
                        (2 * step * (split.piece[i].end - split.piece[i].begin)) ==
                    0)
                sum[i] = sum[i] + sum[i + step];
#pragma unroll
    for (uint32_t i = 0; i < MOST_PIECES; i++)
        if (i < split.n_pieces && split.piece[i].begin == p.m.part_begin[split.piece[i].part]) {
            const size_t to = split.piece[i].part * n + at;

            p.out[to] = p.gates ? td_num_silu(p.gates[to], sum[i]) : sum[i];
        }
}

/* ---- the host's part ---- */

/* Cuts every part after each `leaves` leaves, a power of two. Returns the number of pieces, which may be too many. */
uint32_t cut(const struct td_cuda_weights &m, uint32_t leaves, struct piece piece[MOST_PIECES])
{
    uint32_t n = 0;

    for (uint32_t part = 0; part < m.n_parts; part++)
        for (uint32_t l = m.part_begin[part]; l < m.part_begin[part + 1]; l += leaves, n++) {
            const uint32_t left = m.part_begin[part + 1] - l;

            if (n < MOST_PIECES)
                piece[n] = {(uint16_t)part, (uint16_t)l,
                            (uint16_t)(l + (left < leaves ? left : leaves))};
        }
    return n;
}

/* Of all pieces that are joined later; SIZE_MAX: there are too many. */
size_t partial_bytes(const struct splits &all, uint32_t leaves)
{
    struct piece piece[MOST_PIECES];
    size_t bytes = 0;

    for (uint32_t i = 0; i < all.n; i++) {
        const struct td_cuda_product &p = all.of[i].p;
        const uint32_t n = cut(p.m, leaves, piece);

        if (n > MOST_PIECES)
            return SIZE_MAX;
        bytes += n > p.m.n_parts ? (size_t)n * p.n * p.m.n_rows * sizeof(float) : 0;
    }
    return bytes;
}

template <enum td_dtype T, uint32_t OCTETS> size_t shared_bytes(uint32_t leaves)
{
    size_t bytes = STAGES * sizeof(struct stage<T, OCTETS>);

    for (; leaves > 1; leaves /= 2) /* sums of 1, 2, 4 .. leaves wait */
        bytes += (size_t)GROUPS * OCTETS * 4 * THREADS * sizeof(float);
    return bytes;
}

template <enum td_dtype T, uint32_t OCTETS>
bool launch_as(struct td_cuda *cuda, const struct td_cuda_product *products, uint32_t n)
{
    const uint32_t n_across = (products->n + 2 * OCTETS * 8 - 1) / (2 * OCTETS * 8);
    struct splits all = {};
    uint32_t leaves = 1, n_down = 0, most_leaves = 1, n_pieces = 0;
    size_t at = 0;

    all.n = n;
    for (uint32_t i = 0; i < n; i++) {
        const struct td_cuda_weights &m = products[i].m;

        all.of[i].p = products[i];
        n_down += all.of[i].n_down = (td_cuda_groups(m.n_rows) + BLOCK_GROUPS - 1) / BLOCK_GROUPS;
        most_leaves = m.n_leaves > most_leaves ? m.n_leaves : most_leaves;
    }
    while (leaves < most_leaves)
        leaves *= 2;
    /* Blocks for all multiprocessors, and two for each, where their results have room. */
    while (leaves > 2 &&
           ((uint64_t)n_down * n_across * (most_leaves / leaves) * 2 < (uint64_t)cuda->n_sms * 3 ||
            (shared_bytes<T, OCTETS>(leaves) > td_cuda_shared_of(cuda, 2) &&
             partial_bytes(all, leaves / 2) <= TD_CUDA_SPLIT_BYTES)))
        leaves /= 2;
    const size_t bytes = partial_bytes(all, leaves);

    if (bytes > TD_CUDA_SPLIT_BYTES || shared_bytes<T, OCTETS>(leaves) > cuda->most_shared)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        all.of[i].n_pieces = cut(all.of[i].p.m, leaves, all.of[i].piece);
        n_pieces = all.of[i].n_pieces > n_pieces ? all.of[i].n_pieces : n_pieces;
    }
    if (td_cuda_reserve(cuda, &cuda->partials, bytes, NULL) != TD_OK) {
        td_cuda_note(cuda, cudaErrorMemoryAllocation);
        return true;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct split *s = &all.of[i];

        if (s->n_pieces == s->p.m.n_parts)
            continue;
        s->partials = (float *)cuda->partials.data + at;
        at += (size_t)s->n_pieces * s->p.n * s->p.m.n_rows;
    }
    td_cuda_launch(cuda, multiply_some<T, OCTETS>, dim3(n_across, n_down, n_pieces), dim3(THREADS),
                   shared_bytes<T, OCTETS>(leaves), all);
    for (uint32_t i = 0; i < n; i++) {
        const size_t numbers = (size_t)all.of[i].p.n * all.of[i].p.m.n_rows;

        if (all.of[i].partials)
            td_cuda_launch(cuda, join_pieces, dim3((uint32_t)((numbers + THREADS - 1) / THREADS)),
                           dim3(THREADS), 0, all.of[i]);
    }
    return true;
}

template <enum td_dtype T>
bool launch(struct td_cuda *cuda, const struct td_cuda_product *products, uint32_t n)
{
    if constexpr (T == TD_F32)
        return false;
    else
        return products->n > 32 ? launch_as<T, 4>(cuda, products, n)
                                : launch_as<T, 2>(cuda, products, n);
}

} // namespace

bool td_cuda_multiply_some(struct td_cuda *cuda, enum td_dtype type,
                           const struct td_cuda_product *products, uint32_t n)
{
    if (products->n <= TD_CUDA_FEW_TOKENS || n > AT_ONCE)
        return false;
    switch (type) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        return launch<T>(cuda, products, n);
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        return false;
    }
}
