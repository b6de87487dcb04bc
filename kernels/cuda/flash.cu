/* Attention on the tensor cores. A block takes a few rows, whose queries with one KV head are 16 M, and a run of chunks of 64 keys. Of a
 * chunk each warp makes the scores of its share of keys for all queries, then all share the softmax, then each warp makes its share
 * of dimensions; keys come by asynchronous copies while the values are multiplied, and the other way round. A query's numbers are
 * of its own row and chunk alone. q, times a power of two of its own, is
 * the sum of two 16-bit numbers, a weight is rounded to F16, beside a BF16 cache to two BF16; the weights are summed as rounded. */
#include "kernels/cuda/attend.cuh"

namespace
{

enum {
    KEYS = TD_ATTEND_KEYS,
    Q_PARTS = TD_ATTEND_Q_PARTS,
    PAD =
        8, /* numbers at the end of a row of shared memory, so that its columns lie in different banks */
    S_STRIDE = KEYS + 4,
    P_STRIDE = KEYS + PAD,
    FEW_ROWS = 64 /* up to so many rows may be of as many sequences: each has a block of its own */
};

/* A block's shared memory for 16 M queries and heads filled up to 16 D dimensions; weights are sums of P numbers. */
template <uint32_t P, uint32_t M, uint32_t D> struct area {
    static constexpr uint32_t STRIDE = 16 * D + PAD;
    uint16_t k[KEYS * STRIDE], v[KEYS * STRIDE];
    uint16_t q[Q_PARTS][16 * M * STRIDE], p[P][16 * M * P_STRIDE];
    float s[16 * M * S_STRIDE];
    float k_scale[KEYS * D / 2]; /* of 32 dimensions of a key, where the cache has scales */
    float q_scale[16 * M];       /* of a score */
    uint32_t n_keys[16 * M];     /* that a query sees; 0: there is no such query */
    float max[16 * M], sum[16 * M];
};

/* What a thread has of a chunk, or of several joined: of query 16 m + g and 8 more the largest score, the sum of the weights, and
 * the warp's dimensions 8 j + 2t, 2t + 1. */
template <uint32_t M, uint32_t N> struct result {
    float max[M][2], sum[M][2], acc[M][N][4];
};

/* Rows g and g + 8, columns 2t .. and 8 more, of 16 x 16 numbers. */
__device__ __forceinline__ void load_a(const uint16_t *from, uint32_t stride, uint32_t a[4])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

    a[0] = *(const uint32_t *)(from + g * stride + 2 * t);
    a[1] = *(const uint32_t *)(from + (g + 8) * stride + 2 * t);
    a[2] = *(const uint32_t *)(from + g * stride + 2 * t + 8);
    a[3] = *(const uint32_t *)(from + (g + 8) * stride + 2 * t + 8);
}

/* Begins to bring keys or values of `n` tokens from `first` on, zeros behind them and behind their dimensions; one batch of copies.
 * Whole numbers stay whole where `scales` receives what they are multiplied with. */
template <enum td_dtype T, uint32_t D, uint32_t THREADS>
__device__ void bring(const struct td_attend_job &job, const uint32_t *blocks, uint32_t kv_head,
                      uint32_t half, uint32_t first, uint32_t n, uint16_t *to, float *scales)
{
    constexpr uint32_t STRIDE = 16 * D + PAD, OCTETS = 2 * D;
    const uint32_t dim = job.kv.head_dim;

    for (uint32_t i = threadIdx.x; i < KEYS * OCTETS; i += THREADS) {
        const uint32_t key = i / OCTETS, d = i % OCTETS * 8;
        const bool there = key < n && d < dim;
        const uint32_t at = first + (there ? key : 0), token = at % job.kv.block_tokens;
        const uint8_t *cell =
            td_cuda_kv_cell(job.kv, blocks[at / job.kv.block_tokens], kv_head, half);
        uint16_t *dst = to + key * STRIDE + d;

        if ((T == TD_F16 || T == TD_BF16) && dim % 8 == 0)
            td_num_copy16(dst, (const uint16_t *)cell + (size_t)token * dim + (there ? d : 0),
                          there);
        else
            for (uint32_t e = 0; e < 8; e++) {
                float v = 0.0f;

                if (there && d + e < dim)
                    v = T == TD_Q8_0 && scales ? (float)(int8_t)cell[(size_t)token * dim + d + e]
                                               : td_cuda_kv_read<T>(job.kv, cell, token, d + e);
                dst[e] = td_attend_narrow<T>(v);
            }
        if (T == TD_Q8_0 && scales && d % 32 == 0)
            scales[key * (D / 2) + d / 32] =
                there ? td_cuda_kv_scale(job.kv, cell, token, d) : 0.0f;
    }
    td_num_copies_close();
}

