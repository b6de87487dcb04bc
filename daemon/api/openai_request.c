#include "daemon/api/json.h"
#include "daemon/api/openai.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One body under way. Every check returns false after it has filled `e`; the first failure ends the parse. */
struct parser {
    struct td_openai_request *req;
    struct td_openai_error *e;
    const json_t *root;
};

static bool fail(struct parser *p, const char *param, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static bool fail(struct parser *p, const char *param, const char *code, const char *fmt, ...)
{
    char text[sizeof(p->e->message)];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    td_openai_error_set(p->e, 400, "invalid_request_error", code, param, "%s", text);
    return false;
}

static bool fail_memory(struct parser *p)
{
    td_openai_error_set(p->e, 503, "service_unavailable_error", "no_memory", NULL,
                        "No memory for this request: try again later.");
    return false;
}

static bool fail_type(struct parser *p, const char *param, const json_t *value,
                      const char *expected)
{
    static const char *const names[] = {"an object", "a list",    "a string",  "an integer",
                                        "a number",  "a boolean", "a boolean", "null"};
    return fail(p, param, "invalid_type", "Invalid type for '%s': expected %s, got %s.", param,
                expected, names[json_typeof(value)]);
}

static bool unsupported(struct parser *p, const char *param, const char *what)
{
    return fail(p, param, "unsupported_parameter",
                "'%s' %s: this is not supported by this server yet.", param, what);
}

/* A field that is present and not null; null counts as absent, as the API's nullable fields want. */
static const json_t *field(const struct parser *p, const char *name)
{
    const json_t *value = json_object_get(p->root, name);
    return value == NULL || json_is_null(value) ? NULL : value;
}

static bool copy_string(struct parser *p, const json_t *value, struct td_str *out)
{
    size_t n = json_string_length(value);
    char *text = td_arena_strndup(&p->req->arena, json_string_value(value), n);
    if (text == NULL) {
        return fail_memory(p);
    }
    *out = (struct td_str){text, n};
    return true;
}

static bool get_bool(struct parser *p, const char *name, bool *out)
{
    const json_t *value = field(p, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_boolean(value)) {
        return fail_type(p, name, value, "a boolean");
    }
    *out = json_is_true(value);
    return true;
}

/* Integers may be written as 16.0, as some clients do. */
static bool integer_of(const json_t *value, int64_t *out)
{
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    if (json_is_real(value)) {
        double d = json_real_value(value);
        if (d == floor(d) && fabs(d) <= 9007199254740992.0) {
            *out = (int64_t)d;
            return true;
        }
    }
    return false;
}

static bool get_int(struct parser *p, const char *name, int64_t low, int64_t high, bool *present,
                    int64_t *out)
{
    const json_t *value = field(p, name);
    *present = false;
    if (value == NULL) {
        return true;
    }
    int64_t n;
    if (!integer_of(value, &n)) {
        return fail_type(p, name, value, "an integer");
    }
    if (n < low || n > high) {
        return fail(p, name, "invalid_value",
                    "Invalid value for '%s': %lld, expected an integer from %lld to %lld.", name,
                    (long long)n, (long long)low, (long long)high);
    }
    *present = true;
    *out = n;
    return true;
}

static bool get_float(struct parser *p, const char *name, double low, double high, bool open_low,
                      float *out)
{
    const json_t *value = field(p, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_number(value)) {
        return fail_type(p, name, value, "a number");
    }
    double d = json_number_value(value);
    /* What underflows to 0 in F32 would break an open lower bound only after this check. */
    if (!(d >= low && d <= high) || (open_low && !((float)d > (float)low))) {
        return fail(p, name, "invalid_value",
                    "Invalid value for '%s': %g, expected a number %s %g and at most %g.", name, d,
                    open_low ? "above" : "of at least", low, high);
    }
    *out = (float)d;
    return true;
}

/* ---- Sampling and limits ---- */

static bool parse_penalties_and_cuts(struct parser *p)
{
    struct td_sampling *s = &p->req->sampling;
    int64_t n;
    bool present;
    if (!get_float(p, "temperature", 0, 2, false, &s->temperature) ||
        !get_float(p, "top_p", 0, 1, true, &s->top_p) ||
        !get_float(p, "min_p", 0, 1, false, &s->min_p) ||
        !get_float(p, "repetition_penalty", 0, 1000, true, &s->repetition_penalty) ||
        !get_float(p, "presence_penalty", -2, 2, false, &s->presence_penalty) ||
        !get_float(p, "frequency_penalty", -2, 2, false, &s->frequency_penalty) ||
        !get_int(p, "top_k", -1, INT32_MAX, &present, &n)) {
        return false;
    }
    if (present) {
        s->top_k = (int32_t)n;
    }
    if (!get_int(p, "seed", INT64_MIN, INT64_MAX, &p->req->has_seed, &n)) {
        return false;
    }
    if (p->req->has_seed) {
        s->seed = (uint64_t)n;
    }
    return true;
}

static bool parse_limits(struct parser *p)
{
    struct td_openai_request *req = p->req;
    int64_t n;
    bool present;
    const char *name = "max_tokens";
    if (!get_int(p, name, 1, UINT32_MAX, &present, &n)) {
        return false;
    }
    if (present) {
        req->has_max_tokens = true;
        req->max_tokens = (uint32_t)n;
    } else if (req->kind == TD_OPENAI_COMPLETION) {
        req->has_max_tokens = true;
        req->max_tokens = TD_OPENAI_DEFAULT_MAX_TOKENS;
    }
    if (req->kind == TD_OPENAI_CHAT) { /* the newer name wins over the older */
        if (!get_int(p, "max_completion_tokens", 1, UINT32_MAX, &present, &n)) {
            return false;
        }
        if (present) {
            req->has_max_tokens = true;
            req->max_tokens = (uint32_t)n;
            name = "max_completion_tokens";
        }
    }
    if (!get_int(p, "min_tokens", 0, UINT32_MAX, &present, &n) ||
        !get_bool(p, "ignore_eos", &req->ignore_eos) ||
        !get_bool(p, "include_stop_str_in_output", &req->include_stop)) {
        return false;
    }
    if (present) {
        req->min_tokens = (uint32_t)n;
        if (req->has_max_tokens && req->min_tokens > req->max_tokens) {
            return fail(p, "min_tokens", "invalid_value",
                        "Invalid value for 'min_tokens': %u is more than '%s' (%u).",
                        req->min_tokens, name, req->max_tokens);
        }
    }
    return true;
}

static bool add_stop(struct parser *p, const json_t *value, const char *param)
{
    struct td_openai_request *req = p->req;
    if (!json_is_string(value)) {
        return fail_type(p, param, value, "a string");
    }
    size_t n = json_string_length(value);
    if (n == 0 || n > TD_REQUEST_MAX_STOP_BYTES) {
        return fail(p, param, "invalid_value",
                    "Invalid value for '%s': %zu bytes, expected 1 to %d.", param, n,
                    TD_REQUEST_MAX_STOP_BYTES);
    }
    if (!copy_string(p, value, &req->stops[req->n_stops])) {
        return false;
    }
    req->n_stops++;
    return true;
}

static bool parse_stop(struct parser *p)
{
    const json_t *value = field(p, "stop");
    if (value == NULL) {
        return true;
    }
    if (!json_is_array(value)) {
        return json_is_string(value) ? add_stop(p, value, "stop")
                                     : fail_type(p, "stop", value, "a string or a list of strings");
    }
    size_t n = json_array_size(value);
    if (n > TD_REQUEST_MAX_STOPS) {
        return fail(p, "stop", "array_above_max_length",
                    "Invalid 'stop': a list of %zu strings, expected at most %d.", n,
                    TD_REQUEST_MAX_STOPS);
    }
    for (size_t i = 0; i < n; i++) {
        char param[32];
        snprintf(param, sizeof(param), "stop[%zu]", i);
        if (!add_stop(p, json_array_get(value, i), param)) {
            return false;
        }
    }
    return true;
}

/* One token id; ids are checked against the vocabulary later, by who knows it. */
static bool id_of(struct parser *p, const json_t *value, const char *param, uint32_t *out)
{
    int64_t n;
    if (!integer_of(value, &n)) {
        return fail_type(p, param, value, "a token id");
    }
    if (n < 0 || n > INT32_MAX) {
        return fail(p, param, "invalid_value", "Invalid value for '%s': %lld is no token id.",
                    param, (long long)n);
    }
    *out = (uint32_t)n;
    return true;
}

static bool parse_stop_ids(struct parser *p)
{
    const json_t *value = field(p, "stop_token_ids");
    struct td_openai_request *req = p->req;
    if (value == NULL) {
        return true;
    }
    if (!json_is_array(value)) {
        return fail_type(p, "stop_token_ids", value, "a list of token ids");
    }
    size_t n = json_array_size(value);
    if (n > TD_REQUEST_MAX_STOP_IDS) {
        return fail(p, "stop_token_ids", "array_above_max_length",
                    "Invalid 'stop_token_ids': a list of %zu ids, expected at most %d.", n,
                    TD_REQUEST_MAX_STOP_IDS);
    }
    for (size_t i = 0; i < n; i++) {
        if (!id_of(p, json_array_get(value, i), "stop_token_ids", &req->stop_ids[i])) {
            return false;
        }
        req->n_stop_ids++;
    }
    return true;
}

static bool parse_logit_bias(struct parser *p)
{
    const json_t *map = field(p, "logit_bias");
    struct td_sampling *s = &p->req->sampling;
    if (map == NULL) {
        return true;
    }
    if (!json_is_object(map)) {
        return fail_type(p, "logit_bias", map, "an object of token id to number");
    }
    if (json_object_size(map) > TD_SAMPLER_MAX_BIAS) {
        return fail(p, "logit_bias", "object_above_max_properties",
                    "Invalid 'logit_bias': %zu entries, expected at most %d.",
                    json_object_size(map), TD_SAMPLER_MAX_BIAS);
    }
    s->n_bias = 0;
    /* jansson's iteration takes a non-const object, although it changes nothing. */
    json_t *object = (json_t *)(uintptr_t)map;
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        char *end = NULL;
        unsigned long id = key[0] >= '0' && key[0] <= '9' ? strtoul(key, &end, 10) : 0;
        if (end == NULL || *end != '\0' || id > INT32_MAX) {
            return fail(p, "logit_bias", "invalid_value",
                        "Invalid key '%.32s' in 'logit_bias': expected a token id.", key);
        }
        double bias = json_number_value(value);
        if (!json_is_number(value) || !(bias >= -100 && bias <= 100)) {
            return fail(p, "logit_bias", "invalid_value",
                        "Invalid 'logit_bias' of token %lu: expected a number from -100 to 100.",
                        id);
        }
        s->bias[s->n_bias++] = (struct td_logit_bias){(uint32_t)id, (float)bias};
    }
    return true;
}

