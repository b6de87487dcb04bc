#include "daemon/text/tokjson.h"

#include "shard/jsonalloc.h"

#include <string.h>

enum td_status td_tokjson_refuse(struct td_tokjson *l, const char *what, const char *name)
{
    return td_err_set(l->err, TD_UNSUPPORTED, "tokenizer.json: %s '%.60s' is not supported", what,
                      name ? name : "(none)");
}

enum td_status td_tokjson_unread(const char *what, const json_error_t *why, struct td_err *err)
{
    if (json_error_code(why) == json_error_out_of_memory)
        return td_err_set(err, TD_NO_MEMORY, "no memory to parse %s", what);
    return td_err_set(err, TD_CORRUPT, "%s: line %d, column %d: %s", what, why->line, why->column,
                      why->text);
}

enum td_status td_tokjson_broken(struct td_tokjson *l, const char *what, const char *expected)
{
    return td_err_set(l->err, TD_CORRUPT, "tokenizer.json: %s is not %s", what, expected);
}

enum td_status td_tokjson_no_memory(struct td_tokjson *l)
{
    return td_err_set(l->err, TD_NO_MEMORY, "no memory for the tokenizer");
}

struct td_str td_tokjson_str(const json_t *j)
{
    return (struct td_str){json_string_value(j), json_string_length(j)};
}

/* An optional boolean; false when it has another type. */
bool td_tokjson_bool(const json_t *j, const char *key, bool absent, bool *out)
{
    const json_t *v = json_object_get(j, key);

    *out = json_is_true(v) || ((!v || json_is_null(v)) && absent);
    return !v || json_is_boolean(v) || json_is_null(v);
}

bool td_tokjson_id(const json_t *j, uint32_t *id)
{
    if (!json_is_integer(j) || json_integer_value(j) < 0 ||
        json_integer_value(j) >= TD_VOCAB_MAX_IDS)
        return false;
    *id = (uint32_t)json_integer_value(j);
    return true;
}

/* `text` with the decoder's replacement done; borrows from the scratch buffer. */
static enum td_status decoded(struct td_tokjson *l, struct td_str text, struct td_str *out)
{
    struct td_bytes *b = &l->scratch[0];
    const char *at = text.ptr, *end = text.ptr + text.len, *hit;

    *out = text;
    if (!l->mark.len || !text.len || !memmem(text.ptr, text.len, l->mark.ptr, l->mark.len))
        return TD_OK;
    td_bytes_clear(b);
    while ((hit = memmem(at, (size_t)(end - at), l->mark.ptr, l->mark.len))) {
        if (td_bytes_append(b, at, (size_t)(hit - at)) || td_bytes_append_str(b, l->mark_as))
            return td_tokjson_no_memory(l);
        at = hit + l->mark.len;
    }
    if (td_bytes_append(b, at, (size_t)(end - at)))
        return td_tokjson_no_memory(l);
    *out = td_bytes_str(b);
    return TD_OK;
}

static enum td_status load_token(struct td_tokjson *l, struct td_str text, uint32_t id)
{
    struct td_vocab *v = &l->tok->vocab;
    struct td_str piece = text;
    unsigned flags = 0;
    enum td_status s;
    bool lost;

    if (l->tok->bpe.byte_level) {
        td_bytes_clear(&l->scratch[0]);
        if (td_tokimpl_spell_bytes(text, &l->scratch[0], &lost))
            text = piece = td_bytes_str(&l->scratch[0]);
        else if (lost)
            return td_tokjson_no_memory(l);
        else
            flags = TD_VOCAB_UNREACHABLE;
        return td_vocab_set(v, id, text, piece, flags, l->err);
    }
    if (l->byte_fallback) {
        int byte = td_tokimpl_byte_token(text);

        if (byte >= 0) {
            char c = (char)byte;

            l->tok->bpe.byte_ids[byte] = id;
            if (l->decode_bytes)
                piece = (struct td_str){&c, 1};
            return td_vocab_set(v, id, text, piece, TD_VOCAB_BYTE, l->err);
        }
    }
    s = decoded(l, text, &piece);
    return s ? s : td_vocab_set(v, id, text, piece, flags, l->err);
}

static enum td_status load_vocab(struct td_tokjson *l, const json_t *model)
{
    json_t *vocab = json_object_get(model, "vocab"), *value;
    const char *key;
    size_t key_len;

    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return td_tokjson_broken(l, "model.vocab", "an object with at least one token");
    json_object_keylen_foreach(vocab, key, key_len, value)
    {
        struct td_str text = {key, key_len};
        uint32_t id;
        enum td_status s;

        if (!td_tokjson_id(value, &id))
            return td_err_set(l->err, TD_CORRUPT,
                              "tokenizer.json: the id of token '%.60s' is no integer from 0 to %d",
                              key, TD_VOCAB_MAX_IDS - 1);
        if (td_vocab_flags(&l->tok->vocab, id) & TD_VOCAB_PRESENT)
            return td_err_set(l->err, TD_CORRUPT,
                              "tokenizer.json: two tokens have the id %u, one of them '%.60s'", id,
                              key);
        s = load_token(l, text, id);
        if (s)
            return s;
    }
    return TD_OK;
}

