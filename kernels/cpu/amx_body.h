/* Products of integer types with AMX tiles: the plain form of matmul_body.h with signed integers (TD_PLAIN_SIGNED) is what a
 * tile of weights looks like, and rows of activations in tiles of one token are what a tile of activations looks like. The
 * integer sums are exact, so the bits are those of the other files. */
#ifndef TD_KERNELS_CPU_AMX_BODY_H
#define TD_KERNELS_CPU_AMX_BODY_H

#include "kernels/cpu/matmul_body.h"

enum { AMX_TOKENS = 16, AMX_BLOCKS = 8 /* of 32 columns, between two passes over the sums */ };

/* Integer dot products of some blocks (of 32 columns, or their halves) with 16 tokens: lanes are rows. */
struct amx_dots {
    _Alignas(64) int32_t dot[2 * AMX_BLOCKS][2][AMX_TOKENS][16];
};

/* Tiles 0, 1: dot products of 16 tokens with the lower and upper 16 rows; 2: activations; 3, 4: weights. */
INLINE void amx_configure(int halves)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t n_rows[16];
    } config = {.palette = 1,
                .row_bytes = {64, 64, (uint16_t)(32 / halves), 64, 64},
                .n_rows = {16, 16, 16, (uint8_t)(8 / halves), (uint8_t)(8 / halves)}};

    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

INLINE void amx_release(void)
{
    __asm__ volatile("tilerelease" ::: "memory");
}

/* One block (or half): `w` in steps of 128 bytes, rows of activations `stride` bytes apart. */
INLINE void amx_dot(const uint8_t *w, const uint8_t *a, size_t stride,
                    int32_t dot[2][AMX_TOKENS][16])
{
    __asm__ volatile("tilezero %%tmm0\n\t"
                     "tilezero %%tmm1\n\t"
                     "tileloadd (%0,%1,1), %%tmm2\n\t"
                     "tileloadd (%2,%3,1), %%tmm3\n\t"
                     "tileloadd 64(%2,%3,1), %%tmm4\n\t"
                     "tdpbssd %%tmm3, %%tmm2, %%tmm0\n\t"
                     "tdpbssd %%tmm4, %%tmm2, %%tmm1\n\t"
                     "tilestored %%tmm0, (%4,%5,1)\n\t"
                     "tilestored %%tmm1, 1024(%4,%5,1)"
                     :
                     : "r"(a), "r"(stride), "r"(w), "r"((size_t)128), "r"(dot), "r"((size_t)64)
                     : "memory");
}

INLINE vf amx_float(const struct amx_dots *d, int i, int h, int t)
{
    return vf_from_vi(vi_load((const uint8_t *)d->dot[i][h][t]));
}

/* acc += what n_blocks blocks of 32 give to tokens t0 .. t0 + 3. */
INLINE void amx_join32(struct td_cpu_traits traits, const struct amx_dots *d, const uint8_t *w,
                       const uint8_t *a, size_t stride, uint32_t n_blocks, int t0,
                       float acc[][TD_CPU_GROUP])
{
    vf sum[4][2];

#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        sum[t][0] = vf_load(acc[t0 + t]);
        sum[t][1] = vf_load(acc[t0 + t] + 16);
    }
    for (uint32_t b = 0; b < n_blocks; b++) {
        const struct ints from = {true, TD_Q8_0};
        const vf s0 = int_scale(from, w, 0, 0, 0), s1 = int_scale(from, w, 0, 0, 1);

#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            const uint8_t *at = a + (size_t)(t0 + t) * stride;
            vf x = act_float(at, 1, 32, 0);

            sum[t][0] = vf_fma(amx_float(d, (int)b, 0, t0 + t), vf_mul(s0, x), sum[t][0]);
            sum[t][1] = vf_fma(amx_float(d, (int)b, 1, t0 + t), vf_mul(s1, x), sum[t][1]);
            if (traits.mins) {
                x = act_float(at, 1, 40, 0);
                sum[t][0] = vf_fma(int_min(from, traits, w, 0, 0, 0), x, sum[t][0]);
                sum[t][1] = vf_fma(int_min(from, traits, w, 0, 0, 1), x, sum[t][1]);
            }
        }
        w += plain_block(traits);
        a += td_cpu_act_block_bytes(traits);
    }
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        vf_store(acc[t0 + t], sum[t][0]);
        vf_store(acc[t0 + t] + 16, sum[t][1]);
    }
}

/* acc += what a block of 256 gives to tokens t0 .. t0 + 3. */
INLINE void amx_join256(struct td_cpu_traits traits, const struct amx_dots *d, const uint8_t *w,
                        const uint8_t *a, size_t stride, int t0, float acc[][TD_CPU_GROUP])
{
    const struct ints from = {true, TD_Q8_0};
    const size_t step = plain_block(traits), act_step = td_cpu_act_block_bytes(traits);
    const uint8_t *tail = w + 8 * step;
    vf sum[4][2], mins[4][2];

    clear(4, sum);
    clear(4, mins);
    for (int b = 0; b < 8; b++, w += step)
#pragma GCC unroll 2
        for (int half = 0; half < traits.halves; half++) {
            const vf s0 = int_scale(from, w, 0, half, 0), s1 = int_scale(from, w, 0, half, 1);

#pragma GCC unroll 4
            for (int t = 0; t < 4; t++) {
                const int i = b * traits.halves + half;

                sum[t][0] = vf_fma(amx_float(d, i, 0, t0 + t), s0, sum[t][0]);
                sum[t][1] = vf_fma(amx_float(d, i, 1, t0 + t), s1, sum[t][1]);
                if (traits.mins) {
                    vf x = act_float(a + (size_t)(t0 + t) * stride + (size_t)b * act_step, 1,
                                     36 + 4 * traits.halves + 4 * half, 0);

                    mins[t][0] = vf_fma(int_min(from, traits, w, 0, half, 0), x, mins[t][0]);
                    mins[t][1] = vf_fma(int_min(from, traits, w, 0, half, 1), x, mins[t][1]);
                }
            }
        }
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        const vf x = act_float(a + (size_t)(t0 + t) * stride, 1, 32, 0);

        for (int h = 0; h < 2; h++) {
            vf v = vf_fma(sum[t][h], vf_mul(block_float(from, tail, tail, 0, h), x),
                          vf_load(acc[t0 + t] + h * 16));

            if (traits.mins)
                v = vf_fma(vf_mul(block_float(from, tail, tail, 1, h), vf_neg(x)), mins[t][h], v);
            vf_store(acc[t0 + t] + h * 16, v);
        }
    }
}

