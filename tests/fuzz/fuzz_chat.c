/* A chat template and a message, parted by a form feed: parse, render, and the same in segments. A message's text never
 * lies in a trusted segment. */
#include "tests/fuzz/fuzz.h"

#include "daemon/text/chat.h"

/* Every untrusted byte lies in one of the messages, every trusted one in none of them. */
static bool is_theirs(struct td_str s, const struct td_chat_message *messages, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct td_str fields[] = {messages[i].role, messages[i].content};

        for (size_t f = 0; f < 2; f++)
            if (s.ptr >= fields[f].ptr && s.ptr + s.len <= fields[f].ptr + fields[f].len)
                return true;
    }
    return false;
}

static void check_render(const struct td_chat *chat, const struct td_chat_message *messages,
                         size_t n, bool add_prompt)
{
    struct td_chat_segments segments = {0};
    struct td_bytes text = {0}, joined = {0};
    struct td_err err = {0}, err2 = {0};
    enum td_status status = td_chat_render(chat, messages, n, add_prompt, &text, &err);
    enum td_status status2 =
        td_chat_segments(chat, messages, n, add_prompt, TD_STR(""), TD_STR(""), &segments, &err2);

    fuzz_check_err(status, &err);
    fuzz_check_err(status2, &err2);
    FUZZ_CHECK(status == status2);
    FUZZ_CHECK(status == TD_OK || text.len == 0);
    for (size_t i = 0; status == TD_OK && i < segments.len; i++) {
        struct td_str s = segments.data[i].text;

        FUZZ_CHECK(td_bytes_append_str(&joined, s) == TD_OK);
        FUZZ_CHECK(s.len == 0 || segments.data[i].trusted != is_theirs(s, messages, n));
    }
    FUZZ_CHECK(status || td_str_eq(td_bytes_str(&text), td_bytes_str(&joined)));
    td_chat_segments_deinit(&segments);
    td_bytes_deinit(&joined);
    td_bytes_deinit(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_str rest = {(const char *)data, size};
    struct td_str template = fuzz_part(&rest);
    struct td_chat *chat = NULL;
    struct td_err err = {0};
    enum td_status status = td_chat_open(template, &chat, &err);

    fuzz_check_err(status, &err);
    if (status)
        return 0;
    const struct td_chat_message messages[] = {{TD_STR("system"), rest},
                                               {TD_STR("user"), rest},
                                               {TD_STR("assistant"), TD_STR("yes")},
                                               {rest, TD_STR("")}};

    check_render(chat, messages, 4, true);
    check_render(chat, messages + 1, 2, false);
    check_render(chat, messages, 0, true);
    td_chat_close(chat);
    return 0;
}
