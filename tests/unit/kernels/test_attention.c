/* Attention and the KV cache: against float64 over what is stored, and bit for bit over instruction sets, batches, threads and
 * block sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/half.h"
#include "kernels/kern.h"
#include "kernels/quant/dequant.h"

enum { MAX_HEADS = 16, N_TYPES = 6, PRIME = 7919 /* more than there are blocks */ };

static const enum td_dtype TYPES[N_TYPES] = {TD_F32, TD_F16, TD_BF16, TD_Q8_0, TD_Q4_0, TD_F8_E4M3};

static const char *const ISAS[] = {"ref", "avx2", "avx512"};
static uint64_t seed;

static void start(uint64_t value)
{
    seed = value;
    print_message("seed %llu\n", (unsigned long long)value);
}

static uint32_t rnd(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static float rnd_float(void)
{
    return (float)((double)rnd() / 1073741824.0 - 1.0);
}

static float *rnd_floats(size_t n, float scale)
{
    float *x = malloc((n + 1) * sizeof *x);

    for (size_t i = 0; i < n; i++)
        x[i] = rnd_float() * scale;
    return x;
}

static struct td_kern *open_isa(const char *isa, uint32_t threads)
{
    struct td_kern_cpu_params params = {.n_threads = threads, .isa = isa};
    struct td_kern *kern = NULL;
    struct td_err err;

    if (td_kern_cpu_open(&params, &kern, &err)) {
        print_message("skipped: CPU feature %s (%s)\n", isa ? isa : "any", err.cause);
        return NULL;
    }
    return kern;
}

/* One sequence's rotated keys and values, and the heads that look at them. */
struct problem {
    enum td_dtype dtype;
    uint32_t dim, n_kv, n_heads, n; /* n tokens */
    uint32_t kv_of_head[MAX_HEADS];
    float *q, *k, *v; /* [n x heads x dim]; as they come from the projections */
    float *angles;
    uint32_t *positions;
    uint32_t window; /* these three as in td_attention */
    float softcap;
    float *sinks; /* NULL, or [MAX_HEADS] */
};

/* Groups of `group` query heads; the first may be the end of one that began on another rank. */
static struct problem make_problem(enum td_dtype dtype, uint32_t dim, uint32_t n_kv, uint32_t group,
                                   uint32_t missing, uint32_t n)
{
    struct problem p = {.dtype = dtype, .dim = dim, .n_kv = n_kv, .n = n};
    struct td_kern *kern = open_isa("ref", 1);
    double freq[TD_KERN_MAX_HEAD_DIM / 2];
    struct td_err err;

    for (uint32_t h = missing; h < n_kv * group; h++)
        p.kv_of_head[p.n_heads++] = h / group;
    p.q = rnd_floats((size_t)n * p.n_heads * dim, 3.0f);
    p.k = rnd_floats((size_t)n * n_kv * dim, 2.0f);
    p.v = rnd_floats((size_t)n * n_kv * dim, 1.0f);
    p.angles = malloc((size_t)n * 2 * dim * sizeof *p.angles);
    p.positions = malloc(n * sizeof *p.positions);
    for (uint32_t i = 0; i < n; i++)
        p.positions[i] = i;
    for (uint32_t i = 0; i < dim / 2; i++)
        freq[i] = pow(10000.0, -2.0 * i / dim);
    assert_int_equal(
        td_kern_rope_angles(kern, freq, dim, 1.0, true, p.positions, n, p.angles, &err), TD_OK);
    td_kern_close(kern);
    return p;
}

static void free_problem(struct problem *p)
{
    free(p->q);
    free(p->k);
    free(p->v);
    free(p->angles);
    free(p->positions);
    free(p->sinks);
}

/* The problem in the cache of one backend; `k` and `q` are what rope_kv left there. */
struct cache {
    struct td_kern *kern;
    struct td_kv_view view;
    uint32_t *table;
    float *q, *k;
};

static float *copy(const float *x, size_t n)
{
    float *y = malloc((n + 1) * sizeof *y);

    memcpy(y, x, n * sizeof *y);
    return y;
}

/* Blocks lie in a shuffled order among others, and everything that is not written is NaN. */
static struct cache fill_cache(struct td_kern *kern, const struct problem *p, uint32_t block_tokens)
{
    uint32_t n_own = (p->n + block_tokens - 1) / block_tokens, n_blocks = n_own + 5;
    struct cache c = {.kern = kern,
                      .view = {.dtype = p->dtype,
                               .n_blocks = n_blocks,
                               .n_kv_heads = p->n_kv,
                               .block_tokens = block_tokens,
                               .head_dim = p->dim}};
    size_t bytes = td_kern_kv_bytes(&c.view), n_k = (size_t)p->n * p->n_kv * p->dim;
    uint32_t *first = calloc(p->n, sizeof *first);
    struct td_kv_rows rows = {p->positions, first, NULL, p->n, 0};
    struct td_rope_kv in = {
        .v = p->v, .angles = p->angles, .n_heads = p->n_heads, .interleaved = true};
    struct td_err err;

    rows.table = c.table = malloc(n_own * sizeof *c.table);
    for (uint32_t i = 0; i < n_own; i++)
        c.table[i] = (uint32_t)((3 + (uint64_t)i * PRIME) % n_blocks);
    c.view.data = td_kern_alloc(kern, bytes);
    memset(c.view.data, 0xff, bytes);
    in.q = c.q = copy(p->q, (size_t)p->n * p->n_heads * p->dim);
    in.k = c.k = copy(p->k, n_k);
    assert_int_equal(td_kern_rope_kv(kern, &c.view, &rows, p->n, &in, &err), TD_OK);
    free(first);
    return c;
}

static void free_cache(struct cache *c)
{
    size_t bytes = td_kern_kv_bytes(&c->view);

    td_kern_free(c->kern, c->view.data, bytes);
    free(c->table);
    free(c->q);
    free(c->k);
}

/* Rows `positions` of the problem's queries. */
static void attend(const struct cache *c, const struct problem *p, const uint32_t *positions,
                   uint32_t n, float *out)
{
    size_t row = (size_t)p->n_heads * p->dim;
    float *q = malloc((n * row + 1) * sizeof *q);
    uint32_t *first = calloc(n, sizeof *first);
    struct td_kv_rows rows = {positions, first, c->table, p->n, 0};
    const struct td_attention how = {.q = q,
                                     .out = out,
                                     .n_heads = p->n_heads,
                                     .kv_of_head = p->kv_of_head,
                                     .scale = 1.0f / sqrtf((float)p->dim),
                                     .window = p->window,
                                     .softcap = p->softcap,
                                     .sinks = p->sinks};
    struct td_err err;

    for (uint32_t i = 0; i < n; i++)
        memcpy(q + i * row, c->q + positions[i] * row, row * sizeof *q);
    assert_int_equal(td_kern_attention(c->kern, &c->view, &rows, n, &how, &err), TD_OK);
    free(q);
    free(first);
}

/* All rows in one call, of a cache of their own. */
static void attend_all(struct td_kern *kern, const struct problem *p, float *out)
{
    struct cache c = fill_cache(kern, p, 16);

    attend(&c, p, p->positions, p->n, out);
    free_cache(&c);
}

/* What the cache means: keys or values [n x n_kv x dim] rounded to the type. */
static float *stored(const struct problem *p, const float *x)
{
    size_t n = (size_t)p->n * p->n_kv * p->dim;
    float *out = malloc(n * sizeof *out);
    uint8_t *tmp = malloc(n * sizeof *out);

    td_quant_row(p->dtype, x, tmp, n);
    td_dequant_row(p->dtype, tmp, out, n);
    free(tmp);
    return out;
}

/* The largest error of one row of all heads against softmax in float64. */
static double error_of(const struct problem *p, const float *q, const float *k, const float *v,
                       uint32_t position, const float *out)
{
    double *s = malloc((position + 1) * sizeof *s), worst = 0.0;
    const uint32_t first = p->window && p->window <= position ? position + 1 - p->window : 0;

    for (uint32_t h = 0; h < p->n_heads; h++) {
        size_t from = (size_t)p->kv_of_head[h] * p->dim, row = (size_t)p->n_kv * p->dim;
        const float *qh = q + ((size_t)position * p->n_heads + h) * p->dim;
        double max = p->sinks ? (double)p->sinks[h] : -INFINITY, sum = 0.0;

        for (uint32_t j = first; j <= position; j++) {
            s[j] = 0.0;
            for (uint32_t d = 0; d < p->dim; d++)
                s[j] += (double)qh[d] * (double)k[j * row + from + d] / sqrt(p->dim);
            if (p->softcap > 0)
                s[j] = (double)p->softcap * tanh(s[j] / (double)p->softcap);
            max = s[j] > max ? s[j] : max;
        }
        if (p->sinks)
            sum = exp((double)p->sinks[h] - max);
        for (uint32_t j = first; j <= position; j++)
            sum += s[j] = exp(s[j] - max);
        for (uint32_t d = 0; d < p->dim; d++) {
            double want = 0.0;

            for (uint32_t j = first; j <= position; j++)
                want += s[j] / sum * (double)v[j * row + from + d];
            want = fabs(want - (double)out[h * p->dim + d]);
            worst = want > worst || isnan(want) ? want : worst;
        }
    }
    free(s);
    return worst;
}

/* A window, a cap of scores and sinks, each in some rounds. */
static void bend(struct problem *p, uint32_t round)
{
    static const uint32_t windows[] = {1, 7, 64, 65, 100, 128, 5000};

    p->window = round % 2 ? windows[round / 2 % 7] : 0;
    p->softcap = round % 3 == 1 ? 2.5f : 0.0f;
    p->sinks = round % 5 < 2 ? rnd_floats(MAX_HEADS, 8.0f) : NULL;
}

static void test_attention_is_softmax_over_what_is_stored_on_every_isa(void **state)
{
    static const uint32_t dims[] = {8, 32, 64, 80, 96, 128, 256};
    static const uint32_t lengths[] = {1, 15, 16, 17, 63, 64, 65, 200, 333};
    static const uint32_t groups[] = {1, 3, 4, 8};
    struct td_kern *kern[3];
    double worst = 0.0;

    (void)state;
    start(4711);
    for (int i = 0; i < 3; i++)
        kern[i] = open_isa(ISAS[i], 1 + (uint32_t)i);
    for (uint32_t round = 0; round < 7 * 9 * 3; round++) {
        enum td_dtype dtype = TYPES[round % N_TYPES];
        uint32_t dim = dims[round % 7], group = groups[rnd() % 4], bt = 1u << rnd() % 7;
        uint32_t n_kv = group == 8 ? 1 : 1 + rnd() % 2, n = round == 50 ? 5000 : lengths[round % 9];
        struct problem p;
        float *ref = NULL, *k, *v;

        if (td_dtype_row_bytes(dtype, dim) == 0 || (n == 5000 && dim > 128))
            dim = 64;
        p = make_problem(dtype, dim, n_kv, group, rnd() % group, n);
        bend(&p, round);
        for (int i = 0; i < 3; i++) {
            uint32_t last = n - 1;
            float *out = malloc((size_t)p.n_heads * dim * sizeof *out);
            struct cache c;

            if (kern[i]) {
                c = fill_cache(kern[i], &p, bt);
                attend(&c, &p, &last, 1, out);
                if (i == 0) {
                    double error;

                    k = stored(&p, c.k);
                    v = stored(&p, p.v);
                    error = error_of(&p, c.q, k, v, last, out);
                    worst = error > worst ? error : worst;
                    if (!(error < 2e-6))
                        print_message("%s dim %u n %u group %u bt %u: error %g\n",
                                      td_dtype_info(dtype)->name, dim, n, group, bt, error);
                    assert_true(error < 2e-6);
                    free(k);
                    free(v);
                } else {
                    assert_memory_equal(out, ref, (size_t)p.n_heads * dim * sizeof *out);
                }
                free_cache(&c);
            }
            if (i == 0)
                ref = out;
            else
                free(out);
        }
        free(ref);
        free_problem(&p);
    }
    for (int i = 0; i < 3; i++)
        td_kern_close(kern[i]);
    print_message("largest error %g of values up to 1\n", worst);
}

/* Every row alone by the specification, and then in every other way. */
static void test_attention_gives_a_row_the_same_bits_in_every_batch_cut_and_block_size(void **state)
{
    static const struct {
        enum td_dtype dtype;
        uint32_t dim, n_kv, group, missing, n, bent;
    } cases[] = {{TD_F32, 64, 2, 4, 0, 150, 0},     {TD_F16, 64, 2, 4, 1, 150, 0},
                 {TD_BF16, 80, 2, 3, 2, 100, 0},    {TD_Q8_0, 64, 1, 8, 0, 150, 0},
                 {TD_Q4_0, 128, 2, 1, 0, 100, 0},   {TD_F16, 8, 1, 4, 0, 200, 0},
                 {TD_F8_E4M3, 72, 2, 4, 1, 150, 0}, {TD_F16, 32, 2, 4, 1, 330, 1},
                 {TD_Q8_0, 32, 1, 4, 0, 330, 3},    {TD_BF16, 24, 2, 3, 0, 330, 7},
                 {TD_F32, 16, 1, 2, 0, 330, 9}};

    (void)state;
    start(99);
    for (size_t at = 0; at < sizeof cases / sizeof cases[0]; at++) {
        struct problem p = make_problem(cases[at].dtype, cases[at].dim, cases[at].n_kv,
                                        cases[at].group, cases[at].missing, cases[at].n);
        size_t row = (size_t)p.n_heads * p.dim;
        float *want = malloc(p.n * row * sizeof *want), *out = malloc(p.n * row * sizeof *want);
        struct td_kern *kern = open_isa("ref", 1);
        struct cache c = fill_cache(kern, &p, 16);
        uint32_t *shuffled = malloc(p.n * sizeof *shuffled);

        if (cases[at].bent)
            bend(&p, cases[at].bent);
        for (uint32_t i = 0; i < p.n; i++)
            attend(&c, &p, &i, 1, want + i * row);
        free_cache(&c);
        td_kern_close(kern);
        for (uint32_t i = 0; i < p.n; i++)
            shuffled[i] = i * 61 % p.n;
        for (int isa = 0; isa < 3; isa++)
            for (uint32_t threads = 1; threads <= 3; threads++) {
                kern = open_isa(ISAS[isa], threads);
                for (uint32_t bt = 1; kern && bt <= 64; bt *= isa && threads == 2 ? 2 : 8) {
                    c = fill_cache(kern, &p, bt);
                    attend(&c, &p, p.positions, p.n, out);
                    assert_memory_equal(out, want, p.n * row * sizeof *out);
                    for (uint32_t i = 0, n; i < p.n; i += n) {
                        n = 1 + rnd() % 40;
                        n = n < p.n - i ? n : p.n - i;
                        attend(&c, &p, p.positions + i, n, out);
                        assert_memory_equal(out, want + i * row, n * row * sizeof *out);
                    }
                    attend(&c, &p, shuffled, p.n, out);
                    for (uint32_t i = 0; i < p.n; i++)
                        assert_memory_equal(out + i * row, want + shuffled[i] * row,
                                            row * sizeof *out);
                    free_cache(&c);
                }
                td_kern_close(kern);
            }
        free(shuffled);
        free(want);
        free(out);
        free_problem(&p);
    }
}

/* One row over many keys is cut into runs of chunks for the threads; several such rows, and short ones beside them. */
static void test_attention_gives_the_same_bits_however_many_threads_share_a_row(void **state)
{
    static const uint32_t threads[] = {1, 2, 3, 7, 16};
    const uint32_t positions[] = {4999, 40, 5000, 4095, 64, 4096, 5055};
    struct problem p = make_problem(TD_F16, 32, 2, 4, 3, 5056);
    size_t row = (size_t)p.n_heads * p.dim, bytes = 7 * row * sizeof(float);
    float *want = malloc(bytes), *out = malloc(bytes);

    (void)state;
    for (int i = 0; i < 5; i++) {
        struct td_kern *kern = open_isa(NULL, threads[i]);
        struct cache c = fill_cache(kern, &p, 16);

        attend(&c, &p, positions, 7, i ? out : want);
        if (i)
            assert_memory_equal(out, want, bytes);
        for (int r = 0; i && r < 7; r++) {
            attend(&c, &p, positions + r, 1, out);
            assert_memory_equal(out, want + (size_t)r * row, row * sizeof *out);
        }
        free_cache(&c);
        td_kern_close(kern);
    }
    free(want);
    free(out);
    free_problem(&p);
}

/* What is not a number stays with the rows that look at it: later tokens of the sequence and other rows' queries do not count. */
static void test_attention_of_a_row_does_not_see_other_rows_infinities(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};

    (void)state;
    start(5);
    for (int isa = 0; isa < 3; isa++)
        for (uint32_t dtype = 0; dtype < N_TYPES; dtype++) {
            struct td_kern *kern = open_isa(ISAS[isa], 2);
            struct problem p = make_problem(TYPES[dtype], 32, 1, 4, 0, 90);
            size_t row = (size_t)p.n_heads * p.dim;
            float *want = malloc(p.n * row * sizeof *want), *out = malloc(p.n * row * sizeof *out);

            if (kern) {
                attend_all(kern, &p, want);
                for (uint32_t i = 70; i < p.n; i++) /* tokens 70 .. are broken in all they have */
                    for (uint32_t d = 0; d < p.dim; d++) {
                        p.k[i * p.dim + d] = bad[rnd() % 3];
                        p.v[i * p.dim + d] = bad[rnd() % 3];
                    }
                for (uint32_t d = 0; d < row; d++)
                    p.q[70 * row + d] = p.q[40 * row + d] = bad[rnd() % 3];
                attend_all(kern, &p, out);
                assert_memory_equal(out, want, 40 * row * sizeof *out);
                assert_memory_equal(out + 41 * row, want + 41 * row, 29 * row * sizeof *out);
                for (size_t d = 0; d < row; d++)
                    assert_true(isnan(out[40 * row + d]) && isnan(out[75 * row + d]));
            }
            free(want);
            free(out);
            free_problem(&p);
            td_kern_close(kern);
        }
}

