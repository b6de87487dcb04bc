#include "comm/nccl/peersum.h"

#include <cuda_runtime.h>

#ifdef TD_GPUSIM
#include <sched.h>
#endif

namespace
{

enum { THREADS = 128, UNIT = 32 /* floats; no two blocks share a line of memory */, LOOKS = 256 };

static_assert(sizeof(struct td_peersum) <= 4096, "a kernel's parameters are at most 4 KiB");
static_assert(offsetof(struct td_peersum_memory, slot) == 4096, "slots begin on a page");

/* The next kernel may begin, as far as the place where it awaits this one: it asks for its weights while ranks wait for each other here.
 * (PTX ISA, griddepcontrol) */
__device__ __forceinline__ void let_next_begin(void)
{
#if !defined(TD_GPUSIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Everything written before by this thread, and by those that it has met since, is seen by who sees `value`. */
__device__ __forceinline__ void put(uint32_t *at, uint32_t value)
{
#ifdef TD_GPUSIM
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
#else
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
#endif
}

__device__ __forceinline__ uint32_t look(const uint32_t *at)
{
#ifdef TD_GPUSIM
    sched_yield();
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
#else
    uint32_t value;

    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
#endif
}

/* False: not to be waited for any more. */
__device__ bool await_turn(const uint32_t *flag, uint32_t turn, const uint32_t *is_ended)
{
    for (uint32_t n = 1; (int32_t)(look(flag) - turn) < 0; n++)
        if (n % LOOKS == 0 && look(is_ended))
            return false;
    return true;
}

/* Four floats at a time where LANES is 4: all parts are aligned then, and have a multiple of four floats. */
template <int LANES>
__global__ void __launch_bounds__(THREADS) sum_of_peers(const __grid_constant__ struct td_peersum s)
{
    __shared__ uint32_t is_left;
    struct td_peersum_memory *own = s.of[s.rank];
    const uint32_t block = blockIdx.x, thread = threadIdx.x;
    const size_t n_units = (s.n_floats + UNIT - 1) / UNIT;
    const size_t begin = n_units * block / TD_PEERSUM_BLOCKS * UNIT;
    const size_t ends = n_units * (block + 1) / TD_PEERSUM_BLOCKS * UNIT;
    const size_t end = ends < s.n_floats ? ends : s.n_floats;
    const uint32_t turn = own->turn[block] + 1, slot = turn % TD_PEERSUM_SLOTS;

    let_next_begin();
    for (uint32_t k = 0; k < s.n_own; k++)
        for (size_t i = begin + thread * LANES; i < end; i += THREADS * LANES) {
            const size_t at = k * s.n_floats + i;

            if (LANES == 4)
                *(float4 *)(own->slot[slot] + at) = *(const float4 *)(s.parts + at);
            else
                own->slot[slot][at] = s.parts[at];
        }
    if (thread == 0)
        is_left = 0;
    __syncthreads();
    if (thread < s.n_ranks && thread != s.rank)
        put(&s.of[thread]->arrived[s.rank][block], turn);
    __syncthreads(); /* all are told before anybody is waited for */
    if (thread < s.n_ranks && thread != s.rank &&
        !await_turn(&own->arrived[thread][block], turn, s.is_ended))
        is_left = 1;
    __syncthreads();
    if (thread == 0)
        own->turn[block] = turn;
    if (is_left)
        return;
    for (size_t i = begin + thread * LANES; i < end; i += THREADS * LANES) {
        float sum[LANES];

        td_treestack_run(&s.join[slot], i, LANES, sum);
        if (LANES == 4)
            *(float4 *)(s.out + i) =
                make_float4(sum[0], sum[1 % LANES], sum[2 % LANES], sum[3 % LANES]);
        else
            s.out[i] = sum[0];
    }
}

bool is_aligned(const void *data)
{
    return (size_t)data % sizeof(float4) == 0;
}

/* Returns the launch's own error, where the last error could be an older one of somebody else. */
cudaError_t launch(void (*kernel)(struct td_peersum), struct td_peersum sum, cudaStream_t stream)
{
#ifdef TD_GPUSIM
    return gpusim_launch(stream, kernel, dim3(TD_PEERSUM_BLOCKS), dim3(THREADS), 0, false, sum);
#else
    void *args[] = {&sum};

    return cudaLaunchKernel((const void *)kernel, dim3(TD_PEERSUM_BLOCKS), dim3(THREADS), args, 0,
                            stream);
#endif
}

} // namespace

int td_peersum_enqueue(const struct td_peersum *sum, void *stream)
{
    const bool in_fours = sum->n_floats % 4 == 0 && is_aligned(sum->out) &&
                          (sum->n_own == 0 || is_aligned(sum->parts));

    return launch(in_fours ? sum_of_peers<4> : sum_of_peers<1>, *sum, (cudaStream_t)stream);
}
