#include "daemon/cli/load.h"

#include "daemon/cli/loadtrace.h"
#include "shard/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Short and common, so that most vocabularies have each as one token. */
static const char *const words[] = {
    "the",      "of",       "and",      "to",       "in",        "is",      "you",     "that",
    "it",       "he",       "was",      "for",      "on",        "are",     "as",      "with",
    "his",      "they",     "at",       "be",       "this",      "have",    "from",    "or",
    "one",      "had",      "by",       "word",     "but",       "not",     "what",    "all",
    "were",     "we",       "when",     "your",     "can",       "said",    "there",   "use",
    "an",       "each",     "which",    "she",      "do",        "how",     "their",   "if",
    "will",     "up",       "other",    "about",    "out",       "many",    "then",    "them",
    "these",    "so",       "some",     "her",      "would",     "make",    "like",    "him",
    "into",     "time",     "has",      "look",     "two",       "more",    "write",   "go",
    "see",      "number",   "no",       "way",      "could",     "people",  "my",      "than",
    "first",    "water",    "been",     "call",     "who",       "oil",     "its",     "now",
    "find",     "long",     "down",     "day",      "did",       "get",     "come",    "made",
    "may",      "part",     "over",     "new",      "sound",     "take",    "only",    "little",
    "work",     "know",     "place",    "year",     "live",      "me",      "back",    "give",
    "most",     "very",     "after",    "thing",    "our",       "just",    "name",    "good",
    "man",      "think",    "say",      "great",    "where",     "help",    "much",    "before",
    "line",     "right",    "too",      "mean",     "old",       "any",     "same",    "tell",
    "boy",      "came",     "want",     "show",     "also",      "around",  "form",    "three",
    "small",    "set",      "put",      "end",      "does",      "another", "well",    "large",
    "must",     "big",      "even",     "such",     "because",   "turn",    "here",    "why",
    "ask",      "went",     "men",      "read",     "need",      "land",    "home",    "us",
    "move",     "try",      "kind",     "hand",     "again",     "change",  "off",     "play",
    "air",      "away",     "house",    "point",    "page",      "letter",  "answer",  "found",
    "study",    "still",    "learn",    "should",   "world",     "high",    "every",   "near",
    "add",      "food",     "own",      "below",    "country",   "plant",   "last",    "school",
    "father",   "keep",     "tree",     "never",    "start",     "city",    "earth",   "eye",
    "light",    "thought",  "head",     "under",    "story",     "saw",     "left",    "few",
    "while",    "along",    "might",    "close",    "something", "seem",    "next",    "hard",
    "open",     "begin",    "life",     "always",   "those",     "both",    "paper",   "often",
    "until",    "mile",     "river",    "car",      "feet",      "care",    "second",  "group",
    "carry",    "rain",     "eat",      "room",     "friend",    "idea",    "fish",    "mountain",
    "north",    "once",     "base",     "hear",     "horse",     "cut",     "sure",    "watch",
    "color",    "face",     "wood",     "main",     "enough",    "plain",   "girl",    "usual",
    "young",    "ready",    "above",    "ever",     "red",       "list",    "though",  "feel",
    "talk",     "bird",     "soon",     "body",     "dog",       "family",  "direct",  "leave",
    "song",     "door",     "product",  "black",    "short",     "class",   "wind",    "question",
    "happen",   "complete", "ship",     "area",     "half",      "rock",    "order",   "fire",
    "south",    "problem",  "piece",    "told",     "knew",      "pass",    "since",   "top",
    "whole",    "king",     "space",    "heard",    "best",      "hour",    "better",  "true",
    "during",   "hundred",  "five",     "remember", "step",      "early",   "hold",    "west",
    "ground",   "interest", "reach",    "fast",     "verb",      "sing",    "listen",  "six",
    "table",    "travel",   "less",     "morning",  "ten",       "simple",  "several", "toward",
    "war",      "lay",      "against",  "pattern",  "slow",      "center",  "love",    "person",
    "money",    "serve",    "appear",   "road",     "map",       "science", "rule",    "govern",
    "pull",     "cold",     "notice",   "voice",    "unit",      "power",   "town",    "fine",
    "certain",  "fly",      "fall",     "lead",     "cry",       "dark",    "machine", "note",
    "wait",     "plan",     "figure",   "star",     "box",       "noun",    "field",   "rest",
    "correct",  "able",     "pound",    "done",     "beauty",    "drive",   "stood",   "contain",
    "front",    "teach",    "week",     "final",    "gave",      "green",   "quick",   "ocean",
    "warm",     "free",     "minute",   "strong",   "special",   "mind",    "behind",  "clear",
    "tail",     "produce",  "fact",     "street",   "inch",      "nothing", "course",  "stay",
    "wheel",    "full",     "force",    "blue",     "object",    "decide",  "surface", "deep",
    "moon",     "island",   "foot",     "system",   "busy",      "test",    "record",  "boat",
    "common",   "gold",     "possible", "plane",    "age",       "dry",     "wonder",  "laugh",
    "thousand", "ago",      "ran",      "check",    "game",      "shape",   "hot",     "miss",
    "brought",  "heat",     "snow",     "tire",     "bring",     "yes",     "distant", "fill",
    "east",     "paint",    "language", "among"};
