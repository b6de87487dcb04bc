#include "daemon/cli/options.h"

#include "daemon/api/auth.h"
#include "daemon/cli/config.h"
#include "daemon/cli/option_value.h"
#include "kernels/devicekind.h"

#include <stdio.h>
#include <string.h>

enum { MAX_NAME_BYTES = 64 };

/* Where a value comes from: its rank among the sources and its name for errors ("--port", "TENSORD_PORT",
 * "'t.yaml' line 3: port"). */
struct origin {
    enum td_option_source source;
    const char *label;
};

/* ---- names ---- */

/* Copies a name with '_' as '-', as vLLM takes both. False when it is too long to be one. */
static bool canonical_name(const char *text, size_t len, char out[MAX_NAME_BYTES])
{
    if (len == 0 || len >= MAX_NAME_BYTES)
        return false;
    for (size_t i = 0; i < len; i++)
        out[i] = text[i] == '_' ? '-' : text[i];
    out[len] = '\0';
    return true;
}

static const struct td_option *find_name(const char *name)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);

    for (size_t i = 0; i < n; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    return NULL;
}

static const struct td_option *find_short(const char *name)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);

    for (size_t i = 0; i < n; i++)
        if (rows[i].short_name && strcmp(rows[i].short_name, name) == 0)
            return &rows[i];
    return NULL;
}

static void env_name(const struct td_option *row, char out[MAX_NAME_BYTES + 8])
{
    size_t n = (size_t)snprintf(out, MAX_NAME_BYTES + 8, "TENSORD_%s", row->name);

    for (size_t i = 8; i < n; i++)
        out[i] =
            out[i] == '-' ? '_' : (char)(out[i] >= 'a' && out[i] <= 'z' ? out[i] - 32 : out[i]);
}

/* Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`: the restricted Damerau-Levenshtein
 * distance. Both are shorter than MAX_NAME_BYTES. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t la = strlen(a), lb = strlen(b);
    size_t d[3][MAX_NAME_BYTES + 1];

    for (size_t j = 0; j <= lb; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= la; i++) {
        size_t *row = d[i % 3], *above = d[(i + 2) % 3], *above2 = d[(i + 1) % 3];

        row[0] = i;
        for (size_t j = 1; j <= lb; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);

            if (above[j] + 1 < best)
                best = above[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                above2[j - 2] + 1 < best)
                best = above2[j - 2] + 1;
            row[j] = best;
        }
    }
    return d[la % 3][lb];
}

const char *td_options_nearest(const char *name)
{
    size_t n, len = strlen(name), best = 0;
    const struct td_option *rows = td_options_table(&n);
    const char *found = NULL;

    if (len == 0 || len >= MAX_NAME_BYTES)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        size_t distance = edit_distance(name, rows[i].name);

        if (!found || distance < best) {
            best = distance;
            found = rows[i].name;
        }
    }
    return best <= (len < 6 ? 1 : len / 3) ? found : NULL;
}

const char *td_options_unknown_env(char *const *envp, size_t *cursor)
{
    for (; envp && envp[*cursor]; (*cursor)++) {
        const char *text = envp[*cursor], *equals = strchr(text, '=');
        char name[MAX_NAME_BYTES];
        bool known = true;

        if (strncmp(text, "TENSORD_", 8) != 0 || !equals)
            continue;
        if (canonical_name(text + 8, (size_t)(equals - text) - 8, name)) {
            for (char *c = name; *c; c++)
                if (*c >= 'A' && *c <= 'Z')
                    *c = (char)(*c + 32);
            known = find_name(name) != NULL;
        } else {
            known = false;
        }
        if (!known)
            return envp[(*cursor)++];
    }
    return NULL;
}

/* ---- errors ---- */

/* `count` words of a bit set of commands, "serve, worker". */
static void command_list(unsigned commands, char *out, size_t out_bytes)
{
    size_t n = 0;

    out[0] = '\0';
    for (unsigned bit = 1; bit <= TD_FOR_ALL && n < out_bytes; bit <<= 1)
        if (commands & bit)
            n += (size_t)snprintf(out + n, out_bytes - n, "%s%s", n ? ", " : "",
                                  td_options_command_name(bit));
}

static bool is_sweep(const struct td_options *opts, const struct td_option *row)
{
    return (row->sweeps & opts->command) != 0;
}

