/* What a rank is at, in words and numbers that another rank's can be held against; and how its loop thread finds out, beside a
 * compute thread that may hang. Loop thread only; knows no socket. */
#ifndef TD_DAEMON_ENGINE_WHEREABOUTS_H
#define TD_DAEMON_ENGINE_WHEREABOUTS_H

#include "daemon/engine/recorder.h"

#include <stddef.h>

struct td_comm;

struct td_whereabouts {
    enum td_recorder_stage stage;
    uint64_t number;     /* of the step under way; in other stages of the next one */
    uint64_t elapsed_ns; /* in this stage, while the process was awake */
    uint64_t limit_ns;   /* rank 0: how long that may take; 0: no limit */
    uint64_t n_ops;  /* exchanges begun since all ranks know of the step, and 1; 0: they do not */
    uint64_t op_ns;  /* in this exchange, while the process was awake */
    uint32_t n_rows; /* of the step */
    char op[16];     /* exchange that it is in; "": in none */
};

/* What was seen when it last changed; zero-initialise. */
struct td_whereabouts_watch {
    enum td_recorder_stage stage;
    uint64_t number, stage_from_ns; /* ns of the watcher's awake time */
    const char *op;
    uint64_t n_begun, op_from_ns;
};

/* `awake_ns`: td_vigil's, of this process, so that one that was stopped does not count as late. False: ask again later. */
bool td_whereabouts_look(struct td_whereabouts_watch *watch, const struct td_recorder *recorder,
                         const struct td_comm *world, uint64_t awake_ns,
                         struct td_whereabouts *out);
/* "in step 812 (4 rows) for 2.1 s, in its exchange 3, tree_sum, for 2.0 s". Returns text. */
const char *td_whereabouts_describe(const struct td_whereabouts *at, char *text, size_t bytes);

#endif
