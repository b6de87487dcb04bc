/* `tensord roll`: asks a running server to let a new group take the place of the one that serves, and shows how far that is. */
#include "daemon/cli/ask.h"
#include "daemon/cli/command.h"
#include "daemon/cli/term.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { LOOK_MS = 200 };

/* What the server says of its last roll. */
struct roll {
    char phase[16], error[400];
    bool has_taken_over;
    uint64_t number, old, young, n_left, left_ns, n_moved, n_finished, n_replayed, load_ns;
    uint64_t done_bytes, total_bytes; /* that the new group's ranks have loaded */
};

static void read_roll(const json_t *object, struct roll *r)
{
    *r = (struct roll){.has_taken_over = json_is_true(json_object_get(object, "has_taken_over")),
                       .number = td_ask_number(object, "number"),
                       .old = td_ask_number(object, "old"),
                       .young = td_ask_number(object, "young"),
                       .n_left = td_ask_number(object, "n_left"),
                       .left_ns = td_ask_number(object, "left_ns"),
                       .n_moved = td_ask_number(object, "n_moved"),
                       .n_finished = td_ask_number(object, "n_finished"),
                       .n_replayed = td_ask_number(object, "n_replayed"),
                       .load_ns = td_ask_number(object, "load_ns")};
    snprintf(r->phase, sizeof r->phase, "%s", td_ask_text(object, "phase"));
    snprintf(r->error, sizeof r->error, "%s", td_ask_text(object, "error"));
}

/* Of the group that is to come, where the answer lists groups. */
static void read_progress(const json_t *groups, struct roll *r)
{
    const json_t *group, *rank;
    size_t i, k;

    json_array_foreach(groups, i, group)
    {
        if (td_ask_number(group, "generation") != r->young)
            continue;
        json_array_foreach(json_object_get(group, "ranks"), k, rank)
        {
            r->done_bytes += td_ask_number(rank, "loaded_bytes");
            r->total_bytes += td_ask_number(rank, "load_total_bytes");
        }
    }
}

static enum td_status ask(const struct td_options *opts, const char *method, const char *path,
                          const char *body, struct roll *r, struct td_err *err)
{
    json_t *answer = NULL;
    enum td_status s = td_ask(opts, method, path, body, "roll", &answer, err);

    if (!s) {
        read_roll(json_object_get(answer, "roll"), r);
        read_progress(json_object_get(answer, "groups"), r);
    }
    json_decref(answer);
    return s;
}

static bool is_over(const struct roll *r)
{
    return strcmp(r->phase, "coming") != 0 && strcmp(r->phase, "leaving") != 0;
}

/* Looks until the new group has taken over, or with `until_over` until the old one has gone. Somebody's next roll begins only when
 * this one is over, and then nobody can tell how it ended. */
static enum td_status look_on(const struct td_options *opts, bool until_over, struct roll *r,
                              struct td_err *err)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
    struct td_term term;
    enum td_status s = TD_OK;

    td_term_init(&term, stderr);
    while (!s && !is_over(r) && (until_over || !r->has_taken_over)) {
        struct roll now;

        if (!r->has_taken_over && r->done_bytes < r->total_bytes)
            td_term_progress(&term, "loading", r->done_bytes, r->total_bytes, "B");
        nanosleep(&pause, NULL);
        s = ask(opts, "GET", "/status", "", &now, err);
        if (!s && now.number != r->number)
            s = td_err_set(err, TD_UNAVAILABLE,
                           "another roll has begun: see the server's log for how this one ended");
        if (!s)
            *r = now;
    }
    td_term_end(&term);
    if (!s && strcmp(r->phase, "failed") == 0)
        s = td_err_set(err, TD_UNAVAILABLE, "launch %llu did not take over: %.230s",
                       (unsigned long long)r->young, r->error);
    return s;
}

static void print_taken_over(const struct roll *r)
{
    printf("launch %llu serves, after %.1f s: %llu %s went to it at once",
           (unsigned long long)r->young, (double)r->load_ns * 1e-9, (unsigned long long)r->n_moved,
           td_ask_requests(r->n_moved));
    if (r->n_left)
        printf(", %llu still run on launch %llu, for %.3g s at most", (unsigned long long)r->n_left,
               (unsigned long long)r->old, (double)r->left_ns * 1e-9);
    putchar('\n');
    fflush(stdout);
}

static void print_json(const struct roll *r)
{
    printf("{\"phase\":\"%s\",\"old\":%llu,\"young\":%llu,\"load_ns\":%llu,\"n_moved\":%llu,"
           "\"n_left\":%llu,\"n_finished\":%llu,\"n_replayed\":%llu}\n",
           r->phase, (unsigned long long)r->old, (unsigned long long)r->young,
           (unsigned long long)r->load_ns, (unsigned long long)r->n_moved,
           (unsigned long long)r->n_left, (unsigned long long)r->n_finished,
           (unsigned long long)r->n_replayed);
}

int td_cmd_roll(const struct td_options *opts)
{
    char body[64] = "{}";
    struct roll r;
    struct td_err err;
    enum td_status s;

    if (td_options_is_set(opts, &opts->timeout))
        snprintf(body, sizeof body, "{\"timeout\":%.9g}", opts->timeout);
    s = ask(opts, "POST", "/roll", body, &r, &err);
    if (!s && !opts->json) {
        printf("rolling: launch %llu is on its way, launch %llu serves on\n",
               (unsigned long long)r.young, (unsigned long long)r.old);
        fflush(stdout);
    }
    s = s ? s : look_on(opts, false, &r, &err);
    if (!s && !opts->json)
        print_taken_over(&r);
    if (!s && opts->wait)
        s = look_on(opts, true, &r, &err);
    if (s)
        return td_command_report(opts, &err);
    if (opts->json)
        print_json(&r);
    else if (opts->wait)
        printf("launch %llu has gone: %llu %s ended there, %llu went on with launch %llu\n",
               (unsigned long long)r.old, (unsigned long long)r.n_finished,
               td_ask_requests(r.n_finished), (unsigned long long)r.n_replayed,
               (unsigned long long)r.young);
    return TD_EXIT_OK;
}
