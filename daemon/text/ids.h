/* A growable list of token ids. Zero-initialise; owns its memory; one writer. */
#ifndef TD_DAEMON_TEXT_IDS_H
#define TD_DAEMON_TEXT_IDS_H

#include "kernels/base/err.h"

#include <stddef.h>
#include <stdint.h>

struct td_ids {
    uint32_t *data; /* owned, [cap]; NULL while empty */
    size_t len;
    size_t cap;
};

void td_ids_deinit(struct td_ids *ids);                          /* frees and zeroes */
void td_ids_clear(struct td_ids *ids);                           /* len = 0, memory kept */
enum td_status td_ids_reserve(struct td_ids *ids, size_t extra); /* TD_NO_MEMORY */
enum td_status td_ids_append(struct td_ids *ids, uint32_t id);
enum td_status td_ids_append_n(struct td_ids *ids, const uint32_t *data, size_t n);

#endif
