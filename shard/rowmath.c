#include "shard/rowmath.h"

#include "kernels/draw.h"

#include <math.h>

enum { BLOCK = 64 };

/* A function of its own for each vector width, chosen when the program starts. Sanitizers cannot have that: the choice is made
 * before they are ready. Nor can Clang 14, which gives the choice another name than the function's. */
#if defined(__x86_64__) && !defined(__clang__) && !defined(TD_SANITIZE)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

CLONES void td_rowmath_clean(const float *z, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = z[i] == z[i] ? z[i] : -INFINITY;
}

CLONES float td_rowmath_max(const float *z, uint32_t n)
{
    float lane[TD_ROWMATH_LANES], max = -INFINITY;
    uint32_t i = 0;

    for (uint32_t l = 0; l < TD_ROWMATH_LANES; l++)
        lane[l] = -INFINITY;
    for (; n - i >= TD_ROWMATH_LANES; i += TD_ROWMATH_LANES)
        for (uint32_t l = 0; l < TD_ROWMATH_LANES; l++)
            lane[l] = z[i + l] > lane[l] ? z[i + l] : lane[l];
    for (uint32_t l = 0; i + l < n; l++)
        lane[l] = z[i + l] > lane[l] ? z[i + l] : lane[l];
    for (uint32_t l = 0; l < TD_ROWMATH_LANES; l++)
        max = lane[l] > max ? lane[l] : max;
    return max;
}

CLONES uint32_t td_rowmath_find(const float *z, uint32_t n, float value)
{
    uint32_t i = 0;

    for (; n - i >= BLOCK; i += BLOCK) {
        uint32_t any = 0;

        for (uint32_t l = 0; l < BLOCK; l++)
            any |= z[i + l] == value;
        if (any)
            break;
    }
    while (i < n && z[i] != value)
        i++;
    return i;
}

CLONES uint32_t td_rowmath_above(const float *z, uint32_t n, float floor)
{
    uint32_t i = 0;

    for (; n - i >= BLOCK; i += BLOCK) {
        uint32_t any = 0;

        for (uint32_t l = 0; l < BLOCK; l++)
            any |= z[i + l] > floor;
        if (any)
            break;
    }
    while (i < n && !(z[i] > floor))
        i++;
    return i;
}

CLONES uint32_t td_rowmath_rank(const float *z, uint32_t n, uint32_t at)
{
    const float value = z[at];
    uint32_t rank = 0;

    for (uint32_t i = 0; i < at; i++)
        rank += z[i] >= value;
    for (uint32_t i = at; i < n; i++)
        rank += z[i] > value;
    return rank;
}

CLONES void td_rowmath_weights(const float *z, uint32_t n, float max, double inv_t, double *w)
{
    for (uint32_t i = 0; i < n; i++)
        w[i] = td_draw_weight(z[i], max, inv_t);
}

double td_rowmath_join(double *lanes)
{
    for (uint32_t half = TD_ROWMATH_LANES / 2; half; half /= 2)
        for (uint32_t l = 0; l < half; l++)
            lanes[l] = lanes[l] + lanes[l + half];
    return lanes[0];
}

CLONES double td_rowmath_sum(const double *w, uint32_t n)
{
    double lane[TD_ROWMATH_LANES] = {0};
    uint32_t i = 0;

    for (; n - i >= TD_ROWMATH_LANES; i += TD_ROWMATH_LANES)
        for (uint32_t l = 0; l < TD_ROWMATH_LANES; l++)
            lane[l] += w[i + l];
    for (uint32_t l = 0; i + l < n; l++)
        lane[l] += w[i + l];
    return td_rowmath_join(lane);
}
