/* Reads tokenizer.json (Hugging Face tokenizers) and tokenizer_config.json. Both are untrusted: every type, id and
 * length is checked, and a part that is not built is refused by its name. */
#include "daemon/text/tokimpl.h"

#include <jansson.h>
#include <string.h>

struct loader {
    struct td_tokenizer *tok;
    struct td_err *err;
    bool byte_fallback;
    bool decode_bytes;           /* the decoder turns "<0x0A>" into a byte */
    struct td_str mark, mark_as; /* the decoder writes `mark_as` for each `mark`; empty: none */
    struct td_bytes scratch[3];
};

static enum td_status refuse(struct loader *l, const char *what, const char *name)
{
    return td_err_set(l->err, TD_UNSUPPORTED, "tokenizer.json: %s '%.60s' is not supported", what,
                      name ? name : "(none)");
}

static enum td_status broken(struct loader *l, const char *what, const char *expected)
{
    return td_err_set(l->err, TD_CORRUPT, "tokenizer.json: %s is not %s", what, expected);
}

static enum td_status no_memory(struct loader *l)
{
    return td_err_set(l->err, TD_NO_MEMORY, "no memory for the tokenizer");
}

static struct td_str str_of(const json_t *j)
{
    return (struct td_str){json_string_value(j), json_string_length(j)};
}

/* An optional boolean; false when it has another type. */
static bool get_bool(const json_t *j, const char *key, bool absent, bool *out)
{
    const json_t *v = json_object_get(j, key);

    *out = json_is_true(v) || ((!v || json_is_null(v)) && absent);
    return !v || json_is_boolean(v) || json_is_null(v);
}

static bool get_id(const json_t *j, uint32_t *id)
{
    if (!json_is_integer(j) || json_integer_value(j) < 0 ||
        json_integer_value(j) >= TD_VOCAB_MAX_IDS)
        return false;
    *id = (uint32_t)json_integer_value(j);
    return true;
}

/* ---- stages: a part is one object with a type, or a sequence of them ---- */

typedef enum td_status part_fn(struct loader *l, const json_t *part, const char *type);

static enum td_status each_part(struct loader *l, const json_t *part, const char *what,
                                const char *list_key, int depth, part_fn *fn)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *list, *item;
    size_t i;

    if (!part || json_is_null(part))
        return TD_OK;
    if (!type)
        return broken(l, what, "an object with a type");
    if (strcmp(type, "Sequence") != 0)
        return fn(l, part, type);
    list = json_object_get(part, list_key);
    if (!json_is_array(list) || depth > 4)
        return broken(l, what, "a sequence with a list of parts, nested at most four deep");
    json_array_foreach(list, i, item)
    {
        enum td_status s = each_part(l, item, what, list_key, depth + 1, fn);

        if (s)
            return s;
    }
    return TD_OK;
}

/* {"String": s} or {"Regex": s}, as in Split and Replace. */
static enum td_status get_pattern(struct loader *l, const json_t *part, struct td_str *text,
                                  bool *literal)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const json_t *string = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex");

    if (!json_is_string(string) && !json_is_string(regex))
        return broken(l, "a pattern", "an object with String or Regex");
    *literal = json_is_string(string);
    *text = str_of(*literal ? string : regex);
    if (text->len == 0)
        return broken(l, "a pattern", "at least one character long");
    return TD_OK;
}

static enum td_status load_replace(struct loader *l, const json_t *part)
{
    struct td_textnorm_stage *stage = td_textnorm_add(&l->tok->norm, TD_TEXTNORM_REPLACE);
    const json_t *content = json_object_get(part, "content");
    struct td_str pattern;
    bool literal;
    enum td_status s;

    if (!stage)
        return refuse(l, "normalizer", "Sequence of more than 16 parts");
    if (!json_is_string(content))
        return broken(l, "normalizer Replace's content", "a string");
    s = get_pattern(l, part, &pattern, &literal);
    if (s)
        return s;
    if (td_bytes_append_str(&stage->text, str_of(content)))
        return no_memory(l);
    if (!literal)
        return td_regex_open(pattern, false, &stage->pattern, l->err);
    return td_bytes_append_str(&stage->from, pattern) ? no_memory(l) : TD_OK;
}

static enum td_status load_normalizer(struct loader *l, const json_t *part, const char *type)
{
    static const struct {
        const char *name;
        enum td_textnorm_kind kind;
    } plain[] = {{"NFC", TD_TEXTNORM_NFC},         {"NFD", TD_TEXTNORM_NFD},
                 {"NFKC", TD_TEXTNORM_NFKC},       {"NFKD", TD_TEXTNORM_NFKD},
                 {"Prepend", TD_TEXTNORM_PREPEND}, {"Strip", TD_TEXTNORM_STRIP}};
    const json_t *prepend = json_object_get(part, "prepend");

