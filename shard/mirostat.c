#include "shard/mirostat.h"

#include "kernels/detmath.h"

#define LN_2 0.693147180559945309417

double td_mirostat_start(float tau)
{
    return 2.0 * (double)tau;
}

double td_mirostat_next(double mu, float tau, float eta, double whole, double weight)
{
    double surprise = td_detmath_log(whole / weight) / LN_2;

    return mu - (double)eta * (surprise - (double)tau);
}

double td_mirostat_least_share(double mu)
{
    return td_detmath_exp(-mu * LN_2);
}

/* Section 4 of the paper: least squares of the log ratios of neighbours against those of their ranks. */
static double zipf_exponent(const float *logits, uint32_t n, double inv_t)
{
    double tb = 0, tt = 0;

    for (uint32_t i = 0; i + 1 < n; i++) {
        double t = td_detmath_log((double)(i + 2) / (double)(i + 1));
        double b = ((double)logits[i] - (double)logits[i + 1]) * inv_t;

        tb += t * b;
        tt += t * t;
    }
    return tb / tt;
}

uint32_t td_mirostat_k(const float *logits, uint32_t n, double inv_t, double mu, uint32_t n_vocab)
{
    double s = zipf_exponent(logits, n, inv_t);
    double epsilon = s - 1;
    double log_n = td_detmath_log((double)n_vocab);
    /* epsilon / (1 - N^-epsilon), whose limit at 0 is 1 / log N. */
    double ratio = epsilon < 1e-9 && epsilon > -1e-9
                       ? 1 / log_n
                       : epsilon / (1 - td_detmath_exp(-epsilon * log_n));
    double k = td_detmath_exp((td_detmath_log(ratio) + mu * LN_2) / s);

    if (!(k >= 1)) /* also when there were fewer than two logits, and s is no number */
        return 1;
    return k < (double)n_vocab ? (uint32_t)k : n_vocab;
}
