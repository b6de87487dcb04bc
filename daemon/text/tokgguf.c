/* Reads a tokenizer out of GGUF metadata: the keys tokenizer.ggml.* of ggml's GGUF specification. */
#include "daemon/text/tokimpl.h"
#include "daemon/text/tokpre.h"
#include "shard/gguf.h"

#include <stdlib.h>
#include <string.h>

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

struct loader {
    struct td_tokenizer *tok;
    const struct td_gguf *gguf;
    struct td_err *err;
    const struct td_gguf_kv *tokens;
    const struct td_gguf_kv *types; /* NULL: all normal */
    bool byte_level;
    struct td_bytes scratch[3];
};

static enum td_status no_memory(struct loader *l)
{
    return td_err_set(l->err, TD_NO_MEMORY, "no memory for the tokenizer");
}

/* A flag that may be absent. */
static enum td_status get_flag(struct loader *l, const char *key, bool absent, bool *out)
{
    *out = absent;
    return td_gguf_find(l->gguf, key) ? td_gguf_get_bool(l->gguf, key, out, l->err) : TD_OK;
}

/* A token id that may be absent; all ones means none. */
static enum td_status get_id(struct loader *l, const char *key, int64_t absent, int64_t *out)
{
    uint32_t id;
    enum td_status s;

    *out = absent < (int64_t)l->tokens->n ? absent : -1;
    if (!td_gguf_find(l->gguf, key))
        return TD_OK;
    s = td_gguf_get_u32(l->gguf, key, &id, l->err);
    if (s)
        return s;
    if (id != UINT32_MAX && id >= l->tokens->n)
        return td_err_set(l->err, TD_CORRUPT, "%s is %u, but there are %zu tokens", key, id,
                          l->tokens->n);
    *out = id == UINT32_MAX ? -1 : (int64_t)id;
    return TD_OK;
}

static int64_t type_of(const struct loader *l, size_t i)
{
    return l->types ? td_gguf_elem_i64(l->types, i) : TYPE_NORMAL;
}

/* SentencePiece writes a space as U+2581. */
static enum td_status unmark(struct loader *l, struct td_str text, struct td_str *out)
{
    struct td_bytes *b = &l->scratch[0];

    td_bytes_clear(b);
    for (size_t i = 0; i < text.len;) {
        struct td_str rest = {text.ptr + i, text.len - i};
        bool mark = td_str_starts(rest, TD_STR("\xE2\x96\x81"));

        if (td_bytes_append(b, mark ? " " : rest.ptr, 1))
            return no_memory(l);
        i += mark ? 3 : 1;
    }
    *out = td_bytes_str(b);
    return TD_OK;
}

static enum td_status set_token(struct loader *l, uint32_t id)
{
    struct td_vocab *v = &l->tok->vocab;
    struct td_str text = td_gguf_elem_str(l->tokens, id), piece = text;
    int64_t type = type_of(l, id);
    int byte = td_tokimpl_byte_token(text);
    bool lost;
    enum td_status s;

    if (l->byte_level) {
        td_bytes_clear(&l->scratch[0]);
        if (td_tokimpl_spell_bytes(text, &l->scratch[0], &lost)) {
            struct td_str key = td_bytes_str(&l->scratch[0]);

            /* Of added tokens the text itself is meant, though merges may spell them too. */
            return td_vocab_set(v, id, key, type == TYPE_NORMAL || type == TYPE_UNUSED ? key : text,
                                0, l->err);
        }
        return lost ? no_memory(l) : td_vocab_set(v, id, text, text, TD_VOCAB_UNREACHABLE, l->err);
    }
    if (byte >= 0 && (type == TYPE_BYTE || !l->types)) {
        char c = (char)byte;

        l->tok->bpe.byte_ids[byte] = id;
        return td_vocab_set(v, id, text, (struct td_str){&c, 1}, TD_VOCAB_BYTE, l->err);
    }
    if (type == TYPE_BYTE)
        return td_err_set(l->err, TD_CORRUPT,
                          "tokenizer.ggml.tokens: byte token %u is '%.*s', expected \"<0xHH>\"", id,
                          text.len > 60 ? 60 : (int)text.len, text.ptr);
    if (type == TYPE_CONTROL || type == TYPE_UNKNOWN)
        return td_vocab_set(v, id, text, text, 0, l->err);
    s = unmark(l, text, &piece);
    return s ? s : td_vocab_set(v, id, text, piece, 0, l->err);
}

static enum td_status load_tokens(struct loader *l)
{
    enum td_status s = TD_OK;

