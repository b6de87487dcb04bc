#include "shard/step.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* The encoded form, all fields little-endian:
 *   0 u64 hash of the bytes from 8 on     8 u32 magic    12 u32 kind    16 u64 number    24 u64 n_submits_seen
 *  32 u32 n_rows   36 u32 n_seqs   40 u32 n_table   44 u32 n_top   48 u32 n_moves   52 u32 part_rows   56 u32 n_draws
 *  60 u32 logprobs   64 u32 n_asked
 * then n_rows rows {token, position, seq, want}, n_seqs sequences {first_block, n_blocks, state_slot, n_rows}, n_table
 * block ids and n_moves moves {kind, from, to}, u32 each, and n_draws draws {u64 inv_t, u32 top_p, min_p, u}, the bits of floats,
 * and n_asked ids, u32. */
enum {
    HEAD_BYTES = 68,
    ROW_BYTES = 16,
    SEQ_BYTES = 16,
    BLOCK_BYTES = 4,
    MOVE_BYTES = 12,
    DRAW_BYTES = 20,
    ASKED_BYTES = 4
};

static const uint32_t magic = 0x53445405; /* "\5TDS" */

static void put32(uint8_t **at, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        *(*at)++ = (uint8_t)(v >> 8 * i);
}

static void put64(uint8_t **at, uint64_t v)
{
    put32(at, (uint32_t)v);
    put32(at, (uint32_t)(v >> 32));
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static void put_float(uint8_t **at, float v)
{
    uint32_t bits;

    memcpy(&bits, &v, sizeof bits);
    put32(at, bits);
}

static float get_float(const uint8_t *p)
{
    const uint32_t bits = get32(p);
    float v;

    memcpy(&v, &bits, sizeof v);
    return v;
}

static void put_draw(uint8_t **at, const struct td_draw *d)
{
    uint64_t bits;

    memcpy(&bits, &d->inv_t, sizeof bits);
    put64(at, bits);
    put_float(at, d->top_p);
    put_float(at, d->min_p);
    put_float(at, d->u);
}

static struct td_draw get_draw(const uint8_t *p)
{
    const uint64_t bits = get64(p);
    struct td_draw d = {
        .top_p = get_float(p + 8), .min_p = get_float(p + 12), .u = get_float(p + 16)};

    memcpy(&d.inv_t, &bits, sizeof d.inv_t);
    return d;
}

uint32_t td_step_table_cap(uint32_t max_num_seqs, uint32_t max_tokens_per_seq,
                           uint32_t block_tokens)
{
    uint64_t n = ((uint64_t)max_tokens_per_seq + block_tokens - 1) / block_tokens * max_num_seqs;

    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

enum td_status td_step_open(struct td_step *step, uint32_t cap_rows, uint32_t cap_seqs,
                            uint32_t cap_table, struct td_err *err)
{
    struct td_step s = {.cap_rows = cap_rows, .cap_seqs = cap_seqs, .cap_table = cap_table};

    s.rows = calloc(cap_rows ? cap_rows : 1, sizeof *s.rows);
    s.seqs = calloc(cap_seqs ? cap_seqs : 1, sizeof *s.seqs);
    s.table = calloc(cap_table ? cap_table : 1, sizeof *s.table);
    s.moves = calloc(TD_STEP_MAX_MOVES, sizeof *s.moves);
    s.draws = calloc(cap_rows ? cap_rows : 1, sizeof *s.draws);
    s.asked = calloc(cap_rows ? cap_rows : 1, sizeof *s.asked);
    if (!s.rows || !s.seqs || !s.table || !s.moves || !s.draws || !s.asked) {
        td_step_close(&s);
        return td_err_set(err, TD_NO_MEMORY,
                          "no memory for a step of %u rows, %u sequences and %u blocks", cap_rows,
                          cap_seqs, cap_table);
    }
    td_step_reset(&s, TD_STEP_IDLE, 0);
    *step = s;
    return TD_OK;
}

void td_step_close(struct td_step *step)
{
    free(step->asked);
    free(step->draws);
    free(step->moves);
    free(step->table);
    free(step->seqs);
    free(step->rows);
    memset(step, 0, sizeof *step);
}

void td_step_reset(struct td_step *step, enum td_step_kind kind, uint64_t number)
{
    step->kind = kind;
    step->number = number;
    step->hash = 0;
    step->n_submits_seen = 0;
    step->n_top = 0;
    step->logprobs = 0;
    step->part_rows = 0;
    step->n_rows = 0;
    step->n_seqs = 0;
    step->n_table = 0;
    step->n_moves = 0;
    step->n_draws = 0;
    step->n_asked = 0;
}

void td_step_copy(struct td_step *to, const struct td_step *from)
{
    struct td_step copy = *from;

    copy.cap_rows = to->cap_rows;
    copy.cap_seqs = to->cap_seqs;
    copy.cap_table = to->cap_table;
    copy.rows = to->rows;
    copy.seqs = to->seqs;
    copy.table = to->table;
    copy.moves = to->moves;
    copy.draws = to->draws;
    copy.asked = to->asked;
    *to = copy;
    memcpy(to->rows, from->rows, from->n_rows * sizeof *to->rows);
    memcpy(to->seqs, from->seqs, from->n_seqs * sizeof *to->seqs);
    memcpy(to->table, from->table, from->n_table * sizeof *to->table);
    memcpy(to->moves, from->moves, from->n_moves * sizeof *to->moves);
    memcpy(to->draws, from->draws, from->n_draws * sizeof *to->draws);
    memcpy(to->asked, from->asked, from->n_asked * sizeof *to->asked);
}

bool td_step_add_seq(struct td_step *step, const uint32_t *blocks, uint32_t n_blocks,
                     uint32_t state_slot)
{
    if (step->n_seqs == step->cap_seqs || n_blocks > step->cap_table - step->n_table)
        return false;
    step->seqs[step->n_seqs++] = (struct td_step_seq){
        .first_block = step->n_table, .n_blocks = n_blocks, .state_slot = state_slot};
    if (n_blocks)
        memcpy(step->table + step->n_table, blocks, n_blocks * sizeof *blocks);
    step->n_table += n_blocks;
    return true;
}

bool td_step_add_row(struct td_step *step, uint32_t token, uint32_t position, enum td_want want)
{
    if (step->n_rows == step->cap_rows || step->n_seqs == 0)
        return false;
    step->rows[step->n_rows++] = (struct td_step_row){
        .token = token, .position = position, .seq = step->n_seqs - 1, .want = want};
    step->seqs[step->n_seqs - 1].n_rows++;
    return true;
}

bool td_step_add_top_row(struct td_step *step, uint32_t token, uint32_t position, uint32_t n_top)
{
    if (!td_step_add_row(step, token, position, TD_WANT_TOP))
        return false;
    step->n_top = n_top > step->n_top ? n_top : step->n_top;
    return true;
}

bool td_step_add_draw_row(struct td_step *step, uint32_t token, uint32_t position,
                          const struct td_draw *draw)
{
    if (!td_step_add_row(step, token, position, TD_WANT_DRAW))
        return false;
    step->draws[step->n_draws++] = *draw;
    return true;
}

bool td_step_add_asked_row(struct td_step *step, uint32_t token, uint32_t position, uint32_t id)
{
    if (!td_step_add_row(step, token, position, TD_WANT_MEASURE))
        return false;
    step->asked[step->n_asked++] = id;
    return true;
}

void td_step_ask_logprobs(struct td_step *step, uint32_t logprobs)
{
    step->logprobs = logprobs > step->logprobs ? logprobs : step->logprobs;
}

bool td_step_add_move(struct td_step *step, enum td_move_kind kind, uint32_t from, uint32_t to)
{
    if (step->n_moves == TD_STEP_MAX_MOVES)
        return false;
    step->moves[step->n_moves++] = (struct td_step_move){kind, from, to};
    return true;
}

uint32_t td_step_n_parts(uint32_t n_rows, uint32_t part_rows)
{
    if (part_rows == 0)
        return 1;
    return part_rows < n_rows && (n_rows - 1) / part_rows < TD_STEP_MAX_PARTS
               ? (n_rows - 1) / part_rows + 1
               : UINT32_MAX;
}

uint32_t td_step_n_want(const struct td_step *step, enum td_want want)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < step->n_rows; i++)
        n += step->rows[i].want == want;
    return n;
}

