/* Rotation frequencies against the published formulas.
 * The numbers come from a Python script in float64 that follows the definitions of Hugging Face transformers 5.23.0
 * (modeling_rope_utils: linear, llama3, yarn with its floor and ceiling); it was checked there that transformers' own
 * float32 tensors agree to 3e-7. */
#include "shard/rope.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct expected {
    uint32_t index;
    double freq;
};

static void check_freq(const struct td_spec *spec, const struct expected *e, size_t n, double scale)
{
    double freq[128], have_scale = 0.0;

    td_rope_frequencies(spec, freq, &have_scale);
    if (fabs(have_scale - scale) > 1e-13)
        fail_msg("scale is %.17g, expected %.17g", have_scale, scale);
    for (size_t i = 0; i < n; i++)
        if (fabs(freq[e[i].index] - e[i].freq) > 1e-12 * e[i].freq)
            fail_msg("frequency %u is %.17g, expected %.17g", e[i].index, freq[e[i].index],
                     e[i].freq);
}

#define CHECK(spec, e, scale) check_freq(&(spec), e, sizeof(e) / sizeof((e)[0]), scale)

static void test_rope_frequencies_fall_from_one_by_powers_of_theta(void **state)
{
    const struct td_spec spec = {.head_dim = 8, .rope = {.theta = 10000}};
    const struct expected e[] = {{0, 1.0}, {1, 0.1}, {2, 0.01}, {3, 0.001}};

    (void)state;
    CHECK(spec, e, 1.0);
}

static void test_rope_linear_divides_all_frequencies(void **state)
{
    const struct td_spec spec = {.head_dim = 64,
                                 .rope = {.theta = 10000, .scaling = TD_ROPE_LINEAR, .factor = 4}};
    const struct expected e[] = {{0, 0.25},
                                 {1, 0.18747355233311397},
                                 {2, 0.14058533129758727},
                                 {7, 0.0333380358040831},
                                 {16, 0.0025},
                                 {30, 4.445698525097307e-05},
                                 {31, 3.33380358040831e-05}};

    (void)state;
    CHECK(spec, e, 1.0);
}

/* Llama 3.2's own numbers: kept up to 14, blended 15 to 17, slowed from 18 on. */
static void test_rope_llama3_keeps_short_waves_and_slows_long_ones(void **state)
{
    const struct td_spec spec = {.head_dim = 64,
                                 .rope = {.theta = 500000,
                                          .scaling = TD_ROPE_LLAMA3,
                                          .factor = 32,
                                          .low_freq_factor = 1,
                                          .high_freq_factor = 4,
                                          .original_max_positions = 8192}};
    const struct expected e[] = {{0, 1.0},
                                 {1, 0.6636012376960885},
                                 {13, 0.004839421345719893},
                                 {14, 0.003211445994752591},
                                 {15, 0.001290547928209264},
                                 {16, 0.00042955679655936815},
                                 {17, 9.70828780262767e-05},
                                 {18, 1.9461638184831125e-05},
                                 {19, 1.291476718704739e-05},
                                 {31, 9.41830672543491e-08}};

    (void)state;
    CHECK(spec, e, 1.0);
}

/* As Qwen3 is stretched to 131072 positions; the betas are the defaults, the scale 0.1 ln 4 + 1. */
static void test_rope_yarn_blends_between_its_two_dimensions(void **state)
{
    const struct td_spec spec = {.head_dim = 128,
                                 .rope = {.theta = 1000000,
                                          .scaling = TD_ROPE_YARN,
                                          .factor = 4,
                                          .original_max_positions = 32768}};
    const struct expected e[] = {{0, 1.0},
                                 {1, 0.8058421877614819},
                                 {22, 0.008659643233600654},
                                 {23, 0.006978305848598663},
                                 {24, 0.005375321490790102},
                                 {30, 0.001064360981247002},
                                 {39, 6.490394320837029e-05},
                                 {40, 4.445698525097307e-05},
                                 {41, 3.582531425592407e-05},
                                 {63, 3.102344401879299e-07}};

    (void)state;
    CHECK(spec, e, 1.138629436111989);
}

static void test_rope_yarn_takes_betas_and_attention_factor_from_the_model(void **state)
{
    const struct td_spec spec = {.head_dim = 32,
                                 .rope = {.theta = 10000,
                                          .scaling = TD_ROPE_YARN,
                                          .factor = 8,
                                          .original_max_positions = 256,
                                          .beta_fast = 16,
                                          .beta_slow = 2,
                                          .attention_factor = 1.25}};
    const struct expected e[] = {
        {0, 1.0},
        {1, 0.5623413251903491},
        {2, 0.26088790696389136},
        {3, 0.11558816165253},
        {4, 0.04750000000000001},
        {5, 0.016870239755710472},
        {6, 0.003952847075210474},
        {7, 0.0022228492625486537},
        {8, 0.00125},
        {12, 0.000125},
        {15, 2.2228492625486534e-05},
    };

    (void)state;
    CHECK(spec, e, 1.25);
}

static void test_rope_yarn_without_stretching_changes_nothing(void **state)
{
    const struct td_spec spec = {
        .head_dim = 8,
        .rope = {
            .theta = 10000, .scaling = TD_ROPE_YARN, .factor = 1, .original_max_positions = 4096}};
    const struct expected e[] = {{0, 1.0}, {1, 0.1}, {2, 0.01}, {3, 0.001}};

    (void)state;
    CHECK(spec, e, 1.0);
}

/* GGUF files of Llama 3 carry the scaling as divisors. */
static void test_rope_frequency_factors_of_a_file_divide(void **state)
{
    static const float factors[4] = {1, 2, 4, 32};
    const struct td_spec spec = {.head_dim = 8, .rope = {.theta = 10000, .freq_factors = factors}};
    const struct expected e[] = {{0, 1.0}, {1, 0.05}, {2, 0.0025}, {3, 3.125e-05}};

    (void)state;
    CHECK(spec, e, 1.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_frequencies_fall_from_one_by_powers_of_theta),
        cmocka_unit_test(test_rope_linear_divides_all_frequencies),
        cmocka_unit_test(test_rope_llama3_keeps_short_waves_and_slows_long_ones),
        cmocka_unit_test(test_rope_yarn_blends_between_its_two_dimensions),
        cmocka_unit_test(test_rope_yarn_takes_betas_and_attention_factor_from_the_model),
        cmocka_unit_test(test_rope_yarn_without_stretching_changes_nothing),
        cmocka_unit_test(test_rope_frequency_factors_of_a_file_divide),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
