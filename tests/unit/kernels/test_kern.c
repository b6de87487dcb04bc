/* The seam of the CPU backend: what it holds, what it hands out, what it is asked for. Numbers are tests/ops' and
 * test_attention.c's. */
#include "tests/unit/check.h"

#include "kernels/kern.h"

#include <stdlib.h>
#include <string.h>

static struct td_kern *open_kern(uint32_t threads)
{
    struct td_kern_cpu_params params = {.n_threads = threads};
    struct td_kern *kern;

    assert_int_equal(td_kern_cpu_open(&params, &kern, NULL), TD_OK);
    return kern;
}

/* Integers, so that every order of a sum gives the same: columns of each part, rows of the last group, tokens in their place. */
static void test_kern_matmul_puts_every_sum_of_every_part_in_its_place(void **state)
{
    enum { ROWS = 35, COLS = 7, N = 5, PARTS = 2 };
    struct td_kern *kern = open_kern(2);
    uint32_t leaf_end[] = {2, 4, COLS};
    const struct td_matrix_shape shape = {.dtype = TD_F32,
                                          .n_rows = ROWS,
                                          .n_cols = COLS,
                                          .n_leaves = 3,
                                          .leaf_end = leaf_end,
                                          .n_parts = PARTS,
                                          .part_begin = {0, 2, 3}};
    float w[ROWS * COLS], x[N * COLS], out[PARTS * N * ROWS];
    struct td_matrix *m;
    struct td_err err;

    (void)state;
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = (float)(i % 23 - 11);
    for (int i = 0; i < N * COLS; i++)
        x[i] = (float)(i % 13 - 6);
    assert_int_equal(td_kern_matrix_open(kern, &shape, &m, &err), TD_OK);
    assert_int_equal(td_kern_matrix_bytes(m), sizeof w);
    assert_int_equal(td_kern_weight_bytes(kern), sizeof w);
    memset(leaf_end, 0, sizeof leaf_end); /* the shape was borrowed for the call only */
    assert_int_equal(td_kern_matrix_pack(kern, m, 0, ROWS, w, COLS * sizeof *w, NULL, &err), TD_OK);
    assert_int_equal(td_kern_matmul(kern, m, x, N, out, &err), TD_OK);
    assert_int_equal(td_kern_sync(kern, &err), TD_OK);
    for (int part = 0; part < PARTS; part++)
        for (int t = 0; t < N; t++)
            for (int r = 0; r < ROWS; r++) {
                int sum = 0;

                for (int k = part ? 4 : 0; k < (part ? COLS : 4); k++)
                    sum += (int)w[r * COLS + k] * (int)x[t * COLS + k];
                assert_true(out[(part * N + t) * ROWS + r] == (float)sum);
            }
    assert_int_equal(td_kern_matmul(kern, m, x, 0, out, &err), TD_OK); /* no rows, no work */
    td_kern_matrix_close(kern, m);
    td_kern_matrix_close(kern, NULL);
    assert_int_equal(td_kern_weight_bytes(kern), 0);
    td_kern_close(kern);
}

static void test_kern_memory_is_aligned_and_cleared(void **state)
{
    static const size_t sizes[] = {1, 4096, (size_t)5 << 20};
    struct td_kern *kern = open_kern(1);

    (void)state;
    for (int i = 0; i < 3; i++) {
        uint8_t *p = td_kern_alloc(kern, sizes[i]), any = 0;

        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t k = 0; k < sizes[i]; k++)
            any |= p[k];
        assert_int_equal(any, 0);
        td_kern_free(kern, p, sizes[i]);
    }
    td_kern_free(kern, NULL, 0);
    td_kern_close(kern);
}

static void test_kern_takes_the_instruction_set_that_is_asked_for(void **state)
{
    struct td_kern_cpu_params params = {.n_threads = 1};
    struct td_kern *kern;
    struct td_err err;

    (void)state;
    setenv("TENSORD_CPU_ISA", "ref", 1);
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_OK);
    assert_string_equal(td_kern_name(kern), "cpu ref");
    td_kern_close(kern);
    setenv("TENSORD_CPU_ISA", "auto", 1);
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_OK);
    td_kern_close(kern);
    setenv("TENSORD_CPU_ISA", "avx3", 1);
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "avx3"));
    params.isa = "auto"; /* what the caller says counts more */
    assert_int_equal(td_kern_cpu_open(&params, &kern, &err), TD_OK);
    td_kern_close(kern);
    unsetenv("TENSORD_CPU_ISA");
}

static void test_kern_refuses_an_instruction_set_that_there_is_not_by_name(void **state)
{
    struct td_kern_cpu_params bad = {.n_threads = 1, .isa = "sse9"};
    struct td_kern *none;
    struct td_err err;

    (void)state;
    assert_int_equal(td_kern_cpu_open(&bad, &none, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "sse9"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kern_matmul_puts_every_sum_of_every_part_in_its_place),
        cmocka_unit_test(test_kern_memory_is_aligned_and_cleared),
        cmocka_unit_test(test_kern_takes_the_instruction_set_that_is_asked_for),
        cmocka_unit_test(test_kern_refuses_an_instruction_set_that_there_is_not_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
