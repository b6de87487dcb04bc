#include "daemon/engine/sched_impl.h"

#include "shard/sampler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Rows of a prompt that one of several steps in flight takes at least: fewer are slow. */
enum { LEAST_CHUNK = 64 };

enum td_status td_sched_open(const struct td_sched_params *params, struct td_blocks *blocks,
                             struct td_sched **out, struct td_err *err)
{
    struct td_sched *s;
    uint32_t n = params->max_num_seqs;

    if (n == 0 || params->max_queue == 0)
        return td_err_set(err, TD_INVALID,
                          "max_num_seqs is %u and the queue holds %u, expected both above 0", n,
                          params->max_queue);
    if (params->max_batched_tokens < n)
        return td_err_set(err, TD_INVALID,
                          "max_num_batched_tokens is %u, expected at least max_num_seqs (%u)",
                          params->max_batched_tokens, n);
    s = calloc(1, sizeof(*s));
    if (!s)
        goto no_memory;
    s->params = *params;
    s->blocks = blocks;
    td_pace_init(&s->pace, params->max_stretch_percent);
    s->running = calloc(n, sizeof(*s->running));
    s->params.max_flights = params->max_flights ? params->max_flights : 1;
    s->flights = calloc(s->params.max_flights, sizeof *s->flights);
    s->free_slots = calloc(n, sizeof(*s->free_slots));
    if (!s->running || !s->flights || !s->free_slots)
        goto no_memory;
    for (uint32_t i = 0; i < s->params.max_flights; i++) {
        s->flights[i].parts = calloc(n, sizeof *s->flights[i].parts);
        if (!s->flights[i].parts)
            goto no_memory;
    }
    for (uint32_t i = 0; i < n; i++)
        s->free_slots[i] = n - 1 - i;
    if (params->prefix_cache &&
        td_prefix_open(blocks, params->block_tokens, n, params->n_slots, &s->prefix, err)) {
        td_sched_close(s);
        return TD_NO_MEMORY;
    }
    *out = s;
    return TD_OK;

no_memory:
    td_sched_close(s);
    return td_err_set(err, TD_NO_MEMORY, "no memory for a scheduler of %u sequences", n);
}

void td_sched_close(struct td_sched *s)
{
    if (!s)
        return;
    td_prefix_close(s->prefix);
    free(s->running);
    for (uint32_t i = 0; s->flights && i < s->params.max_flights; i++)
        free(s->flights[i].parts);
    free(s->flights);
    free(s->free_slots);
    free(s);
}

/* The order of everything: priority, then submission. */
static bool goes_before(const struct td_sched_seq *a, const struct td_sched_seq *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->ticket < b->ticket;
}

/* Most belong at the end. */
static void queue_insert(struct td_sched *s, struct td_sched_seq *seq)
{
    struct td_sched_seq *after = s->tail, *before;

    while (after && goes_before(seq, after))
        after = after->prev;
    before = after ? after->next : s->head;
    seq->state = TD_SCHED_WAITING;
    seq->next = before;
    seq->prev = after;
    *(seq->prev ? &seq->prev->next : &s->head) = seq;
    *(before ? &before->prev : &s->tail) = seq;
    s->n_waiting++;
}

static void queue_unlink(struct td_sched *s, struct td_sched_seq *seq)
{
    *(seq->prev ? &seq->prev->next : &s->head) = seq->next;
    *(seq->next ? &seq->next->prev : &s->tail) = seq->prev;
    seq->prev = seq->next = NULL;
    seq->state = TD_SCHED_OUT;
    s->n_waiting--;
}

/* ---- what the prefix cache knows of a sequence ---- */

/* The first `n_tokens` tokens of a sequence, in whole blocks. */
static struct td_prefix_key key_of(const struct td_sched *s, const struct td_sched_seq *seq,
                                   uint32_t n_tokens)
{
    return (struct td_prefix_key){.salt = seq->salt,
                                  .ids = seq->ids,
                                  .hashes = seq->hashes,
                                  .n_blocks = n_tokens / s->params.block_tokens};
}

static bool is_cacheable(const struct td_sched *s, const struct td_sched_seq *seq)
{
    return s->prefix && seq->hashes;
}

