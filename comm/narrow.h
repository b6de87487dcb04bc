/* Floats in fewer bits for their way between hosts. Inexact: a sum over what was narrowed depends on the layout of the run.
 * BF16: round to nearest even. Q8_0: 32 floats share a scale in binary16, the largest of them over 127. Pure. */
#ifndef TD_COMM_NARROW_H
#define TD_COMM_NARROW_H

#include "comm/comm.h"

/* Bytes of n packed floats. */
size_t td_narrow_bytes(enum td_exchange_dtype dtype, size_t n);
void td_narrow_pack(enum td_exchange_dtype dtype, const float *in, size_t n, void *out);
void td_narrow_unpack(enum td_exchange_dtype dtype, const void *in, size_t n, float *out);

#endif
