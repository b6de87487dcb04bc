#include "tests/gpu/gpu_rank.h"

#include "comm/comm.h"
#ifdef TD_HAS_MPI
#include "comm/comm_mpi.h"
#endif

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull

enum { MAX_FORKED = 8 };

bool gpu_fail(struct gpu_rank *g, const char *fmt, ...)
{
    va_list ap;

    if (!g->fail[0]) {
        va_start(ap, fmt);
        vsnprintf(g->fail, sizeof g->fail, fmt, ap);
        va_end(ap);
    }
    return false;
}

bool gpu_ok(struct gpu_rank *g, enum td_status status, const struct td_err *err)
{
    return gpu_is(g, status, TD_OK, err);
}

bool gpu_is(struct gpu_rank *g, enum td_status status, enum td_status expected,
            const struct td_err *err)
{
    char text[400];

    if (status == expected)
        return true;
    return gpu_fail(g, "status '%s' (%s), expected '%s'", td_status_name(status),
                    status == TD_OK ? "" : td_err_format(err, text, sizeof text),
                    td_status_name(expected));
}

bool gpu_cuda(struct gpu_rank *g, cudaError_t code, const char *what)
{
    return code == cudaSuccess ? true : gpu_fail(g, "%s: %s", what, cudaGetErrorString(code));
}

void *gpu_host(size_t bytes)
{
    void *data = malloc(bytes ? bytes : 1);

    if (!data) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(3);
    }
    return data;
}

void *gpu_alloc(struct gpu_rank *g, size_t bytes, const void *from)
{
    void *data = NULL;

    if (!gpu_cuda(g, cudaMalloc(&data, bytes ? bytes : 1), "cudaMalloc"))
        return NULL;
    if (gpu_cuda(g,
                 from ? cudaMemcpy(data, from, bytes, cudaMemcpyHostToDevice)
                      : cudaMemset(data, 0xee, bytes ? bytes : 1),
                 "filling device memory") &&
        gpu_cuda(g, cudaDeviceSynchronize(), "cudaDeviceSynchronize"))
        return data;
    cudaFree(data);
    return NULL;
}

void gpu_free(void *data)
{
    cudaFree(data);
}

