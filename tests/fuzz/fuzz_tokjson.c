/* tokenizer.json, tokenizer_config.json and a text, parted by form feeds: load, encode, decode. */
#include "tests/fuzz/fuzz.h"

#include "tests/fuzz/fuzz_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_str rest = {(const char *)data, size};
    struct td_str json = fuzz_part(&rest);
    struct td_str config = fuzz_part(&rest);
    struct td_tokenizer *tok = NULL;
    struct td_err err = {0};
    enum td_status status = td_tokenizer_open_json(json, config, &tok, &err);

    fuzz_check_err(status, &err);
    if (!status)
        fuzz_text_use(tok, rest);
    td_tokenizer_close(tok);
    return 0;
}
