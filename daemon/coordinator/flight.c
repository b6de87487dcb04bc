#include "daemon/coordinator/flight.h"

#include "shard/step.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct td_flight *td_flight_open(uint32_t generation, uint32_t n_ranks)
{
    struct td_flight *f = calloc(1, sizeof *f + n_ranks * sizeof f->ranks[0]);

    if (f) {
        f->generation = generation;
        f->n_ranks = n_ranks;
    }
    return f;
}

void td_flight_close(struct td_flight *f)
{
    for (uint32_t r = 0; f && r < f->n_ranks; r++)
        free(f->ranks[r].steps);
    free(f);
}

void td_flight_end_rank(struct td_flight *f, uint32_t rank, enum td_flight_end end)
{
    struct td_flight_rank *r = &f->ranks[rank];

    if (end <= r->end)
        return;
    r->end = end;
    if (!r->order)
        r->order = ++f->n_ended;
}

/* ---- the verdict ---- */

/* Of the ranks that ended so the one that did so first. */
static const struct td_flight_rank *first_of(const struct td_flight *f, enum td_flight_end end)
{
    const struct td_flight_rank *first = NULL;

    for (uint32_t r = 0; r < f->n_ranks; r++)
        if (f->ranks[r].end == end && (!first || f->ranks[r].order < first->order))
            first = &f->ranks[r];
    return first;
}

/* Rank 0's group ends with "rank 1 is gone" where rank 1 is the one that matters: whoever vanished explains more. */
static const struct td_flight_rank *at_fault(const struct td_flight *f)
{
    static const enum td_flight_end order[] = {TD_FLIGHT_VANISHED, TD_FLIGHT_SILENT,
                                               TD_FLIGHT_BLAMED, TD_FLIGHT_FAILED};
    const struct td_flight_rank *found = NULL;

    for (size_t i = 0; !found && i < sizeof order / sizeof order[0]; i++)
        found = first_of(f, order[i]);
    return found;
}

const char *td_flight_verdict(const struct td_flight *f, char *text, size_t bytes)
{
    const struct td_flight_rank *r = at_fault(f);
    char at[200], who[128] = "";
    uint32_t n_blamed = 0;

    if (f->launcher[0]) {
        snprintf(text, bytes, "mpirun ended first, and the ranks with it: %s", f->launcher);
        return text;
    }
    if (!r) {
        snprintf(text, bytes, "no rank is known to be at fault: %.300s", f->cause.cause);
        return text;
    }
    snprintf(who, sizeof who, "rank %td on %s (process %" PRId64 ")", r - f->ranks, r->host,
             r->pid);
    td_whereabouts_describe(&r->at, at, sizeof at);
    for (uint32_t i = 0; i < f->n_ranks; i++)
        n_blamed += f->ranks[i].end == TD_FLIGHT_BLAMED;
    switch (r->end) {
    case TD_FLIGHT_VANISHED:
        snprintf(text, bytes, "%s ended without a word; it was last heard of %s", who, at);
        break;
    case TD_FLIGHT_SILENT:
        snprintf(text, bytes, "%s fell silent %.1f s before; it was last heard of %s", who,
                 (double)r->silence_ns * 1e-9, at);
        break;
    case TD_FLIGHT_BLAMED:
        snprintf(text, bytes, "%s is at fault%s: %.300s", who,
                 n_blamed > 1 ? ", the first of several" : "", f->cause.cause);
        break;
    default:
        snprintf(text, bytes, "%s failed: %s", who, r->error);
    }
    return text;
}

/* ---- the report ---- */

static const char *end_text(const struct td_flight_rank *r, char *text, size_t bytes)
{
    switch (r->end) {
    case TD_FLIGHT_FAILED:
        snprintf(text, bytes, "failed: %s", r->error);
        break;
    case TD_FLIGHT_BLAMED:
        snprintf(text, bytes, "is blamed");
        break;
    case TD_FLIGHT_SILENT:
        snprintf(text, bytes, "silent for %.3f s", (double)r->silence_ns * 1e-9);
        break;
    case TD_FLIGHT_VANISHED:
        snprintf(text, bytes, "ended without a word");
        break;
    case TD_FLIGHT_ABSENT:
        snprintf(text, bytes, "was not there");
        break;
    default:
        snprintf(text, bytes, "%s", r->has_record ? "told its record" : "did not answer in time");
    }
    return text;
}

static const char *kind_name(uint32_t kind)
{
    return kind == TD_STEP_RUN     ? "run"
           : kind == TD_STEP_FLUSH ? "flush"
           : kind == TD_STEP_IDLE  ? "idle"
           : kind == TD_STEP_STOP  ? "stop"
                                   : "?";
}

static double ms(uint64_t ns)
{
    return (double)ns * 1e-6;
}

