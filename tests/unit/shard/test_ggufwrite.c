/* GGUF files written here and read back by our reader: every kind of value, every type of tensor, and what is refused. */
#include "shard/gguf.h"
#include "shard/ggufspec.h"
#include "shard/ggufwrite.h"
#include "tests/unit/check.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64], path[128];

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/td-ggufwrite-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/a.gguf", dir);
    return 0;
}

static size_t files_in_dir(void)
{
    DIR *d = opendir(dir);
    size_t n = 0;

    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir); /* fails when something else was left */
}

static struct td_ggufwrite *open_writer(void)
{
    struct td_ggufwrite *w = NULL;

    assert_int_equal(td_ggufwrite_open(&w, NULL), TD_OK);
    return w;
}

static void must(enum td_status s, const struct td_err *err)
{
    if (s)
        fail_msg("%s", err->cause);
}

/* One value of each type, alone and as an array of three; the reader gives the same bytes. */
static void test_ggufwrite_gives_back_every_type_of_value(void **state)
{
    static const uint64_t raw[3] = {0x0101010101010101u, 0x8070605040302010u, 0x0102030405060708u};
    const struct td_str strings[3] = {TD_STR("one"), TD_STR(""), TD_STR("a\0b\xff")};
    struct td_ggufwrite *w = open_writer(), *again = open_writer();
    struct td_bytes head = {0}, copied = {0};
    struct td_err err;
    struct td_gguf *g;
    char key[32];

    (void)state;
    for (int t = 0; t < TD_GGUF_N_TYPES; t++) {
        if (t == TD_GGUF_ARRAY)
            continue;
        snprintf(key, sizeof key, "one.%d", t);
        if (t == TD_GGUF_STRING)
            td_ggufwrite_str(w, key, strings[2]);
        else
            td_ggufwrite_values(w, key, false, (enum td_gguf_type)t, raw, 1);
        snprintf(key, sizeof key, "three.%d", t);
        if (t == TD_GGUF_STRING)
            td_ggufwrite_strs(w, key, strings, 3);
        else
            td_ggufwrite_values(w, key, true, (enum td_gguf_type)t, raw, 3);
    }
    td_ggufwrite_values(w, "none", true, TD_GGUF_U32, raw, 0);
    td_ggufwrite_u32(w, "u32", 4000000000u);
    td_ggufwrite_f32(w, "f32", -0.5f);
    td_ggufwrite_bool(w, "yes", true);
    must(td_ggufwrite_head(w, &head, &err), &err);
    must(td_gguf_open_memory(head.data, head.len, &g, &err), &err);
    assert_int_equal(td_gguf_version(g), 3);
    assert_int_equal(td_gguf_n_kv(g), 2 * (TD_GGUF_N_TYPES - 1) + 4);
    for (int t = 0; t < TD_GGUF_N_TYPES; t++)
        for (int three = 0; three < 2 && t != TD_GGUF_ARRAY; three++) {
            const struct td_gguf_kv *kv;
            size_t n = three ? 3 : 1;

            snprintf(key, sizeof key, "%s.%d", three ? "three" : "one", t);
            kv = td_gguf_find(g, key);
            assert_non_null(kv);
            assert_int_equal(kv->type, three ? TD_GGUF_ARRAY : t);
            assert_int_equal(kv->elem, t);
            assert_int_equal(kv->n, n);
            if (t != TD_GGUF_STRING)
                assert_memory_equal(kv->raw, raw, n * td_gguf_type_bytes((enum td_gguf_type)t));
            for (size_t i = 0; i < n && t == TD_GGUF_STRING; i++)
                assert_true(td_str_eq(td_gguf_elem_str(kv, i), strings[three ? i : 2]));
        }
    assert_int_equal(td_gguf_find(g, "none")->n, 0);
    assert_int_equal(td_gguf_elem_i64(td_gguf_find(g, "u32"), 0), 4000000000);
    assert_true(td_gguf_elem_f32(td_gguf_find(g, "f32"), 0) == -0.5f);
    assert_int_equal(td_gguf_elem_i64(td_gguf_find(g, "yes"), 0), 1);

    for (size_t i = 0; i < td_gguf_n_kv(g); i++) /* a copy of all pairs is the same head */
        td_ggufwrite_copy(again, td_gguf_kv_at(g, i));
    must(td_ggufwrite_head(again, &copied, &err), &err);
    assert_int_equal(copied.len, head.len);
    assert_memory_equal(copied.data, head.data, head.len);
    td_gguf_close(g);
    td_bytes_deinit(&head);
    td_bytes_deinit(&copied);
    td_ggufwrite_close(w);
    td_ggufwrite_close(again);
}

