/* Scales of FP8 matrices in Hugging Face directories: one per tensor, one per output row, or one per block of 128 x 128.
 * A stored E4M3 value times its scale is the weight, under either name that checkpoints use (weight_scale, weight_scale_inv:
 * vLLM, transformers and compressed-tensors agree). Stateless, any thread. */
#ifndef TD_SHARD_SCALES_H
#define TD_SHARD_SCALES_H

#include "kernels/base/err.h"
#include "kernels/base/tensor.h"

#include <stdint.h>

enum { TD_SCALES_BLOCK = 128 };

/* Whether `scale` has a type (F32, BF16, F16) and a shape that fit `weight` [rows x cols]: one number, [1], [rows],
 * [rows x 1] or [ceil(rows / 128) x ceil(cols / 128)]. TD_CORRUPT with `name` (the scale's), its shape and what was
 * expected. */
enum td_status td_scales_check(const struct td_tensor *weight, const struct td_tensor *scale,
                               const char *name, struct td_err *err);

/* out [n_rows x ceil(n_cols / 128)] for rows from row0 and columns from col0, a multiple of 128: the seam's form
 * (kernels/kern.h). Both tensors have passed the check. TD_CORRUPT for a scale that is not finite. */
enum td_status td_scales_spread(const struct td_tensor *weight, const struct td_tensor *scale,
                                uint32_t row0, uint32_t n_rows, uint32_t col0, uint32_t n_cols,
                                float *out, struct td_err *err);

#endif
