#include "daemon/coordinator/coord_metrics.h"

#include "daemon/api/metrics.h"
#include "daemon/coordinator/coordinator.h"
#include "daemon/coordinator/gpu_metrics.h"
#include "daemon/engine/stepsplit.h"

#include <stdlib.h>

enum value {
    READY,
    RANKS,
    RANKS_READY,
    RUNNING,
    WAITING,
    OPEN,
    KV_USED,
    KV_IDLE,
    KV_MEMORY,
    KV_FILE,
    KV_READ,
    KV_FAILED_READS,
    KV_TOTAL,
    GENERATION,
    RESTARTS,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    DRAFT_TOKENS,
    RIGHT_DRAFTS,
    DEVICE_DRAWS,
    GENERATED_TOKENS,
    DEADLINES,
    EXCHANGED,
    COMPUTE_TIME,
    EXCHANGE_TIME,
    WAIT_TIME,
    STEP_TIME,
    GAP_TIME,
    STEPS,
    WEIGHTS,
    KV_BYTES,
    N_VALUES
};

static const struct {
    enum td_metrics_kind kind;
    const char *name, *help;
} TABLE[N_VALUES] = {
    [READY] = {TD_METRICS_GAUGE, "tensord_ready",
               "1 when all ranks are ready and requests are taken"},
    [RANKS] = {TD_METRICS_GAUGE, "tensord_ranks", "Ranks of the group"},
    [RANKS_READY] = {TD_METRICS_GAUGE, "tensord_ranks_ready",
                     "Ranks that are attached and have loaded"},
    [RUNNING] = {TD_METRICS_GAUGE, "tensord_requests_running", "Requests in the steps"},
    [WAITING] = {TD_METRICS_GAUGE, "tensord_requests_waiting", "Requests queued at rank 0"},
    [OPEN] = {TD_METRICS_GAUGE, "tensord_requests_open", "Requests accepted and not ended"},
    [KV_USED] = {TD_METRICS_GAUGE, "tensord_kv_blocks_used", "KV blocks in use by requests"},
    [KV_IDLE] = {TD_METRICS_GAUGE, "tensord_kv_blocks_idle",
                 "KV blocks that only the prefix cache holds"},
    [KV_MEMORY] = {TD_METRICS_GAUGE, "tensord_kv_blocks_offloaded_memory",
                   "KV blocks that the prefix cache keeps in host memory"},
    [KV_FILE] = {TD_METRICS_GAUGE, "tensord_kv_blocks_offloaded_file",
                 "KV blocks that the prefix cache keeps in files"},
    [KV_READ] = {TD_METRICS_GAUGE, "tensord_kv_blocks_read",
                 "KV blocks that this group has read back"},
    [KV_FAILED_READS] = {TD_METRICS_GAUGE, "tensord_kv_reads_failed",
                         "Times that reading back failed, so that KV was computed again"},
    [KV_TOTAL] = {TD_METRICS_GAUGE, "tensord_kv_blocks", "KV blocks of the group"},
    [GENERATION] = {TD_METRICS_GAUGE, "tensord_group_generation", "Launches of the group"},
    [RESTARTS] = {TD_METRICS_COUNTER, "tensord_group_restarts_total",
                  "Groups launched after a loss"},
    [PROMPT_TOKENS] = {TD_METRICS_COUNTER, "tensord_prompt_tokens_total",
                       "Prompt tokens of requests that got an answer"},
    [CACHED_TOKENS] = {TD_METRICS_COUNTER, "tensord_cached_tokens_total",
                       "Prompt tokens that came from the prefix cache"},
    [DRAFT_TOKENS] = {TD_METRICS_GAUGE, "tensord_draft_tokens",
                      "Tokens that this group guessed ahead and verified"},
    [RIGHT_DRAFTS] = {TD_METRICS_GAUGE, "tensord_right_drafts", "Guessed tokens that were right"},
    [DEVICE_DRAWS] = {TD_METRICS_GAUGE, "tensord_device_draws",
                      "Tokens of this group that a device drew, not the host"},
    [GENERATED_TOKENS] = {TD_METRICS_COUNTER, "tensord_generated_tokens_total", "Tokens generated"},
    [DEADLINES] = {TD_METRICS_COUNTER, "tensord_deadlines_passed_total",
                   "Requests that were ended by their deadline"},
    [EXCHANGED] = {TD_METRICS_GAUGE, "tensord_exchanged_bytes",
                   "Activation bytes that this group's ranks have sent"},
    [COMPUTE_TIME] = {TD_METRICS_GAUGE, "tensord_step_compute_seconds",
                      "Time that steps computed, mean of the ranks"},
    [EXCHANGE_TIME] = {TD_METRICS_GAUGE, "tensord_step_exchange_seconds",
                       "Time in exchanges of the rank with the least of it: what the links take"},
    [WAIT_TIME] = {TD_METRICS_GAUGE, "tensord_step_wait_seconds",
                   "Time in exchanges beyond that, waiting for later ranks, mean of the ranks"},
    [STEP_TIME] = {TD_METRICS_GAUGE, "tensord_step_seconds", "Time inside steps, rank 0"},
    [GAP_TIME] = {TD_METRICS_GAUGE, "tensord_step_gap_seconds",
                  "Time between steps that followed each other, rank 0"},
    [STEPS] = {TD_METRICS_GAUGE, "tensord_steps", "Steps of this group, rank 0"},
    [WEIGHTS] = {TD_METRICS_GAUGE, "tensord_weight_bytes", "Weight bytes held by all ranks"},
    [KV_BYTES] = {TD_METRICS_GAUGE, "tensord_kv_bytes", "KV cache bytes held by all ranks"},
};

