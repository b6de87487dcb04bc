/* Between the rows of files and the packed layout of cpu.h. A block of one row is first put in the order of the packed
 * fields (its "lane image", as long as the block), then every field goes to its lane; unpacking is the reverse. */
#include "kernels/cpu/cpu.h"

#include "kernels/quant/dequant.h"

enum { MAX_BLOCK = 210 };

static void copy_words(uint8_t *dst, const uint8_t *src, uint32_t n)
{
    memcpy(dst, src, (size_t)n * 4);
}

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
    for (int i = 0; i < 4; i++) {
        v[i] = s[i] & 63;
        v[8 + i] = s[4 + i] & 63;
        v[4 + i] = (uint8_t)((s[8 + i] & 15) | (s[i] >> 6) << 4);
        v[12 + i] = (uint8_t)((s[8 + i] >> 4) | (s[4 + i] >> 6) << 4);
    }
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

/* ---- one block: file -> lane image, and back ---- */

static void image_q5(size_t head, const uint8_t *f, uint8_t *l)
{
    memcpy(l, f, head);
    store32(l + head, spread_bits(td_half_load32(f + head)));
    copy_words(l + head + 4, f + head + 4, 4);
}

static void file_q5(size_t head, const uint8_t *l, uint8_t *f)
{
    memcpy(f, l, head);
    store32(f + head, collect_bits(td_half_load32(l + head)));
    copy_words(f + head + 4, l + head + 4, 4);
}

static void image_k4(uint32_t n_words, const uint8_t *f, uint8_t *l)
{
    uint8_t v[16];

    memcpy(l, f, 4);
    read_scales_k4(f + 4, v);
    put_sixes(v, l + 4);
    copy_words(l + 16, f + 16, n_words);
}

static void file_k4(uint32_t n_words, const uint8_t *l, uint8_t *f)
{
    uint8_t v[16];

    memcpy(f, l, 4);
    get_sixes(l + 4, v);
    write_scales_k4(v, f + 4);
    copy_words(f + 16, l + 16, n_words);
}

/* File: third bits 32, pairs of bits 64, scales 12, d. */
static void image_q3_k(const uint8_t *f, uint8_t *l)
{
    uint8_t v[16];

    memcpy(l, f + 108, 2);
    read_scales_k3(f + 96, v);
    put_sixes(v, l + 2);
    copy_words(l + 14, f, 24);
}

static void file_q3_k(const uint8_t *l, uint8_t *f)
{
    uint8_t v[16];

    memcpy(f + 108, l, 2);
    get_sixes(l + 2, v);
    write_scales_k3(v, f + 96);
    copy_words(f, l + 14, 24);
}

/* Types whose fields only move: what lies at `file` is `bytes` long and goes to `lane`. */
struct move {
    uint8_t file, lane, bytes;
};
static const struct move MOVES_Q6_K[] = {{208, 0, 2}, {192, 2, 16}, {0, 18, 128}, {128, 146, 64}};
static const struct move MOVES_Q2_K[] = {{80, 0, 4}, {0, 4, 16}, {16, 20, 64}};

/* Widths of the fields of a lane image: `n` of each. */
struct fields {
    uint8_t width, n;
};

static void image_q5_0(const uint8_t *f, uint8_t *l)
{
    image_q5(2, f, l);
}

static void file_q5_0(const uint8_t *l, uint8_t *f)
{
    file_q5(2, l, f);
}

static void image_q5_1(const uint8_t *f, uint8_t *l)
{
    image_q5(4, f, l);
}

static void file_q5_1(const uint8_t *l, uint8_t *f)
{
    file_q5(4, l, f);
}

static void image_q4_k(const uint8_t *f, uint8_t *l)
{
    image_k4(32, f, l);
}

static void file_q4_k(const uint8_t *l, uint8_t *f)
{
    file_k4(32, l, f);
}

static void image_q5_k(const uint8_t *f, uint8_t *l)
{
    image_k4(40, f, l);
}

static void file_q5_k(const uint8_t *l, uint8_t *f)
{
    file_k4(40, l, f);
}

