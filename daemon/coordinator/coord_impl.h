/* Inside of the coordinator: its struct and that of a group, shared by coordinator.c (life, plan, operator's actions), group*.c (the
 * workers, from their registration to their loss), farewell.c (their end), job.c (open requests), replay.c (what becomes of them when
 * a group is lost), admit.c (who is accepted), drain.c (nobody any more) and sound.c. Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_COORD_IMPL_H
#define TD_DAEMON_COORDINATOR_COORD_IMPL_H

#include "daemon/api/grpc_serve.h"
#include "daemon/api/metrics.h"
#include "daemon/coordinator/coordinator.h"
#include "daemon/coordinator/deadlines.h"
#include "daemon/coordinator/endrate.h"
#include "daemon/coordinator/flight.h"
#include "daemon/coordinator/group.h"
#include "daemon/coordinator/hosts.h"
#include "daemon/coordinator/quota.h"
#include "daemon/coordinator/stepwatch.h"
#include "daemon/engine/ending.h"
#include "daemon/engine/vigil.h"
#include "daemon/engine/wire.h"

enum { JOB_BUCKETS = 1024, MAX_READY_SUBSCRIBERS = 64, MAX_DRAIN_WAITERS = 16 };

struct td_job {
    struct td_coord *c;
    struct td_job *next_in_bucket;
    struct td_job *prev, *next; /* all jobs, oldest first */
    /* Owned; its `emitted` grows with what is told, so that it can be sent again at any time. */
    struct td_request request;
    struct td_served *served; /* retained */
    struct td_ending ending;  /* cuts the text as rank 0 does */
    struct td_bytes text;     /* shown with the event at hand */
    bool raw_text;            /* special tokens are kept: pieces as they are */
    td_job_event_fn *on_event;
    void *user;
    uint32_t n_prompt_told; /* of prompt_logprobs: positions up to here */
    uint32_t n_cached;
    uint64_t queue_ns;                 /* at rank 0 */
    bool paused;                       /* by its reader */
    struct group *group;               /* that it was sent to; NULL: none */
    bool is_held;                      /* paused by replay.c */
    uint32_t sent_output;              /* that it had then */
    uint32_t n_starved;                /* times that a group had no memory for it */
    uint32_t n_deaths, n_alone_deaths; /* groups in a row that were lost while it ran */
    uint32_t death_output;             /* that it had at the last of them */
    uint32_t key;
    struct td_deadline deadline;
    uint64_t accepted_ns, first_ns;
    uint64_t number; /* in the journal; 0: not kept */
    uint32_t part;
};

/* A worker's place in the group. */
struct member {
    struct td_member public;       /* must stay first: td_coord_status copies */
    struct group *group;           /* whose member it is */
    struct td_grpc_stream *stream; /* NULL: not attached */
    uint64_t cookie;
    uint32_t generation; /* of its job, as it says */
    struct td_vigil_peer peer;
    struct td_stepwatch steps;
};

/* The stream of a rank that was told to die. */
struct parting {
    struct td_grpc_stream *stream; /* NULL: it has ended */
    uint64_t cookie;
    uint32_t rank;
};

/* How a group ends, or the one before it in its place did. */
struct td_farewell {
    struct td_flight *flight; /* owned; NULL: nothing to report yet */
    struct parting *partings; /* [n_partings] owned */
    uint32_t n_partings;
    uint64_t until_ns; /* their last words are waited for */
    bool is_open;      /* some may still come */
    bool stop_due;     /* then the launcher ends what is left */
    bool is_due;       /* the report is to be written */
};

struct load_work;

/* Why nothing new is taken, and until when what is open has time. */
struct drain {
    bool is_on, is_last, is_over;
    uint64_t until_ns; /* uv_hrtime; UINT64_MAX: no limit */
    uint64_t limit_ns; /* as it was given, for the error that tells of it */
    uint64_t finished_before, n_cancelled;
    uint32_t n_waiters;
    struct {
        td_coord_done_fn *done;
        void *user;
    } waiter[MAX_DRAIN_WAITERS];
};