static bool parse_logprobs(struct parser *p)
{
    struct td_openai_request *req = p->req;
    int64_t n = 0;
    bool present;
    if (req->kind == TD_OPENAI_COMPLETION) {
        if (!get_int(p, "logprobs", 0, TD_OPENAI_MAX_TOP_LOGPROBS, &present, &n)) {
            return false;
        }
        req->want_logprobs = present;
    } else {
        if (!get_bool(p, "logprobs", &req->want_logprobs) ||
            !get_int(p, "top_logprobs", 0, TD_OPENAI_MAX_TOP_LOGPROBS, &present, &n)) {
            return false;
        }
        if (present && n > 0 && !req->want_logprobs) {
            return fail(p, "top_logprobs", "invalid_value",
                        "'top_logprobs' is only allowed with 'logprobs': true.");
        }
    }
    req->sampling.n_logprobs = req->want_logprobs ? (int32_t)n : -1;
    return true;
}

static bool parse_stream(struct parser *p)
{
    const json_t *options = field(p, "stream_options");
    if (!get_bool(p, "stream", &p->req->stream)) {
        return false;
    }
    if (options == NULL) {
        return true;
    }
    if (!json_is_object(options)) {
        return fail_type(p, "stream_options", options, "an object");
    }
    if (!p->req->stream) {
        return fail(p, "stream_options", "invalid_value",
                    "'stream_options' is only allowed with 'stream': true.");
    }
    const json_t *usage = json_object_get(options, "include_usage");
    if (usage != NULL && !json_is_null(usage)) {
        if (!json_is_boolean(usage)) {
            return fail_type(p, "stream_options.include_usage", usage, "a boolean");
        }
        p->req->include_usage = json_is_true(usage);
    }
    return true;
}

