/* Hugging Face configs and what they are reduced to. */
#include "shard/hfconfig.h"
#include "shard/spec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LLAMA                                                                                      \
    "\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,\"num_"   \
    "attention_heads\":8,"                                                                         \
    "\"intermediate_size\":172,\"vocab_size\":512"
#define MISTRAL                                                                                    \
    "\"architectures\":[\"MistralForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,"       \
    "\"num_attention_heads\":8,\"intermediate_size\":172,\"vocab_size\":512"
#define QWEN3                                                                                      \
    "\"architectures\":[\"Qwen3ForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,\"num_"   \
    "attention_heads\":64,"                                                                        \
    "\"intermediate_size\":172,\"vocab_size\":512"

/* Of the last config that was read. */
static enum td_int4_form int4;

static enum td_status read_config(const char *json, const char *generation, struct td_spec *spec,
                                  struct td_err *err)
{
    return td_hfconfig_read(td_str_from(json), td_str_from(generation), td_str_from(NULL), spec,
                            &int4, err);
}

static struct td_spec read_good(const char *json)
{
    struct td_spec spec;
    struct td_err err = {0};

    if (read_config(json, NULL, &spec, &err) != TD_OK)
        fail_msg("%s: %s", json, err.cause);
    if (td_spec_validate(&spec, &err) != TD_OK)
        fail_msg("%s: %s", json, err.cause);
    return spec;
}

static void expect_refused(const char *json, enum td_status status, const char *part)
{
    struct td_spec spec;
    struct td_err err = {0};
    enum td_status st = read_config(json, NULL, &spec, &err);

    if (st != status)
        fail_msg("%s gives %s (%s); expected %s", json, td_status_name(st), err.cause,
                 td_status_name(status));
    if (!strstr(err.cause, part))
        fail_msg("'%s' does not say '%s'", err.cause, part);
}

static void test_hfconfig_fills_in_the_family_defaults(void **state)
{
    struct td_spec s = read_good("{" LLAMA "}");

    (void)state;
    assert_int_equal(s.arch, TD_ARCH_LLAMA);
    assert_string_equal(s.name, "LlamaForCausalLM");
    assert_int_equal(s.n_kv_heads, 8);
    assert_int_equal(s.head_dim, 8);
    assert_true(s.rms_eps == 1e-6f);
    assert_true(s.rope.theta == 10000);
    assert_false(s.rope.interleaved);
    assert_false(s.tied_head);
    assert_false(s.qk_norm);
    assert_int_equal(s.bos_id, -1);
    assert_int_equal(s.n_eos, 0);
    s = read_good(
        "{" QWEN3
        ",\"use_sliding_window\":false,\"sliding_window\":4096,\"tie_word_embeddings\":true}");
    assert_true(s.qk_norm);
    assert_true(s.tied_head);
    assert_int_equal(s.n_kv_heads, 32);
    assert_int_equal(s.head_dim, 128);
    s = read_good("{\"model_type\":\"qwen3\",\"hidden_size\":64,\"num_hidden_layers\":2,\"num_"
                  "attention_heads\":64,"
                  "\"intermediate_size\":172,\"vocab_size\":512}");
    assert_int_equal(s.arch, TD_ARCH_QWEN3);
}

/* As transformers 4.57 reads them (configuration_mistral.py, configuration_qwen3.py). */
static void test_hfconfig_reads_sliding_windows(void **state)
{
    struct td_spec s = read_good("{" MISTRAL "}");

    (void)state;
    assert_int_equal(s.arch, TD_ARCH_LLAMA);
    assert_int_equal(s.n_kv_heads, 8);
    assert_int_equal(s.max_positions, 131072);
    assert_true(s.window == 4096 && s.slides[0] && s.slides[1]);
    s = read_good("{" MISTRAL ",\"sliding_window\":null}");
    assert_true(s.window == 0 && !s.slides[0] && !s.slides[1]);
    s = read_good("{" MISTRAL ",\"sliding_window\":100}");
    assert_true(td_spec_window(&s, 0) == 100 && td_spec_window(&s, 1) == 100);
    s = read_good("{" QWEN3
                  ",\"sliding_window\":128,\"use_sliding_window\":true,\"max_window_layers\":1}");
    assert_true(td_spec_window(&s, 0) == 0 && td_spec_window(&s, 1) == 128);
    s = read_good("{" QWEN3 ",\"sliding_window\":0}"); /* nobody uses it */
    assert_true(s.window == 0);
    s = read_good("{" QWEN3 ",\"use_sliding_window\":true}"); /* its two layers lie below 28 */
    assert_true(s.window == 0 && !s.slides[1]);
    s = read_good("{" QWEN3 ",\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\","
                  "\"full_attention\"]}");
    assert_true(td_spec_window(&s, 0) == 4096 && td_spec_window(&s, 1) == 0);
}

