#include "daemon/engine/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_IDS = 64 };

struct fixture {
    struct td_blocks *blocks;
    struct td_sched *sched;
    struct td_step step;
    uint64_t step_ns; /* what every step takes */
};

static void open_fixture(struct fixture *f, struct td_sched_params p, uint32_t n_blocks,
                         uint32_t max_len)
{
    struct td_blocks_params bp = {.pool = {n_blocks},
                                  .block_tokens = 4,
                                  .max_seqs = p.max_num_seqs,
                                  .max_tokens_per_seq = max_len};
    uint32_t rows, seqs, table;

    f->step_ns = 0;
    p.block_tokens = 4;
    p.max_tokens_per_seq = max_len;
    assert_int_equal(td_blocks_open(&bp, &f->blocks, NULL), TD_OK);
    assert_int_equal(td_sched_open(&p, f->blocks, &f->sched, NULL), TD_OK);
    td_sched_caps(f->sched, &rows, &seqs, &table);
    assert_int_equal(td_step_open(&f->step, rows, seqs, table, NULL), TD_OK);
}

static void close_fixture(struct fixture *f)
{
    assert_int_equal(td_blocks_check(f->blocks, NULL), TD_OK);
    if (td_sched_prefix(f->sched))
        assert_int_equal(td_prefix_check(td_sched_prefix(f->sched), NULL), TD_OK);
    td_step_close(&f->step);
    td_sched_close(f->sched);
    td_blocks_close(f->blocks);
}

static void init_seq(struct td_sched_seq *seq, uint32_t *ids, uint32_t n_prompt)
{
    memset(seq, 0, sizeof(*seq));
    seq->ids = ids;
    seq->n_ids = n_prompt;
    seq->cap_ids = MAX_IDS;
    for (uint32_t i = 0; i < n_prompt; i++)
        ids[i] = 100 + i;
}

static bool plan(struct fixture *f)
{
    td_step_reset(&f->step, TD_STEP_RUN, 0);
    td_sched_begin(f->sched, 0, &f->step);
    return td_sched_plan(f->sched, &f->step);
}

/* The first sequence of the step in flight, and how many there are. */
static struct td_sched_seq *first_planned(const struct fixture *f, uint32_t *n)
{
    return td_sched_oldest(f->sched, n)[0].seq;
}

/* Completes the step in flight; every sequence that wanted logits gets the token `id`. */
static void complete_oldest(struct fixture *f, uint32_t id)
{
    struct td_sched_seq *done[16];
    uint32_t n = 0, n_parts;
    const struct td_sched_part *parts = td_sched_oldest(f->sched, &n_parts);

    for (uint32_t i = 0; i < n_parts; i++)
        if (parts[i].n_wanted && parts[i].seq)
            done[n++] = parts[i].seq;
    td_sched_complete(f->sched, f->step_ns, NULL);
    for (uint32_t i = 0; i < n; i++)
        td_sched_append(done[i], id);
}

static void complete(struct fixture *f, uint32_t id)
{
    uint32_t n_parts, n = 0;
    const struct td_sched_part *parts = td_sched_oldest(f->sched, &n_parts);

    for (uint32_t i = 0; i < n_parts; i++)
        n += parts[i].n_wanted > 0;
    assert_int_equal(n, td_step_n_want(&f->step, TD_WANT_LOGITS));
    complete_oldest(f, id);
}

