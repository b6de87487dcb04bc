/* Rows of a small model in every other type: what kernels/quant makes of their F32 values, in GGUF's order of rows. */
#include "kernels/quant/dequant.h"
#include "kernels/quant/fp8.h"
#include "shard/convert.h"
#include "shard/outfile.h"
#include "shard/stwrite.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { D = 256, HEADS = 2, HD = 128, FF = 160, VOCAB = 8 };

static char dir[64];
static struct td_checkpoint *ck;
static float gate[FF * D]; /* as it is stored: E4M3 values times their scales */
static const float SCALE[4] = {0.5f, 0.001f, 3.0f, 1.0f}; /* of gate's blocks, 2 x 2 */

static float number(size_t i)
{
    uint32_t h = (uint32_t)i * 2654435761u + 12345u;

    h ^= h >> 15;
    return (float)(int32_t)(h * 2246822519u) * 0x1p-33f;
}

static void write_model(bool poison)
{
    static const struct {
        const char *name;
        enum td_dtype type;
        size_t rows, cols;
    } part[] = {{"model.embed_tokens.weight", TD_F32, VOCAB, D},
                {"model.norm.weight", TD_BF16, D, 0},
                {"model.layers.0.input_layernorm.weight", TD_F32, D, 0},
                {"model.layers.0.post_attention_layernorm.weight", TD_F16, D, 0},
                {"model.layers.0.self_attn.q_proj.weight", TD_F32, HEADS * HD, D},
                {"model.layers.0.self_attn.k_proj.weight", TD_BF16, HD, D},
                {"model.layers.0.self_attn.v_proj.weight", TD_F16, HD, D},
                {"model.layers.0.self_attn.o_proj.weight", TD_F32, D, HEADS * HD},
                {"model.layers.0.mlp.up_proj.weight", TD_F32, FF, D},
                {"model.layers.0.mlp.down_proj.weight", TD_F32, D, FF},
                {"model.layers.0.mlp.gate_proj.weight", TD_F8_E4M3, FF, D},
                {"model.layers.0.mlp.gate_proj.weight_scale_inv", TD_F32, 2, 2}};
    static const char config[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":256,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"intermediate_size\":160,"
        "\"vocab_size\":8,\"tie_word_embeddings\":true}";
    enum { N = sizeof part / sizeof part[0] };
    struct td_outfile f = {.fd = -1};
    struct td_stwrite *w = NULL;
    size_t index[N];
    char path[128];

    assert_int_equal(td_stwrite_open(1 << 30, &w, NULL), TD_OK);
    for (size_t i = 0; i < N; i++) {
        const size_t dim[2] = {part[i].rows, part[i].cols};

        assert_int_equal(td_stwrite_tensor(w, part[i].name, part[i].type, part[i].cols ? 2 : 1, dim,
                                           &index[i], NULL),
                         TD_OK);
    }
    assert_int_equal(td_stwrite_start(w, dir, NULL), TD_OK);
    for (size_t i = 0; i < N; i++) {
        size_t cols = part[i].cols ? part[i].cols : 1, n = part[i].rows * cols;
        float *values = malloc(n * sizeof *values);
        char *bytes = malloc(n * sizeof *values);

        assert_true(values && bytes);
        for (size_t k = 0; k < n; k++)
            values[k] = number(k + i * 1000003);
        if (poison && i == 8)
            values[3 * D + 5] = INFINITY;
        if (i == 11)
            memcpy(values, SCALE, sizeof SCALE);
        td_quant_row(part[i].type, values, bytes, n);
        for (size_t k = 0; k < n && i == 10; k++)
            gate[k] = td_e4m3_to_f32((uint8_t)bytes[k]) * SCALE[k / D / 128 * 2 + k % D / 128];
        assert_int_equal(
            td_stwrite_put(w, index[i], 0, bytes, n * td_dtype_row_bytes(part[i].type, 1), NULL),
            TD_OK);
        free(values);
        free(bytes);
    }
    assert_int_equal(td_stwrite_finish(w, NULL), TD_OK);
    td_stwrite_close(w);
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(td_outfile_init(&f, path, strlen(config), NULL), TD_OK);
    assert_int_equal(td_outfile_write(&f, 0, config, strlen(config), NULL), TD_OK);
    assert_int_equal(td_outfile_commit(&f, NULL), TD_OK);
    td_outfile_deinit(&f);
}

static void open_model(bool poison)
{
    struct td_err err;

    write_model(poison);
    if (td_checkpoint_open(dir, &ck, &err))
        fail_msg("%s", err.cause);
}

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/td-convert-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char command[128];

    (void)state;
    td_checkpoint_close(ck);
    ck = NULL;
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    return system(command);
}

