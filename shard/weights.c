#include "shard/weights.h"

#include "kernels/quant/dequant.h"
#include "shard/int4.h"

#include <stdlib.h>
#include <string.h>

/* Source bytes packed between two reports of progress, so that mapped pages never pile up. */
static const size_t PACK_BYTES = (size_t)8 << 20;

struct loader {
    struct td_weights *w;
    const struct td_checkpoint *ck;
    const struct td_plan_model *model;
    size_t done, total;
    float *next_norm;
    td_weights_progress_fn *progress;
    void *user;
    struct td_err *err;
};

/* Rows [row0, row0 + n_rows) and columns [col0, col0 + n_cols) of a weight, with the leaves of its columns. */
struct slice {
    enum td_role role;
    uint32_t layer;
    uint32_t row0, n_rows;
    uint32_t col0, n_cols;
    struct td_plan_leaves leaves; /* of the whole matrix's columns */
    struct td_leaf_run run;       /* those of the slice */
};

static void shape_of(const struct slice *s, enum td_dtype dtype, struct td_matrix_shape *shape,
                     uint32_t leaf_end[TD_PLAN_MAX_LEAVES])
{
    struct td_leaf_run parts[TD_TREE_MAX_PARTS];

    *shape = (struct td_matrix_shape){
        .dtype = dtype, .n_rows = s->n_rows, .n_cols = s->n_cols, .leaf_end = leaf_end};
    shape->n_leaves = s->run.end - s->run.begin;
    for (uint32_t i = 0; i < shape->n_leaves; i++) {
        uint32_t end = (s->run.begin + i + 1) * s->leaves.leaf_cols;

        leaf_end[i] = (end < s->leaves.n_cols ? end : s->leaves.n_cols) - s->col0;
    }
    shape->n_parts = td_tree_parts(s->leaves.n_leaves, s->run, parts);
    for (uint32_t i = 0; i < shape->n_parts; i++)
        shape->part_begin[i + 1] = parts[i].end - s->run.begin;
}

static void report(struct loader *l, size_t bytes)
{
    l->done += bytes;
    if (l->progress)
        l->progress(l->done, l->total, l->user);
}

/* Rows that are made before they are packed (int4.h), in pieces for the device's host threads. */
struct making {
    const struct td_int4 *from;
    const struct slice *s;
    uint32_t row0, n_rows;
    size_t row_bytes;
    uint8_t *out;
};

enum { PIECE_ROWS = 32 };

static void make_piece(void *arg, uint32_t i)
{
    const struct making *m = arg;
    uint32_t first = i * PIECE_ROWS, left = m->n_rows - first;

    td_int4_rows(m->from, m->row0 + first, left < PIECE_ROWS ? left : PIECE_ROWS, m->s->col0,
                 m->s->n_cols, m->out + first * m->row_bytes);
}

/* The rows of a slice in a matrix that is open. `step` rows go at once. */
static enum td_status make_matrix(struct loader *l, const struct slice *s, struct td_matrix *out)
{
    const struct td_int4 *from = td_checkpoint_int4(l->ck, s->role, s->layer);
    struct making m = {
        .from = from, .s = s, .row_bytes = td_dtype_row_bytes(td_int4_type(from), s->n_cols)};
    uint32_t step = (uint32_t)(PACK_BYTES / (m.row_bytes * 32) + 1) * 32;
    enum td_status st = td_int4_check_scales(from, s->row0, s->n_rows, l->err);
    char name[128];

    if (st) {
        td_err_context(l->err, "'%s'",
                       td_checkpoint_weight_name(l->ck, s->role, s->layer, name, sizeof name));
        return st;
    }
    step = step < s->n_rows ? step : s->n_rows;
    m.out = malloc(step * m.row_bytes);
    if (!m.out)
        return td_err_set(l->err, TD_NO_MEMORY, "no memory for %u rows of %zu bytes", step,
                          m.row_bytes);
    for (uint32_t r = 0; r < s->n_rows && !st; r += step) {
        m.row0 = s->row0 + r;
        m.n_rows = s->n_rows - r < step ? s->n_rows - r : step;
        td_kern_run(l->w->kern, (m.n_rows + PIECE_ROWS - 1) / PIECE_ROWS, make_piece, &m);
        st = td_kern_matrix_pack(l->w->kern, out, r, m.n_rows, m.out, m.row_bytes, NULL, l->err);
        report(l, m.n_rows * m.row_bytes);
    }
    td_checkpoint_release(l->ck, from->words, (size_t)from->n_rows * from->n_cols / 2);
    free(m.out);
    return st;
}

static enum td_status load_matrix(struct loader *l, const struct slice *s, struct td_matrix **out)
{
    struct td_tensor t;
    struct td_matrix_shape shape;
    uint32_t leaf_end[TD_PLAN_MAX_LEAVES], step;
    size_t stride, col_offset;
    float *scales = NULL; /* of the rows packed in one go */
    enum td_status st;