uint32_t td_step_n_wanted(const struct td_step *step)
{
    return step->n_rows - td_step_n_want(step, TD_WANT_NONE);
}

static size_t bytes_of(uint32_t n_rows, uint32_t n_seqs, uint32_t n_table, uint32_t n_moves,
                       uint32_t n_draws, uint32_t n_asked)
{
    return HEAD_BYTES + (size_t)n_rows * ROW_BYTES + (size_t)n_seqs * SEQ_BYTES +
           (size_t)n_table * BLOCK_BYTES + (size_t)n_moves * MOVE_BYTES +
           (size_t)n_draws * DRAW_BYTES + (size_t)n_asked * ASKED_BYTES;
}

size_t td_step_encoded_bytes(const struct td_step *step)
{
    return bytes_of(step->n_rows, step->n_seqs, step->n_table, step->n_moves, step->n_draws,
                    step->n_asked);
}

size_t td_step_max_bytes(const struct td_step *step)
{
    return bytes_of(step->cap_rows, step->cap_seqs, step->cap_table, TD_STEP_MAX_MOVES,
                    step->cap_rows, 0); /* a row has one of both; a draw is longer */
}

void td_step_encode(struct td_step *step, void *out)
{
    uint8_t *begin = out;
    uint8_t *at = begin + 8;

    put32(&at, magic);
    put32(&at, step->kind);
    put64(&at, step->number);
    put64(&at, step->n_submits_seen);
    put32(&at, step->n_rows);
    put32(&at, step->n_seqs);
    put32(&at, step->n_table);
    put32(&at, step->n_top);
    put32(&at, step->n_moves);
    put32(&at, step->part_rows);
    put32(&at, step->n_draws);
    put32(&at, step->logprobs);
    put32(&at, step->n_asked);
    for (uint32_t i = 0; i < step->n_rows; i++) {
        put32(&at, step->rows[i].token);
        put32(&at, step->rows[i].position);
        put32(&at, step->rows[i].seq);
        put32(&at, step->rows[i].want);
    }
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        put32(&at, step->seqs[i].first_block);
        put32(&at, step->seqs[i].n_blocks);
        put32(&at, step->seqs[i].state_slot);
        put32(&at, step->seqs[i].n_rows);
    }
    for (uint32_t i = 0; i < step->n_table; i++)
        put32(&at, step->table[i]);
    for (uint32_t i = 0; i < step->n_moves; i++) {
        put32(&at, step->moves[i].kind);
        put32(&at, step->moves[i].from);
        put32(&at, step->moves[i].to);
    }
    for (uint32_t i = 0; i < step->n_draws; i++)
        put_draw(&at, &step->draws[i]);
    for (uint32_t i = 0; i < step->n_asked; i++)
        put32(&at, step->asked[i]);
    step->hash = XXH3_64bits(begin + 8, (size_t)(at - begin) - 8);
    put64(&begin, step->hash);
}

