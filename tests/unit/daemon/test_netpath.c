/* Networks between hosts: lines of the kernel's tables, which paths there are, what is said of them; and the measuring over
 * loopback with a stranger at the door. */
#include "tests/unit/check.h"

#include "daemon/cli/netpath.h"
#include "daemon/cli/pathtest.h"
#include "daemon/engine/verdict.h"
#include "kernels/base/clock.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct td_netpath_ip ip_of(const char *text)
{
    struct td_netpath_ip ip = {.family = strchr(text, ':') ? 6 : 4};

    assert_int_equal(inet_pton(ip.family == 4 ? AF_INET : AF_INET6, text, ip.bytes), 1);
    return ip;
}

static void add_address(struct td_netpath_host *host, const char *interface, const char *ip,
                        unsigned prefix_bits)
{
    struct td_netpath_address *a = &host->addresses[host->n++];

    *a = (struct td_netpath_address){.ip = ip_of(ip), .prefix_bits = (uint8_t)prefix_bits};
    snprintf(a->interface, sizeof a->interface, "%s", interface);
}

static struct td_netpath_connection connection(const char *local, const char *remote)
{
    return (struct td_netpath_connection){.local = ip_of(local), .remote = ip_of(remote)};
}

/* ---- Tables ---- */

/* Written down from a machine, whose `ss` says 10.1.2.3:37206 - 10.1.2.4:443; proc_net(5): words as a little-endian CPU has them. */
static void test_netpath_reads_the_kernels_lines(void **state)
{
    struct td_netpath_socket s;
    char text[TD_NETPATH_TEXT];

    (void)state;
    assert_true(td_netpath_parse_socket("   1: 0302010A:9156 0402010A:01BB 01 00000000:00000000 "
                                        "02:000005B2 00000000  1000        0 "
                                        "6141592 2 0000000000000000 20 4 30 10 -1\n",
                                        &s));
    assert_string_equal(td_netpath_text(&s.local, text), "10.1.2.3");
    assert_string_equal(td_netpath_text(&s.remote, text), "10.1.2.4");
    assert_int_equal(s.inode, 6141592);
    assert_true(s.is_established);
    assert_true(td_netpath_parse_socket("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 "
                                        "00:00000000 00000000     0        0 "
                                        "77 1 0000000000000000 100 0 0 10 0\n",
                                        &s));
    assert_string_equal(td_netpath_text(&s.local, text), "127.0.0.1");
    assert_false(s.is_established); /* it listens */
    assert_true(td_netpath_parse_socket(
        "  2: 000000FD000000000000000002000000:0050 0000000000000000FFFF00000402010A:01BB 01 "
        "00000000:00000000 00:00000000 00000000 0 0 99 1 0000000000000000\n",
        &s));
    assert_string_equal(td_netpath_text(&s.local, text), "fd00::2");
    assert_string_equal(td_netpath_text(&s.remote, text), "10.1.2.4"); /* IPv4 in IPv6 */
    assert_int_equal(s.remote.family, 4);
}

static void test_netpath_refuses_lines_that_are_none(void **state)
{
    static const char *const lines[] = {
        "",
        "\n",
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  "
        "timeout "
        "inode\n",
        "   1: 0302010A:9156",
        "   1: 03:9156 0402010A:01BB 01 0:0 0:0 0 0 0 5",         /* two digits */
        "   1: 0302010A04:9156 0402010A:01BB 01 0:0 0:0 0 0 0 5", /* ten */
        "   1: GGGGGGGG:9156 0402010A:01BB 01 0:0 0:0 0 0 0 5",
        "   1: 000000FD0000000000000000020000001:0050 0402010A:01BB 01 0:0 0:0 0 0 0 5", /* 33 */
    };
    struct td_netpath_socket s;

    (void)state;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        if (td_netpath_parse_socket(lines[i], &s))
            fail_msg("taken for a socket: %s", lines[i]);
}

