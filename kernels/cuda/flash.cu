/* Attention on the tensor cores. A block takes neighbouring rows, with the query heads of one KV head, and a run of chunks of 64 keys; a
 * warp has 8 I of its queries and keeps them, the scores of a chunk, its weights and its results in registers. Of single tokens a block is
 * one warp with one row, of prompts more warps share the keys. Keys of the next chunk come while the values are multiplied, values while
 * the keys are. A query's numbers are of its own row and chunk alone: q, times a power of two of its own, is the sum of two 16-bit
 * numbers, a weight is rounded to F16, beside a BF16 cache to two BF16; the weights are summed as rounded. */
#include "kernels/cuda/attend.cuh"

namespace
{

enum {
    KEYS = TD_ATTEND_KEYS,
    Q_PARTS = 2,
    PAD = 8, /* numbers at the end of a row of shared memory: its columns lie in different banks */
    FEW_ROWS = 64, /* up to so many rows may be of as many sequences: each has blocks of its own */
    WARPS = 4,     /* that share keys */
    LEAST_RUN = 2, /* chunks */
    ROW_BLOCKS_PER_SM = 4,
    BLOCKS_PER_SM = 2 /* of more warps than one */
};

/* 16-bit numbers that a weight is the sum of; a query's, whose error the exponential makes larger, is always of Q_PARTS. */
template <enum td_dtype T> constexpr uint32_t PARTS = T == TD_BF16 ? 2 : 1;

/* A block's shared memory for heads filled up to 16 D dimensions, without the results that wait. */
template <uint32_t D> struct area {
    static constexpr uint32_t STRIDE = 16 * D + PAD;
    uint16_t k[KEYS * STRIDE], v[KEYS * STRIDE];
    float k_scale[KEYS * D / 2]; /* of 32 dimensions of a key, where the cache has scales */
};

/* Of queries g and 8 more: dimensions 16 k + 2t, 2t + 1 and 8 more. */
template <uint32_t D, uint32_t I> struct query {
    uint32_t pair[D][Q_PARTS][2][I];
    float scale[I];     /* of a score */
    uint32_t first[I];  /* key that it sees */
    uint32_t n_seen[I]; /* keys from there on; 0: there is no such query */
};

/* What a chunk, or several joined, give them; dimensions 8 j + 2t, 2t + 1. */
template <uint32_t D, uint32_t I> struct result {
    float max[I], sum[I], acc[2 * D][I][2];
    static constexpr uint32_t FLOATS = I * (2 + 4 * D);
};

template <enum td_dtype T, uint32_t N>
__device__ __forceinline__ void split(float v, uint16_t part[N])
{
    for (uint32_t i = 0; i < N; i++) {
        part[i] = td_attend_narrow<T>(v);
        v = v - (T == TD_BF16 ? td_num_bf16(part[i]) : td_num_f16(part[i]));
    }
}

/* ---- keys and values on their way ---- */

/* One octet of dimensions, number by number. */
template <enum td_dtype T>
__device__ void bring_slowly(const struct td_attend_job &job, const uint8_t *cell, uint32_t token,
                             uint32_t d, bool there, bool whole, uint16_t *to)
{
    for (uint32_t e = 0; e < 8; e++) {
        float v = 0.0f;

        if (there && d + e < job.kv.head_dim)
            v = T == TD_Q8_0 && whole ? (float)(int8_t)cell[(size_t)token * job.kv.head_dim + d + e]
                                      : td_cuda_kv_read<T>(job.kv, cell, token, d + e);
        to[e] = td_attend_narrow<T>(v);
    }
}

/* Begins to bring keys or values of `n` tokens from `blocks` on, zeros behind them and behind their dimensions; one batch of copies.
 * Whole numbers stay whole where `scales` receives what they are multiplied with. */
template <enum td_dtype T, uint32_t D, uint32_t THREADS>
__device__ __forceinline__ void bring(const struct td_attend_job &job, const uint32_t *blocks,
                                      uint32_t kv_head, uint32_t half, uint32_t n, uint16_t *to,
                                      float *scales)
{
    constexpr uint32_t STRIDE = area<D>::STRIDE, OCTETS = 2 * D, AT_ONCE = THREADS / OCTETS;
    const uint32_t dim = job.kv.head_dim, per_block = job.kv.block_tokens;
    const uint32_t d = threadIdx.x % OCTETS * 8, begin = threadIdx.x / OCTETS;
    const bool is_fast = T == TD_Q8_0 ? job.kv.half_bytes % 8 == 0 : dim % 8 == 0;

    for (uint32_t first = 0; first < KEYS; first += per_block, blocks++) {
        const uint32_t left = first >= n || d >= dim ? 0 : n - first;
        const uint8_t *cell = td_cuda_kv_cell(job.kv, left ? *blocks : 0, kv_head, half);
        uint16_t *dst = to + first * STRIDE + d;

#pragma unroll 4
        for (uint32_t token = begin; token < per_block; token += AT_ONCE) {
            const bool there = token < left;
            const size_t at = there ? (size_t)token * dim + d : 0;

            if (!is_fast) {
                bring_slowly<T>(job, cell, token, d, there, scales != NULL, dst + token * STRIDE);
            } else if (!td_attend_is_bytes<T>) {
                td_num_copy16(dst + token * STRIDE, (const uint16_t *)cell + at, there);
            } else {
                const bool has_scale = T == TD_Q8_0 && there && !scales;
                const float scale = has_scale ? td_cuda_kv_scale(job.kv, cell, token, d) : 1.0f;
                uint2 raw = {0, 0};

                if (there)
                    raw = *(const uint2 *)(cell + at);
                *(uint4 *)(dst + token * STRIDE) = td_attend_widen<T>(raw, td_num_to_f16(scale));
            }
            if (T == TD_Q8_0 && scales && d % 32 == 0)
                scales[(first + token) * (D / 2) + d / 32] =
                    there ? td_cuda_kv_scale(job.kv, cell, token, d) : 0.0f;
        }
    }
    td_num_copies_close();
}

/* The warp's queries, of `n` rows from `row` on, whose keys are counted from position `base` on. */
template <enum td_dtype T, uint32_t D, uint32_t I>
__device__ void bring_queries(const struct td_attend_job &job, const struct td_attend_span &span,
                              uint32_t row, uint32_t n, uint32_t base, struct query<D, I> *to)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, dim = job.kv.head_dim;

#pragma unroll
    for (uint32_t i = 0; i < I; i++) {
        const uint32_t number = threadIdx.x / 32 * 8 * I + 8 * i + g;
        const bool there = number < n * span.n;
        const uint32_t at = row + (there ? number / span.n : 0);
        const float *q = job.q + ((size_t)at * job.n_heads + span.head + number % span.n) * dim;
        float v[4 * D];
        uint32_t max = 0;

#pragma unroll
        for (uint32_t k = 0; k < 4 * D; k++) {
            const uint32_t d = 8 * (k / 2) + 2 * t + k % 2;

            v[k] = there && d < dim ? q[d] * job.scale : 0.0f;
            max = max > td_num_f32_bits(fabsf(v[k])) ? max : td_num_f32_bits(fabsf(v[k]));
        }
        for (uint32_t mask = 2; mask; mask >>= 1) {
            const uint32_t other = td_num_xor(max, mask);

            max = other > max ? other : max;
        }
        const float up = td_attend_up<T>(max, &to->scale[i]);

        const uint32_t position = job.rows.positions[at], sees = td_attend_first(job, position);

        to->first[i] = sees - base;
        to->n_seen[i] = there ? position + 1 - sees : 0;
#pragma unroll
        for (uint32_t k = 0; k < 2 * D; k++) {
            uint16_t low[Q_PARTS], high[Q_PARTS];

            split<T, Q_PARTS>(v[2 * k] * up, low);
            split<T, Q_PARTS>(v[2 * k + 1] * up, high);
            for (uint32_t p = 0; p < Q_PARTS; p++)
                to->pair[k / 2][p][k % 2][i] = low[p] | (uint32_t)high[p] << 16;
        }
    }
}

