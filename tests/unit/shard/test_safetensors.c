/* The safetensors reader: the peer's verdicts, the rules of the format, sharded directories and damaged files. */
#include "shard/mapfile.h"
#include "shard/safetensors.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#define VECTORS TD_SHARED "/data/file-formats/safetensors"
#define SHARDED TD_SHARED "/data/models/stories3M/hf-bf16-sharded"

static void skip_without(const char *path)
{
    if (access(path, R_OK) != 0) {
        print_message("SKIPPED: %s is absent\n", path);
        skip();
    }
}

static void test_safetensors_gives_the_peer_verdict_on_every_vector(void **state)
{
    json_t *list;
    size_t i;

    (void)state;
    skip_without(VECTORS "/expected.json");
    list = json_load_file(VECTORS "/expected.json", 0, NULL);
    assert_true(json_array_size(list) >= 10);
    for (i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(item, "file"));
        bool rejects = json_is_string(json_object_get(item, "error_in_reference"));
        struct td_safetensors *st = NULL;
        struct td_err err = {0};
        char path[1024];

        snprintf(path, sizeof path, VECTORS "/%s", name);
        if ((td_safetensors_open(path, &st, &err) != TD_OK) != rejects)
            fail_msg("%s: %s", name, rejects ? "was accepted" : err.cause);
        if (rejects)
            assert_true(strlen(err.cause) > 10);
        td_safetensors_close(st);
    }
    json_decref(list);
}

/* Opens header + n_data zero bytes from a heap block of exactly that size. */
static enum td_status open_text(const char *header, size_t n_data, struct td_safetensors **st,
                                void **block, struct td_err *err)
{
    uint64_t len = strlen(header);
    unsigned char *p = calloc(1, 8 + len + n_data);

    assert_non_null(p);
    memcpy(p, &len, 8);
    memcpy(p + 8, header, len);
    *block = p;
    *st = NULL;
    return td_safetensors_open_memory(p, 8 + len + n_data, st, err);
}

static void expect_refused(const char *header, size_t n_data, const char *part)
{
    struct td_safetensors *st;
    struct td_err err = {0};
    void *block;

    if (open_text(header, n_data, &st, &block, &err) == TD_OK)
        fail_msg("accepted: %s", header);
    if (!strstr(err.cause, part))
        fail_msg("'%s' does not say '%s'", err.cause, part);
    free(block);
}

static void test_safetensors_enforces_the_rules_of_the_format(void **state)
{
    (void)state;
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                   "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]}}",
                   5, "'b' begins at byte 3 of the data; expected 2");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                   "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
                   3, "'b' begins at byte 1 of the data; expected 2");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 3,
                   "1 bytes after the last tensor");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 1,
                   "'a' ends at byte 2, the file has 1");
    expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
                   "do not hold the 8 bytes");
    expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8,
                   "data_offsets 8 to 0");
    expect_refused("{\"a\":{\"dtype\":\"Q9\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
                   "unknown dtype 'Q9'");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[-2],\"data_offsets\":[0,2]}}", 2,
                   "size 0 of its shape");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2.0],\"data_offsets\":[0,2]}}", 2,
                   "size 0 of its shape");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":2,\"data_offsets\":[0,2]}}", 2, "shape");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0]}}", 2,
                   "data_offsets");
    expect_refused("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2,
                   "whole number of bytes");
    expect_refused(
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,2]}}", 2,
        "2^64");
    expect_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                   "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
                   2, "duplicate");
    expect_refused("{\"a\\u001b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
                   "printable");
    expect_refused("{\"a\":7}", 0, "'a' is described by a number");
    expect_refused("{\"__metadata__\":{\"a\":7}}", 0, "__metadata__");
    expect_refused("[]", 0, "'{'");
    expect_refused(" {}", 0, "'{'");
    expect_refused("{}x", 0, "the header");
}

