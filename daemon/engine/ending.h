/* When a sequence ends: end tokens, stop ids, stop strings and lengths, and what min_tokens forbids. Also the text that
 * may be shown, since whoever cuts the text of a stream must decide as rank 0 did. Rank 0's engine holds one per
 * request without text; the coordinator may hold one with it. One writer. Knows ids and text, neither logits nor steps. */
#ifndef TD_DAEMON_ENGINE_ENDING_H
#define TD_DAEMON_ENGINE_ENDING_H

#include "daemon/engine/request.h"
#include "daemon/text/detok.h"
#include "shard/spec.h"

struct td_stop;

/* Stop strings are looked for in the text as shown: special tokens write nothing, and a space at the front stays,
 * since the text goes on from a prompt. */
enum {
    TD_ENDING_MAX_IDS = TD_SPEC_MAX_EOS + TD_REQUEST_MAX_STOP_IDS,
    TD_ENDING_DETOK_FLAGS = TD_DETOK_SKIP_SPECIAL | TD_DETOK_CONTINUE
};

struct td_ending {
    uint32_t min_tokens;
    uint32_t max_tokens;
    bool include_stop;
    bool has_text;  /* a tokenizer was given */
    uint32_t n_ids; /* end tokens unless ignored, and stop ids */
    uint32_t ids[TD_ENDING_MAX_IDS];
    struct td_detok detok;
    struct td_bytes text; /* owned; of the token at hand */
    struct td_stop *stop; /* owned; NULL without stop strings */
};

/* `r` is validated. `tokenizer` (borrowed until deinit) may be NULL when there are no stop strings and no text is
 * wanted; TD_UNSUPPORTED with stop strings. TD_NO_MEMORY. On an error there is nothing to deinit. */
enum td_status td_ending_init(struct td_ending *end, const struct td_request *r,
                              const uint32_t *eos_ids, uint32_t n_eos,
                              const struct td_tokenizer *tokenizer, struct td_err *err);
void td_ending_deinit(struct td_ending *end); /* legal on zeroes, and twice */

/* The ids that may not be drawn as output token number `n_output` (0 first); borrowed. */
const uint32_t *td_ending_banned(const struct td_ending *end, uint32_t n_output,
                                 uint32_t *n_banned);

/* Takes the output token `id`, after which there are `n_output`. Call it once per token, in order. *finish tells
 * whether it is the last one. Appends to `shown` (may be NULL) the text that may be shown now: all but the start of a
 * possible stop string; the text of an end token or stop id only if the request includes stops. Stop strings are
 * looked for in the text of the tokens after the first min_tokens. Allocates only for a token of more than 1 KiB of
 * text. TD_NO_MEMORY, or the buffer's TD_TOO_LARGE. */
enum td_status td_ending_judge(struct td_ending *end, uint32_t id, uint32_t n_output,
                               enum td_finish *finish, struct td_bytes *shown);
/* The text held back, when the sequence has ended otherwise than by a stop string (writes nothing after one). */
enum td_status td_ending_flush(struct td_ending *end, struct td_bytes *shown);

#endif
