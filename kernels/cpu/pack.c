#include "kernels/cpu/cpu.h"
#include "kernels/quant/half.h"

#include <string.h>

/* Transposes elements of `size` bytes: lane i's column k goes to dst[k * lanes + i]. */
static void transpose16(uint32_t n_cols, uint32_t lanes, const uint8_t *src, size_t stride,
                        uint8_t *dst)
{
    for (uint32_t k0 = 0; k0 < n_cols; k0 += 32) { /* one cache line of every row at a time */
        uint32_t k1 = k0 + 32 < n_cols ? k0 + 32 : n_cols;

        for (uint32_t i = 0; i < lanes; i++) {
            const uint8_t *row = src + i * stride;

            for (uint32_t k = k0; k < k1; k++)
                memcpy(dst + ((size_t)k * lanes + i) * 2, row + (size_t)k * 2, 2);
        }
    }
}

static void transpose32(uint32_t n_cols, uint32_t lanes, const uint8_t *src, size_t stride,
                        uint8_t *dst)
{
    for (uint32_t k0 = 0; k0 < n_cols; k0 += 16) {
        uint32_t k1 = k0 + 16 < n_cols ? k0 + 16 : n_cols;

        for (uint32_t i = 0; i < lanes; i++) {
            const uint8_t *row = src + i * stride;

            for (uint32_t k = k0; k < k1; k++)
                memcpy(dst + ((size_t)k * lanes + i) * 4, row + (size_t)k * 4, 4);
        }
    }
}

static void pack_q8_0(uint32_t n_cols, uint32_t lanes, const uint8_t *src, size_t stride,
                      uint8_t *dst)
{
    for (uint32_t b = 0; b < n_cols / 32; b++, dst += (size_t)lanes * 34)
        for (uint32_t i = 0; i < lanes; i++) {
            const uint8_t *block = src + i * stride + (size_t)b * 34;

            memcpy(dst + (size_t)i * 2, block, 2);
            for (uint32_t j = 0; j < 8; j++) {
                uint32_t word;

                memcpy(&word, block + 2 + j * 4, 4);
                word ^= 0x80808080u; /* int8 + 128 as unsigned */
                memcpy(dst + (size_t)lanes * 2 + ((size_t)j * lanes + i) * 4, &word, 4);
            }
        }
}

/* File: byte j holds weight j (low) and weight j + 16 (high). Packed: step j (columns 4j .. 4j+3) low, step j + 4 high: the
 * same pairing, so a block's 16 bytes only move as four words. */
static void pack_q4_0(uint32_t n_cols, uint32_t lanes, const uint8_t *src, size_t stride,
                      uint8_t *dst)
{
    for (uint32_t b = 0; b < n_cols / 32; b++, dst += (size_t)lanes * 18)
        for (uint32_t i = 0; i < lanes; i++) {
            const uint8_t *block = src + i * stride + (size_t)b * 18;

            memcpy(dst + (size_t)i * 2, block, 2);
            for (uint32_t j = 0; j < 4; j++)
                memcpy(dst + (size_t)lanes * 2 + ((size_t)j * lanes + i) * 4, block + 2 + j * 4, 4);
        }
}

void td_pack_group(enum td_dtype dtype, uint32_t n_cols, uint32_t lanes, const uint8_t *src,
                   size_t stride_bytes, uint8_t *dst)
{
    switch (dtype) {
    case TD_F32:
        transpose32(n_cols, lanes, src, stride_bytes, dst);
        break;
    case TD_F16:
    case TD_BF16:
        transpose16(n_cols, lanes, src, stride_bytes, dst);
        break;
    case TD_Q8_0:
        pack_q8_0(n_cols, lanes, src, stride_bytes, dst);
        break;
    case TD_Q4_0:
        pack_q4_0(n_cols, lanes, src, stride_bytes, dst);
        break;
    default:
        break;
    }
}

static uint16_t load16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, 2);
    return v;
}

void td_pack_row(const struct td_cpu_matrix *m, uint32_t row, float *out)
{
    uint32_t group = row / TD_CPU_GROUP, lane = row % TD_CPU_GROUP;
    uint32_t lanes = td_cpu_lanes(&m->head, group);
    const uint8_t *p = td_cpu_group_data(m, group);
    uint32_t n_cols = m->head.n_cols;

    switch (m->head.dtype) {
    case TD_F32:
        for (uint32_t k = 0; k < n_cols; k++)
            memcpy(&out[k], p + ((size_t)k * lanes + lane) * 4, 4);
        break;
    case TD_F16:
        for (uint32_t k = 0; k < n_cols; k++)
            out[k] = td_f16_to_f32(load16(p + ((size_t)k * lanes + lane) * 2));
        break;
    case TD_BF16:
        for (uint32_t k = 0; k < n_cols; k++)
            out[k] = td_bf16_to_f32(load16(p + ((size_t)k * lanes + lane) * 2));
        break;
    case TD_Q8_0:
        for (uint32_t b = 0; b < n_cols / 32; b++, p += (size_t)lanes * 34) {
            float scale = td_f16_to_f32(load16(p + (size_t)lane * 2));
            const uint8_t *w = p + (size_t)lanes * 2;

            for (uint32_t k = 0; k < 32; k++)
                out[b * 32 + k] =
                    (float)((int)w[((size_t)(k / 4) * lanes + lane) * 4 + k % 4] - 128) * scale;
        }
        break;
    case TD_Q4_0:
        for (uint32_t b = 0; b < n_cols / 32; b++, p += (size_t)lanes * 18) {
            float scale = td_f16_to_f32(load16(p + (size_t)lane * 2));
            const uint8_t *w = p + (size_t)lanes * 2;

            for (uint32_t k = 0; k < 32; k++) {
                uint8_t byte = w[((size_t)(k % 16 / 4) * lanes + lane) * 4 + k % 4];

                out[b * 32 + k] = (float)((int)(k < 16 ? byte & 15 : byte >> 4) - 8) * scale;
            }
        }
        break;
    default:
        break;
    }
}