static enum td_status load_added(struct td_tokjson *l, const json_t *list)
{
    const json_t *item;
    size_t i;

    if (!list || json_is_null(list))
        return TD_OK;
    if (!json_is_array(list))
        return td_tokjson_broken(l, "added_tokens", "a list");
    json_array_foreach(list, i, item)
    {
        const json_t *content = json_object_get(item, "content");
        struct td_addtok t = {0};
        struct td_str piece;
        enum td_status s;

        if (!json_is_string(content) || !td_tokjson_id(json_object_get(item, "id"), &t.id))
            return td_tokjson_broken(l, "an item of added_tokens",
                                     "an object with an id and a content");
        if (!td_tokjson_bool(item, "special", false, &t.special) ||
            !td_tokjson_bool(item, "single_word", false, &t.single_word) ||
            !td_tokjson_bool(item, "lstrip", false, &t.lstrip) ||
            !td_tokjson_bool(item, "rstrip", false, &t.rstrip) ||
            !td_tokjson_bool(item, "normalized", !t.special, &t.normalized))
            return td_tokjson_broken(l, "a flag of added_tokens", "true or false");
        if (json_string_length(content) == 0)
            continue;
        s = decoded(l, td_tokjson_str(content), &piece);
        if (s)
            return s;
        if (td_bytes_append_str(&t.content, td_tokjson_str(content)))
            return td_tokjson_no_memory(l);
        s = td_tokimpl_add_token(l->tok, &t, piece, l->err);
        if (s)
            return s;
    }
    return TD_OK;
}

/* One side of a merge rule as the vocabulary knows it; borrows from `scratch` or `text`. */
static enum td_status merge_side(struct td_tokjson *l, struct td_str text, struct td_bytes *scratch,
                                 struct td_str *out)
{
    bool lost;

    *out = text;
    if (!l->tok->bpe.byte_level)
        return TD_OK;
    td_bytes_clear(scratch);
    if (td_tokimpl_spell_bytes(text, scratch, &lost))
        *out = td_bytes_str(scratch);
    return lost ? td_tokjson_no_memory(l) : TD_OK;
}

/* Cuts "left right". Where a token is itself a space there are several ways; the one that the vocabulary knows is
 * meant, else the first. */
static bool cut_merge(const struct td_tokjson *l, struct td_str text, struct td_str *left,
                      struct td_str *right)
{
    bool found = false;

    for (size_t i = 1; i + 1 < text.len; i++) {
        struct td_str a = {text.ptr, i}, b = {text.ptr + i + 1, text.len - i - 1};

        if (text.ptr[i] != ' ')
            continue;
        if (found &&
            (td_vocab_find_any(&l->tok->vocab, a) < 0 || td_vocab_find_any(&l->tok->vocab, b) < 0))
            continue;
        *left = a;
        *right = b;
        found = true;
        if (td_vocab_find_any(&l->tok->vocab, a) >= 0 && td_vocab_find_any(&l->tok->vocab, b) >= 0)
            break;
        /* Byte-level tokens hold no space; a rule as long as this is td_tokjson_broken anyway. */
        if (l->tok->bpe.byte_level || text.len > TD_ADDTOK_MAX_BYTES)
            break;
    }
    return found;
}

static enum td_status load_merge(struct td_tokjson *l, const json_t *item, uint32_t rank,
                                 struct td_bytes *both)
{
    struct td_str left = {0}, right = {0};
    bool ok = false;
    enum td_status s;

    if (json_is_string(item)) {
        ok = cut_merge(l, td_tokjson_str(item), &left, &right);
    } else if (json_array_size(item) == 2 && json_is_string(json_array_get(item, 0)) &&
               json_is_string(json_array_get(item, 1))) {
        left = td_tokjson_str(json_array_get(item, 0));
        right = td_tokjson_str(json_array_get(item, 1));
        ok = left.len && right.len;
    }
    if (!ok)
        return td_err_set(l->err, TD_CORRUPT, "tokenizer.json: merge rule %u is not two tokens",
                          rank);
    s = merge_side(l, left, &l->scratch[1], &left);
    if (!s)
        s = merge_side(l, right, &l->scratch[2], &right);
    return s ? s : td_tokimpl_add_merge(l->tok, left, right, rank, both, l->err);
}

static enum td_status load_merges(struct td_tokjson *l, const json_t *model)
{
    const json_t *merges = json_object_get(model, "merges"), *item;
    struct td_bytes both = {0};
    enum td_status s;
    size_t i;

    /* An empty list is written as an object by some tools. */
    if (!json_is_array(merges) && !(json_is_object(merges) && json_object_size(merges) == 0))
        return td_tokjson_broken(l, "model.merges", "a list");
    if (json_array_size(merges) > UINT32_MAX / 4)
        return td_tokjson_broken(l, "model.merges", "shorter than 2^30");
    s = td_bpe_init_merges(&l->tok->bpe, json_array_size(merges), l->err);
    json_array_foreach(merges, i, item)
    {
        if (s)
            break;
        s = load_merge(l, item, (uint32_t)i, &both);
    }
    td_bytes_deinit(&both);
    return s;
}