/* acc += what n_k columns give to 16 tokens, of which n_tokens are wanted. */
INLINE void amx_leaf(struct td_cpu_traits traits, const uint8_t *w, const uint8_t *a, size_t stride,
                     uint32_t n_tokens, uint32_t n_k, struct lookahead *ahead,
                     float acc[][TD_CPU_GROUP])
{
    struct amx_dots d;

    while (n_k) {
        const uint32_t n_blocks = n_k / 32 < AMX_BLOCKS ? n_k / 32 : AMX_BLOCKS;

        for (uint32_t b = 0; b < n_blocks; b++) {
            const uint8_t *block = w + b * plain_block(traits);
            const uint8_t *at = a + b * td_cpu_act_block_bytes(traits);

            look_ahead(ahead);
            for (int half = 0; half < traits.halves; half++)
                amx_dot(block + half * 512, at + half * 16, stride,
                        d.dot[b * (uint32_t)traits.halves + (uint32_t)half]);
        }
        for (int t = 0; t < (int)n_tokens; t += 4) {
            if (traits.kind == TD_ACT_INT32)
                amx_join32(traits, &d, w, a, stride, n_blocks, t, acc);
            else
                amx_join256(traits, &d, w, a, stride, t, acc);
        }
        w += n_blocks * plain_block(traits) + plain_tail(traits);
        a += n_blocks * td_cpu_act_block_bytes(traits);
        n_k -= n_blocks * 32;
    }
}

/* As `tile` of matmul_body.h, for up to 16 tokens; sums are in memory. */
INLINE void amx_tile(struct td_cpu_traits traits, const struct td_cpu_product *p,
                     const struct chunk *c, struct td_cpu_tile t, struct lookahead *ahead,
                     uint32_t depth, uint32_t chunk_index, struct waiting *wait)
{
    const struct td_matrix *m = &p->m->head;
    const uint8_t *a =
        p->act->data + (size_t)(p->t0 + t.t0) * p->act->row_bytes + act_bytes(traits, c->k0);
    const uint8_t *w = (const uint8_t *)c->plain;
    _Alignas(64) float stack[TD_CPU_MAX_LEVELS + 1][AMX_TOKENS][TD_CPU_GROUP];
    uint32_t n_stack = 0, k0 = c->k0;

    for (uint32_t leaf = 0; leaf < c->n_leaves; leaf++) {
        uint32_t k1 = m->leaf_end[c->leaf0 + leaf] < c->k1 ? m->leaf_end[c->leaf0 + leaf] : c->k1;

        if (c->first)
            memset(stack[n_stack], 0, sizeof stack[n_stack]);
        else
            memcpy(stack[n_stack], wait->acc[t.t0], t.n * sizeof wait->acc[0]);
        amx_leaf(traits, w, a, p->act->row_bytes, t.n, k1 - k0, ahead, stack[n_stack]);
        w += plain_floats(traits, false, k1 - k0) * 4;
        a += act_bytes(traits, k1 - k0);
        k0 = k1;
        n_stack++;
        for (uint32_t i = leaf; i & 1; i >>= 1, n_stack--)
            for (uint32_t k = 0; k < t.n * TD_CPU_GROUP; k += 16)
                vf_store(stack[n_stack - 2][0] + k, vf_add(vf_load(stack[n_stack - 2][0] + k),
                                                           vf_load(stack[n_stack - 1][0] + k)));
    }
    for (; n_stack > 1; n_stack--)
        for (uint32_t k = 0; k < t.n * TD_CPU_GROUP; k += 16)
            vf_store(stack[n_stack - 2][0] + k, vf_add(vf_load(stack[n_stack - 2][0] + k),
                                                       vf_load(stack[n_stack - 1][0] + k)));
    for (uint32_t i = 0; i < t.n; i++)
        put_sum(c, t.t0 + i, vf_load(stack[0][i]), vf_load(stack[0][i] + 16), depth, chunk_index,
                wait);
}

INLINE void amx_tiles(struct td_cpu_traits traits, const struct td_cpu_product *p,
                      const struct chunk *c, uint32_t depth, uint32_t chunk_index,
                      struct waiting *wait)
{
    const uint32_t n_tiles = td_cpu_tiles(p->n, AMX_TOKENS);
    struct lookahead ahead = look_from(c, n_tiles);

    amx_configure(traits.halves);
    for (uint32_t i = 0; i < n_tiles; i++)
        amx_tile(traits, p, c, td_cpu_tile(p->n, n_tiles, i), &ahead, depth, chunk_index, wait);
    amx_release();
}

#endif
