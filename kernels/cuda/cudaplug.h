/* What the plug-in libtensord_cuda.so offers to kernels/cudaload.c: devices, each behind the table of kernels/kern_ops.h, without
 * a header of CUDA. */
#ifndef TD_KERNELS_CUDA_CUDAPLUG_H
#define TD_KERNELS_CUDA_CUDAPLUG_H

#include "kernels/kern.h"

/* Counts changes of this header, kern.h and kern_ops.h: both sides must have been built from the same ones. */
enum { TD_CUDAPLUG_ABI = 6 };
/* The one symbol: `const struct td_cudaplug td_cudaplug`. */
#define TD_CUDAPLUG_SYMBOL "td_cudaplug"

struct td_cudaplug {
    uint32_t abi;
    int cuda_version; /* CUDART_VERSION that it was built with, 13000 */
    /* Devices that there are. TD_UNAVAILABLE: no driver, or one too old, or none to see. */
    enum td_status (*count)(uint32_t *n, struct td_err *err);
    /* Opens params->device. TD_INVALID: no such device; TD_UNSUPPORTED: too old for the kernels that are built in; TD_DEVICE. */
    enum td_status (*open)(const struct td_kern_cuda_params *params, struct td_kern **kern,
                           struct td_err *err);
};

#endif
