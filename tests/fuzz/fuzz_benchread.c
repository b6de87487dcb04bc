/* What another process says that it measured: the JSON of `tensord bench`, and the machine's figures in it. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/benchread.h"
#include "shard/machinejson.h"

/* A machine that was accepted is written and read again as itself. */
static void check_machine(const struct td_machine *machine)
{
    static struct td_machine again;
    struct td_err err = {0};
    json_t *json = td_machinejson_encode(machine, "fuzz", "fuzz");

    FUZZ_CHECK(json != NULL);
    FUZZ_CHECK(td_machinejson_decode(json, &again, &err) == TD_OK);
    FUZZ_CHECK(again.n_ranks == machine->n_ranks);
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const cases[] = {"decode", "depth"};
    static struct td_benchread read;

    for (size_t i = 0; i < 2; i++) {
        struct td_err err = {0};
        enum td_status status =
            td_benchread_parse((struct td_str){(const char *)data, size}, cases[i], &read, &err);

        fuzz_check_err(status, &err);
        if (status)
            continue;
        FUZZ_CHECK(read.decode.median >= 0.0 && read.prefill.median >= 0.0);
        FUZZ_CHECK(read.n_ranks >= 1);
        if (read.has_machine) {
            check_machine(&read.before);
            check_machine(&read.after);
        }
        td_benchread_deinit(&read);
    }
    return 0;
}
