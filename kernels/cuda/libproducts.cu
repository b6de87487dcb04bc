/* cuBLASLt, opened at run time, so that a machine without it needs none. It knows no types of ours: rows of a matrix are unpacked to 16 bits
 * first, as many at a time as there is room for, in the columns' order of the tiles, which is the activations' too. */
#include "kernels/cuda/libproducts.cuh"

#if __has_include(<cublasLt.h>)

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    N_ALGOS = 64,
    WORKSPACE_BYTES = 16 << 20,
    MOST_ALIGNED = 256,
    ONE = 0, /* in lib->numbers */
    ZERO = 1,
    SCALES = 2
};

#define FUNCTIONS(X)                                                                               \
    X(cublasLtCreate)                                                                              \
    X(cublasLtDestroy)                                                                             \
    X(cublasLtMatmulDescCreate)                                                                    \
    X(cublasLtMatmulDescDestroy)                                                                   \
    X(cublasLtMatmulDescSetAttribute)                                                              \
    X(cublasLtMatrixLayoutCreate)                                                                  \
    X(cublasLtMatrixLayoutDestroy)                                                                 \
    X(cublasLtMatmulPreferenceCreate)                                                              \
    X(cublasLtMatmulPreferenceDestroy)                                                             \
    X(cublasLtMatmulPreferenceSetAttribute)                                                        \
    X(cublasLtMatmulAlgoGetHeuristic)                                                              \
    X(cublasLtMatmul)

/* out [n x n_rows] = x [n x k] * w [rows x k]^T; the library counts columns first. */
struct shape {
    cudaDataType_t type;
    uint32_t rows, n, k;
    uint32_t x_stride, n_rows;       /* of a row of x and of out */
    uint32_t x_aligned, out_aligned; /* bytes, up to MOST_ALIGNED */
};

struct choice {
    struct shape shape;
    bool is_known, is_there;
    cublasLtMatmulAlgo_t algo;
};

struct td_cuda_lib {
    void *library;
#define X(name) decltype(&name) name##_;
    FUNCTIONS(X)
#undef X
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    float *numbers; /* the device's: 1, 0, and the scales of a call's activations */
    struct choice choice[N_ALGOS];
    uint32_t n_choices; /* made so far */
};

namespace
{

/* ---- one scale for all ---- */

__global__ void __launch_bounds__(THREADS) largest_scale(const float *scale, size_t n, float *out)
{
    td_num_await_earlier();
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS)
        atomicMax((uint32_t *)out,
                  td_num_f32_bits(scale[i])); /* positive: in the order of their bits */
}

/* One block a token: powers of two, so only what is far below the largest number is rounded again. */
__global__ void __launch_bounds__(THREADS)
    flatten(const struct td_cuda_acts act, const float *scale)
{
    td_num_await_earlier();
    const uint32_t t = blockIdx.x;
    uint16_t *x = (uint16_t *)act.x + (size_t)t * act.n_tiles * TD_TILE_COLS;
    float *scales = act.scale + (size_t)t * act.n_leaves;

    for (uint32_t leaf = 0; leaf < act.n_leaves; leaf++) {
        const uint32_t begin = leaf ? act.leaf_end[leaf - 1] : 0;
        const float ratio = scales[leaf] / *scale;

        for (uint32_t i = begin * TD_TILE_COLS + threadIdx.x; i < act.leaf_end[leaf] * TD_TILE_COLS;
             i += THREADS)
            x[i] = td_num_to_f16(td_num_f16(x[i]) * ratio);
        for (uint32_t i = begin + threadIdx.x; act.sums && i < act.leaf_end[leaf]; i += THREADS)
            act.sums[(size_t)t * act.n_tiles + i] = act.sums[(size_t)t * act.n_tiles + i] * ratio;
    }
    __syncthreads();
    for (uint32_t leaf = threadIdx.x; leaf < act.n_leaves; leaf += THREADS)
        scales[leaf] = *scale;
}

/* ---- matrices ---- */

