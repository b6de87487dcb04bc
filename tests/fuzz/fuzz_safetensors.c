/* One safetensors file: its header and the bytes that it promises. */
#include "tests/fuzz/fuzz.h"

#include "shard/mapfile.h"
#include "shard/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_safetensors *st = NULL;
    struct td_err err = {0};
    enum td_status status = td_safetensors_open_memory(data, size, &st, &err);

    fuzz_check_err(status, &err);
    if (status)
        return 0;
    FUZZ_CHECK(td_safetensors_n_files(st) == 1);
    FUZZ_CHECK(td_safetensors_header_bytes(st, 0) <= size);
    for (size_t i = 0; i < td_safetensors_n_tensors(st); i++) {
        const struct td_safetensors_tensor *t = td_safetensors_tensor_at(st, i);

        FUZZ_CHECK(t->type_name && t->n_dims >= 0 && t->n_dims <= TD_TENSOR_MAX_DIMS);
        fuzz_touch(t->name);
        FUZZ_CHECK(t->name.ptr[t->name.len] == '\0');
        FUZZ_CHECK(strlen(t->name.ptr) != t->name.len ||
                   td_safetensors_find(st, t->name.ptr) != NULL);
        if (t->bytes) {
            FUZZ_CHECK(td_mapfile_holds(td_safetensors_mapfile(st, t->file), t->data, t->bytes));
            fuzz_touch((struct td_str){t->data, t->bytes});
        }
    }
    td_safetensors_close(st);
    return 0;
}
