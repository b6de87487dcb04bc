/* The program's own C headers, for the C++ of the plug-in. */
#ifndef TD_KERNELS_CUDA_CLIB_H
#define TD_KERNELS_CUDA_CLIB_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
#include "kernels/cuda/cudaplug.h"
#include "kernels/kern_ops.h"
}

#endif
