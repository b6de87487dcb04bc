#include "shard/int4.h"

#include "kernels/base/half.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 32, EIGHT = 8 };

/* Of row r of eight, its place in a word of AWQ. */
static const uint8_t AWQ_PLACE[EIGHT] = {0, 4, 1, 5, 2, 6, 3, 7};

/* ---- what the tensors say ---- */

static enum td_status check_tensor(const struct td_tensor *t, const char *type,
                                   const char *expected_type, int n_dims, size_t rows, size_t cols,
                                   const char *name, const char *part, struct td_err *err)
{
    if (!type || strcmp(type, expected_type) != 0)
        return td_err_set(err, TD_UNSUPPORTED, "tensor '%s.%s' has type %s; expected %s", name,
                          part, type ? type : "none", expected_type);
    if (t->n_dims == n_dims && t->dim[0] == rows && (n_dims == 1 || t->dim[1] == cols))
        return TD_OK;
    return td_err_set(
        err, TD_CORRUPT, "tensor '%s.%s' is %d-dimensional, %zu x %zu; expected %zu x %zu", name,
        part, t->n_dims, t->n_dims ? t->dim[0] : 1, t->n_dims > 1 ? t->dim[1] : 1, rows, cols);
}

static uint32_t word_at(const uint8_t *words, size_t i)
{
    return td_half_load32(words + i * 4);
}

/* Whether column c belongs to run c / group everywhere. */
static enum td_status read_runs(struct td_int4 *m, const char *name, struct td_err *err)
{
    bool in_order = true;

    for (uint32_t c = 0; c < m->n_cols; c++) {
        uint32_t run = word_at(m->runs, c);

        if (run >= m->n_groups)
            return td_err_set(err, TD_CORRUPT,
                              "tensor '%s.g_idx' puts column %u into run %u; expected 0 to %u",
                              name, c, run, m->n_groups - 1);
        in_order = in_order && run == c / m->group;
    }
    if (in_order)
        m->runs = NULL;
    else
        m->group = 0;
    return TD_OK;
}

enum td_status td_int4_open(struct td_int4 *m, enum td_int4_form form,
                            const struct td_int4_tensors *t, uint32_t n_rows, uint32_t n_cols,
                            const char *name, struct td_err *err)
{
    const bool is_awq = form == TD_INT4_AWQ;
    const size_t n_groups = t->scales.n_dims > 0 ? t->scales.dim[0] : 0;
    enum td_status s;

    if (n_rows % EIGHT || n_cols % BLOCK)
        return td_err_set(err, TD_UNSUPPORTED,
                          "'%s' has %u rows of %u columns; in 4-bit integers the rows are a "
                          "multiple of %d, the columns of %d",
                          name, n_rows, n_cols, EIGHT, BLOCK);
    if ((s = check_tensor(&t->words, t->word_type, "I32", 2, is_awq ? n_cols : n_cols / EIGHT,
                          is_awq ? n_rows / EIGHT : n_rows, name, "qweight", err)) ||
        (s = check_tensor(&t->scales, t->scale_type, "F16", 2, n_groups, n_rows, name, "scales",
                          err)) ||
        (s = check_tensor(&t->zeros, t->zero_type, "I32", 2, n_groups, n_rows / EIGHT, name,
                          "qzeros", err)) ||
        (t->runs.n_dims &&
         (s = check_tensor(&t->runs, t->run_type, "I32", 1, n_cols, 1, name, "g_idx", err))))
        return s;
    if (n_groups == 0 || n_cols % n_groups || n_cols / n_groups % BLOCK)
        return td_err_set(err, TD_UNSUPPORTED,
                          "'%s.scales' has %zu runs of %u columns; expected runs of equal size, a "
                          "multiple of %d",
                          name, n_groups, n_cols, BLOCK);
    *m = (struct td_int4){.form = form,
                          .n_rows = n_rows,
                          .n_cols = n_cols,
                          .group = n_cols / (uint32_t)n_groups,
                          .n_groups = (uint32_t)n_groups,
                          .words = t->words.data,
                          .zeros = t->zeros.data,
                          .scales = t->scales.data,
                          .runs = t->runs.n_dims ? t->runs.data : NULL};
    return m->runs ? read_runs(m, name, err) : TD_OK;
}

enum td_dtype td_int4_type(const struct td_int4 *m)
{
    return m->runs ? TD_F16 : TD_INT4;
}

static uint16_t scale_at(const struct td_int4 *m, uint32_t run, uint32_t row)
{
    return td_half_load16(m->scales + ((size_t)run * m->n_rows + row) * 2);
}

enum td_status td_int4_check_scales(const struct td_int4 *m, uint32_t row0, uint32_t n_rows,
                                    struct td_err *err)
{
    const float limit = m->runs ? 65504.0f / 15 : 65504.0f;

    for (uint32_t g = 0; g < m->n_groups; g++)
        for (uint32_t r = row0; r < row0 + n_rows; r++) {
            float scale = td_f16_to_f32(scale_at(m, g, r));

            if (!(fabsf(scale) <= limit))
                return td_err_set(err, TD_CORRUPT,
                                  "scale %u, %u of 4-bit integers is %g; expected a magnitude of "
                                  "at most %g",
                                  g, r, (double)scale, (double)limit);
        }
    return TD_OK;
}

/* ---- rows ---- */

