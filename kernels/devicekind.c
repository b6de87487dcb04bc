#include "kernels/devicekind.h"

#include "kernels/cuda/formats.h"

#include <string.h>

/* Bytes of 16 rows. */
struct format {
    size_t tile, scale, super_tiles, super;
};

static const struct format CUDA[TD_N_DTYPES] = {
#define X(type, act, tile, scale, super_tiles, super, halves, mins)                                \
    [type] = {tile, scale, super_tiles, super},
    TD_CUDA_FORMATS(X)
#undef X
};

const char *td_devicekind_name(enum td_devicekind kind)
{
    return kind == TD_ON_CUDA ? "cuda" : "cpu";
}

bool td_devicekind_of(const char *device, enum td_devicekind *kind)
{
    const char *number = device && strncmp(device, "cuda:", 5) == 0 ? device + 5 : NULL;
    size_t digits = number ? strspn(number, "0123456789") : 0;

    *kind = !device || strcmp(device, "cpu") == 0 ? TD_ON_CPU : TD_ON_CUDA;
    return *kind == TD_ON_CPU || strcmp(device, "cuda") == 0 ||
           (digits > 0 && digits < 5 && number[digits] == '\0');
}

bool td_devicekind_holds(enum td_devicekind kind, enum td_dtype type)
{
    return kind == TD_ON_CPU || CUDA[type].tile;
}

bool td_devicekind_caches(enum td_devicekind kind, enum td_dtype type)
{
    switch (type) {
#define X(type) case type:
        TD_CUDA_EACH_KV(X)
#undef X
        return true;
    default:
        return kind == TD_ON_CPU && type == TD_Q4_0;
    }
}

static size_t ceil_div(size_t n, size_t by)
{
    return (n + by - 1) / by;
}

size_t td_devicekind_matrix_bytes(enum td_devicekind kind, enum td_dtype type, size_t n_rows,
                                  size_t n_cols, size_t leaf_cols)
{
    const struct format *f = &CUDA[type];
    size_t groups = ceil_div(n_rows, TD_TILE_ROWS), tiles;

    if (kind == TD_ON_CPU)
        return n_rows * td_dtype_held_bytes(type, n_cols);
    if (!f->tile || !td_dtype_row_bytes(type, n_cols))
        return 0;
    tiles = n_cols / leaf_cols * ceil_div(leaf_cols, TD_TILE_COLS) +
            ceil_div(n_cols % leaf_cols, TD_TILE_COLS);
    return groups * (tiles * (f->tile + f->scale) +
                     (f->super_tiles ? ceil_div(tiles, f->super_tiles) * f->super : 0));
}

size_t td_devicekind_scratch_bytes(enum td_devicekind kind, size_t n, size_t n_cols)
{
    /* Rows in two forms of 16 bits, each with a scale and a sum per tile at most; a gate's results. */
    const size_t tile = 2 * (TD_TILE_COLS * 2 + 2 * sizeof(float)) + TD_TILE_COLS * sizeof(float);

    return kind == TD_ON_CPU
               ? 0
               : n * ceil_div(n_cols, TD_TILE_COLS) * tile + TD_CUDA_PARTIAL_BYTES +
                     TD_CUDA_SPLIT_BYTES + (n >= TD_CUDA_LIB_TOKENS ? TD_CUDA_UNPACKED_BYTES : 0);
}
