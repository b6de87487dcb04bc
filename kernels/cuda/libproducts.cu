/* cuBLASLt, opened at run time, so that a machine without it needs none. It knows no types of ours: rows of a matrix are unpacked first
 * (unpacking.cu), as many at a time as there is room for, in the columns' order of the tiles, which is the activations' too. F8_E4M3 is
 * multiplied as it is where its scales are of one kind that the library knows; all others are 16 bits. */
#include "kernels/cuda/libproducts.cuh"

#if __has_include(<cublasLt.h>)

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    THREADS = 256,
    N_ALGOS = 64,
    WORKSPACE_BYTES = 32 << 20, /* as NVIDIA recommends it for sm_90 */
    SCALE_BYTES = 1 << 20,      /* of the rows that are unpacked at a time */
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

/* What is multiplied: 16-bit numbers; E4M3 with a scale per row of both; with one per block of 128 x 128 weights and per run of 128
 * activations. */
enum way { BITS_16, BY_ROW, BY_BLOCK, WAYS };

/* out [n x n_rows] = x [n x k] * w [rows x k]^T; the library counts columns first. */
struct shape {
    enum way way;
    cudaDataType_t type, out_type;
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
    cublasLtMatmulDesc_t desc[WAYS]; /* NULL: the library knows no such way */
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
           lib->cublasLtMatrixLayoutCreate_(&l->out, s.out_type, s.rows, s.n, s.n_rows) ==
               CUBLAS_STATUS_SUCCESS;
}

void close_layouts(const struct td_cuda_lib *lib, struct layouts *l)
{
    for (cublasLtMatrixLayout_t one : {l->w, l->x, l->out})
        if (one)
            lib->cublasLtMatrixLayoutDestroy_(one);
}

/* Rows that are unpacked at a time, of so many bytes each. */
uint32_t rows_at_once(size_t bytes)
{
    const size_t room = (TD_CUDA_UNPACKED_BYTES - WORKSPACE_BYTES - SCALE_BYTES) / bytes;
    const size_t rows = room < SCALE_BYTES / sizeof(float) ? room : SCALE_BYTES / sizeof(float);

    return (uint32_t)(rows >= 128 ? rows / 128 * 128 : rows / TD_TILE_ROWS * TD_TILE_ROWS);
}

/* What the library recommends for a shape, which is asked for once. */
struct choice *choose(struct td_cuda_lib *lib, const struct shape &s, const struct layouts &l)
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
        lib->cublasLtMatmulAlgoGetHeuristic_(lib->handle, lib->desc[s.way], l.w, l.x, l.out, l.out,
                                             wish, 1, &found, &n) == CUBLAS_STATUS_SUCCESS &&
        n == 1 && found.state == CUBLAS_STATUS_SUCCESS;
    c->algo = found.algo;
    lib->cublasLtMatmulPreferenceDestroy_(wish);
    return c;
}

/* Where a product goes: [n_parts x n x n_rows] F32 or BF16. */
struct target {
    cudaDataType_t type;
    void *out;
};

/* The same from number `i` on. */
struct target behind(const struct target &to, size_t i)
{
    return {to.type, (uint8_t *)to.out + i * (to.type == CUDA_R_32F ? 4 : 2)};
}

/* One call of the library: rows of a part of a product. */
struct piece {
    struct shape shape;
    struct target to;
    uint32_t tile, n_tiles, row;
};

/* Calls f(piece) for all of a product until it says false; returns what it said. `x` and `to` count for their alignment. */
template <class F>
bool each_piece(enum way way, cudaDataType_t type, const struct td_cuda_weights &m,
                const uint32_t *part_tile, uint32_t n, const void *x, const struct target &to, F f)
{
    const size_t width = way == BITS_16 ? 2 : 1;

    for (uint32_t part = 0; part < m.n_parts; part++) {
        struct piece p;
        uint32_t at_once;

        memset(&p, 0, sizeof p); /* shapes are compared byte by byte */
        p.tile = part_tile[part];
        p.n_tiles = part_tile[part + 1] - p.tile;
        p.shape.way = way;
        p.shape.type = type;
        p.shape.out_type = to.type;
        p.shape.n = n;
        p.shape.k = p.n_tiles * TD_TILE_COLS;
        p.shape.x_stride = m.n_tiles * TD_TILE_COLS;
        p.shape.n_rows = m.n_rows;
        p.shape.x_aligned =
            aligned((const uint8_t *)x + p.tile * TD_TILE_COLS * width, p.shape.x_stride * width);
        at_once = rows_at_once(p.shape.k * width);
        for (p.row = 0; p.row < m.n_rows; p.row += at_once) {
            p.shape.rows = m.n_rows - p.row < at_once ? m.n_rows - p.row : at_once;
            p.to = behind(to, (size_t)part * n * m.n_rows + p.row);
            p.shape.out_aligned =
                aligned(p.to.out, m.n_rows * (to.type == CUDA_R_32F ? sizeof(float) : 2));
            if (!f(p))
                return false;
        }
    }
    return true;
}

