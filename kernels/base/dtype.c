#include "kernels/base/dtype.h"

#include <string.h>
#include <strings.h>

static const struct td_dtype_info INFO[TD_N_DTYPES] = {
    [TD_F32] = {"f32", 1, 4},     [TD_F16] = {"f16", 1, 2},     [TD_BF16] = {"bf16", 1, 2},
    [TD_Q8_0] = {"q8_0", 32, 34}, [TD_Q4_0] = {"q4_0", 32, 18},
};

const struct td_dtype_info *td_dtype_info(enum td_dtype type)
{
    return &INFO[type];
}

size_t td_dtype_row_bytes(enum td_dtype type, size_t n_elems)
{
    const struct td_dtype_info *info = &INFO[type];

    return n_elems % info->block_elems ? 0 : n_elems / info->block_elems * info->block_bytes;
}

bool td_dtype_from_name(const char *name, enum td_dtype *type)
{
    static const struct {
        const char *alias;
        enum td_dtype type;
    } aliases[] = {{"float32", TD_F32}, {"fp32", TD_F32},      {"float16", TD_F16},
                   {"fp16", TD_F16},    {"bfloat16", TD_BF16}, {"half", TD_F16}};

    for (int t = 0; t < TD_N_DTYPES; t++)
        if (strcasecmp(name, INFO[t].name) == 0) {
            *type = (enum td_dtype)t;
            return true;
        }
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++)
        if (strcasecmp(name, aliases[i].alias) == 0) {
            *type = aliases[i].type;
            return true;
        }
    return false;
}
