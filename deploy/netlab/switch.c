/* tensord-netlab-switch: the lab's Ethernet switch, for what a kernel without netem cannot do to a link.
 * It owns one packet socket per port and one control socket, on one thread, and knows no IP. The NIC of host K has the
 * address 02:6e:6c:00:00:KK and hangs on port K, so there is nothing to learn. README.md says how it is used. */
#include "deploy/netlab/linkrules.h"
#include "deploy/netlab/transit.h"
#include "kernels/base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER_BYTES =
        sizeof(struct virtio_net_hdr), /* before each frame: what the NIC would still have to do */
    FRAME_BYTES =
        HEADER_BYTES + 80 * 1024, /* the kernel's own frames have up to 64 KiB and headers */
    TEXT_BYTES = 64 * 1024,
    SOCKET_BYTES = 32 << 20, /* the kernel's buffers per port, each way */
    BATCH_FRAMES = 64,       /* taken from one port before the others have their turn */
    WIRE_EXTRA_BYTES = 24,   /* of each packet on a wire: preamble 8, check sequence 4, gap 12 */
    MIN_LEAD_NS = 5000,
    MAX_LEAD_NS = 100000,
};

#define MAX_STAMP_AGE_NS 50000000u /* an older one is of a stopped process and no measure */

struct port {
    int fd; /* -1: there is no such port */
    unsigned index;
    char name[TD_LINKRULES_NAME_BYTES];
    uint64_t received;
    uint64_t refused; /* the interface took no frame: down, or its queue is full */
    uint64_t overrun; /* the kernel had no room for what came in */
};

struct lab_switch {
    struct port ports[TD_TRANSIT_PORTS];
    struct td_transit *transit;
    int control;
    uint64_t
        lead_ns; /* how late a sleep ends, as far as seen: it is begun so much earlier, and the rest is spun */
    unsigned char frame[FRAME_BYTES];
    char text[TEXT_BYTES];
};

static volatile sig_atomic_t ended;

static void on_signal(int number)
{
    (void)number;
    ended = 1;
}

static uint64_t realtime_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- Ports ---- */

static void port_close(struct port *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
    p->index = 0;
}

static enum td_status port_setup(int fd, unsigned index, struct td_err *err)
{
    const struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)index};
    const int one = 1, bytes = SOCKET_BYTES;

    /* Frames keep their offload header, so that what the kernel hands over in one piece crosses in one piece. */
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) ||
        setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) ||
        setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) ||
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one) ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) ||
        bind(fd, (const struct sockaddr *)&address, sizeof address))
        return td_err_set(err, TD_IO, "%s", strerror(errno));
    return TD_OK;
}

/* Opens, keeps or closes the port, so that it is the interface of that name. */
static enum td_status port_use(struct port *p, const char *name, struct td_err *err)
{
    unsigned index = name[0] != '\0' ? if_nametoindex(name) : 0;
    enum td_status status;

    if (index != 0 && index == p->index && strcmp(p->name, name) == 0)
        return TD_OK;
    port_close(p);
    if (name[0] == '\0')
        return TD_OK;
    if (index == 0)
        return td_err_set(err, TD_NOT_FOUND, "there is no interface '%s' here", name);
    p->fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    status = p->fd >= 0 ? port_setup(p->fd, index, err)
                        : td_err_set(err, TD_IO, "packet socket: %s", strerror(errno));
    if (status) {
        port_close(p);
        return td_err_context(err, "interface '%s'", name);
    }
    p->index = index;
    snprintf(p->name, sizeof p->name, "%s", name);
    return TD_OK;
}

static void port_send(struct port *p, const struct td_frame *f)
{
    if (p->fd < 0 || send(p->fd, f->data, f->len, MSG_DONTWAIT) < 0)
        p->refused++;
}

