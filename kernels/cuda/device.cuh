/* What the plug-in's files share: one device with its stream, a matrix on it, and how a kernel is begun. */
#ifndef TD_KERNELS_CUDA_DEVICE_CUH
#define TD_KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/clib.h"
#include "kernels/cuda/matrix.cuh"

#include <cuda_runtime.h>

/* Memory that grows with what is asked of it, and keeps nothing between operations. */
struct td_cuda_buffer {
    uint8_t *data;
    size_t bytes;
};

/* Rows of a file on their way to the device: in memory that it reads by itself, then its own. */
struct td_cuda_bay {
    uint8_t *host;
    size_t host_bytes;
    struct td_cuda_buffer rows;
    cudaEvent_t packed; /* when nobody reads them any more; NULL: the bay is not open */
};

enum { TD_CUDA_GRAPHS = 64, TD_CUDA_BAYS = 2, TD_CUDA_OUTGROWN = 8 };

/* Operations under one key; `exec` is NULL until they come a second time. */
struct td_cuda_graph {
    uint64_t key;
    cudaGraphExec_t exec;
    uint64_t used; /* when, counted in uses; 0: never */
};

struct td_cuda_lib; /* NVIDIA's products (libproducts.cu) */

struct td_cuda {
    struct td_kern head;
    struct td_kern_cuda_params p;
    cudaStream_t stream;
    cudaError_t failed;    /* the first failure since td_kern_sync told one */
    const char *failed_in; /* "cuBLASLt: ", where it was; NULL: a call of ours */
    uint32_t n_sms;
    char numerics[32];
    size_t most_shared; /* bytes a block may have */
    size_t sm_shared,
        block_shared; /* bytes of a multiprocessor, and that it takes for itself with every block */
    bool overlaps;    /* a kernel begins while the one before it ends (td_num_await_earlier) */
    uint32_t ahead;   /* bytes of weights that a warp asks for meanwhile */
    struct td_cuda_buffer scratch, gates, partials;
    void *outgrown
        [TD_CUDA_OUTGROWN]; /* what buffers were before they grew: given back when nothing reads it */
    struct td_cuda_bay bay
        [TD_CUDA_BAYS]; /* by turns, so that the host fills one while the device empties the other */
    uint32_t n_packed;
    uint8_t *
        posted; /* the host's memory that the device reads: what it was given to copy since the last td_kern_sync */
    size_t posted_bytes;
    struct td_cuda_buffer unpacked; /* rows of a matrix in 16 bits, and what the library works in */
    struct td_cuda_lib *lib;        /* NULL: everything is exact */
    struct td_cuda_graph graph[TD_CUDA_GRAPHS];
    struct td_cuda_graph *recording; /* NULL: what is enqueued is begun at once */
    uint64_t n_graph_uses;
};

struct td_cuda_matrix {
    struct td_matrix head;
    struct td_cuda_weights view;
    struct td_cuda_tile *tile;              /* [view.n_tiles] the host's copy */
    uint32_t leaf_tile[TD_KERN_MAX_LEAVES]; /* the host's copy of view.leaf_end */
    uint32_t part_tile[TD_KERN_MAX_PARTS +
                       1]; /* part p has tiles part_tile[p] .. part_tile[p + 1] - 1 */
    void *memory;          /* of the device: everything */
    /* F8_E4M3: whether the rows so far have one scale each, or share one in every block of 128 x 128; those of the last row. */
    bool has_row_scales, has_block_scales;
    float *last_scales; /* [runs of 128 columns] */
};

static inline struct td_cuda *td_cuda_of(struct td_kern *kern)
{
    return (struct td_cuda *)kern;
}

