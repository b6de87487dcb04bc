/* What the commands that look after a running server share: a question whose answer is a JSON object, and how one reads it. */
#ifndef TD_DAEMON_CLI_ASK_H
#define TD_DAEMON_CLI_ASK_H

#include "daemon/api/json.h"
#include "daemon/cli/options.h"

/* Asks the server of --url, and waits 10 s at most for a word of it. *answer is owned (json_decref) and has `member`.
 * td_client_call's and td_client_check's errors, TD_PEER_PROTOCOL without the member. */
enum td_status td_ask(const struct td_options *opts, const char *method, const char *path,
                      const char *body, const char *member, json_t **answer, struct td_err *err);

/* What is missing reads as 0 and "": an older or newer server may leave some out. */
uint64_t td_ask_number(const json_t *object, const char *key);
const char *td_ask_text(const json_t *object, const char *key);

/* "request" or "requests". */
const char *td_ask_requests(uint64_t n);

#endif
