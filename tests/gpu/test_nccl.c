/* NCCL between ranks on GPUs: every operation x size x layout, bits against td_tree_join, capture in a graph, time-outs,
 * aborts, a rank that dies. */
/* modes: same-host death group-abort */
#include "comm/comm.h"
#include "comm/nccl_impl.h"
#include "tests/gpu/gpu_rank.h"
#include "tests/unit/comm/comm_check.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#define SECOND 1000000000ull

static const size_t sizes[] = {1, 3, 16, 1000, 4096, 65536, 65537, 1u << 20, 16u << 20};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };

static struct td_nccl_config config_of(const struct gpu_rank *g)
{
    return (struct td_nccl_config){.plugin = NCCL_PLUGIN,
                                   .device = g->device,
                                   .open_limit_ns = 60 * SECOND,
                                   .op_limit_ns = 30 * SECOND,
                                   .captures_across_hosts = true};
}

static struct td_nccl *open_end(struct gpu_rank *g, const struct td_nccl_config *config)
{
    struct td_nccl *nccl = NULL;
    struct td_err err;

    gpu_ok(g, td_nccl_open(g->comm, config, &nccl, &err), &err);
    return nccl;
}

/* ---- the end for all ---- */

static void opens_and_tells_its_version(struct gpu_rank *g)
{
    struct td_nccl_config config = config_of(g);
    struct td_nccl_lib *lib;
    struct td_err err;
    char text[128];

    if (!gpu_ok(g, td_nccl_load(NCCL_PLUGIN, NULL, &lib, &err), &err))
        return;
    if (g->rank == 0)
        printf("library: %s\n", td_nccl_version_text(lib, text, sizeof text));
    td_nccl_unload(lib);
    g->nccl = open_end(g, &config);
    if (g->nccl)
        gpu_ok(g, td_nccl_poll(g->nccl, &err), &err);
}

static bool is_open(struct gpu_rank *g)
{
    return g->nccl ? true : gpu_fail(g, "there is no communicator: an earlier case failed");
}

/* ---- bytes ---- */

/* As many of every rank; one call's, until the next. */
static const size_t *each(size_t bytes)
{
    static size_t all[TD_TREE_MAX_RANKS];

    for (uint32_t r = 0; r < TD_TREE_MAX_RANKS; r++)
        all[r] = bytes;
    return all;
}

static void all_gathers_every_size(struct gpu_rank *g)
{
    for (size_t i = 0; is_open(g) && !g->fail[0] && i < N_SIZES; i++) {
        size_t bytes = sizes[i];
        char *mine = gpu_host(bytes), *all = gpu_host(bytes * g->n_ranks);
        void *send, *recv;
        struct td_err err;

        for (uint32_t r = 0; r < g->n_ranks; r++)
            check_fill(all + r * bytes, bytes, check_mix(bytes + r));
        memcpy(mine, all + g->rank * bytes, bytes);
        send = gpu_alloc(g, bytes, mine);
        recv = gpu_alloc(g, bytes * g->n_ranks, NULL);
        if (send && recv &&
            gpu_ok(g, td_nccl_all_gather(g->nccl, send, each(bytes), recv, g->stream, &err), &err))
            gpu_same(g, "all_gather", recv, all, bytes * g->n_ranks);
        gpu_free(send);
        gpu_free(recv);
        free(mine);
        free(all);
    }
}

/* Rank r gives r * 1000 bytes, the last one none, to all and to each rank by turns. */
static void gathers_as_many_as_each_has(struct gpu_rank *g)
{
    size_t bytes[TD_TREE_MAX_RANKS], total = 0, before = 0;
    char *all;
    void *send, *recv;
    struct td_err err;

    if (!is_open(g))
        return;
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        bytes[r] = r + 1 < g->n_ranks ? (r + 1) * 1000 : 0;
        before += r < g->rank ? bytes[r] : 0;
        total += bytes[r];
    }
    all = gpu_host(total);
    check_fill(all, total, 77);
    send = gpu_alloc(g, bytes[g->rank], all + before);
    recv = gpu_alloc(g, total, NULL);
    if (send && recv &&
        gpu_ok(g, td_nccl_all_gather(g->nccl, send, bytes, recv, g->stream, &err), &err))
        gpu_same(g, "all_gather", recv, all, total);
    gpu_free(recv);
    for (uint32_t root = 0; send && root < g->n_ranks && !g->fail[0]; root++) {
        recv = root == g->rank ? gpu_alloc(g, total, NULL) : NULL;
        if (gpu_ok(g, td_nccl_gather(g->nccl, root, send, bytes, recv, g->stream, &err), &err) &&
            recv)
            gpu_same(g, "gather", recv, all, total);
        gpu_free(recv);
    }
    gpu_free(send);
    free(all);
}

