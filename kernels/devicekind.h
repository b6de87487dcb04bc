/* Kinds of devices, as a plan sees them that has none at hand: what they hold, and in how many bytes. */
#ifndef TD_KERNELS_DEVICEKIND_H
#define TD_KERNELS_DEVICEKIND_H

#include "kernels/base/dtype.h"

#include <stdbool.h>
#include <stddef.h>

enum td_devicekind { TD_ON_CPU, TD_ON_CUDA };

const char *td_devicekind_name(enum td_devicekind kind); /* "cpu" */
/* Of "cpu", "cuda" and "cuda:N"; NULL: a CPU. False: it is none of them. */
bool td_devicekind_of(const char *device, enum td_devicekind *kind);
/* Whether matrices, and keys and values, of `type` can be held. */
bool td_devicekind_holds(enum td_devicekind kind, enum td_dtype type);
bool td_devicekind_caches(enum td_devicekind kind, enum td_dtype type);
/* Bytes that a matrix takes whose columns are cut into leaves of leaf_cols (the last may be shorter); 0 where it is not held or
 * a row is no whole number of the type's blocks. */
size_t td_devicekind_matrix_bytes(enum td_devicekind kind, enum td_dtype type, size_t n_rows,
                                  size_t n_cols, size_t leaf_cols);
/* Bytes that operations on n rows of up to n_cols take for themselves, with what inexact ones would. */
size_t td_devicekind_scratch_bytes(enum td_devicekind kind, size_t n, size_t n_cols);

#endif
