#include "shard/mapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum td_status td_mapfile_init(struct td_mapfile *m, const char *path, struct td_err *err)
{
    enum td_status st;
    struct stat info;
    void *data;
    int fd;

    /* O_NONBLOCK: opening a named pipe must not wait for its writer; a regular file ignores it. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        st = errno == ENOENT || errno == ENOTDIR ? TD_NOT_FOUND : TD_IO;
        return td_err_set(err, st, "cannot open '%s': %s", path, strerror(errno));
    }
    if (fstat(fd, &info) != 0) {
        st = td_err_set(err, TD_IO, "cannot stat '%s': %s", path, strerror(errno));
        goto close_fd;
    }
    if (!S_ISREG(info.st_mode)) {
        st = td_err_set(err, TD_INVALID, "'%s' is not a regular file", path);
        goto close_fd;
    }
    if ((uintmax_t)info.st_size > SIZE_MAX / 2) {
        st = td_err_set(err, TD_TOO_LARGE, "'%s' has %jd bytes, more than can be mapped", path,
                        (intmax_t)info.st_size);
        goto close_fd;
    }
    *m = (struct td_mapfile){0};
    st = TD_OK;
    if (info.st_size == 0)
        goto close_fd;
    data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        st = td_err_set(err, TD_IO, "cannot map the %jd bytes of '%s': %s", (intmax_t)info.st_size,
                        path, strerror(errno));
        goto close_fd;
    }
    *m = (struct td_mapfile){.data = data, .size = (size_t)info.st_size, .mapped = true};
close_fd:
    close(fd);
    return st;
}

void td_mapfile_init_memory(struct td_mapfile *m, const void *data, size_t size)
{
    *m = (struct td_mapfile){.data = data, .size = size, .mapped = false};
}

void td_mapfile_deinit(struct td_mapfile *m)
{
    if (m->mapped)
        munmap((void *)(uintptr_t)m->data, m->size);
    *m = (struct td_mapfile){0};
}

struct td_str td_mapfile_str(const struct td_mapfile *m)
{
    return (struct td_str){m->data ? (const char *)m->data : "", m->size};
}

bool td_mapfile_holds(const struct td_mapfile *m, const void *data, size_t bytes)
{
    uintptr_t begin = (uintptr_t)m->data, at = (uintptr_t)data;

    return m->data && at >= begin && at - begin <= m->size && bytes <= m->size - (at - begin);
}

void td_mapfile_advise(const struct td_mapfile *m, size_t offset, size_t bytes,
                       enum td_mapfile_hint hint)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin;

    if (!m->mapped || offset >= m->size)
        return;
    if (bytes > m->size - offset)
        bytes = m->size - offset;
    begin = offset / page * page;
    (void)madvise((void *)(uintptr_t)(m->data + begin), bytes + (offset - begin),
                  hint == TD_MAPFILE_SEQUENTIAL ? MADV_SEQUENTIAL : MADV_WILLNEED);
}

void td_mapfile_release(const struct td_mapfile *m, size_t offset, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin, end;

    if (!m->mapped || offset >= m->size)
        return;
    if (bytes > m->size - offset)
        bytes = m->size - offset;
    /* The last page of the file belongs to us alone, however little of it is used. */
    end = offset + bytes == m->size ? m->size : (offset + bytes) / page * page;
    begin = (offset + page - 1) / page * page;
    if (begin < end)
        (void)madvise((void *)(uintptr_t)(m->data + begin), end - begin, MADV_DONTNEED);
}