/* One generation of workers after the other in one place: what is known of them, what they were told, and how they end. */
struct group {
    struct td_coord *c;
    enum td_group_state state;
    uint32_t generation;
    bool launched;               /* its launch is alive or not yet seen to have ended */
    bool was_ready, has_stepped; /* this generation */
    struct td_vigil vigil;       /* over the ranks that are attached */
    uint64_t last_ping_ns;
    bool suspects; /* a rank has missed its beats */
    struct td_farewell farewell;

    uint32_t n_ranks;
    struct member *members;      /* [n_ranks], by world rank */
    struct td_member *published; /* [n_ranks], for td_coord_status */
    struct td_plan *plan;
    struct td_compute_load *load; /* what the group was told to load */
    uint64_t n_submits;           /* of this load */
    uint64_t launch_ns;           /* uv_hrtime */
    uint64_t load_start_ns;

    /* By rank 0's heartbeats. */
    uint32_t n_running, n_waiting, kv_blocks_used, kv_blocks_idle, kv_blocks_memory, kv_blocks_file;
    uint64_t kv_blocks_read, kv_failed_reads;
    uint64_t draft_tokens, right_drafts, device_draws;
};

/* The last roll, and what is left to do of it. */
struct roll {
    enum td_roll_phase phase;
    bool has_taken_over;
    uint32_t number, old, young;
    uint64_t start_ns, load_ns;
    uint64_t timeout_ns,
        until_ns;     /* until: what is left on the old group goes on with the new one */
    uint64_t stop_ns; /* then its launcher ends it; 0: it was not told to leave yet */
    uint64_t n_moved, n_stayed, n_replayed;
    uint64_t n_done, n_failed; /* rolls so far */
    struct td_err err;
    bool waits; /* whoever is to be told waits until the old group has gone */
    td_coord_done_fn *done;
    void *user;
};

struct td_coord {
    struct td_coord_params p;
    struct td_journal *journal; /* borrows; NULL: none is kept */
    uv_timer_t timer;
    bool timer_open;
    uint64_t start_ns;

    struct td_served *served; /* NULL: nothing */
    struct group *current;    /* serves, or is on its way; never NULL */
    struct group *next;       /* to take its place when it is ready; NULL: none */
    struct group *leaving;    /* whose place it has taken; NULL: none; never beside `next` */
    struct roll roll;
    uint32_t n_launches; /* the last one's generation */
    struct td_err last_error;
    uint32_t n_restarts, n_failures; /* failures in a row before a group was ready */
    uint64_t relaunch_at_ns;         /* 0: none due */
    uint64_t fence_ns; /* no relaunch before: ranks out of reach end themselves until then */
    /* A group was ready, was lost, and another is to come: requests wait for it. */
    bool is_recovering;
    bool stopping;
    uint64_t
        slowest_launch_ns; /* until all ranks of a group had registered, of all so far; 0: none has */
    bool is_leaving;       /* the process ends: what it fails now goes on after its next start */
    struct td_hosts *hosts; /* NULL: no hostfile */
    struct td_arena arena;  /* one message */
    struct td_bytes packed;

    struct td_job *first, *last;
    struct td_job *bucket[JOB_BUCKETS];
    uint32_t n_open;
    uint64_t next_id;
    uint64_t n_requests, n_failed, n_finished;
    struct td_job *alone; /* a suspect that has the group for itself; NULL: nobody has */
    bool replay_settled;  /* every open job is with a group, or waits for nothing but its reader */
    struct td_quota quota;
    struct td_endrate endrate;
    struct td_deadlines deadlines;
    struct td_bytes detail; /* of a token, for the journal */
    uint64_t n_refused[TD_N_REFUSALS], n_deadlines;
    uint64_t prompt_tokens, cached_tokens,
        generated_tokens; /* of requests that got a first token, since start */

