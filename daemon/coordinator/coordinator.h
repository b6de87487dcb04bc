/* The coordinator as the APIs see it: the served model, open jobs, the group's state, and the operator's actions.
 * Loop thread only, nothing blocks; callbacks of encoding and of jobs come from the loop and never from inside the call
 * that started them.
 * Knows no HTTP and no gRPC: services (openai_service, inference_service, cluster_service) stand on top of it. */
#ifndef TD_DAEMON_COORDINATOR_COORDINATOR_H
#define TD_DAEMON_COORDINATOR_COORDINATOR_H

#include "daemon/engine/gpuhealth.h"
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
struct td_journal;
struct td_stored_part;

/* ---- The model that is served ---- */

enum { TD_COORD_MAX_NAMES = 8 };

/* Read-only while it is served; holds a reference count so that text work on libuv's pool may outlive an unload. */
struct td_served {
    char *names[TD_COORD_MAX_NAMES]; /* the first is the one in answers */
    uint32_t n_names;
    char *path;
    char *draft_path;            /* NULL: no draft model */
    struct td_draftmodel *draft; /* its headers */
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

/* Why somebody was turned away. */
enum td_refusal {
    TD_REFUSAL_NOT_READY = 0,
    TD_REFUSAL_DRAINING,
    TD_REFUSAL_QUEUE,       /* as many wait as may */
    TD_REFUSAL_CONCURRENCY, /* the key has as many open as it may */
    TD_REFUSAL_TOKENS,      /* the key has used its tokens of this minute */
    TD_N_REFUSALS
};
const char *td_coord_refusal_name(enum td_refusal refusal); /* for metrics */

/* What is to be accepted together or not at all. */
struct td_coord_ask {
    uint32_t key;    /* whose: which of the API keys, from 1; 0: the server is open, all are one */
    uint32_t n_jobs; /* each counts as one request */
    uint64_t n_tokens; /* of all: prompts, and outputs at most */
};
/* Whether it would be accepted now, and counts the refusal else: TD_BUSY (a limit; *retry_after_s is how long waiting makes
 * sense, at least 1), TD_UNAVAILABLE (not ready, draining; likewise), TD_INVALID (more at once than a limit ever allows;
 * untouched). It holds until the loop's next turn. */
enum td_status td_coord_admit(struct td_coord *c, const struct td_coord_ask *ask,
                              uint32_t *retry_after_s, struct td_err *err);

struct td_coord_submit {
    struct td_served *served;
    struct td_request *request; /* its id is set here; taken on success, untouched on failure */
    bool raw_text;              /* keep special tokens */
    uint32_t key;               /* as in td_coord_ask */
    bool admitted;              /* td_coord_admit has just accepted it, maybe with others */
    uint64_t deadline_ns;       /* uv_hrtime at which it must have ended; 0: none of its own */
    uint64_t number;            /* what becomes of it is kept in the journal under it; 0: nowhere */
    uint32_t part;              /* of that number */
    td_job_event_fn *on_event;
    void *user;
};
/* Accepts a request. Its max_tokens 0 stands for all that the context holds. TD_INVALID, TD_TOO_LARGE, TD_TIMED_OUT
 * (the deadline is over), or what td_coord_admit says. A job whose deadline passes ends with TD_FINISH_ERROR and
 * TD_TIMED_OUT. Its tokens leave the key's bucket now; at its end comes back what was not generated, and the prompt
 * too when the server failed before the first token. */
enum td_status td_coord_submit(struct td_coord *c, const struct td_coord_submit *what,
                               struct td_job **job, struct td_err *err);
/* A part of a request that was accepted before, by this process or by one before it: no limit asks whether it may begin.
 * `what->request` holds the tokens that `part` has (td_resume_request) and is taken on success. Tells them again, in order, from
 * inside the call, as they were told first; then either its end, and *job is NULL, or the job goes on behind them. TD_CORRUPT,
 * TD_NO_MEMORY, and what td_coord_submit says of a model and a deadline that are gone; some tokens may have been told then. */
enum td_status td_coord_restore(struct td_coord *c, const struct td_coord_submit *what,
                                const struct td_stored_part *part, struct td_job **job,
                                struct td_err *err);
/* Where accepted requests are kept; NULL: nowhere. */
struct td_journal *td_coord_journal(struct td_coord *c);
/* The asker went away, or is another from now on: no further event; the sequence is freed at the next step. The journal is told
 * nothing. */
void td_job_cancel(struct td_job *job);
/* The same of one that ends with an error of somebody else's: the journal keeps that as its end. */
void td_job_give_up(struct td_job *job, const struct td_err *err);
/* What may lie of an answer that its asker does not take, until it is paused. */
enum { TD_COORD_SLOW_BYTES = 1024, TD_COORD_SLOW_TOKENS = 64 };
/* The asker takes nothing more for now, or goes on: while paused, its sequence holds no place in the steps. */
void td_job_pause(struct td_job *job, bool paused);
uint64_t td_job_id(const struct td_job *job);
uint64_t td_job_seed(const struct td_job *job);

/* What a server allows. */
struct td_coord_limits {
    uint32_t max_queue;
    uint32_t max_open_per_key;          /* 0: no limit */
    uint32_t tokens_per_minute_per_key; /* 0: no limit */
    uint64_t request_timeout_ns;        /* 0: none */
};
/* How a key stands against them. Where there is no such limit, the values mean nothing. */
struct td_coord_standing {
    uint32_t n_open;
    uint32_t requests_reset_s; /* until those have probably ended */
    uint64_t tokens_left;
    uint64_t tokens_reset_ns; /* until its bucket is full */
};
const struct td_coord_limits *td_coord_limits(const struct td_coord *c);
void td_coord_standing(const struct td_coord *c, uint32_t key, struct td_coord_standing *out);

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
    enum td_devicekind device_kind;
    char numerics[32];
    char bus_id[32];    /* of a GPU */
    char transport[16]; /* of activations, while a model is loaded */
    bool attached, loaded, lost;
    uint32_t n_cores;
    uint64_t memory_bytes;
    uint64_t weight_bytes, kv_bytes, resident_bytes;
    uint64_t load_done_bytes, load_total_bytes;
    uint64_t exchanged_bytes, n_steps, wait_ns, step_ns;
    uint64_t gap_ns, n_gaps; /* between steps that followed each other */
    uint64_t heartbeat_ns;   /* when the last came, uv_hrtime */
    uint64_t n_generated;    /* tokens since ready; rank 0 */
    struct td_gpuhealth_sample gpu;
    uint64_t gpu_energy_before; /* its figure when the model had been loaded; 0: not told yet */
};