/* ---- a chunk ---- */

/* Rows g and 8 more of 16 x 16 numbers, from pairs of the first 8 columns and of the others. */
template <enum td_dtype T, uint32_t I>
__device__ __forceinline__ void multiply(float c[4], const uint32_t first[I],
                                         const uint32_t second[I], const uint32_t b[2])
{
    const uint32_t a[4] = {first[0], I == 2 ? first[I - 1] : 0, second[0],
                           I == 2 ? second[I - 1] : 0};

    td_attend_mma<T>(c, a, b);
}

/* s [8 I queries x KEYS] = the queries times the keys: lane 4g + t has keys 8 j + 2t, 2t + 1. */
template <enum td_dtype T, uint32_t D, uint32_t I>
__device__ __forceinline__ void score(const struct query<D, I> &q, const struct area<D> *a,
                                      float s[KEYS / 8][4])
{
    constexpr uint32_t STRIDE = area<D>::STRIDE;
    const uint32_t lane = threadIdx.x % 32, t = lane % 4;
    const uint16_t *k = a->k + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
    float whole[KEYS / 8][4] = {}; /* of 32 dimensions, without their scales */

#pragma unroll
    for (uint32_t d = 0; d < D; d++)
#pragma unroll
        for (uint32_t j = 0; j < KEYS / 8; j += 2) {
            uint32_t b[4];

            td_num_tables(k + 8 * j * STRIDE + 16 * d, b);
#pragma unroll
            for (uint32_t p = 0; p < Q_PARTS; p++)
#pragma unroll
                for (uint32_t m = 0; m < 2; m++)
                    multiply<T, I>(T == TD_Q8_0 ? whole[j + m] : s[j + m], q.pair[d][p][0],
                                   q.pair[d][p][1], b + 2 * m);
            if constexpr (T == TD_Q8_0)
#pragma unroll
                for (uint32_t i = 0; i < (d % 2 ? 8 : 0); i++) {
                    const uint32_t m = j + i / 4;
                    const float scale = a->k_scale[(8 * m + 2 * t + i % 2) * (D / 2) + d / 2];

                    s[m][i % 4] = fmaf(whole[m][i % 4], scale, s[m][i % 4]);
                    whole[m][i % 4] = 0.0f;
                }
        }
}

