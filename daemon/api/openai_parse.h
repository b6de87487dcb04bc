/* Checked reading of one OpenAI request body: fields of a JSON object into C values, and the error that names the field.
 * Private to openai_*.c. Pure. Every function that returns bool returns false after it has filled the error. */
#ifndef TD_DAEMON_API_OPENAI_PARSE_H
#define TD_DAEMON_API_OPENAI_PARSE_H

#include "daemon/api/openai.h"

#include <jansson.h>

/* One body under way; the first failure ends the parse. */
struct td_openai_parser {
    struct td_openai_request *req;
    struct td_openai_error *e;
    const json_t *root; /* borrowed */
};

/* A 400 with this param and code. Always false. */
bool td_openai_parse_fail(struct td_openai_parser *p, const char *param, const char *code,
                          const char *fmt, ...) __attribute__((format(printf, 4, 5)));
bool td_openai_parse_fail_memory(struct td_openai_parser *p);
/* `expected` as in "a string or a list". */
bool td_openai_parse_fail_type(struct td_openai_parser *p, const char *param, const json_t *value,
                               const char *expected);
/* `what` as in "is above 1". */
bool td_openai_parse_unsupported(struct td_openai_parser *p, const char *param, const char *what);

/* A field that is present and not null, else NULL: null counts as absent, as the API's nullable fields want. */
const json_t *td_openai_parse_field(const struct td_openai_parser *p, const char *name);
/* Fields that are absent leave `out` as it is. */
bool td_openai_parse_bool(struct td_openai_parser *p, const char *name, bool *out);
bool td_openai_parse_int(struct td_openai_parser *p, const char *name, int64_t low, int64_t high,
                         bool *present, int64_t *out);
/* From low (without it when open_low) to high. */
bool td_openai_parse_float(struct td_openai_parser *p, const char *name, double low, double high,
                           bool open_low, float *out);

/* A JSON string into the request's arena. */
bool td_openai_parse_copy(struct td_openai_parser *p, const json_t *value, struct td_str *out);
/* False when the value is no whole number; fills no error. */
bool td_openai_parse_integer_of(const json_t *value, int64_t *out);
/* One token id; ids are checked against the vocabulary later, by who knows it. */
bool td_openai_parse_id(struct td_openai_parser *p, const json_t *value, const char *param,
                        uint32_t *out);
/* True when the value is the string `a` or `b` (may be NULL); fills no error. */
bool td_openai_parse_text_is(const json_t *value, const char *a, const char *b);

/* openai_prompt.c: the messages of a chat, the prompts of a completion. */
bool td_openai_prompt_messages(struct td_openai_parser *p);
bool td_openai_prompt_prompts(struct td_openai_parser *p);

#endif