bool gpu_same(struct gpu_rank *g, const char *what, const void *device, const void *expected,
              size_t bytes)
{
    unsigned char *got = gpu_host(bytes);
    struct td_err err;
    bool ok = gpu_ok(g, td_nccl_wait(g->nccl, g->stream, 20 * SECOND, &err), &err) &&
              gpu_cuda(g, cudaMemcpy(got, device, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");

    for (size_t i = 0; ok && i < bytes; i++) {
        if (got[i] != ((const unsigned char *)expected)[i])
            ok = gpu_fail(g, "%s: byte %zu of %zu is %02x, expected %02x", what, i, bytes, got[i],
                          ((const unsigned char *)expected)[i]);
    }
    free(got);
    return ok;
}

/* ---- the ranks ---- */

static void find_gpu(struct gpu_rank *g)
{
    int n = 0;
    cudaError_t code = cudaGetDeviceCount(&n);

    if (code != cudaSuccess || n < 1) {
        snprintf(g->no_gpu, sizeof g->no_gpu, "gpu: no CUDA device (%s)",
                 code == cudaSuccess ? "there are 0" : cudaGetErrorString(code));
        return;
    }
    g->device = (int)g->rank % n;
    code = cudaSetDevice(g->device);
    if (code == cudaSuccess)
        code = cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking);
    if (code != cudaSuccess) {
        fprintf(stderr, "rank %u: device %d: %s\n", g->rank, g->device, cudaGetErrorString(code));
        exit(3);
    }
}

static void say_machine(const struct gpu_rank *g)
{
    struct cudaDeviceProp prop;
    int driver = 0, runtime = 0;

    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (cudaGetDeviceProperties(&prop, g->device) == cudaSuccess)
        printf(
            "device: %s, sm_%d%d, %.1f GiB; the driver knows CUDA %d.%d, built with CUDA %d.%d\n",
            prop.name, prop.major, prop.minor, (double)prop.totalGlobalMem / (1 << 30),
            driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
}

/* Everybody tells rank 0 how the case went. Returns whether it failed anywhere; the answer is rank 0's. */
static bool report(struct gpu_rank *g, const struct gpu_case *c, double took_s)
{
    size_t bytes[TD_TREE_MAX_RANKS];
    char *all = gpu_host(g->n_ranks * sizeof g->fail);
    struct td_err err;
    bool failed = false;

    for (uint32_t r = 0; r < g->n_ranks; r++)
        bytes[r] = sizeof g->fail;
    if (td_comm_all_gather(g->comm, g->fail, bytes, all, &err) != TD_OK) {
        printf("FAILED: %u ranks: %s: the ranks lost each other: %s\n", g->n_ranks, c->name,
               err.cause);
        exit(3);
    }
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        const char *fail = all + r * sizeof g->fail;

        failed = failed || *fail;
        if (*fail && g->rank == 0)
            printf("FAILED: %u ranks: %s: rank %u: %s\n", g->n_ranks, c->name, r, fail);
    }
    if (!failed && g->rank == 0)
        printf("ok: %u ranks: %s (%.1f s)\n", g->n_ranks, c->name, took_s);
    fflush(stdout);
    free(all);
    return failed;
}

static double now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int run_cases(struct gpu_rank *g, const struct gpu_case *cases, size_t n, const char *mode)
{
    bool failed = false;

    td_comm_set_deadline(g->comm, 180 * SECOND);
    find_gpu(g);
    if (g->rank == 0 && !g->no_gpu[0])
        say_machine(g);
    for (size_t i = 0; i < n; i++) {
        const struct gpu_case *c = &cases[i];
        double began_s = now_s();

        if (g->n_ranks < c->least_ranks || g->n_ranks > c->most_ranks ||
            (mode ? !c->mode || strcmp(mode, c->mode) != 0 : c->mode != NULL))
            continue;
        if (g->no_gpu[0]) {
            failed = failed || getenv("TD_NEED_GPU");
            if (g->rank == 0)
                printf("%s: %u ranks: %s: %s\n", getenv("TD_NEED_GPU") ? "FAILED" : "skipped",
                       g->n_ranks, c->name, g->no_gpu);
            continue;
        }
        g->fail[0] = '\0';
        c->fn(g);
        failed = report(g, c, now_s() - began_s) || failed;
    }
    td_nccl_close(g->nccl);
    fflush(stdout);
    return failed ? 1 : 0;
}

/* Two ranks on one GPU are refused unless NCCL takes them for two hosts. */
static void name_host(uint32_t rank, const char *mode)
{
    char name[32];

    snprintf(name, sizeof name, "tensord-rank-%u", rank);
    if (mode && strcmp(mode, "same-host") == 0)
        unsetenv("NCCL_HOSTID");
    else
        setenv("NCCL_HOSTID", name, 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
}

static int fork_ranks(uint32_t n, const char *mode, const struct gpu_case *cases, size_t n_cases)
{
    struct td_comm *comms[MAX_FORKED];
    pid_t pids[MAX_FORKED];
    struct td_err err;
    int worst = 0;

    /* Shared memory that the children inherit; CUDA is first touched in them. */
    if (td_comm_shm_open(n, NULL, comms, &err) != TD_OK) {
        fprintf(stderr, "%s\n", err.cause);
        return 3;
    }
    for (uint32_t r = 0; r < n; r++) {
        fflush(stdout);
        pids[r] = fork();
        if (pids[r] == 0) {
            struct gpu_rank g = {.comm = comms[r], .rank = r, .n_ranks = n, .is_forked = true};

            name_host(r, mode);
            _exit(run_cases(&g, cases, n_cases, mode));
        }
        if (pids[r] < 0) {
            perror("fork");
            return 3;
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        int status = 0;

        /* In the mode "death" the last rank kills itself. */
        if (waitpid(pids[r], &status, 0) == pids[r] && WIFSIGNALED(status) &&
            !(mode && strcmp(mode, "death") == 0 && r == n - 1)) {
            printf("FAILED: %u ranks: rank %u was ended by signal %d\n", n, r, WTERMSIG(status));
            worst = 1;
        } else if (WIFEXITED(status) && WEXITSTATUS(status) > worst) {
            worst = WEXITSTATUS(status);
        }
    }
    return worst;
}

int gpu_main(int argc, char **argv, const struct gpu_case *cases, size_t n_cases)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1) {
        int n = atoi(argv[1]);

        if (n >= 1 && n <= MAX_FORKED)
            return fork_ranks((uint32_t)n, argc > 2 ? argv[2] : NULL, cases, n_cases);
    }
#ifdef TD_HAS_MPI
    if (argc == 1 && td_comm_mpi_launched()) {
        struct gpu_rank g = {.rank = 0};
        struct td_err err;
        int status;

        if (td_comm_mpi_open(&g.comm, &err) != TD_OK) {
            fprintf(stderr, "%s\n", err.cause);
            return 3;
        }
        g.rank = td_comm_rank(g.comm);
        g.n_ranks = td_comm_size(g.comm);
        name_host(g.rank, NULL);
        status = run_cases(&g, cases, n_cases, NULL);
        td_comm_close(g.comm);
        return status;
    }
#endif
    fprintf(stderr,
            "usage: %s N [MODE]   forks N ranks (1 to %d)\n"
            "       mpirun -n N %s%s\n",
            argv[0], MAX_FORKED, argv[0],
#ifdef TD_HAS_MPI
            ""
#else
            "   (not in this build: there was no MPI)"
#endif
    );
    return 2;
}
