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
};

static void open_fixture(struct fixture *f)
{
    struct td_blocks_params bp = {
        .pool = {N_BLOCKS}, .block_tokens = BT, .max_seqs = N_SLOTS, .max_tokens_per_seq = MAX_IDS};
    struct td_err err;

    assert_int_equal(td_blocks_open(&bp, &f->blocks, &err), TD_OK);
    assert_int_equal(td_prefix_open(f->blocks, BT, N_SLOTS, &f->prefix, &err), TD_OK);
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
    while (td_prefix_evict(f->prefix))
        expect_whole(f);
    assert_int_equal(td_blocks_n_free(f->blocks, TD_LAYER_ATTENTION), N_BLOCKS);
    td_prefix_close(f->prefix);
    td_blocks_close(f->blocks);
}

/* A sequence and what a naive reader says of it. */
struct seq {
    bool running;
    uint64_t salt;
    uint32_t ids[MAX_IDS];
    uint64_t hashes[MAX_BLOCKS];
    uint32_t n_blocks, n_filled;
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
        if (!td_prefix_evict(f->prefix)) {
            td_prefix_leave(f->prefix, slot);
            td_blocks_release(f->blocks, slot);
            return false;
        }
    td_prefix_promise(f->prefix, slot, &key);
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
    open_fixture(&f);
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
    open_fixture(&f);
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
    open_fixture(&f);
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
    assert_true(td_prefix_evict(f.prefix)); /* a's own end */
    {
        struct td_prefix_key key = key_of(&f, &a, 3);

        assert_int_equal(td_prefix_find(f.prefix, &key).n_blocks, 2);
    }
    for (uint32_t left = 1; left + 1 > 0; left--) { /* then b from its end */
        struct td_prefix_key key = key_of(&f, &b, 2);

        assert_true(td_prefix_evict(f.prefix));
        assert_int_equal(td_prefix_find(f.prefix, &key).n_blocks, left);
    }
    assert_false(td_prefix_evict(f.prefix)); /* c is in use, and what is before it */
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
    open_fixture(&f);
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

/* Random sequences over two letters, so that beginnings are often equal; what is found is held against all that was filled
 * and not evicted, by its tokens. */
static void test_prefix_stays_whole_over_random_operations(void **state)
{
    uint32_t content[N_BLOCKS][MAX_IDS], n_content[N_BLOCKS] = {0}, hits = 0, n;
    struct seq q[N_SLOTS] = {0};
    struct fixture f;

    (void)state;
    rng_state = 77;
    open_fixture(&f);
    for (int op = 0; op < 30000; op++) {
        uint32_t slot = rng(N_SLOTS);
        struct seq *s = &q[slot];
        struct td_prefix_match m;

        if (!s->running) {
            s->salt = rng(2);
            s->n_blocks = 1 + rng(MAX_BLOCKS);
            for (uint32_t i = 0; i < MAX_IDS; i++)
                s->ids[i] = i % BT ? 5 : rng(2);
            if (!admit(&f, s, slot, &m))
                continue;
            hits += m.n_ready;
            for (uint32_t i = 0; i < m.n_ready; i++) { /* the very tokens, under the same salt */
                uint32_t id = td_blocks_table(f.blocks, TD_LAYER_ATTENTION, slot, &n)[i];

                assert_int_equal(n_content[id], (i + 1) * BT);
                assert_memory_equal(content[id], s->ids, (i + 1) * BT * sizeof *s->ids);
            }
        } else if (s->n_filled < s->n_blocks && rng(8)) {
            uint32_t to = s->n_filled + 1 + rng(s->n_blocks - s->n_filled);
            const uint32_t *table;

            table = td_blocks_table(f.blocks, TD_LAYER_ATTENTION, slot, &n);
            for (uint32_t i = s->n_filled; i < to; i++) {
                memcpy(content[table[i]], s->ids, (i + 1) * BT * sizeof *s->ids);
                n_content[table[i]] = (i + 1) * BT;
            }
            fill(&f, s, slot, to);
        } else {
            stop(&f, s, slot);
        }
        if (rng(20) == 0)
            td_prefix_evict(f.prefix);
        if (op % 8 == 0)
            expect_whole(&f);
    }
    assert_true(hits > 5000);
    for (uint32_t slot = 0; slot < N_SLOTS; slot++)
        if (q[slot].running)
            stop(&f, &q[slot], slot);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix_finds_what_was_filled_and_tells_promises_apart),
        cmocka_unit_test(test_prefix_trusts_tokens_not_hashes),
        cmocka_unit_test(test_prefix_evicts_leaves_least_recently_used_first),
        cmocka_unit_test(test_prefix_keeps_one_of_two_equal_blocks),
        cmocka_unit_test(test_prefix_stays_whole_over_random_operations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
