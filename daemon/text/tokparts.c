#include "daemon/text/tokjson.h"

#include <string.h>

typedef enum td_status part_fn(struct td_tokjson *l, const json_t *part, const char *type);

static enum td_status each_part(struct td_tokjson *l, const json_t *part, const char *what,
                                const char *list_key, int depth, part_fn *fn)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *list, *item;
    size_t i;

    if (!part || json_is_null(part))
        return TD_OK;
    if (!type)
        return td_tokjson_broken(l, what, "an object with a type");
    if (strcmp(type, "Sequence") != 0)
        return fn(l, part, type);
    list = json_object_get(part, list_key);
    if (!json_is_array(list) || depth > 4)
        return td_tokjson_broken(l, what,
                                 "a sequence with a list of parts, nested at most four deep");
    json_array_foreach(list, i, item)
    {
        enum td_status s = each_part(l, item, what, list_key, depth + 1, fn);

        if (s)
            return s;
    }
    return TD_OK;
}

/* {"String": s} or {"Regex": s}, as in Split and Replace. */
static enum td_status get_pattern(struct td_tokjson *l, const json_t *part, struct td_str *text,
                                  bool *literal)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const json_t *string = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex");

    if (!json_is_string(string) && !json_is_string(regex))
        return td_tokjson_broken(l, "a pattern", "an object with String or Regex");
    *literal = json_is_string(string);
    *text = td_tokjson_str(*literal ? string : regex);
    if (text->len == 0)
        return td_tokjson_broken(l, "a pattern", "at least one character long");
    return TD_OK;
}

static enum td_status load_replace(struct td_tokjson *l, const json_t *part)
{
    struct td_textnorm_stage *stage = td_textnorm_add(&l->tok->norm, TD_TEXTNORM_REPLACE);
    const json_t *content = json_object_get(part, "content");
    struct td_str pattern;
    bool literal;
    enum td_status s;

    if (!stage)
        return td_tokjson_refuse(l, "normalizer", "Sequence of more than 16 parts");
    if (!json_is_string(content))
        return td_tokjson_broken(l, "normalizer Replace's content", "a string");
    s = get_pattern(l, part, &pattern, &literal);
    if (s)
        return s;
    if (td_bytes_append_str(&stage->text, td_tokjson_str(content)))
        return td_tokjson_no_memory(l);
    if (!literal)
        return td_regex_open(pattern, false, &stage->pattern, l->err);
    return td_bytes_append_str(&stage->from, pattern) ? td_tokjson_no_memory(l) : TD_OK;
}

static enum td_status load_normalizer(struct td_tokjson *l, const json_t *part, const char *type)
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
            return td_tokjson_refuse(l, "normalizer", "Sequence of more than 16 parts");
        if (plain[i].kind == TD_TEXTNORM_PREPEND) {
            if (!json_is_string(prepend))
                return td_tokjson_broken(l, "normalizer Prepend's prepend", "a string");
            if (td_bytes_append_str(&stage->text, td_tokjson_str(prepend)))
                return td_tokjson_no_memory(l);
        }
        if (!td_tokjson_bool(part, "strip_left", true, &stage->left) ||
            !td_tokjson_bool(part, "strip_right", true, &stage->right))
            return td_tokjson_broken(l, "normalizer Strip's side", "true or false");
        return TD_OK;
    }
    return td_tokjson_refuse(l, "normalizer", type);
}

static enum td_status load_split(struct td_tokjson *l, const json_t *part)
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
    if (!td_tokjson_bool(part, "invert", false, &invert))
        return td_tokjson_broken(l, "pre_tokenizer Split's invert", "true or false");
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) != 0)
            continue;
        stage = td_pretok_add(&l->tok->pretok, TD_PRETOK_SPLIT);
        if (!stage)
            return td_tokjson_refuse(l, "pre_tokenizer", "Sequence of more than 16 parts");
        stage->behavior = behaviors[i];
        stage->invert = invert;
        return td_regex_open(pattern, literal, &stage->pattern, l->err);
    }
    return td_tokjson_refuse(l, "pre_tokenizer Split's behavior", name);
}

static enum td_status load_byte_level(struct td_tokjson *l, const json_t *part)
{
    bool space, cut;

    if (!td_tokjson_bool(part, "add_prefix_space", true, &space) ||
        !td_tokjson_bool(part, "use_regex", true, &cut))
        return td_tokjson_broken(l, "pre_tokenizer ByteLevel's option", "true or false");
    l->tok->bpe.byte_level = true;
    if (space && !td_pretok_add(&l->tok->pretok, TD_PRETOK_SPACE_FRONT))
        return td_tokjson_refuse(l, "pre_tokenizer", "Sequence of more than 16 parts");
    if (!cut)
        return TD_OK;
    return td_pretok_add_split(&l->tok->pretok, td_str_from(td_tokimpl_gpt2_pattern),
                               TD_PRETOK_ISOLATED, false, l->err);
}

/* The two spellings of Metaspace's prefix rule, used by the pre-tokenizer and the decoder. */
static enum td_status metaspace_front(struct td_tokjson *l, const json_t *part,
                                      enum td_pretok_front *front)
{
    const char *scheme = json_string_value(json_object_get(part, "prepend_scheme"));
    bool space;

    if (!td_tokjson_bool(part, "add_prefix_space", true, &space))
        return td_tokjson_broken(l, "Metaspace's add_prefix_space", "true or false");
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
        return td_tokjson_refuse(l, "Metaspace's prepend_scheme", scheme);
    return TD_OK;
}

