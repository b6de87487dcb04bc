/* The coordinator as the APIs see it: the served model, open jobs, the group's state, and the operator's actions.
 * Loop thread only, nothing blocks; callbacks of encoding and of jobs come from the loop and never from inside the call
 * that started them.
 * Knows no HTTP and no gRPC: services (openai_service, inference_service, cluster_service) stand on top of it. */
#ifndef TD_DAEMON_COORDINATOR_COORDINATOR_H
#define TD_DAEMON_COORDINATOR_COORDINATOR_H

#include "daemon/engine/request.h"
#include "daemon/text/breakers.h"
#include "daemon/text/chat.h"
#include "daemon/text/ids.h"
#include "daemon/text/tokenizer.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "shard/plan.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct td_coord;
struct td_job;

/* ---- The model that is served ---- */

enum { TD_COORD_MAX_NAMES = 8 };

/* Read-only while it is served; holds a reference count so that text work on libuv's pool may outlive an unload. */
struct td_served {
    char *names[TD_COORD_MAX_NAMES]; /* the first is the one in answers */
    uint32_t n_names;
    char *path;
    char hash[33];
    int64_t created; /* Unix seconds at which it was loaded */
    struct td_checkpoint *ck;
    struct td_plan_model *plan_model;
    const struct td_spec *spec;
    struct td_tokenizer *tok;
    struct td_breakers *breakers;
    struct td_chat *chat; /* NULL: no usable template; chat_err says why */
    struct td_err chat_err;
    struct td_sampling defaults; /* generation_config.json over OpenAI's */
    uint32_t max_model_len;      /* as served; 0 until planned */
    uint32_t refs;
};

/* The model with that name (empty: the only one). TD_NOT_FOUND names what is served; TD_UNAVAILABLE when nothing is. Borrowed until
 * the loop's next turn, or until td_served_release after td_served_retain. */
enum td_status td_coord_find_model(struct td_coord *c, struct td_str name,
                                   struct td_served **served, struct td_err *err);
void td_served_retain(struct td_served *s);
void td_served_release(struct td_served *s); /* NULL is legal */

/* Text into ids, on libuv's pool (a long text takes time). Exactly one of text or messages. */
struct td_coord_encode {
    struct td_served *served;               /* retained until done */
    struct td_str text;                     /* plain prompt; borrowed until done */
    bool with_bos;                          /* plain prompt: as the model wants it */
    const struct td_chat_message *messages; /* borrowed until done */
    size_t n_messages;
    bool add_generation_prompt;
};
/* `ids` is owned by the callee's caller: take it (set data to NULL) or leave it to be freed. */
typedef void td_coord_encode_fn(enum td_status status, struct td_ids *ids, const struct td_err *err,
                                void *user);
enum td_status td_coord_encode(struct td_coord *c, const struct td_coord_encode *what,
                               td_coord_encode_fn *done, void *user, struct td_err *err);

/* ---- Jobs: one generation each ---- */

struct td_job_event {
    uint32_t index; /* of the output token */
    bool has_token;
    bool
        is_prompt; /* a log probability of the prompt: `index` is the position, `token` the prompt's; nothing else is told */
    const struct td_sampled *token; /* has_token or is_prompt */
    struct td_str
        text; /* whole characters that became sure; stop strings are cut; may be empty; borrowed */
    enum td_finish finish;      /* != NONE: the last event; the job is gone after the callback */
    const struct td_err *error; /* TD_FINISH_ERROR */
    uint32_t n_prompt;          /* last event: usage */
    uint32_t n_output;
    uint32_t n_cached;                           /* of n_prompt, from the prefix cache */
    uint64_t queue_ns, first_token_ns, total_ns; /* last event; since accepted */
};
typedef void td_job_event_fn(struct td_job *job, const struct td_job_event *event, void *user);

/* Accepts a request (its id is set here; the prompt and strings are taken on success, untouched on failure). max_tokens 0 stands for all that
 * the context holds. TD_INVALID, TD_TOO_LARGE; TD_BUSY: the queue is full; TD_UNAVAILABLE: not ready or draining. `raw_text` keeps special tokens. */
enum td_status td_coord_submit(struct td_coord *c, struct td_served *served,
                               struct td_request *request, bool raw_text, td_job_event_fn *on_event,
                               void *user, struct td_job **job, struct td_err *err);
