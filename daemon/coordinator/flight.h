/* The report on a group that was lost: what each rank was at, who is at fault as far as can be told, and the last steps. Collects,
 * judges and writes; knows no stream and no clock. */
#ifndef TD_DAEMON_COORDINATOR_FLIGHT_H
#define TD_DAEMON_COORDINATOR_FLIGHT_H

#include "daemon/engine/whereabouts.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

enum { TD_FLIGHT_KEPT = 16 }; /* reports in a folder */

/* How the word of a rank ended. In the order in which they explain a loss. */
enum td_flight_end {
    TD_FLIGHT_TOLD = 0, /* it told its record when it was asked, or keeps still */
    TD_FLIGHT_FAILED,   /* it said what went wrong */
    TD_FLIGHT_BLAMED,   /* it kept a step from ending, or ran other steps than most */
    TD_FLIGHT_SILENT,   /* nothing was heard of it for too long */
    TD_FLIGHT_VANISHED, /* its stream closed without a word */
    TD_FLIGHT_ABSENT    /* it never registered */
};

struct td_flight_rank {
    char host[64];
    int64_t pid;
    enum td_flight_end end;
    uint32_t order;      /* of those that vanished or failed: which came first, from 1 */
    uint64_t silence_ns; /* until the loss */
    struct td_whereabouts at;
    bool has_record;    /* `at` and the steps are of its recorder, not of its last heartbeat */
    uint64_t record_ns; /* its monotonic clock when it told them */
    char error[240];    /* what it said went wrong */
    uint32_t n_steps;
    struct td_recorder_step *steps; /* [n_steps] oldest first; owned; NULL: none */
};

struct td_flight {
    uint32_t generation, n_ranks, n_ended;
    struct td_err cause;           /* for which the group was given up */
    char launcher[240];            /* how mpirun ended before it was told to; "": it did not */
    struct td_flight_rank ranks[]; /* [n_ranks] */
};

/* NULL without memory. */
struct td_flight *td_flight_open(uint32_t generation, uint32_t n_ranks);
void td_flight_close(struct td_flight *f); /* NULL is legal */
/* A rank's word ended so; what explains more stays. */
void td_flight_end_rank(struct td_flight *f, uint32_t rank, enum td_flight_end end);
/* One sentence: who is at fault, since when, and what the others did. Returns text. */
const char *td_flight_verdict(const struct td_flight *f, char *text, size_t bytes);
/* The whole report, for people; `when` stands at its head. TD_NO_MEMORY. */
enum td_status td_flight_write(const struct td_flight *f, const char *when, struct td_bytes *out);
/* Writes it into `folder`, which is made where its parent is there, as flight-<name>.txt; only the newest TD_FLIGHT_KEPT stay, by
 * name. `path` gets where. Blocks: for libuv's pool. TD_IO. */
enum td_status td_flight_save(const char *folder, const char *name, struct td_str report,
                              char *path, size_t path_bytes, struct td_err *err);

#endif
