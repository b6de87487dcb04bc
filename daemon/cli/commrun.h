/* The measurement of `tensord bench comm`: every contender of every operation and size, by turns, and the lines through what was
 * measured. Collective: all ranks call it alike and have the same figures. */
#ifndef TD_DAEMON_CLI_COMMRUN_H
#define TD_DAEMON_CLI_COMMRUN_H

#include "comm/linkfit.h"
#include "daemon/cli/commop.h"
#include "daemon/cli/term.h"
#include "daemon/cli/watchdog.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One contender at one size. A time is that of one call, in the mean over back-to-back calls of a round, on the rank that took
 * longest. */
struct td_commrun_time {
    struct td_commop contender;
    bool is_auto;     /* tree_sum takes it by itself */
    uint64_t n_calls; /* of a round */
    double best_ns;   /* of the rounds */
    double median_ns;
};

/* One operation at one size. */
struct td_commrun_row {
    enum td_commset_op op;
    size_t bytes; /* 0: barrier */
    uint32_t n_rounds;
    size_t n;
    struct td_commrun_time time[TD_COMMOP_MAX]; /* [n] in the order of td_commop_list */
};

/* The line through one contender's best times. */
struct td_commrun_fit {
    const struct td_commrun_time *contender; /* of the first size; borrowed from the rows */
    size_t n_points;
    struct td_linkfit line;
};

enum {
    TD_COMMRUN_MAX_ROWS = (TD_COMMSET_N_OPS - 1) * TD_COMMSET_MAX_SIZES + 1,
    TD_COMMRUN_MAX_FITS = 2 * TD_COMMOP_MAX
};

struct td_commrun_params {
    const struct td_commset *set;
    uint32_t n_rounds;            /* less where one call is long */
    uint64_t round_ns;            /* about what a contender's calls take in a round */
    struct td_watchdog *watchdog; /* for calls without a deadline */
    struct td_term *term;         /* for progress; NULL: none is shown */
};

struct td_commrun {
    struct td_commrun_row *rows; /* [n_rows], owned */
    size_t n_rows;
};

/* First each contender's result is verified, then it is found out how many calls fill a round, by rank 0's clock, then rounds
 * follow in which all contenders take turns, each beginning with a barrier. TD_CORRUPT, naming the first contender whose
 * result is wrong. td_commrun_deinit in any case. */
enum td_status td_commrun_go(const struct td_commrun_params *params, struct td_commop_bench *bench,
                             struct td_commrun *run, struct td_err *err);
void td_commrun_deinit(struct td_commrun *run);

/* Lines of sendrecv and tree_sum, for every contender with two sizes or more. Returns how many. Local. */
size_t td_commrun_fits(const struct td_commrun *run,
                       struct td_commrun_fit fits[TD_COMMRUN_MAX_FITS]);
/* The row's contender of that kind; NULL when there is none. */
const struct td_commrun_time *td_commrun_find(const struct td_commrun_row *row,
                                              enum td_commop_kind kind);

#endif