/* The asker went away: no further event; the sequence is freed at the next step. */
void td_job_cancel(struct td_job *job);
/* What may lie of an answer that its asker does not take, until it is paused. */
enum { TD_COORD_SLOW_BYTES = 1024, TD_COORD_SLOW_TOKENS = 64 };
/* The asker takes nothing more for now, or goes on: while paused, its sequence holds no place in the steps. */
void td_job_pause(struct td_job *job, bool paused);
uint64_t td_job_id(const struct td_job *job);
uint64_t td_job_seed(const struct td_job *job);

/* ---- State ---- */

enum td_group_state {
    TD_GROUP_NONE = 0,
    TD_GROUP_LAUNCHING,
    TD_GROUP_LOADING,
    TD_GROUP_READY,
    TD_GROUP_DRAINING,
    TD_GROUP_LOST,
    TD_GROUP_FAILED
};
const char *td_group_state_name(enum td_group_state state);

/* One rank, as it last reported. */
struct td_member {
    uint32_t rank;
    char host[64];
    int64_t pid;
    char device[64];
    char numerics[32];
    bool attached, loaded, lost;
    uint32_t n_cores;
    uint64_t memory_bytes;
    uint64_t weight_bytes, kv_bytes, resident_bytes;
    uint64_t load_done_bytes, load_total_bytes;
    uint64_t exchanged_bytes, n_steps, wait_ns, step_ns;
    uint64_t gap_ns, n_gaps; /* between steps that followed each other */
    uint64_t heartbeat_ns;   /* when the last came, uv_hrtime */
};

struct td_coord_status {
    enum td_group_state state;
    uint32_t generation, n_restarts;
    uint32_t n_ranks;
    const struct td_member *members;       /* [n_ranks], borrowed */
    const struct td_plan *plan;            /* NULL until planned; borrowed */
    const struct td_served *served;        /* NULL: nothing */
    uint32_t n_running, n_waiting, n_open; /* open: jobs that the coordinator knows */
    uint32_t kv_blocks_used;               /* by requests */
    uint32_t kv_blocks_idle;               /* only the prefix cache holds them */
    uint64_t draft_tokens;                 /* guessed ahead and verified by this group */
    uint64_t right_drafts;                 /* of them, as drawn */
    uint64_t cached_tokens;                /* of prompt_tokens, from the prefix cache */
    uint64_t prompt_tokens, generated_tokens;
    uint64_t n_requests, n_failed;
    uint64_t start_ns;      /* uv_hrtime at start */
    const char *last_error; /* "" when none */
};
void td_coord_status(struct td_coord *c, struct td_coord_status *out);
bool td_coord_ready(const struct td_coord *c); /* all ranks ready and not draining */
uv_loop_t *td_coord_loop(struct td_coord *c);
struct td_metrics *td_coord_metrics(struct td_coord *c);

/* Called whenever readiness changes (health watchers). One subscriber list; `user` identifies it. */
typedef void td_coord_ready_fn(bool ready, void *user);
void td_coord_on_ready(struct td_coord *c, td_coord_ready_fn *fn, void *user);

/* ---- The operator's actions ---- */

struct td_coord_load {
    const char *path;
    const char *served_name;              /* NULL: last part of the path */
    uint32_t tp, pp;                      /* 0: chosen */
    uint32_t max_model_len, max_num_seqs; /* 0: default */
    const char *kv_dtype;                 /* NULL or "": auto */
};
/* The end of an action, once. What is refused or done at once ends before the call that started it returns. */
typedef void td_coord_done_fn(enum td_status status, const struct td_err *err, uint64_t a,
                              uint64_t b, void *user);
/* Plans without loading. Reads headers: may block briefly. */
enum td_status td_coord_plan(struct td_coord *c, const char *path, uint32_t n_ranks,
                             const struct td_plan_params *wish, struct td_bytes *text,
                             struct td_bytes *json, struct td_err *err);
void td_coord_load_model(struct td_coord *c, const struct td_coord_load *load,
                         td_coord_done_fn *done, void *user); /* a: load_ns */
void td_coord_unload_model(struct td_coord *c, struct td_str name, td_coord_done_fn *done,
                           void *user); /* a: cancelled */
void td_coord_drain(struct td_coord *c, uint64_t timeout_ns, td_coord_done_fn *done,
                    void *user); /* a: finished, b: cancelled */

#endif
