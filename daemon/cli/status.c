#include "daemon/api/json.h"
#include "daemon/cli/client.h"
#include "daemon/cli/command.h"
#include "daemon/cli/term.h"

#include <stdio.h>
#include <string.h>

/* The members of the answer that are missing read as "" and 0: an older or newer server may leave some out. */
static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static uint64_t number_of(const json_t *object, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(object, key));

    return n > 0 ? (uint64_t)n : 0;
}

static const char *or_dash(const char *text)
{
    return *text ? text : "-";
}

/* "3 d 4 h", "12 min 5 s". Returns out. */
static const char *duration(uint64_t ns, char *out, size_t out_bytes)
{
    unsigned long long s = ns / 1000000000u;

    if (s >= 86400)
        snprintf(out, out_bytes, "%llu d %llu h", s / 86400, s / 3600 % 24);
    else if (s >= 3600)
        snprintf(out, out_bytes, "%llu h %llu min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(out, out_bytes, "%llu min %llu s", s / 60, s % 60);
    else
        snprintf(out, out_bytes, "%llu s", s);
    return out;
}

static void print_ranks(const json_t *ranks)
{
    size_t i;
    json_t *rank;

    printf("\n%4s  %-16s %8s  %-19s %-10s %10s %10s %10s %9s %10s\n", "rank", "host", "pid",
           "device", "state", "memory", "weights", "KV", "steps", "exchanged");
    json_array_foreach(ranks, i, rank)
    {
        char memory[32], weights[32], kv[32], exchanged[32];

        printf("%4llu  %-16s %8llu  %-19s %-10s %10s %10s %10s %9llu %10s\n",
               (unsigned long long)number_of(rank, "rank"), or_dash(text_of(rank, "host")),
               (unsigned long long)number_of(rank, "pid"), or_dash(text_of(rank, "device")),
               text_of(rank, "state"),
               td_term_bytes(number_of(rank, "memory_bytes"), memory, sizeof memory),
               td_term_bytes(number_of(rank, "weight_bytes"), weights, sizeof weights),
               td_term_bytes(number_of(rank, "kv_bytes"), kv, sizeof kv),
               (unsigned long long)number_of(rank, "n_steps"),
               td_term_bytes(number_of(rank, "exchanged_bytes"), exchanged, sizeof exchanged));
    }
}

/* What only some servers have: blocks outside of the device, guesses. */
static void print_extras(const json_t *group)
{
    unsigned long long memory = number_of(group, "kv_blocks_offloaded_memory");
    unsigned long long file = number_of(group, "kv_blocks_offloaded_file");
    unsigned long long read = number_of(group, "kv_blocks_read");
    unsigned long long drafts = number_of(group, "draft_tokens");
    unsigned long long right = number_of(group, "right_drafts");

    if (memory + file + read > 0)
        printf(
            "offloaded   %llu blocks in host memory, %llu in files; %llu read back, %llu times in "
            "vain\n",
            memory, file, read, (unsigned long long)number_of(group, "kv_reads_failed"));
    if (drafts > 0)
        printf("guesses     %llu of %llu tokens right (%.1f %%)\n", right, drafts,
               100.0 * (double)right / (double)drafts);
}

/* While a roll goes on there are two: the second is told apart, with its ranks. */
static void print_group(const json_t *group, bool is_alone)
{
    const json_t *layout = json_object_get(group, "layout"),
                 *ranks = json_object_get(group, "ranks");
    unsigned long long blocks = number_of(group, "kv_blocks");
    unsigned long long used = number_of(group, "kv_blocks_used");

    if (!is_alone)
        printf("\n%s group, %llu requests open\n", text_of(group, "role"),
               (unsigned long long)number_of(group, "n_open"));
    printf("state       %s (launch %llu, %llu restarts)\n", text_of(group, "state"),
           (unsigned long long)number_of(group, "generation"),
           (unsigned long long)number_of(group, "n_restarts"));
    if (*text_of(group, "last_error"))
        printf("last error  %s\n", text_of(group, "last_error"));
    if (*text_of(group, "model"))
        printf("model       %s, %s\n            hash %s\n", text_of(group, "model"),
               text_of(group, "model_path"), or_dash(text_of(group, "model_hash")));
    else
        printf("model       none\n");
    if (number_of(layout, "tp"))
        printf("layout      %zu ranks: tensor parallel %llu, pipeline parallel %llu; %s\n",
               json_array_size(ranks), (unsigned long long)number_of(layout, "tp"),
               (unsigned long long)number_of(layout, "pp"),
               or_dash(text_of(group, "numerics_class")));
    printf("requests    %llu running, %llu waiting, at most %llu at a time\n",
           (unsigned long long)number_of(group, "n_running"),
           (unsigned long long)number_of(group, "n_waiting"),
           (unsigned long long)number_of(group, "max_num_seqs"));
    printf("tokens      %llu read, %llu generated; context %llu\n",
           (unsigned long long)number_of(group, "prompt_tokens"),
           (unsigned long long)number_of(group, "generated_tokens"),
           (unsigned long long)number_of(group, "max_model_len"));
    printf("KV cache    %llu of %llu blocks in use (%.1f %%), %llu tokens each\n", used, blocks,
           blocks ? 100.0 * (double)used / (double)blocks : 0.0,
           (unsigned long long)number_of(group, "kv_block_tokens"));
    print_extras(group);
    if (json_array_size(ranks) > 0)
        print_ranks(ranks);
}

/* Nothing where no group comes or leaves. */
static void print_roll(const json_t *roll)
{
    const char *phase = text_of(roll, "phase");
    unsigned long long old = number_of(roll, "old"), young = number_of(roll, "young");
    unsigned long long n_left = number_of(roll, "n_left");
    char time[64];

    if (strcmp(phase, "coming") == 0)
        printf("roll        launch %llu is to take the place of launch %llu\n", young, old);
    else if (strcmp(phase, "leaving") == 0)
        printf("roll        launch %llu has taken the place of launch %llu, where %llu requests "
               "still run, for at most %s\n",
               young, old, n_left, duration(number_of(roll, "left_ns"), time, sizeof time));
    else if (strcmp(phase, "failed") == 0)
        printf("roll        launch %llu did not take over: %s\n", young, text_of(roll, "error"));
}

/* Nothing where nothing drains. */
static void print_drain(const json_t *drain)
{
    const json_t *left = json_object_get(drain, "left_ns");
    bool stops = json_is_true(json_object_get(drain, "stops"));
    char time[64];

    if (!json_is_object(drain))
        return;
    printf("draining    %llu open", (unsigned long long)number_of(drain, "n_open"));
    if (json_is_true(json_object_get(drain, "over")))
        printf(": done");
    else if (json_is_integer(left))
        printf(", %s left", duration(number_of(drain, "left_ns"), time, sizeof time));
    else
        printf(", no limit");
    printf("; %llu ended by themselves, %llu by the server%s\n",
           (unsigned long long)number_of(drain, "n_finished"),
           (unsigned long long)number_of(drain, "n_cancelled"),
           stops ? "; it stops then" : " (tensord drain --cancel takes it back)");
}

static void print_text(const struct td_options *opts, const json_t *status)
{
    const json_t *group, *groups = json_object_get(status, "groups");
    char age[64];
    size_t i;

    printf("server      %s, tensord %s, up %s\n", opts->url, text_of(status, "version"),
           duration(number_of(status, "uptime_ns"), age, sizeof age));
    printf("ready       %s; %llu requests so far, %llu failed\n",
           json_is_true(json_object_get(status, "ready")) ? "yes" : "no",
           (unsigned long long)number_of(status, "n_requests"),
           (unsigned long long)number_of(status, "n_requests_failed"));
    print_drain(json_object_get(status, "drain"));
    print_roll(json_object_get(status, "roll"));
    json_array_foreach(groups, i, group)
    {
        print_group(group, json_array_size(groups) == 1);
    }
}

int td_cmd_status(const struct td_options *opts)
{
    struct td_client_request request = {.url = opts->url,
                                        .api_key = opts->api_key.n ? opts->api_key.items[0] : NULL,
                                        .ca_file = opts->ssl_certfile,
                                        .method = "GET",
                                        .path = "/status",
                                        .patience_ns = 10000000000u};
    struct td_bytes body = {0};
    struct td_err err;
    json_t *status = NULL;
    int http_status = 0;
    enum td_status s = td_client_call(&request, &http_status, &body, &err);

    s = s ? s : td_client_check(http_status, td_bytes_str(&body), &err);
    s = s ? s : td_json_parse(td_bytes_str(&body), 0, &status, &err);
    if (!s && !json_is_array(json_object_get(status, "groups")))
        s = td_err_set(&err, TD_PEER_PROTOCOL,
                       "the answer of %s/status lists no groups: is it a tensord server?",
                       opts->url);
    if (!s && opts->json) {
        json_dumpf(status, stdout, JSON_COMPACT);
        putchar('\n');
    } else if (!s) {
        print_text(opts, status);
    }
    json_decref(status);
    td_bytes_deinit(&body);
    return s ? td_command_report(opts, &err) : TD_EXIT_OK;
}
