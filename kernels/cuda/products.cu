/* Linear steps of a few tokens: 16 or 32 rows of a matrix by 8 to 64 tokens are one block's. A leaf is summed by one warp, tile after
 * tile, on the tensor cores with F32 sums; leaves join in the fixed tree. So a result depends on its own token's row alone, and on
 * nothing of how leaves are dealt to ranks. */
#include "kernels/cuda/libproducts.cuh"

namespace
{

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    FUSED_TOKENS = 8, /* a gate is multiplied with what it gates */
    AT_ONCE = 4       /* products of one launch */
};

/* Products of one type and of the same tokens, for one launch. */
struct batch {
    struct td_cuda_product product[AT_ONCE];
    uint32_t n_down[AT_ONCE]; /* blocks over the rows of each */
    uint32_t n;
    uint32_t ahead; /* bytes */
};

/* Leaves of a block lie as [n_leaves x 8 N tokens x 16 G rows]. */
template <uint32_t G, uint32_t N> constexpr uint32_t BLOCK_FLOATS = G *TD_TILE_ROWS *N * 8;

/* One tile of F32 times 8 tokens, ascending columns. */
__device__ void add_plain(const struct td_cuda_product &p, const struct td_cuda_weights &m,
                          const struct td_cuda_acts &acts, uint32_t group, uint32_t at, uint32_t t0,
                          float c[4])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const float *w =
        (const float *)m.tiles + ((size_t)group * m.n_tiles + at) * TD_TILE_ROWS * TD_TILE_COLS;

    for (uint32_t k = 0; k < TD_TILE_COLS; k++) {
        const float low = w[k * TD_TILE_ROWS + g], high = w[k * TD_TILE_ROWS + g + 8];

        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t token = t0 + 2 * t + i < p.n ? t0 + 2 * t + i : p.n - 1;
            const float x =
                ((const float *)acts.x)[((size_t)token * acts.n_tiles + at) * TD_TILE_COLS + k];

            if (k < m.tile[at].n) {
                c[i] = fmaf(low, x, c[i]);
                c[2 + i] = fmaf(high, x, c[2 + i]);
            }
        }
    }
}

/* Sums of the numbers of tokens `token` and the next in U tiles from `at` on; zeros for no such token. */
template <uint32_t U>
__device__ __forceinline__ void load_sums(const struct td_cuda_acts &acts, uint32_t token,
                                          uint32_t n, uint32_t at, float sums[U][2])
{
    for (uint32_t i = 0; i < 2; i++) {
        const float *from = acts.sums + (size_t)(token + i) * acts.n_tiles + at;

        for (uint32_t u = 0; u < U; u += 4) {
            float4 four = {0.0f, 0.0f, 0.0f, 0.0f};

            if (token + i < n && U == 1)
                four.x = *from;
            else if (token + i < n)
                four = *(const float4 *)(from + u);
            sums[u][i] = four.x;
            if (U > 1) {
                sums[(u + 1) % U][i] = four.y;
                sums[(u + 2) % U][i] = four.z;
                sums[(u + 3) % U][i] = four.w;
            }
        }
    }
}

/* c += U tile columns of G groups times 8 N tokens: all words of the matrix are asked for before the first is used. */
template <enum td_dtype T, uint32_t G, uint32_t N, uint32_t U>
__device__ __forceinline__ void add_tiles(const struct td_cuda_product &p,
                                          const struct td_cuda_weights &m,
                                          const struct td_cuda_acts &acts, uint32_t group,
                                          uint32_t at, uint32_t t0, float c[G][N][4])
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t last = td_cuda_groups(m.n_rows) - 1;
    struct td_tile_words<T> words[U][G];
    struct td_tile_super<T> super[G];
    float sums[N][U][2];

#pragma unroll
    for (uint32_t u = 0; u < U; u++)
        for (uint32_t i = 0; i < G; i++)
            td_cuda_load_words<T>(m, group + i < last ? group + i : last, at, u, &words[u][i]);
    for (uint32_t k = 0; k < N && F.mins; k++)
        load_sums<U>(acts, t0 + 8 * k + 2 * t, p.n, at, sums[k]);