/* No new requests are taken, since somebody asked for that. */
struct td_coord_drain_status {
    bool is_on;
    bool is_last; /* the process stops afterwards */
    bool is_over; /* nothing is open any more */
    bool has_limit;
    uint64_t left_ns;                 /* has_limit: until the rest is ended */
    uint64_t n_finished, n_cancelled; /* since it began: by themselves, by the limit */
};

/* A new group takes the place of the one that serves. */
enum td_roll_phase {
    TD_ROLL_NONE = 0, /* not since the start */
    TD_ROLL_COMING,   /* the new group launches or loads, the old one serves on */
    TD_ROLL_LEAVING,  /* the new one serves, requests that run end on the old one */
    TD_ROLL_DONE,     /* the old one has gone */
    TD_ROLL_FAILED    /* the new one did not get ready, and has gone */
};
const char *td_roll_phase_name(enum td_roll_phase phase);

/* The last roll. */
struct td_coord_roll_status {
    enum td_roll_phase phase;
    uint32_t number;     /* counts rolls */
    uint32_t old, young; /* generations of the two groups */
    bool has_taken_over; /* the new group has served since */
    uint32_t n_left;     /* LEAVING: requests that still run on the old group */
    uint64_t left_ns;    /* LEAVING: until those go on with the new one */
    uint64_t
        n_moved; /* went to the new group at once: had told nothing yet, or their group was lost */
    uint64_t n_finished; /* ended on the old group */
    uint64_t n_replayed; /* were cut there, and go on with the new one */
    uint64_t load_ns;    /* from the launch until it was ready */
    const char *error;   /* FAILED: why; "" else; borrowed */
};

/* Where a group stands beside another. */
enum td_group_role { TD_ROLE_CURRENT = 0, TD_ROLE_NEXT, TD_ROLE_LEAVING };
const char *td_group_role_name(enum td_group_role role);

