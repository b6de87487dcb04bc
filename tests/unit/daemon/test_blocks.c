#include "daemon/engine/blocks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static uint64_t rng_state;

static uint32_t rng(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

static struct td_blocks *open_blocks(uint32_t attention, uint32_t window, uint32_t latent,
                                     uint32_t recurrent)
{
    struct td_blocks_params p = {.pool = {attention, window, latent, recurrent},
                                 .block_tokens = 4,
                                 .max_seqs = 5,
                                 .max_tokens_per_seq = 24};
    struct td_blocks *b = NULL;
    struct td_err err = {0};

    if (td_blocks_open(&p, &b, &err))
        fail_msg("%s", err.cause);
    return b;
}

static void expect_whole(const struct td_blocks *b)
{
    struct td_err err = {0};

    if (td_blocks_check(b, &err))
        fail_msg("%s", err.cause);
}

static void test_blocks_cover_tokens_and_come_back(void **state)
{
    struct td_blocks *b = open_blocks(7, 0, 0, 0);
    uint32_t n, first;

    (void)state;
    assert_true(td_blocks_reserve(b, 0, 1));
    first = td_blocks_table(b, TD_LAYER_ATTENTION, 0, &n)[0];
    assert_int_equal(n, 1);
    assert_true(td_blocks_reserve(b, 0, 4));
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 6);
    assert_true(td_blocks_reserve(b, 0, 5));
    assert_int_equal(td_blocks_table(b, TD_LAYER_ATTENTION, 0, &n)[0], first);
    assert_int_equal(n, 2);
    assert_true(td_blocks_reserve(b, 1, 20));
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 0);
    assert_true(td_blocks_reserve(b, 0, 8));
    assert_false(td_blocks_reserve(b, 0, 9));
    td_blocks_table(b, TD_LAYER_ATTENTION, 0, &n);
    assert_int_equal(n, 2);
    expect_whole(b);
    td_blocks_release(b, 1);
    td_blocks_release(b, 1);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 5);
    assert_true(td_blocks_fits(b, 16, 1, 0));
    assert_false(td_blocks_fits(b, 17, 1, 0));
    assert_true(td_blocks_fits(b, 17, 1, 1));
    assert_int_equal(td_blocks_state_slot(b, 0), UINT32_MAX);
    expect_whole(b);
    td_blocks_close(b);
    td_blocks_close(NULL);
}

static void test_blocks_are_freed_with_their_last_reference(void **state)
{
    struct td_blocks *b = open_blocks(6, 0, 0, 0);
    uint32_t n, id, own;

    (void)state;
    assert_true(td_blocks_reserve(b, 0, 12));
    for (uint32_t i = 0; i < 2; i++)
        td_blocks_adopt(b, TD_LAYER_ATTENTION, 1, td_blocks_table(b, TD_LAYER_ATTENTION, 0, &n)[i]);
    assert_true(td_blocks_reserve(b, 1, 12));
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 2);
    assert_int_equal(td_blocks_table(b, TD_LAYER_ATTENTION, 1, &n)[1],
                     td_blocks_table(b, TD_LAYER_ATTENTION, 0, &n)[1]);
    id = td_blocks_table(b, TD_LAYER_ATTENTION, 0, &n)[0];
    td_blocks_ref(b, TD_LAYER_ATTENTION, id);
    expect_whole(b);
    td_blocks_release(b, 0);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 3);
    assert_int_equal(td_blocks_n_idle(b, TD_LAYER_ATTENTION), 0);
    td_blocks_release(b, 1);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 5);
    assert_int_equal(td_blocks_n_idle(b, TD_LAYER_ATTENTION), 1);
    assert_true(td_blocks_is_idle(b, TD_LAYER_ATTENTION, id));
    expect_whole(b);
    /* A sequence takes it in the place of one of its own. */
    assert_true(td_blocks_reserve(b, 2, 8));
    own = td_blocks_table(b, TD_LAYER_ATTENTION, 2, &n)[1];
    td_blocks_replace(b, TD_LAYER_ATTENTION, 2, 1, id);
    assert_int_equal(td_blocks_table(b, TD_LAYER_ATTENTION, 2, &n)[1], id);
    assert_int_not_equal(own, id);
    assert_int_equal(n, 2);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 4);
    assert_false(td_blocks_is_idle(b, TD_LAYER_ATTENTION, id));
    expect_whole(b);
    td_blocks_release(b, 2);
    td_blocks_unref(b, TD_LAYER_ATTENTION, id);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 6);
    expect_whole(b);
    td_blocks_close(b);
}