/* What the fixed head says; the counts are within the caps and fit the length. */
struct head {
    uint32_t kind;
    uint64_t number;
    uint64_t n_submits_seen;
    uint32_t n_top;
    uint32_t n_rows;
    uint32_t n_seqs;
    uint32_t n_table;
    uint32_t n_moves;
    uint32_t part_rows;
    uint32_t n_draws;
    uint32_t logprobs;
    uint32_t n_asked;
};

static enum td_status check_cap(const char *what, uint32_t n, uint32_t cap, struct td_err *err)
{
    if (n > cap)
        return td_err_set(err, TD_PEER_PROTOCOL, "step has %u %s, at most %u are possible", n, what,
                          cap);
    return TD_OK;
}

static enum td_status read_head(const struct td_step *caps, const uint8_t *in, size_t bytes,
                                struct head *h, struct td_err *err)
{
    enum td_status status;
    size_t want;

    if (bytes < HEAD_BYTES)
        return td_err_set(err, TD_PEER_PROTOCOL, "step of %zu bytes, expected at least %d", bytes,
                          HEAD_BYTES);
    if (get32(in + 8) != magic)
        return td_err_set(err, TD_PEER_PROTOCOL, "step begins with 0x%08x, expected 0x%08x",
                          get32(in + 8), magic);
    *h = (struct head){.kind = get32(in + 12),
                       .number = get64(in + 16),
                       .n_submits_seen = get64(in + 24),
                       .n_rows = get32(in + 32),
                       .n_seqs = get32(in + 36),
                       .n_table = get32(in + 40),
                       .n_top = get32(in + 44),
                       .n_moves = get32(in + 48),
                       .part_rows = get32(in + 52),
                       .n_draws = get32(in + 56),
                       .logprobs = get32(in + 60),
                       .n_asked = get32(in + 64)};
    if (h->kind < TD_STEP_RUN || h->kind > TD_STEP_FLUSH)
        return td_err_set(err, TD_PEER_PROTOCOL, "step is of kind %u, expected %d to %d", h->kind,
                          TD_STEP_RUN, TD_STEP_FLUSH);
    if (h->n_top > TD_TOP_MAX)
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "step wants the %u largest logits, expected at most %d", h->n_top,
                          TD_TOP_MAX);
    status = check_cap("rows", h->n_rows, caps->cap_rows, err);
    if (status == TD_OK)
        status = check_cap("sequences", h->n_seqs, caps->cap_seqs, err);
    if (status == TD_OK)
        status = check_cap("blocks", h->n_table, caps->cap_table, err);
    if (status == TD_OK)
        status = check_cap("moves", h->n_moves, TD_STEP_MAX_MOVES, err);
    if (status == TD_OK)
        status = check_cap("draws", h->n_draws, h->n_rows, err);
    if (status == TD_OK)
        status = check_cap("ids asked about", h->n_asked, h->n_rows, err);
    if (status != TD_OK)
        return status;
    want = bytes_of(h->n_rows, h->n_seqs, h->n_table, h->n_moves, h->n_draws, h->n_asked);
    if (bytes != want)
        return td_err_set(
            err, TD_PEER_PROTOCOL,
            "step of %zu bytes, expected %zu for %u rows, %u sequences, %u blocks, %u moves, %u "
            "draws and %u ids asked about",
            bytes, want, h->n_rows, h->n_seqs, h->n_table, h->n_moves, h->n_draws, h->n_asked);
    if (h->kind != TD_STEP_RUN && (h->n_rows || h->n_seqs || h->n_table || h->n_top || h->n_moves))
        return td_err_set(
            err, TD_PEER_PROTOCOL,
            "step of kind %u has %u rows, %u sequences, %u blocks, %u moves and n_top "
            "%u, expected none",
            h->kind, h->n_rows, h->n_seqs, h->n_table, h->n_moves, h->n_top);
    if (h->logprobs > (h->kind == TD_STEP_RUN ? TD_TOP_MAX + 1 : 0))
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "step of kind %u has log probabilities of %u, expected at most %d",
                          h->kind, h->logprobs, h->kind == TD_STEP_RUN ? TD_TOP_MAX + 1 : 0);
    if (td_step_n_parts(h->n_rows, h->part_rows) == UINT32_MAX)
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "step of %u rows is cut after every %u, expected 2 to %d parts",
                          h->n_rows, h->part_rows, TD_STEP_MAX_PARTS);
    return TD_OK;
}

