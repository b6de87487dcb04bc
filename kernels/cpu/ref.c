/* The specification: the plainest C of every operation. The vector files must give the same bits. Attention's is in
 * ref_attend.c. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mathf.h"
#include "kernels/quant/dequant.h"

static bool available(void)
{
    return true;
}

static float load_f32(const uint8_t *p)
{
    return td_half_bits_f32(td_half_load32(p));
}

/* ---- activations ---- */

static void gather(const struct td_cpu_source *src, uint32_t t)
{
    float *x = src->x + (size_t)(src->rows ? src->rows[t] : t) * src->n_cols;
    float lane[16] = {0};

    for (uint32_t k = 0; src->add && k < src->n_cols; k++)
        x[k] = x[k] + src->add[(size_t)t * src->n_cols + k];
    for (uint32_t k = 0; src->norm && k < src->n_cols; k++)
        lane[k % 16] = fmaf(x[k], x[k], lane[k % 16]);
    if (src->norm)
        src->factor[t] = 1.0f / sqrtf(td_cpu_fold16(lane) / (float)src->n_cols + src->eps);
}

static float source_value(const struct td_cpu_source *src, uint32_t t, uint32_t k)
{
    float x = src->x[(size_t)(src->rows ? src->rows[t] : t) * src->n_cols + k];

    return src->norm ? x * src->factor[t] * src->norm[k] : x;
}

/* Largest magnitude of n values, in the order of the bits, so that NaN is above infinity. */
static float max_bits(const float *x, uint32_t n)
{
    uint32_t max = 0;

    for (uint32_t k = 0; k < n; k++) {
        uint32_t bits = td_half_f32_bits(fabsf(x[k]));

        max = bits > max ? bits : max;
    }
    return td_half_bits_f32(max);
}

/* 32 columns; `max` is that of the columns which share their scale. */
static void prepare_block(struct td_cpu_traits traits, const float *x, float max, uint8_t *out)
{
    float scale = td_cpu_act_scale(traits.kind, max), inverse = td_cpu_act_inverse(max);
    int32_t sum[2] = {0};
    uint32_t per_sum = 32 / (uint32_t)traits.halves;

    for (uint32_t k = 0; k < 32; k++) {
        float r = rintf(x[k] * inverse);
        int8_t q = r == r ? (int8_t)r : 0; /* 0 for NaN */

        out[k] = (uint8_t)q;
        sum[k / per_sum] += q;
    }
    memcpy(out + 32, &scale, 4);
    for (int h = 0; h < traits.halves; h++) {
        int32_t start = -traits.offset * sum[h];
        float of_sum = traits.kind == TD_ACT_INT32 ? (float)sum[h] * scale : (float)sum[h];

        memcpy(out + 36 + 4 * h, &start, 4);
        if (traits.mins)
            memcpy(out + 36 + 4 * traits.halves + 4 * h, &of_sum, 4);
    }
}

/* Tiles of one token. */
static void prepare(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                    uint32_t slot, uint32_t n, uint8_t *out)
{
    const struct td_cpu_traits traits = act->traits;
    const uint32_t block = traits.kind == TD_ACT_INT256 ? 256 : 32;

    (void)slot;
    (void)n;
    if (traits.kind == TD_ACT_F32) {
        for (uint32_t k = 0; k < src->n_cols; k++) {
            float x = source_value(src, t, k);

            memcpy(out + (size_t)k * 4, &x, 4);
        }
    } else if (traits.kind == TD_ACT_BF16) { /* columns, the odd one of a pair first */
        for (uint32_t k = 0; k < (src->n_cols + 1) / 2 * 2; k++) {
            float x =
                k < src->n_cols ? td_bf16_to_f32(td_f32_to_bf16(source_value(src, t, k))) : 0.0f;

            memcpy(out + (size_t)(k ^ 1) * 4, &x, 4);
        }
    } else {
        for (uint32_t k0 = 0; k0 < src->n_cols; k0 += block) {
            float x[256], max;

            for (uint32_t k = 0; k < block; k++)
                x[k] = source_value(src, t, k0 + k);
            max = max_bits(x, block);
            for (uint32_t k = 0; k < block; k += 32, out += td_cpu_act_block_bytes(traits))
                prepare_block(traits, x + k, max, out);
        }
    }
}

/* ---- products ---- */

