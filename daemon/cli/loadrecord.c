#include "daemon/cli/loadrecord.h"

#include "daemon/api/json.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_REASON_BYTES = 400 };

void td_loadrecord_fail(struct td_loadrecord *r, enum td_loadrecord_end end, const char *reason)
{
    r->end = end;
    if (!r->reason)
        r->reason = strndup(reason, MAX_REASON_BYTES);
}

static void add_gap(struct td_loadrecord *r, uint64_t now_ns)
{
    if (r->n_gaps == r->cap_gaps) {
        uint32_t cap = r->cap_gaps ? 2 * r->cap_gaps : 64;
        float *wider = realloc(r->gap_ms, cap * sizeof *wider);

        if (!wider) {
            td_loadrecord_fail(r, TD_LOADRECORD_BROKEN, "no memory for the times of an answer");
            return;
        }
        r->gap_ms = wider;
        r->cap_gaps = cap;
    }
    r->gap_ms[r->n_gaps++] = (float)((double)(now_ns - r->last_text_ns) * 1e-6);
}

/* Whether a choice carries text: of a completion, of a chat, or of its reasoning. It may be empty: servers send that for a token
 * that is half a character, or a special one. Two events have an empty text without a token: one that says only whose turn it
 * is, and one that says only why the text ended. */
static bool has_text(const json_t *choice)
{
    static const char *const keys[] = {"content", "reasoning_content", "reasoning"};
    const json_t *delta = json_object_get(choice, "delta");
    const json_t *text = json_object_get(choice, "text");
    bool is_text = json_is_string(text);
    size_t len = json_string_length(text);

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        text = json_object_get(delta, keys[i]);
        is_text |= json_is_string(text);
        len += json_string_length(text);
    }
    return len > 0 || (is_text && !json_object_get(delta, "role") &&
                       !json_is_string(json_object_get(choice, "finish_reason")));
}

static void take_choice(struct td_loadrecord *r, const json_t *choice, uint64_t first_ns,
                        bool *finished)
{
    bool text = has_text(choice);

    if (json_is_string(json_object_get(choice, "finish_reason")))
        *finished = true;
    if (text && r->n_events++ == 0)
        r->first_ns = first_ns;
    else if (text)
        add_gap(r, first_ns);
    if (text)
        r->last_text_ns = first_ns;
    if (text || *finished)
        r->last_ns = first_ns;
}

static uint32_t count_of(const json_t *usage, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(usage, key));

    return n < 0 ? 0 : n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

static void take_usage(struct td_loadrecord *r, const json_t *usage)
{
    if (!json_is_object(usage))
        return;
    r->has_usage = true;
    r->n_input = count_of(usage, "prompt_tokens");
    r->n_output = count_of(usage, "completion_tokens");
    r->n_cached = count_of(json_object_get(usage, "prompt_tokens_details"), "cached_tokens");
}

bool td_loadrecord_take_event(struct td_loadrecord *r, struct td_str data, uint64_t first_ns,
                              bool *finished)
{
    const json_t *error, *message;
    json_t *event = NULL;

    if (td_str_eq(data, TD_STR("[DONE]"))) {
        *finished = true;
        return true;
    }
    if (td_json_parse(data, 0, &event, NULL) != TD_OK || !json_is_object(event)) {
        json_decref(event);
        td_loadrecord_fail(r, TD_LOADRECORD_BROKEN, "an event of the stream is no JSON object");
        return false;
    }
    error = json_object_get(event, "error");
    if (error && !json_is_null(error)) {
        message = json_object_get(error, "message");
        td_loadrecord_fail(r, TD_LOADRECORD_ERROR,
                           json_is_string(message) ? json_string_value(message)
                                                   : "an error without a message");
    } else {
        take_usage(r, json_object_get(event, "usage"));
        if (json_array_size(json_object_get(event, "choices")) > 0)
            take_choice(r, json_array_get(json_object_get(event, "choices"), 0), first_ns,
                        finished);
    }
    json_decref(event);
    return r->end == TD_LOADRECORD_OK;
}

void td_loadrecord_deinit(struct td_loadrecord *r)
{
    free(r->gap_ms);
    free(r->reason);
    r->gap_ms = NULL;
    r->reason = NULL;
}

const char *td_loadrecord_end_name(enum td_loadrecord_end end)
{
    static const char *const names[TD_LOADRECORD_N_ENDS] = {
        "ok",    "refused",      "http_error", "no_connection", "broken_stream",
        "error", "empty_answer", "timeout",    "cancelled"};

    return names[end];
}
