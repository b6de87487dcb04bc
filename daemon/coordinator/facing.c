#include "daemon/coordinator/facing.h"

#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The first word of the first line that is neither blank nor a comment. */
static enum td_status first_host(const char *hostfile, char host[256], struct td_err *err)
{
    FILE *f = fopen(hostfile, "re");
    char line[1024];
    bool found = false;

    if (!f)
        return td_err_set(err, TD_IO, "--hostfile '%s' cannot be read", hostfile);
    while (!found && fgets(line, sizeof line, f))
        found = sscanf(line, " %255[^# \t\r\n]", host) == 1;
    fclose(f);
    return found ? TD_OK : td_err_set(err, TD_INVALID, "--hostfile '%s' names no host", hostfile);
}

enum td_status td_facing_address(const char *hostfile, char *out, size_t out_bytes,
                                 struct td_err *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM}, *found = NULL;
    struct sockaddr_storage local;
    socklen_t len = sizeof local;
    char host[256];
    enum td_status s = first_host(hostfile, host, err);
    int fd = -1, rc;

    if (s)
        return s;
    rc = getaddrinfo(host, "9", &hints, &found);
    if (rc)
        return td_err_set(err, TD_INVALID, "host '%s' of --hostfile '%s': %s", host, hostfile,
                          gai_strerror(rc));
    /* Connecting a datagram socket only looks the route up. */
    fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) ||
        getsockname(fd, (struct sockaddr *)&local, &len) ||
        getnameinfo((struct sockaddr *)&local, len, out, (socklen_t)out_bytes, NULL, 0,
                    NI_NUMERICHOST))
        s = td_err_set(
            err, TD_IO,
            "no address of this host reaches '%s' of --hostfile '%s': give --control-host", host,
            hostfile);
    if (fd >= 0)
        close(fd);
    freeaddrinfo(found);
    return s;
}
