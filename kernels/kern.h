/* The device seam: arithmetic of one device, as one table of operations.
 * Owns packed weights and device memory; knows no ranks, requests or files. Called from one thread (the shard's compute
 * thread). Wrappers check shapes once; backends check nothing twice. Pointers to activations, weights of norms, ids, positions and
 * tables are device addresses from td_kern_alloc (on a CPU, any memory). Operations enqueue and may run at once; td_kern_sync waits
 * for all of them.
 *
 * Every result row depends only on its own input row, never on how many rows are in the call (README, "Exactness"). */
#ifndef TD_KERNELS_KERN_H
#define TD_KERNELS_KERN_H

#include "kernels/base/dtype.h"
#include "kernels/base/err.h"
#include "kernels/draw.h"
#include "kernels/top.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_kern;   /* one device with its threads or streams */
struct td_matrix; /* weights in the device's packed layout */
struct td_cores_seat;

enum {
    TD_KERN_CHUNK_KEYS = 64,
    TD_KERN_MAX_HEAD_DIM = 256,
    TD_KERN_MAX_PARTS = 12,
    TD_KERN_MAX_LEAVES = 128,
    TD_KERN_MAX_OUTPUTS = 8
};

struct td_kern_cpu_params {
    uint32_t n_threads; /* 0: one per physical core of the process's affinity mask */
    /* [n_threads], borrowed for the call: the hardware thread that each is bound to (kernels/cpu/cores.h), the calling thread
     * first. NULL: nobody is bound. */
    const struct td_cores_seat *seats;
    /* How long an idle thread spins before it sleeps; 0 where ranks share cores. */
    uint64_t spin_ns;
    /* "ref", "avx2", "avx512", "auto" (the best there is); NULL: TENSORD_CPU_ISA, else "auto". */
    const char *isa;
};
/* Sets the calling thread's floating-point environment to the default, which the bits of every result rely on. */
enum td_status td_kern_cpu_open(const struct td_kern_cpu_params *params, struct td_kern **kern,
                                struct td_err *err);

struct td_kern_cuda_params {
    uint32_t device; /* CUDA's ordinal */
    const char *
        plugin; /* path, borrowed for the call; NULL: libtensord_cuda.so beside the program or in its lib folder */
    bool graphs; /* operations are recorded and replayed */
    /* Rows of a linear step from which NVIDIA's library multiplies, whose bits may depend on how many they are; 0: it never does. */
    uint32_t inexact_from;
    /* For td_kern_run; NULL: the calling thread does it. */
    void (*run)(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg);
    void *user;
};
/* TD_NOT_FOUND: no plug-in; TD_CORRUPT: one of another build; TD_UNAVAILABLE: no driver, one too old, or no device; TD_UNSUPPORTED:
 * too old a device; TD_INVALID: no such one; TD_DEVICE. */
enum td_status td_kern_cuda_open(const struct td_kern_cuda_params *params, struct td_kern **kern,
                                 struct td_err *err);

/* Devices that the plug-in sees; errors as above. */
enum td_status td_kern_cuda_count(const char *plugin, uint32_t *n, struct td_err *err);

void td_kern_close(struct td_kern *kern); /* NULL is legal; every matrix is closed before */

const char *td_kern_name(const struct td_kern *kern); /* "cpu avx512" */
const char *
td_kern_numerics(const struct td_kern *kern); /* numerics class; equal classes give equal bits */
/* A GPU's place on the host's PCI bus, "0000:1B:00.0"; empty: a CPU. */
const char *td_kern_bus_id(const struct td_kern *kern);
/* Whether matrices of `type` and caches of `type` can be held. */
bool td_kern_supports_matrix(const struct td_kern *kern, enum td_dtype type);
bool td_kern_supports_kv(const struct td_kern *kern, enum td_dtype type);

/* Calls task(arg, 0 .. n - 1), each once, on the host's threads of the device, which have nothing else to do between two steps;
 * returns when all have ended. For work on what td_kern_sync has brought. */
