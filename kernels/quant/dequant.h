/* Rows of weights between their stored types and F32: one plain definition per type, the specification that the
 * vector kernels are tested against. Block layouts are those of the GGUF specification; stateless, any thread. */
#ifndef TD_KERNELS_QUANT_DEQUANT_H
#define TD_KERNELS_QUANT_DEQUANT_H

#include "kernels/base/dtype.h"

/* dst[0 .. n_elems) from `src`, which may be unaligned. n_elems is a whole number of blocks. Exact: every stored
 * value has one F32 value. */
void td_dequant_row(enum td_dtype type, const void *src, float *dst, size_t n_elems);

/* The reverse, n_elems as above, `dst` of td_dtype_row_bytes(type, n_elems). F16 and BF16 round to nearest, ties to
 * even. Q8_0: scale = largest magnitude / 127, quotients rounded half away from zero. Q4_0: scale = the value of
 * largest magnitude / -8, so that this value is stored as -8; quotients + 8.5 cut off. Finite input. */
void td_quant_row(enum td_dtype type, const float *src, void *dst, size_t n_elems);

#endif
