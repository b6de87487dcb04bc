/* Attention of prompts where bits may depend on who is in the call (--exact off): a warp keeps the scores, weights and results of its
 * queries in registers and goes over all keys once, with the largest score so far (Dao 2023, FlashAttention-2). A query, a weight: one
 * 16-bit number each. A block takes neighbouring rows of one sequence with the query heads of one KV head; keys and values of the next
 * chunk come while this one is multiplied. */
#include "kernels/cuda/attend.cuh"

namespace
{

enum { KEYS = TD_ATTEND_KEYS, WARPS = 4, THREADS = 32 * WARPS, PAD = 8 };

/* Shared memory for 16 M queries a warp and heads filled up to 16 D dimensions. */
template <uint32_t M, uint32_t D> struct area {
    static constexpr uint32_t STRIDE = 16 * D + PAD, QUERIES = 16 * M * WARPS;
    uint16_t q[QUERIES * STRIDE], k[2][KEYS * STRIDE], v[2][KEYS * STRIDE];
    float q_scale[QUERIES];   /* of a score */
    uint32_t first[QUERIES];  /* key that a query sees */
    uint32_t n_seen[QUERIES]; /* keys from there on; 0: there is no such query */
};

/* Of queries 16 m + g and 8 more. */
template <uint32_t M, uint32_t D> struct state {
    float max[M][2], sum[M][2]; /* the sum is of the thread's own keys */
    float acc[M][2 * D][4];     /* dimensions 8 j + 2t, 2t + 1 */
};

/* Begins to bring keys and values of `n` tokens from `first` on, zeros behind them and behind their dimensions. */
template <enum td_dtype T, uint32_t D>
__device__ void bring(const struct td_attend_job &job, const uint32_t *blocks, uint32_t kv_head,
                      uint32_t first, uint32_t n, uint16_t *k, uint16_t *v)
{
    constexpr uint32_t STRIDE = 16 * D + PAD, OCTETS = 2 * D, AT_ONCE = THREADS / OCTETS;
    const uint32_t dim = job.kv.head_dim, per_block = job.kv.block_tokens;
    const uint32_t d = threadIdx.x % OCTETS * 8;
    uint32_t key = threadIdx.x / OCTETS, block = (first + key) / per_block;
    uint32_t token = first + key - block * per_block;

#pragma unroll 8
    for (uint32_t i = 0; i < KEYS / AT_ONCE; i++) {
        const bool there = key < n && d < dim;
        const uint8_t *cell =
            td_cuda_kv_cell(job.kv, blocks[there ? block : first / per_block], kv_head, 0);
        const size_t at = there ? (size_t)token * dim + d : 0;

        if (!td_attend_is_bytes<T>) {
            td_num_copy16(k + key * STRIDE + d, (const uint16_t *)cell + at, there);
            td_num_copy16(v + key * STRIDE + d, (const uint16_t *)(cell + job.kv.half_bytes) + at,
                          there);
        } else {
            for (uint32_t half = 0; half < 2; half++, cell += job.kv.half_bytes) {
                const bool has_scale = T == TD_Q8_0 && there;
                const float scale = has_scale ? td_cuda_kv_scale(job.kv, cell, token, d) : 1.0f;
                uint2 raw = {0, 0};

                if (there)
                    raw = *(const uint2 *)(cell + at);
                *(uint4 *)((half ? v : k) + key * STRIDE + d) =
                    td_attend_widen<T>(raw, td_num_to_f16(scale));
            }
        }
        key += AT_ONCE;
        for (token += AT_ONCE; token >= per_block; token -= per_block)
            block++;
    }
    td_num_copies_close();
}

/* The queries of `n` rows from `row` on, each in units that make a weight a power of two; those of a warp are brought by itself. */
template <enum td_dtype T, uint32_t M, uint32_t D>
__device__ void bring_queries(const struct td_attend_job &job, const struct td_attend_span &span,
                              uint32_t row, uint32_t n, struct area<M, D> *a)
{
    const uint32_t dim = job.kv.head_dim, lane = threadIdx.x % 32;
    const float scale = job.scale * 1.44269504f; /* of log2 e */

    for (uint32_t i = threadIdx.x / 32 * 16 * M, end = i + 16 * M; i < end; i++) {
        const bool there = i < n * span.n;
        const uint32_t at = row + i / span.n;
        const float *q = job.q + ((size_t)at * job.n_heads + span.head + i % span.n) * dim;
        uint32_t max = 0;
        float v[D / 2], down;

        for (uint32_t k = 0; k < D / 2; k++) {
            v[k] = there && 32 * k + lane < dim ? q[32 * k + lane] * scale : 0.0f;
            max = max > td_num_f32_bits(fabsf(v[k])) ? max : td_num_f32_bits(fabsf(v[k]));
        }
        const float up = td_attend_up<T>(td_num_warp_max(max), &down);

        for (uint32_t k = 0; k < D / 2; k++)
            a->q[i * a->STRIDE + 32 * k + lane] = td_attend_narrow<T>(v[k] * up);
        if (lane == 0) {
            a->q_scale[i] = down;
            a->first[i] = there ? td_attend_first(job, job.rows.positions[at]) : 0;
            a->n_seen[i] = there ? job.rows.positions[at] + 1 - a->first[i] : 0;
        }
    }
}

/* s [16 M queries x KEYS] = the warp's queries times the keys. */
template <enum td_dtype T, uint32_t M, uint32_t D>
__device__ __forceinline__ void score(const struct area<M, D> *a, const uint16_t *keys,
                                      float s[M][KEYS / 8][4])
{
    const uint32_t lane = threadIdx.x % 32;
    const uint16_t *q = a->q + (threadIdx.x / 32 * 16 * M + lane % 16) * a->STRIDE + lane / 16 * 8;
    const uint16_t *k = keys + (lane / 16 * 8 + lane % 8) * a->STRIDE + lane / 8 % 2 * 8;

#pragma unroll
    for (uint32_t d = 0; d < D; d++) {
        uint32_t of_q[M][4];

#pragma unroll
        for (uint32_t m = 0; m < M; m++)
            td_num_tables(q + 16 * m * a->STRIDE + 16 * d, of_q[m]);
#pragma unroll
        for (uint32_t j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];

            td_num_tables(k + 16 * j * a->STRIDE + 16 * d, b);
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                td_attend_mma<T>(s[m][2 * j], of_q[m], b);
                td_attend_mma<T>(s[m][2 * j + 1], of_q[m], b + 2);
            }
        }
    }
}