static void test_sched_cuts_a_prompt_into_chunks_and_then_decodes(void **state)
{
    struct fixture f;
    struct td_sched_seq seq;
    uint32_t ids[MAX_IDS];

    (void)state;
    open_fixture(
        &f,
        (struct td_sched_params){
            .max_num_seqs = 2, .max_batched_tokens = 8, .max_chunk_tokens = 3, .max_queue = 2},
        8, 32);
    assert_false(plan(&f));
    init_seq(&seq, ids, 7);
    assert_int_equal(td_sched_submit(f.sched, &seq, 5, NULL), TD_OK);
    for (uint32_t step = 0; step < 3; step++) {
        uint32_t n = step < 2 ? 3 : 1;

        assert_true(plan(&f));
        assert_int_equal(f.step.n_rows, n);
        assert_int_equal(f.step.n_seqs, 1);
        assert_int_equal(f.step.seqs[0].n_rows, n);
        assert_int_equal(f.step.seqs[0].n_blocks, 2);
        assert_int_equal(f.step.seqs[0].state_slot, UINT32_MAX);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(f.step.rows[i].position, step * 3 + i);
            assert_int_equal(f.step.rows[i].token, 100 + step * 3 + i);
            assert_int_equal(f.step.rows[i].want, step == 2 ? TD_WANT_LOGITS : TD_WANT_NONE);
        }
        complete(&f, 9);
    }
    for (uint32_t step = 0; step < 5; step++) {
        assert_true(plan(&f));
        assert_int_equal(f.step.n_rows, 1);
        assert_int_equal(f.step.rows[0].token, 9);
        assert_int_equal(f.step.rows[0].position, 7 + step);
        assert_int_equal(f.step.rows[0].want, TD_WANT_LOGITS);
        assert_int_equal(f.step.seqs[0].n_blocks, (7 + step) / 4 + 1);
        complete(&f, 9);
    }
    td_sched_remove(f.sched, &seq);
    assert_false(plan(&f));
    assert_int_equal(td_blocks_n_free(f.blocks, TD_LAYER_ATTENTION), 8);
    close_fixture(&f);
}

static void test_sched_puts_decodes_before_prefill_within_the_budget(void **state)
{
    struct fixture f;
    struct td_sched_seq seq[3];
    uint32_t ids[3][MAX_IDS];

    (void)state;
    open_fixture(
        &f, (struct td_sched_params){.max_num_seqs = 3, .max_batched_tokens = 6, .max_queue = 3},
        12, 32);
    init_seq(&seq[0], ids[0], 2);
    init_seq(&seq[1], ids[1], 3);
    init_seq(&seq[2], ids[2], 9);
    for (int i = 0; i < 3; i++)
        assert_int_equal(td_sched_submit(f.sched, &seq[i], 0, NULL), TD_OK);
    assert_true(plan(&f)); /* 2 + 3 + the first of 9 */
    assert_int_equal(f.step.n_rows, 6);
    assert_int_equal(f.step.n_seqs, 3);
    assert_int_equal(f.step.seqs[2].n_rows, 1);
    assert_int_equal(td_step_n_want(&f.step, TD_WANT_LOGITS), 2);
    complete(&f, 1);
    assert_true(plan(&f)); /* two decodes, four of the prompt */
    assert_int_equal(f.step.n_rows, 6);
    assert_int_equal(f.step.seqs[0].n_rows, 1);
    assert_int_equal(f.step.seqs[1].n_rows, 1);
    assert_int_equal(f.step.seqs[2].n_rows, 4);
    assert_int_equal(f.step.rows[2].position, 1);
    complete(&f, 1);
    for (int i = 0; i < 3; i++)
        td_sched_remove(f.sched, &seq[i]);
    close_fixture(&f);
}

