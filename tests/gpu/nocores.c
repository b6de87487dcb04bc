/* kernels/cpu/cores.h without hwloc, for a machine that has none: nobody is told how many cores there are, so a device of the CPU
 * must be opened with a number of threads. */
#include "kernels/cpu/cores.h"

enum td_status td_cores_open(const char *synthetic, struct td_cores **cores, struct td_err *err)
{
    (void)synthetic;
    (void)cores;
    return td_err_set(err, TD_UNSUPPORTED, "built without hwloc: name a number of threads");
}

void td_cores_close(struct td_cores *cores)
{
    (void)cores;
}

uint32_t td_cores_count_mine(const struct td_cores *cores)
{
    (void)cores;
    return 1;
}
