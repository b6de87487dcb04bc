/* Inside of the prediction: what predict.c counts and predict_link.c turns into seconds. Pure. */
#ifndef TD_SHARD_PREDICT_IMPL_H
#define TD_SHARD_PREDICT_IMPL_H

#include "shard/predict.h"

/* Of something that happens in a step. */
struct td_predict_cost {
    double part_s[TD_N_PARTS];
    double n_exchanges; /* messages that wait for each other */
};

/* The ranks of the machine from `first` on, `n` of them, exchange messages: *cost grows by it. The busiest rank's memory inside a
 * host and the busiest host's link between hosts tell how long the bytes take. */

/* Each sends bytes[i] to every other one at once, in `rounds` messages that wait for each other. */
void td_predict_link_all(struct td_predict_cost *cost, const struct td_machine *machine,
                         uint32_t first, uint32_t n, const double *bytes, uint32_t rounds);
/* Each sends bytes[i] to the first. */
void td_predict_link_gather(struct td_predict_cost *cost, const struct td_machine *machine,
                            uint32_t first, uint32_t n, const double *bytes);
/* The first's bytes reach all by a binomial tree, the widest jump first, as comm/collective.c goes. */
void td_predict_link_broadcast(struct td_predict_cost *cost, const struct td_machine *machine,
                               uint32_t first, uint32_t n, double bytes);
/* Each hands `bytes` to its counterpart of the ranks from `to` on. */
void td_predict_link_hand_on(struct td_predict_cost *cost, const struct td_machine *machine,
                             uint32_t first, uint32_t to, uint32_t n, double bytes);

#endif
