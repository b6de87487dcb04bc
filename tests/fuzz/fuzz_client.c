/* What a foreign server answers, as `chat`, `status` and `bench serve` read it. connect() is this file's own: the other end of every
 * connection is a pair of sockets in which the answer lies already, whole, with its end behind it. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/client.h"
#include "daemon/cli/loadclient.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_ANSWER_BYTES = 1 << 15, MAX_CONNECTIONS = 16 };

static struct td_str answer;
static int peers[MAX_CONNECTIONS];
static int n_peers;

/* In the place of libc's, for libuv's calls too. */
int connect(int fd, const struct sockaddr *address, socklen_t len)
{
    int flags = fcntl(fd, F_GETFL), pair[2];

    (void)len;
    if (address->sa_family != AF_INET || n_peers == MAX_CONNECTIONS) {
        errno = ECONNREFUSED;
        return -1;
    }
    FUZZ_CHECK(flags >= 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    FUZZ_CHECK(send(pair[1], answer.ptr, answer.len, MSG_DONTWAIT) == (ssize_t)answer.len);
    FUZZ_CHECK(shutdown(pair[1], SHUT_WR) == 0 && dup2(pair[0], fd) == fd);
    FUZZ_CHECK(close(pair[0]) == 0 && fcntl(fd, F_SETFL, flags) == 0);
    peers[n_peers++] = pair[1];
    return 0;
}

static void hang_up(void)
{
    while (n_peers > 0)
        close(peers[--n_peers]);
}

static bool on_event(struct td_str data, void *user)
{
    size_t *n = user;

    fuzz_touch(data);
    return ++*n < 64;
}

static void ask_once(bool events)
{
    size_t n_events = 0;
    struct td_client_request request = {.url = "http://127.0.0.1:9",
                                        .method = "POST",
                                        .path = "/v1/completions",
                                        .body = TD_STR("{}"),
                                        .patience_ns = 1000000000,
                                        .on_event = events ? on_event : NULL,
                                        .user = &n_events};
    struct td_bytes body = {0};
    struct td_err err = {0};
    int http_status = 0;
    enum td_status status = td_client_call(&request, &http_status, &body, &err);

    fuzz_check_err(status, &err);
    FUZZ_CHECK(status != TD_TIMED_OUT);
    if (!status) {
        FUZZ_CHECK(http_status >= 200);
        status = td_client_check(http_status, td_bytes_str(&body), &err);
        fuzz_check_err(status, &err);
    }
    td_bytes_deinit(&body);
    hang_up();
}

static void on_done(void *user, struct td_loadrecord *record)
{
    int *n_done = user;

    (void)record;
    (*n_done)++;
}

/* Two requests after each other: the second may find the first one's connection. */
static void ask_load(void)
{
    struct td_client_url url;
    struct td_loadclient_params params = {.url = &url, .path = "/v1/completions"};
    struct td_loadclient *client = NULL;
    uv_loop_t loop;

    FUZZ_CHECK(uv_loop_init(&loop) == 0);
    params.loop = &loop;
    FUZZ_CHECK(td_client_parse_url("http://127.0.0.1:9", &url, NULL) == TD_OK);
    FUZZ_CHECK(td_loadclient_open(&params, &client, NULL) == TD_OK);
    for (int i = 0; i < 2; i++) {
        struct td_loadrecord record = {0};
        int n_done = 0;

        FUZZ_CHECK(td_loadclient_start(client, TD_STR("{}"), &record, on_done, &n_done) == TD_OK);
        FUZZ_CHECK(n_done == 0);
        for (int k = 0; k < 64 && n_done == 0; k++) {
            uv_run(&loop, UV_RUN_NOWAIT);
            td_loadclient_tick(client, 0);
        }
        FUZZ_CHECK(n_done == 1 && td_loadclient_under_way(client) == 0);
        FUZZ_CHECK(record.end == TD_LOADRECORD_OK || record.reason != NULL);
        td_loadrecord_deinit(&record);
    }
    td_loadclient_close(client);
    FUZZ_CHECK(uv_loop_close(&loop) == 0);
    hang_up();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > MAX_ANSWER_BYTES)
        return 0;
    answer = (struct td_str){(const char *)data, size};
    ask_once(false);
    ask_once(true);
    ask_load();
    return 0;
}
