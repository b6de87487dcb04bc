/* The list of layouts: which are tried, which is best, and what is said of it. */
#include "shard/layouts.h"
#include "tests/unit/shard/predict_check.h"

#include <jansson.h>
#include <stdlib.h>

static struct small_model small; /* too large for the stack */
static struct td_machine machine;
static struct td_layouts layouts;
static const struct td_predict_load LOAD = {.batch = 8, .depth = 99, .prompt_tokens = 16};
static const struct td_layouts_source SOURCE = {"made up", "too"};

/* `tp` and `pp` 0: all. */
static enum td_status try_all(uint32_t n_ranks, uint32_t tp, uint32_t pp, uint64_t most_memory,
                              struct td_err *err)
{
    struct td_layouts_params params = {.model = &small.model,
                                       .machine = &machine,
                                       .plan = &small.params,
                                       .load = &LOAD,
                                       .most_memory_bytes = most_memory};

    set_model(&small, 1, 1);
    small.params.n_ranks = n_ranks;
    small.params.tp = tp;
    small.params.pp = pp;
    td_layouts_close(&layouts);
    return td_layouts_open(&params, &layouts, err);
}

static void open_all(uint32_t n_ranks)
{
    struct td_err err;

    if (try_all(n_ranks, 0, 0, 0, &err))
        fail_msg("%s", err.cause);
}

/* Hosts of one rank with 1 GB/s, and this link between them. */
static void set_hosts(uint32_t n, double latency_s)
{
    set_machine(&machine, n, 1);
    for (uint32_t i = 0; i < n; i++)
        machine.rank[i].memory_bytes_per_s = 1e9;
    machine.inter.latency_s = latency_s;
}

static void assert_says(const char *word)
{
    struct td_bytes out = {0};

    assert_int_equal(td_layouts_advise(&layouts, &out), TD_OK);
    if (!strstr(out.data, word))
        fail_msg("'%s' does not say '%s'", out.data, word);
    td_bytes_deinit(&out);
}

static void test_layouts_tries_every_way_to_cut_every_count(void **state)
{
    /* Two layers: at most two stages. */
    static const uint32_t want[][3] = {{1, 1, 1}, {2, 2, 1}, {2, 1, 2}, {3, 3, 1},
                                       {4, 4, 1}, {4, 2, 2}, {5, 5, 1}};
    struct td_err err;

    (void)state;
    set_hosts(5, 0.0);
    open_all(5);
    assert_int_equal(layouts.n, 7);
    for (uint32_t i = 0; i < layouts.n; i++) {
        assert_int_equal(layouts.row[i].n_ranks, want[i][0]);
        assert_int_equal(layouts.row[i].tp, want[i][1]);
        assert_int_equal(layouts.row[i].pp, want[i][2]);
        assert_true(layouts.row[i].fits && layouts.row[i].batch_fits);
    }
    assert_int_equal(try_all(5, 0, 2, 0, &err), TD_OK);
    assert_int_equal(layouts.n, 2); /* 1 x 2 and 2 x 2 */
    /* Above eight: those that divide it, and powers of two. */
    set_hosts(12, 0.0);
    assert_int_equal(try_all(12, 0, 1, 0, &err), TD_OK);
    assert_int_equal(layouts.n, 7); /* 1 2 3 4 6 8 12 */
    assert_int_equal(layouts.row[5].n_ranks, 8);
}

/* By its definition: no row of as many or fewer ranks is faster, and one with more ranks at most by 3 %. */
static void test_layouts_takes_the_fastest_that_is_worth_its_ranks(void **state)
{
    (void)state;
    for (double latency = 0.0; latency < 1e-3; latency = latency * 2.0 + 1e-7) {
        double best;

        set_hosts(8, latency);
        open_all(8);
        best = layouts.row[layouts.best].speed.decode.tokens_per_s;
        for (uint32_t i = 0; i < layouts.n; i++) {
            double worth = layouts.row[i].n_ranks > layouts.row[layouts.best].n_ranks ? 1.03 : 1.0;

            /* Several steps up may each be worth less: compare with what a step from here gives. */
            if (layouts.row[i].speed.decode.tokens_per_s > best * worth * 1.0000001)
                fail_msg("row %u has %g, row %u %g tokens/s", i,
                         layouts.row[i].speed.decode.tokens_per_s, layouts.best, best);
        }
    }
}

static void test_layouts_more_ranks_win_over_a_fast_link(void **state)
{
    (void)state;
    set_hosts(2, 0.0);
    open_all(2);
    assert_int_equal(layouts.row[layouts.best].tp, 2);
    assert_says("take 2 ranks (tensor parallel 2 x pipeline parallel 1)");
    assert_says("2.00 times one rank");
}