/* Scores into weights; `key` is the chunk's first one. A weight's sum is taken key by key eight apart, then of four, two and one
 * apart. */
template <enum td_dtype T, uint32_t D, uint32_t I>
__device__ __forceinline__ void
weigh(const struct td_attend_job &job, const struct query<D, I> &q, uint32_t key,
      const float s[KEYS / 8][4], uint32_t weight[KEYS / 8][PARTS<T>][I], struct result<D, I> *r)
{
    constexpr uint32_t P = PARTS<T>;
    const uint32_t t = threadIdx.x % 4;

#pragma unroll
    for (uint32_t i = 0; i < I; i++) {
        const uint32_t from_first = key + 2 * t - q.first[i];
        float v[KEYS / 8][2], max = -INFINITY, sum[2] = {0.0f, 0.0f};

#pragma unroll
        for (uint32_t j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (uint32_t e = 0; e < 2; e++)
                v[j][e] = s[j][2 * i + e] * q.scale[i];
        if (job.softcap > 0.0f)
#pragma unroll
            for (uint32_t j = 0; j < KEYS / 4; j++)
                v[j / 2][j % 2] = td_num_softcap(v[j / 2][j % 2], job.softcap, 2.0f / job.softcap);
#pragma unroll
        for (uint32_t j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) {
                v[j][e] = from_first + 8 * j + e < q.n_seen[i] ? v[j][e] : -INFINITY;
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
                split<T, P>(v[j][e] == -INFINITY ? 0.0f : td_num_exp(v[j][e] - max), part[e]);
                for (uint32_t p = 0; p < P; p++)
                    sum[e] =
                        sum[e] + (T == TD_BF16 ? td_num_bf16(part[e][p]) : td_num_f16(part[e][p]));
            }
            for (uint32_t p = 0; p < P; p++)
                weight[j][p][i] = part[0][p] | (uint32_t)part[1][p] << 16;
        }
        for (uint32_t mask = 2; mask; mask >>= 1)
            for (uint32_t e = 0; e < 2; e++)
                sum[e] = sum[e] + td_num_xor(sum[e], mask);
        r->max[i] = max;
        r->sum[i] = sum[0] + sum[1];
    }
}

