/* A plug-in whose interface is another one: what is left behind when only the program is replaced. */
#include "comm/nccl/ncclplug.h"

extern const struct td_ncclplug td_ncclplug;
const struct td_ncclplug td_ncclplug = {.abi = TD_NCCLPLUG_ABI + 6};
