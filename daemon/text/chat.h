/* Chat templates: from a list of messages to the text that the model was trained on. Built are plain ChatML templates
 * in their published variants; every other one is refused. A message's text can never forge a turn: it is kept apart
 * from the template's own and tokenised as plain text. Read-only after open, any thread. */
#ifndef TD_DAEMON_TEXT_CHAT_H
#define TD_DAEMON_TEXT_CHAT_H

#include "daemon/text/tokenizer.h"

struct td_chat;

struct td_chat_message {
    struct td_str role; /* "system", "user", "assistant" */
    struct td_str content;
};

/* Reads a template's source (Jinja). On success *chat is owned by the caller (close it) and borrows nothing.
 * TD_NOT_FOUND for an empty one, TD_UNSUPPORTED for one that is not plain ChatML; both say what is supported. */
enum td_status td_chat_open(struct td_str template, struct td_chat **chat, struct td_err *err);
void td_chat_close(struct td_chat *chat); /* NULL is legal */

/* Renders text. `bos_token` and `eos_token` are empty here, as for a model that has none. TD_INVALID when there are no
 * messages or the template refuses them; on an error `out` is as it was. */
enum td_status td_chat_render(const struct td_chat *chat, const struct td_chat_message *messages,
                              size_t n, bool add_generation_prompt, struct td_bytes *out,
                              struct td_err *err);

/* The rendered text in pieces: the template's own are trusted, the messages' are not. */
struct td_chat_segments {
    struct td_text_segment
        *data; /* owned; the texts borrow from the chat, the messages and bos/eos */
    size_t len, cap;
};

enum td_status td_chat_segments(const struct td_chat *chat, const struct td_chat_message *messages,
                                size_t n, bool add_generation_prompt, struct td_str bos,
                                struct td_str eos, struct td_chat_segments *out,
                                struct td_err *err);
void td_chat_segments_deinit(struct td_chat_segments *segments);

/* Renders with the tokenizer's own BOS and EOS and appends the ids. Nothing is put in front that the template does not
 * write. TD_UNSUPPORTED when the tokenizer has no tokens for the template's marks; as td_chat_render else. */
enum td_status td_chat_encode(const struct td_chat *chat, const struct td_tokenizer *tok,
                              const struct td_chat_message *messages, size_t n,
                              bool add_generation_prompt, struct td_ids *out, struct td_err *err);

#endif