static void hash_blocks(const struct td_sched *s, struct td_sched_seq *seq)
{
    uint32_t bt = s->params.block_tokens;

    if (!is_cacheable(s, seq))
        return;
    for (; (seq->n_hashes + 1) * (uint64_t)bt <= seq->n_ids; seq->n_hashes++)
        seq->hashes[seq->n_hashes] =
            td_prefix_hash(s->prefix, seq->n_hashes ? seq->hashes[seq->n_hashes - 1] : seq->salt,
                           seq->ids + (size_t)seq->n_hashes * bt);
}

/* Of the last token the logits are wanted, so its block is computed in any case. */
static struct td_prefix_match find_prefix(const struct td_sched *s, const struct td_sched_seq *seq)
{
    struct td_prefix_key key;

    if (!is_cacheable(s, seq))
        return (struct td_prefix_match){0};
    key = key_of(s, seq, seq->n_ids - 1);
    return td_prefix_find(s->prefix, &key);
}

enum td_status td_sched_submit(struct td_sched *s, struct td_sched_seq *seq, uint64_t now_ns,
                               struct td_err *err)
{
    assert(seq->n_ids > 0 && seq->n_ids < seq->cap_ids && seq->state == TD_SCHED_OUT);
    if (s->n_waiting >= s->params.max_queue)
        return td_err_set(err, TD_BUSY, "%u requests are waiting, the queue holds %u: try again",
                          s->n_waiting, s->params.max_queue);
    seq->ticket = s->next_ticket++;
    seq->arrival_ns = now_ns;
    seq->n_computed = seq->n_scheduled = 0;
    seq->n_flying = 0;
    seq->n_reads = seq->n_reading = 0;
    seq->n_hashes = 0;
    seq->n_cached = 0;
    seq->n_passed = 0;
    seq->was_admitted = false;
    hash_blocks(s, seq);
    queue_insert(s, seq);
    return TD_OK;
}

static struct td_sched_flight *flight_at(const struct td_sched *s, uint64_t number)
{
    return &s->flights[number % s->params.max_flights];
}

static struct td_sched_flight *newest(const struct td_sched *s)
{
    return flight_at(s, s->first_flight + s->n_flights - 1);
}

/* What steps in flight bring for a sequence is not wanted any more. */
static void forget_flights(struct td_sched *s, struct td_sched_seq *seq)
{
    for (uint32_t i = 0; seq->n_flying > 0 && i < s->n_flights; i++) {
        struct td_sched_flight *f = flight_at(s, s->first_flight + i);

        for (uint32_t k = 0; k < f->n_parts; k++)
            if (f->parts[k].seq == seq)
                f->parts[k].seq = NULL;
    }
    seq->n_flying = 0;
}

/* Takes a running sequence out of the running set; its blocks and its slot are free afterwards. */
static void stop_running(struct td_sched *s, struct td_sched_seq *seq)
{
    uint32_t i = 0;

    while (s->running[i] != seq)
        i++;
    s->n_running--;
    memmove(s->running + i, s->running + i + 1, (s->n_running - i) * sizeof(*s->running));
    if (is_cacheable(s, seq))
        td_prefix_leave(s->prefix, seq->slot);
    td_blocks_release(s->blocks, seq->slot);
    s->free_slots[s->params.max_num_seqs - s->n_running - 1] = seq->slot;
    forget_flights(s, seq);
    seq->n_computed = seq->n_scheduled = 0;
    seq->n_reads = seq->n_reading = 0;
    seq->n_draft = 0;
    seq->n_drafted = 0;
    seq->is_first = false;
    seq->state = TD_SCHED_OUT;
}

void td_sched_remove(struct td_sched *s, struct td_sched_seq *seq)
{
    if (seq->state == TD_SCHED_WAITING)
        queue_unlink(s, seq);
    else if (seq->state == TD_SCHED_RUNNING)
        stop_running(s, seq);
}

void td_sched_resume(struct td_sched *s, struct td_sched_seq *seq)
{
    assert(seq->state == TD_SCHED_OUT);
    queue_insert(s, seq);
}

static void preempt_last(struct td_sched *s)
{
    struct td_sched_seq *last = s->running[s->n_running - 1];

    stop_running(s, last);
    queue_insert(s, last);
    s->n_preemptions++;
}

/* Blocks for all tokens of a running sequence, if need be at the cost of idle blocks, then of younger sequences, in the end of
 * itself. */
static bool reserve_or_preempt(struct td_sched *s, struct td_step *step, struct td_sched_seq *seq)
{
    while (!td_blocks_reserve(s->blocks, seq->slot, seq->n_ids)) {
        bool last = s->running[s->n_running - 1] == seq;

        if (td_moves_evict(s, step, td_blocks_n_short(s->blocks, seq->slot, seq->n_ids)))
            continue;
        preempt_last(s);
        if (last)
            return false;
    }
    return true;
}

