#include "daemon/cli/netpath.h"

#include "daemon/engine/verdict.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TCP_ESTABLISHED_STATE = 1, MAX_INODES = 1024 };

/* A path counts as slower when another carries half as much again. */
static const double FASTER = 1.5;

const char *td_netpath_text(const struct td_netpath_ip *ip, char out[TD_NETPATH_TEXT])
{
    if (!inet_ntop(ip->family == 4 ? AF_INET : AF_INET6, ip->bytes, out, TD_NETPATH_TEXT))
        snprintf(out, TD_NETPATH_TEXT, "?");
    return out;
}

/* ---- This host ---- */

static bool take_ip(const struct sockaddr *addr, struct td_netpath_ip *out)
{
    *out = (struct td_netpath_ip){0};
    if (addr->sa_family == AF_INET) {
        out->family = 4;
        memcpy(out->bytes, &((const struct sockaddr_in *)(const void *)addr)->sin_addr, 4);
    } else if (addr->sa_family == AF_INET6) {
        out->family = 6;
        memcpy(out->bytes, &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr, 16);
    }
    return out->family != 0;
}

/* 169.254.0.0/16 and fe80::/10. */
static bool is_link_local(const struct td_netpath_ip *ip)
{
    return ip->family == 4 ? ip->bytes[0] == 169 && ip->bytes[1] == 254
                           : ip->bytes[0] == 0xfe && (ip->bytes[1] & 0xc0) == 0x80;
}

static uint8_t count_prefix(const struct td_netpath_ip *mask)
{
    uint8_t bits = 0;

    for (unsigned i = 0; i < 16; i++)
        bits = (uint8_t)(bits + __builtin_popcount(mask->bytes[i]));
    return bits;
}

static uint32_t read_speed(const char *interface)
{
    char path[64];
    long speed = 0;
    FILE *f;

    snprintf(path, sizeof path, "/sys/class/net/%.15s/speed", interface);
    f = fopen(path, "re");
    if (f && fscanf(f, "%ld", &speed) != 1)
        speed = 0;
    if (f)
        fclose(f);
    return speed > 0 && speed < UINT32_MAX ? (uint32_t)speed : 0;
}

enum td_status td_netpath_read_host(struct td_netpath_host *out, struct td_err *err)
{
    struct ifaddrs *all;

    memset(out, 0, sizeof *out);
    if (getifaddrs(&all) != 0)
        return td_err_set(err, TD_IO, "cannot list the network's interfaces: %s", strerror(errno));
    for (const struct ifaddrs *i = all; i && out->n < TD_NETPATH_MAX_ADDRESSES; i = i->ifa_next) {
        struct td_netpath_address *a = &out->addresses[out->n];
        struct td_netpath_ip mask;

        if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK) ||
            !take_ip(i->ifa_addr, &a->ip) || is_link_local(&a->ip) || !i->ifa_netmask ||
            !take_ip(i->ifa_netmask, &mask))
            continue;
        snprintf(a->interface, sizeof a->interface, "%s", i->ifa_name);
        a->prefix_bits = count_prefix(&mask);
        a->speed_mbits = read_speed(i->ifa_name);
        out->n++;
    }
    freeifaddrs(all);
    return TD_OK;
}

/* ---- This process's connections ---- */

/* "0100007F" is 127.0.0.1 on a little-endian machine: words of 32 bits as the CPU has them. */
static bool parse_ip(const char *hex, size_t n, struct td_netpath_ip *out)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    *out = (struct td_netpath_ip){.family = n == 8 ? 4 : 6};
    if (n != 8 && n != 32)
        return false;
    for (size_t word = 0; word < n / 8; word++) {
        char text[9], *end;
        uint32_t value;

        memcpy(text, hex + 8 * word, 8);
        text[8] = '\0';
        value = (uint32_t)strtoul(text, &end, 16);
        if (*end)
            return false;
        memcpy(out->bytes + 4 * word, &value, 4);
    }
    if (n == 32 && memcmp(out->bytes, mapped, sizeof mapped) == 0) {
        memmove(out->bytes, out->bytes + 12, 4);
        memset(out->bytes + 4, 0, 12);
        out->family = 4;
    }
    return true;
}