/* The queries of `n` rows from `row` on, and what is known of each. */
template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t THREADS>
__device__ void bring_queries(const struct td_attend_job &job, const struct td_attend_span &span,
                              uint32_t row, uint32_t n, struct area<td_attend_parts<T>, M, D> *a)
{
    const uint32_t dim = job.kv.head_dim, lane = threadIdx.x % 32;

    for (uint32_t i = threadIdx.x / 32; i < 16 * M; i += THREADS / 32) {
        const bool there = i < n * span.n;
        const uint32_t at = row + i / span.n;
        const float *q = job.q + ((size_t)at * job.n_heads + span.head + i % span.n) * dim;
        uint32_t max = 0;
        float down;

        for (uint32_t d = lane; there && d < dim; d += 32) {
            const uint32_t bits = td_num_f32_bits(fabsf(q[d] * job.scale));

            max = bits > max ? bits : max;
        }
        const float up = td_attend_up<T>(td_num_warp_max(max), &down);

        for (uint32_t d = lane; d < 16 * D; d += 32) {
            uint16_t part[Q_PARTS];

            td_attend_split<T, Q_PARTS>(there && d < dim ? q[d] * job.scale * up : 0.0f, part);
            for (uint32_t k = 0; k < Q_PARTS; k++)
                a->q[k][i * a->STRIDE + d] = part[k];
        }
        if (lane == 0) {
            a->q_scale[i] = down;
            a->n_keys[i] = there ? job.rows.positions[at] + 1 : 0;
        }
    }
}

/* Scores of the warp's keys for all queries. */
template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t WARPS>
__device__ void score(struct area<td_attend_parts<T>, M, D> *a)
{
    constexpr uint32_t N = KEYS / 8 / WARPS;
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t key = threadIdx.x / 32 * N * 8;
    float c[M][N][4] = {},
          whole[M][N][4] = {}; /* the latter of 32 dimensions, without their scales */

#pragma unroll
    for (uint32_t k = 0; k < D; k++) {
        uint32_t b[N][2];

        for (uint32_t j = 0; j < N; j++) {
            const uint16_t *from = a->k + (key + 8 * j + g) * a->STRIDE + 16 * k + 2 * t;

            b[j][0] = *(const uint32_t *)from;
            b[j][1] = *(const uint32_t *)(from + 8);
        }
        for (uint32_t m = 0; m < M; m++) {
            for (uint32_t i = 0; i < Q_PARTS; i++) {
                uint32_t q[4];

                load_a(a->q[i] + 16 * m * a->STRIDE + 16 * k, a->STRIDE, q);
                for (uint32_t j = 0; j < N; j++)
                    td_attend_mma<T>(T == TD_Q8_0 ? whole[m][j] : c[m][j], q, b[j]);
            }
            for (uint32_t j = 0; T == TD_Q8_0 && k % 2 && j < N; j++)
                for (uint32_t i = 0; i < 4; i++) {
                    const uint32_t of = key + 8 * j + 2 * t + i % 2;

                    c[m][j][i] = fmaf(whole[m][j][i], a->k_scale[of * (D / 2) + k / 2], c[m][j][i]);
                    whole[m][j][i] = 0.0f;
                }
        }
    }
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t j = 0; j < N; j++)
            for (uint32_t i = 0; i < 2; i++) {
                float *to = a->s + (16 * m + g + 8 * i) * S_STRIDE + key + 8 * j + 2 * t;

                to[0] = c[m][j][2 * i];
                to[1] = c[m][j][2 * i + 1];
            }
}

