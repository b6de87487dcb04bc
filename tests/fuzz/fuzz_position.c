/* The id of an event by which the client of a stream comes back, for a request of 1 to 8 answers. */
#include "tests/fuzz/fuzz.h"

#include "daemon/coordinator/openai_call.h"

enum { MAX_PARTS = 8 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_openai_part parts[MAX_PARTS] = {0};
    struct td_openai_call call = {.parts = parts};
    struct td_bytes copy = {0};
    struct td_bytes again = {0};
    struct td_err err = {0};
    uint8_t choice;
    struct td_str id = fuzz_split(data, size, &choice);
    call.n_parts = 1 + choice % MAX_PARTS;
    FUZZ_CHECK(td_bytes_append_str(&copy, id) == TD_OK);
    enum td_status status = td_openai_position_read(&call, td_bytes_str(&copy), &err);
    fuzz_check_err(status, &err);
    /* What was read is written as it was, but for zeros in front of a number. */
    for (size_t i = 0; i < call.n_parts; i++) {
        parts[i].n_sent = parts[i].n_known;
    }
    if (status == TD_OK) {
        FUZZ_CHECK(td_openai_position_write(&call, &again) == TD_OK);
        FUZZ_CHECK(again.len <= id.len || id.len == 0);
        FUZZ_CHECK(td_openai_position_read(&call, td_bytes_str(&again), &err) == TD_OK);
    }
    td_bytes_deinit(&again);
    td_bytes_deinit(&copy);
    return 0;
}
