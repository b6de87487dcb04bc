#include "daemon/coordinator/launch_argv.h"

#include "daemon/coordinator/launch_end.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

enum { MAX_ARGS = 128, MAX_DIR_BASE = 48 };

/* ---- The directory ---- */

static bool try_dir(const char *base, char *dir, size_t dir_bytes, int *lock)
{
    if (base == NULL || base[0] != '/' ||
        (size_t)snprintf(dir, dir_bytes, "%s/" TD_LAUNCH_DIR_NAME "XXXXXX", base) >= dir_bytes ||
        mkdtemp(dir) == NULL) {
        return false;
    }
    *lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock >= 0) {
        flock(*lock, LOCK_EX | LOCK_NB);
    }
    td_launch_end_sweep(base, TD_LAUNCH_SWEEP_AGE_S);
    return true;
}

/* Open MPI puts Unix sockets below the directory, whose paths may have 107 bytes: a long base is passed over. */
static const char *short_path(const char *path)
{
    return path != NULL && strlen(path) <= MAX_DIR_BASE ? path : NULL;
}

enum td_status td_launch_argv_make_dir(const struct td_launch_params *params, char *dir,
                                       size_t dir_bytes, int *lock, struct td_err *err)
{
    if (params->tmp_base != NULL) {
        return try_dir(params->tmp_base, dir, dir_bytes, lock)
                   ? TD_OK
                   : td_err_set(err, TD_IO, "cannot make a directory in '%s': %s", params->tmp_base,
                                strerror(errno));
    }
    /* Other hosts make the same path, and they have no login session of ours. */
    const char *run = params->hostfile == NULL ? short_path(getenv("XDG_RUNTIME_DIR")) : NULL;
    if (try_dir(run, dir, dir_bytes, lock) || try_dir("/dev/shm", dir, dir_bytes, lock) ||
        try_dir(short_path(getenv("TMPDIR")), dir, dir_bytes, lock) ||
        try_dir("/tmp", dir, dir_bytes, lock)) {
        return TD_OK;
    }
    return td_err_set(err, TD_IO,
                      "cannot make a directory in XDG_RUNTIME_DIR, /dev/shm, TMPDIR or /tmp: %s",
                      strerror(errno));
}

/* ---- The command line ---- */

struct builder {
    struct td_launch_argv *argv;
    bool failed;
};

static void add(struct builder *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct builder *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char *text = NULL;
    if (b->argv->n_args + 1 >= MAX_ARGS || vasprintf(&text, fmt, args) < 0) {
        b->failed = true;
    } else {
        b->argv->args[b->argv->n_args++] = text;
    }
    va_end(args);
}

/* An MCA choice, unless the user made it himself. */
static void add_mca(struct builder *b, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void add_mca(struct builder *b, const char *name, const char *fmt, ...)
{
    char variable[96];
    char value[320];
    va_list args;
    snprintf(variable, sizeof(variable), "OMPI_MCA_%s", name);
    if (getenv(variable) != NULL) {
        return;
    }
    va_start(args, fmt);
    vsnprintf(value, sizeof(value), fmt, args);
    va_end(args);
    add(b, "--mca");
    add(b, "%s", name);
    add(b, "%s", value);
}

/* Physical cores that this process may use: of the threads of one core only the first counts. */
static uint32_t count_cores(void)
{
    cpu_set_t set;
    uint32_t n = 0;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) {
        return 1;
    }
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[96];
        unsigned first = cpu;
        if (!CPU_ISSET(cpu, &set)) {
            continue;
        }
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list",
                 cpu);
        FILE *f = fopen(path, "re");
        if (f != NULL) {
            if (fscanf(f, "%u", &first) != 1) {
                first = cpu;
            }
            fclose(f);
        }
        n += first == cpu || !CPU_ISSET(first, &set);
    }
    return n > 0 ? n : 1;
}

static bool port_is_free(uint16_t port)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)}; /* IPv4 too */
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;
    int rc;
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        rc = bind(fd, (struct sockaddr *)&any, sizeof(any));
    } else {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            return false;
        }
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        rc = bind(fd, (struct sockaddr *)&any4, sizeof(any4));
    }
    close(fd);
    return rc == 0;
}

