#include "daemon/text/tokexport.h"

#include "daemon/text/tokjson.h"
#include "daemon/text/tokpre.h"
#include "kernels/base/arena.h"
#include "shard/ggufwrite.h"
#include "shard/jsonalloc.h"
#include "shard/spec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

static const char MARK[] = "\xE2\x96\x81"; /* how SentencePiece writes a space */

/* The ranks of the merge rules that make one token. */
struct run {
    uint32_t id, first, last; /* first > last: none */
};

struct exporter {
    const struct td_tokenizer *tok;
    const struct td_spec *spec;
    struct td_ggufwrite *w;
    struct td_bytes *notes;
    struct td_err *err;
    json_t *root;
    struct td_arena arena;
    uint32_t n;          /* tokens written: rows of the embedding */
    struct td_str *text; /* [n] */
    int32_t *type;       /* [n] */
};

static enum td_status no_memory(struct exporter *x)
{
    return td_err_set(x->err, TD_NO_MEMORY, "no memory for the tokenizer");
}

static enum td_status refuse(struct exporter *x, const char *what, const char *name)
{
    return td_err_set(x->err, TD_UNSUPPORTED,
                      "tokenizer.json: %s '%.100s' has no name in a GGUF file", what,
                      name ? name : "(none)");
}

/* ---- tokens ---- */

static enum td_status put_token(struct exporter *x, uint32_t id, struct td_str text, int32_t type)
{
    if (id >= x->n)
        return td_err_set(x->err, TD_UNSUPPORTED,
                          "tokenizer.json: token %u '%.60s' has no row in an embedding of %u rows",
                          id, text.ptr, x->n);
    x->text[id] = text;
    x->type[id] = type;
    return TD_OK;
}

static enum td_status load_vocab(struct exporter *x)
{
    json_t *vocab = json_object_get(json_object_get(x->root, "model"), "vocab"), *value;
    enum td_status s = TD_OK;
    const char *key;
    size_t len;

    json_object_keylen_foreach(vocab, key, len, value)
    {
        struct td_str text = {key, len};
        uint32_t id = (uint32_t)json_integer_value(value);
        bool byte = !x->tok->bpe.byte_level && (td_vocab_flags(&x->tok->vocab, id) & TD_VOCAB_BYTE);

        s = s ? s : put_token(x, id, text, byte ? TYPE_BYTE : TYPE_NORMAL);
    }
    return s;
}

static enum td_status load_added(struct exporter *x)
{
    const json_t *item;
    size_t i, n_flags = 0;
    enum td_status s = TD_OK;

    json_array_foreach(json_object_get(x->root, "added_tokens"), i, item)
    {
        struct td_str text = td_tokjson_str(json_object_get(item, "content"));
        uint32_t id = (uint32_t)json_integer_value(json_object_get(item, "id"));

        if (text.len == 0)
            continue;
        n_flags += json_is_true(json_object_get(item, "lstrip")) ||
                   json_is_true(json_object_get(item, "rstrip")) ||
                   json_is_true(json_object_get(item, "single_word"));
        s = s ? s : put_token(x, id, text, TYPE_USER_DEFINED);
    }
    for (uint32_t id = 0; id < x->n && !s; id++) {
        if (x->text[id].ptr && td_tokenizer_is_special(x->tok, id))
            x->type[id] = TYPE_CONTROL;
        if ((int64_t)id == x->tok->bpe.unknown_id && !x->tok->bpe.byte_level)
            x->type[id] = TYPE_UNKNOWN;
    }
    if (!s && n_flags &&
        td_bytes_appendf(x->notes,
                         "%zu added tokens strip spaces or match single words, which a GGUF file "
                         "cannot say\n",
                         n_flags))
        s = no_memory(x);
    return s;
}

/* Rows of the embedding that no token has. */
static enum td_status fill_holes(struct exporter *x)
{
    for (uint32_t id = 0; id < x->n; id++) {
        char name[32];
        int len;

        if (x->text[id].ptr)
            continue;
        len = snprintf(name, sizeof name, "[PAD%u]", id);
        x->text[id].ptr = td_arena_strndup(&x->arena, name, (size_t)len);
        x->text[id].len = (size_t)len;
        x->type[id] = TYPE_UNUSED;
        if (!x->text[id].ptr)
            return no_memory(x);
    }
    return TD_OK;
}