/* The rows of sequence `seq`, which start at `first_row`. */
static enum td_status check_rows(const struct head *h, const uint8_t *rows, uint32_t seq,
                                 uint32_t first_row, uint32_t n_rows, struct td_err *err)
{
    for (uint32_t i = first_row; i < first_row + n_rows; i++) {
        const uint8_t *row = rows + (size_t)i * ROW_BYTES;

        if (get32(row + 8) != seq)
            return td_err_set(err, TD_PEER_PROTOCOL, "step row %u is of sequence %u, expected %u",
                              i, get32(row + 8), seq);
        if (i > first_row && get32(row + 4) <= get32(row - ROW_BYTES + 4))
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "step row %u is at position %u, expected one above %u", i,
                              get32(row + 4), get32(row - ROW_BYTES + 4));
        if (get32(row + 12) >= TD_WANTS || (get32(row + 12) == TD_WANT_TOP && h->n_top == 0))
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "step row %u wants %u with n_top %u, expected 0 to %d", i,
                              get32(row + 12), h->n_top, TD_WANTS - 1);
    }
    return TD_OK;
}

static enum td_status check_seqs(const struct head *h, const uint8_t *rows, const uint8_t *seqs,
                                 struct td_err *err)
{
    uint32_t first_row = 0;

    for (uint32_t s = 0; s < h->n_seqs; s++) {
        const uint8_t *seq = seqs + (size_t)s * SEQ_BYTES;
        uint32_t first_block = get32(seq);
        uint32_t n_blocks = get32(seq + 4);
        uint32_t n_rows = get32(seq + 12);
        enum td_status status;

        if (first_block > h->n_table || n_blocks > h->n_table - first_block)
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "step sequence %u has %u blocks from %u on, the table has %u", s,
                              n_blocks, first_block, h->n_table);
        if (n_rows < 1 || n_rows > h->n_rows - first_row)
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "step sequence %u has %u rows, expected 1 to the %u left", s, n_rows,
                              h->n_rows - first_row);
        status = check_rows(h, rows, s, first_row, n_rows, err);
        if (status != TD_OK)
            return status;
        first_row += n_rows;
    }
    if (first_row != h->n_rows)
        return td_err_set(err, TD_PEER_PROTOCOL, "step sequences have %u rows, the step has %u",
                          first_row, h->n_rows);
    return TD_OK;
}

static enum td_status check_draws(const struct head *h, const uint8_t *rows, const uint8_t *draws,
                                  struct td_err *err)
{
    uint32_t n = 0, n_asked = 0;