static inline size_t td_cuda_align(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

/* Keeps the first failure for td_kern_sync. */
static inline void td_cuda_note(struct td_cuda *cuda, cudaError_t e)
{
    if (e != cudaSuccess && cuda->failed == cudaSuccess)
        cuda->failed = e;
}

/* At least `bytes`; its contents are lost when it grows. TD_NO_MEMORY. */
enum td_status td_cuda_reserve(struct td_cuda *cuda, struct td_cuda_buffer *buffer, size_t bytes,
                               struct td_err *err);

/* Bytes that each of n blocks may have to be on one multiprocessor together. */
static inline size_t td_cuda_shared_of(const struct td_cuda *cuda, uint32_t n)
{
    return cuda->sm_shared / n - cuda->block_shared;
}

/* Whether the columns of both are cut into the same leaves, so that they read the same activations. */
bool td_cuda_same_cut(const struct td_cuda_matrix *a, const struct td_cuda_matrix *b);

/* Enqueues a kernel whose parameters are `args`, in their order and of their types; it calls td_num_await_earlier. */
template <class... P, class... A>
static void td_cuda_launch(struct td_cuda *cuda, void (*kernel)(P...), dim3 grid, dim3 block,
                           size_t shared, A... args)
{
#ifdef TD_GPUSIM
    td_cuda_note(cuda, gpusim_launch(cuda->stream, kernel, grid, block, shared, true, args...));
#else
    void *at[] = {(void *)&args...};
    cudaLaunchAttribute early = {};
    cudaLaunchConfig_t launch = {grid, block, shared, cuda->stream, &early, cuda->overlaps};

    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    if (shared >
        48 * 1024) /* all there is: less would be too little for a recorded launch with more */
        td_cuda_note(cuda, cudaFuncSetAttribute((const void *)kernel,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)cuda->most_shared));
    td_cuda_note(cuda, cudaLaunchKernelExC(&launch, (const void *)kernel, at));
#endif
}

/* Gives the bays back, until the next matrix is packed. */
void td_cuda_bays_close(struct td_cuda *cuda);

/* No graph names memory that is about to go. */
void td_cuda_graphs_drop(struct td_cuda *cuda);

/* The operations of the table. */
bool td_cuda_replay(struct td_kern *kern, uint64_t key);
void td_cuda_record(struct td_kern *kern, uint64_t key);
void td_cuda_record_end(struct td_kern *kern, bool keep);
enum td_status td_cuda_matrix_open(struct td_kern *kern, const struct td_matrix_shape *shape,
                                   struct td_matrix **m, struct td_err *err);
void td_cuda_matrix_close(struct td_kern *kern, struct td_matrix *m);
void td_cuda_matrix_pack(struct td_kern *kern, struct td_matrix *m, uint32_t row0, uint32_t n_rows,
                         const void *src, size_t stride_bytes, const float *scales);
enum td_status td_cuda_linear(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                              const struct td_kern_output *outs, uint32_t n_outs,
                              struct td_err *err);
void td_cuda_rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids, uint32_t n,
                  float *out);
void td_cuda_gather(struct td_kern *kern, const float *x, const uint32_t *rows, uint32_t n,
                    uint32_t dim, float *out);
void td_cuda_rmsnorm(struct td_kern *kern, const float *x, const float *weight, uint32_t n,
                     uint32_t dim, float eps, float *out);
void td_cuda_silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n,
                      float *out);
/* The same of BF16, n (even) in pairs; `out` aligned to 8 bytes. */
void td_cuda_silu_mul_bf16(struct td_cuda *cuda, const uint32_t *gate, const uint32_t *up, size_t n,
                           float *out);
void td_cuda_add(struct td_kern *kern, float *x, const float *y, size_t n);
void td_cuda_top(struct td_kern *kern, const float *x, uint32_t n, uint32_t width, uint32_t n_top,
                 struct td_top *out);
void td_cuda_draw(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                  const struct td_draw *draws, uint32_t *ids);
void td_cuda_measure(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                     const uint32_t *ids, struct td_measure *out);
void td_cuda_rope_angles(struct td_kern *kern, const double *freq, uint32_t dim, double scale,
                         bool interleaved, const uint32_t *positions, uint32_t n, float *angles);
void td_cuda_rope_kv(struct td_kern *kern, const struct td_kv_view *kv,
                     const struct td_kv_rows *rows, uint32_t n, const struct td_rope_kv *in);
enum td_status td_cuda_attention(struct td_kern *kern, const struct td_kv_view *kv,
                                 const struct td_kv_rows *rows, uint32_t n,
                                 const struct td_attention *how, struct td_err *err);
void td_cuda_kv_save(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                     void *bytes);
void td_cuda_kv_restore(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                        const void *bytes);

#endif