/* Rows of groups from `group0` on, columns of tiles [tile0, tile0 + n_tiles): out [.. x n_tiles * 32], a warp a tile. */
template <enum td_dtype T>
__global__ void __launch_bounds__(THREADS) unpack(const struct td_cuda_weights m, uint32_t group0,
                                                  uint32_t tile0, uint32_t n_tiles, uint16_t *out)
{
    td_num_await_earlier();
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t at = blockIdx.y * WARPS + threadIdx.x / 32;
    struct td_cuda_fragment<T> w;

    if (at >= n_tiles)
        return;
    td_cuda_load_tile<T>(m, group0 + blockIdx.x, tile0 + at, &w);
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t pair[4];
        uint16_t *to = out +
                       ((size_t)blockIdx.x * TD_TILE_ROWS + g + 8 * half) * n_tiles * TD_TILE_COLS +
                       at * TD_TILE_COLS;

        for (uint32_t i = 0; i < 4; i++)
            pair[i] = half ? w.high[i] : w.low[i];
        if (F.scale_bytes || F.super_bytes)
            for (uint32_t i = 0; i < 4; i++) {
                const struct td_tile_scale s = w.scale[F.halves ? i / 2 : 1][half];
                const float unit = td_tile_unit<T>();
                const float a = td_num_f16((uint16_t)pair[i]) * unit * s.scale - s.min;
                const float b = td_num_f16((uint16_t)(pair[i] >> 16)) * unit * s.scale - s.min;

                pair[i] = td_num_to_f16(a) | (uint32_t)td_num_to_f16(b) << 16;
            }
        if (F.halves) {
            *(uint2 *)(to + 4 * t) = {pair[0], pair[1]};
            *(uint2 *)(to + 16 + 4 * t) = {pair[2], pair[3]};
        } else {
            *(uint4 *)(to + 8 * t) = {pair[0], pair[1], pair[2], pair[3]};
        }
    }
}

template <enum td_dtype T>
void launch(struct td_cuda *cuda, dim3 grid, const struct td_cuda_weights &m, uint32_t group0,
            uint32_t tile0, uint32_t n_tiles, uint16_t *out)
{
    if constexpr (T != TD_F32)
        td_cuda_launch(cuda, unpack<T>, grid, dim3(THREADS), 0, m, group0, tile0, n_tiles, out);
}

void launch_unpack(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_weights &m,
                   uint32_t group0, uint32_t n_groups, uint32_t tile0, uint32_t n_tiles,
                   uint16_t *out)
{
    const dim3 grid(n_groups, (n_tiles + WARPS - 1) / WARPS);

    switch (type) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        launch<T>(cuda, grid, m, group0, tile0, n_tiles, out);                                     \
        break;
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        break;
    }
}

/* ---- the library ---- */

uint32_t aligned(const void *p, size_t stride_bytes)
{
    const uintptr_t bits = (uintptr_t)p | stride_bytes | MOST_ALIGNED;

    return (uint32_t)(bits & (~bits + 1));
}

bool is_same(const struct shape &a, const struct shape &b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

struct layouts {
    cublasLtMatrixLayout_t w, x, out;
};

bool open_layouts(const struct td_cuda_lib *lib, const struct shape &s, struct layouts *l)
{
    *l = {};
    return lib->cublasLtMatrixLayoutCreate_(&l->w, s.type, s.k, s.rows, s.k) ==
               CUBLAS_STATUS_SUCCESS &&
           lib->cublasLtMatrixLayoutCreate_(&l->x, s.type, s.k, s.n, s.x_stride) ==
               CUBLAS_STATUS_SUCCESS &&
           lib->cublasLtMatrixLayoutCreate_(&l->out, CUDA_R_32F, s.rows, s.n, s.n_rows) ==
               CUBLAS_STATUS_SUCCESS;
}

void close_layouts(const struct td_cuda_lib *lib, struct layouts *l)
{
    for (cublasLtMatrixLayout_t one : {l->w, l->x, l->out})
        if (one)
            lib->cublasLtMatrixLayoutDestroy_(one);
}

/* What the library recommends for a shape, which is asked for once. */
const struct choice *choose(struct td_cuda_lib *lib, const struct shape &s, const struct layouts &l)
{
    struct choice *c;
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t found = {};
    const uint64_t workspace = WORKSPACE_BYTES;
    int n = 0;

    for (uint32_t i = 0; i < N_ALGOS; i++)
        if (lib->choice[i].is_known && is_same(lib->choice[i].shape, s))
            return &lib->choice[i];
    c = &lib->choice[lib->n_choices++ % N_ALGOS];
    *c = {};
    c->shape = s;
    c->is_known = true;
    if (lib->cublasLtMatmulPreferenceCreate_(&wish) != CUBLAS_STATUS_SUCCESS)
        return c;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t bytes;
    } alignments[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, MOST_ALIGNED},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.x_aligned},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.out_aligned},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.out_aligned}};
    bool well = lib->cublasLtMatmulPreferenceSetAttribute_(
                    wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace) ==
                CUBLAS_STATUS_SUCCESS;

    for (const auto &a : alignments)
        well = well && lib->cublasLtMatmulPreferenceSetAttribute_(
                           wish, a.name, &a.bytes, sizeof a.bytes) == CUBLAS_STATUS_SUCCESS;
    c->is_there =
        well &&
        lib->cublasLtMatmulAlgoGetHeuristic_(lib->handle, lib->desc, l.w, l.x, l.out, l.out, wish,
                                             1, &found, &n) == CUBLAS_STATUS_SUCCESS &&
        n == 1 && found.state == CUBLAS_STATUS_SUCCESS;
    c->algo = found.algo;
    lib->cublasLtMatmulPreferenceDestroy_(wish);
    return c;
}

