/* The YAML file of --config. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/config.h"

static enum td_status take(void *user, const char *key, const char *value, size_t line,
                           struct td_err *err)
{
    size_t *n = user;

    FUZZ_CHECK(key && *key && value && line >= 1);
    fuzz_touch(td_str_from(key));
    fuzz_touch(td_str_from(value));
    if (++*n > 1000)
        return td_err_set(err, TD_TOO_LARGE, "more than 1000 values");
    return TD_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_err err = {0};
    size_t n = 0;
    enum td_status status =
        td_config_parse((struct td_str){(const char *)data, size}, "fuzz.yaml", take, &n, &err);

    fuzz_check_err(status, &err);
    return 0;
}
