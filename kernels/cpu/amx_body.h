/* Products of integer types with AMX tiles: the plain form of plain_body.h with signed integers (TD_PLAIN_SIGNED) is what a
 * tile of weights looks like, and a block of activations with a row of 32 bytes per token what one of activations looks like. The
 * integer sums are exact, so the bits are those of the other files. */
#ifndef TD_KERNELS_CPU_AMX_BODY_H
#define TD_KERNELS_CPU_AMX_BODY_H

#include "kernels/cpu/matmul_body.h"

enum {
    CHUNK_AMX =
        256, /* columns: weights, activations and dot products stay in the first-level cache together */
    AMX_BLOCKS = CHUNK_AMX / 32
};

/* The shapes of the tiles of amx_dots: 0 .. 3 sums of tokens with 16 rows, 4, 5 activations, 6, 7 weights. Takes so long that it
 * is done once for many groups. */
INLINE void amx_configure(uint32_t n_tokens)
{
    const uint8_t n = (uint8_t)n_tokens;
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t n_rows[16];
    } config = {.palette = 1,
                .row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
                .n_rows = {n, n, n, n, n, n, 8, 8}};

    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

INLINE void amx_release(void)
{
    __asm__ volatile("tilerelease" ::: "memory");
}

/* Sums c0 and c1 = dot products of the tokens at `a` with the lower and the upper 16 rows at `w`. */
#define AMX_DOT(c0, c1, tile_a, w, a)                                                              \
    __asm__ volatile("tilezero %%tmm" #c0 "\n\t"                                                   \
                     "tilezero %%tmm" #c1 "\n\t"                                                   \
                     "tileloadd (%0,%1,1), %%tmm" #tile_a "\n\t"                                   \
                     "tileloadd (%2,%3,1), %%tmm6\n\t"                                             \
                     "tdpbssd %%tmm6, %%tmm" #tile_a ", %%tmm" #c0 "\n\t"                          \
                     "tileloadd 64(%2,%3,1), %%tmm7\n\t"                                           \
                     "tdpbssd %%tmm7, %%tmm" #tile_a ", %%tmm" #c1                                 \
                     :                                                                             \
                     : "r"(a), "r"((size_t)32), "r"(w), "r"((size_t)128)                           \
                     : "memory")

#define AMX_STORE(c0, c1, to)                                                                      \
    __asm__ volatile("tilestored %%tmm" #c0 ", (%0,%1,1)\n\t"                                      \
                     "tilestored %%tmm" #c1 ", 1024(%0,%1,1)"                                      \
                     :                                                                             \
                     : "r"(to), "r"((size_t)64)                                                    \
                     : "memory")

/* Dot products of n_blocks blocks with a tile of tokens; the weights and the activations of a block lie w_step and a_step behind
 * those of the one before. Sums are stored when the next but one are begun: they take long. */
INLINE void amx_dots(const uint8_t *w, size_t w_step, const uint8_t *a, size_t a_step,
                     uint32_t n_blocks, struct lookahead *ahead,
                     int32_t dots[AMX_BLOCKS][2][DOT_TOKENS][16])
{
    for (uint32_t b = 0; b < n_blocks; b++, w += w_step, a += a_step) {
        look_ahead(ahead);
        if (b % 2 == 0) {
            if (b >= 2)
                AMX_STORE(0, 1, dots[b - 2]);
            AMX_DOT(0, 1, 4, w, a);
        } else {
            if (b >= 2)
                AMX_STORE(2, 3, dots[b - 2]);
            AMX_DOT(2, 3, 5, w, a);
        }
    }
    for (uint32_t b = n_blocks > 2 ? n_blocks - 2 : 0; b < n_blocks; b++)
        if (b % 2 == 0)
            AMX_STORE(0, 1, dots[b]);
        else
            AMX_STORE(2, 3, dots[b]);
}

/* The weights are in the plain form or, as integers with a sign, in the packed one of `from`. */
INLINE void amx_tiles(struct td_cpu_traits traits, struct ints from, const struct td_cpu_product *p,
                      const struct chunk *c, uint32_t depth, uint32_t chunk_index,
                      struct waiting *wait)
{
    const uint32_t n_tiles = td_cpu_tiles(p->n, DOT_TOKENS);
    const size_t w_step = from.plain ? plain_block(traits) : block_bytes(from.dtype) * TD_CPU_GROUP;
    const uint8_t *w = c->w + (from.plain ? 0 : 2 * TD_CPU_GROUP); /* behind the scales */
    _Alignas(64) int32_t dots[AMX_BLOCKS][2][DOT_TOKENS][16];

    from.made = true;
    for (uint32_t i = 0; i < n_tiles; i++) {
        const struct td_cpu_tile t = td_cpu_tile(p->n, n_tiles, i);
        const uint8_t *a = tile_acts(traits, p, c, t);
        uint32_t t0 = 0;

        amx_dots(w, w_step, a, td_cpu_act_block_bytes(traits) * t.n, (c->k1 - c->k0) / 32, c->ahead,
                 dots);
        from.in_tile = (int)t.n;
#define SOME(T)                                                                                    \
    for (; t0 + T <= t.n; t0 += T) {                                                               \
        from.dots = (const int32_t(*)[2][DOT_TOKENS][16]) & dots[0][0][t0];                        \
        tile(traits, false, from, T, p, c, t.t0 + t0, a + 4 * (size_t)t0, c->ahead, depth,         \
             chunk_index, wait);                                                                   \
    }
        SOME(8)
        SOME(4)
        SOME(1)
#undef SOME
    }
}

#endif
