#include "daemon/cli/ask.h"

#include "daemon/cli/client.h"

enum td_status td_ask(const struct td_options *opts, const char *method, const char *path,
                      const char *body, const char *member, json_t **answer, struct td_err *err)
{
    struct td_client_request request = {.url = opts->url,
                                        .api_key = opts->api_key.n ? opts->api_key.items[0] : NULL,
                                        .ca_file = opts->ssl_certfile,
                                        .method = method,
                                        .path = path,
                                        .body = td_str_from(body),
                                        .patience_ns = 10000000000u};
    struct td_bytes text = {0};
    json_t *root = NULL;
    int http_status = 0;
    enum td_status s = td_client_call(&request, &http_status, &text, err);

    s = s ? s : td_client_check(http_status, td_bytes_str(&text), err);
    s = s ? s : td_json_parse(td_bytes_str(&text), 0, &root, err);
    if (!s && !json_object_get(root, member))
        s = td_err_set(err, TD_PEER_PROTOCOL,
                       "the answer of %s%s has no \"%s\": is it a tensord server of this age?",
                       opts->url, path, member);
    if (s)
        json_decref(root);
    else
        *answer = root;
    td_bytes_deinit(&text);
    return s;
}

uint64_t td_ask_number(const json_t *object, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(object, key));

    return n > 0 ? (uint64_t)n : 0;
}

const char *td_ask_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

const char *td_ask_requests(uint64_t n)
{
    return n == 1 ? "request" : "requests";
}