/* One lane of one group, and one token's activations. */
struct lane {
    enum td_dtype dtype;
    struct td_cpu_traits traits;
    const uint8_t *group;
    uint32_t lanes, lane;
    const uint8_t *act;
};

static uint8_t field8(const struct lane *l, const uint8_t *block, size_t at)
{
    return block[at * l->lanes + l->lane];
}

static uint16_t field16(const struct lane *l, const uint8_t *block, size_t at)
{
    return td_half_load16(block + at * l->lanes + (size_t)l->lane * 2);
}

static uint32_t field32(const struct lane *l, const uint8_t *block, size_t at)
{
    return td_half_load32(block + at * l->lanes + (size_t)l->lane * 4);
}

/* The float weight of a column: float types of 2 or 4 bytes. */
static float float_weight(const struct lane *l, uint32_t k)
{
    if (l->dtype == TD_F32)
        return td_half_bits_f32(field32(l, l->group, (size_t)k * 4));
    if (l->dtype == TD_F16)
        return td_f16_to_f32(field16(l, l->group, (size_t)k * 2));
    return td_bf16_to_f32((uint16_t)(field32(l, l->group, (size_t)(k / 2) * 4) >> (k % 2 * 16)));
}

static float leaf_f32(const struct lane *l, uint32_t k0, uint32_t k1)
{
    float acc = 0.0f;

    for (uint32_t k = k0; k < k1; k++)
        acc = fmaf(float_weight(l, k), load_f32(l->act + (size_t)k * 4), acc);
    return acc;
}

static float leaf_bf16(const struct lane *l, uint32_t k0, uint32_t k1)
{
    float acc = 0.0f;

    for (uint32_t k = k0; k < k1; k += 2)
        for (uint32_t odd = 2; odd-- > 0;)
            acc =
                fmaf(float_weight(l, k + odd), load_f32(l->act + (size_t)((k + odd) ^ 1) * 4), acc);
    return acc;
}

static float leaf_f8(const struct lane *l, uint32_t n_cols, uint32_t k0, uint32_t k1)
{
    float acc = 0.0f;

    for (uint32_t b = k0; b < k1; b += 128) {
        const uint8_t *block = l->group + (size_t)(b / 128) * 132 * l->lanes;
        uint32_t n = n_cols - b < 128 ? n_cols - b : 128;
        float sum = 0.0f;

        for (uint32_t k = 0; k < n; k += 2)
            for (uint32_t odd = 2; odd-- > 0;) {
                uint8_t byte = k + odd < n ? field8(l, block, 4 + k + odd) : 0;
                float w;

                td_dequant_row(TD_F8_E4M3, &byte, &w, 1);
                sum = fmaf(w, load_f32(l->act + (size_t)((b + k + odd) ^ 1) * 4), sum);
            }
        acc = fmaf(sum, td_half_bits_f32(field32(l, block, 0)), acc);
    }
    return acc;
}

static unsigned nibble_at(const struct lane *l, const uint8_t *block, size_t words, uint32_t word,
                          uint32_t i, uint32_t high)
{
    return (field32(l, block, words + (size_t)word * 4) >> (8 * i + 4 * high)) & 15;
}

static unsigned bits_at(const struct lane *l, const uint8_t *block, size_t words, uint32_t word,
                        uint32_t i, uint32_t bit, unsigned mask)
{
    return (field32(l, block, words + (size_t)word * 4) >> (8 * i + bit)) & mask;
}

