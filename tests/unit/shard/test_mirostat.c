/* Mirostat against the paper's algorithms (Basu et al. 2020) in plain double with libm and a full sort. */
#include "sampler_check.h"

#include "shard/mirostat.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct word {
    double p;
    uint32_t id;
};

static int by_probability(const void *a, const void *b)
{
    const struct word *x = a, *y = b;

    if (x->p != y->p)
        return x->p < y->p ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

/* Algorithm 1: estimate s from the m most likely words, compute k from s and mu. */
static uint32_t keep_1(const struct word *w, uint32_t n, double mu)
{
    double tb = 0, tt = 0, s, e, k;

    for (uint32_t i = 0; i + 1 < n && i < 99; i++) {
        double t = log((i + 2.0) / (i + 1.0)), b = log(w[i].p / w[i + 1].p);

        tb += t * b;
        tt += t * t;
    }
    s = tb / tt;
    e = s - 1;
    k = pow(e * pow(2, mu) / (1 - pow(n, -e)), 1 / s);
    return !(k >= 1) ? 1 : k >= n ? n : (uint32_t)k;
}

/* Version 2: cut words whose surprise is above mu. */
static uint32_t keep_2(const struct word *w, uint32_t n, double mu)
{
    while (n > 1 && -log2(w[n - 1].p) > mu)
        n--;
    return n;
}

/* The word at `u` on the running sum in ascending id of the first n. */
static uint32_t pick(const struct word *w, uint32_t n, uint32_t n_vocab, double u, double *p)
{
    double *by_id = calloc(n_vocab, sizeof(*by_id)), sum = 0, run = 0;
    uint32_t id = 0;

    assert_non_null(by_id);
    for (uint32_t i = 0; i < n; i++) {
        by_id[w[i].id] = w[i].p;
        sum += w[i].p;
    }
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (by_id[i] == 0)
            continue;
        id = i;
        run += by_id[i];
        if (run > u * sum)
            break;
    }
    *p = by_id[id];
    free(by_id);
    return id;
}

static void test_mirostat_walks_as_the_papers_algorithm(void **state)
{
    enum { N = 6000, STEPS = 60 };
    static float logits[N];
    static struct word w[N];
    static double probs[N];
    uint32_t least_kept = N, most_kept = 0;

    (void)state;
    rng_state = 71;
    for (uint32_t round = 0; round < 12; round++) {
        uint32_t n = round % 4 == 3 ? 1 + (uint32_t)(rng() % 150) : N;
        struct td_sampling p;
        struct td_sampler *s;
        double mu;

        td_sampling_default(&p);
        p.mirostat = 1 + (int32_t)(round % 2);
        p.mirostat_tau = (float)(1 + 5 * rng_unit());
        p.mirostat_eta = (float)(0.05 + rng_unit());
        p.temperature = (float)(0.7 + 0.6 * rng_unit());
        p.top_k = 1; /* takes no part, as the other cuts */
        p.top_p = 0.1f;
        p.seed = rng();
        mu = 2 * (double)p.mirostat_tau;
        s = open_sampler(&p, n);
        for (uint32_t step = 0; step < STEPS; step++) {
            double slope = 0.5 + 1.5 * rng_unit(), total = 0, drawn_p;
            struct td_sampled out;
            uint32_t keep, id;

            /* About Zipf's law with another exponent each time, as a model's rows are. */
            for (uint32_t i = 0; i < n; i++)
                logits[i] = (float)(-slope * log(1 + rng_unit() * n) + 0.3 * rng_unit());
            for (uint32_t i = 0; i < n; i++) {
                w[i] = (struct word){exp((double)logits[i] / (double)p.temperature), i};
                total += w[i].p;
            }
            for (uint32_t i = 0; i < n; i++)
                w[i].p /= total;
            qsort(w, n, sizeof(*w), by_probability);
            keep = p.mirostat == 1 ? keep_1(w, n, mu) : keep_2(w, n, mu);
            least_kept = keep < least_kept ? keep : least_kept;
            most_kept = keep > most_kept ? keep : most_kept;
            id = pick(w, keep, n, (double)td_sampler_uniform(p.seed, 0, step, 0), &drawn_p);
            td_sampler_probs(s, logits, step, NULL, 0, probs);
            total = 0;
            for (uint32_t i = 0; i < keep; i++)
                total += w[i].p;
            for (uint32_t i = 0; i < n; i++)
                if (fabs(probs[w[i].id] - (i < keep ? w[i].p / total : 0)) > 1e-9)
                    fail_msg("round %u step %u: rank %u of %u kept has %g", round, step, i, keep,
                             probs[w[i].id]);
            td_sampler_draw(s, logits, step, NULL, 0, &out);
            if (out.id != id)
                fail_msg("round %u step %u: drew %u, expected %u", round, step, out.id, id);
            td_sampler_accept(s, id);
            mu -= (double)p.mirostat_eta * (-log2(drawn_p) - (double)p.mirostat_tau);
            if (fabs(td_sampler_state(s).mu - mu) > 1e-9 * (1 + fabs(mu)))
                fail_msg("round %u step %u: mu is %.12g, expected %.12g", round, step,
                         td_sampler_state(s).mu, mu);
        }
        td_sampler_close(s);
    }
    assert_true(least_kept == 1 && most_kept > 1000);
}