    if (strcmp(type, "Replace") == 0)
        return load_replace(l, part);
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        struct td_textnorm_stage *stage;

        if (strcmp(type, plain[i].name) != 0)
            continue;
        stage = td_textnorm_add(&l->tok->norm, plain[i].kind);
        if (!stage)
            return refuse(l, "normalizer", "Sequence of more than 16 parts");
        if (plain[i].kind == TD_TEXTNORM_PREPEND) {
            if (!json_is_string(prepend))
                return broken(l, "normalizer Prepend's prepend", "a string");
            if (td_bytes_append_str(&stage->text, str_of(prepend)))
                return no_memory(l);
        }
        if (!get_bool(part, "strip_left", true, &stage->left) ||
            !get_bool(part, "strip_right", true, &stage->right))
            return broken(l, "normalizer Strip's side", "true or false");
        return TD_OK;
    }
    return refuse(l, "normalizer", type);
}

static enum td_status load_split(struct loader *l, const json_t *part)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    static const enum td_pretok_behavior behaviors[] = {TD_PRETOK_ISOLATED, TD_PRETOK_REMOVED,
                                                        TD_PRETOK_WITH_PREVIOUS,
                                                        TD_PRETOK_WITH_NEXT, TD_PRETOK_CONTIGUOUS};
    const char *name = json_string_value(json_object_get(part, "behavior"));
    struct td_pretok_stage *stage;
    struct td_str pattern;
    bool literal, invert;
    enum td_status s = get_pattern(l, part, &pattern, &literal);

    if (s)
        return s;
    if (!get_bool(part, "invert", false, &invert))
        return broken(l, "pre_tokenizer Split's invert", "true or false");
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) != 0)
            continue;
        stage = td_pretok_add(&l->tok->pretok, TD_PRETOK_SPLIT);
        if (!stage)
            return refuse(l, "pre_tokenizer", "Sequence of more than 16 parts");
        stage->behavior = behaviors[i];
        stage->invert = invert;
        return td_regex_open(pattern, literal, &stage->pattern, l->err);
    }
    return refuse(l, "pre_tokenizer Split's behavior", name);
}

static enum td_status load_byte_level(struct loader *l, const json_t *part)
{
    bool space, cut;

    if (!get_bool(part, "add_prefix_space", true, &space) ||
        !get_bool(part, "use_regex", true, &cut))
        return broken(l, "pre_tokenizer ByteLevel's option", "true or false");
    l->tok->bpe.byte_level = true;
    if (space && !td_pretok_add(&l->tok->pretok, TD_PRETOK_SPACE_FRONT))
        return refuse(l, "pre_tokenizer", "Sequence of more than 16 parts");
    if (!cut)
        return TD_OK;
    return td_pretok_add_split(&l->tok->pretok, td_str_from(td_tokimpl_gpt2_pattern),
                               TD_PRETOK_ISOLATED, false, l->err);
}

/* The two spellings of Metaspace's prefix rule, used by the pre-tokenizer and the decoder. */
static enum td_status metaspace_front(struct loader *l, const json_t *part,
                                      enum td_pretok_front *front)
{
    const char *scheme = json_string_value(json_object_get(part, "prepend_scheme"));
    bool space;

    if (!get_bool(part, "add_prefix_space", true, &space))
        return broken(l, "Metaspace's add_prefix_space", "true or false");
    *front = space ? TD_PRETOK_ALWAYS : TD_PRETOK_NEVER;
    if (!scheme)
        return TD_OK;
    if (strcmp(scheme, "always") == 0)
        *front = TD_PRETOK_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        *front = TD_PRETOK_FIRST;
    else if (strcmp(scheme, "never") == 0)
        *front = TD_PRETOK_NEVER;
    else
        return refuse(l, "Metaspace's prepend_scheme", scheme);
    return TD_OK;
}

static enum td_status load_metaspace(struct loader *l, const json_t *part)
{
    struct td_pretok_stage *stage = td_pretok_add(&l->tok->pretok, TD_PRETOK_METASPACE);
    const json_t *mark = json_object_get(part, "replacement");
    bool cut;
    enum td_status s;