struct td_coord_status {
    enum td_group_state state;
    enum td_group_role role;
    struct td_coord_drain_status drain;
    struct td_coord_roll_status roll;
    uint64_t n_rolls_done, n_rolls_failed;
    uint32_t generation, n_restarts;
    uint32_t n_ranks;
    const struct td_member *members;       /* [n_ranks], borrowed */
    const struct td_plan *plan;            /* NULL until planned; borrowed */
    const struct td_served *served;        /* NULL: nothing */
    uint32_t n_running, n_waiting, n_open; /* open: jobs that the coordinator knows */
    uint32_t n_here; /* of those open with this group; with the current one also those with none */
    uint32_t kv_blocks_used;                   /* by requests */
    uint32_t kv_blocks_idle;                   /* only the prefix cache holds them */
    uint32_t kv_blocks_memory, kv_blocks_file; /* offloaded */
    uint64_t kv_blocks_read, kv_failed_reads;  /* back from there by this group, and in vain */
    uint64_t draft_tokens;                     /* guessed ahead and verified by this group */
    uint64_t right_drafts;                     /* of them, as drawn */
    uint64_t device_draws;                     /* tokens that a device drew, not the host */
    uint64_t cached_tokens;                    /* of prompt_tokens, from the prefix cache */
    uint64_t prompt_tokens, generated_tokens;
    uint64_t n_requests, n_failed;
    uint64_t n_refused[TD_N_REFUSALS];
    uint64_t n_deadlines;   /* passed */
    uint64_t start_ns;      /* uv_hrtime at start */
    const char *last_error; /* "" when none */
};
void td_coord_status(struct td_coord *c, struct td_coord_status *out);
/* The same of a second group, which is on its way or leaves; what is said of the coordinator stays. False: there is none. */
bool td_coord_status_other(struct td_coord *c, struct td_coord_status *out);
bool td_coord_ready(const struct td_coord *c); /* all ranks ready and not draining */
/* Ready, and every rank was heard of lately: what health checks are told. A rank that is late for a moment costs no request. */
bool td_coord_is_well(const struct td_coord *c);
/* Takes requests: ready, or a group that was ready was lost and the next one is on its way, for which they wait. */
bool td_coord_accepts(const struct td_coord *c);
/* Whether the coordinator does in time what it has to: false names what is overdue. For who watches over the process. */
bool td_coord_is_sound(const struct td_coord *c, uint64_t now_ns, struct td_err *err);
uv_loop_t *td_coord_loop(struct td_coord *c);
struct td_metrics *td_coord_metrics(struct td_coord *c);

/* Called whenever td_coord_is_well changes (health watchers). One subscriber list; `user` identifies it. */
typedef void td_coord_ready_fn(bool ready, void *user);
void td_coord_on_ready(struct td_coord *c, td_coord_ready_fn *fn, void *user);

/* ---- The operator's actions ---- */

struct td_coord_load {
    const char *path;
    const char *served_name;              /* NULL: last part of the path */
    uint32_t tp, pp;                      /* 0: chosen */
    uint32_t max_model_len, max_num_seqs; /* 0: default */
    const char *kv_dtype;                 /* NULL or "": auto */
    const char *draft_path;               /* NULL or "": no draft model */
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
/* Takes no new requests from now on, lets the open ones end, and ends those that are left after `timeout_ns` (0: no limit) with
 * an error. `done` (NULL: nobody waits) follows from the loop, never from inside: a: ended by themselves, b: ended by the limit;
 * TD_CANCELLED when the drain was taken back. One that is under way is joined: its limit becomes the new one. TD_BUSY when
 * too many wait, told at once. */
void td_coord_drain(struct td_coord *c, uint64_t timeout_ns, td_coord_done_fn *done, void *user);
/* The same before the process stops: it cannot be taken back, and who joins it cannot prolong it. */
void td_coord_drain_last(struct td_coord *c, uint64_t timeout_ns, td_coord_done_fn *done,
                         void *user);
/* Takes requests again. Nothing happens where no drain is; TD_UNAVAILABLE when the process is stopping. */
enum td_status td_coord_drain_cancel(struct td_coord *c, struct td_err *err);
/* Launches a second group with the same model and the same wish, in the memory that is free now, while the present one serves on. When
 * it is ready it takes over: new requests and those that have told nothing yet go to it, those that run end where they are, and after
 * `timeout_ns` what is left goes on with the new group where it was. Then the old one leaves. `done` (NULL: nobody waits) follows from
 * the loop, never from inside: when the new group has taken over, with `waits` when the old one has gone, too; or with the error that
 * kept the new one from it, when it has gone. a: its generation. What cannot begin is refused by the status returned: TD_BUSY (a roll is
 * under way), TD_UNSUPPORTED (nobody here launches groups), TD_UNAVAILABLE (nothing is ready to be replaced), or what the launch says. */
enum td_status td_coord_replace(struct td_coord *c, uint64_t timeout_ns, bool waits,
                                td_coord_done_fn *done, void *user, struct td_err *err);
/* How long running requests have by default. */
#define TD_COORD_ROLL_NS 30000000000u

#endif
