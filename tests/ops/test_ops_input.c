/* What a linear step does beside its product: rows gathered, a residual, a norm, a gate, several outputs. The bits are those of
 * the operations one after the other, and hostile rows stay by themselves. */
#include "tests/ops/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GATHER = 1, ADD = 2, NORM = 4, MODES = 8, MAX_OUTS = 4 };

static const float EPS = 1e-5f;

/* Rows of a step, and what they become. */
struct input {
    uint32_t n, n_x, cols;
    int mode;
    float *x; /* [n_x x cols] */
    uint32_t *rows;
    float *add, *norm;
    float *sum;  /* [n x cols] the rows with `add` */
    float *read; /* [n x cols] what the products read */
};

static void input_init(struct input *in, struct td_kern *kern, uint32_t n, uint32_t cols, int mode)
{
    struct td_err err;
    size_t row_bytes = cols * sizeof(float);

    *in = (struct input){.n = n, .n_x = n + 5, .cols = cols, .mode = mode};
    in->x = td_ops_activations((size_t)in->n_x * cols);
    in->add = td_ops_activations((size_t)n * cols);
    in->norm = td_ops_activations(cols);
    in->rows = malloc(n * sizeof *in->rows);
    in->sum = malloc(n * row_bytes);
    in->read = malloc(n * row_bytes);
    for (uint32_t i = 0; i < n; i++) /* backwards, so that no row is at its own place */
        in->rows[i] = in->n_x - 1 - i;
    for (uint32_t i = 0; i < n; i++)
        memcpy(in->sum + (size_t)i * cols, in->x + (size_t)(mode & GATHER ? in->rows[i] : i) * cols,
               row_bytes);
    if (mode & ADD)
        assert_int_equal(td_kern_add(kern, in->sum, in->add, (size_t)n * cols, &err), TD_OK);
    memcpy(in->read, in->sum, n * row_bytes);
    if (mode & NORM)
        assert_int_equal(td_kern_rmsnorm(kern, in->sum, in->norm, n, cols, EPS, in->read, &err),
                         TD_OK);
}

static void input_deinit(struct input *in)
{
    free(in->x);
    free(in->rows);
    free(in->add);
    free(in->norm);
    free(in->sum);
    free(in->read);
}

/* One output with the weights behind it. */
struct output {
    struct td_ops_weights w, gate_w;
    struct td_matrix *m, *gate;
    uint32_t parts;
};

static void output_init(struct output *o, struct td_kern *kern, enum td_dtype dtype, uint32_t rows,
                        uint32_t cols, uint32_t parts, const enum td_dtype *gate)
{
    struct td_ops_cut cut = td_ops_cut_random(dtype, cols, 4, parts);

    *o = (struct output){.parts = cut.n_parts};
    td_ops_weights_init(&o->w, dtype, rows, cols);
    o->m = td_ops_pack(kern, &o->w, &cut);
    if (gate) {
        cut = td_ops_cut_random(*gate, cols, 3, 1);
        td_ops_weights_init(&o->gate_w, *gate, rows, cols);
        o->gate = td_ops_pack(kern, &o->gate_w, &cut);
    }
}

static void output_deinit(struct output *o, struct td_kern *kern)
{
    td_kern_matrix_close(kern, o->m);
    td_kern_matrix_close(kern, o->gate);
    td_ops_weights_deinit(&o->w);
    td_ops_weights_deinit(&o->gate_w);
}

static float *new_floats(size_t n)
{
    float *out = malloc(n * sizeof *out);

    memset(out, 0xff, n * sizeof *out);
    return out;
}

/* The result of an output, one operation after the other. */
static float *unfused(struct td_kern *kern, const struct output *o, const struct input *in)
{
    size_t size = (size_t)o->parts * in->n * o->w.rows;
    float *out = new_floats(size), *gate;
    struct td_err err;

    assert_int_equal(td_kern_matmul(kern, o->m, in->read, in->n, out, &err), TD_OK);
    if (o->gate) {
        gate = new_floats(size);
        assert_int_equal(td_kern_matmul(kern, o->gate, in->read, in->n, gate, &err), TD_OK);
        assert_int_equal(td_kern_silu_mul(kern, gate, out, size, out, &err), TD_OK);
        free(gate);
    }
    return out;
}

