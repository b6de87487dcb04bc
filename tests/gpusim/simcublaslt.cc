/* cuBLASLt for the simulated device: products of 16-bit numbers and of E4M3 with scales, the first matrix transposed. What is not aligned
 * as was said, or has an odd number of rows, of E4M3 one that is no multiple of 16, it does not take; nor runs of 128 of a number of
 * rows that is no multiple of four.
 * Scales lie as cuBLAS documents them: of blocks of 128 x 128 a line per 128 rows, filled up to a multiple of four, of runs of 128 a
 * line per run. */
#include <cuda_runtime.h>

#include "simcublaslt.h"

#include "kernels/base/half.h"
#include "kernels/quant/fp8.h"

#include <string.h>

struct simcublaslt_handle {
    int nothing;
};

struct simcublaslt_desc {
    cublasOperation_t op_a;
    cublasLtPointerMode_t pointers;
    int32_t a_mode, b_mode;
    const float *a_scale, *b_scale;
};

struct simcublaslt_layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};

struct simcublaslt_preference {
    uint32_t aligned[9]; /* by attribute */
};

namespace
{

bool is_aligned(const void *p, uint64_t bytes)
{
    return (uintptr_t)p % bytes == 0;
}

float number(cudaDataType_t type, const void *from, uint64_t i)
{
    return type == CUDA_R_8F_E4M3 ? td_e4m3_to_f32(((const uint8_t *)from)[i])
           : type == CUDA_R_16F   ? td_f16_to_f32(((const uint16_t *)from)[i])
                                  : td_bf16_to_f32(((const uint16_t *)from)[i]);
}

bool is_way(const simcublaslt_desc &d, cudaDataType_t type)
{
    if (type != CUDA_R_8F_E4M3)
        return d.a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F && d.b_mode == d.a_mode &&
               !d.a_scale && !d.b_scale;
    return is_aligned(d.a_scale, 16) && is_aligned(d.b_scale, 16) && d.a_scale && d.b_scale &&
           ((d.a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F && d.b_mode == d.a_mode) ||
            (d.a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F &&
             d.b_mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F));
}

/* Of column k of row r of a matrix with so many rows and columns. */
float scale(int32_t mode, const float *from, uint64_t rows, uint64_t cols, uint64_t r, uint64_t k)
{
    switch (mode) {
    case CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F:
        return from[r];
    case CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F:
        return from[k / 128 * rows + r];
    case CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F:
        return from[r / 128 * (((cols + 127) / 128 + 3) / 4 * 4) + k / 128];
    default:
        return 1.0f;
    }
}

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = new simcublaslt_handle();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    *desc = new simcublaslt_desc();
    return compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS
                                                                : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes)
{
    const struct {
        cublasLtMatmulDescAttributes_t name;
        void *to;
        size_t bytes;
    } attributes[] = {{CUBLASLT_MATMUL_DESC_POINTER_MODE, &desc->pointers, 4},
                      {CUBLASLT_MATMUL_DESC_TRANSA, &desc->op_a, 4},
                      {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &desc->a_scale, sizeof(void *)},
                      {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &desc->b_scale, sizeof(void *)},
                      {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &desc->a_mode, 4},
                      {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &desc->b_mode, 4}};

    for (const auto &a : attributes)
        if (a.name == name && a.bytes == bytes) {
            memcpy(a.to, value, bytes);
            return CUBLAS_STATUS_SUCCESS;
        }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    *layout = new simcublaslt_layout{type, rows, cols, ld};
    return ld >= (int64_t)rows ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    *preference = new simcublaslt_preference();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes)
{
    if (bytes != (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8u : 4u))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&preference->aligned[name], value, 4);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t *results, int *n)
{
    const bool fits =
        desc->op_a == CUBLAS_OP_T && a->rows == b->rows && a->cols == d->rows &&
        b->cols == d->cols && a->type == b->type && c == d &&
        (d->type == CUDA_R_32F || (d->type == CUDA_R_16BF && a->type != CUDA_R_16F)) &&
        is_way(*desc, a->type);

    (void)handle;
    *n = 0;
    if (!fits || most < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (d->rows % (a->type == CUDA_R_8F_E4M3 ? 16 : 2) ||
        (desc->b_mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F && d->cols % 4))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(results, 0, sizeof *results);
    for (uint32_t i = 0; i < 3; i++) /* what the product is then held to */
        results->algo.data[i] =
            preference->aligned[CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i + (i == 2)];
    *n = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    const simcublaslt_layout la = *a_layout, lb = *b_layout, ld = *d_layout;
    const simcublaslt_desc how = *desc;
    const bool on_device = how.pointers == CUBLASLT_POINTER_MODE_DEVICE;
    const float host_alpha = on_device ? 0.0f : *(const float *)alpha;
    const float host_beta = on_device ? 0.0f : *(const float *)beta;

    (void)handle;
    (void)c;
    (void)c_layout;
    if (!is_aligned(a, algo->data[0]) || !is_aligned(b, algo->data[1]) ||
        !is_aligned(d, algo->data[2]) || !is_way(how, la.type))
        return CUBLAS_STATUS_INVALID_VALUE;
    gpusim_enqueue(stream, [=] {
        const float by = on_device ? *(const float *)alpha : host_alpha;

        memset(workspace, 0xa5, workspace_bytes);
        if ((on_device ? *(const float *)beta : host_beta) != 0.0f)
            return cudaErrorInvalidValue;
        for (uint64_t t = 0; t < ld.cols; t++)
            for (uint64_t r = 0; r < ld.rows; r++) {
                double sum = 0.0;

                for (uint64_t k = 0; k < la.rows; k++)
                    sum += (double)number(la.type, a, r * (uint64_t)la.ld + k) *
                           (double)number(lb.type, b, t * (uint64_t)lb.ld + k) *
                           (double)scale(how.a_mode, how.a_scale, ld.rows, la.rows, r, k) *
                           (double)scale(how.b_mode, how.b_scale, ld.cols, lb.rows, t, k);
                const uint64_t at = t * (uint64_t)ld.ld + r;
                const float value = (float)(sum * (double)by);

                if (ld.type == CUDA_R_32F)
                    ((float *)d)[at] = value;
                else
                    ((uint16_t *)d)[at] = td_f32_to_bf16(value);
            }
        return cudaSuccess;
    });
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