static bool wants_logits(const struct td_sched_seq *seq, uint32_t pos)
{
    return pos + 1 >= seq->n_ids || (pos >= seq->want_from && pos < seq->want_to);
}

/* Adds rows for the next `n` positions; false when the caller's step is too small. */
static bool add_rows(struct td_sched *s, struct td_step *step, struct td_sched_seq *seq, uint32_t n)
{
    uint32_t n_blocks, end = seq->n_scheduled + n;
    const uint32_t *table = td_blocks_table(s->blocks, TD_LAYER_ATTENTION, seq->slot, &n_blocks);
    struct td_sched_flight *f = newest(s);
    struct td_sched_part part = {.seq = seq,
                                 .n_rows = n,
                                 .n_draft = end > seq->n_ids ? end - seq->n_ids : 0,
                                 .want = seq->n_top   ? TD_WANT_TOP
                                         : seq->draws ? TD_WANT_DRAW
                                                      : TD_WANT_LOGITS,
                                 .reaches_end = end >= seq->n_ids};

    if (n > step->cap_rows - step->n_rows ||
        !td_step_add_seq(step, table, n_blocks, td_blocks_state_slot(s->blocks, seq->slot)))
        return false;
    for (uint32_t pos = seq->n_scheduled; pos < end; pos++) {
        uint32_t id = pos < seq->n_ids ? seq->ids[pos] : seq->draft[pos - seq->n_ids];

        if (!wants_logits(seq, pos)) {
            td_step_add_row(step, id, pos, TD_WANT_NONE);
            continue;
        }
        s->want_room--;
        if (seq->prompt_logprobs && pos + 1 < seq->n_ids) {
            part.n_asked++;
            td_step_ask_logprobs(step, seq->prompt_logprobs);
            td_step_add_asked_row(step, id, pos, seq->ids[pos + 1]);
            continue;
        }
        part.n_wanted++;
        if (part.want != TD_WANT_LOGITS)
            td_step_ask_logprobs(step, seq->logprobs);
        if (part.want == TD_WANT_TOP) {
            td_step_add_top_row(step, id, pos, seq->n_top);
        } else if (part.want == TD_WANT_DRAW) {
            const struct td_draw draw = td_sampler_row_draw(seq->draws, pos + 1);

            td_step_add_draw_row(step, id, pos, &draw);
        } else {
            td_step_add_row(step, id, pos, TD_WANT_LOGITS);
        }
    }
    f->parts[f->n_parts++] = part;
    seq->n_scheduled += n - part.n_draft;
    seq->n_flying++;
    return true;
}

/* For prompts, in this step. */
static uint32_t rows_left(const struct td_sched *s, const struct td_step *step)
{
    uint32_t room = s->params.max_batched_tokens - step->n_rows;
    uint32_t limit = td_pace_rows(&s->pace, newest(s)->n_prompt);

    return room < limit ? room : limit;
}

/* As many of the next `n` rows as may want logits. */
static uint32_t with_room_for_logits(const struct td_sched *s, const struct td_sched_seq *seq,
                                     uint32_t n)
{
    uint32_t wanted = 0;

    for (uint32_t i = 0; i < n; i++) {
        wanted += wants_logits(seq, seq->n_scheduled + i);
        if (wanted > s->want_room)
            return i;
    }
    return n;
}

/* Rows of a sequence that is not at its last token; false when the caller's step is too small. */
static bool add_chunk(struct td_sched *s, struct td_step *step, struct td_sched_seq *seq)
{
    uint32_t n = seq->n_ids - seq->n_scheduled, room = rows_left(s, step);
    uint32_t limit = s->params.max_chunk_tokens;

    if (limit > 0 && n > limit)
        n = limit;
    if (s->params.max_flights > 1) { /* several at work on one prompt */
        limit = seq->n_ids / (4 * s->params.max_flights);
        limit = limit > LEAST_CHUNK ? limit : LEAST_CHUNK;
        n = n < limit ? n : limit;
    }
    n = n < room ? n : room;
    n = with_room_for_logits(s, seq, n);
    newest(s)->n_prompt += n;
    td_pace_spend_rows(&s->pace, n);
    return n == 0 || add_rows(s, step, seq, n);
}

