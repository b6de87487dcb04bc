/* Matrices: their memory, and rows as a file holds them (kernels/quant) into the three streams of matrix.cuh, on the device. */
#include "kernels/cuda/device.cuh"

#include <stdlib.h>

namespace
{

enum { THREADS = 256 };

/* Rows as they came. */
struct file_rows {
    const uint8_t *data;
    size_t pitch;
    const float *scales; /* F8: [n_rows x per_row] */
    uint32_t per_row, row0, n_rows;
};

__device__ uint16_t half_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* Scale and minimum b (0 .. 7) of the 12 bytes of Q4_K and Q5_K. */
__device__ uint8_t scale_k(const uint8_t *s, uint32_t b)
{
    return (uint8_t)(b < 4 ? s[b] & 63 : (s[b + 4] & 15) | (s[b - 4] >> 6) << 4);
}

__device__ uint8_t min_k(const uint8_t *s, uint32_t b)
{
    return (uint8_t)(b < 4 ? s[b + 4] & 63 : s[b + 4] >> 4 | (s[b] >> 6) << 4);
}

/* The stored bits of a column of a row: a 16-bit float, a byte, or as many bits as the type has. */
template <enum td_dtype T> __device__ uint32_t stored(const uint8_t *row, uint32_t column)
{
    if (T == TD_F16 || T == TD_BF16)
        return half_at(row + (size_t)column * 2);
    if (T == TD_F8_E4M3)
        return row[column];
    if (T == TD_Q8_0) /* the sign turned round */
        return row[(size_t)(column / 32) * 34 + 2 + column % 32] ^ 128u;
    if (T == TD_Q4_0 || T == TD_MXFP4 || T == TD_INT4) {
        const size_t block = T == TD_Q4_0 ? 18 : T == TD_MXFP4 ? 17 : 19;
        const uint8_t byte = row[column / 32 * block + block - 16 + column % 16];

        return column % 32 < 16 ? byte & 15u : byte >> 4;
    }
    if (T == TD_Q4_K || T == TD_Q5_K) {
        const uint8_t *block = row + column / 256 * (size_t)(T == TD_Q4_K ? 144 : 176);
        const uint32_t b = column % 256 / 32, i = column % 32;
        const uint8_t byte = block[(T == TD_Q4_K ? 16 : 48) + b / 2 * 32 + i];
        const uint32_t low = b % 2 ? byte >> 4 : byte & 15u;

        return T == TD_Q4_K ? low : low | (block[16 + i] >> b & 1u) << 4;
    }
    if (T == TD_Q6_K) {
        const uint8_t *block = row + column / 256 * (size_t)210;
        const uint32_t h = column % 256 / 128, k = column % 128 / 32, i = column % 32;
        const uint8_t byte = block[64 * h + i + k % 2 * 32];

        return (k < 2 ? byte & 15u : byte >> 4) | (block[128 + 32 * h + i] >> (2 * k) & 3u) << 4;
    }
    return 0;
}

/* What stands for a weight of zero, where there is none. */
template <enum td_dtype T> __device__ uint32_t zero_of(void)
{
    return T == TD_Q8_0 ? 128 : T == TD_Q4_0 ? 8 : T == TD_Q6_K ? 32 : 0;
}

/* A number's place in its half of a word. */
__device__ uint32_t mxfp4(uint32_t v, uint32_t p)
{
    const uint32_t sign = p == 0 ? 15 : p == 1 ? 12 : p == 2 ? 14 : 13;

    return (v & 7) << (9 - 3 * p) | (v >> 3) << sign;
}

/* The words of one lane of one tile. */
template <enum td_dtype T>
__device__ void pack_lane(const struct td_cuda_weights &m, const struct file_rows &rows,
                          uint32_t group, uint32_t at, uint32_t lane)
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const uint32_t g = lane / 4, t = lane % 4;
    const struct td_cuda_tile columns = m.tile[at];
    uint8_t *tile = m.tiles + ((size_t)group * m.n_tiles + at) * F.tile_bytes;

    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t r = group * TD_TILE_ROWS + g + 8 * half;
        const bool is_there = r < m.n_rows;
        const uint8_t *row = rows.data + (size_t)(r - rows.row0) * rows.pitch;
        uint32_t v[8], word = 0, more = 0;

        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t c = td_tile_column(F.halves, t, i);