/* The weights times the values. */
template <enum td_dtype T, uint32_t D, uint32_t I>
__device__ __forceinline__ void gather(const struct area<D> *a,
                                       const uint32_t weight[KEYS / 8][PARTS<T>][I],
                                       struct result<D, I> *r)
{
    constexpr uint32_t STRIDE = area<D>::STRIDE;
    const uint32_t lane = threadIdx.x % 32;
    const uint16_t *v = a->v + lane % 16 * STRIDE + lane / 16 * 8;
    float acc[2 * D][4] = {};

#pragma unroll
    for (uint32_t k = 0; k < KEYS / 8; k += 2)
#pragma unroll
        for (uint32_t j = 0; j < 2 * D; j += 2) {
            uint32_t b[4];

            td_num_tables_turned(v + 8 * k * STRIDE + 8 * j, b);
#pragma unroll
            for (uint32_t p = 0; p < PARTS<T>; p++)
#pragma unroll
                for (uint32_t m = 0; m < 2; m++)
                    multiply<T, I>(acc[j + m], weight[k][p], weight[k + 1][p], b + 2 * m);
        }
#pragma unroll
    for (uint32_t j = 0; j < 2 * D; j++)
#pragma unroll
        for (uint32_t i = 0; i < 2 * I; i++)
            r->acc[j][i / 2][i % 2] = acc[j][i];
}

/* ---- chunks together ---- */

/* right = left and right. A query without a key on the right keeps what is left: 1 times it and zeros; the left is never without, for
 * rows that share a block follow one another. */
template <uint32_t D, uint32_t I, uint32_t THREADS>
__device__ void join(const float *waiting, struct result<D, I> *r)
{
#pragma unroll
    for (uint32_t i = 0; i < I; i++) {
        const float *w = waiting + i * (2 + 4 * D) * THREADS;
        const float max = r->max[i] > w[0] ? r->max[i] : w[0];
        const float left = td_num_exp(w[0] - max), right = td_num_exp(r->max[i] - max);

        r->max[i] = max;
        r->sum[i] = fmaf(w[THREADS], left, r->sum[i] * right);
#pragma unroll
        for (uint32_t j = 0; j < 4 * D; j++)
            r->acc[j / 2][i][j % 2] =
                fmaf(w[(2 + j) * THREADS], left, r->acc[j / 2][i][j % 2] * right);
    }
}

template <uint32_t D, uint32_t I, uint32_t THREADS>
__device__ void let_wait(const struct result<D, I> &r, float *waiting)
{
#pragma unroll
    for (uint32_t i = 0; i < I; i++) {
        float *w = waiting + i * (2 + 4 * D) * THREADS;

        w[0] = r.max[i];
        w[THREADS] = r.sum[i];
#pragma unroll
        for (uint32_t j = 0; j < 4 * D; j++)
            w[(2 + j) * THREADS] = r.acc[j / 2][i][j % 2];
    }
}

/* Results of the run, or the whole where there is but one. */
template <uint32_t D, uint32_t I>
__device__ void store(const struct td_attend_job &job, const struct td_attend_span &span,
                      uint32_t row, uint32_t run, const struct query<D, I> &q,
                      const struct result<D, I> &r)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, dim = job.kv.head_dim;

#pragma unroll
    for (uint32_t i = 0; i < I; i++) {
        const uint32_t number = threadIdx.x / 32 * 8 * I + 8 * i + g;
        const uint32_t n_chunks = (q.first[i] + q.n_seen[i] + KEYS - 1) / KEYS;
        const uint32_t head = span.head + number % span.n;
        const size_t at = (size_t)(row + number / span.n) * job.n_heads + head;
        const bool whole = n_chunks <= job.run;
        float *to = whole ? job.out + at * dim : job.partials + (at * job.n_runs + run) * (dim + 2);
        float factor = 1.0f;

        if (q.n_seen[i] == 0 || run * job.run >= n_chunks)
            continue;
        if (whole)
            factor = td_attend_factor(job, head, r.max[i], r.sum[i]);
        if (!whole) {
            if (t == 0) {
                to[0] = r.max[i];
                to[1] = r.sum[i];
            }
            to += 2;
        }
#pragma unroll
        for (uint32_t j = 0; j < 4 * D; j++)
            if (8 * (j / 2) + 2 * t + j % 2 < dim)
                to[8 * (j / 2) + 2 * t + j % 2] = r.acc[j / 2][i][j % 2] * factor;
    }
}

