/* Rows of weights between their stored types and F32: one plain definition per type, the specification that the
 * vector kernels are tested against. Block layouts are those of the GGUF specification; stateless, any thread. */
#ifndef TD_KERNELS_QUANT_DEQUANT_H
#define TD_KERNELS_QUANT_DEQUANT_H

#include "kernels/base/dtype.h"

/* dst[0 .. n_elems) from `src`, which may be unaligned. n_elems is a whole number of blocks. Exact: every stored
 * value has one F32 value. Of F8_E4M3 these are the values without the scales that lie beside the matrix. */
void td_dequant_row(enum td_dtype type, const void *src, float *dst, size_t n_elems);

/* The reverse, n_elems as above, `dst` of td_dtype_row_bytes(type, n_elems). The same bytes everywhere, block by block.
 * F16, BF16: to nearest, ties to even. F8_E4M3: the same, and 448 for what lies beyond (for scales see fp8.h).
 * Q8_0: scale = largest magnitude / 127, quotients rounded half away from zero. Q4_0, Q5_0: scale = the value of largest
 * magnitude / -8 or -16, so that this value is stored as the lowest; quotients rounded half up. Q4_1, Q5_1: minimum = the lowest
 * value, scale = spread / 15 or 31, quotients rounded half up.
 * INT4: scale = spread of the values and 0 / 15, zero = where 0 lies among the 15 steps, to nearest, quotients rounded half up.
 * Q2_K .. Q6_K, IQ4_NL, IQ4_XS: scales and minima that make the squared error small, weighted by |x| + rms / 2 (fit.h).
 * MXFP4: scale = 2^(exponent of the largest magnitude - 2), to nearest, ties to even, 6 for what lies beyond.
 * Types made of blocks store NaN as 0 and what is too large, infinity too, as the largest that the block can hold. */
void td_quant_row(enum td_dtype type, const float *src, void *dst, size_t n_elems);

#endif
