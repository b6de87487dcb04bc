/* Element types of weights, activations and caches, and the sizes of their blocks.
 * Block layouts are those of the GGUF specification (ggml); arithmetic on them lives in kernels/quant. */
#ifndef TD_KERNELS_BASE_DTYPE_H
#define TD_KERNELS_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

enum td_dtype {
    TD_F32 = 0,
    TD_F16,
    TD_BF16,
    TD_Q8_0, /* 32 weights: F16 scale, 32 int8 */
    TD_Q4_0, /* 32 weights: F16 scale, 16 bytes of nibbles; weight = (nibble - 8) * scale */
    TD_N_DTYPES
};

struct td_dtype_info {
    const char *name; /* as users write it: "bf16", "q8_0" */
    size_t block_elems;
    size_t block_bytes;
};

const struct td_dtype_info *td_dtype_info(enum td_dtype type);
/* Bytes of one row of `n_elems`; 0 when n_elems is no whole number of blocks. */
size_t td_dtype_row_bytes(enum td_dtype type, size_t n_elems);
/* Case-insensitive lookup of "f32", "fp16"/"f16", "bf16", "q8_0", "q4_0"; false when there is none. */
bool td_dtype_from_name(const char *name, enum td_dtype *type);

#endif
