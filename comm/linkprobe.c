#include "comm/linkprobe.h"

#include "comm/comm.h"
#include "kernels/base/clock.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MOST_SAMPLES = 256,
    SERIES = 16, /* round trips between two looks at the clock */
    FIRST_BULK = 1 << 16,
    BULK_GROWTH = 4,
    LEAST_BULKS = 3,
    MOST_BULKS = 8 /* messages of one size */
};

/* What the one who measures tells the other to take part in. */
enum verb { VERB_END, VERB_PING, VERB_BULK };
struct order {
    uint64_t verb;
    uint64_t n; /* round trips, or bytes */
};

struct run {
    struct td_comm *comm;
    const struct td_linkprobe_params *params;
    uint32_t rank, size;
    uint64_t turn_ns, end_ns;      /* of a pair; of the whole on rank 0, UINT64_MAX: never */
    struct td_linkprobe_link *row; /* [size] what this rank measured as a sender */
    size_t *bytes;                 /* [size] for the gathering */
    uint64_t samples[MOST_SAMPLES];
};

uint32_t td_linkprobe_rounds(uint32_t n)
{
    return n < 2 ? 0 : n % 2 ? n : n - 1;
}

uint32_t td_linkprobe_partner(uint32_t n, uint32_t round, uint32_t rank)
{
    uint32_t circle =
        td_linkprobe_rounds(n); /* seats that turn; with an even n the last rank sits still */
    uint32_t other;

    if (circle == 0)
        return rank;
    if (rank == circle) /* the still one, with an even n */
        return round % circle;
    other = (2 * (round % circle) + circle - rank) % circle;
    if (other != rank)
        return other;
    return circle < n ? circle : rank;
}

static enum td_status give_order(struct run *run, uint32_t to, enum verb verb, uint64_t n,
                                 struct td_err *err)
{
    const struct order order = {.verb = verb, .n = n};

    return td_comm_send(run->comm, to, &order, sizeof order, err);
}

/* A few round trips of one byte, each into samples[0 .. n). */
static enum td_status ping(struct run *run, uint32_t peer, uint32_t n, uint64_t *samples,
                           struct td_err *err)
{
    enum td_status s = give_order(run, peer, VERB_PING, n, err);
    uint8_t byte = 1;

    for (uint32_t i = 0; !s && i < n; i++) {
        uint64_t start = td_clock_now_ns();

        s = td_comm_send(run->comm, peer, &byte, 1, err);
        s = s ? s : td_comm_recv(run->comm, peer, &byte, 1, err);
        samples[i] = td_clock_now_ns() - start;
    }
    return s;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The first round trip opens the connection and is not counted. */
static enum td_status measure_latency(struct run *run, uint32_t peer, uint64_t until_ns,
                                      struct td_err *err)
{
    uint32_t n = 0;
    enum td_status s = ping(run, peer, 1, run->samples, err);

    do {
        uint64_t now = td_clock_now_ns(), left = now < until_ns ? until_ns - now : 0;
        uint32_t more = SERIES;

        if (n == 0)
            more = 1;
        else if (left / SERIES < run->samples[n - 1]) /* a long way: fewer at a time */
            more = 1 + (uint32_t)(left / (run->samples[n - 1] + 1));
        more = more < MOST_SAMPLES - n ? more : MOST_SAMPLES - n;
        s = s ? s : ping(run, peer, more, run->samples + n, err);
        n += more;
    } while (!s && n < MOST_SAMPLES && td_clock_now_ns() < until_ns);
    if (s)
        return s;
    qsort(run->samples, n, sizeof run->samples[0], compare);
    run->row[peer].latency_ns = run->samples[n / 2] / 2;
    run->row[peer].latency_ns += run->row[peer].latency_ns == 0; /* 0: not measured */
    return TD_OK;
}

/* One large message and a byte that says that it came; the byte's way is taken off. */
static enum td_status push(struct run *run, uint32_t peer, size_t bytes, uint64_t *took_ns,
                           struct td_err *err)
{
    enum td_status s = give_order(run, peer, VERB_BULK, bytes, err);
    uint64_t start = td_clock_now_ns(), took;
    uint64_t latency = run->row[peer].latency_ns;
    uint8_t byte;

