#include "shard/step.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cmocka.h>

enum { CAP_ROWS = 40, CAP_SEQS = 6, CAP_TABLE = 30 };

/* Offsets of the encoded form. */
enum {
    AT_MAGIC = 8,
    AT_KIND = 12,
    AT_N_ROWS = 32,
    AT_N_SEQS = 36,
    AT_N_TABLE = 40,
    AT_N_TOP = 44,
    AT_N_MOVES = 48,
    AT_PART_ROWS = 52,
    AT_N_DRAWS = 56,
    AT_LOGPROBS = 60,
    AT_N_ASKED = 64,
    HEAD = 68,
    DRAW = 20
};

static uint64_t dice_state;

static uint32_t dice(uint32_t n)
{
    dice_state = dice_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(dice_state >> 33) % n;
}

static void open_step(struct td_step *step)
{
    struct td_err err;

    assert_int_equal(td_step_open(step, CAP_ROWS, CAP_SEQS, CAP_TABLE, &err), TD_OK);
}

/* Two sequences: 3 rows over 2 blocks, then 1 row over 3 blocks, with a draw. Two moves. */
static void fill(struct td_step *step)
{
    const struct td_draw draw = {
        .inv_t = 0x1.23456789abcdep-1, .top_p = 0.9f, .min_p = 0.25f, .u = 0.5f};
    const uint32_t first[] = {7, 9};
    const uint32_t second[] = {1, 2, 0xfffffffe};

    td_step_reset(step, TD_STEP_RUN, 0x1122334455667788u);
    assert_true(td_step_add_seq(step, first, 2, UINT32_MAX));
    assert_true(td_step_add_row(step, 100, 16, TD_WANT_NONE));
    assert_true(td_step_add_row(step, 101, 17, TD_WANT_NONE));
    assert_true(td_step_add_row(step, 102, 18, TD_WANT_LOGITS));
    assert_true(td_step_add_seq(step, second, 3, 4));
    assert_true(td_step_add_draw_row(step, 0xffffffff, 33, &draw));
    assert_true(td_step_add_move(step, TD_MOVE_DOWN, 3, 8));
    assert_true(td_step_add_move(step, TD_MOVE_OUT, 1, 3));
    step->n_submits_seen = 12;
    step->part_rows = 3;
    td_step_ask_logprobs(step, 3);
}

static void assert_same(const struct td_step *a, const struct td_step *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_true(a->number == b->number && a->hash == b->hash &&
                a->n_submits_seen == b->n_submits_seen);
    assert_int_equal(a->n_top, b->n_top);
    assert_int_equal(a->part_rows, b->part_rows);
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->n_seqs, b->n_seqs);
    assert_int_equal(a->n_table, b->n_table);
    assert_memory_equal(a->rows, b->rows, a->n_rows * sizeof a->rows[0]);
    assert_memory_equal(a->seqs, b->seqs, a->n_seqs * sizeof a->seqs[0]);
    assert_memory_equal(a->table, b->table, a->n_table * sizeof a->table[0]);
    assert_int_equal(a->n_moves, b->n_moves);
    assert_memory_equal(a->moves, b->moves, a->n_moves * sizeof a->moves[0]);
    assert_int_equal(a->logprobs, b->logprobs);
    assert_int_equal(a->n_asked, b->n_asked);
    assert_memory_equal(a->asked, b->asked, a->n_asked * sizeof *a->asked);
    assert_int_equal(a->n_draws, b->n_draws);
    for (uint32_t i = 0; i < a->n_draws; i++)
        assert_true(a->draws[i].inv_t == b->draws[i].inv_t &&
                    a->draws[i].top_p == b->draws[i].top_p &&
                    a->draws[i].min_p == b->draws[i].min_p && a->draws[i].u == b->draws[i].u);
}