static enum td_status write_step(const struct td_flight_rank *r, const struct td_recorder_step *s,
                                 struct td_bytes *out)
{
    uint64_t age_ns = r->record_ns > s->begin_ns ? r->record_ns - s->begin_ns : 0;
    uint64_t told_ns = s->told_ns > s->begin_ns ? s->told_ns - s->begin_ns : 0;
    uint64_t all_ns = s->end_ns > s->begin_ns ? s->end_ns - s->begin_ns : 0;
    const char *status = s->status ? td_status_name((enum td_status)s->status) : "ok";

    return td_bytes_appendf(
        out, "  %10" PRIu64 " %-5s %6u %5u %016" PRIx64 " %12.3f %10.3f %10.3f %10.3f  %s\n",
        s->number, kind_name(s->kind), s->n_rows, s->n_seqs, s->hash, ms(age_ns), ms(told_ns),
        ms(s->exchange_ns), ms(all_ns), status);
}

static enum td_status write_rank(const struct td_flight *f, uint32_t rank, struct td_bytes *out)
{
    const struct td_flight_rank *r = &f->ranks[rank];
    char end[300], at[200];
    enum td_status s;

    s = td_bytes_appendf(out, "\nrank %u on %s, process %" PRId64 ": %s\n", rank, r->host, r->pid,
                         end_text(r, end, sizeof end));
    if (r->end == TD_FLIGHT_ABSENT)
        return s;
    if (!s)
        s = td_bytes_appendf(out, "  %s %s\n",
                             r->has_record ? "its recorder, when it was asked:"
                                           : "its last heartbeat, all that is known of it:",
                             td_whereabouts_describe(&r->at, at, sizeof at));
    if (!s && r->n_steps)
        s = td_bytes_appendf(out, "  %10s %-5s %6s %5s %-16s %12s %10s %10s %10s  %s\n", "step",
                             "kind", "rows", "seqs", "hash", "begun ms ago", "told ms", "exchange",
                             "whole ms", "ended");
    for (uint32_t i = 0; !s && i < r->n_steps; i++)
        s = write_step(r, &r->steps[i], out);
    return s;
}

enum td_status td_flight_write(const struct td_flight *f, const char *when, struct td_bytes *out)
{
    char verdict[700], cause[600];
    enum td_status s = td_bytes_appendf(out,
                                        "tensord flight report\n"
                                        "when        %s\n"
                                        "generation  %u of %u ranks\n"
                                        "cause       %s\n"
                                        "launcher    %s\n"
                                        "verdict     %s\n",
                                        when, f->generation, f->n_ranks,
                                        td_err_format(&f->cause, cause, sizeof cause),
                                        f->launcher[0] ? f->launcher : "did not end by itself",
                                        td_flight_verdict(f, verdict, sizeof verdict));

    if (!s)
        s = td_bytes_appendf(out, "\nTimes of a step: when it began before the report, from there "
                                  "until all ranks knew of it, inside exchanges, to its end.\n");
    for (uint32_t r = 0; !s && r < f->n_ranks; r++)
        s = write_rank(f, r, out);
    return s;
}

/* ---- the folder ---- */

static bool is_report(const char *name)
{
    size_t n = strlen(name);

    return strncmp(name, "flight-", 7) == 0 && n > 11 && strcmp(name + n - 4, ".txt") == 0;
}

static int only_reports(const struct dirent *e)
{
    return is_report(e->d_name);
}

/* Removes the oldest ones; names begin with the time. */
static void prune(const char *folder)
{
    struct dirent **list;
    int n = scandir(folder, &list, only_reports, alphasort);

    for (int i = 0; i < n; i++) {
        char path[1024];

        if (i < n - TD_FLIGHT_KEPT &&
            (size_t)snprintf(path, sizeof path, "%s/%s", folder, list[i]->d_name) < sizeof path)
            unlink(path);
        free(list[i]);
    }
    if (n >= 0)
        free(list);
}

enum td_status td_flight_save(const char *folder, const char *name, struct td_str report,
                              char *path, size_t path_bytes, struct td_err *err)
{
    char draft[1024];
    size_t done = 0;
    int fd;

    if ((size_t)snprintf(path, path_bytes, "%s/flight-%s.txt", folder, name) >= path_bytes ||
        (size_t)snprintf(draft, sizeof draft, "%s/.flight-%s.draft", folder, name) >= sizeof draft)
        return td_err_set(err, TD_IO, "'%.200s' is too long for a folder of reports", folder);
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return td_err_set(err, TD_IO, "cannot make '%.300s': %s", folder, strerror(errno));
    fd = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return td_err_set(err, TD_IO, "cannot write '%.300s': %s", draft, strerror(errno));
    while (done < report.len) {
        ssize_t n = write(fd, report.ptr + done, report.len - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            td_err_set(err, TD_IO, "cannot write '%.300s': %s", draft, strerror(errno));
            close(fd);
            unlink(draft);
            return TD_IO;
        }
        done += (size_t)n;
    }
    close(fd);
    if (rename(draft, path) != 0) {
        td_err_set(err, TD_IO, "cannot name '%.300s': %s", path, strerror(errno));
        unlink(draft);
        return TD_IO;
    }
    prune(folder);
    return TD_OK;
}
