#include "tests/ops/ops.h"

#include "kernels/quant/dequant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const td_ops_isa[TD_OPS_ISAS] = {"ref", "avx2", "avx512", "avx512bf16", "avx512amx"};
const uint32_t td_ops_tokens[TD_OPS_TOKENS] = {1,  2,  3,  5,   7,   8,   15,
                                               16, 17, 33, 127, 128, 129, 200};
const uint32_t td_ops_rows[TD_OPS_ROWS] = {1, 2, 31, 32, 33, 96, 100};

static uint64_t state_of_seed;

/* ---- random numbers ---- */

void td_ops_seed(uint64_t seed)
{
    const char *asked = getenv("TD_OPS_SEED");

    state_of_seed = asked ? strtoull(asked, NULL, 10) : seed;
    print_message("seed %llu\n", (unsigned long long)state_of_seed);
}

static uint32_t next(void)
{
    state_of_seed = state_of_seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state_of_seed >> 32);
}

uint32_t td_ops_below(uint32_t n)
{
    return (uint32_t)((uint64_t)next() * n >> 32);
}

float td_ops_normal(void)
{
    double sum = -2.0;

    for (int i = 0; i < 4; i++)
        sum += (double)next() * 0x1p-32;
    return (float)(sum * 1.7320508);
}

float *td_ops_activations(size_t n)
{
    float *x = malloc(n * sizeof *x), size = 1.0f;

    for (size_t i = 0; i < n; i++) {
        if (i % 32 == 0)
            size = ldexpf(1.0f, (int)td_ops_below(6) - 3);
        x[i] = td_ops_normal() * size;
    }
    return x;
}

/* ---- devices ---- */

struct td_kern *td_ops_open(uint32_t isa, uint32_t threads)
{
    struct td_kern_cpu_params params = {.n_threads = threads, .isa = td_ops_isa[isa]};
    struct td_kern *kern = NULL;
    struct td_err err;

    if (td_kern_cpu_open(&params, &kern, &err) == TD_UNSUPPORTED)
        print_message("not on this CPU: %s (%s)\n", td_ops_isa[isa], err.cause);
    else
        assert_non_null(kern);
    return kern;
}

void td_ops_open_all(struct td_ops_devices *devices)
{
    for (uint32_t i = 0; i < TD_OPS_ISAS; i++) {
        devices->kern[i][0] = td_ops_open(i, 1);
        devices->kern[i][1] = devices->kern[i][0] ? td_ops_open(i, 3) : NULL;
    }
}

void td_ops_close_all(struct td_ops_devices *devices)
{
    for (uint32_t i = 0; i < TD_OPS_ISAS; i++)
        for (int k = 0; k < 2; k++) {
            if (devices->kern[i][k])
                assert_int_equal(td_kern_weight_bytes(devices->kern[i][k]), 0);
            td_kern_close(devices->kern[i][k]);
        }
}

/* ---- weights ---- */

/* Quantising is slow beside multiplying: blocks of a type are made once, and matrices are dealt from them. */
enum { POOL_COLS = 16384, MAX_BLOCK_BYTES = 210, MAX_BLOCK_COLS = 256 };

struct pool {
    float *original, *values; /* [POOL_COLS] */
    uint8_t *blocks;
};

static struct pool pools[TD_N_DTYPES];

static void deinit_pools(void)
{
    for (int t = 0; t < TD_N_DTYPES; t++) {
        free(pools[t].original);
        free(pools[t].values);
        free(pools[t].blocks);
    }
}

static const struct pool *pool_of(enum td_dtype dtype)
{
    struct pool *p = &pools[dtype];
    static bool registered;

    if (p->original)
        return p;
    if (!registered)
        registered = atexit(deinit_pools) == 0;
    p->original = malloc(POOL_COLS * sizeof(float));
    p->values = malloc(POOL_COLS * sizeof(float));
    p->blocks = malloc(td_dtype_row_bytes(dtype, POOL_COLS));
    for (size_t i = 0; i < POOL_COLS;
         i++) /* E4M3's scales are beside it: all of its range, subnormals too */
        p->original[i] = dtype == TD_F8_E4M3
                             ? td_ops_normal() * ldexpf(120.0f, -(int)td_ops_below(18))
                             : td_ops_normal() * 0.5f;
    td_quant_row(dtype, p->original, p->blocks, POOL_COLS);
    td_dequant_row(dtype, p->blocks, p->values, POOL_COLS);
    return p;
}