static void test_sched_admits_in_order_of_arrival_only(void **state)
{
    struct fixture f;
    uint32_t n;
    struct td_sched_seq seq[3];
    uint32_t ids[3][MAX_IDS];

    (void)state;
    open_fixture(
        &f, (struct td_sched_params){.max_num_seqs = 3, .max_batched_tokens = 40, .max_queue = 3},
        8, 32);
    init_seq(&seq[0], ids[0], 8);  /* 2 blocks */
    init_seq(&seq[1], ids[1], 24); /* 6 blocks and a spare one: not now */
    init_seq(&seq[2], ids[2], 1);  /* would fit, but is behind */
    for (int i = 0; i < 3; i++)
        assert_int_equal(td_sched_submit(f.sched, &seq[i], 10 * (uint64_t)i, NULL), TD_OK);
    assert_true(plan(&f));
    assert_int_equal(td_sched_n_running(f.sched), 1);
    assert_int_equal(td_sched_n_waiting(f.sched), 2);
    assert_true(td_sched_oldest_wait_ns(f.sched, 25) == 15);
    complete(&f, 1);
    td_sched_remove(f.sched, &seq[0]);
    assert_true(plan(
        &f)); /* alone, the long one needs no spare block, and one more is left for the short one */
    assert_ptr_equal(first_planned(&f, &n), &seq[1]);
    assert_int_equal(td_sched_n_running(f.sched), 2);
    complete(&f, 1);
    td_sched_remove(f.sched, &seq[1]);
    td_sched_remove(f.sched, &seq[2]);
    close_fixture(&f);
}

static void test_sched_preempts_youngest_when_blocks_run_out(void **state)
{
    struct fixture f;
    uint32_t n;
    struct td_sched_seq seq[3];
    uint32_t ids[3][MAX_IDS];

    (void)state;
    open_fixture(
        &f, (struct td_sched_params){.max_num_seqs = 3, .max_batched_tokens = 40, .max_queue = 1},
        6, 24);
    for (int i = 0; i < 3; i++) {
        init_seq(&seq[i], ids[i], i == 0 ? 8 : 7); /* the first needs a new block first */
        assert_int_equal(td_sched_submit(f.sched, &seq[i], 0, NULL), TD_OK);
        assert_true(plan(&f));
        complete(&f, 40 + (uint32_t)i);
        if (i ==
            1) { /* admission of the third needs 2 blocks and a spare one; 6 - 3 - 2 = 1 is left */
            assert_int_equal(seq[0].n_ids, 10);
            assert_int_equal(td_blocks_n_free(f.blocks, TD_LAYER_ATTENTION), 1);
        }
    }
    assert_int_equal(seq[2].state, TD_SCHED_WAITING);
    for (int step = 0; step < 20 && td_sched_n_preemptions(f.sched) == 0; step++) {
        assert_true(plan(&f));
        complete(&f, 50);
    }
    assert_int_equal(td_sched_n_preemptions(f.sched), 1);
    assert_int_equal(seq[0].state, TD_SCHED_RUNNING);
    assert_int_equal(seq[1].state, TD_SCHED_WAITING);
    assert_int_equal(seq[1].n_computed, 0);
    assert_true(seq[1].n_ids > 7);                    /* with its output */
    assert_int_equal(td_sched_n_waiting(f.sched), 2); /* above the cap of one, by preemption */
    td_sched_remove(f.sched, &seq[0]);
    assert_true(plan(&f)); /* the preempted one comes back before the one that never ran, whole */
    assert_ptr_equal(first_planned(&f, &n), &seq[1]);
    assert_int_equal(f.step.seqs[0].n_rows, seq[1].n_ids);
    for (uint32_t i = 0; i < seq[1].n_ids; i++)
        assert_int_equal(f.step.rows[i].token, seq[1].ids[i]);
    complete(&f, 51);
    td_sched_remove(f.sched, &seq[1]);
    td_sched_remove(f.sched, &seq[2]);
    close_fixture(&f);
}