static uint8_t *encode(struct td_step *step, size_t *bytes)
{
    uint8_t *out;

    *bytes = td_step_encoded_bytes(step);
    out = malloc(*bytes); /* exactly, so that a sanitizer sees one byte too many */
    assert_non_null(out);
    td_step_encode(step, out);
    return out;
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

/* Makes the hash right again, so that only the checks behind it can object. */
static void seal(uint8_t *in, size_t bytes)
{
    uint64_t hash = XXH3_64bits(in + 8, bytes - 8);

    put32(in, (uint32_t)hash);
    put32(in + 4, (uint32_t)(hash >> 32));
}

static void test_step_adds_sequences_and_rows_in_order(void **state)
{
    struct td_step step;

    (void)state;
    open_step(&step);
    fill(&step);
    assert_int_equal(step.n_rows, 4);
    assert_int_equal(step.n_seqs, 2);
    assert_int_equal(step.seqs[0].n_rows, 3);
    assert_int_equal(step.seqs[1].first_block, 2);
    assert_int_equal(step.seqs[1].n_blocks, 3);
    assert_int_equal(step.seqs[1].state_slot, 4);
    assert_int_equal(step.rows[3].seq, 1);
    assert_int_equal(td_step_n_want(&step, TD_WANT_LOGITS), 1);
    assert_int_equal(td_step_n_want(&step, TD_WANT_DRAW), 1);
    assert_int_equal(td_step_n_wanted(&step), 2);
    assert_int_equal(step.n_top, 0);
    assert_true(td_step_add_top_row(&step, 1, 34, 5));
    assert_true(td_step_add_top_row(&step, 1, 35, 3));
    assert_int_equal(td_step_n_want(&step, TD_WANT_TOP), 2);
    assert_int_equal(step.n_top, 5);
    td_step_ask_logprobs(&step, 4);
    td_step_ask_logprobs(&step, 1);
    assert_int_equal(step.logprobs, 4);
    assert_true(td_step_add_asked_row(&step, 1, 36, 9));
    assert_true(step.n_asked == 1 && step.asked[0] == 9);
    td_step_close(&step);
}

static void test_step_add_refuses_past_the_caps(void **state)
{
    const uint32_t blocks[CAP_TABLE + 1] = {0};
    const struct td_draw draw = {.inv_t = 1, .top_p = 1};
    struct td_step step;

    (void)state;
    open_step(&step);
    td_step_reset(&step, TD_STEP_RUN, 1);
    assert_false(td_step_add_row(&step, 0, 0, TD_WANT_NONE)); /* no sequence yet */
    assert_false(td_step_add_seq(&step, blocks, CAP_TABLE + 1, 0));
    assert_true(td_step_add_seq(&step, blocks, CAP_TABLE, 0));
    assert_false(td_step_add_seq(&step, blocks, 1, 0));
    for (uint32_t s = 1; s < CAP_SEQS; s++)
        assert_true(td_step_add_seq(&step, NULL, 0, s));
    assert_false(td_step_add_seq(&step, NULL, 0, 0));
    for (uint32_t r = 0; r < CAP_ROWS; r++)
        assert_true(td_step_add_draw_row(&step, r, r, &draw));
    assert_false(td_step_add_row(&step, 0, CAP_ROWS, TD_WANT_NONE));
    assert_false(td_step_add_draw_row(&step, 0, CAP_ROWS, &draw));
    assert_int_equal(step.n_rows, CAP_ROWS);
    assert_int_equal(step.n_seqs, CAP_SEQS);
    assert_int_equal(step.n_table, CAP_TABLE);
    for (uint32_t i = 0; i < TD_STEP_MAX_MOVES; i++)
        assert_true(td_step_add_move(&step, TD_MOVE_IN, i, i));
    assert_false(td_step_add_move(&step, TD_MOVE_IN, 0, 0));
    assert_int_equal(td_step_encoded_bytes(&step), td_step_max_bytes(&step));
    td_step_close(&step);
}

/* Every cut of steps that are short enough to list the parts one by one. */
static void test_step_has_as_many_parts_as_its_rows_fill(void **state)
{
    (void)state;
    for (uint32_t rows = 0; rows < 40; rows++) {
        assert_int_equal(td_step_n_parts(rows, 0), 1);
        for (uint32_t each = 1; each < 45; each++) {
            uint32_t n = 0;

            for (uint32_t left = rows; left; left -= left < each ? left : each)
                n++;
            assert_int_equal(td_step_n_parts(rows, each),
                             n >= 2 && n <= TD_STEP_MAX_PARTS ? n : UINT32_MAX);
        }
    }
    assert_int_equal(td_step_n_parts(UINT32_MAX, 1u << 30), 4);
    assert_int_equal(td_step_n_parts(UINT32_MAX, (1u << 30) - 1), UINT32_MAX);
}

static void test_step_survives_encode_and_decode(void **state)
{
    struct td_step a;
    struct td_step b;
    struct td_err err;
    uint8_t *bytes;
    size_t n;

    (void)state;
    open_step(&a);
    open_step(&b);
    fill(&a);
    assert_true(td_step_add_asked_row(&a, 7, 34, 99));
    assert_true(td_step_add_asked_row(&a, 8, 35, 0xfffffffe));
    bytes = encode(&a, &n);
    assert_int_equal(n, HEAD + 6 * 16 + 2 * 16 + 5 * 4 + 2 * 12 + DRAW + 2 * 4);
    assert_true(a.hash == XXH3_64bits(bytes + 8, n - 8) && a.hash != 0);
    assert_int_equal(td_step_decode(&b, bytes, n, &err), TD_OK);
    assert_same(&a, &b);
    free(bytes);

    td_step_reset(&a, TD_STEP_IDLE, 9);
    a.n_submits_seen = UINT64_MAX;
    bytes = encode(&a, &n);
    assert_int_equal(td_step_decode(&b, bytes, n, &err), TD_OK);
    assert_same(&a, &b);
    free(bytes);
    td_step_close(&a);
    td_step_close(&b);
}

static void test_step_encoding_is_little_endian_on_any_host(void **state)
{
    static const uint8_t expected[] = {
        0x05, 0x54, 0x44, 0x53, 1, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 12,
        0,    0,    0,    0,    0, 0, 0, 4, 0,    0,    0,    2,    0,    0,    0,    5,    0,
        0,    0,    0,    0,    0, 0, 2, 0, 0,    0,    3,    0,    0,    0,    1,    0,    0,
        0,    3,    0,    0,    0, 0, 0, 0, 0,    100,  0,    0,    0,    16,   0,    0,    0};
    struct td_step step;
    uint8_t *bytes;
    size_t n;

    (void)state;
    open_step(&step);
    fill(&step);
    bytes = encode(&step, &n);
    assert_memory_equal(bytes + AT_MAGIC, expected, sizeof expected);
    free(bytes);
    td_step_close(&step);
}

static void test_step_decode_names_what_is_wrong(void **state)
{
    enum { ROW = HEAD, SEQ = HEAD + 4 * 16, MOVE = SEQ + 2 * 16 + 5 * 4, AT_DRAW = MOVE + 2 * 12 };
    static const struct {
        size_t at;
        uint32_t value;
        const char *cause;
    } cases[] = {
        {AT_MAGIC, 5, "begins with 0x00000005"},
        {AT_KIND, 0, "kind 0, expected 1 to 4"},
        {AT_KIND, 5, "kind 5, expected 1 to 4"},
        {AT_KIND, TD_STEP_IDLE,
         "kind 2 has 4 rows, 2 sequences, 5 blocks, 2 moves and n_top 0, expected none"},
        {AT_N_ROWS, CAP_ROWS + 1, "41 rows, at most 40"},
        {AT_N_ROWS, 3, "expected 212 for 3 rows"},
        {AT_N_SEQS, UINT32_MAX, "4294967295 sequences, at most 6"},
        {AT_N_TABLE, UINT32_MAX, "4294967295 blocks, at most 30"},
        {AT_N_MOVES, TD_STEP_MAX_MOVES + 1, "2049 moves, at most 2048"},
        {AT_N_MOVES, 1, "expected 216 for 4 rows"},
        {AT_PART_ROWS, 4, "4 rows is cut after every 4, expected 2 to 4 parts"},
        {AT_PART_ROWS, UINT32_MAX, "4 rows is cut after every 4294967295"},
        {MOVE, 0, "move 0 is of kind 0, expected 1 to 3"},
        {MOVE + 12, 4, "move 1 is of kind 4, expected 1 to 3"},
        {AT_N_TOP, TD_TOP_MAX + 1, "the 65 largest logits, expected at most 64"},
        {AT_LOGPROBS, TD_TOP_MAX + 2, "log probabilities of 66, expected at most 65"},
        {ROW + 8, 1, "row 0 is of sequence 1, expected 0"},
        {ROW + 3 * 16 + 8, 0, "row 3 is of sequence 0, expected 1"},
        {ROW + 16 + 4, 16, "row 1 is at position 16, expected one above 16"},
        {ROW + 12, 2, "row 0 wants 2 with n_top 0, expected 0 to 4"},
        {ROW + 12, 5, "row 0 wants 5 with n_top 0, expected 0 to 4"},
        {ROW + 12, 3, "1 draws, 2 rows want one"},
        {ROW + 3 * 16 + 12, 1, "1 draws, 0 rows want one"},
        {ROW + 12, 4, "0 ids asked about and log probabilities of 3, 1 rows ask"},
        {AT_N_ASKED, 5, "5 ids asked about, at most 4"},
        {AT_N_ASKED, 1, "4 rows, 2 sequences, 5 blocks, 2 moves, 1 draws and 1 ids asked about"},
        {AT_N_DRAWS, 5, "5 draws, at most 4"},
        {AT_N_DRAWS, 0, "expected 208 for 4 rows"},
        {AT_DRAW + 4, 0x7ff00000, "draw 0 has 1 / "},
        {AT_DRAW + 4, 0xbff00000, "draw 0 has 1 / "},
        {AT_DRAW + 8, 0, "draw 0 has 1 / "},
        {AT_DRAW + 8, 0x7fc00000, "draw 0 has 1 / "},
        {AT_DRAW + 12, 0xbf800000, "draw 0 has 1 / "},
        {AT_DRAW + 16, 0x3f800000, "draw 0 has 1 / "},
        {SEQ, 6, "sequence 0 has 2 blocks from 6 on, the table has 5"},
        {SEQ, UINT32_MAX, "2 blocks from 4294967295 on"},
        {SEQ + 4, UINT32_MAX, "4294967295 blocks from 0 on"},
        {SEQ + 16 + 4, 4, "sequence 1 has 4 blocks from 2 on"},
        {SEQ + 12, 0, "sequence 0 has 0 rows"},
        {SEQ + 12, UINT32_MAX, "sequence 0 has 4294967295 rows, expected 1 to the 4 left"},
        {SEQ + 12, 2, "row 2 is of sequence 0, expected 1"},
        {SEQ + 12, 4, "row 3 is of sequence 1, expected 0"},
    };
    struct td_step a;
    struct td_step b;
    struct td_step before;
    struct td_err err;
    uint8_t *bytes;
    size_t n;

    (void)state;
    open_step(&a);
    open_step(&b);
    fill(&a);
    td_step_reset(&b, TD_STEP_STOP, 3);
    before = b;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bytes = encode(&a, &n);
        put32(bytes + cases[i].at, cases[i].value);
        seal(bytes, n);
        assert_int_equal(td_step_decode(&b, bytes, n, &err), TD_PEER_PROTOCOL);
        if (!strstr(err.cause, cases[i].cause))
            fail_msg("case %zu: '%s' does not say '%s'", i, err.cause, cases[i].cause);
        assert_memory_equal(&before, &b, sizeof b); /* written on success only */
        free(bytes);
    }
    td_step_close(&a);
    td_step_close(&b);
}

