/* Products of many tokens by NVIDIA's library, where bits may depend on who is in the call (td_kern_cuda_params.inexact_from). */
#ifndef TD_KERNELS_CUDA_LIBPRODUCTS_CUH
#define TD_KERNELS_CUDA_LIBPRODUCTS_CUH

#include "kernels/cuda/products.cuh"

/* Opens the library. TD_NOT_FOUND, TD_CORRUPT: it is no such library; TD_DEVICE. */
enum td_status td_cuda_lib_open(struct td_cuda *cuda, struct td_err *err);
void td_cuda_lib_close(struct td_cuda *cuda); /* legal without one */
/* Whether a call of so many tokens is the library's. */
static inline bool td_cuda_lib_takes(const struct td_cuda *cuda, uint32_t n)
{
    return cuda->lib && n >= cuda->p.inexact_from;
}
/* Gives all F16 rows of the set one scale, as it needs them. */
void td_cuda_lib_flatten(struct td_cuda *cuda, struct td_cuda_actset *set, uint32_t n);
/* False: nothing was enqueued, because the library has nothing for the shape or the call is too small. p->gate is not there. */
bool td_cuda_lib_multiply(struct td_cuda *cuda, enum td_dtype type,
                          const struct td_cuda_product *p);

#endif