    for (uint32_t id = 0; id < l->tokens->n && !s; id++) {
        int64_t type = type_of(l, id);
        struct td_addtok t = {.id = id, .special = type != TYPE_USER_DEFINED};
        struct td_str text = td_gguf_elem_str(l->tokens, id);

        if (type < 0 || type > TYPE_BYTE)
            return td_err_set(l->err, TD_CORRUPT,
                              "tokenizer.ggml.token_type: %lld for token %u, expected 0 to 6",
                              (long long)type, id);
        if (!td_str_is_utf8(text))
            return td_err_set(l->err, TD_CORRUPT,
                              "tokenizer.ggml.tokens: token %u is not well-formed UTF-8", id);
        s = set_token(l, id);
        if (s || text.len == 0 ||
            (type != TYPE_CONTROL && type != TYPE_UNKNOWN && type != TYPE_USER_DEFINED))
            continue;
        if (td_bytes_append_str(&t.content, text))
            return no_memory(l);
        s = td_tokimpl_add_token(l->tok, &t, text, l->err);
    }
    return s;
}

static enum td_status load_specials(struct loader *l, bool sentencepiece)
{
    struct td_tokenizer *tok = l->tok;
    enum td_status s = get_id(l, "tokenizer.ggml.bos_token_id", sentencepiece ? 1 : -1, &tok->bos);

    if (!s)
        s = get_id(l, "tokenizer.ggml.eos_token_id", sentencepiece ? 2 : -1, &tok->eos);
    if (!s)
        s = get_id(l, "tokenizer.ggml.unknown_token_id", sentencepiece ? 0 : -1,
                   &tok->bpe.unknown_id);
    /* Files without token types say only this much of what is special. */
    for (int i = 0; i < 2 && !s; i++) {
        int64_t id = i ? tok->eos : tok->bos, found;

        if (id >= 0)
            s = td_tokimpl_make_special(tok, td_gguf_elem_str(l->tokens, (size_t)id), &found,
                                        l->err);
    }
    return s;
}

static enum td_status add_bos(struct loader *l, bool absent)
{
    bool wanted;
    enum td_status s = get_flag(l, "tokenizer.ggml.add_bos_token", absent, &wanted);

    if (s || !wanted || l->tok->bos < 0)
        return s;
    return td_ids_append(&l->tok->prefix, (uint32_t)l->tok->bos) ? no_memory(l) : TD_OK;
}

static enum td_status load_sentencepiece(struct loader *l)
{
    struct td_tokenizer *tok = l->tok;
    struct td_textnorm_stage *stage;
    const struct td_gguf_kv *scores;
    float *values;
    bool space;
    enum td_status s = get_flag(l, "tokenizer.ggml.add_space_prefix", true, &space);

    if (s || (s = add_bos(l, true)))
        return s;
    tok->strip_front = space;
    if (space) {
        stage = td_textnorm_add(&tok->norm, TD_TEXTNORM_PREPEND);
        if (td_bytes_append_str(&stage->text, TD_STR("\xE2\x96\x81")))
            return no_memory(l);
    }
    stage = td_textnorm_add(&tok->norm, TD_TEXTNORM_REPLACE);
    if (td_bytes_append_str(&stage->from, TD_STR(" ")) ||
        td_bytes_append_str(&stage->text, TD_STR("\xE2\x96\x81")))
        return no_memory(l);
    s = td_gguf_get_array(l->gguf, "tokenizer.ggml.scores", TD_GGUF_F32, &scores, l->err);
    if (s)
        return s;
    if (scores->n != l->tokens->n)
        return td_err_set(l->err, TD_CORRUPT, "tokenizer.ggml.scores has %zu items, expected %zu",
                          scores->n, l->tokens->n);
    s = td_tokimpl_index(tok, l->err);
    if (s)
        return s;
    values = malloc(scores->n * sizeof *values);
    if (!values)
        return no_memory(l);
    for (size_t i = 0; i < scores->n; i++)
        values[i] = td_gguf_elem_f32(scores, i);
    s = td_bpe_init_scores(&tok->bpe, values, l->err);
    free(values);
    return s;
}

static enum td_status load_recipe(struct loader *l)
{
    struct td_str pre = TD_STR("default");
    const struct td_tokpre *r;
    enum td_status s;

    if (td_gguf_find(l->gguf, "tokenizer.ggml.pre")) {
        s = td_gguf_get_str(l->gguf, "tokenizer.ggml.pre", &pre, l->err);
        if (s)
            return s;
    }
    r = td_tokpre_find(pre);
    if (r) {
        l->tok->bpe.whole_first = r->whole_first;
        if (r->nfc)
            td_textnorm_add(&l->tok->norm, TD_TEXTNORM_NFC);
        s = add_bos(l, r->bos);
        for (size_t p = 0; p < TD_TOKPRE_MAX_PATTERNS && r->patterns[p] && !s; p++)
            s = td_pretok_add_split(&l->tok->pretok, td_str_from(r->patterns[p]),
                                    TD_PRETOK_ISOLATED, false, l->err);
        return s;
    }
    return td_err_set(l->err, TD_UNSUPPORTED,
                      "tokenizer.ggml.pre '%.*s' is not supported; known are gpt-2, llama-bpe, "
                      "qwen2, smollm, tekken, gpt-4o and their like",
                      pre.len > 60 ? 60 : (int)pre.len, pre.ptr);
}