/* What is known of the shape, or NULL: the library has nothing for it. */
struct choice *find(struct td_cuda_lib *lib, const struct shape &s)
{
    struct layouts l;
    struct choice *c = open_layouts(lib, s, &l) ? choose(lib, s, l) : NULL;

    close_layouts(lib, &l);
    return c && c->is_there ? c : NULL;
}

/* Multiplies the rows that are unpacked. False: the library does not after all, and is not asked for the shape again. */
bool multiply(struct td_cuda *cuda, struct choice *c, const void *x, const float *alpha,
              const float *beta, void *out)
{
    struct td_cuda_lib *lib = cuda->lib;
    struct layouts l;

    c->is_there =
        open_layouts(lib, c->shape, &l) &&
        lib->cublasLtMatmul_(lib->handle, lib->desc[c->shape.way], alpha, cuda->unpacked.data, l.w,
                             x, l.x, beta, out, l.out, out, l.out, &c->algo,
                             cuda->unpacked.data + TD_CUDA_UNPACKED_BYTES - WORKSPACE_BYTES,
                             WORKSPACE_BYTES, cuda->stream) == CUBLAS_STATUS_SUCCESS;
    close_layouts(lib, &l);
    return c->is_there;
}

bool multiply_16(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_product *p,
                 const struct target &to)
{
    const bool is_bf16 = p->acts.form == TD_CUDA_BF16;
    const float *numbers = cuda->lib->numbers;

    return each_piece(BITS_16, is_bf16 ? CUDA_R_16BF : CUDA_R_16F, p->m, p->part_tile, p->n,
                      p->acts.x, to, [&](const struct piece &at) {
                          struct choice *c = find(cuda->lib, at.shape);

                          if (!c)
                              return false;
                          td_cuda_unpack_rows(cuda, type, p->m, at.row / TD_TILE_ROWS,
                                              td_cuda_groups(at.shape.rows), at.tile, at.n_tiles,
                                              (uint16_t *)cuda->unpacked.data);
                          return multiply(
                              cuda, c, (const uint16_t *)p->acts.x + at.tile * TD_TILE_COLS,
                              is_bf16 ? numbers + ONE : p->acts.flat, numbers + ZERO, at.to.out);
                      });
}

/* ---- eight bits ---- */

#if CUBLAS_VERSION >= 120900

const float ALPHA = 1.0f, BETA = 0.0f;

/* NULL: this version of the library does not know them. */
cublasLtMatmulDesc_t open_bytes(const struct td_cuda_lib *lib, int32_t scales_of_w,
                                int32_t scales_of_x)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const struct {
        cublasLtMatmulDescAttributes_t name;
        const void *value;
    } attributes[] = {{CUBLASLT_MATMUL_DESC_TRANSA, &transposed},
                      {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &scales_of_w},
                      {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &scales_of_x}};
    cublasLtMatmulDesc_t desc = NULL;

    if (lib->cublasLtMatmulDescCreate_(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) !=
        CUBLAS_STATUS_SUCCESS)
        return NULL;
    for (const auto &a : attributes)
        if (lib->cublasLtMatmulDescSetAttribute_(desc, a.name, a.value, 4) !=
            CUBLAS_STATUS_SUCCESS) {
            lib->cublasLtMatmulDescDestroy_(desc);
            return NULL;
        }
    return desc;
}

