#include "daemon/cli/loadbody.h"

#include "daemon/api/json.h"

#include <stdlib.h>
#include <string.h>

static enum td_status add_extra(json_t *root, const char *extra, struct td_err *err)
{
    static const char *const own[] = {"prompt", "messages", "max_tokens", "stream"};
    json_t *object = NULL;
    struct td_err reason;
    enum td_status s = TD_OK;

    if (td_json_parse(td_str_from(extra), 0, &object, &reason))
        return td_err_set(err, TD_INVALID,
                          "--extra-body: got '%.60s', expected a JSON object: %.160s", extra,
                          reason.cause);
    if (!json_is_object(object))
        s = td_err_set(err, TD_INVALID, "--extra-body: got '%.60s', expected a JSON object", extra);
    for (size_t i = 0; !s && i < sizeof own / sizeof own[0]; i++)
        if (json_object_get(object, own[i]))
            s = td_err_set(err, TD_INVALID,
                           "--extra-body holds \"%s\", which the benchmark sets itself", own[i]);
    if (!s && json_object_update(root, object))
        s = td_err_set(err, TD_NO_MEMORY, "no memory for --extra-body");
    json_decref(object);
    return s;
}

enum td_status td_loadbody_init(struct td_loadbody *b, const struct td_loadbody_params *params,
                                struct td_err *err)
{
    json_t *root =
        json_pack("{s:s,s:b,s:{s:b},s:f}", "model", params->model, "stream", 1, "stream_options",
                  "include_usage", 1, "temperature", params->temperature);
    char *text = NULL;
    enum td_status s = TD_OK;

    *b = (struct td_loadbody){.chat = params->chat};
    if (!root)
        return td_err_set(err, TD_INVALID, "--model is no UTF-8");
    if (params->ignore_eos)
        json_object_set_new(root, "ignore_eos", json_true());
    if (params->extra)
        s = add_extra(root, params->extra, err);
    if (!s) {
        text = json_dumps(root, JSON_COMPACT);
        /* Its closing bracket gives way to what a request adds. */
        s = text ? td_bytes_append(&b->common, text, strlen(text) - 1) : TD_NO_MEMORY;
        if (s)
            td_err_set(err, s, "no memory for the requests");
    }
    free(text);
    json_decref(root);
    if (s)
        td_loadbody_deinit(b);
    return s;
}

enum td_status td_loadbody_write(const struct td_loadbody *b, struct td_str prompt,
                                 uint32_t n_output, struct td_bytes *out)
{
    enum td_status s = td_bytes_append_str(out, td_bytes_str(&b->common));

    s = s ? s
          : td_bytes_appendf(out, ",\"max_tokens\":%u,%s", n_output,
                             b->chat ? "\"messages\":[{\"role\":\"user\",\"content\":"
                                     : "\"prompt\":");
    s = s ? s : td_json_append_string(out, prompt);
    return s ? s : td_bytes_append_str(out, b->chat ? TD_STR("}]}") : TD_STR("}"));
}

void td_loadbody_deinit(struct td_loadbody *b)
{
    td_bytes_deinit(&b->common);
}