/* One block and its meaning, of the pool or of random bytes. */
static void deal(enum td_dtype dtype, bool bytes, uint8_t *block, float *values, float *original)
{
    const struct td_dtype_info *info = td_dtype_info(dtype);
    const struct pool *p = pool_of(dtype);
    uint32_t at = td_ops_below(POOL_COLS / (uint32_t)info->block_elems);

    if (bytes) {
        for (size_t i = 0; i < info->block_bytes; i++)
            block[i] = (uint8_t)td_ops_below(256);
        td_dequant_row(dtype, block, values, info->block_elems);
        return;
    }
    memcpy(block, p->blocks + at * info->block_bytes, info->block_bytes);
    memcpy(values, p->values + at * info->block_elems, info->block_elems * sizeof *values);
    memcpy(original, p->original + at * info->block_elems, info->block_elems * sizeof *original);
}

static void init(struct td_ops_weights *w, enum td_dtype dtype, uint32_t rows, uint32_t cols,
                 bool bytes)
{
    const struct td_dtype_info *info = td_dtype_info(dtype);
    size_t row_bytes = td_dtype_row_bytes(dtype, cols), per_row = (cols + 127) / 128;

    *w = (struct td_ops_weights){.dtype = dtype, .rows = rows, .cols = cols};
    w->stride = row_bytes + td_ops_below(4);
    w->file = malloc(1 + (rows - 1) * w->stride + row_bytes);
    w->values = malloc((size_t)rows * cols * sizeof *w->values);
    w->original = malloc((size_t)rows * cols * sizeof *w->original);
    if (dtype == TD_F8_E4M3)
        w->scales = malloc(rows * per_row * sizeof *w->scales);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < cols; k += (uint32_t)info->block_elems) {
            size_t at = (size_t)r * cols + k;

            deal(dtype, bytes, w->file + 1 + r * w->stride + td_dtype_row_bytes(dtype, k),
                 w->values + at, w->original + at);
            if (dtype == TD_F8_E4M3) {
                float *scale = &w->scales[r * per_row + k / 128];

                if (k % 128 == 0)
                    *scale =
                        ldexpf(1.0f + (float)td_ops_below(1000) * 1e-3f, -9 + (int)td_ops_below(3));
                w->values[at] *= *scale;
                w->original[at] *= *scale;
            }
        }
}

void td_ops_weights_init(struct td_ops_weights *w, enum td_dtype dtype, uint32_t rows,
                         uint32_t cols)
{
    init(w, dtype, rows, cols, false);
}

void td_ops_weights_init_bytes(struct td_ops_weights *w, enum td_dtype dtype, uint32_t rows,
                               uint32_t cols)
{
    init(w, dtype, rows, cols, true);
    free(w->original);
    w->original = NULL;
}

void td_ops_weights_rescale(struct td_ops_weights *w, uint32_t block_rows, uint32_t block_cols)
{
    const size_t per_row = (w->cols + 127) / 128;

    for (uint32_t r = 0; r < w->rows; r++)
        for (uint32_t k = 0; k < w->cols; k++) {
            float *scale = &w->scales[r * per_row + k / 128];
            float old = *scale;

            if (k % 128)
                continue;
            *scale = w->scales[r / block_rows * block_rows * per_row +
                               k / block_cols * block_cols / 128];
            for (uint32_t i = k; i < k + 128 && i < w->cols; i++) {
                w->values[(size_t)r * w->cols + i] *= *scale / old;
                w->original[(size_t)r * w->cols + i] *= *scale / old;
            }
        }
}

void td_ops_weights_deinit(struct td_ops_weights *w)
{
    free(w->file);
    free(w->scales);
    free(w->values);
    free(w->original);
}

/* n - 1 different places between 0 and `end`, ascending, then `end`. */
static void cut_places(uint32_t end, uint32_t n, uint32_t *place)
{
    uint32_t done = 0;

    for (uint32_t at = 1; at < end && done < n - 1; at++) /* each with the chance that is left */
        if (td_ops_below(end - at) < n - 1 - done)
            place[done++] = at;
    place[n - 1] = end;
}

struct td_ops_cut td_ops_cut_random(enum td_dtype dtype, uint32_t cols, uint32_t n_leaves,
                                    uint32_t n_parts)
{
    uint32_t unit = (uint32_t)td_dtype_info(dtype)->sum_cols, n_units = (cols + unit - 1) / unit;
    struct td_ops_cut cut = {.n_leaves = n_leaves < n_units ? n_leaves : n_units};

    cut_places(n_units, cut.n_leaves, cut.leaf_end);
    for (uint32_t i = 0; i < cut.n_leaves; i++)
        cut.leaf_end[i] *= unit;
    cut.leaf_end[cut.n_leaves - 1] = cols;
    cut.n_parts = n_parts < cut.n_leaves ? n_parts : cut.n_leaves;
    cut_places(cut.n_leaves, cut.n_parts, cut.part_begin + 1);
    return cut;
}