/* The stored integer of column 32 b + 4 j + i of a block. */
static int stored(const struct lane *l, const uint8_t *block, uint32_t b, uint32_t j, uint32_t i)
{
    static const uint8_t iq4[16] = {TD_CPU_IQ4_VALUES}, mxfp4[16] = {TD_CPU_MXFP4_VALUES};

    switch (l->dtype) {
    case TD_Q8_0:
        return (int)bits_at(l, block, 2, j, i, 0, 255) ^ 128;
    case TD_Q4_0:
        return (int)nibble_at(l, block, 2, j % 4, i, j / 4);
    case TD_Q4_1:
        return (int)nibble_at(l, block, 4, j % 4, i, j / 4);
    case TD_Q5_0:
        return (int)(nibble_at(l, block, 6, j % 4, i, j / 4) | bits_at(l, block, 2, 0, i, j, 1)
                                                                   << 4);
    case TD_Q5_1:
        return (int)(nibble_at(l, block, 8, j % 4, i, j / 4) | bits_at(l, block, 4, 0, i, j, 1)
                                                                   << 4);
    case TD_IQ4_NL:
        return iq4[nibble_at(l, block, 2, j % 4, i, j / 4)];
    case TD_MXFP4:
        return mxfp4[nibble_at(l, block, 1, j % 4, i, j / 4)];
    case TD_INT4:
        return (int)nibble_at(l, block, 3, j % 4, i, j / 4) + 15 - (field8(l, block, 2) & 15);
    case TD_Q4_K:
        return (int)nibble_at(l, block, 16, b / 2 * 8 + j, i, b % 2);
    case TD_Q5_K:
        return (int)(nibble_at(l, block, 48, b / 2 * 8 + j, i, b % 2) |
                     bits_at(l, block, 16, j, i, b, 1) << 4);
    case TD_Q6_K:
        return (int)(nibble_at(l, block, 18, b / 4 * 16 + b % 2 * 8 + j, i, b % 4 / 2) |
                     bits_at(l, block, 146, b / 4 * 8 + j, i, b % 4 * 2, 3) << 4);
    case TD_Q3_K:
        return (int)(bits_at(l, block, 46, b / 4 * 8 + j, i, b % 4 * 2, 3) |
                     bits_at(l, block, 14, j, i, b, 1) << 2);
    case TD_Q2_K:
        return (int)bits_at(l, block, 20, b / 4 * 8 + j, i, b % 4 * 2, 3);
    case TD_IQ4_XS:
        return iq4[nibble_at(l, block, 8, b * 4 + j % 4, i, j / 4)];
    default:
        return 0;
    }
}

/* Integer dot product of 32 / halves columns, the offset taken out. */
static int32_t dot(const struct lane *l, const uint8_t *block, uint32_t b, uint32_t half,
                   const uint8_t *act)
{
    uint32_t steps = 8 / (uint32_t)l->traits.halves;
    int32_t sum = 0;

    for (uint32_t j = half * steps; j < (half + 1) * steps; j++)
        for (uint32_t i = 0; i < 4; i++)
            sum += (stored(l, block, b, j, i) - l->traits.offset) * (int8_t)act[j * 4 + i];
    return sum;
}

static float leaf_int32(const struct lane *l, uint32_t k0, uint32_t k1)
{
    const size_t bytes = td_dtype_info(l->dtype)->block_bytes;
    float acc = 0.0f;

    for (uint32_t b = k0 / 32; b < k1 / 32; b++) {
        const uint8_t *block = l->group + b * bytes * l->lanes;
        const uint8_t *act = l->act + (size_t)b * td_cpu_act_block_bytes(l->traits);
        float scale = l->dtype == TD_MXFP4 ? td_cpu_e8m0(field8(l, block, 0))
                                           : td_f16_to_f32(field16(l, block, 0));

        acc = fmaf((float)dot(l, block, 0, 0, act), scale * load_f32(act + 32), acc);
        if (l->traits.mins)
            acc = fmaf(td_f16_to_f32(field16(l, block, 2)), load_f32(act + 40), acc);
    }
    return acc;
}

/* Value i of the sixes at byte `at`. */
static int six(const struct lane *l, const uint8_t *block, size_t at, uint32_t i)
{
    if (i < 15)
        return (int)(field32(l, block, at + i / 5 * 4) >> (6 * (i % 5))) & 63;
    return (int)(field32(l, block, at) >> 30 | field32(l, block, at + 4) >> 30 << 2 |
                 field32(l, block, at + 8) >> 30 << 4);
}

static int sub_scale(const struct lane *l, const uint8_t *block, uint32_t b, uint32_t half)
{
    uint32_t i = 2 * b + half;

    switch (l->dtype) {
    case TD_Q4_K:
    case TD_Q5_K:
        return six(l, block, 4, b);
    case TD_Q6_K:
        return (int8_t)bits_at(l, block, 2, i / 4, i % 4, 0, 255);
    case TD_Q3_K:
        return six(l, block, 2, i) - 32;
    case TD_Q2_K:
        return (int)bits_at(l, block, 4, i / 4, i % 4, 0, 15);
    case TD_IQ4_XS:
        return (int)(((field32(l, block, 4) >> (4 * b)) & 15) |
                     (((uint32_t)field16(l, block, 2) >> (2 * b)) & 3u) << 4) -
               32;
    default:
        return 0;
    }
}

