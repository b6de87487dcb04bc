/* The arithmetic of mirostat (Basu, Ramachandran, Keskar, Varshney 2020, "Mirostat: a neural text decoding algorithm
 * that directly controls perplexity"; version 2 as its authors' later note and llama.cpp have it). Surprise is measured
 * in bits on the distribution before the cut, as in the paper. Pure; the same bits on every machine. */
#ifndef TD_SHARD_MIROSTAT_H
#define TD_SHARD_MIROSTAT_H

#include <stdint.h>

enum { TD_MIROSTAT_N_LARGEST = 100 }; /* that version 1 estimates from; the paper's m */

double td_mirostat_start(float tau); /* mu before the first draw: 2 tau */
/* mu after a draw that surprised by log2(whole / weight): its weight, and all weight before the cut. */
double td_mirostat_next(double mu, float tau, float eta, double whole, double weight);
/* Version 2: the share of the weight below which an id surprises by more than mu. */
double td_mirostat_least_share(double mu);
/* Version 1: how many of the most likely ids to keep, 1 to n_vocab, as Zipf's law has it with the exponent that the n
 * largest logits show. logits [n], largest first, all finite; inv_t: 1 / temperature. */
uint32_t td_mirostat_k(const float *logits, uint32_t n, double inv_t, double mu, uint32_t n_vocab);

#endif
