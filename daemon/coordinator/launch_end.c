#include "daemon/coordinator/launch_end.h"

#include "daemon/coordinator/launch.h"
#include "daemon/coordinator/launch_argv.h"
#include "daemon/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    WAIT_STEP_MS = 5,
    WAIT_MS = 1000,
    KILLED_WAIT_MS = 1000,
    MAX_LEFT = 1024,
    REMOVE_TRIES = 20
};

/* True when the process runs with TD_LAUNCH_DIR=dir in its environment. A dead one that nobody reaped yet has none. */
static bool is_marked(const char *pid, const char *mark, size_t n_mark)
{
    char path[288];
    snprintf(path, sizeof(path), "/proc/%s/environ", pid);
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return false;
    }
    char *entry = NULL;
    size_t cap = 0;
    ssize_t n;
    bool found = false;
    while (!found && (n = getdelim(&entry, &cap, '\0', f)) > 0) {
        found = (size_t)n == n_mark + 1 && memcmp(entry, mark, n_mark) == 0;
    }
    free(entry);
    fclose(f);
    return found;
}

static size_t find_marked(const char *mark, pid_t *pids, size_t cap)
{
    DIR *proc = opendir("/proc");
    size_t n = 0;
    if (proc == NULL) {
        return 0;
    }
    for (struct dirent *d; n < cap && (d = readdir(proc)) != NULL;) {
        pid_t pid = (pid_t)strtol(d->d_name, NULL, 10);
        if (pid > 0 && pid != getpid() && is_marked(d->d_name, mark, strlen(mark))) {
            pids[n++] = pid;
        }
    }
    closedir(proc);
    return n;
}

static size_t wait_for_none(const char *mark, pid_t *pids, int ms)
{
    size_t n = find_marked(mark, pids, MAX_LEFT);
    for (int waited = 0; n > 0 && waited < ms; waited += WAIT_STEP_MS) {
        nanosleep(&(struct timespec){.tv_nsec = WAIT_STEP_MS * 1000000L}, NULL);
        n = find_marked(mark, pids, MAX_LEFT);
    }
    return n;
}

void td_launch_end_processes(const char *dir)
{
    char mark[320];
    pid_t pids[MAX_LEFT];
    snprintf(mark, sizeof(mark), TD_LAUNCH_MARK "=%s", dir);
    size_t n = wait_for_none(mark, pids, WAIT_MS);
    if (n == 0) {
        return;
    }
    td_log_warn("processes outlived their launch and are killed n=%zu first_pid=%d", n,
                (int)pids[0]);
    for (size_t i = 0; i < n; i++) {
        kill(pids[i], SIGKILL);
    }
    n = wait_for_none(mark, pids, KILLED_WAIT_MS);
    if (n > 0) {
        td_log_error("processes cannot be killed n=%zu first_pid=%d", n, (int)pids[0]);
    }
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path) == 0 || errno == ENOENT ? 0 : -1;
}

void td_launch_end_remove(const char *dir)
{
    for (int i = 0; i < REMOVE_TRIES; i++) {
        /* A process in its last breath may still make a file in a directory that was just emptied: again. */
        if (nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 || access(dir, F_OK) != 0) {
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000000L}, NULL);
    }
    td_log_warn("a launch's directory cannot be removed dir=%s error=\"%s\"", dir, strerror(errno));
}

static bool is_named_so(const char *name)
{
    return strncmp(name, TD_LAUNCH_DIR_NAME, strlen(TD_LAUNCH_DIR_NAME)) == 0 &&
           strlen(name) == strlen(TD_LAUNCH_DIR_NAME) + 6;
}

bool td_launch_end_is_ours(const char *dir)
{
    const char *slash = strrchr(dir, '/');
    struct stat st;

    return dir[0] == '/' && slash != NULL && is_named_so(slash + 1) && lstat(dir, &st) == 0 &&
           S_ISDIR(st.st_mode) && st.st_uid == geteuid();
}

static bool is_stale(int fd, int min_age_s)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
           time(NULL) - st.st_ctime >= min_age_s && flock(fd, LOCK_EX | LOCK_NB) == 0;
}

/* On a host that has no coordinator nobody else holds the directory. */
void td_launch_join(void)
{
    const char *dir = getenv("OMPI_MCA_orte_tmpdir_base");
    char base[256];

    if (dir == NULL || strlen(dir) >= sizeof(base) || !td_launch_end_is_ours(dir)) {
        return;
    }
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) {
        (void)flock(fd, LOCK_SH | LOCK_NB); /* the coordinator's own host: it holds it */
    }
    snprintf(base, sizeof(base), "%.*s", (int)(strrchr(dir, '/') - dir), dir);
    td_launch_end_sweep(base, TD_LAUNCH_SWEEP_AGE_S);
}

void td_launch_end_sweep(const char *base, int min_age_s)
{
    DIR *d = opendir(base);
    if (d == NULL) {
        return;
    }
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[512];
        char mark[544];
        pid_t pid;
        if (!is_named_so(e->d_name) ||
            (size_t)snprintf(path, sizeof(path), "%s/%s", base, e->d_name) >= sizeof(path)) {
            continue;
        }
        int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        snprintf(mark, sizeof(mark), TD_LAUNCH_MARK "=%s", path);
        if (is_stale(fd, min_age_s) && find_marked(mark, &pid, 1) == 0) {
            td_log_info("removing what a dead coordinator left dir=%s", path);
            td_launch_end_remove(path);
        }
        close(fd);
    }
    closedir(d);
}
