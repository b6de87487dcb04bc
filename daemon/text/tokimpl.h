/* The inside of a tokenizer, for its loaders (tokjson.c, tokgguf.c) and tokenizer.c only. A loader fills the parts
 * and calls td_tokimpl_finish; nothing changes afterwards. */
#ifndef TD_DAEMON_TEXT_TOKIMPL_H
#define TD_DAEMON_TEXT_TOKIMPL_H

#include "daemon/text/addtok.h"
#include "daemon/text/bpe.h"
#include "daemon/text/pretok.h"
#include "daemon/text/textnorm.h"
#include "daemon/text/tokenizer.h"
#include "daemon/text/vocab.h"

struct td_tokenizer {
    struct td_vocab vocab;
    struct td_bpe bpe;
    struct td_textnorm norm;
    struct td_pretok pretok;
    struct td_addtok *added; /* owned, [n_added] */
    uint32_t n_added, added_cap;
    struct td_addtok_trie raw;        /* found in the text as given */
    struct td_addtok_trie normalized; /* found in normalised text */
    struct td_ids prefix;             /* what TD_ENCODE_BOS puts in front */
    int64_t bos, eos;                 /* -1: none */
    bool strip_front;
};

/* Fills `tok` (zeroed but for bos, eos, bpe.byte_ids and bpe.unknown_id, which are -1). */
enum td_status td_tokjson_load(struct td_tokenizer *tok, struct td_str tokenizer_json,
                               struct td_str config, struct td_err *err);
enum td_status td_tokgguf_load(struct td_tokenizer *tok, const struct td_gguf *gguf,
                               struct td_err *err);

/* Adds an added token: checks it, puts it into the vocabulary under its id with `piece`. `token->content` is taken,
 * also on failure. */
enum td_status td_tokimpl_add_token(struct td_tokenizer *tok, struct td_addtok *token,
                                    struct td_str piece, struct td_err *err);
/* Makes the token written `text` special, whatever the file says of it; its id, or -1 when there is none. Before
 * td_tokimpl_index. TD_NO_MEMORY. */
enum td_status td_tokimpl_make_special(struct td_tokenizer *tok, struct td_str text, int64_t *id,
                                       struct td_err *err);
/* Makes the marks of the chat templates that we render special, then indexes the vocabulary; merge rules come next. */
enum td_status td_tokimpl_index(struct td_tokenizer *tok, struct td_err *err);
/* Adds the merge rule of `rank` that joins two keys. TD_CORRUPT when the vocabulary lacks one of the three tokens:
 * nothing is added then. */
enum td_status td_tokimpl_add_merge(struct td_tokenizer *tok, struct td_str left,
                                    struct td_str right, uint32_t rank, struct td_bytes *scratch,
                                    struct td_err *err);
/* Builds what encoding needs, after all else is there. */
enum td_status td_tokimpl_finish(struct td_tokenizer *tok, struct td_err *err);

/* GPT-2's alphabet: every byte is one printable character. Appends the bytes of `text`; false, with nothing appended,
 * when a character is not in the alphabet. TD_NO_MEMORY shows as false too, with *no_memory set. */
bool td_tokimpl_spell_bytes(struct td_str text, struct td_bytes *out, bool *no_memory);
/* The byte of "<0x0A>", -1 when `text` is written otherwise. */
int td_tokimpl_byte_token(struct td_str text);

/* The regular expression of GPT-2's own pre-tokenizer. */
extern const char td_tokimpl_gpt2_pattern[];

#endif