            v[i] = is_there && c < columns.n ? stored<T>(row, columns.first + c) : zero_of<T>();
        }
        if (F.tile_bytes == 1024) {
            for (uint32_t i = 0; i < 8; i++)
                ((uint16_t *)(tile + half * 512 + lane * 16))[i] = (uint16_t)v[i];
        } else if (F.tile_bytes == 512) {
            for (uint32_t i = 0; i < 8; i++)
                tile[lane * 16 + half * 8 + i] = (uint8_t)v[i];
        } else {
            for (uint32_t p = 0; p < 4; p++) {
                if (T == TD_MXFP4)
                    word |= mxfp4(v[2 * p], p) | mxfp4(v[2 * p + 1], p) << 16;
                else
                    word |= (v[2 * p] & 15) << (4 * p) | (v[2 * p + 1] & 15) << (4 * (p + 4));
                if (T == TD_Q5_K)
                    more |= (v[2 * p] >> 4) << p | (v[2 * p + 1] >> 4) << (p + 4);
                if (T == TD_Q6_K)
                    more |= (v[2 * p] >> 4) << (2 * p) | (v[2 * p + 1] >> 4) << (8 + 2 * p);
            }
            *(uint32_t *)(tile + lane * 8 + half * 4) = word;
            if (T == TD_Q5_K)
                tile[256 + lane * 2 + half] = (uint8_t)more;
            if (T == TD_Q6_K)
                *(uint16_t *)(tile + 256 + lane * 4 + half * 2) = (uint16_t)more;
        }
    }
}

/* Scales of row g or g + 8, by one lane. */
template <enum td_dtype T>
__device__ void pack_scales(const struct td_cuda_weights &m, const struct file_rows &rows,
                            uint32_t group, uint32_t at, uint32_t g, uint32_t half)
{
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const uint32_t r = group * TD_TILE_ROWS + g + 8 * half, column = m.tile[at].first;
    uint8_t *of_tile = m.scales + ((size_t)group * m.n_tiles + at) * F.scale_bytes;
    uint8_t *scales = of_tile + g * 4 + half * 2;
    uint8_t *super =
        F.super_tiles ? m.supers + ((size_t)group * m.n_supers + at / F.super_tiles) * F.super_bytes
                      : NULL;
    const uint8_t *row = rows.data + (size_t)(r - rows.row0) * rows.pitch;

    if (r >= m.n_rows) /* zeros, as the memory was */
        return;
    if (T == TD_Q8_0 || T == TD_Q4_0) {
        *(uint16_t *)scales = half_at(row + column / 32 * (size_t)(T == TD_Q8_0 ? 34 : 18));
    } else if (T == TD_INT4) {
        const uint8_t *block = row + column / 32 * (size_t)19;

        *(uint16_t *)scales = half_at(block);
        of_tile[32 + g * 2 + half] = block[2] & 15u;
    } else if (T == TD_MXFP4) {
        const uint32_t e = row[column / 32 * (size_t)17];

        *(uint16_t *)scales = (uint16_t)(e == 255 ? 0x7fc0u : e ? e << 7 : 0x40u);
    } else if (T == TD_Q4_K || T == TD_Q5_K) {
        const uint8_t *block = row + column / 256 * (size_t)(T == TD_Q4_K ? 144 : 176);

        scales[0] = scale_k(block + 4, column % 256 / 32);
        scales[1] = min_k(block + 4, column % 256 / 32);
        if (column % 256 == 0) {
            ((uint16_t *)(super + g * 8 + half * 4))[0] = half_at(block);
            ((uint16_t *)(super + g * 8 + half * 4))[1] = half_at(block + 2);
        }
    } else if (T == TD_Q6_K) {
        const uint8_t *block = row + column / 256 * (size_t)210;

        scales[0] = block[192 + column % 256 / 16];
        scales[1] = block[192 + column % 256 / 16 + 1];
        if (column % 256 == 0)
            *(uint16_t *)(super + g * 4 + half * 2) = half_at(block + 208);
    } else if (T == TD_F8_E4M3 && column % 128 == 0) {
        *(float *)(super + g * 8 + half * 4) =
            rows.scales[(size_t)(r - rows.row0) * rows.per_row + column / 128];
    }
}