void td_kern_run(struct td_kern *kern, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg);
/* Whether the host reads and writes the device's memory as its own. */
bool td_kern_is_host(const struct td_kern *kern);
/* What operations are enqueued on, as the device knows it (cudaStream_t), for who enqueues something between them; NULL on a CPU. */
void *td_kern_stream(const struct td_kern *kern);
/* Device memory, aligned to 64 bytes and cleared. NULL when there is none left. */
void *td_kern_alloc(struct td_kern *kern, size_t bytes);
void td_kern_free(struct td_kern *kern, void *ptr, size_t bytes);
/* Memory that operations and the host both see, the host what td_kern_sync has brought: slow for the device to read. Cleared. NULL
 * when there is none left. */
void *td_kern_alloc_shared(struct td_kern *kern, size_t bytes);
void td_kern_free_shared(struct td_kern *kern, void *ptr, size_t bytes);
/* Enqueues a copy between any two places that do not overlap; the host's memory at `from` may change when this returns, at `to` it is
 * there after td_kern_sync. Of shared memory at `from` it takes what td_kern_sync has brought. */
void td_kern_copy(struct td_kern *kern, void *to, const void *from, size_t bytes);
/* The same for n rows of so many bytes, whose beginnings lie `to_step` and `from_step` bytes apart, between places of the device and of
 * memory that it shares with the host. */
void td_kern_copy_rows(struct td_kern *kern, void *to, size_t to_step, const void *from,
                       size_t from_step, uint32_t n, size_t bytes);
/* Memory of the device that nobody has; 0 where it is the host's. */
size_t td_kern_free_bytes(struct td_kern *kern);
/* Bytes held by matrices. */
size_t td_kern_weight_bytes(const struct td_kern *kern);
/* Waits until everything enqueued so far is done; reports a device failure. */
enum td_status td_kern_sync(struct td_kern *kern, struct td_err *err);

/* Operations that come again and again with the same arguments, between td_kern_record and td_kern_record_end: the contents of memory
 * may differ, its addresses and all numbers may not. Where td_kern_replay finds what was recorded under the key, it enqueues all of
 * that, and they need not be asked for one by one. Between the two are operations alone: no memory is had, given back or copied,
 * nobody syncs. Without `keep`, because one of them was refused, nothing is recorded. A device that gains nothing by it records
 * nothing. */
bool td_kern_replay(struct td_kern *kern, uint64_t key);
void td_kern_record(struct td_kern *kern, uint64_t key);
void td_kern_record_end(struct td_kern *kern, bool keep);
/* Nothing that was recorded is kept; waits for nothing. */
void td_kern_forget(struct td_kern *kern);

/* ---- dense ---- */

/* A slice of a weight matrix [n_rows x n_cols]. The columns are a run of leaves of the sum's tree (comm/tree.h): leaves
 * first_leaf .. of a sum with n_leaves leaves; the slice's k-th leaf ends at leaf_end[k] (columns of the slice).
 * A matrix whose columns nobody splits has all leaves. The parts are the subtrees of that run, left to right: part p joins the
 * slice's leaves [part_begin[p], part_begin[p + 1]). */
struct td_matrix_shape {
    enum td_dtype dtype;
    uint32_t n_rows;
    uint32_t n_cols;
    uint32_t n_leaves;        /* leaves in this slice, >= 1 */
    const uint32_t *leaf_end; /* [n_leaves] */
    uint32_t n_parts;         /* >= 1 */
    uint32_t part_begin[TD_KERN_MAX_PARTS + 1];
};
enum td_status td_kern_matrix_open(struct td_kern *kern, const struct td_matrix_shape *shape,
                                   struct td_matrix **m, struct td_err *err);
void td_kern_matrix_close(struct td_kern *kern, struct td_matrix *m);
/* Packs rows [row0, row0 + n_rows) from `src`, whose rows lie `stride_bytes` apart and hold the slice's columns in the
 * file's own format (unaligned is fine). Uses all threads. Rows are packed in multiples of 32 from row 0, except the last.
 * `scales`: for F8_E4M3, one per row and 128 columns [n_rows x ceil(n_cols / 128)]; NULL for every other type. */