/* A connection that this process makes shows, with its two ends; closed, it does not. */
static void test_netpath_finds_its_own_connections(void **state)
{
    struct td_netpath_address home = {.interface = "lo", .ip = ip_of("127.0.0.3")};
    struct td_netpath_connection found[TD_NETPATH_MAX_CONNECTIONS];
    struct sockaddr_in to = {.sin_family = AF_INET};
    uint16_t port;
    int listener, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)state;
    assert_int_equal(td_pathtest_listen(&home, &listener, &port, NULL), TD_OK);
    to.sin_port = htons(port);
    memcpy(&to.sin_addr, home.ip.bytes, 4);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    for (int open = 1; open >= 0; open--) {
        uint32_t n = td_netpath_connections(found, TD_NETPATH_MAX_CONNECTIONS), n_ours = 0;

        for (uint32_t i = 0; i < n; i++)
            n_ours += memcmp(&found[i].remote, &home.ip, sizeof home.ip) == 0;
        assert_int_equal(n_ours, open);
        if (open)
            close(fd);
    }
    close(listener);
}

static void test_netpath_reads_this_hosts_interfaces(void **state)
{
    struct td_netpath_host host;

    (void)state;
    assert_int_equal(td_netpath_read_host(&host, NULL), TD_OK);
    for (uint32_t i = 0; i < host.n; i++) {
        assert_string_not_equal(host.addresses[i].interface, "lo");
        assert_in_range(host.addresses[i].prefix_bits, 1,
                        host.addresses[i].ip.family == 4 ? 32 : 128);
    }
}

/* ---- Paths ---- */

static void test_netpath_finds_networks_that_two_hosts_share(void **state)
{
    struct td_netpath_host a = {0}, b = {0};
    struct td_netpath paths[TD_NETPATH_MAX_PATHS];

    (void)state;
    add_address(&a, "eth0", "10.0.0.1", 24);
    add_address(&a, "eth0", "fd00::1", 64);
    add_address(&a, "ib0", "10.9.4.1", 22);
    add_address(&a, "docker0", "172.17.0.1", 16);
    add_address(&a, "eth9", "192.168.1.1", 24);
    add_address(&b, "docker0", "172.17.0.1",
                16);                        /* the same on every host: no network between them */
    add_address(&b, "ib1", "10.9.7.2", 22); /* 10.9.4.0/22 reaches to 10.9.7.255 */
    add_address(&b, "eth0", "10.0.0.2", 24);
    add_address(&b, "eth0", "fd00::2", 64); /* the same wire as IPv4 */
    add_address(&b, "eth9", "192.168.2.1", 24);
    add_address(&b, "eth8", "10.0.0.9", 25); /* says another network */
    assert_int_equal(td_netpath_find(&a, &b, NULL, 0, paths), 2);
    assert_int_equal(paths[0].a, 0);
    assert_int_equal(paths[0].b, 2);
    assert_int_equal(paths[1].a, 2);
    assert_int_equal(paths[1].b, 1);
    assert_false(paths[0].is_used || paths[1].is_used);
}

static void test_netpath_knows_which_of_them_mpi_uses(void **state)
{
    struct td_netpath_host a = {0}, b = {0};
    struct td_netpath paths[TD_NETPATH_MAX_PATHS];
    struct td_netpath_connection used[3];

    (void)state;
    add_address(&a, "eth0", "10.0.0.1", 24);
    add_address(&a, "eth1", "10.0.1.1", 24);
    add_address(&b, "eth0", "10.0.0.2", 24);
    add_address(&b, "eth1", "10.0.1.2", 24);
    add_address(&b, "eth2", "10.0.2.2", 24);
    used[0] = connection("10.0.1.1", "10.0.1.2");
    used[1] = connection("10.0.0.1", "10.0.2.2"); /* through a router */
    used[2] = connection("10.0.0.1", "8.8.8.8");  /* nobody's */
    assert_int_equal(td_netpath_find(&a, &b, used, 3, paths), 3);
    assert_true(paths[0].is_used && paths[0].a == 1 && paths[0].b == 1);
    assert_true(paths[1].is_used && paths[1].a == 0 && paths[1].b == 2);
    assert_true(!paths[2].is_used && paths[2].a == 0 && paths[2].b == 0);
    assert_int_equal(td_netpath_find(&a, &(struct td_netpath_host){0}, used, 3, paths), 0);
}