/* Nor does it see what lies before its window, where that begins inside of a chunk and rows go together. */
static void test_attention_of_a_row_does_not_see_what_lies_before_its_window(void **state)
{
    (void)state;
    start(7);
    for (int isa = 0; isa < 3; isa++)
        for (uint32_t dtype = 0; dtype < N_TYPES; dtype++) {
            struct td_kern *kern = open_isa(ISAS[isa], 2);
            struct problem p = make_problem(TYPES[dtype], 32, 1, 4, 0, 90);
            size_t row = (size_t)p.n_heads * p.dim;
            float *want = malloc(p.n * row * sizeof *want), *out = malloc(p.n * row * sizeof *out);

            p.window = 10;
            if (kern) {
                attend_all(kern, &p, want);
                for (uint32_t d = 0; d < p.dim; d++)
                    p.k[66 * p.dim + d] = p.v[66 * p.dim + d] = NAN;
                attend_all(kern, &p, out);
                assert_memory_equal(out, want, 66 * row * sizeof *out);
                assert_memory_equal(out + 76 * row, want + 76 * row, 14 * row * sizeof *out);
                for (size_t d = 66 * row; d < 76 * row; d++)
                    assert_true(isnan(out[d]));
            }
            free(want);
            free(out);
            free_problem(&p);
            td_kern_close(kern);
        }
}