    if (s->n_rows == 0 || s->n_cols == 0)
        return TD_OK;
    st = td_checkpoint_weight(l->ck, s->role, s->layer, &t, l->err);
    if (st)
        return st;
    shape_of(s, t.dtype, &shape, leaf_end);
    st = td_kern_matrix_open(l->w->kern, &shape, out, l->err);
    if (st)
        return st;
    if (!t.data)
        return make_matrix(l, s, *out);
    stride = td_dtype_row_bytes(t.dtype, t.dim[1]);
    col_offset = td_dtype_row_bytes(t.dtype, s->col0);
    step = (uint32_t)(PACK_BYTES / (stride * 32) + 1) * 32;
    step = step < s->n_rows ? step : s->n_rows;
    if (t.dtype == TD_F8_E4M3) {
        scales = malloc((size_t)step * ((s->n_cols + 127) / 128) * sizeof *scales);
        if (!scales)
            return td_err_set(l->err, TD_NO_MEMORY, "no memory for the scales of %u rows", step);
    }
    for (uint32_t r = 0; r < s->n_rows; r += step) {
        uint32_t n = s->n_rows - r < step ? s->n_rows - r : step;
        const uint8_t *src = (const uint8_t *)t.data + (size_t)(s->row0 + r) * stride;

        if (scales)
            st = td_checkpoint_scales(l->ck, s->role, s->layer, s->row0 + r, n, s->col0, s->n_cols,
                                      scales, l->err);
        st = st ? st
                : td_kern_matrix_pack(l->w->kern, *out, r, n, src + col_offset, stride, scales,
                                      l->err);
        if (st)
            break;
        td_checkpoint_release(l->ck, src, n * stride);
        report(l, n * td_dtype_held_bytes(t.dtype, s->n_cols));
    }
    free(scales);
    return st;
}

static enum td_status load_norm(struct loader *l, enum td_role role, uint32_t layer, size_t n,
                                float **out)
{
    struct td_tensor t;
    float *norm;
    enum td_status s = td_checkpoint_weight(l->ck, role, layer, &t, l->err);

    if (s)
        return s;
    norm = malloc(n * sizeof *norm);
    if (!norm)
        return td_err_set(l->err, TD_NO_MEMORY, "no memory for a norm of %zu weights", n);
    *out = l->next_norm;
    l->next_norm += n;
    td_dequant_row(t.dtype, t.data, norm, n);
    td_kern_copy(l->w->kern, *out, norm, n * sizeof *norm);
    free(norm);
    l->done += n * sizeof(float);
    return TD_OK;
}

static enum td_status load_layer(struct loader *l, uint32_t layer, struct td_layer_weights *w)
{
    const struct td_spec *spec = l->model->spec;
    const struct td_plan_layer_types *types = &l->model->layer[layer];
    const struct td_plan_slice *p = &w->slice;
    uint32_t d = spec->d_model, hd = spec->head_dim;
    uint32_t q0 = p->head_begin * hd, nq = (p->head_end - p->head_begin) * hd;
    uint32_t kv0 = p->kv_begin * hd, nkv = (p->kv_end - p->kv_begin) * hd;
    uint32_t nff = p->ff_end - p->ff_begin;
    /* Columns that nobody splits: every leaf, one part. */
    const struct {
        enum td_role role;
        enum td_dtype type;
        uint32_t row0, n_rows;
        struct td_matrix **out;
    } by_rows[] = {
        {TD_ROLE_Q, types->q, q0, nq, &w->q},
        {TD_ROLE_K, types->k, kv0, nkv, &w->k},
        {TD_ROLE_V, types->v, kv0, nkv, &w->v},
        {TD_ROLE_GATE, types->gate, p->ff_begin, nff, &w->gate},
        {TD_ROLE_UP, types->up, p->ff_begin, nff, &w->up},
    };
    struct slice o = {TD_ROLE_O,  layer, 0, d, q0, nq, td_plan_attn_leaves(l->model, layer),
                      p->attn_run};
    struct slice down = {
        TD_ROLE_DOWN, layer, 0, d, p->ff_begin, nff, td_plan_ffn_leaves(l->model, layer),
        p->ffn_run};
    enum td_status s = load_norm(l, TD_ROLE_ATTN_NORM, layer, d, &w->attn_norm);