static void test_hfconfig_reads_every_rope_scaling(void **state)
{
    struct td_spec s;

    (void)state;
    s = read_good(
        "{" LLAMA
        ",\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":"
        "8192}}");
    assert_int_equal(s.rope.scaling, TD_ROPE_LLAMA3);
    assert_true(s.rope.theta == 500000 && s.rope.factor == 8 &&
                s.rope.original_max_positions == 8192);
    s = read_good("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}");
    assert_int_equal(s.rope.scaling, TD_ROPE_LINEAR);
    assert_true(s.rope.factor == 2);
    s = read_good("{" QWEN3 ",\"max_position_embeddings\":40960,\"rope_scaling\":{\"rope_type\":"
                  "\"yarn\",\"factor\":4.0,"
                  "\"original_max_position_embeddings\":32768}}");
    assert_int_equal(s.rope.scaling, TD_ROPE_YARN);
    assert_int_equal(s.max_positions, 131072);
    assert_true(s.rope.beta_fast == 32 && s.rope.beta_slow == 1 && s.rope.attention_factor == 0);
    s = read_good("{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e6}}");
    assert_int_equal(s.rope.scaling, TD_ROPE_NONE);
    assert_true(s.rope.theta == 1e6);
    s = read_good("{" LLAMA ",\"rope_scaling\":null}");
    assert_int_equal(s.rope.scaling, TD_ROPE_NONE);
}

static void test_hfconfig_unites_the_end_ids(void **state)
{
    struct td_spec s;
    struct td_err err = {0};

    (void)state;
    assert_int_equal(read_config("{" LLAMA ",\"eos_token_id\":2,\"bos_token_id\":1}",
                                 "{\"eos_token_id\":[5,2,7],\"bos_token_id\":9}", &s, &err),
                     TD_OK);
    assert_int_equal(s.n_eos, 3);
    assert_int_equal(s.eos_ids[0], 2);
    assert_int_equal(s.eos_ids[1], 5);
    assert_int_equal(s.eos_ids[2], 7);
    assert_int_equal(s.bos_id, 1);
    assert_int_equal(td_hfconfig_read(td_str_from("{" LLAMA "}"), td_str_from(""),
                                      td_str_from("{\"add_bos_token\":true,\"model_max_length\":"
                                                  "1000000000000000019884624838656}"),
                                      &s, &int4, &err),
                     TD_OK);
    assert_true(s.add_bos);
    assert_int_equal(read_config("{" LLAMA ",\"eos_token_id\":512}", NULL, &s, &err), TD_CORRUPT);
    assert_int_equal(
        read_config("{" LLAMA ",\"eos_token_id\":[0,1,2,3,4,5,6,7,8]}", NULL, &s, &err),
        TD_UNSUPPORTED);
}

static void test_hfconfig_takes_every_way_to_announce_fp8(void **state)
{
    static const char *const good[] = {
        "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
        "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}",
        "\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
        "\"quantization_config\":{\"quant_method\":\"fbgemm_fp8\",\"activation_scale_ub\":1200.0}",
        "\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
        "\"format\":\"float-quantized\",\"ignore\":[\"lm_head\"]}",
        "\"quantization_config\":{\"quant_method\":\"modelopt\",\"quant_algo\":\"FP8\"}",
        "\"compression_config\":{\"format\":\"naive-quantized\"}"};

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char config[1024];
        struct td_spec s;
        struct td_err err;

        snprintf(config, sizeof config, "{" LLAMA ",%s}", good[i]);
        if (read_config(config, NULL, &s, &err) != TD_OK)
            fail_msg("%s: %s", good[i], err.cause);
    }
}

