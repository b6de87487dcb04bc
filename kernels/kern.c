#include "kernels/kern.h"

#include "kernels/kern_ops.h"

#include <float.h>

void td_kern_close(struct td_kern *kern)
{
    if (kern)
        kern->ops->close(kern);
}

const char *td_kern_name(const struct td_kern *kern)
{
    return kern->name;
}

const char *td_kern_numerics(const struct td_kern *kern)
{
    return kern->numerics;
}

bool td_kern_supports_matrix(const struct td_kern *kern, enum td_dtype type)
{
    return kern->ops->supports_matrix(kern, type);
}

bool td_kern_supports_kv(const struct td_kern *kern, enum td_dtype type)
{
    return kern->ops->supports_kv(kern, type);
}

bool td_kern_is_host(const struct td_kern *kern)
{
    return kern->is_host;
}

const char *td_kern_bus_id(const struct td_kern *kern)
{
    return kern->bus_id;
}

void *td_kern_stream(const struct td_kern *kern)
{
    return kern->stream;
}

void *td_kern_alloc(struct td_kern *kern, size_t bytes)
{
    return kern->ops->alloc(kern, bytes);
}

void td_kern_free(struct td_kern *kern, void *ptr, size_t bytes)
{
    if (!ptr)
        return;
    kern->ops->release(kern, ptr, bytes);
}

void *td_kern_alloc_shared(struct td_kern *kern, size_t bytes)
{
    return kern->ops->alloc_shared(kern, bytes);
}

void td_kern_free_shared(struct td_kern *kern, void *ptr, size_t bytes)
{
    if (ptr)
        kern->ops->release_shared(kern, ptr, bytes);
}

void td_kern_copy(struct td_kern *kern, void *to, const void *from, size_t bytes)
{
    if (bytes)
        kern->ops->copy(kern, to, from, bytes);
}

void td_kern_copy_rows(struct td_kern *kern, void *to, size_t to_step, const void *from,
                       size_t from_step, uint32_t n, size_t bytes)
{
    if (n && bytes)
        kern->ops->copy_rows(kern, to, to_step, from, from_step, n, bytes);
}

size_t td_kern_free_bytes(struct td_kern *kern)
{
    return kern->ops->free_bytes ? kern->ops->free_bytes(kern) : 0;
}

size_t td_kern_weight_bytes(const struct td_kern *kern)
{
    return kern->weight_bytes;
}

void td_kern_run(struct td_kern *kern, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    if (n)
        kern->ops->run(kern, n, task, arg);
}

bool td_kern_replay(struct td_kern *kern, uint64_t key)
{
    return kern->ops->replay && kern->ops->replay(kern, key);
}

void td_kern_record(struct td_kern *kern, uint64_t key)
{
    if (kern->ops->record)
        kern->ops->record(kern, key);
}

void td_kern_record_end(struct td_kern *kern, bool keep)
{
    if (kern->ops->record_end)
        kern->ops->record_end(kern, keep);
}

void td_kern_forget(struct td_kern *kern)
{
    if (kern->ops->forget)
        kern->ops->forget(kern);
}

enum td_status td_kern_sync(struct td_kern *kern, struct td_err *err)
{
    return kern->ops->sync(kern, err);
}

static enum td_status check_shape(const struct td_kern *kern, const struct td_matrix_shape *s,
                                  struct td_err *err)
{
    uint32_t unit = (uint32_t)td_dtype_info(s->dtype)->sum_cols;
    uint32_t before = 0;

