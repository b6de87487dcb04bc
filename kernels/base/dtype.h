/* Element types of weights, activations and caches, and the sizes of their blocks.
 * Block layouts are those of the GGUF specification (ggml) and, for MXFP4 and FP8, of the OCP formats; INT4 is what GPTQ's and AWQ's
 * tensors are put into (shard/int4.h). Arithmetic on them lives in kernels/quant. */
#ifndef TD_KERNELS_BASE_DTYPE_H
#define TD_KERNELS_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

/* New types go before TD_N_DTYPES; a type that some part cannot hold is refused there by its name. */
enum td_dtype {
    TD_F32 = 0,
    TD_F16,
    TD_BF16,
    TD_Q8_0, /* 32 weights: F16 scale, 32 int8 */
    TD_Q4_0, /* 32 weights: F16 scale, 16 bytes of nibbles; weight = (nibble - 8) * scale */
    TD_Q4_1, /* 32: F16 scale, F16 minimum, nibbles; weight = nibble * scale + minimum */
    TD_Q5_0, /* 32: F16 scale, 32 high bits, nibbles; weight = (5 bits - 16) * scale */
    TD_Q5_1, /* 32: F16 scale, F16 minimum, 32 high bits, nibbles */
    TD_Q2_K, /* 256: 16 x (4-bit scale, 4-bit minimum), 2-bit weights, F16 scale and minimum of those */
    TD_Q3_K,   /* 256: 3-bit weights, 16 x 6-bit scale, F16 scale of those */
    TD_Q4_K,   /* 256: F16 scale and minimum, 8 x (6-bit scale, 6-bit minimum), nibbles */
    TD_Q5_K,   /* 256: as Q4_K with a fifth bit */
    TD_Q6_K,   /* 256: 6-bit weights, 16 x int8 scale, F16 scale of those */
    TD_IQ4_NL, /* 32: F16 scale, nibbles that index a table of 16 values */
    TD_IQ4_XS, /* 256: F16 scale, 8 x 6-bit scale, nibbles of IQ4_NL */
    TD_MXFP4,  /* 32: E8M0 scale, nibbles that are E2M1 floats */
    TD_INT4, /* 32: F16 scale, zero (the lower half of a byte), nibbles; weight = (nibble - zero) * scale */
    TD_F8_E4M3, /* 1 byte; F32 scales lie beside the matrix: per tensor, per row or per block of 128 x 128 */
    TD_N_DTYPES
};

struct td_dtype_info {
    const char *name; /* as users write it: "bf16", "q8_0" */
    size_t block_elems;
    size_t block_bytes;
    /* Columns that a sum over weights of this type takes in one go: a leaf holds whole runs of them. */
    size_t sum_cols;
};

const struct td_dtype_info *td_dtype_info(enum td_dtype type);
/* Bytes of one row of `n_elems`; 0 when n_elems is no whole number of blocks. */
size_t td_dtype_row_bytes(enum td_dtype type, size_t n_elems);
/* Bytes of one row of a matrix with what lies beside it: for F8_E4M3 also one F32 scale per 128 columns. */
size_t td_dtype_held_bytes(enum td_dtype type, size_t n_elems);
/* Case-insensitive lookup of "f32", "fp16"/"f16", "bf16", "q8_0", "q4_k", "fp8"/"f8_e4m3" ...; false when there is none. */
bool td_dtype_from_name(const char *name, enum td_dtype *type);

#endif
