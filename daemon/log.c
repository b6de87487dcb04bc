#include "daemon/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096 };

/* The level and the descriptor belong to the process, as stderr itself does. */
static atomic_int current_level = TD_LOG_INFO;
static atomic_int current_fd = STDERR_FILENO;

static const struct {
    const char *name;
    int priority; /* of syslog(3) */
} levels[] = {{"error", 3}, {"warn", 4}, {"info", 6}, {"debug", 7}};

void td_log_set_level(enum td_log_level level)
{
    atomic_store(&current_level, (int)level);
}

enum td_log_level td_log_get_level(void)
{
    return (enum td_log_level)atomic_load(&current_level);
}

bool td_log_level_from_name(const char *name, enum td_log_level *level)
{
    if (strcasecmp(name, "warning") == 0) {
        *level = TD_LOG_WARN;
        return true;
    }
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (strcasecmp(name, levels[i].name) == 0) {
            *level = (enum td_log_level)i;
            return true;
        }
    }
    return false;
}

void td_log_set_fd(int fd)
{
    atomic_store(&current_fd, fd);
}

static size_t put_prefix(char *line, size_t size, enum td_log_level level)
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = 0;
    if (getenv("JOURNAL_STREAM") != NULL) {
        n += (size_t)snprintf(line, size, "<%d>", levels[level].priority);
    }
    n += strftime(line + n, size - n, "%Y-%m-%dT%H:%M:%S", &utc);
    n += (size_t)snprintf(line + n, size - n, ".%03ldZ %s ", now.tv_nsec / 1000000,
                          levels[level].name);
    return n;
}

void td_log_write(enum td_log_level level, const char *fmt, ...)
{
    if ((int)level > atomic_load(&current_level)) {
        return;
    }
    char text[LINE_BYTES];
    char line[LINE_BYTES + 64];
    va_list args;
    va_start(args, fmt);
    int wanted = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (wanted < 0) {
        return;
    }
    size_t n = put_prefix(line, sizeof(line), level);
    size_t limit = sizeof(line) - 5; /* room for one escape or "...", and the newline */
    bool cut = (size_t)wanted >= sizeof(text);
    for (const char *p = text; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        if (n + 4 > limit) {
            cut = true;
            break;
        }
        if (c == '\n') {
            line[n++] = '\\';
            line[n++] = 'n';
        } else if (c < 0x20 || c == 0x7f) {
            n += (size_t)snprintf(line + n, 5, "\\x%02x", c);
        } else {
            line[n++] = (char)c;
        }
    }
    if (cut) {
        memcpy(line + n, "...", 3);
        n += 3;
    }
    line[n++] = '\n';
    /* One write per line keeps lines whole between threads. A full or closed stderr must not stop the server. */
    ssize_t written = write(atomic_load(&current_fd), line, n);
    (void)written;
}