    s = s ? s : td_comm_send(run->comm, peer, run->params->buffer, bytes, err);
    s = s ? s : td_comm_recv(run->comm, peer, &byte, 1, err);
    took = td_clock_now_ns() - start;
    *took_ns = took > latency ? took - latency : took + (took == 0);
    return s;
}

/* Messages that grow while a few of the next size fit into what is left of the turn; the median of the last size counts. A
 * shaped link lets the first of them pass at once, and any may be held up by somebody else. */
static enum td_status measure_bandwidth(struct run *run, uint32_t peer, uint64_t until_ns,
                                        struct td_err *err)
{
    size_t most = run->params->bulk_bytes, bytes = most < FIRST_BULK ? most : FIRST_BULK;
    uint64_t best = UINT64_MAX;
    uint32_t n = 0; /* of this size */
    enum td_status s = TD_OK;

    while (!s && n < MOST_BULKS) {
        uint64_t now, left;

        s = push(run, peer, bytes, &run->samples[n], err);
        best = run->samples[n] < best ? run->samples[n] : best;
        n++;
        now = td_clock_now_ns();
        left = now < until_ns ? until_ns - now : 0;
        if (bytes < most && left / (BULK_GROWTH * LEAST_BULKS) > best) {
            bytes = bytes > most / BULK_GROWTH ? most : bytes * BULK_GROWTH;
            best = UINT64_MAX;
            n = 0;
        } else if (n >= LEAST_BULKS && left < best) {
            break;
        }
    }
    if (s)
        return s;
    qsort(run->samples, n, sizeof run->samples[0], compare);
    run->row[peer].bytes_per_second = (double)bytes * 1e9 / (double)run->samples[n / 2];
    return TD_OK;
}

static enum td_status lead(struct run *run, uint32_t peer, struct td_err *err)
{
    uint64_t start = td_clock_now_ns(), mine = run->turn_ns / 2;
    enum td_status s = measure_latency(run, peer, start + mine / 3, err);

    s = s ? s : measure_bandwidth(run, peer, start + mine, err);
    return s ? s : give_order(run, peer, VERB_END, 0, err);
}

static enum td_status echo(struct run *run, uint32_t peer, uint64_t n, struct td_err *err)
{
    enum td_status s = TD_OK;
    uint8_t byte;

    for (uint64_t i = 0; !s && i < n; i++) {
        s = td_comm_recv(run->comm, peer, &byte, 1, err);
        s = s ? s : td_comm_send(run->comm, peer, &byte, 1, err);
    }
    return s;
}

static enum td_status take(struct run *run, uint32_t peer, uint64_t bytes, struct td_err *err)
{
    const uint8_t byte = 1;
    enum td_status s;

    if (bytes > run->params->bulk_bytes)
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "rank %u sends a message of %llu bytes, expected at most %zu", peer,
                          (unsigned long long)bytes, run->params->bulk_bytes);
    s = td_comm_recv(run->comm, peer, run->params->buffer, (size_t)bytes, err);
    return s ? s : td_comm_send(run->comm, peer, &byte, 1, err);
}

static enum td_status follow(struct run *run, uint32_t peer, struct td_err *err)
{
    struct order order = {.verb = VERB_PING};
    enum td_status s = TD_OK;

    while (!s && order.verb != VERB_END) {
        s = td_comm_recv(run->comm, peer, &order, sizeof order, err);
        if (!s && order.verb == VERB_PING)
            s = echo(run, peer, order.n, err);
        else if (!s && order.verb == VERB_BULK)
            s = take(run, peer, order.n, err);
    }
    return s;
}

static void nap(uint64_t ns)
{
    const struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

    nanosleep(&time, NULL); /* woken early, a rank only waits in the barrier */
}

/* One turn: these two measure, each as the sender, and everybody else sleeps out of their way. */
static enum td_status take_turn(struct run *run, uint32_t partner, bool is_mine, struct td_err *err)
{
    enum td_status s;

