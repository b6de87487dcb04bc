#include "daemon/engine/prefix.h"

#include "tests/unit/check.h"

#include <stdlib.h>
#include <string.h>

enum { BT = 4, N_BLOCKS = 24, N_SLOTS = 4, MAX_BLOCKS = 8, MAX_IDS = BT * MAX_BLOCKS };

static uint64_t rng_state;

static uint32_t rng(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

struct fixture {
    struct td_blocks *blocks;
    struct td_prefix *prefix;
    struct td_step step; /* for moves only */
    uint32_t n_slots[TD_OFFLOAD_TIERS];
};

static void open_fixture(struct fixture *f, uint32_t n_memory, uint32_t n_file)
{
    struct td_blocks_params bp = {
        .pool = {N_BLOCKS}, .block_tokens = BT, .max_seqs = N_SLOTS, .max_tokens_per_seq = MAX_IDS};
    struct td_err err;

    f->n_slots[TD_OFFLOAD_MEMORY] = n_memory;
    f->n_slots[TD_OFFLOAD_FILE] = n_file;
    assert_int_equal(td_blocks_open(&bp, &f->blocks, &err), TD_OK);
    assert_int_equal(td_prefix_open(f->blocks, BT, N_SLOTS, f->n_slots, &f->prefix, &err), TD_OK);
    assert_int_equal(td_step_open(&f->step, 0, 0, 0, &err), TD_OK);
}

static bool evict(struct fixture *f)
{
    return td_prefix_evict(f->prefix, &f->step, true);
}

static void expect_whole(const struct fixture *f)
{
    struct td_err err = {0};

    if (td_blocks_check(f->blocks, &err) || td_prefix_check(f->prefix, &err))
        fail_msg("%s", err.cause);
}

static void close_fixture(struct fixture *f)
{
    expect_whole(f);
    for (; evict(f); td_step_reset(&f->step, TD_STEP_RUN, 0))
        expect_whole(f);
    assert_int_equal(td_blocks_n_free(f->blocks, TD_LAYER_ATTENTION), N_BLOCKS);
    td_step_close(&f->step);
    td_prefix_close(f->prefix);
    td_blocks_close(f->blocks);
}

/* A sequence and what a naive reader says of it. */
struct seq {
    bool running;
    uint64_t salt;
    uint32_t ids[MAX_IDS];
    uint64_t hashes[MAX_BLOCKS];
    uint32_t n_blocks, n_filled, n_reads;
};

static struct td_prefix_key key_of(const struct fixture *f, struct seq *q, uint32_t n_blocks)
{
    for (uint32_t i = 0; i < MAX_BLOCKS; i++)
        q->hashes[i] =
            td_prefix_hash(f->prefix, i ? q->hashes[i - 1] : q->salt, q->ids + (size_t)i * BT);
    return (struct td_prefix_key){q->salt, q->ids, q->hashes, n_blocks};
}

static bool admit(struct fixture *f, struct seq *q, uint32_t slot, struct td_prefix_match *m)
{
    struct td_prefix_key key = key_of(f, q, q->n_blocks);

    *m = td_prefix_find(f->prefix, &key);
    td_prefix_take(f->prefix, slot, &key, m->n_ready);
    while (!td_blocks_reserve(f->blocks, slot, q->n_blocks * BT))
        if (!evict(f)) {
            td_prefix_leave(f->prefix, slot);
            td_blocks_release(f->blocks, slot);
            return false;
        }
    q->n_reads = td_prefix_promise(f->prefix, slot, &key, UINT32_MAX);
    q->n_filled = m->n_ready;
    q->running = true;
    return true;
}

static void fill(struct fixture *f, struct seq *q, uint32_t slot, uint32_t n_blocks)
{
    struct td_prefix_key key = key_of(f, q, n_blocks);

    td_prefix_fill(f->prefix, slot, &key);
    q->n_filled = n_blocks;
}

static void stop(struct fixture *f, struct seq *q, uint32_t slot)
{
    td_prefix_leave(f->prefix, slot);
    td_blocks_release(f->blocks, slot);
    q->running = false;
}

static void count_up(struct seq *q, uint32_t from, uint32_t n_blocks)
{
    memset(q, 0, sizeof *q);
    for (uint32_t i = 0; i < MAX_IDS; i++)
        q->ids[i] = from + i;
    q->n_blocks = n_blocks;
}

static void test_prefix_finds_what_was_filled_and_tells_promises_apart(void **state)
{
    struct td_prefix_match m;
    struct fixture f;
    struct seq a, b;

    (void)state;
    open_fixture(&f, 0, 0);
    count_up(&a, 10, 4);
    b = a;
    assert_true(admit(&f, &a, 0, &m));
    assert_int_equal(m.n_blocks, 0);
    fill(&f, &a, 0, 2);
    {
        struct td_prefix_key key = key_of(&f, &b, 4);

        m = td_prefix_find(f.prefix, &key);
        assert_int_equal(m.n_blocks, 4);
        assert_int_equal(m.n_ready, 2);
        assert_int_equal(m.n_idle, 0);
        b.ids[BT + 1]++; /* in the second block */
        key = key_of(&f, &b, 4);
        m = td_prefix_find(f.prefix, &key);
        assert_int_equal(m.n_blocks, 1);
        b.salt = 9;
        key = key_of(&f, &b, 4);
        assert_int_equal(td_prefix_find(f.prefix, &key).n_blocks, 0);
    }
    stop(&f, &a, 0); /* half way: its promises are void */
    {
        struct td_prefix_key key = key_of(&f, &a, 4);

        m = td_prefix_find(f.prefix, &key);
        assert_int_equal(m.n_blocks, 2);
        assert_int_equal(m.n_idle, 2);
    }
    close_fixture(&f);
}

/* Equal hashes, other tokens: as if an attacker had found a collision. */
static void test_prefix_trusts_tokens_not_hashes(void **state)
{
    struct td_prefix_match m;
    struct td_prefix_key key;
    struct fixture f;
    struct seq a, b;

    (void)state;
    open_fixture(&f, 0, 0);
    count_up(&a, 10, 3);
    b = a;
    b.ids[BT] = 99;
    assert_true(admit(&f, &a, 0, &m));
    fill(&f, &a, 0, 3);
    key = key_of(&f, &a, 3);
    key.ids = b.ids;
    assert_int_equal(td_prefix_find(f.prefix, &key).n_blocks, 1);
    key.ids = a.ids;
    key.salt = 1;
    assert_int_equal(td_prefix_find(f.prefix, &key).n_blocks, 0);
    stop(&f, &a, 0);
    close_fixture(&f);
}

static void test_prefix_evicts_leaves_least_recently_used_first(void **state)
{
    struct seq a, b, c;
    struct td_prefix_match m;
    struct fixture f;

    (void)state;
    open_fixture(&f, 0, 0);
    count_up(&a, 10, 3);
    count_up(&b, 500, 2);
    c = a;
    c.ids[2 * BT] = 7; /* shares two blocks with a */
    assert_true(admit(&f, &a, 0, &m));
    fill(&f, &a, 0, 3);
    stop(&f, &a, 0);
    assert_true(admit(&f, &b, 1, &m));
    fill(&f, &b, 1, 2);
    stop(&f, &b, 1);
    assert_true(admit(&f, &c, 0, &m));
    assert_int_equal(m.n_ready, 2);
    fill(&f, &c, 0, 3);
    assert_int_equal(td_prefix_n_blocks(f.prefix), 6);
    assert_true(evict(&f)); /* a's own end */
    {
        struct td_prefix_key key = key_of(&f, &a, 3);

        assert_int_equal(td_prefix_find(f.prefix, &key).n_blocks, 2);
    }
    for (uint32_t left = 1; left + 1 > 0; left--) { /* then b from its end */
        struct td_prefix_key key = key_of(&f, &b, 2);

        assert_true(evict(&f));
        assert_int_equal(td_prefix_find(f.prefix, &key).n_blocks, left);
    }
    assert_false(evict(&f)); /* c is in use, and what is before it */
    stop(&f, &c, 0);
    close_fixture(&f);
}

/* Two compute the same end at once: one block of the two is kept, and both sequences have it. */
static void test_prefix_keeps_one_of_two_equal_blocks(void **state)
{
    struct td_prefix_match m;
    struct fixture f;
    struct seq a, b;
    uint32_t n;

    (void)state;
    open_fixture(&f, 0, 0);
    count_up(&a, 10, 1);
    b = a;
    assert_true(admit(&f, &a, 0, &m));
    fill(&f, &a, 0, 1);
    assert_true(admit(&f, &b, 1, &m));
    assert_int_equal(m.n_ready, 1);
    assert_true(td_blocks_reserve(f.blocks, 0, 2 * BT)); /* both go on decoding */
    assert_true(td_blocks_reserve(f.blocks, 1, 2 * BT));
    assert_int_equal(td_blocks_n_free(f.blocks, TD_LAYER_ATTENTION), N_BLOCKS - 3);
    fill(&f, &a, 0, 2);
    fill(&f, &b, 1, 2);
    assert_int_equal(td_blocks_n_free(f.blocks, TD_LAYER_ATTENTION), N_BLOCKS - 2);
    assert_int_equal(td_blocks_table(f.blocks, TD_LAYER_ATTENTION, 0, &n)[1],
                     td_blocks_table(f.blocks, TD_LAYER_ATTENTION, 1, &n)[1]);
    stop(&f, &a, 0);
    expect_whole(&f);
    stop(&f, &b, 1);
    close_fixture(&f);
}

/* Where each block of the tree lies: on the device, in memory, in the file, away. */
static void expect_places(struct fixture *f, struct seq *q, const char *places)
{
    struct td_prefix_key key = key_of(f, q, q->n_blocks);
    struct td_prefix_match m = td_prefix_find(f->prefix, &key);
    char found[MAX_BLOCKS + 1] = {0};
    uint32_t n = 0;

    assert_int_equal(m.n_blocks, m.n_ready);
    for (uint32_t i = 0; i < m.n_ready; i++)
        found[n++] = 'd';
    for (uint32_t i = 0; i < m.n_outside[TD_OFFLOAD_MEMORY]; i++)
        found[n++] = 'm';
    for (uint32_t i = 0; i < m.n_outside[TD_OFFLOAD_FILE]; i++)
        found[n++] = 'f';
    assert_string_equal(found, places);
}

static void expect_moves(struct fixture *f, const struct td_step_move *moves, uint32_t n)
{
    assert_int_equal(f->step.n_moves, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(f->step.moves[i].kind, moves[i].kind);
        if (moves[i].kind != TD_MOVE_OUT)
            assert_int_equal(f->step.moves[i].from, moves[i].from);
        assert_int_equal(f->step.moves[i].to, moves[i].to);
    }
    td_step_reset(&f->step, TD_STEP_RUN, 0);
}

static void test_prefix_sends_what_it_evicts_to_memory_then_to_the_file_then_away(void **state)
{
    struct td_prefix_match m;
    struct fixture f;
    struct seq a;

    (void)state;
    open_fixture(&f, 2, 1);
    count_up(&a, 10, 4);
    assert_true(admit(&f, &a, 0, &m));
    fill(&f, &a, 0, 4);
    stop(&f, &a, 0);
    assert_true(evict(&f));
    expect_moves(&f, (struct td_step_move[]){{TD_MOVE_OUT, 0, 0}}, 1);
    expect_places(&f, &a, "dddm");
    assert_true(evict(&f));
    expect_moves(&f, (struct td_step_move[]){{TD_MOVE_OUT, 0, 1}}, 1);
    expect_places(&f, &a, "ddmm");
    assert_true(evict(&f)); /* the last block makes room: it is the leaf in memory */
    expect_moves(&f, (struct td_step_move[]){{TD_MOVE_DOWN, 0, 2}, {TD_MOVE_OUT, 0, 0}}, 2);
    expect_places(&f, &a, "dmmf");
    assert_true(evict(&f)); /* and now it goes away */
    expect_moves(&f, (struct td_step_move[]){{TD_MOVE_DOWN, 1, 2}, {TD_MOVE_OUT, 0, 1}}, 2);
    expect_places(&f, &a, "mmf");
    assert_false(evict(&f));
    close_fixture(&f);
}

static void
test_prefix_brings_back_what_lies_outside_and_keeps_it_when_nobody_reads_it(void **state)
{
    struct td_prefix_match m;
    struct fixture f;
    struct seq a;

    (void)state;
    open_fixture(&f, 2, 2);
    count_up(&a, 10, 3);
    assert_true(admit(&f, &a, 0, &m));
    fill(&f, &a, 0, 3);
    stop(&f, &a, 0);
    while (evict(&f))
        ;
    td_step_reset(&f.step, TD_STEP_RUN, 0);
    expect_places(&f, &a, "mmf");
    assert_true(admit(&f, &a, 0, &m));
    assert_int_equal(m.n_ready, 0);
    assert_int_equal(a.n_reads, 3);
    expect_whole(&f);
    stop(&f, &a, 0); /* before it read anything */
    expect_places(&f, &a, "mmf");
    assert_true(admit(&f, &a, 0, &m));
    assert_true(td_prefix_source(f.prefix, 0, 0) < 2);
    assert_int_equal(td_prefix_source(f.prefix, 0, 2), 2);
    fill(&f, &a, 0, 1);                    /* one was read */
    td_prefix_forget_sources(f.prefix, 0); /* the others could not be */
    expect_whole(&f);
    assert_int_equal(td_prefix_n_outside(f.prefix, TD_OFFLOAD_MEMORY), 0);
    assert_int_equal(td_prefix_n_outside(f.prefix, TD_OFFLOAD_FILE), 0);
    fill(&f, &a, 0, 3); /* computed */
    stop(&f, &a, 0);
    expect_places(&f, &a, "ddd");
    close_fixture(&f);
}

struct tokens {
    uint32_t ids[MAX_IDS], n;
};

/* Runs the moves that a plan made over what lies where. */
static void run_moves(struct fixture *f, struct tokens *block, struct tokens *slot)
{
    for (uint32_t i = 0; i < f->step.n_moves; i++) {
        const struct td_step_move *m = &f->step.moves[i];

        if (m->kind == TD_MOVE_OUT)
            slot[m->to] = block[m->from];
        else if (m->kind == TD_MOVE_DOWN)
            slot[m->to] = slot[m->from];
    }
    td_step_reset(&f->step, TD_STEP_RUN, 0);
}

static void expect_tokens(const struct tokens *t, const struct seq *s, uint32_t i)
{
    assert_int_equal(t->n, (i + 1) * BT);
    assert_memory_equal(t->ids, s->ids, (i + 1) * BT * sizeof *s->ids);
}

/* Random sequences over two letters, so that beginnings are often equal; what is found on the device or outside is held against
 * what was filled, by its tokens. */
static uint32_t random_operations(uint32_t n_memory, uint32_t n_file)
{
    static struct tokens block[N_BLOCKS], slot[16];
    uint32_t hits = 0, n;
    struct seq q[N_SLOTS] = {0};
    struct fixture f;

    open_fixture(&f, n_memory, n_file);
    for (int op = 0; op < 30000; op++) {
        uint32_t at = rng(N_SLOTS);
        struct seq *s = &q[at];
        const uint32_t *table;
        struct td_prefix_match m;

        if (!s->running) {
            s->salt = rng(2);
            s->n_blocks = 1 + rng(MAX_BLOCKS);
            for (uint32_t i = 0; i < MAX_IDS; i++)
                s->ids[i] = i % BT ? 5 : rng(2);
            if (admit(&f, s, at, &m)) {
                table = td_blocks_table(f.blocks, TD_LAYER_ATTENTION, at, &n);
                hits += m.n_ready + s->n_reads;
                run_moves(&f, block, slot);
                for (uint32_t i = 0; i < m.n_ready; i++)
                    expect_tokens(&block[table[i]], s, i);
                for (uint32_t i = m.n_ready; i < m.n_ready + s->n_reads; i++)
                    expect_tokens(&slot[td_prefix_source(f.prefix, at, i)], s, i);
            }
        } else if (s->n_filled < s->n_blocks && rng(8)) {
            uint32_t to = s->n_filled + 1 + rng(s->n_blocks - s->n_filled);

            if (rng(4) == 0)
                td_prefix_forget_sources(f.prefix, at);
            table = td_blocks_table(f.blocks, TD_LAYER_ATTENTION, at, &n);
            for (uint32_t i = s->n_filled; i < to; i++) {
                memcpy(block[table[i]].ids, s->ids, (i + 1) * BT * sizeof *s->ids);
                block[table[i]].n = (i + 1) * BT;
            }
            fill(&f, s, at, to);
        } else {
            stop(&f, s, at);
        }
        if (rng(20) == 0)
            evict(&f);
        run_moves(&f, block, slot);
        if (op % 8 == 0)
            expect_whole(&f);
    }
    for (uint32_t at = 0; at < N_SLOTS; at++)
        if (q[at].running)
            stop(&f, &q[at], at);
    close_fixture(&f);
    return hits;
}

static void test_prefix_stays_whole_over_random_operations(void **state)
{
    (void)state;
    rng_state = 77;
    assert_true(random_operations(0, 0) > 5000);
    assert_true(random_operations(7, 0) > 8000);
    assert_true(random_operations(0, 9) > 8000);
    assert_true(random_operations(5, 11) > 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix_finds_what_was_filled_and_tells_promises_apart),
        cmocka_unit_test(test_prefix_trusts_tokens_not_hashes),
        cmocka_unit_test(test_prefix_evicts_leaves_least_recently_used_first),
        cmocka_unit_test(test_prefix_keeps_one_of_two_equal_blocks),
        cmocka_unit_test(test_prefix_sends_what_it_evicts_to_memory_then_to_the_file_then_away),
        cmocka_unit_test(
            test_prefix_brings_back_what_lies_outside_and_keeps_it_when_nobody_reads_it),
        cmocka_unit_test(test_prefix_stays_whole_over_random_operations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