/* mpirun listens on every address whatever it is told; so at least on a port that is known. Each launch begins with the
 * next one: on a host that was cut off, the daemon of the launch before may still hold its own. */
static void add_ports(struct builder *b, const struct td_launch_params *p)
{
    uint16_t base = p->port_base != 0 ? p->port_base : TD_LAUNCH_PORT_BASE;
    for (uint16_t i = 0; i < TD_LAUNCH_OOB_PORTS; i++) {
        int port = base + (int)((p->generation + i) % TD_LAUNCH_OOB_PORTS);

        if (port_is_free((uint16_t)port)) {
            add_mca(b, "oob_tcp_static_ipv4_ports", "%d", port);
            add_mca(b, "oob_tcp_static_ipv6_ports", "%d", port);
            break;
        }
    }
    if (p->hostfile != NULL) {
        add_mca(b, "btl_tcp_port_min_v4", "%d", base + TD_LAUNCH_OOB_PORTS);
        add_mca(b, "btl_tcp_port_range_v4", "%d", TD_LAUNCH_RANK_PORTS);
        add_mca(b, "btl_tcp_port_min_v6", "%d", base + TD_LAUNCH_OOB_PORTS);
        add_mca(b, "btl_tcp_port_range_v6", "%d", TD_LAUNCH_RANK_PORTS);
    }
}

/* Ranks divide a host's cores among themselves, whoever starts them (daemon/engine/hostshare.c). */
static void add_placement(struct builder *b, const struct td_launch_params *p)
{
    if (p->hostfile != NULL) {
        add(b, "--hostfile");
        add(b, "%s", p->hostfile);
    } else if (p->n_ranks > count_cores()) {
        add(b, "--oversubscribe");
    }
    add(b, "--bind-to");
    add(b, "none");
}

static void add_mca_choices(struct builder *b, const struct td_launch_params *p, const char *dir)
{
    /* Without these Open MPI probes every fabric library it was built with: a fifth of a second. */
    add_mca(b, "pml", "ob1");
    add_mca(b, "btl", p->hostfile != NULL ? "self,vader,tcp" : "self,vader");
    add_mca(b, "osc", "^ucx");
    add_mca(b, "mpi_yield_when_idle", "1");
    /* Ranks are killed at once, not after a second of grace. */
    add_mca(b, "odls_base_sigkill_timeout", "0");
    /* All files in one place, so that a killed group leaves nothing behind. */
    add_mca(b, "orte_tmpdir_base", "%s", dir);
    add_mca(b, "btl_vader_backing_directory", "%s", dir);
    /* A host that fell silent is noticed within seconds; the default is eight minutes. */
    add_mca(b, "oob_tcp_keepalive_time", "2");
    add_mca(b, "oob_tcp_keepalive_intvl", "1");
    add_mca(b, "oob_tcp_keepalive_probes", "3");
    add_ports(b, p);
}

static void add_worker(struct builder *b, const struct td_launch_params *p, const char *self)
{
    add(b, "%s", p->program != NULL ? p->program : self);
    add(b, "%s", p->command != NULL ? p->command : "worker");
    if (p->command == NULL) {
        add(b, "--coordinator");
        add(b, "%s", p->coordinator);
        add(b, "--generation");
        add(b, "%u", p->generation);
    }
    if (p->cluster_key.len > 0) {
        add(b, "--cluster-key-file");
        add(b, "-");
    }
    for (size_t i = 0; p->worker_args != NULL && p->worker_args[i] != NULL; i++) {
        add(b, "%s", p->worker_args[i]);
    }
}

/* Full path of `name`, looked up in PATH when it has no slash. */
static bool find_program(const char *name, char *out, size_t out_bytes)
{
    if (strchr(name, '/') != NULL) {
        snprintf(out, out_bytes, "%s", name);
        return access(out, X_OK) == 0;
    }
    const char *path = getenv("PATH");
    for (const char *at = path != NULL ? path : "/usr/local/bin:/usr/bin:/bin"; *at != '\0';) {
        size_t n = strcspn(at, ":");
        struct stat st;
        if (n > 0 && (size_t)snprintf(out, out_bytes, "%.*s/%s", (int)n, at, name) < out_bytes &&
            stat(out, &st) == 0 && S_ISREG(st.st_mode) && access(out, X_OK) == 0) {
            return true;
        }
        at += n + (at[n] == ':');
    }
    return false;
}