/* Scores become cap tanh(score / cap), in units that make a weight a power of two. */
template <uint32_t M, uint32_t D>
__device__ void cap_scores(float cap, const struct area<M, D> *a, float s[M][KEYS / 8][4])
{
    const uint32_t query = threadIdx.x / 32 * 16 * M + threadIdx.x % 32 / 4;
    const float by_cap = 2.0f / cap, to_log2 = cap * 1.44269504f;

#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t i = 0; i < KEYS / 2; i++) {
            const float scale = a->q_scale[query + 16 * m + i % 4 / 2 * 8] * by_cap;
            const float e = td_num_exp2_nearly(fminf(s[m][i / 4][i % 4] * scale, 60.0f));

            s[m][i / 4][i % 4] = (e - 1.0f) / (e + 1.0f) * to_log2;
        }
}

/* Scores of keys that a query does not see; `key` is the chunk's first one. */
template <uint32_t M, uint32_t D>
__device__ __forceinline__ void hide(const struct area<M, D> *a, uint32_t key,
                                     float s[M][KEYS / 8][4])
{
    const uint32_t query = threadIdx.x / 32 * 16 * M + threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t n_seen = a->n_seen[query + 16 * m + 8 * i];
            const uint32_t from_first = key + 2 * t - a->first[query + 16 * m + 8 * i];

#pragma unroll
            for (uint32_t j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (uint32_t e = 0; e < 2; e++)
                    if (from_first + 8 * j + e >= n_seen)
                        s[m][j][2 * i + e] = -INFINITY;
        }
}

