#include "daemon/api/openai_parse.h"

#include <stdio.h>
#include <string.h>

/* ---- Messages ---- */

/* Appends a text part; parts are joined by newlines. */
static bool add_part(struct td_openai_parser *p, const json_t *part, const char *param,
                     struct td_bytes *text, bool is_first)
{
    if (!json_is_object(part)) {
        return td_openai_parse_fail_type(p, param, part, "an object with 'type' and 'text'");
    }
    const char *type = json_string_value(json_object_get(part, "type"));
    if (type == NULL) {
        return td_openai_parse_fail(p, param, "missing_required_parameter", "'%s' has no 'type'.",
                                    param);
    }
    if (strcmp(type, "text") != 0) {
        return td_openai_parse_fail(
            p, param, "unsupported_content",
            "'%s' is of type '%.32s', expected 'text': other content is not supported by "
            "this server yet.",
            param, type);
    }
    const json_t *value = json_object_get(part, "text");
    if (!json_is_string(value)) {
        return td_openai_parse_fail(p, param, "missing_required_parameter",
                                    "'%s' has no string 'text'.", param);
    }
    if ((!is_first && td_bytes_append(text, "\n", 1) != TD_OK) ||
        td_bytes_append(text, json_string_value(value), json_string_length(value)) != TD_OK) {
        return td_openai_parse_fail_memory(p);
    }
    return true;
}

static bool parse_content(struct td_openai_parser *p, const json_t *content, const char *param,
                          struct td_str *out)
{
    if (json_is_string(content)) {
        return td_openai_parse_copy(p, content, out);
    }
    if (!json_is_array(content)) {
        return td_openai_parse_fail_type(p, param, content, "a string or a list of text parts");
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
        ok = copy != NULL || td_openai_parse_fail_memory(p);
    }
    td_bytes_deinit(&text);
    return ok;
}

static bool parse_message(struct td_openai_parser *p, const json_t *value, size_t index,
                          struct td_openai_message *out)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant"};
    char param[64];
    snprintf(param, sizeof(param), "messages[%zu]", index);
    if (!json_is_object(value)) {
        return td_openai_parse_fail_type(p, param, value, "an object");
    }
    snprintf(param, sizeof(param), "messages[%zu].role", index);
    const json_t *role = json_object_get(value, "role");
    if (role == NULL) {
        return td_openai_parse_fail(p, param, "missing_required_parameter",
                                    "Missing required parameter: '%s'.", param);
    }
    if (!json_is_string(role)) {
        return td_openai_parse_fail_type(p, param, role, "a string");
    }
    if (td_openai_parse_text_is(role, "tool", "function")) {
        return td_openai_parse_unsupported(p, param, "is 'tool' or 'function'");
    }
    bool known = false;
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        known |= td_openai_parse_text_is(role, roles[i], NULL);
    }
    if (!known) {
        return td_openai_parse_fail(
            p, param, "invalid_value",
            "Invalid value for '%s': '%.32s', expected 'system', 'developer', 'user' or "
            "'assistant'.",
            param, json_string_value(role));
    }
    const json_t *calls = json_object_get(value, "tool_calls");
    const json_t *call = json_object_get(value, "function_call");
    if (json_array_size(calls) > 0 || (call != NULL && !json_is_null(call))) {
        snprintf(param, sizeof(param), "messages[%zu].tool_calls", index);
        return td_openai_parse_unsupported(p, param, "was given");
    }
    const json_t *name = json_object_get(value, "name");
    if (name != NULL && !json_is_null(name)) {
        snprintf(param, sizeof(param), "messages[%zu].name", index);
        if (!json_is_string(name)) {
            return td_openai_parse_fail_type(p, param, name, "a string");
        }
        if (!td_openai_parse_copy(p, name, &out->name)) {
            return false;
        }
    }
    snprintf(param, sizeof(param), "messages[%zu].content", index);
    const json_t *content = json_object_get(value, "content");
    if (content == NULL) {
        return td_openai_parse_fail(p, param, "missing_required_parameter",
                                    "Missing required parameter: '%s'.", param);
    }
    return td_openai_parse_copy(p, role, &out->role) &&
           parse_content(p, content, param, &out->content);
}

