#include "kernels/base/dtype.h"

#include <string.h>
#include <strings.h>

static const struct td_dtype_info INFO[TD_N_DTYPES] = {
    [TD_F32] = {"f32", 1, 4, 1},
    [TD_F16] = {"f16", 1, 2, 1},
    [TD_BF16] = {"bf16", 1, 2, 2},
    [TD_Q8_0] = {"q8_0", 32, 34, 32},
    [TD_Q4_0] = {"q4_0", 32, 18, 32},
    [TD_Q4_1] = {"q4_1", 32, 20, 32},
    [TD_Q5_0] = {"q5_0", 32, 22, 32},
    [TD_Q5_1] = {"q5_1", 32, 24, 32},
    [TD_Q2_K] = {"q2_k", 256, 84, 256},
    [TD_Q3_K] = {"q3_k", 256, 110, 256},
    [TD_Q4_K] = {"q4_k", 256, 144, 256},
    [TD_Q5_K] = {"q5_k", 256, 176, 256},
    [TD_Q6_K] = {"q6_k", 256, 210, 256},
    [TD_IQ4_NL] = {"iq4_nl", 32, 18, 32},
    [TD_IQ4_XS] = {"iq4_xs", 256, 136, 256},
    [TD_MXFP4] = {"mxfp4", 32, 17, 32},
    [TD_INT4] = {"int4", 32, 19, 32},
    [TD_F8_E4M3] = {"f8_e4m3", 1, 1, 128},
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

size_t td_dtype_held_bytes(enum td_dtype type, size_t n_elems)
{
    size_t bytes = td_dtype_row_bytes(type, n_elems);

    return type == TD_F8_E4M3 ? bytes + (n_elems + 127) / 128 * sizeof(float) : bytes;
}

bool td_dtype_from_name(const char *name, enum td_dtype *type)
{
    static const struct {
        const char *alias;
        enum td_dtype type;
    } aliases[] = {{"float32", TD_F32},           {"fp32", TD_F32},
                   {"float16", TD_F16},           {"fp16", TD_F16},
                   {"bfloat16", TD_BF16},         {"half", TD_F16},
                   {"fp8", TD_F8_E4M3},           {"fp8_e4m3", TD_F8_E4M3},
                   {"float8_e4m3fn", TD_F8_E4M3}, {"f8_e4m3fn", TD_F8_E4M3}};

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
