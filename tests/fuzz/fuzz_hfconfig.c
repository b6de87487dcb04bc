/* config.json, generation_config.json and tokenizer_config.json, parted by form feeds, into a model description. */
#include "tests/fuzz/fuzz.h"

#include "shard/hfconfig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_str rest = {(const char *)data, size};
    struct td_str config = fuzz_part(&rest);
    struct td_str generation = fuzz_part(&rest);
    struct td_str tokenizer = rest;
    struct td_spec spec = {0};
    struct td_err err = {0};
    enum td_int4_form int4;
    char *template = NULL;
    enum td_status status = td_hfconfig_read(config, generation, tokenizer, &spec, &int4, &err);

    fuzz_check_err(status, &err);
    if (!status) {
        status = td_spec_validate(&spec, &err);
        fuzz_check_err(status, &err);
        FUZZ_CHECK(status || (spec.n_layers > 0 && spec.n_layers <= TD_SPEC_MAX_LAYERS));
    }
    status = td_hfconfig_chat_template(tokenizer, &template, &err);
    fuzz_check_err(status, &err);
    if (!status && template)
        fuzz_touch(td_str_from(template));
    free(template);
    return 0;
}