static void test_step_decode_refuses_rows_that_no_sequence_has(void **state)
{
    uint32_t block = 0;
    struct td_step a;
    struct td_err err;
    uint8_t *bytes;
    size_t n;

    (void)state;
    open_step(&a);
    td_step_reset(&a, TD_STEP_RUN, 1);
    assert_true(td_step_add_seq(&a, &block, 1, 0));
    assert_true(td_step_add_row(&a, 0, 0, TD_WANT_NONE));
    assert_true(td_step_add_row(&a, 0, 1, TD_WANT_NONE));
    a.seqs[0].n_rows = 1;
    bytes = encode(&a, &n);
    assert_int_equal(td_step_decode(&a, bytes, n, &err), TD_PEER_PROTOCOL);
    assert_string_equal(err.cause, "step sequences have 1 rows, the step has 2");
    free(bytes);
    td_step_close(&a);
}

static void test_step_decode_refuses_every_other_length(void **state)
{
    struct td_step a;
    struct td_err err;
    uint8_t *bytes;
    size_t n;

    (void)state;
    open_step(&a);
    fill(&a);
    bytes = encode(&a, &n);
    for (size_t shorter = 0; shorter < n; shorter++) {
        uint8_t *cut = malloc(shorter ? shorter : 1);

        assert_non_null(cut);
        memcpy(cut, bytes, shorter);
        if (shorter >= 8)
            seal(cut, shorter);
        assert_int_equal(td_step_decode(&a, cut, shorter, &err), TD_PEER_PROTOCOL);
        free(cut);
    }
    bytes = realloc(bytes, n + 1);
    assert_non_null(bytes);
    bytes[n] = 0;
    seal(bytes, n + 1);
    assert_int_equal(td_step_decode(&a, bytes, n + 1, &err), TD_PEER_PROTOCOL);
    free(bytes);
    td_step_close(&a);
}

