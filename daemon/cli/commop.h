/* The contenders of `tensord bench comm`: every way in which this group can do an operation, and beside them MPI's own calls and
 * the bare exchange, all on the same buffers. What they move is known, so that each can be held to it. Collective; knows
 * nothing of time. */
#ifndef TD_DAEMON_CLI_COMMOP_H
#define TD_DAEMON_CLI_COMMOP_H

#include "comm/comm.h"
#include "comm/yardstick.h"
#include "daemon/cli/commset.h"

#include <stdbool.h>
#include <stdint.h>

enum td_commop_kind { TD_COMMOP_OURS, TD_COMMOP_MPI, TD_COMMOP_BARE };

/* Our ways over two transports, MPI, the bare exchange. */
enum { TD_COMMOP_MAX = 2 * (TD_N_SUM_ALGORITHMS - 1) + 2 };

/* One contender of one operation. */
struct td_commop {
    enum td_commset_op op;
    enum td_commop_kind kind;
    struct td_comm *comm;            /* ours: borrowed */
    const char *transport;           /* "shm", "shm+mpi", "messages"; NULL: not ours */
    enum td_sum_algorithm algorithm; /* tree_sum, ours */
    char name[48];                   /* "shm one-shot", "MPI_Allreduce", "bare exchange" */
};

/* What all contenders work on. */
struct td_commop_bench {
    struct td_comm *world; /* as the program has it; borrowed */
    struct td_comm *
        messages; /* the same ranks without shared memory of ours; borrowed, NULL: the world has none */
    struct td_yardstick *yardstick; /* borrowed */
    uint32_t rank, size;
    struct td_leaf_run *runs; /* [size] rank r < TD_TREE_MAX_LEAVES owns leaf r, the others none */
    struct td_tree_layout layout;
    size_t *counts;    /* [size] all `bytes` */
    char *send;        /* [most_bytes] */
    char *recv;        /* [most_bytes * size] */
    char *out;         /* [most_bytes] */
    size_t bytes;      /* of the operation under way */
    uint64_t limit_ns; /* that one call may take */
};

/* Allocates for messages of at most `most_bytes`; the borrowed fields are set before. Local. TD_NO_MEMORY. */
enum td_status td_commop_open(struct td_commop_bench *b, size_t most_bytes, struct td_err *err);
void td_commop_close(struct td_commop_bench *b);

/* The contenders of `op`, MPI's call and the bare exchange last; the same for all sizes and on all ranks. Returns how many. */
size_t td_commop_list(const struct td_commop_bench *b, enum td_commset_op op,
                      struct td_commop list[TD_COMMOP_MAX]);
/* Whether tree_sum takes this way by itself for sums of that size, on the contender's transport. */
bool td_commop_is_auto(const struct td_commop *c, size_t bytes);

/* From now on calls move `bytes`. Sets what is sent, and the deadlines. */
void td_commop_begin(struct td_commop_bench *b, enum td_commset_op op, size_t bytes);
/* One operation. A broadcast starts at rank number % size, so that successive ones cannot run ahead of each other. */
enum td_status td_commop_call(struct td_commop_bench *b, const struct td_commop *c, uint64_t number,
                              struct td_err *err);
/* One operation into memory that was spoilt before, and whether this rank got what it must. TD_CORRUPT when not; local. */
enum td_status td_commop_verify(struct td_commop_bench *b, const struct td_commop *c,
                                struct td_err *err);

#endif
