/* Attention of single tokens: a block is one warp, which takes a row's query heads with one KV head, up to 8, and a run of chunks of 64
 * keys. It keeps the query, the scores of a chunk, its weights and its results in registers; keys of the next chunk come while the values
 * are multiplied, values while the keys are. Every number is rounded and summed as in flash.cu, so both give the same bits. */
#include "kernels/cuda/attend.cuh"

namespace
{

enum { KEYS = TD_ATTEND_KEYS, LANES = 32, PAD = 8, Q_PARTS = TD_ATTEND_Q_PARTS, BLOCKS_PER_SM = 4 };

template <uint32_t D> struct area {
    static constexpr uint32_t STRIDE = 16 * D + PAD;
    uint16_t k[KEYS * STRIDE], v[KEYS * STRIDE];
};

/* Of query g, as sums of 16-bit numbers: dimensions 16 k + 2t, 2t + 1 and 8 more. */
template <uint32_t D> struct query {
    uint32_t pair[D][Q_PARTS][2];
    float scale; /* of a score */
};

/* What a chunk, or several joined, give query g; dimensions 8 j + 2t, 2t + 1. */
template <uint32_t D> struct result {
    float max, sum, acc[2 * D][2];
};

template <uint32_t D> constexpr uint32_t RESULT_FLOATS = 2 + 4 * D;

/* Begins to bring keys or values of `n` tokens from `blocks` on, zeros behind them and behind their dimensions; one batch. */
template <uint32_t D>
__device__ __forceinline__ void bring(const struct td_attend_job &job, const uint32_t *blocks,
                                      uint32_t kv_head, uint32_t half, uint32_t n, uint16_t *to)
{
    constexpr uint32_t STRIDE = area<D>::STRIDE, OCTETS = 2 * D, AT_ONCE = LANES / OCTETS;
    const uint32_t dim = job.kv.head_dim, per_block = job.kv.block_tokens;
    const uint32_t d = threadIdx.x % OCTETS * 8, begin = threadIdx.x / OCTETS;

    for (uint32_t first = 0; first < KEYS; first += per_block, blocks++) {
        const uint32_t there = first >= n || d >= dim ? 0 : n - first;
        const uint16_t *cell =
            (const uint16_t *)td_cuda_kv_cell(job.kv, there ? *blocks : 0, kv_head, half) +
            (d < dim ? d : 0);
        uint16_t *dst = to + first * STRIDE + d;

#pragma unroll 4
        for (uint32_t token = begin; token < per_block; token += AT_ONCE)
            td_num_copy16(dst + token * STRIDE, cell + (token < there ? token : 0) * (size_t)dim,
                          token < there);
    }
    td_num_copies_close();
}

template <enum td_dtype T, uint32_t D>
__device__ void bring_query(const struct td_attend_job &job, const struct td_attend_span &span,
                            uint32_t row, struct query<D> *to)
{
    const uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4, dim = job.kv.head_dim;
    const float *q = job.q + ((size_t)row * job.n_heads + span.head + g) * dim;
    float v[D][2][2];
    uint32_t max = 0;

#pragma unroll
    for (uint32_t i = 0; i < 4 * D; i++) {
        const uint32_t d = 8 * (i / 2) + 2 * t + i % 2;
        const float one = g < span.n && d < dim ? q[d] * job.scale : 0.0f;

        v[i / 4][i / 2 % 2][i % 2] = one;
        max = max > td_num_f32_bits(fabsf(one)) ? max : td_num_f32_bits(fabsf(one));
    }
    for (uint32_t mask = 2; mask; mask >>= 1) {
        const uint32_t other = td_num_xor(max, mask);

        max = other > max ? other : max;
    }
    const float up = td_attend_up<T>(max, &to->scale);

#pragma unroll
    for (uint32_t i = 0; i < 2 * D; i++) {
        uint16_t low[Q_PARTS], high[Q_PARTS];

        td_attend_split<T, Q_PARTS>(v[i / 2][i % 2][0] * up, low);
        td_attend_split<T, Q_PARTS>(v[i / 2][i % 2][1] * up, high);
        for (uint32_t k = 0; k < Q_PARTS; k++)
            to->pair[i / 2][k][i % 2] = low[k] | (uint32_t)high[k] << 16;
    }
}

/* s [8 queries x KEYS] = the queries times the keys: lane 4g + t has keys 8 j + 2t, 2t + 1. */
template <enum td_dtype T, uint32_t D>
__device__ __forceinline__ void score(const struct query<D> &q, const uint16_t *keys,
                                      float s[KEYS / 8][4])
{
    constexpr uint32_t STRIDE = area<D>::STRIDE;
    const uint32_t lane = threadIdx.x;
    const uint16_t *k = keys + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;

#pragma unroll
    for (uint32_t d = 0; d < D; d++)
#pragma unroll
        for (uint32_t j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];

            td_num_tables(k + 16 * j * STRIDE + 16 * d, b);
#pragma unroll
            for (uint32_t i = 0; i < Q_PARTS; i++) {
                const uint32_t a[4] = {q.pair[d][i][0], 0, q.pair[d][i][1], 0};

                td_attend_mma<T>(s[2 * j], a, b);
                td_attend_mma<T>(s[2 * j + 1], a, b + 2);
            }
        }
}

