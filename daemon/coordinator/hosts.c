#include "daemon/coordinator/hosts.h"

#include "kernels/base/bytes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_HOSTS = 4096, MAX_LINE = 1024, MAX_NAME = 256 };

struct host {
    char name[MAX_NAME];
    char *line; /* as it stands in the file */
    uint32_t slots;
    bool has_slots;
    uint32_t n_deaths; /* since the first of them */
    uint64_t first_death_ns, aside_until_ns;
};

struct td_hosts {
    char *path;
    struct host *host;
    uint32_t n;
    int fd; /* of the file without a name that mpirun reads in its place; -1: none */
    char fd_path[64];
};

static enum td_status add_line(struct td_hosts *h, const char *line)
{
    struct host *more = realloc(h->host, (h->n + 1) * sizeof *more), *host;
    const char *slots;

    if (!more)
        return TD_NO_MEMORY;
    h->host = more;
    host = &h->host[h->n];
    *host = (struct host){.line = strdup(line)};
    if (!host->line)
        return TD_NO_MEMORY;
    h->n++;
    (void)sscanf(line, " %255[^# \t\r\n]", host->name);
    slots = strstr(line, "slots");
    if (slots && (slots == line || slots[-1] != '_') &&
        sscanf(slots, "slots = %u", &host->slots) == 1)
        host->has_slots = true;
    return TD_OK;
}

enum td_status td_hosts_open(const char *hostfile, struct td_hosts **out, struct td_err *err)
{
    struct td_hosts *h = calloc(1, sizeof *h);
    FILE *f = fopen(hostfile, "re");
    char line[MAX_LINE], name[MAX_NAME];
    enum td_status s = TD_OK;

    if (!h || !(h->path = strdup(hostfile)))
        s = td_err_set(err, TD_NO_MEMORY, "no memory for the hosts of '%s'", hostfile);
    else if (!f)
        s = td_err_set(err, TD_IO, "--hostfile '%s' cannot be read: %s", hostfile, strerror(errno));
    if (h)
        h->fd = -1;
    while (!s && fgets(line, sizeof line, f)) {
        if (sscanf(line, " %255[^# \t\r\n]", name) != 1)
            continue;
        if (h->n == MAX_HOSTS || add_line(h, line))
            s = td_err_set(err, TD_NO_MEMORY, "'%s' names more than %u hosts", hostfile, h->n);
    }
    if (!s && h->n == 0)
        s = td_err_set(err, TD_INVALID, "--hostfile '%s' names no host", hostfile);
    if (f)
        fclose(f);
    if (s) {
        td_hosts_close(h);
        return s;
    }
    *out = h;
    return TD_OK;
}

void td_hosts_close(struct td_hosts *h)
{
    if (!h)
        return;
    if (h->fd >= 0)
        close(h->fd);
    for (uint32_t i = 0; i < h->n; i++)
        free(h->host[i].line);
    free(h->host);
    free(h->path);
    free(h);
}

/* "node1" and "node1.cluster" are one host; two with a domain each must be equal. */
static bool same_host(const char *a, const char *b)
{
    size_t na, nb;

    a = strchr(a, '@') ? strchr(a, '@') + 1 : a;
    na = strcspn(a, ".");
    nb = strcspn(b, ".");
    if (a[na] && b[nb])
        return strcasecmp(a, b) == 0;
    return na == nb && strncasecmp(a, b, na) == 0;
}

bool td_hosts_blame(struct td_hosts *hosts, const char *name, bool silent, uint64_t now_ns)
{
    bool aside = false;

    for (uint32_t i = 0; i < hosts->n; i++) {
        struct host *h = &hosts->host[i];

        if (!same_host(h->name, name))
            continue;
        if (h->n_deaths == 0 || now_ns - h->first_death_ns > TD_HOSTS_ASIDE_NS) {
            h->n_deaths = 0;
            h->first_death_ns = now_ns;
        }
        if (++h->n_deaths >= TD_HOSTS_MAX_DEATHS || silent) {
            h->aside_until_ns = now_ns + TD_HOSTS_ASIDE_NS;
            h->n_deaths = 0;
            aside = true;
        }
    }
    return aside;
}

static bool is_aside(const struct host *h, uint64_t now_ns)
{
    return h->aside_until_ns > now_ns;
}

/* The file that mpirun reads; it goes with this process. */
static enum td_status write_chosen(struct td_hosts *h, uint64_t now_ns, struct td_err *err)
{
    struct td_bytes text = {0};
    enum td_status s = TD_OK;
    int fd = memfd_create("tensord-hosts", MFD_CLOEXEC);

    for (uint32_t i = 0; !s && i < h->n; i++)
        if (!is_aside(&h->host[i], now_ns))
            s = td_bytes_append_str(&text, td_str_from(h->host[i].line));
    if (s || fd < 0 || write(fd, text.data, text.len) != (ssize_t)text.len) {
        s = td_err_set(err, s ? s : TD_IO, "a file of %u hosts cannot be made: %s", h->n,
                       strerror(errno));
        if (fd >= 0)
            close(fd);
    } else {
        if (h->fd >= 0)
            close(h->fd);
        h->fd = fd;
        snprintf(h->fd_path, sizeof h->fd_path, "/proc/%d/fd/%d", (int)getpid(), fd);
    }
    td_bytes_deinit(&text);
    return s;
}

enum td_status td_hosts_choose(struct td_hosts *h, uint32_t n_wished, uint64_t now_ns,
                               const char **hostfile, uint32_t *n_ranks, struct td_err *err)
{
    uint64_t room = 0;
    uint32_t n_aside = 0;
    enum td_status s;

    *hostfile = h->path;
    *n_ranks = n_wished;
    for (uint32_t i = 0; i < h->n; i++) {
        if (is_aside(&h->host[i], now_ns))
            n_aside++;
        else
            room += h->host[i].has_slots ? h->host[i].slots : UINT32_MAX;
    }
    if (n_aside == 0 || room == 0)
        return TD_OK;
    s = write_chosen(h, now_ns, err);
    if (s)
        return s;
    *hostfile = h->fd_path;
    *n_ranks = room < n_wished ? (uint32_t)room : n_wished;
    return TD_OK;
}
