#include "daemon/api/json.h"
#include "daemon/api/openai_parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Sampling and limits ---- */

static bool parse_numbers(struct td_openai_parser *p)
{
    struct td_sampling *s = &p->req->sampling;
    const struct {
        const char *name;
        double low, high;
        bool open_low;
        float *out;
    } numbers[] = {
        {"temperature", 0, 2, false, &s->temperature},
        {"dynatemp_range", 0, 100, false, &s->dynatemp_range},
        {"dynatemp_exponent", 0, 100, false, &s->dynatemp_exponent},
        {"top_p", 0, 1, true, &s->top_p},
        {"min_p", 0, 1, false, &s->min_p},
        {"typical_p", 0, 1, true, &s->typical_p},
        {"top_n_sigma", -1, 100, false, &s->top_n_sigma},
        {"xtc_probability", 0, 1, false, &s->xtc_probability},
        {"xtc_threshold", 0, 1, false, &s->xtc_threshold},
        {"repeat_penalty", 0, 1000, true, &s->repetition_penalty}, /* llama-server's name for it */
        {"repetition_penalty", 0, 1000, true, &s->repetition_penalty},
        {"presence_penalty", -2, 2, false, &s->presence_penalty},
        {"frequency_penalty", -2, 2, false, &s->frequency_penalty},
        {"dry_multiplier", 0, 100, false, &s->dry_multiplier},
        {"dry_base", 1, 100, false, &s->dry_base},
        {"mirostat_tau", 0, 100, true, &s->mirostat_tau},
        {"mirostat_eta", 0, 10, true, &s->mirostat_eta},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (!td_openai_parse_float(p, numbers[i].name, numbers[i].low, numbers[i].high,
                                   numbers[i].open_low, numbers[i].out)) {
            return false;
        }
    }
    return true;
}

static bool parse_counts(struct td_openai_parser *p)
{
    struct td_sampling *s = &p->req->sampling;
    const struct {
        const char *name;
        int64_t low, high;
        int32_t *out;
    } counts[] = {
        {"top_k", -1, INT32_MAX, &s->top_k},
        {"repeat_last_n", -1, TD_SAMPLING_MAX_WINDOW, &s->repeat_last_n},
        {"dry_allowed_length", 1, TD_SAMPLING_MAX_WINDOW, &s->dry_allowed_length},
        {"dry_penalty_last_n", -1, TD_SAMPLING_MAX_WINDOW, &s->dry_penalty_last_n},
        {"mirostat", 0, 2, &s->mirostat},
    };
    int64_t n;
    bool present;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (!td_openai_parse_int(p, counts[i].name, counts[i].low, counts[i].high, &present, &n)) {
            return false;
        }
        if (present) {
            *counts[i].out = (int32_t)n;
        }
    }
    if (!td_openai_parse_int(p, "seed", INT64_MIN, INT64_MAX, &p->req->has_seed, &n)) {
        return false;
    }
    if (p->req->has_seed) {
        s->seed = (uint64_t)n;
    }
    return true;
}

/* What every single range lets through. The text begins with the parameter's name. */
static bool check_together(struct td_openai_parser *p)
{
    struct td_err err = {0};
    if (td_sampling_validate(&p->req->sampling, 0, &err) == TD_OK) {
        return true;
    }
    size_t n = strcspn(err.cause, " ");
    char param[64];
    snprintf(param, sizeof(param), "%.*s", (int)n, err.cause);
    return td_openai_parse_fail(p, param, "invalid_value", "Invalid value for '%s': %s.", param,
                                err.cause);
}

static bool parse_dry_breakers(struct td_openai_parser *p)
{
    struct td_openai_request *req = p->req;
    const json_t *value = td_openai_parse_field(p, "dry_sequence_breakers");
    if (value == NULL) {
        return true;
    }
    if (!json_is_array(value)) {
        return td_openai_parse_fail_type(p, "dry_sequence_breakers", value, "a list of strings");
    }
    size_t n = json_array_size(value);
    if (n > TD_BREAKERS_MAX) {
        return td_openai_parse_fail(
            p, "dry_sequence_breakers", "array_above_max_length",
            "Invalid 'dry_sequence_breakers': a list of %zu strings, expected at most %d.", n,
            TD_BREAKERS_MAX);
    }
    req->has_dry_breakers = true;
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_array_get(value, i);
        char param[48];
        snprintf(param, sizeof(param), "dry_sequence_breakers[%zu]", i);
        if (!json_is_string(text)) {
            return td_openai_parse_fail_type(p, param, text, "a string");
        }
        if (json_string_length(text) == 0 ||
            json_string_length(text) > TD_BREAKERS_MAX_TEXT_BYTES) {
            return td_openai_parse_fail(
                p, param, "invalid_value", "Invalid value for '%s': %zu bytes, expected 1 to %d.",
                param, json_string_length(text), TD_BREAKERS_MAX_TEXT_BYTES);
        }
        if (!td_openai_parse_copy(p, text, &req->dry_breakers[req->n_dry_breakers])) {
            return false;
        }
        req->n_dry_breakers++;
    }
    return true;
}