bool td_netpath_parse_socket(const char *line, struct td_netpath_socket *out)
{
    char local[33], remote[33];
    unsigned state;
    unsigned long long inode;

    if (sscanf(line,
               " %*u: %32[0-9A-Fa-f]:%*x %32[0-9A-Fa-f]:%*x %x %*x:%*x %*x:%*x %*x %*u %*u %llu",
               local, remote, &state, &inode) != 4)
        return false;
    out->inode = inode;
    out->is_established = state == TCP_ESTABLISHED_STATE;
    return parse_ip(local, strlen(local), &out->local) &&
           parse_ip(remote, strlen(remote), &out->remote);
}

/* The sockets among this process's descriptors. */
static uint32_t own_inodes(uint64_t *inodes, uint32_t cap)
{
    const struct dirent *entry;
    DIR *dir = opendir("/proc/self/fd");
    uint32_t n = 0;

    while (dir && n < cap && (entry = readdir(dir)) != NULL) {
        char path[300], target[64];
        unsigned long long inode;
        ssize_t len;

        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        len = readlink(path, target, sizeof target - 1);
        if (len <= 0)
            continue;
        target[len] = '\0';
        if (sscanf(target, "socket:[%llu]", &inode) == 1)
            inodes[n++] = inode;
    }
    if (dir)
        closedir(dir);
    return n;
}

static bool same_ip(const struct td_netpath_ip *a, const struct td_netpath_ip *b)
{
    return a->family == b->family && memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

static bool has_inode(const uint64_t *inodes, uint32_t n, uint64_t inode)
{
    for (uint32_t i = 0; i < n; i++)
        if (inodes[i] == inode)
            return true;
    return false;
}

static uint32_t add_connection(struct td_netpath_connection *out, uint32_t n, uint32_t cap,
                               const struct td_netpath_socket *s)
{
    for (uint32_t i = 0; i < n; i++)
        if (same_ip(&out[i].local, &s->local) && same_ip(&out[i].remote, &s->remote))
            return n;
    if (n < cap)
        out[n++] = (struct td_netpath_connection){.local = s->local, .remote = s->remote};
    return n;
}

uint32_t td_netpath_connections(struct td_netpath_connection *out, uint32_t cap)
{
    static const char *const tables[] = {"/proc/self/net/tcp", "/proc/self/net/tcp6"};
    uint64_t inodes[MAX_INODES];
    uint32_t n_inodes = own_inodes(inodes, MAX_INODES), n = 0;

    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++) {
        FILE *f = fopen(tables[t], "re");
        struct td_netpath_socket socket;
        char line[512];

        while (f && fgets(line, sizeof line, f))
            if (td_netpath_parse_socket(line, &socket) && socket.is_established &&
                has_inode(inodes, n_inodes, socket.inode))
                n = add_connection(out, n, cap, &socket);
        if (f)
            fclose(f);
    }
    return n;
}

/* ---- Between two hosts ---- */

static bool same_network(const struct td_netpath_address *a, const struct td_netpath_address *b)
{
    unsigned bits = a->prefix_bits;

    if (a->ip.family != b->ip.family || a->prefix_bits != b->prefix_bits ||
        same_ip(&a->ip, &b->ip)) /* bridges of containers: the same address on every host */
        return false;
    for (unsigned i = 0; i < 16 && bits > 0; i++, bits -= bits < 8 ? bits : 8) {
        unsigned mask = bits >= 8 ? 0xff : 0xff00u >> bits & 0xff;

        if ((a->ip.bytes[i] ^ b->ip.bytes[i]) & mask)
            return false;
    }
    return true;
}

