#ifndef TD_KERNELS_CPU_BF16_BODY_H
#define TD_KERNELS_CPU_BF16_BODY_H

/* Activations and products of BF16 and F8 weights, in the form that TD_BF16_PAIRS says. */
#include "kernels/cpu/vec_body.h"

#include "kernels/cpu/matmul_body.h"

static void prepare_bf16(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                         uint32_t slot, uint32_t n, uint8_t *out)
{
    (void)act;
    prepare_floats(src, true, t, slot, n, (float *)(void *)out);
}

TILES(tiles_bf16, TD_ACT_BF16, 1, 0, 0, false)
TILES(tiles_f8, TD_ACT_BF16, 1, 0, 0, true)
PRODUCT(bf16, TD_BF16, expand_float, tiles_bf16)
PRODUCT(f8_e4m3, TD_F8_E4M3, expand_float, tiles_f8)

static void product_of_bf16(const struct td_cpu_product *p)
{
    if (p->m->head.dtype == TD_BF16)
        product_bf16(p);
    else
        product_f8_e4m3(p);
}

#endif
