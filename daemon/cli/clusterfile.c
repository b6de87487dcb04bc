#include "daemon/cli/clusterfile.h"

#include "daemon/cli/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* What a value must be. */
enum kind {
    POSITIVE, /* a number above 0 */
    FIGURE,   /* a number, 0 too */
    COUNT,    /* a whole number from 1 to TD_PLAN_MAX_RANKS */
    FLAG,     /* true or false */
    TEXT,     /* read by nobody: for people */
    MAP,
    LIST
};

static const char *const expected[] = {
    [POSITIVE] = "a number above 0 and up to 1e9",
    [FIGURE] = "a number from 0 to 1e9",
    [COUNT] = "a whole number from 1 to 256",
    [FLAG] = "true or false",
    [TEXT] = "a text",
    [MAP] = "a map",
    [LIST] = "a list of maps",
};

/* A key of a map. */
struct field {
    const char *key;
    enum kind kind;
    bool required;
};

enum { MAX_FIELDS = 12 };

/* A map of the file, read: a value per field, in the order of the table. */
struct values {
    const struct field *field;
    size_t n;
    double number[MAX_FIELDS];     /* as it stands in the file; FLAG: 0 or 1 */
    yaml_node_t *node[MAX_FIELDS]; /* NULL: not there */
};

struct reader {
    yaml_document_t doc;
    const char *path;
    struct td_err *err;
};

static const struct field top_fields[] = {
    {"hosts", LIST, true}, {"links", MAP, true}, {"host_time_us", FIGURE, true}};
enum { TOP_HOSTS, TOP_LINKS, TOP_HOST_TIME };

/* Of each host; rates and memory are one rank's. */
static const struct field host_fields[] = {
    {"name", TEXT, true},
    {"count", COUNT, true},
    {"ranks", COUNT, true},
    {"memory_gib", POSITIVE, true},
    {"memory_gb_per_s", POSITIVE, true},
    {"shared_memory_gb_per_s", POSITIVE, false},
    {"int8_tops", POSITIVE, false},
    {"bf16_tflops", POSITIVE, false},
    {"f32_tflops", POSITIVE, false},
    {"tiles", FLAG, false},
};
enum {
    HOST_NAME,
    HOST_COUNT,
    HOST_RANKS,
    HOST_GIB,
    HOST_MEMORY,
    HOST_SHARED,
    HOST_INT8,
    HOST_BF16,
    HOST_F32,
    HOST_TILES
};

static const struct field links_fields[] = {{"intra_host", MAP, false}, {"inter_host", MAP, false}};
enum { LINKS_INTRA, LINKS_INTER };

static const struct field link_fields[] = {{"latency_us", FIGURE, true},
                                           {"bandwidth_gb_per_s", POSITIVE, false},
                                           {"gbit_per_s", POSITIVE, false}};
enum { LINK_LATENCY, LINK_GB, LINK_GBIT };

#define COUNT_OF(a) (sizeof(a) / sizeof *(a))

static size_t line_of(const yaml_node_t *node)
{
    return node->start_mark.line + 1;
}

static const char *text_of(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE    ? (const char *)node->data.scalar.value
           : node->type == YAML_MAPPING_NODE ? "a map"
                                             : "a list";
}

/* Whether the whole scalar is a decimal number; *v is it. Quoted, it is a text. */
static bool read_number(const yaml_node_t *node, double *v)
{
    const char *text = (const char *)node->data.scalar.value;
    char *end;

    if (node->type != YAML_SCALAR_NODE || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE ||
        node->data.scalar.length == 0 ||
        strspn(text, "0123456789+-.eE") != node->data.scalar.length)
        return false;
    *v = strtod(text, &end);
    return *end == '\0' && isfinite(*v);
}

static bool fits(const yaml_node_t *node, enum kind kind, double *v)
{
    *v = 0.0;
    switch (kind) {
    case MAP:
        return node->type == YAML_MAPPING_NODE;
    case LIST:
        return node->type == YAML_SEQUENCE_NODE;
    case TEXT:
        return node->type == YAML_SCALAR_NODE && node->data.scalar.length > 0;
    case FLAG:
        if (node->type != YAML_SCALAR_NODE)
            return false;
        *v = strcmp(text_of(node), "true") == 0;
        return *v > 0.0 || strcmp(text_of(node), "false") == 0;
    case COUNT:
        return read_number(node, v) && *v >= 1.0 && *v <= TD_PLAN_MAX_RANKS && *v == floor(*v);
    case POSITIVE:
        return read_number(node, v) && *v > 0.0 && *v <= 1e9;
    default:
        return read_number(node, v) && *v >= 0.0 && *v <= 1e9;
    }
}

static enum td_status read_pair(struct reader *r, const yaml_node_pair_t *pair, const char *where,
                                struct values *out)
{
    yaml_node_t *key = yaml_document_get_node(&r->doc, pair->key),
                *value = yaml_document_get_node(&r->doc, pair->value);
    size_t i = 0;