static void test_sched_refuses_over_the_queue_cap_and_takes_out_of_the_middle(void **state)
{
    struct fixture f;
    uint32_t n;
    struct td_sched_seq seq[4];
    uint32_t ids[4][MAX_IDS];
    struct td_err err;

    (void)state;
    open_fixture(
        &f, (struct td_sched_params){.max_num_seqs = 1, .max_batched_tokens = 4, .max_queue = 3}, 8,
        32);
    for (int i = 0; i < 4; i++)
        init_seq(&seq[i], ids[i], 2);
    for (int i = 0; i < 3; i++)
        assert_int_equal(td_sched_submit(f.sched, &seq[i], 0, &err), TD_OK);
    assert_int_equal(td_sched_submit(f.sched, &seq[3], 0, &err), TD_BUSY);
    assert_non_null(strstr(err.cause, "the queue holds 3"));
    td_sched_remove(f.sched, &seq[1]);
    td_sched_remove(f.sched, &seq[1]); /* out already: nothing happens */
    assert_int_equal(td_sched_submit(f.sched, &seq[3], 0, &err), TD_OK);
    for (int i = 0; i < 4; i++) {
        if (i == 1)
            continue;
        assert_true(plan(&f));
        assert_ptr_equal(first_planned(&f, &n), &seq[i]);
        assert_int_equal(n, 1);
        complete(&f, 1);
        td_sched_remove(f.sched, &seq[i]);
    }
    assert_false(plan(&f));
    close_fixture(&f);
}

static void test_sched_open_refuses_a_budget_below_the_sequences(void **state)
{
    struct td_sched_params p = {.max_num_seqs = 8, .max_batched_tokens = 7, .max_queue = 1};
    struct td_sched *s;
    struct td_err err;

    (void)state;
    assert_int_equal(td_sched_open(&p, NULL, &s, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "max_num_batched_tokens is 7"));
    p.max_queue = 0;
    assert_int_equal(td_sched_open(&p, NULL, &s, &err), TD_INVALID);
}

/* ---- with the prefix cache ---- */

static const struct td_sched_params with_cache = {
    .max_num_seqs = 4, .max_batched_tokens = 40, .max_queue = 64, .prefix_cache = true};

struct cached_seq {
    struct td_sched_seq core;
    uint32_t ids[MAX_IDS];
    uint64_t hashes[MAX_IDS / 4];
};

/* A prompt of n_prompt tokens that are `base`, base + 1, ... */
static void submit_cached(struct fixture *f, struct cached_seq *q, uint32_t base, uint32_t n_prompt)
{
    init_seq(&q->core, q->ids, n_prompt);
    for (uint32_t i = 0; i < n_prompt; i++)
        q->ids[i] = base + i;
    q->core.hashes = q->hashes;
    assert_int_equal(td_sched_submit(f->sched, &q->core, 0, NULL), TD_OK);
}

/* Plans and completes a step; the row count is checked. */
static void step_of(struct fixture *f, uint32_t n_rows)
{
    assert_true(plan(f));
    assert_int_equal(f->step.n_rows, n_rows);
    complete(f, 7);
}

static void test_sched_computes_no_block_twice(void **state)
{
    struct cached_seq a, b, c;
    struct fixture f;

    (void)state;
    open_fixture(&f, with_cache, 12, 32);
    submit_cached(&f, &a, 100, 10);
    step_of(&f, 10);
    td_sched_remove(f.sched, &a.core);
    assert_int_equal(td_blocks_n_idle(f.blocks, TD_LAYER_ATTENTION), 2); /* its whole blocks */
    submit_cached(&f, &b, 100, 10);
    step_of(&f, 2); /* two blocks of four are there */
    assert_int_equal(b.core.n_cached, 8);
    assert_int_equal(td_blocks_n_idle(f.blocks, TD_LAYER_ATTENTION), 0);
    submit_cached(&f, &c, 100, 8);
    step_of(&f, 1 + 4); /* the last token's block in any case, beside the decode */
    assert_int_equal(c.core.n_cached, 4);
    td_sched_remove(f.sched, &b.core);
    td_sched_remove(f.sched, &c.core);
    /* An output goes on as a prompt: 100 .. 107, then 7 7 7. */
    submit_cached(&f, &b, 100, 11);
    for (uint32_t i = 8; i < 11; i++)
        b.ids[i] = 7;
    td_sched_remove(f.sched, &b.core); /* hashed before they were changed */
    assert_int_equal(td_sched_submit(f.sched, &b.core, 0, NULL), TD_OK);
    assert_true(plan(&f));
    assert_int_equal(b.core.n_computed, 8);
    complete(&f, 7);
    td_sched_remove(f.sched, &b.core);
    close_fixture(&f);
}