/* td_options_expected of the command at hand. */
static void expected_of(const struct td_options *opts, const struct td_option *row, char *out,
                        size_t out_bytes)
{
    if (is_sweep(opts, row))
        snprintf(out, out_bytes, "integers from %lld to %lld separated by commas, at most %d",
                 (long long)row->sweep_min, (long long)row->max, TD_OPTION_MAX_INTS);
    else
        td_options_expected(row, out, out_bytes);
}

/* Names origin, value and what was expected; a secret value is not shown, control characters neither. */
static enum td_status refuse_value(const struct td_options *opts, const struct td_option *row,
                                   const struct origin *from, const char *value, struct td_err *err)
{
    char expected[160], shown[64];
    size_t n = 0;

    expected_of(opts, row, expected, sizeof expected);
    for (; value[n] && n < sizeof shown - 1; n++)
        shown[n] = (unsigned char)value[n] < 0x20 || value[n] == 0x7f ? '?' : value[n];
    shown[n] = '\0';
    if (row->secret)
        return td_err_set(err, TD_INVALID, "%s: got a value (not shown), expected %s", from->label,
                          expected);
    return td_err_set(err, TD_INVALID, "%s: got '%s%s', expected %s%s%s", from->label, shown,
                      value[n] ? "..." : "", expected, row->refusal_note ? ", " : "",
                      row->refusal_note ? row->refusal_note : "");
}

/* Several values where the command takes one. */
static enum td_status check_several(const struct td_options *opts, const struct td_option *row,
                                    const struct origin *from, struct td_err *err)
{
    const struct td_option_enums *all = (const void *)((const char *)opts + row->offset);
    char names[160];

    if (row->type != TD_OPTION_ENUMS || all->n == 1 ||
        !(row->commands & ~row->several & opts->command))
        return TD_OK;
    command_list(row->several, names, sizeof names);
    return td_err_set(err, TD_INVALID, "%s: got %u values, '%s' takes one (several are for: %s)",
                      from->label, all->n, td_options_command_name(opts->command), names);
}

static enum td_status no_memory(struct td_err *err)
{
    return td_err_set(err, TD_NO_MEMORY, "no memory for the options");
}

/* Sets the row's field unless a stronger source has. A list grows while its source stays the same. */
static enum td_status put(struct td_options *opts, const struct td_option *row,
                          const struct origin *from, const char *value, struct td_err *err)
{
    size_t n;
    uint8_t *source = &opts->source[row - td_options_table(&n)];
    enum td_status status;

    if (*source > from->source)
        return TD_OK;
    if (row->type == TD_OPTION_LIST && *source != from->source)
        memset((char *)opts + row->offset, 0, sizeof(struct td_option_list));
    status =
        is_sweep(opts, row)
            ? td_option_value_parse_ints(row, value, (void *)((char *)opts + row->sweep_offset))
            : td_option_value_parse(row, value, &opts->arena, (char *)opts + row->offset);
    if (status == TD_INVALID)
        return refuse_value(opts, row, from, value, err);
    if (status != TD_OK)
        return no_memory(err);
    status = check_several(opts, row, from, err);
    if (status != TD_OK)
        return status;
    *source = (uint8_t)from->source;
    return TD_OK;
}

/* ---- sources ---- */

static enum td_status put_defaults(struct td_options *opts, struct td_err *err)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);
    enum td_status status = TD_OK;

    for (size_t i = 0; i < n && status == TD_OK; i++)
        if (rows[i].preset)
            status = put(opts, &rows[i], &(struct origin){TD_SOURCE_DEFAULT, rows[i].name},
                         rows[i].preset, err);
    return status;
}

static enum td_status put_env(struct td_options *opts, char *const *envp, struct td_err *err)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);
    enum td_status status = TD_OK;

    for (size_t i = 0; i < n && status == TD_OK; i++) {
        char name[MAX_NAME_BYTES + 8];
        size_t len;

        env_name(&rows[i], name);
        len = strlen(name);
        if (!(rows[i].commands & opts->command))
            continue;
        for (size_t e = 0; envp[e] && status == TD_OK; e++)
            if (strncmp(envp[e], name, len) == 0 && envp[e][len] == '=' && envp[e][len + 1])
                status = put(opts, &rows[i], &(struct origin){TD_SOURCE_ENV, name},
                             envp[e] + len + 1, err);
    }
    return status;
}

/* td_config_fn: one `name: value` of --config. The file may serve several commands: a row of another command is
 * checked and read, and no one looks at it. */
static enum td_status put_config(void *user, const char *key, const char *value, size_t line,
                                 struct td_err *err)
{
    struct td_options *opts = user;
    const struct td_option *row;
    char name[MAX_NAME_BYTES] = "", label[256];

