/* Reads tokenizer.json (Hugging Face tokenizers) and tokenizer_config.json. Both are untrusted: every type, id and
 * length is checked, and a part that is not built is refused by its name. tokjson.c reads the vocabulary and the merge
 * rules, tokparts.c the stages around them. For these two files only. */
#ifndef TD_DAEMON_TEXT_TOKJSON_H
#define TD_DAEMON_TEXT_TOKJSON_H

#include "daemon/text/tokimpl.h"

#include <jansson.h>

/* One file as it is read. */
struct td_tokjson {
    struct td_tokenizer *tok;
    struct td_err *err;
    bool byte_fallback;
    bool decode_bytes;           /* the decoder turns "<0x0A>" into a byte */
    struct td_str mark, mark_as; /* the decoder writes `mark_as` for each `mark`; empty: none */
    struct td_bytes scratch[3];
};

/* Errors that name the file's part: TD_UNSUPPORTED, TD_CORRUPT, TD_NO_MEMORY. */
enum td_status td_tokjson_refuse(struct td_tokjson *l, const char *what, const char *name);
enum td_status td_tokjson_broken(struct td_tokjson *l, const char *what, const char *expected);
enum td_status td_tokjson_no_memory(struct td_tokjson *l);
/* Why the text `what` could not be parsed: TD_CORRUPT with the place, TD_NO_MEMORY. */
enum td_status td_tokjson_unread(const char *what, const json_error_t *why, struct td_err *err);

struct td_str td_tokjson_str(const json_t *j); /* of a JSON string */
/* An optional boolean, `absent` when it is not there; false when it has another type. */
bool td_tokjson_bool(const json_t *j, const char *key, bool absent, bool *out);
/* A token id; false when it is none. */
bool td_tokjson_id(const json_t *j, uint32_t *id);

/* Loads normalizer, pre_tokenizer, decoder and post_processor of the whole document. */
enum td_status td_tokparts_load(struct td_tokjson *l, const json_t *root);

#endif
