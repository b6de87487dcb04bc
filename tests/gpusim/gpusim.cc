/* Kernels of cuda_runtime.h: blocks one after the other, their threads as fibers. */
#include <cuda_runtime.h>
#include <simnum.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <mutex>

struct gpusim_place gpusim_place;
struct gpusim_thread gpusim_thread;

namespace
{

enum {
    MAX_THREADS = 1024,
    STACK_BYTES = 128 << 10,
    WARP_WORDS = 8,
    MAX_COPIES = 128,
    SHARED_BYTES = GPUSIM_SHARED_BYTES
};

enum state { RUNS, IN_WARP, IN_BLOCK, ENDED };

struct fiber {
    void *at; /* its stack pointer while another runs */
    enum state state;
    uint32_t n_copies, n_closed; /* under way, and batches that were closed */
    bool awaited;                /* what was enqueued before the kernel */
};

struct pending {
    void *to;
    const void *from; /* NULL: zeros */
    uint32_t batch;
};

struct fiber fibers[MAX_THREADS];
struct pending pending[MAX_THREADS][MAX_COPIES];
uint8_t *stacks;
void *scheduler;
uint32_t n_threads, words[MAX_THREADS][WARP_WORDS];
uint32_t random_state = 1;
void (*entry)(void *);
void *entry_arg;
alignas(16) uint8_t shared[SHARED_BYTES];

} // namespace

/* Changes stacks: what a call must keep is pushed, the old stack pointer goes to *from, the new one is `to`. */
extern "C" void gpusim_switch(void **from, void *to);
#if defined(__x86_64__)
asm(".text\n.globl gpusim_switch\n.type gpusim_switch, @function\ngpusim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size gpusim_switch, .-gpusim_switch\n");
#else
#error "gpusim: how are stacks changed here?"
#endif

