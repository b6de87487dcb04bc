#include "daemon/engine/wire.h"

#include "proto/rpc.h"

#include <stdlib.h>
#include <string.h>

static const uint64_t MAX_BYTES = (uint64_t)1 << 50;
static const double MAX_SHARE = 9007199254740992.0; /* 2^53: every integer up to it is exact */

/* Every field that both sides hold as one number under one name. */
#define SAMPLING_FIELDS(X)                                                                         \
    X(temperature)                                                                                 \
    X(top_k)                                                                                       \
    X(top_p)                                                                                       \
    X(min_p)                                                                                       \
    X(repetition_penalty)                                                                          \
    X(presence_penalty)                                                                            \
    X(frequency_penalty)                                                                           \
    X(typical_p)                                                                                   \
    X(top_n_sigma)                                                                                 \
    X(xtc_probability)                                                                             \
    X(xtc_threshold)                                                                               \
    X(dynatemp_range)                                                                              \
    X(dynatemp_exponent)                                                                           \
    X(repeat_last_n)                                                                               \
    X(dry_multiplier)                                                                              \
    X(dry_base)                                                                                    \
    X(dry_allowed_length)                                                                          \
    X(dry_penalty_last_n)                                                                          \
    X(mirostat)                                                                                    \
    X(mirostat_tau)                                                                                \
    X(mirostat_eta)                                                                                \
    X(seed)                                                                                        \
    X(choice)                                                                                      \
    X(n_logprobs)

static void put_sampling(const struct td_sampling *s, Tensord__Worker__V1__Sampling *m)
{
#define PUT(field) m->field = s->field;
    SAMPLING_FIELDS(PUT)
#undef PUT
    m->dry_breakers =
        (ProtobufCBinaryData){s->n_dry_breaker_bytes, (uint8_t *)(uintptr_t)s->dry_breakers};
}

static void take_sampling(const Tensord__Worker__V1__Sampling *m, struct td_sampling *s)
{
#define TAKE(field) s->field = m->field;
    SAMPLING_FIELDS(TAKE)
#undef TAKE
}

Tensord__Worker__V1__Submit *td_wire_submit_make(const struct td_request *r, uint64_t number,
                                                 struct td_arena *arena)
{
    const struct td_sampling *s = &r->sampling;
    Tensord__Worker__V1__Submit *m = td_arena_alloc(arena, sizeof *m);
    Tensord__Worker__V1__Sampling *sampling = td_arena_alloc(arena, sizeof *sampling);
    Tensord__Worker__V1__LogitBias **bias = td_arena_alloc(arena, s->n_bias * sizeof(void *));
    Tensord__Worker__V1__LogitBias *biases = td_arena_alloc(arena, s->n_bias * sizeof *biases);
    ProtobufCBinaryData *stops = td_arena_alloc(arena, r->n_stops * sizeof *stops);

    if (!m || !sampling || !bias || !biases || !stops)
        return NULL;
    tensord__worker__v1__submit__init(m);
    tensord__worker__v1__sampling__init(sampling);
    for (uint32_t i = 0; i < s->n_bias; i++) {
        tensord__worker__v1__logit_bias__init(&biases[i]);
        biases[i].id = s->bias[i].id;
        biases[i].bias = s->bias[i].bias;
        bias[i] = &biases[i];
    }
    for (uint32_t i = 0; i < r->n_stops; i++)
        stops[i] = (ProtobufCBinaryData){r->stop_bytes[i], (uint8_t *)r->stops[i]};
    put_sampling(s, sampling);
    sampling->n_bias = s->n_bias;
    sampling->bias = bias;
    m->number = number;
    m->request_id = r->id;
    m->n_prompt = r->n_prompt;
    m->prompt = r->prompt;
    m->max_tokens = r->max_tokens;
    m->min_tokens = r->min_tokens;
    m->ignore_eos = r->ignore_eos;
    m->sampling = sampling;
    m->n_stops = r->n_stops;
    m->stops = stops;
    m->include_stop = r->include_stop;
    m->n_stop_ids = r->n_stop_ids;
    m->stop_ids = (uint32_t *)r->stop_ids;
    m->cache_salt = r->cache_salt;
    m->no_prefix_cache = r->no_prefix_cache;
    m->priority = r->priority;
    m->prompt_logprobs = r->prompt_logprobs;
    m->n_emitted = r->n_emitted;
    m->emitted = r->emitted;
    m->mirostat_mu = r->state.mu;
    return m;
}

enum td_status td_wire_submit_read(const Tensord__Worker__V1__Submit *m, struct td_request *r,
                                   struct td_err *err)
{
    const Tensord__Worker__V1__Sampling *s = m->sampling;

