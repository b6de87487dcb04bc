/* Predictions against closed forms: bytes, operations and messages counted by hand for a model of two layers. */
#include "tests/unit/shard/predict_check.h"

#include <math.h>
#include <stdlib.h>

static struct small_model small; /* too large for the stack */
static struct td_plan plan;
static struct td_machine machine;
static struct td_prediction out;

static void predict(uint32_t tp, uint32_t pp, struct td_predict_load load)
{
    struct td_err err;

    set_model(&small, tp, pp);
    assert_int_equal(td_plan_make(&small.model, &small.params, &plan, &err), TD_OK);
    if (td_predict(&small.model, &plan, &machine, &load, &out, &err))
        fail_msg("%s", err.cause);
}

/* To a millionth. */
static void assert_near(double have, double want)
{
    if (!(fabs(have - want) <= 1e-6 * fabs(want) + 1e-15))
        fail_msg("got %.12g, expected %.12g", have, want);
}

static double all_parts(const struct td_predict_phase *p)
{
    double s = 0.0;

    for (int i = 0; i < TD_N_PARTS; i++)
        s += p->part_s[i];
    return s;
}

static const struct td_predict_load LOAD = {.batch = 2, .depth = 99, .prompt_tokens = 10};

/* Matrices and cache read by one row at depth 99, so with 100 keys, at `rate` bytes per second. */
static double read_seconds(double layers, double heads, double rate)
{
    double weights = 4.0 * (layers * LAYER_WEIGHTS + heads * HEAD_WEIGHTS);

    return weights / (td_predict_share_of(TD_F32).memory * rate) +
           layers * KV_BYTES * 100.0 / (td_predict_share_of_attention().memory * rate);
}

static void test_predict_reads_every_weight_and_key_once_per_token(void **state)
{
    (void)state;
    set_machine(&machine, 1, 1);
    machine.rank[0].memory_bytes_per_s = 1e9;
    predict(1, 1, LOAD);
    assert_near(out.decode.part_s[TD_PART_MEMORY], read_seconds(N_LAYERS, 1, 1e9));
    assert_near(out.decode.token_s, read_seconds(N_LAYERS, 1, 1e9));
    assert_near(out.decode.tokens_per_s, 1.0 / read_seconds(N_LAYERS, 1, 1e9));
    assert_int_equal(out.decode.bottleneck, TD_PART_MEMORY);
    /* Two sequences share the weights and not the cache. */
    assert_near(
        out.batch.step_s,
        4.0 * (2 * LAYER_WEIGHTS + HEAD_WEIGHTS) / (td_predict_share_of(TD_F32).memory * 1e9) +
            2.0 * N_LAYERS * KV_BYTES * 100.0 / (td_predict_share_of_attention().memory * 1e9));
    assert_near(out.batch.token_s, out.batch.step_s / 2.0);
}

static void test_predict_counts_two_operations_per_weight_and_the_attention(void **state)
{
    double ops = td_predict_share_of(TD_F32).ops * 1e9,
           attention = td_predict_share_of_attention().ops * 1e9;

    (void)state;
    set_machine(&machine, 1, 1);
    machine.rank[0].ops_per_s[TD_RATE_F32] = 1e9;
    predict(1, 1, LOAD);
    /* 4 heads of 16 over 100 keys: a multiplication and an addition each for scores and for sums. */
    assert_near(out.decode.token_s, 2.0 * (2 * LAYER_WEIGHTS + HEAD_WEIGHTS) / ops +
                                        N_LAYERS * 4.0 * 4 * 16 * 100 / attention);
    assert_int_equal(out.decode.bottleneck, TD_PART_ARITHMETIC);
    /* A prompt of 10: row i looks at i keys, 55 in all; one row passes the head. */
    assert_near(out.prefill.step_s, 2.0 * (10 * 2 * LAYER_WEIGHTS + HEAD_WEIGHTS) / ops +
                                        N_LAYERS * 4.0 * 4 * 16 * 55 / attention);
    assert_near(out.prefill.token_s, out.prefill.step_s / 10.0);
}

