/* kernels/cuda/num.cuh in plain C++: what its instructions do, to the bit where they are defined to the bit. The sum of a tensor
 * core's product is taken in double and rounded once; NVIDIA does not say what its own is. */
#ifndef TD_TESTS_GPUSIM_SIMNUM_H
#define TD_TESTS_GPUSIM_SIMNUM_H

#include "kernels/base/half.h"

/* All lanes of a warp put `words` words down and get what lane `lane` put; 8 words at most. */
void gpusim_warp_put(const uint32_t *words, uint32_t n);
const uint32_t *gpusim_warp_of(uint32_t lane);
void gpusim_warp_done(void);
void *gpusim_shared(void);
/* A thread that ends without it is a failure of its kernel. */
void gpusim_await_earlier(void);
/* Copies that come when they are waited for, and no earlier. */
void gpusim_copy16(void *to, const void *from, bool there);
void gpusim_copies_close(void);
void gpusim_copies_wait(uint32_t n_left);

static inline float td_num_bits(uint32_t u)
{
    return td_half_bits_f32(u);
}

static inline uint32_t td_num_f32_bits(float f)
{
    return td_half_f32_bits(f);
}

static inline float td_num_f16(uint16_t h)
{
    return td_f16_to_f32(h);
}

static inline uint16_t td_num_to_f16(float f)
{
    return td_f32_to_f16(f);
}

static inline uint16_t td_num_to_bf16(float f)
{
    return td_f32_to_bf16(f);
}

/* Sums and products of two F16 are exact in double; its rounding to F32 first is harmless, since F32 has more than twice the bits. */
static inline uint32_t td_num_sub2(uint32_t a, uint32_t b)
{
    return (uint32_t)td_f32_to_f16(td_f16_to_f32((uint16_t)a) - td_f16_to_f32((uint16_t)b)) |
           (uint32_t)td_f32_to_f16(td_f16_to_f32((uint16_t)(a >> 16)) -
                                   td_f16_to_f32((uint16_t)(b >> 16)))
               << 16;
}

static inline uint32_t td_num_mul2(uint32_t a, uint32_t b)
{
    return (uint32_t)td_f32_to_f16(td_f16_to_f32((uint16_t)a) * td_f16_to_f32((uint16_t)b)) |
           (uint32_t)td_f32_to_f16(td_f16_to_f32((uint16_t)(a >> 16)) *
                                   td_f16_to_f32((uint16_t)(b >> 16)))
               << 16;
}

static inline uint32_t td_num_bytes(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t out = 0;

    for (uint32_t i = 0; i < 4; i++)
        out |= (uint32_t)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return out;
}

/* Lane 4g + t holds A rows g, g + 8 and columns 2t, 2t + 1 (a[0], a[1]) and 8 more (a[2], a[3]); B of column g and rows 2t, 2t + 1 (b[0])
 * and 8 more (b[1]); C of rows g (c[0], c[1]) and g + 8, columns 2t, 2t + 1. */
template <float (*VALUE)(uint16_t)>
static inline void gpusim_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const uint32_t lane = gpusim_thread.x % 32, g = lane / 4, t = lane % 4;
    double row[2][16], column[2][16]; /* that this lane's four sums need */

    gpusim_warp_put(mine, 6);
    for (uint32_t from = 0; from < 4; from++) {
        const uint32_t *of_a = gpusim_warp_of(4 * g + from);

        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t *of_b = gpusim_warp_of(4 * (2 * t + i) + from);

            for (uint32_t half = 0; half < 2; half++) {
                const uint32_t k = 8 * half + 2 * from, wa = of_a[2 * half + i],
                               wb = of_b[4 + half];

                row[i][k] = (double)VALUE((uint16_t)wa);
                row[i][k + 1] = (double)VALUE((uint16_t)(wa >> 16));
                column[i][k] = (double)VALUE((uint16_t)wb);
                column[i][k + 1] = (double)VALUE((uint16_t)(wb >> 16));
            }
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        double sum = (double)c[i];

        for (uint32_t k = 0; k < 16; k++)
            sum += row[i / 2][k] * column[i % 2][k];
        c[i] = (float)sum;
    }
    gpusim_warp_done();
}