    for (uint32_t i = 0; i < h->n_rows; i++) {
        const uint32_t want = get32(rows + (size_t)i * ROW_BYTES + 12);

        n += want == TD_WANT_DRAW;
        n_asked += want == TD_WANT_MEASURE;
    }
    if (n != h->n_draws)
        return td_err_set(err, TD_PEER_PROTOCOL, "step has %u draws, %u rows want one", h->n_draws,
                          n);
    if (n_asked != h->n_asked || (n_asked && h->logprobs == 0))
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "step has %u ids asked about and log probabilities of %u, %u rows ask",
                          h->n_asked, h->logprobs, n_asked);
    for (uint32_t i = 0; i < n; i++, draws += DRAW_BYTES) {
        const struct td_draw d = get_draw(draws);

        if (!td_draw_is_valid(&d))
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "step draw %u has 1 / %g, top_p %g, min_p %g and %g: expected a "
                              "positive number, (0, 1], [0, 1] and [0, 1)",
                              i, d.inv_t, (double)d.top_p, (double)d.min_p, (double)d.u);
    }
    return TD_OK;
}

static enum td_status check_moves(const struct head *h, const uint8_t *moves, struct td_err *err)
{
    for (uint32_t i = 0; i < h->n_moves; i++, moves += MOVE_BYTES)
        if (get32(moves) < TD_MOVE_OUT || get32(moves) > TD_MOVE_DOWN)
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "step move %u is of kind %u, expected %d to %d", i, get32(moves),
                              TD_MOVE_OUT, TD_MOVE_DOWN);
    return TD_OK;
}

enum td_status td_step_decode(struct td_step *step, const void *in, size_t bytes,
                              struct td_err *err)
{
    const uint8_t *rows = (const uint8_t *)in + HEAD_BYTES;
    const uint8_t *seqs;
    const uint8_t *table, *moves, *draws;
    uint64_t hash;
    struct head h = {0};
    enum td_status status = read_head(step, in, bytes, &h, err);

    if (status != TD_OK)
        return status;
    hash = XXH3_64bits((const uint8_t *)in + 8, bytes - 8);
    if (hash != get64(in))
        return td_err_set(
            err, TD_PEER_PROTOCOL, "step %llu has hash %016llx, its bytes give %016llx",
            (unsigned long long)h.number, (unsigned long long)get64(in), (unsigned long long)hash);
    seqs = rows + (size_t)h.n_rows * ROW_BYTES;
    table = seqs + (size_t)h.n_seqs * SEQ_BYTES;
    moves = table + (size_t)h.n_table * BLOCK_BYTES;
    draws = moves + (size_t)h.n_moves * MOVE_BYTES;
    status = check_seqs(&h, rows, seqs, err);
    status = status ? status : check_draws(&h, rows, draws, err);
    status = status ? status : check_moves(&h, moves, err);
    if (status != TD_OK)
        return status;

    step->kind = h.kind;
    step->number = h.number;
    step->hash = hash;
    step->n_submits_seen = h.n_submits_seen;
    step->n_top = h.n_top;
    step->n_rows = h.n_rows;
    step->n_seqs = h.n_seqs;
    step->n_table = h.n_table;
    step->n_moves = h.n_moves;
    step->part_rows = h.part_rows;
    step->n_draws = h.n_draws;
    step->logprobs = h.logprobs;
    step->n_asked = h.n_asked;
    for (uint32_t i = 0; i < h.n_rows; i++, rows += ROW_BYTES)
        step->rows[i] = (struct td_step_row){.token = get32(rows),
                                             .position = get32(rows + 4),
                                             .seq = get32(rows + 8),
                                             .want = get32(rows + 12)};
    for (uint32_t i = 0; i < h.n_seqs; i++, seqs += SEQ_BYTES)
        step->seqs[i] = (struct td_step_seq){.first_block = get32(seqs),
                                             .n_blocks = get32(seqs + 4),
                                             .state_slot = get32(seqs + 8),
                                             .n_rows = get32(seqs + 12)};
    for (uint32_t i = 0; i < h.n_table; i++)
        step->table[i] = get32(table + (size_t)i * BLOCK_BYTES);
    for (uint32_t i = 0; i < h.n_moves; i++, moves += MOVE_BYTES)
        step->moves[i] = (struct td_step_move){get32(moves), get32(moves + 4), get32(moves + 8)};
    for (uint32_t i = 0; i < h.n_draws; i++, draws += DRAW_BYTES)
        step->draws[i] = get_draw(draws);
    for (uint32_t i = 0; i < h.n_asked; i++, draws += ASKED_BYTES)
        step->asked[i] = get32(draws);
    return TD_OK;
}
