/* Byte-pair encoding of one pre-token: the best pair of neighbours is joined, again and again. "Best" is either the
 * rank of a merge rule (GPT-2 and Hugging Face files) or the score of the joined token (SentencePiece models in GGUF).
 * Read-only after loading, any thread; what a call writes is in its own td_bpe_work. */
#ifndef TD_DAEMON_TEXT_BPE_H
#define TD_DAEMON_TEXT_BPE_H

#include "daemon/text/ids.h"
#include "daemon/text/vocab.h"

struct td_bpe_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX is an empty slot */
    uint32_t rank; /* lower is joined first */
    uint32_t id;   /* of the joined token */
};

struct td_bpe {
    const struct td_vocab *vocab; /* borrowed; indexed */
    struct td_bpe_merge *merges;  /* owned, [n_merge_slots]; NULL when scores decide */
    size_t n_merge_slots;         /* power of two */
    uint32_t *priority; /* owned, [vocab->n]: lower is joined first; NULL when merge rules decide */
    bool byte_level;    /* symbols are bytes; else characters */
    bool whole_first;   /* a pre-token that is itself a token is taken whole ("ignore_merges") */
    bool fuse_unknown;  /* a run of unknown characters is one unknown token */
    int64_t unknown_id; /* -1: unknown characters are left out */
    int64_t byte_ids[256]; /* the token of each single byte; -1: none */
};

struct td_bpe_symbol;
struct td_bpe_entry;

/* Scratch of one caller. Zero-initialise. */
struct td_bpe_work {
    struct td_bpe_symbol *symbols; /* owned */
    size_t symbols_cap;
    struct td_bpe_entry *heap; /* owned */
    size_t heap_len;
    size_t heap_cap;
};

/* Makes room for `n_merges` rules. Afterwards td_bpe_add_merge cannot fail for that many. */
enum td_status td_bpe_init_merges(struct td_bpe *b, size_t n_merges, struct td_err *err);
void td_bpe_add_merge(struct td_bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
/* Takes the scores of all tokens, [vocab->n], higher is better. TD_CORRUPT for one that is not a number. */
enum td_status td_bpe_init_scores(struct td_bpe *b, const float *scores, struct td_err *err);
void td_bpe_deinit(struct td_bpe *b);

/* Appends the ids of `word` (well-formed UTF-8 unless byte_level; shorter than 2^31). O(n log n). TD_NO_MEMORY. */
enum td_status td_bpe_encode(const struct td_bpe *b, struct td_str word, struct td_bpe_work *work,
                             struct td_ids *out);
void td_bpe_work_deinit(struct td_bpe_work *work);

#endif
