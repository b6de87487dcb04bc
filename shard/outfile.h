/* A file that appears under its name only when it is whole: written beside it, then renamed.
 * The owner creates and commits it; any thread may write. Knows no format. */
#ifndef TD_SHARD_OUTFILE_H
#define TD_SHARD_OUTFILE_H

#include "kernels/base/err.h"

#include <stddef.h>
#include <stdint.h>

struct td_outfile {
    char *path; /* owned */
    char *
        partial; /* owned: where the bytes are until the commit; NULL when there is nothing to remove */
    int fd;      /* -1: closed */
};

/* Creates `path`.partial-PID of `size` bytes, all zero. TD_IO names the path and what the system said. */
enum td_status td_outfile_init(struct td_outfile *f, const char *path, uint64_t size,
                               struct td_err *err);
/* Writes `bytes` at `offset`. May block. */
enum td_status td_outfile_write(const struct td_outfile *f, uint64_t offset, const void *data,
                                size_t bytes, struct td_err *err);
/* Puts the bytes on the disk and the file in its place, over one that is there. */
enum td_status td_outfile_commit(struct td_outfile *f, struct td_err *err);
/* Removes what was not committed. Legal on a zeroed one. */
void td_outfile_deinit(struct td_outfile *f);

#endif
