/* The words of a command line, one per line behind one that chooses the command and says what the environment holds. Files are
 * left alone: an input that names --config or a file of keys is not tried. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/options.h"

enum { MAX_WORDS = 64, MAX_GUESSES = 4 };

/* The next line of *rest as an owned text that ends at its first NUL; NULL at the end. */
static char *next_line(struct td_str *rest)
{
    const char *end;
    size_t len;
    char *line;

    if (rest->len == 0)
        return NULL;
    end = memchr(rest->ptr, '\n', rest->len);
    len = end ? (size_t)(end - rest->ptr) : rest->len;
    line = malloc(len + 1);
    FUZZ_CHECK(line != NULL);
    memcpy(line, rest->ptr, len);
    line[len] = '\0';
    len += end != NULL;
    *rest = (struct td_str){rest->ptr + len, rest->len - len};
    return line;
}

static bool names_file(struct td_str text)
{
    return memmem(text.ptr, text.len, "onfig", 5) || memmem(text.ptr, text.len, "ONFIG", 5) ||
           memmem(text.ptr, text.len, "ey-file", 7) || memmem(text.ptr, text.len, "EY_FILE", 7);
}

/* What was accepted lies within the row's bounds. */
static void check_row(const struct td_options *opts, const struct td_option *row)
{
    const void *field = (const char *)opts + row->offset;
    char text[256];

    td_options_expected(row, text, sizeof text);
    FUZZ_CHECK(text[0] != '\0');
    if (!(row->commands & opts->command) || !td_options_is_set(opts, field))
        return;
    if (row->type == TD_OPTION_INT && !(row->sweeps & opts->command))
        FUZZ_CHECK(*(const int64_t *)field >= row->min && *(const int64_t *)field <= row->max);
    if (row->type == TD_OPTION_FLOAT)
        FUZZ_CHECK(*(const double *)field >= row->low && *(const double *)field <= row->high);
    if (row->type == TD_OPTION_STRING)
        FUZZ_CHECK(**(const char *const *)field != '\0');
    if (row->type == TD_OPTION_ENUM)
        fuzz_touch(td_str_from(td_options_word(opts, field)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *words[MAX_WORDS + 1] = {0}, *env[2] = {0};
    struct td_options opts;
    struct td_err err = {0};
    uint8_t choice;
    struct td_str rest = fuzz_split(data, size, &choice);
    size_t n_rows, cursor = 0;
    const struct td_option *rows = td_options_table(&n_rows);
    int n = 0;
    enum td_status status;

    if (names_file(rest))
        return 0;
    env[0] = next_line(&rest);
    while (n < MAX_WORDS && (words[n] = next_line(&rest)) != NULL)
        n++;
    for (int i = 0; i < n && i < MAX_GUESSES; i++)
        (void)td_options_nearest(words[i]);
    while (td_options_unknown_env(env, &cursor) != NULL)
        continue;
    status = td_options_parse(&opts, 1u << choice % 15, n, words, env, &err);
    fuzz_check_err(status, &err);
    for (size_t i = 0; !status && i < n_rows; i++)
        check_row(&opts, &rows[i]);
    if (!status)
        td_options_deinit(&opts);
    free(env[0]);
    for (int i = 0; i < n; i++)
        free(words[i]);
    return 0;
}
