/* exp and log whose bits are the same on every IEEE 754 machine: only +, -, *, / and integer operations on doubles in
 * round-to-nearest, in one written order, no libm and no fused operation (the build sets -ffp-contract=off and
 * -fmad=false). Devices' too.
 * Relative error is below 1e-14 in double, so a result rounded to float is within 1 ulp. Pure. */
#ifndef TD_KERNELS_DETMATH_H
#define TD_KERNELS_DETMATH_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define TD_DETMATH static __host__ __device__ __forceinline__
#else
#define TD_DETMATH static inline
#endif

TD_DETMATH uint64_t td_detmath_bits(double x)
{
    uint64_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

TD_DETMATH double td_detmath_from_bits(uint64_t u)
{
    double x;

    memcpy(&x, &u, sizeof(x));
    return x;
}

/* e^x. Below -708 the result is 0 (no subnormals), above 709 infinity, NaN gives NaN. Without branches, so that a
 * loop over it is vectorised; lanes do not influence each other's bits. */
TD_DETMATH double td_detmath_exp(double x)
{
    const double shift = 0x1.8p52; /* adding it rounds to an integer, kept in the low bits */
    double c = x < -708.0 ? -708.0 : x;
    double t, k, r, p, scale;

    c = c > 709.0 ? 709.0 : c;
    t = c * 0x1.71547652b82fep+0 + shift;
    k = t - shift;
    /* ln 2 in two parts; the first has 32 bits, so k times it is exact. Then |r| <= ln(2)/2. */
    r = (c - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
    /* Taylor to degree 12: the rest is below 0.3466^13 / 13! < 2e-16. */
    p = 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    scale = td_detmath_from_bits((td_detmath_bits(t) - td_detmath_bits(shift) + 1023) << 52);
    p = p * scale;
    p = x < -708.0 ? 0.0 : p;
    return x > 709.0 ? td_detmath_from_bits(0x7ff0000000000000) : p;
}

/* Natural logarithm. 0 gives -infinity, a negative number or NaN gives NaN, infinity gives infinity. */
TD_DETMATH double td_detmath_log(double x)
{
    uint64_t bits;
    int64_t e = 0;
    double m, f, s, p;

    if (x == 0)
        return -td_detmath_from_bits(0x7ff0000000000000);
    if (!(x > 0))
        return td_detmath_from_bits(0x7ff8000000000000);
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        e = -54;
    }
    bits = td_detmath_bits(x);
    if (bits == 0x7ff0000000000000)
        return x;
    e += (int64_t)(bits >> 52) - 1023;
    m = td_detmath_from_bits((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
    if (m > 0x1.6a09e667f3bcdp+0) { /* sqrt(2): m lies in (sqrt(1/2), sqrt(2)] */
        m *= 0.5;
        e += 1;
    }
    /* log m = 2 artanh f, f = (m - 1) / (m + 1), |f| < 0.1716: the first term left out is below 1e-17. */
    f = (m - 1.0) / (m + 1.0);
    s = f * f;
    p = 1.0 / 21.0;
    p = p * s + 1.0 / 19.0;
    p = p * s + 1.0 / 17.0;
    p = p * s + 1.0 / 15.0;
    p = p * s + 1.0 / 13.0;
    p = p * s + 1.0 / 11.0;
    p = p * s + 1.0 / 9.0;
    p = p * s + 1.0 / 7.0;
    p = p * s + 1.0 / 5.0;
    p = p * s + 1.0 / 3.0;
    p = 2.0 * f + 2.0 * f * s * p;
    return (double)e * 0x1.62e42fee00000p-1 + ((double)e * 0x1.a39ef35793c76p-33 + p);
}

#endif
