#include "shard/mix.h"

static const struct {
    enum td_dtype fallback; /* where a row is no whole number of blocks */
    enum td_dtype head;
    uint32_t file_type;
} MIX[TD_N_DTYPES] = {
    [TD_F32] = {TD_F32, TD_F32, 0},
    [TD_F16] = {TD_F16, TD_F16, 1},
    [TD_BF16] = {TD_BF16, TD_BF16, 32},
    [TD_Q8_0] = {TD_F16, TD_Q8_0, 7},
    [TD_Q4_0] = {TD_F16, TD_Q6_K, 2},
    [TD_Q4_1] = {TD_F16, TD_Q6_K, 3},
    [TD_Q5_0] = {TD_F16, TD_Q6_K, 8},
    [TD_Q5_1] = {TD_F16, TD_Q6_K, 9},
    [TD_Q2_K] = {TD_Q4_0, TD_Q6_K, 10},
    [TD_Q3_K] = {TD_Q4_0, TD_Q6_K, 11},
    [TD_Q4_K] = {TD_Q5_0, TD_Q6_K, 14},
    [TD_Q5_K] = {TD_Q5_1, TD_Q6_K, 16},
    [TD_Q6_K] = {TD_Q8_0, TD_Q6_K, 18},
    [TD_IQ4_NL] = {TD_F16, TD_Q6_K, 25},
    [TD_IQ4_XS] = {TD_IQ4_NL, TD_Q6_K, 30},
    [TD_MXFP4] = {TD_F16, TD_Q6_K, 38},
    [TD_INT4] = {TD_F16, TD_Q6_K, 0}, /* no GGUF file has it */
    [TD_F8_E4M3] = {TD_F8_E4M3, TD_F8_E4M3, 0},
};

enum td_dtype td_mix_type(enum td_dtype wanted, bool is_head, bool pure, size_t n_cols)
{
    enum td_dtype type = is_head && !pure ? MIX[wanted].head : wanted;

    while (td_dtype_row_bytes(type, n_cols) == 0) /* f16 takes any row */
        type = MIX[type].fallback;
    return type;
}

uint32_t td_mix_file_type(enum td_dtype type)
{
    return MIX[type].file_type;
}
