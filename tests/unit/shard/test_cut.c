/* Every cut against the plain way: all candidates in a list, sorted with qsort, summed in double with libm. */
#include "sampler_check.h"

#include "shard/cut.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct candidate {
    double z, key, weight;
    uint32_t id;
};

static int by_key(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->key != y->key)
        return x->key < y->key ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static void sort_by_logit(struct candidate *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        c[i].key = c[i].z;
    qsort(c, n, sizeof(*c), by_key);
}

static double sum_of(const struct candidate *c, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += c[i].weight;
    return sum;
}

static double entropy_of(const struct candidate *c, uint32_t n)
{
    double sum = sum_of(c, n), h = 0;

    for (uint32_t i = 0; i < n; i++)
        h -= c[i].weight > 0 ? c[i].weight / sum * log(c[i].weight / sum) : 0;
    return h;
}

static void weigh(struct candidate *c, uint32_t n, double temperature)
{
    double max = -INFINITY;

    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, c[i].z);
    for (uint32_t i = 0; i < n; i++)
        c[i].weight = exp((c[i].z - max) / temperature);
}

/* The fewest of a sorted list whose share reaches p. */
static uint32_t reach(const struct candidate *c, uint32_t n, double p)
{
    double need = p * sum_of(c, n), run = 0;

    for (uint32_t i = 0; i < n; i++) {
        run += c[i].weight;
        if (run >= need)
            return i + 1;
    }
    return n;
}

static uint32_t reference_sigma(struct candidate *c, uint32_t n, double n_sigma)
{
    double mean = 0, var = 0;
    uint32_t keep = n;

    for (uint32_t i = 0; i < n; i++)
        mean += c[i].z / n;
    for (uint32_t i = 0; i < n; i++)
        var += (c[i].z - mean) * (c[i].z - mean) / n;
    while (keep > 1 && c[keep - 1].z < c[0].z - n_sigma * sqrt(var))
        keep--;
    return keep;
}

static double reference_temperature(const struct td_sampling *p, struct candidate *c, uint32_t n)
{
    double t = (double)p->temperature, range = (double)p->dynatemp_range;
    double low = fmax(0, t - range);

    weigh(c, n, 1);
    if (range == 0 || n < 2)
        return t;
    return low + (t + range - low) * pow(entropy_of(c, n) / log(n), (double)p->dynatemp_exponent);
}

static uint32_t reference_typical(struct candidate *c, uint32_t n, double p)
{
    double h = entropy_of(c, n), sum = sum_of(c, n);

    for (uint32_t i = 0; i < n; i++) /* as float, in which the sampler orders them */
        c[i].key = -(double)(float)fabs(-log(c[i].weight / sum) - h);
    qsort(c, n, sizeof(*c), by_key);
    n = reach(c, n, p);
    sort_by_logit(c, n);
    return n;
}

/* Stages 6 to 12 of sampler.h for logits that are all finite. */
static void reference_probs(const struct td_sampling *p, const float *logits, uint32_t n_vocab,
                            bool xtc, struct candidate *c, double *probs)
{
    uint32_t n = n_vocab, from = 0;
    double total;

    for (uint32_t i = 0; i < n; i++)
        c[i] = (struct candidate){.z = (double)logits[i], .id = i};
    sort_by_logit(c, n);
    if (p->top_n_sigma > 0)
        n = reference_sigma(c, n, (double)p->top_n_sigma);
    if (p->top_k > 0 && (uint32_t)p->top_k < n)
        n = (uint32_t)p->top_k;
    weigh(c, n, reference_temperature(p, c, n));
    if (p->typical_p < 1)
        n = reference_typical(c, n, (double)p->typical_p);
    if (p->top_p < 1)
        n = reach(c, n, (double)p->top_p);
    while (n > 1 && c[n - 1].weight < (double)p->min_p * c[0].weight)
        n--;
    total = sum_of(c, n);
    for (uint32_t i = 0; xtc && i < n && c[i].weight >= (double)p->xtc_threshold * total; i++)
        from = i;
    total = sum_of(c + from, n - from);
    memset(probs, 0, n_vocab * sizeof(*probs));
    for (uint32_t i = from; i < n; i++)
        probs[c[i].id] = c[i].weight / total;
}