/* Scores into weights; eight lanes have a query. `first` is the chunk's first key. */
template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t THREADS>
__device__ void weigh(struct area<td_attend_parts<T>, M, D> *a, uint32_t first)
{
    const uint32_t lane = threadIdx.x % 8;

    for (uint32_t i = threadIdx.x / 8; i < 16 * M; i += THREADS / 8) {
        const float scale = a->q_scale[i];
        float s[KEYS / 8], max = -INFINITY, sum = 0.0f;

#pragma unroll
        for (uint32_t k = 0; k < KEYS / 8; k++) {
            s[k] = first + 8 * k + lane < a->n_keys[i] ? a->s[i * S_STRIDE + 8 * k + lane] * scale
                                                       : -INFINITY;
            max = s[k] > max ? s[k] : max;
        }
        for (uint32_t mask = 4; mask; mask >>= 1) {
            const float other = td_num_xor(max, mask);

            max = other > max ? other : max;
        }
#pragma unroll
        for (uint32_t k = 0; k < KEYS / 8; k++) {
            uint16_t part[td_attend_parts<T>];

            td_attend_split<T, td_attend_parts<T>>(
                s[k] == -INFINITY ? 0.0f : td_num_exp(s[k] - max), part);
            for (uint32_t j = 0; j < td_attend_parts<T>; j++) {
                a->p[j][i * P_STRIDE + 8 * k + lane] = part[j];
                sum = sum + td_attend_widen<T>(part[j]);
            }
        }
        for (uint32_t mask = 4; mask; mask >>= 1)
            sum = sum + td_num_xor(sum, mask);
        if (lane == 0) {
            a->max[i] = max;
            a->sum[i] = sum;
        }
    }
}

/* The weights times the warp's dimensions of the values. */
template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t N>
__device__ void gather(const struct area<td_attend_parts<T>, M, D> *a, struct result<M, N> *r)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, dim = threadIdx.x / 32 * N * 8;

    *r = {};
#pragma unroll
    for (uint32_t k = 0; k < KEYS / 16; k++) {
        uint32_t p[M][td_attend_parts<T>][4];

        for (uint32_t m = 0; m < M; m++)
            for (uint32_t i = 0; i < td_attend_parts<T>; i++)
                load_a(a->p[i] + 16 * m * P_STRIDE + 16 * k, P_STRIDE, p[m][i]);
        for (uint32_t j = 0; j < N; j++) {
            uint32_t b[2];

            td_num_transposed(a->v + (16 * k + lane % 16) * a->STRIDE + dim + 8 * j, b);
            for (uint32_t m = 0; m < M; m++)
                for (uint32_t i = 0; i < td_attend_parts<T>; i++)
                    td_attend_mma<T>(r->acc[m][j], p[m][i], b);
        }
    }
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t i = 0; i < 2; i++) {
            r->max[m][i] = a->max[16 * m + g + 8 * i];
            r->sum[m][i] = a->sum[16 * m + g + 8 * i];
        }
}

/* right = left and right. A query without a key on the right keeps what is left: 1 times it and zeros. */
template <uint32_t M, uint32_t N, uint32_t THREADS>
__device__ void join(const float *waiting, struct result<M, N> *r)
{
    constexpr uint32_t OF_M = 4 + N * 4;

    for (uint32_t m = 0; m < M; m++) {
        float left[2], right[2];

        for (uint32_t i = 0; i < 2; i++) {
            const float l = waiting[(m * OF_M + i) * THREADS];
            const float l_sum = waiting[(m * OF_M + 2 + i) * THREADS], x = r->max[m][i];
            const float max = x > l ? x : l;

            left[i] = td_num_exp(l - max);
            right[i] = td_num_exp(x - max);
            r->max[m][i] = max;
            r->sum[m][i] = fmaf(l_sum, left[i], r->sum[m][i] * right[i]);
        }
        for (uint32_t j = 0; j < N; j++)
            for (uint32_t k = 0; k < 4; k++)
                r->acc[m][j][k] = fmaf(waiting[(m * OF_M + 4 + j * 4 + k) * THREADS], left[k / 2],
                                       r->acc[m][j][k] * right[k / 2]);
    }
}