static bool parse_limits(struct td_openai_parser *p)
{
    struct td_openai_request *req = p->req;
    int64_t n;
    bool present;
    const char *name = "max_tokens";
    if (req->kind == TD_OPENAI_COMPLETION && !td_openai_parse_bool(p, "echo", &req->echo)) {
        return false;
    }
    /* Nothing but the prompt: who asks for that wants its log probabilities. */
    if (!td_openai_parse_int(p, name, req->echo ? 0 : 1, UINT32_MAX, &present, &n)) {
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
        if (!td_openai_parse_int(p, "max_completion_tokens", 1, UINT32_MAX, &present, &n)) {
            return false;
        }
        if (present) {
            req->has_max_tokens = true;
            req->max_tokens = (uint32_t)n;
            name = "max_completion_tokens";
        }
    }
    if (!td_openai_parse_int(p, "min_tokens", 0, UINT32_MAX, &present, &n) ||
        !td_openai_parse_bool(p, "ignore_eos", &req->ignore_eos) ||
        !td_openai_parse_bool(p, "include_stop_str_in_output", &req->include_stop)) {
        return false;
    }
    if (present) {
        req->min_tokens = (uint32_t)n;
        if (req->has_max_tokens && req->min_tokens > req->max_tokens) {
            return td_openai_parse_fail(
                p, "min_tokens", "invalid_value",
                "Invalid value for 'min_tokens': %u is more than '%s' (%u).", req->min_tokens, name,
                req->max_tokens);
        }
    }
    return true;
}

/* When the answer must be there, who goes first, and who shares what was computed. */
static bool parse_service(struct td_openai_parser *p)
{
    struct td_openai_request *req = p->req;
    const json_t *salt = td_openai_parse_field(p, "cache_salt");
    int64_t n = 0;
    bool present;
    if (!td_openai_parse_float(p, "timeout", 0, TD_OPENAI_MAX_TIMEOUT_S, true, &req->timeout_s) ||
        !td_openai_parse_int(p, "priority", -TD_REQUEST_MAX_PRIORITY, TD_REQUEST_MAX_PRIORITY,
                             &present, &n)) {
        return false;
    }
    req->priority = (int32_t)n;
    if (salt == NULL) {
        return true;
    }
    if (!json_is_string(salt)) {
        return td_openai_parse_fail_type(p, "cache_salt", salt, "a string");
    }
    if (json_string_length(salt) == 0 || json_string_length(salt) > TD_REQUEST_MAX_SALT_BYTES) {
        return td_openai_parse_fail(p, "cache_salt", "invalid_value",
                                    "Invalid value for 'cache_salt': %zu bytes, expected 1 to %d.",
                                    json_string_length(salt), TD_REQUEST_MAX_SALT_BYTES);
    }
    return td_openai_parse_copy(p, salt, &req->cache_salt);
}

static bool add_stop(struct td_openai_parser *p, const json_t *value, const char *param)
{
    struct td_openai_request *req = p->req;
    if (!json_is_string(value)) {
        return td_openai_parse_fail_type(p, param, value, "a string");
    }
    size_t n = json_string_length(value);
    if (n == 0 || n > TD_REQUEST_MAX_STOP_BYTES) {
        return td_openai_parse_fail(p, param, "invalid_value",
                                    "Invalid value for '%s': %zu bytes, expected 1 to %d.", param,
                                    n, TD_REQUEST_MAX_STOP_BYTES);
    }
    if (!td_openai_parse_copy(p, value, &req->stops[req->n_stops])) {
        return false;
    }
    req->n_stops++;
    return true;
}