static int sub_min(const struct lane *l, const uint8_t *block, uint32_t b, uint32_t half)
{
    uint32_t i = 2 * b + half;

    if (l->dtype == TD_Q2_K)
        return (int)bits_at(l, block, 4, i / 4, i % 4, 4, 15);
    return six(l, block, 4, 8 + b);
}

static float leaf_int256(const struct lane *l, uint32_t k0, uint32_t k1)
{
    const size_t bytes = td_dtype_info(l->dtype)->block_bytes;
    const uint32_t halves = (uint32_t)l->traits.halves;
    float acc = 0.0f;

    for (uint32_t s = k0 / 256; s < k1 / 256; s++) {
        const uint8_t *block = l->group + s * bytes * l->lanes;
        const uint8_t *act = l->act + (size_t)s * 8 * td_cpu_act_block_bytes(l->traits);
        float scale = load_f32(act + 32), sum = 0.0f, of_mins = 0.0f;

        for (uint32_t b = 0; b < 8; b++, act += td_cpu_act_block_bytes(l->traits))
            for (uint32_t h = 0; h < halves; h++) {
                sum = fmaf((float)dot(l, block, b, h, act), (float)sub_scale(l, block, b, h), sum);
                if (l->traits.mins)
                    of_mins = fmaf((float)sub_min(l, block, b, h),
                                   load_f32(act + 36 + 4 * halves + 4 * (size_t)h), of_mins);
            }
        acc = fmaf(sum, td_f16_to_f32(field16(l, block, 0)) * scale, acc);
        if (l->traits.mins)
            acc = fmaf(-(td_f16_to_f32(field16(l, block, 2)) * scale), of_mins, acc);
    }
    return acc;
}

static float leaf_sum(const struct lane *l, uint32_t n_cols, uint32_t k0, uint32_t k1)
{
    switch (l->traits.kind) {
    case TD_ACT_BF16:
        return l->dtype == TD_BF16 ? leaf_bf16(l, k0, k1) : leaf_f8(l, n_cols, k0, k1);
    case TD_ACT_INT32:
        return leaf_int32(l, k0, k1);
    case TD_ACT_INT256:
        return leaf_int256(l, k0, k1);
    default:
        return leaf_f32(l, k0, k1);
    }
}

static float part_sum(const struct lane *l, const struct td_matrix *m, uint32_t part)
{
    float stack[TD_CPU_MAX_LEVELS] = {0};
    uint32_t depth = 0;

    for (uint32_t leaf = m->part_begin[part]; leaf < m->part_begin[part + 1]; leaf++) {
        float sum = leaf_sum(l, m->n_cols, leaf ? m->leaf_end[leaf - 1] : 0, m->leaf_end[leaf]);

        for (uint32_t i = leaf - m->part_begin[part]; i & 1; i >>= 1)
            sum = stack[--depth] + sum;
        stack[depth++] = sum;
    }
    while (depth > 1) {
        depth--;
        stack[depth - 1] = stack[depth - 1] + stack[depth];
    }
    return stack[0];
}

static void product(const struct td_cpu_product *p)
{
    const struct td_matrix *m = &p->m->head;
    struct lane l = {.dtype = m->dtype, .traits = p->act->traits};

    for (uint32_t part = 0; part < m->n_parts; part++)
        for (uint32_t t = 0; t < p->n; t++)
            for (uint32_t g = 0; g < p->n_groups; g++) {
                float *out =
                    p->out + part * p->part_stride + t * p->row_stride + (size_t)g * TD_CPU_GROUP;

                l.group = td_cpu_group_data(p->m, p->group + g);
                l.lanes = td_cpu_lanes(m, p->group + g);
                l.act = p->act->data + (size_t)(p->t0 + t) * p->act->row_bytes;
                for (l.lane = 0; l.lane < l.lanes; l.lane++)
                    out[l.lane] = part_sum(&l, m, part);
            }
}

/* ---- rows ---- */

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

static uint32_t above(const float *x, uint32_t n, float floor)
{
    uint32_t i = 0;

    while (i < n && !(x[i] > floor))
        i++;
    return i;
}

const struct td_cpu_isa td_cpu_isa_ref = {
    .name = "ref",
    .available = available,
    .max_tile = {1, 1, 1, 1},
    .gather = gather,
    .prepare = prepare,
    .product = product,
    .bf16 = {.pairs = false, .prepare = prepare, .product = product},
    .rmsnorm = rmsnorm,
    .silu_mul = silu_mul,
    .add = add,
    .above = above,
    .attend = td_cpu_attend_ref};
