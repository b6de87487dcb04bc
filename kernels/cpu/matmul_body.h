/* Products with packed matrices, over the vector of vec_body.h, which includes this file. */
/* Leaf sums of one tile: `n_tokens` tokens x 32 rows. Constant n_tokens and dtype; lanes is the constant 32 for full groups. */
INLINE void leaf_float(enum td_dtype dtype, int n_tokens, uint32_t lanes, const uint8_t *w,
                       const float *x, size_t ldx, uint32_t n_k, vf acc[][2])
{
    const size_t size = dtype == TD_F32 ? 4 : 2;
    const uint32_t lo = lanes < 16 ? lanes : 16, hi = lanes - lo;

    for (int t = 0; t < n_tokens; t++)
        acc[t][0] = acc[t][1] = vf_set1(0.0f);
    for (uint32_t k = 0; k < n_k; k++, w += lanes * size) {
        vf w0 = load_as(dtype, w, lo), w1 = load_as(dtype, w + 16 * size, hi);

#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vf a = vf_set1(x[(size_t)t * ldx + k]);

            acc[t][0] = vf_fma(w0, a, acc[t][0]);
            acc[t][1] = vf_fma(w1, a, acc[t][1]);
        }
    }
}

INLINE void leaf_int(enum td_dtype dtype, int n_tokens, uint32_t lanes, const uint8_t *w,
                     const struct td_cpu_act *act, uint32_t t0, uint32_t k0, uint32_t n_k,
                     vf acc[][2])
{
    const uint32_t n_blocks = act->n_cols / 32, b0 = k0 / 32;
    const uint32_t lo = lanes < 16 ? lanes : 16, hi = lanes - lo;
    const int offset = dtype == TD_Q8_0 ? -128 : -8;
    const int8_t *q = act->q + (size_t)t0 * act->n_cols + k0;
    const float *scale = act->scale + (size_t)t0 * n_blocks + b0;
    const int32_t *sum = act->sum + (size_t)t0 * n_blocks + b0;

    for (int t = 0; t < n_tokens; t++)
        acc[t][0] = acc[t][1] = vf_set1(0.0f);
    for (uint32_t b = 0; b < n_k / 32; b++, q += 32) {
        vf s0 = load_as(TD_F16, w, lo), s1 = load_as(TD_F16, w + 32, hi);
        vi dot[8][2];

        w += (size_t)lanes * 2;
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++)
            dot[t][0] = dot[t][1] = vi_set1(offset * sum[(size_t)t * n_blocks + b]);
        if (dtype == TD_Q8_0) {
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++, w += (size_t)lanes * 4) {
                vi w0 = load_words(w, lo), w1 = load_words(w + 64, hi);

#pragma GCC unroll 8
                for (int t = 0; t < n_tokens; t++) {
                    vi a = vi_set1_word(q + (size_t)t * act->n_cols + j * 4);

                    dot[t][0] = vi_dot(dot[t][0], w0, a);
                    dot[t][1] = vi_dot(dot[t][1], w1, a);
                }
            }
        } else {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++, w += (size_t)lanes * 4) {
                vi w0 = load_words(w, lo), w1 = load_words(w + 64, hi);
                vi l0 = vi_low_nibbles(w0), l1 = vi_low_nibbles(w1);
                vi h0 = vi_high_nibbles(w0), h1 = vi_high_nibbles(w1);

#pragma GCC unroll 8
                for (int t = 0; t < n_tokens; t++) {
                    vi a = vi_set1_word(q + (size_t)t * act->n_cols + j * 4);
                    vi c = vi_set1_word(q + (size_t)t * act->n_cols + j * 4 + 16);

                    dot[t][0] = vi_dot(vi_dot(dot[t][0], l0, a), h0, c);
                    dot[t][1] = vi_dot(vi_dot(dot[t][1], l1, a), h1, c);
                }
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < n_tokens; t++) {
            vf a = vf_set1(scale[(size_t)t * n_blocks + b]);

            acc[t][0] = vf_fma(vf_from_vi(dot[t][0]), vf_mul(s0, a), acc[t][0]);
            acc[t][1] = vf_fma(vf_from_vi(dot[t][1]), vf_mul(s1, a), acc[t][1]);
        }
    }
}

