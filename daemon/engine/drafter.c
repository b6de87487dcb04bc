#include "daemon/engine/drafter.h"

#include "daemon/engine/pace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct td_drafter {
    struct td_drafter_params p;
    struct td_step step;
    uint64_t number;
    uint64_t *
        known; /* owned [n_blocks]: hash of the tokens whose keys the block has, whole; 0: not known */
    float *logits; /* owned [n_vocab]; NULL where the draft model has no fewer ids */
    struct td_sched_seq **rows_of; /* owned [max_num_seqs]: the sequences of a step */
};

enum td_status td_drafter_open(const struct td_drafter_params *params, struct td_drafter **out,
                               struct td_err *err)
{
    struct td_drafter *d = calloc(1, sizeof *d);
    uint32_t table =
        td_step_table_cap(params->max_num_seqs, params->max_tokens_per_seq, params->block_tokens);

    if (!d)
        goto no_memory;
    d->p = *params;
    d->known = calloc(params->n_blocks, sizeof *d->known);
    d->rows_of = calloc(params->max_num_seqs, sizeof(struct td_sched_seq *));
    if (params->draft_vocab < params->n_vocab)
        d->logits = calloc(params->n_vocab, sizeof *d->logits);
    if (!d->known || !d->rows_of || (params->draft_vocab < params->n_vocab && !d->logits) ||
        td_step_open(&d->step, params->max_batched_tokens, params->max_num_seqs, table, NULL))
        goto no_memory;
    *out = d;
    return TD_OK;

no_memory:
    td_drafter_close(d);
    return td_err_set(err, TD_NO_MEMORY, "no memory for drafts of %u sequences",
                      params->max_num_seqs);
}

void td_drafter_close(struct td_drafter *d)
{
    if (!d)
        return;
    td_step_close(&d->step);
    free(d->known);
    free(d->logits);
    free(d->rows_of);
    free(d);
}

/* The token at a position, of the sequence or of its guesses. */
static uint32_t token_at(const struct td_sched_seq *seq, uint32_t pos)
{
    return pos < seq->n_ids ? seq->ids[pos] : seq->draft[pos - seq->n_ids];
}

/* Whole blocks behind what the sequence has computed itself may be known from another. At least the last token is computed. */
static void skip_known(const struct td_drafter *d, const struct td_sched *sched,
                       struct td_sched_seq *seq)
{
    uint32_t n, bt = d->p.block_tokens, i = seq->n_drafted / bt;
    const uint32_t *table = td_sched_table(sched, seq, &n);

    while (seq->hashes && i < seq->n_hashes && (i + 1) * bt < seq->n_ids &&
           d->known[table[i]] == seq->hashes[i])
        i++;
    seq->n_drafted = i * bt > seq->n_drafted ? i * bt : seq->n_drafted;
}

/* Blocks that are whole by now. */
static void note_known(struct td_drafter *d, const struct td_sched *sched,
                       const struct td_sched_seq *seq, uint32_t from)
{
    uint32_t n, bt = d->p.block_tokens;
    const uint32_t *table = td_sched_table(sched, seq, &n);

    from -= from < TD_SCHED_MAX_DRAFT ? from : TD_SCHED_MAX_DRAFT; /* guesses that were right */
    for (uint32_t i = from / bt; seq->hashes && i < seq->n_hashes && (i + 1) * bt <= seq->n_drafted;
         i++)
        d->known[table[i]] = seq->hashes[i];
}

/* Rows for positions n_drafted .. end - 1; the last of all, where it is reached, wants what the sequence wants. */
static bool add_rows(struct td_drafter *d, const struct td_sched *sched, struct td_sched_seq *seq,
                     uint32_t end, uint32_t last)
{
    struct td_step *step = &d->step;
    uint32_t n;
    const uint32_t *table = td_sched_table(sched, seq, &n);

    if (end - seq->n_drafted > step->cap_rows - step->n_rows || end > d->p.max_model_len)
        return false;
    for (uint32_t pos = seq->n_drafted; pos < end; pos++)
        if (token_at(seq, pos) >= d->p.draft_vocab)
            return false;
    if (!td_step_add_seq(step, table, n, UINT32_MAX))
        return false;
    for (uint32_t pos = seq->n_drafted; pos < end; pos++) {
        d->known[table[pos / d->p.block_tokens]] = 0;
        if (pos < last)
            td_step_add_row(step, token_at(seq, pos), pos, TD_WANT_NONE);
        else if (seq->n_top)
            td_step_add_top_row(step, token_at(seq, pos), pos, seq->n_top);
        else
            td_step_add_row(step, token_at(seq, pos), pos, TD_WANT_LOGITS);
    }
    d->rows_of[step->n_seqs - 1] = seq;
    return true;
}

