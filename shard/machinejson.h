/* A machine's figures (predict.h) as JSON, to the program that predicts from what another one measured. Pure but for memory. */
#ifndef TD_SHARD_MACHINEJSON_H
#define TD_SHARD_MACHINEJSON_H

#include "kernels/base/err.h"
#include "shard/predict.h"

#include <jansson.h>

/* The machine with who says so: "measured here", or a file; and the same of its links. A link that no pair of ranks has is left
 * out. Returned owned; NULL without memory. */
json_t *td_machinejson_encode(const struct td_machine *machine, const char *source,
                              const char *links_source);
/* Whether some pair of ranks is on one host, or with `inter` on two. */
bool td_machinejson_has_link(const struct td_machine *machine, bool inter);
/* Reads what encode wrote; a link that was left out becomes one without latency. TD_INVALID names the member that is missing or wrong, and
 * what was expected there. */
enum td_status td_machinejson_decode(const json_t *json, struct td_machine *machine,
                                     struct td_err *err);

#endif
