/* The log sink of the process: one line per event on stderr, `ts level message key=value ...`.
 * Any thread. Only daemon/ logs, and an error once, where it is acted on. Callers never pass keys, prompts or
 * generated text; the sink escapes control bytes, so that one event is always one line. */
#ifndef TD_DAEMON_LOG_H
#define TD_DAEMON_LOG_H

#include <stdbool.h>

enum td_log_level { TD_LOG_ERROR = 0, TD_LOG_WARN, TD_LOG_INFO, TD_LOG_DEBUG };

/* Lines above `level` are dropped; TD_LOG_INFO at start. Any thread, at any time. */
void td_log_set_level(enum td_log_level level);
enum td_log_level td_log_get_level(void);
/* "error", "warn" or "warning", "info", "debug", whatever the case; false when there is no such level. */
bool td_log_level_from_name(const char *name, enum td_log_level *level);
/* Where lines go; stderr (2) at start. For tests. The descriptor is borrowed. */
void td_log_set_fd(int fd);

/* One event: a short lower-case message, then key=value pairs, printf style. A value that may hold spaces is written
 * in double quotes by the caller: td_log_warn("rank lost rank=%d error=\"%s\"", rank, text). A line longer than
 * 4 KiB is cut and ends in "...". Under systemd (JOURNAL_STREAM is set) a line begins with its syslog priority. */
void td_log_write(enum td_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define td_log_error(...) td_log_write(TD_LOG_ERROR, __VA_ARGS__)
#define td_log_warn(...) td_log_write(TD_LOG_WARN, __VA_ARGS__)
#define td_log_info(...) td_log_write(TD_LOG_INFO, __VA_ARGS__)
#define td_log_debug(...) td_log_write(TD_LOG_DEBUG, __VA_ARGS__)

#endif
