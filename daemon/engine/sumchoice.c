#include "daemon/engine/sumchoice.h"

#include "comm/comm_mpi.h"
#include "comm/tune.h"
#include "daemon/log.h"
#include "kernels/base/bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define FIRST_LINE "tensord sums 1: "

enum { BUDGET_NS = 200 * 1000000, MAX_PATH = 512, HOST_BYTES = 64 };

/* What the times depend on: who is where, and what carries the messages. On rank 0. */
static enum td_status describe(struct td_comm *group, const char *host, struct td_bytes *text,
                               struct td_err *err)
{
    uint32_t n = td_comm_size(group);
    char mine[HOST_BYTES] = "", *all = calloc(n, HOST_BYTES);
    size_t bytes[TD_TREE_MAX_RANKS];
    enum td_status s;

    snprintf(mine, sizeof mine, "%s", host);
    for (uint32_t r = 0; r < n; r++)
        bytes[r] = HOST_BYTES;
    if (!all)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the names of %u hosts", n);
    s = td_comm_gather(group, 0, mine, bytes, all, err);
    if (!s)
        s = td_bytes_appendf(text, FIRST_LINE "%s, %s:", td_comm_transport(group),
                             td_comm_mpi_version());
    for (uint32_t r = 0; r < n && !s; r++)
        s = td_bytes_appendf(text, " %s", all + (size_t)r * HOST_BYTES);
    s = s ? s : td_bytes_appendf(text, "\n");
    free(all);
    return s;
}

/* False where there is no place for it. */
static bool path_of(const struct td_bytes *text, char *out, size_t out_bytes)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char folder[MAX_PATH - 64];
    int n;

    if (cache && *cache == '/')
        n = snprintf(folder, sizeof folder, "%s", cache);
    else if (home && *home == '/')
        n = snprintf(folder, sizeof folder, "%s/.cache", home);
    else
        return false;
    if (n < 0 || (size_t)n >= sizeof folder)
        return false;
    mkdir(folder, 0700);
    n = snprintf(out, out_bytes, "%s/tensord", folder);
    mkdir(out, 0700);
    return snprintf(out, out_bytes, "%s/tensord/sums-%016llx", folder,
                    (unsigned long long)XXH3_64bits(text->data, text->len)) > n;
}

static bool algorithm_of(const char *name, enum td_sum_algorithm *out)
{
    for (int a = TD_SUM_AUTO; a < TD_N_SUM_ALGORITHMS; a++) {
        if (strcmp(name, td_comm_sum_name((enum td_sum_algorithm)a)) == 0) {
            *out = (enum td_sum_algorithm)a;
            return true;
        }
    }
    return false;
}

/* The file is the description and then a line per size class. Anything else counts as none. */
static bool read_choices(const char *path, const struct td_bytes *text, struct td_sum_choices *out)
{
    FILE *f = fopen(path, "re");
    char *line = NULL;
    size_t cap = 0;
    bool ok = f && getline(&line, &cap, f) == (ssize_t)text->len &&
              memcmp(line, text->data, text->len) == 0;

    for (uint32_t c = 0; ok && c < TD_SUM_CLASSES; c++) {
        ok = getline(&line, &cap, f) > 0;
        if (ok)
            line[strcspn(line, "\n")] = '\0';
        ok = ok && algorithm_of(line, &out->by_class[c]);
    }
    free(line);
    if (f)
        fclose(f);
    return ok;
}

/* A file that cannot be written costs the next start its trials, no more. */
static void write_choices(const char *path, const struct td_bytes *text,
                          const struct td_sum_choices *choices)
{
    char draft[MAX_PATH + 16];
    FILE *f;

    snprintf(draft, sizeof draft, "%s.%d", path, (int)getpid());
    f = fopen(draft, "we");
    if (!f)
        return;
    fwrite(text->data, 1, text->len, f);
    for (uint32_t c = 0; c < TD_SUM_CLASSES; c++)
        fprintf(f, "%s\n", td_comm_sum_name(choices->by_class[c]));
    if (fclose(f) != 0 || rename(draft, path) != 0)
        unlink(draft);
}