static uint32_t find_address(const struct td_netpath_host *host, const struct td_netpath_ip *ip)
{
    uint32_t i = 0;

    while (i < host->n && !same_ip(&host->addresses[i].ip, ip))
        i++;
    return i;
}

/* The path over the same two interfaces, or n. */
static uint32_t find_path(const struct td_netpath_host *a, const struct td_netpath_host *b,
                          const struct td_netpath *paths, uint32_t n, uint32_t ia, uint32_t ib)
{
    uint32_t p = 0;

    while (p < n && (strcmp(a->addresses[paths[p].a].interface, a->addresses[ia].interface) != 0 ||
                     strcmp(b->addresses[paths[p].b].interface, b->addresses[ib].interface) != 0))
        p++;
    return p;
}

static uint32_t add_path(const struct td_netpath_host *a, const struct td_netpath_host *b,
                         struct td_netpath *paths, uint32_t n, uint32_t ia, uint32_t ib,
                         bool is_used)
{
    uint32_t p = find_path(a, b, paths, n, ia, ib);

    if (p == n && n < TD_NETPATH_MAX_PATHS)
        paths[n++] = (struct td_netpath){.a = ia, .b = ib};
    if (p < n)
        paths[p].is_used = paths[p].is_used || is_used;
    return n;
}

uint32_t td_netpath_find(const struct td_netpath_host *a, const struct td_netpath_host *b,
                         const struct td_netpath_connection *used, uint32_t n_used,
                         struct td_netpath *paths)
{
    uint32_t n = 0;

    for (uint32_t u = 0; u < n_used; u++) {
        uint32_t ia = find_address(a, &used[u].local), ib = find_address(b, &used[u].remote);

        if (ia < a->n && ib < b->n)
            n = add_path(a, b, paths, n, ia, ib, true);
    }
    for (unsigned family = 4; family <= 6; family += 2)
        for (uint32_t ia = 0; ia < a->n; ia++)
            for (uint32_t ib = 0; ib < b->n; ib++)
                if (a->addresses[ia].ip.family == family &&
                    same_network(&a->addresses[ia], &b->addresses[ib]))
                    n = add_path(a, b, paths, n, ia, ib, false);
    return n;
}

/* ---- The verdict ---- */

/* "eth0 10.0.0.1 - eth0 10.0.0.2 (25 us, 1.20 GB/s)". Returns out. */
static const char *path_text(const struct td_netpath_host *a, const struct td_netpath_host *b,
                             const struct td_netpath *p, char *out, size_t out_bytes)
{
    const struct td_netpath_address *x = &a->addresses[p->a], *y = &b->addresses[p->b];
    char from[TD_NETPATH_TEXT], to[TD_NETPATH_TEXT], speed[64] = "";

    if (p->answers)
        snprintf(speed, sizeof speed, " (%.0f us, %.3f GB/s)", (double)p->latency_ns * 1e-3,
                 p->bytes_per_second * 1e-9);
    snprintf(out, out_bytes, "%s %s - %s %s%s", x->interface, td_netpath_text(&x->ip, from),
             y->interface, td_netpath_text(&y->ip, to), speed);
    return out;
}

static const struct td_netpath *fastest(const struct td_netpath *paths, uint32_t n)
{
    const struct td_netpath *best = NULL;

    for (uint32_t i = 0; i < n; i++)
        if (paths[i].answers && (!best || paths[i].bytes_per_second > best->bytes_per_second))
            best = &paths[i];
    return best;
}

/* The slowest of those that MPI uses; one that was not measured only where there is no other. */
static const struct td_netpath *slowest_used(const struct td_netpath *paths, uint32_t n)
{
    const struct td_netpath *worst = NULL;

    for (uint32_t i = 0; i < n; i++)
        if (paths[i].is_used &&
            (!worst || (paths[i].answers &&
                        (!worst->answers || paths[i].bytes_per_second < worst->bytes_per_second))))
            worst = &paths[i];
    return worst;
}

