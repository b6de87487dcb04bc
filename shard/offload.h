/* Places for KV blocks outside of the device, on this rank: slots in host memory and, behind them, slots in a file. Each holds
 * one block's bytes with their checksum. Knows neither blocks nor sequences: which slot holds what is the engine's business.
 * Compute thread only. */
#ifndef TD_SHARD_OFFLOAD_H
#define TD_SHARD_OFFLOAD_H

#include "kernels/base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Slots 0 .. n[0] - 1 are in memory, the next n[1] in the file. */
enum td_offload_tier { TD_OFFLOAD_MEMORY = 0, TD_OFFLOAD_FILE = 1 };
enum { TD_OFFLOAD_TIERS = 2 };

static inline enum td_offload_tier td_offload_tier_of(const uint32_t n_slots[TD_OFFLOAD_TIERS],
                                                      uint32_t slot)
{
    return slot < n_slots[TD_OFFLOAD_MEMORY] ? TD_OFFLOAD_MEMORY : TD_OFFLOAD_FILE;
}

struct td_offload_params {
    uint32_t n_slots[TD_OFFLOAD_TIERS];
    size_t slot_bytes; /* 0: this rank holds nothing of a block */
    const char
        *dir; /* folder of the file, borrowed during open; NULL where the file has no slots */
};

struct td_offload;

/* Reserves all of it. The file has no name, is readable by this user only, and goes with the process. TD_NO_MEMORY; TD_IO names
 * the folder and what the system said. */
enum td_status td_offload_open(const struct td_offload_params *params, struct td_offload **o,
                               struct td_err *err);
void td_offload_close(struct td_offload *o); /* NULL is legal */

/* Room for slot_bytes, which td_offload_put then takes over as the slot's; until then the slot holds nothing. Borrowed until the
 * next call. */
void *td_offload_begin(struct td_offload *o, uint32_t slot);
/* TD_IO: the slot holds nothing. */
enum td_status td_offload_put(struct td_offload *o, uint32_t slot, struct td_err *err);
/* The bytes of a slot, borrowed until the next call. TD_NOT_FOUND when it holds nothing, TD_CORRUPT when they are not those
 * that were put there, TD_IO. */
enum td_status td_offload_get(struct td_offload *o, uint32_t slot, const void **bytes,
                              struct td_err *err);

#endif
