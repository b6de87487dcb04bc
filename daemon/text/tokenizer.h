/* From text to token ids and back to the bytes of one token, as the model's own files say: byte-level BPE and
 * SentencePiece-style BPE, out of tokenizer.json or GGUF metadata. Knows no chat template and no stream.
 * Read-only after open: any number of threads may call the const functions at once. */
#ifndef TD_DAEMON_TEXT_TOKENIZER_H
#define TD_DAEMON_TEXT_TOKENIZER_H

#include "daemon/text/ids.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct td_checkpoint;
struct td_gguf;
struct td_tokenizer;

/* Opens the tokenizer that lies with a checkpoint. On success *tok is owned by the caller (close it) and borrows
 * nothing. TD_NOT_FOUND when there is none; TD_UNSUPPORTED naming a kind or part that is not built; TD_CORRUPT for a
 * file that breaks its format. */
enum td_status td_tokenizer_open(const struct td_checkpoint *ck, struct td_tokenizer **tok,
                                 struct td_err *err);
/* The same from the text of tokenizer.json and tokenizer_config.json (may be empty). */
enum td_status td_tokenizer_open_json(struct td_str tokenizer_json, struct td_str tokenizer_config,
                                      struct td_tokenizer **tok, struct td_err *err);
/* The same from the keys tokenizer.ggml.* (ggml's GGUF specification). */
enum td_status td_tokenizer_open_gguf(const struct td_gguf *gguf, struct td_tokenizer **tok,
                                      struct td_err *err);
void td_tokenizer_close(struct td_tokenizer *tok); /* NULL is legal */

enum {
    TD_ENCODE_BOS = 1, /* begin with BOS when the model wants it */
    TD_ENCODE_SPECIAL =
        2 /* special tokens in the text become their ids; else their text is plain text */
};

/* Appends the ids of `text`. TD_INVALID for text that is not UTF-8; TD_TOO_LARGE over 1 GiB; on an error `out` is as
 * it was. Takes time, never blocks; added tokens that are not special are found under any flags. */
enum td_status td_tokenizer_encode(const struct td_tokenizer *tok, struct td_str text,
                                   unsigned flags, struct td_ids *out, struct td_err *err);

/* A run of text from one hand. */
struct td_text_segment {
    struct td_str text;
    bool trusted; /* special tokens written here are meant; elsewhere they are plain text */
};

/* Encodes the segments as one text: ids are those of the joined text, but a special token is found only where all
 * its bytes are trusted. TD_ENCODE_SPECIAL has no meaning here. */
enum td_status td_tokenizer_encode_segments(const struct td_tokenizer *tok,
                                            const struct td_text_segment *segments, size_t n,
                                            unsigned flags, struct td_ids *out, struct td_err *err);

/* The bytes that token `id` stands for in text; of a special token its own text; empty for an id that is none. They
 * may be a part of a character. Borrowed until close. */
struct td_str td_tokenizer_piece(const struct td_tokenizer *tok, uint32_t id);
bool td_tokenizer_is_special(const struct td_tokenizer *tok, uint32_t id);
/* Decoded text loses one space at its very front (SentencePiece's rule). */
bool td_tokenizer_strips_front(const struct td_tokenizer *tok);

uint32_t td_tokenizer_n_vocab(
    const struct td_tokenizer *tok); /* highest id + 1; the model's matrix may have more rows */
int64_t td_tokenizer_bos(const struct td_tokenizer *tok); /* -1: none */
int64_t td_tokenizer_eos(const struct td_tokenizer *tok); /* -1: none */
/* The id of the special or added token, else of the plain token, that is written `token`. -1: none. */
int64_t td_tokenizer_find(const struct td_tokenizer *tok, struct td_str token);

#endif
