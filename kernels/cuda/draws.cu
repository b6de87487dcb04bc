/* Tokens drawn from whole rows of logits (shard/sampler.h has the stages, kernels/draw.h the weights). Weights are whole numbers of 2^-34,
 * and what is compared with a share of their sum is such a sum: nothing depends on the order in which they are added. */
#include "kernels/cuda/device.cuh"
#include "kernels/draw.h"

namespace
{

enum {
    THREADS = 1024,
    EACH = 4,
    SEGMENT = THREADS * EACH, /* logits of a row that a block has */
    MAX_SEGMENTS = TD_DRAW_MAX_WIDTH / SEGMENT,
    DIGIT = 2048, /* values of a digit of a key: 11, 11 and 10 bits */
    PIECES = 3,
    PIECE_BITS = 12 /* of 35: 2^19 such pieces add up in 32 bits */
};

static_assert(MAX_SEGMENTS <= THREADS, "a block has a thread for every segment");

/* The last place that top-p leaves: all keys above `key`, and the first n_equal ids of that key. */
struct place {
    uint32_t key, n_equal;
};

struct job {
    const float *x; /* [n x width] */
    const struct td_draw *draw;
    uint32_t *id;
    uint32_t width, n_segments;
    /* Scratch. */
    uint64_t *bucket; /* [n x DIGIT] weight by the first digit of the key */
    uint64_t *sum;    /* [n x n_segments] of what is left above the last key */
    uint32_t *equal;  /* [n x n_segments] ids with the last key */
    uint32_t *most;   /* [n x n_segments] the largest key */
    struct place *last;
};

__device__ double real(uint64_t units)
{
    return (double)units * 0x1p-34;
}

/* One logit of a row. */
struct item {
    uint32_t key;
    uint64_t units; /* of its weight */
};

__device__ struct item item_of(float z, float max, double inv_t)
{
    const float v = z == z ? z : -INFINITY;

    return {td_draw_key(v), (uint64_t)(td_draw_weight(v, max, inv_t) * 0x1p34)};
}

/* The largest key of the block's row; all threads. */
__device__ uint32_t largest(const struct job &j, uint32_t row, uint32_t *scratch)
{
    const uint32_t i = threadIdx.x;

    return td_num_block_max(i < j.n_segments ? j.most[(size_t)row * j.n_segments + i] : 0, scratch);
}

/* Nothing can be drawn. */
__device__ bool is_empty(uint32_t largest_key)
{
    return largest_key <= td_draw_key(-INFINITY);
}

/* The sum over threads 0 .. this one; all threads. */
__device__ uint64_t sum_up_to(uint64_t v, uint64_t *scratch)
{
    __syncthreads();
    scratch[threadIdx.x] = v;
    for (uint32_t d = 1; d < THREADS; d *= 2) {
        __syncthreads();
        const uint64_t other = threadIdx.x >= d ? scratch[threadIdx.x - d] : 0;

        __syncthreads();
        scratch[threadIdx.x] += other;
    }
    __syncthreads();
    return scratch[threadIdx.x];
}

/* Sums of weights by digit, in pieces, as the hardware adds 32 bits in shared memory. */
struct buckets {
    uint32_t piece[PIECES][DIGIT];
};

__device__ void clear(struct buckets *b)
{
    for (uint32_t i = threadIdx.x; i < PIECES * DIGIT; i += THREADS)
        b->piece[i / DIGIT][i % DIGIT] = 0;
}

__device__ void add(struct buckets *b, uint32_t digit, uint64_t units)
{
    for (uint32_t k = 0; k < PIECES; k++)
        if (const uint32_t piece = (uint32_t)(units >> k * PIECE_BITS) % (1u << PIECE_BITS))
            atomicAdd(&b->piece[k][digit], piece);
}

__device__ uint64_t sum_of(const struct buckets *b, uint32_t digit)
{
    uint64_t sum = 0;

    for (uint32_t k = 0; k < PIECES; k++)
        sum += (uint64_t)b->piece[k][digit] << k * PIECE_BITS;
    return sum;
}

/* ---- one kernel after the other ---- */

__global__ void __launch_bounds__(THREADS) find_largest(const __grid_constant__ struct job j)
{
    td_num_await_earlier();
    __shared__ uint32_t scratch[32];
    const uint32_t row = blockIdx.y;
    uint32_t most = 0;

    for (uint32_t k = 0; k < EACH; k++) {
        const uint32_t i = blockIdx.x * SEGMENT + k * THREADS + threadIdx.x;

        if (i < j.width) {
            const float z = j.x[(size_t)row * j.width + i];
            const uint32_t key = z == z ? td_draw_key(z) : 0;

            most = key > most ? key : most;
        }
    }
    most = td_num_block_max(most, scratch);
    if (threadIdx.x == 0)
        j.most[(size_t)row * j.n_segments + blockIdx.x] = most;
    for (uint32_t i = threadIdx.x; blockIdx.x == 0 && i < DIGIT; i += THREADS)
        j.bucket[(size_t)row * DIGIT + i] = 0;
}

/* The weight by first digit, where top-p asks for it. */
__global__ void __launch_bounds__(THREADS) count(const __grid_constant__ struct job j)
{
    td_num_await_earlier();
    __shared__ struct buckets buckets;
    __shared__ uint32_t scratch[32];
    const uint32_t row = blockIdx.y;
    const struct td_draw d = j.draw[row];
    const uint32_t max_key = largest(j, row, scratch);
    const float max = td_draw_from_key(max_key);

    if (d.top_p >= 1.0f || is_empty(max_key))
        return;
    clear(&buckets);
    __syncthreads();
    for (uint32_t k = 0; k < EACH; k++) {
        const uint32_t i = blockIdx.x * SEGMENT + k * THREADS + threadIdx.x;

        if (i < j.width) {
            const struct item it = item_of(j.x[(size_t)row * j.width + i], max, d.inv_t);

            add(&buckets, it.key >> 21, it.units);
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < DIGIT; i += THREADS)
        if (const uint64_t sum = sum_of(&buckets, i))
            atomicAdd((unsigned long long *)&j.bucket[(size_t)row * DIGIT + i],
                      (unsigned long long)sum);
}

/* Where the sum over digits from the largest down first holds `need`. */
struct found {
    uint32_t digit;
    uint64_t above; /* over larger ones */
};

__device__ void find_digit(uint64_t high, uint64_t low, uint64_t above, double need,
                           uint64_t *scratch, struct found *found)
{
    const uint64_t upto = above + sum_up_to(high + low, scratch), before = upto - high - low;
    const uint32_t digit = DIGIT - 1 - 2 * threadIdx.x;

    if (real(before) < need && real(upto) >= need) {
        const bool first = real(before + high) >= need;

        *found = {first ? digit : digit - 1, first ? before : before + high};
    }
    __syncthreads();
}

/* The last place of the fewest ids that hold top_p of the weight: digit by digit, one block a row. */
__global__ void __launch_bounds__(THREADS) find_last(const __grid_constant__ struct job j)
{
    td_num_await_earlier();
    __shared__ struct buckets buckets;
    __shared__ uint64_t scratch[THREADS];
    __shared__ uint32_t most[32];
    __shared__ struct found found;
    const uint32_t row = blockIdx.x, at = DIGIT - 1 - 2 * threadIdx.x;
    const struct td_draw d = j.draw[row];
    const uint64_t *bucket = j.bucket + (size_t)row * DIGIT;

    const uint32_t max_key = largest(j, row, most);
    const float max = td_draw_from_key(max_key);

    if (d.top_p >= 1.0f || is_empty(max_key)) {
        if (threadIdx.x == 0)
            j.last[row] = {0, 0};
        return;
    }
    uint64_t high = bucket[at], low = bucket[at - 1];
    uint32_t prefix = 0;

    (void)sum_up_to(high + low, scratch);
    const double need = (double)d.top_p * real(scratch[THREADS - 1]);

    find_digit(high, low, 0, need, scratch, &found);
    for (uint32_t shift = 10, bits = 11;; shift = 0, bits = 10) {
        const uint32_t known = shift + bits;

        prefix |= found.digit << known;
        __syncthreads();
        clear(&buckets);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < j.width; i += THREADS) {
            const float z = j.x[(size_t)row * j.width + i];
            const uint32_t key = td_draw_key(z == z ? z : -INFINITY);

            if (key >> known == prefix >> known)
                add(&buckets, (key >> shift) % (1u << bits), item_of(z, max, d.inv_t).units);
        }
        __syncthreads();
        high = sum_of(&buckets, at);
        low = sum_of(&buckets, at - 1);
        find_digit(high, low, found.above, need, scratch, &found);
        if (shift == 0)
            break;
    }
    if (threadIdx.x == 0) {
        const uint32_t key = prefix | found.digit;
        const uint64_t each = item_of(td_draw_from_key(key), max, d.inv_t).units;
        uint32_t few = 0, many = TD_DRAW_MAX_WIDTH; /* holds less; holds enough */

        while (each && many - few > 1) {
            const uint32_t k = few + (many - few) / 2;

            if (real(found.above + each * k) >= need)
                many = k;
            else
                few = k;
        }
        j.last[row] = {key, many};
    }
}

/* What is left of an item above the last key, and whether it has that key. */
__device__ uint64_t left_above(const struct item &it, const struct place &last, double least,
                               bool *is_equal)
{
    const bool stays = real(it.units) >= least;

    *is_equal = stays && it.key == last.key && last.n_equal;
    return stays && it.key > last.key ? it.units : 0;
}

__global__ void __launch_bounds__(THREADS) sum_left(const __grid_constant__ struct job j)
{
    td_num_await_earlier();
    __shared__ uint64_t scratch[THREADS];
    __shared__ uint32_t most[32];
    const uint32_t row = blockIdx.y;
    const struct td_draw d = j.draw[row];
    const struct place last = j.last[row];
    const uint32_t max_key = largest(j, row, most);
    const float max = td_draw_from_key(max_key);
    uint64_t sum = 0;
    uint32_t equal = 0;

    if (is_empty(max_key))
        return;
    for (uint32_t k = 0; k < EACH; k++) {
        const uint32_t i = blockIdx.x * SEGMENT + k * THREADS + threadIdx.x;
        bool is_equal;

        if (i < j.width) {
            sum += left_above(item_of(j.x[(size_t)row * j.width + i], max, d.inv_t), last,
                              (double)d.min_p, &is_equal);
            equal += is_equal;
        }
    }
    sum = sum_up_to(sum, scratch);
    equal = (uint32_t)sum_up_to(equal, scratch);
    if (threadIdx.x == THREADS - 1) {
        j.sum[(size_t)row * j.n_segments + blockIdx.x] = sum;
        j.equal[(size_t)row * j.n_segments + blockIdx.x] = equal;
    }
}

/* Of `n` ids with the last key behind `before` others, those that are left. */
__device__ uint32_t kept(const struct place &last, uint32_t before, uint32_t n)
{
    const uint32_t room = last.n_equal > before ? last.n_equal - before : 0;

    return n < room ? n : room;
}

/* The first id whose sum of weights over the ids up to it is above the target; one block a row. */
__global__ void __launch_bounds__(THREADS) pick(const __grid_constant__ struct job j)
{
    td_num_await_earlier();
    __shared__ uint64_t scratch[THREADS];
    __shared__ uint32_t most[32];
    const uint32_t row = blockIdx.x, n = j.n_segments, thread = threadIdx.x;
    const struct td_draw d = j.draw[row];
    const struct place last = j.last[row];
    const uint32_t max_key = largest(j, row, most);
    const float max = td_draw_from_key(max_key);
    const uint64_t *sum = j.sum + (size_t)row * n;
    const uint32_t *equal = j.equal + (size_t)row * n;

    if (is_empty(max_key)) {
        if (thread == 0)
            j.id[row] = UINT32_MAX;
        return;
    }
    const uint64_t each =
        last.n_equal ? item_of(td_draw_from_key(last.key), max, d.inv_t).units : 0;
    uint32_t before = (uint32_t)sum_up_to(thread < n ? equal[thread] : 0, scratch);

    before -= thread < n ? equal[thread] : 0;
    uint64_t own = thread < n ? sum[thread] + each * kept(last, before, equal[thread]) : 0;
    uint64_t upto = sum_up_to(own, scratch);
    const double target = (double)d.u * real(scratch[THREADS - 1]);

    __shared__ struct {
        uint64_t run; /* the sum before the segment, or before a thread's ids */
        uint32_t segment, before;
    } at;
    if (real(upto) > target && !(real(upto - own) > target))
        at = {upto - own, thread, before};
    __syncthreads();

    struct item item[EACH];
    const uint32_t first = at.segment * SEGMENT + thread * EACH;
    uint32_t n_equal = 0;
    bool is_equal[EACH];

    own = 0;
    for (uint32_t k = 0; k < EACH; k++) {
        item[k] = {0, 0};
        is_equal[k] = false;
        if (first + k < j.width) {
            item[k] = item_of(j.x[(size_t)row * j.width + first + k], max, d.inv_t);
            item[k].units = left_above(item[k], last, (double)d.min_p, &is_equal[k]);
        }
        n_equal += is_equal[k];
    }
    before = at.before + (uint32_t)sum_up_to(n_equal, scratch) - n_equal;
    for (uint32_t k = 0; k < EACH; k++) {
        if (is_equal[k])
            item[k].units = kept(last, before++, 1) ? each : 0;
        own += item[k].units;
    }
    upto = at.run + sum_up_to(own, scratch);
    if (real(upto) > target && !(real(upto - own) > target)) {
        uint32_t k = 0;

        for (uint64_t run = upto - own; !(real(run += item[k].units) > target);)
            k++;
        j.id[row] = first + k;
    }
}

/* ---- what log probabilities need; one block a row ---- */

__global__ void __launch_bounds__(THREADS)
    measure(const float *x, uint32_t width, const uint32_t *ids, struct td_measure *out)
{
    td_num_await_earlier();
    __shared__ uint64_t scratch[THREADS];
    __shared__ uint32_t most[32];
    const float *row = x + (size_t)blockIdx.x * width;
    const uint32_t id = ids ? ids[blockIdx.x] : UINT32_MAX;
    const float value = id < width ? row[id] : -INFINITY;
    uint32_t key = 0, n_before = 0;
    uint64_t sum = 0;

    for (uint32_t i = threadIdx.x; i < width; i += THREADS)
        if (row[i] == row[i] && td_draw_key(row[i]) > key)
            key = td_draw_key(row[i]);
    key = td_num_block_max(key, most);
    const float max = is_empty(key) ? -INFINITY : td_draw_from_key(key);

    for (uint32_t i = threadIdx.x; i < width; i += THREADS) {
        sum += item_of(row[i], max, 1.0).units;
        n_before += i < id ? row[i] >= value : row[i] > value;
    }
    sum = sum_up_to(sum, scratch);
    n_before = (uint32_t)sum_up_to(n_before, scratch);
    if (threadIdx.x == THREADS - 1)
        out[blockIdx.x] = {real(sum), max, value, id, n_before};
}

} // namespace

