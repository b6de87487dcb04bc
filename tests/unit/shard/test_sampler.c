#include "../check.h"

#include "sampler_check.h"

#include "kernels/detmath.h"
#include "shard/vsum.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t draw_one(const struct td_sampling *p, const float *logits, uint32_t n_vocab,
                         uint32_t position)
{
    struct td_sampler *s = open_sampler(p, n_vocab);
    struct td_sampled out;

    td_sampler_draw(s, logits, position, NULL, 0, &out);
    td_sampler_close(s);
    return out.id;
}

/* Random123's published known answers (tests/kat_vectors, philox4x32 10). */
static void test_sampler_philox_gives_the_published_answers(void **state)
{
    static const uint32_t kat[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
         0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1},
    };

    (void)state;
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];

        td_sampler_philox(kat[i], kat[i] + 4, out);
        assert_memory_equal(out, kat[i] + 6, sizeof(out));
    }
    /* Seed 0x299f31d0a4093822 at position, choice, draw = pi digits needs the fourth word 0, so only the mapping of
     * the zero vector can be read off: the top 24 bits of 6627e8d5. */
    assert_true(td_sampler_uniform(0, 0, 0, 0) == (float)0x6627e8 * 0x1p-24f);
}

static float ulp_of(float v)
{
    return nextafterf(fabsf(v), INFINITY) - fabsf(v);
}

static void test_detmath_exp_and_log_are_within_one_float_ulp_of_libm(void **state)
{
    double worst_exp = 0, worst_log = 0;

    (void)state;
    rng_state = 11;
    for (int i = 0; i < 200000; i++) {
        double x = (rng_unit() - 0.5) * 170; /* results are normal floats */
        double e = td_detmath_exp(x), ref = exp(x);
        double y = ldexp(1 + rng_unit(), (int)(rng() % 200) - 100);
        double l = td_detmath_log(y), lref = log(y);

        worst_exp = fmax(worst_exp, fabs(e - ref) / ref);
        worst_log = fmax(worst_log, fabs(l - lref) / fmax(fabs(lref), 1e-3));
        assert_true(fabsf((float)e - (float)ref) <= ulp_of((float)ref));
        assert_true(fabsf((float)l - (float)lref) <= ulp_of((float)lref));
    }
    print_message("largest relative error: exp %.2g, log %.2g\n", worst_exp, worst_log);
    assert_true(worst_exp < 1e-14);
    assert_true(worst_log < 1e-14);
    assert_true(td_detmath_exp(0) == 1);
    assert_true(td_detmath_exp(-INFINITY) == 0);
    assert_true(td_detmath_exp(-709) == 0);
    assert_true(isinf(td_detmath_exp(INFINITY)));
    assert_true(isnan(td_detmath_exp(NAN)));
    assert_true(td_detmath_log(1) == 0);
    assert_true(isinf(td_detmath_log(0)) && td_detmath_log(0) < 0);
    assert_true(isnan(td_detmath_log(-1)) && isnan(td_detmath_log(NAN)));
    assert_true(isinf(td_detmath_log(INFINITY)));
    assert_true(fabs(td_detmath_log(5e-324) - log(5e-324)) < 1e-11);
}

static double join(const double *leaf, uint32_t begin, uint32_t size, uint32_t n)
{
    if (size == 1)
        return leaf[begin];
    if (begin + size / 2 >= n)
        return join(leaf, begin, size / 2, n);
    return join(leaf, begin, size / 2, n) + join(leaf, begin + size / 2, size / 2, n);
}

static void test_vsum_joins_leaves_in_the_perfect_tree(void **state)
{
    double leaf[100];

    (void)state;
    rng_state = 12;
    for (uint32_t n = 1; n <= 100; n++) {
        struct td_vsum v;
        uint32_t size = 1;

        td_vsum_init(&v);
        assert_true(td_vsum_total(&v) == 0);
        while (size < n)
            size *= 2;
        for (uint32_t i = 0; i < n; i++) {
            leaf[i] = ldexp(rng_unit(), (int)(rng() % 60));
            td_vsum_push(&v, leaf[i]);
        }
        assert_true(td_vsum_total(&v) == join(leaf, 0, size, n));
    }
}