/* A row over one token is that token's value as stored, so the cache's rounding can be seen. */
static void test_attention_over_one_token_gives_its_stored_value(void **state)
{
    static const float special[] = {0.0f,    -0.0f,     1e-8f,     6e-8f,   5.97e-8f, 1e-40f,
                                    65504.f, 65519.9f,  65520.0f,  -7e4f,   1e38f,    3.4e38f,
                                    2049.0f, 2051.0f,   -1.00098f, 0.3333f, INFINITY, -INFINITY,
                                    NAN,     6.104e-5f, 6.1e-5f,   1e-3f,   257.0f,   259.0f};

    (void)state;
    start(6);
    for (int isa = 0; isa < 3; isa++)
        for (uint32_t dtype = 0; dtype < N_TYPES; dtype++) {
            struct td_kern *kern = open_isa(ISAS[isa], 1);
            struct problem p = make_problem(TYPES[dtype], 64, 1, 1, 0, 1);
            float out[64], *want;
            uint32_t zero = 0;
            struct cache c;

            for (uint32_t d = 0; d < 24 && TYPES[dtype] <= TD_BF16; d++)
                p.v[d] = special[d];
            want = stored(&p, p.v);
            if (kern) {
                c = fill_cache(kern, &p, 4);
                attend(&c, &p, &zero, 1, out);
                for (uint32_t d = 0; d < 64; d++)
                    assert_true(out[d] == want[d] || (isnan(out[d]) && isnan(want[d])));
                free_cache(&c);
            }
            free(want);
            free_problem(&p);
            td_kern_close(kern);
        }
}