/* ---- byte-level BPE ---- */

/* Appends what one part of pre_tokenizer cuts by; ByteLevel itself also spells bytes. */
static enum td_status add_pattern(struct exporter *x, const json_t *part, struct td_str *patterns,
                                  size_t *n)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *regex = json_object_get(json_object_get(part, "pattern"), "Regex"), *list, *item;
    const char *behavior = json_string_value(json_object_get(part, "behavior"));
    struct td_str pattern = {NULL, 0};
    enum td_status s = TD_OK;
    bool flag;
    size_t i;

    if (!type)
        return refuse(x, "pre_tokenizer", NULL);
    if (strcmp(type, "Sequence") == 0) {
        list = json_object_get(part, "pretokenizers");
        json_array_foreach(list, i, item) s = s ? s : add_pattern(x, item, patterns, n);
        return s;
    }
    if (strcmp(type, "ByteLevel") == 0) {
        if (!td_tokjson_bool(part, "add_prefix_space", true, &flag) || flag)
            return refuse(x, "pre_tokenizer", "ByteLevel with add_prefix_space");
        if (!td_tokjson_bool(part, "use_regex", true, &flag) || !flag)
            return TD_OK;
        pattern = td_str_from(td_tokimpl_gpt2_pattern);
    } else if (strcmp(type, "Digits") == 0) {
        if (!td_tokjson_bool(part, "individual_digits", false, &flag) || !flag)
            return refuse(x, "pre_tokenizer", "Digits in groups");
        pattern = TD_STR("\\p{N}");
    } else if (strcmp(type, "Split") == 0 && regex && behavior &&
               strcmp(behavior, "Isolated") == 0 &&
               !json_is_true(json_object_get(part, "invert"))) {
        pattern = td_tokjson_str(regex);
    } else {
        return refuse(x, "pre_tokenizer", type);
    }
    if (*n == TD_TOKPRE_MAX_PATTERNS)
        return refuse(x, "pre_tokenizer", "Sequence of many cuts");
    patterns[(*n)++] = pattern;
    return TD_OK;
}

static enum td_status write_pre(struct exporter *x)
{
    const struct td_textnorm *norm = &x->tok->norm;
    struct td_str patterns[TD_TOKPRE_MAX_PATTERNS];
    bool nfc = norm->n_stages == 1 && norm->stages[0].kind == TD_TEXTNORM_NFC;
    const struct td_tokpre *r;
    size_t n = 0;
    enum td_status s;

    if (norm->n_stages && !nfc)
        return refuse(x, "the normalizer of a byte-level model, other than", "NFC");
    s = add_pattern(x, json_object_get(x->root, "pre_tokenizer"), patterns, &n);
    if (s)
        return s;
    r = td_tokpre_match(patterns, n, nfc, x->tok->bpe.whole_first);
    if (!r)
        return td_err_set(
            x->err, TD_UNSUPPORTED,
            "tokenizer.json: the pre_tokenizer that cuts by '%.*s'%s%s has no name in "
            "a GGUF file",
            (int)(n && patterns[0].len < 100 ? patterns[0].len
                  : n                        ? 100
                                             : 0),
            n ? patterns[0].ptr : "", nfc ? ", after NFC" : "",
            x->tok->bpe.whole_first ? ", with ignore_merges" : "");
    td_ggufwrite_str(x->w, "tokenizer.ggml.pre", td_str_from(r->names[0]));
    return TD_OK;
}

/* Each rule as "left right"; a pair is joined, a string is taken as it is. */
static enum td_status write_merges(struct exporter *x, const json_t *merges)
{
    size_t n = json_array_size(merges), i;
    struct td_str *rule = td_arena_alloc(&x->arena, (n + 1) * sizeof *rule);
    const json_t *item;