/* Tensors of every type that GGUF has, with odd numbers of rows, written backwards and in pieces. */
static void test_ggufwrite_gives_back_tensors_of_every_type(void **state)
{
    struct td_ggufwrite *w = open_writer();
    unsigned char *data[TD_N_DTYPES] = {NULL};
    size_t bytes[TD_N_DTYPES], index[TD_N_DTYPES], n = 0;
    struct td_err err;
    struct td_gguf *g;
    struct stat info;
    char name[32];

    (void)state;
    for (int t = 0; t < TD_N_DTYPES; t++) {
        size_t dim[2] = {(size_t)t + 1, 256};
        uint32_t number;

        if (!td_gguf_number_of((enum td_dtype)t, &number))
            continue;
        snprintf(name, sizeof name, "t.%d", t);
        index[t] = td_ggufwrite_tensor(w, name, (enum td_dtype)t, 2, dim);
        assert_int_equal(index[t], n++);
        bytes[t] = dim[0] * td_dtype_row_bytes((enum td_dtype)t, 256);
        data[t] = malloc(bytes[t]);
        assert_non_null(data[t]);
        for (size_t i = 0; i < bytes[t]; i++)
            data[t][i] = (unsigned char)(i * 31 + (size_t)t);
    }
    must(td_ggufwrite_start(w, path, &err), &err);
    for (int t = TD_N_DTYPES; t-- > 0;)
        for (size_t at = 0; data[t] && at < bytes[t]; at += 100)
            must(td_ggufwrite_put(w, index[t], at, data[t] + at,
                                  bytes[t] - at < 100 ? bytes[t] - at : 100, &err),
                 &err);
    assert_int_equal(td_ggufwrite_put(w, 0, bytes[0] - 3, data[0], 4, &err), TD_INVALID);
    assert_int_equal(access(path, F_OK), -1); /* nothing is there until all is */
    must(td_ggufwrite_finish(w, &err), &err);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, td_ggufwrite_file_bytes(w));
    td_ggufwrite_close(w);

    must(td_gguf_open(path, &g, &err), &err);
    assert_int_equal(td_gguf_n_tensors(g), n);
    for (int t = 0; t < TD_N_DTYPES; t++) {
        const struct td_gguf_tensor *tensor;

        if (!data[t])
            continue;
        snprintf(name, sizeof name, "t.%d", t);
        tensor = td_gguf_find_tensor(g, name);
        assert_int_equal(tensor->dtype, t);
        assert_int_equal(tensor->dim[0], t + 1);
        assert_int_equal(tensor->dim[1], 256);
        assert_int_equal(tensor->bytes, bytes[t]);
        assert_int_equal(((uintptr_t)tensor->data) % 32, 0);
        assert_memory_equal(tensor->data, data[t], bytes[t]);
        free(data[t]);
    }
    td_gguf_close(g);
    assert_int_equal(files_in_dir(), 1);
}

static void test_ggufwrite_refuses_what_cannot_be_in_a_file(void **state)
{
    static const char long_name[] =
        "a.name.of.more.than.sixty.four.bytes.is.not.allowed.in.a.gguf.file.at.all";
    const size_t good[2] = {2, 64}, bad[2] = {2, 48};
    const struct {
        const char *name;
        enum td_dtype type;
        const size_t *dim;
    } wrong[] = {{long_name, TD_F32, good},
                 {"", TD_F32, good},
                 {"x", TD_F8_E4M3, good},
                 {"x", TD_Q8_0, bad},
                 {"x", TD_Q4_K, good}};
    struct td_err err;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct td_ggufwrite *w = open_writer();
        struct td_bytes head = {0};

        td_ggufwrite_tensor(w, wrong[i].name, wrong[i].type, 2, wrong[i].dim);
        td_ggufwrite_tensor(w, "y", TD_F32, 2, good); /* does not heal it */
        assert_int_equal(td_ggufwrite_head(w, &head, &err), TD_INVALID);
        assert_non_null(strstr(err.cause, td_dtype_info(wrong[i].type)->name));
        assert_int_equal(td_ggufwrite_start(w, path, &err), TD_INVALID);
        td_ggufwrite_close(w);
    }
    for (int i = 0; i < 2; i++) { /* a folder that is not there; a run that is given up */
        struct td_ggufwrite *w = open_writer();

        td_ggufwrite_u32(w, "k", 1);
        td_ggufwrite_tensor(w, "y", TD_F32, 2, good);
        if (i == 0) {
            assert_int_equal(td_ggufwrite_start(w, "/tmp/td-none/x.gguf", &err), TD_IO);
            assert_non_null(strstr(err.cause, "'/tmp/td-none/x.gguf'"));
        } else {
            must(td_ggufwrite_start(w, path, &err), &err);
            assert_int_equal(files_in_dir(), 1);
        }
        td_ggufwrite_close(w);
    }
    assert_int_equal(files_in_dir(), 0);
}

/* ---- the spec ---- */