/* The run's chunks for `n` rows of one sequence whose keys begin in the same chunk. */
template <enum td_dtype T, uint32_t D, uint32_t I, uint32_t THREADS>
__device__ void attend_rows(const struct td_attend_job &job, const struct td_attend_span &span,
                            uint32_t row, uint32_t n, uint32_t run, struct area<D> *a,
                            float *waiting)
{
    constexpr uint32_t LEVEL = result<D, I>::FLOATS * THREADS;
    const uint32_t base = td_attend_base(job, job.rows.positions[row]);
    const uint32_t *blocks =
        job.rows.table + job.rows.first_block[row] + base / job.kv.block_tokens;
    const uint32_t begin = run * job.run;
    struct query<D, I> q;
    struct result<D, I> r;
    uint32_t n_keys = 0, end;

    for (uint32_t i = 0; i < n; i++)
        n_keys = job.rows.positions[row + i] >= n_keys ? job.rows.positions[row + i] + 1 : n_keys;
    n_keys -= base;
    end = (n_keys + KEYS - 1) / KEYS;
    end = begin + job.run < end ? begin + job.run : end;
    if (begin >= end)
        return;
    const auto bring_half = [&](uint32_t c, uint32_t half) {
        const uint32_t left = n_keys - c * KEYS;

        bring<T, D, THREADS>(job, blocks + c * KEYS / job.kv.block_tokens, span.kv_head, half,
                             left < KEYS ? left : (uint32_t)KEYS, half ? a->v : a->k,
                             half ? NULL : a->k_scale);
    };

    __syncthreads(); /* all are done with the rows before */
    bring_half(begin, 0);
    bring_half(begin, 1);
    bring_queries<T, D, I>(job, span, row, n, base, &q);
    for (uint32_t c = begin; c < end; c++) {
        const bool is_last = c + 1 == end;
        uint32_t weight[KEYS / 8][PARTS<T>][I];
        float s[KEYS / 8][4] = {};

        td_num_copies_wait<1>();
        __syncthreads(); /* the keys are there */
        score<T, D, I>(q, a, s);
        __syncthreads();
        if (!is_last)
            bring_half(c + 1, 0);
        else
            td_num_copies_close(); /* so that one batch is the values', as ever */
        weigh<T, D, I>(job, q, c * KEYS, s, weight, &r);
        td_num_copies_wait<1>();
        __syncthreads(); /* the values are */
        gather<T, D, I>(a, weight, &r);
        __syncthreads();
        if (!is_last)
            bring_half(c + 1, 1);
        for (uint32_t level = 0, leaf = c - begin; is_last ? leaf >> level : true; level++) {
            if (leaf >> level & 1) {
                join<D, I, THREADS>(waiting + level * LEVEL, &r);
            } else if (!is_last) {
                let_wait<D, I, THREADS>(r, waiting + level * LEVEL);
                break;
            }
        }
    }
    store<D, I>(job, span, row, run, q, r);
}

/* Of large heads all registers are asked for, else one kernel spills three times as much. */
template <enum td_dtype T, uint32_t D, uint32_t I, uint32_t W>
__global__ void __launch_bounds__(32 * W, D > 8 ? 1 : 0)
    flash(const __grid_constant__ struct td_attend_job job)
{
    td_num_await_earlier();
    struct area<D> *a = (struct area<D> *)td_num_shared();
    const struct td_attend_span span = job.span[blockIdx.y];
    const uint32_t begin = blockIdx.x * job.row_step;
    const uint32_t end = begin + job.row_step < job.n ? begin + job.row_step : job.n;

    /* Neighbours of one sequence go together where their keys begin together. */
    for (uint32_t row = begin, next; row < end; row = next) {
        const uint32_t base = td_attend_base(job, job.rows.positions[row]);

        next = row + 1;
        while (next < end && job.rows.first_block[next] == job.rows.first_block[row] &&
               td_attend_base(job, job.rows.positions[next]) == base)
            next++;
        attend_rows<T, D, I, 32 * W>(job, span, row, next - row, blockIdx.z, a,
                                     (float *)(a + 1) + threadIdx.x);
    }
}

/* ---- the host's part ---- */

template <uint32_t D, uint32_t I, uint32_t W> size_t shared_bytes(uint32_t run)
{
    size_t bytes = sizeof(struct area<D>);

    for (; run > 1; run /= 2)
        bytes += result<D, I>::FLOATS * 32 * W * sizeof(float);
    return bytes;
}