static void test_sampler_greedy_takes_the_lowest_id_of_a_tie(void **state)
{
    struct td_sampling p;
    float logits[10000];

    (void)state;
    td_sampling_default(&p);
    p.temperature = 0;
    for (int i = 0; i < 10000; i++)
        logits[i] = -1;
    logits[9000] = logits[4500] = 3;
    assert_int_equal(draw_one(&p, logits, 10000, 7), 4500);
    p.temperature = 1;
    p.top_k = 1;
    assert_int_equal(draw_one(&p, logits, 10000, 7), 4500);
    logits[4500] = -0.0f;
    logits[9000] = 0.0f;
    assert_int_equal(draw_one(&p, logits, 10000, 7), 4500);
}

static void test_sampler_survives_nan_and_infinities(void **state)
{
    struct td_sampling p;
    struct td_sampled out;
    struct td_sampler *s;
    const uint32_t banned[2] = {0, 1};
    float logits[6] = {NAN, -INFINITY, 2, NAN, 1, -INFINITY};

    (void)state;
    for (int t = 0; t < 2; t++) {
        td_sampling_default(&p);
        p.temperature = (float)t;
        p.top_p = 0.5f;
        p.n_logprobs = 5;
        s = open_sampler(&p, 6);
        td_sampler_draw(s, logits, 1, NULL, 0, &out);
        assert_int_equal(out.id, 2);
        assert_false(out.no_choice);
        assert_int_equal(out.n_top, 2);
        assert_int_equal(out.top[0].id, 2);
        assert_int_equal(out.top[1].id, 4);
        assert_true(fabs((double)out.logprob + log(1 + exp(-1))) < 1e-6);
        logits[5] = INFINITY;
        td_sampler_draw(s, logits, 1, NULL, 0, &out);
        assert_int_equal(out.id, 5);
        assert_true(out.logprob == 0);
        logits[5] = -INFINITY;
        for (int i = 0; i < 6; i++) {
            float none[6] = {NAN, NAN, -INFINITY, NAN, NAN, NAN};

            td_sampler_draw(s, none, (uint32_t)i, banned, 2, &out);
            assert_true(out.no_choice);
            assert_int_equal(out.id, 2);
            assert_true(out.logprob == -9999);
        }
        td_sampler_close(s);
    }
}

static void test_sampler_never_draws_a_banned_id(void **state)
{
    const uint32_t banned[3] = {2, 5000, 70000};
    float logits[6000] = {0};
    double probs[6000];
    struct td_sampling p;
    struct td_sampled out;
    struct td_sampler *s;

    (void)state;
    td_sampling_default(&p);
    logits[2] = 50;
    logits[5000] = 50;
    s = open_sampler(&p, 6000);
    for (uint32_t pos = 0; pos < 50; pos++) {
        td_sampler_draw(s, logits, pos, banned, 3, &out);
        assert_int_not_equal(out.id, 2);
        assert_int_not_equal(out.id, 5000);
    }
    td_sampler_probs(s, logits, 0, banned, 3, probs);
    assert_true(probs[2] == 0 && probs[5000] == 0 && fabs(probs[3] - 1 / 5998.0) < 1e-9);
    td_sampler_close(s);
}

/* The n largest of a row: found one after the other, by other means than td_top_insert. */
static void largest(const float *logits, uint32_t n_vocab, uint32_t n, struct td_top *top)
{
    struct td_top last = {INFINITY, 0};

    for (uint32_t k = 0; k < n; k++) {
        struct td_top best = TD_TOP_NONE;

        for (uint32_t id = 0; id < n_vocab; id++) {
            float v = logits[id];
            bool after = k == 0 || v < last.value || (v == last.value && id > last.id);

            if (after && v > best.value)
                best = (struct td_top){v, id};
        }
        top[k] = last = best;
        if (best.id == UINT32_MAX)
            last.value = -INFINITY;
    }
}