template <uint32_t M, uint32_t N, uint32_t THREADS>
__device__ void let_wait(const struct result<M, N> &r, float *waiting)
{
    constexpr uint32_t OF_M = 4 + N * 4;

    for (uint32_t m = 0; m < M; m++) {
        for (uint32_t i = 0; i < 2; i++) {
            waiting[(m * OF_M + i) * THREADS] = r.max[m][i];
            waiting[(m * OF_M + 2 + i) * THREADS] = r.sum[m][i];
        }
        for (uint32_t j = 0; j < N; j++)
            for (uint32_t k = 0; k < 4; k++)
                waiting[(m * OF_M + 4 + j * 4 + k) * THREADS] = r.acc[m][j][k];
    }
}

/* Results of the run, or the whole where there is but one. */
template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t N>
__device__ void store(const struct td_attend_job &job, const struct td_attend_span &span,
                      uint32_t row, uint32_t run, const struct area<td_attend_parts<T>, M, D> *a,
                      const struct result<M, N> &r)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, dim = job.kv.head_dim;
    const uint32_t warp = threadIdx.x / 32;

    for (uint32_t m = 0; m < M; m++)
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t query = 16 * m + g + 8 * i;
            const uint32_t n_chunks = (a->n_keys[query] + KEYS - 1) / KEYS;
            const size_t at =
                (size_t)(row + query / span.n) * job.n_heads + span.head + query % span.n;
            const bool whole = n_chunks <= job.run;
            float *to =
                whole ? job.out + at * dim : job.partials + (at * job.n_runs + run) * (dim + 2);
            const float factor = whole ? 1.0f / r.sum[m][i] : 1.0f;

            if (run * job.run >= n_chunks)
                continue;
            if (!whole) {
                if (warp == 0 && t == 0) {
                    to[0] = r.max[m][i];
                    to[1] = r.sum[m][i];
                }
                to += 2;
            }
            for (uint32_t j = 0; j < N; j++)
                for (uint32_t k = 0; k < 2; k++) {
                    const uint32_t d = (warp * N + j) * 8 + 2 * t + k;

                    if (d < dim)
                        to[d] = r.acc[m][j][2 * i + k] * factor;
                }
        }
}

/* The run's chunks for `n` rows of one sequence. */
template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t WARPS>
__device__ void attend_rows(const struct td_attend_job &job, const struct td_attend_span &span,
                            uint32_t row, uint32_t n, uint32_t run,
                            struct area<td_attend_parts<T>, M, D> *a, float *waiting)
{
    constexpr uint32_t THREADS = 32 * WARPS, N = 2 * D / WARPS;
    constexpr uint32_t LEVEL = M * (4 + N * 4) * THREADS;
    const uint32_t *blocks = job.rows.table + job.rows.first_block[row];
    const uint32_t begin = run * job.run;
    struct result<M, N> r;
    uint32_t n_keys = 0, end;

    for (uint32_t i = 0; i < n; i++)
        n_keys = job.rows.positions[row + i] >= n_keys ? job.rows.positions[row + i] + 1 : n_keys;
    end = (n_keys + KEYS - 1) / KEYS;
    end = begin + job.run < end ? begin + job.run : end;
    if (begin >= end)
        return;
    const auto bring_half = [&](uint32_t c, uint32_t half) {
        bring<T, D, THREADS>(job, blocks, span.kv_head, half, c * KEYS,
                             n_keys - c * KEYS < KEYS ? n_keys - c * KEYS : (uint32_t)KEYS,
                             half ? a->v : a->k, half ? NULL : a->k_scale);
    };

    __syncthreads(); /* all are done with the rows before */
    bring_half(begin, 0);
    bring_half(begin, 1);
    bring_queries<T, M, D, THREADS>(job, span, row, n, a);
    for (uint32_t c = begin; c < end; c++) {
        const bool is_last = c + 1 == end;

        td_num_copies_wait<1>();
        __syncthreads(); /* the keys are there */
        score<T, M, D, WARPS>(a);
        __syncthreads();
        if (!is_last)
            bring_half(c + 1, 0);
        else
            td_num_copies_close(); /* so that one batch is the values', as ever */
        weigh<T, M, D, THREADS>(a, c * KEYS);
        td_num_copies_wait<1>();
        __syncthreads(); /* the values are */
        gather<T, M, D, N>(a, &r);
        __syncthreads();
        if (!is_last)
            bring_half(c + 1, 1);
        for (uint32_t level = 0, leaf = c - begin; is_last ? leaf >> level : true; level++) {
            if (leaf >> level & 1) {
                join<M, N, THREADS>(waiting + level * LEVEL + threadIdx.x, &r);
            } else if (!is_last) {
                let_wait<M, N, THREADS>(r, waiting + level * LEVEL + threadIdx.x);
                break;
            }
        }
    }
    store<T, M, D, N>(job, span, row, run, a, r);
}