enum td_status td_kern_matrix_pack(struct td_kern *kern, struct td_matrix *m, uint32_t row0,
                                   uint32_t n_rows, const void *src, size_t stride_bytes,
                                   const float *scales, struct td_err *err);
size_t td_kern_matrix_bytes(const struct td_matrix *m);

/* Rows that a linear step reads, each [n_cols]: x[rows[i]] (x[i] where rows is NULL). Where `add` is there, its row i is added
 * first, and x keeps the sum (a residual); where `norm` is there, the row is then normalised for the step:
 * x / sqrt(mean(x^2) + eps) * norm (RMSNorm; Zhang, Sennrich 2019). */
struct td_kern_input {
    float *x; /* written only with `add` */
    const uint32_t *rows;
    const float *add;  /* [n x n_cols] */
    const float *norm; /* [n_cols] */
    float eps;
};
/* One result of a linear step. out [n_parts x n x n_rows] = input * m^T, one block of n rows per part; with `gate`, of m's
 * shape and one part: silu(input * gate^T) * (input * m^T) (SwiGLU, Shazeer 2020). */
struct td_kern_output {
    const struct td_matrix *m;
    const struct td_matrix *gate; /* NULL: none */
    float *out;
};
/* All outputs of the same n input rows, which are read and rounded once for each kind of matrix among them. `out` overlaps no
 * input. */
enum td_status td_kern_linear(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                              const struct td_kern_output *outs, uint32_t n_outs,
                              struct td_err *err);
/* The step with one output and plain rows: out [n_parts x n x n_rows] = x [n x n_cols] * m^T. */
enum td_status td_kern_matmul(struct td_kern *kern, const struct td_matrix *m, const float *x,
                              uint32_t n, float *out, struct td_err *err);
/* out [n x n_cols]: rows `ids` of m, dequantised. */
enum td_status td_kern_rows(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids,
                            uint32_t n, float *out, struct td_err *err);
/* out [n x dim]: rows x[rows[i]]. */
enum td_status td_kern_gather(struct td_kern *kern, const float *x, const uint32_t *rows,
                              uint32_t n, uint32_t dim, float *out, struct td_err *err);
/* out [n x dim] = x [n x dim] / sqrt(mean(x^2) + eps) * weight [dim]. In place is legal. (Zhang, Sennrich 2019) */
enum td_status td_kern_rmsnorm(struct td_kern *kern, const float *x, const float *weight,
                               uint32_t n, uint32_t dim, float eps, float *out, struct td_err *err);
/* out [n] = gate / (1 + exp(-gate)) * up. In place is legal. (SwiGLU, Shazeer 2020) */
enum td_status td_kern_silu_mul(struct td_kern *kern, const float *gate, const float *up, size_t n,
                                float *out, struct td_err *err);
/* x [n] += y [n]. */
enum td_status td_kern_add(struct td_kern *kern, float *x, const float *y, size_t n,
                           struct td_err *err);

/* out [n x n_top]: the n_top (1 to TD_TOP_MAX) largest of each row of x [n x width], largest first; ids count from 0. */
enum td_status td_kern_top(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                           uint32_t n_top, struct td_top *out, struct td_err *err);
/* Whether it draws tokens from rows of that width, as a sampler on the host does, bit for bit. */
bool td_kern_draws(const struct td_kern *kern, uint32_t width);
/* ids [n]: the id that each row of x [n x width] gives by its draw of draws [n], the host's; UINT32_MAX where all is -infinity or NaN.
 * TD_INVALID for a draw that is none, TD_UNSUPPORTED. */
enum td_status td_kern_draw(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                            const struct td_draw *draws, uint32_t *ids, struct td_err *err);

/* out [n]: of each row of x [n x width], and of its id of ids [n] (as td_kern_draw leaves them; NULL: none). What td_kern_draws says is
 * true of this too. */
enum td_status td_kern_measure(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                               const uint32_t *ids, struct td_measure *out, struct td_err *err);

/* ---- attention ---- */

/* angles [n x 2 x dim] of positions [n] at the angular frequencies freq [dim/2] (radians per token), times `scale`: per row the
 * cosine of every element, then its sine with the sign that the element's partner gets. `interleaved`: elements 2i and
 * 2i + 1 are partners, else i and i + dim/2. (RoPE, Su et al. 2021) */