static void test_predict_a_prompt_in_chunks_does_the_same_arithmetic(void **state)
{
    struct td_predict_load chunks = LOAD;
    double whole;

    (void)state;
    set_machine(&machine, 1, 1);
    machine.rank[0].ops_per_s[TD_RATE_F32] = 1e9;
    predict(1, 1, LOAD);
    whole = out.prefill.step_s;
    chunks.prefill_chunk = 4;
    predict(1, 1, chunks);
    assert_near(out.prefill.step_s, whole);
    /* But it reads the weights in each of three steps; the first two want no logit. */
    set_machine(&machine, 1, 1);
    machine.rank[0].memory_bytes_per_s = 1e9;
    machine.rank[0].host_s = 1.0;
    predict(1, 1, chunks);
    assert_near(out.prefill.part_s[TD_PART_HOST] * 10.0, 3.0);
    assert_near(out.prefill.part_s[TD_PART_MEMORY] * 10.0,
                4.0 * (3 * 2 * LAYER_WEIGHTS + HEAD_WEIGHTS) /
                        (td_predict_share_of(TD_F32).memory * 1e9) +
                    N_LAYERS * KV_BYTES * (4.0 + 8.0 + 10.0) /
                        (td_predict_share_of_attention().memory * 1e9));
}

static void test_predict_hides_a_part_of_the_shorter_of_reading_and_multiplying(void **state)
{
    double read, multiply;

    (void)state;
    set_machine(&machine, 1, 1);
    machine.rank[0].memory_bytes_per_s = 4e9;
    predict(1, 1, LOAD);
    read = out.decode.token_s;
    set_machine(&machine, 1, 1);
    machine.rank[0].ops_per_s[TD_RATE_F32] = 1e9;
    predict(1, 1, LOAD);
    multiply = out.decode.token_s;
    machine.rank[0].memory_bytes_per_s = 4e9;
    predict(1, 1, LOAD);
    assert_true(out.decode.token_s > (read > multiply ? read : multiply));
    assert_true(out.decode.token_s < read + multiply);
}

/* What a token's exchanges take when only messages cost: one second on the link between hosts, a thousandth inside one. */
static double exchange_seconds(uint32_t n_hosts, uint32_t per_host, uint32_t tp, uint32_t pp)
{
    set_machine(&machine, n_hosts, per_host);
    machine.inter.latency_s = 1.0;
    machine.intra.latency_s = 1e-3;
    predict(tp, pp, LOAD);
    assert_near(out.decode.token_s, out.decode.part_s[TD_PART_LATENCY]);
    return out.decode.token_s;
}

static void test_predict_with_endless_rates_leaves_the_delays_of_the_exchanges(void **state)
{
    (void)state;
    /* Two sums in each of two layers, embedding, gathering of logits, broadcast of the step. */
    assert_near(exchange_seconds(2, 1, 2, 1), 7.0);
    assert_near(out.decode.n_exchanges, 7.0);
    assert_int_equal(out.decode.bottleneck, TD_PART_LATENCY);
    /* A broadcast to four goes in two messages one after another, */
    assert_near(exchange_seconds(4, 1, 4, 1), 8.0);
    /* of which the second stays inside the hosts when there are two of them. */
    assert_near(exchange_seconds(2, 2, 4, 1), 7.001);
    assert_near(exchange_seconds(1, 4, 4, 1), 0.008);
    /* Two stages: broadcast, the row to the second stage, and back. */
    assert_near(exchange_seconds(2, 1, 1, 2), 3.0);
    /* Both: 4 sums, embedding, logits inside the stages; the step to the first stage, to all in two messages; there and back. */
    assert_near(exchange_seconds(2, 2, 2, 2), 4e-3 + 2e-3 + 1e-3 + 1.0 + 1e-3 + 2.0);
}

static void test_predict_counts_the_bytes_of_the_exchanges(void **state)
{
    (void)state;
    set_machine(&machine, 2, 1);
    machine.inter.bytes_per_s = 1e6;
    predict(2, 1, LOAD);
    /* Four sums and the embedding of a row each, a logit with its id, and the step. */
    assert_near(out.decode.token_s, (4 * ROW_BYTES + ROW_BYTES + 8 + 4096) / 1e6);
    assert_near(out.decode.part_s[TD_PART_BANDWIDTH], out.decode.token_s);
    /* Four hosts: every rank sends its row to three others, and the step goes in two rounds; three logits reach rank 0. */
    set_machine(&machine, 4, 1);
    machine.inter.bytes_per_s = 1e6;
    predict(4, 1, LOAD);
    assert_near(out.decode.token_s, (4 * 3 * ROW_BYTES + 3 * ROW_BYTES + 3 * 8 + 2 * 4096) / 1e6);
    /* Two hosts of two: each host's card sends two rows to two ranks. The step crosses once. */
    set_machine(&machine, 2, 2);
    machine.inter.bytes_per_s = 1e6;
    predict(4, 1, LOAD);
    assert_near(out.decode.token_s, (4 * 4 * ROW_BYTES + 4 * ROW_BYTES + 2 * 8 + 4096) / 1e6);
    /* Stages on two hosts, two ranks each: both hand a row over the same card, there and back; the step crosses once. */
    set_machine(&machine, 2, 2);
    machine.inter.bytes_per_s = 1e6;
    predict(2, 2, LOAD);
    assert_near(out.decode.token_s, (2 * 2 * ROW_BYTES + 4096) / 1e6);
}