/* Scores into weights against the largest so far, and what came before into the same units. */
template <uint32_t M, uint32_t D>
__device__ __forceinline__ void weigh(const struct area<M, D> *a, bool is_capped,
                                      float s[M][KEYS / 8][4], struct state<M, D> *r)
{
    const uint32_t query = threadIdx.x / 32 * 16 * M + threadIdx.x % 32 / 4;

#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const float scale = is_capped ? 1.0f : a->q_scale[query + 16 * m + 8 * i];
            float max = s[m][0][2 * i], sum = 0.0f;

#pragma unroll
            for (uint32_t j = 0; j < KEYS / 8; j++)
                max = fmaxf(max, fmaxf(s[m][j][2 * i], s[m][j][2 * i + 1]));
            for (uint32_t mask = 2; mask; mask >>= 1)
                max = fmaxf(max, td_num_xor(max, mask));
            max = fmaxf(max * scale, r->max[m][i]);
            const float base = max == -INFINITY ? 0.0f : max;
            const float before = td_num_exp2_nearly(r->max[m][i] - base);

#pragma unroll
            for (uint32_t j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (uint32_t e = 2 * i; e < 2 * i + 2; e++) {
                    s[m][j][e] = td_num_exp2_nearly(fmaf(s[m][j][e], scale, -base));
                    sum = sum + s[m][j][e];
                }
            r->max[m][i] = max;
            r->sum[m][i] = fmaf(r->sum[m][i], before, sum);
#pragma unroll
            for (uint32_t j = 0; j < 2 * D; j++) {
                r->acc[m][j][2 * i] = r->acc[m][j][2 * i] * before;
                r->acc[m][j][2 * i + 1] = r->acc[m][j][2 * i + 1] * before;
            }
        }
}

template <enum td_dtype T> __device__ __forceinline__ uint32_t pair_of(const float v[2])
{
    return T == TD_BF16 ? td_num_to_bf16x2(v[0], v[1]) : td_num_to_f16x2(v[0], v[1]);
}

/* acc += the weights times the values: scores lie as the tensor cores want weights. */
template <enum td_dtype T, uint32_t M, uint32_t D>
__device__ __forceinline__ void gather(const uint16_t *values, const float s[M][KEYS / 8][4],
                                       struct state<M, D> *r)
{
    constexpr uint32_t STRIDE = area<M, D>::STRIDE;
    const uint32_t lane = threadIdx.x % 32;
    const uint16_t *v = values + lane % 16 * STRIDE + lane / 16 * 8;

#pragma unroll
    for (uint32_t k = 0; k < KEYS / 16; k++) {
        uint32_t p[M][4];

#pragma unroll
        for (uint32_t m = 0; m < M; m++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                p[m][i] = pair_of<T>(s[m][2 * k + i / 2] + i % 2 * 2);
#pragma unroll
        for (uint32_t j = 0; j < D; j++) {
            uint32_t b[4];

            td_num_tables_turned(v + 16 * k * STRIDE + 16 * j, b);
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                td_attend_mma<T>(r->acc[m][2 * j], p[m], b);
                td_attend_mma<T>(r->acc[m][2 * j + 1], p[m], b + 2);
            }
        }
    }
}

/* As td_attend_factor; `max` is in units that make a weight a power of two. */
__device__ float factor_of(const struct td_attend_job &job, uint32_t head, float max, float sum)
{
    if (!job.sinks)
        return 1.0f / sum;
    const float sink = job.sinks[head] * 1.44269504f, most = fmaxf(sink, max);
    const float weight = td_num_exp2_nearly(max - most);

    return weight / fmaf(sum, weight, td_num_exp2_nearly(sink - most));
}

template <uint32_t M, uint32_t D>
__device__ void store(const struct td_attend_job &job, const struct td_attend_span &span,
                      uint32_t row, const struct area<M, D> *a, const struct state<M, D> &r)
{
    const uint32_t t = threadIdx.x % 4, dim = job.kv.head_dim;

#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t query =
                threadIdx.x / 32 * 16 * M + 16 * m + threadIdx.x % 32 / 4 + 8 * i;
            float *to =
                job.out +
                ((size_t)(row + query / span.n) * job.n_heads + span.head + query % span.n) * dim;
            float sum = r.sum[m][i];

            for (uint32_t mask = 2; mask; mask >>= 1)
                sum = sum + td_num_xor(sum, mask);
            if (a->n_seen[query] == 0)
                continue;
            const float factor = factor_of(job, span.head + query % span.n, r.max[m][i], sum);
#pragma unroll
            for (uint32_t j = 0; j < 2 * D; j++)
#pragma unroll
                for (uint32_t k = 0; k < 2; k++)
                    if (8 * j + 2 * t + k < dim)
                        to[8 * j + 2 * t + k] = r.acc[m][j][2 * i + k] * factor;
        }
}