/* Bytes that a frame takes on a wire: one that the NIC would still cut into segments takes its headers once for each. */
static size_t wire_bytes(const unsigned char *frame, size_t len)
{
    struct virtio_net_hdr header;
    size_t bytes = len - HEADER_BYTES, n_packets = 1;

    memcpy(&header, frame, sizeof header);
    if (header.gso_type != VIRTIO_NET_HDR_GSO_NONE && header.gso_size > 0 &&
        header.hdr_len < bytes) {
        n_packets = (bytes - header.hdr_len + header.gso_size - 1) / header.gso_size;
        bytes += (n_packets - 1) * header.hdr_len;
    }
    return bytes + n_packets * WIRE_EXTRA_BYTES;
}

/* When the kernel got the frame, on our clock: the time that this process took to wake up counts as delay. */
static uint64_t stamp_of(struct msghdr *message)
{
    const uint64_t now_ns = td_clock_now_ns();

    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        struct timespec t;
        uint64_t stamp_ns, real_ns;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS)
            continue;
        memcpy(&t, CMSG_DATA(c), sizeof t);
        stamp_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
        real_ns = realtime_ns();
        if (stamp_ns < real_ns && real_ns - stamp_ns < MAX_STAMP_AGE_NS)
            return now_ns - (real_ns - stamp_ns);
    }
    return now_ns;
}

/* A frame for one host goes to its port, all others to every port but the one they came from. */
static void forward(struct lab_switch *s, uint32_t from, size_t len, uint64_t at_ns)
{
    static const unsigned char prefix[5] = {0x02, 0x6e, 0x6c, 0, 0};
    const unsigned char *to = s->frame + HEADER_BYTES;
    const bool is_host = memcmp(to, prefix, sizeof prefix) == 0;

    for (uint32_t port = 0; port < TD_TRANSIT_PORTS; port++)
        if (port != from && s->ports[port].fd >= 0 && (!is_host || port == to[5]))
            td_transit_add(s->transit, from, port, s->frame, len, wire_bytes(s->frame, len), at_ns);
}

static void port_receive(struct lab_switch *s, uint32_t from)
{
    struct port *p = &s->ports[from];

    for (int i = 0; i < BATCH_FRAMES; i++) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(struct timespec))];
        } control;
        struct iovec iov = {.iov_base = s->frame, .iov_len = sizeof s->frame};
        struct msghdr message = {.msg_iov = &iov,
                                 .msg_iovlen = 1,
                                 .msg_control = &control,
                                 .msg_controllen = sizeof control};
        ssize_t n = recvmsg(p->fd, &message, MSG_DONTWAIT);

        if (n < 0) /* nothing there, or the interface went down, which is told once */
            return;
        if ((size_t)n < HEADER_BYTES + ETH_HLEN || (message.msg_flags & MSG_TRUNC) != 0)
            continue;
        p->received++;
        forward(s, from, (size_t)n, stamp_of(&message));
    }
}

/* ---- Control: a message holds rules, or "counters"; the answer is "ok", the counters, or what is wrong ---- */

static enum td_status apply(struct lab_switch *s, struct td_str text, struct td_err *err)
{
    struct td_linkrules rules;
    enum td_status status = td_linkrules_parse(text, &rules, err);

    if (status)
        return status;
    for (size_t i = 0; i < TD_TRANSIT_PORTS && !status; i++)
        status = port_use(&s->ports[i], rules.ports[i], err);
    if (!status)
        td_transit_set_rules(s->transit, &rules.rules, td_clock_now_ns());
    return status;
}

static void count_overrun(struct port *p)
{
    struct tpacket_stats stats; /* since it was last asked */
    socklen_t len = sizeof stats;

    if (getsockopt(p->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &len) == 0)
        p->overrun += stats.tp_drops;
}

