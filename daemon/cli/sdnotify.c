#include "daemon/cli/sdnotify.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A decimal number above 0, nothing around it. */
static bool read_number(const char *text, uint64_t *out)
{
    char *end;
    unsigned long long n;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    n = strtoull(text, &end, 10);
    *out = n;
    return errno == 0 && *end == '\0' && n > 0;
}

static enum td_status read_address(const char *text, struct td_sdnotify *n, struct td_err *err)
{
    size_t len = strlen(text);

    if ((*text != '/' && *text != '@') || len < 2)
        return td_err_set(err, TD_INVALID,
                          "NOTIFY_SOCKET is '%.120s': expected a path or @ and a name", text);
    if (len >= sizeof n->to.sun_path)
        return td_err_set(err, TD_INVALID, "NOTIFY_SOCKET has %zu bytes, expected at most %zu", len,
                          sizeof n->to.sun_path - 1);
    n->to.sun_family = AF_UNIX;
    memcpy(n->to.sun_path, text, len + 1);
    n->to_bytes = (uint32_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
    if (*text == '@') { /* a name has no NUL at its end (unix(7), abstract) */
        n->to.sun_path[0] = '\0';
        n->to_bytes--;
    }
    return TD_OK;
}

static enum td_status read_watchdog(struct td_sdnotify *n, struct td_err *err)
{
    const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    uint64_t us, of;

    if (!usec)
        return TD_OK;
    if (!read_number(usec, &us) || us > UINT64_MAX / 1000)
        return td_err_set(err, TD_INVALID,
                          "WATCHDOG_USEC is '%.40s': expected a number of microseconds", usec);
    if (pid && !read_number(pid, &of))
        return td_err_set(err, TD_INVALID, "WATCHDOG_PID is '%.40s': expected a process", pid);
    if (!pid || of == (uint64_t)getpid() || of == (uint64_t)getppid())
        n->watchdog_ns = us * 1000;
    return TD_OK;
}

enum td_status td_sdnotify_open(struct td_sdnotify *n, struct td_err *err)
{
    const char *text = getenv("NOTIFY_SOCKET");
    enum td_status s;

    *n = (struct td_sdnotify){.is_open = false};
    if (!text)
        return TD_OK;
    s = read_address(text, n, err);
    s = s ? s : read_watchdog(n, err);
    if (!s) {
        n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        n->is_open = n->fd >= 0;
        if (!n->is_open)
            s = td_err_set(err, TD_IO, "no socket for NOTIFY_SOCKET: %s", strerror(errno));
    }
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    if (s)
        *n = (struct td_sdnotify){.is_open = false};
    return s;
}

void td_sdnotify_send(const struct td_sdnotify *n, const char *lines)
{
    if (!n->is_open)
        return;
    (void)sendto(n->fd, lines, strlen(lines), MSG_NOSIGNAL, (const struct sockaddr *)&n->to,
                 n->to_bytes);
}

void td_sdnotify_close(struct td_sdnotify *n)
{
    if (n->is_open)
        close(n->fd);
    *n = (struct td_sdnotify){.is_open = false};
}
