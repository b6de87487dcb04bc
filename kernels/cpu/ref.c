/* The specification: the plainest C of every operation. The vector files must give the same bits. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"

#include <string.h>

static bool available(void)
{
    return true;
}

static uint16_t load16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, 2);
    return v;
}

static float load_weight(enum td_dtype dtype, const uint8_t *p)
{
    float f;

    if (dtype == TD_F16)
        return td_f16_to_f32(load16(p));
    if (dtype == TD_BF16)
        return td_bf16_to_f32(load16(p));
    memcpy(&f, p, 4);
    return f;
}

/* One leaf of a float matrix for one row and one token. */
static float leaf_float(const struct td_cpu_matrix *m, const uint8_t *group, uint32_t lanes,
                        uint32_t lane, const float *x, uint32_t k0, uint32_t k1)
{
    size_t size = td_dtype_info(m->head.dtype)->block_bytes;
    float acc = 0.0f;

    for (uint32_t k = k0; k < k1; k++)
        acc =
            fmaf(load_weight(m->head.dtype, group + ((size_t)k * lanes + lane) * size), x[k], acc);
    return acc;
}

static int weight_int(enum td_dtype dtype, const uint8_t *w, uint32_t lanes, uint32_t lane,
                      uint32_t k)
{
    uint8_t byte;

    if (dtype == TD_Q8_0)
        return (int)w[((size_t)(k / 4) * lanes + lane) * 4 + k % 4] - 128;
    byte = w[((size_t)(k % 16 / 4) * lanes + lane) * 4 + k % 4];
    return (int)(k < 16 ? byte & 15 : byte >> 4) - 8;
}

static float leaf_int(const struct td_cpu_matrix *m, const uint8_t *group, uint32_t lanes,
                      uint32_t lane, const struct td_cpu_act *act, uint32_t t, uint32_t k0,
                      uint32_t k1)
{
    size_t block_bytes = td_dtype_info(m->head.dtype)->block_bytes;
    uint32_t n_blocks = act->n_cols / 32;
    float acc = 0.0f;

    for (uint32_t b = k0 / 32; b < k1 / 32; b++) {
        const uint8_t *block = group + (size_t)b * lanes * block_bytes;
        const int8_t *q = act->q + (size_t)t * act->n_cols + (size_t)b * 32;
        float scale =
            td_f16_to_f32(load16(block + (size_t)lane * 2)) * act->scale[(size_t)t * n_blocks + b];
        int32_t dot = 0;

        for (uint32_t k = 0; k < 32; k++)
            dot += weight_int(m->head.dtype, block + (size_t)lanes * 2, lanes, lane, k) * q[k];
        acc = fmaf((float)dot, scale, acc);
    }
    return acc;
}

static float part_sum(const struct td_cpu_matrix *m, uint32_t group, uint32_t lane,
                      const struct td_cpu_act *act, uint32_t t, uint32_t part)
{
    const struct td_matrix *h = &m->head;
    uint32_t lanes = td_cpu_lanes(h, group);
    const uint8_t *data = td_cpu_group_data(m, group);
    float stack[TD_CPU_MAX_LEVELS];
    uint32_t depth = 0;

    for (uint32_t leaf = h->part_begin[part]; leaf < h->part_begin[part + 1]; leaf++) {
        uint32_t k0 = leaf ? h->leaf_end[leaf - 1] : 0;
        float sum = td_dtype_info(h->dtype)->block_elems == 1
                        ? leaf_float(m, data, lanes, lane, act->x + (size_t)t * act->n_cols, k0,
                                     h->leaf_end[leaf])
                        : leaf_int(m, data, lanes, lane, act, t, k0, h->leaf_end[leaf]);

        for (uint32_t i = leaf - h->part_begin[part]; i & 1; i >>= 1)
            sum = stack[--depth] + sum;
        stack[depth++] = sum;
    }
    while (depth > 1) {
        depth--;
        stack[depth - 1] = stack[depth - 1] + stack[depth];
    }
    return stack[0];
}

static void matmul(const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,
                   uint32_t t0, uint32_t n, uint32_t n_total, float *out)
{
    const struct td_matrix *h = &m->head;

    for (uint32_t p = 0; p < h->n_parts; p++)
        for (uint32_t t = t0; t < t0 + n; t++)
            for (uint32_t lane = 0; lane < td_cpu_lanes(h, group); lane++)
                out[((size_t)p * n_total + t) * h->n_rows + (size_t)group * TD_CPU_GROUP + lane] =
                    part_sum(m, group, lane, act, t, p);
}

static void quantise(const struct td_cpu_act *act, uint32_t row)
{
    uint32_t n_blocks = act->n_cols / 32;

    for (uint32_t b = 0; b < n_blocks; b++) {
        const float *x = act->x + (size_t)row * act->n_cols + (size_t)b * 32;
        int8_t *q = act->q + (size_t)row * act->n_cols + (size_t)b * 32;
        uint32_t max = 0;
        int32_t sum = 0;
        float inverse;

        for (int k = 0; k < 32; k++) {
            uint32_t bits = td_half_f32_bits(fabsf(x[k]));

            max = bits > max ? bits : max;
        }
        inverse = td_cpu_act_inverse(td_half_bits_f32(max));
        for (int k = 0; k < 32; k++) {
            float r = rintf(x[k] * inverse);

            q[k] = r == r ? (int8_t)r : 0;
            sum += q[k];
        }
        act->scale[(size_t)row * n_blocks + b] = td_cpu_act_scale(td_half_bits_f32(max));
        act->sum[(size_t)row * n_blocks + b] = sum;
    }
}

static void rmsnorm(const float *x, const float *weight, uint32_t dim, float eps, float *out)
{
    float lane[16] = {0};
    float scale;

    for (uint32_t i = 0; i < dim; i++)
        lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    scale = 1.0f / sqrtf(td_cpu_fold16(lane) / (float)dim + eps);
    for (uint32_t i = 0; i < dim; i++)
        out[i] = x[i] * scale * weight[i];
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + td_mathf_exp(-gate[i])) * up[i];
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] + y[i];
}

const struct td_cpu_isa td_cpu_isa_ref = {"ref",   available, matmul, quantise,
                                          rmsnorm, silu_mul,  add,    td_cpu_attend_ref};