#pragma unroll
    for (uint32_t u = 0; u < U; u++) {
        struct td_cuda_fragment<T> w[G];

        for (uint32_t i = 0; i < G; i++) {
            if (F.super_tiles && (u == 0 || u % F.super_tiles == 0))
                td_cuda_load_super<T>(m, group + i < last ? group + i : last, at + u, &super[i]);
            td_cuda_unpack<T>(words[u][i], super[i], &w[i]);
        }
        for (uint32_t k = 0; k < N; k++) {
            const uint32_t token = t0 + 8 * k + g;
            uint32_t b[4] = {0, 0, 0, 0};

            if (token < p.n)
                td_cuda_load_token<T>((const uint16_t *)acts.x +
                                          ((size_t)token * acts.n_tiles + at) * TD_TILE_COLS +
                                          u * TD_TILE_COLS,
                                      b);
            for (uint32_t i = 0; i < G; i++)
                td_cuda_add_tile<T>(w[i], b, sums[k][u], c[i][k]);
        }
    }
}

/* Tiles at a time: 64 or 128 bytes of a lane's are on their way. A run of supers (of 4 or 8 tiles) begins where a leaf does. */
template <enum td_dtype T, uint32_t G, uint32_t N>
constexpr uint32_t AT_A_TIME = G *N > 2                                  ? 1
                               : td_cuda_format_of(T).tile_bytes >= 1024 ? 4
                                                                         : 8;

/* All leaves of a block into `leaves`. */
template <enum td_dtype T, uint32_t G, uint32_t N>
__device__ __forceinline__ void
sum_leaves(const struct td_cuda_product &p, const struct td_cuda_weights &m,
           const struct td_cuda_acts &acts, uint32_t group, uint32_t t0, float *leaves)
{
    constexpr uint32_t U = AT_A_TIME<T, G, N>;
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

    for (uint32_t leaf = threadIdx.x / 32; leaf < m.n_leaves; leaf += WARPS) {
        const uint32_t end = m.leaf_end[leaf];
        uint32_t at = leaf ? m.leaf_end[leaf - 1] : 0;
        float c[G][N][4] = {};
        float *to = leaves + (size_t)leaf * BLOCK_FLOATS<G, N>;

        if constexpr (T == TD_F32) {
            for (; at < end; at++)
                add_plain(p, m, acts, group, at, t0, c[0][0]);
        } else {
            for (; at + U <= end; at += U)
                add_tiles<T, G, N, U>(p, m, acts, group, at, t0, c);
            if (U == 8 && at + 4 <= end) {
                add_tiles<T, G, N, 4>(p, m, acts, group, at, t0, c);
                at += 4;
            }
            for (; at < end; at++)
                add_tiles<T, G, N, 1>(p, m, acts, group, at, t0, c);
        }
        for (uint32_t k = 0; k < N; k++)
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t token = 8 * k + 2 * t + i % 2;
                const uint32_t of = t0 + token < p.n ? t0 + token : p.n - 1;

                for (uint32_t j = 0; j < G; j++)
                    to[token * G * TD_TILE_ROWS + j * TD_TILE_ROWS + g + i / 2 * 8] =
                        td_cuda_leaf_sum<T>(acts, of, leaf, c[j][k][i]);
            }
    }
}

/* Brings what the warp will read first nearer, up to `ahead` bytes, while the kernel before this one ends. */
template <enum td_dtype T>
__device__ __forceinline__ void prefetch(const struct td_cuda_weights &m, uint32_t group,
                                         uint32_t ahead)
{
    constexpr uint32_t TILE = td_cuda_format_of(T).tile_bytes;
    const uint32_t leaf = threadIdx.x / 32, n = m.n_tiles / m.n_leaves;
    const uint32_t tiles = n < ahead / TILE ? n : ahead / TILE;

    if (threadIdx.x % 32 == 0 && leaf < m.n_leaves && tiles)
        td_num_prefetch(m.tiles + ((size_t)group * m.n_tiles + leaf * n) * TILE, tiles * TILE);
}

/* The tree over the leaves [begin, end), `stride` apart, in place: the sum is in the first one. */
__device__ float join_leaves(float *leaves, uint32_t begin, uint32_t end, uint32_t stride)
{
    for (uint32_t step = 1; step < end - begin; step *= 2)
        for (uint32_t i = begin; i + step < end; i += 2 * step)
            leaves[(size_t)i * stride] =
                leaves[(size_t)i * stride] + leaves[(size_t)(i + step) * stride];
    return leaves[(size_t)begin * stride];
}

