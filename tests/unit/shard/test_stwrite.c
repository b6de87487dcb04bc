/* safetensors files written here and read back by our reader: one file, several with an index, and what is refused. */
#include "shard/safetensors.h"
#include "shard/stwrite.h"
#include "tests/unit/check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N = 5 };

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/td-stwrite-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    return system(command);
}

static void must(enum td_status s, const struct td_err *err)
{
    if (s)
        fail_msg("%s", err->cause);
}

static const struct {
    const char *name;
    enum td_dtype type;
    int n_dims;
    size_t dim[2], bytes;
} part[N] = {{"model.a.weight", TD_BF16, 2, {3, 7}, 42},
             {"model.a.weight_scale", TD_F32, 2, {3, 1}, 12},
             {"model.b.weight", TD_F8_E4M3, 2, {13, 5}, 65},
             {"model.norm.weight", TD_F32, 1, {9, 1}, 36},
             {"model.c.weight", TD_F16, 2, {1, 4}, 8}};

static unsigned char byte_of(size_t tensor, size_t i)
{
    return (unsigned char)(i * 13 + tensor * 50 + 1);
}

/* Writes the parts in reverse, in pieces of 10 bytes, and reads them back. Returns how many files there are. */
static size_t round_trip(uint64_t file_bytes)
{
    struct td_stwrite *w = NULL;
    struct td_safetensors *st;
    struct td_err err;
    size_t index[N], n_files;

    must(td_stwrite_open(file_bytes, &w, &err), &err);
    for (size_t i = 0; i < N; i++)
        must(td_stwrite_tensor(w, part[i].name, part[i].type, part[i].n_dims, part[i].dim,
                               &index[i], &err),
             &err);
    must(td_stwrite_start(w, dir, &err), &err);
    for (size_t i = N; i-- > 0;)
        for (size_t at = 0; at < part[i].bytes; at += 10) {
            size_t n = part[i].bytes - at < 10 ? part[i].bytes - at : 10;
            unsigned char data[10];

            for (size_t k = 0; k < n; k++)
                data[k] = byte_of(i, at + k);
            must(td_stwrite_put(w, index[i], at, data, n, &err), &err);
        }
    assert_int_equal(td_stwrite_put(w, index[0], part[0].bytes, "x", 1, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "'model.a.weight'"));
    assert_int_equal(td_safetensors_open_dir(dir, &st, &err), TD_NOT_FOUND); /* not yet */
    must(td_stwrite_finish(w, &err), &err);
    td_stwrite_close(w);

    must(td_safetensors_open_dir(dir, &st, &err), &err);
    assert_int_equal(td_safetensors_n_tensors(st), N);
    for (size_t i = 0; i < N; i++) {
        const struct td_safetensors_tensor *t = td_safetensors_find(st, part[i].name);

        assert_non_null(t);
        assert_true(t->loadable);
        assert_int_equal(t->dtype, part[i].type);
        assert_int_equal(t->n_dims, part[i].n_dims);
        assert_int_equal(t->dim[0], part[i].dim[0]);
        assert_int_equal(t->dim[1], part[i].dim[1]);
        assert_int_equal(t->bytes, part[i].bytes);
        for (size_t k = 0; k < t->bytes; k++)
            assert_int_equal(((const unsigned char *)t->data)[k], byte_of(i, k));
    }
    n_files = td_safetensors_n_files(st);
    for (size_t i = 0; i < n_files; i++)
        assert_int_equal(td_safetensors_header_bytes(st, i) % 8, 0);
    assert_int_equal(td_safetensors_index(st).len > 0, n_files > 1);
    td_safetensors_close(st);
    return n_files;
}

static void test_stwrite_gives_back_one_file(void **state)
{
    (void)state;
    assert_int_equal(round_trip(1000), 1);
}

static void test_stwrite_gives_back_several_files_with_their_index(void **state)
{
    (void)state;
    assert_int_equal(round_trip(60), 3); /* 42 + 12; 65, which is too large for any; 36 + 8 */
}

static void test_stwrite_refuses_by_name_and_leaves_nothing(void **state)
{
    const size_t dim[2] = {1, 32};
    struct td_stwrite *w = NULL;
    struct td_err err;
    size_t index;

    (void)state;
    must(td_stwrite_open(100, &w, &err), &err);
    assert_int_equal(td_stwrite_tensor(w, "x", TD_Q8_0, 2, dim, &index, &err), TD_UNSUPPORTED);
    assert_string_equal(err.cause, "tensor 'x': safetensors files have no type q8_0");
    must(td_stwrite_tensor(w, "y", TD_F32, 2, dim, &index, &err), &err);
    must(td_stwrite_start(w, dir, &err), &err);
    td_stwrite_close(w);
    assert_int_equal(rmdir(dir), 0); /* it is empty again */
    assert_non_null(mkdtemp(strcpy(dir, "/tmp/td-stwrite-XXXXXX")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_stwrite_gives_back_one_file, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_stwrite_gives_back_several_files_with_their_index,
                                        make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_stwrite_refuses_by_name_and_leaves_nothing, make_dir,
                                        remove_dir),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
