/* The GGUF reader: the peer's accept and reject files, metadata access, and damaged files. */
#include "shard/gguf.h"
#include "shard/mapfile.h"

#include <dirent.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VECTORS TD_SHARED "/data/file-formats/gguf"
#define MODELS TD_SHARED "/data/models"

static void skip_without(const char *path)
{
    DIR *dir = opendir(path);

    if (!dir) {
        print_message("SKIPPED: %s is absent\n", path);
        skip();
    }
    closedir(dir);
}

/* Reads every byte that an opened file promises, so that the address sanitizer sees a wrong promise. */
static uint64_t touch_all(const struct td_gguf *g)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < td_gguf_n_kv(g); i++) {
        const struct td_gguf_kv *kv = td_gguf_kv_at(g, i);

        for (size_t e = 0; e < kv->n; e++) {
            if (kv->elem == TD_GGUF_STRING) {
                struct td_str s = td_gguf_elem_str(kv, e);

                for (size_t b = 0; b < s.len; b++)
                    sum += (unsigned char)s.ptr[b];
            } else if (kv->elem == TD_GGUF_F32 || kv->elem == TD_GGUF_F64) {
                sum += td_gguf_elem_f32(kv, e) > 0;
            } else {
                sum += (uint64_t)td_gguf_elem_i64(kv, e);
            }
        }
    }
    for (size_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const struct td_gguf_tensor *t = td_gguf_tensor_at(g, i);

        assert_non_null(t->type_name);
        if (td_gguf_has_data(g) && t->bytes) {
            assert_true(td_mapfile_holds(td_gguf_mapfile(g), t->data, t->bytes));
            sum += ((const unsigned char *)t->data)[0];
            sum += ((const unsigned char *)t->data)[t->bytes - 1];
        }
    }
    return sum;
}

static void test_gguf_gives_the_peer_verdict_on_every_vector(void **state)
{
    size_t n_accept = 0, n_reject = 0;
    struct dirent *entry;
    DIR *dir;

    (void)state;
    skip_without(VECTORS);
    dir = opendir(VECTORS);
    while ((entry = readdir(dir))) {
        struct td_gguf *g = NULL;
        struct td_err err = {0};
        enum td_status st;
        char path[1024];

        if (!strstr(entry->d_name, ".gguf"))
            continue;
        snprintf(path, sizeof path, "%s/%s", VECTORS, entry->d_name);
        st = td_gguf_open(path, &g, &err);
        if (strstr(entry->d_name, ".accept.")) {
            if (st)
                fail_msg("%s was refused: %s", entry->d_name, err.cause);
            touch_all(g);
            n_accept++;
        } else {
            if (!st)
                fail_msg("%s was accepted", entry->d_name);
            assert_true(strlen(err.cause) > 10);
            assert_null(g);
            n_reject++;
        }
        td_gguf_close(g);
    }
    closedir(dir);
    assert_int_equal(n_accept, 6);
    assert_int_equal(n_reject, 24);
}

/* ---- a small writer ---- */

struct writer {
    unsigned char bytes[8192];
    size_t n;
};

static void put(struct writer *w, const void *data, size_t n)
{
    assert_true(w->n + n <= sizeof w->bytes);
    memcpy(w->bytes + w->n, data, n);
    w->n += n;
}

static void put32(struct writer *w, uint32_t v)
{
    put(w, &v, sizeof v);
}

static void put64(struct writer *w, uint64_t v)
{
    put(w, &v, sizeof v);
}

static void put_str(struct writer *w, const char *s)
{
    put64(w, strlen(s));
    put(w, s, strlen(s));
}

static void put_key(struct writer *w, const char *key, uint32_t type)
{
    put_str(w, key);
    put32(w, type);
}

static void put_head(struct writer *w, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    w->n = 0;
    put(w, "GGUF", 4);
    put32(w, version);
    put64(w, n_tensors);
    put64(w, n_kv);
}