/* A gate is of the same type. */
template <enum td_dtype T, uint32_t G, uint32_t N>
__global__ void __launch_bounds__(THREADS, G *N > 2 ? 1 : 2)
    multiply(const __grid_constant__ struct batch batch)
{
    constexpr uint32_t FLOATS = BLOCK_FLOATS<G, N>, ROWS = G * TD_TILE_ROWS;
    uint32_t which = 0, down = blockIdx.y;

    while (down >= batch.n_down[which])
        down -= batch.n_down[which++];

    const struct td_cuda_product &p = batch.product[which];
    float *leaves = (float *)td_num_shared();
    float *gates = leaves + (size_t)p.m.n_leaves * FLOATS;
    const uint32_t group = down * G, t0 = blockIdx.x * N * 8;

    prefetch<T>(p.m, group, batch.ahead);
    td_num_await_earlier();
    sum_leaves<T, G, N>(p, p.m, p.acts, group, t0, leaves);
    if (p.gate.tiles)
        sum_leaves<T, G, N>(p, p.gate, p.gate_acts, group, t0, gates);
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < FLOATS; e += THREADS) {
        const uint32_t row = group * TD_TILE_ROWS + e % ROWS, token = t0 + e / ROWS;

        if (row >= p.m.n_rows || token >= p.n)
            continue;
        for (uint32_t part = 0; part < p.m.n_parts; part++) {
            const size_t at = ((size_t)part * p.n + token) * p.m.n_rows + row;
            float sum =
                join_leaves(leaves + e, p.m.part_begin[part], p.m.part_begin[part + 1], FLOATS);

            if (p.gate.tiles)
                sum = td_num_silu(join_leaves(gates + e, 0, p.gate.n_leaves, FLOATS), sum);
            else if (p.gates)
                sum = td_num_silu(p.gates[at], sum);
            p.out[at] = sum;
        }
    }
}

/* ---- embedding rows ---- */

template <enum td_dtype T>
__global__ void dequantise(const __grid_constant__ struct td_cuda_weights m, const uint32_t *ids,
                           uint32_t n, float *out)
{
    td_num_await_earlier();
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const size_t item = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    const uint32_t t = (uint32_t)(item % 4), at = (uint32_t)(item / 4 % m.n_tiles);
    const size_t i = item / 4 / m.n_tiles;

    if (i >= n)
        return;
    const uint32_t id = ids[i], group = id / TD_TILE_ROWS, g = id % 8, half = id % 16 / 8;
    const size_t number = (size_t)group * m.n_tiles + at;
    const struct td_cuda_tile columns = m.tile[at];
    struct td_tile_words<T> words;
    struct td_tile_super<T> super;
    uint32_t pair[4];

    if constexpr (T != TD_F32) {
        td_tile_load<T>(m.tiles + number * F.tile_bytes, m.scales + number * F.scale_bytes,
                        4 * g + t, &words);
        if constexpr (F.super_tiles != 0)
            td_tile_load_super<T>(m.supers + ((size_t)group * m.n_supers + at / F.super_tiles) *
                                                 F.super_bytes,
                                  4 * g + t, &super);
        td_tile_pairs<T>(words, half, pair);
    }
    for (uint32_t k = 0; k < 8; k++) {
        const uint32_t column = td_tile_column(F.halves, t, k);
        float v;

        if (column >= columns.n)
            continue;
        if (T == TD_F32) {
            v = ((const float *)(m.tiles + number * F.tile_bytes))[column * TD_TILE_ROWS + id % 16];
        } else {
            const uint16_t bits = (uint16_t)(k % 2 ? pair[k / 2] >> 16 : pair[k / 2] & 0xffffu);

            v = (T == TD_BF16 ? td_num_bf16(bits) : td_num_f16(bits)) * td_tile_unit<T>();
            if (T == TD_MXFP4 && v == 0.0f) /* zero has no sign there */
                v = 0.0f;
        }
        if (F.scale_bytes || F.super_bytes) {
            const struct td_tile_scale s = td_tile_scale_of<T>(words, super, half, k / 4);

            v = F.mins ? s.scale * v - s.min : s.scale * v;
        }
        out[i * m.n_cols + columns.first + column] = v;
    }
}

/* ---- the host's part ---- */

size_t shared_bytes(const struct td_cuda_product *p, uint32_t floats)
{
    return (size_t)(p->m.n_leaves + (p->gate.tiles ? p->gate.n_leaves : 0)) * floats *
           sizeof(float);
}

template <enum td_dtype T, uint32_t G, uint32_t N>
bool launch_as(struct td_cuda *cuda, struct batch *batch)
{
    uint32_t n_down = 0;
    size_t shared = 0;

    for (uint32_t i = 0; i < batch->n; i++) {
        const struct td_cuda_product *p = &batch->product[i];
        const size_t bytes = shared_bytes(p, BLOCK_FLOATS<G, N>);

        shared = bytes > shared ? bytes : shared;
        n_down += batch->n_down[i] = (td_cuda_groups(p->m.n_rows) + G - 1) / G;
    }
    if (shared > cuda->most_shared)
        return false;
    td_cuda_launch(cuda, multiply<T, G, N>,
                   dim3((batch->product[0].n + 8 * N - 1) / (8 * N), n_down), dim3(THREADS), shared,
                   *batch);
    return true;
}

