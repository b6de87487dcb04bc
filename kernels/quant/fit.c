#include "kernels/quant/fit.h"

#include <math.h>
#include <stdbool.h>

enum { LANES = 8, N_STEPS = 3, N_DESCENTS = 3 };

/* Runs whose values lie closer together than this are far below the smallest F16 scale. */
static const float TINY = 0x1p-60f;

/* To nearest, ties to even, for |v| < 2^22. */
static inline float nearest(float v)
{
    return (v + 0x1.8p23f) - 0x1.8p23f;
}

static inline float level(float v, struct td_fit_range range)
{
    v = v < range.lo ? range.lo : v;
    return nearest(v > range.hi ? range.hi : v);
}

static float fold(const float lane[LANES])
{
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static float inverse_of(float scale)
{
    return fabsf(scale) > TINY ? 1.0f / scale : 0.0f;
}

void td_fit_weigh(const float *x, int n, float *w)
{
    float square[LANES] = {0}, half_rms;

    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++)
            square[l] += x[i + l] * x[i + l];
    half_rms = 0.5f * sqrtf(fold(square) / (float)n);
    for (int i = 0; i < n; i++)
        w[i] = half_rms + fabsf(x[i]);
}

/* Sums over a run, q being the levels of one candidate. */
struct moments {
    float w, x;      /* sums of w and w * x, which are the same for all candidates */
    float q, qq, qx; /* sums of w * q, w * q * q and w * q * x */
};

static void moments_of_run(const float *x, const float *w, int n, struct moments *m)
{
    float sw[LANES] = {0}, sx[LANES] = {0};

    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            sw[l] += w[i + l];
            sx[l] += w[i + l] * x[i + l];
        }
    m->w = fold(sw);
    m->x = fold(sx);
}

static void moments_of_levels(const float *x, const float *w, int n, struct td_fit_range range,
                              float inverse, float min, struct moments *m)
{
    float sq[LANES] = {0}, sqq[LANES] = {0}, sqx[LANES] = {0};

    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float q = level((x[i + l] - min) * inverse, range);
            float wq = w[i + l] * q;

            sq[l] += wq;
            sqq[l] += wq * q;
            sqx[l] += wq * x[i + l];
        }
    m->q = fold(sq);
    m->qq = fold(sqq);
    m->qx = fold(sqx);
}

float td_fit_levels(const float *x, const float *w, int n, struct td_fit_range range, float scale,
                    float min, int8_t *q)
{
    float inverse = inverse_of(scale), error[LANES] = {0};

    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float v = level((x[i + l] - min) * inverse, range);
            float e = x[i + l] - min - v * scale;

            error[l] += w[i + l] * (e * e);
        }
    if (q)
        for (int i = 0; i < n; i++)
            q[i] = (int8_t)level((x[i] - min) * inverse, range);
    return fold(error);
}

/* Of m: the best scale; `gain` is how much of the sum of w * x^2 it explains. */
static float solve_scale(const struct moments *m, float *gain)
{
    float scale = m->qq > 0 ? m->qx / m->qq : 0.0f;

    *gain = scale * m->qx;
    return scale;
}

/* Both searches try the spread of the run over the range in steps of 0.3 of a level, then follow the best one downhill: levels
 * for the best scale, the best scale for those levels. */
float td_fit_scale(const float *x, const float *w, int n, struct td_fit_range range)
{
    float extreme = 0, best = -1, scale = 0;
    struct moments m;

    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(extreme))
            extreme = x[i];
    if (!(fabsf(extreme) > TINY))
        return 0;
    for (int step = -N_STEPS; step <= N_STEPS + N_DESCENTS; step++) {
        float inverse =
            step <= N_STEPS ? (range.lo + 0.3f * (float)step) / extreme : inverse_of(scale);
        float gain, s;

        moments_of_levels(x, w, n, range, inverse, 0, &m);
        s = solve_scale(&m, &gain);
        if (gain > best) {
            best = gain;
            scale = s;
        } else if (step > N_STEPS) {
            break;
        }
    }
    return scale;
}

/* The best scale and minimum; without a minimum where the best one is above 0. */
static float solve_affine(const struct moments *m, float *min, float *gain)
{
    float det = m->w * m->qq - m->q * m->q;
    float scale = 0, low = 0;

    if (det > 0) {
        scale = (m->w * m->qx - m->x * m->q) / det;
        low = (m->qq * m->x - m->q * m->qx) / det;
    }
    if (!(det > 0) || low > 0) {
        scale = m->qq > 0 ? m->qx / m->qq : 0.0f;
        low = 0;
    }
    *min = low;
    *gain = scale > 0 ? scale * m->qx + low * m->x : -1.0f;
    return scale;
}

float td_fit_affine(const float *x, const float *w, int n, struct td_fit_range range, float *min)
{
    float lo = 0, hi = x[0], best = -1, scale = 0;
    struct moments m;

    for (int i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    *min = lo;
    if (!(hi - lo > TINY))
        return 0;
    moments_of_run(x, w, n, &m);
    for (int step = -N_STEPS; step <= N_STEPS + N_DESCENTS; step++) {
        bool first = step <= N_STEPS;
        float inverse = first ? (range.hi + 0.3f * (float)step) / (hi - lo) : inverse_of(scale);
        float gain, low, s;

        moments_of_levels(x, w, n, range, inverse, first ? lo : *min, &m);
        s = solve_affine(&m, &low, &gain);
        if (gain > best) {
            best = gain;
            scale = s;
            *min = low;
        } else if (!first) {
            break;
        }
    }
    return scale;
}

float td_fit_min(const float *x, const float *w, int n, struct td_fit_range range, float scale,
                 float min)
{
    struct moments m;

    moments_of_run(x, w, n, &m);
    moments_of_levels(x, w, n, range, inverse_of(scale), min, &m);
    return m.w > 0 ? (m.x - scale * m.q) / m.w : 0.0f;
}