/* Leaves as many drafts as there are rows and blocks for. */
static void trim_draft(struct td_sched *s, struct td_sched_seq *seq)
{
    uint32_t room = seq->cap_ids - seq->n_ids - 1;

    room = room < s->draft_room ? room : s->draft_room;
    seq->n_draft = seq->n_draft < room ? seq->n_draft : room;
    while (seq->n_draft && !td_blocks_reserve(s->blocks, seq->slot, seq->n_ids + seq->n_draft))
        seq->n_draft--;
    s->draft_room -= seq->n_draft;
}

/* Running sequences whose prompts are computed, or will be when the steps in flight are complete. */
static uint32_t n_answering(const struct td_sched *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_running; i++)
        n += s->running[i]->n_ids - s->running[i]->n_scheduled <= 1;
    return n;
}

/* How many of them decode in one step: its share, where several are in flight. */
static uint32_t decode_share(const struct td_sched *s)
{
    return (s->n_answers + s->params.max_flights - 1) / s->params.max_flights;
}

/* Everybody's next token first, so that no draft takes its block. */
static void reserve_decodes(struct td_sched *s, struct td_step *step)
{
    uint32_t left;

    for (uint32_t i = 0; i < s->n_running; i++)
        if (td_sched_is_decoding(s->running[i]) && !reserve_or_preempt(s, step, s->running[i]))
            break;
    left = decode_share(s);
    for (uint32_t i = 0; i < s->n_running; i++) {
        if (!td_sched_is_decoding(s->running[i]))
            continue;
        if (left == 0)
            s->running[i]->n_draft = 0;
        left -= left > 0;
        trim_draft(s, s->running[i]);
    }
}

static void plan_decodes(struct td_sched *s, struct td_step *step)
{
    uint32_t left = decode_share(s);

    for (uint32_t i = 0; i < s->n_running && left > 0; i++) {
        struct td_sched_seq *seq = s->running[i];

        if (!td_sched_is_decoding(seq))
            continue;
        if (!add_rows(s, step, seq, 1 + seq->n_draft))
            return;
        newest(s)->n_decode += 1 + seq->n_draft;
        left--;
    }
}

/* The blocks of a running prefill were reserved when it was admitted. */
static void plan_prefills(struct td_sched *s, struct td_step *step)
{
    for (uint32_t i = 0; i < s->n_running && rows_left(s, step) > 0; i++) {
        struct td_sched_seq *seq = s->running[i];

        if (seq->n_reads == 0 && seq->n_ids - seq->n_scheduled > 1 && !add_chunk(s, step, seq))
            return;
    }
}

static void plan_reads(struct td_sched *s, struct td_step *step)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->n_reads)
            td_moves_read(s, step, s->running[i]);
}

/* Whether there are blocks for all tokens of a waiting sequence. The spare block keeps a newcomer from preempting itself at
 * its first token. Alone it needs none: the pool holds any one sequence whole. */
static bool fits(const struct td_sched *s, const struct td_sched_seq *seq,
                 struct td_prefix_match match)
{
    uint32_t idle = td_blocks_n_idle(s->blocks, TD_LAYER_ATTENTION);

    return td_blocks_fits(s->blocks, seq->n_ids, s->n_running > 0 ? 1 : 0,
                          idle - match.n_idle + match.n_ready);
}

/* Who is admitted next, and what the cache holds of it; NULL: nobody can be. */
static struct td_sched_seq *choose(const struct td_sched *s, struct td_prefix_match *match)
{
    const bool in_order = !s->prefix || s->head->n_passed >= TD_SCHED_MAX_PASSED;
    struct td_sched_seq *best = NULL, *seq = s->head;
    uint32_t best_cached = 0;

    for (uint32_t i = 0; seq && i < (in_order ? 1 : TD_SCHED_WINDOW); i++, seq = seq->next) {
        struct td_prefix_match m = find_prefix(s, seq);
        uint32_t cached = m.n_ready + m.n_outside[0] + m.n_outside[1];

        if (seq->priority != s->head->priority)
            break;
        if (m.n_ready < m.n_blocks || (best && cached <= best_cached))
            continue;
        if (!fits(s, seq, m)) {
            if (seq == s->head) /* blocks that come free are for the oldest */
                return NULL;
            continue;
        }
        best = seq;
        best_cached = cached;
        *match = m;
    }
    return best;
}

/* Takes a waiting sequence into the running set, in its order there, with blocks for all its tokens. */
static void start_running(struct td_sched *s, struct td_step *step, struct td_sched_seq *seq,
                          struct td_prefix_match match)
{
    uint32_t i = s->n_running++;