/* How a block becomes its lane image: it is that already, or its fields move, or a function makes it. */
static const struct layout {
    struct fields fields[4];
    const struct move *moves;
    uint8_t n_moves;
    void (*to_image)(const uint8_t *file, uint8_t *image);
    void (*to_file)(const uint8_t *image, uint8_t *file);
} LAYOUT[TD_N_DTYPES] = {
    [TD_Q8_0] = {.fields = {{2, 1}, {4, 8}}},
    [TD_Q4_0] = {.fields = {{2, 1}, {4, 4}}},
    [TD_Q4_1] = {.fields = {{2, 2}, {4, 4}}},
    [TD_IQ4_NL] = {.fields = {{2, 1}, {4, 4}}},
    [TD_MXFP4] = {.fields = {{1, 1}, {4, 4}}},
    [TD_IQ4_XS] = {.fields = {{2, 2}, {4, 33}}},
    [TD_Q6_K] = {.fields = {{2, 1}, {4, 52}}, .moves = MOVES_Q6_K, .n_moves = 4},
    [TD_Q2_K] = {.fields = {{2, 2}, {4, 20}}, .moves = MOVES_Q2_K, .n_moves = 3},
    [TD_Q5_0] = {.fields = {{2, 1}, {4, 5}}, .to_image = image_q5_0, .to_file = file_q5_0},
    [TD_Q5_1] = {.fields = {{2, 2}, {4, 5}}, .to_image = image_q5_1, .to_file = file_q5_1},
    [TD_Q4_K] = {.fields = {{2, 2}, {4, 35}}, .to_image = image_q4_k, .to_file = file_q4_k},
    [TD_Q5_K] = {.fields = {{2, 2}, {4, 43}}, .to_image = image_q5_k, .to_file = file_q5_k},
    [TD_Q3_K] = {.fields = {{2, 1}, {4, 27}}, .to_image = image_q3_k, .to_file = file_q3_k},
};

static bool as_in_file(const struct layout *layout)
{
    return !layout->moves && !layout->to_image;
}

static void to_image(const struct layout *layout, const uint8_t *file, uint8_t *image)
{
    if (layout->to_image)
        layout->to_image(file, image);
    for (uint32_t i = 0; i < layout->n_moves; i++)
        memcpy(image + layout->moves[i].lane, file + layout->moves[i].file, layout->moves[i].bytes);
}

static void to_file(const struct layout *layout, const uint8_t *image, uint8_t *file)
{
    if (layout->to_file)
        layout->to_file(image, file);
    for (uint32_t i = 0; i < layout->n_moves; i++)
        memcpy(file + layout->moves[i].file, image + layout->moves[i].lane, layout->moves[i].bytes);
}

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
    const bool as_is = as_in_file(layout);
    const size_t bytes = info->block_bytes, from_stride = as_is ? stride : MAX_BLOCK;
    uint8_t image[TD_CPU_GROUP][MAX_BLOCK];

    for (uint32_t b = 0; b < n_cols / info->block_elems; b++, dst += bytes * lanes) {
        size_t at = 0;

        for (uint32_t i = 0; i < lanes && !as_is; i++)
            to_image(layout, src + i * stride + b * bytes, image[i]);
        for (const struct fields *f = layout->fields; f->n; at += (size_t)f->n * f->width, f++) {
            const uint8_t *from = (as_is ? src + b * bytes : image[0]) + at;
            uint8_t *to = dst + at * lanes;

            if (f->width == 4)
                spread_words(f->n, lanes, from, from_stride, to);
            else if (f->width == 2)
                spread(2, f->n, lanes, from, from_stride, to);
            else
                spread(1, f->n, lanes, from, from_stride, to);
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
            for (const struct fields *f = LAYOUT[dtype].fields; f->n; f++) {
                widen_fields(f->width, f->n, lanes, src, dst);
                src += (size_t)f->n * f->width * lanes;
                dst += (size_t)f->n * f->width * TD_CPU_GROUP;
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
    const struct layout *layout = &LAYOUT[dtype];
    const struct td_dtype_info *info = td_dtype_info(dtype);

    for (uint32_t k = 0; k < n_cols; k += (uint32_t)info->block_elems, out += info->block_elems) {
        uint8_t image[MAX_BLOCK], file[MAX_BLOCK];
        size_t at = 0;

        for (const struct fields *f = layout->fields; f->n; f++)
            for (uint32_t i = 0; i < f->n; i++, at += f->width)
                memcpy(image + at, p + at * lanes + (size_t)lane * f->width, f->width);
        p += at * lanes;
        to_file(layout, image, file);
        td_dequant_row(dtype, as_in_file(layout) ? image : file, out, info->block_elems);
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
