/* Progress for people: one line that is rewritten on a terminal, now and then a plain line otherwise.
 * Plain state on the caller's stack, one writer, main thread. Knows no command. */
#ifndef TD_DAEMON_CLI_TERM_H
#define TD_DAEMON_CLI_TERM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct td_term {
    FILE *out;              /* borrowed */
    bool is_tty;            /* out is a terminal that can rewrite a line */
    bool line_open;         /* terminal: a progress line stands and has no newline yet */
    uint64_t last_ns;       /* of the last progress shown; 0: none yet */
    uint64_t interval_ns;   /* least time between two: 100 ms on a terminal, 2 s else */
    unsigned fixed_columns; /* for tests; 0: ask the terminal */
};

/* Looks at what `out` is (usually stderr). */
void td_term_init(struct td_term *t, FILE *out);
/* "loading: rank 1  42 %  12.0 of 28.5 MiB": shows it unless the last one was just now; the final one (done >= total)
 * is always shown and ends the line. `unit` is "B" for bytes (printed in KiB, MiB ...) or a word; total 0: not known. */
void td_term_progress(struct td_term *t, const char *label, uint64_t done, uint64_t total,
                      const char *unit);
/* A line of its own that stays; clears a standing progress line first. No newline in fmt. */
void td_term_line(struct td_term *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Ends a standing progress line. */
void td_term_end(struct td_term *t);

/* "1.5 GiB", "812 B". Returns out. */
const char *td_term_bytes(uint64_t bytes, char *out, size_t out_bytes);

#endif