static void passes_messages_around_a_ring(struct gpu_rank *g)
{
    uint32_t next = (g->rank + 1) % g->n_ranks, last = (g->rank + g->n_ranks - 1) % g->n_ranks;

    for (size_t i = 0; is_open(g) && !g->fail[0] && i < N_SIZES; i++) {
        size_t bytes = sizes[i];
        char *mine = gpu_host(bytes), *theirs = gpu_host(bytes);
        void *send, *recv;
        struct td_err err;
        bool ok;

        check_fill(mine, bytes, check_mix(bytes * 3 + g->rank));
        check_fill(theirs, bytes, check_mix(bytes * 3 + last));
        send = gpu_alloc(g, bytes, mine);
        recv = gpu_alloc(g, bytes, NULL);
        ok =
            send && recv &&
            gpu_ok(g,
                   td_nccl_sendrecv(g->nccl, next, send, bytes, last, recv, bytes, g->stream, &err),
                   &err) &&
            gpu_same(g, "sendrecv", recv, theirs, bytes);
        /* The same one after the other: rank 0 begins, so the ring cannot stall. */
        ok = ok && gpu_cuda(g, cudaMemset(recv, 0xee, bytes), "cudaMemset") &&
             gpu_cuda(g, cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        if (ok && g->rank == 0)
            ok = gpu_ok(g, td_nccl_send(g->nccl, next, send, bytes, g->stream, &err), &err);
        ok = ok && gpu_ok(g, td_nccl_recv(g->nccl, last, recv, bytes, g->stream, &err), &err);
        if (ok && g->rank != 0)
            ok = gpu_ok(g, td_nccl_send(g->nccl, next, send, bytes, g->stream, &err), &err);
        if (ok)
            gpu_same(g, "send and recv", recv, theirs, bytes);
        gpu_free(send);
        gpu_free(recv);
        free(mine);
        free(theirs);
    }
}

static void broadcasts_from_every_root(struct gpu_rank *g)
{
    for (size_t i = 0; is_open(g) && !g->fail[0] && i < N_SIZES; i++) {
        for (uint32_t root = 0; !g->fail[0] && root < g->n_ranks; root++) {
            size_t bytes = sizes[i];
            char *expected = gpu_host(bytes);
            void *data;
            struct td_err err;

            check_fill(expected, bytes, check_mix(bytes * 5 + root));
            data = gpu_alloc(g, bytes, g->rank == root ? expected : NULL);
            if (data && gpu_ok(g, td_nccl_bcast(g->nccl, root, data, bytes, g->stream, &err), &err))
                gpu_same(g, "bcast", data, expected, bytes);
            gpu_free(data);
            free(expected);
        }
    }
}

/* ---- NCCL's own sum ---- */

/* Small whole numbers in the three formats: every sum of them is exact, in any order. */
static void put_number(void *out, size_t i, enum td_dtype type, uint32_t value)
{
    float f = (float)value;
    uint32_t bits;
    uint16_t half;

    memcpy(&bits, &f, sizeof bits);
    if (type == TD_F32) {
        memcpy((char *)out + i * 4, &bits, 4);
        return;
    }
    if (type == TD_BF16) /* 8 bits of mantissa: exact up to 256 */
        half = (uint16_t)(bits >> 16);
    else /* F16 from a float of 1 to 2048: the exponent moves by 127 - 15 */
        half = (uint16_t)(((bits >> 23) - 112) << 10 | (bits >> 13 & 0x3ff));
    memcpy((char *)out + i * 2, &half, 2);
}

static void reduces_whole_numbers_of_every_type(struct gpu_rank *g)
{
    static const enum td_dtype types[] = {TD_F32, TD_F16, TD_BF16};
    const size_t n = 100003;

    for (size_t t = 0; is_open(g) && !g->fail[0] && t < 3; t++) {
        size_t bytes = n * (types[t] == TD_F32 ? 4 : 2);
        char *mine = gpu_host(bytes), *expected = gpu_host(bytes);
        void *in, *out;
        struct td_err err;

        for (size_t i = 0; i < n; i++) {
            uint32_t base = (uint32_t)(i % 8) + 1;

            put_number(mine, i, types[t], base + g->rank);
            put_number(expected, i, types[t],
                       g->n_ranks * base + g->n_ranks * (g->n_ranks - 1) / 2);
        }
        in = gpu_alloc(g, bytes, mine);
        out = gpu_alloc(g, bytes, NULL);
        if (in && out &&
            gpu_ok(g, td_nccl_all_reduce_inexact(g->nccl, in, out, n, types[t], g->stream, &err),
                   &err) &&
            gpu_same(g, "all_reduce", out, expected, bytes) &&
            gpu_ok(g, td_nccl_all_reduce_inexact(g->nccl, in, in, n, types[t], g->stream, &err),
                   &err))
            gpu_same(g, "all_reduce in place", in, expected, bytes);
        gpu_free(in);
        gpu_free(out);
        free(mine);
        free(expected);
    }
}

/* ---- the exact sum ---- */

/* One sum: the parts of all ranks on the host, what this rank owns on the device. */
struct sum_case {
    uint64_t seed;
    uint32_t n_leaves;
    size_t n_floats;
    struct td_leaf_run runs[TD_TREE_MAX_RANKS];
    struct td_leaf_run part_run[TD_TREE_MAX_LEAVES];
    uint32_t n_parts;
    struct td_ncclsum sum;
    float *host;                  /* [n_parts x n_floats] of all ranks */
    float *expected;              /* [n_floats] of td_tree_join */
    float *parts, *scratch, *out; /* device */
};

static void list_parts(struct sum_case *s, uint32_t n_ranks)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];

    s->n_parts = 0;
    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t n = td_tree_parts(s->n_leaves, s->runs[r], cut);

        memcpy(s->part_run + s->n_parts, cut, n * sizeof *cut);
        s->n_parts += n;
    }
}