bool td_openai_prompt_messages(struct td_openai_parser *p)
{
    struct td_openai_request *req = p->req;
    const json_t *list = td_openai_parse_field(p, "messages");
    if (list == NULL) {
        return td_openai_parse_fail(p, "messages", "missing_required_parameter",
                                    "Missing required parameter: 'messages'.");
    }
    if (!json_is_array(list)) {
        return td_openai_parse_fail_type(p, "messages", list, "a list of messages");
    }
    size_t n = json_array_size(list);
    if (n == 0 || n > TD_OPENAI_MAX_MESSAGES) {
        return td_openai_parse_fail(p, "messages", "invalid_value",
                                    "Invalid 'messages': a list of %zu messages, expected 1 to %d.",
                                    n, TD_OPENAI_MAX_MESSAGES);
    }
    req->messages = td_arena_alloc(&req->arena, n * sizeof(*req->messages));
    if (req->messages == NULL) {
        return td_openai_parse_fail_memory(p);
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

static bool add_ids(struct td_openai_parser *p, const json_t *list, const char *param,
                    struct td_openai_prompt *out)
{
    size_t n = json_array_size(list);
    if (n == 0 || n > TD_OPENAI_MAX_PROMPT_IDS) {
        return td_openai_parse_fail(p, param, "invalid_value",
                                    "Invalid '%s': a list of %zu ids, expected 1 to %d.", param, n,
                                    TD_OPENAI_MAX_PROMPT_IDS);
    }
    uint32_t *ids = td_arena_alloc(&p->req->arena, n * sizeof(*ids));
    if (ids == NULL) {
        return td_openai_parse_fail_memory(p);
    }
    for (size_t i = 0; i < n; i++) {
        if (!td_openai_parse_id(p, json_array_get(list, i), param, &ids[i])) {
            return false;
        }
    }
    *out = (struct td_openai_prompt){.is_ids = true, .ids = ids, .n_ids = (uint32_t)n};
    return true;
}

static bool add_prompt(struct td_openai_parser *p, const json_t *value, const char *param,
                       struct td_openai_prompt *out)
{
    if (json_is_string(value)) {
        return td_openai_parse_copy(p, value, &out->text);
    }
    if (json_is_array(value)) {
        return add_ids(p, value, param, out);
    }
    return td_openai_parse_fail_type(p, param, value, "a string or a list of token ids");
}

bool td_openai_prompt_prompts(struct td_openai_parser *p)
{
    struct td_openai_request *req = p->req;
    const json_t *value = td_openai_parse_field(p, "prompt");
    if (value == NULL) {
        return td_openai_parse_fail(p, "prompt", "missing_required_parameter",
                                    "Missing required parameter: 'prompt'.");
    }
    if (!json_is_string(value) && !json_is_array(value)) {
        return td_openai_parse_fail_type(
            p, "prompt", value,
            "a string, a list of strings, a list of token ids or a list of such lists");
    }
    bool is_list = json_is_array(value) && !json_is_number(json_array_get(value, 0));
    size_t n = is_list ? json_array_size(value) : 1;
    if (n == 0 || n > TD_OPENAI_MAX_PROMPTS) {
        return td_openai_parse_fail(p, "prompt", "invalid_value",
                                    "Invalid 'prompt': a list of %zu prompts, expected 1 to %d.", n,
                                    TD_OPENAI_MAX_PROMPTS);
    }
    req->prompts = td_arena_alloc(&req->arena, n * sizeof(*req->prompts));
    if (req->prompts == NULL) {
        return td_openai_parse_fail_memory(p);
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
