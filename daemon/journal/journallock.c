#include "daemon/journal/journallock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* What the file says in front of a process's number: until the journal was opened, and from then on. */
static const char PLAIN[] = "opened by process ";
static const char MARK[] = "tensord journal, opened by process ";

/* Room that may come back, and a device that may; everything else is a wrong path. */
static enum td_status status_of(int error)
{
    return error == ENOSPC || error == EDQUOT || error == EIO || error == EMFILE ||
                   error == ENFILE || error == EFBIG
               ? TD_IO
               : TD_INVALID;
}

static enum td_status make_folders(const char *path, struct td_err *err)
{
    char *copy = strdup(path);
    enum td_status st = TD_OK;

    if (!copy)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    for (char *at = *copy ? strchr(copy + 1, '/') : NULL; !st && at; at = strchr(at + 1, '/')) {
        *at = '\0';
        if (mkdir(copy, 0700) && errno != EEXIST)
            st = td_err_set(err, status_of(errno), "journal '%s': folder '%s': %s", path, copy,
                            strerror(errno));
        *at = '/';
    }
    free(copy);
    return st;
}

/* The process that the file names; 0: none. */
static long holder_of(int fd, bool *is_marked)
{
    char text[sizeof MARK + 24] = "";
    const char *number;
    ssize_t n = pread(fd, text, sizeof text - 1, 0);

    *is_marked = n > 0 && strncmp(text, MARK, sizeof MARK - 1) == 0;
    if (!*is_marked && strncmp(text, PLAIN, sizeof PLAIN - 1) != 0)
        return 0;
    number = text + (*is_marked ? sizeof MARK : sizeof PLAIN) - 1;
    return strtol(number, NULL, 10);
}

/* TD_INVALID where the file cannot be written at all. */
static enum td_status name_holder(int fd, const char *front, struct td_err *err)
{
    char text[sizeof MARK + 24];
    int n = snprintf(text, sizeof text, "%s%ld\n", front, (long)getpid());

    errno = 0;
    if (pwrite(fd, text, (size_t)n, 0) == n && ftruncate(fd, n) == 0)
        return TD_OK;
    return td_err_set(err, status_of(errno), "a journal's lock: %s", strerror(errno));
}

void td_journallock_mark(int fd)
{
    name_holder(fd, MARK, NULL);
}

static enum td_status refuse(const char *path, long pid, struct td_err *err)
{
    char file[64], name[32] = "";
    FILE *f;

    snprintf(file, sizeof file, "/proc/%ld/comm", pid);
    f = pid > 0 ? fopen(file, "re") : NULL;
    if (f) {
        if (!fgets(name, sizeof name, f))
            name[0] = '\0';
        name[strcspn(name, "\n")] = '\0';
        fclose(f);
    }
    if (pid <= 0)
        return td_err_set(err, TD_BUSY, "journal '%s' is in use by another process", path);
    return td_err_set(err, TD_BUSY, "journal '%s' is in use by process %ld%s%s%s", path, pid,
                      name[0] ? " (" : "", name, name[0] ? ")" : "");
}

enum td_status td_journallock_open(const char *path, int *out, bool *was_there, struct td_err *err)
{
    char file[4200];
    enum td_status st = make_folders(path, err);
    bool is_marked;
    int fd;

    if (st)
        return st;
    if (!path[0] || (size_t)snprintf(file, sizeof file, "%s.lock", path) >= sizeof file)
        return td_err_set(err, TD_INVALID, "a journal's path has %zu bytes, expected 1 to %zu",
                          strlen(path), sizeof file - 6);
    fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return td_err_set(err, status_of(errno), "journal '%s': '%s': %s", path, file,
                          strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        int error = errno;

        st = error == EWOULDBLOCK ? refuse(path, holder_of(fd, &is_marked), err)
                                  : td_err_set(err, status_of(error), "journal '%s': flock: %s",
                                               path, strerror(error));
        close(fd);
        return st;
    }
    holder_of(fd, &is_marked);
    /* On a full disk only the name is missing: the lock holds. */
    if (name_holder(fd, is_marked ? MARK : PLAIN, err) == TD_INVALID) {
        close(fd);
        return TD_INVALID;
    }
    *was_there = is_marked;
    *out = fd;
    return TD_OK;
}

void td_journallock_close(int fd)
{
    if (fd >= 0)
        close(fd);
}