static void test_netpath_has_room_for_no_more_paths_than_it_says(void **state)
{
    struct td_netpath_host a = {0}, b = {0};
    struct td_netpath paths[TD_NETPATH_MAX_PATHS + 1];
    char name[16], ip[32];

    (void)state;
    memset(paths, 0xee, sizeof paths);
    for (int i = 0; i < TD_NETPATH_MAX_ADDRESSES; i++) { /* one network, 256 pairs of interfaces */
        snprintf(name, sizeof name, "eth%d", i);
        snprintf(ip, sizeof ip, "10.0.0.%d", 1 + i);
        add_address(&a, name, ip, 24);
        snprintf(ip, sizeof ip, "10.0.0.%d", 101 + i);
        add_address(&b, name, ip, 24);
    }
    assert_int_equal(td_netpath_find(&a, &b, NULL, 0, paths), TD_NETPATH_MAX_PATHS);
    assert_int_equal(*(unsigned char *)&paths[TD_NETPATH_MAX_PATHS], 0xee);
}

static void test_netpath_names_the_network_of_an_address(void **state)
{
    struct td_netpath_host h = {0};
    char text[TD_NETPATH_TEXT + 4];

    (void)state;
    add_address(&h, "a", "10.9.7.2", 22);
    add_address(&h, "a", "10.9.7.2", 32);
    add_address(&h, "a", "fd12:3456:789a:ffff::1", 50);
    assert_string_equal(td_netpath_network(&h.addresses[0], text), "10.9.4.0/22");
    assert_string_equal(td_netpath_network(&h.addresses[1], text), "10.9.7.2/32");
    assert_string_equal(td_netpath_network(&h.addresses[2], text), "fd12:3456:789a:c000::/50");
}

/* ---- Verdicts ---- */

static void judge(struct td_netpath *paths, uint32_t n, const char *choice,
                  struct td_verdict_report *report)
{
    struct td_netpath_host a = {0}, b = {0};
    const struct td_netpath_case c = {
        .where = "x - y", .a = &a, .b = &b, .paths = paths, .n = n, .choice = choice};

    for (int i = 0; i < 3; i++) {
        char name[16], ip[32];

        snprintf(name, sizeof name, "eth%d", i);
        snprintf(ip, sizeof ip, "10.0.%d.1", i);
        add_address(&a, name, ip, 24);
        snprintf(ip, sizeof ip, "10.0.%d.2", i);
        add_address(&b, name, ip, 24);
    }
    for (uint32_t i = 0; i < n; i++) {
        paths[i].a = paths[i].b = i;
        paths[i].is_measured = true;
    }
    td_netpath_judge(&c, report);
}

static void test_netpath_warns_of_a_slow_network_where_a_faster_one_answers(void **state)
{
    struct td_netpath p[3] = {{.is_used = true, .answers = true, .bytes_per_second = 0.1e9},
                              {.answers = true, .bytes_per_second = 1.2e9},
                              {.answers = true, .bytes_per_second = 2.5e9}};
    struct td_verdict_report report = {0};

    (void)state;
    judge(p, 3, NULL, &report);
    assert_int_equal(report.n, 1);
    assert_int_equal(report.lines[0].verdict, TD_VERDICT_WARNING);
    assert_non_null(strstr(report.lines[0].text, "MPI uses eth0 10.0.0.1 - eth0 10.0.0.2"));
    assert_non_null(strstr(report.lines[0].text, "eth2 10.0.2.1"));
    assert_non_null(strstr(report.lines[0].text, "OMPI_MCA_btl_tcp_if_include=10.0.2.0/24"));
    td_verdict_deinit(&report);

    p[2].is_used = true; /* both */
    judge(p, 3, "OMPI_MCA_btl_tcp_if_exclude=eth1", &report);
    assert_int_equal(report.lines[0].verdict, TD_VERDICT_WARNING);
    assert_non_null(strstr(report.lines[0].text, "beside eth2"));
    assert_non_null(strstr(report.lines[0].text, "instead of OMPI_MCA_btl_tcp_if_exclude=eth1"));
    td_verdict_deinit(&report);

    p[0].is_used = false;
    judge(p, 3, NULL, &report);
    assert_int_equal(report.n, 1);
    assert_int_equal(report.lines[0].verdict, TD_VERDICT_OK);
    assert_non_null(strstr(report.lines[0].text, "MPI uses eth2"));
    assert_non_null(strstr(report.lines[0].text, "none that answers is faster"));
    td_verdict_deinit(&report);
}