static void test_safetensors_folds_shapes_of_many_dimensions(void **state)
{
    const struct td_safetensors_tensor *t;
    struct td_safetensors *st;
    struct td_err err = {0};
    void *block;

    (void)state;
    assert_int_equal(
        open_text("{\"five\":{\"dtype\":\"F16\",\"shape\":[2,3,1,2,5],\"data_offsets\":[2,122]},"
                  "\"none\":{\"dtype\":\"F64\",\"shape\":[4,0],\"data_offsets\":[2,2]},"
                  "\"one\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[0,2]}}  ",
                  122, &st, &block, &err),
        TD_OK);
    t = td_safetensors_find(st, "five");
    assert_int_equal(t->n_dims, 4);
    assert_int_equal(t->dim[0], 6);
    assert_int_equal(t->dim[1], 1);
    assert_int_equal(t->dim[3], 5);
    assert_int_equal(t->dtype, TD_F16);
    t = td_safetensors_find(st, "one");
    assert_int_equal(t->n_dims, 0);
    assert_int_equal(t->bytes, 2);
    assert_string_equal(td_safetensors_tensor_at(st, 0)->name.ptr,
                        "one"); /* by place in the file */
    assert_false(td_safetensors_find(st, "none")->loadable);
    assert_null(td_safetensors_find(st, "fiv"));
    td_safetensors_close(st);
    free(block);
}

static void test_safetensors_caps_the_header(void **state)
{
    struct td_safetensors *st;
    struct td_err err;
    uint64_t file[2] = {100000001, 0};

    (void)state;
    assert_int_equal(td_safetensors_open_memory(file, sizeof file, &st, &err), TD_TOO_LARGE);
    assert_non_null(strstr(err.cause, "100000001"));
}

static void test_safetensors_survives_deep_json(void **state)
{
    enum { DEPTH = 200000 };
    char *text = malloc(DEPTH + 16);
    struct td_safetensors *st;
    struct td_err err;
    void *block;

    (void)state;
    strcpy(text, "{\"a\":");
    memset(text + 5, '[', DEPTH);
    text[5 + DEPTH] = 0;
    assert_int_equal(open_text(text, 0, &st, &block, &err), TD_CORRUPT);
    free(block);
    free(text);
}

/* ---- directories ---- */

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/td-safetensors-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static void write_file(const char *name, const void *data, size_t n)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