    struct {
        td_coord_ready_fn *fn;
        void *user;
    } on_ready[MAX_READY_SUBSCRIBERS];
    uint32_t n_on_ready;
    bool told_ready;

    /* A load that somebody waits for. */
    td_coord_done_fn *load_done;
    void *load_user;
    struct load_work *load_work; /* of the load that load_done waits for, while the pool has it */
    struct drain drain;
};

/* job.c */
/* From the group that the job is with; any other's is dropped. */
void td_job_token(struct group *g, const struct td_token_event *event);
void td_job_fail(struct td_job *j, const struct td_err *err);
void td_job_fail_all(struct td_coord *c, const struct td_err *err);
/* Ends those whose deadline is not after `now_ns`. */
void td_job_expire(struct td_coord *c, uint64_t now_ns);
uint32_t td_job_cancel_all(struct td_coord *c, const struct td_err *err);

/* replay.c: open jobs outlive their group. When the next one is ready they are sent to it with what they have told, oldest first, and
 * go on exactly where they were. A job that was running at two deaths in a row gets the group for itself until it is past that place,
 * and is given up after three deaths alone, so that one request cannot take the service from all. */
/* Brings the current group what it does not have yet; called by every tick, and when a group becomes ready. */
void td_replay_turn(struct td_coord *c);
/* Sends a job to the current group's rank 0, with what it has told so far. TD_OK also where there is none now: a later turn sends it. An
 * error is what the group cannot hold. */
enum td_status td_replay_send(struct td_job *j, struct td_err *err);
/* A group is to leave: jobs that are with it and have told nothing there yet, or were held back, or all go to the current one. Returns
 * how many. */
uint32_t td_replay_move(struct group *old, bool all);
/* Open jobs that are with the group. */
uint32_t td_replay_count(const struct group *g);
/* The group was lost. True: one job had it for itself. */
bool td_replay_lost(struct group *g);
/* The group could not go on with it for want of memory. True: it is tried again, which may have ended the group; false: often enough. */
bool td_replay_starved(struct td_job *j, const struct td_err *err);
void td_replay_token(struct td_job *j);  /* one more was told */
void td_replay_paused(struct td_job *j); /* by its reader, or goes on */
void td_replay_forget(struct td_job *j); /* its end */

/* group.c */
/* A place for a group, with nobody in it. */
enum td_status td_group_open(struct td_coord *c, struct group **g, struct td_err *err);
void td_group_close(struct group *g); /* NULL is legal; its report is written */
/* The streams of its ranks end and are nobody's any more. */
void td_group_forget_members(struct group *g);
/* The group of that generation; NULL: none, or it has gone. */
struct group *td_group_find(const struct td_coord *c, uint32_t generation);
/* A place for each of `n` ranks, none attached. */
enum td_status td_group_size(struct group *g, uint32_t n, struct td_err *err);
bool td_group_all_attached(const struct group *g);
enum td_status td_group_send(struct group *g, struct member *m,
                             td_wire_coordinator_message *message, struct td_err *err);
enum td_status td_group_send_submit(struct group *g, const struct td_request *r,
                                    struct td_err *err);
/* NULL for the group is legal in these three: who was not sent needs no telling. */
void td_group_send_cancel(struct group *g, uint64_t request_id);
void td_group_send_pause(struct group *g, uint64_t request_id);
void td_group_send_resume(struct group *g, uint64_t request_id);
void td_group_send_all_drain(struct group *g);
/* Tells every worker to leave in order. */
void td_group_shutdown(struct group *g, const char *reason);

/* groupload.c */
/* For all ranks that are attached: makes the plan and tells them to load. */
void td_group_plan_and_load(struct group *g);
/* A rank has loaded. */
void td_group_loaded(struct member *m, const Tensord__Worker__V1__Ready *r);
/* True while somebody waits for a LoadModel: whatever its ranks failed for, it is answered, the model is dropped and the server
 * waits for another one. A model that no group can load must not use up the launches. */
