#include "daemon/engine/draft.h"

#include "tests/unit/check.h"

static uint32_t propose(struct td_draft *d, const uint32_t *ids, uint32_t n, uint32_t max,
                        uint32_t *out)
{
    return td_draft_lookup(ids, n, td_draft_wish(d, max), out);
}

static void expect(const uint32_t *ids, uint32_t n, uint32_t max, const uint32_t *want,
                   uint32_t n_want)
{
    struct td_draft d = {.len = 8};
    uint32_t out[16];

    assert_int_equal(propose(&d, ids, n, max, out), n_want);
    if (n_want)
        assert_memory_equal(out, want, n_want * sizeof *want);
}

#define EXPECT(max, want, ...)                                                                     \
    do {                                                                                           \
        const uint32_t ids[] = {__VA_ARGS__};                                                      \
                                                                                                   \
        expect(ids, sizeof ids / sizeof *ids, max, want, sizeof want / sizeof *want);              \
    } while (0)

static void test_draft_is_what_followed_the_longest_and_latest_match(void **state)
{
    static const uint32_t none[1], three[] = {7, 8, 9}, one[] = {7}, later[] = {5, 1, 2},
                                   longer[] = {6, 9, 1};

    (void)state;
    EXPECT(3, three, 1, 2, 7, 8, 9, 4, 1, 2);
    EXPECT(1, one, 1, 2, 7, 8, 9, 4, 1, 2);
    EXPECT(3, later, 1, 2, 7, 8, 1, 2, 5, 1, 2);
    EXPECT(3, longer, 3, 1, 2, 6, 9, 1, 2, 5, 3, 1, 2);
    expect((const uint32_t[]){4, 2, 7, 1, 2}, 5, 8, none, 0); /* one token says too little */
    expect((const uint32_t[]){4, 5, 6}, 3, 8, none, 0);
    expect((const uint32_t[]){4}, 1, 8, none, 0);
    expect((const uint32_t[]){1, 2, 7, 1, 2}, 5, 0, none, 0);
    /* A run of one token goes on: the match may overlap the ending. */
    expect((const uint32_t[]){5, 5, 5, 5}, 4, 8, (const uint32_t[]){5}, 1);
}

/* The same by trying every place; no length is trusted but `max`. */
static void test_draft_is_what_a_search_finds(void **state)
{
    uint64_t seed = 9;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        uint32_t ids[60], out[16], best = 1, at = 0, n, want = 0;
        struct td_draft d = {.len = 16};

        seed = seed * 6364136223846793005u + 1442695040888963407u;
        n = 1 + (uint32_t)(seed >> 33) % 60;
        for (uint32_t i = 0; i < n; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            ids[i] = (uint32_t)(seed >> 33) % 3;
        }
        for (uint32_t end = 2; end < n; end++) {
            uint32_t len = 0;

            while (len < 8 && len < end && ids[end - 1 - len] == ids[n - 1 - len])
                len++;
            if (len > 1 && len >= best) {
                best = len;
                at = end;
            }
        }
        if (at)
            want = n - at < 5 ? n - at : 5;
        assert_int_equal(propose(&d, ids, n, 5, out), want);
        if (want)
            assert_memory_equal(out, ids + at, want * sizeof *ids);
    }
}

static void test_draft_lengths_follow_what_was_right(void **state)
{
    static const uint32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2};
    enum { N = sizeof ids / sizeof *ids };
    struct td_draft d = {0};
    uint32_t out[16], tries = 0;

    (void)state;
    assert_int_equal(propose(&d, ids, N, 16, out), 2); /* carefully at first */
    td_draft_judge(&d, 2, 2);
    assert_int_equal(propose(&d, ids, N, 16, out), 4);
    td_draft_judge(&d, 4, 4);
    assert_int_equal(propose(&d, ids, N, 16, out), 8);
    td_draft_judge(&d, 8, 3);
    assert_int_equal(propose(&d, ids, N, 16, out), 4);
    for (int step = 0; step < 400; step++) { /* where nothing is ever right, little is tried */
        uint32_t n = propose(&d, ids, N, 16, out);

        if (n) {
            td_draft_judge(&d, n, 0);
            tries++;
        }
    }
    assert_true(tries > 5 && tries < 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_draft_is_what_followed_the_longest_and_latest_match),
        cmocka_unit_test(test_draft_is_what_a_search_finds),
        cmocka_unit_test(test_draft_lengths_follow_what_was_right),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