/* Rows with many equal logits, NaN and infinities; every mix of stages that the largest are enough for. */
static void test_sampler_draws_the_same_from_the_largest_logits(void **state)
{
    enum { N = 20000, ROUNDS = 600 };
    static float logits[N];
    uint32_t n_drawn = 0, n_broken = 0;

    (void)state;
    rng_state = 31;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t n_vocab = round % 5 ? (uint32_t)(1 + rng() % N) : (uint32_t)(1 + rng() % 50);
        uint32_t banned[4], n_banned = (uint32_t)(rng() % 5), n_top;
        bool coarse = rng() % 3 == 0, broken = rng() % 20 == 0;
        struct td_top top[TD_TOP_MAX];
        struct td_sampling p;
        struct td_sampled a, b;
        struct td_sampler *s;

        for (uint32_t i = 0; i < n_vocab; i++) {
            logits[i] = (float)(rng_unit() * 12 - 6);
            if (coarse)
                logits[i] = floorf(logits[i]) * (rng() % 2 ? 1.0f : -1.0f);
            if (rng() % 40 == 0 || broken)
                logits[i] = rng() % 2 ? NAN : -INFINITY;
        }
        if (rng() % 30 == 0)
            logits[rng() % n_vocab] = INFINITY;
        td_sampling_default(&p);
        p.temperature = rng() % 3 ? (float)(0.2 + rng_unit()) : 0;
        p.top_k = (int32_t)(1 + rng() % 60);
        p.top_p = rng() % 2 ? 1 : (float)(0.3 + 0.6 * rng_unit());
        p.min_p = rng() % 2 ? 0 : 0.02f;
        p.typical_p = rng() % 2 ? 1 : (float)(0.2 + 0.7 * rng_unit());
        p.xtc_probability = rng() % 2 ? 0 : 0.7f;
        p.xtc_threshold = 0.05f;
        p.dynatemp_range = rng() % 2 || p.temperature == 0 ? 0 : 0.4f;
        p.dynatemp_exponent = (float)(2 * rng_unit());
        p.seed = rng();
        for (uint32_t i = 0; i < n_banned; i++)
            banned[i] = rng() % 2 ? (uint32_t)(rng() % n_vocab) : draw_one(&p, logits, n_vocab, i);
        n_top = td_sampling_n_top(&p, n_banned);
        assert_true(n_top > 0 && n_top <= TD_TOP_MAX);
        n_top += (uint32_t)(rng() % (TD_TOP_MAX + 1 - n_top)); /* more do no harm */
        largest(logits, n_vocab, n_top, top);
        s = open_sampler(&p, n_vocab);
        for (uint32_t d = 0; d < 4; d++) {
            td_sampler_draw(s, logits, d, banned, n_banned, &a);
            td_sampler_draw_top(s, top, n_top, d, banned, n_banned, &b);
            if (a.id != b.id || a.no_choice != b.no_choice)
                fail_msg("round %u: %u ids, top_k %d: id %u, expected %u", round, n_vocab, p.top_k,
                         b.id, a.id);
            n_drawn++;
            n_broken += a.no_choice;
        }
        td_sampler_close(s);
    }
    assert_true(n_broken > 20 && n_drawn - n_broken > 1500);
}

static int compare_desc(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? 1 : x > y ? -1 : 0;
}

