/* The bump allocator: alignment, limits, reuse after a rewind. */
#include "tests/unit/check.h"

#include "kernels/base/arena.h"

#include <string.h>

static void test_arena_gives_aligned_memory_that_stays_until_rewind(void **state)
{
    struct td_arena a;
    unsigned char *p[200];

    (void)state;
    td_arena_init(&a, 1000, 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 200; i++) {
            size_t n = (size_t)(i * 37 % 500) + (i == 100 ? 100000 : 0);

            p[i] = td_arena_alloc(&a, n);
            assert_non_null(p[i]);
            assert_int_equal((uintptr_t)p[i] % 64, 0);
            memset(p[i], i, n);
        }
        for (int i = 0; i < 200; i++)
            for (size_t k = 0; k < (size_t)(i * 37 % 500); k++)
                assert_int_equal(p[i][k], i);
        td_arena_rewind(&a);
        assert_int_equal(a.used_bytes, 0);
    }
    assert_string_equal(td_arena_strndup(&a, "abcdef", 3), "abc");
    td_arena_deinit(&a);
}

static void test_arena_reuses_its_blocks_and_refuses_beyond_its_limit(void **state)
{
    struct td_arena a;
    void *first;

    (void)state;
    td_arena_init(&a, 0, 256);
    first = td_arena_alloc(&a, 100);
    assert_non_null(first);
    assert_non_null(td_arena_alloc(&a, 100));
    assert_null(td_arena_alloc(&a, 1));
    assert_null(td_arena_alloc(&a, SIZE_MAX));
    td_arena_rewind(&a);
    assert_ptr_equal(td_arena_alloc(&a, 1), first);
    td_arena_deinit(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena_gives_aligned_memory_that_stays_until_rewind),
        cmocka_unit_test(test_arena_reuses_its_blocks_and_refuses_beyond_its_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