    for (struct td_sched_seq *other = s->head; other != seq; other = other->next)
        other->n_passed++;
    queue_unlink(s, seq);
    seq->slot = s->free_slots[s->params.max_num_seqs - s->n_running];
    seq->state = TD_SCHED_RUNNING;
    for (; i > 0 && goes_before(seq, s->running[i - 1]); i--)
        s->running[i] = s->running[i - 1];
    s->running[i] = seq;
    if (is_cacheable(s, seq)) {
        struct td_prefix_key key = key_of(s, seq, seq->n_ids);

        td_prefix_take(s->prefix, seq->slot, &key, match.n_ready);
        seq->n_computed = seq->n_scheduled = match.n_ready * s->params.block_tokens;
    }
    while (!td_blocks_reserve(s->blocks, seq->slot, seq->n_ids))
        td_moves_evict(s, step, td_blocks_n_short(s->blocks, seq->slot, seq->n_ids));
    if (is_cacheable(s, seq)) {
        struct td_prefix_key key = key_of(s, seq, seq->n_ids);

        seq->n_reads = td_prefix_promise(s->prefix, seq->slot, &key, td_moves_worth(s, &match));
    }
    seq->is_first = !seq->was_admitted;
    if (seq->is_first) {
        seq->n_cached = seq->n_computed;
        seq->queue_ns = s->now_ns > seq->arrival_ns ? s->now_ns - seq->arrival_ns : 0;
    }
    seq->was_admitted = true;
}

static void plan_admissions(struct td_sched *s, struct td_step *step)
{
    while (s->head && s->n_running < s->params.max_num_seqs && rows_left(s, step) > 0) {
        struct td_prefix_match match;
        struct td_sched_seq *seq = choose(s, &match);

        if (!seq)
            return;
        start_running(s, step, seq, match);
        if (seq->n_reads)
            td_moves_read(s, step, seq);
        else if (!add_chunk(s, step, seq))
            return;
    }
}

/* Who waits and is more important than the last running sequence starts at once, if need be in its place. Before anything is
 * planned, so that no decode takes the blocks that were made free. */
static void start_important(struct td_sched *s, struct td_step *step)
{
    while (s->head && s->n_running > 0 &&
           s->head->priority < s->running[s->n_running - 1]->priority) {
        struct td_prefix_match m = find_prefix(s, s->head);

        if (m.n_ready < m.n_blocks)
            return;
        if (s->n_running < s->params.max_num_seqs && fits(s, s->head, m))
            start_running(s, step, s->head, m);
        else
            preempt_last(s);
    }
}

void td_sched_begin(struct td_sched *s, uint64_t now_ns, struct td_step *step)
{
    struct td_sched_flight *f;

    assert(s->n_flights < s->params.max_flights && step->n_rows == 0);
    s->n_flights++;
    f = newest(s);
    f->n_parts = f->n_decode = f->n_prompt = f->n_moves = 0;
    s->now_ns = now_ns;
    s->n_reads = 0;
    td_pace_begin(&s->pace, n_answering(s));
    start_important(s, step);
    s->n_answers = n_answering(s);
    s->draft_room = s->params.max_num_seqs - s->n_running;
    s->draft_room -= s->draft_room < s->n_waiting ? s->draft_room : s->n_waiting;
    reserve_decodes(s, step);
}

bool td_sched_plan(struct td_sched *s, struct td_step *step)
{
    s->want_room = s->params.max_num_seqs;
    plan_decodes(s, step);
    plan_reads(s, step);
    plan_prefills(s, step);
    plan_admissions(s, step);
    td_moves_note(newest(s), step);
    if (newest(s)->n_parts > 0 || step->n_moves > 0)
        return true;
    s->n_flights--;
    return false;
}

struct td_sched_seq *td_sched_running(const struct td_sched *s, uint32_t i)
{
    return s->running[i];
}

const uint32_t *td_sched_table(const struct td_sched *s, const struct td_sched_seq *seq,
                               uint32_t *n_blocks)
{
    return td_blocks_table(s->blocks, TD_LAYER_ATTENTION, seq->slot, n_blocks);
}

struct td_pace *td_sched_pace(struct td_sched *s)
{
    return &s->pace;
}

uint32_t td_sched_n_flights(const struct td_sched *s)
{
    return s->n_flights;
}

