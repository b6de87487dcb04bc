/* Products of integer types with AMX tiles: the plain form of plain_body.h with signed integers (TD_PLAIN_SIGNED) is what a
 * tile of weights looks like, and a block of activations with a row of 32 bytes per token what one of activations looks like. The
 * integer sums are exact, so the bits are those of the other files. */
#ifndef TD_KERNELS_CPU_AMX_BODY_H
#define TD_KERNELS_CPU_AMX_BODY_H

#include "kernels/cpu/matmul_body.h"

enum { AMX_TOKENS = 16, AMX_BLOCKS = 8 /* of 32 columns, between two passes over the sums */ };

/* Integer dot products of some blocks of 32 columns with 16 tokens: lanes are rows. */
struct amx_dots {
    _Alignas(64) int32_t dot[AMX_BLOCKS][2][AMX_TOKENS][16];
};

/* The shapes of the tiles of amx_dot. */
INLINE void amx_configure(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t n_rows[16];
    } config = {.palette = 1,
                .row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
                .n_rows = {16, 16, 16, 16, 16, 16, 8, 8}};

    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

INLINE void amx_release(void)
{
    __asm__ volatile("tilerelease" ::: "memory");
}

/* Tiles 0 .. 3: dot products of 16 tokens with the lower and upper 16 rows of two blocks; 4, 5: activations;
 * 6, 7: weights. The second block lies w_step and a_step behind the first. Two at a time, since one waits for its loads. */
INLINE void amx_dot(const uint8_t *w, size_t w_step, const uint8_t *a, size_t a_step,
                    int32_t dot[2][2][AMX_TOKENS][16])
{
    __asm__ volatile("tilezero %%tmm0\n\t"
                     "tilezero %%tmm1\n\t"
                     "tileloadd (%0,%2,1), %%tmm4\n\t"
                     "tileloadd (%3,%5,1), %%tmm6\n\t"
                     "tileloadd 64(%3,%5,1), %%tmm7\n\t"
                     "tdpbssd %%tmm6, %%tmm4, %%tmm0\n\t"
                     "tdpbssd %%tmm7, %%tmm4, %%tmm1\n\t"
                     "tilezero %%tmm2\n\t"
                     "tilezero %%tmm3\n\t"
                     "tileloadd (%1,%2,1), %%tmm5\n\t"
                     "tileloadd (%4,%5,1), %%tmm6\n\t"
                     "tileloadd 64(%4,%5,1), %%tmm7\n\t"
                     "tdpbssd %%tmm6, %%tmm5, %%tmm2\n\t"
                     "tdpbssd %%tmm7, %%tmm5, %%tmm3\n\t"
                     "tilestored %%tmm0, (%6,%7,1)\n\t"
                     "tilestored %%tmm1, 1024(%6,%7,1)\n\t"
                     "tilestored %%tmm2, 2048(%6,%7,1)\n\t"
                     "tilestored %%tmm3, 3072(%6,%7,1)"
                     :
                     : "r"(a), "r"(a + a_step), "r"((size_t)32), "r"(w), "r"(w + w_step),
                       "r"((size_t)128), "r"(dot), "r"((size_t)64)
                     : "memory");
}

INLINE vf amx_float(const struct amx_dots *d, int i, int h, int t)
{
    return vf_from_vi(vi_load((const uint8_t *)d->dot[i][h][t]));
}

/* acc (or 0 with `fresh`) += what n_blocks blocks of 32 give to tokens t0 .. t0 + 7. */
INLINE void amx_join32(struct td_cpu_traits traits, const struct amx_dots *d, const uint8_t *w,
                       const uint8_t *a, uint32_t n, uint32_t n_blocks, int t0, bool fresh,
                       float acc[][TD_CPU_GROUP])
{
    vf sum[8][2];

#pragma GCC unroll 8
    for (int t = 0; t < 8; t++) {
        sum[t][0] = fresh ? vf_set1(0.0f) : vf_load(acc[t0 + t]);
        sum[t][1] = fresh ? vf_set1(0.0f) : vf_load(acc[t0 + t] + 16);
    }
    for (uint32_t b = 0; b < n_blocks; b++) {
        const struct ints from = {true, TD_Q8_0};
        const vf s0 = int_scale(from, w, 0, 0, 0), s1 = int_scale(from, w, 0, 0, 1);

#pragma GCC unroll 8
        for (int t = 0; t < 8; t++) {
            vf x = act_float(a, (int)n, 32, t0 + t);

            sum[t][0] = vf_fma(amx_float(d, (int)b, 0, t0 + t), vf_mul(s0, x), sum[t][0]);
            sum[t][1] = vf_fma(amx_float(d, (int)b, 1, t0 + t), vf_mul(s1, x), sum[t][1]);
            if (traits.mins) {
                x = act_float(a, (int)n, 40, t0 + t);
                sum[t][0] = vf_fma(int_min(from, traits, w, 0, 0, 0), x, sum[t][0]);
                sum[t][1] = vf_fma(int_min(from, traits, w, 0, 0, 1), x, sum[t][1]);
            }
        }
        w += plain_block(traits);
        a += td_cpu_act_block_bytes(traits) * n;
    }
#pragma GCC unroll 8
    for (int t = 0; t < 8; t++) {
        vf_store(acc[t0 + t], sum[t][0]);
        vf_store(acc[t0 + t] + 16, sum[t][1]);
    }
}

