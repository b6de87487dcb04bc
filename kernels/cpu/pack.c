/* Between the rows of files and the packed layout of cpu.h: every field of a block goes to its lane, a few after their bits
 * were put in another order; unpacking is the reverse. */
#include "kernels/cpu/cpu.h"

#include "kernels/quant/dequant.h"

static void store32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

/* Bit 4j+i of `bits` to bit j of byte i, and back. */
static uint32_t spread_bits(uint32_t bits)
{
    uint32_t word = 0;

    for (uint32_t j = 0; j < 8; j++)
        for (uint32_t i = 0; i < 4; i++)
            word |= ((bits >> (4 * j + i)) & 1u) << (8 * i + j);
    return word;
}

static uint32_t collect_bits(uint32_t word)
{
    uint32_t bits = 0;

    for (uint32_t j = 0; j < 8; j++)
        for (uint32_t i = 0; i < 4; i++)
            bits |= ((word >> (8 * i + j)) & 1u) << (4 * j + i);
    return bits;
}

/* Sixteen 6-bit values and the three words that hold them (cpu.h, "sixes"). */
static void put_sixes(const uint8_t v[16], uint8_t *words)
{
    uint32_t w[3] = {0};

    for (uint32_t i = 0; i < 15; i++)
        w[i / 5] |= (uint32_t)v[i] << (6 * (i % 5));
    for (uint32_t i = 0; i < 3; i++)
        store32(words + 4 * i, w[i] | (uint32_t)((v[15] >> (2 * i)) & 3) << 30);
}

static void get_sixes(const uint8_t *words, uint8_t v[16])
{
    v[15] = 0;
    for (uint32_t i = 0; i < 15; i++)
        v[i] = (uint8_t)((td_half_load32(words + i / 5 * 4) >> (6 * (i % 5))) & 63);
    for (uint32_t i = 0; i < 3; i++)
        v[15] = (uint8_t)(v[15] | (td_half_load32(words + 4 * i) >> 30) << (2 * i));
}

/* Q4_K, Q5_K: 12 bytes hold eight 6-bit scales (v[0 .. 7]) and minimums (v[8 .. 15]): the first four of each in the low bits
 * of bytes 0 .. 7, the others in bytes 8 .. 11 and the upper bits of those. */
static void read_scales_k4(const uint8_t *s, uint8_t v[16])
{
    const uint32_t low = td_half_load32(s), min = td_half_load32(s + 4), up = td_half_load32(s + 8);

    store32(v, low & 0x3f3f3f3fu);
    store32(v + 8, min & 0x3f3f3f3fu);
    store32(v + 4, (up & 0x0f0f0f0fu) | (low >> 6 & 0x03030303u) << 4);
    store32(v + 12, (up >> 4 & 0x0f0f0f0fu) | (min >> 6 & 0x03030303u) << 4);
}

static void write_scales_k4(const uint8_t v[16], uint8_t *s)
{
    for (int i = 0; i < 4; i++) {
        s[i] = (uint8_t)(v[i] | (v[4 + i] >> 4) << 6);
        s[4 + i] = (uint8_t)(v[8 + i] | (v[12 + i] >> 4) << 6);
        s[8 + i] = (uint8_t)((v[4 + i] & 15) | (v[12 + i] & 15) << 4);
    }
}

/* Q3_K: 12 bytes hold sixteen 6-bit scales: low nibbles of 0 .. 7 and of 8 .. 15 in bytes 0 .. 7, upper pairs of bits of i in
 * byte 8 + i % 4. */
static void read_scales_k3(const uint8_t *s, uint8_t v[16])
{
    for (int i = 0; i < 16; i++)
        v[i] = (uint8_t)((i < 8 ? s[i] & 15 : s[i - 8] >> 4) | ((s[8 + i % 4] >> (2 * (i / 4))) & 3)
                                                                   << 4);
}

static void write_scales_k3(const uint8_t v[16], uint8_t *s)
{
    memset(s, 0, 12);
    for (int i = 0; i < 16; i++) {
        s[i % 8] = (uint8_t)(s[i % 8] | (v[i] & 15) << (i < 8 ? 0 : 4));
        s[8 + i % 4] = (uint8_t)(s[8 + i % 4] | (v[i] >> 4) << (2 * (i / 4)));
    }
}

/* ---- blocks ---- */

/* Words of the packed block that are not in the file's, and back. `f` is the file's block. */

static void make_q5_0(const uint8_t *f, uint8_t *words)
{
    store32(words, spread_bits(td_half_load32(f + 2)));
}

static void unmake_q5_0(const uint8_t *words, uint8_t *f)
{
    store32(f + 2, collect_bits(td_half_load32(words)));
}

