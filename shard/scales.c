#include "shard/scales.h"

#include "kernels/quant/dequant.h"

#include <math.h>
#include <stdio.h>

static size_t blocks_of(size_t n)
{
    return (n + TD_SCALES_BLOCK - 1) / TD_SCALES_BLOCK;
}

/* Rows and columns of the scales as a matrix; a vector is a column. */
static void grid_of(const struct td_tensor *scale, size_t *rows, size_t *cols)
{
    *rows = scale->n_dims > 0 ? scale->dim[0] : 1;
    *cols = scale->n_dims > 1 ? scale->dim[1] : 1;
}

enum td_status td_scales_check(const struct td_tensor *weight, const struct td_tensor *scale,
                               const char *name, struct td_err *err)
{
    size_t rows = weight->dim[0], cols = weight->dim[1], r, c;
    bool float_type = scale->dtype == TD_F32 || scale->dtype == TD_BF16 || scale->dtype == TD_F16;

    grid_of(scale, &r, &c);
    if (!float_type)
        return td_err_set(err, TD_UNSUPPORTED, "scale '%s' has type %s; expected F32, BF16 or F16",
                          name, td_dtype_info(scale->dtype)->name);
    if (scale->n_dims <= 2 &&
        ((c == 1 && (r == 1 || r == rows)) ||
         (scale->n_dims == 2 && r == blocks_of(rows) && c == blocks_of(cols))))
        return TD_OK;
    return td_err_set(err, TD_CORRUPT,
                      "scale '%s' is %d-dimensional, %zu x %zu; its weight of %zu x %zu takes one "
                      "number, %zu rows of one, or %zu x %zu for blocks of 128 x 128",
                      name, scale->n_dims, r, c, rows, cols, rows, blocks_of(rows),
                      blocks_of(cols));
}

enum td_status td_scales_spread(const struct td_tensor *weight, const struct td_tensor *scale,
                                uint32_t row0, uint32_t n_rows, uint32_t col0, uint32_t n_cols,
                                float *out, struct td_err *err)
{
    size_t width = td_dtype_row_bytes(scale->dtype, 1), n = blocks_of(n_cols), rows, cols;

    grid_of(scale, &rows, &cols);
    for (size_t i = 0; i < n_rows; i++) {
        /* With as many scales as rows each row has its own; else the rows share them by 128, or all. */
        size_t row = rows == 1                ? 0
                     : rows == weight->dim[0] ? row0 + i
                                              : (row0 + i) / TD_SCALES_BLOCK;

        for (size_t k = 0; k < n; k++) {
            size_t col = cols == 1 ? 0 : col0 / TD_SCALES_BLOCK + k;
            const char *at = (const char *)scale->data + (row * cols + col) * width;
            float value;

            td_dequant_row(scale->dtype, at, &value, 1);
            if (!isfinite(value))
                return td_err_set(err, TD_CORRUPT,
                                  "FP8 scale %zu, %zu is %g; expected a finite number", row, col,
                                  (double)value);
            out[i * n + k] = value;
        }
    }
    return TD_OK;
}
