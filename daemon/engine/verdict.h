/* What was found when something was looked at: lines for people, each with a verdict. Plain state, one writer. Knows no check. */
#ifndef TD_DAEMON_ENGINE_VERDICT_H
#define TD_DAEMON_ENGINE_VERDICT_H

#include <stdbool.h>
#include <stdint.h>

enum td_verdict { TD_VERDICT_OK, TD_VERDICT_WARNING, TD_VERDICT_ERROR };

/* One check of one thing. */
struct td_verdict_line {
    enum td_verdict verdict;
    char check[24]; /* "open files" */
    char where[96]; /* "all ranks", "host a", "a - b" */
    char text[384]; /* what was found, and what is wrong with it */
};

/* Lines in the order of their checks. {0} is an empty one. */
struct td_verdict_report {
    struct td_verdict_line *lines; /* [n], owned */
    uint32_t n, cap;
    bool lacks_memory; /* a line is missing */
};

void td_verdict_deinit(struct td_verdict_report *report);
/* Adds a line, printf style; too long a text is cut, and bytes that are no UTF-8 or control a terminal are shown as "?". */
void td_verdict_add(struct td_verdict_report *report, enum td_verdict verdict, const char *check,
                    const char *where, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* The worst of the lines; an error too when one is missing. */
enum td_verdict td_verdict_worst(const struct td_verdict_report *report);
const char *td_verdict_name(enum td_verdict verdict); /* "ok", "warning", "error" */

#endif