static void test_sched_other_salts_and_passing_sequences_share_nothing(void **state)
{
    struct cached_seq a, b, c;
    struct fixture f;

    (void)state;
    open_fixture(&f, with_cache, 12, 32);
    submit_cached(&f, &a, 100, 10);
    step_of(&f, 10);
    submit_cached(&f, &b, 100, 10);
    td_sched_remove(f.sched, &b.core);
    b.core.salt = 1;
    assert_int_equal(td_sched_submit(f.sched, &b.core, 0, NULL), TD_OK);
    step_of(&f, 1 + 10);
    submit_cached(&f, &c, 100, 10);
    td_sched_remove(f.sched, &c.core);
    c.core.hashes = NULL;
    assert_int_equal(td_sched_submit(f.sched, &c.core, 0, NULL), TD_OK);
    step_of(&f, 2 + 10);
    assert_int_equal(b.core.n_cached + c.core.n_cached, 0);
    td_sched_remove(f.sched, &a.core);
    td_sched_remove(f.sched, &b.core);
    td_sched_remove(f.sched, &c.core);
    assert_int_equal(td_blocks_n_idle(f.blocks, TD_LAYER_ATTENTION),
                     5); /* 12 tokens of a, 8 of b */
    close_fixture(&f);
}

static void test_sched_waits_for_a_beginning_that_is_being_computed(void **state)
{
    struct td_sched_params p = with_cache;
    struct cached_seq a, b, c;
    struct fixture f;

    (void)state;
    p.max_chunk_tokens = 6;
    open_fixture(&f, p, 16, 32);
    submit_cached(&f, &a, 100, 14);
    submit_cached(&f, &b, 100, 16);
    submit_cached(&f, &c, 500, 3);
    step_of(&f, 6 + 3); /* b waits for a; c, which begins otherwise, does not */
    step_of(&f, 6 + 1);
    step_of(&f, 2 + 1 + 4); /* three blocks are filled: now b has them too */
    assert_int_equal(b.core.n_cached, 12);
    td_sched_remove(f.sched, &a.core);
    td_sched_remove(f.sched, &b.core);
    td_sched_remove(f.sched, &c.core);
    /* Whom it waits for is taken out half way: it computes the rest itself. */
    submit_cached(&f, &a, 900, 14);
    submit_cached(&f, &b, 900, 14);
    step_of(&f, 6);
    td_sched_remove(f.sched, &a.core);
    step_of(&f, 6);
    assert_int_equal(b.core.n_cached, 4);
    td_sched_remove(f.sched, &b.core);
    close_fixture(&f);
}

static void test_sched_evicts_idle_blocks_before_it_preempts(void **state)
{
    struct cached_seq a, b;
    struct fixture f;

    (void)state;
    open_fixture(&f, with_cache, 6, 24);
    submit_cached(&f, &a, 100, 9);
    step_of(&f, 9);
    td_sched_remove(f.sched, &a.core); /* two blocks stay */
    submit_cached(&f, &b, 500, 15);    /* four blocks */
    step_of(&f, 15);
    for (uint32_t i = 0; i < 8; i++)
        step_of(&f, 1); /* up to 23 tokens in six blocks */
    assert_true(td_sched_n_preemptions(f.sched) == 0);
    assert_int_equal(td_blocks_n_idle(f.blocks, TD_LAYER_ATTENTION), 0);
    td_sched_remove(f.sched, &b.core);
    close_fixture(&f);
}