/* One warp a tile. */
template <enum td_dtype T>
__global__ void pack(const __grid_constant__ struct td_cuda_weights m, const struct file_rows rows)
{
    td_num_await_earlier();
    constexpr struct td_cuda_format F = td_cuda_format_of(T);
    const uint32_t lane = threadIdx.x % 32;
    const size_t item = blockIdx.x * (size_t)(THREADS / 32) + threadIdx.x / 32;
    const uint32_t at = (uint32_t)(item % m.n_tiles);
    const uint32_t group = rows.row0 / TD_TILE_ROWS + (uint32_t)(item / m.n_tiles);

    if (group >= td_cuda_groups(rows.row0 + rows.n_rows))
        return;
    if (T == TD_F32) {
        float *tile = (float *)(m.tiles + ((size_t)group * m.n_tiles + at) * F.tile_bytes);

        for (uint32_t i = lane; i < TD_TILE_ROWS * TD_TILE_COLS; i += 32) {
            const uint32_t r = group * TD_TILE_ROWS + i % TD_TILE_ROWS, c = i / TD_TILE_ROWS;
            const uint8_t *from = rows.data + (size_t)(r - rows.row0) * rows.pitch;

            tile[i] = r < m.n_rows && c < m.tile[at].n ? ((const float *)from)[m.tile[at].first + c]
                                                       : 0.0f;
        }
        return;
    }
    pack_lane<T>(m, rows, group, at, lane);
    if (lane < 16)
        pack_scales<T>(m, rows, group, at, lane % 8, lane / 8);
}

/* ---- the host's part ---- */

/* Runs of 32 columns, each leaf by itself. */
uint32_t cut_tiles(const struct td_matrix_shape *shape, struct td_cuda_tile *tile,
                   uint32_t *leaf_end)
{
    uint32_t n = 0, from = 0;

    for (uint32_t l = 0; l < shape->n_leaves; l++) {
        for (; from < shape->leaf_end[l]; n++) {
            const uint32_t left = shape->leaf_end[l] - from;

            if (tile)
                tile[n] = {from, left < TD_TILE_COLS ? left : (uint32_t)TD_TILE_COLS};
            from += left < TD_TILE_COLS ? left : (uint32_t)TD_TILE_COLS;
        }
        if (leaf_end)
            leaf_end[l] = n;
    }
    return n;
}

/* The streams and tables of a matrix from `base` on; returns their bytes. */
size_t lay_out(struct td_cuda_matrix *m, uint8_t *base)
{
    const struct td_cuda_format f = td_cuda_format_of(m->head.dtype);
    struct td_cuda_weights *v = &m->view;
    const size_t groups = td_cuda_groups(v->n_rows), tiles = groups * v->n_tiles;
    size_t at = td_cuda_align(tiles * f.tile_bytes);

    v->tiles = base;
    v->scales = base + at;
    at += td_cuda_align(tiles * f.scale_bytes);
    v->supers = base + at;
    at += td_cuda_align(groups * v->n_supers * f.super_bytes);
    v->tile = (const struct td_cuda_tile *)(base + at);
    at += td_cuda_align(v->n_tiles * sizeof *v->tile);
    v->leaf_end = (const uint32_t *)(base + at);
    return at + td_cuda_align(v->n_leaves * sizeof *v->leaf_end);
}

enum td_status fill(struct td_cuda *cuda, struct td_cuda_matrix *m)
{
    const struct td_cuda_weights *v = &m->view;
    cudaError_t e = cudaMalloc(&m->memory, m->head.bytes);

    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        return TD_NO_MEMORY;
    }
    (void)lay_out(m, (uint8_t *)m->memory);
    for (uint32_t i = 1; i <= v->n_parts; i++)
        m->part_tile[i] = m->leaf_tile[v->part_begin[i] - 1];
    td_cuda_note(cuda, cudaMemsetAsync(m->memory, 0, m->head.bytes, cuda->stream));
    td_cuda_note(cuda, cudaMemcpyAsync((void *)v->tile, m->tile, v->n_tiles * sizeof *v->tile,
                                       cudaMemcpyDefault, cuda->stream));
    td_cuda_note(cuda, cudaMemcpyAsync((void *)v->leaf_end, m->leaf_tile,
                                       v->n_leaves * sizeof *v->leaf_end, cudaMemcpyDefault,
                                       cuda->stream));
    td_cuda_note(cuda, cudaStreamSynchronize(cuda->stream)); /* both may go */
    return TD_OK;
}

