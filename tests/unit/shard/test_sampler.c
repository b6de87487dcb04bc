#include "shard/detmath.h"
#include "shard/sampler.h"
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

static uint64_t rng_state;

static uint64_t rng(void)
{
    uint64_t z = (rng_state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double rng_unit(void)
{
    return (double)(rng() >> 11) * 0x1p-53;
}

static struct td_sampler *open_sampler(const struct td_sampling *p, uint32_t n_vocab)
{
    struct td_sampler *s = NULL;
    struct td_err err = {0};

    if (td_sampler_open(p, n_vocab, &s, &err))
        fail_msg("%s", err.cause);
    return s;
}

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
        assert_int_equal(out.n_top, 5);
        assert_int_equal(out.top[0].id, 2);
        assert_int_equal(out.top[1].id, 4);
        assert_true(out.top[2].logprob == -9999);
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

static void test_sampler_says_when_it_needs_the_whole_row(void **state)
{
    struct td_sampling p;

    (void)state;
    td_sampling_default(&p);
    assert_int_equal(td_sampling_n_top(&p, 0), 0); /* no cut */
    p.top_k = 40;
    assert_int_equal(td_sampling_n_top(&p, 0), 40);
    assert_int_equal(td_sampling_n_top(&p, 24), TD_TOP_MAX);
    assert_int_equal(td_sampling_n_top(&p, 25), 0);
    p.temperature = 0;
    assert_int_equal(td_sampling_n_top(&p, 0), 1);
    assert_int_equal(td_sampling_n_top(&p, 3), 4);
    p.n_logprobs = 0;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.n_logprobs = -1;
    p.repetition_penalty = 1.1f;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.repetition_penalty = 1;
    p.n_bias = 1;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.n_bias = 0;
    p.temperature = 1;
    p.top_k = INT32_MAX;
    assert_int_equal(td_sampling_n_top(&p, UINT32_MAX), 0);
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
    double got[16], expected[16] = {0};
    struct td_sampling p;
    struct td_sampler *s;
    float logits[16];

    td_sampling_default(&p);
    if (strcmp(op, "temp") == 0)
        p.temperature = (float)json_number_value(json_object_get(v, "temp"));
    if (strcmp(op, "top_k") == 0)
        p.top_k = (int32_t)json_integer_value(json_object_get(v, "k"));
    if (strcmp(op, "top_p") == 0) /* 0 is refused here; the smallest number stands for it */
        p.top_p = fmaxf((float)json_number_value(json_object_get(v, "p")), 1e-40f);
    if (strcmp(op, "min_p") == 0) /* so is 1.05 */
        p.min_p = fminf((float)json_number_value(json_object_get(v, "p")), 1.0f);
    if (last) {
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
    for (size_t i = 0; i < n_want; i++)
        expected[i] = json_number_value(json_array_get(want, i));
    qsort(got, n, sizeof(*got), compare_desc);
    qsort(expected, n_want, sizeof(*expected), compare_desc);
    for (size_t i = 0; i < n; i++)
        if (fabs(got[i] - expected[i]) > 1e-3)
            fail_msg("%s: rank %zu is %g, expected %g", op, i, got[i], expected[i]);
}

static void test_sampler_agrees_with_llamacpp_vectors(void **state)
{
    static const char *const ours[] = {"temp", "top_k", "top_p", "min_p", "penalties"};
    FILE *f = fopen(TD_SHARED "/data/numerics/llamacpp-sampling.jsonl", "r");
    char line[4096];
    int n = 0;

    (void)state;
    if (!f) {
        print_message("SKIP: no %s\n", TD_SHARED "/data/numerics/llamacpp-sampling.jsonl");
        skip();
    }
    while (fgets(line, sizeof(line), f)) {
        json_t *v = json_loads(line, 0, NULL);
        const char *op = json_string_value(json_object_get(v, "op"));

        assert_non_null(op);
        for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
            if (strcmp(op, ours[i]) == 0) {
                check_vector(v, op);
                n++;
            }
        json_decref(v);
    }
    fclose(f);
    print_message("%d vectors\n", n);
    assert_int_equal(n, 19);
}

struct ranked {
    double weight;
    uint32_t id;
};

static int compare_ranked(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->weight != y->weight)
        return x->weight < y->weight ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

/* Stages 5 to 8 the plain way, with a full sort and libm. Returns the smallest distance of a cut from its limit. */
static void reference_probs(const struct td_sampling *p, const float *logits, uint32_t n,
                            struct ranked *r, double *probs)
{
    double max = -INFINITY, total = 0, run = 0;
    uint32_t keep = n;

    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, (double)logits[i]);
    for (uint32_t i = 0; i < n; i++)
        r[i] = (struct ranked){exp(((double)logits[i] - max) / (double)p->temperature), i};
    qsort(r, n, sizeof(*r), compare_ranked);
    if (p->top_k > 0 && (uint32_t)p->top_k < n)
        keep = (uint32_t)p->top_k;
    for (uint32_t i = 0; i < keep; i++)
        total += r[i].weight;
    for (uint32_t i = 0; p->top_p < 1 && i < keep; i++) {
        run += r[i].weight;
        if (run >= (double)p->top_p * total) {
            keep = i + 1;
            break;
        }
    }
    while (keep > 1 && r[keep - 1].weight < (double)p->min_p)
        keep--;
    total = 0;
    for (uint32_t i = 0; i < keep; i++)
        total += r[i].weight;
    memset(probs, 0, n * sizeof(*probs));
    for (uint32_t i = 0; i < keep; i++)
        probs[r[i].id] = r[i].weight / total;
}

static void test_sampler_cuts_agree_with_a_full_sort(void **state)
{
    enum { N = 9001 };
    float *logits = malloc(N * sizeof(*logits));
    struct ranked *r = malloc(N * sizeof(*r));
    double *got = malloc(N * sizeof(*got)), *want = malloc(N * sizeof(*want));

    (void)state;
    assert_true(logits && r && got && want);
    rng_state = 13;
    for (int round = 0; round < 60; round++) {
        static const int32_t ks[] = {-1, 0, 2, 40, 1000, N, 2 * N};
        struct td_sampling p;
        struct td_sampler *s;
        uint32_t n = round % 3 ? N : 1 + (uint32_t)(rng() % 300);

        td_sampling_default(&p);
        p.temperature = (float)(0.2 + rng_unit() * 2);
        p.top_k = ks[rng() % 7];
        p.top_p = rng() % 2 ? 1.0f : (float)(0.01 + 0.98 * rng_unit());
        p.min_p = rng() % 2 ? 0.0f : (float)(0.3 * rng_unit());
        for (uint32_t i = 0; i < n; i++) /* many exact ties */
            logits[i] = (float)(rng() % (round % 2 ? 50 : 100000000)) / (round % 2 ? 5 : 1e7f);
        s = open_sampler(&p, n);
        td_sampler_probs(s, logits, 0, NULL, 0, got);
        reference_probs(&p, logits, n, r, want);
        for (uint32_t i = 0; i < n; i++)
            if (fabs(got[i] - want[i]) > 1e-9)
                fail_msg("round %d (n %u T %g k %d p %g min_p %g): id %u has %g, expected %g",
                         round, n, (double)p.temperature, p.top_k, (double)p.top_p, (double)p.min_p,
                         i, got[i], want[i]);
        td_sampler_close(s);
    }
    free(logits);
    free(r);
    free(got);
    free(want);
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

static void test_sampling_validate_names_the_parameter(void **state)
{
    struct td_sampling p;
    struct td_err err;

    (void)state;
#define REFUSES(field, value, text)                                                                \
    do {                                                                                           \
        td_sampling_default(&p);                                                                   \
        assert_int_equal(td_sampling_validate(&p, 10, &err), TD_OK);                               \
        p.field = (value);                                                                         \
        assert_int_equal(td_sampling_validate(&p, 10, &err), TD_INVALID);                          \
        assert_non_null(strstr(err.cause, text));                                                  \
    } while (0)
    REFUSES(temperature, -0.5f, "temperature is -0.5");
    REFUSES(temperature, NAN, "temperature");
    REFUSES(temperature, INFINITY, "temperature");
    REFUSES(top_k, -2, "top_k is -2");
    REFUSES(top_p, 0, "top_p is 0");
    REFUSES(top_p, 1.5f, "top_p is 1.5");
    REFUSES(min_p, -0.1f, "min_p");
    REFUSES(repetition_penalty, 0, "repetition_penalty");
    REFUSES(presence_penalty, 2.5f, "presence_penalty is 2.5");
    REFUSES(frequency_penalty, NAN, "frequency_penalty");
    REFUSES(n_logprobs, 21, "logprobs is 21");
    REFUSES(n_bias, 301, "logit_bias");
#undef REFUSES
    td_sampling_default(&p);
    p.n_bias = 1;
    p.bias[0] = (struct td_logit_bias){10, 1};
    assert_int_equal(td_sampling_validate(&p, 10, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "token 10"));
    assert_int_equal(td_sampling_validate(&p, 0, &err), TD_OK);
    p.bias[0] = (struct td_logit_bias){9, 101};
    assert_int_equal(td_sampling_validate(&p, 10, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "101"));
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
        cmocka_unit_test(test_sampler_says_when_it_needs_the_whole_row),
        cmocka_unit_test(test_sampler_agrees_with_llamacpp_vectors),
        cmocka_unit_test(test_sampler_cuts_agree_with_a_full_sort),
        cmocka_unit_test(test_sampler_draws_follow_the_distribution),
        cmocka_unit_test(test_sampler_draw_depends_on_seed_choice_and_position_only),
        cmocka_unit_test(test_sampler_penalties_know_prompt_from_output),
        cmocka_unit_test(test_sampler_logprobs_are_the_models_own),
        cmocka_unit_test(test_sampling_validate_names_the_parameter),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
