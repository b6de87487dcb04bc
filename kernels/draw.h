/* A token drawn from a whole row of logits by its weights: what a sampler (shard/sampler.h) and a device that draws in its place have in
 * common, so that both draw the same. Pure. */
#ifndef TD_KERNELS_DRAW_H
#define TD_KERNELS_DRAW_H

#include "kernels/detmath.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { TD_DRAW_MAX_WIDTH = 1 << 19 };

/* Stages 8, 10, 11 and 13 of the sampler, the others being off. */
struct td_draw {
    double inv_t; /* 1 / temperature; above 0, finite */
    float top_p;  /* (0, 1]; 1: off */
    float min_p;  /* [0, 1]; 0: off */
    float u;      /* uniform in [0, 1) */
};

/* What log probabilities need of a row of logits, and of one id in it. */
struct td_measure {
    double sum;        /* of td_draw_weight(z, max, 1) over the row; exact */
    float max;         /* the largest logit; -infinity: there is none */
    float value;       /* the id's logit */
    uint32_t id;       /* UINT32_MAX: of none; then value and n_before mean nothing */
    uint32_t n_before; /* ids with larger logits, and lower ones with equal logits */
};

static inline bool td_draw_is_valid(const struct td_draw *d)
{
    return d->inv_t > 0 && isfinite(d->inv_t) && d->top_p > 0 && d->top_p <= 1 && d->min_p >= 0 &&
           d->min_p <= 1 && d->u >= 0 && d->u < 1;
}

/* The weight exp((z - max) * inv_t) of a logit (no NaN) up to `max`, which has exactly 1, rounded to a multiple of 2^-34: sums of up to
 * 2^19 are exact, so they come out the same in every order. */
TD_DETMATH double td_draw_weight(float z, float max, double inv_t)
{
    const double shift = 0x1.8p18; /* adding it rounds */
    /* Also where it is not taken (and may be NaN), so that nothing depends on a branch. */
    const double e = (td_detmath_exp(((double)z - (double)max) * inv_t) + shift) - shift;

    return z == max ? 1.0 : e;
}

/* Floats as integers in the same order; both zeros give one key. */
TD_DETMATH uint32_t td_draw_key(float v)
{
    uint32_t u;

    v += 0.0f;
    memcpy(&u, &v, sizeof u);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* The float of a key that such a one gave. */
TD_DETMATH float td_draw_from_key(uint32_t key)
{
    const uint32_t u = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float v;

    memcpy(&v, &u, sizeof v);
    return v;
}

#endif
