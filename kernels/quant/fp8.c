#include "kernels/quant/fp8.h"

#include <float.h>
#include <math.h>

float td_fp8_scale(const float *src, size_t stride, size_t n_rows, size_t n_cols)
{
    float largest = 0;

    for (size_t r = 0; r < n_rows; r++)
        for (size_t c = 0; c < n_cols; c++)
            largest = fabsf(src[r * stride + c]) > largest ? fabsf(src[r * stride + c]) : largest;
    largest /= TD_FP8_E4M3_MAX;
    return largest > FLT_MIN ? largest : FLT_MIN;
}

void td_fp8_encode(const float *src, size_t stride, size_t n_rows, size_t n_cols, float scale,
                   uint8_t *dst, size_t dst_stride)
{
    for (size_t r = 0; r < n_rows; r++)
        for (size_t c = 0; c < n_cols; c++)
            dst[r * dst_stride + c] = td_f32_to_e4m3(src[r * stride + c] / scale);
}
