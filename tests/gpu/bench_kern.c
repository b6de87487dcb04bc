/* How fast a GPU's kernels are, beside how fast it copies: one token's, a few tokens' and prompts' way through the matrices of an 8B
 * Llama, for every type of weights, and attention over long sequences. Prints Markdown; asserts nothing.
 *
 *     bench_kern PLUGIN [layers]
 */
#include "kernels/base/clock.h"
#include "kernels/kern.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    D = 4096,
    FF = 14336,
    VOCAB = 128256,
    HEADS = 32,
    KV_HEADS = 8,
    DIM = 128,
    MAX_LAYERS = 32,
    MAX_TOKENS = 8192,
    BLOCK = 16
};

static struct td_kern *kern;
static struct td_err err;

static void check(enum td_status s)
{
    if (s) {
        printf("FAILED: bench: %s\n", err.cause);
        exit(1);
    }
}

/* The best of five, seconds. */
static double best_of(void (*once)(void *), void *arg)
{
    double best = 1e9;

    for (int i = 0; i < 6; i++) { /* the first warms up */
        uint64_t begin = td_clock_now_ns();
        double s;

        once(arg);
        check(td_kern_sync(kern, &err));
        s = (double)(td_clock_now_ns() - begin) * 1e-9;
        best = i && s < best ? s : best;
    }
    return best;
}

