/* One step as its bytes. An odd first byte has the content hash put right, so that what lies behind it is reached. */
#include "tests/fuzz/fuzz.h"

#include "shard/step.h"

#include <xxhash.h>

enum { CAP_ROWS = 32, CAP_SEQS = 8, CAP_TABLE = 64, HASH_BYTES = 8 };

/* What a rank relies on when it runs the step. */
static void check_step(const struct td_step *step)
{
    uint32_t row = 0;

    FUZZ_CHECK(step->kind >= TD_STEP_RUN && step->kind <= TD_STEP_FLUSH);
    FUZZ_CHECK(step->n_moves <= TD_STEP_MAX_MOVES);
    FUZZ_CHECK(step->n_rows <= CAP_ROWS && step->n_seqs <= CAP_SEQS && step->n_table <= CAP_TABLE);
    for (uint32_t s = 0; s < step->n_seqs; s++) {
        const struct td_step_seq *seq = &step->seqs[s];

        FUZZ_CHECK((uint64_t)seq->first_block + seq->n_blocks <= step->n_table);
        for (uint32_t i = 0; i < seq->n_rows; i++, row++) {
            FUZZ_CHECK(row < step->n_rows && step->rows[row].seq == s);
            FUZZ_CHECK(step->rows[row].want < TD_WANTS);
            FUZZ_CHECK(i == 0 || step->rows[row].position > step->rows[row - 1].position);
        }
    }
    FUZZ_CHECK(row == step->n_rows);
    FUZZ_CHECK(td_step_n_want(step, TD_WANT_LOGITS) <= step->n_rows);
    FUZZ_CHECK(step->part_rows == 0 ||
               (step->part_rows < step->n_rows &&
                (uint64_t)step->part_rows * TD_STEP_MAX_PARTS >= step->n_rows));
    FUZZ_CHECK(step->n_top <= TD_TOP_MAX);
    FUZZ_CHECK(td_step_n_want(step, TD_WANT_TOP) == 0 || step->n_top > 0);
    FUZZ_CHECK(td_step_n_want(step, TD_WANT_DRAW) == step->n_draws);
    FUZZ_CHECK(td_step_n_want(step, TD_WANT_MEASURE) == step->n_asked);
    FUZZ_CHECK(step->logprobs <= TD_TOP_MAX + 1 && (step->n_asked == 0 || step->logprobs));
    for (uint32_t i = 0; i < step->n_draws; i++)
        FUZZ_CHECK(td_draw_is_valid(&step->draws[i]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t choice;
    struct td_str in = fuzz_split(data, size, &choice);
    unsigned char *copy = malloc(in.len + !in.len);
    struct td_step step;
    struct td_err err = {0};

    FUZZ_CHECK(copy && td_step_open(&step, CAP_ROWS, CAP_SEQS, CAP_TABLE, &err) == TD_OK);
    if (in.len)
        memcpy(copy, in.ptr, in.len);
    if ((choice & 1) && in.len >= HASH_BYTES) {
        uint64_t hash = XXH3_64bits(copy + HASH_BYTES, in.len - HASH_BYTES);

        for (int i = 0; i < HASH_BYTES; i++)
            copy[i] = (unsigned char)(hash >> 8 * i);
    }
    enum td_status status = td_step_decode(&step, copy, in.len, &err);

    fuzz_check_err(status, &err);
    if (!status) {
        unsigned char *again = malloc(td_step_max_bytes(&step));

        FUZZ_CHECK(again);
        check_step(&step);
        FUZZ_CHECK(td_step_encoded_bytes(&step) == in.len);
        td_step_encode(&step, again);
        FUZZ_CHECK(memcmp(again, copy, in.len) == 0);
        free(again);
    }
    td_step_close(&step);
    free(copy);
    return 0;
}
