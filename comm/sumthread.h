/* A thread that runs the tree sums of one group in the order in which they were begun, so that they travel while their owner
 * computes something else. From begin to the wait for the last sum that was begun, the group belongs to this thread; otherwise to the
 * owner, who alone calls what is here. The thread sleeps while there is nothing to do, and its waits for other ranks sleep from
 * the start, since somebody computes beside it. Knows no steps and no layers. */
#ifndef TD_COMM_SUMTHREAD_H
#define TD_COMM_SUMTHREAD_H

#include "comm/comm.h"

#include <sched.h>

enum { TD_SUMTHREAD_DEPTH = 4 }; /* sums that may be under way */

struct td_sumthread;

/* `comm` is borrowed until close. `cpus`: hardware threads that it may run on; NULL: those of the caller. Neither has any
 * effect on other ranks. TD_NO_MEMORY. */
enum td_status td_sumthread_open(struct td_comm *comm, const cpu_set_t *cpus,
                                 struct td_sumthread **thread, struct td_err *err);
/* Waits for what was begun. NULL is legal. */
void td_sumthread_close(struct td_sumthread *thread);

/* Begins td_comm_tree_sum of these arguments, which are borrowed until a wait for it has returned. Does not block. Returns the
 * sum's number, from 1 on. At most TD_SUMTHREAD_DEPTH are under way. */
uint64_t td_sumthread_begin(struct td_sumthread *thread, const struct td_tree_layout *layout,
                            const float *parts, size_t n_floats, float *scratch, float *out);
/* Waits until that sum and all before it have ended, as long as td_comm_tree_sum may take. Once a sum has failed, no other is
 * tried, and every wait returns its error. */
enum td_status td_sumthread_wait(struct td_sumthread *thread, uint64_t number, struct td_err *err);
/* The same for the last sum that was begun. */
enum td_status td_sumthread_wait_all(struct td_sumthread *thread, struct td_err *err);

/* Time inside of sums so far that the owner did not wait for. With nothing under way. */
uint64_t td_sumthread_hidden_ns(const struct td_sumthread *thread);

#endif