static void test_netpath_lets_noise_pass(void **state)
{
    struct td_netpath p[2] = {{.is_used = true, .answers = true, .bytes_per_second = 1.0e9},
                              {.answers = true, .bytes_per_second = 1.5e9}};
    struct td_verdict_report report = {0};

    (void)state;
    judge(p, 2, NULL, &report); /* half as much again is the border */
    assert_int_equal(td_verdict_worst(&report), TD_VERDICT_OK);
    td_verdict_deinit(&report);
    p[1].bytes_per_second = 1.51e9;
    judge(p, 2, NULL, &report);
    assert_int_equal(td_verdict_worst(&report), TD_VERDICT_WARNING);
    td_verdict_deinit(&report);
}

static void test_netpath_tells_of_networks_that_do_not_answer(void **state)
{
    struct td_netpath p[2] = {{.is_used = true, .answers = true, .bytes_per_second = 1.0e9}, {0}};
    struct td_verdict_report report = {0};

    (void)state;
    judge(p, 2, NULL, &report);
    assert_int_equal(report.n, 2);
    assert_int_equal(report.lines[0].verdict, TD_VERDICT_OK);
    assert_int_equal(report.lines[1].verdict, TD_VERDICT_WARNING);
    assert_non_null(strstr(report.lines[1].text, "eth1 10.0.1.1"));
    assert_non_null(strstr(report.lines[1].text, "does not answer"));
    td_verdict_deinit(&report);
    judge(p, 2, "OMPI_MCA_btl_tcp_if_include=eth0", &report); /* MPI does not try it */
    assert_int_equal(td_verdict_worst(&report), TD_VERDICT_OK);
    assert_int_equal(report.n, 2);
    td_verdict_deinit(&report);
    judge(p, 0, NULL, &report);
    assert_int_equal(report.n, 1);
    assert_non_null(strstr(report.lines[0].text, "no TCP connection"));
    td_verdict_deinit(&report);
}

static void test_netpath_says_what_mpi_was_told(void **state)
{
    char text[64];

    (void)state;
    unsetenv("OMPI_MCA_btl_tcp_if_include");
    unsetenv("OMPI_MCA_btl_tcp_if_exclude");
    assert_null(td_netpath_choice(text, sizeof text));
    setenv("OMPI_MCA_btl_tcp_if_exclude", "lo,eth1", 1);
    assert_string_equal(td_netpath_choice(text, sizeof text),
                        "OMPI_MCA_btl_tcp_if_exclude=lo,eth1");
    setenv("OMPI_MCA_btl_tcp_if_include", "eth0", 1); /* Open MPI takes one of the two */
    assert_string_equal(td_netpath_choice(text, sizeof text), "OMPI_MCA_btl_tcp_if_include=eth0");
    unsetenv("OMPI_MCA_btl_tcp_if_include");
    unsetenv("OMPI_MCA_btl_tcp_if_exclude");
}

/* ---- Measuring ---- */

struct door {
    pthread_t thread;
    struct td_netpath_address at;
    int fd;
    uint16_t port;
    uint64_t nonce;
};

static void *answer(void *arg)
{
    struct door *d = arg;

    td_pathtest_answer(d->fd, d->nonce);
    return NULL;
}

static void open_door(struct door *d, const char *ip)
{
    *d = (struct door){.at = {.interface = "lo", .ip = ip_of(ip)}, .nonce = 0x1234567890abcdef};
    assert_int_equal(td_pathtest_listen(&d->at, &d->fd, &d->port, NULL), TD_OK);
    assert_int_equal(pthread_create(&d->thread, NULL, answer, d), 0);
}

static void close_door(struct door *d)
{
    pthread_join(d->thread, NULL);
    close(d->fd);
}

