/* Whereabouts and flight records as messages, and back. Beside wire.h the only file that knows both forms. */
#ifndef TD_DAEMON_ENGINE_WIREFLIGHT_H
#define TD_DAEMON_ENGINE_WIREFLIGHT_H

#include "daemon/engine/whereabouts.h"
#include "kernels/base/arena.h"
#include "proto/worker.pb-c.h"

/* `out` points into `at`, which must outlive it. */
void td_wireflight_at_make(struct td_whereabouts *at, Tensord__Worker__V1__Whereabouts *out);
/* What a peer says: unknown stages become rest, long names are cut. NULL: a rank at rest. */
void td_wireflight_at_read(const Tensord__Worker__V1__Whereabouts *in, struct td_whereabouts *out);
/* Returns how many of `out` were written, at most TD_RECORDER_MARKS; `in` [n]. */
uint32_t td_wireflight_marks_read(Tensord__Worker__V1__StepMark *const *in, size_t n,
                                  struct td_recorder_mark out[TD_RECORDER_MARKS]);
/* NULL without memory. `steps` [n] is copied into the arena; `at` is borrowed. */
Tensord__Worker__V1__Flight *td_wireflight_make(struct td_whereabouts *at, uint64_t now_ns,
                                                const struct td_recorder_step *steps, uint32_t n,
                                                struct td_arena *arena);
/* At most TD_RECORDER_STEPS steps, the last ones; returns how many. */
uint32_t td_wireflight_steps_read(const Tensord__Worker__V1__Flight *in,
                                  struct td_recorder_step out[TD_RECORDER_STEPS]);

#endif
