/* Memory that a process gives to others of its host: a file without a name, which they find through this process. Pages are
 * there once they are written to; nothing is left when the last one that maps it ends. Knows no MPI: the caller carries offers. */
#ifndef TD_COMM_SEGMENT_H
#define TD_COMM_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Goes from process to process as it is. */
struct td_segment {
    int32_t pid;
    int32_t fd;              /* in that process; -1: it has none */
    uint64_t device, number; /* of the file: another one is not mapped by mistake */
};

/* Makes one of `bytes`, all zero. False: there is none. */
bool td_segment_open(struct td_segment *segment, size_t bytes);
/* Maps it, here or in another process while it is open there. NULL: that process is not seen from here, or it cannot be
 * mapped. Until munmap. */
void *td_segment_map(const struct td_segment *segment, size_t bytes);
/* After all have mapped it: what is mapped stays. */
void td_segment_close(struct td_segment *segment);

#endif
