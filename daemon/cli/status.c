#include "daemon/cli/ask.h"
#include "daemon/cli/command.h"
#include "daemon/cli/term.h"

#include <stdio.h>
#include <string.h>

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
        char pid[32] = "-", memory[32], weights[32], kv[32], exchanged[32];
        uint64_t n = td_ask_number(rank, "pid");

        if (n)
            snprintf(pid, sizeof pid, "%llu", (unsigned long long)n);
        printf("%4llu  %-16s %8s  %-19s %-10s %10s %10s %10s %9llu %10s\n",
               (unsigned long long)td_ask_number(rank, "rank"), or_dash(td_ask_text(rank, "host")),
               pid, or_dash(td_ask_text(rank, "device")), td_ask_text(rank, "state"),
               td_term_bytes(td_ask_number(rank, "memory_bytes"), memory, sizeof memory),
               td_term_bytes(td_ask_number(rank, "weight_bytes"), weights, sizeof weights),
               td_term_bytes(td_ask_number(rank, "kv_bytes"), kv, sizeof kv),
               (unsigned long long)td_ask_number(rank, "n_steps"),
               td_term_bytes(td_ask_number(rank, "exchanged_bytes"), exchanged, sizeof exchanged));
    }
}

/* What only some servers have: blocks outside of the device, guesses. */
static void print_extras(const json_t *group)
{
    unsigned long long memory = td_ask_number(group, "kv_blocks_offloaded_memory");
    unsigned long long file = td_ask_number(group, "kv_blocks_offloaded_file");
    unsigned long long read = td_ask_number(group, "kv_blocks_read");
    unsigned long long drafts = td_ask_number(group, "draft_tokens");
    unsigned long long right = td_ask_number(group, "right_drafts");

    if (memory + file + read > 0)
        printf(
            "offloaded   %llu blocks in host memory, %llu in files; %llu read back, %llu times in "
            "vain\n",
            memory, file, read, (unsigned long long)td_ask_number(group, "kv_reads_failed"));
    if (drafts > 0)
        printf("guesses     %llu of %llu tokens right (%.1f %%)\n", right, drafts,
               100.0 * (double)right / (double)drafts);
}

/* While a roll goes on there are two: the second is told apart, with its ranks. */
static void print_group(const json_t *group, bool is_alone)
{
    const json_t *layout = json_object_get(group, "layout"),
                 *ranks = json_object_get(group, "ranks");
    unsigned long long blocks = td_ask_number(group, "kv_blocks");
    unsigned long long used = td_ask_number(group, "kv_blocks_used");

    if (!is_alone)
        printf("\n%s group, %llu requests open\n", td_ask_text(group, "role"),
               (unsigned long long)td_ask_number(group, "n_open"));
    printf("state       %s (launch %llu, %llu restarts)\n", td_ask_text(group, "state"),
           (unsigned long long)td_ask_number(group, "generation"),
           (unsigned long long)td_ask_number(group, "n_restarts"));
    if (*td_ask_text(group, "last_error"))
        printf("last error  %s\n", td_ask_text(group, "last_error"));
    if (*td_ask_text(group, "model"))
        printf("model       %s, %s\n            hash %s\n", td_ask_text(group, "model"),
               td_ask_text(group, "model_path"), or_dash(td_ask_text(group, "model_hash")));
    else
        printf("model       none\n");
    if (td_ask_number(layout, "tp"))
        printf("layout      %zu ranks: tensor parallel %llu, pipeline parallel %llu; %s\n",
               json_array_size(ranks), (unsigned long long)td_ask_number(layout, "tp"),
               (unsigned long long)td_ask_number(layout, "pp"),
               or_dash(td_ask_text(group, "numerics_class")));
    printf("requests    %llu running, %llu waiting, at most %llu at a time\n",
           (unsigned long long)td_ask_number(group, "n_running"),
           (unsigned long long)td_ask_number(group, "n_waiting"),
           (unsigned long long)td_ask_number(group, "max_num_seqs"));
    printf("tokens      %llu read, %llu generated; context %llu\n",
           (unsigned long long)td_ask_number(group, "prompt_tokens"),
           (unsigned long long)td_ask_number(group, "generated_tokens"),
           (unsigned long long)td_ask_number(group, "max_model_len"));
    printf("KV cache    %llu of %llu blocks in use (%.1f %%), %llu tokens each\n", used, blocks,
           blocks ? 100.0 * (double)used / (double)blocks : 0.0,
           (unsigned long long)td_ask_number(group, "kv_block_tokens"));
    print_extras(group);
    if (json_array_size(ranks) > 0)
        print_ranks(ranks);
}

