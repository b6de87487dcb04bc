#include "daemon/api/addrcount.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>

static struct td_addrcount counts;

static struct td_addrcount_entry *add(const char *text)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(1)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(2)};
    if (inet_pton(AF_INET, text, &in.sin_addr) == 1) {
        return td_addrcount_add(&counts, (const struct sockaddr *)&in);
    }
    assert_int_equal(inet_pton(AF_INET6, text, &in6.sin6_addr), 1);
    return td_addrcount_add(&counts, (const struct sockaddr *)&in6);
}

static void test_addrcount_counts_ipv4_by_address_and_ipv6_by_network(void **state)
{
    (void)state;
    static const char *const same[][2] = {
        {"10.0.0.1", "10.0.0.1"},
        {"10.0.0.1", "::ffff:10.0.0.1"},
        {"2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"},
    };
    static const char *const different[][2] = {
        {"10.0.0.1", "10.0.0.2"}, {"2001:db8:1:2::1", "2001:db8:1:3::1"}, {"10.0.0.1", "::1"}};
    td_addrcount_init(&counts);
    for (size_t i = 0; i < 3; i++) {
        struct td_addrcount_entry *a = add(same[i][0]);
        struct td_addrcount_entry *b = add(same[i][1]);
        assert_ptr_equal(a, b);
        assert_int_equal(td_addrcount_held(a), 2);
        td_addrcount_release(&counts, a);
        assert_int_equal(td_addrcount_held(b), 1);
        td_addrcount_release(&counts, b);
        a = add(different[i][0]);
        b = add(different[i][1]);
        assert_ptr_not_equal(a, b);
        assert_int_equal(td_addrcount_held(a), 1);
        td_addrcount_release(&counts, a);
        td_addrcount_release(&counts, b);
    }
    td_addrcount_release(&counts, NULL);
}

static void test_addrcount_forgets_who_has_gone(void **state)
{
    (void)state;
    enum { N = 5000 };
    static struct td_addrcount_entry *held[N];
    char text[32];
    td_addrcount_init(&counts);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) {
            snprintf(text, sizeof(text), "10.1.%d.%d", i / 250, i % 250);
            held[i] = add(text);
            assert_int_equal(td_addrcount_held(held[i]), 1);
        }
        for (int i = 0; i < N; i++) {
            td_addrcount_release(&counts, held[(i * 7 + 3) % N]);
        }
        for (size_t b = 0; b < TD_ADDRCOUNT_BUCKETS; b++) {
            assert_null(counts.buckets[b]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addrcount_counts_ipv4_by_address_and_ipv6_by_network),
        cmocka_unit_test(test_addrcount_forgets_who_has_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