/* llama.cpp lists the survivors only, some in its own sorted order; so both sides are sorted, and ours ends in 0. */
static void check_vector(json_t *v, const char *op)
{
    json_t *probs = json_object_get(v, "probs"), *want = json_object_get(v, "expected");
    json_t *last = json_object_get(v, "last_tokens");
    size_t n = json_array_size(probs), n_want = json_array_size(want);
    double got[16], expected[16] = {0}, total = 0;
    static const char *const ops[] = {"temp",    "temp_ext", "top_k", "top_p",       "min_p",
                                      "typical", "xtc",      "dry",   "top_n_sigma", "penalties"};
    bool known = false;
    struct td_sampling p;
    struct td_sampler *s;
    float logits[16];

    for (size_t i = 0; i < sizeof(ops) / sizeof(*ops); i++)
        known |= strcmp(op, ops[i]) == 0;
    if (!known)
        fail_msg("op %s is not known", op);
    td_sampling_default(&p);
    if (strncmp(op, "temp", 4) == 0)
        p.temperature = (float)json_number_value(json_object_get(v, "temp"));
    if (strcmp(op, "temp_ext") == 0) {
        p.dynatemp_range = (float)json_number_value(json_object_get(v, "delta"));
        p.dynatemp_exponent = (float)json_number_value(json_object_get(v, "exponent"));
    }
    if (strcmp(op, "typical") == 0)
        p.typical_p = (float)json_number_value(json_object_get(v, "p"));
    if (strcmp(op, "top_n_sigma") == 0)
        p.top_n_sigma = (float)json_number_value(json_object_get(v, "n"));
    if (strcmp(op, "xtc") == 0) { /* the coin of position 0 and seed 0 is below 0.99 */
        p.xtc_probability = (float)json_number_value(json_object_get(v, "p"));
        p.xtc_threshold = (float)json_number_value(json_object_get(v, "t"));
        assert_true(td_sampler_uniform(0, 0, 0, 1) < p.xtc_probability);
    }
    if (strcmp(op, "dry") == 0) {
        p.dry_multiplier = (float)json_number_value(json_object_get(v, "multiplier"));
        p.dry_base = (float)json_number_value(json_object_get(v, "base"));
        p.dry_allowed_length = (int32_t)json_integer_value(json_object_get(v, "allowed_length"));
        p.dry_penalty_last_n = (int32_t)json_integer_value(json_object_get(v, "penalty_last_n"));
    }
    if (strcmp(op, "top_k") == 0)
        p.top_k = (int32_t)json_integer_value(json_object_get(v, "k"));
    if (strcmp(op, "top_p") == 0) /* 0 is refused here; the smallest number stands for it */
        p.top_p = fmaxf((float)json_number_value(json_object_get(v, "p")), 1e-40f);
    if (strcmp(op, "min_p") == 0) /* so is 1.05 */
        p.min_p = fminf((float)json_number_value(json_object_get(v, "p")), 1.0f);
    if (strcmp(op, "penalties") == 0) {
        p.repetition_penalty = (float)json_number_value(json_object_get(v, "repeat_penalty"));
        /* 5 lies outside OpenAI's range; two biases of half of it do not exist, so scale through the count. */
        p.frequency_penalty = (float)json_number_value(json_object_get(v, "alpha_frequency")) / 5;
        p.presence_penalty = (float)json_number_value(json_object_get(v, "alpha_presence")) / 5;
    }
    for (size_t i = 0; i < n; i++) {
        logits[i] = logf((float)json_number_value(json_array_get(probs, i)));
        /* With penalties of 1 instead of 5, logits and temperature a fifth as large give the same weights. */
        if (last && p.frequency_penalty != 0)
            logits[i] /= 5;
    }
    if (last && p.frequency_penalty != 0)
        p.temperature = 0.2f;
    s = open_sampler(&p, (uint32_t)n);
    for (size_t i = 0; last && i < json_array_size(last); i++)
        td_sampler_accept(s, (uint32_t)json_integer_value(json_array_get(last, i)));
    td_sampler_probs(s, logits, 0, NULL, 0, got);
    td_sampler_close(s);
    for (size_t i = 0; i < n_want; i++) {
        expected[i] = json_number_value(json_array_get(want, i));
        total += expected[i];
    }
    /* The vectors of these two give the probabilities of those that are left from before the cut. */
    for (size_t i = 0; i < n_want && (op[0] == 'x' || op[1] == 'y'); i++)
        expected[i] /= total;
    qsort(got, n, sizeof(*got), compare_desc);
    qsort(expected, n_want, sizeof(*expected), compare_desc);
    for (size_t i = 0; i < n; i++)
        if (fabs(got[i] - expected[i]) > 1e-3)
            fail_msg("%s: rank %zu is %g, expected %g", op, i, got[i], expected[i]);
}

