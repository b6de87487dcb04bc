/* From what the journal keeps back to what the coordinator runs: a part that has not ended as a request to submit, and its
 * tokens as events to tell again. Pure. */
#ifndef TD_DAEMON_JOURNAL_RESUME_H
#define TD_DAEMON_JOURNAL_RESUME_H

#include "daemon/engine/request.h"
#include "daemon/journal/stored.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

/* The detail of a token: what of its event does not follow from its id (log probabilities, the sampler's state, times).
 * Replaces the content of `out`, with nothing where there is nothing to say. TD_NO_MEMORY. */
enum td_status td_resume_detail(const struct td_token_event *event, struct td_bytes *out,
                                struct td_err *err);
/* Entry i of a run of tokens as it was told; no request's id and no end. TD_CORRUPT. */
enum td_status td_resume_event(const struct td_stored_tokens *tokens, bool is_prompt, uint32_t i,
                               struct td_token_event *event, struct td_err *err);
/* A part as a replay: its prompt, its choice, and what it has emitted. Log probabilities of the prompt are asked for again only
 * where some are missing, of the first choice. On success td_request_deinit. TD_CORRUPT, TD_NO_MEMORY. */
enum td_status td_resume_request(const struct td_stored *stored, uint32_t part,
                                 struct td_request *request, struct td_err *err);

#endif