void open_bytes(struct td_cuda_lib *lib)
{
    lib->desc[BY_ROW] = open_bytes(lib, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
                                   CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    lib->desc[BY_BLOCK] = open_bytes(lib, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
                                     CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
}

bool set_scales(const struct td_cuda_lib *lib, enum way way, const float *of_w, const float *of_x)
{
    return lib->cublasLtMatmulDescSetAttribute_(lib->desc[way],
                                                CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &of_w,
                                                sizeof of_w) == CUBLAS_STATUS_SUCCESS &&
           lib->cublasLtMatmulDescSetAttribute_(lib->desc[way],
                                                CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &of_x,
                                                sizeof of_x) == CUBLAS_STATUS_SUCCESS;
}

float *unpacked_scales(const struct td_cuda *cuda)
{
    return (float *)(cuda->unpacked.data + TD_CUDA_UNPACKED_BYTES - WORKSPACE_BYTES - SCALE_BYTES);
}

/* Whether the library has all that a product needs. By blocks it wants a multiple of eight tokens (Transformer Engine's
 * check; cuBLAS documents four). */
bool takes_bytes(struct td_cuda *cuda, enum way way, const struct td_cuda_matrix *m, uint32_t n,
                 const struct target &to)
{
    struct td_cuda_lib *lib = cuda->lib;

    return lib->desc[way] && (way == BY_ROW || n % 8 == 0) &&
           set_scales(lib, way, unpacked_scales(cuda), lib->numbers) && /* any; they count later */
           each_piece(
               way, CUDA_R_8F_E4M3, m->view, m->part_tile, n, NULL, to, [&](const struct piece &p) {
                   return (way == BY_ROW || p.tile % TD_CUDA_RUN_TILES == 0) && find(lib, p.shape);
               });
}

bool multiply_8(struct td_cuda *cuda, const struct td_cuda_product *p, const struct target &to)
{
    const enum way way = p->acts.form == TD_CUDA_E4M3 ? BY_ROW : BY_BLOCK;
    struct td_cuda_lib *lib = cuda->lib;

    return each_piece(
        way, CUDA_R_8F_E4M3, p->m, p->part_tile, p->n, NULL, to, [&](const struct piece &at) {
            struct choice *c = find(lib, at.shape);
            float *scales = unpacked_scales(cuda);
            const float *of_x =
                p->acts.scale +
                (way == BY_ROW ? (size_t)0 : (size_t)at.tile / TD_CUDA_RUN_TILES * p->n);

            if (!c || !set_scales(lib, way, scales, of_x))
                return false;
            td_cuda_unpack_bytes(cuda, p->m, at.row / TD_TILE_ROWS, td_cuda_groups(at.shape.rows),
                                 at.tile, at.n_tiles, way == BY_BLOCK, cuda->unpacked.data, scales);
            return multiply(cuda, c, p->acts.x + at.tile * TD_TILE_COLS, &ALPHA, &BETA, at.to.out);
        });
}

#else /* a library that knows no such scales */

void open_bytes(struct td_cuda_lib *lib)
{
    (void)lib;
}

bool takes_bytes(struct td_cuda *cuda, enum way way, const struct td_cuda_matrix *m, uint32_t n,
                 const struct target &to)
{
    (void)cuda, (void)way, (void)m, (void)n, (void)to;
    return false;
}

bool multiply_8(struct td_cuda *cuda, const struct td_cuda_product *p, const struct target &to)
{
    (void)cuda, (void)p, (void)to;
    return false;
}

#endif

bool is_8(const struct td_cuda_product *p)
{
    return p->acts.form == TD_CUDA_E4M3 || p->acts.form == TD_CUDA_E4M3_RUNS;
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
    lib->library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE /* it has threads' ends */);
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
        lib->cublasLtMatmulDescCreate_(&lib->desc[BITS_16], CUBLAS_COMPUTE_32F, CUDA_R_32F) !=
            CUBLAS_STATUS_SUCCESS ||
        lib->cublasLtMatmulDescSetAttribute_(lib->desc[BITS_16], CUBLASLT_MATMUL_DESC_TRANSA,
                                             &transposed,
                                             sizeof transposed) != CUBLAS_STATUS_SUCCESS ||
        lib->cublasLtMatmulDescSetAttribute_(lib->desc[BITS_16], CUBLASLT_MATMUL_DESC_POINTER_MODE,
                                             &on_device, sizeof on_device) != CUBLAS_STATUS_SUCCESS)
        return td_err_set(err, TD_DEVICE, "%s does not begin on %s; '--exact on' works without",
                          name, cuda->head.name);
    open_bytes(lib);
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
    for (cublasLtMatmulDesc_t desc : lib->desc)
        if (desc)
            lib->cublasLtMatmulDescDestroy_(desc);
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

        if (acts->form != TD_CUDA_F16)
            continue;
        td_cuda_note(cuda, cudaMemsetAsync(scale, 0, sizeof *scale, cuda->stream));
        td_cuda_launch(cuda, largest_scale,
                       dim3((uint32_t)((n_scales + THREADS - 1) / THREADS) % 1024 + 1),
                       dim3(THREADS), 0, acts->scale, n_scales, scale);
        td_cuda_launch(cuda, flatten, dim3(n), dim3(THREADS), 0, *acts, (const float *)scale);
        acts->flat = scale;
    }
}

