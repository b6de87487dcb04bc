/* The least-squares searches of the quantisers: a scale, or a scale and a minimum, for a run of columns.
 * Every sum has one order, so a search gives the same bits everywhere. Stateless, any thread; n is a multiple of 8. */
#ifndef TD_KERNELS_QUANT_FIT_H
#define TD_KERNELS_QUANT_FIT_H

#include <stdint.h>

/* Integers that a column may be stored as. */
struct td_fit_range {
    float lo;
    float hi;
};

/* w [n] = |x| + half the root of the mean square of x: an error in a large weight costs more than one in a small weight. */
void td_fit_weigh(const float *x, int n, float *w);

/* q [n] = the integers of `range` nearest to (x - min) / scale, ties to even; a scale of 0 gives 0. Returns the sum of
 * w * (x - scale * q - min)^2. `q` may be NULL. */
float td_fit_levels(const float *x, const float *w, int n, struct td_fit_range range, float scale,
                    float min, int8_t *q);

/* The scale, of either sign, that makes the sum of w * (x - scale * q)^2 small, with the q of td_fit_levels. */
float td_fit_scale(const float *x, const float *w, int n, struct td_fit_range range);

/* The scale >= 0 and `min` <= 0 that make the sum of w * (x - scale * q - min)^2 small. range.lo is 0. */
float td_fit_affine(const float *x, const float *w, int n, struct td_fit_range range, float *min);

/* Given a scale, the minimum that does so; may be positive. */
float td_fit_min(const float *x, const float *w, int n, struct td_fit_range range, float scale,
                 float min);

#endif