void td_cuda_measure(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                     const uint32_t *ids, struct td_measure *out)
{
    td_cuda_launch(td_cuda_of(kern), measure, dim3(n), dim3(THREADS), 0, x, width, ids, out);
}

void td_cuda_draw(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                  const struct td_draw *draws, uint32_t *ids)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const uint32_t n_segments = (width + SEGMENT - 1) / SEGMENT;
    const size_t each = sizeof *draws + DIGIT * sizeof(uint64_t) +
                        n_segments * (sizeof(uint64_t) + 2 * sizeof(uint32_t)) +
                        sizeof(struct place);
    const dim3 all(n_segments, n), rows(n), threads(THREADS);
    struct job j = {x, NULL, ids, width, n_segments, NULL, NULL, NULL, NULL, NULL};
    bool has_top_p = false;

    if (td_cuda_reserve(cuda, &cuda->scratch, n * each, NULL) != TD_OK) {
        td_cuda_note(cuda, cudaErrorMemoryAllocation);
        return;
    }
    j.draw = (struct td_draw *)cuda->scratch.data;
    j.bucket = (uint64_t *)(j.draw + n);
    j.sum = j.bucket + (size_t)n * DIGIT;
    j.equal = (uint32_t *)(j.sum + (size_t)n * n_segments);
    j.most = j.equal + (size_t)n * n_segments;
    j.last = (struct place *)(j.most + (size_t)n * n_segments);
    kern->ops->copy(kern, (void *)j.draw, draws, n * sizeof *draws);
    for (uint32_t i = 0; i < n; i++)
        has_top_p = has_top_p || draws[i].top_p < 1.0f;
    td_cuda_launch(cuda, find_largest, all, threads, 0, j);
    if (has_top_p)
        td_cuda_launch(cuda, count, all, threads, 0, j);
    td_cuda_launch(cuda, find_last, rows, threads, 0, j);
    td_cuda_launch(cuda, sum_left, all, threads, 0, j);
    td_cuda_launch(cuda, pick, rows, threads, 0, j);
}
