/* One request as it is read back from the journal: its record, and what became of each of its parts. Pure. */
#ifndef TD_DAEMON_JOURNAL_STORED_H
#define TD_DAEMON_JOURNAL_STORED_H

#include "daemon/journal/batch.h"
#include "daemon/journal/record.h"

/* Tokens from the first on, without a gap. */
struct td_stored_tokens {
    uint32_t n, cap;
    uint32_t *ids;        /* owned, [n] */
    struct td_bytes text; /* all details, one behind the other */
    size_t *detail_end;   /* owned, [n]: of the detail of each in `text` */
};
/* Borrows until the tokens change. Empty for a token without any. */
struct td_str td_stored_detail(const struct td_stored_tokens *t, uint32_t i);

struct td_stored_part {
    struct td_stored_tokens prompt; /* entry i is of prompt position i + 1: the first has none */
    struct td_stored_tokens output;
    bool has_end;            /* how it ended is known, and all tokens that it had are here */
    struct td_batch_end end; /* has_end; error_text and details show `end_text` */
    struct td_bytes end_text;
};

struct td_stored {
    uint64_t number; /* in the order of acceptance */
    struct td_record record;
    struct td_stored_part *parts; /* owned, [td_record_n_parts] */
    bool is_ended;                /* all parts did, even where not all tokens were kept */
    int64_t expires_ms;           /* is_ended: Unix time */
};

/* Begins with a record's bytes. TD_CORRUPT, TD_NO_MEMORY; on success td_stored_deinit. */
enum td_status td_stored_init(struct td_stored *s, uint64_t number, struct td_str record,
                              struct td_err *err);
/* Takes a batch in. Tokens that are known are passed over; one behind a gap is left out, with all that follow it: a missing
 * tail is computed again. TD_CORRUPT for a part that the request lacks, TD_NO_MEMORY. */
enum td_status td_stored_add(struct td_stored *s, const struct td_batch *batch, struct td_err *err);
void td_stored_deinit(struct td_stored *s);

#endif