/* ---- What is not built yet ---- */

/* Fields that other servers know and that would change the output: passing over them would give an answer that is not
 * what was asked for. `neutral` is the JSON text of the value that asks for nothing; empty lists and objects never do. */
static const struct {
    const char *name;
    const char *neutral; /* "false", "true", "0", "1"; NULL: none */
} refused[] = {
    {"tools", NULL},
    {"functions", NULL},
    {"audio", NULL},
    {"web_search_options", NULL},
    {"suffix", NULL},
    {"echo", "false"},
    {"best_of", "1"},
    {"use_beam_search", "false"},
    {"guided_json", NULL},
    {"guided_regex", NULL},
    {"guided_choice", NULL},
    {"guided_grammar", NULL},
    {"structured_outputs", NULL},
    {"grammar", NULL},
    {"json_schema", NULL},
    {"bad_words", NULL},
    {"allowed_token_ids", NULL},
    {"prompt_logprobs", NULL},
    {"chat_template", NULL},
    {"continue_final_message", "false"},
    {"add_generation_prompt", "true"},
    {"logits_processors", NULL},
    {"prompt_embeds", NULL},
    {"skip_special_tokens", "true"},
    {"truncate_prompt_tokens", NULL},
};

static bool is_neutral(const json_t *value, const char *neutral)
{
    if (json_is_array(value) || json_is_object(value)) {
        return json_is_array(value) ? json_array_size(value) == 0 : json_object_size(value) == 0;
    }
    if (json_is_string(value)) {
        return json_string_length(value) == 0;
    }
    if (neutral == NULL) {
        return false;
    }
    if (json_is_boolean(value)) {
        return strcmp(neutral, json_is_true(value) ? "true" : "false") == 0;
    }
    return json_is_integer(value) && json_integer_value(value) == strtoll(neutral, NULL, 10) &&
           neutral[0] <= '9';
}