/* The coordinator's environment without its clients' keys, with the launch's mark. */
static void copy_env(struct builder *b, const char *dir)
{
    size_t n = 0;
    while (environ[n] != NULL) {
        n++;
    }
    b->argv->env = calloc(n + 2, sizeof(char *));
    if (b->argv->env == NULL) {
        b->failed = true;
        return;
    }
    for (size_t i = 0; i <= n; i++) {
        char *copy = NULL;
        if (i == n) {
            if (asprintf(&copy, TD_LAUNCH_MARK "=%s", dir) < 0) {
                copy = NULL;
            }
        } else if (strncmp(environ[i], "TENSORD_API_KEY", 15) == 0 ||
                   strncmp(environ[i], TD_LAUNCH_MARK "=", sizeof(TD_LAUNCH_MARK)) == 0) {
            continue;
        } else {
            copy = strdup(environ[i]);
        }
        if (copy == NULL) {
            b->failed = true;
            return;
        }
        b->argv->env[b->argv->n_env++] = copy;
    }
}

enum td_status td_launch_argv_init(struct td_launch_argv *argv,
                                   const struct td_launch_params *params, const char *dir,
                                   struct td_err *err)
{
    const char *name = params->mpirun != NULL ? params->mpirun : "mpirun";
    char mpirun[4096];
    char self[4096];
    struct builder b = {argv, false};
    memset(argv, 0, sizeof(*argv));
    if (params->command == NULL && (params->n_ranks == 0 || params->coordinator == NULL)) {
        return td_err_set(err, TD_INVALID,
                          "a launch wants at least one rank and a coordinator's address");
    }
    if (params->n_ranks == 0 && params->hostfile == NULL) {
        return td_err_set(err, TD_INVALID, "a launch without a hostfile wants at least one rank");
    }
    if (!find_program(name, mpirun, sizeof(mpirun))) {
        return td_err_set(err, TD_NOT_FOUND, TD_LAUNCH_NO_MPIRUN, name);
    }
    if (params->hostfile != NULL && access(params->hostfile, R_OK) != 0) {
        return td_err_set(err, TD_INVALID, "hostfile '%s': %s", params->hostfile, strerror(errno));
    }
    ssize_t n_self = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n_self <= 0 && params->program == NULL) {
        return td_err_set(err, TD_IO, "cannot read /proc/self/exe: %s", strerror(errno));
    }
    self[n_self > 0 ? n_self : 0] = '\0';
    argv->args = calloc(MAX_ARGS, sizeof(char *));
    if (argv->args == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a command line");
    }
    for (size_t i = 0; params->prefix != NULL && params->prefix[i] != NULL; i++) {
        add(&b, "%s", params->prefix[i]);
    }
    add(&b, "%s", mpirun);
    if (params->n_ranks > 0) {
        add(&b, "-n");
        add(&b, "%u", params->n_ranks);
    }
    if (geteuid() == 0) {
        add(&b, "--allow-run-as-root");
    }
    if (params->on_output == NULL) {
        add(&b, "--tag-output");
    }
    add_placement(&b, params);
    add_mca_choices(&b, params, dir);
    add_worker(&b, params, self);
    copy_env(&b, dir);
    if (b.failed) {
        td_launch_argv_deinit(argv);
        return td_err_set(err, TD_NO_MEMORY,
                          "no memory for a command line, or more than %d arguments", MAX_ARGS);
    }
    return TD_OK;
}

void td_launch_argv_deinit(struct td_launch_argv *argv)
{
    for (size_t i = 0; i < argv->n_args; i++) {
        free(argv->args[i]);
    }
    for (size_t i = 0; i < argv->n_env; i++) {
        free(argv->env[i]);
    }
    free(argv->args);
    free(argv->env);
    memset(argv, 0, sizeof(*argv));
}
