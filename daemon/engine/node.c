#include "daemon/engine/node.h"

#include "comm/comm_mpi.h"
#include "daemon/engine/hostshare.h"
#include "daemon/log.h"
#include "daemon/text/tokenizer.h"
#include "kernels/base/clock.h"
#include "kernels/cuda/formats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A step's first message; most steps fit in it. */
enum { HEAD_BYTES = 4096 };

static void run_on_host(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    td_kern_run(user, n, task, arg);
}

/* The GPU of the rank takes the place of the CPU, whose threads stay. *memory: this rank's share of what is free on it. */
static enum td_status open_gpu(struct td_node *node, uint32_t local_rank, uint32_t local_size,
                               uint64_t *memory, struct td_err *err)
{
    const struct td_node_params *p = &node->params;
    const char *number = strchr(p->device, ':');
    struct td_kern_cuda_params params = {.plugin = p->cuda_plugin,
                                         .graphs = p->cuda_graphs,
                                         .run = run_on_host,
                                         .user = node->kern,
                                         .inexact_from = p->exact ? 0 : TD_CUDA_LIB_TOKENS};
    uint32_t n_devices = 1, n_sharing = local_size;
    enum td_status s;

    if (number) {
        params.device = (uint32_t)strtoul(number + 1, NULL, 10);
    } else {
        s = td_kern_cuda_count(p->cuda_plugin, &n_devices, err);
        if (s)
            return s;
        params.device = local_rank % n_devices;
        n_sharing = (local_size + n_devices - 1) / n_devices;
    }
    node->cuda_device = params.device;
    node->host_kern = node->kern;
    node->kern = NULL;
    s = td_kern_cuda_open(&params, &node->kern, err);
    if (s)
        return s;
    *memory = (uint64_t)((double)td_kern_free_bytes(node->kern) * p->gpu_share / n_sharing);
    return TD_OK;
}

static enum td_status open_device(struct td_node *node, struct td_err *err)
{
    const struct td_node_params *p = &node->params;
    struct td_kern_cpu_params kern = {.isa = p->isa};
    struct td_comm *host = NULL;
    uint32_t local_size, local_rank;
    char text[128];
    uint64_t memory;
    enum td_status s = td_comm_split_host(node->world, &host, err);

    node->host = td_comm_rank(node->world); /* the first of the host keeps its own */
    s = s ? s : td_comm_bcast(host, 0, &node->host, sizeof node->host, err);
    s = s ? s : td_hostshare_cores(host, p->n_threads, &node->cores, err);
    local_size = host ? td_comm_size(host) : 1;
    local_rank = host ? td_comm_rank(host) : 0;
    td_comm_close(host);
    if (s)
        return s;
    td_cores_describe(&node->cores, text, sizeof text);
    td_log_debug("cores rank=%u choice=\"%s\"", td_comm_rank(node->world), text);
    kern.n_threads = node->cores.n_threads;
    kern.seats = node->cores.seated ? node->cores.seats : NULL;
    for (uint32_t i = 0; node->cores.seated && i < node->cores.n_threads; i++)
        CPU_SET(node->cores.seats[i].cpu, &node->sum_cpus);
    /* Ranks spin only where every thread has a core of its own. */
    node->owns_cores = node->cores.owned;
    kern.spin_ns = node->spin_ns = node->cores.owned ? 2000000 : 0;
    td_comm_set_spin(node->world, kern.spin_ns);
    s = td_kern_cpu_open(&kern, &node->kern, err);
    memory = td_hostshare_memory_bytes() / local_size;
    if (!s && p->device && strcmp(p->device, "cpu") != 0)
        s = open_gpu(node, local_rank, local_size, &memory, err);
    if (s)
        return s;
    node->facts.memory_bytes =
        p->memory_bytes && (!memory || p->memory_bytes < memory) ? p->memory_bytes : memory;
    node->facts.n_cores = node->cores.n_cores;
    node->facts.n_threads = kern.n_threads;
    return TD_OK;
}