const struct td_sched_part *td_sched_newest(const struct td_sched *s, uint32_t *n)
{
    *n = newest(s)->n_parts;
    return newest(s)->parts;
}

const struct td_sched_part *td_sched_oldest(const struct td_sched *s, uint32_t *n)
{
    *n = flight_at(s, s->first_flight)->n_parts;
    return flight_at(s, s->first_flight)->parts;
}

bool td_sched_is_decoding(const struct td_sched_seq *seq)
{
    return seq->state == TD_SCHED_RUNNING && seq->n_ids - seq->n_scheduled == 1;
}

void td_sched_fill_prefix(struct td_sched *s, struct td_sched_seq *seq)
{
    struct td_prefix_key key;
    uint64_t same;

    if (!is_cacheable(s, seq))
        return;
    hash_blocks(s, seq);
    key = key_of(s, seq, seq->n_computed);
    /* Of another's block nobody says that a draft model knows it. */
    same = (uint64_t)td_prefix_fill(s->prefix, seq->slot, &key) * s->params.block_tokens;
    seq->n_drafted = seq->n_drafted < same ? seq->n_drafted : (uint32_t)same;
}

/* In a pipeline a step ends in a turn that lasts as long as the slowest of all that are under way: its time says something of this one
 * only where the others are like it. */
static bool is_typical(const struct td_sched *s)
{
    const struct td_sched_flight *f = flight_at(s, s->first_flight);

    for (uint32_t i = 0; s->params.max_flights > 1 && i < s->n_flights; i++) {
        const struct td_sched_flight *other = flight_at(s, s->first_flight + i);

        if ((other->n_prompt > 0) != (f->n_prompt > 0) || other->n_moves > 0)
            return false;
    }
    return true;
}

void td_sched_complete(struct td_sched *s, uint64_t step_ns, const struct td_move_result *moves)
{
    const struct td_sched_flight *f = flight_at(s, s->first_flight);

    assert(s->n_flights > 0);
    td_pace_learn(&s->pace, f->n_decode, f->n_prompt, is_typical(s) ? step_ns : 0);
    for (uint32_t i = 0; i < f->n_parts; i++) {
        struct td_sched_seq *seq = f->parts[i].seq;

        if (!seq)
            continue;
        seq->n_computed += f->parts[i].n_rows - f->parts[i].n_draft;
        seq->n_flying--;
        seq->n_right = 0;
        td_sched_fill_prefix(s, seq);
    }
    td_moves_complete(s, moves);
    s->first_flight++;
    s->n_flights--;
}

void td_sched_abandon(struct td_sched *s)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct td_sched_seq *seq = s->running[i];

        seq->n_scheduled = seq->n_computed;
        seq->n_flying = 0;
        seq->n_reading = 0;
    }
    s->first_flight += s->n_flights;
    s->n_flights = 0;
}

bool td_sched_append(struct td_sched_seq *seq, uint32_t id)
{
    assert(seq->n_computed == seq->n_ids && seq->n_ids < seq->cap_ids);
    seq->ids[seq->n_ids++] = id;
    if (seq->n_right == seq->n_draft || seq->draft[seq->n_right] != id)
        return false;
    seq->n_right++;
    seq->n_computed++;
    seq->n_scheduled++;
    return true;
}

void td_sched_caps(const struct td_sched *s, uint32_t *rows, uint32_t *seqs, uint32_t *table)
{
    *rows = s->params.max_batched_tokens;
    *seqs = s->params.max_num_seqs;
    *table = td_step_table_cap(s->params.max_num_seqs, s->params.max_tokens_per_seq,
                               s->params.block_tokens);
}

const struct td_prefix *td_sched_prefix(const struct td_sched *s)
{
    return s->prefix;
}

uint32_t td_sched_n_running(const struct td_sched *s)
{
    return s->n_running;
}

uint32_t td_sched_n_waiting(const struct td_sched *s)
{
    return s->n_waiting;
}

uint64_t td_sched_n_preemptions(const struct td_sched *s)
{
    return s->n_preemptions;
}

uint64_t td_sched_n_read(const struct td_sched *s)
{
    return s->n_read;
}

uint64_t td_sched_n_failed_reads(const struct td_sched *s)
{
    return s->n_failed_reads;
}

uint64_t td_sched_oldest_wait_ns(const struct td_sched *s, uint64_t now_ns)
{
    return s->head && now_ns > s->head->arrival_ns ? now_ns - s->head->arrival_ns : 0;
}