template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t WARPS>
__global__ void __launch_bounds__(32 * WARPS, 1)
    flash(const __grid_constant__ struct td_attend_job job)
{
    td_num_await_earlier();
    struct area<td_attend_parts<T>, M, D> *a =
        (struct area<td_attend_parts<T>, M, D> *)td_num_shared();
    const struct td_attend_span span = job.span[blockIdx.y];
    const uint32_t begin = blockIdx.x * job.row_step;
    const uint32_t end = begin + job.row_step < job.n ? begin + job.row_step : job.n;

    /* Neighbours of one sequence go together. */
    for (uint32_t row = begin, next; row < end; row = next) {
        next = row + 1;
        while (next < end && job.rows.first_block[next] == job.rows.first_block[row])
            next++;
        attend_rows<T, M, D, WARPS>(job, span, row, next - row, blockIdx.z, a, (float *)(a + 1));
    }
}

/* ---- the host's part ---- */

template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t WARPS> size_t shared_bytes(uint32_t run)
{
    size_t bytes = sizeof(struct area<td_attend_parts<T>, M, D>);

    for (; run > 1; run /= 2)
        bytes += M * (4 + 2 * D / WARPS * 4) * 32 * WARPS * sizeof(float);
    return bytes;
}

template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t WARPS>
enum td_status launch(struct td_cuda *cuda, struct td_attend_job *job, uint32_t n_spans,
                      struct td_err *err)
{
    return td_attend_in_runs(
        cuda, job, (job->n + job->row_step - 1) / job->row_step * n_spans, cuda->most_shared,
        shared_bytes<T, M, D, WARPS>,
        [&](const struct td_attend_job &some) {
            td_cuda_launch(cuda, flash<T, M, D, WARPS>,
                           dim3((some.n + some.row_step - 1) / some.row_step, n_spans, some.n_runs),
                           dim3(32 * WARPS), shared_bytes<T, M, D, WARPS>(some.run), some);
        },
        err);
}

/* Whether a block of the shape has room for the shortest runs. */
template <enum td_dtype T, uint32_t M, uint32_t D, uint32_t WARPS>
bool fits(const struct td_cuda *cuda)
{
    return shared_bytes<T, M, D, WARPS>(2) <= cuda->most_shared;
}

template <enum td_dtype T, uint32_t D>
enum td_status launch_for(struct td_cuda *cuda, struct td_attend_job *job, uint32_t n_spans,
                          struct td_err *err)
{
    uint32_t most = 1;

    for (uint32_t i = 0; i < n_spans; i++)
        most = job->span[i].n > most ? job->span[i].n : most;
    if (job->n > FEW_ROWS && fits<T, 4, D, 8>(cuda)) {
        job->row_step = 64 / most;
        return launch<T, 4, D, 8>(cuda, job, n_spans, err);
    }
    job->row_step = job->n > FEW_ROWS ? 16 / most : 1;
    return launch<T, 1, D, 4>(cuda, job, n_spans, err);
}

} // namespace

enum td_status td_cuda_flash(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                             uint32_t n_spans, struct td_err *err)
{
    const uint32_t dim = job->kv.head_dim;
    enum td_status s;

    if ((job->n <= FEW_ROWS || job->n < 2 * job->rows.n_seqs) &&
        td_cuda_flash_tokens(cuda, type, job, n_spans, &s, err))
        return s;
#define LAUNCH(T)                                                                                  \
    (dim <= 64    ? launch_for<T, 4>(cuda, job, n_spans, err)                                      \
     : dim <= 128 ? launch_for<T, 8>(cuda, job, n_spans, err)                                      \
                  : launch_for<T, 16>(cuda, job, n_spans, err))
    return type == TD_F16 ? LAUNCH(TD_F16) : type == TD_BF16 ? LAUNCH(TD_BF16) : LAUNCH(TD_Q8_0);
#undef LAUNCH
}