    if (!key || !value)
        return td_err_set(r->err, TD_INVALID, "'%s': %s cannot be read", r->path, where);
    while (i < out->n && strcmp(text_of(key), out->field[i].key) != 0)
        i++;
    if (i == out->n || key->type != YAML_SCALAR_NODE) {
        char known[256] = "";

        for (size_t k = 0; k < out->n; k++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", k ? ", " : "",
                     out->field[k].key);
        return td_err_set(r->err, TD_INVALID,
                          "'%.80s' line %zu: %s: unknown key '%.40s', expected %s", r->path,
                          line_of(key), where, text_of(key), known);
    }
    if (out->node[i])
        return td_err_set(r->err, TD_INVALID, "'%s' line %zu: %s.%s: occurs twice, expected once",
                          r->path, line_of(key), where, out->field[i].key);
    if (!fits(value, out->field[i].kind, &out->number[i]))
        return td_err_set(r->err, TD_INVALID, "'%s' line %zu: %s.%s: got '%.40s', expected %s",
                          r->path, line_of(value), where, out->field[i].key, text_of(value),
                          expected[out->field[i].kind]);
    out->node[i] = value;
    return TD_OK;
}

/* A map with exactly these fields. `where` is its path in the file. */
static enum td_status read_map(struct reader *r, const yaml_node_t *map, const char *where,
                               const struct field *fields, size_t n, struct values *out)
{
    *out = (struct values){.field = fields, .n = n};
    if (map->type != YAML_MAPPING_NODE)
        return td_err_set(r->err, TD_INVALID, "'%s' line %zu: %s: got '%.40s', expected a map",
                          r->path, line_of(map), where, text_of(map));
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top;
         p++) {
        enum td_status s = read_pair(r, p, where, out);

        if (s)
            return s;
    }
    for (size_t i = 0; i < n; i++)
        if (fields[i].required && !out->node[i])
            return td_err_set(r->err, TD_INVALID, "'%s' line %zu: %s.%s: missing, expected %s",
                              r->path, line_of(map), where, fields[i].key,
                              expected[fields[i].kind]);
    return TD_OK;
}

/* ---- into a machine ---- */

static enum td_status add_host(struct reader *r, const yaml_node_t *map, const char *where,
                               double host_s, struct td_machine *m)
{
    struct values v;
    struct td_machine_rank rank = {.host_s = host_s};
    uint32_t count, ranks;
    enum td_status s = read_map(r, map, where, host_fields, COUNT_OF(host_fields), &v);

    if (s)
        return s;
    if (!v.node[HOST_INT8] && !v.node[HOST_BF16] && !v.node[HOST_F32])
        return td_err_set(r->err, TD_INVALID,
                          "'%s' line %zu: %s: missing int8_tops, bf16_tflops or f32_tflops, "
                          "expected one at least",
                          r->path, line_of(map), where);
    count = (uint32_t)v.number[HOST_COUNT];
    ranks = (uint32_t)v.number[HOST_RANKS];
    if (m->n_ranks + count * ranks > TD_PLAN_MAX_RANKS)
        return td_err_set(r->err, TD_INVALID,
                          "'%s' line %zu: %s.count: %u hosts of %u ranks make %u ranks in all, "
                          "expected at most %d",
                          r->path, line_of(v.node[HOST_COUNT]), where, count, ranks,
                          m->n_ranks + count * ranks, TD_PLAN_MAX_RANKS);
    rank.memory_bytes = (uint64_t)(v.number[HOST_GIB] * (double)((uint64_t)1 << 30));
    rank.memory_bytes_per_s = v.number[HOST_MEMORY] * 1e9;
    rank.ops_per_s[TD_RATE_INT8] = v.number[HOST_INT8] * 1e12;
    rank.ops_per_s[TD_RATE_BF16] = v.number[HOST_BF16] * 1e12;
    rank.ops_per_s[TD_RATE_F32] = v.number[HOST_F32] * 1e12;
    rank.has_tiles = v.number[HOST_TILES] > 0.0;
    for (uint32_t h = 0; h < count; h++) {
        m->host_bytes_per_s[m->n_hosts] = v.number[HOST_SHARED] * 1e9;
        rank.host = m->n_hosts++;
        for (uint32_t i = 0; i < ranks; i++)
            m->rank[m->n_ranks++] = rank;
    }
    return TD_OK;
}

static enum td_status read_hosts(struct reader *r, const yaml_node_t *list, double host_s,
                                 struct td_machine *m)
{
    const yaml_node_item_t *items = list->data.sequence.items.start;
    size_t n = (size_t)(list->data.sequence.items.top - items);
    enum td_status s = TD_OK;