/* Word i of eight holds in its field k what word k held in field i. */
static void turn(uint32_t w[EIGHT])
{
    static const struct {
        uint32_t apart, mask;
    } step[] = {{4, 0x0000ffffu}, {2, 0x00ff00ffu}, {1, 0x0f0f0f0fu}};

    for (size_t s = 0; s < sizeof step / sizeof step[0]; s++)
        for (uint32_t i = 0; i < EIGHT; i++)
            if (!(i & step[s].apart)) {
                uint32_t *other = &w[i + step[s].apart], shift = 4 * step[s].apart;
                uint32_t both = ((w[i] >> shift) ^ *other) & step[s].mask;

                *other ^= both;
                w[i] ^= both << shift;
            }
}

/* Columns [col, col + 8) of rows [row, row + 8), a word each, the first column in the lowest bits. */
static void eight_rows(const struct td_int4 *m, uint32_t row, uint32_t col, uint32_t out[EIGHT])
{
    uint32_t w[EIGHT];

    if (m->form != TD_INT4_AWQ) {
        for (uint32_t i = 0; i < EIGHT; i++)
            out[i] = word_at(m->words, (size_t)(col / EIGHT) * m->n_rows + row + i);
        return;
    }
    for (uint32_t i = 0; i < EIGHT; i++)
        w[i] = word_at(m->words, (size_t)(col + i) * (m->n_rows / EIGHT) + row / EIGHT);
    turn(w);
    for (uint32_t i = 0; i < EIGHT; i++)
        out[i] = w[AWQ_PLACE[i]];
}

/* GPTQ took 1 from every field when it stored a word, as one number: so it goes back. */
static uint32_t zero_at(const struct td_int4 *m, uint32_t run, uint32_t row)
{
    uint32_t word = word_at(m->zeros, (size_t)run * (m->n_rows / EIGHT) + row / EIGHT);

    if (m->form == TD_INT4_AWQ)
        return word >> (4 * AWQ_PLACE[row % EIGHT]) & 15;
    word += m->form == TD_INT4_GPTQ ? 0x11111111u : 0;
    return word >> (4 * (row % EIGHT)) & 15;
}

/* The eight fields of a word as bytes, the lowest first. */
static uint64_t bytes_of(uint32_t word)
{
    uint64_t v = word;

    v = (v | v << 16) & 0x0000ffff0000ffffu;
    v = (v | v << 8) & 0x00ff00ff00ff00ffu;
    return (v | v << 4) & 0x0f0f0f0f0f0f0f0fu;
}

static void store_bytes(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static void put_block(const struct td_int4 *m, uint32_t row, uint32_t col, const uint32_t w[4],
                      uint8_t *block)
{
    const uint32_t run = col / m->group;
    const uint16_t scale = scale_at(m, run, row);

    block[0] = (uint8_t)scale;
    block[1] = (uint8_t)(scale >> 8);
    block[2] = (uint8_t)zero_at(m, run, row);
    store_bytes(block + 3, bytes_of(w[0]) | bytes_of(w[2]) << 4);
    store_bytes(block + 11, bytes_of(w[1]) | bytes_of(w[3]) << 4);
}

/* Of the block's columns those in [begin, end), the first of them at `halves`. */
static void put_halves(const struct td_int4 *m, uint32_t row, uint32_t col, const uint32_t w[4],
                       uint32_t begin, uint32_t end, uint8_t *halves)
{
    for (uint32_t i = begin; i < end; i++, halves += 2) {
        const uint32_t run = word_at(m->runs, col + i);
        const int32_t q = (int32_t)(w[i / EIGHT] >> (4 * (i % EIGHT)) & 15);
        const uint16_t half = td_f32_to_f16((float)(q - (int32_t)zero_at(m, run, row)) *
                                            td_f16_to_f32(scale_at(m, run, row)));

        halves[0] = (uint8_t)half;
        halves[1] = (uint8_t)(half >> 8);
    }
}

void td_int4_rows(const struct td_int4 *m, uint32_t row0, uint32_t n_rows, uint32_t col0,
                  uint32_t n_cols, uint8_t *out)
{
    const size_t row_bytes = td_dtype_row_bytes(td_int4_type(m), n_cols);
    const uint32_t row_end = row0 + n_rows, col_end = col0 + n_cols;

    for (uint32_t row = row0 / EIGHT * EIGHT; row < row_end; row += EIGHT)
        for (uint32_t col = col0 / BLOCK * BLOCK; col < col_end; col += BLOCK) {
            const uint32_t begin = col < col0 ? col0 - col : 0;
            const uint32_t end = col_end - col < BLOCK ? col_end - col : BLOCK;
            const size_t at = td_dtype_row_bytes(td_int4_type(m), col + begin - col0);
            uint32_t w[4][EIGHT];

            for (uint32_t i = 0; i < 4; i++)
                eight_rows(m, row, col + i * EIGHT, w[i]);
            for (uint32_t r = 0; r < EIGHT; r++) {
                const uint32_t of_row[4] = {w[0][r], w[1][r], w[2][r], w[3][r]};
                uint8_t *to;

                if (row + r < row0 || row + r >= row_end)
                    continue;
                to = out + (row + r - row0) * row_bytes + at;
                if (m->runs)
                    put_halves(m, row + r, col, of_row, begin, end, to);
                else
                    put_block(m, row + r, col, of_row, to);
            }
        }
}
