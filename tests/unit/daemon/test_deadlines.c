#include "daemon/coordinator/deadlines.h"

#include "tests/unit/check.h"

#include <stdlib.h>

static void test_deadlines_gives_them_in_order(void **state)
{
    struct td_deadlines d = {0};
    struct td_deadline items[100] = {{0}};
    unsigned seed = 3;
    uint64_t last = 0;

    (void)state;
    print_message("seed %u\n", seed);
    srand(seed);
    assert_null(td_deadlines_passed(&d, UINT64_MAX));
    for (int i = 0; i < 100; i++) {
        items[i].at_ns = 1 + (uint64_t)rand() % 50;
        assert_int_equal(td_deadlines_add(&d, &items[i]), TD_OK);
    }
    for (int i = 0; i < 100; i++) {
        struct td_deadline *next = td_deadlines_passed(&d, UINT64_MAX);

        assert_true(next->at_ns >= last);
        last = next->at_ns;
        assert_null(td_deadlines_passed(&d, last - 1));
        assert_ptr_equal(td_deadlines_passed(&d, last), next);
        td_deadlines_remove(&d, next);
    }
    assert_null(td_deadlines_passed(&d, UINT64_MAX));
    td_deadlines_deinit(&d);
}

/* Against a plain search over all of them. */
static void test_deadlines_survives_any_order_of_adding_and_removing(void **state)
{
    enum { N = 60, ROUNDS = 20000 };
    struct td_deadlines d = {0};
    struct td_deadline items[N] = {{0}};
    unsigned seed = 29;

    (void)state;
    print_message("seed %u\n", seed);
    srand(seed);
    for (int i = 0; i < ROUNDS; i++) {
        struct td_deadline *item = &items[rand() % N], *first = NULL;
        const struct td_deadline *got;

        if (item->place) {
            td_deadlines_remove(&d, item);
            td_deadlines_remove(&d, item); /* which does nothing */
        } else {
            item->at_ns = (uint64_t)rand() % 1000;
            assert_int_equal(td_deadlines_add(&d, item), TD_OK);
        }
        for (int k = 0; k < N; k++)
            if (items[k].place && (!first || items[k].at_ns < first->at_ns))
                first = &items[k];
        got = td_deadlines_passed(&d, 500);
        if (!first || first->at_ns > 500) {
            assert_null(got);
        } else {
            assert_non_null(got);
            assert_int_equal(got->at_ns, first->at_ns);
        }
    }
    td_deadlines_deinit(&d);
    assert_int_equal(items[0].place, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deadlines_gives_them_in_order),
        cmocka_unit_test(test_deadlines_survives_any_order_of_adding_and_removing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