/* A file with one tensor of one byte. */
static void write_shard(const char *name, const char *tensor)
{
    unsigned char bytes[256];
    uint64_t len;

    len = (uint64_t)snprintf((char *)bytes + 8, sizeof bytes - 9,
                             "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                             tensor);
    memcpy(bytes, &len, 8);
    bytes[8 + len] = 1;
    write_file(name, bytes, 9 + len);
}

static void write_index(const char *weight_map)
{
    char text[512];
    int n = snprintf(text, sizeof text, "{\"metadata\":{},\"weight_map\":%s}", weight_map);

    write_file("model.safetensors.index.json", text, (size_t)n);
}

static void expect_index_refused(const char *weight_map, const char *part)
{
    struct td_safetensors *st = NULL;
    struct td_err err = {0};
    char text[1024];

    write_index(weight_map);
    if (td_safetensors_open_dir(dir, &st, &err) == TD_OK)
        fail_msg("accepted: %s", weight_map);
    td_err_format(&err, text, sizeof text);
    if (!strstr(text, part))
        fail_msg("'%s' does not say '%s'", text, part);
}

static void test_safetensors_index_must_agree_with_its_files(void **state)
{
    struct td_safetensors *st = NULL;
    struct td_err err = {0};

    (void)state;
    assert_int_equal(td_safetensors_open_dir(dir, &st, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "neither model.safetensors nor"));
    write_shard("one.safetensors", "a");
    write_shard("two.safetensors", "b");
    write_index("{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}");
    assert_int_equal(td_safetensors_open_dir(dir, &st, &err), TD_OK);
    assert_int_equal(td_safetensors_n_files(st), 2);
    assert_int_equal(td_safetensors_n_tensors(st), 2);
    assert_string_equal(td_safetensors_file_name(st, td_safetensors_find(st, "b")->file),
                        "two.safetensors");
    assert_true(td_safetensors_index(st).len > 10);
    td_safetensors_close(st);

    expect_index_refused("{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}",
                         "tensor 'a' is in 'one.safetensors'; the index says 'two.safetensors'");
    expect_index_refused(
        "{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"two.safetensors\"}",
        "tensor 'c' is not in 'two.safetensors'");
    expect_index_refused("{\"a\":\"one.safetensors\",\"x\":\"two.safetensors\"}",
                         "tensor 'b' is in 'two.safetensors' but not in the index");
    expect_index_refused("{\"a\":\"one.safetensors\",\"b\":\"three.safetensors\"}",
                         "three.safetensors");
    expect_index_refused("{\"a\":\"../one.safetensors\"}", "plain");
    expect_index_refused("{\"a\":\"/etc/one.safetensors\"}", "plain");
    expect_index_refused("{\"a\":\"..safetensors\"}", "plain");
    expect_index_refused("{\"a\":\"one.bin\"}", "plain");
    expect_index_refused("{\"a\":7}", "plain");
    expect_index_refused("{}", "names 0 files");
    expect_index_refused("[]", "weight_map");
    write_shard("two.safetensors", "a");
    expect_index_refused("{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}",
                         "tensor 'a' is in both 'one.safetensors' and 'two.safetensors'");
}

static void test_safetensors_reads_a_real_sharded_model(void **state)
{
    struct td_safetensors *st;
    struct td_err err = {0};

    (void)state;
    skip_without(SHARDED "/config.json");
    assert_int_equal(td_safetensors_open_dir(SHARDED, &st, &err), TD_OK);
    assert_int_equal(td_safetensors_n_files(st), 2);
    assert_int_equal(td_safetensors_n_tensors(st), 2 + 6 * 9);
    for (size_t i = 0; i < td_safetensors_n_tensors(st); i++) {
        const struct td_safetensors_tensor *t = td_safetensors_tensor_at(st, i);

        assert_string_equal(t->type_name, "BF16");
        assert_true(td_mapfile_holds(td_safetensors_mapfile(st, t->file), t->data, t->bytes));
    }
    td_safetensors_close(st);
}

/* ---- damage ---- */

static void test_safetensors_survives_damaged_files(void **state)
{
    static const char base[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"model.a\":{\"dtype\":\"F32\",\"shape\":[2,3],"
        "\"data_offsets\":[0,24]},"
        "\"model.b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}";
    static const char spice[] = "{}[]\",:0123456789-.eE\\u\x00\x80\xff";
    uint64_t seed = 0x2545f4914f6cdd1du;
    size_t n = 8 + sizeof base - 1 + 32, n_accepted = 0;

    (void)state;
    print_message("seed %" PRIx64 "\n", seed);
    for (int round = 0; round < 8000; round++) {
        unsigned char *copy = calloc(1, n);
        struct td_safetensors *st = NULL;
        struct td_err err = {0};
        uint64_t len = sizeof base - 1;
        size_t cut = n;

        assert_non_null(copy);
        memcpy(copy, &len, 8);
        memcpy(copy + 8, base, sizeof base - 1);
        for (int k = 0; k < 1 + round % 3; k++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            copy[(seed >> 20) % (8 + sizeof base - 1)] =
                (unsigned char)((seed & 1) ? seed >> 8
                                           : (uint64_t)spice[(seed >> 8) % sizeof spice]);
        }
        if (round % 4 == 0)
            cut = (seed >> 32) % n;
        copy = realloc(copy, cut + !cut);
        if (td_safetensors_open_memory(copy, cut, &st, &err) == TD_OK) {
            n_accepted++;
            for (size_t i = 0; i < td_safetensors_n_tensors(st); i++) {
                const struct td_safetensors_tensor *t = td_safetensors_tensor_at(st, i);

                assert_true(td_mapfile_holds(td_safetensors_mapfile(st, 0), t->data, t->bytes));
            }
        } else {
            assert_true(strlen(err.cause) > 10);
        }
        td_safetensors_close(st);
        free(copy);
    }
    print_message("%zu of 8000 damaged files still open\n", n_accepted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_gives_the_peer_verdict_on_every_vector),
        cmocka_unit_test(test_safetensors_enforces_the_rules_of_the_format),
        cmocka_unit_test(test_safetensors_folds_shapes_of_many_dimensions),
        cmocka_unit_test(test_safetensors_caps_the_header),
        cmocka_unit_test(test_safetensors_survives_deep_json),
        cmocka_unit_test_setup_teardown(test_safetensors_index_must_agree_with_its_files, make_dir,
                                        remove_dir),
        cmocka_unit_test(test_safetensors_reads_a_real_sharded_model),
        cmocka_unit_test(test_safetensors_survives_damaged_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
