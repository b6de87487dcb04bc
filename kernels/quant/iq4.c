/* IQ4_NL and IQ4_XS: nibbles that index a table of 16 values, denser around zero, under one F16 scale for 32 columns or under
 * 6-bit scales of 32 columns each, under one F16 scale for 256. Products of stored values are exact in F32. */
#include "kernels/quant/codec.h"
#include "kernels/quant/fit.h"

enum { RUN = 32, RUNS = 8, STEP = 7, N_STEPS = 3, N_DESCENTS = 3 };

static const int8_t VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
/* Where the nearest value changes: the middle between value i and i + 1. */
static const float MIDDLE[15] = {-115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16, -4.5f,
                                 7,       19,     31.5f, 45.5f, 61,  79,     101};

static int nearest(float x)
{
    int i = x >= MIDDLE[7] ? 8 : 0;

    i += x >= MIDDLE[i + 3] ? 4 : 0;
    i += x >= MIDDLE[i + 1] ? 2 : 0;
    return i + (x >= MIDDLE[i] ? 1 : 0);
}

static float inverse_of(float scale)
{
    return fabsf(scale) > 0x1p-60f ? 1.0f / scale : 0.0f;
}

/* The best scale for the values that lie nearest to x * inverse; `gain` is how much it explains of the sum of w * x^2. */
static float solve(const float *x, const float *w, float inverse, float *gain)
{
    float vv = 0, vx = 0;

    for (int i = 0; i < RUN; i++) {
        float v = VALUES[nearest(x[i] * inverse)], wv = w[i] * v;

        vv += wv * v;
        vx += wv * x[i];
    }
    *gain = vv > 0 ? vx / vv * vx : 0.0f;
    return vv > 0 ? vx / vv : 0.0f;
}

/* The scale, of either sign, that makes the sum of w * (x - scale * value)^2 small: the extreme value is tried at and around
 * the table's first, then the best one is followed downhill. */
static float fit(const float *x, const float *w)
{
    float extreme = 0, best = -1, scale = 0, gain, s;

    for (int i = 0; i < RUN; i++)
        if (fabsf(x[i]) > fabsf(extreme))
            extreme = x[i];
    for (int step = -N_STEPS; step <= N_STEPS + N_DESCENTS; step++) {
        s = solve(x, w,
                  step <= N_STEPS ? (float)(VALUES[0] + STEP * step) * inverse_of(extreme)
                                  : inverse_of(scale),
                  &gain);
        if (gain > best) {
            best = gain;
            scale = s;
        }
    }
    return scale;
}

static float error_of(const float *x, const float *w, float scale)
{
    float inverse = inverse_of(scale), error = 0;

    for (int i = 0; i < RUN; i++) {
        float e = x[i] - scale * VALUES[nearest(x[i] * inverse)];

        error += w[i] * (e * e);
    }
    return error;
}

static void put_nibbles(const float *x, float scale, uint8_t *p)
{
    float inverse = inverse_of(scale);

    for (int i = 0; i < RUN / 2; i++)
        p[i] = (uint8_t)(nearest(x[i] * inverse) | nearest(x[i + RUN / 2] * inverse) << 4);
}

static void get_columns(const uint8_t *p, float scale, float *dst)
{
    for (int i = 0; i < RUN / 2; i++) {
        dst[i] = scale * VALUES[p[i] & 15];
        dst[i + RUN / 2] = scale * VALUES[p[i] >> 4];
    }
}

/* IQ4_NL: scale, nibbles [16], the low ones being the first half. */
static void decode_nl(const uint8_t *block, float *dst)
{
    get_columns(block + 2, td_codec_get_f16(block), dst);
}

static void encode_nl(const float *src, uint8_t *block)
{
    float w[RUN];

    td_fit_weigh(src, RUN, w);
    put_nibbles(src, td_codec_put_scale(block, fit(src, w)), block + 2);
}

/* IQ4_XS: d, upper two bits of the 8 scales (16 bits), lower four bits [4], nibbles [128] as IQ4_NL's. Stored is scale + 32. */
static void decode_xs(const uint8_t *block, float *dst)
{
    float d = td_codec_get_f16(block);
    uint16_t high = td_half_load16(block + 2);

    for (int r = 0; r < RUNS; r++) {
        int s = (block[4 + r / 2] >> r % 2 * 4 & 15) | (high >> 2 * r & 3) << 4;

        get_columns(block + 8 + r * RUN / 2, d * (float)(s - 32), dst + r * RUN);
    }
}

static void encode_xs(const float *src, uint8_t *block)
{
    float scale[RUNS], w[RUNS * RUN], largest = 0, d;
    unsigned high = 0;

    for (int r = 0; r < RUNS; r++) {
        td_fit_weigh(src + r * RUN, RUN, w + r * RUN);
        scale[r] = fit(src + r * RUN, w + r * RUN);
        largest = fabsf(scale[r]) > fabsf(largest) ? scale[r] : largest;
    }
    d = td_codec_put_scale(block, largest / -32.0f);
    memset(block + 4, 0, 4);
    for (int r = 0; r < RUNS; r++) {
        int centre = td_codec_units(scale[r], d, -32, 31), best = 0;
        float least = -1;

        for (int s = centre - 1; s <= centre + 1; s++) {
            float error;

            if (s < -32 || s > 31)
                continue;
            error = error_of(src + r * RUN, w + r * RUN, d * (float)s);
            if (least < 0 || error < least) {
                least = error;
                best = s;
            }
        }
        put_nibbles(src + r * RUN, d * (float)best, block + 8 + r * RUN / 2);
        block[4 + r / 2] |= (uint8_t)((best + 32) % 16 << r % 2 * 4);
        high |= (unsigned)(best + 32) / 16 << 2 * r;
    }
    td_codec_store16(block + 2, (uint16_t)high);
}

const struct td_codec td_iq4_nl = {decode_nl, encode_nl, TD_CODEC_LIMIT};
const struct td_codec td_iq4_xs = {decode_xs, encode_xs, TD_CODEC_LIMIT};