static void fill_parts(struct sum_case *s)
{
    const float *part[TD_TREE_MAX_LEAVES];

    for (uint32_t k = 0; k < s->n_parts; k++) {
        uint32_t size = 1;

        while (s->part_run[k].begin + size < s->part_run[k].end)
            size *= 2;
        part[k] = s->host + k * s->n_floats;
        for (size_t f = 0; f < s->n_floats; f++)
            s->host[k * s->n_floats + f] =
                check_node(s->seed, s->n_leaves, s->part_run[k].begin, size, f);
    }
    td_tree_join(s->n_leaves, s->n_parts, s->part_run, part, s->expected, s->n_floats);
}

/* `runs` are set. */
static bool sum_begin(struct gpu_rank *g, struct sum_case *s)
{
    struct td_tree_layout layout = {s->n_leaves, s->runs};
    struct td_err err;
    size_t own;

    s->host = s->expected = s->parts = s->scratch = s->out = NULL;
    if (!gpu_ok(g, td_ncclsum_make(&layout, g->n_ranks, g->rank, &s->sum, &err), &err))
        return false;
    list_parts(s, g->n_ranks);
    s->host = gpu_host(s->n_parts * s->n_floats * sizeof(float));
    s->expected = gpu_host(s->n_floats * sizeof(float));
    fill_parts(s);
    own = (size_t)(s->sum.first[g->rank + 1] - s->sum.first[g->rank]);
    s->parts = gpu_alloc(g, own * s->n_floats * sizeof(float),
                         s->host + s->sum.first[g->rank] * s->n_floats);
    s->scratch = gpu_alloc(g, s->n_parts * s->n_floats * sizeof(float), NULL);
    s->out = gpu_alloc(g, s->n_floats * sizeof(float), NULL);
    return s->parts && s->scratch && s->out;
}

static void sum_end(struct sum_case *s)
{
    free(s->host);
    free(s->expected);
    gpu_free(s->parts);
    gpu_free(s->scratch);
    gpu_free(s->out);
}

/* What td_tree_join says is near the sum in float64: at most 6 roundings of 2^-24 on each way from leaf to root. */
static bool check_float64(struct gpu_rank *g, const struct sum_case *s)
{
    for (size_t f = 0; f < s->n_floats && f < 64; f++) {
        double sum = 0.0, magnitude = 0.0;

        for (uint32_t l = 0; l < s->n_leaves; l++) {
            double leaf = (double)check_leaf(s->seed, l, f);

            sum += leaf;
            magnitude += fabs(leaf);
        }
        if (fabs((double)s->expected[f] - sum) > magnitude / (1 << 20))
            return gpu_fail(g, "float %zu is %g, in float64 %g", f, (double)s->expected[f], sum);
    }
    return true;
}

static bool sum_once(struct gpu_rank *g, struct sum_case *s)
{
    bool owns = s->sum.first[g->rank] != s->sum.first[g->rank + 1];
    struct td_err err;
    bool ok = sum_begin(g, s) && check_float64(g, s);

    ok = ok &&
         gpu_ok(g,
                td_nccl_tree_sum(g->nccl, &s->sum, s->parts, s->n_floats, s->scratch, s->out,
                                 g->stream, &err),
                &err) &&
         gpu_same(g, "tree_sum", s->out, s->expected, s->n_floats * sizeof(float));
    /* Over its own first part. */
    owns = ok && s->sum.first[g->rank] != s->sum.first[g->rank + 1];
    ok = ok &&
         gpu_ok(g,
                td_nccl_tree_sum(g->nccl, &s->sum, s->parts, s->n_floats, s->scratch,
                                 owns ? s->parts : s->out, g->stream, &err),
                &err) &&
         gpu_same(g, "tree_sum over a part", owns ? s->parts : s->out, s->expected,
                  s->n_floats * sizeof(float));
    if (!ok && g->fail[0]) {
        size_t at = strlen(g->fail);

        snprintf(g->fail + at, sizeof g->fail - at, "; %u leaves, %zu floats, seed %llu",
                 s->n_leaves, s->n_floats, (unsigned long long)s->seed);
    }
    sum_end(s);
    return ok;
}