static void test_attention_rotates_and_normalises_as_float64_does_on_every_isa(void **state)
{
    enum { N = 5, HEADS = 3, KV = 2, BT = 4 };
    static const uint32_t dims[] = {8, 32, 80, 128};
    const uint32_t positions[N] = {0, 1, 511, 70000, 131071}, first[N] = {0};
    uint32_t *table = calloc(131072 / BT, sizeof *table);

    (void)state;
    start(8);
    for (uint32_t r = 0; r < N; r++) /* no two rows in one place */
        table[positions[r] / BT] = r;
    for (int round = 0; round < 16; round++) {
        uint32_t dim = dims[round % 4];
        bool interleaved = round & 4, norm = round & 8;
        float *q = rnd_floats((size_t)N * HEADS * dim, 2.0f),
              *k = rnd_floats((size_t)N * KV * dim, 2.0f), *v = rnd_floats((size_t)N * KV * dim, 1),
              *w = rnd_floats(2 * (size_t)dim, 1.0f),
              *angles = malloc(N * 2 * dim * sizeof *angles), *ref = NULL;
        double freq[TD_KERN_MAX_HEAD_DIM / 2];
        size_t n_q = (size_t)N * HEADS * dim, n_k = (size_t)N * KV * dim;

        for (uint32_t i = 0; i < dim / 2; i++)
            freq[i] = pow(10000.0, -2.0 * i / dim);
        for (int isa = 0; isa < 3; isa++) {
            struct td_kern *kern = open_isa(ISAS[isa], 2);
            float *got = malloc((n_q + n_k) * sizeof *got);
            struct td_kv_view view = {TD_F16, NULL, N, KV, BT, dim};
            struct td_kv_rows rows = {positions, first, table, N * BT, 0};
            struct td_rope_kv in = {.q = got,
                                    .k = got + n_q,
                                    .v = v,
                                    .angles = angles,
                                    .q_norm = norm ? w : NULL,
                                    .k_norm = norm ? w + dim : NULL,
                                    .n_heads = HEADS,
                                    .eps = 1e-5f,
                                    .interleaved = interleaved};
            size_t bytes = td_kern_kv_bytes(&view);
            struct td_err err;

            if (!kern) {
                free(got);
                continue;
            }
            view.data = td_kern_alloc(kern, bytes);
            memcpy(got, q, n_q * sizeof *q);
            memcpy(got + n_q, k, n_k * sizeof *k);
            assert_int_equal(
                td_kern_rope_angles(kern, freq, dim, 1.0, interleaved, positions, N, angles, &err),
                TD_OK);
            assert_int_equal(td_kern_rope_kv(kern, &view, &rows, N, &in, &err), TD_OK);
            td_kern_free(kern, view.data, bytes);
            td_kern_close(kern);
            if (isa == 0) {
                ref = got;
                continue;
            }
            assert_memory_equal(got, ref, (n_q + n_k) * sizeof *got);
            free(got);
        }
        for (uint32_t at = 0; at < N * (HEADS + KV); at++) {
            bool is_q = at < N * HEADS;
            const float *from = is_q ? q + (size_t)at * dim : k + (size_t)(at - N * HEADS) * dim;
            const float *to = ref + (size_t)at * dim;
            uint32_t i = is_q ? at / HEADS : (at - N * HEADS) / KV;
            double x[TD_KERN_MAX_HEAD_DIM], squares = 0.0;

            for (uint32_t d = 0; d < dim; d++)
                squares += (double)from[d] * (double)from[d];
            for (uint32_t d = 0; d < dim; d++)
                x[d] = norm ? (double)from[d] / sqrt(squares / dim + 1e-5) *
                                  (double)w[is_q ? d : dim + d]
                            : (double)from[d];
            for (uint32_t j = 0; j < dim / 2; j++) {
                uint32_t a = interleaved ? 2 * j : j, b = interleaved ? a + 1 : a + dim / 2;
                double angle = positions[i] * freq[j];

                assert_true(fabs((double)to[a] - (x[a] * cos(angle) - x[b] * sin(angle))) < 1e-6);
                assert_true(fabs((double)to[b] - (x[b] * cos(angle) + x[a] * sin(angle))) < 1e-6);
            }
        }
        free(q);
        free(k);
        free(v);
        free(w);
        free(angles);
        free(ref);
    }
    free(table);
}

