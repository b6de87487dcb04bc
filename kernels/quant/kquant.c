/* The types with 256 columns to a block, in runs of 16 or 32 that have scales of their own: Q2_K, Q4_K, Q5_K with a scale
 * and a minimum per run, Q3_K, Q6_K with a scale. The runs' scales are small integers under F16 scales of the block.
 * Every product of stored values is exact in F32, so that decoding has at most one rounding, that of the subtraction. */
#include "kernels/quant/codec.h"
#include "kernels/quant/fit.h"

enum { BLOCK = 256, MAX_RUNS = 16 };

/* ---- the arithmetic: integers and scales ---- */

/* A block before its bits are packed: column = d * scale[run] * q - dmin * min[run]. */
struct parts {
    float d, dmin;
    int n_runs;
    int8_t scale[MAX_RUNS];
    uint8_t min[MAX_RUNS]; /* unused where the type has none */
    int8_t q[BLOCK];
};

static void columns(const struct parts *p, float *dst)
{
    int n = BLOCK / p->n_runs;

    for (int r = 0; r < p->n_runs; r++) {
        float scale = p->d * (float)p->scale[r], min = p->dmin * (float)p->min[r];

        for (int i = r * n; i < (r + 1) * n; i++)
            dst[i] = scale * (float)p->q[i] - min;
    }
}

static void columns_without_min(const struct parts *p, float *dst)
{
    int n = BLOCK / p->n_runs;

    for (int r = 0; r < p->n_runs; r++) {
        float scale = p->d * (float)p->scale[r];

        for (int i = r * n; i < (r + 1) * n; i++)
            dst[i] = scale * (float)p->q[i];
    }
}

/* Given the block's d and dmin: the run's scale and minimum, tried around the best unrounded ones with the error that the
 * stored values really have. */
static void choose(const float *x, const float *w, int n, struct td_fit_range range, int scale_top,
                   float scale, float min, struct parts *p, int run)
{
    float least = -1;
    int centre = td_codec_units(scale, p->d, 0, scale_top);

    for (int s = centre > 0 ? centre - 1 : 0; s <= centre + 1 && s <= scale_top; s++) {
        float a = p->d * (float)s, b = td_fit_min(x, w, n, range, a, min);
        int m = td_codec_units(-b, p->dmin, 0, scale_top);
        float error = td_fit_levels(x, w, n, range, a, -p->dmin * (float)m, NULL);

        if (least < 0 || error < least) {
            least = error;
            p->scale[run] = (int8_t)s;
            p->min[run] = (uint8_t)m;
        }
    }
    td_fit_levels(x, w, n, range, p->d * (float)p->scale[run], -p->dmin * (float)p->min[run],
                  p->q + run * n);
}

/* d and dmin are stored where they belong in the block. */
static void fit_with_min(const float *x, int top, int scale_top, uint8_t *d, uint8_t *dmin,
                         struct parts *p)
{
    struct td_fit_range range = {0, (float)top};
    float scale[MAX_RUNS], min[MAX_RUNS], w[BLOCK], largest = 0, deepest = 0;
    int n = BLOCK / p->n_runs;

    for (int r = 0; r < p->n_runs; r++) {
        td_fit_weigh(x + r * n, n, w + r * n);
        scale[r] = td_fit_affine(x + r * n, w + r * n, n, range, &min[r]);
        largest = scale[r] > largest ? scale[r] : largest;
        deepest = -min[r] > deepest ? -min[r] : deepest;
    }
    p->d = td_codec_put_scale(d, largest / (float)scale_top);
    p->dmin = td_codec_put_scale(dmin, deepest / (float)scale_top);
    for (int r = 0; r < p->n_runs; r++)
        choose(x + r * n, w + r * n, n, range, scale_top, scale[r], min[r], p, r);
}

static void fit_without_min(const float *x, int top, int scale_top, uint8_t *d, struct parts *p)
{
    struct td_fit_range range = {(float)-top - 1, (float)top};
    float scale[MAX_RUNS], w[BLOCK], largest = 0;
    int n = BLOCK / p->n_runs;

    for (int r = 0; r < p->n_runs; r++) {
        td_fit_weigh(x + r * n, n, w + r * n);
        scale[r] = td_fit_scale(x + r * n, w + r * n, n, range);
        largest = fabsf(scale[r]) > fabsf(largest) ? scale[r] : largest;
    }
    p->d = td_codec_put_scale(d, largest / (float)(-scale_top - 1));
    for (int r = 0; r < p->n_runs; r++) {
        int centre = td_codec_units(scale[r], p->d, -scale_top - 1, scale_top);
        float least = -1;

        for (int s = centre - 1; s <= centre + 1; s++) {
            float error;

            if (s < -scale_top - 1 || s > scale_top)
                continue;
            error = td_fit_levels(x + r * n, w + r * n, n, range, p->d * (float)s, 0, NULL);
            if (least < 0 || error < least) {
                least = error;
                p->scale[r] = (int8_t)s;
            }
        }
        td_fit_levels(x + r * n, w + r * n, n, range, p->d * (float)p->scale[r], 0, p->q + r * n);
    }
}