    td_request_init(r);
    if (!s || m->n_prompt == 0 || m->n_prompt > UINT32_MAX || m->n_stops > TD_REQUEST_MAX_STOPS ||
        m->n_stop_ids > TD_REQUEST_MAX_STOP_IDS || s->n_bias > TD_SAMPLER_MAX_BIAS ||
        m->n_emitted > UINT32_MAX || s->dry_breakers.len > TD_SAMPLING_MAX_BREAKER_BYTES)
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "submit of request %llu has %zu prompt ids, %zu stops, %zu stop ids, "
                          "%zu biases and %zu bytes of breakers: over a limit",
                          (unsigned long long)m->request_id, m->n_prompt, m->n_stops, m->n_stop_ids,
                          s ? s->n_bias : 0, s ? s->dry_breakers.len : 0);
    r->prompt = malloc(m->n_prompt * sizeof *r->prompt);
    if (!r->prompt)
        goto no_memory;
    memcpy(r->prompt, m->prompt, m->n_prompt * sizeof *r->prompt);
    r->n_prompt = (uint32_t)m->n_prompt;
    for (size_t i = 0; i < m->n_emitted; i++)
        if (td_request_emit(r, m->emitted[i], (struct td_sampler_state){m->mirostat_mu}, NULL))
            goto no_memory;
    r->id = m->request_id;
    r->max_tokens = m->max_tokens;
    r->min_tokens = m->min_tokens;
    r->ignore_eos = m->ignore_eos;
    r->include_stop = m->include_stop;
    r->cache_salt = m->cache_salt;
    r->no_prefix_cache = m->no_prefix_cache;
    r->priority = m->priority;
    r->prompt_logprobs = m->prompt_logprobs;
    for (size_t i = 0; i < m->n_stops; i++) {
        if (m->stops[i].len == 0 || m->stops[i].len > TD_REQUEST_MAX_STOP_BYTES) {
            td_request_deinit(r);
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "submit of request %llu has a stop string of %zu bytes, expected 1 "
                              "to %d",
                              (unsigned long long)m->request_id, m->stops[i].len,
                              TD_REQUEST_MAX_STOP_BYTES);
        }
        r->stops[i] = malloc(m->stops[i].len + 1);
        if (!r->stops[i])
            goto no_memory;
        memcpy(r->stops[i], m->stops[i].data, m->stops[i].len);
        r->stops[i][m->stops[i].len] = '\0';
        r->stop_bytes[i] = m->stops[i].len;
        r->n_stops++;
    }
    r->n_stop_ids = (uint32_t)m->n_stop_ids;
    if (m->n_stop_ids)
        memcpy(r->stop_ids, m->stop_ids, m->n_stop_ids * sizeof *r->stop_ids);
    take_sampling(s, &r->sampling);
    if (td_request_set_breakers(r, s->dry_breakers.data, s->dry_breakers.len, NULL))
        goto no_memory;
    r->sampling.n_bias = (uint32_t)s->n_bias;
    for (size_t i = 0; i < s->n_bias; i++)
        r->sampling.bias[i] = (struct td_logit_bias){s->bias[i]->id, s->bias[i]->bias};
    return TD_OK;

no_memory:
    td_request_deinit(r);
    return td_err_set(err, TD_NO_MEMORY, "no memory for request %llu",
                      (unsigned long long)m->request_id);
}

Tensord__Worker__V1__TokenEvent *td_wire_token_make(const struct td_token_event *e,
                                                    struct td_arena *arena)
{
    uint32_t n_top = e->has_token || e->is_prompt ? e->token.n_top : 0;
    Tensord__Worker__V1__TokenEvent *m = td_arena_alloc(arena, sizeof *m);
    Tensord__Worker__V1__TokenLogprob **top = td_arena_alloc(arena, n_top * sizeof(void *));
    Tensord__Worker__V1__TokenLogprob *tops = td_arena_alloc(arena, n_top * sizeof *tops);
    /* Copied: the event is gone when the messages of one turn are sent together. */
    struct td_str text = td_str_from(e->error ? e->error->cause : "");
    char *error = td_arena_strndup(arena, text.ptr, text.len);

    if (!m || !top || !tops || !error)
        return NULL;
    tensord__worker__v1__token_event__init(m);
    m->request_id = e->request_id;
    m->index = e->index;
    m->cached_tokens = e->cached_tokens;
    m->queue_ns = e->queue_ns;
    m->is_prompt = e->is_prompt;
    m->finish = (Tensord__Worker__V1__Finish)e->finish;
    if (e->has_token || e->is_prompt) {
        m->has_token_case = TENSORD__WORKER__V1__TOKEN_EVENT__HAS_TOKEN_TOKEN_ID;
        m->token_id = e->token.id;
        m->logprob = e->token.logprob;
        m->rank = e->token.rank;
        m->mirostat_mu = e->state.mu;
        for (uint32_t i = 0; i < n_top; i++) {
            tensord__worker__v1__token_logprob__init(&tops[i]);
            tops[i].id = e->token.top[i].id;
            tops[i].logprob = e->token.top[i].logprob;
            top[i] = &tops[i];
        }
        m->n_top = n_top;
        m->top = top;
    }
    if (e->error) {
        m->error_status = (uint32_t)e->error->status;
        m->error_text = td_rpc_data((struct td_str){error, text.len});
    }
    return m;
}

