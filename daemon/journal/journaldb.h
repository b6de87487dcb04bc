/* The journal's file: a SQLite database with a write-ahead log, of one process and one thread at a time. Every call may
 * block. Knows neither queue nor loop; what it is given and gives back are records and batches as bytes with a checksum. */
#ifndef TD_DAEMON_JOURNAL_JOURNALDB_H
#define TD_DAEMON_JOURNAL_JOURNALDB_H

#include "daemon/journal/stored.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct td_journaldb;

enum { TD_JOURNALDB_APPLICATION = 0x74646a6e /* "tdjn" */, TD_JOURNALDB_SCHEMA = 1 };

struct td_journaldb_params {
    const char *path; /* the file; made where it is missing (0600), in a folder that is there */
    bool
        was_ours; /* a journal is known to have lain there: a file that is none any more is damaged */
};

/* Recovers what was committed and looks at all of it. TD_CORRUPT: a damaged journal (td_journaldb_set_aside). TD_INVALID: no
 * journal but some other file, which is left alone. TD_UNSUPPORTED: of a later version. TD_BUSY: somebody else has it open.
 * TD_IO: the disk is full, or anything else that the system refused. */
enum td_status td_journaldb_open(const struct td_journaldb_params *params, struct td_journaldb **db,
                                 struct td_err *err);
/* Puts everything into the one file, as far as that goes. NULL is legal. */
void td_journaldb_close(struct td_journaldb *db);
/* Renames a damaged journal to <path>.corrupt-<time>, written to `aside` [n_aside]. TD_IO. */
enum td_status td_journaldb_set_aside(const char *path, char *aside, size_t n_aside,
                                      struct td_err *err);

/* Everything that changes stands between begin and commit, whose success is durable. An error other than TD_INVALID and
 * TD_NOT_FOUND ends the transaction as if it had never begun: td_journaldb_rollback. TD_IO, TD_CORRUPT, TD_NO_MEMORY. */
enum td_status td_journaldb_begin(struct td_journaldb *db, struct td_err *err);
enum td_status td_journaldb_commit(struct td_journaldb *db, struct td_err *err);
void td_journaldb_rollback(struct td_journaldb *db);

/* A record's bytes and what of them is looked up. All borrowed. */
struct td_journaldb_accept {
    uint64_t number; /* never used before: from td_journaldb_next on */
    struct td_str id, idempotency;
    uint64_t owner;
    const uint8_t *body_hash; /* [TD_RECORD_BODY_HASH_BYTES] */
    uint32_t n_parts;
    struct td_str record;
    int64_t now_ms; /* Unix time */
};
enum td_journaldb_verdict {
    TD_JOURNALDB_KEPT = 0,
    TD_JOURNALDB_REPEATED, /* the idempotency key was used for the same body */
    TD_JOURNALDB_CONFLICT  /* and for another one */
};
/* `earlier` receives the id of the request that used the key before. TD_INVALID: the id is taken. */
enum td_status td_journaldb_accept(struct td_journaldb *db, const struct td_journaldb_accept *a,
                                   enum td_journaldb_verdict *verdict, struct td_bytes *earlier,
                                   struct td_err *err);
/* A batch's bytes behind those before. Nothing when the request is not there. */
enum td_status td_journaldb_append(struct td_journaldb *db, uint64_t number, struct td_str batch,
                                   struct td_err *err);
/* One more part of the request ended; with the last one it is ended and kept until `expires_ms`. */
enum td_status td_journaldb_end_part(struct td_journaldb *db, uint64_t number, int64_t expires_ms,
                                     struct td_err *err);
enum td_status td_journaldb_drop(struct td_journaldb *db, uint64_t number, struct td_err *err);
/* Removes ended requests that are over, the oldest first, a few hundred at a time, in a transaction of
 * its own; `n` says how many. */
enum td_status td_journaldb_expire(struct td_journaldb *db, int64_t now_ms, uint32_t *n,
                                   struct td_err *err);
/* Writes 64 KiB and takes them away again, outside of a transaction: whether there is room. */
enum td_status td_journaldb_probe(struct td_journaldb *db, struct td_err *err);
/* Moves the log into the file when it is long, or (`all`) in any case; not inside a transaction. */
enum td_status td_journaldb_checkpoint(struct td_journaldb *db, bool all, struct td_err *err);

/* The least number that was never used. */
enum td_status td_journaldb_next(struct td_journaldb *db, uint64_t *number, struct td_err *err);
/* Bytes that are in use, without what deleted requests left free. */
enum td_status td_journaldb_bytes(struct td_journaldb *db, uint64_t *bytes, struct td_err *err);
/* One request, by its public id or by an idempotency key (the other is empty), of that owner alone; an ended one until it is
 * over. TD_NOT_FOUND. On success td_stored_deinit. */
enum td_status td_journaldb_find(struct td_journaldb *db, uint64_t owner, struct td_str id,
                                 struct td_str idempotency, int64_t now_ms, struct td_stored *out,
                                 struct td_err *err);
/* All open requests, or all that ended and are not over, the oldest first. The visitor may take `stored` (and zero it).
 * Records that are damaged are left out; `n_damaged` counts them. */
typedef void td_journaldb_visit_fn(struct td_stored *stored, void *user);
enum td_status td_journaldb_each(struct td_journaldb *db, bool ended, int64_t now_ms,
                                 td_journaldb_visit_fn *visit, void *user, uint32_t *n_damaged,
                                 struct td_err *err);

#endif