enum { N_WORDS = sizeof words / sizeof words[0] };

/* What a draw is for: equal indices of different purposes are independent. */
enum purpose { GAP, INPUT, OUTPUT, OWN_WORDS, GROUP_WORDS, BLOCK_WORDS };

/* Four words of 32 random bits for one place of one purpose. */
static void draw(const struct td_load *l, enum purpose purpose, uint32_t extra, uint64_t index,
                 uint32_t out[4])
{
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), extra,
                                 (uint32_t)purpose};
    const uint32_t key[2] = {(uint32_t)l->seed, (uint32_t)(l->seed >> 32)};

    td_sampler_philox(counter, key, out);
}

/* Uniform in (0, 1]: its logarithm is finite. */
static double unit(const uint32_t bits[2])
{
    uint64_t whole = ((uint64_t)bits[0] << 32 | bits[1]) >> 11;

    return ((double)whole + 1.0) * 0x1p-53;
}

/* ---- lengths ---- */

/* Two numbers from 0 on behind ':' or alone; false when the text goes on or is none. */
static bool parse_pair(const char *text, double *a, double *b)
{
    char *end;

    if (!*text || text[strspn(text, "0123456789.:")])
        return false;
    *a = strtod(text, &end);
    if (end == text || *end != ':')
        return false;
    text = end + 1;
    *b = strtod(text, &end);
    return end != text && !*end;
}

enum td_status td_load_dist_parse(const char *flag, const char *text, struct td_load_dist *out,
                                  struct td_err *err)
{
    static const struct {
        const char *word;
        enum td_load_shape shape;
    } shapes[] = {{"uniform:", TD_LOAD_UNIFORM},
                  {"normal:", TD_LOAD_NORMAL},
                  {"lognormal:", TD_LOAD_LOGNORMAL},
                  {"", TD_LOAD_UNIFORM}};
    struct td_load_dist d = {.shape = TD_LOAD_CONSTANT};
    char *end = NULL;
    size_t i = 0;
    bool ok;

    if (*text && !text[strspn(text, "0123456789")]) {
        d.a = d.b = strtod(text, &end);
        ok = true;
    } else {
        while (strncmp(text, shapes[i].word, strlen(shapes[i].word)) != 0)
            i++;
        d.shape = shapes[i].shape;
        ok = parse_pair(text + strlen(shapes[i].word), &d.a, &d.b);
    }
    if (d.shape == TD_LOAD_UNIFORM)
        ok =
            ok && d.a == floor(d.a) && d.b == floor(d.b) && d.b >= d.a && d.b <= TD_LOAD_MAX_TOKENS;
    if (!ok || !(d.a >= 1.0 && d.a <= TD_LOAD_MAX_TOKENS && d.b <= TD_LOAD_MAX_TOKENS))
        return td_err_set(err, TD_INVALID,
                          "--%s: got '%.60s', expected N, A:B (uniform, whole numbers), "
                          "normal:MEAN:SD or lognormal:MEAN:SD in tokens from 1 to %d",
                          flag, text, TD_LOAD_MAX_TOKENS);
    *out = d;
    return TD_OK;
}

/* A draw from the standard normal distribution (Box and Muller 1958). */
static double normal(const uint32_t bits[4])
{
    return sqrt(-2.0 * log(unit(bits))) * cos(6.283185307179586 * unit(bits + 2));
}