/* ---- the bits of each type ---- */

/* Q2_K: scales and minima as nibbles [16], 2-bit columns [64], d, dmin. Byte 32 h + l holds columns 128 h + 32 j + l, j = 0
 * in the lowest bits. */
static void decode_q2_k(const uint8_t *block, float *dst)
{
    struct parts p = {
        .n_runs = 16, .d = td_codec_get_f16(block + 80), .dmin = td_codec_get_f16(block + 82)};

    for (int r = 0; r < 16; r++) {
        p.scale[r] = block[r] & 15;
        p.min[r] = block[r] >> 4;
    }
    for (int i = 0; i < BLOCK; i++)
        p.q[i] = block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    columns(&p, dst);
}

static void encode_q2_k(const float *src, uint8_t *block)
{
    struct parts p = {.n_runs = 16};

    fit_with_min(src, 3, 15, block + 80, block + 82, &p);
    for (int r = 0; r < 16; r++)
        block[r] = (uint8_t)(p.scale[r] | p.min[r] << 4);
    memset(block + 16, 0, 64);
    for (int i = 0; i < BLOCK; i++)
        block[16 + i / 128 * 32 + i % 32] |= (uint8_t)(p.q[i] << (i / 32 % 4 * 2));
}

/* Q3_K: third bits [32], bit j of byte l being that of column 32 j + l, clear for q < 0; lower two bits as Q2_K's [64]; scales
 * + 32: low nibbles of runs 0..7 and 8..15 [8], then their upper two bits [4]; d. */
