#include "shard/convert.h"

#include "kernels/quant/dequant.h"
#include "shard/int4.h"
#include "shard/scales.h"

#include <math.h>
#include <string.h>

/* Rows and columns of a weight; a norm is one row. */
static void shape_of(const struct td_tensor *t, size_t *rows, size_t *cols)
{
    *rows = t->n_dims > 1 ? t->dim[0] : 1;
    *cols = t->n_dims > 1 ? t->dim[1] : t->dim[0];
}

static size_t source_row(const struct td_convert *c, size_t row)
{
    size_t in_head, hd = c->interleave;

    if (hd == 0)
        return row;
    in_head = row % hd;
    return row - in_head + in_head % 2 * (hd / 2) + in_head / 2;
}

static const void *row_at(const struct td_tensor *t, size_t row, size_t cols)
{
    return (const char *)t->data + row * td_dtype_row_bytes(t->dtype, cols);
}

static enum td_status scale_row(const struct td_convert *c, size_t row, size_t cols, float *out,
                                struct td_err *err)
{
    float *scale = out + cols;
    enum td_status st = td_checkpoint_scales(c->ck, c->role, c->layer, (uint32_t)row, 1, 0,
                                             (uint32_t)cols, scale, err);

    for (size_t i = 0; i < cols && !st; i++)
        out[i] *= scale[i / TD_SCALES_BLOCK];
    return st;
}

/* A row that is made piece by piece (int4.h). */
static enum td_status make_row(const struct td_convert *c, size_t row, size_t cols, float *out,
                               struct td_err *err)
{
    enum { PIECE = 256 };
    const struct td_int4 *m = td_checkpoint_int4(c->ck, c->role, c->layer);
    enum td_status st = td_int4_check_scales(m, (uint32_t)row, 1, err);

    for (size_t k = 0; k < cols && !st; k += PIECE) {
        size_t n = cols - k < PIECE ? cols - k : PIECE;
        uint8_t stored[PIECE * 2];

        td_int4_rows(m, (uint32_t)row, 1, (uint32_t)k, (uint32_t)n, stored);
        td_dequant_row(td_int4_type(m), stored, out + k, n);
    }
    return st;
}

enum td_status td_convert_row(const struct td_convert *c, size_t row, float *out,
                              struct td_err *err)
{
    struct td_tensor t;
    enum td_status st = td_checkpoint_weight(c->ck, c->role, c->layer, &t, err);
    size_t rows, cols, src = source_row(c, row);
    char name[128];

    if (st)
        return st;
    shape_of(&t, &rows, &cols);
    if (t.data)
        td_dequant_row(t.dtype, row_at(&t, src, cols), out, cols);
    if (!t.data)
        st = make_row(c, src, cols, out, err);
    else if (t.dtype == TD_F8_E4M3)
        st = scale_row(c, src, cols, out, err);
    if (st)
        return st;
    for (size_t i = 0; i < cols; i++)
        if (!isfinite(out[i]))
            return td_err_set(
                err, TD_UNSUPPORTED,
                "'%s' holds %g in row %zu, column %zu; expected finite weights",
                td_checkpoint_weight_name(c->ck, c->role, c->layer, name, sizeof name),
                (double)out[i], src, i);
    return TD_OK;
}

enum td_status td_convert_rows(const struct td_convert *c, size_t row0, size_t n_rows,
                               float *scratch, void *out, struct td_err *err)
{
    struct td_tensor t;
    enum td_status st = td_checkpoint_weight(c->ck, c->role, c->layer, &t, err);
    size_t rows, cols, row_bytes;
    char *at = out;

    if (st)
        return st;
    shape_of(&t, &rows, &cols);
    row_bytes = td_dtype_row_bytes(c->type, cols);
    for (size_t r = row0; r < row0 + n_rows && !st; r++, at += row_bytes) {
        if (t.data && t.dtype == c->type && c->type != TD_F8_E4M3) {
            memcpy(at, row_at(&t, source_row(c, r), cols), row_bytes);
            continue;
        }
        st = td_convert_row(c, r, scratch, err);
        if (!st)
            td_quant_row(c->type, scratch, at, cols);
    }
    return st;
}
