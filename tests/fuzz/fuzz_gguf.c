/* A GGUF file: its metadata and tensors, and the model description that is made of it. */
#include "tests/fuzz/fuzz.h"

#include "shard/gguf.h"
#include "shard/ggufspec.h"
#include "shard/mapfile.h"

static void touch_kv(const struct td_gguf *g, const struct td_gguf_kv *kv)
{
    FUZZ_CHECK(td_str_is_utf8(kv->key));
    fuzz_touch(kv->key);
    for (size_t i = 0; i < kv->n; i++) {
        if (kv->elem == TD_GGUF_STRING)
            fuzz_touch(td_gguf_elem_str(kv, i));
        else if (kv->elem == TD_GGUF_F32 || kv->elem == TD_GGUF_F64)
            (void)td_gguf_elem_f32(kv, i);
        else
            (void)td_gguf_elem_i64(kv, i);
    }
    FUZZ_CHECK(td_gguf_type_name(kv->elem));
    (void)g;
}

static void touch_tensor(const struct td_gguf *g, const struct td_gguf_tensor *t)
{
    FUZZ_CHECK(t->n_dims >= 1 && t->n_dims <= TD_TENSOR_MAX_DIMS && t->type_name);
    fuzz_touch(t->name);
    if (td_gguf_has_data(g) && t->bytes) {
        FUZZ_CHECK(td_mapfile_holds(td_gguf_mapfile(g), t->data, t->bytes));
        fuzz_touch((struct td_str){t->data, t->bytes});
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_gguf *g = NULL;
    struct td_spec spec = {0};
    struct td_err err = {0};
    enum td_status status = td_gguf_open_memory(data, size, &g, &err);

    fuzz_check_err(status, &err);
    if (status)
        return 0;
    FUZZ_CHECK(td_gguf_header_bytes(g) <= size);
    for (size_t i = 0; i < td_gguf_n_kv(g); i++)
        touch_kv(g, td_gguf_kv_at(g, i));
    for (size_t i = 0; i < td_gguf_n_tensors(g); i++)
        touch_tensor(g, td_gguf_tensor_at(g, i));
    status = td_ggufspec_read(g, &spec, &err);
    fuzz_check_err(status, &err);
    if (!status)
        fuzz_check_err(td_spec_validate(&spec, &err), &err);
    td_gguf_close(g);
    return 0;
}
