/* `tensord drain`: asks a running server to take nothing new, shows what is still open, or takes it back. */
#include "daemon/cli/ask.h"
#include "daemon/cli/command.h"
#include "daemon/cli/term.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { LOOK_MS = 200, EXIT_ENDED = 3 };

/* What the server says of its drain. */
struct drain {
    bool is_on, stops, is_over, has_limit;
    uint64_t n_open, n_finished, n_cancelled, left_ns;
};

static void read_drain(const json_t *object, struct drain *d)
{
    *d = (struct drain){.is_on = json_is_object(object),
                        .stops = json_is_true(json_object_get(object, "stops")),
                        .is_over = json_is_true(json_object_get(object, "over")),
                        .has_limit = json_is_integer(json_object_get(object, "left_ns")),
                        .n_open = td_ask_number(object, "n_open"),
                        .n_finished = td_ask_number(object, "n_finished"),
                        .n_cancelled = td_ask_number(object, "n_cancelled"),
                        .left_ns = td_ask_number(object, "left_ns")};
}

static enum td_status ask(const struct td_options *opts, const char *method, const char *path,
                          const char *body, struct drain *d, struct td_err *err)
{
    json_t *answer = NULL;
    enum td_status s = td_ask(opts, method, path, body, "drain", &answer, err);

    if (!s)
        read_drain(json_object_get(answer, "drain"), d);
    json_decref(answer);
    return s;
}

static void print_open(const struct drain *d)
{
    printf("draining: %llu %s open", (unsigned long long)d->n_open, td_ask_requests(d->n_open));
    if (d->has_limit && d->n_open > 0)
        printf(", %.0f s left", (double)d->left_ns * 1e-9);
    puts(d->stops ? "; the server stops then" : "");
    fflush(stdout);
}

static void print_json(const struct drain *d)
{
    printf("{\"draining\":%s,\"over\":%s,\"n_open\":%llu,\"n_finished\":%llu,\"n_cancelled\":%llu}"
           "\n",
           d->is_on ? "true" : "false", d->is_over ? "true" : "false",
           (unsigned long long)d->n_open, (unsigned long long)d->n_finished,
           (unsigned long long)d->n_cancelled);
}

/* Looks until nothing is open. A server that said it would stop, and is gone, has done so. */
static enum td_status wait_until_over(const struct td_options *opts, struct drain *d,
                                      bool *has_stopped, struct td_err *err)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
    struct td_term term;
    enum td_status s = TD_OK;

    td_term_init(&term, stderr);
    while (!s && d->is_on && !d->is_over) {
        struct drain now;

        td_term_progress(&term, "draining", d->n_finished + d->n_cancelled,
                         d->n_finished + d->n_cancelled + d->n_open, "requests");
        nanosleep(&pause, NULL);
        s = ask(opts, "GET", "/status", "", &now, err);
        if (s && d->stops && (s == TD_UNAVAILABLE || s == TD_PEER_LOST)) {
            *has_stopped = true;
            s = TD_OK;
            break;
        }
        if (!s)
            *d = now;
    }
    td_term_end(&term);
    if (!s && !*has_stopped && !d->is_on)
        s = td_err_set(err, TD_CANCELLED,
                       "somebody took the drain back: the server takes requests");
    return s;
}

static int tell_end(const struct td_options *opts, const struct drain *d, bool has_stopped)
{
    if (opts->json)
        print_json(d);
    else if (has_stopped)
        puts("the server has stopped");
    else if (d->n_cancelled)
        printf("drained: %llu %s ended by themselves, %llu ended by the server at the limit\n",
               (unsigned long long)d->n_finished, td_ask_requests(d->n_finished),
               (unsigned long long)d->n_cancelled);
    else
        printf("drained: nothing is open, %llu %s ended since the drain began\n",
               (unsigned long long)d->n_finished, td_ask_requests(d->n_finished));
    return d->n_cancelled ? EXIT_ENDED : TD_EXIT_OK;
}

static int take_back(const struct td_options *opts)
{
    struct drain d;
    struct td_err err;

    if (ask(opts, "DELETE", "/drain", "", &d, &err))
        return td_command_report(opts, &err);
    if (opts->json)
        print_json(&d);
    else
        puts("the server takes requests");
    return TD_EXIT_OK;
}

int td_cmd_drain(const struct td_options *opts)
{
    char body[64];
    bool has_stopped = false;
    struct drain d;
    struct td_err err;

    if (opts->cancel && (opts->wait || td_options_is_set(opts, &opts->timeout))) {
        fprintf(stderr, "tensord drain: --cancel goes with neither --wait nor --timeout\n");
        return TD_EXIT_USAGE;
    }
    if (opts->cancel)
        return take_back(opts);
    snprintf(body, sizeof body, "{\"timeout\":%.9g}", opts->timeout);
    if (ask(opts, "POST", "/drain", body, &d, &err))
        return td_command_report(opts, &err);
    if (!opts->wait) {
        if (opts->json)
            print_json(&d);
        else
            print_open(&d);
        return TD_EXIT_OK;
    }
    if (!opts->json)
        print_open(&d);
    if (wait_until_over(opts, &d, &has_stopped, &err))
        return td_command_report(opts, &err);
    return tell_end(opts, &d, has_stopped);
}
