#include "daemon/engine/recorder.h"

#include "kernels/base/clock.h"

#include <string.h>

enum { TRIES = 64 };

static const uint64_t NOT_TOLD = UINT64_MAX;

/* ---- slots: a writer, and readers who look again when it came between ---- */

static void write_slot(struct td_recorder_slot *slot, const uint64_t *words, uint32_t n)
{
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_relaxed);

    atomic_store_explicit(&slot->version, version + 1, memory_order_relaxed);
    for (uint32_t i = 0; i < n; i++) /* released: whoever sees a word sees the odd version too */
        atomic_store_explicit(&slot->words[i], words[i], memory_order_release);
    atomic_store_explicit(&slot->version, version + 2, memory_order_release);
}

static bool read_slot(const struct td_recorder_slot *slot, uint64_t *words, uint32_t n)
{
    for (int t = 0; t < TRIES; t++) {
        uint64_t version = atomic_load_explicit(&slot->version, memory_order_acquire);

        for (uint32_t i = 0; i < n; i++)
            words[i] = atomic_load_explicit(&slot->words[i], memory_order_acquire);
        if (version % 2 == 0 &&
            version == atomic_load_explicit(&slot->version, memory_order_relaxed))
            return true;
    }
    return false;
}

static void pack_step(const struct td_recorder_step *s, uint64_t words[TD_RECORDER_STEP_WORDS])
{
    words[0] = s->number;
    words[1] = s->hash;
    words[2] = (uint64_t)s->kind << 32 | s->n_rows;
    words[3] = (uint64_t)s->n_seqs << 32 | s->status;
    words[4] = s->begin_ns;
    words[5] = s->told_ns;
    words[6] = s->end_ns;
    words[7] = s->exchange_ns;
}

static void unpack_step(const uint64_t words[TD_RECORDER_STEP_WORDS], struct td_recorder_step *s)
{
    *s = (struct td_recorder_step){.number = words[0],
                                   .hash = words[1],
                                   .kind = (uint32_t)(words[2] >> 32),
                                   .n_rows = (uint32_t)words[2],
                                   .n_seqs = (uint32_t)(words[3] >> 32),
                                   .status = (uint32_t)words[3],
                                   .begin_ns = words[4],
                                   .told_ns = words[5],
                                   .end_ns = words[6],
                                   .exchange_ns = words[7]};
}

/* ---- writing ---- */

static void publish(struct td_recorder *r)
{
    uint64_t words[TD_RECORDER_NOW_WORDS] = {r->at.stage, r->at.since_ns, r->at.limit_ns,
                                             r->at.base_ops};

    pack_step(&r->at.step, words + 4);
    write_slot(&r->now, words, TD_RECORDER_NOW_WORDS);
}

static void enter(struct td_recorder *r, enum td_recorder_stage stage, uint64_t limit_ns)
{
    r->at.stage = stage;
    r->at.since_ns = td_clock_now_ns();
    r->at.limit_ns = limit_ns;
    r->at.base_ops = NOT_TOLD;
    publish(r);
}

static void publish_marks(struct td_recorder *r)
{
    uint64_t words[2 * TD_RECORDER_MARKS];

    for (uint32_t i = 0; i < TD_RECORDER_MARKS; i++) {
        words[2 * i] = r->mark[i].number;
        words[2 * i + 1] = r->mark[i].hash;
    }
    write_slot(&r->marks, words, 2 * TD_RECORDER_MARKS);
}

void td_recorder_reset(struct td_recorder *r, uint64_t between_ns)
{
    memset(&r->at, 0, sizeof r->at);
    r->between_ns = between_ns;
    memset(r->mark, 0, sizeof r->mark);
    r->history = 0;
    atomic_store_explicit(&r->n_ended, 0, memory_order_release);
    publish_marks(r);
    enter(r, TD_RECORDER_REST, 0);
}

void td_recorder_rest(struct td_recorder *r)
{
    enter(r, TD_RECORDER_REST, 0);
}

void td_recorder_await(struct td_recorder *r)
{
    enter(r, TD_RECORDER_BETWEEN, r->between_ns);
}