bool td_group_drop_model(struct group *g, const struct td_err *err);

/* grouploss.c */
/* Ends the group with `err`; a new one is due where there is a launcher, and what is open waits for it. Of a roll's other group
 * td_roll_lost says what follows. */
void td_group_lose(struct group *g, const struct td_err *err);
/* The current group is lost: when its launch has ended a new one follows, unless one is on its way. */
void td_group_plan_relaunch(struct td_coord *c);
/* What it said of itself is over. */
void td_group_forget_state(struct group *g);
/* Launches the next generation: on the hosts that are left, with fewer ranks when there is no place for all. */
enum td_status td_group_launch(struct group *g, struct td_err *err);
/* The rank that was lost first: its host may have to stand aside. `silent`: nothing of it was heard any more. */
void td_group_blame(const struct member *m, bool silent);
void td_group_tick(struct group *g, uint64_t now_ns);

/* groupwatch.c */
/* Each tick: pings go out, silence is judged. */
void td_group_watch(struct group *g, uint64_t now_ns);
/* What a heartbeat says of the rank's steps. May end the group. */
void td_group_watch_steps(struct member *m, const Tensord__Worker__V1__Heartbeat *h);

/* farewell.c */
/* The group is lost for `err`: its ranks are told to die, and their streams are no members' any more. */
void td_farewell_begin(struct group *g, const struct td_err *err);
/* In the place of the launcher's stop: as soon as the ranks' last words are there, or their time is up. */
void td_farewell_stop(struct group *g);
void td_farewell_tick(struct group *g, uint64_t now_ns);
void td_farewell_launch_ended(struct group *g);
/* The launcher was killed, as `err` says: for the report. */
void td_farewell_launcher_fell(struct group *g, const struct td_err *err);
/* Waits for nothing any more, writes what is due and frees. */
void td_farewell_finish(struct group *g);
/* For the report, whenever it is noticed. */
void td_farewell_blame(struct group *g, uint32_t rank);
void td_farewell_vanished(struct group *g, uint32_t rank);
void td_farewell_failed(struct group *g, uint32_t rank, const Tensord__Worker__V1__Failed *m);
void td_farewell_record(struct group *g, uint32_t rank, const Tensord__Worker__V1__Flight *m);
/* True when the stream is of a rank of this group that was told to die. */
bool td_farewell_message(struct group *g, const struct td_grpc_stream *s,
                         const td_wire_worker_message *message);
void td_farewell_closed(struct group *g, const struct td_grpc_stream *s);

/* roll.c */
/* The next group has loaded. */
void td_roll_take_over(struct group *g);
/* The next or the leaving group was lost. */
void td_roll_lost(struct group *g, const struct td_err *err);
void td_roll_tick(struct td_coord *c, uint64_t now_ns);
/* A new group is loading or launching, and may still take over. */
bool td_roll_is_coming(const struct td_coord *c);
/* A roll has not ended: fails, and says so. */
enum td_status td_roll_check_over(const struct td_coord *c, struct td_err *err);
/* The server stops: whoever waits is told. */
void td_roll_stop(struct td_coord *c, const struct td_err *err);
void td_roll_describe(const struct td_coord *c, struct td_coord_roll_status *out);

/* drain.c */
void td_drain_tick(struct td_coord *c, uint64_t now_ns);
/* A model was loaded: what drained is over was of the one before. */
void td_drain_forget(struct td_coord *c);
/* The server stops: whoever waits is told. */
void td_drain_stop(struct td_coord *c);

/* coordinator.c */
void td_coord_set_state(struct group *g, enum td_group_state state);
void td_coord_load_finished(struct td_coord *c, const struct td_err *err);

#endif