static void test_blocks_of_all_four_kinds_are_reserved_together(void **state)
{
    struct td_blocks *b = open_blocks(12, 0, 6, 2);
    uint32_t n;

    (void)state;
    assert_true(td_blocks_reserve(b, 0, 9));
    td_blocks_table(b, TD_LAYER_LATENT, 0, &n);
    assert_int_equal(n, 3);
    td_blocks_table(b, TD_LAYER_RECURRENT, 0, &n);
    assert_int_equal(n, 1);
    assert_int_equal(td_blocks_state_slot(b, 0), td_blocks_table(b, TD_LAYER_RECURRENT, 0, &n)[0]);
    assert_false(td_blocks_reserve(b, 1, 13)); /* latent rows are short: nothing may be taken */
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 9);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_RECURRENT), 1);
    assert_true(td_blocks_reserve(b, 1, 1));
    assert_false(td_blocks_reserve(b, 2, 1)); /* no state is left */
    assert_true(td_blocks_reserve(b, 1, 12)); /* and a longer sequence needs no second one */
    expect_whole(b);
    td_blocks_release(b, 0);
    td_blocks_release(b, 1);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 12);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_LATENT), 6);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_RECURRENT), 2);
    expect_whole(b);
    td_blocks_close(b);
    b = open_blocks(12, 1, 0, 0);
    assert_true(td_blocks_reserve(b, 3, 2));
    assert_int_equal(td_blocks_state_slot(b, 3), 0);
    td_blocks_close(b);
}

static void test_blocks_refuse_a_model_without_memory_by_name(void **state)
{
    struct td_blocks *b = open_blocks(12, 0, 0, 0);
    enum td_layer_kind kinds[3] = {TD_LAYER_ATTENTION, TD_LAYER_ATTENTION, TD_LAYER_ATTENTION};
    static const struct {
        enum td_layer_kind kind;
        const char *name;
    } other[3] = {{TD_LAYER_WINDOW, "sliding-window"},
                  {TD_LAYER_LATENT, "latent (MLA)"},
                  {TD_LAYER_RECURRENT, "recurrent state"}};
    struct td_err err;

    (void)state;
    assert_int_equal(td_blocks_admit_model(b, kinds, 3, &err), TD_OK);
    for (int i = 0; i < 3; i++) {
        kinds[2] = other[i].kind;
        assert_int_equal(td_blocks_admit_model(b, kinds, 3, &err), TD_UNSUPPORTED);
        assert_non_null(strstr(err.cause, "layer 2"));
        assert_non_null(strstr(err.cause, other[i].name));
    }
    td_blocks_close(b);
}

static void test_blocks_open_refuses_a_pool_below_one_sequence(void **state)
{
    struct td_blocks_params p = {
        .pool = {5}, .block_tokens = 4, .max_seqs = 2, .max_tokens_per_seq = 21};
    struct td_blocks *b;
    struct td_err err;

    (void)state;
    assert_int_equal(td_blocks_open(&p, &b, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "5 blocks of 4 tokens"));
    p.block_tokens = 0;
    assert_int_equal(td_blocks_open(&p, &b, &err), TD_INVALID);
}

static void test_blocks_stay_whole_over_random_operations(void **state)
{
    struct td_blocks *b = open_blocks(11, 0, 9, 3);
    uint32_t held[5] = {0}, refs[64], n_refs = 0;

    (void)state;
    rng_state = 21;
    for (int op = 0; op < 20000; op++) {
        uint32_t seq = rng(5), n;

        switch (rng(5)) {
        case 4: /* a block that somebody else has */
            td_blocks_table(b, TD_LAYER_ATTENTION, seq, &n);
            if (n_refs > 0 && n > 0)
                td_blocks_replace(b, TD_LAYER_ATTENTION, seq, rng(n), refs[rng(n_refs)]);
            break;
        case 0: {
            uint32_t want = held[seq] + rng(6);

            if (want <= 24 && want > 0 && td_blocks_reserve(b, seq, want))
                held[seq] = want;
            break;
        }
        case 1:
            td_blocks_release(b, seq);
            held[seq] = 0;
            break;
        case 2:
            td_blocks_table(b, TD_LAYER_ATTENTION, seq, &n);
            if (n > 0 && n_refs < 64) {
                uint32_t id = td_blocks_table(b, TD_LAYER_ATTENTION, seq, &n)[rng(n)];

                td_blocks_ref(b, TD_LAYER_ATTENTION, id);
                refs[n_refs++] = id;
            }
            break;
        default:
            if (n_refs > 0)
                td_blocks_unref(b, TD_LAYER_ATTENTION, refs[--n_refs]);
        }
        if (op % 16 == 0)
            expect_whole(b);
    }
    for (uint32_t seq = 0; seq < 5; seq++)
        td_blocks_release(b, seq);
    while (n_refs > 0)
        td_blocks_unref(b, TD_LAYER_ATTENTION, refs[--n_refs]);
    expect_whole(b);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_ATTENTION), 11);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_LATENT), 9);
    assert_int_equal(td_blocks_n_free(b, TD_LAYER_RECURRENT), 3);
    td_blocks_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_cover_tokens_and_come_back),
        cmocka_unit_test(test_blocks_are_freed_with_their_last_reference),
        cmocka_unit_test(test_blocks_of_all_four_kinds_are_reserved_together),
        cmocka_unit_test(test_blocks_refuse_a_model_without_memory_by_name),
        cmocka_unit_test(test_blocks_open_refuses_a_pool_below_one_sequence),
        cmocka_unit_test(test_blocks_stay_whole_over_random_operations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
