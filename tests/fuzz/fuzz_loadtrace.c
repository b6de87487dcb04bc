/* A trace for `bench serve`: rows that were accepted are within their limits and give prompts. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/load.h"
#include "daemon/cli/loadtrace.h"

enum { MAX_PROMPTS = 8, MAX_WORDS = 4096 };

static void check_row(const struct td_load *l, size_t i)
{
    const struct td_loadtrace_row *row = &l->trace->rows[i];
    struct td_load_request r;
    struct td_bytes text = {0};

    FUZZ_CHECK(row->at_s >= 0.0 && (i == 0 || row->at_s >= l->trace->rows[i - 1].at_s));
    FUZZ_CHECK(row->n_output >= 1 && row->n_output <= TD_LOAD_MAX_TOKENS);
    FUZZ_CHECK((row->prompt != NULL) == (row->n_input == 0));
    FUZZ_CHECK(row->n_input <= TD_LOAD_MAX_TOKENS);
    FUZZ_CHECK((row->blocks != NULL) == (row->n_blocks > 0));
    td_load_request(l, i, &r);
    FUZZ_CHECK(r.n_input == row->n_input && r.n_output == row->n_output);
    if (i >= MAX_PROMPTS || row->n_input > MAX_WORDS)
        return;
    FUZZ_CHECK(td_load_prompt(l, 0, i, &text) == TD_OK);
    FUZZ_CHECK(text.len > 0);
    td_bytes_deinit(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_loadtrace *trace = NULL;
    struct td_err err = {0};
    enum td_status status =
        td_loadtrace_parse((struct td_str){(const char *)data, size}, &trace, &err);
    struct td_load load = {.prefix_groups = 1, .trace = trace};

    fuzz_check_err(status, &err);
    if (!status) {
        FUZZ_CHECK(trace->n_rows > 0);
        for (size_t i = 0; i < trace->n_rows; i++)
            check_row(&load, i);
    }
    td_loadtrace_close(trace);
    return 0;
}