static void log_trials(const struct td_tune_result *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        char line[400] = "";
        size_t at = 0;

        for (int a = TD_SUM_ONE_SHOT; a < TD_N_SUM_ALGORITHMS; a++)
            if (r->trial[i].seconds[a] > 0.0 && at < sizeof line)
                at += (size_t)snprintf(line + at, sizeof line - at, " %s=%.1fus",
                                       td_comm_sum_name((enum td_sum_algorithm)a),
                                       r->trial[i].seconds[a] * 1e6);
        td_log_debug("sums bytes=%zu choice=\"%s\"%s", r->trial[i].bytes,
                     td_comm_sum_name(r->trial[i].best), line);
    }
}

static enum td_status measure(struct td_comm *group, const char *host, bool anew,
                              struct td_sum_choices *choices, struct td_err *err)
{
    bool leads = td_comm_rank(group) == 0;
    struct td_bytes text = {0};
    struct td_tune_result result;
    char path[MAX_PATH] = "";
    struct {
        uint32_t known;
        struct td_sum_choices choices;
    } told = {0};
    enum td_status s = describe(group, host, &text, err);

    if (!s && leads && !path_of(&text, path, sizeof path))
        path[0] = '\0';
    if (!s && leads && path[0] && !anew)
        told.known = read_choices(path, &text, &told.choices);
    s = s ? s : td_comm_bcast(group, 0, &told, sizeof told, err);
    if (!s && told.known) {
        *choices = told.choices;
        if (leads)
            td_log_debug("sums choice=\"as kept in %s\"", path);
    } else if (!s) {
        s = td_tune_sums(group, BUDGET_NS, &result, err);
        if (!s) {
            *choices = result.choices;
            if (leads)
                log_trials(&result);
            if (leads && path[0] && !anew)
                write_choices(path, &text, choices);
        }
    }
    td_bytes_deinit(&text);
    return s;
}

static enum td_status refuse(const struct td_comm *group, enum td_sum_algorithm algorithm,
                             struct td_err *err)
{
    char names[256] = "";
    size_t at = 0;

    for (int a = TD_SUM_AUTO; a < TD_N_SUM_ALGORITHMS; a++)
        if (td_comm_sum_supports(group, (enum td_sum_algorithm)a) && at < sizeof names)
            at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", a ? ", " : "",
                                   td_comm_sum_name((enum td_sum_algorithm)a));
    return td_err_set(err, TD_INVALID, "--sum-algorithm %s: %u ranks over '%s' have %s",
                      td_comm_sum_name(algorithm), td_comm_size(group), td_comm_transport(group),
                      names);
}

/* Whether all ranks may. */
static enum td_status agree(struct td_comm *group, bool *may, struct td_err *err)
{
    unsigned char mine = *may, all[TD_TREE_MAX_RANKS];
    size_t bytes[TD_TREE_MAX_RANKS];
    enum td_status s;

    for (uint32_t r = 0; r < td_comm_size(group); r++)
        bytes[r] = sizeof mine;
    s = td_comm_all_gather(group, &mine, bytes, all, err);
    for (uint32_t r = 0; !s && r < td_comm_size(group); r++)
        *may = *may && all[r];
    return s;
}

enum td_status td_sumchoice_make(struct td_comm *group, const char *host,
                                 const struct td_sumchoice_params *params,
                                 struct td_sum_choices *choices, struct td_err *err)
{
    bool may = params->may_measure;
    enum td_status s = TD_OK;

    memset(choices, 0, sizeof *choices);
    if (params->algorithm != TD_SUM_AUTO) {
        if (!td_comm_sum_supports(group, params->algorithm))
            return refuse(group, params->algorithm, err);
        for (uint32_t c = 0; c < TD_SUM_CLASSES; c++)
            choices->by_class[c] = params->algorithm;
        return TD_OK;
    }
    if (!td_tune_has_choice(group))
        return TD_OK;
    if (!params->measure)
        s = agree(group, &may, err);
    if (!s && (params->measure || may))
        s = measure(group, host, params->measure, choices, err);
    return s;
}