enum td_status td_node_open(struct td_node *node, struct td_comm *world,
                            const struct td_node_params *params, struct td_err *err)
{
    /* Sums of narrowed floats are of a class of their own. */
    static const char *const exchange_mark[] = {[TD_EXCHANGE_F32] = "",
                                                [TD_EXCHANGE_BF16] = "+bf16-exchange",
                                                [TD_EXCHANGE_Q8_0] = "+q8_0-exchange"};
    struct td_node_facts *f = &node->facts;
    const char *mpi;
    enum td_status s;

    memset(node, 0, sizeof *node);
    node->world = world;
    node->params = *params;
    (void)sched_getaffinity(0, sizeof node->mask, &node->mask); /* on failure: none */
    s = td_node_agree(world, open_device(node, err), err);
    if (s) {
        td_node_close(node);
        return s;
    }
    snprintf(f->version, sizeof f->version, "%s", TD_VERSION);
    gethostname(f->host, sizeof f->host - 1);
    snprintf(f->device, sizeof f->device, "%s", td_kern_name(node->kern));
    snprintf(f->bus_id, sizeof f->bus_id, "%s", td_kern_bus_id(node->kern));
    f->device_kind = td_kern_is_host(node->kern) ? TD_ON_CPU : TD_ON_CUDA;
    snprintf(f->numerics, sizeof f->numerics, "%s%s", td_kern_numerics(node->kern),
             exchange_mark[params->exchange]);
    mpi = td_comm_mpi_version();
    snprintf(f->mpi, sizeof f->mpi, "%.*s", (int)strcspn(mpi, ","), mpi);
    f->pid = getpid();
    return TD_OK;
}

enum td_status td_node_open_model(struct td_node *node, const char *path, bool verify,
                                  struct td_err *err)
{
    enum td_status s = td_checkpoint_open(path, &node->ck, err);

    s = s ? s : td_checkpoint_hash(node->ck, verify, node->facts.model_hash, err);
    if (!s) {
        node->model = calloc(1, sizeof *node->model);
        s = node->model ? td_plan_model_read(node->ck, node->model, err)
                        : td_err_set(err, TD_NO_MEMORY, "no memory for the model's description");
    }
    return td_node_agree(node->world, s, err);
}

const char *td_node_fact_name(enum td_node_fact fact)
{
    static const char *const names[TD_NODE_N_FACTS] = {[TD_NODE_VERSION] = "tensord",
                                                       [TD_NODE_MODEL_HASH] = "model hash",
                                                       [TD_NODE_NUMERICS] = "numerics class",
                                                       [TD_NODE_MPI] = "MPI library"};

    return names[fact];
}

const char *td_node_fact_text(const struct td_node_facts *facts, enum td_node_fact fact)
{
    switch (fact) {
    case TD_NODE_VERSION:
        return facts->version;
    case TD_NODE_MODEL_HASH:
        return facts->model_hash;
    case TD_NODE_NUMERICS:
        return facts->numerics;
    default:
        return facts->mpi;
    }
}

enum td_status td_node_compare(const struct td_node_facts *all, uint32_t n, struct td_err *err)
{
    for (uint32_t r = 1; r < n; r++) {
        for (enum td_node_fact fact = 0; fact < TD_NODE_N_REFUSED; fact++) {
            const char *have = td_node_fact_text(&all[r], fact);
            const char *want = td_node_fact_text(&all[0], fact);

            if (strcmp(have, want) != 0)
                return td_err_set(err, TD_PEER_MISMATCH,
                                  "rank %u on %s has %s %s, rank 0 on %s has %s", r, all[r].host,
                                  td_node_fact_name(fact), have, all[0].host, want);
        }
    }
    return TD_OK;
}

enum td_status td_node_gather(struct td_node *node, struct td_node_facts *all, struct td_err *err)
{
    size_t bytes[TD_PLAN_MAX_RANKS];
    uint32_t n = td_comm_size(node->world);
    enum td_status s;

    for (uint32_t r = 0; r < n && r < TD_PLAN_MAX_RANKS; r++)
        bytes[r] = sizeof *all;
    s = td_comm_all_gather(node->world, &node->facts, bytes, all, err);
    return s ? s : td_node_compare(all, n, err);
}

enum td_status td_node_agree(struct td_comm *world, enum td_status status, struct td_err *err)
{
    struct report {
        int32_t status;
        char cause[sizeof err->cause];
    } mine = {.status = (int32_t)status}, *all;
    uint32_t n = td_comm_size(world), me = td_comm_rank(world);
    size_t bytes[TD_PLAN_MAX_RANKS];
    struct td_err lost;
    enum td_status s;