static void test_predict_one_rank_exchanges_nothing(void **state)
{
    (void)state;
    set_machine(&machine, 1, 1);
    machine.inter = machine.intra = (struct td_machine_link){1.0, 1.0};
    machine.rank[0].host_s = 0.5;
    predict(1, 1, LOAD);
    assert_near(out.decode.token_s, 0.5);
    assert_near(out.decode.part_s[TD_PART_HOST], 0.5);
    assert_int_equal(out.decode.bottleneck, TD_PART_HOST);
    assert_near(out.batch.token_s, 0.25);
    assert_near(out.decode.n_exchanges, 0.0);
}

static void test_predict_a_step_is_as_slow_as_its_slowest_rank(void **state)
{
    (void)state;
    set_machine(&machine, 2, 1);
    machine.rank[0].memory_bytes_per_s = 4e9;
    machine.rank[1].memory_bytes_per_s = 1e9;
    predict(2, 1, LOAD);
    assert_near(out.decode.token_s, read_seconds(N_LAYERS, 1, 1e9) / 2.0); /* its half */
}

static void test_predict_ranks_of_a_host_share_its_memory(void **state)
{
    (void)state;
    set_machine(&machine, 1, 2);
    machine.rank[0].memory_bytes_per_s = machine.rank[1].memory_bytes_per_s = 1e9;
    predict(2, 1, LOAD);
    assert_near(out.decode.token_s, read_seconds(N_LAYERS, 1, 2e9)); /* each has its own */
    machine.host_bytes_per_s[0] = 1e9;
    predict(2, 1, LOAD);
    assert_near(out.decode.token_s, read_seconds(N_LAYERS, 1, 1e9));
    machine.host_bytes_per_s[0] = 1.5e9;
    predict(2, 1, LOAD);
    assert_near(out.decode.token_s, read_seconds(N_LAYERS, 1, 1.5e9));
}

static void test_predict_stages_add_up_for_one_sequence_and_overlap_for_many(void **state)
{
    double first, second;

    (void)state;
    set_machine(&machine, 2, 1);
    machine.rank[0].memory_bytes_per_s = machine.rank[1].memory_bytes_per_s = 1e9;
    predict(1, 2, LOAD);
    assert_near(out.decode.token_s, read_seconds(N_LAYERS, 1, 1e9));
    /* Each stage has a layer, the first also the head; one of two sequences is in each. */
    first = read_seconds(1, 1, 1e9);
    assert_near(out.batch.token_s, first);
    assert_near(out.batch.step_s, 2.0 * first);
    /* On one host whose memory is no faster, they take each other's time: as long as both one after another. */
    set_machine(&machine, 1, 2);
    machine.rank[0].memory_bytes_per_s = machine.rank[1].memory_bytes_per_s = 1e9;
    machine.host_bytes_per_s[0] = 1e9;
    predict(1, 2, LOAD);
    assert_near(out.decode.token_s, read_seconds(N_LAYERS, 1, 1e9));
    second = read_seconds(1, 0, 1e9);
    if (fabs(out.batch.token_s - (first + second)) > 0.02 * (first + second))
        fail_msg("got %g, expected about %g", out.batch.token_s, first + second);
}

static double dice(void)
{
    static uint64_t x = 7;

    x = x * 6364136223846793005u + 1442695040888963407u;
    return (double)(x >> 33) / (double)((uint64_t)1 << 31);
}

static void assert_no_faster(const struct td_predict_phase *slow,
                             const struct td_predict_phase *fast, const char *what)
{
    if (slow->token_s < fast->token_s * (1.0 - 1e-9))
        fail_msg("%s: %g s with less of it, %g s before", what, slow->token_s, fast->token_s);
    assert_near(all_parts(slow), slow->token_s);
}

