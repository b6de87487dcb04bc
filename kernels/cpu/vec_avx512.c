/* AVX-512 with VNNI; BF16 products are two multiply-adds. */
#define TD_BF16_PAIRS 0
#include "kernels/cpu/vec512.h"

#include "kernels/cpu/isa_body.h"

TD_CPU_ISA(avx512, "avx512", has_avx512);
