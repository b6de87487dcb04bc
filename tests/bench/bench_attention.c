/* How fast attention is on this machine: decode as bytes of K and V per second beside a plain read of memory, prefill as
 * multiply-adds per second beside registers only. One layer of Llama 3.2 1B's shape (32 query heads, 8 KV heads, 64
 * dimensions). Every figure is the best of several, interleaved with the probes.
 *
 *   bench_attention [threads] [f32|f16|bf16|q8_0|q4_0] */
#include "kernels/base/clock.h"
#include "kernels/cpu/probe.h"
#include "kernels/kern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 32, KV_HEADS = 8, DIM = 64, BLOCK = 16, MAX_TOKENS = 16384, MAX_ROWS = 4096 };
enum { PROBE_BYTES = 256 << 20, ROUNDS = 7 };

/* The cache of every layer is read once per token, so between two reads of one lie the others: `layers` caches in turn. */
struct bench {
    struct td_kern *kern;
    struct td_kv_view view;
    uint32_t n_layers;
    uint32_t *positions, *first, *table;
    uint32_t kv_of_head[HEADS];
    float *q, *k, *v, *out, *angles;
};

static struct td_kv_view layer(const struct bench *b, uint32_t i)
{
    struct td_kv_view view = b->view;
    size_t bytes = td_kern_kv_bytes(&view);

    view.data = (uint8_t *)view.data + i * bytes;
    return view;
}

static void check(enum td_status s, const struct td_err *err)
{
    if (!s)
        return;
    fprintf(stderr, "bench_attention: %s\n", err->cause);
    exit(1);
}

static uint64_t rope_kv(struct bench *b, uint32_t i, uint32_t from, uint32_t n)
{
    struct td_kv_view view = layer(b, i);
    struct td_kv_rows rows = {b->positions + from, b->first, b->table, from + n, 1};
    struct td_rope_kv in = {.q = b->q, .k = b->k, .v = b->v, .angles = b->angles, .n_heads = HEADS};
    struct td_err err;
    uint64_t begin = td_clock_now_ns();

    check(td_kern_rope_kv(b->kern, &view, &rows, n, &in, &err), &err);
    return td_clock_now_ns() - begin;
}

/* n rows from position `from` on. */
static uint64_t attend(struct bench *b, uint32_t i, uint32_t from, uint32_t n)
{
    struct td_kv_view view = layer(b, i);
    struct td_kv_rows rows = {b->positions + from, b->first, b->table, from + n, 1};
    const struct td_attention how = {
        .q = b->q, .out = b->out, .n_heads = HEADS, .kv_of_head = b->kv_of_head, .scale = 0.125f};
    struct td_err err;
    uint64_t begin = td_clock_now_ns();

    check(td_kern_attention(b->kern, &view, &rows, n, &how, &err), &err);
    return td_clock_now_ns() - begin;
}

static void open_bench(struct bench *b, uint32_t threads, enum td_dtype dtype)
{
    struct td_kern_cpu_params params = {.n_threads = threads, .spin_ns = 2000000};
    double freq[DIM / 2];
    struct td_err err;
    size_t bytes;

    check(td_kern_cpu_open(&params, &b->kern, &err), &err);
    b->view = (struct td_kv_view){.dtype = dtype,
                                  .n_blocks = MAX_TOKENS / BLOCK,
                                  .n_kv_heads = KV_HEADS,
                                  .block_tokens = BLOCK,
                                  .head_dim = DIM};
    b->n_layers = 16;
    bytes = td_kern_kv_bytes(&b->view);
    b->view.data = td_kern_alloc(b->kern, bytes * b->n_layers);
    b->positions = calloc(MAX_TOKENS, sizeof *b->positions);
    b->first = calloc(MAX_TOKENS, sizeof *b->first);
    b->table = calloc(MAX_TOKENS / BLOCK, sizeof *b->table);
    b->q = td_kern_alloc(b->kern, sizeof(float) * MAX_ROWS * HEADS * DIM);
    b->out = td_kern_alloc(b->kern, sizeof(float) * MAX_ROWS * HEADS * DIM);
    b->k = td_kern_alloc(b->kern, sizeof(float) * MAX_ROWS * KV_HEADS * DIM);
    b->v = td_kern_alloc(b->kern, sizeof(float) * MAX_ROWS * KV_HEADS * DIM);
    b->angles = td_kern_alloc(b->kern, sizeof(float) * MAX_ROWS * 2 * DIM);
    if (!b->view.data || !b->positions || !b->first || !b->table || !b->q || !b->out || !b->k ||
        !b->v || !b->angles) {
        fprintf(stderr, "bench_attention: no memory\n");
        exit(1);
    }
    for (uint32_t h = 0; h < HEADS; h++)
        b->kv_of_head[h] = h / (HEADS / KV_HEADS);
    for (uint32_t i = 0; i < MAX_TOKENS; i++)
        b->positions[i] = i;
    for (uint32_t i = 0; i < MAX_TOKENS / BLOCK; i++) /* blocks of a sequence lie apart */
        b->table[i] = i * 37 % (MAX_TOKENS / BLOCK);
    for (size_t i = 0; i < (size_t)MAX_ROWS * HEADS * DIM; i++)
        b->q[i] = (float)((i * 2654435761u >> 8) % 2000) / 1000.0f - 1.0f;
    for (size_t i = 0; i < (size_t)MAX_ROWS * KV_HEADS * DIM; i++) {
        b->k[i] = (float)((i * 2246822519u >> 8) % 2000) / 1000.0f - 1.0f;
        b->v[i] = (float)((i * 3266489917u >> 8) % 2000) / 1000.0f - 1.0f;
    }
    for (int i = 0; i < DIM / 2; i++)
        freq[i] = pow(500000.0, -2.0 * i / DIM);
    check(td_kern_rope_angles(b->kern, freq, DIM, 1.0, false, b->positions, MAX_ROWS, b->angles,
                              &err),
          &err);
    for (uint32_t i = 0; i < b->n_layers; i++)
        for (uint32_t from = 0; from < MAX_TOKENS; from += MAX_ROWS)
            (void)rope_kv(b, i, from, MAX_ROWS);
}