/* Opens a heap copy of exactly the right size: one byte too far is seen by the address sanitizer. */
static enum td_status open_copy(const unsigned char *bytes, size_t n, struct td_gguf **g,
                                void **copy, struct td_err *err)
{
    *copy = malloc(n + !n);
    assert_non_null(*copy);
    memcpy(*copy, bytes, n);
    *g = NULL;
    return td_gguf_open_memory(*copy, n, g, err);
}

static void test_gguf_reads_every_kind_of_metadata(void **state)
{
    struct writer w;
    struct td_err err;
    struct td_gguf *g;
    const struct td_gguf_kv *kv;
    struct td_str s;
    uint32_t u32;
    uint64_t u64;
    int64_t i64;
    float f32;
    bool b;
    void *copy;

    (void)state;
    put_head(&w, 3, 0, 9);
    put_key(&w, "a.u8", TD_GGUF_U8), put(&w, "\xfe", 1);
    put_key(&w, "a.i16", TD_GGUF_I16), put(&w, "\xff\xff", 2);
    put_key(&w, "a.u64", TD_GGUF_U64), put64(&w, UINT64_MAX);
    put_key(&w, "a.f32", TD_GGUF_F32), put32(&w, 0x3fc00000u);
    put_key(&w, "a.f64", TD_GGUF_F64), put64(&w, 0x3ff8000000000000u);
    put_key(&w, "a.bool", TD_GGUF_BOOL), put(&w, "\x01", 1);
    put_key(&w, "a.str", TD_GGUF_STRING), put_str(&w, "x\xffy");
    put_key(&w, "a.strs", TD_GGUF_ARRAY), put32(&w, TD_GGUF_STRING), put64(&w, 3);
    put_str(&w, "one"), put_str(&w, ""), put_str(&w, "three");
    put_key(&w, "a.ints", TD_GGUF_ARRAY), put32(&w, TD_GGUF_I32), put64(&w, 2);
    put32(&w, 7), put32(&w, (uint32_t)-7);
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_OK);

    assert_int_equal(td_gguf_get_u32(g, "a.u8", &u32, &err), TD_OK);
    assert_int_equal(u32, 0xfe);
    assert_int_equal(td_gguf_get_i64(g, "a.i16", &i64, &err), TD_OK);
    assert_int_equal(i64, -1);
    assert_int_equal(td_gguf_get_u64(g, "a.u64", &u64, &err), TD_OK);
    assert_true(u64 == UINT64_MAX);
    assert_int_equal(td_gguf_get_f32(g, "a.f32", &f32, &err), TD_OK);
    assert_true(f32 == 1.5f);
    assert_int_equal(td_gguf_get_f32(g, "a.f64", &f32, &err), TD_OK);
    assert_true(f32 == 1.5f);
    assert_int_equal(td_gguf_get_bool(g, "a.bool", &b, &err), TD_OK);
    assert_true(b);
    assert_int_equal(td_gguf_get_str(g, "a.str", &s, &err), TD_OK);
    assert_true(td_str_eq(s, TD_STR("x\xffy")));
    assert_int_equal(td_gguf_get_array(g, "a.strs", TD_GGUF_STRING, &kv, &err), TD_OK);
    assert_int_equal(kv->n, 3);
    assert_true(td_str_eq(td_gguf_elem_str(kv, 2), TD_STR("three")));
    assert_int_equal(td_gguf_elem_str(kv, 1).len, 0);
    assert_int_equal(td_gguf_get_array(g, "a.ints", TD_GGUF_I32, &kv, &err), TD_OK);
    assert_int_equal(td_gguf_elem_i64(kv, 1), -7);

    /* Wrong questions name the key, what is there and what was expected. */
    assert_int_equal(td_gguf_get_u32(g, "a.none", &u32, &err), TD_NOT_FOUND);
    assert_string_equal(err.cause, "metadata 'a.none' is missing");
    assert_int_equal(td_gguf_get_u32(g, "a.i16", &u32, &err), TD_CORRUPT);
    assert_string_equal(err.cause, "metadata 'a.i16' is -1; expected 0 or more");
    assert_int_equal(td_gguf_get_u32(g, "a.u64", &u32, &err), TD_CORRUPT);
    assert_int_equal(td_gguf_get_i64(g, "a.u64", &i64, &err), TD_CORRUPT);
    assert_int_equal(td_gguf_get_f32(g, "a.u8", &f32, &err), TD_CORRUPT);
    assert_string_equal(err.cause, "metadata 'a.u8' is u8; expected f32");
    assert_int_equal(td_gguf_get_array(g, "a.ints", TD_GGUF_F32, &kv, &err), TD_CORRUPT);
    assert_string_equal(err.cause,
                        "metadata 'a.ints' is an array of i32; expected an array of f32");
    assert_int_equal(td_gguf_get_str(g, "a.strs", &s, &err), TD_CORRUPT);
    td_gguf_close(g);
    free(copy);
}