/* All parts of one tile, with the leaves joined as a binary counter. */
INLINE void tile(enum td_dtype dtype, int n_tokens, uint32_t lanes, const struct td_cpu_matrix *m,
                 uint32_t group, const struct td_cpu_act *act, uint32_t t0, uint32_t n_total,
                 float *out)
{
    const struct td_matrix *h = &m->head;
    const size_t block = dtype == TD_Q8_0 || dtype == TD_Q4_0 ? 32 : 1;
    const size_t block_bytes = dtype == TD_F32    ? 4
                               : dtype == TD_Q8_0 ? 34
                               : dtype == TD_Q4_0 ? 18
                                                  : 2;
    const uint8_t *w = td_cpu_group_data(m, group);
    vf acc[8][2], stack[TD_CPU_MAX_LEVELS][8][2];
    uint32_t k0 = 0;

    for (uint32_t p = 0; p < h->n_parts; p++) {
        uint32_t depth = 0;

        for (uint32_t leaf = h->part_begin[p]; leaf < h->part_begin[p + 1]; leaf++) {
            uint32_t n_k = h->leaf_end[leaf] - k0;

            if (block == 1)
                leaf_float(dtype, n_tokens, lanes, w, act->x + (size_t)t0 * act->n_cols + k0,
                           act->n_cols, n_k, acc);
            else
                leaf_int(dtype, n_tokens, lanes, w, act, t0, k0, n_k, acc);
            for (uint32_t i = leaf - h->part_begin[p]; i & 1; i >>= 1) {
                depth--;
                for (int t = 0; t < n_tokens; t++) {
                    acc[t][0] = vf_add(stack[depth][t][0], acc[t][0]);
                    acc[t][1] = vf_add(stack[depth][t][1], acc[t][1]);
                }
            }
            for (int t = 0; t < n_tokens; t++) {
                stack[depth][t][0] = acc[t][0];
                stack[depth][t][1] = acc[t][1];
            }
            depth++;
            w += n_k / block * block_bytes * lanes;
            k0 = h->leaf_end[leaf];
        }
        for (; depth > 1; depth--)
            for (int t = 0; t < n_tokens; t++)
                for (int j = 0; j < 2; j++)
                    stack[depth - 2][t][j] = vf_add(stack[depth - 2][t][j], stack[depth - 1][t][j]);
        for (int t = 0; t < n_tokens; t++) {
            float *row = out + ((size_t)p * n_total + t0 + (uint32_t)t) * h->n_rows +
                         (size_t)group * TD_CPU_GROUP;

            store_part(row, stack[0][t][0], lanes < 16 ? lanes : 16);
            if (lanes > 16)
                store_part(row + 16, stack[0][t][1], lanes - 16);
        }
    }
}

/* Rows t0 .. t0 + n - 1 in tiles of at most `max_tile` tokens, split evenly (16 = 6 + 5 + 5). */
INLINE void tiles(enum td_dtype dtype, uint32_t max_tile, uint32_t lanes,
                  const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,
                  uint32_t t0, uint32_t n, uint32_t n_total, float *out)
{
    uint32_t n_tiles = (n + max_tile - 1) / max_tile;

    for (uint32_t i = 0; i < n_tiles; i++) {
        uint32_t n_tokens = n / n_tiles + (i < n % n_tiles);

        switch (n_tokens) {
#define TILE(T)                                                                                    \
    case T:                                                                                        \
        tile(dtype, T, lanes, m, group, act, t0, n_total, out);                                    \
        break
            TILE(1);
            TILE(2);
            TILE(3);
#if TD_TILE_FLOAT > 3
            TILE(4);
            TILE(5);
            TILE(6);
#endif
#if TD_TILE_FLOAT > 6
            TILE(7);
            TILE(8);
#endif
#undef TILE
        default:
            break;
        }
        t0 += n_tokens;
    }
}

#define MATMUL(name, dtype, max_tile)                                                              \
    static void name(const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,  \
                     uint32_t t0, uint32_t n, uint32_t n_total, float *out)                        \
    {                                                                                              \
        uint32_t lanes = td_cpu_lanes(&m->head, group);                                            \
                                                                                                   \
        if (lanes == TD_CPU_GROUP)                                                                 \
            tiles(dtype, max_tile, TD_CPU_GROUP, m, group, act, t0, n, n_total, out);              \
        else                                                                                       \
            for (uint32_t t = 0; t < n; t++)                                                       \
                tile(dtype, 1, lanes, m, group, act, t0 + t, n_total, out);                        \
    }
MATMUL(matmul_f32, TD_F32, TD_TILE_FLOAT)
MATMUL(matmul_f16, TD_F16, TD_TILE_FLOAT)
MATMUL(matmul_bf16, TD_BF16, TD_TILE_FLOAT)
MATMUL(matmul_q8_0, TD_Q8_0, TD_TILE_INT)
MATMUL(matmul_q4_0, TD_Q4_0, TD_TILE_INT)

static void matmul(const struct td_cpu_matrix *m, uint32_t group, const struct td_cpu_act *act,
                   uint32_t t0, uint32_t n, uint32_t n_total, float *out)
{
    static void (*const by_type[TD_N_DTYPES])(const struct td_cpu_matrix *, uint32_t,
                                              const struct td_cpu_act *, uint32_t, uint32_t,
                                              uint32_t, float *) = {
        [TD_F32] = matmul_f32,   [TD_F16] = matmul_f16,   [TD_BF16] = matmul_bf16,
        [TD_Q8_0] = matmul_q8_0, [TD_Q4_0] = matmul_q4_0,
    };

    by_type[m->head.dtype](m, group, act, t0, n, n_total, out);
}