    if (n == 1)
        return status;
    all = calloc(n, sizeof *all);
    if (!all)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the state of %u ranks", n);
    if (status)
        td_err_format(err, mine.cause, sizeof mine.cause);
    for (uint32_t r = 0; r < n; r++)
        bytes[r] = sizeof mine;
    s = td_comm_all_gather(world, &mine, bytes, all, status ? &lost : err);
    if (s && status) /* what went wrong here says more than that the others are gone */
        s = status;
    else if (!s)
        for (uint32_t r = 0; !s && r < n; r++) {
            s = (enum td_status)all[r].status;
            if (s && r != me)
                td_err_set(err, s, "rank %u: %.300s", r, all[r].cause);
        }
    free(all);
    return s;
}

/* The draft model, on rank 0: its vocabulary is checked and its weights are loaded. */
static enum td_status load_draft(struct td_node *node, const char *path, struct td_err *err)
{
    struct td_tokenizer *tok = NULL;
    enum td_status s = td_draftmodel_open(path, &node->draft, err);

    s = s ? s : td_tokenizer_open(node->ck, &tok, err);
    s = s ? s : td_draftmodel_check(node->draft, tok, err);
    s = s ? s : td_draftmodel_load(node->draft, node->kern, node->plan, err);
    td_tokenizer_close(tok);
    return s;
}

bool td_node_run_draft(const struct td_step *step, struct td_step_result *result, uint64_t *ns,
                       void *user)
{
    struct td_node *node = user;
    uint64_t start = td_clock_now_ns();
    struct td_err err;
    char text[sizeof err.cause + sizeof err.context];

    if (node->draft_failed)
        return false;
    if (td_draftmodel_step(node->draft, step, result, &err)) {
        td_log_warn("draft model error=\"%s\"; there are no more drafts",
                    td_err_format(&err, text, sizeof text));
        node->draft_failed = true;
    }
    *ns = td_clock_now_ns() - start;
    return !node->draft_failed;
}

/* How the sums of this rank's stage travel. */
static enum td_status choose_sums(struct td_node *node, struct td_err *err)
{
    struct td_sumchoice_params p = node->params.sums;
    struct td_sum_choices choices;
    enum td_status s;

    if (node->plan->tp == 1 || strcmp(td_shard_transport(node->shard), "nccl") == 0)
        return TD_OK;
    p.may_measure = node->owns_cores;
    s = td_sumchoice_make(node->stage ? node->stage : node->world, node->facts.host, &p, &choices,
                          err);
    if (!s)
        td_shard_set_sums(node->shard, &choices, node->params.exchange);
    return s;
}

/* Which steps rank 0 cuts into parts. */
static void open_overlap(struct td_node *node)
{
    bool leads = td_comm_rank(node->world) == 0;
    const char *transport = td_shard_transport(node->shard);

    td_overlapchoice_init(&node->overlap, leads ? node->params.overlap : TD_OVERLAP_OFF,
                          node->plan->tp > 1 && strcmp(transport, "nccl") != 0,
                          strcmp(transport, "shm") != 0);
}

/* The layers of a step took this rank `ns`. */
static void learn_overlap(struct td_node *node, const struct td_step *step, uint64_t ns)
{
    const struct td_overlapchoice_class *c =
        td_overlapchoice_learn(&node->overlap, step->n_rows, ns);
    char line[160] = "";
    size_t at = 0;

    if (!c)
        return;
    for (uint32_t w = 0; w < TD_N_OVERLAP_WAYS && at < sizeof line; w++)
        if (c->typical_ps[w])
            at += (size_t)snprintf(line + at, sizeof line - at, " %s=%.1fus",
                                   td_overlapchoice_name((enum td_overlap_way)w),
                                   (double)c->typical_ps[w] * 1e-6);
    td_log_debug("overlap rows=%u choice=%s%s per row", step->n_rows,
                 td_overlapchoice_name(c->best), line);
}

/* The shard with its exchange. Where NCCL would have been taken, and cannot be, the operator hears why. */
static enum td_status open_shard(struct td_node *node, struct td_shard_params *shard,
                                 struct td_err *err)
{
    const struct td_nccl_config nccl = {.plugin = node->params.nccl_plugin,
                                        .device = (int)node->cuda_device};
    enum td_status s;

