/* How the device holds weights, in numbers that a plan needs before there is a device (matrix.cuh says what lies where). C and CUDA. */
#ifndef TD_KERNELS_CUDA_FORMATS_H
#define TD_KERNELS_CUDA_FORMATS_H

enum {
    TD_TILE_ROWS = 16,
    TD_TILE_COLS = 32,
    TD_CUDA_PARTIAL_BYTES = 64 << 20, /* most that attention keeps of runs of keys */
    TD_CUDA_SPLIT_BYTES = 16 << 20,   /* that pieces of a linear step's sums have */
    TD_CUDA_LIB_TOKENS = 256,         /* of a call that NVIDIA's library takes, if it may */
    TD_CUDA_UNPACKED_BYTES =
        145
        << 20 /* that it needs: 4,096 rows of 14,336 columns, their scales, and 32 MiB to work in */
};

/* Calls X(type, form of its activations, tile_bytes, scale_bytes of a tile, super_tiles, super_bytes, halves, mins) for every type that
 * the device holds. */
#define TD_CUDA_FORMATS(X)                                                                         \
    X(TD_F32, TD_CUDA_PLAIN, 2048, 0, 0, 0, false, false)                                          \
    X(TD_F16, TD_CUDA_F16, 1024, 0, 0, 0, false, false)                                            \
    X(TD_BF16, TD_CUDA_BF16, 1024, 0, 0, 0, false, false)                                          \
    X(TD_Q8_0, TD_CUDA_F16, 512, 32, 0, 0, false, false)                                           \
    X(TD_Q4_0, TD_CUDA_F16, 256, 32, 0, 0, false, false)                                           \
    X(TD_MXFP4, TD_CUDA_F16, 256, 32, 0, 0, false, false)                                          \
    X(TD_INT4, TD_CUDA_F16, 256, 48, 0, 0, false, false)                                           \
    X(TD_Q4_K, TD_CUDA_F16, 256, 32, 8, 64, false, true)                                           \
    X(TD_Q5_K, TD_CUDA_F16, 320, 32, 8, 64, false, true)                                           \
    X(TD_Q6_K, TD_CUDA_F16, 384, 32, 8, 32, true, false)                                           \
    X(TD_F8_E4M3, TD_CUDA_F16, 512, 0, 4, 64, false, false)

/* The same for types of keys and values. */
#define TD_CUDA_EACH_KV(X) X(TD_F32) X(TD_F16) X(TD_BF16) X(TD_Q8_0) X(TD_F8_E4M3)

#endif