static void test_sched_admits_the_most_cached_first_but_passes_nobody_over_for_ever(void **state)
{
    enum { N = 50 };
    static struct cached_seq q[N], first, other;
    struct td_sched_params p = with_cache;
    uint32_t n = 0;
    struct fixture f;

    (void)state;
    p.max_num_seqs = 1;
    open_fixture(&f, p, 12, 32);
    submit_cached(&f, &first, 100, 9);
    step_of(&f, 9);
    td_sched_remove(f.sched, &first.core);
    submit_cached(&f, &other, 500, 5); /* the oldest, of which nothing is cached */
    submit_cached(&f, &q[n++], 100, 9);
    while (true) {
        assert_true(n < N);
        submit_cached(&f, &q[n++], 100, 9); /* there is always one with a better claim */
        assert_true(plan(&f));
        complete(&f, 7);
        if (other.core.state == TD_SCHED_RUNNING)
            break;
        assert_int_equal(f.step.n_rows, 1);
        td_sched_remove(f.sched, &q[n - 2].core);
    }
    assert_int_equal(other.core.n_passed, TD_SCHED_MAX_PASSED);
    assert_int_equal(n, TD_SCHED_MAX_PASSED + 2);
    td_sched_remove(f.sched, &other.core);
    td_sched_remove(f.sched, &q[n - 2].core);
    td_sched_remove(f.sched, &q[n - 1].core);
    close_fixture(&f);
}

static void test_sched_takes_few_prompt_rows_beside_decodes(void **state)
{
    struct td_sched_params p = {
        .max_num_seqs = 2, .max_batched_tokens = 40, .max_queue = 4, .max_stretch_percent = 50};
    struct td_sched_seq seq[2];
    uint32_t ids[2][MAX_IDS];
    struct fixture f;

    (void)state;
    open_fixture(&f, p, 32, 64);
    init_seq(&seq[0], ids[0], 30);
    assert_int_equal(td_sched_submit(f.sched, &seq[0], 0, NULL), TD_OK);
    f.step_ns = 3000; /* 100 ns a row */
    step_of(&f, 30);  /* alone: as many as fit */
    f.step_ns = 1400;
    step_of(&f, 1);
    init_seq(&seq[1], ids[1], 30);
    assert_int_equal(td_sched_submit(f.sched, &seq[1], 0, NULL), TD_OK);
    f.step_ns = 0;
    for (uint32_t left = 30; left > 7; left -= 7)
        step_of(&f, 1 + 7); /* half of 1,400 ns longer */
    step_of(&f, 1 + 2);
    step_of(&f, 2);
    td_sched_remove(f.sched, &seq[0]);
    td_sched_remove(f.sched, &seq[1]);
    close_fixture(&f);
}

/* One token is all that it has to compute: it decodes from the start, and goes before the prompt that runs. */
static void test_sched_gives_an_important_newcomer_of_one_token_its_row_at_once(void **state)
{
    struct fixture f;
    struct td_sched_seq seq[2];
    uint32_t ids[2][MAX_IDS], n;

    (void)state;
    open_fixture(
        &f, (struct td_sched_params){.max_num_seqs = 2, .max_batched_tokens = 4, .max_queue = 2},
        16, MAX_IDS);
    init_seq(&seq[0], ids[0], 20);
    assert_int_equal(td_sched_submit(f.sched, &seq[0], 0, NULL), TD_OK);
    assert_true(plan(&f));
    complete(&f, 1);
    init_seq(&seq[1], ids[1], 1);
    seq[1].priority = -1;
    assert_int_equal(td_sched_submit(f.sched, &seq[1], 0, NULL), TD_OK);
    assert_true(plan(&f));
    assert_ptr_equal(first_planned(&f, &n), &seq[1]);
    assert_int_equal(n, 2);
    complete(&f, 1);
    td_sched_remove(f.sched, &seq[0]);
    td_sched_remove(f.sched, &seq[1]);
    close_fixture(&f);
}

/* Stages at work on different steps: a turn lasts as long as the longest of them. Whatever arrives, no turn gets much longer than
 * a turn of answers with the promised stretch. */
