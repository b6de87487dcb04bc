/* What the tests of the sampler share: random numbers and samplers that must open. */
#ifndef TD_TESTS_SAMPLER_CHECK_H
#define TD_TESTS_SAMPLER_CHECK_H

#include "shard/sampler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static uint64_t rng_state;

static inline uint64_t rng(void)
{
    uint64_t z = (rng_state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline double rng_unit(void)
{
    return (double)(rng() >> 11) * 0x1p-53;
}

static inline struct td_sampler *open_sampler(const struct td_sampling *p, uint32_t n_vocab)
{
    struct td_sampler *s = NULL;
    struct td_err err = {0};

    if (td_sampler_open(p, n_vocab, &s, &err))
        fail_msg("%s", err.cause);
    return s;
}

#endif