    if (!td_kern_is_host(node->kern) && node->params.gpu_exchange != TD_NODE_EXCHANGE_HOST)
        shard->nccl = &nccl;
    shard->needs_nccl = node->params.gpu_exchange == TD_NODE_EXCHANGE_NCCL;
    shard->gpu_sums = node->params.gpu_sums;
    s = td_shard_open(shard, &node->shard, err);
    if (!s && td_comm_rank(node->world) == 0 && td_shard_nccl_refused(node->shard)[0])
        td_log_warn("gpu exchange=\"host memory\" because=\"%s\"",
                    td_shard_nccl_refused(node->shard));
    if (!s && td_comm_rank(node->world) == 0 && td_shard_gpu_sums(node->shard)[0])
        td_log_debug("gpu sums=\"%s\"", td_shard_gpu_sums(node->shard));
    return s;
}

enum td_status td_node_load(struct td_node *node, const struct td_plan_params *plan,
                            const char *offload_dir, const char *draft_path, struct td_err *err)
{
    struct td_shard_params shard = {.ck = node->ck,
                                    .model = node->model,
                                    .kern = node->kern,
                                    .world = node->world,
                                    .sum_cpus = node->cores.seated ? &node->sum_cpus : NULL,
                                    .offload_dir = offload_dir,
                                    .device_is_shared = draft_path != NULL,
                                    .progress = node->params.progress,
                                    .user = node->params.user};
    enum td_status s;

    node->plan = calloc(1, sizeof *node->plan);
    if (!node->plan)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the plan");
    s = td_plan_make(node->model, plan, node->plan, err);
    if (s)
        return s;
    shard.plan = node->plan;
    s = td_step_open(&node->step, node->plan->max_batched_tokens, node->plan->max_num_seqs,
                     td_step_table_cap(node->plan->max_num_seqs, node->plan->max_model_len,
                                       node->plan->block_tokens),
                     err);
    if (!s) {
        node->wire_bytes = td_step_max_bytes(&node->step) + sizeof(uint64_t);
        node->wire_bytes = node->wire_bytes < HEAD_BYTES ? HEAD_BYTES : node->wire_bytes;
        node->wire = calloc(1, node->wire_bytes);
        s = node->wire ? TD_OK
                       : td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of step",
                                    node->wire_bytes);
    }
    if (!s && td_comm_rank(node->world) == 0 &&
        node->plan->n_slots[TD_OFFLOAD_MEMORY] + node->plan->n_slots[TD_OFFLOAD_FILE]) {
        node->all_moves = calloc(td_comm_size(node->world), sizeof *node->all_moves);
        s = node->all_moves ? TD_OK
                            : td_err_set(err, TD_NO_MEMORY, "no memory for the moves of KV blocks");
    }
    if (!s && !(node->moves = calloc(node->plan->pp, sizeof *node->moves)))
        s = td_err_set(err, TD_NO_MEMORY, "no memory for the moves of KV blocks");
    /* Opening is collective: a rank without memory for the little things above still has to take part, so it fails here
     * together with the others. */
    s = td_node_agree(node->world, s, err);
    if (s)
        return s;
    if (node->plan->pp > 1) {
        const struct td_plan_rank *me = &node->plan->rank[td_comm_rank(node->world)];

        s = td_comm_split(node->world, (int)me->stage, (int)me->tp_index, &node->stage, err);
    }
    s = s ? s : open_shard(node, &shard, err);
    s = s ? s : choose_sums(node, err);
    if (!s)
        open_overlap(node);
    if (!s && draft_path && td_comm_rank(node->world) == 0)
        s = load_draft(node, draft_path, err);
    return td_node_agree(node->world, s, err);
}

void td_node_unload(struct td_node *node)
{
    td_draftmodel_close(node->draft);
    node->draft = NULL;
    node->draft_failed = false;
    td_comm_close(node->stage);
    node->stage = NULL;
    td_shard_close(node->shard);
    node->shard = NULL;
    free(node->wire);
    node->wire = NULL;
    free(node->all_moves);
    node->all_moves = NULL;
    free(node->moves);
    node->moves = NULL;
    td_step_close(&node->step);
    free(node->plan);
    node->plan = NULL;
    free(node->model);
    node->model = NULL;
    td_checkpoint_close(node->ck);
    node->ck = NULL;
    node->n_steps = node->n_complete = node->recorded_wait_ns = 0;
    node->run_ns = node->gap_ns = node->n_gaps = node->n_failed_moves = 0;
    td_node_rest(node);
}