/* While a new group takes the place of another there are two: a series for each role, all 0 where nobody has it. */
enum group_value {
    GROUP_STATE,
    GROUP_GENERATION,
    GROUP_RANKS,
    GROUP_READY,
    GROUP_OPEN,
    N_GROUP_VALUES
};

static const struct {
    const char *name, *help;
} GROUP_TABLE[N_GROUP_VALUES] = {
    [GROUP_STATE] = {"tensord_group_state",
                     "0 none, 1 launching, 2 loading, 3 ready, 4 draining, 5 lost, 6 failed"},
    [GROUP_GENERATION] = {"tensord_group_launch", "Which launch the group is, 1 first"},
    [GROUP_RANKS] = {"tensord_group_ranks", "Ranks of the group"},
    [GROUP_READY] = {"tensord_group_ranks_ready", "Of them, attached and loaded"},
    [GROUP_OPEN] = {"tensord_group_requests_open",
                    "Requests that the group has, of the current one also those that wait for it"},
};

enum { N_ROLES = TD_ROLE_LEAVING + 1 };

struct td_coord_metrics {
    struct td_coord *c;
    struct td_metric *series[N_VALUES];
    struct td_metric *group[N_GROUP_VALUES][N_ROLES];
    struct td_metric *rolls[2]; /* done, failed */
    struct td_metric *refused[TD_N_REFUSALS];
    struct td_gpu_metrics *gpus;
};

static void count_to(struct td_metric *counter, double value)
{
    if (value > td_metrics_value(counter))
        td_metrics_add(counter, value - td_metrics_value(counter));
}

static uint32_t count_ready(const struct td_coord_status *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_ranks; i++)
        n += s->members[i].attached && s->members[i].loaded;
    return n;
}

static void note_group(const struct td_coord_status *s, double v[N_GROUP_VALUES][N_ROLES])
{
    v[GROUP_STATE][s->role] = s->state;
    v[GROUP_GENERATION][s->role] = s->generation;
    v[GROUP_RANKS][s->role] = s->n_ranks;
    v[GROUP_READY][s->role] = count_ready(s);
    v[GROUP_OPEN][s->role] = s->n_here;
}

static void refresh_groups(struct td_coord_metrics *m, const struct td_coord_status *current)
{
    double v[N_GROUP_VALUES][N_ROLES] = {{0}};
    struct td_coord_status other;

    note_group(current, v);
    if (td_coord_status_other(m->c, &other))
        note_group(&other, v);
    for (int i = 0; i < N_GROUP_VALUES; i++)
        for (int role = 0; role < N_ROLES; role++)
            td_metrics_set(m->group[i][role], v[i][role]);
    count_to(m->rolls[0], (double)current->n_rolls_done);
    count_to(m->rolls[1], (double)current->n_rolls_failed);
}