static void sums_any_layout_to_the_bits_of_tree_join(struct gpu_rank *g)
{
    static const uint32_t leaves[] = {1, 2, 5, 8, 13, 16, 31, 64};
    static const size_t floats[] = {1, 3, 4, 31, 1024, 4099};
    static struct sum_case s;

    for (size_t l = 0; is_open(g) && l < sizeof leaves / sizeof leaves[0]; l++) {
        for (size_t f = 0; f < sizeof floats / sizeof floats[0]; f++) {
            for (uint64_t cut = 0; cut < 4; cut++) {
                s.seed = 1000 * cut + f;
                s.n_leaves = leaves[l];
                s.n_floats = floats[f];
                check_runs(s.seed + leaves[l], leaves[l], g->n_ranks, s.runs);
                if (!sum_once(g, &s))
                    return;
            }
        }
    }
}

static void sums_even_and_absent_ranks(struct gpu_rank *g)
{
    static struct sum_case s;
    uint32_t n = g->n_ranks;

    if (!is_open(g))
        return;
    s.seed = 5;
    s.n_leaves = 16;
    s.n_floats = 2051;
    for (uint32_t r = 0; r < n; r++) /* as even as it gets: one all-gather on 1, 2 and 4 ranks */
        s.runs[r] = (struct td_leaf_run){16 * r / n, 16 * (r + 1) / n};
    if (!sum_once(g, &s))
        return;
    for (uint32_t r = 0; r < n; r++) /* the last one owns all */
        s.runs[r] = (struct td_leaf_run){0, r == n - 1 ? 16 : 0};
    if (!sum_once(g, &s))
        return;
    for (uint32_t r = 0; r < n; r++) /* the first one does */
        s.runs[r] = (struct td_leaf_run){r ? 16 : 0, 16};
    sum_once(g, &s);
}

/* 256 KB and more: with three ranks or more in two shots. */
static void sums_large_ones(struct gpu_rank *g)
{
    static const size_t floats[] = {65536, 65537, 262147, 4u << 20};
    static struct sum_case s;

    for (size_t f = 0; is_open(g) && f < sizeof floats / sizeof floats[0]; f++) {
        s.seed = 70 + f;
        s.n_leaves = 11;
        s.n_floats = floats[f];
        check_runs(s.seed, s.n_leaves, g->n_ranks, s.runs);
        if (!sum_once(g, &s))
            return;
    }
}

