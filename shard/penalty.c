#include "shard/penalty.h"

#include <stdlib.h>

struct seen {
    uint32_t prompt, output; /* occurrences in the window */
};

struct td_penalty {
    float repetition, presence, frequency;
    uint32_t n_vocab;
    struct seen *seen; /* owned [n_vocab] */
    uint32_t window;   /* 0: everything counts, and `last` is NULL */
    uint32_t *last;    /* owned ring [window]: id number i lies at i % window */
    uint64_t n_prompt, n_ids;
};

struct td_penalty *td_penalty_open(const struct td_sampling *params, uint32_t n_vocab)
{
    struct td_penalty *p = calloc(1, sizeof(*p));

    if (!p)
        return NULL;
    p->repetition = params->repetition_penalty;
    p->presence = params->presence_penalty;
    p->frequency = params->frequency_penalty;
    p->n_vocab = n_vocab;
    p->seen = calloc(n_vocab, sizeof(*p->seen));
    if (params->repeat_last_n > 0) {
        p->window = (uint32_t)params->repeat_last_n;
        p->last = malloc(p->window * sizeof(*p->last));
    }
    if (!p->seen || (p->window && !p->last)) {
        td_penalty_close(p);
        return NULL;
    }
    return p;
}

void td_penalty_close(struct td_penalty *p)
{
    if (!p)
        return;
    free(p->last);
    free(p->seen);
    free(p);
}

/* The oldest id leaves a full window. */
static void drop_oldest(struct td_penalty *p)
{
    uint32_t id = p->last[p->n_ids % p->window];
    bool is_output = p->n_ids - p->window >= p->n_prompt;

    if (id >= p->n_vocab)
        return;
    if (is_output)
        p->seen[id].output--;
    else
        p->seen[id].prompt--;
}

void td_penalty_accept(struct td_penalty *p, uint32_t id, bool is_output)
{
    if (p->window) {
        if (p->n_ids >= p->window)
            drop_oldest(p);
        p->last[p->n_ids % p->window] = id;
    }
    p->n_ids++;
    p->n_prompt += !is_output;
    if (id >= p->n_vocab)
        return;
    if (is_output)
        p->seen[id].output++;
    else
        p->seen[id].prompt++;
}

void td_penalty_apply(const struct td_penalty *p, uint32_t first_id, uint32_t n, float *z)
{
    for (uint32_t i = 0; i < n; i++) {
        struct seen seen = p->seen[first_id + i];

        if (seen.prompt == 0 && seen.output == 0)
            continue;
        if (p->repetition != 1)
            z[i] = z[i] > 0 ? z[i] / p->repetition : z[i] * p->repetition;
        if (seen.output > 0)
            z[i] -= (float)seen.output * p->frequency + p->presence;
    }
}
