#include "daemon/coordinator/quota.h"

#include "tests/unit/check.h"

#include <stdlib.h>

#define S UINT64_C(1000000000)

static void init(struct td_quota *q, uint32_t max_open, uint32_t tokens_per_minute)
{
    td_quota_init(q, &(struct td_quota_limits){max_open, tokens_per_minute}, 100 * S);
}

static void test_quota_without_limits_takes_everything(void **state)
{
    struct td_quota q;
    uint64_t wait_ns;

    (void)state;
    init(&q, 0, 0);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(td_quota_check(&q, 0, 256, UINT32_MAX, 100 * S, &wait_ns), TD_QUOTA_FITS);
        td_quota_take(&q, 0, UINT32_MAX, 100 * S);
    }
    assert_int_equal(td_quota_n_open(&q, 0), 1000);
}

static void test_quota_counts_open_requests_of_each_key(void **state)
{
    struct td_quota q;
    uint64_t wait_ns;

    (void)state;
    init(&q, 3, 0);
    assert_int_equal(td_quota_check(&q, 1, 4, 0, 100 * S, &wait_ns), TD_QUOTA_NEVER);
    for (int i = 0; i < 2; i++)
        td_quota_take(&q, 1, 10, 100 * S);
    assert_int_equal(td_quota_check(&q, 1, 1, 0, 100 * S, &wait_ns), TD_QUOTA_FITS);
    assert_int_equal(td_quota_check(&q, 1, 2, 0, 100 * S, &wait_ns), TD_QUOTA_CONCURRENCY);
    assert_int_equal(td_quota_check(&q, TD_QUOTA_KEYS - 1, 3, 0, 100 * S, &wait_ns), TD_QUOTA_FITS);
    td_quota_give_back(&q, 1, 0, 101 * S);
    assert_int_equal(td_quota_check(&q, 1, 2, 0, 101 * S, &wait_ns), TD_QUOTA_FITS);
}

static void test_quota_bucket_fills_evenly_and_says_how_long_it_takes(void **state)
{
    struct td_quota q;
    uint64_t wait_ns = 0, full_ns;

    (void)state;
    init(&q, 0, 600); /* ten in a second */
    td_quota_take(&q, 2, 600, 100 * S);
    assert_int_equal(td_quota_tokens(&q, 2, 100 * S, &full_ns), 0);
    assert_int_equal(full_ns / S, 60);
    assert_int_equal(td_quota_check(&q, 2, 1, 50, 100 * S, &wait_ns), TD_QUOTA_TOKENS);
    assert_int_equal((wait_ns + S / 1000) / S, 5);
    assert_int_equal(td_quota_check(&q, 2, 1, 50, 100 * S + wait_ns, &wait_ns), TD_QUOTA_FITS);
    assert_int_equal(td_quota_check(&q, 2, 1, 50, 103 * S, &wait_ns), TD_QUOTA_TOKENS);
    assert_int_equal((wait_ns + S / 1000) / S, 2);
    assert_int_equal(td_quota_tokens(&q, 2, 103 * S, &full_ns), 30);
    assert_int_equal(td_quota_tokens(&q, 2, 10000 * S, &full_ns), 600); /* and no more */
    assert_int_equal(full_ns, 0);
    assert_int_equal(td_quota_tokens(&q, 1, 100 * S, &full_ns), 600); /* another key's is full */
}

static void test_quota_gives_back_what_was_not_used(void **state)
{
    struct td_quota q;
    uint64_t full_ns;

    (void)state;
    init(&q, 0, 600);
    td_quota_take(&q, 0, 400, 100 * S);
    assert_int_equal(td_quota_tokens(&q, 0, 100 * S, &full_ns), 200);
    td_quota_give_back(&q, 0, 300, 100 * S);
    assert_int_equal(td_quota_tokens(&q, 0, 100 * S, &full_ns), 500);
    td_quota_take(&q, 0, 400, 100 * S);
    td_quota_give_back(&q, 0, 400, 160 * S); /* it has filled meanwhile: nothing on top */
    assert_int_equal(td_quota_tokens(&q, 0, 160 * S, &full_ns), 600);
}

static void
test_quota_lets_a_large_request_through_when_the_bucket_is_full_and_makes_it_a_debt(void **state)
{
    struct td_quota q;
    uint64_t wait_ns = 0, full_ns;

    (void)state;
    init(&q, 0, 600);
    td_quota_take(&q, 0, 100, 100 * S);
    assert_int_equal(td_quota_check(&q, 0, 1, 1800, 100 * S, &wait_ns), TD_QUOTA_TOKENS);
    assert_int_equal((wait_ns + S / 1000) / S, 10); /* until it is full */
    assert_int_equal(td_quota_check(&q, 0, 1, 1800, 110 * S, &wait_ns), TD_QUOTA_FITS);
    td_quota_take(&q, 0, 1800, 110 * S); /* 1200 in debt: two minutes */
    assert_int_equal(td_quota_tokens(&q, 0, 110 * S, &full_ns), 0);
    assert_int_equal((full_ns + S / 1000) / S, 180);
    assert_int_equal(td_quota_check(&q, 0, 1, 10, 200 * S, &wait_ns), TD_QUOTA_TOKENS);
    assert_int_equal((wait_ns + S / 1000) / S, 31);
    td_quota_give_back(&q, 0, 1700, 200 * S); /* it was short after all */
    assert_int_equal(td_quota_check(&q, 0, 1, 10, 200 * S, &wait_ns), TD_QUOTA_FITS);
}

/* Whatever a key asks for, over a long time it gets no more than its rate, one full bucket and one debt; and who waits as
 * long as it is told is taken. */
static void test_quota_holds_the_rate_over_an_hour_of_random_requests(void **state)
{
    enum { RATE = 6000, MAX_TOKENS = 9000 };
    uint64_t now = 100 * S, used = 0, wait_ns;
    unsigned seed = 11;
    struct td_quota q;

    (void)state;
    print_message("seed %u\n", seed);
    srand(seed);
    init(&q, 0, RATE);
    while (now < 3700 * S) {
        uint64_t n = 1 + (uint64_t)rand() % MAX_TOKENS, n_used = (uint64_t)rand() % (n + 1);

        if (td_quota_check(&q, 5, 1, n, now, &wait_ns) != TD_QUOTA_FITS) {
            assert_true(wait_ns > 0 && wait_ns < 400 * S);
            now += wait_ns;
            assert_int_equal(td_quota_check(&q, 5, 1, n, now, &wait_ns), TD_QUOTA_FITS);
        }
        td_quota_take(&q, 5, n, now);
        now += (uint64_t)rand() % S;
        td_quota_give_back(&q, 5, n - n_used, now);
        used += n_used;
    }
    assert_true(used <= RATE * 60u + RATE + MAX_TOKENS);
    assert_true(used > RATE * 60u / 2);
    assert_int_equal(td_quota_n_open(&q, 5), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quota_without_limits_takes_everything),
        cmocka_unit_test(test_quota_counts_open_requests_of_each_key),
        cmocka_unit_test(test_quota_bucket_fills_evenly_and_says_how_long_it_takes),
        cmocka_unit_test(test_quota_gives_back_what_was_not_used),
        cmocka_unit_test(
            test_quota_lets_a_large_request_through_when_the_bucket_is_full_and_makes_it_a_debt),
        cmocka_unit_test(test_quota_holds_the_rate_over_an_hour_of_random_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