    snprintf(label, sizeof label, "'%s' line %zu: %s", opts->config, line, key);
    row = canonical_name(key, strlen(key), name) ? find_name(name) : NULL;
    if (!row || row->offset == offsetof(struct td_options, config)) {
        const char *nearest = row ? NULL : td_options_nearest(name);

        return td_err_set(err, TD_INVALID, "%s is no option of a file%s%s%s", label,
                          nearest ? "; did you mean " : "", nearest ? nearest : "",
                          nearest ? "?" : "");
    }
    return put(opts, row, &(struct origin){TD_SOURCE_CONFIG, label}, value, err);
}

/* td_config_fn: one line of --api-key-file. */
static enum td_status put_key(void *user, const char *key, const char *value, size_t line,
                              struct td_err *err)
{
    struct td_options *opts = user;
    struct td_option row = *find_name("api-key");
    struct td_str name, of_name;
    enum td_status status = TD_INVALID;

    (void)key;
    row.commas = false;
    if (td_auth_split_line(td_str_from(value), &name, &of_name))
        status = td_option_value_parse(&row, of_name.ptr, &opts->arena, &opts->api_key);
    if (status == TD_INVALID)
        return td_err_set(
            err, TD_INVALID,
            "--api-key-file: '%s' line %zu (not shown): expected KEY or NAME:KEY, a key must be "
            "visible ASCII, and there may be %d at most",
            opts->api_key_file, line, TD_OPTION_MAX_LIST);
    return status == TD_OK ? TD_OK : no_memory(err);
}

/* What the arguments are walked with. */
struct walk {
    int argc;
    char **argv;
    int i;            /* the argument looked at */
    bool only_values; /* after "--" */
    bool had_secret;
};

static enum td_status put_positional(struct td_options *opts, struct walk *w, struct td_err *err)
{
    const struct td_option *model = find_name("model"), *output = find_name("output");

    if ((model->commands & opts->command) && !opts->model)
        return put(opts, model, &(struct origin){TD_SOURCE_FLAG, "the model"}, w->argv[w->i], err);
    if ((output->commands & opts->command) && !opts->output)
        return put(opts, output, &(struct origin){TD_SOURCE_FLAG, "the output"}, w->argv[w->i],
                   err);
    if (w->had_secret) /* it may be a second key after --api-key */
        return td_err_set(err, TD_INVALID,
                          "argument %d of '%s' is none (not shown: it follows a key)", w->i + 1,
                          td_options_command_name(opts->command));
    return td_err_set(err, TD_INVALID, "'%s' takes no argument '%.80s'",
                      td_options_command_name(opts->command), w->argv[w->i]);
}

static enum td_status unknown_flag(const char *flag, size_t len, const char *name,
                                   struct td_err *err)
{
    const char *nearest = td_options_nearest(name);

    return td_err_set(err, TD_INVALID, "unknown option '%.*s'%s%s%s", len > 80 ? 80 : (int)len,
                      flag, nearest ? "; did you mean --" : "", nearest ? nearest : "",
                      nearest ? "?" : "");
}

/* The row that argv[i] names, without its "=value". "--no-x" of a flag x gives x with *negated. */
static enum td_status find_flag(const char *arg, size_t len, const struct td_option **row,
                                bool *negated, struct td_err *err)
{
    size_t dashes = len > 2 && arg[1] == '-' ? 2 : 1;
    char name[MAX_NAME_BYTES] = "";

    *row = NULL;
    *negated = false;
    if (canonical_name(arg + dashes, len - dashes, name)) {
        *row = dashes == 2 ? find_name(name) : find_short(name);
        if (!*row && dashes == 2 && strncmp(name, "no-", 3) == 0) {
            *row = find_name(name + 3);
            *negated = *row && (*row)->type == TD_OPTION_FLAG;
            if (!*negated)
                *row = NULL;
        }
    }
    return *row ? TD_OK : unknown_flag(arg, len, name, err);
}

/* The value of the flag at argv[i]: after '=', or the next argument. A flag needs none. */
static enum td_status take_flag_value(const struct td_options *opts, struct walk *w,
                                      const struct td_option *row, const char *label,
                                      const char *equals, bool negated, char **value,
                                      struct td_err *err)
{
    static char yes[] = "true", no[] = "false";
    char expected[160], *next;