    if (!td_kern_supports_matrix(kern, s->dtype))
        return td_err_set(err, TD_UNSUPPORTED, "%s has no matrices of type %s", kern->name,
                          td_dtype_info(s->dtype)->name);
    if (s->n_rows == 0 || s->n_cols == 0 || s->n_leaves == 0 || s->n_parts == 0 ||
        s->n_parts > TD_KERN_MAX_PARTS)
        return td_err_set(err, TD_INVALID,
                          "matrix of %u rows, %u columns, %u leaves, %u parts: none may be 0",
                          s->n_rows, s->n_cols, s->n_leaves, s->n_parts);
    if (s->n_leaves > TD_KERN_MAX_LEAVES)
        return td_err_set(err, TD_TOO_LARGE, "matrix of %u leaves: expected at most %d",
                          s->n_leaves, TD_KERN_MAX_LEAVES);
    for (uint32_t i = 0; i < s->n_leaves; i++) {
        if (s->leaf_end[i] <= before || (s->leaf_end[i] % unit && i + 1 < s->n_leaves))
            return td_err_set(err, TD_INVALID,
                              "leaf %u of a matrix of type %s ends at column %u: expected a "
                              "multiple of %u past %u",
                              i, td_dtype_info(s->dtype)->name, s->leaf_end[i], unit, before);
        before = s->leaf_end[i];
    }
    if (td_dtype_row_bytes(s->dtype, s->n_cols) == 0)
        return td_err_set(err, TD_INVALID, "%u columns of type %s: expected a multiple of %zu",
                          s->n_cols, td_dtype_info(s->dtype)->name,
                          td_dtype_info(s->dtype)->block_elems);
    if (before != s->n_cols)
        return td_err_set(err, TD_INVALID, "leaves end at column %u of %u", before, s->n_cols);
    for (uint32_t i = 0; i < s->n_parts; i++)
        if (s->part_begin[i] >= s->part_begin[i + 1])
            return td_err_set(err, TD_INVALID, "part %u is empty", i);
    if (s->part_begin[0] != 0 || s->part_begin[s->n_parts] != s->n_leaves)
        return td_err_set(err, TD_INVALID, "parts do not cover the %u leaves", s->n_leaves);
    return TD_OK;
}

enum td_status td_kern_matrix_open(struct td_kern *kern, const struct td_matrix_shape *shape,
                                   struct td_matrix **m, struct td_err *err)
{
    enum td_status s = check_shape(kern, shape, err);

    if (s)
        return s;
    s = kern->ops->matrix_open(kern, shape, m, err);
    if (s)
        return s;
    kern->weight_bytes += (*m)->bytes;
    return TD_OK;
}

void td_kern_matrix_close(struct td_kern *kern, struct td_matrix *m)
{
    if (!m)
        return;
    kern->weight_bytes -= m->bytes;
    kern->ops->matrix_close(kern, m);
}

enum td_status td_kern_matrix_pack(struct td_kern *kern, struct td_matrix *m, uint32_t row0,
                                   uint32_t n_rows, const void *src, size_t stride_bytes,
                                   const float *scales, struct td_err *err)
{
    if (row0 % 32 || n_rows == 0 || row0 > m->n_rows || n_rows > m->n_rows - row0 ||
        (n_rows % 32 && row0 + n_rows != m->n_rows))
        return td_err_set(err, TD_INVALID, "rows %u .. %u of %u: expected whole groups of 32", row0,
                          row0 + n_rows, m->n_rows);
    if ((m->dtype == TD_F8_E4M3) != (scales != NULL))
        return td_err_set(err, TD_INVALID, "scales %s with a matrix of type %s",
                          scales ? "came" : "did not come", td_dtype_info(m->dtype)->name);
    kern->ops->matrix_pack(kern, m, row0, n_rows, src, stride_bytes, scales);
    return TD_OK;
}

size_t td_kern_matrix_bytes(const struct td_matrix *m)
{
    return m->bytes;
}

static enum td_status check_outputs(const struct td_kern_output *outs, uint32_t n_outs,
                                    struct td_err *err)
{
    if (n_outs == 0 || n_outs > TD_KERN_MAX_OUTPUTS)
        return td_err_set(err, TD_INVALID, "a linear step of %u outputs: expected 1 to %d", n_outs,
                          TD_KERN_MAX_OUTPUTS);
    for (uint32_t i = 0; i < n_outs; i++) {
        const struct td_matrix *m = outs[i].m, *gate = outs[i].gate;

        if (m->n_cols != outs[0].m->n_cols)
            return td_err_set(err, TD_INVALID, "output %u reads %u columns, the first %u", i,
                              m->n_cols, outs[0].m->n_cols);
        if (gate && (gate->n_cols != m->n_cols || gate->n_rows != m->n_rows || gate->n_parts != 1 ||
                     m->n_parts != 1))
            return td_err_set(err, TD_INVALID,
                              "output %u of %u x %u in %u parts has a gate of %u x %u in %u: "
                              "expected the same shape and one part",
                              i, m->n_rows, m->n_cols, m->n_parts, gate->n_rows, gate->n_cols,
                              gate->n_parts);
    }
    return TD_OK;
}

enum td_status td_kern_linear(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                              const struct td_kern_output *outs, uint32_t n_outs,
                              struct td_err *err)
{
    enum td_status s = check_outputs(outs, n_outs, err);

