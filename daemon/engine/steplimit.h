/* How long a step may take before its group counts as stuck, learnt from steps of the same shape. Pure: times come in, limits
 * go out. One owner: rank 0's compute thread. */
#ifndef TD_DAEMON_ENGINE_STEPLIMIT_H
#define TD_DAEMON_ENGINE_STEPLIMIT_H

#include <stddef.h>
#include <stdint.h>

/* A step takes at most TD_STEPLIMIT_FACTOR times the median of the last ones of its shape, or what it is guessed to take. */
enum {
    TD_STEPLIMIT_FACTOR = 20,
    TD_STEPLIMIT_KEPT = 15,  /* samples of a shape */
    TD_STEPLIMIT_ENOUGH = 3, /* with fewer the guess counts */
    TD_STEPLIMIT_MAX_FLIGHTS = 256
};
/* But never less than this: once a shape is known, and before. */
#define TD_STEPLIMIT_LEAST_NS 2000000000u
#define TD_STEPLIMIT_LEAST_GUESS_NS 60000000000u
/* The guess: a rank gets through so many bytes of weights times rows in a second. Slower than any machine that answers at a bearable
 * speed; links of 1 Gbit/s between ranks take less. */
#define TD_STEPLIMIT_BYTE_ROWS_PER_S 20000000000.0

/* What decides how long a step takes. All 0: a step without rows. */
struct td_steplimit_shape {
    uint32_t n_rows, n_seqs;
    uint32_t n_table; /* KV blocks that its sequences have */
    uint32_t n_moves; /* of KV blocks */
};

enum {
    TD_STEPLIMIT_ROWS = 18,  /* powers of two */
    TD_STEPLIMIT_TABLE = 13, /* powers of four */
    TD_STEPLIMIT_CLASSES = 2 * 2 * TD_STEPLIMIT_ROWS * TD_STEPLIMIT_TABLE
};

struct td_steplimit_class {
    uint32_t us[TD_STEPLIMIT_KEPT]; /* durations in microseconds, a ring */
    uint16_t n, next;               /* kept; where the next goes */
};

struct td_steplimit {
    uint64_t weight_bytes; /* of the largest rank */
    uint32_t n_flights;    /* steps under way at once; their turns wait for each other */
    uint32_t n_begun;
    uint64_t flight_ns[TD_STEPLIMIT_MAX_FLIGHTS]; /* limits of the last n_flights */
    struct td_steplimit_class classes[TD_STEPLIMIT_CLASSES];
};

/* n_flights from 1 to TD_STEPLIMIT_MAX_FLIGHTS: the stages of the pipeline. */
void td_steplimit_init(struct td_steplimit *l, uint64_t weight_bytes, uint32_t n_flights);
/* A step, or a turn of a pipeline, begins: how long it may take, ns. The longest limit of those under way counts for each. */
uint64_t td_steplimit_begin(struct td_steplimit *l, const struct td_steplimit_shape *shape);
/* It took so long. */
void td_steplimit_learn(struct td_steplimit *l, const struct td_steplimit_shape *shape,
                        uint64_t ns);

#endif