    if (!is_mine || partner == run->rank) {
        nap(run->turn_ns);
        return TD_OK;
    }
    if (run->rank < partner) {
        s = lead(run, partner, err);
        return s ? s : follow(run, partner, err);
    }
    s = follow(run, partner, err);
    return s ? s : lead(run, partner, err);
}

/* Everybody is there, and rank 0 says whether there is time for another turn. */
static enum td_status begin_turn(struct run *run, bool *goes_on, struct td_err *err)
{
    enum td_status s = td_comm_barrier(run->comm, err);
    uint8_t more = td_clock_now_ns() < run->end_ns;

    s = s ? s : td_comm_bcast(run->comm, 0, &more, 1, err);
    *goes_on = more;
    return s;
}

static enum td_status play(struct run *run, struct td_err *err)
{
    uint32_t n = run->size, n_rounds = td_linkprobe_rounds(n);
    bool goes_on = true, at_once = run->params->at_once;
    enum td_status s = TD_OK;

    for (uint32_t round = 0; !s && goes_on && round < n_rounds; round++) {
        uint32_t mine = td_linkprobe_partner(n, round, run->rank);

        for (uint32_t a = 0; !s && goes_on && a < n; a++) {
            uint32_t b = td_linkprobe_partner(n, round, a);

            if (b <= a) /* pauses, or is the second of its pair */
                continue;
            s = begin_turn(run, &goes_on, err);
            if (!s && goes_on)
                s = take_turn(run, mine, at_once || a == run->rank || b == run->rank, err);
            if (at_once)
                break;
        }
    }
    return s;
}

/* Both ends measured the same round trip; who was disturbed less is right. */
static void join_latencies(struct td_linkprobe_link *links, uint32_t n)
{
    for (uint32_t a = 0; a < n; a++) {
        for (uint32_t b = 0; b < a; b++) {
            uint64_t *x = &links[(size_t)a * n + b].latency_ns,
                     *y = &links[(size_t)b * n + a].latency_ns;
            uint64_t less = *x && (*x < *y || !*y) ? *x : *y;

            *x = *y = less;
        }
    }
}

static uint64_t turn_of(const struct td_linkprobe_params *p, uint32_t n)
{
    uint64_t turn = p->turn_ns ? p->turn_ns : TD_LINKPROBE_TURN_NS;
    uint64_t n_turns = p->at_once ? td_linkprobe_rounds(n) : (uint64_t)n * (n - 1) / 2;

    return p->budget_ns && p->budget_ns / n_turns < turn ? p->budget_ns / n_turns : turn;
}

enum td_status td_linkprobe_run(struct td_comm *comm, const struct td_linkprobe_params *p,
                                struct td_linkprobe_link *links, struct td_err *err)
{
    uint32_t n = td_comm_size(comm);
    struct run *run;
    enum td_status s = TD_OK;

    if (!p->buffer || p->bulk_bytes == 0)
        return td_err_set(err, TD_INVALID,
                          "a probe of links wants a buffer of at least 1 byte, got %zu",
                          p->bulk_bytes);
    run = calloc(1, sizeof *run);
    if (run) {
        *run = (struct run){.comm = comm, .params = p, .rank = td_comm_rank(comm), .size = n};
        run->row = calloc(n, sizeof *run->row);
        run->bytes = calloc(n, sizeof *run->bytes);
    }
    if (!run || !run->row || !run->bytes) {
        s = td_err_set(err, TD_NO_MEMORY, "no memory to probe the links of %u ranks", n);
        goto done;
    }
    run->turn_ns = n > 1 ? turn_of(p, n) : 0;
    run->end_ns = p->budget_ns ? td_clock_now_ns() + p->budget_ns : UINT64_MAX;
    memset(p->buffer, 0, p->bulk_bytes); /* its pages are there before the first message */
    for (uint32_t r = 0; r < n; r++)
        run->bytes[r] = n * sizeof *run->row;
    s = play(run, err);
    s = s ? s : td_comm_all_gather(comm, run->row, run->bytes, links, err);
    if (!s)
        join_latencies(links, n);

done:
    if (run) {
        free(run->row);
        free(run->bytes);
    }
    free(run);
    return s;
}
