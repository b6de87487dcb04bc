/* How a GPU is: power, temperature, clocks, errors, links, as NVIDIA's driver tells through NVML. The library is opened when it is
 * asked for, by prototypes of our own; nothing is linked. A question may take milliseconds, and more where a GPU is ill: not for the loop
 * thread. */
#ifndef TD_DAEMON_ENGINE_GPUHEALTH_H
#define TD_DAEMON_ENGINE_GPUHEALTH_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum td_gpu_figure {
    TD_GPU_POWER,           /* mW, now */
    TD_GPU_ENERGY,          /* mJ, since the driver was loaded */
    TD_GPU_TEMPERATURE,     /* degrees Celsius */
    TD_GPU_SM_CLOCK,        /* MHz, now */
    TD_GPU_MEMORY_CLOCK,    /* MHz, now */
    TD_GPU_ECC_CORRECTED,   /* errors of its memories, since the driver was loaded */
    TD_GPU_ECC_UNCORRECTED, /* the same that could not be corrected */
    TD_GPU_NVLINKS,         /* that are up */
    TD_GPU_NVLINK_ERRORS,   /* replays, recoveries, bad checksums, of all links */
    TD_GPU_N_FIGURES
};

struct td_gpuhealth_sample {
    uint32_t has; /* bits by figure: not every GPU tells all of them */
    uint64_t value[TD_GPU_N_FIGURES];
};

static inline bool td_gpuhealth_has(const struct td_gpuhealth_sample *s, enum td_gpu_figure figure)
{
    return s->has >> figure & 1;
}

struct td_gpuhealth;

/* `bus_id` as td_kern_bus_id has it. TD_NOT_FOUND: no NVML here; TD_CORRUPT: it lacks a function; TD_DEVICE: it refuses. */
enum td_status td_gpuhealth_open(const char *bus_id, struct td_gpuhealth **health,
                                 struct td_err *err);
void td_gpuhealth_close(struct td_gpuhealth *health); /* NULL is legal */
/* What cannot be had is left out. One thread at a time. */
void td_gpuhealth_read(struct td_gpuhealth *health, struct td_gpuhealth_sample *out);

#endif
