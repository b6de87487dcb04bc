#include "shard/outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum td_status failed(const struct td_outfile *f, const char *what, struct td_err *err)
{
    return td_err_set(err, TD_IO, "cannot %s '%s': %s", what, f->path, strerror(errno));
}

enum td_status td_outfile_init(struct td_outfile *f, const char *path, uint64_t size,
                               struct td_err *err)
{
    enum td_status st;

    *f = (struct td_outfile){.fd = -1};
    f->path = strdup(path);
    if (!f->path || asprintf(&f->partial, "%s.partial-%ld", path, (long)getpid()) < 0) {
        f->partial = NULL;
        st = td_err_set(err, TD_NO_MEMORY, "no memory for a path");
        goto fail;
    }
    f->fd = open(f->partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        st = failed(f, "create", err);
        free(f->partial); /* not ours to remove */
        f->partial = NULL;
        goto fail;
    }
    if (size > INT64_MAX || ftruncate(f->fd, (off_t)size) != 0) {
        errno = size > INT64_MAX ? EFBIG : errno;
        st = failed(f, "make room in", err);
        goto fail;
    }
    return TD_OK;
fail:
    td_outfile_deinit(f);
    return st;
}

enum td_status td_outfile_write(const struct td_outfile *f, uint64_t offset, const void *data,
                                size_t bytes, struct td_err *err)
{
    const char *at = data;

    while (bytes > 0) {
        ssize_t n = pwrite(f->fd, at, bytes, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n == 0 ? ENOSPC : errno;
            return failed(f, "write", err);
        }
        at += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return TD_OK;
}

enum td_status td_outfile_commit(struct td_outfile *f, struct td_err *err)
{
    int fd = f->fd;

    if (fsync(fd) != 0 && errno != EINVAL) /* EINVAL: a file system that has no such thing */
        return failed(f, "write", err);
    f->fd = -1;
    if (close(fd) != 0)
        return failed(f, "close", err);
    if (rename(f->partial, f->path) != 0)
        return failed(f, "create", err);
    free(f->partial);
    f->partial = NULL;
    return TD_OK;
}

void td_outfile_deinit(struct td_outfile *f)
{
    if (f->fd >= 0 && f->path)
        close(f->fd);
    if (f->partial)
        unlink(f->partial);
    free(f->partial);
    free(f->path);
    *f = (struct td_outfile){.fd = -1};
}
