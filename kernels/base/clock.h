/* Monotonic time. The only place that asks the operating system for it. */
#ifndef TD_KERNELS_BASE_CLOCK_H
#define TD_KERNELS_BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds since an arbitrary start; never goes back. Any thread. */
uint64_t td_clock_now_ns(void);

#endif
