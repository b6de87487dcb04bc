#include "sampler_check.h"

#include "shard/dry.h"

#include <math.h>
#include <string.h>

enum { N = 20 };

static bool breaks(const struct td_sampling *p, uint32_t id)
{
    return id / 8 < p->n_dry_breaker_bytes && p->dry_breakers[id / 8] >> id % 8 & 1;
}

/* The definition of dry.h word by word: every occurrence of every id, compared backwards with the end of the text. */
static void reference(const struct td_sampling *p, const uint32_t *text, uint32_t n_text, double *z)
{
    uint32_t window = p->dry_penalty_last_n < 0 ? n_text : (uint32_t)p->dry_penalty_last_n;
    uint32_t first = n_text > window ? n_text - window : 0;
    uint32_t longest[N] = {0};

    for (uint32_t at = first + 1; at < n_text; at++) {
        uint32_t n = 0;

        if (text[at] >= N || breaks(p, text[at]))
            continue;
        while (at - n > first && text[at - 1 - n] == text[n_text - 1 - n] &&
               !breaks(p, text[n_text - 1 - n]))
            n++;
        longest[text[at]] = n > longest[text[at]] ? n : longest[text[at]];
    }
    for (uint32_t id = 0; id < N; id++)
        if (longest[id] >= (uint32_t)p->dry_allowed_length)
            z[id] -= (double)p->dry_multiplier *
                     pow((double)p->dry_base, longest[id] - (uint32_t)p->dry_allowed_length);
}

static void test_dry_agrees_with_its_definition(void **state)
{
    uint32_t n_punished = 0, n_windows_passed = 0;

    (void)state;
    rng_state = 51;
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t text[400], n_text = (uint32_t)(rng() % 400), n_ids = 2 + (uint32_t)(rng() % 5);
        uint8_t breakers[3] = {0};
        struct td_sampling p;
        struct td_dry *d;

        td_sampling_default(&p);
        p.dry_multiplier = (float)(0.1 + rng_unit());
        p.dry_base = (float)(1 + 0.2 * rng_unit());
        p.dry_allowed_length = (int32_t)(1 + rng() % 4);
        p.dry_penalty_last_n = rng() % 2 ? -1 : (int32_t)(1 + rng() % 100);
        p.dry_breakers = breakers;
        p.n_dry_breaker_bytes = (uint32_t)(rng() % 4);
        if (rng() % 2)
            breakers[0] = (uint8_t)(1 << rng() % 8);
        d = td_dry_open(&p, N);
        assert_non_null(d);
        for (uint32_t i = 0; i < n_text; i++) {
            uint32_t copied = i > 20 ? (uint32_t)(rng() % 20 + 1) : 0;

            text[i] = copied && rng() % 8 ? text[i - copied] : (uint32_t)(rng() % n_ids);
            if (rng() % 100 == 0)
                text[i] = N + (uint32_t)(rng() % 3); /* outside the vocabulary */
            td_dry_accept(d, text[i]);
            n_windows_passed += p.dry_penalty_last_n > 0 && i > 2 * (uint32_t)p.dry_penalty_last_n;
            if (rng() % 10)
                continue;
            float z[N];
            double want[N];

            for (uint32_t id = 0; id < N; id++)
                want[id] = (double)(z[id] = (float)rng_unit());
            reference(&p, text, i + 1, want);
            td_dry_begin(d);
            td_dry_apply(d, 0, 7, z);
            td_dry_apply(d, 7, N - 7, z + 7);
            td_dry_end(d);
            for (uint32_t id = 0; id < N; id++) {
                n_punished += want[id] < 0;
                if (!(fabs((double)z[id] - want[id]) <= 1e-6 * (1 + fabs(want[id]))))
                    fail_msg("round %u, text of %u, id %u: %g, expected %g", round, i + 1, id,
                             (double)z[id], want[id]);
            }
        }
        td_dry_close(d);
    }
    assert_true(n_punished > 1000 && n_windows_passed > 1000);
}

static void test_dry_survives_a_text_of_one_id(void **state)
{
    enum { LONG = 300000 };
    struct td_sampling p;
    struct td_dry *d;
    float z[2] = {INFINITY, 0}, one[2] = {1, 1};

    (void)state;
    td_sampling_default(&p);
    p.dry_multiplier = 1;
    p.dry_base = 100;
    d = td_dry_open(&p, 2);
    assert_non_null(d);
    td_dry_begin(d); /* nothing was said yet */
    td_dry_apply(d, 0, 2, one);
    td_dry_end(d);
    assert_true(one[0] == 1 && one[1] == 1);
    for (uint32_t i = 0; i < LONG; i++)
        td_dry_accept(d, 0);
    td_dry_begin(d);
    td_dry_apply(d, 0, 2, z);
    td_dry_apply(d, 0, 2, one);
    td_dry_end(d);
    assert_true(z[0] == INFINITY && z[1] == 0);
    assert_true(one[0] <= -1e29f && isfinite(one[0]) && one[1] == 1);
    td_dry_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dry_agrees_with_its_definition),
        cmocka_unit_test(test_dry_survives_a_text_of_one_id),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