enum td_cuda_act td_cuda_lib_form(struct td_cuda *cuda, const struct td_cuda_matrix *m, uint32_t n,
                                  const float *out)
{
    const struct target to = {CUDA_R_32F, (void *)out};

    if (td_cuda_lib_takes(cuda, n)) {
        if (m->has_row_scales && takes_bytes(cuda, BY_ROW, m, n, to))
            return TD_CUDA_E4M3;
        if (m->has_block_scales && takes_bytes(cuda, BY_BLOCK, m, n, to))
            return TD_CUDA_E4M3_RUNS;
    }
    return td_cuda_format_of(m->head.dtype).act;
}

bool td_cuda_lib_multiply(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_product *p)
{
    const struct target to = {CUDA_R_32F, p->out};

    if (!td_cuda_lib_takes(cuda, p->n) || p->acts.form == TD_CUDA_PLAIN)
        return false;
    if (is_8(p)) {
        if (!multiply_8(cuda, p, to)) { /* which td_cuda_lib_form has asked for */
            td_cuda_note(cuda, cudaErrorLaunchFailure);
            cuda->failed_in = "cuBLASLt: ";
        }
    } else if (!multiply_16(cuda, type, p, to)) {
        return false;
    }
    if (p->gates)
        td_cuda_silu_mul(&cuda->head, p->gates, p->out, (size_t)p->n * p->m.n_rows, p->out);
    return true;
}

bool td_cuda_lib_gated(struct td_cuda *cuda, enum td_dtype gate_type,
                       const struct td_cuda_product *gate, enum td_dtype type,
                       const struct td_cuda_product *p)
{
    const size_t n = (size_t)p->n * p->m.n_rows;
    const struct target of_gate = {CUDA_R_16BF, gate->out}, of_p = behind(of_gate, n);
    const auto multiply_as = [&](enum td_dtype t, const struct td_cuda_product *one,
                                 const struct target &to) {
        return is_8(one)                        ? multiply_8(cuda, one, to)
               : one->acts.form == TD_CUDA_BF16 ? multiply_16(cuda, t, one, to)
                                                : false; /* F16 gives no BF16 */
    };

    if (!td_cuda_lib_takes(cuda, p->n) || p->m.n_parts > 1 || n % 2 || (uintptr_t)p->out % 8 ||
        !multiply_as(gate_type, gate, of_gate) || !multiply_as(type, p, of_p))
        return false;
    td_cuda_silu_mul_bf16(cuda, (const uint32_t *)of_gate.out, (const uint32_t *)of_p.out, n,
                          p->out);
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

enum td_cuda_act td_cuda_lib_form(struct td_cuda *cuda, const struct td_cuda_matrix *m, uint32_t n,
                                  const float *out)
{
    (void)cuda;
    (void)n;
    (void)out;
    return td_cuda_format_of(m->head.dtype).act;
}

bool td_cuda_lib_multiply(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_product *p)
{
    (void)cuda;
    (void)type;
    (void)p;
    return false;
}

bool td_cuda_lib_gated(struct td_cuda *cuda, enum td_dtype gate_type,
                       const struct td_cuda_product *gate, enum td_dtype type,
                       const struct td_cuda_product *p)
{
    (void)cuda, (void)gate_type, (void)gate, (void)type, (void)p;
    return false;
}

#endif
