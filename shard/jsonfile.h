/* JSON texts that lie beside weights: parsing with messages that name the file and show no control characters.
 * A thin layer over jansson; stateless, any thread. */
#ifndef TD_SHARD_JSONFILE_H
#define TD_SHARD_JSONFILE_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <jansson.h>
#include <stddef.h>

enum td_jsonfile_mode {
    TD_JSONFILE_STRICT, /* a key that is there twice is refused; integers have 63 bits */
    TD_JSONFILE_CONFIG /* as Python reads it: the last of equal keys; every number is a real, of any size */
};

/* Parses `text`, which must be one JSON object of at most `max_bytes`. On success *root is owned by the caller
 * (json_decref). TD_CORRUPT with line and column, TD_TOO_LARGE. `what` names the text in messages. */
enum td_status td_jsonfile_parse(struct td_str text, const char *what, size_t max_bytes,
                                 enum td_jsonfile_mode mode, json_t **root, struct td_err *err);

/* "string", "object" ...: the type of a value, for messages. */
const char *td_jsonfile_type_name(const json_t *value);

/* True for well-formed UTF-8 without control characters: what may go into a message or a table. */
bool td_jsonfile_is_printable(struct td_str s);

#endif