static void source_values(enum td_role role, float *out)
{
    struct td_tensor t;
    size_t n;

    assert_int_equal(td_checkpoint_weight(ck, role, 0, &t, NULL), TD_OK);
    n = t.dim[0] * t.dim[1];
    if (t.dtype == TD_F8_E4M3)
        memcpy(out, gate, n * sizeof *out);
    else
        td_dequant_row(t.dtype, t.data, out, n);
}

static void test_convert_gives_the_bytes_of_every_type(void **state)
{
    static const enum td_role roles[] = {TD_ROLE_EMBED, TD_ROLE_Q,    TD_ROLE_K,
                                         TD_ROLE_V,     TD_ROLE_GATE, TD_ROLE_ATTN_NORM};
    static float values[HEADS * HD * D], scratch[D + 2];
    static char want[D * D * 4], have[D * D * 4];

    (void)state;
    open_model(false);
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        for (int type = 0; type < TD_N_DTYPES; type++) {
            struct td_convert c = {ck, roles[i], 0, (enum td_dtype)type, 0};
            size_t row_bytes = td_dtype_row_bytes(c.type, D), rows;
            struct td_tensor t;

            source_values(roles[i], values);
            assert_int_equal(td_checkpoint_weight(ck, roles[i], 0, &t, NULL), TD_OK);
            rows = t.n_dims > 1 ? t.dim[0] : 1;
            for (size_t r = 0; r < rows; r++)
                td_quant_row(c.type, values + r * D, want + r * row_bytes, D);
            memset(have, 0x55, sizeof have);
            for (size_t r = 0; r < rows; r += 3) /* in pieces */
                assert_int_equal(td_convert_rows(&c, r, rows - r < 3 ? rows - r : 3, scratch,
                                                 have + r * row_bytes, NULL),
                                 TD_OK);
            if (t.dtype == c.type && c.type != TD_F8_E4M3)
                assert_memory_equal(have, t.data, rows * row_bytes);
            assert_memory_equal(have, want, rows * row_bytes);
        }
}

/* Row 2i + half of a head there is row half * 64 + i here. */
static void test_convert_interleaves_the_rows_of_each_head(void **state)
{
    static float values[HEADS * HD * D], row[D + 2];
    static char copied[HEADS * HD * D * 4];
    struct td_convert c = {NULL, TD_ROLE_Q, 0, TD_F32, HD};

    (void)state;
    open_model(false);
    c.ck = ck;
    source_values(TD_ROLE_Q, values);
    assert_int_equal(td_convert_rows(&c, 0, HEADS * HD, row, copied, NULL), TD_OK);
    for (size_t head = 0; head < HEADS; head++)
        for (size_t i = 0; i < HD / 2; i++)
            for (size_t half = 0; half < 2; half++) {
                size_t to = head * HD + 2 * i + half, from = head * HD + half * (HD / 2) + i;

                assert_int_equal(td_convert_row(&c, to, row, NULL), TD_OK);
                assert_memory_equal(row, values + from * D, D * sizeof *row);
                assert_memory_equal(copied + to * D * 4, values + from * D, D * sizeof *row);
            }
}

static void test_convert_names_a_weight_that_is_not_finite(void **state)
{
    static float row[D + 2];
    struct td_convert c = {NULL, TD_ROLE_UP, 0, TD_Q8_0, 0};
    struct td_err err;
    char out[4 * 272];

    (void)state;
    open_model(true);
    c.ck = ck;
    assert_int_equal(td_convert_rows(&c, 0, 3, row, out, &err), TD_OK);
    assert_int_equal(td_convert_rows(&c, 1, 3, row, out, &err), TD_UNSUPPORTED);
    assert_string_equal(err.cause, "'model.layers.0.mlp.up_proj.weight' holds inf in row 3, column "
                                   "5; expected finite weights");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_convert_gives_the_bytes_of_every_type, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_convert_interleaves_the_rows_of_each_head, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_convert_names_a_weight_that_is_not_finite, make_dir,
                                        remove_dir),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
