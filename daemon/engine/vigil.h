/* Who has fallen silent: how the coordinator judges its ranks, and a rank its coordinator. Pure: times come in, verdicts go
 * out; it reads no clock. Silence counts only while the watcher itself was awake: a watcher that was stopped or starved has
 * heard nothing for its own fault, and what was said meanwhile lies unread. */
#ifndef TD_DAEMON_ENGINE_VIGIL_H
#define TD_DAEMON_ENGINE_VIGIL_H

#include <stdbool.h>
#include <stdint.h>

/* Between two signs of life, and how many of them may fail to come before somebody is suspected. */
enum { TD_VIGIL_BEAT_MS = 100, TD_VIGIL_MISSED_BEATS = 3 };
/* Looks further apart than this say that the watcher was away: its absence counts as one beat. */
enum { TD_VIGIL_MAX_GAP_MS = 200 };

enum td_vigil_verdict { TD_VIGIL_WELL, TD_VIGIL_SUSPECT, TD_VIGIL_DEAD };

struct td_vigil {
    uint64_t suspect_ns, dead_ns; /* silence from which on */
    uint64_t last_look_ns;
    uint64_t awake_ns; /* that the watcher has spent awake, at the last look */
};

/* One who is watched; zero-initialise: not watched yet. */
struct td_vigil_peer {
    bool is_watched;
    uint64_t heard_ns; /* the watcher's awake time */
};

/* `dead_ns` above 0. Suspicion begins after TD_VIGIL_MISSED_BEATS beats, or at half of dead_ns where that is less. */
void td_vigil_init(struct td_vigil *v, uint64_t dead_ns, uint64_t now_ns);
/* Other limits from now on. */
void td_vigil_limit(struct td_vigil *v, uint64_t dead_ns);
/* The watcher is awake. To be called at least every TD_VIGIL_MAX_GAP_MS / 2, before it judges. */
void td_vigil_look(struct td_vigil *v, uint64_t now_ns);
/* A sign of life; the first one begins the watch. */
void td_vigil_heard(const struct td_vigil *v, struct td_vigil_peer *peer);
/* For how long the peer has said nothing, at the last look; 0 for one who is not watched. */
uint64_t td_vigil_silence_ns(const struct td_vigil *v, const struct td_vigil_peer *peer);
/* TD_VIGIL_WELL for one who is not watched. */
enum td_vigil_verdict td_vigil_judge(const struct td_vigil *v, const struct td_vigil_peer *peer);

#endif