    if (row->type == TD_OPTION_FLAG && (negated || !equals)) {
        if (equals)
            return td_err_set(err, TD_INVALID, "%s takes no value", label);
        *value = negated ? no : yes;
        return TD_OK;
    }
    if (equals) {
        *value = w->argv[w->i] + (equals - w->argv[w->i]) + 1;
        return TD_OK;
    }
    next = w->i + 1 < w->argc ? w->argv[w->i + 1] : NULL;
    if (!next || (next[0] == '-' && next[1] == '-')) {
        expected_of(opts, row, expected, sizeof expected);
        return td_err_set(err, TD_INVALID, "%s has no value, expected %s%s", label, expected,
                          next ? " (a value that begins with -- is written --option=value)" : "");
    }
    w->i++;
    *value = next;
    return TD_OK;
}

static enum td_status put_flag(struct td_options *opts, struct walk *w, struct td_err *err)
{
    const char *arg = w->argv[w->i], *equals = strchr(arg, '=');
    size_t len = equals ? (size_t)(equals - arg) : strlen(arg);
    const struct td_option *row;
    char label[MAX_NAME_BYTES + 8], *value = NULL;
    enum td_status status;
    bool negated = false;

    status = find_flag(arg, len, &row, &negated, err);
    if (status != TD_OK)
        return status;
    snprintf(label, sizeof label, "%.*s", (int)len, arg);
    if (!(row->commands & opts->command)) {
        char commands[160];

        command_list(row->commands, commands, sizeof commands);
        return td_err_set(err, TD_INVALID, "%s is no option of '%s'; it belongs to %s", label,
                          td_options_command_name(opts->command), commands);
    }
    status = take_flag_value(opts, w, row, label, equals, negated, &value, err);
    if (status != TD_OK)
        return status;
    status = put(opts, row, &(struct origin){TD_SOURCE_FLAG, label}, value, err);
    if (row->secret) {
        memset(value, 'x', strlen(value));
        w->had_secret = true;
    }
    return status;
}

static enum td_status put_arguments(struct td_options *opts, int argc, char **argv,
                                    struct td_err *err)
{
    struct walk w = {.argc = argc, .argv = argv};
    enum td_status status = TD_OK;

    for (; w.i < argc && status == TD_OK; w.i++) {
        if (!w.only_values && strcmp(argv[w.i], "--") == 0)
            w.only_values = true;
        else if (!w.only_values && argv[w.i][0] == '-' && argv[w.i][1])
            status = put_flag(opts, &w, err);
        else
            status = put_positional(opts, &w, err);
    }
    return status;
}

/* ---- what options say about each other ---- */

bool td_options_host_is_loopback(const char *host)
{
    /* An address, not a name that only begins like one: "127.evil.example". */
    return (strncmp(host, "127.", 4) == 0 && !host[strspn(host, "0123456789.")]) ||
           strcmp(host, "::1") == 0 || strcmp(host, "[::1]") == 0 || strcmp(host, "localhost") == 0;
}

static enum td_status check_required(const struct td_options *opts, struct td_err *err)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);

    for (size_t i = 0; i < n; i++)
        if ((rows[i].required & opts->command) && opts->source[i] == TD_SOURCE_DEFAULT)
            return td_err_set(err, TD_INVALID, "'%s' needs --%s %s (%s)",
                              td_options_command_name(opts->command), rows[i].name, rows[i].metavar,
                              rows[i].help);
    return TD_OK;
}

/* Only what the prefix cache keeps is offloaded. */
static enum td_status check_offload(const struct td_options *opts, struct td_err *err)
{
    bool wanted = opts->kv_offload_gib > 0 || opts->kv_offload_path;

    if (wanted && opts->no_prefix_cache)
        return td_err_set(err, TD_INVALID,
                          "--%s keeps what the prefix cache has: not together "
                          "with --no-prefix-cache",
                          opts->kv_offload_path ? "kv-offload-path" : "kv-offload-gib");
    if (opts->kv_offload_path_gib > 0 && !opts->kv_offload_path)
        return td_err_set(err, TD_INVALID, "--kv-offload-path-gib needs --kv-offload-path");
    if (opts->kv_offload_path && !(opts->kv_offload_gib > 0) && !(opts->kv_offload_path_gib > 0))
        return td_err_set(
            err, TD_INVALID,
            "--kv-offload-path needs a size: --kv-offload-path-gib or --kv-offload-gib");
    return TD_OK;
}

static enum td_status check_device(const struct td_options *opts, struct td_err *err)
{
    enum td_devicekind kind;

