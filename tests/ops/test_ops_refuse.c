/* What a device refuses, and that it says by name what was asked for. */
#include "tests/ops/ops.h"

#include <string.h>

/* Asserts that `status` is a refusal whose cause has both texts. */
static void assert_refused(enum td_status status, enum td_status expected, const struct td_err *err,
                           const char *a, const char *b)
{
    assert_int_equal(status, expected);
    if (!strstr(err->cause, a) || !strstr(err->cause, b))
        fail_msg("'%s' names not both '%s' and '%s'", err->cause, a, b);
}

static enum td_status open_matrix(struct td_kern *kern, enum td_dtype dtype, uint32_t rows,
                                  uint32_t cols, struct td_matrix **m, struct td_err *err)
{
    const struct td_matrix_shape shape = {.dtype = dtype,
                                          .n_rows = rows,
                                          .n_cols = cols,
                                          .n_leaves = 1,
                                          .leaf_end = &cols,
                                          .n_parts = 1,
                                          .part_begin = {0, 1}};

    return td_kern_matrix_open(kern, &shape, m, err);
}

static void test_ops_refuse_columns_that_a_type_cannot_have_by_its_name(void **state)
{
    struct td_kern *kern = td_ops_open(0, 1);
    struct td_matrix *m;
    struct td_err err;
    char multiple[40];

    (void)state;
    for (int t = 0; t < TD_N_DTYPES; t++) {
        const struct td_dtype_info *info = td_dtype_info((enum td_dtype)t);
        const uint32_t block = (uint32_t)info->block_elems, wrong[] = {1, block - 1, block + 1, 40};

        assert_true(td_kern_supports_matrix(kern, (enum td_dtype)t));
        assert_int_equal(open_matrix(kern, (enum td_dtype)t, 3, block, &m, &err), TD_OK);
        td_kern_matrix_close(kern, m);
        snprintf(multiple, sizeof multiple, "multiple of %u", block);
        for (uint32_t i = 0; block > 1 && i < 4; i++)
            assert_refused(open_matrix(kern, (enum td_dtype)t, 3, wrong[i], &m, &err), TD_INVALID,
                           &err, info->name, multiple);
    }
    assert_refused(open_matrix(kern, TD_F32, 0, 5, &m, &err), TD_INVALID, &err, "0 rows",
                   "5 columns");
    assert_int_equal(td_kern_weight_bytes(kern), 0);
    td_kern_close(kern);
}

static void test_ops_refuse_leaves_and_parts_that_are_no_cut(void **state)
{
    struct td_kern *kern = td_ops_open(0, 1);
    struct td_matrix *m;
    struct td_err err;
    uint32_t ends[TD_KERN_MAX_LEAVES + 1];

    (void)state;
    for (uint32_t i = 0; i <= TD_KERN_MAX_LEAVES; i++)
        ends[i] = 256 * (i + 1);
    for (int t = 0; t < TD_N_DTYPES; t++) {
        const struct td_dtype_info *info = td_dtype_info((enum td_dtype)t);
        uint32_t unit = (uint32_t)info->sum_cols, odd[] = {unit + unit / 2, 512};
        struct td_matrix_shape s = {.dtype = (enum td_dtype)t,
                                    .n_rows = 2,
                                    .n_cols = 512,
                                    .n_leaves = 2,
                                    .leaf_end = odd,
                                    .n_parts = 1,
                                    .part_begin = {0, 2}};

        if (unit > 1) /* a leaf that ends inside a block of the sum */
            assert_refused(td_kern_matrix_open(kern, &s, &m, &err), TD_INVALID, &err, "leaf 0",
                           info->name);
        s.leaf_end = (uint32_t[]){256, 256};
        assert_refused(td_kern_matrix_open(kern, &s, &m, &err), TD_INVALID, &err, "leaf 1", "256");
        s.leaf_end = (uint32_t[]){256, 768};
        assert_refused(td_kern_matrix_open(kern, &s, &m, &err), TD_INVALID, &err, "768", "512");
        s.leaf_end = ends;
        s.part_begin[1] = 1;
        assert_refused(td_kern_matrix_open(kern, &s, &m, &err), TD_INVALID, &err, "parts", "2");
        s.n_parts = 2;
        s.part_begin[1] = 0;
        assert_refused(td_kern_matrix_open(kern, &s, &m, &err), TD_INVALID, &err, "part 0",
                       "empty");
        s.n_leaves = TD_KERN_MAX_LEAVES + 1;
        assert_refused(td_kern_matrix_open(kern, &s, &m, &err), TD_TOO_LARGE, &err, "129", "128");
    }
    td_kern_close(kern);
}

