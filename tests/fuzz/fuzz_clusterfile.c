/* The YAML file of --cluster. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/clusterfile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct td_machine machine;
    struct td_err err = {0};
    enum td_status status = td_clusterfile_parse((struct td_str){(const char *)data, size},
                                                 "fuzz.yaml", &machine, &err);

    fuzz_check_err(status, &err);
    FUZZ_CHECK(status || td_predict_check(&machine, &err) == TD_OK);
    return 0;
}