static void check_step(struct td_kern *kern, struct input *in, const struct output *o,
                       uint32_t n_outs)
{
    struct td_kern_input step = {.x = in->x,
                                 .rows = in->mode & GATHER ? in->rows : NULL,
                                 .add = in->mode & ADD ? in->add : NULL,
                                 .norm = in->mode & NORM ? in->norm : NULL,
                                 .eps = EPS};
    size_t row_bytes = in->cols * sizeof(float), x_floats = (size_t)in->n_x * in->cols;
    float *x = malloc(x_floats * sizeof *x);
    struct td_kern_output outs[MAX_OUTS];
    struct td_err err;

    memcpy(x, in->x, x_floats * sizeof *x); /* what x is to be afterwards */
    for (uint32_t i = 0; i < in->n; i++)
        memcpy(x + (size_t)(in->mode & GATHER ? in->rows[i] : i) * in->cols,
               in->sum + (size_t)i * in->cols, row_bytes);
    for (uint32_t i = 0; i < n_outs; i++)
        outs[i] = (struct td_kern_output){o[i].m, o[i].gate,
                                          new_floats((size_t)o[i].parts * in->n * o[i].w.rows)};
    assert_int_equal(td_kern_linear(kern, &step, in->n, outs, n_outs, &err), TD_OK);
    td_ops_assert_same(in->x, x, x_floats, "x after a step of %s, mode %d\n", td_kern_name(kern),
                       in->mode);
    for (uint32_t i = 0; i < n_outs; i++) {
        float *want = unfused(kern, &o[i], in);

        td_ops_assert_same(outs[i].out, want, (size_t)o[i].parts * in->n * o[i].w.rows,
                           "output %u of %u, %s%s on %s: %u tokens, mode %d\n", i, n_outs,
                           td_dtype_info(o[i].w.dtype)->name, o[i].gate ? " with a gate" : "",
                           td_kern_name(kern), in->n, in->mode);
        free(want);
        free(outs[i].out);
    }
    free(x);
}

/* Types that hold `cols` columns, in turn from `at` on. */
static enum td_dtype type_of(uint32_t cols, uint32_t *at)
{
    enum td_dtype dtype;

    do
        dtype = (enum td_dtype)((*at)++ % TD_N_DTYPES);
    while (td_dtype_row_bytes(dtype, cols) == 0);
    return dtype;
}

static void test_ops_input_fused_is_the_operations_one_after_the_other(void **state)
{
    static const uint32_t n_of[] = {1, 5, 17, 97}, cols_of[] = {256, 131, 96};
    struct td_ops_devices devices;
    uint32_t at = 0;

    (void)state;
    td_ops_seed(3101);
    td_ops_open_all(&devices);
    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++)
        for (uint32_t i = 0; i < 3 * MODES; i++) { /* every mode with every width */
            uint32_t cols = cols_of[i / MODES], n = n_of[(i + i / 4) % 4];
            struct td_kern *kern = devices.kern[isa][i / 2 % 2];
            struct output o[MAX_OUTS];
            struct input in;

            if (!kern)
                continue;
            input_init(&in, kern, n, cols, (int)(i % MODES));
            for (uint32_t k = 0; k < MAX_OUTS; k++) { /* plain, in parts, gated twice */
                enum td_dtype dtype = type_of(cols, &at), gate = dtype;

                if (k == 3) /* of a type of its own */
                    gate = type_of(cols, &at);
                output_init(&o[k], kern, dtype, td_ops_rows[(i + k) % 5], cols, k == 1 ? 3 : 1,
                            k >= 2 ? &gate : NULL);
            }
            check_step(kern, &in, o, MAX_OUTS);
            for (uint32_t k = 0; k < MAX_OUTS; k++)
                output_deinit(&o[k], kern);
            input_deinit(&in);
        }
    td_ops_close_all(&devices);
}

/* Rows that are met twice in one step, as tokens in a batch of embeddings are. */
static void test_ops_input_may_name_a_row_twice(void **state)
{
    enum { COLS = 96, ROWS = 40, N = 19 };
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3102);
    td_ops_open_all(&devices);
    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++) {
        struct td_kern *kern = devices.kern[isa][1];
        uint32_t rows[N];
        struct output o;
        struct td_err err;
        float *x, *all, out[N * ROWS];

        if (!kern)
            continue;
        x = td_ops_activations(4 * COLS);
        all = new_floats(4 * ROWS);
        output_init(&o, kern, TD_Q8_0, ROWS, COLS, 1, NULL);
        for (uint32_t i = 0; i < N; i++)
            rows[i] = i < 4 ? 3 - i : td_ops_below(4);
        assert_int_equal(td_kern_matmul(kern, o.m, x, 4, all, &err), TD_OK);
        assert_int_equal(td_kern_linear(kern, &(struct td_kern_input){.x = x, .rows = rows}, N,
                                        &(struct td_kern_output){.m = o.m, .out = out}, 1, &err),
                         TD_OK);
        for (uint32_t i = 0; i < N; i++)
            td_ops_assert_same(out + i * ROWS, all + rows[i] * ROWS, ROWS, "row %u on %s\n", i,
                               td_kern_name(kern));
        output_deinit(&o, kern);
        free(x);
        free(all);
    }
    td_ops_close_all(&devices);
}

/* ---- hostile rows ---- */

enum { SPECIALS = 8, HOSTILE_ROWS = 4 * (SPECIALS + 2) };