void free_matrix(struct td_cuda_matrix *m)
{
    free(m->tile);
    free(m->head.leaf_end);
    free(m->last_scales);
    free(m);
}

/* What is still true of a matrix whose rows come in their order. `scales` [n_rows x per_row]. */
void look_at_scales(struct td_cuda_matrix *m, uint32_t row0, uint32_t n_rows, const float *scales,
                    uint32_t per_row)
{
    const float *above = m->last_scales;

    for (uint32_t r = row0; r < row0 + n_rows; r++, above = scales, scales += per_row) {
        for (uint32_t i = 1; i < per_row; i++)
            m->has_row_scales = m->has_row_scales && scales[i] == scales[0];
        for (uint32_t i = 0; r % 128 && i < per_row; i++)
            m->has_block_scales = m->has_block_scales && scales[i] == above[i];
    }
    memcpy(m->last_scales, above, per_row * sizeof *above);
}

} // namespace

enum td_status td_cuda_matrix_open(struct td_kern *kern, const struct td_matrix_shape *shape,
                                   struct td_matrix **out, struct td_err *err)
{
    const struct td_cuda_format f = td_cuda_format_of(shape->dtype);
    const uint32_t n_tiles = cut_tiles(shape, NULL, NULL);
    struct td_cuda_matrix *m = (struct td_cuda_matrix *)calloc(1, sizeof *m);
    enum td_status s = TD_NO_MEMORY;

    if (m) {
        m->head.dtype = shape->dtype;
        m->head.n_rows = m->view.n_rows = shape->n_rows;
        m->head.n_cols = m->view.n_cols = shape->n_cols;
        m->head.n_leaves = m->view.n_leaves = shape->n_leaves;
        m->head.n_parts = m->view.n_parts = shape->n_parts;
        m->view.n_tiles = n_tiles;
        m->view.n_supers = f.super_tiles ? (n_tiles + f.super_tiles - 1) / f.super_tiles : 0;
        memcpy(m->head.part_begin, shape->part_begin, sizeof m->head.part_begin);
        memcpy(m->view.part_begin, shape->part_begin, sizeof m->view.part_begin);
        m->head.leaf_end = (uint32_t *)malloc(shape->n_leaves * sizeof *m->head.leaf_end);
        m->tile = (struct td_cuda_tile *)malloc(n_tiles * sizeof *m->tile);
        m->has_row_scales = m->has_block_scales = shape->dtype == TD_F8_E4M3;
        m->last_scales = (float *)calloc(shape->n_cols / 128 + 1, sizeof *m->last_scales);
        m->head.bytes = lay_out(m, NULL);
        if (m->head.leaf_end && m->tile && m->last_scales) {
            memcpy(m->head.leaf_end, shape->leaf_end, shape->n_leaves * sizeof *m->head.leaf_end);
            cut_tiles(shape, m->tile, m->leaf_tile);
            s = fill(td_cuda_of(kern), m);
        }
    }
    if (s) {
        const size_t bytes = m ? m->head.bytes : 0;

        if (m)
            free_matrix(m);
        return td_err_set(err, s, "no memory for a matrix of %u x %u in %s (%zu bytes) on %s",
                          shape->n_rows, shape->n_cols, td_dtype_info(shape->dtype)->name, bytes,
                          kern->name);
    }
    *out = &m->head;
    return TD_OK;
}

void td_cuda_matrix_close(struct td_kern *kern, struct td_matrix *matrix)
{
    struct td_cuda_matrix *m = (struct td_cuda_matrix *)matrix;

    td_cuda_graphs_drop(td_cuda_of(kern));
    td_cuda_note(td_cuda_of(kern), cudaFree(m->memory));
    free_matrix(m);
}

bool td_cuda_same_cut(const struct td_cuda_matrix *a, const struct td_cuda_matrix *b)
{
    return a->head.n_leaves == b->head.n_leaves &&
           memcmp(a->head.leaf_end, b->head.leaf_end,
                  a->head.n_leaves * sizeof *a->head.leaf_end) == 0;
}

/* ---- on the way ---- */