void td_node_close(struct td_node *node)
{
    td_node_unload(node);
    td_kern_close(node->kern);
    td_kern_close(node->host_kern);
    memset(node, 0, sizeof *node);
}

void td_node_rest(struct td_node *node)
{
    node->step_end_ns = 0;
}

/* Moves that fail leave a place empty, and all else goes on; of the first one the operator hears. */
static enum td_status try_move(struct td_node *node, const struct td_step_move *move, bool *failed,
                               struct td_err *err)
{
    enum td_status s = td_shard_move(node->shard, move, err);
    char text[sizeof err->cause + sizeof err->context];

    if (s == TD_INVALID || s == TD_DEVICE)
        return s;
    *failed = s != TD_OK;
    if (s && node->n_failed_moves++ == 0)
        td_log_warn("offloaded KV rank=%u error=\"%s\"; it is computed again",
                    td_comm_rank(node->world), td_err_format(err, text, sizeof text));
    return TD_OK;
}

/* What became of the moves of a step that is not complete yet. */
static struct td_move_result *moves_of(struct td_node *node, uint64_t number)
{
    return &node->moves[number % node->plan->pp];
}

/* A step's moves on this rank, timed. */
static enum td_status move_blocks(struct td_node *node, const struct td_step *step,
                                  struct td_err *err)
{
    struct td_move_result *m = moves_of(node, step->number);
    uint64_t start = td_clock_now_ns(), before = start, now;
    enum td_status s = TD_OK;

    if (step->n_moves == 0)
        return TD_OK;
    memset(m, 0, sizeof *m);
    for (uint32_t i = 0; !s && i < step->n_moves; i++, before = now) {
        const struct td_step_move *move = &step->moves[i];
        bool reads = move->kind == TD_MOVE_IN;
        uint32_t slot = reads ? move->from : move->to;
        enum td_offload_tier tier = td_offload_tier_of(node->plan->n_slots, slot);

        s = try_move(node, move, &m->failed[i], err);
        now = td_clock_now_ns();
        if (m->failed[i])
            continue;
        (reads ? m->read_ns : m->write_ns)[tier] += now - before;
        (reads ? m->n_read : m->n_written)[tier]++;
    }
    m->ns = before - start;
    m->n = step->n_moves;
    return s;
}