    if (!rule)
        return no_memory(x);
    json_array_foreach(merges, i, item)
    {
        struct td_str a = td_tokjson_str(json_array_get(item, 0)),
                      b = td_tokjson_str(json_array_get(item, 1));
        char *both;

        if (json_is_string(item)) {
            rule[i] = td_tokjson_str(item);
            continue;
        }
        both = td_arena_alloc(&x->arena, a.len + b.len + 1);
        if (!both)
            return no_memory(x);
        memcpy(both, a.ptr, a.len);
        both[a.len] = ' ';
        memcpy(both + a.len + 1, b.ptr, b.len);
        rule[i] = (struct td_str){both, a.len + b.len + 1};
    }
    td_ggufwrite_strs(x->w, "tokenizer.ggml.merges", rule, n);
    return TD_OK;
}

/* ---- SentencePiece ---- */

/* The only normalisations that such a GGUF file stands for: spaces become marks, with or without one in front. */
static enum td_status write_space_prefix(struct exporter *x)
{
    const struct td_textnorm *norm = &x->tok->norm;
    const struct td_pretok *pre = &x->tok->pretok;
    struct td_str mark = td_str_from(MARK);
    size_t at = norm->n_stages == 2;
    bool prefix, plain;

    if (norm->n_stages == 0 && pre->n_stages == 1) {
        const struct td_pretok_stage *stage = &pre->stages[0];

        prefix = stage->front == TD_PRETOK_ALWAYS;
        plain = stage->kind == TD_PRETOK_METASPACE && !stage->pattern &&
                stage->front != TD_PRETOK_FIRST && td_str_eq(td_bytes_str(&stage->mark), mark);
    } else {
        prefix = norm->n_stages == 2;
        plain = pre->n_stages == 0 && (norm->n_stages == 1 || norm->n_stages == 2) &&
                (!prefix || (norm->stages[0].kind == TD_TEXTNORM_PREPEND &&
                             td_str_eq(td_bytes_str(&norm->stages[0].text), mark))) &&
                norm->stages[at].kind == TD_TEXTNORM_REPLACE &&
                td_str_eq(td_bytes_str(&norm->stages[at].from), TD_STR(" ")) &&
                td_str_eq(td_bytes_str(&norm->stages[at].text), mark);
    }
    if (!plain)
        return refuse(x, "what is done to text before the merges, other than",
                      "spaces as U+2581, one in front of every text or none");
    td_ggufwrite_bool(x->w, "tokenizer.ggml.add_space_prefix", prefix);
    return TD_OK;
}

static int compare_runs(const void *a, const void *b)
{
    const struct run *x = a, *y = b;

    return (x->first > y->first) - (x->first < y->first);
}

/* The token that a rule makes; -1 when the vocabulary has none. A rule written as one string may have several spaces. */
static int64_t made_by(struct exporter *x, const json_t *item, struct td_bytes *both)
{
    const struct td_vocab *v = &x->tok->vocab;
    struct td_str s = td_tokjson_str(item);

    td_bytes_clear(both);
    if (json_is_array(item)) {
        if (td_bytes_append_str(both, td_tokjson_str(json_array_get(item, 0))) ||
            td_bytes_append_str(both, td_tokjson_str(json_array_get(item, 1))))
            return -1;
        return td_vocab_find_any(v, td_bytes_str(both));
    }
    for (size_t i = 1; i + 1 < s.len; i++) {
        struct td_str a = {s.ptr, i}, b = {s.ptr + i + 1, s.len - i - 1};

        if (s.ptr[i] != ' ' || td_vocab_find_any(v, a) < 0 || td_vocab_find_any(v, b) < 0)
            continue;
        if (td_bytes_append_str(both, a) || td_bytes_append_str(both, b))
            return -1;
        return td_vocab_find_any(v, td_bytes_str(both));
    }
    return -1;
}

/* SentencePiece joins the pair whose token has the highest score; tokenizer.json was made from that by listing the pairs of
 * one token after the other. So a token's score is the place of its rules, and tokens whose rules lie among each other's have
 * the same. A token that no rule makes must win over none. */
