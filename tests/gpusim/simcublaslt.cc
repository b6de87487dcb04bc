/* cuBLASLt for the simulated device: products of 16-bit numbers, the first matrix transposed, numbers on the device. What is not aligned
 * as was said, or has an odd number of rows, it does not take. */
#include <cuda_runtime.h>

#include "simcublaslt.h"

#include "kernels/base/half.h"

#include <string.h>

struct simcublaslt_handle {
    int nothing;
};

struct simcublaslt_desc {
    cublasOperation_t op_a;
    cublasLtPointerMode_t pointers;
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

float number(cudaDataType_t type, uint16_t bits)
{
    return type == CUDA_R_16F ? td_f16_to_f32(bits) : td_bf16_to_f32(bits);
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
    if (bytes != 4)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(name == CUBLASLT_MATMUL_DESC_TRANSA ? (void *)&desc->op_a : (void *)&desc->pointers,
           value, bytes);
    return CUBLAS_STATUS_SUCCESS;
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
    const bool fits = desc->op_a == CUBLAS_OP_T && a->rows == b->rows && a->cols == d->rows &&
                      b->cols == d->cols && a->type == b->type && d->type == CUDA_R_32F && c == d;

    (void)handle;
    *n = 0;
    if (!fits || most < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (d->rows % 2)
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

    (void)handle;
    (void)c;
    (void)c_layout;
    if (desc->pointers != CUBLASLT_POINTER_MODE_DEVICE || !is_aligned(a, algo->data[0]) ||
        !is_aligned(b, algo->data[1]) || !is_aligned(d, algo->data[2]))
        return CUBLAS_STATUS_INVALID_VALUE;
    gpusim_enqueue(stream, [=] {
        const uint16_t *w = (const uint16_t *)a, *x = (const uint16_t *)b;

        memset(workspace, 0xa5, workspace_bytes);
        if (*(const float *)beta != 0.0f)
            return cudaErrorInvalidValue;
        for (uint64_t t = 0; t < ld.cols; t++)
            for (uint64_t r = 0; r < ld.rows; r++) {
                double sum = 0.0;

                for (uint64_t k = 0; k < la.rows; k++)
                    sum += (double)number(la.type, w[r * (uint64_t)la.ld + k]) *
                           (double)number(lb.type, x[t * (uint64_t)lb.ld + k]);
                ((float *)d)[t * (uint64_t)ld.ld + r] =
                    (float)(sum * (double)*(const float *)alpha);
            }
        return cudaSuccess;
    });
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