    if (!stage)
        return refuse(l, "pre_tokenizer", "Sequence of more than 16 parts");
    if (!json_is_string(mark) || json_string_length(mark) == 0)
        return broken(l, "pre_tokenizer Metaspace's replacement", "a character");
    if (!get_bool(part, "split", true, &cut))
        return broken(l, "pre_tokenizer Metaspace's split", "true or false");
    s = metaspace_front(l, part, &stage->front);
    if (s)
        return s;
    if (td_bytes_append_str(&stage->mark, str_of(mark)))
        return no_memory(l);
    stage->behavior = TD_PRETOK_WITH_NEXT;
    return cut ? td_regex_open(str_of(mark), true, &stage->pattern, l->err) : TD_OK;
}

static enum td_status load_pretokenizer(struct loader *l, const json_t *part, const char *type)
{
    struct td_pretok *p = &l->tok->pretok;
    bool each;

    if (l->tok->bpe.byte_level)
        return refuse(l, "pre_tokenizer behind ByteLevel", type);
    if (strcmp(type, "Split") == 0)
        return load_split(l, part);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(l, part);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(l, part);
    if (strcmp(type, "Digits") == 0) {
        if (!get_bool(part, "individual_digits", false, &each))
            return broken(l, "pre_tokenizer Digits' individual_digits", "true or false");
        return td_pretok_add_split(p, TD_STR("\\p{N}"),
                                   each ? TD_PRETOK_ISOLATED : TD_PRETOK_CONTIGUOUS, false, l->err);
    }
    if (strcmp(type, "WhitespaceSplit") == 0)
        return td_pretok_add_split(p, TD_STR("\\s"), TD_PRETOK_REMOVED, false, l->err);
    if (strcmp(type, "Whitespace") == 0)
        return td_pretok_add_split(p, TD_STR("\\w+|[^\\w\\s]+"), TD_PRETOK_REMOVED, true, l->err);
    return refuse(l, "pre_tokenizer", type);
}

static enum td_status load_decoder(struct loader *l, const json_t *part, const char *type)
{
    const json_t *content = json_object_get(part, "content");
    enum td_pretok_front front;
    enum td_status s;
    bool literal;

    if (strcmp(type, "ByteLevel") == 0 || strcmp(type, "Fuse") == 0)
        return TD_OK;
    if (strcmp(type, "ByteFallback") == 0) {
        l->decode_bytes = true;
        return TD_OK;
    }
    if (strcmp(type, "Replace") == 0) {
        if (l->mark.len)
            return refuse(l, "a second decoder", type);
        s = get_pattern(l, part, &l->mark, &literal);
        if (s)
            return s;
        if (!literal)
            return refuse(l, "decoder", "Replace of a Regex");
        if (!json_is_string(content))
            return broken(l, "decoder Replace's content", "a string");
        l->mark_as = str_of(content);
        return TD_OK;
    }
    if (strcmp(type, "Metaspace") == 0) {
        const json_t *mark = json_object_get(part, "replacement");

        if (!json_is_string(mark) || json_string_length(mark) == 0)
            return broken(l, "decoder Metaspace's replacement", "a character");
        s = metaspace_front(l, part, &front);
        l->mark = str_of(mark);
        l->mark_as = TD_STR(" ");
        l->tok->strip_front = front != TD_PRETOK_NEVER;
        return s;
    }
    if (strcmp(type, "Strip") == 0) {
        const json_t *start = json_object_get(part, "start"), *stop = json_object_get(part, "stop");

        if (!json_is_integer(start) || !json_is_integer(stop) ||
            (unsigned long long)json_integer_value(start) > 1 || json_integer_value(stop) != 0 ||
            !td_str_eq(str_of(content), TD_STR(" ")))
            return refuse(l, "decoder", "Strip of more than one space in front");
        l->tok->strip_front = json_integer_value(start) == 1;
        return TD_OK;
    }
    return refuse(l, "decoder", type);
}

/* ---- the post-processor: what goes in front ---- */

static enum td_status load_template(struct loader *l, const json_t *part)
{
    const json_t *single = json_object_get(part, "single"), *item, *ids, *id;
    size_t i, k;

    if (!json_is_array(single))
        return broken(l, "post_processor TemplateProcessing's single", "a list");
    json_array_foreach(single, i, item)
    {
        const char *name =
            json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));

        if (json_object_get(item, "Sequence"))
            break;
        ids = name ? json_object_get(json_object_get(json_object_get(part, "special_tokens"), name),
                                     "ids")
                   : NULL;
        if (!json_is_array(ids))
            return broken(l, "post_processor TemplateProcessing's item",
                          "a sequence or a listed special token");
        json_array_foreach(ids, k, id)
        {
            uint32_t v;

            if (!get_id(id, &v))
                return broken(l, "post_processor TemplateProcessing's id", "a token id");
            if (td_ids_append(&l->tok->prefix, v))
                return no_memory(l);
        }
    }
    return TD_OK;
}