static void test_sampler_agrees_with_llamacpp_vectors(void **state)
{
    FILE *f = fopen(TD_SHARED "/data/numerics/llamacpp-sampling.jsonl", "r");
    char line[4096];
    int n = 0;

    (void)state;
    if (!f)
        TD_SKIP("shared: no data/numerics/llamacpp-sampling.jsonl");
    while (fgets(line, sizeof(line), f)) {
        json_t *v = json_loads(line, 0, NULL);
        const char *op = json_string_value(json_object_get(v, "op"));

        assert_non_null(op);
        check_vector(v, op);
        n++;
        json_decref(v);
    }
    fclose(f);
    print_message("%d vectors\n", n);
    assert_int_equal(n, 31);
}

static void test_sampler_draws_follow_the_distribution(void **state)
{
    enum { N = 5000, DRAWS = 8000, CELLS = 20 };
    static float logits[N];
    static double probs[N];
    double cell_p[CELLS] = {0}, chi = 0;
    uint32_t hits[CELLS] = {0};
    struct td_sampling p;
    struct td_sampler *s;

    (void)state;
    rng_state = 14;
    for (int i = 0; i < N; i++)
        logits[i] = (float)(rng_unit() * 8);
    td_sampling_default(&p);
    p.seed = 0x0123456789abcdef;
    p.temperature = 0.8f;
    p.top_p = 0.9f;
    s = open_sampler(&p, N);
    td_sampler_probs(s, logits, 0, NULL, 0, probs);
    for (int i = 0; i < N; i++)
        cell_p[i % CELLS] += probs[i];
    for (uint32_t d = 0; d < DRAWS; d++) {
        struct td_sampled out;

        td_sampler_draw(s, logits, d, NULL, 0, &out);
        assert_true(probs[out.id] > 0);
        hits[out.id % CELLS]++;
    }
    td_sampler_close(s);
    for (int c = 0; c < CELLS; c++) {
        double e = cell_p[c] * DRAWS;

        chi += ((double)hits[c] - e) * ((double)hits[c] - e) / e;
    }
    print_message("chi-square %.1f with %d degrees of freedom\n", chi, CELLS - 1);
    assert_true(chi < 43.8); /* probability 0.001 for 19 degrees */
    assert_true(chi > 5.4);  /* and not too even either: probability 0.999 */
}

static void test_sampler_draw_depends_on_seed_choice_and_position_only(void **state)
{
    enum { N = 3000 };
    static float logits[N];
    struct td_sampling p;
    uint32_t base[64], differ_seed = 0, differ_choice = 0, differ_position = 0;

    (void)state;
    rng_state = 15;
    for (int i = 0; i < N; i++)
        logits[i] = (float)rng_unit();
    td_sampling_default(&p);
    p.seed = 42;
    for (uint32_t i = 0; i < 64; i++)
        base[i] = draw_one(&p, logits, N, i);
    for (uint32_t i = 64; i-- > 0;) { /* any order, new samplers: the same ids */
        struct td_sampling q = p;

        assert_int_equal(draw_one(&p, logits, N, i), base[i]);
        q.choice = 1;
        differ_choice += draw_one(&q, logits, N, i) != base[i];
        q = p;
        q.seed = 42 + ((uint64_t)1 << 40);
        differ_seed += draw_one(&q, logits, N, i) != base[i];
        differ_position += draw_one(&p, logits, N, i + 1) != base[i];
    }
    assert_true(differ_choice > 55 && differ_seed > 55 && differ_position > 55);
}

