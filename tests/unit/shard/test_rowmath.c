#include "shard/rowmath.h"

#include "kernels/detmath.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 300 };

static uint64_t seed;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

/* Coarse, so that many are equal, with NaN, infinities and both zeros among them. */
static void fill(float *z, uint32_t n)
{
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 3e38f, -3e38f, 1e-45f};

    for (uint32_t i = 0; i < n; i++)
        z[i] = rnd(6) ? (float)rnd(40) * 0.5f - 10 : special[rnd(8)];
}

/* Every loop against the plainest one, at every length around a vector's, from an odd address. */
static void test_rowmath_is_the_plain_loop_at_every_length(void **state)
{
    float memory[MOST + 1], clean[MOST], *z = memory + 1;
    double w[MOST];

    (void)state;
    seed = 44;
    for (uint32_t round = 0; round < 4000; round++) {
        uint32_t n = rnd(MOST + 1), at = 0, rank = 0;
        float max = -INFINITY, floor;

        fill(z, n);
        td_rowmath_clean(z, n, clean);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(clean[i] == (isnan(z[i]) ? -INFINITY : z[i]));
            max = z[i] > max ? z[i] : max;
        }
        assert_true(td_rowmath_max(z, n) == max);
        floor = rnd(4) ? (float)rnd(40) * 0.5f - 10 : max;
        while (at < n && z[at] != floor)
            at++;
        assert_int_equal(td_rowmath_find(z, n, floor), at);
        for (at = 0; at < n && !(z[at] > floor); at++)
            ;
        assert_int_equal(td_rowmath_above(z, n, floor), at);
        if (n == 0)
            continue;
        at = rnd(n);
        for (uint32_t i = 0; i < n; i++)
            rank += z[i] > z[at] || (z[i] == z[at] && i < at);
        assert_int_equal(td_rowmath_rank(z, n, at), rank);
        td_rowmath_weights(clean, n, max, 1.25, w);
        for (uint32_t i = 0; i < n; i++) {
            double want =
                clean[i] == max ? 1 : td_detmath_exp(((double)clean[i] - (double)max) * 1.25);

            want = ldexp(nearbyint(ldexp(want, 34)), -34);

            assert_memory_equal(&w[i], &want, sizeof want); /* the bits, whatever the vectors */
        }
    }
}

/* Lanes by index, joined by halves: the bits of that order and of no other. */
static void test_rowmath_sums_in_one_order(void **state)
{
    double w[MOST], lane[TD_ROWMATH_LANES], want;

    (void)state;
    seed = 45;
    for (uint32_t round = 0; round < 2000; round++) {
        uint32_t n = rnd(MOST + 1);

        memset(lane, 0, sizeof lane);
        for (uint32_t i = 0; i < n; i++) {
            w[i] = (double)(rnd(1 << 30) + 1) * (rnd(2) ? 1e-9 : 1e3);
            lane[i % TD_ROWMATH_LANES] += w[i];
        }
        for (uint32_t half = TD_ROWMATH_LANES / 2; half; half /= 2)
            for (uint32_t l = 0; l < half; l++)
                lane[l] += lane[l + half];
        want = td_rowmath_sum(w, n);
        assert_memory_equal(&want, lane, sizeof want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rowmath_is_the_plain_loop_at_every_length),
        cmocka_unit_test(test_rowmath_sums_in_one_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