/* Changes one figure of the machine for the worse. */
static const char *worsen(struct td_machine *m, uint32_t which)
{
    uint32_t r = (uint32_t)(dice() * m->n_ranks), k = (uint32_t)(dice() * TD_N_RATES);

    switch (which) {
    case 0:
        m->inter.latency_s *= 1.0 + dice();
        return "latency between hosts";
    case 1:
        m->intra.latency_s *= 1.0 + dice();
        return "latency inside a host";
    case 2:
        m->inter.bytes_per_s *= dice() + 1e-3;
        return "bandwidth between hosts";
    case 3:
        m->intra.bytes_per_s *= dice() + 1e-3;
        return "bandwidth inside a host";
    case 4:
        m->rank[r].memory_bytes_per_s *= dice() + 1e-3;
        return "memory of a rank";
    case 5:
        m->rank[r].ops_per_s[k] *= dice() + 1e-3;
        return "arithmetic of a rank";
    case 6:
        m->rank[r].host_s += dice();
        return "host time";
    default:
        m->host_bytes_per_s[0] *= dice() + 1e-3;
        return "memory of a host";
    }
}

static void test_predict_a_slower_machine_is_never_faster(void **state)
{
    static const uint32_t shapes[][2] = {{1, 1}, {2, 1}, {1, 2}, {3, 1}, {4, 1}, {2, 2}};

    (void)state;
    for (uint32_t i = 0; i < 2000; i++) {
        const uint32_t *shape = shapes[i % 6];
        struct td_prediction before;
        const char *what;

        set_machine(&machine, 2, 2);
        for (uint32_t r = 0; r < machine.n_ranks; r++) {
            machine.rank[r].memory_bytes_per_s = pow(10.0, 6.0 + 6.0 * dice());
            machine.rank[r].host_s = dice() * 1e-3;
            for (int k = 0; k < TD_N_RATES; k++)
                machine.rank[r].ops_per_s[k] = pow(10.0, 6.0 + 6.0 * dice());
        }
        machine.host_bytes_per_s[0] = pow(10.0, 6.0 + 6.0 * dice());
        machine.intra = (struct td_machine_link){dice() * 1e-3, pow(10.0, 4.0 + 6.0 * dice())};
        machine.inter = (struct td_machine_link){machine.intra.latency_s + dice() * 1e-2,
                                                 pow(10.0, 3.0 + 6.0 * dice())};
        predict(shape[0], shape[1], LOAD);
        before = out;
        what = worsen(&machine, i / 6 % 8);
        predict(shape[0], shape[1], LOAD);
        assert_no_faster(&out.decode, &before.decode, what);
        assert_no_faster(&out.batch, &before.batch, what);
        assert_no_faster(&out.prefill, &before.prefill, what);
    }
}

static void test_predict_takes_another_instruction_where_a_kind_is_missing(void **state)
{
    double with;

    (void)state;
    set_machine(&machine, 1, 1);
    machine.rank[0].ops_per_s[TD_RATE_F32] = 1e9;
    predict(1, 1, LOAD);
    with = out.decode.token_s;
    for (int k = 0; k < TD_N_RATES; k++)
        machine.rank[0].ops_per_s[k] = 0.0;
    machine.rank[0].ops_per_s[TD_RATE_BF16] = 1e9;
    predict(1, 1, LOAD);
    assert_near(out.decode.token_s, with);
}

static void test_predict_shrink_gives_ranks_that_are_left_their_host(void **state)
{
    static struct td_machine few;

    (void)state;
    set_machine(&machine, 2, 4);
    for (uint32_t i = 0; i < 8; i++) {
        machine.rank[i].memory_bytes = 1000;
        machine.rank[i].memory_bytes_per_s = 10.0;
        machine.rank[i].ops_per_s[TD_RATE_INT8] = 100.0;
    }
    machine.host_bytes_per_s[0] = 30.0; /* the other host's ranks have memory of their own */
    td_predict_shrink(&machine, 2, &few);
    assert_int_equal(few.n_ranks, 2);
    assert_int_equal(few.n_hosts, 1);
    assert_int_equal(few.rank[1].memory_bytes, 2000);
    assert_near(few.rank[0].memory_bytes_per_s, 20.0);
    assert_near(few.rank[0].ops_per_s[TD_RATE_INT8], 200.0);
    td_predict_shrink(&machine, 1, &few);
    assert_near(few.rank[0].memory_bytes_per_s, 30.0); /* as much as the host has */
    assert_near(few.rank[0].ops_per_s[TD_RATE_INT8], 400.0);
    td_predict_shrink(&machine, 5, &few);
    assert_int_equal(few.n_hosts, 2);
    assert_near(few.rank[0].memory_bytes_per_s, 10.0);
    assert_near(few.rank[4].memory_bytes_per_s, 10.0);
    assert_near(few.rank[4].ops_per_s[TD_RATE_INT8], 100.0);
}