static void test_sampler_penalties_know_prompt_from_output(void **state)
{
    const uint32_t prompt[2] = {1, 1};
    const float logits[4] = {1, 1, -1, -1};
    double probs[4];
    double e0, total;
    struct td_sampling p;
    struct td_sampler *s;

    (void)state;
    td_sampling_default(&p);
    p.repetition_penalty = 2;
    p.presence_penalty = 0.5f;
    p.frequency_penalty = 0.25f;
    p.n_bias = 2;
    p.bias[0] = (struct td_logit_bias){3, 1.5f};
    p.bias[1] = (struct td_logit_bias){0, -1};
    s = open_sampler(&p, 4);
    td_sampler_accept_prompt(s, prompt, 2);
    td_sampler_accept(s, 2);
    td_sampler_accept(s, 2);
    td_sampler_probs(s, logits, 0, NULL, 0, probs);
    /* 0: 1 - 1; 1: 1/2, the prompt does not count for presence; 2: -1 * 2 - 2 * 0.25 - 0.5; 3: -1 + 1.5. */
    e0 = exp(0);
    total = e0 + exp(0.5) + exp(-3) + exp(0.5);
    assert_true(fabs(probs[0] - e0 / total) < 1e-7);
    assert_true(fabs(probs[1] - exp(0.5) / total) < 1e-7);
    assert_true(fabs(probs[2] - exp(-3) / total) < 1e-7);
    assert_true(fabs(probs[3] - exp(0.5) / total) < 1e-7);
    td_sampler_close(s);
}

/* One request, drawn once in one go; then with a break after every token, as a replay after a failure does it. */
static void test_sampler_goes_on_alike_when_ids_and_state_are_replayed(void **state)
{
    enum { N = 5000, N_PROMPT = 40, N_OUT = 60 };
    static float logits[N_OUT][N];
    uint32_t prompt[N_PROMPT], out_ids[N_OUT];
    uint8_t breakers[2] = {0x20, 0x80};
    uint32_t n_mu = 0;

    (void)state;
    rng_state = 41;
    for (int i = 0; i < N_PROMPT; i++)
        prompt[i] = (uint32_t)(rng() % 12);
    for (int t = 0; t < N_OUT; t++)
        for (int i = 0; i < N; i++)
            logits[t][i] = (float)(rng_unit() * 6 + (i < 12 ? 4 : 0));
    for (int round = 0; round < 8; round++) {
        struct td_sampling p;
        struct td_sampled out;
        struct td_sampler *s;
        struct td_sampler_state mu[N_OUT];

        td_sampling_default(&p);
        p.seed = (uint64_t)round;
        p.mirostat = round % 3;
        p.mirostat_tau = 3;
        p.xtc_probability = p.mirostat ? 0 : 0.5f;
        p.dry_multiplier = 0.8f;
        p.dry_breakers = breakers;
        p.n_dry_breaker_bytes = 2;
        p.dry_penalty_last_n = round % 2 ? -1 : 30;
        p.repetition_penalty = 1.2f;
        p.frequency_penalty = 0.1f;
        p.repeat_last_n = round % 2 ? 25 : -1;
        s = open_sampler(&p, N);
        td_sampler_accept_prompt(s, prompt, N_PROMPT);
        for (uint32_t t = 0; t < N_OUT; t++) {
            td_sampler_draw(s, logits[t], N_PROMPT + t, NULL, 0, &out);
            td_sampler_draw(s, logits[t], N_PROMPT + t, NULL, 0, &out); /* changes nothing */
            td_sampler_accept(s, out_ids[t] = out.id);
            mu[t] = td_sampler_state(s);
            n_mu += mu[t].mu != 6;
        }
        td_sampler_close(s);
        for (uint32_t done = 1; done < N_OUT; done += 7) {
            s = open_sampler(&p, N);
            td_sampler_accept_prompt(s, prompt, N_PROMPT / 2);
            td_sampler_accept_prompt(s, prompt + N_PROMPT / 2, N_PROMPT / 2);
            for (uint32_t t = 0; t < done; t++)
                td_sampler_accept(s, out_ids[t]);
            assert_true(td_sampler_state(s).mu == 6); /* ids alone do not bring it back */
            assert_int_equal(td_sampler_set_state(s, mu[done - 1], NULL), TD_OK);
            for (uint32_t t = done; t < N_OUT; t++) {
                td_sampler_draw(s, logits[t], N_PROMPT + t, NULL, 0, &out);
                if (out.id != out_ids[t])
                    fail_msg("round %d, %u replayed: token %u is %u, expected %u", round, done, t,
                             out.id, out_ids[t]);
                td_sampler_accept(s, out.id);
                assert_true(td_sampler_state(s).mu == mu[t].mu);
            }
            td_sampler_close(s);
        }
    }
    assert_true(n_mu > 4 * N_OUT); /* five of the eight rounds have mirostat, and theirs moves */
}