/* As many tokens at a time as there are and as leaves have room for. */
template <enum td_dtype T> void launch_multiply(struct td_cuda *cuda, const struct batch *all)
{
    const uint32_t n = all->product[0].n;
    struct batch few = {};

    few.ahead = cuda->ahead;
    for (uint32_t i = 0; i < all->n; i++)
        if (T == TD_F32 || all->product[i].gate.tiles ||
            (!td_cuda_lib_multiply(cuda, T, &all->product[i]) &&
             !td_cuda_multiply_many(cuda, T, &all->product[i])))
            few.product[few.n++] = all->product[i];
    if (few.n == 0)
        return;
    if constexpr (T != TD_F32)
        if (td_cuda_multiply_some(cuda, T, few.product, few.n) ||
            (n > 8 && launch_as<T, 1, 2>(cuda, &few)))
            return;
    if (!launch_as<T, 1, 1>(cuda, &few))
        td_cuda_note(cuda, cudaErrorInvalidValue); /* a matrix of too many leaves */
}

void launch(struct td_cuda *cuda, enum td_dtype type, const struct batch *batch)
{
    if (batch->n == 0)
        return;
    switch (type) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        launch_multiply<T>(cuda, batch);                                                           \
        break;
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        break;
    }
}

const struct td_cuda_matrix &mine(const struct td_matrix *m)
{
    return *(const struct td_cuda_matrix *)m;
}

/* `out` NULL: it is aligned as all memory of ours. */
enum td_cuda_act form_of(struct td_cuda *cuda, const struct td_matrix *m, uint32_t n,
                         const float *out)
{
    return m->dtype == TD_F8_E4M3 ? td_cuda_lib_form(cuda, &mine(m), n, out)
                                  : td_cuda_format_of(m->dtype).act;
}

} // namespace

enum td_status td_cuda_linear(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                              const struct td_kern_output *outs, uint32_t n_outs,
                              struct td_err *err)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    struct td_cuda_actset set = {};
    struct batch batch = {}, gate = {};
    enum td_dtype type = outs[0].m->dtype;
    uint32_t act_of[TD_KERN_MAX_OUTPUTS], gate_act[TD_KERN_MAX_OUTPUTS] = {0};
    enum td_status s;

    for (uint32_t i = 0; i < n_outs; i++) {
        act_of[i] = td_cuda_acts_for(&set, outs[i].m, form_of(cuda, outs[i].m, n, outs[i].out));
        if (outs[i].gate)
            gate_act[i] =
                td_cuda_acts_for(&set, outs[i].gate, form_of(cuda, outs[i].gate, n, NULL));
    }
    s = td_cuda_acts_prepare(cuda, in, n, outs[0].m->n_cols, &set, err);
    if (!s && td_cuda_lib_takes(cuda, n))
        td_cuda_lib_flatten(cuda, &set, n);
    for (uint32_t i = 0; !s && i < n_outs; i++) {
        const struct td_kern_output *o = &outs[i];
        struct td_cuda_product *p;

        if (batch.n == AT_ONCE || (batch.n && o->m->dtype != type)) {
            launch(cuda, type, &batch);
            batch.n = 0;
        }
        type = o->m->dtype;
        p = &batch.product[batch.n++];
        *p = {mine(o->m).view, {}, set.item[act_of[i]].acts, {}, NULL,
              o->out,          n,  mine(o->m).part_tile};
        if (o->gate && n <= FUSED_TOKENS && o->gate->dtype == type && !td_cuda_lib_takes(cuda, n)) {
            p->gate = mine(o->gate).view;
            p->gate_acts = set.item[gate_act[i]].acts;
        } else if (o->gate) { /* by itself, before */
            s = td_cuda_reserve(cuda, &cuda->gates, (size_t)n * o->m->n_rows * sizeof(float), err);
            if (s)
                break;
            p->gates = (float *)cuda->gates.data;
            gate.product[0] = {mine(o->gate).view,        {}, set.item[gate_act[i]].acts, {}, NULL,
                               (float *)cuda->gates.data, n,  mine(o->gate).part_tile};
            gate.n = 1;
            if (td_cuda_lib_gated(cuda, o->gate->dtype, &gate.product[0], type, p)) {
                batch.n--;
                continue;
            }
            launch(cuda, o->gate->dtype, &gate);
            launch(cuda, type, &batch); /* before the next gate comes to the same place */
            batch.n = 0;
        }
    }
    if (!s)
        launch(cuda, type, &batch);
    return s;
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