/* Draws the guess that follows a row; where there is none, the sequence gets no more of them. */
static void draw(struct td_drafter *d, struct td_sched_seq *seq, uint32_t n_guessed,
                 const struct td_step_result *r, uint32_t row)
{
    const float *logits = NULL;
    uint32_t id;

    if (!seq->n_top) {
        logits = r->logits + (size_t)row * d->p.draft_vocab;
        if (d->logits) {
            memcpy(d->logits, logits, d->p.draft_vocab * sizeof *logits);
            for (uint32_t i = d->p.draft_vocab; i < d->p.n_vocab; i++)
                d->logits[i] = -INFINITY;
            logits = d->logits;
        }
    }
    id = d->p.draw(seq, n_guessed, logits, seq->n_top ? r->top + (size_t)row * r->n_top : NULL,
                   r->n_top, d->p.draw_user);
    if (id < d->p.n_vocab)
        seq->draft[n_guessed] = id;
    else
        seq->n_draft = n_guessed;
}

/* Runs the step that was made and draws guess number `k` of each sequence whose last row is in it. */
static bool run(struct td_drafter *d, const struct td_sched *sched, uint32_t k, uint64_t *ns)
{
    struct td_step_result result = {0};
    uint32_t n_logits = 0, n_tops = 0;

    if (!d->p.run(&d->step, &result, ns, d->p.run_user)) {
        for (uint32_t i = 0; i < d->step.n_seqs; i++)
            d->rows_of[i]->n_draft = d->rows_of[i]->n_draft < k ? d->rows_of[i]->n_draft : k;
        return false;
    }
    for (uint32_t i = 0, row = 0; i < d->step.n_seqs; i++) {
        struct td_sched_seq *seq = d->rows_of[i];
        uint32_t from = seq->n_drafted;
        const struct td_step_row *last;

        row += d->step.seqs[i].n_rows;
        last = &d->step.rows[row - 1];
        seq->n_drafted = last->position + 1 < seq->n_ids ? last->position + 1 : seq->n_ids;
        note_known(d, sched, seq, from);
        if (last->want != TD_WANT_NONE)
            draw(d, seq, k, &result, seq->n_top ? n_tops++ : n_logits++);
    }
    return true;
}

/* What the draft model lacks of the sequences, and the first guess of those it then knows whole; the others get none. False: nobody
 * does. */
static bool catch_up(struct td_drafter *d, struct td_sched *sched)
{
    struct td_pace *pace = td_sched_pace(sched);
    uint32_t n = td_sched_n_running(sched), n_rows, limit = td_pace_draft_limit(pace, n);
    uint64_t ns = 0;
    bool ok;

    limit = limit < d->step.cap_rows ? limit : d->step.cap_rows;
    td_step_reset(&d->step, TD_STEP_RUN, d->number++);
    for (uint32_t i = 0; i < n; i++) {
        struct td_sched_seq *seq = td_sched_running(sched, i);
        uint32_t end = seq->n_ids, most;

        if (!seq->n_draft || seq->n_flying)
            continue;
        if (seq->n_ids > d->p.max_model_len) { /* it never will be known whole */
            seq->n_draft = 0;
            continue;
        }
        skip_known(d, sched, seq);
        /* A few rows are what guesses that were right leave behind. */
        most = seq->n_drafted + (limit > TD_SCHED_MAX_DRAFT + 1 ? limit : TD_SCHED_MAX_DRAFT + 1);
        end = end < most ? end : most;
        if (end - seq->n_drafted > TD_SCHED_MAX_DRAFT + 1)
            limit -= limit < end - seq->n_drafted ? limit : end - seq->n_drafted;
        if (!add_rows(d, sched, seq, end, seq->n_ids - 1) || end < seq->n_ids)
            seq->n_draft = 0;
    }
    n_rows = d->step.n_rows;
    ok = n_rows > 0 && run(d, sched, 0, &ns);
    if (ok)
        td_pace_learn_drafts(pace, n_rows, ns);
    return ok;
}

void td_drafter_guess(struct td_drafter *d, struct td_sched *sched)
{
    uint32_t n = td_sched_n_running(sched);
    uint64_t ns;

    if (!catch_up(d, sched))
        return;
    for (uint32_t k = 1; k < TD_SCHED_MAX_DRAFT; k++) {
        td_step_reset(&d->step, TD_STEP_RUN, d->number++);
        for (uint32_t i = 0; i < n; i++) {
            struct td_sched_seq *seq = td_sched_running(sched, i);
            uint32_t pos = seq->n_ids + k - 1, drafted = seq->n_drafted;

            if (seq->n_draft <= k || seq->n_flying)
                continue;
            seq->n_drafted = pos; /* the guess alone; it counts when it was right */
            if (!add_rows(d, sched, seq, pos + 1, pos))
                seq->n_draft = k;
            seq->n_drafted = drafted;
        }
        if (d->step.n_rows == 0 || !run(d, sched, k, &ns))
            return;
    }
}

void td_drafter_judge(struct td_sched_seq *seq)
{
    uint32_t n_fed = seq->n_draft ? seq->n_draft - 1 : 0; /* the last guess went into no row */

    if (seq->n_drafted + seq->n_right + 1 == seq->n_ids) /* all before the guesses is still there */
        seq->n_drafted += seq->n_right < n_fed ? seq->n_right : n_fed;
}