/* `w` lies before the workspace. False: the library has nothing for it. */
bool multiply(struct td_cuda *cuda, const struct shape &s, const uint16_t *w, const uint16_t *x,
              const float *alpha, float *out)
{
    struct td_cuda_lib *lib = cuda->lib;
    struct layouts l;
    const struct choice *c = open_layouts(lib, s, &l) ? choose(lib, s, l) : NULL;
    const bool is_there = c && c->is_there;

    if (is_there &&
        lib->cublasLtMatmul_(lib->handle, lib->desc, alpha, w, l.w, x, l.x, lib->numbers + ZERO,
                             out, l.out, out, l.out, &c->algo,
                             cuda->unpacked.data + TD_CUDA_UNPACKED_BYTES - WORKSPACE_BYTES,
                             WORKSPACE_BYTES, cuda->stream) != CUBLAS_STATUS_SUCCESS) {
        td_cuda_note(cuda, cudaErrorLaunchFailure);
        cuda->failed_in = "cuBLASLt: ";
    }
    close_layouts(lib, &l);
    return is_there;
}

/* Rows that are unpacked at a time. */
uint32_t rows_at_once(uint32_t k)
{
    const size_t rows = (TD_CUDA_UNPACKED_BYTES - WORKSPACE_BYTES) / (k * sizeof(uint16_t));

    return (uint32_t)(rows >= 128 ? rows / 128 * 128 : rows / TD_TILE_ROWS * TD_TILE_ROWS);
}

} // namespace

enum td_status td_cuda_lib_open(struct td_cuda *cuda, struct td_err *err)
{
    static const float NUMBERS[] = {1.0f, 0.0f};
    const size_t bytes = (SCALES + 2 * TD_KERN_MAX_OUTPUTS) * sizeof(float);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtPointerMode_t on_device = CUBLASLT_POINTER_MODE_DEVICE;
    struct td_cuda_lib *lib = (struct td_cuda_lib *)calloc(1, sizeof *lib);
    const char *missing = NULL;
    char name[32];

    if (!lib)
        return td_err_set(err, TD_NO_MEMORY, "no memory for cuBLASLt");
    cuda->lib = lib;
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUDART_VERSION / 1000);
    lib->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!lib->library)
        return td_err_set(err, TD_NOT_FOUND,
                          "--exact off needs NVIDIA's %s, which does not open: %s; '--exact on' "
                          "works without",
                          name, dlerror());
#define X(f)                                                                                       \
    lib->f##_ = (decltype(&f))dlsym(lib->library, #f);                                             \
    missing = missing || lib->f##_ ? missing : #f;
    FUNCTIONS(X)
#undef X
    if (missing)
        return td_err_set(err, TD_CORRUPT, "%s has no %s: expected NVIDIA's library", name,
                          missing);
    if (lib->cublasLtCreate_(&lib->handle) != CUBLAS_STATUS_SUCCESS ||
        lib->cublasLtMatmulDescCreate_(&lib->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) !=
            CUBLAS_STATUS_SUCCESS ||
        lib->cublasLtMatmulDescSetAttribute_(lib->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                             sizeof transposed) != CUBLAS_STATUS_SUCCESS ||
        lib->cublasLtMatmulDescSetAttribute_(lib->desc, CUBLASLT_MATMUL_DESC_POINTER_MODE,
                                             &on_device, sizeof on_device) != CUBLAS_STATUS_SUCCESS)
        return td_err_set(err, TD_DEVICE, "%s does not begin on %s; '--exact on' works without",
                          name, cuda->head.name);
    if (cudaMalloc((void **)&lib->numbers, bytes) != cudaSuccess)
        return td_err_set(err, TD_NO_MEMORY, "%s: no memory for %zu bytes", cuda->head.name, bytes);
    td_cuda_note(cuda, cudaMemcpyAsync(lib->numbers, NUMBERS, sizeof NUMBERS, cudaMemcpyDefault,
                                       cuda->stream));
    return td_cuda_reserve(cuda, &cuda->unpacked, TD_CUDA_UNPACKED_BYTES, err);
}