static bool string_field_is(const json_t *value, const char *a, const char *b)
{
    const char *text = json_string_value(value);
    return text != NULL && (strcmp(text, a) == 0 || (b != NULL && strcmp(text, b) == 0));
}

static bool refuse_unbuilt(struct parser *p)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        const json_t *value = field(p, refused[i].name);
        if (value != NULL && !is_neutral(value, refused[i].neutral)) {
            return unsupported(p, refused[i].name, "was given");
        }
    }
    int64_t n = 1;
    bool present;
    if (!get_int(p, "n", 1, 128, &present, &n)) {
        return false;
    }
    if (n > 1) {
        return unsupported(p, "n", "is above 1");
    }
    const char *choices[] = {"tool_choice", "function_call"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *choice = field(p, choices[i]);
        if (choice != NULL && !string_field_is(choice, "none", "auto")) {
            return unsupported(p, choices[i], "asks for a call");
        }
    }
    const json_t *format = field(p, "response_format");
    if (format != NULL) {
        if (!json_is_object(format)) {
            return fail_type(p, "response_format", format, "an object");
        }
        if (!string_field_is(json_object_get(format, "type"), "text", NULL)) {
            return unsupported(p, "response_format", "is not of type 'text'");
        }
    }
    const json_t *modalities = field(p, "modalities");
    for (size_t i = 0; i < json_array_size(modalities); i++) {
        if (!string_field_is(json_array_get(modalities, i), "text", NULL)) {
            return unsupported(p, "modalities", "has more than 'text'");
        }
    }
    return true;
}