static void test_sampler_state_must_be_a_number(void **state)
{
    struct td_sampling p;
    struct td_sampler *s;
    struct td_err err = {0};

    (void)state;
    td_sampling_default(&p);
    p.mirostat = 2;
    s = open_sampler(&p, 10);
    assert_int_equal(td_sampler_set_state(s, (struct td_sampler_state){NAN}, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "nan"));
    assert_true(td_sampler_state(s).mu == 10);
    td_sampler_close(s);
}

static void test_sampler_logprobs_are_the_models_own(void **state)
{
    enum { N = 5000 };
    static float logits[N];
    double sum = 0;
    struct td_sampling p;
    struct td_sampled out;
    struct td_sampler *s;

    (void)state;
    rng_state = 16;
    for (int i = 0; i < N; i++)
        logits[i] = (float)(rng() % 1000) / 100;
    for (int i = 0; i < N; i++)
        sum += exp((double)logits[i]);
    td_sampling_default(&p);
    p.temperature = 0.5f;
    p.top_p = 0.3f;
    p.n_logprobs = TD_SAMPLER_MAX_LOGPROBS;
    p.n_bias = 1;
    p.bias[0] = (struct td_logit_bias){77, 100};
    s = open_sampler(&p, N);
    td_sampler_draw(s, logits, 3, NULL, 0, &out);
    assert_int_equal(out.id, 77);
    assert_true(fabs((double)out.logprob - ((double)logits[77] - log(sum))) < 1e-5);
    assert_int_equal(out.n_top, 20);
    for (uint32_t j = 0; j < out.n_top; j++) {
        double lp = (double)logits[out.top[j].id] - log(sum);

        assert_true(fabs((double)out.top[j].logprob - lp) < 1e-5);
        if (j > 0)
            assert_true(logits[out.top[j - 1].id] > logits[out.top[j].id] ||
                        (logits[out.top[j - 1].id] == logits[out.top[j].id] &&
                         out.top[j - 1].id < out.top[j].id));
    }
    for (uint32_t i = 0; i < N; i++) {
        bool listed = false;

        for (uint32_t j = 0; j < out.n_top; j++)
            listed |= out.top[j].id == i;
        assert_true(listed || logits[i] <= logits[out.top[19].id]);
    }
    td_sampler_close(s);
    p.n_logprobs = 0;
    s = open_sampler(&p, N);
    td_sampler_draw(s, logits, 3, NULL, 0, &out);
    assert_int_equal(out.n_top, 0);
    assert_true(out.logprob < 0);
    td_sampler_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampler_philox_gives_the_published_answers),
        cmocka_unit_test(test_detmath_exp_and_log_are_within_one_float_ulp_of_libm),
        cmocka_unit_test(test_vsum_joins_leaves_in_the_perfect_tree),
        cmocka_unit_test(test_sampler_greedy_takes_the_lowest_id_of_a_tie),
        cmocka_unit_test(test_sampler_survives_nan_and_infinities),
        cmocka_unit_test(test_sampler_never_draws_a_banned_id),
        cmocka_unit_test(test_sampler_draws_the_same_from_the_largest_logits),
        cmocka_unit_test(test_sampler_agrees_with_llamacpp_vectors),
        cmocka_unit_test(test_sampler_draws_follow_the_distribution),
        cmocka_unit_test(test_sampler_draw_depends_on_seed_choice_and_position_only),
        cmocka_unit_test(test_sampler_penalties_know_prompt_from_output),
        cmocka_unit_test(test_sampler_goes_on_alike_when_ids_and_state_are_replayed),
        cmocka_unit_test(test_sampler_state_must_be_a_number),
        cmocka_unit_test(test_sampler_logprobs_are_the_models_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