const char *td_netpath_network(const struct td_netpath_address *a, char out[TD_NETPATH_TEXT + 4])
{
    struct td_netpath_ip ip = a->ip;
    char text[TD_NETPATH_TEXT];

    for (unsigned bit = a->prefix_bits; bit < 128; bit++)
        ip.bytes[bit / 8] = (uint8_t)(ip.bytes[bit / 8] & ~(0x80u >> bit % 8));
    snprintf(out, TD_NETPATH_TEXT + 4, "%s/%u", td_netpath_text(&ip, text), a->prefix_bits);
    return out;
}

const char *td_netpath_choice(char *out, size_t out_bytes)
{
    static const char *const names[] = {"OMPI_MCA_btl_tcp_if_include",
                                        "OMPI_MCA_btl_tcp_if_exclude"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);

        if (!value || !*value)
            continue;
        snprintf(out, out_bytes, "%s=%s", names[i], value);
        return out;
    }
    return NULL;
}

/* A network that both hosts claim and that carries nothing: MPI, left to itself, may wait for it. */
static void judge_silent(const struct td_netpath_case *c, struct td_verdict_report *report)
{
    char text[160];

    for (uint32_t i = 0; i < c->n; i++) {
        const struct td_netpath *p = &c->paths[i];
        bool matters = p->is_used || !c->choice;

        if (p->is_measured && !p->answers)
            td_verdict_add(report, matters ? TD_VERDICT_WARNING : TD_VERDICT_OK, "network",
                           c->where, "%s does not answer on TCP%s",
                           path_text(c->a, c->b, p, text, sizeof text),
                           matters ? ": leave it out with OMPI_MCA_btl_tcp_if_include, or open "
                                     "the firewall"
                                   : "; MPI was told what to use");
    }
}

/* A slow path where a faster one answers: MPI deals its messages out over all that it uses. */
static void judge_slow(const struct td_netpath_case *c, const struct td_netpath *used,
                       const struct td_netpath *best, struct td_verdict_report *report)
{
    char used_text[160], best_text[160], network[TD_NETPATH_TEXT + 4];

    td_verdict_add(report, TD_VERDICT_WARNING, "network", c->where,
                   "MPI uses %s%s %s%s: set OMPI_MCA_btl_tcp_if_include=%s%s%s",
                   path_text(c->a, c->b, used, used_text, sizeof used_text),
                   best->is_used ? " beside" : ", and",
                   path_text(c->a, c->b, best, best_text, sizeof best_text),
                   best->is_used ? ", which is faster" : " is faster",
                   td_netpath_network(&c->a->addresses[best->a], network),
                   c->choice ? " instead of " : "", c->choice ? c->choice : "");
}

void td_netpath_judge(const struct td_netpath_case *c, struct td_verdict_report *report)
{
    const struct td_netpath *best = fastest(c->paths, c->n), *used = slowest_used(c->paths, c->n);
    const char *choice = c->choice ? c->choice : "MPI was told nothing";
    uint32_t n_answer = 0;
    char text[160] = "";

    for (uint32_t i = 0; i < c->n; i++)
        n_answer += c->paths[i].answers;
    if (!used)
        td_verdict_add(report, TD_VERDICT_OK, "network", c->where,
                       "MPI has no TCP connection between them (%s)%s%s", choice,
                       best ? "; the fastest that answers is " : "",
                       best ? path_text(c->a, c->b, best, text, sizeof text) : "");
    else if (best && best != used && used->answers &&
             best->bytes_per_second > FASTER * used->bytes_per_second)
        judge_slow(c, used, best, report);
    else
        td_verdict_add(report, TD_VERDICT_OK, "network", c->where, "MPI uses %s%s",
                       path_text(c->a, c->b, used, text, sizeof text),
                       n_answer > 1 ? "; none that answers is faster" : "");
    judge_silent(c, report);
}