    if (s || n == 0)
        return s;
    return kern->ops->linear(kern, in, n, outs, n_outs, err);
}

enum td_status td_kern_matmul(struct td_kern *kern, const struct td_matrix *m, const float *x,
                              uint32_t n, float *out, struct td_err *err)
{
    const struct td_kern_input in = {.x = (float *)(uintptr_t)x}; /* read only: nothing is added */
    const struct td_kern_output to = {.m = m, .out = out};

    return td_kern_linear(kern, &in, n, &to, 1, err);
}

enum td_status td_kern_rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids,
                            uint32_t n, float *out, struct td_err *err)
{
    for (uint32_t i = 0; kern->is_host && i < n; i++)
        if (ids[i] >= m->n_rows)
            return td_err_set(err, TD_INVALID, "row %u of a matrix of %u rows", ids[i], m->n_rows);
    kern->ops->rows(kern, m, ids, n, out);
    return TD_OK;
}

enum td_status td_kern_gather(struct td_kern *kern, const float *x, const uint32_t *rows,
                              uint32_t n, uint32_t dim, float *out, struct td_err *err)
{
    (void)err;
    if (n)
        kern->ops->gather(kern, x, rows, n, dim, out);
    return TD_OK;
}

enum td_status td_kern_rmsnorm(struct td_kern *kern, const float *x, const float *weight,
                               uint32_t n, uint32_t dim, float eps, float *out, struct td_err *err)
{
    if (dim == 0)
        return td_err_set(err, TD_INVALID, "rmsnorm over 0 elements");
    kern->ops->rmsnorm(kern, x, weight, n, dim, eps, out);
    return TD_OK;
}

enum td_status td_kern_silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n,
                                float *out, struct td_err *err)
{
    (void)err;
    kern->ops->silu_mul(kern, gate, up, n, out);
    return TD_OK;
}

enum td_status td_kern_add(struct td_kern *kern, float *x, const float *y, size_t n,
                           struct td_err *err)
{
    (void)err;
    kern->ops->add(kern, x, y, n);
    return TD_OK;
}

bool td_kern_draws(const struct td_kern *kern, uint32_t width)
{
    return kern->ops->draw && width <= TD_DRAW_MAX_WIDTH;
}

enum td_status td_kern_draw(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                            const struct td_draw *draws, uint32_t *ids, struct td_err *err)
{
    if (!td_kern_draws(kern, width))
        return td_err_set(err, TD_UNSUPPORTED, "%s draws no tokens from rows of %u logits",
                          kern->name, width);
    for (uint32_t i = 0; i < n; i++)
        if (!td_draw_is_valid(&draws[i]))
            return td_err_set(
                err, TD_INVALID, "a draw at 1 / %g with top_p %g, min_p %g and a uniform number %g",
                draws[i].inv_t, (double)draws[i].top_p, (double)draws[i].min_p, (double)draws[i].u);
    if (n > 0)
        kern->ops->draw(kern, x, n, width, draws, ids);
    return TD_OK;
}

enum td_status td_kern_measure(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                               const uint32_t *ids, struct td_measure *out, struct td_err *err)
{
    if (!td_kern_draws(kern, width))
        return td_err_set(err, TD_UNSUPPORTED, "%s measures no rows of %u logits", kern->name,
                          width);
    if (n > 0)
        kern->ops->measure(kern, x, n, width, ids, out);
    return TD_OK;
}

enum td_status td_kern_top(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                           uint32_t n_top, struct td_top *out, struct td_err *err)
{
    if (n_top == 0 || n_top > TD_TOP_MAX)
        return td_err_set(err, TD_INVALID, "the %u largest of a row: expected 1 to %d", n_top,
                          TD_TOP_MAX);
    if (n)
        kern->ops->top(kern, x, n, width, n_top, out);
    return TD_OK;
}

static enum td_status check_head_dim(uint32_t dim, struct td_err *err)
{
    if (dim == 0 || dim % 2 || dim > TD_KERN_MAX_HEAD_DIM)
        return td_err_set(err, TD_UNSUPPORTED,
                          "head dimension %u: expected an even number up to %d", dim,
                          TD_KERN_MAX_HEAD_DIM);
    return TD_OK;
}