/* Runs are as long as there are enough of them to fill the device and a block has room for one; rows go as many at a time as their
 * partial results have room for. */
template <enum td_dtype T, uint32_t D, uint32_t I, uint32_t W>
enum td_status launch(struct td_cuda *cuda, struct td_attend_job *job, uint32_t n_spans,
                      struct td_err *err)
{
    const uint32_t n_chunks = td_attend_chunks(job), n = job->n;
    const uint32_t n_blocks = (n + job->row_step - 1) / job->row_step * n_spans;
    const size_t room = td_cuda_shared_of(cuda, W == 1 ? ROW_BLOCKS_PER_SM : BLOCKS_PER_SM);
    const size_t row_bytes = sizeof(float) * job->n_heads * (job->kv.head_dim + 2);
    const struct td_attend_job all = *job;
    uint32_t at_once = n;

    job->run = 1;
    while (job->run < n_chunks)
        job->run *= 2;
    while (job->run > LEAST_RUN && ((uint64_t)n_blocks * ((n_chunks + job->run - 1) / job->run) <
                                        (uint64_t)ROW_BLOCKS_PER_SM * cuda->n_sms ||
                                    shared_bytes<D, I, W>(job->run) > room))
        job->run /= 2;
    job->n_runs = (n_chunks + job->run - 1) / job->run;
    if (job->n_runs > 1) {
        const uint32_t most = (uint32_t)(TD_CUDA_PARTIAL_BYTES / (row_bytes * job->n_runs));
        enum td_status s;

        if (most < n)
            at_once = most / job->row_step * job->row_step;
        if (at_once == 0) /* a block takes fewer, then */
            at_once = job->row_step = most ? most : 1;
        s = td_cuda_reserve(cuda, &cuda->scratch, row_bytes * job->n_runs * at_once, err);
        if (s)
            return s;
        job->partials = (float *)cuda->scratch.data;
    }
    for (uint32_t row = 0; row < n; row += at_once) {
        job->n = n - row < at_once ? n - row : at_once;
        job->rows.positions = all.rows.positions + row;
        job->rows.first_block = all.rows.first_block + row;
        job->q = all.q + (size_t)row * job->n_heads * job->kv.head_dim;
        job->out = all.out + (size_t)row * job->n_heads * job->kv.head_dim;
        td_cuda_launch(cuda, flash<T, D, I, W>,
                       dim3((job->n + job->row_step - 1) / job->row_step, n_spans, job->n_runs),
                       dim3(32 * W), shared_bytes<D, I, W>(job->run), *job);
        if (job->n_runs > 1)
            td_cuda_join_runs(cuda, job);
    }
    return TD_OK;
}

template <enum td_dtype T, uint32_t D>
enum td_status launch_for(struct td_cuda *cuda, struct td_attend_job *job, uint32_t n_spans,
                          struct td_err *err)
{
    constexpr uint32_t I = D > 8 ? 1 : 2; /* registers */
    const bool is_prompt = job->n > FEW_ROWS && job->n >= 2 * job->rows.n_seqs;
    uint32_t most = 1;

    for (uint32_t i = 0; i < n_spans; i++)
        most = job->span[i].n > most ? job->span[i].n : most;
    if (is_prompt && shared_bytes<D, I, WARPS>(LEAST_RUN) <= cuda->most_shared) {
        job->row_step = WARPS * 8 * I / most;
        return launch<T, D, I, WARPS>(cuda, job, n_spans, err);
    }
    job->row_step = 1;
    return launch<T, D, 1, 1>(cuda, job, n_spans, err);
}

} // namespace

enum td_status td_cuda_flash(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                             uint32_t n_spans, struct td_err *err)
{
    const uint32_t dim = job->kv.head_dim;

#define LAUNCH(T)                                                                                  \
    (dim <= 64    ? launch_for<T, 4>(cuda, job, n_spans, err)                                      \
     : dim <= 128 ? launch_for<T, 8>(cuda, job, n_spans, err)                                      \
                  : launch_for<T, 16>(cuda, job, n_spans, err))
    return type == TD_F16    ? LAUNCH(TD_F16)
           : type == TD_BF16 ? LAUNCH(TD_BF16)
           : type == TD_Q8_0 ? LAUNCH(TD_Q8_0)
                             : LAUNCH(TD_F8_E4M3);
#undef LAUNCH
}