/* The kernel alone, on cuts over more ranks than there are here. */
static void joins_thousands_of_cuts_to_the_bits_of_tree_join(struct gpu_rank *g)
{
    enum { FLOATS = 517, CUTS = 40 };
    static struct sum_case s;
    void *handle = dlopen(NCCL_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    const struct td_ncclplug *plug = handle ? dlsym(handle, TD_NCCLPLUG_SYMBOL) : NULL;
    size_t bytes = (size_t)TD_TREE_MAX_LEAVES * (FLOATS + 3) * sizeof(float);
    char *parts = gpu_alloc(g, bytes, NULL);
    float *out = gpu_alloc(g, FLOATS * sizeof(float), NULL);

    if (!is_open(g) || !parts || !out || !plug) {
        gpu_fail(g, "no plug-in or no memory");
        return;
    }
    s.host = gpu_host((size_t)TD_TREE_MAX_LEAVES * FLOATS * sizeof(float));
    s.expected = gpu_host(FLOATS * sizeof(float));
    s.n_floats = FLOATS;
    for (uint32_t i = 0; !g->fail[0] && i < TD_TREE_MAX_LEAVES * CUTS; i++) {
        struct td_treestack join;
        struct td_err err;
        size_t stride = FLOATS + (i % 2 ? 3 : 0); /* by turns aligned to 16 bytes: 520 */

        s.seed = i;
        s.n_leaves = 1 + i % TD_TREE_MAX_LEAVES;
        check_runs(i, s.n_leaves, 1 + i / TD_TREE_MAX_LEAVES % 9, s.runs);
        list_parts(&s, 1 + i / TD_TREE_MAX_LEAVES % 9);
        fill_parts(&s);
        td_tree_program_make(s.n_leaves, s.n_parts, s.part_run, &join.program);
        for (uint32_t k = 0; k < s.n_parts; k++)
            join.part[k] = (const float *)parts + k * stride;
        if (gpu_cuda(g,
                     cudaMemcpy2D(parts, stride * sizeof(float), s.host, FLOATS * sizeof(float),
                                  FLOATS * sizeof(float), s.n_parts, cudaMemcpyHostToDevice),
                     "cudaMemcpy2D") &&
            gpu_cuda(g, cudaDeviceSynchronize(), "cudaDeviceSynchronize") &&
            gpu_ok(g, plug->join(&join, out, FLOATS, g->stream, &err), &err))
            gpu_same(g, "join", out, s.expected, FLOATS * sizeof(float));
    }
    free(s.host);
    free(s.expected);
    gpu_free(parts);
    gpu_free(out);
    dlclose(handle);
}

/* ---- graphs ---- */

/* Both kinds of message and the kernel, enqueued on a stream that may be captured. */
static bool enqueue_step(struct gpu_rank *g, struct sum_case *s, void *all)
{
    struct td_err err;

    return gpu_ok(g,
                  td_nccl_tree_sum(g->nccl, &s->sum, s->parts, s->n_floats, s->scratch, s->out,
                                   g->stream, &err),
                  &err) &&
           gpu_ok(g,
                  td_nccl_all_gather(g->nccl, s->out, each(s->n_floats * sizeof(float)), all,
                                     g->stream, &err),
                  &err);
}

static bool replay(struct gpu_rank *g, struct sum_case *s, void *all, cudaGraphExec_t exec)
{
    size_t own = (size_t)(s->sum.first[g->rank + 1] - s->sum.first[g->rank]);
    size_t bytes = s->n_floats * sizeof(float);

    for (uint64_t round = 0; round < 5; round++) {
        s->seed = 400 + round;
        fill_parts(s);
        if (!gpu_cuda(g,
                      cudaMemcpy(s->parts, s->host + s->sum.first[g->rank] * s->n_floats,
                                 own * bytes, cudaMemcpyHostToDevice),
                      "cudaMemcpy") ||
            !gpu_cuda(g, cudaDeviceSynchronize(), "cudaDeviceSynchronize") ||
            !gpu_cuda(g, cudaGraphLaunch(exec, g->stream), "cudaGraphLaunch") ||
            !gpu_same(g, "a replayed tree_sum", s->out, s->expected, bytes))
            return false;
        for (uint32_t r = 0; r < g->n_ranks; r++) {
            if (!gpu_same(g, "a replayed all_gather", (char *)all + r * bytes, s->expected, bytes))
                return false;
        }
    }
    return true;
}

static void captures_and_replays_a_graph(struct gpu_rank *g)
{
    static struct sum_case s;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    void *all = NULL;

    if (!is_open(g))
        return;
    s.seed = 9;
    s.n_leaves = 13;
    s.n_floats = 8192;
    check_runs(9, s.n_leaves, g->n_ranks, s.runs);
    if (sum_begin(g, &s))
        all = gpu_alloc(g, g->n_ranks * s.n_floats * sizeof(float), NULL);
    if (all && enqueue_step(g, &s, all) && /* once outside, which connects */
        gpu_same(g, "tree_sum", s.out, s.expected, s.n_floats * sizeof(float)) &&
        gpu_cuda(g, cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal),
                 "cudaStreamBeginCapture")) {
        bool ok = enqueue_step(g, &s, all);

        ok = gpu_cuda(g, cudaStreamEndCapture(g->stream, &graph), "cudaStreamEndCapture") && ok;
        if (ok && gpu_cuda(g, cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate"))
            replay(g, &s, all, exec);
    }
    if (exec)
        cudaGraphExecDestroy(exec);
    if (graph)
        cudaGraphDestroy(graph);
    sum_end(&s);
    gpu_free(all);
}

/* ---- sums between peers ---- */

/* Sums that go in slices, or are larger than the memory, go by NCCL among the others; one between peers leaves the scratch alone. */
static void sums_between_peers_to_the_same_bits(struct gpu_rank *g)
{
    static struct sum_case s;
    struct td_err err;
    size_t bytes;
    char *scratch;

    if (!is_open(g) || !gpu_ok(g, td_nccl_open_peers(g->nccl, &err), &err))
        return;
    td_nccl_set_peer_sums(g->nccl, SIZE_MAX);
    sums_any_layout_to_the_bits_of_tree_join(g);
    sums_even_and_absent_ranks(g);
    sums_large_ones(g);
    captures_and_replays_a_graph(g);
    td_nccl_set_peer_sums(g->nccl, 4099);
    s.seed = 3;
    s.n_leaves = 8;
    s.n_floats = 4099;
    check_runs(3, s.n_leaves, g->n_ranks, s.runs);
    if (!g->fail[0] && sum_begin(g, &s)) {
        if (td_nccl_peer_limit(g->nccl, &s.sum) < s.n_floats)
            gpu_fail(g, "peers take %zu floats", td_nccl_peer_limit(g->nccl, &s.sum));
        bytes = s.n_parts * s.n_floats * sizeof(float);
        scratch = gpu_host(bytes);
        memset(scratch, 0x3c, bytes);
        gpu_cuda(g, cudaMemset(s.scratch, 0x3c, bytes), "cudaMemset");
        gpu_cuda(g, cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        if (gpu_ok(g,
                   td_nccl_tree_sum(g->nccl, &s.sum, s.parts, s.n_floats, s.scratch, s.out,
                                    g->stream, &err),
                   &err) &&
            gpu_same(g, "tree_sum", s.out, s.expected, s.n_floats * sizeof(float)))
            gpu_same(g, "the scratch", s.scratch, scratch, bytes);
        free(scratch);
        sum_end(&s);
    }
    td_nccl_set_peer_sums(g->nccl, 0);
}

static struct td_nccl *open_connected(struct gpu_rank *g, uint64_t op_limit_ns, char *data);

/* A rank that is alone in such a sum spins on its device until its end is aborted. */
static void a_wait_for_a_peer_ends(struct gpu_rank *g)
{
    static struct sum_case s;
    char *data = gpu_alloc(g, 64, NULL);
    struct td_nccl *nccl = data ? open_connected(g, 2 * SECOND, data) : NULL;
    struct td_err err;
    enum td_status status;

    s.seed = 4;
    s.n_leaves = 8;
    s.n_floats = 1000;
    check_runs(4, s.n_leaves, g->n_ranks, s.runs);
    if (!nccl || !gpu_ok(g, td_nccl_open_peers(nccl, &err), &err) || !sum_begin(g, &s))
        return;
    td_nccl_set_peer_sums(nccl, SIZE_MAX);
    if (g->rank != g->n_ranks - 1) {
        status =
            td_nccl_tree_sum(nccl, &s.sum, s.parts, s.n_floats, s.scratch, s.out, g->stream, &err);
        if (status == TD_OK)
            status = td_nccl_wait(nccl, g->stream, 0, &err);
        gpu_is(g, status, TD_PEER_TIMED_OUT, &err);
        td_nccl_abort(nccl);
        gpu_cuda(g, cudaStreamSynchronize(g->stream), "the stream after the abort");
    }
    gpu_ok(g, td_comm_barrier(g->comm, &err), &err);
    if (g->rank == g->n_ranks - 1)
        td_nccl_abort(nccl); /* the others have left; a close would wait for them */
    td_nccl_close(nccl);
    sum_end(&s);
    gpu_free(data);
}

static void refuses_a_capture_that_may_deadlock(struct gpu_rank *g)
{
    struct td_nccl_config config = config_of(g);
    struct td_nccl *nccl;
    struct td_nccl_lib *lib;
    struct td_err err;
    cudaGraph_t graph = NULL;
    char *data = gpu_alloc(g, 64, NULL);
    int version;

    config.captures_across_hosts = false;
    nccl = open_end(g, &config);
    if (!nccl || !data || !gpu_ok(g, td_nccl_load(NCCL_PLUGIN, NULL, &lib, &err), &err))
        return;
    version = td_nccl_version(lib);
    td_nccl_unload(lib);
    if (td_nccl_captures(nccl) != (g->n_ranks == 1 || version >= 23007))
        gpu_fail(g, "NCCL %d on %u hosts: captures is %d", version, g->n_ranks,
                 td_nccl_captures(nccl));
    if (!td_nccl_captures(nccl) &&
        gpu_cuda(g, cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal),
                 "cudaStreamBeginCapture")) {
        gpu_is(g, td_nccl_bcast(nccl, 0, data, 64, g->stream, &err), TD_UNSUPPORTED, &err);
        gpu_cuda(g, cudaStreamEndCapture(g->stream, &graph), "cudaStreamEndCapture");
        if (graph)
            cudaGraphDestroy(graph);
        /* and goes on without a capture */
        gpu_ok(g, td_nccl_bcast(nccl, 0, data, 64, g->stream, &err), &err);
        gpu_ok(g, td_nccl_wait(nccl, g->stream, 0, &err), &err);
    }
    td_nccl_close(nccl);
    gpu_free(data);
}

/* ---- what is refused ---- */

static void refuses_wrong_arguments_and_stays_usable(struct gpu_rank *g)
{
    const struct td_leaf_run runs[1] = {{0, 4}};
    struct td_ncclsum other;
    struct td_err err;
    char *data = gpu_alloc(g, 64, NULL);
    float *f = (float *)(void *)data;
    struct td_nccl *n = g->nccl;
    cudaStream_t s = g->stream;

    if (!is_open(g) || !data)
        return;
    td_ncclsum_make(&(struct td_tree_layout){4, runs}, 1, 0, &other, NULL);
    other.n_ranks = g->n_ranks + 1;
    gpu_is(g, td_nccl_send(n, g->rank, data, 4, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_recv(n, g->n_ranks, data, 4, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_bcast(n, g->n_ranks, data, 4, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_bcast(n, 0, NULL, 4, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_all_gather(n, data, each(4), NULL, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_gather(n, g->n_ranks, data, each(4), data, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_gather(n, g->rank, data, each(4), NULL, s, &err), TD_INVALID, &err);
    if (g->n_ranks > 1)
        gpu_is(g, td_nccl_all_gather(n, data, each(SIZE_MAX), data, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_all_reduce_inexact(n, data, data, 32, TD_Q8_0, s, &err), TD_INVALID, &err);
    gpu_is(g, td_nccl_tree_sum(n, &other, f, 4, f, f, s, &err), TD_INVALID, &err);
    gpu_ok(g, td_nccl_all_gather(n, NULL, each(0), NULL, s, &err), &err); /* no bytes is legal */
    gpu_ok(g, td_nccl_gather(n, 0, NULL, each(0), NULL, s, &err), &err);
    gpu_ok(g, td_nccl_bcast(n, 0, data, 64, s, &err), &err);
    gpu_ok(g, td_nccl_wait(n, s, 0, &err), &err);
    gpu_ok(g, td_nccl_poll(n, &err), &err);
    gpu_free(data);
}

/* ---- what goes wrong ---- */

/* An end of its own, with one operation done, so that what follows finds everything connected. */
static struct td_nccl *open_connected(struct gpu_rank *g, uint64_t op_limit_ns, char *data)
{
    struct td_nccl_config config = config_of(g);
    struct td_nccl *nccl;
    struct td_err err;

    config.op_limit_ns = op_limit_ns;
    nccl = open_end(g, &config);
    if (nccl && gpu_ok(g, td_nccl_bcast(nccl, 0, data, 64, g->stream, &err), &err))
        gpu_ok(g, td_nccl_wait(nccl, g->stream, 20 * SECOND, &err), &err);
    return nccl;
}

static void times_out_on_a_rank_that_does_not_come(struct gpu_rank *g)
{
    char *data = gpu_alloc(g, 64, NULL);
    struct td_nccl *nccl = data ? open_connected(g, 2 * SECOND, data) : NULL;
    struct td_err err;
    enum td_status status;

    if (!nccl)
        return;
    if (g->rank != g->n_ranks - 1) {
        status = td_nccl_all_reduce_inexact(nccl, data, data, 16, TD_F32, g->stream, &err);
        if (status == TD_OK)
            status = td_nccl_wait(nccl, g->stream, 0, &err);
        gpu_is(g, status, TD_PEER_TIMED_OUT, &err);
        gpu_is(g, td_nccl_bcast(nccl, 0, data, 64, g->stream, &err), TD_PEER_TIMED_OUT, &err);
        td_nccl_abort(nccl);
        gpu_is(g, td_nccl_bcast(nccl, 0, data, 64, g->stream, &err), TD_PEER_LOST, &err);
        gpu_is(g, td_nccl_poll(nccl, &err), TD_PEER_LOST, &err);
        gpu_cuda(g, cudaStreamSynchronize(g->stream), "the stream after the abort");
    }
    gpu_ok(g, td_comm_barrier(g->comm, &err), &err);
    if (g->rank == g->n_ranks - 1)
        td_nccl_abort(nccl); /* the others have left; a close would wait for them */
    td_nccl_close(nccl);
    gpu_free(data);
}

static void *abort_soon(void *nccl)
{
    nanosleep(&(struct timespec){.tv_nsec = 300 * 1000 * 1000}, NULL);
    td_nccl_abort(nccl);
    td_nccl_abort(nccl); /* the first one counts */
    return NULL;
}

static void an_abort_from_another_thread_ends_a_wait(struct gpu_rank *g)
{
    char *data = gpu_alloc(g, 64, NULL);
    struct td_nccl *nccl = data ? open_connected(g, 60 * SECOND, data) : NULL;
    struct td_err err;
    pthread_t thread;
    enum td_status status;

    if (!nccl)
        return;
    if (g->rank != g->n_ranks - 1) {
        if (pthread_create(&thread, NULL, abort_soon, nccl) != 0) {
            gpu_fail(g, "no thread");
            return;
        }
        status = td_nccl_all_reduce_inexact(nccl, data, data, 16, TD_F32, g->stream, &err);
        if (status == TD_OK)
            status = td_nccl_wait(nccl, g->stream, 0, &err);
        gpu_is(g, status, TD_PEER_LOST, &err);
        pthread_join(thread, NULL);
        gpu_is(g, td_nccl_wait(nccl, g->stream, 0, &err), TD_PEER_LOST, &err);
        gpu_cuda(g, cudaStreamSynchronize(g->stream), "the stream after the abort");
    }
    gpu_ok(g, td_comm_barrier(g->comm, &err), &err);
    if (g->rank == g->n_ranks - 1)
        td_nccl_abort(nccl);
    td_nccl_close(nccl);
    gpu_free(data);
}

/* The group that the end was opened beside. */
static void *abort_group_soon(void *comm)
{
    nanosleep(&(struct timespec){.tv_nsec = 300 * 1000 * 1000}, NULL);
    td_comm_abort(comm);
    return NULL;
}

/* Mode "group-abort". */
static void an_abort_of_the_group_ends_a_wait(struct gpu_rank *g)
{
    char *data = gpu_alloc(g, 64, NULL);
    struct td_nccl *nccl = data ? open_connected(g, 60 * SECOND, data) : NULL;
    struct td_err err;
    pthread_t thread;
    enum td_status status;

    if (!nccl)
        return;
    if (g->rank != g->n_ranks - 1) {
        if (pthread_create(&thread, NULL, abort_group_soon, g->comm) != 0) {
            gpu_fail(g, "no thread");
            return;
        }
        status = td_nccl_all_reduce_inexact(nccl, data, data, 16, TD_F32, g->stream, &err);
        if (status == TD_OK)
            status = td_nccl_wait(nccl, g->stream, 0, &err);
        gpu_is(g, status, TD_PEER_LOST, &err);
        pthread_join(thread, NULL);
        gpu_cuda(g, cudaStreamSynchronize(g->stream), "the stream after the abort");
    } else {
        nanosleep(&(struct timespec){.tv_sec = 2}, NULL);
        td_nccl_abort(nccl); /* the others have left; a close would wait for them */
    }
    td_nccl_close(nccl);
    printf("%s: %u ranks: an abort of the group ends a wait (rank %u): %s\n",
           g->fail[0] ? "FAILED" : "ok", g->n_ranks, g->rank, g->fail);
    fflush(stdout);
    _Exit(g->fail[0] ? 1 : 0);
}

static void opens_again_after_an_abort(struct gpu_rank *g)
{
    char *data = gpu_alloc(g, 64, NULL);
    struct td_nccl *nccl = data ? open_connected(g, 30 * SECOND, data) : NULL;

    td_nccl_close(nccl);
    gpu_free(data);
}

/* Mode "same-host": no NCCL_HOSTID, and all ranks on one GPU. */
static void refuses_two_ranks_on_one_gpu_of_one_host(struct gpu_rank *g)
{
    struct td_nccl_config config = config_of(g);
    struct td_nccl *nccl = NULL;
    struct td_err err;
    enum td_status status;

    config.device = 0;
    status = td_nccl_open(g->comm, &config, &nccl, &err);
    if (status == TD_OK || !strstr(err.cause, "NCCL error"))
        gpu_fail(g, "status '%s' (%s), expected an error of NCCL", td_status_name(status),
                 status == TD_OK ? "" : err.cause);
    td_nccl_close(nccl);
}

/* Mode "death": the last rank is killed while the others wait for it. */
static void a_rank_that_dies_ends_the_others_waits(struct gpu_rank *g)
{
    char *data = gpu_alloc(g, 64, NULL);
    struct td_nccl *nccl = data ? open_connected(g, 20 * SECOND, data) : NULL;
    struct td_err err = {.status = TD_OK};
    enum td_status status;
    char text[400];

    if (!nccl)
        return;
    if (g->rank == g->n_ranks - 1)
        raise(SIGKILL);
    status = td_nccl_all_reduce_inexact(nccl, data, data, 16, TD_F32, g->stream, &err);
    if (status == TD_OK)
        status = td_nccl_wait(nccl, g->stream, 0, &err);
    printf("rank %u after the death: %s\n", g->rank, td_err_format(&err, text, sizeof text));
    if (status != TD_PEER_LOST && status != TD_PEER_TIMED_OUT && status != TD_IO)
        gpu_fail(g, "status '%s', expected a lost peer or a time-out", td_status_name(status));
    td_nccl_close(nccl);
    /* The group of ranks has lost one as well: nobody is left to report to. */
    printf("%s: %u ranks: a rank that dies ends the others' waits (rank %u): %s\n",
           g->fail[0] ? "FAILED" : "ok", g->n_ranks, g->rank, g->fail);
    fflush(stdout);
    _Exit(g->fail[0] ? 1 : 0);
}

int main(int argc, char **argv)
{
    enum { ALL = 255 };
    const struct gpu_case cases[] = {
        {"opens and tells its version", opens_and_tells_its_version, 1, ALL, NULL},
        {"all-gathers every size", all_gathers_every_size, 1, ALL, NULL},
        {"gathers as many as each has", gathers_as_many_as_each_has, 2, ALL, NULL},
        {"passes messages around a ring", passes_messages_around_a_ring, 2, ALL, NULL},
        {"broadcasts from every root", broadcasts_from_every_root, 1, ALL, NULL},
        {"reduces whole numbers of every type", reduces_whole_numbers_of_every_type, 1, ALL, NULL},
        {"joins thousands of cuts to the bits of td_tree_join",
         joins_thousands_of_cuts_to_the_bits_of_tree_join, 1, 1, NULL},
        {"sums any layout to the bits of td_tree_join", sums_any_layout_to_the_bits_of_tree_join, 1,
         ALL, NULL},
        {"sums with even and with absent ranks", sums_even_and_absent_ranks, 1, ALL, NULL},
        {"sums large ones", sums_large_ones, 1, ALL, NULL},
        {"refuses wrong arguments and stays usable", refuses_wrong_arguments_and_stays_usable, 1,
         ALL, NULL},
        {"captures and replays a graph", captures_and_replays_a_graph, 1, ALL, NULL},
        {"sums between peers to the same bits", sums_between_peers_to_the_same_bits, 1, ALL, NULL},
        {"a wait for a peer ends", a_wait_for_a_peer_ends, 2, ALL, NULL},
        {"refuses a capture that may deadlock", refuses_a_capture_that_may_deadlock, 1, ALL, NULL},
        {"times out on a rank that does not come", times_out_on_a_rank_that_does_not_come, 2, ALL,
         NULL},
        {"an abort from another thread ends a wait", an_abort_from_another_thread_ends_a_wait, 2,
         ALL, NULL},
        {"opens again after an abort", opens_again_after_an_abort, 1, ALL, NULL},
        {"refuses two ranks on one GPU of one host", refuses_two_ranks_on_one_gpu_of_one_host, 2,
         ALL, "same-host"},
        {"a rank that dies ends the others' waits", a_rank_that_dies_ends_the_others_waits, 2, ALL,
         "death"},
        {"an abort of the group ends a wait", an_abort_of_the_group_ends_a_wait, 2, ALL,
         "group-abort"},
    };

    return gpu_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