struct td_matrix *td_ops_pack_slice(struct td_kern *kern, const struct td_ops_weights *w,
                                    uint32_t row0, uint32_t rows, uint32_t col0, uint32_t cols,
                                    const struct td_matrix_shape *cut)
{
    struct td_matrix_shape shape = *cut;
    uint32_t per_row = (cols + 127) / 128, all = (w->cols + 127) / 128;
    float *scales = w->scales ? malloc((size_t)rows * per_row * sizeof *scales) : NULL;
    const uint8_t *src = w->file + 1 + row0 * w->stride + td_dtype_row_bytes(w->dtype, col0);
    struct td_matrix *m = NULL;
    struct td_err err;

    shape.dtype = w->dtype;
    shape.n_rows = rows;
    shape.n_cols = cols;
    for (uint32_t r = 0; scales && r < rows; r++)
        memcpy(scales + (size_t)r * per_row, w->scales + (size_t)(row0 + r) * all + col0 / 128,
               per_row * sizeof *scales);
    if (td_kern_matrix_open(kern, &shape, &m, &err))
        fail_msg("%s of %u x %u: %s", td_dtype_info(w->dtype)->name, rows, cols, err.cause);
    for (uint32_t r = 0, n; r < rows; r += n) {
        n = 32 * (1 + td_ops_below(3));
        n = n < rows - r ? n : rows - r;
        assert_int_equal(td_kern_matrix_pack(kern, m, r, n, src + r * w->stride, w->stride,
                                             scales ? scales + (size_t)r * per_row : NULL, &err),
                         TD_OK);
    }
    free(scales);
    return m;
}

struct td_matrix *td_ops_pack(struct td_kern *kern, const struct td_ops_weights *w,
                              const struct td_ops_cut *cut)
{
    struct td_matrix_shape shape = {
        .n_leaves = cut->n_leaves, .leaf_end = cut->leaf_end, .n_parts = cut->n_parts};

    memcpy(shape.part_begin, cut->part_begin, sizeof cut->part_begin);
    return td_ops_pack_slice(kern, w, 0, w->rows, 0, w->cols, &shape);
}

/* ---- float64 ---- */

/* x with `bits` significant bits, to nearest, ties to even. */
static double round_to_bits(double x, int bits)
{
    int exponent;
    double m = frexp(x, &exponent);

    return ldexp(nearbyint(ldexp(m, bits)), exponent - bits);
}

/* int8 in blocks: q = x * (127 / max) to nearest, times max / 127, which has 11 bits where the block is of 32. */
static void round_block(const float *x, uint32_t n, double *out)
{
    float max = 0.0f;
    double scale;

    for (uint32_t k = 0; k < n; k++)
        max = fmaxf(max, fabsf(x[k]));
    scale = n == 32 ? round_to_bits((double)(max / 127.0f), 11) : (double)(max / 127.0f);
    for (uint32_t k = 0; k < n; k++)
        out[k] = max > 0.0f ? nearbyint((double)(x[k] * (127.0f / max))) * scale : 0.0;
}

double *td_ops_rounded(enum td_dtype dtype, const float *x, uint32_t n, uint32_t cols)
{
    size_t size = (size_t)n * cols;
    double *out = malloc(size * sizeof *out);
    uint32_t block = (uint32_t)td_dtype_info(dtype)->block_elems;

    if (block > 1)
        for (size_t i = 0; i < size; i += block)
            round_block(x + i, block, out + i);
    else
        for (size_t i = 0; i < size; i++)
            out[i] = dtype == TD_BF16 || dtype == TD_F8_E4M3 ? round_to_bits((double)x[i], 8)
                                                             : (double)x[i];
    return out;
}

double td_ops_nmse(struct td_ops_error e)
{
    return e.square > 0.0 ? e.difference / e.square : e.difference;
}

void td_ops_count(struct td_ops_error *e, double got, double want)
{
    e->difference += (got - want) * (got - want);
    e->square += want * want;
}

bool td_ops_same(const float *a, const float *b, size_t n, size_t *at)
{
    for (*at = 0; *at < n; ++*at)
        if (memcmp(&a[*at], &b[*at], sizeof *a) != 0 && !(isnan(a[*at]) && isnan(b[*at])))
            return false;
    return true;
}
