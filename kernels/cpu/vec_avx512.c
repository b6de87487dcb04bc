/* AVX-512 with VNNI; BF16 products are two multiply-adds. */
#define TD_BF16_PAIRS 0
#include "kernels/cpu/vec512.h"

const struct td_cpu_isa td_cpu_isa_avx512 = {
    .name = "avx512",
    .available = has_avx512,
    .worthwhile = NULL,
    .bf16_pairs = TD_BF16_PAIRS,
    .max_tile = {TD_TILE_FLOAT, TD_TILE_FLOAT, TD_TILE_INT, TD_TILE_INT},
    .gather = gather,
    .prepare = prepare,
    .product = product,
    .rmsnorm = rmsnorm,
    .silu_mul = silu_mul,
    .add = add,
    .attend = attend,
};