static void make_q5_1(const uint8_t *f, uint8_t *words)
{
    store32(words, spread_bits(td_half_load32(f + 4)));
}

static void unmake_q5_1(const uint8_t *words, uint8_t *f)
{
    store32(f + 4, collect_bits(td_half_load32(words)));
}

static void make_k4(const uint8_t *f, uint8_t *words)
{
    uint8_t v[16];

    read_scales_k4(f + 4, v);
    put_sixes(v, words);
}

static void unmake_k4(const uint8_t *words, uint8_t *f)
{
    uint8_t v[16];

    get_sixes(words, v);
    write_scales_k4(v, f + 4);
}

static void make_q3_k(const uint8_t *f, uint8_t *words)
{
    uint8_t v[16];

    read_scales_k3(f + 96, v);
    put_sixes(v, words);
}

static void unmake_q3_k(const uint8_t *words, uint8_t *f)
{
    uint8_t v[16];

    get_sixes(words, v);
    write_scales_k3(v, f + 96);
}

enum { MADE = 255, MADE_BYTES = 12, MAX_BLOCK = 210 };

/* Fields of a packed block in their order: `n` of `width` bytes that are neighbours in the file's block too, from byte `file`
 * on, or MADE. */
struct run {
    uint8_t width, n, file;
};

static const struct layout {
    struct run runs[5];
    void (*make)(const uint8_t *f, uint8_t *words);
    void (*unmake)(const uint8_t *words, uint8_t *f);
} LAYOUT[TD_N_DTYPES] = {
    [TD_Q8_0] = {.runs = {{2, 1, 0}, {4, 8, 2}}},
    [TD_Q4_0] = {.runs = {{2, 1, 0}, {4, 4, 2}}},
    [TD_Q4_1] = {.runs = {{2, 2, 0}, {4, 4, 4}}},
    [TD_Q5_0] = {{{2, 1, 0}, {4, 1, MADE}, {4, 4, 6}}, make_q5_0, unmake_q5_0},
    [TD_Q5_1] = {{{2, 2, 0}, {4, 1, MADE}, {4, 4, 8}}, make_q5_1, unmake_q5_1},
    [TD_IQ4_NL] = {.runs = {{2, 1, 0}, {4, 4, 2}}},
    [TD_MXFP4] = {.runs = {{1, 1, 0}, {4, 4, 1}}},
    [TD_INT4] = {.runs = {{2, 1, 0}, {1, 1, 2}, {4, 4, 3}}},
    [TD_Q2_K] = {.runs = {{2, 2, 80}, {4, 4, 0}, {4, 16, 16}}},
    [TD_Q3_K] = {{{2, 1, 108}, {4, 3, MADE}, {4, 24, 0}}, make_q3_k, unmake_q3_k},
    [TD_Q4_K] = {{{2, 2, 0}, {4, 3, MADE}, {4, 32, 16}}, make_k4, unmake_k4},
    [TD_Q5_K] = {{{2, 2, 0}, {4, 3, MADE}, {4, 40, 16}}, make_k4, unmake_k4},
    [TD_Q6_K] = {.runs = {{2, 1, 208}, {4, 4, 192}, {4, 32, 0}, {4, 16, 128}}},
    [TD_IQ4_XS] = {.runs = {{2, 2, 0}, {4, 33, 4}}},
};

/* ---- groups ---- */

/* Spreads n fields of `width` bytes of every lane's row at `src`; the fields are `width` apart there. */
static inline __attribute__((always_inline)) void
spread(uint32_t width, uint32_t n, uint32_t lanes, const uint8_t *src, size_t stride, uint8_t *dst)
{
    const uint32_t run = 64 / width; /* one cache line of every row at a time */

    for (uint32_t f0 = 0; f0 < n; f0 += run) {
        uint32_t f1 = f0 + run < n ? f0 + run : n;

        for (uint32_t i = 0; i < lanes; i++)
            for (uint32_t f = f0; f < f1; f++)
                memcpy(dst + ((size_t)f * lanes + i) * width, src + i * stride + (size_t)f * width,
                       width);
    }
}

/* Four words of four lanes that are `stride` bytes apart, lane by lane, become four fields, word by word. */
static inline void turn_words(const uint8_t *src, size_t stride, uint8_t *dst)
{
    typedef uint32_t words __attribute__((vector_size(16)));
    words in[4], low[2], high[2], out[4];

    for (int i = 0; i < 4; i++)
        memcpy(&in[i], src + (size_t)i * stride, sizeof in[i]);
    for (int i = 0; i < 2; i++) {
        low[i] = __builtin_shufflevector(in[2 * i], in[2 * i + 1], 0, 4, 1, 5);
        high[i] = __builtin_shufflevector(in[2 * i], in[2 * i + 1], 2, 6, 3, 7);
    }
    out[0] = __builtin_shufflevector(low[0], low[1], 0, 1, 4, 5);
    out[1] = __builtin_shufflevector(low[0], low[1], 2, 3, 6, 7);
    out[2] = __builtin_shufflevector(high[0], high[1], 0, 1, 4, 5);
    out[3] = __builtin_shufflevector(high[0], high[1], 2, 3, 6, 7);
    for (size_t i = 0; i < 4; i++)
        memcpy(dst + i * TD_CPU_GROUP * 4, &out[i], sizeof out[i]);
}