/* acc += what a block of 256 gives to tokens t0 .. t0 + 7. */
INLINE void amx_join256(struct td_cpu_traits traits, const struct amx_dots *d, const uint8_t *w,
                        const uint8_t *a, uint32_t n, int t0, bool fresh, float acc[][TD_CPU_GROUP])
{
    const struct ints from = {true, TD_Q8_0};
    const size_t step = plain_block(traits), act_step = td_cpu_act_block_bytes(traits) * n;
    const uint8_t *tail = w + 8 * step;
    vf sum[8][2], mins[8][2];

    clear(8, sum);
    clear(8, mins);
    for (int b = 0; b < 8; b++, w += step) {
        const vf s0 = int_scale(from, w, 0, 0, 0), s1 = int_scale(from, w, 0, 0, 1);

#pragma GCC unroll 8
        for (int t = 0; t < 8; t++) {
            sum[t][0] = vf_fma(amx_float(d, b, 0, t0 + t), s0, sum[t][0]);
            sum[t][1] = vf_fma(amx_float(d, b, 1, t0 + t), s1, sum[t][1]);
            if (traits.mins) {
                vf x = act_float(a + (size_t)b * act_step, (int)n, 40, t0 + t);

                mins[t][0] = vf_fma(int_min(from, traits, w, 0, 0, 0), x, mins[t][0]);
                mins[t][1] = vf_fma(int_min(from, traits, w, 0, 0, 1), x, mins[t][1]);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < 8; t++) {
        const vf x = act_float(a, (int)n, 32, t0 + t);

        for (int h = 0; h < 2; h++) {
            vf v = vf_fma(sum[t][h], vf_mul(block_float(from, tail, tail, 0, h), x),
                          fresh ? vf_set1(0.0f) : vf_load(acc[t0 + t] + h * 16));

            if (traits.mins)
                v = vf_fma(vf_mul(block_float(from, tail, tail, 1, h), vf_neg(x)), mins[t][h], v);
            vf_store(acc[t0 + t] + h * 16, v);
        }
    }
}

/* acc (or 0 with `fresh`) += what n_k columns give to a tile of tokens; those of the 16 that do not exist are rubbish. */
INLINE void amx_leaf(struct td_cpu_traits traits, const uint8_t *w, const uint8_t *a,
                     uint32_t n_tokens, uint32_t n_k, bool fresh, struct lookahead *ahead,
                     float acc[][TD_CPU_GROUP])
{
    const size_t act_step = td_cpu_act_block_bytes(traits) * n_tokens;
    struct amx_dots d;

    while (n_k) {
        const uint32_t n_blocks = n_k / 32 < AMX_BLOCKS ? n_k / 32 : AMX_BLOCKS;

        for (uint32_t b = 0; b < n_blocks; b++) {
            const bool two = b + 1 < n_blocks; /* else the last one is multiplied twice */

            look_ahead(ahead);
            if (b % 2 == 0)
                amx_dot(w + b * plain_block(traits), two ? plain_block(traits) : 0,
                        a + b * act_step, two ? act_step : 0, &d.dot[b]);
        }
        for (int t = 0; t < (int)n_tokens; t += 8) {
            if (traits.kind == TD_ACT_INT32)
                amx_join32(traits, &d, w, a, n_tokens, n_blocks, t, fresh, acc);
            else
                amx_join256(traits, &d, w, a, n_tokens, t, fresh, acc);
        }
        w += n_blocks * plain_block(traits) + plain_tail(traits);
        a += n_blocks * act_step;
        n_k -= n_blocks * 32;
        fresh = false;
    }
}

/* to += from, for n tokens. */
INLINE void amx_add(float to[][TD_CPU_GROUP], float from[][TD_CPU_GROUP], uint32_t n)
{
    for (uint32_t t = 0; t < n; t++)
        for (int k = 0; k < TD_CPU_GROUP; k += 16)
            vf_store(to[t] + k, vf_add(vf_load(to[t] + k), vf_load(from[t] + k)));
}

/* As `tile` of matmul_body.h, for up to 16 tokens; sums are in memory. */
INLINE void amx_tile(struct td_cpu_traits traits, const struct td_cpu_product *p,
                     const struct chunk *c, struct td_cpu_tile t, struct lookahead *ahead,
                     uint32_t depth, uint32_t chunk_index, struct waiting *wait)
{
    const struct td_matrix *m = &p->m->head;
    const uint8_t *a =
        p->act->data + (size_t)(p->t0 + t.t0) * p->act->row_bytes + act_bytes(traits, c->k0) * t.n;
    const uint8_t *w = (const uint8_t *)c->plain;
    _Alignas(64) float stack[TD_CPU_MAX_LEVELS + 1][AMX_TOKENS][TD_CPU_GROUP];
    uint32_t n_stack = 0, k0 = c->k0;

    for (uint32_t leaf = 0; leaf < c->n_leaves; leaf++) {
        uint32_t k1 = m->leaf_end[c->leaf0 + leaf] < c->k1 ? m->leaf_end[c->leaf0 + leaf] : c->k1;

        if (!c->first)
            memcpy(stack[n_stack], wait->acc[t.t0], t.n * sizeof wait->acc[0]);
        amx_leaf(traits, w, a, t.n, k1 - k0, c->first, ahead, stack[n_stack]);
        w += plain_floats(traits, false, k1 - k0) * 4;
        a += act_bytes(traits, k1 - k0) * t.n;
        k0 = k1;
        n_stack++;
        for (uint32_t i = leaf; i & 1; i >>= 1, n_stack--)
            amx_add(stack[n_stack - 2], stack[n_stack - 1], t.n);
    }
    for (; n_stack > 1; n_stack--)
        amx_add(stack[n_stack - 2], stack[n_stack - 1], t.n);
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

    amx_configure();
    for (uint32_t i = 0; i < n_tiles; i++)
        amx_tile(traits, p, c, td_cpu_tile(p->n, n_tiles, i), &ahead, depth, chunk_index, wait);
    amx_release();
}

#endif
