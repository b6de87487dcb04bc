#include "kernels/quant/dequant.h"

#include "kernels/quant/codec.h"
#include "kernels/quant/fp8.h"

#include <assert.h>
#include <string.h>

enum { MAX_BLOCK = 256 };

/* The types that are made of blocks; those of one value each are below. */
static const struct td_codec *const CODECS[TD_N_DTYPES] = {
    [TD_Q8_0] = &td_blocks32_q8_0, [TD_Q4_0] = &td_blocks32_q4_0, [TD_Q4_1] = &td_blocks32_q4_1,
    [TD_Q5_0] = &td_blocks32_q5_0, [TD_Q5_1] = &td_blocks32_q5_1, [TD_Q2_K] = &td_kquant_q2_k,
    [TD_Q3_K] = &td_kquant_q3_k,   [TD_Q4_K] = &td_kquant_q4_k,   [TD_Q5_K] = &td_kquant_q5_k,
    [TD_Q6_K] = &td_kquant_q6_k,   [TD_IQ4_NL] = &td_iq4_nl,      [TD_IQ4_XS] = &td_iq4_xs,
    [TD_MXFP4] = &td_mxfp4,        [TD_INT4] = &td_blocks32_int4,
};

static void decode_blocks(enum td_dtype type, const uint8_t *src, float *dst, size_t n_elems)
{
    const struct td_dtype_info *info = td_dtype_info(type);

    for (size_t i = 0; i < n_elems; i += info->block_elems, src += info->block_bytes)
        CODECS[type]->decode(src, dst + i);
}

void td_dequant_row(enum td_dtype type, const void *src, float *dst, size_t n_elems)
{
    const uint8_t *p = src;

    switch (type) {
    case TD_F32:
        memcpy(dst, src, n_elems * sizeof *dst);
        return;
    case TD_F16:
        for (size_t i = 0; i < n_elems; i++)
            dst[i] = td_f16_to_f32(td_half_load16(p + 2 * i));
        return;
    case TD_BF16:
        for (size_t i = 0; i < n_elems; i++)
            dst[i] = td_bf16_to_f32(td_half_load16(p + 2 * i));
        return;
    case TD_F8_E4M3:
        for (size_t i = 0; i < n_elems; i++)
            dst[i] = td_e4m3_to_f32(p[i]);
        return;
    default:
        decode_blocks(type, p, dst, n_elems);
    }
}

/* NaN becomes 0, what lies beyond +-limit the limit. */
static void copy_finite(const float *src, size_t n, float limit, float *dst)
{
    for (size_t i = 0; i < n; i++) {
        float x = src[i] == src[i] ? src[i] : 0;

        x = x > limit ? limit : x;
        dst[i] = x < -limit ? -limit : x;
    }
}

static void encode_blocks(enum td_dtype type, const float *src, uint8_t *dst, size_t n_elems)
{
    const struct td_dtype_info *info = td_dtype_info(type);
    float x[MAX_BLOCK];

    assert(info->block_elems <= MAX_BLOCK);
    for (size_t i = 0; i < n_elems; i += info->block_elems, dst += info->block_bytes) {
        copy_finite(src + i, info->block_elems, CODECS[type]->limit, x);
        CODECS[type]->encode(x, dst);
    }
}

void td_quant_row(enum td_dtype type, const float *src, void *dst, size_t n_elems)
{
    uint8_t *p = dst;

    switch (type) {
    case TD_F32:
        memcpy(dst, src, n_elems * sizeof *src);
        return;
    case TD_F16:
        for (size_t i = 0; i < n_elems; i++)
            td_codec_store16(p + 2 * i, td_f32_to_f16(src[i]));
        return;
    case TD_BF16:
        for (size_t i = 0; i < n_elems; i++)
            td_codec_store16(p + 2 * i, td_f32_to_bf16(src[i]));
        return;
    case TD_F8_E4M3:
        for (size_t i = 0; i < n_elems; i++)
            p[i] = td_f32_to_e4m3(src[i]);
        return;
    default:
        encode_blocks(type, src, p, n_elems);
    }
}