static double least(double a, double b)
{
    return a < b ? a : b;
}

int main(int argc, char **argv)
{
    static const uint32_t depths[] = {512, 4096, 16384}, prompts[] = {512, 4096};
    uint32_t threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 1;
    enum td_dtype dtype = TD_F16;
    double read = 0.0, multiply = 0.0, decode[3], prefill[2], rope = INFINITY;
    struct td_probe_params probe_params = {.n_threads = threads, .bytes = PROBE_BYTES};
    struct td_probe *probe;
    struct bench b = {0};
    struct td_err err;

    if (!threads || (argc > 2 && !td_dtype_from_name(argv[2], &dtype))) {
        fprintf(stderr, "usage: bench_attention [threads] [f32|f16|bf16|q8_0|q4_0]\n");
        return 1;
    }
    check(td_probe_open(&probe_params, &probe, &err), &err);
    open_bench(&b, threads, dtype);
    decode[0] = decode[1] = decode[2] = prefill[0] = prefill[1] = INFINITY;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t begin;
        double amount;

        for (uint32_t way = 0; way < td_probe_ways(); way++) {
            begin = td_clock_now_ns();
            amount = (double)td_probe_read(probe, way);
            read = fmax(read, amount / (double)(td_clock_now_ns() - begin));
        }
        begin = td_clock_now_ns();
        amount = (double)td_probe_multiply(probe, TD_PEAK_F32);
        multiply = fmax(multiply, amount / (double)(td_clock_now_ns() - begin));
        for (int d = 0; d < 3; d++) {
            uint64_t ns = 0;

            for (uint32_t i = 0; i < b.n_layers; i++)
                ns += attend(&b, i, depths[d] - 1, 1);
            decode[d] = least(decode[d], (double)ns / b.n_layers);
        }
        for (int p = 0; p < 2 && (p == 0 || round < 2); p++)
            prefill[p] = least(prefill[p], (double)attend(&b, 0, 0, prompts[p]));
        rope = least(rope, (double)rope_kv(&b, 0, 0, 512));
    }
    printf("%s, %u threads, KV %s\n", td_kern_name(b.kern), threads, td_dtype_info(dtype)->name);
    printf("memory read        %7.1f GB/s\n", read);
    printf("multiply-add peak  %7.1f Gflop/s\n", multiply);
    for (int d = 0; d < 3; d++) {
        double bytes = 2.0 * KV_HEADS * (double)td_dtype_row_bytes(dtype, DIM) * depths[d];

        printf("decode at %5u    %7.1f GB/s of K and V, %8.1f us a layer\n", depths[d],
               bytes / decode[d], decode[d] * 1e-3);
    }
    for (int p = 0; p < 2; p++) {
        double flop = 4.0 * HEADS * DIM * prompts[p] * (prompts[p] + 1.0) / 2.0;

        printf("prefill of %5u   %7.1f Gflop/s, %8.1f us a layer\n", prompts[p], flop / prefill[p],
               prefill[p] * 1e-3);
    }
    printf("rope and store 512 %7.1f us a layer\n", rope * 1e-3);
    td_probe_close(probe);
    td_kern_close(b.kern);
    return 0;
}
