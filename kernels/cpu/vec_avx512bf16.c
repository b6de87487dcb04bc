/* BF16 products by AVX-512's BF16 dot product. vdpbf16ps is fma(even, fma(odd, acc)) with subnormals flushed, so the bits are
 * those of the other files. */
#define TD_BF16_PAIRS 1
#include "kernels/cpu/vec512.h"

#include "kernels/cpu/bf16_body.h"

#include "kernels/base/clock.h"

static bool available(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

#define EIGHT(op)                                                                                  \
    op " %%zmm16,%%zmm16,%%zmm0\n" op " %%zmm16,%%zmm16,%%zmm1\n" op                               \
       " %%zmm16,%%zmm16,%%zmm2\n" op " %%zmm16,%%zmm16,%%zmm3\n" op                               \
       " %%zmm16,%%zmm16,%%zmm4\n" op " %%zmm16,%%zmm16,%%zmm5\n" op                               \
       " %%zmm16,%%zmm16,%%zmm6\n" op " %%zmm16,%%zmm16,%%zmm7\n"

/* On some processors one vdpbf16ps takes longer than the two vfmadd that give the same sum. */
static bool beats_fma(void)
{
    uint64_t best[2] = {UINT64_MAX, UINT64_MAX};

    for (int round = 0; round < 6; round++) {
        uint64_t start = td_clock_now_ns(), middle, end;

        __asm__ volatile("vpxord %%zmm16,%%zmm16,%%zmm16" ::: "xmm16");
        for (int i = 0; i < 500; i++)
            __asm__ volatile(EIGHT("vdpbf16ps")::
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
        middle = td_clock_now_ns();
        for (int i = 0; i < 1000; i++)
            __asm__ volatile(EIGHT("vfmadd231ps")::
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
        end = td_clock_now_ns();
        best[0] = middle - start < best[0] ? middle - start : best[0];
        best[1] = end - middle < best[1] ? end - middle : best[1];
    }
    return best[0] < best[1];
}

const struct td_cpu_bf16_unit td_cpu_avx512bf16 = {
    .available = available,
    .beats_fma = beats_fma,
    .bf16 = {.pairs = TD_BF16_PAIRS, .prepare = prepare_bf16, .product = product_of_bf16},
};
