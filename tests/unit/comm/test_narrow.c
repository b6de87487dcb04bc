/* Narrowed floats against hand-made values and error bounds, and sums over them: the same on all ranks, near the exact one. */
#include "comm/narrow.h"
#include "tests/unit/comm/comm_threads.h"

#include <math.h>

static void test_narrow_bf16_rounds_to_nearest_even(void **state)
{
    /* 1 + 2^-8 lies half way between 1 and 1 + 2^-7: the even one is 1; 1 + 3 * 2^-8 goes up to 1 + 2^-6. */
    const float in[] = {1.0f, 1.00390625f, 1.01171875f, -3.0f, 0.0f, 65536.0f};
    const float want[] = {1.0f, 1.0f, 1.015625f, -3.0f, 0.0f, 65536.0f};
    uint16_t packed[6];
    float out[6];

    (void)state;
    assert_int_equal(td_narrow_bytes(TD_EXCHANGE_BF16, 6), 12);
    td_narrow_pack(TD_EXCHANGE_BF16, in, 6, packed);
    td_narrow_unpack(TD_EXCHANGE_BF16, packed, 6, out);
    assert_memory_equal(out, want, sizeof want);
}

static void test_narrow_q8_0_keeps_multiples_of_its_scale_and_bounds_the_rest(void **state)
{
    float in[75], out[75];
    uint8_t packed[3 * 34];

    (void)state;
    assert_int_equal(td_narrow_bytes(TD_EXCHANGE_Q8_0, 75), 3 * 34);
    for (int i = 0; i < 75; i++) /* the largest is 127 quarters, so the scale is a quarter */
        in[i] = i % 32 == 5 ? -31.75f : 0.25f * (float)(i % 32);
    td_narrow_pack(TD_EXCHANGE_Q8_0, in, 75, packed);
    td_narrow_unpack(TD_EXCHANGE_Q8_0, packed, 75, out);
    assert_memory_equal(out, in, sizeof in);

    for (int i = 0; i < 75; i++)
        in[i] = sinf((float)(i * i)) * (i < 32 ? 1e-3f : 40.0f);
    td_narrow_pack(TD_EXCHANGE_Q8_0, in, 75, packed);
    td_narrow_unpack(TD_EXCHANGE_Q8_0, packed, 75, out);
    for (int i = 0; i < 75;
         i++) /* half a step, and the scale's own rounding, which binary16 has coarse below 6e-5 */
        assert_true(fabsf(out[i] - in[i]) <=
                    (i < 32 ? 1e-3f / 127.0f * 0.6f + 127.0f * 6e-8f : 40.0f / 127.0f * 0.57f));
}

static void test_narrow_q8_0_hides_no_infinity(void **state)
{
    float in[40] = {[3] = INFINITY}, out[40];
    uint8_t packed[2 * 34];

    (void)state;
    td_narrow_pack(TD_EXCHANGE_Q8_0, in, 40, packed);
    td_narrow_unpack(TD_EXCHANGE_Q8_0, packed, 40, out);
    assert_true(isnan(out[0]) && isnan(out[3]));
    assert_true(out[35] == 0.0f);
}

enum { FLOATS = 300 };

static float sums[MAX_RANKS][FLOATS];

static void sum_narrow(struct comm_check *k, void *dtype)
{
    uint32_t me = td_comm_rank(k->comm), n = td_comm_size(k->comm);
    struct td_leaf_run runs[MAX_RANKS];
    struct td_tree_layout layout = {n, runs};
    static float scratch[MAX_RANKS][MAX_RANKS * FLOATS];
    float own[FLOATS];
    struct td_comm_stats stats;
    struct td_err err;

    for (uint32_t r = 0; r < n; r++)
        runs[r] = (struct td_leaf_run){r, r + 1};
    for (int i = 0; i < FLOATS; i++)
        own[i] = cosf((float)i * (float)(me + 1));
    td_comm_set_exchange(k->comm, *(enum td_exchange_dtype *)dtype);
    td_comm_stats_reset(k->comm);
    check_ok(k, td_comm_tree_sum(k->comm, &layout, own, FLOATS, scratch[me], sums[me], &err), &err);
    td_comm_stats(k->comm, &stats);
    if (!k->two_levels &&
        stats.sent_bytes != td_narrow_bytes(*(enum td_exchange_dtype *)dtype, FLOATS) * (n - 1))
        check_fail(k, "sent bytes", stats.sent_bytes, 0);
}

static void run_narrow(uint32_t n, const uint32_t *hosts, bool two_levels,
                       enum td_exchange_dtype dtype, double bound)
{
    struct td_comm *comms[MAX_RANKS];

    assert_int_equal(td_comm_shm_open(n, hosts, comms, NULL), TD_OK);
    run_ends(n, comms, 1, two_levels, sum_narrow, &dtype, NULL);
    for (uint32_t r = 1; r < n; r++)
        assert_memory_equal(sums[r], sums[0], sizeof sums[0]);
    for (int i = 0; i < FLOATS; i++) {
        double exact = 0.0;

        for (uint32_t r = 0; r < n; r++)
            exact += (double)cosf((float)i * (float)(r + 1));
        assert_true(fabs((double)sums[0][i] - exact) <= bound);
    }
}

/* A part is at most 1, so BF16 is off by 2^-9 of it and Q8_0 by half of 1/127; two joined parts count twice. */
static void test_narrow_sums_are_the_same_on_all_ranks_and_near(void **state)
{
    const uint32_t apart[] = {0, 1, 2, 3}, pairs[] = {0, 0, 1, 1}, here[] = {0, 0, 0, 0};

    (void)state;
    run_narrow(4, apart, false, TD_EXCHANGE_BF16, 4.0 / 512.0 + 1e-6);
    run_narrow(4, apart, false, TD_EXCHANGE_Q8_0, 4.0 * 0.57 / 127.0);
    run_narrow(4, pairs, true, TD_EXCHANGE_BF16, 4.0 / 512.0 + 1e-6);
    run_narrow(4, pairs, true, TD_EXCHANGE_Q8_0, 4.0 * 0.57 / 127.0);
    run_narrow(2, apart, false, TD_EXCHANGE_BF16, 2.0 / 512.0 + 1e-6);
    run_narrow(4, here, true, TD_EXCHANGE_Q8_0, 1e-6); /* one host: nothing is narrowed */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_narrow_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_narrow_q8_0_keeps_multiples_of_its_scale_and_bounds_the_rest),
        cmocka_unit_test(test_narrow_q8_0_hides_no_infinity),
        cmocka_unit_test(test_narrow_sums_are_the_same_on_all_ranks_and_near),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
