#include "daemon/cli/scalelab.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

static const uint64_t TOOL_NS = 60000000000u; /* the longest that one call of netlab takes */

struct td_scalelab {
    struct td_scalerun *run;
    char netlab[PATH_BYTES];
    char hostfile[64]; /* "": not made */
    const char *prefix[4];
    bool is_up;
};

static enum td_status own_folder(char *out, size_t out_bytes, struct td_err *err)
{
    ssize_t n = readlink("/proc/self/exe", out, out_bytes - 1);
    char *slash;

    if (n <= 0)
        return td_err_set(err, TD_IO, "cannot read /proc/self/exe: %s", strerror(errno));
    out[n] = '\0';
    slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
    return TD_OK;
}

enum td_status td_scalelab_find(const char *program_dir, char *out, size_t out_bytes,
                                struct td_err *err)
{
    /* A build folder of the tree, one inside another, an installation. */
    static const char *const places[] = {"/../deploy/netlab/netlab", "/../../deploy/netlab/netlab",
                                         "/../share/tensord/netlab/netlab"};
    const char *named = getenv("NETLAB_COMMAND");

    if (named && *named) {
        snprintf(out, out_bytes, "%s", named);
        return access(out, X_OK) == 0
                   ? TD_OK
                   : td_err_set(err, TD_NOT_FOUND, "NETLAB_COMMAND: '%.160s' is no program: %s",
                                named, strerror(errno));
    }
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char path[PATH_BYTES];
        int n = snprintf(path, sizeof path, "%s%s", program_dir, places[i]);

        if (n > 0 && (size_t)n < sizeof path && (size_t)n < out_bytes && access(path, X_OK) == 0) {
            memcpy(out, path, (size_t)n + 1);
            return TD_OK;
        }
    }
    return td_err_set(err, TD_NOT_FOUND,
                      "netlab is neither in ../deploy/netlab, ../../deploy/netlab nor "
                      "../share/tensord/netlab beside '%.120s': name it in NETLAB_COMMAND",
                      program_dir);
}

/* One call; what it prints goes to *out. */
static enum td_status netlab(struct td_scalelab *lab, struct td_bytes *out, struct td_err *err,
                             const char *verb, const char *first, const char *second)
{
    const char *const argv[] = {lab->netlab, verb, first, first ? second : NULL, NULL};

    return td_scalerun_tool(lab->run, argv, TOOL_NS, out, err);
}

/* The switch is built with this program and lies beside it, where netlab may not look. */
static void name_switch(const char *folder)
{
    char path[PATH_BYTES];

    if ((size_t)snprintf(path, sizeof path, "%s/tensord-netlab-switch", folder) < sizeof path &&
        access(path, X_OK) == 0)
        setenv("NETLAB_SWITCH", path, 0);
}

static enum td_status write_hostfile(struct td_scalelab *lab, struct td_err *err)
{
    struct td_bytes text = {0};
    enum td_status s = netlab(lab, &text, err, "hostfile", NULL, NULL);
    int fd = -1;

    if (!s) {
        snprintf(lab->hostfile, sizeof lab->hostfile, "/tmp/tensord-hosts-XXXXXX");
        fd = mkstemp(lab->hostfile);
    }
    if (!s && (fd < 0 || write(fd, text.data, text.len) != (ssize_t)text.len))
        s = td_err_set(err, TD_IO, "cannot write a hostfile '%s': %s", lab->hostfile,
                       strerror(errno));
    if (fd >= 0)
        close(fd);
    else
        lab->hostfile[0] = '\0';
    td_bytes_deinit(&text);
    return s;
}

enum td_status td_scalelab_open(struct td_scalerun *run, uint32_t n_hosts, struct td_scalelab **out,
                                struct td_err *err)
{
    struct td_scalelab *lab = calloc(1, sizeof *lab);
    char folder[PATH_BYTES], name[16], n[16];
    struct td_bytes said = {0};
    enum td_status s;

    if (!lab)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a lab");
    lab->run = run;
    lab->prefix[0] = lab->netlab;
    lab->prefix[1] = "exec";
    lab->prefix[2] = "h0";
    s = own_folder(folder, sizeof folder, err);
    s = s ? s : td_scalelab_find(folder, lab->netlab, sizeof lab->netlab, err);
    if (!s) {
        name_switch(folder);
        snprintf(name, sizeof name, "s%u", (unsigned)getpid() % 10000000u);
        setenv("NETLAB", name, 1);
        snprintf(n, sizeof n, "%u", n_hosts);
        s = netlab(lab, &said, err, "up", n, NULL);
        lab->is_up = !s || s == TD_PEER_TIMED_OUT;
    }
    s = s ? s : write_hostfile(lab, err);
    td_bytes_deinit(&said);
    if (s) {
        (void)td_scalelab_close(lab, NULL);
        return s;
    }
    *out = lab;
    return TD_OK;
}

enum td_status td_scalelab_close(struct td_scalelab *lab, struct td_err *err)
{
    struct td_bytes said = {0};
    enum td_status s = TD_OK;

    if (!lab)
        return TD_OK;
    if (lab->is_up)
        s = netlab(lab, &said, err, "down", NULL, NULL);
    if (lab->hostfile[0])
        unlink(lab->hostfile);
    td_bytes_deinit(&said);
    free(lab);
    return s;
}

enum td_status td_scalelab_shape(struct td_scalelab *lab, const struct td_linkspec_value *delay,
                                 const struct td_linkspec_value *rate, struct td_err *err)
{
    char d[16 + TD_LINKSPEC_TEXT_BYTES], r[16 + TD_LINKSPEC_TEXT_BYTES];
    struct td_bytes said = {0};
    enum td_status s;

    snprintf(d, sizeof d, "delay=%s", delay->text);
    snprintf(r, sizeof r, "rate=%s", rate->text);
    if (delay->value > 0.0 || rate->value > 0.0)
        s = netlab(lab, &said, err, "shape", d, r);
    else
        s = netlab(lab, &said, err, "shape", "off", NULL);
    td_bytes_deinit(&said);
    return s;
}

const char *td_scalelab_hostfile(const struct td_scalelab *lab)
{
    return lab->hostfile;
}

const char *const *td_scalelab_prefix(const struct td_scalelab *lab)
{
    return lab->prefix;
}