static void *device(size_t bytes)
{
    void *p = td_kern_alloc(kern, bytes);

    if (!p) {
        printf("FAILED: bench: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

/* ---- copying ---- */

struct copy {
    void *from, *to;
    size_t bytes;
};

static void copy_once(void *arg)
{
    const struct copy *c = arg;

    for (int i = 0; i < 8; i++)
        td_kern_copy(kern, c->to, c->from, c->bytes);
}

/* Bytes read and written per second. */
static double copy_rate(void)
{
    struct copy c = {device((size_t)1 << 30), device((size_t)1 << 30), (size_t)1 << 30};
    double rate = 8 * 2 * (double)c.bytes / best_of(copy_once, &c);

    td_kern_free(kern, c.from, c.bytes);
    td_kern_free(kern, c.to, c.bytes);
    return rate;
}

/* ---- linear steps ---- */

struct layer {
    struct td_matrix *q, *k, *v, *o, *gate, *up, *down;
};

struct model {
    struct layer layer[MAX_LAYERS];
    uint32_t n_layers, n;
    float *x, *norm, *q, *k, *v, *ff, *parts;
};

/* Random bytes, whatever they stand for; the same rows again and again. The leaves are those of shard/plan.c. */
static struct td_matrix *matrix(enum td_dtype type, uint32_t rows, uint32_t cols,
                                uint32_t leaf_cols)
{
    enum { AT_ONCE = 1024 };
    const size_t stride = td_dtype_row_bytes(type, cols);
    struct td_matrix_shape shape = {.dtype = type, .n_rows = rows, .n_cols = cols, .n_parts = 1};
    uint32_t leaf_end[TD_KERN_MAX_LEAVES];
    uint8_t *data = malloc(stride * AT_ONCE);
    float *scales = malloc((size_t)AT_ONCE * ((cols + 127) / 128) * sizeof *scales);
    struct td_matrix *m;

    for (uint32_t end = leaf_cols; end < cols + leaf_cols; end += leaf_cols)
        leaf_end[shape.n_leaves++] = end < cols ? end : cols;
    shape.leaf_end = leaf_end;
    shape.part_begin[1] = shape.n_leaves;
    for (size_t i = 0; i < stride * AT_ONCE; i++)
        data[i] = (uint8_t)(rand() & 0x3f); /* small numbers */
    for (size_t i = 0; i < (size_t)AT_ONCE * ((cols + 127) / 128); i++)
        scales[i] = 0.01f;
    check(td_kern_matrix_open(kern, &shape, &m, &err));
    for (uint32_t r = 0; r < rows; r += AT_ONCE)
        check(td_kern_matrix_pack(kern, m, r, rows - r < AT_ONCE ? rows - r : AT_ONCE, data, stride,
                                  type == TD_F8_E4M3 ? scales : NULL, &err));
    check(td_kern_sync(kern, &err));
    free(data);
    free(scales);
    return m;
}

/* 16 leaves, as shard/plan.c cuts them. */
static uint32_t leaf_of(uint32_t cols, uint32_t unit)
{
    const uint32_t step = unit > 32 ? unit : 32;

    return ((cols + 15) / 16 + step - 1) / step * step;
}

static void open_model(struct model *m, enum td_dtype type, uint32_t n_layers)
{
    const uint32_t unit = (uint32_t)td_dtype_info(type)->sum_cols;
    const uint32_t d = leaf_of(D, unit), head = leaf_of(HEADS * DIM, unit), ff = leaf_of(FF, unit);

    *m = (struct model){.n_layers = n_layers};
    for (uint32_t i = 0; i < n_layers; i++)
        m->layer[i] = (struct layer){matrix(type, HEADS * DIM, D, d),
                                     matrix(type, KV_HEADS * DIM, D, d),
                                     matrix(type, KV_HEADS * DIM, D, d),
                                     matrix(type, D, HEADS * DIM, head),
                                     matrix(type, FF, D, d),
                                     matrix(type, FF, D, d),
                                     matrix(type, D, FF, ff)};
    m->x = device((size_t)MAX_TOKENS * D * 4);
    m->norm = device(D * 4);
    m->q = device((size_t)MAX_TOKENS * HEADS * DIM * 4);
    m->k = device((size_t)MAX_TOKENS * KV_HEADS * DIM * 4);
    m->v = device((size_t)MAX_TOKENS * KV_HEADS * DIM * 4);
    m->ff = device((size_t)MAX_TOKENS * FF * 4);
    m->parts = device((size_t)MAX_TOKENS * D * 4);
}

static void close_model(struct model *m)
{
    float *const buffers[] = {m->x, m->norm, m->q, m->k, m->v, m->ff, m->parts};

    for (uint32_t i = 0; i < m->n_layers; i++) {
        struct layer *l = &m->layer[i];
        struct td_matrix *const all[] = {l->q, l->k, l->v, l->o, l->gate, l->up, l->down};

        for (int k = 0; k < 7; k++)
            td_kern_matrix_close(kern, all[k]);
    }
    for (int i = 0; i < 7; i++)
        td_kern_free(kern, buffers[i], 0);
}

static void run_model(void *arg)
{
    const struct model *m = arg;

    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct layer *l = &m->layer[i];
        const struct td_kern_input residual = {
            .x = m->x, .add = m->parts, .norm = m->norm, .eps = 1e-5f};
        const struct td_kern_output qkv[] = {
            {.m = l->q, .out = m->q}, {.m = l->k, .out = m->k}, {.m = l->v, .out = m->v}};
        const struct td_kern_output gated = {.m = l->up, .gate = l->gate, .out = m->ff};

        check(td_kern_linear(kern, &residual, m->n, qkv, 3, &err));
        check(td_kern_matmul(kern, l->o, m->q, m->n, m->parts, &err));
        check(td_kern_linear(kern, &residual, m->n, &gated, 1, &err));
        check(td_kern_matmul(kern, l->down, m->ff, m->n, m->parts, &err));
    }
}

static const enum td_dtype types[] = {TD_BF16, TD_F16,  TD_F8_E4M3, TD_Q8_0,  TD_Q6_K,
                                      TD_Q5_K, TD_Q4_K, TD_Q4_0,    TD_MXFP4, TD_INT4};

static void bench_linear(double copy, uint32_t n_layers)
{
    static const uint32_t tokens[] = {1, 2, 4, 8, 16, 64};

    printf("\n## Matrices of %u layers of an 8B Llama\n\nGB/s of weights as they are held, share "
           "of copying's %.0f GB/s in "
           "brackets; best of five.\n\n| type | GB |",
           n_layers, copy * 1e-9);
    for (int k = 0; k < 6; k++)
        printf(" %u tokens |", tokens[k]);
    printf("\n|---|---:|---:|---:|---:|---:|---:|---:|\n");
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        struct model m;
        double bytes;

        open_model(&m, types[i], n_layers);
        bytes = (double)td_kern_weight_bytes(kern);
        printf("| %s | %.2f |", td_dtype_info(types[i])->name, bytes * 1e-9);
        for (int k = 0; k < 6; k++) {
            double rate;

            m.n = tokens[k];
            rate = bytes / best_of(run_model, &m);
            printf(" %.0f (%.0f %%) |", rate * 1e-9, 100 * rate / copy);
            fflush(stdout);
        }
        putchar('\n');
        close_model(&m);
    }
}

static void bench_prompts(const char *by)
{
    static const uint32_t tokens[] = {128, 512, 2048, 8192};
    const double ops_of_token =
        2.0 * D * (HEADS * DIM + 2.0 * KV_HEADS * DIM + HEADS * DIM + 3.0 * FF);

    printf("\n## Prompts through the matrices of a layer of an 8B Llama, %s\n\nTFLOP/s, best of "
           "five.\n\n| type |",
           by);
    for (int k = 0; k < 4; k++)
        printf(" %u tokens |", tokens[k]);
    printf("\n|---|---:|---:|---:|---:|\n");
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        struct model m;

        open_model(&m, types[i], 1);
        printf("| %s |", td_dtype_info(types[i])->name);
        for (int k = 0; k < 4; k++) {
            m.n = tokens[k];
            printf(" %.0f |", ops_of_token * m.n / best_of(run_model, &m) * 1e-12);
            fflush(stdout);
        }
        putchar('\n');
        close_model(&m);
    }
}

