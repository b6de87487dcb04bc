/* Versions of the GPU's libraries on this host, asked of them when they are there: NCCL, and NVIDIA's driver through NVML. Opens
 * them for the question only; nothing is linked. May take a moment, so not on the start of a group. */
#ifndef TD_DAEMON_ENGINE_GPULIBS_H
#define TD_DAEMON_ENGINE_GPULIBS_H

#include <stddef.h>

/* "2.18.3"; "none" without a library, "unknown" where it does not answer. */
void td_gpulibs_nccl(char *out, size_t out_bytes);
void td_gpulibs_driver(char *out, size_t out_bytes);
/* NCCL's number as text: 21803 is 2.18.3, before 2.9 2708 was 2.7.8 (NCCL_VERSION of nccl.h). */
void td_gpulibs_nccl_text(int code, char *out, size_t out_bytes);

#endif