void td_cuda_lib_close(struct td_cuda *cuda)
{
    struct td_cuda_lib *lib = cuda->lib;

    if (!lib)
        return;
    cudaFree(lib->numbers);
    if (lib->desc)
        lib->cublasLtMatmulDescDestroy_(lib->desc);
    if (lib->handle)
        lib->cublasLtDestroy_(lib->handle);
    if (lib->library)
        dlclose(lib->library);
    free(lib);
    cuda->lib = NULL;
}

void td_cuda_lib_flatten(struct td_cuda *cuda, struct td_cuda_actset *set, uint32_t n)
{
    for (uint32_t i = 0; i < set->n; i++) {
        struct td_cuda_acts *acts = &set->item[i].acts;
        float *scale = cuda->lib->numbers + SCALES + i;
        const size_t n_scales = (size_t)n * acts->n_leaves;

        if (set->item[i].form != TD_CUDA_F16)
            continue;
        td_cuda_note(cuda, cudaMemsetAsync(scale, 0, sizeof *scale, cuda->stream));
        td_cuda_launch(cuda, largest_scale,
                       dim3((uint32_t)((n_scales + THREADS - 1) / THREADS) % 1024 + 1),
                       dim3(THREADS), 0, acts->scale, n_scales, scale);
        td_cuda_launch(cuda, flatten, dim3(n), dim3(THREADS), 0, *acts, (const float *)scale);
        acts->flat = scale;
    }
}

bool td_cuda_lib_multiply(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_product *p)
{
    const bool is_bf16 = td_cuda_format_of(type).act == TD_CUDA_BF16;
    uint16_t *w = (uint16_t *)cuda->unpacked.data;

    if (!td_cuda_lib_takes(cuda, p->n) || td_cuda_format_of(type).act == TD_CUDA_PLAIN)
        return false;
    for (uint32_t part = 0; part < p->m.n_parts; part++) {
        const uint32_t begin = p->part_tile[part], n_tiles = p->part_tile[part + 1] - begin;
        const uint32_t k = n_tiles * TD_TILE_COLS, at_once = rows_at_once(k);
        const uint16_t *x = (const uint16_t *)p->acts.x + begin * TD_TILE_COLS;

        for (uint32_t row = 0; row < p->m.n_rows; row += at_once) {
            const uint32_t rows = p->m.n_rows - row < at_once ? p->m.n_rows - row : at_once;
            float *out = p->out + (size_t)part * p->n * p->m.n_rows + row;
            struct shape s;

            memset(&s, 0, sizeof s); /* compared byte by byte */
            s.type = is_bf16 ? CUDA_R_16BF : CUDA_R_16F;
            s.rows = rows;
            s.n = p->n;
            s.k = k;
            s.x_stride = p->acts.n_tiles * TD_TILE_COLS;
            s.n_rows = p->m.n_rows;
            s.x_aligned = aligned(x, s.x_stride * sizeof *x);
            s.out_aligned = aligned(out, s.n_rows * sizeof *out);
            launch_unpack(cuda, type, p->m, row / TD_TILE_ROWS, td_cuda_groups(rows), begin,
                          n_tiles, w);
            if (!multiply(cuda, s, w, x, is_bf16 ? cuda->lib->numbers + ONE : p->acts.flat, out))
                return false;
        }
    }
    if (p->gates)
        td_cuda_silu_mul(&cuda->head, p->gates, p->out, (size_t)p->n * p->m.n_rows, p->out);
    return true;
}

#else

enum td_status td_cuda_lib_open(struct td_cuda *cuda, struct td_err *err)
{
    (void)cuda;
    return td_err_set(err, TD_UNSUPPORTED,
                      "--exact off: the plug-in was built where there was no cublasLt.h");
}

void td_cuda_lib_close(struct td_cuda *cuda)
{
    (void)cuda;
}

void td_cuda_lib_flatten(struct td_cuda *cuda, struct td_cuda_actset *set, uint32_t n)
{
    (void)cuda;
    (void)set;
    (void)n;
}

bool td_cuda_lib_multiply(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_product *p)
{
    (void)cuda;
    (void)type;
    (void)p;
    return false;
}

#endif
