/* A body of /v1/chat/completions or /v1/completions: the strict JSON reader, the request, what the engine gets of it, and
 * the error object. What is written is read back: it must be valid JSON whatever came in. */
#include "tests/fuzz/fuzz.h"

#include "daemon/api/json.h"
#include "daemon/api/openai.h"

static void check_written(struct td_bytes *out)
{
    struct td_err err = {0};
    json_t *value = NULL;

    FUZZ_CHECK(td_json_parse(td_bytes_str(out), 0, &value, &err) == TD_OK);
    json_decref(value);
    td_bytes_deinit(out);
}

static void check_request(enum td_openai_kind kind, struct td_openai_request *req)
{
    struct td_request r;
    struct td_err err = {0};
    enum td_status status;

    FUZZ_CHECK(kind == TD_OPENAI_CHAT ? req->n_messages > 0 : req->n_prompts > 0);
    for (size_t i = 0; i < req->n_messages; i++) {
        fuzz_touch(req->messages[i].role);
        fuzz_touch(req->messages[i].content);
        fuzz_touch(req->messages[i].name);
        FUZZ_CHECK(req->messages[i].content.ptr[req->messages[i].content.len] == '\0');
    }
    for (size_t i = 0; i < req->n_prompts; i++) {
        const struct td_openai_prompt *p = &req->prompts[i];

        fuzz_touch(p->is_ids ? (struct td_str){(const char *)p->ids, p->n_ids * sizeof *p->ids}
                             : p->text);
    }
    td_request_init(&r);
    status = td_openai_request_fill(req, 512, &r, &err);
    fuzz_check_err(status, &err);
    if (!status) {
        r.prompt = calloc(4, sizeof *r.prompt);
        r.n_prompt = 4;
        fuzz_check_err(td_request_validate(&r, 1000, 512, &err), &err);
    }
    td_request_deinit(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_str body = {(const char *)data, size};
    struct td_bytes out = {0};
    struct td_err err = {0};
    json_t *value = NULL;
    enum td_status status = td_json_parse(body, 0, &value, &err);

    fuzz_check_err(status, &err);
    if (!status)
        json_decref(value);
    FUZZ_CHECK(td_json_append_string(&out, body) == TD_OK);
    check_written(&out);
    for (int kind = TD_OPENAI_CHAT; kind <= TD_OPENAI_COMPLETION; kind++) {
        struct td_openai_request req;
        struct td_openai_error e = {0};

        status = td_openai_request_parse((enum td_openai_kind)kind, body, NULL, &req, &e);
        if (!status) {
            check_request((enum td_openai_kind)kind, &req);
            td_openai_request_deinit(&req);
            continue;
        }
        FUZZ_CHECK(e.http_status >= 400 && e.http_status < 600 && e.message[0] && e.type);
        FUZZ_CHECK(td_openai_error_write(&e, &out) == TD_OK);
        check_written(&out);
    }
    return 0;
}
