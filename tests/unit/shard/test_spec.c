/* The model description: what validation refuses, by name. */
#include "shard/spec.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct td_spec good_spec(void)
{
    return (struct td_spec){.name = "llama",
                            .n_layers = 2,
                            .d_model = 64,
                            .n_heads = 8,
                            .n_kv_heads = 4,
                            .head_dim = 8,
                            .d_ff = 172,
                            .n_vocab = 512,
                            .max_positions = 512,
                            .rms_eps = 1e-5f,
                            .bos_id = 1,
                            .n_eos = 1,
                            .eos_ids = {2},
                            .rope = {.theta = 10000,
                                     .factor = 8,
                                     .low_freq_factor = 1,
                                     .high_freq_factor = 4,
                                     .original_max_positions = 8192,
                                     .beta_fast = 32,
                                     .beta_slow = 1}};
}

static void expect_invalid(const struct td_spec *spec, const char *part)
{
    struct td_err err = {0};

    if (td_spec_validate(spec, &err) == TD_OK)
        fail_msg("accepted; expected a message with '%s'", part);
    if (!strstr(err.cause, part))
        fail_msg("'%s' does not say '%s'", err.cause, part);
}

#define EXPECT_INVALID(change, part)                                                               \
    do {                                                                                           \
        struct td_spec s = good_spec();                                                            \
        change;                                                                                    \
        expect_invalid(&s, part);                                                                  \
    } while (0)

static void test_spec_validate_names_the_field_and_its_value(void **state)
{
    static const float bad_factors[4] = {1, 1, -1, 1};
    struct td_spec spec = good_spec();
    struct td_err err = {0};

    (void)state;
    assert_int_equal(td_spec_validate(&spec, &err), TD_OK);
    for (int scaling = TD_ROPE_NONE; scaling <= TD_ROPE_YARN; scaling++) {
        spec.rope.scaling = (enum td_rope_scaling)scaling;
        assert_int_equal(td_spec_validate(&spec, &err), TD_OK);
    }
    EXPECT_INVALID(s.n_layers = 0, "number of layers is 0; expected 1 to 512");
    EXPECT_INVALID(s.n_layers = 513, "number of layers is 513");
    EXPECT_INVALID(s.d_model = 0, "model dimension is 0");
    EXPECT_INVALID(s.d_model = UINT32_MAX, "model dimension is 4294967295");
    EXPECT_INVALID(s.n_heads = 0, "number of heads is 0");
    EXPECT_INVALID(s.n_kv_heads = 0, "number of KV heads is 0");
    EXPECT_INVALID(s.n_kv_heads = 16, "number of KV heads is 16; expected 1 to 8");
    EXPECT_INVALID(s.n_kv_heads = 3, "8 heads are no multiple of 3 KV heads");
    EXPECT_INVALID(s.head_dim = 7, "head dimension is 7; expected an even number");
    EXPECT_INVALID((s.n_heads = 65536, s.head_dim = 8192), "heads x head dimension is 536870912");
    EXPECT_INVALID(s.d_ff = 0, "feed-forward dimension is 0");
    EXPECT_INVALID(s.n_vocab = 0, "vocabulary size is 0");
    EXPECT_INVALID(s.max_positions = 0, "context length is 0");
    EXPECT_INVALID(s.rms_eps = NAN, "RMSNorm epsilon is nan");
    EXPECT_INVALID(s.rms_eps = 0, "RMSNorm epsilon is 0");
    EXPECT_INVALID(s.rms_eps = INFINITY, "RMSNorm epsilon is inf");
    EXPECT_INVALID(s.rope.theta = -1, "RoPE base is -1");
    EXPECT_INVALID(s.rope.theta = (double)INFINITY, "RoPE base is inf");
    EXPECT_INVALID((s.rope.scaling = TD_ROPE_LINEAR, s.rope.factor = 0), "RoPE factor is 0");
    EXPECT_INVALID((s.rope.scaling = TD_ROPE_LLAMA3, s.rope.high_freq_factor = 1),
                   "high_freq_factor is 1");
    EXPECT_INVALID((s.rope.scaling = TD_ROPE_YARN, s.rope.beta_fast = 0.5), "beta_fast is 0.5");
    EXPECT_INVALID((s.rope.scaling = TD_ROPE_YARN, s.rope.attention_factor = -1),
                   "attention factor is -1");
    EXPECT_INVALID((s.rope.scaling = TD_ROPE_YARN, s.rope.original_max_positions = 0),
                   "original context length is 0");
    EXPECT_INVALID(s.rope.freq_factors = bad_factors, "frequency factor 2 is -1");
    EXPECT_INVALID(s.bos_id = 512, "begin-of-text id is 512");
    EXPECT_INVALID(s.eos_ids[0] = 512, "end-of-text id is 512");
    EXPECT_INVALID(s.n_eos = 9, "9 end-of-text ids");
    EXPECT_INVALID(s.layer_kind[1] = TD_LAYER_RECURRENT, "layer 1 is a recurrent layer");
    EXPECT_INVALID(s.slides[1] = true, "layer 1 slides over a window of 0");
    EXPECT_INVALID(memset(s.name, 'x', sizeof s.name), "no end");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spec_validate_names_the_field_and_its_value),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