static bool parse_stop(struct td_openai_parser *p)
{
    const json_t *value = td_openai_parse_field(p, "stop");
    if (value == NULL) {
        return true;
    }
    if (!json_is_array(value)) {
        return json_is_string(value)
                   ? add_stop(p, value, "stop")
                   : td_openai_parse_fail_type(p, "stop", value, "a string or a list of strings");
    }
    size_t n = json_array_size(value);
    if (n > TD_REQUEST_MAX_STOPS) {
        return td_openai_parse_fail(p, "stop", "array_above_max_length",
                                    "Invalid 'stop': a list of %zu strings, expected at most %d.",
                                    n, TD_REQUEST_MAX_STOPS);
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

static bool parse_stop_ids(struct td_openai_parser *p)
{
    const json_t *value = td_openai_parse_field(p, "stop_token_ids");
    struct td_openai_request *req = p->req;
    if (value == NULL) {
        return true;
    }
    if (!json_is_array(value)) {
        return td_openai_parse_fail_type(p, "stop_token_ids", value, "a list of token ids");
    }
    size_t n = json_array_size(value);
    if (n > TD_REQUEST_MAX_STOP_IDS) {
        return td_openai_parse_fail(
            p, "stop_token_ids", "array_above_max_length",
            "Invalid 'stop_token_ids': a list of %zu ids, expected at most %d.", n,
            TD_REQUEST_MAX_STOP_IDS);
    }
    for (size_t i = 0; i < n; i++) {
        if (!td_openai_parse_id(p, json_array_get(value, i), "stop_token_ids", &req->stop_ids[i])) {
            return false;
        }
        req->n_stop_ids++;
    }
    return true;
}

static bool parse_logit_bias(struct td_openai_parser *p)
{
    const json_t *map = td_openai_parse_field(p, "logit_bias");
    struct td_sampling *s = &p->req->sampling;
    if (map == NULL) {
        return true;
    }
    if (!json_is_object(map)) {
        return td_openai_parse_fail_type(p, "logit_bias", map, "an object of token id to number");
    }
    if (json_object_size(map) > TD_SAMPLER_MAX_BIAS) {
        return td_openai_parse_fail(p, "logit_bias", "object_above_max_properties",
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
            return td_openai_parse_fail(p, "logit_bias", "invalid_value",
                                        "Invalid key '%.32s' in 'logit_bias': expected a token id.",
                                        key);
        }
        double bias = json_number_value(value);
        if (!json_is_number(value) || !(bias >= -100 && bias <= 100)) {
            return td_openai_parse_fail(
                p, "logit_bias", "invalid_value",
                "Invalid 'logit_bias' of token %lu: expected a number from -100 to 100.", id);
        }
        s->bias[s->n_bias++] = (struct td_logit_bias){(uint32_t)id, (float)bias};
    }
    return true;
}

static bool parse_logprobs(struct td_openai_parser *p)
{
    struct td_openai_request *req = p->req;
    int64_t n = 0;
    bool present;
    if (req->kind == TD_OPENAI_COMPLETION) {
        if (!td_openai_parse_int(p, "logprobs", 0, TD_OPENAI_MAX_TOP_LOGPROBS, &present, &n)) {
            return false;
        }
        req->want_logprobs = present;
    } else {
        if (!td_openai_parse_bool(p, "logprobs", &req->want_logprobs) ||
            !td_openai_parse_int(p, "top_logprobs", 0, TD_OPENAI_MAX_TOP_LOGPROBS, &present, &n)) {
            return false;
        }
        if (present && n > 0 && !req->want_logprobs) {
            return td_openai_parse_fail(p, "top_logprobs", "invalid_value",
                                        "'top_logprobs' is only allowed with 'logprobs': true.");
        }
    }
    req->sampling.n_logprobs = req->want_logprobs ? (int32_t)n : -1;
    if (!td_openai_parse_int(p, "prompt_logprobs", 0, TD_OPENAI_MAX_TOP_LOGPROBS, &present, &n)) {
        return false;
    }
    if (present && req->stream) {
        return td_openai_parse_fail(p, "prompt_logprobs", "invalid_value",
                                    "'prompt_logprobs' is not allowed with 'stream': true.");
    }
    req->prompt_logprobs = present ? (int32_t)n : -1;
    return true;
}

/* After the stream: choosing needs the whole answers. */
static bool parse_choices(struct td_openai_parser *p)
{
    struct td_openai_request *req = p->req;
    int64_t n = 1, best_of;
    bool present;
    if (!td_openai_parse_int(p, "n", 1, TD_REQUEST_MAX_CHOICES, &present, &n)) {
        return false;
    }
    req->n = present ? (uint32_t)n : 1;
    req->best_of = req->n;
    if (req->kind == TD_OPENAI_CHAT) {
        return true;
    }
    if (!td_openai_parse_int(p, "best_of", 1, TD_REQUEST_MAX_CHOICES, &present, &best_of)) {
        return false;
    }
    if (!present) {
        return true;
    }
    if (best_of < req->n) {
        return td_openai_parse_fail(p, "best_of", "invalid_value",
                                    "Invalid value for 'best_of': %d is less than 'n' (%u).",
                                    (int)best_of, req->n);
    }
    if (best_of > req->n && req->stream) {
        return td_openai_parse_fail(p, "best_of", "invalid_value",
                                    "'best_of' above 'n' is not allowed with 'stream': true.");
    }
    req->best_of = (uint32_t)best_of;
    return true;
}

static bool parse_stream(struct td_openai_parser *p)
{
    const json_t *options = td_openai_parse_field(p, "stream_options");
    if (!td_openai_parse_bool(p, "stream", &p->req->stream)) {
        return false;
    }
    if (options == NULL) {
        return true;
    }
    if (!json_is_object(options)) {
        return td_openai_parse_fail_type(p, "stream_options", options, "an object");
    }
    if (!p->req->stream) {
        return td_openai_parse_fail(p, "stream_options", "invalid_value",
                                    "'stream_options' is only allowed with 'stream': true.");
    }
    const json_t *usage = json_object_get(options, "include_usage");
    if (usage != NULL && !json_is_null(usage)) {
        if (!json_is_boolean(usage)) {
            return td_openai_parse_fail_type(p, "stream_options.include_usage", usage, "a boolean");
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

static bool refuse_unbuilt(struct td_openai_parser *p)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        const json_t *value = td_openai_parse_field(p, refused[i].name);
        if (value != NULL && !is_neutral(value, refused[i].neutral)) {
            return td_openai_parse_unsupported(p, refused[i].name, "was given");
        }
    }
    const char *choices[] = {"tool_choice", "function_call"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *choice = td_openai_parse_field(p, choices[i]);
        if (choice != NULL && !td_openai_parse_text_is(choice, "none", "auto")) {
            return td_openai_parse_unsupported(p, choices[i], "asks for a call");
        }
    }
    const json_t *format = td_openai_parse_field(p, "response_format");
    if (format != NULL) {
        if (!json_is_object(format)) {
            return td_openai_parse_fail_type(p, "response_format", format, "an object");
        }
        if (!td_openai_parse_text_is(json_object_get(format, "type"), "text", NULL)) {
            return td_openai_parse_unsupported(p, "response_format", "is not of type 'text'");
        }
    }
    const json_t *modalities = td_openai_parse_field(p, "modalities");
    for (size_t i = 0; i < json_array_size(modalities); i++) {
        if (!td_openai_parse_text_is(json_array_get(modalities, i), "text", NULL)) {
            return td_openai_parse_unsupported(p, "modalities", "has more than 'text'");
        }
    }
    return true;
}

/* ---- The body ---- */

static bool parse_names(struct td_openai_parser *p)
{
    struct {
        const char *name;
        struct td_str *out;
    } names[] = {{"model", &p->req->model}, {"user", &p->req->user}};
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = td_openai_parse_field(p, names[i].name);
        if (value == NULL) {
            continue;
        }
        if (!json_is_string(value)) {
            return td_openai_parse_fail_type(p, names[i].name, value, "a string");
        }
        if (!td_openai_parse_copy(p, value, names[i].out)) {
            return false;
        }
    }
    return true;
}

static bool parse_body(struct td_openai_parser *p)
{
    if (!json_is_object(p->root)) {
        td_openai_error_set(p->e, 400, "invalid_request_error", "invalid_type", NULL,
                            "The request body must be a JSON object.");
        return false;
    }
    return parse_names(p) && refuse_unbuilt(p) &&
           (p->req->kind == TD_OPENAI_CHAT ? td_openai_prompt_messages(p)
                                           : td_openai_prompt_prompts(p)) &&
           parse_stream(p) && parse_numbers(p) && parse_counts(p) && parse_dry_breakers(p) &&
           parse_limits(p) && parse_service(p) && parse_stop(p) && parse_stop_ids(p) &&
           parse_logit_bias(p) && parse_logprobs(p) && parse_choices(p) && check_together(p);
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
    req->cache_salt = TD_STR("");
    if (defaults != NULL) {
        req->sampling = *defaults;
    } else {
        td_sampling_default(&req->sampling);
    }
    struct td_openai_parser p = {req, e, root};
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
    r->priority = req->priority;
    r->min_tokens = req->min_tokens;
    r->prompt_logprobs = req->prompt_logprobs;
    if (req->echo && req->sampling.n_logprobs > r->prompt_logprobs) {
        r->prompt_logprobs = req->want_logprobs ? req->sampling.n_logprobs : r->prompt_logprobs;
    }
    if (req->has_max_tokens && req->max_tokens == 0) {
        r->max_tokens = 1; /* it is not shown */
    }
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
