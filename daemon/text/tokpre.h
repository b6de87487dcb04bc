/* Pre-tokenizers that GGUF files name: tokenizer.ggml.pre stands for the cuts that the models of that name were published
 * with. A fixed table; any thread. */
#ifndef TD_DAEMON_TEXT_TOKPRE_H
#define TD_DAEMON_TEXT_TOKPRE_H

#include "kernels/base/bytes.h"

#include <stdbool.h>

enum { TD_TOKPRE_MAX_PATTERNS = 2, TD_TOKPRE_MAX_NAMES = 16 };

struct td_tokpre {
    const char *names[TD_TOKPRE_MAX_NAMES];       /* the first is the one to write */
    const char *patterns[TD_TOKPRE_MAX_PATTERNS]; /* each cuts what the one before left */
    bool nfc;                                     /* text is brought into normal form C first */
    bool whole_first; /* a word that is a token becomes it, whatever the merges say */
    bool bos;         /* where the file does not say, text begins with BOS */
};

/* By a name in a file; NULL when there is none. */
const struct td_tokpre *td_tokpre_find(struct td_str name);
/* By what it does, for writing a file; NULL when no name stands for that. */
const struct td_tokpre *td_tokpre_match(const struct td_str *patterns, size_t n_patterns, bool nfc,
                                        bool whole_first);

#endif