static enum td_status write_scores(struct exporter *x, const json_t *merges)
{
    struct run *run = td_arena_alloc(&x->arena, (x->n + 1) * sizeof *run);
    float *score = td_arena_alloc(&x->arena, (x->n + 1) * sizeof *score);
    struct td_bytes both = {0};
    const json_t *item;
    uint32_t end = 0;
    float place = 0.0F;
    size_t rank;

    if (!run || !score)
        return no_memory(x);
    for (uint32_t i = 0; i < x->n; i++)
        run[i] = (struct run){i, UINT32_MAX, 0};
    json_array_foreach(merges, rank, item)
    {
        int64_t id = made_by(x, item, &both);

        if (id < 0 || id >= (int64_t)x->n)
            continue;
        run[id].first = rank < run[id].first ? (uint32_t)rank : run[id].first;
        run[id].last = (uint32_t)rank;
    }
    td_bytes_deinit(&both);
    qsort(run, x->n, sizeof *run, compare_runs);
    for (uint32_t i = 0; i < x->n; i++) {
        if (run[i].first == UINT32_MAX) {
            score[run[i].id] = x->type[run[i].id] == TYPE_NORMAL ? -(float)x->n - 1.0F : 0.0F;
            continue;
        }
        if (i > 0 && run[i].first > end)
            place -= 1.0F;
        end = run[i].last > end ? run[i].last : end;
        score[run[i].id] = place;
    }
    td_ggufwrite_values(x->w, "tokenizer.ggml.scores", true, TD_GGUF_F32, score, x->n);
    return TD_OK;
}

/* ---- ids ---- */

/* A file names up to three ids that end a text, the tokenizer's own first. */
static enum td_status write_ends(struct exporter *x)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const struct td_spec *spec = x->spec;
    uint32_t n = 0, first = 0;

    for (uint32_t i = 0; i < spec->n_eos; i++)
        if ((int64_t)spec->eos_ids[i] == x->tok->eos)
            first = i;
    for (uint32_t i = 0; i < spec->n_eos; i++) {
        /* `first` comes first, then the others in their order. */
        uint32_t id = spec->eos_ids[i == 0 ? first : i <= first ? i - 1 : i];

        if (n < sizeof keys / sizeof keys[0])
            td_ggufwrite_u32(x->w, keys[n++], id);
        else if (td_bytes_appendf(x->notes,
                                  "end-of-text id %u is left out: a GGUF file has three\n", id))
            return no_memory(x);
    }
    return TD_OK;
}

static enum td_status write_ids(struct exporter *x)
{
    const struct td_ids *prefix = &x->tok->prefix;
    int64_t bos = x->tok->bos >= 0 ? x->tok->bos : x->spec->bos_id;

    if (prefix->len > 1 || (prefix->len == 1 && (int64_t)prefix->data[0] != bos))
        return refuse(x, "a post_processor that puts other tokens in front than", "BOS");
    if (bos >= 0)
        td_ggufwrite_u32(x->w, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    if (x->tok->bpe.unknown_id >= 0)
        td_ggufwrite_u32(x->w, "tokenizer.ggml.unknown_token_id", (uint32_t)x->tok->bpe.unknown_id);
    td_ggufwrite_bool(x->w, "tokenizer.ggml.add_bos_token", prefix->len == 1);
    return write_ends(x);
}

/* ---- whole ---- */

static enum td_status export_all(struct exporter *x)
{
    const json_t *merges = json_object_get(json_object_get(x->root, "model"), "merges");
    bool bytes = x->tok->bpe.byte_level;
    enum td_status s;