static void test_layouts_tensor_parallel_loses_over_a_slow_link_and_says_why(void **state)
{
    (void)state;
    /* 360448 bytes of weights at 1 GB/s are about 0.4 ms; seven delays of 1 ms are more. */
    set_hosts(2, 1e-3);
    open_all(2);
    assert_int_equal(layouts.row[layouts.best].n_ranks, 1);
    assert_true(layouts.row[1].speed.decode.tokens_per_s <
                layouts.row[0].speed.decode.tokens_per_s);
    assert_says("take 1 rank ");
    assert_says("limited by memory (100 %)");
    assert_says("more ranks would be slower");
    assert_says("because exchange latency takes 3000 us more"); /* two stages: three delays */
}

static void test_layouts_of_no_gain_takes_fewer_ranks(void **state)
{
    (void)state;
    /* Both ranks read the same memory. */
    set_machine(&machine, 1, 2);
    machine.rank[0].memory_bytes_per_s = machine.rank[1].memory_bytes_per_s = 0.5e9;
    machine.host_bytes_per_s[0] = 1e9;
    open_all(2);
    assert_int_equal(layouts.best, 0);
    assert_says("more ranks would be no faster");
}

static void test_layouts_that_do_not_fit_say_what_is_missing(void **state)
{
    struct td_err err;

    (void)state;
    set_hosts(2, 0.0);
    /* 360448 bytes of weights, and activations beside them. */
    assert_int_equal(try_all(2, 0, 0, 0, &err), TD_OK);
    assert_true(layouts.row[0].fits);
    assert_int_equal(layouts.row[0].weight_bytes, 360448 + 5 * 256); /* five norms of 64 */
    assert_int_equal(try_all(2, 0, 0, 300000, &err), TD_OK);
    assert_false(layouts.row[0].fits);
    assert_non_null(strstr(layouts.row[0].obstacle, "300000"));
    assert_int_equal(layouts.best, layouts.n);
    assert_says("no layout fits: rank 0 needs");
}

static void test_layouts_refuse_what_cannot_be(void **state)
{
    struct td_err err;

    (void)state;
    set_hosts(2, 0.0);
    assert_int_equal(try_all(3, 0, 0, 0, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "3 ranks: expected 1 to the machine's 2"));
    assert_int_equal(try_all(2, 0, 3, 0, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "pipeline parallel 3"));
    machine.rank[0].memory_bytes_per_s = -1.0;
    assert_int_equal(try_all(2, 0, 0, 0, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "rank 0"));
}

static void test_layouts_print_a_row_each_and_the_same_as_json(void **state)
{
    struct td_bytes text = {0}, json = {0};
    json_t *root, *rows;

    (void)state;
    set_hosts(2, 1e-3);
    open_all(2);
    assert_int_equal(td_layouts_print(&layouts, &SOURCE, &text), TD_OK);
    assert_non_null(strstr(text.data, "\n    1   1   1"));
    assert_non_null(strstr(text.data, "\n    2   2   1"));
    assert_non_null(strstr(text.data, "\n    2   1   2"));
    assert_non_null(strstr(text.data, "1000.0 us and "));
    assert_non_null(strstr(text.data, "take 1 rank"));
    assert_int_equal(td_layouts_print_json(&layouts, &SOURCE, &json), TD_OK);
    root = json_loads(json.data, 0, NULL);
    assert_non_null(root);
    rows = json_object_get(root, "layouts");
    assert_int_equal(json_array_size(rows), 3);
    for (uint32_t i = 0; i < 3; i++) {
        const json_t *decode = json_object_get(json_array_get(rows, i), "decode");

        assert_true(json_real_value(json_object_get(decode, "tokens_per_second")) ==
                    layouts.row[i].speed.decode.tokens_per_s);
    }
    assert_int_equal(json_integer_value(json_object_get(
                         json_object_get(json_object_get(root, "fastest"), "decode"), "ranks")),
                     1);
    json_decref(root);
    td_bytes_deinit(&text);
    td_bytes_deinit(&json);
    td_layouts_close(&layouts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts_tries_every_way_to_cut_every_count),
        cmocka_unit_test(test_layouts_takes_the_fastest_that_is_worth_its_ranks),
        cmocka_unit_test(test_layouts_more_ranks_win_over_a_fast_link),
        cmocka_unit_test(test_layouts_tensor_parallel_loses_over_a_slow_link_and_says_why),
        cmocka_unit_test(test_layouts_of_no_gain_takes_fewer_ranks),
        cmocka_unit_test(test_layouts_that_do_not_fit_say_what_is_missing),
        cmocka_unit_test(test_layouts_refuse_what_cannot_be),
        cmocka_unit_test(test_layouts_print_a_row_each_and_the_same_as_json),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