enum td_status td_wire_token_read(const Tensord__Worker__V1__TokenEvent *m,
                                  struct td_token_event *e, struct td_err *error,
                                  struct td_err *err)
{
    if (m->n_top > TD_SAMPLER_MAX_LOGPROBS || (unsigned)m->finish > TD_FINISH_ERROR)
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "token event of request %llu has %zu alternatives and finish %d",
                          (unsigned long long)m->request_id, m->n_top, (int)m->finish);
    *e = (struct td_token_event){.request_id = m->request_id,
                                 .index = m->index,
                                 .cached_tokens = m->cached_tokens,
                                 .queue_ns = m->queue_ns,
                                 .finish = (enum td_finish)m->finish};
    if (m->has_token_case == TENSORD__WORKER__V1__TOKEN_EVENT__HAS_TOKEN_TOKEN_ID) {
        e->has_token = !m->is_prompt;
        e->is_prompt = m->is_prompt;
        e->token.id = m->token_id;
        e->token.logprob = m->logprob;
        e->token.rank = m->rank;
        e->state.mu = m->mirostat_mu;
        e->token.n_top = (uint32_t)m->n_top;
        for (size_t i = 0; i < m->n_top; i++)
            e->token.top[i] = (struct td_token_logprob){m->top[i]->id, m->top[i]->logprob};
    }
    if (e->finish == TD_FINISH_ERROR) {
        td_err_set(error, m->error_status ? (enum td_status)m->error_status : TD_INTERNAL, "%.*s",
                   (int)(m->error_text.len < 300 ? m->error_text.len : 300),
                   (const char *)m->error_text.data);
        e->error = error;
    }
    return TD_OK;
}

Tensord__Worker__V1__DeviceKind td_wire_device_make(enum td_devicekind kind)
{
    return kind == TD_ON_CUDA ? TENSORD__WORKER__V1__DEVICE_KIND__DEVICE_KIND_CUDA
                              : TENSORD__WORKER__V1__DEVICE_KIND__DEVICE_KIND_CPU;
}

enum td_devicekind td_wire_device_read(Tensord__Worker__V1__DeviceKind kind)
{
    return kind == TENSORD__WORKER__V1__DEVICE_KIND__DEVICE_KIND_CUDA ? TD_ON_CUDA : TD_ON_CPU;
}

Tensord__Worker__V1__Assign *td_wire_assign_make(const struct td_compute_load *load, uint32_t rank,
                                                 struct td_arena *arena)
{
    const struct td_plan_params *p = &load->plan;
    Tensord__Worker__V1__Assign *m = td_arena_alloc(arena, sizeof *m);
    Tensord__Worker__V1__RankShare **ranks = td_arena_alloc(arena, p->n_ranks * sizeof(void *));
    Tensord__Worker__V1__RankShare *shares = td_arena_alloc(arena, p->n_ranks * sizeof *shares);

    if (!m || !ranks || !shares)
        return NULL;
    tensord__worker__v1__assign__init(m);
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        tensord__worker__v1__rank_share__init(&shares[i]);
        shares[i].world_rank = i;
        shares[i].memory_bytes = p->memory_bytes ? p->memory_bytes[i] : 0;
        shares[i].share = p->share ? (double)p->share[i] : 0.0;
        ranks[i] = &shares[i];
    }
    m->rank = rank;
    m->group_size = p->n_ranks;
    m->tp = p->tp;
    m->pp = p->pp;
    m->ep = m->cp = m->dp = 1;
    m->n_ranks = p->n_ranks;
    m->ranks = ranks;
    m->model_path = load->path;
    m->model_hash = (char *)load->model_hash;
    m->device_kind = td_wire_device_make(p->device);
    m->kv_dtype = (char *)td_dtype_info(p->kv_dtype)->name;
    m->max_model_len = p->max_model_len;
    m->max_num_seqs = p->max_num_seqs;
    m->max_batched_tokens = p->max_batched_tokens;
    m->kv_block_tokens = p->block_tokens;
    m->kv_bytes = p->kv_bytes;
    m->max_waiting = load->max_queue;
    m->op_limit_ns = load->op_limit_ns;
    m->verify = load->verify;
    m->prefix_cache = load->prefix_cache;
    m->max_draft_tokens = load->max_draft_tokens;
    m->max_stretch_percent = load->max_stretch_percent;
    m->draft_path = load->draft_path ? load->draft_path : (char *)"";
    m->lead_bytes = p->lead_bytes;
    m->lead_block_bytes = p->lead_block_bytes;
    m->offload_memory_bytes = p->offload_bytes[TD_OFFLOAD_MEMORY];
    m->offload_file_bytes = p->offload_bytes[TD_OFFLOAD_FILE];
    m->offload_dir = load->offload_dir ? load->offload_dir : (char *)"";
    return m;
}