static uint64_t longer(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* What the ranks say of a complete step's moves meets on rank 0: the longest times, and what failed anywhere. */
static enum td_status join_moves(struct td_node *node, struct td_step_result *result,
                                 struct td_err *err)
{
    struct td_move_result *mine = moves_of(node, result->number), *all = node->all_moves;
    uint32_t n = td_comm_size(node->world);
    size_t bytes[TD_PLAN_MAX_RANKS];
    enum td_status s = TD_OK;

    if (mine->n == 0)
        return TD_OK;
    for (uint32_t r = 0; r < n; r++)
        bytes[r] = sizeof *mine;
    if (n > 1)
        s = td_comm_gather(node->world, 0, mine, bytes, all, err);
    for (uint32_t r = 1; !s && all && r < n; r++) {
        mine->ns = longer(mine->ns, all[r].ns);
        for (uint32_t t = 0; t < TD_OFFLOAD_TIERS; t++) {
            mine->read_ns[t] = longer(mine->read_ns[t], all[r].read_ns[t]);
            mine->write_ns[t] = longer(mine->write_ns[t], all[r].write_ns[t]);
        }
        for (uint32_t i = 0; i < mine->n; i++)
            mine->failed[i] |= all[r].failed[i];
    }
    node->joined_moves = *mine;
    result->moves = &node->joined_moves;
    mine->n = 0;
    return s;
}

/* A step, or a part of one, begins: notes the gap before it. Returns when. */
static uint64_t begin_run(struct td_node *node)
{
    uint64_t now = td_clock_now_ns();

    if (node->step_end_ns) {
        node->gap_ns += now - node->step_end_ns;
        node->n_gaps++;
    }
    return now;
}

static void end_run(struct td_node *node, uint64_t start)
{
    node->step_end_ns = td_clock_now_ns();
    node->run_ns += node->step_end_ns - start;
}

/* One stage: a step from its beginning to its end. */
static enum td_status run_step(struct td_node *node, const struct td_step *step,
                               struct td_step_result *result, struct td_err *err)
{
    uint64_t start = begin_run(node);
    enum td_status s = move_blocks(node, step, err);

    if (!s && step->n_rows) {
        uint64_t moved = td_clock_now_ns();

        s = td_shard_step(node->shard, step, result, err);
        learn_overlap(node, step, td_clock_now_ns() - moved);
    }
    result->is_complete = true;
    result->number = step->number;
    s = s ? s : join_moves(node, result, err);
    end_run(node, start);
    return s;
}

/* A pipeline's turn, after its message is known: `step` begins, or nothing does. */
static enum td_status finish_turn(struct td_node *node, const struct td_step *step,
                                  struct td_step_result *result, struct td_err *err)
{
    bool is_first = node->plan->rank[td_comm_rank(node->world)].stage == 0;
    uint64_t start = is_first ? td_clock_now_ns() : begin_run(node); /* stage 0 is in its turn */
    const struct td_step *due;
    enum td_status s =
        td_shard_shift(node->shard, step->kind == TD_STEP_RUN ? step : NULL, result, err);

    due = td_shard_due(node->shard);
    if (!s && due) {
        s = move_blocks(node, due, err);
        s = s ? s : td_shard_back(node->shard, err);
    }
    if (!s && result->is_complete)
        s = join_moves(node, result, err);
    end_run(node, start);
    return s;
}

/* What stage 0 does before the other stages are told. */
static enum td_status begin_turn(struct td_node *node, const struct td_step *step,
                                 struct td_err *err)
{
    uint64_t start = begin_run(node);
    enum td_status s = TD_OK;

    if (step->kind == TD_STEP_RUN) {
        uint64_t moved;

        s = move_blocks(node, step, err);
        moved = td_clock_now_ns();
        s = s ? s : td_shard_front(node->shard, step, err);
        learn_overlap(node, step, td_clock_now_ns() - moved);
    }
    node->run_ns += td_clock_now_ns() - start;
    return s;
}

static bool is_turn(const struct td_step *step)
{
    return step->kind == TD_STEP_RUN || step->kind == TD_STEP_FLUSH;
}

/* The wire form: the length of the encoded step in 8 bytes, then the step. */
static enum td_status send_step(struct td_node *node, struct td_comm *comm, struct td_err *err)
{
    uint8_t *wire = node->wire;
    uint64_t bytes;
    enum td_status s;

    if (td_comm_size(comm) == 1)
        return TD_OK;
    memcpy(&bytes, wire, sizeof bytes);
    s = td_comm_bcast(comm, 0, wire, HEAD_BYTES, err);
    if (!s && bytes + sizeof bytes > HEAD_BYTES)
        s = td_comm_bcast(comm, 0, wire + HEAD_BYTES, bytes + sizeof bytes - HEAD_BYTES, err);
    return s;
}

static enum td_status receive_step(struct td_node *node, struct td_comm *comm, struct td_err *err)
{
    uint8_t *wire = node->wire;
    uint64_t bytes;
    enum td_status s = td_comm_bcast(comm, 0, wire, HEAD_BYTES, err);

    if (s)
        return s;
    memcpy(&bytes, wire, sizeof bytes);
    if (bytes > node->wire_bytes - sizeof bytes)
        return td_err_set(err, TD_PEER_PROTOCOL, "a step of %llu bytes: expected at most %zu",
                          (unsigned long long)bytes, node->wire_bytes - sizeof bytes);
    if (bytes + sizeof bytes > HEAD_BYTES)
        s = td_comm_bcast(comm, 0, wire + HEAD_BYTES, bytes + sizeof bytes - HEAD_BYTES, err);
    if (!s)
        s = td_step_decode(&node->step, wire + sizeof bytes, bytes, err);
    if (!s && node->step.number != node->n_steps)
        return td_err_set(err, TD_PEER_MISMATCH, "rank 0 sent step %llu, this rank expected %llu",
                          (unsigned long long)node->step.number, (unsigned long long)node->n_steps);
    return s;
}

static void record_begin(struct td_node *node, const struct td_step *step)
{
    const struct td_recorder_step record = {
        .number = step->number, .kind = step->kind, .n_rows = step->n_rows, .n_seqs = step->n_seqs};

    if (node->params.recorder)
        td_recorder_begin(node->params.recorder, &record, node->step_limit_ns);
}

/* From here on all ranks do the same exchanges. */
static void record_told(struct td_node *node, const struct td_step *step)
{
    struct td_comm_at at;

    if (!node->params.recorder)
        return;
    td_comm_look_at(node->world, &at);
    td_recorder_told(node->params.recorder, step->hash, at.n_begun);
}

static void record_end(struct td_node *node, enum td_status status)
{
    struct td_shard_stats stats;

    if (!node->params.recorder)
        return;
    td_shard_stats(node->shard, &stats);
    td_recorder_end(node->params.recorder, (uint32_t)status,
                    stats.wait_ns - node->recorded_wait_ns);
    node->recorded_wait_ns = stats.wait_ns;
}

/* The end of a turn. */
static enum td_status count_step(struct td_node *node, const struct td_step_result *result,
                                 enum td_status status)
{
    node->is_complete = !status && result->is_complete;
    if (node->is_complete)
        node->n_complete = result->number + 1;
    if (!status)
        __atomic_add_fetch(&node->n_steps, 1, __ATOMIC_RELAXED);
    record_end(node, status);
    return status;
}

enum td_status td_node_lead(struct td_node *node, struct td_step *step,
                            struct td_step_result *result, struct td_err *err)
{
    bool is_pipeline = node->plan->pp > 1;
    uint64_t bytes = td_step_encoded_bytes(step);
    enum td_status s = TD_OK;

    *result = (struct td_step_result){0};
    step->part_rows = td_overlapchoice_part_rows(&node->overlap, step->n_rows);
    if (bytes > node->wire_bytes - sizeof bytes)
        return td_err_set(err, TD_TOO_LARGE, "a step of %llu bytes: expected at most %zu",
                          (unsigned long long)bytes, node->wire_bytes - sizeof bytes);
    if (td_comm_size(node->world) > 1) {
        memcpy(node->wire, &bytes, sizeof bytes);
        td_step_encode(step, (uint8_t *)node->wire + sizeof bytes);
    }
    record_begin(node, step);
    /* The other stages are busy until this one has computed its part: they are told then. */
    if (is_pipeline)
        s = send_step(node, node->stage, err);
    if (!s && is_pipeline && is_turn(step))
        s = begin_turn(node, step, err);
    s = s ? s : send_step(node, node->world, err);
    if (!s)
        record_told(node, step);
    if (!is_turn(step))
        td_node_rest(node);
    else if (!s)
        s = is_pipeline ? finish_turn(node, step, result, err) : run_step(node, step, result, err);
    return count_step(node, result, s);
}

enum td_status td_node_run(struct td_node *node, struct td_step *step,
                           struct td_step_result *result, struct td_err *err)
{
    enum td_status s = td_node_lead(node, step, result, err);

    while (!s && !result->is_complete) {
        td_step_reset(&node->step, TD_STEP_FLUSH, node->n_steps);
        s = td_node_lead(node, &node->step, result, err);
    }
    return s;
}

static bool is_first_of_pipeline(const struct td_node *node)
{
    return node->plan->pp > 1 && node->plan->rank[td_comm_rank(node->world)].stage == 0;
}

struct td_comm *td_node_ear(const struct td_node *node)
{
    return is_first_of_pipeline(node) ? node->stage : node->world;
}

enum td_status td_node_follow(struct td_node *node, struct td_err *err)
{
    bool is_pipeline = node->plan->pp > 1;
    bool is_first = is_first_of_pipeline(node);
    struct td_step_result none = {0};
    enum td_status s = TD_OK;

    if (is_first) {
        s = receive_step(node, node->stage, err);
        if (!s)
            record_begin(node, &node->step);
        if (!s && is_turn(&node->step))
            s = begin_turn(node, &node->step, err);
    }
    s = s ? s : receive_step(node, node->world, err);
    if (s)
        return s;
    record_begin(node, &node->step);
    record_told(node, &node->step);
    if (!is_turn(&node->step))
        td_node_rest(node);
    else if (!is_pipeline)
        s = run_step(node, &node->step, &none, err);
    else
        s = finish_turn(node, &node->step, &none, err);
    return count_step(node, &none, s);
}
