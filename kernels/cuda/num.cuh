/* Numbers of a kernel: 16-bit floats in pairs, products of 16 x 16 by 16 x 8 on the tensor cores, and what a warp shares.
 * Every function gives the same bits on every call: fused multiply-adds are written as such (-fmad=false), nothing is flushed. */
#ifndef TD_KERNELS_CUDA_NUM_CUH
#define TD_KERNELS_CUDA_NUM_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#ifdef TD_GPUSIM
#include <simnum.h>
#else

__device__ __forceinline__ float td_num_bits(uint32_t u)
{
    return __uint_as_float(u);
}

__device__ __forceinline__ uint32_t td_num_f32_bits(float f)
{
    return __float_as_uint(f);
}

__device__ __forceinline__ float td_num_f16(uint16_t h)
{
    float f;

    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

/* To nearest, ties to even. */
__device__ __forceinline__ uint16_t td_num_to_f16(float f)
{
    uint16_t h;

    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

__device__ __forceinline__ uint16_t td_num_to_bf16(float f)
{
    uint16_t h;

    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

/* Pairs of F16: a - b, a * b. */
__device__ __forceinline__ uint32_t td_num_sub2(uint32_t a, uint32_t b)
{
    uint32_t c;

    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

__device__ __forceinline__ uint32_t td_num_mul2(uint32_t a, uint32_t b)
{
    uint32_t c;

    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

/* Bytes of a and b (0 .. 3 and 4 .. 7) that the nibbles of `selector` name. */
__device__ __forceinline__ uint32_t td_num_bytes(uint32_t a, uint32_t b, uint32_t selector)
{
    return __byte_perm(a, b, selector);
}

/* c += a * b on a whole warp: mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"). */
__device__ __forceinline__ void td_num_mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void td_num_mma_bf16(float c[4], const uint32_t a[4],
                                                const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Two 8 x 8 tables of 16 bits, one below the other, turned round: lanes 0 .. 15 name their rows in shared memory, 16 bytes each; b[i]
 * has rows 2t, 2t + 1 of table i and column g. (PTX ISA, ldmatrix) */
__device__ __forceinline__ void td_num_transposed(const uint16_t *row, uint32_t b[2])
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* Four such tables, whose rows lanes 8i .. 8i + 7 name; as they are: b[i] has row g of table i, columns 2t, 2t + 1; turned round as
 * above. */
__device__ __forceinline__ void td_num_tables(const uint16_t *row, uint32_t b[4])
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

__device__ __forceinline__ void td_num_tables_turned(const uint16_t *row, uint32_t b[4])
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* `low` and `high` as a pair, to nearest. */
__device__ __forceinline__ uint32_t td_num_to_f16x2(float low, float high)
{
    uint32_t pair;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ uint32_t td_num_to_bf16x2(float low, float high)
{
    uint32_t pair;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* 2 to the x, as near as the device's own instruction comes (2 ulp); only where results need not be exact. */
__device__ __forceinline__ float td_num_exp2_nearly(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The value of lane (this ^ mask). */
__device__ __forceinline__ float td_num_xor(float v, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, v, (int)mask);
}

__device__ __forceinline__ uint32_t td_num_xor(uint32_t v, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, v, (int)mask);
}

/* Begins to copy 16 aligned bytes of the device's memory into shared memory; zeros where `there` is false, and nothing is read. */
__device__ __forceinline__ void td_num_copy16(void *shared, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

/* Ends a batch of the thread's copies. */
__device__ __forceinline__ void td_num_copies_close(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all of the thread's batches but the latest N have come; other threads see them behind a __syncthreads. */
template <int N> __device__ __forceinline__ void td_num_copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Until all that was enqueued before the kernel is done and seen; from here on the next kernel may begin, as far as this. Every
 * thread of every kernel comes here before it reads or writes memory. (PTX ISA, griddepcontrol) */
__device__ __forceinline__ void td_num_await_earlier(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Brings whole 16 bytes of the device's memory into its cache: one thread for all, at any time. */
__device__ __forceinline__ void td_num_prefetch(const void *from, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#else
    (void)from;
    (void)bytes;
#endif
}

/* The block's dynamic shared memory. */
__device__ __forceinline__ void *td_num_shared(void)
{
    extern __shared__ __align__(16) unsigned char td_num_shared_memory[];

    return td_num_shared_memory;
}

#endif

/* (a & mask) | b, in one instruction. */
__device__ __forceinline__ uint32_t td_num_pick(uint32_t a, uint32_t mask, uint32_t b)
{
#if defined(__CUDA_ARCH__)
    uint32_t c;

    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(c) : "r"(a), "r"(mask), "r"(b));
    return c;
#else
    return (a & mask) | b;
#endif
}

/* Two E4M3 in the low half of `v` as a pair of F16; exact. Without an instruction for it (before sm_89) their bits are those of 2^-8 of
 * each, as F16 has it. */
__device__ __forceinline__ uint32_t td_num_e4m3x2(uint32_t v)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint32_t pair;

    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((uint16_t)v));
    return pair;
#else
    const uint32_t apart = (v & 0xffu) | (v & 0xff00u) << 8, rest = apart & 0x007f007fu;
    const uint32_t is_nan = (rest + 0x00010001u) >> 7 & 0x00010001u;

    return td_num_mul2((apart & 0x00800080u) << 8 | rest << 7, 0x5c005c00u) | is_nan * 0x7fffu;
#endif
}

/* To nearest, ties to even; 448 of its sign for what lies beyond. */
__device__ __forceinline__ uint8_t td_num_to_e4m3(float f)
{
    const uint32_t bits = td_num_f32_bits(f), sign = bits >> 24 & 0x80u, a = bits & 0x7fffffffu;
    uint32_t out;

    if (a > 0x7f800000u)
        out = 0x7f; /* no number */
    else if (a >= 0x43e00000u)
        out = 0x7e;
    else if (a < 0x3c800000u) /* below 2^-6: a multiple of 2^-9, rounded by the adder */
        out = td_num_f32_bits(td_num_bits(a) + 16384.0f) - 0x46800000u;
    else
        out = (a + 0x7ffffu + (a >> 20 & 1u) - 0x3c000000u) >> 20;
    return (uint8_t)(sign | out);
}

__device__ __forceinline__ float td_num_bf16(uint16_t h)
{
    return td_num_bits((uint32_t)h << 16);
}

/* e to the x, within 1 ulp over [-87, 88]: kernels/cpu/mathf.h's polynomial and its bits. */
__device__ __forceinline__ float td_num_exp(float x)
{
    float n, r, p;
    int i, half;

    if (x != x)
        return x;
    x = -104.0f > x ? -104.0f : x;
    x = 89.0f < x ? 89.0f : x;
    n = rintf(x * 1.44269504f);
    r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    p = fmaf(0.000198412698f, r, 0.00138888889f);
    p = fmaf(p, r, 0.00833333333f);
    p = fmaf(p, r, 0.0416666667f);
    p = fmaf(p, r, 0.166666667f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    i = (int)n;
    half = i >> 1;
    p *= td_num_bits((uint32_t)(half + 127) << 23);
    return p * td_num_bits((uint32_t)(i - half + 127) << 23);
}

__device__ __forceinline__ float td_num_silu(float gate, float up)
{
    return gate / (1.0f + td_num_exp(-gate)) * up;
}

/* cap tanh(x / cap), within 1e-7 cap; by_cap = 2 / cap. As kernels/cpu/mathf.h has it. */
__device__ __forceinline__ float td_num_softcap(float x, float cap, float by_cap)
{
    float e, y = x * by_cap;

    y = 40.0f < y ? 40.0f : y;
    e = td_num_exp(y);
    return (e - 1.0f) / (e + 1.0f) * cap;
}

/* The sum over all threads of a block of up to 32 whole warps, to all of them, in a fixed order; `scratch` [32] is shared and may
 * be used again after the next __syncthreads. */
__device__ __forceinline__ float td_num_block_sum(float v, float *scratch)
{
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32;
    float sum = 0.0f;

    for (uint32_t mask = 16; mask; mask >>= 1)
        v = v + td_num_xor(v, mask);
    if (threadIdx.x % 32 == 0)
        scratch[warp] = v;
    __syncthreads();
    for (uint32_t w = 0; w < warps; w++)
        sum = sum + scratch[w];
    return sum;
}

__device__ __forceinline__ uint32_t td_num_warp_max(uint32_t v)
{
    for (uint32_t mask = 16; mask; mask >>= 1) {
        const uint32_t other = td_num_xor(v, mask);

        v = other > v ? other : v;
    }
    return v;
}

/* The largest of a block, as above. */
__device__ __forceinline__ uint32_t td_num_block_max(uint32_t v, uint32_t *scratch)
{
    v = td_num_warp_max(v);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = v;
    __syncthreads();
    for (uint32_t w = 0; w < blockDim.x / 32; w++)
        v = scratch[w] > v ? scratch[w] : v;
    return v;
}

#endif