/* Scores into weights; `n` keys are seen. */
template <enum td_dtype T, uint32_t P>
__device__ __forceinline__ void weigh(float scale, uint32_t n, const float s[KEYS / 8][4],
                                      uint32_t weight[KEYS / 8][P], float *of_max, float *of_sum)
{
    const uint32_t t = threadIdx.x % 4;
    float v[KEYS / 8][2], max = -INFINITY, sum[2] = {0.0f, 0.0f};

#pragma unroll
    for (uint32_t j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (uint32_t e = 0; e < 2; e++) {
            v[j][e] = 8 * j + 2 * t + e < n ? s[j][e] * scale : -INFINITY;
            max = v[j][e] > max ? v[j][e] : max;
        }
    for (uint32_t mask = 2; mask; mask >>= 1) {
        const float other = td_num_xor(max, mask);

        max = other > max ? other : max;
    }
#pragma unroll
    for (uint32_t j = 0; j < KEYS / 8; j++) {
        uint16_t part[2][P];

#pragma unroll
        for (uint32_t e = 0; e < 2; e++) {
            td_attend_split<T, P>(v[j][e] == -INFINITY ? 0.0f : td_num_exp(v[j][e] - max), part[e]);
            for (uint32_t i = 0; i < P; i++)
                sum[e] = sum[e] + td_attend_widen<T>(part[e][i]);
        }
        for (uint32_t i = 0; i < P; i++)
            weight[j][i] = part[0][i] | (uint32_t)part[1][i] << 16;
    }
    for (uint32_t mask = 2; mask; mask >>= 1)
        for (uint32_t e = 0; e < 2; e++)
            sum[e] = sum[e] + td_num_xor(sum[e], mask);
    *of_max = max;
    *of_sum = sum[0] + sum[1];
}

/* The weights times the values. */
template <enum td_dtype T, uint32_t D, uint32_t P>
__device__ __forceinline__ void gather(const uint16_t *values, const uint32_t weight[KEYS / 8][P],
                                       struct result<D> *r)
{
    constexpr uint32_t STRIDE = area<D>::STRIDE;
    const uint16_t *v = values + threadIdx.x % 16 * STRIDE + threadIdx.x / 16 * 8;
    float acc[2 * D][4] = {};

#pragma unroll
    for (uint32_t k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (uint32_t j = 0; j < D; j++) {
            uint32_t b[4];

            td_num_tables_turned(v + 16 * k * STRIDE + 16 * j, b);
#pragma unroll
            for (uint32_t i = 0; i < P; i++) {
                const uint32_t a[4] = {weight[2 * k][i], 0, weight[2 * k + 1][i], 0};

                td_attend_mma<T>(acc[2 * j], a, b);
                td_attend_mma<T>(acc[2 * j + 1], a, b + 2);
            }
        }
#pragma unroll
    for (uint32_t j = 0; j < 2 * D; j++) {
        r->acc[j][0] = acc[j][0];
        r->acc[j][1] = acc[j][1];
    }
}

/* right = left and right, as in flash.cu. */
template <uint32_t D> __device__ void join(const float *waiting, struct result<D> *r)
{
    const float max = r->max > waiting[0] ? r->max : waiting[0];
    const float left = td_num_exp(waiting[0] - max), right = td_num_exp(r->max - max);

    r->max = max;
    r->sum = fmaf(waiting[LANES], left, r->sum * right);
#pragma unroll
    for (uint32_t j = 0; j < 2 * D; j++)
#pragma unroll
        for (uint32_t e = 0; e < 2; e++)
            r->acc[j][e] = fmaf(waiting[(2 + 2 * j + e) * LANES], left, r->acc[j][e] * right);
}

template <uint32_t D> __device__ void let_wait(const struct result<D> &r, float *waiting)
{
    waiting[0] = r.max;
    waiting[LANES] = r.sum;
#pragma unroll
    for (uint32_t j = 0; j < 2 * D; j++)
#pragma unroll
        for (uint32_t e = 0; e < 2; e++)
            waiting[(2 + 2 * j + e) * LANES] = r.acc[j][e];
}

template <uint32_t D>
__device__ void store(const struct td_attend_job &job, const struct td_attend_span &span,
                      uint32_t row, uint32_t run, bool whole, const struct result<D> &r)
{
    const uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4, dim = job.kv.head_dim;
    const size_t at = (size_t)row * job.n_heads + span.head + g;
    float *to = whole ? job.out + at * dim : job.partials + (at * job.n_runs + run) * (dim + 2);
    const float factor = whole ? 1.0f / r.sum : 1.0f;

    if (g >= span.n)
        return;
    if (!whole) {
        if (t == 0) {
            to[0] = r.max;
            to[1] = r.sum;
        }
        to += 2;
    }
#pragma unroll
    for (uint32_t j = 0; j < 2 * D; j++)
#pragma unroll
        for (uint32_t e = 0; e < 2; e++)
            if (8 * j + 2 * t + e < dim)
                to[8 * j + 2 * t + e] = r.acc[j][e] * factor;
}

template <enum td_dtype T, uint32_t D>
__global__ void __launch_bounds__(LANES)
    flash_tokens(const __grid_constant__ struct td_attend_job job)
{
    td_num_await_earlier();
    constexpr uint32_t P = td_attend_parts<T>, LEVEL = RESULT_FLOATS<D> * LANES;
    struct area<D> *a = (struct area<D> *)td_num_shared();
    float *waiting = (float *)(a + 1) + threadIdx.x;
    const struct td_attend_span span = job.span[blockIdx.y];
    const uint32_t row = blockIdx.x, begin = blockIdx.z * job.run;
    const uint32_t n_keys = job.rows.positions[row] + 1, n_chunks = (n_keys + KEYS - 1) / KEYS;
    const uint32_t end = begin + job.run < n_chunks ? begin + job.run : n_chunks;
    const uint32_t *blocks = job.rows.table + job.rows.first_block[row];
    struct query<D> q;
    struct result<D> r;

    if (begin >= end)
        return;
    const auto bring_half = [&](uint32_t c, uint32_t half) {
        const uint32_t left = n_keys - c * KEYS;

        bring<D>(job, blocks + c * KEYS / job.kv.block_tokens, span.kv_head, half,
                 left < KEYS ? left : (uint32_t)KEYS, half ? a->v : a->k);
    };

    bring_half(begin, 0);
    bring_half(begin, 1);
    bring_query<T, D>(job, span, row, &q);
    for (uint32_t c = begin; c < end; c++) {
        const bool is_last = c + 1 == end;
        uint32_t weight[KEYS / 8][P];
        float s[KEYS / 8][4] = {};

        td_num_copies_wait<1>();
        __syncthreads(); /* the keys are there */
        score<T, D>(q, a->k, s);
        __syncthreads();
        if (!is_last)
            bring_half(c + 1, 0);
        else
            td_num_copies_close(); /* so that one batch is the values', as ever */
        weigh<T, P>(q.scale, n_keys - c * KEYS, s, weight, &r.max, &r.sum);
        td_num_copies_wait<1>();
        __syncthreads(); /* the values are */
        gather<T, D, P>(a->v, weight, &r);
        __syncthreads();
        if (!is_last)
            bring_half(c + 1, 1);
        for (uint32_t level = 0, leaf = c - begin; is_last ? leaf >> level : true; level++) {
            if (leaf >> level & 1) {
                join<D>(waiting + level * LEVEL, &r);
            } else if (!is_last) {
                let_wait<D>(r, waiting + level * LEVEL);
                break;
            }
        }
    }
    store<D>(job, span, row, blockIdx.z, n_chunks <= job.run, r);
}

/* ---- the host's part ---- */

template <uint32_t D> size_t shared_bytes(uint32_t run)
{
    size_t bytes = sizeof(struct area<D>);

    for (; run > 1; run /= 2)
        bytes += RESULT_FLOATS<D> * LANES * sizeof(float);
    return bytes;
}

template <enum td_dtype T, uint32_t D>
bool launch(struct td_cuda *cuda, struct td_attend_job *job, uint32_t n_spans,
            enum td_status *status, struct td_err *err)
{
    if (shared_bytes<D>(2) > cuda->most_shared)
        return false;
    job->row_step = 1;
    *status = td_attend_in_runs(
        cuda, job, job->n * n_spans, cuda->most_shared / BLOCKS_PER_SM, shared_bytes<D>,
        [&](const struct td_attend_job &some) {
            td_cuda_launch(cuda, flash_tokens<T, D>, dim3(some.n, n_spans, some.n_runs),
                           dim3(LANES), shared_bytes<D>(some.run), some);
        },
        err);
    return true;
}

} // namespace

bool td_cuda_flash_tokens(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                          uint32_t n_spans, enum td_status *status, struct td_err *err)
{
    const uint32_t dim = job->kv.head_dim;

    if (type == TD_Q8_0 || dim % 8)
        return false;
#define LAUNCH(T)                                                                                  \
    (dim <= 64    ? launch<T, 4>(cuda, job, n_spans, status, err)                                  \
     : dim <= 128 ? launch<T, 8>(cuda, job, n_spans, status, err)                                  \
                  : launch<T, 16>(cuda, job, n_spans, status, err))
    return type == TD_F16 ? LAUNCH(TD_F16) : LAUNCH(TD_BF16);
#undef LAUNCH
}
