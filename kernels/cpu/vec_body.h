/* The vector bodies, written once over a vector of 16 floats and included by one file per instruction set, which defines
 * the vector before (vf, vi and the v*_ functions, TD_TILE_FLOAT, TD_TILE_INT, TD_ISA). The order of every sum is ref.c's:
 * lanes are output rows (matmul) or the 16 lanes of a fold (dot products, norms), so the bits are ref.c's too. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE vf v_exp(vf x)
{
    vf n, r, p;

    x = vf_max(vf_set1(TD_EXP_LO), x);
    x = vf_min(vf_set1(TD_EXP_HI), x);
    n = vf_round(vf_mul(x, vf_set1(TD_LOG2E)));
    r = vf_fma(n, vf_set1(-TD_LN2_HI), x);
    r = vf_fma(n, vf_set1(-TD_LN2_LO), r);
    p = vf_fma(vf_set1(TD_EXP_C7), r, vf_set1(TD_EXP_C6));
    p = vf_fma(p, r, vf_set1(TD_EXP_C5));
    p = vf_fma(p, r, vf_set1(TD_EXP_C4));
    p = vf_fma(p, r, vf_set1(TD_EXP_C3));
    p = vf_fma(p, r, vf_set1(TD_EXP_C2));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_scale(p, n);
}

/* Up to 16 floats, the rest zero. */
INLINE vf load_part(const float *p, size_t n)
{
    float tmp[16] = {0};

    if (n >= 16)
        return vf_load(p);
    memcpy(tmp, p, n * sizeof *p);
    return vf_load(tmp);
}

INLINE void store_part(float *p, vf v, size_t n)
{
    float tmp[16];

    if (n >= 16) {
        vf_store(p, v);
        return;
    }
    vf_store(tmp, v);
    memcpy(p, tmp, n * sizeof *p);
}

/* 16 values of a float type as F32; `n` of them exist. */
INLINE vf load_as(enum td_dtype dtype, const uint8_t *p, uint32_t n)
{
    uint8_t tmp[64] = {0};

    if (n < 16) {
        memcpy(tmp, p, (size_t)n * (dtype == TD_F32 ? 4 : 2));
        p = tmp;
    }
    if (dtype == TD_F32)
        return vf_load((const float *)(const void *)p);
    if (dtype == TD_F16)
        return vf_load_f16(p);
    return vf_load_bf16(p);
}

INLINE vi load_words(const uint8_t *p, uint32_t n)
{
    uint8_t tmp[64] = {0};

    if (n < 16) {
        memcpy(tmp, p, (size_t)n * 4);
        p = tmp;
    }
    return vi_load(p);
}

/* ---- rows ---- */

static void quantise(const struct td_cpu_act *act, uint32_t row)
{
    uint32_t n_blocks = act->n_cols / 32;

    for (uint32_t b = 0; b < n_blocks; b++) {
        const float *x = act->x + (size_t)row * act->n_cols + (size_t)b * 32;
        vf x0 = vf_load(x), x1 = vf_load(x + 16);
        float max = vf_max_bits(vf_abs(x0), vf_abs(x1));
        vf inverse = vf_set1(td_cpu_act_inverse(max));

        act->sum[(size_t)row * n_blocks + b] =
            vi_store_int8(vi_from_finite(vf_round(vf_mul(x0, inverse))),
                          vi_from_finite(vf_round(vf_mul(x1, inverse))),
                          act->q + (size_t)row * act->n_cols + (size_t)b * 32);
        act->scale[(size_t)row * n_blocks + b] = td_cpu_act_scale(max);
    }
}

static void rmsnorm(const float *x, const float *weight, uint32_t dim, float eps, float *out)
{
    vf sum = vf_set1(0.0f), scale;

    for (uint32_t i = 0; i < dim; i += 16) {
        vf v = load_part(x + i, dim - i);

        sum = vf_fma(v, v, sum);
    }
    scale = vf_set1(1.0f / sqrtf(vf_fold(sum) / (float)dim + eps));
    for (uint32_t i = 0; i < dim; i += 16) {
        vf v = vf_mul(load_part(x + i, dim - i), scale);

        store_part(out + i, vf_mul(v, load_part(weight + i, dim - i)), dim - i);
    }
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i += 16) {
        vf g = load_part(gate + i, n - i);
        vf d = vf_add(vf_set1(1.0f), v_exp(vf_neg(g)));

        store_part(out + i, vf_mul(vf_div(g, d), load_part(up + i, n - i)), n - i);
    }
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        store_part(x + i, vf_add(load_part(x + i, n - i), load_part(y + i, n - i)), n - i);
}

#include "kernels/cpu/attend_body.h"
#include "kernels/cpu/matmul_body.h"