/* As `spread`, for words. */
static void spread_words(uint32_t n, uint32_t lanes, const uint8_t *src, size_t stride,
                         uint8_t *dst)
{
    const uint32_t n_turned = lanes == TD_CPU_GROUP ? n / 4 * 4 : 0;

    for (uint32_t f0 = 0; f0 < n_turned; f0 += 16)
        for (uint32_t i = 0; i < lanes; i += 4)
            for (uint32_t f = f0; f < f0 + 16 && f < n_turned; f += 4)
                turn_words(src + i * stride + (size_t)f * 4, stride,
                           dst + ((size_t)f * lanes + i) * 4);
    spread(4, n - n_turned, lanes, src + (size_t)n_turned * 4, stride,
           dst + (size_t)n_turned * lanes * 4);
}

static void pack_bf16(uint32_t n_cols, uint32_t lanes, const uint8_t *src, size_t stride,
                      uint8_t *dst)
{
    spread_words(n_cols / 2, lanes, src, stride, dst);
    dst += (size_t)(n_cols / 2) * 4 * lanes;
    for (uint32_t i = 0; n_cols % 2 && i < lanes; i++)
        store32(dst + (size_t)i * 4, td_half_load16(src + i * stride + (size_t)(n_cols - 1) * 2));
}

static void pack_f8(uint32_t n_cols, uint32_t lanes, const uint8_t *src, size_t stride,
                    const float *scales, uint8_t *dst)
{
    uint32_t n_blocks = (n_cols + 127) / 128;

    for (uint32_t b = 0; b < n_blocks; b++) {
        uint32_t n = n_cols - b * 128 < 128 ? n_cols - b * 128 : 128;

        for (uint32_t i = 0; i < lanes; i++)
            memcpy(dst + (size_t)i * 4, &scales[i * n_blocks + b], 4);
        dst += (size_t)lanes * 4;
        spread(1, n, lanes, src + (size_t)b * 128, stride, dst);
        dst += (size_t)lanes * n;
    }
}

static void pack_blocks(enum td_dtype dtype, uint32_t n_cols, uint32_t lanes, const uint8_t *src,
                        size_t stride, uint8_t *dst)
{
    const struct td_dtype_info *info = td_dtype_info(dtype);
    const struct layout *layout = &LAYOUT[dtype];
    uint8_t made[TD_CPU_GROUP][MADE_BYTES];

    for (uint32_t b = 0; b < n_cols / info->block_elems; b++, src += info->block_bytes) {
        for (uint32_t i = 0; layout->make && i < lanes; i++)
            layout->make(src + i * stride, made[i]);
        for (const struct run *r = layout->runs; r->n; r++) {
            const uint8_t *from = r->file == MADE ? made[0] : src + r->file;
            const size_t from_stride = r->file == MADE ? MADE_BYTES : stride;

            if (r->width == 4)
                spread_words(r->n, lanes, from, from_stride, dst);
            else if (r->width == 2)
                spread(2, r->n, lanes, from, from_stride, dst);
            else
                spread(1, r->n, lanes, from, from_stride, dst);
            dst += (size_t)r->n * r->width * lanes;
        }
    }
}

void td_pack_group(enum td_dtype dtype, uint32_t n_cols, uint32_t lanes, const uint8_t *src,
                   size_t stride_bytes, const float *scales, uint8_t *dst)
{
    switch (dtype) {
    case TD_F32:
        spread_words(n_cols, lanes, src, stride_bytes, dst);
        return;
    case TD_F16:
        spread(2, n_cols, lanes, src, stride_bytes, dst);
        return;
    case TD_BF16:
        pack_bf16(n_cols, lanes, src, stride_bytes, dst);
        return;
    case TD_F8_E4M3:
        pack_f8(n_cols, lanes, src, stride_bytes, scales, dst);
        return;
    default:
        pack_blocks(dtype, n_cols, lanes, src, stride_bytes, dst);
        return;
    }
}