static void expect_spec(const struct td_spec *spec)
{
    const size_t embed[2] = {spec->n_vocab, spec->d_model};
    struct td_ggufwrite *w = open_writer();
    struct td_bytes head = {0};
    struct td_spec back;
    struct td_err err;
    struct td_gguf *g;

    td_ggufspec_write(spec, w);
    td_ggufwrite_tensor(w, "token_embd.weight", TD_F32, 2, embed);
    must(td_ggufwrite_head(w, &head, &err), &err);
    must(td_gguf_open_memory(head.data, head.len, &g, &err), &err);
    must(td_ggufspec_read(g, &back, &err), &err);
    assert_int_equal(back.arch, spec->arch);
    assert_int_equal(back.n_layers, spec->n_layers);
    assert_int_equal(back.d_model, spec->d_model);
    assert_int_equal(back.n_heads, spec->n_heads);
    assert_int_equal(back.n_kv_heads, spec->n_kv_heads);
    assert_int_equal(back.head_dim, spec->head_dim);
    assert_int_equal(back.d_ff, spec->d_ff);
    assert_int_equal(back.n_vocab, spec->n_vocab);
    assert_int_equal(back.max_positions, spec->max_positions);
    assert_int_equal(back.qk_norm, spec->qk_norm);
    assert_int_equal(back.window, spec->window);
    assert_memory_equal(back.slides, spec->slides, sizeof spec->slides);
    assert_true(back.tied_head);
    assert_true(back.rms_eps == spec->rms_eps);
    assert_true(back.rope.theta == spec->rope.theta);
    /* llama3's scaling is in the tensor of divisors */
    assert_int_equal(back.rope.scaling,
                     spec->rope.scaling == TD_ROPE_LLAMA3 ? TD_ROPE_NONE : spec->rope.scaling);
    if (back.rope.scaling != TD_ROPE_NONE)
        assert_true(back.rope.factor == spec->rope.factor);
    if (back.rope.scaling == TD_ROPE_YARN) {
        assert_true(back.rope.original_max_positions == spec->rope.original_max_positions);
        assert_true(back.rope.beta_fast == spec->rope.beta_fast);
        assert_true(back.rope.beta_slow == spec->rope.beta_slow);
        assert_true(fabs(back.rope.attention_factor - spec->rope.attention_factor) < 1e-6);
    }
    td_gguf_close(g);
    td_bytes_deinit(&head);
    td_ggufwrite_close(w);
}

static void test_ggufwrite_gives_back_the_spec(void **state)
{
    struct td_spec spec = {.arch = TD_ARCH_LLAMA,
                           .n_layers = 3,
                           .d_model = 64,
                           .n_heads = 8,
                           .n_kv_heads = 2,
                           .head_dim = 16,
                           .d_ff = 100,
                           .n_vocab = 40,
                           .max_positions = 4096,
                           .rms_eps = 1e-6f,
                           .rope = {.theta = 500000}};
    double scratch[16];
    float factors[8];

    (void)state;
    expect_spec(&spec);
    assert_false(td_ggufspec_freq_factors(&spec, scratch, factors));
    spec.rope.scaling = TD_ROPE_LINEAR;
    spec.rope.factor = 4;
    expect_spec(&spec);
    spec.window = 100;
    spec.slides[1] = true;
    expect_spec(&spec);
    spec.slides[0] = spec.slides[2] = true;
    expect_spec(&spec);
    spec.rope = (struct td_rope_spec){.theta = 1e6,
                                      .scaling = TD_ROPE_YARN,
                                      .factor = 8,
                                      .original_max_positions = 512,
                                      .beta_fast = 16,
                                      .beta_slow = 2};
    expect_spec(&spec);
    spec.rope.attention_factor = 1.25;
    expect_spec(&spec);
    spec.arch = TD_ARCH_QWEN3;
    spec.qk_norm = true;
    expect_spec(&spec);
    spec.arch = TD_ARCH_LLAMA;
    spec.qk_norm = false;
    spec.rope = (struct td_rope_spec){.theta = 500000,
                                      .scaling = TD_ROPE_LLAMA3,
                                      .factor = 32,
                                      .low_freq_factor = 1,
                                      .high_freq_factor = 4,
                                      .original_max_positions = 64};
    expect_spec(&spec);
    assert_true(td_ggufspec_freq_factors(&spec, scratch, factors));
    /* Llama 3.1's rule: a wave shorter than 64 / 4 stays, one longer than 64 is 32 times slower, between them a blend. */
    for (int i = 0; i < 8; i++) {
        double wave = 2 * M_PI * pow(500000, 2.0 * i / 16), blend = (64 / wave - 1) / 3;

        double want = wave < 16 ? 1 : wave > 64 ? 32 : 1 / ((1 - blend) / 32 + blend);

        assert_true(fabs((double)factors[i] - want) < 1e-5);
    }
    assert_true(factors[0] == 1.0f);
    assert_true(factors[7] == 32.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ggufwrite_gives_back_every_type_of_value),
        cmocka_unit_test_setup_teardown(test_ggufwrite_gives_back_tensors_of_every_type, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_ggufwrite_refuses_what_cannot_be_in_a_file, make_dir,
                                        remove_dir),
        cmocka_unit_test(test_ggufwrite_gives_back_the_spec),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