/* The options of model: what is not plain BPE is refused. */
static enum td_status load_options(struct td_tokjson *l, const json_t *model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = json_string_value(json_object_get(model, "type"));
    struct td_bpe *bpe = &l->tok->bpe;

    if (!json_is_object(model))
        return td_tokjson_broken(l, "model", "an object");
    if (!type && json_object_get(model, "merges"))
        type = "BPE";
    if (!type || strcmp(type, "BPE") != 0)
        return td_err_set(l->err, TD_UNSUPPORTED,
                          "tokenizer.json: a model of type '%.60s' is not supported, only BPE",
                          type ? type : "(none)");
    if (json_number_value(json_object_get(model, "dropout")) > 0)
        return td_tokjson_refuse(l, "model option", "dropout");
    for (size_t i = 0; i < 2; i++)
        if (json_string_length(json_object_get(model, affixes[i])))
            return td_tokjson_refuse(l, "model option", affixes[i]);
    if (!td_tokjson_bool(model, "fuse_unk", false, &bpe->fuse_unknown) ||
        !td_tokjson_bool(model, "byte_fallback", false, &l->byte_fallback) ||
        !td_tokjson_bool(model, "ignore_merges", false, &bpe->whole_first))
        return td_tokjson_broken(l, "an option of model", "true or false");
    return TD_OK;
}

static enum td_status load_unknown(struct td_tokjson *l, const json_t *model)
{
    const json_t *name = json_object_get(model, "unk_token"), *id;

    if (!name || json_is_null(name))
        return TD_OK;
    if (!json_is_string(name))
        return td_tokjson_broken(l, "model.unk_token", "a string");
    id = json_object_get(json_object_get(model, "vocab"), json_string_value(name));
    if (id)
        l->tok->bpe.unknown_id = json_integer_value(id);
    return TD_OK;
}

/* Finds the token that `key` names (a string, or an object with a content) and makes it special. */
static enum td_status config_token(struct td_tokjson *l, const json_t *config, const char *key,
                                   int64_t *id)
{
    const json_t *v = json_object_get(config, key);

    if (json_is_object(v))
        v = json_object_get(v, "content");
    if (!json_is_string(v))
        return TD_OK;
    return td_tokimpl_make_special(l->tok, td_tokjson_str(v), id, l->err);
}

static enum td_status load_config(struct td_tokjson *l, const json_t *config)
{
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    const json_t *add_bos = json_object_get(config, "add_bos_token");
    struct td_tokenizer *tok = l->tok;
    enum td_status s = config_token(l, config, "bos_token", &tok->bos);

    if (!s)
        s = config_token(l, config, "eos_token", &tok->eos);
    if (s)
        return s;
    if (tok->bos < 0 && tok->prefix.len)
        tok->bos = tok->prefix.data[0];
    /* Classes that transformers derives from Llama's rebuild the template from these options; others ignore them. */
    if (class && strncmp(class, "Llama", 5) == 0 && json_is_boolean(add_bos)) {
        td_ids_clear(&tok->prefix);
        if (json_is_true(add_bos) && tok->bos >= 0 &&
            td_ids_append(&tok->prefix, (uint32_t)tok->bos))
            return td_tokjson_no_memory(l);
    }
    return TD_OK;
}

static enum td_status load_all(struct td_tokjson *l, const json_t *root, const json_t *config)
{
    const json_t *model = json_object_get(root, "model");
    enum td_status s = load_options(l, model);

    if (!s)
        s = td_tokparts_load(l, root);
    /* In a byte-level vocabulary the alphabet says it all. */
    if (l->tok->bpe.byte_level)
        l->mark = (struct td_str){0};
    if (!s)
        s = load_vocab(l, model);
    if (!s)
        s = load_unknown(l, model);
    if (!s)
        s = load_added(l, json_object_get(root, "added_tokens"));
    if (!s)
        s = load_config(l, config);
    if (!s)
        s = td_tokimpl_index(l->tok, l->err);
    if (!s)
        s = load_merges(l, model);
    return s ? s : td_tokimpl_finish(l->tok, l->err);
}

enum td_status td_tokjson_load(struct td_tokenizer *tok, struct td_str tokenizer_json,
                               struct td_str config, struct td_err *err)
{
    struct td_tokjson l = {.tok = tok, .err = err};
    json_t *root = NULL, *options = NULL;
    json_error_t why;
    enum td_status s;

    root = td_jsonalloc_parse(tokenizer_json, JSON_ALLOW_NUL, &why);
    if (!root)
        return td_tokjson_unread("tokenizer.json", &why, err);
    /* Its model_max_length is often 1e30 written as an integer. */
    if (config.len) {
        options = td_jsonalloc_parse(config, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &why);
        if (!options) {
            s = td_tokjson_unread("tokenizer_config.json", &why, err);
            goto done;
        }
    }
    s = load_all(&l, root, options);
done:
    for (size_t i = 0; i < 3; i++)
        td_bytes_deinit(&l.scratch[i]);
    json_decref(options);
    json_decref(root);
    return s;
}
