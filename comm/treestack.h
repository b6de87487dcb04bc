/* The inner loop of a join on a device: runs a tree's stack program for a few neighbouring floats. One text for host and
 * device, so that what a kernel does can be checked against td_tree_join without one. Every index into its arrays is known
 * at compile time (the top of the stack is always entry 0), so a device keeps them in registers. */
#ifndef TD_COMM_TREESTACK_H
#define TD_COMM_TREESTACK_H

#include "comm/tree.h"

#ifdef __CUDACC__
#define TD_TREESTACK_FN static __host__ __device__ __forceinline__
#else
#define TD_TREESTACK_FN static inline
#endif
#ifdef __CUDA_ARCH__
#define TD_TREESTACK_UNROLL _Pragma("unroll")
#else
#define TD_TREESTACK_UNROLL
#endif

enum {
    TD_TREESTACK_LANES = 4, /* most floats of one run */
    TD_TREESTACK_AHEAD = 8  /* parts that are loaded before the first of them is added */
};

/* One join: passed to a kernel by value. */
struct td_treestack {
    struct td_tree_program program;
    const float *part[TD_TREE_MAX_LEAVES]; /* [n_parts] of [floats of what is joined] */
};

/* `n_lanes` is 1, or 4 with `from` at a multiple of 16 bytes. */
TD_TREESTACK_FN void td_treestack_load(float *to, const float *from, int n_lanes)
{
#ifdef __CUDA_ARCH__
    if (n_lanes == 4) {
        const float4 four = *(const float4 *)from;

        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
        return;
    }
#endif
    TD_TREESTACK_UNROLL
    for (int l = 0; l < n_lanes; l++)
        to[l] = from[l];
}

TD_TREESTACK_FN void td_treestack_push(float stack[][TD_TREESTACK_LANES], const float *value,
                                       int n_lanes)
{
    TD_TREESTACK_UNROLL
    for (int d = TD_TREE_MAX_DEPTH - 1; d > 0; d--) {
        TD_TREESTACK_UNROLL
        for (int l = 0; l < n_lanes; l++)
            stack[d][l] = stack[d - 1][l];
    }
    TD_TREESTACK_UNROLL
    for (int l = 0; l < n_lanes; l++)
        stack[0][l] = value[l];
}

/* left + right: the right one was pushed last. */
TD_TREESTACK_FN void td_treestack_add(float stack[][TD_TREESTACK_LANES], int n_lanes)
{
    TD_TREESTACK_UNROLL
    for (int l = 0; l < n_lanes; l++)
        stack[0][l] = stack[1][l] + stack[0][l];
    TD_TREESTACK_UNROLL
    for (int d = 1; d < TD_TREE_MAX_DEPTH - 1; d++) {
        TD_TREESTACK_UNROLL
        for (int l = 0; l < n_lanes; l++)
            stack[d][l] = stack[d + 1][l];
    }
}

/* The sum of floats at .. at + n_lanes - 1 of all parts. `sum` [n_lanes]; n_lanes is a constant, 1 or 4, and for 4 every
 * part lies at a multiple of 16 bytes and `at` is a multiple of 4. */
TD_TREESTACK_FN void td_treestack_run(const struct td_treestack *join, size_t at, int n_lanes,
                                      float *sum)
{
    const uint32_t n = join->program.n_parts;
    float stack[TD_TREE_MAX_DEPTH][TD_TREESTACK_LANES] = {{0}};
    float ahead[TD_TREESTACK_AHEAD][TD_TREESTACK_LANES] = {{0}};

    for (uint32_t base = 0; base < n; base += TD_TREESTACK_AHEAD) {
        TD_TREESTACK_UNROLL
        for (uint32_t k = 0; k < TD_TREESTACK_AHEAD; k++) {
            if (base + k < n)
                td_treestack_load(ahead[k], join->part[base + k] + at, n_lanes);
        }
        TD_TREESTACK_UNROLL
        for (uint32_t k = 0; k < TD_TREESTACK_AHEAD; k++) {
            if (base + k < n) {
                td_treestack_push(stack, ahead[k], n_lanes);
                for (uint32_t a = 0; a < join->program.n_adds[base + k]; a++)
                    td_treestack_add(stack, n_lanes);
            }
        }
    }
    TD_TREESTACK_UNROLL
    for (int l = 0; l < n_lanes; l++)
        sum[l] = stack[0][l];
}

#endif