/* ---- attention ---- */

struct attention {
    struct td_kv_view view;
    struct td_kv_rows rows;
    uint32_t n, kv_of_head[HEADS];
    struct td_attention how;
};

static void attend_once(void *arg)
{
    const struct attention *a = arg;

    for (int i = 0; i < 8; i++)
        check(td_kern_attention(kern, &a->view, &a->rows, a->n, &a->how, &err));
}

/* Seconds that attention takes with n sequences of so many keys, for the last row of each or, of a prompt, for all. */
static double attention_time(enum td_dtype type, uint32_t n_seqs, uint32_t keys, bool is_prompt)
{
    const uint32_t per_seq = keys / BLOCK, n = is_prompt ? keys : n_seqs;
    struct attention a = {.n = n,
                          .view = {.dtype = type,
                                   .n_blocks = n_seqs * per_seq,
                                   .n_kv_heads = KV_HEADS,
                                   .block_tokens = BLOCK,
                                   .head_dim = DIM}};
    const uint32_t n_blocks = a.view.n_blocks;
    uint32_t *table = malloc((size_t)n_blocks * 4), *first = malloc(n * 4), *at = malloc(n * 4);
    uint32_t *index = device(((size_t)n_blocks + 2 * n) * 4);
    const size_t bytes = td_kern_kv_bytes(&a.view);
    double seconds;

    for (uint32_t i = 0; i < n_blocks; i++)
        table[i] = (uint32_t)((uint64_t)i * 2654435761u % n_blocks);
    for (uint32_t i = 0; i < n; i++) {
        first[i] = is_prompt ? 0 : i * per_seq;
        at[i] = is_prompt ? i : keys - 1;
    }
    td_kern_copy(kern, index, at, n * 4);
    td_kern_copy(kern, index + n, first, n * 4);
    td_kern_copy(kern, index + 2 * n, table, (size_t)n_blocks * 4);
    a.rows = (struct td_kv_rows){index, index + n, index + 2 * n, keys, n_seqs};
    for (uint32_t h = 0; h < HEADS; h++)
        a.kv_of_head[h] = h / (HEADS / KV_HEADS);
    a.view.data = device(bytes);
    a.how = (struct td_attention){.q = device((size_t)n * HEADS * DIM * 4),
                                  .out = device((size_t)n * HEADS * DIM * 4),
                                  .n_heads = HEADS,
                                  .kv_of_head = a.kv_of_head,
                                  .scale = 0.088f};
    seconds = best_of(attend_once, &a) / 8;
    td_kern_free(kern, a.view.data, bytes);
    td_kern_free(kern, (void *)a.how.q, 0);
    td_kern_free(kern, a.how.out, 0);
    td_kern_free(kern, index, 0);
    free(table);
    free(first);
    free(at);
    return seconds;
}

static const enum td_dtype caches[] = {TD_BF16, TD_F16, TD_Q8_0};

static void bench_attention(double copy)
{
    static const uint32_t seqs[] = {1, 8, 64}, keys[] = {2048, 8192};

    printf("\n## Attention of one token a sequence\n\n32 heads, 8 KV heads, 128 dimensions, pages "
           "of %d tokens: GB/s of keys and "
           "values, share of copying in brackets.\n\n| cache | sequences | 2048 keys | 8192 keys "
           "|\n|---|---:|---:|---:|\n",
           BLOCK);
    for (int t = 0; t < 3; t++)
        for (int s = 0; s < 3; s++) {
            printf("| %s | %u |", td_dtype_info(caches[t])->name, seqs[s]);
            for (int k = 0; k < 2; k++) {
                const double bytes =
                    2.0 * KV_HEADS * seqs[s] * keys[k] * (double)td_dtype_row_bytes(caches[t], DIM);
                const double rate = bytes / attention_time(caches[t], seqs[s], keys[k], false);

                printf(" %.0f (%.0f %%) |", rate * 1e-9, 100 * rate / copy);
            }
            putchar('\n');
            fflush(stdout);
        }
}