static enum td_status load_merges(struct loader *l)
{
    const struct td_gguf_kv *merges;
    struct td_bytes both = {0};
    enum td_status s =
        td_gguf_get_array(l->gguf, "tokenizer.ggml.merges", TD_GGUF_STRING, &merges, l->err);

    if (s)
        return s;
    if (merges->n > UINT32_MAX / 4)
        return td_err_set(l->err, TD_TOO_LARGE, "tokenizer.ggml.merges has %zu items", merges->n);
    s = td_bpe_init_merges(&l->tok->bpe, merges->n, l->err);
    for (size_t i = 0; i < merges->n && !s; i++) {
        struct td_str text = td_gguf_elem_str(merges, i), left, right;
        const char *space = text.len > 2 ? memchr(text.ptr + 1, ' ', text.len - 1) : NULL;
        bool lost[2] = {false, false}, ok = space != NULL;

        if (ok) {
            left = (struct td_str){text.ptr, (size_t)(space - text.ptr)};
            right = (struct td_str){space + 1, text.len - left.len - 1};
            td_bytes_clear(&l->scratch[1]);
            td_bytes_clear(&l->scratch[2]);
            ok = right.len && td_tokimpl_spell_bytes(left, &l->scratch[1], &lost[0]) &&
                 td_tokimpl_spell_bytes(right, &l->scratch[2], &lost[1]);
        }
        if (lost[0] || lost[1])
            s = no_memory(l);
        else if (!ok)
            s = td_err_set(l->err, TD_CORRUPT,
                           "tokenizer.ggml.merges: rule %zu is not two byte-level tokens", i);
        else
            s = td_tokimpl_add_merge(l->tok, td_bytes_str(&l->scratch[1]),
                                     td_bytes_str(&l->scratch[2]), (uint32_t)i, &both, l->err);
        if (s == TD_CORRUPT && ok) /* a cut vocabulary: a rule without its tokens never applies */
            s = TD_OK;
    }
    td_bytes_deinit(&both);
    return s;
}

static enum td_status load_all(struct loader *l)
{
    struct td_str model;
    enum td_status s = td_gguf_get_str(l->gguf, "tokenizer.ggml.model", &model, l->err);
    bool sentencepiece;

    if (s)
        return s;
    sentencepiece = td_str_eq(model, TD_STR("llama"));
    if (!sentencepiece && !td_str_eq(model, TD_STR("gpt2")))
        return td_err_set(l->err, TD_UNSUPPORTED,
                          "tokenizer.ggml.model '%.*s' is not supported, only llama (SentencePiece "
                          "BPE) and gpt2 (byte-level BPE)",
                          model.len > 60 ? 60 : (int)model.len, model.ptr);
    l->byte_level = l->tok->bpe.byte_level = !sentencepiece;
    s = td_gguf_get_array(l->gguf, "tokenizer.ggml.tokens", TD_GGUF_STRING, &l->tokens, l->err);
    if (s)
        return s;
    if (l->tokens->n == 0 || l->tokens->n > TD_VOCAB_MAX_IDS)
        return td_err_set(l->err, TD_CORRUPT,
                          "tokenizer.ggml.tokens has %zu items, expected 1 to %d", l->tokens->n,
                          TD_VOCAB_MAX_IDS);
    if (td_gguf_find(l->gguf, "tokenizer.ggml.token_type")) {
        s = td_gguf_get_array(l->gguf, "tokenizer.ggml.token_type", TD_GGUF_I32, &l->types, l->err);
        if (s)
            return s;
        if (l->types->n != l->tokens->n)
            return td_err_set(l->err, TD_CORRUPT,
                              "tokenizer.ggml.token_type has %zu items, expected %zu", l->types->n,
                              l->tokens->n);
    }
    s = load_tokens(l);
    if (!s)
        s = load_specials(l, sentencepiece);
    if (!s && sentencepiece)
        s = load_sentencepiece(l);
    else if (!s && !(s = load_recipe(l)) && !(s = td_tokimpl_index(l->tok, l->err)))
        s = load_merges(l);
    return s ? s : td_tokimpl_finish(l->tok, l->err);
}

enum td_status td_tokgguf_load(struct td_tokenizer *tok, const struct td_gguf *gguf,
                               struct td_err *err)
{
    struct loader l = {.tok = tok, .gguf = gguf, .err = err};
    enum td_status s = load_all(&l);

    for (size_t i = 0; i < 3; i++)
        td_bytes_deinit(&l.scratch[i]);
    return s;
}