/* Spreads n fields of `width` bytes from `lanes` lanes to 32. */
static void widen_fields(size_t width, size_t n, uint32_t lanes, const uint8_t *src, uint8_t *dst)
{
    for (size_t f = 0; f < n; f++, src += lanes * width, dst += TD_CPU_GROUP * width) {
        memcpy(dst, src, lanes * width);
        memset(dst + lanes * width, 0, (TD_CPU_GROUP - lanes) * width);
    }
}

void td_pack_widen(enum td_dtype dtype, uint32_t lanes, const uint8_t *src, uint32_t n_cols,
                   uint8_t *dst)
{
    const size_t elems = td_dtype_info(dtype)->block_elems;

    switch (dtype) {
    case TD_F32:
    case TD_F16:
        widen_fields(td_dtype_info(dtype)->block_bytes, n_cols, lanes, src, dst);
        return;
    case TD_BF16:
        widen_fields(4, (n_cols + 1) / 2, lanes, src, dst);
        return;
    case TD_F8_E4M3:
        for (uint32_t k = 0; k < n_cols; k += 128) {
            uint32_t n = n_cols - k < 128 ? n_cols - k : 128;

            widen_fields(4, 1, lanes, src, dst);
            widen_fields(1, n, lanes, src + (size_t)4 * lanes, dst + 4 * TD_CPU_GROUP);
            src += (size_t)(4 + n) * lanes;
            dst += (size_t)(4 + n) * TD_CPU_GROUP;
        }
        return;
    default:
        for (uint32_t k = 0; k < n_cols; k += (uint32_t)elems)
            for (const struct run *r = LAYOUT[dtype].runs; r->n; r++) {
                widen_fields(r->width, r->n, lanes, src, dst);
                src += (size_t)r->n * r->width * lanes;
                dst += (size_t)r->n * r->width * TD_CPU_GROUP;
            }
        return;
    }
}

/* ---- one row back ---- */

static void row_f8(uint32_t n_cols, uint32_t lanes, uint32_t lane, const uint8_t *p, float *out)
{
    for (uint32_t k = 0; k < n_cols; k += 128) {
        uint32_t n = n_cols - k < 128 ? n_cols - k : 128;
        uint8_t bytes[128];
        float scale;

        memcpy(&scale, p + (size_t)lane * 4, 4);
        p += (size_t)lanes * 4;
        for (uint32_t i = 0; i < n; i++)
            bytes[i] = p[(size_t)i * lanes + lane];
        p += (size_t)lanes * n;
        td_dequant_row(TD_F8_E4M3, bytes, out + k, n);
        for (uint32_t i = 0; i < n; i++)
            out[k + i] *= scale;
    }
}

static void row_blocks(enum td_dtype dtype, uint32_t n_cols, uint32_t lanes, uint32_t lane,
                       const uint8_t *p, float *out)
{
    const struct td_dtype_info *info = td_dtype_info(dtype);
    const struct layout *layout = &LAYOUT[dtype];
    uint8_t file[MAX_BLOCK], made[MADE_BYTES];

    for (uint32_t k = 0; k < n_cols; k += (uint32_t)info->block_elems, out += info->block_elems) {
        for (const struct run *r = layout->runs; r->n; r++)
            for (uint32_t i = 0; i < r->n; i++, p += (size_t)r->width * lanes)
                memcpy((r->file == MADE ? made : file + r->file) + i * r->width,
                       p + (size_t)lane * r->width, r->width);
        if (layout->unmake)
            layout->unmake(made, file);
        td_dequant_row(dtype, file, out, info->block_elems);
    }
}

void td_pack_row(const struct td_cpu_matrix *m, uint32_t row, float *out)
{
    uint32_t group = row / TD_CPU_GROUP, lane = row % TD_CPU_GROUP;
    uint32_t lanes = td_cpu_lanes(&m->head, group);
    const uint8_t *p = td_cpu_group_data(m, group);
    uint32_t n_cols = m->head.n_cols;

    switch (m->head.dtype) {
    case TD_F32:
        for (uint32_t k = 0; k < n_cols; k++)
            memcpy(&out[k], p + ((size_t)k * lanes + lane) * 4, 4);
        return;
    case TD_F16:
        for (uint32_t k = 0; k < n_cols; k++)
            out[k] = td_f16_to_f32(td_half_load16(p + ((size_t)k * lanes + lane) * 2));
        return;
    case TD_BF16:
        for (uint32_t k = 0; k < n_cols; k++)
            out[k] = td_bf16_to_f32(
                td_half_load16(p + ((size_t)(k / 2) * lanes + lane) * 4 + k % 2 * 2));
        return;
    case TD_F8_E4M3:
        row_f8(n_cols, lanes, lane, p, out);
        return;
    default:
        row_blocks(m->head.dtype, n_cols, lanes, lane, p, out);
        return;
    }
}
