#include "sampler_check.h"

#include "shard/penalty.h"

#include <math.h>

/* Counts made anew from the window for every comparison. */
static void test_penalty_looks_back_over_its_window(void **state)
{
    enum { N = 30, LONG = 200 };

    (void)state;
    rng_state = 61;
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t text[LONG], n_prompt = (uint32_t)(rng() % LONG);
        struct td_sampling p;
        struct td_penalty *t;

        td_sampling_default(&p);
        p.repetition_penalty = 1.5f;
        p.presence_penalty = 0.5f;
        p.frequency_penalty = 0.25f;
        p.repeat_last_n = round % 4 ? (int32_t)(1 + rng() % 50) : -1;
        t = td_penalty_open(&p, N);
        assert_non_null(t);
        for (uint32_t i = 0; i < LONG; i++) {
            uint32_t window = p.repeat_last_n < 0 ? LONG : (uint32_t)p.repeat_last_n;
            uint32_t first = i + 1 > window ? i + 1 - window : 0;
            float z[N];

            text[i] = (uint32_t)(rng() % (N + 3)); /* three lie outside the vocabulary */
            td_penalty_accept(t, text[i], i >= n_prompt);
            for (uint32_t id = 0; id < N; id++)
                z[id] = id % 2 ? 1.0f : -1.0f;
            td_penalty_apply(t, 0, 10, z);
            td_penalty_apply(t, 10, N - 10, z + 10);
            for (uint32_t id = 0; id < N; id++) {
                float want = id % 2 ? 1.0f : -1.0f;
                uint32_t n = 0, n_output = 0;

                for (uint32_t j = first; j <= i; j++) {
                    n += text[j] == id;
                    n_output += text[j] == id && j >= n_prompt;
                }
                if (n)
                    want = want > 0 ? want / 1.5f : want * 1.5f;
                if (n_output)
                    want -= 0.5f + 0.25f * (float)n_output;
                if (fabsf(z[id] - want) > 1e-6f)
                    fail_msg("round %u, place %u, id %u: %g, expected %g", round, i, id,
                             (double)z[id], (double)want);
            }
        }
        td_penalty_close(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_penalty_looks_back_over_its_window),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