static void test_cuts_agree_with_a_full_sort(void **state)
{
    enum { N = 9001, ROUNDS = 240 };
    float *logits = malloc(N * sizeof(*logits));
    struct candidate *c = malloc(N * sizeof(*c));
    double *got = malloc(N * sizeof(*got)), *want = malloc(N * sizeof(*want));
    uint32_t n_xtc = 0;

    (void)state;
    assert_true(logits && c && got && want);
    rng_state = 13;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        static const int32_t ks[] = {-1, 0, 2, 40, 1000, N, 2 * N};
        bool coarse = round % 2, xtc;
        struct td_sampling p;
        struct td_sampler *s;
        uint32_t n = round % 3 ? N : 1 + (uint32_t)(rng() % 300);

        td_sampling_default(&p);
        p.seed = rng();
        p.temperature = (float)(0.2 + rng_unit() * 2);
        p.top_k = ks[rng() % 7];
        p.top_p = rng() % 2 ? 1.0f : (float)(0.01 + 0.98 * rng_unit());
        p.min_p = rng() % 2 ? 0.0f : (float)(0.3 * rng_unit());
        if (round % 4 > 1) {
            p.typical_p = rng() % 2 ? 1.0f : (float)(0.01 + 0.98 * rng_unit());
            p.top_n_sigma = rng() % 2 ? 0.0f : (float)(3 * rng_unit());
            p.xtc_probability = (float)(rng() % 2) * 0.6f;
            p.xtc_threshold = (float)pow(10, -4 * rng_unit());
            p.dynatemp_range = rng() % 2 ? 0.0f : (float)(1.5 * rng_unit());
            p.dynatemp_exponent = (float)(rng() % 4) * 0.7f;
        }
        for (uint32_t i = 0; i < n; i++) /* many exact ties */
            logits[i] = (float)(rng() % (coarse ? 50 : 100000000)) / (coarse ? 5 : 1e7f);
        s = open_sampler(&p, n);
        xtc = td_sampler_uniform(p.seed, 0, round, 1) < p.xtc_probability;
        n_xtc += xtc;
        td_sampler_probs(s, logits, round, NULL, 0, got);
        reference_probs(&p, logits, n, xtc, c, want);
        for (uint32_t i = 0; i < n; i++)
            if (!(fabs(got[i] - want[i]) <= 1e-9))
                fail_msg("round %u (n %u T %g +- %g ^ %g sigma %g k %d typical %g p %g min_p %g "
                         "xtc %d %g): id %u has %.12g, expected %.12g",
                         round, n, (double)p.temperature, (double)p.dynatemp_range,
                         (double)p.dynatemp_exponent, (double)p.top_n_sigma, p.top_k,
                         (double)p.typical_p, (double)p.top_p, (double)p.min_p, xtc,
                         (double)p.xtc_threshold, i, got[i], want[i]);
        td_sampler_close(s);
    }
    assert_true(n_xtc > 10 && n_xtc < ROUNDS / 2);
    free(logits);
    free(c);
    free(got);
    free(want);
}

/* Whatever is asked for, an id is left, and it is none that cannot be. */
static void test_cuts_always_leave_an_id(void **state)
{
    enum { N = 300 };
    float logits[N];

    (void)state;
    rng_state = 17;
    for (uint32_t round = 0; round < 4000; round++) {
        uint32_t n = 1 + (uint32_t)(rng() % N);
        struct td_sampling p;
        struct td_sampled out;
        struct td_sampler *s;
        bool any = false;

        for (uint32_t i = 0; i < n; i++) {
            static const float odd[] = {NAN, -INFINITY, INFINITY, 3e38f, -3e38f, 0, -0.0f, 1e-40f};

            logits[i] = rng() % 3 ? (float)(rng_unit() * 20) : odd[rng() % 8];
            any |= logits[i] > -INFINITY;
        }
        td_sampling_default(&p);
        p.seed = rng();
        p.temperature = rng() % 2 ? 1e-40f : (float)(rng() % 3 + 1) * 1e3f;
        p.mirostat = (int32_t)(rng() % 3);
        p.mirostat_tau = rng() % 2 ? 1e-6f : 100;
        p.mirostat_eta = 10;
        if (p.mirostat == 0) {
            p.typical_p = rng() % 2 ? 1e-40f : 0.9999999f;
            p.top_n_sigma = rng() % 2 ? 1e-40f : 100;
            p.xtc_probability = 1;
            p.xtc_threshold = rng() % 2 ? 0 : 1e-30f;
            p.dynatemp_range = rng() % 2 ? 100 : 1e-40f;
            p.dynatemp_exponent = rng() % 2 ? 100 : 0;
        }
        p.top_p = rng() % 2 ? 1e-40f : 0.9999999f;
        p.min_p = (float)(rng() % 2);
        s = open_sampler(&p, n);
        for (uint32_t d = 0; d < 4; d++) {
            td_sampler_draw(s, logits, d, NULL, 0, &out);
            assert_true(out.no_choice == !any && out.id < n);
            assert_true(out.no_choice || logits[out.id] > -INFINITY);
            td_sampler_accept(s, out.id);
            assert_true(isfinite(td_sampler_state(s).mu));
        }
        td_sampler_close(s);
    }
}

static void test_cut_by_xtc_happens_as_often_as_asked(void **state)
{
    const float logits[3] = {2, 1, 0};
    struct td_sampling p;
    struct td_sampler *s;
    uint32_t n_cut = 0;

    (void)state;
    td_sampling_default(&p);
    p.xtc_probability = 0.3f;
    p.xtc_threshold = 0.2f; /* the shares are 0.67, 0.24 and 0.09 */
    s = open_sampler(&p, 3);
    for (uint32_t pos = 0; pos < 10000; pos++) {
        double probs[3];

        td_sampler_probs(s, logits, pos, NULL, 0, probs);
        assert_true((probs[0] == 0) == (td_sampler_uniform(0, 0, pos, 1) < p.xtc_probability));
        assert_true(probs[1] > 0 && probs[2] > 0);
        n_cut += probs[0] == 0;
    }
    td_sampler_close(s);
    assert_true(n_cut > 2800 && n_cut < 3200); /* four standard deviations are 183 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts_agree_with_a_full_sort),
        cmocka_unit_test(test_cuts_always_leave_an_id),
        cmocka_unit_test(test_cut_by_xtc_happens_as_often_as_asked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
