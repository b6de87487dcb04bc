#include "daemon/text/tokenizer.h"

#include "daemon/text/tokimpl.h"
#include "daemon/text/utf8.h"
#include "shard/checkpoint.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT_BYTES = 1 << 30 };

/* One call's state. */
struct encoder {
    const struct td_tokenizer *tok;
    struct td_str text;  /* as given, all segments joined */
    const char *trusted; /* [text.len] 0 or 1; NULL: all bytes are alike */
    bool all_trusted;    /* when `trusted` is NULL */
    struct td_bytes norm[2];
    struct td_pretok_work pretok;
    struct td_regex_work re;
    struct td_bpe_work bpe;
    struct td_ids *out;
    struct td_err *err;
};

static struct td_tokenizer *new_tokenizer(void)
{
    struct td_tokenizer *tok = calloc(1, sizeof *tok);

    if (!tok)
        return NULL;
    tok->bos = tok->eos = tok->bpe.unknown_id = -1;
    for (int i = 0; i < 256; i++)
        tok->bpe.byte_ids[i] = -1;
    return tok;
}

void td_tokenizer_close(struct td_tokenizer *tok)
{
    if (!tok)
        return;
    td_ids_deinit(&tok->prefix);
    td_addtok_trie_deinit(&tok->normalized);
    td_addtok_trie_deinit(&tok->raw);
    for (uint32_t i = 0; i < tok->n_added; i++)
        td_bytes_deinit(&tok->added[i].content);
    free(tok->added);
    td_pretok_deinit(&tok->pretok);
    td_textnorm_deinit(&tok->norm);
    td_bpe_deinit(&tok->bpe);
    td_vocab_deinit(&tok->vocab);
    free(tok);
}

enum td_status td_tokenizer_open_json(struct td_str tokenizer_json, struct td_str tokenizer_config,
                                      struct td_tokenizer **tok, struct td_err *err)
{
    struct td_tokenizer *t = new_tokenizer();
    enum td_status s;

    if (!t)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a tokenizer");
    s = td_tokjson_load(t, tokenizer_json, tokenizer_config, err);
    if (s) {
        td_tokenizer_close(t);
        return s;
    }
    *tok = t;
    return TD_OK;
}

enum td_status td_tokenizer_open_gguf(const struct td_gguf *gguf, struct td_tokenizer **tok,
                                      struct td_err *err)
{
    struct td_tokenizer *t = new_tokenizer();
    enum td_status s;

    if (!t)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a tokenizer");
    s = td_tokgguf_load(t, gguf, err);
    if (s) {
        td_tokenizer_close(t);
        return s;
    }
    *tok = t;
    return TD_OK;
}

enum td_status td_tokenizer_open(const struct td_checkpoint *ck, struct td_tokenizer **tok,
                                 struct td_err *err)
{
    struct td_str json = td_checkpoint_tokenizer_json(ck);

    if (td_checkpoint_gguf(ck))
        return td_tokenizer_open_gguf(td_checkpoint_gguf(ck), tok, err);
    if (json.len == 0)
        return td_err_set(err, TD_NOT_FOUND, "there is no tokenizer.json in '%s'",
                          td_checkpoint_path(ck));
    return td_tokenizer_open_json(json, td_checkpoint_tokenizer_config(ck), tok, err);
}

static enum td_status out_of_memory(const struct encoder *e)
{
    return td_err_set(e->err, TD_NO_MEMORY, "no memory to tokenise %zu bytes", e->text.len);
}

/* Text without added tokens: cut, then byte-pair encoding of each piece. */
static enum td_status encode_plain(struct encoder *e, struct td_str text, bool at_start)
{
    const struct td_pretok_spans *spans;
    enum td_status s;

    s = td_pretok_run(&e->tok->pretok, text, at_start, &e->pretok, &e->re, &text, &spans, e->err);
    if (s)
        return s;
    for (size_t i = 0; i < spans->len; i++) {
        struct td_str word = {text.ptr + spans->data[i].at, spans->data[i].len};

        if (td_bpe_encode(&e->tok->bpe, word, &e->bpe, e->out))
            return out_of_memory(e);
    }
    return TD_OK;
}

/* What stands in the way of a match in the text as given. */
static bool accept_raw(const void *user, uint32_t index, size_t start, size_t end)
{
    const struct encoder *e = user;
    const struct td_addtok *t = &e->tok->added[index];

    /* Normalised special tokens are found here only in mixed text: behind the normaliser nobody can tell any more whose
     * text it is. */
    if (t->normalized && !e->trusted)
        return false;
    if (t->special &&
        (e->trusted ? memchr(e->trusted + start, 0, end - start) != NULL : !e->all_trusted))
        return false;
    return !t->single_word || td_addtok_is_single_word(e->text, start, end);
}

struct normalized_view {
    const struct encoder *e;
    struct td_str text;
};

static bool accept_normalized(const void *user, uint32_t index, size_t start, size_t end)
{
    const struct normalized_view *v = user;
    const struct td_addtok *t = &v->e->tok->added[index];

    if (t->special && (v->e->trusted || !v->e->all_trusted))
        return false;
    return !t->single_word || td_addtok_is_single_word(v->text, start, end);
}

typedef enum td_status gap_fn(struct encoder *e, struct td_str gap, bool at_start);