static size_t print_counters(struct lab_switch *s, char *out, size_t out_bytes)
{
    size_t n =
        (size_t)snprintf(out, out_bytes, "%-12s %10s %10s %8s %8s %8s %8s %8s\n", "port",
                         "from host", "to host", "lost", "blocked", "full", "refused", "overrun");

    for (uint32_t i = 0; i < TD_TRANSIT_PORTS; i++) {
        const struct td_transit_count *count = td_transit_count(s->transit, i);
        struct port *p = &s->ports[i];

        if (p->name[0] == '\0')
            continue;
        if (p->fd >= 0)
            count_overrun(p);
        n += (size_t)snprintf(out + n, out_bytes - n,
                              "%-12s %10llu %10llu %8llu %8llu %8llu %8llu %8llu\n", p->name,
                              (unsigned long long)p->received, (unsigned long long)count->passed,
                              (unsigned long long)count->lost, (unsigned long long)count->blocked,
                              (unsigned long long)count->full, (unsigned long long)p->refused,
                              (unsigned long long)p->overrun);
    }
    return n + (size_t)snprintf(out + n, out_bytes - n, "under way: %zu bytes\n",
                                td_transit_held_bytes(s->transit));
}

static void answer(struct lab_switch *s)
{
    char reply[4096] = "ok\n", why[600];
    struct sockaddr_un asker;
    socklen_t asker_len = sizeof asker;
    ssize_t n = recvfrom(s->control, s->text, sizeof s->text, MSG_DONTWAIT | MSG_TRUNC,
                         (struct sockaddr *)&asker, &asker_len);
    struct td_err err;

    if (n < 0)
        return;
    if ((size_t)n > sizeof s->text)
        snprintf(reply, sizeof reply, "error: %zd bytes of rules, expected at most %d\n", n,
                 TEXT_BYTES);
    else if (td_str_eq((struct td_str){s->text, (size_t)n}, TD_STR("counters\n")))
        print_counters(s, reply, sizeof reply);
    else if (apply(s, (struct td_str){s->text, (size_t)n}, &err))
        snprintf(reply, sizeof reply, "error: %s\n", td_err_format(&err, why, sizeof why));
    sendto(s->control, reply, strlen(reply), MSG_DONTWAIT, (struct sockaddr *)&asker, asker_len);
}

/* ---- The loop ---- */

static void send_due(struct lab_switch *s)
{
    struct td_frame *f;

    while ((f = td_transit_take(s->transit, td_clock_now_ns())) != NULL) {
        port_send(&s->ports[f->to], f);
        free(f);
    }
}

/* Sleeps until something comes in or until shortly before the next frame is due; what is left is spun through. */
static int wait_for_work(struct lab_switch *s, struct pollfd *fds, nfds_t n_fds,
                         const sigset_t *unblocked)
{
    const uint64_t due_ns = td_transit_next_ns(s->transit), now_ns = td_clock_now_ns();
    uint64_t sleep_ns = 0, late_ns, woken_ns;
    struct timespec span;
    int n;

    if (due_ns == UINT64_MAX)
        return ppoll(fds, n_fds, NULL, unblocked);
    if (due_ns > now_ns + s->lead_ns)
        sleep_ns = due_ns - now_ns - s->lead_ns;
    span = (struct timespec){.tv_sec = (time_t)(sleep_ns / 1000000000u),
                             .tv_nsec = (long)(sleep_ns % 1000000000u)};
    n = ppoll(fds, n_fds, &span, unblocked);
    if (n != 0 || sleep_ns == 0)
        return n;
    /* It rises at once to what was seen and falls slowly. */
    woken_ns = td_clock_now_ns();
    late_ns = woken_ns > now_ns + sleep_ns ? woken_ns - now_ns - sleep_ns : 0;
    s->lead_ns -= s->lead_ns / 64;
    if (late_ns > s->lead_ns)
        s->lead_ns = late_ns;
    s->lead_ns = s->lead_ns < MIN_LEAD_NS   ? MIN_LEAD_NS
                 : s->lead_ns > MAX_LEAD_NS ? MAX_LEAD_NS
                                            : s->lead_ns;
    return 0;
}

static void run(struct lab_switch *s, const sigset_t *unblocked)
{
    while (!ended) {
        struct pollfd fds[TD_TRANSIT_PORTS + 1];
        uint32_t of[TD_TRANSIT_PORTS + 1];
        nfds_t n_fds = 1;

        fds[0] = (struct pollfd){.fd = s->control, .events = POLLIN};
        for (uint32_t i = 0; i < TD_TRANSIT_PORTS; i++) {
            if (s->ports[i].fd < 0)
                continue;
            of[n_fds] = i;
            fds[n_fds++] = (struct pollfd){.fd = s->ports[i].fd, .events = POLLIN};
        }
        if (wait_for_work(s, fds, n_fds, unblocked) > 0) {
            for (nfds_t i = 1; i < n_fds; i++)
                if (fds[i].revents != 0)
                    port_receive(s, of[i]);
            if (fds[0].revents != 0)
                answer(s);
        }
        send_due(s);
    }
}

