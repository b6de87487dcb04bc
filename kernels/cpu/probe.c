#include "kernels/cpu/probe.h"

#include "kernels/cpu/pool.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LINE = 64, PIECE = 2 << 20, PREFETCH_AHEAD = 2048, PEAK_PIECES = 128 };

/* One cache line at a time, whatever the widest register is. */
typedef uint64_t line __attribute__((vector_size(LINE)));

struct td_probe {
    struct td_pool *pool;
    uint8_t *data;
    size_t bytes; /* a multiple of PIECE */
    uint32_t way;
    enum td_peak kind;
    uint64_t *sink; /* [pieces] keeps the reads from being left out */
};

/* Reads `piece` as `n_streams` runs side by side. */
static inline __attribute__((always_inline)) uint64_t read_streams(const uint8_t *piece,
                                                                   size_t n_streams, int prefetch)
{
    const size_t run = PIECE / n_streams;
    line sum[8] = {{0}}, all = {0};
    uint64_t x = 0;

    for (size_t i = 0; i < run; i += LINE)
        for (size_t s = 0; s < n_streams; s++) {
            if (prefetch)
                __builtin_prefetch(piece + s * run + i + PREFETCH_AHEAD, 0, 3);
            sum[s] += *(const line *)(const void *)(piece + s * run + i);
        }
    for (size_t s = 0; s < n_streams; s++)
        all += sum[s];
    for (size_t i = 0; i < LINE / sizeof x; i++)
        x += all[i];
    return x;
}

static uint64_t read_1(const uint8_t *piece)
{
    return read_streams(piece, 1, 0);
}

static uint64_t read_1_ahead(const uint8_t *piece)
{
    return read_streams(piece, 1, 1);
}

static uint64_t read_4(const uint8_t *piece)
{
    return read_streams(piece, 4, 0);
}

static uint64_t read_4_ahead(const uint8_t *piece)
{
    return read_streams(piece, 4, 1);
}

static uint64_t read_8_ahead(const uint8_t *piece)
{
    return read_streams(piece, 8, 1);
}

static uint64_t (*const ways[])(const uint8_t *piece) = {read_1, read_1_ahead, read_4, read_4_ahead,
                                                         read_8_ahead};

uint32_t td_probe_ways(void)
{
    return sizeof ways / sizeof ways[0];
}

static void touch(void *user, uint32_t task)
{
    struct td_probe *p = user;

    memset(p->data + (size_t)task * PIECE, 1, PIECE);
}

static void read_piece(void *user, uint32_t task)
{
    struct td_probe *p = user;

    p->sink[task] += ways[p->way](p->data + (size_t)task * PIECE);
}

static void multiply_piece(void *user, uint32_t task)
{
    const struct td_probe *p = user;

    (void)task;
    (void)td_probe_peak_run(p->kind);
}

enum td_status td_probe_open(const struct td_probe_params *params, struct td_probe **out,
                             struct td_err *err)
{
    struct td_pool_params pool = {.n_threads = params->n_threads, .seats = params->seats};
    struct td_probe *p = calloc(1, sizeof *p);
    enum td_status s;

    if (!p)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a probe");
    p->bytes = params->bytes < PIECE ? PIECE : params->bytes / PIECE * PIECE;
    p->sink = calloc(p->bytes / PIECE, sizeof *p->sink);
    p->data = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->data == MAP_FAILED)
        p->data = NULL;
    if (!p->sink || !p->data) {
        s = td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes to measure the bandwidth with",
                       p->bytes);
        goto fail;
    }
    (void)madvise(p->data, p->bytes, MADV_HUGEPAGE);
    s = td_pool_open(&pool, &p->pool, err);
    if (s)
        goto fail;
    td_pool_run(p->pool, (uint32_t)(p->bytes / PIECE), touch, p);
    *out = p;
    return TD_OK;

fail:
    td_probe_close(p);
    return s;
}

void td_probe_close(struct td_probe *p)
{
    if (!p)
        return;
    td_pool_close(p->pool);
    if (p->data)
        munmap(p->data, p->bytes);
    free(p->sink);
    free(p);
}

uint64_t td_probe_read(struct td_probe *p, uint32_t way)
{
    p->way = way;
    td_pool_run(p->pool, (uint32_t)(p->bytes / PIECE), read_piece, p);
    return p->bytes;
}

/* Pieces are dealt one by one, so a thread that woke up late or has a slow core does not hold the rest. */
uint64_t td_probe_multiply(struct td_probe *p, enum td_peak kind)
{
    uint32_t n = PEAK_PIECES * td_pool_threads(p->pool);
    uint64_t ops = td_probe_peak_run(kind); /* also wakes the unit, which may sleep at first */

    if (!ops)
        return 0;
    p->kind = kind;
    td_pool_run(p->pool, n, multiply_piece, p);
    return ops * (n + 1);
}