static enum td_status load_post_processor(struct loader *l, const json_t *part, const char *type)
{
    if (strcmp(type, "ByteLevel") == 0)
        return TD_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(l, part);
    return refuse(l, "post_processor", type);
}

/* ---- the vocabulary ---- */

/* `text` with the decoder's replacement done; borrows from the scratch buffer. */
static enum td_status decoded(struct loader *l, struct td_str text, struct td_str *out)
{
    struct td_bytes *b = &l->scratch[0];
    const char *at = text.ptr, *end = text.ptr + text.len, *hit;

    *out = text;
    if (!l->mark.len || !text.len || !memmem(text.ptr, text.len, l->mark.ptr, l->mark.len))
        return TD_OK;
    td_bytes_clear(b);
    while ((hit = memmem(at, (size_t)(end - at), l->mark.ptr, l->mark.len))) {
        if (td_bytes_append(b, at, (size_t)(hit - at)) || td_bytes_append_str(b, l->mark_as))
            return no_memory(l);
        at = hit + l->mark.len;
    }
    if (td_bytes_append(b, at, (size_t)(end - at)))
        return no_memory(l);
    *out = td_bytes_str(b);
    return TD_OK;
}

static enum td_status load_token(struct loader *l, struct td_str text, uint32_t id)
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
            return no_memory(l);
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

static enum td_status load_vocab(struct loader *l, const json_t *model)
{
    json_t *vocab = json_object_get(model, "vocab"), *value;
    const char *key;
    size_t key_len;

    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return broken(l, "model.vocab", "an object with at least one token");
    json_object_keylen_foreach(vocab, key, key_len, value)
    {
        struct td_str text = {key, key_len};
        uint32_t id;
        enum td_status s;

        if (!get_id(value, &id))
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

static enum td_status load_added(struct loader *l, const json_t *list)
{
    const json_t *item;
    size_t i;

    if (!list || json_is_null(list))
        return TD_OK;
    if (!json_is_array(list))
        return broken(l, "added_tokens", "a list");
    json_array_foreach(list, i, item)
    {
        const json_t *content = json_object_get(item, "content");
        struct td_addtok t = {0};
        struct td_str piece;
        enum td_status s;

        if (!json_is_string(content) || !get_id(json_object_get(item, "id"), &t.id))
            return broken(l, "an item of added_tokens", "an object with an id and a content");
        if (!get_bool(item, "special", false, &t.special) ||
            !get_bool(item, "single_word", false, &t.single_word) ||
            !get_bool(item, "lstrip", false, &t.lstrip) ||
            !get_bool(item, "rstrip", false, &t.rstrip) ||
            !get_bool(item, "normalized", !t.special, &t.normalized))
            return broken(l, "a flag of added_tokens", "true or false");
        if (json_string_length(content) == 0)
            continue;
        s = decoded(l, str_of(content), &piece);
        if (s)
            return s;
        if (td_bytes_append_str(&t.content, str_of(content)))
            return no_memory(l);
        s = td_tokimpl_add_token(l->tok, &t, piece, l->err);
        if (s)
            return s;
    }
    return TD_OK;
}

/* One side of a merge rule as the vocabulary knows it; borrows from `scratch` or `text`. */
static enum td_status merge_side(struct loader *l, struct td_str text, struct td_bytes *scratch,
                                 struct td_str *out)
{
    bool lost;

    *out = text;
    if (!l->tok->bpe.byte_level)
        return TD_OK;
    td_bytes_clear(scratch);
    if (td_tokimpl_spell_bytes(text, scratch, &lost))
        *out = td_bytes_str(scratch);
    return lost ? no_memory(l) : TD_OK;
}

/* Cuts "left right". Where a token is itself a space there are several ways; the one that the vocabulary knows is
 * meant, else the first. */
static bool cut_merge(const struct loader *l, struct td_str text, struct td_str *left,
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
        /* Byte-level tokens hold no space; a rule as long as this is broken anyway. */
        if (l->tok->bpe.byte_level || text.len > TD_ADDTOK_MAX_BYTES)
            break;
    }
    return found;
}

static enum td_status load_merge(struct loader *l, const json_t *item, uint32_t rank,
                                 struct td_bytes *both)
{
    struct td_str left = {0}, right = {0};
    bool ok = false;
    enum td_status s;

