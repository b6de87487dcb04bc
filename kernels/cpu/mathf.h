/* The transcendental functions of the forward pass, ours to the last bit: only IEEE operations in a stated order, so
 * that the plain and the vector files agree. Errors: exp 1 ulp over [-87, 88]; sin and cos 1 ulp of F32. */
#ifndef TD_KERNELS_CPU_MATHF_H
#define TD_KERNELS_CPU_MATHF_H

#include "kernels/base/half.h"

#include <math.h>
#include <stdint.h>

#define TD_EXP_LO (-104.0f) /* below: 0 */
#define TD_EXP_HI 89.0f     /* above: infinity */
#define TD_LOG2E 1.44269504f
#define TD_CAP_HI 40.0f        /* tanh of its half is 1 */
#define TD_LN2_HI 0.693359375f /* 9 bits: n * TD_LN2_HI is exact for |n| < 2^15 */
#define TD_LN2_LO (-2.12194440e-4f)
/* 1/k! for the Taylor polynomial on |r| <= ln(2)/2: remainder 6e-9. */
#define TD_EXP_C2 0.5f
#define TD_EXP_C3 0.166666667f
#define TD_EXP_C4 0.0416666667f
#define TD_EXP_C5 0.00833333333f
#define TD_EXP_C6 0.00138888889f
#define TD_EXP_C7 0.000198412698f

static inline float td_mathf_exp(float x)
{
    float n, r, p;
    int32_t i, half;

    if (x != x)
        return x;
    x = TD_EXP_LO > x ? TD_EXP_LO : x;
    x = TD_EXP_HI < x ? TD_EXP_HI : x;
    n = rintf(x * TD_LOG2E);
    r = fmaf(n, -TD_LN2_HI, x);
    r = fmaf(n, -TD_LN2_LO, r);
    p = fmaf(TD_EXP_C7, r, TD_EXP_C6);
    p = fmaf(p, r, TD_EXP_C5);
    p = fmaf(p, r, TD_EXP_C4);
    p = fmaf(p, r, TD_EXP_C3);
    p = fmaf(p, r, TD_EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    i = (int32_t)n;
    half = i >> 1; /* two factors, because 2^i may be outside the normal range */
    p *= td_half_bits_f32((uint32_t)(half + 127) << 23);
    return p * td_half_bits_f32((uint32_t)(i - half + 127) << 23);
}

/* cap tanh(x / cap), within 1e-7 cap; by_cap = 2 / cap. */
static inline float td_mathf_softcap(float x, float cap, float by_cap)
{
    float e, y = x * by_cap;

    y = TD_CAP_HI < y ? TD_CAP_HI : y;
    e = td_mathf_exp(y);
    return (e + -1.0f) / (e + 1.0f) * cap;
}

/* Sine and cosine of a >= 0 radians, a < 2^20, in double; the callers round to F32. Reduction by pi/2 in two parts (Cody
 * and Waite), then Taylor polynomials. */
static inline void td_mathf_sincos(double a, double *sin_out, double *cos_out)
{
    const double pio2_1 = 1.57079632673412561417;     /* first 33 bits of pi/2 */
    const double pio2_2 = 6.07710050650619224932e-11; /* the rest */
    double k = floor(a * 0.63661977236758134308 + 0.5);
    double r = (a - k * pio2_1) - k * pio2_2;
    double r2 = r * r;
    double s, c;

    s = r2 * (1.0 / 355687428096000.0) - 1.0 / 1307674368000.0; /* 17!, 15! */
    s = s * r2 + 1.0 / 6227020800.0;
    s = s * r2 - 1.0 / 39916800.0;
    s = s * r2 + 1.0 / 362880.0;
    s = s * r2 - 1.0 / 5040.0;
    s = s * r2 + 1.0 / 120.0;
    s = s * r2 - 1.0 / 6.0;
    s = s * r2 * r + r;
    c = r2 * (1.0 / 20922789888000.0) - 1.0 / 87178291200.0; /* 16!, 14! */
    c = c * r2 + 1.0 / 479001600.0;
    c = c * r2 - 1.0 / 3628800.0;
    c = c * r2 + 1.0 / 40320.0;
    c = c * r2 - 1.0 / 720.0;
    c = c * r2 + 1.0 / 24.0;
    c = c * r2 - 0.5;
    c = c * r2 + 1.0;
    switch ((int64_t)k & 3) {
    case 0:
        *sin_out = s;
        *cos_out = c;
        break;
    case 1:
        *sin_out = c;
        *cos_out = -s;
        break;
    case 2:
        *sin_out = -s;
        *cos_out = -c;
        break;
    default:
        *sin_out = -c;
        *cos_out = s;
        break;
    }
}

#endif