enum td_status td_kern_rope_angles(struct td_kern *kern, const double *freq, uint32_t dim,
                                   double scale, bool interleaved, const uint32_t *positions,
                                   uint32_t n, float *angles, struct td_err *err)
{
    enum td_status s = check_head_dim(dim, err);

    if (s)
        return s;
    kern->ops->rope_angles(kern, freq, dim, scale, interleaved, positions, n, angles);
    return TD_OK;
}

size_t td_kern_kv_block_bytes(const struct td_kv_view *kv)
{
    return (size_t)kv->n_kv_heads * kv->block_tokens * 2 *
           td_dtype_row_bytes(kv->dtype, kv->head_dim);
}

size_t td_kern_kv_bytes(const struct td_kv_view *kv)
{
    return kv->n_blocks * td_kern_kv_block_bytes(kv);
}

static enum td_status check_kv(const struct td_kern *kern, const struct td_kv_view *kv,
                               const struct td_kv_rows *rows, uint32_t n, struct td_err *err)
{
    enum td_status s = check_head_dim(kv->head_dim, err);

    if (s)
        return s;
    if (!td_kern_supports_kv(kern, kv->dtype))
        return td_err_set(err, TD_UNSUPPORTED, "%s has no KV cache of type %s", kern->name,
                          td_dtype_info(kv->dtype)->name);
    if (td_dtype_row_bytes(kv->dtype, kv->head_dim) == 0)
        return td_err_set(
            err, TD_UNSUPPORTED,
            "KV cache of type %s with heads of %u dimensions: expected a multiple of %zu",
            td_dtype_info(kv->dtype)->name, kv->head_dim, td_dtype_info(kv->dtype)->block_elems);
    if (kv->block_tokens == 0 || TD_KERN_CHUNK_KEYS % kv->block_tokens)
        return td_err_set(err, TD_INVALID, "KV blocks of %u tokens: expected a divisor of %d",
                          kv->block_tokens, TD_KERN_CHUNK_KEYS);
    for (uint32_t i = 0; kern->is_host && i < n; i++) {
        uint32_t block = rows->table[rows->first_block[i] + rows->positions[i] / kv->block_tokens];

        if (block >= kv->n_blocks)
            return td_err_set(err, TD_INVALID, "row %u lies in KV block %u of %u", i, block,
                              kv->n_blocks);
    }
    return TD_OK;
}

enum td_status td_kern_rope_kv(struct td_kern *kern, const struct td_kv_view *kv,
                               const struct td_kv_rows *rows, uint32_t n,
                               const struct td_rope_kv *in, struct td_err *err)
{
    enum td_status s = check_kv(kern, kv, rows, n, err);

    if (s || n == 0)
        return s;
    kern->ops->rope_kv(kern, kv, rows, n, in);
    return TD_OK;
}

enum td_status td_kern_attention(struct td_kern *kern, const struct td_kv_view *kv,
                                 const struct td_kv_rows *rows, uint32_t n,
                                 const struct td_attention *how, struct td_err *err)
{
    enum td_status s = check_kv(kern, kv, rows, n, err);

    if (s)
        return s;
    for (uint32_t h = 0; h < how->n_heads; h++)
        if (how->kv_of_head[h] >= kv->n_kv_heads)
            return td_err_set(err, TD_INVALID, "head %u uses KV head %u of %u", h,
                              how->kv_of_head[h], kv->n_kv_heads);
    if (!(how->softcap >= 0.0f && how->softcap <= FLT_MAX))
        return td_err_set(err, TD_INVALID, "scores are capped at %g; expected a positive number",
                          (double)how->softcap);
    if (n == 0 || how->n_heads == 0)
        return TD_OK;
    return kern->ops->attention(kern, kv, rows, n, how, err);
}

static enum td_status check_block(const struct td_kv_view *kv, uint32_t block, struct td_err *err)
{
    if (block >= kv->n_blocks)
        return td_err_set(err, TD_INVALID, "KV block %u of %u", block, kv->n_blocks);
    return TD_OK;
}

enum td_status td_kern_kv_save(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                               void *bytes, struct td_err *err)
{
    enum td_status s = check_block(kv, block, err);

    if (!s && kv->n_kv_heads)
        kern->ops->kv_save(kern, kv, block, bytes);
    return s;
}

enum td_status td_kern_kv_restore(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                                  const void *bytes, struct td_err *err)
{
    enum td_status s = check_block(kv, block, err);

    if (!s && kv->n_kv_heads)
        kern->ops->kv_restore(kern, kv, block, bytes);
    return s;
}