    x->n = x->spec->n_vocab;
    x->text = td_arena_alloc(&x->arena, x->n * sizeof *x->text);
    x->type = td_arena_alloc(&x->arena, x->n * sizeof *x->type);
    if (!x->text || !x->type)
        return no_memory(x);
    memset(x->text, 0, x->n * sizeof *x->text);
    if ((s = load_vocab(x)) || (s = load_added(x)) || (s = fill_holes(x)))
        return s;
    td_ggufwrite_str(x->w, "tokenizer.ggml.model", bytes ? TD_STR("gpt2") : TD_STR("llama"));
    s = bytes ? write_pre(x) : write_space_prefix(x);
    if (s)
        return s;
    td_ggufwrite_strs(x->w, "tokenizer.ggml.tokens", x->text, x->n);
    td_ggufwrite_values(x->w, "tokenizer.ggml.token_type", true, TD_GGUF_I32, x->type, x->n);
    s = bytes ? write_merges(x, merges) : write_scores(x, merges);
    return s ? s : write_ids(x);
}

enum td_status td_tokexport_gguf(const struct td_tokenizer *tok, struct td_str tokenizer_json,
                                 const struct td_spec *spec, struct td_ggufwrite *w,
                                 struct td_bytes *notes, struct td_err *err)
{
    struct exporter x = {.tok = tok, .spec = spec, .w = w, .notes = notes, .err = err};
    json_error_t why;
    enum td_status s;

    x.root = td_jsonalloc_parse(tokenizer_json, JSON_ALLOW_NUL, &why);
    if (!x.root)
        return td_tokjson_unread("tokenizer.json", &why, err);
    td_arena_init(&x.arena, 0, 0);
    s = export_all(&x);
    td_arena_deinit(&x.arena);
    json_decref(x.root);
    return s;
}

/* ---- the proof ---- */

static enum td_status compare_text(const struct td_tokenizer *a, const struct td_tokenizer *b,
                                   struct td_str text, unsigned flags, struct td_err *err)
{
    struct td_ids x = {0}, y = {0};
    enum td_status s = td_tokenizer_encode(a, text, flags, &x, err);

    s = s ? s : td_tokenizer_encode(b, text, flags, &y, err);
    if (!s && (x.len != y.len || (x.len && memcmp(x.data, y.data, x.len * sizeof *x.data) != 0)))
        s = td_err_set(err, TD_UNSUPPORTED,
                       "the tokenizer as a GGUF file would say it gives %zu tokens, or others, "
                       "where tokenizer.json gives %zu, for '%.*s%s'",
                       y.len, x.len, (int)(text.len > 60 ? 60 : text.len), text.ptr,
                       text.len > 60 ? "..." : "");
    td_ids_deinit(&x);
    td_ids_deinit(&y);
    return s;
}

enum td_status td_tokexport_compare(const struct td_tokenizer *a, const struct td_tokenizer *b,
                                    struct td_str extra, unsigned flags, struct td_err *err)
{
    static const char *const texts[] = {
        "",
        "Hello, world! I'm sure they've said: it's 12345 or 6,789.01 (about 50%).",
        " leading and trailing \n\n two lines\r\n\ttabs  and   spaces ",
        "DON'T SHOUT; we'll see what THEY'D do, y'all",
        "for (int i = 0; i < n; i++) { x[i] += 0x1F; } // done\n    return x->y;\n",
        "\xC3\x84pfel, na\xC3\xAFve, Stra\xC3\x9F"
        "e, e\xCC\x81tude, \xCE\xB1\xCE\xB2\xCE\xB3, "
        "\xD0\xBF\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82",
        "\xE4\xBD\xA0\xE5\xA5\xBD\xEF\xBC\x8C\xE4\xB8\x96\xE7\x95\x8C\xE3\x80\x82\xE3\x81\x93\xE3"
        "\x82\x93"
        " \xD9\x85\xD8\xB1\xD8\xAD\xD8\xA8\xD8\xA7 \xE0\xA4\xA8\xE0\xA4\xAE",
        "\xF0\x9F\x98\x80\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD \xE2\x80\x94 a",
        "\xE2\x80\x9Cquoted\xE2\x80\x9D \xC2\xA0\xE2\x80\x83x",
        "<s>[INST] <|im_start|>user\n<|begin_of_text|>",
    };
    enum td_status s = compare_text(a, b, extra, flags, err);

    for (size_t i = 0; i < sizeof texts / sizeof texts[0] && !s; i++)
        s = compare_text(a, b, td_str_from(texts[i]), flags, err);
    return s;
}
