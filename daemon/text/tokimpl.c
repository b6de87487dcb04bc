#include "daemon/text/tokimpl.h"

#include "daemon/text/utf8.h"

#include <stdlib.h>
#include <string.h>

const char td_tokimpl_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* The byte that a character of GPT-2's alphabet stands for: printable Latin-1 is itself, the 68 other bytes follow
 * from U+0100 in order. -1: not in the alphabet. */
static int alphabet_byte(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xFF && cp != 0xAD))
        return (int)cp;
    if (cp >= 0x100 && cp <= 0x120)
        return (int)(cp - 0x100); /* 0x00 to 0x20 */
    if (cp >= 0x121 && cp <= 0x142)
        return (int)(cp - 0x121 + 0x7F); /* 0x7F to 0xA0 */
    return cp == 0x143 ? 0xAD : -1;
}

bool td_tokimpl_spell_bytes(struct td_str text, struct td_bytes *out, bool *no_memory)
{
    size_t before = out->len;

    *no_memory = td_bytes_reserve(out, text.len) != TD_OK;
    for (size_t at = 0; at < text.len && !*no_memory;) {
        struct td_str rest = {text.ptr + at, text.len - at};
        uint32_t cp;
        size_t n;
        int byte = -1;

        if (td_utf8_decode(rest, &cp, &n) == TD_UTF8_CHAR)
            byte = alphabet_byte(cp);
        if (byte < 0) {
            out->len = before;
            return false;
        }
        out->data[out->len++] = (char)byte;
        at += n;
    }
    return !*no_memory;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int td_tokimpl_byte_token(struct td_str text)
{
    int high, low;

    if (text.len != 6 || memcmp(text.ptr, "<0x", 3) != 0 || text.ptr[5] != '>')
        return -1;
    high = hex_digit(text.ptr[3]);
    low = hex_digit(text.ptr[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* One id, one text and one kind: else text that is nobody's could become the id of a control token. A token that is there
 * already, *again, is no error. */
static enum td_status check_added_once(const struct td_tokenizer *tok,
                                       const struct td_addtok *token, bool *again,
                                       struct td_err *err)
{
    *again = false;
    if (!(td_vocab_flags(&tok->vocab, token->id) & TD_VOCAB_ADDED))
        return TD_OK;
    for (uint32_t i = 0; i < tok->n_added; i++) {
        const struct td_addtok *other = &tok->added[i];

        if (other->id != token->id)
            continue;
        *again = true;
        if (other->special != token->special ||
            !td_str_eq(td_bytes_str(&other->content), td_bytes_str(&token->content)))
            return td_err_set(err, TD_CORRUPT,
                              "two added tokens have the id %u: '%.60s' and '%.60s', which differ",
                              token->id, other->content.data, token->content.data);
    }
    return TD_OK;
}

enum td_status td_tokimpl_add_token(struct td_tokenizer *tok, struct td_addtok *token,
                                    struct td_str piece, struct td_err *err)
{
    bool again;
    unsigned flags = TD_VOCAB_ADDED | (token->special ? TD_VOCAB_SPECIAL : 0);
    struct td_str content = td_bytes_str(&token->content);
    enum td_status s;

    if (content.len == 0 || content.len > TD_ADDTOK_MAX_BYTES) {
        s = td_err_set(err, TD_UNSUPPORTED, "added token %u has %zu bytes, expected 1 to %d",
                       token->id, content.len, TD_ADDTOK_MAX_BYTES);
        goto fail;
    }
    s = check_added_once(tok, token, &again, err);
    if (s)
        goto fail;
    if (again) {
        td_bytes_deinit(&token->content);
        return TD_OK;
    }
    if (td_vocab_flags(&tok->vocab, token->id) & TD_VOCAB_PRESENT)
        s = td_vocab_amend(&tok->vocab, token->id, piece, flags, err);
    else
        s = td_vocab_set(&tok->vocab, token->id, content, piece, flags | TD_VOCAB_UNREACHABLE, err);
    if (s)
        goto fail;
    if (tok->n_added == tok->added_cap) {
        uint32_t cap = tok->added_cap ? tok->added_cap * 2 : 32;
        struct td_addtok *added = realloc(tok->added, cap * sizeof *added);

        if (!added) {
            s = td_err_set(err, TD_NO_MEMORY, "no memory for %u added tokens", cap);
            goto fail;
        }
        tok->added = added;
        tok->added_cap = cap;
    }
    tok->added[tok->n_added++] = *token;
    return TD_OK;
fail:
    td_bytes_deinit(&token->content);
    return s;
}

enum td_status td_tokimpl_make_special(struct td_tokenizer *tok, struct td_str text, int64_t *id,
                                       struct td_err *err)
{
    struct td_addtok token = {.special = true};

    *id = -1;
    for (uint32_t i = 0; i < tok->n_added; i++) {
        if (!td_str_eq(td_bytes_str(&tok->added[i].content), text))
            continue;
        tok->added[i].special = true;
        tok->vocab.entries[tok->added[i].id].flags |= TD_VOCAB_SPECIAL;
        *id = tok->added[i].id;
        return TD_OK;
    }
    for (uint32_t i = 0; i < tok->vocab.n && text.len; i++) {
        if (!td_str_eq(td_vocab_key(&tok->vocab, i), text))
            continue;
        *id = token.id = i;
        if (td_bytes_append_str(&token.content, text))
            return td_err_set(err, TD_NO_MEMORY, "no memory for token %u", i);
        return td_tokimpl_add_token(tok, &token, text, err);
    }
    return TD_OK;
}

enum td_status td_tokimpl_index(struct td_tokenizer *tok, struct td_err *err)
{
    const struct td_str marks[] = {TD_STR("<|im_start|>"), TD_STR("<|im_end|>")};

    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        int64_t id;
        enum td_status s = td_tokimpl_make_special(tok, marks[i], &id, err);

        if (s)
            return s;
    }
    tok->bpe.vocab = &tok->vocab;
    return td_vocab_index(&tok->vocab, err);
}

enum td_status td_tokimpl_add_merge(struct td_tokenizer *tok, struct td_str left,
                                    struct td_str right, uint32_t rank, struct td_bytes *scratch,
                                    struct td_err *err)
{
    const struct td_vocab *v = &tok->vocab;
    int64_t l = td_vocab_find(v, left), r = td_vocab_find(v, right), joined;
    struct td_str both;

    td_bytes_clear(scratch);
    if (td_bytes_append_str(scratch, left) || td_bytes_append_str(scratch, right))
        return td_err_set(err, TD_NO_MEMORY, "no memory for merge rule %u", rank);
    both = td_bytes_str(scratch);
    joined = td_vocab_find(v, both);
    if (l >= 0 && r >= 0 && joined >= 0) {
        td_bpe_add_merge(&tok->bpe, (uint32_t)l, (uint32_t)r, rank, (uint32_t)joined);
        return TD_OK;
    }
    if ((l < 0 && td_vocab_find_any(v, left) < 0) || (r < 0 && td_vocab_find_any(v, right) < 0) ||
        (joined < 0 && td_vocab_find_any(v, both) < 0))
        return td_err_set(err, TD_CORRUPT,
                          "merge rule %u joins '%.*s' and '%.*s', but the vocabulary lacks %s",
                          rank, left.len > 60 ? 60 : (int)left.len, left.ptr,
                          right.len > 60 ? 60 : (int)right.len, right.ptr,
                          l < 0   ? "the first"
                          : r < 0 ? "the second"
                                  : "their joint");
    return TD_OK; /* one of them is special: plain text never becomes it */
}

static enum td_status build_trie(struct td_tokenizer *tok, uint32_t i)
{
    const struct td_addtok *t = &tok->added[i];

    if (!t->normalized || t->special)
        return td_addtok_trie_add(&tok->raw, td_bytes_str(&t->content), i);
    return TD_OK;
}

enum td_status td_tokimpl_finish(struct td_tokenizer *tok, struct td_err *err)
{
    struct td_bytes buffers[2] = {{0}, {0}};
    struct td_regex_work re = {0};
    enum td_status s = TD_OK;

    if (tok->bpe.byte_level) {
        for (int byte = 0; byte < 256; byte++) {
            char c = (char)byte;

            tok->bpe.byte_ids[byte] = td_vocab_find(&tok->vocab, (struct td_str){&c, 1});
        }
    }
    for (uint32_t i = 0; i < tok->n_added && !s; i++) {
        struct td_str text = td_bytes_str(&tok->added[i].content);

        if (build_trie(tok, i)) {
            s = td_err_set(err, TD_NO_MEMORY, "no memory for %u added tokens", tok->n_added);
            break;
        }
        if (!tok->added[i].normalized)
            continue;
        s = td_textnorm_run(&tok->norm, text, buffers, &re, &text, err);
        if (!s && text.len && td_addtok_trie_add(&tok->normalized, text, i))
            s = td_err_set(err, TD_NO_MEMORY, "no memory for %u added tokens", tok->n_added);
    }
    td_regex_work_deinit(&re);
    td_bytes_deinit(&buffers[0]);
    td_bytes_deinit(&buffers[1]);
    return s;
}
