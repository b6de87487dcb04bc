/* A read-only file in memory, so that its pages live in the page cache and not in ours.
 * One owner; reading from any thread. If somebody shortens the file while it is mapped, touching the lost part raises
 * SIGBUS: a checkpoint that is being served must not be overwritten in place. Knows no format. */
#ifndef TD_SHARD_MAPFILE_H
#define TD_SHARD_MAPFILE_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>

struct td_mapfile {
    const unsigned char *data; /* NULL while the file is empty */
    size_t size;               /* bytes */
    bool mapped;               /* false: `data` is borrowed memory */
};

enum td_mapfile_hint { TD_MAPFILE_SEQUENTIAL, TD_MAPFILE_WILLNEED };

/* Maps a regular file. TD_NOT_FOUND when there is none, TD_INVALID when it is no regular file, TD_IO. The message
 * names the path. Waits for the file system at most for opening. */
enum td_status td_mapfile_init(struct td_mapfile *m, const char *path, struct td_err *err);
/* The same view over memory that the caller keeps until deinit (tests, fuzzers). */
void td_mapfile_init_memory(struct td_mapfile *m, const void *data, size_t size);
void td_mapfile_deinit(struct td_mapfile *m);

struct td_str
td_mapfile_str(const struct td_mapfile *m); /* the whole content; borrows until deinit */
bool td_mapfile_holds(const struct td_mapfile *m, const void *data, size_t bytes);

/* Hints; ranges outside the file are cut off, failures have no effect. `release` gives the whole pages inside the
 * range back: they leave our resident memory and stay in the page cache. */
void td_mapfile_advise(const struct td_mapfile *m, size_t offset, size_t bytes,
                       enum td_mapfile_hint hint);
void td_mapfile_release(const struct td_mapfile *m, size_t offset, size_t bytes);

#endif
