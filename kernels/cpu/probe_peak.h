/* How fast one thread can do each kind of multiply-add that the kernels are made of: registers only, no memory.
 * Pure and single-threaded; probe.c spreads it over threads. The instruction is chosen at run time by what CPU and operating
 * system have. */
#ifndef TD_KERNELS_CPU_PROBE_PEAK_H
#define TD_KERNELS_CPU_PROBE_PEAK_H

#include <stdint.h>

/* What is multiplied. A multiplication and its addition are two operations. */
enum td_peak {
    TD_PEAK_INT8, /* unsigned by signed bytes into int32 */
    TD_PEAK_BF16, /* BF16 pairs into F32 */
    TD_PEAK_F32,
    TD_PEAK_AMX_INT8, /* tiles: what the vector kernels do not use */
    TD_PEAK_AMX_BF16,
    TD_N_PEAKS
};

/* "int8", "bf16", "f32", "amx-int8", "amx-bf16". */
const char *td_probe_peak_name(enum td_peak kind);
/* The instruction that is measured, "vpdpbusd zmm"; NULL where this CPU has none for it. */
const char *td_probe_peak_instruction(enum td_peak kind);
/* Runs one piece of about 0.1 ms on this thread. Returns how many operations it was; 0 where there is no instruction. */
uint64_t td_probe_peak_run(enum td_peak kind);

#endif