static uint32_t length(const struct td_load *l, const struct td_load_dist *d, enum purpose purpose,
                       uint64_t index)
{
    uint32_t bits[4];
    double value = d->a;

    if (d->shape != TD_LOAD_CONSTANT)
        draw(l, purpose, 0, index, bits);
    if (d->shape == TD_LOAD_UNIFORM) {
        value = d->a - 1.0 + ceil(unit(bits) * (d->b - d->a + 1.0));
    } else if (d->shape == TD_LOAD_NORMAL) {
        value = d->a + d->b * normal(bits);
    } else if (d->shape == TD_LOAD_LOGNORMAL) {
        double variance = log1p(d->b * d->b / (d->a * d->a)); /* of the logarithm */

        value = exp(log(d->a) - 0.5 * variance + sqrt(variance) * normal(bits));
    }
    value = round(value);
    return value < 1.0 ? 1 : value > TD_LOAD_MAX_TOKENS ? TD_LOAD_MAX_TOKENS : (uint32_t)value;
}

void td_load_request(const struct td_load *l, uint64_t index, struct td_load_request *out)
{
    struct td_load_request r = {0};

    if (l->trace) {
        const struct td_loadtrace_row *row = &l->trace->rows[index % l->trace->n_rows];

        r.n_input = row->prompt ? 0 : row->n_input;
        r.n_output = row->n_output;
    } else {
        r.n_input = length(l, &l->input, INPUT, index);
        r.n_output = length(l, &l->output, OUTPUT, index);
        r.group = (uint32_t)(index % l->prefix_groups);
        r.n_prefix = (uint32_t)lround(l->prefix_share * r.n_input);
    }
    *out = r;
}

double td_load_gap(const struct td_load *l, uint64_t index)
{
    uint32_t bits[4];

    draw(l, GAP, 0, index, bits);
    return -log(unit(bits));
}

/* ---- text ---- */

/* Words `from` up to `to` of an endless text; four words are drawn at once. */
static enum td_status append_words(const struct td_load *l, enum purpose purpose, uint32_t extra,
                                   uint32_t text, uint32_t from, uint32_t to, struct td_bytes *out)
{
    uint32_t bits[4] = {0};
    enum td_status s = TD_OK;

    for (uint32_t i = from; !s && i < to; i++) {
        const char *word;

        if (i == from || i % 4 == 0)
            draw(l, purpose, extra, (uint64_t)text << 32 | i / 4, bits);
        word = words[(uint64_t)bits[i % 4] * N_WORDS >> 32];
        if (out->len > 0)
            s = td_bytes_append(out, " ", 1);
        s = s ? s : td_bytes_append(out, word, strlen(word));
    }
    return s;
}

/* A row of a trace whose blocks are known: equal blocks are equal texts, as they were for the server that was traced. */
static enum td_status append_blocks(const struct td_load *l, uint32_t run,
                                    const struct td_loadtrace_row *row, struct td_bytes *out)
{
    enum td_status s = TD_OK;

    for (uint32_t b = 0; !s && b < row->n_blocks; b++) {
        uint32_t at = b * TD_LOADTRACE_BLOCK_TOKENS, left = row->n_input - at;

        s = append_words(l, BLOCK_WORDS, run, row->blocks[b], 0,
                         left < TD_LOADTRACE_BLOCK_TOKENS ? left : TD_LOADTRACE_BLOCK_TOKENS, out);
    }
    return s;
}

enum td_status td_load_prompt(const struct td_load *l, uint32_t run, uint64_t index,
                              struct td_bytes *out)
{
    struct td_load_request r;
    struct td_bytes text = {.cap_limit = out->cap_limit};
    enum td_status s;

    td_load_request(l, index, &r);
    if (l->trace) {
        const struct td_loadtrace_row *row = &l->trace->rows[index % l->trace->n_rows];

        if (row->prompt)
            return td_bytes_append(out, row->prompt, strlen(row->prompt));
        if (row->n_blocks > 0) {
            s = append_blocks(l, run, row, &text);
            goto done;
        }
    }
    s = append_words(l, GROUP_WORDS, run, r.group, 0, r.n_prefix, &text);
    s = s ? s : append_words(l, OWN_WORDS, run, (uint32_t)index, r.n_prefix, r.n_input, &text);
done:
    s = s ? s : td_bytes_append_str(out, td_bytes_str(&text));
    td_bytes_deinit(&text);
    return s;
}
