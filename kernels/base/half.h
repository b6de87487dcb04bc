/* Scalar conversions between F32 and the 16-bit floats. IEEE 754 binary16 and bfloat16; round to nearest, ties to
 * even; infinities and NaN kept. The vector files use instructions that give the same bits. */
#ifndef TD_KERNELS_BASE_HALF_H
#define TD_KERNELS_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float td_half_bits_f32(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t td_half_f32_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

/* 16 and 32 bits from any address. */
static inline uint16_t td_half_load16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t td_half_load32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof v);
    return v;
}

static inline float td_bf16_to_f32(uint16_t h)
{
    return td_half_bits_f32((uint32_t)h << 16);
}

static inline uint16_t td_f32_to_bf16(float f)
{
    uint32_t u = td_half_f32_bits(f);

    if ((u & 0x7fffffffu) > 0x7f800000u) /* NaN: keep it one */
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float td_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;

    if (exponent == 0) /* zero or subnormal: mantissa * 2^-24, exact in F32 */
        return td_half_bits_f32(sign | td_half_f32_bits((float)mantissa * 0x1p-24f));
    if (exponent == 31) /* infinity, or NaN made quiet as the hardware does */
        return td_half_bits_f32(sign | 0x7f800000u | (mantissa ? 0x400000u | (mantissa << 13) : 0));
    return td_half_bits_f32(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

static inline uint16_t td_f32_to_f16(float f)
{
    uint32_t u = td_half_f32_bits(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t a = u & 0x7fffffffu;

    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* below 2^-14: a multiple of 2^-24, rounded by the adder */
        float r = td_half_bits_f32(a) + 0.5f;

        return (uint16_t)(sign | (td_half_f32_bits(r) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13));
}

#endif