/* ---- Messages ---- */

/* Appends a text part; parts are joined by newlines. */
static bool add_part(struct parser *p, const json_t *part, const char *param, struct td_bytes *text,
                     bool is_first)
{
    if (!json_is_object(part)) {
        return fail_type(p, param, part, "an object with 'type' and 'text'");
    }
    const char *type = json_string_value(json_object_get(part, "type"));
    if (type == NULL) {
        return fail(p, param, "missing_required_parameter", "'%s' has no 'type'.", param);
    }
    if (strcmp(type, "text") != 0) {
        return fail(p, param, "unsupported_content",
                    "'%s' is of type '%.32s', expected 'text': other content is not supported by "
                    "this server yet.",
                    param, type);
    }
    const json_t *value = json_object_get(part, "text");
    if (!json_is_string(value)) {
        return fail(p, param, "missing_required_parameter", "'%s' has no string 'text'.", param);
    }
    if ((!is_first && td_bytes_append(text, "\n", 1) != TD_OK) ||
        td_bytes_append(text, json_string_value(value), json_string_length(value)) != TD_OK) {
        return fail_memory(p);
    }
    return true;
}

static bool parse_content(struct parser *p, const json_t *content, const char *param,
                          struct td_str *out)
{
    if (json_is_string(content)) {
        return copy_string(p, content, out);
    }
    if (!json_is_array(content)) {
        return fail_type(p, param, content, "a string or a list of text parts");
    }
    struct td_bytes text = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(content); i++) {
        char part[sizeof(p->e->param)];
        snprintf(part, sizeof(part), "%s[%zu]", param, i);
        ok = add_part(p, json_array_get(content, i), part, &text, i == 0);
    }
    if (ok) {
        char *copy = td_arena_strndup(&p->req->arena, text.len > 0 ? text.data : "", text.len);
        *out = (struct td_str){copy, text.len};
        ok = copy != NULL || fail_memory(p);
    }
    td_bytes_deinit(&text);
    return ok;
}

static bool parse_message(struct parser *p, const json_t *value, size_t index,
                          struct td_openai_message *out)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant"};
    char param[64];
    snprintf(param, sizeof(param), "messages[%zu]", index);
    if (!json_is_object(value)) {
        return fail_type(p, param, value, "an object");
    }
    snprintf(param, sizeof(param), "messages[%zu].role", index);
    const json_t *role = json_object_get(value, "role");
    if (role == NULL) {
        return fail(p, param, "missing_required_parameter", "Missing required parameter: '%s'.",
                    param);
    }
    if (!json_is_string(role)) {
        return fail_type(p, param, role, "a string");
    }
    if (string_field_is(role, "tool", "function")) {
        return unsupported(p, param, "is 'tool' or 'function'");
    }
    bool known = false;
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        known |= string_field_is(role, roles[i], NULL);
    }
    if (!known) {
        return fail(p, param, "invalid_value",
                    "Invalid value for '%s': '%.32s', expected 'system', 'developer', 'user' or "
                    "'assistant'.",
                    param, json_string_value(role));
    }
    const json_t *calls = json_object_get(value, "tool_calls");
    const json_t *call = json_object_get(value, "function_call");
    if (json_array_size(calls) > 0 || (call != NULL && !json_is_null(call))) {
        snprintf(param, sizeof(param), "messages[%zu].tool_calls", index);
        return unsupported(p, param, "was given");
    }
    const json_t *name = json_object_get(value, "name");
    if (name != NULL && !json_is_null(name)) {
        snprintf(param, sizeof(param), "messages[%zu].name", index);
        if (!json_is_string(name)) {
            return fail_type(p, param, name, "a string");
        }
        if (!copy_string(p, name, &out->name)) {
            return false;
        }
    }
    snprintf(param, sizeof(param), "messages[%zu].content", index);
    const json_t *content = json_object_get(value, "content");
    if (content == NULL) {
        return fail(p, param, "missing_required_parameter", "Missing required parameter: '%s'.",
                    param);
    }
    return copy_string(p, role, &out->role) && parse_content(p, content, param, &out->content);
}