static void test_gguf_refuses_headers_that_lie(void **state)
{
    struct writer w;
    struct td_err err;
    struct td_gguf *g;
    void *copy;

    (void)state;
    put_head(&w, 3, 0, UINT64_MAX); /* counts far beyond the file */
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_CORRUPT);
    assert_non_null(strstr(err.cause, "18446744073709551615 metadata pairs"));
    free(copy);

    put_head(&w, 3, 0, 1); /* an array length whose product with 8 overflows */
    put_key(&w, "k", TD_GGUF_ARRAY), put32(&w, TD_GGUF_U64), put64(&w, UINT64_MAX / 8 + 2),
        put64(&w, 0);
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_CORRUPT);
    assert_non_null(strstr(err.cause, "metadata 'k'"));
    free(copy);

    put_head(&w, 3, 0, 1); /* a string length that wraps around */
    put_key(&w, "k", TD_GGUF_STRING), put64(&w, UINT64_MAX - 3), put64(&w, 0);
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_CORRUPT);
    free(copy);

    put_head(&w, 3, 0, 1); /* a key that would spoil a terminal */
    put_key(&w, "k\x1b[2J", TD_GGUF_U8), put(&w, "\0", 1);
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_CORRUPT);
    free(copy);

    put_head(&w, 3, 1, 0); /* a tensor whose data are missing in part */
    put_str(&w, "t"), put32(&w, 1), put64(&w, 64), put32(&w, 0), put64(&w, 0);
    while (w.n % 32)
        put(&w, "", 1);
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err),
                     TD_OK); /* headers only: may be listed */
    assert_false(td_gguf_has_data(g));
    assert_null(td_gguf_find_tensor(g, "t")->data);
    td_gguf_close(g);
    free(copy);
    put64(&w, 1);
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_CORRUPT);
    assert_string_equal(err.cause, "tensor 't' ends at byte 320, file has 72");
    free(copy);

    put_head(&w, 0x03000000u, 0, 0);
    assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "big-endian"));
    free(copy);
}