static void test_sched_keeps_turns_of_a_pipeline_within_the_stretch(void **state)
{
    enum { STAGES = 3, DECODE_NS = 10000, ROW_NS = 200, LONG = 300, CAP = 700, N = 18 };
    struct td_sched_params p = {.max_num_seqs = 8,
                                .max_batched_tokens = 512,
                                .max_queue = 64,
                                .max_flights = STAGES,
                                .max_stretch_percent = 60};
    static uint32_t ids[N][CAP];
    static struct td_sched_seq seq[N];
    uint64_t turn_ns[STAGES] = {0}, worst = 0;
    uint32_t n_seqs = 0, n_flown = 0;
    struct fixture f;

    (void)state;
    open_fixture(&f, p, 1200, CAP);
    for (uint32_t turn = 0; turn < 400; turn++) {
        uint64_t ns = 0;

        if ((turn < 3 || turn % 25 == 24) && n_seqs < N) {
            init_seq(&seq[n_seqs], ids[n_seqs], turn < 3 ? 2 : LONG);
            seq[n_seqs].cap_ids = CAP;
            assert_int_equal(td_sched_submit(f.sched, &seq[n_seqs++], 0, NULL), TD_OK);
        }
        turn_ns[n_flown % STAGES] = 0;
        if (plan(&f)) {
            uint32_t n_parts, n_prompt = 0;
            const struct td_sched_part *parts = td_sched_newest(f.sched, &n_parts);

            for (uint32_t i = 0; i < n_parts; i++)
                n_prompt += parts[i].n_rows > 1 ? parts[i].n_rows : 0;
            turn_ns[n_flown % STAGES] = DECODE_NS + n_prompt * ROW_NS;
        }
        n_flown++;
        for (uint32_t i = 0; i < STAGES; i++)
            ns = turn_ns[i] > ns ? turn_ns[i] : ns;
        worst = turn > 60 && ns > worst ? ns : worst;
        f.step_ns = ns;
        while (td_sched_n_flights(f.sched) == STAGES)
            complete_oldest(&f, 1);
        for (uint32_t i = 3; i < n_seqs; i++) /* an answer of a few tokens */
            if (seq[i].state == TD_SCHED_RUNNING && seq[i].n_ids > LONG + 4)
                td_sched_remove(f.sched, &seq[i]);
    }
    assert_int_equal(n_seqs, N);
    assert_true(worst > DECODE_NS && worst < 2 * DECODE_NS);
    for (uint32_t i = 0; i < n_seqs; i++)
        td_sched_remove(f.sched, &seq[i]);
    while (td_sched_n_flights(f.sched))
        complete_oldest(&f, 1);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sched_cuts_a_prompt_into_chunks_and_then_decodes),
        cmocka_unit_test(test_sched_puts_decodes_before_prefill_within_the_budget),
        cmocka_unit_test(test_sched_admits_in_order_of_arrival_only),
        cmocka_unit_test(test_sched_preempts_youngest_when_blocks_run_out),
        cmocka_unit_test(test_sched_refuses_over_the_queue_cap_and_takes_out_of_the_middle),
        cmocka_unit_test(test_sched_open_refuses_a_budget_below_the_sequences),
        cmocka_unit_test(test_sched_takes_few_prompt_rows_beside_decodes),
        cmocka_unit_test(test_sched_computes_no_block_twice),
        cmocka_unit_test(test_sched_other_salts_and_passing_sequences_share_nothing),
        cmocka_unit_test(test_sched_waits_for_a_beginning_that_is_being_computed),
        cmocka_unit_test(test_sched_evicts_idle_blocks_before_it_preempts),
        cmocka_unit_test(test_sched_admits_the_most_cached_first_but_passes_nobody_over_for_ever),
        cmocka_unit_test(test_sched_gives_an_important_newcomer_of_one_token_its_row_at_once),
        cmocka_unit_test(test_sched_keeps_turns_of_a_pipeline_within_the_stretch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