static bool parse_messages(struct parser *p)
{
    struct td_openai_request *req = p->req;
    const json_t *list = field(p, "messages");
    if (list == NULL) {
        return fail(p, "messages", "missing_required_parameter",
                    "Missing required parameter: 'messages'.");
    }
    if (!json_is_array(list)) {
        return fail_type(p, "messages", list, "a list of messages");
    }
    size_t n = json_array_size(list);
    if (n == 0 || n > TD_OPENAI_MAX_MESSAGES) {
        return fail(p, "messages", "invalid_value",
                    "Invalid 'messages': a list of %zu messages, expected 1 to %d.", n,
                    TD_OPENAI_MAX_MESSAGES);
    }
    req->messages = td_arena_alloc(&req->arena, n * sizeof(*req->messages));
    if (req->messages == NULL) {
        return fail_memory(p);
    }
    memset(req->messages, 0, n * sizeof(*req->messages));
    req->n_messages = n;
    for (size_t i = 0; i < n; i++) {
        if (!parse_message(p, json_array_get(list, i), i, &req->messages[i])) {
            return false;
        }
    }
    return true;
}

/* ---- Prompts ---- */

static bool add_ids(struct parser *p, const json_t *list, const char *param,
                    struct td_openai_prompt *out)
{
    size_t n = json_array_size(list);
    if (n == 0 || n > TD_OPENAI_MAX_PROMPT_IDS) {
        return fail(p, param, "invalid_value", "Invalid '%s': a list of %zu ids, expected 1 to %d.",
                    param, n, TD_OPENAI_MAX_PROMPT_IDS);
    }
    uint32_t *ids = td_arena_alloc(&p->req->arena, n * sizeof(*ids));
    if (ids == NULL) {
        return fail_memory(p);
    }
    for (size_t i = 0; i < n; i++) {
        if (!id_of(p, json_array_get(list, i), param, &ids[i])) {
            return false;
        }
    }
    *out = (struct td_openai_prompt){.is_ids = true, .ids = ids, .n_ids = (uint32_t)n};
    return true;
}

static bool add_prompt(struct parser *p, const json_t *value, const char *param,
                       struct td_openai_prompt *out)
{
    if (json_is_string(value)) {
        return copy_string(p, value, &out->text);
    }
    if (json_is_array(value)) {
        return add_ids(p, value, param, out);
    }
    return fail_type(p, param, value, "a string or a list of token ids");
}

static bool parse_prompt(struct parser *p)
{
    struct td_openai_request *req = p->req;
    const json_t *value = field(p, "prompt");
    if (value == NULL) {
        return fail(p, "prompt", "missing_required_parameter",
                    "Missing required parameter: 'prompt'.");
    }
    if (!json_is_string(value) && !json_is_array(value)) {
        return fail_type(
            p, "prompt", value,
            "a string, a list of strings, a list of token ids or a list of such lists");
    }
    bool is_list = json_is_array(value) && !json_is_number(json_array_get(value, 0));
    size_t n = is_list ? json_array_size(value) : 1;
    if (n == 0 || n > TD_OPENAI_MAX_PROMPTS) {
        return fail(p, "prompt", "invalid_value",
                    "Invalid 'prompt': a list of %zu prompts, expected 1 to %d.", n,
                    TD_OPENAI_MAX_PROMPTS);
    }
    req->prompts = td_arena_alloc(&req->arena, n * sizeof(*req->prompts));
    if (req->prompts == NULL) {
        return fail_memory(p);
    }
    memset(req->prompts, 0, n * sizeof(*req->prompts));
    req->n_prompts = n;
    if (!is_list) {
        return add_prompt(p, value, "prompt", &req->prompts[0]);
    }
    for (size_t i = 0; i < n; i++) {
        char param[32];
        snprintf(param, sizeof(param), "prompt[%zu]", i);
        if (!add_prompt(p, json_array_get(value, i), param, &req->prompts[i])) {
            return false;
        }
    }
    return true;
}