static int open_control(const char *path, bool is_server)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = -1, rc;

    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "tensord-netlab-switch: socket '%s': expected at most %zu bytes\n", path,
                sizeof address.sun_path - 1);
        return -1;
    }
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        rc = -1;
    else if (is_server)
        rc = bind(fd, (struct sockaddr *)&address, sizeof address);
    else /* an address of our own, chosen by the kernel, for the answer */
        rc = bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)) ||
             connect(fd, (struct sockaddr *)&address, sizeof address);
    if (rc) {
        fprintf(stderr, "tensord-netlab-switch: socket '%s': %s\n", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

/* Ranks that spin must not hold frames up. Both are improvements only: a container may refuse the first. */
static void be_punctual(void)
{
    const struct sched_param first = {.sched_priority = 1};

    sched_setscheduler(0, SCHED_FIFO, &first);
    prctl(PR_SET_TIMERSLACK, 1ul);
}

static int serve(const char *path)
{
    static struct lab_switch s;
    const struct sigaction action = {.sa_handler = on_signal};
    sigset_t blocked, unblocked;
    uint64_t seed = td_clock_now_ns();
    struct td_err err;
    char why[600];

    /* Signals come in while it waits and at no other time. */
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, &unblocked);
    sigdelset(&unblocked, SIGTERM);
    sigdelset(&unblocked, SIGINT);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) < 0)
        seed = td_clock_now_ns();
    if (td_transit_open(seed, &s.transit, &err)) {
        fprintf(stderr, "tensord-netlab-switch: %s\n", td_err_format(&err, why, sizeof why));
        return 1;
    }
    for (size_t i = 0; i < TD_TRANSIT_PORTS; i++)
        s.ports[i].fd = -1;
    s.lead_ns = MAX_LEAD_NS / 2;
    s.control = open_control(path, true);
    if (s.control >= 0) {
        be_punctual();
        run(&s, &unblocked);
        close(s.control);
        unlink(path);
    }
    for (size_t i = 0; i < TD_TRANSIT_PORTS; i++)
        port_close(&s.ports[i]);
    td_transit_close(s.transit);
    return s.control >= 0 ? 0 : 1;
}

/* Sends what standard input holds and prints the answer. */
static int tell(const char *path)
{
    static char text[TEXT_BYTES + 1];
    size_t n = fread(text, 1, sizeof text, stdin);
    struct pollfd fd = {.fd = open_control(path, false), .events = POLLIN};
    ssize_t got = -1;

    if (fd.fd < 0)
        return 1;
    if (send(fd.fd, text, n, 0) == (ssize_t)n && poll(&fd, 1, 5000) == 1)
        got = recv(fd.fd, text, sizeof text - 1, 0);
    close(fd.fd);
    if (got < 0) {
        fprintf(stderr, "tensord-netlab-switch: no answer on '%s' within 5 s\n", path);
        return 1;
    }
    text[got] = '\0';
    if (strncmp(text, "error: ", 7) == 0) {
        fprintf(stderr, "tensord-netlab-switch: %s", text + 7);
        return 1;
    }
    fputs(text, stdout);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        return serve(argv[2]);
    if (argc == 3 && strcmp(argv[1], "tell") == 0)
        return tell(argv[2]);
    fprintf(stderr,
            "usage: tensord-netlab-switch serve SOCKET\n"
            "       tensord-netlab-switch tell SOCKET <RULES   (or <<<counters)\n"
            "The first switches frames between the interfaces that rules name, in the network\n"
            "namespace that it is run in; the second hands it rules. deploy/netlab/netlab does "
            "both.\n");
    return 2;
}