/* `n` rows of one sequence. */
template <enum td_dtype T, uint32_t M, uint32_t D>
__device__ void attend_rows(const struct td_attend_job &job, const struct td_attend_span &span,
                            uint32_t row, uint32_t n, struct area<M, D> *a)
{
    const uint32_t *blocks = job.rows.table + job.rows.first_block[row];
    struct state<M, D> r = {
    };
    uint32_t most = 0, least = UINT32_MAX;      /* keys of a row */
    uint32_t base = UINT32_MAX, last_first = 0; /* where those that a row sees begin */

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t position = job.rows.positions[row + i];
        const uint32_t sees = td_attend_first(job, position);

        most = position >= most ? position + 1 : most;
        least = position < least ? position + 1 : least;
        base = sees < base ? sees : base;
        last_first = sees > last_first ? sees : last_first;
    }
    base = base / KEYS * KEYS;
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
        r.max[m][0] = r.max[m][1] = -INFINITY;
    __syncthreads(); /* all are done with the rows before */
    bring<T, D>(job, blocks, span.kv_head, base, most - base, a->k[0], a->v[0]);
    bring_queries<T, M, D>(job, span, row, n, a);
    for (uint32_t key = base, turn = 0; key < most; key += KEYS, turn ^= 1) {
        const uint32_t next = key + KEYS;
        float s[M][KEYS / 8][4] = {};

        td_num_copies_wait<0>();
        __syncthreads(); /* they are there, and all are done with the others */
        if (next < most)
            bring<T, D>(job, blocks, span.kv_head, next, most - next, a->k[turn ^ 1],
                        a->v[turn ^ 1]);
        score<T, M, D>(a, a->k[turn], s);
        if (job.softcap > 0.0f)
            cap_scores<M, D>(job.softcap, a, s);
        if (next > least || key < last_first)
            hide<M, D>(a, key, s);
        weigh<M, D>(a, job.softcap > 0.0f, s, &r);
        gather<T, M, D>(a->v[turn], s, &r);
    }
    store<M, D>(job, span, row, a, r);
}

template <enum td_dtype T, uint32_t M, uint32_t D>
__global__ void __launch_bounds__(THREADS, M *D > 16 ? 1 : 2)
    flash_prompts(const __grid_constant__ struct td_attend_job job)
{
    td_num_await_earlier();
    struct area<M, D> *a = (struct area<M, D> *)td_num_shared();
    const struct td_attend_span span = job.span[blockIdx.y];
    const uint32_t begin = (gridDim.x - 1 - blockIdx.x) * job.row_step; /* the longest first */
    const uint32_t end = begin + job.row_step < job.n ? begin + job.row_step : job.n;

    for (uint32_t row = begin, next; row < end; row = next) {
        next = row + 1;
        while (next < end && job.rows.first_block[next] == job.rows.first_block[row])
            next++;
        attend_rows<T, M, D>(job, span, row, next - row, a);
    }
}

/* ---- the host's part ---- */

template <enum td_dtype T, uint32_t M, uint32_t D>
bool launch(struct td_cuda *cuda, struct td_attend_job *job, uint32_t n_spans)
{
    uint32_t most = 1;

    if (sizeof(struct area<M, D>) > cuda->most_shared || job->kv.head_dim % 8 ||
        job->kv.half_bytes % 8)
        return false;
    for (uint32_t i = 0; i < n_spans; i++)
        most = job->span[i].n > most ? job->span[i].n : most;
    job->row_step = area<M, D>::QUERIES / most;
    td_cuda_launch(cuda, flash_prompts<T, M, D>,
                   dim3((job->n + job->row_step - 1) / job->row_step, n_spans), dim3(THREADS),
                   sizeof(struct area<M, D>), *job);
    return true;
}

} // namespace

bool td_cuda_flash_prompts(struct td_cuda *cuda, enum td_dtype type, struct td_attend_job *job,
                           uint32_t n_spans)
{
    const uint32_t dim = job->kv.head_dim;

#define LAUNCH(T)                                                                                  \
    (dim <= 64    ? launch<T, 2, 4>(cuda, job, n_spans)                                            \
     : dim <= 128 ? launch<T, 2, 8>(cuda, job, n_spans)                                            \
                  : launch<T, 1, 16>(cuda, job, n_spans))
    return type == TD_F16    ? LAUNCH(TD_F16)
           : type == TD_BF16 ? LAUNCH(TD_BF16)
           : type == TD_Q8_0 ? LAUNCH(TD_Q8_0)
                             : LAUNCH(TD_F8_E4M3);
#undef LAUNCH
}