    if (n == 0)
        return td_err_set(r->err, TD_INVALID, "'%s' line %zu: hosts: empty, expected one at least",
                          r->path, line_of(list));
    for (size_t i = 0; !s && i < n; i++) {
        const yaml_node_t *map = yaml_document_get_node(&r->doc, items[i]);
        char where[32];

        snprintf(where, sizeof where, "hosts[%zu]", i);
        s = map ? add_host(r, map, where, host_s, m)
                : td_err_set(r->err, TD_INVALID, "'%s': %s cannot be read", r->path, where);
    }
    return s;
}

/* A link that no pair of ranks has may be missing. */
static enum td_status read_link(struct reader *r, const yaml_node_t *links, const yaml_node_t *map,
                                const char *where, bool is_used, struct td_machine_link *out)
{
    struct values v;
    enum td_status s;

    *out = (struct td_machine_link){0.0, 1e18};
    if (!map && !is_used)
        return TD_OK;
    if (!map)
        return td_err_set(r->err, TD_INVALID, "'%s' line %zu: %s: missing, expected a map", r->path,
                          line_of(links), where);
    s = read_map(r, map, where, link_fields, COUNT_OF(link_fields), &v);
    if (s)
        return s;
    if (!v.node[LINK_GB] == !v.node[LINK_GBIT])
        return td_err_set(
            r->err, TD_INVALID,
            "'%s' line %zu: %s: %s, expected one of bandwidth_gb_per_s and gbit_per_s", r->path,
            line_of(map), where, v.node[LINK_GB] ? "has both" : "has neither");
    out->latency_s = v.number[LINK_LATENCY] * 1e-6;
    out->bytes_per_s = v.node[LINK_GB] ? v.number[LINK_GB] * 1e9 : v.number[LINK_GBIT] * 1e9 / 8.0;
    return TD_OK;
}

static enum td_status read_links(struct reader *r, const yaml_node_t *map, struct td_machine *m)
{
    struct values v;
    enum td_status s = read_map(r, map, "links", links_fields, COUNT_OF(links_fields), &v);

    s = s ? s
          : read_link(r, map, v.node[LINKS_INTRA], "links.intra_host", m->n_ranks > m->n_hosts,
                      &m->intra);
    return s ? s
             : read_link(r, map, v.node[LINKS_INTER], "links.inter_host", m->n_hosts > 1,
                         &m->inter);
}

static enum td_status read_machine(struct reader *r, struct td_machine *m)
{
    const yaml_node_t *root = yaml_document_get_root_node(&r->doc);
    struct values v;
    enum td_status s;

    if (!root)
        return td_err_set(r->err, TD_INVALID,
                          "'%s' line 1: empty, expected hosts, links and host_time_us", r->path);
    s = read_map(r, root, "cluster", top_fields, COUNT_OF(top_fields), &v);
    s = s ? s : read_hosts(r, v.node[TOP_HOSTS], v.number[TOP_HOST_TIME] * 1e-6, m);
    return s ? s : read_links(r, v.node[TOP_LINKS], m);
}

/* Nothing may follow the document. */
static enum td_status read_end(yaml_parser_t *parser, const struct reader *r)
{
    yaml_document_t doc;
    const yaml_node_t *root;
    enum td_status s = TD_OK;

    if (!yaml_parser_load(parser, &doc))
        return td_err_set(r->err, TD_INVALID, "'%s' line %zu: no valid YAML: %s", r->path,
                          parser->problem_mark.line + 1,
                          parser->problem ? parser->problem : "unreadable");
    root = yaml_document_get_root_node(&doc);
    if (root)
        s = td_err_set(r->err, TD_INVALID, "'%s' line %zu: a second document, expected one",
                       r->path, line_of(root));
    yaml_document_delete(&doc);
    return s;
}

enum td_status td_clusterfile_parse(struct td_str text, const char *path,
                                    struct td_machine *machine, struct td_err *err)
{
    struct reader r = {.path = path, .err = err};
    struct td_machine *m = calloc(1, sizeof *m);
    yaml_parser_t parser;
    enum td_status s;

    if (!m || !yaml_parser_initialize(&parser)) {
        free(m);
        return td_err_set(err, TD_NO_MEMORY, "no memory to read '%s'", path);
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)text.ptr, text.len);
    if (!yaml_parser_load(&parser, &r.doc)) {
        s = td_err_set(err, TD_INVALID, "'%s' line %zu: no valid YAML: %s", path,
                       parser.problem_mark.line + 1,
                       parser.problem ? parser.problem : "unreadable");
    } else {
        s = read_machine(&r, m);
        s = s ? s : read_end(&parser, &r);
        yaml_document_delete(&r.doc);
    }
    yaml_parser_delete(&parser);
    if (!s)
        *machine = *m;
    free(m);
    return s;
}

enum td_status td_clusterfile_read(const char *path, struct td_machine *machine, struct td_err *err)
{
    struct td_bytes text = {0};
    enum td_status s = td_config_read_file(path, "--cluster", TD_CONFIG_MAX_BYTES, &text, err);

    s = s ? s : td_clusterfile_parse(td_bytes_str(&text), path, machine, err);
    td_bytes_deinit(&text);
    return s;
}
