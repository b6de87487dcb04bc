#include "daemon/text/chat.h"

#include "daemon/text/chattmpl.h"

#include <stdlib.h>

#define SUPPORTED                                                                                  \
    "supported are plain ChatML templates, which write each message as "                           \
    "<|im_start|>role, a newline, the content and <|im_end|>"

struct td_chat {
    struct td_chattmpl template;
};

static enum td_status append_text(void *user, struct td_str text, bool trusted)
{
    (void)trusted;
    return td_bytes_append_str(user, text);
}

/* Drops `prefix` from the front of *s; false when it does not stand there. */
static bool skip(struct td_str *s, struct td_str prefix)
{
    if (!td_str_starts(*s, prefix))
        return false;
    *s = (struct td_str){s->ptr + prefix.len, s->len - prefix.len};
    return true;
}

static bool skip_turn(struct td_str *s, const struct td_chat_message *m)
{
    return skip(s, TD_STR("<|im_start|>")) && skip(s, m->role) && skip(s, TD_STR("\n")) &&
           skip(s, m->content) && skip(s, TD_STR("<|im_end|>\n"));
}

/* A system turn of the template's own. */
static void skip_default_system(struct td_str *s)
{
    struct td_str rest = *s;

    if (!skip(&rest, TD_STR("<|im_start|>system\n")))
        return;
    while (rest.len && !td_str_starts(rest, TD_STR("<|im_end|>\n")))
        rest = (struct td_str){rest.ptr + 1, rest.len - 1};
    if (skip(&rest, TD_STR("<|im_end|>\n")))
        *s = rest;
}

/* Whether the template writes ChatML: one conversation is rendered and read back. */
static enum td_status probe(const struct td_chattmpl *t, const struct td_chat_message *messages,
                            size_t n, bool *ok, struct td_err *err)
{
    struct td_chatrender_input in = {messages, n, true, TD_STR("<probe-bos>"),
                                     TD_STR("<probe-eos>")};
    struct td_bytes text = {0};
    enum td_status s = td_chatrender_render(t, &in, append_text, &text, err);
    struct td_str rest = td_bytes_str(&text);

    *ok = false;
    if (!s) {
        skip(&rest, in.bos);
        if (!td_str_eq(messages[0].role, TD_STR("system")))
            skip_default_system(&rest);
        *ok = true;
        for (size_t i = 0; i < n && *ok; i++)
            *ok = skip_turn(&rest, &messages[i]);
        *ok = *ok && td_str_eq(rest, TD_STR("<|im_start|>assistant\n"));
    }
    td_bytes_deinit(&text);
    return s == TD_INVALID ? TD_OK : s;
}

static enum td_status check_chatml(const struct td_chattmpl *t, struct td_err *err)
{
    static const struct td_chat_message all[] = {{{"system", 6}, {"probe one", 9}},
                                                 {{"user", 4}, {"probe two", 9}},
                                                 {{"assistant", 9}, {"probe three", 11}},
                                                 {{"user", 4}, {"probe four", 10}}};
    static const struct {
        size_t first, n;
    } cases[] = {{1, 1}, {1, 3}, {0, 2}, {0, 4}};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool ok;
        enum td_status s = probe(t, all + cases[i].first, cases[i].n, &ok, err);

        if (s)
            return s;
        if (!ok)
            return td_err_set(err, TD_UNSUPPORTED,
                              "the chat template does not write ChatML; " SUPPORTED);
    }
    return TD_OK;
}

enum td_status td_chat_open(struct td_str template, struct td_chat **chat, struct td_err *err)
{
    struct td_err why = {0};
    struct td_chat *c;
    enum td_status s;

    if (template.len == 0)
        return td_err_set(err, TD_NOT_FOUND, "the model has no chat template; " SUPPORTED);
    c = calloc(1, sizeof *c);
    if (!c)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a chat template");
    s = td_chatparse_parse(&c->template, template, &why);
    if (s) {
        free(c);
        if (s >= TD_NO_MEMORY)
            return td_err_set(err, s, "%s", why.cause);
        return td_err_set(err, TD_UNSUPPORTED,
                          "the chat template is not supported (%.120s); " SUPPORTED, why.cause);
    }
    s = check_chatml(&c->template, err);
    if (s) {
        td_chat_close(c);
        return s;
    }
    *chat = c;
    return TD_OK;
}

void td_chat_close(struct td_chat *chat)
{
    if (!chat)
        return;
    td_chatparse_deinit(&chat->template);
    free(chat);
}

enum td_status td_chat_render(const struct td_chat *chat, const struct td_chat_message *messages,
                              size_t n, bool add_generation_prompt, struct td_bytes *out,
                              struct td_err *err)
{
    struct td_chatrender_input in = {messages, n, add_generation_prompt, TD_STR(""), TD_STR("")};
    size_t before = out->len;
    enum td_status s = td_chatrender_render(&chat->template, &in, append_text, out, err);

    if (s && out->len > before) {
        out->len = before;
        out->data[before] = '\0';
    }
    return s;
}

static enum td_status append_segment(void *user, struct td_str text, bool trusted)
{
    struct td_chat_segments *segments = user;

    if (segments->len == segments->cap) {
        size_t cap = segments->cap ? segments->cap * 2 : 32;
        struct td_text_segment *data = realloc(segments->data, cap * sizeof *data);

        if (!data)
            return TD_NO_MEMORY;
        segments->data = data;
        segments->cap = cap;
    }
    segments->data[segments->len++] = (struct td_text_segment){text, trusted};
    return TD_OK;
}

enum td_status td_chat_segments(const struct td_chat *chat, const struct td_chat_message *messages,
                                size_t n, bool add_generation_prompt, struct td_str bos,
                                struct td_str eos, struct td_chat_segments *out, struct td_err *err)
{
    struct td_chatrender_input in = {messages, n, add_generation_prompt, bos, eos};

    return td_chatrender_render(&chat->template, &in, append_segment, out, err);
}

void td_chat_segments_deinit(struct td_chat_segments *segments)
{
    free(segments->data);
    *segments = (struct td_chat_segments){0};
}

enum td_status td_chat_encode(const struct td_chat *chat, const struct td_tokenizer *tok,
                              const struct td_chat_message *messages, size_t n,
                              bool add_generation_prompt, struct td_ids *out, struct td_err *err)
{
    static const struct td_str marks[] = {{"<|im_start|>", 12}, {"<|im_end|>", 10}};
    struct td_chat_segments segments = {0};
    struct td_str bos = {"", 0}, eos = {"", 0};
    enum td_status s;

    for (size_t i = 0; i < 2; i++) {
        int64_t id = td_tokenizer_find(tok, marks[i]);

        if (id < 0 || !td_tokenizer_is_special(tok, (uint32_t)id))
            return td_err_set(err, TD_UNSUPPORTED,
                              "the chat template writes %s, which is no special token of the "
                              "model's tokenizer; messages could forge turns",
                              marks[i].ptr);
    }
    if (td_tokenizer_bos(tok) >= 0)
        bos = td_tokenizer_piece(tok, (uint32_t)td_tokenizer_bos(tok));
    if (td_tokenizer_eos(tok) >= 0)
        eos = td_tokenizer_piece(tok, (uint32_t)td_tokenizer_eos(tok));
    s = td_chat_segments(chat, messages, n, add_generation_prompt, bos, eos, &segments, err);
    if (!s)
        s = td_tokenizer_encode_segments(tok, segments.data, segments.len, 0, out, err);
    td_chat_segments_deinit(&segments);
    return s;
}
