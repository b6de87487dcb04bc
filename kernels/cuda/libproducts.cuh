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
/* The activations that a matrix of F8_E4M3 gets in a call of n tokens, whose results come to `out` (only its alignment counts): E4M3 where
 * its scales and the library allow it, else its own. */
enum td_cuda_act td_cuda_lib_form(struct td_cuda *cuda, const struct td_cuda_matrix *m, uint32_t n,
                                  const float *out);
/* Gives all F16 rows of the set one scale, as it needs them. */
void td_cuda_lib_flatten(struct td_cuda *cuda, struct td_cuda_actset *set, uint32_t n);
/* False: it is to be done otherwise, for the library has nothing for the shape or the call is too small. p->gate is not there. */
bool td_cuda_lib_multiply(struct td_cuda *cuda, enum td_dtype type,
                          const struct td_cuda_product *p);
/* p->out = silu(gate's product) times p's, by way of BF16 at gate->out, where both find room. False: it is to be done otherwise, for the
 * library has nothing for it. */
bool td_cuda_lib_gated(struct td_cuda *cuda, enum td_dtype gate_type,
                       const struct td_cuda_product *gate, enum td_dtype type,
                       const struct td_cuda_product *p);

/* ---- rows of a matrix as the library reads them (unpacking.cu) ---- */

/* Rows of groups [group0, group0 + n_groups), columns of tiles [tile0, tile0 + n_tiles), in the tiles' order: out
 * [.. x n_tiles * 32] BF16 or F16. Every type but F32. */
void td_cuda_unpack_rows(struct td_cuda *cuda, enum td_dtype type, const struct td_cuda_weights &m,
                         uint32_t group0, uint32_t n_groups, uint32_t tile0, uint32_t n_tiles,
                         uint16_t *out);
/* The same of F8_E4M3: E4M3, and their scales: one per row, or, with `by_block`, [blocks of 128 rows x blocks of 128 columns, filled
 * up to a multiple of four]. */
void td_cuda_unpack_bytes(struct td_cuda *cuda, const struct td_cuda_weights &m, uint32_t group0,
                          uint32_t n_groups, uint32_t tile0, uint32_t n_tiles, bool by_block,
                          uint8_t *out, float *scales);

#endif