    s = s ? s : load_norm(l, TD_ROLE_FFN_NORM, layer, d, &w->ffn_norm);
    if (!s && spec->qk_norm) {
        s = load_norm(l, TD_ROLE_Q_NORM, layer, hd, &w->q_norm);
        s = s ? s : load_norm(l, TD_ROLE_K_NORM, layer, hd, &w->k_norm);
    }
    for (size_t i = 0; !s && i < sizeof by_rows / sizeof by_rows[0]; i++) {
        struct td_plan_leaves leaves =
            td_plan_cut(d, (uint32_t)td_dtype_info(by_rows[i].type)->sum_cols);
        struct slice slice = {
            by_rows[i].role,     layer, by_rows[i].row0, by_rows[i].n_rows, 0, d, leaves,
            {0, leaves.n_leaves}};

        s = load_matrix(l, &slice, by_rows[i].out);
    }
    s = s ? s : load_matrix(l, &o, &w->o);
    return s ? s : load_matrix(l, &down, &w->down);
}

static enum td_status load_vocab(struct loader *l, const struct td_plan_rank *r)
{
    const struct td_spec *spec = l->model->spec;
    uint32_t d = spec->d_model, n = r->vocab_end - r->vocab_begin;
    struct td_plan_leaves embed =
        td_plan_cut(d, (uint32_t)td_dtype_info(l->model->embed)->sum_cols);
    struct td_plan_leaves head = td_plan_cut(d, (uint32_t)td_dtype_info(l->model->head)->sum_cols);
    struct slice e = {TD_ROLE_EMBED, 0, r->vocab_begin, n, 0, d, embed, {0, embed.n_leaves}};
    struct slice h = {TD_ROLE_HEAD, 0, r->vocab_begin, n, 0, d, head, {0, head.n_leaves}};
    enum td_status s = load_norm(l, TD_ROLE_FINAL_NORM, 0, d, &l->w->final_norm);

    s = s ? s : load_matrix(l, &e, &l->w->embed);
    if (s)
        return s;
    if (spec->tied_head) {
        l->w->head = l->w->embed;
        return TD_OK;
    }
    return load_matrix(l, &h, &l->w->head);
}

enum td_status td_weights_load(struct td_weights *w, struct td_kern *kern,
                               const struct td_checkpoint *ck, const struct td_plan *plan,
                               const struct td_plan_model *model, uint32_t rank,
                               td_weights_progress_fn *progress, void *user, struct td_err *err)
{
    const struct td_plan_rank *r = &plan->rank[rank];
    const struct td_spec *spec = model->spec;
    struct loader l = {.w = w,
                       .ck = ck,
                       .model = model,
                       .total = r->weight_bytes,
                       .progress = progress,
                       .user = user,
                       .err = err};
    size_t n_norm =
        (r->stage == 0 ? spec->d_model : 0) +
        (size_t)(r->layer_end - r->layer_begin) *
            (2 * (size_t)spec->d_model + (spec->qk_norm ? 2 * (size_t)spec->head_dim : 0));
    enum td_status s = TD_OK;

    *w = (struct td_weights){.kern = kern,
                             .layer_begin = r->layer_begin,
                             .n_layers = r->layer_end - r->layer_begin,
                             .norm_bytes = n_norm * sizeof(float)};
    w->layer = calloc(w->n_layers, sizeof *w->layer);
    w->norms = td_kern_alloc(kern, w->norm_bytes);
    if (!w->layer || !w->norms) {
        s = td_err_set(err, TD_NO_MEMORY, "no memory for the norms of %u layers", w->n_layers);
        goto fail;
    }
    l.next_norm = w->norms;
    for (uint32_t i = 0; i < w->n_layers; i++) {
        w->layer[i].slice = td_plan_slice(plan, model, rank, r->layer_begin + i);
        s = load_layer(&l, r->layer_begin + i, &w->layer[i]);
        if (s) {
            td_err_context(err, "load layer %u of '%s'", r->layer_begin + i, model->name);
            goto fail;
        }
    }
    if (r->stage == 0)
        s = load_vocab(&l, r);
    if (s)
        goto fail;
    return TD_OK;

fail:
    td_weights_unload(w);
    return s;
}

void td_weights_unload(struct td_weights *w)
{
    for (uint32_t i = 0; w->layer && i < w->n_layers; i++) {
        struct td_layer_weights *l = &w->layer[i];
        struct td_matrix *const all[] = {l->down, l->up, l->gate, l->o, l->v, l->k, l->q};

        for (size_t m = 0; m < sizeof all / sizeof all[0]; m++)
            td_kern_matrix_close(w->kern, all[m]);
    }
    if (w->head != w->embed)
        td_kern_matrix_close(w->kern, w->head);
    td_kern_matrix_close(w->kern, w->embed);
    td_kern_free(w->kern, w->norms, w->norm_bytes);
    free(w->layer);
    memset(w, 0, sizeof *w);
}

size_t td_weights_bytes(const struct td_weights *w)
{
    return w->kern ? td_kern_weight_bytes(w->kern) + w->norm_bytes : 0;
}