/* Empty stays NULL. */
static bool copy_path(const char *path, char **out)
{
    *out = path[0] ? strdup(path) : NULL;
    return *out || !path[0];
}

enum td_status td_wire_assign_read(const Tensord__Worker__V1__Assign *m,
                                   struct td_compute_load **out, struct td_err *err)
{
    const struct {
        const char *name;
        uint32_t value;
    } axes[] = {{"expert", m->ep}, {"context", m->cp}, {"data", m->dp}};
    struct td_compute_load *load;
    enum td_dtype kv_dtype;

    for (size_t i = 0; i < sizeof axes / sizeof axes[0]; i++)
        if (axes[i].value > 1)
            return td_err_set(err, TD_UNSUPPORTED, "%s parallel size %u: expected 1", axes[i].name,
                              axes[i].value);
    if (m->group_size == 0 || m->group_size > TD_PLAN_MAX_RANKS || m->n_ranks != m->group_size ||
        strlen(m->model_hash) > 32 || !td_dtype_from_name(m->kv_dtype, &kv_dtype))
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "assignment of %u ranks with %zu shares and KV type '%.16s'",
                          m->group_size, m->n_ranks, m->kv_dtype);
    if ((m->offload_file_bytes > 0 && !m->offload_dir[0]) || m->offload_memory_bytes > MAX_BYTES ||
        m->offload_file_bytes > MAX_BYTES || m->lead_bytes > MAX_BYTES ||
        m->lead_block_bytes > MAX_BYTES)
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "assignment of %llu bytes of host memory, %llu in a file in '%.60s' and "
                          "%llu for a draft model: expected at most 2^50 each, and a folder",
                          (unsigned long long)m->offload_memory_bytes,
                          (unsigned long long)m->offload_file_bytes, m->offload_dir,
                          (unsigned long long)m->lead_bytes);
    if (m->max_draft_tokens > TD_SCHED_MAX_DRAFT)
        return td_err_set(err, TD_PEER_PROTOCOL,
                          "assignment of %u tokens guessed ahead: expected at most %d",
                          m->max_draft_tokens, TD_SCHED_MAX_DRAFT);
    for (uint32_t i = 0; i < m->group_size; i++)
        if (!(m->ranks[i]->share >= 0.0 && m->ranks[i]->share <= MAX_SHARE))
            return td_err_set(err, TD_PEER_PROTOCOL,
                              "assignment gives rank %u the share %g, expected 0 to %g", i,
                              m->ranks[i]->share, MAX_SHARE);
    load = calloc(1, sizeof *load);
    if (!load || !copy_path(m->model_path, &load->path) ||
        !copy_path(m->offload_dir, &load->offload_dir) ||
        !copy_path(m->draft_path, &load->draft_path)) {
        td_compute_load_free(load);
        return td_err_set(err, TD_NO_MEMORY, "no memory for an assignment");
    }
    strcpy(load->model_hash, m->model_hash);
    load->verify = m->verify;
    load->prefix_cache = m->prefix_cache;
    load->max_draft_tokens = m->max_draft_tokens;
    load->max_stretch_percent = m->max_stretch_percent;
    load->max_queue = m->max_waiting;
    load->op_limit_ns = m->op_limit_ns;
    load->plan =
        (struct td_plan_params){.n_ranks = m->group_size,
                                .tp = m->tp,
                                .pp = m->pp,
                                .device = td_wire_device_read(m->device_kind),
                                .kv_dtype = kv_dtype,
                                .block_tokens = m->kv_block_tokens,
                                .max_model_len = m->max_model_len,
                                .max_num_seqs = m->max_num_seqs,
                                .max_batched_tokens = m->max_batched_tokens,
                                .kv_bytes = m->kv_bytes,
                                .lead_bytes = m->lead_bytes,
                                .lead_block_bytes = m->lead_block_bytes,
                                .offload_bytes = {m->offload_memory_bytes, m->offload_file_bytes}};
    for (uint32_t i = 0; i < m->group_size; i++) {
        load->memory[i] = m->ranks[i]->memory_bytes;
        load->share[i] = (uint64_t)m->ranks[i]->share;
        if (load->memory[i])
            load->plan.memory_bytes = load->memory;
        if (load->share[i])
            load->plan.share = load->share;
    }
    *out = load;
    return TD_OK;
}
