/* Activations as products read them: the columns lie as the tiles of a matrix have them, rounded to the form that its type wants.
 * F16 has a power of two per leaf, which is never split, so that no rank's share of a row decides about another's. */
#ifndef TD_KERNELS_CUDA_ACTS_CUH
#define TD_KERNELS_CUDA_ACTS_CUH

#include "kernels/cuda/device.cuh"

/* All tokens in one form and cut. */
struct td_cuda_acts {
    uint8_t *x; /* [n x n_tiles x 32] F32, BF16, F16 or E4M3 */
    /* What a sum is multiplied with: F16 [n x n_leaves]; E4M3 [n]; of runs [runs x n]; else NULL. */
    float *scale;
    const float *flat; /* what all of that is; NULL: it differs */
    float *sums; /* [n x n_tiles] of each tile's columns, times 2^-24; NULL: no type has minima */
    const struct td_cuda_tile *tile; /* [n_tiles] */
    const uint32_t *leaf_end;        /* [n_leaves] in tiles */
    uint32_t n_tiles, n_leaves;
    enum td_cuda_act form;
};

/* The activations of a call, in every form and cut that its matrices want. */
struct td_cuda_actset {
    struct {
        const struct td_cuda_matrix *m; /* whose cut it is */
        bool mins;                      /* a matrix wants the sums */
        struct td_cuda_acts acts;
    } item[2 * TD_KERN_MAX_OUTPUTS];
    uint32_t n;
};

__host__ __device__ static inline uint32_t td_cuda_runs(uint32_t n_tiles)
{
    return (n_tiles + TD_CUDA_RUN_TILES - 1) / TD_CUDA_RUN_TILES;
}

/* The place in the set of `m`'s columns in a form, which it then has. */
uint32_t td_cuda_acts_for(struct td_cuda_actset *set, const struct td_matrix *m,
                          enum td_cuda_act form);
/* Enqueues what fills the set from n rows; its memory is the device's scratch. TD_NO_MEMORY. */
enum td_status td_cuda_acts_prepare(struct td_cuda *cuda, const struct td_kern_input *in,
                                    uint32_t n, uint32_t n_cols, struct td_cuda_actset *set,
                                    struct td_err *err);

#endif
