/* The processor's own counter, for measuring what is shorter than a look at the clock costs: a tenth of it. Its rate is found by
 * holding it against the clock over a long time; it runs evenly on all cores of the processors that this is built for. */
#ifndef TD_KERNELS_BASE_TICKS_H
#define TD_KERNELS_BASE_TICKS_H

#include "kernels/base/clock.h"

#include <stdint.h>

static inline uint64_t td_ticks_now(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;

    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return td_clock_now_ns();
#endif
}

/* When counting began: the two at the same time. */
struct td_ticks_base {
    uint64_t ns, ticks;
};

static inline struct td_ticks_base td_ticks_begin(void)
{
    return (struct td_ticks_base){td_clock_now_ns(), td_ticks_now()};
}

/* `ticks` in nanoseconds, at the mean rate since `base`: a millisecond later at the earliest that is right to a thousandth. */
static inline uint64_t td_ticks_ns(const struct td_ticks_base *base, uint64_t ticks)
{
    uint64_t ns = td_clock_now_ns() - base->ns, passed = td_ticks_now() - base->ticks;

    return passed ? (uint64_t)((double)ticks * (double)ns / (double)passed) : 0;
}

#endif