/* What it is for: the mean surprise comes near tau, whatever the distribution. */
static void test_mirostat_holds_the_surprise(void **state)
{
    enum { N = 4000, STEPS = 600 };
    static float logits[N];

    (void)state;
    rng_state = 72;
    for (int32_t version = 1; version <= 2; version++) {
        double sum = 0;
        struct td_sampling p;
        struct td_sampler *s;

        td_sampling_default(&p);
        p.mirostat = version;
        p.mirostat_tau = 4;
        s = open_sampler(&p, N);
        for (uint32_t step = 0; step < STEPS; step++) {
            double total = 0;
            struct td_sampled out;

            for (uint32_t i = 0; i < N; i++) {
                logits[i] = (float)(-1.1 * log(1 + rng_unit() * N));
                total += exp((double)logits[i]);
            }
            td_sampler_draw(s, logits, step, NULL, 0, &out);
            td_sampler_accept(s, out.id);
            if (step >= 100)
                sum -= log2(exp((double)logits[out.id]) / total);
        }
        td_sampler_close(s);
        print_message("version %d: mean surprise %.2f bits\n", version, sum / (STEPS - 100));
        assert_true(fabs(sum / (STEPS - 100) - 4) < 0.3);
    }
}

static void test_mirostat_forgets_a_draw_that_was_not_accepted(void **state)
{
    const float logits[3] = {1, 0, 0.5f};
    struct td_sampling p;
    struct td_sampled out;
    struct td_sampler *s;

    (void)state;
    td_sampling_default(&p);
    p.mirostat = 2;
    s = open_sampler(&p, 3);
    td_sampler_draw(s, logits, 0, NULL, 0, &out);
    assert_true(td_sampler_state(s).mu == 10);
    td_sampler_accept(s, (out.id + 1) % 3); /* another token was forced */
    assert_true(td_sampler_state(s).mu == 10);
    td_sampler_accept(s, out.id);
    assert_true(td_sampler_state(s).mu == 10);
    td_sampler_draw(s, logits, 2, NULL, 0, &out);
    td_sampler_accept(s, out.id);
    assert_true(td_sampler_state(s).mu != 10);
    td_sampler_close(s);
}

static void test_mirostat_k_survives_flat_and_short_rows(void **state)
{
    const float flat[4] = {1, 1, 1, 1}, steep[2] = {1e30f, -1e30f};

    (void)state;
    assert_int_equal(td_mirostat_k(flat, 4, 1, 20, 100), 100); /* s = 0: no end of the tail */
    assert_int_equal(td_mirostat_k(flat, 4, 1, 1, 100), 1);
    assert_int_equal(td_mirostat_k(flat, 1, 1, 20, 100), 1);
    assert_int_equal(td_mirostat_k(flat, 0, 1, 20, 100), 1);
    assert_int_equal(td_mirostat_k(flat, 4, 1, 20, 1), 1);
    assert_int_equal(td_mirostat_k(steep, 2, 1, 20, 100), 1);
    assert_int_equal(td_mirostat_k(steep, 2, INFINITY, 20, 100), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mirostat_walks_as_the_papers_algorithm),
        cmocka_unit_test(test_mirostat_holds_the_surprise),
        cmocka_unit_test(test_mirostat_forgets_a_draw_that_was_not_accepted),
        cmocka_unit_test(test_mirostat_k_survives_flat_and_short_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
