#include "shard/rope.h"

#include "kernels/detmath.h"

#include <math.h>

static const double PI = 3.14159265358979323846;

/* llama3: long waves are slowed by the factor, short ones kept, with a linear blend between. */
static double llama3(const struct td_rope_spec *r, double freq)
{
    double wavelength = 2.0 * PI / freq;
    double blend;

    if (wavelength < r->original_max_positions / r->high_freq_factor)
        return freq;
    if (wavelength > r->original_max_positions / r->low_freq_factor)
        return freq / r->factor;
    blend = (r->original_max_positions / wavelength - r->low_freq_factor) /
            (r->high_freq_factor - r->low_freq_factor);
    return (1.0 - blend) * freq / r->factor + blend * freq;
}

/* The dimension that turns `turns` times within the original context. */
static double yarn_dimension(const struct td_spec *spec, double turns)
{
    const struct td_rope_spec *r = &spec->rope;

    return spec->head_dim * td_detmath_log(r->original_max_positions / (turns * 2.0 * PI)) /
           (2.0 * td_detmath_log(r->theta));
}

void td_rope_frequencies(const struct td_spec *spec, double *freq, double *scale)
{
    const struct td_rope_spec *r = &spec->rope;
    uint32_t half = spec->head_dim / 2;
    double log_theta = td_detmath_log(r->theta), low = 0.0, high = 0.0;

    *scale = 1.0;
    if (r->scaling == TD_ROPE_YARN) {
        low = floor(yarn_dimension(spec, r->beta_fast > 0.0 ? r->beta_fast : 32.0));
        high = ceil(yarn_dimension(spec, r->beta_slow > 0.0 ? r->beta_slow : 1.0));
        low = low < 0.0 ? 0.0 : low;
        high = high > spec->head_dim - 1.0 ? spec->head_dim - 1.0 : high;
        high = high == low ? high + 0.001 : high;
        *scale = r->attention_factor > 0.0 ? r->attention_factor
                 : r->factor <= 1.0        ? 1.0
                                           : 0.1 * td_detmath_log(r->factor) + 1.0;
    }
    for (uint32_t i = 0; i < half; i++) {
        double f = td_detmath_exp(-2.0 * i / spec->head_dim * log_theta);

        if (r->freq_factors)
            f /= (double)r->freq_factors[i];
        if (r->scaling == TD_ROPE_LINEAR)
            f /= r->factor;
        else if (r->scaling == TD_ROPE_LLAMA3)
            f = llama3(r, f);
        else if (r->scaling == TD_ROPE_YARN) {
            double ramp = (i - low) / (high - low);

            ramp = ramp < 0.0 ? 0.0 : ramp > 1.0 ? 1.0 : ramp;
            f = f / r->factor * ramp + f * (1.0 - ramp);
        }
        freq[i] = f;
    }
}
