#ifndef TD_KERNELS_CPU_ISA_BODY_H
#define TD_KERNELS_CPU_ISA_BODY_H

/* One instruction set's functions of struct td_cpu_isa, made from the bodies of vec_body.h, attend_body.h and matmul_body.h. */
#include "kernels/cpu/vec_body.h"

#include "kernels/cpu/attend_body.h"
#include "kernels/cpu/bf16_body.h"

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        store_part(x + i, vf_add(load_part(x + i, n - i), load_part(y + i, n - i)), n - i);
}

static void gather(const struct td_cpu_source *src, uint32_t t)
{
    float *x = source_row(src, t);

    if (src->add)
        add(x, src->add + (size_t)t * src->n_cols, src->n_cols);
    if (src->norm)
        src->factor[t] =
            1.0f / sqrtf(sum_of_squares(x, src->n_cols) / (float)src->n_cols + src->eps);
}

static void prepare(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                    uint32_t slot, uint32_t n, uint8_t *out)
{
    if (act->traits.kind == TD_ACT_INT32)
        prepare_ints(src, TD_ACT_INT32, act->traits, t, slot, n, out);
    else if (act->traits.kind == TD_ACT_INT256)
        prepare_ints(src, TD_ACT_INT256, act->traits, t, slot, n, out);
    else
        prepare_floats(src, false, t, slot, n, (float *)(void *)out);
}

static void rmsnorm(const float *x, const float *weight, uint32_t dim, float eps, float *out)
{
    vf scale = vf_set1(1.0f / sqrtf(sum_of_squares(x, dim) / (float)dim + eps));

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

static uint32_t above(const float *x, uint32_t n, float floor)
{
    vf limit = vf_set1(floor);
    uint32_t i = 0;

    for (; n - i >= 64; i += 64)
        if (vf_above(vf_load(x + i), limit) | vf_above(vf_load(x + i + 16), limit) |
            vf_above(vf_load(x + i + 32), limit) | vf_above(vf_load(x + i + 48), limit))
            break;
    for (; i < n; i += 16) {
        uint32_t lanes = vf_above(load_part(x + i, n - i), limit);

        lanes &= n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu;
        if (lanes)
            return i + (uint32_t)__builtin_ctz(lanes);
    }
    return n;
}

TILES(tiles_f32, TD_ACT_F32, 1, 0, 0, false)
TILES(tiles_int32, TD_ACT_INT32, 1, 0, 0, false)
TILES(tiles_int32_narrow, TD_ACT_INT32, 1, 0, 1, false)
TILES(tiles_int32_mins, TD_ACT_INT32, 1, 1, 1, false)
TILES(tiles_int256, TD_ACT_INT256, 1, 0, 0, false)
TILES(tiles_int256_mins, TD_ACT_INT256, 1, 1, 1, false)
TILES(tiles_int256_halves, TD_ACT_INT256, 2, 0, 1, false)
TILES(tiles_int256_halves_mins, TD_ACT_INT256, 2, 1, 1, false)
PRODUCT(f32, TD_F32, expand_float, tiles_f32)
PRODUCT(f16, TD_F16, expand_float, tiles_f32)
PRODUCT(q8_0, TD_Q8_0, expand_int, tiles_int32)
PRODUCT(q4_0, TD_Q4_0, expand_int, tiles_int32_narrow)
PRODUCT(q4_1, TD_Q4_1, expand_int, tiles_int32_mins)
PRODUCT(q5_0, TD_Q5_0, expand_int, tiles_int32_narrow)
PRODUCT(q5_1, TD_Q5_1, expand_int, tiles_int32_mins)
PRODUCT(iq4_nl, TD_IQ4_NL, expand_int, tiles_int32)
PRODUCT(mxfp4, TD_MXFP4, expand_int, tiles_int32_narrow)
PRODUCT(int4, TD_INT4, expand_int, tiles_int32_narrow)
PRODUCT(q2_k, TD_Q2_K, expand_int, tiles_int256_halves_mins)
PRODUCT(q3_k, TD_Q3_K, expand_int, tiles_int256_halves)
PRODUCT(q4_k, TD_Q4_K, expand_int, tiles_int256_mins)
PRODUCT(q5_k, TD_Q5_K, expand_int, tiles_int256_mins)
PRODUCT(q6_k, TD_Q6_K, expand_int, tiles_int256_halves)
PRODUCT(iq4_xs, TD_IQ4_XS, expand_int, tiles_int256)

static void product(const struct td_cpu_product *p)
{
    static void (*const by_type[TD_N_DTYPES])(const struct td_cpu_product *) = {
        [TD_F32] = product_f32,       [TD_F16] = product_f16,       [TD_Q8_0] = product_q8_0,
        [TD_Q4_0] = product_q4_0,     [TD_Q4_1] = product_q4_1,     [TD_Q5_0] = product_q5_0,
        [TD_Q5_1] = product_q5_1,     [TD_Q2_K] = product_q2_k,     [TD_Q3_K] = product_q3_k,
        [TD_Q4_K] = product_q4_k,     [TD_Q5_K] = product_q5_k,     [TD_Q6_K] = product_q6_k,
        [TD_IQ4_NL] = product_iq4_nl, [TD_IQ4_XS] = product_iq4_xs, [TD_MXFP4] = product_mxfp4,
        [TD_INT4] = product_int4,
    };

    by_type[p->m->head.dtype](p);
}

#define TD_CPU_ISA(ident, string, has)                                                             \
    const struct td_cpu_isa td_cpu_isa_##ident = {                                                 \
        .name = string,                                                                            \
        .available = has,                                                                          \
        .max_tile = {TD_TILE_FLOAT, TD_TILE_FLOAT, TD_TILE_INT, TD_TILE_INT},                      \
        .gather = gather,                                                                          \
        .prepare = prepare,                                                                        \
        .product = product,                                                                        \
        .bf16 = {.pairs = TD_BF16_PAIRS, .prepare = prepare_bf16, .product = product_of_bf16},     \
        .rmsnorm = rmsnorm,                                                                        \
        .silu_mul = silu_mul,                                                                      \
        .add = add,                                                                                \
        .above = above,                                                                            \
        .attend = attend,                                                                          \
    }

#endif