static void test_attention_refuses_caches_that_it_cannot_hold_by_name(void **state)
{
    struct td_kern *kern = open_isa(NULL, 1);
    uint32_t zero = 0, kv_of_head = 0;
    struct td_kv_rows rows = {&zero, &zero, &zero, 1, 0};
    struct td_kv_view view = {TD_Q8_0, &zero, 1, 1, 16, 80};
    struct td_rope_kv in = {0};
    float x[80] = {0}, y[80];
    struct td_attention how = {
        .q = x, .out = y, .n_heads = 1, .kv_of_head = &kv_of_head, .scale = 1.0f};
    struct td_err err;

    (void)state;
    assert_int_equal(td_kern_rope_kv(kern, &view, &rows, 1, &in, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "q8_0"));
    assert_non_null(strstr(err.cause, "multiple of 32"));
    view.dtype = TD_Q4_K;
    view.head_dim = 256;
    assert_int_equal(td_kern_rope_kv(kern, &view, &rows, 1, &in, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "q4_k"));
    view.dtype = TD_F32;
    view.head_dim = 80;
    view.block_tokens = 3;
    assert_int_equal(td_kern_attention(kern, &view, &rows, 1, &how, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "3 tokens"));
    view.block_tokens = 16;
    kv_of_head = 1;
    assert_int_equal(td_kern_attention(kern, &view, &rows, 1, &how, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "KV head 1 of 1"));
    kv_of_head = 0;
    how.softcap = -1.0f;
    assert_int_equal(td_kern_attention(kern, &view, &rows, 1, &how, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "capped at -1"));
    td_kern_close(kern);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_is_softmax_over_what_is_stored_on_every_isa),
        cmocka_unit_test(
            test_attention_gives_a_row_the_same_bits_in_every_batch_cut_and_block_size),
        cmocka_unit_test(test_attention_gives_the_same_bits_however_many_threads_share_a_row),
        cmocka_unit_test(test_attention_of_a_row_does_not_see_other_rows_infinities),
        cmocka_unit_test(test_attention_of_a_row_does_not_see_what_lies_before_its_window),
        cmocka_unit_test(test_attention_over_one_token_gives_its_stored_value),
        cmocka_unit_test(test_attention_rotates_and_normalises_as_float64_does_on_every_isa),
        cmocka_unit_test(test_attention_refuses_caches_that_it_cannot_hold_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
