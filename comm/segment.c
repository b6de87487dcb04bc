#include "comm/segment.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool td_segment_open(struct td_segment *segment, size_t bytes)
{
    int fd = memfd_create("tensord-comm", MFD_CLOEXEC);
    struct stat st;

    *segment = (struct td_segment){.pid = (int32_t)getpid(), .fd = fd};
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fstat(fd, &st) == 0) {
        segment->device = st.st_dev;
        segment->number = st.st_ino;
        return true;
    }
    td_segment_close(segment);
    return false;
}

void *td_segment_map(const struct td_segment *segment, size_t bytes)
{
    char path[64];
    struct stat st;
    void *memory;
    int fd;

    if (segment->fd < 0)
        return NULL;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", segment->pid, segment->fd);
    if (stat(path, &st) != 0 || st.st_dev != segment->device || st.st_ino != segment->number)
        return NULL;
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return memory == MAP_FAILED ? NULL : memory;
}

void td_segment_close(struct td_segment *segment)
{
    if (segment->fd >= 0)
        close(segment->fd);
    segment->fd = -1;
}