static enum td_status load_metaspace(struct td_tokjson *l, const json_t *part)
{
    struct td_pretok_stage *stage = td_pretok_add(&l->tok->pretok, TD_PRETOK_METASPACE);
    const json_t *mark = json_object_get(part, "replacement");
    bool cut;
    enum td_status s;

    if (!stage)
        return td_tokjson_refuse(l, "pre_tokenizer", "Sequence of more than 16 parts");
    if (!json_is_string(mark) || json_string_length(mark) == 0)
        return td_tokjson_broken(l, "pre_tokenizer Metaspace's replacement", "a character");
    if (!td_tokjson_bool(part, "split", true, &cut))
        return td_tokjson_broken(l, "pre_tokenizer Metaspace's split", "true or false");
    s = metaspace_front(l, part, &stage->front);
    if (s)
        return s;
    if (td_bytes_append_str(&stage->mark, td_tokjson_str(mark)))
        return td_tokjson_no_memory(l);
    stage->behavior = TD_PRETOK_WITH_NEXT;
    return cut ? td_regex_open(td_tokjson_str(mark), true, &stage->pattern, l->err) : TD_OK;
}

static enum td_status load_pretokenizer(struct td_tokjson *l, const json_t *part, const char *type)
{
    struct td_pretok *p = &l->tok->pretok;
    bool each;

    if (l->tok->bpe.byte_level)
        return td_tokjson_refuse(l, "pre_tokenizer behind ByteLevel", type);
    if (strcmp(type, "Split") == 0)
        return load_split(l, part);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(l, part);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(l, part);
    if (strcmp(type, "Digits") == 0) {
        if (!td_tokjson_bool(part, "individual_digits", false, &each))
            return td_tokjson_broken(l, "pre_tokenizer Digits' individual_digits", "true or false");
        return td_pretok_add_split(p, TD_STR("\\p{N}"),
                                   each ? TD_PRETOK_ISOLATED : TD_PRETOK_CONTIGUOUS, false, l->err);
    }
    if (strcmp(type, "WhitespaceSplit") == 0)
        return td_pretok_add_split(p, TD_STR("\\s"), TD_PRETOK_REMOVED, false, l->err);
    if (strcmp(type, "Whitespace") == 0)
        return td_pretok_add_split(p, TD_STR("\\w+|[^\\w\\s]+"), TD_PRETOK_REMOVED, true, l->err);
    return td_tokjson_refuse(l, "pre_tokenizer", type);
}

static enum td_status load_decoder(struct td_tokjson *l, const json_t *part, const char *type)
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
            return td_tokjson_refuse(l, "a second decoder", type);
        s = get_pattern(l, part, &l->mark, &literal);
        if (s)
            return s;
        if (!literal)
            return td_tokjson_refuse(l, "decoder", "Replace of a Regex");
        if (!json_is_string(content))
            return td_tokjson_broken(l, "decoder Replace's content", "a string");
        l->mark_as = td_tokjson_str(content);
        return TD_OK;
    }
    if (strcmp(type, "Metaspace") == 0) {
        const json_t *mark = json_object_get(part, "replacement");

        if (!json_is_string(mark) || json_string_length(mark) == 0)
            return td_tokjson_broken(l, "decoder Metaspace's replacement", "a character");
        s = metaspace_front(l, part, &front);
        l->mark = td_tokjson_str(mark);
        l->mark_as = TD_STR(" ");
        l->tok->strip_front = front != TD_PRETOK_NEVER;
        return s;
    }
    if (strcmp(type, "Strip") == 0) {
        const json_t *start = json_object_get(part, "start"), *stop = json_object_get(part, "stop");

        if (!json_is_integer(start) || !json_is_integer(stop) ||
            (unsigned long long)json_integer_value(start) > 1 || json_integer_value(stop) != 0 ||
            !td_str_eq(td_tokjson_str(content), TD_STR(" ")))
            return td_tokjson_refuse(l, "decoder", "Strip of more than one space in front");
        l->tok->strip_front = json_integer_value(start) == 1;
        return TD_OK;
    }
    return td_tokjson_refuse(l, "decoder", type);
}

static enum td_status load_template(struct td_tokjson *l, const json_t *part)
{
    const json_t *single = json_object_get(part, "single"), *item, *ids, *id;
    size_t i, k;

    if (!json_is_array(single))
        return td_tokjson_broken(l, "post_processor TemplateProcessing's single", "a list");
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
            return td_tokjson_broken(l, "post_processor TemplateProcessing's item",
                                     "a sequence or a listed special token");
        json_array_foreach(ids, k, id)
        {
            uint32_t v;

            if (!td_tokjson_id(id, &v))
                return td_tokjson_broken(l, "post_processor TemplateProcessing's id", "a token id");
            if (td_ids_append(&l->tok->prefix, v))
                return td_tokjson_no_memory(l);
        }
    }
    return TD_OK;
}

static enum td_status load_post_processor(struct td_tokjson *l, const json_t *part,
                                          const char *type)
{
    if (strcmp(type, "ByteLevel") == 0)
        return TD_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(l, part);
    return td_tokjson_refuse(l, "post_processor", type);
}

enum td_status td_tokparts_load(struct td_tokjson *l, const json_t *root)
{
    static const struct {
        const char *name, *list_key;
        part_fn *load;
    } parts[] = {{"normalizer", "normalizers", load_normalizer},
                 {"pre_tokenizer", "pretokenizers", load_pretokenizer},
                 {"decoder", "decoders", load_decoder},
                 {"post_processor", "processors", load_post_processor}};
    enum td_status s = TD_OK;

    for (size_t i = 0; i < sizeof parts / sizeof *parts && !s; i++)
        s = each_part(l, json_object_get(root, parts[i].name), parts[i].name, parts[i].list_key, 0,
                      parts[i].load);
    return s;
}
