/* A tokenizer out of a GGUF file's metadata: load, encode, decode. */
#include "tests/fuzz/fuzz.h"

#include "shard/gguf.h"
#include "tests/fuzz/fuzz_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_tokenizer *tok = NULL;
    struct td_gguf *g = NULL;
    struct td_err err = {0};

    if (td_gguf_open_memory(data, size, &g, &err))
        return 0;
    enum td_status status = td_tokenizer_open_gguf(g, &tok, &err);

    fuzz_check_err(status, &err);
    td_gguf_close(g); /* the tokenizer borrows nothing */
    if (!status)
        fuzz_text_use(tok, TD_STR("Hello  w\xc3\xb6rld, <s>12345</s>\n\t\xe4\xb8\xad it's"));
    td_tokenizer_close(tok);
    return 0;
}
