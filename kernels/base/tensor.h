/* A borrowed, read-only view of a dense row-major tensor. Never owns. */
#ifndef TD_KERNELS_BASE_TENSOR_H
#define TD_KERNELS_BASE_TENSOR_H

#include "kernels/base/dtype.h"

#include <stddef.h>

enum { TD_TENSOR_MAX_DIMS = 4 };

/* Rows are contiguous: element (i, j) of a matrix [dim[0] x dim[1]] lies in row i. dim[0] is outermost, as
 * Hugging Face writes shapes (GGUF's order is reversed by its reader). Unused dims are 1. */
struct td_tensor {
    const void *data; /* borrows; may be unaligned, since files promise nothing */
    enum td_dtype dtype;
    int n_dims;
    size_t dim[TD_TENSOR_MAX_DIMS];
    size_t bytes;
};

#endif