    if (json_is_string(item)) {
        ok = cut_merge(l, str_of(item), &left, &right);
    } else if (json_array_size(item) == 2 && json_is_string(json_array_get(item, 0)) &&
               json_is_string(json_array_get(item, 1))) {
        left = str_of(json_array_get(item, 0));
        right = str_of(json_array_get(item, 1));
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

static enum td_status load_merges(struct loader *l, const json_t *model)
{
    const json_t *merges = json_object_get(model, "merges"), *item;
    struct td_bytes both = {0};
    enum td_status s;
    size_t i;

    /* An empty list is written as an object by some tools. */
    if (!json_is_array(merges) && !(json_is_object(merges) && json_object_size(merges) == 0))
        return broken(l, "model.merges", "a list");
    if (json_array_size(merges) > UINT32_MAX / 4)
        return broken(l, "model.merges", "shorter than 2^30");
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
static enum td_status load_options(struct loader *l, const json_t *model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = json_string_value(json_object_get(model, "type"));
    struct td_bpe *bpe = &l->tok->bpe;

    if (!json_is_object(model))
        return broken(l, "model", "an object");
    if (!type && json_object_get(model, "merges"))
        type = "BPE";
    if (!type || strcmp(type, "BPE") != 0)
        return td_err_set(l->err, TD_UNSUPPORTED,
                          "tokenizer.json: a model of type '%.60s' is not supported, only BPE",
                          type ? type : "(none)");
    if (json_number_value(json_object_get(model, "dropout")) > 0)
        return refuse(l, "model option", "dropout");
    for (size_t i = 0; i < 2; i++)
        if (json_string_length(json_object_get(model, affixes[i])))
            return refuse(l, "model option", affixes[i]);
    if (!get_bool(model, "fuse_unk", false, &bpe->fuse_unknown) ||
        !get_bool(model, "byte_fallback", false, &l->byte_fallback) ||
        !get_bool(model, "ignore_merges", false, &bpe->whole_first))
        return broken(l, "an option of model", "true or false");
    return TD_OK;
}

static enum td_status load_unknown(struct loader *l, const json_t *model)
{
    const json_t *name = json_object_get(model, "unk_token"), *id;

    if (!name || json_is_null(name))
        return TD_OK;
    if (!json_is_string(name))
        return broken(l, "model.unk_token", "a string");
    id = json_object_get(json_object_get(model, "vocab"), json_string_value(name));
    if (id)
        l->tok->bpe.unknown_id = json_integer_value(id);
    return TD_OK;
}

/* ---- tokenizer_config.json ---- */

/* Finds the token that `key` names (a string, or an object with a content) and makes it special. */
static enum td_status config_token(struct loader *l, const json_t *config, const char *key,
                                   int64_t *id)
{
    const json_t *v = json_object_get(config, key);

    if (json_is_object(v))
        v = json_object_get(v, "content");
    if (!json_is_string(v))
        return TD_OK;
    return td_tokimpl_make_special(l->tok, str_of(v), id, l->err);
}

static enum td_status load_config(struct loader *l, const json_t *config)
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
            return no_memory(l);
    }
    return TD_OK;
}

static enum td_status load_all(struct loader *l, const json_t *root, const json_t *config)
{
    const json_t *model = json_object_get(root, "model");
    enum td_status s = load_options(l, model);

    if (!s)
        s = each_part(l, json_object_get(root, "normalizer"), "normalizer", "normalizers", 0,
                      load_normalizer);
    if (!s)
        s = each_part(l, json_object_get(root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers",
                      0, load_pretokenizer);
    if (!s)
        s = each_part(l, json_object_get(root, "decoder"), "decoder", "decoders", 0, load_decoder);
    if (!s)
        s = each_part(l, json_object_get(root, "post_processor"), "post_processor", "processors", 0,
                      load_post_processor);
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
    struct loader l = {.tok = tok, .err = err};
    json_t *root = NULL, *options = NULL;
    json_error_t why;
    enum td_status s;

    root = json_loadb(tokenizer_json.ptr, tokenizer_json.len, JSON_ALLOW_NUL, &why);
    if (!root)
        return td_err_set(err, TD_CORRUPT, "tokenizer.json: line %d, column %d: %s", why.line,
                          why.column, why.text);
    /* Its model_max_length is often 1e30 written as an integer. */
    if (config.len) {
        options =
            json_loadb(config.ptr, config.len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &why);
        if (!options) {
            s = td_err_set(err, TD_CORRUPT, "tokenizer_config.json: line %d, column %d: %s",
                           why.line, why.column, why.text);
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
