/* Reads a GPU's health now and then, on libuv's worker pool. Loop thread. */
#ifndef TD_DAEMON_ENGINE_GPUWATCH_H
#define TD_DAEMON_ENGINE_GPUWATCH_H

#include "daemon/engine/gpuhealth.h"

#include <uv.h>

struct td_gpuwatch;

/* `bus_id` is copied. TD_NO_MEMORY. */
enum td_status td_gpuwatch_open(uv_loop_t *loop, const char *bus_id, struct td_gpuwatch **watch,
                                struct td_err *err);
/* Begins a reading when the last one is old. Returns what was read last: nothing at first, and where there is no NVML, of which the log
 * hears once. */
const struct td_gpuhealth_sample *td_gpuwatch_look(struct td_gpuwatch *watch);
/* Frees it, when a reading under way has ended; then calls on_closed. */
void td_gpuwatch_close(struct td_gpuwatch *watch, void (*on_closed)(void *user), void *user);

#endif