/* Nothing where no group comes or leaves. */
static void print_roll(const json_t *roll)
{
    const char *phase = td_ask_text(roll, "phase");
    unsigned long long old = td_ask_number(roll, "old"), young = td_ask_number(roll, "young");
    unsigned long long n_left = td_ask_number(roll, "n_left");
    char time[64];

    if (strcmp(phase, "coming") == 0)
        printf("roll        launch %llu is to take the place of launch %llu\n", young, old);
    else if (strcmp(phase, "leaving") == 0)
        printf("roll        launch %llu has taken the place of launch %llu, where %llu requests "
               "still run, for at most %s\n",
               young, old, n_left, duration(td_ask_number(roll, "left_ns"), time, sizeof time));
    else if (strcmp(phase, "failed") == 0)
        printf("roll        launch %llu did not take over: %s\n", young,
               td_ask_text(roll, "error"));
}

/* Nothing where nothing drains. */
static void print_drain(const json_t *drain)
{
    const json_t *left = json_object_get(drain, "left_ns");
    bool stops = json_is_true(json_object_get(drain, "stops"));
    char time[64];

    if (!json_is_object(drain))
        return;
    printf("draining    %llu open", (unsigned long long)td_ask_number(drain, "n_open"));
    if (json_is_true(json_object_get(drain, "over")))
        printf(": done");
    else if (json_is_integer(left))
        printf(", %s left", duration(td_ask_number(drain, "left_ns"), time, sizeof time));
    else
        printf(", no limit");
    printf("; %llu ended by themselves, %llu by the server%s\n",
           (unsigned long long)td_ask_number(drain, "n_finished"),
           (unsigned long long)td_ask_number(drain, "n_cancelled"),
           stops ? "; it stops then" : " (tensord drain --cancel takes it back)");
}

static void print_text(const struct td_options *opts, const json_t *status)
{
    const json_t *group, *groups = json_object_get(status, "groups");
    char age[64];
    size_t i;

    printf("server      %s, tensord %s, up %s\n", opts->url, td_ask_text(status, "version"),
           duration(td_ask_number(status, "uptime_ns"), age, sizeof age));
    printf("ready       %s; %llu requests so far, %llu failed\n",
           json_is_true(json_object_get(status, "ready")) ? "yes" : "no",
           (unsigned long long)td_ask_number(status, "n_requests"),
           (unsigned long long)td_ask_number(status, "n_requests_failed"));
    print_drain(json_object_get(status, "drain"));
    print_roll(json_object_get(status, "roll"));
    json_array_foreach(groups, i, group)
    {
        print_group(group, json_array_size(groups) == 1);
    }
}

int td_cmd_status(const struct td_options *opts)
{
    struct td_err err;
    json_t *status = NULL;
    enum td_status s = td_ask(opts, "GET", "/status", "", "groups", &status, &err);

    if (!s && opts->json) {
        json_dumpf(status, stdout, JSON_COMPACT);
        putchar('\n');
    } else if (!s) {
        print_text(opts, status);
    }
    json_decref(status);
    return s ? td_command_report(opts, &err) : TD_EXIT_OK;
}