static void bench_prompt_attention(const char *how)
{
    static const uint32_t keys[] = {2048, 8192};

    printf(
        "\n## Attention of a prompt, %s\n\nTFLOP/s, half of the square counted.\n\n| cache | 2048 "
        "tokens | 8192 tokens |\n|---|---:|---:|\n",
        how);
    for (int t = 0; t < 3; t++) {
        printf("| %s |", td_dtype_info(caches[t])->name);
        for (int k = 0; k < 2; k++) {
            const double ops = 4.0 * HEADS * DIM * keys[k] * (keys[k] + 1) / 2;

            printf(" %.0f |", ops / attention_time(caches[t], 1, keys[k], true) * 1e-12);
        }
        putchar('\n');
        fflush(stdout);
    }
}

/* ---- a token from a row ---- */

struct choice {
    float *x; /* [n x VOCAB] */
    uint32_t n;
    uint32_t n_top; /* 0: a draw */
    struct td_draw draw[64];
    struct td_top *top;
    uint32_t *ids;
};

static void choose_once(void *arg)
{
    struct choice *c = arg;

    for (int i = 0; i < 8; i++)
        check(c->n_top ? td_kern_top(kern, c->x, c->n, VOCAB, c->n_top, c->top, &err)
                       : td_kern_draw(kern, c->x, c->n, VOCAB, c->draw, c->ids, &err));
}

static void bench_choice(void)
{
    static const struct {
        const char *name;
        uint32_t n_top;
        float top_p;
    } ways[] = {{"the largest", 1, 0},
                {"the 64 largest", 64, 0},
                {"a draw", 0, 1},
                {"a draw, top_p 0.9", 0, 0.9f}};
    static const uint32_t rows[] = {1, 64};
    struct choice c = {.x = device(64 * (size_t)VOCAB * sizeof(float)),
                       .top = td_kern_alloc_shared(kern, 64 * TD_TOP_MAX * sizeof *c.top),
                       .ids = td_kern_alloc_shared(kern, 64 * sizeof *c.ids)};
    float *x = malloc(64 * (size_t)VOCAB * sizeof *x);
    uint32_t state = 1;

    for (size_t i = 0; i < 64 * (size_t)VOCAB; i++) { /* a sum of four: a bell, some 2.3 wide */
        float sum = 0.0f;

        for (int k = 0; k < 4; k++) {
            state = state * 1664525u + 1013904223u;
            sum += (float)(state >> 8) * 0x1p-22f - 2.0f;
        }
        x[i] = sum;
    }
    td_kern_copy(kern, c.x, x, 64 * (size_t)VOCAB * sizeof *x);
    free(x);
    printf("\n## A token from a row of %d logits\n\nMicroseconds of a call.\n\n| | 1 row | 64 rows "
           "|\n|---|---:|---:|\n",
           VOCAB);
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        printf("| %s |", ways[w].name);
        for (int r = 0; r < 2; r++) {
            c.n = rows[r];
            c.n_top = ways[w].n_top;
            for (uint32_t i = 0; i < 64; i++)
                c.draw[i] =
                    (struct td_draw){.inv_t = 1, .top_p = ways[w].top_p, .u = (float)i / 64.0f};
            printf(" %.1f |", best_of(choose_once, &c) / 8 * 1e6);
        }
        putchar('\n');
        fflush(stdout);
    }
    td_kern_free(kern, c.x, 0);
    td_kern_free_shared(kern, c.top, 0);
    td_kern_free_shared(kern, c.ids, 0);
}

int main(int argc, char **argv)
{
    struct td_kern_cuda_params params = {.plugin = argc > 1 ? argv[1] : NULL};
    const int n_layers = argc > 2 ? atoi(argv[2]) : 8;
    double copy;

    check(td_kern_cuda_open(&params, &kern, &err));
    copy = copy_rate();
    printf("# Kernels on %s\n\nCopying from device to device reads and writes %.0f GB/s.\n",
           td_kern_name(kern), copy * 1e-9);
    bench_linear(copy, n_layers < 1 || n_layers > MAX_LAYERS ? 8 : (uint32_t)n_layers);
    bench_prompts("exact");
    bench_attention(copy);
    bench_prompt_attention("exact");
    bench_choice();
    td_kern_close(kern);
    params.inexact_from = 1; /* as --exact off has it for prompts */
    if (td_kern_cuda_open(&params, &kern, &err)) {
        printf("\n## Prompts by NVIDIA's library\n\n%s\n", err.cause);
        return 0;
    }
    bench_prompts("by NVIDIA's library (--exact off)");
    bench_prompt_attention("--exact off");
    td_kern_close(kern);
    return 0;
}