static void test_hfconfig_tells_the_forms_of_4_bit_integers_apart(void **state)
{
    static const struct {
        const char *config;
        enum td_int4_form form;
    } good[] = {
        {"\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"desc_act\":false,\"sym\":true",
         TD_INT4_GPTQ},
        {"\"quant_method\":\"gptq\",\"bits\":4,\"checkpoint_format\":\"gptq\"", TD_INT4_GPTQ},
        {"\"quant_method\":\"gptq\",\"bits\":4,\"checkpoint_format\":\"gptq_v2\"", TD_INT4_GPTQ_V2},
        {"\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128,\"version\":\"gemm\",\"zero_"
         "point\":true,"
         "\"modules_to_not_convert\":null",
         TD_INT4_AWQ},
        {"\"quant_method\":\"awq\",\"w_bit\":4,\"version\":\"GEMM\"", TD_INT4_AWQ},
        {"\"quant_method\":\"fp8\"", TD_INT4_NONE}};
    static const struct {
        const char *config, *part;
    } bad[] = {
        {"\"quant_method\":\"gptq\",\"bits\":8", "'bits' 8"},
        {"\"quant_method\":\"gptq\"", "'bits' 0"},
        {"\"quant_method\":\"gptq\",\"bits\":4,\"checkpoint_format\":\"marlin\"", "'marlin'"},
        {"\"quant_method\":\"awq\",\"bits\":4,\"version\":\"gemv\"", "'gemv'"},
        {"\"quant_method\":\"awq\",\"bits\":4,\"zero_point\":false", "'zero_point' false"}};

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char config[1024];

        snprintf(config, sizeof config, "{" LLAMA ",\"quantization_config\":{%s}}", good[i].config);
        (void)read_good(config);
        assert_int_equal(int4, good[i].form);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char config[1024];

        snprintf(config, sizeof config, "{" LLAMA ",\"quantization_config\":{%s}}", bad[i].config);
        expect_refused(config, TD_UNSUPPORTED, bad[i].part);
    }
}

static void test_hfconfig_refuses_by_name_what_is_not_built(void **state)
{
    (void)state;
    expect_refused("{\"architectures\":[\"Gemma2ForCausalLM\"]}", TD_UNSUPPORTED,
                   "'Gemma2ForCausalLM'");
    expect_refused("{\"architectures\":[\"Qwen3MoeForCausalLM\"]}", TD_UNSUPPORTED,
                   "'Qwen3MoeForCausalLM'");
    expect_refused("{\"architectures\":[\"x\\u001b[2J\"]}", TD_UNSUPPORTED, "'?'");
    expect_refused("{" LLAMA ",\"attention_bias\":true}", TD_UNSUPPORTED, "'attention_bias'");
    expect_refused("{" LLAMA ",\"mlp_bias\":true}", TD_UNSUPPORTED, "'mlp_bias'");
    expect_refused("{" LLAMA ",\"hidden_act\":\"gelu\"}", TD_UNSUPPORTED, "'gelu'");
    expect_refused("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"hqq\"}}", TD_UNSUPPORTED,
                   "'hqq'");
    expect_refused("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"bitsandbytes\"}}",
                   TD_UNSUPPORTED, "'bitsandbytes'");
    expect_refused("{" LLAMA ",\"quantization_config\":7}", TD_CORRUPT, "is a number");
    expect_refused("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\","
                   "\"weight_block_size\":[1,128]}}",
                   TD_UNSUPPORTED, "expected [128, 128]");
    expect_refused("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
                   "\"format\":\"pack-quantized\"}}",
                   TD_UNSUPPORTED, "'format' 'pack-quantized'");
    expect_refused("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"modelopt\","
                   "\"quant_algo\":\"NVFP4\"}}",
                   TD_UNSUPPORTED, "'quant_algo' 'NVFP4'");
    expect_refused("{" LLAMA ",\"compression_config\":{\"format\":\"int-quantized\"}}",
                   TD_UNSUPPORTED, "'compression_config' has 'format' 'int-quantized'");
    expect_refused("{" LLAMA ",\"sliding_window\":128}", TD_UNSUPPORTED, "sliding_window");
    expect_refused("{" LLAMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
                   TD_UNSUPPORTED,
                   "layer 1 slides, with a 'sliding_window' of 0: the architecture");
    expect_refused("{" QWEN3 ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
                   TD_UNSUPPORTED, "layer 1 slides, with a 'sliding_window' of 0: expected");
    expect_refused("{" QWEN3 ",\"layer_types\":[\"full_attention\",\"chunked_attention\"]}",
                   TD_UNSUPPORTED, "layer 1 is of type 'chunked_attention'");
    expect_refused("{" QWEN3 ",\"layer_types\":[\"full_attention\"]}", TD_CORRUPT,
                   "'layer_types' is an array of 1; expected an array of 2");
    expect_refused("{" MISTRAL ",\"sliding_window\":0}", TD_CORRUPT, "'sliding_window' is 0");
    expect_refused("{" MISTRAL ",\"sliding_window\":\"all\"}", TD_CORRUPT, "'sliding_window'");
    expect_refused("{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}",
                   TD_UNSUPPORTED, "'dynamic'");
    expect_refused("{" LLAMA ",\"rope_scaling\":{\"type\":\"longrope\"}}", TD_UNSUPPORTED,
                   "'longrope'");
    expect_refused("{" LLAMA ",\"num_local_experts\":8}", TD_UNSUPPORTED,
                   "'num_local_experts' is 8");
    expect_refused("{" LLAMA ",\"partial_rotary_factor\":0.5}", TD_UNSUPPORTED,
                   "'partial_rotary_factor' is 0.5");
}