static void test_step_decode_finds_every_flipped_bit(void **state)
{
    struct td_step a;
    struct td_step b;
    struct td_err err;
    uint8_t *bytes;
    size_t n;

    (void)state;
    open_step(&a);
    open_step(&b);
    fill(&a);
    bytes = encode(&a, &n);
    for (size_t bit = 0; bit < n * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(td_step_decode(&b, bytes, n, &err), TD_PEER_PROTOCOL);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(td_step_decode(&b, bytes, n, &err), TD_OK);
    free(bytes);
    td_step_close(&a);
    td_step_close(&b);
}

static void fill_at_random(struct td_step *step)
{
    uint32_t blocks[8];

    td_step_reset(step, TD_STEP_RUN, dice(1000));
    for (uint32_t s = dice(CAP_SEQS + 1); s > 0; s--) {
        uint32_t n_blocks = dice(9);
        uint32_t position = dice(1000);

        for (uint32_t i = 0; i < n_blocks; i++)
            blocks[i] = dice(0x7fffffff);
        if (step->n_rows == CAP_ROWS || !td_step_add_seq(step, blocks, n_blocks, dice(50)))
            return;
        for (uint32_t r = 0, n = 1 + dice(20); r < n; r++) {
            const struct td_draw draw = {.inv_t = 1 + dice(9),
                                         .top_p = (float)(1 + dice(9)) / 10,
                                         .min_p = (float)dice(10) / 10,
                                         .u = (float)dice(10) / 10};
            uint32_t kind = dice(8);
            bool added =
                kind < 2   ? td_step_add_top_row(step, dice(5000), position + r, 1 + dice(64))
                : kind < 4 ? td_step_add_draw_row(step, dice(5000), position + r, &draw)
                           : td_step_add_row(step, dice(5000), position + r, (enum td_want)dice(2));

            if (!added)
                break;
        }
    }
}

/* What a decoded step promises to those who index with it. */
static void assert_sound(const struct td_step *step)
{
    uint32_t row = 0;

    assert_true(step->kind >= TD_STEP_RUN && step->kind <= TD_STEP_STOP);
    assert_true(step->n_rows <= CAP_ROWS && step->n_seqs <= CAP_SEQS && step->n_table <= CAP_TABLE);
    for (uint32_t s = 0; s < step->n_seqs; s++) {
        assert_true((uint64_t)step->seqs[s].first_block + step->seqs[s].n_blocks <= step->n_table);
        for (uint32_t r = 0; r < step->seqs[s].n_rows; r++, row++) {
            assert_true(row < step->n_rows);
            assert_int_equal(step->rows[row].seq, s);
            assert_true(step->rows[row].want <= TD_WANT_LOGITS ||
                        step->rows[row].want == TD_WANT_DRAW ||
                        step->rows[row].want == TD_WANT_MEASURE ||
                        (step->rows[row].want == TD_WANT_TOP && step->n_top >= 1));
            assert_true(r == 0 || step->rows[row].position > step->rows[row - 1].position);
        }
    }
    assert_int_equal(row, step->n_rows);
    assert_int_equal(td_step_n_want(step, TD_WANT_DRAW), step->n_draws);
    assert_int_equal(td_step_n_want(step, TD_WANT_MEASURE), step->n_asked);
    assert_true(step->n_asked == 0 || step->logprobs);
    for (uint32_t i = 0; i < step->n_draws; i++)
        assert_true(td_draw_is_valid(&step->draws[i]));
    assert_true(step->n_top <= TD_TOP_MAX);
    assert_true(td_step_n_parts(step->n_rows, step->part_rows) <= TD_STEP_MAX_PARTS);
}

/* Words replaced at random with small and extreme values, hash made right: refused, or sound. */
static void test_step_decode_of_random_corruption_is_refused_or_sound(void **state)
{
    static const uint32_t values[] = {0,  1,  2,  3,          5,          29,        30,
                                      31, 40, 41, 0x7fffffff, 0x80000000, 0xffffffff};
    const uint64_t seed = 20240611;
    size_t n_refused = 0;
    size_t n_sound = 0;
    struct td_step a;
    struct td_step b;
    struct td_err err;

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    dice_state = seed;
    open_step(&a);
    open_step(&b);
    for (int round = 0; round < 20000; round++) {
        size_t n;
        uint8_t *bytes;
        enum td_status status;

        fill_at_random(&a);
        bytes = encode(&a, &n);
        assert_int_equal(td_step_decode(&b, bytes, n, &err), TD_OK);
        assert_same(&a, &b);
        for (uint32_t i = 1 + dice(3); i > 0; i--)
            put32(bytes + 8 + 4 * (size_t)dice((uint32_t)((n - 8) / 4)),
                  values[dice(sizeof values / sizeof values[0])]);
        seal(bytes, n);
        status = td_step_decode(&b, bytes, n, &err);
        if (status == TD_OK) {
            assert_sound(&b);
            n_sound++;
        } else {
            assert_int_equal(status, TD_PEER_PROTOCOL);
            n_refused++;
        }
        free(bytes);
    }
    assert_true(n_refused > 1000 && n_sound > 1000);
    td_step_close(&a);
    td_step_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_adds_sequences_and_rows_in_order),
        cmocka_unit_test(test_step_add_refuses_past_the_caps),
        cmocka_unit_test(test_step_has_as_many_parts_as_its_rows_fill),
        cmocka_unit_test(test_step_survives_encode_and_decode),
        cmocka_unit_test(test_step_encoding_is_little_endian_on_any_host),
        cmocka_unit_test(test_step_decode_names_what_is_wrong),
        cmocka_unit_test(test_step_decode_refuses_rows_that_no_sequence_has),
        cmocka_unit_test(test_step_decode_refuses_every_other_length),
        cmocka_unit_test(test_step_decode_finds_every_flipped_bit),
        cmocka_unit_test(test_step_decode_of_random_corruption_is_refused_or_sound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