static inline void td_num_mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    gpusim_mma<td_f16_to_f32>(c, a, b);
}

static inline void td_num_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    gpusim_mma<td_bf16_to_f32>(c, a, b);
}

static inline void td_num_transposed(const uint16_t *row, uint32_t b[2])
{
    const uint32_t lane = gpusim_thread.x % 32, g = lane / 4, t = lane % 4;
    uint32_t mine[4];

    memcpy(mine, row, sizeof mine);
    gpusim_warp_put(mine, 4);
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t low = gpusim_warp_of(8 * i + 2 * t)[g / 2] >> 16 * (g % 2);
        const uint32_t high = gpusim_warp_of(8 * i + 2 * t + 1)[g / 2] >> 16 * (g % 2);

        b[i] = (low & 0xffffu) | high << 16;
    }
    gpusim_warp_done();
}

static inline void td_num_tables(const uint16_t *row, uint32_t b[4])
{
    const uint32_t lane = gpusim_thread.x % 32;
    uint32_t mine[4];

    memcpy(mine, row, sizeof mine);
    gpusim_warp_put(mine, 4);
    for (uint32_t i = 0; i < 4; i++)
        b[i] = gpusim_warp_of(8 * i + lane / 4)[lane % 4];
    gpusim_warp_done();
}

static inline void td_num_tables_turned(const uint16_t *row, uint32_t b[4])
{
    const uint32_t lane = gpusim_thread.x % 32, g = lane / 4, t = lane % 4;
    uint32_t mine[4];

    memcpy(mine, row, sizeof mine);
    gpusim_warp_put(mine, 4);
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t low = gpusim_warp_of(8 * i + 2 * t)[g / 2] >> 16 * (g % 2);
        const uint32_t high = gpusim_warp_of(8 * i + 2 * t + 1)[g / 2] >> 16 * (g % 2);

        b[i] = (low & 0xffffu) | high << 16;
    }
    gpusim_warp_done();
}

static inline uint32_t td_num_to_f16x2(float low, float high)
{
    return td_f32_to_f16(low) | (uint32_t)td_f32_to_f16(high) << 16;
}

static inline uint32_t td_num_to_bf16x2(float low, float high)
{
    return td_f32_to_bf16(low) | (uint32_t)td_f32_to_bf16(high) << 16;
}

static inline float td_num_exp2_nearly(float x)
{
    return x < -126.0f ? 0.0f : exp2f(x);
}

static inline uint32_t td_num_xor(uint32_t v, uint32_t mask)
{
    uint32_t other;

    gpusim_warp_put(&v, 1);
    other = *gpusim_warp_of(gpusim_thread.x % 32 ^ mask);
    gpusim_warp_done();
    return other;
}

static inline float td_num_xor(float v, uint32_t mask)
{
    return td_half_bits_f32(td_num_xor(td_half_f32_bits(v), mask));
}

static inline void td_num_await_earlier(void)
{
    gpusim_await_earlier();
}

static inline void td_num_prefetch(const void *from, uint32_t bytes)
{
    if ((uintptr_t)from % 16 || bytes % 16 || bytes == 0)
        abort();
    (void)*(const volatile uint8_t *)from;
    (void)((const volatile uint8_t *)from)[bytes - 1];
}

static inline void *td_num_shared(void)
{
    return gpusim_shared();
}

static inline void td_num_copy16(void *shared, const void *from, bool there)
{
    gpusim_copy16(shared, from, there);
}

static inline void td_num_copies_close(void)
{
    gpusim_copies_close();
}

template <int N> static inline void td_num_copies_wait(void)
{
    gpusim_copies_wait(N);
}

#endif