namespace
{

enum { HANDS = 16 }; /* that fill a bay */

struct filling {
    uint8_t *to;
    const uint8_t *from;
    size_t pitch, stride, row_bytes;
    uint32_t n_rows;
};

void fill_some(void *arg, uint32_t i)
{
    const struct filling *f = (const struct filling *)arg;

    for (uint32_t r = (uint32_t)((uint64_t)f->n_rows * i / HANDS);
         r < (uint64_t)f->n_rows * (i + 1) / HANDS; r++)
        memcpy(f->to + r * f->pitch, f->from + r * f->stride, f->row_bytes);
}

/* The bay whose turn it is, once it is empty, with room for so many bytes. NULL: no memory. */
struct td_cuda_bay *next_bay(struct td_cuda *cuda, size_t bytes)
{
    struct td_cuda_bay *bay = &cuda->bay[cuda->n_packed++ % TD_CUDA_BAYS];

    if (!bay->packed) {
        if (cudaEventCreateWithFlags(&bay->packed, cudaEventDisableTiming) != cudaSuccess)
            return NULL;
    } else {
        td_cuda_note(cuda, cudaEventSynchronize(bay->packed));
    }
    if (bytes > bay->host_bytes) {
        if (bay->host)
            td_cuda_note(cuda, cudaFreeHost(bay->host));
        bay->host = NULL;
        bay->host_bytes = 0;
        if (cudaMallocHost((void **)&bay->host, bytes) != cudaSuccess)
            return NULL;
        bay->host_bytes = bytes;
    }
    return td_cuda_reserve(cuda, &bay->rows, bytes, NULL) ? NULL : bay;
}

} // namespace

void td_cuda_bays_close(struct td_cuda *cuda)
{
    for (struct td_cuda_bay &bay : cuda->bay) {
        if (!bay.packed)
            continue;
        td_cuda_note(cuda, cudaEventDestroy(bay.packed));
        if (bay.host)
            td_cuda_note(cuda, cudaFreeHost(bay.host));
        td_cuda_note(cuda, cudaFree(bay.rows.data));
        bay = {};
    }
}

void td_cuda_matrix_pack(struct td_kern *kern, struct td_matrix *matrix, uint32_t row0,
                         uint32_t n_rows, const void *src, size_t stride_bytes, const float *scales)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    const struct td_cuda_weights *m = &((struct td_cuda_matrix *)matrix)->view;
    const size_t row_bytes = td_dtype_row_bytes(matrix->dtype, matrix->n_cols);
    const size_t pitch = (row_bytes + 15) & ~(size_t)15, data_bytes = td_cuda_align(pitch * n_rows);
    const size_t items = (size_t)(td_cuda_groups(row0 + n_rows) - row0 / TD_TILE_ROWS) * m->n_tiles;
    const dim3 blocks((uint32_t)((items + THREADS / 32 - 1) / (THREADS / 32)));
    struct file_rows rows = {NULL, pitch, NULL, (matrix->n_cols + 127) / 128, row0, n_rows};
    const size_t scale_bytes = scales ? (size_t)n_rows * rows.per_row * sizeof *scales : 0;
    struct td_cuda_bay *bay = next_bay(cuda, data_bytes + scale_bytes);
    struct filling f;

    if (!bay) {
        (void)cudaGetLastError();
        td_cuda_note(cuda, cudaErrorMemoryAllocation);
        return;
    }
    f = {bay->host, (const uint8_t *)src, pitch, stride_bytes, row_bytes, n_rows};
    kern->ops->run(kern, HANDS, fill_some, &f);
    if (scales) {
        memcpy(bay->host + data_bytes, scales, scale_bytes);
        look_at_scales((struct td_cuda_matrix *)matrix, row0, n_rows, scales, rows.per_row);
    }
    rows.data = bay->rows.data;
    rows.scales = (const float *)(bay->rows.data + data_bytes);
    td_cuda_note(cuda, cudaMemcpyAsync(bay->rows.data, bay->host, data_bytes + scale_bytes,
                                       cudaMemcpyDefault, cuda->stream));
    switch (matrix->dtype) {
#define CASE(T, ...)                                                                               \
    case T:                                                                                        \
        td_cuda_launch(cuda, pack<T>, blocks, dim3(THREADS), 0, *m, rows);                         \
        break;
        TD_CUDA_FORMATS(CASE)
#undef CASE
    default:
        break;
    }
    td_cuda_note(cuda, cudaEventRecord(bay->packed, cuda->stream));
}