/* What must hold on any machine: a round trip and a message of 256 KiB take no longer than the whole did. */
static void check_path(const struct td_netpath *p, uint64_t took_ns)
{
    assert_true(p->is_measured && p->answers);
    assert_in_range(p->latency_ns, 1, took_ns / 2);
    assert_true(p->bytes_per_second * (double)took_ns * 1e-9 >= 1 << 18);
}

static void test_pathtest_measures_between_two_addresses(void **state)
{
    struct td_netpath_address from = {.interface = "lo", .ip = ip_of("127.0.0.2")};
    struct td_netpath path = {0};
    struct door d;
    uint64_t start;

    (void)state;
    open_door(&d, "127.0.0.1");
    start = td_clock_now_ns();
    td_pathtest_measure(&from, &d.at, d.port, d.nonce, &path);
    check_path(&path, td_clock_now_ns() - start);
    close_door(&d);
}

/* Who does not know the number gets no byte, and holds nobody up who does. */
static void test_pathtest_answers_nobody_else(void **state)
{
    struct td_netpath_address from = {.interface = "lo", .ip = ip_of("127.0.0.1")};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int stranger = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct td_netpath path = {0};
    struct door d;
    uint64_t start;
    char byte;

    (void)state;
    open_door(&d, "127.0.0.1");
    to.sin_port = htons(d.port);
    assert_int_equal(connect(stranger, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(send(stranger, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    assert_true(recv(stranger, &byte, 1, 0) <= 0); /* closed without a byte */
    close(stranger);
    start = td_clock_now_ns();
    td_pathtest_measure(&from, &d.at, d.port, d.nonce, &path);
    check_path(&path, td_clock_now_ns() - start);
    close_door(&d);

    open_door(&d, "127.0.0.1");
    path = (struct td_netpath){0};
    td_pathtest_measure(&from, &d.at, d.port, d.nonce + 1, &path);
    assert_true(path.is_measured && !path.answers);
    close_door(&d); /* at its limit */
}

static void test_pathtest_ends_where_nobody_listens(void **state)
{
    struct td_netpath_address from = {.interface = "lo", .ip = ip_of("127.0.0.1")};
    struct td_netpath_address elsewhere = {.interface = "none", .ip = ip_of("203.0.113.1")};
    struct td_netpath path = {0};
    struct td_err err;
    uint16_t port;
    int fd;

    (void)state;
    assert_int_equal(td_pathtest_listen(&from, &fd, &port, NULL), TD_OK);
    close(fd);
    td_pathtest_measure(&from, &from, port, 1, &path);
    assert_true(path.is_measured && !path.answers);
    td_pathtest_measure(&elsewhere, &from, port, 1, &path); /* not an address of ours */
    assert_false(path.answers);
    assert_int_equal(td_pathtest_listen(&elsewhere, &fd, &port, &err), TD_IO);
    assert_non_null(strstr(err.cause, "203.0.113.1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_netpath_reads_the_kernels_lines),
        cmocka_unit_test(test_netpath_refuses_lines_that_are_none),
        cmocka_unit_test(test_netpath_finds_its_own_connections),
        cmocka_unit_test(test_netpath_reads_this_hosts_interfaces),
        cmocka_unit_test(test_netpath_finds_networks_that_two_hosts_share),
        cmocka_unit_test(test_netpath_knows_which_of_them_mpi_uses),
        cmocka_unit_test(test_netpath_has_room_for_no_more_paths_than_it_says),
        cmocka_unit_test(test_netpath_names_the_network_of_an_address),
        cmocka_unit_test(test_netpath_warns_of_a_slow_network_where_a_faster_one_answers),
        cmocka_unit_test(test_netpath_lets_noise_pass),
        cmocka_unit_test(test_netpath_tells_of_networks_that_do_not_answer),
        cmocka_unit_test(test_netpath_says_what_mpi_was_told),
        cmocka_unit_test(test_pathtest_measures_between_two_addresses),
        cmocka_unit_test(test_pathtest_answers_nobody_else),
        cmocka_unit_test(test_pathtest_ends_where_nobody_listens),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