static void refresh(void *user)
{
    struct td_coord_metrics *m = user;
    struct td_coord_status s;
    uint64_t run_ns[TD_PLAN_MAX_RANKS], inside_ns[TD_PLAN_MAX_RANKS];
    struct td_stepsplit split;
    double v[N_VALUES] = {0};

    td_coord_status(m->c, &s);
    v[READY] = td_coord_is_well(m->c);
    v[RANKS] = s.n_ranks;
    v[RUNNING] = s.n_running;
    v[WAITING] = s.n_waiting;
    v[OPEN] = s.n_open;
    v[KV_USED] = s.kv_blocks_used;
    v[KV_IDLE] = s.kv_blocks_idle;
    v[KV_MEMORY] = s.kv_blocks_memory;
    v[KV_FILE] = s.kv_blocks_file;
    v[KV_READ] = (double)s.kv_blocks_read;
    v[KV_FAILED_READS] = (double)s.kv_failed_reads;
    v[KV_TOTAL] = s.plan ? s.plan->n_blocks : 0;
    v[GENERATION] = s.generation;
    v[RESTARTS] = s.n_restarts;
    v[PROMPT_TOKENS] = (double)s.prompt_tokens;
    v[CACHED_TOKENS] = (double)s.cached_tokens;
    v[DRAFT_TOKENS] = (double)s.draft_tokens;
    v[RIGHT_DRAFTS] = (double)s.right_drafts;
    v[DEVICE_DRAWS] = (double)s.device_draws;
    v[GENERATED_TOKENS] = (double)s.generated_tokens;
    v[DEADLINES] = (double)s.n_deadlines;
    v[RANKS_READY] = count_ready(&s);
    for (uint32_t i = 0; i < s.n_ranks; i++) {
        v[EXCHANGED] += (double)s.members[i].exchanged_bytes;
        run_ns[i] = s.members[i].step_ns;
        inside_ns[i] = s.members[i].wait_ns;
        v[WEIGHTS] += (double)s.members[i].weight_bytes;
        v[KV_BYTES] += (double)s.members[i].kv_bytes;
    }
    split = td_stepsplit_of(s.n_ranks, run_ns, inside_ns);
    v[COMPUTE_TIME] = split.compute;
    v[EXCHANGE_TIME] = split.exchange;
    v[WAIT_TIME] = split.wait;
    if (s.n_ranks) {
        v[STEP_TIME] = (double)s.members[0].step_ns * 1e-9;
        v[GAP_TIME] = (double)s.members[0].gap_ns * 1e-9;
        v[STEPS] = (double)s.members[0].n_steps;
    }
    for (int i = 0; i < N_VALUES; i++)
        if (TABLE[i].kind == TD_METRICS_GAUGE)
            td_metrics_set(m->series[i], v[i]);
        else
            count_to(m->series[i], v[i]);
    for (int i = 0; i < TD_N_REFUSALS; i++)
        count_to(m->refused[i], (double)s.n_refused[i]);
    refresh_groups(m, &s);
    td_gpu_metrics_refresh(m->gpus, &s);
}

static enum td_status register_groups(struct td_coord_metrics *m, struct td_err *err)
{
    static const char *const outcomes[] = {"done", "failed"};
    struct td_metrics *metrics = td_coord_metrics(m->c);
    enum td_status s = TD_OK;

    for (int i = 0; !s && i < N_GROUP_VALUES * N_ROLES; i++) {
        int value = i / N_ROLES, of = i % N_ROLES;
        struct td_metrics_label role = {"role", td_group_role_name((enum td_group_role)of)};
        struct td_metrics_desc desc = {.kind = TD_METRICS_GAUGE,
                                       .name = GROUP_TABLE[value].name,
                                       .help = GROUP_TABLE[value].help,
                                       .labels = &role,
                                       .n_labels = 1};

        s = td_metrics_register(metrics, &desc, &m->group[value][of], err);
    }
    for (int i = 0; !s && i < 2; i++) {
        struct td_metrics_label outcome = {"outcome", outcomes[i]};
        struct td_metrics_desc desc = {.kind = TD_METRICS_COUNTER,
                                       .name = "tensord_rolls_total",
                                       .help = "Groups that were to take the place of another",
                                       .labels = &outcome,
                                       .n_labels = 1};

        s = td_metrics_register(metrics, &desc, &m->rolls[i], err);
    }
    return s;
}

enum td_status td_coord_metrics_open(struct td_coord *c, struct td_coord_metrics **out,
                                     struct td_err *err)
{
    struct td_coord_metrics *m = calloc(1, sizeof *m);
    enum td_status s = m ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for metrics");

    if (m)
        m->c = c;
    for (int i = 0; !s && i < N_VALUES; i++) {
        struct td_metrics_desc desc = {
            .kind = TABLE[i].kind, .name = TABLE[i].name, .help = TABLE[i].help};

        s = td_metrics_register(td_coord_metrics(c), &desc, &m->series[i], err);
    }
    for (int i = 0; !s && i < TD_N_REFUSALS; i++) {
        struct td_metrics_label reason = {"reason", td_coord_refusal_name((enum td_refusal)i)};
        struct td_metrics_desc desc = {.kind = TD_METRICS_COUNTER,
                                       .name = "tensord_requests_refused_total",
                                       .help = "Requests that were turned away, by why",
                                       .labels = &reason,
                                       .n_labels = 1};

        s = td_metrics_register(td_coord_metrics(c), &desc, &m->refused[i], err);
    }
    s = s ? s : register_groups(m, err);
    s = s ? s : td_gpu_metrics_open(td_coord_metrics(c), &m->gpus, err);
    if (s) {
        free(m);
        return s;
    }
    td_metrics_set_refresh(td_coord_metrics(c), refresh, m);
    *out = m;
    return TD_OK;
}

void td_coord_metrics_close(struct td_coord_metrics *m)
{
    if (m)
        td_gpu_metrics_close(m->gpus);
    free(m);
}
