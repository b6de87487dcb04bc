/* A rank of a test on GPUs: started by mpirun, or one of N processes that the test forks itself where there is no MPI. All
 * ranks share the first GPU unless there are more; NCCL then wants an NCCL_HOSTID each. A case says what failed instead of
 * asserting: it runs in several processes, and rank 0 tells what each of them found. */
#ifndef TD_TESTS_GPU_GPU_RANK_H
#define TD_TESTS_GPU_GPU_RANK_H

#include "comm/nccl.h"

#include <cuda_runtime_api.h>

struct gpu_rank {
    struct td_comm *comm;
    uint32_t rank;
    uint32_t n_ranks;
    int device;
    cudaStream_t stream; /* waits for no other stream */
    struct td_nccl
        *nccl; /* one end for all cases that leave it whole; NULL before the first one opens it */
    bool is_forked;
    char no_gpu[200]; /* why there is no device; empty: there is one */
    char fail[500];   /* of the case under way; empty: all well */
};

/* Returns an empty string in g->fail when well. */
typedef void (*gpu_case_fn)(struct gpu_rank *g);

struct gpu_case {
    const char *name; /* a sentence */
    gpu_case_fn fn;
    uint32_t least_ranks, most_ranks;
    const char *mode; /* runs only as `PROGRAM N mode`; NULL: without one */
};

/* Runs the cases and prints a line for each: "ok", "FAILED" or "skipped". `PROGRAM N [mode]` forks N ranks, PROGRAM alone
 * is a rank of mpirun. Returns main's status. */
int gpu_main(int argc, char **argv, const struct gpu_case *cases, size_t n_cases);

/* Each is false, and says so in g->fail, when it is not so. */
bool gpu_ok(struct gpu_rank *g, enum td_status status, const struct td_err *err);
bool gpu_is(struct gpu_rank *g, enum td_status status, enum td_status expected,
            const struct td_err *err);
bool gpu_cuda(struct gpu_rank *g, cudaError_t code, const char *what);
bool gpu_fail(struct gpu_rank *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Device memory [bytes], with the bytes of `from` where that is not NULL; NULL, and g->fail, when there is none. */
void *gpu_alloc(struct gpu_rank *g, size_t bytes, const void *from);
void gpu_free(void *data);
/* Host memory or the end of the program. */
void *gpu_host(size_t bytes);
/* Waits for the stream (20 s at most), then compares [bytes] of the device with `expected`. */
bool gpu_same(struct gpu_rank *g, const char *what, const void *device, const void *expected,
              size_t bytes);

#endif
