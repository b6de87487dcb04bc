/* Loops over a row of logits, or a leaf of one, as wide as the processor's vectors: the same bits on every width, since lanes do
 * not meet but where it is written. Pure. */
#ifndef TD_SHARD_ROWMATH_H
#define TD_SHARD_ROWMATH_H

#include <stdint.h>

enum { TD_ROWMATH_LANES = 16 };

/* out [n] = z [n], NaN as -infinity. */
void td_rowmath_clean(const float *z, uint32_t n, float *out);
/* The largest of n values, NaN passed over; -infinity when there is none. */
float td_rowmath_max(const float *z, uint32_t n);
/* The first of n values that equals `value`, or is above `floor`; n when there is none. */
uint32_t td_rowmath_find(const float *z, uint32_t n, float value);
uint32_t td_rowmath_above(const float *z, uint32_t n, float floor);
/* How many of n values come before z[at] in the order of size, among equals by index. */
uint32_t td_rowmath_rank(const float *z, uint32_t n, uint32_t at);
/* w [n] = td_draw_weight(z, max, inv_t). */
void td_rowmath_weights(const float *z, uint32_t n, float max, double inv_t, double *w);
/* The sum of n weights: number i goes to lane i % TD_ROWMATH_LANES in ascending order; lanes join by halves. */
double td_rowmath_sum(const double *w, uint32_t n);
/* The second half of it: lanes [TD_ROWMATH_LANES], which are overwritten. */
double td_rowmath_join(double *lanes);

#endif