static void decode_q3_k(const uint8_t *block, float *dst)
{
    const uint8_t *low = block + 32, *scales = block + 96;
    struct parts p = {.n_runs = 16, .d = td_codec_get_f16(block + 108)};

    for (int r = 0; r < 16; r++)
        p.scale[r] = (int8_t)(((scales[r % 8] >> r / 8 * 4 & 15) |
                               (scales[8 + r % 4] >> r / 4 * 2 & 3) << 4) -
                              32);
    for (int i = 0; i < BLOCK; i++)
        p.q[i] = (int8_t)((low[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) +
                          (block[i % 32] >> i / 32 & 1) * 4 - 4);
    columns_without_min(&p, dst);
}

static void encode_q3_k(const float *src, uint8_t *block)
{
    uint8_t *low = block + 32, *scales = block + 96;
    struct parts p = {.n_runs = 16};

    memset(block, 0, 108);
    fit_without_min(src, 3, 31, block + 108, &p);
    for (int r = 0; r < 16; r++) {
        int s = p.scale[r] + 32;

        scales[r % 8] |= (uint8_t)((s & 15) << r / 8 * 4);
        scales[8 + r % 4] |= (uint8_t)(s >> 4 << r / 4 * 2);
    }
    for (int i = 0; i < BLOCK; i++) {
        int q = p.q[i] + 4;

        low[i / 128 * 32 + i % 32] |= (uint8_t)((q & 3) << (i / 32 % 4 * 2));
        block[i % 32] |= (uint8_t)(q >> 2 << i / 32);
    }
}

/* The 12 bytes of 8 scales and 8 minima of 6 bits: runs 0..3 in the lower six bits of bytes 0..3 (scales) and 4..7 (minima);
 * runs 4..7 as nibbles of bytes 8..11 with their upper two bits on top of those of runs 0..3. */
static void get_sixes(const uint8_t *p, int8_t scale[8], uint8_t min[8])
{
    for (int r = 0; r < 4; r++) {
        scale[r] = p[r] & 63;
        min[r] = p[4 + r] & 63;
        scale[4 + r] = (int8_t)((p[8 + r] & 15) | p[r] >> 6 << 4);
        min[4 + r] = (uint8_t)(p[8 + r] >> 4 | p[4 + r] >> 6 << 4);
    }
}

static void put_sixes(uint8_t *p, const int8_t scale[8], const uint8_t min[8])
{
    for (int r = 0; r < 4; r++) {
        p[r] = (uint8_t)(scale[r] | scale[4 + r] >> 4 << 6);
        p[4 + r] = (uint8_t)(min[r] | min[4 + r] >> 4 << 6);
        p[8 + r] = (uint8_t)((scale[4 + r] & 15) | (min[4 + r] & 15) << 4);
    }
}

/* Q4_K: d, dmin, scales and minima [12], nibbles [128]: byte 32 g + l holds columns 64 g + l and 64 g + 32 + l. */
static void decode_q4_k(const uint8_t *block, float *dst)
{
    struct parts p = {
        .n_runs = 8, .d = td_codec_get_f16(block), .dmin = td_codec_get_f16(block + 2)};

    get_sixes(block + 4, p.scale, p.min);
    for (int i = 0; i < BLOCK; i++)
        p.q[i] = block[16 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15;
    columns(&p, dst);
}

static void encode_q4_k(const float *src, uint8_t *block)
{
    struct parts p = {.n_runs = 8};

    fit_with_min(src, 15, 63, block, block + 2, &p);
    put_sixes(block + 4, p.scale, p.min);
    for (int i = 0; i < 128; i++) {
        int c = i / 32 * 64 + i % 32;

        block[16 + i] = (uint8_t)(p.q[c] | p.q[c + 32] << 4);
    }
}

/* Q5_K: as Q4_K with the fifth bits [32] before the nibbles, bit j of byte l being that of column 32 j + l. */
static void decode_q5_k(const uint8_t *block, float *dst)
{
    struct parts p = {
        .n_runs = 8, .d = td_codec_get_f16(block), .dmin = td_codec_get_f16(block + 2)};

    get_sixes(block + 4, p.scale, p.min);
    for (int i = 0; i < BLOCK; i++)
        p.q[i] = (int8_t)((block[48 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15) |
                          (block[16 + i % 32] >> i / 32 & 1) << 4);
    columns(&p, dst);
}

static void encode_q5_k(const float *src, uint8_t *block)
{
    struct parts p = {.n_runs = 8};

    fit_with_min(src, 31, 63, block, block + 2, &p);
    put_sixes(block + 4, p.scale, p.min);
    memset(block + 16, 0, 32);
    for (int i = 0; i < BLOCK; i++)
        block[16 + i % 32] |= (uint8_t)(p.q[i] >> 4 << i / 32);
    for (int i = 0; i < 128; i++) {
        int c = i / 32 * 64 + i % 32;

        block[48 + i] = (uint8_t)((p.q[c] & 15) | (p.q[c + 32] & 15) << 4);
    }
}

/* Q6_K: lower four bits [128], upper two [64], int8 scales [16], d. Per half h of the columns and l < 64: byte 64 h + l holds
 * the nibbles of columns 128 h + l and 128 h + 64 + l; upper bits lie as Q2_K's. Stored is q + 32. */
static void decode_q6_k(const uint8_t *block, float *dst)
{
    const uint8_t *high = block + 128;
    struct parts p = {.n_runs = 16, .d = td_codec_get_f16(block + 208)};

    for (int r = 0; r < 16; r++)
        p.scale[r] = (int8_t)block[192 + r];
    for (int i = 0; i < BLOCK; i++)
        p.q[i] = (int8_t)(((block[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15) |
                           (high[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) << 4) -
                          32);
    columns_without_min(&p, dst);
}

static void encode_q6_k(const float *src, uint8_t *block)
{
    uint8_t *high = block + 128;
    struct parts p = {.n_runs = 16};

    memset(block, 0, 192);
    fit_without_min(src, 31, 127, block + 208, &p);
    for (int r = 0; r < 16; r++)
        block[192 + r] = (uint8_t)p.scale[r];
    for (int i = 0; i < BLOCK; i++) {
        int q = p.q[i] + 32;

        block[i / 128 * 64 + i % 64] |= (uint8_t)((q & 15) << i / 64 % 2 * 4);
        high[i / 128 * 32 + i % 32] |= (uint8_t)(q >> 4 << (i / 32 % 4 * 2));
    }
}

const struct td_codec td_kquant_q2_k = {decode_q2_k, encode_q2_k, TD_CODEC_LIMIT};
const struct td_codec td_kquant_q3_k = {decode_q3_k, encode_q3_k, TD_CODEC_LIMIT};
const struct td_codec td_kquant_q4_k = {decode_q4_k, encode_q4_k, TD_CODEC_LIMIT};
const struct td_codec td_kquant_q5_k = {decode_q5_k, encode_q5_k, TD_CODEC_LIMIT};
const struct td_codec td_kquant_q6_k = {decode_q6_k, encode_q6_k, TD_CODEC_LIMIT};
