/* The rules of the lab's switch: what was accepted is within its limits. */
#include "tests/fuzz/fuzz.h"

#include "deploy/netlab/linkrules.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_linkrules rules;
    struct td_err err = {0};
    enum td_status status =
        td_linkrules_parse((struct td_str){(const char *)data, size}, &rules, &err);

    fuzz_check_err(status, &err);
    if (status)
        return 0;
    FUZZ_CHECK(rules.rules.rate_bps <= 1000000000000u);
    for (size_t from = 0; from < TD_TRANSIT_PORTS; from++) {
        FUZZ_CHECK(memchr(rules.ports[from], '\0', sizeof rules.ports[from]) != NULL);
        for (size_t to = 0; to < TD_TRANSIT_PORTS; to++) {
            const struct td_transit_link *link = &rules.rules.links[from][to];

            FUZZ_CHECK(link->delay_ns <= 60000000000u && link->jitter_ns <= 60000000000u);
            FUZZ_CHECK(link->loss_ppm <= 1000000);
        }
    }
    return 0;
}