/* The machine with one figure spoilt is refused in words that hold `word`. */
static void assert_refused(const char *word)
{
    struct td_err err = {0};

    assert_int_equal(td_predict(&small.model, &plan, &machine, &LOAD, &out, &err), TD_INVALID);
    if (!strstr(err.cause, word))
        fail_msg("'%s' does not say '%s'", err.cause, word);
    set_machine(&machine, 2, 1);
}

static void test_predict_refuses_figures_that_no_machine_has(void **state)
{
    struct td_predict_load none = LOAD;
    struct td_err err = {0};

    (void)state;
    set_machine(&machine, 2, 1);
    predict(2, 1, LOAD);
    machine.n_ranks = 1;
    assert_refused("a plan of 2 ranks: the machine has 1");
    machine.n_ranks = 0;
    assert_refused("0 ranks");
    machine.rank[1].host = 2;
    assert_refused("rank 1 is on host 2");
    machine.rank[1].memory_bytes_per_s = 0.0;
    assert_refused("rank 1 reads 0 bytes/s");
    machine.rank[0].memory_bytes_per_s = NAN;
    assert_refused("rank 0 reads nan bytes/s");
    machine.rank[0].ops_per_s[1] = -1.0;
    assert_refused("-1 operations/s");
    memset(machine.rank[0].ops_per_s, 0, sizeof machine.rank[0].ops_per_s);
    assert_refused("no operations/s");
    machine.rank[0].host_s = -1.0;
    assert_refused("host time");
    machine.host_bytes_per_s[1] = -2.0;
    assert_refused("host 1 reads -2");
    machine.intra.latency_s = -1.0;
    assert_refused("inside a host");
    machine.inter.bytes_per_s = 0.0;
    assert_refused("between hosts");
    none.batch = 0;
    assert_int_equal(td_predict(&small.model, &plan, &machine, &none, &out, &err), TD_INVALID);
    none = LOAD;
    none.prompt_tokens = 0;
    assert_int_equal(td_predict(&small.model, &plan, &machine, &none, &out, &err), TD_INVALID);
}

static void test_predict_knows_every_type_and_part(void **state)
{
    (void)state;
    for (int t = 0; t < TD_N_DTYPES; t++) {
        struct td_predict_share s = td_predict_share_of((enum td_dtype)t);

        assert_true(s.memory > 0.0 && s.memory <= 1.0);
        assert_true(s.ops > 0.0 && s.ops <= 1.0);
        assert_true(s.ops_tiles >= s.ops && s.ops_tiles <= 1.0);
    }
    assert_string_equal(td_predict_part_name(TD_PART_LATENCY), "exchange latency");
    assert_string_equal(td_predict_part_name(TD_N_PARTS), "none");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_predict_reads_every_weight_and_key_once_per_token),
        cmocka_unit_test(test_predict_counts_two_operations_per_weight_and_the_attention),
        cmocka_unit_test(test_predict_a_prompt_in_chunks_does_the_same_arithmetic),
        cmocka_unit_test(test_predict_hides_a_part_of_the_shorter_of_reading_and_multiplying),
        cmocka_unit_test(test_predict_with_endless_rates_leaves_the_delays_of_the_exchanges),
        cmocka_unit_test(test_predict_counts_the_bytes_of_the_exchanges),
        cmocka_unit_test(test_predict_one_rank_exchanges_nothing),
        cmocka_unit_test(test_predict_a_step_is_as_slow_as_its_slowest_rank),
        cmocka_unit_test(test_predict_ranks_of_a_host_share_its_memory),
        cmocka_unit_test(test_predict_stages_add_up_for_one_sequence_and_overlap_for_many),
        cmocka_unit_test(test_predict_a_slower_machine_is_never_faster),
        cmocka_unit_test(test_predict_takes_another_instruction_where_a_kind_is_missing),
        cmocka_unit_test(test_predict_shrink_gives_ranks_that_are_left_their_host),
        cmocka_unit_test(test_predict_refuses_figures_that_no_machine_has),
        cmocka_unit_test(test_predict_knows_every_type_and_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