/* ---- The body ---- */

static bool parse_names(struct parser *p)
{
    struct {
        const char *name;
        struct td_str *out;
    } names[] = {{"model", &p->req->model}, {"user", &p->req->user}};
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = field(p, names[i].name);
        if (value == NULL) {
            continue;
        }
        if (!json_is_string(value)) {
            return fail_type(p, names[i].name, value, "a string");
        }
        if (!copy_string(p, value, names[i].out)) {
            return false;
        }
    }
    return true;
}

static bool parse_body(struct parser *p)
{
    if (!json_is_object(p->root)) {
        td_openai_error_set(p->e, 400, "invalid_request_error", "invalid_type", NULL,
                            "The request body must be a JSON object.");
        return false;
    }
    return parse_names(p) && refuse_unbuilt(p) &&
           (p->req->kind == TD_OPENAI_CHAT ? parse_messages(p) : parse_prompt(p)) &&
           parse_stream(p) && parse_penalties_and_cuts(p) && parse_limits(p) && parse_stop(p) &&
           parse_stop_ids(p) && parse_logit_bias(p) && parse_logprobs(p);
}

enum td_status td_openai_request_parse(enum td_openai_kind kind, struct td_str body,
                                       const struct td_sampling *defaults,
                                       struct td_openai_request *req, struct td_openai_error *e)
{
    json_t *root = NULL;
    struct td_err err = {0};
    enum td_status status = td_json_parse(body, 0, &root, &err);
    if (status != TD_OK) {
        if (status == TD_NO_MEMORY) {
            td_openai_error_set(e, 503, "service_unavailable_error", "no_memory", NULL,
                                "No memory for this request: try again later.");
            return TD_NO_MEMORY;
        }
        return td_openai_error_set(e, 400, "invalid_request_error", "invalid_json", NULL,
                                   "The request body cannot be read: %s.", err.cause);
    }
    memset(req, 0, sizeof(*req));
    td_arena_init(&req->arena, 0, 0);
    req->kind = kind;
    req->model = TD_STR("");
    req->user = TD_STR("");
    if (defaults != NULL) {
        req->sampling = *defaults;
    } else {
        td_sampling_default(&req->sampling);
    }
    struct parser p = {req, e, root};
    bool ok = parse_body(&p);
    json_decref(root);
    if (!ok) {
        td_arena_deinit(&req->arena);
        return e->http_status == 503 ? TD_NO_MEMORY : TD_INVALID;
    }
    return TD_OK;
}

void td_openai_request_deinit(struct td_openai_request *req)
{
    td_arena_deinit(&req->arena);
}

enum td_status td_openai_request_fill(const struct td_openai_request *req, uint32_t context_tokens,
                                      struct td_request *r, struct td_err *err)
{
    r->sampling = req->sampling;
    r->max_tokens = req->has_max_tokens ? req->max_tokens : context_tokens;
    r->min_tokens = req->min_tokens;
    r->ignore_eos = req->ignore_eos;
    r->include_stop = req->include_stop;
    r->n_stop_ids = req->n_stop_ids;
    memcpy(r->stop_ids, req->stop_ids, req->n_stop_ids * sizeof(r->stop_ids[0]));
    for (uint32_t i = 0; i < req->n_stops; i++) {
        char *copy = malloc(req->stops[i].len + 1);
        if (copy == NULL) {
            return td_err_set(err, TD_NO_MEMORY, "no memory for stop string %u", i);
        }
        memcpy(copy, req->stops[i].ptr, req->stops[i].len + 1);
        r->stops[r->n_stops] = copy;
        r->stop_bytes[r->n_stops] = req->stops[i].len;
        r->n_stops++; /* counted one by one, so that td_request_deinit frees what is there */
    }
    return TD_OK;
}