    if (td_devicekind_of(opts->device, &kind))
        return TD_OK;
    return td_err_set(err, TD_INVALID, "--device '%.40s': expected cpu, cuda or cuda:N",
                      opts->device);
}

static enum td_status check(const struct td_options *opts, struct td_err *err)
{
    int n_prompts = !!opts->prompt + !!opts->prompt_file + (opts->prompt_ids.n > 0);
    enum td_status status = check_required(opts, err);

    if (status != TD_OK)
        return status;
    if (opts->command == TD_FOR_GENERATE && n_prompts != 1)
        return td_err_set(
            err, TD_INVALID,
            "'generate' needs one of --prompt, --prompt-file and --prompt-ids, got %d", n_prompts);
    if (opts->command == TD_FOR_GENERATE && opts->chat && opts->prompt_ids.n > 0)
        return td_err_set(err, TD_INVALID,
                          "--chat needs a text, --prompt-ids are used as they are");
    if (opts->command == TD_FOR_TOKENIZE && opts->text && opts->file)
        return td_err_set(err, TD_INVALID, "'tokenize' takes --text or --file, not both");
    if (opts->command == TD_FOR_SERVE && !opts->ssl_certfile != !opts->ssl_keyfile)
        return td_err_set(err, TD_INVALID,
                          "--ssl-certfile and --ssl-keyfile go together, got only --%s",
                          opts->ssl_certfile ? "ssl-certfile" : "ssl-keyfile");
    if (opts->journal && opts->no_journal)
        return td_err_set(err, TD_INVALID,
                          "--journal and --no-journal exclude each other, got both");
    if (!opts->cluster_ssl_ca != !opts->cluster_ssl_certfile ||
        !opts->cluster_ssl_ca != !opts->cluster_ssl_keyfile)
        return td_err_set(err, TD_INVALID,
                          "--cluster-ssl-ca, --cluster-ssl-certfile and --cluster-ssl-keyfile go "
                          "together: one is missing");
    if ((status = check_offload(opts, err)) || (status = check_device(opts, err)))
        return status;
    if (opts->command == TD_FOR_SERVE && !td_options_host_is_loopback(opts->host) &&
        opts->api_key.n == 0 && !opts->insecure)
        return td_err_set(err, TD_INVALID,
                          "--host %.60s can be reached from other machines: set --api-key or "
                          "--api-key-file, or --insecure to serve anybody",
                          opts->host);
    return TD_OK;
}

enum td_status td_options_parse(struct td_options *opts, unsigned command_bit, int argc,
                                char **argv, char *const *envp, struct td_err *err)
{
    enum td_status status;

    memset(opts, 0, sizeof *opts);
    opts->command = command_bit;
    td_arena_init(&opts->arena, 0, 0);
    status = put_defaults(opts, err);
    if (status == TD_OK)
        status = put_arguments(opts, argc, argv, err);
    if (status == TD_OK && envp)
        status = put_env(opts, envp, err);
    if (status == TD_OK && opts->config)
        status = td_config_read(opts->config, put_config, opts, err);
    opts->n_own_api_keys = opts->api_key.n;
    if (status == TD_OK && opts->api_key_file)
        status = td_config_read_keys(opts->api_key_file, "--api-key-file", put_key, opts, err);
    if (status == TD_OK)
        status = check(opts, err);
    if (status != TD_OK)
        td_options_deinit(opts);
    return status;
}

void td_options_deinit(struct td_options *opts)
{
    for (uint32_t i = 0; i < opts->api_key.n; i++)
        explicit_bzero((void *)opts->api_key.items[i], strlen(opts->api_key.items[i]));
    td_arena_deinit(&opts->arena);
    memset(opts, 0, sizeof *opts);
}

enum td_option_source td_options_source(const struct td_options *opts, const void *field)
{
    size_t n, offset = (size_t)((const char *)field - (const char *)opts);
    const struct td_option *rows = td_options_table(&n);

    for (size_t i = 0; i < n; i++)
        if (rows[i].offset == offset)
            return (enum td_option_source)opts->source[i];
    return TD_SOURCE_DEFAULT;
}

const char *td_options_word(const struct td_options *opts, const int *field)
{
    size_t n, offset = (size_t)((const char *)field - (const char *)opts);
    const struct td_option *rows = td_options_table(&n);

    for (size_t i = 0; i < n; i++)
        if (rows[i].offset == offset && rows[i].values)
            return rows[i].values[*field];
    return "";
}

bool td_options_is_set(const struct td_options *opts, const void *field)
{
    return td_options_source(opts, field) != TD_SOURCE_DEFAULT;
}
