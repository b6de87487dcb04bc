/* tokenizer.json and tokenizer_config.json, parted by form feeds, as `quantize` stores them in a GGUF file: what was accepted is
 * a file that our own reader takes. */
#include "tests/fuzz/fuzz.h"

#include "daemon/text/tokenizer.h"
#include "daemon/text/tokexport.h"
#include "shard/gguf.h"
#include "shard/ggufwrite.h"
#include "shard/spec.h"

static void read_back(const struct td_ggufwrite *w)
{
    struct td_bytes head = {0};
    struct td_gguf *g = NULL;
    struct td_err err = {0};
    enum td_status status = td_ggufwrite_head(w, &head, &err);

    fuzz_check_err(status, &err);
    if (!status) {
        status = td_gguf_open_memory(head.data, head.len, &g, &err);
        fuzz_check_err(status, &err);
        FUZZ_CHECK(status == TD_OK);
        td_gguf_close(g);
    }
    td_bytes_deinit(&head);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_str rest = {(const char *)data, size};
    struct td_str json = fuzz_part(&rest);
    struct td_tokenizer *tok = NULL;
    struct td_ggufwrite *w = NULL;
    struct td_bytes notes = {0};
    struct td_spec spec = {0};
    struct td_err err = {0};
    enum td_status status = td_tokenizer_open_json(json, fuzz_part(&rest), &tok, &err);

    fuzz_check_err(status, &err);
    if (status || td_tokenizer_n_vocab(tok) > 4096) {
        td_tokenizer_close(tok);
        return 0;
    }
    spec.n_vocab = td_tokenizer_n_vocab(tok) + 3;
    FUZZ_CHECK(td_ggufwrite_open(&w, NULL) == TD_OK);
    status = td_tokexport_gguf(tok, json, &spec, w, &notes, &err);
    fuzz_check_err(status, &err);
    if (!status)
        read_back(w);
    td_bytes_deinit(&notes);
    td_ggufwrite_close(w);
    td_tokenizer_close(tok);
    return 0;
}