static void test_hfconfig_refuses_wrong_types_and_bad_json(void **state)
{
    char deep[4096];

    (void)state;
    expect_refused("{\"architectures\":[\"LlamaForCausalLM\"]}", TD_CORRUPT,
                   "'hidden_size' is missing");
    expect_refused("{" LLAMA ",\"head_dim\":\"8\"}", TD_CORRUPT,
                   "'head_dim' is a string; expected a number");
    expect_refused("{" LLAMA ",\"head_dim\":8.5}", TD_CORRUPT, "'head_dim' is 8.5");
    expect_refused("{" LLAMA ",\"head_dim\":-8}", TD_CORRUPT, "'head_dim' is -8");
    expect_refused("{" LLAMA ",\"head_dim\":1e300}", TD_CORRUPT, "'head_dim' is 1.0");
    expect_refused("{" LLAMA ",\"tie_word_embeddings\":1}", TD_CORRUPT,
                   "'tie_word_embeddings' is a number");
    expect_refused("{" LLAMA ",\"rope_scaling\":[]}", TD_CORRUPT, "'rope_scaling' is an array");
    expect_refused("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", TD_CORRUPT,
                   "'factor' is missing");
    expect_refused("{" LLAMA ",\"layer_types\":7}", TD_CORRUPT, "'layer_types' is a number");
    expect_refused("{\"architectures\":7}", TD_CORRUPT, "'architectures'");
    expect_refused("{}", TD_CORRUPT, "neither");
    expect_refused("", TD_CORRUPT, "config.json");
    expect_refused("[1]", TD_CORRUPT, "config.json is an array");
    expect_refused("{" LLAMA ",\"x\":\"\xff\"}", TD_CORRUPT, "config.json, line 1");
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    expect_refused(deep, TD_CORRUPT, "depth");
    expect_refused("{" LLAMA ",\"num_attention_heads\":0}", TD_OK, ""); /* left to validation */
    expect_refused("{" LLAMA ",\"num_attention_heads\":7}", TD_CORRUPT,
                   "no multiple of 'num_attention_heads' 7");
}

static void test_hfconfig_finds_the_chat_template(void **state)
{
    struct td_err err = {0};
    char *text;

    (void)state;
    assert_int_equal(
        td_hfconfig_chat_template(td_str_from("{\"chat_template\":\"{{ x }}\"}"), &text, &err),
        TD_OK);
    assert_string_equal(text, "{{ x }}");
    free(text);
    assert_int_equal(
        td_hfconfig_chat_template(
            td_str_from("{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"a\"},"
                        "{\"name\":\"default\",\"template\":\"b\"}]}"),
            &text, &err),
        TD_OK);
    assert_string_equal(text, "b");
    free(text);
    assert_int_equal(td_hfconfig_chat_template(td_str_from("{}"), &text, &err), TD_OK);
    assert_null(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hfconfig_fills_in_the_family_defaults),
        cmocka_unit_test(test_hfconfig_reads_sliding_windows),
        cmocka_unit_test(test_hfconfig_reads_every_rope_scaling),
        cmocka_unit_test(test_hfconfig_unites_the_end_ids),
        cmocka_unit_test(test_hfconfig_takes_every_way_to_announce_fp8),
        cmocka_unit_test(test_hfconfig_tells_the_forms_of_4_bit_integers_apart),
        cmocka_unit_test(test_hfconfig_refuses_by_name_what_is_not_built),
        cmocka_unit_test(test_hfconfig_refuses_wrong_types_and_bad_json),
        cmocka_unit_test(test_hfconfig_finds_the_chat_template),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