static void test_gguf_lists_every_type_and_loads_those_that_are_built(void **state)
{
    static const struct {
        uint32_t number, elems;
        const char *name;
        int dtype; /* -1: only listed */
        size_t bytes;
    } type[] = {{2, 32, "Q4_0", TD_Q4_0, 18},      {3, 32, "Q4_1", TD_Q4_1, 20},
                {6, 32, "Q5_0", TD_Q5_0, 22},      {7, 32, "Q5_1", TD_Q5_1, 24},
                {8, 32, "Q8_0", TD_Q8_0, 34},      {10, 256, "Q2_K", TD_Q2_K, 84},
                {11, 256, "Q3_K", TD_Q3_K, 110},   {12, 256, "Q4_K", TD_Q4_K, 144},
                {13, 256, "Q5_K", TD_Q5_K, 176},   {14, 256, "Q6_K", TD_Q6_K, 210},
                {20, 32, "IQ4_NL", TD_IQ4_NL, 18}, {23, 256, "IQ4_XS", TD_IQ4_XS, 136},
                {39, 32, "MXFP4", TD_MXFP4, 17},   {30, 1, "BF16", TD_BF16, 2},
                {16, 256, "IQ2_XXS", -1, 66},      {40, 64, "NVFP4", -1, 36}};

    (void)state;
    for (size_t i = 0; i < sizeof type / sizeof type[0]; i++) {
        const struct td_gguf_tensor *t;
        struct td_err err = {0};
        struct td_gguf *g;
        struct writer w;
        uint32_t number;
        void *copy;

        put_head(&w, 3, 1, 0);
        put_str(&w, "t"), put32(&w, 2), put64(&w, 2 * type[i].elems), put64(&w, 3);
        put32(&w, type[i].number), put64(&w, 0);
        assert_int_equal(open_copy(w.bytes, w.n, &g, &copy, &err), TD_OK);
        t = td_gguf_find_tensor(g, "t");
        assert_string_equal(t->type_name, type[i].name);
        assert_int_equal(t->bytes, 6 * type[i].bytes);
        assert_int_equal(t->loadable, type[i].dtype >= 0);
        if (t->loadable) {
            assert_int_equal(t->dtype, type[i].dtype);
            assert_int_equal(t->bytes, 3 * td_dtype_row_bytes(t->dtype, 2 * type[i].elems));
            assert_true(td_gguf_number_of(t->dtype, &number));
            assert_int_equal(number, type[i].number);
        }
        td_gguf_close(g);
        free(copy);
    }
}

/* ---- damage ---- */

static unsigned char *read_whole(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    unsigned char *bytes;

    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    bytes = malloc(*n);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void damage(const char *path, size_t header_bytes, int n_rounds, uint64_t *seed)
{
    size_t n;
    unsigned char *bytes = read_whole(path, &n);

    for (int round = 0; round < n_rounds; round++) {
        uint64_t r = next_random(seed);
        size_t at = (r >> 16) % header_bytes;
        unsigned char saved = bytes[at];
        struct td_gguf *g = NULL;
        struct td_err err = {0};
        size_t len = n;
        void *copy;

        if (r & 1)
            len = (r & 2) ? (size_t)((r >> 16) % n) : at;
        else
            bytes[at] = (unsigned char)((r & 4) ? r >> 8 : saved ^ (1u << ((r >> 8) & 7)));
        if (open_copy(bytes, len, &g, &copy, &err) == TD_OK)
            touch_all(g);
        else
            assert_true(strlen(err.cause) > 10);
        td_gguf_close(g);
        free(copy);
        bytes[at] = saved;
    }
    free(bytes);
}

static void test_gguf_survives_damaged_files(void **state)
{
    uint64_t seed = 0x9e3779b97f4a7c15u;

    (void)state;
    skip_without(VECTORS);
    print_message("seed %" PRIx64 "\n", seed);
    damage(VECTORS "/KV_RANDOM_KV.accept.gguf", 3104, 3000, &seed);
    damage(VECTORS "/TENSORS_SUCCESS.accept.gguf", 7360, 3000, &seed);
    damage(VECTORS "/DATA_CUSTOM_ALIGN.accept.gguf", 10000, 500, &seed);
    damage(MODELS "/stories260K/gguf/stories260K-Q2_K.gguf", 14000, 1000, &seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf_gives_the_peer_verdict_on_every_vector),
        cmocka_unit_test(test_gguf_reads_every_kind_of_metadata),
        cmocka_unit_test(test_gguf_refuses_headers_that_lie),
        cmocka_unit_test(test_gguf_lists_every_type_and_loads_those_that_are_built),
        cmocka_unit_test(test_gguf_survives_damaged_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