void td_recorder_begin(struct td_recorder *r, const struct td_recorder_step *step,
                       uint64_t limit_ns)
{
    if (r->at.stage == TD_RECORDER_STEP && r->at.step.number == step->number)
        return;
    r->at.step = *step;
    r->at.step.begin_ns = td_clock_now_ns();
    r->at.step.told_ns = r->at.step.end_ns = r->at.step.exchange_ns = 0;
    r->at.step.status = 0;
    enter(r, TD_RECORDER_STEP, limit_ns);
}

void td_recorder_told(struct td_recorder *r, uint64_t hash, uint64_t n_ops)
{
    r->at.step.hash = hash;
    r->at.step.told_ns = td_clock_now_ns();
    r->at.base_ops = n_ops;
    publish(r);
}

/* A step more or less, or another one, changes all that follow (the finaliser of MurmurHash3, by A. Appleby). */
static uint64_t chain(uint64_t history, uint64_t hash)
{
    uint64_t x = history ^ (hash + 0x9e3779b97f4a7c15u + (history << 6));

    x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

void td_recorder_end(struct td_recorder *r, uint32_t status, uint64_t exchange_ns)
{
    uint64_t words[TD_RECORDER_STEP_WORDS], number = r->at.step.number;

    r->at.step.end_ns = td_clock_now_ns();
    r->at.step.exchange_ns = exchange_ns;
    r->at.step.status = status;
    pack_step(&r->at.step, words);
    write_slot(&r->steps[number % TD_RECORDER_STEPS], words, TD_RECORDER_STEP_WORDS);
    atomic_store_explicit(&r->n_ended, number + 1, memory_order_release);
    if (status) {
        publish(r); /* the step that it stopped in stays to be seen */
        return;
    }
    r->history = chain(r->history, r->at.step.hash);
    for (uint32_t i = 0, every = 1; i < TD_RECORDER_MARKS; i++, every *= 8)
        if ((number + 1) % every == 0)
            r->mark[i] = (struct td_recorder_mark){.number = number, .hash = r->history};
    publish_marks(r);
    r->at.step = (struct td_recorder_step){.number = number + 1};
    td_recorder_await(r);
}

/* ---- reading ---- */

bool td_recorder_look(const struct td_recorder *r, struct td_recorder_now *out)
{
    uint64_t words[TD_RECORDER_NOW_WORDS];

    if (!read_slot(&r->now, words, TD_RECORDER_NOW_WORDS))
        return false;
    out->stage = (enum td_recorder_stage)words[0];
    out->since_ns = words[1];
    out->limit_ns = words[2];
    out->base_ops = words[3];
    unpack_step(words + 4, &out->step);
    return true;
}

uint32_t td_recorder_steps(const struct td_recorder *r, struct td_recorder_step *out, uint32_t cap)
{
    uint64_t end = atomic_load_explicit(&r->n_ended, memory_order_acquire);
    uint64_t n_kept = end < TD_RECORDER_STEPS ? end : TD_RECORDER_STEPS;
    uint64_t first = end - (n_kept < cap ? n_kept : cap);
    uint32_t n = 0;

    for (uint64_t number = first; number < end; number++) {
        uint64_t words[TD_RECORDER_STEP_WORDS];

        if (!read_slot(&r->steps[number % TD_RECORDER_STEPS], words, TD_RECORDER_STEP_WORDS) ||
            words[0] != number)
            continue;
        unpack_step(words, &out[n++]);
    }
    return n;
}

uint32_t td_recorder_marks(const struct td_recorder *r,
                           struct td_recorder_mark out[TD_RECORDER_MARKS])
{
    uint64_t words[2 * TD_RECORDER_MARKS];
    uint32_t n = 0;

    if (!read_slot(&r->marks, words, 2 * TD_RECORDER_MARKS))
        return 0;
    for (uint32_t i = 0; i < TD_RECORDER_MARKS; i++)
        if (words[2 * i + 1] != 0)
            out[n++] = (struct td_recorder_mark){.number = words[2 * i], .hash = words[2 * i + 1]};
    return n;
}