/* Finds the added tokens of `trie` in `text`, hands the gaps between them to `gap`. */
static enum td_status split_added(struct encoder *e, const struct td_addtok_trie *trie,
                                  struct td_str text, bool at_start, td_addtok_accept_fn *accept,
                                  const void *user, gap_fn *gap)
{
    size_t done = 0, from = 0;
    struct td_addtok_match m;

    while (td_addtok_next(trie, text, from, accept, user, &m)) {
        const struct td_addtok *t = &e->tok->added[m.index];

        if (t->lstrip)
            m.start -= td_utf8_space_suffix((struct td_str){text.ptr + done, m.start - done});
        if (t->rstrip)
            m.end += td_utf8_space_prefix((struct td_str){text.ptr + m.end, text.len - m.end});
        if (m.start > done) {
            enum td_status s =
                gap(e, (struct td_str){text.ptr + done, m.start - done}, at_start && done == 0);

            if (s)
                return s;
        }
        if (td_ids_append(e->out, t->id))
            return out_of_memory(e);
        done = from = m.end;
    }
    if (done < text.len)
        return gap(e, (struct td_str){text.ptr + done, text.len - done}, at_start && done == 0);
    return TD_OK;
}

/* A stretch between added tokens: normalised, searched for normalised added tokens, encoded. */
static enum td_status encode_stretch(struct encoder *e, struct td_str text, bool at_start)
{
    struct normalized_view view = {.e = e};
    enum td_status s = td_textnorm_run(&e->tok->norm, text, e->norm, &e->re, &view.text, e->err);

    if (s)
        return s;
    return split_added(e, &e->tok->normalized, view.text, at_start, accept_normalized, &view,
                       encode_plain);
}

/* Joins the segments. Text of one kind is marked by all_trusted, mixed text by a byte each. */
static enum td_status join(struct encoder *e, const struct td_text_segment *segments, size_t n,
                           struct td_bytes *text, struct td_bytes *trusted)
{
    bool mixed = false;
    size_t len = 0;

    e->all_trusted = n > 0 && segments[0].trusted;
    for (size_t i = 0; i < n; i++) {
        if (segments[i].text.len > MAX_TEXT_BYTES - len)
            return td_err_set(e->err, TD_TOO_LARGE, "text to tokenise is over %d bytes",
                              MAX_TEXT_BYTES);
        len += segments[i].text.len;
        mixed = mixed || segments[i].trusted != segments[0].trusted;
    }
    if (n == 1) {
        e->text = segments[0].text;
        return TD_OK;
    }
    e->text.len = len;
    if (td_bytes_reserve(text, len) || (mixed && td_bytes_reserve(trusted, len)))
        return out_of_memory(e);
    for (size_t i = 0; i < n; i++) {
        td_bytes_append_str(text, segments[i].text);
        if (mixed) {
            memset(trusted->data + trusted->len, segments[i].trusted, segments[i].text.len);
            trusted->len += segments[i].text.len;
        }
    }
    e->text = td_bytes_str(text);
    if (mixed)
        e->trusted = trusted->data;
    return TD_OK;
}

enum td_status td_tokenizer_encode_segments(const struct td_tokenizer *tok,
                                            const struct td_text_segment *segments, size_t n,
                                            unsigned flags, struct td_ids *out, struct td_err *err)
{
    struct encoder e = {.tok = tok, .out = out, .err = err};
    struct td_bytes text = {0}, trusted = {0};
    size_t before = out->len;
    enum td_status s = join(&e, segments, n, &text, &trusted);

    e.norm[0].cap_limit = e.norm[1].cap_limit = MAX_TEXT_BYTES;
    e.pretok.text[0].cap_limit = e.pretok.text[1].cap_limit = MAX_TEXT_BYTES;
    if (!s && !td_str_is_utf8(e.text))
        s = td_err_set(err, TD_INVALID, "text to tokenise is not well-formed UTF-8");
    if (!s && flags & TD_ENCODE_BOS && td_ids_append_n(out, tok->prefix.data, tok->prefix.len))
        s = out_of_memory(&e);
    if (!s)
        s = split_added(&e, &tok->raw, e.text, true, accept_raw, &e, encode_stretch);
    if (s)
        out->len = before;
    td_bpe_work_deinit(&e.bpe);
    td_regex_work_deinit(&e.re);
    td_pretok_work_deinit(&e.pretok);
    td_bytes_deinit(&e.norm[0]);
    td_bytes_deinit(&e.norm[1]);
    td_bytes_deinit(&trusted);
    td_bytes_deinit(&text);
    return s;
}

enum td_status td_tokenizer_encode(const struct td_tokenizer *tok, struct td_str text,
                                   unsigned flags, struct td_ids *out, struct td_err *err)
{
    struct td_text_segment segment = {text, (flags & TD_ENCODE_SPECIAL) != 0};

    return td_tokenizer_encode_segments(tok, &segment, 1, flags, out, err);
}

struct td_str td_tokenizer_piece(const struct td_tokenizer *tok, uint32_t id)
{
    return td_vocab_piece(&tok->vocab, id);
}

bool td_tokenizer_is_special(const struct td_tokenizer *tok, uint32_t id)
{
    return (td_vocab_flags(&tok->vocab, id) & TD_VOCAB_SPECIAL) != 0;
}

bool td_tokenizer_strips_front(const struct td_tokenizer *tok)
{
    return tok->strip_front;
}

uint32_t td_tokenizer_n_vocab(const struct td_tokenizer *tok)
{
    return tok->vocab.n;
}

int64_t td_tokenizer_bos(const struct td_tokenizer *tok)
{
    return tok->bos;
}

int64_t td_tokenizer_eos(const struct td_tokenizer *tok)
{
    return tok->eos;
}

int64_t td_tokenizer_find(const struct td_tokenizer *tok, struct td_str token)
{
    for (uint32_t i = 0; i < tok->n_added; i++)
        if (td_str_eq(td_bytes_str(&tok->added[i].content), token))
            return tok->added[i].id;
    return td_vocab_find_any(&tok->vocab, token);
}