static void test_ops_refuse_scales_and_rows_that_do_not_fit_the_matrix(void **state)
{
    struct td_kern *kern = td_ops_open(0, 1);
    static const uint8_t file[100 * 1024];
    static const float scales[100];
    struct td_err err;

    (void)state;
    for (int t = 0; t < TD_N_DTYPES; t++) {
        const char *name = td_dtype_info((enum td_dtype)t)->name;
        size_t stride = td_dtype_row_bytes((enum td_dtype)t, 256);
        bool has_scales = t == TD_F8_E4M3;
        struct td_matrix *m;

        assert_int_equal(open_matrix(kern, (enum td_dtype)t, 70, 256, &m, &err), TD_OK);
        assert_refused(
            td_kern_matrix_pack(kern, m, 0, 70, file, stride, has_scales ? NULL : scales, &err),
            TD_INVALID, &err, "scales", name);
        assert_refused(
            td_kern_matrix_pack(kern, m, 5, 32, file, stride, has_scales ? scales : NULL, &err),
            TD_INVALID, &err, "5 .. 37", "32");
        assert_refused(
            td_kern_matrix_pack(kern, m, 64, 7, file, stride, has_scales ? scales : NULL, &err),
            TD_INVALID, &err, "64 .. 71", "70");
        td_kern_matrix_close(kern, m);
    }
    td_kern_close(kern);
}

static void test_ops_refuse_steps_whose_matrices_do_not_go_together(void **state)
{
    struct td_kern *kern = td_ops_open(0, 1);
    struct td_matrix *m, *narrow, *low;
    struct td_err err;
    float x[512] = {0}, out[64];
    const struct td_kern_input in = {.x = x};
    struct td_kern_output outs[TD_KERN_MAX_OUTPUTS + 1];

    (void)state;
    assert_int_equal(open_matrix(kern, TD_Q4_0, 4, 512, &m, &err), TD_OK);
    assert_int_equal(open_matrix(kern, TD_F16, 4, 256, &narrow, &err), TD_OK);
    assert_int_equal(open_matrix(kern, TD_Q8_0, 3, 512, &low, &err), TD_OK);
    for (uint32_t i = 0; i <= TD_KERN_MAX_OUTPUTS; i++)
        outs[i] = (struct td_kern_output){.m = m, .out = out};
    assert_refused(td_kern_linear(kern, &in, 1, outs, 0, &err), TD_INVALID, &err, "0 outputs", "8");
    assert_refused(td_kern_linear(kern, &in, 1, outs, TD_KERN_MAX_OUTPUTS + 1, &err), TD_INVALID,
                   &err, "9 outputs", "8");
    outs[1].m = narrow;
    assert_refused(td_kern_linear(kern, &in, 1, outs, 2, &err), TD_INVALID, &err, "256", "512");
    outs[0].gate = low;
    assert_refused(td_kern_linear(kern, &in, 1, outs, 1, &err), TD_INVALID, &err, "4 x 512",
                   "3 x 512");
    td_kern_matrix_close(kern, m);
    td_kern_matrix_close(kern, narrow);
    td_kern_matrix_close(kern, low);
    td_kern_close(kern);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_refuse_columns_that_a_type_cannot_have_by_its_name),
        cmocka_unit_test(test_ops_refuse_leaves_and_parts_that_are_no_cut),
        cmocka_unit_test(test_ops_refuse_scales_and_rows_that_do_not_fit_the_matrix),
        cmocka_unit_test(test_ops_refuse_steps_whose_matrices_do_not_go_together),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
