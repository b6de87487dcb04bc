/* Which ids of a row are left, and the cuts that leave fewer. A cut is kept as thresholds in two orders, by logit and by
 * typicality, never as a list: a radix descent finds each, so nothing is sorted and nothing is as long as the
 * vocabulary. Private to the sampler; lives for one draw. Pure; every sum is over fixed leaves and one tree (vsum.h).
 *
 * The weight of an id is exp((l - max l) / T), to a multiple of 2^-34; its probability among those left is its share of their weight. Among
 * equal ids in an order the lower one comes first. Every cut leaves at least one id of those that are there, and ids
 * with l = -inf count as not there. */
#ifndef TD_SHARD_CUT_H
#define TD_SHARD_CUT_H

#include "shard/logitrow.h"

/* A place in an order of ids: larger keys come first, of equal keys the lower id. */
struct td_cut_place {
    uint32_t key, id;
};

enum { TD_CUT_FEW = 1024 };

struct td_cut {
    const struct td_logitrow *
        row; /* borrowed; `few_row` once no more than TD_CUT_FEW ids can be left. Then a cut is not copied */
    struct td_logitrow few_row;
    struct td_top few[TD_CUT_FEW]; /* of few_row, by ascending id */
    double *leaf_sum;    /* borrowed [n_leaves]: left weight of each leaf, by td_cut_sum */
    float max;           /* the row's largest logit, above -inf */
    double inv_t;        /* 1 / T; infinity stands for T = 0 */
    double least_z;      /* ids with a smaller logit are cut away */
    double least_weight; /* so are ids with a smaller weight, once the cuts by share are made */
    struct td_cut_place first, last; /* by logit: what lies outside is cut away */
    bool has_typical;
    double centre; /* has_typical: the mean of (l - max l) / T when that cut was made */
    struct td_cut_place
        typical; /* has_typical: the last by distance from `centre`, nearest first */
};

/* Everything is left, at temperature 1. */
void td_cut_init(struct td_cut *c, const struct td_logitrow *row, float max, double *leaf_sum);
/* T >= 0. Before the cuts by share of weight. */
void td_cut_set_temperature(struct td_cut *c, double temperature);
/* l >= max l - n sigma, with the standard deviation of all logits above -inf (Tang et al. 2024, "Top-n-sigma"). First. */
void td_cut_top_n_sigma(struct td_cut *c, float n);
void td_cut_top_k(struct td_cut *c, uint32_t k); /* the k largest */
/* The entropy of what is left as a share of the largest possible, 0 to 1; 1 when only one id is left. */
double td_cut_entropy_share(const struct td_cut *c);
/* Locally typical sampling (Meister et al. 2022): the fewest ids whose share of the weight reaches p, those first whose
 * surprise is nearest to the entropy. */
void td_cut_typical(struct td_cut *c, float p);
/* The fewest ids, largest first, whose share of the weight reaches p. */
void td_cut_top_p(struct td_cut *c, float p);
/* Ids with at least p times the largest weight that is left. */
void td_cut_min_p(struct td_cut *c, float p);
/* XTC (p-e-w, text-generation-webui pull request 6335): of the ids whose share is at least `threshold`, all but the
 * smallest are cut away. Last. */
void td_cut_xtc(struct td_cut *c, float threshold);

/* The weight that is left; fills leaf_sum. */
double td_cut_sum(const struct td_cut *c);
/* The id at `target` (0 <= target < the sum above) on the running sum of weights in ascending id, and its weight.
 * After td_cut_sum. */
uint32_t td_cut_pick(const struct td_cut *c, double target, double *weight);
/* The weights that are left [n_vocab]; the others are not written. */
void td_cut_weights(const struct td_cut *c, double *weights);
/* The largest logits above -inf of what is left, at most n; returns how many. Entries of `list` [n] are overwritten. */
uint32_t td_cut_largest(const struct td_cut *c, struct td_top *list, uint32_t n);

#endif