static const float SPECIAL[SPECIALS] = {NAN,     INFINITY, -INFINITY, 1e-45f,
                                        -1e-38f, 3e-37f,   1e-20f,    3e38f};

/* Rows in fours of one kind: a special value everywhere (with the signs of `x` where it is finite), once among ordinary ones,
 * once among zeros, and once in the last column. Then four of zeros, and four ordinary ones. */
static float *hostile_rows(uint32_t cols)
{
    float *x = td_ops_activations((size_t)HOSTILE_ROWS * cols);

    for (uint32_t t = 0; t < 4 * SPECIALS; t++) {
        float *row = x + (size_t)t * cols, s = SPECIAL[t / 4];
        uint32_t place = t % 4 == 3 ? cols - 1 : td_ops_below(cols);

        for (uint32_t k = 0; k < cols; k++)
            if (t % 4 == 0)
                row[k] = isfinite(s) ? copysignf(s, row[k]) : s;
            else if (t % 4 == 2)
                row[k] = 0.0f;
        row[place] = s;
    }
    memset(x + (size_t)4 * SPECIALS * cols, 0, 4 * cols * sizeof *x);
    return x;
}

/* What row t of the products must be, whatever the bits. */
static void check_hostile_row(uint32_t t, const float *out, uint32_t n, bool normed)
{
    for (uint32_t r = 0; r < n; r++) {
        if (t / 4 == 0)
            assert_true(isnan(out[r]));
        else if (t / 4 < 3) /* infinity is not lost on the way */
            assert_true(!isfinite(out[r]));
        else if (t / 4 == SPECIALS)
            assert_true(out[r] == 0.0f);
        else if (t / 4 > SPECIALS || (!normed && t / 4 < SPECIALS - 1))
            assert_true(isfinite(out[r]));
    }
}

static void check_hostile(const struct td_ops_devices *devices, enum td_dtype dtype, bool normed)
{
    const struct td_dtype_info *info = td_dtype_info(dtype);
    uint32_t cols = info->block_elems > 1 ? 512 : dtype == TD_F8_E4M3 ? 130 : 67, rows = 33;
    struct td_ops_cut cut = td_ops_cut_random(dtype, cols, 3, 1);
    float *x = hostile_rows(cols), *norm = td_ops_activations(cols), *ref = NULL;
    struct td_ops_weights w;

    td_ops_weights_init(&w, dtype, rows, cols);
    for (uint32_t isa = 0; isa < TD_OPS_ISAS; isa++) {
        struct td_kern *kern = devices->kern[isa][isa % 2];
        struct td_kern_input in = {.x = x, .norm = normed ? norm : NULL, .eps = EPS};
        float *out, *alone;
        struct td_matrix *m;
        struct td_err err;

        if (!kern)
            continue;
        m = td_ops_pack(kern, &w, &cut);
        out = new_floats((size_t)HOSTILE_ROWS * rows);
        assert_int_equal(td_kern_linear(kern, &in, HOSTILE_ROWS,
                                        &(struct td_kern_output){.m = m, .out = out}, 1, &err),
                         TD_OK);
        alone = new_floats(rows);
        for (uint32_t t = 0; t < HOSTILE_ROWS; t++) {
            in.x = x + (size_t)t * cols;
            assert_int_equal(td_kern_linear(kern, &in, 1,
                                            &(struct td_kern_output){.m = m, .out = alone}, 1,
                                            &err),
                             TD_OK);
            td_ops_assert_same(out + (size_t)t * rows, alone, rows,
                               "%s on %s: row %u among the others and alone\n", info->name,
                               td_kern_name(kern), t);
            check_hostile_row(t, alone, rows, normed);
        }
        if (ref)
            td_ops_assert_same(out, ref, (size_t)HOSTILE_ROWS * rows, "%s on %s%s\n", info->name,
                               td_kern_name(kern), normed ? " after a norm" : "");
        td_kern_matrix_close(kern, m);
        free(alone);
        if (isa == 0)
            ref = out;
        else
            free(out);
    }
    td_ops_weights_deinit(&w);
    free(x);
    free(norm);
    free(ref);
}

static void test_ops_input_hostile_rows_agree_on_every_isa_and_stay_by_themselves(void **state)
{
    struct td_ops_devices devices;

    (void)state;
    td_ops_seed(3103);
    td_ops_open_all(&devices);
    for (int dtype = 0; dtype < TD_N_DTYPES; dtype++) {
        check_hostile(&devices, (enum td_dtype)dtype, false);
        check_hostile(&devices, (enum td_dtype)dtype, true);
    }
    td_ops_close_all(&devices);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_input_fused_is_the_operations_one_after_the_other),
        cmocka_unit_test(test_ops_input_may_name_a_row_twice),
        cmocka_unit_test(test_ops_input_hostile_rows_agree_on_every_isa_and_stay_by_themselves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