enum td_status td_kern_rope_angles(struct td_kern *kern, const double *freq, uint32_t dim,
                                   double scale, bool interleaved, const uint32_t *positions,
                                   uint32_t n, float *angles, struct td_err *err);

/* One layer's keys and values of this rank in pages: [n_blocks] blocks of block_tokens tokens each. What lies where
 * inside a block is the backend's business; only its size is known (td_kern_kv_bytes). Q8_0 and Q4_0 quantise 32
 * dimensions of one token together, so head_dim is a multiple of 32 for them. */
struct td_kv_view {
    enum td_dtype dtype;
    void *data;
    uint32_t n_blocks;
    uint32_t n_kv_heads;
    uint32_t block_tokens; /* divides TD_KERN_CHUNK_KEYS */
    uint32_t head_dim;
};
/* Where each row's sequence lies: row i is at positions[i] of the sequence whose blocks are table[first_block[i] ..]. */
struct td_kv_rows {
    const uint32_t *positions;   /* [n] */
    const uint32_t *first_block; /* [n] */
    const uint32_t *table;       /* block ids, each below n_blocks */
    uint32_t most_keys;          /* no position is this or above */
    uint32_t n_seqs;             /* runs of neighbours of one sequence; 0: nobody has counted */
};
/* Bytes of a whole view. 0 where head_dim is no whole number of the type's blocks. */
size_t td_kern_kv_bytes(const struct td_kv_view *kv);

/* What td_kern_rope_kv makes of one layer's projections. */
struct td_rope_kv {
    float *q;            /* [n x n_heads x head_dim], in place */
    float *k;            /* [n x n_kv_heads x head_dim], overwritten */
    const float *v;      /* [n x n_kv_heads x head_dim] */
    const float *angles; /* [n x 2 x head_dim] of td_kern_rope_angles */
    const float *
        q_norm; /* [head_dim] weight of an RMSNorm of every query head before the rotation; NULL: none */
    const float *k_norm; /* [head_dim] the same of every key head */
    uint32_t n_heads;
    float eps;        /* of the norms */
    bool interleaved; /* as the angles were made */
};
/* Normalises and rotates q and k, and stores k and v at the rows' positions, rounded to the cache's type. */
enum td_status td_kern_rope_kv(struct td_kern *kern, const struct td_kv_view *kv,
                               const struct td_kv_rows *rows, uint32_t n,
                               const struct td_rope_kv *in, struct td_err *err);
/* How the query heads of one layer attend. */
struct td_attention {
    const float *q; /* [n x n_heads x head_dim] */
    float *out;     /* the same; overlaps nothing */
    uint32_t n_heads;
    const uint32_t *
        kv_of_head; /* [n_heads] the slice's KV head of each (the host's memory); neighbours that share one share its reads */
    float scale;    /* of every score */
    uint32_t
        window; /* keys that a row sees, its own the last of them (Beltagy et al. 2020); 0: all */
    float softcap; /* a score s becomes softcap tanh(s / softcap) (Gemma 2, 2024); 0: it stays */
    const float *
        sinks; /* [n_heads] scores of a key that has no value (Xiao et al. 2023; gpt-oss); NULL: none */
};
/* Each row attends to positions 0 .. its own, or the last `window` of them, read from the cache only. Keys are walked in chunks of
 * TD_KERN_CHUNK_KEYS by absolute position; the chunks join in a fixed tree by their index from the row's first one. */
enum td_status td_kern_attention(struct td_kern *kern, const struct td_kv_view *kv,
                                 const struct td_kv_rows *rows, uint32_t n,
                                 const struct td_attention *how, struct td_err *err);

/* One block of a view as td_kern_kv_block_bytes bytes of host memory: head after head, each in the backend's own form, which
 * depends on type, block_tokens and head_dim alone. */
size_t td_kern_kv_block_bytes(const struct td_kv_view *kv);
enum td_status td_kern_kv_save(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                               void *bytes, struct td_err *err);
enum td_status td_kern_kv_restore(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                                  const void *bytes, struct td_err *err);

#endif