namespace
{

uint32_t next_random(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

void pause_as(enum state state)
{
    struct fiber *me = &fibers[gpusim_thread.x];

    me->state = state;
    gpusim_switch(&me->at, scheduler);
}

void first(void)
{
    entry(entry_arg);
    pause_as(ENDED);
    abort();
}

void prepare_fiber(uint32_t i)
{
    void **top = (void **)(stacks + (size_t)(i + 1) * STACK_BYTES) - 8;

    memset(top, 0, 8 * sizeof *top);
    top[6] = (void *)first; /* what the switch returns to; the stack is as after a call then */
    fibers[i] = {top, RUNS, 0, 0, false};
}

/* Lets go who waits for others that are all there. False: nobody can go on. */
bool release(void)
{
    bool any = false, block = true;

    for (uint32_t w = 0; w < n_threads; w += 32) {
        const uint32_t end = w + 32 < n_threads ? w + 32 : n_threads;
        bool warp = true;

        for (uint32_t i = w; i < end; i++)
            warp = warp && fibers[i].state == IN_WARP;
        for (uint32_t i = w; i < end && warp; i++)
            fibers[i].state = RUNS;
        any = any || warp;
    }
    for (uint32_t i = 0; i < n_threads; i++)
        block = block && (fibers[i].state == IN_BLOCK || fibers[i].state == ENDED);
    for (uint32_t i = 0; i < n_threads && block; i++)
        if (fibers[i].state == IN_BLOCK) {
            fibers[i].state = RUNS;
            any = true;
        }
    return any;
}

bool all_ended(void)
{
    for (uint32_t i = 0; i < n_threads; i++)
        if (fibers[i].state != ENDED)
            return false;
    return true;
}

/* One block, from whichever thread chance says. Returns what went wrong, else NULL. */
const char *run_block(bool early)
{
    for (uint32_t i = 0; i < n_threads; i++)
        prepare_fiber(i);
    while (!all_ended()) {
        const uint32_t from = next_random() % n_threads,
                       step = next_random() % 2 ? 1 : n_threads - 1;
        bool any = false;

        for (uint32_t k = 0, i = from; k < n_threads; k++, i = (i + step) % n_threads)
            if (fibers[i].state == RUNS) {
                gpusim_thread.x = i;
                gpusim_switch(&scheduler, fibers[i].at);
                any = true;
            }
        if (!release() && !any && !all_ended())
            return "threads of a block wait for each other in vain";
    }
    for (uint32_t i = 0; i < n_threads; i++)
        if (early && !fibers[i].awaited)
            return "a thread has not awaited what comes before its kernel";
    return NULL;
}

} // namespace

void gpusim_await_earlier(void)
{
    fibers[gpusim_thread.x].awaited = true;
}

void __syncthreads(void)
{
    pause_as(IN_BLOCK);
}

void gpusim_warp_put(const uint32_t *from, uint32_t n)
{
    memcpy(words[gpusim_thread.x], from, n * sizeof *from);
    pause_as(IN_WARP);
}

const uint32_t *gpusim_warp_of(uint32_t lane)
{
    return words[gpusim_thread.x / 32 * 32 + lane];
}

void gpusim_warp_done(void)
{
    pause_as(IN_WARP);
}

void *gpusim_shared(void)
{
    return shared;
}

void gpusim_copy16(void *to, const void *from, bool there)
{
    struct fiber *me = &fibers[gpusim_thread.x];

    if (me->n_copies == MAX_COPIES || (uintptr_t)to % 16 || (uintptr_t)from % 16)
        abort();
    pending[gpusim_thread.x][me->n_copies++] = {to, there ? from : NULL, me->n_closed};
    memset(to, 0xa5, 16); /* nobody reads what was there any more */
}

void gpusim_copies_close(void)
{
    fibers[gpusim_thread.x].n_closed++;
}

void gpusim_copies_wait(uint32_t n_left)
{
    struct fiber *me = &fibers[gpusim_thread.x];
    struct pending *all = pending[gpusim_thread.x];
    uint32_t n = 0;

    for (uint32_t i = 0; i < me->n_copies; i++) {
        if (all[i].batch + n_left >= me->n_closed)
            all[n++] = all[i];
        else if (all[i].from)
            memcpy(all[i].to, all[i].from, 16);
        else
            memset(all[i].to, 0, 16);
    }
    me->n_copies = n;
}

cudaError_t gpusim_run(dim3 grid, dim3 block, size_t shared_bytes, bool early,
                       void (*thread)(void *arg), void *arg)
{
    static const char *const fault =
        getenv("GPUSIM_FAULT"); /* a file: while it is there, a kernel fails and takes it away */
    static std::mutex only_one;
    const std::lock_guard<std::mutex> lock(only_one);

    n_threads = block.x;
    if (fault && unlink(fault) == 0) {
        fprintf(stderr, "gpusim: a fault, as '%s' asked for\n", fault);
        return cudaErrorLaunchFailure;
    }
    if (n_threads == 0 || n_threads > MAX_THREADS || n_threads % 32 || block.y != 1 ||
        block.z != 1 || shared_bytes > SHARED_BYTES || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidValue;
    if (!stacks)
        stacks = (uint8_t *)aligned_alloc(64, (size_t)MAX_THREADS * STACK_BYTES);
    if (!stacks)
        return cudaErrorMemoryAllocation;
    entry = thread;
    entry_arg = arg;
    gpusim_place.grid = grid;
    gpusim_place.n_threads = block;
    memset(shared + shared_bytes, 0x5c, SHARED_BYTES - shared_bytes);
    for (uint32_t z = 0; z < grid.z; z++)
        for (uint32_t y = 0; y < grid.y; y++)
            for (uint32_t x = 0; x < grid.x; x++) {
                gpusim_place.block = dim3(x, y, z);
                memset(shared, 0xa5, shared_bytes); /* nobody relies on what was there */
                if (const char *wrong = run_block(early)) {
                    fprintf(stderr, "gpusim: %s\n", wrong);
                    return cudaErrorLaunchFailure;
                }
            }
    if (shared_bytes < SHARED_BYTES &&
        (shared[shared_bytes] != 0x5c || memcmp(shared + shared_bytes, shared + shared_bytes + 1,
                                                SHARED_BYTES - shared_bytes - 1) != 0)) {
        fprintf(stderr, "gpusim: a block of %zu bytes of shared memory wrote behind them\n",
                shared_bytes);
        return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}
